//! A partition and its world: one simulated disk, from the first start through all deaths to the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use engine::buffer::Region;
use engine::format::{BatchHeader, QueueKey};
use engine::io::{Done, Io, Op, Tag};
use engine::limits::{Flush, LogConfig};
use engine::partition::{Effect, Partition};
use engine::sim::{Faults, Random, Sim};
use engine::{LoadId, Ticket};

use super::model::{Answer, Ended, History, Sent, describe};
use crate::{MIB, Seen};

pub const SEGMENT_BYTES: u64 = 16 * MIB;
/// Turns within which anything that is waited for must happen.
pub const TURNS_MAX: usize = 200_000;
/// Turns in a row that do nothing although they were asked for.
const IDLE_TURNS_MAX: usize = 50;

/// What a run is like, beside what its seed chooses.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub rounds: u64,
    pub faults: Faults,
    /// Messages of up to 300 KB, so that segments fill.
    pub large: bool,
    /// No topic goes, a segment has messages of half of the queues, and facts are large: so checkpoints are rare.
    pub steady: bool,
    /// Bytes of log that are kept.
    pub retain: Option<u64>,
    /// Milliseconds after which a segment goes.
    pub age: Option<u64>,
    /// Bytes of the disk.
    pub space: Option<u64>,
    /// Files that are derived are damaged or removed between two lives.
    pub harm: bool,
    /// Lives of a few turns, most of which end before they are open.
    pub brief: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Plan {
        let (faults, large, steady, harm, brief) = (Faults::default(), false, false, false, false);
        Plan { seed, rounds: 1, faults, large, steady, retain: None, age: None, space: None, harm, brief }
    }

    /// Whether segments go.
    pub fn retires(&self) -> bool {
        self.retain.is_some() || self.age.is_some() || self.space.is_some()
    }
}

pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub sim: Sim,
    pub config: LogConfig,
    pub partition: Partition,
    /// Operations that found no slot.
    pub backlog: VecDeque<(u64, Op)>,
    pub done: Vec<Done>,
    pub effects: Vec<Effect>,
    pub open: bool,
    pub audited: bool,
    /// When how much was written, once a turn.
    pub written: Vec<(u64, u64)>,
    /// The most that was ever accepted.
    pub longest: u64,
    /// The log's floor and its checkpoint, and how often runs were merged and made again; and whether any of them moved
    /// since somebody looked: a good moment to die.
    pub milestone: (u64, u64, (u64, u64)),
    pub published: bool,
    /// So is the one when new names are about to become durable.
    pub naming: bool,
    /// And the one when a segment begins to go.
    pub retiring: bool,
    /// There is a checkpoint up to here, unless something failed or was damaged.
    pub checkpointed: u64,
    pub restarted: bool,
    /// The epoch that is written in, the one of the last opening that was complete, and the highest one of those that
    /// have ended.
    pub epoch: u64,
    pub lived: u64,
    pub buried: u64,
    pub closed: Option<String>,
    pub shut: bool,
    pub loaded: BTreeSet<LoadId>,
    pub idle: usize,
    pub ended: Ended,
    pub sent: Vec<Sent>,
    pub answers: VecDeque<(Ticket, Answer)>,
    pub tickets: u64,
    pub facts: BTreeMap<u64, History>,
    /// Noted values: what is certain, and the newest.
    pub notes: BTreeMap<u64, (u64, u64)>,
    pub topics: Vec<u32>,
    pub topic_next: u32,
    /// Queue offsets below it are taken for ever.
    pub taken: BTreeMap<QueueKey, u64>,
    /// Where a consumer that is told of new messages stands.
    pub cursors: BTreeMap<QueueKey, u64>,
    pub trace: u64,
    pub seen: Seen,
}

