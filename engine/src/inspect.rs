//! A partition's directory seen from outside: which batches make up its log, where that ends, what is damaged.
//! Read only, blocking, without a ring: for tools, on a directory that is in use or not.
//!
//! What continues the chain is decided by [`Recovery`] alone. It is shown a *view*: the segments only, with the
//! headers that were reported already put right, and, behind damage, with the log's front cut off so that it
//! begins at the next whole batch. So one pass names every damage, where an opening stops at the first.

mod derived;

pub use derived::{Checkpoint, Derived, Run};

use crate::buffer::{Chunk, Region};
use crate::derived::own_key;
use crate::facts;
use crate::format::crc32c;
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Batch, BatchHeader, FORMAT_VERSION, FormatError, Kind, PARTITIONS_MAX, QueueKey,
    RecordHeader, SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::kernel::list;
use crate::limits::{BATCH_BYTES_MAX, Flush, INFLIGHT_BATCHES, LogConfig, SEGMENT_BYTES, STRETCH_BYTES};
use crate::recover::{Next, OpenError, Recovery};
use crate::segment::name;
use bytes::Bytes;
use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of one read behind damage: what two of the largest batches take, so that one fits wherever it begins.
const SEARCH_BYTES: u64 = 2 * BATCH_BYTES_MAX as u64;
/// Behind the end, batches are looked for as far as an opening looks.
const SEARCH_BEHIND_BYTES: u64 = (*INFLIGHT_BATCHES.end() as u64 + 3) * BATCH_BYTES_MAX as u64;
/// Bytes passed over where a file cannot be read.
const SKIP_BYTES: u64 = 4 << 20;
/// How often a head that moves while it is looked at is followed. 64: each time more of the log is whole.
const MOVES_MAX: u32 = 64;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// The byte of the file.
    pub byte: u64,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.path.display(), self.byte, self.what)
    }
}

/// What a walk along a log comes by, in log order.
#[derive(Debug)]
pub enum Sight<'a> {
    /// The next batch of the log, whole, and the segment that it lies in.
    Batch(Batch<'a>, &'a Piece),
    /// Something damaged.
    Damage(Damage),
    /// So many bytes were read.
    Read(u64),
}

/// What lies where the log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The end of the last segment.
    Nothing,
    /// Zeros: prepared and never written.
    Zeros,
    /// Batches of the file's earlier life under another name.
    Stale,
    /// A batch of so many bytes that is not whole: its write had not come back.
    Torn(u32),
    /// Bytes that are no batch.
    Other,
}

/// Where a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The log byte behind the last batch.
    pub head: u64,
    /// Of the last batch.
    pub epoch: u64,
    /// The highest durable watermark that a batch names.
    pub durable: u64,
    /// What comes next.
    pub behind: Behind,
    /// The log byte of a whole batch behind a hole at the head, which is not part of the log.
    pub stranded: Option<u64>,
    /// The log was written or retired while it was read: it may go on behind `head`.
    pub moved: bool,
}

/// An entry of a [`Kind::Facts`] record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// The offset that a queue's next message gets, as a snapshot saw it.
    Next(QueueKey, u64),
    /// The broker's: key, and value or that it is deleted.
    Put(&'a [u8], Option<&'a [u8]>),
}

/// The entries of a `Facts` record's payload.
pub fn facts(payload: &[u8]) -> impl Iterator<Item = Fact<'_>> {
    facts::decode(payload).map(|(key, value)| match own_key(key) {
        None => Fact::Put(key, value),
        Some(queue) => {
            let next = value.and_then(|value| Some(u64::from_be_bytes(*value.first_chunk()?)));
            Fact::Next(queue, next.unwrap_or(0))
        }
    })
}

/// A segment's file.
#[derive(Debug)]
pub struct Piece {
    /// The log byte that its byte 0 stands for.
    pub base: u64,
    /// Its length, without what reaches into the next one.
    pub bytes: u64,
    /// Where it is.
    pub path: PathBuf,
    file: File,
}

impl Piece {
    fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// Up to `length` bytes at byte `at` of the file, which is a multiple of a block.
    fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        let length = length.min(self.bytes.saturating_sub(at)) as usize;
        let mut chunk = Chunk::standalone(length);
        let mut got = 0;
        while got < length {
            // Whole blocks into aligned memory: the file may be open past the page cache.
            match self.file.read_at(&mut chunk.spare_mut()[got..], at + got as u64) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if !got.is_multiple_of(BLOCK_BYTES as usize) {
                break; // The file's end.
            }
        }
        Ok(chunk.split_to(got.min(length)))
    }
}

/// One partition's directory, open for reading.
#[derive(Debug)]
pub struct Inspector {
    directory: PathBuf,
    partition: u16,
    pieces: Vec<Piece>,
    spares: Vec<(String, u64)>,
    /// A checkpoint was told that everything below this log byte is durable.
    promised: u64,
    /// What was seen when it was opened.
    found: Vec<Damage>,
}

