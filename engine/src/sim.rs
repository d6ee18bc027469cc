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

use crate::format::{BLOCK_BYTES, crc32c};
use crate::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
use bytes::{Bytes, BytesMut};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// What a disk writes whole or not at all. Bytes.
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// What most reads of a recovery give. Nobody writes to it, so it takes no memory.
static BLANK: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; 4 << 20]));
/// Operations of one core taken and not completed; more are given back, as the ring does.
const SLOTS: usize = 256;
/// Bytes sent and not received by the client, beyond which a send waits.
const WINDOW_BYTES: usize = 256 << 10;

/// A small random number generator (SplitMix64): the whole of a run comes from its seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.bits() % end
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            piece.copy_from_slice(&self.bits().to_be_bytes()[..piece.len()]);
        }
    }

    /// True so many times in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }
}

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

type Page = Option<Arc<[u8; PAGE_BYTES]>>;

/// A file by pages; one that is missing is zero.
#[derive(Clone, Debug, Default)]
struct File {
    /// What a read gives.
    pages: BTreeMap<u64, Page>,
    length: u64,
    /// What a power cut leaves for sure.
    kept: BTreeMap<u64, Page>,
    kept_length: u64,
    /// Newer versions of pages that are not durable, oldest first, numbered in the order of completion.
    pending: BTreeMap<u64, Vec<(u64, Page)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

/// A change of a directory that is not durable.
#[derive(Clone, Debug)]
struct Change {
    number: u64,
    directory: PathBuf,
    gone: Option<PathBuf>,
    new: Option<(PathBuf, Node)>,
}

#[derive(Debug)]
enum Object {
    File {
        file: usize,
        how: OpenHow,
    },
    /// What is armed is of one core.
    Listener {
        accept: Option<(usize, Tag)>,
        waiting: VecDeque<Handle>,
    },
    Socket(Socket),
}

#[derive(Debug, Default)]
struct Socket {
    receive: Option<(usize, Tag)>,
    /// From the client, and to it.
    inbox: BytesMut,
    outbox: BytesMut,
    hung_up: bool,
    /// The connection broke: there is no orderly end behind what was received.
    broken: bool,
    shut: bool,
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
    files: Vec<File>,
    names: BTreeMap<PathBuf, Node>,
    kept_names: BTreeMap<PathBuf, Node>,
    changes: Vec<Change>,
    objects: BTreeMap<Handle, Object>,
    handles: i32,
    rings: Vec<Ring>,
    effects: u64,
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
            files: Vec::new(),
            names: BTreeMap::new(),
            kept_names: BTreeMap::new(),
            changes: Vec::new(),
            objects: BTreeMap::new(),
            handles: 2,
            rings: vec![Ring::default()],
            effects: 0,
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
        let armed = |armed: &Option<(usize, Tag)>| armed.is_some_and(|(other, _)| other == core);
        ring.woken
            || self.now_ms >= ring.until_ms
            || ring.flights.iter().any(|flight| !self.is_stuck(&flight.op))
            || self.objects.values().any(|object| match object {
                Object::Listener { accept, waiting } => armed(accept) && !waiting.is_empty(),
                Object::Socket(socket) => armed(&socket.receive) && socket.has_news(),
                Object::File { .. } => false,
            })
    }

    /// When this core goes on if nothing happens, in ms.
    pub fn until_ms(&self, core: usize) -> u64 {
        self.rings.get(core).map_or(0, |ring| ring.until_ms)
    }

    /// How many drives of this core in a row would not have waited and brought nothing: a loop that spins.
    pub fn idle(&self, core: usize) -> u32 {
        self.rings.get(core).map_or(0, |ring| ring.idle)
    }

    /// A send that waits for its client.
    fn is_stuck(&self, op: &Op) -> bool {
        let Op::Send { socket, .. } = op else { return false };
        match self.objects.get(socket) {
            Some(Object::Socket(socket)) => {
                !socket.shut && !socket.hung_up && !socket.broken && socket.outbox.len() >= WINDOW_BYTES
            }
            _ => false,
        }
    }

    /// The process dies: its files are closed, its operations in flight did part of their work, and what it
    /// had written is still there. What is left of this simulator is an empty one.
    pub fn kill(&mut self) -> Sim {
        for op in self.abandon() {
            if let Op::Write { file, at, bytes, .. } = op {
                let part = self.random.below(bytes.len() as u64 / BLOCK_BYTES + 1) * BLOCK_BYTES;
                let part = if self.random.chance(500) { bytes.len() as u64 } else { part };
                self.write(file, at, &bytes[..part as usize], false);
            }
        }
        self.reborn()
    }

