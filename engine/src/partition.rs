//! A partition: one log with what is derived from it, owned by one core. Facts go in ([`on_done`]
//! (Partition::on_done), [`on_turn`](Partition::on_turn), appends), things to do come out
//! ([`effects`](Partition::effects)). It never waits, reads a clock or opens a file.

use crate::checkpoint::Checkpoint;
use crate::derived::Derived;
use crate::error::AppendError;
use crate::format::QueueKey;
use crate::io::{Fault, Op, Outcome};
use crate::limits::{BATCH_BYTES_MAX, FACT_BYTES_MAX, LogConfig};
use crate::loads::{LoadId, Loads};
use crate::log::{Counts, End, Log, Promise, Ticket, Want};
use crate::segment::{Chore, Segments};
use std::collections::{BTreeMap, VecDeque};

mod appending;
mod changes;
mod compacted;
mod compacting;
mod delivery;
mod opening;
mod reading;
mod settling;
mod snapshot;
mod transactions;

use compacted::Compaction;
pub(crate) use compacted::compacted_key;
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
    /// A queue has new visible messages: told once for a batch.
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
    compaction: Compaction,
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
            compaction: Compaction::new(config.seed),
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

    /// What retention may take from the next turn on, whatever the partition was opened with.
    ///
    /// - `age_ms`: the age at which a sealed segment is retired, in ms.
    /// - `bytes`: of log; beyond it the oldest segment is retired.
    pub fn set_retention(&mut self, age_ms: u64, bytes: u64) {
        (self.config.retention_ms, self.config.retention_bytes) = (age_ms, bytes);
    }

    /// From the next turn on, messages of compacted queues are compacted when they are so old, in ms.
    pub fn set_compaction(&mut self, age_ms: u64) {
        self.config.compaction_ms = age_ms;
    }

    /// Forgets the messages of topics that are gone, also those that wait; their bytes go with their segments.
    pub fn retain_topics(&mut self, keep: &dyn Fn(u32) -> bool) {
        self.derived.index.retain_topics(keep);
        self.derived.timers.retain_topics(keep);
        self.derived.halves.retain_topics(keep);
        self.delivery.retain(&self.derived.timers);
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
            queues: self.derived.index.count() as u64,
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
                if let Some((load, result)) = told {
                    self.compaction_read(load, result.is_ok());
                    self.effects.push(Effect::Loaded(load, result));
                }
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
                self.load_compacted();
                self.effects.push(Effect::Opened);
            }
            State::Open => {
                self.deliver(now_ms);
                self.check_halves(now_ms);
                if now_ms >= self.notes_at_ms {
                    // What the log has no room for now is written a second later.
                    let _ = self.write_notes(now_ms);
                }
                self.snapshot(now_ms);
                self.compact(now_ms);
                // In this order: what gives way to a retirement is not begun again before it.
                self.retire(now_ms);
                self.settle(now_ms);
            }
            State::Shutting => {
                // Else the next turn does it.
                let _ = self.write_notes(now_ms);
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
        deadline = deadline.min(self.settle_deadline_ms()).min(self.compaction_deadline_ms());
        deadline = deadline.min(self.delivery_deadline_ms()).min(self.check_deadline_ms());
        if let Some(snapshot) = &self.snapshot {
            deadline = deadline.min(snapshot.again_ms);
        }
        deadline
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
