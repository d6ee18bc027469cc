//! Consuming: pulls (11, 361) with their long polling, consumer offsets (14, 15), the offsets of
//! queues (29 to 32), and one message by its position (33). PROTOCOL 2.4, 4.3, 4.4.

use std::sync::Arc;

use bytes::Bytes;
use engine::Span;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::io::Pieces;
use engine::partition::{Pull as Pulled, PullLimits};
use protocol::Header;
use protocol::bodies::MessageModel;
use protocol::codes::{request, response};
use protocol::headers::{PullAnswer, PullMessage, ViewMessage};
use protocol::names::{self, perm, pull_flag};

use crate::answer::BUSY;
use crate::call::{Call, ReplyTo};
use crate::catalog::{Group, Subscription, Topic, Wants};
use crate::desk::{Desk, illegal_queue};
use crate::filter::{Compiled, MATCHED_MAX, matcher, no_filter};
use crate::mail::{Mail, Make};
use crate::parked::{Cold, Filter, Parked, Pull, Puller};

mod entries;
mod offsets;

pub use offsets::Resets;

/// A pull waits at most so long for a message, whatever it asks for. 60 s: Java asks for 15, Go for
/// 20, and an idle connection is closed after 120. Milliseconds.
pub const PARK_MS_MAX: u64 = 60_000;
/// Records from this size on are sent from where they lie; smaller ones are copied together, which
/// costs less than their share of a long list of pieces. Bytes.
pub const SHARE_BYTES_MIN: usize = 4096;
/// A stock broker takes so much of its log for being in memory, in percent of the host's
/// (`accessMessageInMemoryMaxRatio`).
const NEAR_PERCENT: u64 = 40;

/// What consumers that pull are told where they are rejected (`broker.reject_pull_consumers`).
const PULL_REJECTED: &str = "the consumer's group info not exist, or the pull consumer is rejected by server.";

/// Why a pull is forbidden: field `forbiddenType` beside code 16.
#[derive(Clone, Copy)]
enum Forbidden {
    Broker = 1,
    Group = 2,
    Topic = 3,
    Broadcast = 4,
    Subscription = 5,
}

/// With the remark.
type Refusal = (Forbidden, String);

/// The pulls of one core: what waits for messages, and what they brought.
#[derive(Debug)]
pub struct Pulls {
    /// Those that wait.
    pub parked: Parked,
    /// Those of them that go on.
    pub woken: Vec<Pull>,
    /// Offsets that were set anew and that clients do not know yet.
    pub resets: Resets,
    /// Expressions that pulls brought with them.
    pub compiled: Compiled,
}

impl Pulls {
    /// None yet; at most `parked_max` will wait.
    pub fn new(parked_max: usize, seed: u64) -> Pulls {
        Pulls {
            parked: Parked::new(parked_max, seed),
            woken: Vec::new(),
            resets: Resets::default(),
            compiled: Compiled::default(),
        }
    }
}

impl Desk {
    /// PULL_MESSAGE (11), LITE_PULL_MESSAGE (361).
    pub(crate) fn pull_request(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match PullMessage::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let is_lite = call.header.code == request::LITE_PULL_MESSAGE;
        let Some((topic, group)) = self.topic_to_pull(call, &asked, is_lite) else { return };
        let queue = match u32::try_from(asked.queue_id) {
            Ok(queue) if queue < topic.read_queues() => queue,
            _ => {
                let remark = illegal_queue(asked.queue_id, asked.topic, &topic, call);
                return self.refuse(&call.reply, response::INVALID_PARAMETER, &remark);
            }
        };
        let Some(filter) = self.filter(&call.reply, &asked) else { return };
        if self.is_rejected(asked.consumer_group) {
            return self.refuse(&call.reply, response::SUBSCRIPTION_NOT_EXIST, PULL_REJECTED);
        }
        let Some(local) = self.local(topic.partition_of(queue, self.settings.partitions)) else {
            return self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
        };
        let key = QueueKey { topic: topic.id, queue };
        if let Some(offset) = self.pulls.resets.take(key, asked.consumer_group) {
            let span = self.partitions[local].span(key);
            return self.answer_empty(&call.reply, response::PULL_OFFSET_MOVED, "OFFSET_RESET", offset, span);
        }
        let commits = asked.sys_flag & pull_flag::COMMIT_OFFSET != 0;
        if let Ok(offset) = u64::try_from(asked.commit_offset)
            && commits
            && (group.is_some() || self.settings.is_light_group(asked.consumer_group))
        {
            self.note_offset(local, &topic, queue, asked.consumer_group, offset);
        }
        let limits = &self.settings.limits;
        let suspends = asked.sys_flag & pull_flag::SUSPEND != 0;
        let asked_ms = u64::try_from(asked.suspend_timeout_ms).unwrap_or(0).min(PARK_MS_MAX);
        let patience_ms = if self.settings.long_polling { asked_ms } else { self.settings.short_polling_ms };
        let bytes_wanted = asked.max_msg_bytes.and_then(|bytes| u32::try_from(bytes).ok()).filter(|bytes| *bytes > 0);
        let pull = Pull {
            reply: call.reply,
            group: group.map_or_else(|| Puller::Unknown(asked.consumer_group.into()), Puller::Known),
            queue,
            offset: asked.queue_offset,
            messages: u32::try_from(asked.max_msg_nums).unwrap_or(0).clamp(1, limits.pull_messages),
            bytes: bytes_wanted.map_or(limits.pull_bytes, |bytes| bytes.min(limits.pull_bytes)),
            filter,
            until_ms: if suspends && patience_ms > 0 { now_ms + patience_ms } else { 0 },
            topic,
        };
        if self.settings.cold_flow && self.is_over_share(&pull, local, now_ms) {
            return self.hold_cold(pull, now_ms);
        }
        self.pull(pull, now_ms);
    }

