//! Delayed messages: those whose time has come become messages of their queues, once. Those whose segment is to go
//! are written again at the log's head, and half messages as well.
//!
//! In both cases one batch has the new record and the mark that ends the old one. A crash leaves both or
//! neither, so that whatever was read of the log, one record of the message counts.

use super::reading::{Fetched, fetch, is_damaged};
use super::{Partition, RETRY_MS};
use crate::buffer::prefetch_all;
use crate::error::AppendError;
use crate::format::{Kind, Position, RECORD_HEADER_BYTES};
use crate::halves::Half;
use crate::limits::LOAD_BYTES;
use crate::loads::{LoadId, Missing};
use crate::log::Ticket;
use crate::message::Draft;
use crate::timers::{Timer, Timers};
use ahead::{Ahead, Due, Group};
use bytes::Bytes;
use leaving::Leaving;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Delayed messages delivered in one turn; and looked up together.
const DELIVERIES_MAX: usize = 1024;
const SLICE: usize = 64;
/// Of those that are due so many are passed over in one turn, because they or one before them in their queue is being
/// read: then it is waited for the reads.
const PASSED_MAX: usize = 128;
/// So many messages before its turn, what is known of one is fetched into the cache.
const TURNS_AHEAD: usize = 4;
/// At most so many bytes of a message.
const FETCHED_BYTES_MAX: usize = 4 << 10;
/// Bytes delivered in one turn, so that producers get theirs. A single message may be longer.
const DELIVERY_BYTES: usize = 1 << 20;
/// Deliveries for which the log has no room go on when some of it is written, or after this long. Milliseconds.
const DELIVER_AGAIN_MS: u64 = 10;
/// Bytes written again before it is waited until they are written: what one cold read brings. A single message
/// may be longer.
const ROLL_BYTES: usize = LOAD_BYTES as usize;
/// One that the disk does not give is asked for again after this long. Milliseconds.
const UNREADABLE_MS: u64 = 10_000;
/// Messages with one key that are looked at for the one that is meant. 64: keys have 32 bits, two rarely meet.
const NAMESAKES_MAX: usize = 64;

/// What delivering is about to do.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// Log bytes of messages that are due, and being read.
    awaited: BTreeMap<u64, LoadId>,
    /// Those that are soon due, and in memory for that: read, or kept when they were about to leave it.
    ahead: Ahead,
    leaving: Leaving,
    /// It cannot go on before, unless more of the log is written than that.
    again_ms: u64,
    full_at: u64,
    /// What was due then was looked at; and more of it could have been delivered.
    upto_ms: u64,
    more: bool,
    /// Memory that is used again.
    due: Vec<Timer>,
}

/// A message, if it is in memory: by its log byte and its length.
type Here<'a> = &'a dyn Fn(u64, u32) -> Option<Bytes>;

/// What became of a message that is due.
enum Delivered {
    /// It is delivered, so many bytes; or given up.
    Over(usize),
    /// It is not here yet.
    Later,
    /// The log takes none now.
    NoRoom,
}

/// How far a search for a message that waits came. It goes on there once what it waited for is read: what was read
/// before may be gone from memory by then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayedSearch {
    /// Those below this log byte were looked at.
    from: u64,
    /// How many that were.
    looked: usize,
}

/// A message that waits and was asked for.
pub(super) enum Recalled {
    Here(Bytes),
    Loading(LoadId),
    /// It was given up.
    Lost,
}

/// Fetches a message that is soon delivered into the cache: it was copied some while ago.
fn prefetch_message(message: &[u8]) {
    prefetch_all(&message[..message.len().min(FETCHED_BYTES_MAX)]);
}

impl Delivery {
    /// The message of a timer that is due, if it is kept for that; it is not any longer.
    fn take(&mut self, timer: Timer) -> Due {
        self.leaving.take(timer.place()).map_or_else(|| self.ahead.take(timer.place()), Due::Here)
    }

    /// This one waits no more, or not until then.
    fn forget(&mut self, timer: Timer) {
        self.leaving.take(timer.place());
        self.ahead.forget(timer.place());
    }

    /// Only those that these timers name wait still. Cost: one pass over all that are kept.
    pub(super) fn retain(&mut self, timers: &Timers) {
        self.leaving.retain(timers);
        self.ahead.retain(timers);
    }
}

