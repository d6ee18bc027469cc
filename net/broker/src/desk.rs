//! The desk: everything of a core but its sockets. Requests, mail and the partitions' effects come
//! in; answers, mail and operations for the ring come out. It never waits and never reads a clock.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;
use engine::error::AppendError;
use engine::format::{Position, QueueKey};
use engine::io::Pieces;
use engine::message::Stored;
use engine::partition::{Effect, Partition};
use engine::{LoadId, Ticket};
use hashbrown::HashSet;
use protocol::codes::response;
use protocol::headers::AskClient;
use protocol::ids::OffsetId;
use protocol::names::ext;
use protocol::{FieldError, Header};

use crate::admin::{Counters, Part, Reset, Tally, Traffic};
use crate::answer::{Answer, BUSY, LOG_BUSY, Replies};
use crate::call::{Call, ConnectionId, Peer, ReplyTo, Request};
use crate::catalog::{Catalog, OFFSET_KEY};
use crate::cold::{ColdGate, ColdReads};
use crate::config::Settings;
use crate::consume::{Compiled, Resets};
use crate::errands::Said;
use crate::inquiry::Inquiry;
use crate::ledger::Facts;
use crate::mail::{Mail, Mailboxes, Outbox};
use crate::parked::{Ask, Cold, Loading, Parked, Pull};
use crate::place::{Place, is_send, is_served_fast, place};
use crate::pop::accounts::Accounts;
use crate::pop::revive::Receipt;
use crate::pop::waiting::Waiting;
use crate::pop::{Pop, Popped};
use crate::produce::{Sought, Travels, ours, write_sent};
use crate::promise::{Promise, Promises, Says};
use crate::registrar::{Order, Registrar};
use crate::stats::Stats;

/// The first catalog that the cores get is not a change of the registrar's: those count from 1.
const CHANGE_RECOVERED: u64 = 0;
/// What is said to requests of a broker that stops.
const STOPPING: &str = "the broker is shutting down";

/// What the desk wants of the loop, besides operations.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A partition has closed itself; it refuses messages until it is recovered.
    Closed(u16, String),
    /// A partition has shut down as asked.
    Shut,
    /// Topics changed: tell all NameServers.
    Register(Arc<Catalog>),
    /// The catalog in partition 0 cannot be read.
    Unreadable(String),
    /// What do the NameServers know of this topic? Comes back as `Mail::Routed` with the request.
    Route(Box<Request>, String),
}

/// One core's partitions and everything that waits in front of them.
pub struct Desk {
    /// This core's number.
    pub index: usize,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Topics, groups and subscriptions.
    pub catalog: Arc<Catalog>,
    /// The partitions of this core: partition `p` is at `p / cores`.
    pub partitions: Vec<Partition>,
    /// Frames that are ready to leave.
    pub replies: Replies,
    /// Mail to other cores.
    pub outbox: Outbox,
    /// Answers that wait for the log.
    pub promises: Promises,
    /// Pulls that wait for messages.
    pub parked: Parked,
    /// What waits for cold reads.
    pub loading: Loading,
    /// What this core did since its start.
    pub traffic: Traffic,
    /// The same by topic and by group.
    pub stats: Stats,
    /// What its loop counted since then.
    pub counters: Counters,
    /// For choices that nobody should foresee.
    pub random: Random,
    /// Messages without an id of their own get one from here.
    pub unique: u16,
    /// What the loop has to do or to tell.
    pub notices: Vec<Notice>,
    /// Something was put into a partition since its last turn.
    pub touched: bool,
    /// On core 0, once partition 0 is open.
    registrar: Option<Box<Registrar>>,
    stopping: bool,
    shut: bool,
    seed: u64,
    /// Catalogs on their way, and how many cores do not hold them yet.
    missing: Vec<(u64, usize)>,
    /// Promises that the log would not even begin to keep.
    refused: Vec<(Ticket, AppendError)>,
    /// Goes into the unique ids made here: tells them from those of other cores and other starts.
    pub(crate) maker: u64,
    /// The properties that the broker writes into every message.
    pub(crate) ours: String,
    /// Memory that is used again: an append's results, a message's properties.
    pub(crate) stored: Vec<Stored>,
    pub(crate) text: String,
    /// Memory for message ids.
    pub(crate) ids: String,
    /// Offsets that were set anew and that clients do not know yet.
    pub(crate) resets: Resets,
    /// Expressions that pulls brought with them.
    pub(crate) compiled: Compiled,
    woken: Vec<Pull>,
    orders: Vec<Order>,
    /// Who reads how much from disk: of all cores, on core 0. And whom that holds, here.
    pub(crate) cold_reads: ColdReads,
    pub(crate) cold_gate: ColdGate,
    /// What groups that pop have on loan.
    pub(crate) accounts: Accounts,
    /// Pops that wait for messages, and those of them that go on.
    pub(crate) waiting: Waiting,
    pub(crate) stirred: VecDeque<Box<Pop>>,
    /// Messages on their way to retry topics.
    pub(crate) revivals: usize,
    /// What a pop finds: memory that is used again.
    pub(crate) popped: Popped,
    /// Messages that wait for their copies in light queues of other partitions.
    pub(crate) travels: Travels,
    /// Bytes of messages and copies that wait here until they are somewhere else.
    pub(crate) travelling: usize,
}

