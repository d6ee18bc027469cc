//! Goal: on the wire the broker is RocketMQ, for messages and offsets. Method: raw frames to the real binary,
//! with one core and with two, in both serializations; what must last is looked at again after SIGTERM and
//! after `kill -9`. (groups.rs has groups, topics and admin requests, abuse.rs what is no good request.)

use std::time::{Duration, Instant};

use protocol::bodies::{self, QueueEntries};
use protocol::codes::{request, response};
use protocol::headers::PopMessage;
use protocol::ids::OffsetId;
use protocol::message::BatchEntry;
use protocol::{Command, Serialize};
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{
    BORN_MS, asking, commit, committed, create_topic, edge, field, heartbeat, messages, now_ms, number, oneway,
    properties, pull, pull_all, pull_header, pull_waiting, pull_with, send, send_as, send_batch, telling,
    wait_until_durable,
};

/// A wait that would be noticed.
const LONG_MS: i64 = 25_000;

/// Two clients: with two cores they are on different ones.
fn clients(server: &Server, serialize: Serialize) -> [Client; 2] {
    [server.client().speaking(serialize), server.client().speaking(serialize)]
}

#[test]
fn every_kind_of_send_is_stored_where_its_answer_says() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        for (serialize, topic) in [(Serialize::Json, "json"), (Serialize::RocketMq, "binary")] {
            let [mut one, mut two] = clients(&server, serialize);
            let text = properties(&[("TAGS", "TagA"), ("KEYS", "k1 k2"), ("UNIQ_KEY", "0A0B"), ("own", "ü 語")]);
            let mut ids = Vec::new();
            for queue in 0..4 {
                let long = send_as(request::SEND_MESSAGE, topic, queue, &text, b"first");
                let short = send_as(request::SEND_MESSAGE_V2, topic, queue, "", b"second");
                for (offset, command) in [(0, long), (1, short)] {
                    let answer = one.expect(response::SUCCESS, command);
                    assert_eq!((number(&answer, "queueId"), number(&answer, "queueOffset")), (queue.into(), offset));
                    assert_eq!((field(&answer, "MSG_REGION"), field(&answer, "TRACE_ON")), ("DefaultRegion", "true"));
                    assert!(answer.header.version >= 413, "{answer:?}");
                    ids.push((field(&answer, "msgId").to_owned(), field(&answer, "transactionId").to_owned()));
                }
                let answer = two.expect(response::SUCCESS, send_batch(topic, queue, &["third", "fourth", "fifth"]));
                assert_eq!((number(&answer, "queueId"), number(&answer, "queueOffset")), (queue.into(), 2));
                ids.extend(field(&answer, "msgId").split(',').map(|id| (id.to_owned(), String::new())));
                // Nobody answers it; the next answer shows that it was taken before.
                one.write(oneway(send(topic, queue, b"sixth")));
                let answer = one.ask(send(topic, queue, b"seventh"));
                assert_eq!(number(&answer, "queueOffset"), 6);
                ids.extend([(String::new(), String::new()), (field(&answer, "msgId").to_owned(), String::new())]);
            }
            assert_eq!(ids[0].1, "0A0B", "the client's own id comes back");
            for queue in 0..4 {
                let answer = two.expect(response::SUCCESS, pull(topic, queue, 0));
                assert_eq!(answer.header.remark, "FOUND");
                let span = ["nextBeginOffset", "minOffset", "maxOffset"].map(|name| number(&answer, name));
                assert_eq!((span, number(&answer, "suggestWhichBrokerId")), ([7, 0, 7], 0));
                let found = messages(&answer);
                let bodies: Vec<_> = found.iter().map(|message| std::str::from_utf8(message.body).unwrap()).collect();
                assert_eq!(bodies, ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]);
                for (message, (id, unique)) in found.iter().zip(&ids[queue as usize * 7..]) {
                    assert_eq!((message.topic, message.queue_id), (topic, queue));
                    assert_eq!((message.flag, message.born_timestamp, message.sys_flag), (17, BORN_MS, 0));
                    assert_eq!((message.reconsume_times, message.store_host), (0, server.address));
                    let sender = if (2..5).contains(&message.queue_offset) { &two } else { &one };
                    assert_eq!(message.born_host, sender.stream.local_addr().unwrap());
                    let own = OffsetId { host: server.address, offset: message.physical_offset };
                    assert!(id.is_empty() || *id == own.to_string(), "{id} is not {own}");
                    assert!(unique.is_empty() || message.property("UNIQ_KEY") == Some(unique), "{message:?}");
                    let view = asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &message.physical_offset.to_string())]);
                    assert_eq!(messages(&one.expect(response::SUCCESS, view)), [*message]);
                }
                let kept: Vec<_> = ["TAGS", "KEYS", "own", "CLUSTER", "MSG_REGION", "TRACE_ON"]
                    .map(|name| found[0].property(name).unwrap_or("").to_owned())
                    .into();
                assert_eq!(kept, ["TagA", "k1 k2", "ü 語", "DefaultCluster", "DefaultRegion", "true"]);
                assert!(found[1].property("UNIQ_KEY").is_some_and(|id| id.len() == 32), "the broker makes one");
                assert_eq!(found[2].properties, "", "a batch's messages stay as they were");
            }
            let other = asking(request::VIEW_MESSAGE_BY_ID, &[("offset", "12345")]);
            one.expect(response::SYSTEM_ERROR, other);
        }
        server.stop();
    });
}

