//! Names with a meaning, the rules that names obey, and the bits of flags and permissions.

use std::fmt;

/// Longest topic. A stored record of the usual form keeps the length in a signed byte.
pub const TOPIC_BYTES_MAX: usize = 127;
/// Longest retry or dead-letter topic, which carries a group's name behind a prefix.
pub const RETRY_TOPIC_BYTES_MAX: usize = 255;
/// Longest group.
pub const GROUP_BYTES_MAX: usize = 120;

/// Before a group: the topic of its messages that wait for another try.
pub const RETRY_PREFIX: &str = "%RETRY%";
/// Before a group: the topic of its messages that failed for good.
pub const DLQ_PREFIX: &str = "%DLQ%";
/// Before the names of RocketMQ's own topics.
pub const SYSTEM_PREFIX: &str = "rmq_sys_";
/// Light queues: topics of one queue that no NameServer knows (PROTOCOL 4.17).
pub const LMQ_PREFIX: &str = "%LMQ%";
/// Before the names of RocketMQ's own groups.
pub const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";

/// The template for topics created by a first send; must be in the route table for that to work.
pub const DEFAULT_TOPIC: &str = "TBW102";
/// Exists on every broker.
pub const SELF_TEST_TOPIC: &str = "SELF_TEST_TOPIC";
/// Exists on every broker, with 1024 queues.
pub const BENCHMARK_TOPIC: &str = "BenchmarkTest";
/// Exists on every broker.
pub const OFFSET_MOVED_EVENT_TOPIC: &str = "OFFSET_MOVED_EVENT";
/// Messages of the delay levels.
pub const SCHEDULE_TOPIC: &str = "SCHEDULE_TOPIC_XXXX";
/// Message traces.
pub const TRACE_TOPIC: &str = "RMQ_SYS_TRACE_TOPIC";
/// Half messages of transactions.
pub const TRANS_HALF_TOPIC: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
/// Marks of ended transactions.
pub const TRANS_OP_HALF_TOPIC: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
/// Transactions given up on.
pub const TRANS_CHECK_MAX_TIME_TOPIC: &str = "TRANS_CHECK_MAX_TIME_TOPIC";

/// Consumer groups that exist without being created.
pub const BUILT_IN_GROUPS: [&str; 8] = [
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    "CID_RMQ_SYS_TRANS",
];

/// The key-value namespace in which a NameServer keeps the queues of order topics.
pub const ORDER_TOPIC_NAMESPACE: &str = "ORDER_TOPIC_CONFIG";
/// Id of a broker that takes writes.
pub const MASTER_ID: i64 = 0;

/// Ext fields outside any header class.
pub mod ext {
    /// Of a send's answer: the broker's region.
    pub const MSG_REGION: &str = "MSG_REGION";
    /// Of a send's answer: whether clients trace.
    pub const TRACE_ON: &str = "TRACE_ON";
    /// Of code 12: the key is a unique id.
    pub const UNIQUE_KEY_QUERY: &str = "_UNIQUE_KEY_QUERY";
    /// Of a heartbeat's answer: we understand fingerprints.
    pub const IS_SUPPORT_HEART_BEAT_V2: &str = "IS_SUPPORT_HEART_BEAT_V2";
    /// Of a heartbeat's answer: send the full one again.
    pub const IS_SUB_CHANGE: &str = "IS_SUB_CHANGE";
}

/// What a query (12) looks for (`MessageConst`).
pub mod index_type {
    /// Messages with a key.
    pub const KEY: &str = "K";
    /// Messages with a tag.
    pub const TAG: &str = "T";
}

/// Permission bits of topics and brokers.
pub mod perm {
    /// Topics created by a first send inherit from this one.
    pub const INHERIT: i32 = 1;
    /// Producers may send.
    pub const WRITE: i32 = 2;
    /// Consumers may pull.
    pub const READ: i32 = 4;
    /// No meaning in today's RocketMQ.
    pub const PRIORITY: i32 = 8;

    /// Whether consumers may pull.
    pub fn readable(perm: i32) -> bool {
        perm & READ != 0
    }

