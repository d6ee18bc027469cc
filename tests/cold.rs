//! Goal: a group that reads more than its share from disk waits, and nobody else does. Method: raw frames to the real
//! binary, started again so that what was sent is no longer in memory; with one core and with two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use protocol::Command;
use protocol::bodies::{self, ColdFlow, ConsumeType, ConsumerData, HeartbeatData, SubscriptionData};
use protocol::codes::{request, response};
use protocol::headers::PullMessage;
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{asking, create_topic, messages, pull_header, pull_with, send, telling, wait_until_durable};

/// Messages of each queue, and their bodies' bytes: a pull gives 32 KiB.
const MESSAGES: i64 = 64;
const BODY_BYTES: usize = 1_024;

fn member(client: &mut Client, group: &str, consume_type: ConsumeType) {
    let data = HeartbeatData {
        client_id: group.to_owned(),
        consumer_data_set: vec![ConsumerData {
            group_name: group.to_owned(),
            consume_type,
            subscription_data_set: vec![SubscriptionData::from_expression("T", "*").expect("all tags")],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    client.expect(response::SUCCESS, telling(request::HEART_BEAT, &[], bodies::encode(&data)));
}

fn pull_of(group: &str, queue: i32, offset: i64) -> Command {
    let header = PullMessage { consumer_group: group, ..pull_header("T", queue, offset) };
    pull_with(request::PULL_MESSAGE, header)
}

fn set(client: &mut Client, lines: &str) {
    client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], lines.to_owned()));
}

/// Pulls until the answer has this code: an interval is over in between, or the group is over its share.
fn pull_until(client: &mut Client, group: &str, queue: i32, code: i32) {
    let began = Instant::now();
    loop {
        let answer = client.ask(pull_of(group, queue, 0));
        match answer.header.code {
            response::SUCCESS => assert_eq!(messages(&answer).len(), 32),
            response::SYSTEM_BUSY => assert!(answer.header.remark.contains("reading cold data"), "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
        if answer.header.code == code {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it goes on as it is: {answer:?}");
    }
}

fn told(client: &mut Client) -> ColdFlow {
    let answer = client.expect(response::SUCCESS, asking(request::GET_COLD_DATA_FLOW_CTR_INFO, &[]));
    bodies::decode(&answer.body).expect("what 2003 tells")
}

#[test]
fn a_group_that_reads_too_much_from_disk_waits() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        for number in 0..2 * MESSAGES {
            client.expect(response::SUCCESS, send("T", number as i32 % 2, &[b'x'; BODY_BYTES]));
        }
        wait_until_durable(&mut client);
        server.stop();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        member(&mut client, "g", ConsumeType::ConsumePassively);
        let mut other = server.client();
        member(&mut other, "h", ConsumeType::ConsumePassively);
        // It is off: nothing is counted.
        for _ in 0..20 {
            client.expect(response::SUCCESS, pull_of("g", 0, 0));
        }
        set(&mut client, "cgColdReadThreshold=50000\nglobalColdReadThreshold=10000000");
        assert!(told(&mut client).runtime_table.is_empty());
        set(&mut client, "coldDataFlowControlEnable=true");
        for queue in 0..2 {
            pull_until(&mut client, "g", queue, response::SYSTEM_BUSY);
            // New messages are given, and old ones to others.
            client.expect(response::SUCCESS, send("T", queue, b"new"));
            let answer = client.expect(response::SUCCESS, pull_of("g", queue, MESSAGES));
            assert_eq!(messages(&answer)[0].body, b"new");
            other.expect(response::SUCCESS, pull_of("h", queue, 0));
            // The next interval has another share.
            pull_until(&mut client, "g", queue, response::SUCCESS);
        }
        let all = told(&mut client);
        assert!(all.runtime_table.contains_key("g") && all.runtime_table.contains_key("h"), "{all:?}");
        assert!(all.runtime_table["g"].create_time_mills > 0 && all.config_table.is_empty(), "{all:?}");
        assert_eq!((all.cg_cold_read_threshold, all.global_cold_read_threshold), (50_000, 10_000_000));
        // A share of its own.
        for wrong in ["g=", "g=many", "a b=1", "g=-1"] {
            client.expect(response::INVALID_PARAMETER, telling(request::UPDATE_COLD_DATA_FLOW_CTR_CONFIG, &[], wrong));
        }
        client.expect(response::SUCCESS, telling(request::UPDATE_COLD_DATA_FLOW_CTR_CONFIG, &[], "g=100000000\n"));
        assert_eq!(told(&mut client).config_table["g"], 100_000_000);
        pull_until(&mut client, "g", 0, response::SUCCESS);
        for _ in 0..20 {
            client.expect(response::SUCCESS, pull_of("g", 0, 0));
        }
        client.expect(response::SUCCESS, telling(request::REMOVE_COLD_DATA_FLOW_CTR_CONFIG, &[], "g"));
        assert!(told(&mut client).config_table.is_empty());
        pull_until(&mut client, "g", 0, response::SYSTEM_BUSY);
        // An application that pulls is not refused: it waits, and gets one message if it is still too much.
        member(&mut client, "g", ConsumeType::ConsumeActively);
        loop {
            let began = Instant::now();
            let answer = client.expect(response::SUCCESS, pull_of("g", 0, 0));
            let count = messages(&answer).len();
            if began.elapsed() >= Duration::from_millis(2_900) {
                assert!(count == 1 || count == 32, "{count}");
                break;
            }
            assert_eq!(count, 32, "it was not held");
        }
        // All together.
        member(&mut client, "g", ConsumeType::ConsumePassively);
        client.expect(
            response::SUCCESS,
            telling(request::UPDATE_COLD_DATA_FLOW_CTR_CONFIG, &[], "g=100000000\nh=100000000"),
        );
        set(&mut client, "globalColdReadThreshold=1");
        pull_until(&mut client, "g", 0, response::SYSTEM_BUSY);
        pull_until(&mut other, "h", 1, response::SYSTEM_BUSY);
        set(&mut client, "coldDataFlowControlEnable=false");
        for _ in 0..20 {
            client.expect(response::SUCCESS, pull_of("g", 0, 0));
        }
        server.stop();
    });
}

