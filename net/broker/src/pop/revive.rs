//! Loans that are over: what nobody acknowledged is written to the group's retry topic, and only then done with here,
//! however often that was tried: when it is dead is for the consumer to say (PROTOCOL 4.12.4).

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use engine::LoadId;
use engine::format::{Position, QueueKey};
use engine::partition::{Pull as Pulled, PullLimits};
use protocol::StoredMessage;
use protocol::names::{self, RETRY_PREFIX};
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};

use super::account::{Account, Kind, LOAN_MESSAGES_MAX, LoanId};
use super::accounts::LoanOf;
use super::lend::queue_offset;
use crate::catalog::Topic;
use crate::config::Settings;
use crate::desk::Desk;
use crate::mail::{Ensure, Mail, Make};
use crate::parked::Cold;
use crate::produce::{Put, describe};
use crate::promise::Promise;

/// Messages on their way to retry topics at once, from one core. Their records are in memory.
const REVIVALS_MAX: usize = 1_024;
/// Loans that end in one turn.
const ENDS_MAX: usize = 256;
/// What is read of a loan that is over at once, in bytes, and entries looked at for that.
const READ_BYTES_MAX: u32 = 1 << 20;
const READ_SCAN_MAX: u32 = 64;
/// A message that could not be written is tried again after so long. Milliseconds.
const RETRY_MS: u64 = 1_000;
/// That there is no topic for some is told at most once in so long. Milliseconds.
const TOLD_MS: u64 = 60_000;
/// One that the disk does not give, after so long. Milliseconds.
const UNREADABLE_MS: u64 = 10_000;

/// A message on its way to a retry topic.
#[derive(Debug)]
pub struct Revival {
    /// Whom to tell.
    pub receipt: Receipt,
    /// Where it goes.
    pub topic: String,
    /// Its queue there.
    pub queue: u32,
    /// How that is made if it is missing.
    pub how: Make,
    /// It was missing.
    pub is_fresh: bool,
    /// The whole record.
    pub record: Vec<u8>,
}

/// What hears of it when a message is safe, or cannot be made so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The core that has it on loan.
    pub core: usize,
    /// Which loan.
    pub loan: LoanOf,
    /// Which message.
    pub offset: u64,
    /// The topic it is made for, and the group, if its retry topic is a new one: pops that wait do not know it.
    pub news: Option<(u32, Arc<str>)>,
}

impl Desk {
    /// Ends the loans whose time is over, as many as may be on their way.
    pub(super) fn end_loans(&mut self, now_ms: u64) {
        for _ in 0..ENDS_MAX {
            if self.is_stopping() || self.pops.revivals + LOAN_MESSAGES_MAX > REVIVALS_MAX {
                return;
            }
            let Some(of) = self.pops.accounts.take_due(now_ms) else { return };
            self.end_loan(of, now_ms);
        }
    }

    /// When there is a loan to end, in ms; `None` also when nothing more may be on its way.
    pub(crate) fn accounts_deadline_ms(&self) -> Option<u64> {
        let may_end = !self.is_stopping() && self.pops.revivals + LOAN_MESSAGES_MAX <= REVIVALS_MAX;
        self.pops.accounts.deadline_ms().filter(|_| may_end)
    }

    /// A loan is over.
    pub(crate) fn end_loan(&mut self, of: LoanOf, now_ms: u64) {
        let Some(holder) = self.pops.accounts.get(of.account) else { return };
        let (key, local) = (holder.key, holder.local);
        let Some(kind) = holder.account.loan(of.loan).map(|loan| loan.kind) else { return };
        if kind == Kind::Orderly {
            // It is taken back when somebody asks for it.
            return self.wake_pops(key);
        }
        let mut offsets = Vec::with_capacity(LOAN_MESSAGES_MAX);
        holder.account.begin_move(of.loan, &mut offsets);
        let lent = Lent { topic: holder.topic.clone(), queue: key.queue, group: holder.group.clone(), kind };
        let mut waiting = offsets.into_iter().peekable();
        while let Some(first) = waiting.peek().copied() {
            match self.read_again(local, key, first) {
                Again::Here(messages) => {
                    for message in messages {
                        let offset = queue_offset(&message);
                        // What is gone is done with.
                        while let Some(gone) = waiting.next_if(|wanted| *wanted < offset) {
                            self.pops.accounts.ack(of, gone, now_ms);
                        }
                        if waiting.next_if_eq(&offset).is_some() {
                            self.revive(of, &lent, &message, offset, now_ms);
                        }
                    }
                }
                Again::Gone(below) => {
                    while let Some(gone) = waiting.next_if(|wanted| *wanted < below) {
                        self.pops.accounts.ack(of, gone, now_ms);
                    }
                }
                Again::Damaged(position, is_for_ever) => {
                    waiting.next();
                    let (topic, queue, group) = (&*lent.topic.name, lent.queue, &*lent.group);
                    if is_for_ever {
                        // There is nothing to give again.
                        let offset = first;
                        tracing::warn!(?position, topic, queue, offset, group, "passed: a popped message is damaged");
                        self.pops.accounts.ack(of, first, now_ms);
                    } else {
                        // It alone waits until it can be read, or is gone.
                        tracing::error!(?position, topic, queue, group, "a popped message is tried again later");
                        self.move_again(of, first, now_ms + UNREADABLE_MS, now_ms);
                    }
                }
                Again::Later(load) => {
                    let rest: Vec<u64> = waiting.collect();
                    return self.read_later(of, local, &rest, load, now_ms);
                }
            }
        }
    }

