//! What lasts of an account: the group's consumer offset in the queue and its loans, facts of the queue's partition that
//! change together.
//!
//! ```text
//! the offset: | floor u64 BE |
//! and more:   | mark: 9 bytes 0xff, 0xfe | next - floor varint | count varint | distance, length varint | ... |
//!             | attempt bytes varint, attempt | count varint | offset varint, times varint | ... |
//! a loan:     | kind u8 | until ms, messages, left varint | gap varint | ... | until ms varint | ... |
//! ```
//!
//! Everything below the floor is done with. If nothing is on loan, was lent in vain or is passed ahead, this is all; and
//! loans that are there all the same are none: an offset that was written over ends them. Else what lies below `next` is
//! done with, too, but for what is on loan, and so are the ranges, each so far behind the end of the one before it, or
//! `next`. Then the attempt that has the orderly loan, and how often orderly messages were lent in vain.
//!
//! A loan's key has its first message and the time when it was lent. Its value: when it is over, from then; how many
//! messages it was made of, and by a bit for each which are not acknowledged; if they do not follow one another, how far
//! each is behind the one before; if single ones have times of their own, those, from when it was lent.
//!
//! Before loans had facts of their own they stood in the offset's value, behind another mark, 10 bytes 0xff, with ranges
//! between the floor and the mark. Such a value is read, and is written as above with the account's next change. Neither
//! mark is a varint: who does not know it takes the value for damaged.

use super::{Account, Kind, LOAN_MESSAGES_MAX, Loan, LoanId, TIMES_MAX};

/// Most bytes of one range that is passed ahead.
pub const RANGE_BYTES_MAX: usize = 2 * VARINT_BYTES_MAX;
const VARINT_BYTES_MAX: usize = 10;
const MARK: [u8; VARINT_BYTES_MAX] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe];
const INLINE_MARK: [u8; VARINT_BYTES_MAX] = [0xff; VARINT_BYTES_MAX];
/// A longer attempt is not written: who asks again in it waits as anybody else.
const ATTEMPT_BYTES_MAX: usize = 256;

/// Bits of a loan's kind: its messages do not follow one another; some have times of their own.
pub(super) const HAS_GAPS: u8 = 1 << 4;
const HAS_TIMES: u8 = 1 << 5;

impl Account {
    /// Writes the offset's value: some 25 bytes. What is orderly adds 256 of its attempt and some 10 for each message that
    /// was lent in vain, at most 64; ranges passed ahead some 5 each. Those are as many as loans that the log could not
    /// take or that an older value had no room for, until they are lent again.
    pub fn write(&self, out: &mut Vec<u8>) {
        let floor = self.floor();
        out.extend_from_slice(&floor.to_be_bytes());
        if self.loans.is_empty() && self.times.is_empty() && self.ahead.is_empty() {
            return;
        }
        out.extend_from_slice(&MARK);
        push_varint(out, self.next - floor);
        push_varint(out, self.ahead.len() as u64);
        let mut end = self.next;
        for range in &self.ahead {
            push_varint(out, range.start - end);
            push_varint(out, range.end - range.start);
            end = range.end;
        }
        let attempt = self.attempt.as_deref().filter(|attempt| attempt.len() <= ATTEMPT_BYTES_MAX).unwrap_or("");
        push_varint(out, attempt.len() as u64);
        out.extend_from_slice(attempt.as_bytes());
        let times = &self.times[..self.times.len().min(TIMES_MAX)];
        push_varint(out, times.len() as u64);
        for (offset, times) in times {
            push_varint(out, *offset);
            push_varint(out, u64::from(*times));
        }
    }

    /// Writes a loan's value: some 10 bytes, at most 350. False: there is no such loan any more.
    pub fn write_loan(&self, id: LoanId, out: &mut Vec<u8>) -> bool {
        let loan = self.loans.get(&id);
        loan.inspect(|loan| loan.write(id, out)).is_some()
    }

