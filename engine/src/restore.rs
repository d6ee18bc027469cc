//! What an opening takes over from the files that are derived from the log, so that it need not read the log
//! again: the checkpoint's facts and delayed messages, and the queues of the newest run. Anything that is
//! missing, damaged or does not fit is no error: everything is derived again. Files of no use are removed.

use crate::checkpoint;
use crate::derived::Derived;
use crate::facts;
use crate::format::derived::{
    CHECKPOINT_VERSION, Closing, Item, Piece, PieceKind, RunHeader, Slot, decode_begin, decode_halves, decode_segments,
    decode_timers, is_whole,
};
use crate::format::{BLOCK_BYTES, FormatError};
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use crate::limits::LogConfig;
use crate::log::End;
use crate::recover::OpenError;
use crate::upkeep;
use crate::writing::{self, name};
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::path::PathBuf;

/// Bytes of one read.
const READ_BYTES: u32 = 1 << 20;

/// Where the log is to be read from.
#[derive(Debug)]
pub struct Start {
    /// The log up to here is in what was restored.
    pub end: End,
    /// Everything below this log byte was durable.
    pub durable: u64,
    /// When each segment was written last, by the log byte where it begins.
    pub segments: Vec<(u64, u64)>,
    /// What was restored.
    pub derived: Derived,
}

/// What is to be done.
#[derive(Debug)]
pub enum Next {
    /// This; then [`Restore::on_done`].
    Do(Op),
    /// Nothing more. `None`: the log is to be read from its beginning.
    Finished(Option<Box<Start>>),
}

#[derive(Debug)]
enum Step {
    OpenCheckpoint,
    Checkpoint(Handle),
    CloseCheckpoint,
    OpenRun,
    RunHeader(Handle),
    Directory(Handle),
    Close,
    Remove,
}

/// Why what is there is of no use.
#[derive(Debug)]
enum Unfit {
    /// This is wrong with this file.
    File(PathBuf, String),
    /// A newer RingMQ wrote it: nothing may be touched.
    Version(PathBuf, u16),
}

/// The restoring of one partition. One operation at a time.
#[derive(Debug)]
pub struct Restore {
    config: LogConfig,
    direct: bool,
    floor: u64,
    step: Step,
    /// Runs by name: where each begins and ends, and its length. By what is listed, sorted.
    runs: Vec<(u64, u64, u64)>,
    remove: VecDeque<PathBuf>,
    start: Option<Box<Start>>,
    bytes: Vec<u8>,
    read: u64,
    pieces: u32,
    header: Option<RunHeader>,
    closing: Option<Closing>,
    queues: usize,
}

impl Restore {
    /// Begins with what a listing of the directory found. `floor`: where the oldest segment begins, if there is
    /// one.
    pub fn begin(config: &LogConfig, files: &[(String, u64)], floor: Option<u64>, direct: bool) -> (Restore, Next) {
        let mut restore = Restore {
            config: config.clone(),
            direct,
            floor: floor.unwrap_or(0),
            step: Step::Remove,
            runs: files.iter().filter_map(|(file, bytes)| parse(file, *bytes)).collect(),
            remove: VecDeque::new(),
            start: None,
            bytes: Vec::new(),
            read: 0,
            pieces: 0,
            header: None,
            closing: None,
            queues: 0,
        };
        let temporaries = [checkpoint::TEMPORARY, writing::TEMPORARY, upkeep::TEMPORARY];
        for (file, _) in files.iter().filter(|(file, _)| temporaries.contains(&&**file)) {
            restore.remove.push_back(config.directory.join(file));
        }
        let there = files.iter().any(|(file, _)| file == checkpoint::NAME);
        let next = if there && floor.is_some() {
            restore.step = Step::OpenCheckpoint;
            restore.open(config.directory.join(checkpoint::NAME))
        } else {
            if !restore.runs.is_empty() {
                let partition = config.partition;
                tracing::info!(partition, "there are runs and no checkpoint: they are made again from the log");
            }
            restore.reject_all(there);
            restore.remove_next()
        };
        (restore, next)
    }

    /// Takes the outcome of the last operation.
    pub fn on_done(&mut self, outcome: Result<Outcome, Fault>) -> Result<Next, OpenError> {
        match self.advance(outcome) {
            Ok(next) => Ok(next),
            Err(Unfit::Version(path, version)) => Err(OpenError::Version { path, version }),
            Err(Unfit::File(path, why)) => {
                tracing::warn!(file = %path.display(), why, "everything derived is made again from the log");
                self.start = None;
                self.reject_all(true);
                // The file at hand is closed first.
                if let Some(handle) = self.handle() {
                    self.step = Step::Close;
                    return Ok(Next::Do(Op::Close { handle }));
                }
                Ok(self.remove_next())
            }
        }
    }

    /// The file that is open, to be closed when the opening ends here.
    pub fn handle(&self) -> Option<Handle> {
        match self.step {
            Step::Checkpoint(handle) | Step::RunHeader(handle) | Step::Directory(handle) => Some(handle),
            Step::OpenCheckpoint | Step::CloseCheckpoint | Step::OpenRun | Step::Close | Step::Remove => None,
        }
    }

