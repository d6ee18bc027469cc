//! The files that are derived from a log, seen from outside: each block and piece by its checksum. What is
//! damaged in them is made again from the log at the next start.

use super::{Damage, list};
use crate::checkpoint;
use crate::format::derived::{
    CHECKPOINT_VERSION, Closing, PIECE_HEADER_BYTES, Piece, PieceKind, RunHeader, decode_begin, is_whole,
};
use crate::format::{BLOCK_BYTES, FormatError};
use crate::writing;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
const _: () = assert!(READ_BYTES.is_multiple_of(BLOCK_BYTES as usize), "a read gives whole blocks");

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The file's name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Queues that it lists.
    pub queues: u32,
    /// Messages that it has.
    pub entries: u32,
    /// Keys that it has.
    pub keys: u32,
}

/// A checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log byte where a start begins to read.
    pub head: u64,
    /// Everything below this log byte was durable when it was written.
    pub durable: u64,
    /// The file's length.
    pub bytes: u64,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// Runs, oldest first.
    pub runs: Vec<Run>,
    /// `None`: there is none, or it is damaged.
    pub checkpoint: Option<Checkpoint>,
    /// What is damaged.
    pub damages: Vec<Damage>,
}

/// Reads all of them. Files that go meanwhile are left out.
pub(super) fn read(directory: &Path, partition: u16) -> io::Result<Derived> {
    let mut found = Derived::default();
    for (name, bytes) in list(directory)? {
        let Some((from, to)) = parse(&name) else { continue };
        let path = directory.join(&name);
        let told = File::open(&path).and_then(|file| read_run(&file, partition, from, to, bytes));
        match told {
            Ok(Ok(header)) => {
                let (queues, entries, keys) = (header.queues, header.entries, header.keys);
                found.runs.push(Run { name, bytes, queues, entries, keys });
            }
            Ok(Err((byte, what))) => found.damages.push(Damage { path, byte, what }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.damages.push(Damage { path, byte: 0, what: error.to_string() }),
        }
    }
    match read_checkpoint(directory, partition) {
        Ok(checkpoint) => found.checkpoint = checkpoint,
        Err(damage) => found.damages.push(damage),
    }
    Ok(found)
}

/// The log bytes between which a run lies, by its name.
fn parse(file: &str) -> Option<(u64, u64)> {
    let (from, to) = file.strip_prefix("run-")?.split_once('-')?;
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (writing::name(from, to) == file).then_some((from, to))
}

type Wrong = (u64, String);

fn read_run(file: &File, partition: u16, from: u64, to: u64, bytes: u64) -> io::Result<Result<RunHeader, Wrong>> {
    let mut buffer = vec![0; READ_BYTES];
    let mut header = None;
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(READ_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..length], at)?;
        for block in buffer[..length].chunks(BLOCK_BYTES as usize) {
            if at == 0 {
                match RunHeader::decode(block, from) {
                    Ok(known) if known.partition == partition && known.to == to && known.bytes == bytes => {
                        header = Some(known);
                    }
                    Ok(_) => return Ok(Err((0, "the run's header is of another run".to_owned()))),
                    Err(FormatError::Version(version)) => return Ok(Err((0, newer(version)))),
                    Err(FormatError::Damaged) => return Ok(Err((0, "the run's header is damaged".to_owned()))),
                }
            } else if !is_whole(block, from, (at / BLOCK_BYTES) as u32) {
                return Ok(Err((at, "a block of the run is damaged".to_owned())));
            }
            at += block.len() as u64;
        }
    }
    Ok(header.ok_or_else(|| (0, "the run is empty".to_owned())))
}

/// The checkpoint, if there is one.
pub(super) fn read_checkpoint(directory: &Path, partition: u16) -> Result<Option<Checkpoint>, Damage> {
    let path = directory.join(checkpoint::NAME);
    let damage = |byte: u64, what: String| Damage { path: path.clone(), byte, what };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damage(0, error.to_string())),
    };
    let (mut at, mut number, mut head) = (0, 0, None);
    loop {
        let broken = |_: io::Error| damage(at, "the checkpoint ends too early".to_owned());
        let mut bytes = vec![0; PIECE_HEADER_BYTES];
        file.read_exact_at(&mut bytes, at).map_err(broken)?;
        let wrong = || damage(at, "a piece of the checkpoint is damaged".to_owned());
        bytes.resize(Piece::bytes(&bytes).ok_or_else(wrong)?, 0);
        file.read_exact_at(&mut bytes, at).map_err(broken)?;
        let piece = match Piece::decode(&bytes) {
            Ok(piece) if piece.partition == partition && piece.number == number => piece,
            // An opening passes it over and makes its own.
            Err(FormatError::Version(version)) if version < CHECKPOINT_VERSION => return Ok(None),
            Err(FormatError::Version(version)) => return Err(damage(at, newer(version))),
            Ok(_) | Err(FormatError::Damaged) => return Err(wrong()),
        };
        match (piece.kind, head) {
            (PieceKind::Begin, None) => head = Some(decode_begin(piece.payload).ok_or_else(wrong)?.head),
            (PieceKind::Facts | PieceKind::Timers | PieceKind::Halves | PieceKind::Segments, Some(_)) => {}
            (PieceKind::End, Some(head)) => {
                let durable = Closing::decode(piece.payload).ok_or_else(wrong)?.durable;
                return Ok(Some(Checkpoint { head, durable, bytes: at + bytes.len() as u64 }));
            }
            (_, _) => return Err(wrong()),
        }
        at += bytes.len() as u64;
        number += 1;
    }
}

