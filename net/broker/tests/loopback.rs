//! Goal: what a client sees of the cores is RocketMQ. Method: cores with real rings and logs in a
//! temporary directory, raw frames over loopback; everything with one core and with two.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use broker::config::{Config, Found, Settings, Source};
use broker::core::{Core, CoreConfig, Report};
use broker::mail::{Mail, Mailboxes};
use broker::produce::describe;
use bytes::Bytes;
use engine::buffer::Region;
use engine::limits::LogConfig;
use engine::partition::Partition;
use engine::ring::{Ring, RingConfig};
use engine::wake::Waker;
use protocol::bodies::{
    self, ConsumerData, HeartbeatData, KvTable, LockBatch, MessageQueue, ProducerData, SubscriptionData,
};
use protocol::codes::{request, response};
use protocol::headers::{PullMessage, SendBack, SendMessage};
use protocol::message::{BatchEntry, records};
use protocol::names::{pull_flag, sys_flag};
use protocol::{Command, Frames, Serialize, StoredMessage, properties};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long a pull waits for what should come at once: less than its client.
const LONG_MS: i64 = 50_000;
/// Physical memory that the cores believe in: of 4 MiB of log a stock broker would say that it is there.
const MEMORY_BYTES: u64 = 10 << 20;

/// Cores on threads, stopped when it goes out of scope.
struct Rig {
    address: SocketAddr,
    fast: SocketAddr,
    mailboxes: Mailboxes,
    wakers: Vec<Waker>,
    reports: Receiver<Report>,
    threads: Vec<JoinHandle<()>>,
}

impl Rig {
    fn start(directory: &Path, cores: usize, set: &[(&str, &str)]) -> Rig {
        let mut config = Config::default();
        config.set("broker.message_delay_level", "1s 1s 1s 1s", Source::CommandLine).unwrap();
        for (name, value) in set {
            config.set(name, value, Source::CommandLine).unwrap();
        }
        let doors: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = doors[0].local_addr().unwrap();
        let fast = doors[1].local_addr().unwrap();
        let settings: Arc<Settings> = Arc::new(config.settings(Found {
            broker_ip1: Ipv4Addr::LOCALHOST,
            port: address.port(),
            cores,
            partitions: 3,
            memory_bytes: MEMORY_BYTES,
            disk_bytes: 1 << 40,
            started_ms: now_ms(),
        }));
        let memory = Region::new(64, 1 << 20).unwrap();
        let mut rings: Vec<Ring> = (0..cores).map(|_| Ring::new(RingConfig::default()).unwrap()).collect();
        let wakers: Vec<Waker> = rings.iter().map(Ring::waker).collect();
        let mailboxes = Mailboxes::new(cores, 1024);
        let mut doors: Vec<_> =
            doors.into_iter().enumerate().map(|(index, door)| (rings[0].adopt(door.into()), index == 1)).collect();
        let (tell, reports) = channel();
        let mut threads = Vec::new();
        for (index, mut ring) in rings.drain(..).enumerate() {
            ring.connect(wakers.clone());
            let partitions = (index..3).step_by(cores).map(|partition| {
                let directory = directory.join(partition.to_string());
                let config = LogConfig::new(directory, partition as u16, memory.clone(), describe);
                Partition::new(config).unwrap()
            });
            let tell: Sender<Report> = tell.clone();
            let config = CoreConfig {
                index,
                settings: settings.clone(),
                partitions: partitions.collect(),
                mailboxes: mailboxes.clone(),
                doors: if index == 0 { std::mem::take(&mut doors) } else { Vec::new() },
                seed: 11,
                report: Box::new(move |report| drop(tell.send(report))),
            };
            threads.push(std::thread::spawn(move || Core::new(config, ring).run(now_ms)));
        }
        let rig = Rig { address, fast, mailboxes, wakers, reports, threads };
        let (mut opened, mut topics) = (0, 0);
        while opened < cores || topics < 10 {
            match rig.reports.recv_timeout(PATIENCE).expect("the cores open") {
                Report::Opened { .. } => opened += 1,
                Report::Topics(catalog) => topics = catalog.topics_count(),
                other => panic!("{other:?}"),
            }
        }
        rig.mail(0, Mail::Serve);
        rig
    }

