//! Goal: whatever was promised is kept, through power cuts, kills, failing and full disks. Method: one
//! partition on a simulated disk, random requests from a seed, the end at a random moment, recovery (which
//! may be cut short too), and an audit of everything the partition then shows against a model of what it
//! said. Repeat: `SEED=17 cargo test -p tests --test simulation power`; more: `SEEDS=10000`.

use bytes::Bytes;
use engine::buffer::Region;
use engine::error::AppendError;
use engine::format::{BLOCK_BYTES, BatchHeader, Position, QueueKey};
use engine::io::{Done, Fault, Io, Op, OpenHow, Outcome, Tag};
use engine::limits::{Flush, LogConfig};
use engine::message::{Description, Draft, Keys, Stamp, Stored};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use engine::sim::{Faults, Random, Sim};
use engine::{KeySearch, LoadId, Ticket};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use tests::random::noise;

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 16 * MIB;
const QUEUES: u64 = 4;
const FACTS: u64 = 12;
/// Turns within which anything that is waited for must happen.
const TURNS_MAX: usize = 200_000;
/// Turns within which an opening ends that has room on the disk.
const HELD_TURNS_MAX: usize = 20_000;
/// Derived files that are damaged at once.
const HARMED_MAX: u64 = 3;
/// Turns in a row that do nothing although they were asked for.
const IDLE_TURNS_MAX: usize = 50;

#[test]
fn power_cuts_and_kills_lose_nothing_promised() {
    let seen = repeat(0..1_500, |seed| Plan { rounds: 4, ..Plan::new(seed) });
    assert!(seen.taken_over > 400 && seen.runs > 8_000, "{seen:?}");
}

#[test]
fn lives_that_end_soon_lose_nothing_promised() {
    repeat(0..1_000, |seed| Plan { brief: true, rounds: 6, ..Plan::new(seed) });
}

#[test]
fn failing_disks_lose_nothing_promised() {
    repeat(0..1_500, |seed| {
        let rate = [2, 10, 40, 200][seed as usize % 4];
        let faults = Faults { write: rate, short: rate, sync: rate, read: rate, name: rate, receive: 0 };
        // A sync that fails is not noticed by anybody but who asked for it.
        let faults = if rate == 200 { Faults { sync: rate, ..Faults::default() } } else { faults };
        Plan { faults, rounds: 3, ..Plan::new(seed) }
    });
}

#[test]
fn segments_roll_and_come_back_clean() {
    let seen = repeat(0..150, |seed| {
        let steady = seed.is_multiple_of(3);
        let retain = Some(if steady { 60 * MIB } else { 20 * MIB });
        Plan { large: true, steady, retain, rounds: 3, ..Plan::new(seed) }
    });
    assert!(seen.retired > 150 && seen.taken_over > 80 && seen.merged > 60, "{seen:?}");
}

#[test]
fn delayed_messages_outlive_their_segments() {
    let seen =
        repeat(0..60, |seed| Plan { large: true, age: Some(1 + seed * 197 % 6000), rounds: 4, ..Plan::new(seed) });
    assert!(seen.retired > 200 && seen.rolled > 60 && seen.taken_over > 50, "{seen:?}");
}

#[test]
fn full_disks_refuse_and_resume() {
    repeat(0..200, |seed| Plan { large: true, space: Some((33 + seed % 40) * MIB), rounds: 2, ..Plan::new(seed) });
}

#[test]
fn what_is_derived_is_made_again_when_it_is_damaged_or_gone() {
    let seen = repeat(0..500, |seed| {
        // What was retired cannot be read again: its facts are in a snapshot, or nowhere.
        let retain = seed.is_multiple_of(6).then_some(20 * MIB);
        Plan { large: seed.is_multiple_of(3), retain, harm: true, rounds: 4, ..Plan::new(seed) }
    });
    assert!(seen.harmed > 400 && seen.taken_over > 80 && seen.remade > 50, "{seen:?}");
}

#[test]
fn one_seed_twice_is_the_same_run() {
    for seed in 0..3 {
        let plan = || Plan { faults: Faults { write: 5, ..Faults::default() }, rounds: 2, ..Plan::new(seed) };
        assert_eq!(World::new(plan()).run(), World::new(plan()).run(), "seed {seed}");
    }
}

/// What the runs of a plan came across, to see that they do.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Openings that took over a checkpoint.
    taken_over: u64,
    /// Runs there were when everything was looked at, added up.
    runs: u64,
    /// Segments that were gone when everything was looked at, added up.
    retired: u64,
    /// Delayed messages that waited when everything was looked at although the segment they came in was gone, added up.
    rolled: u64,
    /// Files that were damaged or removed.
    harmed: u64,
    /// How often runs were merged, and made again because damage was found while the partition was open.
    merged: u64,
    remade: u64,
}

impl Seen {
    /// The whole of a test's seeds; all of them, if fewer are asked for.
    const ENOUGH: Seen = Seen {
        taken_over: 1 << 40,
        runs: 1 << 40,
        retired: 1 << 40,
        rolled: 1 << 40,
        harmed: 1 << 40,
        merged: 1 << 40,
        remade: 1 << 40,
    };
}

/// Runs a plan for each seed; a failure names the seed.
fn repeat(seeds: Range<u64>, plan: impl Fn(u64) -> Plan) -> Seen {
    let mut all = Seen::default();
    let (whole, mut from, mut to) = (seeds.clone(), u64::MAX, 0);
    tests::random::repeat(seeds, |seed| {
        let mut world = World::new(plan(seed));
        world.run();
        all.taken_over += world.seen.taken_over;
        all.runs += world.seen.runs;
        all.retired += world.seen.retired;
        all.rolled += world.seen.rolled;
        all.harmed += world.seen.harmed;
        all.merged += world.seen.merged;
        all.remade += world.seen.remade;
        (from, to) = (from.min(seed), seed + 1);
    });
    if whole.end <= to && from == 0 { all } else { Seen::ENOUGH }
}

