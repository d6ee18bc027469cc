//! Where a pop goes: the core and the queue that it begins with, and in which order it visits the others.

use std::sync::Arc;

use protocol::names;

use super::{Pop, Topics, Wish};
use crate::attributes::{MESSAGE_TYPE, PRIORITY_FACTOR, PRIORITY_TYPE};
use crate::catalog::Topic;
use crate::config::Settings;
use crate::desk::Desk;

/// Where a pop goes.
#[derive(Debug, Default)]
pub(super) struct Way {
    /// The retry topics of both versions, as far as there are any.
    pub(super) retries: [Option<Arc<Topic>>; 2],
    /// The queue to begin with, of the topic and of all retry topics, modulo their number.
    pub(super) start: u32,
    /// In order of priority: the queue that is next, see [`Way::queue_at`].
    pub(super) step: Option<u32>,
    /// 0 is the lowest priority.
    pub(super) is_high_first: bool,
    /// What comes again is looked for before what is new.
    pub(super) is_retry_first: bool,
    /// Cores that have queues and were not visited, by bit.
    pub(super) rest: u64,
    /// The core that it waited on.
    pub(super) home: Option<usize>,
    /// How often it was told of a message that was there already, since the last new one.
    pub(super) looks: u8,
}

impl Way {
    /// The queue of this number in order of priority, and its topic. All of its retry topics come before the topic or
    /// behind it. `named`: of the topic only this one. `None`: there are no more.
    pub(super) fn queue_at(&self, topic: &Arc<Topic>, named: Option<u32>, mut step: u32) -> Option<(Arc<Topic>, u32)> {
        let [one, two] = &self.retries;
        let topics = match self.is_retry_first {
            true => [one.as_ref(), two.as_ref(), Some(topic)],
            false => [Some(topic), one.as_ref(), two.as_ref()],
        };
        for found in topics.into_iter().flatten() {
            let named = named.filter(|_| found.id == topic.id);
            let queues = if named.is_some() { 1 } else { found.read_queues() };
            if step < queues {
                let queue = if self.is_high_first { queues - 1 - step } else { step };
                return Some((found.clone(), named.unwrap_or(queue)));
            }
            step -= queues;
        }
        None
    }

    /// The queues of the retry topics, each once, from the one on that the pop begins with.
    pub(super) fn retry_at(&self, step: u32) -> Option<(&Arc<Topic>, u32)> {
        let queues = self.retries.iter().flatten().map(|topic| topic.read_queues()).sum::<u32>();
        if step >= queues {
            return None;
        }
        let mut index = (self.start % queues + step) % queues;
        self.retries.iter().flatten().find_map(|topic| match index.checked_sub(topic.read_queues()) {
            Some(behind) => {
                index = behind;
                None
            }
            None => Some((topic, index)),
        })
    }
}

impl Desk {
    /// Where a pop begins that looks for what comes again first: a core that finds something ends its way, so behind a
    /// backlog in the queues of this one it would never get there. `None`: wherever it is, or in its order of priority.
    pub(super) fn first_core(&self, pop: &Pop) -> Option<usize> {
        let is_free = pop.way.step.is_none() && !matches!(pop.wish, Wish::Notice { .. });
        let (topic, queue) = pop.way.retry_at(0).filter(|_| is_free && pop.way.is_retry_first)?;
        Some(self.core_of(topic, queue))
    }

    /// Chooses a pop's way: all cores that have queues of its topic or of its retry topics, from this one on.
    pub(super) fn begin(&mut self, pop: &mut Pop) {
        let draw = self.random.draw();
        self.look_up(pop);
        let is_priority = !pop.is_orderly && self.is_priority(pop, draw);
        let settings = &self.settings;
        let percent = if is_priority { settings.pop_retry_percent_priority } else { settings.pop_retry_percent };
        pop.way = Way {
            retries: std::mem::take(&mut pop.way.retries),
            start: (draw >> 32) as u32,
            step: is_priority.then_some(0),
            is_high_first: settings.priority_order_asc,
            is_retry_first: draw % 100 < percent,
            rest: 0,
            home: pop.way.home,
            looks: pop.way.looks,
        };
        let topics = pop.topics();
        pop.way.rest = cores_of(&self.settings, &topics, pop.queue);
    }

