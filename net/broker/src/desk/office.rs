//! The registrar's office: on core 0 it hears what concerns it and does what the registrar orders; on every core
//! the catalog changes hands here.

use std::sync::Arc;

use engine::Ticket;
use engine::error::AppendError;

use super::{Desk, Notice};
use crate::catalog::{Catalog, OFFSET_KEY};
use crate::ledger::Facts;
use crate::mail::Mail;
use crate::promise::Promise;
use crate::registrar::{Order, Registrar};

/// The first catalog that the cores get is not a change of the registrar's: those count from 1.
const CHANGE_RECOVERED: u64 = 0;

/// What the desk keeps for the registrar.
#[derive(Default)]
pub(super) struct Office {
    /// On core 0, once partition 0 is open.
    pub registrar: Option<Box<Registrar>>,
    /// Catalogs on their way, and how many cores do not hold them yet.
    missing: Vec<(u64, usize)>,
    /// Promises that the log would not even begin to keep.
    pub refused: Vec<(Ticket, AppendError)>,
    /// Memory for what it orders.
    orders: Vec<Order>,
}

impl Desk {
    pub(super) fn opened(&mut self, local: usize, now_ms: u64) {
        self.know_topics(local);
        if self.partition_at(local) != 0 {
            return;
        }
        if self.office.registrar.is_some() {
            // It was recovered after a failure, and opens again.
            return self.resolve_doubt(now_ms);
        }
        match Registrar::recover(Arc::clone(&self.settings), self.seed, self.partitions[local].facts(b"")) {
            Ok(registrar) => {
                self.publish(Arc::new(registrar.catalog().clone()), CHANGE_RECOVERED);
                self.office.registrar = Some(Box::new(registrar));
                self.registrar(now_ms, |registrar, orders| registrar.on_tick(now_ms, orders));
            }
            Err(error) => self.notices.push(Notice::Unreadable(error.to_string())),
        }
    }

    /// Lets the registrar do something, if it is here, and does what it orders.
    pub(super) fn registrar(&mut self, now_ms: u64, act: impl FnOnce(&mut Registrar, &mut Vec<Order>)) {
        let Some(registrar) = &mut self.office.registrar else { return };
        let mut orders = std::mem::take(&mut self.office.orders);
        act(registrar, &mut orders);
        for order in orders.drain(..) {
            self.fulfil(order, now_ms);
        }
        // An order never leads to another one at once: what it starts comes back as an event.
        self.office.orders = orders;
    }

    fn fulfil(&mut self, order: Order, now_ms: u64) {
        match order {
            Order::Answer(to, answer) => self.replies.answer(&to, answer),
            Order::Put { facts, change } => self.put_facts(&facts, change, now_ms),
            Order::Publish { catalog, change } => self.publish(catalog, change),
            Order::Push { connection, frame } => self.replies.frame(connection, &frame, false),
            Order::Resume { core, mail } => self.outbox.send(core, mail),
            Order::Ask { ticket, question } => {
                for core in 0..self.settings.cores {
                    let question = question.clone();
                    self.outbox.send(core, Mail::Ask { ticket, from: self.index, question });
                }
            }
            Order::Register => self.notices.push(Notice::Register(Arc::clone(&self.catalog))),
            Order::Route { request, topic } => self.notices.push(Notice::Route(Box::new(request), topic)),
        }
    }

    fn put_facts(&mut self, facts: &Facts, change: u64, now_ms: u64) {
        let ticket = self.promises.open(Promise::Change(change));
        let local = self.local(0).expect("the registrar is where partition 0 is");
        let changes: Vec<_> = facts.iter().map(|(key, value)| (key.as_slice(), value.as_deref())).collect();
        if let Err(error) = self.partitions[local].put_durably(&changes, ticket, now_ms) {
            // Told in the next turn: never from within an order.
            self.office.refused.push((ticket, error));
        }
    }

