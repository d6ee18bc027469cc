//! Goal: every rule of the registrar, seen from its door. Method: a registrar with a disk that makes
//! puts durable in order, cores that install at once, and a list of what it ordered.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use engine::Counts;
use engine::sim::Random;
use protocol::bodies::{self, ConsumeStats, ConsumerConnection, ConsumerData, HeartbeatData, KvTable, LockAnswer};
use protocol::bodies::{LockBatch, MessageModel, MessageQueue, ProducerConnection, ProducerData, SubscriptionData};
use protocol::bodies::{SubscriptionGroupConfig, SubscriptionGroupTable, TopicConfigTable, TopicStatsTable};
use protocol::{Command, Fields, Header, Language, Serialize};

use super::*;
use crate::admin::{self, Counters, QueueProgress, QueueStats, Tally, Traffic};
use crate::call::Peer;
use crate::catalog::{Group, Topic};
use crate::config::{Config, Found};
use crate::errands::Said;
use crate::mail::Make;

mod members;
mod questions;
mod settings;
mod topics;

const SEED: u64 = 5;

/// The registrar and what surrounds it.
struct World {
    registrar: Registrar,
    now_ms: u64,
    /// What partition 0 holds.
    facts: BTreeMap<Vec<u8>, Vec<u8>>,
    disk_ok: bool,
    /// What fails is there all the same, as a later look shows.
    disk_keeps: bool,
    /// Orders not yet carried out.
    orders: VecDeque<Order>,
    /// What happened, in order: `put t/T`, `publish`, `answer 7: 0`, …
    log: Vec<String>,
    answers: BTreeMap<i32, Answer>,
    opaque: i32,
    /// What a core answers when it is asked.
    tell: fn(&Question) -> Part,
    /// What NameServers know of topics.
    routes: BTreeMap<String, Vec<MessageQueue>>,
}

fn settings() -> Settings {
    let found = Found {
        broker_ip1: Ipv4Addr::LOCALHOST,
        port: 10_911,
        cores: 2,
        partitions: 4,
        memory_bytes: 1 << 30,
        disk_bytes: 1 << 40,
        started_ms: 0,
    };
    Config::default().settings(found)
}

fn nothing(question: &Question) -> Part {
    match question {
        Question::Topic { .. } => Part::Topic(Vec::new()),
        Question::TopicsOf { .. } => Part::TopicsOf(BTreeSet::new()),
        Question::Progress(_) => Part::Progress(Vec::new()),
        Question::Spans { .. } => Part::Spans(Vec::new()),
        Question::GroupsOf { .. } => Part::GroupsOf(BTreeSet::new()),
        Question::Forget { .. } => Part::Forgotten(Ok(())),
        Question::Reset(_) => Part::Reset(Ok(Vec::new())),
        Question::Correction { .. } => Part::Correction(Vec::new()),
        Question::Clone { .. } => Part::Cloned(Ok(())),
        Question::Stats(counted) => Part::Stats(vec![None; counted.len()]),
        Question::Consumed => Part::Consumed(Some(BTreeMap::new())),
        Question::Messages { .. } => Part::Messages { found: Vec::new(), is_partial: false },
        Question::Tally => Part::Tally(Box::default()),
    }
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::default();
    fields.extend(pairs.iter().copied());
    fields
}

fn connection(slot: u32) -> ConnectionId {
    ConnectionId { core: 0, slot, generation: 1 }
}

impl World {
    fn new() -> World {
        World::with(settings())
    }

    /// A fresh broker, its system topics made and everything forgotten that this ordered.
    fn with(settings: Settings) -> World {
        let mut world = World::recovered(settings, BTreeMap::new());
        world.tick(0);
        world.log.clear();
        world
    }

    fn recovered(settings: Settings, facts: BTreeMap<Vec<u8>, Vec<u8>>) -> World {
        let all = facts.iter().map(|(key, value)| (key.as_slice(), value.as_slice()));
        World {
            registrar: Registrar::recover(Arc::new(settings), SEED, all).unwrap(),
            now_ms: 1_000_000,
            facts,
            disk_ok: true,
            disk_keeps: false,
            orders: VecDeque::new(),
            log: Vec::new(),
            answers: BTreeMap::new(),
            opaque: 0,
            tell: nothing,
            routes: BTreeMap::new(),
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Registrar, u64, &mut Vec<Order>)) {
        let mut wanted = Vec::new();
        act(&mut self.registrar, self.now_ms, &mut wanted);
        self.orders.extend(wanted);
    }

    /// The log was read again after changes failed.
    fn log_was_read(&mut self) {
        let facts = self.registrar.doubt().map(|key| (key.to_vec(), self.facts.get(key).cloned())).collect::<Vec<_>>();
        self.act(|registrar, now_ms, wanted| registrar.on_certain(&facts, now_ms, wanted));
    }

