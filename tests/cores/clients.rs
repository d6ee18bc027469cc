//! The clients of a simulated broker: what they ask, how they break, and what they make of the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use engine::format::Position;
use engine::io::Handle;
use protocol::codes::{request, response};
use protocol::headers::{RecallMessage, SendBack};
use protocol::ids::OffsetId;
use protocol::names::pull_flag;
use protocol::{Command, Frames, Serialize};
use tests::words;

use crate::model::{BODY_BYTES_MIN, Glimpse, Place, QUEUES, SlotKey, TAGS};
use crate::pops::Held;
use crate::world::{TOPICS, World};

/// Consumer groups.
pub const GROUPS: [&str; 2] = ["group-0", "group-1"];
/// Milliseconds of the delay levels of these brokers.
const LEVELS_MS: [u64; 4] = [1_000, 2_000, 5_000, 20_000];
/// How often the audit asks a log that is closed.
const TRIES_MAX: usize = 300;
/// Turns within which the audit's questions are answered.
const TURNS_MAX: usize = 50_000;
/// Requests of one client that are not answered.
const WAITING_MAX: usize = 40;

/// What a request that is not answered was about.
#[derive(Clone, Debug)]
pub enum Asked {
    Send {
        ids: Range<usize>,
    },
    Half {
        id: usize,
    },
    Decide {
        id: usize,
        commit: bool,
    },
    Back {
        id: usize,
    },
    Recall {
        id: usize,
    },
    Pop {
        topic: usize,
        attempt: Option<String>,
        then: Glimpse,
    },
    /// Gifts that somebody is done with.
    Ack {
        number: usize,
    },
    Acks {
        numbers: Vec<usize>,
    },
    Change {
        held: Held,
        /// It comes again then, at the earliest.
        until_ms: u64,
        is_orderly: bool,
    },
    Pull {
        topic: usize,
        offset: u64,
        tag: Option<&'static str>,
        then: Glimpse,
    },
    View {
        id: usize,
        then: Glimpse,
    },
    Find {
        topic: usize,
        then: Glimpse,
    },
    End {
        topic: usize,
        queue: u32,
        /// What the end was known to be at least.
        least: u64,
        then: Glimpse,
    },
    Commit {
        slot: SlotKey,
        version: usize,
        value: u64,
        then: Glimpse,
    },
    Committed {
        slot: SlotKey,
        settled: usize,
        then: Glimpse,
        /// It was asked when nothing failed any more: an answer may be on its way for long.
        calm: bool,
    },
    Create {
        topic: usize,
    },
    Delete {
        topic: usize,
    },
    /// Whatever comes, it comes.
    Any,
    /// Somebody waits for the answer itself.
    Itself,
}

/// What reading a queue came across.
pub struct Scan {
    /// The offset behind the last message.
    pub end: u64,
    /// Messages that are said to be damaged.
    pub damaged: usize,
    /// Its log is closed.
    pub shut: bool,
}

/// One client and its connection.
#[derive(Debug)]
pub struct Client {
    number: usize,
    socket: Option<Handle>,
    serialize: Serialize,
    frames: Frames,
    opaque: i32,
    pub waiting: BTreeMap<i32, Asked>,
    answers: BTreeMap<i32, Command>,
    /// It hardly ever reads.
    pub slow: bool,
    /// It said what nobody understands: it may be hung up on.
    rude: bool,
    /// Where it reads on.
    cursors: BTreeMap<(usize, u32), u64>,
    /// What it popped and did not answer for.
    pub held: Vec<Held>,
    /// Its attempts to pop in order.
    pub attempts: u32,
}

impl Client {
    /// One that is not connected yet.
    pub fn new(number: usize, random: &mut engine::sim::Random) -> Client {
        Client {
            number,
            socket: None,
            serialize: if random.chance(500) { Serialize::Json } else { Serialize::RocketMq },
            frames: Frames::default(),
            opaque: 0,
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
            slow: false,
            rude: false,
            cursors: BTreeMap::new(),
            held: Vec::new(),
            attempts: 0,
        }
    }
}

