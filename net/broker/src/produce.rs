//! Producing: sends (10, 310) and batches (320), and how any message gets into the log (PROTOCOL 2.3,
//! 3.7, 4.1, 4.9).

use std::net::SocketAddr;
use std::sync::Arc;

use engine::format::QueueKey;
use engine::limits::{BATCH_RECORDS_MAX, FACT_BYTES_MAX};
use engine::message::Stored;
use protocol::Alike;
use protocol::codes::{request, response};
use protocol::headers::SendMessage;
use protocol::ids::{UniqueId, key_hash};
use protocol::message::{BatchEntries, BatchEntry};
use protocol::names::{self, ext, perm, sys_flag};
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};

use crate::answer::{BUSY, PROPERTIES_TOO_LONG};
use crate::call::{Call, ReplyTo};
use crate::catalog::{Destination, Group};
use crate::config::Settings;
use crate::desk::Desk;
use crate::mail::{Ensure, Mail, Make};
use crate::place::draw;

mod dispatch;
mod inner;
mod keep;
mod origin;
mod retry;
mod said;
mod sent;
mod timer;
mod transaction;

pub use dispatch::{Dispatch, Light, Travels};
pub(crate) use keep::Put;
pub use keep::{Unkept, describe, key_of};
pub use origin::Origin;
pub(crate) use sent::write_sent;
pub use timer::Sought;

use keep::{Piece, Until};
use said::Said;
use sent::{Identity, write_place};

/// Longest topic that fits a record whose topic length is one byte; batches know only those.
const BATCH_TOPIC_BYTES_MAX: usize = names::TOPIC_BYTES_MAX;

/// Messages of a usual batch: so many are read without growing a list.
const BATCH_USUAL: usize = 64;
/// Longest body of a message that may stay as the newest of its key: it has to fit a fact with any properties.
const STAYING_BODY_MAX: usize = FACT_BYTES_MAX - PROPERTIES_BYTES_MAX - names::TOPIC_BYTES_MAX - 1024;
/// Said to a message that would be the newest of a new key.
const COMPACTED_FULL: &str =
    "the compacted topics of this partition are full: messages for keys that are there are taken";

/// What a core keeps for sends.
pub(crate) struct Sends {
    /// Tells the unique ids made here from those of other cores and other starts.
    maker: u64,
    /// Tells them from each other.
    counter: u16,
    /// The properties that the broker writes into every message.
    ours: String,
    /// What every answer to a send ends with.
    pub(crate) told: Alike,
    /// Memory that is used again: a message's properties, an append's results, an answer's message ids.
    text: String,
    stored: Vec<Stored>,
    ids: String,
    /// Messages that wait for their copies in light queues of other partitions.
    travels: Travels,
}

impl Sends {
    /// `maker`: a number that no other core and no other start has.
    pub(crate) fn new(settings: &Settings, maker: u64) -> Sends {
        let mut sends = Sends {
            maker,
            counter: 0,
            ours: String::new(),
            told: Alike::default(),
            text: String::new(),
            stored: Vec::new(),
            ids: String::new(),
            travels: Travels::default(),
        };
        sends.configure(settings);
        sends
    }

    /// What the broker writes into messages and answers follows its configuration.
    pub(crate) fn configure(&mut self, settings: &Settings) {
        let trace_on = if settings.trace_on { "true" } else { "false" };
        self.told = Alike::new(&[(ext::MSG_REGION, &settings.region), (ext::TRACE_ON, trace_on)]);
        self.ours.clear();
        properties::append(&mut self.ours, name::CLUSTER, &settings.cluster);
        properties::append(&mut self.ours, name::MSG_REGION, &settings.region);
        properties::append(&mut self.ours, name::TRACE_ON, trace_on);
    }

