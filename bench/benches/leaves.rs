//! The leaves of the hot path, each alone: what one message costs before the kernel sees it.
//! Run: `cargo bench -p bench`. On the machine at hand, with nothing else running.

use bench::inside::Still;
use bench::options::{Job, Load};
use bench::requests::Cursor;
use bench::{quiet, store};
use broker::mail::{Mail, Mailboxes};
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use engine::buffer::Region;
use engine::format::crc32c;
use engine::format::{BATCH_HEADER_BYTES, Batch, BatchHeader, Kind, QueueKey, RECORD_HEADER_BYTES, RecordHeader};
use engine::index::{Entry, Index};
use engine::io::{Fault, Handle, Op, Outcome};
use engine::message::{Draft, Stamp};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use protocol::codes::request;
use protocol::headers::SendMessage;
use protocol::message::{self, StoredMessage};
use protocol::sql::Expression;
use protocol::{Header, Serialize, frame};
use std::collections::HashMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
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
    let plain = StoredMessage::plain(host, "RingMQBench", PROPERTIES, &BODY);
    StoredMessage { born_timestamp: 1_700_000_000_000, ..plain }
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
        // It is read as the literals' type, 32 bits, as rocketmq-filter does: with 129.5 the whole expression fails.
        ("amount", "129"),
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
struct Store<D = NullDisk> {
    partition: Partition,
    disk: D,
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

    /// Fills stretches, each more than a round, until there is so much log that a checkpoint is written behind it.
    fn checkpoint(&mut self) {
        let before = self.partition.stats().checkpointed;
        for _ in 0..1_000 {
            (0..2).for_each(|_| self.round());
            for _ in 0..10 {
                if self.partition.stats().checkpointed != before {
                    return;
                }
                self.turn();
            }
        }
        panic!("no checkpoint came");
    }
}

impl<D: Disk> Store<D> {
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

/// Offsets given away and messages shown, a round at a time, in eight queues and in very many.
fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(u64::from(ROUND)));
    for queues in [8, 100_000] {
        let (mut index, mut byte, mut next) = (Index::new(1), 0, 0);
        group.bench_function(format!("index: append 512 messages to {queues} queues"), |b| {
            b.iter(|| {
                for _ in 0..ROUND {
                    next = (next + 1) % queues;
                    let slot = index.slot(QueueKey { topic: next / 1000, queue: next % 1000 });
                    let offset = index.accept(slot, 0);
                    let entry = Entry { byte, store_time_ms: 1, length: 1200, tag_hash: 7 };
                    index.at(slot).show(offset, entry);
                    byte += 1240;
                }
                // As if a run had come: what is older than 64 MiB of log goes.
                index.set_cold(u64::saturating_sub(byte, 64 << 20));
            });
        });
    }
    group.finish();
}

/// A checkpoint from its first slice to its name: with the facts that a broker keeps (offsets, topics, groups), and without.
fn checkpoints(c: &mut Criterion) {
    const FACTS: usize = 10_000;
    let mut group = c.benchmark_group("engine");
    let mut store = Store::new(1 << 20);
    group.bench_function("a MiB of log, its run and a checkpoint without facts", |b| b.iter(|| store.checkpoint()));
    let keys: Vec<String> = (0..FACTS).map(|index| format!("offset/group-{:03}/{index:08}", index % 100)).collect();
    for some in keys.chunks(100) {
        let facts: Vec<(&[u8], Option<&[u8]>)> = some.iter().map(|key| (key.as_bytes(), Some(&BODY[..64]))).collect();
        store.partition.put(&facts, None, 1).expect("room");
        store.turn();
    }
    group.bench_function("the same with 10,000 facts of 90 bytes, as much log as that waits for", |b| {
        b.iter(|| store.checkpoint())
    });
    group.finish();
}

