//! Delayed messages that are still in memory and about to leave it: those that are due within some seconds are copied
//! then, and kept until it is their time. So they are never read.

use super::{Here, TURNS_AHEAD, prefetch_message};
use crate::limits::LEAVING_BYTES_MAX;
use crate::timers::{Timer, Timers};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Kept is what is due within this time. Milliseconds.
const KEEP_MS: u64 = 4000;
/// Where the last of this many parts of the room is used, less and less time counts: what is due first needs it most.
const SCARCE_PARTS: u64 = 4;
/// Timers looked at in one turn.
const SLICE: usize = 1024;

/// What is kept. Cost: the messages, at most [`LEAVING_BYTES_MAX`], and about 60 bytes for each.
#[derive(Debug, Default)]
pub struct Leaving {
    /// Those below this log byte were looked at, or are gone from memory.
    seen: u64,
    /// By when they are due; in the order of the log. One that went leaves nothing at its place, until it is first.
    moments: BTreeMap<u64, VecDeque<(u64, Bytes)>>,
    /// Their bytes.
    bytes: u64,
}

impl Leaving {
    /// Looks at a slice of what is about to leave: the tail begins at `floor`, and below `leaves` it ends soon. Nobody
    /// else chooses what is due up to `chosen` in the order of time.
    pub fn look(&mut self, timers: &Timers, floor: u64, leaves: u64, chosen: (u64, u64), here: Here<'_>, now_ms: u64) {
        self.seen = self.seen.max(floor);
        if leaves <= self.seen {
            return;
        }
        let mut last = None;
        for (count, timer) in timers.between(self.seen, leaves).take(SLICE).enumerate() {
            last = Some(timer.byte).filter(|_| count + 1 == SLICE);
            if timer.place() <= chosen || timer.due_ms <= now_ms + self.time_ms() {
                self.keep(timer, here);
            }
        }
        self.seen = last.map_or(leaves, |last| last + 1);
    }

    /// How far ahead one may be due that is kept.
    fn time_ms(&self) -> u64 {
        let free = LEAVING_BYTES_MAX.saturating_sub(self.bytes);
        KEEP_MS.min(KEEP_MS * free / (LEAVING_BYTES_MAX / SCARCE_PARTS))
    }

    /// Whether one need not be read: it is kept, or it will be looked at before it leaves, or it can be kept now.
    pub fn covers(&mut self, timer: Timer, here: Here<'_>) -> bool {
        timer.byte >= self.seen || self.find(timer.place()).is_some() || self.keep(timer, here)
    }

    fn keep(&mut self, timer: Timer, here: Here<'_>) -> bool {
        if self.bytes + u64::from(timer.length) > LEAVING_BYTES_MAX {
            return false;
        }
        let Some(message) = here(timer.byte, timer.length) else { return false };
        // A memory of its own: they go in another order than they came.
        self.put(timer.place(), Bytes::copy_from_slice(&message));
        true
    }

    /// Keeps a message, at least for now.
    pub fn put(&mut self, (due_ms, byte): (u64, u64), message: Bytes) {
        self.bytes += message.len() as u64;
        let moment = self.moments.entry(due_ms).or_default();
        if moment.back().is_none_or(|(last, _)| *last < byte) {
            moment.push_back((byte, message));
            return;
        }
        match moment.binary_search_by_key(&byte, |(byte, _)| *byte) {
            Ok(index) => self.bytes -= std::mem::replace(&mut moment[index].1, message).len() as u64,
            Err(index) => moment.insert(index, (byte, message)),
        }
    }

    /// The message at a place in the order of time; it is not kept any longer.
    pub fn take(&mut self, place: (u64, u64)) -> Option<Bytes> {
        let index = self.find(place)?;
        let moment = self.moments.get_mut(&place.0).expect("it is there");
        let message = std::mem::take(&mut moment[index].1);
        self.bytes -= message.len() as u64;
        while moment.front().is_some_and(|(_, message)| message.is_empty()) {
            moment.pop_front();
        }
        match moment.get(TURNS_AHEAD) {
            Some((_, next)) => prefetch_message(next),
            None if moment.is_empty() => _ = self.moments.remove(&place.0),
            None => {}
        }
        Some(message)
    }

    fn find(&self, (due_ms, byte): (u64, u64)) -> Option<usize> {
        let moment = self.moments.get(&due_ms)?;
        let index = match moment.front() {
            Some((first, _)) if *first == byte => 0,
            _ => moment.binary_search_by_key(&byte, |(byte, _)| *byte).ok()?,
        };
        Some(index).filter(|index| !moment[*index].1.is_empty())
    }

