//! The accounts of one core: which group has what on loan in which queue, and when the next loan is over.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use engine::format::QueueKey;
use hashbrown::{Equivalent, HashMap};

use super::account::{Account, Done, Kind, LoanId};
use crate::catalog::Topic;

/// Accounts that one core holds. 1 Mi, some 300 bytes each: what pop consumers looked at in the last ten minutes.
pub const ACCOUNTS_MAX: usize = 1 << 20;
/// Loans that one core has given out, all groups together. 2 Mi, some 150 bytes each with their deadlines.
pub const LOANS_MAX: usize = 2 << 20;
/// Deadlines of loans that are over, besides as many as there are: so seldom are all looked through.
const DEADLINES_SPARE: usize = 1024;
/// An account that nobody used for so long is put away; what must last of it is in the log. Milliseconds.
const IDLE_MS: u64 = 600_000;
/// Accounts looked at in one tick for that.
const SWEEP_COUNT: usize = 4_096;
/// What changed is written down after so long. Milliseconds.
const NOTE_MS: u64 = 1_000;
/// Messages on loan of accounts that are written whole in one turn, if nobody waits, at least one account: some tens of
/// microseconds.
const NOTED_MESSAGES_MAX: usize = 4_096;

/// An account, for ever: a slot that is used again has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountId {
    slot: u32,
    generation: u32,
}

/// One loan of one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoanOf {
    /// Whose.
    pub account: AccountId,
    /// Which.
    pub loan: LoanId,
}

/// An account and whose it is.
#[derive(Debug)]
pub struct Holder {
    /// The queue.
    pub key: QueueKey,
    /// Its topic, as it was when the account was opened.
    pub topic: Arc<Topic>,
    /// The group.
    pub group: Arc<str>,
    /// Where in the desk's partitions the queue is.
    pub local: usize,
    /// What the group has.
    pub account: Account,
    is_dirty: bool,
    /// What it has on loan found no room when it was written last.
    is_without_room: bool,
    used_ms: u64,
}

/// All accounts of one core.
#[derive(Debug)]
pub struct Accounts {
    index: HashMap<Key, u32, RandomState>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    deadlines: BinaryHeap<Reverse<Deadline>>,
    /// Loans under way.
    loans: usize,
    dirty: VecDeque<(u64, AccountId)>,
    swept: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    holder: Option<Box<Holder>>,
}

/// When a loan is over; one whose time was changed has another one beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    until_ms: u64,
    slot: u32,
    generation: u32,
    loan: LoanId,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    queue: QueueKey,
    group: Arc<str>,
}

#[derive(Hash)]
struct Wanted<'a> {
    queue: QueueKey,
    group: &'a str,
}

impl Equivalent<Key> for Wanted<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.queue == key.queue && *self.group == *key.group
    }
}

/// What is written down of an account.
#[derive(Clone, Copy, Debug)]
pub enum Note<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// What follows what was written, which has so many bytes.
    More(usize, &'a [u8]),
}

impl Holder {
    /// Writes the account down: what changed, or all of it, or without what is on loan if there is no room for that.
    /// Returns whether all that is on loan is written, and the cost, in messages.
    fn note(&mut self, note: &mut impl FnMut(&Holder, Note<'_>) -> bool) -> (bool, usize) {
        let mut value = Vec::new();
        if let Some(bytes) = self.account.written_bytes()
            && self.account.write_changes(&mut value).is_some()
            && (value.is_empty() || note(self, Note::More(bytes, &value)))
        {
            return (true, 0);
        }
        value.clear();
        let done_bytes = self.account.write_whole(&mut value);
        if note(self, Note::Whole(&value)) {
            return (true, self.account.out());
        }
        self.account.is_unwritten();
        if done_bytes < value.len() {
            note(self, Note::Whole(&value[..done_bytes]));
        }
        (false, self.account.out())
    }

    /// When it was used last, ms since 1970.
    pub fn used_ms(&self) -> u64 {
        self.used_ms
    }
}

impl Accounts {
    /// None yet.
    pub fn new(seed: u64) -> Accounts {
        Accounts {
            index: HashMap::with_hasher(RandomState::with_seed(seed as usize)),
            slots: Vec::new(),
            free: Vec::new(),
            deadlines: BinaryHeap::new(),
            loans: 0,
            dirty: VecDeque::new(),
            swept: 0,
        }
    }

    /// Whether there is none: groups that pull need not look.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether one more loan may be given out.
    pub fn has_room(&self) -> bool {
        self.loans < LOANS_MAX
    }