#[test]
fn answers_come_once_each_and_a_queue_keeps_the_order_of_a_connection() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 8));
        let mut asked: Vec<(i32, i32)> = Vec::new();
        for index in 0..2_000 {
            let command = match index % 4 {
                0 => asking(request::GET_MAX_OFFSET, &[("topic", "T"), ("queueId", "1")]),
                _ => send("T", index % 8, &index.to_be_bytes()),
            };
            asked.push((client.write(command), index));
        }
        let mut sends = vec![Vec::new(); 8];
        for _ in 0..asked.len() {
            let answer = client.read();
            let at =
                asked.iter().position(|(opaque, _)| *opaque == answer.header.opaque).expect("asked, and not answered");
            let (_, index) = asked.swap_remove(at);
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            if index % 4 != 0 {
                sends[(index % 8) as usize].push((number(&answer, "queueOffset"), index));
            }
        }
        for (queue, sends) in sends.iter_mut().enumerate() {
            sends.sort_unstable();
            let mut found = Vec::new();
            pull_all(&mut client, "T", queue as i32, 0, |message| {
                found.push((message.queue_offset, i32::from_be_bytes(message.body.try_into().unwrap())));
            });
            assert_eq!(found, *sends);
            assert!(found.is_sorted_by_key(|(_, index)| *index), "{queue}: {found:?}");
        }
    });
}

#[test]
fn pulls_filter_by_tag_and_stop_at_their_bounds() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = clients(&server, Serialize::Json);
        for index in 0..40 {
            let tag = ["TagA", "TagB", ""][index % 3];
            client.ask(send_as(request::SEND_MESSAGE_V2, "T", 0, &properties(&[("TAGS", tag)]), &[index as u8]));
        }
        client.expect(response::SUCCESS, heartbeat("c", "consumers", &["T"]));
        for code in [request::PULL_MESSAGE, request::LITE_PULL_MESSAGE] {
            for client in [&mut client, &mut other] {
                let all = client.expect(response::SUCCESS, pull_with(code, pull_header("T", 0, 0)));
                assert_eq!((messages(&all).len(), number(&all, "nextBeginOffset")), (32, 32), "32 at most");
                let mut few = pull_header("T", 0, 3);
                few.max_msg_nums = 4;
                let few = client.expect(response::SUCCESS, pull_with(code, few));
                let offsets: Vec<_> = messages(&few).iter().map(|message| message.queue_offset).collect();
                assert_eq!(offsets, [3, 4, 5, 6]);
                // Without the flag the group's own subscription counts: everything.
                let mut own = pull_header("T", 0, 38);
                (own.sys_flag, own.subscription) = (0, None);
                assert_eq!(messages(&client.expect(response::SUCCESS, pull_with(code, own))).len(), 2);
                for (tags, count) in [("TagA", 14), ("TagB", 13), ("TagA || TagB", 27), ("*", 32), ("", 32)] {
                    let mut some = pull_header("T", 0, 0);
                    some.subscription = Some(tags);
                    let some = client.expect(response::SUCCESS, pull_with(code, some));
                    let found = messages(&some);
                    assert_eq!(found.len(), count, "{tags}");
                    let fits = |tag: Option<&str>| count == 32 || tags.contains(tag.unwrap_or("none"));
                    assert!(found.iter().all(|message| fits(message.property("TAGS"))), "{tags}");
                }
                let mut none = pull_header("T", 0, 0);
                none.subscription = Some("TagC");
                let none = client.expect(response::PULL_RETRY_IMMEDIATELY, pull_with(code, none));
                assert_eq!((number(&none, "nextBeginOffset"), none.header.remark.as_str()), (40, "NO_MATCHED_MESSAGE"));
                for (queue, offset, code_wanted, next) in [
                    (0, 40, response::PULL_NOT_FOUND, 40),
                    (0, 41, response::PULL_OFFSET_MOVED, 40),
                    (0, -1, response::PULL_OFFSET_MOVED, 0),
                    (1, 0, response::PULL_NOT_FOUND, 0),
                    (1, 9, response::PULL_OFFSET_MOVED, 0),
                ] {
                    let answer = client.expect(code_wanted, pull_with(code, pull_header("T", queue, offset)));
                    assert_eq!(number(&answer, "nextBeginOffset"), next, "{queue} {offset}");
                }
            }
        }
    });
}

