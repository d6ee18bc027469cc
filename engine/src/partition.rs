//! A partition: one log with what is derived from it, owned by one core. Facts go in ([`on_done`]
//! (Partition::on_done), [`on_turn`](Partition::on_turn), appends), things to do come out
//! ([`effects`](Partition::effects)). It never waits, reads a clock or opens a file.

use crate::checkpoint::Checkpoint;
use crate::derived::{Derived, OWN_PREFIX};
use crate::error::AppendError;
use crate::facts;
use crate::format::{Kind, Position, QueueKey};
use crate::index::Entry;
use crate::io::{Fault, Op, Outcome};
use crate::limits::{BATCH_BYTES_MAX, FACT_BYTES_MAX, Flush, LogConfig, NOTES_INTERVAL_MS, RECORD_BYTES_MAX};
use crate::loads::{LoadId, Loads};
use crate::log::{Counts, End, Log, Promise, Ticket, Want};
use crate::message::{Draft, Stored};
use crate::segment::{Chore, Segments};
use crate::timers::Timer;
use std::collections::{BTreeMap, VecDeque};
use std::io;

mod delivery;
mod opening;
mod reading;
mod settling;
mod snapshot;
mod transactions;

pub use delivery::DelayedSearch;
use delivery::Delivery;
use opening::Opening;
pub use reading::{Pull, PullLimits};
use snapshot::Snapshot;
pub use transactions::Undecided;

/// What could not be done for want of room, or of a disk that reads, is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 100;
/// Bytes of facts written in one record, and in one turn of a snapshot.
const FACTS_RECORD_BYTES: usize = 64 << 10;

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
    /// The producer of the half message with this id is to be asked: [`Partition::undecided`] has it.
    Undecided(u64),
    /// A cold read is back: ask again, or tell why not.
    Loaded(LoadId, Result<(), Fault>),
    /// The partition takes appends.
    Opened,
    /// The partition takes nothing more. Before the first [`Effect::Opened`] it stays so.
    Closed(String),
    /// What [`Partition::shut`] asked for is done.
    Shut,
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
    /// Sorted runs, and their bytes.
    pub runs: (u64, u64),
    /// Runs that are damaged: those that are being made again, and those whose log cannot be read.
    pub damaged_runs: u64,
    /// How often runs were merged, and made again, since the log was opened.
    pub upkeep: (u64, u64),
    /// A start after a crash takes everything below this log byte from the checkpoint and the runs.
    pub checkpointed: u64,
    /// Delayed messages that wait.
    pub delayed: u64,
    /// Half messages that are undecided.
    pub halves: u64,
    /// Facts that were noted and are not in the log yet.
    pub noted: u64,
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
    Opening(Box<Opening>),
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
    /// Bytes of messages that pulls looked at and that had been read from disk.
    cold_bytes: u64,
    snapshot: Option<Snapshot>,
    /// The end record of a snapshot is accepted up to the first; the snapshot begins at the second.
    snapshot_ending: Option<(u64, u64)>,
    /// Where the log stood when the last snapshot was begun or thought unnecessary.
    snapshot_segment: u64,
    /// The next snapshot begins behind this log byte, so that at most half of the log is snapshots.
    snapshot_after: u64,
    /// Syncs of an opening in the kernel.
    starts: usize,
    /// Noted facts that are in the log and not durable yet, with the log byte of their record.
    notes: VecDeque<(u64, Vec<u8>)>,
    notes_at_ms: u64,
    delivery: Delivery,
    /// What is being read of a message that is to be written again; and that cannot go on before.
    rolling: Option<LoadId>,
    roll_again_ms: u64,
    /// The log byte behind what was written again last; and until that is written, where those messages still are.
    rolled: u64,
    moving: BTreeMap<u64, u64>,
    /// Marks that end messages that waited and are not durable yet, each with the log byte of the message.
    delivering: VecDeque<(u64, u64)>,
    /// Who is told when the log is durable up to a byte.
    promised: VecDeque<(u64, Ticket)>,
    delayed_offset: u64,
    /// The checkpoint that is being written, and the log byte up to which there is one.
    checkpoint: Option<Checkpoint>,
    checkpointed: u64,
    checkpoint_bytes: u64,
    checkpoint_at_ms: u64,
    /// A failure was reported, and none was written since.
    checkpoint_failed: bool,
    /// A segment would be retired if the checkpoint were newer.
    retirement_waits: bool,
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
    pub const RUN: u64 = 7;
    pub const CHECKPOINT: u64 = 8;
    pub const SHIFT: u32 = 36;
}

