//! `ringmq log dump`: messages and small state as JSON lines.

use std::io::{self, Write};
use std::ops::ControlFlow;

use clap::{Args, ValueEnum};
use engine::format::{Kind, Position, RecordHeader};
use engine::inspect::{Change, Fact, Inspector, Sight, facts};
use protocol::base64::Base64;
use protocol::ids::OffsetId;
use protocol::properties::{self, name};
use protocol::{MessageError, StoredMessage};
use serde_json::{Map, Value, json};

use super::{Done, Failure, Place, Store, tell, time};
use crate::catalog::{offset_value, split_offset_key};

pub(super) const HELP: &str = "\
Examples:
  ringmq log dump --topic orders --limit 10             the oldest ten
  ringmq log dump --topic orders --queue 3 --offset 700 from an offset on
  ringmq log dump --key 7F00000100002A9F0000000000000000 by a key, or the client's unique id
  ringmq log dump --position 281474976719872            the message at a position, or of a message id
  ringmq log dump --from-time 2026-11-23T21:00 --to-time 2026-11-23T21:05 --body none
  ringmq log dump --facts                               changes of topics, groups and consumer offsets
  ringmq log dump /var/lib/ringmq | jq -r .body

Several selections narrow each other. --position reads one segment, --from-time begins at the segment of that
time; all others read the log from its oldest message on, and --limit ends that early.";

/// A batch waits this long at most before it is closed, by far. 60 s.
const CLOSING_MS: u64 = 60_000;

