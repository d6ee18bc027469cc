//! Goal: of a compacted queue the newest message of each key is there, whatever became of its log, its process and its
//! power. Method: partitions on a simulated disk with segments that are retired all the time; after each cut of the power
//! the queue is read from its beginning, and compared with what was promised.

use engine::buffer::Region;
use engine::format::QueueKey;
use engine::io::{Io, Tag};
use engine::limits::{COMPACTED_BYTES_MAX, LogConfig};
use engine::message::{Description, Draft, Keys, Stamp};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use engine::sim::{Faults, Sim};
use engine::{LoadId, Span, Ticket};
use std::collections::{BTreeMap, BTreeSet};

const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };
const TURNS_MAX: usize = 200_000;
const HEADER_BYTES: usize = 34;
const AGE_MS: u64 = 5_000;
const TOPIC: u32 = 1;
const QUEUES: u32 = 2;

/// Offset, position, store time, number, key, whether it has a body, noise.
fn describe(message: &[u8]) -> Option<Description> {
    let store_time_ms = u64::from_be_bytes(message.get(16..24)?.try_into().ok()?);
    Some(Description { tag_hash: i64::from(*message.get(32)?), store_time_ms, stamp: STAMP, keys: Keys::default() })
}

/// Key 0 is none.
fn key_of(message: &[u8]) -> Option<(&[u8], bool)> {
    (message[32] > 0).then(|| (&message[32..33], message[33] > 0))
}

fn number_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[24..32].try_into().expect("a message has a header"))
}

fn offset_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[..8].try_into().expect("a message has a header"))
}

fn queue(queue: u32) -> QueueKey {
    QueueKey { topic: TOPIC, queue }
}

/// What was sent of one key, by number: whether it has a body, and whether it is promised.
type Sent = BTreeMap<u64, (bool, bool)>;

struct World {
    sim: Sim,
    partition: Partition,
    loaded: BTreeMap<LoadId, bool>,
    sent: u64,
    keys: BTreeMap<(u32, u8), Sent>,
    age_ms: u64,
    told: bool,
    queues: [Written; QUEUES as usize],
    floor: u64,
    /// How often its log was opened again, because something failed.
    opened: u64,
}

/// What is known of a queue's log.
#[derive(Default)]
struct Written {
    /// The log byte of each message.
    bytes: Vec<u64>,
    /// Up to where it was compacted, and the log byte behind what says so.
    upto: Vec<(u64, u64)>,
}

impl World {
    fn new(sim: Sim) -> World {
        World::with(sim, AGE_MS)
    }

    fn with(mut sim: Sim, age_ms: u64) -> World {
        sim.haste = 400;
        let partition = Partition::new(World::config(age_ms)).unwrap();
        let (loaded, keys) = (BTreeMap::new(), BTreeMap::new());
        let mut world = World {
            sim,
            partition,
            loaded,
            sent: 0,
            keys,
            age_ms,
            told: false,
            queues: Default::default(),
            floor: 0,
            opened: 0,
        };
        world.until(|world| world.partition.is_open());
        world.tell();
        world
    }

    fn config(age_ms: u64) -> LogConfig {
        let memory = Region::new(64, 1 << 20).unwrap();
        LogConfig {
            stretch_bytes: 1 << 20,
            retention_bytes: 40 << 20,
            compaction_ms: age_ms,
            key_of: Some(key_of),
            ..LogConfig::new("/0", 0, memory, describe)
        }
    }

    fn tell(&mut self) {
        self.partition.compacts(BTreeSet::from([TOPIC]));
        self.told = true;
    }

    /// The power is cut, and it starts again.
    fn again(mut self, seed: u64) -> World {
        let sim = self.sim.power_cut(seed);
        // What was not promised may be there or not.
        let mut world =
            World { sent: self.sent, keys: self.keys, opened: self.opened, ..World::with(sim, self.age_ms) };
        world.queues = self.queues;
        world.look_again();
        world
    }

    /// The log was opened: what was not promised may be gone.
    fn look_again(&mut self) {
        for at in 0..QUEUES {
            let (next, upto) = (self.partition.next_offset(queue(at)), self.upto(at));
            let written = &mut self.queues[at as usize];
            written.bytes.truncate(next as usize);
            written.upto = vec![(upto, 0)];
        }
    }

