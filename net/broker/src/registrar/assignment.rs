//! Rebalancing at the broker: codes 400, 401 and 402 (PROTOCOL 4.12.5). Clients that do not choose their queues themselves
//! ask which are theirs, and how they get their messages.

use std::collections::BTreeSet;

use protocol::bodies::{
    self, Assignment, Assignments, MessageModel, MessageQueue, QueryAssignment, RequestMode, RequestModes,
    SetRequestMode,
};
use protocol::codes::response;
use protocol::names::{self, RETRY_PREFIX};

use super::{Order, Outcome, Registrar, body_that_fits, system_error, too_large, wrong_body};
use crate::answer::{Answer, BODY_BYTES_MAX, BUSY};
use crate::call::Request;
use crate::mail::Routed;

/// Most settings of code 401. 100,000, as many as there may be groups.
const MODES_MAX: usize = 100_000;
/// Most requests that wait for what NameServers know. 1,024: each waits for a round trip, or for some seconds when they
/// do not answer; beyond it clients are told that the broker is busy, and ask again 20 s later.
pub const ROUTES_MAX: usize = 1_024;

/// Assignments.
impl Registrar {
    /// Code 400, of a broker that has NameServers: a client asks one of the topic's brokers for its queues on all of
    /// them.
    pub(super) fn ask_route(&mut self, request: Request, now_ms: u64, wanted: &mut Vec<Order>) {
        let asked: QueryAssignment = match bodies::decode(&request.body) {
            Ok(asked) => asked,
            Err(error) => return wanted.push(Order::Answer(request.reply, wrong_body(error))),
        };
        let queues = self.routes.fresh(&asked.topic, now_ms);
        let answer = if names::check_topic(&asked.topic).is_err() {
            // No NameServer knows such a name, and none is asked with a text of any length.
            self.assignment(&asked, self.queues_of(&asked.topic))
        } else if queues.is_some() {
            self.assignment_of_all(&asked, queues)
        } else if self.routing >= ROUTES_MAX {
            Answer::refusal(response::SYSTEM_BUSY, BUSY)
        } else {
            self.routing += 1;
            return wanted.push(Order::Route { request, topic: asked.topic });
        };
        wanted.push(Order::Answer(request.reply, answer));
    }

    /// Goes on where `ask_route` stopped. If no NameServer answers, what they said last is as good as it gets.
    pub(super) fn routed(&mut self, Routed { request, queues }: Routed, now_ms: u64, wanted: &mut Vec<Order>) {
        self.routing -= 1;
        let asked: QueryAssignment = bodies::decode(&request.body).expect("it was read before");
        if let Some(queues) = &queues {
            self.routes.keep(&asked.topic, queues, now_ms);
        }
        let queues = queues.or_else(|| self.routes.last(&asked.topic));
        wanted.push(Order::Answer(request.reply, self.assignment_of_all(&asked, queues)));
    }

    /// Code 400, of a broker that is alone.
    pub(super) fn query_assignment(&self, body: &[u8]) -> Result<Outcome, Answer> {
        let asked: QueryAssignment = bodies::decode(body).map_err(wrong_body)?;
        Ok(Outcome::Now(self.assignment(&asked, self.queues_of(&asked.topic))))
    }

    /// `queues`: what NameServers know of the topic. Of its own queues the broker knows best.
    fn assignment_of_all(&self, asked: &QueryAssignment, queues: Option<Vec<MessageQueue>>) -> Answer {
        let all = queues.map(|mut all| {
            all.retain(|queue| queue.broker_name != self.settings.broker_name);
            all.extend(self.queues_of(&asked.topic).into_iter().flatten());
            all.sort();
            all
        });
        self.assignment(asked, all.filter(|all| !all.is_empty()))
    }

    /// What cannot be said is left out: clients then keep what they have, and ask again. `all`: the topic's queues.
    fn assignment(&self, asked: &QueryAssignment, all: Option<Vec<MessageQueue>>) -> Answer {
        let (mode, share) = match self.ledger.published().mode(&asked.topic, &asked.consumer_group) {
            Some(set) => (set.mode, set.pop_share_queue_num),
            // As in RocketMQ, a retry topic is pulled.
            None if self.settings.pop_by_default && !asked.topic.starts_with(RETRY_PREFIX) => {
                (RequestMode::Pop, self.settings.pop_share_queues)
            }
            None => (RequestMode::Pull, 0),
        };
        let assigned = self.assigned(asked, mode, share, all).map(|queues| {
            queues.into_iter().map(|message_queue| Assignment { message_queue, mode }).collect::<Vec<_>>()
        });
        let body = bodies::encode(&Assignments { message_queue_assignments: assigned });
        if body.len() > BODY_BYTES_MAX { too_large() } else { Answer::with_body(body) }
    }

