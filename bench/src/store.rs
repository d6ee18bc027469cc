//! A partition's settings for benches: what a broker has by default, without retention.

use engine::buffer::Region;
use engine::limits::{Flush, LogConfig};
use engine::message::Describe;
use std::path::Path;
use std::sync::Arc;

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
        segment_bytes,
        flush: if durable { Flush::Sync } else { Flush::Async { interval_ms: 500 } },
        prepare_bytes: segment_bytes.min(PREPARE_BYTES),
        prepare_rate: 64 << 20,
        ..LogConfig::new(directory, 0, memory, describe)
    }
}
