//! The JSON of command headers, read and written by hand.
//!
//! Headers pass on every message: a scanner that leaves texts where they are in one reused copy of
//! the header costs no allocation. Bodies go through `serde_json` instead.

use std::fmt;
use std::ops::Range;

use crate::fields::{FIELDS_MAX, Fields};
use crate::frame::HEADER_BYTES_MAX;
use crate::scan::{find, find_escaped};

/// Deepest nesting that is skipped in members we do not know.
pub const DEPTH_MAX: usize = 32;

/// Why bytes are no command header. The peer is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Not UTF-8.
    Utf8,
    /// Longer than `frame::HEADER_BYTES_MAX`.
    Long,
    /// What stands at byte `at` is not JSON, or not what a header may hold there.
    Json {
        /// Byte position in the header.
        at: u32,
    },
    /// The member that ends at byte `at` is no 32-bit integer.
    Number {
        /// Byte position in the header.
        at: u32,
    },
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
            HeaderError::Long => write!(f, "header is longer than {HEADER_BYTES_MAX}"),
            HeaderError::Json { at } => write!(f, "header byte {at} is not what JSON wants there"),
            HeaderError::Number { at } => write!(f, "header byte {at} ends no 32-bit integer"),
            HeaderError::Depth => write!(f, "header nests deeper than {DEPTH_MAX}"),
            HeaderError::Fields => write!(f, "header has more than {FIELDS_MAX} ext fields"),
            HeaderError::Binary => write!(f, "header lengths disagree with its size"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// Where a text lies in the arena: in the copy of the header at its front if nothing in it was
/// escaped, behind that otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    at: u32,
    bytes: u32,
}

impl Place {
    /// From `from` to `to`. A header's texts stay far below 4 GiB.
    #[inline]
    pub(crate) fn new(from: usize, to: usize) -> Place {
        Place { at: from as u32, bytes: (to - from) as u32 }
    }

    #[inline]
    pub(crate) fn of(self, arena: &str) -> &str {
        &arena[self.at as usize..self.at as usize + self.bytes as usize]
    }
}

