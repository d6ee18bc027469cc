//! Messages that wait for their time. The log holds them; here is only when which one is due.

use crate::format::{QueueKey, RECORD_HEADER_BYTES};
use crate::limits::TIMERS_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// A delayed message in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    /// When it is due, ms since 1970.
    pub due_ms: u64,
    /// The log byte of its payload.
    pub byte: u64,
    /// The queue that gets it then.
    pub queue: QueueKey,
    /// Bytes of its payload.
    pub length: u32,
}

impl Timer {
    /// Bytes of its record.
    fn bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.length)
    }
}

/// All that wait, earliest first.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeSet<Timer>,
    by_byte: BTreeMap<u64, Timer>,
    bytes: u64,
}

impl Timers {
    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.by_time.len() < TIMERS_MAX
    }

    /// One more waits.
    pub fn insert(&mut self, timer: Timer) {
        self.remove(timer.byte);
        self.bytes += timer.bytes();
        self.by_byte.insert(timer.byte, timer);
        self.by_time.insert(timer);
    }

    /// The one whose payload is at this log byte waits no more.
    pub fn remove(&mut self, byte: u64) {
        if let Some(timer) = self.by_byte.remove(&byte) {
            self.by_time.remove(&timer);
            self.bytes -= timer.bytes();
        }
    }

    /// The one at this log byte, if it still waits, is due at another time.
    pub fn postpone(&mut self, byte: u64, due_ms: u64) {
        if let Some(&timer) = self.by_byte.get(&byte) {
            self.insert(Timer { due_ms, ..timer });
        }
    }

    /// Drops those of topics that are not wanted. Cost: one pass over all.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let bytes = &mut self.bytes;
        self.by_byte.retain(|_, timer| {
            let kept = keep(timer.queue.topic);
            *bytes -= if kept { 0 } else { timer.bytes() };
            kept
        });
        self.by_time.retain(|timer| keep(timer.queue.topic));
    }

    /// The next one due.
    pub fn first(&self) -> Option<Timer> {
        self.by_time.first().copied()
    }

    /// Those whose payloads are at log bytes from `from` on, below `to`.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = Timer> {
        self.by_byte.range(from..to.max(from)).map(|(_, timer)| *timer)
    }

    /// The one that lies lowest in the log.
    pub fn lowest(&self) -> Option<Timer> {
        self.by_byte.first_key_value().map(|(_, timer)| *timer)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// Bytes of their records in the log.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_first_and_what_is_over_or_forgotten_is_gone() {
        let mut timers = Timers::default();
        for (due_ms, byte) in [(30, 1), (10, 2), (20, 3), (10, 4), (15, 5), (15, 5)] {
            let queue = QueueKey { topic: byte as u32 % 5, queue: 0 };
            timers.insert(Timer { due_ms, byte, queue, length: byte as u32 });
        }
        assert_eq!((timers.lowest().map(|timer| timer.byte), timers.len(), timers.bytes()), (Some(1), 5, 5 * 32 + 15));
        assert!(timers.between(2, 4).map(|timer| timer.byte).eq([2, 3]) && timers.between(5, 2).count() == 0);
        timers.retain_topics(&|topic| topic != 0);
        assert_eq!((timers.len(), timers.bytes()), (4, 4 * 32 + 10));
        let mut order = Vec::new();
        while let Some(timer) = timers.first() {
            order.push(timer.byte);
            timers.remove(timer.byte);
        }
        assert_eq!(order, [2, 4, 3, 1]);
        assert!(timers.len() == 0 && timers.bytes() == 0 && timers.lowest().is_none() && timers.has_room());
    }
}
