//! What handlers need of the configuration.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use protocol::names;

use super::Config;
use crate::keys;

const HOUR_MS: u64 = 3_600_000;

/// What is known only at start.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The address that clients are told.
    pub broker_ip1: Ipv4Addr,
    /// The port that is really bound.
    pub port: u16,
    /// How many cores run.
    pub cores: usize,
    /// How many partitions the data directory has.
    pub partitions: u16,
    /// The host's physical memory, in bytes.
    pub memory_bytes: u64,
    /// The disk that the logs lie on, in bytes.
    pub disk_bytes: u64,
    /// When the process started, in ms since 1970.
    pub started_ms: u64,
}

#[cfg(test)]
impl Found {
    /// For tests: one core with one partition.
    pub fn one_core() -> Found {
        Found {
            broker_ip1: Ipv4Addr::LOCALHOST,
            port: 10_911,
            cores: 1,
            partitions: 1,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 40,
            started_ms: 0,
        }
    }
}

/// When a send is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// When it is on stable storage.
    Sync,
    /// When it is written.
    Async,
}

/// What handlers need of the configuration. Each field is the key of the same name; see `keys.rs`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `broker.cluster`.
    pub cluster: String,
    /// `broker.name`.
    pub broker_name: String,
    /// 0, a master.
    pub broker_id: u64,
    /// The address that clients are told.
    pub broker_ip1: Ipv4Addr,
    /// The port that is really bound.
    pub port: u16,
    /// `broker.namesrv`.
    pub namesrv: Vec<String>,
    /// `broker.region`.
    pub region: String,
    /// `broker.permission`: bits 4 read, 2 write, 1 inherit.
    pub permission: i32,
    /// `broker.auto_create_topic`.
    pub auto_create_topic: bool,
    /// `broker.auto_create_group`.
    pub auto_create_group: bool,
    /// `broker.cluster_topic`.
    pub cluster_topic: bool,
    /// `broker.broker_topic`.
    pub broker_topic: bool,
    /// `broker.trace_topic`.
    pub trace_topic: bool,
    /// `broker.trace_on`.
    pub trace_on: bool,
    /// `broker.property_filter`.
    pub property_filter: bool,
    /// `broker.store_replies`.
    pub store_replies: bool,
    /// `broker.server_side_reset`.
    pub server_side_reset: bool,
    /// `broker.reject_pull_consumers`.
    pub reject_pull_consumers: bool,
    /// `broker.lite_pull`.
    pub lite_pull: bool,
    /// `broker.lmq`.
    pub lmq: bool,
    /// `broker.multi_dispatch`.
    pub multi_dispatch: bool,
    /// `broker.long_polling`.
    pub long_polling: bool,
    /// `broker.short_polling_ms`.
    pub short_polling_ms: u64,
    /// `broker.cold_flow`.
    pub cold_flow: bool,
    /// `broker.cold_flow_adapts`.
    pub cold_flow_adapts: bool,
    /// `broker.cold_flow_pid`.
    pub cold_flow_pid: bool,
    /// `broker.cold_read_group_bytes`.
    pub cold_read_group_bytes: u64,
    /// `broker.cold_read_bytes`.
    pub cold_read_bytes: u64,
    /// `broker.topic_queues`.
    pub topic_queues: i32,
    /// Milliseconds of each delay level; level 1 is at index 0. Never empty.
    pub delay_levels: Vec<u64>,
    /// `broker.message_delay_level`, as written.
    pub delay_levels_text: String,
    /// `broker.pop_retry_percent`.
    pub pop_retry_percent: u64,
    /// `broker.pop_retry_percent_priority`.
    pub pop_retry_percent_priority: u64,
    /// `broker.priority_order_asc`.
    pub priority_order_asc: bool,
    /// `broker.separate_retry_queue`.
    pub separate_retry_queue: bool,
    /// `broker.pop_by_default`.
    pub pop_by_default: bool,
    /// `broker.pop_share_queues`; below 1: all queues.
    pub pop_share_queues: i32,
    /// `broker.clear_retry_topics`.
    pub clear_retry_topics: bool,
    /// `broker.pop_buffer_merge`.
    pub pop_buffer_merge: bool,
    /// `broker.pop_retry_v2`.
    pub pop_retry_v2: bool,
    /// `broker.timer_max_delay_ms`.
    pub timer_max_delay_ms: u64,
    /// `broker.timer_delete_topic`.
    pub timer_delete_topic: bool,
    /// `broker.recall_message`.
    pub recall_message: bool,
    /// Also when the broker may not be written to. A setting of run time alone.
    pub recall_read_only: bool,
    /// `broker.mixed_message_type`.
    pub mixed_message_type: bool,
    /// `broker.reject_transaction`.
    pub reject_transaction: bool,
    /// `broker.transaction_timeout_ms`.
    pub transaction_timeout_ms: u64,
    /// `broker.transaction_check_interval_ms`.
    pub transaction_check_interval_ms: u64,
    /// `broker.transaction_check_max`.
    pub transaction_check_max: u32,
    /// How many cores run.
    pub cores: usize,
    /// How many partitions the data directory has.
    pub partitions: u16,
    /// `log.flush`.
    pub flush: Flush,
    /// `log.flush_interval_ms`.
    pub flush_interval_ms: u64,
    /// `log.retention_hours`.
    pub retention_hours: u64,
    /// How long a core that stops waits for its partitions and its last answers: three quarters of
    /// `process.stop_timeout_ms`. Milliseconds.
    pub stop_ms: u64,
    /// `log.compaction_interval_ms`.
    pub compaction_interval_ms: u64,
    /// `log.retention_bytes`.
    pub retention_bytes: u64,
    /// `log.segment_bytes`.
    pub segment_bytes: u64,
    /// `log.disk_clean_percent`.
    pub disk_clean_percent: u64,
    /// `log.dir`.
    pub data_dir: PathBuf,
    /// The host's physical memory, in bytes.
    pub memory_bytes: u64,
    /// The disk that the logs lie on, in bytes.
    pub disk_bytes: u64,
    /// When the process started, in ms since 1970.
    pub started_ms: u64,
    /// Bounds that face the network.
    pub limits: Limits,
}

