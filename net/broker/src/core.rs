//! One core's loop: drive the ring, hand out completions, drain the mailbox, fire deadlines, let the
//! partitions write, send what is ready. One turn enters the kernel once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::io::{Done, Handle, Io, Op, Pieces, Tag};
use engine::partition::{Effect, Partition};
use protocol::{Header, Shapes};

use crate::answer::flow_control;
use crate::call::{ConnectionId, Request};
use crate::catalog::Catalog;
use crate::config::Settings;
use crate::connection::{Connection, ConnectionLimits, Connections, Reason, Spare};
use crate::desk::{Desk, Notice};
use crate::mail::{Mail, Mailboxes};

mod sockets;

/// Mail taken in one turn, so that a flood of it delays sockets and disk only so much.
const MAILS_PER_TURN: usize = 4096;
/// How often slow things are looked at: time-outs, the registrar's clock. Milliseconds.
const TICK_MS: u64 = 1000;
/// Connections whose time-outs are looked at in one tick, at least; a sixteenth of all if that is more.
const SWEEP_LEAST: usize = 1024;
/// After a failed accept (no descriptors left) it is tried again this much later. Milliseconds.
const ACCEPT_AGAIN_MS: u64 = 100;
/// A connection with more unanswered requests than this, or more in what it sent at once, does not wait for answers.
/// 64: the threads of a busy client.
const FEW: u32 = 64;
/// It is held back so long at most, and then served some: it has heartbeats to send. Milliseconds.
const HELD_BACK_MS: u64 = 1000;
/// While another core's mailbox is full it is tried again this much later. Milliseconds.
const MAIL_AGAIN_MS: u64 = 1;
/// One connection's unsent answers pin at most this much of the log's memory. Bytes.
const PINNED_BYTES_MAX: usize = 4 << 20;
/// Unfinished frames of one core. 256 MiB: sixty of the largest messages at once. Bytes.
const PARTIAL_BYTES_MAX: usize = 256 << 20;
/// How long it then waits for answers of other cores, which stop at the same time. Milliseconds.
const STOP_MAIL_MS: u64 = 100;
/// A stopping core turns every millisecond. If a turn comes later than this after the last one, the process itself stood
/// still, disk and network perhaps not: that time is nobody's, and does not count. Milliseconds.
const STOOD_STILL_MS: u64 = 500;

/// What a core is made of.
pub struct CoreConfig {
    /// Its number.
    pub index: usize,
    /// The configuration.
    pub settings: Arc<Settings>,
    /// Its partitions, in order: `index`, `index + cores`, and so on. They may still be opening.
    pub partitions: Vec<Partition>,
    /// Everybody's mailboxes.
    pub mailboxes: Mailboxes,
    /// On core 0: listening sockets, and whether each is the fast port's.
    pub doors: Vec<(Handle, bool)>,
    /// Of hash tables and random choices.
    pub seed: u64,
    /// Hears what the control thread should know. Must not block.
    pub report: Box<dyn FnMut(Report) + Send>,
}

/// What a core tells the control thread.
#[derive(Clone, Debug)]
pub enum Report {
    /// All its partitions are open.
    Opened {
        /// The core.
        core: usize,
    },
    /// A partition closed itself. Before `Opened`: it cannot be opened.
    Closed {
        /// The partition.
        partition: u16,
        /// Why.
        reason: String,
    },
    /// The topics changed, or are known for the first time: every core holds them.
    Topics(Arc<Catalog>),
    /// The catalog in partition 0 cannot be read.
    Unreadable(String),
    /// What do the NameServers know of this topic? To be answered with `Mail::Routed`, which has the request.
    Route(Box<Request>, String),
    /// The core has stopped: everything answered is durable.
    Stopped {
        /// The core.
        core: usize,
    },
}

