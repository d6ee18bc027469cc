//! Goal: pop consumption is RocketMQ's on the wire: what is popped comes to nobody else until it is acknowledged or its
//! time is over, and nothing is lost. Method: as in wire.rs; crashes are `kill -9`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::bodies::{
    self, Assignments, BatchAck, BatchAcks, BitSet, QueryAssignment, RequestMode, RequestModes, SetRequestMode,
};
use protocol::codes::{request, response};
use protocol::headers::{AckMessage, ChangeInvisibleTime, Notification, PeekMessage, PopMessage};
use protocol::{Command, StoredMessage};
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{
    asking, commit, committed, create_topic, edge, field, handles, heartbeat, messages, now_ms, number, properties,
    pull, send, send_as, telling, wait_until_durable,
};

const GROUP: &str = "poppers";
/// Longer than any test takes.
const LONG_MS: i64 = 600_000;
/// A time that is over soon, and not before the requests that a test makes in between, on a busy machine.
const SHORT_MS: i64 = 3_000;

fn header(topic: &str, queue: i32) -> PopMessage<'_> {
    PopMessage {
        consumer_group: GROUP,
        topic,
        queue_id: queue,
        max_msg_nums: 32,
        invisible_time: LONG_MS,
        ..PopMessage::default()
    }
}

fn pop_with(header: PopMessage<'_>) -> Command {
    let mut command = Command::request(request::POP_MESSAGE);
    header.push(&mut command.header.fields);
    command
}

fn pop(topic: &str, queue: i32) -> Command {
    pop_with(header(topic, queue))
}

/// A message that was popped, with what is needed to answer for it.
#[derive(Clone, Debug)]
struct Got {
    body: String,
    topic: String,
    queue: i32,
    offset: i64,
    times: i32,
    handle: String,
    properties: String,
}

/// Reads an answer as the Java client does: a message without a handle gets one made of the answer's fields.
fn got(answer: &Command) -> Vec<Got> {
    assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
    let one = |(message, handle): (StoredMessage<'_>, String)| {
        let kind = handle.split(' ').nth(4).expect("a handle has eight words").to_owned();
        Got {
            body: String::from_utf8(message.body.to_vec()).expect("a text"),
            topic: if kind == "1" { format!("%RETRY%{GROUP}_{}", message.topic) } else { message.topic.to_owned() },
            queue: message.queue_id,
            offset: message.queue_offset,
            times: message.reconsume_times,
            handle,
            properties: message.properties.to_owned(),
        }
    };
    messages(answer).into_iter().zip(handles(answer)).map(one).collect()
}

fn bodies_of(got: &[Got]) -> Vec<&str> {
    got.iter().map(|got| got.body.as_str()).collect()
}

fn ack(got: &Got) -> Command {
    let mut command = Command::request(request::ACK_MESSAGE);
    AckMessage {
        consumer_group: GROUP,
        topic: &got.topic,
        queue_id: got.queue,
        extra_info: &got.handle,
        offset: got.offset,
    }
    .push(&mut command.header.fields);
    command
}

fn change(got: &Got, invisible_time: i64) -> Command {
    let mut command = Command::request(request::CHANGE_MESSAGE_INVISIBLETIME);
    ChangeInvisibleTime {
        consumer_group: GROUP,
        topic: &got.topic,
        queue_id: got.queue,
        extra_info: &got.handle,
        offset: got.offset,
        invisible_time,
        suspend: false,
    }
    .push(&mut command.header.fields);
    command
}

/// An orderly NOTIFICATION for any queue of the topic.
fn notice(attempt: &str, poll_time: i64) -> Command {
    let mut notice = Command::request(request::NOTIFICATION);
    let asked = Notification {
        consumer_group: GROUP,
        topic: "T",
        queue_id: -1,
        order: true,
        attempt_id: Some(attempt),
        poll_time,
        ..Notification::default()
    };
    asked.push(&mut notice.header.fields);
    notice
}

fn is_told(answer: &Command) -> bool {
    field(answer, "hasMsg") == "true"
}

fn none(client: &mut Client, command: Command) {
    let answer = client.expect(response::POLLING_TIMEOUT, command);
    assert!(number(&answer, "popTime") > 0 && answer.body.is_empty(), "{answer:?}");
}

/// Pops that wait, until so many messages came.
fn pop_all(client: &mut Client, topic: &str, count: usize) -> Vec<Got> {
    let mut all = Vec::new();
    while all.len() < count {
        let answer = client.ask(pop_with(PopMessage { poll_time: 30_000, ..header(topic, -1) }));
        all.extend(got(&answer));
    }
    all
}

#[test]
fn what_is_popped_comes_to_nobody_else() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two] = [server.client(), server.client()];
        one.expect(response::SUCCESS, create_topic("T", 4));
        none(&mut one, pop("T", -1));
        for queue in 0..4 {
            for index in 0..3 {
                one.expect(response::SUCCESS, send("T", queue, format!("{queue}-{index}").as_bytes()));
            }
        }
        // One queue.
        let answer = one.ask(pop_with(PopMessage { max_msg_nums: 2, ..header("T", 2) }));
        assert_eq!(field(&answer, "startOffsetInfo"), "0 2 0");
        assert_eq!(field(&answer, "msgOffsetInfo"), "0 2 0,1");
        assert_eq!((number(&answer, "restNum"), number(&answer, "invisibleTime")), (1, LONG_MS));
        let first = got(&answer);
        assert_eq!(bodies_of(&first), ["2-0", "2-1"]);
        // All the others, from all queues.
        let mut rest = Vec::new();
        while rest.len() < 10 {
            rest.extend(got(&two.ask(pop("T", -1))));
        }
        let all: BTreeSet<&str> = bodies_of(&first).into_iter().chain(bodies_of(&rest)).collect();
        assert_eq!(all.len(), 12);
        none(&mut one, pop("T", -1));
        none(&mut one, pop("T", 2));
        // Another group has its own.
        let other = PopMessage { consumer_group: "others", ..header("T", 2) };
        assert_eq!(got(&one.ask(pop_with(other))).len(), 3);
        for got in first.iter().chain(&rest) {
            one.expect(response::SUCCESS, ack(got));
            // Again is no error, and changes nothing.
            two.expect(response::SUCCESS, ack(got));
        }
        server.stop();
        // Stopping has written everything down.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        none(&mut client, pop("T", -1));
        for queue in 0..4 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(3));
        }
    });
}

#[test]
fn a_pop_waits_for_a_message_in_any_queue() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut producer] = [server.client(), server.client(), server.client()];
        producer.expect(response::SUCCESS, create_topic("T", 4));
        let waiting =
            |client: &mut Client, queue| client.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", queue) }));
        for queue in 0..4 {
            // Each of them gets one of two messages, wherever they are.
            let [first, second] = [waiting(&mut one, -1), waiting(&mut two, -1)];
            let polling = |client: &mut Client, queue: &str| {
                let fields = [("consumerGroup", GROUP), ("topic", "T"), ("queueId", queue)];
                let asked = asking(request::POLLING_INFO, &fields);
                number(&client.expect(response::SUCCESS, asked), "pollingNum")
            };
            while polling(&mut producer, "-1") < 2 {}
            assert_eq!(polling(&mut producer, "1"), 0);
            producer.expect(response::SUCCESS, send("T", queue, b"a"));
            producer.expect(response::SUCCESS, send("T", (queue + 1) % 4, b"b"));
            let [first, second] = [got(&one.answer(first)), got(&two.answer(second))];
            let both = [bodies_of(&first), bodies_of(&second)].concat();
            assert_eq!(BTreeSet::from_iter(both), BTreeSet::from(["a", "b"]));
        }
        // One queue alone; and what tells of messages without giving them.
        let first = waiting(&mut one, 3);
        let mut notice = Command::request(request::NOTIFICATION);
        let asked = Notification {
            consumer_group: "noticed",
            topic: "T",
            queue_id: 3,
            poll_time: 60_000,
            ..Notification::default()
        };
        asked.push(&mut notice.header.fields);
        let answer = two.expect(response::SUCCESS, notice.clone());
        assert_eq!((field(&answer, "hasMsg"), field(&answer, "pollingFull")), ("true", "false"));
        notice.header.fields.push("consumerGroup", GROUP);
        let second = two.write(notice.clone());
        producer.expect(response::SUCCESS, send("T", 2, b"not for them"));
        producer.expect(response::SUCCESS, send("T", 3, b"c"));
        assert_eq!(field(&two.answer(second), "hasMsg"), "true");
        assert_eq!(bodies_of(&got(&one.answer(first))), ["c"]);
        notice.header.fields.push("pollTime", "300");
        assert_eq!(field(&two.expect(response::SUCCESS, notice), "hasMsg"), "false");
        let began = now_ms();
        none(&mut one, pop_with(PopMessage { poll_time: 700, ..header("T", 3) }));
        assert!(now_ms() - began >= 690, "it waits as long as it may");
    });
}

