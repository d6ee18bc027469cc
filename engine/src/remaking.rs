//! One run that is damaged is made again, alone: the log of its segment is read from the segment's first batch on, so
//! that the chain tells what belongs to it, and what lies in the run's stretch is written as any run is. A stretch
//! may begin in the segment before, which has nothing of it, and may be gone.
//!
//! A run lists every queue, also those without messages in it. Where these stood, a neighbour knows: the end of the
//! run before it, or the beginning of the one behind it, or the index if it is the newest.
//! Memory: an index of the run's messages and keys, which [`MERGED_BYTES_MAX`](crate::limits::MERGED_BYTES_MAX) bounds.

use crate::derived::{take_message, take_own_fact};
use crate::facts;
use crate::format::derived::Slot;
use crate::format::{Batch, Kind, QueueKey};
use crate::index::Index;
use crate::io::{Fault, Handle, Op, Outcome};
use crate::keys::KeyIndex;
use crate::limits::LogConfig;
use crate::log::End;
use crate::recover::{Next, Recovery};
use crate::runs::{Place, Repair, Table};
use crate::segment::Segment;
use crate::source::{Source, Trouble};
use crate::stretch::Stretch;
use crate::upkeep::{TEMPORARY, Turn};
use crate::writing::{Step, Writing};
use std::path::PathBuf;

/// Queues of the index looked at in one turn.
const SLICE_QUEUES: usize = 1024;

#[derive(Debug)]
enum Stage {
    /// The neighbour's directory is read: what stands at the end of each queue in it counts, or at the beginning.
    Neighbour {
        source: Box<Source>,
        at_end: bool,
    },
    /// Queues of the index that are still to be looked at.
    Index(Option<Vec<QueueKey>>),
    Log(Box<Recovery>),
    Writing(Box<Writing>),
}

/// See the module.
#[derive(Debug)]
pub struct Remaking {
    from: u64,
    to: u64,
    config: LogConfig,
    direct: bool,
    /// The segment that the stretch lies in.
    segment: (u64, Handle),
    stage: Stage,
    next: Option<Op>,
    content: Content,
}

/// What the log has of the stretch.
#[derive(Debug)]
struct Content {
    from: u64,
    to: u64,
    index: Index,
    keys: KeyIndex,
    entry_count: u64,
    key_count: u64,
    /// The log byte behind the last batch.
    head: u64,
}

impl Remaking {
    /// Of a stretch whose last batch lies in `segment`.
    pub fn new(config: &LogConfig, repair: Repair, segment: &Segment, direct: bool) -> Remaking {
        let Repair { from, to, table } = repair;
        let source = |place: Place| Box::new(Source::new(&config.directory, config.partition, place));
        Remaking {
            from,
            to,
            config: config.clone(),
            direct,
            segment: (segment.base, segment.handle),
            stage: match table {
                Table::Before(place) => Stage::Neighbour { source: source(place), at_end: true },
                Table::Behind(place) => Stage::Neighbour { source: source(place), at_end: false },
                Table::Index => Stage::Index(None),
                Table::Nobody => Stage::Index(Some(Vec::new())),
            },
            next: None,
            content: Content {
                from,
                to,
                index: Index::new(config.seed),
                keys: KeyIndex::default(),
                entry_count: 0,
                key_count: 0,
                head: from,
            },
        }
    }

    /// Where the run begins.
    pub fn from(&self) -> u64 {
        self.from
    }

    /// Where it ends.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Its file's length, once it is written.
    pub fn bytes(&self) -> u64 {
        if let Stage::Writing(writing) = &self.stage { writing.bytes() } else { 0 }
    }

