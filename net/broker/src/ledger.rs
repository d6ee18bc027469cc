//! The ledger: every change of the catalog, one after the other.
//!
//! A change is accepted into the newest catalog at once, so that the next request builds on it.
//! What was accepted while one change is under way becomes the next one. A change goes this way:
//! its facts are put in partition 0, all or none of them; once they are durable its catalog is published;
//! once every core holds that, those who wait are told. A change without facts (subscriptions) skips the disk.
//!
//! If its facts cannot be made durable, nobody is told that they were: all that was accepted and not yet
//! published is dropped, and those who wait are told so. But a failed log may have them, and a start would find them
//! there. So they are in doubt until the log is read again; what it says then counts. A topic whose end is in doubt
//! takes no message: it might be lost with it. Those who wait are told once all cores know that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::bodies::SetRequestMode;
use protocol::names;

use crate::admin::{Goal, Question};
use crate::answer::Answer;
use crate::call::ReplyTo;
use crate::catalog::{COUNTERS_KEY, Catalog, Counters, DataVersion, FactError, GROUP_KEY, Group, Subscriptions};
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
    /// Ask every core for a request. If the change failed, refuse it.
    Gather(ReplyTo, Goal, Question),
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
    /// Keys of facts that may be in the log otherwise than `newest` has them.
    doubt: BTreeSet<Vec<u8>>,
    /// Those of which the log was asked since the last change began: no core knows what it said.
    learned: BTreeSet<Vec<u8>>,
    /// What the next change is made of.
    facts: Facts,
    facts_bytes: usize,
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
    stage: Stage,
    /// Keys of facts of which the log was asked before it began: its catalog has what that said.
    learned: BTreeSet<Vec<u8>>,
    register: bool,
    then: Vec<Then>,
    notify: BTreeSet<Arc<str>>,
}

/// How far a change is.
#[derive(Debug)]
enum Stage {
    /// These facts are being written.
    Written(Facts),
    /// Its catalog is with the cores.
    Published,
    /// It failed; the catalog that the cores get is the old one, with what is in doubt.
    Dropped,
}

/// Facts by key; `None` deletes one.
pub type Facts = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Facts that wait beyond which no more is accepted: they go into one batch of the log. Bytes.
const FACTS_BYTES_MAX: usize = 2 << 20;

