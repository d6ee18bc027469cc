//! Handles by which timer messages are recalled (PROTOCOL 4.10): `v1 topic broker time unique-id` in Base64 for
//! URLs, as RocketMQ's `RecallMessageHandle` writes them.

use crate::base64::Base64;
use crate::ids::key_hash;

const VERSION: &str = "v1";

/// What a handle says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecallHandle {
    /// The message's topic.
    pub topic: String,
    /// The broker that holds it.
    pub broker_name: String,
    /// When it is due, ms since 1970; `None`: what stands there is no number.
    pub due_ms: Option<u64>,
    /// Its unique id.
    pub unique: String,
}

impl RecallHandle {
    /// Reads a handle. `None`: it is none.
    pub fn parse(text: &str) -> Option<RecallHandle> {
        let text = String::from_utf8(Base64::Url.decode(text)?).ok()?;
        let mut words = text.split(' ');
        let mut word = || words.next().map(str::to_owned);
        word().filter(|version| version == VERSION)?;
        let (topic, broker_name, due_ms, unique) = (word()?, word()?, word()?, word()?);
        Some(RecallHandle { topic, broker_name, due_ms: due_ms.parse().ok(), unique })
    }

    /// What a broker finds the message by while it waits. Logs hold it: it never changes. Never 0.
    pub fn key(topic: &str, unique: &str, due_ms: u64) -> u32 {
        let mixed = key_hash(topic, unique) ^ due_ms.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed ^ mixed >> 32) as u32).max(1)
    }

    /// Writes the handle of a message.
    pub fn text(topic: &str, broker_name: &str, due_ms: u64, unique: &str) -> String {
        Base64::Url.encode(format!("{VERSION} {topic} {broker_name} {due_ms} {unique}").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_rocketmqs() {
        // Appendix C, vector 9.
        let unique = "7F000001000118B4AAC2000000000000";
        let text = RecallHandle::text("T", "broker-a", 1_700_000_000_001, unique);
        let golden = "djEgVCBicm9rZXItYSAxNzAwMDAwMDAwMDAxIDdGMDAwMDAxMDAwMTE4QjRBQUMyMDAwMDAwMDAwMDAw";
        assert_eq!(text, golden);
        let handle = RecallHandle::parse(&text).expect("ours");
        assert_eq!((&*handle.topic, &*handle.broker_name, &*handle.unique), ("T", "broker-a", unique));
        assert_eq!(handle.due_ms, Some(1_700_000_000_001));
        assert_eq!(RecallHandle::key("T", unique, 1_700_000_000_001), 0x5037_1fc8);
    }

    #[test]
    fn what_is_no_handle_is_none() {
        for text in ["", "v1", "v0 T b 1 u", "v1 T b 1", "v1  "] {
            assert_eq!(RecallHandle::parse(&Base64::Url.encode(text.as_bytes())), None, "{text}");
        }
        for text in ["djEgVCBiIDEgd", "é", "djEgVCBiIDEgdQ===", "djEg VCBiIDEgdQ", "+/+/", "gICA"] {
            assert_eq!(RecallHandle::parse(text), None, "{text}");
        }
        let odd = RecallHandle::parse(&Base64::Url.encode(b"v1 T b soon u more")).expect("Java takes it, too");
        assert_eq!((odd.due_ms, &*odd.unique), (None, "u"));
    }
}
