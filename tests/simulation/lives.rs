//! How a life of the partition begins and ends, and what becomes of its disk in between.

use engine::format::BLOCK_BYTES;
use engine::io::{Fault, Io, Op, OpenHow, Outcome, Tag};
use engine::limits::Flush;
use engine::partition::Partition;
use engine::sim::Faults;

use super::model::Ended;
use super::world::{TURNS_MAX, World};

/// Turns within which an opening ends that has room on the disk.
const HELD_TURNS_MAX: usize = 20_000;
/// Derived files that are damaged at once.
const HARMED_MAX: u64 = 3;

impl World {
    /// Lives that end anywhere in the opening, or where all was read and is about to be made durable.
    pub fn stumble(&mut self) {
        let often = if self.plan.brief { 700 } else { 300 };
        while self.random.chance(often) {
            let read_all = self.random.chance(500);
            let mut turns = self.random.below(if read_all { 4 } else { 40 });
            for _ in 0..HELD_TURNS_MAX {
                if turns == 0 || self.dies_nameless() {
                    break;
                }
                self.turn();
                self.follow_all();
                let reads = self.partition.progress().is_some();
                turns -= u64::from(!(read_all && reads));
            }
            self.end_life();
        }
    }

    /// Whether a life ends now because something was published. Where delayed messages outlive their segments, most end
    /// when one begins to go, after about as long as an operation takes: what it was held for may be on its way then.
    pub fn dies_published(&mut self) -> bool {
        let retiring = std::mem::take(&mut self.retiring) && self.plan.age.is_some();
        if retiring && self.random.chance(500) {
            let turns = self.random.below(u64::from(4000 / self.sim.haste));
            (0..turns).for_each(|_| self.turn());
            return true;
        }
        std::mem::take(&mut self.published) && self.random.chance(100)
    }

    /// Whether a short life ends now because names in the directory are about to become durable.
    pub fn dies_nameless(&mut self) -> bool {
        std::mem::take(&mut self.naming) && self.plan.brief && self.random.chance(400)
    }

    /// Until the partition takes appends; then everything is looked at.
    pub fn wait_open(&mut self) {
        for turn in 0..TURNS_MAX {
            if self.open && self.partition.is_open() {
                self.opened();
                return;
            }
            self.turn();
            self.follow_all();
            let held = turn > HELD_TURNS_MAX || self.partition.obstacle().is_some();
            if self.plan.space.is_some() && held {
                // There is no room for the next segment, or for the runs of what was read: somebody makes some.
                self.sim.space = 1 << 40;
            }
            if !self.open && self.closed.is_some() && self.partition.deadline_ms() == u64::MAX && self.still() {
                // A failing disk at the first opening: somebody starts it again, on a better one.
                let reason = self.closed.take().unwrap();
                assert_ne!(self.plan.faults, Faults::default(), "it does not open: {reason}");
                assert!(reason.contains("os error"), "it does not open: {reason}");
                self.sim.faults = Faults::default();
                self.sim = self.sim.kill();
                self.start();
            }
        }
        panic!("it does not open: {:?}", self.closed);
    }

    pub fn still(&self) -> bool {
        self.sim.flying() == 0 && self.backlog.is_empty() && !self.partition.has_effects()
    }

    pub fn start(&mut self) {
        self.partition = Partition::new(self.config.clone()).unwrap();
        (self.open, self.audited, self.closed, self.shut) = (false, false, None, false);
        (self.restarted, self.buried) = (true, self.lived);
        self.backlog.clear();
        self.answers.clear();
        self.loaded.clear();
        self.idle = 0;
    }

