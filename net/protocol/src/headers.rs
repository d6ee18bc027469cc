//! Typed request and response headers: ext fields to values and back (PROTOCOL 2 and Appendix A).
//!
//! Each type reads with `parse` and writes with `push`. A required field that is missing or does
//! not read as its type is an error that names it; an optional one is an `Option`; an absent
//! boolean is false, as in Java. Fields we do not know are ignored.

use std::fmt;

use crate::fields::Fields;

mod admin;
mod consume;
mod pop;
mod route;
mod send;

pub use admin::*;
pub use consume::*;
pub use pop::*;
pub use route::*;
pub use send::*;

/// Which ext field is wrong, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field's name on the wire.
    pub name: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the custom field <{}> {}", self.name, self.reason)
    }
}

impl std::error::Error for FieldError {}

/// A type that an ext field may have.
trait Value<'a>: Sized {
    fn parse(name: &'static str, text: Option<&'a str>) -> Result<Self, FieldError>;
    fn push(&self, name: &'static str, fields: &mut Fields);
}

impl<'a> Value<'a> for &'a str {
    #[inline]
    fn parse(name: &'static str, text: Option<&'a str>) -> Result<Self, FieldError> {
        text.ok_or(FieldError { name, reason: "is missing" })
    }

    fn push(&self, name: &'static str, fields: &mut Fields) {
        fields.push(name, self);
    }
}

/// The value of a text that is nothing but digits, one to `MOST` of them.
#[inline]
fn digits<const MOST: usize>(text: &str) -> Option<u64> {
    const { assert!(MOST < 20, "what they say fits") };
    if text.is_empty() || text.len() > MOST {
        return None;
    }
    let mut odd = false;
    let value = text.bytes().fold(0u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        odd |= digit > 9;
        // Behind an odd one it may be anything.
        value.wrapping_mul(10).wrapping_add(u64::from(digit))
    });
    (!odd).then_some(value)
}

/// Any other integer, or none.
#[cold]
fn parse_any<T: std::str::FromStr>(
    name: &'static str,
    text: Option<&str>,
    reason: &'static str,
) -> Result<T, FieldError> {
    let text = text.ok_or(FieldError { name, reason: "is missing" })?;
    text.parse().map_err(|_| FieldError { name, reason })
}

impl<'a> Value<'a> for i32 {
    #[inline]
    fn parse(name: &'static str, text: Option<&'a str>) -> Result<Self, FieldError> {
        match text.and_then(digits::<9>) {
            Some(value) => Ok(value as i32),
            None => parse_any(name, text, "is not a 32-bit integer"),
        }
    }

    fn push(&self, name: &'static str, fields: &mut Fields) {
        fields.push_int(name, *self);
    }
}

impl<'a> Value<'a> for i64 {
    #[inline]
    fn parse(name: &'static str, text: Option<&'a str>) -> Result<Self, FieldError> {
        match text.and_then(digits::<18>) {
            Some(value) => Ok(value as i64),
            None => parse_any(name, text, "is not a 64-bit integer"),
        }
    }

    fn push(&self, name: &'static str, fields: &mut Fields) {
        fields.push_int(name, *self);
    }
}

impl<'a> Value<'a> for bool {
    /// Like Java's `Boolean.parseBoolean`: everything but `true` is false.
    #[inline]
    fn parse(_: &'static str, text: Option<&'a str>) -> Result<Self, FieldError> {
        Ok(text.is_some_and(|text| text.eq_ignore_ascii_case("true")))
    }

    fn push(&self, name: &'static str, fields: &mut Fields) {
        fields.push_bool(name, *self);
    }
}

impl<'a, T: Value<'a>> Value<'a> for Option<T> {
    #[inline]
    fn parse(name: &'static str, text: Option<&'a str>) -> Result<Self, FieldError> {
        match text {
            Some(_) => T::parse(name, text).map(Some),
            None => Ok(None),
        }
    }

    fn push(&self, name: &'static str, fields: &mut Fields) {
        if let Some(value) = self {
            value.push(name, fields);
        }
    }
}

