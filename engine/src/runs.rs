//! Sorted runs: where each queue's older messages lie, on disk, one file for each stretch of the log.
//!
//! A run lists every queue that was known, also those without messages in it. So one look into its directory
//! tells whether an offset lies before it, in it or behind it, and a binary search over the runs finds it.
//! Blocks are read as they are needed into a bounded cache; whoever needs one that is not there is told which
//! read to wait for, and asks again. A block whose sum is wrong is never believed: it is reported once, and its run is
//! made again from the log while whoever needs it waits. A run that cannot be made again is *lost*: whoever needs it
//! is told so, and everybody else finds a way around it.

mod renewal;

pub use renewal::{Repair, Table};

use crate::blocks::Blocks;
use crate::format::derived::{Fence, Item, Key, RunHeader, Slot, is_whole, pack};
use crate::format::{BLOCK_BYTES, QueueKey};
use crate::index::{Entry, Index};
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use crate::limits::{RUN_READS_MAX, RUNS_OPEN_MAX};
use crate::loads::LoadId;
use crate::writing::name;
use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Numbers of reads of runs have this bit, which those of the log never reach.
const LOAD_BIT: u64 = 1 << 35;
/// The numbers of operations that are no reads.
const REMOVE: u64 = 1;
const CLOSE: u64 = 2;
/// Blocks of entries that are read at once: a consumer that walks along a queue needs the next ones soon.
const ENTRIES_AHEAD: u32 = 8;
/// Blocks of a directory read at once when the oldest offsets are looked up, one slice of a turn.
const SWEEP_AHEAD: u32 = 16;
/// A file that could not be removed is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 1000;

/// Why something cannot be told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// It is being read, or made again: ask again when this is done.
    Loading(LoadId),
    /// The run that begins at this log byte is damaged, and so is the log that it would be made of.
    Damaged(u64),
}

/// Where an offset lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// There.
    At(Entry),
    /// It is gone; this is the first offset that is left.
    Gone(u64),
}

/// Where the last message of a walk along a queue was: the next one is near.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    from: u64,
    slot: Slot,
}

/// A search for a key, newest message first, as far as it came.
#[derive(Clone, Debug)]
pub struct KeySearch {
    /// What is looked for: a key's hash, and at most so many messages.
    pub hash: u64,
    /// How many at most.
    pub count: usize,
    /// Stretches without a message stored between these times are passed over. Milliseconds since 1970.
    pub times_ms: (u64, u64),
    /// Log bytes of messages found, newest first.
    pub found: Vec<u64>,
    /// A run is damaged and cannot be made again: of its messages none was found.
    pub is_partial: bool,
    /// The log bytes at which messages are still to be looked for. Runs may be merged meanwhile.
    within: Range<u64>,
}

impl KeySearch {
    /// Nothing was looked at yet.
    pub fn new(hash: u64, count: usize, times_ms: (u64, u64)) -> KeySearch {
        KeySearch { hash, count, times_ms, found: Vec::new(), is_partial: false, within: 0..u64::MAX }
    }

    /// The same of messages at these log bytes alone.
    pub fn within(self, within: Range<u64>) -> KeySearch {
        KeySearch { within, ..self }
    }

    /// Looks at the messages above the log byte `settled`, up to which there are runs, unless that was done:
    /// `find` gives those with a hash at some log bytes, at most so many.
    pub fn newest(&mut self, settled: u64, find: impl FnOnce(u64, Range<u64>, usize) -> Vec<u64>) {
        let from = settled.max(self.within.start);
        if from < self.within.end {
            self.found = find(self.hash, from..self.within.end, self.count);
            // Later, there may be runs of what was looked at here.
            self.within.end = from;
        }
    }
}

/// One run's file.
#[derive(Debug)]
struct Run {
    from: u64,
    to: u64,
    bytes: u64,
    /// No other file has it, nor had: runs are replaced.
    serial: u64,
    /// When it was used last, counted in uses.
    used: u64,
    health: Health,
    state: State,
}

