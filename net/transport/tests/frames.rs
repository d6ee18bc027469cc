//! Goal: whatever a peer does, a server answers, or closes with a counted reason, and a client
//! learns what became of its calls. Method: real sockets on loopback, a server on its own thread.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::command::Command;
use protocol::frame::FRAME_BYTES_MAX;
use tokio::sync::{Semaphore, oneshot};
use transport::{
    CallError, Client, ClientLimits, CloseReason, Counters, Handler, Peer, Server, ServerLimits, listen, run,
};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

/// Echo, with codes that misbehave on purpose.
struct Echo {
    closed: RefCell<Vec<(u64, CloseReason)>>,
    /// A held request goes on with a permit.
    gate: Arc<Semaphore>,
}

const HELD: i32 = 7001;
const SILENT: i32 = 7002;
const BIG: i32 = 7003;
const CLOSED_COUNT: i32 = 7004;

impl Handler for Echo {
    async fn handle(&self, request: Command, _: Peer) -> Option<Command> {
        let mut answer = Command::answer(&request.header, 0);
        match request.header.code {
            HELD => self.gate.acquire().await.unwrap().forget(),
            SILENT => return None,
            BIG => {
                let bytes = request.header.fields.get("bytes").unwrap().parse().unwrap();
                answer.body = vec![7; bytes].into();
            }
            CLOSED_COUNT => answer.header.code = self.closed.borrow().len() as i32,
            _ => answer.body = request.body,
        }
        Some(answer)
    }

    fn closed(&self, peer: Peer, reason: CloseReason) {
        self.closed.borrow_mut().push((peer.connection, reason));
    }
}

struct Rig {
    address: SocketAddr,
    counters: Arc<Counters>,
    gate: Arc<Semaphore>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    fn start(limits: ServerLimits) -> Rig {
        Rig::start_on("127.0.0.1:0".parse().unwrap(), limits)
    }

    fn start_on(address: SocketAddr, limits: ServerLimits) -> Rig {
        let listener = listen(address).unwrap();
        let address = listener.local_addr().unwrap();
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let gate = Arc::new(Semaphore::new(0));
        let (seen, its_gate) = (counters.clone(), gate.clone());
        let thread = std::thread::spawn(move || {
            run(async {
                let echo = Rc::new(Echo { closed: RefCell::default(), gate: its_gate });
                let server = Server::new(vec![listener], echo, limits, seen).unwrap();
                server.serve(async { drop(stopped.await) }).await.unwrap();
            })
            .unwrap();
        });
        Rig { address, counters, gate, stop: Some(stop), thread: Some(thread) }
    }

    fn stop(&mut self) -> Duration {
        let start = Instant::now();
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        start.elapsed()
    }

    fn client(&self) -> Client {
        Client::new(self.address.to_string(), ClientLimits::default())
    }

    /// Waits until so many connections were closed for this reason.
    fn await_closed(&self, reason: CloseReason, count: u64) {
        await_that(&format!("{count} closed as {reason}"), || self.counters.closed(reason) >= count);
        assert_eq!(self.counters.closed(reason), count);
    }
}

/// How many connections, at most `wanted`, this process may open to itself beside other tests:
/// each takes two descriptors, and a shell's usual limit is 1,024.
fn affordable(wanted: usize) -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    wanted.min(soft / 3)
}