#[derive(Args)]
pub(super) struct DumpArgs {
    #[command(flatten)]
    place: Place,
    /// The message at this position (RocketMQ's physical offset), or with this message id
    #[arg(long, value_name = "N", value_parser = position)]
    position: Option<Position>,
    /// Of this topic
    #[arg(long, value_name = "NAME", conflicts_with = "facts")]
    topic: Option<String>,
    /// Of this queue of it
    #[arg(long, value_name = "N", requires = "topic")]
    queue: Option<u32>,
    /// From this offset of it on
    #[arg(long, value_name = "N", requires = "queue")]
    offset: Option<u64>,
    /// With this key, or this unique id
    #[arg(long, value_name = "KEY", conflicts_with = "facts")]
    key: Option<String>,
    /// Stored at this time (UTC) or later
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    from_time: Option<u64>,
    /// Stored before this time
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    to_time: Option<u64>,
    /// End behind so many lines
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print changes of small state instead of messages
    #[arg(long)]
    facts: bool,
    /// How bodies are printed; those that are no text are in base64 in any case
    #[arg(long, value_name = "FORM", default_value = "text")]
    body: Body,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Body {
    Text,
    Base64,
    None,
}

fn position(text: &str) -> Result<Position, String> {
    let number = text.parse().ok().or_else(|| Some(OffsetId::parse(text)?.offset.cast_unsigned()));
    number.filter(|number| *number <= i64::MAX as u64).map(Position).ok_or_else(|| {
        format!("{text:?} is neither a position (a number) nor a message id that names one (32 or 56 hex digits)")
    })
}

/// Prints what was asked for. `false`: damage on the way, or nothing at the position.
pub(super) fn dump(args: &DumpArgs, out: &mut dyn Write) -> Done {
    let mut store = Store::open(&args.place)?;
    if let Some(position) = args.position {
        store.logs.retain(|log| log.partition() == position.partition());
        if store.logs.is_empty() {
            return Err(Failure::Usage(format!(
                "position {} is of partition {}, which is not here",
                position.0,
                position.partition()
            )));
        }
    }
    let (mut printed, mut damages) = (0, 0u64);
    let mut failed = None;
    let mut out = io::BufWriter::new(out);
    let endings = store.walk(
        |log| args.from(log),
        |partition, sight| match sight {
            Sight::Read(_) => ControlFlow::Continue(()),
            Sight::Damage(damage) => {
                // What lies elsewhere is nothing to somebody who asks for one message.
                damages += 1;
                tell(format_args!("{damage}"));
                ControlFlow::Continue(())
            }
            Sight::Batch(batch, _) => {
                if args.is_beyond(batch.header.base, batch.header.closed_ms) {
                    return args.end_of_log();
                }
                for (byte, record, payload) in batch.records() {
                    for line in args.lines(partition, byte, record, payload, batch.header.closed_ms) {
                        if args.limit.is_some_and(|limit| printed >= limit) {
                            return ControlFlow::Break(());
                        }
                        printed += 1;
                        if let Err(error) = writeln!(out, "{line}") {
                            failed = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                }
                if args.limit.is_some_and(|limit| printed >= limit) {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            }
        },
    );
    drop(endings);
    match failed {
        Some(error) => return Err(error.into()),
        None => out.flush()?,
    }
    if let (Some(position), 0) = (args.position, printed) {
        tell(format_args!("ringmq log: no message is at position {}", position.0));
        return Ok(false);
    }
    Ok(damages == 0)
}

impl DumpArgs {
    /// The log byte to begin at.
    fn from(&self, log: &Inspector) -> u64 {
        if let Some(position) = self.position {
            return position.byte();
        }
        // The last segment that begins before that time: all before it is older still.
        let begins = |piece| log.begins_ms(piece).zip(self.from_time).is_some_and(|(begins, from)| begins <= from);
        log.pieces().iter().rev().find(|piece| begins(piece)).map_or(0, |piece| piece.base)
    }

    /// Whether nothing that is wanted comes in this log any more.
    fn is_beyond(&self, base: u64, closed_ms: u64) -> bool {
        self.position.is_some_and(|position| base > position.byte())
            || self.to_time.is_some_and(|to| closed_ms > to.saturating_add(CLOSING_MS))
    }

    /// There may be other logs, unless a position named one.
    fn end_of_log(&self) -> ControlFlow<()> {
        if self.position.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// What is printed of a record.
    fn lines(&self, partition: u16, byte: u64, record: RecordHeader, payload: &[u8], closed_ms: u64) -> Vec<Value> {
        let is_there = |position: Position| (byte..byte + u64::from(record.length).max(1)).contains(&position.byte());
        if self.position.is_some_and(|position| !is_there(position)) {
            return Vec::new();
        }
        let place = Position::pack(partition, byte);
        match record.kind {
            Kind::Facts if self.facts && self.is_time(closed_ms) => {
                facts(payload).map(|fact| fact_line(place, closed_ms, fact)).collect()
            }
            Kind::Message | Kind::Delayed | Kind::Half if !self.facts => match StoredMessage::decode(payload) {
                Ok(message) => {
                    let line = self.is_wanted(&record, &message).then(|| self.message_line(place, &record, &message));
                    line.into_iter().collect()
                }
                Err(error) => vec![broken_line(place, &record, error)],
            },
            _ => Vec::new(),
        }
    }

    fn is_time(&self, ms: u64) -> bool {
        self.from_time.is_none_or(|from| ms >= from) && self.to_time.is_none_or(|to| ms < to)
    }

    fn is_wanted(&self, record: &RecordHeader, message: &StoredMessage<'_>) -> bool {
        let has_key = |key: &String| {
            let words = message.property(name::KEYS).into_iter().flat_map(properties::keys);
            message.property(name::UNIQ_KEY) == Some(key) || words.into_iter().any(|word| word == key)
        };
        self.topic.as_deref().is_none_or(|topic| topic == message.topic)
            && self.queue.is_none_or(|queue| queue == record.queue.queue)
            && self.offset.is_none_or(|offset| record.kind == Kind::Message && record.offsets().end > offset)
            && self.key.as_ref().is_none_or(has_key)
            && self.is_time(message.store_timestamp.cast_unsigned())
    }

    fn message_line(&self, place: Position, record: &RecordHeader, message: &StoredMessage<'_>) -> Value {
        let id = OffsetId { host: message.store_host, offset: place.0.cast_signed() };
        let pairs = properties::iter(message.properties);
        let properties: Map<String, Value> = pairs.map(|(name, value)| (name.to_owned(), value.into())).collect();
        let kind = match record.kind {
            Kind::Message => "message",
            Kind::Half => "half",
            _ => "delayed",
        };
        let mut line = json!({
            "kind": kind,
            "partition": place.partition(),
            "position": place.0,
            "msgId": id.to_string(),
            "topic": message.topic,
            "topicId": record.queue.topic,
            "queueId": record.queue.queue,
        });
        let mut put = |name: &str, value: Value| line[name] = value;
        if record.kind == Kind::Message {
            put("queueOffset", record.offset.into());
            if record.note > 0 {
                put("offsets", (1 + record.note).into());
            }
        } else {
            put("due", time::text(record.offset).into());
        }
        put("stored", time::text(message.store_timestamp.cast_unsigned()).into());
        put("born", time::text(message.born_timestamp.cast_unsigned()).into());
        put("bornHost", message.born_host.to_string().into());
        put("flag", message.flag.into());
        put("sysFlag", message.sys_flag.into());
        put("reconsumeTimes", message.reconsume_times.into());
        put("properties", properties.into());
        put("bodyBytes", message.body.len().into());
        match (self.body, std::str::from_utf8(message.body)) {
            (Body::None, _) => {}
            (Body::Text, Ok(text)) => put("body", text.into()),
            (Body::Text, Err(_)) | (Body::Base64, _) => put("bodyBase64", Base64::Plain.encode(message.body).into()),
        }
        line
    }
}

/// A record whose bytes are as they were written, and yet no message.
fn broken_line(place: Position, record: &RecordHeader, error: MessageError) -> Value {
    json!({
        "kind": "unreadable",
        "partition": place.partition(),
        "position": place.0,
        "topicId": record.queue.topic,
        "queueId": record.queue.queue,
        "queueOffset": record.offset,
        "error": error.to_string(),
    })
}

fn fact_line(place: Position, closed_ms: u64, fact: Fact<'_>) -> Value {
    let mut line = json!({ "kind": "fact", "partition": place.partition(), "written": time::text(closed_ms) });
    match fact {
        Fact::Next(queue, next) => {
            line["nextOffset"] = json!({ "topicId": queue.topic, "queueId": queue.queue, "offset": next });
        }
        Fact::Compacted(queue, upto) => {
            line["compacted"] = json!({ "topicId": queue.topic, "queueId": queue.queue, "upto": upto });
        }
        Fact::Stays(queue, offset, message) => {
            let bytes = message.map(<[u8]>::len);
            line["stays"] =
                json!({ "topicId": queue.topic, "queueId": queue.queue, "queueOffset": offset, "bytes": bytes });
        }
        Fact::Put(key, change) => {
            let value = match change {
                Change::Set(value) => Some(value),
                Change::Delete => None,
                Change::More(from, _, more) => {
                    line["key"] = split_offset_key(key).map_or_else(
                        || text_or_base64(key),
                        |(topic, queue, group)| json!({ "group": group, "topicId": topic, "queueId": queue }),
                    );
                    line["more"] = json!({ "from": from, "bytes": text_or_base64(more) });
                    return line;
                }
            };
            if let Some((topic, queue, group)) = split_offset_key(key) {
                let offset = value.and_then(offset_value);
                line["consumerOffset"] =
                    json!({ "group": group, "topicId": topic, "queueId": queue, "offset": offset });
                return line;
            }
            line["key"] = text_or_base64(key);
            let json = value.and_then(|value| serde_json::from_slice(value).ok());
            line["value"] = json.or_else(|| value.map(text_or_base64)).unwrap_or(Value::Null);
        }
    }
    line
}

fn text_or_base64(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!({ "base64": Base64::Plain.encode(bytes) }), Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_numbers_or_ids() {
        assert_eq!(position("281474976719872"), Ok(Position(281_474_976_719_872)));
        assert_eq!(position("7F00000100002A9F0001000000002000"), Ok(Position::pack(1, 0x2000)));
        for text in ["", "x", "-1", "18446744073709551615", "7F00000100002A9F8001000000002000"] {
            assert!(position(text).is_err(), "{text}");
        }
    }

    #[test]
    fn facts_are_told_in_words() {
        let place = Position::pack(1, 4096);
        let line = |fact: Fact<'_>| {
            let mut line = fact_line(place, 0, fact);
            let line = line.as_object_mut().unwrap();
            assert_eq!(line.remove("partition"), Some(json!(1)));
            assert_eq!(line.remove("written"), Some(json!("1970-01-01T00:00:00.000Z")));
            line.remove("kind");
            Value::from(line.clone()).to_string()
        };
        let offset = crate::catalog::offset_key(3, 7, "g");
        assert_eq!(
            line(Fact::Put(&offset, Change::Set(&9u64.to_be_bytes()))),
            r#"{"consumerOffset":{"group":"g","topicId":3,"queueId":7,"offset":9}}"#
        );
        assert_eq!(line(Fact::Put(b"t/T", Change::Set(b"{\"id\":3}"))), r#"{"key":"t/T","value":{"id":3}}"#);
        assert_eq!(line(Fact::Put(b"t/T", Change::Delete)), r#"{"key":"t/T","value":null}"#);
        assert_eq!(line(Fact::Put(b"x", Change::Set(&[0xff]))), r#"{"key":"x","value":{"base64":"/w=="}}"#);
        assert_eq!(
            line(Fact::Put(&offset, Change::More(8, 0, b"b"))),
            r#"{"key":{"group":"g","topicId":3,"queueId":7},"more":{"from":8,"bytes":"b"}}"#
        );
        let queue = engine::format::QueueKey { topic: 1, queue: 2 };
        assert_eq!(line(Fact::Next(queue, 5)), r#"{"nextOffset":{"topicId":1,"queueId":2,"offset":5}}"#);
        assert_eq!(line(Fact::Compacted(queue, Some(5))), r#"{"compacted":{"topicId":1,"queueId":2,"upto":5}}"#);
        assert_eq!(
            line(Fact::Stays(queue, 4, Some(b"xyz"))),
            r#"{"stays":{"topicId":1,"queueId":2,"queueOffset":4,"bytes":3}}"#
        );
        assert_eq!(
            line(Fact::Stays(queue, 4, None)),
            r#"{"stays":{"topicId":1,"queueId":2,"queueOffset":4,"bytes":null}}"#
        );
    }
}
