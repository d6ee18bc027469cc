//! Goal: whatever comes from the network gets a clear answer or a closed connection; never a panic, never
//! memory that grows, never a message lost or a good client kept waiting. Method: raw bytes to the real binary;
//! after each abuse an ordinary send and pull, and a look at the log (`Server` fails on a panic in it).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use protocol::bodies::{self, KvTable};
use protocol::codes::{request, response};
use protocol::message::BatchEntry;
use protocol::{Command, Serialize};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::client::Client;
use tests::random::{Random, seed};
use tests::server::Server;
use tests::words::{
    asking, create_topic, edge, heartbeat, messages, number, properties, pull, pull_header, pull_waiting, pull_with,
    send, send_as, send_batch, telling,
};
use tests::{PATIENCE, in_time, with_cores};

/// The largest body (RocketMQ's maxMessageSize).
const BODY_BYTES_MAX: usize = 4 << 20;

/// An ordinary client, who must not notice anything.
fn is_served(address: SocketAddr) {
    is_served_or(address, &[]);
}

/// The same, but it may be told one of these a few times.
fn is_served_or(address: SocketAddr, codes: &[i32]) {
    let mut client = Client::connect(address);
    let mut ask = |command: Command| {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let answer = client.ask(command.clone());
            if !codes.contains(&answer.header.code) || Instant::now() >= give_up {
                assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
                return answer;
            }
        }
    };
    let sent = ask(send("ordinary", 0, b"ordinary"));
    let found = ask(pull("ordinary", 0, number(&sent, "queueOffset")));
    assert_eq!(messages(&found)[0].body, b"ordinary");
}

/// How many connections the broker has closed for a reason.
fn closed(client: &mut Client, reason: &str) -> u64 {
    let answer = client.expect(response::SUCCESS, asking(request::GET_BROKER_RUNTIME_INFO, &[]));
    let runtime: KvTable = bodies::decode(&answer.body).unwrap();
    runtime.table[&format!("ringmq_connections_closed_{reason}")].parse().unwrap()
}

/// A frame with this prefix and header, and no body.
fn frame(length: Option<i32>, mark: u32, header: &[u8]) -> Vec<u8> {
    let length = length.unwrap_or(4 + header.len() as i32);
    [&length.to_be_bytes()[..], &mark.to_be_bytes(), header].concat()
}

/// A frame around any JSON header.
fn json(header: &[u8]) -> Vec<u8> {
    frame(None, header.len() as u32, header)
}

/// A frame around any binary header.
fn binary(header: &[u8]) -> Vec<u8> {
    frame(None, 1 << 24 | header.len() as u32, header)
}

