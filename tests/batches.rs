//! Goal: a batch for a topic of `queue.type=BatchCQ` is one message that takes as many queue offsets, given whole and
//! once, and the offsets have no hole, also across `kill -9`. Method: raw frames to the real binary, with one core and
//! with two.

use protocol::codes::{request, response};
use protocol::message::{BatchEntries, BatchEntry};
use protocol::names::sys_flag;
use protocol::{Command, StoredMessage};
use tests::client::Client;
use tests::server::{Server, ringmq};
use tests::with_cores;
use tests::words::{
    asking, create_topic, edge, field, heartbeat, messages, number, properties, pull, pull_header, pull_with, send,
    send_as,
};

const INNER: i32 = sys_flag::NEED_UNWRAP | sys_flag::INNER_BATCH;

/// A batch with a unique id of its own, as stock clients send it.
fn batch(queue: i32, unique: &str, bodies: &[String], more: &[(&str, &str)]) -> Command {
    let mut entries = Vec::new();
    for body in bodies {
        BatchEntry { flag: 5, body: body.as_bytes(), properties: &properties(&[("KEYS", body)]) }.encode(&mut entries);
    }
    let own = [("UNIQ_KEY", unique), ("WAIT", "true")];
    send_as(request::SEND_BATCH_MESSAGE, "T", queue, &properties(&[&own[..], more].concat()), &entries)
}

fn bodies(unique: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{unique}-{number}")).collect()
}

/// What a consumer makes of a message: each one's offset and body.
fn unwrapped(message: &StoredMessage<'_>) -> Vec<(i64, String)> {
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
    if message.sys_flag & INNER != INNER {
        return vec![(message.queue_offset, text(message.body))];
    }
    let entries: Vec<_> = BatchEntries::new(message.body).map(|entry| entry.expect("a whole entry")).collect();
    assert_eq!(message.property("INNER_NUM"), Some(&*entries.len().to_string()));
    assert_eq!(message.property("INNER_BASE"), Some(&*message.queue_offset.to_string()));
    entries.iter().zip(message.queue_offset..).map(|(entry, offset)| (offset, text(entry.body))).collect()
}

/// A pull of at most so many: what came, and where to go on.
fn pulled(client: &mut Client, queue: i32, offset: i64, most: i32) -> (Vec<(i64, String)>, i64) {
    let mut header = pull_header("T", queue, offset);
    header.max_msg_nums = most;
    let answer = client.expect(response::SUCCESS, pull_with(request::PULL_MESSAGE, header));
    (messages(&answer).iter().flat_map(unwrapped).collect(), number(&answer, "nextBeginOffset"))
}

#[test]
fn a_batch_is_one_message_of_many_offsets() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let mut topic = create_topic("T", 4);
        topic.header.fields.push("attributes", "+queue.type=BatchCQ");
        client.expect(response::SUCCESS, topic);
        client.expect(response::SUCCESS, heartbeat("c", "consumers", &["T"]));
        let mut wanted: Vec<Vec<(i64, String)>> = vec![Vec::new(); 4];
        let queues: Vec<i32> = (0..4).collect();
        for &queue in &queues {
            let wanted = &mut wanted[queue as usize];
            assert_eq!(edge(&mut client, request::GET_MIN_OFFSET, "T", queue), -1, "as a stock broker's");
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", queue), 0);
            for (unique, count) in [("one", 3), ("two", 5), ("three", 1)] {
                let unique = format!("{unique}{queue}");
                let bodies = bodies(&unique, count);
                let answer = client.expect(response::SUCCESS, batch(queue, &unique, &bodies, &[]));
                assert_eq!(number(&answer, "queueOffset"), wanted.len() as i64);
                assert_eq!((field(&answer, "batchUniqId"), field(&answer, "transactionId")), (&*unique, &*unique));
                assert!(!field(&answer, "msgId").contains(','), "one message, one id");
                wanted.extend((wanted.len() as i64..).zip(bodies));
            }
            client.expect(response::SUCCESS, send("T", queue, b"alone"));
            wanted.push((9, "alone".to_owned()));
            // Without an id of its own a batch is taken apart, as ever.
            let mut entries = Vec::new();
            for body in [b"x", b"y"] {
                BatchEntry { flag: 5, body, properties: "" }.encode(&mut entries);
            }
            let split = send_as(request::SEND_BATCH_MESSAGE, "T", queue, "", &entries);
            assert_eq!(field(&client.expect(response::SUCCESS, split), "msgId").split(',').count(), 2);
            wanted.extend([(10, "x".to_owned()), (11, "y".to_owned())]);
        }
        let look = |client: &mut Client| {
            for &queue in &queues {
                let wanted = &wanted[queue as usize];
                assert_eq!(edge(client, request::GET_MIN_OFFSET, "T", queue), 0);
                assert_eq!(edge(client, request::GET_MAX_OFFSET, "T", queue), 12);
                assert_eq!(pulled(client, queue, 0, 32), (wanted.clone(), 12));
                // In the middle of a batch: the whole of it. It counts from there on.
                assert_eq!(pulled(client, queue, 4, 32), (wanted[3..].to_vec(), 12));
                assert_eq!(pulled(client, queue, 4, 4), (wanted[3..8].to_vec(), 8));
                assert_eq!(pulled(client, queue, 8, 2), (wanted[8..10].to_vec(), 10));
                // As many as are wanted; at least one message.
                assert_eq!(pulled(client, queue, 0, 8), (wanted[..8].to_vec(), 8));
                assert_eq!(pulled(client, queue, 0, 7), (wanted[..3].to_vec(), 3));
                assert_eq!(pulled(client, queue, 0, 1), (wanted[..3].to_vec(), 3));
                assert_eq!(pulled(client, queue, 2, 1), (wanted[..3].to_vec(), 3));
                client.expect(response::PULL_NOT_FOUND, pull("T", queue, 12));
            }
        };
        look(&mut client);
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, heartbeat("c", "consumers", &["T"]));
        look(&mut client);
        let answer = client.expect(response::SUCCESS, batch(0, "last", &bodies("last", 2), &[]));
        assert_eq!(number(&answer, "queueOffset"), 12);
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 14);
        server.stop();
        let told = ringmq(&["log", "check", home.join("data").to_str().unwrap()]).output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    });
}

