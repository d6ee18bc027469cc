//! Every byte that the engine puts on disk: the only file that knows where they lie.
//! All integers are big-endian. `docs/FORMAT.md` has the argument for each crash point.
//!
//! ```text
//! partition's log   0 ............................................................ 2^48 bytes
//! segment files     |00000000000000000000|00000000001073741824|  named by their first byte
//! a segment         | segment header, 1 block | batch | batch |pad| batch | ... | unused end |
//! a batch           | batch header 64 | record | record | ... |   then zeros to the block's end
//! a record          | record header 32 | payload |
//! ```

pub mod crc32c;
pub mod derived;

use crate::limits::RECORD_OFFSETS_MAX;
use std::fmt;
use std::ops::Range;

/// Unit of writing: positions, lengths and memory of `O_DIRECT` writes are multiples of it. Bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// Version of every layout in this file, and of a run's. A newer one is refused, never guessed at. 2: a message may
/// take several queue offsets. 3: a fact may go on. What earlier versions wrote reads the same.
pub const FORMAT_VERSION: u16 = 3;

/// Bytes of a log that a position can name: 2^48.
pub const LOG_BYTES_MAX: u64 = 1 << 48;

/// Partitions that a position can name: 15 bits, because Java reads the position as a signed number.
pub const PARTITIONS_MAX: u16 = 1 << 15;

/// Where a message lies: partition and byte of its log. It is RocketMQ's 64-bit "physical offset".
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl Position {
    /// Packs a partition (below [`PARTITIONS_MAX`]) and a byte (below [`LOG_BYTES_MAX`]).
    pub fn pack(partition: u16, byte: u64) -> Position {
        assert!(partition < PARTITIONS_MAX && byte < LOG_BYTES_MAX, "partition {partition} byte {byte}");
        Position(u64::from(partition) << 48 | byte)
    }

    /// The partition's number. A position that a client sent may name one that does not exist.
    pub fn partition(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The byte in the partition's log.
    pub fn byte(self) -> u64 {
        self.0 & (LOG_BYTES_MAX - 1)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.partition(), self.byte())
    }
}

/// A message queue inside the engine: its topic's id, which no other topic ever gets again, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey {
    /// The topic's id.
    pub topic: u32,
    /// The queue's number within the topic, from 0.
    pub queue: u32,
}

// ---------------------------------------------------------------------------------------------
// Segment header

/// A segment starts with a block of its own, so that batches start on a block boundary.
pub const SEGMENT_HEADER_BYTES: u64 = BLOCK_BYTES;

const SEGMENT_MAGIC: u64 = u64::from_be_bytes(*b"RingMQsg");

/// First block of a segment file; the rest of the block is zero.
///
/// ```text
/// | 0 magic u64 | 8 version u16 | 10 partition u16 | 12 crc32c u32 of the others | 16 base u64 | 24 bytes u64 |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log it belongs to.
    pub partition: u16,
    /// The log byte that the file's byte 0 stands for.
    pub base: u64,
    /// The file's length.
    pub bytes: u64,
}

const SEGMENT_FIELDS_BYTES: usize = 32;
const _: () = assert!(8 + 2 + 2 + 4 + 8 + 8 == SEGMENT_FIELDS_BYTES, "the fields fill the header");

/// Why a header was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatError {
    /// It is not one of ours, or damaged.
    Damaged,
    /// A newer RingMQ wrote it: this one must not touch it.
    Version(u16),
}

impl SegmentHeader {
    /// The header as it stands on disk, without the zeros behind it.
    pub fn encode(self) -> [u8; SEGMENT_FIELDS_BYTES] {
        let mut out = [0; SEGMENT_FIELDS_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC.to_be_bytes());
        out[8..10].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        out[10..12].copy_from_slice(&self.partition.to_be_bytes());
        out[16..24].copy_from_slice(&self.base.to_be_bytes());
        out[24..32].copy_from_slice(&self.bytes.to_be_bytes());
        let crc = crc32c::crc32c(&out);
        out[12..16].copy_from_slice(&crc.to_be_bytes());
        out
    }

