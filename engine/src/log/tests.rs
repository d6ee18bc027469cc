//! A log that is driven by hand: what it writes, where, and what it says about it.

use super::*;
use crate::format::Batch;
use crate::index::Index;
use crate::segment::Segment;

const SEGMENT: u64 = 16 << 20;
const QUEUE: QueueKey = QueueKey { topic: 1, queue: 2 };

/// A log, its segments, and what is in the kernel.
struct Desk {
    config: LogConfig,
    log: Log,
    segments: Segments,
    wanted: Vec<Want>,
    kept: Vec<Promise>,
    now_ms: u64,
    ticket: u64,
}

fn segments(config: &LogConfig, count: u64) -> Segments {
    let live = (0..count).map(|number| {
        let base = number * SEGMENT;
        let handle = Handle(3 + number as i32);
        Segment { base, bytes: SEGMENT, handle, newest_ms: 0, zeroed_to: base + SEGMENT_HEADER_BYTES }
    });
    Segments::new(config, true, live.collect(), Vec::new())
}

impl Desk {
    fn new(change: impl FnOnce(&mut LogConfig)) -> Desk {
        let mut config = LogConfig::new("/p", 3, Region::new(8, 1 << 20).unwrap(), |_| None);
        change(&mut config);
        let (segments, log) = (segments(&config, 2), Log::new(&config, End::default()));
        Desk { config, log, segments, wanted: Vec::new(), kept: Vec::new(), now_ms: 1000, ticket: 0 }
    }

    /// Appends a record of so many bytes and a ticket for it.
    fn append(&mut self, length: usize) -> Result<u64, AppendError> {
        self.log.reserve(length, 1, &self.segments, self.now_ms)?;
        let byte = self.log.record(Kind::Message, QUEUE, 7, length, |_, out| out.fill(b'x'));
        self.log.promise().tickets.push(Ticket(self.ticket));
        self.ticket += 1;
        Ok(byte)
    }

    /// A turn: what it wants is in `wanted`. Returns the numbers of the writes.
    fn turn(&mut self) -> Vec<u64> {
        self.wanted.clear();
        self.log.on_turn(&mut self.segments, self.now_ms, &mut self.wanted);
        let writes = self.wanted.iter().filter_map(|want| match want {
            Want::Write { number, .. } => Some(*number),
            Want::Sync(_) => None,
        });
        writes.collect()
    }

    /// The writes of the last turn: file, place, bytes.
    fn writes(&self) -> Vec<(i32, u64, Bytes, bool)> {
        let writes = self.wanted.iter().filter_map(|want| match want {
            Want::Write { op: Op::Write { file, at, bytes, durable }, .. } => {
                Some((file.0, *at, bytes.clone(), *durable))
            }
            _ => None,
        });
        writes.collect()
    }

    fn syncs(&self) -> Vec<i32> {
        let syncs = self.wanted.iter().filter_map(|want| match want {
            Want::Sync(file) => Some(file.0),
            Want::Write { .. } => None,
        });
        syncs.collect()
    }

    /// A write of the last turns came back whole. Returns the tickets that are kept with it.
    fn written(&mut self, number: u64) -> Vec<u64> {
        let flight = self.log.flights.iter().find(|flight| flight.number == number).expect("it is in the kernel");
        let outcome = Ok(Outcome::Count(flight.bytes.len()));
        self.done(number, outcome)
    }

    fn done(&mut self, number: u64, outcome: Result<Outcome, Fault>) -> Vec<u64> {
        self.log.on_written(number, outcome, self.now_ms, &mut self.kept);
        let kept = std::mem::take(&mut self.kept);
        kept.iter().flat_map(|promise| &promise.tickets).map(|ticket| ticket.0).collect()
    }

    /// Appends a record and writes it, on its own.
    fn through(&mut self, length: usize) {
        self.append(length).unwrap();
        let [number] = self.turn()[..] else { panic!("{:?}", self.wanted) };
        self.written(number);
    }

    fn watermarks(&self) -> (u64, u64, u64) {
        (self.log.accepted(), self.log.written(), self.log.durable())
    }
}

/// Bytes of a batch with one record of so many.
const fn batch(length: usize) -> u64 {
    (BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + length) as u64
}

