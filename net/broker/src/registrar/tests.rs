//! Goal: every rule of the registrar, seen from its door. Method: a registrar with a disk that makes
//! puts durable in order, cores that install at once, and a list of what it ordered.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use engine::Counts;
use protocol::bodies::{self, ConsumeStats, ConsumerConnection, ConsumerData, HeartbeatData, KvTable, LockAnswer};
use protocol::bodies::{LockBatch, MessageModel, MessageQueue, ProducerConnection, ProducerData, SubscriptionData};
use protocol::bodies::{SubscriptionGroupConfig, SubscriptionGroupTable, TopicConfigTable, TopicStatsTable};
use protocol::{Command, Fields, Header, Language, Serialize};

use super::*;
use crate::admin::{self, Counters, QueueProgress, QueueStats, Tally, Traffic};
use crate::catalog::{Group, Topic};
use crate::config::{Config, Found};
use crate::mail::{Make, Peer};
use crate::topics;

const SEED: u64 = 5;

/// The registrar and what surrounds it.
struct World {
    registrar: Registrar,
    now_ms: u64,
    /// What partition 0 holds.
    facts: BTreeMap<Vec<u8>, Vec<u8>>,
    disk_ok: bool,
    /// Orders not yet carried out.
    orders: VecDeque<Order>,
    /// What happened, in order: `put t/T`, `publish`, `answer 7: 0`, …
    log: Vec<String>,
    answers: BTreeMap<i32, Answer>,
    opaque: i32,
    /// What a core answers when it is asked.
    tell: fn(&Question) -> Part,
}

fn settings() -> Settings {
    let found = Found {
        broker_ip1: Ipv4Addr::LOCALHOST,
        port: 10_911,
        cores: 2,
        partitions: 4,
        memory_bytes: 1 << 30,
        started_ms: 0,
    };
    Config::default().settings(found)
}

