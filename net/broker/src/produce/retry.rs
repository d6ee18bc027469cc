//! Messages that come again: send-backs (36), retry topics and dead letters (PROTOCOL 2.3.2, 4.8).

use bytes::Bytes;
use engine::format::QueueKey;
use engine::io::Pieces;
use protocol::StoredMessage;
use protocol::codes::{request, response};
use protocol::headers::{SendBack, SendMessage};
use protocol::ids::OffsetId;
use protocol::names::{self, perm, sys_flag};
use protocol::properties::{self, name};

use super::{Identity, Origin, Piece, Put, Said, Until, set_real};
use crate::call::Call;
use crate::desk::Desk;
use crate::mail::{Mail, Make, Store, Wait};
use crate::parked::Cold;
use crate::place::{draw_queue, is_send};

/// From this version on a client's own maximum of retries counts (V3_4_9, PROTOCOL 1.7).
const VERSION_OWN_RETRIES: i32 = 121;
/// A retried message waits at least at this level: 10 s in the stock table.
const RETRY_LEVEL_FIRST: i32 = 3;

impl Desk {
    /// CONSUMER_SEND_MSG_BACK (36): a message that could not be consumed comes again later, or is dead.
    pub(crate) fn send_back(&mut self, call: &Call<'_>, now_ms: u64) {
        let back = match SendBack::parse(&call.header.fields) {
            Ok(back) => back,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some(group) = self.group(back.group) else {
            if self.makes_group(call, back.group) {
                return;
            }
            let remark = format!("subscription group not exist, {}", back.group);
            return self.refuse(&call.reply, response::SUBSCRIPTION_GROUP_NOT_EXIST, &remark);
        };
        if !perm::writeable(self.settings.permission) {
            return self.refuse(&call.reply, response::NO_PERMISSION, &self.forbidden("message"));
        }
        if group.retry_queues() == 0 {
            self.replies.header(&call.reply, response::SUCCESS);
            return self.replies.send(&call.reply, Pieces::new());
        }
        let retry_topic = names::retry_topic(back.group);
        if self.catalog.topic(&retry_topic).is_some_and(|topic| !topic.is_writable()) {
            let remark = format!("the topic[{retry_topic}] sending message is forbidden");
            return self.refuse(&call.reply, response::NO_PERMISSION, &remark);
        }
        let not_found = format!("look message by offset failed, {}", back.offset);
        let Some((local, position)) = self.local_of(back.offset) else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, &not_found);
        };
        let record = match self.partitions[local].get(position) {
            Ok(Some(record)) => record,
            Ok(None) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &not_found),
            Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
        };
        let Ok(original) = StoredMessage::decode(&record) else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, &not_found);
        };
        if original.sys_flag & sys_flag::INNER_BATCH != 0 {
            // As a stock broker: the client then sends the one message out of it to the retry topic by itself.
            let remark = "MESSAGE_ILLEGAL: a message inside a batch cannot be sent back";
            return self.refuse(&call.reply, response::SYSTEM_ERROR, remark);
        }
        let retries_max = match back.max_reconsume_times {
            Some(most) if call.reply.version >= VERSION_OWN_RETRIES => most,
            _ => group.retries_max(),
        };
        let is_dead = original.reconsume_times >= retries_max || back.delay_level < 0;
        let delay_level = match back.delay_level {
            _ if is_dead => 0,
            0 => RETRY_LEVEL_FIRST.saturating_add(original.reconsume_times),
            level => level,
        };
        let mut text = original.properties.to_owned();
        if original.property(name::RETRY_TOPIC).is_none() {
            properties::append(&mut text, name::RETRY_TOPIC, original.topic);
        }
        if original.property(name::ORIGIN_MESSAGE_ID).is_none() {
            let id = OffsetId { host: original.store_host, offset: original.physical_offset };
            properties::append(&mut text, name::ORIGIN_MESSAGE_ID, &id.to_string());
        }
        properties::set(&mut text, name::WAIT, "false");
        properties::set(&mut text, name::DELAY, itoa::Buffer::new().format(delay_level));
        let store = Store {
            topic: if is_dead { names::dlq_topic(back.group) } else { retry_topic },
            queue: self.random.draw() as u32,
            origin: Origin {
                reconsume_times: original.reconsume_times.saturating_add(1),
                ..Origin::of_stored(&original)
            },
            properties: text,
            body: record.slice_ref(original.body),
            wait: Wait::Level(delay_level),
            reply: call.reply,
        };
        let group = back.group.to_owned();
        self.store_surely(store, if is_dead { Make::Dead { group } } else { Make::Retry { group } }, now_ms);
    }

    /// Appends a message that the broker made, where its queue is.
    pub(crate) fn store(&mut self, store: Store, now_ms: u64) {
        let Some(topic) = self.catalog.topic(&store.topic).cloned() else {
            return if is_send(store.reply.code) {
                self.refuse_topic(&store.reply, &store.topic)
            } else {
                self.refuse(&store.reply, response::SYSTEM_ERROR, &format!("topic[{}] not exist", store.topic))
            };
        };
        let queue = draw_queue(&topic, store.queue.into());
        let partition = topic.partition_of(queue, self.settings.partitions);
        let Some(local) = self.local(partition) else {
            return self.outbox.send(usize::from(partition) % self.settings.cores, Mail::Store(Box::new(store)));
        };
        let mut text = store.properties;
        let until = match store.wait {
            Wait::Level(level) => match self.delay_until(level, now_ms) {
                Some(at_ms) => {
                    set_real(&mut text, &store.topic, queue);
                    Until::Due { at_ms, key: 0 }
                }
                None => Until::Now,
            },
            Wait::Decision => {
                properties::set(&mut text, name::REAL_QID, itoa::Buffer::new().format(queue));
                Until::Decided { check_ms: now_ms }
            }
        };
        let piece = Piece::read(store.origin.message(self.store_host(), &store.topic, queue, &store.body, &text));
        let says = Identity { unique: properties::get(&text, name::UNIQ_KEY), recall: None, is_inner: false };
        let put = Put::One(&piece, QueueKey { topic: topic.id, queue }, until);
        let is_kept = self.keep_sent(local, &put, says, &store.reply, now_ms, now_ms);
        if is_kept && store.reply.code == request::CONSUMER_SEND_MSG_BACK {
            let topic = properties::get(&text, name::RETRY_TOPIC).and_then(|topic| self.catalog.topic(topic));
            let group = names::group_of_returned(&store.topic).and_then(|group| self.catalog.group(group));
            if let (Some(topic), Some(group)) = (topic, group) {
                self.stats.returned(topic.id, &group.name, now_ms);
            }
        }
    }

    /// Rules for sends to retry topics (PROTOCOL 4.8.2): what was tried too often, or belongs to a group
    /// that consumes in order, becomes a dead letter. Only the registrar knows of the latter, so a send
    /// goes by there first. True: nothing is left to do here now.
    pub(super) fn is_retry_over(&mut self, call: &Call<'_>, send: &SendMessage<'_>, now_ms: u64) -> bool {
        let name = names::group_of_retry_topic(send.topic).unwrap_or_default();
        let Some(group) = self.group(name) else {
            if self.may_make_group(call, name) {
                self.ensure_and_resume(call, send.topic.to_owned(), Make::Retry { group: name.to_owned() });
                return true;
            }
            let remark = format!("subscription group not exist, {name}");
            self.refuse(&call.reply, response::SUBSCRIPTION_GROUP_NOT_EXIST, &remark);
            return true;
        };
        let retries_max = match send.max_reconsume_times {
            Some(most) if call.reply.version >= VERSION_OWN_RETRIES => most,
            _ => group.retries_max(),
        };
        let is_spent = send.reconsume_times > retries_max;
        if !is_spent && !call.resumed {
            self.ensure_and_resume(call, send.topic.to_owned(), Make::Retry { group: name.to_owned() });
            return true;
        }
        if !is_spent && !call.orderly {
            return false;
        }
        let mut text = send.properties.to_owned();
        let has_ours = Said::read(send.topic, send.properties).has_ours;
        self.sends.append_ours(&mut text, has_ours);
        properties::set(&mut text, name::DELAY, "-1");
        let group = name.to_owned();
        let store = Store {
            topic: names::dlq_topic(&group),
            queue: 0,
            origin: Origin::of_send(send, call.peer.address),
            properties: text,
            body: Bytes::copy_from_slice(call.body),
            wait: Wait::Level(0),
            reply: call.reply,
        };
        self.store_surely(store, Make::Dead { group }, now_ms);
        true
    }

    /// Stores a message of the broker's own; makes its topic first if it is missing.
    fn store_surely(&mut self, store: Store, how: Make, now_ms: u64) {
        if self.catalog.topic(&store.topic).is_some() {
            return self.store(store, now_ms);
        }
        let (topic, reply) = (store.topic.clone(), store.reply);
        self.ensure(topic, how, Mail::Store(Box::new(store)), &reply);
    }
}
