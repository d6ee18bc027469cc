//! The requests that tests make, and what they read in answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use protocol::bodies::{self, ConsumerData, HeartbeatData, MessageQueue, ProducerData, SubscriptionData};
use protocol::codes::{request, response};
use protocol::command::FLAG_ONEWAY;
use protocol::headers::{PullMessage, SendMessage};
use protocol::message::{BatchEntry, records};
use protocol::names::pull_flag;
use protocol::{Command, StoredMessage};

use crate::PATIENCE;
use crate::client::Client;

/// When a tests' message was born, in ms since 1970.
pub const BORN_MS: i64 = 1_700_000_000_000;

/// Any request without a body.
pub fn asking(code: i32, fields: &[(&str, &str)]) -> Command {
    let mut command = Command::request(code);
    command.header.fields.extend(fields.iter().copied());
    command
}

/// Any request with a body.
pub fn telling(code: i32, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Command {
    Command { body: body.into(), ..asking(code, fields) }
}

/// The same, but nobody answers it.
pub fn oneway(mut command: Command) -> Command {
    command.header.flag |= FLAG_ONEWAY;
    command
}

/// A send (310) to a queue, without properties.
pub fn send(topic: &str, queue: i32, body: &[u8]) -> Command {
    send_as(request::SEND_MESSAGE_V2, topic, queue, "", body)
}

/// A send by any of its codes, with properties.
pub fn send_as(code: i32, topic: &str, queue: i32, properties: &str, body: &[u8]) -> Command {
    let header = SendMessage {
        producer_group: "producers",
        topic,
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: queue,
        born_timestamp: BORN_MS,
        properties,
        flag: 17,
        batch: code == request::SEND_BATCH_MESSAGE,
        ..SendMessage::default()
    };
    let mut command = telling(code, &[], Bytes::copy_from_slice(body));
    header.push(code, &mut command.header.fields);
    command
}

/// A batch (320) of bodies without properties.
pub fn send_batch<B: AsRef<[u8]>>(topic: &str, queue: i32, messages: &[B]) -> Command {
    let mut body = Vec::new();
    for message in messages {
        BatchEntry { flag: 17, body: message.as_ref(), properties: "" }.encode(&mut body);
    }
    send_as(request::SEND_BATCH_MESSAGE, topic, queue, "", &body)
}

/// Property text of these pairs.
pub fn properties(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        protocol::properties::append(&mut text, name, value);
    }
    text
}

/// A pull (11) of group `consumers`, of all tags, without waiting.
pub fn pull(topic: &str, queue: i32, offset: i64) -> Command {
    pull_with(request::PULL_MESSAGE, pull_header(topic, queue, offset))
}

/// What `pull` asks, to be changed.
pub fn pull_header(topic: &str, queue: i32, offset: i64) -> PullMessage<'_> {
    PullMessage {
        consumer_group: "consumers",
        topic,
        queue_id: queue,
        queue_offset: offset,
        max_msg_nums: 32,
        sys_flag: pull_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessage::default()
    }
}

/// A pull that waits up to so many ms.
pub fn pull_waiting(topic: &str, queue: i32, offset: i64, suspend_ms: i64) -> Command {
    let mut header = pull_header(topic, queue, offset);
    header.sys_flag |= pull_flag::SUSPEND;
    header.suspend_timeout_ms = suspend_ms;
    pull_with(request::PULL_MESSAGE, header)
}

/// A pull of either code.
pub fn pull_with(code: i32, header: PullMessage<'_>) -> Command {
    let mut command = Command::request(code);
    header.push(&mut command.header.fields);
    command
}

