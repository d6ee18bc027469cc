//! What came in and went out, by topic, by group and of the broker, over the last minute, hour and day (code 315, which
//! `mqadmin statsAll` asks). Counted where it happens: a send adds to its topic's place in a list, an answered pull to
//! its group's, and so does a message that is sent back. Every ten seconds the counts are sampled, and what the core
//! counts of its traffic anyway.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;

use crate::admin::Traffic;

/// Topics that are counted have ids below this, 1 Mi, and so a list of at most 16 MiB. Ids are never used again: who
/// makes and deletes more topics than that sees no figures for the last ones.
pub const TOPIC_IDS_MAX: u32 = 1 << 20;
/// Topics, and what groups do in topics, whose history is kept, per core. 16,384 of each, 1 KiB each. What comes later
/// has no history, until others go.
pub const SERIES_MAX: usize = 16_384;
/// When there are as many, what a group has not done for this long makes room, in ms. An hour.
const QUIET_MS: u64 = HOUR_MS;
/// How often the counts are sampled, in ms.
pub const HISTORY_SAMPLE_MS: u64 = 10_000;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Messages and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What happened in a time that ends now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// What.
    pub count: Count,
    /// How long the time is, in ms: shorter than its name as long as there is less to tell.
    pub span_ms: u64,
}

/// The last minute, hour and day.
pub type Windows = [Window; 3];

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Messages sent to a topic.
    Put {
        /// Its id.
        topic: u32,
    },
    /// Messages of a topic given to a group.
    Got {
        /// The topic's id.
        topic: u32,
        /// The group.
        group: String,
    },
    /// Messages of a topic that a group sent back.
    Returned {
        /// The topic's id.
        topic: u32,
        /// The group.
        group: String,
    },
    /// Messages sent, of all topics.
    AllPut,
    /// Messages given to anybody.
    AllGot,
}

/// The counts of one core.
#[derive(Debug)]
pub struct Stats {
    state: RandomState,
    /// By topic id.
    puts: Vec<Count>,
    /// Of the topics that have one, by topic id.
    histories: std::collections::BTreeMap<u32, History>,
    deeds: HashTable<Deed>,
    /// Of messages sent and given, whatever their topic; it begins with the first sample.
    all: Option<[History; 2]>,
    sample_at_ms: u64,
}

/// What a group does with messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Does {
    Gets,
    Returns,
}

/// What a group did in a topic.
#[derive(Debug)]
struct Deed {
    does: Does,
    topic: u32,
    group: Arc<str>,
    count: Count,
    /// What it was at the last sample, and since when.
    sampled: Count,
    since_ms: u64,
    history: History,
}

/// Samples of a count that only grows, each with its time.
#[derive(Debug)]
struct History {
    /// When it began: then the count was zero.
    since_ms: u64,
    minute: Ring<7>,
    hour: Ring<7>,
    day: Ring<25>,
}

/// The newest samples, so far apart.
#[derive(Debug)]
struct Ring<const N: usize> {
    samples: [(u64, Count); N],
    /// How many were ever taken.
    taken: usize,
}

impl Stats {
    /// Nothing counted. `seed`: of the hash table.
    pub fn new(seed: u64) -> Stats {
        Stats {
            state: RandomState::with_seed(seed as usize),
            puts: Vec::new(),
            histories: std::collections::BTreeMap::new(),
            deeds: HashTable::new(),
            all: None,
            sample_at_ms: 0,
        }
    }

    /// Messages were taken for a topic.
    #[inline]
    pub fn put(&mut self, topic: u32, messages: u64, bytes: u64) {
        match self.puts.get_mut(topic as usize) {
            Some(count) => count.add(messages, bytes),
            None => self.put_first(topic, messages, bytes),
        }
    }

    #[cold]
    fn put_first(&mut self, topic: u32, messages: u64, bytes: u64) {
        if topic < TOPIC_IDS_MAX {
            self.puts.resize((topic as usize + 1).next_power_of_two(), Count::default());
            self.puts[topic as usize].add(messages, bytes);
        }
    }

