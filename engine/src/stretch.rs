//! Stretches: the parts of the log that have no run yet. The newest one grows; it is *frozen* when it is long
//! enough or the log enters another segment, so that each run's messages lie in one segment. A frozen stretch
//! is nothing but two log bytes: its messages stay where they are in the index until its run is durable.
//!
//! While a run is written, the stretches that wait behind it grow together: the further the writing of runs is
//! behind, the larger is the next run, and the less of it is files made and synced.

use crate::limits::{STRETCH_ITEMS_MAX, STRETCHES_JOINED, STRETCHES_MAX};
use crate::log::End;
use std::collections::VecDeque;

/// A part of the log that is to become a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The log byte behind the stretch before it.
    pub from: u64,
    /// The log at its end: behind a whole batch.
    pub end: End,
    /// Messages in it.
    pub entries: u64,
    /// Keys in it.
    pub keys: u64,
}

/// All of a partition's.
#[derive(Debug)]
pub struct Stretches {
    bytes_wanted: u64,
    frozen: VecDeque<Stretch>,
    live: Stretch,
    /// The log byte where the newest one's messages begin, and where their segment ends.
    begin: u64,
    segment_end: u64,
    /// The newest frozen one lies in the same segment as the one that grows.
    joinable: bool,
}

impl Stretches {
    /// The log up to `end` has its runs.
    pub fn new(bytes_wanted: u64, end: End) -> Stretches {
        let live = Stretch { from: end.head, end, entries: 0, keys: 0 };
        Stretches { bytes_wanted, frozen: VecDeque::new(), live, begin: end.head, segment_end: 0, joinable: false }
    }

    /// A batch that begins at log byte `base`, in a segment that ends at `segment_end`, is about to be applied.
    /// Returns whether a stretch was frozen.
    pub fn enter(&mut self, base: u64, segment_end: u64) -> bool {
        if base < self.segment_end {
            return false;
        }
        let froze = self.freeze();
        (self.begin, self.segment_end, self.joinable) = (base, segment_end, false);
        froze
    }

    /// A batch with so many messages and keys was applied; the log stands at `end`. Returns whether a stretch
    /// was frozen.
    pub fn leave(&mut self, end: End, entries: u64, keys: u64) -> bool {
        self.live.end = end;
        self.live.entries += entries;
        self.live.keys += keys;
        end.head - self.begin >= self.bytes_wanted && self.freeze()
    }

    fn freeze(&mut self) -> bool {
        let end = self.live.end;
        self.begin = end.head;
        if end.head == self.live.from {
            return false;
        }
        let joined = STRETCHES_JOINED * self.bytes_wanted;
        // The first one may be on its way to the disk.
        match self.frozen.iter_mut().skip(1).next_back() {
            Some(last) if self.joinable && end.head - last.from <= joined => {
                last.end = end;
                last.entries += self.live.entries;
                last.keys += self.live.keys;
            }
            _ => self.frozen.push_back(self.live),
        }
        self.joinable = true;
        self.live = Stretch { from: end.head, end, entries: 0, keys: 0 };
        true
    }

    /// The oldest frozen one.
    pub fn first(&self) -> Option<Stretch> {
        self.frozen.front().copied()
    }

    /// The oldest frozen one has its run.
    pub fn pop(&mut self) {
        self.frozen.pop_front().expect("its run was written");
    }

    /// Whether so much waits for its runs that no message is taken any more.
    pub fn is_full(&self) -> bool {
        self.is_full_below(u64::MAX)
    }

    /// Whether so much of the log below `durable` waits for its runs that no more should be read.
    pub fn is_full_below(&self, durable: u64) -> bool {
        let (mut bytes, mut items) = (0, 0);
        for stretch in self.frozen.iter().filter(|stretch| stretch.end.head <= durable) {
            bytes += stretch.end.head - stretch.from;
            items += stretch.entries + stretch.keys;
        }
        bytes >= STRETCHES_MAX * self.bytes_wanted || items >= STRETCH_ITEMS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_end_when_long_enough_and_where_a_segment_does() {
        let end = |head| End { head, chain: head as u32, epoch: 1 };
        let mut stretches = Stretches::new(1000, end(0));
        assert!(!stretches.enter(4096, 10_000), "an empty one is not frozen");
        assert!(!stretches.leave(end(5000), 2, 3));
        assert!(!stretches.enter(5000, 10_000));
        assert!(stretches.leave(end(5096), 1, 1), "a thousand bytes from where its messages begin");
        assert!(!stretches.leave(end(5200), 1, 0));
        assert!(stretches.enter(14_096, 20_000), "another segment");
        assert!(!stretches.leave(end(15_000), 0, 0));
        let frozen = Stretch { from: 0, end: end(5096), entries: 3, keys: 4 };
        assert_eq!(stretches.first(), Some(frozen));
        stretches.pop();
        assert_eq!(stretches.first(), Some(Stretch { from: 5096, end: end(5200), entries: 1, keys: 0 }));
    }

    #[test]
    fn stretches_that_wait_grow_together_within_their_segment() {
        let end = |head| End { head, chain: 0, epoch: 1 };
        let mut stretches = Stretches::new(1000, end(0));
        let spans = |stretches: &Stretches| -> Vec<(u64, u64, u64)> {
            stretches.frozen.iter().map(|stretch| (stretch.from, stretch.end.head, stretch.entries)).collect()
        };
        stretches.enter(0, 7000);
        for number in 1..=7 {
            assert!(stretches.leave(end(number * 1000), 1, 1));
        }
        assert_eq!(
            spans(&stretches),
            [(0, 1000, 1), (1000, 5000, 4), (5000, 7000, 2)],
            "four at most, never the first"
        );
        stretches.enter(7000, 1 << 40);
        assert!(stretches.leave(end(8000), 1, 1));
        assert_eq!(spans(&stretches).last(), Some(&(7000, 8000, 1)), "another segment");
        assert!(!stretches.is_full() && stretches.is_full_below(8000) == stretches.is_full());
        for number in 9..=16 {
            assert!(!stretches.is_full());
            stretches.leave(end(number * 1000), 1, 1);
        }
        assert!(stretches.is_full() && !stretches.is_full_below(15_999));
        let mut stretches = Stretches::new(1 << 30, end(0));
        stretches.enter(0, 1 << 40);
        stretches.leave(end(1 << 30), STRETCH_ITEMS_MAX - 1, 1);
        assert!(stretches.is_full(), "many small messages");
    }
}