    /// What was written: the offset's value, and those of loans, which are many. `None`: it is damaged.
    pub fn read<'a>(value: &[u8], loans: impl IntoIterator<Item = (LoanId, &'a [u8])>) -> Option<Account> {
        let (floor, mut rest) = value.split_first_chunk::<8>()?;
        let mut account = Account::new(u64::from_be_bytes(*floor));
        let mut passed = Vec::new();
        let mut pass = |from: &mut u64, rest: &mut &[u8]| {
            let start = from.checked_add(varint(rest)?)?;
            *from = start.checked_add(varint(rest)?)?;
            passed.push(start..*from);
            Some(())
        };
        let knows_loans = match rest.strip_prefix(&MARK) {
            Some(after) => {
                rest = after;
                account.next = account.next.checked_add(varint(&mut rest)?)?;
                let mut at = account.next;
                for _ in 0..varint(&mut rest)? {
                    pass(&mut at, &mut rest)?;
                }
                account.read_orderly(&mut rest)?;
                if !rest.is_empty() {
                    return None;
                }
                true
            }
            None => {
                let mut at = account.next;
                while !rest.is_empty() && !rest.starts_with(&INLINE_MARK) {
                    pass(&mut at, &mut rest)?;
                }
                if let Some(mut rest) = rest.strip_prefix(&INLINE_MARK) {
                    account.read_orderly(&mut rest)?;
                    account.read_inline(rest)?;
                }
                false
            }
        };
        for (id, mut value) in loans {
            match knows_loans {
                true => {
                    let (_, loan) = Loan::read(&mut value, |_| Some(id))?;
                    account.hold(id, loan).filter(|()| value.is_empty())?;
                }
                false => _ = account.touched.insert(id),
            }
        }
        let lent = account.loans.iter().flat_map(|(id, loan)| loan.unacked(*id));
        passed.extend(lent.map(|offset| offset..offset + 1));
        passed.sort_unstable_by_key(|range| range.start);
        passed.into_iter().for_each(|range| account.pass(range));
        Some(account)
    }

    fn read_orderly(&mut self, rest: &mut &[u8]) -> Option<()> {
        let bytes = usize::try_from(varint(rest)?).ok()?;
        let (attempt, after) = rest.split_at_checked(bytes)?;
        self.attempt = (!attempt.is_empty()).then(|| std::str::from_utf8(attempt).map(Box::from)).transpose().ok()?;
        *rest = after;
        let count = varint(rest)?;
        if count > TIMES_MAX as u64 {
            return None;
        }
        for _ in 0..count {
            self.times.push((varint(rest)?, u32::try_from(varint(rest)?).ok()?));
        }
        Some(())
    }

    /// Loans in the offset's value: from the lowest start and time, which come first. They are to be written apart.
    fn read_inline(&mut self, mut rest: &[u8]) -> Option<()> {
        let first = LoanId { start: varint(&mut rest)?, pop_ms: varint(&mut rest)? };
        while !rest.is_empty() {
            let (id, loan) = Loan::read(&mut rest, |rest| {
                let (start, pop_ms) =
                    (first.start.checked_add(varint(rest)?)?, first.pop_ms.checked_add(varint(rest)?)?);
                Some(LoanId { start, pop_ms })
            })?;
            self.hold(id, loan)?;
            self.touched.insert(id);
        }
        Some(())
    }

    fn hold(&mut self, id: LoanId, loan: Loan) -> Option<()> {
        self.out += loan.left.count_ones() as usize;
        self.loans.insert(id, loan).is_none().then_some(())
    }
}

impl Loan {
    fn write(&self, id: LoanId, out: &mut Vec<u8>) {
        let mut kind = match self.kind {
            Kind::Plain => 0,
            Kind::Suspended => 1,
            Kind::Orderly => 2,
        };
        kind |= if self.gaps.is_some() { HAS_GAPS } else { 0 };
        kind |= if self.each_until_ms.is_some() { HAS_TIMES } else { 0 };
        out.push(kind);
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

    /// `id` reads what names it, behind its kind, or knows it.
    fn read(rest: &mut &[u8], id: impl FnOnce(&mut &[u8]) -> Option<LoanId>) -> Option<(LoanId, Loan)> {
        let (kind, after) = rest.split_first()?;
        *rest = after;
        let id = id(rest)?;
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
