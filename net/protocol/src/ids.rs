//! Message ids: those that name a place and those that clients make up (PROTOCOL 3.8); and the
//! hashes under which tags and keys are indexed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a record is stored, as clients know it: 32 or, with an IPv6 host, 56 upper-case hex
/// digits of address, port (4 bytes) and physical offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetId {
    /// The broker's advertised address.
    pub host: SocketAddr,
    /// The record's physical offset.
    pub offset: i64,
}

impl OffsetId {
    /// Reads 32 or 56 hex digits of either case.
    pub fn parse(text: &str) -> Option<OffsetId> {
        let mut bytes = [0; 28];
        let bytes = bytes.get_mut(..text.len() / 2)?;
        if !text.len().is_multiple_of(2) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let high = char::from(pair[0]).to_digit(16)?;
            let low = char::from(pair[1]).to_digit(16)?;
            *byte = (high << 4 | low) as u8;
        }
        let (host, offset) = bytes.split_last_chunk::<8>()?;
        let (ip, port) = host.split_last_chunk::<4>()?;
        let ip: IpAddr = match *ip {
            [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            _ => Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?).into(),
        };
        let port = u16::try_from(u32::from_be_bytes(*port)).ok()?;
        Some(OffsetId { host: SocketAddr::new(ip, port), offset: i64::from_be_bytes(*offset) })
    }

    /// Appends it to a text: without the detour through `fmt`, for batches that have many.
    #[inline]
    pub fn append(self, out: &mut String) {
        out.push_str(self.hex().as_str());
    }

    #[inline]
    pub(crate) fn hex(self) -> Hex {
        let mut hex = Hex::default();
        hex.push_ip(self.host.ip());
        hex.push(&u32::from(self.host.port()).to_be_bytes());
        hex.push(&self.offset.to_be_bytes());
        hex
    }
}

impl fmt::Display for OffsetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex().as_str())
    }
}

/// What a broker gives a message that came without UNIQ_KEY, in the form that clients make:
/// 32 or 56 upper-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId {
    /// The maker's address.
    pub ip: IpAddr,
    /// The low half of its process id.
    pub process: u16,
    /// What tells two makers in one process apart; Java takes a class loader's hash.
    pub maker: u32,
    /// Wall clock when it was made, in milliseconds since 1970.
    pub now_ms: u64,
    /// Counts the maker's ids.
    pub counter: u16,
}

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hex = Hex::default();
        hex.push_ip(self.ip);
        hex.push(&self.process.to_be_bytes());
        hex.push(&self.maker.to_be_bytes());
        hex.push(&ms_of_month(self.now_ms).to_be_bytes());
        hex.push(&self.counter.to_be_bytes());
        f.write_str(hex.as_str())
    }
}

/// Java's `String.hashCode`, by which tags are compared: 32 bits over UTF-16 units, widened with
/// its sign. 0 for an empty tag.
pub fn tag_hash(tag: &str) -> i64 {
    let unit = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(unit.into());
    if tag.is_ascii() {
        tag.bytes().fold(0, |hash, byte| unit(hash, byte.into())).into()
    } else {
        tag.encode_utf16().fold(0, unit).into()
    }
}

/// The hash under which a key of a topic is indexed. Index files hold it: it never changes.
///
/// `mix(mix(START, topic), key)`, see `mix`.
pub fn key_hash(topic: &str, key: &str) -> u64 {
    mix(topic_hash(topic), key.as_bytes())
}

/// The hash under which a tag of a topic is indexed: beside the keys, and never that of a key but by chance.
pub fn tag_key_hash(topic: &str, tag: &str) -> u64 {
    mix(!topic_hash(topic), tag.as_bytes())
}

/// The topic's part of `key_hash`, for several keys of one topic; inverted, of `tag_key_hash`.
pub(crate) fn topic_hash(topic: &str) -> u64 {
    const START: u64 = 0xcbf2_9ce4_8422_2325;
    mix(START, topic.as_bytes())
}