impl Inspector {
    /// Opens what is there.
    ///
    /// - `partition`: its number; `None` believes the first whole segment header.
    /// - `Err`: the directory cannot be listed. Whatever is wrong with a file in it is a [`Damage`] of the walk.
    pub fn open(directory: &Path, partition: Option<u16>) -> io::Result<Inspector> {
        let mut inspector = Inspector {
            directory: directory.to_path_buf(),
            partition: partition.unwrap_or(0),
            pieces: Vec::new(),
            spares: Vec::new(),
            promised: 0,
            found: Vec::new(),
        };
        let mut headers = Vec::new();
        for (file, bytes) in list(directory)? {
            if file.starts_with("spare-") {
                inspector.spares.push((file, bytes));
            } else if let Some(base) = base(&file) {
                let path = directory.join(&file);
                match open(&path) {
                    Ok(file) => {
                        let piece = Piece { base, bytes, path, file };
                        headers.push(piece.read(0, SEGMENT_HEADER_BYTES).map(|block| SegmentHeader::decode(&block)));
                        inspector.pieces.push(piece);
                    }
                    // Retired since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => inspector.found.push(Damage { path, byte: 0, what: error.to_string() }),
                }
            }
        }
        if partition.is_none() {
            let whole = headers.iter().flatten().flatten().map(|header| header.partition);
            inspector.partition = whole.clone().next().unwrap_or(0) % PARTITIONS_MAX;
        }
        // One that is damaged says nothing; it is named with the other derived files.
        let checkpoint = derived::read_checkpoint(directory, inspector.partition).ok().flatten();
        inspector.promised = checkpoint.map_or(0, |checkpoint| checkpoint.durable.max(checkpoint.head));
        inspector.check_headers(headers);
        Ok(inspector)
    }

    /// Its number.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The segments, oldest first.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Names and lengths of retired files that wait for their next use.
    pub fn spares(&self) -> &[(String, u64)] {
        &self.spares
    }

    /// Reads the files that are derived from the log, and checks each block. `Err`: the directory cannot be listed.
    pub fn derived(&self) -> io::Result<Derived> {
        derived::read(&self.directory, self.partition)
    }

    /// Bytes of all segments: more than a walk reads, as the last ones may be prepared only.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// When the first batch of a segment was closed, ms since 1970, if that batch's header is there.
    pub fn begins_ms(&self, piece: &Piece) -> Option<u64> {
        let block = piece.read(SEGMENT_HEADER_BYTES, BLOCK_BYTES).ok()?;
        let header = BatchHeader::peek(&block).ok()?;
        self.is_ours(&header, piece.base + SEGMENT_HEADER_BYTES).then_some(header.closed_ms)
    }

    /// The file and its byte where a log byte lies; behind the log, the last file.
    pub fn place(&self, byte: u64) -> (&Path, u64) {
        let piece = self.holding(byte).or(self.pieces.iter().rev().find(|piece| piece.base <= byte));
        piece.map_or((&self.directory, 0), |piece| (&piece.path, byte - piece.base))
    }

    /// Walks along the log from the segment on that holds log byte `from`, or the oldest one behind it.
    /// `None`: `sight` broke off, which is heeded within one read.
    pub fn walk(&mut self, from: u64, sight: &mut dyn FnMut(Sight<'_>) -> ControlFlow<()>) -> Option<Ending> {
        for damage in std::mem::take(&mut self.found) {
            sight(Sight::Damage(damage)).is_continue().then_some(())?;
        }
        let mut walk = Walk::new(sight);
        let mut looked = None;
        let first = self.pieces.iter().find(|piece| piece.end() > from).map(|piece| piece.base);
        let Some(first) = first else { return self.end(&mut walk, 0) };
        let mut at = first + SEGMENT_HEADER_BYTES;
        loop {
            let (head, what) = match self.run(at, &mut walk) {
                Followed::Stopped => return None,
                Followed::Broken(head, what) => (head, what),
                Followed::Ended(head) => {
                    // A gap was named when the files were listed; behind it is more.
                    let end = self.contiguous(at).last().map_or(head, Piece::end);
                    let Some(beyond) = self.pieces.iter().find(|piece| piece.base > end) else {
                        return self.end(&mut walk, head);
                    };
                    at = beyond.base + SEGMENT_HEADER_BYTES;
                    walk.last = None;
                    continue;
                }
            };
            // The log may be in use: look again before anything is called damaged.
            if self.forget_retired(head) {
                walk.moves += 1;
                walk.last = None;
                let Some(oldest) = self.pieces.first() else { return self.end(&mut walk, head) };
                at = oldest.base + SEGMENT_HEADER_BYTES;
            } else if looked != Some(head) {
                looked = Some(head);
                walk.suspect = Some(head);
                at = walk.last.map_or(at, |last| last.base);
            } else {
                match self.pass(head, &what, &mut walk) {
                    ControlFlow::Break(()) => return None,
                    ControlFlow::Continue(Some(next)) => at = next,
                    ControlFlow::Continue(None) => return self.end(&mut walk, head),
                }
            }
            if walk.moves > MOVES_MAX {
                return self.end(&mut walk, head);
            }
        }
    }

    /// The walk is over at `head`.
    fn end(&self, walk: &mut Walk<'_>, head: u64) -> Option<Ending> {
        if head < self.promised && walk.moves == 0 {
            let what =
                format!("the log ends, and everything below log byte {} was durable by its checkpoint", self.promised);
            walk.damage(self, head, what).is_continue().then_some(())?;
        }
        Some(self.ending(walk, head))
    }

    /// Compares headers with names, and the files with one another.
    fn check_headers(&mut self, headers: Vec<io::Result<Result<SegmentHeader, FormatError>>>) {
        let mut refused = Vec::new();
        for (index, header) in headers.into_iter().enumerate() {
            let piece = &self.pieces[index];
            let what = match header {
                Err(error) => format!("the segment header cannot be read: {error}"),
                Ok(Err(FormatError::Version(version))) => {
                    refused.push(index);
                    format!("written in format version {version}; this RingMQ reads up to {FORMAT_VERSION}")
                }
                Ok(Err(FormatError::Damaged)) => "the segment header is damaged".to_owned(),
                Ok(Ok(header)) if header.partition != self.partition => {
                    format!("the segment header is of partition {}, not {}", header.partition, self.partition)
                }
                Ok(Ok(header)) if header.base != piece.base => {
                    format!("the segment header is of log byte {}: the file was renamed", header.base)
                }
                Ok(Ok(header)) if header.bytes != piece.bytes => {
                    format!("the file has {} bytes, and {} by its segment header", piece.bytes, header.bytes)
                }
                Ok(Ok(_)) => continue,
            };
            self.found.push(Damage { path: piece.path.clone(), byte: 0, what });
        }
        for index in refused.into_iter().rev() {
            self.pieces.remove(index);
        }
        // What is left of a file that was cut: whole blocks, and the header's at least.
        self.pieces.iter_mut().for_each(|piece| piece.bytes -= piece.bytes % BLOCK_BYTES);
        self.pieces.retain(|piece| piece.bytes > SEGMENT_HEADER_BYTES);
        for index in 1..self.pieces.len() {
            let (before, piece) = (self.pieces[index - 1].end(), &self.pieces[index]);
            if before != piece.base {
                let what = if before < piece.base {
                    format!("the log bytes {before} to {} before this segment are missing", piece.base)
                } else {
                    format!("the segment before this one reaches {} bytes into it", before - piece.base)
                };
                self.found.push(Damage { path: piece.path.clone(), byte: 0, what });
            }
            let base = piece.base;
            let before = &mut self.pieces[index - 1];
            before.bytes = before.bytes.min(base - before.base);
        }
    }

    fn holding(&self, byte: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end() <= byte);
        self.pieces.get(index).filter(|piece| piece.base <= byte)
    }

