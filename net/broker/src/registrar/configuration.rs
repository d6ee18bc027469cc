//! Topics and group configurations: codes 17, 215, 21, 351, 200, 201, 352 and 207, and topics that are made
//! because a message or a group needs them.

use std::sync::Arc;

use protocol::bodies::{self, SubscriptionGroupConfig, SubscriptionGroupTable, TopicConfig, TopicConfigTable};
use protocol::codes::response;
use protocol::headers::{CreateTopic, DeleteGroup};
use protocol::names;

use super::{Outcome, Registrar, body_that_fits, system_error, wrong_body};
use crate::admin::{Goal, Question};
use crate::answer::Answer;
use crate::catalog::{Group, Topic};
use crate::mail::Make;
use crate::topics;

/// Longest JSON of a topic's or group's configuration, in bytes. 64 KiB; stock ones have 500.
pub const CONFIG_BYTES_MAX: usize = 64 << 10;

/// Topics.
impl Registrar {
    pub(super) fn create_topic(&mut self, header: &CreateTopic<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        let old = self.ledger.newest().topic(header.topic).cloned();
        let config = topics::requested(&self.settings, header, old.as_ref().map(|old| &old.config))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the topic's attributes are too long"));
        }
        match old {
            None => self.add_topic(config).map_err(system_error)?,
            Some(old) if old.config == config => {}
            Some(old) => self.ledger.set_topic(Topic { config, ..Topic::clone(&old) }),
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    pub(super) fn delete_topic(&mut self, name: &str) -> Result<Outcome, Answer> {
        self.check_room()?;
        topics::check_delete(&self.settings, name)?;
        if self.ledger.newest().topic(name).is_some() {
            self.ledger.remove_topic(name);
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    pub(super) fn all_topics(&self) -> Result<Outcome, Answer> {
        let catalog = self.ledger.published();
        let table = TopicConfigTable {
            data_version: catalog.topics_version,
            mapping_data_version: catalog.topics_version,
            topic_config_table: catalog.topics().map(|topic| (topic.name.to_string(), topic.config.clone())).collect(),
            ..TopicConfigTable::default()
        };
        body_that_fits(bodies::encode(&table))
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
        };
        let is_legal = |config: &TopicConfig| config.topic_name == name && names::check_topic(name).is_ok();
        if let Some(config) = config.filter(is_legal) {
            // A full table is no error here: the message then finds no topic and says so.
            let _ = self.add_topic(config);
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

/// Group configurations.
impl Registrar {
    pub(super) fn create_group(&mut self, body: &[u8]) -> Result<Outcome, Answer> {
        self.check_room()?;
        let mut config: SubscriptionGroupConfig = bodies::decode(body).map_err(wrong_body)?;
        names::check_group(&config.group_name)
            .map_err(|error| Answer::refusal(response::INVALID_PARAMETER, error.to_string()))?;
        if bodies::encode(&config).len() > CONFIG_BYTES_MAX {
            return Err(Answer::refusal(response::INVALID_PARAMETER, "the group's configuration is too long"));
        }
        let old = self.ledger.newest().group(&config.group_name).cloned();
        let attributes = std::mem::take(&mut config.attributes);
        config.attributes = old.as_ref().map(|old| old.config.attributes.clone()).unwrap_or_default();
        for (key, value) in attributes {
            match key.split_at_checked(1) {
                Some(("-", key)) => drop(config.attributes.remove(key)),
                Some(("+", key)) => drop(config.attributes.insert(key.to_owned(), value)),
                _ => drop(config.attributes.insert(key, value)),
            }
        }
        match old {
            Some(old) if old.config == config => {}
            Some(_) => self.add_group(config),
            None => {
                self.check_groups_room().map_err(system_error)?;
                self.add_group(config);
            }
        }
        Ok(Outcome::Settled(Answer::ok()))
    }

    pub(super) fn delete_group(&mut self, header: &DeleteGroup<'_>) -> Result<Outcome, Answer> {
        self.check_room()?;
        if self.ledger.newest().group(header.group).is_some() {
            self.ledger.remove_group(header.group);
        }
        if header.clean_offset {
            let group = header.group.to_owned();
            return Ok(Outcome::Gather(Goal::Forget, Question::Forget { group }));
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
            ..SubscriptionGroupTable::default()
        };
        body_that_fits(bodies::encode(&table))
    }

    /// Code 352.
    pub(super) fn group_config(&self, name: &str) -> Result<Outcome, Answer> {
        let Some(group) = self.ledger.published().group(name) else {
            let remark = format!("No group in this broker. group: {name}");
            return Err(Answer::refusal(response::SUBSCRIPTION_GROUP_NOT_EXIST, remark));
        };
        body_that_fits(bodies::encode(&group.config))
    }

    fn add_group(&mut self, config: SubscriptionGroupConfig) {
        self.ledger.set_group(Group { name: config.group_name.as_str().into(), config });
    }

    fn check_groups_room(&self) -> Result<(), String> {
        let groups_max = self.settings.limits.groups;
        if self.ledger.newest().groups_count() >= groups_max {
            return Err(format!("this broker has {groups_max} consumer groups, which is its limit"));
        }
        Ok(())
    }

    /// A group's configuration, made with defaults if it is missing and may be made. `Ok(None)`: it
    /// may not.
    pub(super) fn group(&mut self, name: &str) -> Result<Option<Arc<Group>>, String> {
        if self.ledger.newest().group(name).is_none() {
            let may_be = self.settings.auto_create_group || names::is_system_group(name);
            if !may_be || names::check_group(name).is_err() {
                return Ok(None);
            }
            self.check_groups_room()?;
            self.add_group(SubscriptionGroupConfig::new(name));
        }
        Ok(self.ledger.newest().group(name).cloned())
    }
}

/// Queues of a group's retry topic: one at least, because admin tools find groups by it.
pub(super) fn retry_queues(config: &SubscriptionGroupConfig) -> i32 {
    config.retry_queue_nums.max(1)
}
