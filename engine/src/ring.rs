//! The kernel's side of the wall: one io_uring for sockets and disk, driven by one thread.
//!
//! Why the `unsafe` here is sound, for all of the file: an operation's memory (its bytes, its path,
//! its message header) lies on the heap and belongs to the operation's [`Slot`]. A slot is emptied
//! only when its last completion was reaped, and `drop` cancels everything and reaps until no slot
//! is left in the kernel. So no memory dies, moves or is reused under the kernel's hands.

#![allow(unsafe_code, reason = "the wall to the kernel: operations own their memory, see above")]

use crate::buffer::{Aligned, GROUP, ReceiveBuffers, Region};
use crate::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, PIECES_MAX, Pieces, Tag};
use crate::kernel::{self, explain};
use crate::wake::Waker;
use bytes::{Buf, Bytes};
use io_uring::types::{CancelBuilder, Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most one entry carries; the kernel's own bound is a page below 2 GiB.
const ENTRY_BYTES_MAX: usize = 1 << 30;
/// The kernel's bound on one registered buffer.
const REGISTERED_BYTES_MAX: usize = 1 << 30;
/// Entries that belong to no slot.
const WAKE: u64 = u64::MAX;
const CANCEL_ALL: u64 = u64::MAX - 1;
/// How long `drop` waits before it cancels what is left once more.
const CANCEL_RETRY: Duration = Duration::from_millis(10);

/// What a ring is made of.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Operations taken and not yet completed. 4096 (8 to 65536). None free: `submit` gives back.
    pub slots: u32,
    /// Entries of the submission queue. 1024 (8 to 32768). The completion queue has four times as many.
    pub entries: u32,
    /// Buffers that receives share. 256 (1 to 32768, a power of two).
    pub receive_count: u16,
    /// The size of each. 16384 (4096 to 1 MiB, a multiple of 4096).
    pub receive_bytes: u32,
    /// How long [`drive`](Io::drive) looks for completions before it sleeps. Zero: it sleeps at once. Sleeping
    /// and waking take some ten microseconds each; looking takes the CPU, and no system call.
    pub busy_poll: Duration,
    /// Regions whose writes skip the mapping of pages: registered with the kernel, which pins them.
    pub regions: Vec<Arc<Region>>,
    /// A file that the kernel keeps open until it has done all operations of this ring. After `kill -9` those go on for
    /// as long as the disk takes: whoever waits for the lock (`flock`) on this file sees none of them land later.
    pub kept: Option<Arc<File>>,
}

impl Default for RingConfig {
    fn default() -> RingConfig {
        RingConfig {
            slots: 4096,
            entries: 1024,
            receive_count: 256,
            receive_bytes: 16 * 1024,
            busy_poll: Duration::ZERO,
            regions: Vec::new(),
            kept: None,
        }
    }
}

impl RingConfig {
    fn check(&self) -> io::Result<()> {
        let rules = [
            ((8..=65_536).contains(&self.slots), "slots: 8 to 65536"),
            ((8..=32_768).contains(&self.entries), "entries: 8 to 32768"),
            (
                (1..=32_768).contains(&self.receive_count) && self.receive_count.is_power_of_two(),
                "receive_count: a power of two, 1 to 32768",
            ),
            (
                (4096..=1 << 20).contains(&self.receive_bytes) && self.receive_bytes.is_multiple_of(4096),
                "receive_bytes: a multiple of 4096, 4096 to 1048576",
            ),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(io::Error::new(io::ErrorKind::InvalidInput, *rule)),
            None => Ok(()),
        }
    }
}

/// How busy a ring was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// System calls made to submit or wait.
    pub enters: u64,
    /// Completions taken from the kernel.
    pub completions: u64,
    /// Times that a receive found all provided buffers in use.
    pub starvations: u64,
}

