//! Goal: the wall to the kernel keeps its contract on a real kernel. Method: loopback sockets and
//! temporary files, checked byte for byte. Where io_uring is forbidden, each test says so and passes.

use bytes::Bytes;
use engine::buffer::{BLOCK, Chunk, Region};
use engine::io::{Done, Fault, Handle, Io, Op, OpenHow, Outcome, Pieces, Tag};
use engine::ring::{Ring, RingConfig};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes: reaching it is the failure.
const PATIENCE: Duration = Duration::from_secs(120);

fn ring(config: RingConfig) -> Option<Ring> {
    match Ring::new(config) {
        Ok(ring) => Some(ring),
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            // Past the harness, which hides what a test prints that passes.
            std::io::stderr().write_all(format!("skipped: {error}\n").as_bytes()).expect("stderr");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Drives until `count` completions have come.
fn collect(ring: &mut Ring, count: usize) -> Vec<Done> {
    let (mut done, start) = (Vec::new(), Instant::now());
    while done.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count}: {done:?}", done.len());
        ring.drive(Some(Duration::from_secs(1)), &mut done);
    }
    done
}

/// Does one operation that completes once.
fn once(ring: &mut Ring, op: Op) -> Result<Outcome, Fault> {
    ring.submit(Tag(u64::MAX), op).unwrap();
    let mut done = collect(ring, 1);
    assert_eq!((done.len(), done[0].tag, done[0].more), (1, Tag(u64::MAX), false));
    done.remove(0).outcome
}

fn open(ring: &mut Ring, path: &Path, how: OpenHow) -> Result<Handle, Fault> {
    let path = path.to_path_buf();
    once(ring, Op::Open { path, how }).map(|outcome| match outcome {
        Outcome::Opened(file) => file,
        other => panic!("{other:?}"),
    })
}

fn listen(ring: &Ring) -> (Handle, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (ring.adopt(OwnedFd::from(listener)), address)
}

/// Both ends of one connection: ours through the ring, the peer's blocking.
fn pair(ring: &Ring) -> (Handle, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (ring.adopt(OwnedFd::from(ours)), peer)
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8 ^ seed).collect()
}

/// A server in the style of the broker: one accept, and for each connection a receive and one send at
/// a time.
struct Echo {
    waiting: HashMap<i32, VecDeque<Bytes>>,
    ended: usize,
}

impl Echo {
    const ACCEPT: u64 = 0;
    const RECEIVE: u64 = 1 << 32;
    const SEND: u64 = 2 << 32;

    fn run(ring: &mut Ring, listener: Handle, connections: usize) {
        let waiting = HashMap::new();
        let mut echo = Echo { waiting, ended: 0 };
        ring.submit(Tag(Echo::ACCEPT), Op::Accept { listener }).unwrap();
        let (mut done, start) = (Vec::new(), Instant::now());
        while echo.ended < connections {
            assert!(start.elapsed() < PATIENCE, "{} of {connections} ended", echo.ended);
            ring.drive(Some(Duration::from_secs(1)), &mut done);
            for done in done.drain(..) {
                echo.on_done(ring, done);
            }
        }
    }

    fn on_done(&mut self, ring: &mut Ring, done: Done) {
        let socket = Handle(done.tag.0 as u32 as i32);
        match (done.tag.0 & !0xffff_ffff, done.outcome.unwrap()) {
            (Echo::ACCEPT, Outcome::Accepted { socket, peer }) => {
                assert!(done.more && peer.ip().is_loopback());
                self.waiting.insert(socket.0, VecDeque::new());
                let tag = Tag(Echo::RECEIVE | socket.0 as u64);
                ring.submit(tag, Op::Receive { socket }).unwrap();
            }
            (Echo::RECEIVE, Outcome::Received(bytes)) if bytes.is_empty() => {
                assert!(!done.more);
                self.ended += 1;
            }
            (Echo::RECEIVE, Outcome::Received(bytes)) => {
                let waiting = self.waiting.get_mut(&socket.0).unwrap();
                waiting.push_back(bytes);
                if waiting.len() == 1 {
                    self.send(ring, socket);
                }
                if !done.more {
                    ring.submit(done.tag, Op::Receive { socket }).unwrap();
                }
            }
            (Echo::SEND, Outcome::Nothing) => {
                let waiting = self.waiting.get_mut(&socket.0).unwrap();
                waiting.pop_front();
                if !waiting.is_empty() {
                    self.send(ring, socket);
                }
            }
            (_, other) => panic!("{other:?}"),
        }
    }

