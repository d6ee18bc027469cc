//! What lasts of an account: the group's consumer offset in the queue, one fact of the queue's partition.
//!
//! ```text
//! | floor u64 BE | distance varint, length varint | ... |
//! | mark: 10 bytes 0xff | attempt bytes varint, attempt | count varint | offset varint, times varint | ... |
//! | start varint, pop ms varint | loan | ... | change | ... |
//! a loan: | kind u8 | start, pop ms, until ms, count, left varint | gap varint | ... | until ms varint | ... |
//! a change: | 4 u8 | next offset varint | loan, or that it is over: 3 u8 | start, pop ms varint | ... |
//! ```
//!
//! Everything below the floor is done with, and so are the ranges, each so far behind the end of the one before it. If
//! nothing is on loan and nothing was lent in vain, this is all.
//!
//! Behind the mark, which is no varint, so that who does not know it takes the value for damaged: the attempt that has
//! the orderly loan; how often orderly messages were lent in vain; the lowest start and time of all loans; and the
//! loans, each from there. Of a loan: how many messages, and by a bit for each which are not acknowledged; if they do
//! not follow one another, how far each is behind the one before; if single ones have times of their own, those, from
//! when it was lent.
//!
//! With loans the value goes on: a change says how far was lent since, and how loans are that changed. So what a pop and an
//! acknowledgement write does not grow with what is on loan. When changes are as long as what they change, all is written
//! anew.

use std::ops::Range;

use engine::limits::FACT_BYTES_MAX;

use super::{Account, Kind, LOAN_MESSAGES_MAX, Loan, LoanId, TIMES_MAX};

/// Most bytes that one message on loan adds to the first line.
pub const MESSAGE_BYTES_MAX: usize = 2 * VARINT_BYTES_MAX;
/// Loans are written until a value has so many bytes, some 60,000 loans: more than there are, but for a group that has
/// very many messages on loan, each alone and none behind another. Those that are left out are lent again after a restart.
pub const VALUE_BYTES_MAX: usize = FACT_BYTES_MAX - KEY_BYTES_MAX - LOAN_BYTES_MAX;
/// Longest key of the fact, with its lengths.
const KEY_BYTES_MAX: usize = 1024;
/// Longest loan: its fields, a gap and a time for each message.
const LOAN_BYTES_MAX: usize = 1 + (5 + 2 * LOAN_MESSAGES_MAX) * VARINT_BYTES_MAX;
/// Bytes of changes before all is written anew, at least.
const CHANGES_BYTES_MIN: usize = 512;
const VARINT_BYTES_MAX: usize = 10;
const MARK: [u8; VARINT_BYTES_MAX] = [0xff; VARINT_BYTES_MAX];
/// Longest id of an attempt, in bytes. Stock ones have 36.
pub(in crate::pop) const ATTEMPT_BYTES_MAX: usize = 256;

/// Bits of a loan's kind: its messages do not follow one another; some have times of their own.
pub(super) const HAS_GAPS: u8 = 1 << 4;
const HAS_TIMES: u8 = 1 << 5;
/// In place of a loan's kind: it is over; and how far was lent since, with which a change begins.
const OVER: u8 = 3;
const NEXT: u8 = 4;

/// What is written of an account, and from where loans count there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    first: LoanId,
    next: u64,
    /// Bytes when all was written, and of it with the changes since.
    whole_bytes: usize,
    bytes: usize,
}

impl Account {
    /// Appends what changed since it was written, perhaps nothing; `None`: all must be written. Cost: loans that changed.
    pub fn write_changes(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let Written { first, next, whole_bytes, bytes } = self.written?;
        if self.touched.is_empty() && self.next == next {
            return Some(());
        }
        let counts_from = |id: &LoanId| id.start >= first.start && id.pop_ms >= first.pop_ms;
        // Without a loan all is a few bytes.
        if self.loans.is_empty() || !self.touched.iter().all(counts_from) {
            return None;
        }
        let begin = out.len();
        out.push(NEXT);
        push_varint(out, self.next);
        for id in &self.touched {
            match self.loans.get(id) {
                Some(loan) => loan.write(*id, first, out),
                None => {
                    out.push(OVER);
                    push_varint(out, id.start - first.start);
                    push_varint(out, id.pop_ms - first.pop_ms);
                }
            }
        }
        let bytes = bytes + out.len() - begin;
        if bytes > (2 * whole_bytes).max(whole_bytes + CHANGES_BYTES_MIN).min(VALUE_BYTES_MAX) {
            out.truncate(begin);
            return None;
        }
        self.touched.clear();
        self.written = Some(Written { first, next: self.next, whole_bytes, bytes });
        Some(())
    }

    /// What was written is not known to be there.
    pub fn is_unwritten(&mut self) {
        self.written = None;
    }

    /// How long what is written should be. `None`: it does not matter.
    pub fn written_bytes(&self) -> Option<usize> {
        self.written.map(|written| written.bytes)
    }

