//! Queues of which the newest message of each key stays, whatever its age (cleanup policy COMPACTION of RocketMQ).
//!
//! Their messages come into the log and are read from it like all others. Once they are older than
//! [`LogConfig::compaction_ms`](crate::limits::LogConfig), or hold a segment that retention wants, they are *compacted*:
//! those that are the newest of their keys become facts, what they take the place of ends, and the queue is read from
//! the facts up to there. So they are written again, replicated and recovered as facts are, and the log below is free.
//!
//! ```text
//! facts of a queue:   0 | 'k' | topic u32 | queue u32                  its offsets below this u64 are compacted
//!                     0 | 'k' | topic u32 | queue u32 | offset u64     the message that was stored at that offset
//! ```
//!
//! Cost: each message that stays is in memory, with some 150 bytes beside it, and is written once for each segment.

use super::{Partition, Pull, PullLimits, RETRY_MS};
use crate::derived::OWN_PREFIX;
use crate::error::AppendError;
use crate::facts::Facts;
use crate::format::QueueKey;
use crate::index::Span;
use crate::limits::{COMPACTED_BYTES_MAX, FACT_BYTES_MAX};
use crate::message::Description;
use crate::partition::reading::Matches;
use ahash::RandomState;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A queue is looked at so often. Milliseconds.
const LOOK_MS: u64 = 1000;
/// A segment that is held for so long is told. Milliseconds.
const HELD_MS: u64 = 60_000;
/// Messages and bytes of a queue compacted in one turn.
const SLICE: PullLimits = PullLimits { messages: 1024, bytes: 1 << 20, scan: 1024 };
/// Messages that lie so far back in the log are compacted whatever their age, so that a log does not grow for them.
/// Bytes.
const BEHIND_BYTES_MAX: u64 = 256 << 20;
/// Queues looked at in one turn.
const LOOKS_PER_TURN: usize = 1024;
/// Facts of a topic that is gone, deleted in one turn.
const FORGOTTEN_MAX: usize = 1024;

const MARK: u8 = b'k';
const QUEUE_BYTES: usize = 2 + 4 + 4;
/// Beside a message, what a fact of it takes.
const FACT_HEADER_BYTES: usize = QUEUE_BYTES + 8 + 6;

/// What compaction does in one partition.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Whether it is known which queues are compacted; nothing is retired before.
    told: bool,
    topics: BTreeSet<u32>,
    queues: BTreeMap<QueueKey, Compacted>,
    /// Queues of topics that are gone, whose facts are to be deleted.
    gone: BTreeSet<QueueKey>,
    /// Bytes of messages that are facts.
    bytes: usize,
    /// What lies below this log byte is not needed for it any more; and below the second, once the log is durable up
    /// to the first.
    free: u64,
    freeing: Option<(u64, u64)>,
    /// Retention wants what lies below this log byte.
    wanted: u64,
    look_ms: u64,
    /// Since when a segment is held that retention wants, or when that was told last.
    held_since_ms: Option<u64>,
    /// The queue that is looked at next.
    next: Option<QueueKey>,
    /// A failure was told, and nothing was compacted since.
    failed: bool,
    hasher: RandomState,
}

/// One queue.
#[derive(Debug, Default)]
struct Compacted {
    /// Its offsets below this one are compacted.
    upto: u64,
    /// Hashes of the keys, with the offsets of the messages that stay.
    keys: BTreeSet<(u64, u64)>,
}

impl Compaction {
    pub(super) fn new(seed: u64) -> Compaction {
        Compaction {
            told: false,
            topics: BTreeSet::new(),
            queues: BTreeMap::new(),
            gone: BTreeSet::new(),
            bytes: 0,
            free: 0,
            freeing: None,
            wanted: 0,
            look_ms: 0,
            held_since_ms: None,
            next: None,
            failed: false,
            hasher: RandomState::with_seed(seed as usize),
        }
    }

    /// Whether no queue is compacted.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.queues.is_empty() && self.gone.is_empty()
    }

    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }
}

fn queue_key(queue: QueueKey) -> [u8; QUEUE_BYTES] {
    let mut key = [OWN_PREFIX; QUEUE_BYTES];
    key[1] = MARK;
    key[2..6].copy_from_slice(&queue.topic.to_be_bytes());
    key[6..].copy_from_slice(&queue.queue.to_be_bytes());
    key
}

