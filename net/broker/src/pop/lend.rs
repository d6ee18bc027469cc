//! A pop on one core: it looks through the queues there, one after the other, and is lent messages.

use std::sync::Arc;

use bytes::Bytes;
use engine::format::QueueKey;
use engine::partition::{Pull as Pulled, PullLimits};
use engine::{LoadId, Span};
use protocol::StoredMessage;
use protocol::message::QUEUE_OFFSET_AT;
use protocol::names;
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};

use super::account::{Account, Kind, LOAN_SPAN_MAX};
use super::accounts::{AccountId, LoanOf};
use super::handle::{Origin, REVIVE_PLAIN};
use super::{Pop, Popped, Wish};
use crate::catalog::{Topic, offset_key};
use crate::desk::Desk;
use crate::filter::{MATCHED_MAX, matcher};

/// Times that one pop looks on in one queue, each for `limits.pull_scan` entries, when none is wanted.
const SCANS_MAX: u32 = 8;

/// How a visit to a core, or to a queue, ends.
pub(super) enum Visit {
    Nothing,
    Found,
    /// There is more to look at, but not now.
    Unfinished,
    Loading(usize, LoadId),
    Opening,
    /// Another core is next.
    Hop(usize),
}

impl Desk {
    /// Looks through this core's queues for messages.
    pub(super) fn visit(&mut self, pop: &mut Pop, now_ms: u64) -> Visit {
        self.pops.popped.messages.clear();
        self.pops.popped.locals.clear();
        self.pops.popped.loans.clear();
        self.pops.popped.infos.clear();
        (self.pops.popped.bytes, self.pops.popped.rest) = (0, 0);
        if let Some(step) = pop.way.step {
            return self.visit_in_order(pop, step, now_ms);
        }
        let mut visit = Visit::Nothing;
        for is_of_retries in [pop.way.is_retry_first, !pop.way.is_retry_first] {
            // An answer that is not full takes what there is of the others, too.
            if matches!(visit, Visit::Nothing | Visit::Found) {
                visit = if is_of_retries { self.visit_retries(pop, now_ms) } else { self.visit_topic(pop, now_ms) };
            }
        }
        if self.pops.popped.messages.is_empty() { visit } else { Visit::Found }
    }

    fn visit_topic(&mut self, pop: &Pop, now_ms: u64) -> Visit {
        let topic = pop.topic.clone();
        if let Some(queue) = pop.queue {
            return self.visit_queue(pop, &topic, queue, now_ms);
        }
        let queues = topic.read_queues();
        for step in 0..queues {
            match self.visit_queue(pop, &topic, (pop.way.start % queues + step) % queues, now_ms) {
                Visit::Nothing | Visit::Found => {}
                other => return other,
            }
        }
        Visit::Nothing
    }

    /// Looks through all queues in order of priority, from this one on, wherever they are.
    fn visit_in_order(&mut self, pop: &mut Pop, mut step: u32, now_ms: u64) -> Visit {
        while let Some((topic, queue)) = pop.way.queue_at(&pop.topic, pop.queue, step) {
            let core = self.core_of(&topic, queue);
            if core != self.index {
                return if self.pops.popped.messages.is_empty() { Visit::Hop(core) } else { Visit::Found };
            }
            match self.visit_queue(pop, &topic, queue, now_ms) {
                Visit::Nothing | Visit::Found => {}
                other => return if self.pops.popped.messages.is_empty() { other } else { Visit::Found },
            }
            step += 1;
            pop.way.step = Some(step);
        }
        // There is no core left to ask.
        pop.way.rest = 1 << self.index;
        if self.pops.popped.messages.is_empty() { Visit::Nothing } else { Visit::Found }
    }

    fn visit_retries(&mut self, pop: &Pop, now_ms: u64) -> Visit {
        // A full queue would starve all behind it if it always came first.
        for (topic, queue) in (0..).map_while(|step| pop.way.retry_at(step)) {
            match self.visit_queue(pop, topic, queue, now_ms) {
                Visit::Nothing | Visit::Found => {}
                other => return other,
            }
        }
        Visit::Nothing
    }

