//! Message queues, the tables keyed by them, and locks on them (PROTOCOL 3.12 to 3.14).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::SubscriptionData;

/// One queue of a topic on one broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are the name")]
pub struct MessageQueue {
    pub broker_name: String,
    pub queue_id: i32,
    pub topic: String,
}

/// Answer to GET_CONSUME_STATS (208).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsumeStats {
    /// Messages a second.
    pub consume_tps: f64,
    /// How far the group is in each queue.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
}

/// How far a group is in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OffsetWrapper {
    /// The next offset that a message will get.
    pub broker_offset: i64,
    /// The next offset to consume, as committed.
    pub consumer_offset: i64,
    /// Store time of the last consumed message, in milliseconds since 1970.
    pub last_timestamp: i64,
    /// The next offset to pull.
    pub pull_offset: i64,
}

/// Answer to GET_TOPIC_STATS_INFO (202).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicStatsTable {
    /// What each queue holds.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: BTreeMap<MessageQueue, TopicOffset>,
    /// Messages a second.
    pub topic_put_tps: f64,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TopicOffset {
    /// Store time of the last message, in milliseconds since 1970; 0 without one.
    pub last_update_timestamp: i64,
    /// The next offset that a message will get.
    pub max_offset: i64,
    /// The first offset there is.
    pub min_offset: i64,
}

/// Answer to QUERY_CONSUME_TIME_SPAN (303).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct TimeSpans {
    pub consume_time_span_set: Vec<TimeSpan>,
}

/// From when to when the messages of a queue are, and where a group is. Milliseconds since 1970; -1: there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TimeSpan {
    /// When the last message was stored that the group has consumed; of one that has consumed none, the first message.
    pub consume_time_stamp: i64,
    /// How long ago the next message was stored that the group has not consumed, in milliseconds; 0: there is none.
    pub delay_time: i64,
    /// When the last message was stored.
    pub max_time_stamp: i64,
    /// The queue.
    pub message_queue: MessageQueue,
    /// When the first message was stored.
    pub min_time_stamp: i64,
}

/// Answer to QUERY_CONSUME_QUEUE (321).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueEntries {
    /// Why nothing is said of the group, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_data: Option<String>,
    /// The next offset of the queue.
    pub max_queue_index: i64,
    /// The first offset of the queue.
    pub min_queue_index: i64,
    /// The entries, in order.
    pub queue_data: Vec<QueueEntry>,
    /// What the group subscribes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscription_data: Option<SubscriptionData>,
}

/// One entry of a queue's index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueEntry {
    /// Whether the group would get the message.
    pub eval: bool,
    /// Where the message lies.
    pub physic_offset: i64,
    /// Its bytes.
    pub physic_size: i32,
    /// The hash of its tag; 0: it has none.
    pub tags_code: i64,
}

/// LOCK_BATCH_MQ (41) and UNLOCK_BATCH_MQ (42).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LockBatch {
    /// Who asks.
    pub client_id: String,
    /// For which group.
    pub consumer_group: String,
    /// Which queues.
    pub mq_set: Vec<MessageQueue>,
    /// Whether other brokers need not be asked.
    pub only_this_broker: bool,
}

/// Answer to 41: the queues that the asking client now holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct LockAnswer {
    #[serde(rename = "lockOKMQSet")]
    pub queues: Vec<MessageQueue>,
}

/// Answer to VIEW_BROKER_STATS_DATA (315).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are the times")]
pub struct BrokerStatsData {
    pub stats_day: StatsItem,
    pub stats_hour: StatsItem,
    pub stats_minute: StatsItem,
}

/// What happened in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatsItem {
    /// The sum's part of one event.
    pub avgpt: f64,
    /// All together.
    pub sum: i64,
    /// In a second.
    pub tps: f64,
}

/// Answer to 222, body of 220.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResetOffsets {
    /// Where each queue goes on.
    #[serde(deserialize_with = "queue_map")]
    pub offset_table: BTreeMap<MessageQueue, i64>,
}

/// Answer of a client to GET_CONSUMER_STATUS_FROM_CLIENT (221).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientStatus {
    /// The offset that the client has consumed up to, of each queue that it has.
    #[serde(deserialize_with = "queue_map")]
    pub message_queue_table: BTreeMap<MessageQueue, i64>,
}

/// Answer to INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// By client id.
    pub consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
}

impl ResetOffsets {
    /// Writes the body in fastjson's form, with queues as keys.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"{\"offsetTable\":".to_vec();
        write_queue_map(&mut out, &self.offset_table);
        out.push(b'}');
        out
    }
}

impl GroupStatus {
    /// Writes the body in fastjson's form, with queues as keys.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"{\"consumerTable\":{".to_vec();
        for (index, (client, table)) in self.consumer_table.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write(&mut out, client);
            out.push(b':');
            write_queue_map(&mut out, table);
        }
        out.extend_from_slice(b"},\"messageQueueTable\":{}}");
        out
    }
}

impl ConsumeStats {
    /// Writes the body in fastjson's form, with queues as keys.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"{\"consumeTps\":".to_vec();
        write(&mut out, &finite(self.consume_tps));
        out.extend_from_slice(b",\"offsetTable\":");
        write_queue_map(&mut out, &self.offset_table);
        out.push(b'}');
        out
    }
}

