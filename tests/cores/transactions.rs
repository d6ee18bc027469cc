//! Producers of half messages: they decide, forget, are asked and answer, or never do.

use std::collections::BTreeSet;

use protocol::codes::{request, response};
use protocol::headers::{CheckTransaction, EndTransaction};
use protocol::ids::OffsetId;
use protocol::names::{TRANS_CHECK_MAX_TIME_TOPIC, sys_flag};
use protocol::{Command, properties};
use tests::words;

use crate::clients::{Asked, GROUPS};
use crate::model::{QUEUES, TAGS};
use crate::world::{TOPICS, World};

/// When producers of these brokers are asked first, and how long after that again. Milliseconds.
pub const TIMEOUT_MS: u64 = 2_000;
pub const INTERVAL_MS: u64 = 1_500;
/// How often, before a half message is given up.
pub const CHECKS_MAX: u32 = 3;
/// Within so many ms after the first question nothing is undecided any more: each may be put off by a second when the
/// log takes nothing.
const DECIDED_MS: u64 = TIMEOUT_MS + (CHECKS_MAX as u64 + 1) * (INTERVAL_MS + 1_000);

/// A half message as its producer knows it.
struct Known<'a> {
    position: i64,
    offset: i64,
    unique: &'a str,
    is_asked: bool,
}

impl World {
    pub fn send_half(&mut self, index: usize) {
        let (topic, queue) = (self.random.below(TOPICS as u64) as usize, self.random.below(QUEUES.into()) as u32);
        let length = self.length();
        let id = self.model.prepare(topic, queue, length);
        self.send_half_of(index, id);
    }

    fn send_half_of(&mut self, index: usize, id: usize) {
        let sent = &self.model.sent[id];
        let (name, queue) = (self.model.topics[sent.topic].name.clone(), sent.queue.expect("it says where"));
        let (tag, unique) = (TAGS[id % TAGS.len()], format!("half-{id}"));
        let pairs = [("TAGS", tag), ("TRAN_MSG", "true"), ("PGROUP", "producers"), ("UNIQ_KEY", &*unique)];
        let mut text = String::new();
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            properties::append(&mut text, name, value);
        }
        let command = words::send_as(request::SEND_MESSAGE_V2, &name, queue.cast_signed(), &text, &self.model.body(id));
        self.write(index, command, Asked::Half { id });
    }

    /// A half message is there: its producer decides, or forgets it.
    pub fn decide(&mut self, index: usize, id: usize, answer: &Command) {
        self.model.promised(id, None);
        if self.random.chance(150) || self.model.half(id).is_silent {
            return;
        }
        let place = OffsetId::parse(words::field(answer, "msgId")).expect("an id of a message");
        let unique = words::field(answer, "transactionId");
        let offset = words::number(answer, "queueOffset");
        let known = Known { position: place.offset, offset, unique, is_asked: false };
        // Twice is once.
        for _ in 0..1 + self.random.below(2) {
            self.settle(index, id, &known);
        }
    }

    /// A producer is asked what became of a half message.
    pub fn is_asked(&mut self, index: usize, question: &Command) {
        let check = CheckTransaction::parse(&question.header.fields).expect("the broker writes headers");
        let messages = words::messages(question);
        let [message] = &*messages else { panic!("a question is about one message: {question:?}") };
        let id = self.model.recognize(message);
        let since_ms = self.now_ms() - message.store_timestamp.cast_unsigned();
        assert!(since_ms >= TIMEOUT_MS, "message {id} is asked about after {since_ms} ms");
        let times = message.property("TRANSACTION_CHECK_TIMES").and_then(|text| text.parse().ok());
        assert!(
            times.is_some_and(|times: u32| (1..=CHECKS_MAX).contains(&times)),
            "{id} is asked about {times:?} times"
        );
        let half = self.model.half(id);
        half.checks += 1;
        if half.is_silent || self.random.chance(300) {
            return;
        }
        let unique = check.msg_id.expect("it says which");
        let (position, offset) = (check.commit_log_offset, check.tran_state_table_offset);
        self.settle(index, id, &Known { position, offset, unique, is_asked: true });
    }

    /// Says what became of it: the same each time.
    fn settle(&mut self, index: usize, id: usize, known: &Known<'_>) {
        let draw = self.random.chance(650);
        let commit = *self.model.half(id).mind.get_or_insert(draw);
        if commit {
            self.model.commits(id);
        }
        let header = EndTransaction {
            producer_group: "producers",
            tran_state_table_offset: known.offset,
            commit_log_offset: known.position,
            commit_or_rollback: if commit { sys_flag::TRANSACTION_COMMIT } else { sys_flag::TRANSACTION_ROLLBACK },
            from_transaction_check: known.is_asked,
            msg_id: known.unique,
            ..EndTransaction::default()
        };
        let mut command = Command::request(request::END_TRANSACTION);
        header.push(&mut command.header.fields);
        self.write(index, command, Asked::Decide { id, commit });
    }

    /// One whose producer is there and never says anything is asked as often as it may be. Then nothing is undecided.
    pub fn be_asked(&mut self) {
        self.expect(&words::heartbeat("client-0", GROUPS[0], &["topic-0"]));
        let command = self.creation(0);
        self.expect(&command);
        self.model.created(0);
        let id = self.model.prepare(0, 0, 100);
        self.model.half(id).is_silent = true;
        self.send_half_of(0, id);
        while !self.model.is_promised(id) {
            self.turn();
            let stays = self.clients[0].waiting.values().any(|asked| matches!(asked, Asked::Half { .. }));
            if !stays && !self.model.is_promised(id) {
                self.send_half_of(0, id);
            }
        }
        let until_ms = self.now_ms() + DECIDED_MS;
        while self.halves() > 0 {
            self.turn();
            assert!(self.now_ms() < until_ms, "{} half messages are undecided for too long", self.halves());
        }
        let checks = self.model.half(id).checks;
        assert_eq!(checks, CHECKS_MAX, "how often the producer of {id} was asked");
    }

    fn halves(&self) -> u64 {
        self.all_stats().map(|stats| stats.halves).sum()
    }

    /// Half messages that nobody decided are where an operator finds them, once each.
    pub fn audit_halves(&mut self) {
        let mut found = BTreeSet::new();
        for queue in 0..self.partitions() {
            let mut offset = 0;
            loop {
                let answer = self.ask(&words::pull(TRANS_CHECK_MAX_TIME_TOPIC, queue.into(), offset));
                match answer.header.code {
                    response::SUCCESS => {}
                    response::PULL_OFFSET_MOVED if offset == 0 => {}
                    response::PULL_NOT_FOUND => break,
                    _ => panic!("{answer:?}"),
                }
                for message in words::messages(&answer) {
                    let id = self.model.recognize(&message);
                    assert!(found.insert(id), "message {id} was given up twice");
                }
                offset = words::number(&answer, "nextBeginOffset");
            }
        }
        let is_whole = self.plan.retain.is_none() && self.plan.space.is_none();
        self.model.audit_halves(&found, is_whole);
    }
}
