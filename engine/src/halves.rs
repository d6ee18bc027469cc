//! Half messages: those of transactions that nobody decided yet. The log holds them; here is when whose producer
//! is to be asked, and how often it was.
//!
//! A half message is known by the log byte where it came in. That stays so when it is written again elsewhere:
//! its producer knows no other place.
//!
//! Cost: about 140 bytes for each, 150 more for one that was asked for and written again.

use crate::limits::HALVES_MAX;
use crate::timers::{Timer, Timers};
use std::collections::BTreeMap;

/// A half message in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// Its record. It is due when its producer is to be asked.
    pub timer: Timer,
    /// The log byte of the payload where it came in.
    pub id: u64,
    /// How often its producer was asked.
    pub checks: u32,
}

/// All that are undecided. Most were neither asked for nor moved: they are in `timers` alone.
#[derive(Debug)]
pub struct Halves {
    timers: Timers,
    /// How often those were asked for that were.
    checks: BTreeMap<u64, u32>,
    /// Where those are that were written again, by their ids; and their ids, by where they are.
    moved: BTreeMap<u64, u64>,
    ids: BTreeMap<u64, u64>,
}

impl Halves {
    /// None yet. `seed`: of its hash table.
    pub fn new(seed: u64) -> Halves {
        Halves { timers: Timers::new(seed), checks: BTreeMap::new(), moved: BTreeMap::new(), ids: BTreeMap::new() }
    }

    /// Whether there may be one more.
    pub fn has_room(&self) -> bool {
        self.timers.len() < HALVES_MAX
    }

    /// One more; or one that was written again.
    pub fn insert(&mut self, half: Half) {
        if let Some(known) = self.get(half.id) {
            self.remove_at(known.timer.byte);
        }
        let byte = half.timer.byte;
        if half.id != byte {
            // Where a log ended early, another message may have been.
            self.remove_at(byte);
            self.moved.insert(half.id, byte);
            self.ids.insert(byte, half.id);
        } else if self.ids.contains_key(&byte) {
            self.remove_at(byte);
        }
        if half.checks > 0 {
            self.checks.insert(half.id, half.checks);
        }
        self.timers.insert(half.timer);
    }

    /// The one known by this id.
    pub fn get(&self, id: u64) -> Option<Half> {
        let byte = match self.moved.get(&id) {
            Some(byte) => *byte,
            // What lies there may be another one, written again.
            None if self.ids.contains_key(&id) => return None,
            None => id,
        };
        self.timers.get(byte).map(|timer| self.of(timer))
    }

    /// The one whose payload is at this log byte counts no more.
    pub fn remove_at(&mut self, byte: u64) {
        if self.timers.remove(byte).is_some() {
            let id = self.ids.remove(&byte).unwrap_or(byte);
            self.moved.remove(&id);
            self.checks.remove(&id);
        }
    }

    /// Its producer was asked so often, and is to be asked again then. Nothing, if it is decided.
    pub fn checked(&mut self, id: u64, due_ms: u64, checks: u32) {
        if let Some(half) = self.get(id) {
            self.checks.insert(id, checks);
            self.timers.postpone(half.timer.byte, due_ms);
        }
    }

    /// Drops those of topics that are not wanted. Cost: one pass over all.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let gone = self.timers.iter().filter(|timer| !keep(timer.queue.topic)).map(|timer| timer.byte);
        gone.collect::<Vec<u64>>().into_iter().for_each(|byte| self.remove_at(byte));
    }

    /// All, those first whose producers are to be asked first.
    pub fn iter(&self) -> impl Iterator<Item = Half> {
        self.timers.iter().map(|timer| self.of(timer))
    }

    /// Those whose payloads are at log bytes from `from` on, below `to`.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = Half> {
        self.timers.between(from, to).map(|timer| self.of(timer))
    }

    /// The one that lies lowest in the log.
    pub fn lowest(&self) -> Option<Half> {
        self.timers.lowest().map(|timer| self.of(timer))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.timers.len()
    }

    /// Bytes of their records in the log.
    pub fn bytes(&self) -> u64 {
        self.timers.bytes()
    }

    fn of(&self, timer: Timer) -> Half {
        let id = self.ids.get(&timer.byte).copied().unwrap_or(timer.byte);
        Half { timer, id, checks: self.checks.get(&id).copied().unwrap_or(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::QueueKey;

    #[test]
    fn one_that_moves_is_the_same_and_one_that_ends_is_gone() {
        let half = |id: u64, byte: u64, due_ms: u64, checks: u32| {
            let queue = QueueKey { topic: id as u32 % 3, queue: 0 };
            Half { timer: Timer { due_ms, byte, queue, length: 10, key: 0 }, id, checks }
        };
        let mut halves = Halves::new(1);
        for id in 1..6 {
            halves.insert(half(id, id, 100 - id, 0));
        }
        halves.checked(2, 7, 3);
        halves.checked(99, 1, 1);
        assert_eq!(halves.get(2), Some(half(2, 2, 7, 3)));
        assert_eq!(halves.iter().map(|half| half.id).collect::<Vec<_>>(), [2, 5, 4, 3, 1]);
        // Written again: its old record ends, wherever the mark comes.
        halves.insert(half(2, 50, 7, 3));
        halves.remove_at(2);
        assert_eq!((halves.get(2), halves.len(), halves.bytes()), (Some(half(2, 50, 7, 3)), 5, 5 * 42));
        halves.checked(2, 8, 4);
        assert_eq!(halves.between(6, 99).collect::<Vec<_>>(), [half(2, 50, 8, 4)]);
        assert_eq!(halves.lowest(), Some(half(1, 1, 99, 0)));
        halves.retain_topics(&|topic| topic != 1);
        assert_eq!(halves.iter().map(|half| half.id).collect::<Vec<_>>(), [2, 5, 3]);
        [50, 5, 3].into_iter().for_each(|byte| halves.remove_at(byte));
        assert!(halves.len() == 0 && halves.bytes() == 0 && halves.has_room());
        assert!(halves.checks.is_empty() && halves.moved.is_empty() && halves.ids.is_empty());
        // One came to lie where another came in: each is found by its own id.
        halves.insert(half(1, 9, 7, 0));
        assert_eq!((halves.get(9), halves.get(1)), (None, Some(half(1, 9, 7, 0))));
        halves.insert(half(9, 9, 8, 0));
        assert_eq!((halves.get(9), halves.get(1), halves.len()), (Some(half(9, 9, 8, 0)), None, 1));
    }
}
