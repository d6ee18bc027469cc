//! A message's properties: `name 0x01 value 0x02 name 0x01 value 0x02` (PROTOCOL 3.4).
//!
//! They stay the text they came as. Reading walks over it; writing appends to it or cuts from it.

use crate::scan::find;

/// Stands between name and value.
pub const NAME_END: char = '\u{1}';
/// Stands behind a value; may be missing behind the last.
pub const VALUE_END: char = '\u{2}';
/// Longest property text of a stored record: its length is a signed 16-bit number.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;

/// Names of properties that brokers and clients agree on (PROTOCOL 3.5).
pub mod name {
    /// Keys of a message, separated by one space.
    pub const KEYS: &str = "KEYS";
    /// Its tag.
    pub const TAGS: &str = "TAGS";
    /// Whether the producer waits until it is stored; absent means true.
    pub const WAIT: &str = "WAIT";
    /// Its priority: 0 is the lowest, and every number a queue (5.5).
    pub const PRIORITY: &str = "_SYS_MSG_PRIORITY_";
    /// What its queue was chosen by, of those that are in order.
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    /// Its delay level.
    pub const DELAY: &str = "DELAY";
    /// The original topic of a retried message.
    pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
    /// The original topic of a delayed, half or timer message.
    pub const REAL_TOPIC: &str = "REAL_TOPIC";
    /// The original queue of a delayed, half or timer message.
    pub const REAL_QID: &str = "REAL_QID";
    /// `true` on a half message.
    pub const TRAN_MSG: &str = "TRAN_MSG";
    /// The producer's group.
    pub const PGROUP: &str = "PGROUP";
    /// How long its producer wants not to be asked about a half message, in seconds.
    pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    /// How often the producer of a half message was asked; written by the broker.
    pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
    /// The unique id of a half message; written by the broker.
    pub const TRANSACTION_ID: &str = "__transactionId__";
    /// The first id of a retried message.
    pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
    /// The broker's region, written by the broker.
    pub const MSG_REGION: &str = "MSG_REGION";
    /// Whether clients trace it, written by the broker.
    pub const TRACE_ON: &str = "TRACE_ON";
    /// The broker's cluster, written by the broker.
    pub const CLUSTER: &str = "CLUSTER";
    /// The client's unique id.
    pub const UNIQ_KEY: &str = "UNIQ_KEY";
    /// Where a popped message came from.
    pub const POP_CK: &str = "POP_CK";
    /// When it was popped first, on what comes again, in ms since 1970.
    pub const FIRST_POP_TIME: &str = "1ST_POP_TIME";
    /// The group that popped it, on what comes again.
    pub const ORIGIN_GROUP: &str = "ORIGIN_GROUP";
    /// A timer's relative delay in seconds.
    pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
    /// A timer's relative delay in milliseconds.
    pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
    /// A timer's absolute time in milliseconds.
    pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
    /// When a timer is due, less a millisecond; written by the broker.
    pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
    /// When a timer began to wait; written by the broker.
    pub const TIMER_ENQUEUE_MS: &str = "TIMER_ENQUEUE_MS";
    /// When a timer ended its wait; written by the broker.
    pub const TIMER_DEQUEUE_MS: &str = "TIMER_DEQUEUE_MS";
    /// On a message that once deleted a timer.
    pub const TIMER_DEL_UNIQKEY: &str = "TIMER_DEL_UNIQKEY";
    /// Count of an inner batch.
    pub const INNER_NUM: &str = "INNER_NUM";
    /// First offset of an inner batch.
    pub const INNER_BASE: &str = "INNER_BASE";
    /// Light queues that get the message too, separated by commas.
    pub const INNER_MULTI_DISPATCH: &str = "INNER_MULTI_DISPATCH";
    /// Its offsets in them, in the same order; written by the broker.
    pub const INNER_MULTI_QUEUE_OFFSET: &str = "INNER_MULTI_QUEUE_OFFSET";
    /// The lite topic below its topic that a message is for.
    pub const LITE_TOPIC: &str = "__LITE_TOPIC";
    /// The kind of a request-reply message.
    pub const MSG_TYPE: &str = "MSG_TYPE";
    /// Pairs request and reply messages.
    pub const CORRELATION_ID: &str = "CORRELATION_ID";
    /// When a broker gave a reply to that client, written by the broker.
    pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
    /// The client that waits for the reply.
    pub const REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
}

/// Names and values in order. Pairs without a name or a value do not count, as in Java.
pub fn iter(text: &str) -> Pairs<'_> {
    Pairs { text, at: 0 }
}

/// See `iter`.
#[derive(Clone, Debug)]
pub struct Pairs<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a str);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.text.as_bytes();
        while self.at < bytes.len() {
            let name_at = self.at;
            let name_end = find::<1, 2>(bytes, name_at);
            if bytes.get(name_end) != Some(&1) {
                // No value: the pair ends here, or the text does.
                self.at = name_end + 1;
                continue;
            }
            let value_at = name_end + 1;
            let value_end = find::<2, 2>(bytes, value_at);
            self.at = value_end + 1;
            if name_end > name_at && value_end > value_at {
                return Some((&self.text[name_at..name_end], &self.text[value_at..value_end]));
            }
        }
        None
    }
}