#[test]
fn a_log_goes_on_behind_its_end_in_a_new_epoch() {
    let mut desk = Desk::new(|_| {});
    desk.log = Log::new(&desk.config, End { head: 5000, chain: 77, epoch: 8 });
    assert_eq!((desk.watermarks(), desk.log.head()), ((8192, 5000, 5000), 8192));
    desk.turn();
    assert!(desk.wanted.is_empty(), "nobody made sure yet that what was found is durable: {:?}", desk.wanted);
    desk.log.announce(&desk.segments, 1000).unwrap();
    desk.turn();
    let [(3, 8192, bytes, true)] = &desk.writes()[..] else { panic!("{:?}", desk.wanted) };
    let header = Batch::open(bytes).unwrap().header;
    assert_eq!((header.epoch, header.base, header.durable, header.previous), (9, 8192, 5000, 77));
    assert_eq!((header.partition, header.records, header.closed_ms, header.length), (3, 0, 1000, 64));
}

#[test]
fn a_batch_is_promised_when_it_is_written_and_durable() {
    let mut desk = Desk::new(|_| {});
    assert!(desk.log.is_idle() && !desk.log.is_busy());
    let byte = desk.append(100).unwrap();
    assert_eq!(byte, 4096 + batch(0));
    let second = desk.append(50).unwrap();
    assert_eq!(second, byte + 100 + RECORD_HEADER_BYTES as u64);
    let end = second + 50;
    assert_eq!(desk.watermarks(), (end, 0, 0));
    assert!(!desk.log.is_idle() && !desk.log.is_busy());
    assert_eq!(desk.turn(), [0]);
    assert!(!desk.log.is_idle() && desk.log.is_busy());
    let (file, at, bytes, durable) = desk.writes()[0].clone();
    assert_eq!((file, at, bytes.len(), durable), (3, 4096, 4096, true));
    let whole = Batch::open(&bytes).unwrap();
    let records: Vec<_> = whole.records().map(|(byte, header, payload)| (byte, header.offset, payload.len())).collect();
    assert_eq!(records, [(byte, 7, 100), (second, 7, 50)]);
    assert!(bytes[whole.header.length as usize..].iter().all(|byte| *byte == 0));
    assert_eq!(desk.log.tail().slice(byte, 100).unwrap(), vec![b'x'; 100]);
    assert_eq!(desk.turn(), [0; 0], "once");
    desk.log.on_written(0, Ok(Outcome::Count(4096)), 1000, &mut desk.kept);
    let promise = desk.kept.pop().unwrap();
    assert_eq!((promise.base, promise.end), (4096, End { head: end, chain: whole.crc, epoch: 1 }));
    assert_eq!(promise.tickets, [Ticket(0), Ticket(1)]);
    assert_eq!(desk.watermarks(), (end, end, end));
    assert!(desk.log.is_idle() && !desk.log.is_busy());
    let counts = Counts { batches: 1, bytes: 4096, records: 2, unprepared_bytes: 4096, ..Counts::default() };
    assert_eq!(desk.log.counts, counts);
}

#[test]
fn an_idle_log_names_its_last_watermark_once() {
    let mut desk = Desk::new(|_| {});
    desk.through(100);
    assert!(!desk.log.is_settled() && !desk.log.is_quiet(1000 + QUIET_MS - 1) && desk.log.is_quiet(1000 + QUIET_MS));
    assert_eq!(desk.log.deadline_ms(&desk.segments), 1000 + IDLE_MS);
    desk.now_ms += IDLE_MS - 1;
    assert_eq!(desk.turn(), [0; 0]);
    desk.now_ms += 1;
    assert_eq!(desk.turn(), [1]);
    let durable = desk.log.durable();
    let (_, at, bytes, _) = desk.writes()[0].clone();
    // It goes on in the last block, which has the batch before it again.
    let prefix = batch(100) as usize;
    assert_eq!(at, 4096);
    assert_eq!(Batch::open(&bytes).unwrap().header.length as usize, prefix);
    let header = Batch::open(&bytes[prefix..]).unwrap().header;
    assert_eq!((header.base, header.durable, header.records), (4096 + batch(100), durable, 0));
    assert!(!desk.log.is_settled());
    desk.written(1);
    assert!(desk.log.is_settled());
    assert_eq!(desk.log.deadline_ms(&desk.segments), u64::MAX);
    desk.now_ms += 10 * IDLE_MS;
    assert_eq!(desk.turn(), [0; 0], "an empty batch needs no other one");
    // Where there is no room for it, it is tried later, and not all the time.
    let mut desk = Desk::new(|_| {});
    desk.through(100);
    desk.segments = segments(&desk.config, 0);
    desk.now_ms += IDLE_MS;
    assert_eq!(desk.turn(), [0; 0]);
    assert_eq!(desk.log.deadline_ms(&desk.segments), desk.now_ms + IDLE_MS);
}

