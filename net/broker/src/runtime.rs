//! The broker about itself: its configuration in RocketMQ's words (code 26) and what it is doing
//! (code 28, PROTOCOL 4.22).

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use protocol::bodies::KvTable;
use protocol::command::VERSION;

use crate::admin::{Tally, Traffic};
use crate::config::{Changes, Flush, Settings};
use crate::connection::Reason;

/// The name of `VERSION`.
const VERSION_NAME: &str = "V5_3_3";
/// Windows of the rates that clusterList shows, in ms: 10 s, 1 min, 10 min.
const WINDOWS_MS: [u64; 3] = [10_000, 60_000, 600_000];
/// Samples kept: one every `RATES_SAMPLE_MS` for the longest window, and the one before it.
const SAMPLES_MAX: usize = 61;
const DAY_MS: u64 = 86_400_000;

/// The cores' counters over the last ten minutes, and at the last two midnights (UTC).
#[derive(Debug, Default)]
pub struct Rates {
    samples: VecDeque<(u64, Traffic)>,
    day: u64,
    yesterday_morning: Traffic,
    today_morning: Traffic,
}

impl Rates {
    /// Takes a sample.
    pub fn sample(&mut self, tally: &Tally, now_ms: u64) {
        let day = now_ms / DAY_MS;
        if day != self.day {
            let is_next = day == self.day + 1;
            self.yesterday_morning = if is_next { self.today_morning } else { Traffic::default() };
            self.today_morning = self.samples.back().map_or(Traffic::default(), |(_, traffic)| *traffic);
            self.day = day;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now_ms, tally.traffic));
    }

    /// What happened a second in each of the windows, as `x y z`. With less history than a window:
    /// over what there is.
    fn text(&self, count: fn(&Traffic) -> u64) -> String {
        let rates = WINDOWS_MS.map(|window_ms| format!("{:?}", self.rate(window_ms, count)));
        rates.join(" ")
    }

    fn rate(&self, window_ms: u64, count: fn(&Traffic) -> u64) -> f64 {
        let (Some((newest_ms, newest)), Some(oldest)) = (self.samples.back(), self.samples.front()) else {
            return 0.0;
        };
        let before = |(at_ms, _): &&(u64, Traffic)| at_ms + window_ms <= *newest_ms;
        let (at_ms, old) = self.samples.iter().rev().find(before).unwrap_or(oldest);
        let passed_ms = newest_ms - at_ms;
        if passed_ms == 0 {
            return 0.0;
        }
        let events = count(newest) - count(old);
        events as f64 * 1000.0 / passed_ms as f64
    }
}

