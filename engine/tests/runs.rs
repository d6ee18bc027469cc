//! Goal: runs of a sealed segment become one, a damaged one is made again alone, and one that cannot be is said to be
//! damaged and is in nobody's way. Method: a partition on a simulated disk, bits flipped between two lives, everything
//! read from it afterwards.

use engine::buffer::Region;
use engine::format::{BLOCK_BYTES, Position, QueueKey, RECORD_HEADER_BYTES};
use engine::io::{Io, Op, OpenHow, Outcome, Tag};
use engine::limits::LogConfig;
use engine::message::{Description, Draft, Keys, Stamp};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use engine::sim::Sim;
use engine::{KeySearch, LoadId};
use std::collections::{BTreeMap, BTreeSet};

const QUEUES: u32 = 3;
const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };
const TURNS_MAX: usize = 100_000;
/// A key that every message has.
const KEY: u64 = 7;

/// Offset, position, store time, number, noise.
fn describe(message: &[u8]) -> Option<Description> {
    let store_time_ms = u64::from_be_bytes(message.get(16..24)?.try_into().ok()?);
    let mut keys = Keys::default();
    keys.push(KEY);
    keys.push(1000 + number_of(message));
    Some(Description { tag_hash: 0, store_time_ms, stamp: STAMP, keys })
}

fn number_of(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[24..32].try_into().expect("a message has a header"))
}

struct World {
    sim: Sim,
    partition: Partition,
    loaded: BTreeMap<LoadId, bool>,
    closed: usize,
    sent: u64,
}

impl World {
    fn new(mut sim: Sim) -> World {
        sim.haste = 1000;
        let memory = Region::new(64, 1 << 20).unwrap();
        let key_of = Some((|message| Some((&message[24..32], true))) as engine::message::KeyOf);
        let config = LogConfig { stretch_bytes: 64 << 10, key_of, ..LogConfig::new("/data/0", 0, memory, describe) };
        let partition = Partition::new(config).unwrap();
        let mut world = World { sim, partition, loaded: BTreeMap::new(), closed: 0, sent: 0 };
        world.until(|world| world.partition.is_open());
        world
    }

    /// The process is killed, something is done to its files, and it starts again.
    fn again(mut self, harm: impl FnOnce(&mut Disk)) -> World {
        let checkpointed = self.partition.stats().checkpointed;
        let mut disk = Disk(self.sim.kill(), checkpointed);
        harm(&mut disk);
        World { sent: self.sent, ..World::new(disk.0) }
    }

