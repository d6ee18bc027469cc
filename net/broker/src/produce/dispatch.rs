//! Light queues (LMQ, PROTOCOL 4.17): a producer names them in a property of its message, and each gets a copy.
//!
//! A light queue is a topic of one queue that no NameServer knows; it lies in one partition, as any queue. So such a
//! message goes to the partitions of its light queues, to all of them at once, and when it is durable there into its
//! own queue, in one batch with the copies for that partition. Only then its producer is answered. Copies that do not
//! fit one batch together take several, one after the other. What fails on the way is told to the producer, who sends
//! again: what was acknowledged is in every queue, what was not may be in some.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use engine::error::AppendError;
use engine::format::{QueueKey, RECORD_HEADER_BYTES};
use engine::limits::BATCH_RECORDS_BYTES_MAX;
use protocol::codes::response;
use protocol::names;
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};

use super::{Admitted, Identity, Origin, Piece, Put, Unkept, is_half};
use crate::answer::{BUSY, PROPERTIES_TOO_LONG};
use crate::call::{Call, ReplyTo};
use crate::desk::Desk;
use crate::mail::{Mail, Make};
use crate::promise::Promise;

/// Light queues of one message. 64: each gets a copy of it.
pub const LIGHT_QUEUES_MAX: usize = 64;
/// Bodies of messages that wait in one core until they are somewhere else. 64 MiB; beyond it sends are refused as
/// busy.
pub const TRAVELLING_BYTES_MAX: usize = 64 << 20;
/// Messages that one core has on their way through other partitions. 65,536, some hundred bytes each besides their
/// bodies.
pub const TRAVELS_MAX: usize = 65_536;
/// What an offset takes in a property, with what stands behind it.
const OFFSET_BYTES_MAX: usize = 21;

/// Where a message is stored whose length alone is wanted.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
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
    /// These are copies for one partition: the core that waits for them, and the number that they have there.
    home: Option<(usize, u64)>,
    since_ms: u64,
}

/// A light queue of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Light {
    name: String,
    /// Its offset there, once it was put there.
    offset: Option<u64>,
}

/// Messages that wait for their copies in other partitions.
#[derive(Debug, Default)]
pub struct Travels {
    next: u64,
    open: BTreeMap<u64, Travel>,
    /// Bytes of messages and copies that wait here until they are somewhere else.
    bytes: usize,
}

impl Travels {
    fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= TRAVELLING_BYTES_MAX
    }
}

#[derive(Debug)]
struct Travel {
    dispatch: Box<Dispatch>,
    /// Partitions that are still to say that they have theirs.
    missing: usize,
    error: Option<Unkept>,
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

    /// Copies that fit one batch; one always does.
    fn fits(&self) -> usize {
        let about = self.origin.message(NOWHERE, &self.topic, 0, &self.body, &self.properties);
        let offsets = name::INNER_MULTI_QUEUE_OFFSET.len() + 2 + self.named() * OFFSET_BYTES_MAX;
        (BATCH_RECORDS_BYTES_MAX / (RECORD_HEADER_BYTES + about.encoded_len() + offsets)).max(1)
    }

    /// How many names stand in the property.
    fn named(&self) -> usize {
        let named = properties::get(&self.properties, name::INNER_MULTI_DISPATCH).unwrap_or_default();
        named.split(SEPARATOR).count()
    }
}

/// The light queues among these names, each once. `Err` says what is wrong with them.
fn light_queues(names: &str) -> Result<Vec<Light>, String> {
    let mut light: Vec<Light> = Vec::new();
    for name in names.split(SEPARATOR).filter(|name| names::is_lmq(name)) {
        if light.iter().any(|known| known.name == name) {
            continue;
        }
        names::check_lmq(name).map_err(|error| format!("{}: {error}", name::INNER_MULTI_DISPATCH))?;
        if light.len() == LIGHT_QUEUES_MAX {
            return Err(format!("{}: at most {LIGHT_QUEUES_MAX} names", name::INNER_MULTI_DISPATCH));
        }
        light.push(Light { name: name.to_owned(), offset: None });
    }
    Ok(light)
}

