//! Every key of the configuration file: name, unit, default, range, and why it is so.
//!
//! This is the one table. `ringmq check-config --keys` prints it, `Config` parses by it, and
//! `Settings` is made from what it gives.

use std::net::IpAddr;

use protocol::delay::{LEVELS_DEFAULT, parse_levels};

use crate::pop::account;

/// One key of the configuration file.
#[derive(Debug)]
pub struct Key {
    /// `section.key`.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it does, and the reason for its default or its bounds.
    pub why: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A whole number.
    Number {
        /// In what it counts.
        unit: Unit,
        /// Its default.
        default: u64,
        /// The smallest it may be.
        min: u64,
        /// The largest it may be.
        max: u64,
    },
    /// `true` or `false`.
    Switch {
        /// Its default.
        default: bool,
    },
    /// One of a few words.
    Choice {
        /// Its default.
        default: &'static str,
        /// The words.
        of: &'static [&'static str],
    },
    /// A text. A TOML array is taken as its elements, joined by commas.
    Text {
        /// Its default.
        default: &'static str,
        /// What it must be, in words: "a name of 1 to 127 letters".
        what: &'static str,
        /// Whether a text is that.
        is_valid: fn(&str) -> bool,
    },
}

/// In what a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes; `"64KiB"`, `"64MiB"` and `"1GiB"` are understood too.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Hours.
    Hours,
    /// Hundredths of the whole.
    Percent,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PIB: u64 = 1 << 50;
/// The largest body of a message. 4 MiB, RocketMQ's maxMessageSize; the engine's batches are made for it.
const MESSAGE_BYTES_MAX: u64 = 4 * MIB;

/// Most cores of a broker. 64: the deal of partitions and mailboxes (cores x cores) stays small.
pub const CORES_MAX: u64 = 64;
/// Most logs of a core. 256; with all cores this stays within the 15 bits that a position has for them.
pub const PARTITIONS_PER_CORE_MAX: u64 = 256;
/// Most of `limits.pop_unacked`: 50,000, so that what a group is done with fits a fact.
pub const POP_UNACKED_MAX: u64 = 50_000;
const _: () = assert!(POP_UNACKED_MAX as usize * account::MESSAGE_BYTES_MAX + 4096 <= account::VALUE_BYTES_MAX);
/// Most of `broker.pop_share_queues`. A million: a group has no more clients.
pub const POP_SHARE_MAX: u64 = 1_000_000;
/// The kernel's CPU sets that we use have 1,024 bits.
const CPU_MAX: usize = 1023;

const _: () = assert!(CORES_MAX * PARTITIONS_PER_CORE_MAX <= 1 << 15, "a position has 15 bits for the partition");

const fn number(name: &'static str, unit: Unit, default: u64, min: u64, max: u64, why: &'static str) -> Key {
    assert!(min <= default && default <= max, "the default lies in its range");
    Key { name, kind: Kind::Number { unit, default, min, max }, why }
}

const fn switch(name: &'static str, default: bool, why: &'static str) -> Key {
    Key { name, kind: Kind::Switch { default }, why }
}

const fn text(
    name: &'static str,
    default: &'static str,
    what: &'static str,
    is_valid: fn(&str) -> bool,
    why: &'static str,
) -> Key {
    Key { name, kind: Kind::Text { default, what, is_valid }, why }
}

use Unit::{Bytes, Count, Hours, Milliseconds, Percent};

