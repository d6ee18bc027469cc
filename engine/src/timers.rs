//! Messages that wait for their time. The log holds them; here is only when which one is due.
//!
//! Cost: about 160 bytes for each that waits, 20 less if nobody can recall it.

use crate::format::{QueueKey, RECORD_HEADER_BYTES};
use crate::limits::TIMERS_MAX;
use ahash::RandomState;
use hashbrown::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// A delayed message in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// When it is due, ms since 1970.
    pub due_ms: u64,
    /// The log byte of its payload.
    pub byte: u64,
    /// The queue that gets it then.
    pub queue: QueueKey,
    /// Bytes of its payload.
    pub length: u32,
    /// What it is found by while it waits; 0: it is not.
    pub key: u32,
}

impl Timer {
    /// Where it stands in the order of time. Those due in the same millisecond go in the order of the log.
    pub fn place(&self) -> (u64, u64) {
        (self.due_ms, self.byte)
    }

    /// Bytes of its record.
    fn bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.length)
    }
}

/// All that wait, earliest first.
#[derive(Debug)]
pub struct Timers {
    /// By [`Timer::place`]. Here and there stands all that is known: to go through them looks nothing up, in the order
    /// of time to deliver them, in the order of the log for a checkpoint.
    by_time: BTreeMap<(u64, u64), What>,
    by_byte: BTreeMap<u64, Timer>,
    /// The lowest log byte of each key, and those of its namesakes: rarely are there any.
    by_key: HashMap<u32, u64, RandomState>,
    namesakes: BTreeSet<(u32, u64)>,
    bytes: u64,
}

/// A timer without its place.
#[derive(Clone, Copy, Debug)]
struct What {
    queue: QueueKey,
    length: u32,
    key: u32,
}

impl What {
    fn at(self, (due_ms, byte): (u64, u64)) -> Timer {
        Timer { due_ms, byte, queue: self.queue, length: self.length, key: self.key }
    }
}

