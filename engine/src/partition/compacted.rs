//! What stays of queues of which the newest message of each key stays, whatever its age (cleanup policy COMPACTION of
//! RocketMQ), and how it is read.
//!
//! Such messages come into the log and are read from it like all others. When they are old enough, or hold a segment that
//! retention wants, they are *compacted* (see `compacting.rs`): those that are the newest of their keys become facts, what they
//! take the place of ends, and the queue is read from the facts up to there. So they are written again, replicated and
//! recovered as facts are, and the log below is free.
//!
//! ```text
//! facts of a queue:   0 | 'k' | topic u32 | queue u32                  its offsets below this u64 are compacted
//!                     0 | 'k' | topic u32 | queue u32 | offset u64     the message that was stored at that offset
//! ```
//!
//! Cost: each message that stays is in memory, with some 150 bytes beside it, and is written once for each segment, and with
//! each checkpoint.

use super::{Partition, Pull, PullLimits};
use crate::derived::OWN_PREFIX;
use crate::error::AppendError;
use crate::facts::Facts;
use crate::format::QueueKey;
use crate::index::{Entry, Span};
use crate::limits::{COMPACTED_BYTES_MAX, FACT_BYTES_MAX};
use crate::loads::LoadId;
use crate::partition::reading::Matches;
use ahash::RandomState;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// Messages that wait take so much before they are compacted whatever their age: what waits takes room, too, and of one
/// key that is written all the time nearly nothing stays. 32 MiB: a quarter of what may stay.
const WAITING_BYTES_MAX: usize = COMPACTED_BYTES_MAX / 4;
/// Messages that stay and are looked at in one pull; each is read for its tag.
const LOOKS_MAX: usize = 1024;
const MARK: u8 = b'k';
const QUEUE_BYTES: usize = 2 + 4 + 4;
/// Beside a message, what a fact of it takes: its key and length; and generously in memory.
const FACT_HEADER_BYTES: usize = QUEUE_BYTES + 8 + 6;
const OVERHEAD_BYTES: usize = 150;

/// What is compacted in one partition.
#[derive(Debug)]
pub(super) struct Compaction {
    /// Whether it is known which topics are compacted; nothing is retired before.
    pub told: bool,
    pub topics: BTreeSet<u32>,
    pub queues: BTreeMap<QueueKey, Compacted>,
    /// Queues of topics that are gone, whose facts are to be deleted.
    pub gone: BTreeSet<QueueKey>,
    /// What those that stay take, and those that wait.
    bytes: usize,
    waiting_bytes: usize,
    /// Offsets that waited when the log was opened: nobody knows what they take.
    backlog: u64,
    /// What lies below this log byte is not needed for it any more; and below the second, once the log is durable up
    /// to the first.
    pub free: u64,
    pub freeing: Option<(u64, u64)>,
    /// Retention wants what lies below this log byte.
    pub wanted: u64,
    pub look_ms: u64,
    /// There is more to do once the log is written up to this byte.
    pub more: Option<u64>,
    /// A read that it waits for.
    pub awaited: Option<LoadId>,
    /// Since when a segment is held that retention wants; and when that is told next.
    pub held_since_ms: Option<u64>,
    pub tell_held_ms: u64,
    /// A failure is not told again before.
    pub quiet_until_ms: u64,
    /// The queue that is looked at next.
    pub next: Option<QueueKey>,
    hasher: RandomState,
}

/// One queue.
#[derive(Debug, Default)]
pub(super) struct Compacted {
    /// Its offsets below this one are compacted.
    pub upto: u64,
    /// Where the message at that offset lies and when it was stored, if that is known.
    pub next: Option<(u64, u64)>,
    /// Offsets below this one waited when the log was opened; and how many of them still do.
    pub backlog_end: u64,
    backlog: u64,
    bytes: usize,
    waiting_bytes: usize,
    /// Hashes of the keys, with the offsets of the messages that stay.
    keys: BTreeSet<(u64, u64)>,
}

/// What a message takes that stays, or may.
fn cost(bytes: usize) -> usize {
    bytes + OVERHEAD_BYTES
}

/// Whether a message of so many bytes is short enough to stay.
pub(super) fn may_stay(bytes: usize) -> bool {
    bytes + FACT_HEADER_BYTES <= FACT_BYTES_MAX
}