/// A log as a crash leaves it, behind the newest run, and its opening: listing, reading, sums, describing, index and keys.
fn recovery(c: &mut Criterion) {
    const ROUNDS: u64 = 64;
    let open = |platter: Platter| {
        let memory = Region::new(8, 1 << 20).expect("memory");
        let config = store::config(Path::new("unused"), 64 << 20, true, memory, broker::produce::describe);
        (Partition::new(config).expect("ranges hold"), platter)
    };
    let recover = |(mut partition, mut platter): (Partition, Platter)| {
        while !partition.is_open() {
            platter.turn(&mut partition);
        }
        (partition, platter)
    };
    let (partition, disk) = recover(open(Platter::default()));
    let mut store = Store { partition, disk };
    (0..ROUNDS).for_each(|_| store.round());
    let stats = store.partition.stats();
    assert_eq!((stats.written, stats.runs.0), (stats.accepted, 0), "all of it is in the log, and in no run");
    let platter = store.disk.freeze();
    let mut group = c.benchmark_group("engine");
    group.sample_size(20).throughput(Throughput::Bytes(stats.written - stats.floor));
    group.bench_function(format!("recovery: open {} MiB of log", (stats.written - stats.floor) >> 20), |b| {
        b.iter_batched(
            || open(platter.clone()),
            |opened| {
                let (mut partition, platter) = recover(opened);
                let found = partition.span(QueueKey { topic: 1, queue: 3 });
                assert_eq!(found.max, ROUNDS * u64::from(ROUND) / 8);
                (partition, platter)
            },
            BatchSize::PerIteration,
        );
    });
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

/// What does file operations at once.
trait Disk {
    fn does(&mut self, op: Op) -> Result<Outcome, Fault>;

    fn turn(&mut self, partition: &mut Partition) {
        let mut effects = Vec::new();
        partition.on_turn(1);
        loop {
            partition.effects(&mut effects);
            let mut any = false;
            for effect in effects.drain(..) {
                if let Effect::Io { local, op } = effect {
                    any = true;
                    partition.on_done(local, self.does(op), 1);
                }
            }
            if !any {
                return;
            }
        }
    }
}

/// Keeps nothing.
#[derive(Default)]
struct NullDisk {
    handles: i32,
}

impl Disk for NullDisk {
    fn does(&mut self, op: Op) -> Result<Outcome, Fault> {
        match op {
            // Who merges runs, once there are many, looks for them in vain.
            Op::Read { .. } => Err(Fault(5)), // EIO
            op => Ok(quiet::answer(&op, &mut self.handles).expect("a partition has no sockets")),
        }
    }
}

/// Keeps files in memory. Once it is frozen it gives them away without a copy, as a disk would, and keeps nothing more.
#[derive(Clone, Default)]
struct Platter {
    names: HashMap<PathBuf, usize>,
    written: Vec<Vec<u8>>,
    frozen: Vec<Bytes>,
}

impl Platter {
    fn freeze(mut self) -> Platter {
        self.frozen = std::mem::take(&mut self.written).into_iter().map(Bytes::from).collect();
        self
    }

    fn bytes(&self, file: usize) -> usize {
        self.frozen.get(file).map_or_else(|| self.written.get(file).map_or(0, Vec::len), Bytes::len)
    }

    /// A file that is being written.
    fn growing(&mut self, Handle(file): Handle) -> Option<&mut Vec<u8>> {
        self.written.get_mut(file as usize)
    }
}

impl Disk for Platter {
    fn does(&mut self, op: Op) -> Result<Outcome, Fault> {
        Ok(match op {
            Op::Open { path, how } => {
                let next =
                    if self.frozen.is_empty() { self.written.len() } else { self.frozen.len() + self.names.len() };
                let known = self.names.get(&path).copied().or(how.create.then_some(next));
                let file = known.ok_or(Fault(2))?; // ENOENT
                self.names.insert(path, file);
                if self.frozen.is_empty() && file == self.written.len() {
                    self.written.push(Vec::new());
                }
                Outcome::Opened(Handle(file as i32))
            }
            Op::List { path } => {
                let inside = self.names.iter().filter(|(name, _)| name.parent() == Some(&path));
                let named = |(name, file): (&PathBuf, &usize)| {
                    (name.file_name().expect("a file").to_string_lossy().into_owned(), self.bytes(*file) as u64)
                };
                let mut names: Vec<_> = inside.map(named).collect();
                names.sort();
                Outcome::Names(names)
            }
            Op::Write { file, at, bytes, .. } => {
                let end = at as usize + bytes.len();
                if let Some(file) = self.growing(file) {
                    file.resize(file.len().max(end), 0);
                    file[at as usize..end].copy_from_slice(&bytes);
                }
                Outcome::Count(bytes.len())
            }
            Op::Allocate { file, length } | Op::Truncate { file, length } => {
                if let Some(file) = self.growing(file) {
                    file.resize(length as usize, 0);
                }
                Outcome::Nothing
            }
            Op::Read { file, at, length } => {
                let bytes = self.frozen.get(file.0 as usize).map_or(Bytes::new(), Bytes::clone);
                let from = (at as usize).min(bytes.len());
                Outcome::Read(bytes.slice(from..(from + length as usize).min(bytes.len())))
            }
            Op::Rename { from, to } => {
                let file = self.names.remove(&from).ok_or(Fault(2))?;
                self.names.insert(to, file);
                Outcome::Nothing
            }
            Op::Remove { path } => {
                self.names.remove(&path);
                Outcome::Nothing
            }
            other => quiet::answer(&other, &mut 0).expect("a partition has no sockets"),
        })
    }
}

criterion_group!(benches, protocol, filters, batches, engine, index, checkpoints, recovery, mailbox, core);
criterion_main!(benches);