/// Connections.
impl World {
    /// A connection is gone: what was asked through it may have been done or not, now or later.
    pub fn lose(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.socket, client.frames, client.slow, client.rude) = (None, Frames::default(), false, false);
        client.answers.clear();
        for asked in std::mem::take(&mut client.waiting).into_values() {
            match asked {
                Asked::Commit { slot, value, .. } => self.model.commit_late(slot, value),
                Asked::Create { topic } | Asked::Delete { topic } => self.model.unsettle(topic),
                _ => {}
            }
        }
    }

    fn connect(&mut self, index: usize) -> Handle {
        if let Some(socket) = self.clients[index].socket {
            return socket;
        }
        let socket = self.sim.borrow_mut().connect(self.listener);
        self.clients[index].socket = Some(socket);
        if self.random.chance(700) {
            self.beat(index);
        }
        socket
    }

    pub fn write(&mut self, index: usize, mut command: Command, asked: Asked) -> i32 {
        let socket = self.connect(index);
        let client = &mut self.clients[index];
        client.opaque += 1;
        (command.header.opaque, command.header.serialize) = (client.opaque, client.serialize);
        let opaque = client.opaque;
        self.tell(|| format!("client {index} asks {opaque}: {} {asked:?}", command.header.code));
        let client = &mut self.clients[index];
        if !command.header.is_oneway() {
            client.waiting.insert(client.opaque, asked);
        }
        self.sim.borrow_mut().send(socket, &command.encode());
        opaque
    }

    /// Takes what was sent to a client.
    pub fn read(&mut self, index: usize) {
        let Some(socket) = self.clients[index].socket else { return };
        let bytes_max = if self.calm { usize::MAX } else { 1 + self.random.below(40_000) as usize };
        let Some(bytes) = self.sim.borrow_mut().take(socket, bytes_max) else {
            let client = &self.clients[index];
            // One that took nothing for half a minute learns late that it was hung up on for that.
            let excused = !self.calm || client.rude || client.slow || client.waiting.is_empty();
            assert!(excused, "client {index} was hung up on, and waits for {:?}", client.waiting);
            return self.lose(index);
        };
        self.clients[index].frames.feed(&bytes);
        while let Some(frame) = self.clients[index].frames.cut().expect("the broker writes frames") {
            let answer = Command::decode(frame).expect("the broker writes commands");
            if !answer.header.is_response() {
                if answer.header.code == request::CHECK_TRANSACTION_STATE {
                    self.is_asked(index, &answer);
                }
                continue;
            }
            let client = &mut self.clients[index];
            let opaque = answer.header.opaque;
            let Some(asked) = client.waiting.remove(&opaque) else {
                assert!(client.rude, "client {index} did not ask for {answer:?}");
                continue;
            };
            self.note(answer.header.code.unsigned_abs().into());
            self.tell(|| format!("client {index} is answered {opaque}: {:?} to {asked:?}", answer.header));
            self.answered(index, asked, answer);
        }
    }

    /// Asks, and waits for the answer. Nothing else may be asked meanwhile.
    pub fn ask(&mut self, command: &Command) -> Command {
        for tries in 0..TURNS_MAX {
            let opaque = self.write(0, command.clone(), Asked::Itself);
            for _ in 0..TURNS_MAX {
                if let Some(answer) = self.clients[0].answers.remove(&opaque) {
                    // A log whose derived files have rotted closes, and makes them again, unless it has rotted too.
                    let again = self.rotten && answer.header.code == response::SERVICE_NOT_AVAILABLE;
                    if answer.header.code == response::SYSTEM_BUSY || again && tries < TRIES_MAX {
                        break;
                    }
                    return answer;
                }
                self.turn();
            }
        }
        panic!("no answer to {command:?}");
    }

    pub fn expect(&mut self, command: &Command) -> Command {
        let answer = self.ask(command);
        assert_eq!(answer.header.code, response::SUCCESS, "{command:?} was answered {answer:?}");
        answer
    }
}

/// What clients do.
impl World {
    /// The clients do something, or not.
    pub fn act(&mut self) {
        for _ in 0..self.random.below(4) {
            let index = self.random.below(self.clients.len() as u64) as usize;
            if self.clients[index].waiting.len() >= WAITING_MAX {
                continue;
            }
            // Who asks while a log is opened again is told nothing that is not safe.
            if self.random.chance(300) && !self.is_all_open() {
                let (topic, queue) = self.recent_queue();
                self.ask_end_of(index, topic, queue);
                continue;
            }
            if let Some(manner) = self.manner
                && self.random.chance(250)
            {
                self.act_as_popper(manner, index);
                continue;
            }
            match self.random.below(100) {
                0..26 => self.send(index, 1),
                26..30 => self.send_half(index),
                30..38 => {
                    let count = 1 + self.random.below(6) as usize;
                    self.send(index, count);
                }
                38..52 => self.pull(index),
                52..62 => self.commit(index),
                62..67 => self.ask_committed(index),
                67..71 => self.ask_end(index),
                71..75 => self.send_back(index),
                75..79 => self.view(index),
                79..81 => self.find(index),
                81..83 => self.beat(index),
                83..87 => self.change_topic(index),
                87..92 => self.ask_anything(index),
                92..94 => self.be_rude(index),
                94..96 => self.leave(index),
                96..98 => self.clients[index].slow = !self.clients[index].slow,
                _ => {
                    let ms = self.random.below(3_000);
                    self.sim.borrow_mut().advance(ms);
                }
            }
        }
    }

