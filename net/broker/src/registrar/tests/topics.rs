//! Topics: made, changed, deleted; each change durable and everywhere before it is answered.

use super::*;

#[test]
fn a_fresh_broker_has_the_system_topics_and_groups() {
    let mut world = World::recovered(settings(), BTreeMap::new());
    world.tick(0);
    assert_eq!(world.log.last().map(String::as_str), Some("register"));
    assert!(world.log.contains(&"put n/".to_owned()), "with the counters");
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
        // One queue for each partition.
        ("TRANS_CHECK_MAX_TIME_TOPIC", world.registrar.settings.partitions.into(), 6),
    ];
    for (name, queues, perm) in rows {
        let topic = world.topic(name).unwrap_or_else(|| panic!("no {name}"));
        let seen = (topic.read_queues(), topic.write_queues(), topic.config.perm);
        assert_eq!(seen, (queues, queues, perm), "{name}");
        assert!(crate::topics::is_system(&world.registrar.settings, name), "{name}");
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
    let rows: [(&[(&str, &str)], i32); 27] = [
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
        (&[("attributes", "+message.type=FIFO,-message.type")], 1),
        (&[("attributes", "+message.type=DELAY")], 0),
        (&[("attributes", "+cleanup.policy=DELETE_ALL")], 1),
        (&[("topic", "C"), ("attributes", "+cleanup.policy=COMPACTION")], 0),
        (&[("topic", "C"), ("attributes", "+cleanup.policy=DELETE")], 1),
        (&[("topic", "D"), ("attributes", "+cleanup.policy=COMPACTION,+queue.type=BatchCQ")], 29),
        (&[("attributes", "nonsense")], 1),
        (&[("attributes", "+message.type=MIXED")], 29),
        (&[("attributes", "+message.type=ODD")], 1),
        (&[("attributes", "+queue.type=SimpleCQ")], 1),
        (&[("attributes", "+message.type=PRIORITY,+reserve.time=7")], 0),
        (&[("attributes", "+message.type=FIFO,-reserve.time")], 0),
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
    assert_eq!(world.logged(), ["put n/", "put t/T", "publish", "register", "answer 29: 0"]);
    // What changes nothing touches nothing.
    assert_eq!(world.ask(0, 17, &pairs, Vec::new()).code, 0);
    assert_eq!(world.logged(), ["answer 30: 0"]);
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

#[test]
fn what_the_log_says_of_a_change_that_failed_counts() {
    for keeps in [false, true] {
        let mut world = World::new();
        world.create("kept", "1");
        world.create("changed", "4");
        let [kept, changed] = ["kept", "changed"].map(|name| world.topic(name).unwrap().id);
        (world.disk_ok, world.disk_keeps) = (false, keeps);
        // One after the other: what is accepted while another change is under way is not written.
        assert_eq!(world.ask(0, 215, &[("topic", "kept")], Vec::new()).code, response::SERVICE_NOT_AVAILABLE);
        for (topic, queues) in [("changed", "8"), ("new", "4")] {
            assert_eq!(world.create(topic, queues).code, response::SERVICE_NOT_AVAILABLE, "{topic}");
        }
        // Until the log was read again, what is there stays, but one that may be deleted takes nothing.
        assert_eq!(world.topic("kept").unwrap().id, kept);
        let catalog = world.registrar.catalog();
        assert!(catalog.is_doubtful(kept) && !catalog.is_doubtful(changed));
        assert!(world.topic("new").is_none());

        world.disk_ok = true;
        let keys: Vec<&[u8]> = world.registrar.doubt().collect();
        assert!(keys.contains(&&b"t/kept"[..]) && keys.contains(&&b"n/"[..]), "{keys:?}");
        world.log_was_read();
        world.run();
        assert_eq!(world.topic("kept").map(|topic| topic.id), (!keeps).then_some(kept));
        assert_eq!(world.topic("changed").unwrap().queues(), if keeps { 8 } else { 4 });
        assert_eq!(world.topic("new").is_some(), keeps);
        let catalog = world.registrar.catalog();
        assert!(!catalog.is_doubtful(kept) && world.registrar.doubt().count() == 0);
        // A start finds the same.
        let recovered = World::recovered(settings(), world.facts.clone());
        for name in ["kept", "changed", "new"] {
            assert_eq!(recovered.topic(name), world.topic(name), "{name}");
        }
        assert_eq!(world.create("another", "1").code, 0);
    }
}

#[test]
fn what_is_accepted_while_the_log_is_read_again_is_newer() {
    for keeps in [false, true] {
        for again in [215, 17] {
            let mut world = World::new();
            world.create("kept", "1");
            (world.disk_ok, world.disk_keeps) = (false, keeps);
            let first = world.send(0, 215, &[("topic", "kept")], Vec::new());
            // It fails; what the cores hold instead is on its way when the next one comes.
            assert!(world.step());
            let fields = if again == 215 { vec![("topic", "kept")] } else { topic_fields("kept", "4").to_vec() };
            let second = world.send(0, again, &fields, Vec::new());
            world.disk_ok = true;
            world.log_was_read();
            world.run();
            let codes = [first, second].map(|opaque| world.answers[&opaque].code);
            assert_eq!(codes, [response::SERVICE_NOT_AVAILABLE, 0], "{again}");
            assert_eq!(world.topic("kept").is_some(), again == 17);
            let recovered = World::recovered(settings(), world.facts.clone());
            assert_eq!(recovered.topic("kept"), world.topic("kept"), "{again}: a start finds the same");
        }
    }
}

#[test]
fn what_is_as_it_is_asked_to_be_is_not_if_the_log_may_say_something_else() {
    let mut world = World::new();
    world.create("kept", "1");
    (world.disk_ok, world.disk_keeps) = (false, true);
    let failed = [(215, vec![("topic", "kept")]), (17, topic_fields("new", "1").to_vec())];
    let group = || br#"{"groupName":"g"}"#.to_vec();
    for (code, fields) in &failed {
        assert_eq!(world.ask(0, *code, fields, Vec::new()).code, response::SERVICE_NOT_AVAILABLE);
    }
    assert_eq!(world.ask(0, 200, &[], group()).code, response::SERVICE_NOT_AVAILABLE);
    let settings_of = |value: &str| format!("transactionCheckMax={value}").into_bytes();
    assert_eq!(world.ask(0, 25, &[], settings_of("7")).code, response::SERVICE_NOT_AVAILABLE);
    // None of these changes what there is; but the log has it otherwise.
    let asked =
        [(17, topic_fields("kept", "1").to_vec()), (215, vec![("topic", "new")]), (207, vec![("groupName", "g")])];
    for (code, fields) in &asked {
        assert_eq!(world.ask(0, *code, fields, Vec::new()).code, response::SERVICE_NOT_AVAILABLE, "{code}");
    }
    assert_eq!(world.ask(0, 25, &[], settings_of("15")).code, response::SERVICE_NOT_AVAILABLE);
}

#[test]
fn what_the_log_said_is_in_doubt_again_if_it_could_not_be_published() {
    let mut world = World::new();
    world.create("kept", "1");
    let kept = world.topic("kept").unwrap().id;
    (world.disk_ok, world.disk_keeps) = (false, true);
    world.send(0, 215, &[("topic", "kept")], Vec::new());
    assert!(world.step());
    let new = world.send(0, 17, &topic_fields("new", "4"), Vec::new());
    // The log has the deletion; and fails once more.
    world.log_was_read();
    world.run();
    assert_eq!(world.answers[&new].code, response::SERVICE_NOT_AVAILABLE);
    assert!(world.registrar.catalog().is_doubtful(kept), "it takes nothing");
    world.disk_ok = true;
    world.log_was_read();
    world.run();
    assert!(world.topic("kept").is_none() && world.registrar.doubt().count() == 0);
    let recovered = World::recovered(settings(), world.facts.clone());
    assert!(recovered.topic("kept").is_none());
    assert_eq!(recovered.topic("new"), world.topic("new"));
    assert_eq!(world.create("another", "1").code, 0);
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
fn many_are_made_at_once_or_none() {
    let mut world = World::new();
    let topics = |names: &[&str]| {
        let list = names.iter().map(|name| format!(r#"{{"topicName":"{name}","readQueueNums":3,"writeQueueNums":3}}"#));
        format!(r#"{{"topicConfigList":[{}]}}"#, list.collect::<Vec<_>>().join(",")).into_bytes()
    };
    let groups = |names: &[&str]| {
        let list = names.iter().map(|name| format!(r#"{{"groupName":"{name}","retryQueueNums":2}}"#));
        format!(r#"{{"groupConfigList":[{}]}}"#, list.collect::<Vec<_>>().join(",")).into_bytes()
    };
    for (code, body) in [(18, topics(&["A", "TBW102"])), (18, topics(&["A", "b c"])), (225, groups(&["g", "h i"]))] {
        assert_eq!(world.ask(0, code, &[], body).code, response::INVALID_PARAMETER);
    }
    assert_eq!(world.ask(0, 18, &[], b"{".to_vec()).code, response::SYSTEM_ERROR);
    assert!(world.topic("A").is_none() && world.registrar.catalog().group("g").is_none(), "none");
    world.logged();
    assert_eq!(world.ask(0, 18, &[], topics(&["A", "B"])).code, 0);
    assert_eq!(world.logged(), ["put n/", "put t/A", "put t/B", "publish", "register", "answer 5: 0"]);
    assert_eq!(world.topic("B").map(|topic| topic.read_queues()), Some(3));
    assert_eq!(world.ask(0, 225, &[], groups(&["g", "h"])).code, 0);
    assert_eq!(world.registrar.catalog().group("h").map(|group| group.retry_queues()), Some(2));
    // Together they would be too many.
    let mut limited = settings();
    limited.limits.topics = 64;
    let mut world = World::with(limited);
    let names: Vec<String> = (0..60).map(|number| format!("N{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(world.ask(0, 18, &[], topics(&names)).code, response::SYSTEM_ERROR);
    assert!(world.topic("N0").is_none());
}

#[test]
fn attributes_are_taken_as_a_whole_or_not_at_all() {
    let mut world = World::new();
    let group = |attributes: &str| format!(r#"{{"groupName":"g","attributes":{attributes}}}"#).into_bytes();
    // Change, code, the group's attributes then.
    let rows = [
        (r#"{"priority.factor":"5"}"#, 1, None),
        (r#"{"+priority.factor":"5"}"#, 0, Some("priority.factor=5")),
        (r#"{"+priority.factor":"6","+odd":"1"}"#, 1, Some("priority.factor=5")),
        (r#"{"+priority.factor":"101"}"#, 1, Some("priority.factor=5")),
        ("{}", 0, Some("priority.factor=5")),
        (r#"{"-priority.factor":""}"#, 0, Some("")),
        (r#"{"-priority.factor":""}"#, 1, Some("")),
    ];
    for (change, code, wanted) in rows {
        let answer = world.ask(0, 200, &[], group(change));
        assert_eq!(answer.code, code, "{change}: {}", answer.remark);
        let seen = world.registrar.catalog().group("g").map(|group| {
            let pairs = group.config.attributes.iter().map(|(key, value)| format!("{key}={value}"));
            pairs.collect::<Vec<_>>().join(",")
        });
        assert_eq!(seen.as_deref(), wanted, "{change}");
    }
    // MIXED is for brokers that want it; and code 18 says its changes in the same way.
    let topic = |kind: &str| {
        let text = format!(r#"{{"topicName":"T","readQueueNums":1,"writeQueueNums":1,"perm":6,"attributes":{kind}}}"#);
        format!(r#"{{"topicConfigList":[{text}]}}"#).into_bytes()
    };
    assert_eq!(world.ask(0, 18, &[], topic(r#"{"+message.type":"MIXED"}"#)).code, 29);
    assert_eq!(world.ask(0, request::UPDATE_BROKER_CONFIG, &[], b"enableMixedMessageType=true".to_vec()).code, 0);
    assert_eq!(world.ask(0, 18, &[], topic(r#"{"message.type":"MIXED"}"#)).code, 1);
    assert_eq!(world.ask(0, 18, &[], topic(r#"{"+message.type":"MIXED"}"#)).code, 0);
    assert_eq!(world.topic("T").unwrap().config.attributes["message.type"], "MIXED");
    assert_eq!(world.ask(0, 18, &[], topic(r#"{"-message.type":""}"#)).code, 0);
    assert!(world.topic("T").unwrap().config.attributes.is_empty());
}

#[test]
fn what_was_popped_of_a_topic_in_vain_goes_with_it() {
    let popped_of = |world: &mut World, id: u32, group: &str, topic: &str, retry: &str| {
        let lent = (topic.to_owned(), id);
        let how = Make::PopRetry { group: group.to_owned(), topic: topic.to_owned(), lent, queues: 1 };
        let ensure = Ensure { topic: retry.to_owned(), how, then: mail(1), back: 0 };
        world.act(|registrar, now_ms, wanted| registrar.on_ensure(ensure, now_ms, wanted));
        world.run();
    };
    let popped = |world: &mut World, group: &str, topic: &str, retry: &str| {
        popped_of(world, world.topic(topic).map_or(0, |topic| topic.id), group, topic, retry);
    };
    let delete = |world: &mut World, topic: &str| world.ask(0, 215, &[("topic", topic)], Vec::new()).code;
    for clears in [true, false] {
        let mut world = World::with(Settings { clear_retry_topics: clears, ..settings() });
        for topic in ["T", "U", "x_T"] {
            world.create(topic, "4");
        }
        // A group `b_T` has a retry topic of its own, and `a_x` and T have the name of what is of `a` and `x_T`.
        for group in ["g", "a", "a_x", "b", "b_T"] {
            let body = format!(r#"{{"groupName":"{group}"}}"#).into_bytes();
            assert_eq!(world.ask(0, 200, &[], body).code, 0);
        }
        let made = [
            ("g", "T", "%RETRY%g_T"),
            ("g", "T", "%RETRY%g+T"),
            ("gone", "T", "%RETRY%gone+T"),
            ("g", "U", "%RETRY%g_U"),
            ("g", "U", "%RETRY%g+U"),
            ("a", "x_T", "%RETRY%a_x_T"),
            ("b_T", "T", "%RETRY%b_T"),
        ];
        for (group, topic, retry) in made {
            popped(&mut world, group, topic, retry);
            assert!(world.topic(retry).is_some(), "{retry}");
        }
        world.logged();
        assert_eq!(delete(&mut world, "T"), 0);
        let mut wanted = vec!["put n/"];
        wanted.extend(if clears {
            ["put t/%RETRY%g+T", "put t/%RETRY%g_T", "put t/%RETRY%gone+T"].as_slice()
        } else {
            &[]
        });
        wanted.extend(["put t/T", "publish", "register"]);
        let logged = world.logged();
        assert_eq!(logged[..logged.len() - 1], wanted, "one change");
        for (_, topic, retry) in &made[3..] {
            assert!(world.topic(retry).is_some(), "{retry} of {topic}");
        }
        // A message that was on its way there is of no topic any more.
        popped(&mut world, "g", "T", "%RETRY%g_T");
        assert_eq!(world.topic("%RETRY%g_T").is_some(), !clears);
        // Nor of another topic that has its name.
        let old = world.topic("U").expect("it is there").id;
        assert_eq!(delete(&mut world, "U"), 0);
        world.create("U", "4");
        popped_of(&mut world, old, "g", "U", "%RETRY%g_U");
        assert_eq!(world.topic("%RETRY%g_U").is_some(), !clears);
        popped(&mut world, "g", "U", "%RETRY%g_U");
        assert!(world.topic("%RETRY%g_U").is_some());
        let again = World::recovered(settings(), world.facts.clone());
        assert_eq!(kept(again.registrar.catalog()), kept(world.registrar.catalog()));
    }
}
