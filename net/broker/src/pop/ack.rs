//! Consumers answer for what they got: ACK_MESSAGE (200051), BATCH_ACK_MESSAGE (200151), CHANGE_MESSAGE_INVISIBLETIME
//! (200053); and POLLING_INFO (200055) (PROTOCOL 4.12.3).
//!
//! A handle comes from a stranger. One that names no loan changes nothing, and is answered as a stock broker does,
//! which takes any acknowledgement.

use std::collections::BTreeMap;

use engine::Span;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::io::Pieces;
use protocol::bodies::{self, BatchAck, BatchAcks};
use protocol::codes::response;
use protocol::headers::{AckMessage, ChangeInvisibleTime, ChangeInvisibleTimeAnswer};
use protocol::names;

use super::INVISIBLE_MS_MAX;
use super::account::{Account, Done, Kind, LoanId};
use super::accounts::{AccountId, LoanOf};
use super::handle::{Handle, REVIVE_ORDERLY};
use crate::answer::BUSY;
use crate::call::{Call, ReplyTo};
use crate::catalog::{Topic, offset_key};
use crate::desk::{Desk, illegal_queue};
use crate::mail::Mail;

/// A batch of acknowledgements on its way through the cores that have queues of it.
#[derive(Debug)]
pub struct Acks {
    /// Whom to answer.
    pub reply: ReplyTo,
    /// What is not recorded yet, by core.
    rest: BTreeMap<usize, Vec<BatchAck>>,
}

