//! Consumers that pop: what they ask, what they keep and forget, and how they answer for what they were given.

use std::collections::BTreeSet;

use engine::sim::Faults;
use protocol::bodies::{self, BatchAck, BatchAcks, BitSet};
use protocol::codes::{request, response};
use protocol::headers::{AckMessage, ChangeInvisibleTime, Notification, PopMessage};
use protocol::{Command, names};
use tests::words;

use crate::clients::Asked;
use crate::loans::Source;
use crate::model::{Glimpse, QUEUES, TAGS};
use crate::world::{TOPICS, World};

/// The group that pops.
pub const POPPERS: &str = "poppers";
/// For how long messages are lent, in ms. The last one is what the end of a run waits for.
const INVISIBLE_MS: [u64; 3] = [400, 3_000, LOAN_MS_MAX];
/// The longest of them.
pub const LOAN_MS_MAX: u64 = 10_000;
/// Longer than anything lasts.
const LONG_MS: i64 = 600_000;
/// What one client keeps of what it was given.
const HELD_MAX: usize = 100;
/// Times that a group asks for what is left, at the end.
const ROUNDS_MAX: usize = 20;
/// A handle's time before all times.
const NEVER_MS: i64 = 1_600_000_000_000;

/// What the group of a run is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It takes everything.
    Plain,
    /// It wants one tag.
    Tagged,
    /// It keeps the order of each queue.
    Orderly,
}

/// A message that a client was given, and its handle.
#[derive(Clone, Debug)]
pub struct Held {
    /// The number of the gift.
    pub number: usize,
    source: Source,
    /// The topic that was asked for.
    topic: String,
    handle: String,
}

impl Manner {
    /// The group of a run, by its seed; some runs have none.
    pub fn of(seed: u64) -> Option<Manner> {
        [None, Some(Manner::Plain), Some(Manner::Tagged), Some(Manner::Orderly), Some(Manner::Plain)][seed as usize % 5]
    }

    /// Whether it wants a message.
    fn wants(self, id: usize) -> bool {
        self != Manner::Tagged || TAGS[id % TAGS.len()] == TAGS[0]
    }
}

/// What they do.
impl World {
    /// A client of the group does something.
    pub fn act_as_popper(&mut self, manner: Manner, index: usize) {
        match self.random.below(100) {
            0..40 => self.pop(manner, index),
            40..70 => self.ack(index),
            70..80 => self.ack_many(index),
            80..92 => self.change(manner, index),
            92..94 => self.forge(index),
            94..97 => self.notice(index),
            // It dies, and what it had is nobody's.
            _ => self.clients[index].held.clear(),
        }
    }

    fn pop(&mut self, manner: Manner, index: usize) {
        let topic = self.random.below(TOPICS as u64) as usize;
        let queue = if self.random.chance(600) { -1 } else { self.random.below(QUEUES.into()) as i32 };
        let count = 1 + self.random.below(32) as i32;
        let invisible_ms = INVISIBLE_MS[self.random.below(3) as usize];
        let poll_ms = [0, 0, 500, 5_000][self.random.below(4) as usize];
        let mut attempt = None;
        if manner == Manner::Orderly && self.random.chance(500) {
            let client = &mut self.clients[index];
            if self.random.chance(300) {
                self.loans.repeat(&attempt_of(index, client.attempts));
            } else {
                client.attempts += 1;
            }
            attempt = Some(attempt_of(index, client.attempts));
        }
        self.pop_as(manner, index, topic, queue, (count, invisible_ms, poll_ms), attempt);
    }

    fn pop_as(
        &mut self,
        manner: Manner,
        index: usize,
        topic: usize,
        queue: i32,
        (count, invisible_ms, poll_ms): (i32, u64, i64),
        attempt: Option<String>,
    ) -> i32 {
        let name = self.model.topics[topic].name.clone();
        let header = PopMessage {
            consumer_group: POPPERS,
            topic: &name,
            queue_id: queue,
            max_msg_nums: count,
            invisible_time: invisible_ms.cast_signed(),
            poll_time: poll_ms,
            expression_type: (manner == Manner::Tagged).then_some("TAG"),
            expression: (manner == Manner::Tagged).then_some(TAGS[0]),
            order: manner == Manner::Orderly,
            attempt_id: attempt.as_deref(),
            ..PopMessage::default()
        };
        let mut command = Command::request(request::POP_MESSAGE);
        header.push(&mut command.header.fields);
        let then = self.model.glimpse(topic);
        self.write(index, command, Asked::Pop { topic, attempt, then })
    }

