//! From what fastjson writes to legal JSON.

use super::BodyError;
use crate::frame::FRAME_BYTES_MAX;
use crate::json::write_string;

/// Deepest nesting of a body. 64: the deepest stock body has 8 levels.
pub const DEPTH_MAX: usize = 64;
/// Most objects of a body, and elements of its lists that are none. 262,144: of the stock bodies' entries, which take 64
/// bytes and more, no frame holds more. `{}` is three bytes with its comma and may become a hundred and fifty.
pub const ENTRIES_MAX: usize = FRAME_BYTES_MAX / 64;

/// Copies a JSON text with every key quoted, members that are null left out, and white space gone.
///
/// - A bare key becomes its own text; an object as a key becomes a string that holds the object,
///   which is at most twice as long, because such a key may not hold another.
/// - Values are copied, not judged: that is for the parser behind.
pub(super) fn to_legal(bytes: &[u8]) -> Result<Vec<u8>, BodyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| BodyError::Utf8)?;
    let mut copier = Copier { text, at: 0, out: Vec::with_capacity(bytes.len()), in_key: false, entries: 0 };
    copier.value(0)?;
    match copier.next_token() {
        None => Ok(copier.out),
        Some(_) => Err(copier.syntax()),
    }
}

struct Copier<'a> {
    text: &'a str,
    at: usize,
    out: Vec<u8>,
    in_key: bool,
    entries: usize,
}

impl Copier<'_> {
    fn value(&mut self, depth: usize) -> Result<(), BodyError> {
        if depth > DEPTH_MAX {
            return Err(BodyError::Depth);
        }
        match self.next_token() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string(),
            _ => {
                let word = self.word()?;
                self.out.extend_from_slice(self.text[word].as_bytes());
                Ok(())
            }
        }
    }

    /// One more becomes a value of its own.
    fn count(&mut self) -> Result<(), BodyError> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX { Err(BodyError::Entries) } else { Ok(()) }
    }

    fn object(&mut self, depth: usize) -> Result<(), BodyError> {
        self.count()?;
        self.copy(b'{');
        let (mut begun, mut empty) = (false, true);
        while self.more(begun, b'}')? {
            begun = true;
            let member = self.out.len();
            if !empty {
                self.out.push(b',');
            }
            self.key(depth)?;
            if self.next_token() != Some(b':') {
                return Err(self.syntax());
            }
            self.copy(b':');
            let value = self.out.len();
            self.value(depth + 1)?;
            if &self.out[value..] == b"null" {
                self.out.truncate(member);
            } else {
                empty = false;
            }
        }
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), BodyError> {
        self.copy(b'[');
        let mut begun = false;
        while self.more(begun, b']')? {
            if begun {
                self.out.push(b',');
            }
            begun = true;
            if self.next_token() != Some(b'{') {
                self.count()?;
            }
            self.value(depth + 1)?;
        }
        Ok(())
    }

    fn key(&mut self, depth: usize) -> Result<(), BodyError> {
        match self.next_token() {
            Some(b'"') => self.string(),
            Some(b'{') if self.in_key => Err(BodyError::Depth),
            Some(b'{') => {
                let from = self.out.len();
                self.in_key = true;
                self.object(depth + 1)?;
                self.in_key = false;
                let object = self.out.split_off(from);
                let object = std::str::from_utf8(&object).map_err(|_| BodyError::Utf8)?;
                write_string(&mut self.out, object);
                Ok(())
            }
            _ => {
                let word = self.word()?;
                write_string(&mut self.out, &self.text[word]);
                Ok(())
            }
        }
    }

    /// Whether another member or element follows; consumes the comma before it or the closing byte.
    /// A comma before the closing byte is forgiven, as in fastjson.
    fn more(&mut self, begun: bool, close: u8) -> Result<bool, BodyError> {
        let mut token = self.next_token();
        let comma = begun && token == Some(b',');
        if comma {
            self.at += 1;
            token = self.next_token();
        }
        match token {
            Some(byte) if byte == close => {
                self.copy(close);
                Ok(false)
            }
            Some(_) if comma || !begun => Ok(true),
            _ => Err(self.syntax()),
        }
    }

    /// Copies a string as it stands, escapes and all.
    fn string(&mut self) -> Result<(), BodyError> {
        let bytes = self.text.as_bytes();
        let from = self.at;
        let mut at = from + 1;
        loop {
            match bytes.get(at) {
                Some(b'"') => break,
                Some(b'\\') => at += 2,
                Some(_) => at += 1,
                None => {
                    self.at = bytes.len();
                    return Err(self.syntax());
                }
            }
        }
        self.at = at + 1;
        self.out.extend_from_slice(&bytes[from..self.at]);
        Ok(())
    }

    /// A number, `true`, `null` or bare key: everything up to the next structural byte.
    fn word(&mut self) -> Result<std::ops::Range<usize>, BodyError> {
        let from = self.at;
        let bytes = self.text.as_bytes();
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'+' | b'.' | b'_' | b'$') = bytes.get(self.at)
        {
            self.at += 1;
        }
        if self.at == from {
            return Err(self.syntax());
        }
        Ok(from..self.at)
    }

    /// Consumes and copies one structural byte.
    fn copy(&mut self, byte: u8) {
        self.at += 1;
        self.out.push(byte);
    }

    fn next_token(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = bytes.get(self.at) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn syntax(&self) -> BodyError {
        BodyError::Syntax { at: self.at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fastjson_writes_becomes_legal() {
        let cases = [
            (r#" { "a" : [ 1 , true , null ] } "#, r#"{"a":[1,true,null]}"#),
            (r#"{0:"x",-1:"y",a_b$:1.5e-3}"#, r#"{"0":"x","-1":"y","a_b$":1.5e-3}"#),
            (r#"{"a":null,"b":1,"c":null,"d":"null","e":null}"#, r#"{"b":1,"d":"null"}"#),
            (r#"{"a":null}"#, "{}"),
            (r#"{"a":1,}"#, r#"{"a":1}"#),
            (r#"{"t":{{"n":"b\"","q":0,"z":null}:{"o":5}}}"#, r#"{"t":{"{\"n\":\"b\\\"\",\"q\":0}":{"o":5}}}"#),
            (r#""a\\\"b""#, r#""a\\\"b""#),
            ("7", "7"),
        ];
        for (text, wanted) in cases {
            let legal = to_legal(text.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(legal).unwrap(), wanted, "{text}");
        }
    }

    #[test]
    fn the_rest_is_refused() {
        let deep = "[".repeat(DEPTH_MAX + 2);
        let keys = "{".repeat(9);
        for (text, is_depth) in [
            ("", false),
            ("{", false),
            ("[1 2]", false),
            ("[,]", false),
            ("{,}", false),
            (r#"{"a" 1}"#, false),
            (r#"{"a":1 "b":2}"#, false),
            (r#"{"a":null "b":2}"#, false),
            (r#"{"a":}"#, false),
            (r#"{[1]:2}"#, false),
            (r#""open"#, false),
            (r#""open\"#, false),
            ("{} {}", false),
            (&deep, true),
            (&keys, true),
            (r#"{{{"a":1}:1}:1}"#, true),
        ] {
            let error = to_legal(text.as_bytes()).unwrap_err();
            assert_eq!(error == BodyError::Depth, is_depth, "{text}: {error}");
        }
    }
}
