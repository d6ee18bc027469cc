//! Goal: groups, locks, topics and what admin tools ask are RocketMQ's on the wire. Method: as in wire.rs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use protocol::bodies::{
    self, CheckClient, ConsumeStats, ConsumeType, ConsumerConnection, ConsumerIdList, GroupList, HeartbeatData,
    KvTable, LockAnswer, LockBatch, MessageQueue, ProducerConnection, SubscriptionData, SubscriptionGroupConfig,
    SubscriptionGroupTable, TopicConfigTable, TopicRouteData, TopicStatsTable,
};
use protocol::codes::{request, response};
use protocol::headers::PullMessage;
use protocol::ids::OffsetId;
use protocol::names::pull_flag;
use protocol::{Command, Serialize};
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{
    asking, commit, committed, create_topic, edge, field, heartbeat, message_queue, messages, number, oneway,
    properties, pull, pull_header, pull_waiting, pull_with, send, send_as, send_batch, telling,
};

fn members(client: &mut Client, group: &str) -> Vec<String> {
    let asked = asking(request::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", group)]);
    let answer = client.expect(response::SUCCESS, asked);
    bodies::decode::<ConsumerIdList>(&answer.body).unwrap().consumer_id_list
}

fn leave(client: &str, group: &str) -> Command {
    asking(
        request::UNREGISTER_CLIENT,
        &[("clientID", client), ("consumerGroup", group), ("producerGroup", "producers")],
    )
}

#[test]
fn members_of_a_group_know_each_other() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut admin] = [server.client(), server.client(), server.client()];
        let list = || asking(request::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", "g")]);
        let none = one.expect(response::SYSTEM_ERROR, list());
        assert_eq!(none.header.remark, "no consumer for this group, g");
        let connections = || asking(request::GET_CONSUMER_CONNECTION_LIST, &[("consumerGroup", "g")]);
        admin.expect(response::CONSUMER_NOT_ONLINE, connections());
        let producers = |group| asking(request::GET_PRODUCER_CONNECTION_LIST, &[("producerGroup", group)]);
        admin.expect(response::SYSTEM_ERROR, producers("producers"));

        let answer = one.expect(response::SUCCESS, heartbeat("one", "g", &["T"]));
        assert_eq!((field(&answer, "IS_SUPPORT_HEART_BEAT_V2"), field(&answer, "IS_SUB_CHANGE")), ("true", "true"));
        assert!(answer.header.version >= 413, "{answer:?}");
        assert_eq!(members(&mut one, "g"), ["one"]);
        one.push(request::NOTIFY_CONSUMER_IDS_CHANGED);

        // A second one comes: the first is told, and finds it then.
        two.expect(response::SUCCESS, heartbeat("two", "g", &["T"]));
        let push = one.push(request::NOTIFY_CONSUMER_IDS_CHANGED);
        assert!(push.header.is_oneway(), "{push:?}");
        assert_eq!(field(&push, "consumerGroup"), "g");
        let both = BTreeSet::from(["one".to_owned(), "two".to_owned()]);
        for client in [&mut one, &mut two, &mut admin] {
            assert_eq!(BTreeSet::from_iter(members(client, "g")), both);
        }

        let found: ConsumerConnection = bodies::decode(&admin.expect(response::SUCCESS, connections()).body).unwrap();
        let seen: BTreeSet<_> =
            found.connection_set.iter().map(|c| (c.client_id.clone(), c.client_addr.clone())).collect();
        let address = |client: &Client| client.stream.local_addr().unwrap().to_string();
        assert_eq!(seen, BTreeSet::from([("one".into(), address(&one)), ("two".into(), address(&two))]));
        assert!(found.connection_set.iter().all(|c| c.language == "JAVA" && c.version == protocol::command::VERSION));
        assert_eq!(found.subscription_table["T"].sub_string, "*");
        let found: ProducerConnection =
            bodies::decode(&admin.expect(response::SUCCESS, producers("producers")).body).unwrap();
        assert_eq!(found.connection_set.len(), 2);
        // The group's retry topic is there from its first heartbeat.
        assert_eq!(edge(&mut admin, request::GET_MAX_OFFSET, "%RETRY%g", 0), 0);
        admin.expect(response::PULL_NOT_FOUND, pull("%RETRY%g", 0, 0));

        // One leaves by a word, the other by closing.
        two.expect(response::SUCCESS, leave("two", "g"));
        one.push(request::NOTIFY_CONSUMER_IDS_CHANGED);
        assert_eq!(members(&mut admin, "g"), ["one"]);
        two.expect(response::SUCCESS, heartbeat("two", "g", &["T"]));
        one.push(request::NOTIFY_CONSUMER_IDS_CHANGED);
        // Whoever comes is told of itself too: twice so far.
        (0..2).for_each(|_| drop(two.push(request::NOTIFY_CONSUMER_IDS_CHANGED)));
        drop(one);
        two.push(request::NOTIFY_CONSUMER_IDS_CHANGED);
        assert_eq!(members(&mut two, "g"), ["two"]);
        drop(two);
        // There is nobody left to be told; the broker hears of a close as soon as the kernel says so.
        while admin.ask(list()).header.code == response::SUCCESS {}
        admin.expect(response::CONSUMER_NOT_ONLINE, connections());
    });
}

