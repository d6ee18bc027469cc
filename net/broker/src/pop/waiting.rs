//! Pops that wait for a message, in lines; and what other cores wait for here.
//!
//! A pop asks many queues, which may lie on several cores. It waits on one of them, in the line of its topic, group and
//! queue; the other cores keep a *watch*: the first message there is told to that one, which sends the pop on its way
//! again. Then the watch is gone, and kept again for those who still wait once that pop has ended, whatever it found.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::RandomState;
use engine::format::QueueKey;
use hashbrown::{HashMap, HashSet};

use super::{Pop, Topics};
use crate::call::ConnectionId;
use crate::waiters::{Seat, Waiters};

/// Pops of one line that wait at once, as in RocketMQ (`popPollingSize`). One more is answered 209.
pub const LINE_POPS_MAX: usize = 1_024;
/// Watches that one core keeps for others. A pop without one learns of messages here when it comes again.
const WATCHES_MAX: usize = 100_000;

/// What pops wait for together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LineKey {
    /// The topic.
    pub topic: u32,
    /// The group.
    pub group: Arc<str>,
    /// The queue; `None`: all.
    pub queue: Option<u32>,
    /// They only want to know of messages: what a pop takes does not concern them.
    pub is_notice: bool,
    /// They keep the order, and so wait for no retry topic.
    pub is_orderly: bool,
    /// They want to know only of messages with these tags.
    pub tags: Option<Arc<str>>,
}

impl LineKey {
    /// Whether a message in this queue concerns it. Retry topics concern it whatever their queue.
    fn wants(&self, queue: QueueKey) -> bool {
        queue.topic != self.topic || self.queue.is_none_or(|wanted| wanted == queue.queue)
    }
}

/// What another core waits for.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The pops that wait.
    pub line: LineKey,
    /// Their topic and its retry topics.
    pub topics: Topics,
    /// The core that they wait on.
    pub home: usize,
    /// Nobody waits any more from then on, ms since 1970.
    pub until_ms: u64,
    /// What is there already is told, too.
    pub may_look: bool,
}

/// Pops that wait on this core, and watches for other cores.
#[derive(Debug)]
pub struct Waiting {
    pops: Waiters<Box<Pop>>,
    lines: HashMap<LineKey, Line, RandomState>,
    /// By topic and retry topic: the lines. Of a topic there may be as many as groups, and all of them end at once.
    by_topic: HashMap<u32, Keys, RandomState>,
    /// By topic and retry topic: the watches, by line and core.
    watches: HashMap<u32, Watches, RandomState>,
    watches_count: usize,
}

type Keys = HashSet<LineKey, RandomState>;
type Watches = HashMap<(LineKey, usize), Arc<Watch>, RandomState>;

#[derive(Debug, Default)]
struct Line {
    pops: VecDeque<Seat>,
    topics: [Option<u32>; 3],
    /// Cores that told it of something since they were asked to watch, by bit.
    told: u64,
}

impl Waiting {
    /// None yet. `count_max`: `limits.parked_pulls`.
    pub fn new(count_max: usize, seed: u64) -> Waiting {
        let state = RandomState::with_seed(seed as usize);
        Waiting {
            pops: Waiters::new(count_max),
            lines: HashMap::with_hasher(state.clone()),
            by_topic: HashMap::with_hasher(state.clone()),
            watches: HashMap::with_hasher(state),
            watches_count: 0,
        }
    }

    /// How many pops wait.
    pub fn count(&self) -> usize {
        self.pops.count()
    }

    /// How many wait in one line.
    pub fn count_in(&self, line: &LineKey) -> usize {
        self.lines.get(line).map_or(0, |line| line.pops.len())
    }