impl Desk {
    /// A desk for core `index`. `partitions`: those of this core, in order; they are opening.
    pub fn new(
        index: usize,
        settings: Arc<Settings>,
        partitions: Vec<Partition>,
        mailboxes: Mailboxes,
        seed: u64,
    ) -> Desk {
        Desk {
            index,
            catalog: Arc::new(Catalog::new(seed)),
            partitions,
            replies: Replies::default(),
            outbox: Outbox::new(mailboxes),
            promises: Promises::default(),
            parked: Parked::new(settings.limits.parked_pulls, seed),
            loading: Loading::default(),
            traffic: Traffic::default(),
            stats: Stats::new(seed),
            counters: Counters::default(),
            random: Random(seed.rotate_left(32) ^ index as u64),
            unique: 0,
            notices: Vec::new(),
            touched: false,
            registrar: None,
            stopping: false,
            shut: false,
            maker: Random(seed ^ index as u64).draw(),
            seed,
            missing: Vec::new(),
            refused: Vec::new(),
            ours: ours(&settings),
            stored: Vec::new(),
            text: String::new(),
            ids: String::new(),
            resets: Resets::default(),
            compiled: Compiled::default(),
            woken: Vec::new(),
            orders: Vec::new(),
            cold_reads: ColdReads::default(),
            cold_gate: ColdGate::default(),
            accounts: Accounts::new(seed),
            waiting: Waiting::new(settings.limits.parked_pulls, seed),
            stirred: VecDeque::new(),
            revivals: 0,
            popped: Popped::default(),
            travels: Travels::default(),
            travelling: 0,
            settings,
        }
    }

