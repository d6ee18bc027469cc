//! Goal: of a topic with cleanup.policy=COMPACTION the newest message of each key is there once it is answered, whatever became
//! of its log; what cannot stay is refused. Method: raw frames to the real binary, with one core and with two; crashes are
//! `kill -9`, and logs so small that retention takes them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use protocol::Command;
use protocol::codes::{request, response};
use protocol::message::BatchEntry;
use protocol::properties::name;
use tests::PATIENCE;
use tests::client::Client;
use tests::random::Random;
use tests::server::Server;
use tests::with_cores;
use tests::words::{
    asking, create_topic, edge, field, messages, number, properties, pull, runtime, send, send_as, wait_until_durable,
};

/// More keys than this are written, however soon retention takes what it should.
const KEYS: usize = 100;
/// Messages go as soon as they may.
const SOON: [&str; 2] = ["--set", "log.compaction_interval_ms=1000"];

fn create_compacted(topic: &str, queues: u32, more: &str) -> Command {
    let mut command = create_topic(topic, queues);
    command.header.fields.push("attributes", &format!("+cleanup.policy=COMPACTION{more}"));
    command
}

fn keyed(topic: &str, queue: i32, key: &str, body: &[u8]) -> Command {
    send_as(request::SEND_MESSAGE_V2, topic, queue, &properties(&[(name::KEYS, key)]), body)
}

/// Keys and bodies of a queue from its beginning on, by offset.
fn read(client: &mut Client, topic: &str, queue: i32) -> BTreeMap<i64, (String, Vec<u8>)> {
    let (mut found, mut offset) = (BTreeMap::new(), 0);
    loop {
        let answer = client.ask(pull(topic, queue, offset));
        if answer.header.code == response::PULL_NOT_FOUND {
            return found;
        }
        assert_eq!(answer.header.code, response::SUCCESS, "{topic} {queue} at {offset}: {}", answer.header.remark);
        for message in messages(&answer) {
            assert!(message.queue_offset >= offset, "{topic} {queue}: an offset twice");
            let key = message.property(name::KEYS).unwrap_or_default().to_owned();
            found.insert(message.queue_offset, (key, message.body.to_vec()));
        }
        offset = number(&answer, "nextBeginOffset");
    }
}

/// Asks until a queue has these offsets.
fn wait_for(client: &mut Client, topic: &str, queue: i32, offsets: &[i64]) {
    let started = Instant::now();
    loop {
        let found: Vec<i64> = read(client, topic, queue).into_keys().collect();
        if found == offsets {
            return;
        }
        assert!(started.elapsed() < PATIENCE, "there is {found:?}, not {offsets:?}");
    }
}

#[test]
fn the_newest_message_of_each_key_stays_where_it_was() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &SOON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_compacted("C", 3, ""));
        client.expect(response::SUCCESS, create_topic("Plain", 3));
        for queue in 0..3 {
            for (key, body) in [("a", "1"), ("b", "2"), ("a", "3"), ("a b", "4"), ("c", "5"), ("b", "6"), ("a", "7")] {
                for topic in ["C", "Plain"] {
                    client.expect(response::SUCCESS, keyed(topic, queue, key, body.as_bytes()));
                }
            }
        }
        for queue in 0..3 {
            wait_for(&mut client, "C", queue, &[3, 4, 5, 6]);
            assert_eq!(read(&mut client, "Plain", queue).len(), 7);
            assert_eq!(edge(&mut client, request::GET_MIN_OFFSET, "C", queue), 3);
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "C", queue), 7);
        }
        let answer = client.ask(pull("C", 1, 0));
        assert_eq!((field(&answer, "minOffset"), field(&answer, "maxOffset")), ("3", "7"));
        let fields = [("topic", "C"), ("queueId", "1"), ("timestamp", "0")];
        let answer = client.expect(response::SUCCESS, asking(request::SEARCH_OFFSET_BY_TIMESTAMP, &fields));
        assert_eq!(number(&answer, "offset"), 3);
        // A process later they are the same, and go on.
        wait_until_durable(&mut client);
        server.kill();
        let server = Server::with_cores(home, cores, &SOON);
        let mut client = server.client();
        for queue in 0..3 {
            let found: Vec<_> = read(&mut client, "C", queue).into_values().collect();
            let pair = |key: &str, body: &str| (key.to_owned(), body.as_bytes().to_vec());
            assert_eq!(found, [pair("a b", "4"), pair("c", "5"), pair("b", "6"), pair("a", "7")]);
            client.expect(response::SUCCESS, keyed("C", queue, "c", b"8"));
            // One without a body ends its key.
            client.expect(response::SUCCESS, keyed("C", queue, "b", b""));
            client.expect(response::MESSAGE_ILLEGAL, keyed("Plain", queue, "b", b""));
        }
        for queue in 0..3 {
            wait_for(&mut client, "C", queue, &[3, 6, 7]);
        }
        // A topic of the same name is another one.
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "C")]));
        client.expect(response::SUCCESS, create_compacted("C", 3, ""));
        assert!(read(&mut client, "C", 0).is_empty());
        client.expect(response::SUCCESS, keyed("C", 0, "a", b"9"));
        assert_eq!(read(&mut client, "C", 0).len(), 1);
        server.stop();
    });
}

