//! Goal: a delayed message is delivered once, when it is due, wherever a crash comes while its segment goes. Method:
//! a log whose oldest segment has waiting messages, on a simulated disk; retention, a crash after so many turns, for
//! every number of turns, and another life in which everything becomes due.

use super::*;
use crate::buffer::Region;
use crate::format::{BLOCK_BYTES, QueueKey, crc32c};
use crate::io::{Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
use crate::limits::{LOADED_BYTES_MAX, LOADS_MAX, LogConfig};
use crate::message::{Description, Keys, Stamp};
use crate::partition::{Effect, Pull, PullLimits};
use crate::sim::{Random, Sim};

const MIB: u64 = 1 << 20;
const DUE_MS: u64 = 1_800_000_000_000;
const WAITING: QueueKey = QueueKey { topic: 1, queue: 3 };
const OTHERS: QueueKey = QueueKey { topic: 2, queue: 0 };
const STAMP: Stamp = Stamp { queue_offset_at: 0, position_at: 8, store_time_at: 16 };
/// Bytes of the delayed messages: small ones, and one that no cold read brings together with another.
const LENGTHS: [usize; 5] = [100, 1000, 300_000, 100, 200_000];

fn describe(message: &[u8]) -> Option<Description> {
    let store_time_ms = u64::from_be_bytes(*message.get(16..)?.first_chunk()?);
    Some(Description { tag_hash: 0, store_time_ms, stamp: STAMP, keys: Keys::default() })
}

struct World {
    sim: Sim,
    partition: Partition,
    config: LogConfig,
    closed: Option<String>,
    asked: Vec<u64>,
    /// What a read of this byte of a file gets is an error.
    unreadable: Option<u64>,
}

impl World {
    fn new(sim: Sim, retention_bytes: u64) -> World {
        let config = LogConfig {
            batch_bytes: 64 << 10,
            inflight_batches: 2,
            stretch_bytes: 64 << 10,
            retention_bytes,
            ..LogConfig::new("/p", 5, Region::new(4, 1 << 20).unwrap(), describe)
        };
        World {
            sim,
            partition: Partition::new(config.clone()).unwrap(),
            config,
            closed: None,
            asked: Vec::new(),
            unreadable: None,
        }
    }

    /// Returns how many reads it began.
    /// The turn with this number, of a log that others use, too: in each tenth one a message comes.
    fn busy_turn(&mut self, turn: u64) {
        if turn.is_multiple_of(10) && self.partition.check_open().is_ok() {
            self.append(OTHERS, 0, 30_000, None);
        }
        self.turn();
    }

    fn turn(&mut self) -> u64 {
        let (mut effects, mut done) = (Vec::new(), Vec::new());
        self.partition.on_turn(self.sim.now_ms());
        self.partition.effects(&mut effects);
        let mut reads = 0;
        for effect in effects {
            reads += u64::from(matches!(effect, Effect::Io { op: Op::Read { .. }, .. }));
            match effect {
                Effect::Io { local, op: Op::Read { at, length, .. } }
                    if self.unreadable.is_some_and(|byte| (at..at + u64::from(length)).contains(&byte)) =>
                {
                    self.partition.on_done(local, Err(Fault(libc::EIO)), self.sim.now_ms());
                }
                Effect::Io { local, op } => self.sim.submit(Tag(local), op).unwrap(),
                Effect::Undecided(id) => self.asked.push(id),
                Effect::Closed(reason) => self.closed = Some(reason),
                _ => {}
            }
        }
        self.sim.drive(None, &mut done);
        done.into_iter().for_each(|done| self.partition.on_done(done.tag.0, done.outcome, self.sim.now_ms()));
        self.sim.advance(1);
        reads
    }

    /// The half messages whose producers are to be asked within so many milliseconds. It sleeps as a loop would.
    fn asked(&mut self, ms: u64) -> Vec<u64> {
        let (until_ms, mut turns) = (self.sim.now_ms() + ms, 0);
        self.asked.clear();
        while self.sim.now_ms() < until_ms {
            self.turn();
            turns += 1;
            let deadline_ms = self.partition.deadline_ms().min(until_ms);
            if self.sim.flying() == 0 && !self.partition.has_effects() {
                self.sim.advance(deadline_ms.saturating_sub(self.sim.now_ms()));
            }
        }
        assert!(turns < 200, "{turns} turns in {ms} ms: it spins");
        std::mem::take(&mut self.asked)
    }

    fn turn_until(&mut self, what: &str, is_so: impl Fn(&mut Partition) -> bool) {
        for _ in 0..20_000 {
            if is_so(&mut self.partition) {
                return;
            }
            self.turn();
        }
        panic!("it is never {what}: {:?}", self.partition.stats());
    }

    fn open(&mut self) {
        self.turn_until("open", |partition| partition.is_open());
    }

    fn rest(&mut self) {
        let from_ms = self.sim.now_ms();
        while self.sim.flying() > 0 || self.sim.now_ms() < from_ms + 1500 {
            self.turn();
        }
    }

    fn try_append(
        &mut self,
        queue: QueueKey,
        number: usize,
        length: usize,
        due_ms: Option<u64>,
    ) -> Result<(), AppendError> {
        let mut fill = |out: &mut [u8]| {
            out.fill(number as u8);
            out[24..28].copy_from_slice(&(number as u32).to_be_bytes());
        };
        let now_ms = self.sim.now_ms();
        let draft = Draft { queue, length, offsets: 1, tag_hash: 0, keys: &[], stamp: STAMP, fill: &mut fill };
        match due_ms {
            Some(due_ms) => self.partition.delay(draft, due_ms, number as u32 + 1, None, now_ms).map(drop),
            None => self.partition.append(&mut [draft], None, now_ms, &mut Vec::new()),
        }
    }

    fn append(&mut self, queue: QueueKey, number: usize, length: usize, due_ms: Option<u64>) {
        loop {
            let result = self.try_append(queue, number, length, due_ms);
            self.turn();
            match result {
                Ok(()) => return,
                Err(error) => assert_eq!(error, AppendError::Busy),
            }
        }
    }

    /// Fills the log with messages up to a length.
    fn fill(&mut self, bytes: u64) {
        while self.partition.stats().accepted < bytes {
            self.append(OTHERS, 0, 300_000, None);
        }
    }

    /// The next life on the same disk.
    fn again(mut self, power_cut: Option<u64>) -> World {
        let sim = match power_cut {
            Some(seed) => self.sim.power_cut(seed),
            None => self.sim.kill(),
        };
        World::new(sim, self.config.retention_bytes)
    }

    /// Numbers of the messages that were delivered, in the order of their queue.
    fn delivered(&mut self) -> Vec<u32> {
        let limits = PullLimits { messages: 100, bytes: u32::MAX, scan: 100 };
        let mut numbers = Vec::new();
        for _ in 0..1000 {
            match self.partition.pull(WAITING, numbers.len() as u64, limits, &|_| true).0 {
                Pull::Found { messages, .. } => numbers.extend(messages.iter().map(|message| {
                    let number = u32::from_be_bytes(*message[24..].first_chunk().unwrap());
                    assert_eq!(message.len(), LENGTHS[number as usize]);
                    assert!(message[28..].iter().all(|byte| *byte == number as u8), "message {number} changed");
                    assert!(describe(message).unwrap().store_time_ms >= DUE_MS, "message {number} came too early");
                    number
                })),
                Pull::Empty => return numbers,
                _ => _ = self.turn(),
            }
        }
        panic!("the queue has no end");
    }

    /// Lets everything become due.
    fn finish(&mut self) -> Vec<u32> {
        self.turn_until("retired", |partition| partition.floor() > 0);
        assert_eq!(self.delivered(), []);
        self.sim.advance(DUE_MS - self.sim.now_ms());
        self.turn_until("delivered", |partition| partition.stats().delayed == 0);
        self.rest();
        self.delivered()
    }

    /// Does one operation on the disk of a process that is dead.
    fn operate(&mut self, op: Op) -> Result<Outcome, Fault> {
        self.sim.submit(Tag(0), op).unwrap();
        let mut done = Vec::new();
        while done.is_empty() {
            self.sim.drive(None, &mut done);
        }
        done.remove(0).outcome
    }

    fn open_file(&mut self, name: &str) -> Handle {
        let path = self.config.directory.join(name);
        let Ok(Outcome::Opened(file)) = self.operate(Op::Open { path, how: OpenHow::default() }) else { panic!() };
        file
    }

    /// Changes a block of a file.
    fn change(&mut self, file: Handle, at: u64, change: impl Fn(&mut [u8])) {
        let Ok(Outcome::Read(block)) = self.operate(Op::Read { file, at, length: BLOCK_BYTES as u32 }) else {
            panic!()
        };
        let mut block = block.to_vec();
        change(&mut block);
        self.operate(Op::Write { file, at, bytes: block.into(), durable: true }).unwrap();
    }
}

/// A disk with a log that was never cut and whose oldest segment has messages that wait; and where those lie.
fn disk() -> (Sim, Vec<u64>) {
    let mut world = World::new(Sim::new(1), u64::MAX);
    world.open();
    for (number, length) in LENGTHS.into_iter().enumerate() {
        world.append(WAITING, number, length, Some(DUE_MS + number as u64));
        world.fill(world.partition.stats().accepted + 600_000);
    }
    world.fill(36 * MIB);
    world.rest();
    let bytes = world.partition.derived.timers.between(0, u64::MAX).map(|timer| timer.byte).collect();
    (world.sim.kill(), bytes)
}

/// A life that cuts the log, on a copy of a disk.
fn cutting(disk: &mut Sim) -> World {
    let mut world = World::new(disk.twin(), 18 * MIB);
    world.sim.haste = 150;
    world
}

#[test]
fn wherever_a_crash_comes_each_is_delivered_once() {
    let (mut disk, places) = disk();
    // What was there at a crash: nothing written again; something that was not durable; all of it durable, and
    // the segment there; a checkpoint behind some of it; the segment gone.
    let mut seen = [0; 5];
    // The segment is gone after some 50 turns, and a newer checkpoint there after 300.
    for turns in (0..70).chain((70..400).step_by(30)) {
        for seed in 0..3 {
            let mut world = cutting(&mut disk);
            world.open();
            for turn in 0..turns {
                world.busy_turn(turn);
            }
            let partition = &world.partition;
            let old = partition.derived.timers.lowest().is_some_and(|timer| timer.byte <= places[4]);
            seen[0] += u64::from(partition.rolled == 0);
            seen[1] += u64::from(partition.rolled > partition.log.durable());
            seen[2] += u64::from(!old && partition.delivering.is_empty() && partition.floor() == 0);
            seen[3] += u64::from((1..partition.checkpointed).contains(&partition.rolled));
            seen[4] += u64::from(partition.floor() > 0);
            let mut world = world.again((seed > 0).then_some(seed + turns));
            world.open();
            assert_eq!(world.partition.stats().delayed, 5, "turns {turns} seed {seed}");
            assert_eq!(world.finish(), [0, 1, 2, 3, 4], "turns {turns} seed {seed}");
            let mut world = world.again(Some(seed));
            world.open();
            world.rest();
            assert_eq!((world.partition.stats().delayed, world.delivered()), (0, vec![0, 1, 2, 3, 4]));
        }
    }
    assert!(!seen.contains(&0), "{seen:?}");
}

#[test]
fn those_of_a_deleted_topic_are_gone_and_hold_nothing() {
    let (mut disk, _) = disk();
    let mut world = cutting(&mut disk);
    for _ in 0..2 {
        world.open();
        assert_eq!(world.partition.stats().delayed, 5, "the checkpoint has them");
        world.partition.retain_topics(&|topic| topic != WAITING.topic);
        assert_eq!(world.partition.stats().delayed, 0);
        world = world.again(None);
    }
    world.open();
    world.partition.retain_topics(&|topic| topic != WAITING.topic);
    assert_eq!(world.finish(), []);
    assert_eq!(world.partition.rolled, 0);
    let mut world = world.again(None);
    // The checkpoint may still have them: what was in a segment that is gone is given up.
    world.open();
    world.rest();
    assert_eq!((world.delivered(), world.partition.stats().delayed), (vec![], 0));
}

#[test]
fn one_that_cannot_be_read_holds_no_other_up() {
    let (mut disk, places) = disk();
    let mut world = World::new(disk.twin(), u64::MAX);
    world.open();
    world.unreadable = Some(places[0]);
    world.sim.advance(DUE_MS + 10 - world.sim.now_ms());
    world.turn_until("delivered but for one", |partition| partition.stats().delayed == 1);
    world.rest();
    assert_eq!(world.delivered(), [1, 2, 3, 4]);
    world.unreadable = None;
    world.turn_until("delivered", |partition| partition.stats().delayed == 0);
    world.rest();
    assert_eq!(world.delivered(), [1, 2, 3, 4, 0]);
}

#[test]
fn those_that_are_no_longer_in_memory_come_in_time() {
    const COUNT: u64 = 5_000;
    let mut world = World::new(Sim::new(3), u64::MAX);
    world.open();
    world.sim.haste = 500;
    let mut random = Random::new(9);
    // Ten a millisecond, in no order, and none of them in the tail.
    for number in 0..COUNT {
        let due_ms = DUE_MS + random.below(COUNT / 10);
        while world.try_append(WAITING, number as usize, 1000, Some(due_ms)) == Err(AppendError::Busy) {
            world.turn();
        }
    }
    world.fill(world.partition.stats().accepted + 6 * MIB);
    world.rest();
    assert!(world.partition.derived.timers.iter().all(|timer| timer.byte < world.partition.log.tail().floor()));
    world.sim.advance(DUE_MS - 5000 - world.sim.now_ms());
    let (mut reads, mut late) = (0, Vec::new());
    while world.partition.stats().delayed > 0 {
        let before: Vec<Timer> = world.partition.derived.timers.iter().take(1100).collect();
        reads += world.turn();
        let now_ms = world.sim.now_ms();
        let is_over = |timer: &&Timer| world.partition.derived.timers.get(timer.byte).is_none();
        late.extend(before.iter().filter(is_over).map(|timer| now_ms - timer.due_ms));
        assert!(now_ms < DUE_MS + 60_000, "{:?}", world.partition.stats());
    }
    late.sort_unstable();
    let p99 = late[late.len() * 99 / 100];
    assert!(late.len() as u64 == COUNT && p99 <= 50, "{} were delivered, 99 % within {p99} ms", late.len());
    assert!(reads < COUNT * 3 / 4, "{reads} reads: neighbours are read together");
}

#[test]
fn a_recalled_one_is_never_delivered_and_no_other_is_recalled() {
    let mut world = World::new(Sim::new(4), u64::MAX);
    world.open();
    for (number, length) in LENGTHS.into_iter().enumerate().take(5) {
        world.append(WAITING, number, length, Some(DUE_MS));
    }
    world.rest();
    let find = |world: &mut World, key: u32, number: u32| {
        let is_it = |message: &[u8]| message[24..28] == number.to_be_bytes();
        world.partition.find_delayed(key, &is_it, &mut DelayedSearch::default()).unwrap()
    };
    assert_eq!((find(&mut world, 4, 2), find(&mut world, 0, 3), find(&mut world, 99, 3)), (None, None, None));
    let byte = find(&mut world, 4, 3).expect("it waits");
    let now_ms = world.sim.now_ms();
    world.partition.withdraw(byte, Some(Ticket(7)), now_ms).unwrap();
    assert_eq!(find(&mut world, 4, 3), None);
    world.turn_until("durable", |partition| partition.log.durable() == partition.log.accepted());
    let mut world = world.again(Some(3));
    world.open();
    world.sim.advance(DUE_MS - world.sim.now_ms());
    world.turn_until("delivered", |partition| partition.stats().delayed == 0);
    world.rest();
    assert_eq!(world.delivered(), [0, 1, 2, 4]);
}

#[test]
fn a_log_without_timers_is_at_rest() {
    // As many as are delivered in one turn, to the last of a slice.
    let mut world = World::new(Sim::new(6), u64::MAX);
    world.open();
    for number in 0..DELIVERIES_MAX {
        while world.try_append(WAITING, number, 40, Some(DUE_MS)).is_err() {
            world.turn();
        }
    }
    world.rest();
    world.sim.advance(DUE_MS - world.sim.now_ms());
    world.turn_until("delivered", |partition| partition.stats().delayed == 0);
    world.rest();
    assert!(world.partition.deadline_ms() > world.sim.now_ms(), "it spins");
}

#[test]
fn namesakes_that_do_not_fit_into_memory_together_are_each_read_once() {
    const COUNT: usize = LOADS_MAX + 4;
    let mut world = World::new(Sim::new(5), u64::MAX);
    world.open();
    // Too many for the reads that are kept, and too large for their bytes.
    let length = LOADED_BYTES_MAX as usize / LOADS_MAX;
    for _ in 0..COUNT {
        world.append(WAITING, 7, length, Some(DUE_MS));
    }
    world.fill(world.partition.stats().accepted + 6 * MIB);
    world.rest();
    let (mut search, mut reads) = (DelayedSearch::default(), 0);
    while world.partition.find_delayed(8, &|_| false, &mut search).is_err() {
        reads += world.turn();
        assert!(reads <= COUNT as u64, "{reads} reads for {COUNT} messages");
    }
    assert_eq!(reads, COUNT as u64);
}

/// Half messages in the oldest segment of a log that is about to be cut, asked about a few times. Returns their
/// ids, too.
fn half_disk() -> (Sim, Vec<u64>) {
    let mut world = World::new(Sim::new(2), u64::MAX);
    world.open();
    let mut ids = Vec::new();
    for (number, length) in LENGTHS.into_iter().enumerate() {
        let mut fill = |out: &mut [u8]| {
            out.fill(number as u8);
            out[24..28].copy_from_slice(&(number as u32).to_be_bytes());
        };
        let stored = loop {
            let now_ms = world.sim.now_ms();
            let draft =
                Draft { queue: WAITING, length, offsets: 1, tag_hash: 0, keys: &[], stamp: STAMP, fill: &mut fill };
            match world.partition.prepare(draft, DUE_MS + number as u64, None, now_ms) {
                Ok(stored) => break stored,
                Err(error) => assert_eq!(error, AppendError::Busy),
            }
            world.turn();
        };
        assert_eq!(stored.position, Position::pack(5, stored.queue_offset));
        ids.push(stored.queue_offset);
        world.fill(world.partition.stats().accepted + 600_000);
    }
    for (number, id) in ids.iter().enumerate() {
        for _ in 0..number {
            while world.partition.checked(*id, DUE_MS, world.sim.now_ms()).is_err() {
                world.turn();
            }
        }
    }
    world.fill(36 * MIB);
    world.rest();
    (world.sim.kill(), ids)
}

/// The half message of an id, as it came in.
fn half(world: &mut World, id: u64, number: usize) -> bool {
    loop {
        match world.partition.undecided(id) {
            Ok(Some(half)) => {
                assert_eq!((half.queue, half.checks, half.message.len()), (WAITING, number as u32, LENGTHS[number]));
                assert_eq!(half.message[..16], [id.to_be_bytes(), Position::pack(5, id).0.to_be_bytes()].concat());
                assert!(half.message[28..].iter().all(|byte| *byte == number as u8), "half {number} changed");
                return true;
            }
            Ok(None) => return false,
            Err(_) => _ = world.turn(),
        }
    }
}

/// Commits the even ones, and rolls the others back.
fn decide(world: &mut World, ids: &[u64]) {
    for (number, id) in ids.iter().enumerate() {
        assert!(half(world, *id, number));
        let Ok(Some(found)) = world.partition.undecided(*id) else { panic!("it was here") };
        let mut fill = |out: &mut [u8]| out.copy_from_slice(&found.message);
        let length = found.message.len();
        let mut draft =
            Draft { queue: WAITING, length, offsets: 1, tag_hash: 0, keys: &[], stamp: STAMP, fill: &mut fill };
        let is_commit = number % 2 == 0;
        let mut message = is_commit.then_some(&mut draft);
        while world.partition.decide(*id, message.as_deref_mut(), None, None, world.sim.now_ms()).is_err() {
            world.turn();
        }
        assert!(!half(world, *id, number), "it is decided once");
    }
}

#[test]
fn wherever_a_crash_comes_a_half_message_is_decided_once() {
    let (mut disk, ids) = half_disk();
    let mut rolled = 0;
    for turns in (0..70).step_by(3).chain((70..400).step_by(60)) {
        for seed in 0..2 {
            let mut world = cutting(&mut disk);
            world.open();
            for turn in 0..turns {
                world.busy_turn(turn);
                // Also while they are written again.
                let is_there = |id: &u64| !matches!(world.partition.undecided(*id), Ok(None));
                assert!(seed > 0 || ids.iter().all(is_there), "turns {turn} of {turns}");
            }
            rolled += u64::from(world.partition.rolled > 0);
            let mut world = world.again((seed > 0).then_some(seed + turns));
            world.open();
            assert_eq!(world.partition.stats().halves, 5, "turns {turns} seed {seed}");
            world.turn_until("retired", |partition| partition.floor() > 0);
            assert_eq!(world.delivered(), [], "nobody sees one");
            world.sim.advance(DUE_MS - world.sim.now_ms());
            decide(&mut world, &ids);
            // All or nothing of each survives.
            let (cut, all) = (turns % 2 == 1, [0, 2, 4]);
            (0..if cut { turns % 7 } else { 0 }).for_each(|_| _ = world.turn());
            if !cut {
                world.rest();
            }
            let mut world = world.again(Some(seed));
            world.open();
            let left: Vec<usize> = (0..5).filter(|number| half(&mut world, ids[*number], *number)).collect();
            let delivered = world.delivered();
            assert!(cut || left.is_empty() && delivered == all, "{left:?} {delivered:?}");
            assert!(delivered.iter().all(|number| number % 2 == 0 && !left.contains(&(*number as usize))));
            assert_eq!(delivered.len() + left.iter().filter(|number| **number % 2 == 0).count(), 3);
            let mut world = world.again(None);
            world.open();
            world.rest();
            assert_eq!((world.partition.stats().halves, world.delivered()), (left.len() as u64, delivered));
        }
    }
    assert!(rolled > 20, "{rolled}");
}

#[test]
fn producers_are_asked_when_it_is_time_and_not_all_the_time() {
    let (mut disk, ids) = half_disk();
    let mut world = World::new(disk.twin(), u64::MAX);
    world.open();
    world.rest();
    world.sim.advance(DUE_MS - 10_000 - world.sim.now_ms());
    assert_eq!(world.asked(9_900), [], "before it is time");
    // Once each; and again a second later, if nobody cared.
    world.sim.advance(DUE_MS - world.sim.now_ms());
    let mut asked = world.asked(500);
    asked.sort_unstable();
    assert_eq!(asked, ids);
    let now_ms = world.sim.now_ms();
    world.partition.checked(ids[0], now_ms + 5000, now_ms).unwrap();
    let mut asked = world.asked(1000);
    asked.sort_unstable();
    assert_eq!(asked, ids[1..]);
    let mut asked = world.asked(4500);
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(asked, ids);
    // Those of deleted topics are gone.
    world.partition.retain_topics(&|topic| topic != WAITING.topic);
    assert_eq!((world.asked(3000), world.partition.stats().halves), (vec![], 0));
}

#[test]
fn a_damaged_one_is_given_up_and_holds_nothing() {
    let (mut disk, places) = disk();
    let mut world = cutting(&mut disk);
    let file = world.open_file("00000000000000000000");
    let byte = places[2] + 200_000;
    world.change(file, byte - byte % BLOCK_BYTES, |block| block[(byte % BLOCK_BYTES) as usize] ^= 1);
    world.open();
    assert_eq!(world.finish(), [0, 1, 3, 4]);
}

#[test]
fn a_checkpoint_of_another_version_is_made_again_or_refused() {
    let (mut disk, _) = disk();
    for version in [1, 4] {
        let mut world = cutting(&mut disk);
        let file = world.open_file("checkpoint");
        world.change(file, 0, |block| {
            block[9] = version;
            block[16..20].fill(0);
            let length = u32::from_be_bytes(*block[12..].first_chunk().unwrap()) as usize;
            let crc = crc32c::crc32c(&block[..32 + length]);
            block[16..20].copy_from_slice(&crc.to_be_bytes());
        });
        if version == 1 {
            world.open();
            assert_eq!(world.finish(), [0, 1, 2, 3, 4]);
        } else {
            for _ in 0..1000 {
                world.turn();
            }
            let reason = world.closed.expect("it refuses");
            assert!(reason.contains("checkpoint: written in format version 4"), "{reason}");
        }
    }
}

#[test]
fn a_log_of_which_most_waits_is_not_written_again_and_again() {
    let mut world = World::new(Sim::new(1), 18 * MIB);
    world.open();
    while world.partition.stats().accepted < 36 * MIB {
        world.append(WAITING, 2, LENGTHS[2], Some(DUE_MS));
    }
    let count = world.partition.stats().delayed;
    world.rest();
    let before = world.partition.stats();
    for _ in 0..5000 {
        world.turn();
    }
    let after = world.partition.stats();
    assert_eq!((after.floor, after.accepted), (0, before.accepted), "it is left alone");
    world.fill(80 * MIB);
    let slice = (ROLL_BYTES + LENGTHS[2]) as u64 + 3 * BLOCK_BYTES;
    while world.partition.floor() == 0 {
        let accepted = world.partition.stats().accepted;
        world.turn();
        let grown = world.partition.stats().accepted - accepted;
        assert!(grown <= slice, "{grown} bytes were written again in one turn");
    }
    assert_eq!(world.partition.stats().delayed, count);
}

#[test]
fn what_waits_is_shown_once_the_log_has_it() {
    let mut world = World::new(Sim::new(1), u64::MAX);
    world.open();
    world.try_append(WAITING, 2, LENGTHS[2], Some(DUE_MS)).unwrap();
    let byte = world.partition.stats().accepted - (LENGTHS[2] as u64).next_multiple_of(8);
    let shown = |world: &mut World| {
        let bytes = (byte - 64..byte + 64).map(|byte| Position::pack(5, byte));
        bytes.filter(|at| world.partition.get_waiting(*at).is_ok_and(|found| found.is_some())).count()
    };
    assert_eq!(shown(&mut world), 0);
    world.rest();
    assert_eq!(shown(&mut world), 1);
}

#[test]
fn what_waits_is_told_by_its_position_and_by_no_other() {
    let told = |world: &mut World, partition: u16, byte: u64| loop {
        match world.partition.get_waiting(Position::pack(partition, byte)) {
            Ok(found) => return found,
            Err(_) => _ = world.turn(),
        }
    };
    for ((mut disk, places), is_half) in [(disk(), false), (half_disk(), true)] {
        let mut world = World::new(disk.twin(), u64::MAX);
        world.open();
        let is_it = |message: &Bytes, number: usize| {
            message.len() == LENGTHS[number] && message[28..].iter().all(|byte| *byte == number as u8)
        };
        let find = |world: &mut World, place: u64, number: usize| {
            assert!(told(world, 5, place).is_some_and(|message| is_it(&message, number)), "{number} of {is_half}");
            for byte in [place - 32, place - 1, place + 1, place + 32] {
                assert_eq!(told(world, 5, byte), None);
            }
            assert_eq!((told(world, 4, place), told(world, 5, u64::MAX >> 16)), (None, None));
            assert_eq!(world.partition.get(Position::pack(5, place)), Ok(None), "it is no message yet");
        };
        (0..).zip(&places).for_each(|(number, place)| find(&mut world, *place, number));
        let mut world = cutting(&mut disk);
        world.open();
        // A half message goes by the position that its producer knows; others by the one that is left.
        world.turn_until("retired", |partition| partition.floor() > 0);
        let left = world.partition.derived.timers.between(0, u64::MAX).map(|timer| timer.byte).collect();
        let now: Vec<u64> = if is_half { places.clone() } else { left };
        (0..).zip(&now).for_each(|(number, place)| find(&mut world, *place, number));
        if is_half {
            decide(&mut world, &places);
        } else {
            assert!(places.iter().all(|place| told(&mut world, 5, *place).is_none()), "they lie elsewhere");
            world.sim.advance(DUE_MS - world.sim.now_ms());
            world.turn_until("delivered", |partition| partition.stats().delayed == 0);
        }
        assert!(now.iter().all(|place| told(&mut world, 5, *place).is_none()), "they wait no more");
    }
}