#[test]
fn hurry_makes_what_waits_due() {
    let mut desk = Desk::new(|config| config.flush = Flush::Async { interval_ms: 5000 });
    desk.through(100);
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    desk.through(100);
    desk.turn();
    assert_eq!(desk.syncs(), [0; 0]);
    desk.log.hurry();
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.turn(), [0; 0]);
    desk.log.hurry();
    assert_eq!(desk.turn(), [2], "the last watermark is named");
}

#[test]
fn a_sync_that_somebody_waits_for_comes_with_what_he_wrote() {
    let mut desk = Desk::new(|config| config.flush = Flush::Async { interval_ms: 5000 });
    desk.through(100);
    desk.turn();
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    desk.append(100).unwrap();
    desk.log.hurry_to(desk.log.accepted());
    assert_eq!((desk.turn(), desk.syncs()), (vec![1], vec![]));
    assert_eq!((desk.turn(), desk.syncs()), (vec![], vec![]), "it is not written yet");
    desk.written(1);
    assert_eq!(desk.log.deadline_ms(&desk.segments), 0);
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    // Who comes later did not ask for it.
    desk.through(100);
    assert_eq!(desk.log.deadline_ms(&desk.segments), 6000);
    desk.turn();
    assert_eq!(desk.syncs(), [0; 0]);
}

#[test]
fn a_log_with_a_batch_is_due_while_it_may_write_one() {
    for (inflight_batches, deadline_ms) in [(1, u64::MAX), (2, 0)] {
        let mut desk = Desk::new(|config| config.inflight_batches = inflight_batches);
        desk.append(100).unwrap();
        assert_eq!(desk.log.deadline_ms(&desk.segments), 0);
        desk.turn();
        assert_eq!(desk.log.deadline_ms(&desk.segments), u64::MAX, "it is in the kernel");
        desk.append(100).unwrap();
        assert_eq!(desk.log.deadline_ms(&desk.segments), deadline_ms, "{inflight_batches} may be there");
        // A log that failed writes nothing any more.
        desk.done(0, Err(Fault(libc::EIO)));
        assert_eq!(desk.log.deadline_ms(&desk.segments), u64::MAX);
    }
}

#[test]
fn a_ticket_rides_with_what_was_accepted_last() {
    let mut desk = Desk::new(|_| {});
    assert!(!desk.log.ride(Ticket(90)), "nothing is on its way");
    desk.append(100).unwrap();
    assert!(desk.log.ride(Ticket(91)));
    desk.turn();
    assert!(desk.log.ride(Ticket(92)));
    desk.append(100).unwrap();
    assert!(desk.log.ride(Ticket(93)));
    desk.turn();
    assert!(desk.log.ride(Ticket(94)));
    assert_eq!(desk.written(0), [0, 91, 92]);
    assert_eq!(desk.written(1), [1, 93, 94]);
    assert!(!desk.log.ride(Ticket(95)));
}

