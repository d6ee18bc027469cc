//! The registrar: all that is broker-wide and low-rate. Topics, group configurations, membership,
//! queue locks, and the questions that only all cores together can answer.
//!
//! A state machine without clock or I/O: requests and facts go in, orders come out, and core 0
//! carries them out. What changes the catalog goes through the ledger; the request is answered once
//! every core holds the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use protocol::bodies::BodyError;
use protocol::codes::{request, response};
use protocol::headers::{CloneGroupOffset, ConsumeStatsInBroker, CorrectionOffset, ResetOffset, ViewStats};
use protocol::headers::{
    ConsumerGroup, CreateTopic, DeleteGroup, FieldError, GetConsumeStats, GroupForbidden, GroupOf,
};
use protocol::headers::{ProducerGroup, QueryMessage, SubscriptionOf, TimeSpanOf, TopicOf, UnregisterClient};

use crate::admin::{Gatherings, Goal, Part, Question};
use crate::answer::{Answer, BODY_BYTES_MAX, BUSY};
use crate::call::{ConnectionId, ReplyTo, Request};
use crate::catalog::{Catalog, FactError};
use crate::config::Settings;
use crate::errands::Errands;
use crate::ledger::{Facts, Ledger, Over, Then};
use crate::locks::Locks;
use crate::mail::{Ensure, Mail, Make, Routed};
use crate::members::Members;
use crate::routes::Routes;
use crate::runtime::Rates;

mod assignment;
mod configuration;
mod membership;
mod questions;
mod relay;
#[cfg(test)]
mod tests;

pub use assignment::ROUTES_MAX;

/// Silent clients and expired locks are looked for this often, in ms (RocketMQ's scan).
pub const SCAN_MS: u64 = 10_000;
/// The cores' counters are sampled this often, in ms, for the rates of code 28.
pub const RATES_SAMPLE_MS: u64 = 10_000;

/// What the registrar wants done.
#[derive(Debug)]
pub enum Order {
    /// Answer a request.
    Answer(ReplyTo, Answer),
    /// Put these facts in partition 0, all or none. Comes back as `on_durable`.
    Put {
        /// Values by key; `None` deletes one.
        facts: Facts,
        /// The change they belong to.
        change: u64,
    },
    /// Give this catalog to every core, this one too. Comes back as `on_installed` once all hold it.
    Publish {
        /// The catalog.
        catalog: Arc<Catalog>,
        /// Which change it is.
        change: u64,
    },
    /// Send a frame that nobody answers.
    Push {
        /// To whom.
        connection: ConnectionId,
        /// The whole frame.
        frame: Bytes,
    },
    /// What waited for a topic goes on.
    Resume {
        /// On this core.
        core: usize,
        /// With this mail.
        mail: Mail,
    },
    /// Ask every core, this one too. Comes back as `on_told`, once from each.
    Ask {
        /// Which gathering it is.
        ticket: u64,
        /// The question.
        question: Question,
    },
    /// Tell the NameServers of the topics now.
    Register,
    /// Ask the NameServers for a topic's queues on all brokers. Comes back as `on_routed`.
    Route {
        /// What waits for it.
        request: Request,
        /// The topic.
        topic: String,
    },
}

/// Topics, groups, members, locks and gatherings.
#[derive(Debug)]
pub struct Registrar {
    settings: Arc<Settings>,
    ledger: Ledger,
    members: Members,
    locks: Locks,
    gatherings: Gatherings,
    /// Groups whose offsets are being deleted: nobody makes those again meanwhile.
    forgetting: BTreeSet<String>,
    rates: Rates,
    errands: Errands,
    /// Questions to all clients of a group, by number.
    surveys: BTreeMap<u64, relay::Survey>,
    next_survey: u64,
    /// Of what clients said in all surveys under way.
    survey_bytes: usize,
    /// Groups whose members are to be told, once this event is over.
    notify: BTreeSet<Arc<str>>,
    /// Requests that wait for what NameServers know, and what they said last.
    routing: usize,
    routes: Routes,
    scan_at_ms: u64,
    sample_at_ms: u64,
}

/// What becomes of a request.
enum Outcome {
    /// It is answered now.
    Now(Answer),
    /// It is answered once all that was accepted so far is in force.
    Settled(Answer),
    /// Every core is asked first.
    Gather(Goal, Question),
    /// The same, once all that was accepted so far is in force.
    GatherSettled(Goal, Question),
}

