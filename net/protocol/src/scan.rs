//! Finding bytes in short texts, eight at a time.
//!
//! Texts on the hot path are a handful to some hundred bytes long: too short for a library's
//! vector code to pay for its call, too many to go byte by byte.

const ONES: u64 = repeat(1);
const HIGH: u64 = ONES << 7;

/// The position of the first `A` or `B` at or behind `from`, or the end.
#[inline]
pub(crate) fn find<const A: u8, const B: u8>(bytes: &[u8], from: usize) -> usize {
    find_by(bytes, from, |word| zeros(word ^ repeat(A)) | zeros(word ^ repeat(B)), |byte| byte == A || byte == B)
}

/// The position of the first byte that a JSON string must escape, or the end: a quote, a
/// backslash or a control character.
#[inline]
pub(crate) fn find_escaped(bytes: &[u8], from: usize) -> usize {
    find_by(
        bytes,
        from,
        |word| {
            // Subtracting 0x20 borrows into the high bit of a byte below it.
            let control = word.wrapping_sub(repeat(0x20)) & !word;
            control | zeros(word ^ repeat(b'"')) | zeros(word ^ repeat(b'\\'))
        },
        |byte| byte < 0x20 || byte == b'"' || byte == b'\\',
    )
}

const fn repeat(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Sets the high bit of zero bytes. Bytes above the lowest one may be marked wrongly, because a
/// subtraction borrows; only the lowest mark counts.
#[inline]
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word
}

#[inline]
fn find_by(bytes: &[u8], from: usize, marks: impl Fn(u64) -> u64, matches: impl Fn(u8) -> bool) -> usize {
    let mut at = from;
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let found = marks(u64::from_le_bytes(*chunk)) & HIGH;
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while at < bytes.len() && !matches(bytes[at]) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_found_at_every_distance_behind_every_other() {
        let plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
        for fill in 0..=255u8 {
            for distance in 0..20 {
                for special in [b'"', b'\\', 0, 0x1f] {
                    let mut bytes = vec![fill; 3 + distance];
                    bytes.extend_from_slice(&[special, b'"', 1, b'\\', b'"', 0xff, 0, b'"', 7]);
                    let cut = &bytes[..3 + distance];
                    if plain(fill) {
                        assert_eq!(find_escaped(&bytes, 3), 3 + distance, "{fill} {special}");
                        assert_eq!(find_escaped(cut, 3), 3 + distance);
                    }
                    if !matches!(fill, b'"' | b'\\') && matches!(special, b'"' | b'\\') {
                        assert_eq!(find::<b'"', b'\\'>(&bytes, 3), 3 + distance, "{fill} {special}");
                        assert_eq!(find::<b'"', b'\\'>(cut, 3), 3 + distance);
                    }
                }
            }
        }
    }
}
