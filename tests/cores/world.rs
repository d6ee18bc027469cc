//! A broker and its world: cores on one simulated kernel, from the first start through all deaths to the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use broker::config::{Config, Found, Settings, Source};
use broker::core::{Core, CoreConfig, Report};
use broker::mail::{Mail, Mailboxes};
use broker::produce::{describe, key_of};
use broker::topics::system_topics;
use engine::buffer::Region;
use engine::format::Position;
use engine::io::Handle;
use engine::limits::{Flush, LogConfig};
use engine::partition::{Partition, Stats};
use engine::sim::{Faults, Random, Side, Sim};

use crate::clients::{Client, GROUPS};
use crate::loans::Loans;
use crate::model::Model;
use crate::pops::{LOAN_MS_MAX, Manner};
use crate::transactions::{CHECKS_MAX, INTERVAL_MS, TIMEOUT_MS};

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 16 * MIB;
/// Topics that clients send to; behind them the model has the groups' retry topics.
pub const TOPICS: usize = 3;
/// Turns within which anything that is waited for must happen.
const TURNS_MAX: usize = 200_000;
/// Turns within which a start ends that has room on the disk.
const HELD_TURNS_MAX: usize = 20_000;
/// Drives in a row that a loop may ask for without having anything to do.
const IDLE_MAX: u32 = 5_000;
/// Bits that rot at once.
const ROTTEN_MAX: u64 = 4;
/// Messages go from one client to another one within so many ms when nothing is in their way.
pub const PROMPT_MS: u64 = 500;

/// What a run is like, beside what its seed chooses.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Lives of the process.
    pub rounds: u64,
    pub faults: Faults,
    /// Messages of up to 300 KB, so that segments fill.
    pub large: bool,
    /// Bytes of each log that are kept.
    pub retain: Option<u64>,
    /// Bytes of the disk.
    pub space: Option<u64>,
    /// How often bits rot at the end, each time from the same disk.
    pub rot: u64,
}

impl Plan {
    /// One life, on a disk that does not fail.
    pub fn new(seed: u64) -> Plan {
        Plan { seed, rounds: 1, faults: Faults::default(), large: false, retain: None, space: None, rot: 0 }
    }
}

/// See the module.
pub struct World {
    pub plan: Plan,
    pub random: Random,
    pub sim: Rc<RefCell<Sim>>,
    pub model: Model,
    /// The group that pops, and what it was given.
    pub manner: Option<Manner>,
    pub loans: Loans,
    pub clients: Vec<Client>,
    /// Nothing fails: whatever is refused has no excuse.
    pub calm: bool,
    pub flush: Flush,
    pub listener: Handle,
    /// Bits have rotted: damage may be reported, and must be.
    pub rotten: bool,
    settings: Settings,
    log: LogConfig,
    regions: Vec<Arc<Region>>,
    cores: Vec<Core<Side>>,
    running: Vec<bool>,
    mailboxes: Mailboxes,
    reports: Arc<Mutex<Vec<Report>>>,
    opened: usize,
    named: bool,
    closed: Option<String>,
    /// Why each partition closed last, since the start.
    reasons: BTreeMap<u16, String>,
    /// The last life ended by a power cut: what was not synced may be lost.
    lossy: bool,
    /// Some life has.
    pub was_lossy: bool,
    /// The most that was ever accepted, by partition.
    longest: Vec<u64>,
    /// Whether a log was being read when it was looked at last and not open, by partition.
    reads: Vec<bool>,
    trace: u64,
    traced: bool,
}

