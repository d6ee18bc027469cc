//! Members of groups and their queue locks: codes 34, 35, 38, 40, 41, 42, 46, 203, 204, 328 and 345.

use bytes::Bytes;
use protocol::Header;
use protocol::bodies::{self, CheckClient, ConsumerIdList, GroupSubscription, HeartbeatData, LockAnswer, LockBatch};
use protocol::codes::{request, response};
use protocol::command::FLAG_ONEWAY;
use protocol::headers::{ConsumerGroup, HeartbeatAnswer, SubscriptionOf, UnregisterClient};
use protocol::names;

use super::configuration::retry_queues;
use super::{Order, Outcome, Registrar, body_that_fits, system_error, wrong_body};
use crate::answer::Answer;
use crate::call::{ConnectionId, Request};
use crate::catalog::{ConsumeType, Group, Subscription, Topic, Wants};
use crate::filter::no_filter;
use crate::members::{Beat, CLIENT_ID_BYTES_MAX, Client};
use crate::topics;

/// Membership.
impl Registrar {
    pub(super) fn heartbeat(&mut self, request: &Request, now_ms: u64) -> Result<Outcome, Answer> {
        self.check_room()?;
        let data: HeartbeatData = bodies::decode(&request.body).map_err(wrong_body)?;
        if data.client_id.is_empty() || data.client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(system_error(format!("clientID must have 1 to {CLIENT_ID_BYTES_MAX} bytes")));
        }
        let client = Client { id: data.client_id.as_str().into(), peer: request.peer, seen_ms: now_ms };
        let beat = Beat { fingerprint: data.heartbeat_fingerprint, without_subscriptions: data.without_sub };
        // RocketMQ's answer to a classic heartbeat; its clients do not look.
        let mut is_sub_change = beat.fingerprint == 0;
        for consumer in data.consumer_data_set {
            if self.settings.reject_pull_consumers && consumer.consume_type == ConsumeType::ConsumeActively {
                continue;
            }
            let Some(group) = self.group(&consumer.group_name).map_err(system_error)? else { continue };
            let mut topics = consumer.subscription_data_set.iter().map(|data| data.topic.as_str());
            let catalog = self.ledger.newest();
            let is_ordered = topics.any(|topic| catalog.topic(topic).is_some_and(|topic| topic.is_ordered()));
            // Of groups without configuration there may be as many as names: theirs is made with its first message.
            if self.ledger.newest().group(&group.name).is_some() {
                self.ensure_retry_topic(&group, is_ordered, consumer.unit_mode).map_err(system_error)?;
            }
            let limits = &self.settings.limits;
            let change = self.members.join_consumer(&client, consumer, beat, limits).map_err(system_error)?;
            is_sub_change |= change.wants_full;
            if change.is_notable {
                self.membership_changed(&group.name);
            } else {
                self.update_subscriptions(&group.name);
            }
        }
        for producer in data.producer_data_set {
            if names::check_group(&producer.group_name).is_ok() {
                let limits = &self.settings.limits;
                self.members.join_producer(&client, &producer.group_name, limits).map_err(system_error)?;
            }
        }
        let mut answer = Answer::ok();
        HeartbeatAnswer { is_support_v2: true, is_sub_change }.push(&mut answer.fields);
        Ok(Outcome::Settled(answer))
    }

    pub(super) fn unregister(
        &mut self,
        connection: ConnectionId,
        header: &UnregisterClient<'_>,
    ) -> Result<Outcome, Answer> {
        if let Some(group) = header.producer_group {
            self.members.leave_producer(connection, group);
        }
        if let Some(group) = header.consumer_group
            && self.members.leave_consumer(connection, group)
        {
            self.membership_changed(group);
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    pub(super) fn consumer_list(&self, group: &str) -> Result<Outcome, Answer> {
        let ids = self.members.client_ids(group);
        if ids.is_empty() {
            return Err(system_error(format!("no consumer for this group, {group}")));
        }
        let list = ConsumerIdList { consumer_id_list: ids.iter().map(|id| id.to_string()).collect() };
        body_that_fits(bodies::encode(&list))
    }

    pub(super) fn consumer_connections(&self, group: &str) -> Result<Outcome, Answer> {
        let Some(connections) = self.members.consumer_connection(group) else {
            let remark = format!("the consumer group[{group}] not online");
            return Err(Answer::refusal(response::CONSUMER_NOT_ONLINE, remark));
        };
        body_that_fits(bodies::encode(&connections))
    }

    pub(super) fn producer_connections(&self, group: &str) -> Result<Outcome, Answer> {
        let Some(connections) = self.members.producer_connection(group) else {
            return Err(system_error(format!("the producer group[{group}] not exist")));
        };
        body_that_fits(bodies::encode(&connections))
    }

    /// Code 328.
    pub(super) fn producers(&self) -> Result<Outcome, Answer> {
        body_that_fits(bodies::encode(&self.members.producers()))
    }

    /// Code 345.
    pub(super) fn subscription(&self, header: &SubscriptionOf<'_>) -> Result<Outcome, Answer> {
        let topic = header.topic.unwrap_or("");
        body_that_fits(bodies::encode(&GroupSubscription {
            group: header.group.to_owned(),
            subscription_data: self.members.subscription(header.group, topic).cloned(),
            topic: topic.to_owned(),
        }))
    }

    /// Passes a question on to the live producer of a group whose turn it is. If there is none, nobody is asked.
    pub fn on_check(&mut self, group: &str, turn: usize, frame: Bytes, wanted: &mut Vec<Order>) {
        let producer = self.members.producer_of(group, turn);
        wanted.extend(producer.map(|connection| Order::Push { connection, frame }));
    }

    /// A group's retry topic is there from its first heartbeat, and is an order topic as long as the
    /// group subscribes to one.
    fn ensure_retry_topic(&mut self, group: &Group, is_ordered: bool, is_unit: bool) -> Result<(), String> {
        let name = names::retry_topic(&group.name);
        match self.ledger.newest().topic(&name).cloned() {
            None => self.add_topic(topics::retry(&group.name, retry_queues(&group.config), is_ordered, is_unit)),
            Some(topic) if topic.config.order == is_ordered => Ok(()),
            Some(topic) => {
                let mut topic = Topic::clone(&topic);
                topic.config.order = is_ordered;
                self.ledger.set_topic(topic);
                Ok(())
            }
        }
    }

    /// Clients came to a group or left it, or its topics changed: its members are told.
    pub(super) fn membership_changed(&mut self, group: &str) {
        self.update_subscriptions(group);
        let config = self.ledger.newest().group(group);
        let may_notify = config.is_none_or(|group| group.config.notify_consumer_ids_changed_enable);
        if may_notify && !self.members.is_broadcasting(group) {
            self.notify.insert(group.into());
        }
    }

    /// Brings a group's subscriptions in the catalog up to date.
    pub(super) fn update_subscriptions(&mut self, group: &str) {
        let catalog = self.ledger.newest();
        let before = catalog.subscriptions(group).map(|before| &**before);
        match self.members.subscriptions(group) {
            now if now.as_ref() == before => {}
            Some(now) => self.ledger.set_subscriptions(now),
            None => self.ledger.remove_subscriptions(group),
        }
    }

    /// Command 40 to every member of a group.
    pub(super) fn push_changed(&self, group: &str, wanted: &mut Vec<Order>) {
        let mut header = Header::request(request::NOTIFY_CONSUMER_IDS_CHANGED);
        header.flag = FLAG_ONEWAY;
        ConsumerGroup { consumer_group: group }.push(&mut header.fields);
        let mut frame = Vec::new();
        header.encode_frame(&mut frame, 0);
        let frame = Bytes::from(frame);
        let push = |connection| Order::Push { connection, frame: frame.clone() };
        wanted.extend(self.members.connections(group).map(push));
    }
}

/// Queue locks.
impl Registrar {
    pub(super) fn lock(&mut self, body: &[u8], now_ms: u64) -> Result<Outcome, Answer> {
        let ask = lock_body(body)?;
        let held = self.locks.lock(&ask.consumer_group, &ask.client_id, ask.mq_set, now_ms);
        Ok(Outcome::Now(Answer::with_body(bodies::encode(&LockAnswer { queues: held }))))
    }

    pub(super) fn unlock(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        let ask = lock_body(body)?;
        self.locks.unlock(&ask.consumer_group, &ask.client_id, &ask.mq_set);
        Ok(Outcome::Now(Answer::ok()))
    }
}

/// Code 46.
impl Registrar {
    /// May a client filter like this? A client asks before it subscribes.
    pub(super) fn check_client(&self, body: &[u8]) -> Result<Outcome, Answer> {
        if !body.is_empty() {
            let check: CheckClient = bodies::decode(body).map_err(wrong_body)?;
            let subscription = Subscription::of(&check.subscription_data);
            if !subscription.is_tag_type() && !self.settings.property_filter {
                return Err(system_error(no_filter(&subscription.expression_type)));
            }
            if let Wants::Wrong(reason) = &subscription.wants {
                return Err(Answer::refusal(response::SUBSCRIPTION_PARSE_FAILED, &**reason));
            }
        }
        Ok(Outcome::Now(Answer::ok()))
    }
}

fn lock_body(body: &[u8]) -> Result<LockBatch, Answer> {
    let ask: LockBatch = bodies::decode(body).map_err(wrong_body)?;
    let is_legal = names::check_group(&ask.consumer_group).is_ok() && ask.client_id.len() <= CLIENT_ID_BYTES_MAX;
    if !is_legal {
        return Err(system_error("consumerGroup or clientId is not legal".to_owned()));
    }
    Ok(ask)
}