fn nothing(question: &Question) -> Part {
    match question {
        Question::Topic { .. } => Part::Topic(Vec::new()),
        Question::TopicsOf { .. } => Part::TopicsOf(BTreeSet::new()),
        Question::Progress { .. } => Part::Progress(Vec::new()),
        Question::GroupsOf { .. } => Part::GroupsOf(BTreeSet::new()),
        Question::Forget { .. } => Part::Forgotten,
        Question::Messages { .. } => Part::Messages(Vec::new()),
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
            orders: VecDeque::new(),
            log: Vec::new(),
            answers: BTreeMap::new(),
            opaque: 0,
            tell: nothing,
        }
    }

    fn act(&mut self, act: impl FnOnce(&mut Registrar, u64, &mut Vec<Order>)) {
        let mut wanted = Vec::new();
        act(&mut self.registrar, self.now_ms, &mut wanted);
        self.orders.extend(wanted);
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
            Order::Put { key, value, change } => {
                self.log.push(format!("put {}", String::from_utf8_lossy(&key)));
                let ok = self.disk_ok;
                match value {
                    _ if !ok => {}
                    Some(value) => drop(self.facts.insert(key, value)),
                    None => drop(self.facts.remove(&key)),
                }
                self.act(|registrar, now_ms, wanted| registrar.on_durable(change, ok, now_ms, wanted));
            }
            Order::Publish { catalog, change } => {
                self.log.push("publish".to_owned());
                self.act(|registrar, now_ms, wanted| registrar.on_installed(change, now_ms, wanted));
                assert_eq!(kept(self.registrar.catalog()), kept(&catalog), "what is in force is what cores hold");
            }
            Order::Push { connection, frame } => {
                let command = Command::decode(frame).unwrap();
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
                for _ in 0..2 {
                    let part = (self.tell)(&question);
                    self.act(|registrar, now_ms, wanted| registrar.on_told(ticket, part, now_ms, wanted));
                }
            }
            Order::Register => self.log.push("register".to_owned()),
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
        let reply =
            ReplyTo { connection, opaque: self.opaque, code, version: 479, serialize: Serialize::Json, oneway: false };
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

#[test]
fn a_fresh_broker_has_the_system_topics_and_groups() {
    let mut world = World::recovered(settings(), BTreeMap::new());
    world.tick(0);
    assert_eq!(world.log.last().map(String::as_str), Some("register"));
    assert_eq!(world.log[0], "put n/", "the counters are first");
    // PROTOCOL 4.2: topic, queues, perm.
    let rows = [
        ("SELF_TEST_TOPIC", 1, 6),
        ("TBW102", 8, 7),
        ("BenchmarkTest", 1024, 6),
        ("DefaultCluster", 16, 7),
        ("broker-a", 1, 7),
        ("OFFSET_MOVED_EVENT", 1, 6),
        ("SCHEDULE_TOPIC_XXXX", 18, 6),
        ("DefaultCluster_REPLY_TOPIC", 1, 6),
        ("rmq_sys_REVIVE_LOG_DefaultCluster", 8, 6),
        ("rmq_sys_SYNC_BROKER_MEMBER_broker-a", 1, 1),
        ("RMQ_SYS_TRANS_HALF_TOPIC", 1, 6),
        ("RMQ_SYS_TRANS_OP_HALF_TOPIC", 1, 6),
    ];
    for (name, queues, perm) in rows {
        let topic = world.topic(name).unwrap_or_else(|| panic!("no {name}"));
        let seen = (topic.read_queues(), topic.write_queues(), topic.config.perm);
        assert_eq!(seen, (queues, queues, perm), "{name}");
        assert!(topics::is_system(&world.registrar.settings, name), "{name}");
    }
    assert_eq!(world.registrar.catalog().topics_count(), rows.len());
    assert!(world.registrar.catalog().group("TOOLS_CONSUMER").is_some());
    // They are made once, also across a restart, and not against the operator's will.
    let facts = world.facts.clone();
    world.log.clear();
    world.tick(1);
    assert_eq!(world.log, Vec::<String>::new());
    let mut again = World::recovered(settings(), facts);
    again.tick(0);
    assert_eq!(again.log, Vec::<String>::new());
    let other = Settings {
        auto_create_topic: false,
        cluster_topic: false,
        broker_topic: false,
        trace_topic: true,
        ..settings()
    };
    let world = World::with(other);
    let perm = |name| world.topic(name).map(|topic| topic.config.perm);
    let seen = ["TBW102", "DefaultCluster", "broker-a", "RMQ_SYS_TRACE_TOPIC"].map(perm);
    assert_eq!(seen, [None, Some(1), Some(1), Some(6)]);
}

#[test]
fn topics_are_created_and_changed_by_the_rules() {
    let mut world = World::new();
    let long = "x".repeat(128);
    // Fields that differ from a good request's, and the code.
    let rows: [(&[(&str, &str)], i32); 18] = [
        (&[], 0),
        (&[("topic", "")], 29),
        (&[("topic", "a b")], 29),
        (&[("topic", &long)], 29),
        (&[("topic", "TBW102")], 29),
        (&[("topic", "DefaultCluster")], 29),
        (&[("topic", "broker-a")], 29),
        (&[("topic", "rmq_sys_x")], 29),
        (&[("topic", "%RETRY%g")], 0),
        (&[("readQueueNums", "-1")], 29),
        (&[("writeQueueNums", "16385")], 29),
        (&[("writeQueueNums", "0")], 0),
        (&[("perm", "16")], 29),
        (&[("topicFilterType", "X")], 29),
        (&[("attributes", "+message.type=FIFO")], 0),
        (&[("attributes", "+cleanup.policy=COMPACTION")], 1),
        (&[("attributes", "nonsense")], 1),
        (&[("perm", "x")], 1),
    ];
    for (differs, code) in rows {
        let good = topic_fields("T", "4");
        let pairs: Vec<_> = good.iter().chain(differs).copied().collect();
        let answer = world.ask(0, 17, &pairs, Vec::new());
        assert_eq!(answer.code, code, "{differs:?}: {}", answer.remark);
        assert_eq!(answer.remark.is_empty(), code == 0, "{differs:?}");
    }
    let answer = world.ask(0, 17, &topic_fields("T", "4")[1..], Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (1, "the custom field <topic> is missing"));
    // The last good one keeps its id whatever is changed.
    let before = world.topic("T").unwrap().clone();
    let version = world.registrar.catalog().topics_version;
    assert_eq!(before.config.attributes.get("message.type").map(String::as_str), Some("FIFO"));
    world.logged();
    let more = [("readQueueNums", "8"), ("writeQueueNums", "2"), ("order", "true"), ("topicSysFlag", "1")];
    let pairs: Vec<_> = topic_fields("T", "4").iter().chain(&more).copied().collect();
    assert_eq!(world.ask(0, 17, &pairs, Vec::new()).code, 0);
    let after = world.topic("T").unwrap();
    assert_eq!((after.id, after.first_partition), (before.id, before.first_partition));
    assert_eq!((after.read_queues(), after.write_queues(), after.queues()), (8, 2, 8));
    assert_eq!((after.is_ordered(), after.config.topic_sys_flag), (true, 1));
    assert_eq!(after.config.attributes, before.config.attributes, "attributes stay unless changed");
    assert_eq!(world.registrar.catalog().topics_version.counter, version.counter + 1);
    assert_eq!(world.logged(), ["put n/", "put t/T", "publish", "register", "answer 20: 0"]);
    // What changes nothing touches nothing.
    assert_eq!(world.ask(0, 17, &pairs, Vec::new()).code, 0);
    assert_eq!(world.logged(), ["answer 21: 0"]);
}

#[test]
fn a_topic_that_is_created_again_is_another_one() {
    let mut world = World::new();
    world.create("T", "4");
    let old = world.topic("T").unwrap().id;
    for (topic, code) in [("", 29), (" ", 29), ("TBW102", 29), ("nobody", 0), ("T", 0), ("T", 0)] {
        let answer = world.ask(0, 215, &[("topic", topic)], Vec::new());
        assert_eq!(answer.code, code, "{topic}: {}", answer.remark);
    }
    assert!(world.topic("T").is_none() && !world.facts.contains_key(&Topic::key("T")));
    let mut world = World::recovered(settings(), world.facts);
    world.create("T", "4");
    assert!(world.topic("T").unwrap().id > old);
}

#[test]
fn nothing_is_answered_before_it_is_durable_and_held_by_all() {
    let mut world = World::new();
    let first = world.send(0, 17, &topic_fields("A", "4"), Vec::new());
    // These come while the first one is under way, and go together.
    let second = world.send(0, 17, &topic_fields("B", "4"), Vec::new());
    let same = world.send(0, 17, &topic_fields("B", "4"), Vec::new());
    let gone = world.send(0, 215, &[("topic", "A")], Vec::new());
    assert!(world.topic("A").is_none(), "a read sees only what is in force");
    assert_eq!(world.ask(0, 202, &[("topic", "none")], Vec::new()).code, 17);
    let wanted = [
        "put n/".to_owned(),
        "put t/A".to_owned(),
        format!("answer {}: 17", gone + 1),
        "publish".to_owned(),
        "register".to_owned(),
        format!("answer {first}: 0"),
        "put n/".to_owned(),
        "put t/A".to_owned(),
        "put t/B".to_owned(),
        "publish".to_owned(),
        "register".to_owned(),
        format!("answer {second}: 0"),
        format!("answer {same}: 0"),
        format!("answer {gone}: 0"),
    ];
    assert_eq!(world.logged(), wanted);
    assert!(world.topic("A").is_none() && world.topic("B").is_some());
}

#[test]
fn a_change_that_cannot_be_written_is_dropped_whole() {
    let mut world = World::new();
    world.create("kept", "1");
    let before = world.topic("kept").unwrap().id;
    world.disk_ok = false;
    let first = world.send(0, 17, &topic_fields("A", "4"), Vec::new());
    let second = world.send(0, 215, &[("topic", "kept")], Vec::new());
    let ensure = Ensure { topic: "C".to_owned(), how: like("TBW102", 4), then: mail(9), back: 1 };
    world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
    let beat = world.send(1, 34, &[], heartbeat("c", vec![consumer("g", &[("T", 1)])]));
    world.run();
    for opaque in [first, second, beat] {
        assert_eq!(world.answers[&opaque].code, response::SERVICE_NOT_AVAILABLE, "{opaque}");
    }
    assert!(world.log.contains(&"resume 9 on 1".to_owned()), "it goes on and finds no topic");
    assert!(world.topic("A").is_none() && world.topic("C").is_none() && world.topic("kept").is_some());
    // A member is a member also without a disk.
    assert_eq!(world.ask(1, 38, &[("consumerGroup", "g")], Vec::new()).code, 0);
    assert!(world.registrar.catalog().subscriptions("g").is_some());
    world.disk_ok = true;
    assert_eq!(world.create("A", "4").code, 0);
    // Some of the puts may have reached the disk: their ids are not used again.
    assert_eq!(world.topic("A").unwrap().id, before + 4);
    assert_eq!(world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]).code, 0);
    assert!(world.topic("%RETRY%g").is_some());
}

