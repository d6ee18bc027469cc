//! What groups want of a topic: tags, and SQL92 over properties (PROTOCOL 6).

use std::cell::Cell;

use protocol::bodies::{SubscriptionData, TYPE_TAG};
use protocol::codes::response;
use protocol::message;
use protocol::sql::{EXPRESSION_BYTES_MAX, Expression};

use crate::call::ReplyTo;
use crate::catalog::{Subscription, Wants};
use crate::desk::Desk;

/// Tags that a pull brings with it, at most; a group's subscription has room for as many.
const TAGS_MAX: usize = 1_024;

/// Messages that one pull compares with an SQL expression: about a millisecond of a turn. 1,024.
pub const MATCHED_MAX: u32 = 1_024;

/// Expressions of pulls that are kept compiled, per core. 32: a look-up is a walk over them.
pub const COMPILED_MAX: usize = 32;
/// Bytes that it looks at for that, at most, and one message always: 16 MiB, some milliseconds. People's expressions look
/// at some KiB of a message; one of thousands of operators at long properties may look at 100 MiB.
const MATCHED_BYTES_MAX: u64 = 16 << 20;

/// Expressions that pulls brought with them, compiled: such a consumer says the same in each.
#[derive(Debug, Default)]
pub struct Compiled {
    /// Expression and type, and what is made of them; the latest last.
    latest: Vec<(String, String, Wants)>,
}

impl Compiled {
    /// What this expression wants. Cost: a look at [`COMPILED_MAX`] texts; one that is not there is compiled.
    pub fn get(&mut self, kind: &str, text: &str) -> Wants {
        if let Some((.., wants)) = self.latest.iter().rev().find(|(known, of, _)| known == text && of == kind) {
            return wants.clone();
        }
        let wants = Wants::of_expression(kind, text);
        if kind.len() + text.len() > EXPRESSION_BYTES_MAX {
            // It is refused, and not worth the memory.
            return wants;
        }
        if self.latest.len() == COMPILED_MAX {
            self.latest.remove(0);
        }
        self.latest.push((text.to_owned(), kind.to_owned(), wants.clone()));
        wants
    }
}

impl Desk {
    /// What a pull itself says that it wants. `None`: it was refused.
    pub(crate) fn own_filter(&mut self, reply: &ReplyTo, topic: &str, kind: &str, text: &str) -> Option<Wants> {
        let wants = if matches!(kind, "" | TYPE_TAG) {
            wants_of(topic, text)
        } else if !self.settings.property_filter {
            self.refuse(reply, response::SYSTEM_ERROR, &no_filter(kind));
            return None;
        } else {
            Some(self.pulls.compiled.get(kind, text))
        };
        match wants {
            Some(Wants::Wrong(reason)) => {
                let remark = format!("parse the consumer's subscription failed: {reason}");
                self.refuse(reply, response::SUBSCRIPTION_PARSE_FAILED, &remark);
                None
            }
            None => {
                self.refuse(reply, response::SUBSCRIPTION_PARSE_FAILED, "parse the consumer's subscription failed");
                None
            }
            wants => wants,
        }
    }
}

/// Compares stored messages with an expression, until it has looked at too many bytes.
pub(crate) fn matcher(expression: &Expression) -> impl Fn(&[u8]) -> Option<bool> {
    let looked = Cell::new(0);
    move |record| {
        if looked.get() >= MATCHED_BYTES_MAX {
            return None;
        }
        let Some(properties) = message::properties_of(record) else { return Some(false) };
        looked.set(looked.get() + expression.work(properties));
        Some(expression.matches(properties))
    }
}

/// The answer to who filters by something else than tags, where that is off.
pub(crate) fn no_filter(kind: &str) -> String {
    format!("The broker does not support consumer to filter message by {kind}")
}

/// The filter of a tag expression: empty or `*` is everything. `None`: it has no tag.
fn wants_of(topic: &str, expression: &str) -> Option<Wants> {
    // Nearly every one of them; without a look at tags.
    if matches!(expression, "" | "*") {
        return Some(Wants::All);
    }
    let data = SubscriptionData::from_expression(topic, expression)?;
    if data.code_set.len() > TAGS_MAX {
        return Some(Wants::Wrong(format!("it has more than {TAGS_MAX} tags").into()));
    }
    Some(Subscription::of(&data).wants)
}

/// What an expression of tags wants; it was looked at when it came.
pub fn wants_of_tags(tags: &str) -> Wants {
    SubscriptionData::from_expression("", tags).map_or(Wants::All, |data| Subscription::of(&data).wants)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// An expression that looks at a message's properties a thousand times.
    pub(crate) fn long_expression() -> String {
        (0..1_000).map(|number| format!("a = '{number}'")).collect::<Vec<_>>().join(" OR ")
    }

    /// A stored message whose property `a` has this value.
    pub(crate) fn record(value: &str) -> Vec<u8> {
        let host = "10.0.0.1:1".parse().unwrap();
        let mut properties = String::new();
        protocol::properties::append(&mut properties, "a", value);
        let message = protocol::StoredMessage::plain(host, "T", &properties, b"");
        let mut out = vec![0; message.encoded_len()];
        message.encode(&mut out);
        out
    }

    #[test]
    fn expressions_become_filters() {
        let tags = |codes: &[i32]| Some(Wants::Tags(codes.to_vec()));
        for (expression, wanted) in [
            ("", Some(Wants::All)),
            ("*", Some(Wants::All)),
            ("A", tags(&[65])),
            (" TagA ||A|| ", tags(&[65, 2_598_919])),
            ("||", None),
        ] {
            assert_eq!(wants_of("T", expression), wanted, "{expression:?}");
        }
        let many = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>().join("||");
        assert!(matches!(wants_of("T", &many(TAGS_MAX)), Some(Wants::Tags(tags)) if tags.len() == TAGS_MAX));
        assert!(matches!(wants_of("T", &many(TAGS_MAX + 1)), Some(Wants::Wrong(_))));
    }

    #[test]
    fn an_expression_looks_at_so_many_bytes_and_one_message_always() {
        let (long, short) = (record(&"x".repeat(30_000)), record("999"));
        let expression = Expression::compile(&long_expression()).unwrap();
        let matches = matcher(&expression);
        assert_eq!((matches(&long), matches(&long)), (Some(false), None));
        let plain = Expression::compile("a = '998' OR a = '999'").unwrap();
        let matches = matcher(&plain);
        assert!((0..MATCHED_MAX).all(|_| matches(&short) == Some(true)), "a plain expression costs little");
    }

    #[test]
    fn expressions_of_pulls_are_compiled_once() {
        let mut compiled = Compiled::default();
        let Wants::Sql(first) = compiled.get("SQL92", "a = 0") else { panic!("it is legal") };
        for number in 1..COMPILED_MAX {
            assert!(matches!(compiled.get("SQL92", &format!("a = {number}")), Wants::Sql(_)));
        }
        let Wants::Sql(again) = compiled.get("SQL92", "a = 0") else { panic!("it is legal") };
        assert!(Arc::ptr_eq(&first, &again));
        assert!(matches!(compiled.get("SQL93", "a = 0"), Wants::Wrong(_)));
        assert!(matches!(compiled.get("SQL92", "a ="), Wants::Wrong(_)));
        assert_eq!(compiled.latest.len(), COMPILED_MAX);
        let long = "a".repeat(EXPRESSION_BYTES_MAX + 1);
        assert!(matches!(compiled.get("SQL92", &long), Wants::Wrong(_)));
        assert!(compiled.latest.iter().all(|(text, ..)| text.len() < EXPRESSION_BYTES_MAX), "long texts are not kept");
    }
}