    /// Reads a header back. `Damaged` if a bit of it changed or it was never written.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, FormatError> {
        let Some(bytes) = block.first_chunk::<SEGMENT_FIELDS_BYTES>() else { return Err(FormatError::Damaged) };
        let mut plain = *bytes;
        plain[12..16].fill(0);
        if u64_at(bytes, 0) != SEGMENT_MAGIC || crc32c::crc32c(&plain) != u32_at(bytes, 12) {
            return Err(FormatError::Damaged);
        }
        let version = u16_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(FormatError::Version(version));
        }
        Ok(SegmentHeader { partition: u16_at(bytes, 10), base: u64_at(bytes, 16), bytes: u64_at(bytes, 24) })
    }
}

// ---------------------------------------------------------------------------------------------
// Batch header

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 64;

const BATCH_MAGIC: u32 = u32::from_be_bytes(*b"RMQB");

/// What one write carries: this, then whole records. Recovery takes it whole or not at all.
///
/// ```text
/// | 0 magic u32 | 4 version u16 | 6 partition u16 | 8 length u32 | 12 records u32 | 16 epoch u64 |
/// | 24 base u64 | 32 durable u64 | 40 closed_ms u64 | 48 previous u32 | 52 zero u64 | 60 crc32c u32 |
/// ```
/// The checksum covers the record headers in their order and then bytes 0 to 59 of this header; each
/// payload is covered by the checksum in its record header: so each byte is summed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Whose log it belongs to.
    pub partition: u16,
    /// Bytes of header and records, without the zeros behind them.
    pub length: u32,
    /// How many records follow.
    pub records: u32,
    /// Which opening of the log wrote it; never falls along a log.
    pub epoch: u64,
    /// The log byte of this header.
    pub base: u64,
    /// Everything below this log byte was durable when the batch was closed.
    pub durable: u64,
    /// Wall clock when the batch was closed, ms since 1970.
    pub closed_ms: u64,
    /// The checksum of the batch before it: the chain.
    pub previous: u32,
}

const _: () =
    assert!(4 + 2 + 2 + 4 + 4 + 8 + 8 + 8 + 8 + 4 + 8 + 4 == BATCH_HEADER_BYTES, "the fields fill the header");
const BATCH_CRC_AT: usize = 60;

impl BatchHeader {
    /// Writes the header to the start of `batch` and returns its checksum.
    /// `records_crc` is the running crc32c over the record headers, in order.
    pub fn encode(self, batch: &mut [u8], records_crc: u32) -> u32 {
        let out = &mut batch[..BATCH_HEADER_BYTES];
        out[..4].copy_from_slice(&BATCH_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&FORMAT_VERSION.to_be_bytes());
        out[6..8].copy_from_slice(&self.partition.to_be_bytes());
        out[8..12].copy_from_slice(&self.length.to_be_bytes());
        out[12..16].copy_from_slice(&self.records.to_be_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_be_bytes());
        out[24..32].copy_from_slice(&self.base.to_be_bytes());
        out[32..40].copy_from_slice(&self.durable.to_be_bytes());
        out[40..48].copy_from_slice(&self.closed_ms.to_be_bytes());
        out[48..52].copy_from_slice(&self.previous.to_be_bytes());
        out[52..60].fill(0);
        let crc = crc32c::crc32c_append(records_crc, &out[..BATCH_CRC_AT]);
        out[BATCH_CRC_AT..].copy_from_slice(&crc.to_be_bytes());
        crc
    }

