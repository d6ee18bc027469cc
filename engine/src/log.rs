//! Group commit: records become batches, batches overlap in the kernel, acknowledgements leave in log order.
//!
//! A batch that starts while another waits or is in the kernel starts on a fresh block. One that starts
//! on an idle log continues in the last block, whose earlier bytes it writes again unchanged.

use crate::buffer::{Chunk, Region, blocks_up, prefetch_all};
use crate::error::AppendError;
use crate::format::crc32c;
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, Kind, QueueKey, RECORD_HEADER_BYTES, RecordHeader,
    SEGMENT_HEADER_BYTES,
};
use crate::index::{Entry, Slot};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_BYTES_MAX, BATCH_RECORDS_MAX, Flush, IDLE_MS, LogConfig};
use crate::segment::Segments;
use crate::tail::Tail;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// What the caller wants to be told by once what it appended is answerable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// A batch starts in a new chunk rather than with less room than this. Bytes.
const ROOM_LEAST: usize = 64 << 10;

/// The memory of the next record, which is probably as long, is fetched into the cache while that one is on its way:
/// it was used last when the tail began. At most so many bytes.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// A log that is idle this long is quiet: between the requests of a single client it is idle, too.
const QUIET_MS: u64 = 200;

/// One part in so many of the memory is not for the tail: it is there for new batches while slow readers
/// pin what the tail gave up.
const MEMORY_SPARE_PARTS: usize = 8;

/// What becomes true once a batch is answerable.
#[derive(Debug, Default)]
pub struct Promise {
    /// Whom to tell.
    pub tickets: Vec<Ticket>,
    /// Messages that become visible.
    pub shows: Vec<(Slot, u64, Entry)>,
    /// Keys that become findable: hash and log byte.
    pub keys: Vec<(u64, u64)>,
    /// The log byte where the batch begins, and the log at its end.
    pub base: u64,
    /// See `base`.
    pub end: End,
}

impl Promise {
    fn clear(&mut self) {
        self.tickets.clear();
        self.shows.clear();
        self.keys.clear();
    }
}

/// The batch that takes records now. It lies at the start of the chunk's unshared bytes.
#[derive(Debug)]
struct Building {
    /// Bytes before the header: the last block's earlier bytes, again.
    prefix: usize,
    base: u64,
    /// Bytes of header and records so far.
    length: usize,
    /// Most that `length` may become.
    capacity: usize,
    records: u32,
    promise: Promise,
}

/// A batch that is closed and not settled.
#[derive(Debug)]
struct Flight {
    number: u64,
    /// Log bytes that are written, in whole blocks.
    range: Range<u64>,
    end: u64,
    bytes: Bytes,
    empty: bool,
    state: State,
    promise: Promise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Writing,
    Written,
}

/// A sync under way (asynchronous flush).
#[derive(Debug)]
struct Syncing {
    upto: u64,
    left: usize,
}

/// What the log wants done.
#[derive(Debug)]
pub enum Want {
    /// Write a batch; it comes back by [`Log::on_written`].
    Write {
        /// Which batch.
        number: u64,
        /// The operation.
        op: Op,
    },
    /// Sync a file; it comes back by [`Log::on_synced`].
    Sync(Handle),
}

/// Where recovery found the log's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The log byte behind the last intact batch.
    pub head: u64,
    /// That batch's checksum; 0 for an empty log.
    pub chain: u32,
    /// That batch's epoch; 0 for an empty log.
    pub epoch: u64,
}

/// The writing end of a partition's log.
#[derive(Debug)]
pub struct Log {
    partition: u16,
    epoch: u64,
    flush: Flush,
    batch_bytes: usize,
    inflight_max: usize,
    queued_max: u64,
    memory: Arc<Region>,
    chunk: Option<Chunk>,
    chain: u32,
    /// The log byte behind the last closed batch.
    head: u64,
    /// The last closed batch's bytes in its last block, if it ends within one.
    last_block: Vec<u8>,
    building: Option<Building>,
    /// The headers of its records, one behind the other: summed at once when it is closed.
    headers: Vec<u8>,
    flights: VecDeque<Flight>,
    writing: usize,
    next_number: u64,
    written: u64,
    durable: u64,
    /// The log byte behind the last batch with records, and the highest watermark that a header names.
    content: u64,
    named: u64,
    idle_since_ms: u64,
    syncing: Option<Syncing>,
    sync_at_ms: u64,
    /// Somebody waits until the log is durable up to here.
    hurried: u64,
    tail: Tail,
    promises: Vec<Promise>,
    failed: Option<Fault>,
    /// Counters.
    pub counts: Counts,
}

