//! A run while it is written: queue by queue, then key by key, a slice at a time.
//!
//! What is written is read from the index while the log goes on: the messages below the stretch's end do not
//! change until its run is durable, unless their topic is forgotten. Then nobody asks for them any more, and
//! what stands in their place does not matter.
//! Memory: the list of queues (20 bytes each), one slice of each section, and a cursor for each block of keys.

use crate::format::derived::{Fence, Item, Key, RunHeader, Slot, pack, seal};
use crate::format::{BLOCK_BYTES, QueueKey};
use crate::index::{self, Entry, Index};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::keys::KeyIndex;
use crate::scribe::{Scribe, Went};
use crate::stretch::Stretch;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::path::Path;

/// Bytes of one write: what a turn of the loop makes at most. 128 KiB: some 0.1 ms of its time.
pub const SLICE_BYTES: usize = 128 << 10;
/// Entries that are looked up together.
const SLICE_ENTRIES: u64 = 512;
/// The name of a run that is not whole.
pub const TEMPORARY: &str = "run-next";

/// The name of the run between two log bytes.
pub fn name(from: u64, to: u64) -> String {
    format!("run-{from:020}-{to:020}")
}

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// This operation.
    Do(Op),
    /// Nothing: the run is durable, and so many bytes long. Its file is to be closed.
    Finished(u64),
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Queues,
    Keys,
    Fences,
    Header,
    Sync,
    Publish,
}

/// The queue whose entries are being written: those from the first number on, up to the second.
#[derive(Debug)]
struct Current {
    slot: index::Slot,
    next: u64,
    end: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Writing {
    /// What it is made of.
    pub stretch: Stretch,
    scribe: Scribe,
    stage: Stage,
    header: RunHeader,
    order: Vec<(QueueKey, index::Slot)>,
    order_at: usize,
    current: Option<Current>,
    directory: Section,
    entries: Section,
    keys: Section,
    fences: Section,
    fences_of_keys: Vec<u64>,
    /// The next key of each block: hash, log byte, block.
    heads: BinaryHeap<Reverse<(u64, u64, usize)>>,
    cursors: Vec<usize>,
}

impl Writing {
    /// Begins, under the temporary name. The operation is the first one. `order`: all queues, sorted.
    pub fn begin(
        (directory, temporary): (&Path, &str),
        partition: u16,
        stretch: Stretch,
        order: Vec<(QueueKey, index::Slot)>,
        direct: bool,
    ) -> (Writing, Op) {
        let count = |count: u64| u32::try_from(count).expect("a stretch is far below 2^32 bytes");
        let queues = u32::try_from(order.len()).expect("fewer than 2^32 queues");
        let entries_at = 1 + Slot::blocks(queues.into());
        let keys_at = entries_at + Entry::blocks(stretch.entries);
        let fences_at = keys_at + Key::blocks(stretch.keys);
        let mut header = RunHeader {
            partition,
            from: stretch.from,
            to: stretch.end.head,
            bytes: 0,
            oldest_ms: u64::MAX,
            newest_ms: 0,
            queues,
            entries: 0,
            keys: count(stretch.keys),
            entries_at,
            keys_at,
            fences_at,
        };
        header.bytes = u64::from(fences_at + header.fence_blocks()) * BLOCK_BYTES;
        let (scribe, op) = Scribe::begin(directory, temporary, &name(header.from, header.to), direct);
        let section = |at| Section::new(stretch.from, at);
        let writing = Writing {
            stretch,
            scribe,
            stage: Stage::Begin,
            header,
            order,
            order_at: 0,
            current: None,
            directory: section(1),
            entries: section(entries_at),
            keys: section(keys_at),
            fences: section(fences_at),
            fences_of_keys: Vec::new(),
            heads: BinaryHeap::new(),
            cursors: Vec::new(),
        };
        (writing, op)
    }

    /// How long the run is.
    pub fn bytes(&self) -> u64 {
        self.header.bytes
    }

    /// The file to be closed when it is given up.
    pub fn handle(&self) -> Option<Handle> {
        self.scribe.handle()
    }

