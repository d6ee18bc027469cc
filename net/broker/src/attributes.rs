//! Attributes of topics and of groups: their names, what they may be, and who may change them (PROTOCOL 3.18; RocketMQ's
//! TopicAttributes, SubscriptionGroupAttributes, AttributeParser and AttributeUtil, whose remarks these are).

use std::collections::BTreeMap;

/// Attributes by name; in a change, names begin with `+` to set and with `-` to remove.
pub type Attributes = BTreeMap<String, String>;

/// How a topic stores batches.
pub const QUEUE_TYPE: &str = "queue.type";
/// Of a topic whose batches stay together.
pub const BATCH_QUEUE: &str = "BatchCQ";
/// What becomes of a topic's old messages.
pub const CLEANUP_POLICY: &str = "cleanup.policy";
/// The newest of each key stay.
pub const COMPACTION: &str = "COMPACTION";
/// What a topic's messages are like.
pub const MESSAGE_TYPE: &str = "message.type";
/// Of a topic whose queues are levels of priority.
pub const PRIORITY_TYPE: &str = "PRIORITY";
/// Of a topic that takes messages of any kind. Made only where the broker allows it.
pub const MIXED_TYPE: &str = "MIXED";
/// How many of a hundred pops of a group go by priority.
pub const PRIORITY_FACTOR: &str = "priority.factor";
/// Most characters of a name; the longest known one has 31.
const NAME_SHOWN_MAX: usize = 64;

/// What an attribute may be.
enum Values {
    /// One of these.
    Of(&'static [&'static str]),
    /// A whole number in this range.
    Range(i64, i64),
    /// `true` or `false`, in any letters.
    Switch,
    /// Any text.
    Text,
}

/// One attribute.
pub struct Attribute {
    name: &'static str,
    /// It may be changed after what has it was made.
    is_changeable: bool,
    values: Values,
}

const fn changing(name: &'static str, values: Values) -> Attribute {
    Attribute { name, is_changeable: true, values }
}

const fn fixed(name: &'static str, values: Values) -> Attribute {
    Attribute { name, is_changeable: false, values }
}

/// Of topics.
pub const OF_TOPICS: &[Attribute] = &[
    fixed(QUEUE_TYPE, Values::Of(&["SimpleCQ", BATCH_QUEUE])),
    fixed(CLEANUP_POLICY, Values::Of(&["DELETE", COMPACTION])),
    changing(
        MESSAGE_TYPE,
        Values::Of(&["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", PRIORITY_TYPE, "LITE", MIXED_TYPE]),
    ),
    changing("reserve.time", Values::Range(-1, i64::MAX)),
    changing("lite.topic.expiration", Values::Range(-1, 30 * 24 * 60)),
];

/// Of groups.
pub const OF_GROUPS: &[Attribute] = &[
    changing(PRIORITY_FACTOR, Values::Range(0, 100)),
    changing("lite.bind.topic", Values::Text),
    changing("lite.sub.model", Values::Of(&["Shared", "Exclusive"])),
    changing("lite.sub.reset.offset.exclusive", Values::Switch),
    changing("lite.sub.reset.offset.unsubscribe", Values::Switch),
    changing("lite.sub.client.quota", Values::Range(-1, i64::MAX)),
    changing("lite.sub.client.max.event.cnt", Values::Range(10, i64::MAX)),
    changing("lite.sub.wildcard", Values::Text),
];

/// Reads a change as code 17 has it: `+key=value,-key`. `Err` is the remark.
pub fn parse(text: &str) -> Result<Attributes, String> {
    let mut changes = Attributes::new();
    for change in text.split(',').filter(|change| !change.is_empty()) {
        let (key, value) = match change.split_once('=') {
            Some((key, _)) if !key.contains('+') => {
                return Err(format!("add/alter attribute format is wrong: {}", shown(key)));
            }
            Some((key, "")) => return Err(format!("the attribute has no value: {}", shown(key))),
            Some((key, value)) => (key, value),
            None if !change.contains('-') => {
                return Err(format!("delete attribute format is wrong: {}", shown(change)));
            }
            None => (change, ""),
        };
        if changes.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("key duplication: {}", shown(key)));
        }
    }
    Ok(changes)
}

