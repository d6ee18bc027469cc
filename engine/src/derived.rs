//! What is derived from a log, batch by batch: all of it can be rebuilt by reading the log again. What is
//! older than a stretch or two is moved to runs.

use crate::facts::{self, Change, Facts};
use crate::format::{Batch, Checked, Kind, Position, QueueKey, RecordHeader};
use crate::halves::{Half, Halves};
use crate::index::{Entry, Index};
use crate::io::{Fault, Handle, Outcome};
use crate::keys::KeyIndex;
use crate::limits::LogConfig;
use crate::loads::LoadId;
use crate::log::End;
use crate::message::Describe;
use crate::runs::Runs;
use crate::stretch::Stretches;
use crate::timers::{Timer, Timers};
use crate::upkeep::{UPKEEP, Upkeep};
use crate::writing::{self, Step, Writing};
use std::path::PathBuf;

/// Facts whose key starts with this byte are the engine's own: what queue offsets come next.
pub const OWN_PREFIX: u8 = 0;
const OWN_KEY_BYTES: usize = 1 + 4 + 4;
/// The number of the operation that writes a run: none of [`Runs`]' own.
const WRITE: u64 = 0;
/// A run that could not be written is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 1000;

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
    /// Half messages that are undecided.
    pub halves: Halves,
    /// Number and log byte of the snapshot that was begun last.
    pub begun: Option<(u64, u64)>,
    /// Where the newest complete snapshot begins.
    pub snapshot: Option<u64>,
    /// What of the log has no run yet.
    pub stretches: Stretches,
    /// Where older messages lie.
    pub runs: Runs,
    /// The log at the end of the newest run.
    pub settled: End,
    /// What is done to those that are there.
    pub upkeep: Upkeep,
    directory: PathBuf,
    pub(super) partition: u16,
    writing: Option<Writing>,
    write_at_ms: u64,
    /// A failure was reported, and nothing was written since.
    failed: bool,
}

impl Derived {
    /// Nothing yet of a log that is in runs up to `settled`. `direct`: files can be opened past the page cache.
    pub fn new(config: &LogConfig, settled: End, direct: bool) -> Derived {
        let mut index = Index::new(config.seed);
        index.set_cold(settled.head);
        let directory = config.directory.clone();
        Derived {
            index,
            keys: KeyIndex::default(),
            facts: Facts::default(),
            timers: Timers::new(config.seed),
            halves: Halves::new(config.seed),
            begun: None,
            snapshot: None,
            stretches: Stretches::new(config.stretch_bytes, settled),
            runs: Runs::new(directory.clone(), config.partition, config.seed, direct),
            settled,
            upkeep: Upkeep::default(),
            directory,
            partition: config.partition,
            writing: None,
            write_at_ms: 0,
            failed: false,
        }
    }

    /// A batch that begins at log byte `base`, in a segment that ends at `segment_end`, is about to be applied.
    pub fn enter(&mut self, base: u64, segment_end: u64) {
        if self.stretches.enter(base, segment_end) {
            self.keys.seal();
        }
    }

    /// A batch with so many messages and keys was applied; the log stands at `end`.
    pub fn leave(&mut self, end: End, entries: u64, keys: u64) {
        if self.stretches.leave(end, entries, keys) {
            self.keys.seal();
        }
    }

