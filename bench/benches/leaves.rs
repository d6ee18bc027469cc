//! The leaves of the hot path, each alone: what one message costs before the kernel sees it.
//! Run: `cargo bench -p bench`. On the machine at hand, with nothing else running.

use bench::inside::Still;
use bench::options::{Job, Load};
use bench::requests::Cursor;
use bench::{quiet, store};
use broker::mail::{Mail, Mailboxes};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::buffer::Region;
use engine::format::crc32c;
use engine::format::{BATCH_HEADER_BYTES, Batch, BatchHeader, Kind, QueueKey, RECORD_HEADER_BYTES, RecordHeader};
use engine::message::{Draft, Stamp};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use protocol::codes::request;
use protocol::headers::SendMessage;
use protocol::message::{self, StoredMessage};
use protocol::sql::Expression;
use protocol::{Header, Serialize, frame};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const BODY: [u8; 1024] = [b'x'; 1024];
const PROPERTIES: &str = "UNIQ_KEY\u{1}7F00000100002A9F0000000000000001\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}";

fn request_frame() -> Vec<u8> {
    let mut header = Header::request(request::SEND_MESSAGE_V2);
    SendMessage {
        producer_group: "bench",
        topic: "RingMQBench",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        born_timestamp: 1_700_000_000_000,
        properties: PROPERTIES,
        ..SendMessage::default()
    }
    .push(request::SEND_MESSAGE_V2, &mut header.fields);
    let mut out = Vec::new();
    header.encode_frame(&mut out, BODY.len());
    out.extend_from_slice(&BODY);
    out
}

fn stored() -> StoredMessage<'static> {
    let host = "127.0.0.1:10911".parse().expect("an address");
    StoredMessage {
        queue_id: 0,
        flag: 0,
        queue_offset: 0,
        physical_offset: 0,
        sys_flag: 0,
        born_timestamp: 1_700_000_000_000,
        born_host: host,
        store_timestamp: 0,
        store_host: host,
        reconsume_times: 0,
        prepared_transaction_offset: 0,
        body: &BODY,
        topic: "RingMQBench",
        properties: PROPERTIES,
    }
}

/// How many messages one round of the engine's benches stores.
const ROUND: u32 = 512;

fn protocol(c: &mut Criterion) {
    let bytes = request_frame();
    let mut header = Header::request(0);
    let mut group = c.benchmark_group("protocol");
    group.throughput(Throughput::Elements(1));
    let many = bytes.repeat(40);
    group.throughput(Throughput::Elements(40));
    group.bench_function("cut 40 frames where they lie", |b| {
        b.iter(|| {
            let mut rest = black_box(&many[..]);
            while let Some(length) = frame::peek(rest).expect("a frame") {
                black_box(frame::split(&rest[..length]).expect("a frame"));
                rest = &rest[length..];
            }
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode SEND_MESSAGE_V2 in JSON", |b| {
        b.iter(|| {
            let (serialize, range, body) = frame::split(black_box(&bytes)).expect("a frame");
            header.decode(serialize, &bytes[range]).expect("a header");
            let send = SendMessage::parse(header.code, &header.fields).expect("a send");
            black_box((send.queue_id, body));
        });
    });
    let (serialize, range, _) = frame::split(&bytes).expect("a frame");
    header.decode(serialize, &bytes[range]).expect("a header");
    let (mut json, mut binary) = (header.clone(), header.clone());
    (json.serialize, binary.serialize) = (Serialize::Json, Serialize::RocketMq);
    let mut encoded = Vec::new();
    binary.encode_frame(&mut encoded, 0);
    group.bench_function("decode SEND_MESSAGE_V2 in binary", |b| {
        b.iter(|| {
            let (serialize, range, body) = frame::split(black_box(&encoded)).expect("a frame");
            header.decode(serialize, &encoded[range]).expect("a header");
            let send = SendMessage::parse(header.code, &header.fields).expect("a send");
            black_box((send.queue_id, body));
        });
    });
    let mut out = Vec::new();
    for (name, header) in [("JSON", &json), ("binary", &binary)] {
        group.bench_function(format!("encode SEND_MESSAGE_V2 in {name}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(header).encode_frame(&mut out, BODY.len());
                black_box(out.len());
            });
        });
    }
    let message = stored();
    let mut out = vec![0; message.encoded_len()];
    group.bench_function("encode a stored message of 1 KiB", |b| {
        b.iter(|| black_box(&message).encode(black_box(&mut out)));
    });
    group.bench_function("describe a stored message", |b| {
        b.iter(|| black_box(message::describe(black_box(&out))));
    });
    group.finish();
}