/// All keys, by section.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    // Who we are, and what a fresh broker offers. Defaults are RocketMQ's, so that clients find what they know.
    text("broker.cluster", "DefaultCluster", NAME, is_name, "Cluster that the broker belongs to; also a system topic."),
    text("broker.name", "broker-a", NAME, is_name, "Its name; one per broker of a cluster; also a system topic."),
    text("broker.listen", "0.0.0.0", ADDRESS, is_address, "Address to listen on. `dev`: 127.0.0.1."),
    number("broker.port", Count, 10_911, 0, 65_535, "Port to listen on, RocketMQ's default; 0 lets the kernel choose."),
    switch("broker.fast_port", true, "Serve the port below (`port` - 2) too, for clients with vipChannelEnabled."),
    text("broker.ip1", "", "an IPv4 address, or empty", is_ipv4_or_empty, "Address that clients are told (brokerIP1). Empty: the first that is not loopback. `dev`: `listen`."),
    text("broker.namesrv", "", "host:port, several separated by ';'", is_server_list, "NameServers to register with, all of them. Empty: none. `dev`: its own."),
    number("broker.register_interval_ms", Milliseconds, 30_000, 10_000, 60_000, "How often it registers again; a change of topics registers at once. RocketMQ's range."),
    number("broker.register_timeout_ms", Milliseconds, 6_000, 100, 24_000, "How long one NameServer may take to answer."),
    text("broker.region", "DefaultRegion", NAME, is_name, "Put into messages as MSG_REGION."),
    number("broker.permission", Count, 6, 0, 7, "What the broker allows: 4 read + 2 write (+ 1 inherit). 4: producers are refused."),
    switch("broker.auto_create_topic", true, "A send to an unknown topic makes it from TBW102. Off: code 17."),
    switch("broker.auto_create_group", true, "Who first needs a group makes it: heartbeat, pull, pop, message sent back. Off: code 26."),
    switch("broker.cluster_topic", true, "The topic named after the cluster may be written."),
    switch("broker.broker_topic", true, "The topic named after the broker may be written."),
    switch("broker.trace_topic", false, "Have the topic RMQ_SYS_TRACE_TOPIC for message traces."),
    switch("broker.trace_on", true, "Tell clients that traces are wanted (TRACE_ON)."),
    switch("broker.property_filter", true, "Consumers may filter by SQL92 (enablePropertyFilter; off in RocketMQ). Off: code 1. It costs only those who do."),
    switch("broker.store_replies", true, "Replies of request-reply are stored too (storeReplyMessageEnable)."),
    switch("broker.server_side_reset", true, "Offsets are reset at the broker (useServerSideResetOffset). Off: by the group's clients, which must be online."),
    switch("broker.reject_pull_consumers", false, "Serve no consumers whose applications pull (rejectPullConsumerEnable): their heartbeats count for nothing, and pulls of a group without members get code 24."),
    switch("broker.lite_pull", true, "Serve consumers that pull by code 361 (litePullMessageEnable). Off: code 16."),
    switch("broker.lmq", false, "Have light queues, `%LMQ%...` (enableLmq), if multi_dispatch is on too."),
    switch("broker.multi_dispatch", false, "A message goes also to the light queues that its INNER_MULTI_DISPATCH names (enableMultiDispatch), if lmq is on too."),
    switch("broker.long_polling", true, "A pull that finds nothing waits as long as it asks for (longPollingEnable). Off: for short_polling_ms."),
    number("broker.short_polling_ms", Milliseconds, 1_000, 1, 60_000, "How long a pull waits without long_polling (shortPollingTimeMills)."),
    switch("broker.cold_flow", false, "A group that read more than its share from disk in five seconds waits for the next ones (coldDataFlowControlEnable)."),
    number("broker.cold_read_group_bytes", Bytes, 3 * MIB, 0, PIB, "That share (cgColdReadThreshold); `mqadmin updateColdDataFlowCtrGroupConfig` gives a group its own."),
    number("broker.cold_read_bytes", Bytes, 100 * MIB, 0, PIB, "What all groups together may read from disk in five seconds (globalColdReadThreshold)."),
    switch("broker.cold_flow_adapts", false, "Shares grow while the disk has more to give, and shrink when it has not (coldCtrStrategyEnable)."),
    switch("broker.cold_flow_pid", true, "They do so by a closed loop that aims at four fifths of cold_read_bytes (usePIDColdCtrStrategy). Off: in plain steps."),
    number("broker.topic_queues", Count, 8, 1, 1_024, "Queues of TBW102, and so the most that an automatic topic gets."),
    text("broker.message_delay_level", LEVELS_DEFAULT,
         "1 to 64 delays such as `1s 5s 10m 2h`, each at most 10 years", is_delay_levels, "The delay levels, from level 1; retries start at level 3."),
    number("broker.pop_retry_percent", Percent, 20, 0, 100, "How many pops look for messages that come again before they look for new ones (popFromRetryProbability)."),
    number("broker.pop_retry_percent_priority", Percent, 0, 0, 100, "The same of pops that go by priority (popFromRetryProbabilityForPriority). 0: what comes again is the lowest."),
    switch("broker.priority_order_asc", true, "Of a topic of message type PRIORITY the highest queue is the most urgent (priorityOrderAsc). Off: the lowest."),
    switch("broker.separate_retry_queue", false, "Messages that were popped in vain come again in a queue of the number that they had (useSeparateRetryQueue). Off: in queue 0."),
    switch("broker.pop_by_default", false, "Clients that ask the broker how they get messages of a topic are told to pop, if nobody said otherwise for their group (defaultMessageRequestMode). Off: to pull."),
    number("broker.pop_share_queues", Count, 0, 0, POP_SHARE_MAX, "Who pops because of pop_by_default pops from its own queues and those of so many clients behind it in its group (defaultPopShareQueueNum). 0, or as many as all others: from all queues."),
    switch("broker.clear_retry_topics", true, "With a topic its retry topics of pops are deleted (clearRetryTopicWhenDeleteTopic). Off: a topic of the same name gets what comes again of the old one."),
    switch("broker.pop_buffer_merge", false, "Pops, and what is said about what was popped, are answered before the log has it (enablePopBufferMerge): faster, and what was popped or acknowledged in the last second before a crash comes again. Off: once the log has it, as a send."),
    switch("broker.pop_retry_v2", false, "Messages that were popped in vain come again in `%RETRY%group+topic` instead of `%RETRY%group_topic` (enableRetryTopicV2)."),
    number("broker.timer_max_delay_ms", Milliseconds, 604_800_000, 1_000, 315_360_000_000, "Furthest that a timer message may be due (timerMaxDelaySec): 7 days. Beyond: code 13."),
    switch("broker.timer_delete_topic", false, "TIMER_DEL_UNIQKEY names `topic+unique id` (appendTopicForTimerDeleteKey). Off: a unique id of the message's own topic."),
    switch("broker.recall_message", true, "Timer messages can be recalled (recallMessageEnable, which is off in a stock broker). Off: code 16."),
    switch("broker.mixed_message_type", false, "Topics may be made with `message.type` MIXED (enableMixedMessageType). Off: code 29."),
    switch("broker.reject_transaction", false, "Refuse half messages with code 16 (rejectTransactionMessage)."),
    number("broker.transaction_timeout_ms", Milliseconds, 6_000, 100, 3_600_000, "A half message that nobody decided for so long: its producer is asked (transactionTimeOut)."),
    number("broker.transaction_check_interval_ms", Milliseconds, 30_000, 100, 3_600_000, "And again after so long (transactionCheckInterval)."),
    number("broker.transaction_check_max", Count, 15, 1, 1_000, "A producer that was asked so often and does not decide: the message goes to TRANS_CHECK_MAX_TIME_TOPIC (transactionCheckMax)."),

    // Threads and rings.
    number("engine.cores", Count, 0, 0, CORES_MAX, "Threads of the hot path, each with one ring. 0: half of the CPUs, at least 1, at most 16."),
    text("engine.cpus", "", "CPU numbers such as `0,2,4-7`, or empty", is_cpus_or_empty, "CPUs to pin the cores to, in order. Empty: the first ones that the process may use."),
    number("engine.partitions_per_core", Count, 1, 1, PARTITIONS_PER_CORE_MAX, "Logs per core. Their total is fixed when the data directory is made; more cores later share them."),
    number("engine.ring_depth", Count, 1_024, 8, 32_768, "Submission queue of a ring; a turn that wants more enters the kernel twice."),
    number("engine.ring_slots", Count, 32_768, 1_024, 65_536, "Operations in the kernel at once, per core: one for each connection, and those that send, read or write. None free: backpressure."),
    number("engine.busy_poll_us", Count, 0, 0, 1_000_000, "How long a core looks for work before it sleeps. Microseconds; 0: it sleeps at once. Looking saves the wake-up, some tens of microseconds of a lone send, and takes a whole CPU while requests come more often than this."),
    number("engine.receive_buffers", Count, 64, 16, 32_768, "Provided buffers per core, a power of two. They are emptied in the same turn and used in turn: few stay in the cache (32 cost a twentieth less at 64 connections), but one for each connection that is busy at the same time saves asking again (32 cost a fifth more at 512)."),
    number("engine.receive_buffer_bytes", Bytes, 64 * KIB, 4 * KIB, MIB, "Size of a receive buffer. What 32 outstanding sends of 1 KiB take: with 16 KiB there were more partial frames to copy, 2.9 us of CPU a message against 2.5."),
    number("engine.mailbox", Count, 16_384, 256, 1_048_576, "Letters that wait for a core. Half full: nothing more is received from connections that ask without waiting. Full: requests are refused with code 2."),

    // The logs.
    text("log.dir", "./data", "a path", is_path, "Directory of all data; one process at a time."),
    number("log.segment_bytes", Bytes, GIB, 16 * MIB, 4 * GIB, "Size of a log's files, a multiple of 1 MiB; 1 GiB as RocketMQ's. Retention drops whole ones. `dev`: 256 MiB, ready sooner."),
    number("log.batch_bytes", Bytes, MIB, 64 * KIB, 4 * MIB, "A group commit closes at this size; one large message may make it larger."),
    number("log.inflight_batches", Count, 4, 1, 32, "Group commits in the kernel at once, per log: enough to keep the device busy, few enough that each grows."),
    number("log.stretch_bytes", Bytes, 64 * MIB, MIB, 128 * MIB, "Log whose index is in memory, per log, before it becomes a sorted run on disk; a start after a crash reads about so much."),
    number("log.tail_bytes", Bytes, 64 * MIB, 32 * MIB, 64 * GIB, "Memory of a core's logs: batches under way, and the newest stretch for consumers."),
    Key { name: "log.flush", kind: Kind::Choice { default: "sync", of: &["sync", "async"] },
          why: "sync: a send is answered when it is on stable storage. async: when it is written, synced every flush_interval_ms." },
    number("log.flush_interval_ms", Milliseconds, 500, 1, 60_000, "async: the most that a power cut may take, RocketMQ's default."),
    number("log.prepare_bytes", Bytes, GIB, 16 * MIB, 64 * GIB, "Zeros written ahead of each log's head: a durable write into fresh space takes twice the time. `dev`: 256 MiB."),
    number("log.prepare_bytes_per_s", Bytes, 64 * MIB, MIB, 16 * GIB, "How fast, beside a busy log: at full speed it doubles the p99.9 of sends."),
    number("log.read_bytes_per_s", Bytes, 0, 0, 64 * GIB, "Per log: how fast messages that are no longer in memory are read for consumers, so that one that catches up leaves the disk to the producers. 0: no limit."),
    number("log.retention_hours", Hours, 72, 1, 876_000, "Age at which a segment may go (fileReservedTime)."),
    number("log.compaction_interval_ms", Milliseconds, 900_000, 1_000, 604_800_000, "Topics with cleanup.policy=COMPACTION: age at which a message goes if it is not the newest of its key (compactionScheduleInternal)."),
    number("log.retention_bytes", Bytes, PIB, 32 * MIB, PIB, "The logs together are larger than this: the oldest segments go before their age. By default the disk alone decides."),
    number("log.disk_clean_percent", Percent, 75, 1, 99, "The logs fill more of the disk than this, reserved space not counted: the oldest segments go before their age (diskMaxUsedSpaceRatio)."),
    number("log.disk_free_percent_min", Percent, 5, 0, 90, "Less of the disk is left than this: sends are refused with code 14, reads go on."),
    number("log.disk_free_bytes_min", Bytes, 256 * MIB, 64 * MIB, 1024 * GIB, "The same in bytes; the larger one counts."),

    // Bounds that face the network.
    number("limits.message_bytes", Bytes, MESSAGE_BYTES_MAX, KIB, MESSAGE_BYTES_MAX, "Largest body of a message (maxMessageSize). Larger: code 13."),
    number("limits.connections", Count, 16_000, 16, 1_000_000, "Connections at once, all cores together; also bounded by RLIMIT_NOFILE and ring_slots. One more is closed."),
    number("limits.connection_requests", Count, 4_096, 1, 65_536, "Unanswered requests of one connection. More: nothing is received from it until some are answered."),
    number("limits.connection_unsent_bytes", Bytes, 32 * MIB, MIB, GIB, "Answers that one connection has not taken. More: nothing is received from it until some are."),
    number("limits.idle_timeout_ms", Milliseconds, 120_000, 100, 3_600_000, "A connection that is silent so long and waits for no answer is closed; stock servers and clients do the same."),
    number("limits.frame_timeout_ms", Milliseconds, 60_000, 100, 3_600_000, "A frame that began must be whole by then, or its connection is closed."),
    number("limits.send_timeout_ms", Milliseconds, 30_000, 100, 3_600_000, "A connection that takes no byte of its answers for so long is closed."),
    number("limits.pull_messages", Count, 32, 1, 1_024, "Messages of one pull at most (maxTransferCountOnMessageInMemory)."),
    number("limits.pull_bytes", Bytes, 256 * KIB, KIB, 16 * MIB, "Bytes of one pull at most, but one message always (maxTransferBytesOnMessageInMemory)."),
    number("limits.pull_scan", Count, 8_192, 32, 1_048_576, "Index entries that one pull looks at for its tags before it answers."),
    number("limits.parked_pulls", Count, 100_000, 1, 10_000_000, "Pulls that wait for messages, per core. One more is refused with code 2."),
    number("limits.pop_unacked", Count, 10_000, 32, POP_UNACKED_MAX, "Messages of one queue that one group has popped and not acknowledged (popInflightMessageThreshold). Beyond it there are none for it."),
    number("limits.query_messages", Count, 64, 1, 1_024, "Messages of one query at most (maxMsgsNumBatch)."),
    number("limits.unique_messages", Count, 32, 1, 1_024, "Messages of one query by unique id at most (defaultQueryMaxNum), if that is less."),
    number("limits.topics", Count, 100_000, 64, 10_000_000, "Topics of the broker. One more is refused with code 1."),
    number("limits.light_queues", Count, 20_000, 1, 1_000_000, "Light queues of the broker, which are topics too (maxLmqConsumeQueueNum). A message for one more is refused with code 2017."),
    number("limits.topic_queues", Count, 16_384, 16, 65_536, "Queues of one topic at most."),
    number("limits.groups", Count, 100_000, 64, 10_000_000, "Consumer groups of the broker. One more is refused with code 1."),
    number("limits.group_clients", Count, 10_000, 1, 1_000_000, "Live clients of one group."),
    number("limits.group_subscriptions", Count, 1_024, 1, 65_536, "Topics that one group subscribes to."),
    number("limits.group_locks", Count, 65_536, 1, 1_048_576, "Queues that one group holds locked."),
    number("limits.client_timeout_ms", Milliseconds, 120_000, 1_000, 3_600_000, "A client without a heartbeat for so long leaves its groups."),
    number("limits.lock_timeout_ms", Milliseconds, 60_000, 1_000, 3_600_000, "A queue lock that is not renewed for so long is free (stock: 60 s; clients renew every 20 s)."),

    // The NameServer (`ringmq namesrv`, and inside `ringmq dev`).
    text("namesrv.listen", "0.0.0.0", ADDRESS, is_address, "Address to listen on. `dev`: 127.0.0.1."),
    number("namesrv.port", Count, 9_876, 0, 65_535, "Port to listen on, RocketMQ's default; 0 lets the kernel choose."),
    text("namesrv.kv_path", "./data/namesrv/kv.json", "a path", is_path, "File of the KV configuration. `dev`: below log.dir."),
    number("namesrv.scan_interval_ms", Milliseconds, 5_000, 10, 600_000, "How often it looks for silent brokers."),
    number("namesrv.broker_timeout_ms", Milliseconds, 120_000, 100, 3_600_000, "A broker that is silent for so long is removed, unless it named another time when it registered."),

    // The process.
    text("process.log", "info", "a filter such as `info` or `warn,broker=debug`", is_filter, "What is logged on stderr."),
    number("process.stop_timeout_ms", Milliseconds, 4_000, 100, 60_000, "SIGTERM: longest wait for what is under way; the process ends a second later at the latest, by default within 5 s, not counting time in which it is itself stopped. Systemd's TimeoutStopSec has to be longer."),
];

