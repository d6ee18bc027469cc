//! Answers: what they say, and how they become frames.

use std::ops::Range;

use bytes::Bytes;
use engine::io::Pieces;
use protocol::codes::response;
use protocol::frame::FRAME_BYTES_MAX;
use protocol::{Fields, Header, frame};

use crate::call::{ConnectionId, ReplyTo};

/// Answered when a mailbox or a table is full.
pub const BUSY: &str = "[REJECTREQUEST]system busy, start flow control for a while";
/// Remark for properties that are longer than [`PROPERTIES_BYTES_MAX`](protocol::properties::PROPERTIES_BYTES_MAX).
pub const PROPERTIES_TOO_LONG: &str = "too many properties (over 32 KiB)";
/// Answered when the log has too much to do.
pub const LOG_BUSY: &str = "[PC_SYNCHRONIZED]broker busy, start flow control for a while";

/// Most bytes of an answer's body: a frame carries 64 KiB besides it, generously.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);

/// Why something is not done: the code and the remark of the answer.
pub type Refused = (i32, String);

/// What a request is answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Response code (PROTOCOL 2.2).
    pub code: i32,
    /// Text for people; empty: none.
    pub remark: String,
    /// The response header's fields.
    pub fields: Fields,
    /// The body; empty: none.
    pub body: Bytes,
}

impl Answer {
    /// Success, without fields or body.
    pub fn ok() -> Answer {
        Answer::default()
    }

    /// Success with a body.
    pub fn with_body(body: impl Into<Bytes>) -> Answer {
        Answer { body: body.into(), ..Answer::default() }
    }

    /// A code that says no, and why.
    pub fn refusal(code: i32, remark: impl Into<String>) -> Answer {
        Answer { code, remark: remark.into(), ..Answer::default() }
    }

    /// With one more field.
    pub fn field(mut self, name: &str, value: &str) -> Answer {
        self.fields.push(name, value);
        self
    }
}

/// One frame that is ready to leave.
#[derive(Debug)]
pub struct Reply {
    /// For whom.
    pub connection: ConnectionId,
    /// It answers a request; a push does not.
    pub settles: bool,
    /// Where its first bytes are: see [`Replies::head`].
    head: Range<usize>,
    /// What follows them.
    pub body: Pieces,
}

/// The frames that one turn of a core makes. Their first bytes lie in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Replies {
    bytes: Vec<u8>,
    list: Vec<Reply>,
    body_bytes: usize,
    header: Header,
    request: Header,
}

/// Instead of an answer whose body is left out: the frame that says so, to the same request. `head` is the
/// answer's own frame up to its body.
pub fn flow_control(head: &[u8]) -> Vec<u8> {
    let (serialize, at, _) = frame::split(head).expect("we made this frame");
    let mut answer = Header::default();
    answer.decode(serialize, &head[at]).expect("we made this header");
    let mut refusal = Header::default();
    refusal.answer_to(&answer, response::FLOW_CONTROL);
    refusal.remark.push_str("too many bytes of answers wait for this client");
    let mut out = Vec::new();
    refusal.encode_frame(&mut out, 0);
    out
}

/// First bytes collected before they are handed to their connections: they are copied there while they are in
/// the nearest cache. Some hundred answers to sends.
const HEAD_BYTES: usize = 32 << 10;
/// The same of bodies: the connections' limits then count them.
const BODY_BYTES: usize = 1 << 20;
/// What the buffer keeps for the next frames.
const BYTES_KEPT: usize = 1 << 20;

impl Replies {
    /// An empty answer's header, to be filled before [`Replies::send`].
    #[inline]
    pub fn header(&mut self, to: &ReplyTo, code: i32) -> &mut Header {
        self.request.opaque = to.opaque;
        self.request.serialize = to.serialize;
        self.header.answer_to(&self.request, code);
        &mut self.header
    }

    /// Sends the header with this body. One-way requests get nothing.
    pub fn send(&mut self, to: &ReplyTo, body: Pieces) {
        if to.oneway {
            return;
        }
        let start = self.bytes.len();
        let body_bytes = body.iter().map(Bytes::len).sum();
        self.body_bytes += body_bytes;
        self.header.encode_frame(&mut self.bytes, body_bytes);
        self.list.push(Reply { connection: to.connection, settles: true, head: start..self.bytes.len(), body });
    }

    /// Appends what the header makes before a body of so many bytes, to be sent later.
    pub fn encode(&mut self, body_bytes: usize, out: &mut Vec<u8>) {
        self.header.encode_frame(out, body_bytes);
    }