/// Eight bytes at once, little-endian, the last piece filled with zeros, the length in front so
/// that the filling is told from zeros: exclusive or, multiply, fold the high half down. Not for
/// strangers' hash maps: it has no secret.
pub(crate) fn mix(start: u64, bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let step = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(FACTOR);
        product ^ product >> 32
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = step(start, bytes.len() as u64);
    for word in words {
        hash = step(hash, u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = step(hash, u64::from_le_bytes(last));
    }
    step(hash, 0)
}

/// Milliseconds since the month began, in UTC. Fits 32 bits: a month has 2.7 billion at most.
fn ms_of_month(now_ms: u64) -> u32 {
    const DAY_MS: u64 = 86_400_000;
    // Days to the day of the month (Howard Hinnant, "chrono-compatible low-level date algorithms",
    // civil_from_days), with years beginning in March.
    let days = now_ms / DAY_MS + 719_468;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5;
    (day_of_month * DAY_MS + now_ms % DAY_MS) as u32
}

/// The eight hex digits of a word, all at once.
#[inline]
pub(crate) fn hex(word: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Each digit's four bits come into a byte of their own.
    let mut digits = u64::from(word);
    for (shift, mask) in [(16, 0x0000_ffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)] {
        digits = (digits << shift | digits) & mask;
    }
    let letters = (digits + 6 * ONES) >> 4 & ONES;
    (digits + u64::from(b'0') * ONES + letters * u64::from(b'A' - b'0' - 10)).to_be_bytes()
}

/// Up to 56 hex digits on the stack.
pub(crate) struct Hex {
    digits: [u8; 56],
    count: usize,
}

impl Default for Hex {
    fn default() -> Hex {
        Hex { digits: [0; 56], count: 0 }
    }
}

impl Hex {
    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let out = &mut self.digits[self.count..self.count + 2 * bytes.len()];
        for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        self.count += 2 * bytes.len();
    }

    fn push_ip(&mut self, ip: IpAddr) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => self.push(&ip.octets()),
            IpAddr::V6(ip) => self.push(&ip.octets()),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[..self.count]).expect("hex digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    #[test]
    fn offset_ids_go_both_ways() {
        let host: SocketAddr = "127.0.0.1:10911".parse().unwrap();
        // Appendix C, vector 5.
        let cases = [
            (host, 0, "7F00000100002A9F0000000000000000"),
            (host, 123_456, "7F00000100002A9F000000000001E240"),
            (
                "[::1]:1".parse().unwrap(),
                -1,
                "00000000000000000000000000000001\
              00000001FFFFFFFFFFFFFFFF",
            ),
        ];
        for (host, offset, text) in cases {
            let id = OffsetId { host, offset };
            assert_eq!(id.to_string(), text);
            assert_eq!(OffsetId::parse(text), Some(id));
            assert_eq!(OffsetId::parse(&text.to_lowercase()), Some(id));
            for length in 0..text.len() {
                // 24 bytes less, an IPv6 id would be a whole IPv4 one: only 32 and 56 are ids.
                if length != 32 {
                    assert_eq!(OffsetId::parse(&text[..length]), None);
                }
            }
            assert_eq!(OffsetId::parse(&text.replace('0', "g")), None);
        }
        assert_eq!(OffsetId::parse(&"F".repeat(32)), None, "a port has 16 bits");
        assert_eq!(OffsetId::parse(&"é".repeat(16)), None);
        assert_eq!(OffsetId::parse(&"0".repeat(58)), None);
    }

    #[test]
    fn words_are_written_as_a_library_writes_them() {
        let mut noise = Noise::new(9);
        for word in [0, 9, 10, 15, 16, u32::MAX].into_iter().chain((0..1000).map(|_| noise.next() as u32)) {
            assert_eq!(std::str::from_utf8(&hex(word)), Ok(&*format!("{word:08X}")));
        }
    }

    #[test]
    fn unique_ids_look_like_javas() {
        let id = UniqueId {
            ip: "127.0.0.1".parse().unwrap(),
            process: 0x0102,
            maker: 0x18b4_aac2,
            now_ms: 1_700_000_000_000, // 2023-11-14 22:13:20 UTC
            counter: 7,
        };
        let ms = (13 * 86_400 + 22 * 3_600 + 13 * 60 + 20) * 1_000u64;
        assert_eq!(id.to_string(), format!("7F000001010218B4AAC2{ms:08X}0007"));
        // The first moments of 2024-03-01 and 1970-01-01, the last of 2024-02-29.
        assert_eq!(ms_of_month(1_709_251_200_000), 0);
        assert_eq!(ms_of_month(1_709_251_199_999), 29 * 86_400_000 - 1);
        assert_eq!(ms_of_month(0), 0);
    }

    #[test]
    fn tags_hash_as_in_java() {
        // Appendix C, vector 6; the last by `"é名😀".hashCode()`: 233*31^3 + 0x540d*31^2 + …
        let surrogates = [0xe9, 0x540d, 0xd83d, 0xde00u32];
        let odd = surrogates.iter().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(*unit as i32));
        let cases = [
            ("", 0),
            ("A", 65),
            ("*", 42),
            ("TagA", 2_598_919),
            ("TagB", 2_598_920),
            ("T#k1", 2_539_445),
            ("é名😀", odd.into()),
            ("polygenelubricants", i32::MIN.into()),
        ];
        for (tag, hash) in cases {
            assert_eq!(tag_hash(tag), hash, "{tag}");
        }
    }

    /// Index files depend on these numbers. If this fails, the change is wrong.
    #[test]
    fn key_hashes_never_change() {
        assert_eq!(key_hash("T", "k1"), 0xbd06_b982_eafa_9aa9);
        assert_eq!(key_hash("TopicTest", "7F000001000118B4AAC2000000000000"), 0x44e7_a643_8531_e19c);
        assert_eq!(key_hash("", ""), 0x5417_5fae_69c1_ede6);
        assert_eq!(tag_key_hash("T", "k1"), 0x19f4_d637_f488_d341);
        assert_ne!(key_hash("T", "a"), key_hash("T", "a\0"));
        assert_ne!(key_hash("Ta", "b"), key_hash("T", "ab"));
    }
}