    fn advance(&mut self, outcome: Result<Outcome, Fault>) -> Result<Next, Unfit> {
        let outcome = match (outcome, &self.step) {
            (Ok(outcome), _) => outcome,
            // What cannot be removed is in nobody's way.
            (Err(_), Step::Remove | Step::Close) => return Ok(self.remove_next()),
            (Err(fault), Step::OpenCheckpoint | Step::Checkpoint(_) | Step::CloseCheckpoint) => {
                return Err(self.checkpoint(&fault.to_string()));
            }
            (Err(fault), _) => return Err(self.run(&fault.to_string())),
        };
        match (&self.step, outcome) {
            (Step::OpenCheckpoint, Outcome::Opened(handle)) => {
                self.step = Step::Checkpoint(handle);
                Ok(self.read_op(handle))
            }
            (Step::Checkpoint(handle), Outcome::Read(bytes)) => {
                let handle = *handle;
                if bytes.is_empty() {
                    return Err(self.checkpoint("it ends too early"));
                }
                self.read += bytes.len() as u64;
                self.bytes.extend_from_slice(&bytes);
                self.take_pieces()?;
                if self.closing.is_none() {
                    return Ok(self.read_op(handle));
                }
                self.choose_runs()?;
                self.step = Step::CloseCheckpoint;
                Ok(Next::Do(Op::Close { handle }))
            }
            (Step::CloseCheckpoint, _) => {
                self.step = Step::OpenRun;
                Ok(self.open(self.run_path()))
            }
            (Step::OpenRun, Outcome::Opened(handle)) => {
                self.step = Step::RunHeader(handle);
                Ok(Next::Do(Op::Read { file: handle, at: 0, length: BLOCK_BYTES as u32 }))
            }
            (Step::RunHeader(handle), Outcome::Read(block)) => {
                let handle = *handle;
                let (from, to, bytes) = *self.runs.last().expect("choose_runs() left one");
                let header = match RunHeader::decode(&block, from) {
                    Ok(header) => header,
                    Err(FormatError::Version(version)) => return Err(Unfit::Version(self.run_path(), version)),
                    Err(FormatError::Damaged) => return Err(self.run("its header is damaged")),
                };
                if (header.to, header.bytes, header.partition) != (to, bytes, self.config.partition) {
                    return Err(self.run("its header does not fit its name"));
                }
                self.header = Some(header);
                self.read = BLOCK_BYTES;
                self.step = Step::Directory(handle);
                Ok(self.directory_op(handle))
            }
            (Step::Directory(handle), Outcome::Read(bytes)) => {
                let handle = *handle;
                self.take_directory(&bytes)?;
                Ok(self.directory_op(handle))
            }
            (Step::Close | Step::Remove, _) => Ok(self.remove_next()),
            (step, outcome) => unreachable!("{outcome:?} is no answer to {step:?}"),
        }
    }

    // -- the checkpoint ----------------------------------------------------------------------------

    fn take_pieces(&mut self) -> Result<(), Unfit> {
        let bytes = std::mem::take(&mut self.bytes);
        let mut at = 0;
        while self.closing.is_none() {
            if bytes.len() - at < BLOCK_BYTES as usize {
                break;
            }
            let Some(length) = Piece::bytes(&bytes[at..]) else {
                return Err(self.checkpoint("a piece of it is damaged"));
            };
            let Some(whole) = bytes.get(at..at + length) else { break };
            match Piece::decode(whole) {
                Ok(piece) if piece.number == self.pieces && piece.partition == self.config.partition => {
                    self.take_piece(piece)?;
                }
                Err(FormatError::Version(version)) if version < CHECKPOINT_VERSION => {
                    return Err(self.checkpoint("an older RingMQ wrote it"));
                }
                Err(FormatError::Version(version)) => {
                    return Err(Unfit::Version(self.config.directory.join(checkpoint::NAME), version));
                }
                Ok(_) | Err(FormatError::Damaged) => return Err(self.checkpoint("a piece of it is damaged")),
            }
            self.pieces += 1;
            at += length;
        }
        self.bytes = bytes[at..].to_vec();
        Ok(())
    }

    fn take_piece(&mut self, piece: Piece<'_>) -> Result<(), Unfit> {
        let Some(start) = &mut self.start else {
            let end = decode_begin(piece.payload).filter(|_| piece.kind == PieceKind::Begin);
            let Some(end) = end else { return Err(self.checkpoint("it does not say where the log stood")) };
            let derived = Derived::new(&self.config, end, self.direct);
            self.start = Some(Box::new(Start { end, durable: 0, segments: Vec::new(), derived }));
            return Ok(());
        };
        match piece.kind {
            PieceKind::Begin => return Err(self.checkpoint("it begins twice")),
            PieceKind::Facts => {
                facts::decode(piece.payload).for_each(|(key, change)| start.derived.facts.apply(key, change));
            }
            PieceKind::Timers => {
                decode_timers(piece.payload).for_each(|timer| start.derived.timers.insert(timer));
            }
            PieceKind::Halves => {
                decode_halves(piece.payload).for_each(|half| start.derived.halves.insert(half));
            }
            PieceKind::Segments => start.segments.extend(decode_segments(piece.payload)),
            PieceKind::End => {
                let Some(closing) = Closing::decode(piece.payload) else {
                    return Err(self.checkpoint("its end is damaged"));
                };
                start.durable = closing.durable;
                (start.derived.begun, start.derived.snapshot) = (closing.begun, closing.snapshot);
                self.closing = Some(closing);
            }
        }
        Ok(())
    }