#[test]
fn a_queue_is_locked_by_one_client_of_a_group() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two] = [server.client(), server.client()];
        let ask = |code: i32, client: &str, group: &str, queues: &[i32]| {
            let batch = LockBatch {
                client_id: client.to_owned(),
                consumer_group: group.to_owned(),
                mq_set: queues.iter().map(|queue| message_queue("T", *queue)).collect(),
                only_this_broker: false,
            };
            telling(code, &[], bodies::encode(&batch))
        };
        let held = |answer: Command| {
            let answer: LockAnswer = bodies::decode(&answer.body).unwrap();
            answer.queues.iter().map(|queue: &MessageQueue| queue.queue_id).collect::<BTreeSet<_>>()
        };
        let (lock, unlock) = (request::LOCK_BATCH_MQ, request::UNLOCK_BATCH_MQ);
        assert_eq!(held(one.expect(0, ask(lock, "one", "g", &[0, 1]))), BTreeSet::from([0, 1]));
        assert_eq!(held(two.expect(0, ask(lock, "two", "g", &[1, 2]))), BTreeSet::from([2]));
        assert_eq!(held(two.expect(0, ask(lock, "two", "other", &[1]))), BTreeSet::from([1]), "another group");
        assert_eq!(held(one.expect(0, ask(lock, "one", "g", &[0, 1]))), BTreeSet::from([0, 1]), "renewed");
        two.expect(0, ask(unlock, "two", "g", &[0, 1]));
        assert_eq!(held(two.expect(0, ask(lock, "two", "g", &[0, 1]))), BTreeSet::new(), "only its own are let go");
        // Without an answer; the connection's next request comes after it.
        one.write(oneway(ask(unlock, "one", "g", &[0])));
        assert_eq!(held(one.expect(0, ask(lock, "two", "g", &[0, 1]))), BTreeSet::from([0]));
    });
}

#[test]
fn groups_are_made_shown_and_deleted() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let config =
            SubscriptionGroupConfig { retry_max_times: 3, retry_queue_nums: 2, ..SubscriptionGroupConfig::new("g") };
        let create = telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], bodies::encode(&config));
        client.expect(response::SUCCESS, create.clone());
        client.expect(response::SUCCESS, create);
        client.expect(response::SUCCESS, create_topic("T", 2));
        client.expect(response::SUCCESS, commit("g", "T", 0, 5));
        for is_kill in [true, false] {
            if is_kill {
                server.kill()
            } else {
                server.stop()
            }
            server = Server::with_cores(home, cores, &[]);
            client = server.client();
            let all = client.expect(response::SUCCESS, asking(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[]));
            let all: SubscriptionGroupTable = bodies::decode(&all.body).unwrap();
            assert_eq!(all.subscription_group_table["g"], config);
            assert!(all.subscription_group_table.contains_key("TOOLS_CONSUMER"), "built-in ones are there");
        }
        let who = || asking(request::QUERY_TOPIC_CONSUME_BY_WHO, &[("topic", "T")]);
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let groups: GroupList = bodies::decode(&client.expect(response::SUCCESS, who()).body).unwrap();
        assert_eq!(groups.group_list, BTreeSet::from(["g".to_owned()]));
        client.expect(response::SUCCESS, leave("c", "g"));
        client.expect(response::SUCCESS, commit("g", "T", 0, 5));
        let delete = asking(request::DELETE_SUBSCRIPTIONGROUP, &[("groupName", "g"), ("cleanOffset", "true")]);
        client.expect(response::SUCCESS, delete);
        assert_eq!(committed(&mut client, "g", "T", 0), None);
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, commit("g", "T", 0, 5));
        server.kill();
        let server = Server::with_cores(home, cores, &["--set", "broker.auto_create_group=false"]);
        let mut client = server.client();
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, commit("g", "T", 0, 5));
        // Without automatic groups a heartbeat makes none, and nobody may pull for it.
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, pull("T", 0, 0));
    });
}

