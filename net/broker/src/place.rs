//! Where a request is executed: beside the queue it is about, at the registrar, or here.

use protocol::Header;
use protocol::codes::request;
use protocol::ids::OffsetId;

use crate::catalog::{Catalog, Topic};

/// Who executes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Any core can: what it is about does not exist, or is nonsense; the answer says so.
    Here,
    /// The core that runs this partition.
    Partition(u16),
    /// The core that runs partition 0.
    Registrar,
    /// Nobody: code 3.
    Nowhere,
}

impl Place {
    /// The core that executes it. `here`: the core that asks.
    pub fn core(self, here: usize, cores: usize) -> usize {
        match self {
            Place::Here | Place::Nowhere => here,
            Place::Partition(partition) => usize::from(partition) % cores,
            Place::Registrar => 0,
        }
    }
}

/// Finds out where a request belongs.
///
/// A send may leave the choice of the queue to the broker (a negative queue id). The choice is made
/// here, with `random`, and added to the header, so that whoever executes the request keeps it.
pub fn place(header: &mut Header, catalog: &Catalog, partitions: u16, random: u64) -> Place {
    match header.code {
        request::SEND_MESSAGE => place_send(header, catalog, partitions, random, "topic", "queueId"),
        request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE => {
            place_send(header, catalog, partitions, random, "b", "e")
        }
        request::PULL_MESSAGE
        | request::LITE_PULL_MESSAGE
        | request::QUERY_CONSUMER_OFFSET
        | request::UPDATE_CONSUMER_OFFSET
        | request::SEARCH_OFFSET_BY_TIMESTAMP
        | request::GET_MAX_OFFSET
        | request::GET_MIN_OFFSET
        | request::QUERY_CONSUME_QUEUE
        | request::GET_EARLIEST_MSG_STORETIME
        | request::ACK_MESSAGE
        | request::CHANGE_MESSAGE_INVISIBLETIME => match (topic(header, catalog, "topic"), number(header, "queueId")) {
            (Some(topic), Some(queue)) => place_queue(topic, queue, partitions),
            _ => Place::Here,
        },
        request::POP_MESSAGE | request::PEEK_MESSAGE | request::NOTIFICATION => {
            place_pop(header, catalog, partitions, random)
        }
        // Pops that ask all queues wait where the first one is.
        request::POLLING_INFO => place_pop(header, catalog, partitions, 0),
        // Its queues may lie anywhere.
        request::BATCH_ACK_MESSAGE => Place::Here,
        request::VIEW_MESSAGE_BY_ID | request::CONSUMER_SEND_MSG_BACK => match number(header, "offset") {
            Some(offset) => place_position(offset, partitions),
            None => Place::Here,
        },
        request::CONSUME_MESSAGE_DIRECTLY | request::RESUME_CHECK_HALF_MESSAGE => {
            match header.fields.get("msgId").and_then(OffsetId::parse) {
                Some(id) => place_position(id.offset, partitions),
                None => Place::Here,
            }
        }
        request::END_TRANSACTION => match number(header, "commitLogOffset") {
            Some(offset) => place_position(offset, partitions),
            None => Place::Here,
        },
        request::SEND_REPLY_MESSAGE
        | request::SEND_REPLY_MESSAGE_V2
        | request::GET_CONSUMER_RUNNING_INFO
        | request::INVOKE_BROKER_TO_RESET_OFFSET
        | request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS
        | request::QUERY_CORRECTION_OFFSET
        | request::CLONE_GROUP_OFFSET
        | request::VIEW_BROKER_STATS_DATA
        | request::GET_BROKER_CONSUME_STATS
        | request::QUERY_MESSAGE
        | request::UPDATE_AND_CREATE_TOPIC
        | request::GET_ALL_TOPIC_CONFIG
        | request::GET_TOPIC_CONFIG
        | request::UPDATE_BROKER_CONFIG
        | request::GET_BROKER_CONFIG
        | request::GET_BROKER_RUNTIME_INFO
        | request::HEART_BEAT
        | request::UNREGISTER_CLIENT
        | request::GET_CONSUMER_LIST_BY_GROUP
        | request::LOCK_BATCH_MQ
        | request::UNLOCK_BATCH_MQ
        | request::CHECK_CLIENT_CONFIG
        | request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP
        | request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG
        | request::GET_SUBSCRIPTIONGROUP_CONFIG
        | request::DELETE_SUBSCRIPTIONGROUP
        | request::UPDATE_AND_GET_GROUP_FORBIDDEN
        | request::QUERY_CONSUME_TIME_SPAN
        | request::GET_TOPIC_STATS_INFO
        | request::GET_CONSUME_STATS
        | request::GET_CONSUMER_CONNECTION_LIST
        | request::GET_PRODUCER_CONNECTION_LIST
        | request::DELETE_TOPIC_IN_BROKER
        | request::UPDATE_AND_CREATE_TOPIC_LIST
        | request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST
        | request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER
        | request::GET_ALL_PRODUCER_INFO
        | request::QUERY_TOPICS_BY_CONSUMER
        | request::QUERY_SUBSCRIPTION_BY_CONSUMER
        | request::CLEAN_EXPIRED_CONSUMEQUEUE
        | request::CLEAN_UNUSED_TOPIC
        | request::DELETE_EXPIRED_COMMITLOG
        | request::QUERY_TOPIC_CONSUME_BY_WHO
        | request::QUERY_ASSIGNMENT
        | request::SET_MESSAGE_REQUEST_MODE
        | request::GET_ALL_MESSAGE_REQUEST_MODE
        | request::UPDATE_COLD_DATA_FLOW_CTR_CONFIG
        | request::REMOVE_COLD_DATA_FLOW_CTR_CONFIG
        | request::GET_COLD_DATA_FLOW_CTR_INFO => Place::Registrar,
        // Nobody knows in which queue the message is: every core looks.
        request::RECALL_MESSAGE => Place::Here,
        _ => Place::Nowhere,
    }
}