    fn mail(&self, core: usize, mail: Mail) {
        self.mailboxes.push(core, mail).unwrap();
        self.wakers[core].wake();
    }

    fn client(&self) -> Client {
        Client::new(self.address)
    }

    fn stop(mut self) {
        self.join();
    }

    fn join(&mut self) {
        for core in 0..self.wakers.len() {
            self.mail(core, Mail::Stop);
        }
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        self.wakers.clear();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.join();
        }
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

struct Client {
    stream: TcpStream,
    frames: Frames,
    opaque: i32,
    serialize: Serialize,
}

impl Client {
    fn new(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, frames: Frames::default(), opaque: 0, serialize: Serialize::Json }
    }

    fn write(&mut self, mut command: Command) -> i32 {
        self.opaque += 1;
        command.header.opaque = self.opaque;
        command.header.serialize = self.serialize;
        self.stream.write_all(&command.encode()).unwrap();
        self.opaque
    }

    /// The next answer; `None`: the broker has closed.
    fn read(&mut self) -> Option<Command> {
        loop {
            if let Some(frame) = self.frames.cut().unwrap() {
                let command = Command::decode(frame).unwrap();
                if command.header.is_response() {
                    return Some(command);
                }
                // A notice to all members of a group (40): nothing that these tests wait for.
                continue;
            }
            let mut buffer = [0; 65536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.frames.feed(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                // Rings of this process interrupt its other threads' waiting now and then.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn ask(&mut self, command: Command) -> Command {
        let opaque = self.write(command);
        let answer = self.read().expect("an answer");
        assert_eq!(answer.header.opaque, opaque);
        answer
    }

    fn send(&mut self, topic: &str, queue: i32, body: &[u8]) -> Command {
        self.ask(send(topic, queue, "", body))
    }

    fn pull(&mut self, topic: &str, queue: i32, offset: i64) -> Command {
        self.ask(pull(topic, queue, offset, 0))
    }

    fn heartbeat(&mut self, group: &str, topics: &[&str]) {
        let mut data = HeartbeatData { client_id: "client".to_owned(), ..HeartbeatData::default() };
        data.producer_data_set.push(ProducerData { group_name: "p".to_owned() });
        data.consumer_data_set.push(ConsumerData {
            group_name: group.to_owned(),
            subscription_data_set: topics
                .iter()
                .map(|topic| SubscriptionData::from_expression(topic, "*").unwrap())
                .collect(),
            ..ConsumerData::default()
        });
        let mut beat = Command::request(request::HEART_BEAT);
        beat.body = bodies::encode(&data).into();
        assert_eq!(self.ask(beat).header.code, response::SUCCESS);
    }
}

fn send(topic: &str, queue: i32, properties: &str, body: &[u8]) -> Command {
    send_as(request::SEND_MESSAGE_V2, topic, queue, properties, body)
}

fn send_as(code: i32, topic: &str, queue: i32, properties: &str, body: &[u8]) -> Command {
    let mut command = Command::request(code);
    let header = SendMessage {
        producer_group: "p",
        topic,
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: queue,
        born_timestamp: 1_700_000_000_000,
        properties,
        ..SendMessage::default()
    };
    header.push(code, &mut command.header.fields);
    command.body = Bytes::copy_from_slice(body);
    command
}

fn pull(topic: &str, queue: i32, offset: i64, suspend_ms: i64) -> Command {
    pull_with(topic, queue, offset, suspend_ms, "*")
}

fn pull_with(topic: &str, queue: i32, offset: i64, suspend_ms: i64, subscription: &str) -> Command {
    let mut command = Command::request(request::PULL_MESSAGE);
    let header = PullMessage {
        consumer_group: "g",
        topic,
        queue_id: queue,
        queue_offset: offset,
        max_msg_nums: 32,
        sys_flag: pull_flag::SUBSCRIPTION | if suspend_ms > 0 { pull_flag::SUSPEND } else { 0 },
        suspend_timeout_ms: suspend_ms,
        subscription: Some(subscription),
        ..PullMessage::default()
    };
    header.push(&mut command.header.fields);
    command
}

fn offsets(code: i32, fields: &[(&str, &str)]) -> Command {
    let mut command = Command::request(code);
    command.header.fields.extend(fields.iter().copied());
    command
}

fn field<'a>(command: &'a Command, name: &str) -> &'a str {
    command.header.fields.get(name).unwrap_or_else(|| panic!("{name} in {command:?}"))
}

fn messages(answer: &Command) -> Vec<StoredMessage<'_>> {
    records(&answer.body).map(Result::unwrap).collect()
}