/// One io_uring. It may be made on one thread and handed to another; from the first `drive` on it
/// belongs to the thread that made that call (the kernel refuses others).
pub struct Ring {
    uring: IoUring,
    started: bool,
    slots: Vec<Option<Slot>>,
    /// The tag of each slot, also of free ones: cancelling searches these alone, 32 KiB and not 400.
    tags: Vec<Tag>,
    free: Vec<u32>,
    /// Entries that did not fit the submission queue, in order. At most one for each slot.
    backlog: VecDeque<squeue::Entry>,
    /// What was done without the kernel's ring, to be told at the next `drive`. `submit` takes nothing
    /// more when there is one for each slot.
    ready: VecDeque<Done>,
    /// Slots of receives that found no buffer: armed again when one has come back.
    parked: Vec<u32>,
    /// Completions of this turn; kept for its memory.
    reaped: Vec<cqueue::Entry>,
    receive: ReceiveBuffers,
    /// Registered, in this order.
    registered: Vec<Arc<Region>>,
    truncates: bool,
    busy_poll: Duration,
    waker: Waker,
    wakers: Vec<Waker>,
    counters: Counters,
    notes: Vec<String>,
}

// SAFETY: the raw pointers inside (message headers, the queues' mappings) point to memory that the
// ring owns alone, wherever it moves. The kernel binds the ring to a thread only at the first `drive`.
unsafe impl Send for Ring {}

/// An operation in flight and what it owns until its last completion.
struct Slot {
    tag: Tag,
    /// It is to end: whatever would be submitted once more completes with `ECANCELED` instead.
    cancelled: bool,
    held: Held,
}

enum Held {
    Accept(Fd),
    Receive(Fd),
    Send {
        socket: Fd,
        bytes: Bytes,
    },
    SendPieces {
        socket: Fd,
        message: Box<Message>,
    },
    Shutdown(Fd),
    Close(Fd),
    /// The slot that is to be cancelled.
    Cancel(u32),
    Open {
        path: CString,
        how: OpenHow,
    },
    Write {
        file: Fd,
        at: u64,
        bytes: Bytes,
        durable: bool,
    },
    Read {
        file: Fd,
        at: u64,
        length: u32,
        memory: Aligned,
    },
    Sync(Fd),
    Allocate {
        file: Fd,
        length: u64,
    },
    Truncate {
        file: Fd,
        length: u64,
    },
    Rename {
        from: CString,
        to: CString,
    },
    Remove(CString),
    /// A directory is synced in two steps: open, then sync.
    OpenDirectory(CString),
    SyncDirectory(OwnedFd),
}

/// What `sendmsg` reads: a header, which points to vectors, which point into the pieces. It is boxed,
/// so none of the three moves.
struct Message {
    pieces: Pieces,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Ring {
    /// Makes a ring, its receive buffers, and registers `regions` as far as the limits allow (what did
    /// not work is said in [`notes`](Ring::notes), and then plain writes do the same).
    ///
    /// Fails with an error whose text names the setting to change: the kernel's version,
    /// `io_uring_disabled`, `RLIMIT_MEMLOCK`, a seccomp filter, or the field of `config`.
    pub fn new(config: RingConfig) -> io::Result<Ring> {
        config.check()?;
        kernel::check(&kernel::release())?;
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            // The thread that enables the ring, at its first `drive`, becomes the single issuer.
            .setup_r_disabled()
            .setup_cqsize(config.entries * 4)
            .build(config.entries)
            .map_err(explain)?;
        let waker = Waker::new(eventfd()?);
        let receive = ReceiveBuffers::new(&uring, config.receive_count, config.receive_bytes as usize, waker.clone())
            .map_err(explain)?;
        let mut notes = Vec::new();
        let registered = register(&uring, config.regions, &mut notes);
        if let Some(kept) = &config.kept {
            uring.submitter().register_files(&[kept.as_raw_fd()]).map_err(explain)?;
        }
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe).map_err(explain)?;
        let mut ring = Ring {
            uring,
            started: false,
            slots: (0..config.slots).map(|_| None).collect(),
            tags: vec![Tag(0); config.slots as usize],
            free: (0..config.slots).rev().collect(),
            backlog: VecDeque::new(),
            ready: VecDeque::new(),
            parked: Vec::new(),
            reaped: Vec::new(),
            receive,
            registered,
            truncates: probe.is_supported(opcode::Ftruncate::CODE),
            busy_poll: config.busy_poll,
            wakers: vec![waker.clone()],
            waker,
            counters: Counters::default(),
            notes,
        };
        ring.watch_waker();
        Ok(ring)
    }

