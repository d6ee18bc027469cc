//! Goal: a half message is seen once, after its producer commits it, and never else; producers that say nothing are
//! asked. Method: raw frames to the real binary, with one core and with two, and `kill -9` in between.

use std::time::{Duration, Instant};

use protocol::codes::{request, response};
use protocol::headers::EndTransaction;
use protocol::ids::OffsetId;
use protocol::names::sys_flag;
use protocol::{Command, StoredMessage};
use tests::client::Client;
use tests::server::Server;
use tests::words::{
    asking, create_topic, edge, field, heartbeat, messages, number, oneway, properties, pull, pull_waiting, runtime,
    send, send_as, telling, wait_until_durable,
};
use tests::{PATIENCE, with_cores};

/// A wait that would be noticed.
const LONG_MS: i64 = 25_000;
const COMMIT: i32 = sys_flag::TRANSACTION_COMMIT;
const ROLLBACK: i32 = sys_flag::TRANSACTION_ROLLBACK;

/// A half message as its producer knows it.
#[derive(Clone, Debug)]
struct Half {
    unique: String,
    /// As its send was answered.
    id: &'static str,
    position: i64,
    offset: i64,
}

fn half_with(topic: &str, queue: i32, unique: &str, more: &[(&str, &str)], body: &[u8]) -> Command {
    let own = [("TRAN_MSG", "true"), ("PGROUP", "producers"), ("UNIQ_KEY", unique), ("TAGS", "t")];
    let mut command = send_as(request::SEND_MESSAGE_V2, topic, queue, &properties(&[&own[..], more].concat()), body);
    command.header.fields.push_int("f", sys_flag::TRANSACTION_PREPARED);
    command
}

fn prepare(client: &mut Client, queue: i32, unique: &str, more: &[(&str, &str)]) -> Half {
    let answer = client.expect(response::SUCCESS, half_with("T", queue, unique, more, unique.as_bytes()));
    assert_eq!((field(&answer, "transactionId"), number(&answer, "queueId")), (unique, queue.into()));
    let id = field(&answer, "msgId").to_owned().leak();
    let position = OffsetId::parse(id).expect("an id").offset;
    Half { unique: unique.to_owned(), id, position, offset: number(&answer, "queueOffset") }
}

fn end_with(half: &Half, decision: i32, change: impl FnOnce(&mut EndTransaction<'_>)) -> Command {
    let mut header = EndTransaction {
        topic: Some("T"),
        producer_group: "producers",
        tran_state_table_offset: half.offset,
        commit_log_offset: half.position,
        commit_or_rollback: decision,
        from_transaction_check: false,
        msg_id: &half.unique,
        transaction_id: Some(&half.unique),
        broker_name: Some("broker-a"),
    };
    change(&mut header);
    let mut command = Command::request(request::END_TRANSACTION);
    header.push(&mut command.header.fields);
    command
}

fn end(half: &Half, decision: i32) -> Command {
    end_with(half, decision, |_| {})
}

/// The bodies of a queue, with the properties checked that every committed message has.
fn committed(client: &mut Client, queue: i32) -> Vec<String> {
    let answer = client.ask(pull("T", queue, 0));
    if answer.header.code == response::PULL_NOT_FOUND {
        return Vec::new();
    }
    let is_committed = |message: &StoredMessage<'_>| {
        assert_eq!(message.sys_flag & sys_flag::TRANSACTION_MASK, COMMIT);
        assert_eq!((message.topic, message.queue_id, message.property("TAGS")), ("T", queue, Some("t")));
        let shown = ["TRAN_MSG", "REAL_TOPIC", "REAL_QID"].map(|name| message.property(name));
        assert_eq!(shown, [Some("true"), None, None], "as a stock broker shows it");
        assert_eq!((message.property("PGROUP"), message.flag), (Some("producers"), 17));
        assert!(message.prepared_transaction_offset < message.physical_offset);
        String::from_utf8_lossy(message.body).into_owned()
    };
    messages(&answer).iter().map(is_committed).collect()
}

