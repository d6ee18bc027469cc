//! What waits: pulls for a message in their queue (long polling), and whatever needs a cold read.

use std::sync::Arc;

use ahash::RandomState;
use engine::format::QueueKey;
use hashbrown::{HashMap, HashSet};
use protocol::sql::Expression;

use crate::call::{ConnectionId, ReplyTo, Request};
use crate::catalog::{Group, Subscription, Topic, Wants};
use crate::inquiry::Inquiry;
use crate::pop::Pop;
use crate::pop::accounts::LoanOf;
use crate::produce::Sought;
use crate::waiters::{Seat, Waiters};

/// A pull, without its request.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Whom to answer.
    pub reply: ReplyTo,
    /// The topic as it was when the pull came.
    pub topic: Arc<Topic>,
    /// Who consumes.
    pub group: Puller,
    /// Which of its queues.
    pub queue: u32,
    /// The queue offset asked for; negative ones are always out of range.
    pub offset: i64,
    /// Most messages of the answer.
    pub messages: u32,
    /// Most bytes of the answer, but one message always.
    pub bytes: u32,
    /// Which messages are wanted.
    pub filter: Filter,
    /// It may wait for a message until then; 0: it may not wait at all. Milliseconds.
    pub until_ms: u64,
}

impl Pull {
    /// The queue inside the engine.
    pub fn key(&self) -> QueueKey {
        QueueKey { topic: self.topic.id, queue: self.queue }
    }
}

/// The group that a pull is of.
#[derive(Clone, Debug)]
pub enum Puller {
    /// One that has a configuration.
    Known(Arc<Group>),
    /// One that has none: it needs none, or there was no room for it.
    Unknown(Arc<str>),
}

impl Puller {
    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        match self {
            Puller::Known(group) => &group.name,
            Puller::Unknown(name) => name,
        }
    }

    /// Its configuration, if it has one.
    pub fn known(&self) -> Option<&Arc<Group>> {
        match self {
            Puller::Known(group) => Some(group),
            Puller::Unknown(_) => None,
        }
    }
}

/// Which messages a pull wants.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Those of a live group's subscription.
    Group(Arc<Subscription>),
    /// Those that the pull itself names.
    Own(Wants),
}

impl Filter {
    /// Whether a message with this tag hash is wanted.
    #[inline]
    pub fn wants(&self, tag_hash: i64) -> bool {
        self.all().tag(tag_hash)
    }

    /// What a message's properties must match besides.
    #[inline]
    pub fn expression(&self) -> Option<&Expression> {
        self.all().expression()
    }

    #[inline]
    fn all(&self) -> &Wants {
        match self {
            Filter::Group(subscription) => &subscription.wants,
            Filter::Own(wants) => wants,
        }
    }
}

/// Pulls that wait for a message, by queue and by deadline.
#[derive(Debug)]
pub struct Parked {
    pulls: Waiters<Pull>,
    queues: HashMap<QueueKey, Line, RandomState>,
}

/// Who waits for one queue. Seats of those who left stay for a while: they are empty, or somebody else's.
#[derive(Debug, Default)]
struct Line {
    seats: Vec<Seat>,
    left: usize,
}

impl Parked {
    /// None yet. `count_max`: `limits.parked_pulls`.
    pub fn new(count_max: usize, seed: u64) -> Parked {
        let state = RandomState::with_seed(seed as usize);
        Parked { pulls: Waiters::new(count_max), queues: HashMap::with_hasher(state) }
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.pulls.count()
    }

    /// Lets a pull wait until its `until_ms`; gives it back when too many wait already.
    pub fn park(&mut self, pull: Pull) -> Result<(), Pull> {
        if !self.pulls.has_room() {
            return Err(pull);
        }
        let (queue, until_ms) = (pull.key(), pull.until_ms);
        let seat = self.pulls.add(pull, until_ms);
        self.queues.entry(queue).or_default().seats.push(seat);
        Ok(())
    }

    /// Takes out those that wait for this queue.
    pub fn wake(&mut self, queue: QueueKey, woken: &mut Vec<Pull>) {
        for seat in self.queues.remove(&queue).unwrap_or_default().seats {
            if self.pulls.get(seat).is_some_and(|pull| pull.key() == queue) {
                woken.extend(self.pulls.take(seat));
            }
        }
    }

