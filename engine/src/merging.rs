//! Several runs of a sealed segment become one, so that each queue is listed once instead of once a run. Their
//! directories are read twice: first to know which queues there are and how much each has, then beside the entries,
//! which are copied queue by queue; then the keys are merged. What is read is never changed: until the new run is
//! durable under its name, and for whoever reads the old ones, nothing happens.
//!
//! Queues that were forgotten are left out. Offsets that do not continue a queue begin it anew, as they do when the
//! log is read: what came before belongs to a topic that was forgotten in between.
//! Memory: 32 bytes a queue, and three buffers of some blocks for each run.

use crate::format::BLOCK_BYTES;
use crate::format::derived::{Fence, Item, Key, RunHeader, Slot, pack};
use crate::index::{Entry, Index};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::runs::Place;
use crate::scribe::{Scribe, Went};
use crate::source::{Source, Trouble};
use crate::upkeep::{TEMPORARY, Turn};
use crate::writing::{SLICE_BYTES, Section, name};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

/// Queues looked at in one turn.
const SLICE_QUEUES: usize = 512;

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Survey,
    Create,
    Queues,
    Entries,
    Keys,
    Fences,
    Header,
    Sync,
    Publish,
    Finished,
}

/// See the module.
#[derive(Debug)]
pub struct Merging {
    directory: PathBuf,
    direct: bool,
    sources: Vec<Source>,
    /// The source whose operation is under way; `None`: it is one on the new file.
    reading: Option<usize>,
    stage: Stage,
    /// What the new file wants next.
    next: Option<Op>,
    scribe: Option<Scribe>,
    header: RunHeader,
    /// The new directory, and of each queue the first source that counts.
    list: Vec<(Slot, u16)>,
    /// The queue at hand, the source that its entries are copied from, and how many are left there.
    at: (usize, usize, u64),
    queues: Section,
    entries: Section,
    keys: Section,
    fences: Section,
    fences_of_keys: Vec<u64>,
    heads: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// Sources whose next key is not among those.
    headless: Vec<usize>,
}

impl Merging {
    /// Of these runs, oldest first, without gaps.
    pub fn new(directory: &Path, partition: u16, places: &[Place], direct: bool) -> Merging {
        let (from, to) = (places[0].from, places[places.len() - 1].to);
        let section = || Section::new(from, 0);
        Merging {
            directory: directory.to_path_buf(),
            direct,
            sources: places.iter().map(|place| Source::new(directory, partition, *place)).collect(),
            reading: None,
            stage: Stage::Open,
            next: None,
            scribe: None,
            header: RunHeader {
                partition,
                from,
                to,
                bytes: 0,
                oldest_ms: u64::MAX,
                newest_ms: 0,
                queues: 0,
                entries: 0,
                keys: 0,
                entries_at: 0,
                keys_at: 0,
                fences_at: 0,
            },
            list: Vec::new(),
            at: (0, 0, 0),
            queues: section(),
            entries: section(),
            keys: section(),
            fences: section(),
            fences_of_keys: Vec::new(),
            heads: BinaryHeap::new(),
            headless: (0..places.len()).rev().collect(),
        }
    }

    /// Where the new run is.
    pub fn place(&self) -> Place {
        Place { from: self.header.from, to: self.header.to, bytes: self.header.bytes }
    }

