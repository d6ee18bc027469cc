//! Topics, group configurations and settings: codes 17, 18, 215, 21, 305, 351, 200, 225, 201,
//! 352, 353, 207 and 25, and topics that are made
//! because a message or a group needs them.

use std::sync::Arc;

use protocol::bodies::{self, GroupConfigList, SubscriptionGroupConfig, SubscriptionGroupTable};
use protocol::bodies::{TopicConfig, TopicConfigList, TopicConfigTable, TopicList};
use protocol::codes::response;
use protocol::headers::{CreateTopic, DeleteGroup, GroupForbidden};
use protocol::names::{self, perm};

use super::{Outcome, Registrar, body_that_fits, system_error, wrong_body};
use crate::admin::{Goal, Question};
use crate::answer::Answer;
use crate::attributes::{self, Attributes};
use crate::catalog::{Group, Topic};
use crate::config::{ChangeError, Changes};
use crate::mail::Make;
use crate::topics;

/// Longest JSON of a topic's or group's configuration, in bytes. 64 KiB; stock ones have 500.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// The bit of a group that may not read a topic: 1 << `PermName.INDEX_PERM_READ`.
const FORBIDDEN_READ: i32 = perm::READ;
/// Topics that one group may not read. 256: its fact stays as small as a configuration.
const FORBIDDEN_TOPICS_MAX: usize = 256;
/// What is said to who needs a group whose offsets are still being deleted (207).
const FORGETTING: &str = "the group is deleted, and its offsets are not gone yet: try again";

/// What the broker allows as a whole is told to the NameServers with each topic.
const BROKER_PERMISSION: &str = "brokerPermission";