    /// Takes out those whose time is over.
    pub fn expire(&mut self, now_ms: u64, expired: &mut Vec<Pull>) {
        while let Some((_, pull)) = self.pulls.expire(now_ms) {
            self.leave(pull.key());
            expired.push(pull);
        }
    }

    /// When the next one's time is over, in ms; perhaps a little early.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.pulls.deadline_ms()
    }

    /// Forgets those of connections that are gone.
    pub fn forget(&mut self, gone: &HashSet<ConnectionId, RandomState>) {
        if gone.is_empty() || self.count() == 0 {
            return;
        }
        for seat in self.pulls.find(|pull| gone.contains(&pull.reply.connection)) {
            if let Some(pull) = self.pulls.take(seat) {
                self.leave(pull.key());
            }
        }
    }

    /// Takes out those that wait for queues of this topic.
    pub fn wake_topic(&mut self, topic: u32, woken: &mut Vec<Pull>) {
        let queues: Vec<QueueKey> = self.queues.keys().filter(|key| key.topic == topic).copied().collect();
        for queue in queues {
            self.wake(queue, woken);
        }
    }

    /// One who waited for this queue does not any more. Its seat stays in the line until half of those there are left:
    /// many who leave at once cost each a few steps, and not all of the line.
    fn leave(&mut self, queue: QueueKey) {
        let Some(line) = self.queues.get_mut(&queue) else { return };
        line.left += 1;
        if 2 * line.left < line.seats.len() {
            return;
        }
        line.left = 0;
        line.seats.sort_unstable();
        line.seats.dedup();
        line.seats.retain(|seat| self.pulls.get(*seat).is_some_and(|pull| pull.key() == queue));
        if line.seats.is_empty() {
            self.queues.remove(&queue);
        }
    }
}

/// What goes on when a cold read is done.
#[derive(Debug)]
pub enum Cold {
    /// A pull.
    Pull(Pull),
    /// A request that looks at a message or an entry (14, 29, 32, 33, 36, 37, 309, 321): executed again.
    Request(Box<Request>),
    /// A message that is recalled or deleted, and how far the search for it came.
    Recall(Box<Request>, Sought),
    /// A half message whose producer is to be asked, by its id.
    Half(u64),
    /// A question that all cores are asked: goes on where it stopped.
    Ask(Box<Ask>),
    /// A pop.
    Pop(Box<Pop>),
    /// A loan that is over: what is left of it is to be written to a retry topic.
    Loan(LoanOf),
}

/// A question under way on this core.
#[derive(Debug)]
pub struct Ask {
    /// Which gathering it belongs to.
    pub ticket: u64,
    /// Who gathers.
    pub from: usize,
    /// How far it is.
    pub inquiry: Inquiry,
}

/// What waits for cold reads, by partition (this core's count) and read.
#[derive(Debug, Default)]
pub struct Loading {
    waiting: Vec<((usize, u64), Vec<Cold>)>,
    count: usize,
}

impl Loading {
    /// Lets something wait for a read. Gives it back when `count_max` wait already.
    pub fn wait(&mut self, partition: usize, load: u64, cold: Cold, count_max: usize) -> Result<(), Cold> {
        if self.count >= count_max {
            return Err(cold);
        }
        self.count += 1;
        // A partition has a handful of reads under way (`LOADS_MAX`): a list finds them fast enough.
        match self.waiting.iter_mut().find(|(key, _)| *key == (partition, load)) {
            Some((_, waiting)) => waiting.push(cold),
            None => self.waiting.push(((partition, load), vec![cold])),
        }
        Ok(())
    }