    /// Applies a batch that recovery found.
    pub fn apply(&mut self, batch: Batch<'_>, segment_end: u64, config: &LogConfig) {
        self.enter(batch.header.base, segment_end);
        let (mut entries, mut keys) = (0, 0);
        for (byte, header, payload) in batch.records() {
            match header.kind {
                Kind::Message => {
                    keys += take_message(&mut self.index, &mut self.keys, (byte, header, payload), config.describe);
                    entries += header.offsets_count();
                }
                Kind::Delayed => {
                    let (due_ms, length) = (header.offset, header.length);
                    self.timers.insert(Timer { due_ms, byte, queue: header.queue, length, key: header.note });
                }
                Kind::Half => {
                    let (due_ms, length) = (header.offset, header.length);
                    let timer = Timer { due_ms, byte, queue: header.queue, length, key: 0 };
                    let id = half_id(payload, config).unwrap_or(byte);
                    self.halves.insert(Half { timer, id, checks: header.note });
                }
                Kind::Checked => {
                    if let Some(Checked { id, due_ms, checks }) = Checked::decode(payload) {
                        self.halves.checked(id, due_ms, checks);
                    }
                }
                Kind::Delivered => self.forget(header.offset),
                Kind::Facts => {
                    for (key, change) in facts::decode(payload) {
                        if !take_own_fact(&mut self.index, key, change) {
                            self.facts.apply(key, change);
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
        let end = End { head: batch.header.end(), chain: batch.crc, epoch: batch.header.epoch };
        self.leave(end, entries, keys);
    }

    /// What waits at a log byte waits no more.
    pub fn forget(&mut self, byte: u64) {
        self.timers.remove(byte);
        self.halves.remove_at(byte);
    }

    /// Begins the next run once its log bytes are durable.
    pub fn write_run(&mut self, durable: u64, direct: bool, now_ms: u64) {
        if self.writing.is_some() || now_ms < self.write_at_ms {
            return;
        }
        let Some(stretch) = self.stretches.first().filter(|stretch| stretch.end.head <= durable) else { return };
        self.runs.set_direct(direct);
        let order = self.index.take_order();
        let (writing, op) =
            Writing::begin((&self.directory, writing::TEMPORARY), self.partition, stretch, order, direct);
        self.writing = Some(writing);
        self.runs.want(WRITE, op);
    }

    /// When [`write_run`](Derived::write_run) tries again what failed.
    pub fn deadline_ms(&self, durable: u64) -> u64 {
        let is_due = self.writing.is_none() && self.stretches.first().is_some_and(|first| first.end.head <= durable);
        if is_due { self.write_at_ms } else { u64::MAX }
    }

    /// Whether operations on runs are under way.
    pub fn is_busy(&self) -> bool {
        self.writing.is_some() || self.upkeep.is_busy() || self.runs.is_busy()
    }

    /// Files of runs that are open, to be closed.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let writing = self.writing.as_ref().and_then(Writing::handle);
        self.runs.handles().chain(writing).chain(self.upkeep.handles())
    }

    /// Takes the completion of an operation that [`Runs::ops`] gave. What it returns is to be told to those
    /// that wait for it. `warm`: from this log byte on, messages stay in the index although a run has them.
    pub fn on_done(
        &mut self,
        number: u64,
        outcome: Result<Outcome, Fault>,
        warm: u64,
        now_ms: u64,
    ) -> Option<(LoadId, Result<(), Fault>)> {
        if number == UPKEEP {
            self.on_upkeep(outcome, now_ms);
            return None;
        }
        if number != WRITE {
            return self.runs.on_done(number, outcome, now_ms);
        }
        let writing = self.writing.as_mut().expect("it is being written");
        let stretch = writing.stretch;
        match writing.on_done(outcome, &mut self.index, &self.keys) {
            Ok(Step::Do(op)) => self.runs.want(WRITE, op),
            Ok(Step::Finished(bytes)) => {
                self.end_writing();
                self.stretches.pop();
                self.runs.push(stretch.from, stretch.end.head, bytes);
                self.index.set_cold(warm.min(stretch.end.head));
                self.keys.drop_below(stretch.end.head);
                self.upkeep.look();
                self.settled = stretch.end;
                self.failed = false;
            }
            Err(fault) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(partition = self.partition, %fault, "a run cannot be written; trying again");
                }
                self.end_writing();
                self.write_at_ms = now_ms + RETRY_MS;
            }
        }
        None
    }

    fn end_writing(&mut self) {
        let Some(mut writing) = self.writing.take() else { return };
        self.index.return_order(writing.take_order());
        if let Some(handle) = writing.handle() {
            self.runs.close(handle);
        }
    }
}

/// What a half message is known by: the log byte where it was stamped. `None`: it cannot be read.
fn half_id(payload: &[u8], config: &LogConfig) -> Option<u64> {
    let at = (config.describe)(payload)?.stamp.position_at;
    let position = payload.get(at..)?.first_chunk::<8>()?;
    Some(Position(u64::from_be_bytes(*position)).byte())
}

/// Notes where a message of the log lies and what keys it has. Returns how many.
pub fn take_message(
    index: &mut Index,
    keys: &mut KeyIndex,
    (byte, header, payload): (u64, RecordHeader, &[u8]),
    describe: Describe,
) -> u64 {
    // A message that cannot be described is still there, and its offsets are taken.
    let description = describe(payload);
    let slot = index.slot(header.queue);
    let queue = index.at(slot);
    let entry = Entry {
        byte,
        store_time_ms: description.as_ref().map_or(0, |description| description.store_time_ms),
        length: header.length,
        tag_hash: description.as_ref().map_or(0, |description| description.tag_hash as i32),
    };
    header.offsets().for_each(|offset| queue.restore(offset, entry));
    let hashes = description.as_ref().map_or(&[][..], |description| description.keys.as_slice());
    hashes.iter().for_each(|hash| keys.push(*hash, byte));
    hashes.len() as u64
}

/// Notes what offset a queue's next message gets, if the fact says that.
pub fn take_own_fact(index: &mut Index, key: &[u8], change: Change<'_>) -> bool {
    let Some(queue) = own_key(key) else { return false };
    let slot = index.slot(queue);
    index.at(slot).resume_at(own_value(change));
    true
}

/// The offset that such a fact says.
pub fn own_value(change: Change<'_>) -> u64 {
    match change {
        Change::Set(value) => value.first_chunk().map_or(0, |next| u64::from_be_bytes(*next)),
        Change::More(..) | Change::Delete => 0,
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