    fn turn(&mut self) {
        let (mut effects, mut done) = (Vec::new(), Vec::new());
        self.partition.on_turn(self.sim.now_ms());
        self.partition.effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Io { local, op } => self.sim.submit(Tag(local), op).unwrap(),
                Effect::Loaded(load, outcome) => _ = self.loaded.insert(load, outcome.is_ok()),
                Effect::Closed(_) => self.closed += 1,
                _ => {}
            }
        }
        self.sim.drive(None, &mut done);
        done.into_iter().for_each(|done| self.partition.on_done(done.tag.0, done.outcome, self.sim.now_ms()));
        self.sim.advance(10);
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

    /// Sends so many messages of so many bytes, to all queues in turn, and waits until they are durable.
    fn send(&mut self, count: u64, length: usize) {
        let last = self.sent + count;
        while self.sent < last {
            let number = self.sent;
            let mut fill = |out: &mut [u8]| {
                out[24..32].copy_from_slice(&number.to_be_bytes());
                out[32..].fill(number as u8);
            };
            let queue = QueueKey { topic: 1, queue: number as u32 % QUEUES };
            let keys = [KEY, 1000 + number];
            let draft = Draft { queue, length, offsets: 1, tag_hash: 0, keys: &keys, stamp: STAMP, fill: &mut fill };
            match self.partition.append(&mut [draft], None, self.sim.now_ms(), &mut Vec::new()) {
                Ok(()) => self.sent += 1,
                Err(_) => (0..10).for_each(|_| self.turn()),
            }
        }
        self.until(|world| world.partition.stats().durable == world.partition.stats().accepted);
    }

    /// Numbers of all messages of a queue from an offset on; `Err` at the offset where something is damaged.
    fn read(&mut self, queue: u32, offset: u64) -> Result<Vec<u64>, u64> {
        self.read_by(32, queue, offset)
    }

    /// As [`read`](World::read), so many at a time.
    fn read_by(&mut self, messages: u32, queue: u32, mut offset: u64) -> Result<Vec<u64>, u64> {
        let limits = PullLimits { messages, bytes: 1 << 20, scan: 100 };
        let mut found = Vec::new();
        loop {
            match self.partition.pull(QueueKey { topic: 1, queue }, offset, limits, &|_| true).0 {
                Pull::Found { messages, next } => {
                    found.extend(messages.iter().map(|message| number_of(message)));
                    offset = next;
                }
                Pull::Empty => return Ok(found),
                Pull::Loading(load) => {
                    self.until(|world| world.loaded.contains_key(&load));
                }
                Pull::Damaged { .. } => return Err(offset),
                other => panic!("{other:?} at {offset}"),
            }
        }
    }

    fn read_all(&mut self) {
        for queue in 0..QUEUES {
            let wanted: Vec<u64> = (0..self.sent).filter(|number| number % u64::from(QUEUES) == queue.into()).collect();
            assert_eq!(self.read(queue, 0), Ok(wanted), "queue {queue}");
        }
    }

    /// How many messages have a key, and whether that may not be all.
    fn find(&mut self, key: u64) -> (usize, bool) {
        self.find_newest(key, 1 << 20)
    }

    /// As [`find`](World::find), of so many at most.
    fn find_newest(&mut self, key: u64, count: usize) -> (usize, bool) {
        let search = self.search(KeySearch::new(key, count, (0, u64::MAX)));
        (search.found.len(), search.is_partial)
    }

    fn search(&mut self, mut search: KeySearch) -> KeySearch {
        while let Err(load) = self.partition.find(&mut search) {
            self.until(|world| world.loaded.contains_key(&load));
        }
        assert!(search.found.windows(2).all(|pair| pair[0] > pair[1]), "newest first, each once");
        search
    }

    /// Messages that all have a key are found at any log bytes, newest first, and no others.
    fn find_within(&mut self, key: u64) {
        let all = self.search(KeySearch::new(key, 1 << 20, (0, u64::MAX))).found;
        let (last, first) = (all[0], all[all.len() - 1]);
        for part in 0..=8 {
            let byte = first + (last - first) * part / 8;
            // Not only where a message is.
            let at = all[all.partition_point(|found| *found > byte).min(all.len() - 1)];
            for (start, end) in
                [(0, byte), (0, at), (0, at + 1), (at, byte), (at, at + 1), (at, u64::MAX), (byte, byte + 100_000)]
            {
                for count in [1, 40] {
                    let wanted = all.iter().filter(|found| (start..end).contains(*found)).take(count);
                    let search = self.search(KeySearch::new(key, count, (0, u64::MAX)).within(start..end));
                    assert_eq!(search.found, wanted.copied().collect::<Vec<u64>>(), "{count} in {start}..{end}");
                }
            }
        }
    }
}

/// The files, and the log byte up to which there was a checkpoint.
struct Disk(Sim, u64);

impl Disk {
    fn operate(&mut self, op: Op) -> Outcome {
        self.0.submit(Tag(0), op).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            self.0.drive(None, &mut done);
        }
        done.remove(0).outcome.unwrap()
    }

    /// Runs that an opening takes over: where each begins and ends, its name and its bytes.
    fn runs(&mut self) -> Vec<(u64, u64, String, u64)> {
        let Outcome::Names(files) = self.operate(Op::List { path: "/data/0".into() }) else { panic!() };
        let parse = |(name, bytes): (String, u64)| {
            let (from, to) = name.strip_prefix("run-")?.split_once('-')?;
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            (to <= self.1).then_some((from, to, name, bytes))
        };
        files.into_iter().filter_map(parse).collect()
    }

    fn flip(&mut self, name: &str, byte: u64) {
        let path = format!("/data/0/{name}").into();
        let Outcome::Opened(file) = self.operate(Op::Open { path, how: OpenHow::default() }) else { panic!() };
        let at = byte - byte % BLOCK_BYTES;
        let Outcome::Read(block) = self.operate(Op::Read { file, at, length: BLOCK_BYTES as u32 }) else { panic!() };
        let mut block = block.to_vec();
        block[(byte - at) as usize] ^= 4;
        self.operate(Op::Write { file, at, bytes: block.into(), durable: true });
        self.operate(Op::Close { handle: file });
    }
}

