//! The simulator's side of the wall: a kernel that forgets, delays, tears and fails as its seed says, and
//! does the same again for the same seed. It never blocks, and its clock stands still until it is told.
//!
//! What it holds against the engine, more than most disks would:
//! - Operations in flight complete in any order. An operation takes effect when it completes; until then it
//!   may, at a power cut, have had any part of its effect.
//! - A *sector* of 512 bytes is written whole or not at all; whatever is larger may be torn anywhere.
//! - What was written is durable once its own write was `durable`, or once a [`Op::Sync`] that was submitted
//!   after the write had completed has completed too. Of the rest, each sector is lost or kept as it likes.
//! - Creations, renames and removals are durable after [`Op::SyncDirectory`] of their directory; of the rest
//!   the first few survive a power cut, as in a journal.
//! - Memory that was given to it for a write is looked at again when the write takes effect: whoever changed
//!   it meanwhile is stopped.
//!
//! One kernel may serve several cores: each has a [`Side`] of it, whose completions, wake-ups and deadline
//! are its own.

mod disk;
mod network;
mod random;

pub use random::Random;

use crate::format::{BLOCK_BYTES, crc32c};
use crate::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
use bytes::Bytes;
use disk::{Disk, FileId, PAGE_BYTES};
use network::Network;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Operations of one core taken and not completed; more are given back, as the ring does.
const SLOTS: usize = 256;

/// How often operations fail, in a thousand. `EIO` or `ENOSPC`, as the seed likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Writes. Any part of a failed one may have been written.
    pub write: u32,
    /// Writes that report fewer bytes than they were given.
    pub short: u32,
    /// Syncs of files. Any part of what a failed one covers may be durable.
    pub sync: u32,
    /// Reads.
    pub read: u32,
    /// Opening, allocating, truncating, renaming, removing, and syncs of directories: without effect.
    pub name: u32,
    /// Receives that find no buffer (`ENOBUFS`).
    pub receive: u32,
}

/// An operation in the kernel.
#[derive(Debug)]
struct Flight {
    /// The number of completed effects when it was submitted.
    submitted: u64,
    tag: Tag,
    op: Op,
    /// Of a write's memory.
    sum: u32,
}

/// What the kernel keeps for one core.
#[derive(Debug, Default)]
struct Ring {
    flights: Vec<Flight>,
    /// Its next drive would return at once.
    woken: bool,
    /// Until when it waits if nothing happens.
    until_ms: u64,
    /// Drives in a row that would not have waited and brought nothing.
    idle: u32,
}

/// A simulated kernel. See the module.
#[derive(Debug)]
pub struct Sim {
    random: Random,
    now_ms: u64,
    /// How often operations fail.
    pub faults: Faults,
    /// Bytes of the disk; what files were allocated beyond it fails with `ENOSPC`.
    pub space: u64,
    /// How many of the operations in flight complete in one [`drive`](Io::drive), in a thousand, about.
    pub haste: u32,
    /// Direct writes are possible; otherwise opening for them fails with `EINVAL`.
    pub direct: bool,
    disk: Disk,
    opened: BTreeMap<Handle, (FileId, OpenHow)>,
    network: Network,
    /// The last one given, to a file or a connection.
    handle: Handle,
    rings: Vec<Ring>,
}

impl Sim {
    /// An empty disk of 1 TiB that never fails, and no connections. Wall clock: 1,700,000,000,000 ms.
    pub fn new(seed: u64) -> Sim {
        Sim {
            random: Random::new(seed),
            now_ms: 1_700_000_000_000,
            faults: Faults::default(),
            space: 1 << 40,
            haste: 500,
            direct: true,
            disk: Disk::default(),
            opened: BTreeMap::new(),
            network: Network::default(),
            handle: Handle(2),
            rings: vec![Ring::default()],
        }
    }

