//! What of the configuration may change while the broker runs (code 25), under the stock broker's names. Changes
//! are a fact in partition 0: they outlive a restart, and outrank the configuration file.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::Settings;
use crate::keys::{POP_SHARE_MAX, POP_UNACKED_MAX};

/// Key of the fact that holds the changes: a JSON object of names and values.
pub const KNOBS_KEY: &[u8] = b"k/";

/// All changes together take at most so many bytes. 64 KiB: all names that a stock broker knows have 13.
const CHANGES_BYTES_MAX: usize = 64 << 10;

/// Every name that a stock broker of 5.5.0 has a setter for (BrokerConfig, MessageStoreConfig, NettyServerConfig,
/// NettyClientConfig, AuthConfig), sorted, one a line.
const STOCK_KEYS: &str = include_str!("stock_keys.txt");

/// Names that a stock broker lets nobody change from afar (its `configBlackList`).
const FORBIDDEN: [&str; 2] = ["brokerConfigPath", "configBlackList"];

/// How a knob turns.
enum Knob {
    /// `true` or `false`, in any case, as Java reads them.
    Switch(fn(&mut Settings) -> &mut bool),
    /// One of two words, in any case: for off and for on.
    Either([&'static str; 2], fn(&mut Settings) -> &mut bool),
    /// A whole number in a range.
    Number { min: u64, max: u64, get: fn(&Settings) -> u64, set: fn(&mut Settings, u64) },
    /// A whole number in a range that begins below zero.
    Signed { min: i32, max: i32, at: fn(&mut Settings) -> &mut i32 },
}

const fn number(min: u64, max: u64, get: fn(&Settings) -> u64, set: fn(&mut Settings, u64)) -> Knob {
    Knob::Number { min, max, get, set }
}

impl Knob {
    /// How a value is kept. `None`: it may not be.
    fn kept(&self, value: &str) -> Option<String> {
        let [off, on] = match self {
            Knob::Switch(_) => SWITCH,
            Knob::Either(words, _) => *words,
            Knob::Number { min, max, .. } => return kept_number(value, *min..=*max),
            Knob::Signed { min, max, .. } => return kept_number(value, *min..=*max),
        };
        [off, on].into_iter().find(|word| word.eq_ignore_ascii_case(value)).map(str::to_owned)
    }

    /// What it takes.
    fn takes(&self) -> String {
        match self {
            Knob::Switch(_) => SWITCH.join(" or "),
            Knob::Either(words, _) => words.join(" or "),
            Knob::Number { min, max, .. } => format!("a whole number from {min} to {max}"),
            Knob::Signed { min, max, .. } => format!("a whole number from {min} to {max}"),
        }
    }
}

fn kept_number<N: FromStr + PartialOrd>(value: &str, range: RangeInclusive<N>) -> Option<String> {
    value.parse().ok().filter(|number| range.contains(number)).map(|_: N| value.to_owned())
}

const SWITCH: [&str; 2] = ["false", "true"];

/// What is in force once the change is answered. Ranges are those of the keys in `keys.rs`.
#[rustfmt::skip]
const KNOBS: &[(&str, Knob)] = &[
    ("appendTopicForTimerDeleteKey", Knob::Switch(|at| &mut at.timer_delete_topic)),
    ("autoCreateSubscriptionGroup", Knob::Switch(|at| &mut at.auto_create_group)),
    ("autoCreateTopicEnable", Knob::Switch(|at| &mut at.auto_create_topic)),
    ("brokerPermission", number(0, 7, |at| at.permission as u64, |at, to| at.permission = to as i32)),
    ("cgColdReadThreshold", number(0, 1 << 50,
        |at| at.cold_read_group_bytes, |at, to| at.cold_read_group_bytes = to)),
    ("channelExpiredTimeout", number(1_000, 3_600_000,
        |at| at.limits.client_timeout_ms, |at, to| at.limits.client_timeout_ms = to)),
    ("clearRetryTopicWhenDeleteTopic", Knob::Switch(|at| &mut at.clear_retry_topics)),
    ("coldCtrStrategyEnable", Knob::Switch(|at| &mut at.cold_flow_adapts)),
    ("coldDataFlowControlEnable", Knob::Switch(|at| &mut at.cold_flow)),
    ("compactionScheduleInternal", number(1_000, 604_800_000,
        |at| at.compaction_interval_ms, |at, to| at.compaction_interval_ms = to)),
    ("defaultMessageRequestMode", Knob::Either(["PULL", "POP"], |at| &mut at.pop_by_default)),
    ("defaultPopShareQueueNum", Knob::Signed { min: -1, max: POP_SHARE_MAX as i32, at: |at| &mut at.pop_share_queues }),
    ("defaultQueryMaxNum", number(1, 1_024,
        |at| at.limits.unique_messages as u64, |at, to| at.limits.unique_messages = to as usize)),
    ("diskMaxUsedSpaceRatio", number(10, 95, |at| at.disk_clean_percent, |at, to| at.disk_clean_percent = to)),
    ("enableLmq", Knob::Switch(|at| &mut at.lmq)),
    ("enableMultiDispatch", Knob::Switch(|at| &mut at.multi_dispatch)),
    ("enableMixedMessageType", Knob::Switch(|at| &mut at.mixed_message_type)),
    ("enablePropertyFilter", Knob::Switch(|at| &mut at.property_filter)),
    ("enablePopBufferMerge", Knob::Switch(|at| &mut at.pop_buffer_merge)),
    ("enableRetryTopicV2", Knob::Switch(|at| &mut at.pop_retry_v2)),
    ("fileReservedTime", number(1, 876_000, |at| at.retention_hours, |at, to| at.retention_hours = to)),
    ("globalColdReadThreshold", number(0, 1 << 50, |at| at.cold_read_bytes, |at, to| at.cold_read_bytes = to)),
    ("litePullMessageEnable", Knob::Switch(|at| &mut at.lite_pull)),
    ("longPollingEnable", Knob::Switch(|at| &mut at.long_polling)),
    ("maxLmqConsumeQueueNum", number(1, 1_000_000,
        |at| at.limits.light_queues as u64, |at, to| at.limits.light_queues = to as usize)),
    ("maxMessageSize", number(1 << 10, 4 << 20,
        |at| at.limits.message_bytes as u64, |at, to| at.limits.message_bytes = to as usize)),
    ("maxMsgsNumBatch", number(1, 1_024,
        |at| at.limits.query_messages as u64, |at, to| at.limits.query_messages = to as usize)),
    ("maxTransferBytesOnMessageInMemory", number(1 << 10, 16 << 20,
        |at| at.limits.pull_bytes.into(), |at, to| at.limits.pull_bytes = to as u32)),
    ("maxTransferCountOnMessageInMemory", number(1, 1_024,
        |at| at.limits.pull_messages.into(), |at, to| at.limits.pull_messages = to as u32)),
    ("popFromRetryProbability", number(0, 100, |at| at.pop_retry_percent, |at, to| at.pop_retry_percent = to)),
    ("popFromRetryProbabilityForPriority", number(0, 100,
        |at| at.pop_retry_percent_priority, |at, to| at.pop_retry_percent_priority = to)),
    ("popInflightMessageThreshold", number(32, POP_UNACKED_MAX,
        |at| at.limits.pop_unacked as u64, |at, to| at.limits.pop_unacked = to as usize)),
    ("priorityOrderAsc", Knob::Switch(|at| &mut at.priority_order_asc)),
    ("recallMessageEnable", Knob::Switch(|at| &mut at.recall_message)),
    ("allowRecallWhenBrokerNotWriteable", Knob::Switch(|at| &mut at.recall_read_only)),
    ("rejectPullConsumerEnable", Knob::Switch(|at| &mut at.reject_pull_consumers)),
    ("rejectTransactionMessage", Knob::Switch(|at| &mut at.reject_transaction)),
    ("shortPollingTimeMills", number(1, 60_000, |at| at.short_polling_ms, |at, to| at.short_polling_ms = to)),
    ("storeReplyMessageEnable", Knob::Switch(|at| &mut at.store_replies)),
    ("timerMaxDelaySec", number(1, 315_360_000,
        |at| at.timer_max_delay_ms / 1_000, |at, to| at.timer_max_delay_ms = to * 1_000)),
    ("traceOn", Knob::Switch(|at| &mut at.trace_on)),
    ("traceTopicEnable", Knob::Switch(|at| &mut at.trace_topic)),
    ("transactionCheckInterval", number(100, 3_600_000,
        |at| at.transaction_check_interval_ms, |at, to| at.transaction_check_interval_ms = to)),
    ("transactionCheckMax", number(1, 1_000,
        |at| at.transaction_check_max.into(), |at, to| at.transaction_check_max = to as u32)),
    ("transactionTimeOut", number(100, 3_600_000,
        |at| at.transaction_timeout_ms, |at, to| at.transaction_timeout_ms = to)),
    ("usePIDColdCtrStrategy", Knob::Switch(|at| &mut at.cold_flow_pid)),
    ("useSeparateRetryQueue", Knob::Switch(|at| &mut at.separate_retry_queue)),
    ("useServerSideResetOffset", Knob::Switch(|at| &mut at.server_side_reset)),
];

/// Stock names of what is settled at the start, and the key of the configuration file.
const AT_START: [(&str, &str); 18] = [
    ("brokerClusterName", "broker.cluster"),
    ("brokerIP1", "broker.ip1"),
    ("brokerName", "broker.name"),
    ("brokerTopicEnable", "broker.broker_topic"),
    ("clusterTopicEnable", "broker.cluster_topic"),
    ("defaultTopicQueueNums", "broker.topic_queues"),
    ("flushDiskType", "log.flush"),
    ("flushIntervalCommitLog", "log.flush_interval_ms"),
    ("listenPort", "broker.port"),
    ("mappedFileSizeCommitLog", "log.segment_bytes"),
    ("messageDelayLevel", "broker.message_delay_level"),
    ("namesrvAddr", "broker.namesrv"),
    ("regionId", "broker.region"),
    ("registerBrokerTimeoutMills", "broker.register_timeout_ms"),
    ("registerNameServerPeriod", "broker.register_interval_ms"),
    ("serverChannelMaxIdleTimeSeconds", "limits.idle_timeout_ms"),
    ("storePathCommitLog", "log.dir"),
    ("storePathRootDir", "log.dir"),
];

/// Stock names of what a broker might do and this one does not, and what it does.
const NOT_SERVED: [(&str, &str); 1] = [("enablePopMessageThreshold", "popInflightMessageThreshold always counts")];

/// Why changes were not taken. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// What nobody may change while the broker runs.
    Forbidden(String),
    /// An unknown name, a value out of range, or no text at all.
    Invalid(String),
}

/// What was changed at run time, by stock name: also what has no meaning here, so that who set it reads it back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes(BTreeMap<String, String>);

impl Changes {
    /// Takes lines `name=value`: all of them or, if one is wrong, none. Empty lines and lines that begin with `#`
    /// or `!` say nothing, as in Java's properties. Returns what is to be said of those among them that change nothing.
    pub fn update(&mut self, text: &str) -> Result<Vec<String>, ChangeError> {
        let mut changed = self.clone();
        let (mut without_meaning, mut remarks) = (Vec::new(), Vec::new());
        let mut count = 0;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            let (name, value) = (name.trim(), value.trim());
            let value = match check(name, value)? {
                Meaning::Knob(value) => value,
                Meaning::Nothing => {
                    match NOT_SERVED.iter().find(|(known, _)| *known == name) {
                        Some((_, instead)) => remarks.push(format!("taken, not served here: {name} ({instead})")),
                        None => without_meaning.push(name),
                    }
                    value.to_owned()
                }
            };
            changed.0.insert(name.to_owned(), value);
            count += 1;
        }
        if count == 0 {
            return Err(ChangeError::Invalid("string2Properties error".to_owned()));
        }
        if changed.fact().len() > CHANGES_BYTES_MAX {
            return Err(ChangeError::Invalid(format!("all changes together take more than {CHANGES_BYTES_MAX} bytes")));
        }
        if !without_meaning.is_empty() {
            remarks.insert(0, format!("taken, without meaning here: {}", without_meaning.join(", ")));
        }
        *self = changed;
        Ok(remarks)
    }

    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What this name was changed to.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Puts what has a meaning here into `settings`.
    pub fn apply(&self, settings: &mut Settings) {
        for (name, knob) in KNOBS {
            let Some(value) = self.0.get(*name) else { continue };
            match knob {
                // Not in any case: a value is kept as it is written here.
                Knob::Switch(switch) => *switch(settings) = value == SWITCH[1],
                Knob::Either([_, on], switch) => *switch(settings) = value == on,
                Knob::Number { min, max, set, .. } => {
                    if let Some(value) = value.parse().ok().filter(|value| (*min..=*max).contains(value)) {
                        set(settings, value);
                    }
                }
                Knob::Signed { min, max, at } => {
                    if let Some(value) = value.parse().ok().filter(|value| (*min..=*max).contains(value)) {
                        *at(settings) = value;
                    }
                }
            }
        }
    }