fn like(template: &str, queues: i32) -> Make {
    Make::Send { template: template.to_owned(), queues }
}

/// Some mail that can be told from others.
fn mail(number: u32) -> Mail {
    Mail::Closed { connection: connection(number) }
}

#[test]
fn missing_topics_are_made_by_their_rules() {
    let group = || "g".to_owned();
    // Auto creation on, topic, how, queues it then has.
    let rows = [
        (true, "T", like("TBW102", 4), Some(4)),
        (true, "T", like("TBW102", 16), Some(8)),
        (true, "T", like("TBW102", -3), Some(0)),
        (true, "T", like("DefaultCluster", 99), Some(16)),
        (true, "T", like("none", 4), None),
        (true, "T", like("BenchmarkTest", 4), None),
        (true, "a b", like("TBW102", 4), None),
        (false, "T", like("TBW102", 4), None),
        (false, "T", like("DefaultCluster", 4), Some(4)),
        (true, "%RETRY%g", Make::Retry { group: group() }, Some(1)),
        (true, "%RETRY%other", Make::Retry { group: group() }, None),
        (false, "%DLQ%g", Make::Dead { group: group() }, Some(1)),
    ];
    for (auto_create_topic, topic, how, queues) in rows {
        // TBW102 may be there from a time when auto creation was on.
        let facts = World::new().facts;
        let mut world = World::recovered(Settings { auto_create_topic, ..settings() }, facts);
        let ensure = Ensure { topic: topic.to_owned(), how: how.clone(), then: mail(3), back: 1 };
        world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
        world.run();
        let made = world.topic(topic);
        assert_eq!(made.map(|topic| topic.queues()), queues, "{topic} {how:?}");
        assert!(made.is_none_or(|topic| topic.config.perm == 6), "{topic} {how:?}");
        let last =
            if queues.is_some() { ["publish", "register", "resume 3 on 1"].as_slice() } else { &["resume 3 on 1"] };
        assert!(world.log.ends_with(&last.iter().map(|line| line.to_string()).collect::<Vec<_>>()), "{:?}", world.log);
    }
    // It is there already: on it goes. It is on its way: with it.
    let mut world = World::new();
    for number in [1, 2] {
        let ensure = Ensure { topic: "T".to_owned(), how: like("TBW102", 4), then: mail(number), back: 0 };
        world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
    }
    world.run();
    assert_eq!(world.logged(), ["put n/", "put t/T", "publish", "register", "resume 1 on 0", "resume 2 on 0"]);
    let ensure = Ensure { topic: "T".to_owned(), how: like("TBW102", 4), then: mail(3), back: 0 };
    world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
    world.run();
    assert_eq!(world.logged(), ["resume 3 on 0"]);
}

