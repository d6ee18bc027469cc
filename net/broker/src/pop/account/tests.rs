//! Goal: nothing that is not acknowledged is lost, nothing that is acknowledged durably comes again, and no message
//! is on two loans. Method: random loans, acknowledgements, changes, retries, restarts and resets against a model that knows
//! the state of every offset. Repeat: the seed in the message.

use super::value::HAS_GAPS;
use super::*;
use crate::desk::Random;
use std::collections::BTreeSet;

fn written(account: &Account) -> Vec<u8> {
    let mut value = Vec::new();
    account.write(&mut value);
    value
}

/// The part of it that says what is done with.
fn done(account: &Account) -> Vec<u8> {
    let mut value = Vec::new();
    let bytes = account.write(&mut value);
    value.truncate(bytes);
    value
}

#[derive(Default)]
struct Model {
    account: Account,
    /// What is written of it, and how often it went on.
    value: Vec<u8>,
    went_on: usize,
    /// Handles that were given out, also stale ones, with the messages of each.
    handles: Vec<(LoanId, Vec<u64>)>,
    /// What is on loan, and under which handle.
    out: std::collections::BTreeMap<u64, LoanId>,
    done: BTreeSet<u64>,
    max: u64,
    now_ms: u64,
}

impl Model {
    fn lend(&mut self, random: &mut Random, kind: Kind) {
        let mut offsets = Vec::new();
        let count = 1 + random.draw() % 32;
        while (offsets.len() as u64) < count && self.account.next() < self.max {
            let until = self.account.next() + self.account.stretch().min(self.max - self.account.next()).min(7);
            for offset in self.account.next()..until {
                // Some are unwanted.
                if !random.draw().is_multiple_of(4) && (offsets.len() as u64) < count {
                    offsets.push(offset);
                } else {
                    self.done.insert(offset);
                }
            }
            self.account.advance(until);
        }
        if offsets.is_empty() {
            return;
        }
        for offset in &offsets {
            assert!(!self.done.contains(offset), "{offset} was acknowledged and is lent");
            assert!(!self.out.contains_key(offset), "{offset} is lent twice");
        }
        let id = self.account.lend(&offsets, self.now_ms, self.now_ms + 100, kind);
        self.out.extend(offsets.iter().map(|offset| (*offset, id)));
        self.handles.push((id, offsets));
    }

    fn handle(&self, random: &mut Random) -> Option<(LoanId, u64)> {
        let recent = self.handles.len().min(40);
        if recent == 0 {
            return None;
        }
        let (id, offsets) = &self.handles[self.handles.len() - 1 - (random.draw() as usize % recent)];
        Some((*id, offsets[random.draw() as usize % offsets.len()]))
    }

    fn ack(&mut self, id: LoanId, offset: u64) {
        let is_out = self.out.get(&offset) == Some(&id);
        assert_eq!(self.account.ack(id, offset) == Done::Now, is_out, "{offset} of {id:?}");
        if is_out {
            self.out.remove(&offset);
            self.done.insert(offset);
        }
    }

    fn check(&self) {
        assert_eq!(self.account.out(), self.out.len());
        let read = Account::read(&done(&self.account)).expect("what is written is read");
        let floor = self.out.keys().next().map_or(self.account.next(), |first| *first.min(&self.account.next()));
        assert_eq!((read.floor(), self.account.floor()), (floor, floor));
        let mut at = read;
        for offset in floor..self.max.max(self.account.next()) {
            let is_done = offset < at.next();
            if !is_done {
                assert!(at.stretch() > 0);
            }
            assert_eq!(is_done, self.done.contains(&offset), "{offset}");
            at.advance(offset + 1);
        }
    }

    /// Writes what changed.
    fn keep(&mut self) {
        match self.account.written_bytes() {
            Some(bytes) if self.account.write_changes(&mut self.value).is_some() => {
                assert_eq!(self.account.written_bytes(), Some(self.value.len()));
                self.went_on += usize::from(bytes < self.value.len());
            }
            _ => {
                self.value.clear();
                self.account.write_whole(&mut self.value);
            }
        }
        let again = Account::read(&self.value).expect("what is written is read");
        assert_eq!(written(&again), written(&self.account), "whole or in changes, it is the same");
        assert_eq!((again.out(), again.end()), (self.account.out(), self.account.end()));
    }

