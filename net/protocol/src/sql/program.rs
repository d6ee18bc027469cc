//! A compiled expression: operations in the order in which they are done, on a small stack.

use super::parser::parse;
use super::{STACK_MAX, SqlError, VARIABLES_MAX};
use crate::properties;

/// A compiled expression.
#[derive(Debug, PartialEq)]
pub struct Expression {
    pub(super) ops: Box<[Op]>,
    pub(super) constants: Box<[Constant]>,
    /// Lists of `IN`, each sorted.
    pub(super) words: Box<[Box<str>]>,
    /// Properties, in the order of their first use.
    pub(super) names: Box<[Box<str>]>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Constant {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(Box<str>),
}

/// What is done next. Operands are taken from the stack, the outcome is put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Property(u16),
    Constant(u16),
    /// A property where a truth value is wanted: it never is one.
    Cast,
    Negate,
    Not,
    IsNull,
    Equal,
    Compare(Order),
    /// Of value, low and high.
    Between {
        not: bool,
    },
    In {
        first: u16,
        end: u16,
        not: bool,
    },
    Part {
        place: Place,
        text: u16,
        not: bool,
    },
    /// If the value is this truth, it is the outcome: goes on at `end`.
    Decided {
        truth: bool,
        end: u16,
    },
    And,
    Or,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// Where in a string another one must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Anywhere,
    Start,
    End,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Null,
    Bool(bool),
    Int(i32),
    Long(i64),
    Double(f64),
    Text(&'a str),
}

// A literal is a number, so every constant is equal to itself.
impl Eq for Expression {}

/// Two values cannot be compared: the message does not match.
struct Incomparable;

impl Expression {
    /// Compiles an expression. Cost: its length, bounded by `EXPRESSION_BYTES_MAX`.
    pub fn compile(text: &str) -> Result<Expression, SqlError> {
        parse(text)
    }

    /// Whether a message with these properties matches. What is unknown does not, nor what cannot be compared.
    ///
    /// Cost: one walk over the properties, one over the expression, no allocation.
    pub fn matches(&self, properties: &str) -> bool {
        let mut values = [None; VARIABLES_MAX];
        for (name, value) in properties::iter(properties) {
            if let Some(place) = self.names.iter().position(|known| **known == *name) {
                values[place] = Some(value);
            }
        }
        matches!(self.run(&values), Ok(Value::Bool(true)))
    }

    /// Bytes that [`matches`](Expression::matches) looks at, at most.
    pub fn work(&self, properties: &str) -> u64 {
        properties.len() as u64 * (1 + self.ops.len() as u64)
    }

