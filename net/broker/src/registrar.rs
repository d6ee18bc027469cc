//! The registrar: all that is broker-wide and low-rate. Topics, group configurations, membership,
//! queue locks, and the questions that only all cores together can answer.
//!
//! A state machine without clock or I/O: requests and facts go in, orders come out, and core 0
//! carries them out. What changes the catalog goes through the ledger; the request is answered once
//! every core holds the change.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use protocol::Header;
use protocol::bodies::{self, BodyError, CheckClient, ConsumerIdList, HeartbeatData, LockAnswer, LockBatch};
use protocol::bodies::{GroupList, SubscriptionGroupConfig, SubscriptionGroupTable, TopicConfig, TopicConfigTable};
use protocol::codes::{request, response};
use protocol::command::FLAG_ONEWAY;
use protocol::frame::FRAME_BYTES_MAX;
use protocol::headers::{ConsumerGroup, CreateTopic, DeleteGroup, FieldError, GetConsumeStats, HeartbeatAnswer};
use protocol::headers::{ProducerGroup, QueryMessage, TopicOf, UnregisterClient};
use protocol::ids::key_hash;
use protocol::names;

use crate::admin::{self, Gatherings, Goal, Part, Question};
use crate::answer::Answer;
use crate::catalog::{Catalog, FactError, Group, Topic};
use crate::config::Settings;
use crate::ledger::{Ledger, Over, Then, WAITING_MAX};
use crate::locks::Locks;
use crate::mail::{ConnectionId, Ensure, Mail, Make, ReplyTo, Request};
use crate::members::{Beat, CLIENT_ID_BYTES_MAX, Client, Members};
use crate::runtime::{self, Rates};
use crate::topics;

/// Silent clients and expired locks are looked for this often, in ms (RocketMQ's scan).
pub const SCAN_MS: u64 = 10_000;
/// The cores' counters are sampled this often, in ms, for the rates of code 28.
pub const SAMPLE_MS: u64 = 10_000;
/// Longest JSON of a topic's or group's configuration, in bytes. 64 KiB; stock ones have 500.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;
/// Messages of a query by unique key (RocketMQ's `defaultQueryMaxNum`): the client's number is not looked at.
const UNIQUE_KEY_COUNT: usize = 32;
/// What a frame carries besides its body, generously, in bytes.
const HEADER_BYTES: usize = 64 << 10;

/// What the registrar wants done.
#[derive(Debug)]
pub enum Order {
    /// Answer a request.
    Answer(ReplyTo, Answer),
    /// Put a fact in partition 0, or delete it. Comes back, in order, as `on_durable`.
    Put {
        /// The fact's key.
        key: Vec<u8>,
        /// Its value; `None` deletes it.
        value: Option<Vec<u8>>,
        /// The change it belongs to.
        change: u64,
    },
    /// Give this catalog to every core, this one too. Comes back as `on_installed` once all hold it.
    Publish {
        /// The catalog.
        catalog: Arc<Catalog>,
        /// Which change it is.
        change: u64,
    },
    /// Send a frame that nobody answers.
    Push {
        /// To whom.
        connection: ConnectionId,
        /// The whole frame.
        frame: Bytes,
    },
    /// What waited for a topic goes on.
    Resume {
        /// On this core.
        core: usize,
        /// With this mail.
        mail: Mail,
    },
    /// Ask every core, this one too. Comes back as `on_told`, once from each.
    Ask {
        /// Which gathering it is.
        ticket: u64,
        /// The question.
        question: Question,
    },
    /// Tell the NameServers of the topics now.
    Register,
}

/// Topics, groups, members, locks and gatherings.
#[derive(Debug)]
pub struct Registrar {
    settings: Arc<Settings>,
    ledger: Ledger,
    members: Members,
    locks: Locks,
    gatherings: Gatherings,
    rates: Rates,
    /// Groups whose members are to be told, once this event is over.
    notify: BTreeSet<Arc<str>>,
    scan_at_ms: u64,
    sample_at_ms: u64,
}

/// What becomes of a request.
enum Outcome {
    /// It is answered now.
    Now(Answer),
    /// It is answered once all that was accepted so far is in force.
    Settled(Answer),
    /// Every core is asked first.
    Gather(Goal, Question),
}