    /// Tells the registrar what the log has of changes that failed, once the log can be asked.
    pub(super) fn resolve_doubt(&mut self, now_ms: u64) {
        let Some(registrar) = &self.office.registrar else { return };
        let local = self.local(0).expect("the registrar is where partition 0 is");
        let partition = &self.partitions[local];
        if !partition.is_open() {
            return;
        }
        let facts: Vec<_> =
            registrar.doubt().map(|key| (key.to_vec(), partition.fact(key).map(<[u8]>::to_vec))).collect();
        if !facts.is_empty() {
            self.registrar(now_ms, |registrar, orders| registrar.on_certain(&facts, now_ms, orders));
        }
    }

    /// Gives a catalog to every core, this one too.
    fn publish(&mut self, catalog: Arc<Catalog>, change: u64) {
        self.office.missing.push((change, self.settings.cores));
        for core in 0..self.settings.cores {
            self.outbox.send(core, Mail::Publish { catalog: Arc::clone(&catalog), change });
        }
    }

    /// One core holds the catalog of this change.
    pub(super) fn installed(&mut self, change: u64, now_ms: u64) {
        let Some(at) = self.office.missing.iter().position(|(waiting, _)| *waiting == change) else { return };
        self.office.missing[at].1 -= 1;
        if self.office.missing[at].1 > 0 {
            return;
        }
        self.office.missing.swap_remove(at);
        if change == CHANGE_RECOVERED {
            // Changes are told as they come; this one says what there was. A new broker has nothing yet.
            if self.catalog.topics_count() > 0 {
                self.notices.push(Notice::Register(Arc::clone(&self.catalog)));
            }
            return;
        }
        self.registrar(now_ms, |registrar, orders| registrar.on_installed(change, now_ms, orders));
    }

    /// Holds another catalog from now on. What belongs to topics that are gone goes with them.
    pub(super) fn install(&mut self, catalog: Arc<Catalog>, now_ms: u64) {
        let old = std::mem::replace(&mut self.catalog, catalog);
        if !Arc::ptr_eq(&old.changes, &self.catalog.changes) {
            self.settings = self.catalog.settings(&self.settings);
            self.sends.configure(&self.settings);
        }
        if old.topics_version == self.catalog.topics_version {
            return;
        }
        if old.topics_count() == 0 {
            return (0..self.partitions.len()).for_each(|local| self.know_topics(local));
        }
        let gone = self.catalog.topics_gone_since(&old);
        if gone.is_empty() {
            return;
        }
        for partition in &mut self.partitions {
            partition.retain_topics(&|id| !gone.contains(&id));
            for id in &gone {
                // If the log refuses this, the offsets stay: nobody finds them, the id is never used again.
                let _ = partition.forget_facts(&[OFFSET_KEY, &id.to_be_bytes()].concat(), now_ms);
            }
        }
        self.pops.accounts.forget(|holder| gone.contains(&holder.key.topic));
        gone.iter().for_each(|id| self.pops.waiting.wake_topic(*id, &mut self.pops.stirred));
        self.stats.forget(&gone);
        self.pulls.resets.forget_topics(&gone);
        let mut woken = Vec::new();
        gone.iter().for_each(|id| self.pulls.parked.wake_topic(*id, &mut woken));
        for pull in woken {
            self.pull(pull, now_ms);
        }
    }

    /// Drops what a log still has of topics that were deleted before it was opened. A topic is in the
    /// catalog before its first message is in a log, so nothing that lives is unknown. What groups have on
    /// loan of the others they keep.
    fn know_topics(&mut self, local: usize) {
        // Before the catalog is known, every topic is unknown: `install` comes back to it.
        if self.catalog.topics_count() > 0 {
            let known: std::collections::BTreeSet<u32> = self.catalog.topics().map(|topic| topic.id).collect();
            self.partitions[local].retain_topics(&|id| known.contains(&id));
            // Else `opened` does.
            if self.partitions[local].is_open() {
                self.open_accounts(local);
            }
        }
    }
}
