//! What consumers ask: pops, peeks and notifications, checked and made into pops (PROTOCOL 7).

use std::sync::Arc;

use engine::io::Pieces;
use protocol::codes::response;
use protocol::headers::{Notification, PeekMessage, PollingInfo, PollingInfoAnswer, PopAnswer, PopMessage};
use protocol::names::perm;

use super::account::LOAN_MESSAGES_MAX;
use super::account::value::ATTEMPT_BYTES_MAX;
use super::waiting::LineKey;
use super::{INVISIBLE_MS_MAX, Pop, Way, Wish};
use crate::answer::Refused;
use crate::call::Call;
use crate::catalog::{Group, Topic, Wants};
use crate::consume::PARK_MS_MAX;
use crate::desk::{Desk, illegal_queue};
use crate::parked::Filter;

/// Longest text of tags that a notification is filtered by; with a longer one everything is told.
const NOTICE_TAGS_BYTES_MAX: usize = 1 << 10;
/// A pop that comes so late after its own end is not served. Milliseconds.
const LATE_MS: u64 = 500;

/// What both requests say.
struct Asked<'a> {
    group: &'a str,
    topic: &'a str,
    queue: i32,
    poll_ms: i64,
    born_ms: Option<i64>,
    is_orderly: bool,
    attempt: Option<&'a str>,
}

impl Desk {
    /// POP_MESSAGE (200050).
    pub(crate) fn pop_request(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match PopMessage::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let (poll_ms, born_ms) = (asked.poll_time, asked.born_time.filter(|born_ms| *born_ms != 0));
        let end_ms = born_ms.map_or(now_ms.cast_signed(), |born_ms| born_ms.saturating_add(poll_ms.max(0)));
        // One that waited for its group to be made is late by our own doing.
        if !call.resumed && now_ms.cast_signed().saturating_sub(end_ms) > LATE_MS.cast_signed() {
            let remark = format!("the broker[{}] pop message is timeout too much", self.settings.broker_ip1);
            // Clients look for the fields of an answer beside this code.
            let header = self.replies.header(&call.reply, response::POLLING_TIMEOUT);
            header.remark.push_str(&remark);
            PopAnswer::default().push(&mut header.fields);
            return self.replies.send(&call.reply, Pieces::new());
        }
        if asked.max_msg_nums > LOAN_MESSAGES_MAX as i32 {
            let remark = format!(
                "the broker[{}] pop message's num is greater than {LOAN_MESSAGES_MAX}",
                self.settings.broker_ip1
            );
            return self.refuse(&call.reply, response::INVALID_PARAMETER, &remark);
        }
        let common = Asked {
            group: asked.consumer_group,
            topic: asked.topic,
            queue: asked.queue_id,
            poll_ms,
            born_ms,
            is_orderly: asked.order,
            attempt: asked.attempt_id,
        };
        let Some(mut pop) = self.admit_pop(call, &common, now_ms) else { return };
        let (kind, text) = (asked.expression_type.unwrap_or(""), asked.expression.unwrap_or(""));
        // Without a text there is nothing to filter by, whatever the type.
        let kind = if text.is_empty() { "" } else { kind };
        let Some(wants) = self.own_filter(&call.reply, asked.topic, kind, text) else { return };
        pop.wish = Wish::Messages {
            count: u32::try_from(asked.max_msg_nums).unwrap_or(0).max(1),
            // No time at all is a stock broker's, too. Two loans at once would have one name.
            invisible_ms: u64::try_from(asked.invisible_time).unwrap_or(0).clamp(1, INVISIBLE_MS_MAX),
            from_last: asked.init_mode != 0,
            filter: Filter::Own(wants),
        };
        self.pop_again(pop, now_ms);
    }

    /// PEEK_MESSAGE (200052).
    pub(crate) fn peek_request(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match PeekMessage::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let common = Asked {
            group: asked.consumer_group,
            topic: asked.topic,
            queue: asked.queue_id,
            poll_ms: 0,
            born_ms: None,
            is_orderly: false,
            attempt: None,
        };
        let Some(mut pop) = self.admit_pop(call, &common, now_ms) else { return };
        let count = u32::try_from(asked.max_msg_nums).unwrap_or(0).min(self.settings.limits.pull_messages);
        pop.wish = Wish::Look { count };
        self.pop_again(pop, now_ms);
    }

    /// NOTIFICATION (200054).
    pub(crate) fn notification(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match Notification::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let common = Asked {
            group: asked.consumer_group,
            topic: asked.topic,
            queue: asked.queue_id,
            poll_ms: asked.poll_time,
            born_ms: asked.born_time.filter(|born_ms| *born_ms != 0),
            is_orderly: asked.order,
            attempt: asked.attempt_id,
        };
        let Some(mut pop) = self.admit_pop(call, &common, now_ms) else { return };
        let (kind, text) = (asked.expression_type.unwrap_or(""), asked.expression.unwrap_or(""));
        // As in RocketMQ: without a type there is no filter, and one that is not of tags lets everything through here.
        if !kind.is_empty() && !text.is_empty() {
            let Some(wants) = self.own_filter(&call.reply, asked.topic, kind, text) else { return };
            // A long text would be looked through at every message: who wants that much is told of everything.
            let is_filter = matches!(wants, Wants::Tags(_)) && text.len() <= NOTICE_TAGS_BYTES_MAX;
            pop.wish = Wish::Notice { tags: is_filter.then(|| text.into()) };
        }
        self.pop_again(pop, now_ms);
    }

