//! `ringmq-bench limit`: the most that one core, one ring and this disk could give. `serve` is a toy that keeps a
//! broker's promise and does nothing else: requests of 1 KiB, answers of 64 bytes, no protocol and no checksum, and
//! every answer follows a durable direct write of its request. Writes are group commits, some in flight at once.
//! `load` is the closed loop for it; its lines are those of `send`, so that `compare` puts both beside each other.

use crate::points::{self, line};
use crate::raw::{FILL_BYTES, failed, filled};
use crate::report::cpu_time;
use crate::stats::{Latency, nanos};
use crate::units;
use bytes::{Buf, Bytes};
use clap::{Parser, Subcommand};
use engine::buffer::{BLOCK, Chunk, Region, blocks_up};
use engine::io::{Done, Fault, Handle, Io, Op, Outcome, Tag};
use engine::ring::{Ring, RingConfig};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// A request: nothing but its bytes.
const REQUEST_BYTES: usize = 1024;
/// An answer.
const ANSWER_BYTES: usize = 64;
/// Most that one write carries: 1 MiB.
const BATCH_BYTES: usize = 1 << 20;
/// Most connections at once; more are closed at once.
const CONNECTIONS_MAX: usize = 10_000;
/// A receive and a send for each, what ends it, and the writes.
const SLOTS: u32 = 32_768;
/// Received at once, as in a broker.
const RECEIVE_BYTES: u32 = 64 << 10;
/// Answers are alike, and go out so many at once.
static ANSWERS: [u8; 1024 * ANSWER_BYTES] = [7; 1024 * ANSWER_BYTES];
/// How long answers are waited for when the time is up.
const DRAIN: Duration = Duration::from_secs(10);

/// The limit of this host: a toy server, and its load.
#[derive(Parser)]
#[command(name = "ringmq-bench limit", version)]
struct Arguments {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Serves until it is killed, and prints `ready limit=ADDRESS` when it does. No request means anything: the file is
    /// written from its beginning to its end, and again.
    Serve {
        /// The file, on the disk in question. It is filled with zeros up to --size, and stays.
        file: PathBuf,
        /// Where clients come.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Writes in flight at once.
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
        depth: u8,
        /// The file's bytes; units are k, m, g. 1m to 1t.
        #[arg(long, default_value = "1g", value_parser = size)]
        size: u64,
    },
    /// Closed loop, whole windows at once. One JSON line for each point.
    Load {
        /// The toy's address.
        address: SocketAddr,
        /// The toy's process, to report its CPU time a request.
        #[arg(long)]
        pid: Option<u32>,
        /// Seconds a point.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        /// Connections x requests outstanding on each, several separated by commas.
        #[arg(long, default_value = points::DEFAULT, value_delimiter = ',', value_parser = points::point)]
        points: Vec<(usize, usize)>,
    },
}

fn size(text: &str) -> Result<u64, String> {
    Ok(units::within(units::bytes(text)?, FILL_BYTES, 1 << 40)? / FILL_BYTES * FILL_BYTES)
}

/// Does what this command line says. `Err` says what did not work.
pub fn main() -> Result<(), String> {
    // Its name is two words.
    match Arguments::parse_from(std::env::args().skip(1)).command {
        What::Serve { file, listen, depth, size } => {
            serve(file, listen, depth.into(), size).map_err(|error| error.to_string())
        }
        What::Load { address, pid, seconds, points } => {
            for (connections, outstanding) in points {
                let run = load(address, pid, Duration::from_secs(seconds), connections, outstanding);
                let (latency, elapsed, cpu) = transport::run(run).and_then(|run| run).map_err(|e| e.to_string())?;
                let messages = latency.spread.count;
                let cpu = cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / messages as f64);
                println!("{}", line("send", (connections, outstanding), messages, elapsed, &latency, cpu));
            }
            Ok(())
        }
    }
}

fn serve(path: PathBuf, listen: SocketAddr, depth: usize, size: u64) -> io::Result<()> {
    let memory = Region::new(depth + 1, BATCH_BYTES)?;
    let mut ring = Ring::new(RingConfig {
        slots: SLOTS,
        receive_bytes: RECEIVE_BYTES,
        regions: vec![Arc::clone(&memory)],
        ..RingConfig::default()
    })?;
    let file = {
        let zeros = memory.take().expect("a new region is free").split_to(FILL_BYTES as usize);
        filled(&mut ring, path, size, &zeros)?
    };
    let named = |error: io::Error| io::Error::new(error.kind(), format!("--listen={listen}: {error}"));
    let listener = TcpListener::bind(listen).map_err(named)?;
    let address = listener.local_addr()?;
    let door = ring.adopt(listener.into());
    let mut server = Server::new(ring, door, file, size, memory, depth);
    let mut out = io::stdout();
    writeln!(out, "ready limit={address}").and_then(|()| out.flush())?;
    loop {
        server.turn()?;
    }
}

