//! Goal: the broker asks clients for what others want of them, and sets offsets anew, as RocketMQ does on the wire.
//! Method: as in wire.rs; the tests' clients answer what the broker asks them.

use std::collections::BTreeMap;
use std::io::Write;

use protocol::Command;
use protocol::bodies::{
    self, BrokerStatsData, ConsumeStats, Forbidden, MessageQueue, ResetOffsets, SubscriptionGroupTable, TimeSpan,
    TimeSpans, TopicStatsTable,
};
use protocol::codes::{request, response};
use protocol::headers::{PopMessage, PullMessage};
use protocol::message::records;
use protocol::names::pull_flag;
use tests::client::Client;
use tests::server::Server;
use tests::words::{
    asking, commit, committed, create_topic, edge, field, heartbeat, message_queue, messages, now_ms, number,
    properties, pull, pull_header, pull_with, send, send_as, subscribing, tagged, telling,
};
use tests::{await_that, with_cores};

const REPLIES: &str = "DefaultCluster_REPLY_TOPIC";

/// Answers a request of the broker.
fn respond(client: &mut Client, asked: &Command, code: i32, body: &[u8]) {
    let mut answer = Command::answer(&asked.header, code);
    answer.body = body.to_vec().into();
    client.stream.write_all(&answer.encode()).expect("the server reads");
}

fn reply_to(client: &str, code: i32, body: &[u8]) -> Command {
    let pairs = [("MSG_TYPE", "reply"), ("CORRELATION_ID", "c-1"), ("REPLY_TO_CLIENT", client), ("TTL", "3000")];
    send_as(code, REPLIES, 0, &properties(&pairs), body)
}

#[test]
fn a_reply_reaches_who_waits_for_it_and_is_stored() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut requester, mut replier] = [server.client(), server.client()];
        requester.expect(response::SUCCESS, heartbeat("requester", "g", &["T"]));
        for (index, code) in [request::SEND_REPLY_MESSAGE, request::SEND_REPLY_MESSAGE_V2].into_iter().enumerate() {
            let waiting = replier.write(reply_to("requester", code, b"pong"));
            let pushed = requester.push(request::PUSH_REPLY_MESSAGE_TO_CLIENT);
            assert!(!pushed.header.is_oneway(), "it is to be answered");
            assert_eq!((&pushed.body[..], field(&pushed, "topic")), (&b"pong"[..], REPLIES));
            assert_eq!(field(&pushed, "bornHost"), replier.stream.local_addr().unwrap().to_string());
            assert_eq!(field(&pushed, "storeHost"), server.address.to_string());
            let text = field(&pushed, "properties");
            assert_eq!(protocol::properties::get(text, "CORRELATION_ID"), Some("c-1"));
            assert!(protocol::properties::get(text, "PUSH_REPLY_TIME").is_some());
            respond(&mut requester, &pushed, response::SUCCESS, b"");
            let answer = replier.answer(waiting);
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            assert_eq!((number(&answer, "queueOffset"), field(&answer, "msgId").len()), (index as i64, 32));
            let stored = replier.expect(response::SUCCESS, pull(REPLIES, 0, index as i64));
            assert_eq!(messages(&stored)[0].body, b"pong");
        }
        // A client that says no, one that goes away, and one that is not there.
        let waiting = replier.write(reply_to("requester", request::SEND_REPLY_MESSAGE_V2, b"no"));
        let pushed = requester.push(request::PUSH_REPLY_MESSAGE_TO_CLIENT);
        respond(&mut requester, &pushed, response::SYSTEM_ERROR, b"");
        assert_eq!(replier.answer(waiting).header.code, response::SYSTEM_ERROR);
        let waiting = replier.write(reply_to("requester", request::SEND_REPLY_MESSAGE_V2, b"gone"));
        requester.push(request::PUSH_REPLY_MESSAGE_TO_CLIENT);
        drop(requester);
        let answer = replier.answer(waiting);
        assert_eq!(answer.header.code, response::SYSTEM_ERROR);
        assert!(answer.header.remark.contains("closed its connection"), "{answer:?}");
        let answer = replier.expect(response::SYSTEM_ERROR, reply_to("nobody", 325, b"lost"));
        assert_eq!(answer.header.remark, "push reply message fail, channel of <nobody> not found.");
        // What could never be stored is pushed to nobody; what is pushed has arrived, stored or not.
        let mut requester = server.client();
        requester.expect(response::SUCCESS, heartbeat("requester", "g", &["T"]));
        let pairs = [("CORRELATION_ID", "c-2"), ("REPLY_TO_CLIENT", "requester")];
        let reply = |topic: &str, queue: i32, body: &[u8]| {
            send_as(request::SEND_REPLY_MESSAGE_V2, topic, queue, &properties(&pairs), body)
        };
        replier.expect(response::INVALID_PARAMETER, reply(REPLIES, 99, b"x"));
        replier.expect(response::NO_PERMISSION, reply("SCHEDULE_TOPIC_XXXX", 0, b"x"));
        for settings in ["storeReplyMessageEnable=true", "storeReplyMessageEnable=false"] {
            replier.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], settings));
            let waiting = replier.write(reply(REPLIES, 0, b""));
            let pushed = requester.push(request::PUSH_REPLY_MESSAGE_TO_CLIENT);
            assert!(pushed.body.is_empty(), "and not one of those that were refused");
            respond(&mut requester, &pushed, response::SUCCESS, b"");
            let answer = replier.answer(waiting);
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            let fields = ["msgId", "queueId", "queueOffset", "TRACE_ON"].map(|name| field(&answer, name));
            assert_eq!(fields, ["0", "0", "0", "true"]);
        }
        assert_eq!(edge(&mut replier, request::GET_MAX_OFFSET, REPLIES, 0), 5, "none without a body");
    });
}