    /// Open files, to be closed at its end.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let handle = match &self.stage {
            Stage::Neighbour { source, .. } => source.handle(),
            Stage::Index(_) | Stage::Log(_) => None,
            Stage::Writing(writing) => writing.handle(),
        };
        handle.into_iter()
    }

    /// A file of it that may be there when it is given up.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        let written = matches!(self.stage, Stage::Writing(_)).then(|| self.config.directory.join(TEMPORARY));
        written.into_iter().collect()
    }

    /// Takes the outcome of the operation under way. Returns whether the run is durable under its name.
    pub fn on_done(&mut self, outcome: Result<Outcome, Fault>) -> Result<bool, Trouble> {
        match &mut self.stage {
            Stage::Neighbour { source, .. } => source.on_done(outcome)?,
            Stage::Index(_) => unreachable!("memory needs no operation"),
            Stage::Log(recovery) => {
                let next = recovery.on_done(outcome, &mut |batch| self.content.take(batch, &self.config));
                self.follow(next)?;
            }
            Stage::Writing(writing) => {
                let content = &mut self.content;
                match writing.on_done(outcome, &mut content.index, &content.keys).map_err(Trouble::Fault)? {
                    Step::Do(op) => self.next = Some(op),
                    Step::Finished(_) => return Ok(true),
                }
            }
        }
        Ok(false)
    }

    /// Works until an operation is needed, or long enough. `live`: the index, which knows the queues behind the
    /// log byte `settled`.
    pub fn on_turn(&mut self, live: &mut Index, settled: u64) -> Result<Turn, Trouble> {
        if let Some(op) = self.next.take() {
            return Ok(Turn::Do(op));
        }
        match &mut self.stage {
            Stage::Neighbour { source, at_end } => {
                if let Some(op) = source.open(self.direct) {
                    return Ok(Turn::Do(op));
                }
                while let Some(Slot { queue, first, count, .. }) = source.queues.peek::<Slot>() {
                    let next = if *at_end { first.saturating_add(count.into()) } else { first };
                    self.content.index.restore(queue, next);
                    source.queues.pass();
                }
                if let Some(op) = source.read_queues() {
                    return Ok(Turn::Do(op));
                }
                let handle = source.handle().expect("it was read");
                self.read_log()?;
                Ok(Turn::Close(handle))
            }
            Stage::Index(queues) => {
                let queues = queues.get_or_insert_with(|| live.nexts().map(|(queue, _)| queue).collect());
                if !queues.is_empty() && settled != self.to {
                    return Err(Trouble::Stale);
                }
                let left = queues.len().saturating_sub(SLICE_QUEUES);
                for queue in queues.drain(left..) {
                    let next = live.get(queue).map(|queue| queue.between(settled, u64::MAX).0);
                    self.content.index.restore(queue, next.unwrap_or(0));
                }
                if left == 0 {
                    self.read_log()?;
                }
                Ok(Turn::Again)
            }
            Stage::Log(_) | Stage::Writing(_) => unreachable!("what comes next was told with the last outcome"),
        }
    }

    fn read_log(&mut self) -> Result<(), Trouble> {
        let (base, handle) = self.segment;
        let mut recovery = Recovery::again(&self.config, base, handle, self.to);
        let next = recovery.begin(None, 0, &[], &mut |batch| self.content.take(batch, &self.config));
        self.stage = Stage::Log(Box::new(recovery));
        self.follow(next)
    }

    /// The log was read some way.
    fn follow<E>(&mut self, next: Result<Next, E>) -> Result<(), Trouble> {
        if self.content.head >= self.to {
            self.content.keys.seal();
            let content = &mut self.content;
            let stretch = Stretch {
                from: self.from,
                end: End { head: self.to, ..End::default() },
                entries: content.entry_count,
                keys: content.key_count,
            };
            let place = (&*self.config.directory, TEMPORARY);
            let order = content.index.take_order();
            let (writing, op) = Writing::begin(place, self.config.partition, stretch, order, self.direct);
            self.stage = Stage::Writing(Box::new(writing));
            self.next = Some(op);
            return Ok(());
        }
        match next {
            Ok(Next::Do(op)) => self.next = Some(op),
            Ok(Next::Ready | Next::Finished(_)) | Err(_) => return Err(Trouble::Log(self.content.head)),
        }
        Ok(())
    }
}

impl Content {
    /// Takes what a batch has, if it lies in the stretch.
    fn take(&mut self, batch: Batch<'_>, config: &LogConfig) {
        if batch.header.base >= self.to {
            return;
        }
        self.head = batch.header.end();
        if batch.header.base < self.from {
            return;
        }
        for (byte, header, payload) in batch.records() {
            match header.kind {
                Kind::Message => {
                    let message = (byte, header, payload);
                    self.key_count += take_message(&mut self.index, &mut self.keys, message, config.describe);
                    self.entry_count += header.offsets_count();
                }
                Kind::Facts => {
                    facts::decode(payload).for_each(|(key, change)| _ = take_own_fact(&mut self.index, key, change));
                }
                Kind::Delayed
                | Kind::Delivered
                | Kind::Half
                | Kind::Checked
                | Kind::SnapshotBegin
                | Kind::SnapshotEnd => {}
            }
        }
    }
}