/// A heartbeat (34) of one producer group, `producers`, and one consumer group.
pub fn heartbeat(client: &str, group: &str, topics: &[&str]) -> Command {
    let subscriptions = topics.iter().map(|topic| SubscriptionData::from_expression(topic, "*").expect("all tags"));
    let data = HeartbeatData {
        client_id: client.to_owned(),
        producer_data_set: vec![ProducerData { group_name: "producers".to_owned() }],
        consumer_data_set: vec![ConsumerData {
            group_name: group.to_owned(),
            subscription_data_set: subscriptions.collect(),
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    telling(request::HEART_BEAT, &[], bodies::encode(&data))
}

/// A heartbeat (34) of one client, `client`, of a group that subscribes to a topic.
pub fn subscribing(group: &str, subscription: SubscriptionData) -> Command {
    let consumer = ConsumerData {
        group_name: group.to_owned(),
        subscription_data_set: vec![subscription],
        ..ConsumerData::default()
    };
    let data =
        HeartbeatData { client_id: "client".to_owned(), consumer_data_set: vec![consumer], ..HeartbeatData::default() };
    telling(request::HEART_BEAT, &[], bodies::encode(&data))
}

/// A subscription to messages with these tags, and its version.
pub fn tagged(topic: &str, tags: &str, version: i64) -> SubscriptionData {
    let subscription = SubscriptionData::from_expression(topic, tags).expect("tags");
    SubscriptionData { sub_version: version, ..subscription }
}

/// A topic (17) with so many queues.
pub fn create_topic(topic: &str, queues: u32) -> Command {
    let queues = queues.to_string();
    let fields = [
        ("topic", topic),
        ("defaultTopic", "TBW102"),
        ("readQueueNums", &queues),
        ("writeQueueNums", &queues),
        ("perm", "6"),
        ("topicFilterType", "SINGLE_TAG"),
        ("order", "false"),
    ];
    asking(request::UPDATE_AND_CREATE_TOPIC, &fields)
}

/// A commit (15) of an offset.
pub fn commit(group: &str, topic: &str, queue: i32, offset: i64) -> Command {
    let (queue, offset) = (queue.to_string(), offset.to_string());
    let fields = [("consumerGroup", group), ("topic", topic), ("queueId", &queue), ("commitOffset", &offset)];
    asking(request::UPDATE_CONSUMER_OFFSET, &fields)
}

/// The committed offset (14). `None`: there is none.
pub fn committed(client: &mut Client, group: &str, topic: &str, queue: i32) -> Option<i64> {
    let queue = queue.to_string();
    let fields = [("consumerGroup", group), ("topic", topic), ("queueId", &*queue), ("setZeroIfNotFound", "false")];
    let answer = client.ask(asking(request::QUERY_CONSUMER_OFFSET, &fields));
    match answer.header.code {
        response::SUCCESS => Some(number(&answer, "offset")),
        response::QUERY_NOT_FOUND => None,
        _ => panic!("{answer:?}"),
    }
}

/// The next offset of a queue (30), or its first (31).
pub fn edge(client: &mut Client, code: i32, topic: &str, queue: i32) -> i64 {
    let answer = client.expect(response::SUCCESS, asking(code, &[("topic", topic), ("queueId", &queue.to_string())]));
    number(&answer, "offset")
}

/// A queue of the broker that tests start.
pub fn message_queue(topic: &str, queue_id: i32) -> MessageQueue {
    MessageQueue { broker_name: "broker-a".to_owned(), queue_id, topic: topic.to_owned() }
}

/// A field that must be there.
pub fn field<'a>(command: &'a Command, name: &str) -> &'a str {
    command.header.fields.get(name).unwrap_or_else(|| panic!("{name} in {command:?}"))
}

/// A field that must be a number.
pub fn number(command: &Command, name: &str) -> i64 {
    field(command, name).parse().unwrap_or_else(|error| panic!("{name} in {command:?}: {error}"))
}

/// The messages of a body, each whole by its checksum.
pub fn messages(command: &Command) -> Vec<StoredMessage<'_>> {
    records(&command.body).map(|record| record.expect("a whole record")).collect()
}

/// What the broker says of itself (28).
pub fn runtime(client: &mut Client) -> BTreeMap<String, String> {
    let answer = client.expect(response::SUCCESS, asking(request::GET_BROKER_RUNTIME_INFO, &[]));
    let table: bodies::KvTable = bodies::decode(&answer.body).expect("a table");
    table.table.into_iter().collect()
}

/// Waits until everything that was answered is on the disk, offsets too, which are written within a second.
pub fn wait_until_durable(client: &mut Client) {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let runtime = runtime(client);
        let (unwritten, unflushed) = (&runtime["ringmq_offsets_unwritten"], &runtime["remainHowManyDataToFlush"]);
        if unwritten == "0" && unflushed == "0 B" {
            return;
        }
        assert!(Instant::now() < give_up, "{unwritten} offsets and {unflushed} are not on the disk");
    }
}

/// The handles of the messages that a pop's answer has. As for the Java client, a message without one gets one made of
/// the answer's fields.
pub fn handles(answer: &Command) -> Vec<String> {
    let entries = |name| {
        let text = field(answer, name);
        let entries = text.split(';').filter(|entry| !entry.is_empty());
        let entries: Vec<Vec<String>> = entries.map(|entry| entry.split(' ').map(str::to_owned).collect()).collect();
        let keys: BTreeSet<_> = entries.iter().map(|entry| (entry[0].clone(), entry[1].clone())).collect();
        assert_eq!(keys.len(), entries.len(), "a queue twice: {text}");
        entries
    };
    let (starts, offsets) = (entries("startOffsetInfo"), entries("msgOffsetInfo"));
    let words = ["popTime", "invisibleTime", "reviveQid"].map(|name| field(answer, name));
    let one = |message: StoredMessage<'_>| {
        if let Some(handle) = message.property("POP_CK") {
            return handle.to_owned();
        }
        let queue = message.queue_id.to_string();
        let kind = if message.topic.starts_with("%RETRY%") { "1" } else { "0" };
        let of = |entry: &&Vec<String>| entry[0] == kind && entry[1] == queue;
        let start = &starts.iter().find(of).expect("the queue's start")[2];
        let known = &offsets.iter().find(of).expect("the queue's offsets")[2];
        let offset = message.queue_offset.to_string();
        assert!(known.split(',').any(|known| known == offset), "{offset} in {known}");
        format!("{start} {} {kind} broker-a {queue} {offset}", words.join(" "))
    };
    messages(answer).into_iter().map(one).collect()
}

/// All messages of a queue from an offset on, up to its end, one behind the other.
pub fn pull_all(
    client: &mut Client,
    topic: &str,
    queue: i32,
    mut offset: i64,
    mut each: impl FnMut(&StoredMessage<'_>),
) -> i64 {
    loop {
        let answer = client.ask(pull(topic, queue, offset));
        match answer.header.code {
            response::SUCCESS => {}
            response::PULL_NOT_FOUND => return offset,
            _ => panic!("{topic} {queue} at {offset}: {answer:?}"),
        }
        for message in messages(&answer) {
            assert_eq!(message.queue_offset, offset, "{topic} {queue}: a hole, or an offset twice");
            each(&message);
            offset += 1;
        }
        assert_eq!(number(&answer, "nextBeginOffset"), offset, "{topic} {queue}");
    }
}

/// The wall clock, in ms since 1970.
pub fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is behind 1970");
    i64::try_from(now.as_millis()).expect("years from now")
}
