//! What the route table shows: routes, clusters, lists.

use std::collections::BTreeMap;

use protocol::bodies::{BrokerData, ClusterInfo, MemberGroup, QueueData, TopicList, TopicRouteData};

use crate::routes::{Broker, Queues, RouteTable};

/// Bits of a topic's sysFlag (TopicSysFlag).
const SYS_FLAG_UNIT: i32 = 1;
const SYS_FLAG_UNIT_SUB: i32 = 2;

/// Which topics a unit list wants (311, 312, 313).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitList {
    /// Topics of a unit.
    Unit,
    /// Topics with subscriptions from a unit.
    UnitSub,
    /// Topics outside any unit with subscriptions from one.
    UnitSubOnly,
}

impl UnitList {
    fn has(self, sys_flag: i32) -> bool {
        let is_unit = sys_flag & SYS_FLAG_UNIT != 0;
        let is_unit_sub = sys_flag & SYS_FLAG_UNIT_SUB != 0;
        match self {
            UnitList::Unit => is_unit,
            UnitList::UnitSub => is_unit_sub,
            UnitList::UnitSubOnly => is_unit_sub && !is_unit,
        }
    }
}

impl RouteTable {
    /// Who holds a topic (105). `None`: nobody.
    pub fn route(&self, topic: &str) -> Option<TopicRouteData> {
        let brokers = self.topics.get(topic)?;
        let known = || brokers.iter().filter_map(|(name, queues)| Some((name, queues, self.brokers.get(name)?)));
        let route = TopicRouteData {
            queue_datas: known().map(|(name, queues, _)| queue_data(name, queues)).collect(),
            broker_datas: known().map(|(name, _, broker)| broker_data(name, broker)).collect(),
            ..TopicRouteData::default()
        };
        (!route.broker_datas.is_empty()).then_some(route)
    }

    /// All brokers by cluster (106).
    pub fn cluster_info(&self) -> ClusterInfo {
        let brokers = self.brokers.iter().map(|(name, broker)| (name.clone(), broker_data(name, broker)));
        ClusterInfo { broker_addr_table: brokers.collect(), cluster_addr_table: self.clusters.clone() }
    }

    /// All topics (206).
    pub fn topic_list(&self) -> TopicList {
        list(self.topics.keys().cloned())
    }

    /// The topics that the brokers of a cluster hold (224).
    pub fn topics_of_cluster(&self, cluster: &str) -> TopicList {
        let Some(members) = self.clusters.get(cluster) else { return TopicList::default() };
        let held = self.topics.iter().filter(|(_, brokers)| brokers.keys().any(|broker| members.contains(broker)));
        list(held.map(|(topic, _)| topic.clone()))
    }

    /// Topics that exist because brokers and clusters do, and any broker that knows more (304).
    pub fn system_topics(&self) -> TopicList {
        let names = self.clusters.iter().flat_map(|(cluster, brokers)| std::iter::once(cluster).chain(brokers));
        let address = self.brokers.values().find_map(|broker| broker.addresses.values().next());
        TopicList { broker_addr: address.cloned(), ..list(names.cloned()) }
    }

    /// Topics by their unit flags (311, 312, 313). As in a stock NameServer, one broker's flags
    /// speak for all.
    pub fn unit_topics(&self, which: UnitList) -> TopicList {
        let is_wanted = |brokers: &BTreeMap<String, Queues>| {
            brokers.values().next().is_some_and(|queues| which.has(queues.sys_flag))
        };
        list(self.topics.iter().filter(|(_, brokers)| is_wanted(brokers)).map(|(topic, _)| topic.clone()))
    }

    /// The addresses behind a broker name (901), none if it is unknown.
    pub fn member_group(&self, cluster: &str, broker: &str) -> MemberGroup {
        let addresses = self.brokers.get(broker).map(|broker| broker.addresses.clone());
        MemberGroup {
            cluster: cluster.to_owned(),
            broker_name: broker.to_owned(),
            broker_addrs: addresses.unwrap_or_default(),
        }
    }
}