/// How what stays of a queue changes: all of it in one batch of the log.
#[derive(Debug, Default)]
pub(super) struct Changes<'a> {
    /// Hashes of keys whose messages at these offsets end.
    pub ends: Vec<(u64, u64)>,
    /// The same, of messages that stay from now on.
    pub begins: Vec<(u64, u64, &'a [u8])>,
}

impl Compaction {
    pub fn new(seed: u64) -> Compaction {
        Compaction {
            told: false,
            topics: BTreeSet::new(),
            queues: BTreeMap::new(),
            gone: BTreeSet::new(),
            bytes: 0,
            waiting_bytes: 0,
            backlog: 0,
            free: 0,
            freeing: None,
            wanted: 0,
            look_ms: 0,
            more: None,
            awaited: None,
            held_since_ms: None,
            tell_held_ms: 0,
            quiet_until_ms: 0,
            next: None,
            hasher: RandomState::with_seed(seed as usize),
        }
    }

    /// Whether no topic is compacted.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.topics.is_empty() && self.gone.is_empty()
    }

    pub fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// A message of a queue is visible.
    pub fn shown(&mut self, queue: QueueKey, offset: u64, entry: Entry) {
        if !self.topics.contains(&queue.topic) {
            return;
        }
        let (bytes, waited) = (cost(entry.length as usize), self.waits_too_much());
        let compacted = self.queues.entry(queue).or_default();
        if compacted.upto == offset {
            compacted.next = Some((entry.byte, entry.store_time_ms));
        }
        compacted.waiting_bytes += bytes;
        self.waiting_bytes += bytes;
        if self.waits_too_much() && !waited {
            self.look_ms = 0;
        }
    }

    /// Whether messages are compacted whatever their age.
    pub fn waits_too_much(&self) -> bool {
        self.waiting_bytes > WAITING_BYTES_MAX
    }

    /// A message at an offset waits no more.
    pub fn passed(&mut self, queue: QueueKey, offset: u64, bytes: usize) {
        let compacted = self.queues.get_mut(&queue).expect("it is being compacted");
        if offset >= compacted.backlog_end {
            let bytes = cost(bytes).min(compacted.waiting_bytes);
            compacted.waiting_bytes -= bytes;
            self.waiting_bytes -= bytes;
        }
    }

    /// What stays has changed, up to this offset; `is_all`: up to the queue's end. `ended`: bytes of what ended.
    pub fn changed(&mut self, queue: QueueKey, changes: &Changes<'_>, ended: usize, upto: u64, is_all: bool) {
        let compacted = self.queues.get_mut(&queue).expect("it is being compacted");
        let ended = ended + changes.ends.len() * OVERHEAD_BYTES;
        let begun: usize = changes.begins.iter().map(|(_, _, message)| cost(message.len())).sum();
        (compacted.bytes, self.bytes) = (compacted.bytes + begun - ended, self.bytes + begun - ended);
        changes.ends.iter().for_each(|key| _ = compacted.keys.remove(key));
        compacted.keys.extend(changes.begins.iter().map(|(hash, offset, _)| (*hash, *offset)));
        let backlog = compacted.backlog.min(compacted.backlog_end.saturating_sub(upto));
        self.backlog -= std::mem::replace(&mut compacted.backlog, backlog) - backlog;
        (compacted.upto, compacted.next) = (upto, None);
        if is_all {
            self.waiting_bytes -= std::mem::take(&mut compacted.waiting_bytes);
        }
    }
}

