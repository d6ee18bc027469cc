//! Headers of sending: 10, 310, 320, 324, 325, 36, 370; and of transactions: 37, 39.

use super::{FieldError, Value, headers};
use crate::codes::request;
use crate::fields::Fields;

headers! {
    /// Answer to a send (codes 0, 10, 11 and 12). MSG_REGION and TRACE_ON stand beside it on every
    /// answer, refusals too: `names::ext`.
    SendAnswer<'a> {
        msg_id: &'a str = "msgId",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        transaction_id: Option<&'a str> = "transactionId",
        recall_handle: Option<&'a str> = "recallHandle",
    }

    /// END_TRANSACTION (37).
    EndTransaction<'a> {
        topic: Option<&'a str> = "topic",
        producer_group: &'a str = "producerGroup",
        tran_state_table_offset: i64 = "tranStateTableOffset",
        commit_log_offset: i64 = "commitLogOffset",
        commit_or_rollback: i32 = "commitOrRollback",
        from_transaction_check: bool = "fromTransactionCheck",
        msg_id: &'a str = "msgId",
        transaction_id: Option<&'a str> = "transactionId",
        broker_name: Option<&'a str> = "bname",
    }

    /// CHECK_TRANSACTION_STATE (39).
    CheckTransaction<'a> {
        topic: Option<&'a str> = "topic",
        tran_state_table_offset: i64 = "tranStateTableOffset",
        commit_log_offset: i64 = "commitLogOffset",
        msg_id: Option<&'a str> = "msgId",
        transaction_id: Option<&'a str> = "transactionId",
        offset_msg_id: Option<&'a str> = "offsetMsgId",
        broker_name: Option<&'a str> = "bname",
    }

    /// RECALL_MESSAGE (370).
    RecallMessage<'a> {
        producer_group: Option<&'a str> = "producerGroup",
        topic: &'a str = "topic",
        recall_handle: &'a str = "recallHandle",
        broker_name: Option<&'a str> = "bname",
    }

    /// CONSUMER_SEND_MSG_BACK (36).
    SendBack<'a> {
        offset: i64 = "offset",
        group: &'a str = "group",
        delay_level: i32 = "delayLevel",
        origin_msg_id: Option<&'a str> = "originMsgId",
        origin_topic: Option<&'a str> = "originTopic",
        unit_mode: bool = "unitMode",
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        broker_name: Option<&'a str> = "bname",
    }

    /// PUSH_REPLY_MESSAGE_TO_CLIENT (326). Hosts are `ip:port`.
    PushReply<'a> {
        producer_group: &'a str = "producerGroup",
        topic: &'a str = "topic",
        default_topic: &'a str = "defaultTopic",
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        born_timestamp: i64 = "bornTimestamp",
        flag: i32 = "flag",
        properties: Option<&'a str> = "properties",
        reconsume_times: Option<i32> = "reconsumeTimes",
        unit_mode: bool = "unitMode",
        born_host: &'a str = "bornHost",
        store_host: &'a str = "storeHost",
        store_timestamp: i64 = "storeTimestamp",
    }
}

/// SEND_MESSAGE (10) with long names; SEND_MESSAGE_V2 (310) and SEND_BATCH_MESSAGE (320) with
/// letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendMessage<'a> {
    /// `a`, `producerGroup`.
    pub producer_group: &'a str,
    /// `b`, `topic`.
    pub topic: &'a str,
    /// `c`, `defaultTopic`: the template if the topic must be created.
    pub default_topic: &'a str,
    /// `d`, `defaultTopicQueueNums`.
    pub default_topic_queue_nums: i32,
    /// `e`, `queueId`; negative lets the broker choose.
    pub queue_id: i32,
    /// `f`, `sysFlag`.
    pub sys_flag: i32,
    /// `g`, `bornTimestamp`, milliseconds.
    pub born_timestamp: i64,
    /// `h`, `flag`: the user's own.
    pub flag: i32,
    /// `i`, `properties`; empty if absent.
    pub properties: &'a str,
    /// `j`, `reconsumeTimes`; 0 if absent.
    pub reconsume_times: i32,
    /// `k`, `unitMode`.
    pub unit_mode: bool,
    /// `l`, `maxReconsumeTimes`.
    pub max_reconsume_times: Option<i32>,
    /// `m`, `batch`.
    pub batch: bool,
    /// `n`, `bname`.
    pub broker_name: Option<&'a str>,
}

/// Long names in the order of the letters `a` to `n`.
const NAMES: [&str; 14] = [
    "producerGroup",
    "topic",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "sysFlag",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "unitMode",
    "maxReconsumeTimes",
    "batch",
    "bname",
];
const LETTERS: [&str; 14] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n"];