    /// The segments from the one that holds a log byte up to the first gap.
    fn contiguous(&self, from: u64) -> &[Piece] {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        let rest = &self.pieces[first.min(self.pieces.len())..];
        let count = rest.windows(2).take_while(|pair| pair[0].end() == pair[1].base).count();
        &rest[..rest.len().min(count + 1)]
    }

    fn is_ours(&self, header: &BatchHeader, at: u64) -> bool {
        header.base == at && header.partition == self.partition
    }

    /// Whether the segment that holds this log byte was retired since it was opened; those that were are dropped.
    fn forget_retired(&mut self, byte: u64) -> bool {
        let Some(held) = self.holding(byte).map(|piece| piece.base) else { return false };
        let is_there = |piece: &Piece| piece.path.exists();
        self.pieces.retain(is_there);
        self.holding(byte).is_none_or(|piece| piece.base != held)
    }

    /// Lets recovery follow the chain from log byte `from`, where a batch begins.
    fn run(&self, from: u64, walk: &mut Walk<'_>) -> Followed {
        walk.from = from;
        walk.broken = false;
        let view = View { partition: self.partition, pieces: self.contiguous(from), from };
        let mut recovery = Recovery::new(&view.config());
        let mut op = recovery.first();
        loop {
            let outcome = view.answer(op);
            if let Ok(Outcome::Read(bytes)) = &outcome {
                walk.tell(Sight::Read(bytes.len() as u64));
            }
            let mut take = |batch: Batch<'_>| {
                let piece = self.holding(batch.header.base).expect("it was read from there");
                walk.take(batch, piece);
            };
            let mut next = recovery.on_done(outcome, &mut take);
            if matches!(next, Ok(Next::Ready)) {
                next = recovery.begin(None, 0, &[], &mut take);
            }
            for (byte, what) in std::mem::take(&mut walk.holes) {
                if walk.damage(self, byte, what).is_break() {
                    return Followed::Stopped;
                }
            }
            if walk.stopped {
                return Followed::Stopped;
            }
            if walk.broken {
                return Followed::Broken(walk.end(), "no batch continues the log here".to_owned());
            }
            match next {
                Ok(Next::Do(next)) => op = next,
                Ok(Next::Ready) => unreachable!("it has begun"),
                Ok(Next::Finished(found)) => return Followed::Ended(found.end.head),
                Err(OpenError::Inside { byte, durable, .. }) => {
                    let what = format!("the log breaks off, and everything below log byte {durable} was acknowledged");
                    return Followed::Broken(byte, what);
                }
                Err(OpenError::Version { version, .. }) => {
                    let what = format!("written in format version {version}; this RingMQ reads up to {FORMAT_VERSION}");
                    return Followed::Broken(walk.end(), what);
                }
                Err(error) => return Followed::Broken(walk.end(), error.to_string()),
            }
        }
    }

    /// Names what is damaged at `head`, where the log breaks off, and finds the next place to go on from.
    fn pass(&self, head: u64, what: &str, walk: &mut Walk<'_>) -> ControlFlow<(), Option<u64>> {
        // Without a chain, the first place is the only one.
        let chain = walk.last.map(|last| last.crc);
        for place in self.places(head).take(if chain.is_some() { 3 } else { 1 }) {
            let Some((header, bytes)) = self.batch_at(place, chain) else { continue };
            if Batch::open(&bytes).is_ok() {
                walk.damage(self, head, what.to_owned())?;
                walk.last = None;
                return ControlFlow::Continue(Some(place));
            }
            if let Ok(batch) = Batch::open_headers(&bytes) {
                self.name_payloads(batch, walk)?;
                let end = batch.header.end();
                let is_next = |place: &u64| self.batch_at(*place, Some(batch.crc)).is_some();
                return ControlFlow::Continue(Some(self.places(end).find(is_next).unwrap_or(end)));
            }
            let what = format!(
                "a batch of {} bytes and {} records has a damaged header; {what}",
                header.length, header.records
            );
            return self.pass_to_next(place, &what, walk);
        }
        self.pass_to_next(head, what, walk)
    }

    /// Names what is damaged at `place`, and how far that goes.
    fn pass_to_next(&self, place: u64, what: &str, walk: &mut Walk<'_>) -> ControlFlow<(), Option<u64>> {
        // Damaged payloads on the way are told first: they are behind it, but the way's end is part of the sentence.
        let next = self.next_whole(place + 1, u64::MAX, walk)?;
        let upto = next.map_or("no whole batch comes behind it".to_owned(), |next| {
            format!("the next whole batch begins at log byte {next}")
        });
        walk.damage(self, place, format!("{what}; {upto}"))?;
        walk.last = None;
        ControlFlow::Continue(next)
    }

    /// Names the records of a batch whose payloads are damaged; the others' headers count as seen.
    fn name_payloads(&self, batch: Batch<'_>, walk: &mut Walk<'_>) -> ControlFlow<()> {
        for (byte, record, payload) in batch.records() {
            if crc32c::crc32c(payload) != record.crc {
                let what = format!(
                    "the payload ({:?}, {} bytes, topic id {}, queue {}, offset {}) does not have its checksum",
                    record.kind, record.length, record.queue.topic, record.queue.queue, record.offset
                );
                walk.damage(self, byte, what)?;
            } else if record.kind == Kind::Facts {
                walk.sequence.facts(payload);
            }
            // It was there: its offset is not missing.
            if record.kind == Kind::Message {
                walk.sequence.message(&record);
            }
        }
        walk.remember(batch);
        ControlFlow::Continue(())
    }

    /// The next log byte from `from` to `upto` where a whole batch begins; damaged ones on the way are named.
    fn next_whole(&self, mut from: u64, upto: u64, walk: &mut Walk<'_>) -> ControlFlow<(), Option<u64>> {
        while let Some(piece) = self.pieces.iter().find(|piece| piece.end() > from).filter(|_| from < upto) {
            from = from.max(piece.base + SEGMENT_HEADER_BYTES);
            let start = from - from % BLOCK_BYTES;
            let bytes = match piece.read(start - piece.base, SEARCH_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    walk.damage(self, start, format!("{SKIP_BYTES} bytes from here on are passed over: {error}"))?;
                    from = start + SKIP_BYTES;
                    continue;
                }
            };
            walk.tell(Sight::Read(bytes.len() as u64));
            let is_last = (bytes.len() as u64) < SEARCH_BYTES;
            // A batch that begins in the first half is there as a whole.
            let enough = if is_last { bytes.len() } else { SEARCH_BYTES as usize / 2 };
            let mut at = (from - start) as usize;
            while let Some(skip) = bytes[at.min(enough)..enough].iter().position(|byte| *byte == b'R') {
                at += skip;
                let place = start + at as u64;
                let header = BatchHeader::peek(&bytes[at..]).ok().filter(|header| self.is_ours(header, place));
                match header.and_then(|_| Batch::open_headers(&bytes[at..]).ok()) {
                    Some(_) if Batch::open(&bytes[at..]).is_ok() => return ControlFlow::Continue(Some(place)),
                    Some(batch) => {
                        self.name_payloads(batch, walk)?;
                        walk.last = None;
                        at += batch.header.length as usize;
                    }
                    None => at += 1,
                }
            }
            let done = start + at.max(enough) as u64;
            from = if is_last { piece.end().max(done) } else { done };
        }
        ControlFlow::Continue(None)
    }

    /// Where a batch may follow one that ends at `head`.
    fn places(&self, head: u64) -> impl Iterator<Item = u64> {
        let next_piece = self.holding(head.saturating_sub(1)).map(|piece| piece.end() + SEGMENT_HEADER_BYTES);
        [Some(head), Some(head.next_multiple_of(BLOCK_BYTES)), next_piece].into_iter().flatten()
    }

    /// What claims to be a batch at `place` that follows one with the checksum `chain`.
    fn batch_at(&self, place: u64, chain: Option<u32>) -> Option<(BatchHeader, Bytes)> {
        let header = BatchHeader::peek(&self.peek(place, BATCH_HEADER_BYTES as u64)?).ok()?;
        let follows = chain.is_none_or(|chain| chain == header.previous);
        let bytes = self.peek(place, header.length.into()).filter(|_| follows && self.is_ours(&header, place))?;
        Some((header, bytes))
    }

    /// Bytes of the log, from one segment.
    fn peek(&self, at: u64, length: u64) -> Option<Bytes> {
        let piece = self.holding(at)?;
        let start = at - at % BLOCK_BYTES;
        let bytes = piece.read(start - piece.base, at - start + length).ok()?;
        let skip = (at - start) as usize;
        (bytes.len() >= skip + length as usize).then(|| bytes.slice(skip..skip + length as usize))
    }

    fn ending(&self, walk: &Walk<'_>, head: u64) -> Ending {
        let looks = self.places(head).filter_map(|place| {
            let bytes = self.peek(place, BATCH_HEADER_BYTES as u64)?;
            Some(match BatchHeader::peek(&bytes) {
                Ok(header) if self.is_ours(&header, place) => Behind::Torn(header.length),
                Ok(_) => Behind::Stale,
                Err(_) if bytes.iter().all(|byte| *byte == 0) => Behind::Zeros,
                Err(_) => Behind::Other,
            })
        });
        let rank = |behind: &Behind| match behind {
            Behind::Nothing => 0,
            Behind::Zeros => 1,
            Behind::Other => 2,
            Behind::Stale => 3,
            Behind::Torn(_) => 4,
        };
        let mut silent = |_: Sight<'_>| ControlFlow::Continue(());
        let stranded = match self.next_whole(head + 1, head + SEARCH_BEHIND_BYTES, &mut Walk::new(&mut silent)) {
            ControlFlow::Continue(place) => place,
            ControlFlow::Break(()) => None,
        };
        Ending {
            head,
            epoch: walk.epoch,
            durable: walk.durable,
            behind: looks.max_by_key(rank).unwrap_or(Behind::Nothing),
            stranded,
            moved: walk.moves > 0,
        }
    }
}

