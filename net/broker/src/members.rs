//! Who is a member of which group: consumers with their subscriptions, and producers (PROTOCOL 4.7).
//! Kept in memory only: clients say it again with every heartbeat.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::bodies::{
    Connection, ConsumeFromWhere, ConsumeType, ConsumerConnection, ConsumerData, MessageModel, ProducerConnection,
    ProducerInfo, ProducerTable, SubscriptionData,
};

use crate::call::{ConnectionId, Peer};
use crate::catalog::{Subscription, Subscriptions};
use crate::config::Limits;

/// Most groups that one connection is in, as consumer and as producer each. 1,024: clients of one
/// process share a connection, so that it may be in many.
pub const CONNECTION_GROUPS_MAX: usize = 1_024;
/// Most memberships at all. 1 Mi, some 200 bytes each.
pub const MEMBERSHIPS_MAX: usize = 1 << 20;
/// Most bytes of what a group says of one topic: its name, an expression or tags. 64 KiB: an expression has 16 at most.
pub const SUBSCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Most bytes of the subscriptions of all groups. 64 MiB; a usual one has some 40 bytes.
pub const SUBSCRIPTIONS_BYTES_MAX: usize = 64 << 20;
/// What a tag takes beside its text, about.
const TAG_BYTES: usize = 48;
/// Longest client id, in bytes. Stock ones are `ip@instance@unit`, mostly below 60.
pub const CLIENT_ID_BYTES_MAX: usize = 512;

/// Everyone.
#[derive(Debug, Default)]
pub struct Members {
    consumers: BTreeMap<Arc<str>, ConsumerGroup>,
    producers: BTreeMap<Arc<str>, BTreeMap<ConnectionId, Client>>,
    joined: BTreeMap<ConnectionId, Joined>,
    /// Where the producers are, by what they call themselves.
    ids: BTreeMap<Arc<str>, ConnectionId>,
    count: usize,
    /// Of all subscriptions.
    bytes: usize,
}

/// A client instance on a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// What it calls itself.
    pub id: Arc<str>,
    /// Where it is and what it is written in.
    pub peer: Peer,
    /// Its last heartbeat.
    pub seen_ms: u64,
}

#[derive(Debug)]
struct ConsumerGroup {
    clients: BTreeMap<ConnectionId, Client>,
    /// As the last heartbeat said: type, model, where from; the subscriptions stand below.
    about: About,
    subscriptions: BTreeMap<Arc<str>, Subscribed>,
    /// Bytes of the subscriptions.
    bytes: usize,
    /// Of the last heartbeat's subscriptions, made by a client of version 5; else 0.
    fingerprint: i32,
}

/// What a client said of a topic, and what is made of it: an expression is compiled once.
#[derive(Debug)]
struct Subscribed {
    data: SubscriptionData,
    made: Arc<Subscription>,
}

impl Subscribed {
    fn new(data: SubscriptionData) -> Subscribed {
        Subscribed { made: Arc::new(Subscription::of(&data)), data }
    }
}

#[derive(Debug)]
struct About {
    consume_type: ConsumeType,
    model: MessageModel,
    from_where: ConsumeFromWhere,
}

/// The groups of one connection.
#[derive(Debug, Default)]
struct Joined {
    consumers: BTreeSet<Arc<str>>,
    producers: BTreeSet<Arc<str>>,
}

/// What a consumer's heartbeat says besides its data.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    /// Of version 5: a number made of the subscriptions; 0 in a classic heartbeat.
    pub fingerprint: i32,
    /// Of version 5: the subscriptions are left out, because the broker knows them.
    pub without_subscriptions: bool,
}

/// What a consumer's heartbeat changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Members of the group are to be told: there is a new one, or other topics.
    pub is_notable: bool,
    /// The client is to send its subscriptions in full.
    pub wants_full: bool,
}