    /// The account of a group in a queue.
    #[inline]
    pub fn find(&self, queue: QueueKey, group: &str) -> Option<AccountId> {
        let slot = *self.index.get(&Wanted { queue, group })?;
        Some(AccountId { slot, generation: self.slots[slot as usize].generation })
    }

    /// Opens an account, with what it has on loan. `None`: there are too many.
    pub fn open(
        &mut self,
        queue: u32,
        topic: &Arc<Topic>,
        group: &Arc<str>,
        local: usize,
        account: Account,
    ) -> Option<AccountId> {
        if self.index.len() >= ACCOUNTS_MAX {
            return None;
        }
        let key = QueueKey { topic: topic.id, queue };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, holder: None });
            u32::try_from(self.slots.len() - 1).expect("ACCOUNTS_MAX is far below 2^32")
        });
        self.index.insert(Key { queue: key, group: group.clone() }, slot);
        let (topic, group) = (topic.clone(), group.clone());
        let loans: Vec<(LoanId, u64)> = account.until_ms().collect();
        let holder = Holder { key, topic, group, local, account, is_dirty: false, is_without_room: false, used_ms: 0 };
        self.slots[slot as usize].holder = Some(Box::new(holder));
        let id = AccountId { slot, generation: self.slots[slot as usize].generation };
        self.loans += loans.len();
        loans.into_iter().for_each(|(loan, until_ms)| self.remind(LoanOf { account: id, loan }, until_ms));
        Some(id)
    }

    /// An account; `None`: it is closed.
    #[inline]
    pub fn get(&mut self, id: AccountId) -> Option<&mut Holder> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        slot.holder.as_deref_mut()
    }

    /// Changes an account that is to be written down, and keeps count of its loans.
    pub fn change<T>(&mut self, id: AccountId, now_ms: u64, change: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let slot = self.slots.get_mut(id.slot as usize).filter(|slot| slot.generation == id.generation)?;
        let holder = slot.holder.as_deref_mut()?;
        holder.used_ms = now_ms;
        let before = holder.account.loans();
        let outcome = change(&mut holder.account);
        self.loans = self.loans + holder.account.loans() - before;
        if !std::mem::replace(&mut holder.is_dirty, true) {
            self.dirty.push_back((now_ms + NOTE_MS, id));
        }
        Some(outcome)
    }

    /// Lends messages until a time, for [`take_due`](Accounts::take_due).
    pub fn lend(&mut self, id: AccountId, offsets: &[u64], pop_ms: u64, until_ms: u64, kind: Kind) -> Option<LoanId> {
        let loan = self.change(id, pop_ms, |account| account.lend(offsets, pop_ms, until_ms, kind))?;
        self.remind(LoanOf { account: id, loan }, until_ms);
        Some(loan)
    }

    /// A loan has another time.
    pub fn remind(&mut self, of: LoanOf, until_ms: u64) {
        let AccountId { slot, generation } = of.account;
        self.deadlines.push(Reverse(Deadline { until_ms, slot, generation, loan: of.loan }));
        // Loans that are over leave their deadlines behind: at most as many as there are, and some.
        if self.deadlines.len() > 2 * self.loans + DEADLINES_SPARE {
            let slots = &self.slots;
            self.deadlines.retain(|Reverse(deadline)| live(slots, deadline));
        }
    }

    /// A message is acknowledged, or safe elsewhere.
    pub fn ack(&mut self, of: LoanOf, offset: u64, now_ms: u64) -> Done {
        self.settle(of, now_ms, |account| account.ack(of.loan, offset)).unwrap_or(Done::Stale)
    }

    /// Several of a loan are: see [`Account::ack_some`].
    pub fn ack_some(&mut self, of: LoanOf, now_ms: u64, is_acked: impl Fn(u64) -> bool) {
        self.settle(of, now_ms, |account| account.ack_some(of.loan, is_acked));
    }

    /// What is left of an orderly loan may be over sooner than what is acknowledged would have been.
    fn settle<T>(&mut self, of: LoanOf, now_ms: u64, ack: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let until_ms = |account: &Account| account.loan(of.loan).map(|loan| loan.until_ms);
        let (before, outcome, after) = self.change(of.account, now_ms, |account| {
            let before = until_ms(account);
            let outcome = ack(account);
            (before, outcome, until_ms(account))
        })?;
        if let Some(until_ms) = after.filter(|_| after != before) {
            self.remind(of, until_ms);
        }
        Some(outcome)
    }

    /// A loan that nobody was told of is over.
    pub fn give_back(&mut self, of: LoanOf, now_ms: u64) {
        self.change(of.account, now_ms, |account| account.give_back(of.loan, now_ms));
        self.remind(of, now_ms);
    }

    /// The next loan whose time is over.
    pub fn take_due(&mut self, now_ms: u64) -> Option<LoanOf> {
        while let Some(Reverse(deadline)) = self.deadlines.peek().copied() {
            let is_live = live(&self.slots, &deadline);
            if is_live && deadline.until_ms > now_ms {
                return None;
            }
            self.deadlines.pop();
            if is_live {
                let account = AccountId { slot: deadline.slot, generation: deadline.generation };
                return Some(LoanOf { account, loan: deadline.loan });
            }
        }
        None
    }

    /// When there is something to do, in ms; perhaps a little early.
    pub fn deadline_ms(&self) -> Option<u64> {
        let due = self.deadlines.peek().map(|Reverse(deadline)| deadline.until_ms);
        let dirty = self.dirty.front().map(|(at_ms, _)| *at_ms);
        due.into_iter().chain(dirty).min()
    }

    /// The log of these queues was opened: it may have lost its end, and then what was lent of it. Each account ends
    /// where its queue does, before others get the same offsets. Returns whether one was cut.
    pub fn cut(&mut self, local: usize, mut end: impl FnMut(QueueKey) -> u64) -> bool {
        let mut is_cut = false;
        for slot in 0..self.slots.len() {
            let Slot { generation, holder: Some(holder) } = &self.slots[slot] else { continue };
            let (id, used_ms) = (AccountId { slot: slot as u32, generation: *generation }, holder.used_ms);
            if holder.local != local {
                continue;
            }
            let end = end(holder.key);
            if holder.account.end() > end {
                self.change(id, used_ms, |account| account.cut(end));
                is_cut = true;
            }
        }
        is_cut
    }

    /// Writes down what changed a second ago, as much as is little work; everything, if `is_all`. What finds no room is
    /// tried again a second later, or now, if this is the last time.
    pub fn note(&mut self, now_ms: u64, is_all: bool, is_last: bool, mut note: impl FnMut(&Holder, Note<'_>) -> bool) {
        let (mut messages, mut is_told) = (0, false);
        for _ in 0..self.dirty.len() {
            let Some((at_ms, id)) = self.dirty.front().copied() else { break };
            if !is_all && (at_ms > now_ms || messages > NOTED_MESSAGES_MAX) {
                break;
            }
            self.dirty.pop_front();
            let Some(holder) = self.get(id) else { continue };
            if holder.is_without_room && at_ms > now_ms && !is_last {
                self.dirty.push_back((at_ms, id));
                continue;
            }
            let (is_noted, cost) = holder.note(&mut note);
            (holder.is_dirty, holder.is_without_room) = (!is_noted, !is_noted);
            messages += cost + 1;
            if is_noted {
                continue;
            }
            if !std::mem::replace(&mut is_told, true) {
                let (group, topic, queue) = (&*holder.group, &*holder.topic.name, holder.key.queue);
                tracing::warn!(group, topic, queue, "no room to write down all that a group popped; it is tried again");
            }
            self.dirty.push_back((now_ms + NOTE_MS, id));
        }
    }

    /// Writes one account down now.
    pub fn note_one(&mut self, id: AccountId, note: &mut impl FnMut(&Holder, Note<'_>) -> bool) {
        if let Some(holder) = self.get(id) {
            holder.note(note);
        }
    }

    /// How many accounts changed and are not written down yet.
    pub fn changed(&self) -> usize {
        self.dirty.len()
    }

    /// Puts accounts away that nobody used for long; a part of them at a time.
    pub fn sweep(&mut self, now_ms: u64) {
        for _ in 0..SWEEP_COUNT.min(self.slots.len()) {
            self.swept = (self.swept + 1) % self.slots.len();
            let is_idle = |holder: &Holder| {
                holder.used_ms + IDLE_MS < now_ms && !holder.is_dirty && holder.account.is_quiet(now_ms)
            };
            if self.slots[self.swept].holder.as_deref().is_some_and(is_idle) {
                self.close(self.swept);
            }
        }
    }

    /// Closes the accounts that `is_gone` names: their topic or their group is deleted.
    pub fn forget(&mut self, is_gone: impl Fn(&Holder) -> bool) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].holder.as_deref().is_some_and(&is_gone) {
                self.close(slot);
            }
        }
    }

    /// Closes a group's account in one queue.
    pub fn forget_one(&mut self, queue: QueueKey, group: &str) {
        if let Some(slot) = self.index.get(&Wanted { queue, group }).copied() {
            self.close(slot as usize);
        }
    }

    fn close(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(holder) = slot.holder.take() else { return };
        slot.generation = slot.generation.wrapping_add(1);
        self.loans -= holder.account.loans();
        self.index.remove(&Wanted { queue: holder.key, group: &holder.group });
        self.free.push(index as u32);
    }
}

