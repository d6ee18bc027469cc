//! What was asked of the partition, and what it said: that must be true ever after.

use std::collections::{BTreeMap, VecDeque};

use engine::Ticket;
use engine::format::{Position, QueueKey};
use engine::limits::Flush;
use engine::message::{Description, Keys, Stamp, Stored};
use tests::random::noise;

use super::world::World;

pub const QUEUES: u64 = 4;
pub const FACTS: u64 = 12;

/// One message as it was handed in, and what is known of it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub queue: QueueKey,
    pub length: usize,
    /// Queue offsets that it takes.
    pub offsets: u32,
    pub due_ms: Option<u64>,
    /// Messages of one batch share it.
    pub batch: u64,
    /// Where it was said to be; of a delayed one, where it waits.
    pub stored: Stored,
    /// It was asked not to deliver it, by a ticket; that was promised.
    pub withdrawn: Option<(Ticket, bool)>,
    /// A half message waits for a decision; when it is due counts for nothing.
    pub half: Option<Half>,
    /// Where it was seen, once it was.
    pub place: Option<(u64, Position)>,
    pub promised: bool,
    /// It was not there after an opening: it may never come back.
    pub gone: bool,
}

/// What is known of a half message.
#[derive(Clone, Copy, Debug)]
pub struct Half {
    pub id: u64,
    /// What was asked for since it was last seen undecided: to commit it, to roll it back.
    pub asked: [bool; 2],
    /// What was promised: whether it is committed.
    pub decided: Option<bool>,
}

/// The values a fact was given since it was last known for certain, oldest first.
#[derive(Clone, Debug, Default)]
pub struct History {
    pub values: VecDeque<Version>,
    pub promised: u64,
}

#[derive(Clone, Debug)]
pub struct Version {
    pub number: u64,
    /// Of the request that brought it; `None`: an opening found it, so it stays.
    pub ticket: Option<u64>,
    pub value: Option<Vec<u8>>,
}

/// What of all that was accepted is there, by tickets: these are in log order.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The newest that is there.
    pub newest: Option<u64>,
    /// The oldest that is missing, and was not missing before.
    pub missing: u64,
}

impl Extent {
    pub const NOTHING: Extent = Extent { newest: None, missing: u64::MAX };

    pub fn there(&mut self, ticket: Option<u64>) {
        self.newest = self.newest.max(ticket);
    }

    pub fn lost(&mut self, ticket: Option<u64>) {
        self.missing = self.missing.min(ticket.unwrap_or(u64::MAX));
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Messages(u64),
    Fact { key: u64, version: u64 },
    Withdrawn(u64),
    Decided(u64, bool),
}

/// How the last life of the partition ended: what must have survived it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By a failure, a kill or in order: everything written is there.
    Written,
    /// By a power cut: what lies below the durable watermark is there.
    Cut { durable: u64 },
}

impl World {
    pub fn promised(&mut self, answer: Answer) {
        let stats = self.partition.stats();
        let answerable = if self.config.flush == Flush::Sync { stats.durable } else { stats.written };
        match answer {
            Answer::Messages(batch) => {
                for sent in self.sent.iter_mut().rev().take_while(|sent| sent.batch >= batch) {
                    if sent.batch != batch {
                        continue;
                    }
                    // After a failure the watermarks are those of the new log, for a while.
                    assert!(!self.open || sent.stored.position.byte() < answerable, "promised above the watermark");
                    sent.promised = true;
                    if sent.due_ms.is_none() {
                        let taken = self.taken.entry(sent.queue).or_default();
                        *taken = (*taken).max(sent.stored.queue_offset + u64::from(sent.offsets));
                    }
                }
            }
            Answer::Fact { key, version } => {
                let history = self.facts.get_mut(&key).expect("it was put");
                history.promised = history.promised.max(version);
            }
            Answer::Decided(id, commit) => {
                let half = self.sent[id as usize].half.as_mut().expect("it is one");
                assert!(half.decided.is_none_or(|before| before == commit), "{id} was decided twice");
                half.decided = Some(commit);
            }
            Answer::Withdrawn(id) => {
                let sent = &mut self.sent[id as usize];
                assert_eq!(sent.place, None, "{id} was withdrawn after it was delivered");
                sent.withdrawn = sent.withdrawn.map(|(ticket, _)| (ticket, true));
            }
        }
    }
}

// -- messages of these tests: offset, position, store time, id, topic, queue, then bytes that follow from the id

pub const HEADER_BYTES: usize = 40;
pub const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };

pub fn fill(out: &mut [u8], id: u64, queue: QueueKey, length: usize) {
    assert_eq!(out.len(), length);
    out[24..32].copy_from_slice(&id.to_be_bytes());
    out[32..36].copy_from_slice(&queue.topic.to_be_bytes());
    out[36..40].copy_from_slice(&queue.queue.to_be_bytes());
    out[HEADER_BYTES..].copy_from_slice(noise(id, length - HEADER_BYTES));
}

pub fn describe(message: &[u8]) -> Option<Description> {
    if message.len() < HEADER_BYTES {
        return None;
    }
    let id = u64::from_be_bytes(message[24..32].try_into().ok()?);
    let mut keys = Keys::default();
    keys.push(key_hash(id));
    let store_time_ms = u64::from_be_bytes(message[16..24].try_into().ok()?);
    Some(Description { tag_hash: tag_hash(id), store_time_ms, stamp: STAMP, keys })
}

pub fn id_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[24..32].try_into().expect("a message has a header"))
}

pub fn tag_hash(id: u64) -> i64 {
    (id as u8 % 3).into()
}

/// Some share one.
pub fn recall_key(id: u64) -> u32 {
    1 + id as u32 % 100
}

pub fn key_hash(id: u64) -> u64 {
    id % 50
}

pub fn fact_key(kind: u8, key: u64) -> Vec<u8> {
    [&[kind][..], &key.to_be_bytes()].concat()
}

pub fn history_of(facts: &mut BTreeMap<u64, History>, key: u64) -> &mut History {
    facts.get_mut(&key).expect("it was looked up")
}