impl Members {
    /// A consumer's heartbeat. A full one replaces the group's topics; of a topic that is known, the
    /// newer version counts. `Err` says which bound it is over; then nothing is changed.
    pub fn join_consumer(
        &mut self,
        client: &Client,
        data: ConsumerData,
        beat: Beat,
        limits: &Limits,
    ) -> Result<Change, String> {
        let connection = client.peer.connection;
        let known = self.consumers.get_key_value(data.group_name.as_str());
        let clients = known.map_or(0, |(_, group)| group.clients.len());
        let is_new = known.is_none_or(|(_, group)| !group.clients.contains_key(&connection));
        let name = known.map_or_else(|| Arc::from(data.group_name.as_str()), |(name, _)| name.clone());
        if data.subscription_data_set.len() > limits.group_subscriptions {
            return Err(format!("group {name} subscribes to more than {} topics", limits.group_subscriptions));
        }
        if data.subscription_data_set.iter().any(|data| bytes_of(data) > SUBSCRIPTION_BYTES_MAX) {
            return Err(format!("group {name} says more than {SUBSCRIPTION_BYTES_MAX} bytes of a topic"));
        }
        let bytes = data.subscription_data_set.iter().map(bytes_of).sum::<usize>();
        if self.bytes - known.map_or(0, |(_, group)| group.bytes) + bytes > SUBSCRIPTIONS_BYTES_MAX {
            return Err(format!("subscriptions of {SUBSCRIPTIONS_BYTES_MAX} bytes are all this broker holds"));
        }
        if is_new {
            if clients >= limits.group_clients {
                return Err(format!("group {name} has {clients} clients already"));
            }
            self.count_one(connection, |joined| &mut joined.consumers, &name)?;
        }
        let about =
            About { consume_type: data.consume_type, model: data.message_model, from_where: data.consume_from_where };
        let group = match self.consumers.entry(name) {
            std::collections::btree_map::Entry::Occupied(entry) => {
                let group = entry.into_mut();
                group.about = about;
                group
            }
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(ConsumerGroup {
                clients: BTreeMap::new(),
                about,
                subscriptions: BTreeMap::new(),
                bytes: 0,
                fingerprint: beat.fingerprint,
            }),
        };
        group.clients.insert(connection, client.clone());
        let mut wants_full = beat.fingerprint != 0 && group.fingerprint != beat.fingerprint;
        group.fingerprint = beat.fingerprint;
        let mut is_notable = is_new;
        if !beat.without_subscriptions {
            self.bytes -= group.bytes;
            is_notable |= group.subscribe(data.subscription_data_set);
            self.bytes += group.bytes;
        } else if group.subscriptions.is_empty() {
            // Stock brokers forget to ask: after their restart such a client consumes nothing.
            wants_full = true;
        }
        Ok(Change { is_notable, wants_full })
    }

    /// A producer's heartbeat. `Err` says which bound it is over.
    pub fn join_producer(&mut self, client: &Client, group: &str, limits: &Limits) -> Result<(), String> {
        let connection = client.peer.connection;
        let known = self.producers.get_key_value(group);
        let clients = known.map_or(0, |(_, clients)| clients.len());
        let is_new = known.is_none_or(|(_, clients)| !clients.contains_key(&connection));
        let name = known.map_or_else(|| Arc::from(group), |(name, _)| name.clone());
        if is_new {
            // Every Java client is in CLIENT_INNER_PRODUCER: connections bound that, not this.
            let clients_max = limits.group_clients.max(limits.connections);
            if clients >= clients_max {
                return Err(format!("producer group {name} has {clients} clients already"));
            }
            self.count_one(connection, |joined| &mut joined.producers, &name)?;
        }
        let before = self.producers.entry(name).or_default().insert(connection, client.clone());
        // It calls itself something else now.
        if let Some(before) = before.filter(|before| before.id != client.id)
            && self.ids.get(&before.id) == Some(&connection)
        {
            self.ids.remove(&before.id);
        }
        if self.ids.get(&client.id) != Some(&connection) {
            self.ids.insert(client.id.clone(), connection);
        }
        Ok(())
    }