impl Timers {
    /// None yet. `seed`: of its hash table.
    pub fn new(seed: u64) -> Timers {
        Timers {
            by_time: BTreeMap::new(),
            by_byte: BTreeMap::new(),
            by_key: HashMap::with_hasher(RandomState::with_seeds(seed, 7, 8, 9)),
            namesakes: BTreeSet::new(),
            bytes: 0,
        }
    }

    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.by_byte.len() < TIMERS_MAX
    }

    /// One more waits.
    pub fn insert(&mut self, timer: Timer) {
        if let Some(other) = self.by_byte.insert(timer.byte, timer) {
            self.forget(other);
        }
        self.bytes += timer.bytes();
        self.by_time.insert(timer.place(), What { queue: timer.queue, length: timer.length, key: timer.key });
        if timer.key != 0 {
            let lowest = self.by_key.entry(timer.key).or_insert(timer.byte);
            if *lowest != timer.byte {
                self.namesakes.insert((timer.key, timer.byte.max(*lowest)));
                *lowest = timer.byte.min(*lowest);
            }
        }
    }

    /// The one whose payload is at this log byte waits no more. Returns it, if one did.
    pub fn remove(&mut self, byte: u64) -> Option<Timer> {
        let timer = self.by_byte.remove(&byte)?;
        self.forget(timer);
        Some(timer)
    }

    /// The one at this log byte, if it still waits, is due at another time.
    pub fn postpone(&mut self, byte: u64, due_ms: u64) {
        if let Some(timer) = self.by_byte.get_mut(&byte) {
            let what = self.by_time.remove(&timer.place()).expect("it waits");
            timer.due_ms = due_ms;
            self.by_time.insert(timer.place(), what);
        }
    }

    /// Drops those of topics that are not wanted. Cost: one pass over all.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let gone: Vec<u64> = self.iter().filter(|timer| !keep(timer.queue.topic)).map(|timer| timer.byte).collect();
        gone.into_iter().for_each(|byte| _ = self.remove(byte));
    }

    /// The one at this log byte, if it waits.
    pub fn get(&self, byte: u64) -> Option<Timer> {
        self.by_byte.get(&byte).copied()
    }

    /// Those behind a [`place`](Timer::place), in the order of time.
    pub fn after(&self, place: (u64, u64)) -> impl Iterator<Item = Timer> {
        let behind = (Bound::Excluded(place), Bound::Unbounded);
        self.by_time.range(behind).map(|(place, what)| what.at(*place))
    }

    /// All, in the order of time.
    pub fn iter(&self) -> impl Iterator<Item = Timer> {
        self.by_time.iter().map(|(place, what)| what.at(*place))
    }

    /// Those found by a key, from this log byte on, in the order of the log. Strangers may have the same one.
    pub fn with_key(&self, key: u32, from: u64) -> impl Iterator<Item = Timer> {
        let others = self.namesakes.range((key, from)..=(key, u64::MAX)).map(|(_, byte)| byte);
        self.by_key
            .get(&key)
            .into_iter()
            .filter(move |byte| **byte >= from)
            .chain(others)
            .filter_map(|byte| self.get(*byte))
    }

    /// Those whose payloads are at log bytes from `from` on, below `to`.
    pub fn between(&self, from: u64, to: u64) -> impl Iterator<Item = Timer> {
        self.by_byte.range(from..to.max(from)).map(|(_, timer)| *timer)
    }

    /// The one that lies lowest in the log.
    pub fn lowest(&self) -> Option<Timer> {
        self.by_byte.first_key_value().map(|(_, timer)| *timer)
    }

    /// All but `by_byte` forgets it.
    fn forget(&mut self, timer: Timer) {
        self.by_time.remove(&timer.place());
        if timer.key != 0 && !self.namesakes.remove(&(timer.key, timer.byte)) {
            match self.namesakes.range((timer.key, 0)..=(timer.key, u64::MAX)).next().copied() {
                Some(next) => {
                    self.namesakes.remove(&next);
                    self.by_key.insert(timer.key, next.1);
                }
                None => _ = self.by_key.remove(&timer.key),
            }
        }
        self.bytes -= timer.bytes();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.by_byte.len()
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
        let mut timers = Timers::new(1);
        for (due_ms, byte) in [(30, 1), (10, 2), (20, 3), (10, 4), (15, 5), (15, 5)] {
            let queue = QueueKey { topic: byte as u32 % 5, queue: 0 };
            timers.insert(Timer { due_ms, byte, queue, length: byte as u32, key: byte as u32 / 2 });
        }
        let bytes = |timers: &mut dyn Iterator<Item = Timer>| timers.map(|timer| timer.byte).collect::<Vec<_>>();
        assert_eq!((timers.lowest().map(|timer| timer.byte), timers.len(), timers.bytes()), (Some(1), 5, 5 * 32 + 15));
        assert_eq!(bytes(&mut timers.between(2, 4)), [2, 3]);
        assert_eq!(timers.between(5, 2).count(), 0);
        assert_eq!(bytes(&mut timers.with_key(2, 0)), [4, 5]);
        let [four, five] = [4, 5].map(|byte| timers.get(byte).expect("it waits"));
        for (gone, left) in [(four, [5]), (five, [4])] {
            timers.remove(gone.byte);
            assert_eq!(bytes(&mut timers.with_key(2, 0)), left);
            timers.insert(gone);
            assert_eq!(bytes(&mut timers.with_key(2, 0)), [4, 5], "in the order of the log");
        }
        assert_eq!(timers.with_key(0, 0).count(), 0, "it is no key");
        timers.retain_topics(&|topic| topic != 0);
        assert_eq!((timers.len(), timers.bytes()), (4, 4 * 32 + 10));
        assert_eq!(bytes(&mut timers.with_key(2, 0)), [4]);
        assert_eq!(bytes(&mut timers.iter()), [2, 4, 3, 1]);
        assert_eq!(bytes(&mut timers.after((10, 2))), [4, 3, 1]);
        timers.postpone(2, 25);
        timers.postpone(5, 1);
        let mut order = Vec::new();
        while let Some(timer) = { timers.iter().next() } {
            assert_eq!(timers.get(timer.byte), Some(timer));
            order.push((timer.byte, timer.due_ms));
            timers.remove(timer.byte);
        }
        assert_eq!(order, [(4, 10), (3, 20), (2, 25), (1, 30)]);
        assert!(timers.len() == 0 && timers.bytes() == 0 && timers.lowest().is_none() && timers.has_room());
        assert!(timers.by_time.is_empty() && timers.by_key.is_empty() && timers.namesakes.is_empty());
    }
}