fn with_cores(test: impl Fn(&Path, usize)) {
    for cores in [1, 2] {
        let directory = tempfile::tempdir().unwrap();
        test(directory.path(), cores);
    }
}

#[test]
fn what_is_sent_is_pulled_also_after_a_restart() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        for queue in 0..4 {
            for index in 0..3u8 {
                let answer = client.send("T", queue, &[index; 10]);
                assert_eq!(answer.header.code, 0, "{answer:?}");
                assert_eq!(field(&answer, "queueOffset"), index.to_string());
                assert_eq!(field(&answer, "queueId"), queue.to_string());
                assert_eq!(field(&answer, "msgId").len(), 32);
                assert_eq!(field(&answer, "transactionId").len(), 32);
                assert_eq!((field(&answer, "MSG_REGION"), field(&answer, "TRACE_ON")), ("DefaultRegion", "true"));
            }
        }
        rig.stop();
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        client.serialize = Serialize::RocketMq;
        for queue in 0..4 {
            let answer = client.pull("T", queue, 1);
            assert_eq!((answer.header.code, answer.header.remark.as_str()), (0, "FOUND"));
            assert_eq!(field(&answer, "nextBeginOffset"), "3");
            assert_eq!((field(&answer, "minOffset"), field(&answer, "maxOffset")), ("0", "3"));
            let found = messages(&answer);
            assert_eq!(found.len(), 2);
            assert_eq!((found[0].queue_offset, found[0].queue_id, found[0].body), (1, queue, &[1; 10][..]));
            assert_eq!((found[0].topic, found[0].born_timestamp), ("T", 1_700_000_000_000));
            for name in ["UNIQ_KEY", "CLUSTER", "MSG_REGION", "TRACE_ON"] {
                assert!(found[0].property(name).is_some(), "{name}");
            }
            let view = offsets(33, &[("offset", &found[1].physical_offset.to_string())]);
            assert_eq!(messages(&client.ask(view)), found[1..]);
        }
        assert_eq!(client.ask(offsets(33, &[("offset", "12345")])).header.code, 1);
    });
}