#[derive(Debug, PartialEq, Eq)]
enum Health {
    Whole,
    /// It is to be made again; who waits for that waits for this.
    Damaged(Option<LoadId>),
    /// So is its log. It is tried again at this time.
    Lost(u64),
}

/// A file that is not used any more.
#[derive(Debug)]
struct Leaving {
    run: Run,
    /// It is to be removed; otherwise another one has its name.
    path: Option<PathBuf>,
}

/// Where a run is: between which log bytes, and its file's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The log byte where it begins.
    pub from: u64,
    /// The log byte behind it.
    pub to: u64,
    /// Its bytes.
    pub bytes: u64,
}

#[derive(Debug)]
enum State {
    Shut,
    Opening(LoadId),
    Open { handle: Handle, head: Arc<Head> },
}

/// What of an open run is always in memory.
#[derive(Debug)]
struct Head {
    header: RunHeader,
    fences: Vec<u64>,
}

#[derive(Debug)]
struct Pending {
    id: LoadId,
    /// The run, by where it begins and its serial: it may be gone when the read is back.
    from: u64,
    serial: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Open,
    Header(Handle),
    Fences(Handle, RunHeader),
    Blocks { first: u32, count: u32 },
}

/// All runs of a partition, oldest first, without gaps.
#[derive(Debug)]
pub struct Runs {
    directory: PathBuf,
    partition: u16,
    direct: bool,
    list: VecDeque<Run>,
    /// Runs that are not used any more, to be closed and removed.
    leaving: VecDeque<Leaving>,
    removing: bool,
    remove_at_ms: u64,
    blocks: Blocks,
    pending: Vec<Pending>,
    next_load: u64,
    uses: u64,
    serials: u64,
    /// Where those begin that are not whole.
    broken: BTreeSet<u64>,
    told: Vec<(LoadId, Result<(), Fault>)>,
    /// The run whose directory says what the oldest offsets are, and the next block of it to look at.
    sweep: Option<(u64, u32)>,
    ops: Vec<(u64, Op)>,
}

impl Runs {
    /// None yet. `direct`: files can be opened past the page cache.
    pub fn new(directory: PathBuf, partition: u16, seed: u64, direct: bool) -> Runs {
        Runs {
            directory,
            partition,
            direct,
            list: VecDeque::new(),
            leaving: VecDeque::new(),
            removing: false,
            remove_at_ms: 0,
            blocks: Blocks::new(seed),
            pending: Vec::new(),
            next_load: 0,
            uses: 0,
            serials: 0,
            broken: BTreeSet::new(),
            told: Vec::new(),
            sweep: None,
            ops: Vec::new(),
        }
    }

    /// The runs that were found: where each begins and ends, and its length.
    pub fn adopt(&mut self, found: &[(u64, u64, u64)]) {
        self.list = (0..).zip(found).map(|(serial, &(from, to, bytes))| Run::new(from, to, bytes, serial)).collect();
        self.serials = found.len() as u64;
        self.sweep = self.list.front().map(|run| (run.from, 1));
    }

    /// Files can be opened past the page cache, or not.
    pub fn set_direct(&mut self, direct: bool) {
        self.direct = direct;
    }

    /// A run was written behind the others.
    pub fn push(&mut self, from: u64, to: u64, bytes: u64) {
        assert!(self.list.back().is_none_or(|last| last.to == from), "runs have no gaps");
        let run = self.new_run(from, to, bytes);
        self.list.push_back(run);
    }

    fn new_run(&mut self, from: u64, to: u64, bytes: u64) -> Run {
        self.serials += 1;
        Run::new(from, to, bytes, self.serials - 1)
    }

    /// How many there are, and their bytes.
    pub fn size(&self) -> (u64, u64) {
        (self.list.len() as u64, self.list.iter().map(|run| run.bytes).sum())
    }

