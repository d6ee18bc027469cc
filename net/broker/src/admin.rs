//! Questions about what all cores hold: asked of every core, answered from its own partitions, and
//! put together again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use engine::Counts;
use protocol::bodies::{
    self, BrokerStatsData, ConsumeStats, MessageQueue, OffsetWrapper, ResetOffsets, StatsItem, TimeSpan, TimeSpans,
    TopicOffset, TopicStatsTable,
};
use protocol::codes::response;
use protocol::headers::QueryMessageAnswer;

use crate::answer::{Answer, BODY_BYTES_MAX, Refused};
use crate::call::ReplyTo;
use crate::config::Settings;
use crate::connection::Reason;
use crate::stats::{Counted, Window, Windows};

/// Most questions under way at once. 64: people and dashboards ask them.
pub const GATHERINGS_MAX: usize = 64;

/// Bytes of a row of the answers to 208 and 317, at least, without the names of broker and topic.
pub const ROW_BYTES_MIN: usize = concat!(
    r#"{"brokerName":"","queueId":0,"topic":""}:"#,
    r#"{"brokerOffset":0,"consumerOffset":0,"lastTimestamp":0,"pullOffset":0},"#
)
.len();
/// Groups in topics that one core tells for code 317, at most: each has a row or more, and those fill the answer. Some
/// 150,000.
pub const PAIRS_MAX: usize = BODY_BYTES_MAX / ROW_BYTES_MIN;

/// What every core is asked about its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Offsets and last store times of a topic's queues (code 202).
    Topic {
        /// The topic.
        topic: String,
    },
    /// In which topics does this group have offsets?
    TopicsOf {
        /// The group.
        group: String,
    },
    /// Which groups have offsets in which topics (code 317)?
    Consumed,
    /// How far are these groups in these topics (codes 208 and 317)?
    Progress(Arc<[Consuming]>),
    /// From when to when is this topic, and where is this group in it (code 303)?
    Spans {
        /// The topic.
        topic: String,
        /// The group.
        group: String,
    },
    /// Which groups have offsets in this topic (code 300)?
    GroupsOf {
        /// The topic.
        topic: String,
    },
    /// Forget this group's offsets (code 207).
    Forget {
        /// The group.
        group: String,
    },
    /// Messages with this key (code 12), newest first.
    Messages {
        /// Hash of topic and key.
        key: u64,
        /// Stored at or behind this time, in ms.
        begin_ms: u64,
        /// Stored at or before this time, in ms.
        end_ms: u64,
        /// At most so many.
        count: usize,
    },
    /// Where would this group go on, and let it go on there (code 222).
    Reset(Reset),
    /// Where groups must at least be (code 308).
    Correction {
        /// The topic.
        topic: String,
        /// Groups that do not count.
        without: BTreeSet<String>,
        /// A group that is compared with the others.
        compared: String,
    },
    /// Give another group the offsets of one (code 314).
    Clone {
        /// Whose.
        from: String,
        /// Who gets them.
        to: String,
        /// In these topics; `None`: in all.
        topics: Option<BTreeSet<String>>,
    },
    /// What went in and out lately (codes 202, 208, 315).
    Stats(Vec<Counted>),
    /// What was counted since the start (code 28).
    Tally,
}

/// A group's offsets in a topic are set anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The topic.
    pub topic: String,
    /// The group.
    pub group: String,
    /// One of its queues; `None`: all.
    pub queue: Option<u32>,
    /// Where to.
    pub to: ResetTo,
    /// The broker sets them itself; else the group's clients are told.
    pub is_kept: bool,
    /// Of those told to clients: also forward.
    pub is_forced: bool,
}

/// Where a group's offset is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// This very offset, if the queue has it or ends there.
    Offset(i64),
    /// The first message stored then or later, in ms.
    Time(u64),
    /// The queue's end.
    Newest,
}

/// A group in a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Consuming {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: Arc<str>,
    /// The topic's id.
    pub id: u32,
    /// So many of its queues count.
    pub queues: u32,
}

/// Groups that have offsets, by the topic's id.
pub type Consumed = BTreeMap<u32, BTreeSet<String>>;