#[test]
fn what_is_not_acknowledged_in_time_comes_again_however_often() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        // When a message is dead is for its consumer to say.
        let group = br#"{"groupName":"poppers","retryMaxTimes":1}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &group[..]));
        let text = properties(&[("TAGS", "tag"), ("KEYS", "key"), ("own", "x")]);
        for (queue, body) in [(0, "good"), (1, "bad")] {
            client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", queue, &text, body.as_bytes()));
        }
        let short = |queue| pop_with(PopMessage { invisible_time: SHORT_MS, ..header("T", queue) });
        let good = got(&client.ask(short(0)));
        client.expect(response::SUCCESS, ack(&good[0]));
        let mut bad = got(&client.ask(short(1)));
        for times in 1..4 {
            let stale = bad;
            bad = got(&client.ask(pop_with(PopMessage {
                poll_time: 30_000,
                invisible_time: SHORT_MS,
                expression: Some("tag"),
                ..header("T", 0)
            })));
            assert_eq!((bodies_of(&bad), bad[0].times), (vec!["bad"], times));
            let retry = format!("%RETRY%{GROUP}_T");
            assert_eq!((bad[0].topic.as_str(), bad[0].queue), (retry.as_str(), 0));
            for known in ["own\u{1}x", "1ST_POP_TIME", "ORIGIN_GROUP\u{1}poppers", "KEYS\u{1}key"] {
                assert!(bad[0].properties.contains(known), "{known:?} in {:?}", bad[0].properties);
            }
            // An old handle means nothing any more.
            client.expect(response::SUCCESS, ack(&stale[0]));
            client.expect(response::NO_MESSAGE, change(&stale[0], LONG_MS));
        }
        client.expect(response::SUCCESS, ack(&bad[0]));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "%DLQ%poppers", 0), 0);
        none(&mut client, pop("T", -1));
    });
}

/// One request that acknowledges some of what was popped: for each loan, those that are `wanted`.
fn ack_batch(popped: &[Got], wanted: impl Fn(&Got) -> bool) -> Command {
    let mut acks: Vec<BatchAck> = Vec::new();
    for got in popped.iter().filter(|got| wanted(got)) {
        let words: Vec<i64> = got.handle.split(' ').take(4).map(|word| word.parse().expect("a number")).collect();
        let is_of =
            |ack: &&mut BatchAck| (ack.queue_id, ack.start_offset, ack.pop_time) == (got.queue, words[0], words[1]);
        let bit = usize::try_from(got.offset - words[0]).expect("it is behind the first");
        if let Some(ack) = acks.iter_mut().find(is_of) {
            let bits = (0..8 * ack.bits.0.len()).filter(|bit| ack.bits.get(*bit as u64));
            ack.bits = BitSet::of(bits.chain([bit]));
            continue;
        }
        acks.push(BatchAck {
            bits: BitSet::of([bit]),
            consumer_group: GROUP.to_owned(),
            invisible_time: words[2],
            pop_time: words[1],
            queue_id: got.queue,
            retry: "0".to_owned(),
            revive_queue_id: i32::try_from(words[3]).expect("a number of a queue"),
            start_offset: words[0],
            topic: "T".to_owned(),
        });
    }
    let body = bodies::encode(&BatchAcks { acks, broker_name: "broker-a".to_owned() });
    telling(request::BATCH_ACK_MESSAGE, &[], body)
}

#[test]
fn what_is_on_loan_outlives_kill_9_and_so_do_its_handles() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 3));
        let mut left = BTreeSet::new();
        for index in 0..300 {
            let body = format!("m{index}");
            client.expect(response::SUCCESS, send("T", index % 3, body.as_bytes()));
            left.insert(body);
        }
        let mut popped = Vec::new();
        while popped.len() < 300 {
            popped.extend(got(&client.ask(pop("T", -1))));
        }
        assert_eq!(popped.iter().map(|got| got.body.clone()).collect::<BTreeSet<_>>(), left);
        // In each life with the handles of the first one: single ones, and one request for others.
        for round in 0..3 {
            for got in popped.iter().filter(|got| got.offset % 9 == round) {
                client.expect(response::SUCCESS, ack(got));
                left.remove(&got.body);
            }
            let is_wanted = |got: &Got| got.offset % 8 == round;
            client.expect(response::SUCCESS, ack_batch(&popped, is_wanted));
            popped.iter().filter(|got| is_wanted(got)).for_each(|got| _ = left.remove(&got.body));
            server.kill();
            server = Server::with_cores(home, cores, &[]);
            client = server.client();
            // Nobody else gets what is on loan.
            none(&mut client, pop("T", -1));
            for queue in 0..3 {
                let mine = popped.iter().filter(|got| got.queue == queue && left.contains(&got.body));
                assert_eq!(committed(&mut client, GROUP, "T", queue), mine.map(|got| got.offset).min());
            }
        }
        // All that is left is given back, and comes again as what was tried once.
        for got in popped.iter().filter(|got| left.contains(&got.body)) {
            client.expect(response::SUCCESS, change(got, 0));
        }
        let again = pop_all(&mut client, "T", left.len());
        assert_eq!(again.iter().map(|got| got.body.clone()).collect::<BTreeSet<_>>(), left);
        assert!(again.len() == left.len() && again.iter().all(|got| got.times == 1));
        for got in &again {
            client.expect(response::SUCCESS, ack(got));
        }
        none(&mut client, pop("T", -1));
        for queue in 0..3 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(100));
        }
    });
}

#[test]
fn what_was_answered_about_a_pop_is_known_right_after_kill_9() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 3));
        let mut wanted = BTreeSet::new();
        for index in 0..60 {
            let body = format!("m{index}");
            client.expect(response::SUCCESS, send("T", index % 3, body.as_bytes()));
            wanted.insert(body);
        }
        let restart = |server: Server| {
            server.kill();
            let server = Server::with_cores(home, cores, &[]);
            let client = server.client();
            (server, client)
        };
        let mut seen = BTreeSet::new();
        while !wanted.is_empty() {
            let popped = got(&client.ask(pop_with(PopMessage { max_msg_nums: 8, ..header("T", -1) })));
            (server, client) = restart(server);
            // Nobody gets it once more, and who has it is done with one, gives one another time, and the rest another.
            let [one, two, rest @ ..] = &popped[..] else { panic!("{popped:?}") };
            client.expect(response::SUCCESS, ack(one));
            let answer = client.ask(change(two, LONG_MS));
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            let (offset, queue) = (two.offset, two.queue);
            let handle = format!("{offset} {} {LONG_MS} 0 0 broker-a {queue} {offset}", field(&answer, "popTime"));
            (server, client) = restart(server);
            assert_eq!(client.ask(change(two, 0)).header.code, response::NO_MESSAGE, "it has another handle");
            client.expect(response::SUCCESS, ack(&Got { handle, ..two.clone() }));
            client.expect(response::SUCCESS, ack_batch(rest, |_| true));
            (server, client) = restart(server);
            for got in &popped {
                assert!(seen.insert(got.body.clone()), "{} came twice", got.body);
                wanted.remove(&got.body);
            }
        }
        none(&mut client, pop("T", -1));
        for queue in 0..3 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(20));
        }
    });
}