#[test]
fn a_first_heartbeat_makes_group_and_retry_topic() {
    let mut world = World::new();
    let answer = world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1), ("%RETRY%g", 1)])]);
    let flags = (answer.fields.get("IS_SUPPORT_HEART_BEAT_V2"), answer.fields.get("IS_SUB_CHANGE"));
    assert_eq!((answer.code, flags), (0, (Some("true"), Some("true"))));
    let wanted =
        ["put n/", "put g/g", "put t/%RETRY%g", "publish", "register", "answer 1: 0", "push 1 g"].map(str::to_owned);
    assert_eq!(world.logged(), wanted);
    let retry = world.topic("%RETRY%g").unwrap();
    assert_eq!((retry.queues(), retry.config.perm, retry.is_ordered()), (1, 6, false));
    let live = world.registrar.catalog().subscriptions("g").unwrap();
    assert_eq!((live.model, live.topics.len(), live.topic("T").unwrap().version), (MessageModel::Clustering, 2, 1));
    // The same again is answered at once.
    world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1), ("%RETRY%g", 1)])]);
    assert_eq!(world.logged(), ["answer 2: 0"]);
    // A newer version is published, quietly; an older one is not.
    world.heartbeat(1, "c1", vec![consumer("g", &[("T", 5), ("%RETRY%g", 1)])]);
    assert_eq!(world.logged(), ["publish", "answer 3: 0"]);
    world.heartbeat(1, "c1", vec![consumer("g", &[("T", 4), ("%RETRY%g", 1)])]);
    assert_eq!(world.logged(), ["answer 4: 0"]);
    let other = SubscriptionData { sub_version: 5, ..SubscriptionData::from_expression("T", "TagA").unwrap() };
    let mut same = consumer("g", &[("%RETRY%g", 1)]);
    same.subscription_data_set.push(other);
    world.heartbeat(1, "c1", vec![same]);
    assert_eq!(world.logged(), ["answer 5: 0"], "one version has one meaning");
    // Another client, another topic: everyone is told.
    world.heartbeat(2, "c2", vec![consumer("g", &[("T", 5), ("%RETRY%g", 1)])]);
    assert_eq!(world.logged(), ["answer 6: 0", "push 1 g", "push 2 g"]);
    world.heartbeat(2, "c2", vec![consumer("g", &[("T", 5)])]);
    assert_eq!(world.logged(), ["publish", "answer 7: 0", "push 1 g", "push 2 g"]);
    // An order topic makes the retry topic one; a unit's client marks a new one.
    let order: Vec<_> = topic_fields("O", "1").iter().chain(&[("order", "true")]).copied().collect();
    world.ask(0, 17, &order, Vec::new());
    world.heartbeat(1, "c1", vec![consumer("g", &[("O", 1)])]);
    assert!(world.topic("%RETRY%g").unwrap().is_ordered());
    world.heartbeat(3, "c3", vec![ConsumerData { unit_mode: true, ..consumer("u", &[("T", 1)]) }]);
    assert_eq!(world.topic("%RETRY%u").unwrap().config.topic_sys_flag, 2);
}

#[test]
fn members_are_told_of_one_another_unless_they_should_not() {
    // Message model, whether the group wants to be told, whether it is.
    let rows = [
        (MessageModel::Clustering, true, true),
        (MessageModel::Clustering, false, false),
        (MessageModel::Broadcasting, true, false),
    ];
    for (message_model, notify, told) in rows {
        let mut world = World::new();
        let config =
            SubscriptionGroupConfig { notify_consumer_ids_changed_enable: notify, ..SubscriptionGroupConfig::new("g") };
        assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
        let consumer = ConsumerData { message_model, ..consumer("g", &[("T", 1)]) };
        for (slot, client) in [(1, "c1"), (2, "c2"), (3, "c3"), (4, "c4")] {
            world.heartbeat(slot, client, vec![consumer.clone()]);
        }
        let live = world.registrar.catalog().subscriptions("g").unwrap();
        assert_eq!(live.model, message_model);
        world.logged();
        // One is closed, one says goodbye, one falls silent.
        world.act(|registrar, now_ms, wanted| registrar.on_closed(connection(1), now_ms, wanted));
        world.run();
        let pushes = |world: &mut World| {
            let log = world.logged();
            log.into_iter().filter(|line| line.starts_with("push")).collect::<Vec<_>>().join(",")
        };
        assert_eq!(pushes(&mut world), if told { "push 2 g,push 3 g,push 4 g" } else { "" });
        world.ask(2, 35, &[("clientID", "c2"), ("consumerGroup", "g")], Vec::new());
        assert_eq!(pushes(&mut world), if told { "push 3 g,push 4 g" } else { "" });
        world.tick(119_000);
        world.heartbeat(4, "c4", vec![consumer]);
        assert_eq!(pushes(&mut world), "");
        world.tick(10_001);
        assert_eq!(pushes(&mut world), if told { "push 4 g" } else { "" });
        assert!(world.registrar.catalog().subscriptions("g").is_some());
        // The last one takes the subscriptions along.
        world.act(|registrar, now_ms, wanted| registrar.on_closed(connection(4), now_ms, wanted));
        world.run();
        assert_eq!(world.logged(), ["publish"]);
        assert!(world.registrar.catalog().subscriptions("g").is_none());
    }
}