impl World {
    pub fn new(plan: Plan) -> World {
        let mut random = Random::new(plan.seed.wrapping_mul(0x1_0000_0001) ^ 0x51ed);
        let mut sim = Sim::new(random.bits());
        sim.haste = [1000, 500, 200, 50][random.below(4) as usize];
        sim.direct = random.chance(800);
        if let Some(space) = plan.space {
            sim.space = space;
        }
        let chunk_bytes = [256 << 10, 1 << 20][random.below(2) as usize];
        let config = LogConfig {
            directory: "/p0".into(),
            partition: random.below(3) as u16,
            segment_bytes: SEGMENT_BYTES,
            batch_bytes: [64 << 10, 256 << 10, 1 << 20][random.below(3) as usize],
            inflight_batches: [1, 2, 4, 8][random.below(4) as usize],
            flush: if random.chance(600) { Flush::Sync } else { Flush::Async { interval_ms: 1 + random.below(200) } },
            stretch_bytes: [64 << 10, 300 << 10, 2 << 20, 64 << 20][random.below(4) as usize],
            memory: Region::new(8 + random.below(24) as usize, chunk_bytes).unwrap(),
            prepare_bytes: random.below(3) * MIB,
            prepare_rate: 64 * MIB,
            retention_ms: plan.age.unwrap_or(u64::MAX),
            retention_bytes: plan.retain.unwrap_or(u64::MAX),
            compaction_ms: u64::MAX,
            read_bytes_per_s: if plan.seed.is_multiple_of(4) { 8 * MIB } else { 0 },
            disk_free_min: MIB,
            describe,
            key_of: None,
            seed: plan.seed,
        };
        let partition = Partition::new(config.clone()).unwrap();
        World {
            plan,
            random,
            sim,
            config,
            partition,
            backlog: VecDeque::new(),
            done: Vec::new(),
            effects: Vec::new(),
            open: false,
            audited: false,
            written: Vec::new(),
            longest: 0,
            milestone: (0, 0, (0, 0)),
            checkpointed: 0,
            published: false,
            naming: false,
            retiring: false,
            restarted: false,
            epoch: 0,
            lived: 0,
            buried: 0,
            closed: None,
            shut: false,
            loaded: BTreeSet::new(),
            idle: 0,
            ended: Ended::Written,
            sent: Vec::new(),
            answers: VecDeque::new(),
            tickets: 0,
            facts: BTreeMap::new(),
            notes: BTreeMap::new(),
            topics: vec![1, 2],
            topic_next: 3,
            taken: BTreeMap::new(),
            cursors: BTreeMap::new(),
            trace: 0,
            seen: Seen::default(),
        }
    }

    /// Whether a log may be closed for a while.
    pub fn may_fail(&self) -> bool {
        self.plan.faults != Faults::default()
    }

    /// The whole run. Returns a number that depends on all that happened.
    pub fn run(&mut self) -> u64 {
        for _ in 0..self.plan.rounds {
            self.sim.faults = self.plan.faults;
            self.stumble();
            self.wait_open();
            let steps = match () {
                _ if self.plan.large => 150,
                _ if self.plan.brief => self.random.below(20),
                _ => 10 + self.random.below(120),
            };
            for _ in 0..steps {
                self.step();
                if self.dies_published() || self.dies_nameless() {
                    break;
                }
            }
            if let Some(space) = self.plan.space {
                self.room_again(space);
            }
            if self.random.chance(200) {
                self.shut_down();
            }
            self.end_life();
        }
        self.stumble();
        // All that is due is delivered, exactly once, and nothing is missing.
        self.sim.faults = Faults::default();
        self.sim.space = 1 << 40;
        self.wait_open();
        let last = self.sent.iter().filter_map(|sent| sent.due_ms).max().unwrap_or(0);
        self.sim.advance(last.saturating_sub(self.sim.now_ms()) + 1);
        for _ in 0..TURNS_MAX {
            self.quiesce();
            self.audit();
            // Damage that is found now closes it: what was due is delivered when it is open again.
            if self.closed.take().is_none() {
                break;
            }
            self.wait_open();
        }
        let topics = self.topics.clone();
        let floor = self.partition.stats().floor;
        // A power cut takes back what was written: the least that was written at a moment or after it.
        for index in (1..self.written.len()).rev() {
            self.written[index - 1].1 = self.written[index - 1].1.min(self.written[index].1);
        }
        for (id, sent) in self.sent.iter().enumerate() {
            // What was delivered may be retired before it is seen; it lies behind what was written when it was due.
            let index = self.written.partition_point(|(time_ms, _)| Some(*time_ms) < sent.due_ms);
            let behind = index.checked_sub(1).map_or(0, |index| self.written[index].1);
            let gone = sent.gone || behind < floor || sent.withdrawn.is_some();
            // Of half messages those that are committed.
            let gone = gone || sent.half.is_some_and(|half| half.decided != Some(true));
            let due = sent.due_ms.is_some() && sent.promised && !gone && topics.contains(&sent.queue.topic);
            assert!(!due || sent.place.is_some(), "the delayed message {id} was never delivered: {sent:?}");
        }
        self.trace
    }

