//! What a partition's directory holds, and where its log ends. One operation at a time, batch by batch.
//!
//! The log ends at the first place where no batch continues the chain. If an intact header behind that place
//! names a durable watermark above it, somebody was told that what is missing is safe: that is damage
//! *inside*, an error that a person or a replica decides about. Otherwise it is the *tail*: nobody was told.

use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Batch, BatchHeader, FormatError, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use crate::limits::{BATCH_BYTES_MAX, LogConfig};
use crate::log::End;
use crate::segment::{Segment, name};
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
/// Bytes of one read, and of the first: each may be twice the one before. Behind a checkpoint there is often little.
const READ_BYTES_MAX: u64 = 4 << 20;
const READ_BYTES_MIN: u64 = 256 << 10;

/// Why a partition does not open. It names the file, so that a person can decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// An operation failed.
    Io {
        /// On what.
        path: PathBuf,
        /// Why.
        fault: Fault,
    },
    /// Acknowledged messages are missing: the log is damaged below a durable watermark.
    Inside {
        /// The file where it breaks off.
        path: PathBuf,
        /// The log byte where it breaks off.
        byte: u64,
        /// The durable watermark that an intact header behind it names.
        durable: u64,
    },
    /// A segment is missing between two others.
    Gap {
        /// The segment behind the gap.
        path: PathBuf,
        /// The log byte at which the segment before it ends.
        byte: u64,
    },
    /// A segment's header is damaged, or it is another partition's.
    Header {
        /// The file.
        path: PathBuf,
    },
    /// A newer RingMQ wrote it.
    Version {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        version: u16,
    },
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Io { path, fault } => write!(f, "{}: {fault}", path.display()),
            OpenError::Inside { path, byte, durable } => write!(
                f,
                "{}: damaged at log byte {byte}, below the durable watermark {durable}: acknowledged messages are missing. \
                 Nothing was changed; restore the file, or take the partition from a replica",
                path.display()
            ),
            OpenError::Gap { path, byte } => {
                write!(f, "{}: the segment before it is missing: the log breaks off at byte {byte}", path.display())
            }
            OpenError::Header { path } => {
                write!(f, "{}: its segment header is damaged or another partition's", path.display())
            }
            OpenError::Version { path, version } => {
                write!(f, "{}: written in format version {version}, by a newer RingMQ", path.display())
            }
        }
    }
}

impl std::error::Error for OpenError {}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The segments, oldest first, without gaps.
    pub live: VecDeque<Segment>,
    /// Files whose content is of no use: path, open file, length.
    pub spares: Vec<(PathBuf, Handle, u64)>,
    /// The file system takes direct writes.
    pub direct: bool,
    /// Where the log ends.
    pub end: End,
    /// What lies below this log byte was durable before: the highest watermark that a batch of the log names.
    pub durable: u64,
}

/// What recovery wants.
#[derive(Debug)]
pub enum Next {
    /// This done; then [`Recovery::on_done`].
    Do(Op),
    /// All files are known and the segments are open: to be told where to begin, by [`Recovery::begin`].
    Ready,
    /// Nothing more: here is what there is.
    Finished(Found),
}

#[derive(Debug)]
enum Stage {
    Create,
    /// The directory above is made durable, and then the directory itself.
    Settle {
        above: bool,
    },
    List,
    Open {
        index: usize,
    },
    Head {
        index: usize,
        handle: Handle,
    },
    Remove {
        index: usize,
    },
    Ready,
    Scan,
    Search,
}

/// Where the next batch is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    /// Right behind the last one.
    Behind,
    /// On the next block: it was started while the last one was in the kernel.
    NextBlock,
    /// In the next segment: it did not fit any more.
    NextSegment,
}

/// Bytes of the log in memory, from one segment.
#[derive(Debug, Default)]
struct Window {
    from: u64,
    bytes: Bytes,
}