#[test]
fn refusals_have_rocketmqs_codes() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        assert_eq!(client.send("T", 0, b"x").header.code, 0);
        let large = vec![0; (4 << 20) + 1];
        let long = "x".repeat(20_000);
        let properties = format!("a\u{1}{long}\u{2}b\u{1}{long}\u{2}");
        let mut no_template = send("New", 0, "", b"x");
        no_template.header.fields.push("c", "Nothing");
        let mut no_queue = Command::request(310);
        no_queue.header.fields.push("b", "T");
        let cases = [
            (send("T", 99, "", b"x"), response::INVALID_PARAMETER),
            (send("bad name", 0, "", b"x"), response::INVALID_PARAMETER),
            (send("SCHEDULE_TOPIC_XXXX", 0, "", b"x"), response::NO_PERMISSION),
            (send("T", 0, "", b""), response::MESSAGE_ILLEGAL),
            (send("T", 0, "", &large), response::MESSAGE_ILLEGAL),
            (send("T", 0, &properties, b"x"), response::MESSAGE_ILLEGAL),
            (send_as(320, "T", 0, "TRAN_MSG\u{1}true\u{2}", b"x"), response::NO_PERMISSION),
            (send("T", 0, "TIMER_DELAY_MS\u{1}x\u{2}", b"x"), response::MESSAGE_ILLEGAL),
            (send("%RETRY%", 0, "", b"x"), response::SUBSCRIPTION_GROUP_NOT_EXIST),
            (send_as(320, "T", 0, "", b"nonsense"), response::MESSAGE_ILLEGAL),
            (no_template, response::TOPIC_NOT_EXIST),
            (no_queue, response::SYSTEM_ERROR),
        ];
        for (index, (command, code)) in cases.into_iter().enumerate() {
            let answer = client.ask(command);
            assert_eq!(answer.header.code, code, "case {index}: {}", answer.header.remark);
            assert_eq!(field(&answer, "MSG_REGION"), "DefaultRegion", "case {index}");
        }
        let cases = [
            (offsets(37_000, &[]), response::REQUEST_CODE_NOT_SUPPORTED),
            (offsets(11, &[]), response::SYSTEM_ERROR),
            (pull("Nowhere", 0, 0, 0), response::TOPIC_NOT_EXIST),
            (pull("T", 99, 0, 0), response::INVALID_PARAMETER),
            (pull("T", 0, 7, 0), response::PULL_OFFSET_MOVED),
            (pull("T", 0, -1, 0), response::PULL_OFFSET_MOVED),
            (pull("T", 0, 1, 0), response::PULL_NOT_FOUND),
            (pull("T", 1, 5, 0), response::PULL_OFFSET_MOVED),
            (pull("T", 1, 0, 0), response::PULL_NOT_FOUND),
            (pull_with("T", 0, 0, 0, "A"), response::PULL_RETRY_IMMEDIATELY),
            (pull_with("T", 0, 0, 0, "||"), response::SUBSCRIPTION_PARSE_FAILED),
        ];
        for (index, (command, code)) in cases.into_iter().enumerate() {
            let answer = client.ask(command);
            assert_eq!(answer.header.code, code, "case {index}: {}", answer.header.remark);
        }
        let mut unsubscribed = pull("T", 0, 0, 0);
        unsubscribed.header.fields.push("sysFlag", "0");
        assert_eq!(client.ask(unsubscribed).header.code, response::SUBSCRIPTION_NOT_EXIST);
        let mut fast = Client::new(rig.fast);
        assert_eq!(fast.send("T", 0, b"fast").header.code, 0);
        assert_eq!(fast.pull("T", 0, 0).header.code, response::REQUEST_CODE_NOT_SUPPORTED);
        // The largest message that is allowed.
        let properties = format!("a\u{1}{}\u{2}", "x".repeat(16_000));
        assert_eq!(client.ask(send("T", 0, &properties, &large[1..])).header.code, 0);
        let answer = client.pull("T", 0, 2);
        assert_eq!(messages(&answer)[0].body.len(), 4 << 20);
    });
}

#[test]
fn a_parked_pull_wakes_with_the_message_or_with_time() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let (mut producer, mut consumer) = (rig.client(), rig.client());
        assert_eq!(producer.send("T", 2, b"0").header.code, 0);
        let started = Instant::now();
        let answer = consumer.ask(pull("T", 2, 1, 300));
        let waited = started.elapsed();
        assert_eq!((answer.header.code, field(&answer, "nextBeginOffset")), (response::PULL_NOT_FOUND, "1"));
        assert!((290..LONG_MS as u128).contains(&waited.as_millis()), "{waited:?}");
        for offset in 1..20 {
            let opaque = consumer.write(pull("T", 2, offset, LONG_MS));
            if offset % 2 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(producer.send("T", 2, b"x").header.code, 0);
            let answer = consumer.read().unwrap();
            assert_eq!((answer.header.opaque, answer.header.code), (opaque, 0));
            assert_eq!(messages(&answer)[0].queue_offset, offset);
        }
        // One with a tag sleeps through the others.
        consumer.write(pull_with("T", 2, 20, LONG_MS, "B"));
        assert_eq!(producer.send("T", 2, b"x").header.code, 0);
        assert_eq!(producer.ask(send("T", 2, "TAGS\u{1}B\u{2}", b"b")).header.code, 0);
        let answer = consumer.read().unwrap();
        assert_eq!(answer.header.code, 0);
        assert_eq!(messages(&answer)[0].queue_offset, 21);
        // A connection that goes takes its pulls along; nothing else notices.
        let mut gone = rig.client();
        gone.write(pull("T", 2, 22, LONG_MS));
        drop(gone);
        assert_eq!(producer.send("T", 2, b"x").header.code, 0);
    });
}