    /// What is on loan is so still, under the handle that it had.
    fn restart(&mut self) {
        self.keep();
        self.account = Account::read(&self.value).unwrap();
    }

    /// What was on loan is lent again: there was no room to write it.
    fn restart_without_loans(&mut self) {
        self.account = Account::read(&done(&self.account)).unwrap();
        self.out.clear();
    }
}

#[test]
fn a_random_life_loses_nothing() {
    let mut went_on = 0;
    for seed in 0..400 {
        let random = &mut Random(seed);
        let mut model = Model { account: Account::new(3), ..Model::default() };
        model.done.extend(0..3);
        println!("seed {seed}");
        for _ in 0..300 {
            model.now_ms += random.draw() % 3;
            match random.draw() % 16 {
                0..4 => model.max += random.draw() % 40,
                4..8 => model.lend(random, Kind::Plain),
                8..12 => {
                    if let Some((id, offset)) = model.handle(random) {
                        model.ack(id, offset);
                    }
                }
                12 => {
                    if let Some((id, _)) = model.handle(random) {
                        let acked: Vec<u64> = (0..64).map(|_| random.draw() % 2).collect();
                        let is_acked = |distance: u64| acked.get(distance as usize) == Some(&1);
                        let count = model.account.ack_some(id, is_acked);
                        let before = model.out.len();
                        let done = model.out.extract_if(.., |offset, of| *of == id && is_acked(offset - id.start));
                        model.done.extend(done.map(|(offset, _)| offset));
                        assert_eq!(before - model.out.len(), count);
                    }
                }
                13 => {
                    if let Some((id, offset)) = model.handle(random) {
                        let is_out = model.out.get(&offset) == Some(&id);
                        let now_ms = model.now_ms;
                        let new = model.account.extend(id, offset, now_ms, now_ms + 50, Kind::Suspended);
                        assert_eq!(new.is_some(), is_out, "a stale handle changes nothing");
                        if let Some(new) = new {
                            model.out.insert(offset, new);
                            model.handles.push((new, vec![offset]));
                        }
                    }
                }
                14 if random.draw().is_multiple_of(8) => match random.draw() % 4 {
                    0 => model.restart_without_loans(),
                    _ => model.restart(),
                },
                15 if random.draw().is_multiple_of(32) => {
                    let floor = random.draw() % (model.max + 1);
                    if floor != model.account.floor() {
                        model.account.reset(floor);
                        model.done = (0..floor).collect();
                        model.out.clear();
                    }
                }
                _ => {
                    // A loan is over: what is left moves, or fails to.
                    let Some((id, _)) = model.handle(random) else { continue };
                    let mut moving = Vec::new();
                    model.account.begin_move(id, &mut moving);
                    let expected: Vec<u64> =
                        model.out.iter().filter(|(_, of)| **of == id).map(|(offset, _)| *offset).collect();
                    assert_eq!(moving, expected);
                    let mut again = Vec::new();
                    model.account.begin_move(id, &mut again);
                    assert!(again.is_empty(), "nothing moves twice");
                    for offset in moving {
                        if random.draw().is_multiple_of(4) {
                            assert!(model.account.move_again(id, offset, model.now_ms + 1));
                        } else {
                            model.ack(id, offset);
                        }
                    }
                }
            }
            model.check();
            if random.draw().is_multiple_of(3) {
                model.keep();
            }
        }
        went_on += model.went_on;
        // In the end everything is lent and acknowledged.
        if random.draw().is_multiple_of(2) {
            model.restart_without_loans();
        }
        while model.account.next() < model.max {
            model.lend(random, Kind::Plain);
        }
        for (offset, id) in model.out.clone() {
            model.ack(id, offset);
        }
        assert!((0..model.max).all(|offset| model.done.contains(&offset)), "seed {seed}");
        assert_eq!((written(&model.account).len(), model.account.loans()), (8, 0));
    }
    assert!(went_on > 10_000, "{went_on}");
}