    /// Executes a pull again: after a message came, or its wait is over. What was changed meanwhile holds for it, too.
    pub(crate) fn pull_again(&mut self, mut pull: Pull, now_ms: u64) {
        let topic = self.catalog.topic(&pull.topic.name).filter(|topic| topic.id == pull.topic.id).cloned();
        let Some(topic) = topic else { return self.refuse_topic(&pull.reply, &pull.topic.name.clone()) };
        let name = pull.group.name().clone();
        pull.group = match (self.catalog.group(&name).cloned(), &pull.group) {
            (Some(group), _) => Puller::Known(group),
            (None, Puller::Unknown(_)) => Puller::Unknown(name.clone()),
            (None, Puller::Known(_)) => {
                let remark = format!("subscription group [{name}] does not exist");
                return self.refuse(&pull.reply, response::SUBSCRIPTION_GROUP_NOT_EXIST, &remark);
            }
        };
        let forbids = self.broker_forbids(pull.reply.code == request::LITE_PULL_MESSAGE);
        let forbids = forbids.or_else(|| group_forbids(pull.group.known()?)).or_else(|| topic_forbids(&topic));
        if let Some(why) = forbids {
            return self.forbid(&pull.reply, why);
        }
        if let Filter::Group(_) = pull.filter {
            let Some(now) = self.group_filter(&pull.reply, &name, &topic.name, i64::MIN) else { return };
            pull.filter = Filter::Group(now);
        }
        if self.is_rejected(&name) {
            return self.refuse(&pull.reply, response::SUBSCRIPTION_NOT_EXIST, PULL_REJECTED);
        }
        pull.topic = topic;
        self.pull(pull, now_ms);
    }