    fn send(&self, ring: &mut Ring, socket: Handle) {
        let pieces = Pieces::from_elem(self.waiting[&socket.0][0].clone(), 1);
        let tag = Tag(Echo::SEND | socket.0 as u64);
        ring.submit(tag, Op::Send { socket, pieces }).unwrap();
    }
}

#[test]
fn echoes_to_many_connections() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let (listener, address) = listen(&ring);
    let (connections, rounds) = (64, 50);
    let start = Instant::now();
    thread::scope(|scope| {
        for name in 0..connections {
            scope.spawn(move || {
                let mut stream = TcpStream::connect(address).unwrap();
                for round in 0..rounds {
                    // Below and above what is copied instead of lent.
                    let question = pattern(1000 + 100 * round, (name + round) as u8);
                    let mut answer = vec![0; question.len()];
                    stream.write_all(&question).unwrap();
                    stream.read_exact(&mut answer).unwrap();
                    assert!(answer == question, "connection {name}, round {round}");
                }
            });
        }
        Echo::run(&mut ring, listener, connections);
    });
    println!("{} echoes in {:?}, {:?}", connections * rounds, start.elapsed(), ring.counters());
}

#[test]
fn sends_many_pieces_to_a_slow_reader() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let (socket, mut peer) = pair(&ring);
    let all = pattern(8 << 20, 7);
    let mut pieces: Vec<Bytes> = all.chunks(8 << 10).map(Bytes::copy_from_slice).collect();
    let tail = pieces.split_off(1000);
    ring.submit(Tag(1), Op::Send { socket, pieces: pieces.into() }).unwrap();
    let reader = thread::spawn(move || {
        let (mut read, mut buffer) = (Vec::new(), [0; 5000]);
        while let Ok(count @ 1..) = peer.read(&mut buffer) {
            read.extend_from_slice(&buffer[..count]);
        }
        read
    });
    let sent = collect(&mut ring, 1);
    assert!(matches!(sent[..], [Done { tag: Tag(1), more: false, outcome: Ok(Outcome::Nothing) }]), "{sent:?}");
    // An empty piece is fine, and so is nothing at all; more than the kernel takes is not.
    let mut pieces = vec![Bytes::new()];
    pieces.extend(tail);
    let sent = once(&mut ring, Op::Send { socket, pieces: pieces.into() });
    assert!(matches!(sent, Ok(Outcome::Nothing)), "{sent:?}");
    let sent = once(&mut ring, Op::Send { socket, pieces: Pieces::new() });
    assert!(matches!(sent, Ok(Outcome::Nothing)), "{sent:?}");
    let pieces = vec![Bytes::from_static(b"x"); 1025];
    let sent = once(&mut ring, Op::Send { socket, pieces: pieces.into() });
    assert!(matches!(sent, Err(Fault(libc::EMSGSIZE))), "{sent:?}");
    once(&mut ring, Op::Shutdown { socket }).unwrap();
    once(&mut ring, Op::Close { handle: socket }).unwrap();
    assert!(reader.join().unwrap() == all);
}

#[test]
fn a_send_to_a_peer_that_left_fails_without_a_signal() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let (socket, peer) = pair(&ring);
    ring.submit(Tag(1), Op::Receive { socket }).unwrap();
    drop(peer);
    let done = collect(&mut ring, 1);
    assert!(matches!(&done[0].outcome, Ok(Outcome::Received(end)) if end.is_empty()), "{done:?}");
    let pieces = vec![Bytes::from(vec![1; 100_000])];
    let send = || Op::Send { socket, pieces: pieces.clone().into() };
    // Some fit into the socket before it hears that nobody reads.
    let (mut failed, start) = (None, Instant::now());
    while failed.is_none() && start.elapsed() < PATIENCE {
        failed = once(&mut ring, send()).err();
    }
    assert!(matches!(failed, Some(Fault(libc::EPIPE | libc::ECONNRESET))), "{failed:?}");
}

