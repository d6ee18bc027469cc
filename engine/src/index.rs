//! Where each queue's messages lie: the log's index, in memory, rebuilt from the log at start.
//!
//! Cost: [`ENTRY_BYTES`] a message and about 150 bytes an idle queue.

use crate::format::QueueKey;
use ahash::RandomState;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// One message of a queue.
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

/// All queues of a partition.
#[derive(Debug)]
pub struct Index {
    slots: HashMap<QueueKey, Slot, RandomState>,
    queues: Vec<Queue>,
    vacant: Vec<u32>,
    /// What lies below this log byte is gone.
    floor: u64,
}

impl Index {
    /// An empty index.
    pub fn new(seed: u64) -> Index {
        let state = RandomState::with_seeds(seed, 1, 2, 3);
        Index { slots: HashMap::with_hasher(state), queues: Vec::new(), vacant: Vec::new(), floor: 0 }
    }

    /// The queue's slot; made if the queue is new.
    pub fn slot(&mut self, key: QueueKey) -> Slot {
        if let Some(&slot) = self.slots.get(&key) {
            return slot;
        }
        let mut queue = Queue { key, age: 0, first: 0, next: 0, len: 0, blocks: VecDeque::new() };
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
        self.slots.insert(key, slot);
        slot
    }

    /// The queue in a slot, without what lies below the floor.
    pub fn at(&mut self, slot: Slot) -> &mut Queue {
        self.living(slot).expect("the caller just looked the slot up")
    }

    /// As [`at`](Index::at); `None` if the queue was forgotten since.
    pub fn living(&mut self, slot: Slot) -> Option<&mut Queue> {
        let queue = &mut self.queues[slot.index as usize];
        queue.drop_below(self.floor);
        (queue.age == slot.age).then_some(queue)
    }

    /// The queue, if it ever had a message.
    pub fn get(&mut self, key: QueueKey) -> Option<&mut Queue> {
        let slot = *self.slots.get(&key)?;
        Some(self.at(slot))
    }

    /// What lies below this log byte is gone. Queues notice when they are next looked at.
    pub fn set_floor(&mut self, byte: u64) {
        self.floor = self.floor.max(byte);
    }

    /// Drops the queues of topics that are not wanted.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        let (queues, vacant) = (&mut self.queues, &mut self.vacant);
        self.slots.retain(|key, slot| {
            let kept = keep(key.topic);
            if !kept {
                let queue = &mut queues[slot.index as usize];
                queue.blocks = VecDeque::new();
                queue.len = 0;
                queue.age = queue.age.wrapping_add(1);
                vacant.push(slot.index);
            }
            kept
        });
    }

    /// Every queue's key and the offset that its next message gets, in no particular order.
    pub fn nexts(&self) -> impl Iterator<Item = (QueueKey, u64)> {
        self.slots.iter().map(|(&key, slot)| (key, self.queues[slot.index as usize].next))
    }

    /// How many queues there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }
}

/// One queue's messages. Its entries are those that a consumer may see.
#[derive(Debug)]
pub struct Queue {
    key: QueueKey,
    /// How many queues stood in its slot before.
    age: u32,
    /// Offset of the first entry.
    first: u64,
    /// Offset that the next accepted message gets.
    next: u64,
    /// Entries in all blocks.
    len: u64,
    /// All full but the last; entries of the first that are gone were drained.
    blocks: VecDeque<Vec<Entry>>,
}

impl Queue {
    /// Whose it is.
    pub fn key(&self) -> QueueKey {
        self.key
    }

    /// The visible offsets.
    pub fn span(&self) -> Span {
        Span { min: self.first, max: self.first + self.len }
    }

    /// Gives the next offset away.
    pub fn accept(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Makes the message with this offset visible. They come in order.
    pub fn show(&mut self, offset: u64, entry: Entry) {
        if self.len == 0 {
            self.first = offset;
            self.next = self.next.max(offset);
        }
        assert_eq!(offset, self.first + self.len, "queue {:?} grows without holes", self.key);
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK_ENTRIES => block.push(entry),
            _ => self.blocks.push_back(vec![entry]),
        }
        self.len += 1;
        self.next = self.next.max(offset + 1);
    }

    /// As [`show`](Queue::show), for a message that recovery found. One that does not continue the queue is
    /// the first of a new one: the topic was forgotten in between, and its messages are still in the log.
    pub fn restore(&mut self, offset: u64, entry: Entry) {
        if self.len > 0 && offset != self.first + self.len {
            self.blocks.clear();
            (self.first, self.next, self.len) = (offset, offset, 0);
        }
        self.show(offset, entry);
    }