/// What a run is like, beside what its seed chooses.
#[derive(Clone, Debug)]
struct Plan {
    seed: u64,
    rounds: u64,
    faults: Faults,
    /// Messages of up to 300 KB, so that segments fill.
    large: bool,
    /// No topic goes, a segment has messages of half of the queues, and facts are large: so checkpoints are rare.
    steady: bool,
    /// Bytes of log that are kept.
    retain: Option<u64>,
    /// Milliseconds after which a segment goes.
    age: Option<u64>,
    /// Bytes of the disk.
    space: Option<u64>,
    /// Files that are derived are damaged or removed between two lives.
    harm: bool,
    /// Lives of a few turns, most of which end before they are open.
    brief: bool,
}

impl Plan {
    fn new(seed: u64) -> Plan {
        let (faults, large, steady, harm, brief) = (Faults::default(), false, false, false, false);
        Plan { seed, rounds: 1, faults, large, steady, retain: None, age: None, space: None, harm, brief }
    }

    /// Whether segments go.
    fn retires(&self) -> bool {
        self.retain.is_some() || self.age.is_some() || self.space.is_some()
    }
}

/// One message as it was handed in, and what is known of it.
#[derive(Clone, Debug)]
struct Sent {
    queue: QueueKey,
    length: usize,
    /// Queue offsets that it takes.
    offsets: u32,
    due_ms: Option<u64>,
    /// Messages of one batch share it.
    batch: u64,
    /// Where it was said to be; of a delayed one, where it waits.
    stored: Stored,
    /// It was asked not to deliver it, by a ticket; that was promised.
    withdrawn: Option<(Ticket, bool)>,
    /// A half message waits for a decision; when it is due counts for nothing.
    half: Option<Half>,
    /// Where it was seen, once it was.
    place: Option<(u64, Position)>,
    promised: bool,
    /// It was not there after an opening: it may never come back.
    gone: bool,
}

/// What is known of a half message.
#[derive(Clone, Copy, Debug)]
struct Half {
    id: u64,
    /// What was asked for since it was last seen undecided: to commit it, to roll it back.
    asked: [bool; 2],
    /// What was promised: whether it is committed.
    decided: Option<bool>,
}

/// The values a fact was given since it was last known for certain, oldest first.
#[derive(Clone, Debug, Default)]
struct History {
    values: VecDeque<Version>,
    promised: u64,
}

#[derive(Clone, Debug)]
struct Version {
    number: u64,
    /// Of the request that brought it; `None`: an opening found it, so it stays.
    ticket: Option<u64>,
    value: Option<Vec<u8>>,
}

/// What of all that was accepted is there, by tickets: these are in log order.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// The newest that is there.
    newest: Option<u64>,
    /// The oldest that is missing, and was not missing before.
    missing: u64,
}

impl Extent {
    const NOTHING: Extent = Extent { newest: None, missing: u64::MAX };

    fn there(&mut self, ticket: Option<u64>) {
        self.newest = self.newest.max(ticket);
    }

    fn lost(&mut self, ticket: Option<u64>) {
        self.missing = self.missing.min(ticket.unwrap_or(u64::MAX));
    }
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Messages(u64),
    Fact { key: u64, version: u64 },
    Withdrawn(u64),
    Decided(u64, bool),
}

/// How the last life of the partition ended: what must have survived it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// By a failure, a kill or in order: everything written is there.
    Written,
    /// By a power cut: what lies below the durable watermark is there.
    Cut { durable: u64 },
}

struct World {
    plan: Plan,
    random: Random,
    sim: Sim,
    config: LogConfig,
    partition: Partition,
    /// Operations that found no slot.
    backlog: VecDeque<(u64, Op)>,
    done: Vec<Done>,
    effects: Vec<Effect>,
    open: bool,
    audited: bool,
    /// When how much was written, once a turn.
    written: Vec<(u64, u64)>,
    /// The most that was ever accepted.
    longest: u64,
    /// The log's floor and its checkpoint, and how often runs were merged and made again; and whether any of them moved
    /// since somebody looked: a good moment to die.
    milestone: (u64, u64, (u64, u64)),
    published: bool,
    /// So is the one when new names are about to become durable.
    naming: bool,
    /// There is a checkpoint up to here, unless something failed or was damaged.
    checkpointed: u64,
    restarted: bool,
    /// The epoch that is written in, the one of the last opening that was complete, and the highest one of those that
    /// have ended.
    epoch: u64,
    lived: u64,
    buried: u64,
    closed: Option<String>,
    shut: bool,
    loaded: BTreeSet<LoadId>,
    idle: usize,
    ended: Ended,
    sent: Vec<Sent>,
    answers: VecDeque<(Ticket, Answer)>,
    tickets: u64,
    facts: BTreeMap<u64, History>,
    /// Noted values: what is certain, and the newest.
    notes: BTreeMap<u64, (u64, u64)>,
    topics: Vec<u32>,
    topic_next: u32,
    /// Queue offsets below it are taken for ever.
    taken: BTreeMap<QueueKey, u64>,
    /// Where a consumer that is told of new messages stands.
    cursors: BTreeMap<QueueKey, u64>,
    trace: u64,
    seen: Seen,
}

