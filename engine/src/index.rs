//! Where each queue's newest messages lie: those that no sorted run has yet, and those whose bytes are still in
//! the tail. What is older is in the runs alone.
//!
//! Cost: [`ENTRY_BYTES`] for each such message, and about 220 bytes an idle queue.

use crate::buffer::prefetch;
use crate::format::QueueKey;
use ahash::RandomState;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// One offset of a queue. Those of one message that takes several are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The log byte of its payload.
    pub byte: u64,
    /// When it was stored, ms since 1970.
    pub store_time_ms: u64,
    /// Bytes of its payload.
    pub length: u32,
    /// What a consumer's filter is compared with: RocketMQ's 32-bit tag hash.
    pub tag_hash: i32,
}

/// Bytes that one message costs in memory here.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(8 + 8 + 4 + 4 == ENTRY_BYTES, "no padding");

/// Entries of one block of a queue: a queue grows without ever being copied as a whole.
const BLOCK_ENTRIES: usize = 1024;
/// A queue that becomes empty keeps memory for this many entries: slow queues, of which there may be very
/// many, need no new memory for each message.
const KEPT_ENTRIES: usize = 4;

/// Where a queue stands in the index. Once the queue is forgotten, another may stand there: at another age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    index: u32,
    age: u32,
}

/// The queue offsets of one queue's visible messages: `min..max`, `max` being the next visible one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The oldest message's offset.
    pub min: u64,
    /// The offset behind the newest visible message.
    pub max: u64,
}

/// Queues of a topic whose slots lie side by side: who finds one has fetched its neighbours too, and with very
/// many queues that is what a look-up costs.
const NEIGHBOURS: usize = 8;
const NOWHERE: Slot = Slot { index: u32::MAX, age: 0 };

/// The group of neighbours that a queue is in: topic and number; and its place there.
fn group(key: QueueKey) -> ((u32, u32), usize) {
    let neighbours = NEIGHBOURS as u32;
    ((key.topic, key.queue / neighbours), (key.queue % neighbours) as usize)
}

/// All queues of a partition.
#[derive(Debug)]
pub struct Index {
    slots: HashMap<(u32, u32), [Slot; NEIGHBOURS], RandomState>,
    queues: Vec<Queue>,
    vacant: Vec<u32>,
    /// What lies below this log byte is in runs, and nobody wants it here.
    cold: u64,
    /// All queues; sorted up to those that came since [`take_order`](Index::take_order).
    order: Vec<(QueueKey, Slot)>,
}

impl Index {
    /// An empty index.
    pub fn new(seed: u64) -> Index {
        let state = RandomState::with_seeds(seed, 1, 2, 3);
        Index { slots: HashMap::with_hasher(state), queues: Vec::new(), vacant: Vec::new(), cold: 0, order: Vec::new() }
    }

    /// The queue's slot; made if the queue is new.
    pub fn slot(&mut self, key: QueueKey) -> Slot {
        let (group, place) = group(key);
        let slots = self.slots.entry(group).or_insert([NOWHERE; NEIGHBOURS]);
        if slots[place] != NOWHERE {
            return slots[place];
        }
        let mut queue = Queue::new(key);
        let index = match self.vacant.pop() {
            Some(index) => {
                queue.age = self.queues[index as usize].age;
                self.queues[index as usize] = queue;
                index
            }
            None => {
                self.queues.push(queue);
                u32::try_from(self.queues.len() - 1).expect("fewer than 2^32 queues")
            }
        };
        let slot = Slot { index, age: self.queues[index as usize].age };
        slots[place] = slot;
        self.order.push((key, slot));
        slot
    }

    /// The queue in a slot, without what the runs have.
    pub fn at(&mut self, slot: Slot) -> &mut Queue {
        self.living(slot).expect("the caller just looked the slot up")
    }

    /// As [`at`](Index::at); `None` if the queue was forgotten since.
    pub fn living(&mut self, slot: Slot) -> Option<&mut Queue> {
        let queue = &mut self.queues[slot.index as usize];
        queue.drop_below(self.cold);
        (queue.age == slot.age).then_some(queue)
    }

    /// A message of this queue will be shown soon: its place is fetched into the cache meanwhile. `near`: very soon,
    /// and the queue itself was fetched already; now its newest block.
    #[inline]
    pub fn prefetch(&self, slot: Slot, near: bool) {
        let queue = &self.queues[slot.index as usize];
        if near {
            prefetch(queue.last.as_ptr_range().end);
        } else {
            prefetch(queue);
            prefetch(&queue.last);
        }
    }

