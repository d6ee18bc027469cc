//! The desk: everything of a core but its sockets. Requests, mail and the partitions' effects come
//! in; answers, mail and operations for the ring come out. It never waits and never reads a clock.

use std::collections::VecDeque;
use std::sync::Arc;

use ahash::RandomState;
use bytes::Bytes;
use engine::Ticket;
use engine::error::AppendError;
use engine::format::{Position, QueueKey};
use engine::partition::{Effect, Partition};
use hashbrown::HashSet;
use protocol::Header;
use protocol::codes::response;
use protocol::headers::AskClient;
use protocol::ids::OffsetId;

use crate::admin::{Counters, Part, Reset, Tally, Traffic};
use crate::answer::{Answer, BUSY, Refused, Replies};
use crate::call::{Call, ConnectionId, Peer, ReplyTo, Request};
use crate::catalog::Catalog;
use crate::cold::{ColdGate, ColdReads};
use crate::config::Settings;
use crate::consume::Pulls;
use crate::errands::Said;
use crate::inquiry::{Inquiry, OFFSETS_FULL, Pause};
use crate::mail::{Mail, Mailboxes, Outbox};
use crate::parked::{Ask, Cold, Loading, Pull};
use crate::place::{Place, is_send, is_served_fast, place};
use crate::pop::Pops;
use crate::pop::revive::Receipt;
use crate::produce::{Sends, Sought, write_sent};
use crate::promise::{Promise, Promises, Says};
use crate::stats::Stats;

mod loading;
mod office;
mod refusals;

pub(crate) use refusals::{illegal_queue, push_not_stored, push_region};

use office::Office;