    /// POLLING_INFO (200055): how many pops wait.
    pub(crate) fn polling_info(&mut self, call: &Call<'_>) {
        let asked = match PollingInfo::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some((topic, queue)) = self.topic_to_pop(call, asked.topic, asked.queue_id) else { return };
        let Some(group) = self.group_to_pop(call, asked.consumer_group) else { return };
        let plain = LineKey { topic: topic.id, group, queue, is_notice: false, is_orderly: false, tags: None };
        let orderly = LineKey { is_orderly: true, ..plain.clone() };
        let count = self.pops.waiting.count_in(&plain) + self.pops.waiting.count_in(&orderly);
        let header = self.replies.header(&call.reply, response::SUCCESS);
        PollingInfoAnswer { polling_num: i32::try_from(count).unwrap_or(i32::MAX) }.push(&mut header.fields);
        self.replies.send(&call.reply, Pieces::new());
    }

    /// Checks that a group may pop from a topic. `None`: it is answered, or waits for its group.
    fn admit_pop(&mut self, call: &Call<'_>, asked: &Asked<'_>, now_ms: u64) -> Option<Box<Pop>> {
        let (topic, queue) = self.topic_to_pop(call, asked.topic, asked.queue)?;
        let group = self.group_to_pop(call, asked.group)?;
        if asked.attempt.is_some_and(|attempt| attempt.len() > ATTEMPT_BYTES_MAX) {
            let remark = format!("attemptId is longer than {ATTEMPT_BYTES_MAX} bytes");
            self.refuse(&call.reply, response::INVALID_PARAMETER, &remark);
            return None;
        }
        let now = now_ms.cast_signed();
        // A client's clock may be any; nobody waits for longer than it asks.
        let until = asked.born_ms.unwrap_or(now).saturating_add(asked.poll_ms).min(now.saturating_add(asked.poll_ms));
        let until_ms = u64::try_from(until).unwrap_or(0).min(now_ms + PARK_MS_MAX);
        Some(Box::new(Pop {
            reply: call.reply,
            group,
            topic,
            queue,
            wish: Wish::Notice { tags: None },
            is_orderly: asked.is_orderly,
            attempt: asked.attempt.filter(|attempt| !attempt.is_empty()).map(Box::from),
            until_ms: if asked.poll_ms > 0 { until_ms } else { 0 },
            way: Way::default(),
        }))
    }

    /// The topic of a pop and its queue. `None`: it was refused.
    fn topic_to_pop(&mut self, call: &Call<'_>, name: &str, queue: i32) -> Option<(Arc<Topic>, Option<u32>)> {
        let reply = &call.reply;
        if let Some((code, remark)) = self.broker_forbids_pop() {
            self.refuse(reply, code, &remark);
            return None;
        }
        let Some(topic) = self.catalog.topic(name).cloned() else {
            self.refuse_topic(reply, name);
            return None;
        };
        if let Some((code, remark)) = topic_forbids_pop(&topic) {
            self.refuse(reply, code, &remark);
            return None;
        }
        let queue = u32::try_from(queue).ok();
        if let Some(queue) = queue.filter(|queue| *queue >= topic.read_queues()) {
            let remark = illegal_queue(queue.cast_signed(), name, &topic, call);
            self.refuse(reply, response::INVALID_PARAMETER, &remark);
            return None;
        }
        Some((topic, queue))
    }

    /// The name of a group that may pop. `None`: it was refused, or is being made.
    fn group_to_pop(&mut self, call: &Call<'_>, name: &str) -> Option<Arc<str>> {
        let Some(group) = self.group(name) else {
            // What a group has consumed lasts only if the group does.
            if !self.makes_group(call, name) {
                let (code, remark) = no_group(name);
                self.refuse(&call.reply, code, &remark);
            }
            return None;
        };
        if let Some((code, remark)) = group_forbids_pop(&group) {
            self.refuse(&call.reply, code, &remark);
            return None;
        }
        Some(group.name.clone())
    }

    /// What forbids everybody to pop.
    pub(super) fn broker_forbids_pop(&self) -> Option<Refused> {
        let remark = || format!("the broker[{}] pop message is forbidden", self.settings.broker_ip1);
        (!perm::readable(self.settings.permission)).then(|| (response::NO_PERMISSION, remark()))
    }
}

/// What forbids a group to pop.
pub(super) fn group_forbids_pop(group: &Group) -> Option<Refused> {
    let remark = || format!("subscription group no permission, {}", group.name);
    (!group.may_consume()).then(|| (response::NO_PERMISSION, remark()))
}

/// What forbids to pop from a topic.
pub(super) fn topic_forbids_pop(topic: &Topic) -> Option<Refused> {
    let name = &topic.name;
    if !topic.is_readable() {
        return Some((response::NO_PERMISSION, format!("the topic[{name}] peeking message is forbidden")));
    }
    let of = match topic {
        // What is lent could be gone when it comes again.
        _ if topic.is_compacted() => "cleanup.policy COMPACTION",
        _ if topic.keeps_batches() => "queue.type BatchCQ",
        _ => return None,
    };
    Some((response::NO_PERMISSION, format!("the topic[{name}] is of {of}: its messages cannot be popped")))
}

/// What is said to a group that is not there.
pub(super) fn no_group(name: &str) -> Refused {
    (response::SUBSCRIPTION_GROUP_NOT_EXIST, format!("subscription group [{name}] does not exist"))
}
