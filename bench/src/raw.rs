//! `ioengine=ring`: direct writes or reads of files through one ring. What the device gives, and no more.

use crate::options::{Job, Load};
use crate::run::{Measured, Start};
use crate::stats::{Answered, Direction, Live, Pace, Stats};
use bytes::Bytes;
use engine::buffer::{BLOCK, Region};
use engine::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
use engine::ring::{Ring, RingConfig};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Zeros written at once when a file is made longer.
pub const FILL_BYTES: u64 = 1 << 20;
/// The longest wait of one turn: a stop is looked for in between.
const TURN: Duration = Duration::from_millis(20);
/// Operations of a ring, as its own range says.
const SLOTS: std::ops::RangeInclusive<usize> = 8..=65_536;

/// Runs a job to its end on this thread.
pub fn run(job: &Job, live: &Live, start: &Start) -> io::Result<Measured> {
    let operations = job.numjobs * job.iodepth;
    if operations > *SLOTS.end() {
        return Err(io::Error::other(format!("numjobs times iodepth is more than {}", SLOTS.end())));
    }
    let memory = Region::new(2, (job.bs.1 as usize).max(FILL_BYTES as usize).next_multiple_of(BLOCK))?;
    let mut ring = open_ring(operations, &memory)?;
    let mut files = Vec::new();
    let zeros = Bytes::clone(&memory.take().expect("a new region is free").split_to(FILL_BYTES as usize));
    for number in 0..job.numjobs {
        files.push(filled(&mut ring, path(job, number), job.size, &zeros)?);
    }
    let block = memory.take().expect("one of two is free").split_to(job.bs.0 as usize);
    let mut writers =
        Writers { job, ring, files, block, at: vec![0; job.numjobs], slots: Vec::new(), free: Vec::new() };
    let measured = writers.measure(live, start);
    if job.unlink {
        (0..job.numjobs).try_for_each(|number| std::fs::remove_file(path(job, number)))?;
    }
    measured
}

/// A ring for that many operations at once, that does not receive.
pub fn open_ring(operations: usize, memory: &Arc<Region>) -> io::Result<Ring> {
    let slots = (operations + 64).clamp(*SLOTS.start(), *SLOTS.end()) as u32;
    Ring::new(RingConfig {
        slots,
        entries: slots.next_power_of_two().min(4096),
        receive_count: 1,
        receive_bytes: 4096,
        regions: vec![Arc::clone(memory)],
        ..RingConfig::default()
    })
}

/// What a failed operation becomes.
pub fn failed(what: &str, fault: Fault) -> io::Error {
    io::Error::new(fault.kind(), format!("{what}: {fault}"))
}

fn path(job: &Job, number: usize) -> PathBuf {
    match &job.filename {
        Some(file) if job.numjobs == 1 => file.clone(),
        Some(file) => {
            let mut name = file.clone().into_os_string();
            name.push(format!(".{number}"));
            name.into()
        }
        None => job.directory.join(format!("{}.{number}", job.name)),
    }
}

/// Opens a file and fills it with zeros up to `size`, so that no write changes an extent. `zeros`: [`FILL_BYTES`] of them.
pub fn filled(ring: &mut Ring, path: PathBuf, size: u64, zeros: &Bytes) -> io::Result<Handle> {
    let shown = path.display().to_string();
    let length = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let how = OpenHow { create: true, direct: true, read_only: false };
    let Outcome::Opened(file) = one(ring, Op::Open { path, how }).map_err(|fault| failed(&shown, fault))? else {
        return Err(io::Error::other(format!("{shown}: opened, but not a file")));
    };
    let mut at = length / FILL_BYTES * FILL_BYTES;
    while at < size {
        let write = Op::Write { file, at, bytes: zeros.clone(), durable: false };
        match one(ring, write).map_err(|fault| failed(&shown, fault))? {
            Outcome::Count(count) if count == zeros.len() => at += FILL_BYTES,
            _ => return Err(io::Error::other(format!("{shown}: a short write; the disk is full"))),
        }
    }
    one(ring, Op::Sync { file }).map_err(|fault| failed(&shown, fault))?;
    Ok(file)
}