    /// What wakes this ring's loop.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Tells which waker [`Io::wake`] means by which core. Before it, core 0 is this ring.
    pub fn connect(&mut self, wakers: Vec<Waker>) {
        self.wakers = wakers;
    }

    /// Takes an open socket or file, for example a listener. It is closed by [`Op::Close`] only.
    pub fn adopt(&self, descriptor: OwnedFd) -> Handle {
        Handle(descriptor.into_raw_fd())
    }

    /// What an operator should know at start: what could not be had, and what would give it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// How busy it was.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What is to be held for `op`, or what came of it if it is done on the spot.
    fn prepare(&mut self, op: Op) -> Result<Held, Result<Outcome, Fault>> {
        let held = match op {
            Op::Accept { listener } => Held::Accept(Fd(listener.0)),
            Op::Receive { socket } => Held::Receive(Fd(socket.0)),
            Op::Send { socket, mut pieces } => {
                pieces.retain(|piece| !piece.is_empty());
                let socket = Fd(socket.0);
                match pieces.len() {
                    0 => return Err(Ok(Outcome::Nothing)),
                    1 => Held::Send { socket, bytes: pieces.remove(0) },
                    2..=PIECES_MAX => Held::SendPieces { socket, message: Message::new(pieces) },
                    _ => return Err(Err(Fault(libc::EMSGSIZE))),
                }
            }
            Op::Shutdown { socket } => {
                self.end_parked(socket);
                Held::Shutdown(Fd(socket.0))
            }
            Op::Close { handle } => Held::Close(Fd(handle.0)),
            Op::Cancel { tag } => self.cancel(tag).map_err(|done| done.map(|()| Outcome::Nothing))?,
            Op::Open { path, how } => Held::Open { path: c_path(&path)?, how },
            Op::Write { file, at, bytes, durable } => Held::Write { file: Fd(file.0), at, bytes, durable },
            Op::Read { file, at, length } => {
                Held::Read { file: Fd(file.0), at, length, memory: Aligned::uninit(length as usize) }
            }
            Op::Sync { file } => Held::Sync(Fd(file.0)),
            Op::Allocate { file, length } => Held::Allocate { file: Fd(file.0), length },
            Op::Truncate { file, length } if self.truncates => Held::Truncate { file: Fd(file.0), length },
            Op::Truncate { file, length } => return Err(truncate(file, length)),
            Op::Rename { from, to } => Held::Rename { from: c_path(&from)?, to: c_path(&to)? },
            Op::Remove { path } => Held::Remove(c_path(&path)?),
            Op::SyncDirectory { path } => Held::OpenDirectory(c_path(&path)?),
            // Rare, at start and once a minute: not worth a state of their own in the kernel.
            Op::CreateDirectory { path } => {
                let made = fs::create_dir_all(path).map(|()| Outcome::Nothing);
                return Err(made.map_err(Fault::from));
            }
            Op::List { path } => return Err(kernel::list(&path).map(Outcome::Names).map_err(Fault::from)),
            Op::Space { path } => {
                let space = |Disk { available, total }| Outcome::Space { available, total };
                return Err(Disk::of(&path).map(space).map_err(Fault::from));
            }
        };
        Ok(held)
    }

    /// Marks the operation with this tag. `Err`: the cancelling is already over.
    fn cancel(&mut self, tag: Tag) -> Result<Held, Result<(), Fault>> {
        let taken = |index: &usize| self.tags[*index] == tag && self.slots[*index].is_some();
        let index = (0..self.tags.len()).find(taken).ok_or(Err(Fault(libc::ENOENT)))?;
        self.slots[index].as_mut().expect("just found").cancelled = true;
        let index = index as u32;
        let Some(place) = self.parked.iter().position(|parked| *parked == index) else {
            return Ok(Held::Cancel(index));
        };
        self.unpark(place, Err(Fault(libc::ECANCELED)));
        Err(Ok(()))
    }