impl Ledger {
    /// From the facts of partition 0, those of other keys left out. `seed`: of the hash tables.
    pub fn recover<'a>(seed: u64, facts: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Ledger, FactError> {
        let catalog = Catalog::new(seed);
        let mut ledger = Ledger {
            published: catalog.clone(),
            newest: catalog,
            next_topic: 0,
            changes: 0,
            underway: None,
            doubt: BTreeSet::new(),
            learned: BTreeSet::new(),
            facts: Facts::new(),
            facts_bytes: 0,
            topics_changed: false,
            groups_changed: false,
            subscriptions_changed: false,
            others_changed: false,
            then: Vec::new(),
            notify: BTreeSet::new(),
        };
        for (key, value) in facts {
            ledger.adopt(key, Some(value))?;
        }
        ledger.published = ledger.newest.clone();
        Ok(ledger)
    }

    /// Takes into the newest catalog what partition 0 says; keys that mean nothing here are left out.
    fn adopt(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), FactError> {
        let name = |prefix: &[u8]| String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
        match value {
            Some(value) if key.starts_with(TOPIC_KEY) => {
                let topic = Topic::from_fact(key, value)?;
                self.next_topic = self.next_topic.max(topic.id + 1);
                self.newest.set_topic(Arc::new(topic));
            }
            Some(value) if key.starts_with(GROUP_KEY) => self.newest.set_group(Arc::new(Group::from_fact(key, value)?)),
            Some(value) if key.starts_with(MODE_KEY) => self.newest.set_mode(mode_from_fact(key, value)?),
            Some(value) if key == COUNTERS_KEY => {
                let counters = Counters::from_fact(value)?;
                self.next_topic = self.next_topic.max(counters.next_topic);
                self.newest.topics_version = counters.topics;
                self.newest.groups_version = counters.groups;
            }
            Some(value) if key == KNOBS_KEY => {
                let changes = Changes::from_fact(value).map_err(|error| FactError::of(KNOBS_KEY, &error))?;
                self.newest.changes = Arc::new(changes);
            }
            None if key.starts_with(TOPIC_KEY) => self.newest.remove_topic(&name(TOPIC_KEY)),
            None if key.starts_with(GROUP_KEY) => self.newest.remove_group(&name(GROUP_KEY)),
            // Modes, settings and counters are never deleted: what is not there was never made durable.
            Some(_) | None => {}
        }
        Ok(())
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
    fn waiting(&self) -> usize {
        self.then.len() + self.underway.as_ref().map_or(0, |change| change.then.len())
    }

    /// Whether one more change may be accepted.
    pub fn has_room(&self) -> bool {
        self.waiting() < WAITING_MAX && self.facts_bytes < FACTS_BYTES_MAX
    }

    /// An id that no topic ever had.
    pub fn take_topic_id(&mut self) -> u32 {
        let id = self.next_topic;
        self.next_topic = id.checked_add(1).expect("four billion topics are never created");
        id
    }

    fn change(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.facts_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.facts.insert(key, value);
    }

    /// Whether nothing is to be done for what is as it is asked to be: the log says the same.
    fn is_settled(&self, is_same: bool, key: &[u8]) -> bool {
        is_same && !self.doubt.contains(key)
    }

    /// Accepts a topic, new or changed. One that is the same already is no change.
    pub fn set_topic(&mut self, topic: Topic) {
        let is_same = self.newest.topic(&topic.name).is_some_and(|now| **now == topic);
        if self.is_settled(is_same, &Topic::key(&topic.name)) {
            return;
        }
        let (key, value) = topic.fact();
        self.change(key, Some(value));
        // Nobody is told of light queues, of which there may be very many.
        let is_told = !names::is_lmq(&topic.name);
        self.newest.set_topic(Arc::new(topic));
        self.topics_changed |= is_told;
        self.others_changed |= !is_told;
    }

    /// Accepts that a topic is deleted. If there is none, that is no change.
    pub fn remove_topic(&mut self, name: &str) {
        let key = Topic::key(name);
        if self.is_settled(self.newest.topic(name).is_none(), &key) {
            return;
        }
        self.change(key, None);
        self.newest.remove_topic(name);
        self.topics_changed = true;
    }

    /// Accepts a group's configuration, new or changed. One that is the same already is no change.
    pub fn set_group(&mut self, group: Group) {
        let is_same = self.newest.group(&group.name).is_some_and(|now| **now == group);
        if self.is_settled(is_same, &Group::key(&group.name)) {
            return;
        }
        let (key, value) = group.fact();
        self.change(key, Some(value));
        self.newest.set_group(Arc::new(group));
        self.groups_changed = true;
    }

    /// Accepts that a group's configuration is deleted. If there is none, that is no change.
    pub fn remove_group(&mut self, name: &str) {
        let key = Group::key(name);
        if self.is_settled(self.newest.group(name).is_none(), &key) {
            return;
        }
        self.change(key, None);
        self.newest.remove_group(name);
        self.groups_changed = true;
    }

    /// Accepts how a group gets messages of a topic.
    pub fn set_mode(&mut self, mode: SetRequestMode) {
        let (key, value) = mode_fact(&mode);
        self.change(key, Some(value));
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

    /// Accepts other settings; the same ones are no change. `register`: NameServers are to know.
    pub fn set_changes(&mut self, changes: Changes, register: bool) {
        if self.is_settled(changes == *self.newest.changes, KNOBS_KEY) {
            return;
        }
        self.change(KNOBS_KEY.to_vec(), Some(changes.fact()));
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
        let mut facts = std::mem::take(&mut self.facts);
        self.facts_bytes = 0;
        let register = std::mem::take(&mut self.topics_changed);
        let groups = std::mem::take(&mut self.groups_changed);
        self.subscriptions_changed = false;
        self.others_changed = false;
        bump(&mut self.newest.topics_version, register, now_ms);
        bump(&mut self.newest.groups_version, groups, now_ms);
        let change = Change {
            number: self.number(),
            catalog: self.newest.clone(),
            stage: Stage::Published,
            learned: std::mem::take(&mut self.learned),
            register,
            then: std::mem::take(&mut self.then),
            notify: std::mem::take(&mut self.notify),
        };
        let change = self.underway.insert(change);
        if facts.is_empty() {
            return change.publish(wanted);
        }
        // A topic that is found on disk never has an id that the counters do not know.
        let counters = Counters {
            next_topic: self.next_topic,
            topics: self.newest.topics_version,
            groups: self.newest.groups_version,
        };
        let (key, value) = counters.fact();
        facts.insert(key, Some(value));
        change.stage = Stage::Written(facts.clone());
        wanted.push(Order::Put { facts, change: change.number });
    }

    /// The facts of a change are durable, or it is not known that they are. Returns whether all that was accepted and is not
    /// published was dropped for that: what members said is to be accepted again.
    pub fn on_durable(&mut self, number: u64, ok: bool, wanted: &mut Vec<Order>) -> bool {
        let change = self.underway.as_mut().filter(|change| change.number == number);
        let change = change.expect("facts come back while their change is under way");
        let Stage::Written(facts) = std::mem::replace(&mut change.stage, Stage::Published) else {
            unreachable!("a change writes its facts once")
        };
        if ok {
            change.publish(wanted);
            return false;
        }
        self.newest = self.published.clone();
        // By another id, too: then it was deleted and made again.
        let ends = |topic: &Topic, value: &Option<Vec<u8>>| {
            let now = value.as_ref().and_then(|value| Topic::from_fact(&Topic::key(&topic.name), value).ok());
            now.is_none_or(|now| now.id != topic.id)
        };
        let topics = facts.iter().filter_map(|(key, value)| {
            let name = std::str::from_utf8(key.strip_prefix(TOPIC_KEY)?).ok()?;
            self.published.topic(name).filter(|topic| ends(topic, value)).map(|topic| topic.id)
        });
        self.newest.doubt(topics);
        self.doubt.extend(facts.into_keys());
        // What the log said is nowhere any more: it is asked again.
        self.doubt.append(&mut change.learned);
        self.doubt.append(&mut self.learned);
        (change.stage, change.register) = (Stage::Dropped, false);
        change.catalog = self.newest.clone();
        change.then.append(&mut self.then);
        change.notify.append(&mut self.notify);
        change.publish(wanted);
        self.facts.clear();
        self.facts_bytes = 0;
        self.topics_changed = false;
        self.groups_changed = false;
        self.subscriptions_changed = false;
        self.others_changed = false;
        true
    }

    /// The keys of facts that are in doubt.
    pub fn doubt(&self) -> impl Iterator<Item = &[u8]> {
        self.doubt.iter().map(Vec::as_slice)
    }

    /// The log was read again: what it says of all that is in doubt. It counts from now on, but for what was accepted since
    /// and is to be written. `Err`: one cannot be read, and stays as it was.
    pub fn on_certain(&mut self, facts: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<(), FactError> {
        self.learned.append(&mut self.doubt);
        self.newest.be_certain();
        self.topics_changed = true;
        self.groups_changed = true;
        let mut adopted = Ok(());
        for (key, value) in facts {
            if !self.facts.contains_key(key) {
                adopted = adopted.and(self.adopt(key, value.as_deref()));
            }
        }
        adopted
    }

    /// Every core holds the catalog of this change.
    pub fn on_installed(&mut self, number: u64) -> Over {
        let change = self.underway.take_if(|change| change.number == number);
        let change = change.expect("a catalog is installed while its change is under way");
        assert!(!matches!(change.stage, Stage::Written(_)), "a catalog was published before its facts were durable");
        self.published = change.catalog;
        let ok = matches!(change.stage, Stage::Published);
        Over { ok, register: change.register, then: change.then, notify: change.notify }
    }

    fn number(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    fn is_touched(&self) -> bool {
        self.topics_changed || self.groups_changed || self.subscriptions_changed || self.others_changed
    }
}

impl Change {
    fn publish(&self, wanted: &mut Vec<Order>) {
        wanted.push(Order::Publish { catalog: Arc::new(self.catalog.clone()), change: self.number });
    }
}

fn bump(version: &mut DataVersion, is_changed: bool, now_ms: u64) {
    if is_changed {
        version.counter += 1;
        version.timestamp = now_ms.cast_signed();
    }
}
