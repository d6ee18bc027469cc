//! QUERY_CONSUME_QUEUE (321): what a queue's index says of a few messages, and whether a group would get them.

use bytes::Bytes;
use engine::error::AppendError;
use engine::io::Pieces;
use engine::partition::{Pull as Pulled, PullLimits};
use protocol::bodies::{self, QueueEntries, QueueEntry, SubscriptionData};
use protocol::codes::response;
use protocol::headers::QueryConsumeQueue;
use protocol::ids::tag_hash;
use protocol::message::StoredMessage;
use protocol::properties;

use crate::call::Call;
use crate::catalog::Wants;
use crate::desk::Desk;
use crate::filter::matcher;
use crate::parked::Cold;

impl Desk {
    /// Tells up to `count` entries from `index` on, at most what one pull may give. The messages are read for it: the
    /// index is derived from them, and an entry without its message would be worth nothing.
    pub(crate) fn queue_entries(&mut self, call: &Call<'_>) {
        let asked = match QueryConsumeQueue::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let Some((local, key)) = self.queue_of(asked.topic, asked.queue_id) else {
            let remark = format!("{}@{} is not exist!", asked.queue_id, asked.topic);
            return self.refuse(&call.reply, response::SYSTEM_ERROR, &remark);
        };
        let limits = &self.settings.limits;
        let count = u32::try_from(asked.count).unwrap_or(0).min(limits.pull_messages);
        let limits = PullLimits { messages: count, bytes: limits.pull_bytes, scan: count };
        let from = u64::try_from(asked.index).unwrap_or(0);
        let (found, span) = self.partitions[local].pull(key, from, limits, &|_| true);
        let messages = match found {
            Pulled::Found { messages, .. } => messages,
            Pulled::NoMatch { .. } | Pulled::Empty | Pulled::OutOfRange => Vec::new(),
            Pulled::Loading(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
            Pulled::Opening => return self.refuse_append(&call.reply, AppendError::Opening),
            Pulled::Damaged { position, .. } => {
                let remark = format!("the message at {position:?} is damaged");
                return self.refuse(&call.reply, response::SYSTEM_ERROR, &remark);
            }
        };
        let group = asked.consumer_group.filter(|group| !group.is_empty());
        let live = group.and_then(|group| self.catalog.subscriptions(group));
        let subscription = live.and_then(|live| live.topic(asked.topic));
        let wants =
            if group.is_none() { Some(&Wants::All) } else { subscription.map(|subscription| &subscription.wants) };
        let is_offline = group.filter(|_| subscription.is_none());
        let body = QueueEntries {
            filter_data: is_offline.map(|group| format!("{group}@{} is not online!", asked.topic)),
            max_queue_index: span.max.cast_signed(),
            min_queue_index: span.min.cast_signed(),
            queue_data: entries_of(&messages, wants),
            subscription_data: subscription
                .and_then(|subscription| SubscriptionData::from_expression(asked.topic, &subscription.expression)),
        };
        self.replies.header(&call.reply, response::SUCCESS);
        self.replies.send(&call.reply, Pieces::from_elem(bodies::encode(&body).into(), 1));
    }
}

/// What the index says of these messages, and whether a filter lets each through; `None`: it lets none. Those behind
/// the one at which an expression has looked at as much as a pull's may are left out: their number is an upper bound.
fn entries_of(messages: &[Bytes], wants: Option<&Wants>) -> Vec<QueueEntry> {
    let matches = wants.and_then(Wants::expression).map(matcher);
    let mut entries = Vec::with_capacity(messages.len());
    for record in messages {
        let (Ok(stored), Ok(physic_size)) = (StoredMessage::decode(record), i32::try_from(record.len())) else {
            continue;
        };
        let tags_code = properties::get(stored.properties, "TAGS").map_or(0, tag_hash);
        let eval = match &matches {
            _ if wants.is_none_or(|wants| !wants.tag(tags_code)) => false,
            None => true,
            Some(matches) => match matches(record) {
                Some(eval) => eval,
                None => break,
            },
        };
        entries.push(QueueEntry { physic_offset: stored.physical_offset, physic_size, tags_code, eval });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::{long_expression, record};

    #[test]
    fn an_expression_looks_at_as_much_as_a_pulls_may() {
        let evals = |messages: &[Bytes], wants: Option<&Wants>| {
            entries_of(messages, wants).iter().map(|entry| entry.eval).collect::<Vec<bool>>()
        };
        let wants = Wants::of_expression("SQL92", &long_expression());
        let (long, short) = (Bytes::from(record(&"x".repeat(30_000))), Bytes::from(record("999")));
        assert_eq!(evals(&vec![long.clone(); 3], Some(&wants)), [false], "what it would look at is too much");
        assert_eq!(evals(&vec![short.clone(); 32], Some(&wants)), [true; 32], "and here it is not");
        let plain = Wants::of_expression("SQL92", "a = '998' OR a = '999'");
        assert_eq!(evals(&[short.clone(), long.clone(), short.clone()], Some(&plain)), [true, false, true]);
        assert_eq!(evals(&[long.clone(), short.clone()], Some(&Wants::All)), [true; 2]);
        assert_eq!(evals(&[long, short], None), [false; 2], "the group is offline");
    }
}