#[test]
fn batches_oneways_and_many_at_once() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[("limits.connection_requests", "64")]);
        let mut client = rig.client();
        let mut body = Vec::new();
        for index in 0..10u8 {
            BatchEntry { flag: 0, body: &[index], properties: "TAGS\u{1}A\u{2}" }.encode(&mut body);
        }
        let mut batch = send_as(320, "T", 1, "UNIQ_KEY\u{1}U\u{2}", &body);
        batch.header.fields.push("m", "true");
        let answer = client.ask(batch);
        assert_eq!((answer.header.code, field(&answer, "queueOffset")), (0, "0"), "{}", answer.header.remark);
        assert_eq!(field(&answer, "msgId").split(',').count(), 10);
        let answer = client.pull("T", 1, 0);
        let bodies: Vec<u8> = messages(&answer).iter().map(|message| message.body[0]).collect();
        assert_eq!(bodies, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(messages(&answer)[3].properties, "TAGS\u{1}A\u{2}", "inner properties stay as they are");

        let mut oneway = send("T", 1, "", b"oneway");
        oneway.header.flag = 2;
        client.write(oneway);
        let drawn = client.send("T", -1, b"drawn");
        assert!((0..4).contains(&field(&drawn, "queueId").parse::<i32>().unwrap()));

        // 2000 requests without waiting, more than a connection may have outstanding.
        const COUNT: usize = 2000;
        let mut writer = client.stream.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            for index in 0..COUNT {
                let mut command = send("T", (index % 4) as i32, "", &[7; 1000]);
                command.header.opaque = 10_000 + index as i32;
                writer.write_all(&command.encode()).unwrap();
            }
        });
        let mut seen = vec![false; COUNT];
        for _ in 0..COUNT {
            let answer = client.read().unwrap();
            assert_eq!(answer.header.code, 0, "{}", answer.header.remark);
            let seen = &mut seen[(answer.header.opaque - 10_000) as usize];
            assert!(!std::mem::replace(seen, true));
        }
        thread.join().unwrap();
    });
}

#[test]
fn offsets_are_kept() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        assert_eq!(client.send("T", 3, b"x").header.code, 0);
        let group = |queue: &'static str| [("consumerGroup", "g"), ("topic", "T"), ("queueId", queue)];
        let commit = |offset: &'static str| {
            let mut fields = group("3").to_vec();
            fields.push(("commitOffset", offset));
            offsets(15, &fields)
        };
        assert_eq!(client.ask(commit("1")).header.code, response::SUBSCRIPTION_GROUP_NOT_EXIST);
        client.heartbeat("g", &["T"]);
        let answer = client.ask(offsets(14, &group("3")));
        assert_eq!((answer.header.code, field(&answer, "offset")), (0, "0"), "a young queue");
        assert_eq!(client.ask(offsets(14, &group("2"))).header.code, response::QUERY_NOT_FOUND);
        for offset in ["1", "7", "5"] {
            assert_eq!(client.ask(commit(offset)).header.code, 0);
            let answer = client.ask(offsets(14, &group("3")));
            assert_eq!(field(&answer, "offset"), offset);
        }
        let queue = [("topic", "T"), ("queueId", "3")];
        assert_eq!(field(&client.ask(offsets(30, &queue)), "offset"), "1");
        assert_eq!(field(&client.ask(offsets(31, &queue)), "offset"), "0");
        let earliest: u64 = field(&client.ask(offsets(32, &queue)), "timestamp").parse().unwrap();
        assert!(earliest.abs_diff(now_ms()) < 60_000);
        for (time, wanted) in [(0, "0"), (earliest, "0"), (earliest + 1, "1")] {
            let time = time.to_string();
            let fields = [queue.as_slice(), &[("timestamp", &*time)]].concat();
            assert_eq!(field(&client.ask(offsets(29, &fields)), "offset"), wanted);
        }
        rig.stop();
        let rig = Rig::start(directory, cores, &[]);
        let answer = rig.client().ask(offsets(14, &group("3")));
        assert_eq!(field(&answer, "offset"), "5", "offsets survive a restart");
    });
}