#[test]
fn a_group_that_nobody_knows_is_made_by_the_first_who_needs_it() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let known = |client: &mut Client, group: &str| {
            let all = client.expect(response::SUCCESS, asking(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[]));
            let all: SubscriptionGroupTable = bodies::decode(&all.body).unwrap();
            all.subscription_group_table.contains_key(group)
        };
        let is_topic = |client: &mut Client, topic: &str| {
            let answer = client.ask(asking(request::GET_TOPIC_CONFIG, &[("topic", topic)]));
            answer.header.code == response::SUCCESS
        };
        let pull_of = |group: &'static str, topic: &'static str| {
            pull_with(request::PULL_MESSAGE, PullMessage { consumer_group: group, ..pull_header(topic, 0, 0) })
        };
        let back = |offset: i64, group: &str, level: &str| {
            let offset = offset.to_string();
            let fields = [("offset", &*offset), ("group", group), ("delayLevel", level)];
            asking(request::CONSUMER_SEND_MSG_BACK, &fields)
        };
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, send("T", 0, b"x"));

        // Who pulls makes the group, not its retry topic.
        let answer = client.expect(response::SUCCESS, pull_of("puller", "T"));
        let place = messages(&answer)[0].physical_offset;
        assert!(known(&mut client, "puller") && !is_topic(&mut client, "%RETRY%puller"));
        client.expect(response::TOPIC_NOT_EXIST, pull_of("retrier", "%RETRY%retrier"));
        assert!(known(&mut client, "retrier") && !is_topic(&mut client, "%RETRY%retrier"));

        // Who sends a message back makes both, or the dead letters.
        client.expect(response::SUCCESS, back(place, "returner", "1"));
        assert!(known(&mut client, "returner") && is_topic(&mut client, "%RETRY%returner"));
        client.expect(response::SUCCESS, back(place, "giver", "-1"));
        assert_eq!(messages(&client.ask(pull("%DLQ%giver", 0, 0))).len(), 1);

        // So does who sends to the retry topic, whether that is there or not.
        client.expect(response::SUCCESS, send("%RETRY%sender", 0, b"x"));
        assert!(known(&mut client, "sender"));
        client.expect(response::SUCCESS, asking(request::DELETE_SUBSCRIPTIONGROUP, &[("groupName", "returner")]));
        assert!(!known(&mut client, "returner") && is_topic(&mut client, "%RETRY%returner"));
        client.expect(response::SUCCESS, send("%RETRY%returner", 0, b"x"));
        assert!(known(&mut client, "returner"));

        // What is no name of a group is none.
        let unknown = response::SUBSCRIPTION_GROUP_NOT_EXIST;
        client.expect(unknown, pull_of("a b", "T"));
        client.expect(unknown, back(place, "a b", "1"));
        server.stop();
        let server = Server::with_cores(home, cores, &["--set", "broker.auto_create_group=false"]);
        let mut client = server.client();
        client.expect(unknown, pull_of("nobody", "T"));
        client.expect(unknown, back(place, "nobody", "1"));
        client.expect(unknown, send("%RETRY%nobody", 0, b"x"));
        client.expect(response::SUCCESS, pull_of("puller", "T"));
        assert!(!known(&mut client, "nobody"));
        server.stop();
    });
}