const NAME: &str = "1 to 120 of the characters a-z A-Z 0-9 _ - % |";
const ADDRESS: &str = "an IP address such as 0.0.0.0 or 127.0.0.1";

/// The key with this name.
pub fn find(name: &str) -> Option<(usize, &'static Key)> {
    KEYS.iter().enumerate().find(|(_, key)| key.name == name)
}

/// Parses `1s 5s 10m 2h` into milliseconds, one at least.
pub fn delay_levels(text: &str) -> Option<Vec<u64>> {
    parse_levels(text).ok().filter(|levels| !levels.is_empty())
}

/// Parses `0,2,4-7` into CPU numbers, in the order given, each once.
pub fn cpus(text: &str) -> Option<Vec<usize>> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > CPU_MAX {
            return None;
        }
        for cpu in first..=last {
            if found.contains(&cpu) {
                return None;
            }
            found.push(cpu);
        }
    }
    Some(found)
}

/// Parses `host:port;host:port` (commas are fine too).
pub fn servers(text: &str) -> Option<Vec<String>> {
    let parts = text.split([';', ',']).map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| is_server(part).then(|| part.to_string())).collect()
}

fn is_server(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = !host.is_empty() && !host.contains(char::is_whitespace);
    is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn is_server_list(text: &str) -> bool {
    servers(text).is_some()
}

fn is_name(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "_-%|".contains(c);
    (1..=120).contains(&text.len()) && text.chars().all(is_good)
}

fn is_address(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

fn is_ipv4_or_empty(text: &str) -> bool {
    text.is_empty() || text.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| !ip.is_unspecified())
}

fn is_cpus_or_empty(text: &str) -> bool {
    text.is_empty() || cpus(text).is_some()
}

fn is_delay_levels(text: &str) -> bool {
    delay_levels(text).is_some()
}

fn is_path(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

fn is_filter(text: &str) -> bool {
    tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_defaults_valid() {
        for (index, key) in KEYS.iter().enumerate() {
            assert_eq!(find(key.name).unwrap().0, index, "{} is there once", key.name);
            let (section, name) = key.name.split_once('.').unwrap();
            assert!(!section.is_empty() && !name.contains('.'), "{}", key.name);
            assert!(key.why.ends_with('.'), "{}: the reason is a sentence", key.name);
            match key.kind {
                Kind::Text { default, is_valid, .. } => assert!(is_valid(default), "{}", key.name),
                Kind::Choice { default, of } => assert!(of.contains(&default), "{}", key.name),
                Kind::Number { .. } | Kind::Switch { .. } => {}
            }
        }
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(cpus("0"), Some(vec![0]));
        assert_eq!(cpus("3, 0-1"), Some(vec![3, 0, 1]));
        for bad in ["", "a", "1,1", "2-1", "0-1024", "1-", "-1", "0,,1"] {
            assert_eq!(cpus(bad), None, "{bad}");
        }
    }

    #[test]
    fn server_lists() {
        assert_eq!(servers(""), Some(vec![]));
        assert_eq!(servers("a:1;b.c:2;"), Some(vec!["a:1".into(), "b.c:2".into()]));
        for bad in ["a", "a:", ":1", "a:0", "a:65536", "a b:1"] {
            assert_eq!(servers(bad), None, "{bad}");
        }
    }
}