#[test]
fn offsets_by_time_and_edges() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = clients(&server, Serialize::Json);
        let queue = [("topic", "T"), ("queueId", "2")];
        client.expect(response::SUCCESS, create_topic("T", 4));
        let empty = client.expect(response::SUCCESS, asking(request::GET_EARLIEST_MSG_STORETIME, &queue));
        assert_eq!(number(&empty, "timestamp"), -1);
        let mut times = Vec::new();
        for index in 0..5u8 {
            // Each in a millisecond of its own, with another one between.
            loop {
                let at = times.last().copied();
                if at.is_none_or(|at| now_ms() > at + 1) {
                    break;
                }
            }
            client.expect(response::SUCCESS, send("T", 2, &[index]));
            let last = client.ask(pull("T", 2, index.into()));
            times.push(messages(&last)[0].store_timestamp);
        }
        for client in [&mut client, &mut other] {
            assert_eq!(edge(client, request::GET_MAX_OFFSET, "T", 2), 5);
            assert_eq!(edge(client, request::GET_MIN_OFFSET, "T", 2), 0);
            assert_eq!(edge(client, request::GET_MAX_OFFSET, "T", 1), 0);
            let first = client.expect(response::SUCCESS, asking(request::GET_EARLIEST_MSG_STORETIME, &queue));
            assert_eq!(number(&first, "timestamp"), times[0]);
            for (at, lower, upper) in [
                (times[0] - 1, 0, 0),
                (times[0], 0, 0),
                (times[2], 2, 2),
                (times[2] + 1, 3, 2),
                (times[4], 4, 4),
                (times[4] + 1, 5, 4),
                (i64::MAX, 5, 4),
                (0, 0, 0),
            ] {
                for (boundary, wanted) in [(None, lower), (Some("LOWER"), lower), (Some("upper"), upper)] {
                    let at = at.to_string();
                    let mut fields = vec![queue[0], queue[1], ("timestamp", &*at)];
                    fields.extend(boundary.map(|boundary| ("boundaryType", boundary)));
                    let answer = client.expect(response::SUCCESS, asking(request::SEARCH_OFFSET_BY_TIMESTAMP, &fields));
                    assert_eq!(number(&answer, "offset"), wanted, "{at} {boundary:?} of {times:?}");
                }
            }
        }
    });
}

