//! The catalog: what every core must know to serve a request without asking another one.
//!
//! Topics, configurations of consumer groups and the subscriptions of live groups. A catalog never
//! changes: the registrar makes the next one, which shares what stayed the same, and publishes it.
//! Here is also the one home of the facts (DESIGN 5) that topics and groups are stored as.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use protocol::bodies::{SUB_ALL, SetRequestMode, SubscriptionData, TYPE_SQL92, TYPE_TAG};
use protocol::ids::tag_hash;
use protocol::names::{self, perm};
use protocol::sql::Expression;
use serde::{Deserialize, Serialize};

use crate::attributes::{BATCH_QUEUE, CLEANUP_POLICY, COMPACTION, QUEUE_TYPE};
use crate::config::{Changes, Settings};

pub use protocol::bodies::{ConsumeType, DataVersion, MessageModel, SubscriptionGroupConfig, TopicConfig};

/// All there is to know, at one moment. Cheap to clone: the tables are shared.
#[derive(Clone, Debug)]
pub struct Catalog {
    topics: Arc<Table<Topic>>,
    groups: Arc<Table<Group>>,
    subscriptions: Arc<Table<Subscriptions>>,
    modes: Arc<BTreeMap<ModeKey, SetRequestMode>>,
    light_queues: usize,
    compacted: Arc<BTreeSet<u32>>,
    doubtful: Arc<[u32]>,
    /// Version of the topics, as NameServers see it.
    pub topics_version: DataVersion,
    /// Version of the group configurations, as admin tools see it.
    pub groups_version: DataVersion,
    /// What of the configuration was changed at run time.
    pub changes: Arc<Changes>,
}

impl Catalog {
    /// An empty one. `seed`: of its hash tables, chosen by the loop.
    pub fn new(seed: u64) -> Catalog {
        Catalog {
            topics: Arc::new(Table::new(seed)),
            groups: Arc::new(Table::new(seed ^ 1)),
            subscriptions: Arc::new(Table::new(seed ^ 2)),
            modes: Arc::default(),
            light_queues: 0,
            compacted: Arc::default(),
            doubtful: Arc::default(),
            topics_version: DataVersion::default(),
            groups_version: DataVersion::default(),
            changes: Arc::default(),
        }
    }