/// What the log may read in a second, what there is, what is read of that at least, and the most of that that is not
/// waited for: one read.
const LIMIT_BYTES_PER_S: u64 = 1 << 20;
const OLD_BYTES: u64 = 8 << 20;
const LEAST_BYTES: u64 = 2 << 20;
const READ_BYTES: u64 = 256 << 10;
/// New messages meanwhile, but no more once they have taken half of the time that the old ones take.
const NEW: i64 = 10;
const ENOUGH: Duration = Duration::from_secs(OLD_BYTES / LIMIT_BYTES_PER_S / 2);

#[test]
fn old_messages_are_read_no_faster_than_the_limit_and_producers_do_not_wait_for_them() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let limit = ["--set", "log.read_bytes_per_s=1MiB"];
    let server = Server::with_cores(home.path(), "1", &limit);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 2));
    let body = vec![b'x'; 16 << 10];
    let count = (OLD_BYTES / body.len() as u64) as i64;
    for _ in 0..count / 32 {
        let answers = client.ask_all((0..32).map(|_| send("T", 0, &body)));
        assert!(answers.iter().all(|answer| answer.header.code == response::SUCCESS), "{answers:?}");
    }
    wait_until_durable(&mut client);
    server.stop();
    let server = Server::with_cores(home.path(), "1", &limit);
    let (mut reader, mut producer) = (server.client(), server.client());
    let (is_read, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (began, mut offset) = (Instant::now(), 0);
            let bytes = |offset: i64| offset as u64 * body.len() as u64;
            while offset < count && (bytes(offset) < LEAST_BYTES || !is_over.load(Ordering::SeqCst)) {
                let answer = reader.expect(response::SUCCESS, pull_of("g", 0, offset));
                offset += messages(&answer).len() as i64;
            }
            is_read.store(offset == count, Ordering::SeqCst);
            let bytes = bytes(offset);
            let least = Duration::from_secs(1).mul_f64((bytes - READ_BYTES) as f64 / LIMIT_BYTES_PER_S as f64);
            let took = began.elapsed();
            // A clock of milliseconds, and the reader's own.
            assert!(took + Duration::from_millis(50) >= least, "{bytes} bytes took {took:?}, at least {least:?}");
        });
        // What is new goes in and out meanwhile, also behind reads that wait for the limit.
        let began = Instant::now();
        for offset in (0..NEW).take_while(|offset| *offset == 0 || began.elapsed() < ENOUGH) {
            producer.expect(response::SUCCESS, send("T", 1, b"new"));
            let answer = producer.expect(response::SUCCESS, pull_of("h", 1, offset));
            assert_eq!(messages(&answer).len(), 1);
        }
        is_over.store(true, Ordering::SeqCst);
        assert!(!is_read.load(Ordering::SeqCst), "all old messages took less time than a few new ones");
    });
    server.stop();
}