#[test]
fn without_a_sync_what_is_written_is_promised_and_not_durable() {
    let mut desk = Desk::new(|config| config.flush = Flush::Async { interval_ms: 50 });
    desk.append(100).unwrap();
    let end = desk.log.accepted();
    desk.turn();
    assert!(!desk.writes()[0].3, "the write itself is not durable");
    assert_eq!(desk.written(0), [0]);
    assert_eq!(desk.watermarks(), (end, end, 0));
    assert!(!desk.log.is_busy() && !desk.log.is_settled());
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    assert!(desk.log.is_busy() && desk.log.is_idle());
    desk.turn();
    assert_eq!(desk.syncs(), [0; 0], "one at a time");
    // What is written meanwhile is for the next one, which is due an interval after the first began.
    desk.now_ms += 10;
    desk.through(100);
    desk.log.on_synced(Ok(Outcome::Nothing), desk.now_ms);
    assert_eq!(desk.log.durable(), end);
    assert!(!desk.log.is_settled());
    assert_eq!(desk.log.deadline_ms(&desk.segments), 1050);
    desk.now_ms = 1049;
    desk.turn();
    assert_eq!(desk.syncs(), [0; 0]);
    desk.now_ms = 1050;
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    assert_eq!(desk.log.deadline_ms(&desk.segments), u64::MAX, "its completion is waited for, and nothing else");
    desk.log.on_synced(Ok(Outcome::Nothing), desk.now_ms);
    assert_eq!(desk.watermarks().1, desk.watermarks().2);
    assert_eq!(desk.log.deadline_ms(&desk.segments), 1050 + IDLE_MS, "an idle log is one whose sync is back");
    desk.now_ms = 1100;
    desk.turn();
    assert_eq!(desk.syncs(), [0; 0], "all of it is durable");
}

#[test]
fn a_turn_may_write_and_sync() {
    let mut desk = Desk::new(|config| config.flush = Flush::Async { interval_ms: 50 });
    desk.through(100);
    let written = desk.log.written();
    desk.append(100).unwrap();
    assert_eq!(desk.turn(), [1]);
    assert_eq!(desk.syncs(), [3]);
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), written);
}

#[test]
fn a_segment_that_is_full_and_durable_is_not_synced_again() {
    let mut desk = Desk::new(|config| {
        (config.flush, config.batch_bytes) = (Flush::Async { interval_ms: 50 }, 4 << 20);
        config.memory = Region::new(8, 8 << 20).unwrap();
    });
    (0..3).for_each(|_| desk.through(4 << 20));
    desk.through((SEGMENT - desk.log.head() - batch(0)) as usize);
    assert_eq!(desk.log.written(), SEGMENT);
    desk.log.syncing = None;
    desk.log.hurry();
    desk.turn();
    assert_eq!(desk.syncs(), [3], "nothing is in the next one");
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), SEGMENT);
    desk.through(100);
    desk.log.hurry();
    desk.turn();
    assert_eq!(desk.syncs(), [4]);
}

#[test]
fn a_sync_is_of_all_files_with_bytes_that_are_not_durable() {
    let mut desk = Desk::new(|config| {
        (config.flush, config.batch_bytes) = (Flush::Async { interval_ms: 50 }, 4 << 20);
        config.memory = Region::new(8, 8 << 20).unwrap();
    });
    for _ in 0..3 {
        desk.append(4 << 20).unwrap();
        desk.turn().into_iter().for_each(|number| _ = desk.written(number));
        desk.log.syncing = None;
        desk.log.hurry();
    }
    desk.log.syncing = None;
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    let durable = desk.log.written();
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), durable);
    // This one does not fit the first segment any more.
    desk.through(4 << 20);
    assert!(desk.log.written() > SEGMENT);
    desk.log.hurry();
    desk.turn();
    assert_eq!(desk.syncs(), [3, 4], "as far as is known, the first file has some, too");
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), durable, "both must be back");
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), desk.log.written());
    desk.through(100);
    desk.log.hurry();
    desk.turn();
    assert_eq!(desk.syncs(), [4]);
    // A sync that fails closes the log, and what it was for is not durable.
    let durable = desk.log.durable();
    desk.log.on_synced(Err(Fault(libc::EIO)), 1000);
    assert_eq!((desk.log.failed(), desk.log.durable()), (Some(Fault(libc::EIO)), durable));
    assert!(!desk.log.is_busy());
}