    /// Names and values of all knobs as they stand, and of what was taken although it has no meaning here.
    pub fn rows(&self, settings: &Settings) -> Vec<(String, String)> {
        let mut copy = settings.clone();
        let mut rows: Vec<(String, String)> = KNOBS
            .iter()
            .map(|(name, knob)| {
                let value = match knob {
                    Knob::Switch(switch) => switch(&mut copy).to_string(),
                    Knob::Either(words, switch) => words[usize::from(*switch(&mut copy))].to_owned(),
                    Knob::Number { get, .. } => get(&copy).to_string(),
                    Knob::Signed { at, .. } => at(&mut copy).to_string(),
                };
                ((*name).to_owned(), value)
            })
            .collect();
        let others = self.0.iter().filter(|(name, _)| knob(name).is_none());
        rows.extend(others.map(|(name, value)| (name.clone(), value.clone())));
        rows
    }

    /// The fact's value.
    pub fn fact(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("names and values are text")
    }

    /// From the fact's value. What this version knows no longer is kept, and means nothing.
    pub fn from_fact(value: &[u8]) -> Result<Changes, serde_json::Error> {
        serde_json::from_slice(value).map(Changes)
    }
}

/// What a name is to us.
enum Meaning {
    /// With this value.
    Knob(String),
    Nothing,
}