/// One thread's whole work. See the module.
pub struct Core<I: Io> {
    io: I,
    desk: Desk,
    connections: Connections,
    spare: Spare,
    limits: ConnectionLimits,
    doors: Vec<Door>,
    accept_again_ms: u64,
    next_core: usize,
    mailboxes: Mailboxes,
    report: Box<dyn FnMut(Report) + Send>,
    told_opened: bool,
    shut: usize,
    /// Stopping: and when it is over at the latest.
    stop_at_ms: Option<u64>,
    /// Its partitions are shut: and when no other core answers any more.
    shut_at_ms: Option<u64>,
    tick_at_ms: u64,
    sweep_from: usize,
    now_ms: u64,
    /// Something is left to do: the next drive must not wait.
    more: bool,
    /// Operations that found no slot.
    deferred: std::collections::VecDeque<(Tag, Op)>,
    /// Slots of connections with something to send, to resume or to arm.
    listed: Vec<u32>,
    /// Slots of connections that are not read while mailboxes are crowded, and until when at most.
    held_back: std::collections::VecDeque<(u64, u32)>,
    /// Connections that are gone since the last look.
    gone: Vec<ConnectionId>,
    header: Header,
    shapes: Shapes,
    done: Vec<Done>,
    effects: Vec<Effect>,
}

/// A listening socket.
struct Door {
    listener: Handle,
    fast: bool,
    /// An accept is in the ring.
    armed: bool,
}

/// What a tag stands for: four bits of kind above 60 bits of whom.
mod kind {
    /// Of a door, by its index.
    pub const ACCEPT: u64 = 0;
    /// Of a connection: generation and slot.
    pub const RECEIVE: u64 = 1;
    /// Of a connection.
    pub const SEND: u64 = 2;
    /// Whose completion says nothing: close, cancel.
    pub const NONE: u64 = 3;
    /// Of a partition: its place here, and its own number.
    pub const PARTITION: u64 = 4;
    /// Of a connection.
    pub const SHUTDOWN: u64 = 5;
    pub const SHIFT: u32 = 60;
}

/// Bits of a partition's own numbers.
const LOCAL_BITS: u32 = 40;

fn tag(kind: u64, whom: u64) -> Tag {
    assert!(whom < 1 << kind::SHIFT, "what it is about fits its bits");
    Tag(kind << kind::SHIFT | whom)
}

fn tag_of(kind: u64, id: ConnectionId) -> Tag {
    tag(kind, u64::from(id.generation) << 32 | u64::from(id.slot))
}

impl<I: Io> Core<I> {
    /// A core that has not turned yet.
    pub fn new(config: CoreConfig, io: I) -> Core<I> {
        let CoreConfig { index, settings, partitions, mailboxes, doors, seed, report } = config;
        let bounds = &settings.limits;
        let limits = ConnectionLimits {
            connections_max: bounds.connections.div_ceil(settings.cores),
            requests_max: u32::try_from(bounds.connection_requests).unwrap_or(u32::MAX),
            unsent_bytes_max: bounds.connection_unsent_bytes,
            pinned_bytes_max: PINNED_BYTES_MAX,
            partial_bytes_max: PARTIAL_BYTES_MAX,
            idle_ms: bounds.idle_timeout_ms,
            frame_ms: bounds.frame_timeout_ms,
            stall_ms: bounds.send_timeout_ms,
        };
        Core {
            io,
            connections: Connections::new(u16::try_from(index).expect("a host has fewer than 65,536 cores")),
            desk: Desk::new(index, settings, partitions, mailboxes.clone(), seed),
            spare: Spare::default(),
            limits,
            doors: doors.into_iter().map(|(listener, fast)| Door { listener, fast, armed: false }).collect(),
            accept_again_ms: u64::MAX,
            next_core: 0,
            mailboxes,
            report,
            told_opened: false,
            shut: 0,
            stop_at_ms: None,
            shut_at_ms: None,
            tick_at_ms: 0,
            sweep_from: 0,
            now_ms: 0,
            more: true,
            deferred: std::collections::VecDeque::new(),
            listed: Vec::new(),
            held_back: std::collections::VecDeque::new(),
            gone: Vec::new(),
            header: Header::default(),
            shapes: Shapes::default(),
            done: Vec::new(),
            effects: Vec::new(),
        }
    }

    /// Turns until it is told to stop. `clock`: ms since 1970.
    pub fn run(&mut self, clock: impl Fn() -> u64) {
        while self.turn(None, &clock) {}
    }