    /// A consumer leaves a group. Returns whether it was in.
    pub fn leave_consumer(&mut self, connection: ConnectionId, group: &str) -> bool {
        let Some(joined) = self.joined.get_mut(&connection) else { return false };
        if !joined.consumers.remove(group) {
            return false;
        }
        self.forget_if_empty(connection);
        self.remove_consumer(connection, group);
        true
    }

    /// A producer leaves a group.
    pub fn leave_producer(&mut self, connection: ConnectionId, group: &str) {
        let Some(joined) = self.joined.get_mut(&connection) else { return };
        if joined.producers.remove(group) {
            self.forget_if_empty(connection);
            self.remove_producer(connection, group);
        }
    }

    /// A connection is gone. Returns the consumer groups that it was in.
    pub fn close(&mut self, connection: ConnectionId) -> BTreeSet<Arc<str>> {
        let Some(joined) = self.joined.remove(&connection) else { return BTreeSet::new() };
        for group in &joined.consumers {
            self.remove_consumer(connection, group);
        }
        for group in &joined.producers {
            self.remove_producer(connection, group);
        }
        joined.consumers
    }

    /// Clients that sent no heartbeat for `timeout_ms` leave. Returns the consumer groups that lost
    /// one.
    pub fn expire(&mut self, timeout_ms: u64, now_ms: u64) -> BTreeSet<Arc<str>> {
        let is_silent = |client: &Client| now_ms.saturating_sub(client.seen_ms) > timeout_ms;
        let mut silent_consumers = Vec::new();
        for (name, group) in &self.consumers {
            let silent = group.clients.iter().filter(|(_, client)| is_silent(client));
            silent_consumers.extend(silent.map(|(connection, _)| (*connection, name.clone())));
        }
        let mut silent_producers = Vec::new();
        for (name, clients) in &self.producers {
            let silent = clients.iter().filter(|(_, client)| is_silent(client));
            silent_producers.extend(silent.map(|(connection, _)| (*connection, name.clone())));
        }
        for (connection, group) in silent_producers {
            self.leave_producer(connection, &group);
        }
        for (connection, group) in &silent_consumers {
            self.leave_consumer(*connection, group);
        }
        silent_consumers.into_iter().map(|(_, group)| group).collect()
    }

    /// What the catalog says of this group. `None`: it has no member.
    pub fn subscriptions(&self, group: &str) -> Option<Subscriptions> {
        let (name, group) = self.consumers.get_key_value(group)?;
        let topics = group.subscriptions.iter();
        Some(Subscriptions {
            group: name.clone(),
            consume_type: group.about.consume_type,
            model: group.about.model,
            topics: topics.map(|(topic, subscribed)| (topic.clone(), subscribed.made.clone())).collect(),
        })
    }