/// What one core knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// To `Topic`.
    Topic(Vec<QueueStats>),
    /// To `TopicsOf`: the topics' ids.
    TopicsOf(BTreeSet<u32>),
    /// To `Progress`.
    Progress(Vec<QueueProgress>),
    /// To `Spans`.
    Spans(Vec<QueueTimes>),
    /// To `GroupsOf`.
    GroupsOf(BTreeSet<String>),
    /// To `Forget`: that is durable, or not all of it.
    Forgotten(Result<(), Refused>),
    /// To `Reset`: the offsets by queue. `Err`: they are not set, or not all.
    Reset(Result<Vec<(u32, u64)>, Refused>),
    /// To `Correction`.
    Correction(Vec<(u32, i64)>),
    /// To `Clone`: it is done. `Err`: not all of it.
    Cloned(Result<(), Refused>),
    /// To `Consumed`. `None`: too many, see [`PAIRS_MAX`].
    Consumed(Option<Consumed>),
    /// To `Stats`: of each; `None`: nothing is known of it.
    Stats(Vec<Option<Windows>>),
    /// To `Messages`.
    Messages {
        /// Store times in ms, and the stored records.
        found: Vec<(u64, Bytes)>,
        /// There may be more: something cannot be read, or it was too much.
        is_partial: bool,
    },
    /// To `Tally`.
    Tally(Box<Tally>),
}

/// What a topic's queue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueStats {
    /// The queue.
    pub queue: u32,
    /// First queue offset there is.
    pub min: u64,
    /// The next one to be given.
    pub max: u64,
    /// When its last message was stored, in ms; 0: never, or that message is gone.
    pub last_ms: u64,
}

/// When a queue's messages were stored, ms since 1970. 0: there is no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueTimes {
    /// The queue.
    pub queue: u32,
    /// The first one.
    pub first_ms: u64,
    /// The last one.
    pub last_ms: u64,
    /// The last one that the group has consumed; the first one, if it has consumed none.
    pub consumed_ms: u64,
    /// The first one that it has not consumed.
    pub next_ms: u64,
}

/// How far a group is in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueProgress {
    /// Which of those asked for.
    pub asked: usize,
    /// The queue.
    pub queue: u32,
    /// The next queue offset to be given.
    pub broker: u64,
    /// The group's offset; 0: it has none.
    pub consumer: u64,
    /// Up to where messages were given to the group: behind `consumer` only if it pops.
    pub given: u64,
    /// When the message before that offset was stored, in ms; 0: there is none.
    pub last_ms: u64,
}

/// What a core counts while it serves, since its start. `desk.rs`, `consume.rs` and `pop.rs` count, code 28 shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages stored.
    pub put_messages: u64,
    /// Their bytes.
    pub put_bytes: u64,
    /// Messages that could not be stored.
    pub put_failures: u64,
    /// The longest time from a send's arrival to its answer, in ms.
    pub put_ms_max: u64,
    /// Messages given to consumers.
    pub got_messages: u64,
    /// Pulls that found messages.
    pub pulls_found: u64,
    /// Pulls that found none.
    pub pulls_missed: u64,
}

/// What a core's loop and its sockets count, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken over.
    pub accepted: u64,
    /// Connections closed, by [`Reason`].
    pub closed: [u64; Reason::ALL.len()],
    /// Requests received.
    pub requests: u64,
    /// Receives that ended for want of buffers.
    pub starved: u64,
    /// Turns of the loop.
    pub turns: u64,
}

/// What one core, or all of them together, did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// What was served.
    pub traffic: Traffic,
    /// What came through the sockets.
    pub counters: Counters,
    /// What the logs counted since they were opened.
    pub logs: Counts,
    /// Bytes of the logs' beginnings, summed.
    pub log_min: u64,
    /// Bytes of the logs' ends, summed.
    pub log_max: u64,
    /// Bytes written but not yet durable.
    pub unflushed: u64,
    /// Offsets of groups that changed and are not in the logs yet.
    pub unwritten: u64,
    /// When the oldest message was stored, in ms. `None`: there is no message.
    pub earliest_ms: Option<u64>,
    /// Bytes that the file system has, and how many of them are available to us.
    pub disk: Option<(u64, u64)>,
}

impl Tally {
    /// Adds another core's.
    pub fn add(&mut self, other: &Tally) {
        let (mine, others) = (&mut self.traffic, &other.traffic);
        mine.put_messages += others.put_messages;
        mine.put_bytes += others.put_bytes;
        mine.put_failures += others.put_failures;
        mine.put_ms_max = mine.put_ms_max.max(others.put_ms_max);
        mine.got_messages += others.got_messages;
        mine.pulls_found += others.pulls_found;
        mine.pulls_missed += others.pulls_missed;
        let (mine, others) = (&mut self.counters, &other.counters);
        mine.accepted += others.accepted;
        mine.closed.iter_mut().zip(others.closed).for_each(|(mine, others)| *mine += others);
        mine.requests += others.requests;
        mine.starved += others.starved;
        mine.turns += others.turns;
        let (mine, others) = (&mut self.logs, &other.logs);
        mine.batches += others.batches;
        mine.bytes += others.bytes;
        mine.records += others.records;
        mine.unprepared_bytes += others.unprepared_bytes;
        mine.stalls += others.stalls;
        mine.refusals += others.refusals;
        self.log_min += other.log_min;
        self.log_max += other.log_max;
        self.unflushed += other.unflushed;
        self.unwritten += other.unwritten;
        self.earliest_ms = self.earliest_ms.into_iter().chain(other.earliest_ms).min();
        self.disk = self.disk.or(other.disk);
    }
}