#[test]
fn what_cannot_be_a_batch_is_refused() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let mut topic = create_topic("T", 1);
        topic.header.fields.push("attributes", "+queue.type=BatchCQ");
        client.expect(response::SUCCESS, topic);
        client.expect(response::SUCCESS, create_topic("plain", 1));
        client.expect(response::SUCCESS, heartbeat("c", "consumers", &["T"]));
        for late in [("DELAY", "3"), ("TIMER_DELAY_MS", "1000")] {
            client.expect(response::MESSAGE_ILLEGAL, batch(0, "late", &bodies("late", 2), &[late]));
        }
        let many = bodies("", 32_768);
        client.expect(response::MESSAGE_ILLEGAL, batch(0, "many", &many, &[]));
        // Batches are made here, of batches.
        for topic in ["T", "plain"] {
            let claims = properties(&[("INNER_NUM", "3")]);
            client.expect(response::MESSAGE_ILLEGAL, send_as(request::SEND_MESSAGE_V2, topic, 0, &claims, b"x"));
            let mut flagged = send(topic, 0, b"x");
            flagged.header.fields.push_int("f", sys_flag::INNER_BATCH);
            client.expect(response::MESSAGE_ILLEGAL, flagged);
        }
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 0, "nothing was stored");
        let most = bodies("", 32_767);
        let answer = client.expect(response::SUCCESS, batch(0, "most", &most, &[]));
        assert_eq!(number(&answer, "queueOffset"), 0);
        let (found, next) = pulled(&mut client, 0, 30_000, 1);
        assert_eq!((found.len(), next), (32_767, 32_767));
        let position = messages(&client.ask(pull("T", 0, 0)))[0].physical_offset.to_string();
        let back = [("offset", &*position), ("group", "consumers"), ("delayLevel", "0"), ("originTopic", "T")];
        let answer = client.expect(response::SYSTEM_ERROR, asking(request::CONSUMER_SEND_MSG_BACK, &back));
        assert!(answer.header.remark.starts_with("MESSAGE_ILLEGAL"), "{answer:?}");
        let pop = [
            ("consumerGroup", "consumers"),
            ("topic", "T"),
            ("queueId", "-1"),
            ("maxMsgNums", "8"),
            ("invisibleTime", "60000"),
            ("pollTime", "0"),
            ("bornTime", "0"),
            ("initMode", "0"),
        ];
        let answer = client.expect(response::NO_PERMISSION, asking(request::POP_MESSAGE, &pop));
        assert!(answer.header.remark.contains("BatchCQ"), "{answer:?}");
        server.stop();
    });
}

#[test]
fn a_batch_has_no_delay() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::start(home.path(), &["--cores", "1"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let bodies = bodies("U", 3);
    client.expect(response::MESSAGE_ILLEGAL, batch(0, "U", &bodies, &[("DELAY", "3")]));
    assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 0);
    client.expect(response::SUCCESS, batch(0, "U", &bodies, &[("DELAY", "0")]));
    assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 3);
    server.stop();
}
