//! What is done to runs that are there already: those of a sealed segment are merged, and one that is damaged is made
//! again. One thing at a time, one operation at a time, beside a log that goes on: a slice a turn, and while the log is
//! busy no faster than [`UPKEEP_RATE`]. Whatever goes wrong, the old runs stay as they are, and it is tried again.

use crate::derived::Derived;
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::{LogConfig, UPKEEP_RATE};
use crate::merging::Merging;
use crate::remaking::Remaking;
use crate::segment::Segment;
use crate::source::Trouble;
use std::collections::VecDeque;

/// The name of a run that is made again or merged, and not whole.
pub const TEMPORARY: &str = "run-again";
/// The number of its operations: none of [`Runs`](crate::runs::Runs)' own.
pub const UPKEEP: u64 = 3;
/// What failed is tried again after this long. Milliseconds.
const RETRY_MS: u64 = 1000;
/// A run whose log cannot be read is tried again after this long. Milliseconds.
const LOST_RETRY_MS: u64 = 600_000;

/// What comes next.
#[derive(Debug)]
pub enum Turn {
    /// This operation.
    Do(Op),
    /// More work, in the next turn.
    Again,
    /// As that; and this file is not needed any more.
    Close(Handle),
}

#[derive(Debug)]
enum Task {
    Merge(Merging),
    Remake(Remaking),
}

/// What is around: see [`Derived::look_after_runs`].
#[derive(Debug)]
pub struct Around<'a> {
    /// The log's settings.
    pub config: &'a LogConfig,
    /// Its segments.
    pub segments: &'a VecDeque<Segment>,
    /// A checkpoint up to this log byte is durable.
    pub checkpointed: u64,
    /// Bytes available on the file system, once known.
    pub available: Option<u64>,
    /// Nothing is written to the log.
    pub is_quiet: bool,
    /// Files are opened past the page cache.
    pub direct: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Upkeep {
    task: Option<Task>,
    /// An operation is under way.
    is_busy: bool,
    /// What the task works on goes: it is given up.
    is_off: bool,
    /// It goes on at this time, and what is to be merged is looked for at that one.
    at_ms: u64,
    look_at_ms: u64,
    /// A failure was reported, and nothing was done since.
    failed: bool,
    /// Since the log was opened.
    merged: u64,
    remade: u64,
}

impl Upkeep {
    /// Whether an operation is under way.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// There may be something to merge now.
    pub fn look(&mut self) {
        self.look_at_ms = 0;
    }

    /// How often runs were merged, and made again.
    pub fn done(&self) -> (u64, u64) {
        (self.merged, self.remade)
    }

    /// Open files.
    pub fn handles(&self) -> Vec<Handle> {
        match &self.task {
            None => Vec::new(),
            Some(Task::Merge(merging)) => merging.handles().collect(),
            Some(Task::Remake(remaking)) => remaking.handles().collect(),
        }
    }
}

impl Derived {
    /// Goes on with what is done to runs, and begins it.
    pub fn look_after_runs(&mut self, around: &Around<'_>, now_ms: u64) {
        if self.upkeep.is_busy {
            return;
        }
        // Somebody may wait for a run that is damaged.
        if matches!(self.upkeep.task, Some(Task::Merge(_))) && self.runs.to_repair(now_ms).is_ok() {
            self.give_up();
        }
        if self.upkeep.task.is_none() {
            self.begin_task(around, now_ms);
        }
        if now_ms < self.upkeep.at_ms {
            return;
        }
        let turn = match &mut self.upkeep.task {
            None => return,
            Some(Task::Merge(merging)) => merging.on_turn(&mut self.index),
            Some(Task::Remake(remaking)) => remaking.on_turn(&mut self.index, self.settled.head),
        };
        match turn {
            Ok(Turn::Do(op)) => {
                let bytes = match &op {
                    Op::Read { length, .. } => u64::from(*length),
                    Op::Write { bytes, .. } => bytes.len() as u64,
                    _ => 0,
                };
                let pause_ms = if around.is_quiet { 0 } else { (bytes * 1000).div_ceil(UPKEEP_RATE) };
                self.upkeep.at_ms = now_ms + pause_ms;
                self.upkeep.is_busy = true;
                self.runs.want(UPKEEP, op);
            }
            Ok(Turn::Again) => {}
            Ok(Turn::Close(handle)) => self.runs.close(handle),
            Err(trouble) => self.on_trouble(trouble, now_ms),
        }
    }

    /// When [`look_after_runs`](Derived::look_after_runs) has something to do though nothing happens.
    pub fn upkeep_deadline_ms(&self) -> u64 {
        match &self.upkeep {
            Upkeep { is_busy: true, .. } => u64::MAX,
            Upkeep { task: Some(_), at_ms, .. } => *at_ms,
            Upkeep { at_ms, look_at_ms, .. } => {
                let may_repair = !self.runs.is_discarding(TEMPORARY);
                let repair_ms = if may_repair { self.runs.to_repair(0).err().unwrap_or(0) } else { u64::MAX };
                let merge_ms = if self.runs.is_leaving() { u64::MAX } else { *look_at_ms };
                repair_ms.min(merge_ms).max(*at_ms)
            }
        }
    }

