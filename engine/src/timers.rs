//! Messages that wait for their time. The log holds them; here is only when which one is due.
//!
//! Cost: at most some 160 bytes for each that waits, 20 less if nobody can recall it; two thirds of that where many are
//! due in the same millisecond.

use crate::buffer::prefetch;
use crate::format::{QueueKey, RECORD_HEADER_BYTES};
use crate::limits::TIMERS_MAX;
use ahash::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

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

/// Log bytes whose messages are listed together: a bit more than a few messages. As a power of two.
const PAGE_BITS: u32 = 16;

/// All that wait, earliest first.
///
/// There and here stands all that is known: to go through them looks nothing up, in the order of time to deliver them,
/// in the order of the log for a checkpoint. Both are lists of short lists, to which nearly all are added at the end, as
/// they come in the order of the log; so one that comes or goes touches little memory, where many wait.
#[derive(Debug)]
pub struct Timers {
    by_time: BTreeMap<u64, Moment>,
    by_byte: BTreeMap<u64, Page>,
    /// The lowest log byte of each key, and those of its namesakes: rarely are there any.
    by_key: HashMap<u32, u64, RandomState>,
    namesakes: BTreeSet<(u32, u64)>,
    count: usize,
    bytes: u64,
}

/// Those whose payloads are in the same 64 KiB of log, in its order.
type Page = SmallVec<[Timer; 1]>;

/// Those due in the same millisecond, in the order of the log. However many, one that goes costs a search: it leaves its
/// place empty, and they move once half of the places are.
#[derive(Debug, Default)]
struct Moment {
    list: SmallVec<[What; 1]>,
    /// Empty places at the front; and behind it.
    over: u32,
    holes: u32,
}

/// A timer without its time.
#[derive(Clone, Copy, Debug)]
struct What {
    byte: u64,
    queue: QueueKey,
    length: u32,
    key: u32,
}

/// The length of one that is gone: no record is as long.
const GONE: u32 = u32::MAX;

impl What {
    fn at(self, due_ms: u64) -> Timer {
        Timer { due_ms, byte: self.byte, queue: self.queue, length: self.length, key: self.key }
    }
}

impl Moment {
    fn insert(&mut self, timer: Timer) {
        let Timer { byte, queue, length, key, .. } = timer;
        let index = match self.list.last() {
            Some(last) if last.byte >= byte => self.from(byte),
            _ => self.list.len(),
        };
        self.list.insert(index, What { byte, queue, length, key });
    }

    /// Where those from this log byte on begin.
    fn from(&self, byte: u64) -> usize {
        // What is over at the front may lie above what came later.
        let over = self.over as usize;
        match self.list.get(over) {
            Some(first) if first.byte >= byte => over,
            _ => over + self.list[over..].partition_point(|what| what.byte < byte),
        }
    }

    /// Returns whether none is left.
    fn remove(&mut self, byte: u64) -> bool {
        let index = self.from(byte);
        let what = &mut self.list[index];
        assert!(what.byte == byte && what.length != GONE, "it waits");
        what.length = GONE;
        self.holes += 1;
        while self.list.get(self.over as usize).is_some_and(|what| what.length == GONE) {
            self.over += 1;
            self.holes -= 1;
        }
        let gone = (self.over + self.holes) as usize;
        let left = self.list.len() - gone;
        if left < gone {
            self.list.retain(|what| what.length != GONE);
            shrink(&mut self.list);
            (self.over, self.holes) = (0, 0);
        }
        left == 0
    }

    fn iter(&self, from: usize) -> impl Iterator<Item = &What> {
        self.list[from.max(self.over as usize)..].iter().filter(|what| what.length != GONE)
    }
}

/// Where one at a log byte stands in its page, or would. It is looked for where it stands if they lie evenly, and from
/// there on: that touches less memory than halving.
fn find(page: &Page, byte: u64) -> Result<usize, usize> {
    let inside = byte & ((1 << PAGE_BITS) - 1);
    let mut index = guess(page, inside);
    while index > 0 && page[index - 1].byte >= byte {
        index -= 1;
    }
    while page.get(index).is_some_and(|timer| timer.byte < byte) {
        index += 1;
    }
    if page.get(index).is_some_and(|timer| timer.byte == byte) { Ok(index) } else { Err(index) }
}

fn guess(page: &Page, inside: u64) -> usize {
    ((page.len() as u64 * inside) >> PAGE_BITS) as usize
}