    /// Gives the list of queues back.
    pub fn take_order(&mut self) -> Vec<(QueueKey, index::Slot)> {
        std::mem::take(&mut self.order)
    }

    /// Takes the outcome of the operation under way and makes the next one.
    pub fn on_done(
        &mut self,
        outcome: Result<Outcome, Fault>,
        index: &mut Index,
        keys: &KeyIndex,
    ) -> Result<Step, Fault> {
        Ok(match self.scribe.on_done(outcome)? {
            Went::Do(op) => Step::Do(op),
            Went::Finished => Step::Finished(self.header.bytes),
            Went::Ready => Step::Do(self.next(index, keys)),
        })
    }

    fn next(&mut self, index: &mut Index, keys: &KeyIndex) -> Op {
        loop {
            match self.stage {
                Stage::Begin => {
                    self.stage = Stage::Queues;
                    return self.scribe.extend(self.header.bytes);
                }
                Stage::Queues => {
                    let more = self.fill_queues(index);
                    let least = if more { SLICE_BYTES } else { 1 };
                    for section in [&mut self.directory, &mut self.entries] {
                        if let Some((at, bytes)) = section.take(least) {
                            return self.scribe.write(at, &bytes);
                        }
                    }
                    assert!(!more, "a slice is full, or nothing is left");
                    // Fewer than were counted, if their topics were forgotten.
                    if let Some((at, bytes)) = self.entries.pad(self.header.keys_at) {
                        return self.scribe.write(at, &bytes);
                    }
                    for block in 0..keys.blocks_below(self.header.to) {
                        let (hash, byte) = keys.block(block)[0];
                        self.heads.push(Reverse((hash, byte, block)));
                        self.cursors.push(0);
                    }
                    self.stage = Stage::Keys;
                }
                Stage::Keys => {
                    let more = self.fill_keys(keys);
                    if let Some((at, bytes)) = self.keys.take(if more { SLICE_BYTES } else { 1 }) {
                        return self.scribe.write(at, &bytes);
                    }
                    for fence in std::mem::take(&mut self.fences_of_keys) {
                        self.fences.push(&Fence(fence));
                    }
                    self.fences.end();
                    self.stage = Stage::Fences;
                }
                Stage::Fences => match self.fences.take(1) {
                    Some((at, bytes)) => return self.scribe.write(at, &bytes),
                    None => self.stage = Stage::Header,
                },
                Stage::Header => {
                    self.stage = Stage::Sync;
                    return self.scribe.write(0, &self.header.encode());
                }
                Stage::Sync => {
                    self.stage = Stage::Publish;
                    return self.scribe.sync();
                }
                Stage::Publish => return self.scribe.publish(),
            }
        }
    }

    /// Fills directory and entries until a slice of one is full. Returns whether anything is left.
    fn fill_queues(&mut self, index: &mut Index) -> bool {
        while !self.directory.is_full() && !self.entries.is_full() {
            if let Some(current) = &mut self.current {
                let entries = index.living(current.slot).map_or(&[][..], |queue| queue.entries_from(current.next));
                let count = (current.end - current.next).min(SLICE_ENTRIES).min(entries.len() as u64) as usize;
                // Those of a forgotten queue are gone: what stands in their place is never looked at.
                let gone = [Entry { byte: 0, store_time_ms: 0, length: 0, tag_hash: 0 }];
                for entry in if count == 0 { &gone } else { &entries[..count] } {
                    if entry.length > 0 {
                        self.header.oldest_ms = self.header.oldest_ms.min(entry.store_time_ms);
                        self.header.newest_ms = self.header.newest_ms.max(entry.store_time_ms);
                    }
                    self.entries.push(entry);
                    self.header.entries += 1;
                    current.next += 1;
                }
                if current.next == current.end {
                    self.current = None;
                }
                continue;
            }
            let Some(&(queue, slot)) = self.order.get(self.order_at) else {
                self.directory.end();
                self.entries.end();
                return false;
            };
            let (from, to) = (self.header.from, self.header.to);
            let (first, count) = index.living(slot).map_or((0, 0), |queue| queue.between(from, to));
            if self.order_at.is_multiple_of(Slot::PER_BLOCK) {
                self.fences.push(&Fence(pack(queue)));
            }
            let count32 = u32::try_from(count).expect("a stretch is far below 2^32 bytes");
            self.directory.push(&Slot { queue, first, count: count32, place: self.header.entries });
            self.order_at += 1;
            self.current = (count > 0).then_some(Current { slot, next: first, end: first + count });
        }
        true
    }