#[test]
fn a_loan_that_ends_while_the_broker_is_down_comes_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let popped = got(&client.ask(pop_with(PopMessage { invisible_time: SHORT_MS, ..header("T", 0) })));
        client.expect(response::SUCCESS, ack(&popped[0]));
        server.kill();
        // Who waits is told although nobody sends.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["b"], 1));
        // The topic that is made again has another message there: the handle is not of that.
        wait_until_durable(&mut client);
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["c", "d"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let other = got(&client.ask(pop_with(PopMessage { invisible_time: SHORT_MS, ..header("T", 0) })));
        assert_eq!(bodies_of(&other), ["c", "d"]);
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, ack(&popped[0]));
        client.expect(response::SUCCESS, ack_batch(&popped, |_| true));
        let mut again = pop_all(&mut client, "T", 2);
        again.sort_by_key(|got| got.body.clone());
        assert_eq!(bodies_of(&again), ["c", "d"]);
    });
}

#[test]
fn an_orderly_loan_outlives_kill_9_with_how_often_it_was_lent() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = |invisible_time, attempt, poll_time| {
            let asked = PopMessage { order: true, max_msg_nums: 2, ..header("T", 0) };
            pop_with(PopMessage { invisible_time, attempt_id: attempt, poll_time, ..asked })
        };
        assert_eq!(bodies_of(&got(&client.ask(orderly(50, Some("one"), 0)))), ["a", "b"]);
        let answer = client.ask(orderly(LONG_MS, Some("two"), 30_000));
        assert_eq!(field(&answer, "orderCountInfo"), "0 qo0%0 1;0 qo0%1 1;0 0 1");
        let first = got(&answer);
        client.expect(response::SUCCESS, ack(&first[0]));
        server.kill();

        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        none(&mut client, orderly(LONG_MS, Some("three"), 0));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        // In its own attempt it is given once more, which is no further try.
        let answer = client.ask(orderly(LONG_MS, Some("two"), 0));
        let second = got(&answer);
        assert_eq!((bodies_of(&second), field(&answer, "orderCountInfo")), (vec!["b", "c"], "0 qo0%1 1;0 0 0"));
        let waiting = client.write(orderly(LONG_MS, Some("four"), 60_000));
        client.expect(response::SUCCESS, change(&second[1], 50));
        client.expect(response::SUCCESS, change(&second[0], 50));
        let answer = client.answer(waiting);
        let third = got(&answer);
        assert_eq!(
            (bodies_of(&third), field(&answer, "orderCountInfo")),
            (vec!["b", "c"], "0 qo0%1 2;0 qo0%2 1;0 0 1")
        );
        server.kill();

        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, ack(&second[0]));
        none(&mut client, orderly(LONG_MS, None, 0));
        client.expect(response::SUCCESS, ack(&third[0]));
        client.expect(response::SUCCESS, ack(&third[1]));
        none(&mut client, orderly(LONG_MS, None, 0));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
    });
}

/// Has the oldest message of a queue on disk alone: so much lies behind it that a start need not read it. Returns where
/// its log is, and what its entry in a run begins with.
fn bury(home: &Path, cores: &str, more: &[&str]) -> (PathBuf, Vec<u8>) {
    let server = Server::with_cores(home, cores, more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 2));
    client.expect(response::SUCCESS, send("T", 1, b"to be damaged"));
    let answer = client.expect(response::SUCCESS, pull("T", 1, 0));
    let (place, stored_ms) = (messages(&answer)[0].physical_offset, messages(&answer)[0].store_timestamp);
    for _ in 0..100 {
        client.expect(response::SUCCESS, send("T", 1, &[b'x'; 150_000]));
    }
    server.stop();
    let entry = [place, stored_ms].map(|number| number.to_be_bytes()[2..].to_vec()).concat();
    (home.join(format!("data/partition-{:05}", place >> 48)), entry)
}

const SMALL_STRETCH: [&str; 2] = ["--set", "log.stretch_bytes=1MiB"];

#[test]
fn a_damaged_message_is_passed_by_each_group_once_and_told() {
    with_cores(|home, cores| {
        let (partition, _) = bury(home, cores, &SMALL_STRETCH);
        rot(&partition, b"to be damaged");
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        let told = |server: &Server, group: &str| {
            let log = server.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("passed: a stored message")).collect();
            let names = |line: &&&str| line.contains(&format!("\"{group}\"")) && line.contains("topic=\"T\"");
            let of_group = lines.iter().filter(names).count();
            assert!(lines.iter().all(|line| line.contains("queue=1 offset=0") && line.contains("position=")), "{log}");
            (of_group, lines.len())
        };
        // A look shows what a pop would give, and decides nothing.
        let shown = client.expect(response::SUCCESS, peek("looks", "T", 1, 1));
        assert_eq!(messages(&shown)[0].queue_offset, 1);
        assert_eq!(told(&server, "looks"), (0, 0));
        for group in [GROUP, "others"] {
            let one = PopMessage { consumer_group: group, max_msg_nums: 1, ..header("T", 1) };
            assert_eq!(got(&client.ask(pop_with(one)))[0].offset, 1, "{group} goes on behind it");
            assert_eq!(told(&server, group).0, 1);
        }
        assert_eq!(told(&server, GROUP), (1, 2), "once for each group");
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1), "it is done with");
        // Who chooses his offset himself is told, and decides.
        let answer = client.ask(pull("T", 1, 0));
        assert_eq!(answer.header.code, response::SYSTEM_ERROR);
        assert!(answer.header.remark.contains("is damaged"), "{}", answer.header.remark);
        wait_until_durable(&mut client);
        server.stop();
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        assert_eq!(got(&client.ask(pop("T", 1)))[0].offset, 2, "it is known that it was passed");
        assert!(!server.log().contains("passed: a stored message"));
        server.stop();
    });
}

#[test]
fn what_cannot_be_found_sends_a_pop_around_a_few_times_only_and_is_not_passed() {
    with_cores(|home, cores| {
        let (partition, entry) = bury(home, cores, &SMALL_STRETCH);
        // Where the message lies is told by a run that is damaged, and cannot be made again from a damaged log.
        rot(&partition, b"to be damaged");
        rot(&partition, &entry);
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        let looks = || server.log().matches("a stored message cannot be found now").count();
        none(&mut client, pop_with(PopMessage { poll_time: 1_000, ..header("T", -1) }));
        let first = looks();
        assert!((1..20).contains(&first), "{first} looks at what cannot be given");
        // It waits all the same, and gets what can be.
        let waiting = client.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", -1) }));
        let mut producer = server.client();
        producer.expect(response::SUCCESS, send("T", 0, b"good"));
        assert_eq!(bodies_of(&got(&client.answer(waiting))), ["good"]);
        let both = looks();
        assert!(both < 40, "{both} looks at what cannot be given");
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(0), "its run may be made again");
        server.stop();
    });
}

#[test]
fn a_message_is_given_another_time() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let popped = got(&client.ask(pop("T", 0)));
        let answer = client.expect(response::SUCCESS, change(&popped[1], LONG_MS / 2));
        assert_eq!((number(&answer, "invisibleTime"), number(&answer, "reviveQid")), (LONG_MS / 2, 0));
        let handle = format!("1 {} {} 0 0 broker-a 0 1", field(&answer, "popTime"), LONG_MS / 2);
        let changed = Got { handle, ..popped[1].clone() };
        client.expect(response::NO_MESSAGE, change(&popped[1], LONG_MS));
        client.expect(response::SUCCESS, ack(&popped[0]));
        client.expect(response::SUCCESS, change(&changed, 10));
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["b"], 1));
        client.expect(response::SUCCESS, ack(&again[0]));
        // Set aside unused it does not count as a try.
        client.expect(response::SUCCESS, send("T", 0, b"c"));
        let popped = pop_all(&mut client, "T", 1);
        let mut aside = change(&popped[0], 0);
        aside.header.fields.push("suspend", "true");
        client.expect(response::SUCCESS, aside);
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["c"], 0));
    });
}

