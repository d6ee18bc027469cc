//! Bytes that a disk gives back: batches, and whole logs after something went wrong.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::OnceLock;

use engine::format::crc32c;
use engine::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Batch, BatchHeader, Kind, QueueKey, RECORD_HEADER_BYTES, RecordHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use engine::inspect::{Inspector, Sight, facts};

/// Bytes of a segment: small, so that three are written for each input.
pub(crate) const SEGMENT: u64 = 32 << 10;
const PARTITION: u16 = 2;

/// A batch that is believed is what an encoder would write; with its sums put right, it is believed exactly
/// if its records fill it and its place is possible.
pub fn batch(data: &[u8]) {
    if let Ok(batch) = Batch::open(data) {
        walk(batch, data);
    }
    let mut bytes = data.to_vec();
    let fills = repair(&mut bytes) && BatchHeader::peek(&bytes).is_ok();
    let opened = Batch::open(&bytes);
    assert_eq!(opened.is_ok(), fills, "{:?}", opened.map(|batch| batch.header));
    if let Ok(batch) = opened {
        walk(batch, &bytes);
    }
}

fn walk(batch: Batch<'_>, bytes: &[u8]) {
    let mut at = batch.header.base.wrapping_add(BATCH_HEADER_BYTES as u64);
    let mut sum = 0;
    for (byte, record, payload) in batch.records() {
        assert_eq!(byte, at.wrapping_add(RECORD_HEADER_BYTES as u64));
        assert_eq!((record.length as usize, record.crc), (payload.len(), crc32c::crc32c(payload)));
        at = byte.wrapping_add(payload.len() as u64);
        sum += RECORD_HEADER_BYTES + payload.len();
        if record.kind == Kind::Facts {
            assert!(facts(payload).count() <= payload.len());
        }
    }
    assert_eq!(sum + BATCH_HEADER_BYTES, batch.header.length as usize);
    assert!(batch.header.length as usize <= bytes.len() && Batch::open_headers(bytes).is_ok());
}

/// Makes every sum of a batch right. `false`: its records do not fill it, or it is none.
fn repair(bytes: &mut [u8]) -> bool {
    if bytes.len() < BATCH_HEADER_BYTES {
        return false;
    }
    bytes[..4].copy_from_slice(b"RMQB");
    // Of each version that is read.
    let version = 1 + u16::from(bytes[5]) % engine::format::FORMAT_VERSION;
    bytes[4..6].copy_from_slice(&version.to_be_bytes());
    bytes[52..60].fill(0);
    // As far as the bytes go, so that most inputs lead somewhere.
    let length = bytes.len().min(engine::limits::BATCH_BYTES_MAX as usize);
    bytes[8..12].copy_from_slice(&(length as u32).to_be_bytes());
    let (mut at, mut count, mut crc) = (BATCH_HEADER_BYTES, 0u32, 0);
    while let Some(record) = RecordHeader::decode(&bytes[at..length]) {
        let payload = at + RECORD_HEADER_BYTES;
        let Some(end) = payload.checked_add(record.length as usize).filter(|end| *end <= length) else { break };
        let sum = crc32c::crc32c(&bytes[payload..end]);
        bytes[at + 4..at + 8].copy_from_slice(&sum.to_be_bytes());
        crc = crc32c::crc32c_append(crc, &bytes[at..payload]);
        (at, count) = (end, count + 1);
    }
    bytes[12..16].copy_from_slice(&count.to_be_bytes());
    let sum = crc32c::crc32c_append(crc, &bytes[..60]);
    bytes[60..64].copy_from_slice(&sum.to_be_bytes());
    at == length
}

/// A whole log, written by hand.
pub(crate) struct Log {
    pub files: Vec<Vec<u8>>,
    /// Log byte and bytes of each batch.
    pub batches: Vec<(u64, Vec<u8>)>,
}

