//! One core's part of the answer to a question that all cores are asked.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use engine::LoadId;
use engine::format::{Position, QueueKey};
use engine::partition::Partition;
use protocol::message::StoredMessage;

use crate::admin::{Part, Question, QueueProgress, QueueStats, Tally, Traffic};
use crate::catalog::{Catalog, OFFSET_KEY, Topic, offset_key, offset_value, split_offset_key};

/// Most bytes of messages that one core finds by key. 8 MiB: half a frame.
pub const FOUND_BYTES_MAX: usize = 8 << 20;
/// Most messages with a key that are looked at, because their times must be read. 1,024: sixteen
/// times a stock broker's answer.
const LOOKED_AT_MAX: usize = 1_024;

/// A question while a core answers it. Messages may have to be read from the disk first; what was
/// found until then is kept here.
#[derive(Debug)]
pub struct Inquiry {
    question: Question,
    /// Where messages may be, by index of the partition; newest first in each. `None`: not looked yet.
    places: Option<VecDeque<(usize, Position)>>,
    found: Vec<(u64, Bytes)>,
    found_bytes: usize,
    /// How many of them, by index of the partition.
    found_in: Vec<usize>,
}

impl Inquiry {
    /// A question that nobody looked at yet.
    pub fn new(question: Question) -> Inquiry {
        Inquiry { question, places: None, found: Vec::new(), found_bytes: 0, found_in: Vec::new() }
    }

    /// Answers from this core's partitions. `Err` names the partition (by index) and the cold read
    /// that must end before this is called again. `partitions_all`: how many the broker has.
    ///
    /// Cost: `TopicsOf`, `GroupsOf` and `Forget` look at every consumer offset of the partitions, or
    /// of the topic; the others only at what they name.
    pub fn answer(
        &mut self,
        partitions: &mut [Partition],
        partitions_all: u16,
        catalog: &Catalog,
        traffic: Traffic,
        now_ms: u64,
    ) -> Result<Part, (usize, LoadId)> {
        let mut here = Here { partitions, partitions_all, catalog };
        Ok(match &self.question {
            Question::Topic { topic } => Part::Topic(here.topic_stats(topic)),
            Question::TopicsOf { group } => Part::TopicsOf(here.topics_of(group)),
            Question::Progress { group, topics } => Part::Progress(here.progress(group, topics)),
            Question::GroupsOf { topic } => Part::GroupsOf(here.groups_of(topic)),
            Question::Forget { group } => {
                here.forget(group, now_ms);
                Part::Forgotten
            }
            Question::Messages { .. } => {
                self.search(here.partitions)?;
                self.give_up()
            }
            Question::Tally => Part::Tally(Box::new(here.tally(traffic))),
        })
    }

    /// The awaited read failed: goes on without that message.
    pub fn skip(&mut self) {
        if let Some(places) = &mut self.places {
            places.pop_front();
        }
    }

    /// What was found so far, to a question for messages.
    pub fn give_up(&mut self) -> Part {
        Part::Messages(std::mem::take(&mut self.found))
    }

    /// Looks at the messages with the key until there are enough of them.
    fn search(&mut self, partitions: &mut [Partition]) -> Result<(), (usize, LoadId)> {
        let Question::Messages { key, begin_ms, end_ms, count } = self.question else { return Ok(()) };
        let places = self.places.get_or_insert_with(|| {
            let places = partitions.iter_mut().enumerate().flat_map(|(index, partition)| {
                let positions = partition.find(key, LOOKED_AT_MAX);
                positions.into_iter().map(move |position| (index, position))
            });
            places.collect()
        });
        // Newest first holds in each partition only; each of them gives up to `count`.
        self.found_in.resize(partitions.len(), 0);
        while let Some((index, position)) = places.front().copied() {
            if self.found_in[index] < count && self.found_bytes < FOUND_BYTES_MAX {
                let message = partitions[index].get(position).map_err(|load| (index, load))?;
                let stored_ms = message.as_deref().and_then(stored_ms);
                if let (Some(message), Some(stored_ms)) = (message, stored_ms)
                    && (begin_ms..=end_ms).contains(&stored_ms)
                {
                    self.found_bytes += message.len();
                    self.found_in[index] += 1;
                    self.found.push((stored_ms, message));
                }
            }
            places.pop_front();
        }
        Ok(())
    }
}

