//! Inputs to begin from, by real encoders: one for each form that there is, as short as it goes.

use std::net::SocketAddr;

use engine::format::{BLOCK_BYTES, crc32c};
use engine::inspect::Fact;
use protocol::codes::{request, response};
use protocol::headers::{PullMessage, SendMessage};
use protocol::message::{BatchEntry, MAGIC_V2};
use protocol::properties::{self as text, name};
use protocol::{Command, Header, Serialize, StoredMessage};

use crate::disk::{SEGMENT, build, log, seal};

/// Commands of all kinds: requests with and without bodies, answers, refusals.
fn commands() -> Vec<Command> {
    let mut pairs = String::new();
    for (key, value) in [(name::KEYS, "k1 k2"), (name::TAGS, "red"), (name::UNIQ_KEY, "7F00"), (name::DELAY, "3")] {
        text::append(&mut pairs, key, value);
    }
    let mut found = Vec::new();
    for code in [request::SEND_MESSAGE, request::SEND_MESSAGE_V2, request::SEND_BATCH_MESSAGE] {
        let header = SendMessage {
            producer_group: "p",
            topic: "T",
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: 1,
            born_timestamp: 1_700_000_000_000,
            properties: &pairs,
            batch: code == request::SEND_BATCH_MESSAGE,
            ..SendMessage::default()
        };
        let mut command = Command::request(code);
        header.push(code, &mut command.header.fields);
        command.body = if header.batch { entries().into() } else { b"body".as_slice().into() };
        found.push(command);
    }
    let pull = PullMessage {
        consumer_group: "c",
        topic: "T",
        queue_offset: 7,
        max_msg_nums: 32,
        subscription: Some("red || blue"),
        ..PullMessage::default()
    };
    let mut command = Command::request(request::PULL_MESSAGE);
    pull.push(&mut command.header.fields);
    found.push(command);
    let asked = Header::request(request::GET_MAX_OFFSET);
    let mut answer = Command::answer(&asked, response::SUCCESS);
    answer.header.fields.push_int("offset", 42);
    found.push(answer);
    found.push(Command::refusal(&asked, response::SYSTEM_BUSY, "später: \"busy\"\n\u{1f600}"));
    let mut oneway = Command::request(request::HEART_BEAT);
    oneway.header.flag = protocol::command::FLAG_ONEWAY;
    oneway.body = br#"{"clientID":"c","producerDataSet":[],"consumerDataSet":[]}"#.as_slice().into();
    found.push(oneway);
    found
}

fn entries() -> Vec<u8> {
    let mut body = Vec::new();
    BatchEntry { flag: 1, body: b"one", properties: "a\u{1}b\u{2}" }.encode(&mut body);
    BatchEntry { flag: 0, body: b"", properties: "" }.encode(&mut body);
    body
}

fn encoded(serialize: Serialize) -> Vec<Vec<u8>> {
    let commands = commands().into_iter().map(|mut command| {
        command.header.serialize = serialize;
        command.encode()
    });
    commands.collect()
}

/// Streams of one frame, of several, and of one that is not whole.
pub fn frames() -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    let all: Vec<Vec<u8>> = [Serialize::Json, Serialize::RocketMq].into_iter().flat_map(encoded).collect();
    found.extend(all.iter().enumerate().map(|(pieces, frame)| [&[pieces as u8 * 9], &**frame].concat()));
    found.push([&[0], &*all.concat()].concat());
    found.push([&[200], &*all[0], &all[1][..all[1].len() - 1]].concat());
    found
}

fn headers(serialize: Serialize) -> Vec<Vec<u8>> {
    let cut = |frame: Vec<u8>| {
        let (_, header, _) = protocol::frame::split(&frame).expect("what we write is a frame");
        frame[header].to_vec()
    };
    encoded(serialize).into_iter().map(cut).collect()
}

/// JSON headers, also in the forms that other clients write.
pub fn headers_json() -> Vec<Vec<u8>> {
    let mut found = headers(Serialize::Json);
    let others: [&[u8]; 6] = [
        br#"{ "code" : 310 , "extFields" : { "a" : "p", "b":"\u0054\ud83d\ude00" }, "flag":0, "language":"GO","opaque":-1 }"#,
        br#"{"code":11,"extFields":null,"remark":null,"version":317}"#,
        br#"{"code":"34","opaque":"7","extFields":{"n":5,"t":true,"f":1.5}}"#,
        br#"{"code":0,"extFields":{"\u0001":"\\\"\/\b\f\n\r\t"},"more":[{"a":[1,2,{"b":null}]}]}"#,
        b"{}",
        br#"{"code":1,"code":2,"extFields":{"a":"1","a":"2"}}"#,
    ];
    found.extend(others.map(<[u8]>::to_vec));
    found
}

/// Binary headers.
pub fn headers_binary() -> Vec<Vec<u8>> {
    headers(Serialize::RocketMq)
}

