//! Connections: pipes in pieces, each with a client on its other end.

use super::random::Random;
use crate::io::{Done, Fault, Handle, Op, Outcome, Tag};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

/// Bytes sent and not received by the client, beyond which a send waits.
const WINDOW_BYTES: usize = 256 << 10;

#[derive(Debug)]
enum End {
    Listener(Listener),
    Socket(Socket),
}

/// What is armed, and of which core.
type Armed = Option<(usize, Tag)>;

#[derive(Debug, Default)]
struct Listener {
    accept: Armed,
    waiting: VecDeque<Handle>,
}

#[derive(Debug, Default)]
struct Socket {
    receive: Armed,
    /// From the client, and to it.
    inbox: BytesMut,
    outbox: BytesMut,
    hung_up: bool,
    /// The connection broke: there is no orderly end behind what was received.
    broken: bool,
    shut: bool,
}

/// Listeners and sockets, by the handles that the kernel gave them.
#[derive(Debug, Default)]
pub struct Network {
    ends: BTreeMap<Handle, End>,
}

impl Network {
    /// A listener.
    pub fn listen(&mut self, listener: Handle) {
        self.ends.insert(listener, End::Listener(Listener::default()));
    }

    /// A client connects to a listener.
    pub fn connect(&mut self, socket: Handle, listener: Handle) {
        self.ends.insert(socket, End::Socket(Socket::default()));
        match self.ends.get_mut(&listener) {
            Some(End::Listener(listener)) => listener.waiting.push_back(socket),
            other => panic!("{other:?} is no listener"),
        }
    }

    /// See [`Sim::send`](super::Sim::send).
    pub fn send(&mut self, client: Handle, bytes: &[u8]) {
        if let Some(socket) = self.socket(client) {
            socket.inbox.extend_from_slice(bytes);
        }
    }

    /// See [`Sim::take`](super::Sim::take).
    pub fn take(&mut self, client: Handle, bytes_max: usize) -> Option<Bytes> {
        let socket = self.socket(client)?;
        let count = socket.outbox.len().min(bytes_max);
        (!socket.shut || !socket.outbox.is_empty()).then(|| socket.outbox.split_to(count).freeze())
    }

    /// See [`Sim::hang_up`](super::Sim::hang_up).
    pub fn hang_up(&mut self, client: Handle) {
        if let Some(socket) = self.socket(client) {
            socket.hung_up = true;
        }
    }

    /// See [`Sim::cut`](super::Sim::cut).
    pub fn cut(&mut self, client: Handle, random: &mut Random) {
        if let Some(socket) = self.socket(client) {
            let kept = random.below(socket.inbox.len() as u64 + 1) as usize;
            socket.inbox.truncate(kept);
            socket.outbox.clear();
            (socket.hung_up, socket.broken) = (true, random.chance(500));
        }
    }

    /// Arms what completes many times: it has its completions from [`serve`](Network::serve).
    pub fn arm(&mut self, core: usize, tag: Tag, op: &Op) {
        let (Op::Accept { listener: handle } | Op::Receive { socket: handle }) = op else {
            unreachable!("{op:?} completes once")
        };
        let armed = self.ends.get_mut(handle).map(End::armed).unwrap_or_else(|| panic!("{op:?} on nothing"));
        assert!(armed.is_none(), "{op:?} is armed already");
        *armed = Some((core, tag));
    }

    /// Whether there was something with this tag.
    pub fn disarm(&mut self, core: usize, tag: Tag) -> bool {
        self.ends.values_mut().any(|end| end.armed().take_if(|armed| *armed == (core, tag)).is_some())
    }

    /// Whether something armed by this core may complete.
    pub fn has_news(&self, core: usize) -> bool {
        let armed = |armed: &Armed| armed.is_some_and(|(owner, _)| owner == core);
        self.ends.values().any(|end| match end {
            End::Listener(listener) => armed(&listener.accept) && !listener.waiting.is_empty(),
            End::Socket(socket) => armed(&socket.receive) && socket.has_news(),
        })
    }