fn stored_ms(message: &[u8]) -> Option<u64> {
    let stored = StoredMessage::decode(message).ok()?;
    u64::try_from(stored.store_timestamp).ok()
}

/// What a core can look at.
struct Here<'a> {
    partitions: &'a mut [Partition],
    partitions_all: u16,
    catalog: &'a Catalog,
}

impl Here<'_> {
    fn topic_stats(&mut self, topic: &str) -> Vec<QueueStats> {
        let Some(topic) = self.catalog.topic(topic) else { return Vec::new() };
        self.each_queue(topic, topic.queues(), |partition, queue| {
            let key = QueueKey { topic: topic.id, queue };
            let span = partition.span(key);
            let last_ms = before(span.max).and_then(|last| partition.store_time(key, last)).unwrap_or(0);
            QueueStats { queue, min: span.min, max: span.max, last_ms }
        })
    }

    fn progress(&mut self, group: &str, topics: &[String]) -> Vec<QueueProgress> {
        let mut all = Vec::new();
        for (index, topic) in topics.iter().enumerate() {
            let Some(topic) = self.catalog.topic(topic) else { continue };
            all.extend(self.each_queue(topic, topic.read_queues(), |partition, queue| {
                let key = QueueKey { topic: topic.id, queue };
                let offset = partition.fact(&offset_key(topic.id, queue, group));
                let consumer = offset.and_then(offset_value).unwrap_or(0);
                let last_ms = before(consumer).and_then(|last| partition.store_time(key, last)).unwrap_or(0);
                QueueProgress { topic: index, queue, broker: partition.span(key).max, consumer, last_ms }
            }));
        }
        all
    }

    fn topics_of(&self, group: &str) -> BTreeSet<u32> {
        let keys = self.partitions.iter().flat_map(|partition| partition.facts(OFFSET_KEY));
        let offsets = keys.filter_map(|(key, _)| split_offset_key(key));
        offsets.filter(|(_, _, of)| *of == group).map(|(topic, _, _)| topic).collect()
    }

    fn groups_of(&self, topic: &str) -> BTreeSet<String> {
        let Some(topic) = self.catalog.topic(topic) else { return BTreeSet::new() };
        let prefix = [OFFSET_KEY, &topic.id.to_be_bytes()].concat();
        let keys = self.partitions.iter().flat_map(|partition| partition.facts(&prefix));
        keys.filter_map(|(key, _)| split_offset_key(key)).map(|(_, _, group)| group.to_owned()).collect()
    }

    /// A log that is closed or busy keeps the offsets. The group's configuration is gone all the same.
    fn forget(&mut self, group: &str, now_ms: u64) {
        for partition in &mut *self.partitions {
            let is_of_group = |key: &&[u8]| split_offset_key(key).is_some_and(|(_, _, of)| of == group);
            let keys = partition.facts(OFFSET_KEY).map(|(key, _)| key).filter(is_of_group);
            let keys: Vec<Vec<u8>> = keys.map(<[u8]>::to_vec).collect();
            for key in keys {
                if partition.put(&key, None, None, now_ms).is_err() {
                    break;
                }
            }
        }
    }

    fn tally(&self, traffic: Traffic) -> Tally {
        let mut tally = Tally { traffic, ..Tally::default() };
        for partition in &*self.partitions {
            let stats = partition.stats();
            tally.add(&Tally {
                log_min: stats.floor,
                log_max: stats.accepted,
                unflushed: stats.accepted.saturating_sub(stats.durable),
                earliest_ms: Some(stats.oldest_ms).filter(|at_ms| *at_ms > 0),
                disk: Some((stats.total, stats.available)).filter(|(total, _)| *total > 0),
                ..Tally::default()
            });
        }
        tally
    }

    /// Asks for each of a topic's queues that lie in these partitions.
    fn each_queue<T>(&mut self, topic: &Topic, queues: u32, mut ask: impl FnMut(&mut Partition, u32) -> T) -> Vec<T> {
        let mut all = Vec::new();
        for queue in 0..queues {
            let number = topic.partition_of(queue, self.partitions_all);
            if let Some(partition) = self.partitions.iter_mut().find(|partition| partition.number() == number) {
                all.push(ask(partition, queue));
            }
        }
        all
    }
}

/// The offset before this one.
fn before(offset: u64) -> Option<u64> {
    offset.checked_sub(1)
}
