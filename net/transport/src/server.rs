//! A listener that answers frames.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use protocol::codes::response;
use protocol::command::{Command, Header};
use protocol::frame::FRAME_BYTES_MAX;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_uring::net::TcpStream;
use tracing::{debug, info, warn};

use crate::counters::{CloseReason, Counters};
use crate::inbox::{IDLE_BYTES, Inbox};
use crate::seldom::Seldom;

/// Connections that the kernel holds until we accept them. 1,024, as in a stock server.
const BACKLOG: i32 = 1024;
/// Answers to pipelined requests leave together once they are this long. 64 KiB.
const FLUSH_BYTES_WANTED: usize = 64 * 1024;
/// How long `listen` waits for a dead process to let go of its port. 3 s, as for a broker's: its ring is torn down
/// some tens of milliseconds after `kill -9`, on a busy machine later.
const LISTEN_PATIENCE: Duration = Duration::from_secs(3);
/// How often `listen` looks again. The kernel has no event for a port that becomes free.
const LISTEN_INTERVAL: Duration = Duration::from_millis(20);
/// The longest pause after a failed accept if no connection ends before. 1 s.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Connections at once. 65,536 (1 to 1,000,000). One more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// A connection that completes no frame in either direction for so long is closed. 120 s, as
    /// in a stock server (10 ms to 1 h). The check runs at least four times in that time.
    pub idle_timeout: Duration,
    /// Memory of unfinished frames and unread answers, of all connections together. 256 MiB
    /// (32 MiB to 64 GiB: one frame in and one out must fit). A connection that needs more is closed.
    pub buffered_bytes_max: usize,
    /// How long a stopping server waits for answers to leave. 2 s (0 to 60 s).
    pub stop_timeout: Duration,
}

impl Default for ServerLimits {
    fn default() -> ServerLimits {
        ServerLimits {
            connections_max: 65_536,
            idle_timeout: Duration::from_secs(120),
            buffered_bytes_max: 256 * 1024 * 1024,
            stop_timeout: Duration::from_secs(2),
        }
    }
}

impl ServerLimits {
    /// `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=1_000_000).contains(&self.connections_max) {
            return Err("connections_max must be 1 to 1,000,000".into());
        }
        if !(Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&self.idle_timeout) {
            return Err("idle_timeout must be 10 ms to 1 h".into());
        }
        if !((32 << 20)..=(64 << 30)).contains(&self.buffered_bytes_max) {
            return Err("buffered_bytes_max must be 32 MiB to 64 GiB".into());
        }
        if self.stop_timeout > Duration::from_secs(60) {
            return Err("stop_timeout must be 0 to 60 s".into());
        }
        Ok(())
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which connection: counts up from 1, never used again by this server.
    pub connection: u64,
    /// Its address.
    pub address: SocketAddr,
}

/// What a server does with requests.
pub trait Handler: 'static {
    /// Answers one request. The requests of one connection come one after another, in order; those
    /// of different connections interleave wherever this awaits. `None` leaves it unanswered, and
    /// so does the server with a one-way request.
    fn handle(&self, request: Command, peer: Peer) -> impl Future<Output = Option<Command>>;

    /// Called once for each connection, after its last request.
    fn closed(&self, peer: Peer, reason: CloseReason) {
        debug!(connection = peer.connection, address = %peer.address, %reason, "closed");
    }
}

/// Listens on one address, without `SO_REUSEPORT` (with it a second process would bind the same
/// port unseen). Port 0 lets the kernel choose. Waits up to three seconds for a port in use: a process
/// that was just killed lets go of it a moment late.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let give_up = std::time::Instant::now() + LISTEN_PATIENCE;
    loop {
        match bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if std::time::Instant::now() >= give_up {
                    let text = format!("{address} is in use by another process");
                    return Err(io::Error::new(error.kind(), text));
                }
                std::thread::sleep(LISTEN_INTERVAL);
            }
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("listening on {address}: {error}")));
            }
            Ok(listener) => return Ok(listener),
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // A listener on [::] takes IPv4 peers too, whatever the host's default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Answers frames on one or more listeners until it is told to stop.
pub struct Server<H: Handler> {
    shared: Rc<Shared<H>>,
    listeners: Vec<TcpListener>,
}

impl<H: Handler> Server<H> {
    /// Takes listeners made by `listen`. `Err` if a limit is out of its range.
    pub fn new(
        listeners: Vec<TcpListener>,
        handler: Rc<H>,
        limits: ServerLimits,
        counters: Arc<Counters>,
    ) -> Result<Server<H>, String> {
        limits.check()?;
        let shared = Shared {
            handler,
            limits,
            counters,
            connections: RefCell::default(),
            connection_next: Cell::new(1),
            doors: Cell::new(0),
            buffered_bytes: Cell::new(0),
            is_stopping: Cell::new(false),
            has_panicked: Cell::new(false),
            strangers: Seldom::default(),
            left: Notify::new(),
        };
        Ok(Server { shared: Rc::new(shared), listeners })
    }