/// What a completion is about: a connection's number, or a write's, above these three bits.
const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const WRITE: u64 = 3;
const SHUTDOWN: u64 = 4;
const KIND_BITS: u32 = 3;
/// Of what nobody waits for.
const IGNORED: Tag = Tag(u64::MAX);

fn tag(kind: u64, number: usize) -> Tag {
    Tag(kind | (number as u64) << KIND_BITS)
}

struct Connection {
    socket: Handle,
    /// The beginning of a request whose end is still to come.
    part: Vec<u8>,
    /// Answers that may be sent.
    owed: usize,
    sending: bool,
    /// The peer has closed, or cannot be reached any more.
    ended: bool,
    /// A shutdown is in the kernel. It looks its socket up late, by number: if that were closed before, the number could
    /// be another connection's by then.
    shutting: bool,
}

/// Requests of one connection, in one batch.
type Share = (usize, usize);

struct Server<I> {
    io: I,
    door: Handle,
    file: Handle,
    file_bytes: u64,
    /// Where the next write goes.
    at: u64,
    memory: Arc<Region>,
    /// The next batch, its bytes so far, and whose they are.
    batch: Chunk,
    filled: usize,
    shares: Vec<Share>,
    /// Of the writes in flight.
    flying: Vec<Option<(usize, Vec<Share>)>>,
    /// Memory of lists.
    spare: Vec<Vec<Share>>,
    /// Received and not yet in a batch, in order. The ring has that many buffers and no more, so it is bounded.
    received: VecDeque<(usize, Bytes)>,
    /// By a number that is never used again.
    connections: HashMap<usize, Connection>,
    next: usize,
    /// Connections that have answers.
    touched: Vec<usize>,
    /// What found no slot.
    refused: VecDeque<(Tag, Op)>,
    done: Vec<Done>,
}

impl<I: Io> Server<I> {
    fn new(io: I, door: Handle, file: Handle, file_bytes: u64, memory: Arc<Region>, depth: usize) -> Server<I> {
        let batch = memory.take().expect("there is a chunk more than there are writes");
        let mut server = Server {
            io,
            door,
            file,
            file_bytes,
            at: 0,
            memory,
            batch,
            filled: 0,
            shares: Vec::new(),
            flying: (0..depth).map(|_| None).collect(),
            spare: Vec::new(),
            received: VecDeque::new(),
            connections: HashMap::new(),
            next: 0,
            touched: Vec::new(),
            refused: VecDeque::new(),
            done: Vec::new(),
        };
        server.submit(tag(ACCEPT, 0), Op::Accept { listener: door });
        server
    }

    /// Takes what has happened, writes what came, and answers what is written. `Err`: it cannot go on.
    fn turn(&mut self) -> io::Result<()> {
        while let Some((tag, op)) = self.refused.pop_front() {
            if let Err(op) = self.io.submit(tag, op) {
                self.refused.push_front((tag, op));
                break;
            }
        }
        let mut done = std::mem::take(&mut self.done);
        self.io.drive(None, &mut done);
        done.drain(..).try_for_each(|done| self.settle(done))?;
        self.done = done;
        self.write();
        self.answer();
        Ok(())
    }