    /// The topic of this name.
    #[inline]
    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// The configuration of this consumer group.
    #[inline]
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.get(name)
    }

    /// The same, and of a group that needs none ([`Settings::is_light_group`]) the defaults.
    #[inline]
    pub fn group_or_light(&self, name: &str, settings: &Settings) -> Option<Arc<Group>> {
        let light = || settings.is_light_group(name).then(|| Arc::new(Group::plain(name)));
        self.group(name).cloned().or_else(light)
    }

    /// What the live members of this group subscribe to; `None`: it has no member.
    #[inline]
    pub fn subscriptions(&self, group: &str) -> Option<&Arc<Subscriptions>> {
        self.subscriptions.get(group)
    }

    /// All topics, in no order.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.iter()
    }

    /// The ids of the topics that `old` has and this one has not. Cost: what differs, not what there is,
    /// if one catalog was made from the other.
    pub fn topics_gone_since(&self, old: &Catalog) -> BTreeSet<u32> {
        let is_gone = |topic: &&Arc<Topic>| self.topic(&topic.name).is_none_or(|now| now.id != topic.id);
        old.topics.changed_since(&self.topics).filter(is_gone).map(|topic| topic.id).collect()
    }

    /// The ids of the topics that have more queues to read here than in `old`. Cost: as of
    /// [`topics_gone_since`](Catalog::topics_gone_since).
    pub fn topics_grown_since(&self, old: &Catalog) -> Vec<u32> {
        let has_grown = |was: &&Arc<Topic>| {
            self.topic(&was.name).is_some_and(|now| now.id == was.id && now.read_queues() > was.read_queues())
        };
        old.topics.changed_since(&self.topics).filter(has_grown).map(|topic| topic.id).collect()
    }

    /// The names of the groups that `old` has and this one has not. Cost: as of
    /// [`topics_gone_since`](Catalog::topics_gone_since).
    pub fn groups_gone_since(&self, old: &Catalog) -> BTreeSet<Arc<str>> {
        let gone = old.groups.changed_since(&self.groups).filter(|group| self.group(&group.name).is_none());
        gone.map(|group| Arc::clone(&group.name)).collect()
    }

    /// These topics, too, are in doubt: whether they are deleted, the log has to tell.
    pub fn doubt(&mut self, ids: impl Iterator<Item = u32>) {
        self.doubtful = self.doubtful.iter().copied().chain(ids).collect();
    }

    /// No topic is in doubt any more.
    pub fn be_certain(&mut self) {
        self.doubtful = Arc::default();
    }

    /// Whether a topic takes no message because it may be deleted already.
    #[inline]
    pub fn is_doubtful(&self, id: u32) -> bool {
        !self.doubtful.is_empty() && self.doubtful.contains(&id)
    }

    /// All group configurations, in no order.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.groups.iter()
    }

    /// All live groups with their subscriptions, in no order.
    pub fn live_groups(&self) -> impl Iterator<Item = &Arc<Subscriptions>> {
        self.subscriptions.iter()
    }

    /// How many topics there are.
    pub fn topics_count(&self) -> usize {
        self.topics.count
    }

    /// How many of them are light queues (LMQ).
    pub fn light_queues_count(&self) -> usize {
        self.light_queues
    }

    /// The ids of those of which the newest message of each key stays. The same `Arc` as long as nothing of it changes.
    pub fn compacted(&self) -> &Arc<BTreeSet<u32>> {
        &self.compacted
    }

    /// How many group configurations there are.
    pub fn groups_count(&self) -> usize {
        self.groups.count
    }

    /// `settings` with what was changed at run time; the same ones if nothing was.
    pub fn settings(&self, settings: &Arc<Settings>) -> Arc<Settings> {
        if self.changes.is_empty() {
            return Arc::clone(settings);
        }
        let mut changed = Settings::clone(settings);
        self.changes.apply(&mut changed);
        Arc::new(changed)
    }

    /// How a group gets messages of a topic, if somebody said so.
    pub fn mode(&self, topic: &str, group: &str) -> Option<&SetRequestMode> {
        self.modes.get(&(topic.to_owned(), group.to_owned()))
    }

    /// All that was said about how groups get messages, by topic and group.
    pub fn modes(&self) -> impl Iterator<Item = &SetRequestMode> {
        self.modes.values()
    }

    /// How many there are of those.
    pub fn modes_count(&self) -> usize {
        self.modes.len()
    }

    /// Says how a group gets messages of a topic.
    pub fn set_mode(&mut self, mode: SetRequestMode) {
        let key = (mode.topic.clone(), mode.consumer_group.clone());
        Arc::make_mut(&mut self.modes).insert(key, mode);
    }

    /// Puts a topic in, or in the place of the one of its name.
    pub fn set_topic(&mut self, topic: Arc<Topic>) {
        self.light_queues += usize::from(names::is_lmq(&topic.name) && self.topic(&topic.name).is_none());
        self.forget_compacted(&topic.name);
        if topic.is_compacted() {
            Arc::make_mut(&mut self.compacted).insert(topic.id);
        }
        Arc::make_mut(&mut self.topics).set(topic);
    }

    /// Takes a topic out.
    pub fn remove_topic(&mut self, name: &str) {
        self.light_queues -= usize::from(names::is_lmq(name) && self.topic(name).is_some());
        self.forget_compacted(name);
        Arc::make_mut(&mut self.topics).remove(name);
    }

    fn forget_compacted(&mut self, name: &str) {
        if let Some(old) = self.topic(name).filter(|old| old.is_compacted()).map(|old| old.id) {
            Arc::make_mut(&mut self.compacted).remove(&old);
        }
    }

    /// Puts a group's configuration in, or in the place of its last one.
    pub fn set_group(&mut self, group: Arc<Group>) {
        Arc::make_mut(&mut self.groups).set(group);
    }

    /// Takes a group's configuration out.
    pub fn remove_group(&mut self, name: &str) {
        Arc::make_mut(&mut self.groups).remove(name);
    }

    /// Puts a live group's subscriptions in, or in the place of its last ones.
    pub fn set_subscriptions(&mut self, subscriptions: Arc<Subscriptions>) {
        Arc::make_mut(&mut self.subscriptions).set(subscriptions);
    }

    /// Takes the subscriptions of a group out that has no member any more.
    pub fn remove_subscriptions(&mut self, group: &str) {
        Arc::make_mut(&mut self.subscriptions).remove(group);
    }
}

