//! One group's account in one queue: which messages it has on loan, and which it is done with.
//!
//! What a pop gives out is a *loan*: up to 32 messages that nobody else gets until a time. An acknowledged message is
//! done with. A state machine without clock or I/O; what must last of it is one `value` (see [`Account::write`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

pub(super) mod value;

use value::Written;
pub use value::{MESSAGE_BYTES_MAX, VALUE_BYTES_MAX};

/// Most messages of one loan, as in RocketMQ.
pub const LOAN_MESSAGES_MAX: usize = 32;
/// How far the last message of a loan may lie behind the first. 1 Mi: what lies between was looked at and is not wanted;
/// a batch of acknowledgements has a bit for each.
pub const LOAN_SPAN_MAX: u64 = 1 << 20;
/// Messages of which it is known how often they were lent in vain: twice as many as an orderly loan has.
const TIMES_MAX: usize = 2 * LOAN_MESSAGES_MAX;

/// What a handle names: the first message of a loan, and when it was lent. Never two loans of an account alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LoanId {
    /// The queue offset of its first message.
    pub start: u64,
    /// When it was lent, ms since 1970.
    pub pop_ms: u64,
}

/// How a loan goes on when its time is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Its messages are written to the retry topic.
    Plain,
    /// The same, but it does not count as a try: the consumer gave it back unused.
    Suspended,
    /// They are lent again, in their order; until then nothing else of the queue is.
    Orderly,
}

/// What was lent together.
#[derive(Debug)]
pub struct Loan {
    /// Until then nobody else gets its messages, ms since 1970.
    pub until_ms: u64,
    /// How it goes on.
    pub kind: Kind,
    /// How many it was made of.
    count: u32,
    /// By index: not acknowledged yet.
    left: u32,
    /// By index: on its way to the retry topic.
    moving: u32,
    /// Distances from the first message; `None`: they follow one another.
    gaps: Option<Box<[u32]>>,
    /// Orderly: times of single messages that were changed.
    each_until_ms: Option<Box<[u64; LOAN_MESSAGES_MAX]>>,
}

/// What was done with one message of a loan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was on loan and is not any more.
    Now,
    /// There is no such loan, or the message is not on it any more.
    Stale,
}

/// One group in one queue.
#[derive(Debug, Default)]
pub struct Account {
    /// The next offset to lend. What lies below is on loan or done with.
    next: u64,
    /// Not to be lent, at or above `next`: ascending, apart from one another and from `next`. What an earlier life of
    /// the broker lent and still knows of; what lies between the messages of an orderly loan that is lent again.
    ahead: VecDeque<Range<u64>>,
    loans: BTreeMap<LoanId, Loan>,
    /// How many of them are orderly.
    orderly: usize,
    /// Messages on loan.
    out: usize,
    /// Orderly: whose loan it is, and how often messages were lent before.
    attempt: Option<Box<str>>,
    times: Vec<(u64, u32)>,
    /// What is written of it. `None`: nobody knows, or more than loans has changed since.
    written: Option<Written>,
    /// Loans that changed since.
    touched: BTreeSet<LoanId>,
}

impl Loan {
    /// Which of its messages this is, acknowledged or not.
    fn place(&self, id: LoanId, offset: u64) -> Option<usize> {
        let distance = u32::try_from(offset.checked_sub(id.start)?).ok()?;
        let index = match &self.gaps {
            None => distance as usize,
            Some(gaps) => gaps.binary_search(&distance).ok()?,
        };
        (index < self.count as usize).then_some(index)
    }

    /// The same of one that is not acknowledged.
    fn index(&self, id: LoanId, offset: u64) -> Option<usize> {
        self.place(id, offset).filter(|index| self.left & 1 << index != 0)
    }

    fn offset(&self, id: LoanId, index: u32) -> u64 {
        id.start + self.gaps.as_ref().map_or(u64::from(index), |gaps| u64::from(gaps[index as usize]))
    }

    /// Offsets that are not acknowledged.
    fn unacked(&self, id: LoanId) -> impl Iterator<Item = u64> {
        bits(self.left).map(move |index| self.offset(id, index))
    }

    /// Its messages from the first on that is not acknowledged, in their order.
    fn rest(&self, id: LoanId) -> impl Iterator<Item = u64> {
        (self.left.trailing_zeros().min(self.count)..self.count).map(move |index| self.offset(id, index))
    }

    /// Orderly: when the last of what is left may be lent again.
    fn free_ms(&self) -> u64 {
        match &self.each_until_ms {
            None => self.until_ms,
            Some(each) => bits(self.left).map(|index| each[index as usize]).max().unwrap_or(0),
        }
    }
}

fn bits(mask: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(mask), |mask| Some(mask & mask.wrapping_sub(1)))
        .take_while(|mask| *mask != 0)
        .map(u32::trailing_zeros)
}