fn running_info(client: &str) -> Command {
    let fields = [("consumerGroup", "g"), ("clientId", client), ("jstackEnable", "true")];
    asking(request::GET_CONSUMER_RUNNING_INFO, &fields)
}

#[test]
fn requests_for_a_client_reach_it_and_its_answer_comes_back() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut admin] = [server.client(), server.client(), server.client()];
        let answer = admin.expect(response::SYSTEM_ERROR, running_info("one"));
        assert_eq!(answer.header.remark, "The Consumer <g> <one> not online");
        one.expect(response::SUCCESS, heartbeat("one", "g", &["T"]));
        two.expect(response::SUCCESS, heartbeat("two", "g", &["T"]));
        let waiting = admin.write(running_info("two"));
        let asked = two.push(request::GET_CONSUMER_RUNNING_INFO);
        assert_eq!((field(&asked, "clientId"), field(&asked, "jstackEnable")), ("two", "true"));
        // Not an answer to anything: it is nobody's.
        let mut stray = asked.clone();
        stray.header.opaque ^= 0x40_0000;
        respond(&mut two, &stray, response::SUCCESS, b"stray");
        respond(&mut one, &asked, response::SUCCESS, b"forged");
        respond(&mut two, &asked, response::SUCCESS, b"{}");
        assert_eq!(admin.answer(waiting).body, &b"{}"[..]);

        admin.expect(response::SUCCESS, create_topic("T", 2));
        let sent = admin.expect(response::SUCCESS, send("T", 1, b"again"));
        let directly = |id: &str| {
            let fields = [("consumerGroup", "g"), ("clientId", "one"), ("msgId", id), ("topic", "T")];
            asking(request::CONSUME_MESSAGE_DIRECTLY, &fields)
        };
        let waiting = admin.write(directly(field(&sent, "msgId")));
        let asked = one.push(request::CONSUME_MESSAGE_DIRECTLY);
        assert_eq!(field(&asked, "brokerName"), "broker-a");
        assert_eq!(records(&asked.body).next().unwrap().unwrap().body, b"again");
        respond(&mut one, &asked, response::SUCCESS, br#"{"consumeResult":"CR_SUCCESS"}"#);
        assert_eq!(admin.answer(waiting).body, &br#"{"consumeResult":"CR_SUCCESS"}"#[..]);
        for id in ["", "x", "7F00000100002A9F00000000000FFFFF"] {
            admin.expect(response::SYSTEM_ERROR, directly(id));
        }

        let status = |client: &str| {
            let fields = [("topic", "T"), ("group", "g"), ("clientAddr", client)];
            asking(request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS, &fields)
        };
        let waiting = admin.write(status(""));
        for (client, offset) in [(&mut one, 5), (&mut two, 7)] {
            let asked = client.push(request::GET_CONSUMER_STATUS_FROM_CLIENT);
            let queue = r#"{"brokerName":"broker-a","queueId":1,"topic":"T"}"#;
            let body = format!("{{\"consumerTable\":{{}},\"messageQueueTable\":{{{queue}:{offset}}}}}");
            respond(client, &asked, response::SUCCESS, body.as_bytes());
        }
        let answer = admin.answer(waiting);
        let text = std::str::from_utf8(&answer.body).unwrap();
        for part in [r#""one":{{"brokerName":"broker-a","queueId":1,"topic":"T"}:5}"#, r#""two":{{"#, "}:7}"] {
            assert!(text.contains(part), "{text}");
        }
        admin.expect(response::CONSUMER_NOT_ONLINE, status("three"));
        // Who goes away has no part in it.
        let waiting = admin.write(status("two"));
        two.push(request::GET_CONSUMER_STATUS_FROM_CLIENT);
        drop(two);
        let answer = admin.answer(waiting);
        assert_eq!(&answer.body[..], br#"{"consumerTable":{},"messageQueueTable":{}}"#);
    });
}

