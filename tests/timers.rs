//! Goal: timer messages come when they are due, to the millisecond, and never once they are recalled. Method: raw
//! frames to the real binary, with one core and with two, and `kill -9` in between.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use protocol::Command;
use protocol::codes::{request, response};
use protocol::ids::OffsetId;
use protocol::names::{pull_flag, sys_flag};
use protocol::recall::RecallHandle;
use tests::client::Client;
use tests::server::Server;
use tests::words::{
    asking, create_topic, edge, field, messages, now_ms, properties, pull, pull_header, pull_waiting, pull_with, send,
    send_as, send_batch, telling,
};
use tests::{in_time, with_cores};

/// A wait that would be noticed.
const LONG_MS: i64 = 25_000;
/// How many wait together.
const MANY: u64 = 1_000_000;
/// What one that waits may cost in memory, as `engine::timers` says, and what its allocator adds.
const WAITING_BYTES: u64 = 200;
/// Memory that grows for other reasons: what is read of the log, a checkpoint being written.
const OTHER_BYTES: u64 = 192 << 20;
/// Requests under way.
const WINDOW: u64 = 512;
/// When messages that say a time are due, from when they are sent: what is done with them before takes less.
const AHEAD_MS: [i64; 3] = [5_000, 15_000, 30_000];
/// How late a message may come where other tests want the CPU, too.
const LATE_MS: u64 = 20_000;
/// The remark when there was nothing to recall.
const NONE_WAITS: &str = "no message waits that has this handle";

fn send_timer(queue: i32, pairs: &[(&str, &str)], body: &[u8]) -> Command {
    send_as(request::SEND_MESSAGE_V2, "T", queue, &properties(pairs), body)
}

fn recall(topic: &str, handle: &str) -> Command {
    asking(request::RECALL_MESSAGE, &[("producerGroup", "producers"), ("topic", topic), ("recallHandle", handle)])
}

fn handle_of(client: &mut Client, command: Command) -> String {
    field(&client.expect(response::SUCCESS, command), "recallHandle").to_owned()
}

/// Runs a test with one core and with two, in time.
fn with_cores_ahead(test: impl Fn(&Path, &str, i64) -> bool) {
    with_cores(|home, cores| in_time(home, AHEAD_MS, |home, ahead_ms| test(home, cores, ahead_ms)));
}

#[test]
fn a_timer_is_due_to_the_millisecond() {
    with_cores_ahead(|home, cores, ahead_ms| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        let now = now_ms();
        let (absolute, past) = ((now + ahead_ms).to_string(), (now - 5).to_string());
        // `None`: due at the time it says itself.
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<u64>);
        let rows: [Row<'_>; 4] = [
            (&[("TIMER_DELIVER_MS", &absolute), ("UNIQ_KEY", "A")], None),
            (&[("TIMER_DELAY_MS", "777"), ("UNIQ_KEY", "B"), ("TAGS", "t")], Some(777)),
            (&[("TIMER_DELAY_SEC", "2"), ("TIMER_DELAY_MS", "1"), ("UNIQ_KEY", "C")], Some(2_000)),
            (&[("TIMER_DELAY_MS", "1250")], Some(1_250)),
        ];
        let mut sent: Vec<(RecallHandle, u64)> = Vec::new();
        for (queue, (pairs, delay_ms)) in (0..).zip(rows) {
            let before_ms = now_ms().cast_unsigned();
            let answer = client.expect(response::SUCCESS, send_timer(queue, pairs, b"later"));
            let after_ms = now_ms();
            if delay_ms.is_none() && after_ms >= now + ahead_ms {
                return false;
            }
            let (after_ms, absolute_ms) = (after_ms.cast_unsigned(), (now + ahead_ms).cast_unsigned());
            let handle = RecallHandle::parse(field(&answer, "recallHandle")).expect("a handle");
            let due_ms = handle.due_ms.expect("a number");
            match delay_ms {
                None => assert_eq!(due_ms, absolute_ms, "{handle:?}"),
                Some(ms) => assert!((before_ms + ms..=after_ms + ms).contains(&due_ms), "{handle:?}"),
            }
            sent.push((handle, due_ms));
        }
        let mut least_ms = u64::MAX;
        for (queue, (handle, due_ms)) in sent.into_iter().enumerate() {
            assert_eq!((&*handle.topic, &*handle.broker_name), ("T", "broker-a"));
            let answer = client.expect(response::SUCCESS, pull_waiting("T", queue as i32, 0, ahead_ms + LONG_MS));
            let message = messages(&answer)[0];
            let late_ms = message.store_timestamp.cast_unsigned().checked_sub(due_ms).expect("not before its time");
            assert!(late_ms < LATE_MS, "{late_ms} ms late");
            least_ms = least_ms.min(late_ms);
            let text = |number: u64| number.to_string();
            assert_eq!(message.property("TIMER_OUT_MS"), Some(&*text(due_ms - 1)));
            assert_eq!(message.property("REAL_TOPIC"), Some("T"));
            assert_eq!(message.property("REAL_QID"), Some(&*text(queue as u64)));
            assert_eq!(message.property("UNIQ_KEY"), Some(&*handle.unique));
            assert!(message.property("TIMER_ENQUEUE_MS").is_some() && message.property("TIMER_DEQUEUE_MS").is_some());
        }
        // What is due is an ordinary message; so is one that has waited, and one with a level is no timer.
        for pairs in [[("TIMER_DELIVER_MS", &*past), ("a", "b")], [("TIMER_DELAY_MS", "60000"), ("TIMER_OUT_MS", "1")]]
        {
            let answer = client.expect(response::SUCCESS, send_timer(3, &pairs, b"now"));
            assert_eq!(answer.header.fields.get("recallHandle"), None);
        }
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 3), 3);
        let answer =
            client.expect(response::SUCCESS, send_timer(2, &[("DELAY", "1"), ("TIMER_DELAY_SEC", "9999")], b"x"));
        assert_eq!(answer.header.fields.get("recallHandle"), None);
        let answer = client.expect(response::SUCCESS, pull_waiting("T", 2, 1, LONG_MS));
        assert_eq!(messages(&answer)[0].property("TIMER_DELAY_SEC"), None);
        server.stop();
        // Whatever the machine does, one of the four is not late.
        least_ms < 1_000
    });
}

