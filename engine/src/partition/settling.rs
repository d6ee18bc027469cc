//! What follows the log at its own pace: runs, the checkpoint, and what retention may take because of them.

use super::{Effect, Partition, State, local, purpose};
use crate::checkpoint::{Checkpoint, Step};
use crate::derived::Derived;
use crate::io::{Fault, Outcome};
use crate::upkeep::Around;

/// The log grows by this many times the checkpoint's bytes before the next one is written.
const CHECKPOINT_PARTS: u64 = 8;
/// A checkpoint that could not be written is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 1000;

impl Partition {
    /// Takes the oldest segment out of the log when it is due and nothing needs it.
    pub(super) fn retire(&mut self, now_ms: u64) {
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
        if !self.may_go(end) {
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

    pub(super) fn floor(&self) -> u64 {
        self.segments.live().front().map_or(0, |segment| segment.base)
    }

    /// What is derived: while the log is opened, what is being made of it.
    pub(super) fn working(&mut self) -> &mut Derived {
        match &mut self.state {
            State::Opening(opening) => opening.derived(),
            _ => &mut self.derived,
        }
    }

    /// Writes runs and the checkpoint, and removes runs of what was retired.
    pub(super) fn settle(&mut self, now_ms: u64) {
        let durable = self.log.durable();
        self.derived.write_run(durable, self.segments.is_direct(), now_ms);
        if !self.segments.is_retiring() {
            self.derived.runs.on_turn(now_ms);
        }
        self.derived.runs.sweep(&mut self.derived.index);
        self.write_checkpoint(now_ms);
        let around = Around {
            config: &self.config,
            segments: self.segments.live(),
            checkpointed: self.checkpointed,
            available: self.segments.available(),
            is_quiet: self.log.is_quiet(now_ms),
            direct: self.segments.is_direct(),
        };
        self.derived.look_after_runs(&around, now_ms);
        self.want_runs();
    }

    /// When [`settle`](Partition::settle) has something to do though nothing happens.
    pub(super) fn settle_deadline_ms(&self) -> u64 {
        let mut deadline = self.derived.deadline_ms(self.log.durable()).min(self.derived.runs.deadline_ms());
        deadline = deadline.min(self.derived.upkeep_deadline_ms());
        if self.checkpoint.is_none() && self.wants_checkpoint() {
            deadline = deadline.min(self.checkpoint_at_ms);
        }
        if self.checkpoint.as_ref().is_some_and(Checkpoint::is_closing) {
            deadline = deadline.min(self.checkpoint_at_ms);
        }
        deadline
    }

    fn wants_checkpoint(&self) -> bool {
        let since = self.derived.settled.head.saturating_sub(self.checkpointed);
        since > 0 && (self.retirement_waits || since >= CHECKPOINT_PARTS * self.checkpoint_bytes)
    }

    fn write_checkpoint(&mut self, now_ms: u64) {
        if now_ms < self.checkpoint_at_ms {
            return;
        }
        if self.checkpoint.is_none() && self.wants_checkpoint() {
            let (end, direct) = (self.derived.settled, self.segments.is_direct());
            let (checkpoint, op) = Checkpoint::begin(&self.config.directory, self.config.partition, end, direct);
            self.checkpoint = Some(checkpoint);
            self.effects.push(Effect::Io { local: local(purpose::CHECKPOINT, 0), op });
            return;
        }
        if self.checkpoint.as_ref().is_some_and(Checkpoint::is_closing) {
            // What was noted is in some slice, and must be in the log.
            let _ = self.write_notes(now_ms);
            if self.derived.facts.has_noted() {
                self.checkpoint_at_ms = now_ms + super::RETRY_MS;
                return;
            }
        }
        let Some(checkpoint) = &mut self.checkpoint else { return };
        if checkpoint.is_closing() {
            checkpoint.close(self.log.accepted(), &self.derived);
        }
        if let Some(op) = checkpoint.on_turn(self.log.durable(), &self.derived, self.segments.live()) {
            self.effects.push(Effect::Io { local: local(purpose::CHECKPOINT, 0), op });
        }
    }

    pub(super) fn on_checkpoint(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64) {
        let checkpoint = self.checkpoint.as_mut().expect("it is being written");
        match checkpoint.on_done(outcome, &self.derived, self.segments.live()) {
            Ok(Step::Do(op)) => self.effects.push(Effect::Io { local: local(purpose::CHECKPOINT, 0), op }),
            Ok(Step::Wait) => {}
            Ok(Step::Finished) => {
                (self.checkpointed, self.checkpoint_bytes) = (checkpoint.end.head, checkpoint.bytes());
                self.checkpoint_failed = false;
                self.derived.upkeep.look();
                self.end_checkpoint();
            }
            Err(fault) => {
                if !std::mem::replace(&mut self.checkpoint_failed, true) {
                    let partition = self.config.partition;
                    tracing::warn!(partition, %fault, "the checkpoint cannot be written; trying again");
                }
                self.checkpoint_at_ms = now_ms + RETRY_MS;
                self.end_checkpoint();
            }
        }
    }

    fn end_checkpoint(&mut self) {
        let handle = self.checkpoint.take().and_then(|checkpoint| checkpoint.handle());
        self.close_files(handle.into_iter().collect());
    }

    pub(super) fn want_runs(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        let ops = self.working().runs.ops();
        effects.extend(ops.map(|(number, op)| Effect::Io { local: local(purpose::RUN, number), op }));
        let told: Vec<_> = self.working().runs.told().collect();
        for (load, result) in told {
            self.compaction_read(load, result.is_ok());
            effects.push(Effect::Loaded(load, result));
        }
        self.effects = effects;
    }
}
