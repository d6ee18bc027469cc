//! The files of a log, and where its bytes lie in them.

use super::Damage;
use crate::buffer::Chunk;
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, FORMAT_VERSION, FormatError, PARTITIONS_MAX, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use crate::segment::name;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

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
    pub(super) fn end(&self) -> u64 {
        self.base + self.bytes
    }

    /// Up to `length` bytes at byte `at` of the file, which is a multiple of a block.
    pub(super) fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
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

/// The segments of one partition that can be read, oldest first. No two have a log byte in common.
#[derive(Debug)]
pub struct Segments {
    pub directory: PathBuf,
    pub partition: u16,
    pub pieces: Vec<Piece>,
}

impl Segments {
    /// Opens those of `files` (name and length) that are segments, and names what is wrong with them.
    ///
    /// - `partition`: its number; `None` believes the first whole segment header.
    pub fn open(directory: &Path, files: &[(String, u64)], partition: Option<u16>) -> (Segments, Vec<Damage>) {
        let mut segments = Segments { directory: directory.to_path_buf(), partition: 0, pieces: Vec::new() };
        let (mut headers, mut found) = (Vec::new(), Vec::new());
        for (file, bytes) in files {
            let Some(base) = base(file) else { continue };
            let path = directory.join(file);
            match open(&path) {
                Ok(file) => {
                    let piece = Piece { base, bytes: *bytes, path, file };
                    headers.push(piece.read(0, SEGMENT_HEADER_BYTES).map(|block| SegmentHeader::decode(&block)));
                    segments.pieces.push(piece);
                }
                // Retired since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => found.push(Damage { path, byte: 0, what: error.to_string() }),
            }
        }
        segments.partition = partition.unwrap_or_else(|| {
            let mut whole = headers.iter().flatten().flatten();
            whole.next().map_or(0, |header| header.partition) % PARTITIONS_MAX
        });
        segments.check_headers(headers, &mut found);
        (segments, found)
    }

    /// Compares headers with names, and the files with one another.
    fn check_headers(&mut self, headers: Vec<io::Result<Result<SegmentHeader, FormatError>>>, found: &mut Vec<Damage>) {
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
            found.push(Damage { path: piece.path.clone(), byte: 0, what });
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
                found.push(Damage { path: piece.path.clone(), byte: 0, what });
            }
            let base = piece.base;
            let before = &mut self.pieces[index - 1];
            before.bytes = before.bytes.min(base - before.base);
        }
    }

    /// The file and its byte where a log byte lies; behind the log, the last file.
    pub fn place(&self, byte: u64) -> (&Path, u64) {
        let piece = self.holding(byte).or(self.pieces.iter().rev().find(|piece| piece.base <= byte));
        piece.map_or((&self.directory, 0), |piece| (&piece.path, byte - piece.base))
    }

    /// The segment that holds a log byte.
    pub fn holding(&self, byte: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end() <= byte);
        self.pieces.get(index).filter(|piece| piece.base <= byte)
    }

    /// The segments from the one that holds a log byte up to the first gap.
    pub fn contiguous(&self, from: u64) -> &[Piece] {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        let rest = &self.pieces[first.min(self.pieces.len())..];
        let count = rest.windows(2).take_while(|pair| pair[0].end() == pair[1].base).count();
        &rest[..rest.len().min(count + 1)]
    }

    /// Whether a batch header may stand at log byte `at`.
    pub fn is_ours(&self, header: &BatchHeader, at: u64) -> bool {
        header.base == at && header.partition == self.partition
    }

    /// Whether the segment that holds this log byte was retired since it was opened; those that were are dropped.
    pub fn forget_retired(&mut self, byte: u64) -> bool {
        let Some(held) = self.holding(byte).map(|piece| piece.base) else { return false };
        let is_there = |piece: &Piece| piece.path.exists();
        // Newest first: the oldest go first, so that those behind one that is there still are, too.
        self.pieces.reverse();
        self.pieces.retain(is_there);
        self.pieces.reverse();
        self.holding(byte).is_none_or(|piece| piece.base != held)
    }

    /// Where a batch may follow one that ends at `head`.
    pub fn places(&self, head: u64) -> impl Iterator<Item = u64> {
        let next_piece = self.holding(head.saturating_sub(1)).map(|piece| piece.end() + SEGMENT_HEADER_BYTES);
        [Some(head), Some(head.next_multiple_of(BLOCK_BYTES)), next_piece].into_iter().flatten()
    }

    /// What claims to be a batch at `place` that follows one with the checksum `chain`.
    pub fn batch_at(&self, place: u64, chain: Option<u32>) -> Option<(BatchHeader, Bytes)> {
        let header = BatchHeader::peek(&self.peek(place, BATCH_HEADER_BYTES as u64)?).ok()?;
        let follows = chain.is_none_or(|chain| chain == header.previous);
        let bytes = self.peek(place, header.length.into()).filter(|_| follows && self.is_ours(&header, place))?;
        Some((header, bytes))
    }

    /// Bytes of the log, from one segment.
    pub fn peek(&self, at: u64, length: u64) -> Option<Bytes> {
        let piece = self.holding(at)?;
        let start = at - at % BLOCK_BYTES;
        let bytes = piece.read(start - piece.base, at - start + length).ok()?;
        let skip = (at - start) as usize;
        (bytes.len() >= skip + length as usize).then(|| bytes.slice(skip..skip + length as usize))
    }
}

/// The log byte that a segment's name says it starts at.
pub fn base(file: &str) -> Option<u64> {
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
