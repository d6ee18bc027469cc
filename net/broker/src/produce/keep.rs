//! The one door into the log for messages.
//!
//! Whoever has messages to store (a send, a batch, a retry, a copy for a light queue, the end of a transaction, a loan that is
//! over) says what is put where and until when, and what is promised for it. What every message has to obey is asked here,
//! whatever was asked before, so that no way into the log can forget it.

use engine::Ticket;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::message::{Description, Draft, Keys, Stamp, Stored};
use engine::partition::Partition;
use protocol::StoredMessage;
use protocol::codes::response;
use protocol::ids::tag_hash;
use protocol::message::{self, PHYSICAL_OFFSET_AT, QUEUE_OFFSET_AT};
use protocol::names::sys_flag;
use protocol::properties::{PROPERTIES_BYTES_MAX, name};

use super::{COMPACTED_FULL, Identity};
use crate::answer::PROPERTIES_TOO_LONG;
use crate::call::ReplyTo;
use crate::desk::Desk;
use crate::promise::Promise;

const IN_DOUBT: &str =
    "whether this topic is deleted is in doubt: the disk failed while it was, and the log has to be read again first";

/// What the log is to do: all of it in one batch.
#[derive(Clone, Copy)]
pub(crate) enum Put<'a> {
    /// A message becomes one of its queue's when its time comes.
    One(&'a Piece<'a>, QueueKey, Until),
    /// Several become their queue's at once.
    Batch(&'a [Piece<'a>], QueueKey),
    /// A message goes into each of these queues at once. The first is its own.
    Copies(&'a Piece<'a>, &'a [QueueKey]),
    /// The half message with this id ends: it becomes that, or nothing.
    End(u64, QueueKey, Option<(&'a Piece<'a>, Until)>),
    /// A message that is written already, with its description, goes into a queue at once.
    Record(&'a [u8], &'a Description, QueueKey),
}

/// When a message becomes one of its queue's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// At once.
    Now,
    /// When it is due, ms since 1970. `key`: what it is recalled by, or 0.
    Due { at_ms: u64, key: u32 },
    /// When its producer has decided; it is asked first at this time, ms since 1970.
    Decided { check_ms: u64 },
}

/// A message, the queue offsets that it takes, its tag and its keys.
pub(crate) struct Piece<'a> {
    message: StoredMessage<'a>,
    offsets: u32,
    tag_hash: i64,
    keys: Keys,
}

/// Why nothing was put into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unkept {
    /// Whether a topic is deleted is in doubt: a message could be lost with it.
    Doubt,
    /// It would be the newest of a key of a compacted topic, and there is no room for that.
    NoRoom,
    /// The properties of a message take more than [`PROPERTIES_BYTES_MAX`].
    TooLong,
    /// The log does not take it.
    Log(AppendError),
}

impl From<AppendError> for Unkept {
    fn from(error: AppendError) -> Unkept {
        Unkept::Log(error)
    }
}