impl Account {
    /// A group that is done with everything below `floor`.
    pub fn new(floor: u64) -> Account {
        Account { next: floor, ..Account::default() }
    }

    /// The next offset to lend.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many offsets from `next` on may be lent one after the other.
    pub fn stretch(&self) -> u64 {
        self.ahead.front().map_or(u64::MAX, |range| range.start - self.next)
    }

    /// Messages on loan.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Loans.
    pub fn loans(&self) -> usize {
        self.loans.len()
    }

    /// Whether nobody has to see to it: nothing is on loan but orderly messages whose time is over.
    pub fn is_quiet(&self, now_ms: u64) -> bool {
        self.loans.values().all(|loan| loan.kind == Kind::Orderly && loan.free_ms() <= now_ms)
    }

    /// Goes on to an offset: what lies before it is lent, unwanted or gone.
    pub fn advance(&mut self, next: u64) {
        self.next = self.next.max(next);
        while self.ahead.front().is_some_and(|range| range.start <= self.next) {
            let range = self.ahead.pop_front().expect("it was looked at");
            self.next = self.next.max(range.end);
        }
    }

    /// Somebody else says where the group is: everything below is done with, everything from there on comes again,
    /// also what is on loan. Where it is already changes nothing.
    pub fn reset(&mut self, floor: u64) {
        if floor != self.floor() {
            *self = Account::new(floor);
        }
        // That offset may stand where all of it was written.
        self.written = None;
    }

    /// Where it ends: nothing from there on was lent or passed.
    pub fn end(&self) -> u64 {
        self.ahead.back().map_or(self.next, |last| last.end)
    }

    /// Loans, each with the time when it is over, in ms.
    pub fn until_ms(&self) -> impl Iterator<Item = (LoanId, u64)> {
        self.loans.iter().map(|(id, loan)| (*id, loan.until_ms))
    }

    /// The queue has lost its end, and what was lent of it: it ends at an offset now.
    pub fn cut(&mut self, end: u64) {
        self.written = None;
        let lost = |(id, loan): (&LoanId, &Loan)| {
            let offsets: Vec<u64> = loan.unacked(*id).filter(|offset| *offset >= end).collect();
            offsets.into_iter().map(|offset| (*id, offset)).collect::<Vec<_>>()
        };
        for (id, offset) in self.loans.iter().flat_map(lost).collect::<Vec<_>>() {
            self.ack(id, offset);
        }
        // What has these offsets from now on is not of those loans.
        for (id, loan) in &mut self.loans {
            let count = (0..loan.count).take_while(|index| loan.offset(*id, *index) < end).count();
            loan.count = count as u32;
            loan.gaps = loan.gaps.take().map(|gaps| gaps[..count].into());
        }
        self.times.retain(|(offset, _)| *offset < end);
        self.next = self.next.min(end);
        self.ahead.retain(|range| range.start < end);
        if let Some(last) = self.ahead.back_mut() {
            last.end = last.end.min(end);
        }
    }

    /// Everything below is done with.
    pub fn floor(&self) -> u64 {
        let unacked = self.loans.iter().filter_map(|(id, loan)| loan.unacked(*id).next());
        unacked.min().map_or(self.next, |first| first.min(self.next))
    }

    /// Lends messages, in the order of their offsets, at most 32; [`advance`](Account::advance) has passed them.
    pub fn lend(&mut self, offsets: &[u64], pop_ms: u64, until_ms: u64, kind: Kind) -> LoanId {
        let (start, end) = (offsets[0], offsets[offsets.len() - 1]);
        // They were passed once; an orderly pop of the same group may have gone back since.
        assert!(offsets.len() <= LOAN_MESSAGES_MAX, "a loan has a bit for each message");
        let follow = end - start == offsets.len() as u64 - 1;
        let distance = |offset: &u64| u32::try_from(offset - start).expect("LOAN_SPAN_MAX and one look are far below");
        let id = LoanId { start, pop_ms };
        let loan = Loan {
            until_ms,
            kind,
            count: offsets.len() as u32,
            left: u32::MAX >> (LOAN_MESSAGES_MAX - offsets.len()),
            moving: 0,
            gaps: (!follow).then(|| offsets.iter().map(distance).collect()),
            each_until_ms: None,
        };
        self.out += offsets.len();
        assert!(self.insert(id, loan).is_none(), "a message is on one loan at a time");
        self.touch(id, kind);
        id
    }