/// Writes bytes; the server must close without an answer. `Err`: it answered, or took no notice.
fn is_closed(address: SocketAddr, bytes: &[u8]) -> Result<(), String> {
    let mut client = Client::connect(address);
    // It may close before it has everything.
    let _ = client.stream.write_all(bytes);
    match client.try_read() {
        Ok(None) => Ok(()),
        Ok(Some(answer)) => Err(format!("answered {answer:?}")),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn what_is_no_frame_closes_the_connection() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let deep = [&b"{\"extFields\":"[..], &b"[".repeat(100_000)].concat();
        let nested = [b"{\"a\":".repeat(50_000), b"}".repeat(50_000)].concat();
        let mut cases: Vec<(&str, Vec<u8>)> = vec![
            ("length 0", frame(Some(0), 0, b"")),
            ("length 3", frame(Some(3), 0, b"")),
            ("length -1", frame(Some(-1), 0, b"")),
            ("the smallest length", frame(Some(i32::MIN), 0, b"")),
            ("the largest length", frame(Some(i32::MAX), 0, b"")),
            ("over 16 MiB", frame(Some((16 << 20) - 3), 0, b"")),
            ("a header beyond the frame", frame(Some(10), 7, b"{}{}{}")),
            ("the longest header", frame(Some(10), 0xff_ffff, b"{}{}{}")),
            ("another serialization", frame(None, 7 << 24 | 2, b"{}")),
            ("TLS", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 512]].concat()),
            ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
            ("deep brackets", json(&deep)),
            ("deep braces", json(&nested)),
            ("not UTF-8", json(b"{\"code\":10,\"remark\":\"\xff\xfe\"}")),
        ];
        for header in [
            "",
            "{",
            "[]",
            "nul",
            "{}x",
            "{\"code\":}",
            "{\"code\":1,}",
            "{\"code\" 1}",
            "{'code':1}",
            "{\"code\":\"ten\"}",
            "{\"code\":[1]}",
            "{\"code\":1e99}",
            "{\"code\":99999999999}",
            "{\"opaque\":{}}",
            "{\"flag\":true}",
            "{\"extFields\":[]}",
            "{\"extFields\":7}",
            "{\"extFields\":{\"a\":{}}}",
            "{\"extFields\":{\"a\":[\"b\"]}}",
            "{\"extFields\":{\"a\"}}",
            "{\"remark\":\"\\x\"}",
            "{\"remark\":\"",
            "\u{0}",
        ] {
            cases.push((header, json(header.as_bytes())));
        }
        // | code 2 | language 1 | version 2 | opaque 4 | flag 4 | remark | fields |
        let head = [0, 10, 0, 1, 0xdf, 0, 0, 0, 1, 0, 0, 0, 0];
        for (name, rest) in [
            ("nothing", &[][..]),
            ("half a length", &[0, 0]),
            ("a remark beyond the end", &[0, 0, 0, 9]),
            ("a negative remark", &[0xff, 0xff, 0xff, 0xff]),
            ("fields beyond the end", &[0, 0, 0, 0, 0, 0, 0, 9]),
            ("negative fields", &[0, 0, 0, 0, 0x80, 0, 0, 0]),
            ("a name beyond its end", &[0, 0, 0, 0, 0, 0, 0, 4, 0, 9, b'a', b'b']),
            ("a negative name", &[0, 0, 0, 0, 0, 0, 0, 4, 0xff, 0xff, b'a', b'b']),
            ("a value beyond its end", &[0, 0, 0, 0, 0, 0, 0, 8, 0, 1, b'a', 0, 0, 0, 9, b'b']),
            ("a negative value", &[0, 0, 0, 0, 0, 0, 0, 8, 0, 1, b'a', 0xff, 0xff, 0xff, 0xff, b'b']),
            ("a field that is not UTF-8", &[0, 0, 0, 0, 0, 0, 0, 8, 0, 1, b'a', 0, 0, 0, 1, 0xff]),
        ] {
            cases.push((name, binary(&[&head[..], rest].concat())));
        }
        for address in [server.address, server.fast(), server.namesrv] {
            let kept: Vec<_> = cases
                .iter()
                .filter_map(|(name, bytes)| is_closed(address, bytes).err().map(|why| format!("{name}: {why}")))
                .collect();
            assert!(kept.is_empty(), "{address}: {kept:#?}");
        }
        let counted = closed(&mut server.client(), "garbage");
        assert_eq!(counted, 2 * cases.len() as u64, "each has its reason; the NameServer counts for itself");
        is_served(server.address);
        server.stop();
    });
}

#[test]
fn random_bytes_harm_nobody() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "2", &[]);
    let seed = seed();
    println!("SEED={seed}");
    // A topic that a damaged request made could have no queues.
    is_served(server.address);
    let mut random = Random::new(seed);
    let good = send("ordinary", 0, b"damaged").encode();
    for _ in 0..if tests::is_soak() { 20_000 } else { 600 } {
        let mut bytes;
        match random.below(3) {
            // Noise.
            0 => {
                bytes = vec![0; 1 + random.below(4_096) as usize];
                random.fill(&mut bytes);
            }
            // Noise in a frame.
            1 => {
                let mut header = vec![0; random.below(500) as usize];
                random.fill(&mut header);
                let mark = (random.below(2) << 24) as u32 | header.len() as u32;
                bytes = frame(None, mark, &header);
            }
            // A good request with a few bits of its header flipped.
            _ => {
                bytes = good.clone();
                for _ in 0..1 + random.below(4) {
                    let at = random.below(bytes.len() as u64 - 8) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
            }
        }
        let address = [server.address, server.fast(), server.namesrv][random.below(3) as usize];
        let mut stream = TcpStream::connect(address).unwrap();
        // It may close on the way.
        let _ = stream.write_all(&bytes);
        if random.below(4) == 0 {
            stream.shutdown(std::net::Shutdown::Write).ok();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let ended = stream.read_to_end(&mut Vec::new());
            assert!(!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "it neither answers nor closes");
        }
    }
    is_served(server.address);
    server.stop();
}

