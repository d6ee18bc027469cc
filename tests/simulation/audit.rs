//! Everything that the partition shows, against the model.

use engine::partition::DelayedSearch;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use engine::Ticket;
use engine::format::{Position, QueueKey};
use engine::limits::Flush;
use engine::partition::{Pull, PullLimits};
use tests::random::noise;

use super::model::{Answer, Ended, Extent, HEADER_BYTES, QUEUES, Sent, Version, fact_key, fill, id_of, recall_key};
use super::world::{SEGMENT_BYTES, TURNS_MAX, World};
use crate::MIB;

impl World {
    pub fn opened(&mut self) {
        let topics = self.topics.clone();
        self.partition.retain_topics(&|topic| topics.contains(&topic));
        self.closed = None;
        let faults = std::mem::take(&mut self.sim.faults);
        let mut extent = self.check_facts();
        let stats = self.partition.stats();
        self.seen.taken_over += u64::from(self.restarted && stats.checkpointed > 0);
        self.seen.runs += stats.runs.0;
        self.seen.retired += stats.floor / SEGMENT_BYTES;
        let certain = !self.plan.harm && !self.may_fail();
        assert!(!certain || stats.checkpointed >= self.checkpointed, "the checkpoint is of no use: {stats:?}");
        let messages = self.audit();
        extent.there(messages.newest);
        extent.lost(Some(messages.missing));
        let Extent { newest, missing } = extent;
        if let Some(newest) = newest.filter(|newest| *newest >= missing) {
            panic!("request {missing} is lost, and {newest}, which came later, is there");
        }
        self.sim.faults = faults;
        (self.ended, self.audited, self.restarted) = (Ended::Written, true, false);
    }

    pub fn check_facts(&mut self) -> Extent {
        let mut extent = Extent::NOTHING;
        let lossy = self.config.flush != Flush::Sync && self.ended != Ended::Written;
        // Facts are readable at once: one that was put since it opened may be seen before it is durable.
        let fresh = |key: u64| move |(_, answer): &(Ticket, Answer)| matches!(answer, Answer::Fact { key: put, .. } if *put == key);
        for (&key, history) in &mut self.facts {
            let value = self.partition.fact(&fact_key(b'p', key)).map(<[u8]>::to_vec);
            let least = if lossy { 0 } else { history.promised };
            let fits = |version: &Version| version.number >= least && version.value == value;
            let stays = history.values.front().is_some_and(|oldest| oldest.ticket.is_none());
            let none = least == 0 && value.is_none() && !stays;
            let first = history.values.iter().position(fits);
            let last = history.values.iter().rposition(fits);
            assert!(none || first.is_some(), "fact {key} is {value:?}, promised {least}");
            // Only a deletion may be one of several.
            first.filter(|_| !none).into_iter().for_each(|first| extent.there(history.values[first].ticket));
            let next = last.map_or(0, |last| last + 1);
            history.values.get(next).into_iter().for_each(|next| extent.lost(next.ticket));
            if self.answers.iter().any(fresh(key)) {
                continue;
            }
            // From here on it is this value and no other, under a version that none had.
            let number = history.values.back().map_or(0, |newest| newest.number);
            history.values = VecDeque::from([Version { number, ticket: None, value }]);
            history.promised = number;
        }
        for (&key, (certain, newest)) in &mut self.notes {
            let value = self.partition.fact(&fact_key(b'n', key));
            let value = value.map_or(0, |value| u64::from_be_bytes(value.try_into().expect("eight bytes")));
            // A failure forgets nothing that was noted; the end of the process does, for a second.
            let least = if self.restarted { *certain } else { *newest };
            assert!((least..=*newest).contains(&value), "note {key} is {value}, not in {least}..={newest}");
            *newest = value;
            if self.restarted {
                *certain = value;
            }
            if self.config.flush != Flush::Sync {
                *certain = 0;
            }
        }
        extent
    }

