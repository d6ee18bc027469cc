//! The registrar's office: on core 0 it hears what concerns it and does what the registrar orders; on every core
//! the catalog changes hands here.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::Ticket;
use engine::error::AppendError;
use engine::format::QueueKey;

use super::refusals::of_append;
use super::{Desk, Notice};
use crate::admin::Part;
use crate::catalog::{Catalog, OFFSET_KEY, offset_key, offsets_in, split_offset_key};
use crate::ledger::Facts;
use crate::mail::Mail;
use crate::parked::Ask;
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
    /// Groups whose offsets are on their way out of the logs.
    forgetting: Vec<Forgetting>,
    /// Topics that are gone, and logs here that still have offsets in them: at most as many as there are offsets.
    leavings: BTreeSet<(usize, u32)>,
    /// Memory for what it orders.
    orders: Vec<Order>,
}

/// A group's offsets on their way out of this core's logs.
struct Forgetting {
    /// Which gathering asked for it.
    ticket: u64,
    /// On which core.
    from: usize,
    /// Deletions that are not durable yet, and one as long as offsets are looked for.
    missing: usize,
    outcome: Result<(), AppendError>,
}

/// No topic ever has this id, and no queue this number.
const NOWHERE: u32 = u32::MAX;

impl Desk {
    pub(super) fn opened(&mut self, local: usize, now_ms: u64) {
        self.know_topics(local, now_ms);
        // Who looked meanwhile found nothing here.
        self.wake_all_pops();
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

    /// Deletes a group's offsets in all logs of this core, in each turn those that it finds. Who asked hears of it once
    /// that is durable, or cannot be.
    pub(super) fn forget_offsets(&mut self, mut ask: Box<Ask>, now_ms: u64) {
        let (ticket, from) = (ask.ticket, ask.from);
        let Some((group, is_new)) = ask.inquiry.forgets() else { return };
        if is_new {
            self.pops.accounts.forget(|holder| *holder.group == *group);
            self.pulls.resets.forget_group(group);
            self.office.forgetting.push(Forgetting { ticket, from, missing: 1, outcome: Ok(()) });
        }
        let nothing = offset_key(NOWHERE, NOWHERE, group);
        let mut keys = Vec::new();
        let is_over = ask.inquiry.forget(&self.partitions, &mut keys).is_ok();
        let (mut missing, mut outcome) = (0, Ok(()));
        for (partition, mut keys) in self.partitions.iter_mut().zip(keys) {
            for (topic, queue, group) in keys.iter().filter_map(|key| split_offset_key(key)) {
                // Opened since the first turn, of what is forgotten now.
                self.pops.accounts.forget_one(QueueKey { topic, queue }, group);
            }
            if is_over {
                // A log is asked also where there is nothing: it may be closed, and what was deleted before it may not
                // be durable yet.
                keys.push(nothing.clone());
            } else if keys.is_empty() {
                continue;
            }
            let changes: Vec<(&[u8], Option<&[u8]>)> = keys.iter().map(|key| (key.as_slice(), None)).collect();
            let promise = self.promises.open(Promise::Forget(ticket));
            match partition.put_durably(&changes, promise, now_ms) {
                Ok(()) => missing += 1,
                Err(error) => {
                    self.promises.close(promise);
                    outcome = Err(error);
                }
            }
        }
        let asked = self.forgetting(ticket);
        asked.missing += missing;
        asked.outcome = asked.outcome.and(outcome);
        if is_over || asked.outcome.is_err() {
            asked.missing -= 1;
            self.tell_forgotten(ticket);
        } else {
            self.unfinished.push_back(ask);
        }
    }

    fn forgetting(&mut self, ticket: u64) -> &mut Forgetting {
        let mut asked = self.office.forgetting.iter_mut().filter(|forgetting| forgetting.ticket == ticket);
        asked.next().expect("it is there until all its promises came back")
    }

    /// A log has deleted some of a group's offsets, or it is not known that it has.
    pub(super) fn forgotten(&mut self, ticket: u64, outcome: Result<(), AppendError>) {
        let asked = self.forgetting(ticket);
        asked.missing -= 1;
        asked.outcome = asked.outcome.and(outcome);
        self.tell_forgotten(ticket);
    }

    fn tell_forgotten(&mut self, ticket: u64) {
        let is_over = |asked: &Forgetting| asked.ticket == ticket && asked.missing == 0;
        if let Some(at) = self.office.forgetting.iter().position(is_over) {
            let Forgetting { from, outcome, .. } = self.office.forgetting.swap_remove(at);
            let part = Part::Forgotten(outcome.map_err(of_append));
            self.outbox.send(from, Mail::Told { ticket, part });
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

    /// Holds another catalog from now on. What belongs to topics and groups that are gone goes with them.
    pub(super) fn install(&mut self, catalog: Arc<Catalog>, now_ms: u64) {
        let old = std::mem::replace(&mut self.catalog, catalog);
        if !Arc::ptr_eq(&old.changes, &self.catalog.changes) {
            let unacked = self.settings.limits.pop_unacked;
            self.settings = self.catalog.settings(&self.settings);
            if self.settings.limits.pop_unacked > unacked {
                self.wake_all_pops();
            }
            self.sends.configure(&self.settings);
            let (age_ms, bytes) = (self.settings.retention_ms(), self.settings.log_bytes());
            for partition in &mut self.partitions {
                partition.set_retention(age_ms, bytes);
                partition.set_compaction(self.settings.compaction_interval_ms);
            }
        }
        if old.groups_version != self.catalog.groups_version {
            let gone = self.catalog.groups_gone_since(&old);
            if !gone.is_empty() {
                self.stats.forget_groups(&gone);
            }
        }
        if old.topics_version == self.catalog.topics_version {
            return;
        }
        if old.topics_count() == 0 || !Arc::ptr_eq(old.compacted(), self.catalog.compacted()) {
            self.tell_compacted();
        }
        if old.topics_count() == 0 {
            return (0..self.partitions.len()).for_each(|local| self.know_topics(local, now_ms));
        }
        // Of messages in queues that are new nobody would tell those who wait: they come again.
        for id in self.catalog.topics_grown_since(&old) {
            self.pops.waiting.wake_topic(id, &mut self.pops.stirred);
        }
        let gone = self.catalog.topics_gone_since(&old);
        if gone.is_empty() {
            return;
        }
        for (local, partition) in self.partitions.iter_mut().enumerate() {
            partition.retain_topics(&|id| !gone.contains(&id));
            let has_some = |id: &&u32| partition.facts(&offsets_in(**id)).next().is_some();
            self.office.leavings.extend(gone.iter().filter(has_some).map(|id| (local, *id)));
        }
        self.forget_leavings(now_ms);
        self.pops.accounts.forget(|holder| gone.contains(&holder.key.topic));
        gone.iter().for_each(|id| self.pops.waiting.wake_topic(*id, &mut self.pops.stirred));
        self.stats.forget_topics(&gone);
        self.pulls.resets.forget_topics(&gone);
        let mut woken = Vec::new();
        gone.iter().for_each(|id| self.pulls.parked.wake_topic(*id, &mut woken));
        for pull in woken {
            self.pull_again(pull, now_ms);
        }
    }

    /// Tells the logs which topics are compacted.
    fn tell_compacted(&mut self) {
        let topics = self.catalog.compacted();
        self.partitions.iter_mut().for_each(|partition| partition.compacts(BTreeSet::clone(topics)));
    }

    /// Deletes offsets in topics that are gone. A log that refuses that, because it is busy or closed, is asked again.
    pub(super) fn forget_leavings(&mut self, now_ms: u64) {
        let partitions = &mut self.partitions;
        let refuses =
            |(local, topic): &(usize, u32)| partitions[*local].forget_facts(&offsets_in(*topic), now_ms).is_err();
        self.office.leavings.retain(refuses);
    }

    /// Drops what a log still has of topics that were deleted before it was opened. A topic is in the
    /// catalog before its first message is in a log, so nothing that lives is unknown. What groups have on
    /// loan of the others they keep.
    fn know_topics(&mut self, local: usize, now_ms: u64) {
        // Before the catalog is known, every topic is unknown: `install` comes back to it.
        if self.catalog.topics_count() > 0 {
            let known: std::collections::BTreeSet<u32> = self.catalog.topics().map(|topic| topic.id).collect();
            self.partitions[local].retain_topics(&|id| known.contains(&id));
            let offsets = self.partitions[local].facts(OFFSET_KEY).filter_map(|(key, _)| split_offset_key(key));
            let gone = offsets.map(|(topic, _, _)| topic).filter(|topic| !known.contains(topic));
            self.office.leavings.extend(gone.map(|topic| (local, topic)));
            // Else `opened` does.
            if self.partitions[local].is_open() {
                self.open_accounts(local, now_ms);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    //! Method: a desk with two partitions over the simulated kernel, and what it tells of what it is asked.

    use super::*;
    use crate::admin::{Question, Reset, ResetTo};
    use crate::answer::Refused;
    use crate::catalog::{Topic, TopicConfig};
    use crate::config::{Config, Found};
    use crate::inquiry::LOOKS_PER_TURN;
    use crate::mail::Mailboxes;
    use crate::pop::account::Account;
    use crate::produce::describe;
    use engine::buffer::Region;
    use engine::io::{Io, Tag};
    use engine::limits::LogConfig;
    use engine::partition::{Effect, Partition};
    use engine::sim::{Faults, Sim};
    use protocol::codes::response;

    /// The test's own questions have tickets from here on.
    const TICKET: u64 = 77;

    struct World {
        sim: Sim,
        desk: Desk,
        mailboxes: Mailboxes,
        asked: u64,
        told: Vec<Part>,
    }

    impl World {
        /// Both logs are being opened. Topic `T` has a queue in each.
        fn new(sim: Sim) -> World {
            let memory = Region::new(64, 1 << 20).unwrap();
            let partition = |number: u16| {
                let config = LogConfig::new(format!("/data/{number}"), number, Arc::clone(&memory), describe);
                Partition::new(LogConfig { segment_bytes: 16 << 20, prepare_bytes: 0, ..config }).unwrap()
            };
            let mut settings = Config::default().settings(Found::one_core());
            settings.partitions = 2;
            let mailboxes = Mailboxes::new(1, 64);
            let partitions = vec![partition(0), partition(1)];
            let desk = Desk::new(0, Arc::new(settings), partitions, mailboxes.clone(), 7);
            World { sim, desk, mailboxes, asked: 0, told: Vec::new() }
        }

        fn opened(sim: Sim) -> World {
            let mut world = World::new(sim);
            world.drive();
            assert!(world.desk.partitions.iter().all(Partition::is_open));
            let config = TopicConfig::new("T", 2, 6);
            let mut catalog = Catalog::clone(&world.desk.catalog);
            catalog.set_topic(Arc::new(Topic { id: 99, name: "T".into(), first_partition: 0, config }));
            world.desk.catalog = Arc::new(catalog);
            world
        }

        /// Does what the desk and its mail want at once, without the kernel.
        fn settle(&mut self) {
            self.desk.outbox.flush();
            while let Some(mail) = self.mailboxes.pop(0) {
                match mail {
                    Mail::Told { ticket: TICKET.., part } => self.told.push(part),
                    mail => self.desk.on_mail(mail, self.sim.now_ms()),
                }
                self.desk.outbox.flush();
            }
        }

        /// Three seconds, in which everything happens that is under way.
        fn drive(&mut self) {
            (0..300).for_each(|_| self.turn());
        }

        /// One turn: ten milliseconds.
        fn turn(&mut self) {
            let (mut effects, mut done) = (Vec::new(), Vec::new());
            let now_ms = self.sim.now_ms();
            for local in 0..self.desk.partitions.len() {
                self.desk.partitions[local].on_turn(now_ms);
                self.desk.partitions[local].effects(&mut effects);
                for effect in effects.drain(..) {
                    match effect {
                        Effect::Io { local: tag, op } => {
                            self.sim.submit(Tag((local as u64) << 40 | tag), op).unwrap();
                        }
                        effect => self.desk.on_effect(local, effect, now_ms),
                    }
                }
            }
            self.desk.on_time(now_ms);
            self.settle();
            self.sim.drive(None, &mut done);
            for done in done.drain(..) {
                let partition = &mut self.desk.partitions[(done.tag.0 >> 40) as usize];
                partition.on_done(done.tag.0 & ((1 << 40) - 1), done.outcome, self.sim.now_ms());
            }
            self.sim.advance(10);
        }

        /// Fills each log with so many bytes of a fact that changes.
        fn fill(&mut self, bytes: usize) {
            let value = vec![0; 1 << 19];
            for _ in 0..bytes / value.len() {
                let now_ms = self.sim.now_ms();
                for partition in &mut self.desk.partitions {
                    partition.put(&[(b"k", Some(&value))], None, now_ms).unwrap();
                }
                self.turn();
            }
        }

        /// The log byte of the oldest message that may be left, by log.
        fn floors(&self) -> Vec<u64> {
            self.desk.partitions.iter().map(|partition| partition.stats().floor).collect()
        }

        /// Settings are changed at run time.
        fn change(&mut self, text: &str) {
            let mut catalog = Catalog::clone(&self.desk.catalog);
            Arc::make_mut(&mut catalog.changes).update(text).unwrap();
            self.desk.install(Arc::new(catalog), self.sim.now_ms());
        }

        fn ask(&mut self, question: Question) {
            let now_ms = self.sim.now_ms();
            self.desk.on_mail(Mail::Ask { ticket: TICKET + self.asked, from: 0, question }, now_ms);
            self.asked += 1;
            self.settle();
        }

        fn forget(&mut self) {
            self.ask(Question::Forget { group: "g".to_owned() });
        }

        /// In how many partitions the group has an offset.
        fn offsets(&self) -> usize {
            let is_its = |(key, _): &(&[u8], &[u8])| split_offset_key(key).is_some_and(|(_, _, group)| group == "g");
            self.desk.partitions.iter().map(|partition| partition.facts(OFFSET_KEY).filter(is_its).count()).sum()
        }

        fn commit(&mut self) {
            for (queue, partition) in (0..).zip(&mut self.desk.partitions) {
                assert!(partition.note(&offset_key(99, queue, "g"), &5u64.to_be_bytes()));
            }
        }
    }

    #[test]
    fn what_logs_keep_is_set_while_they_run() {
        for (text, hours) in [("fileReservedTime=1", 2), ("diskMaxUsedSpaceRatio=10", 0)] {
            let mut world = World::opened(Sim::new(6));
            // A tenth of it is 20 MiB for each of the two logs.
            Arc::make_mut(&mut world.desk.settings).disk_bytes = 400 << 20;
            world.change("traceOn=false");
            world.fill(40 << 20);
            world.sim.advance(hours * 3_600_000);
            world.drive();
            assert_eq!(world.floors(), [0, 0], "{text}: that is neither old nor much");
            world.change(text);
            world.drive();
            assert!(world.floors().iter().all(|floor| *floor > 0), "{text}: {:?}", world.floors());
        }
    }

    #[test]
    fn a_group_is_forgotten_when_all_logs_have_it() {
        let mut world = World::new(Sim::new(1));
        world.forget();
        let [Part::Forgotten(Err((code, _)))] = &world.told[..] else { panic!("{:?}", world.told) };
        assert_eq!(*code, response::SERVICE_NOT_AVAILABLE, "a log that is not open yet may have offsets");
        let mut world = World::opened(world.sim.kill());
        world.commit();
        world.drive();
        assert_eq!(world.offsets(), 2);
        for _ in 0..2 {
            world.forget();
            assert_eq!((world.offsets(), world.told.len()), (0, 0), "it is told when it is durable");
        }
        world.drive();
        assert_eq!(world.told, [Part::Forgotten(Ok(())), Part::Forgotten(Ok(()))]);
        assert!(world.desk.office.forgetting.is_empty());
        assert_eq!(World::opened(world.sim.power_cut(1)).offsets(), 0);
    }

    #[test]
    fn a_group_is_not_forgotten_by_a_log_that_fails() {
        let mut world = World::opened(Sim::new(2));
        world.commit();
        world.drive();
        world.sim.faults = Faults { write: 1_000, ..Faults::default() };
        world.forget();
        while world.told.is_empty() {
            world.turn();
        }
        assert!(
            matches!(world.told[..], [Part::Forgotten(Err((response::SERVICE_NOT_AVAILABLE, _)))]),
            "{:?}",
            world.told
        );
        world.sim.faults = Faults::default();
        while !world.desk.partitions.iter().all(Partition::is_open) {
            world.drive();
        }
        world.told.clear();
        world.forget();
        world.drive();
        assert_eq!((&world.told[..], world.offsets()), (&[Part::Forgotten(Ok(()))][..], 0), "and then it is");
    }

    #[test]
    fn a_turn_looks_at_so_many_offsets_and_others_have_theirs() {
        const QUEUES: u32 = 3 * LOOKS_PER_TURN as u32;
        let mut world = World::opened(Sim::new(6));
        for queue in 0..QUEUES {
            let (partition, group) = (&mut world.desk.partitions[0], if queue % 3 == 0 { "g" } else { "h" });
            assert!(partition.note(&offset_key(99, queue, group), &[0; 8]));
        }
        world.drive();
        world.forget();
        let mut left = vec![world.offsets()];
        // It is popped from while it is forgotten: in a queue where it is, and in one where it is not yet.
        let topic = Arc::clone(world.desk.catalog.topic("T").unwrap());
        for queue in [3, 6_000] {
            world.desk.pops.accounts.open(queue, &topic, &"g".into(), 0, Account::new(0)).unwrap();
        }
        while world.offsets() > 0 {
            assert_eq!((world.told.len(), world.desk.deadline_ms()), (0, 0), "it goes on without waiting");
            // A question that comes meanwhile has its turn.
            world.ask(Question::TopicsOf { group: "h".to_owned() });
            world.turn();
            left.push(world.offsets());
        }
        let has_account = |queue| world.desk.pops.accounts.find(QueueKey { topic: 99, queue }, "g").is_some();
        assert_eq!([3, 6_000].map(has_account), [true, false]);
        assert_eq!(left, [2_730, 1_365, 1_365, 0], "a third of what is looked at, and the other's turn in between");
        world.drive();
        let topics = Part::TopicsOf([99].into());
        assert_eq!(world.told.iter().filter(|part| **part == topics).count(), 3);
        assert_eq!(world.told.iter().filter(|part| **part == Part::Forgotten(Ok(()))).count(), 1);
        assert_eq!(world.desk.partitions[0].facts(OFFSET_KEY).count(), 2 * LOOKS_PER_TURN, "those of the other group");
        assert!(world.desk.unfinished.is_empty() && world.desk.office.forgetting.is_empty());
    }

    #[test]
    fn offsets_in_a_topic_that_is_deleted_go_once_the_logs_take_it() {
        let mut world = World::opened(Sim::new(4));
        world.commit();
        world.drive();
        let now_ms = world.sim.now_ms();
        // One log has so much under way that it refuses more, also if it is little.
        for bytes in [1 << 16, 1] {
            let value = vec![0; bytes];
            while world.desk.partitions[1].put(&[(b"k", Some(&value))], None, now_ms) != Err(AppendError::Busy) {}
        }
        let mut catalog = Catalog::clone(&world.desk.catalog);
        catalog.remove_topic("T");
        catalog.topics_version.counter += 1;
        world.desk.install(Arc::new(catalog), now_ms);
        assert_eq!(world.offsets(), 1, "that of the other log");
        world.drive();
        world.desk.on_tick(world.sim.now_ms());
        world.drive();
        assert_eq!((world.offsets(), world.desk.office.leavings.len()), (0, 0));
        assert_eq!(World::opened(world.sim.power_cut(1)).offsets(), 0);
    }

    #[test]
    fn offsets_of_a_topic_that_was_deleted_before_a_crash_go_at_the_next_start() {
        let mut world = World::opened(Sim::new(5));
        world.commit();
        world.drive();
        let mut world = World::new(world.sim.kill());
        world.drive();
        world.desk.on_tick(world.sim.now_ms());
        world.drive();
        assert_eq!((world.offsets(), world.desk.office.leavings.len()), (0, 0));
        assert_eq!(World::opened(world.sim.power_cut(1)).offsets(), 0);
    }

    #[test]
    fn an_offset_without_room_is_not_said_to_be_set() {
        let mut world = World::opened(Sim::new(3));
        // A key that no fact may have stands for facts that are full.
        for (group, wanted) in
            [("g".to_owned(), Ok(vec![(0, 0), (1, 0)])), ("x".repeat(1 << 17), Err(response::SYSTEM_BUSY))]
        {
            let topic = "T".to_owned();
            let reset = Reset { topic, group, queue: None, to: ResetTo::Newest, is_kept: true, is_forced: true };
            world.ask(Question::Reset(reset));
            let Some(Part::Reset(outcome)) = world.told.pop() else { panic!("{:?}", world.told) };
            assert_eq!(outcome.map_err(|(code, _): Refused| code), wanted);
        }
    }
}