impl Registrar {
    /// From the facts of partition 0. `seed`: of the catalog's hash tables. The system topics that
    /// are missing are ordinary changes of the first `on_tick`.
    pub fn recover<'a>(
        settings: Arc<Settings>,
        seed: u64,
        facts: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Registrar, FactError> {
        Ok(Registrar {
            ledger: Ledger::recover(seed, facts)?,
            members: Members::default(),
            locks: Locks::new(settings.limits.lock_timeout_ms, settings.limits.group_locks),
            gatherings: Gatherings::new(settings.cores),
            rates: Rates::default(),
            notify: BTreeSet::new(),
            scan_at_ms: 0,
            sample_at_ms: 0,
            settings,
        })
    }

    /// What every core holds; at the start, what every core is to begin with.
    pub fn catalog(&self) -> &Catalog {
        self.ledger.published()
    }

    /// Executes a request of one of the codes that `place` sends here.
    pub fn on_request(&mut self, request: Request, now_ms: u64, wanted: &mut Vec<Order>) {
        let reply = request.reply;
        match self.execute(&request, now_ms) {
            Ok(Outcome::Now(answer)) | Err(answer) => wanted.push(Order::Answer(reply, answer)),
            Ok(Outcome::Settled(answer)) => self.settle(Then::Answer(reply, answer), wanted),
            Ok(Outcome::Gather(goal, question)) => self.gather(Some(reply), goal, question, wanted),
        }
        self.finish(now_ms, wanted);
    }

    /// Makes sure that a topic exists; then its continuation goes back, also if it cannot exist.
    pub fn on_ensure(&mut self, ensure: Ensure, now_ms: u64, wanted: &mut Vec<Order>) {
        if self.ledger.waiting() >= WAITING_MAX {
            wanted.push(Order::Resume { core: ensure.back, mail: ensure.then });
            return;
        }
        if self.ledger.newest().topic(&ensure.topic).is_none() {
            self.make(&ensure.topic, &ensure.how);
        }
        self.settle(Then::Send(ensure.back, ensure.then), wanted);
        self.finish(now_ms, wanted);
    }

    /// A fact of `Order::Put` is durable, or cannot be made so.
    pub fn on_durable(&mut self, change: u64, ok: bool, now_ms: u64, wanted: &mut Vec<Order>) {
        if let Some(over) = self.ledger.on_durable(change, ok, wanted) {
            self.conclude(over, wanted);
            // What members said does not depend on the disk.
            let live = self.ledger.published().live_groups().map(|live| live.group.clone());
            let groups: BTreeSet<Arc<str>> = live.chain(self.members.groups().cloned()).collect();
            for group in groups {
                self.update_subscriptions(&group);
            }
        }
        self.finish(now_ms, wanted);
    }

    /// Every core holds the catalog of `Order::Publish`.
    pub fn on_installed(&mut self, change: u64, now_ms: u64, wanted: &mut Vec<Order>) {
        let over = self.ledger.on_installed(change);
        self.conclude(over, wanted);
        self.finish(now_ms, wanted);
    }

    /// One core's part of an `Order::Ask`.
    pub fn on_told(&mut self, ticket: u64, part: Part, now_ms: u64, wanted: &mut Vec<Order>) {
        if let Some(gathered) = self.gatherings.on_told(ticket, part) {
            self.gathered(gathered.reply, gathered.goal, gathered.part, now_ms, wanted);
        }
        self.finish(now_ms, wanted);
    }

    /// A connection is gone.
    pub fn on_closed(&mut self, connection: ConnectionId, now_ms: u64, wanted: &mut Vec<Order>) {
        for group in self.members.close(connection) {
            self.membership_changed(&group);
        }
        self.finish(now_ms, wanted);
    }

    /// Time passes. To be called about every second, and once at the start.
    pub fn on_tick(&mut self, now_ms: u64, wanted: &mut Vec<Order>) {
        self.make_system_topics();
        if now_ms >= self.scan_at_ms {
            self.scan_at_ms = now_ms + SCAN_MS;
            for group in self.members.expire(self.settings.limits.client_timeout_ms, now_ms) {
                self.membership_changed(&group);
            }
            self.locks.expire(now_ms);
        }
        if now_ms >= self.sample_at_ms {
            self.sample_at_ms = now_ms + SAMPLE_MS;
            self.gather(None, Goal::Sample, Question::Tally, wanted);
        }
        self.finish(now_ms, wanted);
    }