    /// What lies below this log byte was retired: so are its runs. The first that is left says what the
    /// oldest offsets are.
    pub fn retire(&mut self, floor: u64) {
        while let Some(run) = self.list.pop_front_if(|run| run.to <= floor) {
            self.leave(run, 0);
            self.sweep = self.list.front().map(|run| (run.from, 1));
        }
    }

    /// Wants an operation of somebody else's, whose number is none of the runs'.
    pub fn want(&mut self, number: u64, op: Op) {
        self.ops.push((number, op));
    }

    /// Wants a file closed.
    pub fn close(&mut self, handle: Handle) {
        self.ops.push((CLOSE, Op::Close { handle }));
    }

    /// Operations that are wanted, each with its number.
    pub fn ops(&mut self) -> impl Iterator<Item = (u64, Op)> {
        self.ops.drain(..)
    }

    /// Whether operations are under way.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty() || self.removing || !self.ops.is_empty()
    }

    /// Open files, to be closed.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let leaving = self.leaving.iter().map(|leaving| &leaving.run);
        self.list.iter().chain(leaving).filter_map(|run| match run.state {
            State::Open { handle, .. } => Some(handle),
            State::Shut | State::Opening(_) => None,
        })
    }

    // -- looking up ------------------------------------------------------------------------------

    /// Where the message with an offset lies. `cursor` makes walking along a queue cheap.
    pub fn locate(
        &mut self,
        queue: QueueKey,
        offset: u64,
        cursor: &mut Option<Cursor>,
    ) -> Result<Option<Located>, Miss> {
        let (mut low, mut high) = (0, self.list.len());
        let mut guess = None;
        if let Some(Cursor { from, slot }) = cursor.filter(|cursor| cursor.slot.queue == queue)
            && let Some(index) = self.index_of(from)
        {
            if slot.has(offset) {
                return self.entry(index, slot, offset).map(|entry| Some(Located::At(entry)));
            }
            guess = Some(index + 1);
        }
        let mut gone = None;
        while low < high {
            let middle = guess.take().filter(|guess| *guess < high).unwrap_or(low + (high - low) / 2);
            // What is lost says nothing: one beside it does.
            let is_known = |index: &usize| !matches!(self.list[*index].health, Health::Lost(_));
            let known = (low..=middle).rev().find(is_known).or_else(|| (middle..high).find(is_known));
            let Some(middle) = known else { return Err(Miss::Damaged(self.list[low].from)) };
            match self.slot(middle, queue)? {
                // It was not known then.
                None => low = middle + 1,
                Some(slot) if offset < slot.first => (high, gone) = (middle, Some(slot.first)),
                Some(slot) if slot.has(offset) => {
                    *cursor = Some(Cursor { from: self.list[middle].from, slot });
                    return self.entry(middle, slot, offset).map(|entry| Some(Located::At(entry)));
                }
                Some(_) => low = middle + 1,
            }
        }
        Ok(gone.map(Located::Gone))
    }

    /// A walk along a queue has come to an offset: what it needs of the runs soon is read before it is asked for.
    pub fn read_ahead(&mut self, Cursor { from, slot }: Cursor, offset: u64) {
        let Some(index) = self.index_of(from).filter(|_| self.pending.len() < RUN_READS_MAX / 2) else { return };
        let ahead = u64::from(ENTRIES_AHEAD / 2) * Entry::PER_BLOCK as u64;
        // Whatever is on its way, or fails, is noticed when it is needed.
        if slot.has(offset + ahead) {
            _ = self.entry(index, slot, offset + ahead);
        } else if index + 1 < self.list.len()
            && let Ok(Some(slot)) = self.slot(index + 1, slot.queue)
            && slot.count > 0
        {
            _ = self.entry(index + 1, slot, slot.first);
        }
    }

    /// Finds messages with a key, from the newest run to the oldest, without those that are lost. `Err`: ask again
    /// when this read is back.
    pub fn find(&mut self, search: &mut KeySearch) -> Result<(), LoadId> {
        while search.found.len() < search.count && !search.within.is_empty() {
            let index = self.list.partition_point(|run| run.from < search.within.end).checked_sub(1);
            let Some(index) = index else { return Ok(()) };
            let from = self.list[index].from;
            match self.keys(index, search) {
                Ok(found) => search.found.extend(found),
                Err(Miss::Damaged(_)) => search.is_partial = true,
                Err(Miss::Loading(load)) => return Err(load),
            }
            search.within.end = from;
        }
        Ok(())
    }

    /// What one run has of what is looked for: log bytes, newest first and no more than are missing. All blocks of a key
    /// that every message has would never be in memory together.
    fn keys(&mut self, index: usize, search: &KeySearch) -> Result<Vec<u64>, Miss> {
        let head = self.head(index)?;
        let (hash, Range { start, end }) = (search.hash, search.within.clone());
        let room = search.count - search.found.len();
        let mut found = Vec::new();
        let header = &head.header;
        if header.oldest_ms > search.times_ms.1 || header.newest_ms < search.times_ms.0 {
            return Ok(found);
        }
        let fences = &head.fences[header.directory_blocks() as usize..];
        let keys_at = |number: usize| header.keys_at + number as u32;
        // The first block that may have it is the last that begins below it.
        let first = fences.partition_point(|fence| *fence < hash).saturating_sub(1);
        let mut blocks = fences.partition_point(|fence| *fence <= hash);
        if end < self.list[index].to {
            // Those behind the first begin with it, in the order of the log.
            let mut low = blocks.min(first + 1);
            while low < blocks {
                let middle = low + (blocks - low) / 2;
                let block = self.block(index, keys_at(middle), 1)?;
                if Key::at(&block, 0).1 < end { low = middle + 1 } else { blocks = middle }
            }
        }
        for number in (first..blocks).rev() {
            let block = self.block(index, keys_at(number), 1)?;
            let count = (header.keys as usize - number * Key::PER_BLOCK).min(Key::PER_BLOCK);
            let keys = (0..count).rev().map(|at| Key::at(&block, at));
            let inside = keys.filter(|key| key.0 == hash && (start..end).contains(&key.1)).map(|key| key.1);
            found.extend(inside.take(room - found.len()));
            let begin = Key::at(&block, 0);
            if found.len() == room || begin.0 == hash && begin.1 < start {
                break;
            }
        }
        Ok(found)
    }

    /// What a run's directory says of a queue.
    fn slot(&mut self, index: usize, queue: QueueKey) -> Result<Option<Slot>, Miss> {
        let head = self.head(index)?;
        let fences = &head.fences[..head.header.directory_blocks() as usize];
        let Some(number) = fences.partition_point(|fence| *fence <= pack(queue)).checked_sub(1) else {
            return Ok(None);
        };
        let block = self.block(index, 1 + number as u32, 1)?;
        let (mut low, mut high) = (0, (head.header.queues as usize - number * Slot::PER_BLOCK).min(Slot::PER_BLOCK));
        while low < high {
            let middle = low + (high - low) / 2;
            let slot = Slot::at(&block, middle);
            match slot.queue.cmp(&queue) {
                std::cmp::Ordering::Equal => return Ok(Some(slot)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    fn entry(&mut self, index: usize, slot: Slot, offset: u64) -> Result<Entry, Miss> {
        let head = self.head(index)?;
        let number = u64::from(slot.place) + (offset - slot.first);
        let (block, at) = (number / Entry::PER_BLOCK as u64, (number % Entry::PER_BLOCK as u64) as usize);
        if number >= head.header.entries.into() {
            let Run { from, serial, .. } = self.list[index];
            self.damaged(from, serial, 0, "its directory names entries that it does not have");
            return Err(self.miss(index));
        }
        let block = self.block(index, head.header.entries_at + block as u32, ENTRIES_AHEAD)?;
        Ok(Entry::at(&block, at))
    }

    fn index_of(&self, from: u64) -> Option<usize> {
        let index = self.list.partition_point(|run| run.from < from);
        self.list.get(index).is_some_and(|run| run.from == from).then_some(index)
    }

    // -- the oldest offsets ------------------------------------------------------------------------

    /// Reads on in the directory of the oldest run, which says which offsets are the oldest: a slice.
    pub fn sweep(&mut self, index: &mut Index) {
        let Some((from, number)) = self.sweep else { return };
        let Some(run) = self.index_of(from) else { return self.sweep = None };
        let head = match self.head(run) {
            Ok(head) => head,
            Err(_) => return,
        };
        let upto = (number + SWEEP_AHEAD).min(1 + head.header.directory_blocks());
        for number in number..upto {
            let Ok(block) = self.block(run, number, SWEEP_AHEAD) else { return };
            let before = (number as usize - 1) * Slot::PER_BLOCK;
            for at in 0..(head.header.queues as usize - before).min(Slot::PER_BLOCK) {
                let slot = Slot::at(&block, at);
                if let Some(queue) = index.get(slot.queue) {
                    queue.raise_min(slot.first);
                }
            }
            self.sweep = Some((from, number + 1));
        }
        if upto > head.header.directory_blocks() {
            self.sweep = None;
        }
    }

    // -- files -------------------------------------------------------------------------------------

    /// Removes files that are not used any more, one at a time.
    pub fn on_turn(&mut self, now_ms: u64) {
        if self.removing || now_ms < self.remove_at_ms {
            return;
        }
        while let Some(Leaving { run, path }) = self.leaving.front_mut() {
            // What is being read of it comes back first.
            if self.pending.iter().any(|pending| pending.serial == run.serial) {
                return;
            }
            let (state, path) = (std::mem::replace(&mut run.state, State::Shut), path.clone());
            if let State::Open { handle, .. } = state {
                self.close(handle);
            }
            if let Some(path) = path {
                self.removing = true;
                self.ops.push((REMOVE, Op::Remove { path }));
                return;
            }
            self.leaving.pop_front();
        }
    }

    /// When [`on_turn`](Runs::on_turn) or [`sweep`](Runs::sweep) has something to do though nothing happens.
    pub fn deadline_ms(&self) -> u64 {
        let is_whole = |(from, _): (u64, u32)| !self.broken.contains(&from);
        let sweeps = self.sweep.is_some_and(is_whole) && self.pending.is_empty();
        let removes = !self.removing && !self.leaving.is_empty() && self.pending.is_empty();
        match (sweeps, removes) {
            (true, _) => 0,
            (false, true) => self.remove_at_ms,
            (false, false) => u64::MAX,
        }
    }

    /// Takes the completion of one of [`ops`](Runs::ops). What it returns is to be told to those that wait.
    pub fn on_done(
        &mut self,
        number: u64,
        outcome: Result<Outcome, Fault>,
        now_ms: u64,
    ) -> Option<(LoadId, Result<(), Fault>)> {
        match number {
            CLOSE => return None,
            REMOVE => {
                self.removing = false;
                match outcome {
                    Err(fault) if fault != Fault(libc::ENOENT) => self.remove_at_ms = now_ms + RETRY_MS,
                    _ => _ = self.leaving.pop_front(),
                }
                return None;
            }
            _ => {}
        }
        let index = self.pending.iter().position(|pending| pending.id.0 == number).expect("a read comes back once");
        let Pending { id, from, serial, what } = self.pending.swap_remove(index);
        match (what, outcome) {
            (What::Open, Ok(Outcome::Opened(handle))) => {
                self.read(id, (from, serial), What::Header(handle), handle, 0, 1);
                None
            }
            (What::Header(handle), Ok(Outcome::Read(bytes))) => match self.check_header(from, serial, &bytes) {
                Ok(header) => {
                    let (first, count) = (header.fences_at, header.fence_blocks().max(1));
                    self.read(id, (from, serial), What::Fences(handle, header), handle, first, count);
                    None
                }
                Err(why) => {
                    self.shut(from, serial, Some(handle));
                    self.damaged(from, serial, 0, why);
                    Some((id, Ok(())))
                }
            },
            (What::Fences(handle, header), Ok(Outcome::Read(bytes))) => {
                match read_fences(&header, &bytes) {
                    Some(fences) => {
                        let state = State::Open { handle, head: Arc::new(Head { header, fences }) };
                        match self.run(from, serial) {
                            Some(run) => run.state = state,
                            None => self.close(handle),
                        }
                    }
                    None => {
                        self.shut(from, serial, Some(handle));
                        self.damaged(from, serial, u64::from(header.fences_at) * BLOCK_BYTES, "a checksum is wrong");
                    }
                }
                Some((id, Ok(())))
            }
            (What::Blocks { first, count }, Ok(Outcome::Read(bytes))) => {
                for (number, block) in (first..first + count).zip(bytes.chunks(BLOCK_BYTES as usize)) {
                    if is_whole(block, from, number) {
                        self.blocks.put((serial, number), block);
                    } else if number == first {
                        // Of the others one may be past its section's end, and was never written.
                        self.damaged(from, serial, u64::from(number) * BLOCK_BYTES, "a checksum is wrong");
                    }
                }
                if bytes.is_empty() {
                    self.damaged(from, serial, u64::from(first) * BLOCK_BYTES, "the file ends too early");
                }
                Some((id, Ok(())))
            }
            (What::Open, Err(Fault(libc::ENOENT))) => {
                self.shut(from, serial, None);
                self.damaged(from, serial, 0, "the file is missing");
                Some((id, Ok(())))
            }
            (What::Open, Err(fault)) => {
                self.shut(from, serial, None);
                Some((id, Err(fault)))
            }
            (What::Header(handle) | What::Fences(handle, _), Err(fault)) => {
                self.shut(from, serial, Some(handle));
                Some((id, Err(fault)))
            }
            (What::Blocks { .. }, Err(fault)) => Some((id, Err(fault))),
            (what, Ok(outcome)) => unreachable!("{outcome:?} is no answer to {what:?}"),
        }
    }

    fn check_header(&mut self, from: u64, serial: u64, block: &[u8]) -> Result<RunHeader, &'static str> {
        let partition = self.partition;
        let header = RunHeader::decode(block, from).map_err(|_| "its header is damaged")?;
        let is_it = self.run(from, serial).is_none_or(|run| run.to == header.to && run.bytes == header.bytes);
        if header.partition == partition && is_it { Ok(header) } else { Err("its header does not fit its name") }
    }

    fn run(&mut self, from: u64, serial: u64) -> Option<&mut Run> {
        match self.index_of(from).filter(|index| self.list[*index].serial == serial) {
            Some(index) => self.list.get_mut(index),
            None => self.leaving.iter_mut().map(|leaving| &mut leaving.run).find(|run| run.serial == serial),
        }
    }

    fn shut(&mut self, from: u64, serial: u64, handle: Option<Handle>) {
        if let Some(run) = self.run(from, serial) {
            run.state = State::Shut;
        }
        self.ops.extend(handle.map(|handle| (CLOSE, Op::Close { handle })));
    }

    /// Opens a run, unless it is.
    fn head(&mut self, index: usize) -> Result<Arc<Head>, Miss> {
        self.uses += 1;
        let run = &mut self.list[index];
        run.used = self.uses;
        if run.health != Health::Whole {
            return Err(self.miss(index));
        }
        let (from, serial) = (run.from, run.serial);
        match &run.state {
            State::Open { head, .. } => return Ok(Arc::clone(head)),
            State::Opening(load) => return Err(Miss::Loading(*load)),
            State::Shut => {}
        }
        if let Some(busy) = self.busy() {
            return Err(Miss::Loading(busy));
        }
        self.make_room();
        let path = self.directory.join(name(from, self.list[index].to));
        let id = self.load_id();
        self.list[index].state = State::Opening(id);
        self.pending.push(Pending { id, from, serial, what: What::Open });
        let how = OpenHow { create: false, direct: self.direct, read_only: true };
        self.ops.push((id.0, Op::Open { path, how }));
        Err(Miss::Loading(id))
    }

    /// A block of an open run; if it is missing, so many from it on are read.
    fn block(&mut self, index: usize, number: u32, ahead: u32) -> Result<Bytes, Miss> {
        let Run { from, serial, .. } = self.list[index];
        if let Some(block) = self.blocks.get((serial, number)) {
            return Ok(block);
        }
        let brings = |pending: &&Pending| match pending.what {
            What::Blocks { first, count } => pending.serial == serial && (first..first + count).contains(&number),
            _ => false,
        };
        if let Some(pending) = self.pending.iter().find(brings) {
            return Err(Miss::Loading(pending.id));
        }
        if let Some(busy) = self.busy() {
            return Err(Miss::Loading(busy));
        }
        let run = &self.list[index];
        let State::Open { handle, .. } = run.state else { unreachable!("the caller opened it") };
        let end = u32::try_from(run.bytes / BLOCK_BYTES).expect("a run has fewer than 2^32 blocks");
        let count = ahead.min(end - number);
        let id = self.load_id();
        self.read(id, (from, serial), What::Blocks { first: number, count }, handle, number, count);
        Err(Miss::Loading(id))
    }

    fn read(&mut self, id: LoadId, run: (u64, u64), what: What, file: Handle, first: u32, count: u32) {
        self.pending.push(Pending { id, from: run.0, serial: run.1, what });
        let length = count * BLOCK_BYTES as u32;
        self.ops.push((id.0, Op::Read { file, at: u64::from(first) * BLOCK_BYTES, length }));
    }

    /// What to wait for when no more reads may start.
    fn busy(&self) -> Option<LoadId> {
        (self.pending.len() >= RUN_READS_MAX).then(|| self.pending[0].id)
    }

    fn load_id(&mut self) -> LoadId {
        self.next_load += 1;
        LoadId(LOAD_BIT | self.next_load)
    }

    /// Closes the file that was not used for longest when too many are open.
    fn make_room(&mut self) {
        let is_read = |serial: u64| self.pending.iter().any(|pending| pending.serial == serial);
        let is_open = |run: &&mut Run| matches!(run.state, State::Open { .. });
        if self.list.iter_mut().filter(is_open).count() < RUNS_OPEN_MAX {
            return;
        }
        let idle = self.list.iter_mut().filter(is_open).filter(|run| !is_read(run.serial));
        if let Some(run) = idle.min_by_key(|run| run.used)
            && let State::Open { handle, .. } = std::mem::replace(&mut run.state, State::Shut)
        {
            self.close(handle);
        }
    }
}

impl Run {
    fn new(from: u64, to: u64, bytes: u64, serial: u64) -> Run {
        Run { from, to, bytes, serial, used: 0, health: Health::Whole, state: State::Shut }
    }

    fn place(&self) -> Place {
        Place { from: self.from, to: self.to, bytes: self.bytes }
    }
}

impl Slot {
    fn has(&self, offset: u64) -> bool {
        offset >= self.first && offset - self.first < u64::from(self.count)
    }
}

fn read_fences(header: &RunHeader, bytes: &[u8]) -> Option<Vec<u64>> {
    let mut fences = Vec::with_capacity(header.fences() as usize);
    for (number, block) in
        (header.fences_at..header.fences_at + header.fence_blocks()).zip(bytes.chunks(BLOCK_BYTES as usize))
    {
        if !is_whole(block, header.from, number) {
            return None;
        }
        let count = (header.fences() as usize - fences.len()).min(Fence::PER_BLOCK);
        fences.extend((0..count).map(|at| Fence::at(block, at).0));
    }
    (fences.len() == header.fences() as usize).then_some(fences)
}
