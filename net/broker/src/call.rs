//! A request: who asks, whom to answer, and what is asked.

use std::net::SocketAddr;

use bytes::Bytes;
use protocol::{Header, Language, Serialize};

/// A connection, for ever: a slot that is used again has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The core that owns it.
    pub core: u16,
    /// Its place in that core's table.
    pub slot: u32,
    /// Which user of that place.
    pub generation: u32,
}

/// Whom to answer, and how: enough to encode an answer without the request at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// Where the answer goes.
    pub connection: ConnectionId,
    /// The request's number.
    pub opaque: i32,
    /// The request's code.
    pub code: i32,
    /// The requester's RocketMQ version.
    pub version: i32,
    /// How the request was written; the answer is written the same way.
    pub serialize: Serialize,
    /// Nobody waits: never answer, not even on failure.
    pub oneway: bool,
    /// A reply that its requester has already: that the copy is not stored is no failure.
    pub delivered: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The connection it asks through.
    pub connection: ConnectionId,
    /// Its address: a message's born host.
    pub address: SocketAddr,
    /// What it is written in.
    pub language: Language,
    /// Its RocketMQ version.
    pub version: i32,
}

/// A request while it is served: everything borrowed, straight from the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Code and fields.
    pub header: &'a Header,
    /// The body.
    pub body: &'a [u8],
    /// Whom to answer.
    pub reply: ReplyTo,
    /// Who asks.
    pub peer: Peer,
    /// It has waited for its topic already.
    pub resumed: bool,
    /// See [`Request::orderly`].
    pub orderly: bool,
}

impl Call<'_> {
    /// A copy that can wait or travel.
    pub fn to_request(self) -> Box<Request> {
        Box::new(Request {
            header: self.header.clone(),
            body: Bytes::copy_from_slice(self.body),
            reply: self.reply,
            peer: self.peer,
            resumed: self.resumed,
            orderly: self.orderly,
        })
    }
}

impl Request {
    /// The request, to be served.
    pub fn call(&self) -> Call<'_> {
        let Request { header, body, reply, peer, resumed, orderly } = self;
        Call { header, body, reply: *reply, peer: *peer, resumed: *resumed, orderly: *orderly }
    }
}

/// A request that must wait or cross to another core, with memory of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Code and fields.
    pub header: Header,
    /// The body; never a slice of a receive buffer.
    pub body: Bytes,
    /// Whom to answer.
    pub reply: ReplyTo,
    /// Who asks.
    pub peer: Peer,
    /// It has already waited for its topic: a topic that is still missing stays missing.
    pub resumed: bool,
    /// A send to a retry topic whose group consumes in order: it held queue locks when this was asked.
    pub orderly: bool,
}
