//! `ioengine=engine`: one partition on a ring, without a network: what the commit log costs and gives.

use crate::options::{Job, Load};
use crate::raw::open_ring;
use crate::run::{Measured, Start};
use crate::stats::{Answered, Direction, Live, Pace, Stats};
use crate::store;
use engine::Ticket;
use engine::buffer::Region;
use engine::format::QueueKey;
use engine::io::{Done, Io, Tag};
use engine::message::{Draft, Stamp};
use engine::partition::{Effect, Partition, Pull, PullLimits};
use engine::ring::Ring;
use protocol::message::{self, StoredMessage};
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Memory for batches and the tail, in chunks that hold the largest batch.
const MEMORY: (usize, usize) = (16, 8 << 20);
/// Operations of a partition that are under way at once: batches, read-ahead, chores.
const OPERATIONS: usize = 256;
/// The longest wait of one turn: a stop is looked for in between.
const TURN: Duration = Duration::from_millis(20);
/// The topic of all messages.
const TOPIC: u32 = 1;

/// Runs a job to its end on this thread.
pub fn run(job: &Job, live: &Live, start: &Start) -> io::Result<Measured> {
    let memory = Region::new(MEMORY.0, MEMORY.1)?;
    let ring = open_ring(OPERATIONS, &memory)?;
    let config = store::config(&job.directory, job.size, job.durable, memory, describe);
    let partition = Partition::new(config).map_err(io::Error::other)?;
    let all = job.numjobs * job.iodepth;
    let now = Instant::now();
    let empty = Answered { requests: 1, direction: Direction::Write, messages: 0, bytes: 0, due: now, written: now };
    let mut store = Store {
        job,
        ring,
        partition,
        done: Vec::new(),
        effects: Vec::new(),
        failure: None,
        shut: false,
        body: vec![b'x'; job.bs.1 as usize],
        slots: vec![empty; all],
        free: (0..all).rev().collect(),
        next_queue: 0,
        cursors: (0..job.numjobs).map(|number| (number as u32 % job.queues, 0)).collect(),
    };
    store.measure(live, start)
}

/// What the engine needs to know of a stored message: what a broker tells it, without keys.
fn describe(bytes: &[u8]) -> Option<engine::message::Description> {
    let described = message::describe(bytes)?;
    let stored = StoredMessage::decode(bytes).ok()?;
    Some(engine::message::Description {
        tag_hash: described.tag_hash,
        store_time_ms: u64::try_from(stored.store_timestamp).ok()?,
        stamp: stamp(),
        keys: engine::message::Keys::default(),
    })
}

