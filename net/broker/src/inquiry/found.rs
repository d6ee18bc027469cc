//! Messages of one partition with a key, stored within a time: newest first, also below any number of newer ones.

use std::ops::Range;

use bytes::Bytes;
use engine::partition::Partition;
use engine::{KeySearch, LoadId};
use protocol::message::StoredMessage;

/// Most bytes of messages that one core finds by key. 8 MiB: half a frame.
pub const FOUND_BYTES_MAX: usize = 8 << 20;
/// Most messages that are read because they may be in time. 1,024: sixteen times a stock broker's answer. It takes as
/// many only where a clock went back, or messages are gone.
const LOOKED_AT_MAX: usize = 1_024;

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    /// A key's hash.
    pub key: u64,
    /// Stored at or behind this time, in ms.
    pub begin_ms: u64,
    /// Stored at or before this time, in ms.
    pub end_ms: u64,
    /// At most so many.
    pub count: usize,
}

/// A search in one partition, as far as it came. The log has messages in the order of time: where those end that are too
/// new is found by halving, each time with a look at one message; from there on they are read until they are too old.
/// Where a clock went back, messages may be left out; that is said if one was looked at that is not in order.
#[derive(Debug)]
pub struct Found {
    /// Messages from `high` on are too new; of those below `low` the last one is not. Equal: that is where time ends.
    low: u64,
    high: u64,
    /// Where it is looked next: for the last message below this log byte.
    middle: u64,
    /// What is under way; a key's places are read from the first one on.
    search: KeySearch,
    looked: usize,
    /// The store times of the messages next to `low` and `high`, as far as they were looked at, in ms.
    times_ms: (u64, u64),
    /// Nothing is left to be looked at.
    is_over: bool,
    /// Store times in ms, and the stored records.
    pub messages: Vec<(u64, Bytes)>,
    /// Some may have been left out.
    pub is_partial: bool,
}

impl Found {
    /// Nothing was looked at yet.
    pub fn new(sought: &Sought) -> Found {
        Found {
            low: 0,
            high: u64::MAX,
            middle: u64::MAX,
            search: last(sought, 0..u64::MAX),
            looked: 0,
            times_ms: (0, u64::MAX),
            is_over: sought.count == 0,
            messages: Vec::new(),
            is_partial: false,
        }
    }

    /// Goes on. `bytes`: what was found so far on this core. `Err`: something is being read, ask again. Cost: some 50
    /// messages are looked at to find where the time ends, if the newest one is behind it; then `count`, and one that is
    /// too old.
    pub fn go_on(&mut self, sought: &Sought, partition: &mut Partition, bytes: &mut usize) -> Result<(), LoadId> {
        while !self.is_over {
            if *bytes >= FOUND_BYTES_MAX {
                (self.is_over, self.is_partial) = (true, true);
                return Ok(());
            }
            // What is behind the first places is asked for when those were looked at.
            if self.search.found.is_empty()
                && let Err(load) = partition.find(&mut self.search)
                && self.search.found.is_empty()
            {
                return Err(load);
            }
            let message = match self.search.found.first() {
                Some(byte) => partition.get(partition.position(*byte))?,
                None => None,
            };
            let before = self.messages.len();
            self.take(sought, message);
            *bytes += self.messages[before..].iter().map(|(_, message)| message.len()).sum::<usize>();
        }
        Ok(())
    }

    /// Whether there is nothing left to be looked at.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The awaited read failed: goes on as if what it would have brought were not there.
    pub fn skip(&mut self, sought: &Sought) {
        self.is_partial = true;
        self.take(sought, None);
    }

    /// Takes the message at the first place; `None`: there is none, or it is gone.
    fn take(&mut self, sought: &Sought, message: Option<Bytes>) {
        let stored_ms = message.as_deref().and_then(stored_ms);
        let place = self.search.found.first().copied();
        self.is_partial |= self.search.is_partial;
        let is_halving = self.low < self.high;
        if let Some(stored_ms) = stored_ms {
            let (least_ms, most_ms) = if is_halving { self.times_ms } else { (0, self.times_ms.1) };
            // If the clock went back, what is in time may lie where nobody looks.
            self.is_partial |= !(least_ms..=most_ms).contains(&stored_ms);
            match is_halving && stored_ms <= sought.end_ms {
                true => self.times_ms.0 = stored_ms,
                false => self.times_ms.1 = stored_ms,
            }
        }
        if is_halving {
            match place.filter(|_| stored_ms.is_some_and(|stored_ms| stored_ms > sought.end_ms)) {
                Some(newer) => self.high = newer,
                None => self.low = self.middle,
            }
            self.middle = self.low + (self.high - self.low).div_ceil(2);
            self.search =
                if self.low < self.high { last(sought, self.low..self.middle) } else { places(sought, self.high) };
            return;
        }
        let Some(place) = place else { return self.is_over = true };
        self.looked += 1;
        if let (Some(message), Some(stored_ms)) = (message, stored_ms) {
            self.is_over = stored_ms < sought.begin_ms;
            if (sought.begin_ms..=sought.end_ms).contains(&stored_ms) {
                self.messages.push((stored_ms, message));
                self.is_over = self.messages.len() == sought.count;
            }
        }
        if !self.is_over && self.looked == LOOKED_AT_MAX {
            (self.is_over, self.is_partial) = (true, true);
        }
        self.search.found.remove(0);
        if self.search.found.is_empty() {
            self.search = places(sought, place);
        }
    }
}

/// A search for the last message at these log bytes.
fn last(sought: &Sought, within: Range<u64>) -> KeySearch {
    KeySearch::new(sought.key, 1, (sought.begin_ms, sought.end_ms)).within(within)
}

/// A search for the last messages below a log byte.
fn places(sought: &Sought, below: u64) -> KeySearch {
    KeySearch::new(sought.key, sought.count, (sought.begin_ms, sought.end_ms)).within(0..below)
}

fn stored_ms(message: &[u8]) -> Option<u64> {
    let stored = StoredMessage::decode(message).ok()?;
    u64::try_from(stored.store_timestamp).ok()
}