    /// A receive that waits for a buffer would not notice the end: whoever shuts down may hold them all.
    fn end_parked(&mut self, socket: Handle) {
        let waits = |index: &u32| match &self.slots[*index as usize] {
            Some(Slot { held: Held::Receive(Fd(number)), .. }) => *number == socket.0,
            _ => false,
        };
        if let Some(place) = self.parked.iter().position(waits) {
            self.unpark(place, Ok(Outcome::Received(Bytes::new())));
        }
    }

    /// Completes a receive that waits for a buffer.
    fn unpark(&mut self, place: usize, outcome: Result<Outcome, Fault>) {
        let index = self.parked.swap_remove(place);
        self.release(index);
        self.ready.push_back(Done { tag: self.tags[index as usize], more: false, outcome });
    }

    /// Queues the entry of what a slot holds: the first time, or to continue.
    fn enqueue(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("only taken slots are queued");
        let entry = slot.held.entry(&self.registered).user_data(u64::from(index));
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: an entry points only to the heap memory that its slot owns, or to nothing. See above.
        let fits = self.backlog.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok();
        if !fits {
            self.backlog.push_back(entry);
        }
    }

    /// The eventfd is never read: each write is an edge, and each edge completes the poll once.
    fn watch_waker(&mut self) {
        let poll = opcode::PollAdd::new(Fd(self.waker.event()), libc::POLLIN as u32).multi(true);
        self.push(poll.build().user_data(WAKE));
    }