    /// Appends the properties that the broker writes (PROTOCOL 4.1, item 11). `has_ours`: some may be
    /// there already, as on a message that was consumed and is sent again.
    fn append_ours(&self, text: &mut String, has_ours: bool) {
        if has_ours {
            properties::remove_all(text, &[name::POP_CK, name::CLUSTER, name::MSG_REGION, name::TRACE_ON]);
        }
        properties::end(text);
        text.push_str(&self.ours);
    }

    /// An id for a message that has none.
    fn make_unique(&mut self, settings: &Settings, now_ms: u64) -> String {
        self.counter = self.counter.wrapping_add(1);
        UniqueId {
            ip: settings.broker_ip1.into(),
            process: self.maker as u16,
            maker: (self.maker >> 16) as u32,
            now_ms,
            counter: self.counter,
        }
        .to_string()
    }
}

/// A send that passed its checks.
struct Admitted<'a> {
    send: SendMessage<'a>,
    said: Said<'a>,
    target: Target,
}

/// Where a message goes: a queue of a partition of this core.
#[derive(Clone, Copy)]
struct Target {
    local: usize,
    queue: QueueKey,
}

impl Desk {
    /// SEND_MESSAGE (10), SEND_MESSAGE_V2 (310).
    pub(crate) fn send(&mut self, call: &Call<'_>, now_ms: u64) {
        let for_lite;
        let mut said = Said::default();
        let Some((mut send, target, _)) = self.admit(call, &mut said) else { return };
        if let Some(lite) = said.lite {
            for_lite = dispatch::for_lite(send.topic, lite, send.properties);
            send.properties = &for_lite;
            said = Said::read(send.topic, &for_lite);
        }
        if send.topic.starts_with(names::RETRY_PREFIX) && self.is_retry_over(call, &send, now_ms) {
            return;
        }
        if let Some(names) = said.dispatch
            && self.dispatches(send.topic, names)
        {
            return self.begin_dispatch(call, Admitted { send, said, target }, names, now_ms);
        }

        if said.deletes.is_some() && said.is_timer && timer::deletes(&send, &said) {
            return self.delete_timer(call, Sought::new(self.settings.cores - 1), now_ms);
        }
        let mut text = std::mem::take(&mut self.sends.text);
        text.clear();
        text.push_str(send.properties);
        if said.priority.is_some() && said.has_type {
            // Of two types, this one does not count.
            properties::remove(&mut text, name::PRIORITY);
        }
        let made;
        let unique = match said.unique {
            Some(unique) => unique,
            None => {
                made = self.sends.make_unique(&self.settings, now_ms);
                properties::append(&mut text, name::UNIQ_KEY, &made);
                said.keys.push(key_hash(send.topic, &made));
                &made
            }
        };
        self.sends.append_ours(&mut text, said.has_ours);
        let until = match self.send_until(&send, &said, target.queue.queue, unique, &mut text, now_ms) {
            Ok(until) => until,
            Err((code, remark)) => {
                self.sends.text = text;
                return self.refuse(&call.reply, code, &remark);
            }
        };
        let mut origin = Origin::of_send(&send, call.peer.address);
        if said.is_half {
            origin.sys_flag &= !sys_flag::TRANSACTION_MASK;
        }
        let message = origin.message(self.store_host(), send.topic, target.queue.queue, call.body, &text);
        let piece = Piece::new(message, said.tags, said.keys);
        let recall = self.recall_handle(&send, until, unique);
        let says = Identity { unique: Some(unique), recall: recall.as_deref(), is_inner: false };
        self.keep_sent(target.local, &Put::One(&piece, target.queue, until), says, &call.reply, now_ms, now_ms);
        self.sends.text = text;
    }

