//! Compacting: messages of queues of which the newest of each key stays become facts, and the log below is free. See
//! `compacted.rs`.

use super::compacted::{Changes, may_stay, queue_key};
use super::{Partition, Pull, PullLimits, RETRY_MS};
use crate::error::AppendError;
use crate::format::{Position, QueueKey};
use crate::index::{Entry, Span};
use crate::limits::LOAD_BYTES;
use crate::loads::LoadId;
use crate::message::Description;
use crate::runs::Miss;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Queues are looked at so often: messages go so much later than they may. Milliseconds.
const LOOK_MS: u64 = 1000;
/// What fails is told again after this long, and a segment that is held so long. Milliseconds.
const TELL_MS: u64 = 60_000;
/// A segment is held so long for messages of which nobody knows where they lie, because their run is lost. Longer than a lost
/// run is tried again ([`upkeep`](crate::upkeep)) twice. Milliseconds.
const HOLD_MS: u64 = 1_500_000;
/// Messages and bytes of a queue that are compacted before it is waited until that is written: what one cold read brings.
const SLICE: PullLimits = PullLimits { messages: 256, bytes: LOAD_BYTES, scan: 256 };
/// Messages that lie so far back in the log are compacted whatever their age, so that a log does not grow for them.
/// 256 MiB: a few stretches; whoever follows the queue was there long ago. Bytes.
const BEHIND_BYTES_MAX: u64 = 256 << 20;
/// Queues, and offsets of one that cannot be located, that are looked at in one turn. 1,024: a few hundred microseconds.
const LOOKS_PER_TURN: u64 = 1024;
/// Facts of a topic that is gone, deleted in one turn.
const FORGOTTEN_MAX: usize = 1024;

impl Partition {
    /// Whether what lies below a log byte may go. If not, it will be compacted at once.
    pub(super) fn may_go(&mut self, end: u64) -> bool {
        let compaction = &mut self.compaction;
        if compaction.topics.is_empty() {
            return compaction.told || self.config.key_of.is_none();
        }
        if end > compaction.free && compaction.wanted < end {
            (compaction.wanted, compaction.look_ms) = (end, 0);
        }
        end <= compaction.free
    }

    /// Compacts what is due, a slice a turn.
    pub(super) fn compact(&mut self, now_ms: u64) {
        if self.compaction.is_idle() || now_ms < self.compaction_deadline_ms() {
            return;
        }
        self.compaction.look_ms = now_ms + LOOK_MS;
        let more = self.forget_gone(now_ms) | self.compact_queues(now_ms);
        self.compaction.more = more.then(|| self.log.accepted());
        self.free_log(more);
        let is_wanted = self.compaction.wanted > self.compaction.free;
        if is_wanted {
            self.compaction.look_ms = self.compaction.look_ms.min(now_ms + RETRY_MS);
        }
        self.tell_held(is_wanted, now_ms);
    }

    /// When [`compact`](Partition::compact) has something to do though nothing happens.
    pub(super) fn compaction_deadline_ms(&self) -> u64 {
        match self.compaction.more {
            _ if self.compaction.is_idle() => u64::MAX,
            Some(byte) if self.log.written() >= byte => 0,
            _ => self.compaction.look_ms,
        }
    }

    /// A read is over that it may have waited for.
    pub(super) fn compaction_read(&mut self, load: LoadId, ok: bool) {
        if self.compaction.awaited == Some(load) {
            self.compaction.awaited = None;
            if ok {
                self.compaction.look_ms = 0;
            }
        }
    }

    /// Says now and then that a segment is held: its log may be damaged.
    fn tell_held(&mut self, is_held: bool, now_ms: u64) {
        if !is_held || self.compaction.held_since_ms.is_none() {
            self.compaction.held_since_ms = is_held.then_some(now_ms);
            self.compaction.tell_held_ms = now_ms + TELL_MS;
        }
        if now_ms >= self.compaction.tell_held_ms {
            self.compaction.tell_held_ms = now_ms + TELL_MS;
            let (partition, upto) = (self.config.partition, self.compaction.wanted);
            tracing::warn!(
                partition,
                upto,
                "segments that are due are held: their messages of compacted topics cannot be read or stored again"
            );
        }
    }