fn live(slots: &[Slot], deadline: &Deadline) -> bool {
    let slot = slots.get(deadline.slot as usize).filter(|slot| slot.generation == deadline.generation);
    let loan = slot.and_then(|slot| slot.holder.as_deref()?.account.loan(deadline.loan));
    loan.is_some_and(|loan| loan.until_ms == deadline.until_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::TopicConfig;

    fn topic(id: u32) -> Arc<Topic> {
        Arc::new(Topic { id, name: format!("T{id}").into(), first_partition: 0, config: TopicConfig::default() })
    }

    fn whole(note: Note<'_>) -> &[u8] {
        let Note::Whole(value) = note else { panic!("{note:?}") };
        value
    }

    fn accounts() -> (Accounts, AccountId, AccountId) {
        let mut accounts = Accounts::new(7);
        let open = |accounts: &mut Accounts, queue, group: &str| {
            let mut account = Account::new(0);
            account.advance(1_000);
            accounts.open(queue, &topic(1), &Arc::from(group), 0, account).unwrap()
        };
        let one = open(&mut accounts, 0, "g");
        let two = open(&mut accounts, 1, "g");
        (accounts, one, two)
    }

    #[test]
    fn an_orderly_loan_is_over_when_what_is_left_of_it_is() {
        let (mut accounts, one, _) = accounts();
        let loan = accounts.lend(one, &[1, 2, 3], 10, 5_000, Kind::Orderly).unwrap();
        let of = LoanOf { account: one, loan };
        assert_eq!(accounts.ack(of, 1, 20), Done::Now);
        accounts.change(one, 20, |account| account.extend(loan, 2, 20, 3_000, Kind::Plain)).unwrap().unwrap();
        assert_eq!(accounts.take_due(4_999), None, "the third one has longer");
        accounts.ack_some(of, 30, |distance| distance == 2);
        assert_eq!(
            (accounts.take_due(2_999), accounts.take_due(3_000), accounts.take_due(9_000)),
            (None, Some(of), None)
        );
    }

    #[test]
    fn loans_are_due_in_the_order_of_their_times_and_once() {
        let (mut accounts, one, two) = accounts();
        let key = |queue| QueueKey { topic: 1, queue };
        assert_eq!((accounts.find(key(0), "g"), accounts.find(key(1), "g")), (Some(one), Some(two)));
        assert_eq!((accounts.find(key(0), "h"), accounts.find(key(2), "g")), (None, None));
        let late = accounts.lend(one, &[1, 2], 10, 300, Kind::Plain).unwrap();
        let soon = accounts.lend(two, &[5], 10, 100, Kind::Plain).unwrap();
        assert_eq!((accounts.deadline_ms(), accounts.take_due(99)), (Some(100), None));
        let of = LoanOf { account: two, loan: soon };
        assert_eq!((accounts.take_due(100), accounts.take_due(299)), (Some(of), None));
        // Given another time: the old one means nothing any more.
        let of = LoanOf { account: one, loan: late };
        let new = accounts.change(one, 50, |account| account.extend(late, 2, 50, 400, Kind::Plain)).unwrap().unwrap();
        accounts.remind(LoanOf { account: one, loan: new }, 400);
        assert_eq!(accounts.ack(of, 1, 60), Done::Now);
        assert_eq!(accounts.take_due(399), None);
        assert_eq!(accounts.take_due(400), Some(LoanOf { account: one, loan: new }));
        assert_eq!(accounts.loans, 2);
        accounts.forget_one(key(2), "g");
        accounts.forget_one(key(0), "h");
        assert!(accounts.get(one).is_some());
        accounts.forget_one(key(0), "g");
        assert_eq!((accounts.loans, accounts.ack(LoanOf { account: one, loan: new }, 2, 0)), (1, Done::Stale));
        assert!(accounts.get(one).is_none() && accounts.find(key(0), "g").is_none() && !accounts.is_empty());
    }

    #[test]
    fn deadlines_of_loans_that_are_over_do_not_pile_up() {
        let (mut accounts, one, _) = accounts();
        for round in 0..100_000 {
            let loan = accounts.lend(one, &[7], round, 1 << 40, Kind::Plain).unwrap();
            accounts.ack(LoanOf { account: one, loan }, 7, round);
        }
        assert!(accounts.deadlines.len() < 2_000, "{}", accounts.deadlines.len());
    }

    #[test]
    fn what_changed_is_noted_a_second_later_and_idle_accounts_go() {
        let (mut accounts, one, two) = accounts();
        let noted = |accounts: &mut Accounts, now_ms: Option<u64>| {
            let mut noted = Vec::new();
            accounts.note(now_ms.unwrap_or(0), now_ms.is_none(), false, |holder, value| {
                noted.push((holder.key.queue, whole(value).len()));
                true
            });
            noted
        };
        let loan = accounts.lend(one, &[3], 10, 20, Kind::Plain).unwrap();
        assert_eq!((accounts.deadline_ms(), noted(&mut accounts, Some(1_009))), (Some(20), vec![]));
        // 996 offsets behind the one on loan are done with: a distance of one byte, a length of two. Then the mark, no
        // attempt, no times, where loans begin, and the one.
        assert_eq!(noted(&mut accounts, Some(1_010)), [(0, 8 + 3 + 10 + 1 + 1 + 2 + 6)]);
        assert_eq!(noted(&mut accounts, Some(9_999)), []);
        accounts.ack(LoanOf { account: one, loan }, 3, 11);
        accounts.change(two, 12, |account| account.advance(2_000));
        assert_eq!(noted(&mut accounts, None), [(0, 8), (1, 8)]);
        accounts.sweep(12 + IDLE_MS);
        assert_eq!(accounts.index.len(), 1, "the first one is idle for longer");
        accounts.sweep(13 + IDLE_MS);
        assert!(accounts.is_empty());
    }

    #[test]
    fn a_log_that_lost_its_end_cuts_its_own_accounts_and_what_was_lent_is_lent_again() {
        let (mut accounts, one, two) = accounts();
        let other = accounts.open(2, &topic(1), &Arc::from("g"), 1, Account::new(1_000)).unwrap();
        let loan = accounts.lend(one, &[900, 999], 10, 5_000, Kind::Plain).unwrap();
        accounts.note(0, true, false, |_, _| true);
        assert!(!accounts.cut(0, |_| 1_000));
        assert!(accounts.cut(0, |queue| if queue.queue == 0 { 950 } else { 1_000 }));
        let next = [one, two, other].map(|id| accounts.get(id).unwrap().account.next());
        assert_eq!((next, accounts.changed()), ([950, 1_000, 1_000], 1));
        // Others have its offset now, and are lent before their loan is over.
        let of = LoanOf { account: one, loan };
        assert_eq!((accounts.ack(of, 999, 20), accounts.ack(of, 900, 20)), (Done::Stale, Done::Now));
        assert_eq!((accounts.take_due(u64::MAX), accounts.loans), (None, 0));
    }

    #[test]
    fn an_account_that_is_opened_again_has_its_loans() {
        let (mut accounts, one, _) = accounts();
        let loan = accounts.lend(one, &[3, 5], 10, 5_000, Kind::Plain).unwrap();
        let mut noted = Vec::new();
        // There is only room for what is done with.
        accounts.note(0, true, false, |_, value| {
            noted.push(whole(value).to_vec());
            noted.len() > 1
        });
        let [whole, done] = &noted[..] else { panic!("{noted:?}") };
        assert!(whole.starts_with(done));
        // Who waits for others does not try it in each turn.
        accounts.note(NOTE_MS - 1, true, false, |_, _| panic!("it was tried just now"));
        accounts
            .note(NOTE_MS, false, false, |_, value| Account::read(super::tests::whole(value)).unwrap().loans() == 1);
        assert_eq!(accounts.changed(), 0);
        accounts.forget(|_| true);
        let again = accounts.open(0, &topic(1), &Arc::from("g"), 0, Account::read(whole).unwrap()).unwrap();
        let of = LoanOf { account: again, loan };
        assert_eq!((accounts.loans, accounts.ack(of, 5, 20), accounts.take_due(4_999)), (1, Done::Now, None));
        assert_eq!(accounts.take_due(5_000), Some(of));
        let again = Account::read(done).unwrap();
        assert_eq!((again.next(), again.loans(), again.stretch()), (3, 0, 1));
    }

    #[test]
    fn orderly_loans_that_are_over_keep_no_account() {
        let (mut accounts, one, two) = accounts();
        accounts.lend(one, &[3], 10, 20, Kind::Orderly).unwrap();
        accounts.lend(two, &[3], 10, 20, Kind::Plain).unwrap();
        accounts.note(0, true, false, |_, _| true);
        accounts.sweep(11 + IDLE_MS);
        // Of a plain one somebody has to see to it.
        assert_eq!((accounts.get(one).is_none(), accounts.get(two).is_some(), accounts.loans), (true, true, 1));
        assert!(accounts.take_due(20).is_some_and(|of| of.account == two) && accounts.take_due(u64::MAX).is_none());
    }
}
