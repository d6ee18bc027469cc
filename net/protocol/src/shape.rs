//! Headers that look like earlier ones, read by comparing instead of scanning.
//!
//! A producer's headers differ in a few values only: the opaque, the queue, a time, an id. A *shape* is one
//! such header with a mask over the bytes that may differ: those between the quotes of ext values, and the
//! opaque's digits. A header of the same length that equals it everywhere else, and that has no quote and no
//! backslash under the mask, has its names and values at the very same places. What differs otherwise is read
//! by the scanner, and may become the next shape of that length.

use std::ops::Range;

use crate::command::{Header, Language, Serialize};
use crate::fields::Span;
use crate::json::{HeaderError, Scanner};

/// Shapes kept: one for each length modulo this. An opaque's digits change the length now and then, and
/// several producers have several shapes: 64 hold those of some dozen kinds of producers.
const SHAPES: usize = 64;
/// Longest header that becomes a shape. 2 KiB: all shapes together stay below half a megabyte.
const HEADER_BYTES: usize = 2048;
/// How many headers in a row must miss a shape that was of use, before another takes its place.
const CREDIT_MAX: u8 = 8;
/// Bytes compared at a time, with the compiler's vectors.
const LANE: usize = 32;

/// Reads headers, and remembers what they look like. One for each core.
#[derive(Debug)]
pub struct Shapes {
    slots: Box<[Slot; SHAPES]>,
}

#[derive(Debug, Default)]
struct Slot {
    credit: u8,
    shape: Option<Shape>,
}

#[derive(Debug)]
struct Shape {
    /// The header that was read.
    text: Vec<u8>,
    /// 0 where a byte may differ, 255 elsewhere.
    mask: Vec<u8>,
    opaque: Range<usize>,
    code: i32,
    language: Language,
    version: i32,
    flag: i32,
    spans: Vec<Span>,
    /// The names as bits, if they are letters in their order.
    letters: u16,
    /// What stands unescaped behind the copy of the header: plain bytes of it, and a character behind them.
    unescaped: Vec<(Range<usize>, Option<char>)>,
}

impl Default for Shapes {
    fn default() -> Shapes {
        Shapes { slots: Box::new(std::array::from_fn(|_| Slot::default())) }
    }
}

impl Shapes {
    /// As [`Header::decode`], with the same result for any bytes.
    #[inline]
    pub fn decode(&mut self, header: &mut Header, serialize: Serialize, bytes: &[u8]) -> Result<(), HeaderError> {
        if serialize != Serialize::Json || bytes.len() > HEADER_BYTES {
            return header.decode(serialize, bytes);
        }
        let slot = &mut self.slots[bytes.len() % SHAPES];
        if let Some(shape) = &slot.shape
            && shape.read(header, bytes).is_some()
        {
            slot.credit = CREDIT_MAX;
            return Ok(());
        }
        header.decode(serialize, bytes)?;
        if slot.credit == 0 {
            slot.shape = Shape::learn(header, bytes);
            slot.credit = CREDIT_MAX;
        }
        slot.credit -= 1;
        Ok(())
    }
}

impl Shape {
    /// Reads a header of this shape. `None`: it is of another, and `header` is left half filled.
    #[inline]
    fn read(&self, header: &mut Header, bytes: &[u8]) -> Option<()> {
        if !self.fits(bytes) {
            return None;
        }
        let opaque = decimal(&bytes[self.opaque.clone()])?;
        let text = std::str::from_utf8(bytes).ok()?;
        header.code = self.code;
        header.language = self.language;
        header.version = self.version;
        header.opaque = opaque;
        header.flag = self.flag;
        header.remark.clear();
        header.serialize = Serialize::Json;
        let fields = &mut header.fields;
        fields.clear();
        let arena = fields.text();
        arena.push_str(text);
        for (plain, behind) in &self.unescaped {
            arena.push_str(&text[plain.clone()]);
            if let Some(behind) = *behind {
                arena.push(behind);
            }
        }
        fields.place_all(&self.spans, self.letters);
        Some(())
    }