#[test]
fn consumers_that_pull_are_rejected_if_that_is_set() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 2));
        (0..2).for_each(|queue| drop(client.expect(response::SUCCESS, send("T", queue, b"x"))));
        let beat = |group: &str, consume_type| {
            let mut command = heartbeat("c", group, &["T"]);
            let mut data: HeartbeatData = bodies::decode(&command.body).unwrap();
            data.consumer_data_set[0].consume_type = consume_type;
            command.body = bodies::encode(&data).into();
            command
        };
        let pulled = |client: &mut Client, group: &str| {
            let mut answers = Vec::new();
            for (code, queue) in [(request::PULL_MESSAGE, 0), (request::LITE_PULL_MESSAGE, 1)] {
                let header = PullMessage { consumer_group: group, ..pull_header("T", queue, 0) };
                answers.push(client.ask(pull_with(code, header)).header);
            }
            assert_eq!(answers[0].code, answers[1].code, "{answers:?}");
            (answers[0].code, answers[0].remark.clone())
        };
        let found = (response::SUCCESS, "FOUND".to_owned());
        client.expect(response::SUCCESS, beat("before", ConsumeType::ConsumeActively));
        assert_eq!(pulled(&mut client, "nobody"), found);
        let waits = PullMessage {
            consumer_group: "nobody",
            sys_flag: pull_flag::SUBSCRIPTION | pull_flag::SUSPEND,
            suspend_timeout_ms: 30_000,
            ..pull_header("T", 0, 1)
        };
        let waiting = other.write(pull_with(request::PULL_MESSAGE, waits));
        let set =
            |value: &str| telling(request::UPDATE_BROKER_CONFIG, &[], format!("rejectPullConsumerEnable={value}"));
        client.expect(response::SUCCESS, set("true"));
        let remark = "the consumer's group info not exist, or the pull consumer is rejected by server.";
        let rejected = (response::SUBSCRIPTION_NOT_EXIST, remark.to_owned());
        client.expect(response::SUCCESS, beat("pulls", ConsumeType::ConsumeActively));
        client
            .expect(response::SYSTEM_ERROR, asking(request::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", "pulls")]));
        assert_eq!(pulled(&mut client, "pulls"), rejected);
        assert_eq!(pulled(&mut client, "nobody"), rejected);
        client.expect(response::SUCCESS, send("T", 0, b"y"));
        let answer = other.answer(waiting).header;
        assert_eq!((answer.code, answer.remark), rejected, "one that waited");
        assert_eq!(pulled(&mut client, "TOOLS_CONSUMER"), found);
        assert_eq!(pulled(&mut client, "before"), found);
        client.expect(response::SUCCESS, beat("pushed", ConsumeType::ConsumePassively));
        assert_eq!((pulled(&mut client, "pushed"), pulled(&mut other, "pushed")), (found.clone(), found.clone()));
        client.expect(response::SUCCESS, set("false"));
        assert_eq!(pulled(&mut client, "pulls"), found);
    });
}

#[test]
fn a_client_asks_whether_its_expression_is_understood() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &[]);
    let mut client = server.client();
    let check = |kind: &str, expression: &str| {
        let subscription = SubscriptionData {
            expression_type: kind.to_owned(),
            sub_string: expression.to_owned(),
            ..SubscriptionData::from_expression("T", "*").unwrap()
        };
        let check = CheckClient { subscription_data: subscription, group: "g".into(), ..CheckClient::default() };
        telling(request::CHECK_CLIENT_CONFIG, &[], bodies::encode(&check))
    };
    client.expect(response::SUCCESS, asking(request::CHECK_CLIENT_CONFIG, &[]));
    client.expect(response::SUCCESS, check("TAG", "a || b"));
    client.expect(response::SUCCESS, check("SQL92", "a > 1"));
    client.expect(response::SUBSCRIPTION_PARSE_FAILED, check("SQL92", "a >"));
}