#[test]
fn how_long_messages_stay_may_change_at_run_time() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "1", &[]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_compacted("C", 1, ""));
    for body in ["1", "2"] {
        client.expect(response::SUCCESS, keyed("C", 0, "a", body.as_bytes()));
    }
    let mut command = Command::request(request::UPDATE_BROKER_CONFIG);
    command.body = "compactionScheduleInternal=1000\n".into();
    assert_eq!(read(&mut client, "C", 0).len(), 2, "a quarter of an hour");
    client.expect(response::SUCCESS, command);
    wait_for(&mut client, "C", 0, &[1]);
    server.stop();
}

#[test]
fn what_cannot_stay_is_refused() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &SOON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_compacted("C", 2, ""));
        let refuse = |client: &mut Client, command: Command, code: i32, words: &str| {
            let answer = client.ask(command);
            assert_eq!(answer.header.code, code, "{}", answer.header.remark);
            assert!(answer.header.remark.contains(words), "{}", answer.header.remark);
        };
        let no_key = "Required message key is missing";
        refuse(&mut client, send("C", 0, b"x"), response::MESSAGE_ILLEGAL, no_key);
        refuse(&mut client, keyed("C", 0, " ", b"x"), response::MESSAGE_ILLEGAL, no_key);
        let long = vec![b'x'; 1 << 20];
        refuse(&mut client, keyed("C", 0, "k", &long), response::MESSAGE_ILLEGAL, "of the compacted topic C at most");
        client.expect(response::SUCCESS, keyed("C", 0, "k", &long[..1_000_000]));
        // Of a batch, all or none.
        let batch = |keys: [&str; 2]| {
            let mut body = Vec::new();
            for key in keys {
                let properties = if key.is_empty() { String::new() } else { properties(&[(name::KEYS, key)]) };
                BatchEntry { flag: 0, body: b"b", properties: &properties }.encode(&mut body);
            }
            send_as(request::SEND_BATCH_MESSAGE, "C", 1, "", &body)
        };
        refuse(&mut client, batch(["k", ""]), response::MESSAGE_ILLEGAL, no_key);
        client.expect(response::SUCCESS, batch(["k", "l"]));
        wait_for(&mut client, "C", 1, &[0, 1]);
        refuse(&mut client, send_as(request::SEND_BATCH_MESSAGE, "C", 1, "", b""), response::MESSAGE_ILLEGAL, "body");
        // None waits: there has to be room when it comes.
        for (name, value) in [("DELAY", "1"), ("TIMER_DELAY_MS", "100"), ("TRAN_MSG", "true")] {
            let pairs = properties(&[(name::KEYS, "k"), ("PGROUP", "p"), (name, value)]);
            let command = send_as(request::SEND_MESSAGE_V2, "C", 1, &pairs, b"late");
            refuse(&mut client, command, response::MESSAGE_ILLEGAL, "stored at once");
        }
        // What is lent must be there when it comes again.
        let fields = [
            ("consumerGroup", "g"),
            ("topic", "C"),
            ("queueId", "0"),
            ("maxMsgNums", "1"),
            ("invisibleTime", "60000"),
            ("pollTime", "0"),
            ("bornTime", "0"),
            ("initMode", "0"),
        ];
        refuse(&mut client, asking(request::POP_MESSAGE, &fields), response::NO_PERMISSION, "COMPACTION");
        // Of topics, too.
        refuse(&mut client, create_compacted("D", 1, ",+queue.type=BatchCQ"), response::INVALID_PARAMETER, "exclude");
        refuse(&mut client, create_compacted("C", 1, ""), response::SYSTEM_ERROR, "unchangeable");
        for topic in ["%RETRY%g", "%DLQ%g"] {
            refuse(&mut client, create_compacted(topic, 1, ""), response::INVALID_PARAMETER, "compacted");
        }
        server.stop();
    });
}