fn reset(more: &[(&str, &str)]) -> Command {
    let mut fields = vec![("topic", "T"), ("group", "g"), ("timestamp", "0"), ("isForce", "true")];
    for (name, value) in more {
        fields.retain(|(known, _)| known != name);
        fields.push((name, value));
    }
    asking(request::INVOKE_BROKER_TO_RESET_OFFSET, &fields)
}

fn offsets(answer: &Command) -> BTreeMap<i32, i64> {
    let body: ResetOffsets = bodies::decode(&answer.body).unwrap();
    body.offset_table.into_iter().map(|(MessageQueue { queue_id, .. }, offset)| (queue_id, offset)).collect()
}

/// A pull of the group, by its subscription.
fn pull_of_group(queue: i32, offset: i64, suspend_ms: i64) -> Command {
    let header = PullMessage {
        consumer_group: "g",
        sys_flag: if suspend_ms > 0 { pull_flag::SUSPEND } else { 0 },
        suspend_timeout_ms: suspend_ms,
        ..pull_header("T", queue, offset)
    };
    pull_with(request::PULL_MESSAGE, header)
}

/// A topic of two queues with five messages each; group `g` has consumed all of them.
fn consumed(client: &mut Client) {
    client.expect(response::SUCCESS, create_topic("T", 2));
    client.expect(response::SUCCESS, heartbeat("one", "g", &["T"]));
    for queue in 0..2 {
        (0..5).for_each(|_| drop(client.expect(response::SUCCESS, send("T", queue, b"x"))));
        client.expect(response::SUCCESS, commit("g", "T", queue, 5));
    }
}

#[test]
fn the_broker_sets_offsets_anew_and_tells_clients_with_their_next_pull() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut admin] = [server.client(), server.client()];
        consumed(&mut client);
        let waiting = client.write(pull_of_group(0, 5, 30_000));
        let answer = admin.expect(response::SUCCESS, reset(&[]));
        assert_eq!(offsets(&answer), BTreeMap::from([(0, 0), (1, 0)]));
        // Who waited comes again, and hears of it once; what it says of the old offset does not count.
        let answer = client.answer(waiting);
        assert_eq!(answer.header.code, response::PULL_NOT_FOUND, "{answer:?}");
        let answer = client.expect(response::SUCCESS, commit("g", "T", 0, 5));
        assert_eq!(answer.header.remark, "Offset has been previously reset");
        assert_eq!(committed(&mut client, "g", "T", 0), Some(0));
        let answer = client.expect(response::PULL_OFFSET_MOVED, pull_of_group(0, 5, 0));
        assert_eq!((answer.header.remark.as_str(), number(&answer, "nextBeginOffset")), ("OFFSET_RESET", 0));
        assert_eq!(messages(&client.expect(response::SUCCESS, pull_of_group(0, 0, 0))).len(), 5);
        client.expect(response::SUCCESS, commit("g", "T", 0, 5));
        assert_eq!(committed(&mut client, "g", "T", 0), Some(5));

        // One queue, by offset; the newest; what cannot be.
        let answer = admin.expect(response::SUCCESS, reset(&[("queueId", "1"), ("offset", "3")]));
        assert_eq!(offsets(&answer), BTreeMap::from([(1, 3)]));
        assert_eq!(committed(&mut client, "g", "T", 1), Some(3));
        let answer = admin.expect(response::SUCCESS, reset(&[("timestamp", "-1")]));
        assert_eq!(offsets(&answer), BTreeMap::from([(0, 5), (1, 5)]));
        for (code, more) in [
            (response::TOPIC_NOT_EXIST, ("topic", "U")),
            (response::SUBSCRIPTION_GROUP_NOT_EXIST, ("group", "h")),
            (response::SYSTEM_ERROR, ("queueId", "2")),
        ] {
            admin.expect(code, reset(&[more]));
        }
        for offset in ["-2", "7"] {
            let answer = admin.expect(response::SYSTEM_ERROR, reset(&[("queueId", "1"), ("offset", offset)]));
            assert!(answer.header.remark.contains("[0-5]"), "{answer:?}");
        }
    });
}