    /// Whether producers may send.
    pub fn writeable(perm: i32) -> bool {
        perm & WRITE != 0
    }

    /// Whether new topics inherit.
    pub fn inherited(perm: i32) -> bool {
        perm & INHERIT != 0
    }

    /// Whether mqadmin may set it (PermName.isValid).
    pub fn valid(perm: i32) -> bool {
        (0..PRIORITY).contains(&perm)
    }
}

/// Bits of a message's sysFlag (PROTOCOL 3.3).
pub mod sys_flag {
    /// The transaction's state.
    pub const TRANSACTION_MASK: i32 = 0xc;
    /// A half message.
    pub const TRANSACTION_PREPARED: i32 = 0x4;
    /// A committed one.
    pub const TRANSACTION_COMMIT: i32 = 0x8;
    /// A rolled back one.
    pub const TRANSACTION_ROLLBACK: i32 = 0xc;
    /// bornHost has 16 address bytes.
    pub const BORN_HOST_V6: i32 = 0x10;
    /// storeHost has 16 address bytes.
    pub const STORE_HOST_V6: i32 = 0x20;
    /// Clients split this record into several messages.
    pub const NEED_UNWRAP: i32 = 0x40;
    /// One record of several messages.
    pub const INNER_BATCH: i32 = 0x80;
}

/// Bits of a pull's sysFlag.
pub mod pull_flag {
    /// `commitOffset` is to be stored.
    pub const COMMIT_OFFSET: i32 = 1;
    /// The pull may be parked until a message comes.
    pub const SUSPEND: i32 = 2;
    /// The header carries the subscription.
    pub const SUBSCRIPTION: i32 = 4;
    /// A lite pull.
    pub const LITE: i32 = 16;
}

/// Bits of a topic's topicSysFlag.
pub mod topic_flag {
    /// It has subscriptions from units.
    pub const UNIT_SUB: i32 = 2;
}

/// Why a name is refused. Prints what a Java broker answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Empty or blank.
    Blank,
    /// Other characters than `%`, `|`, letters, digits, `_` and `-`.
    Illegal,
    /// Longer than its maximum, in bytes.
    Long(usize),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::Blank => write!(f, "the specified name is blank"),
            NameError::Illegal => {
                write!(f, "the specified name contains illegal characters, allowing only ^[%|a-zA-Z0-9_-]+$")
            }
            NameError::Long(max) => write!(f, "the specified name is longer than {max}"),
        }
    }
}

impl std::error::Error for NameError {}

/// Whether a topic may exist under this name (TopicValidator.validateTopic).
pub fn check_topic(topic: &str) -> Result<(), NameError> {
    let is_long = topic.starts_with(RETRY_PREFIX) || topic.starts_with(DLQ_PREFIX);
    check(topic, if is_long { RETRY_TOPIC_BYTES_MAX } else { TOPIC_BYTES_MAX })
}

/// Whether a group may exist under this name.
pub fn check_group(group: &str) -> Result<(), NameError> {
    check(group, GROUP_BYTES_MAX)
}

fn check(name: &str, bytes_max: usize) -> Result<(), NameError> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-');
    if name.trim_ascii().is_empty() {
        Err(NameError::Blank)
    } else if name.len() > bytes_max {
        Err(NameError::Long(bytes_max))
    } else if !name.bytes().all(is_legal) {
        Err(NameError::Illegal)
    } else {
        Ok(())
    }
}

/// The topic of a group's messages that wait for another try.
pub fn retry_topic(group: &str) -> String {
    format!("{RETRY_PREFIX}{group}")
}

/// Where messages of `topic` that a group popped in vain come again.
pub fn pop_retry_topic(out: &mut String, group: &str, topic: &str, is_v2: bool) {
    for part in [RETRY_PREFIX, group, if is_v2 { "+" } else { "_" }, topic] {
        out.push_str(part);
    }
}

/// Whether messages of a topic that exists may come again in a topic of this name: what is of pop's second form has a plus
/// sign between two names, and what is of a lite topic has its dollars.
pub fn check_pop_retry(name: &str) -> Result<(), NameError> {
    check(&name.replacen('+', "_", 1).replace('$', "_"), RETRY_TOPIC_BYTES_MAX)
}

