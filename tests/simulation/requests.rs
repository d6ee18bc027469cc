//! What a broker might want of a partition.

use bytes::Bytes;
use engine::error::AppendError;
use engine::format::{Position, QueueKey};
use engine::message::{Draft, Stored};
use engine::partition::DelayedSearch;
use engine::partition::{Pull, PullLimits};
use engine::{KeySearch, LoadId, Ticket};
use tests::random::noise;

use super::model::{
    Answer, FACTS, HEADER_BYTES, Half, QUEUES, STAMP, Sent, Version, fact_key, fill, history_of, id_of, key_hash,
    recall_key, tag_hash,
};
use super::world::{SEGMENT_BYTES, World};
use crate::MIB;

impl World {
    pub fn step(&mut self) {
        for _ in 0..self.random.below(4) {
            match self.random.below(100) {
                0..46 => self.append(),
                46..48 => self.prepare(),
                48..50 => self.decide(),
                50..57 => self.delay(),
                57..58 => self.withdraw(),
                58..68 => self.put(),
                68..75 => self.note(),
                75..84 => self.pull_some(),
                84..92 => self.get_some(),
                92..94 if self.topics_go() => self.forget(),
                94..95 => self.quiesce(),
                _ => self.sim.advance(self.random.below(3000)),
            }
        }
        self.turn();
        if self.plan.large && self.random.chance(700) {
            for _ in 0..self.random.below(8) {
                if !self.published {
                    self.turn();
                }
            }
        }
        if self.closed.take().is_some() {
            self.wait_open();
        }
    }

    /// Whether a topic may go. With it go the messages that wait for it, so that where those matter few topics do.
    fn topics_go(&mut self) -> bool {
        !self.plan.steady && (self.plan.age.is_none() || self.random.chance(200))
    }

    pub fn length(&mut self) -> usize {
        let most = match self.random.below(10) {
            _ if self.plan.large => 300_000,
            0 => 300_000,
            1..4 => 6000,
            _ => 400,
        };
        HEADER_BYTES + 1 + self.random.below(most) as usize
    }

    /// Most messages take one offset, some hold several messages.
    pub fn offsets(&mut self) -> u32 {
        if self.random.chance(850) { 1 } else { 2 + self.random.below(30) as u32 }
    }

    pub fn queue(&mut self) -> QueueKey {
        let topic = self.topics[self.random.below(self.topics.len() as u64) as usize];
        let queue = self.random.below(QUEUES) as u32;
        let half = (self.longest / SEGMENT_BYTES % 2) as u32;
        QueueKey { topic, queue: if self.plan.steady { queue / 2 * 2 + half } else { queue } }
    }

    pub fn append(&mut self) {
        let count = if self.random.chance(700) { 1 } else { 2 + self.random.below(6) };
        let wanted: Vec<(QueueKey, usize, u32)> =
            (0..count).map(|_| (self.queue(), self.length(), self.offsets())).collect();
        let first = self.sent.len() as u64;
        let mut fills: Vec<_> = wanted
            .iter()
            .zip(first..)
            .map(|(&(queue, length, _), id)| move |out: &mut [u8]| fill(out, id, queue, length))
            .collect();
        let hashes: Vec<[u64; 1]> = (first..first + count).map(|id| [key_hash(id)]).collect();
        let mut drafts: Vec<Draft<'_>> = fills
            .iter_mut()
            .zip(&hashes)
            .zip(&wanted)
            .zip(first..)
            .map(|(((fill, keys), &(queue, length, offsets)), id)| Draft {
                queue,
                length,
                offsets,
                tag_hash: tag_hash(id),
                keys,
                stamp: STAMP,
                fill,
            })
            .collect();
        let mut stored = Vec::new();
        let ticket = Ticket(self.tickets);
        let result = self.partition.append(&mut drafts, Some(ticket), self.sim.now_ms(), &mut stored);
        drop(drafts);
        if let Err(error) = result {
            return self.refused(error);
        }
        for (&(queue, length, offsets), &stored) in wanted.iter().zip(&stored) {
            let taken = self.taken.get(&queue).copied().unwrap_or(0);
            assert!(stored.queue_offset >= taken, "{queue:?}: {stored:?} is taken, below {taken}");
            self.submitted(queue, length, None, stored);
            self.sent.last_mut().expect("it was just sent").offsets = offsets;
        }
        self.answers.push_back((ticket, Answer::Messages(self.tickets)));
        self.tickets += 1;
    }

