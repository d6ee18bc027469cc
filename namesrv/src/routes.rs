//! The route table: which broker holds which topic, and who is alive.
//!
//! A plain state machine. It reads no clock (`now_ms` counts from any fixed moment) and knows
//! connections only as numbers. The rules are those of a stock NameServer (PROTOCOL 5); where we
//! differ, the comment says so. Everything is kept in sorted maps: answers come out in one order,
//! and no stranger's key can slow a hash map down.

use std::collections::{BTreeMap, BTreeSet};

use protocol::bodies::{DataVersion, QueueData, TopicConfig};
use protocol::names::{MASTER_ID, perm};

use crate::registration::{RegisterError, Registered, Registration, check_name};

#[cfg(test)]
pub(crate) mod tests;

/// Bounds of the table. Beyond one of them a registration is refused, and what stands stays.
#[derive(Clone, Debug)]
pub struct RouteLimits {
    /// Broker addresses, slaves too. 4,096 (1 to 100,000).
    pub brokers_max: usize,
    /// Pairs of topic and broker name. 1,000,000 (1,000 to 100,000,000), some 200 bytes each.
    pub queues_max: usize,
}

impl Default for RouteLimits {
    fn default() -> RouteLimits {
        RouteLimits { brokers_max: 4096, queues_max: 1_000_000 }
    }
}

impl RouteLimits {
    /// `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=100_000).contains(&self.brokers_max) {
            return Err("brokers_max must be 1 to 100,000".into());
        }
        if !(1_000..=100_000_000).contains(&self.queues_max) {
            return Err("queues_max must be 1,000 to 100,000,000".into());
        }
        Ok(())
    }
}

/// A topic's queues on one broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    pub(crate) read: i32,
    pub(crate) write: i32,
    pub(crate) perm: i32,
    pub(crate) sys_flag: i32,
}

/// What shares a broker name: a master and its slaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) cluster: String,
    pub(crate) zone: Option<String>,
    pub(crate) acting_master: bool,
    /// By broker id; never empty.
    pub(crate) addresses: BTreeMap<i64, String>,
}

/// One registered address.
#[derive(Clone, Debug)]
struct Live {
    broker: String,
    ha_address: String,
    version: DataVersion,
    updated_ms: u64,
    timeout_ms: u64,
    connection: u64,
}

/// Key of a live entry. Two clusters may use one address in their own networks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    cluster: String,
    address: String,
}

impl Seat {
    fn new(cluster: &str, address: &str) -> Seat {
        Seat { cluster: cluster.to_owned(), address: address.to_owned() }
    }
}

/// Who holds what, who lives. See the module.
#[derive(Debug, Default)]
pub struct RouteTable {
    limits: RouteLimits,
    /// Topic → broker name → queues. No topic without a broker.
    pub(crate) topics: BTreeMap<String, BTreeMap<String, Queues>>,
    /// Broker name → its addresses.
    pub(crate) brokers: BTreeMap<String, Broker>,
    /// Cluster → broker names. No cluster without a broker.
    pub(crate) clusters: BTreeMap<String, BTreeSet<String>>,
    live: BTreeMap<Seat, Live>,
    /// Sum of the brokers of all topics.
    queues_count: usize,
}

impl RouteTable {
    /// An empty table.
    pub fn new(limits: RouteLimits) -> RouteTable {
        RouteTable { limits, ..RouteTable::default() }
    }

    /// Takes a broker's registration (103), first or repeated.
    pub fn register(&mut self, news: Registration<'_>, now_ms: u64) -> Result<Registered, RegisterError> {
        let seat = Seat::new(news.cluster, news.address);
        self.check_bounds(&news, &seat)?;
        let is_id_known = self.brokers.get(news.broker).is_some_and(|b| b.addresses.contains_key(&news.broker_id));
        if !is_id_known && news.topics.len() == 1 {
            return Err(RegisterError::Incremental);
        }
        if let Some(live) = self.live.get(&seat)
            && live.broker != news.broker
        {
            // The process behind the address was renamed. A stock NameServer keeps the old name.
            let old = live.broker.clone();
            self.unregister(news.cluster, &old, news.address);
        }
        if let Some(broker) = self.brokers.get_mut(news.broker) {
            // A slave that became master gives up its old id.
            broker.addresses.retain(|id, address| address != news.address || *id == news.broker_id);
        }
        if self.is_outdated(&news) {
            self.live.remove(&seat);
            return Ok(Registered::default());
        }
        let is_first = self.seat_broker(&news);
        let is_news = is_first || self.live.get(&seat).is_none_or(|live| live.version != news.version);
        self.take_topics(&news, is_news);

        let live = Live {
            broker: news.broker.to_owned(),
            ha_address: news.ha_address.to_owned(),
            version: news.version,
            updated_ms: now_ms,
            timeout_ms: news.timeout_ms,
            connection: news.connection,
        };
        self.live.insert(seat, live);
        Ok(self.master_of(&news))
    }