/// Whether the fast port serves this code. Everything but pulls and pops (PROTOCOL 1.5).
pub fn is_served_fast(code: i32) -> bool {
    use request::*;
    !matches!(code, PULL_MESSAGE | LITE_PULL_MESSAGE | PEEK_MESSAGE | POP_MESSAGE | NOTIFICATION | POLLING_INFO)
}

/// Whether this is a send, whose answers carry the broker's region also when they refuse.
pub fn is_send(code: i32) -> bool {
    matches!(code, request::SEND_MESSAGE | request::SEND_MESSAGE_V2 | request::SEND_BATCH_MESSAGE)
}

/// Draws a queue for a send that leaves it to the broker.
pub fn draw_queue(topic: &Topic, random: u64) -> u32 {
    draw(topic.write_queues(), random)
}

/// The same of so many queues.
pub(crate) fn draw(queues: u32, random: u64) -> u32 {
    (random % u64::from(queues.max(1))) as u32
}

fn place_send(
    header: &mut Header,
    catalog: &Catalog,
    partitions: u16,
    random: u64,
    topic_name: &str,
    queue_name: &str,
) -> Place {
    let Some(found) = topic(header, catalog, topic_name) else { return Place::Here };
    let Some(queue) = number(header, queue_name) else { return Place::Here };
    if queue >= 0 {
        return place_queue(found, queue, partitions);
    }
    let queue = draw_queue(found, random);
    let place = place_queue(found, i64::from(queue), partitions);
    header.fields.push_int(queue_name, queue);
    place
}

/// A pop of all queues begins at any of them.
fn place_pop(header: &Header, catalog: &Catalog, partitions: u16, random: u64) -> Place {
    match (topic(header, catalog, "topic"), number(header, "queueId")) {
        (Some(topic), Some(queue)) if queue < 0 && topic.read_queues() > 0 => {
            place_queue(topic, (random % u64::from(topic.read_queues())).cast_signed(), partitions)
        }
        (Some(topic), Some(queue)) => place_queue(topic, queue, partitions),
        _ => Place::Here,
    }
}