#[test]
fn heartbeats_of_version_5_may_leave_subscriptions_out() {
    let mut world = World::new();
    let mut beat = |fingerprint, without_sub, topics: &[(&str, i64)]| {
        let data = HeartbeatData {
            client_id: "c".to_owned(),
            consumer_data_set: vec![consumer("g", topics)],
            heartbeat_fingerprint: fingerprint,
            without_sub,
            ..HeartbeatData::default()
        };
        let answer = world.ask(1, 34, &[], bodies::encode(&data));
        let topics = world.registrar.catalog().subscriptions("g").map_or(0, |live| live.topics.len());
        (answer.fields.get("IS_SUB_CHANGE") == Some("true"), topics)
    };
    // We know nothing of it (a restart): it is to say all.
    assert_eq!(beat(7, true, &[]), (true, 0));
    assert_eq!(beat(7, false, &[("T", 1)]), (false, 1));
    assert_eq!(beat(7, true, &[]), (false, 1));
    assert_eq!(beat(8, false, &[("T", 1), ("U", 1)]), (true, 2));
    assert_eq!(beat(8, true, &[]), (false, 2));
    // A classic one always says so.
    assert_eq!(beat(0, false, &[("T", 1)]), (true, 1));
    assert_eq!(beat(8, false, &[("T", 1)]), (true, 1));
}

#[test]
fn members_are_listed() {
    let mut world = World::new();
    let group = [("consumerGroup", "g")];
    let answer = world.ask(1, 38, &group, Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (1, "no consumer for this group, g"));
    let answer = world.ask(1, 203, &group, Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (206, "the consumer group[g] not online"));
    let answer = world.ask(1, 204, &[("producerGroup", "p")], Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (1, "the producer group[p] not exist"));

    world.heartbeat(2, "b", vec![consumer("g", &[("T", 1)])]);
    // A client whose old connection is not yet closed is there once.
    world.heartbeat(1, "a", vec![consumer("g", &[("T", 1)])]);
    world.heartbeat(3, "a", vec![consumer("g", &[("T", 1)])]);
    let data = HeartbeatData {
        client_id: "b".to_owned(),
        producer_data_set: vec![ProducerData { group_name: "p".to_owned() }],
        ..HeartbeatData::default()
    };
    world.ask(2, 34, &[], bodies::encode(&data));
    let answer = world.ask(1, 38, &group, Vec::new());
    assert_eq!((answer.code, &answer.body[..]), (0, &br#"{"consumerIdList":["a","b"]}"#[..]));
    let answer = world.ask(1, 203, &group, Vec::new());
    let connections: ConsumerConnection = bodies::decode(&answer.body).unwrap();
    assert_eq!(connections.connection_set.len(), 3);
    let first = &connections.connection_set[0];
    let seen = (&*first.client_id, &*first.client_addr, &*first.language, first.version);
    assert_eq!(seen, ("a", "10.0.0.1:500", "GO", 317));
    assert_eq!(connections.subscription_table["T"].sub_string, "*");
    let answer = world.ask(1, 204, &[("producerGroup", "p")], Vec::new());
    let connections: ProducerConnection = bodies::decode(&answer.body).unwrap();
    assert_eq!(connections.connection_set.len(), 1);
    world.ask(2, 35, &[("clientID", "b"), ("producerGroup", "p")], Vec::new());
    assert_eq!(world.ask(1, 204, &[("producerGroup", "p")], Vec::new()).code, 1);
}

#[test]
fn bounds_refuse_with_a_reason() {
    let mut tight = settings();
    let limits = &mut tight.limits;
    (limits.topics, limits.groups, limits.group_clients, limits.group_subscriptions) = (14, 10, 2, 2);
    let mut world = World::with(tight);
    // Twelve topics and eight groups are the broker's own.
    assert_eq!(world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1)])]).code, 0);
    let answer = world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1), ("U", 1), ("V", 1)])]);
    assert_eq!((answer.code, answer.remark.as_str()), (1, "group g subscribes to more than 2 topics"));
    assert_eq!(world.heartbeat(2, "c2", vec![consumer("g", &[("T", 1)])]).code, 0);
    let answer = world.heartbeat(3, "c3", vec![consumer("g", &[("T", 1)])]);
    assert_eq!((answer.code, answer.remark.as_str()), (1, "group g has 2 clients already"));
    assert_eq!(world.create("A", "1").code, 0);
    let answer = world.create("B", "1");
    assert_eq!((answer.code, answer.remark.as_str()), (1, "this broker has 14 topics, which is its limit"));
    assert_eq!(world.create("A", "2").code, 0, "a change is not one more");
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&SubscriptionGroupConfig::new("h"))).code, 0);
    let answer = world.ask(0, 200, &[], bodies::encode(&SubscriptionGroupConfig::new("i")));
    assert_eq!((answer.code, answer.remark.as_str()), (1, "this broker has 10 consumer groups, which is its limit"));
    assert_eq!(world.heartbeat(4, &"x".repeat(513), vec![]).code, 1);
    assert_eq!(world.heartbeat(4, "", vec![]).code, 1);
    // A connection is in so many groups, and no more; what is over is not counted.
    let producers = |count| HeartbeatData {
        client_id: "c".to_owned(),
        producer_data_set: (0..count).map(|number| ProducerData { group_name: format!("p{number}") }).collect(),
        ..HeartbeatData::default()
    };
    assert_eq!(world.ask(5, 34, &[], bodies::encode(&producers(1_024))).code, 0);
    assert_eq!(world.ask(5, 34, &[], bodies::encode(&producers(1_025))).code, 1);
    assert_eq!(world.ask(0, 99, &[], Vec::new()).remark, " request type 99 not supported");
}

