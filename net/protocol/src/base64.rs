//! Base64 (RFC 4648): bit sets of clients, handles of messages, bodies that are no text.

/// Which digits are the last two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base64 {
    /// `+` and `/`.
    Plain,
    /// `-` and `_`, which stand in a URL as they are.
    Url,
}

impl Base64 {
    fn digits(self) -> &'static [u8; 64] {
        match self {
            Base64::Plain => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
            Base64::Url => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_",
        }
    }

    /// Writes bytes, with padding.
    pub fn encode(self, bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for piece in bytes.chunks(3) {
            let padded = [0, piece[0], piece.get(1).copied().unwrap_or(0), piece.get(2).copied().unwrap_or(0)];
            let bits = u32::from_be_bytes(padded);
            for digit in 0..4 {
                let value = bits >> (18 - 6 * digit) & 63;
                text.push(if digit <= piece.len() { char::from(self.digits()[value as usize]) } else { '=' });
            }
        }
        text
    }

    /// Reads them. As for Java's decoders, the padding may be missing. `None`: it is something else.
    pub fn decode(self, text: &str) -> Option<Vec<u8>> {
        let digits = text.trim_end_matches('=').as_bytes();
        if text.len() - digits.len() > 2 || digits.len() % 4 == 1 {
            return None;
        }
        let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
        for piece in digits.chunks(4) {
            let mut bits = 0u32;
            for digit in piece {
                let value = self.digits().iter().position(|known| known == digit)? as u32;
                bits = bits << 6 | value;
            }
            bits <<= 6 * (4 - piece.len());
            bytes.extend_from_slice(&bits.to_be_bytes()[1..piece.len()]);
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn it_is_that_of_the_rfc() {
        let table =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")];
        for (text, wanted) in table {
            for kind in [Base64::Plain, Base64::Url] {
                assert_eq!(kind.encode(text.as_bytes()), wanted);
            }
        }
        let last = [0xff, 0xfe, 0xfb];
        assert_eq!([Base64::Plain, Base64::Url].map(|kind| kind.encode(&last)), ["//77", "__77"]);
    }

    #[test]
    fn any_bytes_come_back_and_anything_else_is_none() {
        let mut noise = Noise::new(7);
        for length in 0..100 {
            let bytes: Vec<u8> = (0..length).map(|_| noise.next() as u8).collect();
            for kind in [Base64::Plain, Base64::Url] {
                let text = kind.encode(&bytes);
                assert_eq!(kind.decode(&text).as_deref(), Some(&*bytes));
                assert_eq!(kind.decode(text.trim_end_matches('=')).as_deref(), Some(&*bytes));
            }
        }
        for text in ["A", "AAAAA", "Zg===", "Z g=", "é", "Zg==Zg=="] {
            assert_eq!(Base64::Url.decode(text), None, "{text}");
        }
        assert_eq!((Base64::Url.decode("//77"), Base64::Plain.decode("__77")), (None, None));
    }
}