#[test]
fn it_is_seen_once_it_is_committed_and_never_before() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let (mut client, mut other) = (server.client(), server.client());
        client.expect(response::SUCCESS, create_topic("T", 4));
        for queue in 0..4 {
            let [first, second, third] =
                [1, 2, 3].map(|number| prepare(&mut client, queue, &format!("{queue}-{number}"), &[]));
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", queue), 0);
            // What the producer does not know yet changes nothing.
            other.expect(response::SUCCESS, end(&first, 0));
            other.expect(response::SUCCESS, end(&first, 77));
            assert_eq!(committed(&mut client, queue), [""; 0]);
            other.expect(response::SUCCESS, end(&second, COMMIT));
            client.expect(response::SUCCESS, end(&first, ROLLBACK));
            // Stock clients do not wait for an answer.
            let opaque = other.write(pull_waiting("T", queue, 1, LONG_MS));
            client.write(oneway(end(&third, COMMIT)));
            client.expect(response::SYSTEM_ERROR, end(&third, COMMIT));
            // It is decided now, and seen once that is durable.
            assert_eq!(messages(&other.answer(opaque)).len(), 1);
            for half in [&first, &second, &third] {
                for decision in [COMMIT, ROLLBACK] {
                    let answer = other.expect(response::SYSTEM_ERROR, end(half, decision));
                    assert_eq!(answer.header.remark, "Find prepared transaction message failed");
                }
            }
            assert_eq!(committed(&mut client, queue), [format!("{queue}-2"), format!("{queue}-3")]);
        }
        // A pull that waits wakes, and one with a delay waits once more.
        let opaque = other.write(pull_waiting("T", 0, 2, LONG_MS));
        let half = prepare(&mut client, 0, "woken", &[]);
        client.expect(response::SUCCESS, end(&half, COMMIT));
        assert_eq!(messages(&other.answer(opaque))[0].body, b"woken");
        let half = prepare(&mut client, 1, "later", &[("DELAY", "1")]);
        let began = Instant::now();
        client.expect(response::SUCCESS, end(&half, COMMIT));
        let early = client.ask(pull("T", 1, 2));
        let is_due = began.elapsed() >= Duration::from_millis(990);
        assert!(early.header.code == response::PULL_NOT_FOUND || is_due, "{early:?}");
        let answer = client.expect(response::SUCCESS, pull_waiting("T", 1, 2, LONG_MS));
        assert!(messages(&answer)[0].body == b"later" && began.elapsed() >= Duration::from_millis(990));
        server.stop();
        let server = Server::with_cores(home, cores, &["--set", "broker.reject_transaction=true"]);
        server.client().expect(response::NO_PERMISSION, half_with("T", 0, "no", &[], b"no"));
        // Half by its flag, and not by its property.
        let mut client = server.client();
        for flag in ["4", "12"] {
            let mut forged = send("T", 0, b"forged");
            forged.header.fields.push("f", flag);
            client.expect(response::MESSAGE_ILLEGAL, forged);
        }
        server.stop();
    });
}

