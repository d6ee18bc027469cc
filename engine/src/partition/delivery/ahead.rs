//! Delayed messages that are soon due and not in memory: they are read in the order of the log some while before, and
//! kept until it is their time.
//!
//! Where many wait, those of the next second lie close together in the log: a few large reads bring what would be a
//! small one for each. What lies between them is not kept.

use super::{Here, TURNS_AHEAD, prefetch_message};
use crate::limits::{DUE_BYTES_MAX, LOAD_BYTES};
use crate::loads::LoadId;
use crate::timers::{Timer, Timers};
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages are read this long before they are due, at least; and at most twice as long. Milliseconds.
const AHEAD_MS: u64 = 500;
/// Timers looked at in one turn.
const SLICE: usize = 1024;
/// Messages this near each other are read at once: what lies between costs less than another read. Bytes.
const NEAR_BYTES: u64 = 16 << 10;

/// A message that is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its log byte, and its length.
    byte: u64,
    length: u32,
    /// Its number among all that were chosen.
    number: u64,
}

/// Messages that lie near each other, in the order of the log.
pub type Group = Vec<Wanted>;

/// The log bytes that a group lies in.
pub fn range(group: &Group) -> Option<std::ops::Range<u64>> {
    Some(group.first()?.byte..group.last().map(Wanted::end)?)
}

impl Wanted {
    fn end(&self) -> u64 {
        self.byte + u64::from(self.length)
    }
}

/// What is read ahead. Cost: the messages, at most [`DUE_BYTES_MAX`], and about 90 bytes for each.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The place in the order of time up to which messages were chosen.
    upto: (u64, u64),
    /// More are to be chosen before the first is read.
    is_choosing: bool,
    /// When the first of those chosen last is due.
    first_ms: u64,
    /// Those that no read was begun for, the highest in the log first.
    plan: Group,
    under_way: Vec<(LoadId, Group)>,
    /// All of them, in the order of time, which is that of their numbers: they are chosen and used so.
    chosen: VecDeque<Chosen>,
    /// The number of the first.
    first: u64,
    /// Their bytes.
    bytes: u64,
}

#[derive(Debug)]
struct Chosen {
    /// As [`Timer::place`].
    place: (u64, u64),
    length: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Coming,
    Here(Bytes),
    /// It waits no more, or could not be read.
    Gone,
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
    /// Chooses what is to be read and kept until it is due: a slice of the timers, those that are not `elsewhere`.
    pub fn choose(&mut self, timers: &Timers, mut elsewhere: impl FnMut(Timer) -> bool, now_ms: u64) {
        if !self.is_choosing {
            let next = timers.after(self.upto).next().filter(|_| self.may_choose());
            let Some(next) = next.filter(|next| next.due_ms <= now_ms + AHEAD_MS) else { return };
            (self.is_choosing, self.first_ms) = (true, next.due_ms);
        }
        let until_ms = now_ms + 2 * AHEAD_MS;
        let mut seen = 0;
        for timer in timers.after(self.upto).take_while(|timer| timer.due_ms <= until_ms).take(SLICE) {
            let length = u64::from(timer.length);
            if self.bytes > 0 && self.bytes + length > DUE_BYTES_MAX {
                break;
            }
            seen += 1;
            self.upto = timer.place();
            if elsewhere(timer) {
                continue;
            }
            let number = self.first + self.chosen.len() as u64;
            self.chosen.push_back(Chosen { place: timer.place(), length: timer.length, state: State::Coming });
            self.bytes += length;
            self.plan.push(Wanted { byte: timer.byte, length: timer.length, number });
        }
        self.is_choosing = seen == SLICE;
        if !self.is_choosing {
            self.plan.sort_unstable_by_key(|wanted| std::cmp::Reverse(wanted.byte));
        }
    }