    /// One of those that a client has, perhaps for ever.
    fn held(&mut self, index: usize) -> Option<Held> {
        let stays = self.random.chance(100);
        let held = &mut self.clients[index].held;
        let at = self.random.below(held.len().max(1) as u64) as usize;
        let one = held.get(at)?.clone();
        if !stays {
            held.swap_remove(at);
        }
        Some(one)
    }

    fn ack(&mut self, index: usize) {
        let Some(held) = self.held(index) else { return };
        self.ack_as(index, &held);
    }

    fn ack_as(&mut self, index: usize, held: &Held) {
        self.loans.ask(held.number);
        let command = ack_of(&held.source, &held.handle);
        self.write(index, command, Asked::Ack { number: held.number });
    }

    /// Everything that a client has of one loan, or of a few, in one request.
    fn ack_many(&mut self, index: usize) {
        let count = 1 + self.random.below(3) as usize;
        let mut loans: Vec<String> = Vec::new();
        let held = &mut self.clients[index].held;
        let some: Vec<Held> = held
            .extract_if(.., |held| {
                let loan = loan_of(held);
                if loans.len() < count && !loans.contains(&loan) {
                    loans.push(loan.clone());
                }
                loans.contains(&loan)
            })
            .collect();
        self.ack_all(index, &some);
    }

    fn ack_all(&mut self, index: usize, some: &[Held]) {
        let mut acks: Vec<(String, BatchAck)> = Vec::new();
        for held in some {
            self.loans.ask(held.number);
            let loan = loan_of(held);
            let words: Vec<&str> = held.handle.split(' ').collect();
            let number = |at: usize| words[at].parse::<i64>().expect("a number");
            let distance = usize::try_from(held.source.offset - number(0)).expect("it is behind the first");
            if let Some((_, ack)) = acks.iter_mut().find(|(other, _)| *other == loan) {
                let mut bits: BTreeSet<usize> =
                    (0..8 * ack.bits.0.len()).filter(|bit| ack.bits.get(*bit as u64)).collect();
                bits.insert(distance);
                ack.bits = BitSet::of(bits);
                continue;
            }
            let ack = BatchAck {
                bits: BitSet::of([distance]),
                consumer_group: POPPERS.to_owned(),
                invisible_time: number(2),
                pop_time: number(1),
                queue_id: held.source.queue,
                retry: words[4].to_owned(),
                revive_queue_id: number(3) as i32,
                start_offset: number(0),
                topic: held.topic.clone(),
            };
            acks.push((loan, ack));
        }
        if acks.is_empty() {
            return;
        }
        let acks = acks.into_iter().map(|(_, ack)| ack).collect();
        let body = bodies::encode(&BatchAcks { acks, broker_name: "broker-a".to_owned() });
        let numbers = some.iter().map(|held| held.number).collect();
        self.write(index, words::telling(request::BATCH_ACK_MESSAGE, &[], body), Asked::Acks { numbers });
    }

    /// A message shall come again at another time.
    fn change(&mut self, manner: Manner, index: usize) {
        let Some(held) = self.held(index) else { return };
        let invisible_ms = self.random.below(4_000);
        let suspend = self.random.chance(300);
        let until_ms = self.now_ms() + invisible_ms;
        let is_orderly = manner == Manner::Orderly;
        self.loans.ask_change(held.number, until_ms, is_orderly);
        let mut command = Command::request(request::CHANGE_MESSAGE_INVISIBLETIME);
        ChangeInvisibleTime {
            consumer_group: POPPERS,
            topic: &held.source.topic,
            queue_id: held.source.queue,
            extra_info: &held.handle,
            offset: held.source.offset,
            invisible_time: invisible_ms.cast_signed(),
            suspend,
        }
        .push(&mut command.header.fields);
        self.write(index, command, Asked::Change { held, until_ms, is_orderly });
    }

    /// A handle that no broker gave to anybody, for what was lent in this life: it means nothing.
    fn forge(&mut self, index: usize) {
        let Some(held) = self.held(index).filter(|held| self.loans.is_recent(held.number)) else { return };
        let mut words: Vec<String> = held.handle.split(' ').map(str::to_owned).collect();
        match self.random.below(3) {
            0 => words[1] = NEVER_MS.to_string(),
            1 => words[5] = "broker-b".to_owned(),
            _ => words.truncate(self.random.below(6) as usize),
        }
        let command = ack_of(&held.source, &words.join(" "));
        self.write(index, command, Asked::Any);
    }