    /// Gives the kernel what is queued and collects what is complete, waiting for the first one at
    /// most `wait`.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        if !self.started {
            self.uring.submitter().register_enable_rings()?;
            self.started = true;
        }
        while !self.backlog.is_empty() {
            let mut queue = self.uring.submission();
            while let Some(entry) = self.backlog.front() {
                // SAFETY: as in `push`.
                if unsafe { queue.push(entry) }.is_err() {
                    break;
                }
                self.backlog.pop_front();
            }
            drop(queue);
            if !self.backlog.is_empty() && !self.call(Some(Duration::ZERO))? {
                return Ok(()); // The completion queue must be emptied first.
            }
        }
        let queue = self.uring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if !idle || wait != Some(Duration::ZERO) {
            self.call(wait)?;
        }
        Ok(())
    }

    /// Looks for completions until there is one, somebody wakes us, or the time for it is over. True: no need
    /// to sleep.
    fn poll(&mut self, wait: Option<Duration>) -> io::Result<bool> {
        let until = Instant::now() + wait.map_or(self.busy_poll, |wait| wait.min(self.busy_poll));
        loop {
            self.enter(Some(Duration::ZERO))?;
            if !self.uring.completion().is_empty() || self.waker.is_notified() {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// One system call. False: the kernel took nothing for now, because completions wait to be reaped.
    fn call(&mut self, wait: Option<Duration>) -> io::Result<bool> {
        self.counters.enters += 1;
        let queued = self.uring.submission().len() as u32;
        let submitter = self.uring.submitter();
        let called = match wait {
            // SAFETY: no argument is passed; the entries are sound as argued in `push`. `GETEVENTS` runs
            // the work that was deferred to us, although we do not wait.
            Some(Duration::ZERO) => unsafe {
                submitter.enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None)
            },
            Some(wait) => {
                let wait = Timespec::from(wait);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&wait))
            }
            None => submitter.submit_and_wait(1),
        };
        match called {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR) => Ok(true),
                Some(libc::EAGAIN | libc::EBUSY) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Takes all completions from the kernel's queue.
    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion());
        self.counters.completions += reaped.len() as u64;
        for entry in reaped.drain(..) {
            match entry.user_data() {
                WAKE if !cqueue::more(entry.flags()) => self.watch_waker(),
                WAKE | CANCEL_ALL => {}
                index => self.settle(index as u32, entry.result(), entry.flags(), done),
            }
        }
        self.reaped = reaped;
        self.receive.publish();
    }

    /// One completion: what came of it, or what must follow before anyone is told.
    fn settle(&mut self, index: u32, result: i32, flags: u32, done: &mut Vec<Done>) {
        let slot = self.slots[index as usize].take();
        let Slot { tag, cancelled, held } = slot.expect("the kernel completes only what it was given");
        let more = cqueue::more(flags);
        let count = if result < 0 { Err(Fault(-result)) } else { Ok(result as usize) };
        let outcome = match (held, count) {
            (Held::Receive(socket), Err(Fault(libc::ENOBUFS))) if !cancelled => {
                assert!(!more, "a receive without a buffer is over");
                self.counters.starvations += 1;
                self.keep(index, tag, cancelled, Held::Receive(socket));
                self.parked.push(index);
                return;
            }
            (Held::Receive(socket), Ok(bytes)) => {
                let received = self.receive.take(bytes, cqueue::buffer_select(flags));
                if more {
                    self.keep(index, tag, cancelled, Held::Receive(socket));
                }
                Ok(Outcome::Received(received))
            }
            (Held::Accept(listener), Ok(_)) => {
                let accepted = accepted(result);
                if more {
                    self.keep(index, tag, cancelled, Held::Accept(listener));
                }
                match accepted {
                    Some(accepted) => Ok(accepted),
                    None if more => return,
                    None => Err(Fault(libc::ECONNABORTED)),
                }
            }
            (Held::Send { socket, mut bytes }, Ok(sent)) if sent < bytes.len() => {
                bytes.advance(sent);
                return self.again(index, tag, cancelled, Held::Send { socket, bytes }, done);
            }
            (Held::SendPieces { socket, mut message }, Ok(sent)) if sent < message.bytes() => {
                message.advance(sent);
                return self.again(index, tag, cancelled, Held::SendPieces { socket, message }, done);
            }
            (Held::OpenDirectory(_), Ok(_)) => {
                // SAFETY: the kernel opened it for this operation; nobody else knows the number.
                let directory = unsafe { OwnedFd::from_raw_fd(result) };
                return self.again(index, tag, cancelled, Held::SyncDirectory(directory), done);
            }
            (Held::Write { .. }, Ok(written)) => Ok(Outcome::Count(written)),
            // SAFETY: the kernel says that it wrote this many bytes, and its work is over.
            (Held::Read { memory, .. }, Ok(bytes)) => Ok(Outcome::Read(unsafe { memory.freeze(bytes) })),
            (Held::Open { .. }, Ok(_)) => Ok(Outcome::Opened(Handle(result))),
            (_, Ok(_)) => Ok(Outcome::Nothing),
            (_, Err(fault)) => Err(fault),
        };
        if !more {
            self.release(index);
        }
        done.push(Done { tag, more, outcome });
    }

    fn keep(&mut self, index: u32, tag: Tag, cancelled: bool, held: Held) {
        self.slots[index as usize] = Some(Slot { tag, cancelled, held });
    }

    /// The operation goes on with `held`, unless it is to end.
    fn again(&mut self, index: u32, tag: Tag, cancelled: bool, held: Held, done: &mut Vec<Done>) {
        if cancelled {
            self.release(index);
            let outcome = Err(Fault(libc::ECANCELED));
            done.push(Done { tag, more: false, outcome });
        } else {
            self.keep(index, tag, cancelled, held);
            self.enqueue(index);
        }
    }

    fn release(&mut self, index: u32) {
        self.slots[index as usize] = None;
        self.free.push(index);
    }

    fn held_count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Io for Ring {
    /// Creating a directory, listing one, asking for disk space (and cutting a file before Linux 6.9)
    /// are done here and now, by plain system calls, and complete at the next `drive`. Cancelling
    /// completes by itself, with `ENOENT` when there was nothing to cancel and `EALREADY` when it is too
    /// late; tags that are to be cancelled must be unique.
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        if self.free.is_empty() || self.ready.len() >= self.slots.len() {
            return Err(op);
        }
        match self.prepare(op) {
            Ok(held) => {
                let index = self.free.pop().expect("checked above, and preparing takes none");
                self.tags[index as usize] = tag;
                self.keep(index, tag, false, held);
                self.enqueue(index);
            }
            Err(outcome) => self.ready.push_back(Done { tag, more: false, outcome }),
        }
        Ok(())
    }

    fn drive(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) {
        if self.receive.refill(!self.parked.is_empty()) {
            for index in std::mem::take(&mut self.parked) {
                self.enqueue(index);
            }
        }
        let mut waits = wait != Some(Duration::ZERO) && self.ready.is_empty();
        let mut entered = Ok(());
        if waits && !self.busy_poll.is_zero() {
            entered = self.poll(wait).map(|found| waits = !found);
        }
        waits = waits && self.waker.sleep();
        entered = entered.and_then(|()| self.enter(if waits { wait } else { Some(Duration::ZERO) }));
        self.waker.rise();
        // Another thread than the first one drives (`EEXIST`), or a completion was lost for want of kernel
        // memory (`EBADR`): the ring's state is not known any more, so nothing can go on with it.
        entered.expect("io_uring_enter serves the thread that owns the ring");
        done.extend(self.ready.drain(..));
        self.reap(done);
    }

    fn wake(&mut self, core: usize) {
        assert!(core < self.wakers.len(), "core {core} of {}", self.wakers.len());
        self.wakers[core].wake();
    }
}