impl<'a> Piece<'a> {
    /// A message with these tags and keys.
    #[inline(always)]
    pub fn new(message: StoredMessage<'a>, tags: Option<&str>, keys: Keys) -> Piece<'a> {
        Piece { message, offsets: 1, tag_hash: tags.map_or(0, tag_hash), keys }
    }

    /// One that was not read yet: its tags and keys are looked for in its properties.
    pub fn read(message: StoredMessage<'a>) -> Piece<'a> {
        let keys = collect(message::key_hashes(message.topic, message.properties));
        Piece { message, offsets: 1, tag_hash: message::tag_hash_of(message.properties), keys }
    }

    /// As many messages in one.
    pub fn of(self, offsets: u32) -> Piece<'a> {
        Piece { offsets, ..self }
    }

    #[inline(always)]
    fn drafted<T>(&self, queue: QueueKey, use_it: impl FnOnce(Draft<'_>) -> T) -> T {
        let mut fill = |out: &mut [u8]| self.message.encode(out);
        use_it(self.draft(queue, &mut fill))
    }

    fn draft<'b>(&'b self, queue: QueueKey, fill: &'b mut dyn FnMut(&mut [u8])) -> Draft<'b> {
        // The record's host bits follow the hosts themselves.
        let is_v6 = self.message.born_host.ip().to_canonical().is_ipv6();
        Draft {
            queue,
            length: self.message.encoded_len(),
            offsets: self.offsets,
            tag_hash: self.tag_hash,
            keys: self.keys.as_slice(),
            stamp: stamp(if is_v6 { sys_flag::BORN_HOST_V6 } else { 0 }),
            fill,
        }
    }
}

impl Until {
    fn due(self) -> Option<(u64, u32)> {
        match self {
            Until::Due { at_ms, key } => Some((at_ms, key)),
            Until::Now | Until::Decided { .. } => None,
        }
    }
}

impl Put<'_> {
    #[inline(always)]
    fn pieces(&self) -> &[Piece<'_>] {
        match self {
            Put::One(piece, ..) | Put::Copies(piece, _) | Put::End(_, _, Some((piece, _))) => {
                std::slice::from_ref(piece)
            }
            Put::Batch(pieces, _) => pieces,
            Put::End(_, _, None) | Put::Record(..) => &[],
        }
    }

    #[inline(always)]
    fn queues(&self) -> &[QueueKey] {
        match self {
            Put::One(_, queue, _) | Put::Batch(_, queue) | Put::End(_, queue, _) | Put::Record(_, _, queue) => {
                std::slice::from_ref(queue)
            }
            Put::Copies(_, queues) => queues,
        }
    }

    /// The queue that a message belongs to.
    #[inline(always)]
    fn queue(&self) -> QueueKey {
        self.queues()[0]
    }

    /// The messages and bytes that count as put by whoever is answered. Copies do not.
    #[inline(always)]
    pub fn counted(&self) -> (u32, u64) {
        let pieces = self.pieces().iter();
        pieces.fold((0, 0), |(messages, bytes), piece| {
            (messages + piece.offsets, bytes + piece.message.encoded_len() as u64)
        })
    }

    #[inline(always)]
    fn begin(
        &self,
        partition: &mut Partition,
        ticket: Option<Ticket>,
        now_ms: u64,
        stored: &mut Vec<Stored>,
    ) -> Result<(), AppendError> {
        stored.clear();
        match *self {
            Put::One(piece, queue, Until::Now) | Put::Batch([piece], queue) | Put::Copies(piece, &[queue]) => {
                piece.drafted(queue, |draft| partition.append(&mut [draft], ticket, now_ms, stored))
            }
            Put::One(piece, queue, Until::Due { at_ms, key }) => piece.drafted(queue, |draft| {
                partition.delay(draft, at_ms, key, ticket, now_ms).map(|place| stored.push(place))
            }),
            Put::One(piece, queue, Until::Decided { check_ms }) => piece.drafted(queue, |draft| {
                partition.prepare(draft, check_ms, ticket, now_ms).map(|place| stored.push(place))
            }),
            Put::Batch(pieces, queue) => {
                let all = pieces.iter().map(|piece| (piece, queue));
                append_all(partition, all, ticket, now_ms, stored)
            }
            Put::Copies(piece, queues) => {
                let all = queues.iter().map(|queue| (piece, *queue));
                append_all(partition, all, ticket, now_ms, stored)?;
                stored.truncate(1);
                Ok(())
            }
            Put::End(id, _, None) => partition.decide(id, None, None, ticket, now_ms),
            Put::End(id, queue, Some((piece, until))) => {
                piece.drafted(queue, |mut draft| partition.decide(id, Some(&mut draft), until.due(), ticket, now_ms))
            }
            Put::Record(record, description, queue) => {
                let draft = Draft {
                    queue,
                    length: record.len(),
                    offsets: 1,
                    tag_hash: description.tag_hash,
                    keys: description.keys.as_slice(),
                    stamp: description.stamp,
                    fill: &mut |out| out.copy_from_slice(record),
                };
                partition.append(&mut [draft], ticket, now_ms, stored)
            }
        }
    }
}

fn append_all<'a>(
    partition: &mut Partition,
    all: impl Iterator<Item = (&'a Piece<'a>, QueueKey)> + Clone,
    ticket: Option<Ticket>,
    now_ms: u64,
    stored: &mut Vec<Stored>,
) -> Result<(), AppendError> {
    let mut fills: Vec<_> = all.clone().map(|(piece, _)| |out: &mut [u8]| piece.message.encode(out)).collect();
    let mut drafts: Vec<Draft<'_>> =
        all.zip(&mut fills).map(|((piece, queue), fill)| piece.draft(queue, fill)).collect();
    partition.append(&mut drafts, ticket, now_ms, stored)
}

impl Desk {
    /// Puts messages into the log of the partition at `local`. Where each of them lies, and the first of copies, stands
    /// in `sends.stored` until the next call. What is promised may tell it; it is kept once they are safe there.
    #[inline(always)]
    pub(crate) fn keep(
        &mut self,
        local: usize,
        put: &Put<'_>,
        promise: impl FnOnce(&mut Desk) -> Promise,
        now_ms: u64,
    ) -> Result<(), Unkept> {
        let ticket = self.put(local, put, now_ms)?;
        let promise = promise(self);
        self.promises.open_next(ticket, promise);
        Ok(())
    }