fn newer(version: u16) -> String {
    format!("written in format version {version}, by a newer RingMQ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::derived::{encode_begin, seal};
    use crate::log::End;

    /// Flips each byte of a file in turn: damage is told unless the byte is one of `free`.
    fn every_byte(path: &Path, free: impl Fn(usize) -> bool) {
        let directory = path.parent().unwrap();
        let whole = std::fs::read(path).unwrap();
        for byte in (0..whole.len()).filter(|byte| byte % 97 == 0 || byte % 4096 < 34 || byte % 4096 > 4090) {
            let mut bytes = whole.clone();
            bytes[byte] ^= 2;
            std::fs::write(path, &bytes).unwrap();
            let damages = read(directory, 2).unwrap().damages;
            match &damages[..] {
                [] => assert!(free(byte), "byte {byte}"),
                [damage] => assert!(damage.path == path && damage.byte <= byte as u64 && !free(byte), "{damage}"),
                _ => panic!("{damages:?}"),
            }
        }
        for length in [0, 1, 4095, 4096, whole.len() - 1] {
            std::fs::write(path, &whole[..length]).unwrap();
            assert_eq!(read(directory, 2).unwrap().damages.len(), 1, "cut at {length}");
        }
        std::fs::write(path, &whole).unwrap();
        assert_eq!(read(directory, 2).unwrap().damages, []);
        assert_eq!(read(directory, 3).unwrap().damages.len(), 1, "another partition's");
    }

    #[test]
    fn every_damaged_byte_of_a_run_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let header = RunHeader {
            partition: 2,
            from: 4096,
            to: 9000,
            bytes: 3 * BLOCK_BYTES,
            oldest_ms: 1,
            newest_ms: 2,
            queues: 0,
            entries: 0,
            keys: 0,
            entries_at: 1,
            keys_at: 1,
            fences_at: 1,
        };
        let mut bytes = header.encode().to_vec();
        for number in 1..3 {
            let mut block = [number as u8; BLOCK_BYTES as usize];
            seal(&mut block, 4096, number);
            bytes.extend_from_slice(&block);
        }
        let path = dir.path().join(writing::name(4096, 9000));
        std::fs::write(&path, bytes).unwrap();
        let name = writing::name(4096, 9000);
        let run = Run { name, bytes: 3 * BLOCK_BYTES, queues: 0, entries: 0, keys: 0 };
        assert_eq!(read(dir.path(), 2).unwrap().runs, [run]);
        every_byte(&path, |_| false);
        std::fs::rename(&path, dir.path().join(writing::name(4096, 9001))).unwrap();
        assert_eq!(read(dir.path(), 2).unwrap().damages.len(), 1, "renamed");
    }

    #[test]
    fn every_damaged_byte_of_a_checkpoint_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_checkpoint(dir.path(), 2), Ok(None));
        let begin = encode_begin(End { head: 9000, chain: 7, epoch: 3 });
        let end = Closing { durable: 9500, begun: None, snapshot: Some(4096) }.encode();
        let mut bytes = Vec::new();
        let pieces = [(PieceKind::Begin, &begin[..]), (PieceKind::Facts, b""), (PieceKind::End, &end)];
        for (number, (kind, payload)) in pieces.into_iter().enumerate() {
            Piece { partition: 2, number: number as u32, kind, payload }.encode(&mut bytes);
        }
        let path = dir.path().join(checkpoint::NAME);
        std::fs::write(&path, &bytes).unwrap();
        let wanted = Checkpoint { head: 9000, durable: 9500, bytes: 3 * BLOCK_BYTES };
        assert_eq!(read_checkpoint(dir.path(), 2), Ok(Some(wanted)));
        // Behind a piece's payload the block is free.
        every_byte(&path, |byte| byte % 4096 >= PIECE_HEADER_BYTES + [20, 0, 32][byte / 4096]);
    }
}