impl Desk {
    /// ACK_MESSAGE (200051).
    pub(crate) fn ack_request(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match AckMessage::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some((local, key)) = self.queue_to_ack(call, asked.topic, asked.queue_id) else { return };
        let Span { min, max } = self.partitions[local].span(key);
        // A log that is being recovered does not know its queues; what was lent is known without it.
        let is_there = |offset: &u64| !self.partitions[local].is_open() || (min..=max).contains(offset);
        let Some(offset) = u64::try_from(asked.offset).ok().filter(is_there) else {
            let remark = illegal_offset(asked.topic, asked.queue_id, asked.offset, min, max);
            return self.refuse(&call.reply, response::NO_MESSAGE, &remark);
        };
        let handle = match Handle::parse(asked.extra_info) {
            Ok(handle) => handle,
            Err(remark) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &remark),
        };
        let Some(is_taken) = self.ack(local, key, asked.consumer_group, &handle, offset, now_ms) else {
            return self.refuse_append(&call.reply, AppendError::Opening);
        };
        if !is_taken {
            let remark = format!(
                "offset is illegal, key:{}@{}, old:{}, commit:{offset}, next:-1, {}",
                asked.topic,
                asked.queue_id,
                self.popped_floor(key, asked.consumer_group).unwrap_or(0),
                call.peer.address
            );
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &remark);
        }
        self.replies.header(&call.reply, response::SUCCESS);
        // One that changes nothing may be the same that is on its way to the log.
        self.answer_kept(&[local], &call.reply, Pieces::new(), Vec::new());
    }

    /// BATCH_ACK_MESSAGE (200151). Its queues may lie on any core.
    pub(crate) fn batch_ack(&mut self, call: &Call<'_>, now_ms: u64) {
        let body = if call.body.is_empty() { Ok(BatchAcks::default()) } else { bodies::decode(call.body) };
        let batch: BatchAcks = match body {
            Ok(batch) => batch,
            Err(error) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &error.to_string()),
        };
        if batch.acks.is_empty() {
            return self.refuse(&call.reply, response::NO_MESSAGE, "");
        }
        if batch.broker_name.is_empty() || batch.broker_name == self.settings.broker_name {
            let mut rest: BTreeMap<usize, Vec<BatchAck>> = BTreeMap::new();
            for ack in batch.acks {
                if let Some(core) = self.core_to_ack(&ack) {
                    rest.entry(core).or_default().push(ack);
                }
            }
            return self.ack_in_turn(Box::new(Acks { reply: call.reply, rest }), now_ms);
        }
        self.replies.header(&call.reply, response::SUCCESS);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// Records what is this core's of a batch, and sends it on, once that is in the log, to the next core that has some.
    /// The last one answers: all have recorded theirs by then. If a core has no room for it the client sends all of it
    /// again, which changes nothing where it is recorded.
    pub(crate) fn ack_in_turn(&mut self, mut batch: Box<Acks>, now_ms: u64) {
        let acks = batch.rest.remove(&self.index).unwrap_or_default();
        match self.ack_all(acks, now_ms) {
            Some(locals) => self.send_acks_kept(&locals, batch),
            None => self.refuse_append(&batch.reply, AppendError::Opening),
        }
    }

    /// Sends a batch on of which this core has recorded its own.
    pub(super) fn send_acks(&mut self, batch: Box<Acks>) {
        let reply = batch.reply;
        match batch.rest.keys().next() {
            Some(core) => {
                if self.outbox.offer(*core, Mail::Acks(batch)).is_err() {
                    self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
                }
            }
            None => {
                self.replies.header(&reply, response::SUCCESS);
                self.replies.send(&reply, Pieces::new());
            }
        }
    }

    /// Acknowledgements of queues of this core. Gives the places of their partitions; `None`: one is not known yet.
    fn ack_all(&mut self, acks: Vec<BatchAck>, now_ms: u64) -> Option<Vec<usize>> {
        let mut locals = Vec::new();
        for ack in acks {
            let Some((local, key)) = self.queue_of_ack(&ack) else { continue };
            let (Ok(start), Ok(pop_ms)) = (u64::try_from(ack.start_offset), u64::try_from(ack.pop_time)) else {
                continue;
            };
            let Some(account) = self.account_to_answer(local, key, &ack.consumer_group) else {
                if !self.partitions[local].is_open() {
                    return None;
                }
                continue;
            };
            let Some(holder) = self.pops.accounts.get(account) else { continue };
            let before = holder.account.out();
            if !locals.contains(&local) {
                locals.push(local);
            }
            let is_orderly = ack.revive_queue_id == REVIVE_ORDERLY;
            // The handle of an orderly message whose time was changed begins with its own offset.
            let loan = match is_orderly {
                true => holder.account.orderly_at(pop_ms),
                false => Some(LoanId { start, pop_ms }),
            };
            if let Some(loan) = loan {
                let bit = |distance: u64| (loan.start + distance).checked_sub(start);
                let is_acked = |distance| bit(distance).is_some_and(|bit| ack.bits.get(bit));
                self.pops.accounts.ack_some(LoanOf { account, loan }, now_ms, is_acked);
            }
            self.after_ack(key, &ack.consumer_group, before, is_orderly, now_ms);
        }
        Some(locals)
    }

    /// CHANGE_MESSAGE_INVISIBLETIME (200053): a message comes again at another time.
    pub(crate) fn change_invisible(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match ChangeInvisibleTime::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some((local, key)) = self.queue_to_ack(call, asked.topic, asked.queue_id) else { return };
        let Span { min, max } = self.partitions[local].span(key);
        let is_there = |offset: &u64| !self.partitions[local].is_open() || (min..max).contains(offset);
        let Some(offset) = u64::try_from(asked.offset).ok().filter(is_there) else {
            let remark = illegal_offset(asked.topic, asked.queue_id, asked.offset, min, max);
            return self.refuse(&call.reply, response::NO_MESSAGE, &remark);
        };
        let handle = match Handle::parse(asked.extra_info) {
            Ok(handle) => handle,
            Err(remark) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &remark),
        };
        // It becomes a loan of its own.
        if !handle.is_orderly() && !self.pops.accounts.has_room() {
            return self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
        }
        // A time that is over already is now.
        let invisible_ms = u64::try_from(asked.invisible_time).unwrap_or(0).min(INVISIBLE_MS_MAX);
        let until_ms = now_ms + invisible_ms;
        let kind = if asked.suspend { Kind::Suspended } else { Kind::Plain };
        let is_known =
            self.account_to_answer(local, key, asked.consumer_group).is_some() || self.partitions[local].is_open();
        if !is_known {
            return self.refuse_append(&call.reply, AppendError::Opening);
        }
        let loan = match self.extend(key, asked.consumer_group, &handle, offset, now_ms, until_ms, kind) {
            Some(loan) => loan,
            // As a stock broker says, which changes nothing either.
            None if handle.is_orderly() => handle.loan,
            None => {
                let remark = format!("the message is not on loan under this handle any more, offset: {offset}");
                return self.refuse(&call.reply, response::NO_MESSAGE, &remark);
            }
        };
        let header = self.replies.header(&call.reply, response::SUCCESS);
        let answer = ChangeInvisibleTimeAnswer {
            pop_time: loan.pop_ms.cast_signed(),
            // An orderly message keeps its handle, so the time counts from when it was lent.
            invisible_time: match handle.is_orderly() {
                true => until_ms.saturating_sub(loan.pop_ms).cast_signed(),
                false => invisible_ms.cast_signed(),
            },
            revive_queue_id: handle.revive_queue,
        };
        answer.push(&mut header.fields);
        self.answer_kept(&[local], &call.reply, Pieces::new(), Vec::new());
    }

    /// The account of a group in a queue, if something was lent there. One that was put away because its orderly loan was
    /// over is opened: until another one gets that, an answer for it counts.
    fn account_to_answer(&mut self, local: usize, key: QueueKey, group: &str) -> Option<AccountId> {
        if let Some(account) = self.pops.accounts.find(key, group) {
            return Some(account);
        }
        let partition = &self.partitions[local];
        let fact = partition.fact(&offset_key(key.topic, key.queue, group)).filter(|_| partition.is_open());
        let account = fact.and_then(Account::read).filter(|account| account.loans() > 0)?;
        let topic = self.catalog.topics().find(|topic| topic.id == key.topic)?;
        let group = self.group(group)?;
        self.pops.accounts.open(key.queue, topic, &group.name, local, account)
    }

    /// Acknowledges a message. False: an orderly one is not of the loan that its handle names. `None`: nobody knows yet.
    fn ack(
        &mut self,
        local: usize,
        key: QueueKey,
        group: &str,
        handle: &Handle<'_>,
        offset: u64,
        now_ms: u64,
    ) -> Option<bool> {
        let Some(account) = self.account_to_answer(local, key, group) else {
            return self.partitions[local].is_open().then_some(true);
        };
        if handle.broker != self.settings.broker_name {
            return Some(true);
        }
        let Some(holder) = self.pops.accounts.get(account) else { return Some(true) };
        let before = holder.account.out();
        let mut loan = handle.loan;
        if handle.is_orderly() {
            // Over, and perhaps lent again: the old handle means nothing.
            let Some(found) = holder.account.orderly_at(loan.pop_ms) else { return Some(true) };
            if !holder.account.has(found, offset) {
                return Some(offset < holder.account.floor());
            }
            loan = found;
        }
        if self.pops.accounts.ack(LoanOf { account, loan }, offset, now_ms) == Done::Now {
            self.after_ack(key, group, before, handle.is_orderly(), now_ms);
        }
        Some(true)
    }

    /// A group has acknowledged something: pops that waited for that go on.
    fn after_ack(&mut self, key: QueueKey, group: &str, before: usize, is_orderly: bool, now_ms: u64) {
        let was_full = before >= self.settings.limits.pop_unacked;
        if !was_full && !is_orderly {
            return;
        }
        let held = |account: &Account| is_orderly && account.blocked_until_ms(None, now_ms) > 0;
        let account = self.pops.accounts.find(key, group).and_then(|id| self.pops.accounts.get(id));
        if account.is_some_and(|holder| !held(&holder.account)) {
            self.wake_pops(key);
        }
    }

    /// Gives a message another time. The handle that it has from now on, if it had this one.
    #[expect(clippy::too_many_arguments, reason = "a message, a handle and a time")]
    fn extend(
        &mut self,
        key: QueueKey,
        group: &str,
        handle: &Handle<'_>,
        offset: u64,
        now_ms: u64,
        until_ms: u64,
        kind: Kind,
    ) -> Option<LoanId> {
        if handle.broker != self.settings.broker_name {
            return None;
        }
        let account = self.pops.accounts.find(key, group)?;
        let mut loan = handle.loan;
        if handle.is_orderly() {
            loan = self.pops.accounts.get(account)?.account.orderly_at(loan.pop_ms)?;
        }
        let extend = |account: &mut Account| account.extend(loan, offset, now_ms, until_ms, kind);
        let loan = self.pops.accounts.change(account, now_ms, extend)??;
        // Orderly: the loan ends when the last of its messages may come again.
        let ends_ms = self.pops.accounts.get(account)?.account.loan(loan)?.until_ms;
        self.pops.accounts.remind(LoanOf { account, loan }, ends_ms);
        Some(loan)
    }

    /// Below which offset a group is done with everything, if it pops here.
    pub(crate) fn popped_floor(&mut self, key: QueueKey, group: &str) -> Option<u64> {
        let id = self.pops.accounts.find(key, group)?;
        self.pops.accounts.get(id).map(|holder| holder.account.floor())
    }

    /// The queue of an acknowledgement. `None`: it was refused.
    fn queue_to_ack(&mut self, call: &Call<'_>, name: &str, queue: i32) -> Option<(usize, QueueKey)> {
        let Some(topic) = self.catalog.topic(name).cloned() else {
            self.refuse_topic(&call.reply, name);
            return None;
        };
        let Some(id) = u32::try_from(queue).ok().filter(|queue| *queue < topic.read_queues()) else {
            let remark = illegal_queue(queue, name, &topic, call);
            self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &remark);
            return None;
        };
        let Some(local) = self.local(topic.partition_of(id, self.settings.partitions)) else {
            self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
            return None;
        };
        Some((local, QueueKey { topic: topic.id, queue: id }))
    }

    fn core_to_ack(&self, ack: &BatchAck) -> Option<usize> {
        let (topic, queue) = self.real_queue(ack)?;
        Some(self.core_of(topic, queue))
    }

    /// The queue of an acknowledgement of this core, and where its partition is.
    fn queue_of_ack(&self, ack: &BatchAck) -> Option<(usize, QueueKey)> {
        let (topic, queue) = self.real_queue(ack)?;
        let local = self.local(topic.partition_of(queue, self.settings.partitions))?;
        Some((local, QueueKey { topic: topic.id, queue }))
    }

    /// The queue that messages of a batch really came from.
    fn real_queue(&self, ack: &BatchAck) -> Option<(&Topic, u32)> {
        let mut name = String::new();
        match ack.retry.as_str() {
            "0" => name.push_str(&ack.topic),
            "1" => names::pop_retry_topic(&mut name, &ack.consumer_group, &ack.topic, false),
            "2" => names::pop_retry_topic(&mut name, &ack.consumer_group, &ack.topic, true),
            _ => return None,
        }
        let topic = self.catalog.topic(&name)?;
        let queue = u32::try_from(ack.queue_id).ok().filter(|queue| *queue < topic.read_queues())?;
        Some((topic, queue))
    }
}

