//! Routes, clusters, topics and lists of names (PROTOCOL 3.9, 3.10 and 3.13).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::perm;

/// Answer to GET_ROUTEINFO_BY_TOPIC (105).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicRouteData {
    /// The brokers that hold queues of the topic.
    pub broker_datas: Vec<BrokerData>,
    /// Legacy, always empty.
    pub filter_server_table: BTreeMap<String, Vec<String>>,
    /// `broker-a:4;broker-b:4`: the fixed queues of an order topic.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_topic_conf: Option<String>,
    /// The queues on each broker name.
    pub queue_datas: Vec<QueueData>,
}

/// The brokers of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BrokerData {
    /// Addresses by broker id; 0 takes writes.
    pub broker_addrs: BTreeMap<i64, String>,
    /// The name.
    pub broker_name: String,
    /// Its cluster.
    pub cluster: String,
    /// Whether the lowest slave may stand in for a lost master.
    pub enable_acting_master: bool,
    /// Its zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_name: Option<String>,
}

/// A topic's queues on one broker name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueData {
    /// The broker name.
    pub broker_name: String,
    /// See `names::perm`.
    pub perm: i32,
    /// Consumers use queues 0 to this.
    pub read_queue_nums: i32,
    /// See `names::topic_flag`.
    pub topic_sys_flag: i32,
    /// Producers use queues 0 to this.
    pub write_queue_nums: i32,
}

/// Answer to GET_BROKER_CLUSTER_INFO (106).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterInfo {
    /// Brokers by name.
    pub broker_addr_table: BTreeMap<String, BrokerData>,
    /// Broker names by cluster.
    pub cluster_addr_table: BTreeMap<String, BTreeSet<String>>,
}

/// Answer to GET_BROKER_MEMBER_GROUP (901).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct MemberGroupAnswer {
    pub broker_member_group: MemberGroup,
}

/// The living brokers of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberGroup {
    /// Addresses by broker id.
    pub broker_addrs: BTreeMap<i64, String>,
    /// The name.
    pub broker_name: String,
    /// Its cluster.
    pub cluster: String,
}

/// Which state of a table this is; equal when all three are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataVersion {
    /// Counts the changes.
    pub counter: i64,
    /// Epoch of the state machine behind it; 0 without a controller.
    pub state_version: i64,
    /// When it last changed, in milliseconds since 1970.
    pub timestamp: i64,
}

/// A topic on a broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicConfig {
    /// PROTOCOL 3.18.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is an order topic.
    pub order: bool,
    /// See `names::perm`.
    pub perm: i32,
    /// Consumers use queues 0 to this.
    pub read_queue_nums: i32,
    /// `SINGLE_TAG` or `MULTI_TAG`.
    pub topic_filter_type: String,
    /// Its name.
    pub topic_name: String,
    /// See `names::topic_flag`.
    pub topic_sys_flag: i32,
    /// Producers use queues 0 to this.
    pub write_queue_nums: i32,
}

impl Default for TopicConfig {
    /// What Java's class has without being told: 16 queues to read and write.
    fn default() -> TopicConfig {
        TopicConfig {
            attributes: BTreeMap::new(),
            order: false,
            perm: perm::READ | perm::WRITE,
            read_queue_nums: 16,
            topic_filter_type: "SINGLE_TAG".to_owned(),
            topic_name: String::new(),
            topic_sys_flag: 0,
            write_queue_nums: 16,
        }
    }
}

impl TopicConfig {
    /// A topic with this many queues to read and write.
    pub fn new(topic_name: impl Into<String>, queue_nums: i32, perm: i32) -> TopicConfig {
        TopicConfig {
            topic_name: topic_name.into(),
            read_queue_nums: queue_nums,
            write_queue_nums: queue_nums,
            perm,
            ..TopicConfig::default()
        }
    }

    /// The line of a compressed registration: `T 16 16 6 SINGLE_TAG {}`.
    pub fn to_text(&self) -> String {
        let attributes = serde_json::to_string(&self.attributes).expect("a map of strings has a JSON form");
        format!(
            "{} {} {} {} {} {attributes}",
            self.topic_name, self.read_queue_nums, self.write_queue_nums, self.perm, self.topic_filter_type
        )
    }