#[test]
fn batches_overlap_and_are_promised_in_log_order() {
    let mut desk = Desk::new(|config| config.inflight_batches = 2);
    desk.append(100).unwrap();
    assert_eq!(desk.turn(), [0]);
    desk.append(100).unwrap();
    assert_eq!(desk.turn(), [1]);
    assert_eq!(desk.writes()[0].1, 8192, "no block is in the kernel twice");
    desk.append(100).unwrap();
    assert_eq!(desk.turn(), [0; 0], "two are in the kernel: the third grows");
    desk.append(100).unwrap();
    let first_end = 4096 + batch(100);
    assert_eq!(desk.written(1), [0; 0]);
    assert_eq!((desk.log.written(), desk.log.durable()), (0, 0));
    assert!(desk.log.is_busy());
    assert_eq!(desk.turn(), [2]);
    assert_eq!(Batch::open(&desk.writes()[0].2).unwrap().header.records, 2);
    assert_eq!(desk.written(0), [0, 1]);
    assert_eq!(desk.log.written(), 8192 + batch(100));
    assert!(desk.log.is_busy() && first_end < 8192);
    assert_eq!(desk.written(2), [2, 3]);
    assert!(!desk.log.is_busy());
    assert_eq!(desk.log.counts.batches, 3);
}

#[test]
fn a_batch_closes_when_it_is_large_enough() {
    let mut desk = Desk::new(|config| (config.batch_bytes, config.inflight_batches) = (64 << 10, 1));
    let least = batch(0) as usize;
    desk.append(1000).unwrap();
    // To the last byte.
    desk.append((64 << 10) - 1000 - least - RECORD_HEADER_BYTES).unwrap();
    assert!(desk.log.flights.is_empty());
    desk.append(0).unwrap();
    assert_eq!(desk.log.flights.len(), 1);
    assert_eq!(desk.log.flights[0].end, 4096 + (64 << 10));
    // One that is larger goes alone, and an empty one takes it.
    desk.append(100_000).unwrap();
    assert_eq!(desk.log.flights.len(), 2);
    assert_eq!(desk.turn(), [0]);
    let mut desk = Desk::new(|config| config.batch_bytes = 64 << 10);
    desk.log.announce(&desk.segments, 1000).unwrap();
    desk.append(100_000).unwrap();
    assert!(desk.log.flights.is_empty());
    assert_eq!(desk.log.accepted(), 4096 + batch(100_000));
}

#[test]
fn a_batch_has_no_more_records_than_may_be() {
    let mut desk = Desk::new(|config| config.batch_bytes = 4 << 20);
    desk.config.memory = Region::new(2, 8 << 20).unwrap();
    desk.log = Log::new(&desk.config, End::default());
    let most = BATCH_RECORDS_MAX;
    let error = desk.log.reserve(0, most + 1, &desk.segments, 0).unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { .. }));
    desk.log.reserve(0, most, &desk.segments, 0).unwrap();
    for _ in 0..most {
        desk.log.record(Kind::Delivered, QUEUE, 0, 0, |_, _| {});
    }
    assert!(desk.log.flights.is_empty());
    desk.log.reserve(0, 1, &desk.segments, 0).unwrap();
    assert_eq!(desk.log.flights.len(), 1);
}

#[test]
fn what_does_not_fit_any_batch_is_refused_for_good() {
    let mut desk = Desk::new(|config| config.memory = Region::new(2, 16 << 20).unwrap());
    let bytes_max = u64::from(BATCH_BYTES_MAX) - BATCH_HEADER_BYTES as u64 - BLOCK_BYTES;
    let payload = bytes_max as usize - 3 * RECORD_HEADER_BYTES;
    let error = desk.log.reserve(payload + 1, 3, &desk.segments, 0).unwrap_err();
    assert_eq!(error, AppendError::TooLarge { bytes: bytes_max + 1, bytes_max });
    desk.log.reserve(payload, 3, &desk.segments, 0).unwrap();
    assert_eq!(desk.log.counts.refusals, 0);
}

