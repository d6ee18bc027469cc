//! Clients: heartbeats, subscriptions and connections (PROTOCOL 3.11 and 3.13).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::tag_hash;

/// Subscription expression that takes everything.
pub const SUB_ALL: &str = "*";
/// Expression type of tags, the default.
pub const TYPE_TAG: &str = "TAG";
/// Expression type of SQL92.
pub const TYPE_SQL92: &str = "SQL92";

/// Body of HEART_BEAT (34).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeartbeatData {
    /// Who it is.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Its consumer groups.
    pub consumer_data_set: Vec<ConsumerData>,
    /// Hash of its subscriptions; 0: a classic heartbeat.
    pub heartbeat_fingerprint: i32,
    /// Its producer groups.
    pub producer_data_set: Vec<ProducerData>,
    /// Whether the subscriptions are left out because we know them.
    pub without_sub: bool,
}

/// A producer group in a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct ProducerData {
    pub group_name: String,
}

/// A consumer group in a heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerData {
    /// Where a group without offsets starts.
    pub consume_from_where: ConsumeFromWhere,
    /// How it gets its messages.
    pub consume_type: ConsumeType,
    /// The group.
    pub group_name: String,
    /// Who gets a message.
    pub message_model: MessageModel,
    /// What it wants.
    pub subscription_data_set: Vec<SubscriptionData>,
    /// Whether it belongs to a unit.
    pub unit_mode: bool,
}

/// How a consumer gets its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConsumeType {
    /// The application pulls.
    ConsumeActively,
    /// The client pulls and calls the application.
    #[default]
    ConsumePassively,
    /// The client pops.
    ConsumePop,
}

/// Who of a group gets a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MessageModel {
    /// Everyone.
    Broadcasting,
    /// One.
    #[default]
    Clustering,
}

/// Where a group without offsets starts. The client decides; a broker only shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the variants are RocketMQ's names")]
pub enum ConsumeFromWhere {
    #[default]
    ConsumeFromLastOffset,
    ConsumeFromLastOffsetAndFromMinWhenBootFirst,
    ConsumeFromMinOffset,
    ConsumeFromMaxOffset,
    ConsumeFromFirstOffset,
    ConsumeFromTimestamp,
}

/// What a group wants of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubscriptionData {
    /// Legacy.
    pub class_filter_mode: bool,
    /// Hashes of the tags, `ids::tag_hash` in 32 bits.
    pub code_set: BTreeSet<i32>,
    /// `TYPE_TAG` or `TYPE_SQL92`.
    pub expression_type: String,
    /// The expression as written: `*`, `A || B`, or SQL.
    pub sub_string: String,
    /// Greater is newer; mostly milliseconds since 1970.
    pub sub_version: i64,
    /// The tags.
    pub tags_set: BTreeSet<String>,
    /// The topic.
    pub topic: String,
}

impl Default for SubscriptionData {
    fn default() -> SubscriptionData {
        SubscriptionData {
            class_filter_mode: false,
            code_set: BTreeSet::new(),
            expression_type: TYPE_TAG.to_owned(),
            sub_string: String::new(),
            sub_version: 0,
            tags_set: BTreeSet::new(),
            topic: String::new(),
        }
    }
}

impl SubscriptionData {
    /// A subscription to tags: empty or `*` takes all, `A || B` these two. `None`: there is no
    /// tag in it (code 23).
    pub fn from_expression(topic: &str, expression: &str) -> Option<SubscriptionData> {
        let mut subscription = SubscriptionData { topic: topic.to_owned(), ..SubscriptionData::default() };
        if expression.is_empty() || expression == SUB_ALL {
            subscription.sub_string = SUB_ALL.to_owned();
            return Some(subscription);
        }
        subscription.sub_string = expression.to_owned();
        for tag in expression.split("||").map(str::trim).filter(|tag| !tag.is_empty()) {
            subscription.tags_set.insert(tag.to_owned());
            subscription.code_set.insert(tag_hash(tag) as i32);
        }
        (!subscription.tags_set.is_empty()).then_some(subscription)
    }

    /// Whether the broker sends a message with this tag hash; clients compare the tags again.
    pub fn wants(&self, tag_hash: i64) -> bool {
        self.class_filter_mode || self.sub_string == SUB_ALL || self.code_set.contains(&(tag_hash as i32))
    }
}

/// Body of CHECK_CLIENT_CONFIG (46).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckClient {
    /// Who asks.
    pub client_id: String,
    /// For which group.
    pub group: String,
    /// The client's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The subscription to check.
    pub subscription_data: SubscriptionData,
}

/// Answer to GET_CONSUMER_LIST_BY_GROUP (38).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct ConsumerIdList {
    pub consumer_id_list: Vec<String>,
}

/// One connected client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Connection {
    /// `ip:port`.
    pub client_addr: String,
    /// Its id.
    pub client_id: String,
    /// `Language::name`.
    pub language: String,
    /// Its RocketMQ version.
    pub version: i32,
}