    /// Puts messages into the log. The next promise, to be opened at once, is of this ticket.
    #[inline(always)]
    fn put(&mut self, local: usize, put: &Put<'_>, now_ms: u64) -> Result<Ticket, Unkept> {
        self.obey(local, put)?;
        let ticket = self.promises.next().ok_or(AppendError::Busy)?;
        put.begin(&mut self.partitions[local], Some(ticket), now_ms, &mut self.sends.stored)?;
        Ok(ticket)
    }

    /// As `keep`, when nobody waits for it.
    pub(super) fn keep_untold(&mut self, local: usize, put: &Put<'_>, now_ms: u64) -> Result<(), Unkept> {
        self.obey(local, put)?;
        Ok(put.begin(&mut self.partitions[local], None, now_ms, &mut self.sends.stored)?)
    }

    /// As `keep`, for a request: its answer tells where the messages lie, or why they do not. `since_ms`: when it came.
    /// False: they do not.
    #[inline(always)]
    pub(super) fn keep_sent(
        &mut self,
        local: usize,
        put: &Put<'_>,
        says: Identity<'_>,
        reply: &ReplyTo,
        since_ms: u64,
        now_ms: u64,
    ) -> bool {
        let (messages, bytes) = put.counted();
        let queue = put.queue();
        match self.put(local, put, now_ms) {
            Ok(ticket) => {
                let answer = |says| Promise::Answer { to: *reply, messages, bytes, since_ms, says };
                self.promise_sent(ticket, reply, queue.queue, says, answer);
                self.stats.put(queue.topic, messages.into(), bytes);
                true
            }
            Err(unkept) => {
                self.refuse_unkept(reply, unkept);
                false
            }
        }
    }

    /// What every message has to obey, wherever it comes from.
    #[inline(always)]
    fn obey(&self, local: usize, put: &Put<'_>) -> Result<(), Unkept> {
        if put.queues().iter().any(|queue| self.catalog.is_doubtful(queue.topic)) {
            return Err(Unkept::Doubt);
        }
        if put.pieces().iter().any(|piece| piece.message.properties.len() > PROPERTIES_BYTES_MAX) {
            return Err(Unkept::TooLong);
        }
        let compacted = self.catalog.compacted();
        if !compacted.is_empty()
            && compacted.contains(&put.queue().topic)
            && !self.has_room_to_stay(local, put.queue(), put.pieces())
        {
            return Err(Unkept::NoRoom);
        }
        Ok(())
    }