/// So many messages before its turn, the place that one will be shown at is fetched into the cache: memory answers
/// in the time of some ten.
const SHOWS_AHEAD: usize = 8;

const CHORES: [Chore; 6] = [Chore::Make, Chore::Retire, Chore::Zero, Chore::Space, Chore::Shrink, Chore::Close];

fn local(purpose: u64, number: u64) -> u64 {
    purpose << purpose::SHIFT | number & ((1 << purpose::SHIFT) - 1)
}

impl Partition {
    /// A partition that starts to read its directory. `Err` names the setting that is out of range.
    pub fn new(config: LogConfig) -> Result<Partition, String> {
        config.check()?;
        let nowhere = End::default();
        let mut partition = Partition {
            state: State::Waiting { until_ms: 0 },
            opened_once: false,
            segments: Segments::new(&config, true, VecDeque::new(), Vec::new()),
            log: Log::new(&config, nowhere),
            derived: Derived::new(&config, nowhere, true),
            loads: Loads::new(config.read_bytes_per_s),
            cold_bytes: 0,
            snapshot: None,
            snapshot_ending: None,
            snapshot_segment: 0,
            snapshot_after: 0,
            starts: 0,
            notes: VecDeque::new(),
            notes_at_ms: 0,
            delivery: Delivery::default(),
            rolling: None,
            roll_again_ms: 0,
            rolled: 0,
            moving: BTreeMap::new(),
            delivering: VecDeque::new(),
            promised: VecDeque::new(),
            delayed_offset: 0,
            checkpoint: None,
            checkpointed: 0,
            checkpoint_bytes: 0,
            checkpoint_at_ms: 0,
            checkpoint_failed: false,
            retirement_waits: false,
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

    /// Whether it is open and has answered for everything that it took.
    pub fn has_kept_all(&self) -> bool {
        self.is_open() && self.log.is_idle() && self.log.failed().is_none()
    }

    /// Bytes of log read at the opening under way, and bytes there are.
    pub fn progress(&self) -> Option<(u64, u64)> {
        let State::Opening(opening) = &self.state else { return None };
        Some(opening.progress())
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

    /// Stores a message that is delivered to its queue when it is due: once, also across a crash. `key`: what
    /// [`find_delayed`](Partition::find_delayed) finds it by until then, or 0.
    /// What is returned is where it waits, under a running number.
    pub fn delay(
        &mut self,
        draft: Draft<'_>,
        due_ms: u64,
        key: u32,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<Stored, AppendError> {
        self.check_room(draft.length)?;
        if !self.derived.timers.has_room() {
            return Err(AppendError::Busy);
        }
        self.reserve(draft.length, 1, now_ms)?;
        let stored = self.put_off(&mut { draft }, due_ms, key, now_ms);
        if let Some(ticket) = ticket {
            self.log.promise().tickets.push(ticket);
        }
        Ok(stored)
    }

    /// Changes facts together; `None` deletes one. They are readable at once; when the ticket comes back all of them are
    /// as safe as a message is then, or, after a failure, all or none. Keys start with a byte that is not zero.
    pub fn put(
        &mut self,
        changes: &[(&[u8], Option<&[u8]>)],
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        let is_ours = |key: &[u8]| key.first().is_none_or(|first| *first == OWN_PREFIX);
        assert!(!changes.iter().any(|(key, _)| is_ours(key)), "keys that start with zero are the engine's");
        self.check_open()?;
        if !self.derived.facts.has_room(changes) {
            let bytes = changes.iter().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
            return Err(AppendError::TooLarge { bytes: bytes as u64, bytes_max: FACT_BYTES_MAX as u64 });
        }
        // One batch of the log, in records that recovery reads one by one.
        let mut payloads = vec![Vec::new()];
        for (key, value) in changes {
            if payloads.last().is_some_and(|last| last.len() >= FACTS_RECORD_BYTES) {
                payloads.push(Vec::new());
            }
            facts::encode(payloads.last_mut().expect("there is one"), key, *value);
        }
        self.reserve(payloads.iter().map(Vec::len).sum(), payloads.len() as u32, now_ms)?;
        payloads.iter().for_each(|payload| _ = self.record_facts(payload));
        changes.iter().for_each(|(key, value)| self.derived.facts.set(key, *value));
        self.log.promise().tickets.extend(ticket);
        Ok(())
    }

    /// As [`put`](Partition::put), for what other partitions build on: when the ticket comes back the facts are durable,
    /// whatever the flush. An asynchronous log is synced at once for it.
    pub fn put_durably(
        &mut self,
        changes: &[(&[u8], Option<&[u8]>)],
        ticket: Ticket,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        if self.config.flush == Flush::Sync {
            return self.put(changes, Some(ticket), now_ms);
        }
        self.put(changes, None, now_ms)?;
        self.log.hurry_to(self.log.accepted());
        self.promised.push_back((self.log.accepted(), ticket));
        Ok(())
    }

    /// Changes a fact that need not be durable at once: readable now, durable within a second and at
    /// [`shut`](Partition::shut). Returns false when there is no room for it.
    pub fn note(&mut self, key: &[u8], value: &[u8]) -> bool {
        assert!(key.first().is_some_and(|first| *first != OWN_PREFIX), "keys that start with zero are the engine's");
        let room = self.derived.facts.has_room_to_note(key, value);
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

    /// Forgets the messages of topics that are gone, also those that wait; their bytes go with their segments.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        self.derived.index.retain_topics(keep);
        self.derived.timers.retain_topics(keep);
        self.derived.halves.retain_topics(keep);
        self.delivery.retain(&self.derived.timers);
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
            runs: self.derived.runs.size(),
            damaged_runs: self.derived.runs.broken(),
            upkeep: self.derived.upkeep.done(),
            checkpointed: self.checkpointed,
            delayed: self.derived.timers.len() as u64,
            halves: self.derived.halves.len() as u64,
            noted: self.derived.facts.noted() as u64,
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
            // Nobody goes on with files that are derived.
            purpose::RUN | purpose::CHECKPOINT if matches!(self.state, State::Shut | State::Broken) => {}
            purpose::RUN => {
                let warm = match self.state {
                    State::Opening(_) => u64::MAX,
                    _ => self.log.tail().floor(),
                };
                let told = self.working().on_done(number, outcome, warm, now_ms);
                self.effects.extend(told.map(|(load, result)| Effect::Loaded(load, result)));
                self.want_runs();
            }
            purpose::CHECKPOINT => self.on_checkpoint(outcome, now_ms),
            other => unreachable!("no operation was for {other}"),
        }
    }

    /// The end of a loop's turn: closes and starts batches, delivers what is due, looks after the files.
    pub fn on_turn(&mut self, now_ms: u64) {
        if self.log.failed().is_some() && matches!(self.state, State::Open | State::Starting { .. } | State::Shutting) {
            self.close();
        }
        match self.state {
            State::Shut | State::Broken => return,
            State::Opening(_) => return self.go_on_opening(now_ms),
            State::Failing => {
                self.begin_loads(None);
                return self.reopen_when_quiet(now_ms);
            }
            State::Waiting { until_ms } => {
                if now_ms >= until_ms {
                    self.recover();
                }
                return;
            }
            State::Starting { .. } | State::Open | State::Shutting => {}
        }
        let durable = self.log.durable();
        while let Some((_, ticket)) = self.promised.pop_front_if(|(end, _)| *end <= durable) {
            self.effects.push(Effect::Stored(ticket, Ok(())));
        }
        self.begin_loads(Some(now_ms));
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
                self.check_halves(now_ms);
                if now_ms >= self.notes_at_ms {
                    self.write_notes(now_ms);
                }
                self.snapshot(now_ms);
                // In this order: what gives way to a retirement is not begun again before it.
                self.retire(now_ms);
                self.settle(now_ms);
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

    /// When [`on_turn`](Partition::on_turn) has something to do even if nothing happens, ms since 1970. Zero while
    /// effects are to be taken: another partition's effect may have asked for them after this one's turn.
    pub fn deadline_ms(&self) -> u64 {
        if self.has_effects() {
            return 0;
        }
        match self.state {
            State::Opening(_) => return self.opening_deadline_ms(),
            State::Shut | State::Broken | State::Failing => return u64::MAX,
            State::Waiting { until_ms } => return until_ms,
            State::Starting { .. } | State::Open | State::Shutting => {}
        }
        let mut deadline =
            self.log.deadline_ms(&self.segments).min(self.segments.deadline_ms()).min(self.loads.deadline_ms());
        if matches!(self.state, State::Starting { .. }) {
            return deadline;
        }
        if self.derived.facts.has_noted() {
            deadline = deadline.min(self.notes_at_ms);
        }
        if matches!(self.state, State::Shutting) {
            return deadline;
        }
        deadline = deadline.min(self.settle_deadline_ms());
        deadline = deadline.min(self.delivery_deadline_ms()).min(self.check_deadline_ms());
        if let Some(snapshot) = &self.snapshot {
            deadline = deadline.min(snapshot.again_ms);
        }
        deadline
    }

    // -- appending ---------------------------------------------------------------------------

    fn check_open(&self) -> Result<(), AppendError> {
        match self.state {
            State::Open => Ok(()),
            State::Opening(_) | State::Starting { .. } | State::Waiting { .. } => Err(AppendError::Opening),
            State::Shutting | State::Shut => Err(AppendError::Closed(io::ErrorKind::Interrupted)),
            State::Failing | State::Broken => {
                Err(AppendError::Closed(self.log.failed().map_or(io::ErrorKind::InvalidData, Fault::kind)))
            }
        }
    }

    /// Whether a message of this length may come in from outside.
    fn check_room(&self, length: usize) -> Result<(), AppendError> {
        self.check_open()?;
        if self.derived.stretches.is_full() {
            // Runs cannot be written fast enough, or not at all.
            return Err(AppendError::Busy);
        }
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
        let further = draft.further();
        let slot = self.derived.index.slot(draft.queue);
        let offset = self.derived.index.accept(slot, further);
        let partition = self.config.partition;
        let byte = self.log.record_noted(Kind::Message, draft.queue, offset, further, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        let tag_hash = draft.tag_hash as i32;
        let promise = self.log.promise();
        let entry = Entry { byte, store_time_ms: now_ms, length: draft.length as u32, tag_hash };
        promise.shows.push((slot, offset, entry));
        promise.shows.extend((1..=u64::from(further)).map(|behind| (slot, offset + behind, entry)));
        promise.keys.extend(draft.keys.iter().map(|hash| (*hash, byte)));
        Stored { queue_offset: offset, position: Position::pack(partition, byte) }
    }

    /// Puts a delayed message into the batch that was reserved.
    fn put_off(&mut self, draft: &mut Draft<'_>, due_ms: u64, key: u32, now_ms: u64) -> Stored {
        assert!(draft.further() == 0, "what waits takes one offset");
        let (partition, offset) = (self.config.partition, self.delayed_offset);
        let byte = self.log.record_noted(Kind::Delayed, draft.queue, due_ms, key, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, offset, Position::pack(partition, byte), now_ms);
        });
        self.delayed_offset += 1;
        let (queue, length) = (draft.queue, draft.length as u32);
        self.derived.timers.insert(Timer { due_ms, byte, queue, length, key });
        Stored { queue_offset: offset, position: Position::pack(partition, byte) }
    }

    fn write_facts(&mut self, payload: &[u8], now_ms: u64) -> Result<u64, AppendError> {
        self.reserve(payload.len(), 1, now_ms)?;
        Ok(self.record_facts(payload))
    }

    /// Puts facts into the batch that was reserved.
    fn record_facts(&mut self, payload: &[u8]) -> u64 {
        let nobody = QueueKey { topic: 0, queue: 0 };
        self.log.record(Kind::Facts, nobody, 0, payload.len(), |_, out| out.copy_from_slice(payload))
    }

    /// Makes true what a batch promised.
    fn keep(&mut self, promise: Promise) {
        let segment_end = self.segments.holding(promise.base).map_or(u64::MAX, |segment| segment.end());
        self.derived.enter(promise.base, segment_end);
        let mut last = None;
        for (at, &(slot, offset, entry)) in promise.shows.iter().enumerate() {
            for (ahead, near) in [(2 * SHOWS_AHEAD, false), (SHOWS_AHEAD, true)] {
                if let Some((slot, ..)) = promise.shows.get(at + ahead) {
                    self.derived.index.prefetch(*slot, near);
                }
            }
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
        self.derived.leave(promise.end, promise.shows.len() as u64, promise.keys.len() as u64);
        self.effects.extend(promise.tickets.iter().map(|ticket| Effect::Stored(*ticket, Ok(()))));
        self.log.recycle(promise);
    }

    // -- delayed messages, notes, snapshots, retention ------------------------------------------

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

    /// Takes the oldest segment out of the log when it is due and nothing needs it.
    fn retire(&mut self, now_ms: u64) {
        let live = self.segments.live();
        let Some(oldest) = live.front().filter(|_| live.len() > 1) else { return };
        let (end, newest_ms) = (oldest.end(), oldest.newest_ms);
        let content = self.log.head() - oldest.base;
        let scarce = self.segments.lack_room(self.config.disk_free_min);
        let old = newest_ms.saturating_add(self.config.retention_ms) < now_ms;
        let due = old || content > self.config.retention_bytes || scarce;
        let free = self.derived.snapshot.is_some_and(|snapshot| snapshot >= end) && self.log.durable() >= end;
        self.retirement_waits = due && free && self.checkpointed < end;
        if !due || !free || self.retirement_waits {
            return;
        }
        if self.lowest_waiting().is_some_and(|byte| byte < end) {
            // While at most half of the log waits, writing that again frees as much, at least.
            if self.derived.timers.bytes() + self.derived.halves.bytes() <= content / 2 {
                self.roll_forward(end, now_ms);
            }
            return;
        }
        // A message that waits is needed until it ends or is written again, and that is durable.
        if self.loads.reads_below(end) || self.delivering.iter().any(|(_, byte)| *byte < end) {
            return;
        }
        if self.derived.is_held_below(end) {
            return;
        }
        let mut chores = std::mem::take(&mut self.chores);
        if self.segments.retire_oldest(&mut chores) {
            let floor = self.floor();
            self.derived.runs.retire(floor);
            // Messages whose bytes were in the tail may still stand there.
            self.derived.index.set_cold(floor);
            self.loads.drop_below(floor);
        }
        self.chores = chores;
        self.want_chores();
    }

    fn floor(&self) -> u64 {
        self.segments.live().front().map_or(0, |segment| segment.base)
    }

    fn want_chores(&mut self) {
        for (chore, op) in self.chores.drain(..) {
            let number = CHORES.iter().position(|other| *other == chore).expect("all chores are listed");
            self.effects.push(Effect::Io { local: local(purpose::CHORE, number as u64), op });
        }
    }
}

const _: () =
    assert!(FACTS_RECORD_BYTES + FACT_BYTES_MAX < BATCH_BYTES_MAX as usize, "any slice of facts fits a batch");
