//! Small durable state as keys and values: topics, groups, consumer offsets. Each change is a record in the
//! log; all live ones are written again, in slices, whenever a segment is sealed.
//!
//! ```text
//! payload of a Facts record: entries | key bytes u16 | value bytes u32, or u32::MAX: deleted | key | value |
//! ```

use crate::limits::{FACT_BYTES_MAX, FACTS_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

const DELETED: u32 = u32::MAX;
const ENTRY_HEADER_BYTES: usize = 2 + 4;
const _: () = assert!(FACT_BYTES_MAX < DELETED as usize, "a length is never taken for the mark");

/// Bytes a live fact costs beside its key and value: nodes and lengths, roughly.
const OVERHEAD_BYTES: usize = 64;

/// All live facts of a partition.
#[derive(Debug, Default)]
pub struct Facts {
    live: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Keys whose values changed and are not in the log yet.
    noted: BTreeSet<Box<[u8]>>,
    bytes: usize,
}

impl Facts {
    /// Whether a fact of this size may be added.
    pub fn has_room(&self, key: &[u8], value: &[u8]) -> bool {
        let bytes = key.len() + value.len();
        key.len() <= usize::from(u16::MAX)
            && bytes + ENTRY_HEADER_BYTES <= FACT_BYTES_MAX
            && self.bytes + bytes + OVERHEAD_BYTES <= FACTS_BYTES_MAX
    }

    /// Changes the state in memory; `None` deletes.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let old = match value {
            Some(value) => {
                self.bytes += key.len() + value.len() + OVERHEAD_BYTES;
                match self.live.get_mut(key) {
                    Some(slot) if slot.len() == value.len() => {
                        slot.copy_from_slice(value);
                        self.bytes -= key.len() + value.len() + OVERHEAD_BYTES;
                        return;
                    }
                    _ => self.live.insert(key.into(), value.into()),
                }
            }
            None => {
                self.noted.remove(key);
                self.live.remove(key)
            }
        };
        if let Some(old) = old {
            self.bytes -= key.len() + old.len() + OVERHEAD_BYTES;
        }
    }

    /// Changes the state in memory and remembers to write it with the next [`take_noted`](Facts::take_noted).
    pub fn note(&mut self, key: &[u8], value: &[u8]) {
        if self.live.get(key).is_some_and(|old| **old == *value) {
            return;
        }
        self.set(key, Some(value));
        if !self.noted.contains(key) {
            self.noted.insert(key.into());
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.live.get(key).map(|value| &**value)
    }

    /// All facts whose keys start with `prefix`, by key.
    pub fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.live
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (&**key, &**value))
    }

    /// Whether noted changes wait to be written.
    pub fn has_noted(&self) -> bool {
        !self.noted.is_empty()
    }

    /// How many.
    pub fn noted(&self) -> usize {
        self.noted.len()
    }

    /// Appends noted changes to `payload`, up to about `bytes_max` (always at least one).
    pub fn take_noted(&mut self, payload: &mut Vec<u8>, bytes_max: usize) {
        while let Some(key) = self.noted.first() {
            let value = self.live.get(key).expect("set() forgets the note of a deleted key");
            if !payload.is_empty() && payload.len() + key.len() + value.len() + ENTRY_HEADER_BYTES > bytes_max {
                return;
            }
            encode(payload, key, Some(value));
            self.noted.pop_first();
        }
    }

    /// Takes back what [`take_noted`](Facts::take_noted) gave and could not be written.
    pub fn give_back(&mut self, payload: &[u8]) {
        for (key, _) in decode(payload).filter(|(key, _)| self.live.contains_key(*key)) {
            self.noted.insert(key.into());
        }
    }

    /// Appends live facts behind the key `after` to `payload`, up to about `bytes_max` (always at least one).
    /// Returns the last key written; `None` when there is nothing behind `after`.
    pub fn slice(&self, after: Option<&[u8]>, payload: &mut Vec<u8>, bytes_max: usize) -> Option<Box<[u8]>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut last = None;
        for (key, value) in self.live.range::<[u8], _>((from, Bound::Unbounded)) {
            if last.is_some() && payload.len() + key.len() + value.len() + ENTRY_HEADER_BYTES > bytes_max {
                break;
            }
            encode(payload, key, Some(value));
            last = Some(key.clone());
        }
        last
    }
}

/// Appends one entry to a payload; `None` is a deletion.
pub fn encode(payload: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    payload.extend_from_slice(&u16::try_from(key.len()).expect("has_room() was asked").to_be_bytes());
    let length = value.map_or(DELETED, |value| u32::try_from(value.len()).expect("has_room() was asked"));
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(key);
    payload.extend_from_slice(value.unwrap_or_default());
}

/// The entries of a payload, in order. Stops at bytes that are no entry: a payload whose checksum was
/// right has none.
pub fn decode(mut payload: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    std::iter::from_fn(move || {
        let (header, rest) = payload.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let key_bytes = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let value_bytes = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
        let (key, rest) = rest.split_at_checked(key_bytes)?;
        let value = if value_bytes == DELETED { None } else { Some(rest.get(..value_bytes as usize)?) };
        payload = &rest[value.map_or(0, <[u8]>::len)..];
        Some((key, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_survives_the_round_trip_and_any_cut() {
        let mut payload = Vec::new();
        encode(&mut payload, b"a", Some(b"one"));
        encode(&mut payload, b"b", None);
        encode(&mut payload, b"", Some(b""));
        assert_eq!(&payload[..10], b"\0\x01\0\0\0\x03aone");
        let entries: Vec<_> = decode(&payload).collect();
        assert_eq!(entries, [(&b"a"[..], Some(&b"one"[..])), (b"b", None), (b"", Some(b""))]);
        for length in 0..payload.len() {
            assert!(decode(&payload[..length]).count() < 3, "cut at {length}");
        }
    }

    #[test]
    fn a_snapshot_in_slices_and_the_notes_rebuild_the_state() {
        let mut facts = Facts::default();
        for number in 0..1000u32 {
            facts.note(&number.to_be_bytes(), &[1; 20]);
        }
        facts.set(&5u32.to_be_bytes(), None);
        for take in [true, false] {
            let mut rebuilt = Facts::default();
            let mut after: Option<Box<[u8]>> = None;
            let mut slices = 0;
            loop {
                let mut payload = Vec::new();
                if take {
                    facts.take_noted(&mut payload, 500);
                } else {
                    after = facts.slice(after.as_deref(), &mut payload, 500);
                }
                if payload.is_empty() {
                    break;
                }
                assert!(payload.len() <= 500);
                decode(&payload).for_each(|(key, value)| rebuilt.set(key, value));
                slices += 1;
            }
            assert!(slices > 10);
            assert_eq!(rebuilt.live, facts.live);
            assert_eq!(rebuilt.bytes, facts.bytes);
            assert!(!facts.has_noted());
        }
        let some: Vec<_> = facts.with_prefix(&[0, 0, 1]).map(|(key, _)| key[3]).collect();
        assert_eq!(some, (0..=255).collect::<Vec<u8>>());
    }
}