    fn topic(&mut self) -> usize {
        self.random.below(TOPICS as u64) as usize
    }

    fn name(&self, topic: usize) -> String {
        self.model.topics[topic].name.clone()
    }

    pub fn length(&mut self) -> usize {
        let most = match self.random.below(10) {
            _ if self.plan.large => 300_000,
            0 => 100_000,
            1..4 => 6_000,
            _ => 400,
        };
        BODY_BYTES_MIN + self.random.below(most) as usize
    }

    fn send(&mut self, index: usize, count: usize) {
        let (topic, queue) = (self.topic(), self.random.below(QUEUES.into()) as u32);
        let level = if count == 1 && self.random.chance(150) { 1 + self.random.below(4) as usize } else { 0 };
        // Others are due at a time of their own.
        let timer_ms = (count == 1 && level == 0 && self.random.chance(100)).then(|| 1 + self.random.below(9_000));
        let due_ms = level.checked_sub(1).map(|level| LEVELS_MS[level]).or(timer_ms).map(|ms| self.now_ms() + ms);
        let lengths: Vec<usize> = (0..count).map(|_| self.length()).collect();
        let first = self.model.send(topic, queue, &lengths, due_ms);
        let name = self.name(topic);
        let text = |id: usize| {
            let mut text = String::new();
            let tag = TAGS[id % TAGS.len()];
            let delay = level.to_string();
            let timer = timer_ms.map_or(String::new(), |ms| ms.to_string());
            let delay = if level > 0 { &*delay } else { "" };
            let pairs = [("TAGS", tag), ("KEYS", &*key_of(id)), ("DELAY", delay), ("TIMER_DELAY_MS", &timer)];
            for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
                protocol::properties::append(&mut text, name, value);
            }
            text
        };
        let queue = i32::try_from(queue).expect("there are four");
        let command = if count == 1 {
            let code = if self.random.chance(300) { request::SEND_MESSAGE } else { request::SEND_MESSAGE_V2 };
            words::send_as(code, &name, queue, &text(first), &self.model.body(first))
        } else {
            let mut body = Vec::new();
            for id in first..first + count {
                let (message, properties) = (self.model.body(id), text(id));
                let flag = crate::model::FLAG;
                protocol::message::BatchEntry { flag, body: &message, properties: &properties }.encode(&mut body);
            }
            words::send_as(request::SEND_BATCH_MESSAGE, &name, queue, "", &body)
        };
        let command = if self.random.chance(100) { words::oneway(command) } else { command };
        self.write(index, command, Asked::Send { ids: first..first + count });
    }

    fn pull(&mut self, index: usize) {
        let (topic, queue) = (self.random.below(self.model.topics.len() as u64) as usize, self.random.below(4) as u32);
        let queue = queue % self.queues_of(topic);
        let cursor = self.clients[index].cursors.get(&(topic, queue)).copied().unwrap_or(0);
        let offset = if self.random.chance(700) { cursor } else { self.random.below(cursor + 2) };
        let tag = self.random.chance(200).then_some(TAGS[0]);
        let name = self.name(topic);
        let mut header = words::pull_header(&name, i32::try_from(queue).expect("small"), offset.cast_signed());
        header.max_msg_nums = 1 + self.random.below(32) as i32;
        header.subscription = Some(tag.unwrap_or("*"));
        if self.random.chance(400) {
            header.sys_flag |= pull_flag::SUSPEND;
            header.suspend_timeout_ms = [50, 1_000, 15_000][self.random.below(3) as usize];
        }
        let then = self.model.glimpse(topic);
        self.write(index, words::pull_with(request::PULL_MESSAGE, header), Asked::Pull { topic, offset, tag, then });
    }

    /// Every offset is one client's: what two of them commit has no order.
    fn slot(&mut self, index: usize) -> SlotKey {
        let queues = GROUPS.len() * TOPICS * QUEUES as usize;
        let mine = (0..queues).filter(|number| number % self.clients.len() == index);
        let mine: Vec<usize> = mine.collect();
        let number = mine[self.random.below(mine.len() as u64) as usize];
        let queue = (number / GROUPS.len() / TOPICS) as u32;
        (number % GROUPS.len(), number / GROUPS.len() % TOPICS, queue)
    }

    fn commit(&mut self, index: usize) {
        let slot = self.slot(index);
        let value = self.random.below(1 << 40);
        let version = self.model.commit(slot, value);
        let command = words::commit(GROUPS[slot.0], &self.name(slot.1), slot.2.cast_signed(), value.cast_signed());
        let then = self.model.glimpse(slot.1);
        self.write(index, command, Asked::Commit { slot, version, value, then });
    }

    fn ask_committed(&mut self, index: usize) {
        let slot = self.slot(index);
        let (settled, then) = (self.model.settled(slot), self.model.glimpse(slot.1));
        let command = self.committed(slot);
        self.write(index, command, Asked::Committed { slot, settled, then, calm: self.calm });
    }

    fn committed(&self, (group, topic, queue): SlotKey) -> Command {
        let (name, queue) = (self.name(topic), queue.to_string());
        let fields =
            [("consumerGroup", GROUPS[group]), ("topic", &name), ("queueId", &queue), ("setZeroIfNotFound", "false")];
        words::asking(request::QUERY_CONSUMER_OFFSET, &fields)
    }

    fn ask_end(&mut self, index: usize) {
        let (topic, queue) = (self.topic(), self.random.below(QUEUES.into()) as u32);
        self.ask_end_of(index, topic, queue);
    }

    fn ask_end_of(&mut self, index: usize, topic: usize, queue: u32) {
        let (then, least) = (self.model.glimpse(topic), self.model.end(topic, queue));
        let command = self.edge(request::GET_MAX_OFFSET, topic, queue);
        self.write(index, command, Asked::End { topic, queue, least, then });
    }

    /// Where one of the newest messages was sent to: if something was lost, it was there.
    fn recent_queue(&mut self) -> (usize, u32) {
        let back = 1 + self.random.below(4) as usize;
        let sent = self.model.sent.iter().rev().filter(|sent| sent.topic < TOPICS).nth(back);
        sent.map_or((0, 0), |sent| (sent.topic, sent.queue.unwrap_or(0)))
    }

    fn edge(&self, code: i32, topic: usize, queue: u32) -> Command {
        words::asking(code, &[("topic", &self.name(topic)), ("queueId", &queue.to_string())])
    }

    fn send_back(&mut self, index: usize) {
        let Some((id, place)) = self.model.known(self.random.bits()) else { return };
        if self.model.sent[id].topic >= TOPICS {
            return;
        }
        let group = self.random.below(GROUPS.len() as u64) as usize;
        let level = self.random.below(LEVELS_MS.len() as u64) as usize;
        let due_ms = self.now_ms() + LEVELS_MS[level];
        let Some(back) = self.model.send_back(id, TOPICS + group, due_ms) else { return };
        let mut command = Command::request(request::CONSUMER_SEND_MSG_BACK);
        let offset = place.position.0.cast_signed();
        let header = SendBack { offset, group: GROUPS[group], delay_level: level as i32 + 1, ..SendBack::default() };
        header.push(&mut command.header.fields);
        self.write(index, command, Asked::Back { id: back });
    }

    fn view(&mut self, index: usize) {
        let Some((id, place)) = self.model.known(self.random.bits()) else { return };
        let topic = self.model.sent[id].topic;
        let nudge = if self.random.chance(200) { self.random.below(64) } else { 0 };
        let offset = (place.position.0 + nudge).to_string();
        let command = words::asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &offset)]);
        let then = self.model.glimpse(topic);
        self.write(index, command, if nudge == 0 { Asked::View { id, then } } else { Asked::Any });
    }

    fn find(&mut self, index: usize) {
        let topic = self.topic();
        let then = self.model.glimpse(topic);
        let key = key_of(self.random.below(self.model.sent.len() as u64 + 1) as usize);
        let name = self.name(topic);
        let end = i64::MAX.to_string();
        let fields =
            [("topic", &*name), ("key", &*key), ("maxNum", "32"), ("beginTimestamp", "0"), ("endTimestamp", &*end)];
        self.write(index, words::asking(request::QUERY_MESSAGE, &fields), Asked::Find { topic, then });
    }

    fn beat(&mut self, index: usize) {
        let client = format!("client-{}", self.clients[index].number);
        let topics: Vec<String> = (0..TOPICS).map(|topic| self.name(topic)).collect();
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let group = GROUPS[self.random.below(GROUPS.len() as u64) as usize];
        self.write(index, words::heartbeat(&client, group, &topics), Asked::Any);
    }

    /// One change of a topic at a time, so that it is known in which order they are done.
    fn change_topic(&mut self, index: usize) {
        let topic = self.topic();
        let changes = |asked: &Asked| matches!(asked, Asked::Create { topic: other } | Asked::Delete { topic: other } if *other == topic);
        let changing = self.clients.iter().any(|client| client.waiting.values().any(changes));
        if changing || self.model.topics[topic].doubtful {
            return;
        }
        let name = self.name(topic);
        if self.random.chance(500) {
            let command = self.creation(topic);
            self.model.unsettle(topic);
            self.write(index, command, Asked::Create { topic });
        } else {
            let committing =
                self.clients.iter().flat_map(|client| client.waiting.values()).filter_map(|asked| match asked {
                    Asked::Commit { slot, value, .. } => Some((*slot, *value)),
                    _ => None,
                });
            let committing: Vec<(SlotKey, u64)> = committing.collect();
            self.model.delete(topic, &committing);
            let command = words::asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", &name)]);
            self.write(index, command, Asked::Delete { topic });
        }
    }

    pub fn creation(&mut self, topic: usize) -> Command {
        let (name, queues) = (self.name(topic), (1 + self.random.below(QUEUES.into())).to_string());
        let fields = [
            ("topic", &*name),
            ("defaultTopic", "TBW102"),
            ("readQueueNums", "4"),
            ("writeQueueNums", &*queues),
            ("perm", "6"),
            ("topicFilterType", "SINGLE_TAG"),
            ("order", "false"),
        ];
        words::asking(request::UPDATE_AND_CREATE_TOPIC, &fields)
    }

    fn ask_anything(&mut self, index: usize) {
        let topic = self.topic();
        let name = self.name(topic);
        let group = GROUPS[self.random.below(GROUPS.len() as u64) as usize];
        let lock = format!(
            r#"{{"consumerGroup":"{group}","clientId":"c{index}","mqSet":[{{"brokerName":"broker-a","queueId":1,"topic":"{name}"}}]}}"#
        );
        let command = match self.random.below(13) {
            0 => words::asking(request::GET_BROKER_RUNTIME_INFO, &[]),
            1 => words::asking(request::GET_BROKER_CONFIG, &[]),
            2 => words::asking(request::GET_ALL_TOPIC_CONFIG, &[]),
            3 => words::asking(request::GET_TOPIC_STATS_INFO, &[("topic", &name)]),
            4 => words::asking(request::GET_CONSUME_STATS, &[("consumerGroup", group), ("topic", &name)]),
            5 => words::asking(request::QUERY_TOPIC_CONSUME_BY_WHO, &[("topic", &name)]),
            6 => words::asking(request::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", group)]),
            7 => words::asking(request::GET_CONSUMER_CONNECTION_LIST, &[("consumerGroup", group)]),
            8 => words::telling(request::LOCK_BATCH_MQ, &[], lock),
            9 => words::telling(request::UNLOCK_BATCH_MQ, &[], lock),
            10 => self.edge(request::GET_EARLIEST_MSG_STORETIME, topic, 1),
            11 => {
                let now = self.now_ms().to_string();
                let fields = [("topic", &*name), ("queueId", "2"), ("timestamp", &*now)];
                words::asking(request::SEARCH_OFFSET_BY_TIMESTAMP, &fields)
            }
            _ => words::asking(self.random.below(400) as i32 + 1_000, &[("topic", &name)]),
        };
        self.write(index, command, Asked::Any);
    }

    /// Says what no client should say.
    fn be_rude(&mut self, index: usize) {
        let socket = self.connect(index);
        self.clients[index].rude = true;
        let mut bytes = match self.random.below(4) {
            0 => self.random.bits().to_be_bytes().to_vec(),
            1 => vec![0, 0, 0, 9, 0, 0, 0, 5, b'{', b'}', b'}', b'{', b'"'],
            2 => words::send("topic-0", 0, b"not of ours: nobody stores this").encode(),
            _ => words::asking(request::PULL_MESSAGE, &[("topic", "topic-0")]).encode(),
        };
        let flips = self.random.below(4);
        for _ in 0..flips.max(1) {
            // Within length, mark and the beginning of the header: a whole body would be a message.
            let at = self.random.below(bytes.len().min(40) as u64) as usize;
            bytes[at] ^= 1 << self.random.below(8);
        }
        let end = bytes.len().min(60);
        self.sim.borrow_mut().send(socket, &bytes[..end]);
        if self.random.chance(500) {
            self.leave(index);
        }
    }

    /// Goes, in order or not, with anything half said.
    fn leave(&mut self, index: usize) {
        let Some(socket) = self.clients[index].socket else { return };
        if self.random.chance(500) {
            self.send(index, 1);
            self.sim.borrow_mut().cut(socket);
        } else {
            self.sim.borrow_mut().hang_up(socket);
        }
        self.lose(index);
    }
}

