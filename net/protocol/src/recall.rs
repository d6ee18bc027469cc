//! Handles by which timer messages are recalled (PROTOCOL 4.10): `v1 topic broker time unique-id` in Base64 for
//! URLs, as RocketMQ's `RecallMessageHandle` writes them.

use crate::ids::key_hash;

const VERSION: &str = "v1";
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

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
        let text = String::from_utf8(decode(text)?).ok()?;
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
        encode(format!("{VERSION} {topic} {broker_name} {due_ms} {unique}").as_bytes())
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let padded = [0, piece[0], piece.get(1).copied().unwrap_or(0), piece.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes(padded);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= piece.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

/// As Java's URL decoder: the padding may be missing.
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').as_bytes();
    if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for piece in digits.chunks(4) {
        let mut bits = 0u32;
        for digit in piece {
            let value = DIGITS.iter().position(|known| known == digit)? as u32;
            bits = bits << 6 | value;
        }
        bits <<= 6 * (4 - piece.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..piece.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

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
            assert_eq!(RecallHandle::parse(&encode(text.as_bytes())), None, "{text}");
        }
        for text in ["djEgVCBiIDEgd", "é", "djEgVCBiIDEgdQ===", "djEg VCBiIDEgdQ", "+/+/", "gICA"] {
            assert_eq!(RecallHandle::parse(text), None, "{text}");
        }
        let odd = RecallHandle::parse(&encode(b"v1 T b soon u more")).expect("Java takes it, too");
        assert_eq!((odd.due_ms, &*odd.unique), (None, "u"));
        let mut noise = Noise::new(7);
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).map(|_| noise.next() as u8).collect();
            let text = encode(&bytes);
            assert_eq!(decode(&text).as_deref(), Some(&*bytes));
            assert_eq!(decode(text.trim_end_matches('=')).as_deref(), Some(&*bytes));
        }
    }
}