fn knob(name: &str) -> Option<&'static Knob> {
    KNOBS.iter().find(|(known, _)| *known == name).map(|(_, knob)| knob)
}

fn check(name: &str, value: &str) -> Result<Meaning, ChangeError> {
    if FORBIDDEN.contains(&name) {
        return Err(ChangeError::Forbidden("Can not update config in black list.".to_owned()));
    }
    if let Some((_, key)) = AT_START.iter().find(|(known, _)| *known == name) {
        return Err(ChangeError::Forbidden(format!("{name} is settled at the start: {key} in the configuration file")));
    }
    match knob(name) {
        Some(knob) => match knob.kept(value) {
            Some(value) => Ok(Meaning::Knob(value)),
            None => Err(ChangeError::Invalid(format!("{name} is {}, not {value}", knob.takes()))),
        },
        None if STOCK_KEYS.lines().any(|known| known == name) => Ok(Meaning::Nothing),
        None => Err(ChangeError::Invalid(format!("{name} is not a name that a broker knows"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Found};
    use std::collections::BTreeSet;

    fn settings() -> Settings {
        Config::default().settings(Found::one_core())
    }

    #[test]
    fn every_name_is_one_that_a_stock_broker_knows_and_has_one_meaning() {
        let known: Vec<&str> = STOCK_KEYS.lines().collect();
        assert!(known.is_sorted() && known.len() > 500, "{}", known.len());
        let ours: Vec<&str> = KNOBS.iter().map(|(name, _)| *name).chain(AT_START.map(|(name, _)| name)).collect();
        assert_eq!(ours.iter().collect::<BTreeSet<_>>().len(), ours.len(), "each once");
        for name in ours {
            assert!(known.contains(&name), "{name}");
        }
        for (name, key) in AT_START {
            assert!(crate::keys::find(key).is_some(), "{name}: there is no key {key}");
        }
    }

    #[test]
    fn what_was_changed_is_in_force_and_outlives_a_restart() {
        let mut changes = Changes::default();
        let text =
            "# a comment\nlongPollingEnable=false\nmaxTransferCountOnMessageInMemory = 1024\n\nenableLmqStats=true\n";
        assert_eq!(changes.update(text), Ok(vec!["taken, without meaning here: enableLmqStats".to_owned()]));
        let found = Changes::from_fact(&changes.fact()).unwrap();
        assert_eq!(found, changes);
        let mut settings = settings();
        found.apply(&mut settings);
        assert!(!settings.long_polling);
        assert_eq!(settings.limits.pull_messages, 1024);
        let rows: BTreeMap<String, String> = found.rows(&settings).into_iter().collect();
        assert_eq!(rows["longPollingEnable"], "false");
        assert_eq!(rows["enableLmqStats"], "true", "taken, and told");
        assert_eq!(rows["traceOn"], "true", "never changed");
    }

    #[test]
    fn words_are_taken_in_any_case_and_kept_in_one() {
        let mut changes = Changes::default();
        let text = "traceOn=False\nenableLmq=TRUE\ndefaultMessageRequestMode=pop\ndefaultQueryMaxNum=5\n\
                    popInflightMessageThreshold=64\nclearRetryTopicWhenDeleteTopic=fALSE\ndefaultPopShareQueueNum=-1";
        assert_eq!(changes.update(text), Ok(vec![]));
        let mut settings = settings();
        Changes::from_fact(&changes.fact()).unwrap().apply(&mut settings);
        assert!(!settings.trace_on && settings.lmq && settings.pop_by_default && !settings.clear_retry_topics);
        assert_eq!((settings.limits.unique_messages, settings.limits.pop_unacked), (5, 64));
        assert_eq!(settings.pop_share_queues, -1);
        let rows: BTreeMap<String, String> = changes.rows(&settings).into_iter().collect();
        let seen = ["traceOn", "enableLmq", "defaultMessageRequestMode", "longPollingEnable"].map(|name| &*rows[name]);
        assert_eq!((seen, &*rows["defaultPopShareQueueNum"]), (["false", "true", "POP", "true"], "-1"));
        for bad in [
            "traceOn=yes",
            "traceOn=",
            "defaultMessageRequestMode=PUSH",
            "popInflightMessageThreshold=31",
            "defaultPopShareQueueNum=-2",
            "defaultPopShareQueueNum=1000001",
        ] {
            let Err(ChangeError::Invalid(remark)) = changes.update(bad) else { panic!("{bad}") };
            assert!(remark.starts_with(bad.split('=').next().unwrap()), "{remark}");
        }
    }

    #[test]
    fn the_document_lists_what_is_in_force_at_once_and_what_is_not_served() {
        let document = include_str!("../../../../docs/COMPATIBILITY.md");
        let paragraph = |words: &str| {
            let (_, behind) = document.split_once(&format!("\n{words}")).expect("the document has it");
            behind.split("\n\n").next().unwrap_or_default()
        };
        let told = paragraph("In force at once: ").trim_end_matches('.').split(',').map(str::trim);
        let knobs = KNOBS.iter().map(|(name, _)| *name);
        assert_eq!(told.collect::<BTreeSet<_>>(), knobs.collect::<BTreeSet<_>>());
        let told = paragraph("Taken, and not served");
        for (name, _) in NOT_SERVED {
            assert!(told.contains(name), "{name}");
        }
    }

    #[test]
    fn what_is_not_served_is_told_as_that() {
        let mut changes = Changes::default();
        let remarks = changes.update("enableLmqStats=true\nenablePopMessageThreshold=true\nbrokerId=0").unwrap();
        let wanted = [
            "taken, without meaning here: enableLmqStats, brokerId",
            "taken, not served here: enablePopMessageThreshold (popInflightMessageThreshold always counts)",
        ];
        assert_eq!(remarks, wanted);
        let known: Vec<&str> = STOCK_KEYS.lines().collect();
        for (name, _) in NOT_SERVED {
            assert!(known.contains(&name) && knob(name).is_none(), "{name}");
        }
    }

    #[test]
    fn one_wrong_line_changes_nothing() {
        let mut changes = Changes::default();
        for bad in [
            "",
            "# nothing",
            "noSuchThing=1",
            "longPollingEnable=yes",
            "shortPollingTimeMills=0",
            "shortPollingTimeMills=60001",
            "brokerPermission=-1",
        ] {
            let text = if bad.contains('=') { format!("traceOn=false\n{bad}") } else { bad.to_owned() };
            assert!(matches!(changes.update(&text), Err(ChangeError::Invalid(_))), "{bad}");
        }
        for bad in ["listenPort=1", "brokerName=x", "configBlackList=", "brokerConfigPath=/etc/passwd"] {
            assert!(
                matches!(changes.update(&format!("traceOn=false\n{bad}")), Err(ChangeError::Forbidden(_))),
                "{bad}"
            );
        }
        let long = format!("enableLmqStats={}", "x".repeat(CHANGES_BYTES_MAX));
        assert!(matches!(changes.update(&long), Err(ChangeError::Invalid(_))));
        assert_eq!(changes, Changes::default());
    }
}