impl Window {
    fn end(&self) -> u64 {
        self.from + self.bytes.len() as u64
    }

    /// It is empty, and goes on at another place.
    fn clear(&mut self, from: u64) {
        self.from = from;
        self.bytes.clear();
    }

    /// Drops the blocks before this log byte, which it holds.
    fn skip_to(&mut self, byte: u64) {
        let gone = byte - byte % BLOCK_BYTES - self.from;
        self.bytes.advance(gone as usize);
        self.from += gone;
    }

    /// More bytes behind those it holds. Copies only if it holds some.
    fn add(&mut self, bytes: Bytes) {
        self.bytes = if self.bytes.is_empty() { bytes } else { [&self.bytes[..], &bytes[..]].concat().into() };
    }
}

/// The reading of one partition's directory.
#[derive(Debug)]
pub struct Recovery {
    directory: PathBuf,
    partition: u16,
    search_bytes: u64,
    stage: Stage,
    files: Vec<(String, u64)>,
    live: VecDeque<Segment>,
    spares: Vec<(PathBuf, Handle, u64)>,
    direct: bool,
    window: Window,
    attempt: Try,
    head: u64,
    chain: Option<u32>,
    epoch: u64,
    durable: u64,
    /// Log bytes behind the end that are still to be searched for headers: from there to their segment's end.
    searches: VecDeque<(u64, u64)>,
    /// Nothing is searched from this log byte on. It moves on with each batch that is found before.
    reach: u64,
    /// The highest durable watermark that a header there names.
    named: u64,
    /// Bytes of the next read, and of the largest.
    read_bytes: u64,
    read_bytes_max: u64,
    read: u64,
}

enum Looked {
    /// More bytes of the log are needed: from here.
    Read(u64),
    Batch {
        length: usize,
    },
    Nothing,
    Newer(u16),
}

impl Recovery {
    /// Starts with [`Recovery::first`].
    pub fn new(config: &LogConfig) -> Recovery {
        Recovery {
            directory: config.directory.clone(),
            partition: config.partition,
            // As many batches as may have been in the kernel when the first missing one was acknowledged,
            // and the one after them that names the watermark.
            // Where a segment ends, less than a batch is skipped, and the next one's header.
            search_bytes: u64::from(config.inflight_batches + 3) * u64::from(BATCH_BYTES_MAX),
            stage: Stage::Create,
            files: Vec::new(),
            live: VecDeque::new(),
            spares: Vec::new(),
            direct: true,
            window: Window::default(),
            attempt: Try::Behind,
            head: 0,
            chain: None,
            epoch: 0,
            durable: 0,
            searches: VecDeque::new(),
            reach: 0,
            named: 0,
            read_bytes: READ_BYTES_MIN,
            read_bytes_max: READ_BYTES_MAX,
            read: 0,
        }
    }

    /// To read again what the segment that begins at log byte `base` has up to log byte `to`, all of which is part of
    /// the log, a little at a time: [`begin`](Recovery::begin) comes first. Behind `to` may be the beginning of a block.
    pub fn again(config: &LogConfig, base: u64, handle: Handle, to: u64) -> Recovery {
        let bytes = (to - base).next_multiple_of(BLOCK_BYTES);
        let segment = Segment { base, bytes, handle, newest_ms: 0, zeroed_to: base };
        let live = VecDeque::from([segment]);
        Recovery { stage: Stage::Ready, search_bytes: 0, live, read_bytes_max: READ_BYTES_MIN, ..Recovery::new(config) }
    }

    /// The first operation.
    pub fn first(&self) -> Op {
        Op::CreateDirectory { path: self.directory.clone() }
    }

    /// Bytes of log read, and bytes of segments in all.
    pub fn progress(&self) -> (u64, u64) {
        (self.read, self.live.iter().map(|segment| segment.bytes).sum())
    }

