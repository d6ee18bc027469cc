//! A connection that asks: many calls at once over one socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Shutdown, ToSocketAddrs};
use std::rc::Rc;
use std::time::Duration;

use protocol::command::{Command, FLAG_ONEWAY};
use protocol::frame::FRAME_BYTES_MAX;
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_uring::net::TcpStream;
use tracing::debug;

use crate::inbox::Inbox;

/// Memory of a written batch that is kept for the next one. 256 KiB.
const KEPT_BYTES: usize = 256 * 1024;

/// Bounds of a client.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Resolving the name and connecting together. 3 s, as in the stock client.
    pub connect_timeout: Duration,
    /// Calls that wait for their answers at once. 65,536. One more is `Busy`.
    pub calls_max: usize,
    /// Requests that wait for the socket. 64 MiB, four of the longest frames. Beyond: `Busy`.
    pub unsent_bytes_max: usize,
}

impl Default for ClientLimits {
    fn default() -> ClientLimits {
        ClientLimits { connect_timeout: Duration::from_secs(3), calls_max: 65_536, unsent_bytes_max: 64 * 1024 * 1024 }
    }
}

/// Why a call has no answer: one variant for each decision the caller can make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nothing was sent: no connection. Try another address.
    Connect(String),
    /// Sent perhaps, answered never: the connection broke. Ask again only if that does no harm.
    Broken(String),
    /// Sent perhaps; no answer in time. The connection stays, a late answer is dropped.
    Timeout,
    /// Nothing was sent: too many calls or unsent bytes. Retry soon.
    Busy,
    /// Never retry: the request is longer than a frame may be.
    TooLarge(usize),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Connect(why) => write!(f, "no connection: {why}"),
            CallError::Broken(why) => write!(f, "the connection broke: {why}"),
            CallError::Timeout => f.write_str("no answer in time"),
            CallError::Busy => f.write_str("too many calls at once"),
            CallError::TooLarge(bytes) => write!(f, "a request of {bytes} bytes fits no frame"),
        }
    }
}

impl std::error::Error for CallError {}

/// Asks one server. Connects at the first call, and again at the first call after the connection
/// broke. Clones share the connection; it is closed with the last of them.
#[derive(Clone)]
pub struct Client {
    inner: Rc<Inner>,
}

impl Client {
    /// - `target`: `host:port`; a name is resolved at each connect, off the loop.
    /// - Connects to nothing yet.
    pub fn new(target: impl Into<String>, limits: ClientLimits) -> Client {
        let inner = Inner {
            target: target.into(),
            limits,
            opaque: Cell::new(0),
            open: RefCell::default(),
            dialing: Mutex::default(),
        };
        Client { inner: Rc::new(inner) }
    }

    /// What it was made for.
    pub fn target(&self) -> &str {
        &self.inner.target
    }

    /// Whether a connection stands, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.inner.connection_now().is_some()
    }

    /// Sends a request and waits for its answer, `timeout` at most, connecting included. Numbers
    /// the request itself (`opaque`). Dropping the future forgets the call.
    pub async fn call(&self, request: Command, timeout: Duration) -> Result<Command, CallError> {
        let deadline = Instant::now() + timeout;
        let connection = self.inner.connection(deadline).await?;
        let (call, answer) = self.post(&connection, request)?;
        let answered = timeout_at(deadline, answer).await;
        drop(call);
        match answered {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::Broken(connection.why_broken())),
            Err(_) => Err(CallError::Timeout),
        }
    }

    /// Sends a one-way request. `Ok` says that it waits for the socket, no more; `timeout` bounds
    /// the connecting.
    pub async fn tell(&self, mut request: Command, timeout: Duration) -> Result<(), CallError> {
        let connection = self.inner.connection(Instant::now() + timeout).await?;
        request.header.flag |= FLAG_ONEWAY;
        request.header.opaque = self.inner.next_opaque();
        connection.send(&request, &self.inner.limits)
    }

    /// Closes the connection, if there is one; calls under way end as `Broken`.
    pub fn disconnect(&self) {
        if let Some(connection) = self.inner.open.borrow_mut().take() {
            connection.fail("closed by this side");
        }
    }

    fn post(
        &self,
        connection: &Rc<Connection>,
        mut request: Command,
    ) -> Result<(Call, oneshot::Receiver<Command>), CallError> {
        let (sender, answer) = oneshot::channel();
        let opaque = {
            let mut waiting = connection.waiting.borrow_mut();
            if waiting.len() >= self.inner.limits.calls_max {
                return Err(CallError::Busy);
            }
            let mut opaque = self.inner.next_opaque();
            while waiting.contains_key(&opaque) {
                opaque = self.inner.next_opaque();
            }
            waiting.insert(opaque, sender);
            opaque
        };
        let call = Call { connection: connection.clone(), opaque };
        request.header.opaque = opaque;
        connection.send(&request, &self.inner.limits)?;
        Ok((call, answer))
    }
}

