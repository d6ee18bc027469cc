//! Accounts in the log. A pop, and an answer for what was popped, is answered once the log has kept what it changed, as a
//! send is; what a broker changes by itself is written down within a second.
//!
//! A loan is a fact of its own, beside the account's offset ([`Account::write`]). So a change writes the offset, some 60
//! bytes with its key, and each loan that it touched, some 70; most are one loan. Only what was touched and differs is
//! written, so it may be asked for at any time, and after a failure, when nobody knows what the log has, all of it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::Ticket;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::io::Pieces;
use engine::partition::Partition;
use protocol::codes::response;

use super::account::{Account, LoanId};
use super::accounts::{AccountId, LoanOf};
use super::ack::Acks;
use crate::answer::BUSY;
use crate::call::ReplyTo;
use crate::catalog::{OFFSET_BYTES, OFFSET_KEY, Topic, loan_key, offset_key, split_offset_key};
use crate::desk::Desk;
use crate::promise::Promise;

/// Facts of an account that are written in one batch: what is more follows in others. 1,024 have at most some 600 KB.
const CHANGES_MAX: usize = 1_024;
/// Loans that are written in one turn though nobody waits for them, at least one account: some hundreds of microseconds.
const WRITTEN_MAX: usize = 1_024;
/// Messages of pops that wait for the log, beyond which no more are lent: 64 MiB in one core. A log that takes 100 ms to
/// write lends 640 MB a second with it.
const HELD_BYTES_MAX: usize = 64 << 20;

/// What waits until the log has kept changes of accounts: each place for some writes.
#[derive(Debug, Default)]
pub(super) struct Held {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Bytes of messages.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Place {
    /// Writes under way.
    left: u32,
    failed: Option<AppendError>,
    /// What is done then; `None`: there may come more writes.
    then: Option<Then>,
}

/// What is done when changes are kept.
#[derive(Debug)]
pub(super) enum Then {
    /// A pop is given its messages; or these loans are taken back.
    Give {
        /// Whom to answer.
        reply: ReplyTo,
        /// The answer's first bytes.
        head: Vec<u8>,
        /// Its messages.
        body: Pieces,
        /// Their bytes.
        bytes: usize,
        /// What was lent.
        loans: Vec<LoanOf>,
    },
    /// A batch of acknowledgements goes on.
    Acks(Box<Acks>),
}

impl Held {
    /// Whether one more pop may wait with its messages.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < HELD_BYTES_MAX
    }

    fn open(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1)
                .expect("each has a promise at least, and PROMISES_MAX is far below 2^32")
        })
    }

    fn close(&mut self, place: u32) -> Place {
        self.free.push(place);
        std::mem::take(&mut self.places[place as usize])
    }
}

impl Desk {
    /// Writes down what changed of an account. `Ok(false)`: there was nothing, and what was written before is kept:
    /// `ticket` does not come back.
    fn write_account(&mut self, id: AccountId, ticket: Option<Ticket>, now_ms: u64) -> Result<bool, AppendError> {
        let is_stopping = self.is_stopping();
        let Some(holder) = self.pops.accounts.get(id) else { return Ok(false) };
        let partition = &mut self.partitions[holder.local];
        if !partition.is_open() && !is_stopping {
            return Err(AppendError::Opening);
        }
        let QueueKey { topic, queue } = holder.key;
        let loans = loan_key(topic, queue, &holder.group);
        let (mut changes, mut gone) = (Vec::new(), Vec::new());
        for loan in holder.account.touched() {
            let key = [&loans[..], &loan.start.to_be_bytes(), &loan.pop_ms.to_be_bytes()].concat();
            let mut value = Vec::new();
            if !holder.account.write_loan(loan, &mut value) {
                gone.extend(partition.fact(&key).is_some().then_some((key, None)));
            } else if partition.fact(&key) != Some(&value) {
                changes.push((key, Some(value)));
            }
        }
        let (key, mut value) = (offset_key(topic, queue, &holder.group), Vec::new());
        holder.account.write(&mut value);
        if partition.fact(&key) != Some(&value) {
            changes.push((key, Some(value)));
        }
        // In this order: whatever batch is the last that the log has, no message is done with that is not.
        changes.append(&mut gone);
        let changes: Vec<(&[u8], Option<&[u8]>)> =
            changes.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        let is_kept = changes.is_empty() && (ticket.is_none() || partition.has_kept_all());
        if !is_kept {
            let (first, last) = changes.split_at(changes.len().saturating_sub(1) / CHANGES_MAX * CHANGES_MAX);
            for some in first.chunks(CHANGES_MAX) {
                partition.put_many(some, None, now_ms)?;
            }
            partition.put_many(last, ticket, now_ms)?;
        }
        self.pops.accounts.written(id);
        Ok(!is_kept)
    }