    /// Deletes facts of topics that are gone. Returns whether there are more.
    fn forget_gone(&mut self, now_ms: u64) -> bool {
        let mut left = FORGOTTEN_MAX;
        while let Some(queue) = self.compaction.gone.first().copied() {
            let Ok(count) = self.forget_some(&queue_key(queue), left, now_ms) else { return false };
            if count == left {
                return true;
            }
            // One that has no facts counts, too: it was looked for.
            left -= count.max(1);
            self.compaction.gone.remove(&queue);
            if left == 0 {
                return !self.compaction.gone.is_empty();
            }
        }
        false
    }

    /// Goes round the queues. Returns whether one of them has more to do.
    fn compact_queues(&mut self, now_ms: u64) -> bool {
        let mut from = self.compaction.next.take().map_or(Bound::Unbounded, Bound::Included);
        for _ in 0..LOOKS_PER_TURN {
            let Some(queue) = self.next_queue(from) else { return false };
            from = Bound::Excluded(queue);
            if self.compact_queue(queue, now_ms) {
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

    /// Compacts a slice of a queue, if it is due. Returns whether it did.
    fn compact_queue(&mut self, queue: QueueKey, now_ms: u64) -> bool {
        let Some(from) = self.uncompacted(queue) else { return false };
        match self.locate_uncompacted(queue, from) {
            Ok(Some((byte, stored_ms))) if !self.is_due(queue, from, byte, stored_ms, now_ms) => return false,
            // `None`: it is gone, and so a pull will say.
            Ok(_) => {}
            Err(Miss::Loading(load)) => {
                self.compaction.awaited.get_or_insert(load);
                return false;
            }
            Err(Miss::Damaged(_)) => return self.pass_lost(queue, from, now_ms),
        }
        let (pulled, Span { min, .. }) = self.pull_log(queue, from, SLICE, &|_| true, None);
        let (messages, behind) = match pulled {
            Pull::Found { messages, next } => (messages, next),
            Pull::OutOfRange => (Vec::new(), min),
            Pull::Damaged { position, behind: Some(behind) } => {
                tracing::error!(
                    ?position,
                    topic = queue.topic,
                    queue = queue.queue,
                    "a message of a compacted topic is damaged: it does not stay"
                );
                (Vec::new(), behind)
            }
            Pull::Loading(load) => {
                self.compaction.awaited.get_or_insert(load);
                return false;
            }
            _ => {
                // Where it was seen nobody may know any more.
                self.compaction.queues.get_mut(&queue).expect("it was looked at").next = None;
                return false;
            }
        };
        let mut due = Vec::with_capacity(messages.len());
        let mut next = behind;
        for message in &messages {
            let Some(described) = (self.config.describe)(message) else { continue };
            let (offset, byte) = stamped(message, &described);
            if !self.is_due(queue, offset, byte, described.store_time_ms, now_ms) {
                next = offset;
                break;
            }
            due.push((offset, message));
        }
        next > from && self.compact_messages(queue, &due, next, now_ms)
    }

    /// The first offset of a queue that is not compacted, if it has a message there. What is gone is passed: that was
    /// damaged.
    fn uncompacted(&mut self, queue: QueueKey) -> Option<u64> {
        let upto = self.compaction.queues[&queue].upto;
        let Span { min, max } = self.derived.index.get(queue)?.span();
        (upto < max).then_some(upto.max(min))
    }

    /// Where the first message lies that is not compacted, and when it was stored.
    fn locate_uncompacted(&mut self, queue: QueueKey, from: u64) -> Result<Option<(u64, u64)>, Miss> {
        let compacted = &self.compaction.queues[&queue];
        if let Some(next) = compacted.next.filter(|_| compacted.upto == from) {
            return Ok(Some(next));
        }
        let found = self.locate(queue, from)?.map(|Entry { byte, store_time_ms, .. }| (byte, store_time_ms));
        let compacted = self.compaction.queues.get_mut(&queue).expect("it was looked at");
        compacted.next = found.filter(|_| compacted.upto == from);
        Ok(found)
    }

    fn is_due(&self, queue: QueueKey, offset: u64, byte: u64, stored_ms: u64, now_ms: u64) -> bool {
        let compaction = &self.compaction;
        stored_ms.saturating_add(self.config.compaction_ms) <= now_ms
            || byte < compaction.wanted
            || offset < compaction.queues[&queue].backlog_end
            || compaction.waits_too_much()
            || self.log.accepted().saturating_sub(byte) > BEHIND_BYTES_MAX
    }

    /// Where some offsets lie is lost, with the run that knew and the log that it was made of. That may change, so nothing is
    /// done before retention has waited for it for long; then they do not stay.
    fn pass_lost(&mut self, queue: QueueKey, from: u64, now_ms: u64) -> bool {
        if self.compaction.held_since_ms.is_none_or(|since_ms| now_ms < since_ms + HOLD_MS) {
            return false;
        }
        let Some(Span { max, .. }) = self.derived.index.get(queue).map(|queue| queue.span()) else { return false };
        let mut next = from;
        while next < max.min(from + LOOKS_PER_TURN) && matches!(self.locate(queue, next), Err(Miss::Damaged(_))) {
            next += 1;
        }
        let (partition, topic) = (self.config.partition, queue.topic);
        tracing::error!(partition, topic, queue = queue.queue, from, next, "messages of a compacted topic are lost");
        next > from && self.compact_messages(queue, &[], next, now_ms)
    }

    /// The newest of each key stay; the queue is compacted up to `next`. Returns whether the log took that.
    fn compact_messages(&mut self, queue: QueueKey, messages: &[(u64, &Bytes)], next: u64, now_ms: u64) -> bool {
        let Some(key_of) = self.config.key_of else { return false };
        // The newest of each key, and the message if it stays and does not end its key.
        let mut newest: BTreeMap<&[u8], (u64, Option<&[u8]>)> = BTreeMap::new();
        for (offset, message) in messages {
            let Some((key, stays)) = key_of(message) else { continue };
            let fits = may_stay(message.len());
            if stays && !fits {
                // Nobody should have let that in; it would hold the log for ever.
                tracing::error!(topic = queue.topic, queue = queue.queue, offset, "a message is too long to stay");
            }
            newest.insert(key, (*offset, (stays && fits).then_some(&***message)));
        }
        let mut changes = Changes::default();
        for (key, (offset, message)) in &newest {
            let hash = self.compaction.hash(key);
            changes.ends.extend(self.find_kept(queue, key).map(|old| (hash, old)));
            changes.begins.extend(message.map(|message| (hash, *offset, message)));
        }
        match self.put_compacted(queue, &changes, next, now_ms) {
            Ok(()) => {
                messages.iter().for_each(|(offset, message)| self.compaction.passed(queue, *offset, message.len()));
                true
            }
            Err(error) => {
                self.tell_failed(queue, error, now_ms);
                false
            }
        }
    }

    fn tell_failed(&mut self, queue: QueueKey, error: AppendError, now_ms: u64) {
        self.compaction.look_ms = now_ms + RETRY_MS;
        // A log that is busy is no failure.
        if error != AppendError::Busy && now_ms >= self.compaction.quiet_until_ms {
            self.compaction.quiet_until_ms = now_ms + TELL_MS;
            let (partition, topic) = (self.config.partition, queue.topic);
            tracing::warn!(partition, topic, queue = queue.queue, %error, "messages cannot be compacted; trying again");
        }
    }

    /// Notes up to where the log is not needed for it any more, if retention wants more than that. `more`: something is
    /// still to be compacted. Cost: at most one look at each queue.
    fn free_log(&mut self, more: bool) {
        let durable = self.log.durable();
        if let Some((_, free)) = self.compaction.freeing.take_if(|(at, _)| *at <= durable) {
            self.compaction.free = free;
        }
        let wanted = self.compaction.wanted;
        if more || self.compaction.freeing.is_some() || wanted <= self.compaction.free {
            return;
        }
        // What is durable is visible: everything below that was compacted, or stands in its queue.
        let mut free = durable;
        let queues: Vec<QueueKey> = self.compaction.queues.keys().copied().collect();
        for queue in queues {
            let Some(from) = self.uncompacted(queue) else { continue };
            match self.locate_uncompacted(queue, from) {
                Ok(Some((byte, _))) if byte >= wanted => free = free.min(byte),
                Err(Miss::Loading(load)) => {
                    self.compaction.awaited.get_or_insert(load);
                    return;
                }
                // It is compacted or passed first.
                _ => return,
            }
        }
        self.compaction.freeing = Some((self.log.accepted(), free));
    }
}

/// The queue offset and the log byte that a stored message was stamped with.
fn stamped(message: &[u8], described: &Description) -> (u64, u64) {
    let number = |at: usize| {
        let bytes = message.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
    };
    (number(described.stamp.queue_offset_at), Position(number(described.stamp.position_at)).byte())
}