#[test]
fn what_does_not_name_a_half_message_of_its_group_ends_nothing() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        let answer = client.expect(response::SUCCESS, send("T", 1, b"no half message"));
        let plain = OffsetId::parse(field(&answer, "msgId")).expect("an id").offset;
        let timer = properties(&[("TIMER_DELAY_MS", "60000"), ("UNIQ_KEY", "timer")]);
        let answer = client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", 1, &timer, b"timer"));
        let delayed = OffsetId::parse(field(&answer, "msgId")).expect("an id").offset;
        let half = prepare(&mut client, 1, "half", &[]);
        let beside = prepare(&mut client, 1, "beside", &[]);
        for decision in [COMMIT, ROLLBACK] {
            let of = |change: &dyn Fn(&mut EndTransaction<'_>)| end_with(&half, decision, |end| change(end));
            let mut cases = vec![
                (of(&|end| end.producer_group = "others"), "The producer group wrong"),
                (of(&|end| end.producer_group = ""), "The producer group wrong"),
                (of(&|end| end.tran_state_table_offset += 1), "The transaction state table offset wrong"),
                (of(&|end| (end.msg_id, end.transaction_id) = ("beside", None)), "The message id wrong"),
                (of(&|end| (end.msg_id, end.transaction_id) = (beside.id, None)), "The message id wrong"),
            ];
            let positions =
                [plain, delayed, half.position + 1, half.position - 32, half.position + (1 << 30), -1, i64::MAX, 0];
            for position in positions {
                cases.push((of(&|end| end.commit_log_offset = position), "Find prepared transaction message failed"));
            }
            for (command, remark) in cases {
                let answer = client.expect(response::SYSTEM_ERROR, command);
                assert_eq!(answer.header.remark, remark);
            }
            client.expect(
                response::SYSTEM_ERROR,
                end_with(&half, decision, |end| end.commit_log_offset = beside.position),
            );
        }
        client.expect(response::SYSTEM_ERROR, asking(request::END_TRANSACTION, &[("commitLogOffset", "x")]));
        client.expect(response::SYSTEM_ERROR, asking(request::END_TRANSACTION, &[]));
        // One of its ids is enough, as of older clients.
        client.expect(response::SUCCESS, end_with(&half, COMMIT, |end| end.transaction_id = None));
        client.expect(response::SUCCESS, end_with(&beside, COMMIT, |end| end.msg_id = "another"));
        let named = prepare(&mut client, 1, "named", &[]);
        client.expect(
            response::SUCCESS,
            end_with(&named, COMMIT, |end| (end.msg_id, end.transaction_id) = (named.id, None)),
        );
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 1), 4);
        // With their topic half messages go.
        let half = prepare(&mut client, 2, "orphan", &[]);
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        client.expect(response::SUCCESS, create_topic("T", 4));
        client.expect(response::SYSTEM_ERROR, end(&half, COMMIT));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 2), 0);
        server.stop();
    });
}

#[test]
fn what_was_decided_survives_a_kill_and_the_rest_can_be() {
    with_cores(|home, cores| {
        let mut halves = Vec::new();
        let mut decided = 0;
        for life in 0..4 {
            let server = Server::with_cores(home, cores, &[]);
            let mut client = server.client();
            if life == 0 {
                client.expect(response::SUCCESS, create_topic("T", 4));
            }
            for number in 0..24 {
                halves.push(prepare(&mut client, number % 4, &format!("{life}-{number}"), &[]));
            }
            // Half of those that are there, also of earlier lives.
            let upto = (decided + halves.len()) / 2;
            for (number, half) in halves[decided..upto].iter().enumerate() {
                let decision = if (decided + number) % 3 == 0 { ROLLBACK } else { COMMIT };
                client.expect(response::SUCCESS, end(half, decision));
            }
            decided = upto;
            for half in halves[..decided].iter().step_by(7) {
                client.expect(response::SYSTEM_ERROR, end(half, COMMIT));
            }
            if life % 2 == 0 { server.kill() } else { server.stop() }
        }
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        for queue in 0..4 {
            let of_queue = |(index, half): (usize, &Half)| {
                let number: usize = half.unique.split_once('-').expect("a dash").1.parse().expect("a number");
                (number % 4 == queue && index % 3 != 0).then(|| half.unique.clone())
            };
            let mut wanted: Vec<String> = halves[..decided].iter().enumerate().filter_map(of_queue).collect();
            let mut seen = committed(&mut client, queue as i32);
            wanted.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, wanted, "queue {queue}");
        }
        server.stop();
    });
}