    /// Executes a pull from a topic that was looked up just now.
    pub(crate) fn pull(&mut self, mut pull: Pull, now_ms: u64) {
        let Some(local) = self.local(pull.topic.partition_of(pull.queue, self.settings.partitions)) else {
            return self.refuse_topic(&pull.reply, &pull.topic.name.clone());
        };
        let may_park = pull.until_ms > now_ms;
        let cold_bytes = self.partitions[local].cold_bytes();
        let (found, span) = match u64::try_from(pull.offset) {
            Ok(offset) => {
                let mut limits =
                    PullLimits { messages: pull.messages, bytes: pull.bytes, scan: self.settings.limits.pull_scan };
                let filter = &pull.filter;
                let wants = |tag_hash| filter.wants(tag_hash);
                match filter.expression() {
                    None => self.partitions[local].pull(pull.key(), offset, limits, &wants),
                    Some(expression) => {
                        limits.scan = limits.scan.min(MATCHED_MAX);
                        let matches = matcher(expression);
                        self.partitions[local].pull_matching(pull.key(), offset, limits, &wants, Some(&matches))
                    }
                }
            }
            Err(_) => (Pulled::OutOfRange, self.partitions[local].span(pull.key())),
        };
        match found {
            Pulled::Found { messages, next } => {
                if let Some(group) = pull.group.known() {
                    let bytes = messages.iter().map(|message| message.len() as u64).sum();
                    let offsets = next - pull.offset.cast_unsigned();
                    let count = if pull.topic.keeps_batches() { offsets } else { messages.len() as u64 };
                    self.stats.got(pull.topic.id, &group.name, count, bytes, now_ms);
                    if self.settings.cold_flow {
                        self.note_cold(&group.name, self.partitions[local].cold_bytes() - cold_bytes);
                    }
                }
                self.give(&pull.reply, &messages, next, span);
            }
            Pulled::NoMatch { next } => {
                if may_park && next == span.max {
                    // Nothing here is for this group: wait on, from behind it.
                    pull.offset = next.cast_signed();
                    return self.park(pull);
                }
                self.answer_empty(&pull.reply, response::PULL_RETRY_IMMEDIATELY, "NO_MATCHED_MESSAGE", next, span);
            }
            Pulled::Empty if may_park => self.park(pull),
            Pulled::Empty if span.max == 0 => {
                self.answer_empty(&pull.reply, response::PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", 0, span);
            }
            Pulled::Empty => {
                self.answer_empty(&pull.reply, response::PULL_NOT_FOUND, "OFFSET_OVERFLOW_ONE", span.max, span);
            }
            Pulled::OutOfRange => {
                let (status, next) = match span {
                    Span { max: 0, .. } => ("NO_MESSAGE_IN_QUEUE", 0),
                    Span { min, .. } if pull.offset < min.cast_signed() => ("OFFSET_TOO_SMALL", min),
                    Span { max, .. } => ("OFFSET_OVERFLOW_BADLY", max),
                };
                self.answer_empty(&pull.reply, response::PULL_OFFSET_MOVED, status, next, span);
            }
            Pulled::Loading(load) => self.wait_for(local, load, Cold::Pull(pull)),
            Pulled::Opening => self.refuse_append(&pull.reply, AppendError::Opening),
            Pulled::Damaged { position, .. } => {
                tracing::error!(
                    ?position,
                    topic = &*pull.topic.name,
                    queue = pull.queue,
                    "a stored message is damaged"
                );
                let remark = format!("the message at {position:?} is damaged");
                self.refuse(&pull.reply, response::SYSTEM_ERROR, &remark);
            }
        }
    }

    /// VIEW_MESSAGE_BY_ID (33).
    pub(crate) fn view(&mut self, call: &Call<'_>) {
        let asked = match ViewMessage::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let place = self.local_of(asked.offset);
        let found = place.map(|(local, position)| (local, self.partitions[local].get_waiting(position)));
        match found {
            Some((_, Ok(Some(record)))) => {
                self.replies.header(&call.reply, response::SUCCESS);
                self.replies.send(&call.reply, Pieces::from_elem(record, 1));
            }
            Some((local, Err(load))) => self.wait_for(local, load, Cold::Request(call.to_request())),
            Some((_, Ok(None))) | None => {
                let remark = format!("can not find message by the offset, {}", asked.offset);
                self.refuse(&call.reply, response::SYSTEM_ERROR, &remark);
            }
        }
    }

    /// The topic of a pull, once it may be pulled from by this group, and the group if it is known. `None`: the pull
    /// was refused.
    fn topic_to_pull(
        &mut self,
        call: &Call<'_>,
        asked: &PullMessage<'_>,
        is_lite: bool,
    ) -> Option<(Arc<Topic>, Option<Arc<Group>>)> {
        let reply = &call.reply;
        if let Some(why) = self.broker_forbids(is_lite) {
            self.forbid(reply, why);
            return None;
        }
        let group = self.catalog.group(asked.consumer_group).cloned();
        let makes_queue = self.settings.has_light_queues() && names::is_lmq(asked.topic) && !call.resumed;
        if group.is_none() && !self.settings.is_light_group(asked.consumer_group) {
            // A request waits for one thing to be made: a group whose light queue is new comes with its next pull.
            let waits = makes_queue && self.catalog.topic(asked.topic).is_none();
            if !waits && self.makes_group(call, asked.consumer_group) {
                return None;
            }
            // When there are too many groups, whoever has none still reads.
            if !self.settings.auto_create_group || names::check_group(asked.consumer_group).is_err() {
                let remark = format!("subscription group [{}] does not exist", asked.consumer_group);
                self.refuse(reply, response::SUBSCRIPTION_GROUP_NOT_EXIST, &remark);
                return None;
            }
        }
        if let Some(why) = group.as_deref().and_then(group_forbids) {
            self.forbid(reply, why);
            return None;
        }
        let Some(topic) = self.catalog.topic(asked.topic).cloned() else {
            if makes_queue {
                // Its consumer may come before its first message, and wait for it.
                let mut request = call.to_request();
                request.resumed = true;
                self.ensure(asked.topic.to_owned(), Make::Light, Mail::Request(request), reply);
            } else {
                self.refuse_topic(reply, asked.topic);
            }
            return None;
        };
        if let Some(why) = topic_forbids(&topic) {
            self.forbid(reply, why);
            return None;
        }
        Some((topic, group))
    }

    fn broker_forbids(&self, is_lite: bool) -> Option<Refusal> {
        let broker = &self.settings.broker_ip1;
        if !perm::readable(self.settings.permission) {
            return Some((Forbidden::Broker, format!("the broker[{broker}] pulling message is forbidden")));
        }
        let is_refused = is_lite && !self.settings.lite_pull;
        is_refused.then(|| (Forbidden::Broker, format!("the broker[{broker}] for lite pull consumer is forbidden")))
    }

    /// Whether a group's consumers are rejected because they pull. The registrar passes over their heartbeats then, so
    /// that a group with members is one of clients that are served, or was there before.
    #[inline]
    fn is_rejected(&self, group: &str) -> bool {
        self.settings.reject_pull_consumers
            && self.catalog.subscriptions(group).is_none()
            && !names::may_always_pull(group)
    }

    /// What a pull wants, from its header or from its group. `None`: the pull was refused.
    fn filter(&mut self, reply: &ReplyTo, asked: &PullMessage<'_>) -> Option<Filter> {
        if asked.sys_flag & pull_flag::SUBSCRIPTION != 0 {
            let (kind, text) = (asked.expression_type.unwrap_or(""), asked.subscription.unwrap_or(""));
            return self.own_filter(reply, asked.topic, kind, text).map(Filter::Own);
        }
        self.group_filter(reply, asked.consumer_group, asked.topic, asked.sub_version).map(Filter::Group)
    }

    /// What a live group wants of a topic, as far as the client that has this version knows. `None`: the pull was refused.
    fn group_filter(&mut self, reply: &ReplyTo, group: &str, topic: &str, version: i64) -> Option<Arc<Subscription>> {
        let Some(live) = self.catalog.subscriptions(group).cloned() else {
            self.refuse(reply, response::SUBSCRIPTION_NOT_EXIST, "the consumer's group info not exist");
            return None;
        };
        let config = self.catalog.group(group);
        if live.model == MessageModel::Broadcasting && config.is_some_and(|config| !config.may_broadcast()) {
            let remark = format!("the consumer group[{group}] can not consume by broadcast way");
            self.forbid(reply, (Forbidden::Broadcast, remark));
            return None;
        }
        if config.is_some_and(|config| !config.may_read(topic)) {
            let remark = format!("the consumer group[{group}] is forbidden for topic[{topic}]");
            self.forbid(reply, (Forbidden::Subscription, remark));
            return None;
        }
        let Some(subscription) = live.topic(topic) else {
            self.refuse(reply, response::SUBSCRIPTION_NOT_EXIST, "the consumer's subscription not exist");
            return None;
        };
        if subscription.version < version {
            self.refuse(reply, response::SUBSCRIPTION_NOT_LATEST, "the consumer's subscription not latest");
            return None;
        }
        if !subscription.is_tag_type() && !self.settings.property_filter {
            self.refuse(reply, response::SYSTEM_ERROR, &no_filter(&subscription.expression_type));
            return None;
        }
        if let Wants::Wrong(reason) = &subscription.wants {
            let remark =
                format!("The broker's consumer filter data is not exist!Your expression may be wrong! {reason}");
            self.refuse(reply, response::FILTER_DATA_NOT_EXIST, &remark);
            return None;
        }
        Some(subscription.clone())
    }

    fn forbid(&mut self, reply: &ReplyTo, (why, remark): Refusal) {
        let header = self.replies.header(reply, response::NO_PERMISSION);
        header.remark.push_str(&remark);
        header.fields.push_int("forbiddenType", why as i32);
        self.replies.send(reply, Pieces::new());
    }

    fn park(&mut self, pull: Pull) {
        if let Err(pull) = self.pulls.parked.park(pull) {
            // Not 19: the client would come again at once.
            self.refuse(&pull.reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// Answers a pull with messages.
    fn give(&mut self, reply: &ReplyTo, messages: &[Bytes], next: u64, span: Span) {
        self.traffic.got_messages += messages.len() as u64;
        self.traffic.pulls_found += 1;
        let header = self.replies.header(reply, response::SUCCESS);
        header.remark.push_str("FOUND");
        push_pull(header, next, span);
        self.replies.send(reply, gather(messages));
    }

    /// Answers a pull without messages.
    fn answer_empty(&mut self, reply: &ReplyTo, code: i32, status: &str, next: u64, span: Span) {
        self.traffic.pulls_missed += 1;
        let header = self.replies.header(reply, code);
        header.remark.push_str(status);
        push_pull(header, next, span);
        self.replies.send(reply, Pieces::new());
    }

    /// Bytes of log that a stock broker takes for being in memory.
    pub(crate) fn near_bytes(&self) -> u64 {
        self.settings.memory_bytes / 100 * NEAR_PERCENT
    }

    fn keeps_batches(&self, topic: &str) -> bool {
        self.catalog.topic(topic).is_some_and(|topic| topic.keeps_batches())
    }

    /// Whether the log of a queue is being opened. Where the queue ends is not known then, or not safe yet: a
    /// consumer that was told an end too low or too high would start to read there.
    fn is_opening(&self, topic: &str, queue: i32) -> bool {
        self.queue_of(topic, queue).is_some_and(|(local, _)| !self.partitions[local].is_open())
    }

    /// A queue that exists, and where it is. `None` also when another core runs it: `place` sends no
    /// such request here, unless its topic changed on the way.
    fn queue_of(&self, topic: &str, queue: i32) -> Option<(usize, QueueKey)> {
        let topic = self.catalog.topic(topic)?;
        let queue = u32::try_from(queue).ok().filter(|queue| *queue < topic.queues())?;
        let local = self.local(topic.partition_of(queue, self.settings.partitions))?;
        Some((local, QueueKey { topic: topic.id, queue }))
    }
}

fn group_forbids(group: &Group) -> Option<Refusal> {
    let refusal = || (Forbidden::Group, format!("subscription group no permission, {}", group.name));
    (!group.may_consume()).then(refusal)
}

fn topic_forbids(topic: &Topic) -> Option<Refusal> {
    let refusal = || (Forbidden::Topic, format!("the topic[{}] pulling message is forbidden", topic.name));
    (!topic.is_readable()).then(refusal)
}

fn push_pull(header: &mut Header, next: u64, span: Span) {
    let answer = PullAnswer {
        suggest_which_broker_id: 0,
        next_begin_offset: next.cast_signed(),
        min_offset: span.min.cast_signed(),
        max_offset: span.max.cast_signed(),
        ..PullAnswer::default()
    };
    answer.push(&mut header.fields);
}

/// The body of a pull's answer: records one behind the other, small ones in one copy.
pub(crate) fn gather(messages: &[Bytes]) -> Pieces {
    let is_small = |message: &&Bytes| message.len() < SHARE_BYTES_MIN;
    let mut small_bytes = messages.iter().filter(is_small).map(Bytes::len).sum();
    let mut pieces = Pieces::new();
    let mut copy = Vec::with_capacity(small_bytes);
    for message in messages {
        if is_small(&message) {
            copy.extend_from_slice(message);
            continue;
        }
        if !copy.is_empty() {
            small_bytes -= copy.len();
            pieces.push(Bytes::from(std::mem::replace(&mut copy, Vec::with_capacity(small_bytes))));
        }
        pieces.push(message.clone());
    }
    if !copy.is_empty() {
        pieces.push(Bytes::from(copy));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_records_are_copied_and_large_ones_shared() {
        let sizes = [10, SHARE_BYTES_MIN, SHARE_BYTES_MIN - 1, 20, SHARE_BYTES_MIN * 2];
        let records: Vec<Bytes> =
            sizes.iter().enumerate().map(|(index, size)| Bytes::from(vec![index as u8; *size])).collect();
        let pieces = gather(&records);
        assert_eq!(pieces.concat(), records.concat());
        let lengths: Vec<usize> = pieces.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [10, SHARE_BYTES_MIN, SHARE_BYTES_MIN - 1 + 20, SHARE_BYTES_MIN * 2]);
        assert_eq!(pieces[1].as_ptr(), records[1].as_ptr());
        assert!(gather(&[]).is_empty());
    }
}