#[test]
fn times_out_of_range_and_handles_that_are_none_are_refused() {
    with_cores(|home, cores| {
        let more = ["--set", "broker.timer_max_delay_ms=60000"];
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        for topic in ["T", "U"] {
            client.expect(response::SUCCESS, create_topic(topic, 4));
        }
        let far = (now_ms() + 90_000).to_string();
        let delays: [&[(&str, &str)]; 8] = [
            &[("TIMER_DELAY_MS", "60001")],
            &[("TIMER_DELAY_SEC", "61")],
            &[("TIMER_DELAY_SEC", "9223372036854775807")],
            &[("TIMER_DELIVER_MS", &far)],
            &[("TIMER_DELAY_MS", "soon")],
            &[("TIMER_DELIVER_MS", "99999999999999999999")],
            // Who deletes another one says its time, which must be to come.
            &[("TIMER_DELAY_MS", "60001"), ("TIMER_DEL_UNIQKEY", "A")],
            &[("TIMER_DELAY_MS", "0"), ("TIMER_DEL_UNIQKEY", "A")],
        ];
        for pairs in delays {
            client.expect(response::MESSAGE_ILLEGAL, send_timer(0, pairs, b"x"));
        }
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 0, "nothing of it is there");
        let pairs = [("TIMER_DELAY_MS", "20000"), ("UNIQ_KEY", "A")];
        let handle = handle_of(&mut client, send_timer(1, &pairs, b"x"));
        let due_ms = RecallHandle::parse(&handle).unwrap().due_ms.unwrap();
        let made =
            |topic: &str, broker: &str, due_ms: u64, unique: &str| RecallHandle::text(topic, broker, due_ms, unique);
        let forged = [
            ("T", "nonsense".to_owned()),
            ("T", String::new()),
            ("U", handle.clone()),
            ("T", made("T", "another", due_ms, "A")),
            ("T", made("T", "broker-a", 5, "A")),
            ("T", made("T", "broker-a", u64::MAX, "A")),
            ("T", made("T", "broker-a", due_ms + 100_000, "A")),
        ];
        for (topic, handle) in forged {
            client.expect(response::ILLEGAL_OPERATION, recall(topic, &handle));
        }
        // Those that could be of a message and are of none: answered as if they were, as of a stock broker.
        let of_none = [("T", due_ms, "B"), ("U", due_ms, "A"), ("T", due_ms + 1, "A")];
        for (topic, due_ms, unique) in of_none {
            let answer = client.expect(response::SUCCESS, recall(topic, &made(topic, "broker-a", due_ms, unique)));
            assert_eq!((field(&answer, "msgId"), &*answer.header.remark), (unique, NONE_WAITS));
        }
        client.expect(response::TOPIC_NOT_EXIST, recall("Nowhere", &handle));
        client.expect(response::SYSTEM_ERROR, asking(request::RECALL_MESSAGE, &[("topic", "T")]));
        let answer = client.expect(response::SUCCESS, recall("T", &handle));
        assert_eq!((field(&answer, "msgId"), &*answer.header.remark), ("A", ""), "it still waited");
        // An answer may be lost, and the recall be sent again.
        let answer = client.expect(response::SUCCESS, recall("T", &handle));
        assert_eq!((field(&answer, "msgId"), &*answer.header.remark), ("A", NONE_WAITS));
        // Also while nothing may be written, unless that is switched off.
        let set = |text: &'static str| telling(request::UPDATE_BROKER_CONFIG, &[], text.as_bytes());
        client.expect(response::SUCCESS, set("brokerPermission=4"));
        client.expect(response::SUCCESS, recall("T", &handle));
        client.expect(response::SUCCESS, set("allowRecallWhenBrokerNotWriteable=false"));
        client.expect(response::SERVICE_NOT_AVAILABLE, recall("T", &handle));
        client.expect(response::SUCCESS, set("brokerPermission=6"));
        client.expect(response::SUCCESS, recall("T", &handle));
        server.stop();
        let more = ["--set", "broker.recall_message=false"];
        let server = Server::with_cores(home, cores, &more);
        server.client().expect(response::NO_PERMISSION, recall("T", &handle));
        server.stop();
    });
}

