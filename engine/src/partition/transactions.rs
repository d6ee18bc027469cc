//! Half messages: stored where nobody sees them, until their producer decides. To commit is one batch with the
//! message and the mark that ends the half message; to roll back is the mark alone.

use super::delivery::Recalled;
use super::{Effect, Partition};
use crate::error::AppendError;
use crate::format::{Checked, Kind, Position, QueueKey};
use crate::halves::Half;
use crate::loads::LoadId;
use crate::log::Ticket;
use crate::message::{Draft, Stored};
use crate::timers::Timer;
use bytes::Bytes;

/// Producers that are to be asked in one turn.
const CHECKS_MAX: usize = 32;
/// One that nobody asked, though that was wanted, is wanted again after this long. Milliseconds.
const CHECK_AGAIN_MS: u64 = 1000;

/// A half message.
#[derive(Clone, Debug)]
pub struct Undecided {
    /// As it was stored.
    pub message: Bytes,
    /// The queue that gets it, if it is committed.
    pub queue: QueueKey,
    /// How often its producer was asked.
    pub checks: u32,
}

impl Partition {
    /// Stores a half message: nobody sees it before it is decided. When its producer is to be asked, `check_ms`,
    /// there is [`Effect::Undecided`].
    /// What is returned is where it waits; its id, the log byte of that, is its queue offset, too.
    pub fn prepare(
        &mut self,
        draft: Draft<'_>,
        check_ms: u64,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<Stored, AppendError> {
        assert!(draft.further() == 0, "what waits takes one offset");
        self.check_room(draft.length)?;
        if !self.derived.halves.has_room() {
            return Err(AppendError::Busy);
        }
        self.reserve(draft.length, 1, now_ms)?;
        let partition = self.config.partition;
        let byte = self.log.record(Kind::Half, draft.queue, check_ms, draft.length, |byte, out| {
            (draft.fill)(out);
            draft.stamp.write(out, byte, Position::pack(partition, byte), now_ms);
        });
        let timer = Timer { due_ms: check_ms, byte, queue: draft.queue, length: draft.length as u32, key: 0 };
        self.derived.halves.insert(Half { timer, id: byte, checks: 0 });
        self.log.promise().tickets.extend(ticket);
        Ok(Stored { queue_offset: byte, position: Position::pack(partition, byte) })
    }

    /// The half message of this id, if there is one that is undecided. `Err`: it is being read, ask again.
    pub fn undecided(&mut self, id: u64) -> Result<Option<Undecided>, LoadId> {
        let half = self.derived.halves.get(id).filter(|_| self.is_readable());
        let Some(Half { timer, checks, .. }) = half else { return Ok(None) };
        let Some(place) = self.place_of(timer) else { return Ok(None) };
        match self.bring(place, true) {
            Recalled::Here(message) => Ok(Some(Undecided { message, queue: timer.queue, checks })),
            Recalled::Loading(load) => Err(load),
            Recalled::Lost => Ok(None),
        }
    }

    /// Decides on a half message that [`undecided`](Partition::undecided) just found, once the ticket came back: in
    /// one batch with what becomes of it, if anything does. `due`: that is delivered later, see
    /// [`delay`](Partition::delay).
    pub fn decide(
        &mut self,
        id: u64,
        message: Option<&mut Draft<'_>>,
        due: Option<(u64, u32)>,
        ticket: Option<Ticket>,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        self.check_open()?;
        if due.is_some() && !self.derived.timers.has_room() {
            return Err(AppendError::Busy);
        }
        let length = message.as_ref().map_or(0, |draft| draft.length);
        self.reserve(length, 2, now_ms)?;
        let half = self.derived.halves.get(id).expect("the caller just looked it up");
        match (message, due) {
            (None, _) => {}
            (Some(draft), None) => _ = self.store(draft, now_ms),
            (Some(draft), Some((due_ms, key))) => _ = self.put_off(draft, due_ms, key, now_ms),
        }
        self.end(half.timer);
        self.log.promise().tickets.extend(ticket);
        Ok(())
    }

    /// The producer of a half message was asked once more, and is to be asked again at `check_ms`. Nothing, if it
    /// is decided. A crash may forget that, but not for long: what is lost is what was not yet durable.
    pub fn checked(&mut self, id: u64, check_ms: u64, now_ms: u64) -> Result<(), AppendError> {
        self.check_open()?;
        let Some(half) = self.derived.halves.get(id) else { return Ok(()) };
        let checked = Checked { id, due_ms: check_ms, checks: half.checks.saturating_add(1) };
        let payload = checked.encode();
        self.reserve(payload.len(), 1, now_ms)?;
        let fill = |_, out: &mut [u8]| out.copy_from_slice(&payload);
        self.log.record(Kind::Checked, half.timer.queue, 0, payload.len(), fill);
        self.derived.halves.checked(id, checked.due_ms, checked.checks);
        Ok(())
    }

    /// Tells whose producers are to be asked now.
    pub(super) fn check_halves(&mut self, now_ms: u64) {
        let is_due = |half: &Half| half.timer.due_ms <= now_ms && half.timer.byte < self.log.written();
        let due: Vec<u64> =
            self.derived.halves.iter().take_while(is_due).take(CHECKS_MAX).map(|half| half.id).collect();
        for id in due {
            let half = self.derived.halves.get(id).expect("it was just listed");
            self.derived.halves.checked(id, now_ms + CHECK_AGAIN_MS, half.checks);
            self.effects.push(Effect::Undecided(id));
        }
    }

    /// When [`check_halves`](Partition::check_halves) has something to tell though nothing happens.
    pub(super) fn check_deadline_ms(&self) -> u64 {
        let first = self.derived.halves.iter().next().filter(|half| half.timer.byte < self.log.written());
        first.map_or(u64::MAX, |half| half.timer.due_ms)
    }
}