#[test]
fn what_a_change_writes_does_not_grow_with_what_is_on_loan() {
    let mut account = Account::new(0);
    let (mut whole, mut changes, mut bytes) = (0, 0, 0);
    for round in 0..10_000 {
        account.advance(round * 2 + 2);
        let id = account.lend(&[round * 2, round * 2 + 1], 1_000 + round, 60_000 + round, Kind::Plain);
        account.ack(id, round * 2);
        let mut value = Vec::new();
        if account.write_changes(&mut value).is_some() {
            assert!(value.len() <= 24, "{}", value.len());
            changes += 1;
        } else {
            account.write_whole(&mut value);
            whole += 1;
        }
        bytes += value.len();
    }
    assert!(whole < 40 && bytes < 10_000 * 50, "{whole} times whole, {changes} changes, {bytes} bytes");
}

#[test]
fn an_orderly_queue_waits_and_goes_on_from_the_first_that_is_left() {
    let mut account = Account::new(10);
    account.advance(15);
    let id = account.lend(&[10, 11, 12, 13, 14], 1_000, 2_000, Kind::Orderly);
    account.take_back(Some("a"));
    assert_eq!((account.next(), account.out()), (10, 0));
    account.advance(15);
    let id = LoanId { pop_ms: 1_001, ..id };
    assert_eq!(account.lend(&[10, 11, 12, 13, 14], 1_001, 2_000, Kind::Orderly), id);
    assert_eq!(account.blocked_until_ms(None, 1_500), 2_000);
    assert_eq!(account.blocked_until_ms(Some("b"), 1_999), 2_000);
    assert_eq!((account.blocked_until_ms(Some("a"), 1_500), account.blocked_until_ms(None, 2_000)), (0, 0));
    assert_eq!((account.ack(id, 10), account.ack(id, 12)), (Done::Now, Done::Now));
    assert_eq!([1_000, 1_001].map(|pop_ms| account.orderly_at(pop_ms)), [None, Some(id)]);
    assert_eq!([11, 12, 15].map(|offset| account.has(id, offset)), [true, true, false]);
    assert_eq!(account.ack(id, 12), Done::Stale, "a second time");
    // Given back early, one by one: the last one decides.
    for (offset, until_ms, free_ms) in [(11, 1_600, 2_000), (13, 1_700, 2_000), (14, 1_650, 1_700)] {
        assert_eq!(account.extend(id, offset, 1_550, until_ms, Kind::Orderly), Some(id));
        assert_eq!(account.blocked_until_ms(None, 1_550), free_ms);
    }
    // What was acknowledged behind the first that is left comes after it once more.
    account.take_back(None);
    assert_eq!((account.next(), account.stretch(), account.out()), (11, u64::MAX, 0));
    assert_eq!([10, 11, 12, 14].map(|offset| account.times(offset)), [0, 2, 2, 2]);
    assert_eq!(done(&account), 11u64.to_be_bytes());
    // One is wanted by nobody any more, and is between them.
    account.advance(15);
    let id = account.lend(&[11, 13, 14], 1_700, 9_000, Kind::Orderly);
    assert_eq!(account.ack_some(id, |distance| distance != 0), 2);
    assert_eq!((account.floor(), account.out()), (11, 1));
    assert_eq!(done(&account), [&11u64.to_be_bytes()[..], &[1, 3]].concat());
    account.take_back(None);
    assert_eq!((account.next(), account.stretch(), account.out()), (11, 1, 0));
    assert_eq!(done(&account), [&11u64.to_be_bytes()[..], &[1, 1]].concat());
    account.advance(12);
    assert_eq!((account.next(), account.stretch()), (13, u64::MAX));
    account.advance(15);
    let id = account.lend(&[11, 13, 14], 1_800, 9_000, Kind::Orderly);
    assert_eq!(account.ack_some(id, |distance| distance != 2), 2);
    assert_eq!((account.times(11), account.times(13), account.floor()), (3, 3, 13));
    assert_eq!(account.ack(id, 13), Done::Now);
    assert_eq!((account.floor(), account.is_quiet(0)), (15, true));
}