    /// Offsets below `next` were given away already, even if no message shows it any more.
    pub fn resume_at(&mut self, next: u64) {
        if self.len == 0 && next > self.next {
            self.first = next;
            self.next = next;
        }
    }

    /// The message at an offset.
    pub fn entry(&self, offset: u64) -> Option<Entry> {
        let index = offset.checked_sub(self.first).filter(|index| *index < self.len)?;
        let front = self.blocks.front()?.len() as u64;
        if index < front {
            return self.blocks[0].get(index as usize).copied();
        }
        let behind = index - front;
        let block = 1 + (behind / BLOCK_ENTRIES as u64) as usize;
        self.blocks[block].get((behind % BLOCK_ENTRIES as u64) as usize).copied()
    }

    /// The first offset whose message was stored at or after `time_ms`; the span's `max` if all are older.
    pub fn first_at_or_after(&self, time_ms: u64) -> u64 {
        let (mut low, mut high) = (self.first, self.first + self.len);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.entry(middle).expect("within the span");
            if entry.store_time_ms < time_ms { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn drop_below(&mut self, floor: u64) {
        while let Some(block) = self.blocks.front_mut() {
            if block.first().is_some_and(|entry| entry.byte >= floor) {
                return;
            }
            let gone = block.partition_point(|entry| entry.byte < floor);
            self.first += gone as u64;
            self.len -= gone as u64;
            if gone < block.len() {
                // The first block alone may be short in front: `entry` counts from its end.
                block.drain(..gone);
                return;
            }
            self.blocks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(byte: u64) -> Entry {
        Entry { byte, store_time_ms: byte / 10, length: 1, tag_hash: 0 }
    }

    #[test]
    fn offsets_have_no_holes_across_blocks_and_below_the_floor() {
        let mut index = Index::new(1);
        let key = QueueKey { topic: 1, queue: 2 };
        let slot = index.slot(key);
        let count = 3 * BLOCK_ENTRIES as u64 + 5;
        for offset in 0..count {
            assert_eq!(index.at(slot).accept(), offset);
            index.at(slot).show(offset, entry(offset * 100));
        }
        for floor in [0, 1, 99, 100, 101, 102_400, 102_401, 204_900, (count - 1) * 100] {
            index.set_floor(floor);
            let queue = index.at(slot);
            let min = floor.div_ceil(100);
            assert_eq!(queue.span(), Span { min, max: count });
            for offset in 0..count + 2 {
                let wanted = (min..count).contains(&offset).then(|| entry(offset * 100));
                assert_eq!(queue.entry(offset), wanted, "offset {offset} floor {floor}");
            }
        }
        index.set_floor(count * 100);
        assert_eq!(index.at(slot).span(), Span { min: count, max: count });
        assert_eq!(index.at(slot).accept(), count, "an offset is never used twice");
    }

    #[test]
    fn a_time_finds_the_first_message_at_or_after_it() {
        let mut index = Index::new(1);
        let slot = index.slot(QueueKey { topic: 1, queue: 0 });
        for offset in 0..2500 {
            index.at(slot).show(offset, entry(offset * 100));
        }
        let queue = index.at(slot);
        for (time, offset) in [(0, 0), (1, 1), (10, 1), (11, 2), (24_990, 2499), (24_991, 2500), (u64::MAX, 2500)] {
            assert_eq!(queue.first_at_or_after(time), offset, "time {time}");
        }
    }

    #[test]
    fn a_forgotten_topic_starts_anew_and_a_resumed_queue_goes_on() {
        let mut index = Index::new(1);
        let key = QueueKey { topic: 1, queue: 0 };
        let slot = index.slot(key);
        index.at(slot).show(7, entry(0));
        index.retain_topics(&|topic| topic != 1);
        assert!(index.get(key).is_none());
        let old = slot;
        let slot = index.slot(key);
        assert!(index.living(old).is_none(), "what was under way for the forgotten queue is not shown in the new one");
        index.at(slot).resume_at(40);
        assert_eq!(index.at(slot).span(), Span { min: 40, max: 40 });
        assert_eq!(index.at(slot).accept(), 40);
        index.at(slot).restore(40, entry(1));
        index.at(slot).restore(41, entry(2));
        index.at(slot).restore(0, entry(3));
        assert_eq!(index.at(slot).span(), Span { min: 0, max: 1 }, "found behind a forgotten topic's messages");
        assert_eq!(index.at(slot).accept(), 1);
    }
}