/// SQL filters, on what consumers usually ask, over ten properties.
fn filters(c: &mut Criterion) {
    let mut properties = PROPERTIES.to_owned();
    for (name, value) in [
        ("region", "eu-west-1"),
        ("age", "42"),
        ("amount", "129.95"),
        ("currency", "EUR"),
        ("kind", "order"),
        ("priority", "7"),
        ("source", "checkout-service"),
    ] {
        protocol::properties::append(&mut properties, name, value);
    }
    let mut group = c.benchmark_group("sql");
    group.throughput(Throughput::Elements(1));
    let long = "age > 16 AND age < 99 AND amount BETWEEN 100 AND 1000 AND region IN ('eu-west-1', 'us-east-1', 'eu-north-1') \
                AND currency = 'EUR' AND kind <> 'refund' AND priority >= 5 AND source STARTSWITH 'check' \
                AND TAGS IS NOT NULL AND (WAIT = 'true' OR coupon IS NULL)";
    for (name, text) in [("one comparison", "age > 16"), ("ten properties", long)] {
        let expression = Expression::compile(text).expect("it is legal");
        assert!(expression.matches(&properties));
        group.bench_function(format!("evaluate {name}"), |b| {
            b.iter(|| black_box(&expression).matches(black_box(&properties)));
        });
    }
    group.bench_function("compile ten properties", |b| b.iter(|| Expression::compile(black_box(long)).is_ok()));
    group.finish();
}

/// The sums of a batch, made and checked.
fn batches(c: &mut Criterion) {
    let message = stored();
    let length = RECORD_HEADER_BYTES + message.encoded_len();
    let mut batch = vec![0; BATCH_HEADER_BYTES + ROUND as usize * length];
    for payload in batch[BATCH_HEADER_BYTES..].chunks_mut(length) {
        message.encode(&mut payload[RECORD_HEADER_BYTES..]);
    }
    let bytes = batch.len();
    let mut group = c.benchmark_group("format");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("close a batch of 512 records with its sums", |b| {
        b.iter(|| close(black_box(&mut batch), length))
    });
    group.bench_function("recovery scan: open a batch and walk it", |b| {
        b.iter(|| {
            let batch = Batch::open(black_box(&batch)).expect("its sums are right");
            let entries = batch.records().map(|(byte, record, _)| byte ^ record.offset);
            black_box(entries.fold(0, |sum, entry| sum ^ entry));
        });
    });
    group.finish();
}

/// What the log does between accepting records and writing them.
fn close(batch: &mut [u8], record_bytes: usize) {
    let mut headers_crc = 0;
    for record in batch[BATCH_HEADER_BYTES..].chunks_mut(record_bytes) {
        let (header, payload) = record.split_at_mut(RECORD_HEADER_BYTES);
        let queue = QueueKey { topic: 1, queue: 2 };
        let (length, crc) = (payload.len() as u32, crc32c::crc32c(payload));
        header.copy_from_slice(&RecordHeader { length, crc, kind: Kind::Message, queue, note: 0, offset: 3 }.encode());
        headers_crc = crc32c::crc32c_append(headers_crc, header);
    }
    let header = BatchHeader {
        partition: 0,
        length: batch.len() as u32,
        records: ROUND,
        epoch: 1,
        base: 4096,
        durable: 4096,
        closed_ms: 1,
        previous: 0,
    };
    black_box(header.encode(batch, headers_crc));
}

/// A partition whose disk says yes at once: what it costs by itself.
struct Store {
    partition: Partition,
    disk: NullDisk,
}

impl Store {
    fn new(stretch_bytes: u64) -> Store {
        let memory = Region::new(32, 1 << 20).expect("memory");
        let mut config = store::config(Path::new("unused"), 1 << 30, true, memory, |_| None);
        config.stretch_bytes = stretch_bytes;
        let mut store = Store { partition: Partition::new(config).expect("ranges hold"), disk: NullDisk::default() };
        while !store.partition.is_open() {
            store.turn();
        }
        store
    }

    fn turn(&mut self) {
        self.disk.turn(&mut self.partition);
    }