impl Settings {
    /// `ip:port` as clients and NameServers know the broker.
    pub fn address(&self) -> String {
        format!("{}:{}", self.broker_ip1, self.port)
    }

    /// Whether there are light queues (LMQ): as in a stock broker it takes both settings.
    pub fn has_light_queues(&self) -> bool {
        self.lmq && self.multi_dispatch
    }

    /// Whether a group is named like a light queue where there are some. As by a stock broker, no configuration is made for it:
    /// without one it has the defaults. There may be as many as there are names.
    pub fn is_light_group(&self, name: &str) -> bool {
        self.has_light_queues() && names::is_lmq(name) && names::check_group(name).is_ok()
    }

    /// Age at which a segment of a log may go, in ms.
    pub fn retention_ms(&self) -> u64 {
        self.retention_hours.saturating_mul(HOUR_MS)
    }

    /// Bytes of one log beyond which its oldest segment may go: its part of what all may have together.
    pub fn log_bytes(&self) -> u64 {
        let disk_bytes = self.disk_bytes / 100 * self.disk_clean_percent;
        disk_bytes.min(self.retention_bytes) / u64::from(self.partitions)
    }

    /// How long a delay level is, in ms. Levels above the last mean the last; 0 and below, none.
    pub fn delay_ms(&self, level: i32) -> Option<u64> {
        let index = usize::try_from(level).ok()?.checked_sub(1)?;
        let last = self.delay_levels.len().checked_sub(1)?;
        self.delay_levels.get(index.min(last)).copied()
    }
}

/// Bounds that face the network. Each field is the key `limits.…` of the same name; see `keys.rs`.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body of a message, in bytes.
    pub message_bytes: usize,
    /// Connections at once, all cores together.
    pub connections: usize,
    /// Unanswered requests of one connection.
    pub connection_requests: usize,
    /// Answers that one connection has not taken, in bytes.
    pub connection_unsent_bytes: usize,
    /// A connection that is silent so long is closed.
    pub idle_timeout_ms: u64,
    /// A frame that began must be whole by then.
    pub frame_timeout_ms: u64,
    /// A connection that takes no byte of its answers for so long is closed.
    pub send_timeout_ms: u64,
    /// Messages of one pull.
    pub pull_messages: u32,
    /// Bytes of one pull, but one message always.
    pub pull_bytes: u32,
    /// Index entries that one pull looks at.
    pub pull_scan: u32,
    /// Pulls that wait for messages, per core.
    pub parked_pulls: usize,
    /// Messages of one queue that one group has popped and not acknowledged.
    pub pop_unacked: usize,
    /// Messages of one query by key.
    pub query_messages: usize,
    /// Messages of one query by unique id, if that is less.
    pub unique_messages: usize,
    /// Topics of the broker.
    pub topics: usize,
    /// Light queues (LMQ) of the broker.
    pub light_queues: usize,
    /// Queues of one topic.
    pub topic_queues: u32,
    /// Consumer groups of the broker.
    pub groups: usize,
    /// Live clients of one group.
    pub group_clients: usize,
    /// Topics that one group subscribes to.
    pub group_subscriptions: usize,
    /// Queues that one group holds locked.
    pub group_locks: usize,
    /// A client without a heartbeat for so long leaves its groups.
    pub client_timeout_ms: u64,
    /// A queue lock that is not renewed for so long is free.
    pub lock_timeout_ms: u64,
    /// Letters that wait for a core (`engine.mailbox`).
    pub mailbox: usize,
}