impl Partition {
    /// The log byte of a delayed message that waits, if it has this key and `is_it`. Of many with one key some are
    /// not looked at. `Err`: one is being read, ask again with the same `search`; each is read once.
    pub fn find_delayed(
        &mut self,
        key: u32,
        is_it: &dyn Fn(&[u8]) -> bool,
        search: &mut DelayedSearch,
    ) -> Result<Option<u64>, LoadId> {
        if !self.is_readable() || key == 0 {
            return Ok(None);
        }
        let namesakes = self.derived.timers.with_key(key, search.from).take(NAMESAKES_MAX - search.looked);
        for timer in namesakes.collect::<Vec<Timer>>() {
            let found = self.place_of(timer).map(|place| self.bring(place, true));
            match found {
                Some(Recalled::Here(message)) if is_it(&message) => return Ok(Some(timer.byte)),
                Some(Recalled::Loading(load)) => return Err(load),
                Some(Recalled::Here(_) | Recalled::Lost) | None => {}
            }
            *search = DelayedSearch { from: timer.byte + 1, looked: search.looked + 1 };
        }
        Ok(None)
    }

    /// The delayed message at this log byte is never delivered, once the ticket came back. One that does not wait
    /// any more stays as it is.
    pub fn withdraw(&mut self, byte: u64, ticket: Option<Ticket>, now_ms: u64) -> Result<(), AppendError> {
        self.check_open()?;
        self.reserve(0, 1, now_ms)?;
        if let Some(timer) = self.derived.timers.get(byte) {
            self.end(timer);
            self.delivery.forget(timer);
        }
        self.log.promise().tickets.extend(ticket);
        Ok(())
    }