#[test]
fn groups_are_configured() {
    let mut world = World::new();
    let mut config = SubscriptionGroupConfig { retry_max_times: 3, ..SubscriptionGroupConfig::new("g") };
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
    assert_eq!(world.logged(), ["put n/", "put g/g", "publish", "answer 1: 0"]);
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
    assert_eq!(world.logged(), ["answer 2: 0"]);
    config.retry_queue_nums = 2;
    config.attributes.insert("+a".to_owned(), "b".to_owned());
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
    let group = world.registrar.catalog().group("g").unwrap();
    assert_eq!((group.retries_max(), group.retry_queues()), (3, 2));
    assert_eq!(group.config.attributes.get("a").map(String::as_str), Some("b"));
    // Its retry topic follows it.
    world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]);
    assert_eq!(world.topic("%RETRY%g").unwrap().queues(), 2);
    for (body, code) in [("{}", 29), ("{\"groupName\":\"a b\"}", 29), ("{", 1), ("", 1), ("{\"groupName\":3}", 1)] {
        assert_eq!(world.ask(0, 200, &[], body.into()).code, code, "{body}");
    }
    let answer = world.ask(0, 201, &[], Vec::new());
    let table: SubscriptionGroupTable = bodies::decode(&answer.body).unwrap();
    assert_eq!(table.subscription_group_table["g"].retry_max_times, 3);
    assert_eq!(table.data_version, world.registrar.catalog().groups_version);
    let one = world.ask(0, 352, &[("group", "g")], Vec::new());
    assert_eq!(bodies::decode(&one.body), Ok(table.subscription_group_table["g"].clone()));
    let answer = world.ask(0, 352, &[("group", "none")], Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (26, "No group in this broker. group: none"));
    for clean in ["false", "true", "true"] {
        assert_eq!(world.ask(0, 207, &[("groupName", "g"), ("cleanOffset", clean)], Vec::new()).code, 0);
    }
    assert!(world.registrar.catalog().group("g").is_none());
    // Without auto creation an unknown group is passed over, a built-in one is not.
    let mut world = World::with(Settings { auto_create_group: false, ..settings() });
    assert_eq!(world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]).code, 0);
    assert_eq!(world.ask(1, 38, &[("consumerGroup", "g")], Vec::new()).code, 1);
    assert_eq!(world.heartbeat(1, "c", vec![consumer("TOOLS_CONSUMER", &[("T", 1)])]).code, 0);
    assert_eq!(world.ask(1, 38, &[("consumerGroup", "TOOLS_CONSUMER")], Vec::new()).code, 0);
}

#[test]
fn tables_of_topics_are_whole() {
    let mut world = World::new();
    world.create("T", "3");
    let answer = world.ask(0, 21, &[], Vec::new());
    let table: TopicConfigTable = bodies::decode(&answer.body).unwrap();
    assert_eq!(table.topic_config_table.len(), 13);
    assert_eq!(table.topic_config_table["T"].read_queue_nums, 3);
    let one = world.ask(0, 351, &[("topic", "T")], Vec::new());
    assert_eq!(bodies::decode(&one.body), Ok(table.topic_config_table["T"].clone()));
    let answer = world.ask(0, 351, &[("topic", "none")], Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (17, "No topic in this broker. topic: none"));
    assert_eq!(table.data_version, world.registrar.catalog().topics_version);
}

