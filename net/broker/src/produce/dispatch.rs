//! Light queues (LMQ, PROTOCOL 4.17): a producer names them in a property of its message, and each gets a copy.
//!
//! A light queue is a topic of one queue that no NameServer knows; it lies in one partition, as any queue. So such a
//! message travels: to one partition of its light queues after the other, durable in each before it goes on, and at
//! last into its own queue, in one batch with the copies for that partition. Only then its producer is answered. What
//! fails on the way is told to the producer, who sends again: what was acknowledged is in every queue, what was not
//! may be in some.

use bytes::Bytes;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::message::Draft;
use protocol::codes::response;
use protocol::names;
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};

use super::{Admitted, Identity, Origin, Piece, collect, is_half};
use crate::answer::{BUSY, PROPERTIES_TOO_LONG};
use crate::call::{Call, ReplyTo};
use crate::desk::Desk;
use crate::mail::{Mail, Make};
use crate::promise::{Promise, Says};

/// Light queues of one message. 64: each gets a copy of it.
pub const LIGHT_QUEUES_MAX: usize = 64;
/// Bodies of messages that wait in one core to go on to the next partition. 64 MiB; beyond it sends are refused as
/// busy.
pub const TRAVELLING_BYTES_MAX: usize = 64 << 20;

/// What stands between the names of light queues, and between their offsets.
const SEPARATOR: char = ',';

/// A message on its way through the partitions of its light queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    reply: ReplyTo,
    topic: String,
    queue: u32,
    origin: Origin,
    /// All but the offsets in the light queues.
    properties: String,
    body: Bytes,
    light: Vec<Light>,
    /// So many of them were asked of the registrar: one of those that is missing cannot be made.
    ensured: usize,
    since_ms: u64,
}

/// A light queue of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Light {
    name: String,
    /// Its offset there, once it was put there.
    offset: Option<u64>,
}

impl Dispatch {
    /// The offsets in the order of the names in the property; nothing for those that are not known yet, and for names
    /// of no light queue.
    fn offsets(&self) -> String {
        let of = |name: &str| self.light.iter().find(|light| light.name == name).and_then(|light| light.offset);
        let named = properties::get(&self.properties, name::INNER_MULTI_DISPATCH).unwrap_or_default();
        let offsets: Vec<String> =
            named.split(SEPARATOR).map(|name| of(name).map_or_else(String::new, |offset| offset.to_string())).collect();
        offsets.join(",")
    }
}

/// The light queues among these names, each once. `Err` says what is wrong with them.
fn light_queues(names: &str) -> Result<Vec<Light>, String> {
    let mut light: Vec<Light> = Vec::new();
    for name in names.split(SEPARATOR).filter(|name| names::is_lmq(name)) {
        if light.iter().any(|known| known.name == name) {
            continue;
        }
        names::check_topic(name).map_err(|error| format!("{}: {error}", name::INNER_MULTI_DISPATCH))?;
        if light.len() == LIGHT_QUEUES_MAX {
            return Err(format!("{}: at most {LIGHT_QUEUES_MAX} names", name::INNER_MULTI_DISPATCH));
        }
        light.push(Light { name: name.to_owned(), offset: None });
    }
    Ok(light)
}

impl Desk {
    /// Whether a message of this topic that names these queues goes to light queues.
    pub(super) fn dispatches(&self, topic: &str, names: &str) -> bool {
        self.settings.has_light_queues() && names::allows_lmq(topic) && names.split(SEPARATOR).any(names::is_lmq)
    }