impl World {
    /// A world before the first start.
    pub fn new(plan: Plan) -> World {
        let mut random = Random::new(plan.seed.wrapping_mul(0x1_0000_0001) ^ 0xc04e);
        let mut sim = Sim::new(random.bits());
        sim.haste = [1000, 500, 200, 80][random.below(4) as usize];
        sim.direct = random.chance(800);
        sim.space = plan.space.unwrap_or(sim.space);
        let partitions = 1 + random.below(if plan.large { 2 } else { 4 }) as u16;
        let flush = if random.chance(700) { Flush::Sync } else { Flush::Async { interval_ms: 1 + random.below(200) } };
        let mut config = Config::default();
        config.set("broker.message_delay_level", "1s 2s 5s 20s", Source::CommandLine).expect("it is in range");
        config
            .set("log.flush", if flush == Flush::Sync { "sync" } else { "async" }, Source::CommandLine)
            .expect("a choice");
        let found = Found {
            broker_ip1: Ipv4Addr::LOCALHOST,
            port: 10_911,
            cores: 1,
            partitions,
            memory_bytes: 1 << 30,
            disk_bytes: u64::MAX,
            started_ms: sim.now_ms(),
        };
        let mut settings = config.settings(found);
        // Age takes nothing: no run lasts a hundred years.
        settings.retention_hours = 876_000;
        settings.retention_bytes = plan.retain.map_or(u64::MAX, |bytes| bytes * u64::from(partitions));
        settings.limits.mailbox = [64, 256, 4096][random.below(3) as usize];
        settings.limits.connection_requests = [4, 32, 1024][random.below(3) as usize];
        settings.limits.pull_messages = [3, 32][random.below(2) as usize];
        settings.limits.parked_pulls = [2, 1000][random.below(2) as usize];
        settings.limits.pop_unacked = [32, 10_000][random.below(2) as usize];
        settings.pop_retry_v2 = random.chance(300);
        settings.pop_buffer_merge = plan.seed % 8 == 7;
        (settings.transaction_timeout_ms, settings.transaction_check_interval_ms) = (TIMEOUT_MS, INTERVAL_MS);
        settings.transaction_check_max = CHECKS_MAX;
        let chunk_bytes = if plan.large { 1 << 20 } else { 256 << 10 };
        let chunks = (6 + random.below(8) as usize) * usize::from(partitions);
        let regions = (0..3).map(|_| Region::new(chunks, chunk_bytes).expect("memory")).collect::<Vec<_>>();
        let log = LogConfig {
            directory: "/".into(),
            partition: 0,
            segment_bytes: SEGMENT_BYTES,
            batch_bytes: [64 << 10, 256 << 10, 1 << 20][random.below(3) as usize],
            inflight_batches: [1, 2, 4, 8][random.below(4) as usize],
            stretch_bytes: [64 << 10, 300 << 10, 64 << 20][random.below(3) as usize],
            flush,
            memory: Arc::clone(&regions[0]),
            prepare_bytes: random.below(3) * MIB,
            prepare_rate: 64 * MIB,
            retention_ms: u64::MAX,
            retention_bytes: u64::MAX,
            compaction_ms: u64::MAX,
            read_bytes_per_s: if plan.seed.is_multiple_of(4) { 8 * MIB } else { 0 },
            disk_free_min: MIB,
            describe,
            key_of: Some(key_of),
            seed: plan.seed,
        };
        let topics = (0..TOPICS).map(|number| format!("topic-{number}"));
        let retries = GROUPS.iter().map(|group| protocol::names::retry_topic(group));
        let clients = 1 + random.below(4) as usize;
        World {
            model: Model::new(topics.chain(retries)),
            manner: Manner::of(plan.seed),
            loans: Loans::new(
                Manner::of(plan.seed) == Some(Manner::Orderly),
                plan.faults != Faults::default() || plan.space.is_some(),
            ),
            clients: (0..clients).map(|number| Client::new(number, &mut random)).collect(),
            calm: false,
            flush,
            listener: sim.listen(),
            rotten: false,
            log,
            regions,
            cores: Vec::new(),
            running: Vec::new(),
            mailboxes: Mailboxes::new(1, 1),
            reports: Arc::default(),
            opened: 0,
            named: false,
            closed: None,
            reasons: BTreeMap::new(),
            lossy: false,
            was_lossy: false,
            longest: vec![0; usize::from(partitions)],
            reads: vec![false; usize::from(partitions)],
            trace: 0,
            traced: std::env::var_os("TRACE").is_some(),
            settings,
            sim: Rc::new(RefCell::new(sim)),
            random,
            plan,
        }
    }

