//! A partition: one log with what is derived from it, owned by one core. Facts go in ([`on_done`]
//! (Partition::on_done), [`on_turn`](Partition::on_turn), appends), things to do come out
//! ([`effects`](Partition::effects)). It never waits, reads a clock or opens a file.

use crate::derived::{Derived, OWN_PREFIX, queue_fact_key};
use crate::error::AppendError;
use crate::facts;
use crate::format::{BLOCK_BYTES, Kind, Position, QueueKey, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES};
use crate::index::{Entry, Span};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::{BATCH_BYTES_MAX, FACT_BYTES_MAX, LOAD_BYTES, LogConfig, NOTES_INTERVAL_MS, RECORD_BYTES_MAX};
use crate::loads::{LoadId, Loads};
use crate::log::{Counts, End, Log, Promise, Ticket, Want};
use crate::message::{Draft, Stored};
use crate::recover::{Found, Next, OpenError, Recovery};
use crate::segment::{Chore, Segments};
use crate::tail::Tail;
use crate::timers::Timer;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io;

/// A log that failed is recovered this long after its last operation came back. Milliseconds.
const REOPEN_MS: u64 = 1000;
/// What could not be done for want of room, or of a disk that reads, is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 100;
/// Bytes of facts written in one record, and in one turn of a snapshot.
const FACTS_RECORD_BYTES: usize = 64 << 10;
/// Delayed messages delivered in one turn.
const DELIVERIES_MAX: usize = 256;
/// Queues written into one record of a snapshot.
const SNAPSHOT_QUEUES: usize = 2048;

/// What a partition wants of its core.
#[derive(Debug)]
pub enum Effect {
    /// An operation. It comes back by [`Partition::on_done`] with `local`, a number below 2^40.
    Io {
        /// What the completion is recognised by.
        local: u64,
        /// The operation.
        op: Op,
    },
    /// An append became answerable, or never will. In log order.
    Stored(Ticket, Result<(), AppendError>),
    /// A queue has new visible messages.
    Grown(QueueKey),
    /// A cold read is back: ask again, or tell why not.
    Loaded(LoadId, Result<(), Fault>),
    /// The partition takes appends.
    Opened,
    /// The partition takes nothing more. Before the first [`Effect::Opened`] it stays so.
    Closed(String),
    /// What [`Partition::shut`] asked for is done.
    Shut,
}

/// How much a pull may give.
#[derive(Clone, Copy, Debug)]
pub struct PullLimits {
    /// Messages at most.
    pub messages: u32,
    /// Bytes at most; the first message is always given.
    pub bytes: u32,
    /// Index entries looked at, at most.
    pub scan: u32,
}

/// What a pull gives.
#[derive(Debug)]
pub enum Pull {
    /// Stored messages, and the offset to ask for next.
    Found {
        /// Each as it was stored.
        messages: Vec<Bytes>,
        /// The offset behind the last one looked at.
        next: u64,
    },
    /// None of those looked at was wanted.
    NoMatch {
        /// The offset behind the last one looked at.
        next: u64,
    },
    /// There is no message at this offset yet.
    Empty,
    /// The offset is outside the queue's span.
    OutOfRange,
    /// The messages are being read: ask again after [`Effect::Loaded`].
    Loading(LoadId),
    /// The message at this offset is damaged on disk.
    Damaged(Position),
    /// The log is being recovered.
    Opening,
}

/// What is known of a partition at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// The log byte of the oldest message that may be left.
    pub floor: u64,
    /// The log byte behind everything accepted.
    pub accepted: u64,
    /// The log byte behind everything written.
    pub written: u64,
    /// The log byte behind everything durable.
    pub durable: u64,
    /// Queues with messages.
    pub queues: u64,
    /// Delayed messages that wait.
    pub delayed: u64,
    /// When the oldest segment's newest batch was closed, ms since 1970; 0 if unknown.
    pub oldest_ms: u64,
    /// Bytes available on the file system; 0 until known.
    pub available: u64,
    /// Size of the file system; 0 until known.
    pub total: u64,
    /// Writes bypass the page cache.
    pub direct: bool,
    /// What the log counted since it was opened.
    pub counts: Counts,
}

#[derive(Debug)]
enum State {
    /// What is found is not shown before it is complete.
    Opening(Box<Recovery>, Box<Derived>),
    /// The log's end is known; what was found is being made durable, and the new epoch announced.
    Starting {
        announced: bool,
    },
    Open,
    Shutting,
    Shut,
    /// A write failed. Operations still under way are waited for.
    Failing,
    Waiting {
        until_ms: u64,
    },
    /// A person must look.
    Broken,
}

/// All live facts being written again.
#[derive(Debug)]
struct Snapshot {
    begin: u64,
    queues: VecDeque<(QueueKey, u64)>,
    after: Option<Box<[u8]>>,
    facts_left: bool,
    /// The next slice is due.
    again_ms: u64,
}