    pub fn delay(&mut self) {
        let (queue, length) = (self.queue(), self.length());
        let id = self.sent.len() as u64;
        let due_ms = self.sim.now_ms() + [0, 5, 500, 20_000, 100_000][self.random.below(5) as usize];
        let mut write = |out: &mut [u8]| fill(out, id, queue, length);
        let draft =
            Draft { queue, length, offsets: 1, tag_hash: tag_hash(id), keys: &[], stamp: STAMP, fill: &mut write };
        let (ticket, key) = (Ticket(self.tickets), recall_key(id));
        match self.partition.delay(draft, due_ms, key, Some(ticket), self.sim.now_ms()) {
            Err(error) => self.refused(error),
            Ok(stored) => {
                self.submitted(queue, length, Some(due_ms), stored);
                self.answers.push_back((ticket, Answer::Messages(self.tickets)));
                self.tickets += 1;
            }
        }
    }

    pub fn prepare(&mut self) {
        let (queue, length) = (self.queue(), self.length());
        let id = self.sent.len() as u64;
        let check_ms = self.sim.now_ms() + [5, 500, 20_000][self.random.below(3) as usize];
        let mut write = |out: &mut [u8]| fill(out, id, queue, length);
        let draft =
            Draft { queue, length, offsets: 1, tag_hash: tag_hash(id), keys: &[], stamp: STAMP, fill: &mut write };
        let ticket = Ticket(self.tickets);
        match self.partition.prepare(draft, check_ms, Some(ticket), self.sim.now_ms()) {
            Err(error) => self.refused(error),
            Ok(stored) => {
                assert_eq!(stored.queue_offset, stored.position.byte(), "that is what it is known by");
                self.submitted(queue, length, Some(0), stored);
                let half = Half { id: stored.queue_offset, asked: [false; 2], decided: None };
                self.sent.last_mut().expect("it was just sent").half = Some(half);
                self.answers.push_back((ticket, Answer::Messages(self.tickets)));
                self.tickets += 1;
            }
        }
    }

    /// A half message as the partition has it, if it is undecided. `Err`: it is being read.
    pub fn look_up(&mut self, id: usize) -> Result<Option<Bytes>, LoadId> {
        let sent = self.sent[id].clone();
        let half = sent.half.expect("it is one");
        let found = self.partition.undecided(half.id)?.map(|found| found.message);
        // Where a log lost its end, another message may be.
        let found = found.filter(|message| id_of(message) == id as u64);
        let here = sent.promised && !sent.gone && self.topics.contains(&sent.queue.topic) && self.partition.is_open();
        match &found {
            Some(message) => {
                assert_eq!(half.decided, None, "the half message {id} is decided: {sent:?}");
                assert_eq!(message.len(), sent.length, "the half message {id} has other bytes");
                assert_eq!(message[HEADER_BYTES..], *noise(id as u64, sent.length - HEADER_BYTES));
                let half = self.sent[id].half.as_mut().expect("it is one");
                half.asked = [false; 2];
            }
            None => assert!(!here || half.asked != [false; 2], "the half message {id} is lost: {sent:?}"),
        }
        Ok(found)
    }

    pub fn decide(&mut self) {
        let waits = |sent: &Sent| sent.promised && sent.half.is_some_and(|half| half.decided.is_none());
        let ids: Vec<usize> = (0..self.sent.len()).filter(|id| waits(&self.sent[*id])).collect();
        if ids.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = ids[self.random.below(ids.len() as u64) as usize];
        let Ok(Some(message)) = self.look_up(id) else { return };
        let commit = self.random.chance(600);
        let Sent { queue, length, half, .. } = self.sent[id].clone();
        let mut write = |out: &mut [u8]| out.copy_from_slice(&message);
        let keys = [key_hash(id as u64)];
        let tag_hash = tag_hash(id as u64);
        let mut draft = Draft { queue, length, offsets: 1, tag_hash, keys: &keys, stamp: STAMP, fill: &mut write };
        let (ticket, now_ms) = (Ticket(self.tickets), self.sim.now_ms());
        let half_id = half.expect("it is one").id;
        let result = self.partition.decide(half_id, commit.then_some(&mut draft), None, Some(ticket), now_ms);
        if let Err(error) = result {
            return self.refused(error);
        }
        let half = self.sent[id].half.as_mut().expect("it is one");
        half.asked[usize::from(!commit)] = true;
        self.answers.push_back((ticket, Answer::Decided(id as u64, commit)));
        self.tickets += 1;
    }