/// Applies changes to attributes; `old` is `None` for what is made now. `Err` is the remark; then nothing changes.
pub fn alter(known: &[Attribute], old: Option<&Attributes>, changes: &Attributes) -> Result<Attributes, String> {
    let mut seen = std::collections::BTreeSet::new();
    for key in changes.keys() {
        let name = name_of(key);
        if name.is_empty() || name.contains(['+', '-']) {
            return Err("kv string format wrong.".to_owned());
        }
        if !seen.insert(name) {
            return Err(format!("alter duplication key. key: {}", shown(name)));
        }
        let is_there = old.is_some_and(|old| old.contains_key(name));
        match (old, key.as_bytes()[0]) {
            (None, b'+') | (Some(_), b'+') => {}
            (None, _) => {
                return Err(format!("only add attribute is supported while creating topic. key: {}", shown(name)));
            }
            (Some(_), b'-') if is_there => {}
            (Some(_), b'-') => return Err(format!("attempt to delete a nonexistent key: {}", shown(name))),
            (Some(_), _) => return Err(format!("wrong format key: {}", shown(name))),
        }
    }
    let mut attributes = old.cloned().unwrap_or_default();
    for (key, value) in changes {
        let name = name_of(key);
        let attribute = known.iter().find(|attribute| attribute.name == name);
        let attribute = attribute.ok_or_else(|| format!("unsupported key: {}", shown(name)))?;
        if old.is_some() && !attribute.is_changeable {
            return Err(format!("attempt to update an unchangeable attribute. key: {name}"));
        }
        if key.starts_with('-') {
            attributes.remove(name);
        } else {
            attribute.verify(value)?;
            attributes.insert(name.to_owned(), value.clone());
        }
    }
    Ok(attributes)
}

/// A key without its sign.
fn name_of(key: &str) -> &str {
    let mut letters = key.chars();
    letters.next();
    letters.as_str()
}

/// What a stranger wrote, as far as a remark shows it.
fn shown(name: &str) -> &str {
    let end = name.char_indices().nth(NAME_SHOWN_MAX).map_or(name.len(), |(end, _)| end);
    &name[..end]
}