fn illegal_offset(topic: &str, queue: i32, offset: i64, min: u64, max: u64) -> String {
    format!("offset is illegal, key:{topic}@{queue}, commit:{offset}, store:{min}~{max}")
}

#[cfg(test)]
mod tests {
    //! Method: three desks with a partition each, every one on a simulated disk of its own, in which a group has a message
    //! on loan.

    use super::super::held::tests::{Office, offices};
    use super::super::tests::pop;
    use super::*;
    use crate::call::Peer;
    use crate::mail::Mailboxes;
    use protocol::bodies::BitSet;
    use protocol::{Header, Language};

    /// A message of each queue is on loan.
    fn lenders(mailboxes: &Mailboxes) -> Vec<Office> {
        let mut offices = offices(mailboxes);
        for (queue, office) in (0..).zip(&mut offices) {
            let topic = office.desk.catalog.topic("T").cloned().expect("it is there");
            let mut account = Account::new(0);
            account.advance(1);
            account.lend(&[0], 1_000, 9_000, Kind::Plain);
            office.desk.pops.accounts.open(queue, &topic, &"g".into(), 0, account).expect("there is room");
        }
        offices
    }

    /// An acknowledgement of that message.
    fn batched(queue_id: i32) -> BatchAck {
        BatchAck {
            bits: BitSet::of([0]),
            consumer_group: "g".to_owned(),
            pop_time: 1_000,
            queue_id,
            retry: "0".to_owned(),
            topic: "T".to_owned(),
            ..BatchAck::default()
        }
    }

