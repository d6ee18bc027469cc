//! One core's part of the answer to a question that all cores are asked.

mod found;

use std::collections::{BTreeMap, BTreeSet};

use engine::LoadId;
use engine::format::QueueKey;
use engine::partition::Partition;
use found::{Found, Sought};
use protocol::codes::response;

use crate::admin::{
    Consumed, Consuming, PAIRS_MAX, Part, Question, QueueProgress, QueueStats, QueueTimes, Refused, Reset, ResetTo,
    Tally,
};
use crate::answer::BUSY;
use crate::catalog::{Catalog, OFFSET_KEY, Topic, offset_key, offset_value, split_offset_key};
use crate::stats::Counted;

/// Why offsets of a group are not set.
pub const OFFSETS_FULL: &str = "a partition has no room for another consumer offset, so not all are set; groups that \
                                are not used any more can be deleted with their offsets";
/// The same, of a log that is not there.
const OPENING: &str = "a log is being opened";

impl Question {
    /// The messages that are looked for, if that is the question.
    fn sought(&self) -> Option<Sought> {
        let Question::Messages { key, begin_ms, end_ms, count } = *self else { return None };
        Some(Sought { key, begin_ms, end_ms, count })
    }
}

/// A question while a core answers it. Messages may have to be read from the disk first; what was
/// found until then is kept here.
#[derive(Debug)]
pub struct Inquiry {
    question: Question,
    /// Messages with a key, by index of the partition, and bytes of all of them.
    found: Vec<Found>,
    found_bytes: usize,
    /// How far a walk over queues came: topic and queue, and what it found.
    walked: (usize, u32),
    stats: Vec<QueueStats>,
    progress: Vec<QueueProgress>,
    times: Vec<QueueTimes>,
    offsets: Vec<(u32, u64)>,
    /// Offsets that were cloned.
    cloned: Vec<(QueueKey, u64)>,
    /// A read failed: what cannot be told without reading is left out.
    is_blind: bool,
}

impl Inquiry {
    /// The group that is to be forgotten, if that is asked.
    pub fn forgets(&self) -> Option<&str> {
        match &self.question {
            Question::Forget { group } => Some(group),
            _ => None,
        }
    }

    /// Where a group goes on by what was answered, if that was asked to clone offsets to it.
    pub fn cloned(&mut self) -> Option<(String, Vec<(QueueKey, u64)>)> {
        match &self.question {
            Question::Clone { to, .. } => Some((to.clone(), std::mem::take(&mut self.cloned))),
            _ => None,
        }
    }

    /// A question that nobody looked at yet.
    pub fn new(question: Question) -> Inquiry {
        Inquiry {
            question,
            found: Vec::new(),
            found_bytes: 0,
            walked: (0, 0),
            stats: Vec::new(),
            progress: Vec::new(),
            times: Vec::new(),
            offsets: Vec::new(),
            cloned: Vec::new(),
            is_blind: false,
        }
    }