/// How following the chain ended.
enum Followed {
    Stopped,
    /// At this log byte, and nobody knows of more.
    Ended(u64),
    /// At this log byte, and there should be more.
    Broken(u64, String),
}

/// The last batch seen.
#[derive(Clone, Copy, Debug)]
struct Last {
    base: u64,
    end: u64,
    crc: u32,
}

/// What is remembered along the way.
struct Walk<'a> {
    sight: &'a mut dyn FnMut(Sight<'_>) -> ControlFlow<()>,
    /// Where the run under way began.
    from: u64,
    /// `None` behind damage: any batch may come.
    last: Option<Last>,
    /// Where the log broke off when it was looked at for the first time.
    suspect: Option<u64>,
    epoch: u64,
    durable: u64,
    sequence: Sequence,
    stopped: bool,
    /// A batch came that does not continue what was seen before.
    broken: bool,
    /// How often the log moved while it was looked at.
    moves: u32,
    /// Queue offsets that are missing, each with the log byte where that shows.
    holes: Vec<(u64, String)>,
}

impl<'a> Walk<'a> {
    fn new(sight: &'a mut dyn FnMut(Sight<'_>) -> ControlFlow<()>) -> Walk<'a> {
        Walk {
            sight,
            from: 0,
            last: None,
            suspect: None,
            epoch: 0,
            durable: 0,
            sequence: Sequence::default(),
            stopped: false,
            broken: false,
            moves: 0,
            holes: Vec::new(),
        }
    }

    fn tell(&mut self, sight: Sight<'_>) {
        self.stopped |= !self.stopped && (self.sight)(sight).is_break();
    }

    /// Where the next batch is expected.
    fn end(&self) -> u64 {
        self.last.map_or(self.from, |last| last.end.max(self.from))
    }

    fn remember(&mut self, batch: Batch<'_>) {
        self.last = Some(Last { base: batch.header.base, end: batch.header.end(), crc: batch.crc });
        self.epoch = batch.header.epoch;
        self.durable = self.durable.max(batch.header.durable);
    }

    /// Takes a batch that recovery believes.
    fn take(&mut self, batch: Batch<'_>, piece: &Piece) {
        let header = batch.header;
        if self.stopped || self.broken {
            return;
        }
        let is_again = self.last.is_some_and(|last| last.base == header.base && last.crc == batch.crc);
        if is_again {
            return; // It was looked at again, for what comes behind it.
        }
        self.broken = match self.last {
            Some(last) => last.crc != header.previous || header.epoch < self.epoch,
            None => header.base != self.from,
        };
        if self.broken {
            return;
        }
        if self.suspect.take_if(|suspect| header.base >= *suspect).is_some() {
            self.moves += 1;
        }
        self.remember(batch);
        for (byte, record, payload) in batch.records() {
            let hole = match record.kind {
                Kind::Message => self.sequence.message(&record),
                Kind::Facts => self.sequence.facts(payload),
                Kind::Delayed | Kind::Delivered | Kind::SnapshotBegin | Kind::SnapshotEnd => None,
            };
            self.holes.extend(hole.map(|hole| (byte, hole)));
        }
        self.tell(Sight::Batch(batch, piece));
    }

    fn damage(&mut self, inspector: &Inspector, byte: u64, what: String) -> ControlFlow<()> {
        let (path, byte) = inspector.place(byte);
        self.tell(Sight::Damage(Damage { path: path.to_path_buf(), byte, what }));
        if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// What offset each queue's next message must have.
#[derive(Debug, Default)]
struct Sequence {
    next: HashMap<QueueKey, u64>,
}

impl Sequence {
    /// Takes the next message of its queue. `Some`: offsets are missing before it, or it comes again.
    fn message(&mut self, record: &RecordHeader) -> Option<String> {
        let (queue, offset) = (record.queue, record.offset);
        let next = self.next.insert(queue, offset.saturating_add(1)).filter(|next| *next != offset)?;
        Some(if next < offset { missing(queue, next, offset) } else { format!("{} comes again", at(queue, offset)) })
    }

    /// Takes what a snapshot says. `Some`: it counts messages that are not there.
    fn facts(&mut self, payload: &[u8]) -> Option<String> {
        let mut hole = None;
        for fact in facts(payload) {
            let Fact::Next(queue, offset) = fact else { continue };
            let next = self.next.entry(queue).or_insert(offset);
            if *next < offset {
                hole = Some(missing(queue, *next, offset));
                *next = offset;
            }
        }
        hole
    }
}

fn at(queue: QueueKey, offset: u64) -> String {
    format!("offset {offset} of topic id {}, queue {}", queue.topic, queue.queue)
}

fn missing(queue: QueueKey, from: u64, to: u64) -> String {
    format!("before {}, {} offsets from {from} on are missing", at(queue, to), to - from)
}

/// What recovery is shown of a directory: segments without a gap, beginning at a batch.
struct View<'a> {
    partition: u16,
    pieces: &'a [Piece],
    from: u64,
}