/// A log of one segment and some runs, none of which is in memory.
fn some_runs() -> World {
    let mut world = World::new(Sim::new(1));
    // Stretches that wait become one run together.
    for _ in 0..30 {
        world.send(50, 1400);
        let runs = |world: &World| world.partition.stats().runs.0;
        let before = runs(&world);
        (0..200).for_each(|_| {
            if runs(&world) == before {
                world.turn()
            }
        });
    }
    world.until(|world| world.partition.stats().checkpointed + (256 << 10) > world.partition.stats().accepted);
    world
}

#[test]
fn a_damaged_run_is_made_again_alone_and_the_log_stays_open() {
    // The oldest, one in the middle, the one before the newest; header, directory, entries, keys.
    for (which, byte) in [(0, 20), (3, 20), (7, 4100), (7, 2 * 4096), (8, 9 * 4096), (usize::MAX, 4100)] {
        let mut names = Vec::new();
        let world = some_runs().again(|disk| {
            let runs = disk.runs();
            assert!(runs.len() > 10, "{runs:?}");
            let (_, _, name, bytes) = &runs[which.min(runs.len() - 2)];
            disk.flip(name, byte % bytes);
            names = runs;
        });
        let mut world = world;
        world.read_all();
        assert_eq!(world.find(KEY), (1500, false), "run {which} byte {byte}");
        assert_eq!((world.partition.stats().upkeep.1, world.closed), (1, 0), "run {which} byte {byte}");
        let mut world = world.again(|disk| {
            let after = disk.runs();
            let same = after.iter().filter(|run| names.contains(run)).count();
            assert!(same == names.len(), "{names:?} {after:?}");
        });
        world.read_all();
        assert_eq!(world.find(KEY), (1500, false));
        assert_eq!((world.partition.stats().upkeep.1, world.partition.stats().damaged_runs), (0, 0), "it is whole");
    }
}

#[test]
fn damaged_neighbours_are_made_again_one_by_one() {
    let mut world = some_runs().again(|disk| {
        for (_, _, name, _) in disk.runs().iter().rev().skip(1) {
            disk.flip(name, 4100);
        }
    });
    world.read_all();
    assert_eq!((world.find(KEY), world.closed), ((1500, false), 0));
    assert!(world.partition.stats().upkeep.1 > 10);
}

#[test]
fn a_run_whose_log_is_damaged_too_is_told_and_in_nobody_s_way() {
    let mut world = some_runs().again(|disk| {
        let runs = disk.runs();
        let (from, to, name, _) = &runs[9];
        disk.flip(name, 4100);
        // The log is whole up to its end.
        disk.flip(&runs[5].2, 4100);
        // Somewhere in its stretch.
        disk.flip("00000000000000000000", (from + to) / 2);
    });
    let lost: BTreeSet<u64> = (0..QUEUES).map(|queue| world.read(queue, 0).unwrap_err()).collect();
    assert!(lost.iter().all(|offset| (50..400).contains(offset)), "{lost:?}");
    for queue in 0..QUEUES {
        let tail = world.read(queue, 450).unwrap();
        assert_eq!(tail.len(), 50, "behind it, the queue is read");
        let first = world.read(queue, *lost.last().unwrap() + 60).unwrap();
        assert!(first.len() > 100);
    }
    let (found, is_partial) = world.find(KEY);
    assert!(is_partial && (1200..1500).contains(&found), "{found}");
    assert_eq!(world.find_newest(1000 + 1400, 1), (1, false), "what lies behind it is found before it is looked at");
    assert_eq!(world.closed, 0);
    assert_eq!((world.partition.stats().damaged_runs, world.partition.stats().upkeep.1), (1, 1), "the other was made");
    // Nor is it in the way of others: the segment is sealed, and those before and behind it are merged.
    world.send(17_500, 2000);
    world.until(|world| world.partition.stats().upkeep.0 > 1);
    assert_eq!((world.partition.stats().damaged_runs, world.closed), (1, 0));
}