/// Answer to GET_CONSUMER_CONNECTION_LIST (203).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumerConnection {
    /// The group's clients.
    pub connection_set: Vec<Connection>,
    /// As the last heartbeat said.
    pub consume_from_where: ConsumeFromWhere,
    /// As the last heartbeat said.
    pub consume_type: ConsumeType,
    /// As the last heartbeat said.
    pub message_model: MessageModel,
    /// Subscriptions by topic.
    pub subscription_table: BTreeMap<String, SubscriptionData>,
}

/// Answer to GET_PRODUCER_CONNECTION_LIST (204).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct ProducerConnection {
    pub connection_set: Vec<Connection>,
}

/// Answer to GET_ALL_PRODUCER_INFO (328): the clients of every producer group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct ProducerTable {
    pub data: BTreeMap<String, Vec<ProducerInfo>>,
}

/// One client of a producer group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProducerInfo {
    /// Its id.
    pub client_id: String,
    /// `Language::name`.
    pub language: String,
    /// Its last heartbeat, in ms since 1970.
    pub last_update_timestamp: i64,
    /// `ip:port`.
    #[serde(rename = "remoteIP")]
    pub remote_ip: String,
    /// Its RocketMQ version.
    pub version: i32,
}

/// Answer to QUERY_SUBSCRIPTION_BY_CONSUMER (345).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupSubscription {
    /// The group.
    pub group: String,
    /// What it subscribes to in the topic; `None`: it does not, or has no member.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data: Option<SubscriptionData>,
    /// The topic.
    pub topic: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::{decode, encode};

    #[test]
    fn heartbeats_come_back() {
        let text = r#"{"clientID":"1.2.3.4@123","consumerDataSet":[{"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","groupName":"g","messageModel":"CLUSTERING","subscriptionDataSet":[{"classFilterMode":false,"codeSet":[2598919],"expressionType":"TAG","subString":"TagA","subVersion":1700000000000,"tagsSet":["TagA"],"topic":"T"}],"unitMode":false}],"heartbeatFingerprint":0,"producerDataSet":[{"groupName":"p"}],"withoutSub":false}"#;
        let heartbeat: HeartbeatData = decode(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(encode(&heartbeat)).unwrap(), text);
        let wanted = SubscriptionData::from_expression("T", "TagA").unwrap();
        let sub_version = 1_700_000_000_000;
        let subscription = &heartbeat.consumer_data_set[0].subscription_data_set[0];
        assert_eq!(*subscription, SubscriptionData { sub_version, ..wanted });
        // 4.x leaves members out and the Go client sends others as null.
        let old = r#"{"clientID":"c","consumerDataSet":[{"groupName":"g","subscriptionDataSet":[{"topic":"T","subString":"*","codeSet":null,"expressionType":null}]}],"producerDataSet":null}"#;
        let heartbeat: HeartbeatData = decode(old.as_bytes()).unwrap();
        let subscription = &heartbeat.consumer_data_set[0].subscription_data_set[0];
        assert_eq!((subscription.expression_type.as_str(), subscription.wants(7)), (TYPE_TAG, true));
        assert!(decode::<HeartbeatData>(br#"{"consumerDataSet":[{"consumeType":"X"}]}"#).is_err());
    }

    #[test]
    fn expressions_become_sets() {
        for (expression, tags) in [
            ("*", Some(vec![])),
            ("", Some(vec![])),
            ("A", Some(vec!["A"])),
            (" B ||A||  || A", Some(vec!["A", "B"])),
            ("||", None),
            (" ", None),
        ] {
            let found = SubscriptionData::from_expression("T", expression);
            let found = found.map(|found| found.tags_set.into_iter().collect::<Vec<_>>());
            assert_eq!(found, tags.map(|tags| tags.into_iter().map(str::to_owned).collect()), "{expression}");
        }
        let tags = SubscriptionData::from_expression("T", "A || TagA").unwrap();
        assert!(tags.wants(65) && tags.wants(2_598_919) && !tags.wants(0) && !tags.wants(66));
        assert!(SubscriptionData::from_expression("T", "*").unwrap().wants(0));
    }

    #[test]
    fn connections_are_written() {
        let connection = Connection {
            client_addr: "1.1.1.1:1".into(),
            client_id: "id".into(),
            language: "JAVA".into(),
            version: 479,
        };
        let answer = ConsumerConnection { connection_set: vec![connection], ..ConsumerConnection::default() };
        let text = r#"{"connectionSet":[{"clientAddr":"1.1.1.1:1","clientId":"id","language":"JAVA","version":479}],"consumeFromWhere":"CONSUME_FROM_LAST_OFFSET","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","subscriptionTable":{}}"#;
        assert_eq!(String::from_utf8(encode(&answer)).unwrap(), text);
        let list = ConsumerIdList { consumer_id_list: vec!["a@1".into()] };
        assert_eq!(encode(&list), br#"{"consumerIdList":["a@1"]}"#);
    }
}
