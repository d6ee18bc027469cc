//! Answers that wait until the log has what they tell of: what a pop was lent, what was acknowledged, another time.
//!
//! In each turn all accounts that changed are noted, and the notes of a partition are kept by one batch, whatever number
//! of answers waits for it. With `broker.pop_buffer_merge` nothing waits.

use bytes::Bytes;
use engine::error::AppendError;
use engine::io::Pieces;
use engine::partition::Partition;

use super::accounts::{AccountId, Holder, LoanOf, Note};
use super::ack::Acks;
use crate::call::ReplyTo;
use crate::catalog::offset_key;
use crate::desk::Desk;
use crate::promise::Promise;

/// Messages of pops that wait for the log, beyond which no more are lent: 32 MiB in one core, half of a log's tail. A log that
/// takes 50 ms to write lends 640 MB a second with it.
const HELD_BYTES_MAX: usize = 32 << 20;
/// A log that has no room is asked again after so long, for so long. Milliseconds.
const AGAIN_MS: u64 = 1;
const BUSY_MS_MAX: u64 = 1_000;

/// What waits, of one core.
#[derive(Debug, Default)]
pub struct Held {
    places: Vec<Place>,
    free: Vec<u32>,
    /// By place of the partition: those of which the log was not asked yet, and since when it has no room for them; 0: it has.
    new: Vec<(Vec<u32>, u64)>,
    /// Some are new; and when their logs are asked.
    new_at_ms: Option<u64>,
    /// Of messages.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Place {
    /// Logs that have not kept it yet.
    left: usize,
    failed: Option<AppendError>,
    then: Option<Then>,
}

/// What is done once the log has it.
#[derive(Debug)]
pub(super) enum Then {
    /// This answer leaves.
    Answer {
        /// Whom to answer.
        reply: ReplyTo,
        /// Its first bytes.
        head: Vec<u8>,
        /// The rest.
        body: Pieces,
        /// What it tells to be lent.
        loans: Vec<LoanOf>,
    },
    /// A batch of acknowledgements goes on.
    Acks(Box<Acks>),
}

impl Then {
    fn bytes(&self) -> usize {
        match self {
            Then::Answer { body, .. } => body.iter().map(Bytes::len).sum(),
            Then::Acks(_) => 0,
        }
    }
}

impl Held {
    /// Whether one more pop may wait with its messages.
    pub fn has_room(&self) -> bool {
        self.bytes < HELD_BYTES_MAX
    }

    /// When a log is to be asked, in ms.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.new_at_ms
    }

    /// Waits for these partitions, at least one.
    fn wait(&mut self, locals: &[usize], then: Then) {
        self.bytes += then.bytes();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).expect("each is of a request, and requests are far below 2^32")
        });
        self.places[place as usize] = Place { left: locals.len(), failed: None, then: Some(then) };
        for local in locals {
            if self.new.len() <= *local {
                self.new.resize_with(local + 1, Default::default);
            }
            self.new[*local].0.push(place);
        }
        self.new_at_ms = Some(0);
    }

    /// A log has kept something, or never will. What was the last that a place waited for comes out.
    fn settle(&mut self, place: u32, outcome: Result<(), AppendError>) -> Option<(Then, Option<AppendError>)> {
        let at = &mut self.places[place as usize];
        at.left -= 1;
        at.failed = at.failed.or(outcome.err());
        if at.left > 0 {
            return None;
        }
        let Place { then, failed, .. } = std::mem::take(at);
        let then = then.expect("it waits until nothing is left");
        self.free.push(place);
        self.bytes -= then.bytes();
        Some((then, failed))
    }
}

fn note_in(partitions: &mut [Partition], holder: &Holder, note: Note<'_>) -> bool {
    let key = offset_key(holder.key.topic, holder.key.queue, &holder.group);
    let partition = &mut partitions[holder.local];
    match note {
        Note::Whole(value) => partition.note(&key, value),
        // Others write plain offsets there, which are shorter than any value that goes on.
        Note::More(bytes, more) => {
            partition.fact(&key).is_some_and(|value| value.len() == bytes) && partition.note_more(&key, more)
        }
    }
}