    /// Serves until `stop` is ready: then takes nothing new, lets answers leave, and closes.
    ///
    /// Runs inside `run`. Takes at most `stop_timeout` and a little more to stop. Panics if the
    /// handler did: half-applied state is not served on.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let Server { shared, listeners } = self;
        for listener in &listeners {
            let door = tokio_uring::net::TcpListener::from_std(listener.try_clone()?);
            shared.doors.set(shared.doors.get() + 1);
            tokio_uring::spawn(welcome(shared.clone(), door));
        }
        let reaper = tokio_uring::spawn(reap(shared.clone()));
        tokio::select! {
            () = stop => {}
            () = shared.until(|shared| shared.has_panicked.get()) => {}
        }
        reaper.abort();
        shared.is_stopping.set(true);
        for listener in &listeners {
            // A pending accept returns an error: dropping it would leave it to the kernel.
            SockRef::from(listener).shutdown(Shutdown::Both)?;
        }
        shared.end_all(Shutdown::Read);
        let is_empty = |shared: &Shared<H>| shared.doors.get() == 0 && shared.is_empty();
        if timeout(shared.limits.stop_timeout, shared.until(is_empty)).await.is_err() {
            info!("closing connections that do not read their answers");
            shared.end_all(Shutdown::Both);
            // With both directions shut every operation ends at once; a handler that still
            // works on its last request is dropped with the runtime.
            let _ = timeout(ACCEPT_PAUSE, shared.until(is_empty)).await;
        }
        assert!(!shared.has_panicked.get(), "a request's handler panicked");
        Ok(())
    }
}

/// What all tasks of a server see.
struct Shared<H> {
    handler: Rc<H>,
    limits: ServerLimits,
    counters: Arc<Counters>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    connection_next: Cell<u64>,
    /// Accept loops that run.
    doors: Cell<usize>,
    buffered_bytes: Cell<usize>,
    is_stopping: Cell<bool>,
    has_panicked: Cell<bool>,
    strangers: Seldom,
    /// Somebody left: a connection or an accept loop.
    left: Notify,
}

impl<H: Handler> Shared<H> {
    fn is_empty(&self) -> bool {
        self.connections.borrow().is_empty()
    }

    /// Waits until it is so, looking whenever somebody left.
    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // From here on a departure is not missed.
            left.as_mut().enable();
            if is_so(self) {
                return;
            }
            left.await;
        }
    }

    fn end_all(&self, how: Shutdown) {
        for connection in self.connections.borrow().values() {
            connection.end(CloseReason::Stopped, how);
        }
    }

    /// Notes what a connection holds now. `false`: all together would hold too much.
    fn charge(&self, connection: &Connection, bytes: usize) -> bool {
        // What every idle connection costs is bounded by their number.
        let bytes = bytes.saturating_sub(IDLE_BYTES);
        let others = self.buffered_bytes.get() - connection.charged_bytes.get();
        if bytes > 0 && others + bytes > self.limits.buffered_bytes_max {
            return false;
        }
        connection.charged_bytes.set(bytes);
        self.buffered_bytes.set(others + bytes);
        true
    }
}

/// One accepted socket.
struct Connection {
    peer: Peer,
    stream: TcpStream,
    /// When a whole frame last came or went.
    touched: Cell<Instant>,
    charged_bytes: Cell<usize>,
    /// The first reason given wins.
    reason: Cell<Option<CloseReason>>,
}

impl Connection {
    fn touch(&self) {
        self.touched.set(Instant::now());
    }

    /// Makes pending reads (and writes, with `Both`) return.
    fn end(&self, reason: CloseReason, how: Shutdown) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
        }
        if let Err(error) = self.stream.shutdown(how) {
            // The peer was faster.
            debug!(connection = self.peer.connection, %error, "shutdown");
        }
    }
}

/// Accepts until the server stops.
async fn welcome<H: Handler>(shared: Rc<Shared<H>>, door: tokio_uring::net::TcpListener) {
    while !shared.is_stopping.get() {
        match door.accept().await {
            Ok((stream, address)) => admit(&shared, stream, address),
            Err(_) if shared.is_stopping.get() => break,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Mostly no descriptors left: try again when one may have come free.
                warn!(%error, "cannot accept connections");
                let _ = timeout(ACCEPT_PAUSE, shared.left.notified()).await;
            }
        }
    }
    shared.doors.set(shared.doors.get() - 1);
    shared.left.notify_waiters();
}

fn admit<H: Handler>(shared: &Rc<Shared<H>>, stream: TcpStream, address: SocketAddr) {
    shared.counters.count_accepted();
    if shared.is_stopping.get() {
        return shared.counters.count_closed(CloseReason::Stopped);
    }
    if shared.connections.borrow().len() >= shared.limits.connections_max {
        return shared.counters.count_closed(CloseReason::Full);
    }
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%address, %error, "no TCP_NODELAY");
    }
    let id = shared.connection_next.get();
    shared.connection_next.set(id + 1);
    let connection = Rc::new(Connection {
        peer: Peer { connection: id, address },
        stream,
        touched: Cell::new(Instant::now()),
        charged_bytes: Cell::new(0),
        reason: Cell::new(None),
    });
    shared.connections.borrow_mut().insert(id, connection.clone());
    let guest = Guest { shared: shared.clone(), connection };
    tokio_uring::spawn(async move {
        let reason = guest.serve().await;
        guest.connection.end(reason, Shutdown::Both);
    });
}

