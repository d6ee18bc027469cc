//! Facts change: together, durably, or noted for a while; and are forgotten.

use super::{FACTS_RECORD_BYTES, Partition};
use crate::derived::OWN_PREFIX;
use crate::error::AppendError;
use crate::facts;
use crate::format::{Kind, QueueKey};
use crate::limits::{FACT_BYTES_MAX, Flush, NOTES_INTERVAL_MS};
use crate::log::Ticket;

/// Facts deleted in one record.
const FORGOTTEN_TOGETHER: usize = 256;

impl Partition {
    /// Changes facts together; `None` deletes one. They are readable at once; when the ticket comes back all of them are
    /// as safe as a message is then, or, after a failure, all or none. Keys start with a byte that is not zero.
    pub fn put(
        &mut self,
        changes: &[(&[u8], Option<&[u8]>)],
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        let is_ours = |key: &[u8]| key.first().is_none_or(|first| *first == OWN_PREFIX);
        assert!(!changes.iter().any(|(key, _)| is_ours(key)), "keys that start with zero are the engine's");
        self.put_facts(changes, ticket, now_ms)
    }

    /// The same, of any keys.
    pub(super) fn put_facts(
        &mut self,
        changes: &[(&[u8], Option<&[u8]>)],
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        self.check_open()?;
        if !self.derived.facts.has_room(changes) {
            let bytes = changes.iter().map(|(key, value)| key.len() + value.map_or(0, <[u8]>::len)).sum::<usize>();
            return Err(AppendError::TooLarge { bytes: bytes as u64, bytes_max: FACT_BYTES_MAX as u64 });
        }
        // One batch of the log, in records that recovery reads one by one.
        let mut payloads = vec![Vec::new()];
        for (key, value) in changes {
            if payloads.last().is_some_and(|last| last.len() >= FACTS_RECORD_BYTES) {
                payloads.push(Vec::new());
            }
            facts::encode(payloads.last_mut().expect("there is one"), key, *value);
        }
        self.reserve(payloads.iter().map(Vec::len).sum(), payloads.len() as u32, now_ms)?;
        payloads.iter().for_each(|payload| _ = self.record_facts(payload));
        changes.iter().for_each(|(key, value)| self.derived.facts.set(key, *value));
        self.log.promise().tickets.extend(ticket);
        Ok(())
    }

    /// As [`put`](Partition::put), for what other partitions build on: when the ticket comes back the facts are durable,
    /// whatever the flush. An asynchronous log is synced at once for it.
    pub fn put_durably(
        &mut self,
        changes: &[(&[u8], Option<&[u8]>)],
        ticket: Ticket,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        if self.config.flush == Flush::Sync {
            return self.put(changes, Some(ticket), now_ms);
        }
        self.put(changes, None, now_ms)?;
        self.log.hurry_to(self.log.accepted());
        self.promised.push_back((self.log.accepted(), ticket));
        Ok(())
    }

    /// Changes a fact that need not be durable at once: readable now, durable within a second and at
    /// [`shut`](Partition::shut). Returns false when there is no room for it.
    pub fn note(&mut self, key: &[u8], value: &[u8]) -> bool {
        assert!(key.first().is_some_and(|first| *first != OWN_PREFIX), "keys that start with zero are the engine's");
        let room = self.derived.facts.has_room_to_note(key, value);
        if room {
            self.derived.facts.note(key, value);
        }
        room
    }

    /// As [`note`](Partition::note): a value that is there goes on with these bytes. Returns false when there is no room
    /// for them, or no value.
    pub fn note_more(&mut self, key: &[u8], more: &[u8]) -> bool {
        let room = self.derived.facts.has_room_to_note_more(key, more.len());
        if room {
            self.derived.facts.note_more(key, more);
        }
        room
    }

    /// Writes all that is noted with the next batch. When the ticket comes back it is as safe as a message is then, and so
    /// is what was noted before. `Ok(false)`: it is already, and the ticket does not come back.
    pub fn keep_notes(&mut self, ticket: Ticket, now_ms: u64) -> Result<bool, AppendError> {
        self.check_open()?;
        self.write_notes(now_ms)?;
        Ok(self.log.ride(ticket))
    }

    /// The value of a fact.
    pub fn fact(&self, key: &[u8]) -> Option<&[u8]> {
        self.derived.facts.get(key)
    }

    /// All facts whose keys start with `prefix`, by key.
    pub fn facts<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.derived.facts.with_prefix(prefix)
    }

    /// As [`facts`](Partition::facts), those behind the key `after`, which starts with it: there may be more than one
    /// wants to look at in one turn.
    pub fn facts_behind<'a>(
        &'a self,
        prefix: &'a [u8],
        after: Option<&'a [u8]>,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.derived.facts.behind(prefix, after)
    }

    /// Deletes every fact whose key starts with `prefix`.
    pub fn forget_facts(&mut self, prefix: &[u8], now_ms: u64) -> Result<(), AppendError> {
        while self.forget_some(prefix, FORGOTTEN_TOGETHER, now_ms)? == FORGOTTEN_TOGETHER {}
        Ok(())
    }

    /// Deletes some of them, at most `most`. Returns how many.
    pub(super) fn forget_some(&mut self, prefix: &[u8], most: usize, now_ms: u64) -> Result<usize, AppendError> {
        self.check_open()?;
        let keys: Vec<Vec<u8>> =
            self.derived.facts.with_prefix(prefix).map(|(key, _)| key.to_vec()).take(most).collect();
        if keys.is_empty() {
            return Ok(0);
        }
        let mut payload = Vec::new();
        keys.iter().for_each(|key| facts::encode(&mut payload, key, None));
        self.write_facts(&payload, now_ms)?;
        keys.iter().for_each(|key| self.derived.facts.set(key, None));
        Ok(keys.len())
    }

    pub(super) fn write_facts(&mut self, payload: &[u8], now_ms: u64) -> Result<u64, AppendError> {
        self.reserve(payload.len(), 1, now_ms)?;
        Ok(self.record_facts(payload))
    }

    /// Puts facts into the batch that was reserved.
    pub(super) fn record_facts(&mut self, payload: &[u8]) -> u64 {
        let nobody = QueueKey { topic: 0, queue: 0 };
        self.log.record(Kind::Facts, nobody, 0, payload.len(), |_, out| out.copy_from_slice(payload))
    }

    /// Writes what is noted; what the log refuses is noted still.
    pub(super) fn write_notes(&mut self, now_ms: u64) -> Result<(), AppendError> {
        self.notes_at_ms = now_ms + NOTES_INTERVAL_MS;
        while self.derived.facts.has_noted() {
            let mut payload = Vec::new();
            self.derived.facts.take_noted(&mut payload, FACTS_RECORD_BYTES);
            match self.write_facts(&payload, now_ms) {
                Ok(byte) => self.notes.push_back((byte, payload)),
                Err(error) => {
                    self.derived.facts.give_back(&payload);
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}