fn stamp() -> Stamp {
    Stamp {
        queue_offset_at: message::QUEUE_OFFSET_AT,
        position_at: message::PHYSICAL_OFFSET_AT,
        store_time_at: message::store_timestamp_at(0),
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

struct Store<'a> {
    job: &'a Job,
    ring: Ring,
    partition: Partition,
    done: Vec<Done>,
    effects: Vec<Effect>,
    failure: Option<String>,
    shut: bool,
    body: Vec<u8>,
    slots: Vec<Answered>,
    free: Vec<usize>,
    next_queue: u32,
    /// Of each reader: its queue, and the offset it wants next.
    cursors: Vec<(u32, u64)>,
}

impl Store<'_> {
    fn measure(&mut self, live: &Live, start: &Start) -> io::Result<Measured> {
        let job = self.job;
        while !self.partition.is_open() && self.failure.is_none() {
            self.turn(TURN, &mut |_| {});
        }
        if let Some(failure) = self.failure.take() {
            return Err(io::Error::other(format!("{}: {failure}", job.directory.display())));
        }
        let first = start.pass() + job.startdelay;
        let begin = first + job.ramp_time;
        let until = begin + job.runtime;
        let pace = Pace::of(job, first);
        std::thread::sleep(first.saturating_duration_since(Instant::now()));
        let mut stats = vec![Stats::new(job, begin); if job.group_reporting { 1 } else { job.numjobs }];
        let all = self.slots.len();
        let batch = u64::from(job.batch);
        let limit = if job.number_ios == 0 { u64::MAX } else { job.number_ios.div_ceil(batch) * job.numjobs as u64 };
        let mut issued = 0;
        let mut tickets = Vec::new();
        let mut over = false;
        while !(over && self.free.len() == all) && self.failure.is_none() {
            let now = Instant::now();
            over = over || now >= until || live.is_stopped() || issued == limit;
            let released = pace.map_or(u64::MAX, |pace| pace.released(now)).min(limit);
            let may = self.free.len() >= job.complete || pace.is_some();
            while !over && may && issued < released && self.failure.is_none() {
                let Some(slot) = self.free.pop() else { break };
                let due = pace.map_or(now, |pace| pace.due(issued));
                let taken =
                    if job.load == Load::Produce { self.append(slot, due, now) } else { self.pull(slot, due, now) };
                match taken {
                    Taken::Later => {
                        self.free.push(slot);
                        break;
                    }
                    Taken::Done => {
                        let number = if job.group_reporting { 0 } else { slot % job.numjobs };
                        stats[number].answered(&self.slots[slot], Instant::now(), live);
                        self.free.push(slot);
                        issued += 1;
                        // A reader from memory would never let the ring turn, nor look at the clock.
                        if pace.is_none() {
                            break;
                        }
                    }
                    Taken::Waits => issued += 1,
                }
            }
            let reads = job.load != Load::Produce && self.free.len() == all;
            let wait = match pace {
                Some(pace) if !self.free.is_empty() => pace.due(issued).saturating_duration_since(now),
                None if reads => Duration::ZERO,
                _ => TURN,
            };
            self.turn(wait.min(TURN), &mut |ticket| tickets.push(ticket));
            let now = Instant::now();
            for ticket in tickets.drain(..) {
                let slot = ticket.0 as usize;
                let number = if job.group_reporting { 0 } else { slot % job.numjobs };
                stats[number].answered(&self.slots[slot], now, live);
                self.free.push(slot);
            }
        }
        let end = Instant::now().min(until);
        stats.iter_mut().for_each(|stats| stats.finish(end));
        self.partition.shut();
        while !self.shut && self.failure.is_none() {
            self.turn(TURN, &mut |_| {});
        }
        Ok(Measured { stats, end, server_cpu: None, failure: self.failure.take() })
    }

    /// One turn of the ring and the partition; `stored` hears of what became durable.
    fn turn(&mut self, wait: Duration, stored: &mut dyn FnMut(Ticket)) {
        self.partition.on_turn(now_ms());
        self.effects(stored);
        let mut done = std::mem::take(&mut self.done);
        self.ring.drive(Some(wait), &mut done);
        let now_ms = now_ms();
        for done in done.drain(..) {
            self.partition.on_done(done.tag.0, done.outcome, now_ms);
        }
        self.done = done;
        self.effects(stored);
    }

    fn effects(&mut self, stored: &mut dyn FnMut(Ticket)) {
        let mut effects = std::mem::take(&mut self.effects);
        self.partition.effects(&mut effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Io { local, op } => {
                    self.ring.submit(Tag(local), op).expect("a partition has fewer operations than the ring slots");
                }
                Effect::Stored(ticket, Ok(())) => stored(ticket),
                Effect::Stored(_, Err(error)) => self.failure = Some(format!("a message was not stored: {error:?}")),
                Effect::Closed(reason) => self.failure = Some(reason),
                Effect::Shut => self.shut = true,
                Effect::Grown(_) | Effect::Loaded(..) | Effect::Opened | Effect::Undecided(_) => {}
            }
        }
        self.effects = effects;
    }

    fn append(&mut self, slot: usize, due: Instant, now: Instant) -> Taken {
        let job = self.job;
        let properties = "UNIQ_KEY\u{1}7F00000100002A9F0000000000000001\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}";
        let plain = StoredMessage::plain(job.broker, &job.topic, properties, &self.body);
        let message = StoredMessage { born_timestamp: 1_700_000_000_000, ..plain };
        let mut fills: Vec<_> = (0..job.batch).map(|_| |out: &mut [u8]| message.encode(out)).collect();
        let mut drafts: Vec<Draft<'_>> = Vec::with_capacity(fills.len());
        for fill in &mut fills {
            let queue = QueueKey { topic: TOPIC, queue: self.next_queue };
            drafts.push(Draft {
                queue,
                length: message.encoded_len(),
                offsets: 1,
                tag_hash: 0,
                keys: &[1],
                stamp: stamp(),
                fill,
            });
        }
        let mut stored = Vec::with_capacity(drafts.len());
        let appended = self.partition.append(&mut drafts, Some(Ticket(slot as u64)), now_ms(), &mut stored);
        match appended {
            Ok(()) => {}
            Err(engine::error::AppendError::Busy) => return Taken::Later,
            Err(error) => {
                self.failure = Some(format!("{error:?}"));
                return Taken::Later;
            }
        }
        self.next_queue = (self.next_queue + 1) % job.queues;
        let (messages, bytes) = (u64::from(job.batch), u64::from(job.batch * job.bs.1));
        self.slots[slot] = Answered { requests: 1, direction: Direction::Write, messages, bytes, due, written: now };
        Taken::Waits
    }

    fn pull(&mut self, slot: usize, due: Instant, now: Instant) -> Taken {
        let job = self.job;
        let (queue, offset) = self.cursors[slot % job.numjobs];
        let limits = PullLimits { messages: job.batch, bytes: 4 << 20, scan: job.batch };
        let key = QueueKey { topic: TOPIC, queue };
        let span = self.partition.span(key);
        let first = if job.load == Load::Consume { span.max.saturating_sub(job.span).max(span.min) } else { span.min };
        let (pull, _) = self.partition.pull(key, offset.max(first), limits, &|_| true);
        match pull {
            Pull::Found { messages, next } => {
                let bytes = messages.iter().map(|message| message.len() as u64).sum();
                let messages = messages.len() as u64;
                self.slots[slot] =
                    Answered { requests: 1, direction: Direction::Read, messages, bytes, due, written: now };
                // A cold reader takes the next queue of its own; another begins again.
                let step = job.numjobs as u32;
                let after = if job.load == Load::Consume { queue } else { (queue + step) % job.queues };
                self.cursors[slot % job.numjobs] = if next < span.max { (queue, next) } else { (after, 0) };
                Taken::Done
            }
            Pull::Loading(_) | Pull::Opening => Taken::Later,
            Pull::Empty | Pull::OutOfRange | Pull::NoMatch { .. } => {
                self.failure = Some(format!("queue {queue} is empty: produce into this directory first"));
                Taken::Later
            }
            Pull::Damaged { position, .. } => {
                self.failure = Some(format!("the message at {} is damaged", position.byte()));
                Taken::Later
            }
        }
    }
}

/// What came of a request.
enum Taken {
    /// It is answered.
    Done,
    /// Its ticket comes back.
    Waits,
    /// It must be asked again.
    Later,
}