    /// Carries one order out. `false`: there is none.
    fn step(&mut self) -> bool {
        let Some(order) = self.orders.pop_front() else { return false };
        match order {
            Order::Answer(reply, answer) => {
                self.log.push(format!("answer {}: {}", reply.opaque, answer.code));
                let double = self.answers.insert(reply.opaque, answer);
                assert!(double.is_none(), "request {} is answered twice", reply.opaque);
            }
            Order::Put { facts, change } => {
                for (key, value) in facts {
                    self.log.push(format!("put {}", String::from_utf8_lossy(&key)));
                    match value {
                        _ if !self.disk_ok && !self.disk_keeps => {}
                        Some(value) => drop(self.facts.insert(key, value)),
                        None => drop(self.facts.remove(&key)),
                    }
                }
                let ok = self.disk_ok;
                self.act(|registrar, now_ms, wanted| registrar.on_durable(change, ok, now_ms, wanted));
            }
            Order::Publish { catalog, change } => {
                self.log.push("publish".to_owned());
                self.act(|registrar, now_ms, wanted| registrar.on_installed(change, now_ms, wanted));
                assert_eq!(kept(self.registrar.catalog()), kept(&catalog), "what is in force is what cores hold");
            }
            Order::Push { connection, frame } => {
                let command = Command::decode(frame).unwrap();
                if command.header.code == 221 {
                    // It has much to say.
                    let body = [&br#"{"messageQueueTable":{}"#[..], &vec![b' '; 5 << 20], b"}"].concat();
                    let answer = Answer::with_body(body);
                    let said = Said { connection, opaque: command.header.opaque, answer };
                    self.act(|registrar, now_ms, wanted| registrar.on_said(said, now_ms, wanted));
                    return true;
                }
                assert!(command.header.is_oneway() && command.header.code == 40);
                let group = command.header.fields.get("consumerGroup").unwrap();
                self.log.push(format!("push {} {group}", connection.slot));
            }
            Order::Resume { core, mail } => {
                self.log.push(match mail {
                    Mail::Closed { connection } => format!("resume {} on {core}", connection.slot),
                    Mail::Request(request) => format!("resume a send on {core}, orderly: {}", request.orderly),
                    mail => panic!("{mail:?} was never sent"),
                });
            }
            Order::Ask { ticket, question } => {
                if let Question::Forget { group } = &question {
                    self.log.push(format!("forget {group}"));
                }
                for _ in 0..2 {
                    let part = (self.tell)(&question);
                    self.act(|registrar, now_ms, wanted| registrar.on_told(ticket, part, now_ms, wanted));
                }
            }
            Order::Register => self.log.push("register".to_owned()),
            Order::Route { request, topic } => {
                let queues = self.routes.get(&topic).cloned();
                self.act(|registrar, now_ms, wanted| registrar.on_routed(Routed { request, queues }, now_ms, wanted));
            }
        }
        true
    }

    fn run(&mut self) {
        while self.step() {}
    }

    /// Sends a request on a connection; the answer comes later.
    fn send(&mut self, slot: u32, code: i32, pairs: &[(&str, &str)], body: Vec<u8>) -> i32 {
        let request = self.request(slot, code, pairs, body);
        self.act(|registrar, now_ms, wanted| registrar.on_request(request, now_ms, wanted));
        self.opaque
    }

    fn request(&mut self, slot: u32, code: i32, pairs: &[(&str, &str)], body: Vec<u8>) -> Request {
        self.opaque += 1;
        let connection = connection(slot);
        let reply = ReplyTo {
            connection,
            opaque: self.opaque,
            code,
            version: 479,
            serialize: Serialize::Json,
            oneway: false,
            delivered: false,
        };
        let address = format!("10.0.0.{slot}:500").parse().unwrap();
        let peer = Peer { connection, address, language: Language::Go, version: 317 };
        let mut header = Header::request(code);
        header.fields = fields(pairs);
        Request { header, body: body.into(), reply, peer, resumed: false, orderly: false }
    }

    /// Sends a request and returns its answer.
    fn ask(&mut self, slot: u32, code: i32, pairs: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let opaque = self.send(slot, code, pairs, body);
        self.run();
        self.answers.remove(&opaque).unwrap_or_else(|| panic!("{code} is not answered"))
    }

    fn tick(&mut self, later_ms: u64) {
        self.now_ms += later_ms;
        self.act(Registrar::on_tick);
        self.run();
    }

    fn create(&mut self, topic: &str, queues: &str) -> Answer {
        self.ask(0, 17, &topic_fields(topic, queues), Vec::new())
    }

    fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.registrar.catalog().topic(name)
    }