    /// Messages of a queue from an offset on, as far as they are here.
    fn read_again(&mut self, local: usize, key: QueueKey, offset: u64) -> Again {
        let limits = PullLimits { messages: LOAN_MESSAGES_MAX as u32, bytes: READ_BYTES_MAX, scan: READ_SCAN_MAX };
        let (found, span) = self.partitions[local].pull(key, offset, limits, &|_| true);
        match found {
            Pulled::Found { messages, .. } => Again::Here(messages),
            Pulled::OutOfRange if offset < span.min && span.min < span.max => Again::Gone(span.min),
            Pulled::OutOfRange | Pulled::Empty | Pulled::NoMatch { .. } => Again::Gone(u64::MAX),
            Pulled::Loading(load) => Again::Later(Some(load)),
            Pulled::Opening => Again::Later(None),
            Pulled::Damaged { position, behind } => Again::Damaged(position, behind.is_some()),
        }
    }

    /// The rest of a loan is read when that is possible.
    fn read_later(&mut self, of: LoanOf, local: usize, offsets: &[u64], load: Option<LoadId>, now_ms: u64) {
        let until_ms = now_ms + if load.is_some() { RETRY_MS } else { UNREADABLE_MS };
        for offset in offsets {
            self.pops.accounts.change(of.account, now_ms, |account| account.move_again(of.loan, *offset, until_ms));
        }
        match load {
            Some(load) => self.wait_for(local, load, Cold::Loan(of)),
            None => self.pops.accounts.remind(of, until_ms),
        }
    }

    /// A loan cannot go on now: the disk does not give what it needs, or too much waits.
    pub(crate) fn end_later(&mut self, of: LoanOf) {
        let Some(holder) = self.pops.accounts.get(of.account) else { return };
        let now_ms = holder.used_ms();
        let until_ms = now_ms + UNREADABLE_MS;
        self.pops.accounts.change(of.account, now_ms, |account| account.postpone(of.loan, until_ms));
        self.pops.accounts.remind(of, until_ms);
    }

    /// Sends a message to the retry topic.
    fn revive(&mut self, of: LoanOf, lent: &Lent, record: &Bytes, offset: u64, now_ms: u64) {
        let Some((topic, queue, how, record)) = lent.revived(record, of.loan, &self.settings) else {
            let (topic, group) = (&*lent.topic.name, &*lent.group);
            tracing::error!(topic, group, offset, "a popped message cannot be read; it is tried again");
            return self.move_again(of, offset, now_ms + UNREADABLE_MS, now_ms);
        };
        let receipt = Receipt { core: self.index, loan: of, offset, news: None };
        self.pops.revivals += 1;
        self.put_revival(Box::new(Revival { receipt, topic, queue, how, is_fresh: false, record }), now_ms);
    }

    /// Writes a message to its retry topic, wherever that is.
    pub(crate) fn put_revival(&mut self, mut revival: Box<Revival>, now_ms: u64) {
        let queue = revival.queue;
        if let Make::PopRetry { lent: (name, id), .. } = &revival.how
            && self.catalog.topic(name).is_some_and(|topic| topic.id > *id)
        {
            // It was deleted, and made again; the core that lent it does not know yet.
            return self.tell_revived(revival.receipt, true);
        }
        let found = self.catalog.topic(&revival.topic).cloned();
        let Some(topic) = found.filter(|topic| queue == 0 || queue < topic.read_queues().min(topic.write_queues()))
        else {
            if revival.is_fresh {
                if self.pops.told_ms + TOLD_MS <= now_ms {
                    self.pops.told_ms = now_ms;
                    let topic = &*revival.topic;
                    tracing::warn!(topic, "a popped message cannot come again now: there is no such topic");
                }
                return self.tell_revived(revival.receipt, false);
            }
            revival.is_fresh = true;
            let (topic, how) = (revival.topic.clone(), revival.how.clone());
            let ensure = Ensure { topic, how, then: Mail::Revive(revival), back: self.index };
            return self.outbox.send(0, Mail::Ensure(Box::new(ensure)));
        };
        let partition = topic.partition_of(queue, self.settings.partitions);
        let Some(local) = self.local(partition) else {
            return self.outbox.send(usize::from(partition) % self.settings.cores, Mail::Revive(revival));
        };
        let Revival { mut receipt, how, is_fresh, record, .. } = *revival;
        if let Make::PopRetry { group, topic, .. } = &how
            && is_fresh
            && let Some(topic) = self.catalog.topic(topic)
        {
            receipt.news = Some((topic.id, group.as_str().into()));
        }
        let Some(description) = describe(&record) else { return self.tell_revived(receipt, false) };
        let put = Put::Record(&record, &description, QueueKey { topic: topic.id, queue });
        let promise = |_: &mut Desk| Promise::Revival(Box::new(receipt.clone()));
        if self.keep(local, &put, promise, now_ms).is_err() {
            self.settle_revival(receipt, false);
        }
    }