#[test]
fn a_pull_that_waits_is_woken_by_its_message_and_ends_in_time() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut consumer, mut producer] = clients(&server, Serialize::Json);
        producer.expect(response::SUCCESS, create_topic("T", 4));

        // Whoever waits for queue 0 hears of it before those of other queues, and long before its time.
        let began = Instant::now();
        let waits: Vec<i32> = [1, 0, 2].map(|queue| consumer.write(pull_waiting("T", queue, 0, LONG_MS))).into();
        let sent = producer.expect(response::SUCCESS, send("T", 0, b"wake"));
        let answer = consumer.read();
        assert_eq!((answer.header.opaque, answer.header.code), (waits[1], response::SUCCESS), "{answer:?}");
        assert_eq!(messages(&answer)[0].body, b"wake");
        assert_eq!(messages(&answer)[0].queue_offset, number(&sent, "queueOffset"));
        assert!(began.elapsed() < Duration::from_millis(LONG_MS as u64), "it was woken, not timed out");

        // Another tag wakes nobody: the answer comes with the right one.
        let mut tagged = pull_header("T", 3, 0);
        (tagged.sys_flag, tagged.suspend_timeout_ms, tagged.subscription) =
            (protocol::names::pull_flag::SUBSCRIPTION | protocol::names::pull_flag::SUSPEND, LONG_MS, Some("TagB"));
        let waiting = consumer.write(pull_with(request::PULL_MESSAGE, tagged));
        for tag in ["TagA", "TagB"] {
            producer.ask(send_as(request::SEND_MESSAGE, "T", 3, &properties(&[("TAGS", tag)]), tag.as_bytes()));
        }
        let answer = consumer.answer(waiting);
        assert_eq!((answer.header.code, number(&answer, "nextBeginOffset")), (response::SUCCESS, 2), "{answer:?}");
        assert_eq!(messages(&answer).iter().map(|message| message.body).collect::<Vec<_>>(), [b"TagB"]);

        // A topic that goes wakes those who wait for it.
        producer.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        for opaque in [waits[0], waits[2]] {
            let answer = consumer.answer(opaque);
            assert_eq!(answer.header.code, response::TOPIC_NOT_EXIST, "{answer:?}");
        }

        // Its time is over: not before.
        producer.expect(response::SUCCESS, create_topic("U", 1));
        for suspend_ms in [1, 300, 1_200] {
            let began = Instant::now();
            let answer = consumer.ask(pull_waiting("U", 0, 0, suspend_ms));
            let took = began.elapsed() + Duration::from_millis(1);
            assert_eq!(answer.header.code, response::PULL_NOT_FOUND, "{answer:?}");
            assert_eq!((number(&answer, "nextBeginOffset"), number(&answer, "maxOffset")), (0, 0));
            assert!(took.as_millis() as i64 >= suspend_ms, "{took:?} for {suspend_ms} ms");
        }

        // Who leaves while waiting costs nothing; others are served.
        consumer.write(pull_waiting("U", 0, 0, LONG_MS));
        drop(consumer);
        producer.expect(response::SUCCESS, send("U", 0, b"for nobody"));
        let found = producer.expect(response::SUCCESS, pull_waiting("U", 0, 0, LONG_MS));
        assert_eq!(messages(&found).len(), 1);
        server.stop();
    });
}

#[test]
fn the_fast_port_serves_everything_but_pulls() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut fast = Client::connect(server.fast());
        fast.expect(response::SUCCESS, send("T", 0, b"x"));
        fast.expect(response::SUCCESS, send_batch("T", 0, &["y", "z"]));
        fast.expect(response::SUCCESS, heartbeat("c", "consumers", &["T"]));
        fast.expect(response::SUCCESS, commit("consumers", "T", 0, 1));
        assert_eq!(edge(&mut fast, request::GET_MAX_OFFSET, "T", 0), 3);
        for code in [request::PULL_MESSAGE, request::LITE_PULL_MESSAGE] {
            fast.expect(response::REQUEST_CODE_NOT_SUPPORTED, pull_with(code, pull_header("T", 0, 0)));
        }
        assert_eq!(messages(&server.client().ask(pull("T", 0, 0))).len(), 3);
    });
}