    #[inline]
    fn fits(&self, bytes: &[u8]) -> bool {
        if bytes.len() != self.text.len() {
            return false;
        }
        let mut differs = [0; LANE];
        let mut look = |new: &[u8; LANE], old: &[u8; LANE], mask: &[u8; LANE]| {
            for at in 0..LANE {
                let is = |byte| if new[at] == byte { 255 } else { 0 };
                differs[at] |= ((new[at] ^ old[at]) & mask[at]) | ((is(b'"') | is(b'\\')) & !mask[at]);
            }
        };
        let [new, old, mask] = [bytes, &self.text, &self.mask];
        let lanes = new.as_chunks().0.iter().zip(old.as_chunks().0).zip(mask.as_chunks().0);
        lanes.for_each(|((new, old), mask)| look(new, old, mask));
        match (new.last_chunk(), old.last_chunk(), mask.last_chunk()) {
            // The rest, and once more what lies before it.
            (Some(new), Some(old), Some(mask)) => look(new, old, mask),
            // A header as short as that has no shape.
            _ => return false,
        }
        differs == [0; LANE]
    }

    /// What the scanner has just read, as a shape. `None`: it is not worth it, or too odd.
    fn learn(header: &Header, bytes: &[u8]) -> Option<Shape> {
        let text = std::str::from_utf8(bytes).ok()?;
        if !header.remark.is_empty() {
            return None;
        }
        let mut mask = vec![255; bytes.len()];
        let mut unescaped = Vec::new();
        let mut opaque = None;
        let mut has_fields = false;
        let mut scanner = Scanner::new(text);
        scanner.open().ok()?;
        let mut first = true;
        while scanner.more(first).ok()? {
            first = false;
            match &text[plain_string(&mut scanner, text)?] {
                "opaque" if opaque.is_none() => {
                    let range = scanner.raw_word();
                    mask[range.clone()].fill(0);
                    opaque = Some(range);
                }
                "extFields" if !has_fields => {
                    has_fields = true;
                    scanner.open().ok()?;
                    let mut first = true;
                    while scanner.more(first).ok()? {
                        first = false;
                        plain_string(&mut scanner, text)?;
                        let value = scanner.raw_string().ok()?;
                        mask[value.clone()].fill(0);
                        unescape(text, value, &mut mask, &mut unescaped)?;
                    }
                }
                "opaque" | "extFields" => return None,
                _ => scanner.skip().ok()?,
            }
        }
        let shape = Shape {
            text: bytes.to_vec(),
            mask,
            opaque: opaque?,
            code: header.code,
            language: header.language,
            version: header.version,
            flag: header.flag,
            spans: header.fields.spans().to_vec(),
            letters: header.fields.find_letters(),
            unescaped,
        };
        // Whatever a strange header holds: one that its own shape reads otherwise is none.
        let mut again = Header::default();
        shape.read(&mut again, bytes)?;
        (again == *header).then_some(shape)
    }
}

/// A member's name without escapes, and its colon.
fn plain_string(scanner: &mut Scanner<'_>, text: &str) -> Option<Range<usize>> {
    let range = scanner.raw_string().ok()?;
    scanner.colon().ok()?;
    (!text[range.clone()].contains('\\')).then_some(range)
}

/// Masks the escapes of a value, and says how its text is put together; nothing, if it has none.
fn unescape(
    text: &str,
    value: Range<usize>,
    mask: &mut [u8],
    unescaped: &mut Vec<(Range<usize>, Option<char>)>,
) -> Option<()> {
    let mut plain = value.start;
    while let Some(distance) = text[plain..value.end].find('\\') {
        let at = plain + distance;
        let (character, end) = Scanner::escape_at(text, at).ok()?;
        mask[at..end].fill(255);
        unescaped.push((plain..at, Some(character)));
        plain = end;
    }
    if plain > value.start {
        unescaped.push((plain..value.end, None));
    }
    Some(())
}