    /// The whole run. Returns a number that depends on all that happened.
    pub fn run(mut self) -> u64 {
        for round in 0..self.plan.rounds {
            self.stumble();
            self.start(self.plan.faults);
            self.audit(None);
            if round == 0 {
                self.be_calm();
                self.begin();
            }
            let mut sim = self.sim.borrow_mut();
            (sim.faults, sim.space) = (self.plan.faults, self.plan.space.unwrap_or(1 << 40));
            drop(sim);
            self.calm = false;
            let steps = if self.plan.large { 300 } else { 20 + self.random.below(150) };
            for _ in 0..steps {
                self.act();
                for _ in 0..1 + self.random.below(4) {
                    self.turn();
                }
                // What a log promises while it is opened again is forgotten by who dies then.
                if !self.is_all_open() {
                    let danger = if self.is_settling() { 100 } else { 20 };
                    if self.random.chance(danger) {
                        break;
                    }
                }
            }
            if self.random.chance(400) {
                self.be_calm();
                self.quiesce();
            }
            self.end();
        }
        self.stumble();
        self.start(Faults::default());
        self.be_calm();
        let last_ms = self.model.last_due_ms();
        let now_ms = self.now_ms();
        self.sim.borrow_mut().advance((last_ms + 1).saturating_sub(now_ms));
        self.audit(None);
        if self.manner.is_some() {
            // What an earlier life lent comes again. As much at once would be in the way of what shall be prompt.
            self.sim.borrow_mut().advance(LOAN_MS_MAX);
        }
        self.quiesce();
        self.be_prompt();
        self.be_asked();
        self.quiesce();
        let found = self.audit(Some(last_ms));
        self.audit_halves();
        if let Some(manner) = self.manner {
            self.drain(manner, &found);
            self.be_prompt_to_poppers(manner);
        }
        for _ in 0..self.plan.rot {
            self.rot();
        }
        self.trace
    }

    /// The wall clock of this world.
    pub fn now_ms(&self) -> u64 {
        self.sim.borrow().now_ms()
    }

    /// One of these numbers depends on the other ones.
    pub fn note(&mut self, number: u64) {
        self.trace = self.trace.wrapping_mul(0x100_0000_01b3) ^ number;
    }

    /// Tells what happens, when somebody looks for the reason of a failure (`TRACE=1`).
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if self.traced {
            println!("{} {}", self.now_ms() - 1_700_000_000_000, what());
        }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u16 {
        self.settings.partitions
    }