fn message_key(queue: QueueKey, offset: u64) -> [u8; QUEUE_BYTES + 8] {
    let mut key = [0; QUEUE_BYTES + 8];
    key[..QUEUE_BYTES].copy_from_slice(&queue_key(queue));
    key[QUEUE_BYTES..].copy_from_slice(&offset.to_be_bytes());
    key
}

/// The queue of a fact of compaction, and the offset if it is a message.
pub(crate) fn compacted_key(key: &[u8]) -> Option<(QueueKey, Option<u64>)> {
    let (queue, offset) = key.split_first_chunk::<QUEUE_BYTES>()?;
    let (head, numbers) = queue.split_first_chunk::<2>()?;
    let (topic, queue) = numbers.split_first_chunk::<4>()?;
    let queue = QueueKey { topic: u32::from_be_bytes(*topic), queue: u32::from_be_bytes(queue.try_into().ok()?) };
    let offset = match offset {
        [] => None,
        offset => Some(u64::from_be_bytes(offset.try_into().ok()?)),
    };
    (*head == [OWN_PREFIX, MARK]).then_some((queue, offset))
}

/// The messages of a queue that stay, from an offset on.
fn kept(facts: &Facts, queue: QueueKey, from: u64) -> impl Iterator<Item = (u64, &[u8])> {
    let (first, last) = (message_key(queue, from), message_key(queue, u64::MAX));
    let all = facts.between(&first, &last);
    all.filter_map(|(key, message)| Some((compacted_key(key)?.1?, message)))
}

/// The offset of the first of them.
fn next_kept(facts: &Facts, queue: QueueKey, from: u64) -> Option<u64> {
    kept(facts, queue, from).next().map(|(offset, _)| offset)
}

impl Partition {
    /// Says which queues are compacted: those of these topics, of which `queues` are known here. Of a topic that was told
    /// and is not told any more everything is forgotten. Nothing is retired before this was called, if
    /// [`LogConfig::key_of`](crate::limits::LogConfig) is set.
    pub fn compacts(&mut self, topics: BTreeSet<u32>, queues: impl Iterator<Item = QueueKey>) {
        let compaction = &mut self.compaction;
        let was_idle = compaction.queues.is_empty();
        for queue in queues {
            compaction.queues.entry(queue).or_default();
        }
        let gone = compaction.queues.extract_if(.., |queue, _| !topics.contains(&queue.topic));
        compaction.gone.extend(gone.map(|(queue, _)| queue));
        compaction.topics = topics;
        if !std::mem::replace(&mut compaction.told, true) {
            self.load_compacted();
        } else if was_idle {
            // Of queues that are new, nothing is in the log yet.
            (compaction.free, compaction.freeing) = (self.log.durable(), None);
        }
        self.compaction.look_ms = 0;
    }

    /// Reads from the facts what is compacted: also when a log was opened again, which may have forgotten some.
    pub(super) fn load_compacted(&mut self) {
        let (Some(key_of), true) = (self.config.key_of, self.compaction.told) else { return };
        let compaction = &mut self.compaction;
        compaction.bytes = 0;
        (compaction.free, compaction.freeing) = (0, None);
        compaction.queues.values_mut().for_each(|queue| *queue = Compacted::default());
        for (fact, value) in self.derived.facts.with_prefix(&[OWN_PREFIX, MARK]) {
            let Some((queue, offset)) = compacted_key(fact) else { continue };
            if !compaction.topics.contains(&queue.topic) {
                compaction.gone.insert(queue);
                continue;
            }
            let compacted = compaction.queues.entry(queue).or_default();
            match offset {
                None => compacted.upto = value.first_chunk().map_or(0, |upto| u64::from_be_bytes(*upto)),
                Some(offset) => {
                    let hash = compaction.hasher.hash_one(key_of(value).map_or(&[][..], |(key, _)| key));
                    compacted.keys.insert((hash, offset));
                    compaction.bytes += value.len();
                }
            }
        }
    }

    /// Whether a message of a compacted queue may come in: there is room for it if all that stay stay, and it is not too
    /// long to stay. One that takes the place of another that is no shorter always may.
    pub fn has_room_to_stay(&self, queue: QueueKey, key: &[u8], bytes: usize) -> bool {
        let old = self.find_kept(queue, key).and_then(|offset| self.derived.facts.get(&message_key(queue, offset)));
        let gone = old.map_or(0, <[u8]>::len);
        let fits = bytes + FACT_HEADER_BYTES <= FACT_BYTES_MAX;
        fits && (bytes <= gone || self.compaction.bytes + bytes - gone <= COMPACTED_BYTES_MAX)
    }