    fn settle(&mut self, Done { tag: this, more, outcome }: Done) -> io::Result<()> {
        if this == IGNORED {
            return Ok(());
        }
        let number = (this.0 >> KIND_BITS) as usize;
        match (this.0 & ((1 << KIND_BITS) - 1), outcome) {
            (ACCEPT, outcome) => {
                match outcome {
                    Ok(Outcome::Accepted { socket, .. }) => self.welcome(socket),
                    // It was gone before it was here.
                    Err(fault) if fault.kind() == ErrorKind::ConnectionAborted => {}
                    other => return Err(unexpected("accepting", other)),
                }
                if !more {
                    self.submit(this, Op::Accept { listener: self.door });
                }
            }
            (RECEIVE, Ok(Outcome::Received(bytes))) if !bytes.is_empty() => {
                self.received.push_back((number, bytes));
                if !more && let Some(connection) = self.connections.get(&number) {
                    let socket = connection.socket;
                    self.submit(this, Op::Receive { socket });
                }
            }
            (RECEIVE, _) => self.end(number, true),
            (SEND, outcome) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.sending = false;
                }
                self.end(number, outcome.is_err());
                self.touched.push(number);
            }
            (SHUTDOWN, _) => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.shutting = false;
                }
                self.end(number, false);
            }
            (_, Ok(Outcome::Count(bytes))) if self.flying[number].as_ref().is_some_and(|(all, _)| *all == bytes) => {
                let (_, mut shares) = self.flying[number].take().expect("just seen");
                for (number, requests) in shares.drain(..) {
                    if let Some(connection) = self.connections.get_mut(&number) {
                        connection.owed += requests;
                        self.touched.push(number);
                    }
                }
                self.spare.push(shares);
            }
            (_, other) => return Err(unexpected("writing", other)),
        }
        Ok(())
    }

    fn welcome(&mut self, socket: Handle) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return self.submit(IGNORED, Op::Close { handle: socket });
        }
        let connection =
            Connection { socket, part: Vec::new(), owed: 0, sending: false, ended: false, shutting: false };
        self.connections.insert(self.next, connection);
        self.submit(tag(RECEIVE, self.next), Op::Receive { socket });
        self.next += 1;
    }

    /// Closes a connection when it is over and nothing of it is in the kernel. What it is owed is forgotten.
    fn end(&mut self, number: usize, now: bool) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let (socket, first) = (connection.socket, now && !connection.ended);
        connection.ended |= now;
        if first {
            // Its receive, if there still is one, ends with it; and a send to a peer that does not read.
            connection.shutting = true;
            self.submit(tag(SHUTDOWN, number), Op::Shutdown { socket });
        } else if connection.ended && !connection.sending && !connection.shutting {
            self.connections.remove(&number);
            self.submit(IGNORED, Op::Close { handle: socket });
        }
    }

    /// Moves what was received into batches, and writes them as long as fewer than `depth` are in flight.
    fn write(&mut self) {
        loop {
            self.fill();
            let Some(free) = self.flying.iter().position(Option::is_none).filter(|_| self.filled > 0) else { return };
            let bytes = self.batch.split_to(blocks_up(self.filled));
            self.filled = 0;
            let length = bytes.len() as u64;
            if self.at + length > self.file_bytes {
                self.at = 0;
            }
            let shares = std::mem::replace(&mut self.shares, self.spare.pop().unwrap_or_default());
            self.flying[free] = Some((bytes.len(), shares));
            self.submit(tag(WRITE, free), Op::Write { file: self.file, at: self.at, bytes, durable: true });
            self.at += length;
            self.batch = self.memory.take().expect("there is a chunk more than there are writes");
        }
    }

    /// Copies whole requests into the batch, as many as fit.
    fn fill(&mut self) {
        while self.filled < BATCH_BYTES
            && let Some((number, bytes)) = self.received.front_mut()
        {
            let Some(connection) = self.connections.get_mut(number) else {
                self.received.pop_front();
                continue;
            };
            let room = &mut self.batch.spare_mut()[self.filled..BATCH_BYTES];
            let mut taken = 0;
            if !connection.part.is_empty() {
                let missing = (REQUEST_BYTES - connection.part.len()).min(bytes.len());
                connection.part.extend_from_slice(&bytes[..missing]);
                bytes.advance(missing);
                if connection.part.len() == REQUEST_BYTES {
                    room[..REQUEST_BYTES].copy_from_slice(&connection.part);
                    connection.part.clear();
                    taken = REQUEST_BYTES;
                }
            }
            let whole = (bytes.len().min(room.len() - taken)) / REQUEST_BYTES * REQUEST_BYTES;
            room[taken..taken + whole].copy_from_slice(&bytes[..whole]);
            bytes.advance(whole);
            taken += whole;
            if taken > 0 {
                self.shares.push((*number, taken / REQUEST_BYTES));
                self.filled += taken;
            }
            if bytes.len() < REQUEST_BYTES {
                connection.part.extend_from_slice(bytes);
                self.received.pop_front();
            }
        }
    }

    /// One send for each connection that is owed something and has none under way.
    fn answer(&mut self) {
        while let Some(number) = self.touched.pop() {
            let Some(connection) = self.connections.get_mut(&number) else { continue };
            if connection.owed == 0 || connection.sending || connection.ended {
                continue;
            }
            let count = connection.owed.min(ANSWERS.len() / ANSWER_BYTES);
            connection.owed -= count;
            connection.sending = true;
            let (socket, answers) = (connection.socket, Bytes::from_static(&ANSWERS[..count * ANSWER_BYTES]));
            self.submit(tag(SEND, number), Op::Send { socket, pieces: [answers].into_iter().collect() });
        }
    }

    fn submit(&mut self, tag: Tag, op: Op) {
        if let Err(op) = self.io.submit(tag, op) {
            self.refused.push_back((tag, op));
        }
    }
}