    fn turn(&mut self) {
        let (mut effects, mut done) = (Vec::new(), Vec::new());
        self.partition.on_turn(self.sim.now_ms());
        self.watch();
        self.partition.effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Io { local, op } => self.sim.submit(Tag(local), op).unwrap(),
                Effect::Loaded(load, outcome) => _ = self.loaded.insert(load, outcome.is_ok()),
                Effect::Stored(Ticket(number), Ok(())) => {
                    let promised = self.keys.values_mut().find_map(|sent| sent.get_mut(&number));
                    promised.expect("it was sent").1 = true;
                }
                Effect::Closed(reason) => assert_ne!(self.sim.faults, Faults::default(), "{reason}"),
                Effect::Opened => {
                    self.opened += 1;
                    self.look_again();
                }
                _ => {}
            }
        }
        self.sim.drive(None, &mut done);
        done.into_iter().for_each(|done| self.partition.on_done(done.tag.0, done.outcome, self.sim.now_ms()));
        self.sim.advance(10);
    }

    /// What is retired was compacted before, and that is durable.
    fn watch(&mut self) {
        let stats = self.partition.stats();
        for at in 0..QUEUES {
            let upto = self.upto(at);
            let written = &mut self.queues[at as usize];
            if written.upto.last().is_none_or(|(last, _)| *last != upto) {
                written.upto.push((upto, stats.accepted));
            }
            if stats.floor > self.floor && self.told {
                let needed = written.bytes.partition_point(|byte| *byte < stats.floor) as u64;
                let end = written.upto.iter().find(|(upto, _)| *upto >= needed).map(|(_, end)| *end);
                assert!(end.is_some_and(|end| end <= stats.durable), "queue {at}: {needed}, {end:?}, {stats:?}");
            }
        }
        self.floor = self.floor.max(stats.floor);
    }

    fn until(&mut self, happened: impl Fn(&World) -> bool) {
        for _ in 0..TURNS_MAX {
            if happened(self) {
                return;
            }
            self.turn();
        }
        panic!("it does not happen: {:?}", self.partition.stats());
    }

    fn wait(&mut self, ms: u64) {
        let until_ms = self.sim.now_ms() + ms;
        self.until(|world| world.sim.now_ms() >= until_ms);
    }

    fn send(&mut self, at: u32, key: u8, has_body: bool, length: usize) {
        let number = self.sent;
        let mut fill = |out: &mut [u8]| {
            out[24..32].copy_from_slice(&number.to_be_bytes());
            (out[32], out[33]) = (key, has_body.into());
            out[HEADER_BYTES..].fill(number as u8);
        };
        let (tag_hash, now_ms) = (key.into(), self.sim.now_ms());
        let draft = Draft { queue: queue(at), length, offsets: 1, tag_hash, keys: &[], stamp: STAMP, fill: &mut fill };
        let mut stored = Vec::new();
        match self.partition.append(&mut [draft], Some(Ticket(number)), now_ms, &mut stored) {
            Ok(()) => {
                self.queues[at as usize].bytes.push(stored[0].position.byte());
                self.keys.entry((at, key)).or_default().insert(number, (has_body, false));
                self.sent += 1;
            }
            Err(_) => (0..10).for_each(|_| self.turn()),
        }
    }

    fn send_durably(&mut self, at: u32, key: u8, has_body: bool) -> u64 {
        let number = self.sent;
        // A log that is busy takes it later.
        while self.sent == number {
            self.send(at, key, has_body, HEADER_BYTES + 100);
        }
        self.until(|world| world.keys[&(at, key)].get(&number).is_some_and(|(_, promised)| *promised));
        number
    }

    fn pull(&mut self, at: u32, offset: u64, limits: PullLimits, wants: &dyn Fn(i64) -> bool) -> (Pull, Span) {
        loop {
            match self.partition.pull(queue(at), offset, limits, wants) {
                (Pull::Loading(load), _) => self.until(|world| world.loaded.contains_key(&load)),
                pulled => return pulled,
            }
        }
    }

    /// Numbers of a queue's messages with their offsets, from an offset on.
    fn read(&mut self, at: u32, mut offset: u64) -> Vec<(u64, Vec<u8>)> {
        let limits = PullLimits { messages: 7, bytes: 1 << 18, scan: 5 };
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        loop {
            match self.pull(at, offset, limits, &|_| true).0 {
                Pull::Found { messages, next } => {
                    assert!(next > offset, "{next} behind {offset}");
                    found.extend(messages.iter().map(|message| (offset_of(message), message.to_vec())));
                    offset = next;
                }
                Pull::Empty => break,
                other => panic!("{other:?} at {offset}"),
            }
        }
        assert!(found.is_sorted_by(|one, other| one.0 < other.0), "offsets rise");
        found
    }

    /// The same from the beginning, with nothing compacted meanwhile: who reads a message and then waits may find that what
    /// ended its key is gone, too.
    fn read_at_rest(&mut self, at: u32) -> Vec<(u64, Vec<u8>)> {
        for _ in 0..TURNS_MAX {
            let upto = self.upto(at);
            let found = self.read(at, 0);
            if self.upto(at) == upto {
                return found;
            }
        }
        panic!("it is compacted without end");
    }

    /// Up to where a queue is compacted.
    fn upto(&self, at: u32) -> u64 {
        let key = [&[0, b'k'][..], &TOPIC.to_be_bytes(), &at.to_be_bytes()].concat();
        self.partition.fact(&key).map_or(0, |upto| u64::from_be_bytes(upto.try_into().unwrap()))
    }

    fn numbers(&mut self, at: u32) -> Vec<u64> {
        self.read(at, 0).iter().map(|(_, message)| number_of(message)).collect()
    }

    /// Each key has what was promised last, or something newer.
    fn check(&mut self) {
        for at in 0..QUEUES {
            let mut newest: BTreeMap<u8, u64> = BTreeMap::new();
            for (_, message) in self.read_at_rest(at) {
                let stays = key_of(&message).is_some_and(|(_, stays)| stays);
                if stays {
                    newest.insert(message[32], number_of(&message))
                } else {
                    newest.remove(&message[32])
                };
            }
            for ((_, key), sent) in self.keys.iter().filter(|((queue, key), _)| *queue == at && *key > 0) {
                let promised = sent.iter().rev().find(|(_, (_, promised))| *promised);
                let Some((number, (has_body, _))) = promised else { continue };
                let seen = newest.get(key).copied();
                let later = sent.range(number + 1..);
                let is_right =
                    |number: u64, has_body: bool| if has_body { seen == Some(number) } else { seen.is_none() };
                let is_one =
                    is_right(*number, *has_body) || later.into_iter().any(|(number, sent)| is_right(*number, sent.0));
                assert!(is_one, "queue {at}, key {key}: promised was {number} ({has_body}), seen is {seen:?}");
            }
        }
    }
}