    /// Lets a pop wait until its `until_ms`; gives it back when too many wait already. All other cores that its topics
    /// lie on are to be asked to watch.
    pub fn wait(&mut self, pop: Box<Pop>) -> Result<(), Box<Pop>> {
        let key = pop.line();
        if !self.pops.has_room() || self.count_in(&key) >= LINE_POPS_MAX {
            return Err(pop);
        }
        let (topics, state) = (pop.topic_ids(), self.lines.hasher().clone());
        let line = self.lines.entry(key.clone()).or_default();
        if line.topics != topics {
            for topic in topics.into_iter().flatten().filter(|topic| !line.topics.contains(&Some(*topic))) {
                let none = || Keys::with_hasher(state.clone());
                self.by_topic.entry(topic).or_insert_with(none).insert(key.clone());
            }
            for topic in line.topics.into_iter().flatten().filter(|topic| !topics.contains(&Some(*topic))) {
                end(&mut self.by_topic, topic, &key);
            }
            line.topics = topics;
        }
        line.told = 0;
        let until_ms = pop.until_ms;
        line.pops.push_back(self.pops.add(pop, until_ms));
        Ok(())
    }

    /// There is a message in this queue: the first of each line that it concerns goes on, and whoever watches is told.
    #[inline]
    pub fn wake(&mut self, queue: QueueKey, woken: &mut VecDeque<Box<Pop>>, told: &mut Vec<Arc<Watch>>) {
        if self.lines.is_empty() && self.watches.is_empty() {
            return;
        }
        if let Some(lines) = self.by_topic.get(&queue.topic) {
            let lines: Vec<LineKey> = lines.iter().filter(|line| line.wants(queue)).cloned().collect();
            for line in lines {
                let mut pop = self.next(&line);
                pop.iter_mut().for_each(|pop| pop.way.looks = 0);
                // Before somebody takes the message.
                if line.is_notice { pop.into_iter().for_each(|pop| woken.push_front(pop)) } else { woken.extend(pop) }
            }
        }
        if let Some(watches) = self.watches.get_mut(&queue.topic) {
            let before = watches.len();
            told.extend(watches.extract_if(|_, watch| watch.line.wants(queue)).map(|(_, watch)| watch));
            self.watches_count -= before - watches.len();
            if watches.is_empty() {
                self.watches.remove(&queue.topic);
            }
        }
    }

    /// Takes the first of a line out.
    pub fn next(&mut self, key: &LineKey) -> Option<Box<Pop>> {
        let line = self.lines.get_mut(key)?;
        let seat = line.pops.pop_front()?;
        if line.pops.is_empty() {
            self.end(key);
        }
        self.pops.take(seat)
    }

    /// Another core has told a line of something: it does not watch any more.
    pub fn told(&mut self, key: &LineKey, core: usize) {
        if let Some(line) = self.lines.get_mut(key) {
            line.told |= 1 << core;
        }
    }

    /// The first of a line; and the cores that have told it of something, by bit.
    pub fn first(&self, key: &LineKey) -> Option<(&Pop, u64)> {
        let line = self.lines.get(key)?;
        Some((self.pops.get(*line.pops.front()?)?, line.told))
    }

    /// All of the cores that told a line of something are to be asked to watch again.
    pub fn untold(&mut self, key: &LineKey) {
        if let Some(line) = self.lines.get_mut(key) {
            line.told = 0;
        }
    }

    /// The lines of a group that wait for this topic.
    pub fn lines_of(&self, topic: u32, group: &str) -> Vec<LineKey> {
        let lines = self.by_topic.get(&topic).into_iter().flatten();
        lines.filter(|line| line.topic == topic && *line.group == *group).cloned().collect()
    }

    /// Takes all out that wait for this topic: it is gone, or has more queues.
    pub fn wake_topic(&mut self, topic: u32, woken: &mut VecDeque<Box<Pop>>) {
        let lines: Vec<LineKey> = self.by_topic.get(&topic).into_iter().flatten().cloned().collect();
        for line in lines {
            while let Some(mut pop) = self.next(&line) {
                pop.way.looks = 0;
                woken.push_back(pop);
            }
        }
    }

    /// Takes all out, and tells whoever watches: there may be something for any of them.
    pub fn wake_all(&mut self, woken: &mut VecDeque<Box<Pop>>, told: &mut Vec<Arc<Watch>>) {
        let lines: Vec<LineKey> = self.lines.keys().cloned().collect();
        for line in lines {
            while let Some(mut pop) = self.next(&line) {
                pop.way.looks = 0;
                woken.push_back(pop);
            }
        }
        // One stands by each of its topics, and is told once.
        for (topic, watches) in self.watches.drain() {
            let is_first = |watch: &Arc<Watch>| watch.topics.iter().flatten().next().is_some_and(|one| one.id == topic);
            told.extend(watches.into_values().filter(is_first));
        }
        self.watches_count = 0;
    }