impl Registrar {
    /// From the facts of partition 0. `seed`: of the catalog's hash tables. The system topics that
    /// are missing are ordinary changes of the first `on_tick`.
    pub fn recover<'a>(
        settings: Arc<Settings>,
        seed: u64,
        facts: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Registrar, FactError> {
        let ledger = Ledger::recover(seed, facts)?;
        let settings = ledger.published().settings(&settings);
        Ok(Registrar {
            ledger,
            members: Members::default(),
            locks: Locks::new(settings.limits.lock_timeout_ms, settings.limits.group_locks),
            gatherings: Gatherings::new(settings.cores),
            forgetting: BTreeSet::new(),
            rates: Rates::default(),
            errands: Errands::default(),
            surveys: BTreeMap::new(),
            next_survey: 0,
            survey_bytes: 0,
            routing: 0,
            routes: Routes::default(),
            notify: BTreeSet::new(),
            scan_at_ms: 0,
            sample_at_ms: 0,
            settings,
        })
    }

    /// What every core holds; at the start, what every core is to begin with.
    pub fn catalog(&self) -> &Catalog {
        self.ledger.published()
    }

    /// Executes a request of one of the codes that `place` sends here.
    pub fn on_request(&mut self, request: Request, now_ms: u64, wanted: &mut Vec<Order>) {
        let reply = request.reply;
        let Some(request) = self.relay(request, now_ms, wanted) else { return self.finish(now_ms, wanted) };
        if request.header.code == request::QUERY_ASSIGNMENT && !self.settings.namesrv.is_empty() {
            self.ask_route(request, now_ms, wanted);
            return self.finish(now_ms, wanted);
        }
        match self.execute(&request, now_ms) {
            Ok(Outcome::Now(answer)) | Err(answer) => wanted.push(Order::Answer(reply, answer)),
            Ok(Outcome::Settled(answer)) => self.settle(Then::Answer(reply, answer), wanted),
            Ok(Outcome::Gather(goal, question)) => self.gather(Some(reply), goal, question, wanted),
            Ok(Outcome::GatherSettled(goal, question)) => self.settle(Then::Gather(reply, goal, question), wanted),
        }
        self.finish(now_ms, wanted);
    }

    /// Makes sure that a topic exists; then its continuation goes back, also if it cannot exist.
    ///
    /// A send to a retry topic learns on its way whether the group consumes in order.
    pub fn on_ensure(&mut self, mut ensure: Ensure, now_ms: u64, wanted: &mut Vec<Order>) {
        if let (Make::Retry { group }, Mail::Request(request)) = (&ensure.how, &mut ensure.then) {
            request.orderly = self.locks.is_held(group, now_ms);
        }
        if !self.ledger.has_room() {
            wanted.push(Order::Resume { core: ensure.back, mail: ensure.then });
            return;
        }
        if let Make::Retry { group } = &ensure.how {
            // Whoever sends to it knows the group. One that cannot be made is no error here either.
            let _ = self.group(group);
        }
        match self.ledger.newest().topic(&ensure.topic).cloned() {
            None => self.make(&ensure.topic, &ensure.how),
            Some(old) => self.widen(&old, &ensure.how),
        }
        self.settle(Then::Send(ensure.back, ensure.then), wanted);
        self.finish(now_ms, wanted);
    }

    /// The facts of `Order::Put` are durable, or it is not known that they are.
    pub fn on_durable(&mut self, change: u64, ok: bool, now_ms: u64, wanted: &mut Vec<Order>) {
        if self.ledger.on_durable(change, ok, wanted) {
            // What members said does not depend on the disk.
            let live = self.ledger.published().live_groups().map(|live| live.group.clone());
            let groups: BTreeSet<Arc<str>> = live.chain(self.members.groups().cloned()).collect();
            for group in groups {
                self.update_subscriptions(&group);
            }
        }
        self.finish(now_ms, wanted);
    }

    /// The keys of facts of which nobody knows whether the log has them: see [`on_certain`](Registrar::on_certain).
    pub fn doubt(&self) -> impl Iterator<Item = &[u8]> {
        self.ledger.doubt()
    }

    /// What partition 0, which was read again or never lost anything, has of all that is in doubt.
    pub fn on_certain(&mut self, facts: &[(Vec<u8>, Option<Vec<u8>>)], now_ms: u64, wanted: &mut Vec<Order>) {
        if let Err(error) = self.ledger.on_certain(facts) {
            tracing::error!(%error, "a fact of a change that failed cannot be read");
        }
        self.finish(now_ms, wanted);
    }

    /// Every core holds the catalog of `Order::Publish`.
    pub fn on_installed(&mut self, change: u64, now_ms: u64, wanted: &mut Vec<Order>) {
        let over = self.ledger.on_installed(change);
        self.settings = self.ledger.published().settings(&self.settings);
        self.conclude(over, wanted);
        self.finish(now_ms, wanted);
    }

    /// One core's part of an `Order::Ask`.
    pub fn on_told(&mut self, ticket: u64, part: Part, now_ms: u64, wanted: &mut Vec<Order>) {
        if let Some(gathered) = self.gatherings.on_told(ticket, part) {
            self.gathered(gathered.reply, gathered.goal, gathered.part, now_ms, wanted);
        }
        self.finish(now_ms, wanted);
    }

