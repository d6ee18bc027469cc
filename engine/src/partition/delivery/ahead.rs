//! Delayed messages that are soon due and not in memory, or will not be by then: they are read in the order of the log
//! some while before, or copied while they are there, and kept until it is their time.
//!
//! Where many wait, those of the next second lie close together in the log: a few large reads bring what would be a
//! small one for each. What lies between them is not kept.

use crate::limits::{DUE_BYTES_MAX, LOAD_BYTES};
use crate::loads::LoadId;
use crate::timers::Timers;
use bytes::Bytes;
use std::collections::BTreeMap;

/// Messages are read this long before they are due, at least; and at most twice as long. Milliseconds.
const AHEAD_MS: u64 = 500;
/// Timers looked at in one turn.
const SLICE: usize = 1024;
/// Messages this near each other are read at once: what lies between costs less than another read. Bytes.
const NEAR_BYTES: u64 = 16 << 10;

/// Messages that lie near each other, by log byte, with their lengths; in the order of the log.
pub type Group = Vec<(u64, u32)>;

/// What is read ahead. Cost: the messages, at most [`DUE_BYTES_MAX`], and about 100 bytes for each.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The place in the order of time up to which messages were chosen.
    upto: (u64, u64),
    /// More are to be chosen before the first is read.
    is_choosing: bool,
    /// When the first of those chosen last is due.
    first_ms: u64,
    /// The floor of what is in memory, when it was looked at last; and what it will be when those are due.
    floor: (u64, u64),
    leaves: u64,
    /// Those that no read was begun for, in the order of the log.
    plan: BTreeMap<u64, u32>,
    under_way: Vec<(LoadId, Group)>,
    /// All of them, by log byte.
    messages: BTreeMap<u64, Chosen>,
    /// Their bytes.
    bytes: u64,
}

#[derive(Debug)]
struct Chosen {
    length: u32,
    /// `None`: on its way.
    message: Option<Bytes>,
}

/// What is known of a message that is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due {
    Here(Bytes),
    Coming,
    /// It was not chosen, or could not be read.
    Unknown,
}

impl Ahead {
    /// Chooses what is to be kept until it is due: a slice of the timers. `floor`: below this log byte the messages are
    /// to be read; those above it are `here`, and the floor rises.
    pub fn choose(&mut self, timers: &Timers, floor: u64, here: impl Fn(u64, u32) -> Option<Bytes>, now_ms: u64) {
        if !self.is_choosing {
            let next = timers.after(self.upto).next().filter(|_| self.may_choose());
            let Some(next) = next.filter(|next| next.due_ms <= now_ms + AHEAD_MS) else { return };
            (self.is_choosing, self.first_ms) = (true, next.due_ms);
            let (was, then_ms) = std::mem::replace(&mut self.floor, (floor, now_ms));
            // As much again as since the last time, in as much time.
            let rise = floor.saturating_sub(was) * 2 * AHEAD_MS / now_ms.saturating_sub(then_ms).max(1);
            self.leaves = floor + rise;
        }
        let until_ms = now_ms + 2 * AHEAD_MS;
        let (mut seen, mut leaving) = (0, Group::new());
        for timer in timers.after(self.upto).take_while(|timer| timer.due_ms <= until_ms).take(SLICE) {
            let length = u64::from(timer.length);
            if self.bytes > 0 && self.bytes + length > DUE_BYTES_MAX {
                break;
            }
            seen += 1;
            self.upto = timer.place();
            if timer.byte >= self.leaves.max(floor) || self.messages.contains_key(&timer.byte) {
                continue;
            }
            self.messages.insert(timer.byte, Chosen { length: timer.length, message: None });
            self.bytes += length;
            if timer.byte < floor {
                self.plan.insert(timer.byte, timer.length);
            } else {
                leaving.push((timer.byte, timer.length));
            }
        }
        self.is_choosing = seen == SLICE;
        self.keep(leaving, here);
    }

    fn may_choose(&self) -> bool {
        self.plan.is_empty() && self.bytes <= DUE_BYTES_MAX / 2
    }