/// One partition. See the module.
#[derive(Debug)]
pub struct Partition {
    config: LogConfig,
    state: State,
    opened_once: bool,
    segments: Segments,
    log: Log,
    derived: Derived,
    loads: Loads,
    snapshot: Option<Snapshot>,
    /// The end record of a snapshot is accepted up to the first; the snapshot begins at the second.
    snapshot_ending: Option<(u64, u64)>,
    /// Where the log stood when the last snapshot was begun or thought unnecessary.
    snapshot_segment: u64,
    /// Syncs of an opening in the kernel.
    starts: usize,
    /// Noted facts that are in the log and not durable yet, with the log byte of their record.
    notes: VecDeque<(u64, Vec<u8>)>,
    notes_at_ms: u64,
    delivery: Option<LoadId>,
    deliver_again_ms: u64,
    /// Marks of deliveries that are not durable yet, each with the log byte of the delayed message.
    delivering: VecDeque<(u64, u64)>,
    delayed_offset: u64,
    effects: Vec<Effect>,
    kept: Vec<Promise>,
    wants: Vec<Want>,
    chores: Vec<(Chore, Op)>,
}

/// What an operation was for: the upper bits of its local number.
mod purpose {
    pub const WRITE: u64 = 0;
    pub const SYNC: u64 = 1;
    pub const LOAD: u64 = 2;
    pub const CHORE: u64 = 3;
    pub const RECOVER: u64 = 4;
    pub const START: u64 = 5;
    pub const CLOSE: u64 = 6;
    pub const SHIFT: u32 = 36;
}

const CHORES: [Chore; 6] = [Chore::Make, Chore::Retire, Chore::Zero, Chore::Space, Chore::Shrink, Chore::Close];

fn local(purpose: u64, number: u64) -> u64 {
    purpose << purpose::SHIFT | number & ((1 << purpose::SHIFT) - 1)
}

impl Partition {
    /// A partition that starts to read its directory. `Err` names the setting that is out of range.
    pub fn new(config: LogConfig) -> Result<Partition, String> {
        config.check()?;
        let nowhere = End { head: 0, chain: 0, epoch: 0 };
        let mut partition = Partition {
            state: State::Waiting { until_ms: 0 },
            opened_once: false,
            segments: Segments::new(&config, true, VecDeque::new(), Vec::new()),
            log: Log::new(&config, nowhere),
            derived: Derived::new(config.seed),
            loads: Loads::default(),
            snapshot: None,
            snapshot_ending: None,
            snapshot_segment: 0,
            starts: 0,
            notes: VecDeque::new(),
            notes_at_ms: 0,
            delivery: None,
            deliver_again_ms: 0,
            delivering: VecDeque::new(),
            delayed_offset: 0,
            effects: Vec::new(),
            kept: Vec::new(),
            wants: Vec::new(),
            chores: Vec::new(),
            config,
        };
        partition.recover();
        Ok(partition)
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.config.partition
    }

    /// Whether it takes appends.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Bytes of log read at the opening under way, and bytes there are.
    pub fn progress(&self) -> Option<(u64, u64)> {
        let State::Opening(recovery, _) = &self.state else { return None };
        Some(recovery.progress())
    }

    /// Why an opening that has read everything does not end: a segment that the log needs cannot be made.
    /// It is tried again and again.
    pub fn obstacle(&self) -> Option<Fault> {
        let waits = matches!(self.state, State::Starting { announced: false });
        self.segments.last_fault().filter(|_| waits)
    }