    /// Sends an answer that was encoded before, with its body.
    pub fn whole(&mut self, connection: ConnectionId, head: &[u8], body: Pieces) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(head);
        self.body_bytes += body.iter().map(Bytes::len).sum::<usize>();
        self.list.push(Reply { connection, settles: true, head: start..self.bytes.len(), body });
    }

    /// Sends an answer.
    pub fn answer(&mut self, to: &ReplyTo, answer: Answer) {
        let header = self.header(to, answer.code);
        header.remark.push_str(&answer.remark);
        header.fields.extend(answer.fields.iter());
        let body = if answer.body.is_empty() { None } else { Some(answer.body) };
        self.send(to, body.into_iter().collect());
    }

    /// Sends a frame that was encoded before.
    #[inline]
    pub fn frame(&mut self, connection: ConnectionId, frame: &[u8], settles: bool) {
        self.write(connection, settles, |out| out.extend_from_slice(frame));
    }

    /// Sends the frame that `write` appends.
    #[inline(always)]
    pub fn write(&mut self, connection: ConnectionId, settles: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        write(&mut self.bytes);
        self.list.push(Reply { connection, settles, head: start..self.bytes.len(), body: Pieces::new() });
    }

    /// Takes the frames out, in order. Their heads stay readable until `clear`.
    pub fn take(&mut self) -> Vec<Reply> {
        self.body_bytes = 0;
        std::mem::take(&mut self.list)
    }

    /// The first bytes of a frame.
    #[inline]
    pub fn head(&self, reply: &Reply) -> &[u8] {
        &self.bytes[reply.head.clone()]
    }

    /// Forgets the heads; `list` is what `take` gave, to be used again.
    pub fn clear(&mut self, mut list: Vec<Reply>) {
        assert!(self.list.is_empty(), "frames were made while others were sent");
        list.clear();
        self.list = list;
        self.bytes.clear();
        if self.bytes.capacity() > BYTES_KEPT {
            self.bytes.shrink_to(BYTES_KEPT);
        }
    }

    /// Whether those that were not taken yet should be handed to their connections now.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.bytes.len() > HEAD_BYTES || self.body_bytes > BODY_BYTES
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{AnswerWriter, Command, Serialize};

    pub(crate) fn to(opaque: i32) -> ReplyTo {
        ReplyTo {
            connection: ConnectionId { core: 0, slot: 1, generation: 2 },
            opaque,
            code: 10,
            version: 479,
            serialize: Serialize::Json,
            oneway: false,
            delivered: false,
        }
    }

    #[test]
    fn an_answer_without_its_body_says_so_to_the_same_request() {
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut replies = Replies::default();
            let to = ReplyTo { serialize, ..to(77) };
            replies.header(&to, 0).fields.push("nextBeginOffset", "3");
            replies.send(&to, Pieces::from_elem(Bytes::from(vec![7; 100_000]), 1));
            let list = replies.take();
            let refusal = Command::decode(flow_control(replies.head(&list[0])).into()).unwrap();
            let header = &refusal.header;
            assert_eq!((header.opaque, header.serialize, header.code), (77, serialize, response::FLOW_CONTROL));
            assert!(header.is_response() && refusal.body.is_empty() && header.fields.is_empty());
        }
    }

    fn frames(replies: &mut Replies) -> Vec<Command> {
        let list = replies.take();
        let frames = list.iter().map(|reply| {
            let bytes = [&[Bytes::copy_from_slice(replies.head(reply))], reply.body.as_slice()].concat().concat();
            Command::decode(bytes.into()).unwrap()
        });
        let frames = frames.collect();
        replies.clear(list);
        frames
    }

    #[test]
    fn answers_become_frames_in_order() {
        let mut replies = Replies::default();
        replies.answer(&to(1), Answer::refusal(17, "why"));
        replies.answer(&to(2), Answer::with_body("body").field("a", "b"));
        replies.answer(&ReplyTo { oneway: true, ..to(3) }, Answer::ok());
        let mut kept = Vec::new();
        let mut later = AnswerWriter::new(&mut kept, Serialize::RocketMq, 4);
        later.int("x", 7);
        later.finish();
        replies.frame(to(4).connection, &kept, true);
        let frames = frames(&mut replies);
        let seen: Vec<_> = frames.iter().map(|frame| (frame.header.opaque, frame.header.code)).collect();
        assert_eq!(seen, [(1, 17), (2, 0), (4, 0)]);
        assert_eq!(frames[0].header.remark, "why");
        assert_eq!((frames[1].header.fields.get("a"), &frames[1].body[..]), (Some("b"), &b"body"[..]));
        assert_eq!(frames[2].header.serialize, Serialize::RocketMq);
        assert_eq!(frames[2].header.fields.get("x"), Some("7"));
        assert!(replies.is_empty());
    }
}