fn place_queue(topic: &Topic, queue: i64, partitions: u16) -> Place {
    match u32::try_from(queue) {
        Ok(queue) if queue < topic.queues() => Place::Partition(topic.partition_of(queue, partitions)),
        _ => Place::Here,
    }
}

fn place_position(offset: i64, partitions: u16) -> Place {
    let partition = (offset >> 48) as u16;
    if offset >= 0 && partition < partitions { Place::Partition(partition) } else { Place::Here }
}

fn topic<'a>(header: &Header, catalog: &'a Catalog, name: &str) -> Option<&'a Topic> {
    catalog.topic(header.fields.get(name)?).map(|topic| &**topic)
}

fn number(header: &Header, name: &str) -> Option<i64> {
    header.fields.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TopicConfig;
    use std::sync::Arc;

    fn catalog() -> Catalog {
        let mut catalog = Catalog::new(1);
        let config = TopicConfig { read_queue_nums: 4, write_queue_nums: 2, ..TopicConfig::default() };
        catalog.set_topic(Arc::new(Topic { id: 7, name: "T".into(), first_partition: 2, config }));
        catalog
    }

    fn placed(code: i32, fields: &[(&str, &str)]) -> (Place, Header) {
        let mut header = Header::request(code);
        header.fields.extend(fields.iter().copied());
        (place(&mut header, &catalog(), 3, 11), header)
    }

    #[test]
    fn requests_go_to_their_owner() {
        type Case = (i32, &'static [(&'static str, &'static str)], Place);
        let cases: &[Case] = &[
            (310, &[("b", "T"), ("e", "0")], Place::Partition(2)),
            (320, &[("b", "T"), ("e", "1")], Place::Partition(0)),
            (10, &[("topic", "T"), ("queueId", "3")], Place::Partition(2)),
            (10, &[("topic", "T"), ("queueId", "4")], Place::Here),
            (310, &[("b", "U"), ("e", "0")], Place::Here),
            (310, &[("b", "T"), ("e", "x")], Place::Here),
            (310, &[], Place::Here),
            (11, &[("topic", "T"), ("queueId", "2")], Place::Partition(1)),
            (11, &[("topic", "T"), ("queueId", "-1")], Place::Here),
            (15, &[("topic", "T"), ("queueId", "2")], Place::Partition(1)),
            (33, &[("offset", "281474976710661")], Place::Partition(1)),
            (36, &[("offset", "0")], Place::Partition(0)),
            (33, &[("offset", "-1")], Place::Here),
            (33, &[("offset", "9223372036854775807")], Place::Here),
            (34, &[], Place::Registrar),
            (200_050, &[("topic", "T"), ("queueId", "-1")], Place::Partition(2)),
            (200_055, &[("topic", "T"), ("queueId", "-1")], Place::Partition(2)),
            (200_050, &[("topic", "T"), ("queueId", "1")], Place::Partition(0)),
            (200_050, &[("topic", "T"), ("queueId", "4")], Place::Here),
            (200_051, &[("topic", "T"), ("queueId", "2")], Place::Partition(1)),
            (200_053, &[("topic", "U"), ("queueId", "2")], Place::Here),
            (200_151, &[], Place::Here),
            (400, &[], Place::Registrar),
            (370, &[], Place::Here),
            (37, &[], Place::Here),
            (37, &[("commitLogOffset", "562949953421319")], Place::Partition(2)),
            (38_000, &[], Place::Nowhere),
            (-1, &[], Place::Nowhere),
        ];
        for (code, fields, wanted) in cases {
            assert_eq!(placed(*code, fields).0, *wanted, "{code} {fields:?}");
        }
        assert_eq!(Place::Partition(5).core(1, 2), 1);
        assert_eq!((Place::Here.core(1, 2), Place::Registrar.core(1, 2)), (1, 0));
    }

    #[test]
    fn a_queue_that_the_broker_draws_is_kept() {
        for (code, topic, queue) in [(310, "b", "e"), (10, "topic", "queueId")] {
            let (place, header) = placed(code, &[(topic, "T"), (queue, "-1")]);
            assert_eq!((place, header.fields.get(queue)), (Place::Partition(0), Some("1")));
        }
    }
}