    /// The wall clock, ms since 1970.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Lets time pass.
    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
    }

    /// How many operations were submitted and did not complete, those that wait for something armed aside.
    pub fn flying(&self) -> usize {
        self.rings.iter().map(|ring| ring.flights.len()).sum()
    }

    /// Whether a drive of this core would return at once: something may complete, somebody woke it, or its
    /// wait is over.
    pub fn is_due(&self, core: usize) -> bool {
        let Some(ring) = self.rings.get(core) else { return true };
        let is_stuck = |op: &Op| matches!(op, Op::Send { socket, .. } if self.network.is_stuck(*socket));
        ring.woken
            || self.now_ms >= ring.until_ms
            || ring.flights.iter().any(|flight| !is_stuck(&flight.op))
            || self.network.has_news(core)
    }

    /// When this core goes on if nothing happens, in ms.
    pub fn until_ms(&self, core: usize) -> u64 {
        self.rings.get(core).map_or(0, |ring| ring.until_ms)
    }

    /// How many drives of this core in a row would not have waited and brought nothing: a loop that spins.
    pub fn idle(&self, core: usize) -> u32 {
        self.rings.get(core).map_or(0, |ring| ring.idle)
    }

    // -- the end of a process -----------------------------------------------------------------------

    /// The process dies: its files are closed, its operations in flight did part of their work, and what it
    /// had written is still there. What is left of this simulator is an empty one.
    pub fn kill(&mut self) -> Sim {
        for op in self.abandon() {
            if let Op::Write { file, at, bytes, .. } = op {
                let part = self.random.below(bytes.len() as u64 / BLOCK_BYTES + 1) * BLOCK_BYTES;
                let part = if self.random.chance(500) { bytes.len() as u64 } else { part };
                self.land(file, at, &bytes[..part as usize]);
            }
        }
        self.reborn()
    }

    /// The power goes: as [`kill`](Sim::kill), and of what is not durable any part is lost.
    pub fn power_cut(&mut self, seed: u64) -> Sim {
        for op in self.abandon() {
            if let Op::Write { file, at, bytes, .. } = op {
                self.land(file, at, &bytes);
            }
        }
        self.disk.power_cut(&mut Random::new(seed));
        self.reborn()
    }

    /// All that is in the kernel when the process ends.
    fn abandon(&mut self) -> Vec<Op> {
        let flights = self.rings.iter_mut().flat_map(|ring| std::mem::take(&mut ring.flights));
        flights.inspect(Flight::check).map(|flight| flight.op).collect()
    }

    /// A write whose process is gone.
    fn land(&mut self, file: Handle, at: u64, bytes: &[u8]) {
        if let Ok((file, _)) = self.file(file) {
            self.disk.write(file, at, bytes, false);
        }
    }

    fn reborn(&mut self) -> Sim {
        self.opened.clear();
        self.network = Network::default();
        let disk = std::mem::take(&mut self.disk);
        self.with(disk)
    }

    /// Another machine with the same disk: what is done to one is not done to the other. Nothing may be in
    /// the kernel.
    pub fn twin(&mut self) -> Sim {
        assert_eq!(self.flying(), 0, "a disk in use cannot be copied");
        let disk = self.disk.clone();
        self.with(disk)
    }

    /// The same machine with this disk, before anything runs on it.
    fn with(&mut self, disk: Disk) -> Sim {
        let Sim { now_ms, faults, space, haste, direct, .. } = *self;
        Sim { now_ms, faults, space, haste, direct, disk, ..Sim::new(self.random.bits()) }
    }

    /// Flips one bit of what a file holds, in a sector that is not all zeros, or lies beside one. Returns where;
    /// `None`: all files are empty.
    pub fn rot(&mut self, seed: u64) -> Option<(PathBuf, u64)> {
        self.disk.rot(&mut Random::new(seed))
    }

    // -- clients ------------------------------------------------------------------------------------

    /// A listener, as the process would have bound it.
    pub fn listen(&mut self) -> Handle {
        let listener = self.next_handle();
        self.network.listen(listener);
        listener
    }

    /// A client connects. It is named by the socket on the process's side.
    pub fn connect(&mut self, listener: Handle) -> Handle {
        let socket = self.next_handle();
        self.network.connect(socket, listener);
        socket
    }

    /// The client sends. What it sends on a closed connection is lost.
    pub fn send(&mut self, client: Handle, bytes: &[u8]) {
        self.network.send(client, bytes);
    }

    /// The client takes what was sent to it so far, at most so many bytes; `None` once the connection is closed
    /// and nothing is left.
    pub fn take(&mut self, client: Handle, bytes_max: usize) -> Option<Bytes> {
        self.network.take(client, bytes_max)
    }

    /// The client closes its end, behind all that it has sent.
    pub fn hang_up(&mut self, client: Handle) {
        self.network.hang_up(client);
    }

    /// The network breaks: of what the client has sent and the process has not received, any part is lost, and
    /// nothing reaches the client any more.
    pub fn cut(&mut self, client: Handle) {
        self.network.cut(client, &mut self.random);
    }

    // -- operations ---------------------------------------------------------------------------------

    fn next_handle(&mut self) -> Handle {
        self.handle.0 += 1;
        self.handle
    }

    fn file(&self, handle: Handle) -> Result<(FileId, OpenHow), Fault> {
        self.opened.get(&handle).copied().ok_or(Fault(libc::EBADF))
    }

    fn available(&self) -> u64 {
        self.space.saturating_sub(self.disk.used())
    }

    fn fault(&mut self, per_mille: u32) -> Result<(), Fault> {
        if !self.random.chance(per_mille) {
            return Ok(());
        }
        Err(Fault(if self.random.chance(500) { libc::EIO } else { libc::ENOSPC }))
    }

    /// An operation on a file or a directory has its effect.
    fn perform(&mut self, submitted: u64, op: Op) -> Result<Outcome, Fault> {
        match op {
            Op::Open { .. } | Op::Allocate { .. } | Op::Truncate { .. } | Op::Rename { .. } | Op::Remove { .. } => {
                self.fault(self.faults.name)?;
            }
            Op::SyncDirectory { .. } | Op::CreateDirectory { .. } => self.fault(self.faults.name)?,
            Op::Read { .. } => self.fault(self.faults.read)?,
            _ => {}
        }
        match op {
            Op::Open { path, how } => return self.open(path, how),
            Op::Write { file, at, bytes, durable } => return self.write(file, at, &bytes, durable),
            Op::Read { file, at, length } => return self.read(file, at, length),
            Op::List { path } => return Ok(Outcome::Names(self.disk.list(&path))),
            Op::Space { .. } => return Ok(Outcome::Space { available: self.available(), total: self.space }),
            Op::Sync { file } => {
                let (file, _) = self.file(file)?;
                let failed = self.fault(self.faults.sync);
                self.disk.sync(file, submitted, failed.is_err(), &mut self.random);
                failed?;
            }
            Op::Allocate { file, length } => {
                let (file, _) = self.file(file)?;
                let more = length.saturating_sub(self.disk.length(file));
                if more > self.available() {
                    return Err(Fault(libc::ENOSPC));
                }
                self.disk.extend(file, more);
            }
            Op::Truncate { file, length } => self.disk.truncate(self.file(file)?.0, length),
            Op::Rename { from, to } => self.disk.rename(from, to)?,
            Op::Remove { path } => self.disk.remove(path)?,
            Op::CreateDirectory { path } => self.disk.create_directory(&path),
            Op::SyncDirectory { path } => self.disk.sync_directory(&path, submitted)?,
            other => unreachable!("{other:?} is not an operation on a file"),
        }
        Ok(Outcome::Nothing)
    }

    fn open(&mut self, path: PathBuf, how: OpenHow) -> Result<Outcome, Fault> {
        if how.direct && !self.direct {
            return Err(Fault(libc::EINVAL));
        }
        let file = self.disk.open(path, how.create)?;
        let handle = self.next_handle();
        self.opened.insert(handle, (file, how));
        Ok(Outcome::Opened(handle))
    }

    fn write(&mut self, file: Handle, at: u64, bytes: &[u8], durable: bool) -> Result<Outcome, Fault> {
        let (file, how) = self.file(file)?;
        if how.read_only {
            return Err(Fault(libc::EBADF));
        }
        let whole = at.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(PAGE_BYTES);
        if !whole || at + bytes.len() as u64 > self.disk.length(file) {
            return Err(Fault(libc::EINVAL));
        }
        if let Err(fault) = self.fault(self.faults.write) {
            for page in (0..bytes.len()).step_by(PAGE_BYTES) {
                if self.random.chance(500) {
                    self.disk.write(file, at + page as u64, &bytes[page..page + PAGE_BYTES], false);
                }
            }
            return Err(fault);
        }
        let mut count = bytes.len();
        if self.random.chance(self.faults.short) {
            count = self.random.below((bytes.len() / PAGE_BYTES) as u64) as usize * PAGE_BYTES;
        }
        self.disk.write(file, at, &bytes[..count], durable);
        Ok(Outcome::Count(count))
    }

    fn read(&self, file: Handle, at: u64, length: u32) -> Result<Outcome, Fault> {
        let (file, how) = self.file(file)?;
        if how.direct && !(at.is_multiple_of(BLOCK_BYTES) && u64::from(length).is_multiple_of(BLOCK_BYTES)) {
            return Err(Fault(libc::EINVAL));
        }
        Ok(Outcome::Read(self.disk.read(file, at, length)))
    }

    fn close(&mut self, handle: Handle) -> Result<Outcome, Fault> {
        match self.opened.remove(&handle) {
            Some(_) => Ok(Outcome::Nothing),
            None => self.network.close(handle),
        }
    }

    fn cancel(&mut self, core: usize, tag: Tag) -> Option<Done> {
        let flights = &mut self.rings[core].flights;
        let flying = flights.iter().position(|flight| flight.tag == tag).map(|index| flights.remove(index));
        let ended = flying.is_some() || self.network.disarm(core, tag);
        ended.then_some(Done { tag, more: false, outcome: Err(Fault(libc::ECANCELED)) })
    }

    // -- the wall -----------------------------------------------------------------------------------

    fn ring(&mut self, core: usize) -> &mut Ring {
        if self.rings.len() <= core {
            self.rings.resize_with(core + 1, Ring::default);
        }
        &mut self.rings[core]
    }

    fn submit_of(&mut self, core: usize, tag: Tag, op: Op) -> Result<(), Op> {
        if matches!(op, Op::Accept { .. } | Op::Receive { .. }) {
            self.network.arm(core, tag, &op);
            return Ok(());
        }
        let submitted = self.disk.effects();
        let ring = self.ring(core);
        if ring.flights.len() == SLOTS {
            return Err(op);
        }
        let sum = if let Op::Write { bytes, .. } = &op { crc32c::crc32c(bytes) } else { 0 };
        ring.flights.push(Flight { submitted, tag, op, sum });
        Ok(())
    }

    fn drive_of(&mut self, core: usize, wait: Option<Duration>, done: &mut Vec<Done>) {
        let before = done.len();
        let haste = self.haste.max(1);
        let flying = self.ring(core).flights.len();
        let count = (0..flying).filter(|_| self.random.chance(haste)).count();
        for _ in 0..count {
            let flying = self.rings[core].flights.len();
            if flying == 0 {
                break; // a cancelled one was the last
            }
            let index = self.random.below(flying as u64) as usize;
            let flight = self.rings[core].flights.swap_remove(index);
            flight.check();
            let Flight { submitted, tag, op, sum } = flight;
            let outcome = match op {
                Op::Cancel { tag } => {
                    done.extend(self.cancel(core, tag));
                    Ok(Outcome::Nothing)
                }
                Op::Send { socket, pieces } => match self.network.deliver(socket, &pieces) {
                    Some(outcome) => outcome,
                    None => {
                        let op = Op::Send { socket, pieces };
                        self.rings[core].flights.push(Flight { submitted, tag, op, sum });
                        continue;
                    }
                },
                Op::Shutdown { socket } => self.network.shut(socket),
                Op::Close { handle } => self.close(handle),
                op => self.perform(submitted, op),
            };
            done.push(Done { tag, more: false, outcome });
        }
        self.network.serve(core, haste, self.faults.receive, &mut self.random, done);
        let wait_ms = wait.map_or(u64::MAX, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let now_ms = self.now_ms;
        let ring = &mut self.rings[core];
        let came = std::mem::take(&mut ring.woken) || done.len() > before;
        // What came gives the loop something to do, after which it may wait for something else.
        ring.until_ms = if came { now_ms } else { now_ms.saturating_add(wait_ms) };
        ring.idle = if came || wait_ms > 0 { 0 } else { ring.idle + 1 };
    }
}