    /// The names of all consumer groups that have members.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<str>> {
        self.consumers.keys()
    }

    /// Whether every member of this group gets all messages.
    pub fn is_broadcasting(&self, group: &str) -> bool {
        let model = self.consumers.get(group).map(|group| group.about.model);
        model == Some(MessageModel::Broadcasting)
    }

    /// The ids of this group's clients, sorted. A client that is there twice, because its old
    /// connection is not yet closed, counts once: clients divide queues by this list.
    pub fn client_ids(&self, group: &str) -> BTreeSet<Arc<str>> {
        let group = self.consumers.get(group);
        group.into_iter().flat_map(|group| group.clients.values()).map(|client| client.id.clone()).collect()
    }

    /// The connections of this group's clients.
    pub fn connections(&self, group: &str) -> impl Iterator<Item = ConnectionId> {
        self.consumers.get(group).into_iter().flat_map(|group| group.clients.keys().copied())
    }

    /// This group's clients: their connections and ids.
    pub fn consumers(&self, group: &str) -> impl Iterator<Item = (ConnectionId, &Arc<str>)> {
        let clients = self.consumers.get(group).into_iter().flat_map(|group| &group.clients);
        clients.map(|(connection, client)| (*connection, &client.id))
    }

    /// Where this client of a group is.
    pub fn consumer(&self, group: &str, id: &str) -> Option<ConnectionId> {
        self.consumers(group).find(|(_, known)| ***known == *id).map(|(connection, _)| connection)
    }

    /// Where this client is, if it is a producer.
    pub fn producer(&self, id: &str) -> Option<ConnectionId> {
        self.ids.get(id).copied()
    }

    /// One of a producer group's connections; `turn` says which.
    pub fn producer_of(&self, group: &str, turn: usize) -> Option<ConnectionId> {
        let clients = self.producers.get(group)?;
        clients.keys().nth(turn % clients.len()).copied()
    }

    /// The answer to code 203. `None`: no member.
    pub fn consumer_connection(&self, group: &str) -> Option<ConsumerConnection> {
        let group = self.consumers.get(group)?;
        let table = group.subscriptions.iter();
        Some(ConsumerConnection {
            connection_set: group.clients.values().map(connection_of).collect(),
            subscription_table: table.map(|(topic, known)| (topic.to_string(), known.data.clone())).collect(),
            consume_type: group.about.consume_type,
            message_model: group.about.model,
            consume_from_where: group.about.from_where,
        })
    }

    /// The answer to code 204. `None`: no member.
    pub fn producer_connection(&self, group: &str) -> Option<ProducerConnection> {
        let clients = self.producers.get(group)?;
        Some(ProducerConnection { connection_set: clients.values().map(connection_of).collect() })
    }

    /// The answer to code 328.
    pub fn producers(&self) -> ProducerTable {
        let infos = |clients: &BTreeMap<ConnectionId, Client>| {
            let info = |client: &Client| {
                let Connection { client_addr, client_id, language, version } = connection_of(client);
                let last_update_timestamp = client.seen_ms.cast_signed();
                ProducerInfo { client_id, language, last_update_timestamp, remote_ip: client_addr, version }
            };
            clients.values().map(info).collect()
        };
        let groups = self.producers.iter().map(|(group, clients)| (group.to_string(), infos(clients)));
        ProducerTable { data: groups.collect() }
    }

    /// What this group subscribes to in this topic.
    pub fn subscription(&self, group: &str, topic: &str) -> Option<&SubscriptionData> {
        self.consumers.get(group)?.subscriptions.get(topic).map(|subscribed| &subscribed.data)
    }

    /// Counts one more membership, if the bounds allow it.
    fn count_one(
        &mut self,
        connection: ConnectionId,
        groups: fn(&mut Joined) -> &mut BTreeSet<Arc<str>>,
        name: &Arc<str>,
    ) -> Result<(), String> {
        if self.count >= MEMBERSHIPS_MAX {
            return Err(format!("{MEMBERSHIPS_MAX} memberships are all this broker holds"));
        }
        let groups = groups(self.joined.entry(connection).or_default());
        if groups.len() >= CONNECTION_GROUPS_MAX {
            return Err(format!("a connection is in at most {CONNECTION_GROUPS_MAX} groups"));
        }
        groups.insert(name.clone());
        self.count += 1;
        Ok(())
    }

    fn forget_if_empty(&mut self, connection: ConnectionId) {
        let joined = self.joined.get(&connection);
        if joined.is_some_and(|joined| joined.consumers.is_empty() && joined.producers.is_empty()) {
            self.joined.remove(&connection);
        }
    }

    fn remove_consumer(&mut self, connection: ConnectionId, name: &str) {
        let group = self.consumers.get_mut(name).expect("a connection's groups are there");
        group.clients.remove(&connection).expect("a connection is in its groups");
        self.count -= 1;
        if group.clients.is_empty() {
            self.bytes -= group.bytes;
            self.consumers.remove(name);
        }
    }

    fn remove_producer(&mut self, connection: ConnectionId, name: &str) {
        let clients = self.producers.get_mut(name).expect("a connection's groups are there");
        let client = clients.remove(&connection).expect("a connection is in its groups");
        self.count -= 1;
        if clients.is_empty() {
            self.producers.remove(name);
        }
        let is_last = self.joined.get(&connection).is_none_or(|joined| joined.producers.is_empty());
        if is_last && self.ids.get(&client.id) == Some(&connection) {
            self.ids.remove(&client.id);
        }
    }
}