    /// When [`choose`](Ahead::choose) has something to do though nothing happens.
    pub fn deadline_ms(&self, timers: &Timers) -> u64 {
        if self.is_choosing {
            return 0;
        }
        let next = timers.after(self.upto).next().filter(|_| self.may_choose());
        next.map_or(u64::MAX, |next| next.due_ms.saturating_sub(AHEAD_MS))
    }

    /// Whether something that is due waits for a read that was not begun.
    pub fn is_late(&self, now_ms: u64) -> bool {
        !self.plan.is_empty() && self.first_ms <= now_ms
    }

    /// What is to be read next, together.
    pub fn next_group(&mut self) -> Option<Group> {
        if self.is_choosing {
            return None;
        }
        let (first, length) = self.plan.pop_first()?;
        let mut end = first + u64::from(length);
        let mut group = vec![(first, length)];
        while let Some(next) = self.plan.first_entry() {
            let to = next.key() + u64::from(*next.get());
            if *next.key() > end + NEAR_BYTES || to - first > u64::from(LOAD_BYTES) {
                break;
            }
            end = to;
            group.push(next.remove_entry());
        }
        Some(group)
    }

    /// A read is under way that brings these, or some of them.
    pub fn await_load(&mut self, load: LoadId, group: Group) {
        self.under_way.push((load, group));
    }

    /// A read is back: what it should have brought.
    pub fn came(&mut self, load: LoadId) -> Option<Group> {
        let index = self.under_way.iter().position(|(other, _)| *other == load)?;
        Some(self.under_way.swap_remove(index).1)
    }

    /// Keeps copies of messages that are `here`, in one piece of memory; those of a group for which there is none are
    /// read when they are due.
    pub fn keep(&mut self, group: Group, here: impl Fn(u64, u32) -> Option<Bytes>) {
        let mut piece = Vec::with_capacity(group.iter().map(|(_, length)| *length as usize).sum());
        let mut copied = Vec::with_capacity(group.len());
        for (byte, length) in group {
            let wanted = self.messages.contains_key(&byte);
            match here(byte, length).filter(|_| wanted) {
                Some(message) => {
                    copied.push((byte, piece.len()..piece.len() + message.len()));
                    piece.extend_from_slice(&message);
                }
                None => self.forget(byte),
            }
        }
        let piece = Bytes::from(piece);
        for (byte, part) in copied {
            self.messages.get_mut(&byte).expect("it is wanted").message = Some(piece.slice(part));
        }
    }

    /// The message at a log byte, if it was read; it is not kept any longer.
    pub fn take(&mut self, byte: u64) -> Due {
        let Some(chosen) = self.messages.get_mut(&byte) else { return Due::Unknown };
        let Some(message) = chosen.message.take() else { return Due::Coming };
        self.forget(byte);
        Due::Here(message)
    }

    /// It was taken too early.
    pub fn give_back(&mut self, byte: u64, message: Bytes) {
        let length = message.len() as u32;
        if self.messages.insert(byte, Chosen { length, message: Some(message) }).is_none() {
            self.bytes += u64::from(length);
        }
    }

    /// Only those that these timers name wait still. Cost: one pass over all.
    pub fn retain(&mut self, timers: &Timers) {
        let is_gone = |byte: &&u64| timers.get(**byte).is_none();
        let gone: Vec<u64> = self.messages.keys().filter(is_gone).copied().collect();
        gone.into_iter().for_each(|byte| self.forget(byte));
    }