    /// A message is acknowledged, or safe elsewhere.
    pub fn ack(&mut self, id: LoanId, offset: u64) -> Done {
        let Some(loan) = self.loans.get_mut(&id) else { return Done::Stale };
        let Some(index) = loan.index(id, offset) else { return Done::Stale };
        let kind = loan.kind;
        loan.left &= !(1 << index);
        loan.moving &= !(1 << index);
        if loan.left == 0 {
            let last = loan.offset(id, loan.count - 1);
            if loan.kind == Kind::Orderly {
                self.times.retain(|(lent, _)| *lent > last);
            }
            self.remove(id);
        } else if loan.kind == Kind::Orderly {
            // What is left may be over sooner than this one would have been.
            loan.until_ms = loan.free_ms();
        }
        self.out -= 1;
        self.touch(id, kind);
        Done::Now
    }

    fn insert(&mut self, id: LoanId, loan: Loan) -> Option<Loan> {
        self.orderly += usize::from(loan.kind == Kind::Orderly);
        let old = self.loans.insert(id, loan);
        self.orderly -= usize::from(old.as_ref().is_some_and(|old| old.kind == Kind::Orderly));
        old
    }

    fn remove(&mut self, id: LoanId) -> Option<Loan> {
        let old = self.loans.remove(&id)?;
        self.orderly -= usize::from(old.kind == Kind::Orderly);
        Some(old)
    }

    /// A loan changed. An orderly one is written with all that goes with it.
    fn touch(&mut self, id: LoanId, kind: Kind) {
        match kind {
            Kind::Orderly => self.written = None,
            Kind::Plain | Kind::Suspended => _ = self.touched.insert(id),
        }
    }

    /// Several messages of a loan are acknowledged: those of which `is_acked` says so by their distance from the
    /// first. Returns how many.
    pub fn ack_some(&mut self, id: LoanId, is_acked: impl Fn(u64) -> bool) -> usize {
        let Some(loan) = self.loans.get(&id) else { return 0 };
        let acked: Vec<u64> = loan.unacked(id).filter(|offset| is_acked(offset - id.start)).collect();
        acked.iter().filter(|offset| self.ack(id, **offset) == Done::Now).count()
    }

    /// Gives a message another time, under the handle that is returned. `None`: it is not on that loan any more, or on
    /// its way to the retry topic.
    pub fn extend(&mut self, id: LoanId, offset: u64, now_ms: u64, until_ms: u64, kind: Kind) -> Option<LoanId> {
        let loan = self.loans.get_mut(&id)?;
        let index = loan.index(id, offset)?;
        if loan.kind == Kind::Orderly {
            let until = loan.until_ms;
            // Not in the millisecond of this loan, which the next one would be named by too.
            let until_ms = until_ms.max(now_ms + 1);
            loan.each_until_ms.get_or_insert_with(|| Box::new([until; LOAN_MESSAGES_MAX]))[index] = until_ms;
            loan.until_ms = loan.free_ms();
            self.written = None;
            return Some(id);
        }
        if loan.moving & 1 << index != 0 {
            return None;
        }
        self.ack(id, offset);
        Some(self.lend(&[offset], now_ms.max(id.pop_ms + 1), until_ms, kind))
    }

    /// The orderly loan that was lent at this time, ms since 1970. Handles of orderly messages say when, not where it began
    /// once times were changed.
    pub fn orderly_at(&self, pop_ms: u64) -> Option<LoanId> {
        if !self.has_orderly() {
            return None;
        }
        let is_it = |(id, loan): &(&LoanId, &Loan)| loan.kind == Kind::Orderly && id.pop_ms == pop_ms;
        self.loans.iter().find(is_it).map(|(id, _)| *id)
    }

    /// Whether a message is of a loan, acknowledged or not.
    pub fn has(&self, id: LoanId, offset: u64) -> bool {
        self.loans.get(&id).is_some_and(|loan| loan.place(id, offset).is_some())
    }

    /// The loan of this name.
    pub fn loan(&self, id: LoanId) -> Option<&Loan> {
        self.loans.get(&id)
    }

    /// What is left of a loan whose time is over goes to the retry topic from now on. Offsets that go there already
    /// are left out.
    pub fn begin_move(&mut self, id: LoanId, offsets: &mut Vec<u64>) {
        let Some(loan) = self.loans.get_mut(&id) else { return };
        let waiting = loan.left & !loan.moving;
        loan.moving = loan.left;
        offsets.extend(bits(waiting).map(|index| loan.offset(id, index)));
    }

    /// A message could not be written to the retry topic: it is tried again at `until_ms`. False: it is not on that
    /// loan any more.
    pub fn move_again(&mut self, id: LoanId, offset: u64, until_ms: u64) -> bool {
        let Some(loan) = self.loans.get_mut(&id) else { return false };
        let Some(index) = loan.index(id, offset) else { return false };
        loan.moving &= !(1 << index);
        loan.until_ms = until_ms;
        let kind = loan.kind;
        self.touch(id, kind);
        true
    }

