//! Questions that only all cores together can answer: codes 12, 28, 202, 208, 222, 300, 303, 308,
//! 314, 315, 317 and 343; and code 26.

use std::collections::BTreeSet;
use std::sync::Arc;

use protocol::bodies::{self, GroupList, TopicList};
use protocol::codes::response;
use protocol::headers::ViewStats;
use protocol::headers::{CloneGroupOffset, CorrectionOffset, GetConsumeStats, QueryMessage, ResetOffset, TimeSpanOf};
use protocol::ids::{key_hash, tag_key_hash};
use protocol::names;

use super::{BUSY, Order, Outcome, Registrar, system_error, too_large};
use crate::admin::{self, Consumed, Consuming, Goal, Part, Question, ROW_BYTES_MIN, Reset, ResetTo};
use crate::answer::{Answer, BODY_BYTES_MAX, Refused};
use crate::call::ReplyTo;
use crate::catalog::Topic;
use crate::runtime;
use crate::stats::Counted;

/// Questions to all cores.
impl Registrar {
    pub(super) fn query(&self, header: &QueryMessage<'_>) -> Result<Outcome, Answer> {
        let count_max = self.settings.limits.query_messages;
        let asked = usize::try_from(header.max_num).unwrap_or(0);
        // Of a query by unique id the client's number is not looked at.
        let count = if header.unique_key { self.settings.limits.unique_messages } else { asked }.min(count_max);
        // What is found by its unique id is found by that alone, whatever stands beside it.
        let is_tag = !header.unique_key && header.index_type == Some(names::index_type::TAG);
        let key = if is_tag { tag_key_hash } else { key_hash }(header.topic, header.key);
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
        let listed: BTreeSet<&str> = listed.filter(|topic| !topic.trim_ascii().is_empty()).collect();
        let named = header.topic.filter(|topic| !topic.trim_ascii().is_empty());
        let catalog = self.ledger.published();
        let topics: Vec<&Arc<Topic>> = match named {
            // A list is taken as it is, whatever the group subscribes to.
            _ if !listed.is_empty() => listed.into_iter().filter_map(|topic| catalog.topic(topic)).collect(),
            Some(topic) => catalog.topic(topic).into_iter().filter(|topic| self.counts(&group, topic)).collect(),
            None => {
                let goal = Goal::TopicsOf { group: group.clone() };
                return Ok(Outcome::Gather(goal, Question::TopicsOf { group }));
            }
        };
        let (goal, question) = progress_in(&group, topics.into_iter());
        Ok(Outcome::Gather(goal, question))
    }

    /// Whether what a group did in a topic is told: if it is alive, it must still subscribe to it.
    fn counts(&self, group: &str, topic: &Topic) -> bool {
        let live = self.ledger.published().subscriptions(group).filter(|live| !live.topics.is_empty());
        live.is_none_or(|live| live.topic(&topic.name).is_some())
    }

    /// Whose progress code 317 tells: of groups that there are, in topics where they count, in those of an order alone
    /// if that is wanted. `None`: it would not fit an answer.
    fn all_consuming(&self, only_ordered: bool, consumed: &Consumed) -> Option<Arc<[Consuming]>> {
        let catalog = self.ledger.published();
        let (mut asked, mut bytes) = (Vec::new(), 0);
        for topic in catalog.topics().filter(|topic| topic.config.order || !only_ordered) {
            let row_bytes = ROW_BYTES_MIN + self.settings.broker_name.len() + topic.name.len();
            let groups = consumed.get(&topic.id).into_iter().flatten();
            for group in groups.filter(|group| catalog.group(group).is_some() && self.counts(group, topic)) {
                bytes += row_bytes * topic.write_queues() as usize;
                if bytes > BODY_BYTES_MAX {
                    return None;
                }
                asked.push(consuming(group, topic, topic.write_queues()));
            }
        }
        asked.sort_unstable();
        Some(asked.into())
    }