/// What the log counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches written.
    pub batches: u64,
    /// Bytes of batches, padding included.
    pub bytes: u64,
    /// Records.
    pub records: u64,
    /// Bytes written to places that were not prepared.
    pub unprepared_bytes: u64,
    /// Times that the next segment was not ready.
    pub stalls: u64,
    /// Appends refused because too much waited.
    pub refusals: u64,
}

impl Log {
    /// A log that goes on behind `end`, in a new epoch. The caller appends and settles one batch (see
    /// [`announce`](Log::announce)) before it accepts anything from outside.
    pub fn new(config: &LogConfig, end: End) -> Log {
        Log {
            partition: config.partition,
            epoch: end.epoch + 1,
            flush: config.flush,
            batch_bytes: config.batch_bytes as usize,
            inflight_max: config.inflight_batches as usize,
            queued_max: (config.memory.bytes() as u64 / 2).max(2 * u64::from(BATCH_BYTES_MAX)),
            memory: Arc::clone(&config.memory),
            chunk: None,
            chain: end.chain,
            // What lies behind the last intact batch in its block is not known: a fresh block.
            head: end.head.next_multiple_of(BLOCK_BYTES),
            last_block: Vec::new(),
            building: None,
            headers: Vec::new(),
            flights: VecDeque::new(),
            writing: 0,
            next_number: 0,
            written: end.head,
            durable: end.head,
            content: end.head,
            // The caller's first batch names it, once it has made sure that it is so: nothing here may before.
            named: end.head,
            idle_since_ms: 0,
            syncing: None,
            sync_at_ms: 0,
            hurried: 0,
            tail: Tail::default(),
            promises: Vec::new(),
            failed: None,
            counts: Counts::default(),
        }
    }

    /// The log byte behind everything accepted.
    pub fn accepted(&self) -> u64 {
        self.building.as_ref().map_or(self.head, |building| building.base + building.length as u64).max(self.written)
    }

    /// The log byte behind everything written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The log byte behind everything durable.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Where the next batch may start.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Why the log takes nothing any more, if it does not.
    pub fn failed(&self) -> Option<Fault> {
        self.failed
    }

    /// Whether operations of ours are in the kernel.
    pub fn is_busy(&self) -> bool {
        self.writing > 0 || self.syncing.is_some()
    }

    /// Whether anything waits to be written or settled.
    pub fn is_idle(&self) -> bool {
        self.building.is_none() && self.flights.is_empty()
    }

    /// Whether nothing was written for a while: time for work that would disturb it.
    pub fn is_quiet(&self, now_ms: u64) -> bool {
        self.is_idle() && now_ms >= self.idle_since_ms + QUIET_MS
    }

    /// Whether all of it is durable and a header says so.
    pub fn is_settled(&self) -> bool {
        self.is_idle() && self.syncing.is_none() && self.durable == self.written && self.content <= self.named
    }

    /// The tail of the log in memory.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// What of the tail lies below this log byte may soon be given up: half of it, once memory is scarce. 0: nothing.
    pub fn leaves(&self) -> u64 {
        let is_scarce = self.memory.free() <= 2 * (self.memory.chunks() / MEMORY_SPARE_PARTS) + 2;
        let bytes = self.tail.bytes() as u64 / 2;
        if is_scarce && bytes > 0 { self.tail.floor() + bytes } else { 0 }
    }

    /// Makes room, in one batch, for `records` records with `payload` bytes in all. What is appended next,
    /// up to that, goes into that batch together.
    pub fn reserve(
        &mut self,
        payload: usize,
        records: u32,
        segments: &Segments,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        if let Some(fault) = self.failed {
            return Err(AppendError::Closed(fault.kind()));
        }
        let need = payload + records as usize * RECORD_HEADER_BYTES;
        let bytes_max = BATCH_RECORDS_BYTES_MAX;
        if need > bytes_max || records > BATCH_RECORDS_MAX {
            return Err(AppendError::TooLarge { bytes: need as u64, bytes_max: bytes_max as u64 });
        }
        if let Some(building) = &self.building {
            let length = building.length + need;
            let wanted = length <= self.batch_bytes || building.records == 0;
            if wanted && length <= building.capacity && building.records + records <= BATCH_RECORDS_MAX {
                return Ok(());
            }
            self.close(now_ms);
        }
        self.start(need, segments)
    }

