//! Where groups are in queues: offsets that they commit and ask for, and the edges of a queue (PROTOCOL 5).

use std::collections::{BTreeMap, BTreeSet};

use engine::Span;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::io::Pieces;
use protocol::codes::{request, response};
use protocol::headers::{
    OffsetAnswer, QueryConsumerOffset, QueueOf, SearchOffset, TimestampAnswer, UpdateConsumerOffset,
};

use crate::call::{Call, ReplyTo};
use crate::catalog::{Topic, offset_key, offset_value};
use crate::desk::Desk;
use crate::parked::Cold;

/// Offsets that were set anew and wait for their clients, per core. 65,536: those of topics without live clients stay.
pub const RESETS_MAX: usize = 65_536;
/// Why an offset is not taken.
const OFFSETS_FULL: &str = "the partition of this queue has no room for another consumer offset; groups that are not \
                            used any more can be deleted with their offsets";

/// Offsets that were set anew (code 222). Until its client has heard of it with its next pull, a commit of the old
/// one does not count. A restart forgets them: then only the offset itself is left.
#[derive(Debug, Default)]
pub struct Resets {
    /// By topic, queue and group.
    waiting: BTreeMap<(u32, u32, Box<str>), u64>,
}

impl Resets {
    /// Whether `count` more may wait.
    pub fn has_room(&self, count: usize) -> bool {
        self.waiting.len() + count <= RESETS_MAX
    }

    /// A group goes on here; there is room.
    pub fn set(&mut self, queue: QueueKey, group: &str, offset: u64) {
        self.waiting.insert((queue.topic, queue.queue, group.into()), offset);
    }

    /// A group is gone: one of its name has nothing to be told. Cost: all that wait.
    pub fn forget_group(&mut self, group: &str) {
        self.waiting.retain(|(_, _, waiting), _| **waiting != *group);
    }

    /// Topics are gone. Cost: all that wait.
    pub fn forget_topics(&mut self, gone: &BTreeSet<u32>) {
        self.waiting.retain(|(topic, ..), _| !gone.contains(topic));
    }

    /// Where a group goes on, if its clients do not know yet.
    #[inline]
    pub fn get(&self, queue: QueueKey, group: &str) -> Option<u64> {
        // Nearly always.
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.get(&(queue.topic, queue.queue, group.into())).copied()
    }

    /// The same, once.
    #[inline]
    pub fn take(&mut self, queue: QueueKey, group: &str) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.remove(&(queue.topic, queue.queue, group.into()))
    }
}

impl Desk {
    /// QUERY_CONSUMER_OFFSET (14).
    pub(crate) fn query_offset(&mut self, call: &Call<'_>) {
        let asked = match QueryConsumerOffset::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        if let Some((local, key)) = self.queue_of(asked.topic, asked.queue_id) {
            if let Some(offset) = self.pulls.resets.get(key, asked.consumer_group) {
                return self.answer_offset(&call.reply, offset);
            }
            // What a group that pops has acknowledged may not be written down yet.
            if let Some(floor) = self.popped_floor(key, asked.consumer_group) {
                return self.answer_offset(&call.reply, floor);
            }
            let fact = self.partitions[local].fact(&offset_key(key.topic, key.queue, asked.consumer_group));
            if let Some(offset) = fact.and_then(offset_value) {
                return self.answer_offset(&call.reply, offset);
            }
            // A new group on a young queue begins at its beginning.
            let near = self.near_bytes();
            let behind = match self.partitions[local].bytes_behind(key, 0) {
                Ok(behind) => behind,
                Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
            };
            if asked.set_zero_if_not_found != Some(false) && behind.is_some_and(|bytes| bytes < near) {
                return self.answer_offset(&call.reply, 0);
            }
        }
        let remark = "Not found, maybe this group consumer boot first";
        self.refuse(&call.reply, response::QUERY_NOT_FOUND, remark);
    }