#[test]
fn whoever_is_closed_takes_nobody_along() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let address = server.address;
        let noise: Vec<_> = (0..3)
            .map(|_| {
                std::thread::spawn(move || {
                    for _ in 0..if tests::is_soak() { 50_000 } else { 3_000 } {
                        // Closed by both sides at about the same time.
                        let mut stream = TcpStream::connect(address).unwrap();
                        let _ = stream.write_all(&[0xff; 64]);
                    }
                })
            })
            .collect();
        // These get the numbers of sockets that were just closed.
        while noise.iter().any(|thread| !thread.is_finished()) {
            is_served(address);
        }
        noise.into_iter().for_each(|thread| thread.join().unwrap());
        server.stop();
    });
}

#[test]
fn wrong_and_missing_fields_are_named() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut client = server.client().speaking(serialize);
            client.expect(response::SUCCESS, create_topic("T", 2));
            let good: [Command; 6] = [
                send("T", 0, b"x"),
                send_as(request::SEND_MESSAGE, "T", 0, "", b"x"),
                pull("T", 0, 0),
                tests::words::commit("g", "T", 0, 1),
                asking(request::GET_MAX_OFFSET, &[("topic", "T"), ("queueId", "0")]),
                asking(request::CONSUMER_SEND_MSG_BACK, &[("offset", "1"), ("group", "g"), ("delayLevel", "0")]),
            ];
            // What may be left out, and what any text is good for.
            let free = ["i", "properties", "j", "reconsumeTimes", "k", "unitMode", "l", "m", "batch", "subscription"];
            for command in good {
                for (name, value) in command.header.fields.iter().filter(|(name, _)| !free.contains(name)) {
                    let mut without = command.clone();
                    without.header.fields.clear();
                    without.header.fields.extend(command.header.fields.iter().filter(|(other, _)| *other != name));
                    let answer = client.expect(response::SYSTEM_ERROR, without.clone());
                    assert!(answer.header.remark.contains('<'), "{name}: {}", answer.header.remark);
                    if value.parse::<i64>().is_ok() {
                        for wrong in ["", "x", "0x1", "1.5", "99999999999999999999", " 1"] {
                            let mut bad = without.clone();
                            bad.header.fields.push(name, wrong);
                            let answer = client.expect(response::SYSTEM_ERROR, bad);
                            assert!(answer.header.remark.contains('<'), "{name}={wrong}: {}", answer.header.remark);
                        }
                    }
                }
            }
            for body in [&b""[..], b"{", b"[]", b"null", b"\xff", b"{\"clientID\":7}", &b"[".repeat(100_000)] {
                for code in [request::HEART_BEAT, request::LOCK_BATCH_MQ, request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP]
                {
                    let answer = client.ask(telling(code, &[], body.to_vec()));
                    assert_ne!(answer.header.code, response::SUCCESS, "{code} with {body:?}");
                }
            }
        }
        is_served(server.address);
    });
}

#[test]
fn queues_and_names_that_do_not_exist() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        for queue in [2, 3, 65_536, i32::MAX] {
            client.expect(response::INVALID_PARAMETER, send("T", queue, b"x"));
            client.expect(response::INVALID_PARAMETER, send_batch("T", queue, &["x"]));
            client.expect(response::INVALID_PARAMETER, pull("T", queue, 0));
        }
        client.expect(response::INVALID_PARAMETER, pull("T", -1, 0));
        // The broker chooses a queue then.
        for queue in [-1, i32::MIN] {
            let answer = client.expect(response::SUCCESS, send("T", queue, b"x"));
            assert!((0..2).contains(&number(&answer, "queueId")));
        }
        client.expect(response::TOPIC_NOT_EXIST, pull("missing", 0, 0));
        for topic in ["", " ", "a b", "a/b", "ü", "a.b", "a\u{0}b", &"x".repeat(128), &"%RETRY%".repeat(40)] {
            let answer = client.ask(send(topic, 0, b"x"));
            assert_eq!(answer.header.code, response::INVALID_PARAMETER, "{topic}: {answer:?}");
        }
        for topic in ["SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC", "OFFSET_MOVED_EVENT"] {
            client.expect(response::NO_PERMISSION, send(topic, 0, b"x"));
        }
        // Groups with such names never come to be, whoever asks.
        for group in ["", "a b", "ü", &"g".repeat(121)] {
            client.ask(heartbeat("c", group, &["T"]));
            let list = asking(request::GET_CONSUMER_LIST_BY_GROUP, &[("consumerGroup", group)]);
            client.expect(response::SYSTEM_ERROR, list);
        }
        client.expect(response::SYSTEM_ERROR, heartbeat("", "g", &["T"]));
        is_served(server.address);
    });
}