#[test]
fn the_newest_of_each_key_stays_where_it_was() {
    let mut world = World::new(Sim::new(3));
    let old = [(1, true), (2, true), (1, true), (3, true), (0, true), (2, false), (1, true)];
    let first_ms = world.sim.now_ms();
    for (key, has_body) in old {
        world.send_durably(0, key, has_body);
    }
    assert_eq!(world.numbers(0), [0, 1, 2, 3, 4, 5, 6], "all that is new");
    assert_eq!(world.partition.span(queue(0)), Span { min: 0, max: 7 });
    world.wait(2 * AGE_MS);
    // 4 has no key, 5 ended the second one.
    assert_eq!(world.numbers(0), [3, 6]);
    assert_eq!(world.partition.span(queue(0)), Span { min: 3, max: 7 });
    let new = [world.send_durably(0, 3, true), world.send_durably(0, 3, true)];
    assert_eq!(world.numbers(0), [3, 6, new[0], new[1]], "it is too young");
    // From anywhere, by tag, in the small.
    let limits = PullLimits { messages: 1, bytes: 1, scan: 1 };
    for (offset, wanted, behind) in [(0, 3, 4), (3, 3, 4), (4, 6, 7), (6, 6, 7), (7, 7, 8), (8, 8, 9)] {
        let (pull, span) = world.pull(0, offset, limits, &|_| true);
        let Pull::Found { messages, next } = pull else { panic!("{pull:?} at {offset}") };
        assert_eq!((offset_of(&messages[0]), messages.len(), next), (wanted, 1, behind), "{offset}");
        assert_eq!(span, Span { min: 3, max: 9 });
    }
    let wide = PullLimits { messages: 32, bytes: 1 << 20, scan: 32 };
    let (pull, _) = world.pull(0, 0, wide, &|tag| tag == 1);
    assert!(matches!(&pull, Pull::Found { messages, next: 7 } if number_of(&messages[0]) == 6), "{pull:?}");
    let (pull, _) = world.pull(0, 0, limits, &|tag| tag == 9);
    assert!(matches!(pull, Pull::NoMatch { next: 4 }), "{pull:?}");
    assert!(matches!(world.pull(0, 7, wide, &|tag| tag == 9).0, Pull::NoMatch { next: 9 }));
    let nothing = |_: &[u8]| None;
    let (pull, _) = world.partition.pull_matching(queue(0), 0, wide, &|_| true, Some(&nothing));
    assert!(matches!(pull, Pull::NoMatch { next: 0 }), "{pull:?}");
    // By time.
    let third_ms = world.partition.store_time(queue(0), 0).unwrap().unwrap();
    assert!(third_ms > first_ms);
    assert_eq!(world.partition.store_time(queue(0), 3), Ok(Some(third_ms)));
    let span = world.partition.span(queue(0));
    for offset in [span.min, 6, 7, 8] {
        let time_ms = world.partition.store_time(queue(0), offset).unwrap().unwrap();
        let found = world.partition.offset_at(queue(0), time_ms, false).unwrap();
        assert_eq!(world.partition.store_time(queue(0), found), Ok(Some(time_ms)), "{offset}");
    }
    assert_eq!(world.partition.offset_at(queue(0), 0, false), Ok(3));
    assert_eq!(world.partition.offset_at(queue(0), u64::MAX - 1, false), Ok(9));
    world.wait(2 * AGE_MS);
    assert_eq!(world.numbers(0), [6, new[1]]);
    // All of it ends, and the queue goes on where it was.
    world.send_durably(0, 3, false);
    world.send_durably(0, 1, false);
    world.wait(2 * AGE_MS);
    assert_eq!(world.numbers(0), [0; 0]);
    assert_eq!(world.partition.span(queue(0)), Span { min: 11, max: 11 });
    let last = world.send_durably(0, 1, true);
    assert_eq!(world.numbers(0), [last]);
    let mut world = world.again(5);
    assert_eq!(world.numbers(0), [last]);
    assert_eq!(world.partition.span(queue(0)), Span { min: 11, max: 12 });
}