#[test]
fn what_is_left_of_an_order_is_for_those_who_keep_none() {
    let mut account = Account::new(5);
    account.advance(8);
    let orderly = account.lend(&[5, 6, 7], 1_000, 2_000, Kind::Orderly);
    account.take_back(Some("a"));
    account.advance(8);
    let orderly = LoanId { pop_ms: 1_100, ..orderly };
    assert_eq!(account.lend(&[5, 6, 7], 1_100, 2_000, Kind::Orderly), orderly);
    assert_eq!((account.ack(orderly, 5), account.times(6)), (Done::Now, 1));
    account.advance(9);
    let plain = account.lend(&[8], 1_500, 9_000, Kind::Plain);
    assert_eq!((account.next_at(1_999), account.next_at(2_000), account.next()), (9, 6, 9));
    account.give_up_order();
    assert_eq!((account.next(), account.stretch(), account.out()), (6, 2, 1));
    assert_eq!((account.has_orderly(), account.times(6)), (false, 0), "what comes again does so by the retry topic");
    account.advance(8);
    let again = account.lend(&[6, 7], 2_000, 3_000, Kind::Plain);
    let mut value = Vec::new();
    account.write(&mut value);
    let read = Account::read(&value).unwrap();
    assert_eq!((read.floor(), read.next(), read.out(), read.has_orderly()), (6, 9, 3, false));
    for (loan, offset) in [(again, 6), (plain, 8), (again, 7)] {
        assert_eq!(account.ack(loan, offset), Done::Now);
    }
    value.clear();
    account.write(&mut value);
    assert_eq!(value, 9_u64.to_be_bytes(), "it is an offset as any");
}

#[test]
fn how_often_messages_were_lent_in_vain_is_known_of_a_few() {
    let mut account = Account::new(0);
    for round in 0..100 {
        // Retention takes what nobody acknowledges.
        let offsets: Vec<u64> = (round * 32..round * 32 + 32).collect();
        account.advance(round * 32);
        account.advance(round * 32 + 32);
        account.lend(&offsets, round, round + 1, Kind::Orderly);
        assert!(!account.is_quiet(round) && account.is_quiet(round + 1));
        account.take_back(None);
        assert!(account.times.len() <= TIMES_MAX, "{}", account.times.len());
    }
}

#[test]
fn a_queue_that_lost_its_end_keeps_what_is_left_on_loan() {
    let mut account = Account::read(&[&5u64.to_be_bytes()[..], &[10, 4, 3, 9]].concat()).unwrap();
    account.advance(10);
    let id = account.lend(&[5, 8, 9], 1_000, 2_000, Kind::Plain);
    account.cut(9);
    assert_eq!((account.next(), account.floor(), account.out(), account.stretch()), (9, 5, 2, u64::MAX));
    assert_eq!((account.ack(id, 9), account.ack(id, 8)), (Done::Stale, Done::Now));
    let mut account = Account::read(&[&5u64.to_be_bytes()[..], &[10, 4, 3, 9]].concat()).unwrap();
    account.cut(17);
    assert_eq!((account.next(), account.stretch()), (5, 10));
    account.advance(15);
    assert_eq!(account.next(), 17, "what was done with before the end is done with");
    // What follows a message that is left comes again with it, but not what is lost.
    let mut account = Account::new(5);
    account.advance(9);
    let id = account.lend(&[5, 6, 7, 8], 1_000, 2_000, Kind::Orderly);
    assert_eq!((account.ack(id, 6), account.ack(id, 8)), (Done::Now, Done::Now));
    account.cut(7);
    account.take_back(None);
    assert_eq!((account.next(), account.stretch(), account.out()), (5, u64::MAX, 0));
    // What has the lost offsets by then is somebody else's.
    for offsets in [&[5, 6, 7, 8][..], &[5, 7, 8]] {
        let mut account = Account::new(5);
        account.advance(9);
        account.lend(offsets, 1_000, 2_000, Kind::Orderly);
        account.cut(7);
        account.advance(9);
        account.lend(&[7, 8], 2_000, 9_000, Kind::Plain);
        account.take_back(None);
        let wanted = if offsets.len() == 4 { 2 } else { 1 };
        assert_eq!((account.next(), account.stretch(), account.out()), (5, wanted, 2));
    }
}

