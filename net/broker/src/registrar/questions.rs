//! Questions that only all cores together can answer: codes 12, 28, 202, 208 and 300; and code 26.

use std::collections::BTreeSet;

use protocol::bodies::{self, GroupList};
use protocol::codes::response;
use protocol::headers::{GetConsumeStats, QueryMessage};
use protocol::ids::key_hash;

use super::{BODY_BYTES_MAX, BUSY, Order, Outcome, Registrar, too_large};
use crate::admin::{self, Goal, Part, Question};
use crate::answer::Answer;
use crate::call::ReplyTo;
use crate::ledger::Then;
use crate::runtime;

/// Messages of a query by unique key (RocketMQ's `defaultQueryMaxNum`): the client's number is not
/// looked at.
const UNIQUE_KEY_COUNT: usize = 32;

/// Questions to all cores.
impl Registrar {
    pub(super) fn query(&self, header: &QueryMessage<'_>) -> Result<Outcome, Answer> {
        let count_max = self.settings.limits.query_messages;
        let asked = usize::try_from(header.max_num).unwrap_or(0);
        let count = if header.unique_key { UNIQUE_KEY_COUNT } else { asked }.min(count_max);
        let key = key_hash(header.topic, header.key);
        let begin_ms = header.begin_timestamp.max(0).cast_unsigned();
        let end_ms = header.end_timestamp.max(0).cast_unsigned();
        Ok(Outcome::Gather(Goal::Messages { count }, Question::Messages { key, begin_ms, end_ms, count }))
    }

    pub(super) fn topic_stats(&self, topic: &str) -> Result<Outcome, Answer> {
        if self.ledger.published().topic(topic).is_none() {
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, format!("topic[{topic}] not exist")));
        }
        let topic = topic.to_owned();
        Ok(Outcome::Gather(Goal::Topic { topic: topic.clone() }, Question::Topic { topic }))
    }

    pub(super) fn consume_stats(&self, header: &GetConsumeStats<'_>) -> Result<Outcome, Answer> {
        let group = header.consumer_group.to_owned();
        let listed = header.topic_list.unwrap_or("").split(';');
        let mut topics: BTreeSet<&str> = listed.filter(|topic| !topic.trim_ascii().is_empty()).collect();
        if topics.is_empty() {
            topics.extend(header.topic.filter(|topic| !topic.trim_ascii().is_empty()));
        }
        if topics.is_empty() {
            let goal = Goal::TopicsOf { group: group.clone() };
            return Ok(Outcome::Gather(goal, Question::TopicsOf { group }));
        }
        let topics = self.consumed(&group, topics.into_iter());
        Ok(Outcome::Gather(Goal::Progress { topics: topics.clone() }, Question::Progress { group, topics }))
    }

    /// Those of the topics that exist and that the group still subscribes to, if it is alive.
    fn consumed<'a>(&self, group: &str, topics: impl Iterator<Item = &'a str>) -> Vec<String> {
        let catalog = self.ledger.published();
        let live = catalog.subscriptions(group).filter(|live| !live.topics.is_empty());
        let is_consumed =
            |topic: &&str| catalog.topic(topic).is_some() && live.is_none_or(|live| live.topic(topic).is_some());
        topics.filter(is_consumed).map(str::to_owned).collect()
    }

    pub(super) fn groups_of(&self, topic: &str) -> Result<Outcome, Answer> {
        let topic = topic.to_owned();
        Ok(Outcome::Gather(Goal::GroupsOf { topic: topic.clone() }, Question::GroupsOf { topic }))
    }

    pub(super) fn broker_config(&self) -> Result<Outcome, Answer> {
        let version = bodies::encode(&self.ledger.published().topics_version);
        let version = String::from_utf8(version).expect("JSON is UTF-8");
        Ok(Outcome::Now(Answer::with_body(runtime::properties(&self.settings)).field("version", &version)))
    }

    pub(super) fn gather(&mut self, reply: Option<ReplyTo>, goal: Goal, question: Question, wanted: &mut Vec<Order>) {
        match self.gatherings.start(reply, goal) {
            Some(ticket) => wanted.push(Order::Ask { ticket, question }),
            None => {
                let busy = Answer::refusal(response::SYSTEM_BUSY, BUSY);
                wanted.extend(reply.map(|reply| Order::Answer(reply, busy)));
            }
        }
    }

    /// All cores have answered.
    pub(super) fn gathered(
        &mut self,
        reply: Option<ReplyTo>,
        goal: Goal,
        part: Part,
        now_ms: u64,
        wanted: &mut Vec<Order>,
    ) {
        let answer = match (goal, part) {
            (Goal::Sample, Part::Tally(tally)) => return self.rates.sample(&tally, now_ms),
            (Goal::Runtime, Part::Tally(tally)) => {
                Answer::with_body(bodies::encode(&runtime::table(&self.settings, &self.rates, &tally, now_ms)))
            }
            (Goal::TopicsOf { group }, Part::TopicsOf(ids)) => {
                let catalog = self.ledger.published();
                let names = catalog.topics().filter(|topic| ids.contains(&topic.id)).map(|topic| &*topic.name);
                let topics = self.consumed(&group, names);
                let goal = Goal::Progress { topics: topics.clone() };
                return self.gather(reply, goal, Question::Progress { group, topics }, wanted);
            }
            (Goal::Topic { topic }, Part::Topic(queues)) => {
                admin::topic_stats(&self.settings.broker_name, &topic, &queues)
            }
            (Goal::Progress { topics }, Part::Progress(queues)) => {
                admin::consume_stats(&self.settings.broker_name, &topics, &queues)
            }
            (Goal::GroupsOf { topic }, Part::GroupsOf(mut groups)) => {
                let live = self.ledger.published().live_groups().filter(|live| live.topic(&topic).is_some());
                groups.extend(live.map(|live| live.group.to_string()));
                Answer::with_body(bodies::encode(&GroupList { group_list: groups }))
            }
            (Goal::Messages { count }, Part::Messages(messages)) => admin::messages(count, BODY_BYTES_MAX, messages),
            (Goal::Forget, Part::Forgotten) => {
                // The group's deletion may still be on its way to the disk.
                if let Some(reply) = reply {
                    self.settle(Then::Answer(reply, Answer::ok()), wanted);
                }
                return;
            }
            (goal, part) => panic!("cores answered {goal:?} with {part:?}"),
        };
        let answer = if answer.body.len() > BODY_BYTES_MAX { too_large() } else { answer };
        wanted.extend(reply.map(|reply| Order::Answer(reply, answer)));
    }
}