/// A question of the broker's (39): its half message, and how often it was asked.
fn checked(client: &mut Client) -> (Half, u32) {
    let check = client.push(request::CHECK_TRANSACTION_STATE);
    let unique = field(&check, "msgId").to_owned();
    assert_eq!((field(&check, "transactionId"), field(&check, "topic")), (&*unique, "RMQ_SYS_TRANS_HALF_TOPIC"));
    assert_eq!(field(&check, "bname"), "broker-a");
    let half = Half {
        unique,
        id: field(&check, "offsetMsgId").to_owned().leak(),
        position: number(&check, "commitLogOffset"),
        offset: number(&check, "tranStateTableOffset"),
    };
    assert_eq!(OffsetId::parse(half.id).expect("an id").offset, half.position);
    let message = messages(&check)[0];
    assert_eq!(
        (message.topic, message.body, message.property("PGROUP")),
        ("T", half.unique.as_bytes(), Some("producers"))
    );
    assert_eq!(message.property("UNIQ_KEY"), Some(&*half.unique));
    let times = message.property("TRANSACTION_CHECK_TIMES").expect("it is there").parse().expect("a number");
    (half, times)
}

#[test]
fn the_longest_properties_leave_room_for_nothing_and_are_asked_about_all_the_same() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "broker.transaction_timeout_ms=100"]);
        let (mut client, mut producer) = (server.client(), server.client());
        client.expect(response::SUCCESS, create_topic("T", 1));
        producer.expect(response::SUCCESS, heartbeat("p", "consumers", &["T"]));
        let prepared = |length: &usize| {
            let long = "x".repeat(*length);
            client.ask(half_with("T", 0, "long", &[("long", &long)], b"long")).header.code == response::SUCCESS
        };
        // One byte more is refused.
        (32_000..32_767).rev().find(prepared).expect("some length fits");
        let check = producer.push(request::CHECK_TRANSACTION_STATE);
        assert_eq!(field(&check, "msgId"), "long");
        assert_eq!(messages(&check)[0].property("TRANSACTION_CHECK_TIMES"), None, "there is no room for it");
    });
}

#[test]
fn each_producer_of_a_group_is_asked_about_each_of_its_messages() {
    with_cores(|home, cores| {
        let more = ["--set", "broker.transaction_timeout_ms=400", "--set", "broker.transaction_check_interval_ms=100"];
        let more = [&more[..], &["--set", "broker.transaction_check_max=4"]].concat();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        let mut producers = ["one", "two"].map(|name| {
            let mut producer = server.client();
            producer.expect(response::SUCCESS, heartbeat(name, "consumers", &["T"]));
            producer
        });
        // As many as there are producers: who counted all questions would ask each about the same ones for ever.
        prepare(&mut client, 0, "a", &[]);
        prepare(&mut client, 0, "b", &[]);
        for producer in &mut producers {
            let mut asked: Vec<String> = (0..4).map(|_| checked(producer).0.unique).collect();
            asked.sort_unstable();
            assert_eq!(asked, ["a", "a", "b", "b"]);
        }
        server.stop();
    });
}