    /// What was logged since the last call.
    fn logged(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn heartbeat(&mut self, slot: u32, client: &str, consumers: Vec<ConsumerData>) -> Answer {
        self.ask(slot, 34, &[], heartbeat(client, consumers))
    }
}

fn topic_fields<'a>(topic: &'a str, queues: &'a str) -> [(&'a str, &'a str); 6] {
    [
        ("topic", topic),
        ("defaultTopic", "TBW102"),
        ("readQueueNums", queues),
        ("writeQueueNums", queues),
        ("perm", "6"),
        ("topicFilterType", "SINGLE_TAG"),
    ]
}

fn heartbeat(client: &str, consumers: Vec<ConsumerData>) -> Vec<u8> {
    bodies::encode(&HeartbeatData {
        client_id: client.to_owned(),
        consumer_data_set: consumers,
        ..HeartbeatData::default()
    })
}

fn consumer(group: &str, topics: &[(&str, i64)]) -> ConsumerData {
    let subscription = |(topic, version): &(&str, i64)| SubscriptionData {
        sub_version: *version,
        ..SubscriptionData::from_expression(topic, "*").unwrap()
    };
    ConsumerData {
        group_name: group.to_owned(),
        subscription_data_set: topics.iter().map(subscription).collect(),
        ..ConsumerData::default()
    }
}

fn like(template: &str, queues: i32) -> Make {
    Make::Send { template: template.to_owned(), queues }
}

/// Some mail that can be told from others.
fn mail(number: u32) -> Mail {
    Mail::Closed { connection: connection(number) }
}

/// What a catalog keeps across a restart.
fn kept(catalog: &Catalog) -> (BTreeMap<String, Topic>, BTreeMap<String, Group>) {
    let topics = catalog.topics().map(|topic| (topic.name.to_string(), Topic::clone(topic)));
    let groups = catalog.groups().map(|group| (group.name.to_string(), Group::clone(group)));
    (topics.collect(), groups.collect())
}

/// Method: the same random requests to two registrars, with orders carried out at random moments and
/// a disk that sometimes fails; then both are compared with each other, and with what their facts give.
#[test]
fn two_registrars_agree_and_recover_what_they_said() {
    for seed in 0..30 {
        let run = || {
            let mut noise = Random::new(seed);
            let mut world = World::new();
            for _ in 0..300 {
                let name = format!("N{}", noise.below(6));
                let slot = noise.below(5) as u32;
                // Whole changes fail, not single puts: what partly reached the disk may be found there.
                if world.orders.is_empty() {
                    world.disk_ok = noise.below(10) > 0;
                }
                match noise.below(8) {
                    0..=2 => drop(world.send(slot, 17, &topic_fields(&name, &noise.below(9).to_string()), Vec::new())),
                    3 => drop(world.send(slot, 215, &[("topic", &name)], Vec::new())),
                    4 => drop(world.send(slot, 207, &[("groupName", &name)], Vec::new())),
                    5 => {
                        let topics = [("T", noise.below(3) as i64), ("U", 1)];
                        let topics = &topics[noise.below(2) as usize..];
                        world.send(slot, 34, &[], heartbeat("c", vec![consumer(&name, topics)]));
                    }
                    6 => world.act(|registrar, now_ms, wanted| registrar.on_closed(connection(slot), now_ms, wanted)),
                    _ => {
                        let ensure = Ensure { topic: name, how: like("TBW102", 3), then: mail(slot), back: 0 };
                        world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
                    }
                }
                for _ in 0..noise.below(6) {
                    world.step();
                }
                world.now_ms += noise.below(3_000);
            }
            world.run();
            world
        };
        let (one, two) = (run(), run());
        assert_eq!(one.log, two.log, "seed {seed}");
        assert_eq!(one.facts, two.facts, "seed {seed}");
        assert_eq!(one.answers.len(), one.opaque as usize, "seed {seed}: every request is answered");
        let catalog = one.registrar.catalog();
        let again = World::recovered(settings(), one.facts);
        assert_eq!(kept(catalog), kept(again.registrar.catalog()), "seed {seed}");
        assert_eq!(catalog.topics_version, again.registrar.catalog().topics_version, "seed {seed}");
        let ids: BTreeSet<u32> = catalog.topics().map(|topic| topic.id).collect();
        assert_eq!(ids.len(), catalog.topics_count(), "seed {seed}: ids are unique");
    }
}

#[test]
fn what_clients_say_of_themselves_is_bounded_in_sum() {
    let mut world = World::new();
    world.create("T", "4");
    for (slot, client) in [(1, "one"), (2, "two")] {
        world.heartbeat(slot, client, vec![consumer("g", &[("T", 1)])]);
    }
    world.logged();
    for _ in 0..3 {
        let answer = world.ask(0, 223, &[("topic", "T"), ("group", "g")], Vec::new());
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.code, 0, "{}", answer.remark);
        assert_eq!(["one", "two"].iter().filter(|client| text.contains(**client)).count(), 1, "{text}");
    }
}