    /// Stores [`ROUND`] messages of 1 KiB in eight queues, and settles them.
    fn round(&mut self) {
        let message = stored();
        let stamp = Stamp {
            queue_offset_at: message::QUEUE_OFFSET_AT,
            position_at: message::PHYSICAL_OFFSET_AT,
            store_time_at: message::store_timestamp_at(0),
        };
        let mut stored = Vec::new();
        for queue in 0..ROUND {
            let mut fill = |out: &mut [u8]| message.encode(out);
            let draft = Draft {
                queue: QueueKey { topic: 1, queue: queue % 8 },
                length: message.encoded_len(),
                offsets: 1,
                tag_hash: 0,
                keys: &[u64::from(queue)],
                stamp,
                fill: &mut fill,
            };
            stored.clear();
            self.partition.append(&mut [draft], None, 1, &mut stored).expect("room");
        }
        self.turn();
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(u64::from(ROUND)));
    let mut store = Store::new(64 << 20);
    group.bench_function("accept, batch, settle and index 512 messages of 1 KiB", |b| b.iter(|| store.round()));
    // As above with a run and a checkpoint every MiB instead of every 64: the difference is theirs.
    let mut eager = Store::new(1 << 20);
    group.bench_function("the same, with a run and a checkpoint every MiB", |b| b.iter(|| eager.round()));
    let queue = QueueKey { topic: 1, queue: 3 };
    let newest = store.partition.span(queue).max;
    for count in [1, 32] {
        let limits = PullLimits { messages: count, bytes: 1 << 20, scan: count };
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(format!("look up and read {count} of the tail"), |b| {
            b.iter(|| {
                let (pull, _) = store.partition.pull(queue, newest - u64::from(count), limits, &|_| true);
                assert!(matches!(black_box(pull), Pull::Found { messages, .. } if messages.len() == count as usize));
            });
        });
    }
    group.finish();
}

/// A whole core over a kernel that does everything at once, from received bytes to sent ones.
fn core(c: &mut Criterion) {
    const CONNECTIONS: usize = 16;
    let mut still = Still::new(CONNECTIONS);
    let job = Job { bs: (1024, 1024), batch: 1, numjobs: CONNECTIONS, iodepth: 32, ..Job::default() };
    let sends = still.windows(&job, &[]);
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(u64::from(ROUND)));
    group.bench_function("512 sends on 16 connections", |b| b.iter(|| still.round(&sends)));
    // Each round puts 64 messages into each of the eight queues.
    let mut still = Still::new(CONNECTIONS);
    (0..4).for_each(|_| still.round(&sends));
    let job = Job { load: Load::Consume, iodepth: 1, batch: 32, ..job };
    let read = |number: usize| Cursor { queue: number as u32 % 8, first: 100, end: 132 };
    let pulls = still.windows(&job, &(0..CONNECTIONS).map(read).collect::<Vec<_>>());
    group.bench_function("16 pulls of 32 messages", |b| b.iter(|| still.round(&pulls)));
    group.finish();
}

fn mailbox(c: &mut Criterion) {
    let mailboxes = Mailboxes::new(2, 1024);
    let mut group = c.benchmark_group("broker");
    group.throughput(Throughput::Elements(1));
    group.bench_function("mailbox: put mail in and take it out", |b| {
        b.iter(|| {
            mailboxes.push(1, black_box(Mail::Serve)).expect("room");
            black_box(mailboxes.pop(1));
        });
    });
    let (there, back) = (mailboxes.clone(), mailboxes.clone());
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let other = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            match there.pop(1) {
                Some(mail) => there.push(0, mail).expect("room"),
                None => std::hint::spin_loop(),
            }
        }
    });
    group.bench_function("mailbox: to another core that looks, and back", |b| {
        b.iter(|| {
            back.push(1, Mail::Serve).expect("room");
            while back.pop(0).is_none() {
                std::hint::spin_loop();
            }
        });
    });
    stop.store(true, Ordering::Relaxed);
    other.join().expect("it only carries mail");
    group.finish();
}

/// Does everything at once and keeps nothing.
#[derive(Default)]
struct NullDisk {
    effects: Vec<Effect>,
    handles: i32,
}

impl NullDisk {
    fn turn(&mut self, partition: &mut Partition) {
        partition.on_turn(1);
        loop {
            partition.effects(&mut self.effects);
            let mut any = false;
            for effect in self.effects.drain(..) {
                if let Effect::Io { local, op } = effect {
                    any = true;
                    let outcome = quiet::answer(&op, &mut self.handles).expect("a partition has no sockets");
                    partition.on_done(local, Ok(outcome), 1);
                }
            }
            if !any {
                return;
            }
        }
    }
}

criterion_group!(benches, protocol, filters, batches, engine, mailbox, core);
criterion_main!(benches);