    /// Takes out those whose time is over.
    pub fn expire(&mut self, now_ms: u64, expired: &mut VecDeque<Box<Pop>>) {
        while let Some((seat, pop)) = self.pops.expire(now_ms) {
            self.leave(seat, &pop.line());
            expired.push_back(pop);
        }
    }

    /// When the next one's time is over, in ms; perhaps a little early.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.pops.deadline_ms()
    }

    /// Forgets those of connections that are gone.
    pub fn forget(&mut self, gone: &HashSet<ConnectionId, RandomState>) {
        if gone.is_empty() || self.count() == 0 {
            return;
        }
        for seat in self.pops.find(|pop| gone.contains(&pop.reply.connection)) {
            if let Some(pop) = self.pops.take(seat) {
                self.leave(seat, &pop.line());
            }
        }
    }

    /// Keeps a watch for another core.
    pub fn watch(&mut self, watch: Watch, now_ms: u64) {
        if self.watches_count >= WATCHES_MAX {
            self.watches.retain(|_, watches| {
                watches.retain(|_, watch| watch.until_ms > now_ms);
                !watches.is_empty()
            });
            self.watches_count = self.watches.values().map(Watches::len).sum();
        }
        let (watch, state) = (Arc::new(watch), self.watches.hasher().clone());
        for topic in watch.topics.iter().flatten() {
            let none = || Watches::with_hasher(state.clone());
            let watches = self.watches.entry(topic.id).or_insert_with(none);
            let key = (watch.line.clone(), watch.home);
            if self.watches_count < WATCHES_MAX || watches.contains_key(&key) {
                self.watches_count += usize::from(watches.insert(key, watch.clone()).is_none());
            }
        }
    }

    /// Who waited there is not in this line any more.
    fn leave(&mut self, seat: Seat, key: &LineKey) {
        if let Some(line) = self.lines.get_mut(key) {
            line.pops.retain(|other| *other != seat);
            if line.pops.is_empty() {
                self.end(key);
            }
        }
    }

    /// Nobody is left in a line.
    fn end(&mut self, key: &LineKey) {
        let Some(line) = self.lines.remove(key) else { return };
        for topic in line.topics.into_iter().flatten() {
            end(&mut self.by_topic, topic, key);
        }
    }
}