    /// Lends messages of one queue to a pop, as many as it still wants.
    fn visit_queue(&mut self, pop: &Pop, topic: &Arc<Topic>, queue: u32, now_ms: u64) -> Visit {
        let (count, invisible_ms, filter) = match &pop.wish {
            Wish::Messages { count, invisible_ms, filter, .. } => (count, invisible_ms, filter),
            Wish::Look { count } => return self.look_at_queue(pop, topic, queue, *count, now_ms),
            Wish::Notice { .. } => return Visit::Nothing,
        };
        let Some(local) = self.local(topic.partition_of(queue, self.settings.partitions)) else {
            return Visit::Nothing;
        };
        if !self.partitions[local].is_open() {
            // Its index is being made again: that a queue ends at 0 says nothing now.
            return Visit::Opening;
        }
        let key = QueueKey { topic: topic.id, queue };
        let bytes_max = self.settings.limits.pull_bytes as usize;
        let Span { min, max } = self.partitions[local].span(key);
        let id = match self.pops.accounts.find(key, &pop.group) {
            Some(id) => id,
            None => match self.open_account(pop, topic, queue, local, now_ms) {
                Ok(Some(id)) => id,
                Ok(None) => return Visit::Nothing,
                Err(visit) => return visit,
            },
        };
        if let Some(offset) = self.pulls.resets.take(key, &pop.group) {
            self.pops.accounts.change(id, now_ms, |account| account.reset(offset));
        }
        let unacked_max = self.settings.limits.pop_unacked;
        let has_room = self.pops.accounts.has_room();
        let account = &self.pops.accounts.get(id).expect("it was found or opened just now").account;
        let attempt = pop.attempt.as_deref().filter(|_| pop.is_orderly);
        let is_closed = account.blocked_until_ms(attempt, now_ms) > 0;
        let is_held = pop.is_orderly && is_closed;
        let has_left = account.has_orderly() && !is_closed;
        let is_over = account.next() == max && !has_left;
        if is_held || is_over {
            return Visit::Nothing;
        }
        let wanted = (*count as usize).saturating_sub(self.pops.popped.messages.len());
        let is_full = wanted == 0 || self.pops.popped.bytes >= bytes_max && !self.pops.popped.messages.is_empty();
        if (pop.is_orderly || has_left) && !is_full {
            // What is lent once more takes no new room. Who has it keeps it as long as nobody else gets it.
            self.pops.accounts.change(id, now_ms, |account| match pop.is_orderly {
                true => account.take_back(attempt),
                false => account.give_up_order(),
            });
        }
        let account = &self.pops.accounts.get(id).expect("it was found or opened just now").account;
        let room = unacked_max.saturating_sub(account.out()).min(wanted);
        if is_full || room == 0 || !has_room {
            self.pops.popped.rest += max.saturating_sub(account.next_at(now_ms));
            return Visit::Nothing;
        }
        self.pops.accounts.change(id, now_ms, |account| {
            account.advance(min);
            if account.next() > max {
                // The log has lost its end (it may, when it is not flushed at once).
                account.cut(max);
            }
        });
        let first = self.pops.popped.messages.len();
        self.pops.popped.offsets.clear();
        let mut visit = Visit::Nothing;
        let matches = filter.expression().map(matcher);
        for scan in 0.. {
            let account = &self.pops.accounts.get(id).expect("nobody closes it meanwhile").account;
            let from = account.next();
            let room = room - self.pops.popped.offsets.len();
            let bytes = bytes_max.saturating_sub(self.pops.popped.bytes);
            let span = self.pops.popped.offsets.first().map_or(0, |first| from - first);
            if from >= max || room == 0 || bytes == 0 || span > LOAN_SPAN_MAX {
                break;
            }
            if scan >= SCANS_MAX {
                visit = Visit::Unfinished;
                break;
            }
            let stretch = account.stretch().min(u64::from(self.settings.limits.pull_scan));
            let mut limits = PullLimits { messages: room as u32, bytes: bytes as u32, scan: stretch as u32 };
            let wants = |tag_hash| filter.wants(tag_hash);
            let partition = &mut self.partitions[local];
            let (found, _) = match &matches {
                None => partition.pull(key, from, limits, &wants),
                Some(matches) => {
                    limits.scan = limits.scan.min(MATCHED_MAX);
                    partition.pull_matching(key, from, limits, &wants, Some(matches))
                }
            };
            let next = match found {
                Pulled::Found { messages, next } => {
                    for message in messages {
                        // Records that are larger than what is left wait for the next pop.
                        self.pops.popped.bytes += message.len();
                        self.pops.popped.offsets.push(queue_offset(&message));
                        self.pops.popped.messages.push(message);
                    }
                    next
                }
                Pulled::NoMatch { next } => next,
                Pulled::OutOfRange => {
                    let Span { min, max } = self.partitions[local].span(key);
                    if from >= min || min > max {
                        break;
                    }
                    min
                }
                Pulled::Empty => break,
                Pulled::Loading(load) => {
                    visit = Visit::Loading(local, load);
                    break;
                }
                Pulled::Opening => {
                    visit = Visit::Opening;
                    break;
                }
                Pulled::Damaged { position, behind } => {
                    let (topic, group) = (&*topic.name, &*pop.group);
                    let Some(behind) = behind else {
                        tracing::error!(?position, topic, queue, group, "a stored message cannot be found now");
                        break;
                    };
                    // Nobody will ever get it, and all that lies behind it would wait for it.
                    let offset = behind - 1;
                    tracing::warn!(?position, topic, queue, offset, group, "passed: a stored message is damaged");
                    behind
                }
            };
            self.pops.accounts.change(id, now_ms, |account| account.advance(next));
        }
        let next = self.pops.accounts.get(id).map_or(max, |holder| holder.account.next());
        self.pops.popped.rest += max.saturating_sub(next);
        if self.pops.popped.offsets.is_empty() {
            return visit;
        }
        let kind = if pop.is_orderly { Kind::Orderly } else { Kind::Plain };
        let loan = self.pops.accounts.lend(id, &self.pops.popped.offsets, now_ms, now_ms + invisible_ms, kind);
        self.pops.popped.loans.extend(loan.map(|loan| LoanOf { account: id, loan }));
        if !self.pops.popped.locals.contains(&local) {
            self.pops.popped.locals.push(local);
        }
        self.tell(pop, topic, queue, id, first, now_ms);
        Visit::Found
    }

