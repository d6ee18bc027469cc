//! Messages that wait for their time. The log holds them; here is only when which one is due.

use crate::limits::TIMERS_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// A delayed message in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    /// When it is due, ms since 1970.
    pub due_ms: u64,
    /// The log byte of its payload.
    pub byte: u64,
    /// Bytes of its payload.
    pub length: u32,
}

/// All that wait, earliest first.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeSet<Timer>,
    by_byte: BTreeMap<u64, Timer>,
}

impl Timers {
    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.by_time.len() < TIMERS_MAX
    }

    /// One more waits.
    pub fn insert(&mut self, timer: Timer) {
        self.by_byte.insert(timer.byte, timer);
        self.by_time.insert(timer);
    }

    /// The one whose payload is at this log byte was delivered.
    pub fn remove(&mut self, byte: u64) {
        if let Some(timer) = self.by_byte.remove(&byte) {
            self.by_time.remove(&timer);
        }
    }

    /// The next one due.
    pub fn first(&self) -> Option<Timer> {
        self.by_time.first().copied()
    }

    /// Those whose payloads are at log bytes from `from` on, below `to`.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = Timer> {
        self.by_byte.range(from..to.max(from)).map(|(_, timer)| *timer)
    }

    /// The lowest log byte that is still needed.
    pub fn lowest_byte(&self) -> Option<u64> {
        self.by_byte.first_key_value().map(|(byte, _)| *byte)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_is_first_and_a_delivered_one_is_gone() {
        let mut timers = Timers::default();
        for (due_ms, byte) in [(30, 1), (10, 2), (20, 3), (10, 4)] {
            timers.insert(Timer { due_ms, byte, length: 1 });
        }
        assert_eq!(timers.lowest_byte(), Some(1));
        assert!(timers.between(2, 4).map(|timer| timer.byte).eq([2, 3]) && timers.between(5, 2).count() == 0);
        let mut order = Vec::new();
        while let Some(timer) = timers.first() {
            order.push(timer.byte);
            timers.remove(timer.byte);
        }
        assert_eq!(order, [2, 4, 3, 1]);
        assert!(timers.len() == 0 && timers.has_room());
    }
}
