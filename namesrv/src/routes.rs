//! The route table: which broker holds which topic, and who is alive.
//!
//! A plain state machine. It reads no clock (`now_ms` counts from any fixed moment) and knows
//! connections only as numbers. The rules are those of a stock NameServer (PROTOCOL 5); where we
//! differ, the comment says so. Everything is kept in sorted maps: answers come out in one order,
//! and no stranger's key can slow a hash map down.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use protocol::bodies::{DataVersion, QueueData, TopicConfig};
use protocol::names::{MASTER_ID, perm};

/// Longest name of a cluster, broker, zone or topic, and longest address, in bytes. 255: the
/// longest topic (a retry topic) and the longest host name with its port.
pub const NAME_BYTES_MAX: usize = 255;

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

/// One REGISTER_BROKER, as the door read it.
#[derive(Clone, Debug, Default)]
pub struct Registration<'a> {
    /// Cluster name.
    pub cluster: &'a str,
    /// Broker name: a master and its slaves share it.
    pub broker: &'a str,
    /// 0 for the master.
    pub broker_id: i64,
    /// Where clients reach it, `host:port`.
    pub address: &'a str,
    /// Where its slaves fetch the log, `host:port`.
    pub ha_address: &'a str,
    /// Where it stands; none in most clusters.
    pub zone: Option<&'a str>,
    /// `None`: the broker is too old to know the setting.
    pub acting_master: Option<bool>,
    /// How long it lives without a sign of life, in milliseconds.
    pub timeout_ms: u64,
    /// The connection it came over: when that closes, the broker is gone.
    pub connection: u64,
    /// Version of its topics.
    pub version: DataVersion,
    /// Its topics: all, or those that changed.
    pub topics: BTreeMap<String, TopicConfig>,
    /// The topics are all there are: forget the others (`deleteTopicWithBrokerRegistration`).
    pub is_complete: bool,
}

/// What a slave learns from its registration. Empty for a master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// The master's address for clients.
    pub master_address: Option<String>,
    /// The master's address for slaves.
    pub ha_address: Option<String>,
}

/// Why a registration is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// An unknown broker brought exactly one topic: that is a change report before the full
    /// registration, after which every other topic would seem unchanged. Brokers retry in full.
    Incremental,
    /// A bound is reached, or a name is empty or too long. Says which.
    Bound(String),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterError::Incremental => f.write_str("register broker failed"),
            RegisterError::Bound(why) => write!(f, "register broker failed: {why}"),
        }
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
        check_name("cluster", news.cluster)?;
        check_name("broker name", news.broker)?;
        check_name("broker address", news.address)?;
        for (what, text) in [("ha address", news.ha_address), ("zone", news.zone.unwrap_or_default())] {
            if text.len() > NAME_BYTES_MAX {
                return Err(RegisterError::Bound(format!("the {what} is longer than {NAME_BYTES_MAX} bytes")));
            }
        }
        for topic in news.topics.keys() {
            check_name("topic", topic)?;
        }
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