#[test]
fn messages_have_a_size() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        let mut body = vec![0; BODY_BYTES_MAX];
        Random::new(7).fill(&mut body);
        let text = properties(&[("own", &"p".repeat(16 << 10))]);
        for code in [request::SEND_MESSAGE_V2, request::SEND_MESSAGE] {
            client.insist(send_as(code, "T", 0, &text, &body));
        }
        let mut batch = Vec::new();
        BatchEntry { flag: 0, body: &body[..BODY_BYTES_MAX - 22 - text.len()], properties: &text }.encode(&mut batch);
        assert_eq!(batch.len(), BODY_BYTES_MAX);
        client.insist(send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", &batch));
        for offset in 0..3 {
            let answer = client.expect(response::SUCCESS, pull("T", 0, offset));
            let found = messages(&answer);
            let wanted = if offset < 2 { &body[..] } else { &body[..BODY_BYTES_MAX - 22 - text.len()] };
            assert!(found.len() == 1 && found[0].body == wanted, "one is always given, whole");
            assert_eq!(found[0].property("own").map(str::len), Some(16 << 10));
        }
        // One byte more is not taken, and nothing of it is stored.
        body.push(0);
        batch.push(0);
        let long = properties(&[("own", &"p".repeat(32 << 10))]);
        let mut long_batch = batch[..batch.len() - 1].to_vec();
        long_batch[3] ^= 1;
        for command in [
            send("T", 0, &body),
            send_as(request::SEND_MESSAGE, "T", 0, "", &body),
            send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", &batch),
            send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", &long_batch),
            send_as(request::SEND_MESSAGE_V2, "T", 0, &long, b"x"),
            send("T", 0, b""),
            send_batch("T", 0, &[""]),
            send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", b""),
            send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", b"\0\0\0\x04"),
            send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", &[0xff; 40]),
            send_batch("%RETRY%g", 0, &["x"]),
        ] {
            let code = client.ask_again(command).header.code;
            assert_eq!(code, response::MESSAGE_ILLEGAL);
        }
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 3);
        // Many small ones grow when they are stored, and still come as a whole or not at all.
        let tiny = vec![[7]; 30_000];
        let answer = client.ask_again(send_batch("T", 1, &tiny));
        let stored = edge(&mut client, request::GET_MAX_OFFSET, "T", 1);
        match answer.header.code {
            response::SUCCESS => assert_eq!(stored, tiny.len() as i64),
            code => assert_eq!((code, stored), (response::MESSAGE_ILLEGAL, 0)),
        }
        is_served(server.address);
        server.stop();
    });
}

#[test]
fn who_never_reads_costs_a_bounded_memory_and_goes() {
    let home = tempfile::tempdir().unwrap();
    let more = ["--set", "limits.connection_unsent_bytes=2MiB", "--set", "limits.send_timeout_ms=2000"];
    let server = Server::with_cores(home.path(), "2", &more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 4));
    for queue in 0..4 {
        for _ in 0..40 {
            client.expect(response::SUCCESS, send("T", queue, &[1; 60_000]));
        }
    }
    let before = server.resident_bytes();
    // Each asks for much more than anybody has.
    let mut deaf: Vec<Client> = (0..16).map(|_| server.client()).collect();
    for (index, client) in deaf.iter_mut().enumerate() {
        client.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let ask = pull_with(request::PULL_MESSAGE, pull_header("T", index as i32 % 4, 0));
        // It fails once the server has stopped reading, and all buffers between are full.
        let asked = (0..200_000).try_for_each(|_| client.try_write(ask.clone()).map(drop));
        assert!(asked.is_err(), "it reads on and on");
    }
    let began = Instant::now();
    // What they asked for is under way in the cores, and has bounds.
    let codes = [response::FLOW_CONTROL, response::SYSTEM_BUSY];
    (0..50).for_each(|_| is_served_or(server.address, &codes));
    let most = server.resident_bytes();
    // Their answers, what the kernel's buffers do not hold, and some for everybody else.
    let bound = before + deaf.len() as u64 * (4 << 20) + (64 << 20);
    assert!(most < bound, "{} MiB before, {} MiB with the deaf", before >> 20, most >> 20);
    println!("{} MiB before, {} MiB with the deaf; 50 others took {:?}", before >> 20, most >> 20, began.elapsed());
    // They are closed in the end, while they still do not read.
    let began = Instant::now();
    while closed(&mut client, "slow_reader") < deaf.len() as u64 {
        assert!(began.elapsed() < PATIENCE, "{} of them are closed", closed(&mut client, "slow_reader"));
    }
    deaf.iter_mut().for_each(Client::expect_close);
    is_served(server.address);
    server.stop();
}

