//! Goal: pop consumption is RocketMQ's on the wire: what is popped comes to nobody else until it is acknowledged or its
//! time is over, and nothing is lost. Method: as in wire.rs; crashes are `kill -9`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::bodies::{
    self, Assignments, BatchAck, BatchAcks, BitSet, QueryAssignment, RequestMode, RequestModes, SetRequestMode,
};
use protocol::codes::{request, response};
use protocol::headers::{AckMessage, ChangeInvisibleTime, Notification, PeekMessage, PopMessage};
use protocol::{Command, StoredMessage};
use tests::client::Client;
use tests::server::Server;
use tests::words::{
    asking, commit, committed, create_topic, edge, field, handles, heartbeat, messages, now_ms, number, properties,
    pull, send, send_as, telling, wait_until_durable,
};
use tests::{await_that, in_time, with_cores};

mod again;
mod damage;
mod kills;
mod lending;
mod order;
mod priority;

const GROUP: &str = "poppers";
/// Longer than any test takes.
const LONG_MS: i64 = 600_000;

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

/// How many pops of a queue wait; of all together: -1.
fn polling(client: &mut Client, queue: &str) -> i64 {
    let asked = asking(request::POLLING_INFO, &[("consumerGroup", GROUP), ("topic", "T"), ("queueId", queue)]);
    number(&client.expect(response::SUCCESS, asked), "pollingNum")
}

/// Waits until so many do.
fn await_polling(client: &mut Client, count: i64) {
    await_that(&format!("{count} pops wait"), || polling(client, "-1") == count);
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

/// A setting (25) while the broker runs.
fn set(client: &mut Client, line: &str) {
    client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], line.as_bytes().to_vec()));
}

fn peek(group: &str, topic: &str, queue: i32, count: i32) -> Command {
    let mut command = Command::request(request::PEEK_MESSAGE);
    PeekMessage { consumer_group: group, topic, queue_id: queue, max_msg_nums: count }.push(&mut command.header.fields);
    command
}

/// A message that was popped in vain is in its retry topic, which has so many by then.
fn give_back(client: &mut Client, got: &Got, topic: &str, count: i64) {
    client.expect(response::SUCCESS, change(got, 0));
    let retry = format!("%RETRY%{GROUP}_{topic}");
    await_that("it comes again", || edge(client, request::GET_MAX_OFFSET, &retry, 0) >= count);
}