    fn call<'a>(header: &'a Header, body: &'a [u8]) -> Call<'a> {
        let reply = pop(5, "g", None, 0).reply;
        let address = "127.0.0.1:1".parse().expect("an address");
        let peer = Peer { connection: reply.connection, address, language: Language::Java, version: 0 };
        Call { header, body, reply, peer, resumed: false, orderly: false }
    }

    fn ask(desk: &mut Desk) {
        let acks = [2, 1, 0].map(batched).into();
        let body = bodies::encode(&BatchAcks { acks, broker_name: desk.settings.broker_name.clone() });
        desk.batch_ack(&call(&Header::default(), &body), 2_000);
        desk.keep_accounts(2_000, false);
    }

    #[test]
    fn a_batch_is_answered_when_all_logs_have_kept_theirs() {
        let mailboxes = Mailboxes::new(3, 4);
        let mut offices = lenders(&mailboxes);
        for again in [false, true] {
            ask(&mut offices[0].desk);
            for (index, office) in offices.iter_mut().enumerate() {
                while let Some(mail) = mailboxes.pop(index) {
                    office.desk.on_mail(mail, 2_000);
                    office.desk.keep_accounts(2_000, false);
                }
                // What was acknowledged before, and is kept, goes on at once.
                let success = vec![response::SUCCESS];
                let codes = if index == 2 && again { success.clone() } else { vec![] };
                assert_eq!(office.seen(), (0, codes), "core {index}");
                office.drive();
                let codes = if index == 2 && !again { success } else { vec![] };
                assert_eq!(office.seen(), (0, codes), "core {index}");
            }
        }
        assert!((0..3).all(|core| mailboxes.pop(core).is_none()));
    }