    /// Stores messages in one batch: all or none of them is there after a crash. `stored` gets where each
    /// was put, at once; `ticket` comes back by [`Effect::Stored`] when that is promised.
    pub fn append(
        &mut self,
        drafts: &mut [Draft<'_>],
        ticket: Option<Ticket>,
        now_ms: u64,
        stored: &mut Vec<Stored>,
    ) -> Result<(), AppendError> {
        let payload = drafts.iter().map(|draft| draft.length).sum();
        self.check_room(drafts.iter().map(|draft| draft.length).max().unwrap_or(0))?;
        let records = u32::try_from(drafts.len()).unwrap_or(u32::MAX);
        self.reserve(payload, records, now_ms)?;
        for draft in drafts {
            stored.push(self.store(draft, now_ms));
        }
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(())
    }

    /// Stores a message that is delivered to its queue when it is due: once, also across a crash.
    /// What is returned is where it waits, under a running number.
    pub fn delay(
        &mut self,
        draft: Draft<'_>,
        due_ms: u64,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<Stored, AppendError> {
        self.check_room(draft.length)?;
        if !self.derived.timers.has_room() {
            return Err(AppendError::Busy);
        }
        self.reserve(draft.length, 1, now_ms)?;
        let (partition, offset) = (self.config.partition, self.delayed_offset);
        let byte = self.log.record(Kind::Delayed, draft.queue, due_ms, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        self.delayed_offset += 1;
        self.derived.timers.insert(Timer { due_ms, byte, length: draft.length as u32 });
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(Stored { queue_offset: offset, position: Position::pack(partition, byte) })
    }

    /// Changes a fact; `None` deletes it. It is readable at once and durable when the ticket comes back.
    /// Keys start with a byte that is not zero.
    pub fn put(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        assert!(key.first().is_some_and(|first| *first != OWN_PREFIX), "keys that start with zero are the engine's");
        self.check_open()?;
        if !self.derived.facts.has_room(key, value.unwrap_or_default()) {
            let bytes = (key.len() + value.map_or(0, <[u8]>::len)) as u64;
            return Err(AppendError::TooLarge { bytes, bytes_max: FACT_BYTES_MAX as u64 });
        }
        let mut payload = Vec::new();
        facts::encode(&mut payload, key, value);
        self.write_facts(&payload, now_ms)?;
        self.derived.facts.set(key, value);
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(())
    }

    /// Changes a fact that need not be durable at once: readable now, durable within a second and at
    /// [`shut`](Partition::shut). Returns false when there is no room for it.
    pub fn note(&mut self, key: &[u8], value: &[u8]) -> bool {
        assert!(key.first().is_some_and(|first| *first != OWN_PREFIX), "keys that start with zero are the engine's");
        let room = self.derived.facts.get(key).is_some_and(|old| old.len() == value.len())
            || self.derived.facts.has_room(key, value);
        if room {
            self.derived.facts.note(key, value);
        }
        room
    }

    /// The value of a fact.
    pub fn fact(&self, key: &[u8]) -> Option<&[u8]> {
        self.derived.facts.get(key)
    }

    /// All facts whose keys start with `prefix`, by key.
    pub fn facts<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.derived.facts.with_prefix(prefix)
    }

    /// Messages of a queue from an offset on, those whose tag hash is wanted, and the queue's span.
    pub fn pull(
        &mut self,
        key: QueueKey,
        offset: u64,
        limits: PullLimits,
        wants: &dyn Fn(i64) -> bool,
    ) -> (Pull, Span) {
        if !self.is_readable() {
            return (Pull::Opening, Span { min: 0, max: 0 });
        }
        let Some(queue) = self.derived.index.get(key) else {
            let nothing = if offset == 0 { Pull::Empty } else { Pull::OutOfRange };
            return (nothing, Span { min: 0, max: 0 });
        };
        let span = queue.span();
        if offset < span.min || offset > span.max {
            return (Pull::OutOfRange, span);
        }
        if offset == span.max {
            return (Pull::Empty, span);
        }
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut next = offset;
        let stop = span.max.min(offset + u64::from(limits.scan.max(1)));
        let mut cold = None;
        while next < stop && messages.len() < limits.messages as usize {
            let entry = queue.entry(next).expect("within the span");
            if wants(i64::from(entry.tag_hash)) {
                if !messages.is_empty() && bytes + entry.length as usize > limits.bytes as usize {
                    break;
                }
                match fetch(self.log.tail(), &self.loads, entry.byte, entry.length) {
                    Fetched::Here(message) => {
                        bytes += message.len();
                        messages.push(message);
                    }
                    // What is here already goes out; the rest is asked for again.
                    _ if !messages.is_empty() => break,
                    Fetched::Damaged => {
                        return (Pull::Damaged(Position::pack(self.config.partition, entry.byte)), span);
                    }
                    Fetched::Elsewhere => {
                        cold = Some(entry);
                        break;
                    }
                }
            }
            next += 1;
        }
        if let Some(entry) = cold {
            return match self.load(entry.byte, entry.length) {
                Some(load) => (Pull::Loading(load), span),
                None => (Pull::Damaged(Position::pack(self.config.partition, entry.byte)), span),
            };
        }
        if messages.is_empty() { (Pull::NoMatch { next }, span) } else { (Pull::Found { messages, next }, span) }
    }

    /// The message at a position that somebody names: believed only if its sum is right and the index names
    /// that very position for its queue and offset. `Err`: it is being read, ask again.
    pub fn get(&mut self, position: Position) -> Result<Option<Bytes>, LoadId> {
        let header_bytes = RECORD_HEADER_BYTES as u64;
        let byte = position.byte();
        let known = position.partition() == self.config.partition && byte < self.log.written();
        // Its header lies in the same segment, behind that one's own.
        let holding = self.segments.holding(byte);
        let inside = holding.is_some_and(|segment| byte >= segment.base + SEGMENT_HEADER_BYTES + header_bytes);
        if !known || !inside || !self.is_readable() {
            return Ok(None);
        }
        let header = self.log.tail().slice(byte - header_bytes, RECORD_HEADER_BYTES);
        let Some(header) = header.or_else(|| self.loads.slice(byte - header_bytes, RECORD_HEADER_BYTES)) else {
            return self.load(byte, 0).map_or(Ok(None), Err);
        };
        let Some(header) = RecordHeader::decode(&header).filter(|header| header.kind == Kind::Message) else {
            return Ok(None);
        };
        let entry = self.derived.index.get(header.queue).and_then(|queue| queue.entry(header.offset));
        if entry.is_none_or(|entry| entry.byte != byte || entry.length != header.length) {
            return Ok(None);
        }
        match fetch(self.log.tail(), &self.loads, byte, header.length) {
            Fetched::Here(message) => Ok(Some(message)),
            Fetched::Damaged => Ok(None),
            Fetched::Elsewhere => self.load(byte, header.length).map_or(Ok(None), Err),
        }
    }

    /// Positions of messages with a key's hash, newest first, at most `count`. Their times and keys are for
    /// the caller to compare.
    pub fn find(&mut self, hash: u64, count: usize) -> Vec<Position> {
        let floor = self.floor();
        let bytes = self.derived.keys.find(hash, floor, count);
        bytes.into_iter().map(|byte| Position::pack(self.config.partition, byte)).collect()
    }

    /// The offsets of a queue's visible messages; `0..0` for one that never had any.
    pub fn span(&mut self, queue: QueueKey) -> Span {
        self.derived.index.get(queue).map_or(Span { min: 0, max: 0 }, |queue| queue.span())
    }

    /// The first offset stored at or after `time_ms`; with `upper`, the last one stored at or before it.
    pub fn offset_at(&mut self, queue: QueueKey, time_ms: u64, upper: bool) -> u64 {
        let Some(queue) = self.derived.index.get(queue) else { return 0 };
        if !upper {
            return queue.first_at_or_after(time_ms);
        }
        let behind = queue.first_at_or_after(time_ms.saturating_add(1));
        behind.saturating_sub(1).max(queue.span().min)
    }

    /// Bytes of log accepted from the message at an offset on: how far back it lies.
    pub fn bytes_behind(&mut self, queue: QueueKey, offset: u64) -> Option<u64> {
        let entry = self.derived.index.get(queue)?.entry(offset)?;
        Some(self.log.accepted() - entry.byte)
    }

    /// When the message at an offset was stored, ms since 1970.
    pub fn store_time(&mut self, queue: QueueKey, offset: u64) -> Option<u64> {
        self.derived.index.get(queue)?.entry(offset).map(|entry| entry.store_time_ms)
    }

    /// Forgets the messages of topics that are gone; their bytes go with their segments.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        self.derived.index.retain_topics(keep);
    }

    /// Deletes every fact whose key starts with `prefix`.
    pub fn forget_facts(&mut self, prefix: &[u8], now_ms: u64) -> Result<(), AppendError> {
        self.check_open()?;
        loop {
            let mut payload = Vec::new();
            let keys =
                self.derived.facts.with_prefix(prefix).map(|(key, _)| key.to_vec()).take(256).collect::<Vec<_>>();
            if keys.is_empty() {
                return Ok(());
            }
            keys.iter().for_each(|key| facts::encode(&mut payload, key, None));
            self.write_facts(&payload, now_ms)?;
            keys.iter().for_each(|key| self.derived.facts.set(key, None));
        }
    }

    /// Ends in order: noted facts and the final watermark become durable, then [`Effect::Shut`].
    pub fn shut(&mut self) {
        match self.state {
            State::Open => self.state = State::Shutting,
            State::Shutting | State::Shut => {}
            _ => {
                self.state = State::Shut;
                self.effects.push(Effect::Shut);
            }
        }
    }

    /// What is known now.
    pub fn stats(&self) -> Stats {
        Stats {
            floor: self.floor(),
            accepted: self.log.accepted(),
            written: self.log.written(),
            durable: self.log.durable(),
            queues: self.derived.index.len() as u64,
            delayed: self.derived.timers.len() as u64,
            oldest_ms: self.segments.live().front().map_or(0, |segment| segment.newest_ms),
            available: self.segments.available().unwrap_or(0),
            total: self.segments.total(),
            direct: self.segments.is_direct(),
            counts: self.log.counts,
        }
    }

    /// Takes what is to be done.
    pub fn effects(&mut self, out: &mut Vec<Effect>) {
        out.append(&mut self.effects);
    }

    /// Whether [`effects`](Partition::effects) has something.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Takes the completion of an [`Effect::Io`].
    pub fn on_done(&mut self, tag: u64, outcome: Result<Outcome, Fault>, now_ms: u64) {
        let number = tag & ((1 << purpose::SHIFT) - 1);
        match tag >> purpose::SHIFT {
            purpose::WRITE => {
                let mut kept = std::mem::take(&mut self.kept);
                self.log.on_written(number, outcome, now_ms, &mut kept);
                kept.drain(..).for_each(|promise| self.keep(promise));
                self.kept = kept;
            }
            purpose::SYNC => self.log.on_synced(outcome, now_ms),
            purpose::LOAD => self.on_loaded(LoadId(number), outcome, now_ms),
            purpose::CHORE => {
                let mut chores = std::mem::take(&mut self.chores);
                self.segments.on_done(CHORES[number as usize], outcome, now_ms, &mut chores);
                self.chores = chores;
                self.want_chores();
            }
            purpose::RECOVER => self.on_recovered(outcome, now_ms),
            purpose::START => {
                self.starts -= 1;
                if let Err(fault) = outcome {
                    self.log.fail(fault);
                }
            }
            purpose::CLOSE => {}
            other => unreachable!("no operation was for {other}"),
        }
    }

    /// The end of a loop's turn: closes and starts batches, delivers what is due, looks after the files.
    pub fn on_turn(&mut self, now_ms: u64) {
        if self.log.failed().is_some() && matches!(self.state, State::Open | State::Starting { .. } | State::Shutting) {
            self.close();
        }
        match self.state {
            State::Opening(..) | State::Shut | State::Broken => return,
            State::Failing => return self.reopen_when_quiet(now_ms),
            State::Waiting { until_ms } => {
                if now_ms >= until_ms {
                    self.recover();
                }
                return;
            }
            State::Starting { .. } | State::Open | State::Shutting => {}
        }
        let busy = !self.log.is_quiet(now_ms);
        let mut chores = std::mem::take(&mut self.chores);
        self.segments.on_turn(self.log.head(), busy, now_ms, &mut chores);
        self.chores = chores;
        self.want_chores();
        match self.state {
            State::Starting { announced: false } => {
                let announced = self.starts == 0 && self.log.announce(&self.segments, now_ms).is_ok();
                self.state = State::Starting { announced };
            }
            State::Starting { .. } if self.log.is_idle() && self.log.durable() == self.log.written() => {
                self.state = State::Open;
                self.opened_once = true;
                self.effects.push(Effect::Opened);
            }
            State::Open => {
                self.deliver(now_ms);
                if now_ms >= self.notes_at_ms {
                    self.write_notes(now_ms);
                }
                self.snapshot(now_ms);
                self.retire(now_ms);
            }
            State::Shutting => {
                self.write_notes(now_ms);
                self.log.hurry();
                if self.log.is_settled() && !self.derived.facts.has_noted() {
                    self.state = State::Shut;
                    self.effects.push(Effect::Shut);
                    return;
                }
            }
            _ => {}
        }
        let mut wants = std::mem::take(&mut self.wants);
        self.log.on_turn(&mut self.segments, now_ms, &mut wants);
        for want in wants.drain(..) {
            self.effects.push(match want {
                Want::Write { number, op } => Effect::Io { local: local(purpose::WRITE, number), op },
                Want::Sync(file) => Effect::Io { local: local(purpose::SYNC, 0), op: Op::Sync { file } },
            });
        }
        self.wants = wants;
        let durable = self.log.durable();
        while self.notes.front().is_some_and(|(byte, _)| *byte < durable) {
            self.notes.pop_front();
        }
        while self.delivering.front().is_some_and(|(mark, _)| *mark <= durable) {
            self.delivering.pop_front();
        }
        if let Some((_, begin)) = self.snapshot_ending.take_if(|(end, _)| *end <= durable) {
            self.derived.snapshot = Some(begin);
        }
    }

    /// When [`on_turn`](Partition::on_turn) has something to do even if nothing happens, ms since 1970.
    pub fn deadline_ms(&self) -> u64 {
        match self.state {
            State::Opening(..) | State::Shut | State::Broken | State::Failing => return u64::MAX,
            State::Waiting { until_ms } => return until_ms,
            State::Starting { .. } | State::Open | State::Shutting => {}
        }
        let mut deadline = self.log.deadline_ms().min(self.segments.deadline_ms());
        if matches!(self.state, State::Starting { .. }) {
            return deadline;
        }
        if self.derived.facts.has_noted() {
            deadline = deadline.min(self.notes_at_ms);
        }
        if matches!(self.state, State::Shutting) {
            return deadline;
        }
        let deliverable = |timer: &Timer| self.delivery.is_none() && timer.byte < self.log.written();
        if let Some(timer) = self.derived.timers.first().filter(deliverable) {
            deadline = deadline.min(timer.due_ms.max(self.deliver_again_ms));
        }
        if let Some(snapshot) = &self.snapshot {
            deadline = deadline.min(snapshot.again_ms);
        }
        deadline
    }

    /// Whether all that the index names may be shown: it is answerable, and its files are open.
    fn is_readable(&self) -> bool {
        matches!(self.state, State::Open | State::Shutting)
    }

    // -- appending ---------------------------------------------------------------------------

    fn check_open(&self) -> Result<(), AppendError> {
        match self.state {
            State::Open => Ok(()),
            State::Opening(..) | State::Starting { .. } | State::Waiting { .. } => Err(AppendError::Opening),
            State::Shutting | State::Shut => Err(AppendError::Closed(io::ErrorKind::Interrupted)),
            State::Failing | State::Broken => {
                Err(AppendError::Closed(self.log.failed().map_or(io::ErrorKind::InvalidData, Fault::kind)))
            }
        }
    }

    /// Whether a message of this length may come in from outside.
    fn check_room(&self, length: usize) -> Result<(), AppendError> {
        self.check_open()?;
        if length > RECORD_BYTES_MAX as usize {
            return Err(AppendError::TooLarge { bytes: length as u64, bytes_max: RECORD_BYTES_MAX.into() });
        }
        if self.segments.available().is_some_and(|available| available < self.config.disk_free_min) {
            return Err(AppendError::Full);
        }
        Ok(())
    }

    fn reserve(&mut self, payload: usize, records: u32, now_ms: u64) -> Result<(), AppendError> {
        self.log.reserve(payload, records, &self.segments, now_ms).map_err(|error| {
            match (error, self.segments.last_fault()) {
                // The next segment cannot be made: waiting will not help.
                (AppendError::Busy, Some(fault)) if fault.kind() == io::ErrorKind::StorageFull => AppendError::Full,
                (error, _) => error,
            }
        })
    }

    /// Puts a message into the batch that was reserved.
    fn store(&mut self, draft: &mut Draft<'_>, now_ms: u64) -> Stored {
        let slot = self.derived.index.slot(draft.queue);
        let offset = self.derived.index.at(slot).accept();
        let partition = self.config.partition;
        let byte = self.log.record(Kind::Message, draft.queue, offset, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        let tag_hash = draft.tag_hash as i32;
        let promise = self.log.promise();
        promise.shows.push((
            slot,
            offset,
            Entry { byte, store_time_ms: now_ms, length: draft.length as u32, tag_hash },
        ));
        promise.keys.extend(draft.keys.iter().map(|hash| (*hash, byte)));
        Stored { queue_offset: offset, position: Position::pack(partition, byte) }
    }

    fn write_facts(&mut self, payload: &[u8], now_ms: u64) -> Result<u64, AppendError> {
        self.reserve(payload.len(), 1, now_ms)?;
        let nobody = QueueKey { topic: 0, queue: 0 };
        Ok(self.log.record(Kind::Facts, nobody, 0, payload.len(), |_, out| out.copy_from_slice(payload)))
    }

    /// Makes true what a batch promised.
    fn keep(&mut self, promise: Promise) {
        let mut last = None;
        for &(slot, offset, entry) in &promise.shows {
            // A topic may have been forgotten while its messages were on their way.
            let Some(queue) = self.derived.index.living(slot) else { continue };
            queue.show(offset, entry);
            if last != Some(slot) {
                self.effects.push(Effect::Grown(queue.key()));
                last = Some(slot);
            }
        }
        for &(hash, byte) in &promise.keys {
            self.derived.keys.push(hash, byte);
        }
        self.effects.extend(promise.tickets.iter().map(|ticket| Effect::Stored(*ticket, Ok(()))));
        self.log.recycle(promise);
    }

    // -- delayed messages, notes, snapshots, retention ------------------------------------------

    fn deliver(&mut self, now_ms: u64) {
        if now_ms < self.deliver_again_ms {
            return;
        }
        for _ in 0..DELIVERIES_MAX {
            let Some(timer) = self.derived.timers.first().filter(|timer| timer.due_ms <= now_ms) else { return };
            if self.delivery.is_some() || timer.byte >= self.log.written() {
                return;
            }
            let record_at = timer.byte - RECORD_HEADER_BYTES as u64;
            let (tail, loads) = (self.log.tail(), &self.loads);
            let message = match fetch(tail, loads, timer.byte, timer.length) {
                Fetched::Here(message) => message,
                Fetched::Elsewhere => {
                    self.delivery = self.load(timer.byte, timer.length);
                    if self.delivery.is_none() {
                        self.derived.timers.remove(timer.byte);
                    }
                    return;
                }
                Fetched::Damaged => {
                    tracing::error!(
                        partition = self.config.partition,
                        byte = timer.byte,
                        "a delayed message is damaged and cannot be delivered"
                    );
                    self.derived.timers.remove(timer.byte);
                    continue;
                }
            };
            let header =
                tail.slice(record_at, RECORD_HEADER_BYTES).or_else(|| loads.slice(record_at, RECORD_HEADER_BYTES));
            let header = header.and_then(|header| RecordHeader::decode(&header)).expect("fetch() read the same header");
            let Some(description) = (self.config.describe)(&message) else {
                tracing::error!(
                    partition = self.config.partition,
                    byte = timer.byte,
                    "a delayed message cannot be read"
                );
                self.derived.timers.remove(timer.byte);
                continue;
            };
            // The message and the mark that it was delivered: one batch.
            if self.reserve(message.len(), 2, now_ms).is_err() {
                self.deliver_again_ms = now_ms + RETRY_MS;
                return;
            }
            let mut draft = Draft {
                queue: header.queue,
                length: message.len(),
                tag_hash: description.tag_hash,
                keys: description.keys.as_slice(),
                stamp: description.stamp,
                fill: &mut |out| out.copy_from_slice(&message),
            };
            self.store(&mut draft, now_ms);
            let mark = self.log.record(Kind::Delivered, header.queue, timer.byte, 0, |_, _| {});
            self.delivering.push_back((mark, timer.byte));
            self.derived.timers.remove(timer.byte);
        }
    }

    fn write_notes(&mut self, now_ms: u64) {
        while self.derived.facts.has_noted() {
            let mut payload = Vec::new();
            self.derived.facts.take_noted(&mut payload, FACTS_RECORD_BYTES);
            match self.write_facts(&payload, now_ms) {
                Ok(byte) => self.notes.push_back((byte, payload)),
                Err(_) => {
                    self.derived.facts.give_back(&payload);
                    break;
                }
            }
        }
        self.notes_at_ms = now_ms + NOTES_INTERVAL_MS;
    }

    /// Writes all live facts again once a segment is sealed, a slice a turn.
    fn snapshot(&mut self, now_ms: u64) {
        let current = self.segments.holding(self.log.head()).map_or(0, |segment| segment.base);
        let nobody = QueueKey { topic: 0, queue: 0 };
        if self.snapshot.is_none() && self.snapshot_ending.is_none() && current > self.snapshot_segment {
            if self.reserve(0, 1, now_ms).is_err() {
                return;
            }
            let begin = self.log.record(Kind::SnapshotBegin, nobody, current, 0, |_, _| {});
            let queues = self.derived.index.nexts().collect();
            self.snapshot = Some(Snapshot { begin, queues, after: None, facts_left: true, again_ms: now_ms });
            self.snapshot_segment = current;
        }
        let Some(mut snapshot) = self.snapshot.take_if(|snapshot| now_ms >= snapshot.again_ms) else { return };
        let mut payload = Vec::new();
        let mut after = None;
        let queues = snapshot.queues.len().min(SNAPSHOT_QUEUES);
        if queues > 0 {
            for (queue, next) in snapshot.queues.iter().take(queues) {
                facts::encode(&mut payload, &queue_fact_key(*queue), Some(&next.to_be_bytes()));
            }
        } else if snapshot.facts_left {
            after = self.derived.facts.slice(snapshot.after.as_deref(), &mut payload, FACTS_RECORD_BYTES);
        }
        if !payload.is_empty() {
            if self.write_facts(&payload, now_ms).is_ok() {
                snapshot.queues.drain(..queues);
                if queues == 0 {
                    snapshot.after = after;
                }
            } else {
                snapshot.again_ms = now_ms + RETRY_MS;
            }
            self.snapshot = Some(snapshot);
        } else if self.reserve(0, 1, now_ms).is_ok() {
            let end = self.log.record(Kind::SnapshotEnd, nobody, self.snapshot_segment, 0, |_, _| {});
            self.snapshot_ending = Some((end, snapshot.begin));
        } else {
            snapshot.facts_left = false;
            snapshot.again_ms = now_ms + RETRY_MS;
            self.snapshot = Some(snapshot);
        }
    }

    /// Takes the oldest segment out of the log when it is due and nothing needs it.
    fn retire(&mut self, now_ms: u64) {
        let live = self.segments.live();
        let Some(oldest) = live.front().filter(|_| live.len() > 1) else { return };
        let (end, newest_ms) = (oldest.end(), oldest.newest_ms);
        let content = self.log.head() - oldest.base;
        let scarce = self.segments.is_scarce(self.config.disk_free_min.saturating_mul(2));
        let old = newest_ms.saturating_add(self.config.retention_ms) < now_ms;
        let due = old || content > self.config.retention_bytes || scarce;
        let free = self.derived.snapshot.is_some_and(|snapshot| snapshot >= end) && self.log.durable() >= end;
        if !due || !free || self.loads.reads_below(end) {
            return;
        }
        // A delayed message is needed until it is delivered, and that is durable.
        let waiting = self.derived.timers.lowest_byte().is_some_and(|byte| byte < end);
        if waiting || self.delivering.iter().any(|(_, byte)| *byte < end) {
            return;
        }
        let mut chores = std::mem::take(&mut self.chores);
        if self.segments.retire_oldest(&mut chores) {
            let floor = self.floor();
            self.derived.index.set_floor(floor);
            self.derived.keys.drop_below(floor);
            self.loads.drop_below(floor);
        }
        self.chores = chores;
        self.want_chores();
    }

    fn floor(&self) -> u64 {
        self.segments.live().front().map_or(0, |segment| segment.base)
    }

    // -- reading ------------------------------------------------------------------------------

    /// Starts to read the record whose payload is at a log byte, and some way ahead. `None` if it is gone.
    fn load(&mut self, byte: u64, length: u32) -> Option<LoadId> {
        let record_at = byte - RECORD_HEADER_BYTES as u64;
        let record_bytes = RECORD_HEADER_BYTES + length as usize;
        if let Some(load) = self.loads.under_way(record_at, record_bytes) {
            return Some(load);
        }
        if !self.loads.has_room() {
            return self.loads.oldest();
        }
        let segment = self.segments.holding(record_at)?;
        let from = record_at - record_at % BLOCK_BYTES;
        let wanted = (record_at + record_bytes as u64 - from).max(u64::from(LOAD_BYTES)).next_multiple_of(BLOCK_BYTES);
        let bytes = wanted.min(segment.end() - from);
        // What is not written yet would be believed to be damaged once it is.
        let valid = bytes.min(self.log.written().saturating_sub(from));
        let (file, at) = (segment.handle, from - segment.base);
        let load = self.loads.start(from, valid);
        self.effects
            .push(Effect::Io { local: local(purpose::LOAD, load.0), op: Op::Read { file, at, length: bytes as u32 } });
        Some(load)
    }

    fn on_loaded(&mut self, load: LoadId, outcome: Result<Outcome, Fault>, now_ms: u64) {
        let outcome = match outcome {
            Ok(Outcome::Read(bytes)) => Ok(bytes),
            Ok(outcome) => unreachable!("{outcome:?} is no answer to a read"),
            Err(fault) => Err(fault),
        };
        let result = self.loads.finish(load, outcome);
        if self.delivery.take_if(|delivery| *delivery == load).is_some() && result.is_err() {
            tracing::error!(partition = self.config.partition, "a delayed message could not be read; trying again");
            self.deliver_again_ms = now_ms + RETRY_MS;
        }
        self.effects.push(Effect::Loaded(load, result));
    }

    // -- opening and closing ------------------------------------------------------------------

    fn recover(&mut self) {
        let recovery = Recovery::new(&self.config);
        self.effects.push(Effect::Io { local: local(purpose::RECOVER, 0), op: recovery.first() });
        // Only the facts stay readable meanwhile, and those noted are not forgotten.
        let facts = std::mem::take(&mut self.derived.facts);
        self.derived = Derived { facts, ..Derived::new(self.config.seed) };
        self.state = State::Opening(Box::new(recovery), Box::new(Derived::new(self.config.seed)));
    }

    fn on_recovered(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64) {
        // A shut-down in between leaves the files to the end of the process.
        let State::Opening(recovery, derived) = &mut self.state else { return };
        let config = &self.config;
        match recovery.on_done(outcome, &mut |batch| derived.apply(batch, config)) {
            Ok(Next::Do(op)) => self.effects.push(Effect::Io { local: local(purpose::RECOVER, 0), op }),
            Ok(Next::Finished(found)) => {
                let derived = std::mem::replace(&mut **derived, Derived::new(0));
                self.start(found, derived);
            }
            Err(error) => {
                let handles = recovery.handles();
                self.close_files(handles);
                tracing::error!(partition = self.config.partition, "{error}");
                let again = self.opened_once && matches!(error, OpenError::Io { .. });
                self.state = if again { State::Waiting { until_ms: now_ms + REOPEN_MS } } else { State::Broken };
                self.effects.push(Effect::Closed(error.to_string()));
            }
        }
    }

    /// The log's end is known. Nothing is promised before what was found is durable and the new epoch is.
    fn start(&mut self, found: Found, derived: Derived) {
        self.log = Log::new(&self.config, found.end);
        self.snapshot = None;
        self.snapshot_ending = None;
        self.delivering.clear();
        let mut facts = std::mem::replace(&mut self.derived, derived).facts;
        let upto = found.live.partition_point(|segment| segment.base <= found.end.head);
        // All that may have been in the kernel at the end, or waited for a sync.
        let touched = found.live.iter().take(upto).filter(|segment| segment.end() > found.durable);
        let touched: Vec<Handle> = touched.map(|segment| segment.handle).collect();
        self.snapshot_segment = if self.derived.snapshot.is_some() || upto < 2 {
            found.live.get(upto.wrapping_sub(1)).map_or(0, |segment| segment.base)
        } else {
            0
        };
        let syncs = touched.iter().enumerate();
        self.effects.extend(syncs.map(|(number, file)| Effect::Io {
            local: local(purpose::START, number as u64),
            op: Op::Sync { file: *file },
        }));
        self.starts = touched.len();
        self.state = State::Starting { announced: false };
        self.segments = Segments::new(&self.config, found.direct, found.live, found.spares);
        let floor = self.floor();
        self.derived.index.set_floor(floor);
        // What was noted before a failure and is not in the log is not forgotten.
        let mut noted = Vec::new();
        facts.take_noted(&mut noted, usize::MAX);
        self.notes.push_back((u64::MAX, noted));
        for (_, payload) in std::mem::take(&mut self.notes).into_iter().filter(|(byte, _)| *byte >= found.end.head) {
            for (key, value) in facts::decode(&payload) {
                if let Some(value) = value {
                    self.derived.facts.note(key, value);
                }
            }
        }
    }

    /// A write failed: everybody who waits is told.
    fn close(&mut self) {
        let fault = self.log.failed().expect("the caller looked");
        tracing::error!(partition = self.config.partition, %fault, "a write or a sync failed: the log is closed until it is recovered");
        let broken = AppendError::Closed(fault.kind());
        for promise in self.log.take_broken() {
            self.effects.extend(promise.tickets.iter().map(|ticket| Effect::Stored(*ticket, Err(broken))));
        }
        self.effects.push(Effect::Closed(format!("a write or a sync failed: {fault}")));
        if matches!(self.state, State::Shutting) {
            // It was about to end anyway: the next start recovers it.
            self.effects.push(Effect::Shut);
            self.state = State::Shut;
        } else {
            self.state = State::Failing;
        }
    }

    fn reopen_when_quiet(&mut self, now_ms: u64) {
        if self.log.is_busy() || self.segments.is_busy() || self.loads.is_busy() || self.starts > 0 {
            return;
        }
        let handles: Vec<Handle> = self.segments.handles().collect();
        self.close_files(handles);
        self.state = State::Waiting { until_ms: now_ms + REOPEN_MS };
    }

    fn close_files(&mut self, handles: Vec<Handle>) {
        let ops =
            handles.into_iter().map(|handle| Effect::Io { local: local(purpose::CLOSE, 0), op: Op::Close { handle } });
        self.effects.extend(ops);
    }

    fn want_chores(&mut self) {
        for (chore, op) in self.chores.drain(..) {
            let number = CHORES.iter().position(|other| *other == chore).expect("all chores are listed");
            self.effects.push(Effect::Io { local: local(purpose::CHORE, number as u64), op });
        }
    }
}

enum Fetched {
    Here(Bytes),
    Elsewhere,
    Damaged,
}

/// A record's payload from memory. What came from disk is believed only if its sum is right.
fn fetch(tail: &Tail, loads: &Loads, byte: u64, length: u32) -> Fetched {
    if let Some(message) = tail.slice(byte, length as usize) {
        return Fetched::Here(message);
    }
    let Some(record) = loads.slice(byte - RECORD_HEADER_BYTES as u64, RECORD_HEADER_BYTES + length as usize) else {
        return Fetched::Elsewhere;
    };
    let message = record.slice(RECORD_HEADER_BYTES..);
    let header = RecordHeader::decode(&record);
    if header.is_some_and(|header| header.length == length && header.crc == crc32c::crc32c(&message)) {
        Fetched::Here(message)
    } else {
        Fetched::Damaged
    }
}

const _: () =
    assert!(FACTS_RECORD_BYTES + FACT_BYTES_MAX < BATCH_BYTES_MAX as usize, "any slice of facts fits a batch");