/// Why a reset is refused: a client that did not hear of it would write its old offset over it.
const RESETS_FULL: &str =
    "too many offsets that were reset wait for their consumers to come; delete groups that are not used";
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
    /// What sends need, and what of them travels.
    pub(crate) sends: Sends,
    /// Pulls that wait, and what they brought.
    pub(crate) pulls: Pulls,
    /// Pops that wait, and what groups have on loan.
    pub(crate) pops: Pops,
    /// What waits for cold reads.
    pub loading: Loading,
    /// Questions that have done enough in one turn. Bounded by the gatherings.
    unfinished: VecDeque<Box<Ask>>,
    /// What this core did since its start.
    pub traffic: Traffic,
    /// The same by topic and by group.
    pub stats: Stats,
    /// What its loop counted since then.
    pub counters: Counters,
    /// For choices that nobody should foresee.
    pub random: Random,
    /// What the loop has to do or to tell.
    pub notices: Vec<Notice>,
    office: Office,
    stopping: bool,
    shut: bool,
    seed: u64,
    /// Who reads how much from disk: of all cores, on core 0. And whom that holds, here.
    pub(crate) cold_reads: ColdReads,
    pub(crate) cold_gate: ColdGate,
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
            sends: Sends::new(&settings, Random(seed ^ index as u64).draw()),
            pulls: Pulls::new(settings.limits.parked_pulls, seed),
            pops: Pops::new(settings.limits.parked_pulls, seed),
            office: Office::default(),
            loading: Loading::default(),
            unfinished: VecDeque::new(),
            traffic: Traffic::default(),
            stats: Stats::new(seed),
            counters: Counters::default(),
            random: Random(seed.rotate_left(32) ^ index as u64),
            notices: Vec::new(),
            stopping: false,
            shut: false,
            seed,
            cold_reads: ColdReads::default(),
            cold_gate: ColdGate::default(),
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
        let found = place.map(|(local, position)| (local, self.partitions[local].get_waiting(position)));
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
                    return self.serve(&request.call(), now_ms);
                }
                let reply = request.reply;
                if self.outbox.offer(core, Mail::Request(request)).is_err() {
                    self.refuse(&reply, response::SYSTEM_BUSY, BUSY);
                }
            }
            Mail::Register(request) => {
                if self.office.registrar.is_none() {
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
            Mail::Check { group, turn, frame } => {
                self.registrar(now_ms, |registrar, orders| registrar.on_check(&group, turn, frame, orders));
            }
            Mail::Recall(request, sought) => self.recall_of(*request, sought, now_ms),
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
                let ask = Box::new(Ask { ticket, from, inquiry: Inquiry::new(question) });
                // One of them a turn, if some are long.
                if self.unfinished.is_empty() { self.ask(ask, now_ms) } else { self.unfinished.push_back(ask) }
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
                    self.note_accounts(now_ms, true, true);
                }
            }
            // The loop takes these itself.
            Mail::Adopt { .. } | Mail::Answer { .. } | Mail::Closed { .. } | Mail::Serve | Mail::Stop => {}
        }
    }

    /// What time brings: pulls whose wait is over.
    pub fn on_time(&mut self, now_ms: u64) {
        for (ticket, error) in std::mem::take(&mut self.office.refused) {
            self.settle(ticket, Err(error), now_ms);
        }
        let mut expired = std::mem::take(&mut self.pulls.woken);
        self.pulls.parked.expire(now_ms, &mut expired);
        for pull in expired.drain(..) {
            self.pull_again(Pull { until_ms: 0, ..pull }, now_ms);
        }
        self.pulls.woken = expired;
        self.held_on_time(now_ms);
        self.pops_on_time(now_ms);
        if let Some(ask) = self.unfinished.pop_front() {
            self.ask(ask, now_ms);
        }
    }

    /// To be called about every second.
    pub fn on_tick(&mut self, now_ms: u64) {
        self.stats.on_time(&self.traffic, now_ms);
        self.cold_reads.on_time(&self.settings, now_ms);
        self.registrar(now_ms, |registrar, orders| registrar.on_tick(now_ms, orders));
        self.pops.accounts.sweep(now_ms);
        self.forget_leavings(now_ms);
    }

    /// When `on_time` or a partition wants to run again, in ms.
    pub fn deadline_ms(&self) -> u64 {
        let partitions = self.partitions.iter().map(Partition::deadline_ms);
        if !self.unfinished.is_empty() {
            return 0;
        }
        let stirred = self.pops.stirred.front().filter(|_| self.pops.held.has_room()).map(|_| 0);
        let pops =
            [self.pops.waiting.deadline_ms(), self.accounts_deadline_ms(), self.pops.held.deadline_ms(), stirred];
        let pulls = self.pulls.parked.deadline_ms().into_iter().chain(self.cold_gate.deadline_ms());
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
        self.pulls.parked.forget(&gone);
        self.cold_gate.forget(&gone);
        self.pops.waiting.forget(&gone);
        self.forget_stirred(|pop| gone.contains(&pop.reply.connection));
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
    pub fn shut(&mut self, late: bool, now_ms: u64) -> bool {
        if self.shut || self.pops.revivals > 0 && !late {
            return false;
        }
        self.shut = true;
        self.keep_accounts(now_ms, true);
        for partition in &mut self.partitions {
            partition.shut();
        }
        true
    }

    /// Whether it was told to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
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
                if self.office.registrar.is_none() {
                    return self.refuse_append(&call.reply, AppendError::Opening);
                }
                let request = *call.to_request();
                self.registrar(now_ms, |registrar, orders| registrar.on_request(request, now_ms, orders));
            }
            _ => self.refuse_code(&call.reply),
        }
    }

    /// Answers a question about the partitions of this core, as far as one turn goes and cold reads allow.
    fn ask(&mut self, mut ask: Box<Ask>, now_ms: u64) {
        let partitions_all = self.settings.partitions;
        let inquiry = &mut ask.inquiry;
        if inquiry.forgets().is_some() {
            return self.forget_offsets(ask, now_ms);
        }
        let outcome = if let Some(counted) = inquiry.uncounted() {
            let windows = counted.iter().map(|counted| self.stats.windows(counted, &self.traffic, now_ms)).collect();
            inquiry.count(windows).ok_or(Pause::Turn)
        } else {
            let unwritten = self.pops.accounts.changed() as u64;
            let tally = Tally { traffic: self.traffic, counters: self.counters, unwritten, ..Tally::default() };
            let accounts = &mut self.pops.accounts;
            let mut lent = |queue: QueueKey, group: &str| {
                let account = accounts.find(queue, group)?;
                accounts.get(account).map(|holder| holder.account.next())
            };
            inquiry.answer(&mut self.partitions, partitions_all, &self.catalog, tally, &mut lent)
        };
        if let Some((group, offsets)) = inquiry.cloned() {
            // Else what it has would be written over that.
            for (queue, offset) in offsets {
                self.reset_account(queue, &group, offset);
                self.wake_pops(queue);
            }
        }
        match outcome {
            Ok(mut part) => {
                if let (Some(reset), Part::Reset(Ok(offsets))) = (ask.inquiry.reset().filter(|to| to.is_kept), &part)
                    && let Err(refused) = self.reset(reset, offsets, now_ms)
                {
                    part = Part::Reset(Err(refused));
                }
                self.outbox.send(ask.from, Mail::Told { ticket: ask.ticket, part });
            }
            Err(Pause::Read(local, load)) => self.wait_for(local, load, Cold::Ask(ask)),
            Err(Pause::Turn) => self.unfinished.push_back(ask),
        }
    }

    /// A group goes on somewhere else in queues of this core: its offsets are set, and its clients told when they
    /// pull next. Those that wait for a message are asked to come again. `Err`: there is no room for one of them; those
    /// before it are set.
    pub(crate) fn reset(&mut self, reset: &Reset, offsets: &[(u32, u64)], now_ms: u64) -> Result<(), Refused> {
        let Some(topic) = self.catalog.topic(&reset.topic).cloned() else { return Ok(()) };
        if !self.pulls.resets.has_room(offsets.len()) {
            return Err((response::SYSTEM_BUSY, RESETS_FULL.to_owned()));
        }
        let mut waiting = Vec::new();
        let mut outcome = Ok(());
        for (queue, offset) in offsets {
            let Some(local) = self.local(topic.partition_of(*queue, self.settings.partitions)) else { continue };
            if !self.note_offset(local, &topic, *queue, &reset.group, *offset) {
                outcome = Err((response::SYSTEM_BUSY, OFFSETS_FULL.to_owned()));
                break;
            }
            let key = QueueKey { topic: topic.id, queue: *queue };
            self.pulls.resets.set(key, &reset.group, *offset);
            self.pulls.parked.wake(key, &mut waiting);
            // Also where the group has no account: what it pops was put away.
            self.wake_pops(key);
        }
        for pull in waiting {
            self.pull_again(Pull { until_ms: 0, ..pull }, now_ms);
        }
        outcome
    }

    /// A queue has new visible messages.
    fn wake(&mut self, queue: QueueKey) {
        self.pulls.parked.wake(queue, &mut self.pulls.woken);
        self.wake_pops(queue);
    }

    /// Serves what an effect woke, until the bodies of answers take so many bytes. Returns whether some is
    /// left: the answers are to be delivered first.
    pub fn serve_woken(&mut self, now_ms: u64) -> bool {
        while let Some(pull) = self.pulls.woken.pop() {
            self.pull_again(pull, now_ms);
            if self.replies.is_full() {
                return true;
            }
        }
        while let Some(pop) = self.pops.next_stirred() {
            self.pop_again(pop, now_ms);
            if self.replies.is_full() {
                return true;
            }
        }
        false
    }

    /// The log has kept a promise, or never will.
    pub(crate) fn settle(&mut self, ticket: Ticket, outcome: Result<(), AppendError>, now_ms: u64) {
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
            (Promise::Forget(asked), outcome) => {
                let asked = *asked;
                self.forgotten(asked, outcome);
            }
            (Promise::Revival(receipt), outcome) => {
                let receipt = Receipt::clone(receipt);
                self.settle_revival(receipt, outcome.is_ok());
            }
            (Promise::Accounts(places), outcome) => {
                let places = std::mem::take(places);
                self.settle_held(places, outcome, now_ms);
            }
            (Promise::Recall(recall), Ok(())) => {
                let (request, sought) = (**recall).clone();
                self.recall_of(request, sought, now_ms);
            }
            (Promise::Recall(recall), Err(error)) => {
                let reply = recall.0.reply;
                self.refuse_append(&reply, error);
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
                        let said = (&*self.settings, &self.sends.told);
                        self.replies.write(to.connection, true, |out| write_sent(out, to, sent, said));
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
