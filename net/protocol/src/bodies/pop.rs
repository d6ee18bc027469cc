//! Bodies of pop consumption (PROTOCOL 3.17).

use std::collections::BTreeMap;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{MessageModel, MessageQueue};
use crate::base64::Base64;

/// BATCH_ACK_MESSAGE (200151).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchAcks {
    /// Messages of one loan each.
    pub acks: Vec<BatchAck>,
    /// The broker that lent them.
    pub broker_name: String,
}

/// Messages that were popped together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchAck {
    /// Which: bit `i` is offset `start_offset + i`.
    #[serde(rename = "b", alias = "bitSet")]
    pub bits: BitSet,
    /// The group.
    #[serde(rename = "c", alias = "consumerGroup")]
    pub consumer_group: String,
    /// For how long they were given, in ms.
    #[serde(rename = "it", alias = "invisibleTime")]
    pub invisible_time: i64,
    /// When they were given, in ms since 1970.
    #[serde(rename = "pt", alias = "popTime")]
    pub pop_time: i64,
    /// The queue.
    #[serde(rename = "q", alias = "queueId")]
    pub queue_id: i32,
    /// `0`: of the topic; `1`, `2`: of its retry topic of that version.
    #[serde(rename = "r", alias = "retry")]
    pub retry: String,
    /// 999: they are orderly.
    #[serde(rename = "rq", alias = "reviveQueueId")]
    pub revive_queue_id: i32,
    /// The first offset that was given.
    #[serde(rename = "so", alias = "startOffset")]
    pub start_offset: i64,
    /// The topic that was asked for.
    #[serde(rename = "t", alias = "topic")]
    pub topic: String,
}

/// Java's `BitSet`: bytes, lowest bits first, as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitSet(pub Vec<u8>);

impl BitSet {
    /// With these bits.
    pub fn of(bits: impl IntoIterator<Item = usize>) -> BitSet {
        let mut bytes = Vec::new();
        for bit in bits {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
        BitSet(bytes)
    }

    /// Whether bit `index` is set.
    pub fn get(&self, index: u64) -> bool {
        let byte = usize::try_from(index / 8).ok().and_then(|at| self.0.get(at));
        byte.is_some_and(|byte| byte & 1 << (index % 8) != 0)
    }
}

impl Serialize for BitSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Base64::Plain.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for BitSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BitSet, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        Base64::Plain.decode(&text).map(BitSet).ok_or_else(|| D::Error::custom("not base64"))
    }
}

/// How clients get a topic's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the names are RocketMQ's")]
pub enum RequestMode {
    #[default]
    Pull,
    Pop,
}

/// SET_MESSAGE_REQUEST_MODE (401), and what 402 lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SetRequestMode {
    /// The group.
    pub consumer_group: String,
    /// How it gets messages of this topic.
    pub mode: RequestMode,
    /// Pop: with how many others a client shares its queues; 0 and below: with all.
    pub pop_share_queue_num: i32,
    /// The topic.
    pub topic: String,
}

/// Answer to GET_ALL_MESSAGE_REQUEST_MODE (402): by topic and group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct RequestModes {
    pub message_request_mode_map: BTreeMap<String, BTreeMap<String, SetRequestMode>>,
}

/// QUERY_ASSIGNMENT (400).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryAssignment {
    /// Who asks.
    pub client_id: String,
    /// For which group.
    pub consumer_group: String,
    /// How its members share messages.
    pub message_model: MessageModel,
    /// `AVG` or `AVG_BY_CIRCLE`.
    pub strategy_name: String,
    /// Queues of this topic.
    pub topic: String,
}

/// Answer to 400. `None`: no result, clients keep what they have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the only field is the struct's sentence")]
pub struct Assignments {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_queue_assignments: Option<Vec<Assignment>>,
}

/// One queue that a client works on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Assignment {
    /// The queue; with the id -1, all of its broker's.
    pub message_queue: MessageQueue,
    /// How it gets messages.
    pub mode: RequestMode,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bodies::{decode, encode};

    #[test]
    fn acks_are_written_as_java_writes_them() {
        let text = r#"{"acks":[{"b":"AQI=","c":"g","it":60000,"pt":1700000000000,"q":0,"r":"0","rq":0,"so":100,"t":"T"}],"brokerName":"b"}"#;
        let acks: BatchAcks = decode(text.as_bytes()).unwrap();
        let ack = &acks.acks[0];
        assert_eq!((ack.bits.clone(), ack.start_offset, ack.topic.as_str()), (BitSet::of([0, 9]), 100, "T"));
        assert_eq!([0, 1, 9, 10, 1 << 40].map(|bit| ack.bits.get(bit)), [true, false, true, false, false]);
        assert_eq!(String::from_utf8(encode(&acks)).unwrap(), text);
        let long = br#"{"acks":[{"bitSet":"","consumerGroup":"g","topic":"T","startOffset":7}]}"#;
        let acks: BatchAcks = decode(long).unwrap();
        assert_eq!((acks.acks[0].start_offset, acks.acks[0].bits.get(0)), (7, false));
        assert!(decode::<BatchAcks>(br#"{"acks":[{"b":"A*"}]}"#).is_err());
    }

    #[test]
    fn bit_sets_of_any_length_survive() {
        for length in 0..20 {
            let bits = BitSet::of((0..length).filter(|bit| bit % 3 == 0).map(|bit| bit * 5));
            assert_eq!(decode::<BitSet>(&encode(&bits)), Ok(bits));
        }
        assert_eq!(encode(&BitSet(vec![0xff, 0xfe, 0xfd, 0xfc])), b"\"//79/A==\"");
    }

    #[test]
    fn modes_and_assignments_are_written_as_java_writes_them() {
        let text = r#"{"consumerGroup":"g","mode":"POP","popShareQueueNum":0,"topic":"T"}"#;
        let mode: SetRequestMode = decode(text.as_bytes()).unwrap();
        assert_eq!((mode.mode, String::from_utf8(encode(&mode)).unwrap().as_str()), (RequestMode::Pop, text));
        let asked =
            br#"{"clientId":"c","consumerGroup":"g","messageModel":"CLUSTERING","strategyName":"AVG","topic":"T"}"#;
        assert_eq!(decode::<QueryAssignment>(asked).unwrap().strategy_name, "AVG");
        let queue = MessageQueue { broker_name: "b".into(), queue_id: -1, topic: "T".into() };
        let one = Assignment { message_queue: queue, mode: RequestMode::Pop };
        let text = r#"{"messageQueueAssignments":[{"messageQueue":{"brokerName":"b","queueId":-1,"topic":"T"},"mode":"POP"}]}"#;
        let answer = Assignments { message_queue_assignments: Some(vec![one]) };
        assert_eq!(String::from_utf8(encode(&answer)).unwrap(), text);
        assert_eq!(encode(&Assignments::default()), b"{}");
    }
}