/// Makes a header of a list of fields and their names on the wire.
macro_rules! headers {
    ($(
        $(#[$doc:meta])*
        $name:ident $(<$life:lifetime>)? { $($field:ident: $type:ty = $wire:literal,)+ }
    )+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name $(<$life>)? {
            $(
                #[doc = concat!("Ext field `", $wire, "`.")]
                pub $field: $type,
            )+
        }

        impl $(<$life>)? $name $(<$life>)? {
            /// Reads the ext fields, in one pass over them.
            pub fn parse(fields: & $($life)? $crate::fields::Fields) -> Result<Self, $crate::headers::FieldError> {
                $(let mut $field = None;)+
                for (name, text) in fields.iter() {
                    match name {
                        $($wire => $field = Some(text),)+
                        _ => {}
                    }
                }
                Ok(Self { $($field: $crate::headers::Value::parse($wire, $field)?,)+ })
            }

            /// Writes the ext fields.
            pub fn push(&self, fields: &mut $crate::fields::Fields) {
                $($crate::headers::Value::push(&self.$field, $wire, fields);)+
            }
        }
    )+};
}
use headers;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_written_by_type() {
        let pull = PullMessage {
            consumer_group: "g",
            topic: "T",
            queue_id: 1,
            queue_offset: 1 << 40,
            max_msg_nums: 32,
            sys_flag: 3,
            commit_offset: -1,
            suspend_timeout_ms: 15_000,
            subscription: Some("TagA || TagB"),
            sub_version: 7,
            ..PullMessage::default()
        };
        let mut fields = Fields::default();
        pull.push(&mut fields);
        assert_eq!(PullMessage::parse(&fields), Ok(pull));
        assert_eq!((fields.len(), fields.get("queueOffset")), (10, Some("1099511627776")));

        let all: Vec<_> = fields.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        for (gone, _) in all.iter().filter(|(name, _)| name != "subscription") {
            let mut fields = Fields::default();
            fields.extend(all.iter().filter(|(name, _)| name != gone).map(|(name, value)| (&**name, &**value)));
            let error = PullMessage::parse(&fields).unwrap_err();
            assert_eq!((error.name, error.reason), (gone.as_str(), "is missing"));
        }
        fields.push("queueId", "");
        let error = PullMessage::parse(&fields).unwrap_err();
        assert_eq!(error.to_string(), "the custom field <queueId> is not a 32-bit integer");
    }

    #[test]
    fn integers_read_as_a_library_reads_them() {
        let texts = [
            "",
            "0",
            "7",
            "00",
            "-0",
            "+5",
            "-",
            "123456789",
            "999999999",
            "1234567890",
            "2147483647",
            "2147483648",
            "-2147483648",
            "12a",
            "a12",
            "12/",
            "12:",
            " 1",
            "1700000000000",
            "999999999999999999",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775808",
            "-99999999999999999",
            "//////////////////",
            "00000000000000000000000000000000001",
            "é",
        ];
        for text in texts {
            assert_eq!(i32::parse("n", Some(text)).ok(), text.parse().ok(), "{text:?}");
            assert_eq!(i64::parse("n", Some(text)).ok(), text.parse().ok(), "{text:?}");
        }
        assert_eq!(i32::parse("n", None).unwrap_err().reason, "is missing");
    }

    #[test]
    fn booleans_read_as_in_java() {
        for (text, wanted) in [("true", true), ("TRUE", true), ("false", false), ("1", false), ("", false)] {
            let mut fields = Fields::default();
            fields.push("groupName", "g");
            fields.push("cleanOffset", text);
            assert_eq!(DeleteGroup::parse(&fields).unwrap().clean_offset, wanted, "{text}");
        }
    }
}