/// A cursor over one JSON text. The methods that read texts take an *arena* that begins with a copy
/// of this very text: most texts are found in there and only escaped ones are written behind it.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Scanner<'a> {
        Scanner { text, at: 0 }
    }

    /// Steps into an object.
    pub(crate) fn open(&mut self) -> Result<(), HeaderError> {
        self.expect(b'{')
    }

    /// Whether one more member follows in the object; consumes the comma before it or the brace
    /// behind the last.
    #[inline]
    pub(crate) fn more(&mut self, first: bool) -> Result<bool, HeaderError> {
        match self.next_token() {
            Some(b',') if !first => {
                self.at += 1;
                Ok(true)
            }
            Some(b'}') => {
                self.at += 1;
                Ok(false)
            }
            _ if first => Ok(true),
            _ => Err(self.broken()),
        }
    }

    /// A member's name and its colon.
    #[inline(always)]
    pub(crate) fn name(&mut self, arena: &mut String) -> Result<Place, HeaderError> {
        let name = self.string(arena)?;
        self.expect(b':')?;
        Ok(name)
    }

    /// Steps behind a colon.
    pub(crate) fn colon(&mut self) -> Result<(), HeaderError> {
        self.expect(b':')
    }

    /// Where a quoted string lies, without its quotes and as it is written.
    pub(crate) fn raw_string(&mut self) -> Result<Range<usize>, HeaderError> {
        if self.next_token() != Some(b'"') {
            return Err(self.broken());
        }
        let from = self.at + 1;
        self.skip_string()?;
        Ok(from..self.at - 1)
    }

    /// Where the letters, digits and signs lie that come next; none, if something else does.
    pub(crate) fn raw_word(&mut self) -> Range<usize> {
        self.next_token();
        let from = self.at;
        self.word();
        from..self.at
    }

    /// The character that the escape at byte `at` stands for, and where it ends.
    pub(crate) fn escape_at(text: &str, at: usize) -> Result<(char, usize), HeaderError> {
        let mut scanner = Scanner { text, at: at + 1 };
        let mut character = String::new();
        scanner.escape(&mut character)?;
        let character = character.chars().next().ok_or_else(|| scanner.broken())?;
        Ok((character, scanner.at))
    }

    /// A value as text: a string unescaped, a number or boolean as it stands. `None`: it was null.
    #[inline(always)]
    pub(crate) fn scalar(&mut self, arena: &mut String) -> Result<Option<Place>, HeaderError> {
        if self.next_token() == Some(b'"') {
            return self.string(arena).map(Some);
        }
        let at = self.at;
        match self.word() {
            "null" => Ok(None),
            word if matches!(word, "true" | "false") || is_number(word) => Ok(Some(Place::new(at, self.at))),
            _ => Err(self.broken()),
        }
    }

    /// An integer, bare or quoted as fastjson takes both. `None`: it was null.
    pub(crate) fn int(&mut self) -> Result<Option<i32>, HeaderError> {
        let quoted = self.next_token() == Some(b'"');
        if quoted {
            self.at += 1;
        }
        let word = self.word();
        if quoted {
            if self.text.as_bytes().get(self.at) != Some(&b'"') {
                return Err(HeaderError::Number { at: self.at as u32 });
            }
            self.at += 1;
        } else if word == "null" {
            return Ok(None);
        }
        word.parse().map(Some).map_err(|_| HeaderError::Number { at: self.at as u32 })
    }

    /// Whether the next value is null; consumes it only then.
    pub(crate) fn null(&mut self) -> bool {
        self.next_token();
        let is_null = self.text.as_bytes()[self.at..].starts_with(b"null");
        if is_null {
            self.at += 4;
        }
        is_null
    }

    /// Walks over one value of any kind. Strict enough to stay in step, not a validator.
    pub(crate) fn skip(&mut self) -> Result<(), HeaderError> {
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
                Some(b'"') => self.skip_string()?,
                _ if self.word().is_empty() => return Err(self.broken()),
                _ => {}
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
            Some(_) => Err(self.broken()),
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
    fn expect(&mut self, byte: u8) -> Result<(), HeaderError> {
        if self.next_token() != Some(byte) {
            return Err(self.broken());
        }
        self.at += 1;
        Ok(())
    }

    #[cold]
    fn broken(&self) -> HeaderError {
        HeaderError::Json { at: self.at as u32 }
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

    /// A quoted string. Raw control characters pass, as in fastjson.
    #[inline(always)]
    fn string(&mut self, arena: &mut String) -> Result<Place, HeaderError> {
        self.expect(b'"')?;
        let from = self.at;
        match self.next_special()? {
            b'"' => Ok(Place::new(from, self.at - 1)),
            _ => self.unescape(from, arena),
        }
    }

    /// Steps behind the next quote or backslash and tells which it is.
    #[inline(always)]
    fn next_special(&mut self) -> Result<u8, HeaderError> {
        let bytes = self.text.as_bytes();
        self.at = find::<b'"', b'\\'>(bytes, self.at);
        let Some(byte) = bytes.get(self.at) else { return Err(self.broken()) };
        self.at += 1;
        Ok(*byte)
    }

    fn skip_string(&mut self) -> Result<(), HeaderError> {
        self.at += 1;
        while self.next_special()? == b'\\' {
            self.at += 1;
        }
        Ok(())
    }

    /// Writes a string that began at `from`, and whose first backslash was just passed, unescaped
    /// behind the arena.
    #[inline(never)]
    fn unescape(&mut self, from: usize, arena: &mut String) -> Result<Place, HeaderError> {
        let at = arena.len();
        let mut plain = from;
        loop {
            arena.push_str(&self.text[plain..self.at - 1]);
            self.escape(arena)?;
            plain = self.at;
            if self.next_special()? == b'"' {
                arena.push_str(&self.text[plain..self.at - 1]);
                return Ok(Place::new(at, arena.len()));
            }
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self, arena: &mut String) -> Result<(), HeaderError> {
        let Some(byte) = self.text.as_bytes().get(self.at) else {
            return Err(self.broken());
        };
        let plain = match byte {
            b'u' => {
                self.at += 1;
                let unit = self.hex4()?;
                arena.push(self.pair(unit)?);
                return Ok(());
            }
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            _ => return Err(self.broken()),
        };
        self.at += 1;
        arena.push(plain);
        Ok(())
    }

    /// The character of one UTF-16 unit, or of the pair that it opens. Java strings may hold
    /// half a pair, which no UTF-8 can: it becomes U+FFFD.
    fn pair(&mut self, unit: u32) -> Result<char, HeaderError> {
        if (0xd800..0xdc00).contains(&unit) && self.text.as_bytes()[self.at..].starts_with(b"\\u") {
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

    #[inline]
    fn hex4(&mut self) -> Result<u32, HeaderError> {
        let Some(digits) = self.text.as_bytes()[self.at..].first_chunk::<4>() else {
            return Err(self.broken());
        };
        let mut unit = 0;
        for digit in digits {
            let Some(digit) = char::from(*digit).to_digit(16) else {
                return Err(self.broken());
            };
            unit = unit << 4 | digit;
        }
        self.at += 4;
        Ok(unit)
    }
}

/// Reads the object of ext fields. The text of `fields` is the scanner's arena.
pub(crate) fn read_fields(scanner: &mut Scanner<'_>, fields: &mut Fields) -> Result<(), HeaderError> {
    if scanner.null() {
        return Ok(());
    }
    scanner.open()?;
    let mut first = true;
    while scanner.more(first)? {
        first = false;
        let name = scanner.name(fields.text())?;
        let Some(value) = scanner.scalar(fields.text())? else { continue };
        if fields.len() == FIELDS_MAX {
            return Err(HeaderError::Fields);
        }
        fields.place(name, value);
    }
    Ok(())
}

/// Writes a quoted JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    write_escaped(out, text);
    out.push(b'"');
}

/// Writes a non-empty set of fields as an object of strings.
pub(crate) fn write_fields(out: &mut Vec<u8>, fields: &Fields) {
    let mut open: &[u8; 2] = b"{\"";
    for (name, value) in fields.iter() {
        out.extend_from_slice(open);
        write_escaped(out, name);
        out.extend_from_slice(b"\":\"");
        write_escaped(out, value);
        out.push(b'"');
        open = b",\"";
    }
    out.push(b'}');
}

/// Writes what stands between a JSON string's quotes.
#[inline]
pub(crate) fn write_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut plain = 0;
    loop {
        let at = find_escaped(bytes, plain);
        out.extend_from_slice(&bytes[plain..at]);
        let Some(byte) = bytes.get(at) else { break };
        write_escape(out, *byte);
        plain = at + 1;
    }
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
    }
}

/// Writes a decimal integer.
pub(crate) fn write_int(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn is_number(word: &str) -> bool {
    word.parse::<f64>().is_ok() && word.ends_with(|last: char| last.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut arena = json.to_owned();
            let read = Scanner::new(json).string(&mut arena);
            assert_eq!(read.map(|place| place.of(&arena)).map_err(drop), wanted, "{json}");
        }
    }

    #[test]
    fn written_strings_come_back() {
        let text: String = (0..0x500u32).filter_map(char::from_u32).chain("😀\"\\".chars()).collect();
        let mut json = Vec::new();
        write_string(&mut json, &text);
        let mut arena = String::from_utf8(json.clone()).unwrap();
        let place = Scanner::new(&arena.clone()).string(&mut arena).unwrap();
        assert_eq!(place.of(&arena), text);
        assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
    }
}