    fn notice(&mut self, index: usize) {
        let topic = self.random.below(TOPICS as u64) as usize;
        let poll_ms = self.random.below(2_000).cast_signed();
        self.notice_as(index, topic, poll_ms);
    }

    fn notice_as(&mut self, index: usize, topic: usize, poll_time: i64) -> i32 {
        let name = self.model.topics[topic].name.clone();
        let asked =
            Notification { consumer_group: POPPERS, topic: &name, queue_id: -1, poll_time, ..Notification::default() };
        let mut command = Command::request(request::NOTIFICATION);
        asked.push(&mut command.header.fields);
        self.write(index, command, Asked::Any)
    }
}

/// What they make of the answers.
impl World {
    pub fn popped(&mut self, index: usize, topic: usize, attempt: Option<String>, then: Glimpse, answer: &Command) {
        let manner = self.manner.expect("somebody popped");
        if answer.header.code != response::SUCCESS {
            assert_eq!(answer.body.len(), 0, "{answer:?}");
            return;
        }
        let (pop_ms, invisible_ms) = (words::number(answer, "popTime"), words::number(answer, "invisibleTime"));
        let times = (pop_ms.cast_unsigned(), (pop_ms + invisible_ms).cast_unsigned());
        let name = self.model.topics[topic].name.clone();
        let mut last: Option<Source> = None;
        let mut numbers = Vec::new();
        for (message, handle) in words::messages(answer).into_iter().zip(words::handles(answer)) {
            let kind = handle.split(' ').nth(4).expect("a handle has eight words");
            let mut from = name.clone();
            if kind == "0" {
                self.model.saw(topic, &message, then);
                self.check_shown(engine::format::Position(message.physical_offset.cast_unsigned()));
            } else {
                from.clear();
                names::pop_retry_topic(&mut from, POPPERS, &name, kind == "2");
            }
            let id = self.model.recognize(&message);
            assert!(manner.wants(id), "message {id} is none that this group wants");
            let source = Source { topic: from, queue: message.queue_id, offset: message.queue_offset };
            if let Some(last) = last.filter(|last| (&last.topic, last.queue) == (&source.topic, source.queue)) {
                assert!(last.offset < source.offset, "a pop is not in order: {last:?}, {source:?}");
            } else if manner == Manner::Orderly {
                self.in_order(topic, std::mem::take(&mut numbers), then);
            }
            last = Some(source.clone());
            let number = self.loans.give(id, source.clone(), times, attempt.clone());
            numbers.push(number);
            let held = &mut self.clients[index].held;
            if held.len() < HELD_MAX {
                held.push(Held { number, source, topic: name.clone(), handle });
            }
        }
        if manner == Manner::Orderly {
            self.in_order(topic, numbers, then);
        }
    }

    fn in_order(&mut self, topic: usize, numbers: Vec<usize>, then: Glimpse) {
        let Some(first) = numbers.first() else { return };
        let queue = self.loans.of(*first).source.queue.cast_unsigned();
        // What retention or a power cut took from the queue nobody is done with.
        let is_whole = self.plan.retain.is_none() && self.plan.space.is_none() && !self.was_lossy;
        if !self.model.is_same(topic, then) {
            return;
        }
        let Self { model, loans, .. } = self;
        loans.give_in_order(&numbers, model.topics[topic].life, &|offset| {
            model.id_at(topic, queue, offset.cast_unsigned()).filter(|_| is_whole)
        });
    }

    pub fn changed(&mut self, index: usize, held: Held, until_ms: u64, is_orderly: bool, answer: &Command) {
        if answer.header.code != response::SUCCESS {
            return;
        }
        let pop_ms = words::number(answer, "popTime");
        let times = (pop_ms.cast_unsigned(), until_ms);
        let number = self.loans.changed(held.number, times, is_orderly, self.now_ms());
        // As the Java client makes it. The one that an orderly message had is good, too.
        let mut handle = held.handle.clone();
        if !is_orderly || self.random.chance(500) {
            let (offset, invisible) = (held.source.offset, words::number(answer, "invisibleTime"));
            let rest: Vec<&str> = held.handle.split(' ').skip(3).collect();
            handle = format!("{offset} {pop_ms} {invisible} {}", rest.join(" "));
        }
        self.clients[index].held.push(Held { number, handle, ..held });
    }
}

