//! What waits for cold reads, and how it goes on.

use engine::LoadId;
use protocol::codes::response;

use super::Desk;
use crate::answer::BUSY;
use crate::mail::Mail;
use crate::parked::{Cold, Pull};

impl Desk {
    /// Lets a request or a pull wait for a cold read.
    pub(crate) fn wait_for(&mut self, local: usize, load: LoadId, cold: Cold) {
        let count_max = self.settings.limits.parked_pulls;
        if let Err(cold) = self.loading.wait(local, load.0, cold, count_max) {
            let reply = match cold {
                Cold::Pull(pull) => pull.reply,
                Cold::Request(request) | Cold::Recall(request, _) => request.reply,
                Cold::Pop(pop) => {
                    self.leave_line(&pop, false);
                    pop.reply
                }
                Cold::Loan(loan) => return self.end_later(loan),
                Cold::Half(_) => return,
                Cold::Ask(mut ask) => {
                    ask.inquiry.skip();
                    let part = ask.inquiry.give_up();
                    return self.outbox.send(ask.from, Mail::Told { ticket: ask.ticket, part });
                }
            };
            self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// A cold read is over: what waited for it is done again.
    pub(super) fn go_on(&mut self, local: usize, load: LoadId, ok: bool, now_ms: u64) {
        for cold in self.loading.done(local, load.0) {
            match cold {
                Cold::Pull(pull) if ok => self.pulls.woken.push(pull),
                Cold::Request(request) if ok => self.serve(&request.call(), now_ms),
                Cold::Recall(request, sought) if ok => self.recall_of(*request, sought, now_ms),
                Cold::Pop(pop) if ok => self.pop(pop, now_ms),
                Cold::Loan(loan) if ok => self.end_loan(loan, now_ms),
                Cold::Pop(pop) => {
                    self.leave_line(&pop, false);
                    self.refuse_read(&pop.reply);
                }
                Cold::Loan(loan) => self.end_later(loan),
                Cold::Half(id) if ok => self.check_half(local, id, now_ms),
                Cold::Half(_) => {}
                Cold::Pull(Pull { reply, .. }) => self.refuse_read(&reply),
                Cold::Request(request) | Cold::Recall(request, _) => self.refuse_read(&request.reply),
                Cold::Ask(mut ask) => {
                    if !ok {
                        ask.inquiry.skip();
                    }
                    self.ask(ask, now_ms);
                }
            }
        }
    }
}