    /// What connections have to tell a core, in the order of their handles.
    pub fn serve(&mut self, core: usize, haste: u32, lacking: u32, random: &mut Random, done: &mut Vec<Done>) {
        let mut accepted = Vec::new();
        for end in self.ends.values_mut() {
            match end {
                End::Listener(Listener { accept: Some((owner, tag)), waiting }) if *owner == core => {
                    accepted.extend(waiting.drain(..).map(|socket| (*tag, socket)));
                }
                End::Listener(_) => {}
                End::Socket(socket) => {
                    let Some((_, tag)) = socket.receive.filter(|(owner, _)| *owner == core) else { continue };
                    if !socket.has_news() || !random.chance(haste) {
                        continue;
                    }
                    let outcome = socket.receive(lacking, random);
                    let more = matches!(&outcome, Ok(Outcome::Received(piece)) if !piece.is_empty());
                    if !more {
                        socket.receive = None;
                    }
                    done.push(Done { tag, more, outcome });
                }
            }
        }
        done.extend(accepted.into_iter().map(|(tag, socket)| {
            let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + (socket.0 % 50_000) as u16));
            Done { tag, more: true, outcome: Ok(Outcome::Accepted { socket, peer }) }
        }));
    }

    /// A send that waits for its client.
    pub fn is_stuck(&self, socket: Handle) -> bool {
        match self.ends.get(&socket) {
            Some(End::Socket(socket)) => {
                !socket.shut && !socket.hung_up && !socket.broken && socket.outbox.len() >= WINDOW_BYTES
            }
            _ => false,
        }
    }

    /// Brings what was sent to the client. `None`: not yet.
    pub fn deliver(&mut self, socket: Handle, pieces: &[Bytes]) -> Option<Result<Outcome, Fault>> {
        let Some(socket) = self.socket(socket) else { return Some(Err(Fault(libc::EBADF))) };
        if socket.hung_up || socket.shut {
            return Some(Err(Fault(libc::EPIPE)));
        }
        if socket.outbox.len() >= WINDOW_BYTES {
            return None;
        }
        pieces.iter().for_each(|piece| socket.outbox.extend_from_slice(piece));
        Some(Ok(Outcome::Nothing))
    }

    /// Ends both directions. The client may still take what was sent.
    pub fn shut(&mut self, socket: Handle) -> Result<Outcome, Fault> {
        self.socket(socket).ok_or(Fault(libc::EBADF))?.shut = true;
        Ok(Outcome::Nothing)
    }

    /// Closes a socket or a listener.
    pub fn close(&mut self, handle: Handle) -> Result<Outcome, Fault> {
        self.shut(handle).or_else(|fault| self.ends.remove(&handle).map(|_| Outcome::Nothing).ok_or(fault))
    }

    fn socket(&mut self, socket: Handle) -> Option<&mut Socket> {
        match self.ends.get_mut(&socket) {
            Some(End::Socket(socket)) => Some(socket),
            _ => None,
        }
    }
}

impl End {
    fn armed(&mut self) -> &mut Armed {
        match self {
            End::Listener(listener) => &mut listener.accept,
            End::Socket(socket) => &mut socket.receive,
        }
    }
}

impl Socket {
    fn has_news(&self) -> bool {
        !self.inbox.is_empty() || self.hung_up || self.shut
    }

    /// The next piece of what came, so many times in a thousand none for want of a buffer.
    fn receive(&mut self, lacking: u32, random: &mut Random) -> Result<Outcome, Fault> {
        if !self.inbox.is_empty() && random.chance(lacking) {
            return Err(Fault(libc::ENOBUFS));
        }
        if self.inbox.is_empty() && self.broken {
            return Err(Fault(libc::ECONNRESET));
        }
        let count = self.inbox.len().min(1 + random.below(16 << 10) as usize);
        Ok(Outcome::Received(self.inbox.split_to(count).freeze()))
    }
}