    /// Begins the way of a message that names light queues.
    pub(super) fn begin_dispatch(&mut self, call: &Call<'_>, admitted: Admitted<'_>, names: &str, now_ms: u64) {
        let Admitted { send, said, target } = admitted;
        if said.is_timer || is_half(&send, &said) || self.delay_until(said.delay_level, now_ms).is_some() {
            let remark = "a message for light queues (INNER_MULTI_DISPATCH) can neither wait nor be of a transaction";
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, remark);
        }
        let mut light = match light_queues(names) {
            Ok(light) => light,
            Err(remark) => return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &remark),
        };
        // What is sent to a light queue goes there anyway.
        light.retain(|light| light.name != send.topic);
        let mut text = send.properties.to_owned();
        properties::remove(&mut text, name::INNER_MULTI_QUEUE_OFFSET);
        if said.unique.is_none() {
            let made = self.make_unique(now_ms);
            properties::append(&mut text, name::UNIQ_KEY, &made);
        }
        self.append_ours(&mut text, said.has_ours);
        let dispatch = Dispatch {
            reply: call.reply,
            topic: send.topic.to_owned(),
            queue: target.queue,
            origin: Origin::of_send(&send, call.peer.address),
            properties: text,
            body: Bytes::copy_from_slice(call.body),
            light,
            ensured: 0,
            since_ms: now_ms,
        };
        self.dispatch(Box::new(dispatch), now_ms);
    }

    /// Goes on with a message: its light queues are made, then it is appended here, or goes where it is to be.
    pub(crate) fn dispatch(&mut self, mut dispatch: Box<Dispatch>, now_ms: u64) {
        let is_missing = |light: &Light| light.offset.is_none() && self.catalog.topic(&light.name).is_none();
        if let Some(index) = dispatch.light.iter().position(is_missing) {
            let reply = dispatch.reply;
            if index < dispatch.ensured {
                if self.catalog.light_queues_count() < self.settings.limits.light_queues {
                    // It could not be made just now.
                    return self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
                }
                let remark = "[LMQ_CONSUME_QUEUE_NUM_EXCEEDED]lmq consume queue num exceeded.";
                return self.refuse(&reply, response::LMQ_QUOTA_EXCEEDED, remark);
            }
            dispatch.ensured = index + 1;
            let topic = dispatch.light[index].name.clone();
            return self.ensure(topic, Make::Light, Mail::Dispatch(dispatch), &reply);
        }
        let Some(topic) = self.catalog.topic(&dispatch.topic).cloned() else {
            return self.refuse_topic(&dispatch.reply, &dispatch.topic);
        };
        let partitions = self.settings.partitions;
        let own = topic.partition_of(dispatch.queue, partitions);
        let waiting = |light: &Light| {
            let topic = self.catalog.topic(&light.name).filter(|_| light.offset.is_none())?;
            Some((topic.partition_of(0, partitions), QueueKey { topic: topic.id, queue: 0 }))
        };
        let next = dispatch.light.iter().filter_map(waiting).map(|(partition, _)| partition).find(|next| *next != own);
        let partition = next.unwrap_or(own);
        let Some(local) = self.local(partition) else {
            return self.hand_on(usize::from(partition) % self.settings.cores, dispatch);
        };

        // Its own queue is the first of those it goes to at the end: what is known of it then is answered.
        let mut queues = Vec::with_capacity(1 + dispatch.light.len());
        if next.is_none() {
            queues.push(QueueKey { topic: topic.id, queue: dispatch.queue });
        }
        for index in 0..dispatch.light.len() {
            let here = waiting(&dispatch.light[index]).filter(|(there, _)| *there == partition);
            if let Some((_, key)) = here {
                // Nobody else appends to this queue before we do.
                dispatch.light[index].offset = Some(self.partitions[local].next_offset(key));
                queues.push(key);
            }
        }
        self.append_copies(local, &queues, &topic.name, next.is_none().then_some(topic.id), dispatch, now_ms);
    }

    /// Appends a message to these queues in one batch. `own`: the topic's id, if the first of them is the message's own
    /// queue; else it goes on once that is durable.
    fn append_copies(
        &mut self,
        local: usize,
        queues: &[QueueKey],
        topic: &str,
        own: Option<u32>,
        dispatch: Box<Dispatch>,
        now_ms: u64,
    ) {
        let (reply, queue, body) = (dispatch.reply, dispatch.queue, dispatch.body.clone());
        let mut text = dispatch.properties.clone();
        properties::append(&mut text, name::INNER_MULTI_QUEUE_OFFSET, &dispatch.offsets());
        if text.len() > PROPERTIES_BYTES_MAX {
            return self.refuse(&reply, response::MESSAGE_ILLEGAL, PROPERTIES_TOO_LONG);
        }
        let has_room = own.is_some() || self.travelling + body.len() <= TRAVELLING_BYTES_MAX;
        if !self.promises.has_room() || !has_room {
            return self.refuse_append(&reply, AppendError::Busy);
        }
        let message = dispatch.origin.message(self.store_host(), topic, queue, &body, &text);
        let piece = Piece {
            message,
            offsets: 1,
            tag_hash: protocol::message::tag_hash_of(&text),
            keys: collect(protocol::message::key_hashes(topic, &text)),
        };
        let bytes = message.encoded_len() as u64;
        let promise = match own {
            Some(_) => {
                Promise::Answer { to: reply, messages: 1, bytes, since_ms: dispatch.since_ms, says: Says::Nothing }
            }
            None => Promise::Dispatch(dispatch),
        };
        let ticket = self.promises.open(promise);
        let mut stored = std::mem::take(&mut self.stored);
        stored.clear();
        self.touched = true;
        let fill = &message;
        let mut fills: Vec<_> = queues.iter().map(|_| move |out: &mut [u8]| fill.encode(out)).collect();
        let mut drafts: Vec<Draft<'_>> =
            queues.iter().zip(&mut fills).map(|(queue, fill)| piece.draft(*queue, fill)).collect();
        let outcome = self.partitions[local].append(&mut drafts, Some(ticket), now_ms, &mut stored);
        match (outcome, own) {
            (Ok(()), Some(id)) => {
                self.stats.put(id, 1, bytes);
                let unique = properties::get(&text, name::UNIQ_KEY);
                self.prepare(ticket, &reply, queue, &stored[..1], Identity { unique, recall: None, is_inner: false });
            }
            (Ok(()), None) => self.travelling += body.len(),
            (Err(error), _) => {
                self.promises.close(ticket);
                self.refuse_append(&reply, error);
            }
        }
        self.stored = stored;
    }

    /// The copies in one partition are durable, or never will be.
    pub(crate) fn settle_dispatch(&mut self, dispatch: Box<Dispatch>, outcome: Result<(), AppendError>) {
        self.travelling -= dispatch.body.len();
        match outcome {
            Ok(()) => self.hand_on(self.index, dispatch),
            Err(error) => self.refuse_append(&dispatch.reply, error),
        }
    }

    /// A message goes on at a core, or its producer is told to send it again.
    fn hand_on(&mut self, core: usize, dispatch: Box<Dispatch>) {
        let reply = dispatch.reply;
        if self.outbox.offer(core, Mail::Dispatch(dispatch)).is_err() {
            self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_light_queues_are_taken_once_and_in_bounds() {
        let names = |text: &str| -> Result<Vec<String>, String> {
            light_queues(text).map(|light| light.into_iter().map(|light| light.name).collect())
        };
        assert_eq!(names("%LMQ%a,b,,%LMQ%b,%LMQ%a"), Ok(vec!["%LMQ%a".to_owned(), "%LMQ%b".to_owned()]));
        assert_eq!(names(""), Ok(Vec::new()));
        assert!(names("%LMQ%a,%LMQ%a b").is_err(), "no name of a topic");
        let many = |count: usize| (0..count).map(|number| format!("%LMQ%{number}")).collect::<Vec<_>>().join(",");
        assert_eq!(names(&many(LIGHT_QUEUES_MAX)).map(|names| names.len()), Ok(LIGHT_QUEUES_MAX));
        assert!(names(&many(LIGHT_QUEUES_MAX + 1)).is_err());
    }
}