/// What they make of the answers.
impl World {
    fn answered(&mut self, index: usize, asked: Asked, answer: Command) {
        let code = answer.header.code;
        let is_good = code == response::SUCCESS;
        match asked {
            Asked::Send { ids } if is_good => self.stored(index, ids, &answer),
            Asked::Send { ids } => match code {
                response::SYSTEM_BUSY
                | response::TOPIC_NOT_EXIST
                | response::INVALID_PARAMETER
                | response::NO_PERMISSION
                | response::MESSAGE_ILLEGAL => ids.for_each(|id| self.model.refused(id)),
                response::SERVICE_NOT_AVAILABLE => {}
                _ => panic!("a send was answered {answer:?}"),
            },
            Asked::Half { id } if is_good => self.decide(index, id, &answer),
            Asked::Half { id } => match code {
                response::SERVICE_NOT_AVAILABLE => {}
                _ => self.model.refused(id),
            },
            Asked::Decide { id, commit } if is_good => self.model.is_decided(id, commit),
            Asked::Decide { .. } => {}
            Asked::Recall { id } if is_good => self.model.is_recalled(id),
            Asked::Recall { .. } => {}
            Asked::Pop { topic, attempt, then } => self.popped(index, topic, attempt, then, &answer),
            Asked::Ack { number } if is_good => self.loans.acked(number, self.now_ms()),
            Asked::Acks { numbers } if is_good => {
                let now_ms = self.now_ms();
                numbers.into_iter().for_each(|number| self.loans.acked(number, now_ms));
            }
            Asked::Ack { .. } | Asked::Acks { .. } => {}
            Asked::Change { held, until_ms, is_orderly } => self.changed(index, held, until_ms, is_orderly, &answer),
            Asked::Back { id } if is_good => self.model.promised(id, None),
            Asked::Back { .. } => {}
            Asked::Pull { topic, offset, tag, then } => self.pulled(index, topic, offset, tag, then, &answer),
            Asked::View { id, then } if is_good => {
                let messages = words::messages(&answer);
                let topic = self.model.sent[id].topic;
                let seen = messages.first().map(|message| self.model.saw(topic, message, then));
                assert_eq!((seen, messages.len()), (Some(id), 1), "this message was asked for");
            }
            // The log may have been cut at its old end, its topic be gone, the disk not have been read.
            Asked::View { .. } => {}
            Asked::Find { topic, then } => {
                for message in &words::messages(&answer) {
                    self.model.saw(topic, message, then);
                }
            }
            Asked::End { topic, queue, least, then } if is_good => {
                let end = words::number(&answer, "offset").cast_unsigned();
                self.model.saw_end(topic, queue, end, least, then);
            }
            Asked::End { .. } => {}
            Asked::Commit { slot, version, value, then } if is_good => self.model.committed(slot, version, value, then),
            Asked::Commit { .. } => {}
            Asked::Committed { slot, settled, then, calm } => match offset_of(&answer) {
                Some(value) => self.model.saw_offset(slot, value, settled, then),
                None => assert!(!calm || code == response::SYSTEM_BUSY, "an offset: {answer:?}"),
            },
            Asked::Create { topic } if is_good => self.model.created(topic),
            Asked::Create { topic } => self.model.unsettle(topic),
            Asked::Delete { topic } if is_good => self.deleted(topic),
            // It stays in doubt.
            Asked::Delete { topic } => self.model.not_deleted(topic),
            Asked::Any => {}
            Asked::Itself => {
                self.clients[index].answers.insert(answer.header.opaque, answer);
            }
        }
    }