    /// What lies below this log byte is about to be retired. Returns whether something still works on it.
    pub fn is_held_below(&mut self, end: u64) -> bool {
        let to = match &self.upkeep.task {
            None => return false,
            Some(Task::Merge(merging)) => merging.place().to,
            Some(Task::Remake(remaking)) => remaking.to(),
        };
        if to > end {
            return false;
        }
        self.upkeep.is_off = true;
        if !self.upkeep.is_busy {
            self.give_up();
        }
        self.upkeep.is_busy
    }

    /// Takes the completion of an operation of the task.
    pub(super) fn on_upkeep(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64) {
        self.upkeep.is_busy = false;
        let done = match self.upkeep.task.as_mut().expect("an operation of it is under way") {
            Task::Merge(merging) => merging.on_done(outcome),
            Task::Remake(remaking) => remaking.on_done(outcome),
        };
        match done {
            _ if self.upkeep.is_off => self.give_up(),
            Ok(false) => {}
            Ok(true) => self.finish(),
            Err(trouble) => self.on_trouble(trouble, now_ms),
        }
    }

    fn begin_task(&mut self, around: &Around<'_>, now_ms: u64) {
        let config = around.config;
        if self.runs.is_discarding(TEMPORARY) {
            return;
        }
        if let Ok(repair) = self.runs.to_repair(now_ms) {
            let index = around.segments.partition_point(|segment| segment.end() < repair.to);
            let segment = &around.segments[index];
            self.upkeep.task = Some(Task::Remake(Remaking::new(config, repair, segment, around.direct)));
            return;
        }
        // While there are files to be removed, no new ones are made without need.
        if self.runs.is_leaving() || now_ms < self.upkeep.look_at_ms {
            return;
        }
        let segments = around.segments.iter().map(|segment| (segment.base, segment.end()));
        let Some(places) = self.runs.to_merge(segments, around.checkpointed) else {
            return self.upkeep.look_at_ms = u64::MAX;
        };
        // For a while there are both, the old ones and the new one.
        let bytes: u64 = places.iter().map(|place| place.bytes).sum();
        let least = config.disk_free_min.saturating_mul(2).saturating_add(bytes);
        if around.available.is_none_or(|available| available < least) {
            return self.upkeep.look_at_ms = now_ms + RETRY_MS;
        }
        self.upkeep.task = Some(Task::Merge(Merging::new(&config.directory, config.partition, &places, around.direct)));
    }

    fn finish(&mut self) {
        match self.end_task() {
            Some(Task::Merge(merging)) => {
                let place = merging.place();
                self.runs.replace(place.from, place.to, place.bytes);
                self.upkeep.merged += 1;
            }
            Some(Task::Remake(remaking)) => {
                self.runs.replace(remaking.from(), remaking.to(), remaking.bytes());
                self.upkeep.remade += 1;
                let (partition, from, to) = (self.partition, remaking.from(), remaking.to());
                tracing::info!(partition, from, to, "a damaged run was made again from the log");
            }
            None => unreachable!("it was finished"),
        }
        self.upkeep.failed = false;
    }

    fn on_trouble(&mut self, trouble: Trouble, now_ms: u64) {
        let from = match &self.upkeep.task {
            Some(Task::Remake(remaking)) => remaking.from(),
            _ => 0,
        };
        self.give_up();
        match trouble {
            Trouble::Stale => {}
            Trouble::Source(from, byte, why) => self.runs.damage(from, byte, why),
            Trouble::Log(byte) => {
                let why = format!("its log cannot be read at log byte {byte}");
                self.runs.lose(from, &why, now_ms + LOST_RETRY_MS);
            }
            Trouble::Fault(fault) => {
                if !std::mem::replace(&mut self.upkeep.failed, true) {
                    tracing::warn!(partition = self.partition, %fault, "a run cannot be made of others; trying again");
                }
                self.runs.disappoint(fault);
                self.upkeep.at_ms = now_ms + RETRY_MS;
            }
        }
    }

    fn give_up(&mut self) {
        let leftovers = match self.end_task() {
            Some(Task::Merge(merging)) => merging.leftovers(),
            Some(Task::Remake(remaking)) => remaking.leftovers(),
            None => Vec::new(),
        };
        leftovers.into_iter().for_each(|path| self.runs.discard(path));
    }

    fn end_task(&mut self) -> Option<Task> {
        self.upkeep.handles().into_iter().for_each(|handle| self.runs.close(handle));
        self.upkeep.is_off = false;
        self.upkeep.look_at_ms = 0;
        self.upkeep.task.take()
    }
}