    /// Only those that these timers name wait still. Cost: one pass over all.
    pub fn retain(&mut self, timers: &Timers) {
        let places = self.moments.iter().flat_map(|(due_ms, moment)| moment.iter().map(|(byte, _)| (*due_ms, *byte)));
        let is_gone = |place: &(u64, u64)| timers.get(place.1).is_none_or(|timer| timer.place() != *place);
        let gone: Vec<(u64, u64)> = places.filter(is_gone).collect();
        gone.into_iter().for_each(|place| _ = self.take(place));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::QueueKey;

    const NOW: u64 = 1_000_000;

    fn timers(list: &[(u64, u64)], length: u32) -> Timers {
        let mut timers = Timers::new(1);
        let queue = QueueKey { topic: 1, queue: 0 };
        list.iter()
            .for_each(|(due_ms, byte)| timers.insert(Timer { due_ms: *due_ms, byte: *byte, queue, length, key: 0 }));
        timers
    }

    fn text(byte: u64, length: u32) -> Option<Bytes> {
        Some(vec![byte as u8; length as usize].into())
    }

    #[test]
    fn what_is_soon_due_is_kept_as_it_leaves() {
        let list = [(NOW + KEEP_MS, 10), (NOW + KEEP_MS + 1, 20), (NOW + 7, 30), (NOW + 7, 40), (NOW + 7, 900)];
        let timers = timers(&list, 5);
        let [first, late, third, fourth, high] = list;
        let mut leaving = Leaving::default();
        leaving.look(&timers, 10, 10, (0, 0), &text, NOW);
        assert_eq!((leaving.bytes, leaving.take(first)), (0, None), "nothing leaves");
        leaving.look(&timers, 10, 500, (0, 0), &text, NOW);
        assert_eq!((leaving.bytes, leaving.take(late)), (15, None), "it is early");
        let timer = |place: (u64, u64)| timers.get(place.1).expect("it waits");
        assert!(leaving.covers(timer(third), &|_, _| None) && leaving.covers(timer(high), &|_, _| None));
        assert!(!leaving.covers(timer(late), &|_, _| None) && leaving.covers(timer(late), &text));
        assert_eq!(leaving.take(fourth), text(40, 5), "not the first of its time");
        let message = leaving.take(third).expect("it is there");
        assert_eq!((leaving.take(third), leaving.take(fourth), leaving.moments.len()), (None, None, 2));
        leaving.put(third, message);
        assert_eq!((leaving.take(third), leaving.bytes), (text(30, 5), 10));
        leaving.retain(&Timers::new(1));
        assert_eq!((leaving.bytes, leaving.moments.len()), (0, 0));
        leaving.look(&timers, 800, 1000, (0, 0), &|_, _| None, NOW);
        assert_eq!((leaving.bytes, leaving.seen), (0, 1000), "it was gone already");
    }

    #[test]
    fn its_memory_is_bounded_and_what_is_due_first_gets_the_last_of_it() {
        const LENGTH: u64 = 1 << 20;
        let count = 2 * LEAVING_BYTES_MAX / LENGTH;
        let list: Vec<(u64, u64)> = (0..count).map(|number| (NOW + KEEP_MS - number % 100, number * LENGTH)).collect();
        let all = timers(&list, LENGTH as u32);
        let message = Bytes::from(vec![0; LENGTH as usize]);
        let mut leaving = Leaving::default();
        leaving.look(&all, 0, u64::MAX, (0, 0), &|_, _| Some(message.clone()), NOW);
        let kept = leaving.bytes;
        assert!((LEAVING_BYTES_MAX / SCARCE_PARTS * (SCARCE_PARTS - 1)..LEAVING_BYTES_MAX).contains(&kept));
        // It is chosen by nobody else, or due soon.
        leaving.seen = 0;
        let soon: Vec<(u64, u64)> = (0..count).map(|number| (NOW + 1, number * LENGTH + 7)).collect();
        leaving.look(
            &timers(&soon, LENGTH as u32),
            0,
            u64::MAX,
            (NOW + 1, u64::MAX),
            &|_, _| Some(message.clone()),
            NOW,
        );
        assert!(leaving.bytes > kept && leaving.bytes <= LEAVING_BYTES_MAX);
        assert!(leaving.bytes + LENGTH > LEAVING_BYTES_MAX, "{} are kept", leaving.bytes);
    }
}