/// A topic's name and a group's.
type ModeKey = (String, String);

/// A topic of this broker. A topic that is deleted and created again is another one: it has
/// another id.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// Unique for ever.
    pub id: u32,
    /// Its name, also in `config`; here for sharing.
    pub name: Arc<str>,
    /// The partition of queue 0. Later queues lie in the ones behind it, round and round.
    pub first_partition: u16,
    /// As clients and admin tools see it.
    pub config: TopicConfig,
}

impl Topic {
    /// The partition that `queue` lies in. `partitions`: how many the broker has, at least one.
    #[inline]
    pub fn partition_of(&self, queue: u32, partitions: u16) -> u16 {
        partition_of(self.first_partition, queue, partitions)
    }

    /// What a send asks of it.
    #[inline]
    pub fn destination(&self) -> Destination {
        Destination {
            id: self.id,
            first_partition: self.first_partition,
            queues: self.queues(),
            write_queues: self.write_queues(),
            keeps_batches: self.keeps_batches(),
            is_compacted: self.is_compacted(),
        }
    }

    /// Queues that consumers may ask for: `0..read_queues`.
    #[inline]
    pub fn read_queues(&self) -> u32 {
        self.config.read_queue_nums.max(0).cast_unsigned()
    }

    /// Queues that producers may send to: `0..write_queues`.
    #[inline]
    pub fn write_queues(&self) -> u32 {
        self.config.write_queue_nums.max(0).cast_unsigned()
    }

    /// Queues that exist, for reading or writing.
    #[inline]
    pub fn queues(&self) -> u32 {
        self.read_queues().max(self.write_queues())
    }

    /// Whether consumers may pull.
    #[inline]
    pub fn is_readable(&self) -> bool {
        perm::readable(self.config.perm)
    }

    /// Whether producers may send.
    #[inline]
    pub fn is_writable(&self) -> bool {
        perm::writeable(self.config.perm)
    }

    /// Whether a batch (320) is stored as one message that holds the others: an inner batch (PROTOCOL 3.7).
    pub fn keeps_batches(&self) -> bool {
        self.config.attributes.get(QUEUE_TYPE).is_some_and(|kind| kind == BATCH_QUEUE)
    }

    /// Whether the newest message of each key stays, and others go.
    pub fn is_compacted(&self) -> bool {
        self.config.attributes.get(CLEANUP_POLICY).is_some_and(|policy| policy == COMPACTION)
    }

    /// Whether producers order their messages by queue.
    pub fn is_ordered(&self) -> bool {
        self.config.order
    }
}

/// What a send asks of its topic, copied out: to hold the topic itself would be to count it, twice for each message.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The topic.
    pub id: u32,
    first_partition: u16,
    /// Queues that exist.
    pub queues: u32,
    /// Those that producers may send to.
    pub write_queues: u32,
    /// See [`Topic::keeps_batches`].
    pub keeps_batches: bool,
    /// See [`Topic::is_compacted`].
    pub is_compacted: bool,
}

impl Destination {
    /// See [`Topic::partition_of`].
    #[inline]
    pub fn partition_of(&self, queue: u32, partitions: u16) -> u16 {
        partition_of(self.first_partition, queue, partitions)
    }
}

fn partition_of(first_partition: u16, queue: u32, partitions: u16) -> u16 {
    let partition = (u64::from(first_partition) + u64::from(queue)) % u64::from(partitions);
    u16::try_from(partition).expect("a remainder is less than its divisor")
}

/// A consumer group's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name, also in `config`; here for sharing.
    pub name: Arc<str>,
    /// As clients and admin tools see it.
    pub config: SubscriptionGroupConfig,
    /// What it may not do, by topic: bits of `perm`, as code 353 set them.
    pub forbidden: BTreeMap<String, i32>,
}

impl Group {
    /// One with the defaults.
    pub fn plain(name: &str) -> Group {
        Group { name: name.into(), config: SubscriptionGroupConfig::new(name), forbidden: BTreeMap::new() }
    }

    /// Whether its members may pull at all.
    pub fn may_consume(&self) -> bool {
        self.config.consume_enable
    }

