//! `ringmq log stat`: what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::ControlFlow;

use engine::format::{Batch, Kind, QueueKey};
use engine::inspect::{Change, Fact, Piece, Sight, facts};
use protocol::message;

use super::{Done, Failure, Store, describe, size, time};
use crate::catalog::{GROUP_KEY, OFFSET_KEY, TOPIC_KEY, Topic};

/// What is in a segment.
#[derive(Debug, Default)]
struct Segment {
    batches: u64,
    /// Bytes of batches, without what fills blocks.
    bytes: u64,
    messages: u64,
    delayed: u64,
    halves: u64,
    delivered: u64,
    facts: u64,
    snapshots: u64,
    epochs: Option<(u64, u64)>,
    times: Option<(u64, u64)>,
}

/// A queue's messages.
#[derive(Clone, Copy, Debug)]
struct Queue {
    partition: u16,
    min: u64,
    next: u64,
    messages: u64,
}

/// What was found.
#[derive(Debug, Default)]
struct Found {
    /// By partition and first log byte.
    segments: BTreeMap<(u16, u64), Segment>,
    queues: BTreeMap<QueueKey, Queue>,
    /// Names of topics by id: what a topic's fact says, or else its first message.
    names: BTreeMap<u32, String>,
    /// Ids of topics that live.
    live: BTreeSet<u32>,
    /// Keys of live facts, by partition.
    facts: BTreeSet<(u16, Vec<u8>)>,
    topics: BTreeMap<Vec<u8>, Topic>,
    damages: u64,
}

impl Found {
    fn batch(&mut self, partition: u16, batch: Batch<'_>, piece: &Piece) {
        let header = batch.header;
        let segment = self.segments.entry((partition, piece.base)).or_default();
        segment.batches += 1;
        segment.bytes += u64::from(header.length);
        let widen = |range: Option<(u64, u64)>, value: u64| {
            Some(range.map_or((value, value), |(from, to)| (from.min(value), to.max(value))))
        };
        segment.epochs = widen(segment.epochs, header.epoch);
        segment.times = widen(segment.times, header.closed_ms);
        for (_, record, payload) in batch.records() {
            match record.kind {
                Kind::Message => {
                    segment.messages += 1;
                    let new = Queue { partition, min: record.offset, next: record.offset, messages: 0 };
                    let queue = self.queues.entry(record.queue).or_insert(new);
                    if queue.messages == 0 {
                        queue.min = record.offset;
                    }
                    queue.messages += 1;
                    queue.next = queue.next.max(record.offsets().end);
                    if let std::collections::btree_map::Entry::Vacant(slot) = self.names.entry(record.queue.topic)
                        && let Some(message) = message::describe(payload)
                    {
                        slot.insert(message.topic.to_owned());
                    }
                }
                Kind::Delayed => segment.delayed += 1,
                Kind::Half => segment.halves += 1,
                Kind::Delivered => segment.delivered += 1,
                Kind::Facts => {
                    segment.facts += 1;
                    for fact in facts(payload) {
                        match fact {
                            Fact::Next(key, next) => {
                                let new = Queue { partition, min: next, next, messages: 0 };
                                let queue = self.queues.entry(key).or_insert(new);
                                queue.next = queue.next.max(next);
                            }
                            Fact::Compacted(..) | Fact::Stays(..) => {}
                            Fact::Put(key, change) => put(&mut self.facts, &mut self.topics, partition, key, change),
                        }
                    }
                }
                Kind::SnapshotBegin | Kind::Checked => {}
                Kind::SnapshotEnd => segment.snapshots += 1,
            }
        }
    }
}

fn put(
    live: &mut BTreeSet<(u16, Vec<u8>)>,
    topics: &mut BTreeMap<Vec<u8>, Topic>,
    partition: u16,
    key: &[u8],
    change: Change<'_>,
) {
    let known = (partition, key.to_vec());
    let value = match change {
        Change::More(..) => return,
        Change::Set(value) => Some(value),
        Change::Delete => None,
    };
    match value {
        Some(_) => live.insert(known),
        None => live.remove(&known),
    };
    if key.starts_with(TOPIC_KEY) {
        match value.and_then(|value| Topic::from_fact(key, value).ok()) {
            Some(topic) => topics.insert(key.to_vec(), topic),
            None => topics.remove(key),
        };
    }
}