    /// The producer of a half message is to be asked.
    pub fn asked(&mut self, id: u64) {
        let mut sent = self.sent.iter().rev().filter(|sent| sent.half.is_some_and(|half| half.id == id));
        let newest = sent.next().expect("it was prepared");
        assert!(newest.half.is_some_and(|half| half.decided.is_none()), "who decided is asked: {newest:?}");
        if self.partition.is_open() && self.random.chance(500) {
            let now_ms = self.sim.now_ms();
            let again_ms = now_ms + 1 + self.random.below(20_000);
            if let Err(error) = self.partition.checked(id, again_ms, now_ms) {
                self.refused(error);
            }
        }
    }

    /// A delayed message is never delivered.
    pub fn withdraw(&mut self) {
        let waits =
            |sent: &Sent| sent.due_ms.is_some() && sent.half.is_none() && sent.promised && sent.withdrawn.is_none();
        let ids: Vec<usize> = (0..self.sent.len()).filter(|id| waits(&self.sent[*id])).collect();
        if ids.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = ids[self.random.below(ids.len() as u64) as usize] as u64;
        let Ok(found) =
            self.partition.find_delayed(recall_key(id), &|message| id_of(message) == id, &mut DelayedSearch::default())
        else {
            return;
        };
        let Some(byte) = found else { return };
        let ticket = Ticket(self.tickets);
        if let Err(error) = self.partition.withdraw(byte, Some(ticket), self.sim.now_ms()) {
            return self.refused(error);
        }
        self.sent[id as usize].withdrawn = Some((ticket, false));
        self.answers.push_back((ticket, Answer::Withdrawn(id)));
        self.tickets += 1;
    }

    pub fn submitted(&mut self, queue: QueueKey, length: usize, due_ms: Option<u64>, stored: Stored) {
        let batch = self.tickets;
        let sent = Sent {
            queue,
            length,
            offsets: 1,
            due_ms,
            batch,
            stored,
            withdrawn: None,
            half: None,
            place: None,
            promised: false,
            gone: false,
        };
        self.sent.push(sent);
    }

    pub fn refused(&mut self, error: AppendError) {
        match error {
            AppendError::TooLarge { .. } => panic!("nothing here is too large: {error}"),
            AppendError::Busy => {}
            AppendError::Full => assert!(self.plan.space.is_some() || self.plan.faults.name > 0, "the disk has room"),
            AppendError::Opening | AppendError::Closed(_) => {
                assert!(self.may_fail(), "nothing failed: {error}");
            }
        }
    }

    pub fn put(&mut self) {
        let key = self.random.below(FACTS);
        let history = self.facts.entry(key).or_default();
        let version = history.values.back().map_or(0, |newest| newest.number) + 1;
        let mut value = (key << 32 | version).to_be_bytes().to_vec();
        let most = if self.plan.steady { 200_000 } else { 3000 };
        value.resize(8 + self.random.below(most) as usize, 7);
        let value = (!self.random.chance(200)).then_some(value);
        let ticket = Ticket(self.tickets);
        let result = self.partition.put(&[(&fact_key(b'p', key), value.as_deref())], Some(ticket), self.sim.now_ms());
        if let Err(error) = result {
            return self.refused(error);
        }
        assert_eq!(self.partition.fact(&fact_key(b'p', key)), value.as_deref(), "a fact is readable at once");
        let newest = Version { number: version, ticket: Some(self.tickets), value };
        history_of(&mut self.facts, key).values.push_back(newest);
        self.answers.push_back((ticket, Answer::Fact { key, version }));
        self.tickets += 1;
    }

    pub fn note(&mut self) {
        let key = self.random.below(FACTS);
        let value = self.notes.get(&key).map_or(0, |(_, newest)| *newest) + 1;
        if self.partition.note(&fact_key(b'n', key), &value.to_be_bytes()) {
            self.notes.entry(key).or_insert((0, 0)).1 = value;
        }
    }

    pub fn forget(&mut self) {
        let index = self.random.below(self.topics.len() as u64) as usize;
        self.topics[index] = self.topic_next;
        self.topic_next += 1;
        let topics = self.topics.clone();
        self.partition.retain_topics(&|topic| topics.contains(&topic));
    }