    /// Whether its members may pull when they broadcast.
    pub fn may_broadcast(&self) -> bool {
        self.config.consume_broadcast_enable
    }

    /// Whether its members may read this topic (code 353).
    pub fn may_read(&self, topic: &str) -> bool {
        self.forbidden.is_empty() || self.forbidden.get(topic).is_none_or(|bits| bits & perm::READ == 0)
    }

    /// How often a message is tried again before it is dead.
    pub fn retries_max(&self) -> i32 {
        self.config.retry_max_times
    }

    /// Queues of its `%RETRY%` topic; 0 turns retrying off.
    pub fn retry_queues(&self) -> u32 {
        self.config.retry_queue_nums.max(0).cast_unsigned()
    }
}

/// What the members of a live group subscribe to.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscriptions {
    /// The group's name.
    pub group: Arc<str>,
    /// Who pulls: the application, or its client.
    pub consume_type: ConsumeType,
    /// How its members share messages.
    pub model: MessageModel,
    /// By topic.
    pub topics: BTreeMap<Arc<str>, Arc<Subscription>>,
}

impl Subscriptions {
    /// The subscription to this topic.
    #[inline]
    pub fn topic(&self, name: &str) -> Option<&Arc<Subscription>> {
        self.topics.get(name)
    }
}

/// Which messages of one topic a group wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Grows with each change that the client makes; in its milliseconds. Go sends 0.
    pub version: i64,
    /// `TAG` or `SQL92`.
    pub expression_type: String,
    /// As the client wrote it: `*`, `TagA || TagB`.
    pub expression: String,
    /// What the index tells us about a message, compared with this, decides.
    pub wants: Wants,
}

/// Which messages a filter lets through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Everything.
    All,
    /// Messages with one of these hashes (Java's `String.hashCode`), sorted.
    Tags(Vec<i32>),
    /// Messages whose properties match an expression.
    Sql(Arc<Expression>),
    /// Nothing: the expression cannot be read, for this reason.
    Wrong(Arc<str>),
}

impl Wants {
    /// Whether a message with this tag hash is wanted. Java compares the low 32 bits.
    #[inline]
    pub fn tag(&self, tag_hash: i64) -> bool {
        match self {
            Wants::All => true,
            Wants::Tags(tags) => tags.binary_search(&(tag_hash as i32)).is_ok(),
            Wants::Sql(_) => true,
            Wants::Wrong(_) => false,
        }
    }

    /// What a message's properties must match besides.
    #[inline]
    pub fn expression(&self) -> Option<&Expression> {
        match self {
            Wants::Sql(expression) => Some(expression),
            _ => None,
        }
    }

    /// Those that match an expression of this type; not that of tags.
    pub fn of_expression(kind: &str, text: &str) -> Wants {
        if kind != TYPE_SQL92 {
            return Wants::Wrong(format!("there is no expression type {kind}").into());
        }
        match Expression::compile(text) {
            Ok(expression) => Wants::Sql(Arc::new(expression)),
            Err(error) => Wants::Wrong(error.to_string().into()),
        }
    }

    /// Messages with one of these hashes, in any order.
    pub fn of_codes(codes: impl IntoIterator<Item = i32>) -> Wants {
        let mut codes: Vec<i32> = codes.into_iter().collect();
        codes.sort_unstable();
        codes.dedup();
        Wants::Tags(codes)
    }
}

impl Subscription {
    /// What a client said. One that leaves the codes of its tags out gets them computed.
    pub fn of(data: &SubscriptionData) -> Subscription {
        let is_tag_type = data.expression_type.is_empty() || data.expression_type == TYPE_TAG;
        let wants = if data.class_filter_mode || is_tag_type && data.sub_string == SUB_ALL {
            Wants::All
        } else if !is_tag_type {
            Wants::of_expression(&data.expression_type, &data.sub_string)
        } else if data.code_set.is_empty() {
            Wants::of_codes(data.tags_set.iter().map(|tag| tag_hash(tag) as i32))
        } else {
            Wants::of_codes(data.code_set.iter().copied())
        };
        Subscription {
            version: data.sub_version,
            expression_type: data.expression_type.clone(),
            expression: data.sub_string.clone(),
            wants,
        }
    }