/// Topics.
impl Registrar {
    pub(super) fn create_topic(&mut self, header: &CreateTopic<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        let changes = attributes::parse(header.attributes.unwrap_or("")).map_err(system_error)?;
        let config = self.check_topic(header, &changes)?;
        self.put_topic(config).map_err(system_error)?;
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// Code 18: all of them or, if one may not be, none.
    pub(super) fn create_topics(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let list: TopicConfigList = bodies::decode(body).map_err(wrong_body)?;
        let check = |config: &TopicConfig| self.check_topic(&requested(config), &config.attributes);
        let configs: Vec<TopicConfig> = list.topic_config_list.iter().map(check).collect::<Result<_, _>>()?;
        let is_new = |config: &&TopicConfig| self.ledger.newest().topic(&config.topic_name).is_none();
        let wanted = self.ledger.newest().topics_count() + configs.iter().filter(is_new).count();
        let topics_max = self.settings.limits.topics;
        if wanted > topics_max {
            return Err(system_error(format!("this broker may have {topics_max} topics, with these it has {wanted}")));
        }
        for config in configs {
            self.put_topic(config).map_err(system_error)?;
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// What a topic would be like after this request. `Err` is the answer.
    fn check_topic(&self, header: &CreateTopic<'_>, changes: &Attributes) -> Result<TopicConfig, Answer> {
        let old = self.ledger.newest().topic(header.topic);
        let config = topics::requested(&self.settings, header, changes, old.map(|old| &old.config))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the topic's attributes are too long"));
        }
        Ok(config)
    }

    fn put_topic(&mut self, config: TopicConfig) -> Result<(), String> {
        match self.ledger.newest().topic(&config.topic_name).cloned() {
            None => self.add_topic(config)?,
            Some(old) => self.ledger.set_topic(Topic { config, ..Topic::clone(&old) }),
        }
        Ok(())
    }

    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Outcome, Answer> {
        self.check_room()?;
        topics::check_delete(&self.settings, name)?;
        let is_there = self.ledger.newest().topic(name).is_some();
        let retries =
            if is_there && self.settings.clear_retry_topics { self.pop_retry_topics(name) } else { Vec::new() };
        self.ledger.remove_topic(name);
        retries.iter().for_each(|retry| self.ledger.remove_topic(retry));
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// Where messages of this topic come again that groups popped in vain: who pops a topic of the same name later
    /// would get them. What may hold messages of another topic is not among them. Cost: a look at every topic, and
    /// for each retry topic of the first form of these at every topic again.
    fn pop_retry_topics(&self, topic: &str) -> Vec<Arc<str>> {
        let catalog = self.ledger.newest();
        let is_known = |group: &str| catalog.group(group).is_some() || catalog.subscriptions(group).is_some();
        // `%RETRY%a_x_T` may be of group `a_x` and topic `T`, or of `a` and `x_T`.
        let is_of_another = |retry: &str| {
            catalog.topics().any(|other| {
                *other.name != *topic
                    && !other.name.starts_with(names::RETRY_PREFIX)
                    && matches!(names::group_of_pop_retry_topic(retry, &other.name), Some((_, false)))
            })
        };
        let is_of_topic = |retry: &&Arc<Topic>| match names::group_of_pop_retry_topic(&retry.name, topic) {
            Some((_, true)) => true,
            Some((group, false)) => {
                (is_known(group) || self.settings.is_light_group(group))
                    && !names::group_of_retry_topic(&retry.name).is_some_and(is_known)
                    && !is_of_another(&retry.name)
            }
            None => false,
        };
        catalog.topics().filter(is_of_topic).map(|retry| retry.name.clone()).collect()
    }

    pub(super) fn all_topics(&self) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let table = TopicConfigTable {
            data_version: catalog.topics_version,
            mapping_data_version: catalog.topics_version,
            topic_config_table: catalog
                .topics()
                .filter(|topic| !names::is_lmq(&topic.name))
                .map(|topic| (topic.name.to_string(), topic.config.clone()))
                .collect(),
            ..TopicConfigTable::default()
        };
        body_that_fits(bodies::encode(&table))
    }

    /// Code 305.
    pub(super) fn system_topics(&self) -> Result<Outcome, Answer> {
        let is_system = |name: &&str| topics::is_system(&self.settings, name);
        let names = self.ledger.published().topics().map(|topic| &*topic.name).filter(is_system);
        let list = TopicList { broker_addr: None, topic_list: names.map(str::to_owned).collect() };
        body_that_fits(bodies::encode(&list))
    }

    /// What `mqadmin topicStatus` and `consumerProgress` of 5.5.0 ask before they ask for the figures.
    pub(super) fn topic_config(&self, topic: &str) -> Result<Outcome, Answer> {
        match self.ledger.published().topic(topic) {
            Some(topic) => body_that_fits(bodies::encode(&topic.config)),
            None => Err(Answer::refusal(response::TOPIC_NOT_EXIST, format!("No topic in this broker. topic: {topic}"))),
        }
    }

    /// Accepts a topic that is not there yet. `Err`: there are too many.
    pub(super) fn add_topic(&mut self, config: TopicConfig) -> Result<(), String> {
        let topics_max = self.settings.limits.topics;
        if self.ledger.newest().topics_count() >= topics_max {
            return Err(format!("this broker has {topics_max} topics, which is its limit"));
        }
        let id = self.ledger.take_topic_id();
        let partition = id % u32::from(self.settings.partitions);
        self.ledger.set_topic(Topic {
            id,
            name: config.topic_name.as_str().into(),
            first_partition: u16::try_from(partition).expect("a remainder is less than its divisor"),
            config,
        });
        Ok(())
    }

    /// Makes a missing topic for a message that waits for it, if that may be.
    pub(super) fn make(&mut self, name: &str, how: &Make) {
        let catalog = self.ledger.newest();
        let config = match how {
            Make::Send { template, queues } => {
                let template = catalog.topic(template).map(|topic| &topic.config);
                topics::like_template(&self.settings, name, template, *queues)
            }
            Make::Retry { group } => {
                let queues = catalog.group(group).map_or(1, |group| retry_queues(&group.config));
                Some(topics::retry(group, queues, false, false))
            }
            Make::Dead { group } => Some(topics::dead(group)),
            // Of a topic that was deleted meanwhile nothing comes again.
            Make::PopRetry { lent: (lent, id), queues, .. } => {
                let is_left = catalog.topic(lent).is_some_and(|topic| topic.id == *id);
                is_left.then(|| topics::pop_retry(name, *queues))
            }
            Make::Light => topics::light(&self.settings, name, catalog.light_queues_count()),
            Make::Group { group } => {
                // One that cannot be made is no error here either.
                let _ = self.group(group);
                None
            }
        };
        let checked = match how {
            Make::PopRetry { .. } => names::check_pop_retry(name),
            Make::Light => names::check_lmq(name),
            _ => names::check_topic(name),
        };
        let is_legal = |config: &TopicConfig| config.topic_name == name && checked.is_ok();
        if let Some(config) = config.filter(is_legal) {
            // A full table is no error here: the message then finds no topic and says so.
            let _ = self.add_topic(config);
        }
    }

    /// Gives a retry topic as many queues as it is asked to have.
    pub(super) fn widen(&mut self, old: &Topic, how: &Make) {
        let Make::PopRetry { queues, .. } = how else { return };
        if old.config.read_queue_nums.min(old.config.write_queue_nums) < *queues {
            let config = TopicConfig {
                read_queue_nums: old.config.read_queue_nums.max(*queues),
                write_queue_nums: old.config.write_queue_nums.max(*queues),
                ..old.config.clone()
            };
            self.ledger.set_topic(Topic { config, ..old.clone() });
        }
    }

    pub(super) fn make_system_topics(&mut self) {
        for config in topics::system_topics(&self.settings) {
            if self.ledger.newest().topic(&config.topic_name).is_none() {
                // The limit is at least 64 topics, and these come first.
                let _ = self.add_topic(config);
            }
        }
        for name in names::BUILT_IN_GROUPS {
            if self.ledger.newest().group(name).is_none() {
                self.add_group(SubscriptionGroupConfig::new(name));
            }
        }
    }
}

/// Settings.
impl Registrar {
    /// Code 25. What has no meaning or is not served here is taken, and the answer names it.
    pub(super) fn update_config(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let text = std::str::from_utf8(body).map_err(|_| system_error("the properties are not UTF-8".to_owned()))?;
        let old = &self.ledger.newest().changes;
        let mut changes = Changes::clone(old);
        let remarks = changes.update(text).map_err(|error| match error {
            ChangeError::Forbidden(remark) => Answer::refusal(response::NO_PERMISSION, remark),
            ChangeError::Invalid(remark) => Answer::refusal(response::INVALID_PARAMETER, remark),
        })?;
        let registers = changes.value(BROKER_PERMISSION) != old.value(BROKER_PERMISSION);
        self.ledger.set_changes(changes, registers);
        let mut answer = Answer::ok();
        answer.remark = remarks.join("; ");
        Ok(Outcome::Settled(answer))
    }
}

/// Group configurations.
impl Registrar {
    pub(super) fn create_group(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let config = self.check_group(bodies::decode(body).map_err(wrong_body)?)?;
        self.put_group(config).map_err(system_error)?;
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// Code 225: all of them or, if one may not be, none.
    pub(super) fn create_groups(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let list: GroupConfigList = bodies::decode(body).map_err(wrong_body)?;
        let configs = list.group_config_list.into_iter().map(|config| self.check_group(config));
        let configs: Vec<SubscriptionGroupConfig> = configs.collect::<Result<_, _>>()?;
        let is_new = |config: &&SubscriptionGroupConfig| self.ledger.newest().group(&config.group_name).is_none();
        if configs.iter().any(|config| self.forgetting.contains(&config.group_name)) {
            return Err(Answer::refusal(response::SYSTEM_BUSY, FORGETTING));
        }
        let wanted = self.ledger.newest().groups_count() + configs.iter().filter(is_new).count();
        let groups_max = self.settings.limits.groups;
        if wanted > groups_max {
            return Err(system_error(format!("this broker may have {groups_max} groups, with these it has {wanted}")));
        }
        for config in configs {
            self.put_group(config).map_err(system_error)?;
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    /// What a group would be like after this request. `Err` is the answer.
    fn check_group(&self, mut config: SubscriptionGroupConfig) -> Result<SubscriptionGroupConfig, Answer> {
        names::check_group(&config.group_name)
            .map_err(|error| Answer::refusal(response::INVALID_PARAMETER, error.to_string()))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the group's configuration is too long"));
        }
        let old = self.ledger.newest().group(&config.group_name).map(|old| &old.config.attributes);
        config.attributes = attributes::alter(attributes::OF_GROUPS, old, &config.attributes).map_err(system_error)?;
        Ok(config)
    }

    fn put_group(&mut self, config: SubscriptionGroupConfig) -> Result<(), String> {
        match self.ledger.newest().group(&config.group_name) {
            Some(_) => {}
            None if self.forgetting.contains(&config.group_name) => return Err(FORGETTING.to_owned()),
            None => self.check_groups_room()?,
        }
        self.add_group(config);
        Ok(())
    }

    pub(super) fn delete_group(&mut self, header: &DeleteGroup<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        let group = header.group.to_owned();
        if header.clean_offset && !self.forgetting.insert(group.clone()) {
            return Err(Answer::refusal(response::SYSTEM_BUSY, FORGETTING));
        }
        self.ledger.remove_group(header.group);
        if header.clean_offset {
            // Not before every core knows that it is gone: a consumer that goes on would leave new ones.
            let goal = Goal::Forget { group: group.clone() };
            return Ok(Outcome::GatherSettled(goal, Question::Forget { group }));
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    pub(super) fn all_groups(&self) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let table = SubscriptionGroupTable {
            data_version: catalog.groups_version,
            subscription_group_table: catalog
                .groups()
                .map(|group| (group.name.to_string(), group.config.clone()))
                .collect(),
            forbidden_table: catalog
                .groups()
                .filter(|group| !group.forbidden.is_empty())
                .map(|group| (group.name.to_string(), group.forbidden.clone()))
                .collect(),
        };
        body_that_fits(bodies::encode(&table))
    }

    /// Code 352.
    pub(super) fn group_config(&self, name: &str) -> Result<Outcome, Answer> {
        let Some(group) = self.ledger.published().group_or_light(name, &self.settings) else {
            let remark = format!("No group in this broker. group: {name}");
            return Err(Answer::refusal(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        };
        body_that_fits(bodies::encode(&group.config))
    }

    /// Code 353: a group may not read a topic any more, or may again. Pulls that bring their own subscription are served,
    /// as in RocketMQ. A group that nobody knows may read everything; what it may not is kept with it, so that makes it.
    pub(super) fn group_forbidden(&mut self, header: &GroupForbidden<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        if header.readable.is_some() {
            names::check_topic(header.topic)
                .map_err(|error| Answer::refusal(response::INVALID_PARAMETER, error.to_string()))?;
        }
        let old = match header.readable {
            Some(false) => self.group(header.group).map_err(system_error)?,
            _ => self.ledger.newest().group(header.group).cloned(),
        };
        if old.is_none() && header.readable == Some(false) {
            let remark = format!("No group in this broker. group: {}", header.group);
            return Err(Answer::refusal(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        }
        let mut forbidden = old.as_ref().map(|old| old.forbidden.clone()).unwrap_or_default();
        if let Some(readable) = header.readable {
            let bits = forbidden.get(header.topic).copied().unwrap_or(0);
            match if readable { bits & !FORBIDDEN_READ } else { bits | FORBIDDEN_READ } {
                0 => drop(forbidden.remove(header.topic)),
                bits => drop(forbidden.insert(header.topic.to_owned(), bits)),
            }
        }
        let is_forbidden = forbidden.get(header.topic).is_some_and(|bits| bits & FORBIDDEN_READ != 0);
        if let Some(old) = old.filter(|old| old.forbidden != forbidden) {
            if forbidden.len() > FORBIDDEN_TOPICS_MAX {
                let remark = format!("a group has at most {FORBIDDEN_TOPICS_MAX} topics that it may not read");
                return Err(Answer::refusal(response::INVALID_PARAMETER, remark));
            }
            if self.ledger.newest().group(header.group).is_none() {
                self.check_groups_room().map_err(system_error)?;
            }
            self.ledger.set_group(Group { forbidden, ..Group::clone(&old) });
        }
        let (group, topic) = (header.group.to_owned(), header.topic.to_owned());
        let body = bodies::encode(&bodies::Forbidden { group, readable: !is_forbidden, topic });
        Ok(Outcome::Settled(Answer::with_body(body)))
    }

    fn add_group(&mut self, config: SubscriptionGroupConfig) {
        let old = self.ledger.newest().group(&config.group_name);
        let forbidden = old.map(|old| old.forbidden.clone()).unwrap_or_default();
        self.ledger.set_group(Group { name: config.group_name.as_str().into(), config, forbidden });
    }

    fn check_groups_room(&self) -> Result<(), String> {
        let groups_max = self.settings.limits.groups;
        if self.ledger.newest().groups_count() >= groups_max {
            return Err(format!("this broker has {groups_max} consumer groups, which is its limit"));
        }
        Ok(())
    }

    /// A group's configuration, made with defaults if it is missing, needed and may be made. `Ok(None)`: it
    /// may not.
    pub(super) fn group(&mut self, name: &str) -> Result<Option<Arc<Group>>, String> {
        let known = self.ledger.newest().group_or_light(name, &self.settings);
        if known.is_none() {
            let may_be = self.settings.auto_create_group || names::is_system_group(name);
            // What it did before all of its offsets are deleted would be lost with them.
            if !may_be || names::check_group(name).is_err() || self.forgetting.contains(name) {
                return Ok(None);
            }
            self.check_groups_room()?;
            self.add_group(SubscriptionGroupConfig::new(name));
        }
        Ok(known.or_else(|| self.ledger.newest().group(name).cloned()))
    }
}

/// A configuration as the header of code 17 asks for it, but for its attributes.
fn requested(config: &TopicConfig) -> CreateTopic<'_> {
    CreateTopic {
        topic: &config.topic_name,
        default_topic: "",
        read_queue_nums: config.read_queue_nums,
        write_queue_nums: config.write_queue_nums,
        perm: config.perm,
        topic_filter_type: &config.topic_filter_type,
        topic_sys_flag: Some(config.topic_sys_flag),
        order: config.order,
        attributes: None,
        force: false,
    }
}

/// Queues of a group's retry topic: one at least, because admin tools find groups by it.
pub(super) fn retry_queues(config: &SubscriptionGroupConfig) -> i32 {
    config.retry_queue_nums.max(1)
}