    /// The message at a log byte waits no more.
    pub fn forget(&mut self, byte: u64) {
        if let Some(chosen) = self.messages.remove(&byte) {
            self.bytes -= u64::from(chosen.length);
            self.plan.remove(&byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::QueueKey;
    use crate::timers::Timer;

    const NOW: u64 = 1_000_000;

    fn timer(due_ms: u64, byte: u64, length: u32) -> Timer {
        Timer { due_ms, byte, queue: QueueKey { topic: 1, queue: 0 }, length, key: 0 }
    }

    fn timers(list: &[Timer]) -> Timers {
        let mut timers = Timers::new(1);
        list.iter().for_each(|timer| timers.insert(*timer));
        timers
    }

    fn nowhere(_: u64, _: u32) -> Option<Bytes> {
        None
    }

    fn text(byte: u64, length: u32) -> Option<Bytes> {
        Some(vec![byte as u8; length as usize].into())
    }

    #[test]
    fn what_is_soon_due_is_read_in_the_order_of_the_log() {
        let far = 2_000_000;
        let timers = timers(&[
            timer(NOW + 10, 9_000, 100),
            timer(NOW + 20, 500, 100),
            timer(NOW + 30, far, 100),
            timer(NOW + 990, 700, 100),
            timer(NOW + 1_001, 800, 100),
            timer(NOW + 40, 3_000_000, 100),
        ]);
        let mut ahead = Ahead::default();
        assert_eq!(ahead.deadline_ms(&timers), NOW + 10 - AHEAD_MS);
        ahead.choose(&timers, 2_500_000, nowhere, NOW - 2 * AHEAD_MS);
        assert_eq!((ahead.bytes, ahead.next_group()), (0, None), "it is too early");
        ahead.choose(&timers, 2_500_000, nowhere, NOW);
        assert!(!ahead.is_late(NOW + 9) && ahead.is_late(NOW + 10) && ahead.deadline_ms(&timers) == u64::MAX);
        assert_eq!(ahead.take(500), Due::Coming);
        assert_eq!(ahead.next_group(), Some(vec![(500, 100), (700, 100), (9_000, 100)]));
        assert_eq!((ahead.next_group(), ahead.next_group()), (Some(vec![(far, 100)]), None));
        assert_eq!(ahead.take(3_000_000), Due::Unknown, "it is in memory");
        assert_eq!(ahead.deadline_ms(&timers), NOW + 1_001 - AHEAD_MS);

        ahead.await_load(LoadId(1), vec![(500, 100), (700, 100), (9_000, 100)]);
        ahead.await_load(LoadId(2), vec![(far, 100)]);
        ahead.forget(700);
        let group = ahead.came(LoadId(1)).expect("it was awaited");
        ahead.keep(group, |byte, length| text(byte, length).filter(|_| byte != 9_000));
        assert_eq!((ahead.came(LoadId(1)), ahead.bytes), (None, 200));
        assert_eq!([ahead.take(700), ahead.take(9_000), ahead.take(far)], [Due::Unknown, Due::Unknown, Due::Coming]);
        let message = text(500, 100).expect("any");
        assert_eq!((ahead.take(500), ahead.bytes), (Due::Here(message.clone()), 100));
        ahead.give_back(500, message.clone());
        assert_eq!((ahead.take(500), ahead.take(500)), (Due::Here(message), Due::Unknown));
        ahead.retain(&Timers::new(1));
        assert_eq!((ahead.bytes, ahead.messages.len()), (0, 0));
    }

    #[test]
    fn what_will_have_left_the_memory_is_copied_before() {
        let timers = timers(&[timer(NOW, 10, 5), timer(NOW + 600, 1_500, 5), timer(NOW + 600, 2_500, 5)]);
        let mut ahead = Ahead::default();
        ahead.choose(&timers, 0, text, NOW - AHEAD_MS);
        assert_eq!(ahead.take(10), Due::Unknown, "nothing leaves");
        // 1,000 bytes in half a second: twice as many in a second.
        ahead.choose(&timers, 1_000, text, NOW + 100);
        assert_eq!((ahead.next_group(), ahead.bytes), (None, 10));
        let all = [10, 1_500, 2_500].map(|byte| ahead.take(byte));
        assert_eq!(all, [Due::Unknown, Due::Here(text(1_500, 5).unwrap()), Due::Here(text(2_500, 5).unwrap())]);
    }

    #[test]
    fn its_memory_is_bounded_and_the_choice_goes_on() {
        let length = 1 << 20;
        let list: Vec<Timer> = (0..2_000).map(|number| timer(NOW + number / 10, number << 20, length)).collect();
        let timers = timers(&list);
        let mut ahead = Ahead::default();
        let mut came = 0;
        while came < 2_000 {
            ahead.choose(&timers, 1 << 40, nowhere, NOW);
            assert!(ahead.bytes <= DUE_BYTES_MAX && ahead.bytes > 0);
            while let Some(group) = ahead.next_group() {
                assert_eq!(group, [(came << 20, length)], "one of these fills a read");
                ahead.forget(came << 20);
                came += 1;
            }
        }
        assert_eq!((ahead.bytes, ahead.deadline_ms(&timers)), (0, u64::MAX));
    }
}
