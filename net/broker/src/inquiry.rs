//! One core's part of the answer to a question that all cores are asked.

mod found;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use engine::LoadId;
use engine::format::QueueKey;
use engine::partition::Partition;
use found::{Found, Sought};
use protocol::codes::response;
use walk::{Committed, Walk};
pub use walk::{LOOKS_PER_TURN, Pause};

use crate::admin::{
    Consumed, Consuming, PAIRS_MAX, Part, Question, QueueProgress, QueueStats, QueueTimes, Reset, ResetTo, Tally,
};
use crate::answer::{BUSY, Refused};
use crate::catalog::{Catalog, OFFSET_KEY, Topic, offset_key, offset_value, offsets_in};
use crate::stats::{Counted, Windows};

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
    /// How far a walk over groups' offsets came, and what it found.
    walk: Walk,
    topics: BTreeSet<u32>,
    groups: BTreeSet<String>,
    consumed: Consumed,
    pairs: usize,
    corrected: Corrected,
    cloned: Vec<(QueueKey, u64)>,
    /// What was looked up of the counts that are asked for.
    windows: Vec<Option<Windows>>,
    /// A read failed: what cannot be told without reading is left out.
    is_blind: bool,
}

impl Inquiry {
    /// The group that is to be forgotten, if that is asked, and whether nobody looked for its offsets yet.
    pub fn forgets(&self) -> Option<(&str, bool)> {
        match &self.question {
            Question::Forget { group } => Some((group, self.walk.is_new())),
            _ => None,
        }
    }