#[test]
fn what_is_recalled_never_comes_also_across_a_kill() {
    with_cores_ahead(|home, cores, ahead_ms| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        let due_ms = now_ms() + ahead_ms;
        let due = due_ms.to_string();
        // All have one time, and one of each queue has the same unique id, as one that is sent again: a recall is of all.
        let numbers = || (0..4).flat_map(|queue| (0..10).map(move |number| (queue, number)));
        let sent = client.ask_all(numbers().map(|(queue, number)| {
            let unique = if number == 9 { "same".to_owned() } else { format!("{queue}-{number}") };
            let pairs = [("TIMER_DELIVER_MS", &*due), ("UNIQ_KEY", &*unique)];
            send_timer(queue, &pairs, format!("{queue}-{number}").as_bytes())
        }));
        if now_ms() >= due_ms {
            return false;
        }
        let handles: Vec<(i32, String)> = numbers()
            .zip(&sent)
            .map(|((_, number), answer)| (number, field(answer, "recallHandle").to_owned()))
            .collect();
        let recall_all = |client: &mut Client, handles: &mut dyn Iterator<Item = &(i32, String)>| {
            client.ask_all(handles.map(|(_, handle)| recall("T", handle)))
        };
        let same = handles.iter().position(|(number, _)| *number == 9).expect("there are four");
        let alone = |at: &usize| handles[*at].0 % 3 == 0 && (handles[*at].0 != 9 || *at == same);
        let mut first = recall_all(&mut client, &mut (0..handles.len()).filter(alone).map(|at| &handles[at]));
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        first.extend(recall_all(&mut client, &mut handles.iter().filter(|(number, _)| number % 3 == 1)));
        let again = recall_all(&mut client, &mut handles.iter().filter(|(number, _)| number % 3 == 0));
        if now_ms() >= due_ms {
            return false;
        }
        assert!(
            first.iter().chain(&again).all(|answer| answer.header.code == response::SUCCESS),
            "{first:?} {again:?}"
        );
        assert!(again.iter().all(|answer| answer.header.remark == NONE_WAITS), "they are recalled already: {again:?}");
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for queue in 0..4 {
            let mut bodies: Vec<String> = Vec::new();
            while bodies.len() < 3 {
                let waiting = pull_waiting("T", queue, bodies.len() as i64, ahead_ms + LONG_MS);
                let answer = client.expect(response::SUCCESS, waiting);
                bodies
                    .extend(messages(&answer).iter().map(|message| String::from_utf8_lossy(message.body).into_owned()));
            }
            assert_eq!(bodies, [2, 5, 8].map(|number| format!("{queue}-{number}")));
        }
        // A message behind them shows that nothing else came before.
        std::thread::sleep(Duration::from_millis(300));
        for queue in 0..4 {
            client.expect(response::SUCCESS, send("T", queue, b"last"));
            let answer = client.expect(response::SUCCESS, pull("T", queue, 3));
            assert_eq!(messages(&answer)[0].body, b"last");
        }
        server.stop();
        true
    });
}