    /// Every file opened so far, to be closed after a failure.
    pub fn handles(&self) -> Vec<Handle> {
        let mut handles: Vec<Handle> = self.live.iter().map(|segment| segment.handle).collect();
        handles.extend(self.spares.iter().map(|(_, handle, _)| *handle));
        if let Stage::Head { handle, .. } = self.stage {
            handles.push(handle);
        }
        handles
    }

    /// Takes the outcome of the last operation. `batch` is told each batch that is part of the log, in order.
    pub fn on_done(
        &mut self,
        outcome: Result<Outcome, Fault>,
        batch: &mut dyn FnMut(Batch<'_>),
    ) -> Result<Next, OpenError> {
        match (&self.stage, outcome) {
            (Stage::Open { index }, Err(fault)) if self.direct && fault == Fault(libc::EINVAL) => {
                let index = *index;
                self.direct = false;
                Ok(self.open(index))
            }
            (stage, Err(fault)) => {
                let path = match stage {
                    Stage::Create | Stage::Settle { .. } | Stage::List => self.directory.clone(),
                    Stage::Open { index } | Stage::Head { index, .. } | Stage::Remove { index } => self.path(*index),
                    Stage::Ready => unreachable!("nothing was asked for"),
                    Stage::Scan => self.segment_path(self.window.from),
                    Stage::Search => self.segment_path(self.head),
                };
                Err(OpenError::Io { path, fault })
            }
            (Stage::Create, _) => {
                // A directory that is new is durable once the one above it is.
                self.stage = Stage::Settle { above: true };
                let above = self.directory.parent().filter(|above| !above.as_os_str().is_empty());
                let above = above.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
                Ok(Next::Do(Op::SyncDirectory { path: above }))
            }
            (Stage::Settle { above: true }, _) => {
                // Segments found here may have got their names just before a kill: nothing may be promised in
                // a file that a power cut makes nameless.
                self.stage = Stage::Settle { above: false };
                Ok(Next::Do(Op::SyncDirectory { path: self.directory.clone() }))
            }
            (Stage::Settle { above: false }, _) => {
                self.stage = Stage::List;
                Ok(Next::Do(Op::List { path: self.directory.clone() }))
            }
            (Stage::List, Ok(Outcome::Names(files))) => {
                self.files = files;
                Ok(self.after_file(0))
            }
            (Stage::Open { index }, Ok(Outcome::Opened(handle))) => {
                let index = *index;
                if self.base(index).is_some() {
                    self.stage = Stage::Head { index, handle };
                    return Ok(Next::Do(Op::Read { file: handle, at: 0, length: SEGMENT_HEADER_BYTES as u32 }));
                }
                self.spares.push((self.path(index), handle, self.files[index].1));
                Ok(self.after_file(index + 1))
            }
            (Stage::Head { index, handle }, Ok(Outcome::Read(block))) => {
                let (index, handle) = (*index, *handle);
                let segment = self.check_segment(index, handle, &block)?;
                self.live.push_back(segment);
                Ok(self.after_file(index + 1))
            }
            (Stage::Remove { index }, _) => Ok(self.after_file(index + 1)),
            (Stage::Scan, Ok(Outcome::Read(bytes))) => {
                self.take(bytes)?;
                self.scan(batch)
            }
            (Stage::Search, Ok(Outcome::Read(bytes))) => {
                self.take(bytes)?;
                self.search()
            }
            (stage, Ok(outcome)) => unreachable!("{outcome:?} is no answer to {stage:?}"),
        }
    }

    /// Opens the next file of interest, or starts to scan when there is none.
    fn after_file(&mut self, mut index: usize) -> Next {
        while let Some((file, _)) = self.files.get(index) {
            if file == "next" {
                self.stage = Stage::Remove { index };
                return Next::Do(Op::Remove { path: self.path(index) });
            }
            if file.starts_with("spare-") || self.base(index).is_some() {
                return self.open(index);
            }
            index += 1;
        }
        self.stage = Stage::Ready;
        Next::Ready
    }

    /// After [`Next::Ready`]: follows the chain from `known` on, or from the oldest segment's beginning.
    /// `durable`: what lies below this log byte was durable. `times`: when each segment was written last, by the
    /// log byte where it begins.
    pub fn begin(
        &mut self,
        known: Option<End>,
        durable: u64,
        times: &[(u64, u64)],
        batch: &mut dyn FnMut(Batch<'_>),
    ) -> Result<Next, OpenError> {
        assert!(matches!(self.stage, Stage::Ready), "all files are known");
        self.stage = Stage::Scan;
        self.head = self.live.front().map_or(0, |segment| segment.base + SEGMENT_HEADER_BYTES);
        if let Some(End { head, chain, epoch }) = known {
            self.durable = durable;
            if self.holding(head.saturating_sub(1)).is_none() {
                return Err(OpenError::Inside { path: self.segment_path(head), byte: head, durable });
            }
            (self.head, self.chain, self.epoch) = (head, Some(chain), epoch);
            for segment in self.live.iter_mut().filter(|segment| segment.base < head) {
                let time = times.iter().find(|(base, _)| *base == segment.base);
                segment.newest_ms = time.map_or(0, |(_, newest_ms)| *newest_ms);
                segment.zeroed_to = segment.end().min(head);
            }
        }
        self.scan(batch)
    }

    /// Every file of the directory: name and length, sorted by name.
    pub fn files(&self) -> &[(String, u64)] {
        &self.files
    }

    /// Files are opened past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The segments: where each begins and ends in the log.
    pub fn segments(&self) -> impl Iterator<Item = (u64, u64)> {
        self.live.iter().map(|segment| (segment.base, segment.end()))
    }

    /// What lies below this log byte was durable, as far as is known.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    fn open(&mut self, index: usize) -> Next {
        self.stage = Stage::Open { index };
        let how = OpenHow { create: false, direct: self.direct, read_only: false };
        Next::Do(Op::Open { path: self.path(index), how })
    }

    fn check_segment(&self, index: usize, handle: Handle, block: &[u8]) -> Result<Segment, OpenError> {
        let path = || self.path(index);
        let base = self.base(index).expect("only segments have their header read");
        let header = match SegmentHeader::decode(block) {
            Ok(header) => header,
            Err(FormatError::Version(version)) => return Err(OpenError::Version { path: path(), version }),
            Err(FormatError::Damaged) => return Err(OpenError::Header { path: path() }),
        };
        if header.base != base || header.partition != self.partition || header.bytes != self.files[index].1 {
            return Err(OpenError::Header { path: path() });
        }
        if let Some(last) = self.live.back().filter(|last| last.end() != base) {
            return Err(OpenError::Gap { path: path(), byte: last.end() });
        }
        // What lies behind the end is zero-filled again: it may hold what never became part of the log.
        Ok(Segment { base, bytes: header.bytes, handle, newest_ms: 0, zeroed_to: base + SEGMENT_HEADER_BYTES })
    }

    /// Follows the chain as far as the window reaches.
    fn scan(&mut self, batch: &mut dyn FnMut(Batch<'_>)) -> Result<Next, OpenError> {
        loop {
            let at = match self.attempt {
                Try::Behind => Some(self.head),
                Try::NextBlock => Some(self.head.next_multiple_of(BLOCK_BYTES)),
                Try::NextSegment => self.next_segment().map(|base| base + SEGMENT_HEADER_BYTES),
            };
            match at.map_or(Looked::Nothing, |at| self.look(at)) {
                Looked::Read(from) => return Ok(Next::Do(self.read_op(from))),
                Looked::Batch { length } => {
                    let at = at.expect("looked there");
                    let from = (at - self.window.from) as usize;
                    let opened = Batch::open(&self.window.bytes[from..from + length]).expect("look() opened it");
                    let index = self.live.partition_point(|segment| segment.end() <= at);
                    let segment = &mut self.live[index];
                    segment.newest_ms = segment.newest_ms.max(opened.header.closed_ms);
                    segment.zeroed_to = opened.header.end();
                    self.head = opened.header.end();
                    self.chain = Some(opened.crc);
                    self.epoch = opened.header.epoch;
                    self.durable = self.durable.max(opened.header.durable);
                    self.attempt = Try::Behind;
                    batch(opened);
                }
                Looked::Newer(version) => {
                    return Err(OpenError::Version { path: self.segment_path(self.head), version });
                }
                Looked::Nothing => match self.attempt {
                    // The first batch lies at the start of the oldest segment: any other would be believed blindly.
                    _ if self.chain.is_none() => break,
                    Try::Behind => self.attempt = Try::NextBlock,
                    Try::NextBlock => self.attempt = Try::NextSegment,
                    Try::NextSegment => break,
                },
            }
        }
        // The chain ends here. Is there anybody who knows of more?
        self.stage = Stage::Search;
        self.reach = (self.head + self.search_bytes).next_multiple_of(BLOCK_BYTES);
        for segment in &self.live {
            // Nothing, of those that lie before the end.
            self.searches.push_back((self.head.max(segment.base + SEGMENT_HEADER_BYTES), segment.end()));
        }
        self.search()
    }

    /// Looks at one place. Drops what the window holds before it.
    fn look(&mut self, at: u64) -> Looked {
        let Some(segment) = self.holding(at) else { return Looked::Nothing };
        let left = segment.end() - at;
        if left < BATCH_HEADER_BYTES as u64 {
            return Looked::Nothing;
        }
        let bytes = match self.window_at(at, BATCH_HEADER_BYTES) {
            Ok(bytes) => bytes,
            Err(from) => return Looked::Read(from),
        };
        let Ok(header) = BatchHeader::peek(bytes) else { return Looked::Nothing };
        let fits = header.base == at && header.partition == self.partition && u64::from(header.length) <= left;
        let chained = self.chain.is_none_or(|chain| chain == header.previous) && header.epoch >= self.epoch;
        if !fits || !chained {
            return Looked::Nothing;
        }
        let length = header.length as usize;
        let bytes = match self.window_at(at, length) {
            Ok(bytes) => bytes,
            Err(from) => return Looked::Read(from),
        };
        match Batch::open(bytes) {
            Ok(_) => Looked::Batch { length },
            Err(FormatError::Damaged) => Looked::Nothing,
            Err(FormatError::Version(version)) => Looked::Newer(version),
        }
    }

    /// Looks for intact headers behind the end.
    fn search(&mut self) -> Result<Next, OpenError> {
        while let Some(&(from, end)) = self.searches.front() {
            if from < end.min(self.reach) {
                let start = from - from % BLOCK_BYTES;
                if !(self.window.from..self.window.end()).contains(&start) {
                    self.window.clear(start);
                    return Ok(Next::Do(self.read_op(start)));
                }
                let left = self.look_for_names(from, end);
                self.searches[0].0 = left;
                if left < end.min(self.reach) {
                    self.window.skip_to(left);
                    return Ok(Next::Do(self.read_op(self.window.end())));
                }
                continue;
            }
            if self.named > self.head {
                let durable = self.named;
                return Err(OpenError::Inside { path: self.segment_path(self.head), byte: self.head, durable });
            }
            self.searches.pop_front();
        }
        if self.durable > self.head {
            // The checkpoint was told so.
            let durable = self.durable;
            return Err(OpenError::Inside { path: self.segment_path(self.head), byte: self.head, durable });
        }
        let end = End { head: self.head, chain: self.chain.unwrap_or(0), epoch: self.epoch };
        let (live, spares) = (std::mem::take(&mut self.live), std::mem::take(&mut self.spares));
        Ok(Next::Finished(Found { live, spares, direct: self.direct, end, durable: self.durable }))
    }

    /// Takes the durable watermarks that intact headers in the window name, from log byte `from` to the reach or the
    /// segment's end. Returns where to go on, once there is more in the window unless it is one of them.
    ///
    /// A batch that names none moves the reach: what it names was known when it was closed, and it may have waited
    /// behind many others; an asynchronous log learns what is durable once in a while.
    fn look_for_names(&mut self, from: u64, end: u64) -> u64 {
        let window = &self.window;
        let bytes = &window.bytes;
        let is_last = |reach: u64| window.end() >= end.min(reach);
        let mut at = (from - window.from) as usize;
        while at < bytes.len() {
            // Most of what lies there is zero.
            if at.is_multiple_of(ZEROS.len()) && bytes[at..].starts_with(&ZEROS) {
                at += ZEROS.len();
                continue;
            }
            if bytes[at] == b'R' {
                if bytes.len() - at < BATCH_HEADER_BYTES {
                    break;
                }
                let place = window.from + at as u64;
                if let Ok(header) = BatchHeader::peek(&bytes[at..])
                    && header.base == place
                    && header.partition == self.partition
                    && header.durable <= header.base
                {
                    if header.length as usize > bytes.len() - at && !is_last(self.reach) {
                        break;
                    }
                    if Batch::open_headers(&bytes[at..]).is_ok() {
                        self.named = self.named.max(header.durable);
                        let reach = header.end() + self.search_bytes;
                        self.reach = self.reach.max(reach.next_multiple_of(BLOCK_BYTES));
                    }
                }
            }
            at += 1;
        }
        if is_last(self.reach) { end.min(self.reach) } else { window.from + at as u64 }
    }

    /// `length` bytes of the log at `at`; `Err` is where to read on.
    fn window_at(&mut self, at: u64, length: usize) -> Result<&[u8], u64> {
        let window = &mut self.window;
        let end = window.end();
        if at < window.from || at >= end {
            let from = at - at % BLOCK_BYTES;
            window.clear(from);
            return Err(from);
        }
        let skip = (at - window.from) as usize;
        if window.bytes.len() - skip >= length {
            return Ok(&self.window.bytes[skip..skip + length]);
        }
        window.skip_to(at);
        Err(end)
    }

    fn read_op(&mut self, from: u64) -> Op {
        let segment = self.holding(from).expect("reads stay within a segment");
        let length = (segment.end() - from).min(self.read_bytes);
        let op = Op::Read { file: segment.handle, at: from - segment.base, length: length as u32 };
        self.read_bytes = (self.read_bytes * 2).min(self.read_bytes_max);
        op
    }

    fn take(&mut self, bytes: Bytes) -> Result<(), OpenError> {
        if bytes.is_empty() {
            return Err(OpenError::Io { path: self.segment_path(self.window.from), fault: Fault(libc::EIO) });
        }
        self.read += bytes.len() as u64;
        self.window.add(bytes);
        Ok(())
    }

    fn holding(&self, byte: u64) -> Option<&Segment> {
        let index = self.live.partition_point(|segment| segment.end() <= byte);
        self.live.get(index).filter(|segment| segment.base <= byte)
    }

    /// Where the segment behind the log's end starts.
    fn next_segment(&self) -> Option<u64> {
        // The end may be the very end of its segment: the one that holds the byte before it counts.
        let current = self.holding(self.head.saturating_sub(1))?;
        self.holding(current.end()).map(|segment| segment.base)
    }

    /// The log byte that a file's name says it starts at.
    fn base(&self, index: usize) -> Option<u64> {
        let file = &self.files[index].0;
        let base = file.parse().ok()?;
        (name(base) == *file).then_some(base)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.directory.join(&self.files[index].0)
    }

    fn segment_path(&self, byte: u64) -> PathBuf {
        self.directory.join(name(self.holding(byte).or(self.live.back()).map_or(0, |segment| segment.base)))
    }
}

#[cfg(test)]
mod tests;