/// The properties of a message for a lite topic: the light queue of that gets it, and no other.
pub(super) fn for_lite(topic: &str, lite: &str, text: &str) -> String {
    let mut text = text.to_owned();
    properties::set(&mut text, name::INNER_MULTI_DISPATCH, &names::lite_queue(topic, lite));
    text
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
            let made = self.sends.make_unique(&self.settings, now_ms);
            properties::append(&mut text, name::UNIQ_KEY, &made);
        }
        self.sends.append_ours(&mut text, said.has_ours);
        let dispatch = Dispatch {
            reply: call.reply,
            topic: send.topic.to_owned(),
            queue: target.queue.queue,
            origin: Origin::of_send(&send, call.peer.address),
            properties: text,
            body: Bytes::copy_from_slice(call.body),
            light,
            ensured: 0,
            home: None,
            since_ms: now_ms,
        };
        let offsets = name::INNER_MULTI_QUEUE_OFFSET.len() + 2 + dispatch.named() * OFFSET_BYTES_MAX;
        if dispatch.properties.len() + offsets > PROPERTIES_BYTES_MAX {
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, PROPERTIES_TOO_LONG);
        }
        self.dispatch(Box::new(dispatch), now_ms);
    }

    /// Goes on with a message: its light queues are made, then its copies for other partitions go there, and at last
    /// it is appended here.
    pub(crate) fn dispatch(&mut self, mut dispatch: Box<Dispatch>, now_ms: u64) {
        if let Some((home, id)) = dispatch.home {
            return self.dispatch_copies(dispatch, home, id, now_ms);
        }
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
        let own = topic.partition_of(dispatch.queue, self.settings.partitions);
        let Some(local) = self.local(own) else {
            return self.hand_on(usize::from(own) % self.settings.cores, dispatch);
        };
        let mut others: BTreeMap<u16, Vec<Light>> = BTreeMap::new();
        for light in &dispatch.light {
            if let Some((partition, _)) = self.waits(light).filter(|(partition, _)| *partition != own) {
                others.entry(partition).or_default().push(light.clone());
            }
        }
        if !others.is_empty() {
            return self.spread(dispatch, others);
        }
        // Its own queue is the first of those it goes to at the end: what is known of it then is answered.
        let fits = dispatch.fits();
        let is_last = dispatch.light.iter().filter(|light| light.offset.is_none()).count() < fits;
        let mut queues = Vec::with_capacity(1 + dispatch.light.len());
        if is_last {
            queues.push(QueueKey { topic: topic.id, queue: dispatch.queue });
        }
        self.take_light(local, own, fits, &mut dispatch, &mut queues);
        self.append_copies(local, &queues, is_last, dispatch, now_ms);
    }

    /// The partition and the queue of a light queue that has no copy yet.
    fn waits(&self, light: &Light) -> Option<(u16, QueueKey)> {
        let topic = self.catalog.topic(&light.name).filter(|_| light.offset.is_none())?;
        Some((topic.partition_of(0, self.settings.partitions), QueueKey { topic: topic.id, queue: 0 }))
    }

    /// Adds light queues of a partition that have no copy yet, up to `fits` queues.
    fn take_light(
        &mut self,
        local: usize,
        partition: u16,
        fits: usize,
        dispatch: &mut Dispatch,
        queues: &mut Vec<QueueKey>,
    ) {
        for index in 0..dispatch.light.len() {
            if queues.len() == fits {
                return;
            }
            let here = self.waits(&dispatch.light[index]).filter(|(there, _)| *there == partition);
            if let Some((_, key)) = here {
                // Nobody else appends to this queue before we do.
                dispatch.light[index].offset = Some(self.partitions[local].next_offset(key));
                queues.push(key);
            }
        }
    }

    /// Sends the copies for other partitions there. The message waits until all of them are durable.
    fn spread(&mut self, dispatch: Box<Dispatch>, others: BTreeMap<u16, Vec<Light>>) {
        let travels = &mut self.sends.travels;
        if !travels.has_room(dispatch.body.len()) || travels.open.len() >= TRAVELS_MAX {
            return self.refuse_append(&dispatch.reply, AppendError::Busy);
        }
        travels.next += 1;
        let id = travels.next;
        let mut travel = Travel { missing: others.len(), error: None, dispatch };
        travels.bytes += travel.dispatch.body.len();
        for (partition, light) in others {
            let copies = Dispatch { light, home: Some((self.index, id)), ..Dispatch::clone(&travel.dispatch) };
            let core = usize::from(partition) % self.settings.cores;
            if self.outbox.offer(core, Mail::Dispatch(Box::new(copies))).is_err() {
                travel.missing -= 1;
                travel.error = Some(AppendError::Busy.into());
            }
        }
        self.sends.travels.open.insert(id, travel);
        self.arrive(id);
    }

    /// Goes on with copies for a partition of this core.
    fn dispatch_copies(&mut self, mut copies: Box<Dispatch>, home: usize, id: u64, now_ms: u64) {
        let Some(next) = copies.light.iter().find(|light| light.offset.is_none()) else {
            let light = std::mem::take(&mut copies.light);
            return self.outbox.send(home, Mail::Dispatched { id, outcome: Ok(light) });
        };
        // A queue that is gone, or was made again elsewhere: the producer sends again.
        let place = self.waits(next).and_then(|(partition, _)| Some((partition, self.local(partition)?)));
        let Some((partition, local)) = place else {
            return self.refuse_copies(&copies.reply, copies.home, AppendError::Busy.into());
        };
        let mut queues = Vec::with_capacity(copies.light.len());
        let fits = copies.fits();
        self.take_light(local, partition, fits, &mut copies, &mut queues);
        self.append_copies(local, &queues, false, copies, now_ms);
    }

    /// The copies for another partition are durable, or never will be.
    pub(crate) fn dispatched(&mut self, id: u64, outcome: Result<Vec<Light>, Unkept>, now_ms: u64) {
        let Some(travel) = self.sends.travels.open.get_mut(&id) else { return };
        travel.missing -= 1;
        match outcome {
            Ok(light) => {
                for light in light {
                    let known = travel.dispatch.light.iter_mut().find(|known| known.name == light.name);
                    known.expect("it was one of the message's").offset = light.offset;
                }
            }
            Err(error) => travel.error = Some(error),
        }
        if let Some(dispatch) = self.arrive(id) {
            self.dispatch(dispatch, now_ms);
        }
    }

    /// Gives a message back whose copies for other partitions are all durable. One of which some never will be is over.
    fn arrive(&mut self, id: u64) -> Option<Box<Dispatch>> {
        if self.sends.travels.open.get(&id).is_none_or(|travel| travel.missing > 0) {
            return None;
        }
        let travel = self.sends.travels.open.remove(&id)?;
        self.sends.travels.bytes -= travel.dispatch.body.len();
        match travel.error {
            None => Some(travel.dispatch),
            Some(error) => {
                self.refuse_unkept(&travel.dispatch.reply, error);
                None
            }
        }
    }

    /// Appends a message to these queues in one batch. `is_last`: the first of them is the message's own queue, and its
    /// producer is answered; else it goes on once that is durable.
    fn append_copies(
        &mut self,
        local: usize,
        queues: &[QueueKey],
        is_last: bool,
        dispatch: Box<Dispatch>,
        now_ms: u64,
    ) {
        let (reply, home, topic, body) = (dispatch.reply, dispatch.home, dispatch.topic.clone(), dispatch.body.clone());
        let mut text = dispatch.properties.clone();
        properties::append(&mut text, name::INNER_MULTI_QUEUE_OFFSET, &dispatch.offsets());
        let piece = Piece::read(dispatch.origin.message(self.store_host(), &topic, dispatch.queue, &body, &text));
        let put = Put::Copies(&piece, queues);
        if is_last {
            let unique = properties::get(&text, name::UNIQ_KEY);
            let says = Identity { unique, recall: None, is_inner: false };
            self.keep_sent(local, &put, says, &reply, dispatch.since_ms, now_ms);
            return;
        }
        if !self.sends.travels.has_room(body.len()) {
            return self.refuse_copies(&reply, home, AppendError::Busy.into());
        }
        match self.keep(local, &put, |_| Promise::Dispatch(dispatch), now_ms) {
            Ok(()) => self.sends.travels.bytes += body.len(),
            Err(unkept) => self.refuse_copies(&reply, home, unkept),
        }
    }

    /// A batch of copies is durable, or never will be.
    pub(crate) fn settle_dispatch(&mut self, dispatch: Box<Dispatch>, outcome: Result<(), AppendError>) {
        self.sends.travels.bytes -= dispatch.body.len();
        match outcome {
            Ok(()) => self.hand_on(self.index, dispatch),
            Err(error) => self.refuse_copies(&dispatch.reply, dispatch.home, error.into()),
        }
    }

    /// A message goes on at a core, or its producer is told to send it again.
    fn hand_on(&mut self, core: usize, dispatch: Box<Dispatch>) {
        let (reply, home) = (dispatch.reply, dispatch.home);
        if self.outbox.offer(core, Mail::Dispatch(dispatch)).is_err() {
            self.refuse_copies(&reply, home, AppendError::Busy.into());
        }
    }

    /// Copies are not stored: their home hears of it, or the producer.
    fn refuse_copies(&mut self, reply: &ReplyTo, home: Option<(usize, u64)>, unkept: Unkept) {
        match home {
            Some((core, id)) => self.outbox.send(core, Mail::Dispatched { id, outcome: Err(unkept) }),
            None => self.refuse_unkept(reply, unkept),
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