#[test]
fn an_orderly_queue_gives_nothing_before_it_has_its_answers() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 2));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let orderly = |count, invisible_time, attempt| {
            let asked = header("T", -1);
            pop_with(PopMessage { order: true, max_msg_nums: count, invisible_time, attempt_id: attempt, ..asked })
        };
        let answer = client.ask(orderly(2, LONG_MS, Some("one")));
        assert_eq!((number(&answer, "reviveQid"), field(&answer, "orderCountInfo")), (999, "0 1 0"));
        assert_eq!(bodies_of(&got(&answer)), ["a", "b"]);
        none(&mut other, orderly(2, LONG_MS, None));
        none(&mut other, orderly(2, LONG_MS, Some("two")));
        // Who asks again with the same words gets the same.
        let answer = client.ask(orderly(2, LONG_MS, Some("one")));
        assert_eq!(bodies_of(&got(&answer)), ["a", "b"]);
        assert_eq!(field(&answer, "orderCountInfo"), "0 1 0", "which is no further try");
        let popped = got(&answer);
        let told = ["one", "two"].map(|attempt| is_told(&client.ask(notice(attempt, 0))));
        assert_eq!(told, [true, false], "to whom the loan is closed");
        let unknown = Got { offset: 2, ..popped[0].clone() };
        client.expect(response::MESSAGE_ILLEGAL, ack(&unknown));
        // The other one waits until the last answer is there.
        let waiting = other.write(pop_with(PopMessage { order: true, poll_time: 60_000, ..header("T", -1) }));
        client.expect(response::SUCCESS, ack(&popped[1]));
        none(&mut client, orderly(2, LONG_MS, None));
        client.expect(response::SUCCESS, ack(&popped[0]));
        let third = got(&other.answer(waiting));
        assert_eq!(bodies_of(&third), ["c"]);
        // Its time is made short: it comes again in its place.
        let waiting = client.write(pop_with(PopMessage { order: true, poll_time: 60_000, ..header("T", -1) }));
        let answer = other.expect(response::SUCCESS, change(&third[0], 50));
        assert_eq!(field(&answer, "popTime"), third[0].handle.split(' ').nth(1).unwrap());
        let again = got(&client.answer(waiting));
        assert_eq!((bodies_of(&again), again[0].queue), (vec!["c"], 1));
        client.expect(response::SUCCESS, ack(&again[0]));
        none(&mut client, orderly(2, LONG_MS, None));
        // A message tells one of those who wait for it. The other one looks once more when its time is over.
        let mut others = [server.client(), server.client()];
        let waiting = others.each_mut().map(|client| client.write(notice("three", 1_500)));
        client.expect(response::SUCCESS, send("T", 1, b"d"));
        let popped = got(&client.ask(orderly(1, LONG_MS, Some("three"))));
        for (client, waiting) in others.iter_mut().zip(waiting) {
            assert!(is_told(&client.answer(waiting)), "its own loan is not closed to it");
        }
        client.expect(response::SUCCESS, ack(&popped[0]));
        // One of three is given back: it comes again, and what follows it after it, acknowledged or not.
        for body in ["e", "f", "g"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let popped = got(&client.ask(orderly(3, LONG_MS, Some("four"))));
        assert_eq!(bodies_of(&popped), ["e", "f", "g"]);
        client.expect(response::SUCCESS, ack(&popped[0]));
        let waiting = client.write(pop_with(PopMessage { order: true, poll_time: 20_000, ..header("T", -1) }));
        other.expect(response::SUCCESS, change(&popped[1], 50));
        other.expect(response::SUCCESS, ack(&popped[2]));
        let answer = client.answer(waiting);
        let again = got(&answer);
        assert_eq!(
            (bodies_of(&again), field(&answer, "orderCountInfo")),
            (vec!["f", "g"], "0 qo1%5 1;0 qo1%6 1;0 1 1")
        );
        client.expect(response::SUCCESS, ack(&again[0]));
        client.expect(response::SUCCESS, ack(&again[1]));
        none(&mut client, orderly(2, LONG_MS, None));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &format!("%RETRY%{GROUP}_T"), 0), 0);
    });
}

#[test]
fn tags_choose_and_what_is_not_wanted_does_not_come_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..40 {
            let text = properties(&[("TAGS", if index % 5 == 0 { "A" } else { "B" })]);
            client.expect(
                response::SUCCESS,
                send_as(request::SEND_MESSAGE_V2, "T", 0, &text, index.to_string().as_bytes()),
            );
        }
        let tagged = |tags| pop_with(PopMessage { expression: Some(tags), max_msg_nums: 3, ..header("T", 0) });
        let first = got(&client.ask(tagged("A")));
        assert_eq!(bodies_of(&first), ["0", "5", "10"]);
        assert_eq!(bodies_of(&got(&client.ask(tagged("A || C")))), ["15", "20", "25"]);
        client.expect(response::SUCCESS, ack(&first[1]));
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, tagged("||"));
        assert_eq!(bodies_of(&got(&client.ask(tagged("A")))), ["30", "35"]);
        none(&mut client, tagged("B"));
    });
}

#[test]
fn where_a_group_begins_and_where_others_send_it() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..5 {
            client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
        }
        // A young queue is read from its beginning, as by those who pull.
        let last = PopMessage { init_mode: 1, max_msg_nums: 2, ..header("T", 0) };
        assert_eq!(bodies_of(&got(&client.ask(pop_with(last)))), ["0", "1"]);
        client.expect(response::SUCCESS, heartbeat("client", GROUP, &["T"]));
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 4));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["4"]);
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 3));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["3", "4"]);
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
        // An offset behind the end is no way to lose what comes.
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 1_000));
        none(&mut client, pop("T", 0));
        client.expect(response::SUCCESS, send("T", 0, b"5"));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["5"]);
    });
}

#[test]
fn a_full_queue_gives_no_more_and_goes_on_when_it_has_room() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "limits.pop_unacked=32"]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..40 {
            client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
        }
        let popped = got(&client.ask(pop("T", 0)));
        assert_eq!(popped.len(), 32);
        none(&mut client, pop("T", 0));
        let waiting = other.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", 0) }));
        none(&mut client, pop("T", 0));
        client.expect(response::SUCCESS, ack(&popped[7]));
        assert_eq!(bodies_of(&got(&other.answer(waiting))), ["32"]);
    });
}

