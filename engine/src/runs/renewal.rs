//! Runs that take the place of others: which of a sealed segment are to become one, which are damaged and are to be made
//! again, who waits for that, and what becomes of the files that are not used any more.

use super::{Health, Leaving, Miss, Place, Run, Runs};
use crate::io::Fault;
use crate::limits::{MERGED_BYTES_MAX, MERGED_RUNS_MAX};
use crate::loads::LoadId;
use crate::writing::name;
use std::cmp::Reverse;
use std::path::PathBuf;

/// A run that is to be made again, and how it is known where queues without messages in it stand there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Between these log bytes.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// What tells.
    pub table: Table,
}

/// What tells where queues stand at a log byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The end of the run before.
    Before(Place),
    /// The beginning of the run behind.
    Behind(Place),
    /// There is none behind: the index.
    Index,
    /// There is none before: nobody asks.
    Nobody,
}

impl Runs {
    /// One run was written that has what those between two log bytes have; they go.
    pub fn replace(&mut self, from: u64, to: u64, bytes: u64) {
        let low = self.index_of(from).expect("whoever retires runs gives up what is made of them");
        let high = self.list.partition_point(|run| run.to <= to);
        assert!(low < high && self.list[high - 1].to == to, "runs are replaced as a whole");
        let run = self.new_run(from, to, bytes);
        let gone: Vec<Run> = self.list.drain(low..high).collect();
        self.list.insert(low, run);
        self.sweep = self.sweep.map(|sweep| if (from..to).contains(&sweep.0) { (from, 1) } else { sweep });
        // A file of the same name was replaced already.
        gone.into_iter().for_each(|run| self.leave(run, to));
    }

    /// A file that nobody has any use for.
    pub fn discard(&mut self, path: PathBuf) {
        let run = self.new_run(0, 0, 0);
        self.leaving.push_back(Leaving { run, path: Some(path) });
    }

    /// Those of one sealed segment that are to become one: `segments` are those of the log, by where they begin and
    /// end, oldest first. A checkpoint up to `checkpointed` is durable: a start must find a run that ends there.
    pub fn to_merge(&self, segments: impl Iterator<Item = (u64, u64)>, checkpointed: u64) -> Option<Vec<Place>> {
        for (base, end) in segments {
            let low = self.list.partition_point(|run| run.to <= base);
            let high = self.list.partition_point(|run| run.to <= end);
            // One behind them tells that no more of them come.
            if high == self.list.len() || high < low + 2 || self.list[high - 1].to > checkpointed {
                continue;
            }
            let group = |first: usize| {
                let mut bytes = 0;
                let fits = self.list.range(first..high).take(MERGED_RUNS_MAX).take_while(|run| {
                    bytes += run.bytes;
                    bytes <= MERGED_BYTES_MAX && run.health == Health::Whole
                });
                (first, fits.count())
            };
            let size = |&(first, count): &(usize, usize)| -> u64 {
                self.list.range(first..first + count).map(|run| run.bytes).sum()
            };
            // As many as possible, and of those the smallest: what was merged already is not written again for a few.
            let groups = (low..high).map(group).filter(|(_, count)| *count > 1);
            if let Some((first, count)) = groups.max_by_key(|group| (group.1, Reverse(size(group)))) {
                return Some(self.list.range(first..first + count).map(Run::place).collect());
            }
        }
        None
    }

    /// How many are not whole.
    pub fn broken(&self) -> u64 {
        self.broken.len() as u64
    }

    /// Whether files are to be removed.
    pub fn is_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Whether a file of this name is.
    pub fn is_discarding(&self, file: &str) -> bool {
        self.leaving.iter().filter_map(|leaving| leaving.path.as_ref()).any(|path| path.ends_with(file))
    }

    /// The next that can be made again now; and otherwise when to ask again.
    pub fn to_repair(&self, now_ms: u64) -> Result<Repair, u64> {
        let mut again_ms = u64::MAX;
        for from in &self.broken {
            let Some(index) = self.index_of(*from) else { continue };
            let due_ms = match self.list[index].health {
                Health::Whole => continue,
                Health::Damaged(_) => 0,
                Health::Lost(due_ms) => due_ms,
            };
            // Between two that are not whole it waits for one of them.
            let Some(table) = self.table(index) else { continue };
            if due_ms <= now_ms {
                let Place { from, to, .. } = self.list[index].place();
                return Ok(Repair { from, to, table });
            }
            again_ms = again_ms.min(due_ms);
        }
        Err(again_ms)
    }

