//! All live facts, written again into the log whenever a segment is sealed: what retention needs. Where they are larger
//! than a segment, the log grows by as much before they are written once more.

use super::{FACTS_RECORD_BYTES, Partition, RETRY_MS};
use crate::derived::queue_fact_key;
use crate::facts;
use crate::format::{Kind, QueueKey};
use std::collections::VecDeque;

/// Queues written into one record of a snapshot.
const SNAPSHOT_QUEUES: usize = 2048;

/// All live facts being written again.
#[derive(Debug)]
pub(super) struct Snapshot {
    begin: u64,
    queues: VecDeque<(QueueKey, u64)>,
    after: Option<Box<[u8]>>,
    facts_left: bool,
    /// The next slice is due.
    pub(super) again_ms: u64,
}

impl Partition {
    /// Writes all live facts again once a segment is sealed, a slice a turn.
    pub(super) fn snapshot(&mut self, now_ms: u64) {
        let current = self.segments.holding(self.log.head()).map_or(0, |segment| segment.base);
        let nobody = QueueKey { topic: 0, queue: 0 };
        // A log that refuses messages does not grow: then the next one may be what its oldest segment waits for.
        let is_full = self.segments.available().is_some_and(|available| available < self.config.disk_free_min);
        let is_due = current > self.snapshot_segment && (self.log.head() >= self.snapshot_after || is_full);
        if is_due && self.snapshot.is_none() && self.snapshot_ending.is_none() {
            if self.reserve(0, 1, now_ms).is_err() {
                return;
            }
            let begin = self.log.record(Kind::SnapshotBegin, nobody, current, 0, |_, _| {});
            self.derived.begun = Some((current, begin));
            let queues = self.derived.index.nexts().collect();
            self.snapshot = Some(Snapshot { begin, queues, after: None, facts_left: true, again_ms: now_ms });
            self.snapshot_segment = current;
        }
        let Some(mut snapshot) = self.snapshot.take_if(|snapshot| now_ms >= snapshot.again_ms) else { return };
        let mut payload = Vec::new();
        let mut after = None;
        let queues = snapshot.queues.len().min(SNAPSHOT_QUEUES);
        if queues > 0 {
            for (queue, next) in snapshot.queues.iter().take(queues) {
                facts::encode(&mut payload, &queue_fact_key(*queue), Some(&next.to_be_bytes()));
            }
        } else if snapshot.facts_left {
            after = self.derived.facts.slice(snapshot.after.as_deref(), &mut payload, FACTS_RECORD_BYTES);
        }
        if !payload.is_empty() {
            if self.write_facts(&payload, now_ms).is_ok() {
                snapshot.queues.drain(..queues);
                if queues == 0 {
                    snapshot.after = after;
                }
            } else {
                snapshot.again_ms = now_ms + RETRY_MS;
            }
            self.snapshot = Some(snapshot);
        } else if self.reserve(0, 1, now_ms).is_ok() {
            let end = self.log.record(Kind::SnapshotEnd, nobody, self.snapshot_segment, 0, |_, _| {});
            self.snapshot_ending = Some((end, snapshot.begin));
            // One that is larger than a segment ends in another one: that would be due at once.
            self.snapshot_after = end + (end - snapshot.begin);
        } else {
            snapshot.facts_left = false;
            snapshot.again_ms = now_ms + RETRY_MS;
            self.snapshot = Some(snapshot);
        }
    }
}