    /// Appends a record to the batch that [`reserve`](Log::reserve) made room in. `fill` gets the log byte
    /// of the payload and the place to write it to. Returns that log byte.
    #[inline]
    pub fn record(
        &mut self,
        kind: Kind,
        queue: QueueKey,
        offset: u64,
        length: usize,
        fill: impl FnOnce(u64, &mut [u8]),
    ) -> u64 {
        self.record_noted(kind, queue, offset, 0, length, fill)
    }

    /// As [`record`](Log::record), with a note in the record's header.
    pub fn record_noted(
        &mut self,
        kind: Kind,
        queue: QueueKey,
        offset: u64,
        note: u32,
        length: usize,
        fill: impl FnOnce(u64, &mut [u8]),
    ) -> u64 {
        let building = self.building.as_mut().expect("reserve() came before");
        let chunk = self.chunk.as_mut().expect("a batch lies in a chunk");
        let at = building.prefix + building.length;
        assert!(building.length + RECORD_HEADER_BYTES + length <= building.capacity, "reserve() asked for less");
        let byte = building.base + (building.length + RECORD_HEADER_BYTES) as u64;
        let (out, next) = chunk.spare_mut()[at..].split_at_mut(RECORD_HEADER_BYTES + length);
        let (header_out, payload_out) = out.split_at_mut(RECORD_HEADER_BYTES);
        fill(byte, payload_out);
        let crc = crc32c::crc32c(payload_out);
        let header = RecordHeader { length: length as u32, crc, kind, queue, note, offset }.encode();
        prefetch_all(&next[..next.len().min(length).min(AHEAD_BYTES_MAX)]);
        header_out.copy_from_slice(&header);
        self.headers.extend_from_slice(&header);
        building.length += RECORD_HEADER_BYTES + length;
        building.records += 1;
        self.counts.records += 1;
        byte
    }

    /// What becomes true once the batch being built is answerable.
    pub fn promise(&mut self) -> &mut Promise {
        &mut self.building.as_mut().expect("reserve() came before").promise
    }

    /// Tells this ticket, too, when all that was accepted is answerable. False: it is already.
    pub fn ride(&mut self, ticket: Ticket) -> bool {
        let last = self.flights.back_mut().map(|flight| &mut flight.promise);
        match self.building.as_mut().map(|building| &mut building.promise).or(last) {
            Some(promise) => promise.tickets.push(ticket),
            None => return false,
        }
        true
    }

    /// Starts an empty batch: an opening raises the epoch with it, an idle log names its watermark with it.
    pub fn announce(&mut self, segments: &Segments, now_ms: u64) -> Result<(), AppendError> {
        self.reserve(0, 0, segments, now_ms)
    }

    /// Closes what was built in this turn and starts as many writes as may overlap.
    pub fn on_turn(&mut self, segments: &mut Segments, now_ms: u64, wanted: &mut Vec<Want>) {
        if self.failed.is_some() {
            return;
        }
        let unnamed = self.content > self.named && self.is_idle() && self.durable >= self.content;
        let named = !unnamed || now_ms < self.idle_since_ms + IDLE_MS || self.announce(segments, now_ms).is_ok();
        if !named {
            // There is no room now: later.
            self.idle_since_ms = now_ms;
        }
        if self.building.is_some() && self.writing < self.inflight_max {
            self.close(now_ms);
        }
        for flight in self.flights.iter_mut().filter(|flight| flight.state == State::Ready) {
            if self.writing == self.inflight_max || !segments.may_write(&flight.range) {
                break;
            }
            let segment = segments.holding(flight.range.start).expect("start() chose a live segment");
            let (file, at) = (segment.handle, flight.range.start - segment.base);
            let op = Op::Write { file, at, bytes: flight.bytes.clone(), durable: self.flush == Flush::Sync };
            self.counts.unprepared_bytes += segments.note_write(&flight.range, now_ms);
            flight.state = State::Writing;
            self.writing += 1;
            wanted.push(Want::Write { number: flight.number, op });
        }
        if let Flush::Async { interval_ms } = self.flush
            && self.syncing.is_none()
            && self.durable < self.written
            && (now_ms >= self.sync_at_ms || self.is_hurried())
        {
            self.sync_at_ms = now_ms + interval_ms;
            let touched = |base: u64, end: u64| base < self.written && self.durable < end;
            let files = segments.live().iter().filter(|segment| touched(segment.base, segment.end()));
            let before = wanted.len();
            wanted.extend(files.map(|segment| Want::Sync(segment.handle)));
            self.syncing = Some(Syncing { upto: self.written, left: wanted.len() - before });
        }
    }