#[test]
fn a_batch_that_does_not_fit_its_segment_starts_the_next() {
    let mut desk = Desk::new(|config| config.memory = Region::new(4, 8 << 20).unwrap());
    desk.through(4 << 20);
    desk.through(4 << 20);
    desk.through(4 << 20);
    // An empty batch fits to the last byte.
    let left = (SEGMENT - desk.log.head()) as usize;
    desk.through(left - batch(0) as usize - BATCH_HEADER_BYTES);
    assert_eq!(desk.log.head(), SEGMENT - BATCH_HEADER_BYTES as u64);
    let byte = desk.append(0).unwrap();
    assert_eq!(byte, SEGMENT + SEGMENT_HEADER_BYTES + batch(0), "behind the next one's header");
    assert_eq!(desk.turn(), [4]);
    assert_eq!(desk.writes()[0].0, 4);
    assert_eq!(desk.writes()[0].1, SEGMENT_HEADER_BYTES);
    desk.written(4);
    assert_eq!(desk.log.counts.stalls, 0);
    // Where there is none, it stalls.
    let mut desk = Desk::new(|_| {});
    desk.log = Log::new(&desk.config, End { head: 2 * SEGMENT, chain: 1, epoch: 1 });
    assert_eq!(desk.append(0).unwrap_err(), AppendError::Busy);
    assert_eq!(desk.append(0).unwrap_err(), AppendError::Busy);
    assert_eq!(desk.log.counts.stalls, 2);
    // A log that ends where its segment does goes on in the next one; one that fills the last block, too.
    desk.log = Log::new(&desk.config, End { head: SEGMENT - 1, chain: 1, epoch: 1 });
    assert_eq!(desk.append(0).unwrap(), SEGMENT + SEGMENT_HEADER_BYTES + batch(0));
    desk.log = Log::new(&desk.config, End { head: SEGMENT - BLOCK_BYTES, chain: 1, epoch: 1 });
    assert_eq!(desk.append(4000).unwrap(), SEGMENT - BLOCK_BYTES + batch(0));
    desk.log = Log::new(&desk.config, End { head: SEGMENT - BLOCK_BYTES, chain: 1, epoch: 1 });
    assert_eq!(desk.append(4001).unwrap(), SEGMENT + SEGMENT_HEADER_BYTES + batch(0));
}

#[test]
fn too_much_that_waits_is_refused() {
    let mut desk = Desk::new(|config| (config.batch_bytes, config.inflight_batches) = (64 << 10, 1));
    desk.config.memory = Region::new(64, 1 << 20).unwrap();
    desk.log = Log::new(&desk.config, End::default());
    assert_eq!(desk.log.queued_max, 32 << 20);
    desk.log.queued_max = 4 << 20;
    let mut waiting = 0;
    let error = loop {
        match desk.append(500_000) {
            Ok(_) => waiting += 1,
            Err(error) => break error,
        }
    };
    // Each takes whole blocks.
    assert_eq!((error, waiting), (AppendError::Busy, 8));
    assert_eq!(desk.log.counts.refusals, 1);
    let closed: u64 = desk.log.flights.iter().map(|flight| flight.bytes.len() as u64).sum();
    assert!(closed <= 4 << 20 && closed + 500_000 + RECORD_HEADER_BYTES as u64 > 4 << 20);
    // With little memory, two batches of the largest size wait all the same.
    let small = Desk::new(|_| {});
    assert_eq!(small.log.queued_max, 2 * u64::from(BATCH_BYTES_MAX));
    // Exactly as much as may wait, does.
    let mut desk = Desk::new(|_| {});
    desk.through(100);
    desk.log.queued_max = 1000;
    assert!(desk.log.reserve(1000 - RECORD_HEADER_BYTES, 1, &desk.segments, 0).is_ok());
    desk.log.building = None;
    assert!(desk.log.reserve(1001 - RECORD_HEADER_BYTES, 1, &desk.segments, 0).is_err());
}

#[test]
fn the_tail_gives_its_memory_up_for_new_batches() {
    let mut desk = Desk::new(|config| config.memory = Region::new(8, 256 << 10).unwrap());
    for _ in 0..40 {
        desk.through(200_000);
        assert!(desk.config.memory.free() >= 1, "a part of it is not for the tail");
    }
    let held = desk.log.tail().bytes();
    assert!(held > 4 * 200_000, "the tail has most of it: {held}");
    // One that is larger than a chunk has memory of its own, and the tail gets shorter for it.
    desk.through(1 << 20);
    let held = desk.log.tail().bytes();
    assert!(held <= 8 * (256 << 10), "the tail is bounded: {held}");
    assert!(held > 1 << 20);
    // As long as readers pin what the tail gives up, there is none; what it gives up for nothing is bounded.
    let mut desk = Desk::new(|config| config.memory = Region::new(8, 256 << 10).unwrap());
    let mut pinned = Vec::new();
    let mut refused = 0;
    for _ in 0..12 {
        match desk.append(200_000) {
            Ok(byte) => {
                desk.turn().into_iter().for_each(|number| _ = desk.written(number));
                pinned.push(desk.log.tail().slice(byte, 1000).unwrap());
            }
            Err(error) => {
                assert_eq!(error, AppendError::Busy);
                refused += 1;
            }
        }
    }
    assert_eq!(pinned.len(), 8);
    assert_eq!((refused, desk.log.counts.refusals), (4, 4));
    pinned.clear();
    assert!(desk.append(200_000).is_ok());
}

