//! What waits for the log: answers made at the append and released when it is kept.

use std::collections::VecDeque;

use engine::Ticket;
use engine::message::Stored;

use crate::call::{ReplyTo, Request};
use crate::pop::revive::Receipt;
use crate::produce::{Dispatch, Sought};

/// What the answer to one send says. It is written when it leaves: until then it takes a third of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The message queue.
    pub queue: u32,
    /// Where the message was put.
    pub stored: Stored,
    /// Its unique id.
    pub unique: ShortText,
}

/// A text in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortText {
    bytes: [u8; SHORT_BYTES_MAX],
    length: u8,
}

/// A unique id has 32 or 56 digits.
const SHORT_BYTES_MAX: usize = 63;

impl ShortText {
    /// None yet: [`set`](Self::set) writes it where it is to lie. To be moved would cost more than to be written.
    pub const EMPTY: ShortText = ShortText { bytes: [0; SHORT_BYTES_MAX], length: 0 };

    /// Whether it has room for a text.
    #[inline]
    pub fn holds(text: &str) -> bool {
        text.len() <= SHORT_BYTES_MAX
    }

    /// Becomes this text, which it [`holds`](Self::holds).
    #[inline]
    pub fn set(&mut self, text: &str) {
        self.bytes[..text.len()].copy_from_slice(text.as_bytes());
        self.length = text.len() as u8;
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("it was made of a text")
    }
}

/// What is owed once the log has kept something.
#[derive(Debug, PartialEq)]
pub enum Promise {
    /// An answer.
    Answer {
        /// Whom to answer.
        to: ReplyTo,
        /// How many messages were stored.
        messages: u32,
        /// Their bytes.
        bytes: u64,
        /// When the request came, in ms.
        since_ms: u64,
        /// What it says.
        says: Says,
    },
    /// The registrar hears that a fact of this change is durable.
    Change(u64),
    /// Who asked that a group's offsets be forgotten, by this number, hears that they are.
    Forget(u64),
    /// The core that had a message on loan hears that it is safe in its retry topic.
    Revival(Box<Receipt>),
    /// A message that waited is never delivered: others of its name are looked for.
    Recall(Box<(Request, Sought)>),
    /// What waits at these places for accounts to be written down goes on.
    Accounts(Vec<u32>),
    /// A message for light queues goes on.
    Dispatch(Box<Dispatch>),
}

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub enum Says {
    /// Nothing: the request was one-way.
    Nothing,
    /// The answer to one send.
    Sent(Sent),
    /// Any other, encoded.
    Frame(Vec<u8>),
}

/// Most promises at once in one core: 262,144, some two hundred bytes each. More appends are refused as
/// busy; the log's own memory is usually full before.
pub const PROMISES_MAX: usize = 1 << 18;
/// The largest buffer that is kept for the next answer. Usual answers take 350 bytes.
const FRAME_BYTES_KEPT: usize = 1024;
/// How many buffers are kept.
const FRAMES_KEPT: usize = 1 << 14;

/// The promises of one core, by ticket.
#[derive(Debug, Default)]
pub struct Promises {
    slots: Vec<Slot>,
    /// Used again in the order in which they came free, which is the order of the log: so opening and settling
    /// both walk along memory, and the processor fetches ahead.
    free: VecDeque<u32>,
    frames: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    promise: Option<Promise>,
}

fn ticket(index: u32, generation: u32) -> Ticket {
    Ticket(u64::from(generation) << 32 | u64::from(index))
}

impl Promises {
    /// The ticket that the next promise gets. `None`: there is no room for one more.
    #[inline]
    pub fn next(&self) -> Option<Ticket> {
        let index = match self.free.front() {
            Some(index) => *index,
            None if self.slots.len() < PROMISES_MAX => self.slots.len() as u32,
            None => return None,
        };
        let generation = self.slots.get(index as usize).map_or(0, |slot| slot.generation);
        Some(ticket(index, generation))
    }

