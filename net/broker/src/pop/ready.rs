//! Whether a group would find something in a queue.

use engine::format::QueueKey;
use engine::partition::{Pull as Pulled, PullLimits};

use super::account::Account;
use super::waiting::LineKey;
use super::{Order, Topics};
use crate::catalog::{Topic, Wants, offset_key};
use crate::desk::Desk;
use crate::filter::wants_of_tags;

/// So many messages of a queue a notification with a filter looks at; when more wait, at none.
const NOTICE_MESSAGES_MAX: u64 = 64;

impl Desk {
    /// Whether a pop of this line would find something in this core's queues, but for its filter. A notification's
    /// filter counts, in the topic that was asked for. `order`: of [`Pop::order`].
    pub(super) fn is_ready(&mut self, topics: &Topics, line: &LineKey, order: Order<'_>, now_ms: u64) -> bool {
        let wants = line.tags.as_ref().map(|tags| wants_of_tags(tags));
        topics.iter().enumerate().any(|(index, topic)| {
            let Some(topic) = topic else { return false };
            let queues = match line.queue.filter(|_| index == 0) {
                Some(queue) => queue..queue + 1,
                None => 0..topic.read_queues(),
            };
            let wants = wants.as_ref().filter(|_| index == 0);
            queues.into_iter().any(|queue| {
                self.has_some(topic, queue, &line.group, order, now_ms)
                    && wants.is_none_or(|wants| self.has_wanted(topic, queue, &line.group, wants, now_ms))
            })
        })
    }

    /// Whether a message that comes next in a queue has a tag that is wanted. When many wait, they are not looked at,
    /// as in RocketMQ (`maxMessageFilterNumForNotification`): whoever is told in vain comes again.
    pub(super) fn has_wanted(&mut self, topic: &Topic, queue: u32, group: &str, wants: &Wants, now_ms: u64) -> bool {
        let Some(local) = self.local(topic.partition_of(queue, self.settings.partitions)) else { return false };
        let key = QueueKey { topic: topic.id, queue };
        let account = self.pops.accounts.find(key, group).and_then(|id| self.pops.accounts.get(id));
        if account.is_some_and(|holder| holder.account.has_orderly()) {
            // What is lent and comes again lies before the next one, and was wanted.
            return true;
        }
        let next = self.next_of(local, key, group, now_ms);
        if self.partitions[local].span(key).max.saturating_sub(next) >= NOTICE_MESSAGES_MAX {
            return true;
        }
        let limits = PullLimits { messages: 1, bytes: 1, scan: NOTICE_MESSAGES_MAX as u32 };
        let (found, _) = self.partitions[local].pull(key, next, limits, &|tag_hash| wants.tag(tag_hash));
        // What cannot be seen at once may be wanted.
        !matches!(found, Pulled::NoMatch { .. } | Pulled::Empty)
    }

    /// The offset in a queue that a group is lent next.
    pub(super) fn next_of(&mut self, local: usize, key: QueueKey, group: &str, now_ms: u64) -> u64 {
        let min = self.partitions[local].span(key).min;
        let next = match self.pops.accounts.find(key, group) {
            Some(id) => self.pops.accounts.get(id).map(|holder| holder.account.next_at(now_ms)),
            None => {
                let fact = self.partitions[local].fact(&offset_key(key.topic, key.queue, group));
                // Nobody has opened it: if something is on loan, it is in order, and over.
                fact.and_then(Account::read).map(|account| account.next_at(now_ms))
            }
        };
        next.unwrap_or(min).max(min)
    }

    pub(super) fn has_some(&mut self, topic: &Topic, queue: u32, group: &str, order: Order<'_>, now_ms: u64) -> bool {
        let Some(local) = self.local(topic.partition_of(queue, self.settings.partitions)) else { return false };
        let key = QueueKey { topic: topic.id, queue };
        let max = self.partitions[local].span(key).max;
        let Some(id) = self.pops.accounts.find(key, group) else {
            return self.next_of(local, key, group, now_ms) < max;
        };
        let has_room = self.pops.accounts.has_room();
        let account = &self.pops.accounts.get(id).expect("it was found just now").account;
        // What is left of an order takes no new room.
        let is_open = account.blocked_until_ms(order.flatten(), now_ms) == 0;
        if order.is_some() || is_open && account.has_orderly() {
            return is_open && (account.next() < max || account.has_orderly());
        }
        has_room && account.out() < self.settings.limits.pop_unacked && account.next() < max
    }
}