#[test]
fn bad_requests_have_rocketmqs_codes_and_change_nothing() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        client.expect(response::SUCCESS, send("T", 0, b"a"));
        let asked = header("T", 0);
        for (code, bad) in [
            (response::TOPIC_NOT_EXIST, PopMessage { topic: "none", ..asked }),
            (response::INVALID_PARAMETER, PopMessage { queue_id: 2, ..asked }),
            (response::INVALID_PARAMETER, PopMessage { max_msg_nums: 33, ..asked }),
            (response::SUBSCRIPTION_GROUP_NOT_EXIST, PopMessage { consumer_group: "a b", ..asked }),
            (response::POLLING_TIMEOUT, PopMessage { born_time: Some(now_ms() - 60_000), ..asked }),
        ] {
            client.expect(code, pop_with(bad));
        }
        let off = br#"{"groupName":"off","consumeEnable":false}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &off[..]));
        client.expect(response::NO_PERMISSION, pop_with(PopMessage { consumer_group: "off", ..asked }));
        client.expect(response::SYSTEM_ERROR, asking(request::POP_MESSAGE, &[("topic", "T")]));

        // Years are limited to days.
        let answer = client.ask(pop_with(PopMessage { invisible_time: i64::MAX, ..asked }));
        assert_eq!(number(&answer, "invisibleTime"), 259_200_000);
        let real = got(&answer).remove(0);
        let forged = |handle: &str| Got { handle: handle.to_owned(), ..real.clone() };
        let pop_ms = real.handle.split(' ').nth(1).unwrap().to_owned();
        for (code, bad) in [
            (response::SUCCESS, forged(&format!("0 {pop_ms} 60000 0 0 broker-b 0 0"))),
            (response::SUCCESS, forged("0 1 60000 0 0 broker-a 0 0")),
            (response::SYSTEM_ERROR, forged("")),
            (response::SYSTEM_ERROR, forged("x y z")),
            (response::SYSTEM_ERROR, forged("-1 -1 -1 -1 -1 -1")),
            (response::MESSAGE_ILLEGAL, Got { queue: 2, ..real.clone() }),
            (response::MESSAGE_ILLEGAL, Got { queue: -1, ..real.clone() }),
            (response::NO_MESSAGE, Got { offset: 2, ..real.clone() }),
            (response::NO_MESSAGE, Got { offset: -1, ..real.clone() }),
            (response::TOPIC_NOT_EXIST, Got { topic: "none".to_owned(), ..real.clone() }),
            (response::SUCCESS, Got { queue: 1, offset: 0, ..real.clone() }),
        ] {
            client.expect(code, ack(&bad));
            let code = if code == response::SUCCESS { response::NO_MESSAGE } else { code };
            client.expect(code, change(&bad, 1_000));
        }
        client.expect(response::NO_MESSAGE, asking(request::BATCH_ACK_MESSAGE, &[]));
        client.expect(response::SYSTEM_ERROR, telling(request::BATCH_ACK_MESSAGE, &[], &b"{"[..]));
        let strange = BatchAck { retry: "7".to_owned(), topic: "T".to_owned(), ..BatchAck::default() };
        let far = BatchAck {
            bits: BitSet(vec![0xff; 100_000]),
            consumer_group: GROUP.to_owned(),
            topic: "T".to_owned(),
            retry: "0".to_owned(),
            start_offset: i64::MAX,
            ..BatchAck::default()
        };
        let body = bodies::encode(&BatchAcks { acks: vec![strange, far], ..BatchAcks::default() });
        client.expect(response::SUCCESS, telling(request::BATCH_ACK_MESSAGE, &[], body));
        // It is still on loan, and its own handle is good.
        none(&mut client, pop("T", -1));
        let answer = client.expect(response::SUCCESS, change(&real, i64::MAX));
        assert_eq!(number(&answer, "invisibleTime"), 259_200_000);
        // The fast port serves no pops.
        Client::connect(server.fast()).expect(response::REQUEST_CODE_NOT_SUPPORTED, pop("T", 0));
    });
}

#[test]
fn the_broker_says_who_gets_what() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut three] = [server.client(), server.client(), server.client()];
        one.expect(response::SUCCESS, create_topic("T", 5));
        let assigned = |client: &mut Client, id: &str, strategy: &str, topic: &str| {
            let asked = QueryAssignment {
                client_id: id.to_owned(),
                consumer_group: GROUP.to_owned(),
                strategy_name: strategy.to_owned(),
                topic: topic.to_owned(),
                ..QueryAssignment::default()
            };
            let answer =
                client.expect(response::SUCCESS, telling(request::QUERY_ASSIGNMENT, &[], bodies::encode(&asked)));
            let found: Assignments = bodies::decode(&answer.body).unwrap();
            let found = found.message_queue_assignments?;
            assert!(found.iter().all(|one| one.message_queue.broker_name == "broker-a"));
            let modes: BTreeSet<bool> = found.iter().map(|one| one.mode == RequestMode::Pop).collect();
            assert!(modes.len() < 2);
            let queues: Vec<i32> = found.iter().map(|one| one.message_queue.queue_id).collect();
            Some((modes.contains(&true), queues))
        };
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), None, "there is no such group yet");
        for (client, id) in [(&mut one, "a"), (&mut two, "b"), (&mut three, "c")] {
            client.expect(response::SUCCESS, heartbeat(id, GROUP, &["T"]));
        }
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((false, vec![0, 1])));
        assert_eq!(assigned(&mut one, "b", "AVG", "T"), Some((false, vec![2, 3])));
        assert_eq!(assigned(&mut one, "c", "AVG_BY_CIRCLE", "T"), Some((false, vec![2])));
        assert_eq!(assigned(&mut one, "nobody", "AVG", "T"), Some((false, vec![])));
        assert_eq!(assigned(&mut one, "a", "BY_LOT", "T"), None);
        assert_eq!(assigned(&mut one, "a", "AVG", "none"), None);

        let mode = |share, topic: &str, group: &str| {
            let mode = SetRequestMode {
                consumer_group: group.to_owned(),
                mode: RequestMode::Pop,
                pop_share_queue_num: share,
                topic: topic.to_owned(),
            };
            telling(request::SET_MESSAGE_REQUEST_MODE, &[], bodies::encode(&mode))
        };
        one.expect(response::TOPIC_NOT_EXIST, mode(0, "none", GROUP));
        one.expect(response::NO_PERMISSION, mode(0, "%RETRY%poppers", GROUP));
        one.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, mode(0, "T", "a/b"));
        one.expect(response::SUCCESS, mode(1, "T", GROUP));
        // Each client works on its own queues and on the next one's.
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((true, vec![0, 1, 2, 3])));
        assert_eq!(assigned(&mut one, "c", "AVG", "T"), Some((true, vec![0, 1, 4])));
        one.expect(response::SUCCESS, mode(0, "T", GROUP));
        server.kill();

        // The setting lasts.
        let server = Server::with_cores(home, cores, &[]);
        let mut one = server.client();
        one.expect(response::SUCCESS, heartbeat("a", GROUP, &["T"]));
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((true, vec![-1])));
        assert_eq!(assigned(&mut one, "a", "AVG", "%RETRY%poppers"), Some((false, vec![0])));
        let answer = one.expect(response::SUCCESS, asking(request::GET_ALL_MESSAGE_REQUEST_MODE, &[]));
        let modes: RequestModes = bodies::decode(&answer.body).unwrap();
        assert_eq!(modes.message_request_mode_map["T"][GROUP].mode, RequestMode::Pop);
    });
}

/// A topic (17) whose queues are levels of priority.
fn create_priority_topic(topic: &str, queues: u32) -> Command {
    let mut command = create_topic(topic, queues);
    command.header.fields.push("attributes", "+message.type=PRIORITY");
    command
}

/// A setting (25) while the broker runs.
fn set(client: &mut Client, line: &str) {
    client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], line.as_bytes().to_vec()));
}