fn unexpected(what: &str, outcome: Result<Outcome, Fault>) -> io::Error {
    match outcome {
        Ok(outcome) => io::Error::other(format!("{what}: {outcome:?}; is the disk full?")),
        Err(fault) => failed(what, fault),
    }
}

/// Loads a toy in a closed loop. Returns the latencies of all requests, how long it took, and the toy's CPU time
/// meanwhile.
async fn load(
    address: SocketAddr,
    pid: Option<u32>,
    time: Duration,
    connections: usize,
    outstanding: usize,
) -> io::Result<(Latency, Duration, Option<Duration>)> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        streams.push(crate::socket::connect(address).await?);
    }
    let latency = Rc::new(RefCell::new(Latency::default()));
    let cpu = pid.and_then(cpu_time);
    let begin = Instant::now();
    let windows = |stream| tokio_uring::spawn(windows(stream, outstanding, begin + time, Rc::clone(&latency)));
    for task in streams.into_iter().map(windows).collect::<Vec<_>>() {
        let left = (begin + time + DRAIN).saturating_duration_since(Instant::now());
        let ended = tokio::time::timeout(left, task).await;
        ended.map_err(|_| io::Error::new(ErrorKind::TimedOut, format!("{address} does not answer")))???;
    }
    let elapsed = begin.elapsed();
    let cpu = pid.and_then(cpu_time).zip(cpu).map(|(end, begin)| end.saturating_sub(begin));
    Ok((Rc::into_inner(latency).expect("all tasks are over").into_inner(), elapsed, cpu))
}

/// One connection: writes a window, waits for all of its answers, and again.
async fn windows(
    stream: Rc<TcpStream>,
    outstanding: usize,
    until: Instant,
    latency: Rc<RefCell<Latency>>,
) -> io::Result<()> {
    let mut requests = vec![1; outstanding * REQUEST_BYTES];
    let mut answers = vec![0; outstanding * ANSWER_BYTES];
    while Instant::now() < until {
        let written = Instant::now();
        let result;
        (result, requests) = stream.write_all(requests).await;
        result?;
        let mut got = 0;
        while got < answers.len() {
            let (result, slice) = stream.read(answers.slice(got..)).await;
            answers = slice.into_inner();
            match result? {
                0 => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")),
                count => got += count,
            }
        }
        latency.borrow_mut().add(nanos(written.elapsed()), outstanding as u64);
    }
    Ok(())
}

