//! Messages that are due at a time of their own, and recalling them: 370 (PROTOCOL 2.3.4, 4.10).

use protocol::codes::{request, response};
use protocol::headers::{RecallMessage, SendMessage};
use protocol::message;
use protocol::names::{self, ext, perm};
use protocol::properties::{self, name};
use protocol::recall::RecallHandle;
use protocol::{Alike, AnswerWriter};

use engine::error::AppendError;
use engine::io::Pieces;
use engine::partition::DelayedSearch;

use super::{Said, Until, is_half, set_real, write_place};
use crate::answer::BUSY;
use crate::call::{Call, Request};
use crate::desk::Desk;
use crate::mail::Mail;
use crate::parked::Cold;
use crate::promise::Promise;

/// A message with a delay level is no timer message.
pub(super) fn forget(text: &mut String) {
    properties::remove_all(text, &[name::TIMER_DELIVER_MS, name::TIMER_DELAY_SEC, name::TIMER_DELAY_MS]);
}

/// What a timer message's properties say.
struct Wants {
    /// When it wants to be delivered, ms since 1970. `None`: what it says is no time.
    at_ms: Option<i64>,
    /// It waited already.
    is_over: bool,
    /// It wants another one deleted.
    deletes: bool,
}

impl Wants {
    fn read(text: &str, now_ms: u64) -> Wants {
        let names = [
            name::TIMER_DELAY_SEC,
            name::TIMER_DELAY_MS,
            name::TIMER_DELIVER_MS,
            name::TIMER_OUT_MS,
            name::TIMER_DEL_UNIQKEY,
        ];
        let [seconds, ms, deliver, out, unique] = properties::get_all(text, names);
        let now_ms = now_ms.cast_signed();
        let time = seconds.map(|text| (text, 1000, now_ms)).or(ms.map(|text| (text, 1, now_ms)));
        let time = time.or(deliver.map(|text| (text, 1, 0)));
        let at_ms =
            time.and_then(|(text, factor, base)| text.parse::<i64>().ok()?.checked_mul(factor)?.checked_add(base));
        Wants { at_ms, is_over: out.is_some(), deletes: unique.is_some() }
    }
}

/// Whether a message with TIMER_DEL_UNIQKEY is one that deletes: not if it has a level, or has waited already.
pub(super) fn deletes(send: &SendMessage<'_>, said: &Said<'_>) -> bool {
    !is_half(send, said) && said.delay_level <= 0 && properties::get(send.properties, name::TIMER_OUT_MS).is_none()
}

/// What a message of this topic deletes, by its property. A stock broker that appends no topic looks in all of them.
fn target_of<'a>(topic: &'a str, key: &'a str, has_topic: bool) -> Option<(&'a str, &'a str)> {
    if has_topic { key.split_once('+') } else { Some((topic, key)) }
}

fn illegal(most_ms: u64) -> String {
    format!(
        "timer message illegal, the delay time should not be bigger than the max delay {most_ms}ms; or if set del msg, \
         the delay time should be bigger than the current time"
    )
}

/// Messages that a recall ends in one turn.
const RECALLED_AT_ONCE: usize = 64;
/// No message ever begins at this log byte: its segment's header does.
const NO_MESSAGE: u64 = 0;

/// How far the search for a message that waits came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought {
    /// So many other cores have not looked for it.
    others: usize,
    /// One was found: a producer that sends again what was not answered leaves several.
    found: bool,
    /// The partition that is looked through, this core's count, and how far.
    local: usize,
    search: DelayedSearch,
}

impl Sought {
    /// Nobody on this core has looked for it, and so many other cores have not.
    pub fn new(others: usize) -> Sought {
        Sought { others, found: false, local: 0, search: DelayedSearch::default() }
    }

    /// The next core's turn. `None`: all have looked.
    fn next_core(self) -> Option<Sought> {
        Some(Sought { found: self.found, ..Sought::new(self.others.checked_sub(1)?) })
    }
}

impl Desk {
    /// A send that deletes a timer message which waits: with TIMER_DEL_UNIQKEY, and the time of the other one. Nothing is
    /// stored for it. As in RocketMQ, the answer does not tell whether there was one.
    pub(crate) fn delete_timer(&mut self, call: &Call<'_>, sought: Sought, now_ms: u64) {
        let send = match SendMessage::parse(call.header.code, &call.header.fields) {
            Ok(send) => send,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let most_ms = self.settings.timer_max_delay_ms;
        let due_ms = Wants::read(send.properties, now_ms).at_ms.and_then(|due_ms| u64::try_from(due_ms).ok());
        let Some(due_ms) = due_ms.filter(|due_ms| *due_ms > now_ms && due_ms - now_ms <= most_ms) else {
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &illegal(most_ms));
        };
        let key = properties::get(send.properties, name::TIMER_DEL_UNIQKEY).unwrap_or("");
        let target = target_of(send.topic, key, self.settings.timer_delete_topic);
        let handle = target.map(|(topic, unique)| RecallHandle {
            topic: topic.to_owned(),
            broker_name: String::new(),
            due_ms: Some(due_ms),
            unique: unique.to_owned(),
        });
        match handle {
            Some(handle) => self.withdraw_any(call, &handle, due_ms, sought, now_ms),
            None => self.answer_withdrawn(call, key, false),
        }
    }