    /// The log has kept a revived message, or never will.
    pub(crate) fn settle_revival(&mut self, receipt: Receipt, ok: bool) {
        // The topic is there also if its first message is not: the next one is no news any more.
        if let Some((topic, group)) = receipt.news.clone() {
            for core in 0..self.settings.cores {
                self.outbox.send(core, Mail::Fresh { topic, group: group.clone() });
            }
        }
        self.tell_revived(receipt, ok);
    }

    fn tell_revived(&mut self, receipt: Receipt, ok: bool) {
        self.outbox.send(receipt.core, Mail::Revived { receipt, ok });
    }

    /// A message of this core's loans is safe elsewhere, or could not be made so: then it is tried again.
    pub(crate) fn on_revived(&mut self, receipt: &Receipt, ok: bool, now_ms: u64) {
        self.pops.revivals -= 1;
        let Receipt { loan, offset, .. } = *receipt;
        if ok {
            self.pops.accounts.ack(loan, offset, now_ms);
            return;
        }
        self.move_again(loan, offset, now_ms + RETRY_MS, now_ms);
    }

    /// A message is tried again later.
    fn move_again(&mut self, of: LoanOf, offset: u64, until_ms: u64, now_ms: u64) {
        let again = |account: &mut Account| account.move_again(of.loan, offset, until_ms);
        if self.pops.accounts.change(of.account, now_ms, again) == Some(true) {
            self.pops.accounts.remind(of, until_ms);
        }
    }

    /// A retry topic is new: pops that wait did not know that they wait for it too. All of them come again.
    pub(crate) fn on_fresh(&mut self, topic: u32, group: &str) {
        for line in self.pops.waiting.lines_of(topic, group) {
            while let Some(mut pop) = self.pops.waiting.next(&line) {
                pop.way.looks = 0;
                self.pops.stirred.push_back(pop);
            }
        }
    }
}

/// What is there of a loan that is over.
enum Again {
    /// Messages, in order.
    Here(Vec<Bytes>),
    /// Nothing below this offset.
    Gone(u64),
    /// The next one cannot be read, now or ever.
    Damaged(Position, bool),
    /// Not now, or once this read is done.
    Later(Option<LoadId>),
}

/// What was lent.
struct Lent {
    topic: Arc<Topic>,
    queue: u32,
    group: Arc<str>,
    kind: Kind,
}

impl Lent {
    /// A message that nobody acknowledged, as it comes again: the topic, its queue, how that is made, and the record.
    /// `None`: it cannot be read.
    fn revived(&self, record: &[u8], loan: LoanId, settings: &Settings) -> Option<(String, u32, Make, Vec<u8>)> {
        let original = StoredMessage::decode(record).ok()?;
        let is_try = self.kind != Kind::Suspended;
        let (topic, asked) = self.retry_topic(settings.pop_retry_v2);
        let has_queue = settings.separate_retry_queue && self.queue < self.topic.write_queues();
        let (queue, queues) = if has_queue { (self.queue, self.topic.config.write_queue_nums) } else { (0, 1) };
        let lent = (self.topic.name.to_string(), self.topic.id);
        let how = Make::PopRetry { group: self.group.to_string(), topic: asked.to_owned(), lent, queues };
        let mut text = original.properties.to_owned();
        if original.reconsume_times == 0 || original.property(name::FIRST_POP_TIME).is_none() {
            properties::set(&mut text, name::FIRST_POP_TIME, &loan.pop_ms.to_string());
        }
        properties::set(&mut text, name::ORIGIN_GROUP, &self.group);
        // Rather without them than not at all.
        let properties = if text.len() <= PROPERTIES_BYTES_MAX { text.as_str() } else { original.properties };
        let host = SocketAddr::new(settings.broker_ip1.into(), settings.port);
        let message = StoredMessage {
            queue_id: queue.cast_signed(),
            born_host: host,
            store_host: host,
            reconsume_times: original.reconsume_times.saturating_add(i32::from(is_try)),
            topic: &topic,
            properties,
            ..original
        };
        let mut record = vec![0; message.encoded_len()];
        message.encode(&mut record);
        Some((topic, queue, how, record))
    }

    /// Where its messages come again, and the topic that consumers know. Messages of a retry topic stay in it.
    fn retry_topic(&self, is_v2: bool) -> (String, &str) {
        let name = &*self.topic.name;
        let mut retry = String::new();
        let Some(rest) = name.strip_prefix(RETRY_PREFIX) else {
            names::pop_retry_topic(&mut retry, &self.group, name, is_v2);
            return (retry, name);
        };
        let asked = rest.strip_prefix(&*self.group).and_then(|rest| rest.strip_prefix(['_', '+']));
        (name.to_owned(), asked.unwrap_or(name))
    }
}