    fn run<'a>(&'a self, properties: &[Option<&'a str>; VARIABLES_MAX]) -> Result<Value<'a>, Incomparable> {
        let mut stack = [Value::Null; STACK_MAX];
        // Values on the stack.
        let mut count = 0;
        let mut at = 0;
        while let Some(op) = self.ops.get(at) {
            at += 1;
            match *op {
                Op::Property(_) | Op::Constant(_) => count += 1,
                Op::Equal | Op::Compare(_) | Op::And | Op::Or => count -= 1,
                Op::Between { .. } => count -= 2,
                _ => {}
            }
            // The first operand's place is the outcome's.
            let value = stack[count - 1];
            stack[count - 1] = match *op {
                Op::Property(place) => properties[usize::from(place)].map_or(Value::Null, Value::Text),
                Op::Constant(place) => self.constants[usize::from(place)].value(),
                Op::Cast => match value {
                    Value::Null | Value::Bool(_) => value,
                    _ => Value::Bool(false),
                },
                Op::Negate => value.negated(),
                Op::Not => not(value),
                Op::IsNull => Value::Bool(matches!(value, Value::Null)),
                Op::Equal => value.equals(stack[count])?,
                Op::Compare(order) => value.compare(order, stack[count])?,
                Op::Between { not: false } => match value.compare(Order::GreaterEqual, stack[count])? {
                    Value::Bool(false) => Value::Bool(false),
                    low => and(low, value.compare(Order::LessEqual, stack[count + 1])?),
                },
                Op::Between { not: true } => match value.compare(Order::Less, stack[count])? {
                    Value::Bool(true) => Value::Bool(true),
                    low => or(low, value.compare(Order::Greater, stack[count + 1])?),
                },
                Op::In { first, end, not } => match value {
                    Value::Text(text) => {
                        let words = &self.words[usize::from(first)..usize::from(end)];
                        Value::Bool(words.binary_search_by(|word| (**word).cmp(text)).is_ok() != not)
                    }
                    _ => Value::Null,
                },
                Op::Part { place, text, not } => match (value, &self.constants[usize::from(text)]) {
                    // The negated form of what is no string is false too.
                    (Value::Text(value), Constant::Text(part)) if !part.is_empty() => {
                        Value::Bool(place.has(value, part) != not)
                    }
                    _ => Value::Bool(false),
                },
                Op::Decided { truth, end } => {
                    if matches!(value, Value::Bool(is) if is == truth) {
                        at = usize::from(end);
                    }
                    value
                }
                Op::And => and(value, stack[count]),
                Op::Or => or(value, stack[count]),
            };
        }
        Ok(stack[0])
    }
}

impl Constant {
    fn value(&self) -> Value<'_> {
        match self {
            Constant::Null => Value::Null,
            Constant::Bool(truth) => Value::Bool(*truth),
            Constant::Int(number) => Value::Int(*number),
            Constant::Long(number) => Value::Long(*number),
            Constant::Double(number) => Value::Double(*number),
            Constant::Text(text) => Value::Text(text),
        }
    }
}

impl Place {
    fn has(self, text: &str, part: &str) -> bool {
        match self {
            Place::Anywhere => text.contains(part),
            Place::Start => text.starts_with(part),
            Place::End => text.ends_with(part),
        }
    }
}

fn not(value: Value<'_>) -> Value<'_> {
    match value {
        Value::Bool(truth) => Value::Bool(!truth),
        value => value,
    }
}

fn and<'a>(left: Value<'a>, right: Value<'a>) -> Value<'a> {
    match (left, right) {
        (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
        (Value::Bool(true), Value::Bool(true)) => Value::Bool(true),
        _ => Value::Null,
    }
}

fn or<'a>(left: Value<'a>, right: Value<'a>) -> Value<'a> {
    match (left, right) {
        (Value::Bool(true), _) | (_, Value::Bool(true)) => Value::Bool(true),
        (Value::Bool(false), Value::Bool(false)) => Value::Bool(false),
        _ => Value::Null,
    }
}

impl<'a> Value<'a> {
    /// What is no number has no negative.
    fn negated(self) -> Value<'a> {
        match self {
            Value::Int(number) => Value::Int(number.wrapping_neg()),
            Value::Long(number) => Value::Long(number.wrapping_neg()),
            Value::Double(number) => Value::Double(-number),
            _ => Value::Null,
        }
    }

    /// Two that are both missing are equal.
    fn equals(self, other: Value<'a>) -> Result<Value<'a>, Incomparable> {
        Ok(match (self, other) {
            (Value::Null, Value::Null) => Value::Bool(true),
            (Value::Null, _) => Value::Null,
            (_, Value::Null) => Value::Bool(false),
            (Value::Text(left), Value::Text(right)) => Value::Bool(left == right),
            _ => Value::Bool(self.ordering(other)?.is_some_and(|ordering| ordering.is_eq())),
        })
    }

    fn compare(self, order: Order, other: Value<'a>) -> Result<Value<'a>, Incomparable> {
        if matches!(self, Value::Null) || matches!(other, Value::Null) {
            return Ok(Value::Null);
        }
        // RocketMQ takes what it cannot order for less.
        let ordering = self.ordering(other)?.unwrap_or(std::cmp::Ordering::Less);
        Ok(Value::Bool(match order {
            Order::Less => ordering.is_lt(),
            Order::LessEqual => ordering.is_le(),
            Order::Greater => ordering.is_gt(),
            Order::GreaterEqual => ordering.is_ge(),
        }))
    }

    /// How two values lie that are there. `None`: they have nothing in common. Doubles have Java's order, where
    /// `NaN` is the greatest and -0 lies before 0.
    fn ordering(self, other: Value<'a>) -> Result<Option<std::cmp::Ordering>, Incomparable> {
        use Value::{Bool, Double, Int, Long, Text};
        Ok(Some(match (self, other) {
            (Bool(left), Bool(right)) => left.cmp(&right),
            (Text(left), Bool(right)) => left.eq_ignore_ascii_case("true").cmp(&right),
            // RocketMQ stumbles here.
            (Bool(_), Text(_)) => return Err(Incomparable),
            (Int(left), Int(right)) => left.cmp(&right),
            (Int(left), Long(right)) => i64::from(left).cmp(&right),
            (Long(left), Int(right)) => left.cmp(&i64::from(right)),
            (Long(left), Long(right)) => left.cmp(&right),
            (Int(left), Double(right)) => java_order(f64::from(left), right),
            (Double(left), Int(right)) => java_order(left, f64::from(right)),
            (Long(left), Double(right)) => java_order(left as f64, right),
            (Double(left), Long(right)) => java_order(left, right as f64),
            (Double(left), Double(right)) => java_order(left, right),
            (Text(left), Int(right)) => int(left)?.cmp(&right),
            (Int(left), Text(right)) => left.cmp(&int(right)?),
            (Text(left), Long(right)) => long(left)?.cmp(&right),
            (Long(left), Text(right)) => left.cmp(&long(right)?),
            (Text(left), Double(right)) => java_order(double(left)?, right),
            (Double(left), Text(right)) => java_order(left, double(right)?),
            // Two strings are compared by size as numbers only.
            (Text(left), Text(right)) => java_order(double(left)?, double(right)?),
            _ => return Ok(None),
        }))
    }
}

fn java_order(left: f64, right: f64) -> std::cmp::Ordering {
    // All that is no number is one value in Java.
    let canonical = |number: f64| if number.is_nan() { f64::NAN.abs() } else { number };
    canonical(left).total_cmp(&canonical(right))
}

fn int(text: &str) -> Result<i32, Incomparable> {
    text.parse().map_err(|_| Incomparable)
}

fn long(text: &str) -> Result<i64, Incomparable> {
    text.parse().map_err(|_| Incomparable)
}

/// As Java's `Double.valueOf` reads it, but for hexadecimal digits.
fn double(text: &str) -> Result<f64, Incomparable> {
    let text = text.trim_matches(|sign| sign <= ' ');
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let number = match digits {
        "NaN" => f64::NAN,
        "Infinity" => f64::INFINITY,
        _ if digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') => {
            digits.strip_suffix(['d', 'D', 'f', 'F']).unwrap_or(digits).parse().map_err(|_| Incomparable)?
        }
        _ => return Err(Incomparable),
    };
    Ok(if is_negative { -number } else { number })
}