/// Whose messages of `topic` come again in the topic `name` after they were popped in vain, by its name, and whether
/// that is of pop's second form. `None`: of no group. What is of the first form may be the retry topic of a group, too:
/// `%RETRY%a_T` is also where failed messages of group `a_T` come again.
pub fn group_of_pop_retry_topic<'a>(name: &'a str, topic: &str) -> Option<(&'a str, bool)> {
    let rest = name.strip_prefix(RETRY_PREFIX)?.strip_suffix(topic)?;
    let (group, is_v2) =
        rest.strip_suffix('+').map_or_else(|| (rest.strip_suffix('_'), false), |group| (Some(group), true));
    group.filter(|group| !group.is_empty()).map(|group| (group, is_v2))
}

/// The topic of a group's messages that failed for good.
pub fn dlq_topic(group: &str) -> String {
    format!("{DLQ_PREFIX}{group}")
}

/// The group of a retry topic; in pop's second form (`%RETRY%group+topic`) what stands before the
/// plus sign.
pub fn group_of_retry_topic(topic: &str) -> Option<&str> {
    let rest = topic.strip_prefix(RETRY_PREFIX)?;
    Some(rest.split_once('+').map_or(rest, |(group, _)| group))
}

/// The group whose retry topic or dead letters this is.
pub fn group_of_returned(topic: &str) -> Option<&str> {
    topic.strip_prefix(RETRY_PREFIX).or_else(|| topic.strip_prefix(DLQ_PREFIX))
}

/// Whether this is the name of a light queue.
#[inline]
pub fn is_lmq(name: &str) -> bool {
    name.starts_with(LMQ_PREFIX)
}

/// The light queue of a lite topic (5.5), which is a name below a topic.
pub fn lite_queue(topic: &str, lite: &str) -> String {
    format!("{LMQ_PREFIX}${topic}${lite}")
}

/// Whether a light queue may have this name: a topic's, or a lite topic's, which has dollars in it.
pub fn check_lmq(name: &str) -> Result<(), NameError> {
    check(&name.replace('$', "_"), TOPIC_BYTES_MAX)
}

/// Whether messages of this topic may go to light queues too.
pub fn allows_lmq(topic: &str) -> bool {
    let is_ours = [RETRY_PREFIX, DLQ_PREFIX, SYSTEM_PREFIX].iter().any(|prefix| topic.starts_with(prefix));
    !is_ours && topic != SCHEDULE_TOPIC
}

/// The topic of replies in a cluster.
pub fn reply_topic(cluster: &str) -> String {
    format!("{cluster}_REPLY_TOPIC")
}

/// The topic in which pop consumption keeps its check points.
pub fn revive_topic(cluster: &str) -> String {
    format!("rmq_sys_REVIVE_LOG_{cluster}")
}

/// The topic through which brokers of one name find each other.
pub fn member_topic(broker: &str) -> String {
    format!("rmq_sys_SYNC_BROKER_MEMBER_{broker}")
}

/// Topics that mqadmin may neither change nor delete. A broker adds its own name, its cluster's
/// and the reply topic.
pub fn is_system_topic(topic: &str) -> bool {
    const TOPICS: [&str; 9] = [
        DEFAULT_TOPIC,
        SCHEDULE_TOPIC,
        BENCHMARK_TOPIC,
        TRANS_HALF_TOPIC,
        TRACE_TOPIC,
        TRANS_OP_HALF_TOPIC,
        TRANS_CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_EVENT_TOPIC,
    ];
    topic.starts_with(SYSTEM_PREFIX) || TOPICS.contains(&topic)
}

/// Topics that clients may not send to: answered 16 (PROTOCOL 4.1, item 6).
pub fn is_closed_topic(topic: &str) -> bool {
    const TOPICS: [&str; 6] = [
        SCHEDULE_TOPIC,
        TRANS_HALF_TOPIC,
        TRANS_OP_HALF_TOPIC,
        TRANS_CHECK_MAX_TIME_TOPIC,
        SELF_TEST_TOPIC,
        OFFSET_MOVED_EVENT_TOPIC,
    ];
    TOPICS.contains(&topic)
}