    #[test]
    fn an_answer_for_what_was_put_away_counts() {
        let mailboxes = Mailboxes::new(3, 4);
        for is_batch in [false, true] {
            let mut offices = offices(&mailboxes);
            let office = &mut offices[0];
            office.store(b"one");
            let mut account = Account::new(0);
            account.advance(1);
            account.lend(&[0], 1_000, 1_500, Kind::Orderly);
            let mut value = Vec::new();
            account.write(&mut value);
            assert!(office.desk.partitions[0].note(&offset_key(1, 0, "g"), &value));
            let key = QueueKey { topic: 1, queue: 0 };
            assert_eq!(office.desk.popped_floor(key, "g"), None, "it is not open");
            let mut header = Header::default();
            let ack = AckMessage {
                consumer_group: "g",
                topic: "T",
                queue_id: 0,
                extra_info: &format!("0 1000 500 999 0 {} 0 0", office.desk.settings.broker_name),
                offset: 0,
            };
            ack.push(&mut header.fields);
            let acks = [BatchAck { revive_queue_id: REVIVE_ORDERLY, ..batched(0) }].into();
            let body = bodies::encode(&BatchAcks { acks, broker_name: office.desk.settings.broker_name.clone() });
            let call = call(&header, &body);
            if is_batch {
                office.desk.batch_ack(&call, 2_000)
            } else {
                office.desk.ack_request(&call, 2_000)
            }
            assert_eq!(office.desk.popped_floor(key, "g"), Some(1));
            office.drive();
            assert_eq!(office.seen(), (0, vec![response::SUCCESS]));
        }
    }

    #[test]
    fn a_batch_that_changes_nothing_waits_for_the_one_that_is_on_its_way() {
        let mailboxes = Mailboxes::new(3, 4);
        let mut offices = lenders(&mailboxes);
        let office = &mut offices[0];
        ask(&mut office.desk);
        // The first one's batch is in the kernel.
        office.desk.partitions[0].on_turn(2_000);
        ask(&mut office.desk);
        assert!(mailboxes.pop(1).is_none(), "the log has neither");
        office.drive();
        let went_on = std::iter::from_fn(|| mailboxes.pop(1)).count();
        assert_eq!((went_on, office.seen()), (2, (0, vec![])));
    }

    #[test]
    fn a_core_that_has_no_room_or_stops_or_no_log_ends_a_batch() {
        let mailboxes = Mailboxes::new(3, 1);
        let mut offices = lenders(&mailboxes);
        mailboxes.push(1, Mail::Serve).expect("there is room for one");
        ask(&mut offices[0].desk);
        offices[0].drive();
        assert_eq!(offices[0].seen(), (0, vec![response::SYSTEM_BUSY]));
        mailboxes.pop(1).expect("it was put there");
        ask(&mut offices[0].desk);
        let mail = mailboxes.pop(1).expect("the batch goes on");
        offices[1].desk.stop();
        offices[1].desk.on_mail(mail, 2_000);
        assert_eq!(offices[1].seen(), (1, vec![response::SERVICE_NOT_AVAILABLE]));
        offices[0].desk.partitions[0].shut();
        offices[0].drive();
        ask(&mut offices[0].desk);
        assert_eq!(offices[0].seen(), (0, vec![response::SERVICE_NOT_AVAILABLE]));
        assert_eq!(offices[2].seen(), (1, vec![]));
    }
}