    fn stored(&mut self, index: usize, ids: Range<usize>, answer: &Command) {
        let first = words::number(answer, "queueOffset").cast_unsigned();
        let queue = u32::try_from(words::number(answer, "queueId")).expect("a queue");
        let positions = words::field(answer, "msgId").split(',').map(|id| {
            let offset = OffsetId::parse(id).expect("an id of a message").offset;
            Position(u64::try_from(offset).expect("a position"))
        });
        let positions: Vec<Position> = positions.collect();
        assert_eq!(positions.len(), ids.len(), "{answer:?}");
        for ((id, position), offset) in ids.zip(positions).zip(first..) {
            self.check_shown(position);
            self.model.promised(id, Some(Place { queue, offset, position }));
            if let Some(handle) = answer.header.fields.get("recallHandle")
                && self.random.chance(300)
            {
                self.recall(index, id, handle);
            }
        }
    }

    /// A delayed message is never to come.
    fn recall(&mut self, index: usize, id: usize, handle: &str) {
        self.model.recalls(id);
        let name = self.name(self.model.sent[id].topic);
        let mut command = Command::request(request::RECALL_MESSAGE);
        let header = RecallMessage { topic: &name, recall_handle: handle, ..RecallMessage::default() };
        header.push(&mut command.header.fields);
        self.write(index, command, Asked::Recall { id });
    }