    /// Shows what a queue has next for a group.
    fn look_at_queue(&mut self, pop: &Pop, topic: &Topic, queue: u32, count: u32, now_ms: u64) -> Visit {
        let Some(local) = self.local(topic.partition_of(queue, self.settings.partitions)) else {
            return Visit::Nothing;
        };
        let key = QueueKey { topic: topic.id, queue };
        let from = self.next_of(local, key, &pop.group, now_ms);
        let Span { max, .. } = self.partitions[local].span(key);
        self.pops.popped.rest += max.saturating_sub(from);
        let bytes = (self.settings.limits.pull_bytes as usize).saturating_sub(self.pops.popped.bytes);
        let messages = (count as usize).saturating_sub(self.pops.popped.messages.len());
        if messages == 0 || bytes == 0 {
            return Visit::Nothing;
        }
        let limits = PullLimits { messages: messages as u32, bytes: bytes as u32, scan: count };
        let mut from = from.min(max);
        for _ in 0..SCANS_MAX {
            match self.partitions[local].pull(key, from, limits, &|_| true).0 {
                Pulled::Found { messages, .. } => {
                    self.pops.popped.bytes += messages.iter().map(Bytes::len).sum::<usize>();
                    self.pops.popped.messages.extend(messages);
                    return Visit::Found;
                }
                Pulled::Loading(load) => return Visit::Loading(local, load),
                Pulled::Opening => return Visit::Opening,
                // A pop would pass it.
                Pulled::Damaged { behind: Some(behind), .. } => from = behind,
                Pulled::Damaged { behind: None, .. } | Pulled::Empty | Pulled::NoMatch { .. } | Pulled::OutOfRange => {
                    return Visit::Nothing;
                }
            }
        }
        Visit::Nothing
    }