    /// The queue, if it ever had a message.
    pub fn get(&mut self, key: QueueKey) -> Option<&mut Queue> {
        let (group, place) = group(key);
        let slot = self.slots.get(&group)?[place];
        (slot != NOWHERE).then(|| self.at(slot))
    }

    /// Gives the next offset of a queue away, and `further` ones behind it.
    pub fn accept(&mut self, slot: Slot, further: u32) -> u64 {
        let queue = &mut self.queues[slot.index as usize];
        assert!(queue.age == slot.age, "the caller just looked the slot up");
        let offset = queue.next;
        queue.next += 1 + u64::from(further);
        offset
    }

    /// What lies below this log byte is in runs, and goes. Queues notice when they are next looked at, at the
    /// latest when the next run is written. Cost there: what stays of a block is moved, so this is not for every
    /// batch.
    pub fn set_cold(&mut self, byte: u64) {
        self.cold = self.cold.max(byte);
    }

    /// A queue of which the newest run says that offsets below `next` were given away.
    pub fn restore(&mut self, key: QueueKey, next: u64) {
        let slot = self.slot(key);
        let queue = self.at(slot);
        (queue.first, queue.next) = (next, next);
    }

    /// Lends out all queues, sorted by key, for a run to be written.
    /// Cost: proportional to the queues that came since the last time, and one pass over the others.
    pub fn take_order(&mut self) -> Vec<(QueueKey, Slot)> {
        let mut order = std::mem::take(&mut self.order);
        order.retain(|(_, slot)| self.queues[slot.index as usize].age == slot.age);
        order.sort_by_key(|(key, _)| *key);
        order
    }

    /// Takes back what [`take_order`](Index::take_order) lent.
    pub fn return_order(&mut self, mut order: Vec<(QueueKey, Slot)>) {
        order.append(&mut self.order);
        self.order = order;
    }

    /// Drops the queues of topics that are not wanted.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let (queues, vacant) = (&mut self.queues, &mut self.vacant);
        self.slots.retain(|(topic, _), slots| {
            let kept = keep(*topic);
            for slot in slots.iter().filter(|slot| !kept && **slot != NOWHERE) {
                let queue = &mut queues[slot.index as usize];
                *queue = Queue { age: queue.age.wrapping_add(1), ..Queue::new(queue.key) };
                vacant.push(slot.index);
            }
            kept
        });
    }

    /// Every queue's key and the offset that its next message gets, in no particular order.
    pub fn nexts(&self) -> impl Iterator<Item = (QueueKey, u64)> {
        let slots = self.slots.values().flatten().filter(|slot| **slot != NOWHERE);
        slots.map(|slot| &self.queues[slot.index as usize]).map(|queue| (queue.key, queue.next))
    }

    /// How many queues there are.
    pub fn count(&self) -> usize {
        self.queues.len() - self.vacant.len()
    }
}

/// One queue's messages. Its entries are those that a consumer may see.
///
/// With very many queues each message finds its own queue cold: so it lies in two lines of the cache, with its
/// newest block in place, and what is asked of it on each message is not behind another pointer.
#[derive(Debug)]
#[repr(align(64))]
pub struct Queue {
    key: QueueKey,
    /// How many queues stood in its slot before.
    age: u32,
    /// Offsets below it are gone: perhaps not all that are.
    min: u64,
    /// Offset of the first entry. Those between `min` and it are in runs alone.
    first: u64,
    /// Offset that the next accepted message gets.
    next: u64,
    /// Entries in all blocks.
    len: u64,
    /// The log byte of the first entry; `u64::MAX`, if there is none.
    oldest: u64,
    /// The log byte of the batch whose messages it showed last.
    shown: u64,
    /// The newest block.
    last: Vec<Entry>,
    /// Those before it, full; of the first one entries that are gone were drained.
    full: VecDeque<Vec<Entry>>,
}
const _: () = assert!(size_of::<Queue>() == 128, "two lines");

impl Queue {
    fn new(key: QueueKey) -> Queue {
        let (last, full) = (Vec::new(), VecDeque::new());
        Queue { key, age: 0, min: 0, first: 0, next: 0, len: 0, oldest: u64::MAX, shown: u64::MAX, last, full }
    }

    /// Whose it is.
    pub fn key(&self) -> QueueKey {
        self.key
    }

    /// The offset that its next message gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The visible offsets. `min` may be too low for a while after a segment was retired.
    pub fn span(&self) -> Span {
        Span { min: self.min, max: self.first + self.len }
    }

    /// Offsets below this one are gone.
    pub fn raise_min(&mut self, min: u64) {
        self.min = self.min.max(min.min(self.first + self.len));
    }

