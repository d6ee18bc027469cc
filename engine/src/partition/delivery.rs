//! Delayed messages: those whose time has come become messages of their queues, once; those whose segment is to
//! go are written again at the log's head.
//!
//! In both cases one batch has the new record and the mark that ends the old one. A crash leaves both or
//! neither, so that whatever was read of the log, one record of the message counts.

use super::reading::{Fetched, fetch};
use super::{Partition, RETRY_MS};
use crate::format::{Kind, Position, RECORD_HEADER_BYTES};
use crate::limits::LOAD_BYTES;
use crate::loads::LoadId;
use crate::message::Draft;
use crate::timers::Timer;
use bytes::Bytes;

/// Delayed messages delivered in one turn.
const DELIVERIES_MAX: usize = 256;
/// Bytes written again before it is waited until they are written: what one cold read brings. A single message
/// may be longer.
const ROLL_BYTES: usize = LOAD_BYTES as usize;

/// One that the disk does not give is asked for again after this long. Milliseconds.
const UNREADABLE_MS: u64 = 10_000;

/// A delayed message that was asked for.
enum Recalled {
    Here(Bytes),
    Loading(LoadId),
    /// It was given up.
    Lost,
}

impl Partition {
    /// Delivers what is due.
    pub(super) fn deliver(&mut self, now_ms: u64) {
        if now_ms < self.deliver_again_ms {
            return;
        }
        for _ in 0..DELIVERIES_MAX {
            let Some(timer) = self.derived.timers.first().filter(|timer| timer.due_ms <= now_ms) else { return };
            if self.delivery.is_some() || timer.byte >= self.log.written() {
                return;
            }
            let message = match self.recall(timer) {
                Recalled::Here(message) => message,
                Recalled::Loading(load) => {
                    self.delivery = Some((load, timer));
                    return;
                }
                Recalled::Lost => continue,
            };
            let Some(description) = (self.config.describe)(&message) else {
                self.give_up(timer, "cannot be read");
                continue;
            };
            if self.reserve(message.len(), 2, now_ms).is_err() {
                self.deliver_again_ms = now_ms + RETRY_MS;
                return;
            }
            let mut draft = Draft {
                queue: timer.queue,
                length: message.len(),
                tag_hash: description.tag_hash,
                keys: description.keys.as_slice(),
                stamp: description.stamp,
                fill: &mut |out| out.copy_from_slice(&message),
            };
            self.store(&mut draft, now_ms);
            self.end(timer);
        }
    }

    /// Writes what waits below log byte `below` again, so that its segment can go: a slice at a time, and the
    /// next one once that is written. A message that is due is delivered instead, in its turn.
    pub(super) fn roll_forward(&mut self, below: u64, now_ms: u64) {
        if now_ms < self.roll_again_ms || self.rolling.is_some() || self.rolled > self.log.written() {
            return;
        }
        let mut bytes = 0;
        while bytes < ROLL_BYTES
            && let Some(timer) = self.derived.timers.lowest()
            && timer.byte < below
            && timer.due_ms > now_ms
        {
            let message = match self.recall(timer) {
                Recalled::Here(message) => message,
                Recalled::Loading(load) => {
                    self.rolling = Some(load);
                    return;
                }
                Recalled::Lost => continue,
            };
            if self.reserve(message.len(), 2, now_ms).is_err() {
                self.roll_again_ms = now_ms + RETRY_MS;
                return;
            }
            let fill = |_, out: &mut [u8]| out.copy_from_slice(&message);
            let byte = self.log.record(Kind::Delayed, timer.queue, timer.due_ms, message.len(), fill);
            self.rolled = self.end(timer);
            self.derived.timers.insert(Timer { byte, ..timer });
            bytes += 2 * RECORD_HEADER_BYTES + message.len();
        }
    }

    /// The record of a delayed message counts no more: that it is another one's turn is in the same batch.
    /// Returns the log byte of the mark.
    fn end(&mut self, timer: Timer) -> u64 {
        let mark = self.log.record(Kind::Delivered, timer.queue, timer.byte, 0, |_, _| {});
        self.delivering.push_back((mark, timer.byte));
        self.derived.timers.remove(timer.byte);
        mark
    }