#[test]
fn of_each_key_what_was_promised_last_survives_its_log_and_power_cuts() {
    let mut opened = 0;
    for seed in 0..6 {
        // Of old age nothing is compacted in half of them: only what retention wants.
        let age_ms = if seed % 2 == 0 { AGE_MS } else { u64::MAX };
        // In most of them the disk fails now and then, and the log is opened again.
        let rate = seed as u32 / 2 % 3;
        let faults = Faults { write: rate, short: rate, sync: rate, read: rate, name: rate, receive: 0 };
        let mut world = World::with(Sim::new(seed), age_ms);
        let mut random = seed;
        let mut draw = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut floor = 0;
        for life in 0..5u64 {
            // A key is written again after a few hundred messages: many outlive their segments.
            world.sim.faults = faults;
            let (enough, mut left) = (world.sent + 150 + draw(50), 3_000);
            while world.sent < enough && left > 0 {
                left -= 1;
                let (at, key) = (draw(u64::from(QUEUES)) as u32, draw(200) as u8);
                let length = HEADER_BYTES + draw(400_000) as usize;
                world.send(at, key, draw(10) > 0, length);
                (0..draw(10)).for_each(|_| world.turn());
            }
            floor = floor.max(world.partition.stats().floor);
            world.sim.faults = Faults::default();
            world = world.again(seed << 8 | life);
            world.check();
        }
        assert!(floor > 64 << 20 || rate > 1, "seed {seed}: segments were retired: {floor}");
        opened += world.opened;
    }
    assert!(opened > 20, "{opened}");
}

#[test]
fn nothing_goes_before_it_is_known_what_stays() {
    let mut world = World::new(Sim::new(9));
    let first = world.send_durably(0, 1, true);
    let sim = world.sim.power_cut(1);
    let partition = Partition::new(World::config(AGE_MS)).unwrap();
    let mut world = World { sim, partition, told: false, ..world };
    world.until(|world| world.partition.is_open());
    for _ in 0..1_000 {
        world.send(1, 1, true, 100_000);
        world.turn();
    }
    assert!(!world.told && world.partition.stats().floor == 0, "nothing is retired");
    world.tell();
    world.until(|world| world.partition.stats().floor > 0);
    assert_eq!(world.numbers(0), [first]);
    world.check();
}

