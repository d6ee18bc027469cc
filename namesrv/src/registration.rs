//! What a broker says of itself when it registers, and what it is told.

use std::collections::BTreeMap;
use std::fmt;

use protocol::bodies::{DataVersion, TopicConfig};

/// Longest name of a cluster, broker, zone or topic, and longest address, in bytes. 255: the
/// longest topic (a retry topic) and the longest host name with its port.
pub const NAME_BYTES_MAX: usize = 255;

/// One REGISTER_BROKER, as the door read it.
#[derive(Clone, Debug, Default)]
pub struct Registration<'a> {
    /// Cluster name.
    pub cluster: &'a str,
    /// Broker name: a master and its slaves share it.
    pub broker: &'a str,
    /// 0 for the master.
    pub broker_id: i64,
    /// Where clients reach it, `host:port`.
    pub address: &'a str,
    /// Where its slaves fetch the log, `host:port`.
    pub ha_address: &'a str,
    /// Where it stands; none in most clusters.
    pub zone: Option<&'a str>,
    /// `None`: the broker is too old to know the setting.
    pub acting_master: Option<bool>,
    /// How long it lives without a sign of life, in milliseconds.
    pub timeout_ms: u64,
    /// The connection it came over: when that closes, the broker is gone.
    pub connection: u64,
    /// Version of its topics.
    pub version: DataVersion,
    /// Its topics: all, or those that changed.
    pub topics: BTreeMap<String, TopicConfig>,
    /// The topics are all there are: forget the others (`deleteTopicWithBrokerRegistration`).
    pub is_complete: bool,
}

/// What a slave learns from its registration. Empty for a master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// The master's address for clients.
    pub master_address: Option<String>,
    /// The master's address for slaves.
    pub ha_address: Option<String>,
}

/// Why a registration is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// An unknown broker brought exactly one topic: that is a change report before the full
    /// registration, after which every other topic would seem unchanged. Brokers retry in full.
    Incremental,
    /// A bound is reached, or a name is empty or too long. Says which.
    Bound(String),
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RegisterError::Incremental => f.write_str("register broker failed"),
            RegisterError::Bound(why) => write!(f, "register broker failed: {why}"),
        }
    }
}

impl Registration<'_> {
    /// Whether every name has a length that a table may keep.
    pub(crate) fn check_names(&self) -> Result<(), RegisterError> {
        check_name("cluster", self.cluster)?;
        check_name("broker name", self.broker)?;
        check_name("broker address", self.address)?;
        for (what, text) in [("ha address", self.ha_address), ("zone", self.zone.unwrap_or_default())] {
            if text.len() > NAME_BYTES_MAX {
                return Err(RegisterError::Bound(format!("the {what} is longer than {NAME_BYTES_MAX} bytes")));
            }
        }
        for topic in self.topics.keys() {
            check_name("topic", topic)?;
        }
        Ok(())
    }
}

/// Whether the name of a `what` has a length that a table may keep.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), RegisterError> {
    match name.len() {
        0 => Err(RegisterError::Bound(format!("the {what} is empty"))),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(RegisterError::Bound(format!("the {what} is longer than {NAME_BYTES_MAX} bytes"))),
    }
}
