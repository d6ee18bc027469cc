//! Pops that wait for a message, in lines; and what other cores wait for here.
//!
//! A pop asks many queues, which may lie on several cores. It waits on one of them, in the line of its topic, group and
//! queue; the other cores keep a *watch*: the first message there is told to that one, which sends the pop on its way
//! again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use engine::format::QueueKey;
use hashbrown::{HashMap, HashSet};

use super::{Pop, Topics};
use crate::call::ConnectionId;

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
    /// Whether they are to keep the order.
    pub is_orderly: bool,
    /// The core that they wait on.
    pub home: usize,
    /// Nobody waits any more from then on, ms since 1970.
    pub until_ms: u64,
}

/// Pops that wait on this core, and watches for other cores.
#[derive(Debug)]
pub struct Waiting {
    slots: Vec<Slot>,
    free: Vec<u32>,
    lines: HashMap<LineKey, Line, RandomState>,
    /// By topic and retry topic: the lines.
    by_topic: HashMap<u32, Vec<LineKey>, RandomState>,
    deadlines: BinaryHeap<Reverse<(u64, u32, u32)>>,
    watches: HashMap<u32, Vec<Arc<Watch>>, RandomState>,
    watches_count: usize,
    count_max: usize,
}

#[derive(Debug, Default)]
struct Line {
    pops: VecDeque<u32>,
    topics: [Option<u32>; 3],
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    pop: Option<Box<Pop>>,
}

impl Waiting {
    /// None yet. `count_max`: `limits.parked_pulls`.
    pub fn new(count_max: usize, seed: u64) -> Waiting {
        let state = RandomState::with_seed(seed as usize);
        Waiting {
            slots: Vec::new(),
            free: Vec::new(),
            lines: HashMap::with_hasher(state.clone()),
            by_topic: HashMap::with_hasher(state.clone()),
            deadlines: BinaryHeap::new(),
            watches: HashMap::with_hasher(state),
            watches_count: 0,
            count_max,
        }
    }

    /// How many pops wait.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many wait in one line.
    pub fn count_in(&self, line: &LineKey) -> usize {
        self.lines.get(line).map_or(0, |line| line.pops.len())
    }