    /// Opens the account of a group in a queue: where it was, or where it begins. `Ok(None)`: there are too many.
    fn open_account(
        &mut self,
        pop: &Pop,
        topic: &Arc<Topic>,
        queue: u32,
        local: usize,
        now_ms: u64,
    ) -> Result<Option<AccountId>, Visit> {
        let key = QueueKey { topic: topic.id, queue };
        if !self.partitions[local].is_open() {
            return Err(Visit::Opening);
        }
        let fact = self.partitions[local].fact(&offset_key(key.topic, key.queue, &pop.group));
        let known = fact.and_then(Account::read);
        let is_new = known.is_none();
        let account = match known {
            Some(account) => account,
            None => Account::new(self.first_offset(pop, topic, key, local)?),
        };
        let Some(id) = self.pops.accounts.open(queue, topic, &pop.group, local, account) else {
            tracing::warn!(group = &*pop.group, topic = &*topic.name, "no room for another pop account");
            return Ok(None);
        };
        if is_new {
            // Where it begins is decided once.
            self.pops.accounts.change(id, now_ms, |_| ());
        }
        Ok(Some(id))
    }

    /// Where a group begins that never was in this queue (PROTOCOL 4.12.4).
    fn first_offset(&mut self, pop: &Pop, topic: &Topic, key: QueueKey, local: usize) -> Result<u64, Visit> {
        let Span { min, max } = self.partitions[local].span(key);
        let from_last = matches!(pop.wish, Wish::Messages { from_last: true, .. });
        if !from_last || topic.name.starts_with(names::RETRY_PREFIX) {
            return Ok(min);
        }
        match self.partitions[local].bytes_behind(key, 0) {
            Ok(Some(bytes)) if min == 0 && bytes < self.near_bytes() => Ok(0),
            Ok(_) => Ok(max.saturating_sub(1)),
            Err(load) => Err(Visit::Loading(local, load)),
        }
    }

    /// Says what was lent of a queue: `messages[first..]`, at the offsets collected.
    fn tell(&mut self, pop: &Pop, topic: &Topic, queue: u32, id: AccountId, first: usize, now_ms: u64) {
        let origin = Origin::of(&topic.name);
        let Popped { messages, infos, offsets, .. } = &mut self.pops.popped;
        let bytes = messages[first..].iter().map(|message| message.len() as u64).sum();
        self.stats.got(topic.id, &pop.group, offsets.len() as u64, bytes, now_ms);
        infos.add(origin, queue, offsets);
        if pop.is_orderly {
            let account = &self.pops.accounts.get(id).expect("it lent just now").account;
            infos.add_times(origin, queue, offsets.iter().map(|offset| (*offset, account.times(*offset))));
        }
        if topic.id != pop.topic.id {
            // Clients see the topic that they asked for, with the handle beside it.
            let Wish::Messages { invisible_ms, .. } = pop.wish else { return };
            for (message, offset) in messages[first..].iter_mut().zip(&*offsets) {
                let start = offsets[0];
                let (kind, broker) = (origin as i32, &self.settings.broker_name);
                let handle = format!("{start} {now_ms} {invisible_ms} {REVIVE_PLAIN} {kind} {broker} {queue} {offset}");
                if let Some(told) = as_asked(message, &pop.topic.name, &handle) {
                    *message = told;
                }
            }
        }
    }
}

/// The queue offset that stands in a stored record.
pub(super) fn queue_offset(record: &[u8]) -> u64 {
    let bytes = record.get(QUEUE_OFFSET_AT..).and_then(|bytes| bytes.first_chunk());
    u64::from_be_bytes(*bytes.expect("a stored record is longer"))
}

/// A message of a retry topic as one of the topic that was popped. `None`: it has no room for its handle.
fn as_asked(record: &[u8], topic: &str, handle: &str) -> Option<Bytes> {
    let mut message = StoredMessage::decode(record).ok()?;
    let mut text = String::with_capacity(message.properties.len() + handle.len() + 16);
    text.push_str(message.properties);
    properties::set(&mut text, name::POP_CK, handle);
    if text.len() > PROPERTIES_BYTES_MAX {
        return None;
    }
    (message.topic, message.properties) = (topic, &text);
    let mut out = vec![0; message.encoded_len()];
    message.encode(&mut out);
    Some(Bytes::from(out))
}