    /// Open files, to be closed at its end.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        self.sources.iter().filter_map(Source::handle).chain(self.scribe.as_ref().and_then(Scribe::handle))
    }

    /// Files of it that may be there when it is given up.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let written = self.scribe.is_some().then(|| self.directory.join(TEMPORARY));
        let named =
            (self.stage == Stage::Finished).then(|| self.directory.join(name(self.header.from, self.header.to)));
        written.into_iter().chain(named).collect()
    }

    /// Takes the outcome of the operation under way. Returns whether the new run is durable under its name.
    pub fn on_done(&mut self, outcome: Result<Outcome, Fault>) -> Result<bool, Trouble> {
        if let Some(index) = self.reading.take() {
            return self.sources[index].on_done(outcome).map(|()| false);
        }
        let scribe = self.scribe.as_mut().expect("an operation is one on a source or on the new file");
        match scribe.on_done(outcome).map_err(Trouble::Fault)? {
            Went::Do(op) => self.next = Some(op),
            Went::Ready => {}
            Went::Finished => return Ok(true),
        }
        Ok(false)
    }

    /// Works until an operation is needed, or long enough.
    pub fn on_turn(&mut self, index: &mut Index) -> Result<Turn, Trouble> {
        if let Some(op) = self.next.take() {
            return Ok(Turn::Do(op));
        }
        loop {
            match self.stage {
                Stage::Open => match self.read(|source, direct| source.open(direct)) {
                    Some(op) => return Ok(Turn::Do(op)),
                    None => self.stage = Stage::Survey,
                },
                Stage::Survey => match self.survey(index) {
                    Some(turn) => return Ok(turn),
                    None => {
                        self.stage = Stage::Create;
                        return Ok(Turn::Do(self.create()?));
                    }
                },
                Stage::Create => {
                    self.stage = Stage::Queues;
                    let bytes = self.header.bytes;
                    return Ok(Turn::Do(self.scribe().extend(bytes)));
                }
                Stage::Queues => {
                    self.fill_queues();
                    if let Some(op) = self.write(|merging| &mut merging.queues) {
                        return Ok(Turn::Do(op));
                    }
                    self.at = (0, 0, 0);
                    self.sources.iter_mut().for_each(|source| _ = source.queues.seek(0, 0));
                    self.stage = Stage::Entries;
                }
                Stage::Entries => {
                    if let Some(turn) = self.fill_entries()? {
                        return Ok(turn);
                    }
                    if let Some(op) = self.write(|merging| &mut merging.entries) {
                        return Ok(Turn::Do(op));
                    }
                    self.stage = Stage::Keys;
                }
                Stage::Keys => {
                    if let Some(op) = self.fill_keys() {
                        return Ok(Turn::Do(op));
                    }
                    if let Some(op) = self.write(|merging| &mut merging.keys) {
                        return Ok(Turn::Do(op));
                    }
                    for fence in std::mem::take(&mut self.fences_of_keys) {
                        self.fences.push(&Fence(fence));
                    }
                    self.fences.end();
                    self.stage = Stage::Fences;
                }
                Stage::Fences => match self.write(|merging| &mut merging.fences) {
                    Some(op) => return Ok(Turn::Do(op)),
                    None => self.stage = Stage::Header,
                },
                Stage::Header => {
                    self.stage = Stage::Sync;
                    let header = self.header.encode();
                    return Ok(Turn::Do(self.scribe().write(0, &header)));
                }
                Stage::Sync => {
                    self.stage = Stage::Publish;
                    return Ok(Turn::Do(self.scribe().sync()));
                }
                Stage::Publish => {
                    self.stage = Stage::Finished;
                    return Ok(Turn::Do(self.scribe().publish()));
                }
                Stage::Finished => unreachable!("its owner was told"),
            }
        }
    }

    fn scribe(&mut self) -> &mut Scribe {
        self.scribe.as_mut().expect("it was begun")
    }

    /// The first operation that a source wants.
    fn read(&mut self, mut wanted: impl FnMut(&mut Source, bool) -> Option<Op>) -> Option<Op> {
        let direct = self.direct;
        let mut sources = self.sources.iter_mut().enumerate();
        let (index, op) = sources.find_map(|(index, source)| Some((index, wanted(source, direct)?)))?;
        self.reading = Some(index);
        Some(op)
    }

    /// Writes what is full of a section, or all of it once it is ended.
    fn write(&mut self, section: impl Fn(&mut Merging) -> &mut Section) -> Option<Op> {
        let section = section(self);
        let least = if section.is_full() { SLICE_BYTES } else { 1 };
        let (at, bytes) = section.take(least)?;
        Some(self.scribe().write(at, &bytes))
    }

    /// Lists the queues, a slice. `None`: all are.
    fn survey(&mut self, index: &mut Index) -> Option<Turn> {
        for _ in 0..SLICE_QUEUES {
            if let Some(op) = self.read(|source, _| source.read_queues()) {
                return Some(Turn::Do(op));
            }
            let queue = self.sources.iter().filter_map(|source| source.queues.peek::<Slot>()).map(|slot| slot.queue);
            let queue = queue.min()?;
            let mut whole: Option<(Slot, u16)> = None;
            for (number, source) in (0..).zip(&mut self.sources) {
                let Some(slot) = source.queues.peek::<Slot>().filter(|slot| slot.queue == queue) else { continue };
                source.queues.pass();
                whole = match whole {
                    Some((before, first)) if before.first + u64::from(before.count) == slot.first => {
                        let count = before.count.saturating_add(slot.count);
                        Some((Slot { count, ..before }, first))
                    }
                    _ => Some((slot, number)),
                };
            }
            // Nobody asks for one that was forgotten.
            self.list.extend(whole.filter(|_| index.get(queue).is_some()));
        }
        Some(Turn::Again)
    }

    /// All is known: where each section begins, and how long the file is.
    fn create(&mut self) -> Result<Op, Trouble> {
        let (mut entries, mut keys) = (0, 0);
        for (slot, _) in &mut self.list {
            slot.place = u32::try_from(entries).unwrap_or(u32::MAX);
            entries += u64::from(slot.count);
        }
        for header in self.sources.iter().filter_map(|source| source.header) {
            keys += u64::from(header.keys);
            self.header.oldest_ms = self.header.oldest_ms.min(header.oldest_ms);
            self.header.newest_ms = self.header.newest_ms.max(header.newest_ms);
        }
        let there: u64 =
            self.sources.iter().filter_map(|source| source.header).map(|header| u64::from(header.entries)).sum();
        let count = |count: u64| u32::try_from(count).ok().filter(|_| entries <= there);
        let first = &self.sources[0];
        let (Some(entries), Some(keys)) = (count(entries), count(keys)) else {
            return Err(first.damaged(0, "its directory names entries that it does not have"));
        };
        let header = &mut self.header;
        (header.queues, header.entries, header.keys) = (self.list.len() as u32, entries, keys);
        header.entries_at = 1 + header.directory_blocks();
        header.keys_at = header.entries_at + Entry::blocks(entries.into());
        header.fences_at = header.keys_at + header.key_blocks();
        header.bytes = u64::from(header.fences_at + header.fence_blocks()) * BLOCK_BYTES;
        let from = header.from;
        self.queues = Section::new(from, 1);
        self.entries = Section::new(from, header.entries_at);
        self.keys = Section::new(from, header.keys_at);
        self.fences = Section::new(from, header.fences_at);
        let name = name(header.from, header.to);
        let (scribe, op) = Scribe::begin(&self.directory, TEMPORARY, &name, self.direct);
        self.scribe = Some(scribe);
        Ok(op)
    }

    fn fill_queues(&mut self) {
        while !self.queues.is_full() {
            let Some((slot, _)) = self.list.get(self.at.0) else { return self.queues.end() };
            if self.at.0.is_multiple_of(Slot::PER_BLOCK) {
                self.fences.push(&Fence(pack(slot.queue)));
            }
            self.queues.push(slot);
            self.at.0 += 1;
        }
    }

    /// Copies entries until a slice is full, or all are copied: `None`.
    fn fill_entries(&mut self) -> Result<Option<Turn>, Trouble> {
        let mut looked = 0;
        while !self.entries.is_full() {
            let (at, number, left) = self.at;
            let Some(&(slot, first)) = self.list.get(at) else {
                self.entries.end();
                return Ok(None);
            };
            let Some(source) = self.sources.get_mut(number) else {
                self.at = (at + 1, 0, 0);
                continue;
            };
            let op = if left > 0 { source.read_entries() } else { source.read_queues() };
            if let Some(op) = op {
                self.reading = Some(number);
                return Ok(Some(Turn::Do(op)));
            }
            if left > 0 {
                let Some(entry) = source.entries.peek::<Entry>() else {
                    return Err(source.damaged(0, "its directory names entries that it does not have"));
                };
                source.entries.pass();
                self.entries.push(&entry);
                self.at = (at, if left > 1 { number } else { number + 1 }, left - 1);
                continue;
            }
            // One that has nothing of the queue, or nothing that counts, is passed over.
            looked += 1;
            if looked == SLICE_QUEUES * self.sources.len() {
                return Ok(Some(Turn::Again));
            }
            let source = &mut self.sources[number];
            let mut counts = 0;
            match source.queues.peek::<Slot>() {
                Some(old) if old.queue < slot.queue => {
                    source.queues.pass();
                    continue;
                }
                Some(old) if old.queue == slot.queue => {
                    source.queues.pass();
                    if number >= usize::from(first) && old.count > 0 {
                        counts = u64::from(old.count);
                        if !source.entries.seek(old.place.into(), counts) {
                            return Err(source.damaged(0, "its directory names entries that it does not have"));
                        }
                    }
                }
                _ => {}
            }
            self.at = (at, if counts > 0 { number } else { number + 1 }, counts);
        }
        Ok(None)
    }

    /// Merges keys until a slice is full, or all are there, unless something must be read first.
    fn fill_keys(&mut self) -> Option<Op> {
        while !self.keys.is_full() {
            while let Some(&number) = self.headless.last() {
                let source = &mut self.sources[number];
                if let Some(op) = source.read_keys() {
                    self.reading = Some(number);
                    return Some(op);
                }
                if let Some(Key(hash, byte)) = source.keys.peek::<Key>() {
                    source.keys.pass();
                    self.heads.push(Reverse((hash, byte, number)));
                }
                self.headless.pop();
            }
            let Some(Reverse((hash, byte, number))) = self.heads.pop() else {
                self.keys.end();
                return None;
            };
            if self.keys.is_at_start() {
                self.fences_of_keys.push(hash);
            }
            self.keys.push(&Key(hash, byte));
            self.headless.push(number);
        }
        None
    }
}