impl World {
    fn new(plan: Plan) -> World {
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
            read_bytes_per_s: if plan.seed.is_multiple_of(4) { 8 * MIB } else { 0 },
            disk_free_min: MIB,
            describe,
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
    fn may_fail(&self) -> bool {
        self.plan.faults != Faults::default()
    }

    /// The whole run. Returns a number that depends on all that happened.
    fn run(&mut self) -> u64 {
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
                if std::mem::take(&mut self.published) && self.random.chance(100) || self.dies_nameless() {
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

    /// Lives that end anywhere in the opening, or where all was read and is about to be made durable.
    fn stumble(&mut self) {
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

    /// Whether a short life ends now because names in the directory are about to become durable.
    fn dies_nameless(&mut self) -> bool {
        std::mem::take(&mut self.naming) && self.plan.brief && self.random.chance(400)
    }

    // -- the loop that a core runs -----------------------------------------------------------------

    fn turn(&mut self) {
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

    fn take_effect(&mut self, effect: Effect) {
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
    fn check_epoch(&mut self, op: &Op) {
        let Op::Write { bytes, .. } = op else { return };
        let Ok(header) = BatchHeader::peek(bytes) else { return };
        assert!(header.epoch > self.buried, "epoch {} again, after {}", header.epoch, self.buried);
        self.epoch = header.epoch;
    }

    fn promised(&mut self, answer: Answer) {
        let stats = self.partition.stats();
        let answerable = if self.config.flush == Flush::Sync { stats.durable } else { stats.written };
        match answer {
            Answer::Messages(batch) => {
                for sent in self.sent.iter_mut().rev().take_while(|sent| sent.batch >= batch) {
                    if sent.batch != batch {
                        continue;
                    }
                    // After a failure the watermarks are those of the new log, for a while.
                    assert!(!self.open || sent.stored.position.byte() < answerable, "promised above the watermark");
                    sent.promised = true;
                    if sent.due_ms.is_none() {
                        let taken = self.taken.entry(sent.queue).or_default();
                        *taken = (*taken).max(sent.stored.queue_offset + u64::from(sent.offsets));
                    }
                }
            }
            Answer::Fact { key, version } => {
                let history = self.facts.get_mut(&key).expect("it was put");
                history.promised = history.promised.max(version);
            }
            Answer::Decided(id, commit) => {
                let half = self.sent[id as usize].half.as_mut().expect("it is one");
                assert!(half.decided.is_none_or(|before| before == commit), "{id} was decided twice");
                half.decided = Some(commit);
            }
            Answer::Withdrawn(id) => {
                let sent = &mut self.sent[id as usize];
                assert_eq!(sent.place, None, "{id} was withdrawn after it was delivered");
                sent.withdrawn = sent.withdrawn.map(|(ticket, _)| (ticket, true));
            }
        }
    }

    /// Until the partition takes appends; then everything is looked at.
    fn wait_open(&mut self) {
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

    fn still(&self) -> bool {
        self.sim.flying() == 0 && self.backlog.is_empty() && !self.partition.has_effects()
    }

    fn start(&mut self) {
        self.partition = Partition::new(self.config.clone()).unwrap();
        (self.open, self.audited, self.closed, self.shut) = (false, false, None, false);
        (self.restarted, self.buried) = (true, self.lived);
        self.backlog.clear();
        self.answers.clear();
        self.loaded.clear();
        self.idle = 0;
    }

    fn end_life(&mut self) {
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

    /// Damages or removes one of the files that are derived from the log.
    fn harm(&mut self) {
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
    fn operate(&mut self, op: Op) -> Result<Outcome, Fault> {
        let faults = std::mem::take(&mut self.sim.faults);
        self.sim.submit(Tag(0), op).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            self.sim.drive(None, &mut done);
        }
        self.sim.faults = faults;
        done.remove(0).outcome
    }

    // -- what a broker might want --------------------------------------------------------------------

    fn step(&mut self) {
        for _ in 0..self.random.below(4) {
            match self.random.below(100) {
                0..46 => self.append(),
                46..48 => self.prepare(),
                48..50 => self.decide(),
                50..57 => self.delay(),
                57..58 => self.withdraw(),
                58..68 => self.put(),
                68..75 => self.note(),
                75..84 => self.pull_some(),
                84..92 => self.get_some(),
                92..94 if !self.plan.steady => self.forget(),
                94..95 => self.quiesce(),
                _ => self.sim.advance(self.random.below(3000)),
            }
        }
        self.turn();
        if self.plan.large && self.random.chance(700) {
            for _ in 0..self.random.below(8) {
                if !self.published {
                    self.turn();
                }
            }
        }
        if self.closed.take().is_some() {
            self.wait_open();
        }
    }

    fn length(&mut self) -> usize {
        let most = match self.random.below(10) {
            _ if self.plan.large => 300_000,
            0 => 300_000,
            1..4 => 6000,
            _ => 400,
        };
        HEADER_BYTES + 1 + self.random.below(most) as usize
    }

    /// Most messages take one offset, some hold several messages.
    fn offsets(&mut self) -> u32 {
        if self.random.chance(850) { 1 } else { 2 + self.random.below(30) as u32 }
    }

    fn queue(&mut self) -> QueueKey {
        let topic = self.topics[self.random.below(self.topics.len() as u64) as usize];
        let queue = self.random.below(QUEUES) as u32;
        let half = (self.longest / SEGMENT_BYTES % 2) as u32;
        QueueKey { topic, queue: if self.plan.steady { queue / 2 * 2 + half } else { queue } }
    }

    fn append(&mut self) {
        let count = if self.random.chance(700) { 1 } else { 2 + self.random.below(6) };
        let wanted: Vec<(QueueKey, usize, u32)> =
            (0..count).map(|_| (self.queue(), self.length(), self.offsets())).collect();
        let first = self.sent.len() as u64;
        let mut fills: Vec<_> = wanted
            .iter()
            .zip(first..)
            .map(|(&(queue, length, _), id)| move |out: &mut [u8]| fill(out, id, queue, length))
            .collect();
        let hashes: Vec<[u64; 1]> = (first..first + count).map(|id| [key_hash(id)]).collect();
        let mut drafts: Vec<Draft<'_>> = fills
            .iter_mut()
            .zip(&hashes)
            .zip(&wanted)
            .zip(first..)
            .map(|(((fill, keys), &(queue, length, offsets)), id)| Draft {
                queue,
                length,
                offsets,
                tag_hash: tag_hash(id),
                keys,
                stamp: STAMP,
                fill,
            })
            .collect();
        let mut stored = Vec::new();
        let ticket = Ticket(self.tickets);
        let result = self.partition.append(&mut drafts, Some(ticket), self.sim.now_ms(), &mut stored);
        drop(drafts);
        if let Err(error) = result {
            return self.refused(error);
        }
        for (&(queue, length, offsets), &stored) in wanted.iter().zip(&stored) {
            let taken = self.taken.get(&queue).copied().unwrap_or(0);
            assert!(stored.queue_offset >= taken, "{queue:?}: {stored:?} is taken, below {taken}");
            self.submitted(queue, length, None, stored);
            self.sent.last_mut().expect("it was just sent").offsets = offsets;
        }
        self.answers.push_back((ticket, Answer::Messages(self.tickets)));
        self.tickets += 1;
    }

    fn delay(&mut self) {
        let (queue, length) = (self.queue(), self.length());
        let id = self.sent.len() as u64;
        let due_ms = self.sim.now_ms() + [0, 5, 500, 20_000, 100_000][self.random.below(5) as usize];
        let mut write = |out: &mut [u8]| fill(out, id, queue, length);
        let draft =
            Draft { queue, length, offsets: 1, tag_hash: tag_hash(id), keys: &[], stamp: STAMP, fill: &mut write };
        let (ticket, key) = (Ticket(self.tickets), recall_key(id));
        match self.partition.delay(draft, due_ms, key, Some(ticket), self.sim.now_ms()) {
            Err(error) => self.refused(error),
            Ok(stored) => {
                self.submitted(queue, length, Some(due_ms), stored);
                self.answers.push_back((ticket, Answer::Messages(self.tickets)));
                self.tickets += 1;
            }
        }
    }

    fn prepare(&mut self) {
        let (queue, length) = (self.queue(), self.length());
        let id = self.sent.len() as u64;
        let check_ms = self.sim.now_ms() + [5, 500, 20_000][self.random.below(3) as usize];
        let mut write = |out: &mut [u8]| fill(out, id, queue, length);
        let draft =
            Draft { queue, length, offsets: 1, tag_hash: tag_hash(id), keys: &[], stamp: STAMP, fill: &mut write };
        let ticket = Ticket(self.tickets);
        match self.partition.prepare(draft, check_ms, Some(ticket), self.sim.now_ms()) {
            Err(error) => self.refused(error),
            Ok(stored) => {
                assert_eq!(stored.queue_offset, stored.position.byte(), "that is what it is known by");
                self.submitted(queue, length, Some(0), stored);
                let half = Half { id: stored.queue_offset, asked: [false; 2], decided: None };
                self.sent.last_mut().expect("it was just sent").half = Some(half);
                self.answers.push_back((ticket, Answer::Messages(self.tickets)));
                self.tickets += 1;
            }
        }
    }

    /// A half message as the partition has it, if it is undecided. `Err`: it is being read.
    fn look_up(&mut self, id: usize) -> Result<Option<Bytes>, LoadId> {
        let sent = self.sent[id].clone();
        let half = sent.half.expect("it is one");
        let found = self.partition.undecided(half.id)?.map(|found| found.message);
        // Where a log lost its end, another message may be.
        let found = found.filter(|message| id_of(message) == id as u64);
        let here = sent.promised && !sent.gone && self.topics.contains(&sent.queue.topic) && self.partition.is_open();
        match &found {
            Some(message) => {
                assert_eq!(half.decided, None, "the half message {id} is decided: {sent:?}");
                assert_eq!(message.len(), sent.length, "the half message {id} has other bytes");
                assert_eq!(message[HEADER_BYTES..], *noise(id as u64, sent.length - HEADER_BYTES));
                let half = self.sent[id].half.as_mut().expect("it is one");
                half.asked = [false; 2];
            }
            None => assert!(!here || half.asked != [false; 2], "the half message {id} is lost: {sent:?}"),
        }
        Ok(found)
    }

    fn decide(&mut self) {
        let waits = |sent: &Sent| sent.promised && sent.half.is_some_and(|half| half.decided.is_none());
        let ids: Vec<usize> = (0..self.sent.len()).filter(|id| waits(&self.sent[*id])).collect();
        if ids.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = ids[self.random.below(ids.len() as u64) as usize];
        let Ok(Some(message)) = self.look_up(id) else { return };
        let commit = self.random.chance(600);
        let Sent { queue, length, half, .. } = self.sent[id].clone();
        let mut write = |out: &mut [u8]| out.copy_from_slice(&message);
        let keys = [key_hash(id as u64)];
        let tag_hash = tag_hash(id as u64);
        let mut draft = Draft { queue, length, offsets: 1, tag_hash, keys: &keys, stamp: STAMP, fill: &mut write };
        let (ticket, now_ms) = (Ticket(self.tickets), self.sim.now_ms());
        let half_id = half.expect("it is one").id;
        let result = self.partition.decide(half_id, commit.then_some(&mut draft), None, Some(ticket), now_ms);
        if let Err(error) = result {
            return self.refused(error);
        }
        let half = self.sent[id].half.as_mut().expect("it is one");
        half.asked[usize::from(!commit)] = true;
        self.answers.push_back((ticket, Answer::Decided(id as u64, commit)));
        self.tickets += 1;
    }

    /// The producer of a half message is to be asked.
    fn asked(&mut self, id: u64) {
        let mut sent = self.sent.iter().rev().filter(|sent| sent.half.is_some_and(|half| half.id == id));
        let newest = sent.next().expect("it was prepared");
        assert!(newest.half.is_some_and(|half| half.decided.is_none()), "who decided is asked: {newest:?}");
        if self.partition.is_open() && self.random.chance(500) {
            let now_ms = self.sim.now_ms();
            let again_ms = now_ms + 1 + self.random.below(20_000);
            if let Err(error) = self.partition.checked(id, again_ms, now_ms) {
                self.refused(error);
            }
        }
    }

    /// A delayed message is never delivered.
    fn withdraw(&mut self) {
        let waits =
            |sent: &Sent| sent.due_ms.is_some() && sent.half.is_none() && sent.promised && sent.withdrawn.is_none();
        let ids: Vec<usize> = (0..self.sent.len()).filter(|id| waits(&self.sent[*id])).collect();
        if ids.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = ids[self.random.below(ids.len() as u64) as usize] as u64;
        let Ok(found) = self.partition.find_delayed(recall_key(id), &|message| id_of(message) == id) else { return };
        let Some(byte) = found else { return };
        let ticket = Ticket(self.tickets);
        if let Err(error) = self.partition.withdraw(byte, Some(ticket), self.sim.now_ms()) {
            return self.refused(error);
        }
        self.sent[id as usize].withdrawn = Some((ticket, false));
        self.answers.push_back((ticket, Answer::Withdrawn(id)));
        self.tickets += 1;
    }

    fn submitted(&mut self, queue: QueueKey, length: usize, due_ms: Option<u64>, stored: Stored) {
        let batch = self.tickets;
        let sent = Sent {
            queue,
            length,
            offsets: 1,
            due_ms,
            batch,
            stored,
            withdrawn: None,
            half: None,
            place: None,
            promised: false,
            gone: false,
        };
        self.sent.push(sent);
    }

    fn refused(&mut self, error: AppendError) {
        match error {
            AppendError::TooLarge { .. } => panic!("nothing here is too large: {error}"),
            AppendError::Busy => {}
            AppendError::Full => assert!(self.plan.space.is_some() || self.plan.faults.name > 0, "the disk has room"),
            AppendError::Opening | AppendError::Closed(_) => {
                assert!(self.may_fail(), "nothing failed: {error}");
            }
        }
    }

    fn put(&mut self) {
        let key = self.random.below(FACTS);
        let history = self.facts.entry(key).or_default();
        let version = history.values.back().map_or(0, |newest| newest.number) + 1;
        let mut value = (key << 32 | version).to_be_bytes().to_vec();
        let most = if self.plan.steady { 200_000 } else { 3000 };
        value.resize(8 + self.random.below(most) as usize, 7);
        let value = (!self.random.chance(200)).then_some(value);
        let ticket = Ticket(self.tickets);
        let result = self.partition.put(&[(&fact_key(b'p', key), value.as_deref())], Some(ticket), self.sim.now_ms());
        if let Err(error) = result {
            return self.refused(error);
        }
        assert_eq!(self.partition.fact(&fact_key(b'p', key)), value.as_deref(), "a fact is readable at once");
        let newest = Version { number: version, ticket: Some(self.tickets), value };
        history_of(&mut self.facts, key).values.push_back(newest);
        self.answers.push_back((ticket, Answer::Fact { key, version }));
        self.tickets += 1;
    }

    fn note(&mut self) {
        let key = self.random.below(FACTS);
        let value = self.notes.get(&key).map_or(0, |(_, newest)| *newest) + 1;
        if self.partition.note(&fact_key(b'n', key), &value.to_be_bytes()) {
            self.notes.entry(key).or_insert((0, 0)).1 = value;
        }
    }

    fn forget(&mut self) {
        let index = self.random.below(self.topics.len() as u64) as usize;
        self.topics[index] = self.topic_next;
        self.topic_next += 1;
        let topics = self.topics.clone();
        self.partition.retain_topics(&|topic| topics.contains(&topic));
    }

    fn pull_some(&mut self) {
        let queue = self.queue();
        let span = self.partition.span(queue);
        let offset = span.min + self.random.below(span.max - span.min + 1);
        let limits = PullLimits { messages: 1 + self.random.below(8) as u32, bytes: 300_000, scan: 20 };
        let tag = self.random.below(3) as i64;
        let (pull, now) = self.partition.pull(queue, offset, limits, &|hash| hash == tag);
        match pull {
            Pull::Found { messages, next } => {
                assert!(next > offset && next <= span.max && messages.len() <= limits.messages as usize);
                let (mut behind, mut taken) = (0, 0);
                for message in &messages {
                    assert_eq!(i64::from(message[31] % 3), tag, "a filter lets through what it wants");
                    let offsets = self.saw(message, queue, None);
                    assert!(
                        offsets.start >= behind && offsets.end > offset,
                        "{offsets:?} at {offset}, behind {behind}"
                    );
                    taken += offsets.end - offsets.start.max(offset);
                    behind = offsets.end;
                }
                assert!(next >= behind, "{next} is in the middle of what was given, up to {behind}");
                assert!(messages.len() == 1 || taken <= u64::from(limits.messages), "{taken} of {limits:?}");
            }
            Pull::NoMatch { next } => assert!(next > offset && next <= span.max),
            Pull::Empty => assert_eq!(offset, span.max),
            Pull::Loading(_) => {}
            Pull::Opening => assert!(!self.partition.is_open()),
            // Retention took it, and the span did not know yet.
            Pull::OutOfRange if offset < now.min => {
                assert!(self.plan.retires(), "nothing is retired");
            }
            other => panic!("{other:?} at {offset} in {span:?}, now {now:?}"),
        }
    }

    /// Whoever asks while it opens is not shown what a power cut may still take back.
    fn follow_all(&mut self) {
        for topic in self.topics.clone() {
            (0..QUEUES as u32).for_each(|queue| self.follow(QueueKey { topic, queue }));
        }
    }

    /// Takes the new messages of a queue as its consumer would: from memory, mostly.
    fn follow(&mut self, queue: QueueKey) {
        let limits = PullLimits { messages: 32, bytes: MIB as u32, scan: 1000 };
        loop {
            let offset = self.cursors.get(&queue).copied().unwrap_or(0);
            let (pull, span) = self.partition.pull(queue, offset, limits, &|_| true);
            // A span that was shown is a promise too.
            let taken = self.taken.entry(queue).or_default();
            *taken = (*taken).max(span.max);
            let next = match (pull, span) {
                (Pull::Found { messages, next }, _) => {
                    let behind =
                        messages.iter().fold(offset, |offset, message| self.saw(message, queue, Some(offset)).end);
                    assert_eq!(next, behind, "all are wanted");
                    next
                }
                (Pull::OutOfRange, span) if offset != span.min => span.min,
                (Pull::Empty | Pull::Loading(_) | Pull::Opening | Pull::OutOfRange, _) => return,
                other => panic!("{other:?} in {queue:?} at {offset}"),
            };
            self.cursors.insert(queue, next);
        }
    }

    fn get_some(&mut self) {
        if self.sent.is_empty() || !self.partition.is_open() {
            return;
        }
        let id = self.random.below(self.sent.len() as u64);
        let sent = self.sent[id as usize].clone();
        let nudge = if self.random.chance(200) { self.random.below(64) } else { 0 };
        let position = Position(sent.stored.position.0 + nudge);
        match self.partition.get(position) {
            Ok(Some(message)) => {
                let other = id_of(&message);
                let queue = self.sent.get(other as usize).map_or(sent.queue, |other| other.queue);
                self.saw(&message, queue, None);
                // Of a forgotten topic nobody knows what a power cut took.
                let here = sent.promised && sent.due_ms.is_none() && !sent.gone;
                let here = here && self.topics.contains(&sent.queue.topic);
                assert!(other == id || !here, "{other} is in place of {sent:?}");
                assert!(other != id || !sent.gone, "{id} came back from the dead: {sent:?}");
            }
            Ok(None) => {
                let known = sent.promised && nudge == 0 && sent.due_ms.is_none();
                let there = position.byte() >= self.partition.stats().floor && self.topics.contains(&sent.queue.topic);
                assert!(!known || !there || sent.gone || !self.partition.is_open(), "{id} is missing: {sent:?}");
            }
            Err(_) => {}
        }
        let place = sent.place.filter(|(_, position)| {
            position.byte() >= self.partition.stats().floor && self.topics.contains(&sent.queue.topic) && !sent.gone
        });
        if let Some((_, position)) = place {
            let mut search = KeySearch::new(key_hash(id), 10_000, (0, u64::MAX));
            if self.partition.find(&mut search).is_ok() {
                let found: Vec<Position> = search.found.iter().map(|byte| self.partition.position(*byte)).collect();
                let is_newest_first = search.found.windows(2).all(|pair| pair[0] > pair[1]);
                let is_there = found.contains(&position) || !self.partition.is_open();
                assert!(is_there && is_newest_first, "message {id} is not found by its key: {sent:?} {found:?}");
                assert!(!search.is_partial, "the log is whole: any run can be made again");
            }
        }
    }

    /// Everything comes to rest; what was noted is durable then.
    fn quiesce(&mut self) {
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

    fn shut_down(&mut self) {
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
    fn room_again(&mut self, space: u64) {
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

    // -- the audit -----------------------------------------------------------------------------------

    fn opened(&mut self) {
        let topics = self.topics.clone();
        self.partition.retain_topics(&|topic| topics.contains(&topic));
        self.closed = None;
        let faults = std::mem::take(&mut self.sim.faults);
        let mut extent = self.check_facts();
        let stats = self.partition.stats();
        self.seen.taken_over += u64::from(self.restarted && stats.checkpointed > 0);
        self.seen.runs += stats.runs.0;
        self.seen.retired += stats.floor / SEGMENT_BYTES;
        let certain = !self.plan.harm && !self.may_fail();
        assert!(!certain || stats.checkpointed >= self.checkpointed, "the checkpoint is of no use: {stats:?}");
        let messages = self.audit();
        extent.there(messages.newest);
        extent.lost(Some(messages.missing));
        let Extent { newest, missing } = extent;
        if let Some(newest) = newest.filter(|newest| *newest >= missing) {
            panic!("request {missing} is lost, and {newest}, which came later, is there");
        }
        self.sim.faults = faults;
        (self.ended, self.audited, self.restarted) = (Ended::Written, true, false);
    }

    fn check_facts(&mut self) -> Extent {
        let mut extent = Extent::NOTHING;
        let lossy = self.config.flush != Flush::Sync && self.ended != Ended::Written;
        // Facts are readable at once: one that was put since it opened may be seen before it is durable.
        let fresh = |key: u64| move |(_, answer): &(Ticket, Answer)| matches!(answer, Answer::Fact { key: put, .. } if *put == key);
        for (&key, history) in &mut self.facts {
            let value = self.partition.fact(&fact_key(b'p', key)).map(<[u8]>::to_vec);
            let least = if lossy { 0 } else { history.promised };
            let fits = |version: &Version| version.number >= least && version.value == value;
            let stays = history.values.front().is_some_and(|oldest| oldest.ticket.is_none());
            let none = least == 0 && value.is_none() && !stays;
            let first = history.values.iter().position(fits);
            let last = history.values.iter().rposition(fits);
            assert!(none || first.is_some(), "fact {key} is {value:?}, promised {least}");
            // Only a deletion may be one of several.
            first.filter(|_| !none).into_iter().for_each(|first| extent.there(history.values[first].ticket));
            let next = last.map_or(0, |last| last + 1);
            history.values.get(next).into_iter().for_each(|next| extent.lost(next.ticket));
            if self.answers.iter().any(fresh(key)) {
                continue;
            }
            // From here on it is this value and no other, under a version that none had.
            let number = history.values.back().map_or(0, |newest| newest.number);
            history.values = VecDeque::from([Version { number, ticket: None, value }]);
            history.promised = number;
        }
        for (&key, (certain, newest)) in &mut self.notes {
            let value = self.partition.fact(&fact_key(b'n', key));
            let value = value.map_or(0, |value| u64::from_be_bytes(value.try_into().expect("eight bytes")));
            // A failure forgets nothing that was noted; the end of the process does, for a second.
            let least = if self.restarted { *certain } else { *newest };
            assert!((least..=*newest).contains(&value), "note {key} is {value}, not in {least}..={newest}");
            *newest = value;
            if self.restarted {
                *certain = value;
            }
            if self.config.flush != Flush::Sync {
                *certain = 0;
            }
        }
        extent
    }

    /// Looks at every message there is.
    fn audit(&mut self) -> Extent {
        let (mut found, mut extent) = (BTreeSet::new(), Extent::NOTHING);
        // What is delivered while we look may be in a queue that we looked at already.
        let seen: Vec<bool> = self.sent.iter().map(|sent| sent.place.is_some()).collect();
        // So is what is promised meanwhile.
        let promised: Vec<bool> = self.sent.iter().map(|sent| sent.promised).collect();
        for topic in self.topics.clone() {
            for queue in 0..QUEUES as u32 {
                let queue = QueueKey { topic, queue };
                let taken = self.taken.get(&queue).copied().unwrap_or(0);
                let lossy = self.config.flush != Flush::Sync && self.ended != Ended::Written;
                let span = self.partition.span(queue);
                assert!(span.max >= taken || lossy, "{queue:?} ends at {} and ended at {taken}", span.max);
                if lossy {
                    self.taken.insert(queue, span.max);
                }
                self.read_queue(queue, &mut found);
            }
        }
        let floor = self.partition.stats().floor;
        if let Some(retain) = self.plan.retain {
            // A segment goes as a whole once the log is longer than what is kept.
            let most = (self.longest + SEGMENT_BYTES).saturating_sub(retain);
            assert!(floor <= most, "the log is kept from {floor}, which is above {most}");
        }
        let now_ms = self.sim.now_ms();
        let topics = self.topics.clone();
        let early = |sent: &&Sent| {
            let waits = sent.promised && sent.due_ms.is_some_and(|due_ms| due_ms > now_ms);
            waits && topics.contains(&sent.queue.topic)
        };
        let rolled = self.sent.iter().filter(early).filter(|sent| sent.stored.position.byte() < floor);
        self.seen.rolled += rolled.count() as u64;
        let mut batches: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for (id, sent) in self.sent.iter_mut().enumerate() {
            let (byte, there) = match (sent.due_ms, sent.place) {
                (None, _) => (sent.stored.position.byte(), promised[id] || seen[id]),
                (Some(_), Some((_, position))) if seen[id] => (position.byte(), true),
                (Some(_), _) => continue,
            };
            if byte < floor || !topics.contains(&sent.queue.topic) {
                continue;
            }
            let certain = match self.ended {
                Ended::Cut { durable } if self.config.flush != Flush::Sync => byte < durable,
                _ => true,
            };
            let is_found = found.contains(&(id as u64));
            let answered = sent.promised && !promised[id];
            let flying = answered || self.answers.iter().any(|(ticket, _)| ticket.0 == sent.batch);
            if sent.due_ms.is_none() && !flying {
                let (there, all) = batches.entry(sent.batch).or_default();
                *all += 1;
                *there += usize::from(is_found);
            }
            assert!(!(is_found && sent.gone), "message {id} came back from the dead: {sent:?}");
            assert!(is_found || !there || !certain || sent.gone, "message {id} is lost ({:?}): {sent:?}", self.ended);
            if is_found {
                extent.there(Some(sent.batch));
            } else if sent.due_ms.is_none() && !sent.gone && !flying {
                extent.lost(Some(sent.batch));
            }
            if !is_found && !flying {
                // It may never be seen again. A delayed one may be delivered again.
                (sent.gone, sent.place) = (sent.due_ms.is_none(), None);
            }
        }
        for id in (0..self.sent.len()).filter(|id| self.sent[*id].half.is_some()).collect::<Vec<_>>() {
            for _ in 0..TURNS_MAX {
                match self.look_up(id) {
                    Ok(_) => break,
                    Err(load) => {
                        while !self.loaded.remove(&load) {
                            self.turn();
                        }
                    }
                }
            }
        }
        for (batch, (there, all)) in batches {
            let whole = self.sent.iter().filter(|sent| sent.batch == batch && sent.stored.position.byte() >= floor);
            let forgotten = whole.clone().any(|sent| !topics.contains(&sent.queue.topic));
            assert!(there == 0 || there == all || forgotten, "batch {batch}: {there} of {all}");
        }
        extent
    }

    fn read_queue(&mut self, queue: QueueKey, found: &mut BTreeSet<u64>) {
        let limits = PullLimits { messages: 32, bytes: MIB as u32, scan: 1000 };
        let mut offset = self.partition.span(queue).min;
        for _ in 0..TURNS_MAX {
            match self.partition.pull(queue, offset, limits, &|_| true).0 {
                Pull::Found { messages, next } => {
                    for message in messages {
                        offset = self.saw(&message, queue, Some(offset)).end;
                        assert!(found.insert(id_of(&message)), "message {} is there twice", id_of(&message));
                    }
                    assert_eq!(next, offset, "all are wanted");
                }
                Pull::Loading(load) => {
                    let mut turns = 0;
                    while !self.loaded.remove(&load) {
                        self.turn();
                        turns += 1;
                        assert!(turns < TURNS_MAX, "{load:?} does not come back");
                    }
                }
                Pull::Empty => return,
                Pull::OutOfRange if self.plan.retires() => {
                    offset = self.partition.span(queue).min;
                }
                Pull::Opening => {
                    assert!(self.may_fail(), "nothing failed");
                    self.turn();
                }
                other => panic!("{other:?} in {queue:?} at {offset}"),
            }
        }
        panic!("{queue:?} has no end");
    }

    /// A message was shown. Returns its queue offsets.
    fn saw(&mut self, message: &Bytes, queue: QueueKey, offset: Option<u64>) -> Range<u64> {
        let id = id_of(message);
        let sent = self.sent.get_mut(id as usize).unwrap_or_else(|| panic!("message {id} was never sent"));
        assert_eq!(sent.queue, queue, "message {id} is in the wrong queue");
        assert!(!matches!(sent.withdrawn, Some((_, true))), "message {id} was withdrawn: {sent:?}");
        let is_visible = sent.half.is_none_or(|half| half.asked[0] && half.decided != Some(false));
        assert!(is_visible, "the half message {id} is seen: {sent:?}");
        let mut head = [0; HEADER_BYTES];
        fill(&mut head, id, queue, HEADER_BYTES);
        let is_whole = message.len() == sent.length
            && message[24..HEADER_BYTES] == head[24..]
            && message[HEADER_BYTES..] == *noise(id, sent.length - HEADER_BYTES);
        assert!(is_whole, "message {id} has other bytes");
        let stamped = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().expect("eight bytes"));
        let place = (stamped(0), Position(stamped(8)));
        assert_eq!(offset.unwrap_or(place.0), place.0, "message {id} is not at its offset");
        match sent.due_ms {
            None => assert_eq!(place, (sent.stored.queue_offset, sent.stored.position), "message {id} moved"),
            Some(due_ms) => assert!(stamped(16) >= due_ms, "message {id} was delivered too early"),
        }
        assert_eq!(sent.place.unwrap_or(place), place, "message {id} is there twice");
        sent.place = Some(place);
        let offsets = place.0..place.0 + u64::from(sent.offsets);
        let taken = self.taken.entry(queue).or_default();
        *taken = (*taken).max(offsets.end);
        let stats = self.partition.stats();
        let answerable = if self.config.flush == Flush::Sync { stats.durable } else { stats.written };
        assert!(place.1.byte() < answerable, "message {id} is visible above the watermark");
        offsets
    }
}

// -- messages of these tests: offset, position, store time, id, topic, queue, then bytes that follow from the id

const HEADER_BYTES: usize = 40;
const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };

fn fill(out: &mut [u8], id: u64, queue: QueueKey, length: usize) {
    assert_eq!(out.len(), length);
    out[24..32].copy_from_slice(&id.to_be_bytes());
    out[32..36].copy_from_slice(&queue.topic.to_be_bytes());
    out[36..40].copy_from_slice(&queue.queue.to_be_bytes());
    out[HEADER_BYTES..].copy_from_slice(noise(id, length - HEADER_BYTES));
}

fn describe(message: &[u8]) -> Option<Description> {
    if message.len() < HEADER_BYTES {
        return None;
    }
    let id = u64::from_be_bytes(message[24..32].try_into().ok()?);
    let mut keys = Keys::default();
    keys.push(key_hash(id));
    let store_time_ms = u64::from_be_bytes(message[16..24].try_into().ok()?);
    Some(Description { tag_hash: tag_hash(id), store_time_ms, stamp: STAMP, keys })
}

fn id_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[24..32].try_into().expect("a message has a header"))
}

fn tag_hash(id: u64) -> i64 {
    (id as u8 % 3).into()
}

/// Some share one.
fn recall_key(id: u64) -> u32 {
    1 + id as u32 % 100
}

fn key_hash(id: u64) -> u64 {
    id % 50
}

fn fact_key(kind: u8, key: u64) -> Vec<u8> {
    [&[kind][..], &key.to_be_bytes()].concat()
}

fn history_of(facts: &mut BTreeMap<u64, History>, key: u64) -> &mut History {
    facts.get_mut(&key).expect("it was looked up")
}