    /// When a timer message is due. Its properties become those of one that waits, or the code and the remark say
    /// why it cannot.
    pub(super) fn timer(
        &self,
        topic: &str,
        queue: u32,
        unique: &str,
        text: &mut String,
        now_ms: u64,
    ) -> Result<Until, (i32, String)> {
        let wants = Wants::read(text, now_ms);
        if wants.is_over {
            // It was consumed, and is sent again.
            return Ok(Until::Now);
        }
        let most_ms = self.settings.timer_max_delay_ms;
        let illegal = || (response::MESSAGE_ILLEGAL, illegal(most_ms));
        // Only a message of its own deletes another one: not one that comes out of a transaction.
        if wants.deletes {
            return Err(illegal());
        }
        let at_ms = wants.at_ms.ok_or_else(illegal)?;
        let Some(at_ms) = u64::try_from(at_ms).ok().filter(|at_ms| *at_ms > now_ms) else { return Ok(Until::Now) };
        if at_ms - now_ms > most_ms {
            return Err(illegal());
        }
        properties::remove_all(text, &[name::TIMER_ENQUEUE_MS, name::TIMER_DEQUEUE_MS]);
        set_real(text, topic, queue);
        // As of a stock broker whose precision is a millisecond.
        let mut digits = itoa::Buffer::new();
        properties::append(text, name::TIMER_OUT_MS, digits.format(at_ms - 1));
        properties::append(text, name::TIMER_ENQUEUE_MS, digits.format(now_ms));
        properties::append(text, name::TIMER_DEQUEUE_MS, digits.format(at_ms));
        Ok(Until::Due { at_ms, key: RecallHandle::key(topic, unique, at_ms) })
    }

    /// What recalls a message that waits.
    #[inline]
    pub(super) fn recall_handle(&self, send: &SendMessage<'_>, until: Until, unique: &str) -> Option<String> {
        match until {
            Until::Due { at_ms, key } if key != 0 && !send.topic.starts_with(names::RETRY_PREFIX) => {
                Some(RecallHandle::text(send.topic, &self.settings.broker_name, at_ms, unique))
            }
            Until::Due { .. } | Until::Now | Until::Decided { .. } => None,
        }
    }

    /// As `recall`, for a request that other cores looked at.
    pub(crate) fn recall_of(&mut self, request: Request, sought: Sought, now_ms: u64) {
        let call = request.call();
        match call.header.code {
            request::RECALL_MESSAGE => self.recall(&call, sought, now_ms),
            _ => self.delete_timer(&call, sought, now_ms),
        }
    }

