//! What recovery is shown of a directory, and how its operations are answered: only reading happens.

use super::segments::{Piece, base};
use crate::buffer::Region;
use crate::format::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::{INFLIGHT_BATCHES, LogConfig};
use crate::segment::name;
use bytes::Bytes;

/// Segments without a gap, beginning at a batch.
pub struct View<'a> {
    pub partition: u16,
    pub pieces: &'a [Piece],
    pub from: u64,
}

impl View<'_> {
    /// What recovery is told: the partition, and to look behind the end as far as any log needs it.
    pub fn config(&self) -> LogConfig {
        LogConfig {
            inflight_batches: *INFLIGHT_BATCHES.end(),
            ..LogConfig::new(".", self.partition, Region::new(1, BLOCK_BYTES as usize).expect("one page"), |_| None)
        }
    }

    /// The log byte at which a segment begins here: the first one is cut off, so that where recovery looks
    /// for the first batch, behind a header block, is where one begins.
    fn base(&self, piece: &Piece) -> u64 {
        piece.base.max(self.from.min(piece.end()).saturating_sub(SEGMENT_HEADER_BYTES))
    }

    /// Does what only reads; what would change something is not done, or fails.
    pub fn answer(&self, op: Op) -> Result<Outcome, Fault> {
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
