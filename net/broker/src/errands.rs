//! Requests that the broker makes of clients: what for, and until when an answer is waited for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::answer::Answer;
use crate::call::{ConnectionId, ReplyTo, Request};

/// Most under way at once. 65,536: ten seconds of some thousand replies a second to clients that do not answer.
pub const ERRANDS_MAX: usize = 65_536;
/// Bytes of replies that wait for their clients, with their headers. 256 MiB: sixty of the largest.
pub const ERRAND_BYTES_MAX: usize = 256 << 20;
/// How long a client may take. 10 s, as in RocketMQ. Milliseconds.
pub const ERRAND_MS: u64 = 10_000;
/// Deadlines of errands that are over, besides as many as are open: so seldom are all looked through.
const DEADLINES_SPARE: usize = 1024;

/// What a client is asked for.
#[derive(Debug)]
pub enum Purpose {
    /// What it says is the answer to this request (307, 309).
    Relay(ReplyTo),
    /// It is given a reply (324, 325), which is stored then.
    Reply(Box<Request>),
    /// Its part of a group's status (223).
    Status {
        /// Which question it belongs to.
        survey: u64,
        /// What the client calls itself.
        client: Arc<str>,
    },
}

impl Purpose {
    fn bytes(&self) -> usize {
        match self {
            Purpose::Reply(request) => {
                let header = &request.header;
                let fields: usize = header.fields.iter().map(|(name, value)| name.len() + value.len()).sum();
                size_of::<Request>() + request.body.len() + header.remark.len() + fields
            }
            Purpose::Relay(_) | Purpose::Status { .. } => 0,
        }
    }
}

/// What a client said.
#[derive(Debug)]
pub struct Said {
    /// Through this connection.
    pub connection: ConnectionId,
    /// To the request of this number.
    pub opaque: i32,
    /// The answer.
    pub answer: Answer,
}

/// Those under way.
#[derive(Debug, Default)]
pub struct Errands {
    next: i32,
    open: BTreeMap<(ConnectionId, i32), Purpose>,
    /// Of the replies among them.
    bytes: usize,
    /// In the order in which they began: all may take as long.
    deadlines: VecDeque<(u64, (ConnectionId, i32))>,
}

impl Errands {
    /// Begins one: the number that its request has. `Err`: there are too many.
    pub fn start(&mut self, connection: ConnectionId, purpose: Purpose, now_ms: u64) -> Result<i32, Purpose> {
        if self.open.len() >= ERRANDS_MAX || self.bytes + purpose.bytes() > ERRAND_BYTES_MAX {
            return Err(purpose);
        }
        self.bytes += purpose.bytes();
        self.next = self.next.wrapping_add(1);
        let key = (connection, self.next);
        self.open.insert(key, purpose);
        self.deadlines.push_back((now_ms + ERRAND_MS, key));
        // Those that are over leave their deadlines behind: at most as many as are open, and some.
        if self.deadlines.len() > 2 * self.open.len() + DEADLINES_SPARE {
            let open = &self.open;
            self.deadlines.retain(|(_, key)| open.contains_key(key));
        }
        Ok(self.next)
    }

    /// A client has answered. `None`: nobody asked, or not any more.
    pub fn finish(&mut self, connection: ConnectionId, opaque: i32) -> Option<Purpose> {
        self.remove(&(connection, opaque))
    }

    fn remove(&mut self, key: &(ConnectionId, i32)) -> Option<Purpose> {
        let purpose = self.open.remove(key)?;
        self.bytes -= purpose.bytes();
        Some(purpose)
    }

    /// Takes out those that waited too long.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Purpose> {
        let mut over = Vec::new();
        while let Some((until_ms, key)) = self.deadlines.front().copied()
            && until_ms <= now_ms
        {
            over.extend(self.remove(&key));
            self.deadlines.pop_front();
        }
        over
    }

    /// Takes out those that a connection will never answer.
    pub fn close(&mut self, connection: ConnectionId) -> Vec<Purpose> {
        let range = (connection, i32::MIN)..=(connection, i32::MAX);
        let keys: Vec<_> = self.open.range(range).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(slot: u32) -> ConnectionId {
        ConnectionId { core: 0, slot, generation: 0 }
    }

    fn status(survey: u64) -> Purpose {
        Purpose::Status { survey, client: "c".into() }
    }

    fn surveys(purposes: Vec<Purpose>) -> Vec<u64> {
        let survey = |purpose: &Purpose| match purpose {
            Purpose::Status { survey, .. } => *survey,
            other => panic!("{other:?}"),
        };
        purposes.iter().map(survey).collect()
    }

    #[test]
    fn an_errand_ends_once() {
        let mut errands = Errands::default();
        let numbers: Vec<i32> =
            (0..4).map(|at| errands.start(connection(at % 2), status(at.into()), at.into()).unwrap()).collect();
        assert!(errands.finish(connection(1), numbers[0]).is_none(), "another connection cannot answer");
        assert!(errands.finish(connection(0), numbers[0]).is_some());
        assert!(errands.finish(connection(0), numbers[0]).is_none());
        assert_eq!(surveys(errands.close(connection(1))), [1, 3]);
        assert!(errands.expire(ERRAND_MS + 1).is_empty());
        assert_eq!(surveys(errands.expire(ERRAND_MS + 2)), [2]);
        assert!(errands.open.is_empty() && surveys(errands.expire(u64::MAX)).is_empty());
    }

    #[test]
    fn replies_are_bounded_with_their_headers() {
        let reply = |bytes: usize| {
            let to = connection(1);
            let serialize = protocol::Serialize::Json;
            let mut header = protocol::Header::request(324);
            header.fields.push("properties", &"x".repeat(bytes));
            Purpose::Reply(Box::new(Request {
                header,
                body: bytes::Bytes::new(),
                reply: ReplyTo {
                    connection: to,
                    opaque: 1,
                    code: 324,
                    version: 479,
                    serialize,
                    oneway: false,
                    delivered: false,
                },
                peer: crate::call::Peer {
                    connection: to,
                    address: "10.0.0.1:1".parse().unwrap(),
                    language: protocol::command::Language::Java,
                    version: 479,
                },
                resumed: false,
                orderly: false,
            }))
        };
        let mut errands = Errands { bytes: ERRAND_BYTES_MAX - 4_000, ..Errands::default() };
        assert!(errands.start(connection(1), reply(4_000), 0).is_err());
        let opaque = errands.start(connection(1), reply(2_000), 0).unwrap();
        assert!(errands.bytes > ERRAND_BYTES_MAX - 2_000 && errands.finish(connection(1), opaque).is_some());
        assert_eq!(errands.bytes, ERRAND_BYTES_MAX - 4_000);
    }

    #[test]
    fn errands_are_bounded() {
        let mut errands = Errands::default();
        for number in 0..10_000 {
            let opaque = errands.start(connection(1), status(number), 0).unwrap();
            assert!(errands.finish(connection(1), opaque).is_some());
        }
        assert!(errands.deadlines.len() <= 1_100, "deadlines left behind are thrown away");
        for number in 0..ERRANDS_MAX as u64 {
            errands.start(connection(1), status(number), 0).unwrap();
        }
        assert!(errands.start(connection(2), status(0), 0).is_err());
    }
}