impl Flight {
    /// Memory that the kernel has belongs to the kernel.
    fn check(&self) {
        if let Op::Write { bytes, at, .. } = &self.op {
            assert_eq!(crc32c::crc32c(bytes), self.sum, "the memory of a write at {at} was changed under way");
        }
    }
}

/// For a single core that is alone with the kernel. It is never woken.
impl Io for Sim {
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        self.submit_of(0, tag, op)
    }

    fn drive(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) {
        self.drive_of(0, wait, done);
    }

    fn wake(&mut self, _core: usize) {}
}

/// One core's side of a simulated kernel that serves several.
///
/// A drive says when it would have returned; whoever turns the cores asks [`Sim::is_due`] whether it has.
#[derive(Clone, Debug)]
pub struct Side {
    sim: Rc<RefCell<Sim>>,
    core: usize,
}

impl Side {
    /// The side of core `core`.
    pub fn new(sim: &Rc<RefCell<Sim>>, core: usize) -> Side {
        sim.borrow_mut().ring(core);
        Side { sim: Rc::clone(sim), core }
    }
}

impl Io for Side {
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        self.sim.borrow_mut().submit_of(self.core, tag, op)
    }

    fn drive(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) {
        self.sim.borrow_mut().drive_of(self.core, wait, done);
    }

    fn wake(&mut self, core: usize) {
        self.sim.borrow_mut().ring(core).woken = true;
    }
}