impl View<'_> {
    /// What recovery is told. Only the directory's name and the partition matter to it.
    fn config(&self) -> LogConfig {
        LogConfig {
            directory: PathBuf::from("."),
            partition: self.partition,
            segment_bytes: *SEGMENT_BYTES.start(),
            batch_bytes: BATCH_BYTES_MAX,
            inflight_batches: *INFLIGHT_BATCHES.end(),
            stretch_bytes: *STRETCH_BYTES.end(),
            flush: Flush::Sync,
            memory: Region::new(1, BLOCK_BYTES as usize).expect("one page"),
            prepare_bytes: 0,
            prepare_rate: 0,
            retention_ms: u64::MAX,
            retention_bytes: u64::MAX,
            read_bytes_per_s: 0,
            disk_free_min: 0,
            describe: |_| None,
            seed: 0,
        }
    }

    /// The log byte at which a segment begins here: the first one is cut off, so that where recovery looks
    /// for the first batch, behind a header block, is where one begins.
    fn base(&self, piece: &Piece) -> u64 {
        piece.base.max(self.from.min(piece.end()).saturating_sub(SEGMENT_HEADER_BYTES))
    }

    /// Does what only reads; what would change something is not done, or fails.
    fn answer(&self, op: Op) -> Result<Outcome, Fault> {
        match op {
            Op::CreateDirectory { .. } | Op::SyncDirectory { .. } | Op::Close { .. } => Ok(Outcome::Nothing),
            Op::List { .. } => {
                let names = self.pieces.iter().map(|piece| (name(self.base(piece)), piece.end() - self.base(piece)));
                Ok(Outcome::Names(names.collect()))
            }
            Op::Open { path, .. } => {
                let base = path.file_name().and_then(|file| base(file.to_str()?));
                let index = self.pieces.iter().position(|piece| Some(self.base(piece)) == base);
                index.map(|index| Outcome::Opened(Handle(index as i32))).ok_or(Fault(libc::ENOENT))
            }
            Op::Read { file: Handle(index), at, length } => {
                let piece = &self.pieces[index as usize];
                let base = self.base(piece);
                if at == 0 && u64::from(length) <= SEGMENT_HEADER_BYTES {
                    // What is wrong with the one on disk was named when it was opened.
                    let header = SegmentHeader { partition: self.partition, base, bytes: piece.end() - base };
                    return Ok(Outcome::Read(Bytes::copy_from_slice(&header.encode())));
                }
                Ok(Outcome::Read(piece.read(base + at - piece.base, length.into())?))
            }
            _ => Err(Fault(libc::EROFS)),
        }
    }
}