impl Desk {
    /// Answers, with the header that was made, once the logs at these places have what changed there. `loans`: what it
    /// tells to be lent.
    pub(super) fn answer_kept(&mut self, locals: &[usize], reply: &ReplyTo, body: Pieces, loans: Vec<LoanOf>) {
        if !self.waits_for_logs(locals, reply) {
            return self.replies.send(reply, body);
        }
        let mut head = self.promises.buffer();
        self.replies.encode(body.iter().map(Bytes::len).sum(), &mut head);
        self.pops.held.wait(locals, Then::Answer { reply: *reply, head, body, loans });
    }

    /// Sends a batch of acknowledgements on once the logs at these places have what changed there.
    pub(super) fn send_acks_kept(&mut self, locals: &[usize], batch: Box<Acks>) {
        match self.waits_for_logs(locals, &batch.reply) {
            true => self.pops.held.wait(locals, Then::Acks(batch)),
            false => self.send_acks(batch),
        }
    }

    /// Whether an answer waits for these logs. Who wants none waits for nothing.
    fn waits_for_logs(&self, locals: &[usize], reply: &ReplyTo) -> bool {
        !locals.is_empty() && !self.settings.pop_buffer_merge && !reply.oneway
    }

    /// Writes down what changed of accounts a second ago; all of it, if somebody waits for it or for the last time.
    pub(crate) fn keep_accounts(&mut self, now_ms: u64, is_last: bool) {
        let is_asked = self.pops.held.new_at_ms.take_if(|at_ms| *at_ms <= now_ms || is_last).is_some();
        self.note_accounts(now_ms, is_asked || is_last, is_last);
        if !is_asked {
            return;
        }
        for local in 0..self.pops.held.new.len() {
            let (places, since_ms) = std::mem::take(&mut self.pops.held.new[local]);
            if places.is_empty() {
                continue;
            }
            let ticket = self.promises.open(Promise::Accounts(places));
            match self.partitions[local].keep_notes(ticket, now_ms) {
                Ok(true) => {}
                // A full disk keeps no loans: it gives out what it has all the same.
                Ok(false) | Err(AppendError::Full) => self.settle(ticket, Ok(()), now_ms),
                Err(AppendError::Busy) if since_ms == 0 || now_ms < since_ms + BUSY_MS_MAX => {
                    if let Some(Promise::Accounts(places)) = self.promises.get(ticket) {
                        let since_ms = if since_ms == 0 { now_ms } else { since_ms };
                        self.pops.held.new[local] = (std::mem::take(places), since_ms);
                    }
                    self.promises.close(ticket);
                    self.pops.held.new_at_ms = Some(now_ms + AGAIN_MS);
                }
                Err(error) => self.settle(ticket, Err(error), now_ms),
            }
        }
    }

    /// As [`Accounts::note`](super::accounts::Accounts::note).
    pub(crate) fn note_accounts(&mut self, now_ms: u64, is_all: bool, is_last: bool) {
        let partitions = &mut self.partitions;
        self.pops.accounts.note(now_ms, is_all, is_last, |holder, note| note_in(partitions, holder, note));
    }

    /// Writes one account down now: another value may stand where its own was.
    pub(super) fn note_account(&mut self, id: AccountId) {
        let partitions = &mut self.partitions;
        self.pops.accounts.note_one(id, &mut |holder, note| note_in(partitions, holder, note));
    }

    /// The log has kept what these wait for, or never will.
    pub(crate) fn settle_held(&mut self, places: Vec<u32>, outcome: Result<(), AppendError>, now_ms: u64) {
        for place in places {
            if let Some((then, failed)) = self.pops.held.settle(place, outcome) {
                self.release(then, failed, now_ms);
            }
        }
    }