#[test]
fn an_orderly_message_that_comes_again_now_does_so_under_another_name() {
    let mut account = Account::new(5);
    account.advance(6);
    let id = account.lend(&[5], 1_000, 9_000, Kind::Orderly);
    assert_eq!(account.extend(id, 5, 1_000, 1_000, Kind::Plain), Some(id));
    assert!(account.blocked_until_ms(None, 1_000) > 0, "a loan of this millisecond would have its name");
    assert_eq!(account.blocked_until_ms(None, 1_001), 0);
}

#[test]
fn who_asks_again_in_the_same_attempt_is_no_further_try() {
    let mut account = Account::new(7);
    account.advance(8);
    let mut seen = Vec::new();
    for (pop_ms, attempt) in (1_000..).zip([None, Some("a"), Some("a"), Some("b"), Some("b"), None, None]) {
        account.take_back(attempt);
        account.advance(8);
        account.lend(&[7], pop_ms, 9_000, Kind::Orderly);
        seen.push(account.times(7));
    }
    assert_eq!(seen, [0, 1, 1, 2, 2, 3, 4]);
}

#[test]
fn what_nobody_was_told_of_is_no_try() {
    let mut account = Account::new(7);
    account.advance(9);
    let id = account.lend(&[7, 8], 1_000, 9_000, Kind::Orderly);
    account.give_back(id, 1_001);
    assert_eq!((account.next(), account.times(7), account.blocked_until_ms(None, 1_001)), (7, 0, 0));
    account.take_back(Some("a"));
    assert_eq!((account.times(7), account.loans(), account.out()), (0, 0, 0));
    account.advance(9);
    let id = account.lend(&[7, 8], 1_002, 9_000, Kind::Plain);
    account.give_back(id, 1_003);
    assert_eq!(account.loan(id).map(|loan| (loan.until_ms, loan.kind)), Some((1_003, Kind::Suspended)));
}

#[test]
fn damaged_values_are_refused_and_a_plain_offset_is_one() {
    let mut account = Account::new(5);
    account.advance(400);
    let id = account.lend(&[5, 7, 300], 1_000, 3_000, Kind::Plain);
    account.ack(id, 7);
    let value = written(&account);
    let head = [&5u64.to_be_bytes()[..], &[1, 0xa6, 2, 1, 99]].concat();
    // No attempt, no times; 5 and 1000, from where loans count; a plain one with gaps, for 2000 ms, of three messages,
    // the first and the last left, each so far behind the one before.
    let loans = [0, 0, 5, 0xe8, 7, HAS_GAPS, 0, 0, 0xd0, 15, 3, 5, 0, 2, 0xa5, 2];
    assert_eq!(value, [&head[..], &[0xff; 10], &loans].concat());
    assert!(Account::read(&head[..7]).is_none() && Account::read(&head[..head.len() - 1]).is_none());
    for cut in head.len() + 1..value.len() {
        let read = Account::read(&value[..cut]);
        assert!(read.is_none_or(|read| read.loans() == 0), "{cut}");
    }
    assert!(Account::read(&[0xff; 40]).is_none());
    for (at, byte) in [(2, 0xff), (5, 3), (5, HAS_GAPS | 7), (10, 0), (10, 33), (11, 0), (11, 9), (12, 1), (13, 0)] {
        let mut wrong = value.clone();
        wrong[head.len() + 10 + at] = byte;
        assert!(Account::read(&wrong).is_none(), "{byte} at {at}");
    }
    assert_eq!(Account::read(&5u64.to_be_bytes()).unwrap().next(), 5);
    // It goes on: lent up to 402, and of three loans one new, one over, one with less of it.
    let mut whole = Vec::new();
    account.write_whole(&mut whole);
    account.advance(402);
    let new = account.lend(&[400, 401], 1_001, 3_001, Kind::Suspended);
    account.ack(id, 300);
    let mut more = whole.clone();
    account.write_changes(&mut more).expect("it goes on");
    let changed = [4, 0x92, 3, HAS_GAPS, 0, 0, 0xd0, 15, 3, 1, 0, 2, 0xa5, 2, 1, 0x8b, 3, 1, 0xd0, 15, 2, 3];
    assert_eq!(more[whole.len()..], changed);
    account.ack(id, 5);
    account.write_changes(&mut more).expect("it goes on");
    assert_eq!(more[whole.len() + changed.len()..], [4, 0x92, 3, 3, 0, 0]);
    let again = Account::read(&more).unwrap();
    assert_eq!((again.next(), again.floor(), again.out(), again.loan(new).is_some()), (402, 400, 2, true));
    for cut in whole.len()..more.len() {
        let read = Account::read(&more[..cut]);
        assert!(read.is_none_or(|read| read.loans() <= 2), "{cut}");
    }
    for (at, byte) in [(3, 6), (3, HAS_GAPS | 7), (8, 0), (8, 33), (9, 0), (9, 9)] {
        let mut wrong = more.clone();
        wrong[whole.len() + at] = byte;
        assert!(Account::read(&wrong).is_none(), "{byte} at {at}");
    }
    account.reset(400);
    assert_eq!((account.out(), account.written_bytes()), (2, None), "where it is already");
    account.reset(6);
    assert_eq!((account.out(), account.next(), written(&account).len()), (0, 6, 8));
}

