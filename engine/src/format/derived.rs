//! Bytes of the files that are derived from the log: runs and the checkpoint. Whatever is wrong with one of
//! them is found by a checksum, and the file is made again from the log.
//!
//! ```text
//! a run         | header block | directory ... | entries ... | keys ... | fences ... |   all in blocks of 4096
//! a block       | items, then zeros                                          | 4092 crc32c u32 |
//! a checkpoint  | piece | piece | ... | piece "end" |   each in whole blocks, up to 128 KiB
//! ```

use super::crc32c;
use super::{BLOCK_BYTES, FORMAT_VERSION, FormatError, QueueKey, u16_at, u32_at, u64_at};
use crate::halves::Half;
use crate::index::Entry;
use crate::log::End;
use crate::timers::Timer;

const SUM_AT: usize = BLOCK_BYTES as usize - 4;

/// Closes a block of the file that is derived from log byte `from` on: the sum covers the block's place, too.
pub fn seal(block: &mut [u8], from: u64, number: u32) {
    let crc = sum(block, from, number);
    block[SUM_AT..].copy_from_slice(&crc.to_be_bytes());
}

/// Whether a block is what [`seal`] left.
pub fn is_whole(block: &[u8], from: u64, number: u32) -> bool {
    block.len() == BLOCK_BYTES as usize && sum(block, from, number) == u32_at(block, SUM_AT)
}

fn sum(block: &[u8], from: u64, number: u32) -> u32 {
    let crc = crc32c::crc32c(&block[..SUM_AT]);
    let crc = crc32c::crc32c_append(crc, &from.to_be_bytes());
    crc32c::crc32c_append(crc, &number.to_be_bytes())
}

// ---------------------------------------------------------------------------------------------
// A run

const RUN_MAGIC: u64 = u64::from_be_bytes(*b"RingMQrn");
const RUN_FIELDS_BYTES: usize = 80;
const _: () = assert!(8 + 2 + 2 + 4 + 7 * 8 + 2 * 4 == RUN_FIELDS_BYTES, "the fields fill the header");

/// The first block of a run.
///
/// ```text
/// | 0 magic u64 | 8 version u16 | 10 partition u16 | 12 queues u32 | 16 from u64 | 24 to u64 | 32 bytes u64 |
/// | 40 oldest_ms u64 | 48 newest_ms u64 | 56 entries u32 | 60 keys u32 | 64 entries_at u32 | 68 keys_at u32 |
/// | 72 fences_at u32 | 76 zero u32 | zeros | 4092 crc32c u32 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHeader {
    /// Whose log it is derived from.
    pub partition: u16,
    /// The log byte behind the run before it.
    pub from: u64,
    /// The log byte behind its last batch.
    pub to: u64,
    /// The file's length.
    pub bytes: u64,
    /// When its oldest message was stored, ms since 1970; above `newest_ms` if it has none.
    pub oldest_ms: u64,
    /// When its newest message was stored, ms since 1970.
    pub newest_ms: u64,
    /// Records of the directory, from block 1 on.
    pub queues: u32,
    /// Entries.
    pub entries: u32,
    /// Keys.
    pub keys: u32,
    /// The block where the entries begin.
    pub entries_at: u32,
    /// The block where the keys begin.
    pub keys_at: u32,
    /// The block where the fences begin: the first queue of each block of the directory, then the first hash
    /// of each block of keys.
    pub fences_at: u32,
}