#[test]
fn clients_set_their_offsets_anew_if_the_broker_does_not() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "broker.server_side_reset=false"]);
        let [mut client, mut admin] = [server.client(), server.client()];
        consumed(&mut client);
        client.expect(response::SUCCESS, commit("g", "T", 1, 2));
        // Forward only if it is forced.
        for (force, wanted) in [("false", BTreeMap::from([(0, 5), (1, 2)])), ("true", BTreeMap::from([(0, 5), (1, 5)]))]
        {
            let answer = admin.expect(response::SUCCESS, reset(&[("timestamp", "-1"), ("isForce", force)]));
            assert_eq!(offsets(&answer), wanted);
            let pushed = client.push(request::RESET_CONSUMER_CLIENT_OFFSET);
            assert!(pushed.header.is_oneway());
            assert_eq!((offsets(&pushed), field(&pushed, "group")), (wanted, "g"));
        }
        assert_eq!(committed(&mut admin, "g", "T", 1), Some(2), "that is the clients' part");
        drop(client);
        // The broker hears of the close as soon as the kernel says so.
        while admin.ask(reset(&[])).header.code != response::CONSUMER_NOT_ONLINE {}
    });
}

#[test]
fn offsets_are_cloned_compared_and_listed() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        consumed(&mut client);
        client.expect(response::SUCCESS, heartbeat("one", "h", &["T"]));
        let clone = |topic: &str, offline: &str| {
            let fields = [("srcGroup", "g"), ("destGroup", "h"), ("topic", topic), ("offline", offline)];
            asking(request::CLONE_GROUP_OFFSET, &fields)
        };
        client.expect(response::SYSTEM_ERROR, clone("U", "true"));
        client.expect(response::SUCCESS, clone("T", "false"));
        assert_eq!([0, 1].map(|queue| committed(&mut client, "h", "T", queue)), [Some(5), Some(5)]);
        client.expect(response::SUCCESS, commit("h", "T", 1, 1));
        client.expect(response::SUCCESS, commit("g", "T", 0, 3));
        let correction = |compared: &str, without: &str| {
            let fields = [("filterGroups", without), ("compareGroup", compared), ("topic", "T")];
            asking(request::QUERY_CORRECTION_OFFSET, &fields)
        };
        // g: 3 and 5, h: 5 and 1.
        for (compared, without, wanted) in [
            ("g", "", r#"{"correctionOffsets":{"0":3,"1":1}}"#),
            ("g", "g", r#"{"correctionOffsets":{"0":9223372036854775807,"1":1}}"#),
            ("h", "h, g", r#"{"correctionOffsets":{}}"#),
        ] {
            let answer = client.expect(response::SUCCESS, correction(compared, without));
            assert_eq!(std::str::from_utf8(&answer.body).unwrap(), wanted);
        }
        let all = client.expect(response::SUCCESS, asking(request::GET_BROKER_CONSUME_STATS, &[("isOrder", "false")]));
        let text = std::str::from_utf8(&all.body).unwrap();
        assert!(text.contains(r#""totalDiff":6,"#) && text.contains(r#"{"g":[{"consumeTps""#), "{text}");
        assert!(text.contains(r#""queueId":1,"topic":"T"}:{"brokerOffset":5,"consumerOffset":1,"#), "{text}");
        client.expect(response::SUCCESS, clone("", "true"));
        assert_eq!([0, 1].map(|queue| committed(&mut client, "h", "T", queue)), [Some(3), Some(5)]);
    });
}

#[test]
fn what_went_in_and_out_is_counted_by_topic_and_by_group() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        consumed(&mut client);
        let view =
            |name: &str, key: &str| asking(request::VIEW_BROKER_STATS_DATA, &[("statsName", name), ("statsKey", key)]);
        for queue in 0..2 {
            client.expect(response::SUCCESS, pull_of_group(queue, 0, 0));
        }
        // Each core takes its first sample within ten seconds; the two queues may be of two cores.
        let sum = |answer: &Command| bodies::decode::<BrokerStatsData>(&answer.body).unwrap().stats_minute.sum;
        let first = loop {
            let answer = client.ask(view("TOPIC_PUT_NUMS", "T"));
            match answer.header.code {
                response::SUCCESS if sum(&answer) == 10 => break answer,
                response::SUCCESS => assert_eq!(sum(&answer), 5, "one core's part"),
                _ => assert_eq!(answer.header.remark, "The stats <TOPIC_PUT_NUMS> <T> not exist"),
            }
        };
        let data: BrokerStatsData = bodies::decode(&first.body).unwrap();
        assert_eq!((data.stats_minute.sum, data.stats_hour.sum, data.stats_day.sum), (10, 10, 10));
        assert!(data.stats_minute.tps > 0.0, "{data:?}");
        assert_eq!(sum(&client.expect(response::SUCCESS, view("GROUP_GET_NUMS", "T@g"))), 10);
        assert!(sum(&client.expect(response::SUCCESS, view("TOPIC_PUT_SIZE", "T"))) > 1_000);
        assert!(sum(&client.expect(response::SUCCESS, view("GROUP_GET_SIZE", "T@g"))) > 1_000);
        // Of the whole broker, by its cluster's name.
        for name in ["BROKER_PUT_NUMS", "BROKER_GET_NUMS"] {
            assert_eq!(sum(&client.expect(response::SUCCESS, view(name, "DefaultCluster"))), 10, "{name}");
            client.expect(response::SYSTEM_ERROR, view(name, "broker-a"));
        }
        client.expect(response::SYSTEM_ERROR, view("BROKER_PUT_SIZE", "DefaultCluster"));
        // What is sent back counts for the topic that it was read from.
        client.expect(response::SYSTEM_ERROR, view("SNDBCK_PUT_NUMS", "T@g"));
        let place = messages(&client.ask(pull_of_group(0, 0, 0)))[0].physical_offset.to_string();
        for level in ["1", "-1"] {
            let back = [("offset", &*place), ("group", "g"), ("delayLevel", level)];
            client.expect(response::SUCCESS, asking(request::CONSUMER_SEND_MSG_BACK, &back));
        }
        assert_eq!(sum(&client.expect(response::SUCCESS, view("SNDBCK_PUT_NUMS", "T@g"))), 2);
        for (name, key) in [("TOPIC_PUT_NUMS", "U"), ("GROUP_GET_NUMS", "T"), ("GROUP_GET_NUMS", "T@h"), ("X", "T")] {
            client.expect(response::SYSTEM_ERROR, view(name, key));
        }
        let topic = client.expect(response::SUCCESS, asking(request::GET_TOPIC_STATS_INFO, &[("topic", "T")]));
        assert!(bodies::decode::<TopicStatsTable>(&topic.body).unwrap().topic_put_tps > 0.0);
        let fields = [("consumerGroup", "g"), ("topic", "T")];
        let group = client.expect(response::SUCCESS, asking(request::GET_CONSUME_STATS, &fields));
        assert!(bodies::decode::<ConsumeStats>(&group.body).unwrap().consume_tps > 0.0);
        // What g has read of T, and nothing that h has not.
        let all = |client: &mut Client, ordered: &str| {
            let asked = asking(request::GET_BROKER_CONSUME_STATS, &[("isOrder", ordered)]);
            let all = client.expect(response::SUCCESS, asked);
            String::from_utf8(all.body.to_vec()).expect("a text")
        };
        client.expect(response::SUCCESS, heartbeat("one", "h", &["T"]));
        client.expect(response::SUCCESS, commit("h", "T", 0, 1));
        let text = all(&mut client, "false");
        let tps = |group: &str| -> f64 {
            let (_, rest) = text.split_once(&format!(r#"{{"{group}":[{{"consumeTps":"#)).expect("it is told");
            rest.split(',').next().and_then(|number| number.parse().ok()).expect("a number")
        };
        assert!(tps("g") > 0.0 && tps("h") == 0.0, "{text}");
        // It has an offset in one of two queues of five messages.
        assert!(text.ends_with(r#""totalDiff":9,"totalInflightDiff":0}"#), "{text}");
        // T is no topic of an order; and who is alive and reads another topic reads none of it.
        assert!(!all(&mut client, "true").contains(r#""topic":"T""#));
        client.expect(response::SUCCESS, heartbeat("one", "h", &["U"]));
        let text = all(&mut client, "false");
        assert!(text.contains(r#"{"g":[{"#) && text.contains(r#"{"h":[]}"#), "{text}");
        // A group that is deleted without its offsets is told no more, and has no figures.
        let deleted = asking(request::DELETE_SUBSCRIPTIONGROUP, &[("groupName", "g"), ("cleanOffset", "false")]);
        client.expect(response::SUCCESS, deleted);
        assert!(!all(&mut client, "false").contains(r#"{"g":"#));
        client.expect(response::SYSTEM_ERROR, view("GROUP_GET_NUMS", "T@g"));
    });
}

#[test]
fn the_times_of_a_queue_and_of_a_group_in_it_are_told() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let before_ms = now_ms();
        for body in [b"a", b"b", b"c"] {
            client.expect(response::SUCCESS, send("T", 1, body));
        }
        let spans = |client: &mut Client, group: &str| {
            let asked = asking(request::QUERY_CONSUME_TIME_SPAN, &[("topic", "T"), ("group", group)]);
            let answer = client.expect(response::SUCCESS, asked);
            bodies::decode::<TimeSpans>(&answer.body).expect("times").consume_time_span_set
        };
        let stored_ms: Vec<i64> = {
            let answer = client.expect(response::SUCCESS, pull("T", 1, 0));
            messages(&answer).iter().map(|message| message.store_timestamp).collect()
        };
        assert!(stored_ms[0] >= before_ms);
        let seen = spans(&mut client, "g");
        let empty = TimeSpan {
            consume_time_stamp: -1,
            delay_time: 0,
            max_time_stamp: -1,
            message_queue: message_queue("T", 0),
            min_time_stamp: -1,
        };
        assert_eq!((seen.len(), &seen[0]), (2, &empty));
        let edges = (seen[1].min_time_stamp, seen[1].max_time_stamp, seen[1].consume_time_stamp);
        assert_eq!(
            (edges, &seen[1].message_queue),
            ((stored_ms[0], stored_ms[2], stored_ms[0]), &message_queue("T", 1))
        );
        assert!((0..60_000).contains(&seen[1].delay_time));
        client.expect(response::SUCCESS, commit("g", "T", 1, 2));
        let seen = spans(&mut client, "g");
        assert_eq!(seen[1].consume_time_stamp, stored_ms[1]);
        client.expect(response::SUCCESS, commit("g", "T", 1, 3));
        assert_eq!(spans(&mut client, "g")[1].delay_time, 0, "it has consumed everything");
        let nowhere = asking(request::QUERY_CONSUME_TIME_SPAN, &[("topic", "U"), ("group", "g")]);
        client.expect(response::TOPIC_NOT_EXIST, nowhere);
        server.stop();
    });
}

#[test]
fn what_a_group_may_not_read_is_refused_and_told() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let group = br#"{"groupName":"g"}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &group[..]));
        let ask = |client: &mut Client, more: &[(&str, &str)]| {
            let fields = [&[("group", "g"), ("topic", "T")], more].concat();
            let answer = client.expect(response::SUCCESS, asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &fields));
            bodies::decode::<Forbidden>(&answer.body).expect("what it may").readable
        };
        assert!(ask(&mut client, &[]));
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let header = PullMessage { consumer_group: "g", sys_flag: 0, subscription: None, ..pull_header("T", 0, 0) };
        let pull = |client: &mut Client, code| client.expect(code, pull_with(request::PULL_MESSAGE, header));
        pull(&mut client, response::PULL_NOT_FOUND);
        assert!(!ask(&mut client, &[("readable", "false")]));
        let refused = pull(&mut client, response::NO_PERMISSION);
        assert_eq!(refused.header.fields.get("forbiddenType"), Some("5"));
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        assert!(!ask(&mut client, &[]));
        // A change of its configuration leaves it as it is.
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &group[..]));
        let answer = client.expect(response::SUCCESS, asking(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[]));
        let table: SubscriptionGroupTable = bodies::decode(&answer.body).expect("a table");
        assert_eq!(table.forbidden_table["g"]["T"], 4);
        assert!(ask(&mut client, &[("readable", "true")]));
        let wrong = [("group", "g"), ("topic", "a b"), ("readable", "false")];
        client.expect(response::INVALID_PARAMETER, asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &wrong));
        // A group that nobody knows may read, until that is said otherwise.
        let of_new = |readable: Option<&'static str>| {
            let fields =
                [("group", "new"), ("topic", "T")].into_iter().chain(readable.map(|value| ("readable", value)));
            asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &fields.collect::<Vec<_>>())
        };
        let config = || asking(request::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", "new")]);
        for (readable, is_readable) in [(None, true), (Some("true"), true), (Some("false"), false)] {
            client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, config());
            let answer = client.expect(response::SUCCESS, of_new(readable));
            assert_eq!(bodies::decode::<Forbidden>(&answer.body).expect("what it may").readable, is_readable);
        }
        client.expect(response::SUCCESS, config());
        client.expect(response::SUCCESS, heartbeat("c", "new", &["T"]));
        let header = PullMessage { consumer_group: "new", sys_flag: 0, subscription: None, ..pull_header("T", 0, 0) };
        client.expect(response::NO_PERMISSION, pull_with(request::PULL_MESSAGE, header));
        server.stop();
        let server = Server::with_cores(home, cores, &["--set", "broker.auto_create_group=false"]);
        let wrong = [("group", "nobody"), ("topic", "T"), ("readable", "false")];
        let asked = asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &wrong);
        server.client().expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, asked);
        server.stop();
    });
}