    /// The power goes: as [`kill`](Sim::kill), and of what is not durable any part is lost.
    pub fn power_cut(&mut self, seed: u64) -> Sim {
        let mut random = Random::new(seed);
        for op in self.abandon() {
            if let Op::Write { file, at, bytes, .. } = op {
                self.write(file, at, &bytes, false);
            }
        }
        // Some cuts lose all that can be lost, some nothing, most a part.
        let kept = [0, 1000, 500, 900, 100][random.below(5) as usize];
        for file in &mut self.files {
            for (page, versions) in std::mem::take(&mut file.pending) {
                let mut sectors = *image(&file.kept.get(&page).cloned().flatten());
                for at in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
                    if !random.chance(kept) {
                        continue;
                    }
                    let (_, version) = &versions[random.below(versions.len() as u64) as usize];
                    sectors[at..at + SECTOR_BYTES].copy_from_slice(&image(version)[at..at + SECTOR_BYTES]);
                }
                file.kept.insert(page, pack(&sectors));
            }
            file.pages = file.kept.clone();
            if random.chance(kept) {
                file.kept_length = file.length;
            }
            file.length = file.kept_length;
        }
        let survive = random.below(self.changes.len() as u64 + 1) as usize;
        for change in self.changes.drain(..).take(survive) {
            change.apply(&mut self.kept_names);
        }
        let all = self.kept_names.clone();
        let reachable = |path: &Path| path.ancestors().skip(1).all(|above| is_root(above) || all.contains_key(above));
        self.kept_names.retain(|path, _| reachable(path));
        self.names = self.kept_names.clone();
        self.reborn()
    }

    /// All that is in the kernel when the process ends.
    fn abandon(&mut self) -> Vec<Op> {
        let flights = self.rings.iter_mut().flat_map(|ring| std::mem::take(&mut ring.flights));
        flights.inspect(Flight::check).map(|flight| flight.op).collect()
    }

    /// Another machine with the same disk: what is done to one is not done to the other. Nothing may be in
    /// the kernel.
    pub fn twin(&mut self) -> Sim {
        assert_eq!(self.flying(), 0, "a disk in use cannot be copied");
        let mut sim = Sim::new(self.random.bits());
        (sim.now_ms, sim.faults, sim.space) = (self.now_ms, self.faults, self.space);
        (sim.haste, sim.direct, sim.effects) = (self.haste, self.direct, self.effects);
        sim.files.clone_from(&self.files);
        sim.names.clone_from(&self.names);
        sim.kept_names.clone_from(&self.kept_names);
        sim.changes.clone_from(&self.changes);
        sim
    }

    /// Flips one bit of what a file holds, in a sector that is not all zeros, or lies beside one. Returns where;
    /// `None`: all files are empty.
    pub fn rot(&mut self, seed: u64) -> Option<(PathBuf, u64)> {
        let mut random = Random::new(seed);
        let held = |file: usize| self.files[file].pages.iter().filter(|(_, page)| page.is_some());
        let places: Vec<(PathBuf, usize, u64)> = self
            .names
            .iter()
            .filter_map(|(path, node)| match node {
                Node::File(file) => Some((path, *file)),
                Node::Directory => None,
            })
            .flat_map(|(path, file)| held(file).map(move |(page, _)| (path.clone(), file, *page)))
            .collect();
        if places.is_empty() {
            return None;
        }
        let (path, file, page) = places[random.below(places.len() as u64) as usize].clone();
        let mut bytes = *image(&self.files[file].pages.get(&page).cloned().flatten());
        // Pages of small batches are mostly zeros: half of the flips go where something is.
        let filled: Vec<usize> = (0..PAGE_BYTES).filter(|at| bytes[*at] != 0).collect();
        let anywhere = random.below(PAGE_BYTES as u64) as usize;
        let at = if random.chance(500) { anywhere } else { filled[random.below(filled.len() as u64) as usize] };
        bytes[at] ^= 1 << random.below(8);
        let file = &mut self.files[file];
        file.pages.insert(page, pack(&bytes));
        file.kept.insert(page, pack(&bytes));
        file.pending.remove(&page);
        Some((path, page * BLOCK_BYTES + at as u64))
    }

    fn reborn(&mut self) -> Sim {
        let mut sim = Sim::new(self.random.bits());
        (sim.now_ms, sim.faults, sim.space) = (self.now_ms, self.faults, self.space);
        (sim.haste, sim.direct, sim.effects) = (self.haste, self.direct, self.effects);
        sim.files = std::mem::take(&mut self.files);
        sim.names = std::mem::take(&mut self.names);
        sim.kept_names = std::mem::take(&mut self.kept_names);
        sim.changes = std::mem::take(&mut self.changes);
        self.objects.clear();
        sim
    }

    /// A listener, as the process would have bound it.
    pub fn listen(&mut self) -> Handle {
        self.object(Object::Listener { accept: None, waiting: VecDeque::new() })
    }

    /// A client connects. It is named by the socket on the process's side.
    pub fn connect(&mut self, listener: Handle) -> Handle {
        let socket = self.object(Object::Socket(Socket::default()));
        match self.objects.get_mut(&listener) {
            Some(Object::Listener { waiting, .. }) => waiting.push_back(socket),
            other => panic!("{other:?} is no listener"),
        }
        socket
    }

    /// The client sends. What it sends on a closed connection is lost.
    pub fn send(&mut self, client: Handle, bytes: &[u8]) {
        if let Some(Object::Socket(socket)) = self.objects.get_mut(&client) {
            socket.inbox.extend_from_slice(bytes);
        }
    }

    /// The client takes what was sent to it so far, at most so many bytes; `None` once the connection is closed
    /// and nothing is left.
    pub fn take(&mut self, client: Handle, bytes_max: usize) -> Option<Bytes> {
        let Some(Object::Socket(socket)) = self.objects.get_mut(&client) else { return None };
        let count = socket.outbox.len().min(bytes_max);
        (!socket.shut || !socket.outbox.is_empty()).then(|| socket.outbox.split_to(count).freeze())
    }

    /// The client closes its end, behind all that it has sent.
    pub fn hang_up(&mut self, client: Handle) {
        if let Some(Object::Socket(socket)) = self.objects.get_mut(&client) {
            socket.hung_up = true;
        }
    }

    /// The network breaks: of what the client has sent and the process has not received, any part is lost, and
    /// nothing reaches the client any more.
    pub fn cut(&mut self, client: Handle) {
        if let Some(Object::Socket(socket)) = self.objects.get_mut(&client) {
            let kept = self.random.below(socket.inbox.len() as u64 + 1) as usize;
            socket.inbox.truncate(kept);
            socket.outbox.clear();
            (socket.hung_up, socket.broken) = (true, self.random.chance(500));
        }
    }

    fn object(&mut self, object: Object) -> Handle {
        self.handles += 1;
        self.objects.insert(Handle(self.handles), object);
        Handle(self.handles)
    }

    fn file(&self, handle: Handle) -> Result<(usize, OpenHow), Fault> {
        match self.objects.get(&handle) {
            Some(Object::File { file, how }) => Ok((*file, *how)),
            _ => Err(Fault(libc::EBADF)),
        }
    }

    // -- files ----------------------------------------------------------------------------------

    fn fault(&mut self, per_mille: u32) -> Result<(), Fault> {
        if !self.random.chance(per_mille) {
            return Ok(());
        }
        Err(Fault(if self.random.chance(500) { libc::EIO } else { libc::ENOSPC }))
    }

    /// An operation on a file has its effect.
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
            Op::Open { path, how } => self.open(path, how),
            Op::Write { file, at, bytes, durable } => self.perform_write(file, at, &bytes, durable),
            Op::Read { file, at, length } => self.read(file, at, length),
            Op::Sync { file } => self.sync(file, submitted),
            Op::Allocate { file, length } => {
                let (file, _) = self.file(file)?;
                let more = length.saturating_sub(self.files[file].length);
                if more > self.available() {
                    return Err(Fault(libc::ENOSPC));
                }
                self.files[file].length += more;
                Ok(Outcome::Nothing)
            }
            Op::Truncate { file, length } => {
                // Only files of no use are cut: nobody asks what a power cut leaves of them.
                let (file, _) = self.file(file)?;
                let file = &mut self.files[file];
                file.length = length;
                file.kept_length = length;
                let page = length.div_ceil(BLOCK_BYTES);
                file.pages.split_off(&page);
                file.kept.split_off(&page);
                file.pending.split_off(&page);
                Ok(Outcome::Nothing)
            }
            Op::Rename { from, to } => {
                let node = *self.names.get(&from).ok_or(Fault(libc::ENOENT))?;
                self.change(Some(from), Some((to, node)));
                Ok(Outcome::Nothing)
            }
            Op::Remove { path } => match self.names.get(&path) {
                Some(Node::File(_)) => {
                    self.change(Some(path), None);
                    Ok(Outcome::Nothing)
                }
                Some(Node::Directory) => Err(Fault(libc::EISDIR)),
                None => Err(Fault(libc::ENOENT)),
            },
            Op::CreateDirectory { path } => {
                let missing = |above: &&Path| !is_root(above) && !self.names.contains_key(*above);
                let missing: Vec<PathBuf> = path.ancestors().filter(missing).map(Path::to_path_buf).collect();
                for path in missing.into_iter().rev() {
                    self.change(None, Some((path, Node::Directory)));
                }
                Ok(Outcome::Nothing)
            }
            Op::SyncDirectory { path } => {
                if !is_root(&path) && self.names.get(&path) != Some(&Node::Directory) {
                    return Err(Fault(libc::ENOENT));
                }
                for change in std::mem::take(&mut self.changes) {
                    if change.directory == path && change.number <= submitted {
                        change.apply(&mut self.kept_names);
                    } else {
                        self.changes.push(change);
                    }
                }
                Ok(Outcome::Nothing)
            }
            Op::List { path } => {
                let inside = self.names.iter().filter(|(name, _)| name.parent() == Some(&path));
                let files = inside.filter_map(|(name, node)| match node {
                    Node::File(file) => {
                        Some((name.file_name()?.to_string_lossy().into_owned(), self.files[*file].length))
                    }
                    Node::Directory => None,
                });
                Ok(Outcome::Names(files.collect()))
            }
            Op::Space { .. } => Ok(Outcome::Space { available: self.available(), total: self.space }),
            other => unreachable!("{other:?} is not an operation on a file"),
        }
    }

    fn open(&mut self, path: PathBuf, how: OpenHow) -> Result<Outcome, Fault> {
        if how.direct && !self.direct {
            return Err(Fault(libc::EINVAL));
        }
        let file = match self.names.get(&path) {
            Some(Node::File(file)) => *file,
            Some(Node::Directory) => return Err(Fault(libc::EISDIR)),
            None if !how.create => return Err(Fault(libc::ENOENT)),
            None => {
                self.files.push(File::default());
                let file = self.files.len() - 1;
                self.change(None, Some((path, Node::File(file))));
                file
            }
        };
        Ok(Outcome::Opened(self.object(Object::File { file, how })))
    }

    fn change(&mut self, gone: Option<PathBuf>, new: Option<(PathBuf, Node)>) {
        self.effects += 1;
        let path = gone.as_deref().or(new.as_ref().map(|(path, _)| &**path)).expect("a change has a path");
        let directory = path.parent().unwrap_or(Path::new("/")).to_path_buf();
        let change = Change { number: self.effects, directory, gone, new };
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn available(&self) -> u64 {
        let used = self.names.values().map(|node| match node {
            Node::File(file) => self.files[*file].length,
            Node::Directory => 0,
        });
        self.space.saturating_sub(used.sum())
    }

    fn perform_write(&mut self, handle: Handle, at: u64, bytes: &[u8], durable: bool) -> Result<Outcome, Fault> {
        let (file, how) = self.file(handle)?;
        if how.read_only {
            return Err(Fault(libc::EBADF));
        }
        let whole = at.is_multiple_of(BLOCK_BYTES) && bytes.len().is_multiple_of(PAGE_BYTES);
        if !whole || at + bytes.len() as u64 > self.files[file].length {
            return Err(Fault(libc::EINVAL));
        }
        if let Err(fault) = self.fault(self.faults.write) {
            for page in (0..bytes.len()).step_by(PAGE_BYTES) {
                if self.random.chance(500) {
                    self.write(handle, at + page as u64, &bytes[page..page + PAGE_BYTES], false);
                }
            }
            return Err(fault);
        }
        if self.random.chance(self.faults.short) {
            let part = self.random.below((bytes.len() / PAGE_BYTES) as u64) as usize * PAGE_BYTES;
            self.write(handle, at, &bytes[..part], durable);
            return Ok(Outcome::Count(part));
        }
        self.write(handle, at, bytes, durable);
        Ok(Outcome::Count(bytes.len()))
    }

    fn write(&mut self, handle: Handle, at: u64, bytes: &[u8], durable: bool) {
        self.effects += 1;
        let Ok((file, _)) = self.file(handle) else { return };
        let file = &mut self.files[file];
        for (page, bytes) in (at / BLOCK_BYTES..).zip(bytes.chunks_exact(PAGE_BYTES)) {
            let version = pack(bytes);
            file.pages.insert(page, version.clone());
            if durable {
                file.pending.remove(&page);
                file.kept.insert(page, version);
                file.kept_length = file.length;
            } else {
                file.pending.entry(page).or_default().push((self.effects, version));
            }
        }
    }

    fn read(&mut self, handle: Handle, at: u64, length: u32) -> Result<Outcome, Fault> {
        let (file, how) = self.file(handle)?;
        let file = &self.files[file];
        if how.direct && !(at.is_multiple_of(BLOCK_BYTES) && u64::from(length).is_multiple_of(BLOCK_BYTES)) {
            return Err(Fault(libc::EINVAL));
        }
        let end = file.length.min(at + u64::from(length)).max(at);
        let mut held = file.pages.range(at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).peekable();
        while held.next_if(|(_, version)| version.is_none()).is_some() {}
        if held.peek().is_none() && end - at <= BLANK.len() as u64 {
            return Ok(Outcome::Read(BLANK.slice(..(end - at) as usize)));
        }
        let mut out = vec![0; (end - at) as usize];
        for (page, version) in held {
            let Some(version) = version else { continue };
            let (from, to) = ((page * BLOCK_BYTES).max(at), (page * BLOCK_BYTES + BLOCK_BYTES).min(end));
            let inside = &version[(from - page * BLOCK_BYTES) as usize..(to - page * BLOCK_BYTES) as usize];
            out[(from - at) as usize..(to - at) as usize].copy_from_slice(inside);
        }
        Ok(Outcome::Read(Bytes::from(out)))
    }

    fn sync(&mut self, handle: Handle, submitted: u64) -> Result<Outcome, Fault> {
        let (file, _) = self.file(handle)?;
        let failed = self.fault(self.faults.sync);
        let file = &mut self.files[file];
        file.pending.retain(|page, versions| {
            let covered = versions.partition_point(|(number, _)| *number <= submitted);
            if covered > 0 && (failed.is_ok() || self.random.chance(500)) {
                let (_, version) = versions.drain(..covered).next_back().expect("there is one");
                file.kept.insert(*page, version);
            }
            !versions.is_empty()
        });
        failed?;
        file.kept_length = file.length;
        Ok(Outcome::Nothing)
    }

    // -- connections ----------------------------------------------------------------------------

    /// What sockets have to tell a core, in the order of their handles.
    fn serve(&mut self, core: usize, done: &mut Vec<Done>) {
        let random = &mut self.random;
        let mut accepted = Vec::new();
        for object in self.objects.values_mut() {
            match object {
                Object::Listener { accept: Some((owner, tag)), waiting } if *owner == core => {
                    accepted.extend(waiting.drain(..).map(|socket| (*tag, socket)));
                }
                Object::Socket(socket) => {
                    let Some((_, tag)) = socket.receive.filter(|(owner, _)| *owner == core) else { continue };
                    if !socket.has_news() || !random.chance(self.haste.max(1)) {
                        continue;
                    }
                    if !socket.inbox.is_empty() && random.chance(self.faults.receive) {
                        socket.receive = None;
                        done.push(Done { tag, more: false, outcome: Err(Fault(libc::ENOBUFS)) });
                        continue;
                    }
                    if socket.inbox.is_empty() && socket.broken {
                        socket.receive = None;
                        done.push(Done { tag, more: false, outcome: Err(Fault(libc::ECONNRESET)) });
                        continue;
                    }
                    let count = socket.inbox.len().min(1 + random.below(16 << 10) as usize);
                    let piece = socket.inbox.split_to(count).freeze();
                    let more = !piece.is_empty();
                    if !more {
                        socket.receive = None;
                    }
                    done.push(Done { tag, more, outcome: Ok(Outcome::Received(piece)) });
                }
                Object::Listener { .. } | Object::File { .. } => {}
            }
        }
        done.extend(accepted.into_iter().map(|(tag, socket)| {
            let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + (socket.0 % 50_000) as u16));
            Done { tag, more: true, outcome: Ok(Outcome::Accepted { socket, peer }) }
        }));
    }

    /// `None`: not yet.
    fn deliver(&mut self, socket: Handle, pieces: &[Bytes]) -> Option<Result<Outcome, Fault>> {
        let Some(Object::Socket(socket)) = self.objects.get_mut(&socket) else {
            return Some(Err(Fault(libc::EBADF)));
        };
        if socket.hung_up || socket.shut {
            return Some(Err(Fault(libc::EPIPE)));
        }
        if socket.outbox.len() >= WINDOW_BYTES {
            return None;
        }
        pieces.iter().for_each(|piece| socket.outbox.extend_from_slice(piece));
        Some(Ok(Outcome::Nothing))
    }

    fn cancel(&mut self, core: usize, tag: Tag) -> Option<Done> {
        let flights = &mut self.rings[core].flights;
        let mut ended = flights.iter().position(|flight| flight.tag == tag).map(|index| {
            flights.remove(index);
        });
        for object in self.objects.values_mut() {
            match object {
                Object::Listener { accept: armed, .. } | Object::Socket(Socket { receive: armed, .. }) => {
                    ended = ended.or(armed.take_if(|other| *other == (core, tag)).map(|_| ()));
                }
                Object::File { .. } => {}
            }
        }
        ended.map(|()| Done { tag, more: false, outcome: Err(Fault(libc::ECANCELED)) })
    }

    // -- the wall -----------------------------------------------------------------------------------

    fn ring(&mut self, core: usize) -> &mut Ring {
        if self.rings.len() <= core {
            self.rings.resize_with(core + 1, Ring::default);
        }
        &mut self.rings[core]
    }

    fn submit_of(&mut self, core: usize, tag: Tag, op: Op) -> Result<(), Op> {
        if let Op::Accept { listener: handle } | Op::Receive { socket: handle } = &op {
            match self.objects.get_mut(handle) {
                Some(Object::Listener { accept: armed, .. } | Object::Socket(Socket { receive: armed, .. })) => {
                    assert!(armed.is_none(), "{op:?} is armed already");
                    *armed = Some((core, tag));
                }
                other => panic!("{op:?} on {other:?}"),
            }
            return Ok(());
        }
        let submitted = self.effects;
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
                Op::Send { socket, pieces } => match self.deliver(socket, &pieces) {
                    Some(outcome) => outcome,
                    None => {
                        let op = Op::Send { socket, pieces };
                        self.rings[core].flights.push(Flight { submitted, tag, op, sum });
                        continue;
                    }
                },
                Op::Shutdown { socket } => match self.objects.get_mut(&socket) {
                    Some(Object::Socket(socket)) => {
                        socket.shut = true;
                        Ok(Outcome::Nothing)
                    }
                    _ => Err(Fault(libc::EBADF)),
                },
                Op::Close { handle } => match self.objects.get_mut(&handle) {
                    // The client may still take what was sent.
                    Some(Object::Socket(socket)) => {
                        socket.shut = true;
                        Ok(Outcome::Nothing)
                    }
                    Some(_) => {
                        self.objects.remove(&handle);
                        Ok(Outcome::Nothing)
                    }
                    None => Err(Fault(libc::EBADF)),
                },
                op => self.perform(submitted, op),
            };
            done.push(Done { tag, more: false, outcome });
        }
        self.serve(core, done);
        let wait_ms = wait.map_or(u64::MAX, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let now_ms = self.now_ms;
        let ring = &mut self.rings[core];
        let came = std::mem::take(&mut ring.woken) || done.len() > before;
        // What came gives the loop something to do, after which it may wait for something else.
        ring.until_ms = if came { now_ms } else { now_ms.saturating_add(wait_ms) };
        ring.idle = if came || wait_ms > 0 { 0 } else { ring.idle + 1 };
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

impl Socket {
    fn has_news(&self) -> bool {
        !self.inbox.is_empty() || self.hung_up || self.shut
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

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        if let Some(path) = &self.gone {
            names.remove(path);
        }
        if let Some((path, node)) = &self.new {
            names.insert(path.clone(), *node);
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none()
}

fn image(page: &Page) -> &[u8; PAGE_BYTES] {
    page.as_deref().unwrap_or(&ZEROS)
}

fn pack(bytes: &[u8]) -> Page {
    (*bytes != ZEROS).then(|| Arc::new(bytes.try_into().expect("a whole page")))
}

#[cfg(test)]
mod tests {
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
            sim.perform_write(file, 0, &bytes, false).expect("no fault is planned");
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
            let killed = sim.kill();
            assert!(killed.names.contains_key(Path::new("/b")), "a kill loses no names");
            sim = killed;
            match sim.power_cut(seed).names.contains_key(Path::new("/b")) {
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