    /// Removes one address (104). With the last address of a broker name go its queues, with the
    /// last queues of a topic the topic. Nothing known: nothing happens.
    pub fn unregister(&mut self, cluster: &str, broker: &str, address: &str) {
        let live = self.live.remove(&Seat::new(cluster, address));
        // An address belongs to whom it registered as, whatever name it is signed off with: else
        // it would stay without a live entry, and for ever.
        let broker = live.as_ref().map_or(broker, |live| &live.broker);
        let Some(known) = self.brokers.get_mut(broker) else { return };
        let count = known.addresses.len();
        known.addresses.retain(|_, own| own != address);
        if known.addresses.is_empty() {
            self.brokers.remove(broker);
            self.clusters.retain(|_, brokers| {
                brokers.remove(broker);
                !brokers.is_empty()
            });
            self.drop_queues(broker, |_| true);
        } else if known.acting_master && known.addresses.len() < count && !known.addresses.contains_key(&MASTER_ID) {
            // The slave that acts for the master takes no writes.
            for brokers in self.topics.values_mut() {
                if let Some(queues) = brokers.get_mut(broker) {
                    queues.perm &= !perm::WRITE;
                }
            }
        }
    }

    /// Takes a sign of life (904, 322).
    pub fn heartbeat(&mut self, cluster: &str, address: &str, now_ms: u64) {
        if let Some(live) = self.live.get_mut(&Seat::new(cluster, address)) {
            live.updated_ms = now_ms;
        }
    }

    /// A connection closed: whoever registered over it is gone. Returns their addresses.
    pub fn disconnect(&mut self, connection: u64) -> Vec<String> {
        self.unregister_where(|live| live.connection == connection)
    }

    /// Removes whoever gave no sign of life within their time. Returns their addresses. Their
    /// connections are left to the idle time-out: a broker that wakes up may register over them.
    pub fn expire(&mut self, now_ms: u64) -> Vec<String> {
        self.unregister_where(|live| live.updated_ms.saturating_add(live.timeout_ms) < now_ms)
    }

    /// The data version that an address registered with last, for 322.
    pub fn version(&self, cluster: &str, address: &str) -> Option<&DataVersion> {
        self.live.get(&Seat::new(cluster, address)).map(|live| &live.version)
    }

    /// Takes the write permission from all queues of a broker name (205). Returns how many topics.
    /// Lasts until the broker registers with another data version.
    pub fn wipe_write_perm(&mut self, broker: &str) -> i32 {
        self.change_perm(broker, |perm| perm & !perm::WRITE)
    }

    /// Lets clients write to all queues of a broker name again (327). Returns how many topics.
    pub fn add_write_perm(&mut self, broker: &str) -> i32 {
        self.change_perm(broker, |_| perm::READ | perm::WRITE)
    }

    /// Forgets a topic (216), everywhere or on the brokers of one cluster.
    pub fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        let Some(brokers) = self.topics.get_mut(topic) else { return };
        let count = brokers.len();
        match cluster {
            None => brokers.clear(),
            Some(cluster) => {
                let Some(members) = self.clusters.get(cluster) else { return };
                brokers.retain(|broker, _| !members.contains(broker));
            }
        }
        self.queues_count -= count - brokers.len();
        if brokers.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// Adds a topic on known brokers (217). Stops at the first unknown one, as a stock NameServer.
    pub fn add_topic(&mut self, topic: &str, queues: &[(String, Queues)]) -> Result<(), RegisterError> {
        check_name("topic", topic)?;
        for (broker, queues) in queues {
            if !self.brokers.contains_key(broker) {
                return Ok(());
            }
            self.check_queues(1)?;
            self.set_queues(topic, broker, *queues);
        }
        Ok(())
    }

    /// Addresses that are registered now.
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// Topics that have a route now.
    pub fn topic_count(&self) -> usize {
        self.topics.len()
    }

    fn check_bounds(&self, news: &Registration<'_>, seat: &Seat) -> Result<(), RegisterError> {
        news.check_names()?;
        if !self.live.contains_key(seat) && self.live.len() >= self.limits.brokers_max {
            return Err(RegisterError::Bound(format!("there are {} broker addresses", self.live.len())));
        }
        let is_new = |topic: &&String| self.topics.get(*topic).is_none_or(|b| !b.contains_key(news.broker));
        self.check_queues(news.topics.keys().filter(is_new).count())
    }

    fn check_queues(&self, more: usize) -> Result<(), RegisterError> {
        if self.queues_count + more > self.limits.queues_max {
            let max = self.limits.queues_max;
            return Err(RegisterError::Bound(format!("there would be more than {max} pairs of topic and broker")));
        }
        Ok(())
    }

