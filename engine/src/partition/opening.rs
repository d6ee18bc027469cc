//! Opening and closing: what is derived is taken over or made again, the log's end is found, and nothing is
//! promised before what was found is durable. A log that failed is opened again when its disk is quiet.

use super::{Effect, Partition, State, local, purpose};
use crate::checkpoint::Checkpoint;
use crate::derived::Derived;
use crate::error::AppendError;
use crate::facts;
use crate::format::Batch;
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::LogConfig;
use crate::log::{End, Log};
use crate::recover::{Found, Next, OpenError, Recovery};
use crate::restore::{self, Restore};
use crate::segment::Segments;

/// A log that failed is recovered this long after its last operation came back. Milliseconds.
const REOPEN_MS: u64 = 1000;

/// An opening under way. What is found is not shown before it is complete.
#[derive(Debug)]
pub(super) struct Opening {
    recovery: Recovery,
    restore: Option<Restore>,
    derived: Derived,
    /// Where segments begin and end.
    segments: Vec<(u64, u64)>,
    /// The log byte up to which the checkpoint was taken over.
    checkpointed: u64,
    /// The next read of the log, while too much of what was read waits for its runs.
    held: Option<Op>,
}

impl Opening {
    pub(super) fn progress(&self) -> (u64, u64) {
        self.recovery.progress()
    }

    pub(super) fn derived(&mut self) -> &mut Derived {
        &mut self.derived
    }

    /// Takes the outcome of the last operation on the log or its derived files.
    fn on_done(&mut self, outcome: Result<Outcome, Fault>, config: &LogConfig) -> Result<Next, OpenError> {
        if let Some(restore) = &mut self.restore {
            let next = restore.on_done(outcome)?;
            return self.restored(next, config);
        }
        let next = self.recovery.on_done(outcome, &mut apply(&mut self.derived, &self.segments, config))?;
        if !matches!(next, Next::Ready) {
            return Ok(next);
        }
        self.segments = self.recovery.segments().collect();
        let floor = self.segments.first().map(|(base, _)| *base);
        let direct = self.recovery.is_direct();
        let (restore, next) = Restore::begin(config, self.recovery.files(), floor, direct);
        self.restore = Some(restore);
        self.restored(next, config)
    }

    fn restored(&mut self, next: restore::Next, config: &LogConfig) -> Result<Next, OpenError> {
        let start = match next {
            restore::Next::Do(op) => return Ok(Next::Do(op)),
            restore::Next::Finished(start) => start,
        };
        self.restore = None;
        let Some(start) = start else {
            let floor = End { head: self.segments.first().map_or(0, |(base, _)| *base), ..End::default() };
            self.derived = Derived::new(config, floor, self.recovery.is_direct());
            return self.recovery.begin(None, 0, &[], &mut apply(&mut self.derived, &self.segments, config));
        };
        let restore::Start { end, durable, segments, derived } = *start;
        (self.derived, self.checkpointed) = (derived, end.head);
        let apply = &mut apply(&mut self.derived, &self.segments, config);
        self.recovery.begin(Some(end), durable, &segments, apply)
    }

    fn handles(&self) -> Vec<Handle> {
        let mut handles = self.recovery.handles();
        handles.extend(self.restore.as_ref().and_then(Restore::handle));
        handles
    }
}

/// Applies each batch that recovery finds.
fn apply(derived: &mut Derived, segments: &[(u64, u64)], config: &LogConfig) -> impl FnMut(Batch<'_>) {
    move |batch| {
        let index = segments.partition_point(|(_, end)| *end <= batch.header.base);
        derived.apply(batch, segments[index].1, config);
    }
}

impl Partition {
    pub(super) fn recover(&mut self) {
        let recovery = Recovery::new(&self.config);
        self.effects.push(Effect::Io { local: local(purpose::RECOVER, 0), op: recovery.first() });
        // Whoever waits for a run to be made again asks again later.
        self.derived.runs.disappoint(Fault(libc::EIO));
        self.want_runs();
        // Only the facts stay readable meanwhile, and those noted are not forgotten.
        let facts = std::mem::take(&mut self.derived.facts);
        self.derived = Derived::new(&self.config, End::default(), true);
        self.derived.facts = facts;
        self.segments = Segments::new(&self.config, true, Default::default(), Vec::new());
        // What was written and did not survive is written again, differently.
        self.loads.drop_below(u64::MAX);
        (self.checkpoint, self.checkpointed) = (None, 0);
        self.state = State::Opening(Box::new(Opening {
            recovery,
            restore: None,
            derived: Derived::new(&self.config, End::default(), true),
            segments: Vec::new(),
            checkpointed: 0,
            held: None,
        }));
    }