/// Closes what has been silent for too long.
async fn reap<H: Handler>(shared: Rc<Shared<H>>) {
    let idle = shared.limits.idle_timeout;
    let mut ticks = interval((idle / 4).min(Duration::from_secs(5)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        for connection in shared.connections.borrow().values() {
            if now.saturating_duration_since(connection.touched.get()) >= idle {
                connection.end(CloseReason::Idle, Shutdown::Both);
            }
        }
    }
}

/// A connection in the table, from its accept to its last word.
struct Guest<H: Handler> {
    shared: Rc<Shared<H>>,
    connection: Rc<Connection>,
}

impl<H: Handler> Guest<H> {
    /// Reads, answers, and says why it ended.
    async fn serve(&self) -> CloseReason {
        let Guest { shared, connection } = self;
        let mut inbox = Inbox::new();
        let mut answers = Answers::default();
        loop {
            loop {
                let command = match inbox.cut() {
                    Ok(None) => break,
                    Ok(Some(frame)) => Command::decode(frame).map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                let request = match command {
                    Ok(request) => request,
                    Err(error) => {
                        if shared.strangers.may_tell() {
                            info!(address = %connection.peer.address, error, "not our protocol");
                        }
                        return CloseReason::Garbage;
                    }
                };
                connection.touch();
                if request.header.is_response() {
                    continue; // We asked nothing.
                }
                self.answer(request, &mut answers).await;
                if !shared.charge(connection, inbox.capacity() + answers.bytes.capacity()) {
                    return CloseReason::Memory;
                }
                if answers.bytes.len() >= FLUSH_BYTES_WANTED && self.flush(&mut answers).await.is_err() {
                    return CloseReason::Broken;
                }
            }
            if self.flush(&mut answers).await.is_err() {
                return CloseReason::Broken;
            }
            if shared.is_stopping.get() {
                return CloseReason::Stopped;
            }
            inbox.make_room();
            if !shared.charge(connection, inbox.capacity()) {
                return CloseReason::Memory;
            }
            match inbox.fill(&connection.stream).await {
                Ok(0) if inbox.is_inside_frame() => return CloseReason::Broken,
                Ok(0) => return CloseReason::Peer,
                Ok(_) => {}
                Err(error) => {
                    debug!(address = %connection.peer.address, %error, "read");
                    return CloseReason::Broken;
                }
            }
        }
    }

    async fn answer(&self, request: Command, answers: &mut Answers) {
        let Guest { shared, connection } = self;
        shared.counters.count_request();
        let is_oneway = request.header.is_oneway();
        let header = Command::answer(&request.header, 0).header;
        let Some(mut answer) = shared.handler.handle(request, connection.peer).await else {
            return;
        };
        if is_oneway {
            return; // Nobody waits for it: an answer would meet no request.
        }
        // Whatever the handler made of them, these pair an answer with its request.
        answer.header.opaque = header.opaque;
        answer.header.flag |= header.flag;
        let start = answers.bytes.len();
        answer.header.encode_frame(&mut answers.bytes, answer.body.len());
        answers.bytes.extend_from_slice(&answer.body);
        let length = answers.bytes.len() - start;
        if length > FRAME_BYTES_MAX {
            answers.bytes.truncate(start);
            let remark = format!("the answer's {length} bytes exceed a frame's {FRAME_BYTES_MAX}");
            answer.header = Header { code: response::SYSTEM_ERROR, remark, ..header };
            answer.header.encode_frame(&mut answers.bytes, 0);
        }
        answers.count += 1;
    }

    /// Writes what there is. A peer that does not read stops us here, holding one batch of answers.
    async fn flush(&self, answers: &mut Answers) -> io::Result<()> {
        if answers.bytes.is_empty() {
            return Ok(());
        }
        let Answers { bytes, count } = std::mem::take(answers);
        let (written, mut bytes) = self.connection.stream.write_all(bytes).await;
        written?;
        self.connection.touch();
        self.shared.counters.count_answers(count);
        if bytes.capacity() <= FLUSH_BYTES_WANTED {
            bytes.clear();
            answers.bytes = bytes;
        }
        Ok(())
    }
}

impl<H: Handler> Drop for Guest<H> {
    fn drop(&mut self) {
        let Guest { shared, connection } = self;
        shared.charge(connection, 0);
        shared.connections.borrow_mut().remove(&connection.peer.connection);
        let reason = connection.reason.get().unwrap_or(CloseReason::Stopped);
        shared.counters.count_closed(reason);
        if std::thread::panicking() {
            shared.has_panicked.set(true);
        } else {
            shared.handler.closed(connection.peer, reason);
        }
        shared.left.notify_waiters();
    }
}

/// Encoded and not written yet.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    count: u64,
}
