//! Bodies in JSON (PROTOCOL 3.9 to 3.14).
//!
//! They are read as fastjson reads them: unknown members are ignored, missing ones and nulls give
//! the default, and keys of objects may be bare (`{0:"addr"}`) or objects themselves
//! (`{{"topic":…}:{…}}`); `lenient` turns these into legal JSON first. They are written compact,
//! with quoted keys in alphabetical order, absent members left out; every stock client reads that.

use std::fmt;

use serde::de::DeserializeOwned;

mod client;
mod group;
mod lenient;
mod pop;
mod queue;
mod register;
mod route;

pub use client::*;
pub use group::*;
pub use pop::*;
pub use queue::*;
pub use register::*;
pub use route::*;

/// Why a body cannot be read. Prints the reason for a remark or a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// Not UTF-8.
    Utf8,
    /// Nested deeper than `DEPTH_MAX`, or an object as a key inside one.
    Depth,
    /// At byte `at` something stands that even fastjson refuses.
    Syntax {
        /// Byte position in the body.
        at: usize,
    },
    /// More than [`ENTRIES_MAX`] objects and elements of lists.
    Entries,
    /// Legal JSON of another shape; the reason in words.
    Shape(String),
    /// A compressed body does not unpack, or its lengths disagree.
    Packing,
    /// A compressed body unpacks to more than `UNPACKED_BYTES_MAX`.
    Large,
}

pub use lenient::{DEPTH_MAX, ENTRIES_MAX};

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Utf8 => write!(f, "body is not UTF-8"),
            BodyError::Depth => write!(f, "body nests deeper than {DEPTH_MAX}"),
            BodyError::Syntax { at } => write!(f, "body is not JSON at byte {at}"),
            BodyError::Entries => write!(f, "body has more than {ENTRIES_MAX} entries"),
            BodyError::Shape(reason) => write!(f, "body does not fit: {reason}"),
            BodyError::Packing => write!(f, "compressed body does not unpack"),
            BodyError::Large => write!(f, "compressed body is more than {UNPACKED_BYTES_MAX} bytes"),
        }
    }
}

impl std::error::Error for BodyError {}

/// Reads a body.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BodyError> {
    let legal = lenient::to_legal(bytes)?;
    serde_json::from_slice(&legal).map_err(|error| BodyError::Shape(error.to_string()))
}

/// Writes a body. `ConsumeStats` and `TopicStatsTable` have an `encode` of their own: JSON has no
/// words for their maps.
pub fn encode<T: serde::Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).expect("our bodies have string keys and finite numbers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn errors_name_what_is_wrong() {
        let cases: [(&[u8], &str); 4] = [
            (b"\xff", "body is not UTF-8"),
            (
                b"{\"topicList\":3}",
                "body does not fit: invalid type: integer `3`, expected a sequence at line 1 column 14",
            ),
            (b"", "body is not JSON at byte 0"),
            (b"{\"topicList\":[\"a\"]", "body is not JSON at byte 18"),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(decode::<TopicList>(bytes).unwrap_err().to_string(), wanted);
        }
    }

    #[test]
    fn small_entries_do_not_become_much_memory() {
        let acks = |count: usize| {
            let entries = vec!["{}"; count].join(",");
            decode::<BatchAcks>(format!(r#"{{"acks":[{entries}]}}"#).as_bytes())
        };
        assert_eq!(acks(ENTRIES_MAX - 2).map(|batch| batch.acks.len()), Ok(ENTRIES_MAX - 2));
        assert_eq!(acks(ENTRIES_MAX), Err(BodyError::Entries));
        // Wherever they stand.
        let subscriptions = vec!["{}"; 1_000].join(",");
        let consumer = format!(r#"{{"subscriptionDataSet":[{subscriptions}]}}"#);
        let consumers = |count: usize| {
            let consumers = vec![consumer.as_str(); count].join(",");
            decode::<HeartbeatData>(format!(r#"{{"consumerDataSet":[{consumers}]}}"#).as_bytes())
        };
        assert_eq!(consumers(2).map(|data| data.consumer_data_set.len()), Ok(2));
        assert_eq!(consumers(ENTRIES_MAX / 1_000 + 1), Err(BodyError::Entries));
        let names = vec!["7"; ENTRIES_MAX + 1].join(",");
        assert_eq!(decode::<LockBatch>(format!(r#"{{"x":[{names}]}}"#).as_bytes()), Err(BodyError::Entries));
    }

    #[test]
    fn damaged_bodies_never_panic() {
        let text = br#"{"offsetTable":{{"brokerName":"b\u00e9","queueId":0,"topic":"T"}:{"brokerOffset":10}},"x":[{0:null,"y":[1,-2.5e3]},"\\"]}"#;
        assert!(decode::<ConsumeStats>(text).is_ok());
        let mut noise = Noise::new(23);
        for _ in 0..20_000 {
            let mut damaged = text.to_vec();
            for _ in 0..1 + noise.below(4) {
                let at = noise.below(damaged.len());
                damaged[at] = if noise.below(2) == 0 { noise.next() as u8 } else { text[noise.below(text.len())] };
            }
            let _ = decode::<ConsumeStats>(&damaged);
            let _ = decode::<serde_json::Value>(&damaged);
            let _ = decode::<HeartbeatData>(&damaged[..noise.below(damaged.len())]);
        }
    }
}