#[test]
fn the_most_urgent_messages_are_popped_first() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        let priority = |client: &mut Client, code: i32, queue: i32, pairs: &[(&str, &str)]| {
            let answer = client.expect(response::SUCCESS, send_as(code, "T", queue, &properties(pairs), b"x"));
            number(&answer, "queueId")
        };
        let key = "_SYS_MSG_PRIORITY_";
        // Property, queue that the producer names, queue that it goes to.
        let codes = [request::SEND_MESSAGE, request::SEND_MESSAGE_V2];
        for (index, (value, named, wanted)) in
            [("0", 3, 0), ("2", -1, 2), ("3", 0, 3), ("4", 0, 3), ("2147483647", 1, 3)].into_iter().enumerate()
        {
            assert_eq!(priority(&mut client, codes[index % 2], named, &[(key, value)]), wanted, "{value}");
        }
        // No priority at all, and one that does not count beside another type; then it is not kept.
        assert_eq!(priority(&mut client, codes[0], 1, &[(key, "-1")]), 1);
        assert_eq!(priority(&mut client, codes[1], 1, &[(key, "soon")]), 1);
        assert_eq!(priority(&mut client, codes[1], 1, &[(key, "3"), ("__SHARDINGKEY", "s")]), 1);
        let wrong = send_as(request::SEND_MESSAGE_V2, "T", 4, &properties(&[(key, "1")]), b"x");
        client.expect(response::INVALID_PARAMETER, wrong);
        let one = |client: &mut Client| {
            let answer = client.ask(pop_with(PopMessage { max_msg_nums: 1, ..header("T", -1) }));
            let got = got(&answer);
            assert_eq!(got.len(), 1);
            got[0].clone()
        };
        let queues: Vec<i32> = (0..8).map(|_| one(&mut client).queue).collect();
        assert_eq!(queues, [3, 3, 3, 2, 1, 1, 1, 0]);
        let answer = client.ask(pop_with(PopMessage { consumer_group: "others", max_msg_nums: 8, ..header("T", 1) }));
        let texts: Vec<String> = got(&answer).into_iter().map(|got| got.properties).collect();
        let kept = |text: &String| protocol::properties::get(text, key).is_some();
        assert_eq!(texts.iter().map(kept).collect::<Vec<_>>(), [true, true, false]);
        // The other way round, and for a group that does not want it.
        set(&mut client, "priorityOrderAsc=false");
        for queue in 0..4 {
            assert_eq!(priority(&mut client, codes[0], 0, &[(key, &queue.to_string())]), queue);
        }
        assert_eq!((0..4).map(|_| one(&mut client).queue).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let text = br#"{"groupName":"poppers","attributes":{"+priority.factor":"0"}}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &text[..]));
        for _ in 0..8 {
            (0..4).for_each(|queue| _ = priority(&mut client, codes[1], 0, &[(key, &queue.to_string())]));
        }
        let first: BTreeSet<i32> = (0..8).map(|_| one(&mut client).queue).collect();
        assert!(first.len() > 1, "any queue may come first");
        server.stop();
    });
}

#[test]
fn what_comes_again_keeps_its_priority_if_it_is_to() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        set(&mut client, "useSeparateRetryQueue=true\npopFromRetryProbabilityForPriority=100");
        let sent = |client: &mut Client, queue: i32, body: &str| {
            client.expect(response::SUCCESS, send("T", queue, body.as_bytes()));
        };
        sent(&mut client, 1, "low");
        let lent = got(&client.ask(pop_with(PopMessage { invisible_time: SHORT_MS, ..header("T", -1) })));
        assert_eq!(bodies_of(&lent), ["low"]);
        let (retry, long) = (format!("%RETRY%{GROUP}_T"), PopMessage { poll_time: 30_000, ..header("T", -1) });
        // It waits for what comes again, in a topic that is not there yet.
        let again = got(&client.ask(pop_with(long)));
        assert_eq!((bodies_of(&again), again[0].queue, again[0].times), (vec!["low"], 1, 1));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &retry, 1), 1);
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &retry, 0), 0);
        // What comes again goes first, by its priority; then what is new, by its own.
        for (queue, body) in [(0, "a"), (2, "b")] {
            sent(&mut client, queue, body);
        }
        let lent = got(&client.ask(pop_with(PopMessage { invisible_time: SHORT_MS, ..header("T", -1) })));
        assert!(!lent.is_empty());
        let until_ms = now_ms() + 60_000;
        while edge(&mut client, request::GET_MAX_OFFSET, &retry, lent[0].queue) == 0 {
            assert!(now_ms() < until_ms, "it comes again");
        }
        sent(&mut client, 3, "new");
        let one = PopMessage { max_msg_nums: 1, ..header("T", -1) };
        let first = got(&client.ask(pop_with(one)));
        assert_eq!((first[0].times, first[0].queue), (1, lent[0].queue));
        server.stop();
    });
}

#[test]
fn one_level_of_priority_has_the_same_share_of_what_comes_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        for (ordinary, priority, wanted) in [(0, 100, "again"), (100, 0, "new")] {
            let line = format!("popFromRetryProbability={ordinary}\npopFromRetryProbabilityForPriority={priority}");
            set(&mut client, &line);
            client.expect(response::SUCCESS, send("T", 1, b"again"));
            let lent = got(&client.ask(pop("T", 1)));
            let retry = format!("%RETRY%{GROUP}_T");
            let before = edge(&mut client, request::GET_MAX_OFFSET, &retry, 0);
            give_back(&mut client, &lent[0], "T", before + 1);
            client.expect(response::SUCCESS, send("T", 1, b"new"));
            let one = || pop_with(PopMessage { max_msg_nums: 1, ..header("T", 1) });
            let both = [0, 1].map(|_| got(&client.ask(one())).remove(0));
            assert_eq!(both[0].body, wanted);
            both.iter().for_each(|got| _ = client.expect(response::SUCCESS, ack(got)));
        }
        server.stop();
    });
}

fn peek(group: &str, topic: &str, queue: i32, count: i32) -> Command {
    let mut command = Command::request(request::PEEK_MESSAGE);
    PeekMessage { consumer_group: group, topic, queue_id: queue, max_msg_nums: count }.push(&mut command.header.fields);
    command
}

#[test]
fn what_is_peeked_at_stays() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        let answer = client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", -1, 5));
        assert_eq!((number(&answer, "restNum"), answer.body.len()), (0, 0));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let seen = |client: &mut Client, queue: i32, count: i32| {
            let answer = client.expect(response::SUCCESS, peek(GROUP, "T", queue, count));
            let bodies =
                messages(&answer).into_iter().map(|message| String::from_utf8_lossy(message.body).into_owned());
            (bodies.collect::<Vec<_>>().concat(), number(&answer, "restNum"))
        };
        for _ in 0..2 {
            assert_eq!(seen(&mut client, 1, 2), ("ab".to_owned(), 3));
            assert_eq!(seen(&mut client, -1, 32), ("abc".to_owned(), 3));
        }
        client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", 0, 2));
        let lent = got(&client.ask(pop_with(PopMessage { max_msg_nums: 1, ..header("T", 1) })));
        assert_eq!(bodies_of(&lent), ["a"]);
        assert_eq!(seen(&mut client, 1, 2), ("bc".to_owned(), 2), "what is on loan is not shown");
        client.expect(response::TOPIC_NOT_EXIST, peek(GROUP, "U", -1, 2));
        client.expect(response::INVALID_PARAMETER, peek(GROUP, "T", 2, 2));
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, peek("no group", "T", 1, 2));
        client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", 1, -1));
        server.stop();
    });
}

#[test]
fn who_asks_for_tags_is_told_of_them_alone() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut producer] = [server.client(), server.client()];
        producer.expect(response::SUCCESS, create_topic("T", 4));
        let notice = |expression: &str, poll_time: i64| {
            let mut command = Command::request(request::NOTIFICATION);
            let header =
                Notification { consumer_group: GROUP, topic: "T", queue_id: -1, poll_time, ..Default::default() };
            header.push(&mut command.header.fields);
            command.header.fields.push("expType", "TAG");
            command.header.fields.push("exp", expression);
            command
        };
        let tagged = |client: &mut Client, queue: i32, tag: &str| {
            let text = properties(&[("TAGS", tag)]);
            client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", queue, &text, b"x"));
        };
        let told = |answer: &Command| field(answer, "hasMsg") == "true";
        assert!(!told(&client.expect(response::SUCCESS, notice("A", 0))));
        // Two with filters of their own wait; each is told of its own.
        let [a, b] = ["A || C", "B"].map(|expression| client.write(notice(expression, 60_000)));
        tagged(&mut producer, 1, "D");
        tagged(&mut producer, 2, "B");
        assert!(told(&client.answer(b)));
        tagged(&mut producer, 3, "C");
        assert!(told(&client.answer(a)));
        assert!(!told(&client.expect(response::SUCCESS, notice("A", 300))));
        assert!(told(&client.expect(response::SUCCESS, notice("*", 0))));
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, notice("||", 0));
        let mut wrong = notice("a =", 0);
        wrong.header.fields.push("expType", "SQL92");
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, wrong);
        // When many wait, nobody looks at them.
        (0..64).for_each(|_| tagged(&mut producer, 0, "D"));
        assert!(told(&client.expect(response::SUCCESS, notice("A", 0))));
        server.stop();
    });
}