    pub fn turn(&mut self) {
        let mut moved = false;
        self.partition.effects(&mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            moved = true;
            self.take_effect(effect);
        }
        while let Some((local, op)) = self.backlog.pop_front() {
            if let Err(op) = self.sim.submit(Tag(local), op) {
                self.backlog.push_front((local, op));
                break;
            }
        }
        let mut done = std::mem::take(&mut self.done);
        self.sim.drive(None, &mut done);
        for done in done.drain(..) {
            moved = true;
            self.trace = self.trace.wrapping_mul(31).wrapping_add(done.tag.0 ^ u64::from(done.outcome.is_ok()));
            self.partition.on_done(done.tag.0, done.outcome, self.sim.now_ms());
        }
        self.done = done;
        self.partition.on_turn(self.sim.now_ms());
        let stats = self.partition.stats();
        assert!(stats.accepted >= stats.written && stats.written >= stats.durable, "{stats:?}");
        self.longest = self.longest.max(stats.accepted);
        let milestone = (stats.floor, stats.checkpointed, stats.upkeep);
        let before = std::mem::replace(&mut self.milestone, milestone);
        self.published |= before != milestone;
        self.retiring |= before.0 < milestone.0;
        self.seen.merged += stats.upkeep.0.saturating_sub(before.2.0);
        self.seen.remade += stats.upkeep.1.saturating_sub(before.2.1);
        self.checkpointed = self.checkpointed.max(stats.checkpointed);
        let damaged = (stats.damaged_runs, stats.upkeep.1);
        assert!(self.plan.harm || damaged == (0, 0), "nothing was damaged: {stats:?}");
        if self.open {
            self.written.push((self.sim.now_ms(), stats.written));
        }
        // A loop would now wait for its deadline or a completion.
        let waits = self.sim.flying() == 0 && self.backlog.is_empty() && !self.partition.has_effects();
        let deadline = self.partition.deadline_ms();
        if waits && deadline > self.sim.now_ms() {
            self.sim.advance((deadline - self.sim.now_ms()).min(1 + self.random.below(300)));
            self.idle = 0;
        } else if waits && !moved {
            self.idle += 1;
            assert!(self.idle < IDLE_TURNS_MAX, "it spins: deadline {deadline}, now {}", self.sim.now_ms());
        } else {
            self.idle = 0;
            self.sim.advance(self.random.below(2));
        }
    }

    pub fn take_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Io { local, op } => {
                assert!(local < 1 << 40, "a local number is below 2^40");
                self.check_epoch(&op);
                self.naming |= matches!(op, Op::SyncDirectory { .. });
                self.backlog.push_back((local, op));
            }
            Effect::Stored(ticket, result) => {
                let (expected, answer) = self.answers.pop_front().expect("a ticket comes back once");
                assert_eq!(ticket, expected, "tickets come back in log order");
                if result.is_ok() {
                    self.promised(answer);
                }
            }
            Effect::Grown(queue) => self.follow(queue),
            Effect::Loaded(load, _) => _ = self.loaded.insert(load),
            Effect::Undecided(id) => self.asked(id),
            Effect::Opened => {
                (self.open, self.lived) = (true, self.epoch);
                assert!(self.answers.is_empty(), "all who waited were told");
            }
            Effect::Closed(reason) => {
                (self.open, self.closed, self.buried) = (false, Some(reason), self.lived);
            }
            Effect::Shut => self.shut = true,
        }
    }

    /// Every opening writes in an epoch of its own: what another one left behind the log's end never continues it.
    pub fn check_epoch(&mut self, op: &Op) {
        let Op::Write { bytes, .. } = op else { return };
        let Ok(header) = BatchHeader::peek(bytes) else { return };
        assert!(header.epoch > self.buried, "epoch {} again, after {}", header.epoch, self.buried);
        self.epoch = header.epoch;
    }

    /// Everything comes to rest; what was noted is durable then.
    pub fn quiesce(&mut self) {
        let from = self.sim.now_ms();
        for _ in 0..TURNS_MAX {
            self.turn();
            if !self.open || !self.partition.is_open() {
                return;
            }
            let stats = self.partition.stats();
            if self.still() && stats.durable == stats.accepted && self.sim.now_ms() > from + 2500 {
                if self.sim.space == 1 << 40 && self.plan.faults == Faults::default() {
                    self.notes.values_mut().for_each(|(certain, newest)| *certain = *newest);
                }
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.partition.stats());
    }
}
