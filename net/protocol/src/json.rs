//! The JSON of command headers, read and written by hand.
//!
//! Headers pass on every message: a scanner that unescapes straight into the reused text of
//! `Fields` costs no allocation. Bodies go through `serde_json` instead.

use std::fmt;

use crate::fields::{Decimal, FIELDS_MAX, Fields};

/// Deepest nesting that is skipped in members we do not know.
pub const DEPTH_MAX: usize = 32;

/// Why bytes are no command header. The peer is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Not UTF-8.
    Utf8,
    /// At byte `at` something else than `wanted` stands.
    Json {
        /// Byte position in the header.
        at: usize,
        /// What would have been legal there.
        wanted: &'static str,
    },
    /// The named member is no integer of its width.
    Number(&'static str),
    /// Unknown members nest deeper than `DEPTH_MAX`.
    Depth,
    /// More than `FIELDS_MAX` ext fields.
    Fields,
    /// A binary header's lengths disagree with its size.
    Binary,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderError::Utf8 => write!(f, "header is not UTF-8"),
            HeaderError::Json { at, wanted } => write!(f, "header byte {at}: wanted {wanted}"),
            HeaderError::Number(name) => write!(f, "header member {name} is not an integer"),
            HeaderError::Depth => write!(f, "header nests deeper than {DEPTH_MAX}"),
            HeaderError::Fields => write!(f, "header has more than {FIELDS_MAX} ext fields"),
            HeaderError::Binary => write!(f, "header lengths disagree with its size"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// A cursor over one JSON text.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Scanner<'a>, HeaderError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::Utf8)?;
        Ok(Scanner { text, at: 0 })
    }

    /// Steps into `{`; then `member` is called before each member, with `first` set once.
    pub(crate) fn open(&mut self) -> Result<(), HeaderError> {
        self.expect(b'{', "{")
    }

    /// Whether one more member follows in the object; consumes the comma before it or the brace
    /// behind the last.
    pub(crate) fn more(&mut self, first: bool) -> Result<bool, HeaderError> {
        match self.next_token() {
            Some(b'}') => {
                self.at += 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            _ if first => Ok(true),
            _ => Err(self.wanted(", or }")),
        }
    }

    /// A member's name and its colon; the name goes behind `out`.
    pub(crate) fn name(&mut self, out: &mut String) -> Result<(), HeaderError> {
        self.string(out)?;
        self.expect(b':', ":")
    }

    /// A value as text behind `out`: a string unescaped, a number or boolean as it stands.
    /// `Ok(false)`: it was null.
    pub(crate) fn scalar(&mut self, out: &mut String) -> Result<bool, HeaderError> {
        match self.next_token() {
            Some(b'"') => self.string(out).map(|()| true),
            Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                let word = self.word();
                match word {
                    "null" => return Ok(false),
                    "true" | "false" => {}
                    _ if is_number(word) => {}
                    _ => return Err(self.wanted("a value")),
                }
                out.push_str(word);
                Ok(true)
            }
            _ => Err(self.wanted("a string, number, boolean or null")),
        }
    }

    /// An integer, bare or quoted as fastjson takes both. `None`: it was null.
    pub(crate) fn int(&mut self, name: &'static str) -> Result<Option<i32>, HeaderError> {
        let quoted = self.next_token() == Some(b'"');
        if quoted {
            self.at += 1;
        }
        let word = self.word();
        if quoted {
            if self.text.as_bytes().get(self.at) != Some(&b'"') {
                return Err(HeaderError::Number(name));
            }
            self.at += 1;
        } else if word == "null" {
            return Ok(None);
        }
        word.parse().map(Some).map_err(|_| HeaderError::Number(name))
    }

    /// Whether the next value is null; consumes it only then.
    pub(crate) fn null(&mut self) -> bool {
        self.next_token();
        let is_null = self.text[self.at..].starts_with("null");
        if is_null {
            self.at += 4;
        }
        is_null
    }

    /// Walks over one value of any kind. Strict enough to stay in step, not a validator.
    pub(crate) fn skip(&mut self, scratch: &mut String) -> Result<(), HeaderError> {
        let from = scratch.len();
        let mut depth = 0;
        loop {
            match self.next_token() {
                Some(b'{' | b'[') => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return Err(HeaderError::Depth);
                    }
                    self.at += 1;
                }
                Some(b'}' | b']') if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                Some(b',' | b':') if depth > 0 => self.at += 1,
                _ => {
                    self.scalar(scratch)?;
                    scratch.truncate(from);
                }
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(&mut self) -> Result<(), HeaderError> {
        match self.next_token() {
            None => Ok(()),
            Some(_) => Err(self.wanted("the end")),
        }
    }

    /// The next byte that is no white space, not consumed.
    #[inline]
    fn next_token(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = bytes.get(self.at) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    #[inline]
    fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<(), HeaderError> {
        if self.next_token() != Some(byte) {
            return Err(self.wanted(wanted));
        }
        self.at += 1;
        Ok(())
    }

    fn wanted(&self, wanted: &'static str) -> HeaderError {
        HeaderError::Json { at: self.at, wanted }
    }

    /// Letters, digits and signs up to the next structural byte.
    fn word(&mut self) -> &'a str {
        let from = self.at;
        let bytes = self.text.as_bytes();
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'+' | b'.') = bytes.get(self.at) {
            self.at += 1;
        }
        &self.text[from..self.at]
    }

    /// A quoted string, unescaped, behind `out`. Raw control characters pass, as in fastjson.
    #[inline]
    fn string(&mut self, out: &mut String) -> Result<(), HeaderError> {
        self.expect(b'"', "a string")?;
        loop {
            let special = find_special(self.text.as_bytes(), self.at);
            let Some(byte) = self.text.as_bytes().get(special) else {
                return Err(HeaderError::Json { at: special, wanted: "a closing quote" });
            };
            out.push_str(&self.text[self.at..special]);
            self.at = special + 1;
            if *byte == b'"' {
                return Ok(());
            }
            self.escape(out)?;
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, out: &mut String) -> Result<(), HeaderError> {
        let Some(byte) = self.text.as_bytes().get(self.at) else {
            return Err(self.wanted("an escape"));
        };
        let plain = match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                let unit = self.hex4()?;
                out.push(self.pair(unit)?);
                return Ok(());
            }
            _ => return Err(self.wanted("an escape")),
        };
        self.at += 1;
        out.push(plain);
        Ok(())
    }

    /// The character of one UTF-16 unit, or of the pair that it opens. Java strings may hold
    /// half a pair, which no UTF-8 can: it becomes U+FFFD.
    fn pair(&mut self, unit: u32) -> Result<char, HeaderError> {
        if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with("\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let scalar = 0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex4(&mut self) -> Result<u32, HeaderError> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.text.as_bytes().get(self.at).copied();
            let Some(digit) = digit.and_then(|digit| char::from(digit).to_digit(16)) else {
                return Err(self.wanted("four hex digits"));
            };
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }
}