#[test]
fn an_orderly_loan_outlives_a_restart_with_its_attempt_and_how_often_it_was_lent() {
    let mut account = Account::new(100);
    for (pop_ms, attempt) in [(1_000, "a"), (2_000, "b"), (3_000, "c")] {
        account.take_back(Some(attempt));
        account.advance(103);
        account.lend(&[100, 101, 102], pop_ms, pop_ms + 500, Kind::Orderly);
    }
    let id = LoanId { start: 100, pop_ms: 3_000 };
    account.ack(id, 101);
    account.extend(id, 102, 3_100, 9_000, Kind::Orderly);
    let value = written(&account);
    let mut again = Account::read(&value).unwrap();
    assert_eq!(written(&again), value);
    assert_eq!([100, 101, 102, 103].map(|offset| again.times(offset)), [2, 2, 2, 0]);
    assert_eq!((again.orderly_at(3_000), again.next(), again.floor()), (Some(id), 103, 100));
    assert_eq!((again.blocked_until_ms(Some("c"), 3_200), again.blocked_until_ms(None, 3_200)), (0, 9_000));
    assert_eq!((again.ack(id, 101), again.ack(id, 102)), (Done::Stale, Done::Now));
    assert_eq!(again.blocked_until_ms(None, 3_200), 3_500);
    // The same attempt is no further try, another one is.
    again.take_back(Some("c"));
    assert_eq!((again.next(), again.times(100), again.times(102)), (100, 2, 2));
    let mut other = Account::read(&value).unwrap();
    other.take_back(Some("d"));
    assert_eq!((other.next(), other.times(100), other.times(102)), (100, 3, 3));
    // A text of any length is no reason to write one.
    account.take_back(Some(&"x".repeat(1_000)));
    account.advance(103);
    account.lend(&[100, 101, 102], 9_000, 9_500, Kind::Orderly);
    let value = written(&account);
    assert!(value.len() < 100, "{}", value.len());
    assert_eq!(Account::read(&value).unwrap().blocked_until_ms(Some(&"x".repeat(1_000)), 9_100), 9_500);
}

#[test]
fn of_very_many_loans_those_that_have_no_room_are_lent_again() {
    let mut account = Account::new(0);
    account.advance(400_000);
    for offset in (0..400_000).step_by(2) {
        account.lend(&[offset], 1_000 + offset % 77, 60_000, Kind::Plain);
    }
    account.lend(&[399_999], 1_000, 60_000, Kind::Orderly);
    let mut value = Vec::new();
    let done_bytes = account.write_whole(&mut value);
    assert!((VALUE_BYTES_MAX..VALUE_BYTES_MAX + 100).contains(&value.len()), "{}", value.len());
    assert_eq!(account.written_bytes(), None, "it does not go on");
    let again = Account::read(&value).unwrap();
    assert!(again.loans() > 50_000 && again.has_orderly(), "{} {done_bytes}", again.loans());
    // What is neither on loan nor done with is lent from there on, every second one.
    let first = again.next();
    assert_eq!((first, again.stretch()), (2 * (again.loans() as u64 - 1), 1));
    assert_eq!(again.end(), 400_000);
}