    /// The offset of the message of a key that stays.
    fn find_kept(&self, queue: QueueKey, key: &[u8]) -> Option<u64> {
        let (key_of, compacted) = (self.config.key_of?, self.compaction.queues.get(&queue)?);
        let hash = self.compaction.hash(key);
        let is_its = |offset: u64| {
            let message = self.derived.facts.get(&message_key(queue, offset));
            message.and_then(key_of).is_some_and(|(other, _)| other == key)
        };
        compacted.keys.range((hash, 0)..=(hash, u64::MAX)).map(|(_, offset)| *offset).find(|offset| is_its(*offset))
    }

    /// Whether an offset is read from the facts.
    pub(super) fn is_compacted(&self, queue: QueueKey, offset: u64) -> bool {
        !self.compaction.is_idle() && self.compaction.queues.get(&queue).is_some_and(|queue| offset < queue.upto)
    }

    /// The span of a queue, of which the log has this. One that is compacted begins with the first message that stays.
    pub(super) fn span_of(&self, queue: QueueKey, log: Span) -> Span {
        if self.compaction.is_idle() {
            return log;
        }
        let Some(compacted) = self.compaction.queues.get(&queue).filter(|queue| queue.upto > 0) else { return log };
        let first = next_kept(&self.derived.facts, queue, 0);
        Span { min: first.unwrap_or(log.min.max(compacted.upto)).min(log.max), max: log.max }
    }

    /// When the first message was stored that stays from an offset on. `None`: the log has to be asked, from the offset
    /// that is told.
    pub(super) fn kept_time(&self, queue: QueueKey, offset: u64) -> Result<u64, u64> {
        if !self.is_compacted(queue, offset) {
            return Err(offset);
        }
        let time = kept(&self.derived.facts, queue, offset).find_map(|(_, message)| (self.config.describe)(message));
        time.map(|described| described.store_time_ms).ok_or(self.compaction.queues[&queue].upto)
    }

    /// A pull of what is compacted. `Err`: nothing of that is wanted from the offset on; the log goes on at the one that is
    /// told.
    pub(super) fn pull_kept(
        &self,
        queue: QueueKey,
        offset: u64,
        limits: PullLimits,
        wants: &dyn Fn(i64) -> bool,
        matches: Option<&Matches<'_>>,
    ) -> Result<Pull, u64> {
        if !self.is_compacted(queue, offset) {
            return Err(offset);
        }
        let upto = self.compaction.queues[&queue].upto;
        let (mut next, mut bytes, mut messages) = (offset, 0, Vec::new());
        let mut all = kept(&self.derived.facts, queue, offset).take(limits.scan.max(1) as usize);
        let is_over = loop {
            let Some((at, message)) = all.next() else { break next_kept(&self.derived.facts, queue, next).is_none() };
            let is_full = bytes + message.len() > limits.bytes as usize || messages.len() >= limits.messages as usize;
            if is_full && !messages.is_empty() {
                break false;
            }
            let tag_hash = (self.config.describe)(message).map_or(0, |described| described.tag_hash);
            if wants(i64::from(tag_hash as i32)) {
                let Some(is_match) = matches.map_or(Some(true), |matches| matches(message)) else { break false };
                if is_match {
                    bytes += message.len();
                    messages.push(Bytes::copy_from_slice(message));
                }
            }
            next = at + 1;
        };
        match (messages.is_empty(), is_over) {
            (true, true) => Err(upto),
            (true, false) => Ok(Pull::NoMatch { next }),
            (false, true) => Ok(Pull::Found { messages, next: upto }),
            (false, false) => Ok(Pull::Found { messages, next }),
        }
    }

    // -- compacting --------------------------------------------------------------------------------

    /// Whether what lies below a log byte may go. If not, it will be compacted at once.
    pub(super) fn may_go(&mut self, end: u64) -> bool {
        let compaction = &mut self.compaction;
        if compaction.queues.is_empty() {
            return compaction.told || self.config.key_of.is_none();
        }
        if end > compaction.free && compaction.wanted < end {
            (compaction.wanted, compaction.look_ms) = (end, 0);
        }
        end <= compaction.free
    }