/// The log that inputs damage: three segments, batches behind one another and on blocks, a stale one of an
/// earlier life behind its end.
pub(crate) fn log() -> &'static Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    LOG.get_or_init(|| {
        let mut log = Log { files: vec![segment(0)], batches: Vec::new() };
        let (mut head, mut chain, mut durable) = (SEGMENT_HEADER_BYTES, 0, 0);
        for number in 0..36u64 {
            let sizes: &[usize] = if number == 35 { &[] } else { &[(number * 53 % 1500) as usize, 7, 900] };
            let mut bytes = build(sizes, number);
            let end = log.files.len() as u64 * SEGMENT;
            if head + bytes.len() as u64 > end {
                head = end + SEGMENT_HEADER_BYTES;
                log.files.push(segment(end));
            }
            chain = seal(&mut bytes, head, chain, durable, 1 + number / 20);
            put(&mut log.files, head, &bytes);
            durable = head;
            let end = head + bytes.len() as u64;
            log.batches.push((head, bytes));
            head = if number % 3 == 0 { end.next_multiple_of(BLOCK_BYTES) } else { end };
        }
        assert!(log.files.len() >= 3, "{} files", log.files.len());
        let mut stale = build(&[300], 99);
        let place = head.next_multiple_of(BLOCK_BYTES);
        if place % SEGMENT + 500 < SEGMENT && place % SEGMENT != 0 {
            seal(&mut stale, place - SEGMENT, 7, 0, 1);
            put(&mut log.files, place, &stale);
        }
        log
    })
}

fn segment(base: u64) -> Vec<u8> {
    let mut file = vec![0; SEGMENT as usize];
    let header = SegmentHeader { partition: PARTITION, base, bytes: SEGMENT }.encode();
    file[..header.len()].copy_from_slice(&header);
    file
}

fn put(files: &mut [Vec<u8>], byte: u64, bytes: &[u8]) {
    let (file, at) = ((byte / SEGMENT) as usize, (byte % SEGMENT) as usize);
    files[file][at..at + bytes.len()].copy_from_slice(bytes);
}

/// Records of these sizes behind room for a batch header.
pub(crate) fn build(sizes: &[usize], number: u64) -> Vec<u8> {
    let mut out = vec![0; BATCH_HEADER_BYTES];
    for (index, size) in sizes.iter().enumerate() {
        let kind = [Kind::Message, Kind::Delayed, Kind::Facts][index % 3];
        let payload = vec![number as u8; *size];
        let queue = QueueKey { topic: 3, queue: 0 };
        let crc = crc32c::crc32c(&payload);
        out.extend_from_slice(
            &RecordHeader { length: *size as u32, crc, kind, queue, note: 0, offset: number }.encode(),
        );
        out.extend_from_slice(&payload);
    }
    out
}

/// Writes the batch header; returns the batch's checksum.
pub(crate) fn seal(bytes: &mut [u8], base: u64, previous: u32, durable: u64, epoch: u64) -> u32 {
    let (mut at, mut records, mut crc) = (BATCH_HEADER_BYTES, 0, 0);
    while let Some(record) = RecordHeader::decode(&bytes[at..]) {
        crc = crc32c::crc32c_append(crc, &bytes[at..at + RECORD_HEADER_BYTES]);
        at += RECORD_HEADER_BYTES + record.length as usize;
        records += 1;
    }
    let length = bytes.len() as u32;
    let header = BatchHeader { partition: PARTITION, length, records, epoch, base, durable, closed_ms: base, previous };
    header.encode(bytes, crc)
}