    /// Takes a request from a connection of this core: serves it, or sends it to its owner.
    pub fn take(&mut self, header: &mut Header, body: &[u8], reply: ReplyTo, peer: Peer, fast: bool, now_ms: u64) {
        if self.stopping {
            return self.refuse(&reply, response::SERVICE_NOT_AVAILABLE, STOPPING);
        }
        if fast && !is_served_fast(header.code) {
            return self.refuse_code(&reply);
        }
        let cores = self.settings.cores;
        // A lone core owns every queue; it need not find out which.
        let placed = if cores == 1 && is_send(header.code) { Place::Here } else { self.place(header) };
        let call = Call { header, body, reply, peer, resumed: false, orderly: false };
        if placed == Place::Nowhere {
            return self.refuse_code(&reply);
        }
        let core = placed.core(self.index, cores);
        if core == self.index {
            return self.serve(&call, now_ms);
        }
        if self.outbox.offer(core, Mail::Request(call.to_request())).is_err() {
            self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// A client of this core has answered something: the registrar knows what.
    pub fn client_said(&mut self, connection: ConnectionId, header: &Header, body: &[u8], now_ms: u64) {
        let answer = Answer {
            code: header.code,
            remark: header.remark.clone(),
            fields: header.fields.clone(),
            body: Bytes::copy_from_slice(body),
        };
        let said = Said { connection, opaque: header.opaque, answer };
        if self.index == 0 {
            return self.registrar(now_ms, |registrar, orders| registrar.on_said(said, now_ms, orders));
        }
        // An answer that finds no room is one that never came.
        let _ = self.outbox.offer(0, Mail::Said(Box::new(said)));
    }

    /// CONSUME_MESSAGE_DIRECTLY (309): the message is added here, the rest is the registrar's.
    fn consume_directly(&mut self, call: &Call<'_>) {
        let asked = match AskClient::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let place = asked.msg_id.and_then(OffsetId::parse).and_then(|id| self.local_of(id.offset));
        let found = place.map(|(local, position)| (local, self.partitions[local].get(position)));
        match found {
            Some((_, Ok(Some(record)))) => {
                let mut request = call.to_request();
                request.body = record;
                request.header.fields.push("brokerName", &self.settings.broker_name);
                if self.outbox.offer(0, Mail::Register(request)).is_err() {
                    self.refuse(&call.reply, response::SYSTEM_BUSY, BUSY);
                }
            }
            Some((local, Err(load))) => self.wait_for(local, load, Cold::Request(call.to_request())),
            Some((_, Ok(None))) | None => {
                let remark = format!("can not find message by the id, {}", asked.msg_id.unwrap_or(""));
                self.refuse(&call.reply, response::SYSTEM_ERROR, &remark);
            }
        }
    }

    /// Takes mail that is not about sockets.
    pub fn on_mail(&mut self, mail: Mail, now_ms: u64) {
        match mail {
            // What it would change might not be written down any more.
            Mail::Request(request) if self.stopping => {
                self.refuse(&request.reply, response::SERVICE_NOT_AVAILABLE, STOPPING);
            }
            Mail::Request(mut request) => {
                // Placed again: a topic that was made meanwhile has an owner now.
                let core = self.place(&mut request.header).core(self.index, self.settings.cores);
                if core == self.index {
                    return self.serve_owned(*request, now_ms);
                }
                let reply = request.reply;
                if self.outbox.offer(core, Mail::Request(request)).is_err() {
                    self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
                }
            }
            Mail::Register(request) => {
                if self.registrar.is_none() {
                    return self.refuse_append(&request.reply, AppendError::Opening);
                }
                self.registrar(now_ms, |registrar, orders| registrar.on_request(*request, now_ms, orders));
            }
            Mail::Routed(routed) => {
                self.registrar(now_ms, |registrar, orders| registrar.on_routed(*routed, now_ms, orders));
            }
            Mail::Said(said) => {
                self.registrar(now_ms, |registrar, orders| registrar.on_said(*said, now_ms, orders));
            }
            Mail::Store(store) => self.store(*store, now_ms),
            Mail::Dispatch(dispatch) => self.dispatch(dispatch, now_ms),
            Mail::Dispatched { id, outcome } => self.dispatched(id, outcome, now_ms),
            Mail::Check { group, frame } => {
                self.registrar(now_ms, |registrar, orders| registrar.on_check(&group, frame, orders));
            }
            Mail::Recall(request, others) => self.recall_of(*request, Sought::new(others), now_ms),
            Mail::ColdRead { group, bytes } => self.count_cold(&group, bytes, now_ms),
            Mail::ColdOver(over) => self.cold_gate.shut(over),
            Mail::Publish { catalog, change } => {
                self.install(catalog, now_ms);
                self.outbox.send(0, Mail::Installed { core: self.index, change });
            }
            Mail::Ensure(ensure) => {
                self.registrar(now_ms, |registrar, orders| registrar.on_ensure(*ensure, now_ms, orders));
            }
            Mail::Installed { change, .. } => self.installed(change, now_ms),
            Mail::Told { ticket, part } => {
                self.registrar(now_ms, |registrar, orders| registrar.on_told(ticket, part, now_ms, orders));
            }
            Mail::Ask { ticket, from, question } => {
                self.ask(Box::new(Ask { ticket, from, inquiry: Inquiry::new(question) }), now_ms);
            }
            Mail::Pop(pop) => self.take_pop(pop, now_ms),
            Mail::Watch(watch) => self.watch(*watch, now_ms),
            Mail::Stir { line, is_new, from } => self.stir(&line, is_new, from),
            Mail::Over { line, is_served } => self.on_over(&line, is_served, now_ms),
            Mail::Fresh { topic, group } => self.on_fresh(topic, &group),
            Mail::Acks(acks) if self.stopping => {
                self.refuse(&acks.reply, response::SERVICE_NOT_AVAILABLE, STOPPING);
            }
            Mail::Acks(acks) => self.ack_in_turn(acks, now_ms),
            Mail::Revive(revival) => self.put_revival(revival, now_ms),
            Mail::Revived { receipt, ok } => {
                self.on_revived(&receipt, ok, now_ms);
                if self.shut {
                    // It is in its retry topic, too: too late to be written down with all others.
                    self.note_accounts(None);
                }
            }
            // The loop takes these itself.
            Mail::Adopt { .. } | Mail::Answer { .. } | Mail::Closed { .. } | Mail::Serve | Mail::Stop => {}
        }
    }

    /// What time brings: pulls whose wait is over.
    pub fn on_time(&mut self, now_ms: u64) {
        for (ticket, error) in std::mem::take(&mut self.refused) {
            self.settle(ticket, Err(error), now_ms);
        }
        let mut expired = std::mem::take(&mut self.woken);
        self.parked.expire(now_ms, &mut expired);
        for pull in expired.drain(..) {
            self.pull(Pull { until_ms: 0, ..pull }, now_ms);
        }
        self.woken = expired;
        self.held_on_time(now_ms);
        self.pops_on_time(now_ms);
    }

    /// To be called about every second.
    pub fn on_tick(&mut self, now_ms: u64) {
        self.stats.on_time(now_ms);
        self.cold_reads.on_time(&self.settings, now_ms);
        self.registrar(now_ms, |registrar, orders| registrar.on_tick(now_ms, orders));
        self.accounts.sweep(now_ms);
    }

    /// When `on_time` or a partition wants to run again, in ms.
    pub fn deadline_ms(&self) -> u64 {
        let partitions = self.partitions.iter().map(Partition::deadline_ms);
        let pops = [self.waiting.deadline(), self.accounts_deadline(), self.stirred.front().map(|_| 0)];
        let pulls = self.parked.deadline().into_iter().chain(self.cold_gate.deadline());
        partitions.chain(pulls).chain(pops.into_iter().flatten()).min().unwrap_or(u64::MAX)
    }

    /// One thing that the partition at `local` wants; operations are the loop's.
    pub fn on_effect(&mut self, local: usize, effect: Effect, now_ms: u64) {
        match effect {
            Effect::Io { .. } => unreachable!("the loop takes operations out before"),
            Effect::Stored(ticket, outcome) => self.settle(ticket, outcome, now_ms),
            Effect::Grown(queue) => self.wake(queue),
            Effect::Undecided(id) => self.check_half(local, id, now_ms),
            Effect::Loaded(load, outcome) => self.go_on(local, load, outcome.is_ok(), now_ms),
            Effect::Opened => self.opened(local, now_ms),
            Effect::Closed(reason) => {
                let partition = self.partition_at(local);
                self.notices.push(Notice::Closed(partition, reason));
            }
            Effect::Shut => self.notices.push(Notice::Shut),
        }
    }

    /// These connections are gone: nobody waits for their pulls, and they leave their groups.
    pub fn closed(&mut self, connections: &[ConnectionId], now_ms: u64) {
        let mut gone = HashSet::with_hasher(RandomState::with_seed(self.seed as usize));
        gone.extend(connections.iter().copied());
        self.parked.forget(&gone);
        self.cold_gate.forget(&gone);
        self.waiting.forget(&gone);
        for connection in connections {
            self.registrar(now_ms, |registrar, orders| registrar.on_closed(*connection, now_ms, orders));
        }
    }

    /// Takes no request any more.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Shuts the logs of a core that stops, once it is known what became of messages that go to retry topics; `late`:
    /// or not. Returns whether it did that now.
    pub fn shut(&mut self, late: bool) -> bool {
        if self.shut || self.revivals > 0 && !late {
            return false;
        }
        self.shut = true;
        self.note_accounts(None);
        for partition in &mut self.partitions {
            partition.shut();
        }
        true
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Refuses a request: sends with the fields that their answers always have.
    pub fn refuse(&mut self, to: &ReplyTo, code: i32, remark: &str) {
        let header = self.replies.header(to, code);
        header.remark.push_str(remark);
        if is_send(to.code) {
            push_region(header, &self.settings);
            self.traffic.put_failures += 1;
        }
        self.replies.send(to, Pieces::new());
    }

    /// Refuses a request whose fields are missing or malformed, as Java does when it trips over them.
    pub fn refuse_field(&mut self, to: &ReplyTo, error: FieldError) {
        self.refuse(to, response::SYSTEM_ERROR, &error.to_string());
    }

    /// Refuses a request about a topic that does not exist.
    pub fn refuse_topic(&mut self, to: &ReplyTo, topic: &str) {
        let remark = format!("topic[{topic}] not exist, apply first please!");
        self.refuse(to, response::TOPIC_NOT_EXIST, &remark);
    }

    /// Answers that a message was not stored.
    pub fn refuse_append(&mut self, to: &ReplyTo, error: AppendError) {
        let (code, remark) = match error {
            AppendError::TooLarge { bytes, bytes_max } => (
                response::MESSAGE_ILLEGAL,
                format!("the message is illegal: stored it would take {bytes} bytes, at most {bytes_max} fit"),
            ),
            AppendError::Busy => (response::SYSTEM_BUSY, LOG_BUSY.to_owned()),
            AppendError::Full => (
                response::SERVICE_NOT_AVAILABLE,
                "service not available now. It may be caused by one of the following reasons: the broker's disk is full".to_owned(),
            ),
            AppendError::Opening => (response::SERVICE_NOT_AVAILABLE, "the broker is starting up".to_owned()),
            AppendError::Closed(kind) => {
                (response::SERVICE_NOT_AVAILABLE, format!("service not available now: the log is closed ({kind})"))
            }
        };
        self.refuse(to, code, &remark);
    }

    /// Where in `partitions` this partition is; `None`: another core runs it.
    pub fn local(&self, partition: u16) -> Option<usize> {
        let partition = usize::from(partition);
        let local = partition / self.settings.cores;
        (partition % self.settings.cores == self.index && local < self.partitions.len()).then_some(local)
    }

    /// The partition of a position that a client sent, if this core runs it.
    pub fn local_of(&self, offset: i64) -> Option<(usize, Position)> {
        let position = Position(u64::try_from(offset).ok()?);
        Some((self.local(position.partition())?, position))
    }

    fn place(&mut self, header: &mut Header) -> Place {
        let random = self.random.draw();
        place(header, &self.catalog, self.settings.partitions, random)
    }

    fn partition_at(&self, local: usize) -> u16 {
        u16::try_from(local * self.settings.cores + self.index).expect("partitions are numbered by 15 bits")
    }

    fn refuse_code(&mut self, reply: &ReplyTo) {
        let remark = format!(" request type {} not supported", reply.code);
        self.refuse(reply, response::REQUEST_CODE_NOT_SUPPORTED, &remark);
    }

    fn serve_owned(&mut self, request: Request, now_ms: u64) {
        let Request { header, body, reply, peer, resumed, orderly } = &request;
        let call = Call { header, body, reply: *reply, peer: *peer, resumed: *resumed, orderly: *orderly };
        self.serve(&call, now_ms);
    }

    /// Executes a request that belongs here.
    fn serve(&mut self, call: &Call<'_>, now_ms: u64) {
        use protocol::codes::request::*;
        match call.header.code {
            SEND_MESSAGE | SEND_MESSAGE_V2 => self.send(call, now_ms),
            SEND_BATCH_MESSAGE => self.send_batch(call, now_ms),
            CONSUMER_SEND_MSG_BACK => self.send_back(call, now_ms),
            PULL_MESSAGE | LITE_PULL_MESSAGE => self.pull_request(call, now_ms),
            QUERY_CONSUMER_OFFSET => self.query_offset(call),
            UPDATE_CONSUMER_OFFSET => self.update_offset(call),
            SEARCH_OFFSET_BY_TIMESTAMP => self.search_offset(call),
            GET_MAX_OFFSET | GET_MIN_OFFSET => self.edge_offset(call),
            GET_EARLIEST_MSG_STORETIME => self.earliest_time(call),
            VIEW_MESSAGE_BY_ID => self.view(call),
            CONSUME_MESSAGE_DIRECTLY => self.consume_directly(call),
            QUERY_CONSUME_QUEUE => self.queue_entries(call),
            POP_MESSAGE => self.pop_request(call, now_ms),
            PEEK_MESSAGE => self.peek_request(call, now_ms),
            ACK_MESSAGE => self.ack_request(call, now_ms),
            BATCH_ACK_MESSAGE => self.batch_ack(call, now_ms),
            CHANGE_MESSAGE_INVISIBLETIME => self.change_invisible(call, now_ms),
            NOTIFICATION => self.notification(call, now_ms),
            POLLING_INFO => self.polling_info(call),
            END_TRANSACTION => self.end_transaction(call, now_ms),
            RESUME_CHECK_HALF_MESSAGE => self.resume_check(call, now_ms),
            RECALL_MESSAGE => self.recall(call, Sought::new(self.settings.cores - 1), now_ms),
            UPDATE_COLD_DATA_FLOW_CTR_CONFIG => self.set_cold_shares(call),
            REMOVE_COLD_DATA_FLOW_CTR_CONFIG => self.remove_cold_share(call),
            GET_COLD_DATA_FLOW_CTR_INFO => self.tell_cold(call, now_ms),
            _ if self.index == 0 => {
                if self.registrar.is_none() {
                    return self.refuse_append(&call.reply, AppendError::Opening);
                }
                let request = *call.to_request();
                self.registrar(now_ms, |registrar, orders| registrar.on_request(request, now_ms, orders));
            }
            _ => self.refuse_code(&call.reply),
        }
    }

    /// Lets a request or a pull wait for a cold read.
    pub(crate) fn wait_for(&mut self, local: usize, load: LoadId, cold: Cold) {
        let count_max = self.settings.limits.parked_pulls;
        if let Err(cold) = self.loading.wait(local, load.0, cold, count_max) {
            let reply = match cold {
                Cold::Pull(pull) => pull.reply,
                Cold::Request(request) | Cold::Recall(request, _) => request.reply,
                Cold::Pop(pop) => {
                    self.leave_line(&pop, false);
                    pop.reply
                }
                Cold::Loan(loan) => return self.end_later(loan),
                Cold::Half(_) => return,
                Cold::Ask(mut ask) => {
                    ask.inquiry.skip();
                    let part = ask.inquiry.give_up();
                    return self.outbox.send(ask.from, Mail::Told { ticket: ask.ticket, part });
                }
            };
            self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// A cold read is over: what waited for it is done again.
    fn go_on(&mut self, local: usize, load: LoadId, ok: bool, now_ms: u64) {
        for cold in self.loading.done(local, load.0) {
            match cold {
                Cold::Pull(pull) if ok => self.woken.push(pull),
                Cold::Request(request) if ok => self.serve_owned(*request, now_ms),
                Cold::Recall(request, sought) if ok => self.recall_of(*request, sought, now_ms),
                Cold::Pop(pop) if ok => self.pop(pop, now_ms),
                Cold::Loan(loan) if ok => self.end_loan(loan, now_ms),
                Cold::Pop(pop) => {
                    self.leave_line(&pop, false);
                    self.refuse_read(&pop.reply);
                }
                Cold::Loan(loan) => self.end_later(loan),
                Cold::Half(id) if ok => self.check_half(local, id, now_ms),
                Cold::Half(_) => {}
                Cold::Pull(Pull { reply, .. }) => self.refuse_read(&reply),
                Cold::Request(request) | Cold::Recall(request, _) => self.refuse_read(&request.reply),
                Cold::Ask(mut ask) => {
                    if !ok {
                        ask.inquiry.skip();
                    }
                    self.ask(ask, now_ms);
                }
            }
        }
    }

    /// Answers a question about the partitions of this core, as soon as cold reads allow.
    fn ask(&mut self, mut ask: Box<Ask>, now_ms: u64) {
        if let Some(counted) = ask.inquiry.counted() {
            let windows = counted.iter().map(|counted| self.stats.windows(counted, now_ms)).collect();
            return self.outbox.send(ask.from, Mail::Told { ticket: ask.ticket, part: Part::Stats(windows) });
        }
        let partitions_all = self.settings.partitions;
        let inquiry = &mut ask.inquiry;
        if let Some(group) = inquiry.forgets() {
            self.accounts.forget(|holder| *holder.group == *group);
        }
        self.touched = true;
        let unwritten = self.accounts.changed() as u64;
        let tally = Tally { traffic: self.traffic, counters: self.counters, unwritten, ..Tally::default() };
        match inquiry.answer(&mut self.partitions, partitions_all, &self.catalog, tally, now_ms) {
            Ok(part) => {
                if let (Some(reset), Part::Reset(Ok(offsets))) = (ask.inquiry.reset().filter(|to| to.is_kept), &part) {
                    self.reset(reset, offsets, now_ms);
                }
                if let Some((group, offsets)) = ask.inquiry.cloned() {
                    // Else what it has would be written over that.
                    offsets.into_iter().for_each(|(queue, offset)| self.reset_account(queue, &group, offset));
                }
                self.outbox.send(ask.from, Mail::Told { ticket: ask.ticket, part });
            }
            Err((local, load)) => self.wait_for(local, load, Cold::Ask(ask)),
        }
    }

    /// A group goes on somewhere else in queues of this core: its offsets are set, and its clients told when they
    /// pull next. Those that wait for a message are asked to come again.
    fn reset(&mut self, reset: &Reset, offsets: &[(u32, u64)], now_ms: u64) {
        let Some(topic) = self.catalog.topic(&reset.topic).cloned() else { return };
        let mut waiting = Vec::new();
        for (queue, offset) in offsets {
            let Some(local) = self.local(topic.partition_of(*queue, self.settings.partitions)) else { continue };
            self.note_offset(local, &topic, *queue, &reset.group, *offset);
            let key = QueueKey { topic: topic.id, queue: *queue };
            self.resets.set(key, &reset.group, *offset);
            self.parked.wake(key, &mut waiting);
        }
        for pull in waiting {
            self.pull(Pull { until_ms: 0, ..pull }, now_ms);
        }
    }

    fn refuse_read(&mut self, reply: &ReplyTo) {
        self.refuse(reply, response::SYSTEM_ERROR, "the log cannot be read here: the disk reported an error");
    }

    /// A queue has new visible messages.
    fn wake(&mut self, queue: QueueKey) {
        self.parked.wake(queue, &mut self.woken);
        self.wake_pops(queue);
    }

    /// Serves what an effect woke, until the bodies of answers take so many bytes. Returns whether some is
    /// left: the answers are to be delivered first.
    pub fn serve_woken(&mut self, now_ms: u64) -> bool {
        while let Some(pull) = self.woken.pop() {
            self.pull(pull, now_ms);
            if self.replies.is_full() {
                return true;
            }
        }
        while let Some(pop) = self.stirred.pop_front() {
            self.pop_again(pop, now_ms);
            if self.replies.is_full() {
                return true;
            }
        }
        false
    }

    /// The log has kept a promise, or never will.
    fn settle(&mut self, ticket: Ticket, outcome: Result<(), AppendError>, now_ms: u64) {
        let Some(promise) = self.promises.get(ticket) else { return };
        match (promise, outcome) {
            (Promise::Change(change), outcome) => {
                let change = *change;
                self.registrar(now_ms, |registrar, orders| {
                    registrar.on_durable(change, outcome.is_ok(), now_ms, orders);
                });
                if outcome.is_err() {
                    self.resolve_doubt(now_ms);
                }
            }
            (Promise::Revival(receipt), outcome) => {
                let receipt = Receipt::clone(receipt);
                self.settle_revival(receipt, outcome.is_ok());
            }
            (Promise::Dispatch(dispatch), outcome) => {
                let dispatch = dispatch.clone();
                self.settle_dispatch(dispatch, outcome);
            }
            (Promise::Answer { to, messages, bytes, since_ms, says }, Ok(())) => {
                self.traffic.put_messages += u64::from(*messages);
                self.traffic.put_bytes += *bytes;
                self.traffic.put_ms_max = self.traffic.put_ms_max.max(now_ms.saturating_sub(*since_ms));
                match says {
                    Says::Nothing => {}
                    Says::Sent(sent) => {
                        let settings = &self.settings;
                        self.replies.write(to.connection, true, |out| write_sent(out, to, sent, settings));
                    }
                    Says::Frame(frame) => self.replies.frame(to.connection, frame, true),
                }
            }
            (Promise::Answer { to, .. }, Err(error)) => {
                let to = *to;
                self.refuse_append(&to, error);
            }
        }
        self.promises.close(ticket);
    }

    fn opened(&mut self, local: usize, now_ms: u64) {
        self.know_topics(local);
        if self.partition_at(local) != 0 {
            return;
        }
        if self.registrar.is_some() {
            // It was recovered after a failure, and opens again.
            return self.resolve_doubt(now_ms);
        }
        match Registrar::recover(Arc::clone(&self.settings), self.seed, self.partitions[local].facts(b"")) {
            Ok(registrar) => {
                self.publish(Arc::new(registrar.catalog().clone()), CHANGE_RECOVERED);
                self.registrar = Some(Box::new(registrar));
                self.registrar(now_ms, |registrar, orders| registrar.on_tick(now_ms, orders));
            }
            Err(error) => self.notices.push(Notice::Unreadable(error.to_string())),
        }
    }

    /// Gives a catalog to every core, this one too.
    fn publish(&mut self, catalog: Arc<Catalog>, change: u64) {
        self.missing.push((change, self.settings.cores));
        for core in 0..self.settings.cores {
            self.outbox.send(core, Mail::Publish { catalog: Arc::clone(&catalog), change });
        }
    }

    /// One core holds the catalog of this change.
    fn installed(&mut self, change: u64, now_ms: u64) {
        let Some(at) = self.missing.iter().position(|(waiting, _)| *waiting == change) else { return };
        self.missing[at].1 -= 1;
        if self.missing[at].1 > 0 {
            return;
        }
        self.missing.swap_remove(at);
        if change == CHANGE_RECOVERED {
            // Changes are told as they come; this one says what there was. A new broker has nothing yet.
            if self.catalog.topics_count() > 0 {
                self.notices.push(Notice::Register(Arc::clone(&self.catalog)));
            }
            return;
        }
        self.registrar(now_ms, |registrar, orders| registrar.on_installed(change, now_ms, orders));
    }

    /// Holds another catalog from now on. What belongs to topics that are gone goes with them.
    fn install(&mut self, catalog: Arc<Catalog>, now_ms: u64) {
        let old = std::mem::replace(&mut self.catalog, catalog);
        if !Arc::ptr_eq(&old.changes, &self.catalog.changes) {
            self.settings = self.catalog.settings(&self.settings);
            self.ours = ours(&self.settings);
        }
        if old.topics_version == self.catalog.topics_version {
            return;
        }
        if old.topics_count() == 0 {
            return (0..self.partitions.len()).for_each(|local| self.know_topics(local));
        }
        let gone = self.catalog.topics_gone_since(&old);
        if gone.is_empty() {
            return;
        }
        for partition in &mut self.partitions {
            partition.retain_topics(&|id| !gone.contains(&id));
            for id in &gone {
                // If the log refuses this, the offsets stay: nobody finds them, the id is never used again.
                let _ = partition.forget_facts(&[OFFSET_KEY, &id.to_be_bytes()].concat(), now_ms);
            }
        }
        self.touched = true;
        self.accounts.forget(|holder| gone.contains(&holder.key.topic));
        gone.iter().for_each(|id| self.waiting.wake_topic(*id, &mut self.stirred));
        self.stats.forget(&gone);
        let mut woken = Vec::new();
        gone.iter().for_each(|id| self.parked.wake_topic(*id, &mut woken));
        for pull in woken {
            self.pull(pull, now_ms);
        }
    }

    /// Drops what a log still has of topics that were deleted before it was opened. A topic is in the
    /// catalog before its first message is in a log, so nothing that lives is unknown. What groups have on
    /// loan of the others they keep.
    fn know_topics(&mut self, local: usize) {
        // Before the catalog is known, every topic is unknown: `install` comes back to it.
        if self.catalog.topics_count() > 0 {
            let known: std::collections::BTreeSet<u32> = self.catalog.topics().map(|topic| topic.id).collect();
            self.partitions[local].retain_topics(&|id| known.contains(&id));
            // Else `opened` does.
            if self.partitions[local].is_open() {
                self.open_accounts(local);
            }
        }
    }

    /// Lets the registrar do something, if it is here, and does what it orders.
    fn registrar(&mut self, now_ms: u64, act: impl FnOnce(&mut Registrar, &mut Vec<Order>)) {
        let Some(registrar) = &mut self.registrar else { return };
        let mut orders = std::mem::take(&mut self.orders);
        act(registrar, &mut orders);
        for order in orders.drain(..) {
            self.fulfil(order, now_ms);
        }
        // An order never leads to another one at once: what it starts comes back as an event.
        self.orders = orders;
    }

    fn fulfil(&mut self, order: Order, now_ms: u64) {
        match order {
            Order::Answer(to, answer) => self.replies.answer(&to, answer),
            Order::Put { facts, change } => self.put_facts(&facts, change, now_ms),
            Order::Publish { catalog, change } => self.publish(catalog, change),
            Order::Push { connection, frame } => self.replies.frame(connection, &frame, false),
            Order::Resume { core, mail } => self.outbox.send(core, mail),
            Order::Ask { ticket, question } => {
                for core in 0..self.settings.cores {
                    let question = question.clone();
                    self.outbox.send(core, Mail::Ask { ticket, from: self.index, question });
                }
            }
            Order::Register => self.notices.push(Notice::Register(Arc::clone(&self.catalog))),
            Order::Route { request, topic } => self.notices.push(Notice::Route(Box::new(request), topic)),
        }
    }

    fn put_facts(&mut self, facts: &Facts, change: u64, now_ms: u64) {
        let ticket = self.promises.open(Promise::Change(change));
        let local = self.local(0).expect("the registrar is where partition 0 is");
        self.touched = true;
        let changes: Vec<_> = facts.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
        if let Err(error) = self.partitions[local].put(&changes, Some(ticket), now_ms) {
            // Told in the next turn: never from within an order.
            self.refused.push((ticket, error));
        }
    }

    /// Tells the registrar what the log has of changes that failed, once the log can be asked.
    fn resolve_doubt(&mut self, now_ms: u64) {
        let Some(registrar) = &self.registrar else { return };
        let local = self.local(0).expect("the registrar is where partition 0 is");
        let partition = &self.partitions[local];
        if !partition.is_open() {
            return;
        }
        let facts: Vec<_> =
            registrar.doubt().map(|key| (key.to_vec(), partition.fact(key).map(<[u8]>::to_vec))).collect();
        if !facts.is_empty() {
            self.registrar(now_ms, |registrar, orders| registrar.on_certain(&facts, now_ms, orders));
        }
    }
}

/// The fields that every answer to a send has (PROTOCOL 4.1, item 2).
pub fn push_region(header: &mut Header, settings: &Settings) {
    header.fields.push(ext::MSG_REGION, &settings.region);
    header.fields.push_bool(ext::TRACE_ON, settings.trace_on);
}

/// Repeatable random numbers: SplitMix64 over a seed that the loop chose.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}