#[test]
fn what_a_group_has_popped_is_in_flight() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        for body in [b"a", b"b", b"c"] {
            client.expect(response::SUCCESS, send("T", 1, body));
        }
        let mut pop = Command::request(request::POP_MESSAGE);
        let asked = PopMessage {
            consumer_group: "g",
            topic: "T",
            queue_id: 1,
            max_msg_nums: 2,
            invisible_time: 600_000,
            ..PopMessage::default()
        };
        asked.push(&mut pop.header.fields);
        assert_eq!(messages(&client.expect(response::SUCCESS, pop)).len(), 2);
        let fields = [("consumerGroup", "g"), ("topic", "T")];
        let answer = client.expect(response::SUCCESS, asking(request::GET_CONSUME_STATS, &fields));
        let stats: ConsumeStats = bodies::decode(&answer.body).unwrap();
        let row = |queue| {
            let row = stats.offset_table[&message_queue("T", queue)];
            (row.broker_offset, row.consumer_offset, row.pull_offset)
        };
        assert_eq!([row(0), row(1)], [(0, 0, 0), (3, 0, 2)]);
    });
}

/// A pop of the group, of all queues, that waits for a minute.
fn pop_waiting() -> Command {
    let asked = PopMessage {
        consumer_group: "g",
        topic: "T",
        queue_id: -1,
        max_msg_nums: 32,
        invisible_time: 600_000,
        poll_time: 60_000,
        ..PopMessage::default()
    };
    let mut pop = Command::request(request::POP_MESSAGE);
    asked.push(&mut pop.header.fields);
    pop
}