impl Part {
    /// Joins another core's part of the same answer.
    fn join(&mut self, other: Part) {
        match (self, other) {
            (Part::Topic(all), Part::Topic(more)) => all.extend(more),
            (Part::TopicsOf(all), Part::TopicsOf(more)) => all.extend(more),
            (Part::Progress(all), Part::Progress(more)) => all.extend(more),
            (Part::Spans(all), Part::Spans(more)) => all.extend(more),
            (Part::GroupsOf(all), Part::GroupsOf(more)) => all.extend(more),
            (Part::Reset(Ok(all)), Part::Reset(Ok(more))) => all.extend(more),
            (Part::Reset(Err(_)), Part::Reset(_)) => {}
            (mine @ Part::Reset(Ok(_)), Part::Reset(Err(refused))) => *mine = Part::Reset(Err(refused)),
            (Part::Correction(all), Part::Correction(more)) => all.extend(more),
            (Part::Consumed(Some(all)), Part::Consumed(Some(more))) => {
                more.into_iter().for_each(|(topic, groups)| all.entry(topic).or_default().extend(groups));
            }
            (Part::Consumed(all), Part::Consumed(_)) => *all = None,
            (Part::Cloned(mine), Part::Cloned(other)) | (Part::Forgotten(mine), Part::Forgotten(other)) => {
                if mine.is_ok() {
                    *mine = other;
                }
            }
            (Part::Stats(all), Part::Stats(more)) => {
                for (mine, other) in all.iter_mut().zip(more) {
                    match (mine, other) {
                        (Some(mine), Some(other)) => {
                            mine.iter_mut().zip(&other).for_each(|(mine, other)| mine.add(other))
                        }
                        (mine, other) => *mine = mine.or(other),
                    }
                }
            }
            (Part::Messages { found: all, is_partial: any }, Part::Messages { found: more, is_partial }) => {
                all.extend(more);
                *any |= is_partial;
            }
            (Part::Tally(all), Part::Tally(more)) => all.add(&more),
            (mine, other) => panic!("cores answered one question with {mine:?} and {other:?}"),
        }
    }
}

/// What a question is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Code 202.
    Topic {
        /// The topic.
        topic: String,
    },
    /// Code 202, its last part.
    TopicRate {
        /// The topic.
        topic: String,
        /// The answer but for the rate.
        queues: Vec<QueueStats>,
    },
    /// Code 208 without a topic: those of the group first.
    TopicsOf {
        /// The group.
        group: String,
    },
    /// Code 343.
    TopicNames,
    /// Codes 208 and 317, their last part.
    ProgressRate {
        /// What `QueueProgress` counts.
        asked: Arc<[Consuming]>,
        /// Code 317.
        of_all: bool,
        /// The answer but for the rates.
        queues: Vec<QueueProgress>,
    },
    /// Code 315.
    Stats {
        /// Bytes, not messages.
        is_size: bool,
        /// What was asked, for a refusal.
        name: String,
    },
    /// Codes 208 and 317.
    Progress {
        /// What `QueueProgress` counts.
        asked: Arc<[Consuming]>,
        /// Code 317.
        of_all: bool,
    },
    /// Code 303.
    Spans {
        /// The topic.
        topic: String,
    },
    /// Code 300.
    GroupsOf {
        /// The topic.
        topic: String,
    },
    /// Code 207.
    Forget {
        /// The group.
        group: String,
    },
    /// Code 12.
    Messages {
        /// At most so many.
        count: usize,
    },
    /// Code 222.
    Reset {
        /// As it was asked.
        reset: Reset,
        /// The time asked for, in ms, for the clients.
        timestamp: i64,
    },
    /// Code 308.
    Correction,
    /// Code 314.
    Clone,
    /// Code 317: first where groups have offsets.
    Consumed {
        /// In topics of an order alone.
        only_ordered: bool,
    },
    /// Code 28.
    Runtime,
    /// The broker's own sampling.
    Sample,
}

/// The questions under way.
#[derive(Debug)]
pub struct Gatherings {
    cores: usize,
    next: u64,
    open: BTreeMap<u64, Gathering>,
}