    /// Whether it filters by tag; else by SQL. A missing type means tag (PROTOCOL 3.11).
    pub fn is_tag_type(&self) -> bool {
        self.expression_type.is_empty() || self.expression_type == TYPE_TAG
    }
}

/// A table that shares with its clones what did not change since.
///
/// 64 small hash tables: changing one of 100,000 entries copies some 1,600 of them, not all.
#[derive(Clone, Debug)]
struct Table<V> {
    state: RandomState,
    shards: Vec<Arc<HashTable<Arc<V>>>>,
    count: usize,
}

/// How many shards a `Table` has; a power of two.
const SHARDS: usize = 64;

/// What a `Table` finds its entries by.
trait Named {
    fn name(&self) -> &str;
}

impl Named for Topic {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Group {
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Subscriptions {
    fn name(&self) -> &str {
        &self.group
    }
}

impl<V: Named> Table<V> {
    fn new(seed: u64) -> Table<V> {
        Table {
            state: RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0),
            shards: (0..SHARDS).map(|_| Arc::default()).collect(),
            count: 0,
        }
    }

    #[inline]
    fn get(&self, name: &str) -> Option<&Arc<V>> {
        let hash = self.state.hash_one(name);
        self.shards[shard_of(hash)].find(hash, |value| value.name() == name)
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// What is here in the shards that `now` does not share with this one.
    fn changed_since<'a>(&'a self, now: &'a Table<V>) -> impl Iterator<Item = &'a Arc<V>> {
        let changed = self.shards.iter().zip(&now.shards).filter(|(old, now)| !Arc::ptr_eq(old, now));
        changed.flat_map(|(old, _)| old.iter())
    }

    fn set(&mut self, value: Arc<V>) {
        let hash = self.state.hash_one(value.name());
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        match shard.find_mut(hash, |old| old.name() == value.name()) {
            Some(old) => *old = value,
            None => {
                let state = &self.state;
                shard.insert_unique(hash, value, |value| state.hash_one(value.name()));
                self.count += 1;
            }
        }
    }

    fn remove(&mut self, name: &str) {
        let hash = self.state.hash_one(name);
        let shard = Arc::make_mut(&mut self.shards[shard_of(hash)]);
        if let Ok(entry) = shard.find_entry(hash, |value| value.name() == name) {
            entry.remove();
            self.count -= 1;
        }
    }
}

/// The hash tables go by the lowest and the highest bits; this takes some between them.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

/// Key prefix of topics' facts; the name follows.
pub const TOPIC_KEY: &[u8] = b"t/";
/// Key prefix of group configurations' facts; the name follows.
pub const GROUP_KEY: &[u8] = b"g/";
/// Key prefix of facts that say how a group gets messages of a topic; topic, slash and group follow.
pub const MODE_KEY: &[u8] = b"m/";
/// Key of the fact that holds what outlives every topic.
pub const COUNTERS_KEY: &[u8] = b"n/";
/// Key prefix of consumer offsets: topic id (u32 BE), queue (u32 BE), the group's name.
pub const OFFSET_KEY: &[u8] = b"o/";

/// Bytes of a plain consumer offset. The value of a group that pops may have more.
pub const OFFSET_BYTES: usize = 8;

/// A fact's key and value.
pub type Fact = (Vec<u8>, Vec<u8>);

/// What outlives every topic and group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counters {
    /// The id of the next topic; ids are never used again.
    pub next_topic: u32,
    /// Version of the topics.
    pub topics: DataVersion,
    /// Version of the group configurations.
    pub groups: DataVersion,
}

impl Counters {
    /// As a fact.
    pub fn fact(&self) -> Fact {
        (COUNTERS_KEY.to_vec(), json(self))
    }

    /// From the fact's value.
    pub fn from_fact(value: &[u8]) -> Result<Counters, FactError> {
        serde_json::from_slice(value).map_err(|error| FactError::of(COUNTERS_KEY, &error))
    }
}

impl Topic {
    /// As a fact.
    pub fn fact(&self) -> Fact {
        let stored = StoredTopic { id: self.id, first_partition: self.first_partition, config: self.config.clone() };
        (Topic::key(&self.name), json(&stored))
    }

    /// The key of the fact of the topic of this name.
    pub fn key(name: &str) -> Vec<u8> {
        [TOPIC_KEY, name.as_bytes()].concat()
    }