    /// A pull of a group was answered with messages.
    pub fn got(&mut self, topic: u32, group: &Arc<str>, messages: u64, bytes: u64, now_ms: u64) {
        self.did(Does::Gets, topic, group, Count { messages, bytes }, now_ms);
    }

    /// A group has sent a message back.
    pub fn returned(&mut self, topic: u32, group: &Arc<str>, now_ms: u64) {
        self.did(Does::Returns, topic, group, Count { messages: 1, bytes: 0 }, now_ms);
    }

    fn did(&mut self, does: Does, topic: u32, group: &Arc<str>, count: Count, now_ms: u64) {
        let hash = self.state.hash_one((does, topic, &**group));
        if let Some(deed) = self.deeds.find_mut(hash, |deed| deed.is(does, topic, group)) {
            return deed.count.add(count.messages, count.bytes);
        }
        if self.deeds.len() < SERIES_MAX {
            let sampled = Count::default();
            let history = History::new(now_ms);
            let deed = Deed { does, topic, group: group.clone(), count, sampled, since_ms: now_ms, history };
            let state = &self.state;
            self.deeds.insert_unique(hash, deed, |deed| state.hash_one((deed.does, deed.topic, &*deed.group)));
        }
    }

    /// Samples the counts, and what was counted of traffic, if it is time. Cost: all of them, every ten
    /// seconds; 100,000 topics take some 100 µs.
    pub fn on_time(&mut self, traffic: &Traffic, now_ms: u64) {
        if now_ms < self.sample_at_ms {
            return;
        }
        self.sample_at_ms = now_ms + HISTORY_SAMPLE_MS;
        let all = self.all.get_or_insert_with(|| [History::new(now_ms), History::new(now_ms)]);
        for (history, count) in all.iter_mut().zip(totals(traffic)) {
            history.sample(count, now_ms);
        }
        for (topic, count) in (0..).zip(&self.puts) {
            if *count == Count::default() {
                continue;
            }
            if let Some(history) = self.histories.get_mut(&topic) {
                history.sample(*count, now_ms);
            } else if self.histories.len() < SERIES_MAX {
                let mut history = History::new(now_ms.saturating_sub(HISTORY_SAMPLE_MS));
                history.sample(*count, now_ms);
                self.histories.insert(topic, history);
            }
        }
        for deed in self.deeds.iter_mut() {
            deed.history.sample(deed.count, now_ms);
            if deed.count != deed.sampled {
                (deed.sampled, deed.since_ms) = (deed.count, now_ms);
            }
        }
        if self.deeds.len() == SERIES_MAX {
            self.deeds.retain(|deed| now_ms < deed.since_ms + QUIET_MS);
        }
    }

    /// Forgets what belongs to topics that are gone.
    pub fn forget_topics(&mut self, topics: &BTreeSet<u32>) {
        for topic in topics {
            self.histories.remove(topic);
            if let Some(count) = self.puts.get_mut(*topic as usize) {
                *count = Count::default();
            }
        }
        self.deeds.retain(|deed| !topics.contains(&deed.topic));
    }

    /// Forgets what groups did that are gone.
    pub fn forget_groups(&mut self, groups: &BTreeSet<Arc<str>>) {
        self.deeds.retain(|deed| !groups.contains(&deed.group));
    }

    /// What happened lately. `None`: nothing is known of it.
    pub fn windows(&self, counted: &Counted, traffic: &Traffic, now_ms: u64) -> Option<Windows> {
        let did = |does: Does, topic: u32, group: &str| {
            let hash = self.state.hash_one((does, topic, group));
            let deed = self.deeds.find(hash, |deed| deed.is(does, topic, group))?;
            Some(deed.history.windows(deed.count, now_ms))
        };
        let [put, got] = totals(traffic);
        let total = |count: Count, which: usize| {
            let history = &self.all.as_ref().filter(|_| count.messages > 0)?[which];
            Some(history.windows(count, now_ms))
        };
        match counted {
            Counted::Put { topic } => {
                let count = self.puts.get(*topic as usize)?;
                Some(self.histories.get(topic)?.windows(*count, now_ms))
            }
            Counted::Got { topic, group } => did(Does::Gets, *topic, group),
            Counted::Returned { topic, group } => did(Does::Returns, *topic, group),
            Counted::AllPut => total(put, 0),
            Counted::AllGot => total(got, 1),
        }
    }
}