/// Two receives share two buffers, and another thread, which holds each buffer for a while, is all
/// that gives them back to a loop that sleeps.
#[test]
fn receives_without_a_free_buffer_go_on_when_one_comes_back() {
    let config = RingConfig { receive_count: 2, receive_bytes: 4096, ..RingConfig::default() };
    let Some(mut ring) = ring(config) else { return };
    let all = pattern(400_000, 3);
    let (ends, mut peers): (Vec<Handle>, Vec<TcpStream>) = (0..2).map(|_| pair(&ring)).unzip();
    let sent = all.clone();
    let writer = thread::spawn(move || peers.iter_mut().for_each(|peer| peer.write_all(&sent).unwrap()));
    let (lend, borrow) = mpsc::channel::<Bytes>();
    let holder = thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok(bytes) = borrow.recv() {
            held.push(bytes);
            if held.len() >= 2 {
                thread::yield_now();
                held.clear();
            }
        }
    });
    for (name, socket) in ends.iter().enumerate() {
        ring.submit(Tag(name as u64), Op::Receive { socket: *socket }).unwrap();
    }
    let (mut received, mut done, start) = ([Vec::new(), Vec::new()], Vec::new(), Instant::now());
    let mut ended = 0;
    while ended < 2 {
        assert!(start.elapsed() < PATIENCE / 2, "{} and {}", received[0].len(), received[1].len());
        ring.drive(Some(PATIENCE), &mut done);
        for done in done.drain(..) {
            let name = done.tag.0 as usize;
            let Ok(Outcome::Received(bytes)) = done.outcome else { panic!("{done:?}") };
            received[name].extend_from_slice(&bytes);
            if bytes.is_empty() {
                ended += 1;
            } else if !done.more {
                ring.submit(done.tag, Op::Receive { socket: ends[name] }).unwrap();
            }
            lend.send(bytes).unwrap();
        }
    }
    drop(lend);
    holder.join().unwrap();
    writer.join().unwrap();
    assert!(received[0] == all && received[1] == all);
    assert!(ring.counters().starvations > 0, "the test starved nobody");
}

#[test]
fn files_are_written_durably_and_read_back() {
    let region = Region::new(4, 64 * 1024).unwrap();
    let config = RingConfig { regions: vec![Arc::clone(&region)], ..RingConfig::default() };
    let Some(mut ring) = ring(config) else { return };
    println!("notes: {:?}", ring.notes());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let mut how = OpenHow { create: true, direct: true, read_only: false };
    let mut opened = open(&mut ring, &path, how);
    if opened == Err(Fault(libc::EINVAL)) {
        println!("no O_DIRECT here");
        how.direct = false;
        opened = open(&mut ring, &path, how);
    }
    let file = opened.unwrap();
    once(&mut ring, Op::Allocate { file, length: 1 << 20 }).unwrap();
    assert_eq!(path.metadata().unwrap().len(), 1 << 20);
    // From the region (registered, or plain where limits forbid), and from memory of its own.
    let mut chunks = [region.take().unwrap(), Chunk::standalone(2 * BLOCK)];
    for (seed, at, durable) in [(0, 0, true), (1, 512 * 1024, false)] {
        let expected = pattern(2 * BLOCK, seed);
        let chunk = &mut chunks[usize::from(seed)];
        chunk.spare_mut()[..2 * BLOCK].copy_from_slice(&expected);
        let bytes = chunk.split_to(2 * BLOCK);
        let written = once(&mut ring, Op::Write { file, at, bytes, durable });
        assert!(matches!(written, Ok(Outcome::Count(count)) if count == 2 * BLOCK), "{written:?}");
        let read = once(&mut ring, Op::Read { file, at, length: 2 * BLOCK as u32 });
        assert!(matches!(read, Ok(Outcome::Read(bytes)) if bytes == expected), "{seed}");
    }
    once(&mut ring, Op::Sync { file }).unwrap();
    if how.direct {
        let bytes = Bytes::from_static(b"not a block");
        let refused = once(&mut ring, Op::Write { file, at: 0, bytes, durable: true });
        assert!(matches!(refused, Err(Fault(libc::EINVAL))), "{refused:?}");
    }
    once(&mut ring, Op::Truncate { file, length: BLOCK as u64 }).unwrap();
    let short = once(&mut ring, Op::Read { file, at: 0, length: 4 * BLOCK as u32 });
    assert!(matches!(short, Ok(Outcome::Read(bytes)) if bytes == pattern(BLOCK, 0)));
    once(&mut ring, Op::Close { handle: file }).unwrap();
}

