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

use crate::format::BLOCK_BYTES;
use crate::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, Tag};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a disk writes whole or not at all. Bytes.
const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = BLOCK_BYTES as usize;
static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
/// Operations taken and not completed; more are given back, as the ring does.
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
    File { file: usize, how: OpenHow },
    Listener { accept: Option<Tag>, waiting: VecDeque<Handle> },
    Socket(Socket),
}

#[derive(Debug, Default)]
struct Socket {
    receive: Option<Tag>,
    /// From the client, and to it.
    inbox: VecDeque<u8>,
    outbox: Vec<u8>,
    hung_up: bool,
    shut: bool,
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
    /// With the number of completed effects when each was submitted.
    flying: Vec<(u64, Tag, Op)>,
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
            flying: Vec::new(),
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

    /// How many operations on files were submitted and did not complete.
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// The process dies: its files are closed, its operations in flight did part of their work, and what it
    /// had written is still there. What is left of this simulator is an empty one.
    pub fn kill(&mut self) -> Sim {
        for (_, _, op) in std::mem::take(&mut self.flying) {
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
        for (_, _, op) in std::mem::take(&mut self.flying) {
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
            socket.inbox.extend(bytes);
        }
    }

    /// The client takes what was sent to it so far; `None` once the connection is closed and nothing is left.
    pub fn take(&mut self, client: Handle) -> Option<Vec<u8>> {
        let Some(Object::Socket(socket)) = self.objects.get_mut(&client) else { return None };
        (!socket.shut || !socket.outbox.is_empty()).then(|| std::mem::take(&mut socket.outbox))
    }

    /// The client closes its end.
    pub fn hang_up(&mut self, client: Handle) {
        if let Some(Object::Socket(socket)) = self.objects.get_mut(&client) {
            socket.hung_up = true;
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
        let end = file.length.min(at + u64::from(length));
        let mut out = vec![0; end.saturating_sub(at) as usize];
        for (page, version) in file.pages.range(at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES).max(at / BLOCK_BYTES)) {
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

    /// What sockets have to tell, in the order of their handles.
    fn serve(&mut self, done: &mut Vec<Done>) {
        let random = &mut self.random;
        let mut accepted = Vec::new();
        for object in self.objects.values_mut() {
            match object {
                Object::Listener { accept: Some(tag), waiting } => {
                    accepted.extend(waiting.drain(..).map(|socket| (*tag, socket)));
                }
                Object::Socket(socket) => {
                    let Some(tag) = socket.receive else { continue };
                    let end = socket.hung_up || socket.shut;
                    if socket.inbox.is_empty() && !end || !random.chance(self.haste.max(1)) {
                        continue;
                    }
                    if !socket.inbox.is_empty() && random.chance(self.faults.receive) {
                        socket.receive = None;
                        done.push(Done { tag, more: false, outcome: Err(Fault(libc::ENOBUFS)) });
                        continue;
                    }
                    let count = socket.inbox.len().min(1 + random.below(16 << 10) as usize);
                    let piece: Vec<u8> = socket.inbox.drain(..count).collect();
                    let more = !piece.is_empty();
                    if !more {
                        socket.receive = None;
                    }
                    done.push(Done { tag, more, outcome: Ok(Outcome::Received(piece.into())) });
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

    fn cancel(&mut self, tag: Tag) -> Vec<Done> {
        let mut ended = self.flying.iter().position(|(_, other, _)| *other == tag).map(|index| {
            self.flying.remove(index);
        });
        for object in self.objects.values_mut() {
            match object {
                Object::Listener { accept: armed, .. } | Object::Socket(Socket { receive: armed, .. }) => {
                    ended = ended.or(armed.take_if(|other| *other == tag).map(|_| ()));
                }
                Object::File { .. } => {}
            }
        }
        let ended = ended.map(|()| Done { tag, more: false, outcome: Err(Fault(libc::ECANCELED)) });
        ended.into_iter().collect()
    }
}

impl Io for Sim {
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        match (&op, &mut self.objects) {
            (Op::Accept { listener: handle } | Op::Receive { socket: handle }, objects) => {
                match objects.get_mut(handle) {
                    Some(Object::Listener { accept: armed, .. } | Object::Socket(Socket { receive: armed, .. })) => {
                        assert!(armed.is_none(), "{op:?} is armed already");
                        *armed = Some(tag);
                    }
                    other => panic!("{op:?} on {other:?}"),
                }
            }
            _ if self.flying.len() == SLOTS => return Err(op),
            _ => self.flying.push((self.effects, tag, op)),
        }
        Ok(())
    }

    fn drive(&mut self, _wait: Option<Duration>, done: &mut Vec<Done>) {
        let haste = self.haste.max(1);
        let count = (0..self.flying.len()).filter(|_| self.random.chance(haste)).count();
        for _ in 0..count {
            if self.flying.is_empty() {
                break; // a cancelled one was the last
            }
            let index = self.random.below(self.flying.len() as u64) as usize;
            let (submitted, tag, op) = self.flying.swap_remove(index);
            let outcome = match op {
                Op::Cancel { tag } => {
                    done.extend(self.cancel(tag));
                    Ok(Outcome::Nothing)
                }
                Op::Send { socket, pieces } => match self.deliver(socket, &pieces) {
                    Some(outcome) => outcome,
                    None => {
                        self.flying.push((submitted, tag, Op::Send { socket, pieces }));
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
        self.serve(done);
    }

    /// Nothing: it never waits.
    fn wake(&mut self, _core: usize) {}
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
        let pieces = vec![Bytes::from_static(b"late")];
        assert!(matches!(run(&mut sim, Op::Send { socket, pieces }), Err(Fault(libc::EPIPE))));
    }
}