/// Whatever happens to a log's files, no batch comes out of it that was not written, none out of order; and if
/// no damage is named, they are all those up to where the log is said to end.
///
/// The input is a list of harms: `| kind u8 | file u8 | byte u16 | value u8 |`. Kinds: 0 set, 1 flip a bit, 2 zero
/// a sector, 3 cut the file, 4 remove it, 5 make it a spare, 6 copy a block of the file before, 7 put the sums of
/// the batch there right.
pub fn recovery(data: &[u8]) {
    let whole = log();
    let mut files: Vec<Option<Vec<u8>>> = whole.files.iter().cloned().map(Some).collect();
    let mut is_repaired = false;
    let mut spares = 0;
    let dir = directory();
    for harm in data.as_chunks::<5>().0.iter().take(HARMS_MAX) {
        let [kind, file, high, low, value] = *harm;
        let index = usize::from(file) % files.len();
        let before = index.checked_sub(1).and_then(|before| files[before].clone());
        let Some(bytes) = &mut files[index] else { continue };
        if bytes.is_empty() {
            continue;
        }
        let at = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
        match kind % 8 {
            0 => bytes[at] = value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => {
                let sector = at - at % 512;
                let end = bytes.len().min(sector + 512);
                bytes[sector..end].fill(0);
            }
            3 => bytes.truncate(at),
            4 => files[index] = None,
            5 => {
                let spare = dir.path().join(format!("spare-{spares:020}"));
                fs::write(spare, files[index].take().expect("it is there")).expect("a temporary directory");
                spares += 1;
            }
            6 => {
                let block = at - at % BLOCK_BYTES as usize;
                let end = bytes.len().min(block + BLOCK_BYTES as usize);
                if let Some(from) = before.as_ref().and_then(|before| before.get(block..end)) {
                    bytes[block..end].copy_from_slice(from);
                }
            }
            _ => {
                // A stranger's batch with right sums: only its place and the chain can tell.
                let file_base = index as u64 * SEGMENT;
                let found = whole.batches.iter().find(|(base, _)| *base >= file_base + at as u64);
                if let Some((base, old)) = found.filter(|(base, _)| *base < file_base + bytes.len() as u64) {
                    let from = (*base - file_base) as usize;
                    let end = bytes.len().min(from + old.len());
                    is_repaired |= repair(&mut bytes[from..end]) && bytes[from..end] != old[..end - from];
                }
            }
        }
    }
    for (index, bytes) in files.iter().enumerate() {
        if let Some(bytes) = bytes {
            fs::write(dir.path().join(format!("{:020}", index as u64 * SEGMENT)), bytes)
                .expect("a temporary directory");
        }
    }
    let (mut seen, mut damages) = (Vec::new(), 0);
    let mut inspector = Inspector::open(dir.path(), Some(PARTITION)).expect("the directory is there");
    let ending = inspector.walk(0, &mut |sight| {
        match sight {
            Sight::Batch(batch, _) => seen.push((batch.header.base, digest(batch))),
            Sight::Damage(_) => damages += 1,
            Sight::Read(_) => {}
        }
        ControlFlow::Continue(())
    });
    let ending = ending.expect("nobody broke off");
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "{seen:?}");
    if is_repaired {
        return; // What was forged may be believed where a chain begins.
    }
    let of = |bytes: &[u8]| digest(Batch::open(bytes).expect("it was sealed"));
    let written: Vec<(u64, u64)> = whole.batches.iter().map(|(base, bytes)| (*base, of(bytes))).collect();
    assert!(seen.iter().all(|batch| written.contains(batch)), "a batch that was never written: {seen:?}");
    if damages == 0 && files[0].is_some() {
        let wanted: Vec<_> = written.iter().take_while(|(base, _)| *base < ending.head).copied().collect();
        assert_eq!(seen, wanted, "up to {}", ending.head);
    }
}

/// A batch's own checksum does not cover payloads: one over these, and that.
fn digest(batch: Batch<'_>) -> u64 {
    let payloads = batch.records().fold(0, |sum, (_, _, payload)| crc32c::crc32c_append(sum, payload));
    u64::from(batch.crc) << 32 | u64::from(payloads)
}

/// Harms of one input that count.
const HARMS_MAX: usize = 32;

/// In memory if there is such a place: files are written for each input.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir());
    made.expect("a temporary directory")
}