#[derive(Debug)]
struct Gathering {
    reply: Option<ReplyTo>,
    goal: Goal,
    missing: usize,
    part: Option<Part>,
}

/// A question that every core has answered.
#[derive(Debug, PartialEq)]
pub struct Gathered {
    /// Whom to answer; `None`: ourselves.
    pub reply: Option<ReplyTo>,
    /// What for.
    pub goal: Goal,
    /// All parts, joined.
    pub part: Part,
}

impl Gatherings {
    /// None under way. `cores`: how many answer each.
    pub fn new(cores: usize) -> Gatherings {
        Gatherings { cores, next: 0, open: BTreeMap::new() }
    }

    /// Begins one. Returns its ticket; `Err`: there are too many.
    pub fn start(&mut self, reply: Option<ReplyTo>, goal: Goal) -> Result<u64, Goal> {
        if self.open.len() >= GATHERINGS_MAX {
            return Err(goal);
        }
        self.next += 1;
        self.open.insert(self.next, Gathering { reply, goal, missing: self.cores, part: None });
        Ok(self.next)
    }

    /// Takes one core's part. Returns the whole once it is there.
    pub fn on_told(&mut self, ticket: u64, part: Part) -> Option<Gathered> {
        let gathering = self.open.get_mut(&ticket).expect("cores answer what they are asked, once");
        match &mut gathering.part {
            Some(all) => all.join(part),
            none => *none = Some(part),
        }
        gathering.missing -= 1;
        if gathering.missing > 0 {
            return None;
        }
        let Gathering { reply, goal, part, .. } = self.open.remove(&ticket)?;
        Some(Gathered { reply, goal, part: part? })
    }
}

/// The answer to code 202.
pub fn topic_stats(broker: &str, topic: &str, queues: &[QueueStats], topic_put_tps: f64) -> Answer {
    let row = |stats: &QueueStats| {
        let offset = TopicOffset {
            last_update_timestamp: signed(stats.last_ms),
            max_offset: signed(stats.max),
            min_offset: signed(stats.min),
        };
        (message_queue(broker, topic, stats.queue), offset)
    };
    let table = TopicStatsTable { offset_table: queues.iter().map(row).collect(), topic_put_tps };
    Answer::with_body(table.encode())
}

/// The answer to code 208.
pub fn consume_stats(broker: &str, asked: &[Consuming], queues: &[QueueProgress], consume_tps: f64) -> Answer {
    let row = |progress: &QueueProgress| consume_row(broker, &asked[progress.asked].topic, progress);
    let stats = ConsumeStats { consume_tps, offset_table: queues.iter().map(row).collect() };
    Answer::with_body(stats.encode())
}

/// The answer to code 303.
pub fn time_spans(broker: &str, topic: &str, queues: &[QueueTimes], now_ms: u64) -> Answer {
    let stamp = |at_ms: u64| if at_ms == 0 { -1 } else { signed(at_ms) };
    let row = |times: &QueueTimes| TimeSpan {
        consume_time_stamp: stamp(times.consumed_ms),
        delay_time: if times.next_ms == 0 { 0 } else { signed(now_ms.saturating_sub(times.next_ms)) },
        max_time_stamp: stamp(times.last_ms),
        message_queue: message_queue(broker, topic, times.queue),
        min_time_stamp: stamp(times.first_ms),
    };
    Answer::with_body(bodies::encode(&TimeSpans { consume_time_span_set: queues.iter().map(row).collect() }))
}

/// Offsets of a topic's queues, as 222 answers and 220 says them.
pub fn reset_offsets(broker: &str, topic: &str, offsets: &[(u32, u64)]) -> ResetOffsets {
    let row = |(queue, offset): &(u32, u64)| (message_queue(broker, topic, *queue), signed(*offset));
    ResetOffsets { offset_table: offsets.iter().map(row).collect() }
}

/// Messages a second of the last minute, all together.
pub fn rate(stats: &[Option<Windows>]) -> f64 {
    let rates = stats.iter().flatten().map(|[minute, ..]| per_second(minute.count.messages, minute.span_ms));
    // A sum of nothing is -0.0.
    rates.fold(0.0, |all, rate| all + rate)
}

/// The answer to code 315.
pub fn broker_stats(is_size: bool, windows: &Windows) -> Answer {
    let item = |window: &Window| {
        let sum = if is_size { window.count.bytes } else { window.count.messages };
        let average = if window.count.messages == 0 { 0.0 } else { sum as f64 / window.count.messages as f64 };
        StatsItem { avgpt: average, sum: signed(sum), tps: per_second(sum, window.span_ms) }
    };
    let [minute, hour, day] = windows.each_ref().map(item);
    let data = BrokerStatsData { stats_day: day, stats_hour: hour, stats_minute: minute };
    Answer::with_body(bodies::encode(&data))
}