    /// What the NameServers know of an `Order::Route`.
    pub fn on_routed(&mut self, routed: Routed, now_ms: u64, wanted: &mut Vec<Order>) {
        self.routed(routed, now_ms, wanted);
        self.finish(now_ms, wanted);
    }

    /// A connection is gone.
    pub fn on_closed(&mut self, connection: ConnectionId, now_ms: u64, wanted: &mut Vec<Order>) {
        for group in self.members.close(connection) {
            self.membership_changed(&group);
        }
        let errands = self.errands.close(connection);
        self.give_up(errands, "the client has closed its connection", wanted);
        self.finish(now_ms, wanted);
    }

    /// Time passes. To be called about every second, and once at the start.
    pub fn on_tick(&mut self, now_ms: u64, wanted: &mut Vec<Order>) {
        self.make_system_topics();
        let errands = self.errands.expire(now_ms);
        self.give_up(errands, "the client did not answer in time", wanted);
        if now_ms >= self.scan_at_ms {
            self.scan_at_ms = now_ms + SCAN_MS;
            for group in self.members.expire(self.settings.limits.client_timeout_ms, now_ms) {
                self.membership_changed(&group);
            }
            self.locks.expire(now_ms);
        }
        if now_ms >= self.sample_at_ms {
            self.sample_at_ms = now_ms + RATES_SAMPLE_MS;
            self.gather(None, Goal::Sample, Question::Tally, wanted);
        }
        self.finish(now_ms, wanted);
    }