    pub(super) fn on_recovered(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64) {
        // A shut-down in between leaves the files to the end of the process.
        let State::Opening(opening) = &mut self.state else { return };
        match opening.on_done(outcome, &self.config) {
            Ok(Next::Do(op)) => {
                opening.held = Some(op);
                self.go_on_opening(now_ms);
            }
            Ok(Next::Finished(found)) => {
                let State::Opening(opening) = std::mem::replace(&mut self.state, State::Failing) else {
                    unreachable!("it was looked at")
                };
                self.checkpointed = opening.checkpointed;
                self.start(found, opening.derived);
            }
            Ok(Next::Ready) => unreachable!("it is answered at once"),
            Err(error) => {
                let handles = opening.handles();
                self.close_files(handles);
                tracing::error!(partition = self.config.partition, "{error}");
                let again = self.opened_once && matches!(error, OpenError::Io { .. });
                let State::Opening(opening) = std::mem::replace(&mut self.state, State::Broken) else {
                    unreachable!("it was looked at")
                };
                if again {
                    // What is still under way for runs comes back first.
                    let facts = std::mem::take(&mut self.derived.facts);
                    self.derived = opening.derived;
                    self.derived.facts = facts;
                    self.state = State::Failing;
                }
                self.effects.push(Effect::Closed(error.to_string()));
            }
        }
    }

    /// Writes runs of what was read so far, and reads on unless too much waits for that.
    pub(super) fn go_on_opening(&mut self, now_ms: u64) {
        let State::Opening(opening) = &mut self.state else { return };
        let durable = opening.recovery.durable();
        let direct = opening.recovery.is_direct();
        opening.derived.write_run(durable, direct, now_ms);
        if let Some(op) = opening.held.take_if(|_| !opening.derived.stretches.is_full_below(durable)) {
            self.effects.push(Effect::Io { local: local(purpose::RECOVER, 0), op });
        }
        self.want_runs();
    }

    /// When [`go_on_opening`](Partition::go_on_opening) has something to do though nothing happens.
    pub(super) fn opening_deadline_ms(&self) -> u64 {
        let State::Opening(opening) = &self.state else { return u64::MAX };
        opening.derived.deadline_ms(opening.recovery.durable())
    }

    /// The log's end is known. Nothing is promised before what was found is durable and the new epoch is.
    pub(super) fn start(&mut self, found: Found, derived: Derived) {
        self.log = Log::new(&self.config, found.end);
        self.snapshot = None;
        self.snapshot_ending = None;
        self.snapshot_after = 0;
        self.delivering.clear();
        self.delivery = Default::default();
        self.rolled = 0;
        self.moving.clear();
        let facts = std::mem::replace(&mut self.derived, derived).facts;
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
        self.derived.runs.retire(floor);
        // What was noted before a failure and is not in the log is not forgotten.
        let notes = std::mem::take(&mut self.notes);
        let lost = notes.iter().filter(|(byte, _)| *byte >= found.end.head);
        let lost = lost.flat_map(|(_, payload)| facts::decode(payload)).map(|(key, _)| key);
        for key in lost.chain(facts.noted_keys()) {
            if let Some(value) = facts.get(key) {
                self.derived.facts.note(key, value);
            }
        }
    }

    /// A write failed: everybody who waits is told.
    pub(super) fn close(&mut self) {
        let fault = self.log.failed().expect("the caller looked");
        tracing::error!(partition = self.config.partition, %fault, "a write or a sync failed: the log is closed until it is recovered");
        let broken = AppendError::Closed(fault.kind());
        let tickets = self.log.take_broken().into_iter().flat_map(|promise| promise.tickets);
        let tickets = tickets.chain(self.promised.drain(..).map(|(_, ticket)| ticket));
        self.effects.extend(tickets.map(|ticket| Effect::Stored(ticket, Err(broken))));
        self.effects.push(Effect::Closed(format!("a write or a sync failed: {fault}")));
        if matches!(self.state, State::Shutting) {
            // It was about to end anyway: the next start recovers it.
            self.effects.push(Effect::Shut);
            self.state = State::Shut;
        } else {
            self.state = State::Failing;
        }
    }

    pub(super) fn reopen_when_quiet(&mut self, now_ms: u64) {
        if self.log.is_busy() || self.segments.is_busy() || self.loads.is_busy() || self.starts > 0 {
            return;
        }
        let checkpoint = self.checkpoint.as_ref();
        if checkpoint.is_some_and(Checkpoint::is_busy) || self.derived.is_busy() {
            return;
        }
        let checkpoint = checkpoint.and_then(Checkpoint::handle);
        let handles = self.segments.handles().chain(self.derived.handles()).chain(checkpoint).collect();
        self.close_files(handles);
        self.state = State::Waiting { until_ms: now_ms + REOPEN_MS };
    }

    pub(super) fn close_files(&mut self, handles: Vec<Handle>) {
        let ops =
            handles.into_iter().map(|handle| Effect::Io { local: local(purpose::CLOSE, 0), op: Op::Close { handle } });
        self.effects.extend(ops);
    }
}
