//! Questions about what all cores hold: asked of every core, answered from its own partitions, and
//! put together again.

use std::collections::BTreeSet;

use bytes::Bytes;

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
    /// How far is this group in these topics (code 208)?
    Progress {
        /// The group.
        group: String,
        /// The topics.
        topics: Vec<String>,
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
    /// What was counted since the start (code 28).
    Tally,
}

/// What one core knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// To `Topic`.
    Topic(Vec<QueueStats>),
    /// To `TopicsOf`: the topics' ids.
    TopicsOf(BTreeSet<u32>),
    /// To `Progress`.
    Progress(Vec<QueueProgress>),
    /// To `GroupsOf`.
    GroupsOf(BTreeSet<String>),
    /// To `Forget`: it is done.
    Forgotten,
    /// To `Messages`: store times in ms, and the stored records.
    Messages(Vec<(u64, Bytes)>),
    /// To `Tally`.
    Tally(Tally),
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

/// How far a group is in one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueProgress {
    /// Which of the topics asked for.
    pub topic: usize,
    /// The queue.
    pub queue: u32,
    /// The next queue offset to be given.
    pub broker: u64,
    /// The group's offset; 0: it has none.
    pub consumer: u64,
    /// When the message before that offset was stored, in ms; 0: there is none.
    pub last_ms: u64,
}

/// What a core counts while it serves, since its start. `core.rs` counts, code 28 shows.
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

/// What one core, or all of them together, did and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// What was counted.
    pub traffic: Traffic,
    /// Bytes of the logs' beginnings, summed.
    pub log_min: u64,
    /// Bytes of the logs' ends, summed.
    pub log_max: u64,
    /// Bytes written but not yet durable.
    pub unflushed: u64,
    /// When the oldest message was stored, in ms. `None`: there is no message.
    pub earliest_ms: Option<u64>,
    /// Bytes that the file system has, and how many of them are available to us.
    pub disk: Option<(u64, u64)>,
}
