//! What topics are like when they are made or changed: rules without state (PROTOCOL 4.2, 2.8, 3.18).

use protocol::bodies::TopicConfig;
use protocol::codes::response;
use protocol::headers::CreateTopic;
use protocol::names::{self, perm, topic_flag};

use crate::answer::Answer;
use crate::attributes::{self, Attributes};
use crate::config::Settings;

/// Queues of the topics that RocketMQ makes with a fixed number.
const BENCHMARK_QUEUES: i32 = 1024;
const CLUSTER_QUEUES: i32 = 16;
const SCHEDULE_QUEUES: i32 = 18;
const REVIVE_QUEUES: i32 = 8;
/// A topic whose perm has only the inherit bit is there for its name.
const CLOSED: i32 = perm::INHERIT;
const OPEN: i32 = perm::READ | perm::WRITE;
const TEMPLATE: i32 = perm::READ | perm::WRITE | perm::INHERIT;

/// The topics that every broker has. Those that are there already stay as they are.
pub fn system_topics(settings: &Settings) -> Vec<TopicConfig> {
    let cluster = &settings.cluster;
    let broker = &settings.broker_name;
    let mut topics = vec![
        TopicConfig::new(names::SELF_TEST_TOPIC, 1, OPEN),
        TopicConfig::new(names::BENCHMARK_TOPIC, BENCHMARK_QUEUES, OPEN),
        TopicConfig::new(cluster, CLUSTER_QUEUES, if settings.cluster_topic { TEMPLATE } else { CLOSED }),
        TopicConfig::new(broker, 1, if settings.broker_topic { TEMPLATE } else { CLOSED }),
        TopicConfig::new(names::OFFSET_MOVED_EVENT_TOPIC, 1, OPEN),
        TopicConfig::new(names::SCHEDULE_TOPIC, SCHEDULE_QUEUES, OPEN),
        TopicConfig::new(names::reply_topic(cluster), 1, OPEN),
        TopicConfig::new(names::revive_topic(cluster), REVIVE_QUEUES, OPEN),
        TopicConfig::new(names::member_topic(broker), 1, CLOSED),
        TopicConfig::new(names::TRANS_HALF_TOPIC, 1, OPEN),
        TopicConfig::new(names::TRANS_OP_HALF_TOPIC, 1, OPEN),
        // A queue in every partition: what was given up stays where it is.
        TopicConfig::new(names::TRANS_CHECK_MAX_TIME_TOPIC, settings.partitions.into(), OPEN),
    ];
    if settings.auto_create_topic {
        topics.push(TopicConfig::new(names::DEFAULT_TOPIC, settings.topic_queues, TEMPLATE));
    }
    if settings.trace_topic {
        topics.push(TopicConfig::new(names::TRACE_TOPIC, 1, OPEN));
    }
    topics
}

/// Whether admin tools may neither change nor delete this topic.
pub fn is_system(settings: &Settings, topic: &str) -> bool {
    names::is_system_topic(topic)
        || topic == settings.cluster
        || topic == settings.broker_name
        || topic == names::reply_topic(&settings.cluster)
}

/// A topic with this name may be made or changed by an admin. `Err` is the answer.
pub fn check_change(settings: &Settings, topic: &str) -> Result<(), Answer> {
    names::check_topic(topic).map_err(|error| invalid(error.to_string()))?;
    check_not_system(settings, topic)
}

/// A topic with this name may be deleted by an admin. `Err` is the answer.
pub fn check_delete(settings: &Settings, topic: &str) -> Result<(), Answer> {
    if topic.trim_ascii().is_empty() {
        return Err(invalid("The specified topic is blank.".to_owned()));
    }
    check_not_system(settings, topic)
}