    /// Code 303.
    pub(super) fn time_spans(&self, header: &TimeSpanOf<'_>) -> Result<Outcome, Answer> {
        if self.ledger.published().topic(header.topic).is_none() {
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, format!("topic[{}] not exist", header.topic)));
        }
        let (topic, group) = (header.topic.to_owned(), header.group.to_owned());
        Ok(Outcome::Gather(Goal::Spans { topic: topic.clone() }, Question::Spans { topic, group }))
    }

    pub(super) fn groups_of(&self, topic: &str) -> Result<Outcome, Answer> {
        let topic = topic.to_owned();
        Ok(Outcome::Gather(Goal::GroupsOf { topic: topic.clone() }, Question::GroupsOf { topic }))
    }

    /// Code 222.
    pub(super) fn reset_offset(&self, header: &ResetOffset<'_>) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let Some(topic) = catalog.topic(header.topic) else {
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, format!("Topic {} does not exist", header.topic)));
        };
        if catalog.group_or_light(header.group, &self.settings).is_none() {
            let remark = format!("Group {} does not exist", header.group);
            return Err(Answer::refusal(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        }
        let queue = header.queue_id.and_then(|queue| u32::try_from(queue).ok());
        if let Some(queue) = queue.filter(|queue| *queue >= topic.read_queues()) {
            return Err(system_error(format!("queue {queue} of topic {} does not exist", header.topic)));
        }
        let to = match (queue, header.offset, u64::try_from(header.timestamp)) {
            (Some(_), Some(offset), _) if offset != -1 => ResetTo::Offset(offset),
            (_, _, Ok(time_ms)) => ResetTo::Time(time_ms),
            (_, _, Err(_)) => ResetTo::Newest,
        };
        let reset = Reset {
            topic: header.topic.to_owned(),
            group: header.group.to_owned(),
            queue,
            to,
            is_kept: self.settings.server_side_reset,
            is_forced: header.is_force,
        };
        if !reset.is_kept && self.members.consumers(header.group).next().is_none() {
            let remark = format!("Consumer not online, so can not reset offset, Group: {}", header.group);
            return Err(Answer::refusal(response::CONSUMER_NOT_ONLINE, remark));
        }
        let goal = Goal::Reset { reset: reset.clone(), timestamp: header.timestamp };
        Ok(Outcome::Gather(goal, Question::Reset(reset)))
    }

    /// Code 315: sends by topic, what groups got and sent back, by `topic@group`, and all messages, by cluster.
    pub(super) fn view_stats(&self, header: &ViewStats<'_>) -> Result<Outcome, Answer> {
        let name = format!("{}> <{}", header.stats_name, header.stats_key);
        let unknown = || system_error(format!("The stats <{name}> not exist"));
        let id = |topic: &str| self.ledger.published().topic(topic).map(|topic| topic.id).ok_or_else(unknown);
        let (kind, unit) = header.stats_name.rsplit_once('_').ok_or_else(unknown)?;
        let is_size = match unit {
            "NUMS" => false,
            "SIZE" => true,
            _ => return Err(unknown()),
        };
        let counted = match kind {
            "TOPIC_PUT" => Counted::Put { topic: id(header.stats_key)? },
            "GROUP_GET" => {
                let (topic, group) = header.stats_key.split_once('@').ok_or_else(unknown)?;
                Counted::Got { topic: id(topic)?, group: group.to_owned() }
            }
            "SNDBCK_PUT" if !is_size => {
                let (topic, group) = header.stats_key.split_once('@').ok_or_else(unknown)?;
                Counted::Returned { topic: id(topic)?, group: group.to_owned() }
            }
            "BROKER_PUT" if !is_size && header.stats_key == self.settings.cluster => Counted::AllPut,
            "BROKER_GET" if !is_size && header.stats_key == self.settings.cluster => Counted::AllGot,
            _ => return Err(unknown()),
        };
        Ok(Outcome::Gather(Goal::Stats { is_size, name }, Question::Stats(vec![counted])))
    }

    /// Code 308.
    pub(super) fn correction(&self, header: &CorrectionOffset<'_>) -> Result<Outcome, Answer> {
        let without = header.filter_groups.unwrap_or("").split(',').map(str::trim).filter(|group| !group.is_empty());
        let question = Question::Correction {
            topic: header.topic.to_owned(),
            without: without.map(str::to_owned).collect(),
            compared: header.compare_group.to_owned(),
        };
        Ok(Outcome::Gather(Goal::Correction, question))
    }

    /// Code 314.
    pub(super) fn clone_offsets(&self, header: &CloneGroupOffset<'_>) -> Result<Outcome, Answer> {
        names::check_group(header.dest_group)
            .map_err(|error| Answer::refusal(response::INVALID_PARAMETER, error.to_string()))?;
        let catalog = self.ledger.published();
        let named = header.topic.filter(|topic| !topic.trim_ascii().is_empty());
        if let Some(topic) = named.filter(|topic| catalog.topic(topic).is_none()) {
            return Err(system_error(format!("[cloneGroupOffset], topic config not exist, {topic}")));
        }
        let live = catalog.subscriptions(header.src_group).filter(|live| !header.offline && !live.topics.is_empty());
        let topics = match (named, live) {
            (Some(topic), Some(live)) if live.topic(topic).is_none() => Some(BTreeSet::new()),
            (Some(topic), _) => Some(BTreeSet::from([topic.to_owned()])),
            (None, Some(live)) => Some(live.topics.keys().map(|topic| topic.to_string()).collect()),
            (None, None) => None,
        };
        let (from, to) = (header.src_group.to_owned(), header.dest_group.to_owned());
        Ok(Outcome::Gather(Goal::Clone, Question::Clone { from, to, topics }))
    }

    /// Code 343.
    pub(super) fn topics_of(&self, group: &str) -> Result<Outcome, Answer> {
        let group = group.to_owned();
        Ok(Outcome::Gather(Goal::TopicNames, Question::TopicsOf { group }))
    }

    pub(super) fn broker_config(&self) -> Result<Outcome, Answer> {
        let changes = &self.ledger.published().changes;
        let version = bodies::encode(&self.ledger.published().topics_version);
        let version = String::from_utf8(version).expect("JSON is UTF-8");
        Ok(Outcome::Now(Answer::with_body(runtime::properties(&self.settings, changes)).field("version", &version)))
    }

    /// The offsets of a reset are known, and set if the broker does that; else clients are told.
    fn reset_to(
        &self,
        reset: &Reset,
        timestamp: i64,
        offsets: Result<Vec<(u32, u64)>, Refused>,
        wanted: &mut Vec<Order>,
    ) -> Answer {
        let offsets = match offsets {
            Ok(offsets) => admin::reset_offsets(&self.settings.broker_name, &reset.topic, &offsets),
            Err((code, remark)) => return Answer::refusal(code, remark),
        };
        let asked = ResetOffset {
            topic: &reset.topic,
            group: &reset.group,
            queue_id: Some(-1),
            offset: None,
            timestamp,
            is_force: reset.is_forced,
        };
        if !reset.is_kept
            && let Err(refusal) = self.push_reset(&asked, &offsets, wanted)
        {
            return refusal;
        }
        Answer::with_body(offsets.encode())
    }

    pub(super) fn gather(&mut self, reply: Option<ReplyTo>, goal: Goal, question: Question, wanted: &mut Vec<Order>) {
        match self.gatherings.start(reply, goal) {
            Ok(ticket) => wanted.push(Order::Ask { ticket, question }),
            Err(goal) => {
                self.over(&goal);
                let busy = Answer::refusal(response::SYSTEM_BUSY, BUSY);
                wanted.extend(reply.map(|reply| Order::Answer(reply, busy)));
            }
        }
    }

    /// Nobody is asked for this any more.
    pub(super) fn over(&mut self, goal: &Goal) {
        if let Goal::Forget { group } = goal {
            self.forgetting.remove(group);
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
        self.over(&goal);
        let answer = match (goal, part) {
            (Goal::Sample, Part::Tally(tally)) => return self.rates.sample(&tally, now_ms),
            (Goal::Runtime, Part::Tally(tally)) => {
                Answer::with_body(bodies::encode(&runtime::table(&self.settings, &self.rates, &tally, now_ms)))
            }
            (Goal::TopicsOf { group }, Part::TopicsOf(ids)) => {
                let topics = self.ledger.published().topics();
                let topics = topics.filter(|topic| ids.contains(&topic.id) && self.counts(&group, topic));
                let (goal, question) = progress_in(&group, topics);
                return self.gather(reply, goal, question, wanted);
            }
            (Goal::TopicNames, Part::TopicsOf(ids)) => {
                let topics = self.ledger.published().topics().filter(|topic| ids.contains(&topic.id));
                let topic_list = topics.map(|topic| topic.name.to_string()).collect();
                Answer::with_body(bodies::encode(&TopicList { broker_addr: None, topic_list }))
            }
            (Goal::Topic { topic }, Part::Topic(queues)) => {
                let id = self.ledger.published().topic(&topic).map(|topic| topic.id);
                let question = Question::Stats(id.into_iter().map(|topic| Counted::Put { topic }).collect());
                return self.gather(reply, Goal::TopicRate { topic, queues }, question, wanted);
            }
            (Goal::TopicRate { topic, queues }, Part::Stats(stats)) => {
                admin::topic_stats(&self.settings.broker_name, &topic, &queues, admin::rate(&stats))
            }
            (Goal::Progress { asked, of_all }, Part::Progress(queues)) => {
                let counted = asked.iter().map(|of| Counted::Got { topic: of.id, group: of.group.clone() });
                let question = Question::Stats(counted.collect());
                return self.gather(reply, Goal::ProgressRate { asked, of_all, queues }, question, wanted);
            }
            (Goal::ProgressRate { asked, of_all: false, queues }, Part::Stats(stats)) => {
                admin::consume_stats(&self.settings.broker_name, &asked, &queues, admin::rate(&stats))
            }
            (Goal::ProgressRate { asked, of_all: true, queues }, Part::Stats(stats)) => {
                let groups = self.ledger.published().groups().map(|group| &*group.name);
                admin::all_consume_stats(&self.settings, groups, &asked, &queues, &stats)
            }
            (Goal::Spans { topic }, Part::Spans(mut queues)) => {
                queues.sort_by_key(|times| times.queue);
                admin::time_spans(&self.settings.broker_name, &topic, &queues, now_ms)
            }
            (Goal::Stats { is_size, name }, Part::Stats(stats)) => match &stats[..] {
                [Some(windows)] => admin::broker_stats(is_size, windows),
                _ => system_error(format!("The stats <{name}> not exist")),
            },
            (Goal::GroupsOf { topic }, Part::GroupsOf(mut groups)) => {
                let live = self.ledger.published().live_groups().filter(|live| live.topic(&topic).is_some());
                groups.extend(live.map(|live| live.group.to_string()));
                Answer::with_body(bodies::encode(&GroupList { group_list: groups }))
            }
            (Goal::Reset { reset, timestamp }, Part::Reset(offsets)) => {
                self.reset_to(&reset, timestamp, offsets, wanted)
            }
            (Goal::Correction, Part::Correction(offsets)) => admin::correction(&offsets),
            (Goal::Clone, Part::Cloned(Ok(()))) => Answer::ok(),
            (Goal::Clone, Part::Cloned(Err((code, remark)))) => Answer::refusal(code, remark),
            (Goal::Consumed { only_ordered }, Part::Consumed(consumed)) => {
                match consumed.and_then(|consumed| self.all_consuming(only_ordered, &consumed)) {
                    Some(asked) => {
                        let goal = Goal::Progress { asked: Arc::clone(&asked), of_all: true };
                        return self.gather(reply, goal, Question::Progress(asked), wanted);
                    }
                    None => too_large(),
                }
            }
            (Goal::Messages { count }, Part::Messages { found, is_partial }) => {
                admin::messages(count, BODY_BYTES_MAX, found, is_partial)
            }
            (Goal::Forget { .. }, Part::Forgotten(outcome)) => match outcome {
                Ok(()) => Answer::ok(),
                Err((code, remark)) => {
                    let remark = format!("the group is deleted, but not all of its offsets: {remark}");
                    Answer::refusal(code, remark)
                }
            },
            (goal, part) => panic!("cores answered {goal:?} with {part:?}"),
        };
        let answer = if answer.body.len() > BODY_BYTES_MAX { too_large() } else { answer };
        wanted.extend(reply.map(|reply| Order::Answer(reply, answer)));
    }
}

/// What asks how far a group is in topics (code 208).
fn progress_in<'a>(group: &str, topics: impl Iterator<Item = &'a Arc<Topic>>) -> (Goal, Question) {
    let asked: Arc<[Consuming]> = topics.map(|topic| consuming(group, topic, topic.read_queues())).collect();
    (Goal::Progress { asked: Arc::clone(&asked), of_all: false }, Question::Progress(asked))
}

fn consuming(group: &str, topic: &Topic, queues: u32) -> Consuming {
    Consuming { group: group.to_owned(), topic: Arc::clone(&topic.name), id: topic.id, queues }
}