    /// When [`on_turn`](Log::on_turn) has something to do even if nothing happens.
    pub fn deadline_ms(&self, segments: &Segments) -> u64 {
        let mut ready = self.flights.iter().filter(|flight| flight.state == State::Ready);
        let has_batch = self.building.is_some() || ready.next().is_some_and(|first| segments.may_write(&first.range));
        if has_batch && self.writing < self.inflight_max && self.failed.is_none() {
            return 0;
        }
        let mut deadline = u64::MAX;
        if self.content > self.named && self.is_idle() && self.durable >= self.content {
            deadline = self.idle_since_ms + IDLE_MS;
        }
        if self.durable < self.written && self.syncing.is_none() {
            deadline = deadline.min(if self.is_hurried() { 0 } else { self.sync_at_ms });
        }
        deadline
    }

    /// Makes a sync due as soon as all up to this log byte is written.
    pub fn hurry_to(&mut self, byte: u64) {
        self.hurried = self.hurried.max(byte);
    }

    fn is_hurried(&self) -> bool {
        self.durable < self.hurried && self.hurried <= self.written
    }

    /// Makes the next sync due at once.
    pub fn hurry(&mut self) {
        self.sync_at_ms = 0;
        self.idle_since_ms = 0;
    }

    /// A batch's write came back. What became answerable goes to `kept`, in log order. After a failure
    /// nothing does any more: [`take_broken`](Log::take_broken) has what was promised.
    pub fn on_written(&mut self, number: u64, outcome: Result<Outcome, Fault>, now_ms: u64, kept: &mut Vec<Promise>) {
        self.writing -= 1;
        if self.failed.is_some() {
            return;
        }
        let flight = self.flights.iter_mut().find(|flight| flight.number == number).expect("it was in the kernel");
        match outcome {
            Ok(Outcome::Count(count)) if count == flight.bytes.len() => flight.state = State::Written,
            Ok(_) => return self.fail(Fault(libc::EIO)),
            Err(fault) => return self.fail(fault),
        }
        self.counts.batches += 1;
        self.counts.bytes += flight.bytes.len() as u64;
        while self.flights.front().is_some_and(|flight| flight.state == State::Written) {
            let flight = self.flights.pop_front().expect("there is one");
            assert!(self.written <= flight.end, "batches settle in log order");
            self.written = flight.end;
            if self.flush == Flush::Sync {
                self.durable = flight.end;
            }
            if !flight.empty {
                self.content = flight.end;
            }
            self.idle_since_ms = now_ms;
            kept.push(flight.promise);
        }
        assert!(self.durable <= self.written && self.written <= self.accepted(), "watermarks are ordered");
    }

    /// A sync came back.
    pub fn on_synced(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64) {
        let syncing = self.syncing.as_mut().expect("a sync is under way");
        syncing.left -= 1;
        let (upto, left) = (syncing.upto, syncing.left);
        if left == 0 {
            self.syncing = None;
        }
        match outcome {
            Err(fault) => self.fail(fault),
            Ok(_) if left == 0 && self.failed.is_none() => {
                self.durable = self.durable.max(upto);
                self.idle_since_ms = now_ms;
            }
            Ok(_) => {}
        }
    }

    /// Takes back a promise's memory.
    pub fn recycle(&mut self, mut promise: Promise) {
        if self.promises.len() < self.inflight_max + 2 {
            promise.clear();
            self.promises.push(promise);
        }
    }

    /// Takes nothing any more, until it is recovered.
    pub fn fail(&mut self, fault: Fault) {
        self.failed.get_or_insert(fault);
    }

    /// After a failure: all that was promised and is not kept.
    pub fn take_broken(&mut self) -> Vec<Promise> {
        let flights = self.flights.drain(..).map(|flight| flight.promise);
        flights.chain(self.building.take().map(|building| building.promise)).collect()
    }