    /// No run has what lies before the first message that is here.
    pub fn forget_runs(&mut self) {
        self.min = self.first;
    }

    /// The offset of the first message that lies at or above the log byte `from`, below which everything is in
    /// runs, and how many from there on lie below `to`.
    pub fn between(&self, from: u64, to: u64) -> (u64, u64) {
        let first = self.below(from);
        (self.first + first, self.below(to) - first)
    }

    /// How many of those here lie below a log byte.
    fn below(&self, byte: u64) -> u64 {
        let index = self.full.partition_point(|block| block.last().is_some_and(|entry| entry.byte < byte));
        let (before, block) = match self.full.get(index) {
            Some(block) if index == 0 => (0, block),
            Some(block) => (self.full[0].len() + (index - 1) * BLOCK_ENTRIES, block),
            None => (self.len as usize - self.last.len(), &self.last),
        };
        (before + block.partition_point(|entry| entry.byte < byte)) as u64
    }

    /// Makes the message with this offset visible. They come in order.
    #[inline]
    pub fn show(&mut self, offset: u64, entry: Entry) {
        assert_eq!(offset, self.first + self.len, "queue {:?} grows without holes", self.key);
        if self.last.len() == self.last.capacity().min(BLOCK_ENTRIES) {
            self.grow();
        }
        self.last.push(entry);
        self.oldest = self.oldest.min(entry.byte);
        self.len += 1;
        self.next = self.next.max(offset + 1);
    }

    /// Whether the batch at this log byte has shown nothing of it yet. From now on it has.
    #[inline]
    pub fn begins(&mut self, base: u64) -> bool {
        std::mem::replace(&mut self.shown, base) != base
    }

    /// Makes room for one more entry.
    #[cold]
    fn grow(&mut self) {
        if self.last.len() >= BLOCK_ENTRIES {
            self.full.push_back(std::mem::replace(&mut self.last, Vec::with_capacity(BLOCK_ENTRIES)));
        } else {
            // The first one grows: most queues are slow.
            self.last.reserve_exact(self.last.capacity().max(KEPT_ENTRIES).min(BLOCK_ENTRIES - self.last.len()));
        }
    }

    /// As [`show`](Queue::show), for a message that recovery found. One that does not continue the queue is
    /// the first that is left of it, or the first of a new one: the topic was forgotten in between, and its
    /// messages are still in the log.
    pub fn restore(&mut self, offset: u64, entry: Entry) {
        if offset != self.first + self.len {
            let (min, first, next) = (offset, offset, offset);
            *self = Queue { age: self.age, min, first, next, ..Queue::new(self.key) };
        }
        self.show(offset, entry);
    }

    /// Offsets below `next` were given away already, even if no message shows it any more.
    pub fn resume_at(&mut self, next: u64) {
        let empty = self.min == self.first + self.len;
        if empty && next > self.next {
            (self.min, self.first, self.next) = (next, next, next);
        }
    }

    /// The message at an offset, if it is here.
    pub fn entry(&self, offset: u64) -> Option<Entry> {
        self.entries_from(offset).first().copied()
    }

    /// The messages from an offset on that lie side by side in memory; none, if it is not here.
    pub fn entries_from(&self, offset: u64) -> &[Entry] {
        let Some(index) = offset.checked_sub(self.first).filter(|index| *index < self.len) else { return &[] };
        let index = index as usize;
        let Some(front) = self.full.front() else { return &self.last[index..] };
        let Some(behind) = index.checked_sub(front.len()) else { return &front[index..] };
        let block = self.full.get(1 + behind / BLOCK_ENTRIES).unwrap_or(&self.last);
        &block[behind % BLOCK_ENTRIES..]
    }

