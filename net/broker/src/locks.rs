//! Queue locks of ordered consumers (codes 41 and 42, PROTOCOL 4.5). Kept in memory only.

use std::collections::BTreeMap;

use protocol::bodies::MessageQueue;
use protocol::names::RETRY_TOPIC_BYTES_MAX;

/// Most locks of all groups together. 1 Mi, some 200 bytes each.
pub const LOCKS_MAX: usize = 1 << 20;

/// Who holds which queue.
#[derive(Debug)]
pub struct Locks {
    timeout_ms: u64,
    group_locks_max: usize,
    groups: BTreeMap<String, BTreeMap<MessageQueue, Lock>>,
    /// Of all groups together.
    count: usize,
}

#[derive(Debug)]
struct Lock {
    client: String,
    renewed_ms: u64,
}

impl Locks {
    /// None held. A lock lives `timeout_ms` without renewal; a group holds at most
    /// `group_locks_max` of them.
    pub fn new(timeout_ms: u64, group_locks_max: usize) -> Locks {
        Locks { timeout_ms, group_locks_max, groups: BTreeMap::new(), count: 0 }
    }

    /// Gives `client` those of the queues that are free or already its own, and renews them. Queues
    /// over a bound stay free. Returns what it holds now, of those asked for.
    pub fn lock(&mut self, group: &str, client: &str, queues: Vec<MessageQueue>, now_ms: u64) -> Vec<MessageQueue> {
        let locks = self.groups.entry(group.to_owned()).or_default();
        let mut held = Vec::new();
        for queue in queues {
            let is_room = locks.len() < self.group_locks_max && self.count < LOCKS_MAX;
            match locks.get_mut(&queue) {
                Some(lock) if lock.client == client => lock.renewed_ms = now_ms,
                Some(lock) if lock.is_expired(self.timeout_ms, now_ms) => *lock = Lock::new(client, now_ms),
                None if is_room && is_short(&queue) => {
                    locks.insert(queue.clone(), Lock::new(client, now_ms));
                    self.count += 1;
                }
                Some(_) | None => continue,
            }
            held.push(queue);
        }
        if locks.is_empty() {
            self.groups.remove(group);
        }
        held
    }

    /// Frees those of the queues that `client` holds.
    pub fn unlock(&mut self, group: &str, client: &str, queues: &[MessageQueue]) {
        let Some(locks) = self.groups.get_mut(group) else { return };
        for queue in queues {
            if locks.get(queue).is_some_and(|lock| lock.client == client) {
                locks.remove(queue);
                self.count -= 1;
            }
        }
        if locks.is_empty() {
            self.groups.remove(group);
        }
    }

    /// Whether somebody of this group holds a queue: it consumes in order.
    pub fn is_held(&self, group: &str, now_ms: u64) -> bool {
        let locks = self.groups.get(group);
        locks.is_some_and(|locks| locks.values().any(|lock| !lock.is_expired(self.timeout_ms, now_ms)))
    }

    /// Forgets expired locks, so that only live ones take memory.
    pub fn expire(&mut self, now_ms: u64) {
        let timeout_ms = self.timeout_ms;
        self.groups.retain(|_, locks| {
            locks.retain(|_, lock| !lock.is_expired(timeout_ms, now_ms));
            !locks.is_empty()
        });
        self.count = self.groups.values().map(BTreeMap::len).sum();
    }
}

/// Names longer than any legal one are no queues: nobody locks memory with them.
fn is_short(queue: &MessageQueue) -> bool {
    queue.topic.len() <= RETRY_TOPIC_BYTES_MAX && queue.broker_name.len() <= RETRY_TOPIC_BYTES_MAX
}

impl Lock {
    fn new(client: &str, now_ms: u64) -> Lock {
        Lock { client: client.to_owned(), renewed_ms: now_ms }
    }

    fn is_expired(&self, timeout_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.renewed_ms) > timeout_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(numbers: &[i32]) -> Vec<MessageQueue> {
        let queue = |number: &i32| MessageQueue {
            broker_name: "broker-a".to_owned(),
            queue_id: *number,
            topic: "T".to_owned(),
        };
        numbers.iter().map(queue).collect()
    }

    /// Group, client, queues asked for, when, what it gets.
    type Row = (&'static str, &'static str, &'static [i32], u64, &'static [i32]);

    #[test]
    fn a_queue_has_one_owner_until_it_lets_go_or_falls_silent() {
        let mut locks = Locks::new(60_000, 4);
        let rows: [Row; 8] = [
            ("g", "a", &[0, 1], 0, &[0, 1]),
            ("g", "b", &[1, 2], 10, &[2]),
            ("g", "a", &[0], 50_000, &[0]),
            ("other", "b", &[0], 50_000, &[0]),
            ("g", "b", &[0, 1], 60_000, &[]),
            ("g", "b", &[0, 1], 60_001, &[1]),
            ("g", "c", &[0], 110_000, &[]),
            ("g", "c", &[0], 110_001, &[0]),
        ];
        for (group, client, asked, now_ms, held) in rows {
            assert_eq!(locks.lock(group, client, queues(asked), now_ms), queues(held), "{client} at {now_ms}");
        }
        let held = |group, now_ms| locks.is_held(group, now_ms);
        assert_eq!((held("g", 170_001), held("g", 170_002), held("none", 0)), (true, false, false));
        locks.unlock("g", "b", &queues(&[0, 1]));
        assert_eq!(locks.lock("g", "d", queues(&[0, 1]), 110_002), queues(&[1]));
    }

    #[test]
    fn locks_have_a_bound_and_go_with_time() {
        let mut locks = Locks::new(60_000, 2);
        assert_eq!(locks.lock("g", "a", queues(&[0, 1, 2]), 0), queues(&[0, 1]));
        assert_eq!(locks.lock("none", "a", queues(&[]), 0), queues(&[]));
        let long = MessageQueue { topic: "x".repeat(256), ..MessageQueue::default() };
        assert_eq!(locks.lock("long", "a", vec![long], 0), []);
        assert_eq!((locks.groups.len(), locks.count), (1, 2));
        locks.unlock("g", "a", &queues(&[1, 7]));
        assert_eq!((locks.groups.len(), locks.count), (1, 1));
        locks.expire(60_000);
        assert_eq!(locks.count, 1);
        locks.expire(60_001);
        assert_eq!((locks.groups.len(), locks.count), (0, 0));
    }
}