    /// Answers from this core's partitions. `Err` names the partition (by index) and the cold read
    /// that must end before this is called again. `partitions_all`: how many the broker has. `tally`: what
    /// the core itself counted; `lent`: what its pops know. What waits for the log, `Forget`, is not answered here: see [`forgets`](Self::forgets).
    ///
    /// Cost: `TopicsOf`, `GroupsOf` and `Consumed` look at every consumer offset of the partitions, or of the topic;
    /// the others only at what they name.
    pub fn answer(
        &mut self,
        partitions: &mut [Partition],
        partitions_all: u16,
        catalog: &Catalog,
        tally: Tally,
        lent: &mut Lent<'_>,
    ) -> Result<Part, (usize, LoadId)> {
        let mut here = Here { partitions, partitions_all, catalog, is_blind: self.is_blind };
        Ok(match &self.question {
            Question::Topic { topic } => {
                here.topic_stats(topic, &mut self.walked.1, &mut self.stats)?;
                Part::Topic(std::mem::take(&mut self.stats))
            }
            Question::TopicsOf { group } => Part::TopicsOf(here.topics_of(group)),
            Question::Consumed => Part::Consumed(here.consumed()),
            Question::Progress(asked) => {
                here.progress(asked, lent, &mut self.walked, &mut self.progress)?;
                Part::Progress(std::mem::take(&mut self.progress))
            }
            Question::Spans { topic, group } => {
                here.spans(topic, group, &mut self.walked.1, &mut self.times)?;
                Part::Spans(std::mem::take(&mut self.times))
            }
            Question::GroupsOf { topic } => Part::GroupsOf(here.groups_of(topic)),
            Question::Reset(reset) => match here.reset(reset, &mut self.walked.1, &mut self.offsets)? {
                Ok(()) => Part::Reset(Ok(std::mem::take(&mut self.offsets))),
                Err(refused) => Part::Reset(Err(refused)),
            },
            Question::Correction { topic, without, compared } => {
                Part::Correction(here.correction(topic, without, compared))
            }
            Question::Clone { from, to, topics } => {
                Part::Cloned(here.clone_offsets(from, to, topics.as_ref(), &mut self.cloned))
            }
            Question::Forget { .. } => unreachable!("who asks this is told when the log has it"),
            Question::Messages { .. } => {
                self.search(here.partitions)?;
                self.messages()
            }
            Question::Stats(counted) => Part::Stats(vec![None; counted.len()]),
            Question::Tally => Part::Tally(Box::new(here.tally(tally))),
        })
    }

    /// What was counted of these, if that is the question: the core knows, not its partitions.
    pub fn counted(&self) -> Option<&[Counted]> {
        match &self.question {
            Question::Stats(counted) => Some(counted),
            _ => None,
        }
    }

    /// What is to be set anew, if that is the question.
    pub fn reset(&self) -> Option<&Reset> {
        match &self.question {
            Question::Reset(reset) => Some(reset),
            _ => None,
        }
    }

    /// The awaited read failed: goes on without that message, or without what cannot be read of the index.
    pub fn skip(&mut self) {
        let unfinished = self.found.iter_mut().find(|found| !found.is_over());
        match (self.question.sought(), unfinished) {
            (Some(sought), Some(found)) => found.skip(&sought),
            _ => self.is_blind = true,
        }
    }

    /// What was found so far, to a question that may have to wait for a read.
    pub fn give_up(&mut self) -> Part {
        match self.question {
            Question::Topic { .. } => Part::Topic(std::mem::take(&mut self.stats)),
            Question::Progress(_) => Part::Progress(std::mem::take(&mut self.progress)),
            Question::Spans { .. } => Part::Spans(std::mem::take(&mut self.times)),
            Question::Reset(_) => Part::Reset(Err((response::SYSTEM_BUSY, BUSY.to_owned()))),
            _ => self.messages(),
        }
    }

    /// Looks for messages with the key until there are enough of them in each partition.
    fn search(&mut self, partitions: &mut [Partition]) -> Result<(), (usize, LoadId)> {
        let Some(sought) = self.question.sought() else { return Ok(()) };
        self.found.resize_with(partitions.len(), || Found::new(&sought));
        for (index, (partition, found)) in partitions.iter_mut().zip(&mut self.found).enumerate() {
            found.go_on(&sought, partition, &mut self.found_bytes).map_err(|load| (index, load))?;
        }
        Ok(())
    }

    /// What was found by key, as far as it was looked for.
    fn messages(&mut self) -> Part {
        let found = std::mem::take(&mut self.found);
        let is_partial = self.is_blind || found.iter().any(|found| found.is_partial || !found.is_over());
        Part::Messages { found: found.into_iter().flat_map(|found| found.messages).collect(), is_partial }
    }
}