/// The value of `name`; the last one if it is there twice, as in a Java map.
pub fn get<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    iter(text).filter(|(known, _)| *known == name).last().map(|(_, value)| value)
}

/// As `get`, for several names in one walk.
pub fn get_all<'a, const N: usize>(text: &'a str, names: [&str; N]) -> [Option<&'a str>; N] {
    let mut values = [None; N];
    for (known, value) in iter(text) {
        if let Some(index) = names.iter().position(|name| *name == known) {
            values[index] = Some(value);
        }
    }
    values
}

/// Appends the separator behind the last property if the text lacks it: another may follow.
pub fn end(text: &mut String) {
    if !text.is_empty() && !text.ends_with(VALUE_END) {
        text.push(VALUE_END);
    }
}

/// Appends a property, and the separator before it if the text lacks one. The caller has made
/// sure that it is not there yet, or uses `set`.
pub fn append(text: &mut String, name: &str, value: &str) {
    end(text);
    text.push_str(name);
    text.push(NAME_END);
    text.push_str(value);
    text.push(VALUE_END);
}

/// Removes every property of this name, in place.
pub fn remove(text: &mut String, name: &str) {
    remove_all(text, &[name]);
}

/// Removes every property of these names, in place and in one walk.
pub fn remove_all(text: &mut String, names: &[&str]) {
    let mut at = 0;
    while at < text.len() {
        let bytes = text.as_bytes();
        let end = (find::<2, 2>(bytes, at) + 1).min(bytes.len());
        let pair = &bytes[at..end];
        // The separator behind a name of this length tells most others apart without a look at the name.
        let is = |name: &&str| pair.get(name.len()) == Some(&(NAME_END as u8)) && pair.starts_with(name.as_bytes());
        if names.iter().any(is) {
            text.replace_range(at..end, "");
        } else {
            at = end;
        }
    }
}

/// Gives a property this value, whether it was there or not.
pub fn set(text: &mut String, name: &str, value: &str) {
    remove(text, name);
    append(text, name, value);
}

/// The single keys in a KEYS property.
pub fn keys(value: &str) -> impl Iterator<Item = &str> {
    value.split(' ').filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_texts_are_read_as_java_reads_them() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("\u{2}\u{2}", &[]),
            ("a\u{1}1\u{2}", &[("a", "1")]),
            ("a\u{1}1", &[("a", "1")]),
            ("a\u{1}1\u{2}b\u{1}2", &[("a", "1"), ("b", "2")]),
            ("a\u{1}\u{2}b\u{1}2\u{2}", &[("b", "2")]),
            ("\u{1}1\u{2}b\u{1}2\u{2}", &[("b", "2")]),
            ("ab\u{2}b\u{1}2\u{1}3\u{2}", &[("b", "2\u{1}3")]),
            ("名\u{1}é\u{2}", &[("名", "é")]),
        ];
        for (text, wanted) in cases {
            assert_eq!(iter(text).collect::<Vec<_>>(), *wanted, "{text:?}");
        }
        assert_eq!(get("a\u{1}1\u{2}b\u{1}2\u{2}a\u{1}3", "a"), Some("3"));
        assert_eq!(get("ab\u{1}1", "a"), None);
        let text = "a\u{1}1\u{2}b\u{1}2\u{2}a\u{1}3";
        assert_eq!(get_all(text, ["b", "c", "a"]), [Some("2"), None, Some("3")]);
    }

    #[test]
    fn texts_are_changed_in_place() {
        let mut text = String::from("a\u{1}1\u{2}b\u{1}2");
        append(&mut text, "c", "3");
        assert_eq!(text, "a\u{1}1\u{2}b\u{1}2\u{2}c\u{1}3\u{2}");
        set(&mut text, "b", "4");
        assert_eq!(text, "a\u{1}1\u{2}c\u{1}3\u{2}b\u{1}4\u{2}");
        remove(&mut text, "a");
        remove(&mut text, "b");
        remove(&mut text, "none");
        assert_eq!(text, "c\u{1}3\u{2}");
        remove(&mut text, "c");
        assert_eq!(text, "");
        let mut twice = String::from("a\u{1}1\u{2}x\u{2}a\u{1}2");
        remove(&mut twice, "a");
        assert_eq!(twice, "x\u{2}");
        let mut text = String::from("ab\u{1}1\u{2}b\u{1}2\u{1}\u{2}名\u{1}é\u{2}a\u{2}b\u{1}\u{2}a\u{1}5\u{2}c\u{1}名");
        remove_all(&mut text, &["b", "a", "名"]);
        assert_eq!(text, "ab\u{1}1\u{2}a\u{2}c\u{1}名");
        remove_all(&mut text, &["c"]);
        assert_eq!(text, "ab\u{1}1\u{2}a\u{2}");
    }

    #[test]
    fn keys_are_split() {
        assert_eq!(keys(" a  b c").collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