/// tmpfs refused `O_DIRECT` until Linux 6.6: either way the answer is visible, and plain files work.
#[test]
fn direct_or_not_is_said_at_open() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else { return };
    let path = directory.path().join("0.log");
    let how = OpenHow { create: true, direct: true, read_only: false };
    let opened = open(&mut ring, &path, how);
    println!("O_DIRECT on tmpfs: {opened:?}");
    let file = match opened {
        Err(Fault(libc::EINVAL)) => open(&mut ring, &path, OpenHow { direct: false, ..how }).unwrap(),
        opened => opened.unwrap(),
    };
    let mut chunk = Chunk::standalone(BLOCK);
    chunk.spare_mut().fill(9);
    let bytes = chunk.split_to(BLOCK);
    let written = once(&mut ring, Op::Write { file, at: 0, bytes, durable: true });
    assert!(matches!(written, Ok(Outcome::Count(BLOCK))), "{written:?}");
    once(&mut ring, Op::Close { handle: file }).unwrap();
    let how = OpenHow { read_only: true, ..OpenHow::default() };
    let file = open(&mut ring, &path, how).unwrap();
    let bytes = Bytes::from_static(b"x");
    let refused = once(&mut ring, Op::Write { file, at: 0, bytes, durable: false });
    assert!(matches!(refused, Err(Fault(libc::EBADF))), "{refused:?}");
    once(&mut ring, Op::Close { handle: file }).unwrap();
}

#[test]
fn names_and_directories() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("a/b");
    for _ in 0..2 {
        once(&mut ring, Op::CreateDirectory { path: root.clone() }).unwrap();
    }
    once(&mut ring, Op::CreateDirectory { path: root.join("no file") }).unwrap();
    let missing = open(&mut ring, &root.join("1"), OpenHow::default());
    assert_eq!(missing, Err(Fault(libc::ENOENT)));
    for (name, length) in [("2", 5), ("1", 4096)] {
        let how = OpenHow { create: true, ..OpenHow::default() };
        let file = open(&mut ring, &root.join(name), how).unwrap();
        once(&mut ring, Op::Truncate { file, length }).unwrap();
        once(&mut ring, Op::Close { handle: file }).unwrap();
    }
    once(&mut ring, Op::Rename { from: root.join("2"), to: root.join("3") }).unwrap();
    once(&mut ring, Op::SyncDirectory { path: root.clone() }).unwrap();
    let names = once(&mut ring, Op::List { path: root.clone() });
    let expected = [("1".to_string(), 4096), ("3".to_string(), 5)];
    assert!(matches!(&names, Ok(Outcome::Names(names)) if *names == expected), "{names:?}");
    once(&mut ring, Op::Remove { path: root.join("3") }).unwrap();
    let again = once(&mut ring, Op::Remove { path: root.join("3") });
    assert!(matches!(again, Err(Fault(libc::ENOENT))), "{again:?}");
    let file = once(&mut ring, Op::SyncDirectory { path: root.join("1") });
    assert!(matches!(file, Err(Fault(libc::ENOTDIR))), "{file:?}");
    let space = once(&mut ring, Op::Space { path: root.clone() });
    assert!(matches!(space, Ok(Outcome::Space { available: 1.., total: 1.. })), "{space:?}");
    let zero = once(&mut ring, Op::Remove { path: "a\0b".into() });
    assert!(matches!(zero, Err(Fault(libc::EINVAL))), "{zero:?}");
}