    /// Writes an account down, and holds what has this place back until that is kept; there is none yet if nothing had to
    /// be written.
    pub(super) fn keep_account(
        &mut self,
        place: &mut Option<u32>,
        id: AccountId,
        now_ms: u64,
    ) -> Result<(), AppendError> {
        if !self.promises.has_room() {
            return Err(AppendError::Busy);
        }
        let at = place.unwrap_or_else(|| self.pops.held.open());
        let ticket = self.promises.open(Promise::Loans(at));
        let written = self.write_account(id, Some(ticket), now_ms);
        if written == Ok(true) {
            self.pops.held.places[at as usize].left += 1;
            *place = Some(at);
            return Ok(());
        }
        self.promises.close(ticket);
        if place.is_none() {
            self.pops.held.close(at);
        }
        written.map(drop)
    }

    /// Does something when all is kept that this place is for. `failed`: it is known already that it will not be.
    pub(super) fn hold(&mut self, place: Option<u32>, failed: Option<AppendError>, then: Then, now_ms: u64) {
        let Some(place) = place else { return self.release(then, failed, now_ms) };
        if let Then::Give { bytes, .. } = &then {
            self.pops.held.bytes += bytes;
        }
        let held = &mut self.pops.held.places[place as usize];
        (held.then, held.failed) = (Some(then), held.failed.or(failed));
        assert!(held.left > 0, "nothing is settled while it is being made");
    }

    /// The log has kept a change of an account, or never will.
    pub(crate) fn settle_loans(&mut self, place: u32, outcome: Result<(), AppendError>, now_ms: u64) {
        let held = &mut self.pops.held.places[place as usize];
        held.left -= 1;
        held.failed = held.failed.or(outcome.err());
        if held.left > 0 {
            return;
        }
        let Place { failed, then, .. } = self.pops.held.close(place);
        let then = then.expect("nothing is settled while it is being made");
        if let Then::Give { bytes, .. } = &then {
            self.pops.held.bytes -= bytes;
        }
        self.release(then, failed, now_ms);
    }

    fn release(&mut self, then: Then, failed: Option<AppendError>, now_ms: u64) {
        match (then, failed) {
            (Then::Give { reply, head, body, .. }, None) => {
                if !reply.oneway {
                    self.replies.whole(reply.connection, &head, body);
                }
            }
            (Then::Give { reply, loans, .. }, Some(error)) => {
                for of in loans {
                    self.pops.accounts.change(of.account, now_ms, |account| account.unlend(of.loan, true));
                    if let Some(key) = self.pops.accounts.get(of.account).map(|holder| holder.key) {
                        self.wake_pops(key);
                    }
                }
                self.refuse_append(&reply, error);
            }
            (Then::Acks(batch), None) => self.send_acks(batch),
            (Then::Acks(batch), Some(error)) => self.refuse_append(&batch.reply, error),
        }
    }

    /// Sends the answer whose header was made once all is kept that is known of an account.
    pub(super) fn answer_kept(&mut self, id: AccountId, reply: &ReplyTo, now_ms: u64) {
        if !self.promises.has_room() {
            return self.refuse(reply, response::SYSTEM_BUSY, BUSY);
        }
        let says = self.promises.says(reply, |frame| self.replies.encode(0, frame));
        let promise = Promise::Answer { to: *reply, messages: 0, bytes: 0, since_ms: now_ms, says };
        let ticket = self.promises.open(promise);
        match self.write_account(id, Some(ticket), now_ms) {
            Ok(true) => {}
            other => self.settle(ticket, other.map(drop), now_ms),
        }
    }

    /// Writes down what changed a second ago, or everything. Returns whether all of it could be, as far as logs are open.
    pub(crate) fn write_accounts(&mut self, now_ms: u64, is_all: bool) -> bool {
        let (mut loans, mut later, mut is_done) = (0, Vec::new(), true);
        while is_all || loans < WRITTEN_MAX {
            let Some(id) = self.pops.accounts.take_changed((!is_all).then_some(now_ms)) else { break };
            loans += 1 + self.pops.accounts.get(id).map_or(0, |holder| holder.account.touched().count());
            if let Err(error) = self.write_account(id, None, now_ms) {
                is_done &= matches!(error, AppendError::Opening | AppendError::Closed(_));
                later.push(id);
            }
        }
        if !is_done {
            tracing::warn!(accounts = later.len(), "no room to write down what groups popped; it is tried again");
        }
        later.into_iter().for_each(|id| self.pops.accounts.write_later(id, now_ms));
        is_done
    }