/// A stop.
impl World {
    /// Messages come again while the broker is asked to stop: in the next life each of them is there, and once.
    pub fn stop_while_they_come_again(mut self) {
        // As many as a group may have of the one retry queue.
        const COUNT: usize = 32;
        self.manner = Some(Manner::Plain);
        self.start(Faults::default());
        self.calm = true;
        self.make_group();
        self.expect(&words::create_topic("topic-0", QUEUES));
        self.model.created(0);
        for _ in 0..COUNT {
            let queue = self.random.below(QUEUES.into()) as u32;
            self.send_small(queue);
            self.get_answers();
        }
        let popped = self.pop_what_is_there(INVISIBLE_MS[0]);
        assert_eq!(popped.len(), COUNT);
        self.sim.borrow_mut().advance(INVISIBLE_MS[0]);
        for _ in 0..self.random.below(60) {
            self.turn();
        }
        self.stop();
        self.die();
        self.start(Faults::default());
        self.calm = true;
        let mut ids: Vec<usize> = Vec::new();
        for _ in 0..ROUNDS_MAX {
            ids.extend(self.pop_what_is_there(LONG_MS.cast_unsigned()));
            if ids.len() >= COUNT {
                break;
            }
            // What did not come again yet is on loan still, and does when it is looked at.
            let from_ms = self.now_ms();
            while self.now_ms() < from_ms + 1_500 {
                self.turn();
            }
        }
        ids.sort_unstable();
        let twice: Vec<usize> = ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        assert!(twice.is_empty(), "messages {twice:?} come twice, although the broker stopped in order");
        assert_eq!(ids.len(), COUNT);
    }

    /// The first client gets all answers.
    fn get_answers(&mut self) {
        while !self.clients[0].waiting.is_empty() {
            self.turn();
        }
    }

    /// What the first client pops of the first topic until nothing comes any more.
    fn pop_what_is_there(&mut self, invisible_ms: u64) -> Vec<usize> {
        let mut ids = Vec::new();
        let mut idle = 0;
        while idle < 3 {
            self.pop_as(Manner::Plain, 0, 0, -1, (32, invisible_ms, 0), None);
            self.get_answers();
            let held = std::mem::take(&mut self.clients[0].held);
            idle = if held.is_empty() { idle + 1 } else { 0 };
            ids.extend(held.iter().map(|held| self.loans.of(held.number).id));
        }
        ids
    }
}