    fn release(&mut self, then: Then, failed: Option<AppendError>, now_ms: u64) {
        match (then, failed) {
            (Then::Answer { reply, head, body, loans, .. }, failed) => {
                match failed {
                    None => self.replies.whole(reply.connection, &head, body),
                    Some(error) => {
                        for of in loans {
                            self.pops.accounts.give_back(of, now_ms);
                            if let Some(queue) = self.pops.accounts.get(of.account).map(|holder| holder.key) {
                                self.wake_pops(queue);
                            }
                        }
                        self.refuse_append(&reply, error);
                    }
                }
                self.promises.give(head);
            }
            (Then::Acks(batch), None) => self.send_acks(batch),
            (Then::Acks(batch), Some(error)) => self.refuse_append(&batch.reply, error),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    //! Goal: nothing is told that is not written. Method: desks, each with a partition on a simulated disk of its own, whose
    //! operations end when the test says so.

    use std::sync::Arc;

    use engine::buffer::Region;
    use engine::format::QueueKey;
    use engine::io::{Io, Tag};
    use engine::limits::LogConfig;
    use engine::message::Draft;
    use engine::partition::Effect;
    use engine::sim::Sim;
    use protocol::StoredMessage;
    use protocol::codes::response;

    use super::super::account::{Account, Kind, LoanId};
    use super::super::tests::pop;
    use super::super::waiting::LINE_POPS_MAX;
    use super::*;
    use crate::admin::{Reset, ResetTo};
    use crate::catalog::{Catalog, Group, SubscriptionGroupConfig, Topic, TopicConfig, Wants};
    use crate::config::{Config, Found};
    use crate::mail::{Mail, Mailboxes, Make};
    use crate::parked::Filter;
    use crate::pop::revive::{Receipt, Revival};
    use crate::pop::{Pop, Wish};
    use crate::produce::describe;

    /// A desk and its disk.
    pub(in super::super) struct Office {
        pub(in super::super) desk: Desk,
        pub(in super::super) sim: Sim,
    }

    /// A topic `T` with a queue in each.
    pub(in super::super) fn offices(mailboxes: &Mailboxes) -> Vec<Office> {
        let found = Found { cores: 3, partitions: 3, ..Found::one_core() };
        let settings = Arc::new(Config::default().settings(found));
        let config = TopicConfig::new("T", 3, 6);
        let topic = Arc::new(Topic { id: 1, name: "T".into(), first_partition: 0, config });
        let mut catalog = Catalog::new(7);
        catalog.set_topic(topic);
        let config = SubscriptionGroupConfig::new("g");
        catalog.set_group(Arc::new(Group { name: "g".into(), config, forbidden: Default::default() }));
        let catalog = Arc::new(catalog);
        let office = |index: usize| {
            let memory = Region::new(64, 1 << 20).expect("memory");
            let log = LogConfig::new("/data", index as u16, memory, describe);
            let partition = Partition::new(LogConfig { segment_bytes: 16 << 20, prepare_bytes: 0, ..log });
            let partitions = vec![partition.expect("its settings are in range")];
            let desk = Desk::new(index, settings.clone(), partitions, mailboxes.clone(), 7);
            let mut office = Office { desk, sim: Sim::new(index as u64) };
            office.desk.catalog = catalog.clone();
            office.drive();
            assert!(office.desk.partitions[0].is_open());
            office
        };
        (0..3).map(office).collect()
    }

    impl Office {
        /// Lets everything happen on the disk that is under way, for ten seconds.
        pub(in super::super) fn drive(&mut self) {
            let (mut effects, mut done) = (Vec::new(), Vec::new());
            for _ in 0..1_000 {
                let now_ms = self.sim.now_ms();
                self.desk.pops_on_time(now_ms);
                self.desk.partitions[0].on_turn(now_ms);
                self.desk.partitions[0].effects(&mut effects);
                for effect in effects.drain(..) {
                    match effect {
                        Effect::Io { local, op } => self.sim.submit(Tag(local), op).expect("there is room"),
                        // There is no registrar here.
                        Effect::Opened => {}
                        effect => self.desk.on_effect(0, effect, now_ms),
                    }
                    assert!(!self.desk.serve_woken(now_ms), "there are few answers");
                }
                self.sim.drive(None, &mut done);
                for done in done.drain(..) {
                    self.desk.partitions[0].on_done(done.tag.0, done.outcome, self.sim.now_ms());
                }
                self.sim.advance(10);
            }
        }

        /// What is still on loan, and the codes of the answers so far.
        pub(in super::super) fn seen(&mut self) -> (usize, Vec<i32>) {
            let desk = &mut self.desk;
            let key = QueueKey { topic: 1, queue: desk.index as u32 };
            let id = desk.pops.accounts.find(key, "g").expect("it was opened");
            let out = desk.pops.accounts.get(id).map_or(0, |holder| holder.account.out());
            (out, self.seen_codes())
        }

        /// The codes of the answers so far.
        pub(in super::super) fn seen_codes(&mut self) -> Vec<i32> {
            let desk = &mut self.desk;
            let list = desk.replies.take();
            let code = |head: &[u8]| {
                protocol::Command::decode(bytes::Bytes::copy_from_slice(head)).expect("a frame").header.code
            };
            let codes = list.iter().map(|reply| code(desk.replies.head(reply))).collect();
            desk.replies.clear(list);
            codes
        }

        /// What the log has of the account.
        fn written(&self) -> Account {
            let key = offset_key(1, self.desk.index as u32, "g");
            self.desk.partitions[0].fact(&key).and_then(Account::read).expect("it is there")
        }

        /// A message as it is stored.
        fn record(body: &[u8]) -> Vec<u8> {
            let host = "127.0.0.1:1".parse().expect("an address");
            let message = StoredMessage::plain(host, "T", "", body);
            let mut record = vec![0; message.encoded_len()];
            message.encode(&mut record);
            record
        }

        pub(in super::super) fn store(&mut self, body: &[u8]) {
            let record = Office::record(body);
            let description = describe(&record).expect("it is a message");
            let mut draft = [Draft {
                queue: QueueKey { topic: 1, queue: 0 },
                length: record.len(),
                offsets: 1,
                tag_hash: description.tag_hash,
                keys: &[],
                stamp: description.stamp,
                fill: &mut |out| out.copy_from_slice(&record),
            }];
            let now_ms = self.sim.now_ms();
            self.desk.partitions[0].append(&mut draft, None, now_ms, &mut Vec::new()).expect("there is room");
            self.drive();
        }

        pub(in super::super) fn pop(&mut self) {
            let topic = self.desk.catalog.topic("T").cloned().expect("it is there");
            let now_ms = self.sim.now_ms();
            self.desk.pop_again(Box::new(Pop { wish: wish(), topic, ..pop(5, "g", Some(0), 0) }), now_ms);
            self.desk.keep_accounts(now_ms, false);
        }
    }

    fn wish() -> Wish {
        let filter = Filter::Own(Wants::All);
        Wish::Messages { count: 8, invisible_ms: 60_000_000, from_last: false, filter }
    }

    #[test]
    fn a_pop_is_answered_when_its_loan_is_in_the_log() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        office.store(b"one");
        office.store(b"two");
        office.pop();
        assert_eq!(office.seen(), (2, vec![]), "both are lent, and it is not told yet");
        office.drive();
        assert_eq!(office.seen(), (2, vec![response::SUCCESS]));
        let written = office.written();
        assert_eq!((written.next(), written.out(), written.loans()), (2, 2, 1));
        // There is nothing more, and that is told at once and written nowhere.
        let before = office.desk.partitions[0].stats().accepted;
        office.pop();
        assert_eq!(office.seen(), (2, vec![response::POLLING_TIMEOUT]));
        office.drive();
        assert_eq!(office.desk.partitions[0].stats().accepted, before);
        // What waits for a log that ends is refused; what it lent it has lent.
        office.store(b"three");
        office.desk.partitions[0].shut();
        office.pop();
        assert_eq!(office.seen(), (2, vec![response::SERVICE_NOT_AVAILABLE]));
        // The setting says that nobody waits.
        let mut offices = self::offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        Arc::make_mut(&mut office.desk.settings).pop_buffer_merge = true;
        office.store(b"one");
        office.pop();
        assert_eq!(office.seen(), (1, vec![response::SUCCESS]));
    }

    #[test]
    fn a_log_without_room_is_asked_again_and_one_that_fails_refuses() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        office.store(b"one");
        // The log's memory is full of what waits for the disk.
        let now_ms = office.sim.now_ms();
        for value in [vec![7; 512 << 10], vec![7; 512], vec![7; 1]] {
            while office.desk.partitions[0].put(&[(b"x", Some(&value))], None, now_ms).is_ok() {}
        }
        office.pop();
        assert_eq!(office.seen(), (1, vec![]));
        assert_eq!(office.desk.pops.held.deadline_ms(), Some(now_ms + AGAIN_MS));
        office.drive();
        assert_eq!((office.seen(), office.desk.pops.held.deadline_ms()), ((1, vec![response::SUCCESS]), None));
        assert_eq!((office.written().out(), office.desk.pops.held.bytes), (1, 0));
        // A write that fails.
        office.store(b"two");
        office.pop();
        office.sim.faults.write = 1_000;
        office.drive();
        assert_eq!(office.seen(), (2, vec![response::SERVICE_NOT_AVAILABLE]));
        assert_eq!((office.desk.pops.held.bytes, office.desk.pops.held.free.len()), (0, 1));
    }

