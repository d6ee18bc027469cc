//! Delayed messages whose time has come: each becomes a message of its queue, once.

use super::reading::{Fetched, fetch};
use super::{Partition, RETRY_MS};
use crate::format::{Kind, RECORD_HEADER_BYTES, RecordHeader};
use crate::message::Draft;

/// Delayed messages delivered in one turn.
const DELIVERIES_MAX: usize = 256;

impl Partition {
    pub(super) fn deliver(&mut self, now_ms: u64) {
        if now_ms < self.deliver_again_ms {
            return;
        }
        for _ in 0..DELIVERIES_MAX {
            let Some(timer) = self.derived.timers.first().filter(|timer| timer.due_ms <= now_ms) else { return };
            if self.delivery.is_some() || timer.byte >= self.log.written() {
                return;
            }
            let record_at = timer.byte - RECORD_HEADER_BYTES as u64;
            let (tail, loads) = (self.log.tail(), &self.loads);
            let message = match fetch(tail, loads, timer.byte, timer.length) {
                Fetched::Here(message) => message,
                Fetched::Elsewhere => {
                    self.delivery = self.load(timer.byte, timer.length);
                    if self.delivery.is_none() {
                        self.derived.timers.remove(timer.byte);
                    }
                    return;
                }
                Fetched::Damaged => {
                    tracing::error!(
                        partition = self.config.partition,
                        byte = timer.byte,
                        "a delayed message is damaged and cannot be delivered"
                    );
                    self.derived.timers.remove(timer.byte);
                    continue;
                }
            };
            let header =
                tail.slice(record_at, RECORD_HEADER_BYTES).or_else(|| loads.slice(record_at, RECORD_HEADER_BYTES));
            let header = header.and_then(|header| RecordHeader::decode(&header)).expect("fetch() read the same header");
            let Some(description) = (self.config.describe)(&message) else {
                tracing::error!(
                    partition = self.config.partition,
                    byte = timer.byte,
                    "a delayed message cannot be read"
                );
                self.derived.timers.remove(timer.byte);
                continue;
            };
            // The message and the mark that it was delivered: one batch.
            if self.reserve(message.len(), 2, now_ms).is_err() {
                self.deliver_again_ms = now_ms + RETRY_MS;
                return;
            }
            let mut draft = Draft {
                queue: header.queue,
                length: message.len(),
                tag_hash: description.tag_hash,
                keys: description.keys.as_slice(),
                stamp: description.stamp,
                fill: &mut |out| out.copy_from_slice(&message),
            };
            self.store(&mut draft, now_ms);
            let mark = self.log.record(Kind::Delivered, header.queue, timer.byte, 0, |_, _| {});
            self.delivering.push_back((mark, timer.byte));
            self.derived.timers.remove(timer.byte);
        }
    }
}