#[test]
fn what_waits_is_seen_by_the_id_that_its_producer_got_until_it_waits_no_more() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        let view = |answer: &Command| {
            let id = OffsetId::parse(field(answer, "msgId")).expect("an id");
            asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &id.offset.to_string())])
        };
        for queue in 0..4 {
            let pairs = [("TIMER_DELAY_SEC", "20"), ("UNIQ_KEY", "A")];
            let sent = client.expect(response::SUCCESS, send_timer(queue, &pairs, b"later"));
            let seen = client.expect(response::SUCCESS, view(&sent));
            let message = messages(&seen)[0];
            assert_eq!((message.body, message.topic, message.property("UNIQ_KEY")), (&b"later"[..], "T", Some("A")));
            client.expect(response::SUCCESS, recall("T", field(&sent, "recallHandle")));
            client.expect(response::SYSTEM_ERROR, view(&sent));
            // One with a level, and a half message; the next byte is no message at all.
            let level = client.expect(response::SUCCESS, send_timer(queue, &[("DELAY", "5")], b"later"));
            assert_eq!(messages(&client.expect(response::SUCCESS, view(&level)))[0].body, b"later");
            let mut half = send_timer(queue, &[("TRAN_MSG", "true"), ("PGROUP", "p"), ("UNIQ_KEY", "B")], b"half");
            half.header.fields.push_int("f", sys_flag::TRANSACTION_PREPARED);
            let half = client.expect(response::SUCCESS, half);
            assert_eq!(messages(&client.expect(response::SUCCESS, view(&half)))[0].body, b"half");
            let id = OffsetId::parse(field(&half, "msgId")).expect("an id").offset + 1;
            let beside = asking(request::VIEW_MESSAGE_BY_ID, &[("offset", &id.to_string())]);
            client.expect(response::SYSTEM_ERROR, beside);
        }
        server.stop();
    });
}

/// When the one with this number is due: within ten seconds, in no order.
fn due_of(began_ms: u64, number: u64) -> u64 {
    began_ms + 30_000 + number * 7919 % 10_000
}