    /// Compacts what is due, a slice a turn.
    pub(super) fn compact(&mut self, now_ms: u64) {
        if self.compaction.is_idle() || now_ms < self.compaction.look_ms {
            return;
        }
        self.compaction.look_ms = now_ms + LOOK_MS;
        let more = self.forget_gone(now_ms) | self.compact_queues(now_ms);
        self.free_log();
        let is_wanted = self.compaction.wanted > self.compaction.free;
        self.tell_held(is_wanted, now_ms);
        let waits = self.compaction.failed || is_wanted;
        self.compaction.look_ms = match (more, waits) {
            (true, _) => now_ms,
            // For the disk, most likely.
            (false, true) => now_ms + RETRY_MS,
            (false, false) => now_ms + LOOK_MS,
        };
    }

    /// Says now and then that a segment is held: its log may be damaged.
    fn tell_held(&mut self, is_held: bool, now_ms: u64) {
        let since_ms = self.compaction.held_since_ms.filter(|_| is_held).unwrap_or(now_ms);
        let is_long = now_ms.saturating_sub(since_ms) >= HELD_MS;
        self.compaction.held_since_ms = is_held.then_some(if is_long { now_ms } else { since_ms });
        if is_long {
            let partition = self.config.partition;
            tracing::warn!(partition, "a segment that is due is held: its messages of compacted topics cannot be read");
        }
    }

    /// When [`compact`](Partition::compact) has something to do though nothing happens.
    pub(super) fn compaction_deadline_ms(&self) -> u64 {
        if self.compaction.is_idle() { u64::MAX } else { self.compaction.look_ms }
    }

    /// Deletes facts of topics that are gone. Returns whether there are more.
    fn forget_gone(&mut self, now_ms: u64) -> bool {
        let Some(queue) = self.compaction.gone.first().copied() else { return false };
        let prefix = queue_key(queue);
        let keys = self.derived.facts.with_prefix(&prefix).map(|(key, _)| key.to_vec());
        let keys: Vec<Vec<u8>> = keys.take(FORGOTTEN_MAX).collect();
        let changes: Vec<(&[u8], Option<&[u8]>)> = keys.iter().map(|key| (&**key, None)).collect();
        if !changes.is_empty() && self.put_facts(&changes, None, now_ms).is_err() {
            return false;
        }
        if keys.len() < FORGOTTEN_MAX {
            self.compaction.gone.remove(&queue);
        }
        true
    }

    /// Goes round the queues. Returns whether one of them has more to do.
    fn compact_queues(&mut self, now_ms: u64) -> bool {
        let mut from = self.compaction.next.take().map_or(Bound::Unbounded, Bound::Included);
        for _ in 0..LOOKS_PER_TURN {
            let Some(queue) = self.next_queue(from) else { return false };
            from = Bound::Excluded(queue);
            if self.compact_queue(queue, now_ms) > 0 {
                self.compaction.next = self.next_queue(from);
                return true;
            }
        }
        self.compaction.next = self.next_queue(from);
        self.compaction.next.is_some()
    }

    fn next_queue(&self, from: Bound<QueueKey>) -> Option<QueueKey> {
        self.compaction.queues.range((from, Bound::Unbounded)).next().map(|(queue, _)| *queue)
    }

    /// Compacts a slice of a queue, if it is due. Returns how many offsets.
    fn compact_queue(&mut self, queue: QueueKey, now_ms: u64) -> u64 {
        let upto = self.compaction.queues[&queue].upto;
        let Some(Span { min, max }) = self.derived.index.get(queue).map(|queue| queue.span()) else { return 0 };
        if upto >= max {
            return 0;
        }
        // What is gone is gone; it was not compacted because its log was damaged, or it was there before the queue was.
        let from = upto.max(min);
        let is_forced = match self.entry(queue, from) {
            // It is being read.
            Err(_) => return 0,
            Ok(Some(entry)) => {
                let behind = self.log.accepted() - entry.byte;
                let is_forced = entry.byte < self.compaction.wanted || behind > BEHIND_BYTES_MAX;
                if !is_forced && !self.is_due(entry.store_time_ms, now_ms) {
                    return 0;
                }
                is_forced
            }
            Ok(None) => true,
        };
        let (pulled, span) = self.pull_log(queue, from, SLICE, &|_| true, None);
        let (messages, next) = match pulled {
            Pull::Found { messages, next } => (messages, next),
            Pull::OutOfRange => (Vec::new(), span.min),
            Pull::Damaged { behind: Some(behind), .. } => (Vec::new(), behind),
            _ => return 0,
        };
        let described = messages.iter().map(|message| (self.config.describe)(message));
        let due = described.take_while(|described| {
            is_forced || described.as_ref().is_none_or(|described| self.is_due(described.store_time_ms, now_ms))
        });
        let described: Vec<Option<Description>> = due.collect();
        let next = match messages.get(described.len()) {
            None => next,
            Some(message) => (self.config.describe)(message).map_or(next, |described| offset_of(message, &described)),
        };
        if next <= from {
            return 0;
        }
        let outcome = self.compact_messages(queue, &messages[..described.len()], &described, next, now_ms);
        let failed = outcome.is_err();
        if let Err(error) = outcome
            && !self.compaction.failed
        {
            let partition = self.config.partition;
            tracing::warn!(partition, topic = queue.topic, queue = queue.queue, %error, "messages cannot be compacted; trying again");
        }
        self.compaction.failed = failed;
        if failed { 0 } else { next - from }
    }