struct Inner {
    target: String,
    limits: ClientLimits,
    opaque: Cell<i32>,
    open: RefCell<Option<Rc<Connection>>>,
    /// Held by whoever connects; an attempt outlives a caller that gives up.
    dialing: Mutex<Option<Attempt>>,
}

type Attempt = oneshot::Receiver<io::Result<std::net::TcpStream>>;

impl Inner {
    fn next_opaque(&self) -> i32 {
        let opaque = self.opaque.get();
        // Positive for ever: some tools print it.
        self.opaque.set(opaque.wrapping_add(1) & i32::MAX);
        opaque
    }

    fn connection_now(&self) -> Option<Rc<Connection>> {
        self.open.borrow().as_ref().filter(|connection| !connection.is_broken()).cloned()
    }

    async fn connection(&self, deadline: Instant) -> Result<Rc<Connection>, CallError> {
        if let Some(connection) = self.connection_now() {
            return Ok(connection);
        }
        let in_time = timeout_at(deadline, self.connect()).await;
        in_time.unwrap_or_else(|_| Err(CallError::Connect("not in time".into())))
    }

    async fn connect(&self) -> Result<Rc<Connection>, CallError> {
        let mut dialing = self.dialing.lock().await;
        if let Some(connection) = self.connection_now() {
            return Ok(connection); // Somebody was faster.
        }
        let attempt = match dialing.as_mut() {
            Some(attempt) => attempt,
            None => dialing.insert(dial(self.target.clone(), self.limits.connect_timeout)?),
        };
        let dialed = attempt.await;
        *dialing = None;
        let stream = match dialed {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(CallError::Connect(format!("{}: {error}", self.target))),
            Err(_) => return Err(CallError::Connect("the connecting thread died".into())),
        };
        let connection = Connection::open(stream);
        *self.open.borrow_mut() = Some(connection.clone());
        Ok(connection)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(connection) = self.open.get_mut() {
            connection.fail("closed by this side");
        }
    }
}

/// Resolves and connects on a thread of its own: neither can be cancelled half-way, and resolving
/// has no other way. A thread, not the runtime's pool: a stopping program does not wait for it.
fn dial(target: String, connect_timeout: Duration) -> Result<Attempt, CallError> {
    let (done, attempt) = oneshot::channel();
    let work = move || {
        let deadline = std::time::Instant::now() + connect_timeout;
        // Whoever waited may be gone: then the socket closes here.
        let _ = done.send(connect_before(&target, deadline));
    };
    std::thread::Builder::new()
        .name("dial".into())
        .spawn(work)
        .map_err(|error| CallError::Connect(format!("no thread to connect with: {error}")))?;
    Ok(attempt)
}