impl ConsumerGroup {
    /// Takes a full set of subscriptions. Returns whether topics came or went; a newer version of a
    /// known one is taken quietly, as in RocketMQ.
    fn subscribe(&mut self, subscriptions: Vec<SubscriptionData>) -> bool {
        let wanted: BTreeSet<_> = subscriptions.iter().map(|data| data.topic.clone()).collect();
        let before = self.subscriptions.len();
        self.subscriptions.retain(|topic, _| wanted.contains(&**topic));
        let mut is_changed = self.subscriptions.len() != before;
        for data in subscriptions {
            match self.subscriptions.get_mut(data.topic.as_str()) {
                Some(known) if known.data.sub_version >= data.sub_version => {}
                Some(known) => *known = Subscribed::new(data),
                None => {
                    self.subscriptions.insert(data.topic.as_str().into(), Subscribed::new(data));
                    is_changed = true;
                }
            }
        }
        self.bytes = self.subscriptions.values().map(|subscribed| bytes_of(&subscribed.data)).sum();
        is_changed
    }
}

/// About what a subscription takes.
fn bytes_of(data: &SubscriptionData) -> usize {
    let tags = data.tags_set.iter().map(|tag| tag.len() + TAG_BYTES).sum::<usize>();
    data.topic.len() + data.sub_string.len() + data.expression_type.len() + tags + data.code_set.len() * TAG_BYTES
}

fn connection_of(client: &Client) -> Connection {
    Connection {
        client_id: client.id.to_string(),
        client_addr: client.peer.address.to_string(),
        language: client.peer.language.name().to_owned(),
        version: client.peer.version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Found};
    use protocol::Language;

    fn client(id: &str, slot: u32) -> Client {
        let connection = ConnectionId { core: 0, slot, generation: 0 };
        let address = "127.0.0.1:1".parse().expect("an address");
        Client { id: id.into(), peer: Peer { connection, address, language: Language::Java, version: 0 }, seen_ms: 0 }
    }

    fn limits() -> Limits {
        Config::default().settings(Found::one_core()).limits
    }

    #[test]
    fn a_producer_is_found_by_the_name_it_said_last_and_by_no_other() {
        let (mut members, limits) = (Members::default(), limits());
        for number in 0..1_000 {
            members.join_producer(&client(&format!("c{number}"), 1), "p", &limits).unwrap();
        }
        assert_eq!((members.ids.len(), members.producer("c998")), (1, None));
        assert_eq!(members.producer("c999"), Some(client("", 1).peer.connection));
        members.close(client("", 1).peer.connection);
        assert!(members.ids.is_empty());
    }

    #[test]
    fn subscriptions_are_bounded_by_their_bytes() {
        let (mut members, limits) = (Members::default(), limits());
        let beat = Beat { fingerprint: 0, without_subscriptions: false };
        let mut join = |group: &str, slot: u32, topics: usize, text: usize| {
            let of = |topic| SubscriptionData {
                topic: format!("T{topic}"),
                sub_string: "x".repeat(text),
                ..SubscriptionData::default()
            };
            let data = ConsumerData {
                group_name: group.to_owned(),
                subscription_data_set: (0..topics).map(of).collect(),
                ..ConsumerData::default()
            };
            members.join_consumer(&client("c", slot), data, beat, &limits).map(|_| members.bytes)
        };
        assert!(join("g", 1, 1, SUBSCRIPTION_BYTES_MAX).unwrap_err().contains("of a topic"));
        let most = SUBSCRIPTION_BYTES_MAX - 100;
        assert!(join("g", 1, 1_000, most).unwrap() < SUBSCRIPTIONS_BYTES_MAX);
        assert!(join("h", 1, 100, most).unwrap_err().contains("all this broker holds"));
        // The same again takes no more; what a group gives up is free.
        assert!(join("g", 1, 1_000, most).is_ok() && join("g", 1, 900, most).is_ok());
        assert!(join("h", 1, 100, most).is_ok());
        members.close(client("", 1).peer.connection);
        assert_eq!(members.bytes, 0);
    }
}