    fn is_due(&self, stored_ms: u64, now_ms: u64) -> bool {
        stored_ms.saturating_add(self.config.compaction_ms) <= now_ms
    }

    /// The newest of each key stay; the queue is compacted up to `next`.
    fn compact_messages(
        &mut self,
        queue: QueueKey,
        messages: &[Bytes],
        described: &[Option<Description>],
        next: u64,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        let Some(key_of) = self.config.key_of else { return Ok(()) };
        // The newest of each key: its offset, and whether it stays or ends its key.
        let mut newest: BTreeMap<&[u8], (u64, Option<&[u8]>)> = BTreeMap::new();
        for (message, described) in messages.iter().zip(described) {
            if let (Some(described), Some((key, stays))) = (described, key_of(message)) {
                newest.insert(key, (offset_of(message, described), stays.then_some(&**message)));
            }
        }
        let (mut ends, mut begins) = (Vec::new(), Vec::new());
        for (key, (offset, message)) in &newest {
            let hash = self.compaction.hash(key);
            ends.extend(self.find_kept(queue, key).map(|old| (hash, old)));
            begins.extend(message.map(|message| (hash, *offset, message)));
        }
        let (first, upto) = (queue_key(queue), next.to_be_bytes());
        let old: Vec<_> = ends.iter().map(|(_, offset)| message_key(queue, *offset)).collect();
        let new: Vec<_> = begins.iter().map(|(_, offset, message)| (message_key(queue, *offset), *message)).collect();
        let mut changes: Vec<(&[u8], Option<&[u8]>)> = vec![(&first, Some(&upto))];
        changes.extend(old.iter().map(|key| (&key[..], None)));
        changes.extend(new.iter().map(|(key, message)| (&key[..], Some(*message))));
        let ended: usize = old.iter().filter_map(|key| self.derived.facts.get(key)).map(<[u8]>::len).sum();
        self.put_facts(&changes, None, now_ms)?;
        self.compaction.bytes += new.iter().map(|(_, message)| message.len()).sum::<usize>();
        self.compaction.bytes -= ended;
        let compacted = self.compaction.queues.get_mut(&queue).expect("it is being compacted");
        compacted.upto = next;
        ends.iter().for_each(|key| _ = compacted.keys.remove(key));
        compacted.keys.extend(begins.iter().map(|(hash, offset, _)| (*hash, *offset)));
        Ok(())
    }

    /// Notes up to where the log is not needed for it any more, if retention wants more than that.
    fn free_log(&mut self) {
        let durable = self.log.durable();
        if let Some((_, free)) = self.compaction.freeing.take_if(|(at, _)| *at <= durable) {
            self.compaction.free = free;
        }
        let wanted = self.compaction.wanted;
        if self.compaction.freeing.is_some() || wanted <= self.compaction.free {
            return;
        }
        // What is durable is visible: everything below that was looked at, or stands in its queue.
        let mut free = durable;
        let queues: Vec<(QueueKey, u64)> =
            self.compaction.queues.iter().map(|(queue, compacted)| (*queue, compacted.upto)).collect();
        for (queue, upto) in queues {
            let Some(Span { min, max }) = self.derived.index.get(queue).map(|queue| queue.span()) else { continue };
            if upto >= max {
                continue;
            }
            match self.entry(queue, upto.max(min)) {
                Ok(Some(entry)) if entry.byte >= wanted => free = free.min(entry.byte),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return,
            }
        }
        self.compaction.freeing = Some((self.log.accepted(), free));
    }
}

/// The queue offset that a stored message was stamped with.
fn offset_of(message: &[u8], described: &Description) -> u64 {
    let at = described.stamp.queue_offset_at;
    message.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |offset| u64::from_be_bytes(*offset))
}
