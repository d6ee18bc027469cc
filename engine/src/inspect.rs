//! A partition's directory seen from outside: which batches make up its log, where that ends, what is damaged.
//! Read only, blocking, without a ring: for tools, on a directory that is in use or not.
//!
//! What continues the chain is decided by [`Recovery`] alone. It is shown a *view*: the segments only, with the
//! headers that were reported already put right, and, behind damage, with the log's front cut off so that it
//! begins at the next whole batch. So one pass names every damage, where an opening stops at the first.

mod derived;
mod segments;
mod sequence;
#[cfg(test)]
mod tests;
mod view;
mod walk;

pub use crate::facts::Change;
pub use derived::{Checkpoint, Derived, Run};
pub use segments::Piece;
pub use sequence::{Fact, facts};

use crate::format::{BLOCK_BYTES, Batch, BatchHeader, SEGMENT_HEADER_BYTES};
use crate::kernel::list;
use segments::{Segments, base};
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use walk::Walk;

/// How often files that change while they are opened are opened again. 64: a segment is retired or made in between.
const LOOKS_MAX: u32 = 64;

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

/// One partition's directory, open for reading.
#[derive(Debug)]
pub struct Inspector {
    segments: Segments,
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
        let mut files = list(directory)?;
        let mut looks = 0;
        loop {
            let (segments, found) = Segments::open(directory, &files, partition);
            // One that is damaged says nothing; it is named with the other derived files.
            let checkpoint = derived::read_checkpoint(directory, segments.partition).ok().flatten();
            let promised = checkpoint.map_or(0, |checkpoint| checkpoint.durable.max(checkpoint.head));
            let is_whole = found.is_empty() && segments.pieces.last().is_some_and(|piece| promised <= piece.end());
            // The log may be in use: nothing is called damaged until the segments were the same before and behind it.
            let again = list(directory)?;
            looks += 1;
            if is_whole || is_same_log(&files, &again) || looks == LOOKS_MAX {
                let spares = files.into_iter().filter(|(file, _)| file.starts_with("spare-")).collect();
                return Ok(Inspector { segments, spares, promised, found });
            }
            files = again;
        }
    }

    /// Its number.
    pub fn partition(&self) -> u16 {
        self.segments.partition
    }

    /// The segments, oldest first.
    pub fn pieces(&self) -> &[Piece] {
        &self.segments.pieces
    }

    /// Names and lengths of retired files that wait for their next use.
    pub fn spares(&self) -> &[(String, u64)] {
        &self.spares
    }

    /// Reads the files that are derived from the log, and checks each block. `Err`: the directory cannot be listed.
    pub fn derived(&self) -> io::Result<Derived> {
        derived::read(&self.segments.directory, self.segments.partition)
    }

    /// Bytes of all segments: more than a walk reads, as the last ones may be prepared only.
    pub fn bytes(&self) -> u64 {
        self.segments.pieces.iter().map(|piece| piece.bytes).sum()
    }

    /// When the first batch of a segment was closed, ms since 1970, if that batch's header is there.
    pub fn begins_ms(&self, piece: &Piece) -> Option<u64> {
        let block = piece.read(SEGMENT_HEADER_BYTES, BLOCK_BYTES).ok()?;
        let header = BatchHeader::peek(&block).ok()?;
        self.segments.is_ours(&header, piece.base + SEGMENT_HEADER_BYTES).then_some(header.closed_ms)
    }

    /// The file and its byte where a log byte lies; behind the log, the last file.
    pub fn place(&self, byte: u64) -> (&Path, u64) {
        self.segments.place(byte)
    }

    /// Walks along the log from the segment on that holds log byte `from`, or the oldest one behind it.
    /// `None`: `sight` broke off, which is heeded within one read.
    pub fn walk(&mut self, from: u64, sight: &mut dyn FnMut(Sight<'_>) -> ControlFlow<()>) -> Option<Ending> {
        for damage in std::mem::take(&mut self.found) {
            sight(Sight::Damage(damage)).is_continue().then_some(())?;
        }
        Walk::new(self.promised, sight).along(&mut self.segments, from)
    }
}

/// Whether two lists of a directory have the same segments.
fn is_same_log(before: &[(String, u64)], behind: &[(String, u64)]) -> bool {
    let segments = |files: &[(String, u64)]| files.iter().filter_map(|(file, _)| base(file)).collect::<Vec<_>>();
    segments(before) == segments(behind)
}