    /// The bytes of a delayed message.
    fn recall(&mut self, timer: Timer) -> Recalled {
        match fetch(self.log.tail(), &self.loads, timer.byte, timer.length) {
            Fetched::Here(message) => return Recalled::Here(message),
            Fetched::Elsewhere => match self.load(timer.byte, timer.length) {
                Some(load) => return Recalled::Loading(load),
                // Its topic was deleted while the checkpoint that names it was the newest one.
                None => self.derived.timers.remove(timer.byte),
            },
            Fetched::Damaged => self.give_up(timer, "is damaged"),
        }
        Recalled::Lost
    }

    /// A read is back, perhaps of a delayed message. One that cannot be read is tried again later, and nothing else
    /// waits for it.
    pub(super) fn on_recalled(&mut self, load: LoadId, is_here: bool, now_ms: u64) {
        let delivery = self.delivery.take_if(|(delivery, _)| *delivery == load);
        let rolling = self.rolling.take_if(|rolling| *rolling == load);
        if is_here || delivery.is_none() && rolling.is_none() {
            return;
        }
        let partition = self.config.partition;
        tracing::error!(partition, "a delayed message could not be read; it is tried again in {UNREADABLE_MS} ms");
        if let Some((_, timer)) = delivery {
            self.derived.timers.postpone(timer.byte, now_ms + UNREADABLE_MS);
        }
        if rolling.is_some() {
            self.roll_again_ms = now_ms + UNREADABLE_MS;
        }
    }

    fn give_up(&mut self, timer: Timer, why: &str) {
        let position = Position::pack(self.config.partition, timer.byte);
        tracing::error!(?position, "a delayed message {why} and is given up");
        self.derived.timers.remove(timer.byte);
    }
}

/// Goal: a delayed message is delivered once, when it is due, wherever a crash comes while its segment goes. Method:
/// a log whose oldest segment has waiting messages, on a simulated disk; retention, a crash after so many turns, for
/// every number of turns, and another life in which everything becomes due.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Region;
    use crate::error::AppendError;
    use crate::format::{BLOCK_BYTES, QueueKey, crc32c};
    use crate::io::{Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
    use crate::limits::LogConfig;
    use crate::message::{Description, Keys, Stamp};
    use crate::partition::{Effect, Pull, PullLimits};
    use crate::sim::Sim;

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
            World { sim, partition: Partition::new(config.clone()).unwrap(), config, closed: None, unreadable: None }
        }

        fn turn(&mut self) {
            let (mut effects, mut done) = (Vec::new(), Vec::new());
            self.partition.on_turn(self.sim.now_ms());
            self.partition.effects(&mut effects);
            for effect in effects {
                match effect {
                    Effect::Io { local, op: Op::Read { at, length, .. } }
                        if self.unreadable.is_some_and(|byte| (at..at + u64::from(length)).contains(&byte)) =>
                    {
                        self.partition.on_done(local, Err(Fault(libc::EIO)), self.sim.now_ms());
                    }
                    Effect::Io { local, op } => self.sim.submit(Tag(local), op).unwrap(),
                    Effect::Closed(reason) => self.closed = Some(reason),
                    _ => {}
                }
            }
            self.sim.drive(None, &mut done);
            done.into_iter().for_each(|done| self.partition.on_done(done.tag.0, done.outcome, self.sim.now_ms()));
            self.sim.advance(1);
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

        fn append(&mut self, queue: QueueKey, number: usize, length: usize, due_ms: Option<u64>) {
            let mut fill = |out: &mut [u8]| {
                out.fill(number as u8);
                out[24..28].copy_from_slice(&(number as u32).to_be_bytes());
            };
            loop {
                let now_ms = self.sim.now_ms();
                let draft = Draft { queue, length, tag_hash: 0, keys: &[], stamp: STAMP, fill: &mut fill };
                let result = match due_ms {
                    Some(due_ms) => self.partition.delay(draft, due_ms, None, now_ms).map(drop),
                    None => self.partition.append(&mut [draft], None, now_ms, &mut Vec::new()),
                };
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
                    _ => self.turn(),
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
                    if turn % 10 == 0 && world.partition.check_open().is_ok() {
                        world.append(OTHERS, 0, 30_000, None);
                    }
                    world.turn();
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
        for version in [1, 3] {
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
                (0..1000).for_each(|_| world.turn());
                let reason = world.closed.expect("it refuses");
                assert!(reason.contains("checkpoint: written in format version 3"), "{reason}");
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
        (0..5000).for_each(|_| world.turn());
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
}