    /// A loan that nobody was told of is over, and is no try.
    pub fn give_back(&mut self, id: LoanId, now_ms: u64) {
        match self.loans.get_mut(&id) {
            None => {}
            Some(loan) if loan.kind == Kind::Orderly => self.take_back_as(None, false),
            Some(loan) => {
                (loan.until_ms, loan.kind) = (now_ms, Kind::Suspended);
                self.touch(id, Kind::Suspended);
            }
        }
    }

    /// What is left of a loan waits for longer.
    pub fn postpone(&mut self, id: LoanId, until_ms: u64) {
        let Some(loan) = self.loans.get_mut(&id) else { return };
        loan.until_ms = until_ms;
        let kind = loan.kind;
        self.touch(id, kind);
    }

    /// Whether something is on an orderly loan, over or not.
    pub fn has_orderly(&self) -> bool {
        self.orderly > 0
    }

    /// Until when an orderly loan keeps the queue from others; 0: not at all. `attempt`: who asks again for what it
    /// asked before gets it again.
    pub fn blocked_until_ms(&self, attempt: Option<&str>, now_ms: u64) -> u64 {
        if !self.has_orderly() || attempt.is_some() && attempt == self.attempt.as_deref() {
            return 0;
        }
        let orderly = self.loans.values().filter(|loan| loan.kind == Kind::Orderly);
        orderly.map(Loan::free_ms).filter(|until_ms| *until_ms > now_ms).max().unwrap_or(0)
    }

    /// Orderly loans are over: the queue goes on from the first message that was not acknowledged, and what follows it
    /// on its loan comes after it once more, acknowledged or not, as of a stock broker. `attempt`: as above; the same one
    /// is no further try.
    pub fn take_back(&mut self, attempt: Option<&str>) {
        let is_further = attempt.is_none() || attempt != self.attempt.as_deref();
        self.take_back_as(attempt, is_further);
    }

    /// The same, for somebody who keeps no order: through the retry topic it comes again from then on, and that counts.
    pub fn give_up_order(&mut self) {
        self.take_back_as(None, false);
        self.times.clear();
    }

    /// The offset that is lent next: of orderly loans that are over the first one that is left.
    pub fn next_at(&self, now_ms: u64) -> u64 {
        if !self.has_orderly() || self.blocked_until_ms(None, now_ms) > 0 {
            return self.next;
        }
        let orderly = self.loans.iter().filter(|(_, loan)| loan.kind == Kind::Orderly);
        orderly.filter_map(|(id, loan)| loan.unacked(*id).next()).fold(self.next, u64::min)
    }

    fn take_back_as(&mut self, attempt: Option<&str>, is_further: bool) {
        self.written = None;
        self.attempt = attempt.map(Box::from);
        let is_orderly = |id: &LoanId| self.loans[id].kind == Kind::Orderly;
        let ids: Vec<LoanId> = self.loans.keys().copied().filter(is_orderly).collect();
        let mut back = Vec::new();
        for id in ids {
            let loan = self.remove(id).expect("it was there just now");
            self.out -= loan.left.count_ones() as usize;
            // Not what a log has lost with its end.
            back.extend(loan.rest(id).filter(|offset| *offset < self.next));
        }
        back.sort_unstable();
        let Some(first) = back.first().copied() else { return };
        if is_further {
            self.times.retain(|(lent, _)| *lent >= first);
            for offset in &back {
                match self.times.iter_mut().find(|(lent, _)| lent == offset) {
                    Some((_, times)) => *times += 1,
                    None => self.times.push((*offset, 1)),
                }
            }
        }
        // What lies before went with its segment; and of many the next ones are lent first.
        self.times.retain(|(offset, _)| *offset >= first);
        if self.times.len() > TIMES_MAX {
            self.times.sort_unstable();
            self.times.truncate(TIMES_MAX);
        }
        // What lies between them is not lent again.
        let mut end = self.next;
        self.next = first;
        for offset in back.into_iter().rev() {
            if offset + 1 < end {
                match self.ahead.front_mut().filter(|range| range.start == end) {
                    Some(range) => range.start = offset + 1,
                    None => self.ahead.push_front(offset + 1..end),
                }
            }
            end = offset;
        }
    }

    /// How often an orderly message was lent before.
    pub fn times(&self, offset: u64) -> u32 {
        self.times.iter().find(|(lent, _)| *lent == offset).map_or(0, |(_, times)| *times)
    }

    /// Adds a range that is not to be lent, behind all others.
    fn pass(&mut self, range: Range<u64>) {
        if range.start <= self.next {
            self.next = self.next.max(range.end);
        } else if let Some(last) = self.ahead.back_mut().filter(|last| last.end >= range.start) {
            last.end = last.end.max(range.end);
        } else if !range.is_empty() {
            self.ahead.push_back(range);
        }
    }
}

#[cfg(test)]
mod tests;