/// A small log, of which retention takes what is older than the newest 32 MiB.
fn small(home: &Path, cores: &str, age: &str) -> Server {
    let more = ["--set", "log.retention_bytes=32MiB", "--set", "log.segment_bytes=16MiB", "--set", age];
    Server::with_cores(home, cores, &more)
}

#[test]
fn what_stays_outlives_its_log_and_kills() {
    with_cores(|home, cores| {
        let mut random = Random::new(7);
        let mut newest: BTreeMap<(i32, u32), Vec<u8>> = BTreeMap::new();
        for life in 0..3 {
            // In every other life nothing is compacted but what retention wants.
            let age = if life % 2 == 0 { SOON[1] } else { "log.compaction_interval_ms=604800000" };
            let server = small(home, cores, age);
            let mut client = server.client();
            if life == 0 {
                client.expect(response::SUCCESS, create_compacted("C", 4, ""));
                client.expect(response::SUCCESS, create_topic("Plain", 4));
            }
            let check = |client: &mut Client, newest: &BTreeMap<(i32, u32), Vec<u8>>| {
                let mut found = BTreeMap::new();
                for queue in 0..4 {
                    for (key, body) in read(client, "C", queue).into_values() {
                        found.insert((queue, key.parse().unwrap()), body);
                    }
                }
                for (key, body) in newest {
                    assert_eq!(found.get(key), Some(body), "life {life}, {key:?}");
                }
                assert_eq!(found.len(), newest.len());
            };
            check(&mut client, &newest);
            let first = |client: &mut Client| -> Vec<i64> {
                (0..4).map(|queue| edge(client, request::GET_MIN_OFFSET, "Plain", queue)).collect()
            };
            let before = first(&mut client);
            let started = Instant::now();
            let mut count = 0;
            // Until each log has lost what it had at the beginning, and there are keys enough.
            let has_lost = |client: &mut Client| first(client).iter().zip(&before).all(|(now, before)| now > before);
            while !has_lost(&mut client) || newest.len() <= KEYS {
                assert!(started.elapsed() < PATIENCE * 3, "retention takes nothing: {:?}", runtime(&mut client));
                for queue in 0..4 {
                    if count % 4 == 0 {
                        let key = random.below(200) as u32;
                        let body = format!("{life} {count} {}", "x".repeat(random.below(2_000) as usize)).into_bytes();
                        client.insist(keyed("C", queue, &key.to_string(), &body));
                        newest.insert((queue, key), body);
                    }
                    let answer = client.ask(send("Plain", queue, &vec![b'p'; 200_000]));
                    // Its next segment may be on its way.
                    assert!(matches!(answer.header.code, response::SUCCESS | response::SYSTEM_BUSY), "{answer:?}");
                }
                count += 1;
            }
            check(&mut client, &newest);
            server.kill();
        }
        let server = small(home, cores, SOON[1]);
        let mut client = server.client();
        let found: usize = (0..4).map(|queue| read(&mut client, "C", queue).len()).sum();
        assert!(found >= newest.len(), "{found} of {}", newest.len());
        server.stop();
    });
}