/// Reads the object of ext fields behind `fields`.
pub(crate) fn read_fields(scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<(), HeaderError> {
    if scanner.null() {
        return Ok(());
    }
    scanner.open()?;
    let mut first = true;
    while scanner.more(first)? {
        first = false;
        let at = fields.text().len();
        scanner.name(fields.text())?;
        let name_bytes = fields.text().len() - at;
        if !scanner.scalar(fields.text())? {
            fields.cut(at);
            continue;
        }
        if fields.len() == FIELDS_MAX {
            return Err(HeaderError::Fields);
        }
        fields.close(at, name_bytes);
    }
    Ok(())
}

/// Writes a quoted JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(byte >> 4)]);
                out.push(HEX[usize::from(byte & 15)]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Writes a decimal integer.
pub(crate) fn write_int(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(Decimal::of(value).as_bytes());
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok() && word.ends_with(|last: char| last.is_ascii_digit())
}

/// The position of the next quote or backslash at or behind `from`, or the end.
#[inline]
fn find_special(bytes: &[u8], from: usize) -> usize {
    // Eight bytes at once: a byte of `x` is zero where it matches, and subtracting one from each
    // byte sets the high bit of a zero byte. Bytes above the lowest match may be marked wrongly;
    // only the lowest counts.
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    const QUOTE: u64 = ONES * b'"' as u64;
    const SLASH: u64 = ONES * b'\\' as u64;
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let (quote, slash) = (word ^ QUOTE, word ^ SLASH);
        let found = (quote.wrapping_sub(ONES) & !quote | slash.wrapping_sub(ONES) & !slash) & HIGH;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < bytes.len() && !matches!(bytes[at], b'"' | b'\\') {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_bytes_are_found_at_every_distance() {
        for special in [b'"', b'\\'] {
            for from in 0..3 {
                for distance in 0..40 {
                    for fill in [b'a', 0x01, 0x21, 0x23, 0x5b, 0x5d, 0xff, 0xa2] {
                        let mut bytes = vec![fill; from + distance];
                        bytes.push(special);
                        bytes.extend_from_slice(&[b'"'; 9]);
                        assert_eq!(find_special(&bytes, from), from + distance);
                        assert_eq!(find_special(&bytes[..from + distance], from), from + distance);
                    }
                }
            }
        }
    }

    #[test]
    fn strings_are_unescaped() {
        let cases = [
            (r#""""#, Ok("")),
            (r#""TAGS\u0001A\u0002""#, Ok("TAGS\u{1}A\u{2}")),
            (r#""\"\\\/\b\f\n\r\t""#, Ok("\"\\/\u{8}\u{c}\n\r\t")),
            (r#""\ud83d\ude00 \u00e9 \u4E2d é中""#, Ok("😀 é 中 é中")),
            (r#""\ud83d""#, Ok("\u{fffd}")),
            (r#""\ud83dx""#, Ok("\u{fffd}x")),
            (r#""\ude00""#, Ok("\u{fffd}")),
            (r#""\ud83d\u0041""#, Ok("\u{fffd}A")),
            ("\"raw\u{1}control\"", Ok("raw\u{1}control")),
            (r#""open"#, Err(())),
            (r#""\u12g4""#, Err(())),
            (r#""\u123"#, Err(())),
            (r#""\x""#, Err(())),
            (r#""\"#, Err(())),
        ];
        for (json, wanted) in cases {
            let mut out = String::new();
            let read = Scanner::new(json.as_bytes()).unwrap().string(&mut out);
            assert_eq!(read.map(|()| out.as_str()).map_err(drop), wanted, "{json}");
        }
    }

    #[test]
    fn written_strings_come_back() {
        let text: String = (0..0x500u32).filter_map(char::from_u32).chain("😀\"\\".chars()).collect();
        let mut json = Vec::new();
        write_string(&mut json, &text);
        let mut back = String::new();
        Scanner::new(&json).unwrap().string(&mut back).unwrap();
        assert_eq!(back, text);
        assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
    }
}