    /// What is answered or shown is safe.
    pub fn check_shown(&self, position: Position) {
        let stats = self.stats(position.partition());
        let safe = if self.flush == engine::limits::Flush::Sync { stats.durable } else { stats.written };
        assert!(position.byte() < safe, "{position:?} is told of, above {safe}: {stats:?}");
    }

    fn pulled(
        &mut self,
        index: usize,
        topic: usize,
        offset: u64,
        tag: Option<&'static str>,
        then: Glimpse,
        answer: &Command,
    ) {
        match answer.header.code {
            response::SUCCESS | response::PULL_NOT_FOUND | response::PULL_RETRY_IMMEDIATELY => {}
            response::PULL_OFFSET_MOVED => {
                return self.clients[index].cursors.retain(|(other, _), _| *other != topic);
            }
            _ => return,
        }
        let next = words::number(answer, "nextBeginOffset").cast_unsigned();
        let mut expected = offset;
        let mut queue = None;
        for message in words::messages(answer) {
            self.model.saw(topic, &message, then);
            self.check_shown(Position(message.physical_offset.cast_unsigned()));
            let at = message.queue_offset.cast_unsigned();
            assert!(at == expected || tag.is_some() && at > expected, "at {at} instead of {expected}");
            assert!(tag.is_none() || message.property("TAGS") == tag, "a filter lets through what it wants");
            (expected, queue) = (at + 1, Some(message.queue_id.cast_unsigned()));
        }
        if let Some(queue) = queue {
            assert!(next >= expected && (tag.is_some() || next == expected), "{next} instead of {expected}");
            let end = words::number(answer, "maxOffset").cast_unsigned();
            assert!(end >= next, "a queue ends at {end}, before {next}");
            self.model.saw_end(topic, queue, end, next, then);
            self.clients[index].cursors.insert((topic, queue), next);
        }
    }

