//! SQL92 filters: an expression over a message's properties, compiled once and evaluated for each message
//! (PROTOCOL 4.15).
//!
//! The grammar, loosest first; keywords in any case, names of properties as they are written:
//!
//! ```text
//! or       = and { OR and }
//! and      = equality { AND equality }
//! equality = compared { ( "=" | "<>" ) compared | IS [ NOT ] NULL }
//! compared = unary { ( ">" | ">=" | "<" | "<=" ) unary | [ NOT ] BETWEEN unary AND unary
//!                  | [ NOT ] IN "(" string { "," string } ")"
//!                  | [ NOT ] ( CONTAINS | STARTSWITH | ENDSWITH ) string }
//! unary    = { "+" | "-" | NOT } ( literal | name | "(" or ")" )
//! literal  = string | 12 | 12L | 1.5 | .5E3 | TRUE | FALSE | NULL
//! ```
//!
//! `NOT` binds tighter than `=`, as in RocketMQ: `NOT a = 1` is `(NOT a) = 1`. There is no arithmetic and no LIKE.
//! Truth has three values. A property is a string or nothing; compared with a number it is read as that literal's
//! very type (32 bits, 64 bits, double), and if it cannot be, the message does not match, whatever else the
//! expression says. All of it as `rocketmq-filter` 5.5.0 does, which decides every doubt, but for this: text behind
//! the end of an expression is an error here, not ignored; `0.0` and `0L` are numbers; a comment may end the text.

use std::fmt;

mod lexer;
mod parser;
mod program;
#[cfg(test)]
mod tests;

pub use program::Expression;

/// Longest expression, in bytes. 16 KiB: an `IN` of a thousand words; people write some hundred bytes.
pub const EXPRESSION_BYTES_MAX: usize = 16 << 10;
/// Deepest nesting of parentheses and signs. 64; people nest a handful. It bounds the parser's stack.
pub const DEPTH_MAX: usize = 64;
/// Most properties that one expression names. 64: every message's are sorted into so many places.
pub const VARIABLES_MAX: usize = 64;
/// Most values under way at once in an evaluation. 64: a nesting of ten needs some twenty.
pub const STACK_MAX: usize = 64;

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError {
    /// The line, from 1.
    pub line: usize,
    /// The character in that line, from 1.
    pub column: usize,
    /// What is wrong.
    pub reason: String,
}

impl SqlError {
    /// `at`: the byte where it is wrong.
    fn new(text: &str, at: usize, reason: impl Into<String>) -> SqlError {
        let before = &text[..at];
        let line_at = before.rfind('\n').map_or(0, |end| end + 1);
        SqlError {
            line: before.matches('\n').count() + 1,
            column: before[line_at..].chars().count() + 1,
            reason: reason.into(),
        }
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at line {}, column {}", self.reason, self.line, self.column)
    }
}

impl std::error::Error for SqlError {}