/// Stored messages of both versions and with both kinds of hosts; a batch's body.
pub fn messages() -> Vec<Vec<u8>> {
    let v4: SocketAddr = ([127, 0, 0, 1], 10911).into();
    let v6: SocketAddr = ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9876).into();
    let long = "t".repeat(200);
    let mut found = vec![entries()];
    for (born_host, store_host, topic) in [(v4, v4, "T"), (v6, v4, "T"), (v4, v6, ""), (v6, v6, &*long)] {
        let message = StoredMessage {
            queue_id: 3,
            flag: 17,
            queue_offset: 5,
            physical_offset: 4096,
            sys_flag: 0,
            born_timestamp: 1_700_000_000_000,
            born_host,
            store_timestamp: 1_700_000_000_001,
            store_host,
            reconsume_times: 1,
            prepared_transaction_offset: 0,
            body: b"body",
            topic,
            properties: "KEYS\u{1}k1 k2\u{2}TAGS\u{1}red\u{2}UNIQ_KEY\u{1}U\u{2}",
        };
        let mut bytes = vec![0; message.encoded_len()];
        message.encode(&mut bytes);
        found.push(bytes);
    }
    // A short topic in the long form, which we never write.
    let mut odd = found[1].clone();
    odd.splice(88 + 4..88 + 4, [0]);
    odd[4..8].copy_from_slice(&MAGIC_V2.to_be_bytes());
    let total = odd.len() as u32;
    odd[..4].copy_from_slice(&total.to_be_bytes());
    found.push(odd);
    found.push([&*found[1], &*found[2]].concat());
    found
}

/// Property texts, each behind a name.
pub fn properties() -> Vec<Vec<u8>> {
    let table = [
        ("KEYS", "KEYS\u{1}a b\u{2}TAGS\u{1}t\u{2}"),
        ("a", "a\u{1}1\u{2}b\u{1}2\u{2}a\u{1}3"),
        ("a", "\u{1}x\u{2}a\u{2}a\u{1}\u{2}\u{2}b\u{1}c\u{1}d\u{2}"),
        ("ä", "ä\u{1}ö\u{2}"),
        ("none", ""),
    ];
    table.iter().map(|(name, text)| [&[name.len() as u8], name.as_bytes(), text.as_bytes()].concat()).collect()
}

/// Expressions of every form, each before properties.
pub fn expressions() -> Vec<Vec<u8>> {
    let text = "a\u{1}5\u{2}b\u{1}xyz\u{2}c\u{1}1.5\u{2}";
    let table = [
        "a = 5 AND b <> 'x''y' OR NOT (c > 1.5E0)",
        "a BETWEEN -1 AND 10L and c not between .5 and 1.",
        "b IN ('x', 'xyz') OR b NOT IN ('y')",
        "b CONTAINS 'y' AND b STARTSWITH 'x' AND b NOT ENDSWITH 'a'",
        "d IS NULL AND a IS NOT NULL /* here */ -- and\n AND TRUE = FALSE",
        "a = 'x",
        "((a > b) = (b <= c)) <> TRUE",
    ];
    table.iter().map(|expression| [expression.as_bytes(), &[0], text.as_bytes()].concat()).collect()
}

/// Batches with and without records, and one with facts.
pub fn batches() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for sizes in [&[][..], &[0], &[5, 9, 1], &[40; 6]] {
        let mut bytes = build(sizes, 1);
        seal(&mut bytes, BLOCK_BYTES, 7, 0, 1);
        found.push(bytes);
    }
    // Two entries: one that is set, one that is deleted.
    let facts = [&[0, 1, 0, 0, 0, 1][..], b"kv", &[0, 1, 0xff, 0xff, 0xff, 0xff], b"k"].concat();
    assert_eq!(engine::inspect::facts(&facts).last(), Some(Fact::Put(b"k", engine::inspect::Change::Delete)));
    let mut bytes = build(&[0, 0, facts.len()], 1);
    let at = bytes.len() - facts.len();
    bytes[at..].copy_from_slice(&facts);
    let record = at - engine::format::RECORD_HEADER_BYTES;
    bytes[record + 4..record + 8].copy_from_slice(&crc32c::crc32c(&facts).to_be_bytes());
    seal(&mut bytes, BLOCK_BYTES, 7, 0, 1);
    found.push(bytes);
    found
}

/// Harms of all kinds, at places that matter.
pub fn recoveries() -> Vec<Vec<u8>> {
    let mut found = vec![vec![]];
    let harm = |kind: u8, byte: u64, value: u8| {
        let at = ((byte % SEGMENT) as u16).to_be_bytes();
        vec![kind, (byte / SEGMENT) as u8, at[0], at[1], value]
    };
    let batches = &log().batches;
    for index in [0, 1, 12, batches.len() - 2, batches.len() - 1] {
        let (base, bytes) = &batches[index];
        for within in [0, 26, 62, 70, bytes.len() as u64 - 1] {
            found.push(harm(1, base + within, 3));
        }
        found.push(harm(7, *base, 0));
    }
    for file in 0..log().files.len() as u64 {
        for kind in 2..7 {
            found.push(harm(kind, file * SEGMENT + 5000, 0));
        }
        found.push(harm(1, file * SEGMENT + 20, 1));
    }
    found.push([harm(2, batches[3].0, 0), harm(1, batches[20].0 + 80, 1), harm(0, batches[30].0, 0)].concat());
    found
}