#[test]
fn unknown_requests_are_refused_and_one_way_ones_never_answered() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut client = server.client().speaking(serialize);
            for code in [0, 9, 354, 902, 9_999, 30_000, -1] {
                client.write(oneway(asking(code, &[])));
                let answer = client.expect(response::REQUEST_CODE_NOT_SUPPORTED, asking(code, &[]));
                assert_eq!(answer.header.remark, format!(" request type {code} not supported"));
            }
            // Neither is a failing one-way request of a known code.
            client.write(oneway(send("no such name!", 0, b"x")));
            client.write(oneway(asking(request::SEND_MESSAGE, &[])));
            client.write(oneway(asking(request::PULL_MESSAGE, &[])));
            let mut command = asking(9_999, &[]);
            command.header.version = i32::from(i16::MAX);
            let opaque = client.write(command);
            assert_eq!(client.read().header.opaque, opaque);
        }
        // Codes beyond 16 bits travel in JSON only.
        server.client().expect(response::REQUEST_CODE_NOT_SUPPORTED, asking(200_056, &[]));
    });
}

#[test]
fn failed_messages_come_again_and_die_at_last() {
    with_cores(|home, cores| {
        let levels = "broker.message_delay_level=1s 1s 1s 2s 1s";
        let server = Server::with_cores(home, cores, &["--set", levels]);
        let [mut client, mut other] = clients(&server, Serialize::Json);
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let sent = client.expect(response::SUCCESS, send_as(310, "T", 1, &properties(&[("TAGS", "t")]), b"hard"));
        let id = field(&sent, "msgId").to_owned();
        let back = |position: i64, level: &str, max: Option<&str>, group: &str| {
            let position = position.to_string();
            let mut fields = vec![("offset", &*position), ("group", group), ("delayLevel", level)];
            fields.extend(max.map(|max| ("maxReconsumeTimes", max)));
            asking(request::CONSUMER_SEND_MSG_BACK, &fields)
        };
        let first = messages(&other.ask(pull("T", 1, 0)))[0].physical_offset;
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, back(first, "0", None, "no group"));
        for wrong in [first + 1, 0, -1, i64::MAX, 1 << 48] {
            client.expect(response::SYSTEM_ERROR, back(wrong, "0", None, "g"));
        }

        // Level 0 is 3 plus the times it failed before; whoever waits in the retry queue gets it then.
        let waiting = other.write(pull_waiting("%RETRY%g", 0, 0, LONG_MS));
        let began = Instant::now();
        client.expect(response::SUCCESS, back(first, "0", Some("2"), "g"));
        let answer = other.answer(waiting);
        assert!(began.elapsed() + Duration::from_millis(1) >= Duration::from_secs(1), "{:?}", began.elapsed());
        let found = messages(&answer);
        assert_eq!(found.len(), 1, "{answer:?}");
        assert_eq!((found[0].body, found[0].topic, found[0].reconsume_times), (&b"hard"[..], "%RETRY%g", 1));
        assert_eq!((found[0].queue_offset, found[0].born_timestamp), (0, BORN_MS));
        let texts = ["RETRY_TOPIC", "ORIGIN_MESSAGE_ID", "TAGS", "WAIT"].map(|name| found[0].property(name));
        assert_eq!(texts, [Some("T"), Some(&*id), Some("t"), Some("false")]);
        assert_eq!(found[0].property("DELAY"), Some("3"), "as a stock broker shows it");

        // The second failure waits one level longer, and a kill in between changes nothing.
        let second = found[0].physical_offset;
        let began = Instant::now();
        client.expect(response::SUCCESS, back(second, "0", Some("2"), "g"));
        server.kill();
        let server = Server::with_cores(home, cores, &["--set", levels]);
        let [mut client, mut other] = clients(&server, Serialize::Json);
        let answer = client.expect(response::SUCCESS, pull_waiting("%RETRY%g", 0, 1, LONG_MS));
        assert!(began.elapsed() + Duration::from_millis(1) >= Duration::from_secs(2), "{:?}", began.elapsed());
        let found = messages(&answer);
        assert_eq!((found.len(), found[0].reconsume_times, found[0].queue_offset), (1, 2, 1));
        let texts = ["RETRY_TOPIC", "ORIGIN_MESSAGE_ID"].map(|name| found[0].property(name));
        assert_eq!(texts, [Some("T"), Some(&*id)], "the origin stays");

        // Too often: dead. And at once, if the client says so.
        other.expect(response::SUCCESS, back(found[0].physical_offset, "0", Some("2"), "g"));
        other.expect(response::SUCCESS, back(first, "-1", None, "g"));
        let dead = client.expect(response::SUCCESS, pull("%DLQ%g", 0, 0));
        let times: Vec<_> = messages(&dead).iter().map(|message| (message.body, message.reconsume_times)).collect();
        assert_eq!(times, [(&b"hard"[..], 3), (&b"hard"[..], 1)]);
        server.stop();
    });
}