    /// Those that reach from the floor to the checkpoint without a gap; the others go. A run that was merged into
    /// a longer one may still be there.
    fn choose_runs(&mut self) -> Result<(), Unfit> {
        let end = self.start.as_ref().expect("a closing comes after a beginning").end.head;
        // The longest first of those that begin together.
        self.runs.sort_by_key(|(from, to, _)| (*from, Reverse(*to)));
        let mut covered = self.floor;
        let (chosen, others): (Vec<_>, Vec<_>) = self.runs.iter().partition(|(_, to, _)| {
            let is_of_use = *to > covered && *to <= end;
            covered = if is_of_use { *to } else { covered };
            is_of_use
        });
        let directory = &self.config.directory;
        self.remove.extend(others.iter().map(|(from, to, _)| directory.join(name(*from, *to))));
        let gap = chosen.windows(2).find(|pair| pair[0].1 != pair[1].0).map(|pair| pair[0].1);
        let first = chosen.first().map_or(u64::MAX, |(from, _, _)| *from);
        let last = chosen.last().map_or(0, |(_, to, _)| *to);
        if let Some(missing) = gap.or((first > self.floor).then_some(self.floor)).or((last != end).then_some(last)) {
            return Err(self.checkpoint(&format!("the run that begins at log byte {missing} is missing")));
        }
        self.runs = chosen;
        Ok(())
    }

    // -- the newest run ----------------------------------------------------------------------------

    fn directory_op(&mut self, handle: Handle) -> Next {
        let header = self.header.expect("it was read");
        let left = u64::from(1 + header.directory_blocks()) * BLOCK_BYTES - self.read;
        if left == 0 {
            let start = self.start.as_mut().expect("the checkpoint was read");
            start.derived.runs.adopt(&self.runs);
            self.step = Step::Close;
            return Next::Do(Op::Close { handle });
        }
        let length = left.min(READ_BYTES.into()) as u32;
        Next::Do(Op::Read { file: handle, at: self.read, length })
    }

    fn take_directory(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        let header = self.header.expect("it was read");
        if bytes.is_empty() {
            return Err(self.run("it ends too early"));
        }
        for block in bytes.chunks(BLOCK_BYTES as usize) {
            let number = (self.read / BLOCK_BYTES) as u32;
            if !is_whole(block, header.from, number) {
                return Err(self.run("a checksum of its directory is wrong"));
            }
            let start = self.start.as_mut().expect("the checkpoint was read");
            for at in 0..(header.queues as usize - self.queues).min(Slot::PER_BLOCK) {
                let slot = Slot::at(block, at);
                start.derived.index.restore(slot.queue, slot.first.saturating_add(slot.count.into()));
                self.queues += 1;
            }
            self.read += BLOCK_BYTES;
        }
        Ok(())
    }

    // -- files -------------------------------------------------------------------------------------

    fn checkpoint(&self, why: &str) -> Unfit {
        Unfit::File(self.config.directory.join(checkpoint::NAME), why.to_owned())
    }

    fn run(&self, why: &str) -> Unfit {
        Unfit::File(self.run_path(), why.to_owned())
    }

    fn run_path(&self) -> PathBuf {
        self.config.directory.join(self.runs.last().map_or(String::new(), |(from, to, _)| name(*from, *to)))
    }

    fn open(&self, path: PathBuf) -> Next {
        Next::Do(Op::Open { path, how: OpenHow { create: false, direct: self.direct, read_only: true } })
    }

    fn read_op(&self, file: Handle) -> Next {
        Next::Do(Op::Read { file, at: self.read, length: READ_BYTES })
    }

    /// Nothing is of use: all goes, the checkpoint first.
    fn reject_all(&mut self, checkpoint: bool) {
        let directory = &self.config.directory;
        let runs = self.runs.iter().map(|(from, to, _)| directory.join(name(*from, *to)));
        self.remove.extend(runs);
        if checkpoint {
            self.remove.push_front(directory.join(checkpoint::NAME));
        }
    }

    fn remove_next(&mut self) -> Next {
        self.step = Step::Remove;
        match self.remove.pop_front() {
            Some(path) => Next::Do(Op::Remove { path }),
            None => Next::Finished(self.start.take()),
        }
    }
}

/// The run that a file's name says it is.
fn parse(file: &str, bytes: u64) -> Option<(u64, u64, u64)> {
    let (from, to) = file.strip_prefix("run-")?.split_once('-')?;
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (name(from, to) == *file).then_some((from, to, bytes))
}