/// The log byte that a segment's name says it starts at.
fn base(file: &str) -> Option<u64> {
    file.parse().ok().filter(|base| name(*base) == file)
}

/// Opens a file past the page cache where that is possible: a scan must not push out what others need.
fn open(path: &Path) -> io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => File::open(path),
        opened => opened,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 64 << 10;
    const QUEUE: QueueKey = QueueKey { topic: 3, queue: 1 };

    /// A log written by hand: segments of 64 KiB, each batch where the log would put it.
    struct Maker {
        files: Vec<Vec<u8>>,
        head: u64,
        chain: u32,
        durable: u64,
        next: u64,
        /// Where each batch lies.
        batches: Vec<(u64, u64)>,
    }

    impl Maker {
        fn new() -> Maker {
            let (files, batches) = (Vec::new(), Vec::new());
            let mut maker = Maker { files, head: 0, chain: 0, durable: 0, next: 0, batches };
            maker.segment();
            maker
        }

        fn segment(&mut self) {
            let base = self.files.len() as u64 * SEGMENT;
            let mut file = vec![0; SEGMENT as usize];
            let header = SegmentHeader { partition: 2, base, bytes: SEGMENT }.encode();
            file[..header.len()].copy_from_slice(&header);
            self.files.push(file);
            self.head = base + SEGMENT_HEADER_BYTES;
        }

        /// A batch of messages of these sizes.
        fn batch(&mut self, sizes: &[usize]) {
            let mut out = vec![0; BATCH_HEADER_BYTES];
            let mut crc = 0;
            for size in sizes {
                let payload = vec![b'm'; *size];
                let (crc_of, length) = (crc32c::crc32c(&payload), *size as u32);
                let header =
                    RecordHeader { length, crc: crc_of, kind: Kind::Message, queue: QUEUE, offset: self.next }.encode();
                crc = crc32c::crc32c_append(crc, &header);
                out.extend_from_slice(&header);
                out.extend_from_slice(&payload);
                self.next += 1;
            }
            if self.head % SEGMENT + out.len() as u64 > SEGMENT {
                self.segment();
            }
            let header = BatchHeader {
                partition: 2,
                length: out.len() as u32,
                records: sizes.len() as u32,
                epoch: 1,
                base: self.head,
                durable: self.durable,
                closed_ms: 1_700_000_000_000 + self.head,
                previous: self.chain,
            };
            self.chain = header.encode(&mut out, crc);
            let (file, at) = ((self.head / SEGMENT) as usize, (self.head % SEGMENT) as usize);
            self.files[file][at..at + out.len()].copy_from_slice(&out);
            self.batches.push((self.head, out.len() as u64));
            self.durable = self.head;
            self.head += out.len() as u64;
        }

        /// Several segments, batches behind one another and on blocks, and the empty one of an idle log.
        fn log() -> Maker {
            let mut maker = Maker::new();
            for round in 0..40 {
                maker.batch(&[round * 70, 9, 1500]);
                if round % 3 == 0 {
                    maker.head = maker.head.next_multiple_of(BLOCK_BYTES);
                }
            }
            maker.durable = maker.head;
            maker.batch(&[]);
            assert!(maker.files.len() > 2);
            maker
        }

        fn write(&self) -> tempfile::TempDir {
            let dir = tempfile::tempdir().unwrap();
            for (index, file) in self.files.iter().enumerate() {
                std::fs::write(dir.path().join(name(index as u64 * SEGMENT)), file).unwrap();
            }
            dir
        }

        fn byte(&mut self, byte: u64) -> &mut u8 {
            &mut self.files[(byte / SEGMENT) as usize][(byte % SEGMENT) as usize]
        }
    }

    /// Where batches were seen, damages as file number, byte and words, and the end.
    fn walk(dir: &Path) -> (Vec<u64>, Vec<(u64, u64, String)>, Ending) {
        let mut inspector = Inspector::open(dir, None).unwrap();
        let (mut batches, mut damages) = (Vec::new(), Vec::new());
        let ending = inspector.walk(0, &mut |sight| {
            match sight {
                Sight::Batch(batch, _) => batches.push(batch.header.base),
                Sight::Damage(damage) => {
                    let file = base(damage.path.file_name().unwrap().to_str().unwrap()).unwrap();
                    damages.push((file, damage.byte, damage.what));
                }
                Sight::Read(_) => {}
            }
            ControlFlow::Continue(())
        });
        (batches, damages, ending.expect("nobody broke off"))
    }

    #[test]
    fn a_whole_log_is_seen_as_it_was_written() {
        let maker = Maker::log();
        let dir = maker.write();
        let (batches, damages, ending) = walk(dir.path());
        assert_eq!(batches, maker.batches.iter().map(|batch| batch.0).collect::<Vec<_>>());
        assert_eq!(damages, []);
        let wanted = Ending {
            head: maker.head,
            epoch: 1,
            durable: maker.durable,
            behind: Behind::Zeros,
            stranded: None,
            moved: false,
        };
        assert_eq!(ending, wanted);
        // From a segment in the middle on, and broken off there.
        let mut seen = Vec::new();
        let ended = Inspector::open(dir.path(), Some(2)).unwrap().walk(SEGMENT + 5, &mut |sight| {
            if let Sight::Batch(batch, _) = sight {
                seen.push(batch.header.base);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        assert_eq!((seen, ended), (vec![SEGMENT + SEGMENT_HEADER_BYTES], None));
    }

    #[test]
    fn every_damaged_byte_of_a_batch_is_named_and_nothing_else_is_lost() {
        let whole = Maker::log();
        for (index, (at, length)) in whole.batches.iter().enumerate() {
            let is_last = index + 1 == whole.batches.len();
            let bytes = [0, 5, 9, 20, 26, 34, 48, 63, 64, 70, 96, 100, 180, length - 1];
            for byte in bytes.into_iter().skip(index % 4).step_by(4) {
                let mut maker = Maker::log();
                if byte >= *length {
                    continue;
                }
                *maker.byte(at + byte) ^= 4;
                let dir = maker.write();
                let (batches, damages, ending) = walk(dir.path());
                let others: Vec<u64> = whole.batches.iter().map(|batch| batch.0).filter(|base| base != at).collect();
                assert_eq!(batches, others, "batch {index} byte {byte}");
                if is_last {
                    // Nobody was told of it: its torn remains are the tail.
                    let before = whole.batches[index - 1];
                    assert_eq!((damages.len(), ending.head), (0, before.0 + before.1), "byte {byte}: {damages:?}");
                    continue;
                }
                assert_eq!(ending.head, maker.head, "batch {index} byte {byte}");
                let (file, place, what) = &damages[0];
                // The byte itself in a payload; else the batch, or the end of the one before where it begins.
                let (from, to) = (if index > 0 { whole.batches[index - 1] } else { (*at, 0) }, file + place);
                let near = from.0 + from.1 <= to && to <= at + byte;
                assert!(near && *file <= at / SEGMENT * SEGMENT, "batch {index} at {at} byte {byte}: {damages:?}");
                let first = 70 * index as u64;
                let payloads = [96..96 + first, 128 + first..137 + first, 169 + first..*length];
                let is_payload = payloads.iter().any(|range| range.contains(&byte));
                assert_eq!(what.contains("payload"), is_payload, "batch {index} byte {byte}: {what}");
                let missing = damages[1..].iter().filter(|damage| damage.2.contains("3 offsets")).count();
                assert_eq!(missing, usize::from(!is_payload && index > 0 && index < 39), "{damages:?}");
                assert_eq!(damages.len(), 1 + missing, "{damages:?}");
            }
        }
    }

    #[test]
    fn an_opening_does_not_pass_over_a_first_batch_that_is_damaged() {
        let mut maker = Maker::log();
        *maker.byte(SEGMENT_HEADER_BYTES + 17) ^= 1;
        let dir = maker.write();
        let inspector = Inspector::open(dir.path(), None).unwrap();
        let view = View { partition: 2, pieces: &inspector.pieces, from: 0 };
        let mut recovery = Recovery::new(&view.config());
        let mut op = recovery.first();
        let error = loop {
            let mut refuse = |batch: Batch<'_>| panic!("{:?} does not come first", batch.header);
            let next = match recovery.on_done(view.answer(op), &mut refuse) {
                Ok(Next::Ready) => recovery.begin(None, 0, &[], &mut refuse),
                next => next,
            };
            match next {
                Ok(Next::Ready) => unreachable!("it has begun"),
                Ok(Next::Do(next)) => op = next,
                Ok(Next::Finished(found)) => panic!("{found:?}"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, OpenError::Inside { byte: SEGMENT_HEADER_BYTES, .. }), "{error}");
    }

    #[test]
    fn what_is_wrong_with_files_is_named_and_the_rest_is_read() {
        type Harm = fn(&Path);
        fn file(dir: &Path, index: u64) -> PathBuf {
            dir.join(name(index * SEGMENT))
        }
        fn cut(path: &Path, bytes: u64) {
            OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
        }
        fn flip(path: &Path, byte: usize) {
            let mut bytes = std::fs::read(path).unwrap();
            bytes[byte] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
        let table: [(Harm, u64, &str); 6] = [
            (|dir| flip(&file(dir, 0), 3), 0, "header is damaged"),
            (|dir| flip(&file(dir, 1), 21), SEGMENT, "header is damaged"),
            (|dir| std::fs::remove_file(file(dir, 1)).unwrap(), 2 * SEGMENT, "65536 to 131072"),
            (|dir| cut(&file(dir, 1), 40_000), SEGMENT, "40000 bytes, and 65536"),
            (|dir| assert!(std::fs::copy(file(dir, 0), file(dir, 1)).is_ok()), SEGMENT, "the file was renamed"),
            (|dir| cut(&file(dir, 1), 0), SEGMENT, "header is damaged"),
        ];
        let maker = Maker::log();
        for (harm, wanted, words) in table {
            let dir = maker.write();
            harm(dir.path());
            let (batches, damages, ending) = walk(dir.path());
            assert!((damages[0].0, damages[0].1) == (wanted, 0) && damages[0].2.contains(words), "{damages:?}");
            assert_eq!(ending.head, maker.head, "{words}: {damages:?}");
            let others = maker.batches.iter().filter(|batch| batch.0 / SEGMENT != 1).count();
            assert!(batches.len() >= others, "{words}: {} of {others}", batches.len());
        }
        let dir = maker.write();
        let mut header = SegmentHeader { partition: 2, base: SEGMENT, bytes: SEGMENT }.encode();
        header[9] = 9;
        header[12..16].fill(0);
        let crc = crc32c::crc32c(&header);
        header[12..16].copy_from_slice(&crc.to_be_bytes());
        let mut bytes = std::fs::read(file(dir.path(), 1)).unwrap();
        bytes[..header.len()].copy_from_slice(&header);
        std::fs::write(file(dir.path(), 1), bytes).unwrap();
        let (_, damages, _) = walk(dir.path());
        assert!(damages[0].2.contains("format version 9"), "{damages:?}");
    }

    #[test]
    fn a_torn_tail_is_no_damage_and_what_lies_behind_the_end_is_told() {
        // The newest batch is cut in the middle, or replaced by what a recycled file holds.
        let torn = |maker: &mut Maker, at: u64, length: u64| {
            (at + length / 2..at + length).for_each(|byte| *maker.byte(byte) = 0);
        };
        let stale = |maker: &mut Maker, at: u64, _: u64| *maker.byte(at + 29) ^= 1;
        let noise = |maker: &mut Maker, at: u64, _: u64| (at..at + 64).for_each(|byte| *maker.byte(byte) = 0xab);
        type Harm<'a> = &'a dyn Fn(&mut Maker, u64, u64);
        let table: [(Harm<'_>, Behind); 3] =
            [(&torn, Behind::Torn(1628)), (&stale, Behind::Stale), (&noise, Behind::Other)];
        for (harm, behind) in table {
            let mut maker = Maker::new();
            maker.batch(&[100]);
            maker.batch(&[1500, 0]);
            let (at, length) = maker.batches[1];
            harm(&mut maker, at, length);
            let (batches, damages, ending) = walk(maker.write().path());
            assert_eq!((batches.len(), damages, ending.head, ending.behind), (1, vec![], at, behind));
        }
        // A whole batch behind the hole, which was not acknowledged.
        let mut maker = Maker::new();
        for _ in 0..3 {
            maker.durable = 0;
            maker.batch(&[100]);
        }
        let (at, last) = (maker.batches[1].0, maker.batches[2].0);
        *maker.byte(at + 2) ^= 1;
        let (batches, damages, ending) = walk(maker.write().path());
        assert_eq!((batches.len(), damages, ending.head, ending.stranded), (1, vec![], at, Some(last)));
        // Nothing at all.
        let dir = tempfile::tempdir().unwrap();
        let (batches, damages, ending) = walk(dir.path());
        assert_eq!((batches.len(), damages.len(), ending.head, ending.behind), (0, 0, 0, Behind::Nothing));
    }

    #[test]
    fn missing_offsets_are_named() {
        let mut maker = Maker::new();
        maker.batch(&[10, 10]);
        maker.next += 4;
        maker.batch(&[10]);
        maker.next = 3;
        maker.batch(&[10]);
        let (batches, damages, _) = walk(maker.write().path());
        assert_eq!(batches.len(), 3);
        let words: Vec<&str> = damages.iter().map(|damage| &*damage.2).collect();
        let wanted = [
            "before offset 6 of topic id 3, queue 1, 4 offsets from 2 on are missing",
            "offset 3 of topic id 3, queue 1 comes again",
        ];
        assert_eq!(words, wanted);
        assert_eq!(damages[0].1, maker.batches[1].0 + 96, "at its payload");
    }
}