/// A number of up to nine digits; others are the scanner's.
#[inline]
fn decimal(digits: &[u8]) -> Option<i32> {
    if digits.is_empty() || digits.len() > 9 {
        return None;
    }
    digits.iter().try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i32::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    const SENDS: [&str; 3] = [
        r#"{"code":310,"extFields":{"a":"group","b":"T","e":"3","g":"1700000000000","i":"UNIQ_KEY\u00017F000001\u0002WAIT\u0001true\u0002"},"flag":0,"language":"JAVA","opaque":1234,"serializeTypeCurrentRPC":"JSON","version":479}"#,
        r#"{ "opaque" : 77, "extFields" : {"name":"a\"b\\c\ud83d\ude00é", "x": "", "y":"z"}, "code":11, "unknown":[1,{"a":"b"}] }"#,
        r#"{"code":34,"extFields":{"n":5,"b":true,"z":null},"flag":2,"opaque":9}"#,
    ];

    fn both(shapes: &mut Shapes, bytes: &[u8]) {
        let (mut with, mut without) = (Header::default(), Header::default());
        let read = shapes.decode(&mut with, Serialize::Json, bytes);
        assert_eq!(read, without.decode(Serialize::Json, bytes), "{}", String::from_utf8_lossy(bytes));
        if read.is_ok() {
            assert_eq!(with, without, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn values_that_differ_are_read_by_the_shape() {
        let mut shapes = Shapes::default();
        let one = SENDS[0].as_bytes();
        both(&mut shapes, one);
        let other = SENDS[0].replace("\"T\"", "\"X\"").replace("7F000001", "89ABCDEF").replace("1234", "9876");
        let slot = &shapes.slots[one.len() % SHAPES];
        let mut header = Header::default();
        let shape = slot.shape.as_ref().expect("it was learnt");
        assert_eq!(shape.read(&mut header, other.as_bytes()), Some(()));
        assert_eq!((header.opaque, header.fields.get("b")), (9876, Some("X")));
        assert_eq!(header.fields.get("i"), Some("UNIQ_KEY\u{1}89ABCDEF\u{2}WAIT\u{1}true\u{2}"));
        for odd in
            ["\"T\"|\"\\\"", "1234|12x4", "1234|-234", "310|311", "\"e\"|\"f\"", "\\u0001t|\\u0003t", "true|tr\"e"]
        {
            let (from, to) = odd.split_once('|').expect("two halves");
            let odd = SENDS[0].replacen(from, to, 1);
            assert_eq!(odd.len(), one.len());
            assert_eq!(shape.read(&mut header, odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn any_bytes_are_read_as_without_shapes() {
        let mut noise = Noise::new(7);
        let mut shapes = Shapes::default();
        for round in 0..30_000 {
            let mut bytes = SENDS[round % SENDS.len()].as_bytes().to_vec();
            for _ in 0..noise.below(3) {
                let at = noise.below(bytes.len());
                bytes[at] = match noise.below(4) {
                    0 => b"\"\\{}:,u0 9"[noise.below(10)],
                    1 => noise.below(256) as u8,
                    _ => b'0' + noise.below(75) as u8,
                };
            }
            both(&mut shapes, &bytes);
        }
    }

    #[test]
    fn a_shape_of_use_stays_and_one_that_is_not_goes() {
        let mut shapes = Shapes::default();
        let mine = SENDS[0].as_bytes();
        let others = SENDS[0].replace("310", "320").replace("group", "troup");
        let code = |shapes: &Shapes| shapes.slots[mine.len() % SHAPES].shape.as_ref().map(|shape| shape.code);
        both(&mut shapes, mine);
        both(&mut shapes, others.as_bytes());
        assert_eq!(code(&shapes), Some(310));
        for _ in 0..CREDIT_MAX {
            both(&mut shapes, others.as_bytes());
        }
        assert_eq!(code(&shapes), Some(320));
    }
}