impl Drop for Ring {
    /// Cancels everything and waits until the kernel holds none of our memory.
    fn drop(&mut self) {
        if !self.started {
            return; // The kernel has seen nothing yet.
        }
        for index in std::mem::take(&mut self.parked) {
            self.release(index);
        }
        for slot in self.slots.iter_mut().flatten() {
            slot.cancelled = true;
        }
        let mut done: Vec<Done> = self.ready.drain(..).collect();
        while self.held_count() > 0 {
            let all = opcode::AsyncCancel2::new(CancelBuilder::any().all());
            self.push(all.build().user_data(CANCEL_ALL));
            if self.enter(Some(CANCEL_RETRY)).is_err() {
                // Not our thread: nobody can wait for the kernel, so it keeps what it may still write to.
                std::mem::forget(std::mem::take(&mut self.slots));
                self.receive.leak();
                return;
            }
            self.reap(&mut done);
        }
        // Nobody will be told of these any more.
        for fresh in done {
            if let Ok(Outcome::Accepted { socket: Handle(number), .. } | Outcome::Opened(Handle(number))) =
                fresh.outcome
            {
                // SAFETY: the kernel opened it for us, and its number was given to nobody.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        // All is done: a process that ends in order lets go of this file at once. It fails if there is none.
        let _ = self.uring.submitter().unregister_files();
    }
}

impl Held {
    /// The entry that does it, or the rest of it.
    fn entry(&mut self, registered: &[Arc<Region>]) -> squeue::Entry {
        let here = Fd(libc::AT_FDCWD);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        match self {
            Held::Accept(listener) => opcode::AcceptMulti::new(*listener).flags(libc::SOCK_CLOEXEC).build(),
            Held::Receive(socket) => opcode::RecvMulti::new(*socket, GROUP).build(),
            Held::Send { socket, bytes } => {
                opcode::Send::new(*socket, bytes.as_ptr(), entry_bytes(bytes)).flags(flags).build()
            }
            Held::SendPieces { socket, message } => {
                opcode::SendMsg::new(*socket, &raw const message.header).flags(flags as u32).build()
            }
            Held::Shutdown(socket) => opcode::Shutdown::new(*socket, libc::SHUT_RDWR).build(),
            Held::Close(file) => opcode::Close::new(*file).build(),
            Held::Cancel(index) => opcode::AsyncCancel::new(u64::from(*index)).build(),
            Held::Open { path, how } => opcode::OpenAt::new(here, path.as_ptr()).flags(how.flags()).mode(0o644).build(),
            Held::Write { file, at, bytes, durable } => {
                let flags = if *durable { libc::RWF_DSYNC } else { 0 };
                let (start, length) = (bytes.as_ptr(), entry_bytes(bytes));
                match registered.iter().position(|region| region.contains(bytes)) {
                    Some(index) => {
                        opcode::WriteFixed::new(*file, start, length, index as u16).offset(*at).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(*file, start, length).offset(*at).rw_flags(flags).build(),
                }
            }
            Held::Read { file, at, length, memory } => {
                opcode::Read::new(*file, memory.as_mut_ptr(), *length).offset(*at).build()
            }
            Held::Sync(file) => opcode::Fsync::new(*file).flags(FsyncFlags::DATASYNC).build(),
            Held::Allocate { file, length } => opcode::Fallocate::new(*file, *length).build(),
            Held::Truncate { file, length } => opcode::Ftruncate::new(*file, *length).build(),
            Held::Rename { from, to } => opcode::RenameAt::new(here, from.as_ptr(), here, to.as_ptr()).build(),
            Held::Remove(path) => opcode::UnlinkAt::new(here, path.as_ptr()).build(),
            Held::OpenDirectory(path) => opcode::OpenAt::new(here, path.as_ptr())
                .flags(libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC)
                .build(),
            Held::SyncDirectory(directory) => opcode::Fsync::new(Fd(directory.as_raw_fd())).build(),
        }
    }
}

impl OpenHow {
    fn flags(self) -> i32 {
        let access = if self.read_only { libc::O_RDONLY } else { libc::O_RDWR };
        let create = if self.create { libc::O_CREAT } else { 0 };
        let direct = if self.direct { libc::O_DIRECT } else { 0 };
        access | create | direct | libc::O_CLOEXEC
    }
}

impl Message {
    /// `pieces`: none of them empty.
    fn new(pieces: Pieces) -> Box<Message> {
        // SAFETY: a message header of zeros is a valid one: no name, no vectors, no control data.
        let header = unsafe { std::mem::zeroed() };
        let vectors = Vec::with_capacity(pieces.len());
        let mut message = Box::new(Message { pieces, vectors, header });
        message.point();
        message
    }

    fn point(&mut self) {
        self.vectors.clear();
        self.vectors.extend(
            self.pieces
                .iter()
                .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }),
        );
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
    }

    fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Forgets what was sent: less than all.
    fn advance(&mut self, mut sent: usize) {
        let mut whole = 0;
        while let Some(piece) = self.pieces.get(whole).filter(|piece| piece.len() <= sent) {
            sent -= piece.len();
            whole += 1;
        }
        self.pieces.drain(..whole);
        self.pieces[0].advance(sent);
        self.point();
    }
}

/// A connection, ready for small answers, and who is on its other end. `None`: it is gone already.
fn accepted(number: RawFd) -> Option<Outcome> {
    // SAFETY: the kernel just opened it for us; nobody else knows the number.
    let stream = unsafe { TcpStream::from_raw_fd(number) };
    let peer = stream.peer_addr().ok()?;
    stream.set_nodelay(true).ok()?;
    let socket = Handle(stream.into_raw_fd());
    Some(Outcome::Accepted { socket, peer })
}

/// Registers regions in order, until one is refused.
fn register(uring: &IoUring, regions: Vec<Arc<Region>>, notes: &mut Vec<String>) -> Vec<Arc<Region>> {
    let (fit, large): (Vec<_>, Vec<_>) = regions.into_iter().partition(|region| region.bytes() <= REGISTERED_BYTES_MAX);
    for region in large {
        let bytes = region.bytes();
        notes.push(format!(
            "plain writes for a region of {bytes} bytes: the kernel registers at most {REGISTERED_BYTES_MAX}"
        ));
    }
    let vectors: Vec<libc::iovec> =
        fit.iter().map(|region| libc::iovec { iov_base: region.base().cast(), iov_len: region.bytes() }).collect();
    if vectors.is_empty() {
        return Vec::new();
    }
    // SAFETY: the vectors are whole mappings; the ring holds each region as long as it is registered.
    match unsafe { uring.submitter().register_buffers(&vectors) } {
        Ok(()) => fit,
        Err(error) => {
            let bytes: usize = fit.iter().map(|region| region.bytes()).sum();
            notes.push(format!(
                "plain writes: registering {bytes} bytes of buffers failed ({error}); raise RLIMIT_MEMLOCK \
                 (ulimit -l, LimitMEMLOCK=) above that"
            ));
            Vec::new()
        }
    }
}

fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers.
    let number = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if number < 0 {
        return Err(explain(io::Error::last_os_error()));
    }
    // SAFETY: just opened, and nobody else knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A path with a zero byte names nothing.
fn c_path(path: &Path) -> Result<CString, Result<Outcome, Fault>> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Err(Fault(libc::EINVAL)))
}