    /// The place in the order of time up to which it was chosen.
    pub fn upto(&self) -> (u64, u64) {
        self.upto
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
        let mut group = Group::new();
        while let Some(next) = self.plan.last() {
            if let (Some(first), Some(last)) = (group.first(), group.last())
                && (next.byte > last.end() + NEAR_BYTES || next.end() - first.byte > u64::from(LOAD_BYTES))
            {
                break;
            }
            let next = self.plan.pop().expect("it was just looked at");
            if self.is_coming(next.number) {
                group.push(next);
            }
        }
        Some(group).filter(|group| !group.is_empty())
    }

    fn is_coming(&self, number: u64) -> bool {
        let index = number.checked_sub(self.first);
        let chosen = index.and_then(|index| self.chosen.get(index as usize));
        chosen.is_some_and(|chosen| matches!(chosen.state, State::Coming))
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
    pub fn keep(&mut self, mut group: Group, here: Here<'_>) {
        group.retain(|wanted| self.is_coming(wanted.number));
        let mut piece = Vec::with_capacity(group.iter().map(|wanted| wanted.length as usize).sum());
        group.retain(|wanted| match here(wanted.byte, wanted.length) {
            Some(message) => {
                piece.extend_from_slice(&message);
                true
            }
            None => {
                self.lose((wanted.number - self.first) as usize);
                false
            }
        });
        let (piece, mut from) = (Bytes::from(piece), 0);
        for wanted in group {
            let to = from + wanted.length as usize;
            self.chosen[(wanted.number - self.first) as usize].state = State::Here(piece.slice(from..to));
            from = to;
        }
        self.drop_front();
    }

    /// The message at a place in the order of time, if it was read; it is not kept any longer.
    pub fn take(&mut self, place: (u64, u64)) -> Due {
        let Some(index) = self.find(place) else { return Due::Unknown };
        if matches!(self.chosen[index].state, State::Coming) {
            return Due::Coming;
        }
        let State::Here(message) = self.lose(index) else { return Due::Unknown };
        self.drop_front();
        if let Some(Chosen { state: State::Here(next), .. }) = self.chosen.get(TURNS_AHEAD) {
            prefetch_message(next);
        }
        Due::Here(message)
    }

    /// Only those that these timers name wait still. Cost: one pass over all.
    pub fn retain(&mut self, timers: &Timers) {
        for index in 0..self.chosen.len() {
            let place = self.chosen[index].place;
            if timers.get(place.1).is_none_or(|timer| timer.place() != place) {
                self.lose(index);
            }
        }
        self.drop_front();
    }

    /// The message at a place waits no more, or not there.
    pub fn forget(&mut self, place: (u64, u64)) {
        if let Some(index) = self.find(place) {
            self.lose(index);
            self.drop_front();
        }
    }

    fn find(&self, place: (u64, u64)) -> Option<usize> {
        if self.chosen.front()?.place == place {
            return Some(0);
        }
        self.chosen.binary_search_by_key(&place, |chosen| chosen.place).ok()
    }

    fn lose(&mut self, index: usize) -> State {
        let chosen = &mut self.chosen[index];
        let state = std::mem::replace(&mut chosen.state, State::Gone);
        if !matches!(state, State::Gone) {
            self.bytes -= u64::from(chosen.length);
        }
        state
    }

    fn drop_front(&mut self) {
        while self.chosen.front().is_some_and(|chosen| matches!(chosen.state, State::Gone)) {
            self.chosen.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::QueueKey;

    const NOW: u64 = 1_000_000;

    fn timer(due_ms: u64, byte: u64, length: u32) -> Timer {
        Timer { due_ms, byte, queue: QueueKey { topic: 1, queue: 0 }, length, key: 0 }
    }

    fn timers(list: &[Timer]) -> Timers {
        let mut timers = Timers::new(1);
        list.iter().for_each(|timer| timers.insert(*timer));
        timers
    }

    fn below(floor: u64) -> impl FnMut(Timer) -> bool {
        move |timer| timer.byte >= floor
    }

    fn text(byte: u64, length: u32) -> Option<Bytes> {
        Some(vec![byte as u8; length as usize].into())
    }

    fn places(group: Option<Group>) -> Vec<(u64, u32)> {
        group.into_iter().flatten().map(|wanted| (wanted.byte, wanted.length)).collect()
    }

    #[test]
    fn what_is_soon_due_is_read_in_the_order_of_the_log() {
        let far = 2_000_000;
        let list = [
            timer(NOW + 10, 9_000, 100),
            timer(NOW + 20, 500, 100),
            timer(NOW + 30, far, 100),
            timer(NOW + 990, 700, 100),
            timer(NOW + 1_001, 800, 100),
            timer(NOW + 40, 3_000_000, 100),
        ];
        let timers = timers(&list);
        let [first, second, third, fourth, _, in_memory] = list.map(|timer| timer.place());
        let mut ahead = Ahead::default();
        assert_eq!(ahead.deadline_ms(&timers), NOW + 10 - AHEAD_MS);
        ahead.choose(&timers, below(2_500_000), NOW - 2 * AHEAD_MS);
        assert_eq!((ahead.bytes, ahead.next_group()), (0, None), "it is too early");
        ahead.choose(&timers, below(2_500_000), NOW);
        assert!(!ahead.is_late(NOW + 9) && ahead.is_late(NOW + 10) && ahead.deadline_ms(&timers) == u64::MAX);
        assert_eq!(ahead.take(second), Due::Coming);
        let groups: [Option<Group>; 3] = std::array::from_fn(|_| ahead.next_group());
        let [near, away, none] = groups.clone().map(places);
        assert_eq!(near, [(500, 100), (700, 100), (9_000, 100)]);
        assert_eq!((away.as_slice(), none.as_slice()), (&[(far, 100)][..], &[][..]));
        assert_eq!(groups[0].as_ref().and_then(range), Some(500..9_100));
        assert_eq!(ahead.take(in_memory), Due::Unknown, "it is in memory");
        assert_eq!(ahead.deadline_ms(&timers), NOW + 1_001 - AHEAD_MS);

        for (number, group) in groups.into_iter().flatten().enumerate() {
            ahead.await_load(LoadId(number as u64), group);
        }
        ahead.forget(fourth);
        let group = ahead.came(LoadId(0)).expect("it was awaited");
        ahead.keep(group, &|byte, length| text(byte, length).filter(|_| byte != 9_000));
        assert_eq!((ahead.came(LoadId(0)), ahead.bytes), (None, 200));
        assert_eq!((ahead.chosen.len(), ahead.bytes), (3, 200), "the first is over");
        let all = [first, second, third, fourth, second].map(|place| ahead.take(place));
        let message = Due::Here(text(500, 100).expect("any"));
        assert_eq!(all, [Due::Unknown, message, Due::Coming, Due::Unknown, Due::Unknown]);
        assert_eq!((ahead.chosen.len(), ahead.bytes), (2, 100));
        let group = ahead.came(LoadId(1)).expect("it was awaited, too");
        ahead.retain(&Timers::new(1));
        ahead.keep(group, &text);
        assert_eq!((ahead.bytes, ahead.chosen.len()), (0, 0));
    }

    #[test]
    fn its_memory_is_bounded_and_the_choice_goes_on() {
        let length = 1 << 20;
        let list: Vec<Timer> = (0..2_000).map(|number| timer(NOW + number / 10, number << 20, length)).collect();
        let timers = timers(&list);
        let mut ahead = Ahead::default();
        let mut came = 0;
        while came < 2_000 {
            ahead.choose(&timers, below(u64::MAX), NOW);
            assert!(ahead.bytes <= DUE_BYTES_MAX && ahead.bytes > 0);
            while let Some(group) = ahead.next_group() {
                assert_eq!(places(Some(group)), [(came << 20, length)], "one of these fills a read");
                ahead.forget((NOW + came / 10, came << 20));
                came += 1;
            }
        }
        assert_eq!((ahead.bytes, ahead.deadline_ms(&timers)), (0, u64::MAX));
    }
}