    /// Merges keys until a slice is full. Returns whether anything is left.
    fn fill_keys(&mut self, keys: &KeyIndex) -> bool {
        while !self.keys.is_full() {
            let Some(mut head) = self.heads.peek_mut() else {
                self.keys.end();
                return false;
            };
            let Reverse((hash, byte, block)) = *head;
            if self.keys.is_at_start() {
                self.fences_of_keys.push(hash);
            }
            self.keys.push(&Key(hash, byte));
            self.cursors[block] += 1;
            match keys.block(block).get(self.cursors[block]) {
                Some(&(hash, byte)) => *head = Reverse((hash, byte, block)),
                None => _ = PeekMut::pop(head),
            }
        }
        true
    }
}

/// Blocks of a section that are made and not written yet.
#[derive(Debug)]
pub struct Section {
    /// What its blocks are sealed with.
    from: u64,
    /// The number of the first block here.
    at: u32,
    bytes: Vec<u8>,
    /// Items in the last block; 0: it is sealed, or there is none.
    filled: usize,
}

impl Section {
    /// Nothing yet of a section that begins with block `at` of the run that begins at log byte `from`.
    pub fn new(from: u64, at: u32) -> Section {
        Section { from, at, bytes: Vec::new(), filled: 0 }
    }

    /// One more.
    pub fn push<T: Item>(&mut self, item: &T) {
        if self.filled == 0 {
            self.bytes.resize(self.bytes.len() + BLOCK_BYTES as usize, 0);
        }
        let at = self.bytes.len() - BLOCK_BYTES as usize + self.filled * T::BYTES;
        item.encode(&mut self.bytes[at..at + T::BYTES]);
        self.filled += 1;
        if self.filled == T::PER_BLOCK {
            self.end();
        }
    }

    /// Seals the last block.
    pub fn end(&mut self) {
        if self.filled > 0 {
            let start = self.bytes.len() - BLOCK_BYTES as usize;
            let number = self.at + (start / BLOCK_BYTES as usize) as u32;
            seal(&mut self.bytes[start..], self.from, number);
            self.filled = 0;
        }
    }

    /// What lies between its end and block `end`: sealed blocks without items.
    fn pad(&mut self, end: u32) -> Option<(u64, Vec<u8>)> {
        for block in (0..end - self.at).take(SLICE_BYTES / BLOCK_BYTES as usize) {
            let start = self.bytes.len();
            self.bytes.resize(start + BLOCK_BYTES as usize, 0);
            seal(&mut self.bytes[start..], self.from, self.at + block);
        }
        self.take(1)
    }

    /// Whether the next item is the first of a block.
    pub fn is_at_start(&self) -> bool {
        self.filled == 0
    }

    /// Whether there is more than one write of it.
    pub fn is_full(&self) -> bool {
        self.bytes.len() > SLICE_BYTES
    }

    /// The sealed blocks and where they go, if there are at least so many bytes of them.
    pub fn take(&mut self, least: usize) -> Option<(u64, Vec<u8>)> {
        let sealed = self.bytes.len() - if self.filled > 0 { BLOCK_BYTES as usize } else { 0 };
        if sealed < least {
            return None;
        }
        let rest = self.bytes.split_off(sealed);
        let at = u64::from(self.at) * BLOCK_BYTES;
        self.at += (sealed / BLOCK_BYTES as usize) as u32;
        Some((at, std::mem::replace(&mut self.bytes, rest)))
    }
}