    /// Whether there is room for messages of a compacted topic.
    #[cold]
    fn has_room_to_stay(&self, local: usize, queue: QueueKey, pieces: &[Piece<'_>]) -> bool {
        pieces.iter().all(|Piece { message, .. }| {
            let key = message.property(name::KEYS).unwrap_or_default();
            self.partitions[local].has_room_to_stay(queue, key.as_bytes(), message.encoded_len())
        })
    }

    /// Answers that nothing was put into the log.
    pub(super) fn refuse_unkept(&mut self, reply: &ReplyTo, unkept: Unkept) {
        match unkept {
            Unkept::Doubt => self.refuse(reply, response::SERVICE_NOT_AVAILABLE, IN_DOUBT),
            Unkept::NoRoom => self.refuse(reply, response::SYSTEM_BUSY, COMPACTED_FULL),
            Unkept::TooLong => self.refuse(reply, response::MESSAGE_ILLEGAL, PROPERTIES_TOO_LONG),
            Unkept::Log(error) => self.refuse_append(reply, error),
        }
    }
}

/// What the engine wants to know of a stored record, read from its bytes: at recovery, and when a
/// delayed one is delivered.
pub fn describe(record: &[u8]) -> Option<Description> {
    let found = message::describe(record)?;
    Some(Description {
        tag_hash: found.tag_hash,
        store_time_ms: found.store_timestamp.cast_unsigned(),
        stamp: stamp(found.sys_flag),
        keys: collect(found.key_hashes()),
    })
}

/// What compaction asks of a stored record: its key, which is all of its property KEYS, as for a stock broker; and
/// whether it has a body.
pub fn key_of(record: &[u8]) -> Option<(&[u8], bool)> {
    let message = StoredMessage::decode(record).ok()?;
    let key = message.property(name::KEYS).filter(|key| !key.trim().is_empty())?;
    Some((key.as_bytes(), !message.body.is_empty()))
}

/// The first keys of a message: as many as are indexed.
pub(super) fn collect(hashes: impl Iterator<Item = u64>) -> Keys {
    let mut keys = Keys::default();
    for hash in hashes {
        if !keys.push(hash) {
            break;
        }
    }
    keys
}

/// Where a record with these host bits is stamped.
fn stamp(sys_flag: i32) -> Stamp {
    Stamp {
        queue_offset_at: QUEUE_OFFSET_AT,
        position_at: PHYSICAL_OFFSET_AT,
        store_time_at: message::store_timestamp_at(sys_flag),
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;
    use std::sync::Arc;

    use bytes::Bytes;
    use engine::buffer::Region;
    use engine::limits::LogConfig;
    use protocol::Serialize;

    use super::*;
    use crate::call::ConnectionId;
    use crate::catalog::{Catalog, Topic, TopicConfig};
    use crate::config::{Config, Found};
    use crate::mail::{Mailboxes, Store, Wait};
    use crate::produce::Origin;

    /// Topics `T` and `U`; the latter is in doubt. The log is not open: whatever reaches it is refused for that.
    fn desk() -> Desk {
        let memory = Region::new(64, 1 << 20).unwrap();
        let partition = Partition::new(LogConfig::new("/data/0", 0, memory, describe)).unwrap();
        let settings = Arc::new(Config::default().settings(Found::one_core()));
        let mut desk = Desk::new(0, settings, vec![partition], Mailboxes::new(1, 4), 7);
        let mut catalog = Catalog::new(3);
        for (id, name) in [(1, "T"), (2, "U")] {
            let config = TopicConfig::new(name, 1, 6);
            catalog.set_topic(Arc::new(Topic { id, name: name.into(), first_partition: 0, config }));
        }
        catalog.doubt([2].into_iter());
        desk.catalog = Arc::new(catalog);
        desk
    }

    fn origin() -> Origin {
        let born_host = "127.0.0.1:9".parse().unwrap();
        Origin { flag: 0, sys_flag: 0, born_ms: 1, born_host, reconsume_times: 0 }
    }

    #[test]
    fn no_way_into_the_log_forgets_what_a_message_has_to_obey() {
        let (mut desk, host) = (desk(), "127.0.0.1:10911".parse().unwrap());
        let text = "x".repeat(PROPERTIES_BYTES_MAX + 1);
        let [short, long] = [&text[1..], &text].map(|text| Piece::read(origin().message(host, "T", 0, b"body", text)));
        let mut record = vec![0; short.message.encoded_len()];
        short.message.encode(&mut record);
        let description = describe(&record).unwrap();
        let [sure, doubtful] = [1, 2].map(|topic| QueueKey { topic, queue: 0 });
        let unopened = Unkept::Log(AppendError::Opening);
        for (piece, queue, wanted) in
            [(&short, sure, unopened), (&short, doubtful, Unkept::Doubt), (&long, sure, Unkept::TooLong)]
        {
            let untils = [Until::Now, Until::Due { at_ms: 9, key: 0 }, Until::Decided { check_ms: 9 }];
            let copies = [sure, queue];
            let puts = [Put::Batch(from_ref(piece), queue), Put::Copies(piece, &copies)];
            let ends = untils.map(|until| Put::End(0, queue, Some((piece, until))));
            for put in untils.map(|until| Put::One(piece, queue, until)).into_iter().chain(puts).chain(ends) {
                assert_eq!(desk.keep_untold(0, &put, 5), Err(wanted));
            }
        }
        for (queue, wanted) in [(sure, unopened), (doubtful, Unkept::Doubt)] {
            for put in [Put::End(0, queue, None), Put::Record(&record, &description, queue)] {
                assert_eq!(desk.keep_untold(0, &put, 5), Err(wanted));
            }
        }
    }

    #[test]
    fn a_message_that_comes_again_is_not_lost_with_its_topic() {
        let mut desk = desk();
        let connection = ConnectionId { core: 0, slot: 1, generation: 2 };
        for (topic, wanted) in [("T", "the broker is starting up"), ("U", IN_DOUBT)] {
            let store = Store {
                topic: topic.to_owned(),
                queue: 0,
                origin: origin(),
                properties: String::new(),
                body: Bytes::from_static(b"body"),
                wait: Wait::Level(0),
                reply: ReplyTo {
                    connection,
                    opaque: 1,
                    code: 36,
                    version: 0,
                    serialize: Serialize::Json,
                    oneway: false,
                    delivered: false,
                },
            };
            desk.store(store, 5);
            let [reply] = &desk.replies.take()[..] else { panic!("one answer") };
            let text = String::from_utf8_lossy(desk.replies.head(reply)).into_owned();
            assert!(text.contains(wanted), "{topic}: {text}");
        }
    }
}
