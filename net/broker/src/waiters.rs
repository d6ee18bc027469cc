//! A table of those who wait: each until a time of its own, unless somebody takes it out before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Deadlines of those who were taken out, beyond as many as wait, before they are thrown away.
const STALE_MAX: usize = 1024;

/// Where one waits, as long as it does.
pub type Seat = u32;

/// See the module. A seat is used again when it is free.
#[derive(Debug)]
pub struct Waiters<T> {
    slots: Vec<Slot<T>>,
    free: Vec<Seat>,
    deadlines: BinaryHeap<Reverse<(u64, Seat, u32)>>,
    count_max: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    waiter: Option<T>,
}

impl<T> Waiters<T> {
    /// Nobody yet, and at most `count_max`, which is far below 2^32.
    pub fn new(count_max: usize) -> Waiters<T> {
        Waiters { slots: Vec::new(), free: Vec::new(), deadlines: BinaryHeap::new(), count_max }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether one more may wait.
    pub fn has_room(&self) -> bool {
        self.count() < self.count_max
    }

    /// Lets one wait until a time, in ms; there is room.
    pub fn add(&mut self, waiter: T, until_ms: u64) -> Seat {
        let seat = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, waiter: None });
            Seat::try_from(self.slots.len() - 1).expect("the most that wait is far below 2^32")
        });
        let slot = &mut self.slots[seat as usize];
        slot.waiter = Some(waiter);
        self.deadlines.push(Reverse((until_ms, seat, slot.generation)));
        // Those that were taken out leave their deadlines behind: at most as many as wait, and some.
        if self.deadlines.len() > 2 * self.count() + STALE_MAX {
            let slots = &self.slots;
            self.deadlines.retain(|Reverse((_, seat, generation))| slots[*seat as usize].generation == *generation);
        }
        seat
    }

    /// Who waits there.
    pub fn get(&self, seat: Seat) -> Option<&T> {
        self.slots[seat as usize].waiter.as_ref()
    }

    /// Takes out who waits there; its deadline means nothing any more.
    pub fn take(&mut self, seat: Seat) -> Option<T> {
        let slot = &mut self.slots[seat as usize];
        let waiter = slot.waiter.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(seat);
        Some(waiter)
    }

    /// Takes out one whose time is over, and says where it waited.
    pub fn expire(&mut self, now_ms: u64) -> Option<(Seat, T)> {
        while let Some(Reverse((until_ms, seat, generation))) = self.deadlines.peek().copied() {
            let is_live = self.slots[seat as usize].generation == generation;
            if is_live && until_ms > now_ms {
                return None;
            }
            self.deadlines.pop();
            if is_live {
                return self.take(seat).map(|waiter| (seat, waiter));
            }
        }
        None
    }

    /// When the next one's time is over, in ms; perhaps a little early.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((until_ms, ..))| *until_ms)
    }

    /// Where those wait that `is_it` names. Cost: all seats.
    pub fn find(&self, is_it: impl Fn(&T) -> bool) -> Vec<Seat> {
        let waiters = (0..).zip(&self.slots).filter_map(|(seat, slot)| Some((seat, slot.waiter.as_ref()?)));
        waiters.filter(|(_, waiter)| is_it(waiter)).map(|(seat, _)| seat).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leaves_once_and_its_seat_is_used_again() {
        let mut waiters = Waiters::new(3);
        let seats = [("a", 30), ("b", 10), ("c", 20)].map(|(name, until_ms)| waiters.add(name, until_ms));
        assert_eq!(
            (seats, waiters.count(), waiters.has_room(), waiters.deadline_ms()),
            ([0, 1, 2], 3, false, Some(10))
        );
        assert_eq!((waiters.find(|name| *name > "a"), waiters.get(2)), (vec![1, 2], Some(&"c")));
        assert_eq!((waiters.take(1), waiters.take(1), waiters.expire(19)), (Some("b"), None, None));
        assert_eq!(waiters.add("d", 40), 1);
        assert_eq!(
            (waiters.expire(30), waiters.expire(30), waiters.expire(30)),
            (Some((2, "c")), Some((0, "a")), None)
        );
        assert_eq!((waiters.count(), waiters.deadline_ms()), (1, Some(40)));
    }

    #[test]
    fn deadlines_left_behind_are_thrown_away() {
        let mut waiters = Waiters::new(1);
        for _ in 0..5_000 {
            let seat = waiters.add((), 1 << 40);
            assert_eq!(waiters.take(seat), Some(()));
        }
        assert!(waiters.deadlines.len() <= 2 + STALE_MAX + 1, "{}", waiters.deadlines.len());
    }
}