/// Prints it. Damage is counted, and makes it `false`.
pub(super) fn stat(mut store: Store, out: &mut dyn Write) -> Done {
    let mut found = Found::default();
    let endings = store.walk(
        |_| 0,
        |partition, sight| {
            match sight {
                Sight::Batch(batch, piece) => found.batch(partition, batch, piece),
                Sight::Damage(_) => found.damages += 1,
                Sight::Read(_) => {}
            }
            ControlFlow::Continue(())
        },
    );
    for topic in found.topics.values() {
        found.names.insert(topic.id, topic.name.to_string());
        found.live.insert(topic.id);
    }
    let user = store.user.map_or("not in use".to_owned(), |pid| format!("process {pid} uses it"));
    writeln!(out, "{}: {} partitions, {user}", store.dir.display(), store.logs.len())?;
    for (log, (partition, ending)) in store.logs.iter().zip(&endings) {
        let segments = &found.segments;
        let sum = |field: fn(&Segment) -> u64| -> u64 {
            segments.range((*partition, 0)..=(*partition, u64::MAX)).map(|(_, segment)| field(segment)).sum()
        };
        let (messages, delayed) = (sum(|segment| segment.messages), sum(|segment| segment.delayed));
        let (halves, ended) = (sum(|segment| segment.halves), sum(|segment| segment.delivered));
        writeln!(
            out,
            "\npartition {partition}: {messages} messages; {delayed} delayed and {halves} half ones, \
             {ended} of them ended or were written again"
        )?;
        writeln!(out, "  {}", describe(ending))?;
        let spare_bytes = log.spares().iter().map(|(_, bytes)| bytes).sum();
        writeln!(
            out,
            "  {} segments of {} in all; {} spare ones of {}",
            log.pieces().len(),
            size(log.bytes()),
            log.spares().len(),
            size(spare_bytes)
        )?;
        let derived = log.derived().map_err(|error| Failure::Usage(format!("{}: {error}", store.dir.display())))?;
        found.damages += derived.damages.len() as u64;
        let checkpoint = derived.checkpoint.map_or("no checkpoint".to_owned(), |checkpoint| {
            format!("a checkpoint of {} at log byte {}", size(checkpoint.bytes), checkpoint.head)
        });
        let (runs, bytes) = (derived.runs.len(), derived.runs.iter().map(|run| run.bytes).sum());
        let entries: u64 = derived.runs.iter().map(|run| u64::from(run.entries)).sum();
        writeln!(out, "  {runs} runs of {}, with {entries} messages; {checkpoint}", size(bytes))?;
        writeln!(
            out,
            "  {:<20} {:>10} {:>10} {:>8} {:>9} {:>9} {:>6} {:>9} {:>7}  first and last batch",
            "segment", "size", "used", "batches", "messages", "delayed", "facts", "snapshots", "epochs"
        )?;
        for piece in log.pieces() {
            let empty = Segment::default();
            let segment = found.segments.get(&(*partition, piece.base)).unwrap_or(&empty);
            let epochs = segment.epochs.map_or("-".to_owned(), |(from, to)| {
                if from == to { from.to_string() } else { format!("{from}-{to}") }
            });
            let times = segment
                .times
                .map_or("prepared".to_owned(), |(from, to)| format!("{} {}", time::text(from), time::text(to)));
            writeln!(
                out,
                "  {:020} {:>10} {:>10} {:>8} {:>9} {:>9} {:>6} {:>9} {epochs:>7}  {times}",
                piece.base,
                size(piece.bytes),
                size(segment.bytes),
                segment.batches,
                segment.messages,
                segment.delayed,
                segment.facts,
                segment.snapshots
            )?;
        }
    }
    let count = |prefix: &[u8]| found.facts.iter().filter(|(_, key)| key.starts_with(prefix)).count();
    writeln!(
        out,
        "\n{} facts: {} topics, {} group configurations, {} consumer offsets",
        found.facts.len(),
        count(TOPIC_KEY),
        count(GROUP_KEY),
        count(OFFSET_KEY)
    )?;
    // They are in partition 0.
    let knows_topics = store.logs.iter().any(|log| log.partition() == 0);
    let mut topic = None;
    for (key, queue) in &found.queues {
        if topic != Some(key.topic) {
            topic = Some(key.topic);
            let all = QueueKey { topic: key.topic, queue: 0 }..=QueueKey { topic: key.topic, queue: u32::MAX };
            let queues = found.queues.range(all).count();
            let name = found.names.get(&key.topic).map_or("unknown", String::as_str);
            let deleted = if !knows_topics || found.live.contains(&key.topic) { "" } else { ", deleted" };
            writeln!(out, "topic {name} (id {}{deleted}): {queues} queues with messages", key.topic)?;
        }
        writeln!(
            out,
            "  queue {:<4} partition {:<3} offsets {} to {}, {} messages here",
            key.queue, queue.partition, queue.min, queue.next, queue.messages
        )?;
    }
    for wrong in &store.wrong {
        writeln!(out, "{}: {wrong}", store.dir.display())?;
    }
    if found.damages > 0 {
        writeln!(out, "{} damages: `ringmq log check` names them", found.damages)?;
    }
    Ok(found.damages == 0 && store.wrong.is_empty())
}
