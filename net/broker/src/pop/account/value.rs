//! What lasts of an account: the group's consumer offset in the queue, one fact of the queue's partition.
//!
//! ```text
//! | floor u64 BE | distance varint, length varint | ... |
//! | mark: 10 bytes 0xff | attempt bytes varint, attempt | count varint | offset varint, times varint | ... |
//! | start varint, pop ms varint | loan | ... |
//! a loan: | kind u8 | start, pop ms, until ms, count, left varint | gap varint | ... | until ms varint | ... |
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

use std::ops::Range;

use super::{Account, Kind, LOAN_MESSAGES_MAX, Loan, LoanId, TIMES_MAX};

/// Most bytes that one message on loan adds to the first line.
pub const MESSAGE_BYTES_MAX: usize = 2 * VARINT_BYTES_MAX;
/// Loans are written until they have so many bytes. 32 KiB, some 2,500 loans, of a queue by one group. Messages of the
/// others are lent again after a restart.
pub const LOANS_BYTES_MAX: usize = 32 << 10;
const VARINT_BYTES_MAX: usize = 10;
const MARK: [u8; VARINT_BYTES_MAX] = [0xff; VARINT_BYTES_MAX];
/// Longest id of an attempt, in bytes. Stock ones have 36.
pub(in crate::pop) const ATTEMPT_BYTES_MAX: usize = 256;

/// Bits of a loan's kind: its messages do not follow one another; some have times of their own.
pub(super) const HAS_GAPS: u8 = 1 << 4;
const HAS_TIMES: u8 = 1 << 5;

impl Account {
    /// Writes what must last. Returns how many bytes say what is done with: they are a value, too, after which all that
    /// is on loan is lent again. Cost: all loans.
    pub fn write(&self, out: &mut Vec<u8>) -> usize {
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
        let done_bytes = out.len();
        if !self.loans.is_empty() || !self.times.is_empty() {
            self.write_loans(out);
        }
        done_bytes
    }

    fn write_loans(&self, out: &mut Vec<u8>) {
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
        let first = LoanId {
            start: self.loans.keys().map(|id| id.start).min().unwrap_or(0),
            pop_ms: self.loans.keys().map(|id| id.pop_ms).min().unwrap_or(0),
        };
        push_varint(out, first.start);
        push_varint(out, first.pop_ms);
        let until = out.len() + LOANS_BYTES_MAX;
        // Orderly ones are few, and hold their queue.
        for is_orderly in [true, false] {
            for (id, loan) in self.loans.iter().filter(|(_, loan)| (loan.kind == Kind::Orderly) == is_orderly) {
                if out.len() >= until {
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
        if let Some(rest) = rest.strip_prefix(&MARK) {
            account.read_loans(rest)?;
            let lent = account.loans.iter().flat_map(|(id, loan)| loan.unacked(*id));
            passed.extend(lent.map(|offset| offset..offset + 1));
            passed.sort_unstable_by_key(|range| range.start);
        }
        passed.into_iter().for_each(|range| account.pass(range));
        Some(account)
    }

    fn read_loans(&mut self, mut rest: &[u8]) -> Option<()> {
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
        while !rest.is_empty() {
            let (id, loan) = Loan::read(first, &mut rest)?;
            self.out += loan.left.count_ones() as usize;
            if self.loans.insert(id, loan).is_some() {
                return None;
            }
        }
        Some(())
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
        let id =
            LoanId { start: first.start.checked_add(varint(rest)?)?, pop_ms: first.pop_ms.checked_add(varint(rest)?)? };
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