/// Gives memory back of which little is used.
fn shrink<T>(list: &mut SmallVec<[T; 1]>) {
    if list.capacity() >= 4 * list.len() {
        list.shrink_to_fit();
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
            count: 0,
            bytes: 0,
        }
    }

    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.count < TIMERS_MAX
    }

    /// One more waits.
    pub fn insert(&mut self, timer: Timer) {
        let page = self.by_byte.entry(timer.byte >> PAGE_BITS).or_default();
        let index = match page.last() {
            Some(last) if last.byte >= timer.byte => find(page, timer.byte).unwrap_or_else(|index| index),
            _ => page.len(),
        };
        let other = page.get(index).copied().filter(|other| other.byte == timer.byte);
        match other {
            Some(_) => page[index] = timer,
            None => page.insert(index, timer),
        }
        match other {
            Some(other) => self.forget(other),
            None => self.count += 1,
        }
        self.bytes += timer.bytes();
        self.by_time.entry(timer.due_ms).or_default().insert(timer);
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
        let number = byte >> PAGE_BITS;
        let page = self.by_byte.get_mut(&number)?;
        let timer = page.remove(find(page, byte).ok()?);
        shrink(page);
        if page.is_empty() {
            self.by_byte.remove(&number);
        }
        self.count -= 1;
        self.forget(timer);
        Some(timer)
    }

    /// The one at this log byte, if it still waits, is due at another time.
    pub fn postpone(&mut self, byte: u64, due_ms: u64) {
        if let Some(timer) = self.get(byte) {
            self.insert(Timer { due_ms, ..timer });
        }
    }

    /// Drops those of topics that are not wanted. Cost: one pass over all.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let gone: Vec<u64> = self.iter().filter(|timer| !keep(timer.queue.topic)).map(|timer| timer.byte).collect();
        gone.into_iter().for_each(|byte| _ = self.remove(byte));
    }

    /// The one at this log byte, if it waits.
    pub fn get(&self, byte: u64) -> Option<Timer> {
        let page = self.by_byte.get(&(byte >> PAGE_BITS))?;
        find(page, byte).ok().map(|index| page[index])
    }

    /// Fetches what is known of the one at this log byte into the cache: it is removed soon.
    pub fn prefetch(&self, byte: u64) {
        let Some(page) = self.by_byte.get(&(byte >> PAGE_BITS)) else { return };
        let index = guess(page, byte & ((1 << PAGE_BITS) - 1));
        page[index.saturating_sub(2)..page.len().min(index + 3)].iter().step_by(2).for_each(|timer| prefetch(timer));
    }

    /// Those behind a [`place`](Timer::place), in the order of time.
    pub fn after(&self, (due_ms, byte): (u64, u64)) -> impl Iterator<Item = Timer> {
        let from = move |at_ms: u64, moment: &Moment| match byte.checked_add(1) {
            _ if at_ms > due_ms => 0,
            Some(byte) => moment.from(byte),
            None => moment.list.len(),
        };
        self.by_time
            .range(due_ms..)
            .flat_map(move |(due_ms, moment)| moment.iter(from(*due_ms, moment)).map(|what| what.at(*due_ms)))
    }

    /// All, in the order of time.
    pub fn iter(&self) -> impl Iterator<Item = Timer> {
        self.by_time.iter().flat_map(|(due_ms, moment)| moment.iter(0).map(|what| what.at(*due_ms)))
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
        let pages = self.by_byte.range(from >> PAGE_BITS..);
        let timers = pages.flat_map(|(_, page)| page).skip_while(move |timer| timer.byte < from).copied();
        timers.take_while(move |timer| timer.byte < to)
    }

    /// The one that lies lowest in the log.
    pub fn lowest(&self) -> Option<Timer> {
        self.by_byte.first_key_value().and_then(|(_, page)| page.first().copied())
    }

    /// All but `by_byte` forgets it.
    fn forget(&mut self, timer: Timer) {
        let moment = self.by_time.get_mut(&timer.due_ms).expect("it waits");
        if moment.remove(timer.byte) {
            self.by_time.remove(&timer.due_ms);
        }
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
        self.count
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
        timers.prefetch(4);
        timers.prefetch(u64::MAX);
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
        assert!(
            timers.by_time.is_empty()
                && timers.by_byte.is_empty()
                && timers.by_key.is_empty()
                && timers.namesakes.is_empty()
        );
    }

    /// Many in the same millisecond and in the same page, gone in any order, against a plain list.
    #[test]
    fn whatever_comes_and_goes_the_order_is_right() {
        let mut random = crate::sim::Random::new(5);
        let (mut timers, mut plain) = (Timers::new(1), BTreeMap::new());
        let queue = QueueKey { topic: 1, queue: 0 };
        for step in 0..20_000 {
            let byte = 1 + random.below(300) * 700;
            let due_ms = 100 + random.below(4) * random.below(50) / 40;
            let key = random.below(3) as u32 * byte as u32;
            match random.below(5) {
                0 | 1 => {
                    timers.insert(Timer { due_ms, byte, queue, length: 5, key });
                    plain.insert(byte, due_ms);
                }
                2 => {
                    timers.postpone(byte, due_ms);
                    plain.entry(byte).and_modify(|at_ms| *at_ms = due_ms);
                }
                _ => assert_eq!(timers.remove(byte).map(|timer| timer.due_ms), plain.remove(&byte), "{step}"),
            }
            if step % 50 == 0 {
                let mut places: Vec<(u64, u64)> = plain.iter().map(|(byte, due_ms)| (*due_ms, *byte)).collect();
                let from = random.below(300) * 700;
                let bytes: Vec<u64> = timers.between(from, from + 90_000).map(|timer| timer.byte).collect();
                assert!(plain.range(from..from + 90_000).map(|(byte, _)| *byte).eq(bytes), "{step}");
                places.sort_unstable();
                assert!(timers.iter().map(|timer| timer.place()).eq(places.iter().copied()), "{step}");
                let behind = (101, from);
                let after = timers.after(behind).map(|timer| timer.place());
                assert!(after.eq(places.into_iter().filter(|place| *place > behind)), "{step}");
                assert_eq!((timers.len(), timers.bytes()), (plain.len(), plain.len() as u64 * 37));
            }
        }
        plain.keys().for_each(|byte| _ = timers.remove(*byte));
        assert!(timers.by_time.is_empty() && timers.by_byte.is_empty() && timers.by_key.is_empty());
    }
}
