//! Small durable state as keys and values: topics, groups, consumer offsets. Each change is a record in the
//! log; all live ones are written again, in slices, whenever a segment is sealed.
//!
//! ```text
//! payload of a Facts record: entries | key bytes u16 | value bytes u32, or u32::MAX: deleted | key | value |
//! or, of a value that goes on:       | key bytes u16 | 2^31 + bytes u32 | key | from u32 | crc32c u32 | bytes |
//! ```
//!
//! A value that goes on keeps its bytes below `from`, of which that is the checksum, and has these behind them: so a
//! long one that changes often is written in the small. Applied twice it is the same, and to another value it is not
//! applied.

use crate::format::crc32c::crc32c;
use crate::limits::{FACT_BYTES_MAX, FACTS_BYTES_MAX};
use std::collections::BTreeMap;
use std::ops::Bound;

const DELETED: u32 = u32::MAX;
/// Of a length: the value goes on.
const MORE: u32 = 1 << 31;
const ENTRY_HEADER_BYTES: usize = 2 + 4;
const MORE_BYTES: usize = 4 + 4;
const _: () = assert!(FACT_BYTES_MAX < MORE as usize, "a length is never taken for a mark");

/// What an entry says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// It has this value.
    Set(&'a [u8]),
    /// Its value has these bytes from this one on, if it is the one whose bytes below have this checksum.
    More(usize, u32, &'a [u8]),
    /// It has none.
    Delete,
}

/// Facts take so much before none is noted any more.
const NOTED_BYTES_MAX: usize = FACTS_BYTES_MAX / 8 * 7;

/// Bytes a live fact costs beside its key and value: nodes and lengths, roughly.
const OVERHEAD_BYTES: usize = 64;

/// What a live fact takes.
fn bytes(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + OVERHEAD_BYTES
}

/// Whether a fact may be as large as this one.
fn fits(key: &[u8], value: &[u8]) -> bool {
    key.len() <= usize::from(u16::MAX) && key.len() + value.len() + ENTRY_HEADER_BYTES <= FACT_BYTES_MAX
}

/// All live facts of a partition.
#[derive(Debug, Default)]
pub struct Facts {
    live: BTreeMap<Box<[u8]>, Vec<u8>>,
    /// Keys whose values are not in the log yet, and from which byte on.
    noted: BTreeMap<Box<[u8]>, usize>,
    bytes: usize,
}

impl Facts {
    /// Whether these changes may be made together. What makes room, or needs none, always may.
    pub fn has_room(&self, changes: &[(&[u8], Option<&[u8]>)]) -> bool {
        let fits = changes.iter().all(|(key, value)| fits(key, value.unwrap_or_default()));
        let (mut gone, mut come) = (0, 0);
        for (key, value) in changes {
            gone += self.live.get(*key).map_or(0, |old| bytes(key, old));
            come += value.map_or(0, |value| bytes(key, value));
        }
        fits && (come <= gone || self.bytes + come - gone <= FACTS_BYTES_MAX)
    }

    /// Whether so many bytes would leave room for what is put.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.bytes.saturating_add(bytes) <= NOTED_BYTES_MAX
    }

    /// As [`has_room`](Facts::has_room), for one that is noted. There are many of those, which must not take the room
    /// of what is put.
    pub fn has_room_to_note(&self, key: &[u8], value: &[u8]) -> bool {
        let gone = self.live.get(key).map_or(0, |old| bytes(key, old));
        let come = bytes(key, value);
        fits(key, value) && (come <= gone || self.bytes + come - gone <= NOTED_BYTES_MAX)
    }

    /// Changes the state in memory; `None` deletes.
    pub fn set(&mut self, key: &[u8], value: Option<&[u8]>) {
        let old = match value {
            Some(value) => {
                // What is noted is all of this one.
                if !self.noted.is_empty()
                    && let Some(from) = self.noted.get_mut(key)
                {
                    *from = 0;
                }
                self.bytes += bytes(key, value);
                match self.live.get_mut(key) {
                    Some(slot) if slot.len() == value.len() => {
                        slot.copy_from_slice(value);
                        self.bytes -= bytes(key, value);
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
            self.bytes -= bytes(key, &old);
        }
    }

    /// Changes the state in memory and remembers to write it with the next [`take_noted`](Facts::take_noted).
    pub fn note(&mut self, key: &[u8], value: &[u8]) {
        if self.live.get(key).is_some_and(|old| old == value) {
            return;
        }
        self.set(key, Some(value));
        if !self.noted.contains_key(key) {
            self.noted.insert(key.into(), 0);
        }
    }

    /// Whether a value may grow by so many bytes. False: there is none.
    pub fn has_room_to_note_more(&self, key: &[u8], more_bytes: usize) -> bool {
        self.live
            .get(key)
            .is_some_and(|value| key.len() + value.len() + more_bytes + ENTRY_HEADER_BYTES <= FACT_BYTES_MAX)
            && self.bytes + more_bytes <= NOTED_BYTES_MAX
    }

    /// As [`note`](Facts::note): what a value that is there goes on with.
    pub fn note_more(&mut self, key: &[u8], more: &[u8]) {
        let value = self.live.get_mut(key).expect("has_room_to_note_more() was asked");
        if !self.noted.contains_key(key) {
            self.noted.insert(key.into(), value.len());
        }
        value.extend_from_slice(more);
        self.bytes += more.len();
    }

    /// What the log says. A checkpoint and a snapshot are written while facts change. So a log that is read behind
    /// the begin of one may go on with a value that is not there yet, and of a checkpoint with one that is not there any
    /// more: what is there then is newer.
    pub fn apply(&mut self, key: &[u8], change: Change<'_>) {
        match change {
            Change::Set(value) => self.set(key, Some(value)),
            Change::Delete => self.set(key, None),
            Change::More(from, crc, more) => {
                let is_base = |value: &&mut Vec<u8>| value.get(..from).is_some_and(|base| crc32c(base) == crc);
                let Some(value) = self.live.get_mut(key).filter(is_base) else { return };
                self.bytes -= value.len() - from;
                value.truncate(from);
                value.extend_from_slice(more);
                self.bytes += more.len();
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.live.get(key).map(|value| &**value)
    }

    /// All facts whose keys start with `prefix`, by key.
    pub fn with_prefix<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.behind(prefix, None)
    }

    /// As [`with_prefix`](Facts::with_prefix), those behind the key `after`, which starts with it.
    pub fn behind<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let from = after.map_or(Bound::Included(prefix), Bound::Excluded);
        self.live
            .range::<[u8], _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (&**key, &**value))
    }

    /// All facts whose keys are neither below `first` nor above `last`, by key.
    pub fn between<'a>(&'a self, first: &[u8], last: &[u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let range = (Bound::Included(first), Bound::Included(last));
        self.live.range::<[u8], _>(range).map(|(key, value)| (&**key, &**value))
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
        while let Some((key, from)) = self.noted.first_key_value() {
            let value = self.live.get(key).expect("set() forgets the note of a deleted key");
            let more = value.get(*from..).expect("a value that gets shorter is noted whole");
            if !payload.is_empty()
                && payload.len() + key.len() + more.len() + ENTRY_HEADER_BYTES + MORE_BYTES > bytes_max
            {
                return;
            }
            match from {
                0 => encode(payload, key, Some(value)),
                _ => encode_more(payload, key, &value[..*from], more),
            }
            self.noted.pop_first();
        }
    }

    /// Keys whose changes are not in the log.
    pub fn noted_keys(&self) -> impl Iterator<Item = &[u8]> {
        self.noted.keys().map(|key| &**key)
    }

    /// Takes back what [`take_noted`](Facts::take_noted) gave and could not be written.
    pub fn give_back(&mut self, payload: &[u8]) {
        for (key, change) in decode(payload).filter(|(key, _)| self.live.contains_key(*key)) {
            let from = if let Change::More(from, ..) = change { from } else { 0 };
            self.noted.insert(key.into(), from);
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
    let length = value.map_or(DELETED, length_of);
    begin(payload, key, length);
    payload.extend_from_slice(value.unwrap_or_default());
}

/// Appends the entry of a value that goes on behind `base`.
fn encode_more(payload: &mut Vec<u8>, key: &[u8], base: &[u8], more: &[u8]) {
    begin(payload, key, MORE | length_of(more));
    payload.extend_from_slice(&length_of(base).to_be_bytes());
    payload.extend_from_slice(&crc32c(base).to_be_bytes());
    payload.extend_from_slice(more);
}

fn begin(payload: &mut Vec<u8>, key: &[u8], length: u32) {
    payload.extend_from_slice(&u16::try_from(key.len()).expect("has_room() was asked").to_be_bytes());
    payload.extend_from_slice(&length.to_be_bytes());
    payload.extend_from_slice(key);
}

fn length_of(value: &[u8]) -> u32 {
    u32::try_from(value.len()).expect("has_room() was asked")
}

/// The entries of a payload, in order. Stops at bytes that are no entry: a payload whose checksum was
/// right has none.
pub fn decode(mut payload: &[u8]) -> impl Iterator<Item = (&[u8], Change<'_>)> {
    std::iter::from_fn(move || {
        let (header, rest) = payload.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let key_bytes = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let length = u32::from_be_bytes([header[2], header[3], header[4], header[5]]);
        let (key, mut rest) = rest.split_at_checked(key_bytes)?;
        let change = match length {
            DELETED => Change::Delete,
            _ if length & MORE != 0 => {
                let (from, after) = rest.split_first_chunk()?;
                let (crc, after) = after.split_first_chunk()?;
                let (more, after) = after.split_at_checked((length & !MORE) as usize)?;
                rest = after;
                Change::More(u32::from_be_bytes(*from) as usize, u32::from_be_bytes(*crc), more)
            }
            _ => {
                let (value, after) = rest.split_at_checked(length as usize)?;
                rest = after;
                Change::Set(value)
            }
        };
        payload = rest;
        Some((key, change))
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
        assert_eq!(entries, [(&b"a"[..], Change::Set(b"one")), (b"b", Change::Delete), (b"", Change::Set(b""))]);
        for length in 0..payload.len() {
            assert!(decode(&payload[..length]).count() < 3, "cut at {length}");
        }
    }

    #[test]
    fn a_full_table_takes_what_makes_room() {
        let mut facts = Facts::default();
        let value = vec![0; FACT_BYTES_MAX / 2];
        let mut number = 0u32;
        while facts.has_room_to_note(&number.to_be_bytes(), &value) {
            facts.note(&number.to_be_bytes(), &value);
            number += 1;
        }
        assert!(facts.bytes <= NOTED_BYTES_MAX && facts.bytes + 2 * value.len() > NOTED_BYTES_MAX);
        assert!(facts.has_room_to_note(&[0; 4], &value[1..]), "it shrinks");
        assert!(!facts.has_room_to_note(&[0; 4], &[&value[..], &value].concat()));
        // There is room for what is put, until that is used as well.
        while facts.has_room(&[(&number.to_be_bytes(), Some(&value))]) {
            facts.set(&number.to_be_bytes(), Some(&value));
            number += 1;
        }
        assert!(facts.bytes <= FACTS_BYTES_MAX && facts.bytes + 2 * value.len() > FACTS_BYTES_MAX);
        let (old, new): (&[u8], &[u8]) = (&[0; 4], b"new");
        assert!(facts.has_room(&[(old, None)]) && facts.has_room(&[(new, Some(&value)), (old, None)]));
        assert!(!facts.has_room(&[(new, Some(&value)), (b"another", Some(&value)), (old, None)]));
        assert!(!facts.has_room(&[(old, Some(&vec![0; FACT_BYTES_MAX]))]), "larger than any may be");
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
                decode(&payload).for_each(|(key, change)| rebuilt.apply(key, change));
                slices += 1;
            }
            assert!(slices > 10);
            assert_eq!(rebuilt.live, facts.live);
            assert_eq!(rebuilt.bytes, facts.bytes);
            assert!(!facts.has_noted());
        }
        let some: Vec<_> = facts.with_prefix(&[0, 0, 1]).map(|(key, _)| key[3]).collect();
        assert_eq!(some, (0..=255).collect::<Vec<u8>>());
        let behind: Vec<_> = facts.behind(&[0, 0, 1], Some(&[0, 0, 1, 253])).map(|(key, _)| key[3]).collect();
        assert_eq!(behind, [254, 255]);
    }

    #[test]
    fn a_value_that_goes_on_is_written_in_the_small_and_goes_on_from_no_other() {
        let mut facts = Facts::default();
        assert!(!facts.has_room_to_note_more(b"k", 1), "there is nothing that could go on");
        let (mut rebuilt, mut log) = (Facts::default(), Vec::new());
        let mut write = |facts: &mut Facts, log: &mut Vec<Vec<u8>>| {
            let mut payload = Vec::new();
            facts.take_noted(&mut payload, usize::MAX);
            decode(&payload).for_each(|(key, change)| rebuilt.apply(key, change));
            assert_eq!((&rebuilt.live, rebuilt.bytes), (&facts.live, facts.bytes));
            log.push(payload);
        };
        facts.note(b"k", &[7; 1000]);
        write(&mut facts, &mut log);
        for more in [&b"one"[..], b"two", b""] {
            facts.note_more(b"k", more);
            facts.note_more(b"k", b"!");
            write(&mut facts, &mut log);
        }
        assert_eq!(log.last().unwrap(), b"\0\x01\x80\0\0\x01k\0\0\x03\xf0\x6f\x92\x58\xb6!");
        // Noted whole, it goes on as a part of that.
        facts.note(b"k", b"another, and shorter");
        facts.note_more(b"k", b" one");
        write(&mut facts, &mut log);
        assert_eq!(log.last().unwrap(), b"\0\x01\0\0\0\x18kanother, and shorter one");
        // What was noted to go on and is put anew is written whole.
        facts.note_more(b"k", b"?");
        facts.set(b"k", Some(b"new"));
        facts.note_more(b"k", b"er");
        write(&mut facts, &mut log);
        facts.note_more(b"k", b"!");
        let mut lost = Vec::new();
        facts.take_noted(&mut lost, 1);
        facts.give_back(&lost);
        assert_eq!(facts.noted.values().copied().collect::<Vec<_>>(), [5], "it goes on from where it did");
        assert_eq!(facts.noted_keys().collect::<Vec<_>>(), [b"k"]);
        write(&mut facts, &mut log);
        // From anywhere before the last whole value, beside any other, the end is the same.
        for from in 0..log.len() - 1 {
            for before in [None, Some(&[7; 1000][..]), Some(&[9; 2000]), Some(b"newer")] {
                let mut late = Facts::default();
                late.set(b"k", before);
                log[from..]
                    .iter()
                    .flat_map(|payload| decode(payload))
                    .for_each(|(key, change)| late.apply(key, change));
                assert_eq!((late.get(b"k"), late.bytes), (facts.get(b"k"), facts.bytes), "{from}");
            }
        }
        for payload in &log {
            for length in 0..payload.len() {
                assert_eq!(decode(&payload[..length]).count(), 0, "cut at {length}");
            }
        }
    }
}
