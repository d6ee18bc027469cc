//! A run that another one is made of: read from front to back, some blocks of a section at a time, each checked.

use crate::format::BLOCK_BYTES;
use crate::format::derived::{Item, Key, RunHeader, Slot, is_whole};
use crate::index::Entry;
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use crate::runs::Place;
use crate::writing::name;
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// Blocks of one read.
const READ_BLOCKS: u32 = 8;

/// Why a run cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An operation failed.
    Fault(Fault),
    /// The run that begins at the log byte is damaged: at this byte of its file, and why.
    Source(u64, u64, &'static str),
    /// The log cannot be read behind this log byte.
    Log(u64),
    /// What it would be made of is not what it was.
    Stale,
}

/// Items of one section.
#[derive(Debug, Default)]
pub struct Items {
    /// The section's first block.
    at: u32,
    count: u64,
    /// The item to be looked at.
    next: u64,
    /// Blocks of the section that are here, the first of them by its number in the file.
    first: u32,
    bytes: Bytes,
}

impl Items {
    fn new(at: u32, count: u32) -> Items {
        Items { at, count: count.into(), ..Items::default() }
    }

    /// The next item, if its block is here.
    pub fn peek<T: Item>(&self) -> Option<T> {
        let (block, index) = self.place::<T>().filter(|_| self.next < self.count)?;
        let start = (block.checked_sub(self.first)? as usize).checked_mul(BLOCK_BYTES as usize)?;
        let block = self.bytes.get(start..start + BLOCK_BYTES as usize)?;
        Some(T::at(block, index))
    }

    /// Whether something must be read before the next item can be looked at.
    pub fn wants<T: Item>(&self) -> bool {
        self.next < self.count && self.peek::<T>().is_none()
    }

    /// Goes on to the next item.
    pub fn pass(&mut self) {
        self.next += 1;
    }

    /// Goes to an item. Returns whether there are so many from it on.
    pub fn seek(&mut self, item: u64, count: u64) -> bool {
        self.next = item;
        item + count <= self.count
    }

    fn place<T: Item>(&self) -> Option<(u32, usize)> {
        let block = u32::try_from(self.next / T::PER_BLOCK as u64).ok()?;
        Some((self.at.checked_add(block)?, (self.next % T::PER_BLOCK as u64) as usize))
    }

    /// Blocks to be read, by the first and their number.
    fn missing<T: Item>(&self) -> (u32, u32) {
        let (first, _) = self.place::<T>().expect("an item of the section was asked for");
        (first, READ_BLOCKS.min(self.at + T::blocks(self.count) - first))
    }
}

#[derive(Debug)]
enum Doing {
    Opening,
    Header,
    Queues(u32),
    Entries(u32),
    Keys(u32),
    Nothing,
}

/// See the module. One operation at a time.
#[derive(Debug)]
pub struct Source {
    /// Its directory.
    pub queues: Items,
    /// Its entries.
    pub entries: Items,
    /// Its keys.
    pub keys: Items,
    /// Once it is read.
    pub header: Option<RunHeader>,
    place: Place,
    partition: u16,
    path: PathBuf,
    handle: Option<Handle>,
    doing: Doing,
}

impl Source {
    /// Nothing of it is read yet.
    pub fn new(directory: &Path, partition: u16, place: Place) -> Source {
        Source {
            queues: Items::default(),
            entries: Items::default(),
            keys: Items::default(),
            header: None,
            place,
            partition,
            path: directory.join(name(place.from, place.to)),
            handle: None,
            doing: Doing::Nothing,
        }
    }

    /// The file, once it is open.
    pub fn handle(&self) -> Option<Handle> {
        self.handle
    }

    /// The next operation until its header is known.
    pub fn open(&mut self, direct: bool) -> Option<Op> {
        let Some(file) = self.handle else {
            self.doing = Doing::Opening;
            let how = OpenHow { create: false, direct, read_only: true };
            return Some(Op::Open { path: self.path.clone(), how });
        };
        self.doing = Doing::Header;
        self.header.is_none().then_some(Op::Read { file, at: 0, length: BLOCK_BYTES as u32 })
    }