#[cfg(test)]
mod tests {
    use super::disk::SECTOR_BYTES;
    use super::*;
    use crate::io::Pieces;

    /// Submits one operation and waits for it.
    fn run(sim: &mut Sim, op: Op) -> Result<Outcome, Fault> {
        sim.submit(Tag(7), op).expect("a slot");
        let mut done = Vec::new();
        while done.is_empty() {
            sim.drive(None, &mut done);
        }
        done.remove(0).outcome
    }

    fn open(sim: &mut Sim, path: &str) -> Handle {
        let how = OpenHow { create: true, direct: true, read_only: false };
        match run(sim, Op::Open { path: path.into(), how }) {
            Ok(Outcome::Opened(handle)) => handle,
            other => panic!("{other:?}"),
        }
    }

    fn write(sim: &mut Sim, file: Handle, byte: u8, durable: bool) {
        let bytes = Bytes::from(vec![byte; 2 * PAGE_BYTES]);
        assert!(matches!(run(sim, Op::Write { file, at: 0, bytes, durable }), Ok(Outcome::Count(8192))));
    }

    fn content(sim: &mut Sim, path: &str) -> Vec<u8> {
        let file = open(sim, path);
        match run(sim, Op::Read { file, at: 0, length: 8192 }) {
            Ok(Outcome::Read(bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// A file of two pages whose name is durable and whose content is durable ones.
    fn prepared(seed: u64) -> (Sim, Handle) {
        let mut sim = Sim::new(seed);
        let file = open(&mut sim, "/a");
        assert!(run(&mut sim, Op::Allocate { file, length: 8192 }).is_ok());
        write(&mut sim, file, 1, true);
        assert!(run(&mut sim, Op::SyncDirectory { path: "/".into() }).is_ok());
        (sim, file)
    }

    #[test]
    fn a_power_cut_keeps_what_is_durable_and_tears_the_rest_at_sectors() {
        let (mut torn, mut lost, mut whole) = (0, 0, 0);
        for seed in 0..64 {
            let (mut sim, file) = prepared(seed);
            write(&mut sim, file, 2, false);
            let left = content(&mut sim.power_cut(seed), "/a");
            assert!(left.chunks(SECTOR_BYTES).all(|sector| sector == [1; 512] || sector == [2; 512]), "seed {seed}");
            match left.iter().filter(|byte| **byte == 2).count() {
                0 => lost += 1,
                8192 => whole += 1,
                _ => torn += 1,
            }
        }
        assert!(torn > 0 && lost > 0 && whole > 0, "torn {torn}, lost {lost}, whole {whole}");
    }

    #[test]
    fn a_sync_covers_what_completed_before_it_was_submitted() {
        let mut lost = 0;
        for seed in 0..64 {
            let (mut sim, file) = prepared(seed);
            write(&mut sim, file, 2, false);
            sim.submit(Tag(1), Op::Sync { file }).expect("a slot");
            sim.haste = 0;
            let bytes = Bytes::from(vec![3; 8192]);
            sim.write(file, 0, &bytes, false).expect("no fault is planned");
            sim.haste = 1000;
            sim.drive(None, &mut Vec::new());
            let left = content(&mut sim.power_cut(seed), "/a");
            assert!(left.iter().all(|byte| *byte >= 2), "seed {seed}");
            lost += usize::from(left.contains(&2));
        }
        assert!(lost > 0, "the second write was not covered");
    }

    #[test]
    fn names_are_durable_after_the_directory_is() {
        let (mut gone, mut kept) = (0, 0);
        for seed in 0..32 {
            let (mut sim, _) = prepared(seed);
            assert!(run(&mut sim, Op::Rename { from: "/a".into(), to: "/b".into() }).is_ok());
            let has_it = |sim: &Sim| sim.disk.list("/".as_ref()).iter().any(|(name, _)| name == "b");
            sim = sim.kill();
            assert!(has_it(&sim), "a kill loses no names");
            match has_it(&sim.power_cut(seed)) {
                true => kept += 1,
                false => gone += 1,
            }
        }
        assert!(gone > 0 && kept > 0, "gone {gone}, kept {kept}");
    }

    #[test]
    fn one_seed_twice_is_the_same_run() {
        let run = |seed| {
            let (mut sim, file) = prepared(seed);
            sim.faults = Faults { write: 200, short: 200, sync: 200, ..Faults::default() };
            let mut done = Vec::new();
            for number in 0..100 {
                let bytes = Bytes::from(vec![number as u8; 4096]);
                let op = Op::Write { file, at: number % 2 * 4096, bytes, durable: number % 3 == 0 };
                let op = if number % 7 == 0 { Op::Sync { file } } else { op };
                sim.submit(Tag(number), op).expect("a slot");
                sim.drive(None, &mut done);
            }
            format!("{done:?} {:?}", content(&mut sim.power_cut(seed), "/a"))
        };
        assert_eq!(run(3), run(3));
        assert_ne!(run(3), run(4));
    }

    #[test]
    fn sockets_are_pipes_in_pieces() {
        let mut sim = Sim::new(1);
        let listener = sim.listen();
        sim.submit(Tag(1), Op::Accept { listener }).expect("a slot");
        let client = sim.connect(listener);
        let mut done = Vec::new();
        sim.drive(None, &mut done);
        let socket = match done.remove(0).outcome {
            Ok(Outcome::Accepted { socket, .. }) => socket,
            other => panic!("{other:?}"),
        };
        sim.submit(Tag(2), Op::Receive { socket }).expect("a slot");
        let sent: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        sim.send(client, &sent);
        sim.hang_up(client);
        let mut received = Vec::new();
        loop {
            sim.drive(None, &mut done);
            let Some(last) = done.pop() else { continue };
            match last.outcome {
                Ok(Outcome::Received(piece)) if piece.is_empty() => break,
                Ok(Outcome::Received(piece)) => received.extend_from_slice(&piece),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(received, sent);
        let pieces = Pieces::from_elem(Bytes::from_static(b"late"), 1);
        assert!(matches!(run(&mut sim, Op::Send { socket, pieces }), Err(Fault(libc::EPIPE))));
    }
}