    fn execute(&mut self, request: &Request, now_ms: u64) -> Result<Outcome, Answer> {
        let fields = &request.header.fields;
        match request.header.code {
            request::UPDATE_AND_CREATE_TOPIC => self.create_topic(&CreateTopic::parse(fields).map_err(wrong_field)?),
            request::UPDATE_AND_CREATE_TOPIC_LIST => self.create_topics(&request.body),
            request::DELETE_TOPIC_IN_BROKER => self.delete_topic(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            request::GET_ALL_TOPIC_CONFIG => self.all_topics(),
            request::GET_TOPIC_CONFIG => self.topic_config(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP => self.create_group(&request.body),
            request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST => self.create_groups(&request.body),
            request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG => self.all_groups(),
            request::GET_SUBSCRIPTIONGROUP_CONFIG => {
                self.group_config(GroupOf::parse(fields).map_err(wrong_field)?.group)
            }
            request::UPDATE_AND_GET_GROUP_FORBIDDEN => {
                self.group_forbidden(&GroupForbidden::parse(fields).map_err(wrong_field)?)
            }
            request::DELETE_SUBSCRIPTIONGROUP => self.delete_group(&DeleteGroup::parse(fields).map_err(wrong_field)?),
            request::HEART_BEAT => self.heartbeat(request, now_ms),
            request::UNREGISTER_CLIENT => {
                self.unregister(request.peer.connection, &UnregisterClient::parse(fields).map_err(wrong_field)?)
            }
            request::CHECK_CLIENT_CONFIG => self.check_client(&request.body),
            request::GET_CONSUMER_LIST_BY_GROUP => {
                self.consumer_list(ConsumerGroup::parse(fields).map_err(wrong_field)?.consumer_group)
            }
            request::GET_CONSUMER_CONNECTION_LIST => {
                self.consumer_connections(ConsumerGroup::parse(fields).map_err(wrong_field)?.consumer_group)
            }
            request::GET_PRODUCER_CONNECTION_LIST => {
                self.producer_connections(ProducerGroup::parse(fields).map_err(wrong_field)?.producer_group)
            }
            request::GET_ALL_PRODUCER_INFO => self.producers(),
            request::QUERY_SUBSCRIPTION_BY_CONSUMER => {
                self.subscription(&SubscriptionOf::parse(fields).map_err(wrong_field)?)
            }
            request::GET_SYSTEM_TOPIC_LIST_FROM_BROKER => self.system_topics(),
            // Retention drops segments, and all that is derived from them, as they come of age; a topic's
            // messages go with it. There is never anything left to clean.
            request::CLEAN_EXPIRED_CONSUMEQUEUE | request::CLEAN_UNUSED_TOPIC | request::DELETE_EXPIRED_COMMITLOG => {
                Ok(Outcome::Now(Answer::ok()))
            }
            request::LOCK_BATCH_MQ => self.lock(&request.body, now_ms),
            request::UNLOCK_BATCH_MQ => self.unlock(&request.body),
            request::QUERY_ASSIGNMENT => self.query_assignment(&request.body),
            request::SET_MESSAGE_REQUEST_MODE => self.set_request_mode(&request.body),
            request::GET_ALL_MESSAGE_REQUEST_MODE => self.request_modes(),
            request::QUERY_MESSAGE => self.query(&QueryMessage::parse(fields).map_err(wrong_field)?),
            request::UPDATE_BROKER_CONFIG => self.update_config(&request.body),
            request::GET_BROKER_CONFIG => self.broker_config(),
            request::GET_BROKER_RUNTIME_INFO => Ok(Outcome::Gather(Goal::Runtime, Question::Tally)),
            request::GET_TOPIC_STATS_INFO => self.topic_stats(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            request::GET_CONSUME_STATS => self.consume_stats(&GetConsumeStats::parse(fields).map_err(wrong_field)?),
            request::QUERY_CONSUME_TIME_SPAN => self.time_spans(&TimeSpanOf::parse(fields).map_err(wrong_field)?),
            request::INVOKE_BROKER_TO_RESET_OFFSET => {
                self.reset_offset(&ResetOffset::parse(fields).map_err(wrong_field)?)
            }
            request::QUERY_CORRECTION_OFFSET => self.correction(&CorrectionOffset::parse(fields).map_err(wrong_field)?),
            request::CLONE_GROUP_OFFSET => self.clone_offsets(&CloneGroupOffset::parse(fields).map_err(wrong_field)?),
            request::VIEW_BROKER_STATS_DATA => self.view_stats(&ViewStats::parse(fields).map_err(wrong_field)?),
            request::GET_BROKER_CONSUME_STATS => {
                let only_ordered = ConsumeStatsInBroker::parse(fields).map_err(wrong_field)?.only_ordered;
                Ok(Outcome::Gather(Goal::Consumed { only_ordered }, Question::Consumed))
            }
            request::QUERY_TOPICS_BY_CONSUMER => self.topics_of(GroupOf::parse(fields).map_err(wrong_field)?.group),
            request::QUERY_TOPIC_CONSUME_BY_WHO => self.groups_of(TopicOf::parse(fields).map_err(wrong_field)?.topic),
            code => Err(Answer::refusal(
                response::REQUEST_CODE_NOT_SUPPORTED,
                format!(" request type {code} not supported"),
            )),
        }
    }
}

/// The way of a change.
impl Registrar {
    /// Does `then` once all that was accepted is in force: at once, if it is.
    fn settle(&mut self, then: Then, wanted: &mut Vec<Order>) {
        if let Some(then) = self.ledger.wait(then) {
            self.carry_out(then, true, wanted);
        }
    }

    /// The end of every event: members are told, the next change starts.
    fn finish(&mut self, now_ms: u64, wanted: &mut Vec<Order>) {
        for group in std::mem::take(&mut self.notify) {
            if let Some(group) = self.ledger.notify(group) {
                self.push_changed(&group, wanted);
            }
        }
        self.ledger.start(now_ms, wanted);
    }

    fn conclude(&mut self, over: Over, wanted: &mut Vec<Order>) {
        if over.register {
            wanted.push(Order::Register);
        }
        for then in over.then {
            self.carry_out(then, over.ok, wanted);
        }
        for group in over.notify {
            self.push_changed(&group, wanted);
        }
    }

    fn carry_out(&mut self, then: Then, ok: bool, wanted: &mut Vec<Order>) {
        match then {
            Then::Answer(reply, answer) if ok => wanted.push(Order::Answer(reply, answer)),
            Then::Gather(reply, goal, question) if ok => self.gather(Some(reply), goal, question, wanted),
            Then::Answer(reply, _) => wanted.push(Order::Answer(reply, not_written())),
            Then::Gather(reply, goal, _) => {
                self.over(&goal);
                wanted.push(Order::Answer(reply, not_written()));
            }
            Then::Send(core, mail) => wanted.push(Order::Resume { core, mail }),
        }
    }

    /// Whether one more request may wait for a change.
    fn check_room(&self) -> Result<(), Answer> {
        if self.ledger.has_room() {
            return Ok(());
        }
        Err(Answer::refusal(response::SYSTEM_BUSY, BUSY))
    }
}

fn body_that_fits(body: Vec<u8>) -> Result<Outcome, Answer> {
    if body.len() > BODY_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Outcome::Now(Answer::with_body(body)))
}

fn not_written() -> Answer {
    let remark = "the change could not be written to the disk, it is dropped";
    Answer::refusal(response::SERVICE_NOT_AVAILABLE, remark)
}

fn too_large() -> Answer {
    system_error(format!("the answer has more than the {BODY_BYTES_MAX} bytes that fit a frame"))
}

fn wrong_field(error: FieldError) -> Answer {
    system_error(error.to_string())
}

fn wrong_body(error: BodyError) -> Answer {
    system_error(error.to_string())
}

fn system_error(remark: String) -> Answer {
    Answer::refusal(response::SYSTEM_ERROR, remark)
}