#[test]
fn a_delay_level_is_kept_also_across_a_kill() {
    with_cores(|home, cores| {
        let levels = "broker.message_delay_level=1s 3s";
        let server = Server::with_cores(home, cores, &["--set", levels]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        let began = Instant::now();
        // At once: a slow disk must not put more than the levels' difference between them.
        let sends = [("2", "later"), ("1", "soon"), ("9", "last level is the longest")].map(|(level, body)| {
            let text = properties(&[("DELAY", level), ("TAGS", "t")]);
            send_as(request::SEND_MESSAGE_V2, "T", 0, &text, body.as_bytes())
        });
        assert!(client.ask_all(sends).iter().all(|answer| answer.header.code == response::SUCCESS));
        for wrong in ["soon", "2147483648"] {
            let text = properties(&[("DELAY", wrong)]);
            let refused =
                client.expect(response::SYSTEM_ERROR, send_as(request::SEND_MESSAGE_V2, "T", 0, &text, b"no"));
            assert!(refused.header.remark.contains(&format!("\"{wrong}\"")), "{refused:?}");
        }
        // What is asked at once comes before its time, unless the machine stood still in between.
        let early = client.ask(pull("T", 0, 0));
        let is_due = began.elapsed() + Duration::from_millis(1) >= Duration::from_secs(1);
        assert!(early.header.code == response::PULL_NOT_FOUND || is_due, "{early:?}");
        let answer = client.expect(response::SUCCESS, pull_waiting("T", 0, 0, LONG_MS));
        assert!(began.elapsed() + Duration::from_millis(1) >= Duration::from_secs(1));
        let soon = messages(&answer)[0];
        assert_eq!((soon.body, soon.topic, soon.property("DELAY")), (&b"soon"[..], "T", Some("1")));
        assert_eq!((soon.property("TAGS"), soon.property("REAL_TOPIC")), (Some("t"), Some("T")));
        server.kill();
        let server = Server::with_cores(home, cores, &["--set", levels]);
        let mut client = server.client();
        let mut bodies = Vec::new();
        while bodies.len() < 2 {
            let answer = client.expect(response::SUCCESS, pull_waiting("T", 0, 1 + bodies.len() as i64, LONG_MS));
            bodies.extend(messages(&answer).iter().map(|message| message.body.to_vec()));
        }
        assert!(began.elapsed() + Duration::from_millis(1) >= Duration::from_secs(3));
        bodies.sort_unstable();
        assert_eq!(bodies, [b"last level is the longest".to_vec(), b"later".to_vec()]);
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 3, "each came once");
    });
}