fn await_that(what: &str, is_so: impl Fn() -> bool) {
    let give_up = Instant::now() + LONG;
    while !is_so() {
        assert!(Instant::now() < give_up, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn big(bytes: usize) -> Command {
    let mut request = Command::request(BIG);
    request.header.fields.push_int("bytes", bytes as i64);
    request
}

fn with_body(body: impl Into<Bytes>) -> Command {
    Command { body: body.into(), ..Command::request(1) }
}

#[test]
fn many_calls_share_a_connection() {
    let mut rig = Rig::start(ServerLimits::default());
    run(async {
        let client = rig.client();
        let calls: Vec<_> = (0..500u32)
            .map(|number| {
                let client = client.clone();
                tokio_uring::spawn(async move {
                    let body = number.to_be_bytes().repeat(1 + number as usize * 7);
                    let answer = client.call(with_body(body.clone()), LONG).await.unwrap();
                    assert!(answer.header.is_response());
                    assert_eq!(answer.body, body, "call {number}");
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
    })
    .unwrap();
    rig.await_closed(CloseReason::Peer, 1);
    assert_eq!((rig.counters.requests(), rig.counters.answered()), (500, 500));
    assert!(rig.stop() < LONG);
}

#[test]
fn the_longest_frame_passes_and_one_byte_more_does_not() {
    let rig = Rig::start(ServerLimits::default());
    run(async {
        let client = rig.client();
        let overhead = with_body("").encode().len() + 4; // opaque has up to 4 digits more
        let body = vec![1; FRAME_BYTES_MAX - overhead];
        let answer = client.call(with_body(body.clone()), LONG).await.unwrap();
        assert_eq!(answer.body.len(), body.len());
        let long = vec![1; FRAME_BYTES_MAX];
        let refused = client.call(with_body(long), LONG).await;
        assert!(matches!(refused, Err(CallError::TooLarge(_))), "{refused:?}");
        let answer = client.call(big(FRAME_BYTES_MAX), LONG).await.unwrap();
        assert_eq!((answer.header.code, answer.body.len()), (1, 0), "too large an answer");
        assert!(client.is_connected());
    })
    .unwrap();
}

#[test]
fn a_one_way_request_is_never_answered() {
    let rig = Rig::start(ServerLimits::default());
    run(async {
        let client = rig.client();
        client.tell(with_body("x"), LONG).await.unwrap();
        client.call(with_body("y"), LONG).await.unwrap();
    })
    .unwrap();
    rig.await_closed(CloseReason::Peer, 1);
    assert_eq!((rig.counters.requests(), rig.counters.answered()), (2, 1));
}

#[test]
fn a_timed_out_call_leaves_the_connection_to_others() {
    let rig = Rig::start(ServerLimits::default());
    run(async {
        let client = rig.client();
        client.call(with_body("connect"), LONG).await.unwrap();
        let late = client.call(Command::request(HELD), Duration::from_millis(5)).await;
        assert_eq!(late, Err(CallError::Timeout));
        let never = client.call(Command::request(SILENT), Duration::from_millis(100)).await;
        assert_eq!(never, Err(CallError::Timeout));
        rig.gate.add_permits(1);
        assert_eq!(client.call(with_body("z"), LONG).await.unwrap().body, "z");
    })
    .unwrap();
    assert_eq!(rig.counters.accepted(), 1);
}

#[test]
fn a_client_notices_a_dead_server_and_finds_the_next_one() {
    let mut rig = Rig::start(ServerLimits::default());
    let address = rig.address;
    run(async {
        let client = rig.client();
        client.call(with_body("1"), LONG).await.unwrap();
        let waiting = {
            let client = client.clone();
            tokio_uring::spawn(async move { client.call(Command::request(SILENT), LONG).await })
        };
        while rig.counters.requests() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rig.stop();
        let broken = waiting.await.unwrap();
        assert!(matches!(broken, Err(CallError::Broken(_))), "{broken:?}");
        let refused = client.call(with_body("2"), LONG).await;
        assert!(matches!(refused, Err(CallError::Connect(_))), "{refused:?}");
        let again = Rig::start_on(address, ServerLimits::default());
        assert_eq!(client.call(with_body("3"), LONG).await.unwrap().body, "3");
        assert_eq!(again.counters.accepted(), 1);
    })
    .unwrap();
}

#[test]
fn a_client_that_cannot_connect_says_so_in_time() {
    // An address for documentation: no answer, or none that is a connection.
    run(async {
        let within = |connect_timeout| ClientLimits { connect_timeout, ..ClientLimits::default() };
        let nowhere = Client::new("192.0.2.1:9", within(LONG));
        let start = Instant::now();
        let short = Duration::from_millis(50);
        let refused = nowhere.call(with_body("x"), short).await;
        assert!(matches!(refused, Err(CallError::Connect(_))), "{refused:?}");
        assert!(start.elapsed() < LONG, "a call's own time is over first");
        let unnamed = Client::new("no such host", within(SECOND));
        let refused = unnamed.call(with_body("x"), LONG).await;
        assert!(matches!(refused, Err(CallError::Connect(_))), "{refused:?}");
    })
    .unwrap();
}

#[test]
fn bytes_that_are_no_frames_close_and_are_counted() {
    let rig = Rig::start(ServerLimits::default());
    let garbage: &[&[u8]] = &[
        &[0, 0, 0, 0],
        &[0, 0, 0, 3],
        &[0xff; 64],
        &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc],
        &[0, 0, 0, 8, 0, 0, 0, 9, b'{', b'}', b' ', b' '],
        &[0, 0, 0, 6, 0, 0, 0, 2, b'{', b'['],
        &[0, 0, 0, 4, 9, 0, 0, 0],
    ];
    for (count, bytes) in garbage.iter().enumerate() {
        let mut stream = TcpStream::connect(rig.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // A reset counts as closed too: we left bytes unread on the server's side.
        let read = stream.read(&mut [0; 16]);
        assert!(matches!(read, Ok(0) | Err(_)), "{bytes:?}: {read:?}");
        rig.await_closed(CloseReason::Garbage, count as u64 + 1);
    }
    drop(TcpStream::connect(rig.address).unwrap());
    rig.await_closed(CloseReason::Peer, 1);
    let mut stream = TcpStream::connect(rig.address).unwrap();
    stream.write_all(&[0, 0, 0, 50, 0]).unwrap();
    drop(stream);
    rig.await_closed(CloseReason::Broken, 1);
    assert_eq!(rig.counters.open(), 0);
}

#[test]
fn silence_and_dripping_are_closed() {
    let idle_timeout = Duration::from_secs(3);
    let frame = with_body(vec![0; 1000]).encode();
    let give_up = Instant::now() + LONG;
    loop {
        let rig = Rig::start(ServerLimits { idle_timeout, ..ServerLimits::default() });
        let mut silent = TcpStream::connect(rig.address).unwrap();
        let mut dripping = TcpStream::connect(rig.address).unwrap();
        let mut talking = TcpStream::connect(rig.address).unwrap();
        let (mut talked, mut pause, mut is_open) = (Instant::now(), Duration::ZERO, true);
        for byte in &frame {
            // One byte at a time makes no whole frame; whole frames keep a connection.
            if dripping.write_all(&[*byte]).is_err() {
                break;
            }
            is_open &= talking.write_all(&frame).and_then(|()| talking.read_exact(&mut [0; 100])).is_ok();
            pause = pause.max(talked.elapsed());
            talked = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
        }
        await_that("two are closed", || rig.counters.closed(CloseReason::Idle) >= 2);
        let (closed, open) = (rig.counters.closed(CloseReason::Idle), rig.counters.open());
        // Where the machine stands still, who talks is silent, too: that tells nothing.
        if pause.max(talked.elapsed()) >= idle_timeout / 2 {
            assert!(Instant::now() < give_up, "this machine stands still too often");
            continue;
        }
        assert!(is_open && (closed, open) == (2, 1), "who talks stays: {is_open}, {closed} closed, {open} open");
        assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
        break;
    }
}

#[test]
fn a_peer_that_never_reads_holds_one_answer_and_goes() {
    let idle_timeout = Duration::from_millis(500);
    let mut rig = Rig::start(ServerLimits { idle_timeout, ..ServerLimits::default() });
    let mut greedy = TcpStream::connect(rig.address).unwrap();
    greedy.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let request = big(8 << 20).encode();
    for _ in 0..1000 {
        if greedy.write_all(&request).is_err() {
            break;
        }
    }
    rig.await_closed(CloseReason::Idle, 1);
    assert!(rig.counters.requests() < 10, "stopped reading what it cannot answer");

    // Of these it takes no more than the first: whoever counts after they were sent may wait for ever.
    let (asked, mut closed) = (rig.counters.requests(), 1);
    let give_up = Instant::now() + LONG;
    let _greedy = loop {
        assert!(Instant::now() < give_up, "this machine stands still too often");
        let mut greedy = TcpStream::connect(rig.address).unwrap();
        // It may be closed before it has asked, where this thread stands still.
        let _ = greedy.write_all(&request.repeat(5));
        let is_asked = || rig.counters.requests() > asked;
        await_that("asked", || is_asked() || rig.counters.closed(CloseReason::Idle) > closed);
        if is_asked() {
            break greedy;
        }
        closed = rig.counters.closed(CloseReason::Idle);
    };
    assert!(rig.stop() < LONG, "an unread answer does not hold the server");
}

#[test]
fn unfinished_frames_share_a_bounded_memory() {
    let limits = ServerLimits { buffered_bytes_max: 32 << 20, ..ServerLimits::default() };
    let rig = Rig::start(limits);
    let mut start = (15u32 << 20).to_be_bytes().to_vec();
    start.resize(10 << 20, 0);
    let streams: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = TcpStream::connect(rig.address).unwrap();
            let _ = stream.write_all(&start); // Refused ones break half-way.
            stream
        })
        .collect();
    await_that("one refused", || rig.counters.closed(CloseReason::Memory) >= 2);
    drop(streams);
    await_that("all gone", || rig.counters.open() == 0);
    let mut stream = TcpStream::connect(rig.address).unwrap();
    stream.write_all(&with_body(start).encode()).unwrap();
    stream.read_exact(&mut vec![0; 10 << 20]).unwrap();
}

#[test]
fn connections_are_bounded_and_closed_is_called_for_each() {
    let rig = Rig::start(ServerLimits { connections_max: 3, ..ServerLimits::default() });
    let streams: Vec<_> = (0..3).map(|_| TcpStream::connect(rig.address).unwrap()).collect();
    await_that("three", || rig.counters.accepted() == 3);
    let mut more = TcpStream::connect(rig.address).unwrap();
    more.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(more.read(&mut [0]).unwrap(), 0);
    rig.await_closed(CloseReason::Full, 1);
    drop(streams);
    rig.await_closed(CloseReason::Peer, 3);
    let closed = run(async { rig.client().call(Command::request(CLOSED_COUNT), LONG).await.unwrap().header.code });
    assert_eq!(closed.unwrap(), 3);
}

#[test]
fn thousands_of_idle_connections_cost_nothing_to_others() {
    let mut rig = Rig::start(ServerLimits::default());
    let count = affordable(5000);
    let idle: Vec<_> = (0..count).map(|_| TcpStream::connect(rig.address).unwrap()).collect();
    await_that("all accepted", || rig.counters.accepted() == count as u64);
    let frame = with_body("late").encode();
    for mut stream in idle.iter().step_by(100) {
        stream.write_all(&frame).unwrap();
        stream.read_exact(&mut [0; 100]).unwrap();
    }
    assert_eq!(rig.counters.open(), count as u64);
    let took = rig.stop();
    assert!(took < LONG, "stopping took {took:?}");
    assert_eq!(rig.counters.closed(CloseReason::Stopped), count as u64);
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let rig = Rig::start(ServerLimits::default());
    let error = listen(rig.address).unwrap_err();
    assert!(error.to_string().contains(&rig.address.to_string()), "{error}");
}

#[test]
fn limits_out_of_range_name_themselves() {
    let base = ServerLimits::default;
    let cases = [
        ("connections_max", ServerLimits { connections_max: 0, ..base() }),
        ("idle_timeout", ServerLimits { idle_timeout: Duration::ZERO, ..base() }),
        ("buffered_bytes_max", ServerLimits { buffered_bytes_max: 1, ..base() }),
        ("stop_timeout", ServerLimits { stop_timeout: LONG * 9, ..base() }),
    ];
    for (name, limits) in cases {
        assert!(limits.check().unwrap_err().contains(name), "{name}");
    }
    base().check().unwrap();
}