#[test]
fn a_batch_of_a_whole_chunk_lies_in_one() {
    let mut desk = Desk::new(|config| config.memory = Region::new(8, 256 << 10).unwrap());
    desk.append((256 << 10) - batch(0) as usize).unwrap();
    assert_eq!(desk.config.memory.free(), 7);
}

#[test]
fn a_batch_ends_where_its_chunk_or_its_segment_does() {
    let mut desk =
        Desk::new(|config| (config.batch_bytes, config.memory) = (1 << 20, Region::new(8, 256 << 10).unwrap()));
    // It begins with the last block's bytes again: these take room, too.
    desk.through(3000);
    (0..300).for_each(|_| _ = desk.append(1000).unwrap());
    assert_eq!(desk.log.flights.len(), 1);
    assert_eq!(desk.log.flights[0].bytes.len(), (256 << 10) - 4096);
    let mut desk = Desk::new(|_| {});
    desk.log = Log::new(&desk.config, End { head: SEGMENT - 2 * BLOCK_BYTES, chain: 1, epoch: 1 });
    let bytes = [0; 3].map(|_| desk.append(4000).unwrap());
    let first = SEGMENT - 2 * BLOCK_BYTES + batch(0);
    assert_eq!(
        bytes,
        [first, first + batch(4000) - BATCH_HEADER_BYTES as u64, SEGMENT + SEGMENT_HEADER_BYTES + batch(0)]
    );
}

#[test]
fn the_tail_gives_up_no_more_than_it_must() {
    let chunk = 256 << 10;
    // All that it has and one more batch fill the memory.
    let mut desk = Desk::new(|config| config.memory = Region::new(8, chunk).unwrap());
    (0..4).for_each(|_| desk.through(chunk - batch(0) as usize));
    desk.through(4 * chunk - batch(0) as usize);
    assert_eq!(desk.log.tail().bytes(), 8 * chunk);
    // Two chunks' worth, for nothing: readers pin it.
    for (length, given) in [(chunk - batch(0) as usize, 2), (200_000, 3)] {
        let mut desk = Desk::new(|config| config.memory = Region::new(8, chunk).unwrap());
        let (mut pinned, mut held) = (Vec::new(), 0);
        while let Ok(byte) = desk.append(length) {
            desk.turn().into_iter().for_each(|number| _ = desk.written(number));
            pinned.push(desk.log.tail().slice(byte, 100).unwrap());
            held = desk.log.tail().bytes();
        }
        assert_eq!(held - desk.log.tail().bytes(), given * batch(length) as usize);
    }
}

#[test]
fn half_of_the_tail_leaves_soon_once_memory_is_scarce() {
    let chunk = 256 << 10;
    let mut desk = Desk::new(|config| config.memory = Region::new(24, chunk).unwrap());
    // 24 / 8 are never the tail's. Before it gives up any, as many and two more are left.
    let others: Vec<_> = (0..16).map(|_| desk.config.memory.take().unwrap()).collect();
    assert_eq!(desk.log.leaves(), 0, "there is no tail");
    drop(others);
    let half = chunk as u64 / 2;
    let leaves = [0; 30].map(|_| {
        desk.through(chunk - batch(0) as usize);
        desk.log.leaves()
    });
    assert_eq!(leaves[..15], [0; 15], "memory is not scarce");
    assert_eq!(leaves[15..21], [16, 17, 18, 19, 20, 21].map(|count| SEGMENT_HEADER_BYTES + count * half));
    assert_eq!(leaves[29], SEGMENT_HEADER_BYTES + 9 * 2 * half + 21 * half, "nine are gone");
}