/// What a core has taken and given, whatever the topic.
fn totals(traffic: &Traffic) -> [Count; 2] {
    let put = Count { messages: traffic.put_messages, bytes: traffic.put_bytes };
    [put, Count { messages: traffic.got_messages, bytes: 0 }]
}

impl Deed {
    fn is(&self, does: Does, topic: u32, group: &str) -> bool {
        self.does == does && self.topic == topic && *self.group == *group
    }
}

impl Count {
    #[inline]
    fn add(&mut self, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
    }
}

impl Window {
    /// Joins what another core counted.
    pub fn add(&mut self, other: &Window) {
        self.count.add(other.count.messages, other.count.bytes);
        self.span_ms = self.span_ms.max(other.span_ms);
    }
}

impl History {
    fn new(since_ms: u64) -> History {
        History { since_ms, minute: Ring::new(), hour: Ring::new(), day: Ring::new() }
    }

    fn sample(&mut self, count: Count, now_ms: u64) {
        self.minute.sample(count, now_ms, MINUTE_MS / 6);
        self.hour.sample(count, now_ms, HOUR_MS / 6);
        self.day.sample(count, now_ms, DAY_MS / 24);
    }

    fn windows(&self, count: Count, now_ms: u64) -> Windows {
        [
            self.minute.window(count, now_ms, MINUTE_MS, self.since_ms),
            self.hour.window(count, now_ms, HOUR_MS, self.since_ms),
            self.day.window(count, now_ms, DAY_MS, self.since_ms),
        ]
    }
}

impl<const N: usize> Ring<N> {
    fn new() -> Ring<N> {
        Ring { samples: [(0, Count::default()); N], taken: 0 }
    }

    /// Takes a sample, if the last one is as old as they lie apart; a tick may come a little early.
    fn sample(&mut self, count: Count, now_ms: u64, apart_ms: u64) {
        let newest_ms = self.taken.checked_sub(1).map(|newest| self.samples[newest % N].0);
        if newest_ms.is_none_or(|newest_ms| now_ms + HISTORY_SAMPLE_MS / 10 >= newest_ms + apart_ms) {
            self.samples[self.taken % N] = (now_ms, count);
            self.taken += 1;
        }
    }