#[test]
fn a_new_group_begins_at_the_beginning_while_that_is_near() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        let ask = |client: &mut Client, zero: &[(&str, &str)]| {
            let asked = [&[("consumerGroup", "new"), ("topic", "T"), ("queueId", "3")][..], zero].concat();
            client.ask(offsets(14, &asked)).header.code
        };
        let never = [("setZeroIfNotFound", "false")];
        assert_eq!(client.send("T", 0, b"makes the topic").header.code, 0);
        assert_eq!(ask(&mut client, &[]), response::QUERY_NOT_FOUND, "nothing is there");
        for code in [0, response::QUERY_NOT_FOUND] {
            assert_eq!(client.send("T", 3, &vec![0; 3 << 20][..]).header.code, 0);
            assert_eq!(ask(&mut client, &never), response::QUERY_NOT_FOUND);
            // 3 MiB of log lie behind it, then 6.
            assert_eq!(ask(&mut client, &[]), code);
        }
    });
}

#[test]
fn a_message_sent_back_comes_again_and_then_is_dead() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        client.heartbeat("g", &["T", "%RETRY%g"]);
        assert_eq!(client.ask(send("T", 0, "TAGS\u{1}A\u{2}", b"try")).header.code, 0);
        let mut answer = client.pull("T", 0, 0);
        for times in 1..=2 {
            let offset = messages(&answer)[0].physical_offset;
            let mut back = Command::request(request::CONSUMER_SEND_MSG_BACK);
            let header = SendBack { offset, group: "g", max_reconsume_times: Some(2), ..SendBack::default() };
            header.push(&mut back.header.fields);
            let started = Instant::now();
            let done = client.ask(back);
            assert_eq!(done.header.code, 0, "{}", done.header.remark);
            answer = client.ask(pull("%RETRY%g", 0, i64::from(times - 1), LONG_MS));
            assert!(started.elapsed() > Duration::from_millis(900), "level 3 and up are 1 s here");
            let message = messages(&answer)[0];
            assert_eq!((message.body, message.reconsume_times), (&b"try"[..], times));
            assert_eq!((message.property("RETRY_TOPIC"), message.property("TAGS")), (Some("T"), Some("A")));
            assert_eq!(message.property("ORIGIN_MESSAGE_ID").map(str::len), Some(32));
            assert_eq!(message.property("REAL_TOPIC"), Some("%RETRY%g"));
            assert_eq!(message.property("DELAY"), Some(&*(2 + times).to_string()));
        }
        let offset = messages(&answer)[0].physical_offset;
        let mut back = Command::request(request::CONSUMER_SEND_MSG_BACK);
        let header = SendBack { offset, group: "g", max_reconsume_times: Some(2), ..SendBack::default() };
        header.push(&mut back.header.fields);
        assert_eq!(client.ask(back).header.code, 0);
        let answer = client.pull("%DLQ%g", 0, 0);
        assert_eq!((messages(&answer)[0].body, messages(&answer)[0].reconsume_times), (&b"try"[..], 3));

        // A client's own retry beyond its maximum is dead as well.
        let mut retry = send("%RETRY%g", 0, "", b"orderly");
        for (name, value) in [("j", "5"), ("l", "4")] {
            retry.header.fields.push(name, value);
        }
        let sent = client.ask(retry);
        assert_eq!((sent.header.code, field(&sent, "queueOffset")), (0, "1"), "{}", sent.header.remark);
        assert_eq!(messages(&client.pull("%DLQ%g", 0, 1))[0].body, b"orderly");

        let mut lost = Command::request(request::CONSUMER_SEND_MSG_BACK);
        SendBack { offset: 77, group: "g", ..SendBack::default() }.push(&mut lost.header.fields);
        assert_eq!(client.ask(lost).header.code, response::SYSTEM_ERROR);
    });
}