/// Does one thing and waits for it.
fn one(ring: &mut Ring, op: Op) -> Result<Outcome, Fault> {
    let mut done = Vec::new();
    ring.submit(Tag(0), op).expect("nothing else is under way");
    while done.is_empty() {
        ring.drive(None, &mut done);
    }
    done.remove(0).outcome
}

struct Writers<'a> {
    job: &'a Job,
    ring: Ring,
    files: Vec<Handle>,
    block: Bytes,
    /// Where each writer goes on.
    at: Vec<u64>,
    slots: Vec<Answered>,
    free: Vec<usize>,
}

impl Writers<'_> {
    fn measure(&mut self, live: &Live, start: &Start) -> io::Result<Measured> {
        let job = self.job;
        let (count, all) = (job.numjobs, job.numjobs * job.iodepth);
        let first = start.pass() + job.startdelay;
        let begin = first + job.ramp_time;
        let until = begin + job.runtime;
        let pace = Pace::of(job, first);
        std::thread::sleep(first.saturating_duration_since(Instant::now()));
        let mut stats = vec![Stats::new(job, begin); if job.group_reporting { 1 } else { count }];
        let empty =
            Answered { requests: 1, direction: Direction::Write, messages: 1, bytes: 0, due: first, written: first };
        self.slots = vec![empty; all];
        self.free = (0..all).rev().collect();
        let limit = if job.number_ios == 0 { u64::MAX } else { job.number_ios * count as u64 };
        let (mut issued, mut done) = (0, Vec::<Done>::new());
        loop {
            let now = Instant::now();
            let over = now >= until || live.is_stopped() || issued == limit;
            if over && self.free.len() == all {
                break;
            }
            let released = pace.map_or(u64::MAX, |pace| pace.released(now));
            let may = self.free.len() == all || self.free.len() >= job.complete || pace.is_some();
            while !over && may && issued < released.min(limit) {
                let Some(slot) = self.free.pop() else { break };
                let due = pace.map_or(now, |pace| pace.due(issued));
                self.submit(slot, due, now);
                issued += 1;
            }
            let wait =
                pace.filter(|_| !self.free.is_empty()).map(|pace| pace.due(issued).saturating_duration_since(now));
            self.ring.drive(Some(wait.unwrap_or(TURN).min(TURN)), &mut done);
            let now = Instant::now();
            for done in done.drain(..) {
                let slot = done.tag.0 as usize;
                self.free.push(slot);
                let stats = &mut stats[if job.group_reporting { 0 } else { slot % count }];
                match done.outcome {
                    Ok(Outcome::Count(bytes)) if bytes == self.block.len() => {
                        stats.answered(&self.slots[slot], now, live);
                    }
                    Ok(Outcome::Read(bytes)) if bytes.len() == self.block.len() => {
                        stats.answered(&self.slots[slot], now, live);
                    }
                    Ok(_) => return Err(io::Error::other("a short write or read")),
                    Err(fault) => return Err(failed(&path(job, slot % count).display().to_string(), fault)),
                }
            }
        }
        let end = Instant::now().min(until);
        stats.iter_mut().for_each(|stats| stats.finish(end));
        Ok(Measured { stats, end, server_cpu: None, failure: None })
    }

    fn submit(&mut self, slot: usize, due: Instant, now: Instant) {
        let writer = slot % self.job.numjobs;
        let (file, at, bytes) = (self.files[writer], self.at[writer], self.block.len() as u64);
        self.at[writer] = if at + 2 * bytes > self.job.size { 0 } else { at + bytes };
        let (direction, op) = if self.job.load == Load::Produce {
            (Direction::Write, Op::Write { file, at, bytes: self.block.clone(), durable: self.job.durable })
        } else {
            (Direction::Read, Op::Read { file, at, length: bytes as u32 })
        };
        self.slots[slot] = Answered { requests: 1, direction, messages: 1, bytes, due, written: now };
        self.ring.submit(Tag(slot as u64), op).expect("the ring has a slot for each of ours");
    }
}