    /// Lets a pop wait until its `until_ms`; gives it back when too many wait already.
    pub fn wait(&mut self, pop: Box<Pop>) -> Result<(), Box<Pop>> {
        let key = pop.line();
        if self.count() >= self.count_max || self.count_in(&key) >= LINE_POPS_MAX {
            return Err(pop);
        }
        let topics = pop.topic_ids();
        let line = self.lines.entry(key.clone()).or_default();
        if line.topics != topics {
            for topic in topics.into_iter().flatten().filter(|topic| !line.topics.contains(&Some(*topic))) {
                self.by_topic.entry(topic).or_default().push(key.clone());
            }
            for topic in line.topics.into_iter().flatten().filter(|topic| !topics.contains(&Some(*topic))) {
                leave(&mut self.by_topic, topic, &key);
            }
            line.topics = topics;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, pop: None });
            u32::try_from(self.slots.len() - 1).expect("limits.parked_pulls is far below 2^32")
        });
        line.pops.push_back(index);
        let slot = &mut self.slots[index as usize];
        self.deadlines.push(Reverse((pop.until_ms, index, slot.generation)));
        slot.pop = Some(pop);
        // Pops that were woken leave their deadlines behind: at most as many as wait, and some.
        if self.deadlines.len() > 2 * self.count() + 1024 {
            let slots = &self.slots;
            self.deadlines.retain(|Reverse((_, index, generation))| slots[*index as usize].generation == *generation);
        }
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
                let pop = self.next(&line);
                // Before somebody takes the message.
                if line.is_notice { pop.into_iter().for_each(|pop| woken.push_front(pop)) } else { woken.extend(pop) }
            }
        }
        if let Some(watches) = self.watches.get_mut(&queue.topic) {
            let before = watches.len();
            told.extend(watches.extract_if(.., |watch| watch.line.wants(queue)));
            self.watches_count -= before - watches.len();
            if watches.is_empty() {
                self.watches.remove(&queue.topic);
            }
        }
    }

    /// Takes the first of a line out.
    pub fn next(&mut self, key: &LineKey) -> Option<Box<Pop>> {
        let line = self.lines.get_mut(key)?;
        let index = line.pops.pop_front()?;
        if line.pops.is_empty() {
            self.end(key);
        }
        self.release(index)
    }

    /// The lines of a group that wait for this topic.
    pub fn lines_of(&self, topic: u32, group: &str) -> Vec<LineKey> {
        let lines = self.by_topic.get(&topic).into_iter().flatten();
        lines.filter(|line| line.topic == topic && *line.group == *group).cloned().collect()
    }

    /// Takes all out that wait for this topic: it is gone.
    pub fn wake_topic(&mut self, topic: u32, woken: &mut VecDeque<Box<Pop>>) {
        for line in self.by_topic.get(&topic).cloned().unwrap_or_default() {
            while let Some(pop) = self.next(&line) {
                woken.push_back(pop);
            }
        }
    }

    /// Takes out those whose time is over.
    pub fn expire(&mut self, now_ms: u64, expired: &mut VecDeque<Box<Pop>>) {
        while let Some(Reverse((until_ms, index, generation))) = self.deadlines.peek().copied() {
            let live = self.slots[index as usize].generation == generation;
            if live && until_ms > now_ms {
                break;
            }
            self.deadlines.pop();
            if live {
                expired.extend(self.take(index));
            }
        }
    }

    /// When the next one's time is over, in ms; perhaps a little early.
    pub fn deadline(&self) -> Option<u64> {
        self.deadlines.peek().map(|Reverse((until_ms, ..))| *until_ms)
    }

    /// Forgets those of connections that are gone.
    pub fn forget(&mut self, gone: &HashSet<ConnectionId, RandomState>) {
        if gone.is_empty() || self.count() == 0 {
            return;
        }
        for index in 0..self.slots.len() as u32 {
            let pop = self.slots[index as usize].pop.as_ref();
            if pop.is_some_and(|pop| gone.contains(&pop.reply.connection)) {
                self.take(index);
            }
        }
    }

    /// Keeps a watch for another core.
    pub fn watch(&mut self, watch: Watch, now_ms: u64) {
        if self.watches_count >= WATCHES_MAX {
            self.watches.retain(|_, watches| {
                watches.retain(|watch| watch.until_ms > now_ms);
                !watches.is_empty()
            });
            self.watches_count = self.watches.values().map(Vec::len).sum();
        }
        let watch = Arc::new(watch);
        for topic in watch.topics.iter().flatten() {
            let watches = self.watches.entry(topic.id).or_default();
            match watches.iter_mut().find(|known| known.line == watch.line && known.home == watch.home) {
                Some(known) => *known = watch.clone(),
                None if self.watches_count >= WATCHES_MAX => {}
                None => {
                    watches.push(watch.clone());
                    self.watches_count += 1;
                }
            }
        }
    }

    /// Takes one out of its slot and its line.
    fn take(&mut self, index: u32) -> Option<Box<Pop>> {
        let pop = self.release(index)?;
        let key = pop.line();
        if let Some(line) = self.lines.get_mut(&key) {
            line.pops.retain(|other| *other != index);
            if line.pops.is_empty() {
                self.end(&key);
            }
        }
        Some(pop)
    }

    /// Nobody is left in a line.
    fn end(&mut self, key: &LineKey) {
        let Some(line) = self.lines.remove(key) else { return };
        for topic in line.topics.into_iter().flatten() {
            leave(&mut self.by_topic, topic, key);
        }
    }

    /// Takes one out of its slot; its deadline means nothing any more.
    fn release(&mut self, index: u32) -> Option<Box<Pop>> {
        let slot = &mut self.slots[index as usize];
        let pop = slot.pop.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(pop)
    }
}

fn leave(by_topic: &mut HashMap<u32, Vec<LineKey>, RandomState>, topic: u32, key: &LineKey) {
    if let Some(lines) = by_topic.get_mut(&topic) {
        lines.retain(|line| line != key);
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
        // These are notifications: the later one goes before the earlier, as before pops.
        assert_eq!(woken(&mut waiting, queue(1, 4)).0, [3, 2]);
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
        assert_eq!((expired.len(), waiting.deadline()), (0, Some(1_000)));
        waiting.expire(1_000, &mut expired);
        assert_eq!(expired[0].reply.opaque, 1);
        let mut gone = HashSet::with_hasher(RandomState::with_seed(1));
        gone.insert(pop(2, "g", None, 0).reply.connection);
        waiting.forget(&gone);
        assert_eq!(woken(&mut waiting, queue(1, 0)).0, [3]);
        assert!(waiting.lines.is_empty());
        for opaque in 0..2_000 {
            waiting.wait(Box::new(pop(opaque, "g", None, 1 << 40))).unwrap();
            assert_eq!(woken(&mut waiting, queue(1, 0)).0, [opaque]);
        }
        assert!(waiting.deadlines.len() < 1_100, "woken pops leave no deadlines behind");
    }

    #[test]
    fn a_watch_is_told_once() {
        let mut waiting = Waiting::new(3, 7);
        let pop = pop(0, "g", Some(2), 0);
        let watch = Watch { line: pop.line(), topics: pop.topics(), is_orderly: false, home: 3, until_ms: 10 };
        waiting.watch(watch.clone(), 0);
        waiting.watch(watch, 0);
        assert!(woken(&mut waiting, queue(1, 1)).1.is_empty());
        assert_eq!(woken(&mut waiting, queue(1, 2)).1, [3]);
        assert!(woken(&mut waiting, queue(1, 2)).1.is_empty());
        assert_eq!(woken(&mut waiting, queue(2, 0)).1, [3]);
        assert_eq!((waiting.watches_count, waiting.watches.len()), (0, 0));
    }
}