#[test]
fn topics_are_made_shown_routed_and_deleted() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 3));
        client.expect(response::SUCCESS, create_topic("T", 3));
        for topic in ["", "with space", &"x".repeat(128), "TBW102", "rmq_sys_wheel_timer", "SCHEDULE_TOPIC_XXXX"] {
            client.expect(response::INVALID_PARAMETER, create_topic(topic, 1));
        }
        for topic in ["", "TBW102", "broker-a", "SCHEDULE_TOPIC_XXXX"] {
            let delete = asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", topic)]);
            client.expect(response::INVALID_PARAMETER, delete);
        }
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "never was")]));

        // Made by the first send to it, from the template and as wide as the client wants.
        client.expect(response::SUCCESS, send("automatic", 3, b"x"));
        let mut odd = send("no-template", 0, b"x");
        odd.header.fields.push("c", "missing");
        client.expect(response::TOPIC_NOT_EXIST, odd);
        for is_kill in [false, true] {
            if is_kill {
                server.kill();
                server = Server::with_cores(home, cores, &[]);
                client = server.client();
            }
            let all = client.expect(response::SUCCESS, asking(request::GET_ALL_TOPIC_CONFIG, &[]));
            let all: TopicConfigTable = bodies::decode(&all.body).unwrap();
            let shape = |topic: &str| {
                let config = &all.topic_config_table[topic];
                (config.read_queue_nums, config.write_queue_nums, config.perm)
            };
            assert_eq!((shape("T"), shape("automatic"), shape("TBW102")), ((3, 3, 6), (4, 4, 6), (8, 8, 7)));
            assert_eq!((shape("broker-a"), shape("DefaultCluster")), ((1, 1, 7), (16, 16, 7)));
            assert!(!all.topic_config_table.contains_key("no-template"));

            // The NameServer hears of it by itself.
            let mut names = Client::connect(server.namesrv);
            for (topic, queues) in [("T", 3), ("automatic", 4)] {
                let ask =
                    asking(request::GET_ROUTEINFO_BY_TOPIC, &[("topic", topic), ("acceptStandardJsonOnly", "true")]);
                let route = loop {
                    let answer = names.ask(ask.clone());
                    if answer.header.code == response::SUCCESS {
                        break bodies::decode::<TopicRouteData>(&answer.body).unwrap();
                    }
                    assert_eq!(answer.header.code, response::TOPIC_NOT_EXIST, "{answer:?}");
                };
                assert_eq!(route.queue_datas[0].write_queue_nums, queues);
                assert_eq!(route.broker_datas[0].broker_addrs[&0], server.address.to_string());
            }
        }
        // Fewer queues for producers, and none.
        let mut narrow = create_topic("T", 3);
        narrow.header.fields.push("writeQueueNums", "1");
        client.expect(response::SUCCESS, narrow);
        client.expect(response::SUCCESS, send("T", 0, b"x"));
        assert_eq!(messages(&client.expect(response::SUCCESS, pull("T", 0, 0))).len(), 1);
        // Whoever may write is told by the route; who may read, by the broker.
        let mut closed = create_topic("T", 3);
        closed.header.fields.push("perm", "2");
        client.expect(response::SUCCESS, closed);
        client.expect(response::SUCCESS, send("T", 0, b"x"));
        assert_eq!(field(&client.expect(response::NO_PERMISSION, pull("T", 0, 0)), "forbiddenType"), "3");
        server.stop();
        let server = Server::with_cores(home, cores, &["--set", "broker.auto_create_topic=false"]);
        server.client().expect(response::TOPIC_NOT_EXIST, send("another", 0, b"x"));
    });
}