/// The end.
impl World {
    /// The group of this run is there, and would give up at once, if that were for the broker to do.
    pub fn make_group(&mut self) {
        let body = format!(r#"{{"groupName":"{POPPERS}","retryMaxTimes":0}}"#);
        self.expect(&words::telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], body));
    }

    /// The group takes everything there is and is done with it: of what was `found` in the topics nothing is missing.
    pub fn drain(&mut self, mut manner: Manner, found: &BTreeSet<usize>) {
        self.calm = true;
        if manner == Manner::Orderly && self.random.chance(500) {
            // From now on it keeps no order: what it had in order comes to it all the same.
            manner = Manner::Plain;
            self.manner = Some(manner);
        }
        self.clients.iter_mut().for_each(|client| client.held.clear());
        // Much of it comes in vain once more, without a restart that makes everything new.
        self.drain_once(manner, true);
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            // Whatever anybody has is nobody's then.
            self.sim.borrow_mut().advance(LOAN_MS_MAX + 1_000);
            let from_ms = self.now_ms();
            while self.now_ms() < from_ms + 1_500 {
                self.turn();
            }
            quiet = if self.drain_once(manner, false) { 0 } else { quiet + 1 };
            if quiet == 2 {
                break;
            }
        }
        assert_eq!(quiet, 2, "messages come again and again although all of them are acknowledged");
        let letters = self.ask(&words::pull(&names::dlq_topic(POPPERS), 0, 0));
        assert_eq!(letters.header.code, response::TOPIC_NOT_EXIST, "nobody gave a message up: {letters:?}");
        // What retention took, and what was written again for a group and lost, nobody was given.
        if self.plan.retain.is_some() || self.plan.space.is_some() || self.was_lossy {
            return;
        }
        let found: BTreeSet<usize> = found.iter().copied().filter(|id| manner.wants(*id)).collect();
        self.loans.check(&found);
    }

    /// Whether there was something. `forgets`: for a short time, and half of it is not acknowledged.
    fn drain_once(&mut self, manner: Manner, forgets: bool) -> bool {
        let invisible_ms = if forgets { INVISIBLE_MS[1] } else { LONG_MS.cast_unsigned() };
        let mut any = false;
        for topic in 0..TOPICS {
            loop {
                let opaque = self.pop_as(manner, 0, topic, -1, (32, invisible_ms, 0), None);
                while self.clients[0].waiting.contains_key(&opaque) {
                    self.turn();
                }
                let mut held = std::mem::take(&mut self.clients[0].held);
                if held.is_empty() {
                    break;
                }
                any = true;
                held.retain(|_| !forgets || self.random.chance(500));
                self.ack_all(0, &held);
                while !self.clients[0].waiting.is_empty() {
                    self.turn();
                }
            }
        }
        any
    }

    /// Messages go to pops that wait, one to each, and that takes no longer than it must.
    pub fn be_prompt_to_poppers(&mut self, manner: Manner) {
        self.expect(&words::create_topic("topic-0", QUEUES));
        self.model.created(0);
        let reader = self.clients.len() - 1;
        let one = (1, LONG_MS.cast_unsigned(), 30_000);
        let mut opaques = [(); 2].map(|()| self.pop_as(manner, reader, 0, -1, one, None)).to_vec();
        (0..100).for_each(|_| self.turn());
        // They may lie on other cores than the pops wait on. In order, a queue is lent to one at a time.
        let first = self.random.below(QUEUES.into()) as u32;
        let apart = u32::from(manner == Manner::Orderly);
        let second = first + apart + self.random.below(u64::from(QUEUES - apart)) as u32;
        self.send_wanted(manner, first);
        // Who waits is told whether the first one that did has its message already or not.
        if self.random.chance(500) {
            self.await_one_of(&mut opaques, reader, "pop");
        }
        self.send_wanted(manner, second % QUEUES);
        while !opaques.is_empty() {
            self.await_one_of(&mut opaques, reader, "pop");
        }
        let held = std::mem::take(&mut self.clients[reader].held);
        assert_eq!(held.len(), 2, "each has one");
        self.ack_all(reader, &held);
        while !self.clients[reader].waiting.is_empty() {
            self.turn();
        }
        // The same for those who only want to know.
        let mut opaques = [(); 2].map(|()| self.notice_as(reader, 0, 30_000)).to_vec();
        (0..100).for_each(|_| self.turn());
        while !opaques.is_empty() {
            let queue = self.random.below(QUEUES.into()) as u32;
            self.send_wanted(manner, queue);
            self.await_one_of(&mut opaques, reader, "notification");
        }
    }

    /// A message in a queue of the first topic that the group takes.
    fn send_wanted(&mut self, manner: Manner, queue: u32) {
        while !manner.wants(self.send_small(queue).0) {}
    }

    /// Waits until one more of these is answered.
    fn await_one_of(&mut self, opaques: &mut Vec<i32>, reader: usize, what: &str) {
        let before_ms = self.now_ms();
        loop {
            let waiting = &self.clients[reader].waiting;
            if let Some(at) = opaques.iter().position(|opaque| !waiting.contains_key(opaque)) {
                opaques.swap_remove(at);
                return;
            }
            self.turn();
            let took_ms = self.now_ms() - before_ms;
            assert!(
                took_ms <= crate::world::PROMPT_MS,
                "a message takes more than {took_ms} ms to a {what} that waits"
            );
        }
    }
}

fn attempt_of(index: usize, number: u32) -> String {
    format!("attempt-{index}-{number}")
}

/// What a batch names a loan by.
fn loan_of(held: &Held) -> String {
    let words: Vec<&str> = held.handle.split(' ').take(2).collect();
    format!("{} {} {}", held.source.topic, held.source.queue, words.join(" "))
}

fn ack_of(source: &Source, handle: &str) -> Command {
    let mut command = Command::request(request::ACK_MESSAGE);
    AckMessage {
        consumer_group: POPPERS,
        topic: &source.topic,
        queue_id: source.queue,
        extra_info: handle,
        offset: source.offset,
    }
    .push(&mut command.header.fields);
    command
}
