//! A partition's settings for benches: what a broker has by default, without retention.

use engine::buffer::Region;
use engine::limits::{Flush, LogConfig};
use engine::message::Describe;
use std::path::Path;
use std::sync::Arc;

/// Bytes at which a batch closes: a broker's default.
const BATCH_BYTES: u32 = 1 << 20;
/// Zero-filled bytes ahead of the head, at most.
const PREPARE_BYTES: u64 = 256 << 20;

/// The settings of a partition in `directory` with segments of `segment_bytes`.
pub fn config(
    directory: &Path,
    segment_bytes: u64,
    durable: bool,
    memory: Arc<Region>,
    describe: Describe,
) -> LogConfig {
    LogConfig {
        directory: directory.to_path_buf(),
        partition: 0,
        segment_bytes,
        batch_bytes: BATCH_BYTES,
        inflight_batches: 4,
        stretch_bytes: 64 << 20,
        flush: if durable { Flush::Sync } else { Flush::Async { interval_ms: 500 } },
        memory,
        prepare_bytes: segment_bytes.min(PREPARE_BYTES),
        prepare_rate: 64 << 20,
        retention_ms: u64::MAX / 2,
        retention_bytes: u64::MAX,
        read_bytes_per_s: 0,
        disk_free_min: 0,
        describe,
        seed: 1,
    }
}