#[test]
fn all_who_wait_hear_of_a_retry_topic_that_is_new() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two] = [server.client(), server.client()];
        one.expect(response::SUCCESS, create_topic("T", 4));
        // Two loans, so that the messages come again one after the other.
        for (queue, body, invisible_time) in [(1, "sooner", SHORT_MS), (2, "later", 2 * SHORT_MS)] {
            one.expect(response::SUCCESS, send("T", queue, body.as_bytes()));
            let lent = got(&one.ask(pop_with(PopMessage { invisible_time, ..header("T", queue) })));
            assert_eq!(bodies_of(&lent), [body]);
        }
        // They wait in one line, and do not know the retry topic yet.
        let wait = |client: &mut Client| {
            client.write(pop_with(PopMessage { poll_time: 60_000, max_msg_nums: 1, ..header("T", -1) }))
        };
        let began_ms = now_ms();
        let [first, second] = [wait(&mut one), wait(&mut two)];
        let both = [got(&one.answer(first)), got(&two.answer(second))];
        assert!(now_ms() - began_ms < 30_000, "they were told, not asked again when their time was over");
        assert_eq!(
            BTreeSet::from_iter(both.iter().flat_map(|got| bodies_of(got))),
            BTreeSet::from(["later", "sooner"])
        );
        server.stop();
    });
}

#[test]
fn a_damaged_message_holds_no_other_of_its_loan() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &["--set", "log.tail_bytes=32MiB"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    client.expect(response::SUCCESS, create_topic("others", 1));
    let text = |index: i32| format!("the body of message {index}");
    for index in 0..3 {
        client.expect(response::SUCCESS, send("T", 0, text(index).as_bytes()));
    }
    let began_ms = now_ms();
    let invisible_time = 5 * SHORT_MS;
    assert_eq!(got(&client.ask(pop_with(PopMessage { invisible_time, ..header("T", 0) }))).len(), 3);
    // They leave the memory; then one bit of the first rots.
    let filler = vec![b'x'; 4 << 20];
    for _ in 0..12 {
        client.expect(response::SUCCESS, send("others", 0, &filler));
    }
    assert!(now_ms() - began_ms < invisible_time - SHORT_MS, "this machine is too slow");
    rot(&home.path().join("data/partition-00000"), text(0).as_bytes());
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(got(&client.ask(pop_with(PopMessage { poll_time: 30_000, ..header("T", 0) }))));
    }
    assert_eq!((bodies_of(&again), again[0].times), (vec![text(1).as_str(), &text(2)], 1));
    // There is nothing of it to give again: it is done with, and who looks at the log hears of it once.
    assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
    assert_eq!(server.log().matches("passed: a popped message is damaged").count(), 1);
    server.stop();
}

/// Flips one bit of a text, wherever it is in the log's files.
fn rot(partition: &Path, text: &[u8]) {
    use std::os::unix::fs::FileExt;
    let mut count = 0;
    for entry in std::fs::read_dir(partition).expect("it is there") {
        let path = entry.expect("an entry").path();
        // A broker that runs renames what it has prepared.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it can be written");
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("it can be written");
            file.sync_all().expect("it can be synced");
            count += 1;
        }
    }
    assert!(count > 0, "no file has it");
}

#[test]
fn an_account_hears_that_offsets_were_cloned_to_it() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        for index in 0..3 {
            client.expect(response::SUCCESS, send("T", 1, format!("{index}").as_bytes()));
        }
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        client.expect(response::SUCCESS, commit("g", "T", 1, 1));
        let lent = got(&client.ask(pop("T", 1)));
        assert_eq!(lent.len(), 3);
        let fields = [("srcGroup", "g"), ("destGroup", GROUP), ("topic", "T"), ("offline", "true")];
        client.expect(response::SUCCESS, asking(request::CLONE_GROUP_OFFSET, &fields));
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1));
        // What the group does from then on is written over it.
        client.expect(response::SUCCESS, ack(&lent[2]));
        wait_until_durable(&mut client);
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 1)))), ["1", "2"]);
        server.stop();
    });
}

/// A message that was popped in vain is in its retry topic, which has so many by then.
fn give_back(client: &mut Client, got: &Got, topic: &str, count: i64) {
    client.expect(response::SUCCESS, change(got, 0));
    let until_ms = now_ms() + 60_000;
    while edge(client, request::GET_MAX_OFFSET, &format!("%RETRY%{GROUP}_{topic}"), 0) < count {
        assert!(now_ms() < until_ms, "it comes again");
    }
}

#[test]
fn what_comes_again_does_not_wait_behind_a_backlog_on_another_core() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "2", &[]);
    let mut client = server.client();
    set(&mut client, "popFromRetryProbability=100");
    let partition =
        |client: &mut Client, topic: &str| messages(&client.ask(pull(topic, 0, 0)))[0].physical_offset >> 48;
    // Topics are dealt to the partitions; of this one the retry topic lies in the other one.
    let is_apart = |topic: &String| {
        client.expect(response::SUCCESS, create_topic(topic, 1));
        client.expect(response::SUCCESS, send(topic, 0, b"again"));
        let lent = got(&client.ask(pop(topic, 0)));
        give_back(&mut client, &lent[0], topic, 1);
        partition(&mut client, topic) != partition(&mut client, &format!("%RETRY%{GROUP}_{topic}"))
    };
    let topic = (0..8).map(|number| format!("T{number}")).find(is_apart).expect("some lie apart");
    for index in 0..200 {
        client.expect(response::SUCCESS, send(&topic, 0, index.to_string().as_bytes()));
    }
    for (times, queue) in [(1, -1), (2, 0), (3, -1)] {
        let one = || pop_with(PopMessage { max_msg_nums: 1, ..header(&topic, queue) });
        let seen: Vec<Got> = (0..10).map(|_| got(&client.ask(one())).remove(0)).collect();
        let again = seen.iter().find(|got| got.body == "again").expect("it is among the first");
        assert_eq!(again.times, times);
        give_back(&mut client, again, &topic, i64::from(times) + 1);
    }
    server.stop();
}

#[test]
fn a_pop_with_room_left_takes_what_comes_again_too() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &[]);
    let mut client = server.client();
    set(&mut client, "popFromRetryProbability=0");
    client.expect(response::SUCCESS, create_topic("T", 1));
    client.expect(response::SUCCESS, send("T", 0, b"again"));
    let mut lent = got(&client.ask(pop("T", 0)));
    for (times, queue) in [(1, 0), (2, -1)] {
        give_back(&mut client, &lent[0], "T", times);
        client.expect(response::SUCCESS, send("T", 0, b"new"));
        lent = got(&client.ask(pop("T", queue)));
        lent.sort_by_key(|got| got.body.clone());
        assert_eq!(bodies_of(&lent), ["again", "new"]);
        client.expect(response::SUCCESS, ack(&lent[1]));
    }
    server.stop();
}

#[test]
fn no_queue_of_a_retry_topic_starves_another() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &[]);
    let mut client = server.client();
    set(&mut client, "useSeparateRetryQueue=true\npopFromRetryProbability=100");
    client.expect(response::SUCCESS, create_topic("T", 2));
    for index in 0..25 {
        client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
    }
    client.expect(response::SUCCESS, send("T", 1, b"other"));
    for queue in [1, 0] {
        for lent in got(&client.ask(pop("T", queue))) {
            client.expect(response::SUCCESS, change(&lent, 0));
        }
    }
    let (retry, until_ms) = (format!("%RETRY%{GROUP}_T"), now_ms() + 60_000);
    for (queue, count) in [(0, 25), (1, 1)] {
        while edge(&mut client, request::GET_MAX_OFFSET, &retry, queue) < count {
            assert!(now_ms() < until_ms, "they come again");
        }
    }
    let one = || pop_with(PopMessage { max_msg_nums: 1, ..header("T", -1) });
    let seen: Vec<Got> = (0..20).map(|_| got(&client.ask(one())).remove(0)).collect();
    assert!(seen.iter().any(|got| got.body == "other"), "a pop begins at any of them");
    server.stop();
}