    /// What was counted in the last `window_ms`: since the oldest sample in it, or since the beginning.
    fn window(&self, count: Count, now_ms: u64, window_ms: u64, since_ms: u64) -> Window {
        let from_ms = now_ms.saturating_sub(window_ms + HISTORY_SAMPLE_MS / 2);
        let begin = (since_ms >= from_ms).then_some((since_ms, Count::default()));
        let samples = (self.taken.saturating_sub(N)..self.taken).map(|index| self.samples[index % N]);
        let oldest = begin.into_iter().chain(samples.filter(|(at_ms, _)| *at_ms >= from_ms)).next();
        let (at_ms, old) = oldest.unwrap_or((now_ms, count));
        let count = Count { messages: count.messages - old.messages, bytes: count.bytes - old.bytes };
        Window { count, span_ms: now_ms.saturating_sub(at_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(windows: Option<Windows>) -> [(u64, u64); 3] {
        windows.expect("it is counted").map(|window| (window.count.messages, window.span_ms))
    }

    #[test]
    fn windows_are_of_a_minute_an_hour_and_a_day() {
        let (mut stats, quiet) = (Stats::new(7), Traffic::default());
        let group: Arc<str> = "g".into();
        let (put, got) = (Counted::Put { topic: 3 }, Counted::Got { topic: 3, group: "g".to_owned() });
        assert!(stats.windows(&put, &quiet, 0).is_none() && stats.windows(&got, &quiet, 0).is_none());
        let start_ms = 100 * DAY_MS;
        // One message a second for three days, told twice as often to the group.
        for second in 0..3 * DAY_MS / 1000 {
            let now_ms = start_ms + second * 1000;
            stats.put(3, 1, 10);
            stats.got(3, &group, 2, 20, now_ms);
            stats.on_time(&quiet, now_ms);
            if second == 30 {
                assert_eq!(messages(stats.windows(&put, &quiet, now_ms)), [(31, 40_000); 3]);
            }
        }
        let now_ms = start_ms + 3 * DAY_MS - 1000;
        for (counted, times) in [(&put, 1), (&got, 2)] {
            for ((count, span_ms), wanted_ms) in
                messages(stats.windows(counted, &quiet, now_ms)).into_iter().zip([MINUTE_MS, HOUR_MS, DAY_MS])
            {
                assert_eq!(count * 1000, span_ms * times);
                assert!(
                    span_ms <= wanted_ms + HISTORY_SAMPLE_MS && span_ms * 10 >= wanted_ms * 8,
                    "{span_ms} of {wanted_ms}"
                );
            }
        }
        // Then nothing for two hours.
        for second in 1..2 * HOUR_MS / 1000 {
            stats.on_time(&quiet, now_ms + second * 1000);
        }
        let later = messages(stats.windows(&put, &quiet, now_ms + 2 * HOUR_MS));
        assert_eq!((later[0].0, later[1].0), (0, 0));
        assert!(later[2].0 > 70_000);
        stats.forget_topics(&[3].into());
        assert!(stats.windows(&put, &quiet, 0).is_none() && stats.windows(&got, &quiet, 0).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut stats, quiet) = (Stats::new(7), Traffic::default());
        for topic in 0..SERIES_MAX as u32 + 10 {
            stats.put(topic, 1, 1);
            stats.got(topic, &"g".into(), 1, 1, 0);
        }
        stats.put(TOPIC_IDS_MAX, 1, 1);
        stats.put(u32::MAX, 1, 1);
        stats.on_time(&quiet, HISTORY_SAMPLE_MS);
        assert_eq!((stats.histories.len(), stats.deeds.len()), (SERIES_MAX, SERIES_MAX));
        assert!(stats.puts.len() <= TOPIC_IDS_MAX as usize);
        assert!(stats.windows(&Counted::Put { topic: SERIES_MAX as u32 + 1 }, &quiet, HISTORY_SAMPLE_MS).is_none());
    }

    #[test]
    fn groups_that_are_gone_or_quiet_make_room_for_others() {
        let (mut stats, quiet) = (Stats::new(7), Traffic::default());
        let (busy, idle): (Arc<str>, Arc<str>) = ("busy".into(), "idle".into());
        let got = |group: &str| Counted::Got { topic: 1, group: group.to_owned() };
        let mut now_ms = DAY_MS;
        for topic in 0..SERIES_MAX as u32 {
            stats.got(topic, if topic < 100 { &busy } else { &idle }, 1, 1, now_ms);
        }
        // Quiet ones stay as long as there is room.
        stats.forget_topics(&[500].into());
        stats.on_time(&quiet, now_ms);
        now_ms += QUIET_MS;
        stats.on_time(&quiet, now_ms);
        assert_eq!(stats.deeds.len(), SERIES_MAX - 1);
        stats.got(500, &idle, 1, 1, now_ms);
        stats.got(1, &"new".into(), 1, 1, now_ms);
        assert!(stats.windows(&got("new"), &quiet, now_ms).is_none(), "it is full");
        (0..100).for_each(|topic| stats.got(topic, &busy, 1, 1, now_ms));
        now_ms += HISTORY_SAMPLE_MS;
        stats.on_time(&quiet, now_ms);
        assert_eq!(stats.deeds.len(), 101);
        assert_eq!(messages(stats.windows(&got("busy"), &quiet, now_ms))[2].0, 2, "their history is whole");
        stats.got(1, &"new".into(), 1, 1, now_ms);
        assert_eq!(messages(stats.windows(&got("new"), &quiet, now_ms))[2].0, 1);
        stats.forget_groups(&["busy".into()].into());
        assert_eq!((stats.deeds.len(), stats.windows(&got("busy"), &quiet, now_ms)), (2, None));
    }
}