#[test]
fn who_waits_a_thousand_times_for_one_message_is_told_to_slow_down() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "2", &["--set", "limits.connection_unsent_bytes=8MiB"]);
    let mut producer = server.client();
    producer.expect(response::SUCCESS, create_topic("T", 1));
    let before = server.resident_bytes();
    // On both cores; one of them has the queue.
    let mut waiting: Vec<Client> = (0..4).map(|_| server.client()).collect();
    for client in &mut waiting {
        (0..1_000).for_each(|_| assert!(client.write(pull_waiting("T", 0, 0, 30_000)) > 0));
        // Answered behind them: they all wait now.
        edge(client, request::GET_MAX_OFFSET, "T", 0);
    }
    producer.expect(response::SUCCESS, send("T", 0, &vec![7; BODY_BYTES_MAX]));
    is_served(server.address);
    let most = server.resident_bytes();
    println!("{} MiB before, {} MiB with 4,000 times 4 MiB wanted", before >> 20, most >> 20);
    assert!(most < before + (256 << 20), "{} MiB before, {} MiB then", before >> 20, most >> 20);
    let mut given = 0;
    for client in &mut waiting {
        for _ in 0..1_000 {
            let answer = client.read();
            assert!(matches!(answer.header.code, response::SUCCESS | response::FLOW_CONTROL), "{:?}", answer.header);
            given += usize::from(answer.header.code == response::SUCCESS);
        }
        assert_eq!(messages(&client.expect(response::SUCCESS, pull("T", 0, 0))).len(), 1);
    }
    assert!((1..2_000).contains(&given), "{given} of 4,000 were given it at once");
    server.stop();
}

#[test]
fn who_sends_a_byte_at_a_time_is_served_in_time_or_closed() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "2", &[]);
    // In time.
    let mut client = server.client();
    let command = send("T", 0, b"piecemeal").encode();
    for byte in &command {
        client.stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(client.read().header.code, response::SUCCESS);
    // Two frames at once, and half of a third.
    let twice = [&command[..], &command, &command[..20]].concat();
    client.stream.write_all(&twice).unwrap();
    assert_eq!((client.read().header.code, client.read().header.code), (response::SUCCESS, response::SUCCESS));
    client.stream.write_all(&command[20..]).unwrap();
    assert_eq!(client.read().header.code, response::SUCCESS);
    server.stop();
    // Not in time, although a byte comes now and then.
    let server = Server::with_cores(home.path(), "2", &["--set", "limits.frame_timeout_ms=1500"]);
    let mut client = server.client();
    let began = Instant::now();
    let mut bytes = command.iter().cycle();
    client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let closed = loop {
        assert!(began.elapsed() < PATIENCE, "a frame takes for ever");
        if client.stream.write_all(&[*bytes.next().unwrap()]).is_err() {
            break true;
        }
        match client.stream.read(&mut [0; 16]) {
            Ok(0) => break true,
            Ok(_) => break false,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break true,
        }
    };
    assert!(closed && began.elapsed() >= Duration::from_millis(1_400), "closed: {closed}, {:?}", began.elapsed());
    is_served(server.address);
    server.stop();
}