    fn table(&self, index: usize) -> Option<Table> {
        let whole = |index: usize| self.list.get(index).filter(|run| run.health == Health::Whole).map(Run::place);
        let before = index.checked_sub(1);
        match before.and_then(whole) {
            Some(place) => Some(Table::Before(place)),
            None if index + 1 == self.list.len() => Some(Table::Index),
            None => whole(index + 1).map(Table::Behind).or(before.is_none().then_some(Table::Nobody)),
        }
    }

    /// The run that begins at a log byte cannot be made again either. It is tried again at `again_ms`.
    pub fn lose(&mut self, from: u64, why: &str, again_ms: u64) {
        let Some(index) = self.index_of(from) else { return };
        let run = &mut self.list[index];
        let path = self.directory.join(name(run.from, run.to));
        match std::mem::replace(&mut run.health, Health::Lost(again_ms)) {
            Health::Damaged(wait) => {
                tracing::error!(file = %path.display(), why, "a damaged run cannot be made again: queries go without it");
                self.told.extend(wait.map(|load| (load, Ok(()))));
            }
            Health::Lost(_) | Health::Whole => {}
        }
        self.broken.insert(from);
    }

    /// Whoever waits for a run that is made again is told that it was not.
    pub fn disappoint(&mut self, fault: Fault) {
        for from in &self.broken {
            let index = self.list.partition_point(|run| run.from < *from);
            if let Some(Run { health: Health::Damaged(wait), .. }) = self.list.get_mut(index) {
                self.told.extend(wait.take().map(|load| (load, Err(fault))));
            }
        }
    }

    /// A read that fails: for who asks what a run that is lost would know.
    pub fn refuse(&mut self) -> LoadId {
        let load = self.load_id();
        self.told.push((load, Err(Fault(libc::EIO))));
        load
    }

    /// What is to be told to those that wait.
    pub fn told(&mut self) -> impl Iterator<Item = (LoadId, Result<(), Fault>)> {
        self.told.drain(..)
    }

    /// A run is not used any more. A file that has its name now ends at log byte `renamed`.
    pub(super) fn leave(&mut self, mut run: Run, renamed: u64) {
        self.broken.remove(&run.from);
        if let Health::Damaged(Some(load)) = std::mem::replace(&mut run.health, Health::Whole) {
            self.told.push((load, Ok(())));
        }
        self.blocks.forget(run.serial);
        let path = (run.to != renamed || self.index_of(run.from).is_none())
            .then(|| self.directory.join(name(run.from, run.to)));
        self.leaving.push_back(Leaving { run, path });
    }

    /// The run that begins at a log byte is not what it should be, from this byte of its file on.
    pub fn damage(&mut self, from: u64, at: u64, why: &str) {
        if let Some(index) = self.index_of(from) {
            self.damaged(from, self.list[index].serial, at, why);
        }
    }

    pub(super) fn damaged(&mut self, from: u64, serial: u64, at: u64, why: &str) {
        let index = self.index_of(from);
        let Some(index) = index.filter(|index| self.list[*index].serial == serial) else { return };
        let run = &mut self.list[index];
        if run.health == Health::Whole {
            run.health = Health::Damaged(None);
            self.broken.insert(from);
            let path = self.directory.join(name(from, run.to));
            tracing::error!(file = %path.display(), byte = at, why, "a run is damaged; it is made again from the log");
        }
    }

    /// What to tell whoever needs a run that is not whole.
    pub(super) fn miss(&mut self, index: usize) -> Miss {
        let wait = match self.list[index].health {
            Health::Damaged(wait) => wait.unwrap_or_else(|| self.load_id()),
            Health::Lost(_) | Health::Whole => return Miss::Damaged(self.list[index].from),
        };
        self.list[index].health = Health::Damaged(Some(wait));
        Miss::Loading(wait)
    }
}