fn entry_bytes(bytes: &Bytes) -> u32 {
    bytes.len().min(ENTRY_BYTES_MAX) as u32
}

fn truncate(file: Handle, length: u64) -> Result<Outcome, Fault> {
    let Ok(length) = libc::off_t::try_from(length) else { return Err(Fault(libc::EFBIG)) };
    // SAFETY: takes two numbers; one that is no open file is an error.
    match unsafe { libc::ftruncate(file.0, length) } {
        0 => Ok(Outcome::Nothing),
        _ => Err(Fault::from(io::Error::last_os_error())),
    }
}

/// A file system's space, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Available to us.
    pub available: u64,
    /// That and what is used. As `df` and the Java broker count it: what is kept for root or for the host is
    /// neither, and may be most of a disk.
    pub total: u64,
}

impl Disk {
    /// Asks the file system that `path` is on (`statvfs`).
    pub fn of(path: &Path) -> io::Result<Disk> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a record of numbers, for which zeros are valid.
        let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: a path that ends in zero, and a record of the right type to fill; both outlive the call.
        match unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) } {
            0 => Ok(Disk::counted(&answer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn counted(answer: &libc::statvfs) -> Disk {
        let bytes = |blocks: u64| blocks.saturating_mul(answer.f_frsize);
        let used = answer.f_blocks.saturating_sub(answer.f_bfree);
        Disk { available: bytes(answer.f_bavail), total: bytes(used.saturating_add(answer.f_bavail)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_forgets_what_was_sent() {
        let pieces = || [&b"abc"[..], b"de", b"f"].map(Bytes::from_static).into_iter().collect();
        for sent in 0..6 {
            let mut message = Message::new(pieces());
            message.advance(sent);
            assert_eq!(message.pieces.concat(), b"abcdef"[sent..], "{sent}");
            assert_eq!(message.bytes(), 6 - sent);
            assert_eq!(message.header.msg_iovlen, message.pieces.len());
            assert_eq!(message.vectors[0].iov_base.cast_const().cast(), message.pieces[0].as_ptr());
            assert_eq!(message.vectors[0].iov_len, message.pieces[0].len());
        }
    }

    #[test]
    fn what_is_kept_for_others_is_no_part_of_the_disk() {
        // SAFETY: a record of numbers, for which zeros are valid.
        let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
        (answer.f_frsize, answer.f_blocks, answer.f_bfree, answer.f_bavail) = (4096, 1000, 900, 300);
        assert_eq!(Disk::counted(&answer), Disk { available: 300 * 4096, total: 400 * 4096 });
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let table = [
            (RingConfig { slots: 7, ..RingConfig::default() }, "slots"),
            (RingConfig { entries: 65_536, ..RingConfig::default() }, "entries"),
            (RingConfig { receive_count: 3, ..RingConfig::default() }, "receive_count"),
            (RingConfig { receive_bytes: 5000, ..RingConfig::default() }, "receive_bytes"),
        ];
        for (config, name) in table {
            assert!(config.check().unwrap_err().to_string().starts_with(name), "{name}");
        }
        RingConfig::default().check().unwrap();
    }
}