    /// As [`write`](Account::write); changes are written behind it from now on.
    pub fn write_whole(&mut self, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        let done_bytes = self.write(out);
        let bytes = out.len() - begin;
        self.touched.clear();
        // Of loans that were left out nothing is written.
        let may_go_on = !self.loans.is_empty() && bytes < VALUE_BYTES_MAX;
        self.written = may_go_on.then(|| Written { first: self.first(), next: self.next, whole_bytes: bytes, bytes });
        done_bytes
    }

    /// From where loans count.
    fn first(&self) -> LoanId {
        LoanId {
            start: self.loans.keys().map(|id| id.start).min().unwrap_or(0),
            pop_ms: self.loans.keys().map(|id| id.pop_ms).min().unwrap_or(0),
        }
    }

    /// Writes what must last. Returns how many bytes say what is done with: they are a value, too, after which all that
    /// is on loan is lent again. Cost: all loans.
    pub fn write(&self, out: &mut Vec<u8>) -> usize {
        let begin = out.len();
        let mut unacked: Vec<u64> = self.loans.iter().flat_map(|(id, loan)| loan.unacked(*id)).collect();
        unacked.sort_unstable();
        let floor = unacked.first().map_or(self.next, |first| self.next.min(*first));
        out.extend_from_slice(&floor.to_be_bytes());
        let mut end = floor;
        let mut put = |range: Range<u64>| {
            if !range.is_empty() {
                push_varint(out, range.start - end);
                push_varint(out, range.end - range.start);
                end = range.end;
            }
        };
        let mut unacked = unacked.into_iter().peekable();
        for range in std::iter::once(floor..self.next).chain(self.ahead.iter().cloned()) {
            let mut from = range.start;
            while let Some(offset) = unacked.next_if(|offset| *offset < range.end) {
                put(from..offset);
                from = offset + 1;
            }
            put(from..range.end);
        }
        let done_bytes = out.len() - begin;
        if !self.loans.is_empty() || !self.times.is_empty() {
            self.write_loans(begin, out);
        }
        done_bytes
    }

    /// `begin`: where the value does.
    fn write_loans(&self, begin: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&MARK);
        let attempt = self.attempt.as_deref().filter(|attempt| attempt.len() <= ATTEMPT_BYTES_MAX).unwrap_or("");
        push_varint(out, attempt.len() as u64);
        out.extend_from_slice(attempt.as_bytes());
        let times = &self.times[..self.times.len().min(TIMES_MAX)];
        push_varint(out, times.len() as u64);
        for (offset, times) in times {
            push_varint(out, *offset);
            push_varint(out, u64::from(*times));
        }
        let first = self.first();
        push_varint(out, first.start);
        push_varint(out, first.pop_ms);
        // Orderly ones are few, and hold their queue.
        for is_orderly in [true, false] {
            for (id, loan) in self.loans.iter().filter(|(_, loan)| (loan.kind == Kind::Orderly) == is_orderly) {
                if out.len() - begin >= VALUE_BYTES_MAX {
                    return;
                }
                loan.write(*id, first, out);
            }
        }
    }

    /// What [`write`](Account::write) wrote. `None`: it is damaged.
    pub fn read(value: &[u8]) -> Option<Account> {
        let (floor, mut rest) = value.split_first_chunk::<8>()?;
        let mut account = Account::new(u64::from_be_bytes(*floor));
        let (mut passed, mut at) = (Vec::new(), account.next);
        while !rest.is_empty() && !rest.starts_with(&MARK) {
            let start = at.checked_add(varint(&mut rest)?)?;
            at = start.checked_add(varint(&mut rest)?)?;
            passed.push(start..at);
        }
        let mut changes = None;
        if let Some(rest) = rest.strip_prefix(&MARK) {
            changes = account.read_loans(rest)?;
            let lent = account.loans.iter().flat_map(|(id, loan)| loan.unacked(*id));
            passed.extend(lent.map(|offset| offset..offset + 1));
            passed.sort_unstable_by_key(|range| range.start);
        }
        passed.into_iter().for_each(|range| account.pass(range));
        if let Some((first, changes)) = changes {
            account.read_changes(first, changes)?;
        }
        Some(account)
    }

    /// Reads what follows the mark up to the first change. Gives from where loans count, and the changes.
    fn read_loans<'a>(&mut self, mut rest: &'a [u8]) -> Option<Option<(LoanId, &'a [u8])>> {
        let bytes = usize::try_from(varint(&mut rest)?).ok()?;
        let (attempt, mut rest) = rest.split_at_checked(bytes)?;
        self.attempt = (!attempt.is_empty()).then(|| std::str::from_utf8(attempt).map(Box::from)).transpose().ok()?;
        let count = varint(&mut rest)?;
        if count > TIMES_MAX as u64 {
            return None;
        }
        for _ in 0..count {
            self.times.push((varint(&mut rest)?, u32::try_from(varint(&mut rest)?).ok()?));
        }
        let first = LoanId { start: varint(&mut rest)?, pop_ms: varint(&mut rest)? };
        while let Some(kind) = rest.first() {
            if *kind == NEXT {
                return Some(Some((first, rest)));
            }
            let (id, loan) = Loan::read(first, &mut rest)?;
            self.out += loan.left.count_ones() as usize;
            if self.insert(id, loan).is_some() {
                return None;
            }
        }
        Some(None)
    }

    fn read_changes(&mut self, first: LoanId, mut rest: &[u8]) -> Option<()> {
        while let Some((kind, after)) = rest.split_first() {
            match *kind {
                NEXT => {
                    rest = after;
                    self.advance(varint(&mut rest)?);
                }
                OVER => {
                    rest = after;
                    let id = LoanId::read(first, &mut rest)?;
                    self.put(id, None);
                }
                _ => {
                    let (id, loan) = Loan::read(first, &mut rest)?;
                    self.put(id, Some(loan));
                }
            }
        }
        Some(())
    }

    /// A loan is as it says; `None`: over.
    fn put(&mut self, id: LoanId, loan: Option<Loan>) {
        let left = |loan: &Loan| loan.left.count_ones() as usize;
        self.out += loan.as_ref().map_or(0, left);
        let old = match loan {
            Some(loan) => self.insert(id, loan),
            None => self.remove(id),
        };
        self.out -= old.as_ref().map_or(0, left);
    }
}