    /// From the fact's value.
    pub fn from_fact(key: &[u8], value: &[u8]) -> Result<Topic, FactError> {
        let stored: StoredTopic = serde_json::from_slice(value).map_err(|error| FactError::of(key, &error))?;
        let topic = Topic {
            id: stored.id,
            name: stored.config.topic_name.as_str().into(),
            first_partition: stored.first_partition,
            config: stored.config,
        };
        if Topic::key(&topic.name) != key {
            return Err(FactError::of(key, &"it names another topic"));
        }
        Ok(topic)
    }
}

impl Group {
    /// As a fact.
    pub fn fact(&self) -> Fact {
        (Group::key(&self.name), json(&StoredGroup { config: self.config.clone(), forbidden: self.forbidden.clone() }))
    }

    /// The key of the fact of the group of this name.
    pub fn key(name: &str) -> Vec<u8> {
        [GROUP_KEY, name.as_bytes()].concat()
    }

    /// From the fact's value.
    pub fn from_fact(key: &[u8], value: &[u8]) -> Result<Group, FactError> {
        let StoredGroup { config, forbidden } =
            serde_json::from_slice(value).map_err(|error| FactError::of(key, &error))?;
        if Group::key(&config.group_name) != key {
            return Err(FactError::of(key, &"it names another group"));
        }
        Ok(Group { name: config.group_name.as_str().into(), config, forbidden })
    }
}

/// How a group gets messages of a topic, as a fact. Names have no slash.
pub fn mode_fact(mode: &SetRequestMode) -> Fact {
    let key = [MODE_KEY, mode.topic.as_bytes(), b"/", mode.consumer_group.as_bytes()].concat();
    (key, json(mode))
}

/// From the fact's value.
pub fn mode_from_fact(key: &[u8], value: &[u8]) -> Result<SetRequestMode, FactError> {
    let mode: SetRequestMode = serde_json::from_slice(value).map_err(|error| FactError::of(key, &error))?;
    if mode_fact(&mode).0 != key {
        return Err(FactError::of(key, &"it names another topic or group"));
    }
    Ok(mode)
}

/// The key of a group's consumer offset: a fact of the queue's own partition. Its value begins with a u64 BE; of a
/// group that pops, what it is done with above that and what it has on loan follow (`pop/account/value.rs`).
pub fn offset_key(topic: u32, queue: u32, group: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(OFFSET_KEY.len() + 8 + group.len());
    key.extend_from_slice(OFFSET_KEY);
    key.extend_from_slice(&topic.to_be_bytes());
    key.extend_from_slice(&queue.to_be_bytes());
    key.extend_from_slice(group.as_bytes());
    key
}

/// What the keys of all offsets in a topic begin with.
pub fn offsets_in(topic: u32) -> Vec<u8> {
    [OFFSET_KEY, &topic.to_be_bytes()].concat()
}

/// Takes an offset's key apart: topic, queue, group. `None`: it is none.
pub fn split_offset_key(key: &[u8]) -> Option<(u32, u32, &str)> {
    let (topic, rest) = key.strip_prefix(OFFSET_KEY)?.split_first_chunk::<4>()?;
    let (queue, group) = rest.split_first_chunk::<4>()?;
    let group = std::str::from_utf8(group).ok()?;
    Some((u32::from_be_bytes(*topic), u32::from_be_bytes(*queue), group))
}

/// A consumer offset's value. `None`: it has not eight bytes.
pub fn offset_value(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*value.first_chunk()?))
}

/// A fact that cannot be read: the store was written by another program or version.
#[derive(Debug)]
pub struct FactError {
    key: String,
    reason: String,
}

impl FactError {
    pub(crate) fn of(key: &[u8], reason: &dyn std::fmt::Display) -> FactError {
        FactError { key: String::from_utf8_lossy(key).into_owned(), reason: reason.to_string() }
    }
}

impl std::fmt::Display for FactError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fact {}: {}", self.key, self.reason)
    }
}

impl std::error::Error for FactError {}

/// A group as its fact holds it.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    #[serde(flatten)]
    config: SubscriptionGroupConfig,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    forbidden: BTreeMap<String, i32>,
}

/// A topic as its fact holds it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredTopic {
    id: u32,
    first_partition: u16,
    config: TopicConfig,
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs with text keys always have a JSON form")
}

#[cfg(test)]
mod tests;