/// What is lost does not stay where a topic is compacted; it does not keep the rest from it, nor its log from going.
#[test]
fn a_run_that_is_lost_does_not_hold_what_is_compacted() {
    let mut world = some_runs().again(|disk| {
        let (from, to, name, _) = &disk.runs()[9];
        disk.flip(name, 4100);
        disk.flip("00000000000000000000", (from + to) / 2);
    });
    world.partition.compacts(BTreeSet::from([1]));
    // It may be found again: nothing is given up before retention has waited for long.
    world.partition.set_retention(u64::MAX, 20 << 20);
    world.send(10_000, 2000);
    (0..10_000).for_each(|_| world.turn());
    assert_eq!(world.partition.stats().floor, 0, "it is held");
    let lost: BTreeSet<u64> = (0..QUEUES).filter_map(|queue| world.read(queue, 0).err()).collect();
    assert!(lost.iter().all(|offset| (50..400).contains(offset)) && !lost.is_empty(), "{lost:?}");
    world.sim.advance(1_500_000);
    let upto = |world: &World, queue: u32| {
        let key = [&[0, b'k', 0, 0, 0, 1][..], &queue.to_be_bytes()].concat();
        world.partition.fact(&key).map_or(0, |upto| u64::from_be_bytes(upto.try_into().unwrap()))
    };
    world.until(|world| world.partition.stats().floor > 0 && (0..QUEUES).all(|queue| upto(world, queue) > 500));
    let found: BTreeSet<u64> = (0..QUEUES).flat_map(|queue| world.read(queue, 0).unwrap()).collect();
    assert!((11_200..11_500).contains(&found.len()), "{}", found.len());
    assert!((1_400..11_500).all(|number| found.contains(&number)));
}

/// A message that is read from disk has a sum of its own; what stands before it only has that of its batch, which a
/// reader does not see.
#[test]
fn a_wrong_header_before_a_message_leads_no_reader_astray() {
    let mut world = some_runs();
    let pull = |world: &mut World, limits| loop {
        match world.partition.pull(QueueKey { topic: 1, queue: 1 }, 33, limits, &|_| true).0 {
            Pull::Found { messages, .. } => return messages[0].clone(),
            Pull::Loading(load) => world.until(|world| world.loaded.contains_key(&load)),
            other => panic!("{other:?}"),
        }
    };
    let message = pull(&mut world, PullLimits { messages: 1, bytes: 1 << 20, scan: 1 });
    assert_eq!(number_of(&message), 100);
    let position = Position(u64::from_be_bytes(message[8..16].try_into().unwrap()));
    let header = position.byte() - RECORD_HEADER_BYTES as u64;
    let wanted: Vec<u64> = (0..1500).filter(|number| number % 3 == 1).collect();
    for byte in (8..9).chain(20..32) {
        world = world.again(|disk| disk.flip("00000000000000000000", header + byte));
        for messages in [1, 32] {
            match world.read_by(messages, 1, 0) {
                Ok(all) => assert_eq!(all, wanted, "byte {byte} of the header, by {messages}"),
                Err(offset) => assert_eq!(offset, 33, "it may be told to be damaged"),
            }
        }
        // Back to what it was.
        world = world.again(|disk| disk.flip("00000000000000000000", header + byte));
    }
}

#[test]
fn a_key_that_all_have_is_found_newest_first_and_no_further_than_asked() {
    let mut world = some_runs().again(|_| {});
    for count in [1, 7, 300, 1500, 2000] {
        assert_eq!(world.find_newest(KEY, count), (count.min(1500), false));
    }
    world.find_within(KEY);
}

#[test]
fn runs_of_a_sealed_segment_become_one() {
    let mut world = World::new(Sim::new(1));
    // Two segments and the beginning of a third.
    world.send(17_500, 2000);
    world.until(|world| world.partition.stats().upkeep.0 > 1);
    for _ in 0..2000 {
        world.turn();
    }
    let (before, bytes) = world.partition.stats().runs;
    assert!(before < 10, "{before} runs of more than 500 stretches, {bytes} bytes");
    world.read_all();
    assert_eq!(world.find(KEY), (17_500, false));
    let mut names = Vec::new();
    let mut world = world.again(|disk| names = disk.runs());
    let longest = names.iter().max_by_key(|run| run.1 - run.0).unwrap().clone();
    assert!(longest.1 - longest.0 > 15 << 20, "{longest:?}");
    world.read_all();
    for number in [0, 1, 4321, 17_499] {
        assert_eq!(world.find(1000 + number), (1, false));
    }
    world.find_within(KEY);
    // Such a one is made again, too.
    let mut world = world.again(|disk| disk.flip(&longest.2, 3 * 4096));
    world.read_all();
    assert_eq!((world.partition.stats().upkeep.1, world.closed), (1, 0));
}
