//! What is derived from a log, batch by batch: all of it can be rebuilt by reading the log again.

use crate::facts::{self, Facts};
use crate::format::{Batch, Kind, QueueKey};
use crate::index::{Entry, Index};
use crate::keys::KeyIndex;
use crate::limits::LogConfig;
use crate::timers::{Timer, Timers};

/// Facts whose key starts with this byte are the engine's own: what queue offsets come next.
pub const OWN_PREFIX: u8 = 0;
const OWN_KEY_BYTES: usize = 1 + 4 + 4;

/// What is derived from the log.
#[derive(Debug)]
pub struct Derived {
    /// Where each queue's messages lie.
    pub index: Index,
    /// Which messages carry a key.
    pub keys: KeyIndex,
    /// Small durable state.
    pub facts: Facts,
    /// Delayed messages that wait.
    pub timers: Timers,
    /// Number and log byte of the snapshot that was begun last.
    pub begun: Option<(u64, u64)>,
    /// Where the newest complete snapshot begins.
    pub snapshot: Option<u64>,
}

impl Derived {
    /// Nothing yet.
    pub fn new(seed: u64) -> Derived {
        Derived {
            index: Index::new(seed),
            keys: KeyIndex::default(),
            facts: Facts::default(),
            timers: Timers::default(),
            begun: None,
            snapshot: None,
        }
    }

    /// Applies a batch that recovery found.
    pub fn apply(&mut self, batch: Batch<'_>, config: &LogConfig) {
        for (byte, header, payload) in batch.records() {
            match header.kind {
                Kind::Message => {
                    // A message that cannot be described is still there, and its offset is taken.
                    let description = (config.describe)(payload);
                    let slot = self.index.slot(header.queue);
                    self.index.at(slot).restore(
                        header.offset,
                        Entry {
                            byte,
                            store_time_ms: description.as_ref().map_or(0, |description| description.store_time_ms),
                            length: header.length,
                            tag_hash: description.as_ref().map_or(0, |description| description.tag_hash as i32),
                        },
                    );
                    for hash in description.iter().flat_map(|description| description.keys.as_slice()) {
                        self.keys.push(*hash, byte);
                    }
                }
                Kind::Delayed => self.timers.insert(Timer { due_ms: header.offset, byte, length: header.length }),
                Kind::Delivered => self.timers.remove(header.offset),
                Kind::Facts => {
                    for (key, value) in facts::decode(payload) {
                        match own_key(key) {
                            None => self.facts.set(key, value),
                            Some(queue) => {
                                let next = value.and_then(|value| Some(u64::from_be_bytes(*value.first_chunk()?)));
                                let slot = self.index.slot(queue);
                                self.index.at(slot).resume_at(next.unwrap_or(0));
                            }
                        }
                    }
                }
                Kind::SnapshotBegin => self.begun = Some((header.offset, byte)),
                Kind::SnapshotEnd => {
                    if let Some((_, begin)) = self.begun.filter(|(number, _)| *number == header.offset) {
                        self.snapshot = Some(begin);
                    }
                }
            }
        }
    }
}

/// The queue whose next offset a fact of this key is.
pub fn own_key(key: &[u8]) -> Option<QueueKey> {
    let key: &[u8; OWN_KEY_BYTES] = key.try_into().ok().filter(|key: &&[u8; OWN_KEY_BYTES]| key[0] == OWN_PREFIX)?;
    let number = |at: usize| u32::from_be_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
    Some(QueueKey { topic: number(1), queue: number(5) })
}

/// The key of the fact that says what offset a queue's next message gets.
pub fn queue_fact_key(queue: QueueKey) -> [u8; OWN_KEY_BYTES] {
    let mut key = [OWN_PREFIX; OWN_KEY_BYTES];
    key[1..5].copy_from_slice(&queue.topic.to_be_bytes());
    key[5..].copy_from_slice(&queue.queue.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_s_fact_names_the_queue() {
        let queue = QueueKey { topic: 0x0102_0304, queue: u32::MAX };
        assert_eq!(own_key(&queue_fact_key(queue)), Some(queue));
        assert_eq!(own_key(b"t/some-top"), None, "a fact of the broker's");
        assert_eq!(own_key(&[0; 8]), None, "too short");
    }
}