impl Config {
    /// What handlers need, joined with what is known only once the ports are bound.
    pub fn settings(&self, found: Found) -> Settings {
        let levels = self.text("broker.message_delay_level");
        Settings {
            cluster: self.text("broker.cluster").into(),
            broker_name: self.text("broker.name").into(),
            broker_id: 0,
            broker_ip1: found.broker_ip1,
            port: found.port,
            namesrv: self.servers(),
            region: self.text("broker.region").into(),
            permission: self.number("broker.permission") as i32,
            auto_create_topic: self.switch("broker.auto_create_topic"),
            auto_create_group: self.switch("broker.auto_create_group"),
            cluster_topic: self.switch("broker.cluster_topic"),
            broker_topic: self.switch("broker.broker_topic"),
            trace_topic: self.switch("broker.trace_topic"),
            trace_on: self.switch("broker.trace_on"),
            property_filter: self.switch("broker.property_filter"),
            store_replies: self.switch("broker.store_replies"),
            server_side_reset: self.switch("broker.server_side_reset"),
            reject_pull_consumers: self.switch("broker.reject_pull_consumers"),
            lite_pull: self.switch("broker.lite_pull"),
            lmq: self.switch("broker.lmq"),
            multi_dispatch: self.switch("broker.multi_dispatch"),
            long_polling: self.switch("broker.long_polling"),
            short_polling_ms: self.number("broker.short_polling_ms"),
            cold_flow: self.switch("broker.cold_flow"),
            cold_flow_adapts: self.switch("broker.cold_flow_adapts"),
            cold_flow_pid: self.switch("broker.cold_flow_pid"),
            cold_read_group_bytes: self.number("broker.cold_read_group_bytes"),
            cold_read_bytes: self.number("broker.cold_read_bytes"),
            topic_queues: self.number("broker.topic_queues") as i32,
            delay_levels: keys::delay_levels(levels).expect("levels were checked when they were set"),
            delay_levels_text: levels.into(),
            pop_retry_percent: self.number("broker.pop_retry_percent"),
            pop_retry_percent_priority: self.number("broker.pop_retry_percent_priority"),
            priority_order_asc: self.switch("broker.priority_order_asc"),
            separate_retry_queue: self.switch("broker.separate_retry_queue"),
            pop_by_default: self.switch("broker.pop_by_default"),
            pop_share_queues: self.number("broker.pop_share_queues") as i32,
            clear_retry_topics: self.switch("broker.clear_retry_topics"),
            pop_buffer_merge: self.switch("broker.pop_buffer_merge"),
            pop_retry_v2: self.switch("broker.pop_retry_v2"),
            timer_max_delay_ms: self.number("broker.timer_max_delay_ms"),
            timer_delete_topic: self.switch("broker.timer_delete_topic"),
            recall_message: self.switch("broker.recall_message"),
            recall_read_only: true,
            mixed_message_type: self.switch("broker.mixed_message_type"),
            reject_transaction: self.switch("broker.reject_transaction"),
            transaction_timeout_ms: self.number("broker.transaction_timeout_ms"),
            transaction_check_interval_ms: self.number("broker.transaction_check_interval_ms"),
            transaction_check_max: self.number("broker.transaction_check_max") as u32,
            cores: found.cores,
            partitions: found.partitions,
            flush: match self.text("log.flush") {
                "async" => Flush::Async,
                _ => Flush::Sync,
            },
            flush_interval_ms: self.number("log.flush_interval_ms"),
            retention_hours: self.number("log.retention_hours"),
            stop_ms: self.number("process.stop_timeout_ms") / 4 * 3,
            compaction_interval_ms: self.number("log.compaction_interval_ms"),
            retention_bytes: self.number("log.retention_bytes"),
            segment_bytes: self.number("log.segment_bytes"),
            disk_clean_percent: self.number("log.disk_clean_percent"),
            data_dir: self.data_dir(),
            memory_bytes: found.memory_bytes,
            disk_bytes: found.disk_bytes,
            started_ms: found.started_ms,
            limits: self.limits(),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            message_bytes: self.size("limits.message_bytes"),
            connections: self.size("limits.connections"),
            connection_requests: self.size("limits.connection_requests"),
            connection_unsent_bytes: self.size("limits.connection_unsent_bytes"),
            idle_timeout_ms: self.number("limits.idle_timeout_ms"),
            frame_timeout_ms: self.number("limits.frame_timeout_ms"),
            send_timeout_ms: self.number("limits.send_timeout_ms"),
            pull_messages: self.number("limits.pull_messages") as u32,
            pull_bytes: self.number("limits.pull_bytes") as u32,
            pull_scan: self.number("limits.pull_scan") as u32,
            parked_pulls: self.size("limits.parked_pulls"),
            pop_unacked: self.size("limits.pop_unacked"),
            query_messages: self.size("limits.query_messages"),
            unique_messages: self.size("limits.unique_messages"),
            topics: self.size("limits.topics"),
            light_queues: self.size("limits.light_queues"),
            topic_queues: self.number("limits.topic_queues") as u32,
            groups: self.size("limits.groups"),
            group_clients: self.size("limits.group_clients"),
            group_subscriptions: self.size("limits.group_subscriptions"),
            group_locks: self.size("limits.group_locks"),
            client_timeout_ms: self.number("limits.client_timeout_ms"),
            lock_timeout_ms: self.number("limits.lock_timeout_ms"),
            mailbox: self.size("engine.mailbox"),
        }
    }
}
