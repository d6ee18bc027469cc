//! The engine's bounds. Each has a unit, a range and a reason; those that the operator sets are in [`LogConfig`].

use crate::buffer::Region;
use crate::format::{BATCH_HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use crate::message::{Describe, KeyOf};
use std::path::PathBuf;
use std::sync::Arc;

/// Most bytes of one batch: 8 MiB. It holds the largest record and a whole code-320 send.
pub const BATCH_BYTES_MAX: u32 = 8 << 20;
/// Bytes of records, headers counted, that always fit one batch: the rest is the batch's header, and the last block
/// of the batch before it.
pub const BATCH_RECORDS_BYTES_MAX: usize = BATCH_BYTES_MAX as usize - BATCH_HEADER_BYTES - BLOCK_BYTES as usize;

/// Most bytes of one record's payload: 4 MiB of body, 32 KiB of properties, and the layout around them.
pub const RECORD_BYTES_MAX: u32 = (4 << 20) + (32 << 10) + 1024;

/// Most records of one batch. A record costs at least its header, so a batch's bytes bound it too.
pub const BATCH_RECORDS_MAX: u32 = 65_536;

/// Most queue offsets that one message takes: RocketMQ counts the messages inside one in 16 bits with a sign.
pub const RECORD_OFFSETS_MAX: u32 = 32_767;

/// Smallest and largest segment: 16 MiB, so that any batch fits one; 4 GiB, so that one is soon retired.
pub const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 16 << 20..=4 << 30;

/// Batches of one log in the kernel at once.
pub const INFLIGHT_BATCHES: std::ops::RangeInclusive<u32> = 1..=32;

/// Bytes at which a batch closes in normal operation: 64 KiB to 4 MiB.
pub const BATCH_BYTES_WANTED: std::ops::RangeInclusive<u32> = 64 << 10..=4 << 20;

/// Most keys of one message that are indexed: its unique key and this many others less one. 1,024: a message of a trace names
/// the keys of all messages that it tells of, a hundred and more.
pub const KEYS_MAX: usize = 1024;

/// Most messages that wait for their time in one partition: 4 Mi, some 160 bytes each.
pub const TIMERS_MAX: usize = 4 << 20;

/// Most half messages that nobody decided, in one partition: 1 Mi, some 140 bytes each.
pub const HALVES_MAX: usize = 1 << 20;

/// Most bytes of live facts in one partition: 256 MiB. Beyond it changes are refused.
pub const FACTS_BYTES_MAX: usize = 256 << 20;

/// Most bytes of messages that stay as the newest of their keys in one partition: half of that. Beyond it new keys are
/// refused.
pub const COMPACTED_BYTES_MAX: usize = FACTS_BYTES_MAX / 2;

/// Most bytes of one fact's key and value.
pub const FACT_BYTES_MAX: usize = 1 << 20;

/// Cold reads under way at once in one partition: of [`LOAD_BYTES`] or what they have in bytes, but no more than
/// [`READS_MAX`].
pub const LOADS_MAX: usize = 16;
/// Those of them beyond which none begins that nobody waits for yet.
pub const AHEAD_LOADS_MAX: usize = 8;
/// Cold reads under way at once, however small. Single messages that are due are read by many at once: a disk that
/// takes half a millisecond each brings 10,000 a second by five, and by ten while it is busy.
pub const READS_MAX: usize = 64;

/// Bytes that a cold read fetches: 256 KiB.
pub const LOAD_BYTES: u32 = 256 << 10;

/// Bytes read from disk that are kept, in one partition: 32 MiB, so that consumers of several queues need not keep
/// in step. [`LOADS_MAX`] reads are kept even if they are of larger messages.
pub const LOADED_BYTES_MAX: u64 = 32 << 20;

/// Most bytes of delayed messages that are read because they are soon due, and kept, in one partition: 64 MiB.
pub const DUE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of those that are kept when they would leave the memory, because they are due within some seconds:
/// 256 MiB. That is 100,000 a second of 1 KiB, two seconds on the average. To read them again costs a disk several
/// times their bytes, as others lie between them.
pub const LEAVING_BYTES_MAX: u64 = 256 << 20;

/// Most bytes read ahead of one who reads along the log: 2 MiB.
pub const AHEAD_BYTES_MAX: u64 = 2 << 20;

/// Places in one partition's log where somebody may be reading along it.
pub const STREAMS_MAX: usize = 16;
/// Reads after which a place where nobody read on is forgotten.
pub const STREAM_LOADS_MAX: u64 = 256;

/// Smallest and largest stretch of log that becomes one run: 64 KiB; 128 MiB, so that a run is removed at once.
pub const STRETCH_BYTES: std::ops::RangeInclusive<u64> = 64 << 10..=128 << 20;

/// Log that waits for its runs, in stretches, beyond which no message is taken. 16, a gigabyte by default: as
/// long as the disk is merely busy, writing runs falls behind by some hundred megabytes.
pub const STRETCHES_MAX: u64 = 16;
/// Messages and keys in it, beyond which no message is taken: 6 Mi, 24 and 16 bytes each, so that two million messages with a
/// unique key and a tag take 112 MiB.
pub const STRETCH_ITEMS_MAX: u64 = 6 << 20;
/// Stretches that become one run when runs fall behind. 4: what a run takes stays small enough to be removed.
pub const STRETCHES_JOINED: u64 = 4;

/// Runs of a sealed segment that become one. 32: each is open while they are read, through three buffers of 32 KiB.
pub const MERGED_RUNS_MAX: usize = 32;
/// Bytes that they may have together. 96 MiB: what they become is removed at once, and fits into memory (24 bytes for
/// each 20 or 16 of it) when it is damaged and made again. A gigabyte of messages of 1 KiB in 100,000 queues has less.
pub const MERGED_BYTES_MAX: u64 = 96 << 20;
/// Bytes a second that are read and written to merge runs or make them again, beside a busy log. 16 MiB: a few in a
/// hundred of what a disk does. An idle log does not limit them.
pub const UPKEEP_RATE: u64 = 16 << 20;

/// Blocks of runs kept in memory, in one partition: 1024, 4 MiB.
pub const RUN_BLOCKS_MAX: usize = 1024;

/// Runs whose files are open at once, in one partition. A binary search over 2^48 bytes of log in the smallest
/// stretches looks at 32.
pub const RUNS_OPEN_MAX: usize = 64;

/// Reads of runs under way at once, in one partition.
pub const RUN_READS_MAX: usize = 16;

/// A log that is idle this long names its final watermark in an empty batch. Milliseconds.
pub const IDLE_MS: u64 = 20;

/// Coalesced facts (consumer offsets) become durable this often. Milliseconds.
pub const NOTES_INTERVAL_MS: u64 = 1000;

const _: () = assert!(
    RECORD_BYTES_MAX as usize + BATCH_HEADER_BYTES + 3 * RECORD_HEADER_BYTES < BATCH_BYTES_MAX as usize,
    "the largest message fits a batch, with the mark that it was delivered"
);
const _: () = assert!(
    BATCH_BYTES_MAX as u64 + SEGMENT_HEADER_BYTES + BLOCK_BYTES <= *SEGMENT_BYTES.start(),
    "a batch never spans two segments"
);
const _: () = assert!(*BATCH_BYTES_WANTED.end() <= BATCH_BYTES_MAX, "a batch closes before it is too large");

/// When a producer is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// When its message is durable.
    Sync,
    /// When its message is written; what is written is synced every so many milliseconds.
    Async {
        /// Milliseconds between two syncs, 1 to 60,000.
        interval_ms: u64,
    },
}