#[test]
fn topics_that_are_gone_leave_nothing() {
    let mut world = World::new(Sim::new(11));
    for key in 1..=200 {
        world.send_durably(u32::from(key) % QUEUES, key, true);
    }
    world.wait(3 * AGE_MS);
    assert_eq!(world.numbers(0).len() + world.numbers(1).len(), 200);
    assert!(world.partition.facts(&[0, b'k']).count() > 200);
    world.partition.retain_topics(&|topic| topic != TOPIC);
    world.partition.compacts(BTreeSet::new());
    world.wait(3_000);
    assert_eq!(world.partition.facts(&[0, b'k']).count(), 0);
    assert_eq!(world.partition.span(queue(0)), Span { min: 0, max: 0 });
    // Also of those that it finds in its log.
    let mut world = World::new(Sim::new(12));
    world.send_durably(0, 1, true);
    world.wait(3 * AGE_MS);
    let sim = world.sim.kill();
    let partition = Partition::new(World::config(AGE_MS)).unwrap();
    let mut world = World { sim, partition, ..world };
    world.until(|world| world.partition.is_open());
    assert_eq!(world.partition.facts(&[0, b'k']).count(), 2);
    world.partition.compacts(BTreeSet::from([TOPIC + 1]));
    world.wait(3_000);
    assert_eq!(world.partition.facts(&[0, b'k']).count(), 0);
}

#[test]
fn what_stays_and_what_waits_have_a_bound() {
    let mut world = World::with(Sim::new(13), u64::MAX);
    world.sim.haste = 1000;
    let big = 1_000_000;
    assert!(!world.partition.has_room_to_stay(queue(0), &[1], 1 << 20), "as long as a fact, and its key");
    let mut key = 0u8;
    while world.partition.has_room_to_stay(queue(0), &[key + 1], big) {
        key += 1;
        let before = world.sent;
        while world.sent == before {
            world.send(0, key, true, big);
            world.turn();
        }
        // It counts from when it is visible.
        world.until(|world| world.partition.stats().durable == world.partition.stats().accepted);
    }
    let most = COMPACTED_BYTES_MAX / (big + 150);
    assert!((most - 1..=most).contains(&key.into()), "{key} of {most}");
    // What is left is less than another message grows by.
    let left = COMPACTED_BYTES_MAX - usize::from(key) * (big + 150);
    world.send(0, 200, true, left - 10_000);
    world.until(|world| world.partition.stats().durable == world.partition.stats().accepted);
    // Many wait, so that some were compacted though they are young; what waits counts as well.
    assert!((1..world.sent).contains(&world.upto(0)), "{}", world.upto(0));
    let old = [1];
    assert!(world.partition.has_room_to_stay(queue(0), &old, big), "in the place of another");
    assert!(!world.partition.has_room_to_stay(queue(0), &old, big + 20_000));
    assert!(!world.partition.has_room_to_stay(queue(1), &old, big), "keys are a queue's");
    // One key that is written all the time takes the room of one, when what waits was compacted.
    let mut written = 0;
    while written < 2 * usize::from(key) {
        let before = world.sent;
        if world.partition.has_room_to_stay(queue(0), &old, big) {
            world.send(0, old[0], true, big);
        }
        world.turn();
        written += (world.sent - before) as usize;
    }
    // What ends makes room, and so does a topic that goes.
    let mut world = World { age_ms: AGE_MS, ..world };
    world.partition.set_compaction(AGE_MS);
    (2..12).for_each(|key| _ = world.send_durably(0, key, false));
    world.until(|world| world.partition.has_room_to_stay(queue(1), &old, big));
    world.partition.retain_topics(&|topic| topic != TOPIC);
    world.partition.compacts(BTreeSet::new());
    world.partition.compacts(BTreeSet::from([TOPIC + 1]));
    assert!(world.partition.has_room_to_stay(QueueKey { topic: TOPIC + 1, queue: 0 }, &old, big));
    world.until(|world| world.partition.facts(&[0, b'k']).next().is_none());
}

#[test]
fn queues_are_found_in_the_log() {
    // Nobody may write to one any more: what was promised there is there all the same.
    let mut world = World::with(Sim::new(17), u64::MAX);
    let number = world.send_durably(1, 7, true);
    let sim = world.sim.power_cut(3);
    let mut world = World { sent: world.sent, keys: world.keys, ..World::with(sim, u64::MAX) };
    assert_eq!(world.numbers(1), [number]);
    for _ in 0..1_000 {
        world.send(0, 1, true, 100_000);
        world.turn();
    }
    world.until(|world| world.partition.stats().floor > 0);
    assert_eq!(world.numbers(1), [number]);
}