/// The answer to code 28. What a Java broker has and this one has not (thread pools, a page cache
/// lock, a timer wheel) is there with the value of one that is idle, because admin tools parse it.
pub fn table(settings: &Settings, rates: &Rates, tally: &Tally, now_ms: u64) -> KvTable {
    let traffic = &tally.traffic;
    let average = if traffic.put_messages == 0 { 0.0 } else { traffic.put_bytes as f64 / traffic.put_messages as f64 };
    let disk_ratio = tally.disk.map_or(-1.0, |(total, available)| 1.0 - available as f64 / total.max(1) as f64);
    let capacity = match tally.disk {
        Some((total, available)) => format!("Total : {}, Free : {}.", bytes_text(total), bytes_text(available)),
        None => "unknown".to_owned(),
    };
    let mut table = KvTable::default();
    let mut set = |key: &str, value: String| drop(table.table.insert(key.to_owned(), value));
    set("brokerActive", "true".to_owned());
    set("brokerVersionDesc", VERSION_NAME.to_owned());
    set("brokerVersion", VERSION.to_string());
    set("bootTimestamp", settings.started_ms.to_string());
    set("runtime", running_text(now_ms.saturating_sub(settings.started_ms)));
    set("startAcceptSendRequestTimeStamp", "0".to_owned());

    set("putTps", rates.text(|traffic| traffic.put_messages));
    set("getTransferredTps", rates.text(|traffic| traffic.got_messages));
    set("getFoundTps", rates.text(|traffic| traffic.pulls_found));
    set("getMissTps", rates.text(|traffic| traffic.pulls_missed));
    set("getTotalTps", rates.text(|traffic| traffic.pulls_found + traffic.pulls_missed));
    set("msgPutTotalYesterdayMorning", rates.yesterday_morning.put_messages.to_string());
    set("msgPutTotalTodayMorning", rates.today_morning.put_messages.to_string());
    set("msgPutTotalTodayNow", traffic.put_messages.to_string());
    set("msgGetTotalYesterdayMorning", rates.yesterday_morning.got_messages.to_string());
    set("msgGetTotalTodayMorning", rates.today_morning.got_messages.to_string());
    set("msgGetTotalTodayNow", traffic.got_messages.to_string());

    set("putMessageTimesTotal", traffic.put_messages.to_string());
    set("putMessageFailedTimes", traffic.put_failures.to_string());
    set("putMessageSizeTotal", traffic.put_bytes.to_string());
    set("putMessageAverageSize", format!("{average:?}"));
    set("putMessageEntireTimeMax", traffic.put_ms_max.to_string());

    set("commitLogMinOffset", tally.log_min.to_string());
    set("commitLogMaxOffset", tally.log_max.to_string());
    set("commitLogDiskRatio", format!("{disk_ratio:?}"));
    set("consumeQueueDiskRatio", format!("{disk_ratio:?}"));
    set("commitLogDirCapacity", capacity);
    set("remainHowManyDataToFlush", bytes_text(tally.unflushed));
    // -1, as stock brokers say of an empty store.
    set("earliestMessageTimeStamp", tally.earliest_ms.map_or("-1".to_owned(), |at_ms| at_ms.to_string()));

    // Ours alone: why connections went, and how the logs do.
    let counters = &tally.counters;
    set("ringmq_connections_accepted", counters.accepted.to_string());
    for ((_, reason, _), count) in Reason::ALL.iter().zip(counters.closed) {
        set(&format!("ringmq_connections_closed_{reason}"), count.to_string());
    }
    set("ringmq_requests", counters.requests.to_string());
    set("ringmq_receives_starved", counters.starved.to_string());
    set("ringmq_turns", counters.turns.to_string());
    set("ringmq_offsets_unwritten", tally.unwritten.to_string());
    set("ringmq_log_batches", tally.logs.batches.to_string());
    set("ringmq_log_bytes", tally.logs.bytes.to_string());
    set("ringmq_log_records", tally.logs.records.to_string());
    set("ringmq_log_unprepared_bytes", tally.logs.unprepared_bytes.to_string());
    set("ringmq_log_stalls", tally.logs.stalls.to_string());
    set("ringmq_log_refusals", tally.logs.refusals.to_string());

    let zeros = [
        "putMessageDistributeTime",
        "dispatchMaxBuffer",
        "dispatchBehindBytes",
        "getMessageEntireTimeMax",
        "pageCacheLockTimeMills",
        "remainTransientStoreBufferNumbs",
        "timerReadBehind",
        "timerOffsetBehind",
        "timerCongestNum",
        "EndTransactionQueueSize",
        "EndTransactionThreadPoolQueueCapacity",
    ];
    for key in zeros {
        set(key, "0".to_owned());
    }
    for key in ["timerEnqueueTps", "timerDequeueTps", "putLatency99", "putLatency999"] {
        set(key, "0.0".to_owned());
    }
    for pool in ["send", "pull", "litePull", "query", "ack", "reply"] {
        for what in ["ThreadPoolQueueSize", "ThreadPoolQueueHeadWaitTimeMills"] {
            set(&format!("{pool}{what}"), "0".to_owned());
        }
        set(&format!("{pool}ThreadPoolQueueCapacity"), settings.limits.mailbox.to_string());
    }
    table
}

/// The answer to code 26: lines `key=value`, as a Java broker's configuration names things.
pub fn properties(settings: &Settings, changes: &Changes) -> String {
    let limits = &settings.limits;
    let flush = match settings.flush {
        Flush::Sync => "SYNC_FLUSH",
        Flush::Async => "ASYNC_FLUSH",
    };
    let rows: [(&str, String); 39] = [
        ("autoCreateSubscriptionGroup", settings.auto_create_group.to_string()),
        ("autoCreateTopicEnable", settings.auto_create_topic.to_string()),
        ("brokerClusterName", settings.cluster.clone()),
        ("brokerId", settings.broker_id.to_string()),
        ("brokerIP1", settings.broker_ip1.to_string()),
        ("brokerName", settings.broker_name.clone()),
        ("brokerPermission", settings.permission.to_string()),
        ("brokerRole", "ASYNC_MASTER".to_owned()),
        ("brokerTopicEnable", settings.broker_topic.to_string()),
        ("channelExpiredTimeout", limits.client_timeout_ms.to_string()),
        ("clusterTopicEnable", settings.cluster_topic.to_string()),
        ("defaultTopicQueueNums", settings.topic_queues.to_string()),
        ("enablePropertyFilter", settings.property_filter.to_string()),
        ("flushDiskType", flush.to_owned()),
        ("flushIntervalCommitLog", settings.flush_interval_ms.to_string()),
        ("listenPort", settings.port.to_string()),
        ("litePullMessageEnable", "true".to_owned()),
        ("longPollingEnable", "true".to_owned()),
        ("mappedFileSizeCommitLog", settings.segment_bytes.to_string()),
        ("maxMessageSize", limits.message_bytes.to_string()),
        ("maxTransferBytesOnMessageInMemory", limits.pull_bytes.to_string()),
        ("maxTransferCountOnMessageInMemory", limits.pull_messages.to_string()),
        ("messageDelayLevel", settings.delay_levels_text.clone()),
        ("messageIndexEnable", "true".to_owned()),
        ("namesrvAddr", settings.namesrv.join(";")),
        ("recallMessageEnable", settings.recall_message.to_string()),
        ("allowRecallWhenBrokerNotWriteable", settings.recall_read_only.to_string()),
        ("regionId", settings.region.clone()),
        ("rejectTransactionMessage", settings.reject_transaction.to_string()),
        ("storeReplyMessageEnable", settings.store_replies.to_string()),
        ("useServerSideResetOffset", settings.server_side_reset.to_string()),
        ("storePathRootDir", settings.data_dir.display().to_string()),
        ("timerMaxDelaySec", (settings.timer_max_delay_ms / 1000).to_string()),
        ("timerWheelEnable", "true".to_owned()),
        ("traceOn", settings.trace_on.to_string()),
        ("traceTopicEnable", settings.trace_topic.to_string()),
        ("transactionCheckInterval", settings.transaction_check_interval_ms.to_string()),
        ("transactionCheckMax", settings.transaction_check_max.to_string()),
        ("transactionTimeOut", settings.transaction_timeout_ms.to_string()),
    ];
    let mut all: BTreeMap<String, String> = rows.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    all.extend(changes.rows(settings));
    let mut text = String::new();
    for (key, value) in all {
        text.push_str(&key);
        text.push('=');
        escape(&mut text, &value);
        text.push('\n');
    }
    text
}