#[test]
fn what_is_cancelled_ends() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let (socket, mut peer) = pair(&ring);
    let (listener, _) = listen(&ring);
    ring.submit(Tag(1), Op::Receive { socket }).unwrap();
    ring.submit(Tag(2), Op::Accept { listener }).unwrap();
    // More than the socket's buffers hold: it waits for a reader.
    let pieces = vec![Bytes::from(vec![5; 32 << 20]); 2];
    ring.submit(Tag(3), Op::Send { socket, pieces: pieces.into() }).unwrap();
    peer.write_all(b"hello").unwrap();
    let done = collect(&mut ring, 1);
    assert!(matches!(&done[..], [Done { tag: Tag(1), more: true, outcome: Ok(Outcome::Received(_)) }]), "{done:?}");
    for tag in 1..=3 {
        ring.submit(Tag(10 + tag), Op::Cancel { tag: Tag(tag) }).unwrap();
    }
    let mut done = collect(&mut ring, 6);
    done.sort_by_key(|done| done.tag);
    for done in &done[..3] {
        assert!(matches!(done, Done { more: false, outcome: Err(Fault(libc::ECANCELED)), .. }), "{done:?}");
    }
    for done in &done[3..] {
        assert!(matches!(done.outcome, Ok(Outcome::Nothing)), "{done:?}");
    }
    let nothing = once(&mut ring, Op::Cancel { tag: Tag(1) });
    assert!(matches!(nothing, Err(Fault(libc::ENOENT))), "{nothing:?}");
}

/// The one buffer is held to the end: neither cancelling nor shutting down may wait for it.
#[test]
fn a_receive_that_waits_for_a_buffer_can_be_ended() {
    let config = RingConfig { receive_count: 1, receive_bytes: 4096, ..RingConfig::default() };
    for shut in [false, true] {
        let Some(mut ring) = ring(config.clone()) else { return };
        let (socket, mut peer) = pair(&ring);
        peer.write_all(&[1; 10_000]).unwrap();
        ring.submit(Tag(1), Op::Receive { socket }).unwrap();
        let mut held = collect(&mut ring, 1);
        while ring.counters().starvations == 0 {
            ring.drive(Some(Duration::from_millis(10)), &mut held);
        }
        let end = if shut { Op::Shutdown { socket } } else { Op::Cancel { tag: Tag(1) } };
        ring.submit(Tag(2), end).unwrap();
        let mut done = collect(&mut ring, 2);
        done.sort_by_key(|done| done.tag);
        assert!(matches!(done[1], Done { tag: Tag(2), more: false, outcome: Ok(Outcome::Nothing) }), "{done:?}");
        assert!((done[0].tag, done[0].more) == (Tag(1), false), "{done:?}");
        match &done[0].outcome {
            Ok(Outcome::Received(bytes)) => assert!(shut && bytes.is_empty(), "{done:?}"),
            outcome => assert!(!shut && matches!(outcome, Err(Fault(libc::ECANCELED))), "{done:?}"),
        }
    }
}

#[test]
fn full_slots_give_the_operation_back() {
    let config = RingConfig { slots: 8, entries: 8, ..RingConfig::default() };
    let Some(mut ring) = ring(config) else { return };
    let path = std::env::temp_dir();
    for tag in 0..8 {
        ring.submit(Tag(tag), Op::SyncDirectory { path: path.clone() }).unwrap();
    }
    let back = ring.submit(Tag(8), Op::Remove { path: "given back".into() });
    assert!(matches!(&back, Err(Op::Remove { path }) if path.as_os_str() == "given back"), "{back:?}");
    collect(&mut ring, 8);
    for tag in 0..8 {
        ring.submit(Tag(tag), Op::Space { path: path.clone() }).unwrap();
    }
    assert!(ring.submit(Tag(8), Op::Space { path }).is_err(), "what is done on the spot is bounded too");
    collect(&mut ring, 8);
}

/// More operations at once than the submission queue holds, and more completions than its own.
#[test]
fn more_operations_than_entries() {
    let config = RingConfig { slots: 4096, entries: 8, ..RingConfig::default() };
    let Some(mut ring) = ring(config) else { return };
    let file = ring.adopt(OwnedFd::from(tempfile::tempfile().unwrap()));
    for tag in 0..4096 {
        let bytes = Bytes::from(tag.to_string());
        ring.submit(Tag(tag), Op::Write { file, at: tag * 8, bytes, durable: false }).unwrap();
    }
    let mut tags: Vec<u64> = collect(&mut ring, 4096).iter().map(|done| done.tag.0).collect();
    tags.sort();
    assert!(tags.iter().copied().eq(0..4096));
    for tag in (0..4096u64).step_by(99) {
        let text = tag.to_string();
        let read = once(&mut ring, Op::Read { file, at: tag * 8, length: text.len() as u32 });
        assert!(matches!(read, Ok(Outcome::Read(bytes)) if bytes == text), "{tag}");
    }
}