/// The keys of a group's offsets in a partition. Cost: a look at every consumer offset there.
pub fn offset_keys(partition: &Partition, group: &str) -> Vec<Vec<u8>> {
    let keys = partition.facts(OFFSET_KEY).map(|(key, _)| key);
    keys.filter(|key| split_offset_key(key).is_some_and(|(_, _, of)| of == group)).map(<[u8]>::to_vec).collect()
}

/// What a core can look at.
struct Here<'a> {
    partitions: &'a mut [Partition],
    partitions_all: u16,
    catalog: &'a Catalog,
    is_blind: bool,
}

impl Here<'_> {
    /// Goes on at a queue; `Err` if something must be read first.
    fn topic_stats(&mut self, topic: &str, next: &mut u32, all: &mut Vec<QueueStats>) -> Result<(), (usize, LoadId)> {
        let Some(topic) = self.catalog.topic(topic) else { return Ok(()) };
        self.each_queue(topic, topic.queues(), next, |partition, queue, stored_ms| {
            let key = QueueKey { topic: topic.id, queue };
            let span = partition.span(key);
            let last_ms = stored_ms(partition, key, before(span.max))?;
            all.push(QueueStats { queue, min: span.min, max: span.max, last_ms });
            Ok(())
        })
    }

    /// Goes on at a topic's queue; `Err` if something must be read first.
    fn progress(
        &mut self,
        asked: &[Consuming],
        lent: &mut Lent<'_>,
        (index, next): &mut (usize, u32),
        all: &mut Vec<QueueProgress>,
    ) -> Result<(), (usize, LoadId)> {
        while let Some(Consuming { group, topic, queues, .. }) = asked.get(*index) {
            if let Some(topic) = self.catalog.topic(topic) {
                self.each_queue(topic, *queues, next, |partition, queue, stored_ms| {
                    let key = QueueKey { topic: topic.id, queue };
                    let offset = partition.fact(&offset_key(topic.id, queue, group));
                    let consumer = offset.and_then(offset_value).unwrap_or(0);
                    let last_ms = stored_ms(partition, key, before(consumer))?;
                    let broker = partition.span(key).max;
                    let given = lent(key, group).map_or(consumer, |lent| lent.max(consumer));
                    all.push(QueueProgress { asked: *index, queue, broker, consumer, given, last_ms });
                    Ok(())
                })?;
            }
            (*index, *next) = (*index + 1, 0);
        }
        Ok(())
    }

    /// Goes on at a queue; `Err` if something must be read first.
    fn spans(
        &mut self,
        topic: &str,
        group: &str,
        next: &mut u32,
        all: &mut Vec<QueueTimes>,
    ) -> Result<(), (usize, LoadId)> {
        let Some(topic) = self.catalog.topic(topic) else { return Ok(()) };
        self.each_queue(topic, topic.write_queues(), next, |partition, queue, stored_ms| {
            let key = QueueKey { topic: topic.id, queue };
            let span = partition.span(key);
            let inside = |offset: u64| (span.min..span.max).contains(&offset).then_some(offset);
            let committed = partition.fact(&offset_key(topic.id, queue, group)).and_then(offset_value).unwrap_or(0);
            let first_ms = stored_ms(partition, key, inside(span.min))?;
            let times = QueueTimes {
                queue,
                first_ms,
                last_ms: stored_ms(partition, key, before(span.max).and_then(inside))?,
                consumed_ms: match before(committed) {
                    Some(offset) => stored_ms(partition, key, inside(offset))?,
                    None => first_ms,
                },
                next_ms: stored_ms(partition, key, inside(committed.max(span.min)))?,
            };
            all.push(times);
            Ok(())
        })
    }

    /// Where a group's offsets are set to. Goes on at a queue; `Err` if something must be read first. Inside, `Err`
    /// says why they cannot be set.
    fn reset(
        &mut self,
        reset: &Reset,
        next: &mut u32,
        all: &mut Vec<(u32, u64)>,
    ) -> Result<Result<(), Refused>, (usize, LoadId)> {
        let Some(topic) = self.catalog.topic(&reset.topic) else { return Ok(Ok(())) };
        let mut refusal = None;
        let is_blind = self.is_blind;
        self.each_queue(topic, topic.read_queues(), next, |partition, queue, _| {
            if reset.queue.is_some_and(|only| only != queue) || refusal.is_some() {
                return Ok(());
            }
            if !partition.is_open() {
                refusal = Some((response::SERVICE_NOT_AVAILABLE, OPENING.to_owned()));
                return Ok(());
            }
            let key = QueueKey { topic: topic.id, queue };
            let span = partition.span(key);
            let wanted = match reset.to {
                ResetTo::Newest => span.max,
                ResetTo::Offset(offset) => match u64::try_from(offset) {
                    Ok(offset) if (span.min..=span.max + 1).contains(&offset) => offset.min(span.max),
                    _ => {
                        let (min, max) = (span.min, span.max);
                        let remark = format!("Target offset {offset} not in consume queue range [{min}-{max}]");
                        refusal = Some((response::SYSTEM_ERROR, remark));
                        return Ok(());
                    }
                },
                ResetTo::Time(time_ms) => match partition.offset_at(key, time_ms, false) {
                    Ok(offset) => offset,
                    Err(load) if !is_blind => return Err(load),
                    Err(_) => {
                        refusal = Some((response::SYSTEM_ERROR, "the log cannot be read".to_owned()));
                        return Ok(());
                    }
                },
            };
            let committed = partition.fact(&offset_key(topic.id, queue, &reset.group)).and_then(offset_value);
            // Clients are sent back, and forward only if it is forced.
            let offset = match committed {
                _ if reset.is_kept => wanted,
                Some(committed) if !reset.is_forced => wanted.min(committed),
                _ => wanted,
            };
            all.push((queue, offset));
            Ok(())
        })?;
        Ok(refusal.map_or(Ok(()), Err))
    }

    /// The lowest offset of all groups in each of a topic's queues, but for those that do not count; `MAX` where the
    /// compared group is behind it.
    fn correction(&mut self, topic: &str, without: &BTreeSet<String>, compared: &str) -> Vec<(u32, i64)> {
        let Some(topic) = self.catalog.topic(topic) else { return Vec::new() };
        let prefix = [OFFSET_KEY, &topic.id.to_be_bytes()].concat();
        let mut lowest: BTreeMap<u32, u64> = BTreeMap::new();
        let mut compare: BTreeMap<u32, u64> = BTreeMap::new();
        for partition in &mut *self.partitions {
            let rows: Vec<(u32, bool, bool, u64)> = partition
                .facts(&prefix)
                .filter_map(|(key, value)| {
                    let (_, queue, group) = split_offset_key(key)?;
                    Some((queue, !without.contains(group), group == compared, offset_value(value)?))
                })
                .collect();
            for (queue, counts, is_compared, offset) in rows {
                if counts && offset >= partition.span(QueueKey { topic: topic.id, queue }).min {
                    lowest.entry(queue).and_modify(|low| *low = offset.min(*low)).or_insert(offset);
                }
                if is_compared {
                    compare.insert(queue, offset);
                }
            }
        }
        let is_behind = |queue: u32, low: u64| compare.get(&queue).is_some_and(|offset| low > *offset);
        let rows = lowest.into_iter();
        rows.map(|(queue, low)| (queue, if is_behind(queue, low) { i64::MAX } else { low.cast_signed() })).collect()
    }

    /// `cloned` gets what was cloned, also if that is not all.
    fn clone_offsets(
        &mut self,
        from: &str,
        to: &str,
        topics: Option<&BTreeSet<String>>,
        cloned: &mut Vec<(QueueKey, u64)>,
    ) -> Result<(), Refused> {
        if !self.partitions.iter().all(Partition::is_open) {
            return Err((response::SERVICE_NOT_AVAILABLE, OPENING.to_owned()));
        }
        let ids: Option<BTreeSet<u32>> = topics
            .map(|topics| topics.iter().filter_map(|name| self.catalog.topic(name)).map(|topic| topic.id).collect());
        for partition in &mut *self.partitions {
            let rows: Vec<(u32, u32, u64)> = partition
                .facts(OFFSET_KEY)
                .filter_map(|(key, value)| {
                    let (topic, queue, group) = split_offset_key(key)?;
                    let is_wanted = group == from && ids.as_ref().is_none_or(|ids| ids.contains(&topic));
                    is_wanted.then_some((topic, queue, offset_value(value)?))
                })
                .collect();
            for (topic, queue, offset) in rows {
                if !partition.note(&offset_key(topic, queue, to), &offset.to_be_bytes()) {
                    tracing::warn!(group = to, topic, queue, "no room for another consumer offset");
                    return Err((response::SYSTEM_BUSY, OFFSETS_FULL.to_owned()));
                }
                cloned.push((QueueKey { topic, queue }, offset));
            }
        }
        Ok(())
    }

    /// Which groups have offsets here. `None`: too many.
    fn consumed(&self) -> Option<Consumed> {
        let (mut consumed, mut pairs) = (Consumed::new(), 0);
        let keys = self.partitions.iter().flat_map(|partition| partition.facts(OFFSET_KEY));
        for (topic, _, group) in keys.filter_map(|(key, _)| split_offset_key(key)) {
            let groups = consumed.entry(topic).or_default();
            if !groups.contains(group) && self.catalog.group(group).is_some() {
                groups.insert(group.to_owned());
                pairs += 1;
                if pairs > PAIRS_MAX {
                    return None;
                }
            }
        }
        Some(consumed)
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

    fn tally(&self, mut tally: Tally) -> Tally {
        for partition in &*self.partitions {
            let stats = partition.stats();
            tally.add(&Tally {
                logs: stats.counts,
                log_min: stats.floor,
                log_max: stats.accepted,
                unflushed: stats.accepted.saturating_sub(stats.durable),
                unwritten: stats.noted,
                earliest_ms: Some(stats.oldest_ms).filter(|at_ms| *at_ms > 0),
                disk: Some((stats.total, stats.available)).filter(|(total, _)| *total > 0),
                ..Tally::default()
            });
        }
        tally
    }

    /// Asks for each of a topic's queues from `next` on that lie in these partitions. `ask` is given a way to
    /// tell when a message was stored: 0 if there is none.
    fn each_queue(
        &mut self,
        topic: &Topic,
        queues: u32,
        next: &mut u32,
        mut ask: impl FnMut(&mut Partition, u32, &StoredMs) -> Result<(), LoadId>,
    ) -> Result<(), (usize, LoadId)> {
        let is_blind = self.is_blind;
        let stored_ms = move |partition: &mut Partition, key: QueueKey, offset: Option<u64>| match offset {
            Some(offset) => match partition.store_time(key, offset) {
                Err(load) if !is_blind => Err(load),
                time => Ok(time.ok().flatten().unwrap_or(0)),
            },
            None => Ok(0),
        };
        for queue in *next..queues {
            *next = queue;
            let number = topic.partition_of(queue, self.partitions_all);
            let found = self.partitions.iter_mut().enumerate().find(|(_, partition)| partition.number() == number);
            if let Some((index, partition)) = found {
                ask(partition, queue, &stored_ms).map_err(|load| (index, load))?;
            }
        }
        Ok(())
    }
}

/// When the message of a queue at an offset was stored, ms since 1970.
type StoredMs = dyn Fn(&mut Partition, QueueKey, Option<u64>) -> Result<u64, LoadId>;

/// Up to where a group that pops was given messages of a queue. `None`: it does not pop there. What is only pulled nobody
/// here remembers.
pub type Lent<'a> = dyn FnMut(QueueKey, &str) -> Option<u64> + 'a;

/// The offset before this one.
fn before(offset: u64) -> Option<u64> {
    offset.checked_sub(1)
}

#[cfg(test)]
mod tests;