/// What one partition's log is told at opening.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Where its segments lie; the directory is created.
    pub directory: PathBuf,
    /// Its number.
    pub partition: u16,
    /// Bytes of a segment, a multiple of 1 MiB in [`SEGMENT_BYTES`]. May change between starts for new segments only.
    pub segment_bytes: u64,
    /// Bytes at which a batch closes, in [`BATCH_BYTES_WANTED`].
    pub batch_bytes: u32,
    /// Batches in the kernel at once, in [`INFLIGHT_BATCHES`].
    pub inflight_batches: u32,
    /// When a producer is answered.
    pub flush: Flush,
    /// Memory for batches and the tail.
    pub memory: Arc<Region>,
    /// Zero-filled bytes wanted ahead of the head. Filling runs at full speed while the log is idle.
    pub prepare_bytes: u64,
    /// Bytes a second of zero-filling beside a busy log.
    pub prepare_rate: u64,
    /// Bytes of log whose index is in memory before it becomes a run, in [`STRETCH_BYTES`].
    pub stretch_bytes: u64,
    /// Age at which a sealed segment is retired. Milliseconds.
    pub retention_ms: u64,
    /// Bytes of log beyond which the oldest segment is retired.
    pub retention_bytes: u64,
    /// Age at which messages of queues of which the newest of each key stay are compacted. Milliseconds.
    pub compaction_ms: u64,
    /// Bytes a second that are read from disk for consumers, at most; 0: no limit.
    pub read_bytes_per_s: u64,
    /// New messages are refused when less than this is available on the file system. Bytes.
    pub disk_free_min: u64,
    /// How to read a message's description, at recovery and when a delayed one is delivered.
    pub describe: Describe,
    /// How to read a message's key, where queues may be compacted: see
    /// [`Partition::compacts`](crate::partition::Partition::compacts).
    pub key_of: Option<KeyOf>,
    /// Seed of the hash maps.
    pub seed: u64,
}