    /// Takes out what waits for a read.
    pub fn done(&mut self, partition: usize, load: u64) -> Vec<Cold> {
        let Some(at) = self.waiting.iter().position(|(key, _)| *key == (partition, load)) else { return Vec::new() };
        let (_, waiting) = self.waiting.swap_remove(at);
        self.count -= waiting.len();
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TopicConfig;
    use protocol::Serialize;

    fn pull(topic: u32, queue: u32, slot: u32, until_ms: u64) -> Pull {
        let connection = ConnectionId { core: 0, slot, generation: 0 };
        let reply = ReplyTo {
            connection,
            opaque: 0,
            code: 11,
            version: 0,
            serialize: Serialize::Json,
            oneway: false,
            delivered: false,
        };
        let topic = Topic { id: topic, name: "T".into(), first_partition: 0, config: TopicConfig::default() };
        let filter = Filter::Own(Wants::All);
        Pull {
            reply,
            topic: Arc::new(topic),
            group: Puller::Unknown("g".into()),
            queue,
            offset: 0,
            messages: 32,
            bytes: 1,
            filter,
            until_ms,
        }
    }

    fn slots(pulls: &mut Vec<Pull>) -> Vec<u32> {
        let mut slots: Vec<u32> = pulls.drain(..).map(|pull| pull.reply.connection.slot).collect();
        slots.sort_unstable();
        slots
    }

    #[test]
    fn pulls_leave_once_by_queue_by_time_or_with_their_connection() {
        let mut parked = Parked::new(100, 7);
        for (queue, slot, until_ms) in [(0, 1, 50), (0, 2, 40), (1, 3, 30), (1, 4, 60), (2, 5, 20), (2, 6, 70)] {
            parked.park(pull(9, queue, slot, until_ms)).unwrap();
        }
        let mut out = Vec::new();
        parked.wake(QueueKey { topic: 9, queue: 0 }, &mut out);
        assert_eq!(slots(&mut out), [1, 2]);
        parked.wake(QueueKey { topic: 9, queue: 0 }, &mut out);
        parked.wake(QueueKey { topic: 8, queue: 1 }, &mut out);
        assert!(out.is_empty());
        assert_eq!(parked.deadline_ms(), Some(20));
        parked.expire(30, &mut out);
        assert_eq!(slots(&mut out), [3, 5]);
        let mut gone = HashSet::with_hasher(RandomState::with_seed(1));
        gone.insert(pull(9, 0, 6, 0).reply.connection);
        parked.forget(&gone);
        assert_eq!(parked.count(), 1);
        parked.wake_topic(9, &mut out);
        assert_eq!(slots(&mut out), [4]);
        parked.expire(1000, &mut out);
        assert!(out.is_empty() && parked.count() == 0 && parked.queues.is_empty() && parked.deadline_ms().is_none());
    }

    #[test]
    fn seats_of_those_who_left_are_used_again_and_nobody_is_woken_for_another_queue() {
        let mut parked = Parked::new(100_000, 7);
        let mut out = Vec::new();
        for slot in 0..50_000 {
            parked.park(pull(9, 0, slot, if slot < 20_000 { 10 } else { 20 })).unwrap();
        }
        parked.expire(10, &mut out);
        assert_eq!((out.len(), parked.count()), (20_000, 30_000));
        // Their seats are taken again, by those of another queue and of the same.
        for slot in 0..20_000 {
            parked.park(pull(9, slot % 2, slot, 30)).unwrap();
        }
        out.clear();
        parked.wake(QueueKey { topic: 9, queue: 1 }, &mut out);
        assert!(out.len() == 10_000 && out.iter().all(|pull| pull.queue == 1));
        out.clear();
        parked.expire(20, &mut out);
        assert_eq!(out.len(), 30_000);
        parked.wake(QueueKey { topic: 9, queue: 0 }, &mut out);
        assert_eq!((out.len(), parked.count(), parked.queues.len()), (40_000, 0, 0));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut parked = Parked::new(2, 7);
        assert!(parked.park(pull(1, 0, 1, 10)).is_ok() && parked.park(pull(1, 0, 2, 10)).is_ok());
        assert!(parked.park(pull(1, 0, 3, 10)).is_err());
        let mut out = Vec::new();
        parked.wake(QueueKey { topic: 1, queue: 0 }, &mut out);
        assert_eq!((out.len(), parked.count()), (2, 0));
        let mut loading = Loading::default();
        assert!(loading.wait(0, 1, Cold::Pull(pull(1, 0, 1, 0)), 2).is_ok());
        assert!(loading.wait(0, 1, Cold::Pull(pull(1, 0, 2, 0)), 2).is_ok());
        assert!(loading.wait(0, 2, Cold::Pull(pull(1, 0, 3, 0)), 2).is_err());
        assert_eq!((loading.done(1, 1).len(), loading.done(0, 1).len(), loading.done(0, 1).len()), (0, 2, 0));
        assert!(loading.wait(0, 2, Cold::Pull(pull(1, 0, 3, 0)), 2).is_ok());
    }
}