#[test]
fn a_chunk_is_used_while_it_has_room_enough() {
    for (more, left) in [(0, 7), (1, 6)] {
        let mut desk = Desk::new(|config| config.memory = Region::new(8, 256 << 10).unwrap());
        desk.through((256 << 10) - ROOM_LEAST - batch(0) as usize + more);
        desk.append(100).unwrap();
        assert_eq!(desk.config.memory.free(), left);
    }
}

#[test]
fn small_batches_share_a_chunk_while_it_has_room() {
    let mut desk = Desk::new(|config| config.memory = Region::new(8, 256 << 10).unwrap());
    for _ in 0..40 {
        // Each takes three blocks, one of them again.
        desk.through(5000);
    }
    assert_eq!(desk.config.memory.free(), 6, "a new one is taken when less than {ROOM_LEAST} bytes are left");
}

#[test]
fn a_failed_or_short_write_breaks_all_promises_behind_it() {
    for outcome in [Err(Fault(libc::ENOSPC)), Ok(Outcome::Count(4095)), Ok(Outcome::Nothing)] {
        let fault = *outcome.as_ref().err().unwrap_or(&Fault(libc::EIO));
        let mut desk = Desk::new(|_| {});
        desk.through(10);
        let durable = desk.log.durable();
        desk.append(10).unwrap();
        let [first] = desk.turn()[..] else { panic!() };
        desk.append(10).unwrap();
        let [second] = desk.turn()[..] else { panic!() };
        desk.append(10).unwrap();
        assert_eq!(desk.done(first, outcome), [0; 0]);
        assert_eq!(desk.log.failed(), Some(fault));
        assert!(desk.log.is_busy(), "one is still in the kernel");
        let broken = desk.log.take_broken();
        let told: Vec<_> = broken.iter().flat_map(|promise| &promise.tickets).map(|ticket| ticket.0).collect();
        assert_eq!(told, [1, 2, 3], "also what was not closed yet");
        assert_eq!(desk.done(second, Ok(Outcome::Count(4096))), [0; 0]);
        assert!(!desk.log.is_busy() && desk.log.is_idle());
        assert_eq!(desk.watermarks().1, durable);
        assert_eq!(desk.append(10).unwrap_err(), AppendError::Closed(fault.kind()));
        desk.now_ms += 10_000;
        desk.turn();
        assert!(desk.wanted.is_empty());
        desk.log.fail(Fault(libc::EBADF));
        assert_eq!(desk.log.failed(), Some(fault), "the first reason is the reason");
    }
}

#[test]
fn a_sync_that_comes_back_after_a_failure_makes_nothing_durable() {
    let mut desk = Desk::new(|config| config.flush = Flush::Async { interval_ms: 50 });
    desk.through(100);
    desk.turn();
    assert_eq!(desk.syncs(), [3]);
    desk.log.fail(Fault(libc::EIO));
    desk.log.on_synced(Ok(Outcome::Nothing), 1000);
    assert_eq!(desk.log.durable(), 0);
}

#[test]
fn memory_of_promises_is_used_again_and_they_are_empty() {
    let mut desk = Desk::new(|config| config.inflight_batches = 1);
    let slot = Index::new(0).slot(QUEUE);
    for _ in 0..5 {
        desk.append(10).unwrap();
        let promise = desk.log.promise();
        promise.keys.push((1, 2));
        promise.shows.push((slot, 3, Entry { byte: 4, store_time_ms: 5, length: 6, tag_hash: 7 }));
        let [number] = desk.turn()[..] else { panic!() };
        desk.log.on_written(number, Ok(Outcome::Count(4096)), 1000, &mut desk.kept);
        let promise = desk.kept.pop().unwrap();
        assert_eq!((promise.tickets.len(), promise.keys.len(), promise.shows.len()), (1, 1, 1));
        desk.log.recycle(promise);
    }
    assert_eq!(desk.log.promises.len(), 1);
    assert!(desk.log.promises[0].tickets.capacity() > 0);
    (0..9).for_each(|_| desk.log.recycle(Promise::default()));
    assert_eq!(desk.log.promises.len(), 3, "no more than may be under way at once");
}