#[test]
fn admin_tools_see_what_there_is() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 4));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let mut ids = Vec::new();
        for index in 0..6 {
            let text = properties(&[("KEYS", ["odd x", "even x"][index % 2]), ("UNIQ_KEY", &format!("U{index}"))]);
            let sent = client.expect(response::SUCCESS, send_as(310, "T", index as i32 % 4, &text, &[index as u8]));
            ids.push(OffsetId::parse(field(&sent, "msgId")).unwrap());
        }
        client.expect(response::SUCCESS, commit("g", "T", 0, 1));

        let stats = other.expect(response::SUCCESS, asking(request::GET_TOPIC_STATS_INFO, &[("topic", "T")]));
        let stats: TopicStatsTable = bodies::decode(&stats.body).unwrap();
        let rows: Vec<_> =
            stats.offset_table.iter().map(|(queue, row)| (queue.queue_id, row.min_offset, row.max_offset)).collect();
        assert_eq!(rows, [(0, 0, 2), (1, 0, 2), (2, 0, 1), (3, 0, 1)]);
        assert!(stats.offset_table.values().all(|row| row.last_update_timestamp > 1_700_000_000_000));
        other.expect(response::TOPIC_NOT_EXIST, asking(request::GET_TOPIC_STATS_INFO, &[("topic", "missing")]));

        for fields in [&[("consumerGroup", "g")][..], &[("consumerGroup", "g"), ("topic", "T")]] {
            let stats = other.expect(response::SUCCESS, asking(request::GET_CONSUME_STATS, fields));
            let stats: ConsumeStats = bodies::decode(&stats.body).unwrap();
            let row = stats.offset_table[&message_queue("T", 0)];
            assert_eq!((row.broker_offset, row.consumer_offset), (2, 1), "{fields:?}");
        }

        let end = i64::MAX.to_string();
        let query = |key: &str, count: &str, unique: &str| {
            let fields = [
                ("topic", "T"),
                ("key", key),
                ("maxNum", count),
                ("beginTimestamp", "0"),
                ("endTimestamp", &*end),
                ("_UNIQUE_KEY_QUERY", unique),
            ];
            asking(request::QUERY_MESSAGE, &fields)
        };
        for client in [&mut client, &mut other] {
            for (key, count, unique, wanted) in [
                ("odd", "9", "false", &[4, 2, 0][..]),
                ("even", "2", "false", &[5, 3]),
                ("x", "32", "false", &[5, 4, 3, 2, 1, 0]),
                ("U3", "32", "true", &[3]),
            ] {
                let answer = client.expect(response::SUCCESS, query(key, count, unique));
                let found = messages(&answer);
                // Those of one millisecond come in any order.
                let bodies: BTreeSet<u8> = found.iter().map(|message| message.body[0]).collect();
                let is_newest = found.is_sorted_by(|a, b| a.store_timestamp >= b.store_timestamp);
                assert!(is_newest && found.len() == wanted.len(), "{key}: {bodies:?}");
                assert!(count == "2" || bodies == wanted.iter().copied().collect(), "{key}: {bodies:?}");
            }
            client.expect(response::QUERY_NOT_FOUND, query("nothing", "9", "false"));
        }

        let runtime = other.expect(response::SUCCESS, asking(request::GET_BROKER_RUNTIME_INFO, &[]));
        let runtime: KvTable = bodies::decode(&runtime.body).unwrap();
        let put: u64 = runtime.table["msgPutTotalTodayNow"].parse().unwrap();
        assert_eq!(put, 6);
        for key in ["brokerVersionDesc", "bootTimestamp", "putTps", "commitLogMaxOffset", "sendThreadPoolQueueSize"] {
            assert!(runtime.table.contains_key(key), "{key}");
        }
        let config = other.expect(response::SUCCESS, asking(request::GET_BROKER_CONFIG, &[]));
        let text = std::str::from_utf8(&config.body).unwrap();
        let port = format!("listenPort={}", server.address.port());
        for line in ["brokerName=broker-a", "brokerClusterName=DefaultCluster", "flushDiskType=SYNC_FLUSH", &port] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(field(&config, "version").contains("\"counter\""));
        let binary = server.client().speaking(Serialize::RocketMq).expect(0, asking(request::GET_BROKER_CONFIG, &[]));
        assert_eq!(binary.body, config.body);
        let first = asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &ids[0].offset.to_string()), ("topic", "T")]);
        assert_eq!(messages(&other.expect(response::SUCCESS, first))[0].body, [0]);
        assert_eq!(number(&other.ask(pull("T", 0, 2)), "maxOffset"), 2);
    });
}

#[test]
fn settings_change_while_the_broker_runs_and_outlive_it() {
    let update = |client: &mut Client, text: &'static str| {
        client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], text))
    };
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("settings", 2));
        let bodies: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        for queue in 0..2 {
            client.expect(response::SUCCESS, send_batch("settings", queue, &bodies));
        }
        let pulled = |client: &mut Client| {
            let both = (0..2).map(|queue| {
                let header = PullMessage { max_msg_nums: 100, ..pull_header("settings", queue, 0) };
                let answer = client.expect(response::SUCCESS, pull_with(request::PULL_MESSAGE, header));
                messages(&answer).len()
            });
            both.collect::<Vec<_>>()
        };
        assert_eq!(pulled(&mut client), [32, 32]);
        let answer = update(&mut client, "maxTransferCountOnMessageInMemory=1024\nenableLmqStats=true");
        assert_eq!(answer.header.remark, "taken, without meaning here: enableLmqStats");
        assert_eq!(pulled(&mut client), [40, 40], "in force in every core");
        // Without long polling a pull waits for a moment only, however long it asks for.
        update(&mut client, "longPollingEnable=false\nshortPollingTimeMills=50");
        for queue in 0..2 {
            let began = Instant::now();
            client.expect(response::PULL_NOT_FOUND, pull_waiting("settings", queue, 40, 30_000));
            assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
        }
        update(&mut client, "litePullMessageEnable=false");
        let refused = client.ask(pull_with(request::LITE_PULL_MESSAGE, pull_header("settings", 0, 0)));
        assert_eq!((refused.header.code, field(&refused, "forbiddenType")), (response::NO_PERMISSION, "1"));
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        assert_eq!(pulled(&mut server.client()), [40, 40], "after a kill");
    });
}
