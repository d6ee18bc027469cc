//! The named text values of a command header ("ext fields").

use crate::json::Place;

/// Most fields that a received header may carry. 256: the largest stock header has 14 and a
/// client's hooks add a handful.
pub const FIELDS_MAX: usize = 256;
/// What an emptied `Fields` keeps for the next message. 64 KiB holds the longest properties, so
/// that only an oversized header gives memory back, and so that none is kept for ever.
const TEXT_BYTES_KEPT: usize = 64 * 1024;

/// Names and values, all in one text, so that refilling them allocates nothing in steady state.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    text: String,
    spans: Vec<Span>,
    /// The names as bits, `a` being the lowest, if each is a letter up to `p` and they are in order; 0: perhaps not.
    letters: u16,
}

/// Where a name and its value lie in the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    name: Place,
    value: Place,
}

impl Fields {
    /// The value of `name`; the last one if it was given twice, as in a Java map.
    pub fn get(&self, name: &str) -> Option<&str> {
        let span = self.spans.iter().rev().find(|span| span.name.of(&self.text) == name)?;
        Some(span.value.of(&self.text))
    }

    /// Names and values in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spans.iter().map(|span| (span.name.of(&self.text), span.value.of(&self.text)))
    }

    /// If the names are known to be letters in their order: what gives the value of each letter, counted from `a`, when
    /// it is asked for them in that order. So a send, which has all that a stock client says, is read without a search.
    #[inline(always)]
    pub(crate) fn by_letters<'a>(&'a self) -> Option<impl FnMut(usize) -> Option<&'a str>> {
        let (letters, mut spans) = (self.letters, self.spans.iter());
        let next = move |letter: usize| {
            let span = if letters >> letter & 1 == 1 { spans.next() } else { None };
            span.map(|span| span.value.of(&self.text))
        };
        (letters != 0).then_some(next)
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Forgets all fields and keeps the memory, up to a bound.
    pub fn clear(&mut self) {
        self.spans.clear();
        self.letters = 0;
        self.text.clear();
        if self.text.capacity() > TEXT_BYTES_KEPT {
            self.text.shrink_to(TEXT_BYTES_KEPT);
        }
    }

    /// Adds a field.
    pub fn push(&mut self, name: &str, value: &str) {
        let at = self.text.len();
        self.text.push_str(name);
        self.text.push_str(value);
        self.close(at, name.len());
    }

    /// Adds a field with a decimal value, without the detour through `fmt`.
    pub fn push_int(&mut self, name: &str, value: impl Into<i64>) {
        let at = self.text.len();
        self.text.push_str(name);
        self.text.push_str(itoa::Buffer::new().format(value.into()));
        self.close(at, name.len());
    }

    /// Adds a field with `true` or `false`, as Java prints them.
    pub fn push_bool(&mut self, name: &str, value: bool) {
        self.push(name, if value { "true" } else { "false" });
    }

    /// The text that names and values lie in. Decoders put more there and then `place` it.
    pub(crate) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    /// Makes a field of two places in the text.
    #[inline]
    pub(crate) fn place(&mut self, name: Place, value: Place) {
        self.spans.push(Span { name, value });
        self.letters = 0;
    }

    /// Makes all fields of places that another text of the same shape has, whose names are these `letters`.
    #[inline]
    pub(crate) fn place_all(&mut self, spans: &[Span], letters: u16) {
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.letters = letters;
    }

    /// The names as bits, if they are letters in their order; 0, if they are not.
    pub(crate) fn find_letters(&self) -> u16 {
        self.iter()
            .try_fold(0, |letters: u16, (name, _)| match name.as_bytes() {
                [letter @ b'a'..=b'p'] if letters >> (letter - b'a') == 0 => Some(letters | 1 << (letter - b'a')),
                _ => None,
            })
            .unwrap_or(0)
    }

    /// Where all names and values lie.
    pub(crate) fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Makes a field of the text behind `at`: its name first, everything else is its value.
    fn close(&mut self, at: usize, name_bytes: usize) {
        assert!(self.text.len() <= u32::MAX as usize, "a header's text is far below 4 GiB");
        let value_at = at + name_bytes;
        self.place(Place::new(at, value_at), Place::new(value_at, self.text.len()));
    }

    /// Capacities of text and spans: tests see that they stay.
    #[cfg(test)]
    pub(crate) fn capacities(&self) -> (usize, usize) {
        (self.text.capacity(), self.spans.capacity())
    }
}

/// Equal when both print the same fields in the same order.
impl PartialEq for Fields {
    fn eq(&self, other: &Fields) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> Extend<(&'a str, &'a str)> for Fields {
    fn extend<T: IntoIterator<Item = (&'a str, &'a str)>>(&mut self, fields: T) {
        for (name, value) in fields {
            self.push(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_the_last_one_wins() {
        let mut fields = Fields::default();
        fields.push("topic", "T");
        fields.push_int("queueId", -3);
        fields.push_int("offset", i64::MIN);
        fields.push_int("max", i64::MAX);
        fields.push_bool("lo", true);
        fields.push("tps", "1.5");
        fields.push("topic", "");
        let seen: Vec<_> = fields.iter().collect();
        assert_eq!(
            seen,
            [
                ("topic", "T"),
                ("queueId", "-3"),
                ("offset", "-9223372036854775808"),
                ("max", "9223372036854775807"),
                ("lo", "true"),
                ("tps", "1.5"),
                ("topic", ""),
            ]
        );
        assert_eq!((fields.get("topic"), fields.get("top")), (Some(""), None));
        assert_eq!(fields.len(), 7);
        fields.clear();
        assert!(fields.is_empty());
        fields.push_int("zero", 0);
        assert_eq!(fields.get("zero"), Some("0"));
    }

    #[test]
    fn an_oversized_header_keeps_no_memory() {
        let mut fields = Fields::default();
        fields.push("p", &"x".repeat(500_000));
        fields.clear();
        assert!(fields.capacities().0 <= TEXT_BYTES_KEPT);
    }
}