/// Two loops play ping-pong through a counter each, while a third thread wakes both at random: a lost
/// wake-up leaves both asleep for all of `PATIENCE`.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 20_000;
    for (noise, busy_us) in [(false, 0), (true, 0), (false, 20), (true, 20)] {
        let config = || RingConfig { busy_poll: Duration::from_micros(busy_us), ..RingConfig::default() };
        let Some(first) = ring(config()) else { return };
        let second = ring(config()).unwrap();
        let wakers = vec![first.waker(), second.waker()];
        let boxes = [AtomicU64::new(0), AtomicU64::new(0)];
        let play = |core: usize, mut ring: Ring| {
            ring.connect(wakers.clone());
            let mut done = Vec::new();
            let send = |ring: &mut Ring, round| {
                boxes[1 - core].store(round, Ordering::Relaxed);
                ring.wake(1 - core);
            };
            for round in 1..=ROUNDS {
                if core == 0 {
                    send(&mut ring, round);
                }
                while boxes[core].load(Ordering::Relaxed) < round {
                    let start = Instant::now();
                    ring.drive(Some(PATIENCE), &mut done);
                    assert!(start.elapsed() < PATIENCE / 2, "core {core} slept through round {round}");
                }
                if core == 1 {
                    send(&mut ring, round);
                }
            }
            ring.counters().enters
        };
        let enters = thread::scope(|scope| {
            let play = &play;
            let players = [scope.spawn(move || play(0, first)), scope.spawn(move || play(1, second))];
            while noise && !players.iter().all(|player| player.is_finished()) {
                wakers.iter().for_each(|waker| waker.wake());
                thread::yield_now();
            }
            players.map(|player| player.join().unwrap())
        });
        println!("{ROUNDS} rounds, noise {noise}, looks for {busy_us} us, system calls: {enters:?}");
    }
}

/// A signal may end any wait early: so often one is tried again.
const INTERRUPTIONS_MAX: u32 = 20;

/// Whether a ring without anything to do waits as long as it is told.
fn waits(ring: &mut Ring, done: &mut Vec<Done>) -> bool {
    let (start, wait) = (Instant::now(), Duration::from_millis(5));
    ring.drive(Some(wait), done);
    start.elapsed() >= wait
}

#[test]
fn a_wake_up_of_an_awake_loop_is_kept_for_its_next_turn() {
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let is_as_told = (0..INTERRUPTIONS_MAX).any(|_| {
        let (mut done, start) = (Vec::new(), Instant::now());
        ring.wake(0);
        ring.drive(None, &mut done);
        ring.waker().wake();
        ring.drive(Some(PATIENCE), &mut done);
        assert!(start.elapsed() < PATIENCE / 2 && done.is_empty());
        waits(&mut ring, &mut done)
    });
    assert!(is_as_told, "no wake-up is left");
}