    pub fn pull_some(&mut self) {
        let queue = self.queue();
        let span = self.partition.span(queue);
        let offset = span.min + self.random.below(span.max - span.min + 1);
        let limits = PullLimits { messages: 1 + self.random.below(8) as u32, bytes: 300_000, scan: 20 };
        let tag = self.random.below(3) as i64;
        let (pull, now) = self.partition.pull(queue, offset, limits, &|hash| hash == tag);
        match pull {
            Pull::Found { messages, next } => {
                assert!(next > offset && next <= span.max && messages.len() <= limits.messages as usize);
                let (mut behind, mut taken) = (0, 0);
                for message in &messages {
                    assert_eq!(i64::from(message[31] % 3), tag, "a filter lets through what it wants");
                    let offsets = self.saw(message, queue, None);
                    assert!(
                        offsets.start >= behind && offsets.end > offset,
                        "{offsets:?} at {offset}, behind {behind}"
                    );
                    taken += offsets.end - offsets.start.max(offset);
                    behind = offsets.end;
                }
                assert!(next >= behind, "{next} is in the middle of what was given, up to {behind}");
                assert!(messages.len() == 1 || taken <= u64::from(limits.messages), "{taken} of {limits:?}");
            }
            Pull::NoMatch { next } => assert!(next > offset && next <= span.max),
            Pull::Empty => assert_eq!(offset, span.max),
            Pull::Loading(_) => {}
            Pull::Opening => assert!(!self.partition.is_open()),
            // Retention took it, and the span did not know yet.
            Pull::OutOfRange if offset < now.min => {
                assert!(self.plan.retires(), "nothing is retired");
            }
            other => panic!("{other:?} at {offset} in {span:?}, now {now:?}"),
        }
    }

    /// Whoever asks while it opens is not shown what a power cut may still take back.
    pub fn follow_all(&mut self) {
        for topic in self.topics.clone() {
            (0..QUEUES as u32).for_each(|queue| self.follow(QueueKey { topic, queue }));
        }
    }

    /// Takes the new messages of a queue as its consumer would: from memory, mostly.
    pub fn follow(&mut self, queue: QueueKey) {
        let limits = PullLimits { messages: 32, bytes: MIB as u32, scan: 1000 };
        loop {
            let offset = self.cursors.get(&queue).copied().unwrap_or(0);
            let (pull, span) = self.partition.pull(queue, offset, limits, &|_| true);
            // A span that was shown is a promise too.
            let taken = self.taken.entry(queue).or_default();
            *taken = (*taken).max(span.max);
            let next = match (pull, span) {
                (Pull::Found { messages, next }, _) => {
                    let behind =
                        messages.iter().fold(offset, |offset, message| self.saw(message, queue, Some(offset)).end);
                    assert_eq!(next, behind, "all are wanted");
                    next
                }
                (Pull::OutOfRange, span) if offset != span.min => span.min,
                (Pull::Empty | Pull::Loading(_) | Pull::Opening | Pull::OutOfRange, _) => return,
                other => panic!("{other:?} in {queue:?} at {offset}"),
            };
            self.cursors.insert(queue, next);
        }
    }

    pub fn get_some(&mut self) {
        if self.sent.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = self.random.below(self.sent.len() as u64);
        let sent = self.sent[id as usize].clone();
        let nudge = if self.random.chance(200) { self.random.below(64) } else { 0 };
        let position = Position(sent.stored.position.0 + nudge);
        match self.partition.get(position) {
            Ok(Some(message)) => {
                let other = id_of(&message);
                let queue = self.sent.get(other as usize).map_or(sent.queue, |other| other.queue);
                self.saw(&message, queue, None);
                // Of a forgotten topic nobody knows what a power cut took.
                let here = sent.promised && sent.due_ms.is_none() && !sent.gone;
                let here = here && self.topics.contains(&sent.queue.topic);
                assert!(other == id || !here, "{other} is in place of {sent:?}");
                assert!(other != id || !sent.gone, "{id} came back from the dead: {sent:?}");
            }
            Ok(None) => {
                let known = sent.promised && nudge == 0 && sent.due_ms.is_none();
                let there = position.byte() >= self.partition.stats().floor && self.topics.contains(&sent.queue.topic);
                assert!(!known || !there || sent.gone || !self.partition.is_open(), "{id} is missing: {sent:?}");
            }
            Err(_) => {}
        }
        let place = sent.place.filter(|(_, position)| {
            position.byte() >= self.partition.stats().floor && self.topics.contains(&sent.queue.topic) && !sent.gone
        });
        if let Some((_, position)) = place {
            let mut search = KeySearch::new(key_hash(id), 10_000, (0, u64::MAX));
            if self.partition.find(&mut search).is_ok() {
                let found: Vec<Position> = search.found.iter().map(|byte| self.partition.position(*byte)).collect();
                let is_newest_first = search.found.windows(2).all(|pair| pair[0] > pair[1]);
                let is_there = found.contains(&position) || !self.partition.is_open();
                assert!(is_there && is_newest_first, "message {id} is not found by its key: {sent:?} {found:?}");
                assert!(!search.is_partial, "the log is whole: any run can be made again");
            }
        }
    }
}