    pub fn end_life(&mut self) {
        let durable = self.partition.stats().durable;
        self.trace = self.trace.wrapping_mul(31).wrapping_add(durable);
        if self.random.chance(650) {
            let seed = self.random.bits();
            self.sim = self.sim.power_cut(seed);
            // Two cuts in a row: what the first one had to leave, the second one has to leave.
            let before = if let Ended::Cut { durable } = self.ended { durable } else { 0 };
            let durable = if self.audited { durable } else { before };
            self.ended = Ended::Cut { durable };
            // A delayed message may be lost unseen, or delivered again.
            let lossy = self.config.flush != Flush::Sync;
            for sent in self.sent.iter_mut().filter(|sent| lossy && sent.due_ms.is_some()) {
                sent.promised &= sent.stored.position.byte() < durable;
                sent.withdrawn = sent.withdrawn.map(|(ticket, _)| (ticket, false));
                if let Some(half) = &mut sent.half {
                    half.decided = None;
                }
                sent.place = sent.place.filter(|(_, position)| position.byte() < durable);
            }
        } else {
            self.sim = self.sim.kill();
        }
        if self.plan.harm && self.random.chance(600) {
            (0..1 + self.random.below(HARMED_MAX)).for_each(|_| self.harm());
        }
        self.start();
    }

    pub fn shut_down(&mut self) {
        self.partition.shut();
        let was_open = self.partition.is_open() || self.open;
        for _ in 0..TURNS_MAX {
            self.turn();
            if self.shut {
                if was_open && self.closed.is_none() {
                    self.notes.values_mut().for_each(|(certain, newest)| *certain = *newest);
                }
                return;
            }
        }
        panic!("it does not shut");
    }

    /// A full disk gets room, and the partition takes appends again.
    pub fn room_again(&mut self, space: u64) {
        self.sim.space = 1 << 40;
        for _ in 0..TURNS_MAX {
            self.turn();
            let before = self.sent.len();
            if self.sim.now_ms().is_multiple_of(7) {
                self.append();
            }
            if self.sent.len() > before {
                if self.random.chance(500) {
                    self.quiesce();
                }
                self.sim.space = space;
                return;
            }
            self.sim.advance(10);
        }
        panic!("it does not take appends again: {:?}", self.partition.stats());
    }

    /// Damages or removes one of the files that are derived from the log.
    pub fn harm(&mut self) {
        let Ok(Outcome::Names(files)) = self.operate(Op::List { path: self.config.directory.clone() }) else { return };
        let is_derived =
            |(name, length): &&(String, u64)| name.starts_with("run-") || name == "checkpoint" && *length > 0;
        let files: Vec<_> = files.iter().filter(is_derived).collect();
        if files.is_empty() {
            return;
        }
        let (name, length) = files[self.random.below(files.len() as u64) as usize];
        let path = self.config.directory.join(name);
        self.seen.harmed += 1;
        if *length == 0 || self.random.chance(300) {
            self.operate(Op::Remove { path }).unwrap();
            self.operate(Op::SyncDirectory { path: self.config.directory.clone() }).unwrap();
            return;
        }
        let Ok(Outcome::Opened(file)) = self.operate(Op::Open { path, how: OpenHow::default() }) else {
            panic!("{name}")
        };
        let at = self.random.below(*length / BLOCK_BYTES) * BLOCK_BYTES;
        let Ok(Outcome::Read(block)) = self.operate(Op::Read { file, at, length: BLOCK_BYTES as u32 }) else {
            panic!()
        };
        let mut block = block.to_vec();
        // What is used lies in front.
        let bits = [64, 800, 8 * BLOCK_BYTES][self.random.below(3) as usize];
        let bit = self.random.below(bits) as usize;
        block[bit / 8] ^= 1 << (bit % 8);
        self.operate(Op::Write { file, at, bytes: block.into(), durable: true }).unwrap();
        self.operate(Op::Close { handle: file }).unwrap();
    }

    /// Does one operation on the disk of a process that is dead.
    pub fn operate(&mut self, op: Op) -> Result<Outcome, Fault> {
        let faults = std::mem::take(&mut self.sim.faults);
        self.sim.submit(Tag(0), op).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            self.sim.drive(None, &mut done);
        }
        self.sim.faults = faults;
        done.remove(0).outcome
    }
}
