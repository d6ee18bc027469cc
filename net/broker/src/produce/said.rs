//! What the properties of a message that is sent say to the broker.

use engine::message::Keys;
use protocol::ids::{key_hash, tag_key_hash};
use protocol::properties::{self, name};

/// What a producer's properties say to the broker, found in one walk.
#[derive(Default)]
pub(super) struct Said<'a> {
    pub tags: Option<&'a str>,
    pub unique: Option<&'a str>,
    /// All of its keys, as they are written.
    pub key: Option<&'a str>,
    pub delay_level: i32,
    /// What it gives for that, and is no number.
    pub wrong_level: Option<&'a str>,
    pub is_half: bool,
    pub is_timer: bool,
    /// Queues that get it too, if they are light ones.
    pub dispatch: Option<&'a str>,
    /// The lite topic that it is for.
    pub lite: Option<&'a str>,
    /// It claims to be an inner batch: those are made here.
    pub is_inner: bool,
    /// It deletes a timer message: what it is found by.
    pub deletes: Option<&'a str>,
    /// The queue that it should have, of those that a topic has; only of messages of no other type.
    pub priority: Option<u32>,
    /// It is delayed, a half message or one of an order.
    pub has_type: bool,
    /// Some that the broker writes are there already.
    pub has_ours: bool,
    /// What it can be found by.
    pub keys: Keys,
}

impl<'a> Said<'a> {
    /// Reads the properties of a message for this topic.
    pub(super) fn read(topic: &str, text: &'a str) -> Said<'a> {
        let mut said = Said::default();
        said.fill(topic, text);
        said
    }

    /// The same, of one that says nothing yet: where it lies, as moving it costs what reading does.
    pub(super) fn fill(&mut self, topic: &str, text: &'a str) {
        let said = self;
        for (name, value) in properties::iter(text) {
            match name {
                name::TAGS => {
                    said.tags = Some(value);
                    if !value.is_empty() {
                        said.keys.push(tag_key_hash(topic, value));
                    }
                }
                name::UNIQ_KEY => {
                    said.unique = Some(value);
                    said.keys.push(key_hash(topic, value));
                }
                name::KEYS => {
                    said.key = Some(value);
                    // Those beyond the most that are indexed are left out.
                    properties::keys(value).all(|key| said.keys.push(key_hash(topic, key)));
                }
                name::DELAY => {
                    said.has_type = true;
                    match value.parse() {
                        Ok(level) => said.delay_level = level,
                        Err(_) => said.wrong_level = Some(value),
                    }
                }
                name::TRAN_MSG => {
                    said.is_half = value.eq_ignore_ascii_case("true");
                    said.has_type |= said.is_half;
                }
                name::TIMER_DELAY_SEC | name::TIMER_DELAY_MS | name::TIMER_DELIVER_MS => {
                    (said.has_type, said.is_timer) = (true, true);
                }
                name::TIMER_DEL_UNIQKEY => said.deletes = Some(value),
                name::SHARDING_KEY => said.has_type = true,
                name::PRIORITY => said.priority = value.parse::<i32>().ok().and_then(|value| value.try_into().ok()),
                name::INNER_MULTI_DISPATCH => said.dispatch = Some(value),
                name::LITE_TOPIC => said.lite = Some(value).filter(|value| !value.is_empty()),
                name::INNER_NUM => said.is_inner = true,
                name::CLUSTER | name::MSG_REGION | name::TRACE_ON | name::POP_CK => said.has_ours = true,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::produce::keep::collect;
    use protocol::message;

    #[test]
    fn a_send_is_found_by_the_keys_that_recovery_finds() {
        let many: String = (0..40).map(|key| format!("k{key} ")).collect();
        for text in [
            String::new(),
            "UNIQ_KEY\u{1}one two\u{2}TAGS\u{1}A B\u{2}".to_owned(),
            "TAGS\u{1}\u{2}UNIQ_KEY\u{1}\u{2}KEYS\u{1}\u{2}".to_owned(),
            "KEYS\u{1}a b  c\u{2}UNIQ_KEY\u{1}u\u{2}".to_owned(),
            format!("KEYS\u{1}{many}\u{2}UNIQ_KEY\u{1}u\u{2}"),
        ] {
            let said = Said::read("T", &text);
            assert_eq!(said.keys, collect(message::key_hashes("T", &text)), "{text}");
        }
        // A message of a trace has the keys of all that it tells of.
        let text = format!("KEYS\u{1}{many}\u{2}UNIQ_KEY\u{1}u\u{2}");
        assert_eq!(Said::read("T", &text).keys.as_slice().len(), 41);
    }
}