    #[test]
    fn a_pop_that_is_refused_has_lent_nothing_for_long_and_in_vain() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        office.store(b"one");
        office.pop();
        let now_ms = office.sim.now_ms();
        office.desk.settle_held(vec![0], Err(AppendError::Closed(std::io::ErrorKind::Other)), now_ms);
        assert_eq!(office.seen(), (1, vec![response::SERVICE_NOT_AVAILABLE]));
        let of = office.desk.pops.accounts.take_due(now_ms).expect("it is over at once");
        let holder = office.desk.pops.accounts.get(of.account).expect("it is there");
        assert_eq!(holder.account.loan(of.loan).expect("it is on loan").kind, Kind::Suspended, "it was no try");
    }

    #[test]
    fn no_more_is_lent_while_too_much_waits() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        office.store(b"one");
        office.desk.pops.held.bytes += HELD_BYTES_MAX;
        office.pop();
        assert_eq!(office.seen_codes(), [response::SYSTEM_BUSY]);
        // Those that waited for a message wait on, until their time is over or their client is gone.
        let now_ms = office.sim.now_ms();
        let waiting = |opaque, until_ms| Box::new(Pop { wish: wish(), ..pop(opaque, "g", Some(0), until_ms) });
        office.desk.pops.stirred.extend([waiting(1, now_ms + 1), waiting(2, u64::MAX), waiting(3, u64::MAX)]);
        assert!(!office.desk.serve_woken(now_ms));
        assert_ne!(office.desk.deadline_ms(), 0, "nothing turns meanwhile");
        office.drive();
        assert_eq!(office.seen_codes(), [response::POLLING_TIMEOUT]);
        let gone = pop(3, "g", Some(0), 0).reply.connection;
        office.desk.closed(&[gone], now_ms);
        office.desk.pops.held.bytes -= HELD_BYTES_MAX;
        assert_eq!((office.desk.deadline_ms(), office.desk.pops.stirred.len()), (0, 1));
        office.drive();
        assert_eq!(office.seen(), (1, vec![response::SUCCESS]));
    }

    fn retry_topic() -> Arc<Topic> {
        let config = TopicConfig::new("%RETRY%g_T", 1, 6);
        Arc::new(Topic { id: 2, name: "%RETRY%g_T".into(), first_partition: 1, config })
    }

    #[test]
    fn a_pop_for_what_comes_again_is_like_any_other_if_that_cannot_be_had_now() {
        for is_busy in [true, false] {
            let mailboxes = Mailboxes::new(3, 1);
            let mut offices = offices(&mailboxes);
            for office in &mut offices {
                Arc::make_mut(&mut office.desk.settings).pop_retry_percent = 100;
                Arc::make_mut(&mut office.desk.catalog).set_topic(retry_topic());
            }
            offices[0].store(b"one");
            if is_busy {
                mailboxes.push(1, Mail::Serve).expect("there is room for one");
                offices[0].pop();
            } else {
                offices[1].desk.pops.held.bytes += HELD_BYTES_MAX;
                offices[0].pop();
                for core in [1, 0] {
                    let mail = mailboxes.pop(core).expect("it goes there");
                    let now_ms = offices[core].sim.now_ms();
                    offices[core].desk.on_mail(mail, now_ms);
                }
            }
            offices[0].drive();
            assert_eq!(offices[0].seen_codes(), [response::SUCCESS], "{is_busy}");
        }
    }

    #[test]
    fn a_new_retry_topic_is_told_of_also_if_its_first_message_finds_no_log() {
        let mailboxes = Mailboxes::new(3, 4);
        let mut offices = offices(&mailboxes);
        let office = &mut offices[1];
        Arc::make_mut(&mut office.desk.catalog).set_topic(retry_topic());
        let id = office.desk.pops.accounts.open(1, &retry_topic(), &"g".into(), 0, Account::new(0)).expect("room");
        let receipt = Receipt {
            core: 0,
            loan: LoanOf { account: id, loan: LoanId { start: 0, pop_ms: 1 } },
            offset: 0,
            news: None,
        };
        let revival = |id: u32| {
            Box::new(Revival {
                receipt: receipt.clone(),
                topic: "%RETRY%g_T".to_owned(),
                queue: 0,
                how: Make::PopRetry {
                    group: "g".to_owned(),
                    topic: "T".to_owned(),
                    lent: ("T".to_owned(), id),
                    queues: 1,
                },
                is_fresh: true,
                record: Office::record(b"again"),
            })
        };
        let told = || -> Vec<Mail> { std::iter::from_fn(|| mailboxes.pop(0)).collect() };
        // What was lent from an older topic of that name is of nobody any more.
        office.desk.put_revival(revival(0), 0);
        office.drive();
        let gone = told();
        assert!(matches!(&gone[..], [Mail::Revived { ok: true, .. }]), "{gone:?}");
        let key = QueueKey { topic: 2, queue: 0 };
        assert_eq!(office.desk.partitions[0].span(key).max, 0, "it is not written");
        office.desk.partitions[0].shut();
        office.desk.put_revival(revival(1), 0);
        let told = told();
        assert!(matches!(&told[..], [Mail::Fresh { topic: 1, .. }, Mail::Revived { ok: false, .. }]), "{told:?}");
    }

    #[test]
    fn a_retry_topic_that_is_made_while_a_pop_is_on_its_way_is_waited_for() {
        let mailboxes = Mailboxes::new(3, 16);
        let mut offices = offices(&mailboxes);
        let topic = offices[0].desk.catalog.topic("T").cloned().expect("it is there");
        let pop = Pop { wish: wish(), topic, ..pop(7, "g", None, u64::MAX) };
        offices[0].desk.pop_again(Box::new(pop), 0);
        for office in &mut offices {
            Arc::make_mut(&mut office.desk.catalog).set_topic(retry_topic());
        }
        for core in [1, 2, 0].repeat(8) {
            while let Some(mail) = mailboxes.pop(core) {
                offices[core].desk.on_mail(mail, 0);
            }
        }
        assert_eq!(offices[0].desk.pops.waiting.count(), 1);
        offices[0].desk.wake_pops(QueueKey { topic: 2, queue: 0 });
        assert_eq!(offices[0].desk.pops.stirred.len(), 1, "it hears of what comes again");
    }

    #[test]
    fn who_waits_hears_of_a_reset_also_without_an_account() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let desk = &mut offices[0].desk;
        let topic = desk.catalog.topic("T").cloned().expect("it is there");
        let pop = Pop { wish: wish(), topic, ..pop(7, "g", Some(0), u64::MAX) };
        desk.pop_again(Box::new(pop), 0);
        desk.pops.accounts.forget(|_| true);
        assert_eq!((desk.pops.waiting.count(), desk.pops.stirred.len()), (1, 0));
        let (topic, group, to) = ("T".to_owned(), "g".to_owned(), ResetTo::Offset(0));
        let reset = Reset { topic, group, queue: Some(0), to, is_kept: true, is_forced: true };
        desk.reset(&reset, &[(0, 0)], 0).expect("there is room");
        assert_eq!((desk.pops.waiting.count(), desk.pops.stirred.len()), (0, 1));
    }

    #[test]
    fn who_may_wait_for_a_message_may_wait_for_room() {
        let mut offices = offices(&Mailboxes::new(3, 16));
        let office = &mut offices[0];
        office.store(b"one");
        office.desk.pops.held.bytes += HELD_BYTES_MAX;
        let topic = office.desk.catalog.topic("T").cloned().expect("it is there");
        // One that another core sends here, because it was told of a message.
        let told = Pop { wish: wish(), topic, ..pop(7, "g", Some(0), u64::MAX) };
        office.desk.pop_again(Box::new(told), office.sim.now_ms());
        office.drive();
        assert!(office.seen_codes().is_empty());
        office.desk.pops.held.bytes -= HELD_BYTES_MAX;
        office.drive();
        assert_eq!(office.seen(), (1, vec![response::SUCCESS]));
        // However many they are.
        office.desk.pops.held.bytes += HELD_BYTES_MAX;
        let now_ms = office.sim.now_ms();
        for opaque in 0..=LINE_POPS_MAX as i32 {
            let topic = office.desk.catalog.topic("T").cloned().expect("it is there");
            office.desk.pop_again(Box::new(Pop { wish: wish(), topic, ..pop(opaque, "g", Some(0), u64::MAX) }), now_ms);
        }
        assert_eq!(office.seen_codes(), [response::SYSTEM_BUSY]);
    }
}