const _: () = assert!(BATCH_BYTES.is_multiple_of(BLOCK) && BATCH_BYTES.is_multiple_of(REQUEST_BYTES));
const _: () = assert!(FILL_BYTES as usize == BATCH_BYTES, "zeros come from a batch's memory, and a file holds one");

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// A kernel that does nothing until it is told so.
    #[derive(Default)]
    struct Script {
        asked: Vec<(Tag, Op)>,
        done: Vec<Done>,
    }

    impl Io for Script {
        fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
            self.asked.push((tag, op));
            Ok(())
        }

        fn drive(&mut self, _wait: Option<Duration>, done: &mut Vec<Done>) {
            done.append(&mut self.done);
        }

        fn wake(&mut self, _core: usize) {}
    }

    fn server(depth: usize) -> Server<Script> {
        let memory = Region::new(depth + 1, BATCH_BYTES).unwrap();
        Server::new(Script::default(), Handle(1), Handle(2), 4 << 20, memory, depth)
    }

    fn happens(server: &mut Server<Script>, tag: Tag, more: bool, outcome: Outcome) {
        server.io.done.push(Done { tag, more, outcome: Ok(outcome) });
        server.turn().unwrap();
    }

    /// Connection 0, 1, ...
    fn connect(server: &mut Server<Script>, number: usize) {
        let peer = (Ipv4Addr::LOCALHOST, 1).into();
        happens(server, tag(ACCEPT, 0), true, Outcome::Accepted { socket: Handle(100 + number as i32), peer });
    }

    fn receive(server: &mut Server<Script>, number: usize, bytes: Vec<u8>) {
        happens(server, tag(RECEIVE, number), true, Outcome::Received(bytes.into()));
    }

    /// The writes that were asked for since: tag, place, bytes.
    fn writes(server: &mut Server<Script>) -> Vec<(Tag, u64, Vec<u8>)> {
        let writes = server.io.asked.extract_if(.., |(_, op)| matches!(op, Op::Write { .. }));
        let parts = |(tag, op)| match op {
            Op::Write { file: Handle(2), at, bytes, durable: true } => (tag, at, bytes.to_vec()),
            other => panic!("{other:?}"),
        };
        writes.map(parts).collect()
    }

    /// The bytes of each send that was asked for since, by its socket.
    fn sends(server: &mut Server<Script>) -> Vec<(i32, usize)> {
        let sends = server.io.asked.extract_if(.., |(_, op)| matches!(op, Op::Send { .. }));
        let bytes = |(_, op)| match op {
            Op::Send { socket, pieces } => (socket.0, pieces.iter().map(Bytes::len).sum()),
            other => panic!("{other:?}"),
        };
        sends.map(bytes).collect()
    }

    #[test]
    fn an_answer_follows_the_write_of_its_request() {
        let mut server = server(1);
        connect(&mut server, 0);
        connect(&mut server, 1);
        receive(&mut server, 0, vec![1; 1000]);
        assert!(writes(&mut server).is_empty(), "a part is no request");
        receive(&mut server, 0, [vec![1; 24], vec![2; 2048], vec![3; 5]].concat());
        let first = writes(&mut server);
        assert_eq!((first.len(), first[0].1, first[0].2.len()), (1, 0, BLOCK), "three requests in a block");
        assert_eq!(first[0].2[..3072], [vec![1; 1024], vec![2; 2048]].concat());
        // With one write in flight others wait, and share the next.
        receive(&mut server, 1, vec![4; 1024]);
        receive(&mut server, 0, vec![3; 1019]);
        assert!(writes(&mut server).is_empty() && sends(&mut server).is_empty());
        happens(&mut server, first[0].0, false, Outcome::Count(BLOCK));
        assert_eq!(sends(&mut server), [(100, 3 * ANSWER_BYTES)]);
        let second = writes(&mut server);
        assert_eq!((second.len(), second[0].1), (1, BLOCK as u64));
        assert_eq!(second[0].2[..2048], [vec![4; 1024], vec![3; 1024]].concat());
        // One send a connection: what is written meanwhile goes with the next.
        happens(&mut server, second[0].0, false, Outcome::Count(BLOCK));
        assert_eq!(sends(&mut server), [(101, ANSWER_BYTES)]);
        happens(&mut server, tag(SEND, 0), false, Outcome::Nothing);
        assert_eq!(sends(&mut server), [(100, ANSWER_BYTES)]);
    }

    #[test]
    fn a_write_carries_no_more_than_a_batch_and_the_file_is_written_round() {
        let mut server = server(4);
        connect(&mut server, 0);
        let requests = 6 * BATCH_BYTES / REQUEST_BYTES;
        receive(&mut server, 0, vec![1; requests * REQUEST_BYTES]);
        let mut flying = writes(&mut server);
        assert_eq!(flying.len(), 4, "as many as may be in flight");
        let mut places: Vec<u64> = Vec::new();
        let mut answered = 0;
        while let Some((tag_of, at, bytes)) = flying.pop() {
            assert_eq!(bytes.len(), BATCH_BYTES);
            places.push(at >> 20);
            happens(&mut server, tag_of, false, Outcome::Count(BATCH_BYTES));
            flying.extend(writes(&mut server));
            happens(&mut server, tag(SEND, 0), false, Outcome::Nothing);
            answered += sends(&mut server).iter().map(|(_, bytes)| bytes / ANSWER_BYTES).sum::<usize>();
        }
        places.sort_unstable();
        assert_eq!((places, answered), (vec![0, 0, 1, 1, 2, 3], requests));
    }

    #[test]
    fn a_peer_that_goes_is_forgotten_and_a_failed_write_ends_it() {
        let mut server = server(1);
        connect(&mut server, 0);
        receive(&mut server, 0, vec![1; 1500]);
        let flying = writes(&mut server);
        happens(&mut server, tag(RECEIVE, 0), false, Outcome::Received(Bytes::new()));
        assert!(matches!(server.io.asked.last(), Some((_, Op::Shutdown { socket: Handle(100) }))), "not yet closed");
        happens(&mut server, tag(SHUTDOWN, 0), false, Outcome::Nothing);
        assert!(matches!(server.io.asked.last(), Some((_, Op::Close { handle: Handle(100) }))));
        happens(&mut server, flying[0].0, false, Outcome::Count(BLOCK));
        assert!(sends(&mut server).is_empty() && server.connections.is_empty());
        connect(&mut server, 1);
        receive(&mut server, 1, vec![1; 1024]);
        let tag = writes(&mut server)[0].0;
        server.io.done.push(Done { tag, more: false, outcome: Ok(Outcome::Count(100)) });
        assert!(server.turn().unwrap_err().to_string().contains("writing: Count(100)"));
    }
}