    fn deleted(&mut self, topic: usize) {
        let sending = self.model.is_sending(topic);
        self.model.deleted(topic, sending);
    }
}

/// Looking at everything.
impl World {
    /// What a run begins with: in most of them all topics are there.
    pub fn begin(&mut self) {
        let is_sync = self.flush == engine::limits::Flush::Sync;
        for topic in 0..TOPICS {
            if !is_sync || self.random.chance(800) {
                let command = self.creation(topic);
                self.expect(&command);
                self.model.created(topic);
            }
        }
        for group in GROUPS {
            if !is_sync || self.random.chance(800) {
                let command = words::heartbeat("client-0", group, &["topic-0"]);
                self.expect(&command);
            }
        }
        if self.manner.is_some() {
            self.make_group();
        }
        self.quiesce();
    }

    /// Whether a topic is there.
    pub fn look_up(&mut self, topic: usize) -> bool {
        let command = words::asking(request::GET_TOPIC_CONFIG, &[("topic", &self.name(topic))]);
        let answer = self.ask(&command);
        match answer.header.code {
            response::SUCCESS => true,
            response::TOPIC_NOT_EXIST => false,
            _ => panic!("{command:?} was answered {answer:?}"),
        }
    }

    /// How many queues of a topic may have messages.
    pub fn queues_of(&self, topic: usize) -> u32 {
        if topic < TOPICS { QUEUES } else { 1 }
    }

    /// Reads a queue from its beginning to its end, which is returned.
    pub fn read_queue(&mut self, topic: usize, queue: u32, found: &mut BTreeSet<usize>) -> u64 {
        let Scan { end, damaged, shut } = self.scan(topic, queue, found);
        assert_eq!((damaged, shut), (0, false), "nothing is damaged");
        let command = self.edge(request::GET_MAX_OFFSET, topic, queue);
        let known = words::number(&self.expect(&command), "offset").cast_unsigned();
        assert!(known >= end, "queue {queue} of topic {topic} ends at {known}, and was read to {end}");
        end
    }