    fn drop_below(&mut self, cold: u64) {
        if self.oldest >= cold {
            return;
        }
        let mut gone = self.below(cold) as usize;
        self.first += gone as u64;
        self.len -= gone as u64;
        while let Some(block) = self.full.pop_front_if(|block| block.len() <= gone) {
            gone -= block.len();
        }
        match self.full.front_mut() {
            Some(block) => _ = block.drain(..gone),
            None => {
                self.full = VecDeque::new();
                self.last.drain(..gone);
                if self.last.is_empty() && self.last.capacity() > KEPT_ENTRIES {
                    self.last = Vec::new();
                }
            }
        }
        self.oldest = self.full.front().unwrap_or(&self.last).first().map_or(u64::MAX, |entry| entry.byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(byte: u64) -> Entry {
        Entry { byte, store_time_ms: byte / 10, length: 1, tag_hash: 0 }
    }

    #[test]
    fn offsets_have_no_holes_across_blocks_and_above_the_runs() {
        let mut index = Index::new(1);
        let key = QueueKey { topic: 1, queue: 2 };
        let slot = index.slot(key);
        let count = 3 * BLOCK_ENTRIES as u64 + 5;
        for offset in 0..count {
            assert_eq!(index.accept(slot, 0), offset);
            index.at(slot).show(offset, entry(offset * 100));
        }
        for cold in [0, 1, 99, 100, 101, 102_400, 102_401, 204_900, (count - 1) * 100, count * 100] {
            let first = cold.div_ceil(100);
            let queue = index.at(slot);
            for (from, to) in [(0, cold), (cold, cold), (cold, cold + 100), (cold, u64::MAX), (cold / 2, cold)] {
                let here = |byte: u64| byte.div_ceil(100).clamp(queue.first, count);
                assert_eq!(queue.between(from, to), (here(from), here(to) - here(from)), "{from}..{to}");
            }
            index.set_cold(cold);
            let queue = index.at(slot);
            assert_eq!(queue.span(), Span { min: 0, max: count });
            assert_eq!(queue.between(cold, u64::MAX), (first, count - first));
            for offset in 0..count + 2 {
                let wanted = (first..count).contains(&offset).then(|| entry(offset * 100));
                assert_eq!(queue.entry(offset), wanted, "offset {offset} cold {cold}");
            }
        }
        index.at(slot).raise_min(7);
        assert_eq!(index.at(slot).span(), Span { min: 7, max: count });
        index.at(slot).raise_min(u64::MAX);
        assert_eq!(index.at(slot).span(), Span { min: count, max: count });
        assert_eq!(index.accept(slot, 0), count, "an offset is never used twice");
        index.at(slot).show(count, entry(count * 100));
        assert_eq!(index.at(slot).entry(count), Some(entry(count * 100)));
    }

    #[test]
    fn queues_are_lent_in_the_order_of_their_keys_without_those_forgotten() {
        let mut index = Index::new(1);
        let key = |topic, queue| QueueKey { topic, queue };
        let keys = [key(2, 1), key(1, 7), key(3, 0), key(2, 0)];
        keys.iter().for_each(|key| _ = index.slot(*key));
        let lent = index.take_order();
        index.slot(key(1, 0));
        index.retain_topics(&|topic| topic != 3);
        index.slot(key(4, 0));
        assert!(lent.iter().map(|(key, _)| *key).eq([keys[1], keys[3], keys[0], keys[2]]));
        index.return_order(lent);
        let lent = index.take_order();
        let wanted = [key(1, 0), key(1, 7), key(2, 0), key(2, 1), key(4, 0)];
        assert!(lent.iter().map(|(key, _)| *key).eq(wanted), "{lent:?}");
    }

    #[test]
    fn a_forgotten_topic_starts_anew_and_a_resumed_queue_goes_on() {
        let mut index = Index::new(1);
        let key = QueueKey { topic: 1, queue: 0 };
        let slot = index.slot(key);
        index.at(slot).restore(7, entry(0));
        assert_eq!(index.at(slot).span(), Span { min: 7, max: 8 }, "those before it were retired");
        index.retain_topics(&|topic| topic != 1);
        assert!(index.get(key).is_none());
        let old = slot;
        let slot = index.slot(key);
        assert!(index.living(old).is_none(), "what was under way for the forgotten queue is not shown in the new one");
        index.at(slot).resume_at(40);
        assert_eq!(index.at(slot).span(), Span { min: 40, max: 40 });
        assert_eq!(index.accept(slot, 0), 40);
        index.at(slot).restore(40, entry(1));
        index.at(slot).restore(41, entry(2));
        index.at(slot).resume_at(50);
        assert_eq!(index.at(slot).span(), Span { min: 40, max: 42 }, "it has messages, and knows better");
        index.at(slot).restore(0, entry(3));
        assert_eq!(index.at(slot).span(), Span { min: 0, max: 1 }, "found behind a forgotten topic's messages");
        assert_eq!(index.accept(slot, 0), 1);
    }

    #[test]
    fn a_queue_of_the_newest_run_goes_on_behind_it() {
        let mut index = Index::new(1);
        let key = QueueKey { topic: 1, queue: 0 };
        index.restore(key, 12);
        index.set_cold(500);
        let slot = index.slot(key);
        assert_eq!(index.at(slot).span(), Span { min: 0, max: 12 });
        index.at(slot).resume_at(90);
        index.at(slot).restore(12, entry(600));
        assert_eq!(index.at(slot).span(), Span { min: 0, max: 13 });
        assert_eq!(index.accept(slot, 0), 13);
    }
}