/// A line does not wait for a topic any more.
fn end(by_topic: &mut HashMap<u32, Keys, RandomState>, topic: u32, key: &LineKey) {
    if let Some(lines) = by_topic.get_mut(&topic) {
        lines.remove(key);
        if lines.is_empty() {
            by_topic.remove(&topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::pop;
    use super::*;

    fn queue(topic: u32, queue: u32) -> QueueKey {
        QueueKey { topic, queue }
    }

    fn woken(waiting: &mut Waiting, key: QueueKey) -> (Vec<i32>, Vec<usize>) {
        let (mut woken, mut told) = (VecDeque::new(), Vec::new());
        waiting.wake(key, &mut woken, &mut told);
        (woken.iter().map(|pop| pop.reply.opaque).collect(), told.iter().map(|watch| watch.home).collect())
    }

    #[test]
    fn one_of_each_line_is_woken_in_turn() {
        let mut waiting = Waiting::new(100, 7);
        for (opaque, group, asked) in [(1, "g", None), (2, "g", None), (3, "h", Some(4)), (4, "g", Some(5))] {
            waiting.wait(Box::new(pop(opaque, group, asked, 1_000))).unwrap();
        }
        assert_eq!((waiting.count(), waiting.count_in(&pop(0, "g", None, 0).line())), (4, 2));
        assert!(woken(&mut waiting, queue(9, 0)).0.is_empty());
        assert_eq!(woken(&mut waiting, queue(1, 0)).0, [1]);
        let mut both = woken(&mut waiting, queue(1, 4)).0;
        both.sort_unstable();
        assert_eq!(both, [2, 3]);
        assert!(woken(&mut waiting, queue(1, 4)).0.is_empty());
        // Topic 2 is the retry topic, of whatever queue.
        assert_eq!(woken(&mut waiting, queue(2, 0)).0, [4]);
        assert_eq!((waiting.count(), waiting.lines.len(), waiting.by_topic.len()), (0, 0, 0));
    }

    #[test]
    fn time_and_connections_end_waiting() {
        let mut waiting = Waiting::new(3, 7);
        for opaque in 1..4 {
            waiting.wait(Box::new(pop(opaque, "g", None, 1_000 * opaque as u64))).unwrap();
        }
        assert!(waiting.wait(Box::new(pop(9, "g", None, 1))).is_err());
        let mut expired = VecDeque::new();
        waiting.expire(999, &mut expired);
        assert_eq!((expired.len(), waiting.deadline_ms()), (0, Some(1_000)));
        waiting.expire(1_000, &mut expired);
        assert_eq!(expired[0].reply.opaque, 1);
        let mut gone = HashSet::with_hasher(RandomState::with_seed(1));
        gone.insert(pop(2, "g", None, 0).reply.connection);
        waiting.forget(&gone);
        assert_eq!(woken(&mut waiting, queue(1, 0)).0, [3]);
        assert!(waiting.lines.is_empty());
    }

    #[test]
    fn a_message_for_very_many_groups_is_told_to_each_of_them() {
        let mut waiting = Waiting::new(100_000, 7);
        for round in 0..3 {
            for group in 0..50_000 {
                waiting.wait(Box::new(pop(group, &format!("g{group}"), None, 1_000))).unwrap();
            }
            // A walk through all of them for each that leaves would take minutes.
            let mut all = woken(&mut waiting, queue(1, round)).0;
            all.sort_unstable();
            assert!(all.into_iter().eq(0..50_000));
            assert_eq!((waiting.count(), waiting.lines.len(), waiting.by_topic.len()), (0, 0, 0));
        }
    }

    #[test]
    fn who_keeps_the_order_waits_in_a_line_of_its_own() {
        let mut waiting = Waiting::new(3, 7);
        waiting.wait(Box::new(pop(1, "g", None, 1_000))).unwrap();
        let mut orderly = pop(2, "g", None, 1_000);
        (orderly.is_orderly, orderly.way.retries) = (true, [None, None]);
        waiting.wait(Box::new(orderly)).unwrap();
        assert_eq!(woken(&mut waiting, queue(2, 0)).0, [1], "it knows the retry topic");
        assert_eq!(woken(&mut waiting, queue(1, 0)).0, [2]);
    }

    #[test]
    fn all_are_woken_and_told() {
        let mut waiting = Waiting::new(3, 7);
        for (opaque, group) in [(1, "g"), (2, "g"), (3, "h")] {
            waiting.wait(Box::new(pop(opaque, group, None, 1_000))).unwrap();
        }
        let pop = pop(0, "other", None, 0);
        let watch = Watch { line: pop.line(), topics: pop.topics(), home: 3, until_ms: 10, may_look: true };
        waiting.watch(watch, 0);
        let (mut woken, mut told) = (VecDeque::new(), Vec::new());
        waiting.wake_all(&mut woken, &mut told);
        assert_eq!((woken.len(), told.len(), waiting.count(), waiting.watches_count), (3, 1, 0, 0));
        assert!(waiting.lines.is_empty() && waiting.by_topic.is_empty() && waiting.watches.is_empty());
    }

    #[test]
    fn a_watch_is_told_once() {
        let mut waiting = Waiting::new(3, 7);
        let pop = pop(0, "g", Some(2), 0);
        let watch = Watch { line: pop.line(), topics: pop.topics(), home: 3, until_ms: 10, may_look: true };
        waiting.watch(watch.clone(), 0);
        waiting.watch(watch, 0);
        assert!(woken(&mut waiting, queue(1, 1)).1.is_empty());
        assert_eq!(woken(&mut waiting, queue(1, 2)).1, [3]);
        assert!(woken(&mut waiting, queue(1, 2)).1.is_empty());
        assert_eq!(woken(&mut waiting, queue(2, 0)).1, [3]);
        assert_eq!((waiting.watches_count, waiting.watches.len()), (0, 0));
    }
}