impl LoanId {
    fn read(first: LoanId, rest: &mut &[u8]) -> Option<LoanId> {
        let start = first.start.checked_add(varint(rest)?)?;
        Some(LoanId { start, pop_ms: first.pop_ms.checked_add(varint(rest)?)? })
    }
}

impl Loan {
    fn write(&self, id: LoanId, first: LoanId, out: &mut Vec<u8>) {
        let mut kind = match self.kind {
            Kind::Plain => 0,
            Kind::Suspended => 1,
            Kind::Orderly => 2,
        };
        kind |= if self.gaps.is_some() { HAS_GAPS } else { 0 };
        kind |= if self.each_until_ms.is_some() { HAS_TIMES } else { 0 };
        out.push(kind);
        push_varint(out, id.start - first.start);
        push_varint(out, id.pop_ms - first.pop_ms);
        push_varint(out, self.until_ms.saturating_sub(id.pop_ms));
        push_varint(out, self.count.into());
        push_varint(out, self.left.into());
        let mut before = 0;
        for distance in self.gaps.iter().flatten() {
            push_varint(out, u64::from(distance - before));
            before = *distance;
        }
        for until_ms in self.each_until_ms.iter().flat_map(|each| &each[..self.count as usize]) {
            push_varint(out, until_ms.saturating_sub(id.pop_ms));
        }
    }

    fn read(first: LoanId, rest: &mut &[u8]) -> Option<(LoanId, Loan)> {
        let (kind, after) = rest.split_first()?;
        *rest = after;
        let id = LoanId::read(first, rest)?;
        let until_ms = id.pop_ms.checked_add(varint(rest)?)?;
        let count = u32::try_from(varint(rest)?).ok().filter(|count| (1..=LOAN_MESSAGES_MAX as u32).contains(count))?;
        let left = u32::try_from(varint(rest)?).ok().filter(|left| *left != 0 && left.leading_zeros() >= 32 - count)?;
        let mut loan = Loan {
            until_ms,
            kind: match kind & !(HAS_GAPS | HAS_TIMES) {
                0 => Kind::Plain,
                1 => Kind::Suspended,
                2 => Kind::Orderly,
                _ => return None,
            },
            count,
            left,
            moving: 0,
            gaps: None,
            each_until_ms: None,
        };
        if kind & HAS_GAPS != 0 {
            let (mut gaps, mut distance) = (Vec::with_capacity(count as usize), 0u32);
            for index in 0..count {
                let gap = u32::try_from(varint(rest)?).ok().filter(|gap| (*gap == 0) == (index == 0))?;
                distance = distance.checked_add(gap)?;
                gaps.push(distance);
            }
            loan.gaps = Some(gaps.into());
        }
        if kind & HAS_TIMES != 0 {
            let mut each = Box::new([until_ms; LOAN_MESSAGES_MAX]);
            for until_ms in &mut each[..count as usize] {
                *until_ms = id.pop_ms.checked_add(varint(rest)?)?;
            }
            loan.each_until_ms = Some(each);
        }
        // Behind its last message there is an offset.
        let last = loan.gaps.as_ref().map_or(count - 1, |gaps| gaps[count as usize - 1]);
        id.start.checked_add(u64::from(last))?.checked_add(1)?;
        Some((id, loan))
    }
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for place in 0..VARINT_BYTES_MAX {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(7 * place as u32)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