fn per_second(count: u64, span_ms: u64) -> f64 {
    if span_ms == 0 { 0.0 } else { count as f64 * 1000.0 / span_ms as f64 }
}

/// The answer to code 308.
pub fn correction(offsets: &[(u32, i64)]) -> Answer {
    let table: BTreeMap<String, i64> = offsets.iter().map(|(queue, offset)| (queue.to_string(), *offset)).collect();
    Answer::with_body(bodies::encode(&BTreeMap::from([("correctionOffsets", table)])))
}

/// The answer to code 317. `groups`: all that there are; `lately`: of each that is asked for.
pub fn all_consume_stats<'a>(
    settings: &Settings,
    groups: impl Iterator<Item = &'a str>,
    asked: &'a [Consuming],
    queues: &[QueueProgress],
    lately: &[Option<Windows>],
) -> Answer {
    let rates = lately.iter().map(|lately| rate(std::slice::from_ref(lately)));
    let mut stats: Vec<ConsumeStats> =
        rates.map(|consume_tps| ConsumeStats { consume_tps, ..ConsumeStats::default() }).collect();
    let (mut behind, mut given) = (0, 0);
    for row in queues {
        behind += signed(row.broker.saturating_sub(row.consumer));
        given += signed(row.given.saturating_sub(row.consumer));
        stats[row.asked].offset_table.extend([consume_row(&settings.broker_name, &asked[row.asked].topic, row)]);
    }
    let mut groups: BTreeMap<&str, Vec<ConsumeStats>> = groups.map(|group| (group, Vec::new())).collect();
    for (consuming, stats) in asked.iter().zip(stats) {
        groups.entry(&consuming.group).or_default().push(stats);
    }
    let mut body = format!("{{\"brokerAddr\":\"{}\",\"consumeStatsList\":[", settings.address()).into_bytes();
    for (index, (group, topics)) in groups.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        // Names have no character that JSON escapes.
        body.extend_from_slice(format!("{comma}{{\"{group}\":[").as_bytes());
        for (index, stats) in topics.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&stats.encode());
        }
        body.extend_from_slice(b"]}");
    }
    body.extend_from_slice(format!("],\"totalDiff\":{behind},\"totalInflightDiff\":{given}}}").as_bytes());
    Answer::with_body(body)
}

/// What is said of messages that were looked for and not all found.
const PARTIAL: &str = "not all that is stored could be looked at: there may be more messages";

/// The answer to code 12: newest first, at most `count`, no more bytes than fit a frame. `is_partial`: there may be
/// more, where nobody could look; the remark says so, and that none was found is not known then.
pub fn messages(count: usize, bytes_max: usize, mut messages: Vec<(u64, Bytes)>, is_partial: bool) -> Answer {
    messages.sort_by_key(|(stored_ms, _)| std::cmp::Reverse(*stored_ms));
    let newest_ms = messages.first().map_or(0, |(stored_ms, _)| *stored_ms);
    let mut body = BytesMut::new();
    for (_, message) in messages.iter().take(count) {
        if body.len() + message.len() > bytes_max {
            break;
        }
        body.extend_from_slice(message);
    }
    let mut answer = match (body.is_empty(), is_partial) {
        (true, true) => Answer::refusal(response::SYSTEM_ERROR, PARTIAL),
        (true, false) => {
            Answer::refusal(response::QUERY_NOT_FOUND, "can not find message, maybe time range not correct")
        }
        (false, true) => Answer { remark: PARTIAL.to_owned(), ..Answer::with_body(body) },
        (false, false) => Answer::with_body(body),
    };
    let header = QueryMessageAnswer { index_last_update_timestamp: signed(newest_ms), index_last_update_offset: 0 };
    header.push(&mut answer.fields);
    answer
}

fn consume_row(broker: &str, topic: &str, progress: &QueueProgress) -> (MessageQueue, OffsetWrapper) {
    let offsets = OffsetWrapper {
        broker_offset: signed(progress.broker),
        consumer_offset: signed(progress.consumer),
        last_timestamp: signed(progress.last_ms),
        pull_offset: signed(progress.given),
    };
    (message_queue(broker, topic, progress.queue), offsets)
}

fn message_queue(broker: &str, topic: &str, queue: u32) -> MessageQueue {
    MessageQueue { broker_name: broker.to_owned(), queue_id: queue.cast_signed(), topic: topic.to_owned() }
}

/// Java has no unsigned integers; ours stay far below the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
