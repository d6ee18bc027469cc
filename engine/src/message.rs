//! A message as the engine sees it: bytes plus a short description. The bytes' own layout is the protocol's.

use crate::format::{Position, QueueKey};
use crate::limits::{KEYS_MAX, RECORD_OFFSETS_MAX};
use smallvec::SmallVec;

/// Where in a message the engine stamps what it decides: byte positions of big-endian 64-bit fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The queue offset.
    pub queue_offset_at: usize,
    /// The [`Position`].
    pub position_at: usize,
    /// When it was stored, ms since 1970.
    pub store_time_at: usize,
}

impl Stamp {
    /// Writes the three into `message`. A stamp that does not fit was made for another message: our mistake.
    pub fn write(&self, message: &mut [u8], queue_offset: u64, position: Position, store_time_ms: u64) {
        for (at, value) in
            [(self.queue_offset_at, queue_offset), (self.position_at, position.0), (self.store_time_at, store_time_ms)]
        {
            message[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
    }
}

/// Hashes of the keys by which a message can be found. At most [`KEYS_MAX`]; more are left out. As many as usual have
/// no memory of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(SmallVec<[u64; KEYS_USUAL]>);

/// A message has its unique key and a few others; one of a trace has those of all messages that it tells of.
const KEYS_USUAL: usize = 8;

impl Keys {
    /// Adds a hash. Returns false, and leaves it out, when there are [`KEYS_MAX`] already.
    #[inline]
    pub fn push(&mut self, hash: u64) -> bool {
        let has_room = self.0.len() < KEYS_MAX;
        if has_room {
            self.0.push(hash);
        }
        has_room
    }

    /// The hashes.
    #[inline]
    pub fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

/// What the engine needs to know of a stored message, read from its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What a consumer's tag filter is compared with; 0 without a tag.
    pub tag_hash: i64,
    /// When it was stored, ms since 1970.
    pub store_time_ms: u64,
    /// Where it is stamped.
    pub stamp: Stamp,
    /// The keys it can be found by.
    pub keys: Keys,
}

/// Reads a description. `None`: these bytes are no message.
pub type Describe = fn(&[u8]) -> Option<Description>;

/// Reads a message's key, of which the newest one stays where a queue is compacted; and whether it does, or ends its key
/// as one without a body. `None`: it has no key, and does not stay.
pub type KeyOf = fn(&[u8]) -> Option<(&[u8], bool)>;

/// A message about to be stored: its description, and a way to write it where it will lie.
pub struct Draft<'a> {
    /// Whose it is.
    pub queue: QueueKey,
    /// Bytes of the stored message.
    pub length: usize,
    /// Queue offsets that it takes: 1, or as many as there are messages inside it, at most [`RECORD_OFFSETS_MAX`].
    /// They all name it. One that waits takes 1.
    pub offsets: u32,
    /// What a consumer's tag filter is compared with; 0 without a tag.
    pub tag_hash: i64,
    /// Hashes of the keys it can be found by; those beyond [`KEYS_MAX`] are not indexed.
    pub keys: &'a [u64],
    /// Where it is stamped.
    pub stamp: Stamp,
    /// Writes all `length` bytes of it, straight into the batch.
    pub fill: &'a mut dyn FnMut(&mut [u8]),
}

impl Draft<'_> {
    /// How many offsets it takes besides the first.
    pub(crate) fn further(&self) -> u32 {
        assert!((1..=RECORD_OFFSETS_MAX).contains(&self.offsets), "{} offsets", self.offsets);
        self.offsets - 1
    }
}

/// Where a message was put. Known at once; promised when its ticket comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its offset in its queue, the first if it takes several.
    pub queue_offset: u64,
    /// Where it lies.
    pub position: Position,
}
