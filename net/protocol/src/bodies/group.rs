//! Configuration of consumer groups (PROTOCOL 3.13).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::DataVersion;

/// A consumer group on a broker: body of 200, part of 201.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionGroupConfig {
    /// PROTOCOL 3.18.
    pub attributes: BTreeMap<String, String>,
    /// The broker id to read from.
    pub broker_id: i64,
    /// Whether it may consume broadcasting.
    pub consume_broadcast_enable: bool,
    /// Whether it may consume.
    pub consume_enable: bool,
    /// Legacy.
    pub consume_from_min_enable: bool,
    /// Whether pop keeps its order.
    pub consume_message_orderly: bool,
    /// How long one message may take, in minutes.
    pub consume_timeout_minute: i32,
    /// Its name.
    pub group_name: String,
    /// How long retries wait, which clients decide in part; passed on unread.
    pub group_retry_policy: Value,
    /// Bits like `names::topic_flag`.
    pub group_sys_flag: i32,
    /// Whether clients are told when the group's members change.
    pub notify_consumer_ids_changed_enable: bool,
    /// How often a message is tried again before it is a dead letter.
    pub retry_max_times: i32,
    /// Queues of its retry topic.
    pub retry_queue_nums: i32,
    /// Subscriptions fixed by an admin; passed on unread.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data_set: Option<Value>,
    /// The broker id to read from when it is far behind.
    pub which_broker_when_consume_slowly: i64,
}

impl Default for SubscriptionGroupConfig {
    fn default() -> SubscriptionGroupConfig {
        SubscriptionGroupConfig {
            attributes: BTreeMap::new(),
            broker_id: 0,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: false,
            consume_timeout_minute: 15,
            group_name: String::new(),
            group_retry_policy: json!({"type": "CUSTOMIZED"}),
            group_sys_flag: 0,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: 16,
            retry_queue_nums: 1,
            subscription_data_set: None,
            which_broker_when_consume_slowly: 1,
        }
    }
}

impl SubscriptionGroupConfig {
    /// A group with the defaults of a stock broker.
    pub fn new(group_name: impl Into<String>) -> SubscriptionGroupConfig {
        SubscriptionGroupConfig { group_name: group_name.into(), ..SubscriptionGroupConfig::default() }
    }
}

/// What a group may not do in a topic: answer to UPDATE_AND_GET_GROUP_FORBIDDEN (353).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields say what they are")]
pub struct Forbidden {
    pub group: String,
    pub readable: bool,
    pub topic: String,
}

/// Groups to make or change at once: 225.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct GroupConfigList {
    pub group_config_list: Vec<SubscriptionGroupConfig>,
}

/// A broker's groups: answer to GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionGroupTable {
    /// Which state of the table this is.
    pub data_version: DataVersion,
    /// What groups may not do, by group and topic.
    pub forbidden_table: BTreeMap<String, BTreeMap<String, i32>>,
    /// Groups by name.
    pub subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
}

/// Who reads how much from disk: answer to GET_COLD_DATA_FLOW_CTR_INFO (2003). Bytes in this interval.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdFlow {
    /// What a group may read that has no threshold of its own.
    pub cg_cold_read_threshold: i64,
    /// Thresholds of their own, by group.
    pub config_table: BTreeMap<String, i64>,
    /// What all have read.
    pub global_acc: i64,
    /// What all together may read.
    pub global_cold_read_threshold: i64,
    /// Who has read, by group.
    pub runtime_table: BTreeMap<String, ColdReader>,
}

/// A group that reads from disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ColdReader {
    /// Bytes.
    pub cold_acc: i64,
    /// Since when it is known, ms since 1970.
    pub create_time_mills: i64,
    /// When it read last, ms since 1970.
    pub last_cold_read_time_mills: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::{decode, encode};

    #[test]
    fn groups_are_written_as_java_writes_them() {
        let text = r#"{"attributes":{},"brokerId":0,"consumeBroadcastEnable":true,"consumeEnable":true,"consumeFromMinEnable":true,"consumeMessageOrderly":false,"consumeTimeoutMinute":15,"groupName":"g","groupRetryPolicy":{"type":"CUSTOMIZED"},"groupSysFlag":0,"notifyConsumerIdsChangedEnable":true,"retryMaxTimes":16,"retryQueueNums":1,"whichBrokerWhenConsumeSlowly":1}"#;
        let group = SubscriptionGroupConfig::new("g");
        assert_eq!(String::from_utf8(encode(&group)).unwrap(), text);
        assert_eq!(decode::<SubscriptionGroupConfig>(text.as_bytes()).unwrap(), group);
        // What 4.x leaves out has the default.
        assert_eq!(decode::<SubscriptionGroupConfig>(br#"{"groupName":"g","groupRetryPolicy":null}"#).unwrap(), group);
        let table = SubscriptionGroupTable {
            subscription_group_table: [("g".to_owned(), group)].into(),
            ..SubscriptionGroupTable::default()
        };
        let text = format!(
            r#"{{"dataVersion":{{"counter":0,"stateVersion":0,"timestamp":0}},"forbiddenTable":{{}},"subscriptionGroupTable":{{"g":{text}}}}}"#
        );
        assert_eq!(String::from_utf8(encode(&table)).unwrap(), text);
        assert_eq!(decode::<SubscriptionGroupTable>(text.as_bytes()).unwrap(), table);
    }
}
