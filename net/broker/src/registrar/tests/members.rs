//! Groups, their members, and the queues that they lock.

use protocol::bodies::{Assignments, ConsumeType, QueryAssignment, RequestMode, SetRequestMode};

use super::*;
use crate::routes::FRESH_MS;

/// Client `c` of group `g` locks queue 1 of topic `T`.
fn lock() -> LockBatch {
    LockBatch {
        client_id: "c".to_owned(),
        consumer_group: "g".to_owned(),
        mq_set: vec![MessageQueue { broker_name: "broker-a".to_owned(), queue_id: 1, topic: "T".to_owned() }],
        only_this_broker: false,
    }
}

#[test]
fn a_first_heartbeat_makes_group_and_retry_topic() {
    let mut world = World::new();
    let answer = world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1), ("%RETRY%g", 1)])]);
    let flags = (answer.fields.get("IS_SUPPORT_HEART_BEAT_V2"), answer.fields.get("IS_SUB_CHANGE"));
    assert_eq!((answer.code, flags), (0, (Some("true"), Some("true"))));
    let wanted =
        ["put g/g", "put n/", "put t/%RETRY%g", "publish", "register", "answer 1: 0", "push 1 g"].map(str::to_owned);
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
fn members_that_pull_leave_when_they_are_no_longer_wanted() {
    let mut world = World::new();
    let of_type = |group: &str, consume_type| ConsumerData { consume_type, ..consumer(group, &[("T", 1)]) };
    let pulls = || of_type("g", ConsumeType::ConsumeActively);
    world.heartbeat(1, "c", vec![pulls()]);
    assert!(world.registrar.catalog().subscriptions("g").is_some());
    assert_eq!(world.ask(0, request::UPDATE_BROKER_CONFIG, &[], b"rejectPullConsumerEnable=true".to_vec()).code, 0);
    world.tick(70_000);
    // The others of a heartbeat count.
    let others = [of_type("h", ConsumeType::ConsumePassively), of_type("p", ConsumeType::ConsumePop)];
    assert_eq!(world.heartbeat(1, "c", [&[pulls()], &others[..]].concat()).code, 0);
    world.tick(70_000);
    let is_live = ["g", "h", "p"].map(|group| world.registrar.catalog().subscriptions(group).is_some());
    assert_eq!(is_live, [false, true, true]);
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
    (limits.topics, limits.groups, limits.group_clients, limits.group_subscriptions) = (15, 10, 2, 2);
    let mut world = World::with(tight);
    // Thirteen topics and eight groups are the broker's own.
    assert_eq!(world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1)])]).code, 0);
    let answer = world.heartbeat(1, "c1", vec![consumer("g", &[("T", 1), ("U", 1), ("V", 1)])]);
    assert_eq!((answer.code, answer.remark.as_str()), (1, "group g subscribes to more than 2 topics"));
    assert_eq!(world.heartbeat(2, "c2", vec![consumer("g", &[("T", 1)])]).code, 0);
    let answer = world.heartbeat(3, "c3", vec![consumer("g", &[("T", 1)])]);
    assert_eq!((answer.code, answer.remark.as_str()), (1, "group g has 2 clients already"));
    assert_eq!(world.create("A", "1").code, 0);
    let answer = world.create("B", "1");
    assert_eq!((answer.code, answer.remark.as_str()), (1, "this broker has 15 topics, which is its limit"));
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
    assert_eq!(world.logged(), ["put g/g", "put n/", "publish", "answer 1: 0"]);
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
    assert_eq!(world.logged(), ["answer 2: 0"]);
    config.retry_queue_nums = 2;
    config.attributes.insert("+priority.factor".to_owned(), "7".to_owned());
    assert_eq!(world.ask(0, 200, &[], bodies::encode(&config)).code, 0);
    let group = world.registrar.catalog().group("g").unwrap();
    assert_eq!((group.retries_max(), group.retry_queues()), (3, 2));
    assert_eq!(group.config.attributes.get("priority.factor").map(String::as_str), Some("7"));
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
    // Nobody makes it again before its offsets are gone: what it does until then would go with them.
    assert_eq!(world.ask(0, 200, &[], br#"{"groupName":"g"}"#.to_vec()).code, 0);
    let delete = |world: &mut World| world.send(0, 207, &[("groupName", "g"), ("cleanOffset", "true")], Vec::new());
    world.logged();
    let [first, second] = [delete(&mut world), delete(&mut world)];
    let again = world.send(0, 200, &[], br#"{"groupName":"g"}"#.to_vec());
    let both = br#"{"groupConfigList":[{"groupName":"beside"},{"groupName":"g"}]}"#.to_vec();
    let both = world.send(0, 225, &[], both);
    assert_eq!(world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]).code, 0);
    assert!(world.registrar.catalog().group("g").is_none());
    let log = world.logged();
    assert!(world.registrar.catalog().group("beside").is_none(), "all of them or none");
    let busy = response::SYSTEM_BUSY;
    for (opaque, code) in [(first, 0), (second, busy), (both, busy), (again, response::SYSTEM_ERROR)] {
        assert!(log.contains(&format!("answer {opaque}: {code}")), "{log:?}");
    }
    assert_eq!(world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]).code, 0);
    assert!(world.registrar.catalog().group("g").is_some(), "then it is a new one");
    // Its offsets go once no core knows it any more, and not at all if it is not gone.
    for disk_ok in [true, false] {
        assert_eq!(world.ask(0, 200, &[], br#"{"groupName":"g"}"#.to_vec()).code, 0);
        world.logged();
        world.disk_ok = disk_ok;
        let opaque = world.send(0, 207, &[("groupName", "g"), ("cleanOffset", "true")], Vec::new());
        world.run();
        if !disk_ok {
            world.log_was_read();
            world.run();
        }
        let log = world.logged();
        let (code, forgets) = if disk_ok { (0, 1) } else { (response::SERVICE_NOT_AVAILABLE, 0) };
        assert!(log.contains(&format!("answer {opaque}: {code}")), "{log:?}");
        assert_eq!(log.iter().filter(|line| *line == "forget g").count(), forgets, "{log:?}");
        let at = |line: &str| log.iter().position(|logged| logged == line);
        assert!(!disk_ok || at("publish") < at("forget g"), "{log:?}");
    }
    world.disk_ok = true;
    assert!(world.registrar.catalog().group("g").is_some(), "the disk does not know that it is deleted");
    // Of offsets that stay it is told, and of those that were not cloned or set anew.
    world.create("T", "1");
    assert_eq!(world.ask(0, 200, &[], br#"{"groupName":"g"}"#.to_vec()).code, 0);
    world.tell = |question| {
        let refused = (response::SYSTEM_BUSY, "no room".to_owned());
        match question {
            Question::Forget { .. } => Part::Forgotten(Err(refused)),
            Question::Clone { .. } => Part::Cloned(Err(refused)),
            Question::Reset(_) => Part::Reset(Err(refused)),
            question => nothing(question),
        }
    };
    let rows = [
        (314, vec![("srcGroup", "g"), ("destGroup", "h"), ("offline", "true")]),
        (222, vec![("topic", "T"), ("group", "g"), ("timestamp", "-1"), ("isForce", "true")]),
        (207, vec![("groupName", "g"), ("cleanOffset", "true")]),
    ];
    for (code, fields) in rows {
        let answer = world.ask(0, code, &fields, Vec::new());
        assert!(answer.code == response::SYSTEM_BUSY && answer.remark.ends_with("no room"), "{code}: {answer:?}");
    }
    assert!(world.registrar.catalog().group("g").is_none(), "the group is gone all the same");
    // Without auto creation an unknown group is passed over, a built-in one is not.
    let mut world = World::with(Settings { auto_create_group: false, ..settings() });
    assert_eq!(world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]).code, 0);
    assert_eq!(world.ask(1, 38, &[("consumerGroup", "g")], Vec::new()).code, 1);
    assert_eq!(world.heartbeat(1, "c", vec![consumer("TOOLS_CONSUMER", &[("T", 1)])]).code, 0);
    assert_eq!(world.ask(1, 38, &[("consumerGroup", "TOOLS_CONSUMER")], Vec::new()).code, 0);
}

#[test]
fn locks_and_filters_are_answered() {
    let mut world = World::new();
    let lock = lock();
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
        (r#"{"subscriptionData":{"topic":"T","subString":"a > 1","expressionType":"SQL92"}}"#, 0),
        (r#"{"subscriptionData":{"topic":"T","subString":"a >","expressionType":"SQL92"}}"#, 23),
        ("x", 1),
    ];
    for (body, code) in rows {
        assert_eq!(world.ask(1, 46, &[], body.into()).code, code, "{body}");
    }
}

#[test]
fn a_retry_learns_whether_its_group_consumes_in_order() {
    let mut world = World::new();
    let lock = lock();
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
fn who_rebalances_at_the_broker_gets_queues_of_all_brokers() {
    let mut world = World::with(Settings { namesrv: vec!["127.0.0.1:9876".to_owned()], ..settings() });
    world.create("T", "2");
    world.heartbeat(1, "c", vec![consumer("g", &[("T", 1)])]);
    let queue =
        |broker: &str, queue_id| MessageQueue { broker_name: broker.to_owned(), queue_id, topic: "T".to_owned() };
    let assigned = |world: &mut World| {
        let asked = QueryAssignment {
            client_id: "c".to_owned(),
            consumer_group: "g".to_owned(),
            strategy_name: "AVG".to_owned(),
            topic: "T".to_owned(),
            ..QueryAssignment::default()
        };
        let answer = world.ask(1, request::QUERY_ASSIGNMENT, &[], bodies::encode(&asked));
        let found: Assignments = bodies::decode(&answer.body).unwrap();
        let queues = found.message_queue_assignments?.into_iter().map(|one| one.message_queue);
        Some(queues.collect::<Vec<_>>())
    };
    assert_eq!(assigned(&mut world), None, "no NameServer answers: the client keeps what it has");
    // The NameServer may not know yet how many queues are here.
    world.routes.insert("T".to_owned(), vec![queue("broker-b", 0), queue("broker-a", 0)]);
    let all = vec![queue("broker-a", 0), queue("broker-a", 1), queue("broker-b", 0)];
    assert_eq!(assigned(&mut world), Some(all));
    let mode = SetRequestMode {
        consumer_group: "g".to_owned(),
        mode: RequestMode::Pop,
        pop_share_queue_num: 0,
        topic: "T".to_owned(),
    };
    world.ask(0, request::SET_MESSAGE_REQUEST_MODE, &[], bodies::encode(&mode));
    assert_eq!(assigned(&mut world), Some(vec![queue("broker-a", -1), queue("broker-b", -1)]));
    // What was told is good for some seconds, and until a NameServer answers again.
    world.routes.insert("T".to_owned(), vec![queue("broker-c", 0)]);
    assert_eq!(assigned(&mut world), Some(vec![queue("broker-a", -1), queue("broker-b", -1)]));
    world.now_ms += FRESH_MS;
    let told = world.routes.remove("T").expect("it was put there");
    assert_eq!(assigned(&mut world), Some(vec![queue("broker-a", -1), queue("broker-b", -1)]));
    world.routes.insert("T".to_owned(), told);
    assert_eq!(assigned(&mut world), Some(vec![queue("broker-a", -1), queue("broker-c", -1)]));
    // A number of them waits, no more.
    world.now_ms += FRESH_MS;
    world.orders.clear();
    let body = bodies::encode(&QueryAssignment { topic: "T".to_owned(), ..QueryAssignment::default() });
    let asked: Vec<i32> =
        (0..=ROUTES_MAX).map(|_| world.send(1, request::QUERY_ASSIGNMENT, &[], body.clone())).collect();
    // What cannot be a topic is asked of nobody, however long it is, and waits for nothing.
    let illegal = [String::new(), "a b".to_owned(), "x".repeat(300), "\u{8}".repeat(100_000)].map(|topic| {
        let asked = QueryAssignment { topic, ..QueryAssignment::default() };
        world.send(1, request::QUERY_ASSIGNMENT, &[], bodies::encode(&asked))
    });
    world.run();
    for opaque in illegal {
        let answer = &world.answers[&opaque];
        let found: Assignments = bodies::decode(&answer.body).expect("no refusal");
        assert_eq!((answer.code, found.message_queue_assignments), (0, None));
    }
    let codes: Vec<i32> = asked.iter().map(|opaque| world.answers[opaque].code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), ROUTES_MAX);
    assert_eq!(codes[ROUTES_MAX], response::SYSTEM_BUSY);
}