#[test]
fn a_retry_of_a_group_that_holds_locks_is_dead() {
    /// `false`: the lock was over before the retry was sent.
    fn run(directory: &Path, cores: usize) -> bool {
        let lock_timeout = Duration::from_secs(3);
        let rig = Rig::start(directory, cores, &[("limits.lock_timeout_ms", "3000")]);
        let mut client = rig.client();
        client.heartbeat("g", &["T", "%RETRY%g"]);
        let queue = MessageQueue { broker_name: "broker-a".to_owned(), queue_id: 0, topic: "T".to_owned() };
        let batch = LockBatch {
            client_id: "client".to_owned(),
            consumer_group: "g".to_owned(),
            mq_set: vec![queue],
            only_this_broker: false,
        };
        let change_lock = |client: &mut Client, code: i32| {
            let mut command = Command::request(code);
            command.body = bodies::encode(&batch).into();
            assert_eq!(client.ask(command).header.code, 0);
        };
        let retry = |client: &mut Client, body: &[u8]| {
            let sent = client.ask(send("%RETRY%g", 0, "DELAY\u{1}1\u{2}", body));
            assert_eq!(sent.header.code, 0, "{}", sent.header.remark);
        };
        let began = Instant::now();
        change_lock(&mut client, request::LOCK_BATCH_MQ);
        retry(&mut client, b"dead");
        if began.elapsed() >= lock_timeout {
            return false;
        }
        let answer = client.pull("%DLQ%g", 0, 0);
        assert_eq!((messages(&answer)[0].body, messages(&answer)[0].property("DELAY")), (&b"dead"[..], Some("-1")));
        change_lock(&mut client, request::UNLOCK_BATCH_MQ);
        retry(&mut client, b"unlocked");
        assert_eq!(messages(&client.ask(pull("%RETRY%g", 0, 0, LONG_MS)))[0].body, b"unlocked");
        change_lock(&mut client, request::LOCK_BATCH_MQ);
        // What is tested is that time passes; there is no event for it.
        std::thread::sleep(lock_timeout + Duration::from_millis(100));
        retry(&mut client, b"expired");
        assert_eq!(messages(&client.ask(pull("%RETRY%g", 0, 1, LONG_MS)))[0].body, b"expired");
        assert_eq!(client.pull("%DLQ%g", 0, 1).header.code, response::PULL_NOT_FOUND);
        true
    }
    with_cores(|directory, cores| {
        let is_run = (0..5).any(|round| run(&directory.join(round.to_string()), cores));
        assert!(is_run, "a lock and a retry take too long here");
    });
}

#[test]
fn a_delayed_message_is_due_later() {
    with_cores(|directory, cores| {
        let rig = Rig::start(directory, cores, &[]);
        let mut client = rig.client();
        let started = Instant::now();
        assert_eq!(client.ask(send("T", 1, "DELAY\u{1}2\u{2}KEYS\u{1}k\u{2}", b"later")).header.code, 0);
        let early = client.ask(pull("T", 1, 0, 0));
        let is_due = started.elapsed() > Duration::from_millis(900);
        assert!(early.header.code == response::PULL_NOT_FOUND || is_due, "{early:?}");
        let answer = client.ask(pull("T", 1, 0, LONG_MS));
        assert!(started.elapsed() > Duration::from_millis(900));
        let message = messages(&answer)[0];
        assert_eq!((message.body, message.queue_offset, message.queue_id), (&b"later"[..], 0, 1));
        assert_eq!(properties::get(message.properties, "DELAY"), Some("2"));
        assert_eq!((message.property("REAL_TOPIC"), message.property("REAL_QID")), (Some("T"), Some("1")));
        assert_eq!(message.sys_flag & sys_flag::TRANSACTION_MASK, 0);
    });
}