/// A value as Java's `Properties` reads it back.
fn escape(text: &mut String, value: &str) {
    for (index, character) in value.chars().enumerate() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            ' ' if index == 0 => text.push_str("\\ "),
            character => text.push(character),
        }
    }
}

/// As `MixAll.humanReadableByteCount` prints: `27.2 GiB`.
fn bytes_text(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for next in units {
        if amount < 1024.0 {
            break;
        }
        amount /= 1024.0;
        unit = next;
    }
    format!("{amount:.1} {unit}")
}

/// As `StoreStatsService.getFormatRuntime` prints.
fn running_text(ms: u64) -> String {
    let seconds = ms / 1000;
    let mut text = String::new();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let seconds = seconds % 60;
    write!(text, "[ {days} days, {hours} hours, {minutes} minutes, {seconds} seconds ]")
        .expect("writing into memory cannot fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn puts(put_messages: u64) -> Tally {
        Tally { traffic: Traffic { put_messages, ..Traffic::default() }, ..Tally::default() }
    }

    #[test]
    fn rates_are_of_three_windows() {
        let mut rates = Rates::default();
        let text = |rates: &Rates| rates.text(|traffic| traffic.put_messages);
        assert_eq!(text(&rates), "0.0 0.0 0.0");
        rates.sample(&puts(0), 0);
        assert_eq!(text(&rates), "0.0 0.0 0.0");
        rates.sample(&puts(100), 10_000);
        assert_eq!(text(&rates), "10.0 10.0 10.0");
        // Ten minutes with 10 a second, then one sample with 1000 a second.
        for tick in 2..=61 {
            rates.sample(&puts(100 * tick), 10_000 * tick);
        }
        assert_eq!(rates.samples.len(), SAMPLES_MAX);
        rates.sample(&puts(6_100 + 10_000), 620_000);
        assert_eq!(text(&rates), "1000.0 175.0 26.5");
    }

    #[test]
    fn mornings_are_the_last_sample_before_midnight() {
        let mut rates = Rates::default();
        let mornings = |rates: &Rates| (rates.yesterday_morning.put_messages, rates.today_morning.put_messages);
        let rows = [
            (100 * DAY_MS + 5, 10, (0, 0)),
            (101 * DAY_MS - 1, 20, (0, 0)),
            (101 * DAY_MS, 30, (0, 20)),
            (102 * DAY_MS, 40, (20, 30)),
            // Asleep for a day.
            (104 * DAY_MS, 50, (0, 40)),
        ];
        for (at_ms, put, wanted) in rows {
            rates.sample(&puts(put), at_ms);
            assert_eq!(mornings(&rates), wanted, "{at_ms}");
        }
    }

    #[test]
    fn amounts_are_printed_as_java_does() {
        let rows = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (29_205_777_613, "27.2 GiB")];
        for (bytes, wanted) in rows {
            assert_eq!(bytes_text(bytes), wanted);
        }
        assert_eq!(running_text(93_784_999), "[ 1 days, 2 hours, 3 minutes, 4 seconds ]");
        let mut text = String::new();
        escape(&mut text, " a\\b\nc d");
        assert_eq!(text, "\\ a\\\\b\\nc d");
    }
}