#[test]
fn messages_topics_and_offsets_survive_stops_and_kills() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let mut entry = Vec::new();
        BatchEntry { flag: 1, body: b"in a batch", properties: &properties(&[("KEYS", "key")]) }.encode(&mut entry);
        client.expect(response::SUCCESS, create_topic("made", 3));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["made"]));
        for queue in 0..3 {
            client.expect(response::SUCCESS, send("made", queue, b"one"));
            client.expect(response::SUCCESS, send_as(request::SEND_BATCH_MESSAGE, "made", queue, "", &entry));
        }
        client.expect(response::SUCCESS, send("automatic", 0, b"one"));
        assert_eq!(committed(&mut client, "g", "made", 0), None);
        client.expect(response::SUCCESS, commit("g", "made", 0, 2));
        client.expect(response::SUCCESS, commit("g", "made", 1, 2));
        client.expect(response::SUCCESS, commit("g", "made", 1, 1));
        assert_eq!(committed(&mut client, "g", "made", 1), Some(1), "a commit may go back");
        let query = |zero: &str, queue: &str| {
            let fields = [("consumerGroup", "g"), ("topic", "made"), ("queueId", queue), ("setZeroIfNotFound", zero)];
            asking(request::QUERY_CONSUMER_OFFSET, &fields)
        };
        client.expect(response::QUERY_NOT_FOUND, query("false", "2"));
        assert_eq!(number(&client.expect(response::SUCCESS, query("true", "2")), "offset"), 0);
        client.expect(response::TOPIC_NOT_EXIST, commit("g", "missing", 0, 2));
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, commit("nobody", "made", 0, 2));
        let before: Vec<_> = (0..3).map(|queue| client.ask(pull("made", queue, 0)).body).collect();

        // A stop writes everything down. A kill may take the last second of offsets, and nothing else.
        server.stop();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let same = |client: &mut Client| {
            let now: Vec<_> = (0..3).map(|queue| client.ask(pull("made", queue, 0)).body).collect();
            assert_eq!(now, before, "the very bytes");
            assert_eq!(messages(&client.ask(pull("automatic", 0, 0))).len(), 1);
            assert_eq!((committed(client, "g", "made", 1), committed(client, "g", "made", 2)), (Some(1), None));
        };
        same(&mut client);
        assert_eq!(committed(&mut client, "g", "made", 0), Some(2));
        client.expect(response::SUCCESS, commit("g", "made", 0, 7));
        wait_until_durable(&mut client);
        client.expect(response::SUCCESS, commit("g", "made", 0, 9));
        client.expect(response::SUCCESS, create_topic("newest", 5));
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        same(&mut client);
        let now = committed(&mut client, "g", "made", 0);
        assert!(matches!(now, Some(7 | 9)), "{now:?}");
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "newest", 4), 0);
        let answer = client.expect(response::SUCCESS, send("newest", 4, b"x"));
        assert_eq!(number(&answer, "queueOffset"), 0);
        for queue in 0..3 {
            let answer = client.expect(response::SUCCESS, send("made", queue, b"goes on"));
            assert_eq!(number(&answer, "queueOffset"), 2, "offsets go on behind the last one");
        }
        server.stop();
    });
}

#[test]
fn a_topic_that_is_made_again_shows_nothing_old() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let text = properties(&[("KEYS", "old")]);
        let mut positions = Vec::new();
        for queue in 0..4 {
            for _ in 0..3 {
                let sent = client.expect(response::SUCCESS, send_as(310, "T", queue, &text, b"old"));
                positions.push(OffsetId::parse(field(&sent, "msgId")).unwrap().offset);
            }
            client.expect(response::SUCCESS, commit("g", "T", queue, 3));
        }
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        client.expect(response::TOPIC_NOT_EXIST, pull("T", 0, 0));
        client.expect(response::SUCCESS, create_topic("T", 4));
        let nothing_old = |client: &mut Client, count: i64| {
            for queue in 0..4 {
                assert_eq!(edge(client, request::GET_MAX_OFFSET, "T", queue), count, "queue {queue}");
                assert_eq!(edge(client, request::GET_MIN_OFFSET, "T", queue), 0);
                assert_eq!(committed(client, "g", "T", queue), None, "nor an offset");
                assert_eq!(pull_all(client, "T", queue, 0, |message| assert_eq!(message.body, b"new")), count);
            }
            for position in &positions {
                let view = asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &position.to_string())]);
                client.expect(response::SYSTEM_ERROR, view);
            }
            let end = i64::MAX.to_string();
            let fields =
                [("topic", "T"), ("key", "old"), ("maxNum", "9"), ("beginTimestamp", "0"), ("endTimestamp", &*end)];
            client.expect(response::QUERY_NOT_FOUND, asking(request::QUERY_MESSAGE, &fields));
        };
        nothing_old(&mut client, 0);
        for queue in 0..4 {
            let answer = client.expect(response::SUCCESS, send("T", queue, b"new"));
            assert_eq!(number(&answer, "queueOffset"), 0);
        }
        nothing_old(&mut client, 1);
        for is_kill in [true, false] {
            if is_kill {
                server.kill()
            } else {
                server.stop()
            }
            server = Server::with_cores(home, cores, &[]);
            nothing_old(&mut server.client(), 1);
        }
        // Deleted and not made again: not after a restart either.
        server.client().expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        server.client().expect(response::TOPIC_NOT_EXIST, pull("T", 0, 0));
    });
}

