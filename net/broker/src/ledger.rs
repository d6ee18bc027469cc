//! The ledger: every change of the catalog, one after the other.
//!
//! A change is accepted into the newest catalog at once, so that the next request builds on it.
//! What was accepted while one change is under way becomes the next one. A change goes this way:
//! its facts are put in partition 0; once all are durable its catalog is published; once every
//! core holds that, those who wait are told. A change without facts (subscriptions) skips the disk.
//!
//! If a fact cannot be made durable, nobody is told that it was: all that was accepted and not yet
//! published is dropped, and those who wait are told so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::bodies::SetRequestMode;
use protocol::names;

use crate::answer::Answer;
use crate::call::ReplyTo;
use crate::catalog::{COUNTERS_KEY, Catalog, Counters, DataVersion, Fact, FactError, GROUP_KEY, Group, Subscriptions};
use crate::catalog::{MODE_KEY, TOPIC_KEY, Topic, mode_fact, mode_from_fact};
use crate::config::{Changes, KNOBS_KEY};
use crate::mail::Mail;
use crate::registrar::Order;

/// Most requests that wait for changes at once. 65,536: a burst of first heartbeats of as many
/// clients. More are refused as busy; the clients come again.
pub const WAITING_MAX: usize = 65_536;

/// What is to be done once a change is in force, or has failed.
#[derive(Debug)]
pub enum Then {
    /// Answer a request. If the change failed, refuse it.
    Answer(ReplyTo, Answer),
    /// Send this to that core, also if the change failed.
    Send(usize, Mail),
}

/// A change that is over.
#[derive(Debug, Default)]
pub struct Over {
    /// Whether it is in force; else it never was.
    pub ok: bool,
    /// NameServers are to be told of the topics.
    pub register: bool,
    /// Who waits for it.
    pub then: Vec<Then>,
    /// Groups whose members are to be told of one another, also if it failed.
    pub notify: BTreeSet<Arc<str>>,
}

/// The catalog, and what is on its way into it.
#[derive(Debug)]
pub struct Ledger {
    /// What every core holds.
    published: Catalog,
    /// With all that was accepted.
    newest: Catalog,
    next_topic: u32,
    changes: u64,
    underway: Option<Change>,
    /// What the next change is made of.
    facts: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    topics_changed: bool,
    groups_changed: bool,
    subscriptions_changed: bool,
    others_changed: bool,
    then: Vec<Then>,
    notify: BTreeSet<Arc<str>>,
}

/// The one change that is under way.
#[derive(Debug)]
struct Change {
    number: u64,
    catalog: Catalog,
    /// Facts that are not yet durable. At 0 the catalog is with the cores.
    puts: usize,
    failed: bool,
    register: bool,
    then: Vec<Then>,
    notify: BTreeSet<Arc<str>>,
}