#[test]
fn who_says_nothing_is_closed_in_the_end() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "2", &["--set", "limits.idle_timeout_ms=1500"]);
    let mut parked = server.client();
    parked.expect(response::SUCCESS, create_topic("T", 1));
    let began = Instant::now();
    let mut silent: Vec<Client> = (0..4).map(|_| server.client()).collect();
    silent.iter_mut().for_each(Client::expect_close);
    assert!(began.elapsed() >= Duration::from_millis(1_400), "{:?}", began.elapsed());
    await_service(&server, send("T", 0, b"x"));
    server.stop();
}

/// Waits until a new connection is not closed but answered.
fn await_service(server: &Server, command: Command) {
    let began = Instant::now();
    loop {
        let mut client = server.client();
        if client.try_write(command.clone()).is_ok() && client.try_read().is_ok_and(|answer| answer.is_some()) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "nobody is served any more");
    }
}

/// Raises this process's files. Returns how many connections it may have beside a server's own.
fn connections_possible() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).expect("the hard limit is allowed");
    let files = limit.maximum.unwrap_or(u64::MAX).saturating_sub(2_000);
    // Other tests run in this process.
    usize::try_from(files).unwrap_or(usize::MAX).min(10_000)
}

#[test]
fn thousands_of_connections_that_do_nothing() {
    let count = connections_possible();
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "2", &[]);
    is_served(server.address);
    let before = server.resident_bytes();
    let idle: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    // Behind them in the queue: they are all taken.
    is_served(server.address);
    let after = server.resident_bytes();
    println!("{count} connections: {} KiB before, {} KiB with them", before >> 10, after >> 10);
    assert!(after.saturating_sub(before) < count as u64 * (8 << 10), "{before} bytes before, {after} with them");
    for stream in idle.iter().step_by((count / 16).max(1)) {
        stream.set_nonblocking(true).unwrap();
        let error = stream.peek(&mut [0]).expect_err("it is open, and silent");
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    }
    drop(idle);
    is_served(server.address);
    server.stop();
}

#[test]
fn one_connection_too_many_is_closed_and_no_other_one() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with_cores(home.path(), "1", &["--set", "limits.connections=16"]);
    let mut clients: Vec<Client> = (0..16).map(|_| server.client()).collect();
    for client in &mut clients {
        client.expect(response::SUCCESS, send("T", 0, b"x"));
    }
    server.client().expect_close();
    clients[3].expect(response::SUCCESS, send("T", 0, b"x"));
    drop(clients);
    // There is room again as soon as it has heard of the closes.
    await_service(&server, send("T", 0, b"x"));
    server.stop();
}

#[test]
fn a_stop_does_not_wait_for_those_who_are_there() {
    // Nobody of them would go within a minute; a stop waits for the disk.
    let times_ms = [4_000, 10_000, 30_000];
    let test = |home: &Path, cores: &str, time_ms: i64| {
        let server = Server::with_cores(home, cores, &["--set", &format!("process.stop_timeout_ms={time_ms}")]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        (0..40).for_each(|_| drop(client.expect(response::SUCCESS, send("T", 1, &[1; 60_000]))));
        let mut parked: Vec<Client> = (0..50).map(|_| server.client()).collect();
        for client in &mut parked {
            client.write(pull_waiting("T", 0, 0, 60_000));
        }
        let half: Vec<Client> = (0..50).map(|_| server.client()).collect();
        for mut client in half.iter().map(|client| &client.stream) {
            client.write_all(&send("T", 2, b"half").encode()[..30]).unwrap();
        }
        let mut deaf: Vec<Client> = (0..4).map(|_| server.client()).collect();
        for client in &mut deaf {
            for _ in 0..20 {
                client.write(pull("T", 1, 0));
            }
        }
        let idle: Vec<Client> = (0..200).map(|_| server.client()).collect();
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        let is_stopped = server.try_stop_within(Duration::from_millis(time_ms as u64 + 1_000)).is_ok();
        drop((parked, half, deaf, idle));
        let server = Server::with_cores(home, cores, &[]);
        assert_eq!(edge(&mut server.client(), request::GET_MAX_OFFSET, "T", 1), 40);
        assert_eq!(edge(&mut server.client(), request::GET_MAX_OFFSET, "T", 2), 0);
        is_stopped
    };
    with_cores(|home, cores| in_time(home, times_ms, |home, time_ms| test(home, cores, time_ms)));
}