    /// A log is open, and the catalog is known. What groups had on loan when it was closed they have still: it comes
    /// again when that is over, and its handles are good. Of accounts that were open before, all is written that the
    /// log does not have. What it has lost with its end is nobody's, and that is written before anything else is.
    pub(crate) fn open_accounts(&mut self, local: usize, now_ms: u64) {
        let partition = &self.partitions[local];
        self.pops.accounts.touch(local, |holder| loans_of(partition, holder.key, &holder.group));
        let mut found = Vec::new();
        for (key, _) in partition.facts(OFFSET_KEY).filter(|(_, value)| value.len() > OFFSET_BYTES) {
            let Some((topic, queue, group)) = split_offset_key(key) else { continue };
            let key = QueueKey { topic, queue };
            if self.pops.accounts.find(key, group).is_none() {
                let account = read_account(partition, key, group).filter(|account| account.loans() > 0);
                found.extend(account.map(|account| (key, group.to_owned(), account)));
            }
        }
        if !found.is_empty() {
            let topics: BTreeMap<u32, &Arc<Topic>> = self.catalog.topics().map(|topic| (topic.id, topic)).collect();
            for (key, group, account) in found {
                // What is left of topics and groups that are gone is nobody's.
                if let (Some(topic), Some(group)) = (topics.get(&key.topic), self.catalog.group(&group)) {
                    self.pops.accounts.open(key.queue, topic, &group.name, local, account);
                }
            }
        }
        let partition = &mut self.partitions[local];
        self.pops.accounts.cut(local, |queue| partition.span(queue).max);
        self.write_accounts(now_ms, true);
    }

    /// The account of a group that was in this queue before, as it is written. `None`: it was not.
    pub(super) fn written_account(&self, local: usize, key: QueueKey, group: &str) -> Option<Account> {
        read_account(&self.partitions[local], key, group)
    }

    /// Loans that are written of a group that has no account: a deletion of the group was cut short.
    pub(super) fn stray_loans(&self, local: usize, key: QueueKey, group: &str) -> Vec<LoanId> {
        loans_of(&self.partitions[local], key, group)
    }
}

fn read_account(partition: &Partition, key: QueueKey, group: &str) -> Option<Account> {
    let value = partition.fact(&offset_key(key.topic, key.queue, group))?;
    let prefix = loan_key(key.topic, key.queue, group);
    Account::read(value, partition.facts(&prefix).filter_map(|(key, value)| Some((loan_of(key)?, value))))
}

fn loans_of(partition: &Partition, key: QueueKey, group: &str) -> Vec<LoanId> {
    let prefix = loan_key(key.topic, key.queue, group);
    partition.facts(&prefix).filter_map(|(key, _)| loan_of(key)).collect()
}

/// The end of a loan's key.
fn loan_of(key: &[u8]) -> Option<LoanId> {
    let (rest, pop_ms) = key.split_last_chunk()?;
    let (_, start) = rest.split_last_chunk()?;
    Some(LoanId { start: u64::from_be_bytes(*start), pop_ms: u64::from_be_bytes(*pop_ms) })
}

#[cfg(test)]
pub(super) mod tests {
    //! Goal: nothing is given out that is not written. Method: desks, each with a partition on a simulated disk of its own,
    //! whose operations end when the test says so.

    use super::super::tests::pop;
    use super::*;
    use crate::catalog::{Catalog, TopicConfig, Wants};
    use crate::config::{Config, Found};
    use crate::mail::Mailboxes;
    use crate::parked::Filter;
    use crate::pop::{Pop, Wish};
    use crate::produce::describe;
    use crate::promise::PROMISES_MAX;
    use engine::buffer::Region;
    use engine::io::{Io, Tag};
    use engine::limits::LogConfig;
    use engine::message::Draft;
    use engine::partition::Effect;
    use engine::sim::Sim;
    use protocol::StoredMessage;
    use std::net::Ipv4Addr;

    /// A desk and its disk.
    pub(in super::super) struct Office {
        pub(in super::super) desk: Desk,
        sim: Sim,
    }

    /// A topic `T` with a queue in each.
    pub(in super::super) fn offices(mailboxes: &Mailboxes) -> Vec<Office> {
        let (broker_ip1, started_ms) = (Ipv4Addr::LOCALHOST, 0);
        let found = Found { broker_ip1, port: 1, cores: 3, partitions: 3, memory_bytes: 1 << 30, started_ms };
        let settings = Arc::new(Config::default().settings(found));
        let config = TopicConfig::new("T", 3, 6);
        let topic = Arc::new(Topic { id: 1, name: "T".into(), first_partition: 0, config });
        let mut catalog = Catalog::new(7);
        catalog.set_topic(topic.clone());
        let catalog = Arc::new(catalog);
        let office = |index: usize| {
            let memory = Region::new(16, 1 << 20).expect("memory");
            let log = LogConfig::new("/data", index as u16, memory, describe);
            let partition = Partition::new(log).expect("its settings are in range");
            let desk = Desk::new(index, settings.clone(), vec![partition], mailboxes.clone(), 7);
            let mut office = Office { desk, sim: Sim::new(index as u64) };
            office.desk.catalog = catalog.clone();
            office.drive();
            office
        };
        (0..3).map(office).collect()
    }