    /// How they do.
    pub fn all_stats(&self) -> impl Iterator<Item = Stats> + '_ {
        (0..self.settings.partitions).map(|partition| self.stats(partition))
    }

    /// How a partition does.
    pub fn stats(&self, partition: u16) -> Stats {
        self.partition(partition).stats()
    }

    fn partition(&self, number: u16) -> &Partition {
        let (core, place) = (usize::from(number) % self.cores.len(), usize::from(number) / self.cores.len());
        &self.cores[core].partitions()[place]
    }

    // -- lives -----------------------------------------------------------------------------------

    /// Makes cores on the disk that there is. How many is new each time, up to one for each partition.
    fn boot(&mut self) {
        let partitions = self.settings.partitions;
        let cores = 1 + self.random.below(u64::from(partitions.min(3))) as usize;
        self.settings.cores = cores;
        self.settings.started_ms = self.now_ms();
        let settings = Arc::new(self.settings.clone());
        self.mailboxes = Mailboxes::new(cores, settings.limits.mailbox);
        self.reports = Arc::default();
        self.listener = self.sim.borrow_mut().listen();
        (self.opened, self.named, self.closed) = (0, false, None);
        self.reasons.clear();
        for index in 0..cores {
            let of_core = (0..partitions).filter(|partition| usize::from(*partition) % cores == index);
            let open = |partition: u16| {
                let log = LogConfig {
                    directory: format!("/partition-{partition:05}").into(),
                    partition,
                    memory: Arc::clone(&self.regions[index]),
                    ..self.log.clone()
                };
                Partition::new(log).expect("its settings are in range")
            };
            let reports = Arc::clone(&self.reports);
            let config = CoreConfig {
                index,
                settings: Arc::clone(&settings),
                partitions: of_core.map(open).collect(),
                mailboxes: self.mailboxes.clone(),
                doors: if index == 0 { vec![(self.listener, false)] } else { Vec::new() },
                seed: self.plan.seed ^ index as u64,
                report: Box::new(move |report| reports.lock().expect("nobody panics with it").push(report)),
            };
            self.cores.push(Core::new(config, Side::new(&self.sim, index)));
        }
        (self.running, self.calm) = (vec![true; cores], false);
        self.tell(|| format!("a start with {cores} cores, {partitions} partitions, {:?}", self.flush));
    }

    /// Lives that end anywhere in the start.
    fn stumble(&mut self) {
        while self.random.chance(300) {
            self.boot();
            for _ in 0..self.random.below(60) {
                self.turn();
            }
            self.die();
        }
    }

    /// Starts until it serves.
    pub fn start(&mut self, faults: Faults) {
        self.sim.borrow_mut().faults = faults;
        self.boot();
        for turn in 0..TURNS_MAX {
            self.turn();
            if turn == HELD_TURNS_MAX && self.plan.space.is_some() {
                // There is no room for the next segment, or for the runs of what was read: somebody makes some.
                self.sim.borrow_mut().space = 1 << 40;
            }
            if let Some(reason) = self.closed.take() {
                // A failing disk at the opening: somebody starts it again, on a better one.
                let is_fault = reason.contains("os error");
                let faults = std::mem::take(&mut self.sim.borrow_mut().faults);
                assert!(is_fault && faults != Faults::default(), "it does not open: {reason}");
                self.die();
                self.boot();
            } else if self.opened == self.cores.len() && self.named {
                self.mail(0, Mail::Serve);
                return;
            }
        }
        let stats = (0..self.settings.partitions).map(|partition| self.stats(partition)).collect::<Vec<_>>();
        panic!("it does not start: {} of {} cores are open: {stats:?}", self.opened, self.cores.len());
    }

    fn mail(&mut self, core: usize, mut mail: Mail) {
        let mut turns = 0;
        while let Err(back) = self.mailboxes.push(core, mail) {
            // The main thread tries again, too.
            assert!(turns < TURNS_MAX, "there is never room for the main thread's mail");
            (mail, turns) = (back, turns + 1);
            self.turn();
        }
        use engine::io::Io;
        Side::new(&self.sim, core).wake(core);
    }

    /// The process ends, one way or another.
    fn end(&mut self) {
        if self.random.chance(250) {
            self.stop();
        }
        self.die();
    }

    /// The process is asked to end, and does.
    pub fn stop(&mut self) {
        let began_ms = self.now_ms();
        let failed = self.plan.faults != Faults::default() || self.plan.space.is_some();
        for core in 0..self.cores.len() {
            self.mail(core, Mail::Stop);
        }
        for _ in 0..TURNS_MAX {
            self.turn();
            if !self.running.contains(&true) {
                let took_ms = self.now_ms() - began_ms;
                // It waits three seconds for the disk.
                if !failed && took_ms < 2_900 {
                    self.model.ended_well();
                    self.loans.is_durable();
                }
                return;
            }
        }
        panic!("it does not stop");
    }

    /// A kill or a power cut, now.
    pub fn die(&mut self) {
        let cut = self.random.chance(600);
        let sim = if cut {
            let seed = self.random.bits();
            self.sim.borrow_mut().power_cut(seed)
        } else {
            self.sim.borrow_mut().kill()
        };
        self.tell(|| format!("the end; a power cut: {cut}"));
        self.cores.clear();
        self.sim = Rc::new(RefCell::new(sim));
        self.mailboxes = Mailboxes::new(1, 1);
        for index in 0..self.clients.len() {
            self.lose(index);
        }
        for region in &self.regions {
            assert_eq!(region.free(), region.chunks(), "all memory came back");
        }
        let lossy = cut && self.flush != Flush::Sync;
        let is_kept = self.flush == Flush::Sync && !self.settings.pop_buffer_merge && self.plan.space.is_none();
        if is_kept {
            // What was answered was in the log. One that is not flushed may lose it still, with a power cut in a later life.
            self.loans.is_durable();
        }
        self.lossy |= lossy;
        self.was_lossy |= lossy;
        self.model.ended(lossy);
        self.loans.ended();
    }

    /// Nothing fails any more.
    pub fn be_calm(&mut self) {
        let mut sim = self.sim.borrow_mut();
        (sim.faults, sim.space) = (Faults::default(), 1 << 40);
    }

    // -- time ------------------------------------------------------------------------------------

    /// Turns the cores that have something to do, and lets time pass if none has.
    pub fn turn(&mut self) {
        let cores = self.cores.len();
        let from = self.random.below(cores as u64) as usize;
        let mut busy = false;
        for core in (from..cores).chain(0..from) {
            if !self.running[core] || !self.sim.borrow().is_due(core) {
                continue;
            }
            busy = true;
            let sim = Rc::clone(&self.sim);
            self.running[core] = self.cores[core].turn(None, || sim.borrow().now_ms());
            let idle = self.sim.borrow().idle(core);
            assert!(idle < IDLE_MAX, "core {core} spins");
        }
        let reports = std::mem::take(&mut *self.reports.lock().expect("nobody panics with it"));
        reports.into_iter().for_each(|report| self.hear(report));
        for partition in 0..self.settings.partitions {
            let stats = self.stats(partition);
            let ordered = stats.accepted >= stats.written && stats.written >= stats.durable;
            assert!(ordered, "partition {partition}: {stats:?}");
            let longest = &mut self.longest[usize::from(partition)];
            *longest = (*longest).max(stats.accepted);
            let log = self.partition(partition);
            let (reads, is_open) = (log.progress().is_some(), log.is_open());
            let before = self.reads[usize::from(partition)];
            self.reads[usize::from(partition)] = reads || before && !is_open;
        }
        for index in 0..self.clients.len() {
            let slow = self.clients[index].slow;
            if self.calm || self.random.chance(if slow { 5 } else { 500 }) {
                self.read(index);
            }
        }
        let passes = if busy {
            self.random.below(2)
        } else {
            let waits = (0..cores).filter(|core| self.running[*core]);
            let until_ms = waits.map(|core| self.sim.borrow().until_ms(core)).min().unwrap_or(0);
            until_ms.saturating_sub(self.now_ms()).min(1 + self.random.below(300))
        };
        self.sim.borrow_mut().advance(passes);
    }

    fn hear(&mut self, report: Report) {
        match report {
            Report::Opened { .. } => self.opened += 1,
            Report::Closed { partition, reason } => {
                let failing = !self.calm && (self.plan.faults != Faults::default() || self.plan.space.is_some());
                let starting = self.opened < self.cores.len();
                assert!(failing || starting || self.rotten, "partition {partition} closed: {reason}");
                self.reasons.insert(partition, reason.clone());
                self.closed = starting.then_some(reason);
            }
            Report::Topics(catalog) => {
                let wanted = system_topics(&self.settings);
                self.named = wanted.iter().all(|topic| catalog.topic(&topic.topic_name).is_some());
            }
            Report::Unreadable(why) => self.closed = Some(why),
            Report::Stopped { .. } => {}
            Report::Route(..) => unreachable!("it has no NameServers"),
        }
    }

    /// Everything that was asked is answered, everything written is durable, and nothing is left to do.
    pub fn quiesce(&mut self) {
        // Room and a disk that works are there again: so are the logs.
        for _ in 0..TURNS_MAX {
            if self.is_all_open() {
                break;
            }
            self.turn();
        }
        self.calm = true;
        // Offsets that were taken are written within a second.
        let mut from_ms = self.now_ms();
        for _ in 0..TURNS_MAX {
            self.turn();
            (0..self.clients.len()).for_each(|index| self.read(index));
            let answered = self.clients.iter().all(|client| client.waiting.is_empty());
            let settled = |stats: Stats| stats.durable == stats.accepted;
            let quiet = (0..self.settings.partitions).all(|partition| settled(self.stats(partition)));
            let still = self.sim.borrow().flying() == 0;
            if !answered {
                from_ms = self.now_ms();
            } else if quiet && still && self.now_ms() > from_ms + 2_500 {
                self.model.is_durable();
                self.loans.is_durable();
                self.settle_offsets();
                return;
            }
        }
        let waiting: Vec<_> = self.clients.iter().map(|client| &client.waiting).collect();
        panic!("not everything is answered and at rest: {waiting:?}");
    }

    /// Whether all partitions take appends.
    pub fn is_all_open(&self) -> bool {
        (0..self.settings.partitions).all(|partition| self.is_open(partition))
    }

    fn is_open(&self, partition: u16) -> bool {
        self.partition(partition).is_open()
    }

    /// Whether a log was read, and what was found is not durable yet.
    fn is_settling(&self) -> bool {
        (0..self.settings.partitions).zip(&self.reads).any(|(number, reads)| {
            let partition = self.partition(number);
            *reads && partition.progress().is_none() && !partition.is_open()
        })
    }

    /// Looks at everything there is, and returns it. Nothing else goes on meanwhile. `due_ms`: what is due by then is
    /// there.
    fn audit(&mut self, due_ms: Option<u64>) -> BTreeSet<usize> {
        let mut all = BTreeSet::new();
        let faults = std::mem::take(&mut self.sim.borrow_mut().faults);
        let space = std::mem::replace(&mut self.sim.borrow_mut().space, 1 << 40);
        for _ in 0..TURNS_MAX {
            // A disk that failed at the end of the opening.
            if self.is_all_open() {
                break;
            }
            self.turn();
        }
        self.calm = true;
        for topic in 0..self.model.topics.len() {
            let exists = self.look_up(topic);
            self.model.found_topic(topic, exists);
            let (mut found, mut ends) = (BTreeSet::new(), Vec::new());
            if exists {
                for queue in 0..self.queues_of(topic) {
                    ends.push(self.read_queue(topic, queue, &mut found));
                }
            }
            let floors: Vec<u64> = (0..self.settings.partitions).map(|number| self.stats(number).floor).collect();
            self.check_floors(&floors);
            let retired = |position: Position| position.byte() < floors[usize::from(position.partition())];
            // What was delivered and not seen may be in what was cut off.
            let due_ms = due_ms.filter(|_| floors.iter().all(|floor| *floor == 0));
            self.model.audit(topic, &found, &ends, self.lossy, &retired, due_ms);
            all.extend(found.into_iter().filter(|_| topic < TOPICS));
        }
        self.settle_offsets();
        self.lossy = false;
        let mut sim = self.sim.borrow_mut();
        (sim.faults, sim.space) = (faults, space);
        all
    }

    fn check_floors(&self, floors: &[u64]) {
        for (floor, longest) in floors.iter().zip(&self.longest) {
            // A segment goes as a whole once the log is longer than what is kept, or the disk is full.
            let most = match (self.plan.retain, self.plan.space) {
                (Some(retain), _) => (longest + SEGMENT_BYTES).saturating_sub(retain),
                (None, Some(_)) => u64::MAX,
                (None, None) => 0,
            };
            assert!(*floor <= most, "a log is kept from {floor}, which is above {most}");
        }
    }

    // -- rot -------------------------------------------------------------------------------------

    /// Some bits of the stopped broker's files rot: either that is found and named, or it is harmless. Then the
    /// disk is as it was before.
    fn rot(&mut self) {
        self.quiesce();
        let sim = self.sim.borrow_mut().kill();
        self.cores.clear();
        (0..self.clients.len()).for_each(|index| self.lose(index));
        let model = self.model.clone();
        let mut before = sim;
        let twin = before.twin();
        self.sim = Rc::new(RefCell::new(twin));
        let count = 1 + self.random.below(ROTTEN_MAX);
        let seeds: Vec<u64> = (0..count).map(|_| self.random.bits()).collect();
        let places: Vec<_> = seeds.into_iter().filter_map(|seed| self.sim.borrow_mut().rot(seed)).collect();
        self.rotten = true;
        self.model.ended(false);
        self.boot();
        for turn in 0.. {
            assert!(turn < TURNS_MAX, "it neither opens nor says why, with rot at {places:?}");
            self.turn();
            if self.closed.is_some() {
                break;
            }
            if self.opened == self.cores.len() && self.named {
                self.mail(0, Mail::Serve);
                self.audit_rotten(&places);
                break;
            }
        }
        if let Some(reason) = self.closed.take() {
            assert!(names(&reason, &places), "it does not open: {reason}; rot at {places:?}");
            self.note(reason.len() as u64);
        }
        self.rotten = false;
        self.cores.clear();
        (0..self.clients.len()).for_each(|index| self.lose(index));
        self.model = model;
        self.sim = Rc::new(RefCell::new(before));
        self.model.ended(false);
        self.start(Faults::default());
    }

    /// What is not there is damaged and named, or in a partition that closed for good and says why: a log and its
    /// derived files have both rotted. The other partitions go on.
    fn audit_rotten(&mut self, places: &[(PathBuf, u64)]) {
        for topic in 0..self.model.topics.len() {
            let (mut found, mut damaged, mut shut) = (BTreeSet::new(), 0, false);
            if self.look_up(topic) {
                for queue in 0..self.queues_of(topic) {
                    let scan = self.scan(topic, queue, &mut found);
                    (damaged, shut) = (damaged + scan.damaged, shut | scan.shut);
                }
            }
            let closed: BTreeSet<u16> =
                (0..self.settings.partitions).filter(|partition| !self.is_open(*partition)).collect();
            assert!(!shut || !closed.is_empty(), "a queue cannot be read, and all partitions are open");
            for partition in &closed {
                let reason = self.reasons.get(partition).map_or("", String::as_str);
                assert!(names(reason, places), "partition {partition} is closed: {reason}; rot at {places:?}");
            }
            let lost = (0..self.model.sent.len()).filter(|id| {
                let sent = &self.model.sent[*id];
                let away = sent.place.is_some_and(|place| closed.contains(&place.position.partition()));
                sent.topic == topic && self.model.must_be_there(*id) && !found.contains(id) && !away
            });
            let lost: Vec<usize> = lost.collect();
            assert!(lost.len() <= damaged, "messages {lost:?} are lost, {damaged} are named; rot at {places:?}");
        }
    }
}

/// Whether a reason names a file or a directory where something has rotted.
fn names(reason: &str, places: &[(PathBuf, u64)]) -> bool {
    places.iter().any(|(path, _)| path.parent().is_some_and(|above| reason.contains(&*above.to_string_lossy())))
}
