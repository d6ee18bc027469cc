//! What cores tell each other, and the bounded boxes it goes through.
//!
//! A core owns its connections and its partitions outright. A request that another core must execute
//! crosses that core's mailbox whole and its encoded answer comes back the same way.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use engine::io::{Handle, Pieces};
use protocol::bodies::MessageQueue;

use crate::admin::{Part, Question};
use crate::call::{ConnectionId, ReplyTo, Request};
use crate::catalog::Catalog;
use crate::cold::Over;
use crate::errands::Said;
use crate::pop::Pop;
use crate::pop::ack::Acks;
use crate::pop::revive::{Receipt, Revival};
use crate::pop::waiting::{LineKey, Watch};
use crate::produce::{Dispatch, Light, Origin, Sought, Unkept};

/// A message that the broker makes itself from another one: a retry, a dead letter, a half message
/// that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Its topic, which should exist by now.
    pub topic: String,
    /// Its queue, modulo the topic's write queues.
    pub queue: u32,
    /// Who made the original.
    pub origin: Origin,
    /// The whole property string.
    pub properties: String,
    /// The body.
    pub body: Bytes,
    /// When it becomes one of its queue's.
    pub wait: Wait,
    /// Whom to answer when it is durable.
    pub reply: ReplyTo,
}

/// What a message that the broker makes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The delay of this level; 0: none.
    Level(i32),
    /// What its producer decides, who is asked at once: it is a half message again.
    Decision,
}

/// Asks the registrar to make sure that a topic exists, and then to send `then` to core `back`.
/// If the topic cannot be made, `then` is sent all the same and finds none.
#[derive(Debug)]
pub struct Ensure {
    /// The topic.
    pub topic: String,
    /// What it is like if it is missing.
    pub how: Make,
    /// What waits for it.
    pub then: Mail,
    /// Where that goes on.
    pub back: usize,
}

/// A request that waited for a topic's queues on all brokers.
#[derive(Debug)]
pub struct Routed {
    /// The request.
    pub request: Request,
    /// The queues that may be read. `None`: no NameServer answers.
    pub queues: Option<Vec<MessageQueue>>,
}

/// How a missing topic is made (PROTOCOL 4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// A producer sends to it: from a template that has the inherit bit, usually TBW102.
    Send {
        /// The template's name.
        template: String,
        /// How many queues the producer would like.
        queues: i32,
    },
    /// `%RETRY%` of this group.
    Retry {
        /// The group.
        group: String,
    },
    /// `%DLQ%` of this group.
    Dead {
        /// The group.
        group: String,
    },
    /// Where messages come again that this group popped in vain.
    PopRetry {
        /// The group.
        group: String,
        /// The topic that it popped from, as consumers know it.
        topic: String,
        /// What its messages were lent from: that topic or this one, and its id. Of one that was deleted nothing comes
        /// again, whatever has its name now.
        lent: (String, u32),
        /// So many queues at least. One that has fewer gets more.
        queues: i32,
    },
    /// A light queue.
    Light,
    /// No topic at all: this group pops and has no configuration.
    Group {
        /// The group.
        group: String,
    },
}