#[test]
fn what_is_left_of_an_orderly_loan_is_for_plain_pops_too() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 1));
        let sent = |client: &mut Client, body: &str| {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        };
        let orderly = || pop_with(PopMessage { order: true, invisible_time: 50, ..header("T", 0) });
        let mut notice = Command::request(request::NOTIFICATION);
        let asked =
            Notification { consumer_group: GROUP, topic: "T", queue_id: 0, poll_time: 30_000, ..Default::default() };
        asked.push(&mut notice.header.fields);
        ["a", "b"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["a", "b"]);
        assert!(is_told(&client.ask(notice)), "who waits hears of its end");
        sent(&mut client, "c");
        assert_eq!(messages(&client.expect(response::SUCCESS, peek(GROUP, "T", 0, 1)))[0].body, b"a");
        let lent = got(&client.ask(pop("T", 0)));
        assert_eq!(bodies_of(&lent), ["a", "b", "c"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        // Who waits for messages gets them; and so it is after a crash.
        ["d", "e"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["d", "e"]);
        let waiting = other.write(pop_with(PopMessage { poll_time: 30_000, ..header("T", -1) }));
        let lent = got(&other.answer(waiting));
        assert_eq!(bodies_of(&lent), ["d", "e"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        ["f", "g"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["f", "g"]);
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let lent = pop_all(&mut client, "T", 2);
        assert_eq!(bodies_of(&lent), ["f", "g"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        none(&mut client, orderly());
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(7));
    });
}

#[test]
fn an_orderly_message_with_another_time_is_acknowledged_in_a_batch() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b", "c", "d"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = || pop_with(PopMessage { order: true, max_msg_nums: 3, ..header("T", 0) });
        let mut lent = got(&client.ask(orderly()));
        assert_eq!(bodies_of(&lent), ["a", "b", "c"]);
        // The Java client makes the handle from the answer, and from the message's own offset.
        let answer = client.expect(response::SUCCESS, change(&lent[1], LONG_MS));
        let words = ["popTime", "invisibleTime", "reviveQid"].map(|name| field(&answer, name));
        lent[1].handle = format!("1 {} 0 broker-a 0 1", words.join(" "));
        // Of another time it means nothing.
        let stale = Got { handle: lent[1].handle.replace(words[0], "1"), ..lent[1].clone() };
        client.expect(response::SUCCESS, ack_batch(&[stale], |_| true));
        client.expect(response::SUCCESS, ack_batch(&lent, |got| got.body != "b"));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        none(&mut client, orderly());
        client.expect(response::SUCCESS, ack_batch(&lent, |got| got.body == "b"));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["d"]);
        server.stop();
    });
}

#[test]
fn it_is_told_that_a_message_cannot_come_again() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &["--set", "limits.topics=64"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let is_made = |number: &u32| client.ask(create_topic(&number.to_string(), 1)).header.code == response::SUCCESS;
    let made = (0..64).take_while(is_made).count();
    assert!((1..64).contains(&made), "there is no room for a retry topic");
    client.expect(response::SUCCESS, send("T", 0, b"a"));
    assert_eq!(bodies_of(&got(&client.ask(pop_with(PopMessage { invisible_time: 50, ..header("T", 0) })))), ["a"]);
    let told = || server.log().matches("a popped message cannot come again").count();
    let until_ms = now_ms() + 60_000;
    while told() == 0 {
        assert!(now_ms() < until_ms, "it is in the log");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "0")]));
    assert_eq!(bodies_of(&pop_all(&mut client, "T", 1)), ["a"]);
    assert_eq!(told(), 1);
    server.stop();
}

#[test]
fn a_time_that_is_over_already_is_now() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, send("T", 0, b"a"));
        let asked = |invisible_time| PopMessage { invisible_time, poll_time: 30_000, ..header("T", 0) };
        let answer = client.ask(pop_with(asked(i64::MIN)));
        assert_eq!((bodies_of(&got(&answer)), number(&answer, "invisibleTime")), (vec!["a"], 1));
        assert_eq!(got(&client.ask(pop_with(asked(0))))[0].times, 1);
        let lent = got(&client.ask(pop_with(asked(LONG_MS))));
        assert_eq!((bodies_of(&lent), lent[0].times), (vec!["a"], 2));
        let answer = client.expect(response::SUCCESS, change(&lent[0], -5_000));
        assert_eq!(number(&answer, "invisibleTime"), 0);
        let lent = got(&client.ask(pop_with(asked(LONG_MS))));
        assert_eq!((bodies_of(&lent), lent[0].times), (vec!["a"], 3));
        client.expect(response::SUCCESS, send("T", 0, b"b"));
        for invisible_time in [-1, 0, LONG_MS] {
            let lent = got(&client.ask(pop_with(PopMessage { order: true, ..asked(invisible_time) })));
            assert_eq!(bodies_of(&lent), ["b"]);
        }
        none(&mut client, pop_with(PopMessage { order: true, poll_time: 0, ..asked(1) }));
        server.stop();
    });
}

#[test]
fn an_orderly_handle_that_means_nothing_is_answered_as_by_rocketmq() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, create_topic("U", 1));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = |count, invisible_time, poll_time| {
            let asked = PopMessage { order: true, max_msg_nums: count, ..header("T", 0) };
            pop_with(PopMessage { invisible_time, poll_time, ..asked })
        };
        let old = got(&client.ask(orderly(3, 50, 0)));
        assert_eq!(bodies_of(&old), ["a", "b", "c"]);
        let new = got(&client.ask(orderly(1, LONG_MS, 30_000)));
        assert_eq!(bodies_of(&new), ["a"]);
        // Lent again, or not yet.
        let pop_ms = old[0].handle.split(' ').nth(1).unwrap();
        for got in &old {
            client.expect(response::SUCCESS, ack(got));
            let answer = client.expect(response::SUCCESS, change(got, 0));
            assert_eq!((field(&answer, "popTime"), field(&answer, "reviveQid")), (pop_ms, "999"));
        }
        client.expect(response::SUCCESS, ack(&Got { topic: "U".to_owned(), offset: 0, ..old[0].clone() }));
        client.expect(response::MESSAGE_ILLEGAL, ack(&Got { offset: 1, ..new[0].clone() }));
        none(&mut client, orderly(3, LONG_MS, 0));
        // Done with.
        client.expect(response::SUCCESS, ack(&new[0]));
        client.expect(response::SUCCESS, change(&new[0], 0));
        client.expect(response::SUCCESS, ack(&new[0]));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        assert_eq!(bodies_of(&got(&client.ask(orderly(3, LONG_MS, 0)))), ["b", "c"]);
        server.stop();
    });
}

#[test]
fn what_comes_again_is_found_also_after_the_other_form_of_its_topic_was_chosen() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "broker.pop_retry_v2=true"]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, send("T", 0, b"m"));
        let short = || pop_with(PopMessage { invisible_time: 50, poll_time: 30_000, ..header("T", -1) });
        client.expect(response::SUCCESS, short());
        let again = client.expect(response::SUCCESS, short());
        assert_eq!(handles(&again)[0].split(' ').nth(4), Some("2"), "of the second form");
        client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "enableRetryTopicV2=false"));
        for times in 2..4 {
            let answer = client.expect(response::SUCCESS, short());
            assert_eq!((messages(&answer)[0].body, messages(&answer)[0].reconsume_times), (&b"m"[..], times));
        }
        server.stop();
    });
}