#[test]
fn locks_and_filters_are_answered() {
    let mut world = World::new();
    let lock = LockBatch {
        client_id: "c".to_owned(),
        consumer_group: "g".to_owned(),
        mq_set: vec![MessageQueue { broker_name: "broker-a".to_owned(), queue_id: 1, topic: "T".to_owned() }],
        only_this_broker: false,
    };
    let other = LockBatch { client_id: "d".to_owned(), ..lock.clone() };
    // Code, who, queues held afterwards; `None`: no body.
    let rows = [(41, &lock, Some(1)), (41, &other, Some(0)), (42, &other, None), (41, &other, Some(0))];
    for (code, body, held) in rows.into_iter().chain([(42, &lock, None), (41, &other, Some(1))]) {
        let answer = world.ask(1, code, &[], bodies::encode(body));
        let queues = bodies::decode::<LockAnswer>(&answer.body).ok().map(|answer| answer.queues.len());
        assert_eq!((answer.code, queues), (0, held));
    }
    assert_eq!(world.ask(1, 41, &[], b"{}".to_vec()).code, 1);
    let rows = [
        ("", 0),
        (r#"{"subscriptionData":{"topic":"T","subString":"A"}}"#, 0),
        (r#"{"subscriptionData":{"topic":"T","subString":"a > 1","expressionType":"SQL92"}}"#, 1),
        ("x", 1),
    ];
    for (body, code) in rows {
        assert_eq!(world.ask(1, 46, &[], body.into()).code, code, "{body}");
    }
}

#[test]
fn a_retry_learns_whether_its_group_consumes_in_order() {
    let mut world = World::new();
    let lock = LockBatch {
        client_id: "c".to_owned(),
        consumer_group: "g".to_owned(),
        mq_set: vec![MessageQueue { broker_name: "broker-a".to_owned(), queue_id: 1, topic: "T".to_owned() }],
        only_this_broker: false,
    };
    let timeout_ms = world.registrar.settings.limits.lock_timeout_ms;
    assert_eq!(world.ask(1, 41, &[], bodies::encode(&lock)).code, 0);
    // Time that passes, group, what the send learns.
    for (later_ms, group, orderly) in [(0, "g", true), (timeout_ms, "g", true), (0, "h", false), (1, "g", false)] {
        world.now_ms += later_ms;
        let then = Mail::Request(Box::new(world.request(1, 310, &[], Vec::new())));
        let (topic, how) = (format!("%RETRY%{group}"), Make::Retry { group: group.to_owned() });
        let ensure = Ensure { topic, how, then, back: 1 };
        world.logged();
        world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
        world.run();
        let wanted = format!("resume a send on 1, orderly: {orderly}");
        assert_eq!(world.logged().last(), Some(&wanted), "{group} {later_ms} ms later");
    }
}

#[test]
fn all_cores_answer_together() {
    let mut world = World::new();
    world.create("T", "2");
    world.create("U", "1");
    let id = world.topic("U").unwrap().id;
    assert_eq!(id, 13, "the answers below count on it");
    world.tell = |question| match question {
        Question::Topic { .. } => Part::Topic(vec![QueueStats { queue: 1, min: 2, max: 9, last_ms: 77 }]),
        Question::TopicsOf { .. } => Part::TopicsOf(BTreeSet::from([13, 999])),
        Question::Progress { topics, .. } => {
            let progress = |topic| QueueProgress { topic, queue: 0, broker: 9, consumer: 4, last_ms: 55 };
            Part::Progress((0..topics.len()).map(progress).collect())
        }
        Question::GroupsOf { .. } => Part::GroupsOf(BTreeSet::from(["stored".to_owned()])),
        Question::Messages { count, .. } => {
            Part::Messages((0..*count as u64).map(|time| (time, Bytes::from(vec![time as u8]))).collect())
        }
        question => nothing(question),
    };
    let answer = world.ask(0, 202, &[("topic", "T")], Vec::new());
    let stats: TopicStatsTable = bodies::decode(&answer.body).unwrap();
    let queue =
        |topic: &str, queue_id| MessageQueue { broker_name: "broker-a".to_owned(), queue_id, topic: topic.to_owned() };
    let offset = stats.offset_table[&queue("T", 1)];
    assert_eq!((offset.min_offset, offset.max_offset, offset.last_update_timestamp), (2, 9, 77));
    assert_eq!(world.ask(0, 202, &[("topic", "none")], Vec::new()).code, 17);

    // Without a topic, by topic, and by list; topics that are not there do not count.
    for topic in [("topic", ""), ("topic", "U"), ("topicList", "none;U;")] {
        let answer = world.ask(0, 208, &[("consumerGroup", "g"), topic], Vec::new());
        let stats: ConsumeStats = bodies::decode(&answer.body).unwrap();
        let offset = stats.offset_table[&queue("U", 0)];
        let seen = (offset.broker_offset, offset.consumer_offset, offset.pull_offset, offset.last_timestamp);
        assert_eq!((seen, stats.offset_table.len()), ((9, 4, 4, 55), 1));
    }
    // A live group's offsets in topics that it left do not count.
    world.heartbeat(1, "c", vec![consumer("live", &[("T", 1)])]);
    for (topic, rows) in [("T", 1), ("U", 0), ("", 0)] {
        let answer = world.ask(0, 208, &[("consumerGroup", "live"), ("topic", topic)], Vec::new());
        let stats: ConsumeStats = bodies::decode(&answer.body).unwrap();
        assert_eq!((answer.code, stats.offset_table.len()), (0, rows), "{topic}");
    }
    let answer = world.ask(0, 300, &[("topic", "T")], Vec::new());
    assert_eq!(&answer.body[..], br#"{"groupList":["live","stored"]}"#);

    let query = |max, unique| {
        let times = [("beginTimestamp", "0"), ("endTimestamp", "9223372036854775807")];
        let what = [("topic", "T"), ("key", "k"), ("maxNum", max), ("_UNIQUE_KEY_QUERY", unique)];
        [what.as_slice(), times.as_slice()].concat()
    };
    // Both cores have so many; the newest of all count.
    let answer = world.ask(0, 12, &query("3", "false"), Vec::new());
    assert_eq!((answer.code, &answer.body[..]), (0, &[2u8, 2, 1][..]));
    assert_eq!(answer.fields.get("indexLastUpdateTimestamp"), Some("2"));
    assert_eq!(world.ask(0, 12, &query("3", "true"), Vec::new()).body.len(), 32);
    assert_eq!(world.ask(0, 12, &query("999", "false"), Vec::new()).body.len(), 64);
    let answer = world.ask(0, 12, &query("0", "false"), Vec::new());
    assert_eq!((answer.code, answer.body.len()), (22, 0));
    assert_eq!(answer.fields.get("indexLastUpdatePhyoffset"), Some("0"));
}

#[test]
fn the_broker_tells_about_itself() {
    let mut world = World::new();
    let answer = world.ask(0, 26, &[], Vec::new());
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    for line in ["brokerName=broker-a\n", "listenPort=10911\n", "flushDiskType=SYNC_FLUSH\n"] {
        assert!(text.contains(line), "{line}");
    }
    assert!(text.contains("messageDelayLevel=1s 5s 10s 30s "));
    let version = world.registrar.catalog().topics_version;
    assert_eq!(bodies::decode(answer.fields.get("version").unwrap().as_bytes()), Ok(version));

    // Two cores count 500 each in the ten seconds between two samples.
    world.tell = |_| Part::Tally(Box::default());
    world.tick(10_000);
    world.tell = |_| {
        let traffic = Traffic { put_messages: 500, put_bytes: 5_000, got_messages: 50, ..Traffic::default() };
        let (earliest_ms, disk) = (Some(123), Some((1_000, 250)));
        let closed = std::array::from_fn(|reason| reason as u64);
        let counters = Counters { accepted: 1, closed, requests: 2, starved: 3, turns: 4 };
        let logs = Counts { batches: 5, bytes: 6, records: 7, unprepared_bytes: 8, stalls: 9, refusals: 10 };
        Part::Tally(Box::new(Tally { traffic, counters, logs, earliest_ms, disk, ..Tally::default() }))
    };
    world.tick(10_000);
    let answer = world.ask(0, 28, &[], Vec::new());
    let table = bodies::decode::<KvTable>(&answer.body).unwrap().table;
    let rows = [
        ("putTps", "100.0 50.0 50.0"),
        ("getTransferredTps", "10.0 5.0 5.0"),
        ("msgPutTotalTodayNow", "1000"),
        ("putMessageAverageSize", "10.0"),
        ("earliestMessageTimeStamp", "123"),
        ("commitLogDiskRatio", "0.75"),
        ("brokerVersionDesc", "V5_3_3"),
        ("brokerVersion", "479"),
        ("runtime", "[ 0 days, 0 hours, 17 minutes, 0 seconds ]"),
        ("ringmq_connections_accepted", "2"),
        ("ringmq_connections_closed_peer", "0"),
        ("ringmq_connections_closed_garbage", "4"),
        ("ringmq_connections_closed_stop", "16"),
        ("ringmq_requests", "4"),
        ("ringmq_receives_starved", "6"),
        ("ringmq_turns", "8"),
        ("ringmq_log_batches", "10"),
        ("ringmq_log_bytes", "12"),
        ("ringmq_log_records", "14"),
        ("ringmq_log_unprepared_bytes", "16"),
        ("ringmq_log_stalls", "18"),
        ("ringmq_log_refusals", "20"),
    ];
    for (key, value) in rows {
        assert_eq!(table.get(key).map(String::as_str), Some(value), "{key}");
    }
    // What ClusterListSubCommand reads without asking whether it is there (PROTOCOL 4.22).
    let keys = "brokerActive sendThreadPoolQueueSize pullThreadPoolQueueSize ackThreadPoolQueueSize \
        sendThreadPoolQueueHeadWaitTimeMills pullThreadPoolQueueHeadWaitTimeMills \
        ackThreadPoolQueueHeadWaitTimeMills pageCacheLockTimeMills timerReadBehind timerOffsetBehind \
        timerCongestNum timerEnqueueTps timerDequeueTps msgPutTotalYesterdayMorning msgPutTotalTodayMorning \
        msgGetTotalYesterdayMorning msgGetTotalTodayMorning msgGetTotalTodayNow";
    for key in keys.split_whitespace() {
        assert!(table.contains_key(key), "{key}");
    }
}

#[test]
fn too_many_questions_are_refused() {
    let mut world = World::new();
    let before = world.opaque;
    for _ in 0..admin::GATHERINGS_MAX + 1 {
        world.send(0, 28, &[], Vec::new());
    }
    world.run();
    let codes: Vec<i32> = world.answers.range(before..).map(|(_, answer)| answer.code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), admin::GATHERINGS_MAX);
    assert_eq!(codes.last(), Some(&2));
    assert_eq!(world.ask(0, 28, &[], Vec::new()).code, 0, "and then there is room again");
}

/// What a catalog keeps across a restart.
fn kept(catalog: &Catalog) -> (BTreeMap<String, Topic>, BTreeMap<String, Group>) {
    let topics = catalog.topics().map(|topic| (topic.name.to_string(), Topic::clone(topic)));
    let groups = catalog.groups().map(|group| (group.name.to_string(), Group::clone(group)));
    (topics.collect(), groups.collect())
}

/// Small random numbers: Java's generator.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = (self.0.wrapping_mul(0x5_deec_e66d).wrapping_add(11)) & ((1 << 48) - 1);
        (self.0 >> 17) % bound
    }
}

/// Method: the same random requests to two registrars, with orders carried out at random moments and
/// a disk that sometimes fails; then both are compared with each other, and with what their facts give.
#[test]
fn two_registrars_agree_and_recover_what_they_said() {
    for seed in 0..30 {
        let run = || {
            let mut noise = Noise(seed);
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