    /// One turn. Waits for something to do, at most `wait_max`. Returns false once it has stopped.
    pub fn turn(&mut self, wait_max: Option<Duration>, clock: impl Fn() -> u64) -> bool {
        self.submit_deferred();
        let wait = self.wait(wait_max);
        let mut done = std::mem::take(&mut self.done);
        self.io.drive(wait, &mut done);
        self.look_at(&clock);
        self.more = false;
        self.desk.counters.turns += 1;
        for done in done.drain(..) {
            self.on_done(done);
        }
        self.done = done;
        self.take_mail(&clock);
        self.desk.on_time(self.now_ms);
        if self.now_ms >= self.tick_at_ms {
            self.tick_at_ms = self.now_ms + TICK_MS;
            self.desk.on_tick(self.now_ms);
            self.say_progress();
            self.sweep();
        }
        if self.now_ms >= self.accept_again_ms {
            self.accept_again_ms = u64::MAX;
            self.accept();
        }
        self.turn_partitions();
        self.tell_gone();
        self.deliver();
        self.serve_listed();
        self.take_notices();
        self.desk.outbox.flush();
        for core in self.desk.outbox.woken() {
            self.io.wake(core);
        }
        !self.has_stopped()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Its partitions, in the order they came.
    pub fn partitions(&self) -> &[Partition] {
        &self.desk.partitions
    }

    /// How long the next drive may wait.
    fn wait(&self, wait_max: Option<Duration>) -> Option<Duration> {
        if self.more || !self.deferred.is_empty() {
            return Some(Duration::ZERO);
        }
        let mut until_ms = self.desk.deadline_ms().min(self.tick_at_ms).min(self.accept_again_ms);
        if self.desk.outbox.is_waiting() || !self.held_back.is_empty() {
            until_ms = until_ms.min(self.now_ms + MAIL_AGAIN_MS);
        }
        let wait = Duration::from_millis(until_ms.saturating_sub(self.now_ms));
        Some(wait_max.map_or(wait, |most| wait.min(most)))
    }

    fn submit(&mut self, tag: Tag, op: Op) {
        if !self.deferred.is_empty() {
            return self.deferred.push_back((tag, op));
        }
        if let Err(op) = self.io.submit(tag, op) {
            self.deferred.push_back((tag, op));
        }
    }

    /// Operations wait here for a slot. There are never more than a few of each connection and
    /// partition.
    fn submit_deferred(&mut self) {
        while let Some((tag, op)) = self.deferred.pop_front() {
            if let Err(op) = self.io.submit(tag, op) {
                return self.deferred.push_front((tag, op));
            }
        }
    }

    fn on_done(&mut self, done: Done) {
        let whom = done.tag.0 & ((1 << kind::SHIFT) - 1);
        let (slot, generation) = (whom as u32, (whom >> 32) as u32);
        match done.tag.0 >> kind::SHIFT {
            kind::RECEIVE => self.on_received(slot, generation, done.more, done.outcome),
            kind::SEND => self.on_sent(slot, generation, done.outcome),
            kind::SHUTDOWN => self.on_shut(slot, generation),
            kind::PARTITION => {
                let (place, local) = ((whom >> LOCAL_BITS) as usize, whom & ((1 << LOCAL_BITS) - 1));
                self.desk.partitions[place].on_done(local, done.outcome, self.now_ms);
            }
            kind::ACCEPT => self.on_accepted(whom as usize, done.more, done.outcome),
            _ => {}
        }
    }

    // -- mail, partitions, answers -----------------------------------------------------------------

    fn take_mail(&mut self, clock: &impl Fn() -> u64) {
        let count = self.mailboxes.len(self.desk.index).min(MAILS_PER_TURN);
        if count > 0 {
            // It may have come while completions were handled: no message is stored before it was sent.
            self.look_at(clock);
        }
        for _ in 0..count {
            let mail = self.mailboxes.pop(self.desk.index).expect("only this core takes from its box");
            match mail {
                Mail::Adopt { socket, peer, fast } => self.adopt(socket, peer, fast),
                Mail::Answer { connection, pieces, settles } => self.on_answer(connection, pieces, settles),
                Mail::Closed { connection } => self.gone.push(connection),
                Mail::Serve => self.accept(),
                Mail::Stop => self.begin_stop(),
                mail => self.desk.on_mail(mail, self.now_ms),
            }
        }
        self.more |= self.mailboxes.len(self.desk.index) > 0;
    }

    fn on_answer(&mut self, id: ConnectionId, pieces: Pieces, settles: bool) {
        let mut pieces = pieces.into_iter();
        let head = pieces.next().expect("an answer has a header");
        self.mailboxes.carried(self.desk.index, pieces.as_slice().iter().map(Bytes::len).sum());
        let Some(connection) = self.connections.get(id.slot, id.generation) else { return };
        if connection.closing.is_some() {
            return;
        }
        give(connection, &head, pieces, settles, &self.limits);
        self.list(id.slot);
    }

    fn turn_partitions(&mut self) {
        let mut effects = std::mem::take(&mut self.effects);
        for place in 0..self.desk.partitions.len() {
            let partition = &mut self.desk.partitions[place];
            partition.on_turn(self.now_ms);
            partition.effects(&mut effects);
            for effect in effects.drain(..) {
                match effect {
                    Effect::Io { local, op } => {
                        assert!(local < 1 << LOCAL_BITS, "the partition's numbers fit their bits");
                        self.submit(tag(kind::PARTITION, (place as u64) << LOCAL_BITS | local), op);
                    }
                    effect => {
                        self.desk.on_effect(place, effect, self.now_ms);
                        // One message may wake a hundred thousand pulls.
                        while self.desk.serve_woken(self.now_ms) {
                            self.deliver();
                        }
                        if self.desk.replies.is_full() {
                            self.deliver();
                        }
                    }
                }
            }
        }
        self.effects = effects;
    }

    /// Hands the frames that are ready to their connections, here or on other cores.
    fn deliver(&mut self) {
        if self.desk.replies.is_empty() {
            return;
        }
        let mut list = self.desk.replies.take();
        for reply in &mut list {
            let id = reply.connection;
            let head = self.desk.replies.head(reply);
            if usize::from(id.core) != self.desk.index {
                let bytes = reply.body.iter().map(Bytes::len).sum();
                let mut pieces = Pieces::with_capacity(1 + reply.body.len());
                if bytes == 0 || self.mailboxes.may_carry(usize::from(id.core), bytes) {
                    pieces.push(Bytes::copy_from_slice(head));
                    pieces.append(&mut reply.body);
                } else {
                    pieces.push(Bytes::from(flow_control(head)));
                }
                let mail = Mail::Answer { connection: id, pieces, settles: reply.settles };
                self.desk.outbox.send(usize::from(id.core), mail);
                continue;
            }
            let Some(connection) = self.connections.get(id.slot, id.generation) else { continue };
            if connection.closing.is_some() {
                continue;
            }
            give(connection, head, reply.body.drain(..), reply.settles, &self.limits);
            if !connection.listed {
                connection.listed = true;
                self.listed.push(id.slot);
            }
        }
        self.desk.replies.clear(list);
    }

    /// Logs that take long to open say how far they are, or what they wait for.
    fn say_progress(&self) {
        for log in &self.desk.partitions {
            let partition = log.number();
            if let Some((read, all)) = log.progress().filter(|(_, all)| *all > 0) {
                tracing::info!(partition, "opening a log: {read} of {all} bytes are read");
            }
            if let Some(fault) = log.obstacle() {
                tracing::warn!(partition, %fault, "opening a log: its next segment cannot be made (disk space?), trying again");
            }
        }
    }

    fn take_notices(&mut self) {
        if !self.told_opened && self.desk.partitions.iter().all(Partition::is_open) {
            self.told_opened = true;
            (self.report)(Report::Opened { core: self.desk.index });
        }
        for notice in std::mem::take(&mut self.desk.notices) {
            match notice {
                Notice::Closed(partition, reason) => (self.report)(Report::Closed { partition, reason }),
                Notice::Register(catalog) => (self.report)(Report::Topics(catalog)),
                Notice::Unreadable(reason) => (self.report)(Report::Unreadable(reason)),
                Notice::Route(request, topic) => (self.report)(Report::Route(request, topic)),
                Notice::Shut => self.shut += 1,
            }
        }
    }

    // -- the end -------------------------------------------------------------------------------

    fn begin_stop(&mut self) {
        if self.stop_at_ms.is_some() {
            return;
        }
        self.stop_at_ms = Some(self.now_ms + self.desk.settings.stop_ms);
        self.accept_again_ms = u64::MAX;
        for door in 0..self.doors.len() {
            self.submit(tag(kind::NONE, 0), Op::Cancel { tag: tag(kind::ACCEPT, door as u64) });
        }
        self.desk.stop();
        self.more = true;
    }

    /// Reads the clock. If so much time has passed that the process must have stood still, the end of a stop is put off.
    fn look_at(&mut self, clock: &impl Fn() -> u64) {
        let before_ms = std::mem::replace(&mut self.now_ms, clock());
        let passed_ms = self.now_ms.saturating_sub(before_ms);
        if passed_ms > STOOD_STILL_MS {
            for at_ms in [&mut self.stop_at_ms, &mut self.shut_at_ms].into_iter().flatten() {
                *at_ms += passed_ms;
            }
        }
    }

    /// Whether everything that was promised is kept, answered and sent; closes what is left.
    fn has_stopped(&mut self) -> bool {
        let Some(stop_at_ms) = self.stop_at_ms else { return false };
        self.more |= self.desk.shut(self.now_ms + self.desk.settings.stop_ms / 2 >= stop_at_ms, self.now_ms);
        let late = self.now_ms >= stop_at_ms;
        let is_shut = self.shut >= self.desk.partitions.len();
        if late && !is_shut {
            tracing::warn!("a partition did not shut down in time; recovery will read its log's end");
        }
        // Whatever happens from here on, it is looked at again soon.
        self.tick_at_ms = self.tick_at_ms.min(self.now_ms + MAIL_AGAIN_MS);
        let patience_ms = if self.mailboxes.cores() > 1 { STOP_MAIL_MS } else { 0 };
        if is_shut {
            self.shut_at_ms.get_or_insert(self.now_ms + patience_ms);
        }
        if !late && self.shut_at_ms.is_none_or(|shut_at_ms| self.now_ms < shut_at_ms) {
            return false;
        }
        for slot in 0..self.connections.slots() as u32 {
            if self.connections.at(slot).is_some_and(|connection| late || !connection.has_unsent()) {
                self.close(slot, Reason::Stop);
            }
        }
        // A close may have to wait for its receive to end.
        if self.connections.count() > 0 && !late {
            return false;
        }
        (self.report)(Report::Stopped { core: self.desk.index });
        true
    }
}

/// Adds a frame to what a connection sends.
#[inline]
fn give(
    connection: &mut Connection,
    head: &[u8],
    body: impl ExactSizeIterator<Item = Bytes>,
    settles: bool,
    limits: &ConnectionLimits,
) {
    if settles {
        connection.settle();
    }
    if !settles && connection.is_flooded(limits) {
        // Who does not read its answers gets no questions and no notices.
        return;
    }
    if body.len() > 0 && connection.is_flooded(limits) {
        return connection.push(&flow_control(head));
    }
    connection.push(head);
    for piece in body {
        connection.push_piece(piece, limits);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use engine::sim::{Side, Sim};
    use protocol::Command;
    use protocol::codes::request;

    use super::*;
    use crate::config::{Config, Found};

    const BOX: usize = 256;

    /// Core 1 of two, without partitions. Core 0 does nothing; what it is sent stays in its box.
    struct World {
        sim: Rc<RefCell<Sim>>,
        core: Core<Side>,
        listener: Handle,
        clients: usize,
    }

    impl World {
        fn new() -> World {
            let sim = Rc::new(RefCell::new(Sim::new(1)));
            let mut settings = Config::default().settings(Found::one_core());
            (settings.cores, settings.partitions) = (2, 2);
            let mailboxes = Mailboxes::new(2, BOX);
            let config = CoreConfig {
                index: 1,
                settings: Arc::new(settings),
                partitions: Vec::new(),
                mailboxes,
                doors: Vec::new(),
                seed: 1,
                report: Box::new(|_| {}),
            };
            let core = Core::new(config, Side::new(&sim, 1));
            let listener = sim.borrow_mut().listen();
            World { sim, core, listener, clients: 0 }
        }

        fn connect(&mut self) -> Handle {
            self.clients += 1;
            let socket = self.sim.borrow_mut().connect(self.listener);
            let peer = std::net::SocketAddr::from(([10, 0, 0, 1], self.clients as u16));
            self.core.mailboxes.push(1, Mail::Adopt { socket, peer, fast: false }).unwrap();
            socket
        }

        /// Sends requests that are core 0's to answer.
        fn ask(&mut self, client: Handle, count: usize, oneway: bool) {
            let mut command = Command::request(request::GET_BROKER_CONFIG);
            if oneway {
                command.header.flag |= 1 << 1;
            }
            self.sim.borrow_mut().send(client, &command.encode().repeat(count));
        }

        fn turns(&mut self) {
            for _ in 0..100 {
                let now_ms = self.sim.borrow().now_ms();
                assert!(self.core.turn(Some(Duration::ZERO), || now_ms));
                self.sim.borrow_mut().advance(1);
            }
        }

        /// What waits for core 0, by the slots of the connections.
        fn waiting(&self) -> Vec<u32> {
            let slot = |mail| match mail {
                Mail::Request(request) => request.reply.connection.slot,
                other => panic!("{other:?}"),
            };
            std::iter::from_fn(|| self.core.mailboxes.pop(0)).map(slot).collect()
        }
    }

    #[test]
    fn who_asks_without_waiting_leaves_room_to_others_and_loses_nothing() {
        for oneway in [false, true] {
            let mut world = World::new();
            let [greedy, other] = [world.connect(), world.connect()];
            world.turns();
            world.ask(greedy, 3 * BOX, oneway);
            world.turns();
            world.ask(other, 1, false);
            world.turns();
            let waiting = world.waiting();
            assert!(waiting.len() <= BOX / 2 + 1 + FEW as usize, "{}", waiting.len());
            assert_eq!(waiting.iter().filter(|slot| **slot == 1).count(), 1, "the other one is served");
            let mut seen = waiting.len() - 1;
            while seen < 3 * BOX {
                world.turns();
                let waiting = world.waiting();
                assert!((1..=BOX / 2 + FEW as usize).contains(&waiting.len()), "{}", waiting.len());
                seen += waiting.len();
            }
            assert_eq!(seen, 3 * BOX);
            for client in [greedy, other] {
                assert_eq!(world.sim.borrow_mut().take(client, 1 << 20), Some(Bytes::new()), "nobody is refused");
            }
        }
    }

    #[test]
    fn who_is_held_back_is_served_some_now_and_then() {
        let mut world = World::new();
        let greedy = world.connect();
        world.turns();
        world.ask(greedy, BOX, true);
        world.turns();
        let before = world.core.mailboxes.len(0);
        assert!((BOX / 2..BOX).contains(&before), "{before}");
        (0..HELD_BACK_MS / 100 - 2).for_each(|_| world.turns());
        assert_eq!(world.core.mailboxes.len(0), before);
        (0..2).for_each(|_| world.turns());
        assert!(world.core.mailboxes.len(0) > before);
    }

    #[test]
    fn mail_is_handled_at_a_time_that_is_not_before_it_was_sent() {
        let mut world = World::new();
        let socket = world.sim.borrow_mut().connect(world.listener);
        let peer = std::net::SocketAddr::from(([10, 0, 0, 1], 1));
        let mailboxes = world.core.mailboxes.clone();
        let now_ms = Cell::new(world.sim.borrow().now_ms());
        let sent_ms = now_ms.get() + 1;
        // Another core sends something just after the turn has read the clock.
        let clock = || {
            if now_ms.get() < sent_ms {
                mailboxes.push(1, Mail::Adopt { socket, peer, fast: false }).unwrap();
                return now_ms.replace(sent_ms);
            }
            now_ms.get()
        };
        assert!(world.core.turn(Some(Duration::ZERO), clock));
        assert_eq!(world.core.connections(), 1, "it is taken");
        assert_eq!(world.core.now_ms, sent_ms);
    }

    #[test]
    fn a_stop_does_not_count_time_in_which_the_process_stood_still() {
        for still_ms in [0, STOOD_STILL_MS + 1, 30_000] {
            let mut world = World::new();
            let client = world.connect();
            world.turns();
            let mut now_ms = world.sim.borrow().now_ms();
            let mut turn = |world: &mut World, ms: u64| {
                now_ms += ms;
                world.core.turn(Some(Duration::ZERO), || now_ms)
            };
            world.core.mailboxes.push(1, Mail::Stop).unwrap();
            assert!(turn(&mut world, 1), "another core may have answers yet");
            assert!(turn(&mut world, still_ms), "stood still for {still_ms} ms");
            assert!((0..STOP_MAIL_MS - 1).all(|_| turn(&mut world, 1)), "it waits as long as ever");
            // Then its connection is closed, which takes a few turns.
            assert!((0..STOP_MAIL_MS).any(|_| !turn(&mut world, 1)), "and no longer");
            assert_eq!(world.sim.borrow_mut().take(client, 1), None, "closed");
        }
    }
}
