//! What waits for the log: answers made at the append and released when it is kept.

use engine::Ticket;
use engine::message::Stored;

use crate::mail::ReplyTo;

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
    /// `None`: it is too long.
    #[inline]
    pub fn new(text: &str) -> Option<ShortText> {
        let mut bytes = [0; SHORT_BYTES_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(ShortText { bytes, length: text.len() as u8 })
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("it was made of a text")
    }
}

/// What is owed once the log has kept something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An answer; its frame stands beside it.
    Answer {
        /// Whom to answer.
        to: ReplyTo,
        /// How many messages were stored.
        messages: u32,
        /// Their bytes.
        bytes: u64,
        /// When the request came, in ms.
        since_ms: u64,
    },
    /// The registrar hears that a fact of this change is durable.
    Change(u64),
}

/// A promise that has come due.
#[derive(Debug)]
pub struct Promise {
    /// What is owed.
    pub what: What,
    /// What the answer says, if it is that of one send.
    pub sent: Option<Sent>,
    /// The encoded answer otherwise. Give the buffer back with [`Promises::give`].
    pub frame: Vec<u8>,
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
    free: Vec<u32>,
    frames: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    promise: Option<Promise>,
}

impl Promises {
    /// Whether there is room for one more.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty() || self.slots.len() < PROMISES_MAX
    }

    /// A new promise without an answer. Changes of the registrar always find room; answers ask
    /// [`has_room`](Self::has_room) first.
    pub fn open(&mut self, what: What) -> Ticket {
        let promise = Promise { what, sent: None, frame: Vec::new() };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, promise: None });
            u32::try_from(self.slots.len() - 1).expect("PROMISES_MAX and some changes are far below 2^32")
        });
        let slot = &mut self.slots[index as usize];
        slot.promise = Some(promise);
        Ticket(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// The promise of this ticket, to write its frame.
    pub fn get(&mut self, ticket: Ticket) -> Option<&mut Promise> {
        let slot = self.slots.get_mut(ticket.0 as u32 as usize)?;
        if u64::from(slot.generation) == ticket.0 >> 32 { slot.promise.as_mut() } else { None }
    }

    /// Takes a promise out: it is kept or broken now.
    pub fn take(&mut self, ticket: Ticket) -> Option<Promise> {
        self.get(ticket)?;
        let index = ticket.0 as u32;
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        slot.promise.take()
    }

    /// A buffer for an answer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.frames.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn give(&mut self, mut frame: Vec<u8>) {
        if (1..=FRAME_BYTES_KEPT).contains(&frame.capacity()) && self.frames.len() < FRAMES_KEPT {
            frame.clear();
            self.frames.push(frame);
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_once() {
        let mut promises = Promises::default();
        let first = promises.open(What::Change(1));
        let second = promises.open(What::Change(2));
        promises.get(second).unwrap().frame.push(7);
        assert_eq!(promises.take(first).unwrap().what, What::Change(1));
        assert!(promises.take(first).is_none() && promises.get(first).is_none());
        let third = promises.open(What::Change(3));
        assert_ne!(third, first);
        let kept = promises.take(second).unwrap();
        assert_eq!((kept.what, kept.frame.as_slice()), (What::Change(2), &[7][..]));
        promises.give(kept.frame);
        let fourth = promises.open(What::Change(4));
        assert!(promises.get(fourth).unwrap().frame.is_empty());
        assert_eq!(promises.count(), 2);
        assert!(promises.take(Ticket(u64::MAX)).is_none());
    }
}
