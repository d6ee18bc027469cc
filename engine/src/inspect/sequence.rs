//! What a log must have, record for record: each queue's offsets, one after the other.

use crate::derived::{own_key, own_value};
use crate::facts::{self, Change};
use crate::format::{QueueKey, RecordHeader};
use crate::partition::compacted_key;
use std::collections::HashMap;

/// An entry of a [`Facts`](crate::format::Kind::Facts) record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// The offset that a queue's next message gets, as a snapshot saw it.
    Next(QueueKey, u64),
    /// Up to which offset a queue is compacted; nothing: it is no more.
    Compacted(QueueKey, Option<u64>),
    /// What stays of a compacted queue: the message at an offset, or nothing any more.
    Stays(QueueKey, u64, Option<&'a [u8]>),
    /// The broker's.
    Put(&'a [u8], Change<'a>),
}

/// The entries of a `Facts` record's payload.
pub fn facts(payload: &[u8]) -> impl Iterator<Item = Fact<'_>> {
    facts::decode(payload).map(|(key, change)| match (own_key(key), compacted_key(key), change) {
        (Some(queue), ..) => Fact::Next(queue, own_value(change)),
        (None, Some((queue, None)), Change::Delete) => Fact::Compacted(queue, None),
        (None, Some((queue, None)), change) => Fact::Compacted(queue, Some(own_value(change))),
        (None, Some((queue, Some(offset))), Change::Set(message)) => Fact::Stays(queue, offset, Some(message)),
        (None, Some((queue, Some(offset))), _) => Fact::Stays(queue, offset, None),
        (None, None, change) => Fact::Put(key, change),
    })
}

/// What offset each queue's next message must have.
#[derive(Debug, Default)]
pub struct Sequence {
    next: HashMap<QueueKey, u64>,
}

impl Sequence {
    /// Takes the next message of its queue. `Some`: offsets are missing before it, or it comes again.
    pub fn message(&mut self, record: &RecordHeader) -> Option<String> {
        let (queue, offset) = (record.queue, record.offset);
        let next = self.next.insert(queue, record.offsets().end).filter(|next| *next != offset)?;
        Some(if next < offset { missing(queue, next, offset) } else { format!("{} comes again", at(queue, offset)) })
    }

    /// Takes what a snapshot says. `Some`: it counts messages that are not there.
    pub fn facts(&mut self, payload: &[u8]) -> Option<String> {
        let mut hole = None;
        for fact in facts(payload) {
            let Fact::Next(queue, offset) = fact else { continue };
            let next = self.next.entry(queue).or_insert(offset);
            if *next < offset {
                hole = Some(missing(queue, *next, offset));
                *next = offset;
            }
        }
        hole
    }
}

fn at(queue: QueueKey, offset: u64) -> String {
    format!("offset {offset} of topic id {}, queue {}", queue.topic, queue.queue)
}

fn missing(queue: QueueKey, from: u64, to: u64) -> String {
    format!("before {}, {} offsets from {from} on are missing", at(queue, to), to - from)
}