impl<'a> SendMessage<'a> {
    /// Reads the ext fields of a send with this request code, in one pass over them.
    #[inline(always)]
    pub fn parse(code: i32, fields: &'a Fields) -> Result<SendMessage<'a>, FieldError> {
        match fields.by_letters() {
            Some(next) if is_short(code) => SendMessage::of(next),
            _ => SendMessage::parse_any(code, fields),
        }
    }

    /// The same, of any fields.
    fn parse_any(code: i32, fields: &'a Fields) -> Result<SendMessage<'a>, FieldError> {
        let is_short = is_short(code);
        let mut texts = [None; NAMES.len()];
        for (name, text) in fields.iter() {
            let index = match name.as_bytes() {
                [letter @ b'a'..=b'n'] if is_short => Some(usize::from(letter - b'a')),
                _ if is_short => None,
                _ => NAMES.iter().position(|known| *known == name),
            };
            if let Some(index) = index {
                texts[index] = Some(text);
            }
        }
        SendMessage::of(|letter| texts[letter])
    }

    /// `text`: gives each field's, from the first one on.
    #[inline(always)]
    fn of(mut text: impl FnMut(usize) -> Option<&'a str>) -> Result<SendMessage<'a>, FieldError> {
        Ok(SendMessage {
            producer_group: Value::parse(NAMES[0], text(0))?,
            topic: Value::parse(NAMES[1], text(1))?,
            default_topic: Value::parse(NAMES[2], text(2))?,
            default_topic_queue_nums: Value::parse(NAMES[3], text(3))?,
            queue_id: Value::parse(NAMES[4], text(4))?,
            sys_flag: Value::parse(NAMES[5], text(5))?,
            born_timestamp: Value::parse(NAMES[6], text(6))?,
            flag: Value::parse(NAMES[7], text(7))?,
            properties: text(8).unwrap_or(""),
            reconsume_times: Option::parse(NAMES[9], text(9))?.unwrap_or(0),
            unit_mode: Value::parse(NAMES[10], text(10))?,
            max_reconsume_times: Value::parse(NAMES[11], text(11))?,
            batch: Value::parse(NAMES[12], text(12))?,
            broker_name: text(13),
        })
    }

    /// Writes the ext fields under the names of this request code.
    pub fn push(&self, code: i32, fields: &mut Fields) {
        let names = if is_short(code) { LETTERS } else { NAMES };
        self.producer_group.push(names[0], fields);
        self.topic.push(names[1], fields);
        self.default_topic.push(names[2], fields);
        self.default_topic_queue_nums.push(names[3], fields);
        self.queue_id.push(names[4], fields);
        self.sys_flag.push(names[5], fields);
        self.born_timestamp.push(names[6], fields);
        self.flag.push(names[7], fields);
        self.properties.push(names[8], fields);
        self.reconsume_times.push(names[9], fields);
        self.unit_mode.push(names[10], fields);
        self.max_reconsume_times.push(names[11], fields);
        self.batch.push(names[12], fields);
        self.broker_name.push(names[13], fields);
    }
}

/// Whether a send of this code has letters for names.
#[inline]
fn is_short(code: i32) -> bool {
    matches!(code, request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE | request::SEND_REPLY_MESSAGE_V2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::PREFIX_BYTES;
    use crate::{Header, Serialize, Shapes};

    #[test]
    fn long_and_short_names_mean_the_same() {
        let send = SendMessage {
            producer_group: "p",
            topic: "T",
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: -1,
            sys_flag: 0x301,
            born_timestamp: 1_700_000_000_000,
            flag: i32::MIN,
            properties: "TAGS\u{1}A\u{2}",
            reconsume_times: 3,
            unit_mode: true,
            max_reconsume_times: Some(16),
            batch: true,
            broker_name: Some("broker-a"),
        };
        for code in [10, 310, 320, 324, 325] {
            let mut fields = Fields::default();
            send.push(code, &mut fields);
            assert_eq!(SendMessage::parse(code, &fields), Ok(send), "{code}");
            let other = if is_short(code) { 10 } else { 310 };
            assert_eq!(SendMessage::parse(other, &fields).unwrap_err().name, "producerGroup");
        }
    }

    #[test]
    fn fields_come_in_any_order() {
        let inner = [("a", "g"), ("b", "T"), ("c", "t"), ("d", "4"), ("e", "1"), ("f", "0"), ("g", "9"), ("h", "0")];
        let mut shapes = Shapes::default();
        let mut read = |fields: &[(&str, &str)]| {
            let mut all = Header { code: 310, ..Header::default() };
            all.fields.extend(fields.iter().copied());
            let said = |fields: &Fields| {
                SendMessage::parse(310, fields).map(|send| (send.topic.to_owned(), send.queue_id, send.born_timestamp))
            };
            let mut frame = Vec::new();
            all.encode_frame(&mut frame, 0);
            // Soon by its shape, whatever was read before.
            for _ in 0..20 {
                let mut header = Header::default();
                shapes.decode(&mut header, Serialize::Json, &frame[PREFIX_BYTES..]).unwrap();
                assert_eq!(said(&header.fields), said(&all.fields));
            }
            said(&all.fields)
        };
        let wanted = Ok(("T".to_owned(), 1, 9));
        assert_eq!(read(&inner), wanted);
        let mut turned = inner;
        turned.reverse();
        assert_eq!(read(&turned), wanted);
        for other in [("o", "x"), ("traced", "1"), ("", ""), ("e", "1")] {
            for place in 0..=inner.len() {
                let mut fields = inner.to_vec();
                fields.insert(place, other);
                assert_eq!(read(&fields), wanted, "{other:?} at {place}");
            }
        }
        let twice = [&inner[..], &[("e", "7")]].concat();
        assert_eq!(read(&twice).unwrap().1, 7, "the last one counts");
    }

    #[test]
    fn only_what_java_requires_is_required() {
        let text = |index: usize| if index < 3 { "x" } else { "7" };
        for (gone, name) in NAMES.into_iter().enumerate() {
            let mut fields = Fields::default();
            for index in (0..NAMES.len()).filter(|index| *index != gone) {
                fields.push(LETTERS[index], text(index));
            }
            let error = SendMessage::parse(310, &fields).err().map(|error| error.name);
            assert_eq!(error, (gone < 8).then_some(name));
        }
        for wrong in [3, 4, 5, 6, 7, 9, 11] {
            let mut fields = Fields::default();
            for (index, name) in NAMES.into_iter().enumerate() {
                fields.push(name, if index == wrong { "0x7" } else { text(index) });
            }
            assert_eq!(SendMessage::parse(10, &fields).unwrap_err().name, NAMES[wrong]);
        }
    }
}