#[test]
fn what_was_changed_while_one_waited_holds_for_it() {
    let closed = || {
        telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &br#"{"groupName":"g","consumeEnable":false}"#[..])
    };
    let forbidden = || {
        let fields = [("group", "g"), ("topic", "T"), ("readable", "false")];
        asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &fields)
    };
    let write_only = || {
        let fields = [
            ("topic", "T"),
            ("defaultTopic", "TBW102"),
            ("readQueueNums", "2"),
            ("writeQueueNums", "2"),
            ("perm", "2"),
            ("topicFilterType", "SINGLE_TAG"),
            ("order", "false"),
        ];
        asking(request::UPDATE_AND_CREATE_TOPIC, &fields)
    };
    let no_reads = || telling(request::UPDATE_BROKER_CONFIG, &[], "brokerPermission=2");
    let deleted = || {
        let fields = [("groupName", "g"), ("cleanOffset", "true")];
        asking(request::DELETE_SUBSCRIPTIONGROUP, &fields)
    };
    let rows = [
        (&closed as &dyn Fn() -> Command, response::NO_PERMISSION, Some("2")),
        (&forbidden, response::NO_PERMISSION, Some("5")),
        (&write_only, response::NO_PERMISSION, Some("3")),
        (&no_reads, response::NO_PERMISSION, Some("1")),
        (&deleted, response::SUBSCRIPTION_GROUP_NOT_EXIST, None),
    ];
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for (change, code, kind) in rows {
            client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "brokerPermission=6"));
            client.expect(response::SUCCESS, create_topic("T", 2));
            client.expect(response::SUCCESS, heartbeat("one", "g", &["T"]));
            let group = br#"{"groupName":"g","consumeEnable":true}"#;
            client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &group[..]));
            let pull = client.write(pull_of_group(1, 0, 60_000));
            let pop = client.write(pop_waiting());
            client.expect(response::SUCCESS, change());
            client.expect(response::SUCCESS, send("T", 1, b"too late"));
            let refused = client.answer(pull);
            assert_eq!((refused.header.code, refused.header.fields.get("forbiddenType")), (code, kind), "{refused:?}");
            let popped = client.answer(pop);
            // 353 is about subscriptions, and a pop brings its own.
            let popped_code = if kind == Some("5") { response::SUCCESS } else { code };
            assert_eq!(popped.header.code, popped_code, "{popped:?}");
            if code == response::SUBSCRIPTION_GROUP_NOT_EXIST {
                assert_eq!(committed(&mut client, "g", "T", 1), None, "its offsets are gone");
            }
            client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
            client.expect(response::SUCCESS, deleted());
        }
        server.stop();
    });
}