impl Ledger {
    /// From the facts of partition 0, those of other keys left out. `seed`: of the hash tables.
    pub fn recover<'a>(seed: u64, facts: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Ledger, FactError> {
        let mut catalog = Catalog::new(seed);
        let mut counters = Counters::default();
        let mut next_topic = 0;
        for (key, value) in facts {
            if key.starts_with(TOPIC_KEY) {
                let topic = Topic::from_fact(key, value)?;
                next_topic = next_topic.max(topic.id + 1);
                catalog.set_topic(Arc::new(topic));
            } else if key.starts_with(GROUP_KEY) {
                catalog.set_group(Arc::new(Group::from_fact(key, value)?));
            } else if key.starts_with(MODE_KEY) {
                catalog.set_mode(mode_from_fact(key, value)?);
            } else if key == COUNTERS_KEY {
                counters = Counters::from_fact(value)?;
            } else if key == KNOBS_KEY {
                let changes = Changes::from_fact(value).map_err(|error| FactError::of(KNOBS_KEY, &error))?;
                catalog.changes = Arc::new(changes);
            }
        }
        catalog.topics_version = counters.topics;
        catalog.groups_version = counters.groups;
        Ok(Ledger {
            published: catalog.clone(),
            newest: catalog,
            next_topic: counters.next_topic.max(next_topic),
            changes: 0,
            underway: None,
            facts: BTreeMap::new(),
            topics_changed: false,
            groups_changed: false,
            subscriptions_changed: false,
            others_changed: false,
            then: Vec::new(),
            notify: BTreeSet::new(),
        })
    }

    /// What every core holds.
    pub fn published(&self) -> &Catalog {
        &self.published
    }

    /// With all that was accepted, durable or not.
    pub fn newest(&self) -> &Catalog {
        &self.newest
    }

    /// How many wait for a change.
    pub fn waiting(&self) -> usize {
        self.then.len() + self.underway.as_ref().map_or(0, |change| change.then.len())
    }

    /// An id that no topic ever had.
    pub fn take_topic_id(&mut self) -> u32 {
        let id = self.next_topic;
        self.next_topic = id.checked_add(1).expect("four billion topics are never created");
        id
    }

    /// Accepts a topic, new or changed.
    pub fn set_topic(&mut self, topic: Topic) {
        let (key, value) = topic.fact();
        self.facts.insert(key, Some(value));
        // Nobody is told of light queues, of which there may be very many.
        let is_told = !names::is_lmq(&topic.name);
        self.newest.set_topic(Arc::new(topic));
        self.topics_changed |= is_told;
        self.others_changed |= !is_told;
    }

    /// Accepts that a topic is deleted.
    pub fn remove_topic(&mut self, name: &str) {
        self.facts.insert(Topic::key(name), None);
        self.newest.remove_topic(name);
        self.topics_changed = true;
    }

    /// Accepts a group's configuration, new or changed.
    pub fn set_group(&mut self, group: Group) {
        let (key, value) = group.fact();
        self.facts.insert(key, Some(value));
        self.newest.set_group(Arc::new(group));
        self.groups_changed = true;
    }

    /// Accepts that a group's configuration is deleted.
    pub fn remove_group(&mut self, name: &str) {
        self.facts.insert(Group::key(name), None);
        self.newest.remove_group(name);
        self.groups_changed = true;
    }

    /// Accepts how a group gets messages of a topic.
    pub fn set_mode(&mut self, mode: SetRequestMode) {
        let (key, value) = mode_fact(&mode);
        self.facts.insert(key, Some(value));
        self.newest.set_mode(mode);
        self.others_changed = true;
    }

    /// Accepts the subscriptions of a live group.
    pub fn set_subscriptions(&mut self, subscriptions: Subscriptions) {
        self.newest.set_subscriptions(Arc::new(subscriptions));
        self.subscriptions_changed = true;
    }

    /// Accepts that a group has no member any more.
    pub fn remove_subscriptions(&mut self, group: &str) {
        self.newest.remove_subscriptions(group);
        self.subscriptions_changed = true;
    }

    /// Accepts other settings. `register`: NameServers are to know.
    pub fn set_changes(&mut self, changes: Changes, register: bool) {
        self.facts.insert(KNOBS_KEY.to_vec(), Some(changes.fact()));
        self.newest.changes = Arc::new(changes);
        self.others_changed = true;
        self.topics_changed |= register;
    }

    /// Keeps `then` until all that was accepted so far is in force. Gives it back if it is.
    pub fn wait(&mut self, then: Then) -> Option<Then> {
        if self.is_touched() {
            self.then.push(then);
        } else if let Some(change) = &mut self.underway {
            change.then.push(then);
        } else {
            return Some(then);
        }
        None
    }

    /// Like `wait`, for telling a group's members of one another.
    pub fn notify(&mut self, group: Arc<str>) -> Option<Arc<str>> {
        if self.is_touched() {
            self.notify.insert(group);
        } else if let Some(change) = &mut self.underway {
            change.notify.insert(group);
        } else {
            return Some(group);
        }
        None
    }

    /// Starts the next change if there is one and none is under way. To be called after every event.
    pub fn start(&mut self, now_ms: u64, wanted: &mut Vec<Order>) {
        if self.underway.is_some() || !self.is_touched() {
            return;
        }
        self.changes += 1;
        let number = self.changes;
        let facts = std::mem::take(&mut self.facts);
        let register = std::mem::take(&mut self.topics_changed);
        let groups = std::mem::take(&mut self.groups_changed);
        self.subscriptions_changed = false;
        self.others_changed = false;
        bump(&mut self.newest.topics_version, register, now_ms);
        bump(&mut self.newest.groups_version, groups, now_ms);
        let mut puts = 0;
        if !facts.is_empty() {
            // The counters go first: a topic that is found on disk never has an id they do not know.
            let (key, value) = self.counters();
            let first = std::iter::once((key, Some(value)));
            for (key, value) in first.chain(facts) {
                wanted.push(Order::Put { key, value, change: number });
                puts += 1;
            }
        }
        let change = Change {
            number,
            catalog: self.newest.clone(),
            puts,
            failed: false,
            register,
            then: std::mem::take(&mut self.then),
            notify: std::mem::take(&mut self.notify),
        };
        publish_if_durable(&change, wanted);
        self.underway = Some(change);
    }

    /// One fact of a change is durable, or cannot be. Gives the change back if it failed, with all
    /// that was built upon it; `newest` is then what is published.
    pub fn on_durable(&mut self, number: u64, ok: bool, wanted: &mut Vec<Order>) -> Option<Over> {
        let change = self.underway.as_mut().filter(|change| change.number == number);
        let change = change.expect("a fact comes back while its change is under way");
        assert!(change.puts > 0, "a change has more facts than it put");
        change.puts -= 1;
        change.failed |= !ok;
        if change.puts > 0 {
            return None;
        }
        if !change.failed {
            publish_if_durable(change, wanted);
            return None;
        }
        let mut over = Over { ok: false, register: false, ..Over::default() };
        over.then.append(&mut change.then);
        over.then.append(&mut self.then);
        over.notify.append(&mut change.notify);
        over.notify.append(&mut self.notify);
        self.underway = None;
        self.facts.clear();
        self.topics_changed = false;
        self.groups_changed = false;
        self.subscriptions_changed = false;
        self.others_changed = false;
        self.newest = self.published.clone();
        Some(over)
    }

    /// Every core holds the catalog of this change.
    pub fn on_installed(&mut self, number: u64) -> Over {
        let change = self.underway.take_if(|change| change.number == number);
        let change = change.expect("a catalog is installed while its change is under way");
        assert!(change.puts == 0, "a catalog was published before its facts were durable");
        self.published = change.catalog;
        Over { ok: true, register: change.register, then: change.then, notify: change.notify }
    }

    fn is_touched(&self) -> bool {
        self.topics_changed || self.groups_changed || self.subscriptions_changed || self.others_changed
    }

    fn counters(&self) -> Fact {
        let counters = Counters {
            next_topic: self.next_topic,
            topics: self.newest.topics_version,
            groups: self.newest.groups_version,
        };
        counters.fact()
    }
}

fn publish_if_durable(change: &Change, wanted: &mut Vec<Order>) {
    if change.puts == 0 {
        let catalog = Arc::new(change.catalog.clone());
        wanted.push(Order::Publish { catalog, change: change.number });
    }
}

fn bump(version: &mut DataVersion, is_changed: bool, now_ms: u64) {
    if is_changed {
        version.counter += 1;
        version.timestamp = now_ms.cast_signed();
    }
}