#[test]
fn strangers_and_sleepers_are_closed() {
    with_cores(|directory, cores| {
        // Where the machine stands still before it has sent its bytes, one is idle that is slow otherwise.
        let are_told_apart = |round: u32| {
            let home = directory.join(round.to_string());
            std::fs::create_dir(&home).unwrap();
            strangers_and_sleepers(&home, cores)
        };
        assert!((0..4).any(are_told_apart), "a slow frame was never seen");
    });
}

/// Returns whether the slow one was seen to be slow.
fn strangers_and_sleepers(directory: &Path, cores: usize) -> bool {
    let set = [("limits.idle_timeout_ms", "1500"), ("limits.frame_timeout_ms", "700")];
    let rig = Rig::start(directory, cores, &set);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 8], &[0, 0, 0, 9, 0, 0, 0, 9, 1, 2, 3, 4, 5]] {
        let mut client = rig.client();
        client.stream.write_all(garbage).unwrap();
        assert!(client.read().is_none(), "{garbage:?}");
    }
    let started = Instant::now();
    let (mut idle, mut slow) = (rig.client(), rig.client());
    slow.stream.write_all(&[0, 0, 1]).unwrap();
    assert!(slow.read().is_none());
    assert!(started.elapsed() > Duration::from_millis(700));
    assert!(idle.read().is_none());
    assert!(started.elapsed() > Duration::from_millis(1500));
    assert_eq!(rig.client().send("T", 0, b"alive").header.code, 0);
    // Each is counted by its reason.
    let answer = rig.client().ask(Command::request(request::GET_BROKER_RUNTIME_INFO));
    let table = bodies::decode::<KvTable>(&answer.body).unwrap().table;
    let count = |reason: &str| table[&format!("ringmq_connections_closed_{reason}")].parse::<u64>().unwrap();
    assert_eq!((count("garbage"), count("slow_reader")), (3, 0));
    let (slow, idle) = (count("slow_frame"), count("idle"));
    assert!(slow <= 1 && idle >= 1 && slow + idle >= 2, "{slow} slow, {idle} idle");
    assert!(table["ringmq_log_records"].parse::<u64>().unwrap() > 0, "the topics are in the log");
    slow == 1
}

#[test]
fn a_reader_that_never_reads_is_stopped_and_closed() {
    with_cores(|directory, cores| {
        let set = [("limits.connection_unsent_bytes", "1MiB"), ("limits.send_timeout_ms", "1000")];
        let rig = Rig::start(directory, cores, &set);
        let mut client = rig.client();
        assert_eq!(client.send("T", 0, &vec![1; 200_000]).header.code, 0);
        let greedy = rig.client();
        greedy.stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let command = pull("T", 0, 0, 0).encode();
        // Far more answers than the broker keeps for one connection: 200 KB for each 300 bytes. A write that
        // waits ends when the broker closes.
        let mut stream = greedy.stream.try_clone().unwrap();
        let writer = std::thread::spawn(move || {
            loop {
                if let Err(error) = stream.write_all(&command) {
                    return error;
                }
            }
        });
        // What is on its way between cores has a bound, too: one that is slow is busy for a moment.
        let mut served = Instant::now();
        while !writer.is_finished() {
            let answer = client.pull("T", 0, 0);
            if answer.header.code == 0 {
                served = Instant::now();
            }
            let is_busy = answer.header.code == response::SYSTEM_BUSY && served.elapsed() < PATIENCE;
            assert!(answer.header.code == 0 || is_busy, "others are served: {answer:?}");
        }
        let error = writer.join().unwrap();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
        let answer = loop {
            let answer = client.pull("T", 0, 0);
            if answer.header.code != response::SYSTEM_BUSY || served.elapsed() > PATIENCE {
                break answer;
            }
        };
        assert_eq!(answer.header.code, 0, "and still are");
    });
}