    /// Takes its topics as this core knows them now. Returns whether they have queues that it did not know of.
    pub(super) fn look_up(&mut self, pop: &mut Pop) -> bool {
        let mut has_more = false;
        if let Some(now) = self.catalog.topic(&pop.topic.name).filter(|now| now.id == pop.topic.id) {
            has_more = now.read_queues() > pop.topic.read_queues();
            pop.topic = now.clone();
        }
        // A retry topic has none of its own: clients could not tell their messages apart.
        if pop.is_orderly || pop.topic.name.starts_with(names::RETRY_PREFIX) {
            return has_more;
        }
        // Whichever is written to now: what is in the other one was popped before that was changed.
        for (is_v2, retry) in [false, true].into_iter().zip(&mut pop.way.retries) {
            let name = &mut self.pops.popped.scratch;
            name.clear();
            names::pop_retry_topic(name, &pop.group, &pop.topic.name, is_v2);
            let now = self.catalog.topic(name).cloned();
            let queues = |topic: &Option<Arc<Topic>>| topic.as_ref().map_or(0, |topic| topic.read_queues());
            has_more |= queues(&now) > queues(retry);
            *retry = now;
        }
        has_more
    }

    fn is_priority(&self, pop: &Pop, draw: u64) -> bool {
        if pop.topic.config.attributes.get(MESSAGE_TYPE).is_none_or(|kind| kind != PRIORITY_TYPE) {
            return false;
        }
        let group = self.catalog.group(&pop.group);
        let factor = group.and_then(|group| group.config.attributes.get(PRIORITY_FACTOR)?.parse().ok());
        (draw >> 16) % 100 < factor.unwrap_or(100)
    }

    /// The core of a queue.
    pub(super) fn core_of(&self, topic: &Topic, queue: u32) -> usize {
        usize::from(topic.partition_of(queue, self.settings.partitions)) % self.settings.cores
    }
}

/// The cores that have queues of these topics, by bit; `queue` is one of the first topic.
pub(super) fn cores_of(settings: &Settings, topics: &Topics, queue: Option<u32>) -> u64 {
    if settings.cores == 1 {
        return 1;
    }
    let mut cores = 0;
    for (index, topic) in topics.iter().enumerate() {
        let Some(topic) = topic else { continue };
        let queues = match queue.filter(|_| index == 0) {
            Some(queue) => queue..queue + 1,
            None => 0..topic.read_queues().min(settings.partitions.into()),
        };
        for queue in queues {
            cores |= 1 << (usize::from(topic.partition_of(queue, settings.partitions)) % settings.cores);
        }
    }
    cores
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TopicConfig;

    #[test]
    fn priority_is_an_order_of_queues() {
        let topic = |id: u32, queues: i32| {
            let config = TopicConfig { read_queue_nums: queues, ..TopicConfig::default() };
            Arc::new(Topic { id, name: "T".into(), first_partition: 0, config })
        };
        let asked = topic(1, 3);
        let rows = [
            (true, false, None, "1:2 1:1 1:0 2:1 2:0"),
            (true, true, None, "2:1 2:0 1:2 1:1 1:0"),
            (false, false, None, "1:0 1:1 1:2 2:0 2:1"),
            (false, true, None, "2:0 2:1 1:0 1:1 1:2"),
            (true, false, Some(1), "1:1 2:1 2:0"),
            (false, true, Some(2), "2:0 2:1 1:2"),
        ];
        for (is_high_first, is_retry_first, named, wanted) in rows {
            let way = Way { retries: [None, Some(topic(2, 2))], is_high_first, is_retry_first, ..Way::default() };
            let seen: Vec<String> = (0..)
                .map_while(|step| way.queue_at(&asked, named, step))
                .map(|(topic, queue)| format!("{}:{queue}", topic.id))
                .collect();
            assert_eq!(seen.join(" "), wanted);
        }
    }

    #[test]
    fn each_queue_that_something_comes_again_in_may_be_the_first() {
        let topic = |id: u32, queues: i32| {
            let config = TopicConfig { read_queue_nums: queues, ..TopicConfig::default() };
            Some(Arc::new(Topic { id, name: "T".into(), first_partition: 0, config }))
        };
        for (retries, start, wanted) in [
            ([topic(2, 2), topic(3, 1)], 0, "2:0 2:1 3:0"),
            ([topic(2, 2), topic(3, 1)], 4, "2:1 3:0 2:0"),
            ([topic(2, 2), topic(3, 1)], u32::MAX - 1, "3:0 2:0 2:1"),
            ([None, topic(3, 2)], 1, "3:1 3:0"),
            ([topic(2, 0), None], 1, ""),
        ] {
            let way = Way { retries, start, ..Way::default() };
            let seen: Vec<String> = (0..)
                .map_while(|step| way.retry_at(step))
                .map(|(topic, queue)| format!("{}:{queue}", topic.id))
                .collect();
            assert_eq!(seen.join(" "), wanted);
        }
    }
}