/// What one core tells another one (or, so that there is one code path, itself).
#[derive(Debug)]
pub enum Mail {
    /// A connection that core 0 accepted and deals to this core.
    Adopt {
        /// The socket; its number means the same in every core's ring.
        socket: Handle,
        /// Who is on its other end.
        peer: SocketAddr,
        /// It came through the fast port, which serves no pulls.
        fast: bool,
    },
    /// Execute this and answer with `Answer`.
    Request(Box<Request>),
    /// To the registrar: execute this, wherever its code belongs.
    Register(Box<Request>),
    /// To the registrar: a client has answered a request of ours.
    Said(Box<Said>),
    /// To the registrar: what the NameServers know of a topic.
    Routed(Box<Routed>),
    /// An encoded frame for a connection of the receiving core.
    Answer {
        /// The connection.
        connection: ConnectionId,
        /// The frame: its header first.
        pieces: Pieces,
        /// It answers a request (and does not push): one fewer is outstanding.
        settles: bool,
    },
    /// Hold this catalog from now on and tell core 0 with `Installed`.
    Publish {
        /// Topics, groups and subscriptions.
        catalog: Arc<Catalog>,
        /// Which change it is.
        change: u64,
    },
    /// To the registrar: a core holds the catalog of this change.
    Installed {
        /// That core.
        core: usize,
        /// The change.
        change: u64,
    },
    /// To the registrar: make sure that a topic exists.
    Ensure(Box<Ensure>),
    /// To the owner of the message's queue: append it.
    Store(Box<Store>),
    /// A message for light queues, or its copies for those of one partition.
    Dispatch(Box<Dispatch>),
    /// The copies of a message of yours for one partition are durable, or never will be.
    Dispatched {
        /// The message's number there.
        id: u64,
        /// The light queues, each with its offset.
        outcome: Result<Vec<Light>, Unkept>,
    },
    /// To the registrar: ask some producer of this group.
    Check {
        /// The producers' group.
        group: Box<str>,
        /// Which one, modulo their number.
        turn: usize,
        /// The whole question.
        frame: Bytes,
    },
    /// Recall a message, if it is yours; else let the next of so many other cores look for it.
    Recall(Box<Request>, Sought),
    /// To core 0: a group was given messages from disk.
    ColdRead {
        /// The group.
        group: Arc<str>,
        /// Their bytes.
        bytes: u64,
    },
    /// Some group, or all together, read too much from disk.
    ColdOver(Over),
    /// A connection is gone: leave its groups, forget its parked pulls.
    Closed {
        /// The connection.
        connection: ConnectionId,
    },
    /// What do your partitions know about this? Answer core `from` with `Told`.
    Ask {
        /// Which gathering this belongs to.
        ticket: u64,
        /// Who gathers.
        from: usize,
        /// The question.
        question: Question,
    },
    /// One core's part of an answer.
    Told {
        /// Which gathering this belongs to.
        ticket: u64,
        /// The part.
        part: Part,
    },
    /// A pop that found nothing elsewhere.
    Pop(Box<Pop>),
    /// Pops of another core wait for messages here: tell it with `Stir`.
    Watch(Box<Watch>),
    /// There may be something for pops that wait in this line.
    Stir {
        /// The line.
        line: LineKey,
        /// It came just now.
        is_new: bool,
        /// Who says so. It may have kept a watch, and does not any more.
        from: usize,
    },
    /// To the core of a line: a pop of it that was told of something is over.
    Over {
        /// The line.
        line: LineKey,
        /// It got what it wanted.
        is_served: bool,
    },
    /// A topic's retry topic of this group is there now.
    Fresh {
        /// The topic.
        topic: u32,
        /// The group.
        group: Arc<str>,
    },
    /// Messages of queues of the receiving core, and perhaps of others, are acknowledged.
    Acks(Box<Acks>),
    /// To the owner of a retry topic's queue: append this and answer with `Revived`.
    Revive(Box<Revival>),
    /// A revived message is safe, or cannot be made so now.
    Revived {
        /// Which.
        receipt: Receipt,
        /// Whether it is.
        ok: bool,
    },
    /// To core 0, once all partitions are open and all cores hold the catalog: accept connections.
    Serve,
    /// Stop: accept nothing more, answer what is durable, shut the partitions.
    Stop,
}

/// The mailboxes of all cores. Cheap to clone; every core and the control thread hold one.
#[derive(Clone, Debug)]
pub struct Mailboxes {
    boxes: Arc<[ArrayQueue<Mail>]>,
    /// Bytes of answers' bodies on the way to each core.
    carried: Arc<[AtomicUsize]>,
}

/// Bodies of answers on the way to one core. 256 MiB: a thousand full pulls; it takes them in its next turn,
/// and large messages among them are shared, not copied. Bytes.
pub const CARRIED_BYTES_MAX: usize = 256 << 20;