    /// Somebody else holds the id, and with a newer state: an old master that comes back late.
    fn is_outdated(&self, news: &Registration<'_>) -> bool {
        let holder = self.brokers.get(news.broker).and_then(|broker| broker.addresses.get(&news.broker_id));
        holder
            .filter(|address| *address != news.address)
            .and_then(|address| self.live.get(&Seat::new(news.cluster, address)))
            .is_some_and(|live| live.version.state_version > news.version.state_version)
    }

    /// Puts the address where it belongs. `true`: nobody had this id.
    fn seat_broker(&mut self, news: &Registration<'_>) -> bool {
        self.clusters.entry(news.cluster.to_owned()).or_default().insert(news.broker.to_owned());
        let broker = self.brokers.entry(news.broker.to_owned()).or_insert_with(|| Broker {
            cluster: news.cluster.to_owned(),
            zone: None,
            acting_master: false,
            addresses: BTreeMap::new(),
        });
        broker.acting_master = news.acting_master.unwrap_or(false);
        broker.zone = news.zone.map(str::to_owned);
        let old = broker.addresses.insert(news.broker_id, news.address.to_owned());
        match old {
            None => true,
            Some(old) if old == news.address => false,
            Some(old) => {
                // Replaced, not joined: the old address must not expire under the new one's feet.
                self.live.remove(&Seat::new(news.cluster, &old));
                false
            }
        }
    }

    fn take_topics(&mut self, news: &Registration<'_>, is_news: bool) {
        let broker = &self.brokers[news.broker];
        let is_master = news.broker_id == MASTER_ID;
        let is_lowest = broker.addresses.keys().next() == Some(&news.broker_id);
        let is_acting = !is_master && is_lowest && news.acting_master.is_some();
        if !is_master && !is_acting {
            return;
        }
        let is_read_only = is_acting && broker.acting_master;
        if news.is_complete {
            self.drop_queues(news.broker, |topic| !news.topics.contains_key(topic));
        }
        for (topic, config) in &news.topics {
            let is_known = self.topics.get(topic).is_some_and(|brokers| brokers.contains_key(news.broker));
            if is_news || !is_known {
                let mut queues = Queues::from(config);
                if is_read_only {
                    queues.perm &= !perm::WRITE;
                }
                self.set_queues(topic, news.broker, queues);
            }
        }
    }

    fn set_queues(&mut self, topic: &str, broker: &str, queues: Queues) {
        let brokers = self.topics.entry(topic.to_owned()).or_default();
        if brokers.insert(broker.to_owned(), queues).is_none() {
            self.queues_count += 1;
        }
    }

    /// Removes a broker's queues from the topics that are not wanted on it.
    fn drop_queues(&mut self, broker: &str, is_unwanted: impl Fn(&str) -> bool) {
        let mut dropped = 0;
        self.topics.retain(|topic, brokers| {
            if is_unwanted(topic) && brokers.remove(broker).is_some() {
                dropped += 1;
            }
            !brokers.is_empty()
        });
        self.queues_count -= dropped;
    }

    fn master_of(&self, news: &Registration<'_>) -> Registered {
        if news.broker_id == MASTER_ID {
            return Registered::default();
        }
        let Some(master) = self.brokers.get(news.broker).and_then(|broker| broker.addresses.get(&MASTER_ID)) else {
            return Registered::default();
        };
        let Some(live) = self.live.get(&Seat::new(news.cluster, master)) else { return Registered::default() };
        Registered { master_address: Some(master.clone()), ha_address: Some(live.ha_address.clone()) }
    }

    fn unregister_where(&mut self, is_gone: impl Fn(&Live) -> bool) -> Vec<String> {
        let gone = self.live.iter().filter(|(_, live)| is_gone(live));
        let gone: Vec<_> = gone.map(|(seat, live)| (seat.clone(), live.broker.clone())).collect();
        for (seat, broker) in &gone {
            self.unregister(&seat.cluster, broker, &seat.address);
        }
        gone.into_iter().map(|(seat, _)| seat.address).collect()
    }

    fn change_perm(&mut self, broker: &str, change: impl Fn(i32) -> i32) -> i32 {
        let mut count = 0;
        for brokers in self.topics.values_mut() {
            if let Some(queues) = brokers.get_mut(broker) {
                queues.perm = change(queues.perm);
                count += 1;
            }
        }
        count
    }
}

impl From<&TopicConfig> for Queues {
    fn from(config: &TopicConfig) -> Queues {
        Queues {
            read: config.read_queue_nums,
            write: config.write_queue_nums,
            perm: config.perm,
            sys_flag: config.topic_sys_flag,
        }
    }
}

impl From<&QueueData> for Queues {
    fn from(data: &QueueData) -> Queues {
        Queues {
            read: data.read_queue_nums,
            write: data.write_queue_nums,
            perm: data.perm,
            sys_flag: data.topic_sys_flag,
        }
    }
}
