//! Words of an expression, and where they stand.

use super::SqlError;

/// One word.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    Keyword(Keyword),
    /// A property's name.
    Name(&'a str),
    /// What stands between the quotes, quotes inside still doubled.
    Text(&'a str),
    /// Digits, without the `L` that may stand behind them.
    Whole(&'a str),
    /// A number with a point or an exponent.
    Float(&'a str),
    /// Anything of one or two signs.
    Sign(&'static str),
    /// There is nothing more.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Not,
    And,
    Or,
    Between,
    In,
    True,
    False,
    Null,
    Is,
    Contains,
    StartsWith,
    EndsWith,
}

const KEYWORDS: [(&str, Keyword); 12] = [
    ("NOT", Keyword::Not),
    ("AND", Keyword::And),
    ("OR", Keyword::Or),
    ("BETWEEN", Keyword::Between),
    ("IN", Keyword::In),
    ("TRUE", Keyword::True),
    ("FALSE", Keyword::False),
    ("NULL", Keyword::Null),
    ("IS", Keyword::Is),
    ("CONTAINS", Keyword::Contains),
    ("STARTSWITH", Keyword::StartsWith),
    ("ENDSWITH", Keyword::EndsWith),
];

/// Longest first.
const SIGNS: [&str; 11] = ["<>", ">=", "<=", "=", ">", "<", "(", ",", ")", "+", "-"];

/// Words in order. Nothing is read twice.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Lexer<'a> {
        Lexer { text, at: 0 }
    }

    /// The next word, and the byte where it begins.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'a>), SqlError> {
        self.skip_space()?;
        let at = self.at;
        let rest = &self.text[at..];
        let Some(first) = rest.bytes().next() else { return Ok((at, Token::End)) };
        let (token, length) = if first == b'\'' {
            let length = text_length(rest).ok_or_else(|| SqlError::new(self.text, at, "a string without its end"))?;
            (Token::Text(&rest[1..length - 1]), length)
        } else if first.is_ascii_digit() || first == b'.' {
            number(rest).ok_or_else(|| SqlError::new(self.text, at, "a point without digits"))?
        } else if is_name(first) {
            let length = run(rest, |byte| is_name(byte) || byte.is_ascii_digit());
            (word(&rest[..length]), length)
        } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
            (Token::Sign(sign), sign.len())
        } else {
            let sign = rest.chars().next().unwrap_or_default();
            return Err(SqlError::new(self.text, at, format!("{sign:?} is no part of an expression")));
        };
        self.at = at + length;
        Ok((at, token))
    }

    /// Goes past white space and comments.
    fn skip_space(&mut self) -> Result<(), SqlError> {
        loop {
            let rest = &self.text[self.at..];
            if rest.starts_with("--") {
                self.at += run(rest, |byte| byte != b'\n' && byte != b'\r');
            } else if let Some(comment) = rest.strip_prefix("/*") {
                let end = comment.find("*/");
                let end = end.ok_or_else(|| SqlError::new(self.text, self.at, "a comment without its end"))?;
                self.at += 2 + end + 2;
            } else {
                match run(rest, |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c)) {
                    0 => return Ok(()),
                    length => self.at += length,
                }
            }
        }
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte == b'$'
}

/// How many bytes from the start are like this.
fn run(text: &str, is_like: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|byte| is_like(*byte)).count()
}

fn word(word: &str) -> Token<'_> {
    let keyword = KEYWORDS.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    keyword.map_or(Token::Name(word), |(_, keyword)| Token::Keyword(keyword))
}

/// The length of a string with its quotes; a doubled quote does not end it.
fn text_length(rest: &str) -> Option<usize> {
    let mut at = 1;
    loop {
        at += rest[at..].find('\'')? + 1;
        if !rest[at..].starts_with('\'') {
            return Some(at);
        }
        at += 1;
    }
}

/// A number and its length: `0`, `12`, `12L`, `1.5`, `5.`, `.5E-3`, `5E10`. Zeros in front begin no whole number.
fn number(rest: &str) -> Option<(Token<'_>, usize)> {
    let digits = |from: usize| run(&rest[from..], |byte| byte.is_ascii_digit());
    let whole = digits(0);
    let has_point = rest[whole..].starts_with('.');
    let mut end = if has_point { whole + 1 + digits(whole + 1) } else { whole };
    if has_point && end == 1 {
        return None;
    }
    let exponent = rest[end..].starts_with(['e', 'E']);
    let sign = usize::from(exponent && rest[end + 1..].starts_with(['+', '-']));
    let power = if exponent { digits(end + 1 + sign) } else { 0 };
    if power > 0 {
        end += 1 + sign + power;
    }
    if has_point || power > 0 {
        return Some((Token::Float(&rest[..end]), end));
    }
    let length = if rest.starts_with('0') { 1 } else { whole };
    let suffix = usize::from(rest[length..].starts_with(['l', 'L']));
    Some((Token::Whole(&rest[..length]), length + suffix))
}