    impl Office {
        /// Lets everything happen on the disk that is under way.
        pub(in super::super) fn drive(&mut self) {
            let (mut effects, mut done, mut idle) = (Vec::new(), Vec::new(), 0);
            while idle < 3 {
                let now_ms = self.sim.now_ms();
                let mut busy = self.sim.flying() > 0;
                self.desk.partitions[0].on_turn(now_ms);
                self.desk.partitions[0].effects(&mut effects);
                for effect in effects.drain(..) {
                    busy = true;
                    match effect {
                        Effect::Io { local, op } => self.sim.submit(Tag(local), op).expect("there is room"),
                        // There is no registrar here.
                        Effect::Opened => {}
                        effect => self.desk.on_effect(0, effect, now_ms),
                    }
                }
                self.sim.drive(None, &mut done);
                for done in done.drain(..) {
                    self.desk.partitions[0].on_done(done.tag.0, done.outcome, self.sim.now_ms());
                }
                idle = if busy { 0 } else { idle + 1 };
            }
        }

        /// What is still on loan, and the codes of the answers so far.
        pub(in super::super) fn seen(&mut self) -> (usize, Vec<i32>) {
            let desk = &mut self.desk;
            let key = QueueKey { topic: 1, queue: desk.index as u32 };
            let id = desk.pops.accounts.find(key, "g").expect("it was opened");
            let out = desk.pops.accounts.get(id).map_or(0, |holder| holder.account.out());
            let list = desk.replies.take();
            let code = |head: &[u8]| {
                protocol::Command::decode(bytes::Bytes::copy_from_slice(head)).expect("a frame").header.code
            };
            let codes = list.iter().map(|reply| code(desk.replies.head(reply))).collect();
            desk.replies.clear(list);
            (out, codes)
        }
    }

    fn store(office: &mut Office, body: &[u8]) {
        let host = "127.0.0.1:1".parse().expect("an address");
        let message = StoredMessage {
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 1,
            born_host: host,
            store_timestamp: 0,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            topic: "T",
            properties: "",
        };
        let mut record = vec![0; message.encoded_len()];
        message.encode(&mut record);
        let description = describe(&record).expect("it is a message");
        let mut draft = [Draft {
            queue: QueueKey { topic: 1, queue: 0 },
            length: record.len(),
            offsets: 1,
            tag_hash: description.tag_hash,
            keys: &[],
            stamp: description.stamp,
            fill: &mut |out| out.copy_from_slice(&record),
        }];
        office.desk.partitions[0].append(&mut draft, None, 1_000, &mut Vec::new()).expect("there is room");
        office.drive();
    }

    fn ask(office: &mut Office, now_ms: u64) {
        let filter = Filter::Own(Wants::All);
        let wish = Wish::Messages { count: 8, invisible_ms: 60_000, from_last: false, filter };
        let topic = office.desk.catalog.topic("T").cloned().expect("it is there");
        office.desk.pop_again(Box::new(Pop { wish, topic, ..pop(5, "g", Some(0), 0) }), now_ms);
    }

    #[test]
    fn a_pop_is_answered_when_its_loan_is_kept_and_lends_nothing_when_it_cannot_be() {
        let mailboxes = Mailboxes::new(3, 16);
        let mut offices = offices(&mailboxes);
        let office = &mut offices[0];
        store(office, b"one");
        store(office, b"two");
        // Too much waits already.
        let promises = &mut office.desk.promises;
        let tickets: Vec<Ticket> =
            (0..PROMISES_MAX as u64).map(|number| promises.open(Promise::Change(number))).collect();
        ask(office, 2_000);
        assert_eq!(office.seen(), (0, vec![response::SYSTEM_BUSY]));
        tickets.into_iter().for_each(|ticket| office.desk.promises.close(ticket));
        office.drive();
        ask(office, 2_000);
        assert_eq!(office.seen(), (2, vec![]), "both are lent, and it is not told yet");
        office.drive();
        assert_eq!(office.seen(), (2, vec![response::SUCCESS]));
        let written = office.desk.written_account(0, QueueKey { topic: 1, queue: 0 }, "g").expect("it is written");
        assert_eq!((written.next(), written.out(), written.loans()), (2, 2, 1));
        // There is nothing more, and that is told at once and written nowhere.
        let before = office.desk.partitions[0].stats().accepted;
        ask(office, 2_001);
        assert_eq!(office.seen(), (2, vec![response::POLLING_TIMEOUT]));
        office.drive();
        assert_eq!(office.desk.partitions[0].stats().accepted, before);
    }
}