#[test]
fn who_waits_sees_what_there_is_now() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        // Queues that came meanwhile, wherever they lie.
        for queue in 1..4 {
            client.expect(response::SUCCESS, create_topic("T", queue));
            let pop = client.write(pop_waiting());
            let asked = [("consumerGroup", "g"), ("topic", "T"), ("queueId", "-1")];
            let polling = || asking(request::POLLING_INFO, &asked);
            await_that("it waits", || number(&client.expect(response::SUCCESS, polling()), "pollingNum") == 1);
            client.expect(response::SUCCESS, create_topic("T", queue + 1));
            client.expect(response::SUCCESS, send("T", queue as i32, b"new"));
            let popped = client.answer(pop);
            assert_eq!(popped.header.code, response::SUCCESS, "nobody told it of queue {queue}: {popped:?}");
            assert_eq!(messages(&popped)[0].queue_id, queue as i32);
        }
        // Another subscription.
        let subscribed = |tags: &str, version: i64| subscribing("g", tagged("T", tags, version));
        client.expect(response::SUCCESS, subscribed("a", 1));
        let pull = client.write(pull_of_group(0, 0, 60_000));
        client.expect(response::SUCCESS, subscribed("b", 2));
        for (tag, body) in [("a", b"old"), ("b", b"new")] {
            let properties = properties(&[("TAGS", tag)]);
            client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", 0, &properties, body));
        }
        let answer = client.answer(pull);
        assert_eq!(messages(&answer)[0].body, b"new");
        server.stop();
    });
}
