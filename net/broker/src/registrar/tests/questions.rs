//! Questions to the registrar, and those it asks all cores.

use protocol::ids::{key_hash, tag_key_hash};

use super::*;

#[test]
fn tables_of_topics_are_whole() {
    let mut world = World::new();
    world.create("T", "3");
    let answer = world.ask(0, 21, &[], Vec::new());
    let table: TopicConfigTable = bodies::decode(&answer.body).unwrap();
    assert_eq!(table.topic_config_table.len(), 14);
    assert_eq!(table.topic_config_table["T"].read_queue_nums, 3);
    let one = world.ask(0, 351, &[("topic", "T")], Vec::new());
    assert_eq!(bodies::decode(&one.body), Ok(table.topic_config_table["T"].clone()));
    let answer = world.ask(0, 351, &[("topic", "none")], Vec::new());
    assert_eq!((answer.code, answer.remark.as_str()), (17, "No topic in this broker. topic: none"));
    assert_eq!(table.data_version, world.registrar.catalog().topics_version);
}

#[test]
fn all_cores_answer_together() {
    let mut world = World::new();
    world.create("T", "2");
    world.create("U", "1");
    let id = world.topic("U").unwrap().id;
    assert_eq!(id, 14, "the answers below count on it");
    world.tell = |question| match question {
        Question::Topic { .. } => Part::Topic(vec![QueueStats { queue: 1, min: 2, max: 9, last_ms: 77 }]),
        Question::TopicsOf { .. } => Part::TopicsOf(BTreeSet::from([14, 999])),
        Question::Progress(asked) => {
            let progress = |asked| QueueProgress { asked, queue: 0, broker: 9, consumer: 4, given: 6, last_ms: 55 };
            Part::Progress((0..asked.len()).map(progress).collect())
        }
        Question::GroupsOf { .. } => Part::GroupsOf(BTreeSet::from(["stored".to_owned()])),
        Question::Messages { count, .. } => Part::Messages {
            found: (0..*count as u64).map(|time| (time, Bytes::from(vec![time as u8]))).collect(),
            is_partial: false,
        },
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
        assert_eq!((seen, stats.offset_table.len()), ((9, 4, 6, 55), 1));
    }
    // A live group's offsets in topics that it left do not count.
    world.heartbeat(1, "c", vec![consumer("live", &[("T", 1)])]);
    // But who lists topics is told of all of them.
    for (field, topic, rows) in
        [("topic", "T", 1), ("topic", "U", 0), ("topic", "", 0), ("topicList", "U;none", 1), ("topicList", "T;U", 2)]
    {
        let answer = world.ask(0, 208, &[("consumerGroup", "live"), (field, topic)], Vec::new());
        let stats: ConsumeStats = bodies::decode(&answer.body).unwrap();
        assert_eq!((answer.code, stats.offset_table.len()), (0, rows), "{field} {topic}");
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
    // A tag is not a key; what else stock tools say of a key means one.
    world.tell = |question| match question {
        Question::Messages { key, .. } => {
            let kinds = [tag_key_hash("T", "k"), key_hash("T", "k")];
            let kind = kinds.iter().position(|kind| kind == key).expect("one of the two");
            Part::Messages { found: vec![(1, Bytes::from(vec![kind as u8]))], is_partial: false }
        }
        question => nothing(question),
    };
    for (kind, unique, is_key) in [("K", "false", 1), ("", "false", 1), ("T", "false", 0), ("T", "true", 1)] {
        let fields = [&query("1", unique)[..], &[("indexType", kind), ("lastKey", "x")]].concat();
        let answer = world.ask(0, 12, &fields, Vec::new());
        assert_eq!((answer.code, answer.body.first()), (0, Some(&is_key)), "{kind} {unique}");
    }
}

#[test]
fn all_groups_are_told_with_all_queues_of_their_topics() {
    let mut world = World::new();
    world.create("T", "2");
    world.create("U", "1");
    world.create("W", "200");
    let ids = ["T", "U", "W"].map(|topic| world.topic(topic).unwrap().id);
    assert_eq!(ids, [13, 14, 15], "the answers below count on it");
    let config = |name: &str| SubscriptionGroupConfig { group_name: name.to_owned(), ..Default::default() };
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config("g"))).code, 0);
    world.heartbeat(1, "c", vec![consumer("live", &[("T", 1)])]);
    // Each core has one queue of every topic.
    world.tell = |question| match question {
        Question::Consumed => {
            let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let consumed = [(13, groups(&["g", "gone"])), (14, groups(&["g", "live"])), (99, groups(&["g"]))];
            Part::Consumed(Some(consumed.into()))
        }
        Question::Progress(asked) => {
            let seen: Vec<_> = asked.iter().map(|of| (of.group.as_str(), &*of.topic, of.id, of.queues)).collect();
            assert_eq!(seen, [("g", "T", 13, 2), ("g", "U", 14, 1)]);
            let progress = |asked| QueueProgress { asked, queue: 0, broker: 9, consumer: 4, given: 6, last_ms: 55 };
            Part::Progress((0..asked.len()).map(progress).collect())
        }
        question => nothing(question),
    };
    let answer = world.ask(0, 317, &[("isOrder", "false")], Vec::new());
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let row = |topic: &str| {
        let offsets = r#"{"brokerOffset":9,"consumerOffset":4,"lastTimestamp":55,"pullOffset":6}"#;
        let queue = format!(r#"{{"brokerName":"broker-a","queueId":0,"topic":"{topic}"}}"#);
        assert_eq!(format!("{queue}:{offsets},").len(), admin::ROW_BYTES_MIN + "broker-a".len() + topic.len() + 1);
        format!(r#"{{"consumeTps":0.0,"offsetTable":{{{queue}:{offsets}}}}}"#)
    };
    assert!(text.contains(&format!(r#"{{"g":[{},{}]}}"#, row("T"), row("U"))), "{text}");
    assert!(text.contains(r#"{"live":[]}"#) && text.contains(r#"{"TOOLS_CONSUMER":[]}"#), "{text}");
    assert!(!text.contains("gone") && text.ends_with(r#""totalDiff":20,"totalInflightDiff":8}"#), "{text}");
    // Too much is refused before it is asked, and if a core says so.
    for number in 0..700 {
        world.ask(0, 200, &[], bodies::encode(&config(&format!("g{number}"))));
    }
    let many = |question: &Question| match question {
        Question::Consumed => Part::Consumed(Some([(15, (0..700).map(|group| format!("g{group}")).collect())].into())),
        question => panic!("{question:?} is not asked"),
    };
    let none = |question: &Question| match question {
        Question::Consumed => Part::Consumed(None),
        question => panic!("{question:?} is not asked"),
    };
    for tell in [many, none] {
        world.tell = tell;
        let answer = world.ask(0, 317, &[("isOrder", "false")], Vec::new());
        assert!(answer.code == 1 && answer.remark.contains("fit a frame"), "{}", answer.remark);
    }
    assert_eq!(world.ask(0, 317, &[("isOrder", "false")], Vec::new()).code, 1);
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

#[test]
fn who_produces_who_subscribes_and_what_a_group_read() {
    let mut world = World::new();
    let producers = world.ask(0, request::GET_ALL_PRODUCER_INFO, &[], Vec::new());
    assert_eq!(producers.body, r#"{"data":{}}"#);
    let beat = HeartbeatData {
        client_id: "c".to_owned(),
        consumer_data_set: vec![consumer("g", &[("T", 7)])],
        producer_data_set: vec![ProducerData { group_name: "p".to_owned() }],
        ..HeartbeatData::default()
    };
    world.ask(3, request::HEART_BEAT, &[], bodies::encode(&beat));
    let producers = world.ask(0, request::GET_ALL_PRODUCER_INFO, &[], Vec::new());
    let wanted = r#"{"data":{"p":[{"clientId":"c","language":"GO","lastUpdateTimestamp":1000000,"remoteIP":"10.0.0.3:500","version":317}]}}"#;
    assert_eq!(producers.body, wanted);
    let subscription = |world: &mut World, topic: &str| {
        let answer =
            world.ask(0, request::QUERY_SUBSCRIPTION_BY_CONSUMER, &[("group", "g"), ("topic", topic)], Vec::new());
        bodies::decode::<bodies::GroupSubscription>(&answer.body).unwrap()
    };
    let found = subscription(&mut world, "T");
    assert_eq!((found.group.as_str(), found.topic.as_str()), ("g", "T"));
    assert_eq!(found.subscription_data.map(|data| data.sub_version), Some(7));
    assert_eq!(subscription(&mut world, "U").subscription_data, None);
    world.create("T", "1");
    world.tell = |question| match question {
        Question::TopicsOf { group } if group == "g" => Part::TopicsOf((0..1_000).collect()),
        other => nothing(other),
    };
    let topics = world.ask(0, request::QUERY_TOPICS_BY_CONSUMER, &[("group", "g")], Vec::new());
    let topics: bodies::TopicList = bodies::decode(&topics.body).unwrap();
    assert!(topics.topic_list.contains("T"));
    let system = world.ask(0, request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER, &[], Vec::new());
    let system: bodies::TopicList = bodies::decode(&system.body).unwrap();
    assert!(system.topic_list.contains("TBW102") && system.topic_list.contains("broker-a"));
    assert!(!system.topic_list.contains("T"));
}