impl RunHeader {
    /// The whole block.
    pub fn encode(&self) -> [u8; BLOCK_BYTES as usize] {
        let mut out = [0; BLOCK_BYTES as usize];
        out[..8].copy_from_slice(&RUN_MAGIC.to_be_bytes());
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        out[10..12].copy_from_slice(&self.partition.to_be_bytes());
        out[12..16].copy_from_slice(&self.queues.to_be_bytes());
        let longs = [self.from, self.to, self.bytes, self.oldest_ms, self.newest_ms];
        for (at, value) in (16..).step_by(8).zip(longs) {
            out[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        let words = [self.entries, self.keys, self.entries_at, self.keys_at, self.fences_at];
        for (at, value) in (56..).step_by(4).zip(words) {
            out[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        seal(&mut out, self.from, 0);
        out
    }

    /// Reads the header of a run that begins at log byte `from`. `Damaged` also if its sections do not fit
    /// into its bytes.
    pub fn decode(block: &[u8], from: u64) -> Result<RunHeader, FormatError> {
        if !is_whole(block, from, 0) || u64_at(block, 0) != RUN_MAGIC {
            return Err(FormatError::Damaged);
        }
        let version = u16_at(block, 8);
        if version > FORMAT_VERSION {
            return Err(FormatError::Version(version));
        }
        let header = RunHeader {
            partition: u16_at(block, 10),
            queues: u32_at(block, 12),
            from: u64_at(block, 16),
            to: u64_at(block, 24),
            bytes: u64_at(block, 32),
            oldest_ms: u64_at(block, 40),
            newest_ms: u64_at(block, 48),
            entries: u32_at(block, 56),
            keys: u32_at(block, 60),
            entries_at: u32_at(block, 64),
            keys_at: u32_at(block, 68),
            fences_at: u32_at(block, 72),
        };
        let end = header.bytes / BLOCK_BYTES;
        let directory = 1 + u64::from(header.directory_blocks());
        let entries = u64::from(header.entries_at) + u64::from(Entry::blocks(header.entries.into()));
        let keys = u64::from(header.keys_at) + u64::from(header.key_blocks());
        let fences = u64::from(header.fences_at) + u64::from(header.fence_blocks());
        let fits = directory <= header.entries_at.into()
            && entries <= header.keys_at.into()
            && keys <= header.fences_at.into()
            && fences <= end;
        if header.from == from && fits { Ok(header) } else { Err(FormatError::Damaged) }
    }

    /// Blocks of the directory.
    pub fn directory_blocks(&self) -> u32 {
        Slot::blocks(self.queues.into())
    }

    /// Blocks of keys.
    pub fn key_blocks(&self) -> u32 {
        Key::blocks(self.keys.into())
    }

    /// Fences: one for each block of the directory and of keys.
    pub fn fences(&self) -> u32 {
        self.directory_blocks() + self.key_blocks()
    }

    /// Blocks of fences.
    pub fn fence_blocks(&self) -> u32 {
        Fence::blocks(self.fences().into())
    }
}

/// What a block holds many of, all of one size.
pub trait Item: Sized {
    /// Bytes of one.
    const BYTES: usize;
    /// How many a block holds.
    const PER_BLOCK: usize = SUM_AT / Self::BYTES;

    /// Writes one into exactly [`BYTES`](Item::BYTES) bytes.
    fn encode(&self, out: &mut [u8]);

    /// Reads one back.
    fn decode(bytes: &[u8]) -> Self;

    /// Blocks that so many of them take.
    fn blocks(count: u64) -> u32 {
        u32::try_from(count.div_ceil(Self::PER_BLOCK as u64)).expect("a run has fewer than 2^32 blocks")
    }

    /// One of a block.
    fn at(block: &[u8], index: usize) -> Self {
        Self::decode(&block[index * Self::BYTES..(index + 1) * Self::BYTES])
    }
}

/// Where a run has a queue's entries. A directory lists every queue that was known, by key.
///
/// ```text
/// | 0 topic u32 | 4 queue u32 | 8 first u64 | 16 count u32 | 20 place u32 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The queue.
    pub queue: QueueKey,
    /// The offset of the first message of it that the run has, or of the next that comes if it has none.
    pub first: u64,
    /// How many it has.
    pub count: u32,
    /// Which of the run's entries is the first.
    pub place: u32,
}

impl Item for Slot {
    const BYTES: usize = 24;

    fn encode(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&pack(self.queue).to_be_bytes());
        out[8..16].copy_from_slice(&self.first.to_be_bytes());
        out[16..20].copy_from_slice(&self.count.to_be_bytes());
        out[20..].copy_from_slice(&self.place.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Slot {
        let queue = QueueKey { topic: u32_at(bytes, 0), queue: u32_at(bytes, 4) };
        Slot { queue, first: u64_at(bytes, 8), count: u32_at(bytes, 16), place: u32_at(bytes, 20) }
    }
}

/// `| 0 byte 6 | 6 store_time_ms 6 | 12 length u32 | 16 tag_hash i32 |`
impl Item for Entry {
    const BYTES: usize = 20;

    fn encode(&self, out: &mut [u8]) {
        out[..6].copy_from_slice(&self.byte.to_be_bytes()[2..]);
        out[6..12].copy_from_slice(&self.store_time_ms.to_be_bytes()[2..]);
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        out[16..].copy_from_slice(&self.tag_hash.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Entry {
        Entry {
            byte: u64_at(bytes, 0) >> 16,
            store_time_ms: u64_at(bytes, 4) & ((1 << 48) - 1),
            length: u32_at(bytes, 12),
            tag_hash: u32_at(bytes, 16).cast_signed(),
        }
    }
}

/// A key's hash and the log byte of a message that carries it: `| 0 hash u64 | 8 byte u64 |`, sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u64, pub u64);

impl Item for Key {
    const BYTES: usize = 16;

    fn encode(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.0.to_be_bytes());
        out[8..].copy_from_slice(&self.1.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Key {
        Key(u64_at(bytes, 0), u64_at(bytes, 8))
    }
}

/// What the first item of a block is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence(pub u64);

impl Item for Fence {
    const BYTES: usize = 8;

    fn encode(&self, out: &mut [u8]) {
        out.copy_from_slice(&self.0.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Fence {
        Fence(u64_at(bytes, 0))
    }
}

/// A queue as the number that it is sorted by.
pub fn pack(queue: QueueKey) -> u64 {
    u64::from(queue.topic) << 32 | u64::from(queue.queue)
}

// ---------------------------------------------------------------------------------------------
// A checkpoint

/// Version of a checkpoint's layout. One of an older version is made again from the log; 1 did not name the queue
/// of a delayed message.
pub const CHECKPOINT_VERSION: u16 = 3;

const PIECE_MAGIC: u64 = u64::from_be_bytes(*b"RingMQcp");
/// Bytes of a piece's header.
pub const PIECE_HEADER_BYTES: usize = 32;
const _: () = assert!(8 + 2 + 2 + 4 + 4 + 4 + 8 == PIECE_HEADER_BYTES, "the fields fill the header");
/// Most bytes of a piece: two facts of the largest size and what is around them.
pub const PIECE_BYTES_MAX: usize = 3 << 20;

/// What a piece of a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PieceKind {
    /// The first one: where the log stood.
    Begin = 1,
    /// Facts, as in the log.
    Facts = 2,
    /// Delayed messages that wait: see [`encode_timer`].
    Timers = 3,
    /// Segments and when each was written last: see [`encode_segment`].
    Segments = 4,
    /// The last one: what must be durable for all of this to be true.
    End = 5,
    /// Half messages that are undecided: see [`encode_half`].
    Halves = 6,
}

/// One piece of a checkpoint: this header, a payload, zeros up to the block's end.
///
/// ```text
/// |  0 magic u64  |  8 version u16 | 10 partition u16 | 12 length u32 |
/// | 16 crc32c u32 | 20 number u32  | 24 kind u8       | 25 zero 7     |
/// ```
/// The sum covers the header, with zeros in its place, and the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Whose it is.
    pub partition: u16,
    /// Its place in the file, from 0.
    pub number: u32,
    /// What the payload is.
    pub kind: PieceKind,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Appends it to `out`, in whole blocks.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let length = u32::try_from(self.payload.len()).expect("at most PIECE_BYTES_MAX");
        out.extend_from_slice(&PIECE_MAGIC.to_be_bytes());
        out.extend_from_slice(&CHECKPOINT_VERSION.to_be_bytes());
        out.extend_from_slice(&self.partition.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&[self.kind as u8, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(self.payload);
        let crc = crc32c::crc32c(&out[start..]);
        out[start + 16..start + 20].copy_from_slice(&crc.to_be_bytes());
        out.resize(start + (out.len() - start).next_multiple_of(BLOCK_BYTES as usize), 0);
    }

    /// How many bytes the piece takes that begins with these, whole blocks; `None`: it is none.
    pub fn bytes(header: &[u8]) -> Option<usize> {
        let header = header.first_chunk::<PIECE_HEADER_BYTES>()?;
        let length = u32_at(header, 12) as usize;
        let fits = u64_at(header, 0) == PIECE_MAGIC && length <= PIECE_BYTES_MAX;
        fits.then(|| (PIECE_HEADER_BYTES + length).next_multiple_of(BLOCK_BYTES as usize))
    }

    /// Reads a piece back. `Damaged` if a bit of header or payload changed; `Version` if an older or a newer
    /// RingMQ wrote it.
    pub fn decode(bytes: &'a [u8]) -> Result<Piece<'a>, FormatError> {
        let header = bytes.first_chunk::<PIECE_HEADER_BYTES>().ok_or(FormatError::Damaged)?;
        let length = u32_at(header, 12) as usize;
        let payload =
            bytes.get(PIECE_HEADER_BYTES..).and_then(|rest| rest.get(..length)).ok_or(FormatError::Damaged)?;
        let mut plain = *header;
        plain[16..20].fill(0);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&plain), payload);
        if u64_at(header, 0) != PIECE_MAGIC || crc != u32_at(header, 16) {
            return Err(FormatError::Damaged);
        }
        let version = u16_at(header, 8);
        if version != CHECKPOINT_VERSION {
            return Err(FormatError::Version(version));
        }
        let kind = match header[24] {
            1 => PieceKind::Begin,
            2 => PieceKind::Facts,
            3 => PieceKind::Timers,
            4 => PieceKind::Segments,
            5 => PieceKind::End,
            6 => PieceKind::Halves,
            _ => return Err(FormatError::Damaged),
        };
        Ok(Piece { partition: u16_at(header, 10), number: u32_at(header, 20), kind, payload })
    }
}

/// Payload of the first piece: where the log stood: `| 0 head u64 | 8 epoch u64 | 16 chain u32 |`.
pub fn encode_begin(end: End) -> [u8; 20] {
    let mut out = [0; 20];
    out[..8].copy_from_slice(&end.head.to_be_bytes());
    out[8..16].copy_from_slice(&end.epoch.to_be_bytes());
    out[16..].copy_from_slice(&end.chain.to_be_bytes());
    out
}

/// Reads [`encode_begin`] back.
pub fn decode_begin(payload: &[u8]) -> Option<End> {
    let bytes: &[u8; 20] = payload.try_into().ok()?;
    Some(End { head: u64_at(bytes, 0), epoch: u64_at(bytes, 8), chain: u32_at(bytes, 16) })
}

/// Payload of the last piece.
///
/// ```text
/// | 0 durable u64 | 8 begun number u64 | 16 begun byte u64 | 24 snapshot u64 |   u64::MAX: none
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing {
    /// Everything below this log byte was durable before the file got its name.
    pub durable: u64,
    /// Number and log byte of the snapshot that was begun last.
    pub begun: Option<(u64, u64)>,
    /// Where the newest complete snapshot begins.
    pub snapshot: Option<u64>,
}

impl Closing {
    /// The payload.
    pub fn encode(self) -> [u8; 32] {
        let mut out = [0xff; 32];
        out[..8].copy_from_slice(&self.durable.to_be_bytes());
        if let Some((number, byte)) = self.begun {
            out[8..16].copy_from_slice(&number.to_be_bytes());
            out[16..24].copy_from_slice(&byte.to_be_bytes());
        }
        if let Some(snapshot) = self.snapshot {
            out[24..].copy_from_slice(&snapshot.to_be_bytes());
        }
        out
    }

    /// Reads it back.
    pub fn decode(payload: &[u8]) -> Option<Closing> {
        let bytes: &[u8; 32] = payload.try_into().ok()?;
        let some = |at: usize| Some(u64_at(bytes, at)).filter(|value| *value != u64::MAX);
        let begun = some(16).map(|byte| (u64_at(bytes, 8), byte));
        Some(Closing { durable: u64_at(bytes, 0), begun, snapshot: some(24) })
    }
}

/// A delayed message of a checkpoint:
/// `| 0 due_ms u64 | 8 byte u64 | 16 topic u32 | 20 queue u32 | 24 length u32 | 28 key u32 |`.
pub const TIMER_BYTES: usize = 32;
const _: () = assert!(8 + 8 + 4 + 4 + 4 + 4 == TIMER_BYTES, "the fields fill it");

/// Appends a delayed message.
pub fn encode_timer(timer: Timer, out: &mut Vec<u8>) {
    out.extend_from_slice(&timer.due_ms.to_be_bytes());
    out.extend_from_slice(&timer.byte.to_be_bytes());
    out.extend_from_slice(&pack(timer.queue).to_be_bytes());
    out.extend_from_slice(&timer.length.to_be_bytes());
    out.extend_from_slice(&timer.key.to_be_bytes());
}

/// The delayed messages of a payload.
pub fn decode_timers(payload: &[u8]) -> impl Iterator<Item = Timer> {
    payload.chunks_exact(TIMER_BYTES).map(decode_timer)
}

/// A half message of a checkpoint: as a delayed one that is due when its producer is to be asked, and
/// `| 32 id u64 | 40 checks u32 |`.
pub const HALF_BYTES: usize = TIMER_BYTES + 12;
const _: () = assert!(8 + 4 == HALF_BYTES - TIMER_BYTES, "the fields fill it");

/// Appends a half message.
pub fn encode_half(half: Half, out: &mut Vec<u8>) {
    encode_timer(half.timer, out);
    out.extend_from_slice(&half.id.to_be_bytes());
    out.extend_from_slice(&half.checks.to_be_bytes());
}

/// The half messages of a payload.
pub fn decode_halves(payload: &[u8]) -> impl Iterator<Item = Half> {
    payload.chunks_exact(HALF_BYTES).map(|bytes| Half {
        timer: decode_timer(bytes),
        id: u64_at(bytes, TIMER_BYTES),
        checks: u32_at(bytes, TIMER_BYTES + 8),
    })
}

fn decode_timer(bytes: &[u8]) -> Timer {
    let queue = QueueKey { topic: u32_at(bytes, 16), queue: u32_at(bytes, 20) };
    let (length, key) = (u32_at(bytes, 24), u32_at(bytes, 28));
    Timer { due_ms: u64_at(bytes, 0), byte: u64_at(bytes, 8), queue, length, key }
}

/// Appends a segment: the log byte where it begins and when it was written last: `| 0 base u64 | 8 newest_ms u64 |`.
pub fn encode_segment(base: u64, newest_ms: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&base.to_be_bytes());
    out.extend_from_slice(&newest_ms.to_be_bytes());
}

/// The segments of a payload.
pub fn decode_segments(payload: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    payload.chunks_exact(16).map(|bytes| (u64_at(bytes, 0), u64_at(bytes, 8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_run_header_has_these_bytes_and_every_flipped_bit_is_noticed() {
        let header = RunHeader {
            partition: 3,
            from: 4096,
            to: 1 << 26,
            bytes: 8 * 4096,
            oldest_ms: 1,
            newest_ms: 2,
            queues: 171,
            entries: 205,
            keys: 1,
            entries_at: 3,
            keys_at: 5,
            fences_at: 6,
        };
        assert_eq!((header.directory_blocks(), header.key_blocks(), header.fence_blocks()), (2, 1, 1));
        let block = header.encode();
        let golden = "52696e674d51726e00030003000000ab0000000000001000000000000400000000000000000080000000000000000001\
                      0000000000000002000000cd0000000100000003000000050000000600000000";
        assert_eq!(hex(&block[..RUN_FIELDS_BYTES]), golden);
        assert_eq!(RunHeader::decode(&block, 4096), Ok(header));
        assert_eq!(RunHeader::decode(&block, 0), Err(FormatError::Damaged), "another run's");
        for bit in (0..RUN_FIELDS_BYTES * 8).chain(SUM_AT * 8..block.len() * 8) {
            let mut block = block;
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RunHeader::decode(&block, 4096), Err(FormatError::Damaged), "bit {bit}");
        }
        let mut newer = block;
        newer[9] = 4;
        seal(&mut newer, 4096, 0);
        assert_eq!(RunHeader::decode(&newer, 4096), Err(FormatError::Version(4)));
    }

    #[test]
    fn sections_of_a_run_follow_each_other_within_its_bytes() {
        // Blocks 1 to 3 are the directory, 4 and 5 entries, 6 and 7 keys, 8 fences; 9 is nobody's.
        let header = RunHeader {
            partition: 0,
            from: 0,
            to: 1,
            bytes: 10 * BLOCK_BYTES,
            oldest_ms: 1,
            newest_ms: 2,
            queues: 2 * 170 + 1,
            entries: 204 + 1,
            keys: 255 + 1,
            entries_at: 4,
            keys_at: 6,
            fences_at: 8,
        };
        let large = RunHeader { queues: 510 * 170, ..header };
        assert_eq!((header.fences(), header.fence_blocks()), (3 + 2, 1));
        assert_eq!((large.fences(), large.fence_blocks()), (510 + 2, 2));
        let exact = RunHeader { bytes: 9 * BLOCK_BYTES, ..header };
        for fits in [header, exact] {
            assert_eq!(RunHeader::decode(&fits.encode(), 0), Ok(fits));
        }
        for (what, overlaps) in [
            ("directory", RunHeader { queues: 3 * 170 + 1, ..header }),
            ("directory", RunHeader { entries_at: 3, ..header }),
            ("entries", RunHeader { entries: 2 * 204 + 1, ..header }),
            ("entries", RunHeader { keys_at: 5, ..header }),
            ("keys", RunHeader { keys: 2 * 255 + 1, ..header }),
            ("keys", RunHeader { fences_at: 7, ..header }),
            ("fences", RunHeader { fences_at: 10, ..header }),
            ("fences", RunHeader { bytes: exact.bytes - 1, ..header }),
        ] {
            assert_eq!(RunHeader::decode(&overlaps.encode(), 0), Err(FormatError::Damaged), "{what}: {overlaps:?}");
        }
    }

    #[test]
    fn items_have_these_bytes_and_survive_the_round_trip() {
        fn check<T: Item + PartialEq + std::fmt::Debug>(item: T, golden: &str) {
            let mut out = vec![0; T::BYTES];
            item.encode(&mut out);
            assert_eq!(hex(&out), golden);
            assert_eq!(T::decode(&out), item);
            assert_eq!(T::blocks(0), 0);
            assert_eq!(T::blocks(T::PER_BLOCK as u64), 1);
            assert_eq!(T::blocks(T::PER_BLOCK as u64 + 1), 2);
            let place = T::PER_BLOCK - 1;
            let mut block = [0; BLOCK_BYTES as usize];
            item.encode(&mut block[place * T::BYTES..(place + 1) * T::BYTES]);
            assert_eq!(T::at(&block, place), item);
            assert_ne!(T::at(&block, place - 1), item);
        }
        let queue = QueueKey { topic: 1, queue: 2 };
        let slot = Slot { queue, first: 3, count: 4, place: 5 };
        check(slot, "000000010000000200000000000000030000000400000005");
        let entry = Entry { byte: (1 << 48) - 1, store_time_ms: 1_700_000_000_000, length: 7, tag_hash: -1 };
        check(entry, "ffffffffffff018bcfe5680000000007ffffffff");
        check(Key(1, 2), "00000000000000010000000000000002");
        check(Fence(9), "0000000000000009");
    }

    #[test]
    fn a_piece_has_these_bytes_and_every_flipped_bit_is_noticed() {
        let piece = Piece { partition: 1, number: 2, kind: PieceKind::Facts, payload: b"payload" };
        let mut bytes = Vec::new();
        piece.encode(&mut bytes);
        assert_eq!(bytes.len(), 4096);
        let used = PIECE_HEADER_BYTES + 7;
        assert_eq!(
            hex(&bytes[..used]),
            "52696e674d5163700003000100000007ae70c4040000000202000000000000007061796c6f6164"
        );
        assert_eq!(Piece::bytes(&bytes), Some(4096));
        assert_eq!(Piece::decode(&bytes), Ok(piece));
        for bit in 0..used * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Piece::decode(&bytes).is_err(), "bit {bit}");
        }
        for flipped in (0..8 * 8).chain([12 * 8 + 7]) {
            let mut bytes = bytes.clone();
            bytes[flipped / 8] ^= 1 << (flipped % 8);
            assert_eq!(Piece::bytes(&bytes), None, "another magic, or 2 GiB: bit {flipped}");
        }
        for length in 0..used {
            assert!(Piece::decode(&bytes[..length]).is_err(), "cut at {length}");
        }
        for version in [2, 4] {
            bytes[9] = version;
            bytes[16..20].fill(0);
            let crc = crc32c::crc32c(&bytes[..used]);
            bytes[16..20].copy_from_slice(&crc.to_be_bytes());
            assert_eq!(Piece::decode(&bytes), Err(FormatError::Version(version.into())));
        }
    }

    #[test]
    fn pieces_of_every_kind_follow_each_other_in_whole_blocks() {
        use PieceKind::{Begin, End, Facts, Halves, Segments, Timers};
        let payload = [7; BLOCK_BYTES as usize];
        let mut bytes = Vec::new();
        let pieces = [Begin, Facts, Timers, Segments, End, Halves].map(|kind| {
            // One that fills its block, and one that does not.
            let length = payload.len() - if kind == Begin { PIECE_HEADER_BYTES } else { 0 };
            let piece = Piece { partition: 1, number: kind as u32, kind, payload: &payload[..length] };
            piece.encode(&mut bytes);
            piece
        });
        let mut rest = &bytes[..];
        for piece in pieces {
            assert_eq!(Piece::decode(rest), Ok(piece));
            let length = Piece::bytes(rest).unwrap();
            assert_eq!(length, if piece.kind == Begin { 4096 } else { 8192 });
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn what_a_checkpoint_says_survives_the_round_trip() {
        let end = End { head: 1, chain: 2, epoch: 3 };
        assert_eq!(decode_begin(&encode_begin(end)), Some(end));
        for closing in [
            Closing { durable: 7, begun: None, snapshot: None },
            Closing { durable: 7, begun: Some((0, 1)), snapshot: Some(0) },
        ] {
            assert_eq!(Closing::decode(&closing.encode()), Some(closing));
        }
        let mut out = Vec::new();
        let timer = Timer { due_ms: 1, byte: 2, queue: QueueKey { topic: 3, queue: 4 }, length: 5, key: 7 };
        let timers = [timer, Timer { due_ms: u64::MAX, byte: 6, ..timer }];
        timers.iter().for_each(|timer| encode_timer(*timer, &mut out));
        assert_eq!(hex(&out[..TIMER_BYTES]), "0000000000000001000000000000000200000003000000040000000500000007");
        assert_eq!(decode_timers(&out).collect::<Vec<_>>(), timers);
        out.clear();
        let half = Half { timer, id: 8, checks: 9 };
        encode_half(half, &mut out);
        assert_eq!(hex(&out[TIMER_BYTES..]), "000000000000000800000009");
        assert_eq!(decode_halves(&out).collect::<Vec<_>>(), [half]);
        out.clear();
        encode_segment(1, 2, &mut out);
        assert_eq!(decode_segments(&out).collect::<Vec<_>>(), [(1, 2)]);
    }
}