fn connect_before(target: &str, deadline: std::time::Instant) -> io::Result<std::net::TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in target.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match std::net::TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// One socket with its calls.
struct Connection {
    stream: TcpStream,
    waiting: RefCell<HashMap<i32, oneshot::Sender<Command>>>,
    /// Encoded requests that the writer has not taken.
    unsent: RefCell<Vec<u8>>,
    wake: Notify,
    broken: RefCell<Option<String>>,
}

impl Connection {
    fn open(stream: std::net::TcpStream) -> Rc<Connection> {
        let connection = Rc::new(Connection {
            stream: TcpStream::from_std(stream),
            waiting: RefCell::default(),
            unsent: RefCell::default(),
            wake: Notify::new(),
            broken: RefCell::default(),
        });
        tokio_uring::spawn(write_on(connection.clone()));
        tokio_uring::spawn(read_on(connection.clone()));
        connection
    }

    fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    fn why_broken(&self) -> String {
        self.broken.borrow().clone().unwrap_or_default()
    }

    fn send(&self, request: &Command, limits: &ClientLimits) -> Result<(), CallError> {
        if self.is_broken() {
            return Err(CallError::Broken(self.why_broken()));
        }
        let mut unsent = self.unsent.borrow_mut();
        if unsent.len() + request.body.len() > limits.unsent_bytes_max {
            return Err(CallError::Busy);
        }
        let start = unsent.len();
        request.header.encode_frame(&mut unsent, request.body.len());
        let length = unsent.len() - start + request.body.len();
        if length > FRAME_BYTES_MAX {
            unsent.truncate(start);
            return Err(CallError::TooLarge(length));
        }
        unsent.extend_from_slice(&request.body);
        self.wake.notify_one();
        Ok(())
    }

    /// Ends both loops and every call. The first reason stays.
    fn fail(&self, why: &str) {
        if !self.is_broken() {
            debug!(why, "connection ends");
            *self.broken.borrow_mut() = Some(why.to_owned());
        }
        self.waiting.borrow_mut().clear();
        self.wake.notify_one();
        if let Err(error) = self.stream.shutdown(Shutdown::Both) {
            debug!(%error, "shutdown"); // The peer was faster.
        }
    }
}

/// A call that waits; forgotten when it goes.
struct Call {
    connection: Rc<Connection>,
    opaque: i32,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.connection.waiting.borrow_mut().remove(&self.opaque);
    }
}

/// Writes what callers leave, all that there is in one go.
async fn write_on(connection: Rc<Connection>) {
    let mut batch = Vec::new();
    while !connection.is_broken() {
        std::mem::swap(&mut batch, &mut connection.unsent.borrow_mut());
        if batch.is_empty() {
            connection.wake.notified().await;
            continue;
        }
        let (written, bytes) = connection.stream.write_all(batch).await;
        batch = bytes;
        batch.clear();
        batch.shrink_to(KEPT_BYTES);
        if let Err(error) = written {
            connection.fail(&format!("writing: {error}"));
        }
    }
}

/// Reads answers and hands each to its call.
async fn read_on(connection: Rc<Connection>) {
    let mut inbox = Inbox::new();
    let why = loop {
        match take_answers(&connection, &mut inbox) {
            Ok(()) => inbox.make_room(),
            Err(why) => break why,
        }
        match inbox.fill(&connection.stream).await {
            Ok(0) => break "closed by the server".to_owned(),
            Ok(_) => {}
            Err(error) => break format!("reading: {error}"),
        }
    };
    connection.fail(&why);
}

fn take_answers(connection: &Connection, inbox: &mut Inbox) -> Result<(), String> {
    while let Some(frame) = inbox.cut().map_err(|error| error.to_string())? {
        let answer = Command::decode(frame).map_err(|error| error.to_string())?;
        if !answer.header.is_response() {
            continue; // A server's own request: this client takes none.
        }
        if let Some(call) = connection.waiting.borrow_mut().remove(&answer.header.opaque) {
            // A caller that gave up in this very turn does not want it.
            let _ = call.send(answer);
        }
    }
    Ok(())
}