/// The key of the fact that says up to where a queue is compacted; those of its messages begin with it.
pub(super) fn queue_key(queue: QueueKey) -> [u8; QUEUE_BYTES] {
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
    /// Says which topics are compacted. Of one that was told and is not told any more everything is forgotten. Nothing is
    /// retired before this was called, if [`LogConfig::key_of`](crate::limits::LogConfig) is set. Cost: a pass over all queues
    /// and what stays of them at the first time.
    pub fn compacts(&mut self, topics: BTreeSet<u32>) {
        if self.config.key_of.is_none() {
            return;
        }
        let compaction = &mut self.compaction;
        let (was_idle, was_told) = (compaction.topics.is_empty(), std::mem::replace(&mut compaction.told, true));
        compaction.topics = topics;
        if !was_told {
            return self.load_compacted();
        }
        let gone = compaction.queues.extract_if(.., |queue, _| !compaction.topics.contains(&queue.topic));
        for (queue, compacted) in gone {
            compaction.bytes -= compacted.bytes;
            compaction.waiting_bytes -= compacted.waiting_bytes;
            compaction.backlog -= compacted.backlog;
            compaction.gone.insert(queue);
        }
        if was_idle {
            // A topic is compacted from when it is made: nothing of it is in the log yet.
            (compaction.free, compaction.freeing) = (self.log.durable(), None);
        }
        compaction.look_ms = 0;
    }

    /// Reads from the facts what is compacted: also when a log was opened again, which may have forgotten some. What waits
    /// is compacted at once.
    pub(super) fn load_compacted(&mut self) {
        let (Some(key_of), true) = (self.config.key_of, self.compaction.told) else { return };
        let compaction = &mut self.compaction;
        compaction.queues.clear();
        (compaction.bytes, compaction.waiting_bytes, compaction.backlog) = (0, 0, 0);
        (compaction.free, compaction.freeing, compaction.more, compaction.look_ms) = (0, None, None, 0);
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
                    compacted.bytes += cost(value.len());
                    compaction.bytes += cost(value.len());
                }
            }
        }
        let all: Vec<QueueKey> = self.derived.index.nexts().map(|(queue, _)| queue).collect();
        for queue in all.into_iter().filter(|queue| compaction.topics.contains(&queue.topic)) {
            let Some(Span { min, max }) = self.derived.index.get(queue).map(|queue| queue.span()) else { continue };
            let compacted = compaction.queues.entry(queue).or_default();
            compacted.backlog_end = max;
            compacted.backlog = max.saturating_sub(compacted.upto.max(min));
            compaction.backlog += compacted.backlog;
        }
    }

    /// Whether a message of a compacted queue may come in: there is room for it if all that stay and all that wait stay, and
    /// it is not too long to stay. One that takes the place of another that is no shorter always may.
    pub fn has_room_to_stay(&self, queue: QueueKey, key: &[u8], bytes: usize) -> bool {
        let compaction = &self.compaction;
        let backlog = usize::try_from(compaction.backlog).unwrap_or(usize::MAX).saturating_mul(FACT_BYTES_MAX);
        let more = compaction.waiting_bytes.saturating_add(backlog).saturating_add(cost(bytes));
        let has_room = |gone: usize| {
            compaction.bytes.saturating_add(more) <= COMPACTED_BYTES_MAX + gone
                && self.derived.facts.has_room_for(more.saturating_sub(gone))
        };
        if !may_stay(bytes) {
            return false;
        }
        has_room(0)
            || self.find_kept(queue, key).is_some_and(|offset| {
                let old = self.derived.facts.get(&message_key(queue, offset)).map_or(0, <[u8]>::len);
                bytes <= old || has_room(cost(old))
            })
    }

    /// The offset of the message of a key that stays.
    pub(super) fn find_kept(&self, queue: QueueKey, key: &[u8]) -> Option<u64> {
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

    /// When the first message was stored that stays from an offset on. `Err`: the log has to be asked, from the offset
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
        let looks = LOOKS_MAX.min(limits.scan.max(1) as usize);
        let mut all = kept(&self.derived.facts, queue, offset).take(looks);
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

    /// Puts changes of what stays into the log, up to an offset.
    pub(super) fn put_compacted(
        &mut self,
        queue: QueueKey,
        changes: &Changes<'_>,
        upto: u64,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        let (first, value) = (queue_key(queue), upto.to_be_bytes());
        let old: Vec<_> = changes.ends.iter().map(|(_, offset)| message_key(queue, *offset)).collect();
        let new: Vec<_> =
            changes.begins.iter().map(|(_, offset, message)| (message_key(queue, *offset), *message)).collect();
        let mut facts: Vec<(&[u8], Option<&[u8]>)> = vec![(&first, Some(&value))];
        facts.extend(old.iter().map(|key| (&key[..], None)));
        facts.extend(new.iter().map(|(key, message)| (&key[..], Some(*message))));
        let ended: usize = old.iter().filter_map(|key| self.derived.facts.get(key)).map(<[u8]>::len).sum();
        self.put_facts(&facts, None, now_ms)?;
        let is_all = self.derived.index.get(queue).is_none_or(|queue| queue.span().max <= upto);
        self.compaction.changed(queue, changes, ended, upto, is_all);
        Ok(())
    }
}