    /// Looks at every message there is.
    pub fn audit(&mut self) -> Extent {
        let (mut found, mut extent) = (BTreeSet::new(), Extent::NOTHING);
        // What is delivered while we look may be in a queue that we looked at already.
        let seen: Vec<bool> = self.sent.iter().map(|sent| sent.place.is_some()).collect();
        // So is what is promised meanwhile.
        let promised: Vec<bool> = self.sent.iter().map(|sent| sent.promised).collect();
        for topic in self.topics.clone() {
            for queue in 0..QUEUES as u32 {
                let queue = QueueKey { topic, queue };
                let taken = self.taken.get(&queue).copied().unwrap_or(0);
                let lossy = self.config.flush != Flush::Sync && self.ended != Ended::Written;
                let span = self.partition.span(queue);
                assert!(span.max >= taken || lossy, "{queue:?} ends at {} and ended at {taken}", span.max);
                if lossy {
                    self.taken.insert(queue, span.max);
                }
                self.read_queue(queue, &mut found);
            }
        }
        let floor = self.partition.stats().floor;
        if let Some(retain) = self.plan.retain {
            // A segment goes as a whole once the log is longer than what is kept.
            let most = (self.longest + SEGMENT_BYTES).saturating_sub(retain);
            assert!(floor <= most, "the log is kept from {floor}, which is above {most}");
        }
        let now_ms = self.sim.now_ms();
        let topics = self.topics.clone();
        let early = |sent: &&Sent| {
            let waits = sent.promised && sent.due_ms.is_some_and(|due_ms| due_ms > now_ms);
            waits && topics.contains(&sent.queue.topic)
        };
        let rolled = self.sent.iter().filter(early).filter(|sent| sent.stored.position.byte() < floor);
        self.seen.rolled += rolled.count() as u64;
        let mut batches: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (id, sent) in self.sent.iter_mut().enumerate() {
            let (byte, there) = match (sent.due_ms, sent.place) {
                (None, _) => (sent.stored.position.byte(), promised[id] || seen[id]),
                (Some(_), Some((_, position))) if seen[id] => (position.byte(), true),
                (Some(_), _) => continue,
            };
            if byte < floor || !topics.contains(&sent.queue.topic) {
                continue;
            }
            let certain = match self.ended {
                Ended::Cut { durable } if self.config.flush != Flush::Sync => byte < durable,
                _ => true,
            };
            let is_found = found.contains(&(id as u64));
            let answered = sent.promised && !promised[id];
            let flying = answered || self.answers.iter().any(|(ticket, _)| ticket.0 == sent.batch);
            if sent.due_ms.is_none() && !flying {
                let (there, all) = batches.entry(sent.batch).or_default();
                *all += 1;
                *there += usize::from(is_found);
            }
            assert!(!(is_found && sent.gone), "message {id} came back from the dead: {sent:?}");
            assert!(is_found || !there || !certain || sent.gone, "message {id} is lost ({:?}): {sent:?}", self.ended);
            if is_found {
                extent.there(Some(sent.batch));
            } else if sent.due_ms.is_none() && !sent.gone && !flying {
                extent.lost(Some(sent.batch));
            }
            if !is_found && !flying {
                // It may never be seen again. A delayed one may be delivered again.
                (sent.gone, sent.place) = (sent.due_ms.is_none(), None);
            }
        }
        for id in (0..self.sent.len()).filter(|id| self.sent[*id].half.is_some()).collect::<Vec<_>>() {
            for _ in 0..TURNS_MAX {
                match self.look_up(id) {
                    Ok(_) => break,
                    Err(load) => {
                        while !self.loaded.remove(&load) {
                            self.turn();
                        }
                    }
                }
            }
        }
        if self.plan.age.is_some() {
            (0..self.sent.len()).for_each(|id| self.look_for_delayed(id));
        }
        for (batch, (there, all)) in batches {
            let whole = self.sent.iter().filter(|sent| sent.batch == batch && sent.stored.position.byte() >= floor);
            let forgotten = whole.clone().any(|sent| !topics.contains(&sent.queue.topic));
            assert!(there == 0 || there == all || forgotten, "batch {batch}: {there} of {all}");
        }
        extent
    }