    /// Reads a header's fields without believing them: `Damaged` if the magic is missing, or the length or
    /// the place is impossible. [`Batch::open`] checks the sums once the whole batch is there.
    pub fn peek(bytes: &[u8]) -> Result<BatchHeader, FormatError> {
        let Some(bytes) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else { return Err(FormatError::Damaged) };
        if u32_at(bytes, 0) != BATCH_MAGIC {
            return Err(FormatError::Damaged);
        }
        let header = BatchHeader {
            partition: u16_at(bytes, 6),
            length: u32_at(bytes, 8),
            records: u32_at(bytes, 12),
            epoch: u64_at(bytes, 16),
            base: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            closed_ms: u64_at(bytes, 40),
            previous: u32_at(bytes, 48),
        };
        let least = BATCH_HEADER_BYTES as u64 + u64::from(header.records) * RECORD_HEADER_BYTES as u64;
        let within = header.base <= LOG_BYTES_MAX - u64::from(crate::limits::BATCH_BYTES_MAX);
        if u64::from(header.length) < least || header.length > crate::limits::BATCH_BYTES_MAX || !within {
            return Err(FormatError::Damaged);
        }
        Ok(header)
    }

    /// The log byte behind the batch.
    pub fn end(&self) -> u64 {
        self.base + u64::from(self.length)
    }
}

/// A whole batch whose sums are right.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// Its checksum: the next batch's `previous`.
    pub crc: u32,
    bytes: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Takes the batch that starts at byte 0. `Damaged` if a bit of it changed; `Version` if its sums are
    /// right and a newer RingMQ wrote it.
    pub fn open(bytes: &'a [u8]) -> Result<Batch<'a>, FormatError> {
        Batch::sum(bytes, true)
    }

    /// As [`open`](Batch::open), but believes payloads unseen: is this header intact, whatever became of
    /// what it announces?
    pub fn open_headers(bytes: &'a [u8]) -> Result<Batch<'a>, FormatError> {
        Batch::sum(bytes, false)
    }

    fn sum(bytes: &'a [u8], payloads: bool) -> Result<Batch<'a>, FormatError> {
        let header = BatchHeader::peek(bytes)?;
        let bytes = bytes.get(..header.length as usize).ok_or(FormatError::Damaged)?;
        let mut crc = 0;
        let mut at = BATCH_HEADER_BYTES;
        for _ in 0..header.records {
            let record = RecordHeader::decode(&bytes[at.min(bytes.len())..]).ok_or(FormatError::Damaged)?;
            let payload_at = at + RECORD_HEADER_BYTES;
            let end = payload_at + record.length as usize;
            let payload = bytes.get(payload_at..end).ok_or(FormatError::Damaged)?;
            if payloads && crc32c::crc32c(payload) != record.crc {
                return Err(FormatError::Damaged);
            }
            crc = crc32c::crc32c_append(crc, &bytes[at..payload_at]);
            at = end;
        }
        crc = crc32c::crc32c_append(crc, &bytes[..BATCH_CRC_AT]);
        if at != bytes.len() || crc != u32_at(bytes, BATCH_CRC_AT) {
            return Err(FormatError::Damaged);
        }
        let version = u16_at(bytes, 4);
        if version > FORMAT_VERSION {
            return Err(FormatError::Version(version));
        }
        Ok(Batch { header, crc, bytes })
    }

    /// Its records in order, each with the log byte of its payload.
    pub fn records(self) -> impl Iterator<Item = (u64, RecordHeader, &'a [u8])> {
        let mut at = BATCH_HEADER_BYTES;
        (0..self.header.records).map(move |_| {
            let record = RecordHeader::decode(&self.bytes[at..]).expect("open() walked the same headers");
            let payload_at = at + RECORD_HEADER_BYTES;
            at = payload_at + record.length as usize;
            (self.header.base + payload_at as u64, record, &self.bytes[payload_at..at])
        })
    }
}

// ---------------------------------------------------------------------------------------------
// Record header

/// Bytes of a record header. A message's position is the log byte behind it.
pub const RECORD_HEADER_BYTES: usize = 32;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A message of a queue; `offset` is its queue offset, `note` how many more it takes, all behind that one.
    Message = 1,
    /// A message that is due later; `offset` is the wall clock it is due at, ms since 1970; `note` is what it is
    /// found by until then, or 0.
    Delayed = 2,
    /// A message that waited was delivered or written again, in this batch, or is not to be delivered; `offset` is
    /// the log byte of the payload that counts no more.
    Delivered = 3,
    /// Small state: entries of key and value, see `facts.rs`.
    Facts = 4,
    /// All live facts follow, in `Facts` records among others; `offset` is the snapshot's number.
    SnapshotBegin = 5,
    /// The snapshot with this number is whole.
    SnapshotEnd = 6,
    /// A message of a transaction that is not decided; `offset` is when its producer is to be asked, ms since 1970,
    /// `note` how often it was.
    Half = 7,
    /// The producer of a half message was asked: [`Checked`].
    Checked = 8,
}

/// Payload of a record that says that the producer of a half message was asked:
/// `| 0 id u64 | 8 due_ms u64 | 16 checks u32 |`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// The log byte of the payload where the half message came in.
    pub id: u64,
    /// When its producer is to be asked again, ms since 1970.
    pub due_ms: u64,
    /// How often it was asked.
    pub checks: u32,
}