impl Mailboxes {
    /// One box for each core, each with room for `mails`.
    pub fn new(cores: usize, mails: usize) -> Mailboxes {
        Mailboxes {
            boxes: (0..cores).map(|_| ArrayQueue::new(mails)).collect(),
            carried: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.boxes.len()
    }

    /// Puts mail into a core's box; gives it back when the box is full. Waking that core is the
    /// caller's part.
    pub fn push(&self, core: usize, mail: Mail) -> Result<(), Mail> {
        self.boxes[core].push(mail)
    }

    /// Asks for room for an answer's body on the way to a core. With `true` it is taken, until
    /// [`carried`](Mailboxes::carried) says that it has arrived.
    pub fn may_carry(&self, core: usize, bytes: usize) -> bool {
        let before = self.carried[core].fetch_add(bytes, Ordering::Relaxed);
        let may = before + bytes <= CARRIED_BYTES_MAX;
        if !may {
            self.carried[core].fetch_sub(bytes, Ordering::Relaxed);
        }
        may
    }

    /// A body has arrived at a core.
    pub fn carried(&self, core: usize, bytes: usize) {
        let before = self.carried[core].fetch_sub(bytes, Ordering::Relaxed);
        assert!(before >= bytes, "what arrives was sent");
    }

    /// Whether half of some core's box is taken. Cost: a look at what all cores write; not for every request.
    pub fn are_crowded(&self) -> bool {
        self.boxes.iter().any(|mails| mails.len() >= mails.capacity() / 2)
    }

    /// How much waits for a core: at least so much can be taken by it.
    pub fn len(&self, core: usize) -> usize {
        self.boxes[core].len()
    }

    /// The oldest mail for a core.
    pub fn pop(&self, core: usize) -> Option<Mail> {
        self.boxes[core].pop()
    }
}

/// A core's way to all mailboxes: remembers whom to wake, and keeps what must not be lost while a
/// box is full.
///
/// What may wait here is bounded by what may be under way in this core: an answer by the waiting
/// answers and parked pulls (both have limits), `Closed` by the connections, `Publish` and
/// `Installed` by one change at a time, `Ask` and `Told` by the gatherings, `Watch`, `Stir`, `Over` and `Fresh` by the pops
/// that wait, `Revive` and `Revived` by the messages that may be on their way to retry topics.
#[derive(Debug)]
pub struct Outbox {
    mailboxes: Mailboxes,
    waiting: Vec<VecDeque<Mail>>,
    wake: Vec<bool>,
}

impl Outbox {
    /// An outbox for one core.
    pub fn new(mailboxes: Mailboxes) -> Outbox {
        let cores = mailboxes.cores();
        Outbox { mailboxes, waiting: (0..cores).map(|_| VecDeque::new()).collect(), wake: vec![false; cores] }
    }

    /// Sends what can be refused: gives it back if the box is full or older mail waits for it.
    pub fn offer(&mut self, core: usize, mail: Mail) -> Result<(), Mail> {
        if !self.waiting[core].is_empty() {
            return Err(mail);
        }
        self.mailboxes.push(core, mail)?;
        self.wake[core] = true;
        Ok(())
    }

    /// Sends what must arrive: now, or as soon as there is room.
    pub fn send(&mut self, core: usize, mail: Mail) {
        if let Err(mail) = self.offer(core, mail) {
            self.waiting[core].push_back(mail);
        }
    }

    /// Tries again to send what waits. Returns whether all is sent.
    pub fn flush(&mut self) -> bool {
        let mut all = true;
        for (core, waiting) in self.waiting.iter_mut().enumerate() {
            while let Some(mail) = waiting.pop_front() {
                if let Err(mail) = self.mailboxes.push(core, mail) {
                    waiting.push_front(mail);
                    all = false;
                    break;
                }
                self.wake[core] = true;
            }
        }
        all
    }

    /// Whether some mail waits for room.
    pub fn is_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// The cores that got mail since the last call.
    pub fn woken(&mut self) -> impl Iterator<Item = usize> {
        self.wake.iter_mut().enumerate().filter_map(|(core, wake)| std::mem::take(wake).then_some(core))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(slot: u32) -> Mail {
        Mail::Closed { connection: ConnectionId { core: 0, slot, generation: 0 } }
    }

    #[test]
    fn bodies_on_the_way_have_a_bound_for_each_core() {
        let mailboxes = Mailboxes::new(2, 4);
        let half = CARRIED_BYTES_MAX / 2;
        assert!(mailboxes.may_carry(1, half) && mailboxes.may_carry(1, half));
        assert!(!mailboxes.may_carry(1, 1) && mailboxes.may_carry(0, 1));
        mailboxes.carried(1, half);
        assert!(mailboxes.may_carry(1, half) && !mailboxes.may_carry(1, 1));
    }

    fn slot(mail: Option<Mail>) -> Option<u32> {
        match mail {
            Some(Mail::Closed { connection }) => Some(connection.slot),
            _ => None,
        }
    }

    #[test]
    fn a_full_box_keeps_order_and_loses_nothing() {
        let boxes = Mailboxes::new(2, 2);
        let mut outbox = Outbox::new(boxes.clone());
        for index in 0..5 {
            outbox.send(1, closed(index));
        }
        assert!(outbox.offer(1, closed(9)).is_err(), "it would overtake");
        assert!(outbox.offer(0, closed(8)).is_ok());
        assert_eq!(outbox.woken().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(outbox.woken().count(), 0);
        let mut seen = Vec::new();
        for _ in 0..3 {
            while let Some(index) = slot(boxes.pop(1)) {
                seen.push(index);
            }
            outbox.flush();
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert!(outbox.flush());
        assert_eq!(slot(boxes.pop(0)), Some(8));
    }
}