    /// The queues of a client. `None`: there is no topic, no group, or no such strategy.
    fn assigned(
        &self,
        asked: &QueryAssignment,
        mode: RequestMode,
        share: i32,
        all: Option<Vec<MessageQueue>>,
    ) -> Option<BTreeSet<MessageQueue>> {
        let all = all?;
        if asked.message_model == MessageModel::Broadcasting {
            return Some(all.into_iter().collect());
        }
        let mut ids: Vec<String> =
            self.members.client_ids(&asked.consumer_group).iter().map(|id| id.to_string()).collect();
        ids.sort();
        let strategy = match asked.strategy_name.as_str() {
            "AVG" => average,
            "AVG_BY_CIRCLE" => circle,
            _ => return None,
        };
        let at = ids.iter().position(|id| *id == asked.client_id);
        if ids.is_empty() || all.is_empty() {
            return None;
        }
        let of = |at: Option<usize>| at.map_or_else(Vec::new, |at| strategy(at, ids.len(), &all));
        let queues = match (mode, usize::try_from(share).unwrap_or(0)) {
            (RequestMode::Pull, _) => of(at),
            // Everyone pops from all of them.
            (RequestMode::Pop, share) if share == 0 || share + 1 >= ids.len() => {
                all.into_iter().map(|queue| MessageQueue { queue_id: -1, ..queue }).collect()
            }
            (RequestMode::Pop, _) if ids.len() > all.len() => {
                at.map_or_else(Vec::new, |at| vec![all[at % all.len()].clone()])
            }
            // A client shares its queues with so many who follow it.
            (RequestMode::Pop, share) => match at {
                None => Vec::new(),
                Some(at) => (at..=at + share).flat_map(|other| of(Some(other % ids.len()))).collect(),
            },
        };
        Some(queues.into_iter().collect())
    }

    /// The queues of a topic here that may be read, in order.
    fn queues_of(&self, topic: &str) -> Option<Vec<MessageQueue>> {
        let topic = self.ledger.published().topic(topic).filter(|topic| topic.is_readable())?;
        let queue = |queue: u32| MessageQueue {
            broker_name: self.settings.broker_name.clone(),
            queue_id: queue.cast_signed(),
            topic: topic.name.to_string(),
        };
        Some((0..topic.read_queues()).map(queue).collect())
    }

    /// Code 401.
    pub(super) fn set_request_mode(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let mode: SetRequestMode = bodies::decode(body).map_err(wrong_body)?;
        if mode.topic.starts_with(RETRY_PREFIX) {
            return Err(Answer::refusal(response::NO_PERMISSION, "retry topic is not allowed to set mode"));
        }
        let catalog = self.ledger.newest();
        if catalog.topic(&mode.topic).is_none() {
            let remark = format!("topic[{}] not exist", mode.topic);
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, remark));
        }
        let is_new = catalog.mode(&mode.topic, &mode.consumer_group).is_none();
        if is_new && catalog.modes_count() >= MODES_MAX {
            return Err(system_error(format!("this broker has {MODES_MAX} request modes, which is its limit")));
        }
        if names::check_group(&mode.consumer_group).is_err() || self.group(&mode.consumer_group) == Ok(None) {
            let remark = "subscription group does not exist";
            return Err(Answer::refusal(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        }
        self.ledger.set_mode(mode);
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// Code 402.
    pub(super) fn request_modes(&self) -> Result<Outcome, Answer> {
        let mut modes = RequestModes::default();
        for mode in self.ledger.published().modes() {
            let of_topic = modes.message_request_mode_map.entry(mode.topic.clone()).or_default();
            of_topic.insert(mode.consumer_group.clone(), mode.clone());
        }
        body_that_fits(bodies::encode(&modes))
    }
}

/// Neighbouring queues for each client, as equal in number as can be; the first clients get one more.
fn average(at: usize, clients: usize, queues: &[MessageQueue]) -> Vec<MessageQueue> {
    let (each, more) = (queues.len() / clients, queues.len() % clients);
    let start = at * each + at.min(more);
    let end = start + each + usize::from(at < more);
    queues[start..end].to_vec()
}

/// Queues go round the clients.
fn circle(at: usize, clients: usize, queues: &[MessageQueue]) -> Vec<MessageQueue> {
    queues.iter().skip(at).step_by(clients).cloned().collect()
}