const CHECKED_BYTES: usize = 20;
const _: () = assert!(8 + 8 + 4 == CHECKED_BYTES, "the fields fill it");

impl Checked {
    /// As it stands in the log.
    pub fn encode(self) -> [u8; CHECKED_BYTES] {
        let mut out = [0; CHECKED_BYTES];
        out[..8].copy_from_slice(&self.id.to_be_bytes());
        out[8..16].copy_from_slice(&self.due_ms.to_be_bytes());
        out[16..].copy_from_slice(&self.checks.to_be_bytes());
        out
    }

    /// Reads it back. `None`: it has another length.
    pub fn decode(payload: &[u8]) -> Option<Checked> {
        let bytes: &[u8; CHECKED_BYTES] = payload.try_into().ok()?;
        Some(Checked { id: u64_at(bytes, 0), due_ms: u64_at(bytes, 8), checks: u32_at(bytes, 16) })
    }
}

/// What stands before each payload.
///
/// ```text
/// |  0 length u32 |  4 crc32c u32 of the payload | 8 kind u8 | 9 zero 3 |
/// | 12 topic u32  | 16 queue u32 | 20 note u32   | 24 offset u64         |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Bytes of the payload.
    pub length: u32,
    /// crc32c of the payload: the unit that is checked when one message is read.
    pub crc: u32,
    /// What the payload is.
    pub kind: Kind,
    /// Whose message it is, or was; zero for other kinds.
    pub queue: QueueKey,
    /// See [`Kind`]; zero for most.
    pub note: u32,
    /// See [`Kind`].
    pub offset: u64,
}

const _: () = assert!(4 + 4 + 1 + 3 + 4 + 4 + 4 + 8 == RECORD_HEADER_BYTES, "the fields fill the header");