#[test]
fn a_topic_that_is_made_again_shows_nothing_that_was_popped_of_the_old_one() {
    let pop = |invisible_time: i64, poll_time: i64| {
        let mut command = Command::request(request::POP_MESSAGE);
        let asked = PopMessage {
            consumer_group: "g",
            topic: "T",
            queue_id: -1,
            max_msg_nums: 32,
            invisible_time,
            poll_time,
            ..PopMessage::default()
        };
        asked.push(&mut command.header.fields);
        command
    };
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for is_v2 in ["false", "true"] {
            let line = format!("enableRetryTopicV2={is_v2}");
            client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], line.into_bytes()));
            client.expect(response::SUCCESS, create_topic("T", 4));
            client.expect(response::SUCCESS, send("T", 1, b"old"));
            client.expect(response::SUCCESS, pop(100, 0));
            // It comes again once it is in the retry topic, and once more.
            assert_eq!(messages(&client.expect(response::SUCCESS, pop(100, 30_000)))[0].body, b"old");
            client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
            client.expect(response::SUCCESS, create_topic("T", 4));
            client.expect(response::POLLING_TIMEOUT, pop(100, 1_500));
            client.expect(response::SUCCESS, send("T", 2, b"new"));
            let answer = client.expect(response::SUCCESS, pop(60_000, 30_000));
            let got: Vec<&[u8]> = messages(&answer).iter().map(|message| message.body).collect();
            assert_eq!(got, [b"new"]);
            client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        }
    });
}

#[test]
fn the_index_of_a_queue_is_shown() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let entries = |client: &mut Client, topic: &str, queue: i32, from: i64, group: &str| {
            let (queue, from) = (queue.to_string(), from.to_string());
            let fields = [("topic", topic), ("queueId", &queue), ("index", &from), ("count", "10")];
            let mut command = asking(request::QUERY_CONSUME_QUEUE, &fields);
            command.header.fields.push("consumerGroup", group);
            let answer = client.expect(response::SUCCESS, command);
            bodies::decode::<QueueEntries>(&answer.body).unwrap()
        };
        client.expect(response::SUCCESS, create_topic("shown", 2));
        for queue in 0..2 {
            for tag in ["A", "B", "C"] {
                let text = properties(&[("TAGS", tag)]);
                client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE, "shown", queue, &text, tag.as_bytes()));
            }
            let found = entries(&mut client, "shown", queue, 1, "");
            assert_eq!((found.min_queue_index, found.max_queue_index), (0, 3));
            assert_eq!(found.queue_data.iter().map(|entry| entry.tags_code).collect::<Vec<_>>(), [66, 67]);
            let pulled = client.expect(response::SUCCESS, pull("shown", queue, 1));
            let places: Vec<i64> = messages(&pulled).iter().map(|message| message.physical_offset).collect();
            assert_eq!(found.queue_data.iter().map(|entry| entry.physic_offset).collect::<Vec<_>>(), places);
            let bytes: i32 = found.queue_data.iter().map(|entry| entry.physic_size).sum();
            assert_eq!(bytes as usize, pulled.body.len());
            assert_eq!(entries(&mut client, "shown", queue, 3, "").queue_data, []);
            assert_eq!(entries(&mut client, "shown", queue, 99, "").queue_data, []);
        }
        let nobody = entries(&mut client, "shown", 0, 0, "g");
        assert_eq!(nobody.filter_data.as_deref(), Some("g@shown is not online!"));
        assert!(nobody.queue_data.iter().all(|entry| !entry.eval));
        client.expect(response::SUCCESS, heartbeat("c", "g", &["shown"]));
        let somebody = entries(&mut client, "shown", 0, 0, "g");
        assert!(somebody.queue_data.iter().all(|entry| entry.eval) && somebody.filter_data.is_none());
        for (topic, queue) in [("shown", "2"), ("hidden", "0")] {
            let fields = [("topic", topic), ("queueId", queue), ("index", "0"), ("count", "1")];
            client.expect(response::SYSTEM_ERROR, asking(request::QUERY_CONSUME_QUEUE, &fields));
        }
    });
}