/// A topic as code 17 wants it. `changes`: of its attributes; `old`: as it is; `None`: it is new. `Err` is the answer.
pub fn requested(
    settings: &Settings,
    header: &CreateTopic<'_>,
    changes: &Attributes,
    old: Option<&TopicConfig>,
) -> Result<TopicConfig, Answer> {
    check_change(settings, header.topic)?;
    if settings.has_light_queues() && names::is_lmq(header.topic) {
        return Err(invalid(format!("{} is a light queue: it is made with its first message", header.topic)));
    }
    let queues_max = settings.limits.topic_queues.cast_signed();
    for (name, queues) in [("readQueueNums", header.read_queue_nums), ("writeQueueNums", header.write_queue_nums)] {
        if !(0..=queues_max).contains(&queues) {
            return Err(invalid(format!("{name} {queues} is not in 0 to {queues_max}")));
        }
    }
    if !(0..=PERM_BITS).contains(&header.perm) {
        return Err(invalid(format!("perm {} is not in 0 to {PERM_BITS}", header.perm)));
    }
    if !matches!(header.topic_filter_type, "SINGLE_TAG" | "MULTI_TAG") {
        let name = header.topic_filter_type;
        return Err(invalid(format!("topicFilterType {name} is neither SINGLE_TAG nor MULTI_TAG")));
    }
    if !settings.mixed_message_type && changes.get("+message.type").is_some_and(|kind| kind == attributes::MIXED_TYPE) {
        return Err(invalid("MIXED message type is not supported.".to_owned()));
    }
    let attributes = attributes::alter(attributes::OF_TOPICS, old.map(|old| &old.attributes), changes)
        .map_err(|remark| Answer::refusal(response::SYSTEM_ERROR, remark))?;
    let has = |name: &str, value: &str| attributes.get(name).is_some_and(|is| is == value);
    if has(attributes::CLEANUP_POLICY, attributes::COMPACTION) {
        if has(attributes::QUEUE_TYPE, attributes::BATCH_QUEUE) {
            // One message of a batch may be the newest of its key, and its neighbour not.
            return Err(invalid("cleanup.policy=COMPACTION and queue.type=BatchCQ exclude each other".to_owned()));
        }
        if [names::RETRY_PREFIX, names::DLQ_PREFIX].iter().any(|prefix| header.topic.starts_with(prefix)) {
            return Err(invalid("a topic of retries or dead letters cannot be compacted".to_owned()));
        }
    }
    Ok(TopicConfig {
        attributes,
        order: header.order,
        perm: header.perm,
        read_queue_nums: header.read_queue_nums,
        topic_filter_type: header.topic_filter_type.to_owned(),
        topic_sys_flag: header.topic_sys_flag.unwrap_or(0),
        write_queue_nums: header.write_queue_nums,
        ..TopicConfig::new(header.topic, 0, 0)
    })
}

/// All perm bits: priority, read, write, inherit.
const PERM_BITS: i32 = 15;

/// A topic that a producer sends to before anyone made it, like `template`. `None`: the template
/// does not allow it, or the name is not legal.
pub fn like_template(
    settings: &Settings,
    topic: &str,
    template: Option<&TopicConfig>,
    queues: i32,
) -> Option<TopicConfig> {
    let template = template?;
    let is_off = template.topic_name == names::DEFAULT_TOPIC && !settings.auto_create_topic;
    if is_off || !perm::inherited(template.perm) || names::check_topic(topic).is_err() {
        return None;
    }
    let queues = queues.min(template.write_queue_nums).max(0);
    Some(TopicConfig {
        topic_filter_type: template.topic_filter_type.clone(),
        ..TopicConfig::new(topic, queues, template.perm & !perm::INHERIT)
    })
}

/// The retry topic of a group. `is_ordered`: it subscribes to an order topic; `is_unit`: its
/// clients belong to units.
pub fn retry(group: &str, queues: i32, is_ordered: bool, is_unit: bool) -> TopicConfig {
    TopicConfig {
        order: is_ordered,
        topic_sys_flag: if is_unit { topic_flag::UNIT_SUB } else { 0 },
        ..TopicConfig::new(names::retry_topic(group), queues, OPEN)
    }
}

/// The topic where messages come again that a group popped in vain.
pub fn pop_retry(name: &str, queues: i32) -> TopicConfig {
    TopicConfig::new(name, queues, OPEN)
}

/// A light queue (LMQ). `count`: how many there are. `None`: there may not be one more.
pub fn light(settings: &Settings, name: &str, count: usize) -> Option<TopicConfig> {
    let may_be = settings.has_light_queues() && names::is_lmq(name) && count < settings.limits.light_queues;
    may_be.then(|| TopicConfig::new(name, 1, OPEN))
}

/// The dead-letter topic of a group.
pub fn dead(group: &str) -> TopicConfig {
    TopicConfig::new(names::dlq_topic(group), 1, OPEN)
}

fn check_not_system(settings: &Settings, topic: &str) -> Result<(), Answer> {
    if is_system(settings, topic) {
        return Err(invalid(format!("The topic[{topic}] is conflict with system topic.")));
    }
    Ok(())
}

fn invalid(remark: String) -> Answer {
    Answer::refusal(response::INVALID_PARAMETER, remark)
}