    /// Finds the place and the memory of the next batch, with room for `need` bytes of records.
    fn start(&mut self, need: usize, segments: &Segments) -> Result<(), AppendError> {
        let waiting: u64 = self.flights.iter().map(|flight| flight.bytes.len() as u64).sum();
        if waiting + need as u64 > self.queued_max {
            self.counts.refusals += 1;
            return Err(AppendError::Busy);
        }
        let least = (BATCH_HEADER_BYTES + need) as u64;
        let mut base = if self.flights.is_empty() { self.head } else { self.head.next_multiple_of(BLOCK_BYTES) };
        let mut segment = segments.holding(base).filter(|segment| segment.end() - base >= least);
        if segment.is_none() {
            // The next segment goes on where the last one ends; an empty log starts in the first.
            let last = segments.live().iter().find(|segment| segment.base <= self.head && self.head <= segment.end());
            let next = last.map_or(self.head, |last| last.end());
            segment = segments.holding(next);
            base = next + SEGMENT_HEADER_BYTES;
        }
        let Some(segment) = segment else {
            self.counts.stalls += 1;
            return Err(AppendError::Busy);
        };
        if base == segment.base {
            base += SEGMENT_HEADER_BYTES;
        }
        let prefix = if base == self.head { self.last_block.len() } else { 0 };
        assert_eq!((base - prefix as u64) % BLOCK_BYTES, 0, "a write starts on a block");
        let room_least = blocks_up(prefix + BATCH_HEADER_BYTES + need);
        if self.chunk.as_ref().is_none_or(|chunk| chunk.len() < room_least.max(ROOM_LEAST)) {
            self.chunk = Some(self.take_chunk(room_least)?);
        }
        let chunk = self.chunk.as_mut().expect("taken above");
        chunk.spare_mut()[..prefix].copy_from_slice(&self.last_block[..prefix]);
        let capacity = (chunk.len() - prefix).min((segment.end() - base).min(u64::from(BATCH_BYTES_MAX)) as usize);
        self.headers.clear();
        self.building = Some(Building {
            prefix,
            base,
            length: BATCH_HEADER_BYTES,
            capacity,
            records: 0,
            promise: self.promises.pop().unwrap_or_default(),
        });
        Ok(())
    }

    /// Memory for a batch. The tail gives its oldest batches up for it, but, while slow readers pin those,
    /// not all of them for nothing.
    fn take_chunk(&mut self, bytes: usize) -> Result<Chunk, AppendError> {
        let chunk_bytes = self.memory.chunk_bytes();
        if bytes > chunk_bytes {
            // It is no part of the region, but what the tail holds is bounded all the same.
            while self.tail.bytes() + bytes > self.memory.bytes() {
                if self.tail.pop().is_none() {
                    break;
                }
            }
            return Ok(Chunk::standalone(bytes));
        }
        let spare = self.memory.chunks() / MEMORY_SPARE_PARTS;
        let mut given = 0;
        while self.memory.free() <= spare && given < 2 * chunk_bytes {
            let Some(batch) = self.tail.pop() else { break };
            given += batch.len();
        }
        self.memory.take().ok_or_else(|| {
            self.counts.refusals += 1;
            AppendError::Busy
        })
    }

    fn close(&mut self, now_ms: u64) {
        let mut building = self.building.take().expect("a batch is being built");
        let chunk = self.chunk.as_mut().expect("a batch lies in a chunk");
        let header = BatchHeader {
            partition: self.partition,
            length: building.length as u32,
            records: building.records,
            epoch: self.epoch,
            base: building.base,
            durable: self.durable,
            closed_ms: now_ms,
            previous: self.chain,
        };
        let end_at = building.prefix + building.length;
        let total = blocks_up(end_at);
        let memory = &mut chunk.spare_mut()[..total];
        self.chain = header.encode(&mut memory[building.prefix..], crc32c::crc32c(&self.headers));
        memory[end_at..].fill(0);
        self.last_block.clear();
        self.last_block.extend_from_slice(&memory[end_at - end_at % BLOCK_BYTES as usize..end_at]);
        let bytes = chunk.split_to(total);
        self.tail.push(building.base, bytes.slice(building.prefix..end_at));
        self.head = header.end();
        building.promise.base = building.base;
        building.promise.end = End { head: self.head, chain: self.chain, epoch: self.epoch };
        self.named = self.named.max(header.durable);
        let from = building.base - building.prefix as u64;
        self.flights.push_back(Flight {
            number: self.next_number,
            range: from..from + total as u64,
            end: self.head,
            bytes,
            empty: building.records == 0,
            state: State::Ready,
            promise: building.promise,
        });
        self.next_number += 1;
    }
}

#[cfg(test)]
mod tests;
