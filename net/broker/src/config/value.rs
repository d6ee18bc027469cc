//! A key's value, and how it is written in text.

use crate::keys::{Key, Kind, Unit};

/// A value in the range of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Number(u64),
    Switch(bool),
    Text(String),
}

impl Value {
    /// What holds where nobody says otherwise.
    pub fn default_of(key: &Key) -> Value {
        match key.kind {
            Kind::Number { default, .. } => Value::Number(default),
            Kind::Switch { default } => Value::Switch(default),
            Kind::Choice { default, .. } | Kind::Text { default, .. } => Value::Text(default.into()),
        }
    }

    /// Reads text. `Err` names the key and its range.
    pub fn parse(key: &Key, text: &str) -> Result<Value, String> {
        let value = match key.kind {
            Kind::Number { unit, min, max, .. } => {
                let number = if unit == Unit::Bytes { bytes(text) } else { text.parse().ok() };
                number.filter(|number| (min..=max).contains(number)).map(Value::Number)
            }
            Kind::Switch { .. } => text.parse().ok().map(Value::Switch),
            Kind::Choice { of, .. } => of.contains(&text).then(|| Value::Text(text.into())),
            Kind::Text { is_valid, .. } => is_valid(text).then(|| Value::Text(text.into())),
        };
        value.ok_or_else(|| format!("{} = {text:?} must be {}", key.name, range(&key.kind)))
    }

    /// As text that a configuration file may hold.
    pub fn show(&self, kind: &Kind) -> String {
        match (self, kind) {
            (Value::Number(number), Kind::Number { unit, .. }) => {
                let text = amount(*number, *unit);
                let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
                if is_plain { text } else { format!("{text:?}") }
            }
            (Value::Number(number), _) => number.to_string(),
            (Value::Switch(switch), _) => switch.to_string(),
            (Value::Text(text), _) => toml::Value::String(text.clone()).to_string(),
        }
    }
}

/// What a key may be, in words.
pub fn range(kind: &Kind) -> String {
    match *kind {
        Kind::Number { unit, min, max, .. } => {
            let (min, max) = (amount(min, unit), amount(max, unit));
            match unit {
                Unit::Count | Unit::Bytes => format!("{min} to {max}"),
                Unit::Milliseconds => format!("{min} to {max} ms"),
                Unit::Hours => format!("{min} to {max} hours"),
                Unit::Percent => format!("{min} to {max} percent"),
            }
        }
        Kind::Switch { .. } => "true or false".into(),
        Kind::Choice { of, .. } => of.join(" or "),
        Kind::Text { what, .. } => what.into(),
    }
}

/// `4096`, `64KiB`, `64 MiB`, `1GiB`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

/// Bytes in the largest unit that divides them.
fn amount(number: u64, unit: Unit) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let fits = |(unit, _): &&(u64, &str)| number >= *unit && number.is_multiple_of(*unit);
    match units.iter().find(fits) {
        Some((size, name)) if unit == Unit::Bytes => format!("{}{name}", number / size),
        _ => number.to_string(),
    }
}