    /// A delayed message that waits can still be found, and read.
    fn look_for_delayed(&mut self, id: usize) {
        let is_it = |message: &[u8]| id_of(message) == id as u64;
        let mut search = DelayedSearch::default();
        for _ in 0..TURNS_MAX {
            let sent = &self.sent[id];
            let waits = sent.promised && sent.half.is_none() && sent.withdrawn.is_none();
            let waits = waits && sent.due_ms.is_some_and(|due_ms| due_ms > self.sim.now_ms());
            if !waits || !self.topics.contains(&sent.queue.topic) || !self.partition.is_open() {
                return;
            }
            match self.partition.find_delayed(recall_key(id as u64), &is_it, &mut search) {
                Ok(found) => return assert!(found.is_some(), "the delayed message {id} is lost: {sent:?}"),
                Err(load) => {
                    while !self.loaded.remove(&load) {
                        self.turn();
                    }
                }
            }
        }
        panic!("the delayed message {id} is never read");
    }

    pub fn read_queue(&mut self, queue: QueueKey, found: &mut BTreeSet<u64>) {
        let limits = PullLimits { messages: 32, bytes: MIB as u32, scan: 1000 };
        let mut offset = self.partition.span(queue).min;
        for _ in 0..TURNS_MAX {
            match self.partition.pull(queue, offset, limits, &|_| true).0 {
                Pull::Found { messages, next } => {
                    for message in messages {
                        offset = self.saw(&message, queue, Some(offset)).end;
                        assert!(found.insert(id_of(&message)), "message {} is there twice", id_of(&message));
                    }
                    assert_eq!(next, offset, "all are wanted");
                }
                Pull::Loading(load) => {
                    let mut turns = 0;
                    while !self.loaded.remove(&load) {
                        self.turn();
                        turns += 1;
                        assert!(turns < TURNS_MAX, "{load:?} does not come back");
                    }
                }
                Pull::Empty => return,
                Pull::OutOfRange if self.plan.retires() => {
                    offset = self.partition.span(queue).min;
                }
                Pull::Opening => {
                    assert!(self.may_fail(), "nothing failed");
                    self.turn();
                }
                other => panic!("{other:?} in {queue:?} at {offset}"),
            }
        }
        panic!("{queue:?} has no end");
    }

    /// A message was shown. Returns its queue offsets.
    pub fn saw(&mut self, message: &Bytes, queue: QueueKey, offset: Option<u64>) -> Range<u64> {
        let id = id_of(message);
        let sent = self.sent.get_mut(id as usize).unwrap_or_else(|| panic!("message {id} was never sent"));
        assert_eq!(sent.queue, queue, "message {id} is in the wrong queue");
        assert!(!matches!(sent.withdrawn, Some((_, true))), "message {id} was withdrawn: {sent:?}");
        let is_visible = sent.half.is_none_or(|half| half.asked[0] && half.decided != Some(false));
        assert!(is_visible, "the half message {id} is seen: {sent:?}");
        let mut head = [0; HEADER_BYTES];
        fill(&mut head, id, queue, HEADER_BYTES);
        let is_whole = message.len() == sent.length
            && message[24..HEADER_BYTES] == head[24..]
            && message[HEADER_BYTES..] == *noise(id, sent.length - HEADER_BYTES);
        assert!(is_whole, "message {id} has other bytes");
        let stamped = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        let place = (stamped(0), Position(stamped(8)));
        assert_eq!(offset.unwrap_or(place.0), place.0, "message {id} is not at its offset");
        match sent.due_ms {
            None => assert_eq!(place, (sent.stored.queue_offset, sent.stored.position), "message {id} moved"),
            Some(due_ms) => assert!(stamped(16) >= due_ms, "message {id} was delivered too early"),
        }
        assert_eq!(sent.place.unwrap_or(place), place, "message {id} is there twice");
        sent.place = Some(place);
        let offsets = place.0..place.0 + u64::from(sent.offsets);
        let taken = self.taken.entry(queue).or_default();
        *taken = (*taken).max(offsets.end);
        let stats = self.partition.stats();
        let answerable = if self.config.flush == Flush::Sync { stats.durable } else { stats.written };
        assert!(place.1.byte() < answerable, "message {id} is visible above the watermark");
        offsets
    }
}