    /// SEND_BATCH_MESSAGE (320): separate records in one batch of the log, all or nothing; or one that holds them.
    pub(crate) fn send_batch(&mut self, call: &Call<'_>, now_ms: u64) {
        let mut said = Said::default();
        let Some((send, target, topic)) = self.admit(call, &mut said) else { return };
        let entries: Vec<BatchEntry<'_>> = match self.entries(call.body) {
            Ok(entries) => entries,
            Err(remark) => return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &remark),
        };
        let is_for_light = |entry: &BatchEntry<'_>| {
            let names = properties::get(entry.properties, name::INNER_MULTI_DISPATCH);
            names.is_some_and(|names| self.dispatches(send.topic, names))
        };
        if self.settings.has_light_queues() && entries.iter().any(is_for_light) {
            let remark = "messages for light queues (INNER_MULTI_DISPATCH) cannot be sent in a batch";
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, remark);
        }
        if said.delay_level > 0 || send.sys_flag & sys_flag::TRANSACTION_MASK != 0 {
            let remark = "a batch is stored at once: it has no delay, and is no half message";
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, remark);
        }
        if entries.iter().any(|entry| entry.body.is_empty()) {
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, "a message of the batch has no body");
        }
        if topic.keeps_batches && said.unique.is_some() {
            let count = entries.len();
            return self.send_inner(call, Admitted { send, said, target }, count, now_ms);
        }
        let (store_host, origin) = (self.store_host(), Origin::of_send(&send, call.peer.address));
        let pieces: Vec<Piece<'_>> = entries
            .iter()
            .map(|entry| {
                let said = Said::read(send.topic, entry.properties);
                let origin = Origin { flag: entry.flag, ..origin };
                let message = origin.message(store_host, send.topic, target.queue.queue, entry.body, entry.properties);
                Piece::new(message, said.tags, said.keys)
            })
            .collect();
        let says = Identity { unique: said.unique, recall: None, is_inner: false };
        self.keep_sent(target.local, &Put::Batch(&pieces, target.queue), says, &call.reply, now_ms, now_ms);
    }

    /// Reads a send and checks it (PROTOCOL 4.1). `said` gets what its properties say. `None`: it is answered, or waits
    /// for its topic.
    #[inline(always)]
    fn admit<'a>(&mut self, call: &Call<'a>, said: &mut Said<'a>) -> Option<(SendMessage<'a>, Target, Destination)> {
        let send = match SendMessage::parse(call.header.code, &call.header.fields) {
            Ok(send) => send,
            Err(error) => {
                self.refuse_field(&call.reply, error);
                return None;
            }
        };
        let topic = self.topic_to_send(call, &send)?;
        said.fill(send.topic, send.properties);
        let target = self.target(call, &send, said, topic)?;
        let mut checked = self.check_message(call, &send, topic, said);
        if topic.is_compacted {
            checked = checked.and_then(|()| check_stays(call, &send, said));
        }
        match checked {
            Ok(()) => Some((send, target, topic)),
            Err((code, remark)) => {
                self.refuse(&call.reply, code, &remark);
                None
            }
        }
    }

    /// A send of some priority goes to its queue, which another core has.
    #[cold]
    fn send_by_priority(&mut self, call: &Call<'_>, queue: u32) {
        let mut request = call.to_request();
        let name = if call.header.code == request::SEND_MESSAGE { "queueId" } else { "e" };
        request.header.fields.push_int(name, queue);
        // It comes back to this core first, which then finds out whose it is.
        if self.outbox.offer(self.index, Mail::Request(request)).is_err() {
            self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// The topic of a send, once the checks of PROTOCOL 4.1, items 4 to 7, are passed. `None`: the
    /// request is answered, or waits for its topic.
    fn topic_to_send(&mut self, call: &Call<'_>, send: &SendMessage<'_>) -> Option<Destination> {
        let Some(topic) = self.catalog.topic(send.topic) else {
            self.make_topic(call, send);
            return None;
        };
        // The name was checked when the topic was made; only those of RocketMQ's own are closed.
        let remark = if !perm::writeable(self.settings.permission) && topic.is_ordered() {
            self.forbidden("message")
        } else if names::is_closed_topic(send.topic) {
            closed(send.topic)
        } else if self.catalog.is_doubtful(topic.id) {
            self.refuse_unkept(&call.reply, Unkept::Doubt);
            return None;
        } else {
            return Some(topic.destination());
        };
        self.refuse(&call.reply, response::NO_PERMISSION, &remark);
        None
    }

    /// A send to a topic that does not exist waits until it is made, if it may be.
    fn make_topic(&mut self, call: &Call<'_>, send: &SendMessage<'_>) {
        if let Err(error) = names::check_topic(send.topic) {
            return self.refuse(&call.reply, response::INVALID_PARAMETER, &error.to_string());
        }
        if names::is_closed_topic(send.topic) {
            return self.refuse(&call.reply, response::NO_PERMISSION, &closed(send.topic));
        }
        if call.resumed {
            return self.refuse_topic(&call.reply, send.topic);
        }
        let how = match names::group_of_retry_topic(send.topic) {
            Some(group) => Make::Retry { group: group.to_owned() },
            None if self.settings.has_light_queues() && names::is_lmq(send.topic) => Make::Light,
            None => Make::Send { template: send.default_topic.to_owned(), queues: send.default_topic_queue_nums },
        };
        self.ensure_and_resume(call, send.topic.to_owned(), how);
    }

    /// What is said to messages that this broker does not take.
    fn forbidden(&self, what: &str) -> String {
        format!("the broker[{}] sending {what} is forbidden", self.settings.broker_ip1)
    }

    /// Asks the registrar for a topic or a group, and goes on with the request when it is there.
    pub(crate) fn ensure_and_resume(&mut self, call: &Call<'_>, topic: String, how: Make) {
        let mut request = call.to_request();
        request.resumed = true;
        self.ensure(topic, how, Mail::Request(request), &call.reply);
    }

    /// A group's configuration, if it has or needs none.
    #[inline]
    pub(crate) fn group(&self, name: &str) -> Option<Arc<Group>> {
        self.catalog.group_or_light(name, &self.settings)
    }

    /// Whether a request that needs a group which nobody knows may ask the registrar for it: it does so once.
    pub(crate) fn may_make_group(&self, call: &Call<'_>, name: &str) -> bool {
        let may_be = self.settings.auto_create_group || names::is_system_group(name);
        may_be && !call.resumed && names::check_group(name).is_ok()
    }

    /// Asks the registrar for a group, if that may be; then the request goes on. False: it may not.
    pub(crate) fn makes_group(&mut self, call: &Call<'_>, name: &str) -> bool {
        let makes = self.may_make_group(call, name);
        if makes {
            self.ensure_and_resume(call, String::new(), Make::Group { group: name.to_owned() });
        }
        makes
    }

    /// The queue of a send. `None`: it was refused, or goes on to another core.
    #[inline]
    fn target(
        &mut self,
        call: &Call<'_>,
        send: &SendMessage<'_>,
        said: &Said<'_>,
        topic: Destination,
    ) -> Option<Target> {
        let by_priority = said.priority.filter(|_| !said.has_type && call.header.code != request::SEND_BATCH_MESSAGE);
        let queue = match u32::try_from(send.queue_id) {
            Ok(queue) if queue < topic.queues => queue,
            Ok(_) => {
                self.refuse(&call.reply, response::INVALID_PARAMETER, &no_queue(send));
                return None;
            }
            Err(_) if by_priority.is_some() => 0,
            Err(_) => draw(topic.write_queues, self.random.draw()),
        };
        let queue = by_priority.map_or(queue, |priority| priority.min(topic.write_queues.saturating_sub(1)));
        let partition = topic.partition_of(queue, self.settings.partitions);
        let Some(local) = self.local(partition) else {
            if by_priority.is_some() && send.queue_id != queue.cast_signed() {
                self.send_by_priority(call, queue);
                return None;
            }
            // The topic was deleted and made again while the request crossed over: clients try again.
            self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
            return None;
        };
        Some(Target { local, queue: QueueKey { topic: topic.id, queue } })
    }

    /// What a message must be (PROTOCOL 4.1, items 10 to 13, and its last lines). `Err`: code, remark.
    fn check_message(
        &self,
        call: &Call<'_>,
        send: &SendMessage<'_>,
        topic: Destination,
        said: &Said<'_>,
    ) -> Result<(), (i32, String)> {
        let is_batch = call.header.code == request::SEND_BATCH_MESSAGE;
        if is_batch && (send.topic.len() > BATCH_TOPIC_BYTES_MAX || send.topic.starts_with(names::RETRY_PREFIX)) {
            return Err((response::MESSAGE_ILLEGAL, "batch request does not support retry group".to_owned()));
        }
        let body_max = self.settings.limits.message_bytes;
        // One without a body ends its key, where the newest of each key stays.
        let may_be_empty = topic.is_compacted && !is_batch;
        if call.body.is_empty() && !may_be_empty || call.body.len() > body_max {
            let remark =
                format!("the message is illegal: its body has {} bytes, 1 to {body_max} are allowed", call.body.len());
            return Err((response::MESSAGE_ILLEGAL, remark));
        }
        if send.properties.len() > PROPERTIES_BYTES_MAX {
            return Err((response::MESSAGE_ILLEGAL, PROPERTIES_TOO_LONG.to_owned()));
        }
        if said.is_inner || send.sys_flag & sys_flag::INNER_BATCH != 0 {
            return Err((response::MESSAGE_ILLEGAL, "an inner batch is made here, of a batch (320)".to_owned()));
        }
        if let Some(level) = said.wrong_level {
            return Err((
                response::SYSTEM_ERROR,
                format!("the delay level is no number. For input string: \"{level}\""),
            ));
        }
        let transaction = send.sys_flag & sys_flag::TRANSACTION_MASK;
        if !said.is_half && matches!(transaction, sys_flag::TRANSACTION_PREPARED | sys_flag::TRANSACTION_ROLLBACK) {
            // A stock broker keeps it where nobody finds it.
            let remark = "the message is illegal: its sysFlag is that of a half message, and TRAN_MSG is not true";
            return Err((response::MESSAGE_ILLEGAL, remark.to_owned()));
        }
        if is_half(send, said) && (self.settings.reject_transaction || is_batch) {
            return Err((response::NO_PERMISSION, self.forbidden("transaction message")));
        }
        Ok(())
    }

    /// When a message becomes one of its queue's; what its properties say of that is changed accordingly. `Err`:
    /// code, remark.
    #[inline]
    fn send_until(
        &self,
        send: &SendMessage<'_>,
        said: &Said<'_>,
        queue: u32,
        unique: &str,
        text: &mut String,
        now_ms: u64,
    ) -> Result<Until, (i32, String)> {
        if is_half(send, said) {
            return Ok(self.half(send, queue, unique, text, now_ms));
        }
        self.until(send.topic, said, queue, unique, text, now_ms)
    }

    /// As `send_until`, for a message that needs no decision.
    #[inline]
    fn until(
        &self,
        topic: &str,
        said: &Said<'_>,
        queue: u32,
        unique: &str,
        text: &mut String,
        now_ms: u64,
    ) -> Result<Until, (i32, String)> {
        if let Some(at_ms) = self.delay_until(said.delay_level, now_ms) {
            set_real(text, topic, queue);
            if said.is_timer {
                timer::forget(text);
            }
            return Ok(Until::Due { at_ms, key: 0 });
        }
        if said.is_timer { self.timer(topic, queue, unique, text, now_ms) } else { Ok(Until::Now) }
    }

    /// Asks the registrar for a topic; `then` comes back to this core.
    pub(crate) fn ensure(&mut self, topic: String, how: Make, then: Mail, reply: &ReplyTo) {
        let ensure = Ensure { topic, how, then, back: self.index };
        if self.outbox.offer(0, Mail::Ensure(Box::new(ensure))).is_err() {
            self.refuse(reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// The entries of a batch. `Err` says what is wrong with it.
    fn entries<'a>(&self, body: &'a [u8]) -> Result<Vec<BatchEntry<'a>>, String> {
        let mut entries = Vec::with_capacity(BATCH_USUAL);
        for entry in BatchEntries::new(body) {
            if entries.len() == BATCH_RECORDS_MAX as usize {
                return Err(format!("a batch has at most {BATCH_RECORDS_MAX} messages"));
            }
            entries.push(entry.map_err(|error| format!("the batch cannot be read: {error}"))?);
        }
        Ok(entries)
    }

    /// When a message of this level is due; `None`: at once.
    fn delay_until(&self, level: i32, now_ms: u64) -> Option<u64> {
        Some(now_ms + self.settings.delay_ms(level)?)
    }

    pub(crate) fn store_host(&self) -> SocketAddr {
        SocketAddr::new(self.settings.broker_ip1.into(), self.settings.port)
    }
}

/// Whether a message may stay as the newest of its key; of a batch, whether each may. Whether there is room for it is asked
/// at the door of the log.
#[cold]
fn check_stays(call: &Call<'_>, send: &SendMessage<'_>, said: &Said<'_>) -> Result<(), (i32, String)> {
    let check = |key: Option<&str>, body: &[u8]| {
        if key.is_none_or(|key| key.trim().is_empty()) {
            return Err((response::MESSAGE_ILLEGAL, "Required message key is missing".to_owned()));
        }
        if body.len() > STAYING_BODY_MAX {
            let (bytes, topic) = (body.len(), send.topic);
            let remark = format!(
                "the message is illegal: its body has {bytes} bytes, those of the compacted topic {topic} at most \
                 {STAYING_BODY_MAX}"
            );
            return Err((response::MESSAGE_ILLEGAL, remark));
        }
        Ok(())
    };
    if said.delay_level > 0 || said.is_timer || is_half(send, said) {
        // When they come there has to be room for them, which nobody can keep free for so long.
        let remark = "a message of a compacted topic is stored at once: it has no delay, and is no half message";
        return Err((response::MESSAGE_ILLEGAL, remark.to_owned()));
    }
    if call.header.code != request::SEND_BATCH_MESSAGE {
        return check(said.key, call.body);
    }
    // What cannot be read is refused by whoever reads it.
    let mut entries = BatchEntries::new(call.body).map_while(Result::ok);
    entries.try_for_each(|entry| check(properties::get(entry.properties, name::KEYS), entry.body))
}

/// Whether a message waits for its producer's decision. One that comes again with a delay does not.
#[inline]
fn is_half(send: &SendMessage<'_>, said: &Said<'_>) -> bool {
    said.is_half && !(send.reconsume_times > 0 && said.delay_level > 0)
}

/// A message that waits says where it belongs (PROTOCOL 4.9, 4.11). What made it wait stays, for consumers to see: nobody
/// reads that of a message that is stored.
fn set_real(text: &mut String, topic: &str, queue: u32) {
    properties::remove_all(text, &[name::REAL_TOPIC, name::REAL_QID]);
    properties::append(text, name::REAL_TOPIC, topic);
    properties::append(text, name::REAL_QID, itoa::Buffer::new().format(queue));
}

/// What is said to messages for a queue that does not exist.
pub(crate) fn no_queue(send: &SendMessage<'_>) -> String {
    format!("request queueId[{}] is illegal, topic {}", send.queue_id, send.topic)
}

/// What is said to messages for topics of RocketMQ's own.
pub(crate) fn closed(topic: &str) -> String {
    format!("Sending message to topic[{topic}] is forbidden.")
}
