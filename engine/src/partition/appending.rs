//! Messages go into the log, and are shown when it has kept them.

use super::{Effect, Partition, State};
use crate::error::AppendError;
use crate::format::{Kind, Position};
use crate::index::Entry;
use crate::io::Fault;
use crate::limits::RECORD_BYTES_MAX;
use crate::log::{Promise, Ticket};
use crate::message::{Draft, Stored};
use crate::timers::Timer;
use std::io;

/// So many messages before its turn, the place that one will be shown at is fetched into the cache: memory answers
/// in the time of some ten.
const SHOWS_AHEAD: usize = 8;

impl Partition {
    /// Stores messages in one batch: all or none of them is there after a crash. `stored` gets where each
    /// was put, at once; `ticket` comes back by [`Effect::Stored`] when that is promised.
    pub fn append(
        &mut self,
        drafts: &mut [Draft<'_>],
        ticket: Option<Ticket>,
        now_ms: u64,
        stored: &mut Vec<Stored>,
    ) -> Result<(), AppendError> {
        let payload = drafts.iter().map(|draft| draft.length).sum();
        self.check_room(drafts.iter().map(|draft| draft.length).max().unwrap_or(0))?;
        let records = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
        self.reserve(payload, records, now_ms)?;
        for draft in drafts {
            stored.push(self.store(draft, now_ms));
        }
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(())
    }

    /// Stores a message that is delivered to its queue when it is due: once, also across a crash. `key`: what
    /// [`find_delayed`](Partition::find_delayed) finds it by until then, or 0.
    /// What is returned is where it waits, under a running number.
    pub fn delay(
        &mut self,
        draft: Draft<'_>,
        due_ms: u64,
        key: u32,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<Stored, AppendError> {
        self.check_room(draft.length)?;
        if !self.derived.timers.has_room() {
            return Err(AppendError::Busy);
        }
        self.reserve(draft.length, 1, now_ms)?;
        let stored = self.put_off(&mut { draft }, due_ms, key, now_ms);
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(stored)
    }

    pub(super) fn check_open(&self) -> Result<(), AppendError> {
        match self.state {
            State::Open => Ok(()),
            State::Opening(_) | State::Starting { .. } | State::Waiting { .. } => Err(AppendError::Opening),
            State::Shutting | State::Shut => Err(AppendError::Closed(io::ErrorKind::Interrupted)),
            State::Failing | State::Broken => {
                Err(AppendError::Closed(self.log.failed().map_or(io::ErrorKind::InvalidData, Fault::kind)))
            }
        }
    }

    /// Whether a message of this length may come in from outside.
    pub(super) fn check_room(&self, length: usize) -> Result<(), AppendError> {
        self.check_open()?;
        if self.derived.stretches.is_full() {
            // Runs cannot be written fast enough, or not at all.
            return Err(AppendError::Busy);
        }
        if length > RECORD_BYTES_MAX as usize {
            return Err(AppendError::TooLarge { bytes: length as u64, bytes_max: RECORD_BYTES_MAX.into() });
        }
        if self.segments.available().is_some_and(|available| available < self.config.disk_free_min) {
            return Err(AppendError::Full);
        }
        Ok(())
    }

    pub(super) fn reserve(&mut self, payload: usize, records: u32, now_ms: u64) -> Result<(), AppendError> {
        self.log.reserve(payload, records, &self.segments, now_ms).map_err(|error| {
            match (error, self.segments.last_fault()) {
                // The next segment cannot be made: waiting will not help.
                (AppendError::Busy, Some(fault)) if fault.kind() == io::ErrorKind::StorageFull => AppendError::Full,
                (error, _) => error,
            }
        })
    }

    /// Puts a message into the batch that was reserved.
    pub(super) fn store(&mut self, draft: &mut Draft<'_>, now_ms: u64) -> Stored {
        let further = draft.further();
        let slot = self.derived.index.slot(draft.queue);
        let offset = self.derived.index.accept(slot, further);
        let partition = self.config.partition;
        let byte = self.log.record_noted(Kind::Message, draft.queue, offset, further, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        let tag_hash = draft.tag_hash as i32;
        let promise = self.log.promise();
        let entry = Entry { byte, store_time_ms: now_ms, length: draft.length as u32, tag_hash };
        promise.shows.push((slot, offset, entry));
        promise.shows.extend((1..=u64::from(further)).map(|behind| (slot, offset + behind, entry)));
        promise.keys.extend(draft.keys.iter().map(|hash| (*hash, byte)));
        Stored { queue_offset: offset, position: Position::pack(partition, byte) }
    }

    /// Puts a delayed message into the batch that was reserved.
    pub(super) fn put_off(&mut self, draft: &mut Draft<'_>, due_ms: u64, key: u32, now_ms: u64) -> Stored {
        assert!(draft.further() == 0, "what waits takes one offset");
        let (partition, offset) = (self.config.partition, self.delayed_offset);
        let byte = self.log.record_noted(Kind::Delayed, draft.queue, due_ms, key, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        self.delayed_offset += 1;
        let (queue, length) = (draft.queue, draft.length as u32);
        self.derived.timers.insert(Timer { due_ms, byte, queue, length, key });
        Stored { queue_offset: offset, position: Position::pack(partition, byte) }
    }

    /// Makes true what a batch promised.
    pub(super) fn keep(&mut self, promise: Promise) {
        let segment_end = self.segments.holding(promise.base).map_or(u64::MAX, |segment| segment.end());
        self.derived.enter(promise.base, segment_end);
        for (at, &(slot, offset, entry)) in promise.shows.iter().enumerate() {
            for (ahead, near) in [(2 * SHOWS_AHEAD, false), (SHOWS_AHEAD, true)] {
                if let Some((slot, ..)) = promise.shows.get(at + ahead) {
                    self.derived.index.prefetch(*slot, near);
                }
            }
            // A topic may have been forgotten while its messages were on their way.
            let Some(queue) = self.derived.index.living(slot) else { continue };
            queue.show(offset, entry);
            if queue.begins(promise.base) {
                self.effects.push(Effect::Grown(queue.key()));
            }
            if !self.compaction.is_idle() {
                self.compaction.shown(queue.key(), offset, entry);
            }
        }
        for &(hash, byte) in &promise.keys {
            self.derived.keys.push(hash, byte);
        }
        self.derived.leave(promise.end, promise.shows.len() as u64, promise.keys.len() as u64);
        self.effects.extend(promise.tickets.iter().map(|ticket| Effect::Stored(*ticket, Ok(()))));
        self.log.recycle(promise);
    }
}

#[cfg(test)]
mod tests {
    use crate::buffer::Region;
    use crate::format::QueueKey;
    use crate::io::{Io, Tag};
    use crate::limits::LogConfig;
    use crate::message::{Draft, Stamp};
    use crate::partition::{Effect, Partition};
    use crate::sim::Sim;

    const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };

    fn append(partition: &mut Partition, queue: QueueKey) {
        let fill = &mut |out: &mut [u8]| out.fill(7);
        let draft = Draft { queue, length: 64, offsets: 1, tag_hash: 0, keys: &[], stamp: STAMP, fill };
        partition.append(&mut [draft], None, 5, &mut Vec::new()).unwrap();
    }

    /// Turns until nothing was written for a while; returns which queues grew, in order.
    fn grown(sim: &mut Sim, partition: &mut Partition) -> Vec<QueueKey> {
        let (mut grown, mut effects, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..100 {
            partition.on_turn(sim.now_ms());
            partition.effects(&mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Io { local, op } => sim.submit(Tag(local), op).unwrap(),
                    Effect::Grown(queue) => grown.push(queue),
                    _ => {}
                }
            }
            sim.drive(None, &mut done);
            for done in done.drain(..) {
                partition.on_done(done.tag.0, done.outcome, sim.now_ms());
            }
            sim.advance(10);
        }
        grown
    }

    #[test]
    fn a_queue_is_told_to_have_grown_once_for_a_batch() {
        let config = LogConfig::new("/data/0", 0, Region::new(64, 1 << 20).unwrap(), |_| None);
        let mut partition = Partition::new(config).unwrap();
        let mut sim = Sim::new(1);
        assert_eq!(grown(&mut sim, &mut partition), []);
        let [one, other] = [1, 2].map(|queue| QueueKey { topic: 1, queue });
        for _ in 0..2 {
            for queue in [one, other, one, other, one] {
                append(&mut partition, queue);
            }
            assert_eq!(grown(&mut sim, &mut partition), [one, other]);
        }
        assert_eq!(partition.span(one).max, 6);
    }
}