    /// Keeps a promise. Changes of the registrar always find room; answers ask
    /// [`next`](Self::next) first.
    #[inline(always)]
    pub fn open(&mut self, promise: Promise) -> Ticket {
        let index = self.free.pop_front().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, promise: None });
            u32::try_from(self.slots.len() - 1).expect("PROMISES_MAX and some changes are far below 2^32")
        });
        let slot = &mut self.slots[index as usize];
        slot.promise = Some(promise);
        ticket(index, slot.generation)
    }

    /// Keeps the promise that [`next`](Self::next) gave this ticket for. In between nothing else was promised.
    #[inline(always)]
    pub fn open_next(&mut self, ticket: Ticket, promise: Promise) -> &mut Promise {
        assert!(self.open(promise) == ticket, "the next promise is this one");
        self.get(ticket).expect("just opened")
    }

    /// The promise of this ticket.
    #[inline]
    pub fn get(&mut self, ticket: Ticket) -> Option<&mut Promise> {
        let slot = self.slots.get_mut(ticket.0 as u32 as usize)?;
        if u64::from(slot.generation) == ticket.0 >> 32 { slot.promise.as_mut() } else { None }
    }

    /// Ends a promise: it is kept or broken now.
    #[inline]
    pub fn close(&mut self, ticket: Ticket) {
        let frame = match self.get(ticket) {
            None => return,
            Some(Promise::Answer { says: Says::Frame(frame), .. }) => std::mem::take(frame),
            Some(_) => Vec::new(),
        };
        self.give(frame);
        let index = ticket.0 as u32;
        let slot = &mut self.slots[index as usize];
        slot.promise = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push_back(index);
    }

    /// What the answer to a request says, written now; nothing if it is one-way.
    pub fn says(&mut self, to: &ReplyTo, write: impl FnOnce(&mut Vec<u8>)) -> Says {
        if to.oneway {
            return Says::Nothing;
        }
        let mut frame = self.buffer();
        write(&mut frame);
        Says::Frame(frame)
    }

    /// Memory for an answer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.frames.pop().unwrap_or_default()
    }

    /// Takes it back.
    pub fn give(&mut self, mut frame: Vec<u8>) {
        if (1..=FRAME_BYTES_KEPT).contains(&frame.capacity()) && self.frames.len() < FRAMES_KEPT {
            frame.clear();
            self.frames.push(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::ConnectionId;
    use protocol::Serialize;

    #[test]
    fn a_ticket_is_good_once() {
        let mut promises = Promises::default();
        let [first, second] = [1, 2].map(|change| {
            let next = promises.next();
            let ticket = promises.open(Promise::Change(change));
            assert_eq!(next, Some(ticket));
            ticket
        });
        assert_eq!(promises.get(first), Some(&mut Promise::Change(1)));
        promises.close(first);
        assert_eq!(promises.get(first), None);
        let next = promises.next();
        let third = promises.open(Promise::Change(3));
        assert_ne!(third, first);
        assert_eq!(next, Some(third));
        promises.close(first);
        assert_eq!(promises.get(third), Some(&mut Promise::Change(3)), "an old ticket ends nothing");
        assert_eq!(promises.get(second), Some(&mut Promise::Change(2)));
        assert_eq!(promises.slots.len() - promises.free.len(), 2);
        assert_eq!(promises.get(Ticket(u64::MAX)), None);
    }

    #[test]
    fn buffers_and_places_are_used_again() {
        let mut promises = Promises::default();
        let to = ReplyTo {
            connection: ConnectionId { core: 0, slot: 1, generation: 2 },
            opaque: 3,
            code: 10,
            version: 0,
            serialize: Serialize::Json,
            oneway: false,
            delivered: false,
        };
        let frame = b"an answer".to_vec();
        let answer = Promise::Answer { to, messages: 1, bytes: 9, since_ms: 5, says: Says::Frame(frame) };
        let ticket = promises.open(answer);
        promises.close(ticket);
        let buffer = promises.buffer();
        assert!(buffer.is_empty() && buffer.capacity() >= 9);
        let tickets = [1, 2, 3].map(|change| promises.open(Promise::Change(change)));
        tickets.into_iter().for_each(|ticket| promises.close(ticket));
        let places = [4, 5, 6].map(|change| promises.open(Promise::Change(change)).0 as u32);
        assert_eq!(places, tickets.map(|ticket| ticket.0 as u32), "in the order in which they came free");
    }
}