    /// As `read_queue`, past what is damaged.
    pub fn scan(&mut self, topic: usize, queue: u32, found: &mut BTreeSet<usize>) -> Scan {
        let name = self.name(topic);
        let command = self.edge(request::GET_MIN_OFFSET, topic, queue);
        let answer = self.ask(&command);
        if self.rotten && answer.header.code == response::SERVICE_NOT_AVAILABLE {
            return Scan { end: 0, damaged: 0, shut: true };
        }
        let mut offset = words::number(&answer, "offset");
        let mut damaged = 0;
        for _ in 0..TURNS_MAX {
            let then = self.model.glimpse(topic);
            let answer = self.ask(&words::pull(&name, queue.cast_signed(), offset));
            match answer.header.code {
                response::SUCCESS => {
                    for message in words::messages(&answer) {
                        assert_eq!(message.queue_offset, offset, "a hole, or an offset twice");
                        let id = self.model.saw(topic, &message, then);
                        self.check_shown(Position(message.physical_offset.cast_unsigned()));
                        assert!(found.insert(id), "message {id} is there twice");
                        offset += 1;
                    }
                    assert_eq!(words::number(&answer, "nextBeginOffset"), offset);
                }
                response::PULL_NOT_FOUND => return Scan { end: offset.cast_unsigned(), damaged, shut: false },
                response::SERVICE_NOT_AVAILABLE if self.rotten => {
                    return Scan { end: offset.cast_unsigned(), damaged, shut: true };
                }
                response::PULL_OFFSET_MOVED if self.plan.retain.is_some() || self.plan.space.is_some() => {
                    offset = words::number(&answer, "nextBeginOffset");
                }
                response::SYSTEM_ERROR if self.rotten && answer.header.remark.contains("damaged") => {
                    (damaged, offset) = (damaged + 1, offset + 1);
                }
                _ => panic!("{name}, queue {queue} at {offset}: {answer:?}"),
            }
        }
        panic!("queue {queue} of {name} has no end");
    }

    /// All is quiet: every offset has one value.
    pub fn settle_offsets(&mut self) {
        let slots: Vec<SlotKey> = self.model.slots.keys().copied().collect();
        for slot in slots {
            let command = self.committed(slot);
            let answer = self.ask(&command);
            let value = offset_of(&answer).unwrap_or_else(|| panic!("{command:?} was answered {answer:?}"));
            self.model.settle_offset(slot, value);
        }
    }

    /// One more message in a queue of the first topic. Returns its number, and that of the request.
    pub fn send_small(&mut self, queue: u32) -> (usize, i32) {
        let first = self.model.send(0, queue, &[100], None);
        let mut text = String::new();
        let tag = TAGS[first % TAGS.len()];
        if !tag.is_empty() {
            protocol::properties::append(&mut text, "TAGS", tag);
        }
        let send =
            words::send_as(request::SEND_MESSAGE_V2, "topic-0", queue.cast_signed(), &text, &self.model.body(first));
        (first, self.write(0, send, Asked::Send { ids: first..first + 1 }))
    }

    /// A message goes from one client to another one that waits for it, and that takes no longer than it must.
    pub fn be_prompt(&mut self) {
        self.sim.borrow_mut().haste = 1000;
        let command = self.creation(0);
        self.expect(&command);
        self.model.created(0);
        let end = words::number(&self.expect(&self.edge(request::GET_MAX_OFFSET, 0, 0)), "offset");
        let reader = self.clients.len() - 1;
        self.clients[reader].rude = false;
        let then = self.model.glimpse(0);
        let offset = end.cast_unsigned();
        let pull = words::pull_waiting("topic-0", 0, end, 30_000);
        let opaque = self.write(reader, pull, Asked::Pull { topic: 0, offset, tag: None, then });
        (0..100).for_each(|_| self.turn());
        let before_ms = self.now_ms();
        let (_, sent) = self.send_small(0);
        while self.clients[0].waiting.contains_key(&sent) || self.clients[reader].waiting.contains_key(&opaque) {
            self.turn();
            let took_ms = self.now_ms() - before_ms;
            assert!(took_ms <= crate::world::PROMPT_MS, "a message takes more than {took_ms} ms to one who waits");
        }
    }
}

fn key_of(id: usize) -> String {
    format!("key-{}", id % 20)
}

/// The offset in an answer to code 14; `Some(None)`: there is none.
fn offset_of(answer: &Command) -> Option<Option<u64>> {
    match answer.header.code {
        response::SUCCESS => Some(Some(words::number(answer, "offset").cast_unsigned())),
        response::QUERY_NOT_FOUND => Some(None),
        _ => None,
    }
}