#[test]
fn a_ring_that_looks_finds_completions_without_a_system_call_for_waiting() {
    let config = RingConfig { busy_poll: PATIENCE, ..RingConfig::default() };
    let Some(mut ring) = ring(config) else { return };
    let (mut done, start) = (Vec::new(), Instant::now());
    assert!((0..INTERRUPTIONS_MAX).any(|_| waits(&mut ring, &mut done)), "it waits as long as it is told");
    assert!(done.is_empty());
    let waker = ring.waker();
    thread::spawn(move || waker.wake());
    ring.drive(None, &mut done);
    let (mut ours, mut peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = ring.adopt(OwnedFd::from(ours.try_clone().unwrap()));
    ring.submit(Tag(1), Op::Receive { socket }).unwrap();
    thread::spawn(move || peer.write_all(b"hello").unwrap());
    while done.is_empty() {
        ring.drive(None, &mut done);
    }
    assert!(matches!(&done[0].outcome, Ok(Outcome::Received(bytes)) if bytes == &b"hello"[..]), "{done:?}");
    ours.flush().unwrap();
    assert!(start.elapsed() < PATIENCE / 2);
}

/// Rings die with everything in flight, and what they held is reused at once, while the disk still
/// works and the peer goes on reading: bytes that the kernel still takes would show there.
#[test]
fn dropping_a_busy_ring_lets_go_of_its_memory() {
    const CHUNK: usize = 256 * 1024;
    let region = Region::new(8, CHUNK).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for round in 1..6u8 {
        let config = RingConfig { regions: vec![Arc::clone(&region)], ..RingConfig::default() };
        let Some(mut ring) = ring(config) else { return };
        let (listener, address) = listen(&ring);
        let gate = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(gate.local_addr().unwrap()).unwrap();
        let ours = gate.accept().unwrap().0;
        let socket = ring.adopt(OwnedFd::from(ours.try_clone().unwrap()));
        let path = directory.path().join(round.to_string());
        let how = OpenHow { create: true, direct: true, read_only: false };
        let file =
            open(&mut ring, &path, how).or_else(|_| open(&mut ring, &path, OpenHow { direct: false, ..how })).unwrap();
        // Blocks written before are written again by the device itself, with nothing to wait for.
        let bytes = Chunk::standalone(8 * CHUNK).split_to(8 * CHUNK);
        once(&mut ring, Op::Write { file, at: 0, bytes, durable: true }).unwrap();
        ring.submit(Tag(0), Op::Accept { listener }).unwrap();
        ring.submit(Tag(1), Op::Receive { socket }).unwrap();
        peer.write_all(&[round; 3000]).unwrap();
        let _knock = TcpStream::connect(address).unwrap();
        let mut pieces = Vec::new();
        for at in 0..8 {
            let mut chunk = region.take().unwrap();
            chunk.spare_mut().fill(round);
            let bytes = chunk.split_to(CHUNK);
            pieces.push(bytes.clone());
            let at = at * CHUNK as u64;
            ring.submit(Tag(2), Op::Write { file, at, bytes, durable: true }).unwrap();
        }
        for _ in 0..8 {
            ring.submit(Tag(3), Op::Read { file, at: 0, length: 8 * CHUNK as u32 }).unwrap();
        }
        pieces = pieces.iter().cycle().take(160).cloned().collect();
        ring.submit(Tag(4), Op::Send { socket, pieces: pieces.into() }).unwrap();
        ring.drive(Some(Duration::ZERO), &mut Vec::new());
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).map(|_| received)
        });
        drop(ring);
        assert_eq!(region.free(), 8, "round {round}: a dead ring holds memory");
        let mut chunks: Vec<Chunk> = std::iter::from_fn(|| region.take()).collect();
        chunks.iter_mut().rev().for_each(|chunk| chunk.spare_mut().fill(0xee));
        ours.shutdown(Shutdown::Write).unwrap();
        let written = std::fs::read(&path).unwrap();
        assert!(!written.contains(&0xee), "round {round}: reused memory was written");
        let received = reader.join().unwrap().unwrap();
        assert!(received.iter().all(|byte| *byte == round), "round {round}: reused memory was sent");
    }
}

/// After `kill -9` the kernel still writes for the ring of the process that is gone: a lock tells the next one.
#[test]
fn a_file_stays_open_until_the_kernel_has_done_everything_for_its_ring() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("LOCK");
    let lock = File::create(&path).unwrap();
    lock.lock().unwrap();
    let Some(ring) = ring(RingConfig { kept: Some(Arc::new(lock)), ..RingConfig::default() }) else { return };
    // The config and with it our own descriptor are gone.
    let next = File::open(&path).unwrap();
    assert!(matches!(next.try_lock(), Err(TryLockError::WouldBlock)));
    drop(ring);
    next.lock().unwrap();
}

/// A ring dropped on a thread that may not drive it gives nothing back rather than too early.
#[test]
fn a_ring_dropped_elsewhere_keeps_what_the_kernel_holds() {
    let region = Region::new(1, BLOCK).unwrap();
    let Some(mut ring) = ring(RingConfig::default()) else { return };
    let (socket, _peer) = pair(&ring);
    let pieces = vec![Bytes::from(vec![0; 32 << 20]), region.take().unwrap().split_to(BLOCK)];
    ring.submit(Tag(1), Op::Send { socket, pieces: pieces.into() }).unwrap();
    ring.drive(Some(Duration::ZERO), &mut Vec::new());
    thread::spawn(move || drop(ring)).join().unwrap();
    assert_eq!(region.free(), 0);
}