#[test]
fn who_says_nothing_is_asked_and_who_decided_is_not() {
    with_cores(|home, cores| {
        let set = |text: &'static str| telling(request::UPDATE_BROKER_CONFIG, &[], text);
        let more = [
            "--set",
            "broker.transaction_timeout_ms=60000",
            "--set",
            "broker.transaction_check_interval_ms=300",
            "--set",
            "broker.transaction_check_max=1000",
        ];
        let server = Server::with_cores(home, cores, &more);
        let (mut client, mut producer) = (server.client(), server.client());
        client.expect(response::SUCCESS, create_topic("T", 4));
        producer.expect(response::SUCCESS, heartbeat("p", "consumers", &["T"]));
        // Committed at once: never asked about. Of the others each is asked about and then decided.
        for number in 0..8 {
            let half = prepare(&mut client, number % 4, &format!("done-{number}"), &[]);
            client.expect(response::SUCCESS, end(&half, COMMIT));
        }
        client.expect(response::SUCCESS, set("transactionTimeOut=400"));
        let began = Instant::now();
        let halves: Vec<Half> =
            (0..8).map(|number| prepare(&mut client, number % 4, &format!("open-{number}"), &[])).collect();
        let mut waiting: Vec<&str> = halves.iter().map(|half| &*half.unique).collect();
        while !waiting.is_empty() {
            let (half, times) = checked(&mut producer);
            assert!(began.elapsed() >= Duration::from_millis(390), "not before its time");
            assert!(half.unique.starts_with("open-"), "{half:?} was decided");
            if times > 1 && waiting.contains(&&*half.unique) {
                waiting.retain(|unique| *unique != half.unique);
                let end = end_with(&half, COMMIT, |end| end.from_transaction_check = true);
                producer.write(oneway(end));
            }
        }
        let began = Instant::now();
        for queue in 0..4 {
            let bodies = loop {
                let bodies = committed(&mut client, queue);
                if bodies.len() == 4 {
                    break bodies;
                }
                assert!(began.elapsed() < PATIENCE, "{bodies:?}: not all of them are committed");
                client.ask(pull_waiting("T", queue, bodies.len() as i64, LONG_MS));
            };
            assert_eq!(bodies.iter().filter(|body| body.starts_with("open-")).count(), 2);
        }
        // Nobody is asked while there is no producer; after the last time the message is kept for an operator, also
        // by a broker that was killed meanwhile.
        drop(producer);
        prepare(&mut client, 0, "lost-0", &[("own", "property")]);
        prepare(&mut client, 1, "lost-1", &[("own", "property")]);
        // Each time that somebody was to be asked is a record.
        let records = |client: &mut Client| runtime(client)["ringmq_log_records"].parse::<u64>().expect("a number");
        let before = records(&mut client);
        let began = Instant::now();
        while records(&mut client) < before + 2 {
            assert!(began.elapsed() < PATIENCE, "nobody was to be asked");
        }
        // The last time is not before the kill, however long that takes.
        client.expect(response::SUCCESS, set("transactionCheckMax=4"));
        wait_until_durable(&mut client);
        server.kill();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        let mut lost = Vec::new();
        let partitions = cores.parse().expect("a number");
        let began = Instant::now();
        while lost.len() < 2 {
            assert!(began.elapsed() < PATIENCE, "they are never given up");
            lost.clear();
            for queue in 0..partitions {
                let answer = client.ask(pull("TRANS_CHECK_MAX_TIME_TOPIC", queue, 0));
                for message in messages(&answer) {
                    assert_eq!(
                        (message.property("own"), message.property("REAL_TOPIC")),
                        (Some("property"), Some("T"))
                    );
                    lost.push(String::from_utf8_lossy(message.body).into_owned());
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        lost.sort_unstable();
        assert_eq!(lost, ["lost-0", "lost-1"]);
        assert_eq!(committed(&mut client, 0).len(), 4);
        // Whoever wanted to be left alone for longer may not decide by himself after that.
        client.expect(response::SUCCESS, set("transactionCheckMax=1000"));
        let mut producer = server.client();
        producer.expect(response::SUCCESS, heartbeat("p", "consumers", &["T"]));
        let began = Instant::now();
        prepare(&mut client, 2, "immune", &[("CHECK_IMMUNITY_TIME_IN_SECONDS", "1")]);
        let (half, times) = checked(&mut producer);
        assert!(times == 1 && began.elapsed() >= Duration::from_millis(990));
        producer.expect(response::ILLEGAL_OPERATION, end(&half, COMMIT));
        producer.expect(response::SUCCESS, end_with(&half, COMMIT, |end| end.from_transaction_check = true));
        assert_eq!(committed(&mut client, 2).len(), 5);
        server.stop();
    });
}

fn resume(id: &str) -> Command {
    asking(request::RESUME_CHECK_HALF_MESSAGE, &[("topic", "TRANS_CHECK_MAX_TIME_TOPIC"), ("msgId", id)])
}

#[test]
fn one_that_was_given_up_is_a_half_message_again_if_an_operator_says_so() {
    with_cores(|home, cores| {
        let times = ["transaction_timeout_ms=100", "transaction_check_interval_ms=100", "transaction_check_max=1"];
        let times = times.map(|set| format!("broker.{set}"));
        let more: Vec<&str> = times.iter().flat_map(|set| ["--set", set]).collect();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        for queue in 0..4 {
            let delay: &[_] = if queue == 3 { &[("DELAY", "1"), ("own", "x")] } else { &[("own", "x")] };
            prepare(&mut client, queue, &format!("{queue}"), delay);
        }
        // All of them are given up; each partition has a queue for its own.
        let partitions: i32 = cores.parse().expect("a number");
        let mut ids = std::collections::BTreeMap::new();
        for queue in 0..partitions {
            for offset in 0..4 / partitions {
                let answer = client.expect(
                    response::SUCCESS,
                    pull_waiting("TRANS_CHECK_MAX_TIME_TOPIC", queue, offset.into(), LONG_MS),
                );
                let message = messages(&answer)[0];
                let id = OffsetId { host: message.store_host, offset: message.physical_offset }.to_string();
                ids.insert(String::from_utf8_lossy(message.body).into_owned(), id);
            }
        }
        assert_eq!(ids.len(), 4);
        // Nothing else becomes a half message.
        let answer = client.expect(response::SUCCESS, send("T", 0, b"plain"));
        let plain = field(&answer, "msgId").to_owned();
        let mut wrong = OffsetId::parse(&ids["1"]).expect("an id");
        wrong.offset += 1;
        for id in [&plain, &wrong.to_string(), "", "x", "FFFFFFFF00000000FFFFFFFFFFFFFFFF"] {
            let answer = client.expect(response::SYSTEM_ERROR, resume(id));
            assert!(answer.header.remark.contains("RMQ_SYS_TRANS_HALF_TOPIC"), "{answer:?}");
        }
        client.expect(response::SYSTEM_ERROR, asking(request::RESUME_CHECK_HALF_MESSAGE, &[]));
        // It is asked about from the beginning, also if the broker is killed before.
        client.expect(
            response::SUCCESS,
            telling(request::UPDATE_BROKER_CONFIG, &[], "transactionCheckMax=1000\ntransactionCheckInterval=500"),
        );
        client.expect(response::SUCCESS, resume(&ids["1"]));
        server.kill();
        let server = Server::with_cores(home, cores, &more);
        let (mut client, mut producer) = (server.client(), server.client());
        producer.expect(response::SUCCESS, heartbeat("p", "consumers", &["T"]));
        for unique in ["0", "2", "3"] {
            client.expect(response::SUCCESS, resume(&ids[unique]));
        }
        let mut decided = std::collections::BTreeSet::new();
        while decided.len() < 4 {
            let (half, times) = checked(&mut producer);
            if decided.insert(half.unique.clone()) {
                assert!(times == 1 || half.unique == "1", "{half:?} was asked about {times} times");
                let decision = if half.unique == "2" { ROLLBACK } else { COMMIT };
                producer.expect(response::SUCCESS, end_with(&half, decision, |end| end.from_transaction_check = true));
            }
        }
        assert_eq!(committed_behind_plain(&mut client), ["0"]);
        assert_eq!((committed(&mut client, 1), committed(&mut client, 2).len()), (vec!["1".to_owned()], 0));
        // The delay begins when it is committed.
        let answer = client.expect(response::SUCCESS, pull_waiting("T", 3, 0, LONG_MS));
        let message = messages(&answer)[0];
        assert_eq!(
            (message.body, message.property("own"), message.property("TAGS")),
            (&b"3"[..], Some("x"), Some("t"))
        );
        assert_eq!(message.property("TRANSACTION_CHECK_TIMES"), None);
        // Without its topic there is nothing to become.
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        client.expect(response::SYSTEM_ERROR, resume(&ids["0"]));
        server.stop();
    });
}

/// As `committed`, of the queue that has a plain message first.
fn committed_behind_plain(client: &mut Client) -> Vec<String> {
    let answer = client.expect(response::SUCCESS, pull("T", 0, 1));
    messages(&answer).iter().map(|message| String::from_utf8_lossy(message.body).into_owned()).collect()
}