fn list(topics: impl Iterator<Item = String>) -> TopicList {
    TopicList { topic_list: topics.collect(), ..TopicList::default() }
}

fn queue_data(broker: &str, queues: &Queues) -> QueueData {
    QueueData {
        broker_name: broker.to_owned(),
        read_queue_nums: queues.read,
        write_queue_nums: queues.write,
        perm: queues.perm,
        topic_sys_flag: queues.sys_flag,
    }
}

fn broker_data(name: &str, broker: &Broker) -> BrokerData {
    BrokerData {
        cluster: broker.cluster.clone(),
        broker_name: name.to_owned(),
        broker_addrs: broker.addresses.clone(),
        zone_name: broker.zone.clone(),
        enable_acting_master: broker.acting_master,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registration::Registration;
    use crate::routes::RouteLimits;
    use crate::routes::tests::master;
    use protocol::bodies::encode;

    fn table() -> RouteTable {
        let mut table = RouteTable::new(RouteLimits::default());
        table.register(master("a", &["T", "U"], 1), 0).unwrap();
        let mut far = Registration { cluster: "D", zone: Some("z"), ..master("b", &["T", "V", "W"], 1) };
        for (topic, topic_sys_flag) in [("V", 1), ("W", 3)] {
            far.topics.get_mut(topic).unwrap().topic_sys_flag = topic_sys_flag;
        }
        table.register(far, 0).unwrap();
        let slave = Registration { broker_id: 1, address: "a1", ..master("a", &[], 1) };
        table.register(slave, 0).unwrap();
        table
    }

    fn text<T: serde::Serialize>(body: &T) -> String {
        String::from_utf8(encode(body)).unwrap()
    }

    #[test]
    fn a_route_names_all_queues_and_addresses() {
        assert_eq!(
            text(&table().route("T").unwrap()),
            r#"{"brokerDatas":[{"brokerAddrs":{"0":"a","1":"a1"},"brokerName":"a","cluster":"C","enableActingMaster":false},"#
                .to_owned()
                + r#"{"brokerAddrs":{"0":"b"},"brokerName":"b","cluster":"D","enableActingMaster":false,"zoneName":"z"}],"#
                + r#""filterServerTable":{},"queueDatas":["#
                + r#"{"brokerName":"a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4},"#
                + r#"{"brokerName":"b","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#
        );
        assert_eq!(table().route("unknown"), None);
    }

    #[test]
    fn lists_hold_what_they_name() {
        let table = table();
        let cases: [(TopicList, &[&str]); 8] = [
            (table.topic_list(), &["T", "U", "V", "W"]),
            (table.topics_of_cluster("C"), &["T", "U"]),
            (table.topics_of_cluster("D"), &["T", "V", "W"]),
            (table.topics_of_cluster("E"), &[]),
            (table.system_topics(), &["C", "D", "a", "b"]),
            (table.unit_topics(UnitList::Unit), &["V", "W"]),
            (table.unit_topics(UnitList::UnitSub), &["W"]),
            (table.unit_topics(UnitList::UnitSubOnly), &[]),
        ];
        for (index, (list, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(list.topic_list.iter().collect::<Vec<_>>(), wanted, "case {index}");
        }
        assert_eq!(table.system_topics().broker_addr.as_deref(), Some("a"));
        assert!(UnitList::UnitSubOnly.has(2) && !UnitList::UnitSubOnly.has(3) && !UnitList::Unit.has(2));
    }

    #[test]
    fn clusters_and_members() {
        let cluster = text(&table().cluster_info());
        assert!(cluster.starts_with(r#"{"brokerAddrTable":{"a":{"brokerAddrs":{"0":"a","1":"a1"},"#), "{cluster}");
        assert!(cluster.ends_with(r#""clusterAddrTable":{"C":["a"],"D":["b"]}}"#), "{cluster}");
        let members = table().member_group("C", "a").broker_addrs;
        assert_eq!(members.into_iter().collect::<Vec<_>>(), [(0, "a".into()), (1, "a1".into())]);
        assert!(table().member_group("C", "x").broker_addrs.is_empty());
    }
}