fn check_name(what: &str, name: &str) -> Result<(), RegisterError> {
    match name.len() {
        0 => Err(RegisterError::Bound(format!("the {what} is empty"))),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(RegisterError::Bound(format!("the {what} is longer than {NAME_BYTES_MAX} bytes"))),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A master's registration of cluster C with the version's number as its state.
    pub(crate) fn master(broker: &'static str, topics: &[&str], counter: i64) -> Registration<'static> {
        let config = |name: &&str| (name.to_string(), TopicConfig::new(*name, 4, 6));
        Registration {
            cluster: "C",
            broker,
            address: broker,
            ha_address: "ha",
            timeout_ms: 100,
            connection: 1,
            version: DataVersion { counter, ..DataVersion::default() },
            topics: topics.iter().map(config).collect(),
            ..Registration::default()
        }
    }

    fn slave(broker: &'static str, address: &'static str, broker_id: i64) -> Registration<'static> {
        Registration { address, broker_id, ..master(broker, &["T", "U"], 1) }
    }

    fn table() -> RouteTable {
        RouteTable::new(RouteLimits::default())
    }

    /// What must hold after every change.
    fn check(table: &RouteTable) {
        assert_eq!(table.queues_count, table.topics.values().map(BTreeMap::len).sum::<usize>());
        assert!(table.topics.values().all(|brokers| !brokers.is_empty()));
        assert!(table.topics.values().flatten().all(|(broker, _)| table.brokers.contains_key(broker)));
        assert!(table.brokers.values().all(|broker| !broker.addresses.is_empty()));
        assert!(table.clusters.values().all(|brokers| !brokers.is_empty()));
        assert!(table.clusters.values().flatten().all(|broker| table.brokers.contains_key(broker)));
        for (name, broker) in &table.brokers {
            for address in broker.addresses.values() {
                let live = table.live.iter().any(|(seat, live)| seat.address == *address && live.broker == *name);
                assert!(live, "{name} at {address} would stay for ever");
            }
        }
    }

    fn topics(table: &RouteTable) -> Vec<&str> {
        table.topics.keys().map(String::as_str).collect()
    }

    fn perm_of(table: &RouteTable, topic: &str, broker: &str) -> i32 {
        table.topics[topic][broker].perm
    }

    #[test]
    fn a_lone_topic_waits_for_the_full_registration() {
        let mut table = table();
        // (what comes, whether it is taken, the topics afterwards)
        let steps: [(&[&str], bool, &[&str]); 5] = [
            (&["A"], false, &[]),
            (&[], true, &[]),
            (&["A"], true, &["A"]),
            (&["B", "C"], true, &["A", "B", "C"]),
            (&["D"], true, &["A", "B", "C", "D"]),
        ];
        for (counter, (news, is_taken, wanted)) in steps.into_iter().enumerate() {
            let answer = table.register(master("a", news, counter as i64), 0);
            assert_eq!(answer.is_ok(), is_taken, "{news:?}");
            assert_eq!(topics(&table), wanted);
            check(&table);
        }
        let lone = Registration { broker_id: 1, address: "s", ..master("a", &["A"], 9) };
        assert_eq!(table.register(lone, 0), Err(RegisterError::Incremental), "an unknown slave too");
        assert_eq!(RegisterError::Incremental.to_string(), "register broker failed");
    }

    #[test]
    fn topics_change_only_with_the_version() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        table.wipe_write_perm("a");
        table.register(master("a", &["T", "U", "V"], 1), 0).unwrap();
        assert_eq!(perm_of(&table, "T", "a"), 4, "known topic, same version: unchanged");
        assert_eq!(perm_of(&table, "V", "a"), 6, "an unknown topic is taken anyway");
        table.register(master("a", &["T", "U"], 2), 0).unwrap();
        assert_eq!(perm_of(&table, "T", "a"), 6);
        assert_eq!(topics(&table), ["T", "U", "V"], "what is not named stays");
        let complete = Registration { is_complete: true, ..master("a", &["T", "U"], 3) };
        table.register(complete, 0).unwrap();
        assert_eq!(topics(&table), ["T", "U"]);
        check(&table);
    }

    #[test]
    fn a_slave_brings_no_topics_and_learns_its_master() {
        let mut table = table();
        assert_eq!(table.register(slave("a", "s1", 1), 0).unwrap(), Registered::default());
        assert!(topics(&table).is_empty());
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        let learnt = table.register(slave("a", "s1", 1), 0).unwrap();
        assert_eq!(learnt.master_address.as_deref(), Some("a"));
        assert_eq!(learnt.ha_address.as_deref(), Some("ha"));
        assert_eq!(table.brokers["a"].addresses.len(), 2);
        check(&table);
    }

    #[test]
    fn the_lowest_slave_stands_in_for_the_master_read_only() {
        // (acting master setting, id, whether its topics are taken, their perm)
        let cases =
            [(None, 1, false, 0), (Some(false), 1, true, 6), (Some(true), 1, true, 4), (Some(true), 3, false, 0)];
        for (acting_master, broker_id, is_taken, perm) in cases {
            let mut table = table();
            table.register(slave("a", "s2", 2), 0).unwrap();
            table.register(Registration { acting_master, ..slave("a", "sx", broker_id) }, 0).unwrap();
            let case = format!("{acting_master:?} {broker_id}");
            assert_eq!(table.topics.contains_key("T"), is_taken, "{case}");
            if is_taken {
                assert_eq!(perm_of(&table, "T", "a"), perm, "{case}");
            }
            check(&table);
        }
    }

    #[test]
    fn losing_the_master_ends_writing_where_a_slave_acts() {
        for (acting_master, perm) in [(Some(true), 4), (Some(false), 6), (None, 6)] {
            let mut table = table();
            table.register(Registration { acting_master, ..master("a", &["T", "U"], 1) }, 0).unwrap();
            table.register(Registration { acting_master, ..slave("a", "s1", 1) }, 0).unwrap();
            table.unregister("C", "a", "a");
            assert_eq!(perm_of(&table, "T", "a"), perm, "{acting_master:?}");
            table.unregister("C", "a", "s1");
            assert!(topics(&table).is_empty() && table.brokers.is_empty() && table.clusters.is_empty());
            check(&table);
        }
    }

    #[test]
    fn a_slave_that_became_master_gives_up_its_id() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        table.register(slave("a", "s1", 1), 0).unwrap();
        table.unregister("C", "a", "a");
        let promoted = Registration { address: "s1", ..master("a", &["T", "U"], 2) };
        table.register(promoted, 0).unwrap();
        assert_eq!(table.brokers["a"].addresses, BTreeMap::from([(0, "s1".to_owned())]));
        check(&table);
    }

    #[test]
    fn an_old_master_that_comes_late_is_ignored() {
        // (state version of the newcomer, who is master afterwards)
        for (state_version, wanted) in [(4, "new"), (5, "late"), (6, "late")] {
            let mut table = table();
            let state = |state_version| DataVersion { state_version, ..DataVersion::default() };
            let first = Registration { address: "new", version: state(5), ..master("a", &["T", "U"], 1) };
            table.register(first, 0).unwrap();
            let late = Registration { address: "late", version: state(state_version), ..master("a", &["T"], 1) };
            assert_eq!(table.register(late, 0).unwrap(), Registered::default());
            assert_eq!(table.brokers["a"].addresses[&0], wanted, "state {state_version}");
            assert_eq!(table.live_count(), 1);
            check(&table);
        }
    }

    #[test]
    fn silence_is_the_end_and_any_sign_is_life() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 1000).unwrap();
        table.register(Registration { timeout_ms: 500, ..master("b", &["T", "V"], 1) }, 1000).unwrap();
        assert!(table.expire(1100).is_empty(), "not before the time is over");
        table.heartbeat("C", "a", 1090);
        table.heartbeat("D", "a", 5000);
        table.heartbeat("C", "unknown", 5000);
        assert!(table.expire(1190).is_empty());
        assert_eq!(table.expire(1191), ["a"]);
        assert_eq!(topics(&table), ["T", "V"]);
        check(&table);
        assert_eq!(table.expire(u64::MAX), ["b"]);
        assert!(topics(&table).is_empty());
        check(&table);
    }

    #[test]
    fn a_closed_connection_takes_those_who_came_over_it() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        table.register(slave("a", "s1", 1), 0).unwrap();
        table.register(Registration { connection: 2, ..master("b", &["T", "U"], 1) }, 0).unwrap();
        assert!(table.disconnect(3).is_empty());
        assert_eq!(table.disconnect(1), ["a", "s1"]);
        assert_eq!(table.topics["T"].len(), 1);
        check(&table);
        // Registered again over another connection: the old one no longer matters.
        table.register(Registration { connection: 4, ..master("b", &["T", "U"], 1) }, 0).unwrap();
        assert!(table.disconnect(2).is_empty());
        assert_eq!(table.disconnect(4), ["b"]);
        check(&table);
    }

    #[test]
    fn an_address_belongs_to_the_name_it_last_had() {
        let mut table = table();
        table.register(master("old", &["T", "U"], 1), 0).unwrap();
        table.register(Registration { address: "old", ..master("new", &["T", "V"], 1) }, 0).unwrap();
        assert_eq!(table.brokers.keys().collect::<Vec<_>>(), ["new"]);
        assert_eq!(topics(&table), ["T", "V"]);
        check(&table);
        table.unregister("C", "somebody else", "old");
        assert!(table.brokers.is_empty() && topics(&table).is_empty());
        check(&table);
        table.unregister("C", "new", "old");
        check(&table);
    }

    #[test]
    fn a_replaced_address_leaves_nothing_behind() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        let moved = Registration { address: "elsewhere", connection: 2, ..master("a", &["T", "U"], 1) };
        table.register(moved, 0).unwrap();
        assert_eq!(table.brokers["a"].addresses[&0], "elsewhere");
        check(&table);
        assert!(table.disconnect(1).is_empty(), "the old connection no longer matters");
        assert_eq!(topics(&table), ["T", "U"]);
    }

    #[test]
    fn permissions_topics_and_clusters_are_changed_by_hand() {
        let mut table = table();
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        table.register(Registration { cluster: "D", ..master("b", &["T", "V"], 1) }, 0).unwrap();
        assert_eq!(table.wipe_write_perm("a"), 2);
        assert_eq!((perm_of(&table, "T", "a"), perm_of(&table, "T", "b")), (4, 6));
        assert_eq!(table.add_write_perm("a"), 2);
        assert_eq!(table.wipe_write_perm("unknown"), 0);
        assert_eq!(perm_of(&table, "T", "a"), 6);

        table.delete_topic("T", Some("unknown"));
        table.delete_topic("unknown", None);
        assert_eq!(table.topics["T"].len(), 2);
        table.delete_topic("T", Some("D"));
        assert_eq!(table.topics["T"].keys().collect::<Vec<_>>(), ["a"]);
        table.delete_topic("V", Some("D"));
        table.delete_topic("U", None);
        assert_eq!(topics(&table), ["T"]);
        check(&table);

        let queues = table.topics["T"]["a"];
        table.add_topic("W", &[("a".into(), queues), ("unknown".into(), queues), ("b".into(), queues)]).unwrap();
        assert_eq!(table.topics["W"].keys().collect::<Vec<_>>(), ["a"]);
        check(&table);
    }

    #[test]
    fn the_table_is_bounded_and_a_refusal_changes_nothing() {
        let mut table = RouteTable::new(RouteLimits { brokers_max: 2, queues_max: 4 });
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        let long: &'static str = "x".repeat(NAME_BYTES_MAX + 1).leak();
        let base = || master("b", &["T", "V"], 1);
        let refused = [
            master("b", &["A", "B", "C"], 1),
            master("b", &["A", long], 1),
            master("b", &["A", ""], 1),
            Registration { cluster: "", ..base() },
            Registration { broker: "", ..base() },
            Registration { address: "", ..base() },
            Registration { cluster: long, ..base() },
            Registration { broker: long, ..base() },
            Registration { address: long, ..base() },
            Registration { ha_address: long, ..base() },
            Registration { zone: Some(long), ..base() },
        ];
        for news in refused {
            let error = table.register(news.clone(), 0).unwrap_err();
            assert!(matches!(error, RegisterError::Bound(_)), "{news:?}");
            assert_eq!((table.live_count(), table.topic_count()), (1, 2));
        }
        table.register(base(), 0).unwrap();
        table.register(master("c", &[], 1), 0).unwrap_err();
        table.register(master("b", &["T", "V"], 2), 0).unwrap();
        table.add_topic("W", &[("a".into(), table.topics["T"]["a"])]).unwrap_err();
        assert_eq!((table.live_count(), table.topic_count()), (2, 3));
        check(&table);
    }

    #[test]
    fn no_order_of_events_leaves_a_trace() {
        // Random registrations, heartbeats and losses of few names, so that they collide.
        let names = ["a", "b", "c"];
        for seed in 1..400u64 {
            let mut table = RouteTable::new(RouteLimits { brokers_max: 5, queues_max: 12 });
            let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut below = |bound: u64| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state % bound
            };
            for now_ms in 0..150 {
                let mut pick = || names[below(3) as usize];
                let (broker, address, topic) = (pick(), pick(), pick());
                match below(8) {
                    0..4 => {
                        let version = DataVersion { state_version: below(3) as i64, ..DataVersion::default() };
                        let topics = [topic, "T", "U"].map(|name| (name.to_owned(), TopicConfig::new(name, 1, 6)));
                        let count = below(4) as usize;
                        let news = Registration {
                            address,
                            broker_id: below(3) as i64,
                            acting_master: [None, Some(false), Some(true)][below(3) as usize],
                            connection: below(4),
                            version,
                            topics: topics.into_iter().take(count).collect(),
                            is_complete: below(4) == 0,
                            timeout_ms: below(50),
                            ..master(broker, &[], 0)
                        };
                        let _ = table.register(news, now_ms);
                    }
                    4 => table.unregister("C", broker, address),
                    5 => table.heartbeat("C", address, now_ms),
                    6 => drop(table.disconnect(below(4))),
                    _ => drop(table.expire(now_ms)),
                }
                check(&table);
            }
            table.expire(u64::MAX);
            assert!(table.live.is_empty() && table.brokers.is_empty(), "seed {seed}");
            assert!(table.topics.is_empty() && table.clusters.is_empty(), "seed {seed}");
        }
    }
}