    /// Reads more of the directory, if it must be read before its next item can be looked at.
    pub fn read_queues(&mut self) -> Option<Op> {
        let (first, count) = self.queues.wants::<Slot>().then(|| self.queues.missing::<Slot>())?;
        self.doing = Doing::Queues(first);
        Some(self.read(first, count))
    }

    /// As [`read_queues`](Source::read_queues), of entries.
    pub fn read_entries(&mut self) -> Option<Op> {
        let (first, count) = self.entries.wants::<Entry>().then(|| self.entries.missing::<Entry>())?;
        self.doing = Doing::Entries(first);
        Some(self.read(first, count))
    }

    /// As [`read_queues`](Source::read_queues), of keys.
    pub fn read_keys(&mut self) -> Option<Op> {
        let (first, count) = self.keys.wants::<Key>().then(|| self.keys.missing::<Key>())?;
        self.doing = Doing::Keys(first);
        Some(self.read(first, count))
    }

    /// Takes the outcome of the operation under way.
    pub fn on_done(&mut self, outcome: Result<Outcome, Fault>) -> Result<(), Trouble> {
        match (std::mem::replace(&mut self.doing, Doing::Nothing), outcome) {
            (Doing::Opening, Ok(Outcome::Opened(handle))) => self.handle = Some(handle),
            (Doing::Opening, Err(Fault(libc::ENOENT))) => return Err(self.damaged(0, "the file is missing")),
            // A disk that says which block it lost.
            (Doing::Header | Doing::Queues(_) | Doing::Entries(_) | Doing::Keys(_), Err(Fault(libc::EIO))) => {
                return Err(self.damaged(0, "it cannot be read"));
            }
            (_, Err(fault)) => return Err(Trouble::Fault(fault)),
            (Doing::Header, Ok(Outcome::Read(block))) => {
                let Place { from, to, bytes } = self.place;
                let header = RunHeader::decode(&block, from).map_err(|_| self.damaged(0, "its header is damaged"))?;
                if (header.partition, header.to, header.bytes) != (self.partition, to, bytes) {
                    return Err(self.damaged(0, "its header does not fit its name"));
                }
                self.queues = Items::new(1, header.queues);
                self.entries = Items::new(header.entries_at, header.entries);
                self.keys = Items::new(header.keys_at, header.keys);
                self.header = Some(header);
            }
            (Doing::Queues(first), Ok(Outcome::Read(bytes))) => {
                (self.queues.first, self.queues.bytes) = (first, self.check(first, bytes)?);
            }
            (Doing::Entries(first), Ok(Outcome::Read(bytes))) => {
                (self.entries.first, self.entries.bytes) = (first, self.check(first, bytes)?);
            }
            (Doing::Keys(first), Ok(Outcome::Read(bytes))) => {
                (self.keys.first, self.keys.bytes) = (first, self.check(first, bytes)?);
            }
            (doing, Ok(outcome)) => unreachable!("{outcome:?} is no answer to {doing:?}"),
        }
        Ok(())
    }

    /// Something that its header or its directory says cannot be.
    pub fn damaged(&self, byte: u64, why: &'static str) -> Trouble {
        Trouble::Source(self.place.from, byte, why)
    }

    fn read(&self, first: u32, count: u32) -> Op {
        let file = self.handle.expect("its header was read");
        Op::Read { file, at: u64::from(first) * BLOCK_BYTES, length: count * BLOCK_BYTES as u32 }
    }

    fn check(&self, first: u32, bytes: Bytes) -> Result<Bytes, Trouble> {
        if bytes.is_empty() {
            return Err(self.damaged(u64::from(first) * BLOCK_BYTES, "the file ends too early"));
        }
        for (number, block) in (first..).zip(bytes.chunks(BLOCK_BYTES as usize)) {
            if !is_whole(block, self.place.from, number) {
                return Err(self.damaged(u64::from(number) * BLOCK_BYTES, "a checksum is wrong"));
            }
        }
        Ok(bytes)
    }
}