    /// Reads such a line; the attributes may be missing. `None`: it is not one.
    pub fn from_text(text: &str) -> Option<TopicConfig> {
        let mut words = text.splitn(6, ' ');
        let topic_name = words.next()?.to_owned();
        let read_queue_nums = words.next()?.parse().ok()?;
        let write_queue_nums = words.next()?.parse().ok()?;
        let perm = words.next()?.parse().ok()?;
        let topic_filter_type = words.next()?.to_owned();
        // As in Java, attributes that cannot be read are no reason to lose the topic.
        let attributes = words.next().and_then(|json| super::decode(json.as_bytes()).ok()).unwrap_or_default();
        Some(TopicConfig {
            attributes,
            perm,
            read_queue_nums,
            topic_filter_type,
            topic_name,
            write_queue_nums,
            ..TopicConfig::default()
        })
    }
}

/// A table of names and values: 28, 103's answer and 219.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct KvTable {
    pub table: BTreeMap<String, String>,
}

/// A set of topics: 206, 224, 304, 305, 311, 312, 313, 343.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicList {
    /// With 304: a broker to ask for its own system topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_addr: Option<String>,
    /// The topics.
    pub topic_list: BTreeSet<String>,
}

/// Topics to make or change at once: 18.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct TopicConfigList {
    pub topic_config_list: Vec<TopicConfig>,
}

/// A set of groups: 300.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct GroupList {
    pub group_list: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::{decode, encode};

    const ROUTE: &str = r#"{"brokerDatas":[{"brokerAddrs":{"0":"127.0.0.1:10911","1":"127.0.0.1:10921"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#;

    #[test]
    fn routes_are_written_as_java_reads_them() {
        let route: TopicRouteData = decode(ROUTE.as_bytes()).unwrap();
        assert_eq!(route.broker_datas[0].broker_addrs[&1], "127.0.0.1:10921");
        assert_eq!(route.queue_datas[0].read_queue_nums, 4);
        assert_eq!(String::from_utf8(encode(&route)).unwrap(), ROUTE);
        // The old form has bare ids; members may be null, missing or unknown.
        let old = ROUTE.replace("\"0\":", "0:").replace("\"1\":", "1:").replace(r#""filterServerTable":{},"#, "");
        assert_eq!(decode::<TopicRouteData>(old.as_bytes()).unwrap(), route);
        let odd = ROUTE.replacen('{', r#"{"orderTopicConf":null,"topicQueueMappingByBroker":{"b":{0:{}}},"#, 1);
        assert_eq!(decode::<TopicRouteData>(odd.as_bytes()).unwrap(), route);
    }

    #[test]
    fn clusters_and_lists() {
        let text = r#"{"brokerAddrTable":{"broker-a":{"brokerAddrs":{"0":"x"},"brokerName":"broker-a","cluster":"C","enableActingMaster":false}},"clusterAddrTable":{"C":["broker-a"]}}"#;
        let cluster: ClusterInfo = decode(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(encode(&cluster)).unwrap(), text);
        let topics = TopicList { broker_addr: None, topic_list: ["b".into(), "a".into()].into() };
        assert_eq!(encode(&topics), br#"{"topicList":["a","b"]}"#);
        let table = KvTable { table: [("k".into(), "v".into())].into() };
        assert_eq!(encode(&table), br#"{"table":{"k":"v"}}"#);
        let group: MemberGroupAnswer = decode(br#"{"brokerMemberGroup":{"brokerAddrs":{0:"x"}}}"#).unwrap();
        assert_eq!(group.broker_member_group.broker_addrs[&0], "x");
    }

    #[test]
    fn topics_have_a_text_form() {
        let mut topic = TopicConfig::new("T", 16, 6);
        assert_eq!(topic.to_text(), "T 16 16 6 SINGLE_TAG {}");
        assert_eq!(TopicConfig::from_text("T 16 16 6 SINGLE_TAG"), Some(topic.clone()));
        topic.attributes.insert("message.type".into(), "a b".into());
        assert_eq!(TopicConfig::from_text(&topic.to_text()), Some(topic));
        for text in ["", "T", "T 1 1 6", "T 1 x 6 SINGLE_TAG"] {
            assert_eq!(TopicConfig::from_text(text), None, "{text}");
        }
        let json = r#"{"attributes":{},"order":false,"perm":6,"readQueueNums":16,"topicFilterType":"SINGLE_TAG","topicName":"","topicSysFlag":0,"writeQueueNums":16}"#;
        assert_eq!(encode(&TopicConfig::default()), json.as_bytes());
        assert_eq!(decode::<TopicConfig>(b"{}"), Ok(TopicConfig::default()));
    }
}
