//! Consumers answer for what they got: ACK_MESSAGE (200051), BATCH_ACK_MESSAGE (200151), CHANGE_MESSAGE_INVISIBLETIME
//! (200053); and POLLING_INFO (200055) (PROTOCOL 4.12.3).
//!
//! A handle comes from a stranger. One that names no loan changes nothing, and is answered as a stock broker does,
//! which takes any acknowledgement.

use engine::Span;
use engine::format::QueueKey;
use engine::io::Pieces;
use protocol::bodies::{self, BatchAck, BatchAcks};
use protocol::codes::response;
use protocol::headers::{AckMessage, ChangeInvisibleTime, ChangeInvisibleTimeAnswer, PollingInfo, PollingInfoAnswer};
use protocol::names;

use super::account::{Account, Done, Kind, LoanId};
use super::accounts::LoanOf;
use super::handle::{Handle, REVIVE_ORDERLY};
use super::waiting::LineKey;
use super::{INVISIBLE_MS_MAX, illegal_queue};
use crate::answer::BUSY;
use crate::call::Call;
use crate::catalog::Topic;
use crate::desk::Desk;
use crate::mail::Mail;

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
        if !self.ack(key, asked.consumer_group, &handle, offset, now_ms) {
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
        self.replies.send(&call.reply, Pieces::new());
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
            let mut letters: Vec<Vec<BatchAck>> = vec![Vec::new(); self.settings.cores];
            for ack in batch.acks {
                if let Some(core) = self.core_to_ack(&ack) {
                    letters[core].push(ack);
                }
            }
            let here = std::mem::take(&mut letters[self.index]);
            for (core, acks) in letters.into_iter().enumerate().filter(|(_, acks)| !acks.is_empty()) {
                if self.outbox.offer(core, Mail::Acks(acks)).is_err() {
                    return self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
                }
            }
            self.ack_all(here, now_ms);
        }
        self.replies.header(&call.reply, response::SUCCESS);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// Acknowledgements of queues of this core.
    pub(crate) fn ack_all(&mut self, acks: Vec<BatchAck>, now_ms: u64) {
        for ack in acks {
            let Some(key) = self.key_to_ack(&ack) else { continue };
            let (Ok(start), Ok(pop_ms)) = (u64::try_from(ack.start_offset), u64::try_from(ack.pop_time)) else {
                continue;
            };
            let loan = LoanId { start, pop_ms };
            let Some(account) = self.accounts.find(key, &ack.consumer_group) else { continue };
            let before = self.accounts.get(account).map_or(0, |holder| holder.account.out());
            self.accounts.ack_some(LoanOf { account, loan }, now_ms, |bit| ack.bits.get(bit));
            self.after_ack(key, &ack.consumer_group, before, ack.revive_queue_id == REVIVE_ORDERLY, now_ms);
        }
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
        let Ok(invisible_ms) = u64::try_from(asked.invisible_time) else {
            let remark = format!("invisibleTime[{}] is illegal", asked.invisible_time);
            return self.refuse(&call.reply, response::INVALID_PARAMETER, &remark);
        };
        let handle = match Handle::parse(asked.extra_info) {
            Ok(handle) => handle,
            Err(remark) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &remark),
        };
        // It becomes a loan of its own.
        if !handle.is_orderly() && !self.accounts.has_room() {
            return self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
        }
        let invisible_ms = invisible_ms.min(INVISIBLE_MS_MAX);
        let until_ms = now_ms + invisible_ms;
        let kind = if asked.suspend { Kind::Suspended } else { Kind::Plain };
        let Some(loan) = self.extend(key, asked.consumer_group, &handle, offset, now_ms, until_ms, kind) else {
            let remark = format!("the message is not on loan under this handle any more, offset: {offset}");
            return self.refuse(&call.reply, response::NO_MESSAGE, &remark);
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
        self.replies.send(&call.reply, Pieces::new());
    }

    /// POLLING_INFO (200055): how many pops wait.
    pub(crate) fn polling_info(&mut self, call: &Call<'_>) {
        let asked = match PollingInfo::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some((topic, queue)) = self.topic_to_pop(call, asked.topic, asked.queue_id) else { return };
        let Some(group) = self.group_to_pop(call, asked.consumer_group) else { return };
        let count = self.waiting.count_in(&LineKey { topic: topic.id, group, queue, is_notice: false, tags: None });
        let header = self.replies.header(&call.reply, response::SUCCESS);
        PollingInfoAnswer { polling_num: i32::try_from(count).unwrap_or(i32::MAX) }.push(&mut header.fields);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// Acknowledges a message. False: an orderly one was never lent.
    fn ack(&mut self, key: QueueKey, group: &str, handle: &Handle<'_>, offset: u64, now_ms: u64) -> bool {
        let Some(account) = self.accounts.find(key, group) else {
            return !handle.is_orderly();
        };
        if handle.broker != self.settings.broker_name {
            return true;
        }
        let Some(holder) = self.accounts.get(account) else { return true };
        let before = holder.account.out();
        let mut loan = handle.loan;
        if handle.is_orderly() {
            match holder.account.orderly(offset) {
                // Lent again meanwhile: the old handle means nothing.
                Some(found) if found.pop_ms != loan.pop_ms => return true,
                Some(found) => loan = found,
                None => return offset < holder.account.floor(),
            }
        }
        if self.accounts.ack(LoanOf { account, loan }, offset, now_ms) == Done::Now {
            self.after_ack(key, group, before, handle.is_orderly(), now_ms);
        }
        true
    }

    /// A group has acknowledged something: pops that waited for that go on.
    fn after_ack(&mut self, key: QueueKey, group: &str, before: usize, is_orderly: bool, now_ms: u64) {
        let was_full = before >= self.settings.limits.pop_unacked;
        if !was_full && !is_orderly {
            return;
        }
        let held = |account: &Account| is_orderly && account.blocked_until_ms(None, now_ms) > 0;
        let account = self.accounts.find(key, group).and_then(|id| self.accounts.get(id));
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
        let account = self.accounts.find(key, group)?;
        let mut loan = handle.loan;
        if handle.is_orderly() {
            let found = self.accounts.get(account)?.account.orderly(offset)?;
            loan = Some(found).filter(|found| found.pop_ms == loan.pop_ms)?;
        }
        let extend = |account: &mut Account| account.extend(loan, offset, now_ms, until_ms, kind);
        let loan = self.accounts.change(account, now_ms, extend)??;
        // Orderly: the loan ends when the last of its messages may come again.
        let ends_ms = self.accounts.get(account)?.account.loan(loan)?.until_ms;
        self.accounts.remind(LoanOf { account, loan }, ends_ms);
        Some(loan)
    }

    /// Below which offset a group is done with everything, if it pops here.
    pub(crate) fn popped_floor(&mut self, key: QueueKey, group: &str) -> Option<u64> {
        let id = self.accounts.find(key, group)?;
        self.accounts.get(id).map(|holder| holder.account.floor())
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

    fn key_to_ack(&self, ack: &BatchAck) -> Option<QueueKey> {
        let (topic, queue) = self.real_queue(ack)?;
        (self.core_of(topic, queue) == self.index).then_some(QueueKey { topic: topic.id, queue })
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