/// Groups of RocketMQ's own tools and servers, besides its system groups, that pull without saying so before.
const TOOL_GROUPS: [&str; 3] = ["DEFAULT_CONSUMER", "SCHEDULE_CONSUMER", "__MONITOR_CONSUMER"];

/// Groups that pull also where consumers that pull are rejected (RocketMQ's `isSysConsumerGroupPullMessage`).
pub fn may_always_pull(group: &str) -> bool {
    is_system_group(group) || TOOL_GROUPS.contains(&group)
}

/// Groups of RocketMQ itself.
pub fn is_system_group(group: &str) -> bool {
    group.starts_with(SYSTEM_GROUP_PREFIX) || BUILT_IN_GROUPS.contains(&group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_obey_the_rules() {
        let long = |prefix: &str, bytes: usize| format!("{prefix}{}", "x".repeat(bytes - prefix.len()));
        let cases = [
            ("T".to_owned(), Ok(())),
            ("%RETRY%a-b_c|D9".to_owned(), Ok(())),
            (String::new(), Err(NameError::Blank)),
            ("  ".to_owned(), Err(NameError::Blank)),
            ("a b".to_owned(), Err(NameError::Illegal)),
            ("a.b".to_owned(), Err(NameError::Illegal)),
            ("名".to_owned(), Err(NameError::Illegal)),
            (long("", 127), Ok(())),
            (long("", 128), Err(NameError::Long(127))),
            (long("%RETRY%", 255), Ok(())),
            (long("%DLQ%", 256), Err(NameError::Long(255))),
        ];
        for (topic, wanted) in cases {
            assert_eq!(check_topic(&topic), wanted, "{topic}");
        }
        assert_eq!(check_group(&long("", 120)), Ok(()));
        assert_eq!(check_group(&long("", 121)), Err(NameError::Long(120)));
    }

    #[test]
    fn retry_topics_know_their_group() {
        assert_eq!(group_of_retry_topic(&retry_topic("g")), Some("g"));
        assert_eq!(group_of_retry_topic("%RETRY%g+T"), Some("g"));
        assert_eq!(group_of_retry_topic(&dlq_topic("g")), None);
    }

    #[test]
    fn pops_retry_topics_know_their_group_if_the_topic_is_known() {
        let rows = [
            ("%RETRY%g+T", "T", Some(("g", true))),
            ("%RETRY%g_T", "T", Some(("g", false))),
            ("%RETRY%a_b_T", "T", Some(("a_b", false))),
            ("%RETRY%a_b_T", "b_T", Some(("a", false))),
            ("%RETRY%gT", "T", None),
            ("%RETRY%_T", "T", None),
            ("%RETRY%T", "T", None),
            ("%DLQ%g_T", "T", None),
            ("g_T", "T", None),
        ];
        for (name, topic, wanted) in rows {
            assert_eq!(group_of_pop_retry_topic(name, topic), wanted, "{name} of {topic}");
        }
        for is_v2 in [false, true] {
            let mut name = String::new();
            pop_retry_topic(&mut name, "g", "T", is_v2);
            assert_eq!(group_of_pop_retry_topic(&name, "T"), Some(("g", is_v2)));
        }
    }

    #[test]
    fn system_names_are_known() {
        assert!(is_system_topic("TBW102") && is_system_topic(&revive_topic("C")));
        assert!(!is_system_topic("T") && !is_system_topic("%RETRY%g"));
        assert!(is_closed_topic(SCHEDULE_TOPIC) && !is_closed_topic(DEFAULT_TOPIC));
        assert!(is_system_group("CID_RMQ_SYS_TRANS") && !is_system_group("g"));
        assert!(["TOOLS_CONSUMER", "DEFAULT_CONSUMER", "CID_RMQ_SYS_x"].iter().all(|group| may_always_pull(group)));
        assert!(!may_always_pull("g") && !may_always_pull("DEFAULT_PRODUCER"));
        assert!(perm::valid(6) && perm::valid(0) && !perm::valid(8) && !perm::valid(-1));
    }
}