impl TopicStatsTable {
    /// Writes the body in fastjson's form, with queues as keys.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = b"{\"offsetTable\":".to_vec();
        write_queue_map(&mut out, &self.offset_table);
        out.extend_from_slice(b",\"topicPutTps\":");
        write(&mut out, &finite(self.topic_put_tps));
        out.push(b'}');
        out
    }
}

/// JSON has no word for infinity or NaN.
fn finite(number: f64) -> f64 {
    if number.is_finite() { number } else { 0.0 }
}

fn write_queue_map<V: Serialize>(out: &mut Vec<u8>, map: &BTreeMap<MessageQueue, V>) {
    out.push(b'{');
    for (index, (queue, value)) in map.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, queue);
        out.push(b':');
        write(out, value);
    }
    out.push(b'}');
}

fn write<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("plain values have a JSON form and memory takes it");
}

/// Reads a map whose keys are strings that hold queues, as `lenient` leaves them.
fn queue_map<'de, D, V>(deserializer: D) -> Result<BTreeMap<MessageQueue, V>, D::Error>
where
    D: Deserializer<'de>,
    V: DeserializeOwned,
{
    struct Map<V>(PhantomData<V>);

    impl<'de, V: DeserializeOwned> Visitor<'de> for Map<V> {
        type Value = BTreeMap<MessageQueue, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map with message queues as keys")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut queues = BTreeMap::new();
            while let Some(key) = map.next_key::<String>()? {
                let queue = serde_json::from_str(&key).map_err(serde::de::Error::custom)?;
                queues.insert(queue, map.next_value()?);
            }
            Ok(queues)
        }
    }

    deserializer.deserialize_map(Map(PhantomData))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::{decode, encode};

    fn queue() -> MessageQueue {
        MessageQueue { broker_name: "b".into(), queue_id: 0, topic: "T".into() }
    }

    #[test]
    fn queues_are_keys() {
        let offsets = OffsetWrapper { broker_offset: 10, consumer_offset: 5, last_timestamp: 7, pull_offset: 6 };
        let stats = ConsumeStats { consume_tps: 0.0, offset_table: [(queue(), offsets)].into() };
        let text = r#"{"consumeTps":0.0,"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"brokerOffset":10,"consumerOffset":5,"lastTimestamp":7,"pullOffset":6}}}"#;
        assert_eq!(stats.encode(), text.as_bytes());
        assert_eq!(decode::<ConsumeStats>(text.as_bytes()), Ok(stats));

        let second = MessageQueue { queue_id: 1, ..queue() };
        let offset = TopicOffset { last_update_timestamp: 0, max_offset: 3, min_offset: 0 };
        let stats =
            TopicStatsTable { offset_table: [(queue(), offset), (second, offset)].into(), topic_put_tps: f64::NAN };
        let text = r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:{"lastUpdateTimestamp":0,"maxOffset":3,"minOffset":0},{"brokerName":"b","queueId":1,"topic":"T"}:{"lastUpdateTimestamp":0,"maxOffset":3,"minOffset":0}},"topicPutTps":0.0}"#;
        assert_eq!(stats.encode(), text.as_bytes());
        assert_eq!(decode::<TopicStatsTable>(text.as_bytes()).unwrap().offset_table, stats.offset_table);
        assert!(decode::<TopicStatsTable>(br#"{"offsetTable":{"x":{}}}"#).is_err());
    }

    #[test]
    fn resets_and_statuses() {
        let text = r#"{"offsetTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5}}"#;
        let reset = ResetOffsets { offset_table: [(queue(), 5)].into() };
        assert_eq!(reset.encode(), text.as_bytes());
        assert_eq!(decode::<ResetOffsets>(text.as_bytes()), Ok(reset));
        let text = r#"{"consumerTable":{},"messageQueueTable":{{"brokerName":"b","queueId":0,"topic":"T"}:5}}"#;
        let status: ClientStatus = decode(text.as_bytes()).unwrap();
        assert_eq!(status.message_queue_table, [(queue(), 5)].into());
        let all = GroupStatus { consumer_table: [("c".to_owned(), status.message_queue_table)].into() };
        let text = r#"{"consumerTable":{"c":{{"brokerName":"b","queueId":0,"topic":"T"}:5}},"messageQueueTable":{}}"#;
        assert_eq!(all.encode(), text.as_bytes());
    }

    #[test]
    fn locks() {
        // The Go client leaves onlyThisBroker out.
        let text = r#"{"clientId":"c","consumerGroup":"g","mqSet":[{"brokerName":"b","queueId":0,"topic":"T"}]}"#;
        let lock: LockBatch = decode(text.as_bytes()).unwrap();
        assert_eq!((lock.mq_set.as_slice(), lock.only_this_broker), (&[queue()][..], false));
        let answer = LockAnswer { queues: lock.mq_set };
        let text = r#"{"lockOKMQSet":[{"brokerName":"b","queueId":0,"topic":"T"}]}"#;
        assert_eq!(encode(&answer), text.as_bytes());
    }
}