    /// Delivers what is due. One that is being read holds up those of its own queue, so that they keep their order.
    pub(super) fn deliver(&mut self, now_ms: u64) {
        if self.derived.timers.len() == 0 {
            self.delivery.more = false;
            return;
        }
        self.look_ahead(now_ms);
        if now_ms < self.delivery.again_ms && self.log.written() == self.delivery.full_at {
            return;
        }
        let before = self.derived.timers.len();
        let mut due = std::mem::take(&mut self.delivery.due);
        let is_due = |timer: &Timer| timer.due_ms <= now_ms;
        let (mut bytes, mut held, mut passed, mut place) = (0, BTreeSet::new(), 0, (0, 0));
        let mut is_cut = true;
        'slices: for _ in 0..DELIVERIES_MAX / SLICE {
            due.clear();
            due.extend(self.derived.timers.after(place).take_while(is_due).take(SLICE));
            for (at, &timer) in due.iter().enumerate() {
                if let Some(next) = due.get(at + TURNS_AHEAD) {
                    self.derived.timers.prefetch(next.byte);
                }
                if bytes >= DELIVERY_BYTES || passed == PASSED_MAX {
                    break 'slices;
                }
                if held.contains(&timer.queue) {
                    passed += 1;
                    continue;
                }
                match self.deliver_one(timer, now_ms) {
                    Delivered::Over(length) => bytes += length,
                    Delivered::Later => {
                        held.insert(timer.queue);
                        passed += 1;
                    }
                    Delivered::NoRoom => {
                        self.delivery.again_ms = now_ms + DELIVER_AGAIN_MS;
                        self.delivery.full_at = self.log.written();
                        is_cut = false;
                        break 'slices;
                    }
                }
            }
            match due.last() {
                Some(last) if due.len() == SLICE => place = last.place(),
                _ => {
                    is_cut = false;
                    break;
                }
            }
        }
        due.clear();
        self.delivery.due = due;
        self.delivery.upto_ms = now_ms;
        // If all that were looked at wait, something will happen.
        self.delivery.more = is_cut && self.derived.timers.len() < before;
    }

    fn deliver_one(&mut self, timer: Timer, now_ms: u64) -> Delivered {
        if timer.byte >= self.log.written() || self.delivery.awaited.contains_key(&timer.byte) {
            return Delivered::Later;
        }
        let message = match self.delivery.take(timer) {
            Due::Here(message) => message,
            Due::Coming => return Delivered::Later,
            Due::Unknown => match self.bring(timer, true) {
                Recalled::Here(message) => message,
                Recalled::Loading(load) => {
                    self.delivery.awaited.insert(timer.byte, load);
                    return Delivered::Later;
                }
                Recalled::Lost => return Delivered::Over(0),
            },
        };
        let Some(description) = (self.config.describe)(&message) else {
            self.give_up(timer, "cannot be read");
            return Delivered::Over(0);
        };
        if self.reserve(message.len(), 2, now_ms).is_err() {
            // It is asked for again at once, and must not be read again for that.
            self.delivery.leaving.put(timer.place(), message);
            return Delivered::NoRoom;
        }
        let mut draft = Draft {
            queue: timer.queue,
            length: message.len(),
            offsets: 1,
            tag_hash: description.tag_hash,
            keys: description.keys.as_slice(),
            stamp: description.stamp,
            fill: &mut |out| out.copy_from_slice(&message),
        };
        self.store(&mut draft, now_ms);
        self.end(timer);
        Delivered::Over(message.len())
    }

    /// When [`deliver`](Partition::deliver) has something to do though nothing happens.
    pub(super) fn delivery_deadline_ms(&self) -> u64 {
        let (timers, delivery) = (&self.derived.timers, &self.delivery);
        if timers.len() == 0 {
            return u64::MAX;
        }
        if delivery.more {
            return delivery.upto_ms;
        }
        // For those that were looked at something will happen: a write ends, or a read. Or there will be room.
        let behind = if delivery.again_ms > delivery.upto_ms { (0, 0) } else { (delivery.upto_ms, u64::MAX) };
        let next = timers.after(behind).next();
        let deadline = next.map_or(u64::MAX, |timer| timer.due_ms.max(delivery.again_ms));
        deadline.min(delivery.ahead.deadline_ms(timers))
    }

    /// Reads what is soon due and no longer in memory: not one by one when it is due.
    fn look_ahead(&mut self, now_ms: u64) {
        let (tail, timers, Delivery { ahead, leaving, .. }) =
            (self.log.tail(), &self.derived.timers, &mut self.delivery);
        let here = |byte, length: u32| tail.slice(byte, length as usize);
        // An empty tail has no floor.
        let floor = tail.floor().min(self.log.written());
        leaving.look(timers, floor, self.log.leaves().max(floor), ahead.upto(), &here, now_ms);
        ahead.choose(timers, |timer| leaving.covers(timer, &here), now_ms);
        while if self.delivery.ahead.is_late(now_ms) { self.loads.has_room() } else { self.loads.has_room_ahead() }
            && let Some(group) = self.delivery.ahead.next_group()
        {
            self.read_group(group);
        }
    }

    /// Keeps messages until they are due, once all of them are here.
    fn read_group(&mut self, group: Group) {
        let Some(Range { start, end: to }) = ahead::range(&group) else { return };
        let from = start - RECORD_HEADER_BYTES as u64;
        let load = match self.loads.missing(from, (to - from) as usize) {
            Some(Missing::From(from)) => self.start_load(from, to).map(|(load, _)| load),
            Some(Missing::Coming(load)) => Some(load),
            None => None,
        };
        match load {
            Some(load) => self.delivery.ahead.await_load(load, group),
            None => self.keep_group(group),
        }
    }

    /// Keeps those that are here. What is damaged or missing is found to be so when it is due.
    fn keep_group(&mut self, group: Group) {
        let (tail, loads) = (self.log.tail(), &self.loads);
        self.delivery.ahead.keep(group, &|byte, length| match fetch(tail, loads, byte, length) {
            Fetched::Here(message) => Some(message),
            Fetched::Elsewhere | Fetched::Damaged => None,
        });
    }

    /// Writes what waits below log byte `below` again, so that its segment can go: a slice at a time, and the
    /// next one once that is written. A message that is due is delivered instead, in its turn.
    pub(super) fn roll_forward(&mut self, below: u64, now_ms: u64) {
        if now_ms < self.roll_again_ms || self.rolling.is_some() || self.rolled > self.log.written() {
            return;
        }
        self.moving.clear();
        let mut bytes = 0;
        while bytes < ROLL_BYTES
            && let Some(byte) = self.lowest_waiting().filter(|byte| *byte < below)
        {
            let half = self.derived.halves.lowest().filter(|half| half.timer.byte == byte);
            let timer = half.map_or_else(|| self.derived.timers.get(byte), |half| Some(half.timer));
            let timer = timer.expect("it was just looked up");
            if half.is_none() && timer.due_ms <= now_ms {
                return;
            }
            let message = match self.bring(timer, false) {
                Recalled::Here(message) => message,
                Recalled::Loading(load) => {
                    self.rolling = Some(load);
                    return;
                }
                Recalled::Lost => continue,
            };
            if self.reserve(message.len(), 2, now_ms).is_err() {
                self.roll_again_ms = now_ms + RETRY_MS;
                return;
            }
            let fill = |_, out: &mut [u8]| out.copy_from_slice(&message);
            let (queue, due_ms) = (timer.queue, timer.due_ms);
            let (kind, note) = half.map_or((Kind::Delayed, timer.key), |half| (Kind::Half, half.checks));
            let byte = self.log.record_noted(kind, queue, due_ms, note, message.len(), fill);
            self.rolled = self.end(timer);
            self.delivery.forget(timer);
            self.moving.insert(byte, timer.byte);
            let timer = Timer { byte, ..timer };
            match half {
                Some(half) => self.derived.halves.insert(Half { timer, ..half }),
                None => self.derived.timers.insert(timer),
            }
            bytes += 2 * RECORD_HEADER_BYTES + message.len();
        }
    }

    /// The log byte of the lowest message that waits.
    pub(super) fn lowest_waiting(&self) -> Option<u64> {
        let half = self.derived.halves.lowest().map(|half| half.timer.byte);
        let delayed = self.derived.timers.lowest().map(|timer| timer.byte);
        half.into_iter().chain(delayed).min()
    }

    /// Where the bytes of a message that waits can be read. `None`: nowhere yet. One that is written again stays
    /// where it was until that is durable.
    pub(super) fn place_of(&self, timer: Timer) -> Option<Timer> {
        if timer.byte < self.log.written() {
            return Some(timer);
        }
        self.moving.get(&timer.byte).map(|byte| Timer { byte: *byte, ..timer })
    }

    /// The record of a message that waits counts no more: that it is another one's turn is in the same batch.
    /// Returns the log byte of the mark.
    pub(super) fn end(&mut self, timer: Timer) -> u64 {
        let mark = self.log.record(Kind::Delivered, timer.queue, timer.byte, 0, |_, _| {});
        self.delivering.push_back((mark, timer.byte));
        self.derived.forget(timer.byte);
        mark
    }

    /// The bytes of a message that waits; `alone`: what lies around it is of no use.
    pub(super) fn bring(&mut self, timer: Timer, alone: bool) -> Recalled {
        match fetch(self.log.tail(), &self.loads, timer.byte, timer.length) {
            Fetched::Here(message) => return Recalled::Here(message),
            Fetched::Damaged if is_damaged(&mut self.loads, timer.byte, timer.length) => {
                self.give_up(timer, "is damaged");
            }
            Fetched::Damaged | Fetched::Elsewhere => {
                let load = if alone { self.load_alone(timer) } else { self.load(timer.byte, timer.length) };
                match load {
                    Some(load) => return Recalled::Loading(load),
                    // Its topic was deleted while the checkpoint that names it was the newest one.
                    None => self.forget(timer),
                }
            }
        }
        Recalled::Lost
    }

    /// Starts to read one message and nothing else. `None` if it is gone.
    fn load_alone(&mut self, timer: Timer) -> Option<LoadId> {
        let record_at = timer.byte - RECORD_HEADER_BYTES as u64;
        match self.loads.missing(record_at, RECORD_HEADER_BYTES + timer.length as usize)? {
            Missing::Coming(load) => Some(load),
            Missing::From(_) if !self.loads.has_room() => self.loads.oldest(),
            Missing::From(from) => self.start_load(from, timer.byte + u64::from(timer.length)).map(|(load, _)| load),
        }
    }

    /// A read is back, perhaps of delayed messages. Those that cannot be read are tried again later, and nothing
    /// else waits for them.
    pub(super) fn on_recalled(&mut self, load: LoadId, is_here: bool, now_ms: u64) {
        while let Some(group) = self.delivery.ahead.came(load) {
            if is_here { self.read_group(group) } else { self.keep_group(group) }
        }
        let rolling = self.rolling.take_if(|rolling| *rolling == load);
        let awaited = self.delivery.awaited.extract_if(.., |_, awaited| *awaited == load);
        let came: Vec<u64> = awaited.map(|(byte, _)| byte).collect();
        if is_here || came.is_empty() && rolling.is_none() {
            return;
        }
        let partition = self.config.partition;
        tracing::error!(partition, "delayed messages could not be read; they are tried again in {UNREADABLE_MS} ms");
        for byte in came {
            if let Some(timer) = self.derived.timers.get(byte) {
                self.delivery.forget(timer);
            }
            self.derived.timers.postpone(byte, now_ms + UNREADABLE_MS);
        }
        if rolling.is_some() {
            self.roll_again_ms = now_ms + UNREADABLE_MS;
        }
    }

    fn give_up(&mut self, timer: Timer, why: &str) {
        let position = Position::pack(self.config.partition, timer.byte);
        tracing::error!(?position, "a message that waits {why} and is given up");
        self.forget(timer);
    }

    fn forget(&mut self, timer: Timer) {
        self.derived.forget(timer.byte);
        self.delivery.forget(timer);
    }
}

mod ahead;
mod leaving;
#[cfg(test)]
mod tests;