#[test]
fn a_million_wait_in_bounded_memory_and_each_comes_once_in_its_time_also_across_a_kill() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let large = ["log.segment_bytes=128MiB", "log.prepare_bytes=128MiB", "limits.pull_messages=1024"];
    let more = large.map(|setting| ["--set", setting]).concat();
    let server = Server::with_cores(home.path(), "1", &more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 4));
    // Memory that it takes in any case, in use once: the newest stretch of the log, buffers.
    let bodies: [&[u8]; 16] = [&[7; 64 << 10]; 16];
    for _ in 0..80 {
        client.expect(response::SUCCESS, send_batch("T", 0, &bodies));
    }
    let first = edge(&mut client, request::GET_MAX_OFFSET, "T", 0);
    let before = server.resident_bytes();

    let began_ms = now_ms().cast_unsigned();
    let mut under_way = VecDeque::new();
    let timer = |number: u64| {
        let due = due_of(began_ms, number).to_string();
        let text = [("TIMER_DELIVER_MS", &*due), ("UNIQ_KEY", &number.to_string())];
        send_timer(number as i32 % 4, &text, &number.to_be_bytes())
    };
    let take = |client: &mut Client, under_way: &mut VecDeque<(i32, u64)>| {
        let (opaque, number) = under_way.pop_front().expect("one is under way");
        let answer = client.answer(opaque);
        match answer.header.code {
            // The log's next segment is on its way.
            response::SYSTEM_BUSY => _ = client.insist(timer(number)),
            code => assert_eq!(code, response::SUCCESS, "{answer:?}"),
        }
    };
    for number in 0..MANY {
        under_way.push_back((client.write(timer(number)), number));
        if under_way.len() as u64 == WINDOW {
            take(&mut client, &mut under_way);
        }
    }
    while !under_way.is_empty() {
        take(&mut client, &mut under_way);
    }
    let most = before + MANY * WAITING_BYTES + OTHER_BYTES;
    let grown = server.resident_bytes();
    println!("{MANY} sent in {} ms; resident {before} bytes, then {grown}", now_ms().cast_unsigned() - began_ms);
    assert!(grown < most, "{grown} bytes, of {before}");

    server.kill();
    let server = Server::with_cores(home.path(), "1", &more);
    let mut client = server.client();
    let again = server.resident_bytes();
    println!("resident after a start {again}");
    assert!(again < most, "{again} bytes after a start, of {before}");

    let mut came = vec![false; MANY as usize];
    let mut next = [first, 0, 0, 0];
    let mut latest_ms = 0;
    while came.iter().any(|came| !came) {
        for (queue, next) in next.iter_mut().enumerate() {
            let mut header = pull_header("T", queue as i32, *next);
            header.max_msg_nums = 1024;
            header.sys_flag |= pull_flag::SUSPEND;
            // A fast machine waits for the first of them almost from the beginning.
            header.suspend_timeout_ms = 2 * LONG_MS;
            if came.iter().skip(queue).step_by(4).all(|came| *came) {
                continue;
            }
            let answer = client.expect(response::SUCCESS, pull_with(request::PULL_MESSAGE, header));
            for message in messages(&answer) {
                assert_eq!(message.queue_offset, *next);
                *next += 1;
                let number = u64::from_be_bytes(message.body.try_into().expect("a number"));
                assert_eq!(number % 4, queue as u64);
                let late_ms = message.store_timestamp.cast_unsigned().checked_sub(due_of(began_ms, number));
                latest_ms = latest_ms.max(late_ms.expect("not before its time"));
                let came = &mut came[number as usize];
                assert!(!*came, "{number} came twice");
                *came = true;
            }
        }
    }
    println!("the latest came {latest_ms} ms late; resident {} at the end", server.resident_bytes());
    for (queue, next) in next.iter().enumerate() {
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", queue as i32), *next, "and nothing else");
    }
    server.stop();
}

#[test]
fn a_message_deletes_another_one_that_waits() {
    with_cores_ahead(|home, cores, ahead_ms| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for topic in ["T", "U"] {
            client.expect(response::SUCCESS, create_topic(topic, 4));
        }
        let due_ms = now_ms() + ahead_ms;
        let due = due_ms.to_string();
        let timer = |queue: i32, unique: &str| {
            send_timer(queue, &[("TIMER_DELIVER_MS", &due), ("UNIQ_KEY", unique)], unique.as_bytes())
        };
        let waiting = [(0, "A"), (1, "B"), (2, "C"), (3, "D")].map(|(queue, unique)| timer(queue, unique));
        for answer in client.ask_all(waiting) {
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
        }
        let delete = |topic: &str, key: &str, due: &str| {
            let text = properties(&[("TIMER_DELIVER_MS", due), ("TIMER_DEL_UNIQKEY", key), ("UNIQ_KEY", "own")]);
            send_as(request::SEND_MESSAGE_V2, topic, 3, &text, b"0")
        };
        // It is answered alike whether there is one or not.
        let other = (due_ms + 1).to_string();
        let deletes = [("T", "A", &due), ("T", "A", &due), ("T", "B", &other), ("U", "B", &due)];
        let answers = client.ask_all(deletes.map(|(topic, key, due)| delete(topic, key, due)));
        // With the topic in the key, as the setting says.
        let setting = telling(request::UPDATE_BROKER_CONFIG, &[], &b"appendTopicForTimerDeleteKey=true"[..]);
        client.expect(response::SUCCESS, setting);
        let with_topic = client.ask_all(["B", "U+B", "T+C"].map(|key| delete("U", key, &due)));
        if now_ms() >= due_ms {
            return false;
        }
        for ((_, key, _), answer) in deletes.into_iter().zip(&answers) {
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            assert_eq!((field(answer, "msgId"), field(answer, "queueOffset")), (key, "0"));
        }
        for answer in with_topic {
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
        }
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for (queue, unique) in [(1, "B"), (3, "D")] {
            let answer = client.expect(response::SUCCESS, pull_waiting("T", queue, 0, ahead_ms + LONG_MS));
            assert_eq!(messages(&answer)[0].body, unique.as_bytes());
        }
        for queue in 0..4 {
            let count = i64::from(queue % 2);
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", queue), count, "{queue}");
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "U", queue), 0);
        }
        server.stop();
        true
    });
}
