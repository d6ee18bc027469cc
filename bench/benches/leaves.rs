//! The leaves of the hot path, each alone: what one message costs before the kernel sees it.
//! Run: `cargo bench -p bench`. On the machine at hand, with nothing else running.

use bench::{quiet, store};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::buffer::Region;
use engine::format::QueueKey;
use engine::message::{Draft, Stamp};
use engine::partition::{Effect, Partition};
use protocol::codes::request;
use protocol::headers::SendMessage;
use protocol::message::{self, StoredMessage};
use protocol::{Header, frame};
use std::hint::black_box;
use std::path::Path;

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

fn headers(c: &mut Criterion) {
    let bytes = request_frame();
    let mut header = Header::request(0);
    let mut group = c.benchmark_group("protocol");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode SEND_MESSAGE_V2 in JSON", |b| {
        b.iter(|| {
            let (serialize, range, body) = frame::split(black_box(&bytes)).expect("a frame");
            header.decode(serialize, &bytes[range]).expect("a header");
            let send = SendMessage::parse(header.code, &header.fields).expect("a send");
            black_box((send.queue_id, body));
        });
    });
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

/// A partition whose disk says yes at once: what accepting, batching and settling cost by themselves.
fn commit(c: &mut Criterion) {
    let memory = Region::new(32, 1 << 20).expect("memory");
    let config = store::config(Path::new("unused"), 1 << 30, true, memory, |_| None);
    let mut partition = Partition::new(config).expect("ranges hold");
    let mut disk = NullDisk::default();
    while !partition.is_open() {
        disk.turn(&mut partition);
    }
    let message = stored();
    let length = message.encoded_len();
    let stamp = Stamp {
        queue_offset_at: message::QUEUE_OFFSET_AT,
        position_at: message::PHYSICAL_OFFSET_AT,
        store_time_at: message::store_timestamp_at(0),
    };
    let mut stored = Vec::new();
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(512));
    group.bench_function("accept, batch and settle 512 messages of 1 KiB", |b| {
        b.iter(|| {
            for queue in 0..512 {
                let mut fill = |out: &mut [u8]| message.encode(out);
                let draft = Draft {
                    queue: QueueKey { topic: 1, queue: queue % 8 },
                    length,
                    tag_hash: 0,
                    keys: &[u64::from(queue)],
                    stamp,
                    fill: &mut fill,
                };
                stored.clear();
                partition.append(&mut [draft], None, 1, &mut stored).expect("room");
            }
            disk.turn(&mut partition);
        });
    });
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

criterion_group!(benches, headers, commit);
criterion_main!(benches);
