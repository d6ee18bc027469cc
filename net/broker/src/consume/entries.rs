//! QUERY_CONSUME_QUEUE (321): what a queue's index says of a few messages, and whether a group would get them.

use engine::error::AppendError;
use engine::io::Pieces;
use engine::partition::{Pull as Pulled, PullLimits};
use protocol::bodies::{self, QueueEntries, QueueEntry, SubscriptionData};
use protocol::codes::response;
use protocol::headers::QueryConsumeQueue;
use protocol::ids::tag_hash;
use protocol::message::{self, StoredMessage};
use protocol::properties;
use protocol::sql::Expression;

use crate::call::Call;
use crate::catalog::Wants;
use crate::desk::Desk;
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
        let entry = |record: &bytes::Bytes| {
            let stored = StoredMessage::decode(record).ok()?;
            let tags_code = properties::get(stored.properties, "TAGS").map_or(0, tag_hash);
            Some(QueueEntry {
                physic_offset: stored.physical_offset,
                physic_size: i32::try_from(record.len()).ok()?,
                tags_code,
                eval: group.is_none()
                    || subscription.is_some_and(|subscription| would_get(&subscription.wants, tags_code, record)),
            })
        };
        let is_offline = group.filter(|_| subscription.is_none());
        let body = QueueEntries {
            filter_data: is_offline.map(|group| format!("{group}@{} is not online!", asked.topic)),
            max_queue_index: span.max.cast_signed(),
            min_queue_index: span.min.cast_signed(),
            queue_data: messages.iter().filter_map(entry).collect(),
            subscription_data: subscription
                .and_then(|subscription| SubscriptionData::from_expression(asked.topic, &subscription.expression)),
        };
        self.replies.header(&call.reply, response::SUCCESS);
        self.replies.send(&call.reply, Pieces::from_elem(bodies::encode(&body).into(), 1));
    }
}

/// Whether a filter lets this message through.
fn would_get(wants: &Wants, tags_code: i64, record: &[u8]) -> bool {
    let matches = |expression: &Expression| message::properties_of(record).is_some_and(|text| expression.matches(text));
    wants.tag(tags_code) && wants.expression().is_none_or(matches)
}