impl LogConfig {
    /// The settings of a small log that keeps everything: segments of 16 MiB, nothing prepared ahead, batches of
    /// 1 MiB of which four are in the kernel, a send answered when it is durable, reads as fast as they come.
    pub fn new(directory: impl Into<PathBuf>, partition: u16, memory: Arc<Region>, describe: Describe) -> LogConfig {
        LogConfig {
            directory: directory.into(),
            partition,
            segment_bytes: *SEGMENT_BYTES.start(),
            batch_bytes: 1 << 20,
            inflight_batches: 4,
            flush: Flush::Sync,
            memory,
            prepare_bytes: 0,
            prepare_rate: 1 << 20,
            stretch_bytes: 64 << 20,
            retention_ms: u64::MAX,
            retention_bytes: u64::MAX,
            compaction_ms: u64::MAX,
            read_bytes_per_s: 0,
            disk_free_min: 0,
            describe,
            key_of: None,
            seed: 0,
        }
    }

    /// Checks ranges and relations. `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u64, least: u64, most: u64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} = {value} is not within {least} and {most}"))
            }
        };
        within("segment_bytes", self.segment_bytes, *SEGMENT_BYTES.start(), *SEGMENT_BYTES.end())?;
        if !self.segment_bytes.is_multiple_of(1 << 20) {
            return Err(format!("segment_bytes = {} is not a multiple of 1 MiB", self.segment_bytes));
        }
        let wanted = (u64::from(*BATCH_BYTES_WANTED.start()), u64::from(*BATCH_BYTES_WANTED.end()));
        within("batch_bytes", self.batch_bytes.into(), wanted.0, wanted.1)?;
        let inflight = (u64::from(*INFLIGHT_BATCHES.start()), u64::from(*INFLIGHT_BATCHES.end()));
        within("inflight_batches", self.inflight_batches.into(), inflight.0, inflight.1)?;
        within("stretch_bytes", self.stretch_bytes, *STRETCH_BYTES.start(), *STRETCH_BYTES.end())?;
        if let Flush::Async { interval_ms } = self.flush {
            within("flush_interval_ms", interval_ms, 1, 60_000)?;
        }
        Ok(())
    }
}