    /// UPDATE_CONSUMER_OFFSET (15). It may go back.
    pub(crate) fn update_offset(&mut self, call: &Call<'_>) {
        let asked = match UpdateConsumerOffset::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some(topic) = self.catalog.topic(asked.topic).cloned() else {
            return self.refuse_topic(&call.reply, asked.topic);
        };
        let group = asked.consumer_group;
        if self.catalog.group(group).is_none() && !self.settings.is_light_group(group) {
            let remark = format!("subscription group not exist, {}", asked.consumer_group);
            return self.refuse(&call.reply, response::SUBSCRIPTION_GROUP_NOT_EXIST, &remark);
        }
        let (Some((local, key)), Ok(offset)) =
            (self.queue_of(asked.topic, asked.queue_id), u64::try_from(asked.commit_offset))
        else {
            let remark = format!("queueId[{}] or offset {} is illegal", asked.queue_id, asked.commit_offset);
            return self.refuse(&call.reply, response::INVALID_PARAMETER, &remark);
        };
        let is_reset = self.pulls.resets.get(key, asked.consumer_group).is_some();
        if !is_reset && !self.note_offset(local, &topic, key.queue, asked.consumer_group, offset) {
            return self.refuse(&call.reply, response::SYSTEM_BUSY, OFFSETS_FULL);
        }
        let header = self.replies.header(&call.reply, response::SUCCESS);
        if is_reset {
            header.remark.push_str("Offset has been previously reset");
        }
        self.replies.send(&call.reply, Pieces::new());
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP (29).
    pub(crate) fn search_offset(&mut self, call: &Call<'_>) {
        let asked = match SearchOffset::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        if self.is_opening(asked.topic, asked.queue_id) {
            return self.refuse_append(&call.reply, AppendError::Opening);
        }
        let upper = asked.boundary.is_some_and(|boundary| boundary.eq_ignore_ascii_case("UPPER"));
        let time_ms = u64::try_from(asked.timestamp).unwrap_or(0);
        let offset = match self.queue_of(asked.topic, asked.queue_id) {
            Some((local, key)) => match self.partitions[local].offset_at(key, time_ms, upper) {
                Ok(offset) => offset,
                Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
            },
            None => 0,
        };
        self.answer_offset(&call.reply, offset);
    }

    /// GET_MAX_OFFSET (30), GET_MIN_OFFSET (31). A queue that does not exist has none: 0. The lowest offset of an empty
    /// queue of batches is -1, as a stock broker's.
    pub(crate) fn edge_offset(&mut self, call: &Call<'_>) {
        let asked = match QueueOf::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        if self.is_opening(asked.topic, asked.queue_id) {
            return self.refuse_append(&call.reply, AppendError::Opening);
        }
        let span = match self.queue_of(asked.topic, asked.queue_id) {
            Some((local, key)) => self.partitions[local].span(key),
            None => Span { min: 0, max: 0 },
        };
        let is_max = call.header.code == request::GET_MAX_OFFSET;
        let offset = match if is_max { span.max } else { span.min }.cast_signed() {
            0 if !is_max && span.max == 0 && self.keeps_batches(asked.topic) => -1,
            offset => offset,
        };
        let header = self.replies.header(&call.reply, response::SUCCESS);
        OffsetAnswer { offset }.push(&mut header.fields);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// GET_EARLIEST_MSG_STORETIME (32). -1: there is no message.
    pub(crate) fn earliest_time(&mut self, call: &Call<'_>) {
        let asked = match QueueOf::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        if self.is_opening(asked.topic, asked.queue_id) {
            return self.refuse_append(&call.reply, AppendError::Opening);
        }
        let time = match self.queue_of(asked.topic, asked.queue_id) {
            Some((local, key)) => {
                let first = self.partitions[local].span(key).min;
                match self.partitions[local].store_time(key, first) {
                    Ok(time) => time,
                    Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
                }
            }
            None => None,
        };
        let timestamp = time.map_or(-1, u64::cast_signed);
        let header = self.replies.header(&call.reply, response::SUCCESS);
        TimestampAnswer { timestamp }.push(&mut header.fields);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// Keeps a consumer offset: it is durable within a second. Returns whether there was room for it.
    pub(crate) fn note_offset(&mut self, local: usize, topic: &Topic, queue: u32, group: &str, offset: u64) -> bool {
        let key = offset_key(topic.id, queue, group);
        if !self.partitions[local].note(&key, &offset.to_be_bytes()) {
            tracing::warn!(group, topic = &*topic.name, queue, "no room for another consumer offset");
            return false;
        }
        if !self.pops.accounts.is_empty() {
            self.reset_account(QueueKey { topic: topic.id, queue }, group, offset);
        }
        true
    }

    fn answer_offset(&mut self, reply: &ReplyTo, offset: u64) {
        let header = self.replies.header(reply, response::SUCCESS);
        OffsetAnswer { offset: offset.cast_signed() }.push(&mut header.fields);
        self.replies.send(reply, Pieces::new());
    }
}
