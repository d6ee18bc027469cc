//! What NameServers said last of topics' queues on all brokers: what assignments (400) are made of. Clients ask every
//! twenty seconds, each for each of its topics; the NameServers need not hear of all of that, and may be gone for a
//! while.

use std::collections::BTreeMap;

use protocol::bodies::MessageQueue;

/// How long what they said is taken for what they would say. 5 s: a quarter of the time after which clients ask again;
/// RocketMQ's brokers ask every 30 s. Milliseconds.
pub const FRESH_MS: u64 = 5_000;
/// Topics that are kept. 4,096; the one that was told longest ago makes room.
pub const TOPICS_MAX: usize = 4_096;
/// Queues of all of them. 131,072, some 100 bytes each. A topic of more is not kept.
pub const QUEUES_MAX: usize = 131_072;

/// Those that are kept.
#[derive(Debug, Default)]
pub struct Routes {
    known: BTreeMap<String, Route>,
    /// Of all of them.
    queues: usize,
}

#[derive(Debug)]
struct Route {
    queues: Vec<MessageQueue>,
    told_ms: u64,
}

impl Routes {
    /// A topic's queues, if they were told just now.
    pub fn fresh(&self, topic: &str, now_ms: u64) -> Option<Vec<MessageQueue>> {
        let route = self.known.get(topic).filter(|route| now_ms < route.told_ms + FRESH_MS)?;
        Some(route.queues.clone())
    }

    /// A topic's queues as they were told last.
    pub fn last(&self, topic: &str) -> Option<Vec<MessageQueue>> {
        self.known.get(topic).map(|route| route.queues.clone())
    }

    /// NameServers told a topic's queues: none, if they do not know it.
    pub fn keep(&mut self, topic: &str, queues: &[MessageQueue], now_ms: u64) {
        self.forget(topic);
        // What nobody knows costs nobody anything to make up: it is not kept.
        if queues.is_empty() || queues.len() > QUEUES_MAX {
            return;
        }
        while self.known.len() >= TOPICS_MAX || self.queues + queues.len() > QUEUES_MAX {
            let oldest = self.known.iter().min_by_key(|(_, route)| route.told_ms);
            let oldest = oldest.map(|(topic, _)| topic.clone()).expect("there is no room because some are kept");
            self.forget(&oldest);
        }
        self.queues += queues.len();
        self.known.insert(topic.to_owned(), Route { queues: queues.to_vec(), told_ms: now_ms });
    }

    fn forget(&mut self, topic: &str) {
        if let Some(route) = self.known.remove(topic) {
            self.queues -= route.queues.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(topic: &str, count: usize) -> Vec<MessageQueue> {
        let queue = |queue_id| MessageQueue { broker_name: "b".to_owned(), queue_id, topic: topic.to_owned() };
        (0..count as i32).map(queue).collect()
    }

    #[test]
    fn what_was_told_is_fresh_for_a_while_and_kept_until_something_else_is_told() {
        let mut routes = Routes::default();
        routes.keep("T", &queues("T", 2), 10);
        assert_eq!(routes.fresh("T", 9 + FRESH_MS), Some(queues("T", 2)));
        assert_eq!((routes.fresh("T", 10 + FRESH_MS), routes.last("T")), (None, Some(queues("T", 2))));
        routes.keep("T", &queues("T", 3), 20);
        assert_eq!((routes.last("T").map(|all| all.len()), routes.queues), (Some(3), 3));
        routes.keep("T", &[], 30);
        assert_eq!((routes.last("T"), routes.queues), (None, 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut routes = Routes::default();
        for number in 0..TOPICS_MAX as u64 + 10 {
            routes.keep(&format!("T{number}"), &queues("T", 1), number);
        }
        assert_eq!((routes.known.len(), routes.queues), (TOPICS_MAX, TOPICS_MAX));
        assert!(routes.last("T9").is_none() && routes.last("T10").is_some(), "the oldest made room");
        routes.keep("large", &queues("large", QUEUES_MAX), 1_000_000);
        assert_eq!((routes.known.len(), routes.queues), (1, QUEUES_MAX));
        routes.keep("larger", &queues("larger", QUEUES_MAX + 1), 1_000_001);
        assert!(routes.last("larger").is_none() && routes.last("large").is_some());
    }
}