impl Attribute {
    fn verify(&self, value: &str) -> Result<(), String> {
        match self.values {
            Values::Of(values) if values.contains(&value) => Ok(()),
            Values::Of(values) => Err(format!("value is not in set: [{}]", values.join(", "))),
            Values::Range(min, max) => match value.parse::<i64>() {
                Ok(number) if (min..=max).contains(&number) => Ok(()),
                Ok(_) => Err(format!("value is not in range({min}, {max})")),
                Err(_) => Err(format!("For input string: \"{}\"", shown(value))),
            },
            Values::Switch if ["true", "false"].iter().any(|word| value.eq_ignore_ascii_case(word)) => Ok(()),
            Values::Switch => Err("boolean attribute format is wrong.".to_owned()),
            Values::Text => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(known: &[Attribute], old: Option<&str>, change: &str) -> Result<String, String> {
        let old = old.map(|text| {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Attributes>()
        });
        let all = alter(known, old.as_ref(), &parse(change)?)?;
        Ok(all.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
    }

    #[test]
    fn topics_have_the_attributes_of_rocketmq() {
        // Of a topic that is there or a new one, change, outcome.
        let is = Some("message.type=FIFO");
        let rows: [(Option<&str>, &str, Result<&str, &str>); 27] = [
            (None, "", Ok("")),
            (None, ",,", Ok("")),
            (None, "+message.type=NORMAL", Ok("message.type=NORMAL")),
            (None, "+message.type=FIFO,+reserve.time=-1", Ok("message.type=FIFO,reserve.time=-1")),
            (None, "+message.type=PRIORITY", Ok("message.type=PRIORITY")),
            (
                None,
                "+message.type=LITE,+lite.topic.expiration=43200",
                Ok("lite.topic.expiration=43200,message.type=LITE"),
            ),
            (None, "+queue.type=SimpleCQ", Ok("queue.type=SimpleCQ")),
            (None, "-message.type", Err("only add attribute is supported while creating topic. key: message.type")),
            (None, "+a.b=c", Err("unsupported key: a.b")),
            (None, "message.type=FIFO", Err("add/alter attribute format is wrong: message.type")),
            (None, "message.type", Err("delete attribute format is wrong: message.type")),
            (None, "+message.type=", Err("the attribute has no value: +message.type")),
            (None, "+=FIFO", Err("kv string format wrong.")),
            (None, "++message.type=FIFO", Err("kv string format wrong.")),
            (None, "+message.type=FIFO,+message.type=FIFO", Err("key duplication: +message.type")),
            (
                None,
                "+message.type=ODD",
                Err("value is not in set: [UNSPECIFIED, NORMAL, FIFO, DELAY, TRANSACTION, PRIORITY, LITE, MIXED]"),
            ),
            (None, "+reserve.time=-2", Err("value is not in range(-1, 9223372036854775807)")),
            (None, "+reserve.time=soon", Err("For input string: \"soon\"")),
            (None, "+lite.topic.expiration=43201", Err("value is not in range(-1, 43200)")),
            (is, "", Ok("message.type=FIFO")),
            (is, "-message.type", Ok("")),
            (is, "+message.type=DELAY,+reserve.time=5", Ok("message.type=DELAY,reserve.time=5")),
            (is, "+message.type=DELAY,-message.type", Err("alter duplication key. key: message.type")),
            (is, "-reserve.time", Err("attempt to delete a nonexistent key: reserve.time")),
            (is, "+cleanup.policy=DELETE", Err("attempt to update an unchangeable attribute. key: cleanup.policy")),
            (
                Some("queue.type=SimpleCQ"),
                "+queue.type=SimpleCQ",
                Err("attempt to update an unchangeable attribute. key: queue.type"),
            ),
            (
                Some("queue.type=SimpleCQ"),
                "-queue.type",
                Err("attempt to update an unchangeable attribute. key: queue.type"),
            ),
        ];
        for (old, change, wanted) in rows {
            let seen = changed(OF_TOPICS, old, change);
            assert_eq!(seen, wanted.map(str::to_owned).map_err(str::to_owned), "{change}");
        }
    }

    #[test]
    fn groups_have_the_attributes_of_rocketmq() {
        let is = Some("priority.factor=50");
        let rows: [(Option<&str>, &str, Result<&str, &str>); 10] = [
            (None, "+priority.factor=0", Ok("priority.factor=0")),
            (None, "+priority.factor=101", Err("value is not in range(0, 100)")),
            (None, "+message.type=FIFO", Err("unsupported key: message.type")),
            (None, "+lite.sub.model=Shared,+lite.bind.topic=T", Ok("lite.bind.topic=T,lite.sub.model=Shared")),
            (None, "+lite.sub.model=shared", Err("value is not in set: [Shared, Exclusive]")),
            (None, "+lite.sub.reset.offset.exclusive=TRUE", Ok("lite.sub.reset.offset.exclusive=TRUE")),
            (None, "+lite.sub.reset.offset.exclusive=1", Err("boolean attribute format is wrong.")),
            (None, "+lite.sub.client.max.event.cnt=9", Err("value is not in range(10, 9223372036854775807)")),
            (is, "-priority.factor", Ok("")),
            (is, "+priority.factor=7", Ok("priority.factor=7")),
        ];
        for (old, change, wanted) in rows {
            let seen = changed(OF_GROUPS, old, change);
            assert_eq!(seen, wanted.map(str::to_owned).map_err(str::to_owned), "{change}");
        }
    }

    #[test]
    fn no_change_is_taken_that_was_not_written_as_one() {
        // Codes 18, 200 and 225 have the changes as a table, whatever its keys.
        let table = |key: &str| Attributes::from([(key.to_owned(), "1".to_owned())]);
        let old = table("reserve.time");
        for key in ["", "+", "-", "é", "ab-c", "reserve.time", " reserve.time"] {
            assert!(alter(OF_TOPICS, None, &table(key)).is_err(), "{key:?}");
            assert!(alter(OF_TOPICS, Some(&old), &table(key)).is_err(), "{key:?}");
        }
        let long = "é".repeat(4 * NAME_SHOWN_MAX);
        let remark = alter(OF_TOPICS, None, &table(&format!("+{long}"))).unwrap_err();
        assert_eq!(remark.chars().filter(|letter| *letter == 'é').count(), NAME_SHOWN_MAX);
    }
}