    fn execute(&mut self, request: &Request, now_ms: u64) -> Result<Outcome, Answer> {
        let fields = &request.header.fields;
        match request.header.code {
            request::UPDATE_AND_CREATE_TOPIC => self.create_topic(&CreateTopic::parse(fields).map_err(wrong_field)?),
            request::DELETE_TOPIC_IN_BROKER => self.delete_topic(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            request::GET_ALL_TOPIC_CONFIG => self.all_topics(),
            request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => self.create_group(&request.body),
            request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => self.all_groups(),
            request::DELETE_SUBSCRIPTIONGROUP => self.delete_group(&DeleteGroup::parse(fields).map_err(wrong_field)?),
            request::HEART_BEAT => self.heartbeat(request, now_ms),
            request::UNREGISTER_CLIENT => {
                self.unregister(request.peer.connection, &UnregisterClient::parse(fields).map_err(wrong_field)?)
            }
            request::CHECK_CLIENT_CONFIG => check_client(&request.body),
            request::GET_CONSUMER_LIST_BY_GROUP => {
                self.consumer_list(ConsumerGroup::parse(fields).map_err(wrong_field)?.consumer_group)
            }
            request::GET_CONSUMER_CONNECTION_LIST => {
                self.consumer_connections(ConsumerGroup::parse(fields).map_err(wrong_field)?.consumer_group)
            }
            request::GET_PRODUCER_CONNECTION_LIST => {
                self.producer_connections(ProducerGroup::parse(fields).map_err(wrong_field)?.producer_group)
            }
            request::LOCK_BATCH_MQ => self.lock(&request.body, now_ms),
            request::UNLOCK_BATCH_MQ => self.unlock(&request.body),
            request::QUERY_MESSAGE => self.query(&QueryMessage::parse(fields).map_err(wrong_field)?),
            request::GET_BROKER_CONFIG => self.broker_config(),
            request::GET_BROKER_RUNTIME_INFO => Ok(Outcome::Gather(Goal::Runtime, Question::Tally)),
            request::GET_TOPIC_STATS_INFO => self.topic_stats(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            request::GET_CONSUME_STATS => self.consume_stats(&GetConsumeStats::parse(fields).map_err(wrong_field)?),
            request::QUERY_TOPIC_CONSUME_BY_WHO => self.groups_of(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            code => Err(Answer::refusal(
                response::REQUEST_CODE_NOT_SUPPORTED,
                format!(" request type {code} not supported"),
            )),
        }
    }
}

/// Topics.
impl Registrar {
    fn create_topic(&mut self, header: &CreateTopic<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        let old = self.ledger.newest().topic(header.topic).cloned();
        let config = topics::requested(&self.settings, header, old.as_ref().map(|old| &old.config))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the topic's attributes are too long"));
        }
        match old {
            None => self.add_topic(config).map_err(system_error)?,
            Some(old) if old.config == config => {}
            Some(old) => self.ledger.set_topic(Topic { config, ..Topic::clone(&old) }),
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    fn delete_topic(&mut self, name: &str) -> Result<Outcome, Answer> {
        self.check_room()?;
        topics::check_delete(&self.settings, name)?;
        if self.ledger.newest().topic(name).is_some() {
            self.ledger.remove_topic(name);
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    fn all_topics(&self) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let table = TopicConfigTable {
            data_version: catalog.topics_version,
            mapping_data_version: catalog.topics_version,
            topic_config_table: catalog.topics().map(|topic| (topic.name.to_string(), topic.config.clone())).collect(),
            ..TopicConfigTable::default()
        };
        body_that_fits(bodies::encode(&table))
    }

    /// Accepts a topic that is not there yet. `Err`: there are too many.
    fn add_topic(&mut self, config: TopicConfig) -> Result<(), String> {
        let topics_max = self.settings.limits.topics;
        if self.ledger.newest().topics_count() >= topics_max {
            return Err(format!("this broker has {topics_max} topics, which is its limit"));
        }
        let id = self.ledger.take_topic_id();
        let partition = id % u32::from(self.settings.partitions);
        self.ledger.set_topic(Topic {
            id,
            name: config.topic_name.as_str().into(),
            first_partition: u16::try_from(partition).expect("a remainder is less than its divisor"),
            config,
        });
        Ok(())
    }

    /// Makes a missing topic for a message that waits for it, if that may be.
    fn make(&mut self, name: &str, how: &Make) {
        let catalog = self.ledger.newest();
        let config = match how {
            Make::Send { template, queues } => {
                let template = catalog.topic(template).map(|topic| &topic.config);
                topics::like_template(&self.settings, name, template, *queues)
            }
            Make::Retry { group } => {
                let queues = catalog.group(group).map_or(1, |group| retry_queues(&group.config));
                Some(topics::retry(group, queues, false, false))
            }
            Make::Dead { group } => Some(topics::dead(group)),
        };
        let is_legal = |config: &TopicConfig| config.topic_name == name && names::check_topic(name).is_ok();
        if let Some(config) = config.filter(is_legal) {
            // A full table is no error here: the message then finds no topic and says so.
            let _ = self.add_topic(config);
        }
    }

    fn make_system_topics(&mut self) {
        for config in topics::system_topics(&self.settings) {
            if self.ledger.newest().topic(&config.topic_name).is_none() {
                // The limit is at least 64 topics, and these come first.
                let _ = self.add_topic(config);
            }
        }
        for name in names::BUILT_IN_GROUPS {
            if self.ledger.newest().group(name).is_none() {
                self.add_group(SubscriptionGroupConfig::new(name));
            }
        }
    }
}

/// Group configurations.
impl Registrar {
    fn create_group(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let mut config: SubscriptionGroupConfig = bodies::decode(body).map_err(wrong_body)?;
        names::check_group(&config.group_name)
            .map_err(|error| Answer::refusal(response::INVALID_PARAMETER, error.to_string()))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the group's configuration is too long"));
        }
        let old = self.ledger.newest().group(&config.group_name).cloned();
        let attributes = std::mem::take(&mut config.attributes);
        config.attributes = old.as_ref().map(|old| old.config.attributes.clone()).unwrap_or_default();
        for (key, value) in attributes {
            match key.split_at_checked(1) {
                Some(("-", key)) => drop(config.attributes.remove(key)),
                Some(("+", key)) => drop(config.attributes.insert(key.to_owned(), value)),
                _ => drop(config.attributes.insert(key, value)),
            }
        }
        match old {
            Some(old) if old.config == config => {}
            Some(_) => self.add_group(config),
            None => {
                self.check_groups_room().map_err(system_error)?;
                self.add_group(config);
            }
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    fn delete_group(&mut self, header: &DeleteGroup<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        if self.ledger.newest().group(header.group).is_some() {
            self.ledger.remove_group(header.group);
        }
        if header.clean_offset {
            let group = header.group.to_owned();
            return Ok(Outcome::Gather(Goal::Forget, Question::Forget { group }));
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    fn all_groups(&self) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let table = SubscriptionGroupTable {
            data_version: catalog.groups_version,
            subscription_group_table: catalog
                .groups()
                .map(|group| (group.name.to_string(), group.config.clone()))
                .collect(),
            ..SubscriptionGroupTable::default()
        };
        body_that_fits(bodies::encode(&table))
    }

    fn add_group(&mut self, config: SubscriptionGroupConfig) {
        self.ledger.set_group(Group { name: config.group_name.as_str().into(), config });
    }

    fn check_groups_room(&self) -> Result<(), String> {
        let groups_max = self.settings.limits.groups;
        if self.ledger.newest().groups_count() >= groups_max {
            return Err(format!("this broker has {groups_max} consumer groups, which is its limit"));
        }
        Ok(())
    }

    /// A group's configuration, made with defaults if it is missing and may be made. `Ok(None)`: it
    /// may not.
    fn group(&mut self, name: &str) -> Result<Option<Arc<Group>>, String> {
        if self.ledger.newest().group(name).is_none() {
            let may_be = self.settings.auto_create_group || names::is_system_group(name);
            if !may_be || names::check_group(name).is_err() {
                return Ok(None);
            }
            self.check_groups_room()?;
            self.add_group(SubscriptionGroupConfig::new(name));
        }
        Ok(self.ledger.newest().group(name).cloned())
    }
}

/// Membership.
impl Registrar {
    fn heartbeat(&mut self, request: &Request, now_ms: u64) -> Result<Outcome, Answer> {
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
            let Some(group) = self.group(&consumer.group_name).map_err(system_error)? else { continue };
            let mut topics = consumer.subscription_data_set.iter().map(|data| data.topic.as_str());
            let catalog = self.ledger.newest();
            let is_ordered = topics.any(|topic| catalog.topic(topic).is_some_and(|topic| topic.is_ordered()));
            self.ensure_retry_topic(&group, is_ordered, consumer.unit_mode).map_err(system_error)?;
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

    fn unregister(&mut self, connection: ConnectionId, header: &UnregisterClient<'_>) -> Result<Outcome, Answer> {
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

    fn consumer_list(&self, group: &str) -> Result<Outcome, Answer> {
        let ids = self.members.client_ids(group);
        if ids.is_empty() {
            return Err(system_error(format!("no consumer for this group, {group}")));
        }
        let list = ConsumerIdList { consumer_id_list: ids.iter().map(|id| id.to_string()).collect() };
        body_that_fits(bodies::encode(&list))
    }

    fn consumer_connections(&self, group: &str) -> Result<Outcome, Answer> {
        let Some(connections) = self.members.consumer_connection(group) else {
            let remark = format!("the consumer group[{group}] not online");
            return Err(Answer::refusal(response::CONSUMER_NOT_ONLINE, remark));
        };
        body_that_fits(bodies::encode(&connections))
    }

    fn producer_connections(&self, group: &str) -> Result<Outcome, Answer> {
        let Some(connections) = self.members.producer_connection(group) else {
            return Err(system_error(format!("the producer group[{group}] not exist")));
        };
        body_that_fits(bodies::encode(&connections))
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
    fn membership_changed(&mut self, group: &str) {
        self.update_subscriptions(group);
        let config = self.ledger.newest().group(group);
        let may_notify = config.is_none_or(|group| group.config.notify_consumer_ids_changed_enable);
        if may_notify && !self.members.is_broadcasting(group) {
            self.notify.insert(group.into());
        }
    }

    /// Brings a group's subscriptions in the catalog up to date.
    fn update_subscriptions(&mut self, group: &str) {
        let catalog = self.ledger.newest();
        let before = catalog.subscriptions(group).map(|before| &**before);
        match self.members.subscriptions(group) {
            now if now.as_ref() == before => {}
            Some(now) => self.ledger.set_subscriptions(now),
            None => self.ledger.remove_subscriptions(group),
        }
    }

    /// Command 40 to every member of a group.
    fn push_changed(&self, group: &str, wanted: &mut Vec<Order>) {
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
    fn lock(&mut self, body: &[u8], now_ms: u64) -> Result<Outcome, Answer> {
        let ask = lock_body(body)?;
        let held = self.locks.lock(&ask.consumer_group, &ask.client_id, ask.mq_set, now_ms);
        Ok(Outcome::Now(Answer::with_body(bodies::encode(&LockAnswer { queues: held }))))
    }

    fn unlock(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        let ask = lock_body(body)?;
        self.locks.unlock(&ask.consumer_group, &ask.client_id, &ask.mq_set);
        Ok(Outcome::Now(Answer::ok()))
    }
}

/// Questions to all cores.
impl Registrar {
    fn query(&self, header: &QueryMessage<'_>) -> Result<Outcome, Answer> {
        let count_max = self.settings.limits.query_messages;
        let asked = usize::try_from(header.max_num).unwrap_or(0);
        let count = if header.unique_key { UNIQUE_KEY_COUNT } else { asked }.min(count_max);
        let key = key_hash(header.topic, header.key);
        let begin_ms = header.begin_timestamp.max(0).cast_unsigned();
        let end_ms = header.end_timestamp.max(0).cast_unsigned();
        Ok(Outcome::Gather(Goal::Messages { count }, Question::Messages { key, begin_ms, end_ms, count }))
    }

    fn topic_stats(&self, topic: &str) -> Result<Outcome, Answer> {
        if self.ledger.published().topic(topic).is_none() {
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, format!("topic[{topic}] not exist")));
        }
        let topic = topic.to_owned();
        Ok(Outcome::Gather(Goal::Topic { topic: topic.clone() }, Question::Topic { topic }))
    }

    fn consume_stats(&self, header: &GetConsumeStats<'_>) -> Result<Outcome, Answer> {
        let group = header.consumer_group.to_owned();
        let listed = header.topic_list.unwrap_or("").split(';');
        let mut topics: BTreeSet<&str> = listed.filter(|topic| !topic.trim_ascii().is_empty()).collect();
        if topics.is_empty() {
            topics.extend(header.topic.filter(|topic| !topic.trim_ascii().is_empty()));
        }
        if topics.is_empty() {
            let goal = Goal::TopicsOf { group: group.clone() };
            return Ok(Outcome::Gather(goal, Question::TopicsOf { group }));
        }
        let topics = self.consumed(&group, topics.into_iter());
        Ok(Outcome::Gather(Goal::Progress { topics: topics.clone() }, Question::Progress { group, topics }))
    }

    /// Those of the topics that exist and that the group still subscribes to, if it is alive.
    fn consumed<'a>(&self, group: &str, topics: impl Iterator<Item = &'a str>) -> Vec<String> {
        let catalog = self.ledger.published();
        let live = catalog.subscriptions(group).filter(|live| !live.topics.is_empty());
        let is_consumed =
            |topic: &&str| catalog.topic(topic).is_some() && live.is_none_or(|live| live.topic(topic).is_some());
        topics.filter(is_consumed).map(str::to_owned).collect()
    }

    fn groups_of(&self, topic: &str) -> Result<Outcome, Answer> {
        let topic = topic.to_owned();
        Ok(Outcome::Gather(Goal::GroupsOf { topic: topic.clone() }, Question::GroupsOf { topic }))
    }

    fn broker_config(&self) -> Result<Outcome, Answer> {
        let version = bodies::encode(&self.ledger.published().topics_version);
        let version = String::from_utf8(version).expect("JSON is UTF-8");
        Ok(Outcome::Now(Answer::with_body(runtime::properties(&self.settings)).field("version", &version)))
    }

    fn gather(&mut self, reply: Option<ReplyTo>, goal: Goal, question: Question, wanted: &mut Vec<Order>) {
        match self.gatherings.start(reply, goal) {
            Some(ticket) => wanted.push(Order::Ask { ticket, question }),
            None => {
                let remark = "[REJECTREQUEST]system busy, start flow control for a while";
                let busy = Answer::refusal(response::SYSTEM_BUSY, remark);
                wanted.extend(reply.map(|reply| Order::Answer(reply, busy)));
            }
        }
    }

    /// All cores have answered.
    fn gathered(&mut self, reply: Option<ReplyTo>, goal: Goal, part: Part, now_ms: u64, wanted: &mut Vec<Order>) {
        let answer = match (goal, part) {
            (Goal::Sample, Part::Tally(tally)) => return self.rates.sample(&tally, now_ms),
            (Goal::Runtime, Part::Tally(tally)) => {
                Answer::with_body(bodies::encode(&runtime::table(&self.settings, &self.rates, &tally, now_ms)))
            }
            (Goal::TopicsOf { group }, Part::TopicsOf(ids)) => {
                let catalog = self.ledger.published();
                let names = catalog.topics().filter(|topic| ids.contains(&topic.id)).map(|topic| &*topic.name);
                let topics = self.consumed(&group, names);
                let goal = Goal::Progress { topics: topics.clone() };
                return self.gather(reply, goal, Question::Progress { group, topics }, wanted);
            }
            (Goal::Topic { topic }, Part::Topic(queues)) => {
                admin::topic_stats(&self.settings.broker_name, &topic, &queues)
            }
            (Goal::Progress { topics }, Part::Progress(queues)) => {
                admin::consume_stats(&self.settings.broker_name, &topics, &queues)
            }
            (Goal::GroupsOf { topic }, Part::GroupsOf(mut groups)) => {
                let live = self.ledger.published().live_groups().filter(|live| live.topic(&topic).is_some());
                groups.extend(live.map(|live| live.group.to_string()));
                Answer::with_body(bodies::encode(&GroupList { group_list: groups }))
            }
            (Goal::Messages { count }, Part::Messages(messages)) => admin::messages(count, BODY_BYTES_MAX, messages),
            (Goal::Forget, Part::Forgotten) => {
                // The group's deletion may still be on its way to the disk.
                if let Some(reply) = reply {
                    self.settle(Then::Answer(reply, Answer::ok()), wanted);
                }
                return;
            }
            (goal, part) => panic!("cores answered {goal:?} with {part:?}"),
        };
        let answer = if answer.body.len() > BODY_BYTES_MAX { too_large() } else { answer };
        wanted.extend(reply.map(|reply| Order::Answer(reply, answer)));
    }
}

/// The way of a change.
impl Registrar {
    /// Does `then` once all that was accepted is in force: at once, if it is.
    fn settle(&mut self, then: Then, wanted: &mut Vec<Order>) {
        if let Some(then) = self.ledger.wait(then) {
            self.carry_out(then, true, wanted);
        }
    }

    /// The end of every event: members are told, the next change starts.
    fn finish(&mut self, now_ms: u64, wanted: &mut Vec<Order>) {
        for group in std::mem::take(&mut self.notify) {
            if let Some(group) = self.ledger.notify(group) {
                self.push_changed(&group, wanted);
            }
        }
        self.ledger.start(now_ms, wanted);
    }

    fn conclude(&mut self, over: Over, wanted: &mut Vec<Order>) {
        if over.register {
            wanted.push(Order::Register);
        }
        for then in over.then {
            self.carry_out(then, over.ok, wanted);
        }
        for group in over.notify {
            self.push_changed(&group, wanted);
        }
    }

    fn carry_out(&self, then: Then, ok: bool, wanted: &mut Vec<Order>) {
        match then {
            Then::Answer(reply, answer) if ok => wanted.push(Order::Answer(reply, answer)),
            Then::Answer(reply, _) => {
                let remark = "the change could not be written to the disk, it is dropped";
                wanted.push(Order::Answer(reply, Answer::refusal(response::SERVICE_NOT_AVAILABLE, remark)));
            }
            Then::Send(core, mail) => wanted.push(Order::Resume { core, mail }),
        }
    }

    /// Whether one more request may wait for a change.
    fn check_room(&self) -> Result<(), Answer> {
        if self.ledger.waiting() < WAITING_MAX {
            return Ok(());
        }
        let remark = "[REJECTREQUEST]system busy, start flow control for a while";
        Err(Answer::refusal(response::SYSTEM_BUSY, remark))
    }
}

/// Most bytes of an answer's body.
const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;

fn body_that_fits(body: Vec<u8>) -> Result<Outcome, Answer> {
    if body.len() > BODY_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Outcome::Now(Answer::with_body(body)))
}

fn too_large() -> Answer {
    system_error(format!("the answer has more than the {BODY_BYTES_MAX} bytes that fit a frame"))
}

/// Code 46: may a client filter like this? Tags always; SQL is not there yet.
fn check_client(body: &[u8]) -> Result<Outcome, Answer> {
    if !body.is_empty() {
        let check: CheckClient = bodies::decode(body).map_err(wrong_body)?;
        let kind = check.subscription_data.expression_type;
        if !kind.is_empty() && kind != bodies::TYPE_TAG {
            return Err(system_error(format!("The broker does not support consumer to filter message by {kind}")));
        }
    }
    Ok(Outcome::Now(Answer::ok()))
}

fn lock_body(body: &[u8]) -> Result<LockBatch, Answer> {
    let ask: LockBatch = bodies::decode(body).map_err(wrong_body)?;
    let is_legal = names::check_group(&ask.consumer_group).is_ok() && ask.client_id.len() <= CLIENT_ID_BYTES_MAX;
    if !is_legal {
        return Err(system_error("consumerGroup or clientId is not legal".to_owned()));
    }
    Ok(ask)
}

/// Queues of a group's retry topic: one at least, because admin tools find groups by it.
fn retry_queues(config: &SubscriptionGroupConfig) -> i32 {
    config.retry_queue_nums.max(1)
}

fn wrong_field(error: FieldError) -> Answer {
    system_error(error.to_string())
}

fn wrong_body(error: BodyError) -> Answer {
    system_error(error.to_string())
}

fn system_error(remark: String) -> Answer {
    Answer::refusal(response::SYSTEM_ERROR, remark)
}