    /// Keys of the offsets that are to be forgotten, by index of the partition: those that one turn finds. `Err`: there
    /// may be more.
    pub fn forget(&mut self, partitions: &[Partition], keys: &mut Vec<Vec<Vec<u8>>>) -> Result<(), Pause> {
        let Question::Forget { group } = &self.question else { return Ok(()) };
        keys.resize(partitions.len(), Vec::new());
        self.walk.go_on(partitions, OFFSET_KEY, |committed| {
            if committed.group == group {
                keys[committed.index].push(committed.key.to_vec());
            }
        })
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
            walk: Walk::default(),
            topics: BTreeSet::new(),
            groups: BTreeSet::new(),
            consumed: Consumed::new(),
            pairs: 0,
            corrected: Corrected::default(),
            cloned: Vec::new(),
            windows: Vec::new(),
            is_blind: false,
        }
    }

    /// Answers from this core's partitions. `Err`: this is to be called again, after a read or in another turn.
    /// `partitions_all`: how many the broker has. `tally`: what the core itself counted; `lent`: what its pops know. What
    /// waits for the log, `Forget`, is not answered here: see [`forgets`](Self::forgets); nor is `Stats`.
    ///
    /// Cost: a turn looks at [`LOOKS_PER_TURN`] offsets or queues. `TopicsOf`, `GroupsOf`, `Consumed`, `Correction` and
    /// `Clone` look at every consumer offset of the partitions, or of the topic; the others only at what they name.
    pub fn answer(
        &mut self,
        partitions: &mut [Partition],
        partitions_all: u16,
        catalog: &Catalog,
        tally: Tally,
        lent: &mut Lent<'_>,
    ) -> Result<Part, Pause> {
        let mut here = Here { partitions, partitions_all, catalog, is_blind: self.is_blind, left: LOOKS_PER_TURN };
        Ok(match &self.question {
            Question::Topic { topic } => {
                here.topic_stats(topic, &mut self.walked.1, &mut self.stats)?;
                Part::Topic(std::mem::take(&mut self.stats))
            }
            Question::TopicsOf { group } => {
                let topics = &mut self.topics;
                self.walk.go_on(here.partitions, OFFSET_KEY, |committed| {
                    if committed.group == group {
                        topics.insert(committed.topic);
                    }
                })?;
                Part::TopicsOf(std::mem::take(topics))
            }
            Question::Consumed => {
                here.consumed(&mut self.walk, &mut self.consumed, &mut self.pairs)?;
                Part::Consumed((self.pairs <= PAIRS_MAX).then(|| std::mem::take(&mut self.consumed)))
            }
            Question::Progress(asked) => {
                here.progress(asked, lent, &mut self.walked, &mut self.progress)?;
                Part::Progress(std::mem::take(&mut self.progress))
            }
            Question::Spans { topic, group } => {
                here.spans(topic, group, &mut self.walked.1, &mut self.times)?;
                Part::Spans(std::mem::take(&mut self.times))
            }
            Question::GroupsOf { topic } => {
                if let Some(topic) = catalog.topic(topic) {
                    let groups = &mut self.groups;
                    self.walk.go_on(here.partitions, &offsets_in(topic.id), |committed| {
                        if !groups.contains(committed.group) {
                            groups.insert(committed.group.to_owned());
                        }
                    })?;
                }
                Part::GroupsOf(std::mem::take(&mut self.groups))
            }
            Question::Reset(reset) => match here.reset(reset, &mut self.walked.1, &mut self.offsets)? {
                Ok(()) => Part::Reset(Ok(std::mem::take(&mut self.offsets))),
                Err(refused) => Part::Reset(Err(refused)),
            },
            Question::Correction { topic, without, compared } => {
                if let Some(topic) = catalog.topic(topic) {
                    here.correction(topic.id, without, compared, &mut self.walk, &mut self.corrected)?;
                }
                Part::Correction(std::mem::take(&mut self.corrected).told())
            }
            Question::Clone { from, to, topics } => {
                Part::Cloned(here.clone_offsets(from, to, topics.as_ref(), &mut self.walk, &mut self.cloned)?)
            }
            Question::Messages { .. } => {
                self.search(here.partitions)?;
                self.messages()
            }
            Question::Tally => Part::Tally(Box::new(here.tally(tally))),
            Question::Forget { .. } | Question::Stats(_) => unreachable!("they are not answered here"),
        })
    }

    /// What is to be looked up of counts, if that is the question: the core knows, not its partitions. At most
    /// as many as one turn may look at.
    pub fn uncounted(&self) -> Option<&[Counted]> {
        let Question::Stats(counted) = &self.question else { return None };
        let rest = &counted[self.windows.len()..];
        Some(&rest[..rest.len().min(LOOKS_PER_TURN)])
    }

    /// Takes what was found of those. Returns the answer, if that is all.
    pub fn count(&mut self, windows: Vec<Option<Windows>>) -> Option<Part> {
        self.windows.extend(windows);
        let is_over = self.uncounted().is_none_or(<[Counted]>::is_empty);
        is_over.then(|| Part::Stats(std::mem::take(&mut self.windows)))
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
    fn search(&mut self, partitions: &mut [Partition]) -> Result<(), Pause> {
        let Some(sought) = self.question.sought() else { return Ok(()) };
        self.found.resize_with(partitions.len(), || Found::new(&sought));
        for (index, (partition, found)) in partitions.iter_mut().zip(&mut self.found).enumerate() {
            found.go_on(&sought, partition, &mut self.found_bytes).map_err(|load| Pause::Read(index, load))?;
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

/// Where groups must at least be, by queue: the lowest offset of those that count, and that of the compared one.
#[derive(Debug, Default)]
struct Corrected {
    lowest: BTreeMap<u32, u64>,
    compared: BTreeMap<u32, u64>,
}

impl Corrected {
    /// The lowest; `MAX` where the compared group is behind it.
    fn told(self) -> Vec<(u32, i64)> {
        let is_behind = |queue: u32, low: u64| self.compared.get(&queue).is_some_and(|offset| low > *offset);
        let rows = self.lowest.iter().map(|(queue, low)| (*queue, *low));
        rows.map(|(queue, low)| (queue, if is_behind(queue, low) { i64::MAX } else { low.cast_signed() })).collect()
    }
}

/// What a core can look at.
struct Here<'a> {
    partitions: &'a mut [Partition],
    partitions_all: u16,
    catalog: &'a Catalog,
    is_blind: bool,
    /// Queues that may be looked at in this turn.
    left: usize,
}

impl Here<'_> {
    /// Goes on at a queue.
    fn topic_stats(&mut self, topic: &str, next: &mut u32, all: &mut Vec<QueueStats>) -> Result<(), Pause> {
        let Some(topic) = self.catalog.topic(topic) else { return Ok(()) };
        self.each_queue(topic, topic.queues(), next, |partition, queue, stored_ms| {
            let key = QueueKey { topic: topic.id, queue };
            let span = partition.span(key);
            let last_ms = stored_ms(partition, key, before(span.max))?;
            all.push(QueueStats { queue, min: span.min, max: span.max, last_ms });
            Ok(())
        })
    }

    /// Goes on at a topic's queue.
    fn progress(
        &mut self,
        asked: &[Consuming],
        lent: &mut Lent<'_>,
        (index, next): &mut (usize, u32),
        all: &mut Vec<QueueProgress>,
    ) -> Result<(), Pause> {
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

    /// Goes on at a queue.
    fn spans(&mut self, topic: &str, group: &str, next: &mut u32, all: &mut Vec<QueueTimes>) -> Result<(), Pause> {
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

    /// Where a group's offsets are set to. Goes on at a queue. Inside, `Err` says why they
    /// cannot be set.
    fn reset(
        &mut self,
        reset: &Reset,
        next: &mut u32,
        all: &mut Vec<(u32, u64)>,
    ) -> Result<Result<(), Refused>, Pause> {
        let Some(topic) = self.catalog.topic(&reset.topic) else { return Ok(Ok(())) };
        let mut refusal = None;
        let is_blind = self.is_blind;
        let walked = self.each_queue(topic, topic.read_queues(), next, |partition, queue, _| {
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
        });
        match refusal {
            Some(refused) => Ok(Err(refused)),
            None => walked.map(Ok),
        }
    }

    /// Offsets of all groups in a topic's queues, but for those that do not count.
    fn correction(
        &mut self,
        topic: u32,
        without: &BTreeSet<String>,
        compared: &str,
        walk: &mut Walk,
        all: &mut Corrected,
    ) -> Result<(), Pause> {
        let mut rows = Vec::new();
        let walked = walk.go_on(self.partitions, &offsets_in(topic), |committed| {
            let Committed { index, queue, group, offset, .. } = committed;
            rows.push((index, queue, offset, !without.contains(group), group == compared));
        });
        for (index, queue, offset, counts, is_compared) in rows {
            if counts && offset >= self.partitions[index].span(QueueKey { topic, queue }).min {
                all.lowest.entry(queue).and_modify(|low| *low = offset.min(*low)).or_insert(offset);
            }
            if is_compared {
                all.compared.insert(queue, offset);
            }
        }
        walked
    }

    /// `cloned` gets what was cloned, also if that is not all.
    fn clone_offsets(
        &mut self,
        from: &str,
        to: &str,
        topics: Option<&BTreeSet<String>>,
        walk: &mut Walk,
        cloned: &mut Vec<(QueueKey, u64)>,
    ) -> Result<Result<(), Refused>, Pause> {
        if !self.partitions.iter().all(Partition::is_open) {
            return Ok(Err((response::SERVICE_NOT_AVAILABLE, OPENING.to_owned())));
        }
        let ids: Option<BTreeSet<u32>> = topics
            .map(|topics| topics.iter().filter_map(|name| self.catalog.topic(name)).map(|topic| topic.id).collect());
        let mut rows = Vec::new();
        let walked = walk.go_on(self.partitions, OFFSET_KEY, |committed| {
            let Committed { index, topic, queue, group, offset, .. } = committed;
            if group == from && ids.as_ref().is_none_or(|ids| ids.contains(&topic)) {
                rows.push((index, QueueKey { topic, queue }, offset));
            }
        });
        for (index, key, offset) in rows {
            if !self.partitions[index].note(&offset_key(key.topic, key.queue, to), &offset.to_be_bytes()) {
                tracing::warn!(group = to, ?key, "no room for another consumer offset");
                return Ok(Err((response::SYSTEM_BUSY, OFFSETS_FULL.to_owned())));
            }
            cloned.push((key, offset));
        }
        walked.map(Ok)
    }

    /// Which groups have offsets here, until there are too many.
    fn consumed(&self, walk: &mut Walk, all: &mut Consumed, pairs: &mut usize) -> Result<(), Pause> {
        let walked = walk.go_on(self.partitions, OFFSET_KEY, |Committed { topic, group, .. }| {
            let groups = all.entry(topic).or_default();
            if *pairs <= PAIRS_MAX && !groups.contains(group) && self.catalog.group(group).is_some() {
                groups.insert(group.to_owned());
                *pairs += 1;
            }
        });
        if *pairs > PAIRS_MAX { Ok(()) } else { walked }
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
    /// tell when a message was stored: 0 if there is none. `Err`: it stopped at `next`.
    fn each_queue(
        &mut self,
        topic: &Topic,
        queues: u32,
        next: &mut u32,
        mut ask: impl FnMut(&mut Partition, u32, &StoredMs) -> Result<(), LoadId>,
    ) -> Result<(), Pause> {
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
            self.left = self.left.checked_sub(1).ok_or(Pause::Turn)?;
            let number = topic.partition_of(queue, self.partitions_all);
            let found = self.partitions.iter_mut().enumerate().find(|(_, partition)| partition.number() == number);
            if let Some((index, partition)) = found {
                ask(partition, queue, &stored_ms).map_err(|load| Pause::Read(index, load))?;
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