    /// RECALL_MESSAGE (370): a message that waits is never delivered.
    pub(crate) fn recall(&mut self, call: &Call<'_>, sought: Sought, now_ms: u64) {
        let recall = match RecallMessage::parse(&call.header.fields) {
            Ok(recall) => recall,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let handle = match self.check_recall(&recall, now_ms) {
            Ok(handle) => handle,
            Err((code, remark)) => return self.refuse(&call.reply, code, &remark),
        };
        let due_ms = handle.due_ms.expect("it was checked");
        self.withdraw_any(call, &handle, due_ms, sought, now_ms);
    }

    /// Looks for messages that wait and are meant, here and then on the other cores, and ends them. It goes on, and
    /// answers, when it is durable that what was ended is never delivered.
    fn withdraw_any(&mut self, call: &Call<'_>, handle: &RecallHandle, due_ms: u64, mut sought: Sought, now_ms: u64) {
        let key = RecallHandle::key(&handle.topic, &handle.unique, due_ms);
        let is_it = |record: &[u8]| {
            message::describe(record).is_some_and(|found| {
                let out_ms = properties::get(found.properties, name::TIMER_OUT_MS).and_then(|text| text.parse().ok());
                found.topic == handle.topic
                    && properties::get(found.properties, name::UNIQ_KEY) == Some(&handle.unique)
                    && out_ms == due_ms.checked_sub(1)
            })
        };
        let mut ended = 0;
        while sought.local < self.partitions.len() {
            let local = sought.local;
            if !self.partitions[local].is_open() {
                return self.refuse_append(&call.reply, AppendError::Opening);
            }
            match self.partitions[local].find_delayed(key, &is_it, &mut sought.search) {
                Ok(Some(byte)) => {
                    if let Err(error) = self.partitions[local].withdraw(byte, None, now_ms) {
                        return self.refuse_append(&call.reply, error);
                    }
                    (sought.found, ended) = (true, ended + 1);
                    if ended < RECALLED_AT_ONCE {
                        continue;
                    }
                }
                Ok(None) => {
                    (sought.local, sought.search) = (local + 1, DelayedSearch::default());
                    if self.partitions[local].has_kept_all() {
                        continue;
                    }
                }
                Err(load) if ended == 0 => {
                    return self.wait_for(local, load, Cold::Recall(call.to_request(), sought));
                }
                Err(_) => {}
            }
            // What was ended here, by this request or by one before it, is durable first.
            let Some(ticket) = self.promises.next() else {
                return self.refuse_append(&call.reply, AppendError::Busy);
            };
            match self.partitions[local].withdraw(NO_MESSAGE, Some(ticket), now_ms) {
                Ok(()) => {
                    let recall = Promise::Recall(Box::new((*call.to_request(), sought)));
                    self.promises.open_next(ticket, recall);
                }
                Err(error) => self.refuse_append(&call.reply, error),
            }
            return;
        }
        let Some(sought) = sought.next_core() else {
            return self.answer_withdrawn(call, &handle.unique, sought.found);
        };
        let next = (self.index + 1) % self.settings.cores;
        if self.outbox.offer(next, Mail::Recall(call.to_request(), sought)).is_err() {
            self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// What a recall must be. `Err`: code, remark.
    fn check_recall(&self, recall: &RecallMessage<'_>, now_ms: u64) -> Result<RecallHandle, (i32, String)> {
        let illegal = |why: &str| (response::ILLEGAL_OPERATION, why.to_owned());
        if !self.settings.recall_message {
            return Err((response::NO_PERMISSION, "recall failed, operation is forbidden".to_owned()));
        }
        if !self.settings.recall_read_only && !perm::writeable(self.settings.permission) {
            return Err((response::SERVICE_NOT_AVAILABLE, "recall failed, broker service not available".to_owned()));
        }
        if self.catalog.topic(recall.topic).is_none() {
            let remark = format!("recall failed, the topic[{}] not exist", recall.topic);
            return Err((response::TOPIC_NOT_EXIST, remark));
        }
        let handle = RecallHandle::parse(recall.recall_handle).ok_or_else(|| illegal("recall handle is invalid"))?;
        if handle.topic != recall.topic {
            return Err(illegal("recall failed, topic not match"));
        }
        if handle.broker_name != self.settings.broker_name {
            return Err(illegal("recall failed, broker service not available"));
        }
        let until_ms = now_ms + self.settings.timer_max_delay_ms;
        if handle.due_ms.is_none_or(|due_ms| due_ms <= now_ms || due_ms >= until_ms) {
            return Err(illegal("recall failed, timestamp invalid"));
        }
        Ok(handle)
    }

    /// All that was meant is never delivered, and that is durable.
    fn answer_withdrawn(&mut self, call: &Call<'_>, unique: &str, found: bool) {
        if call.header.code != request::RECALL_MESSAGE {
            if !call.reply.oneway {
                let (reply, told) = (&call.reply, &self.sends.told);
                self.replies.write(reply.connection, true, |out| write_deleted(out, call, unique, told));
            }
            return;
        }
        let header = self.replies.header(&call.reply, response::SUCCESS);
        if !found {
            // As a stock broker, which never looks: so who recalls again, because an answer was lost, is told the same.
            header.remark.push_str("no message waits that has this handle");
        }
        header.fields.push("msgId", unique);
        header.fields.push(ext::MSG_REGION, &self.settings.region);
        self.replies.send(&call.reply, Pieces::new());
    }
}

/// The answer to a send that deleted another message, or found none: it has no place of its own.
fn write_deleted(out: &mut Vec<u8>, call: &Call<'_>, unique: &str, told: &Alike) {
    let mut answer = AnswerWriter::new(out, call.reply.serialize, call.reply.opaque);
    answer.text("msgId", unique);
    write_place(&mut answer, 0, 0, Some(unique), told);
    answer.finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_stands_in_the_key() {
        assert_eq!(target_of("T", "A+B", false), Some(("T", "A+B")));
        assert_eq!(target_of("T", "U+B", true), Some(("U", "B")));
        assert_eq!(target_of("T", "B", true), None);
    }

    #[test]
    fn times_are_read_in_the_order_of_a_stock_broker() {
        type Pairs = &'static [(&'static str, &'static str)];
        let rows: [(Pairs, Option<i64>); 9] = [
            (&[("TIMER_DELAY_SEC", "2")], Some(12_000)),
            (&[("TIMER_DELAY_MS", "7")], Some(10_007)),
            (&[("TIMER_DELIVER_MS", "7")], Some(7)),
            (&[("TIMER_DELIVER_MS", "7"), ("TIMER_DELAY_MS", "3"), ("TIMER_DELAY_SEC", "1")], Some(11_000)),
            (&[("TIMER_DELIVER_MS", "7"), ("TIMER_DELAY_MS", "3")], Some(10_003)),
            (&[("TIMER_DELAY_MS", "-3")], Some(9_997)),
            (&[("TIMER_DELAY_MS", "soon")], None),
            (&[("TIMER_DELAY_SEC", "9223372036854775807")], None),
            (&[("TIMER_DELAY_MS", "9223372036854775807")], None),
        ];
        for (pairs, wanted) in rows {
            let mut text = String::new();
            pairs.iter().for_each(|(name, value)| properties::append(&mut text, name, value));
            assert_eq!(Wants::read(&text, 10_000).at_ms, wanted, "{text}");
            forget(&mut text);
            assert_eq!(text, "");
        }
    }
}