impl RecordHeader {
    /// The header as it stands on disk.
    pub fn encode(self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..4].copy_from_slice(&self.length.to_be_bytes());
        out[4..8].copy_from_slice(&self.crc.to_be_bytes());
        out[8] = self.kind as u8;
        out[12..16].copy_from_slice(&self.queue.topic.to_be_bytes());
        out[16..20].copy_from_slice(&self.queue.queue.to_be_bytes());
        out[20..24].copy_from_slice(&self.note.to_be_bytes());
        out[24..32].copy_from_slice(&self.offset.to_be_bytes());
        out
    }

    /// The queue offsets that a message takes. More than one are those of the messages inside it.
    pub fn offsets(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.offsets_count())
    }

    /// How many those are.
    pub fn offsets_count(&self) -> u64 {
        1 + u64::from(self.note)
    }

    /// Reads a header back. `None` if there are too few bytes, the kind is unknown, or it is a message that takes more
    /// offsets than any does.
    pub fn decode(bytes: &[u8]) -> Option<RecordHeader> {
        let bytes = bytes.first_chunk::<RECORD_HEADER_BYTES>()?;
        let kind = match bytes[8] {
            1 => Kind::Message,
            2 => Kind::Delayed,
            3 => Kind::Delivered,
            4 => Kind::Facts,
            5 => Kind::SnapshotBegin,
            6 => Kind::SnapshotEnd,
            7 => Kind::Half,
            8 => Kind::Checked,
            _ => return None,
        };
        let note = u32_at(bytes, 20);
        if kind == Kind::Message && note >= RECORD_OFFSETS_MAX {
            return None;
        }
        Some(RecordHeader {
            length: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
            kind,
            queue: QueueKey { topic: u32_at(bytes, 12), queue: u32_at(bytes, 16) },
            note,
            offset: u64_at(bytes, 24),
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn batch() -> Vec<u8> {
        let mut out = vec![0; BATCH_HEADER_BYTES];
        let mut crc = 0;
        for (offset, payload) in [(7, &b"seven"[..]), (8, b""), (9, b"nine")] {
            let header = RecordHeader {
                length: payload.len() as u32,
                crc: crc32c::crc32c(payload),
                kind: Kind::Message,
                queue: QueueKey { topic: 3, queue: 1 },
                note: 0,
                offset,
            }
            .encode();
            crc = crc32c::crc32c_append(crc, &header);
            out.extend_from_slice(&header);
            out.extend_from_slice(payload);
        }
        let header = BatchHeader {
            partition: 2,
            length: out.len() as u32,
            records: 3,
            epoch: 5,
            base: 4096,
            durable: 4000,
            closed_ms: 1_700_000_000_000,
            previous: 0xabcd,
        };
        header.encode(&mut out, crc);
        out
    }

    #[test]
    fn a_position_packs_and_unpacks() {
        for (partition, byte) in [(0, 0), (1, 1), (PARTITIONS_MAX - 1, LOG_BYTES_MAX - 1)] {
            let position = Position::pack(partition, byte);
            assert_eq!((position.partition(), position.byte()), (partition, byte));
            assert!(position.0 as i64 >= 0, "Java reads it as a signed number");
        }
        assert_eq!(format!("{:?}", Position::pack(3, 70)), "3:70");
    }

    #[test]
    fn a_header_says_what_is_possible() {
        let header = |length: u32, records: u32, base: u64| {
            let mut bytes = [0; BATCH_HEADER_BYTES];
            let header =
                BatchHeader { partition: 0, length, records, epoch: 0, base, durable: 0, closed_ms: 0, previous: 0 };
            header.encode(&mut bytes, 0);
            BatchHeader::peek(&bytes).map(|header| (header.length, header.end()))
        };
        let max = crate::limits::BATCH_BYTES_MAX;
        // A header and as many record headers as there are records; up to the limit.
        for (length, records) in [(64, 0), (96, 1), (64 + 32 * 9, 9), (max, 1), (max, 0)] {
            assert_eq!(header(length, records, 70), Ok((length, 70 + u64::from(length))));
        }
        for (length, records) in [(63, 0), (95, 1), (64 + 32 * 9 - 1, 9), (max + 1, 1), (0, 0), (96, u32::MAX)] {
            assert_eq!(header(length, records, 70), Err(FormatError::Damaged), "{length} {records}");
        }
        // The largest batch ends within the log.
        let last = LOG_BYTES_MAX - u64::from(max);
        assert_eq!(header(64, 0, last), Ok((64, last + 64)));
        for base in [last + 1, LOG_BYTES_MAX, u64::MAX] {
            assert_eq!(header(64, 0, base), Err(FormatError::Damaged), "{base}");
        }
    }

    #[test]
    fn a_batch_of_a_newer_version_is_named_and_ours_is_not() {
        let mut bytes = batch();
        bytes[5] = 4;
        let mut crc = 0;
        let unbelieved = Batch { header: BatchHeader::peek(&bytes).unwrap(), crc: 0, bytes: &bytes };
        for (at, header, _) in unbelieved.records() {
            let at = (at - 4096) as usize - RECORD_HEADER_BYTES;
            assert_eq!(RecordHeader::decode(&bytes[at..]), Some(header));
            crc = crc32c::crc32c_append(crc, &bytes[at..at + RECORD_HEADER_BYTES]);
        }
        let crc = crc32c::crc32c_append(crc, &bytes[..BATCH_CRC_AT]);
        bytes[BATCH_CRC_AT..BATCH_HEADER_BYTES].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(Batch::open(&bytes).unwrap_err(), FormatError::Version(4));
    }

    #[test]
    fn a_segment_header_has_these_bytes_and_every_flipped_bit_is_noticed() {
        let header = SegmentHeader { partition: 1, base: 1 << 30, bytes: 1 << 30 };
        let bytes = header.encode();
        assert_eq!(hex(&bytes), "52696e674d517367000300013a97578300000000400000000000000040000000");
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named_and_an_older_one_is_read() {
        let mut bytes = SegmentHeader { partition: 0, base: 0, bytes: 0 }.encode();
        for (version, wanted) in
            [(1, Ok(SegmentHeader { partition: 0, base: 0, bytes: 0 })), (4, Err(FormatError::Version(4)))]
        {
            bytes[9] = version;
            bytes[12..16].fill(0);
            let crc = crc32c::crc32c(&bytes);
            bytes[12..16].copy_from_slice(&crc.to_be_bytes());
            assert_eq!(SegmentHeader::decode(&bytes), wanted);
        }
    }

    #[test]
    fn a_batch_has_these_bytes_and_every_flipped_bit_is_noticed() {
        let bytes = batch();
        let golden = "524d514200030002000000a900000003000000000000000500000000000010000000000000000fa0\
                      0000018bcfe568000000abcd0000000000000000a3cea273";
        assert_eq!(hex(&bytes[..BATCH_HEADER_BYTES]), golden);
        let opened = Batch::open(&bytes).expect("intact");
        let records: Vec<_> = opened.records().map(|(at, header, payload)| (at, header.offset, payload)).collect();
        assert_eq!(records, [(4192, 7, &b"seven"[..]), (4229, 8, b""), (4261, 9, b"nine")]);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::open(&bytes).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Batch::open(&bytes[..length]).is_err(), "cut at {length}");
        }
        let mut old = bytes;
        old[5] = 1;
        old[BATCH_CRC_AT..BATCH_HEADER_BYTES].copy_from_slice(&0x13c5_d33a_u32.to_be_bytes());
        assert_eq!(Batch::open(&old).expect("version 1 is read").records().count(), 3);
    }

    #[test]
    fn a_record_header_survives_the_round_trip() {
        for kind in (1..=8).map(|kind| {
            let mut bytes = [0; RECORD_HEADER_BYTES];
            bytes[8] = kind;
            RecordHeader::decode(&bytes).expect("all are known").kind
        }) {
            let header = RecordHeader {
                length: u32::MAX,
                crc: 1,
                kind,
                queue: QueueKey { topic: u32::MAX, queue: 9 },
                note: if kind == Kind::Message { RECORD_OFFSETS_MAX - 1 } else { 0xfedc_ba98 },
                offset: u64::MAX,
            };
            assert_eq!(RecordHeader::decode(&header.encode()), Some(header));
        }
        let message = |note| RecordHeader {
            length: 5,
            crc: 0x0102_0304,
            kind: Kind::Message,
            queue: QueueKey { topic: 3, queue: 1 },
            note,
            offset: 7,
        };
        assert_eq!(hex(&message(9).encode()), "0000000501020304010000000000000300000001000000090000000000000007");
        assert_eq!((message(0).offsets(), message(9).offsets()), (7..8, 7..17));
        assert_eq!(RecordHeader::decode(&message(RECORD_OFFSETS_MAX).encode()), None, "more than any takes");
        assert_eq!(RecordHeader::decode(&[9; RECORD_HEADER_BYTES]), None);
        let checked = Checked { id: 0x0102, due_ms: 1_700_000_000_000, checks: 3 };
        assert_eq!(hex(&checked.encode()), "00000000000001020000018bcfe5680000000003");
        assert_eq!(Checked::decode(&checked.encode()), Some(checked));
        assert_eq!(Checked::decode(&[0; CHECKED_BYTES - 1]), None);
    }
}
