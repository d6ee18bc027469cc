//! Messages as they are stored and pulled (PROTOCOL 3.1), and as a batch carries them (3.7).
//!
//! ```text
//!  0 total u32 | 4 magic | 8 body crc | 12 queue id | 16 flag | 20 queue offset i64
//! 28 physical offset i64 | 36 sysFlag | 40 born time i64 | 48 born host 8 or 20
//! 56 store time i64 | 64 store host 8 or 20 | 72 reconsume times | 76 prepared offset i64
//! 84 body length u32, body | topic length u8 (V2: u16), topic | properties length u16, properties
//! ```
//! Positions behind an IPv6 host are 12 higher for each. All numbers are big-endian.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ids::{self, tag_hash};
use crate::names::{TOPIC_BYTES_MAX, sys_flag};
use crate::properties::{self, PROPERTIES_BYTES_MAX};

/// Marks a record whose topic length is one byte.
pub const MAGIC_V1: u32 = 0xdaa3_20a7;
/// Marks a record whose topic length is two bytes: topics longer than `TOPIC_BYTES_MAX`.
pub const MAGIC_V2: u32 = 0xdaa3_20ab;
/// Where the queue offset stands.
pub const QUEUE_OFFSET_AT: usize = 20;
/// Where the physical offset stands.
pub const PHYSICAL_OFFSET_AT: usize = 28;
/// Smallest record: no topic, properties or body, IPv4 hosts.
pub const RECORD_BYTES_MIN: usize = 91;
/// What a batch entry has besides its body and properties.
pub const ENTRY_BYTES_MIN: usize = 22;

const SYS_FLAG_AT: usize = 36;
const BORN_HOST_AT: usize = 48;
/// By how much an IPv6 host is longer.
const V6_EXTRA_BYTES: usize = 12;

const _: () = assert!(PHYSICAL_OFFSET_AT == QUEUE_OFFSET_AT + 8, "they are stamped together");
const _: () = assert!(4 * 5 + 8 + 8 + 4 + 8 + 8 + 8 + 8 + 4 + 8 + 4 + 1 + 2 == RECORD_BYTES_MIN);

/// Where the store time stands in a record with this sysFlag.
pub fn store_timestamp_at(sys_flag: i32) -> usize {
    BORN_HOST_AT + 8 + if sys_flag & sys_flag::BORN_HOST_V6 != 0 { V6_EXTRA_BYTES } else { 0 }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// The lengths inside disagree with each other or with the bytes there are.
    Length,
    /// Neither V1 nor V2.
    Magic(u32),
    /// The body does not have the checksum that stands beside it.
    Crc,
    /// Topic or properties are not UTF-8.
    Utf8,
    /// A host's port is beyond 65535.
    Port(u32),
}

impl fmt::Display for MessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MessageError::Length => write!(f, "lengths in a message disagree"),
            MessageError::Magic(magic) => write!(f, "{magic:#010x} is no message's magic"),
            MessageError::Crc => write!(f, "a message's body does not have its checksum"),
            MessageError::Utf8 => write!(f, "a message's text is not UTF-8"),
            MessageError::Port(port) => write!(f, "{port} is no port"),
        }
    }
}

impl std::error::Error for MessageError {}

/// One record, its texts and body borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are PROTOCOL 3.1's; times are ms since 1970")]
pub struct StoredMessage<'a> {
    pub queue_id: i32,
    /// The user's own flag.
    pub flag: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    /// Its two host bits follow the hosts when it is encoded.
    pub sys_flag: i32,
    pub born_timestamp: i64,
    pub born_host: SocketAddr,
    pub store_timestamp: i64,
    pub store_host: SocketAddr,
    pub reconsume_times: i32,
    pub prepared_transaction_offset: i64,
    pub body: &'a [u8],
    pub topic: &'a str,
    /// See `properties`.
    pub properties: &'a str,
}

impl<'a> StoredMessage<'a> {
    /// A message of which no more is known than what it says; it was made and stored on `host`, at no time.
    pub fn plain(host: SocketAddr, topic: &'a str, properties: &'a str, body: &'a [u8]) -> StoredMessage<'a> {
        StoredMessage {
            queue_id: 0,
            flag: 0,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 0,
            born_host: host,
            store_timestamp: 0,
            store_host: host,
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body,
            topic,
            properties,
        }
    }

    /// How many bytes `encode` writes.
    pub fn encoded_len(&self) -> usize {
        RECORD_BYTES_MIN
            + usize::from(self.is_long())
            + if is_v6(self.born_host) { V6_EXTRA_BYTES } else { 0 }
            + if is_v6(self.store_host) { V6_EXTRA_BYTES } else { 0 }
            + self.body.len()
            + self.topic.len()
            + self.properties.len()
    }

    /// Writes the record, with the body's checksum, into exactly `encoded_len` bytes.
    ///
    /// The caller has checked topic (at most 255 bytes) and properties (`PROPERTIES_BYTES_MAX`).
    pub fn encode(&self, out: &mut [u8]) {
        assert!(self.topic.len() <= i16::MAX as usize, "topics are checked before");
        assert!(self.properties.len() <= PROPERTIES_BYTES_MAX, "properties are checked before");
        let total = u32::try_from(out.len()).expect("a message stays far below 4 GiB");
        assert!(self.encoded_len() == out.len(), "the record fills its place");
        let magic = if self.is_long() { MAGIC_V2 } else { MAGIC_V1 };
        let mut sys_flag = self.sys_flag & !(sys_flag::BORN_HOST_V6 | sys_flag::STORE_HOST_V6);
        if is_v6(self.born_host) {
            sys_flag |= sys_flag::BORN_HOST_V6;
        }
        if is_v6(self.store_host) {
            sys_flag |= sys_flag::STORE_HOST_V6;
        }
        let mut out = Writer(out);
        out.put(&total.to_be_bytes());
        out.put(&magic.to_be_bytes());
        out.put(&body_crc(self.body).to_be_bytes());
        out.put(&self.queue_id.to_be_bytes());
        out.put(&self.flag.to_be_bytes());
        out.put(&self.queue_offset.to_be_bytes());
        out.put(&self.physical_offset.to_be_bytes());
        out.put(&sys_flag.to_be_bytes());
        out.put(&self.born_timestamp.to_be_bytes());
        out.put_host(self.born_host);
        out.put(&self.store_timestamp.to_be_bytes());
        out.put_host(self.store_host);
        out.put(&self.reconsume_times.to_be_bytes());
        out.put(&self.prepared_transaction_offset.to_be_bytes());
        out.put(&(self.body.len() as u32).to_be_bytes());
        out.put(self.body);
        if self.is_long() {
            out.put(&(self.topic.len() as u16).to_be_bytes());
        } else {
            out.put(&[self.topic.len() as u8]);
        }
        out.put(self.topic.as_bytes());
        out.put(&(self.properties.len() as u16).to_be_bytes());
        out.put(self.properties.as_bytes());
    }

    /// Reads exactly one record and checks its body.
    pub fn decode(bytes: &'a [u8]) -> Result<StoredMessage<'a>, MessageError> {
        let (message, crc) = StoredMessage::read(bytes)?;
        if body_crc(message.body) != crc {
            return Err(MessageError::Crc);
        }
        Ok(message)
    }

    /// The value of a property.
    pub fn property(&self, name: &str) -> Option<&'a str> {
        properties::get(self.properties, name)
    }

    /// What stands in the record, and the checksum it claims for its body.
    fn read(bytes: &'a [u8]) -> Result<(StoredMessage<'a>, u32), MessageError> {
        let mut rest = Reader(bytes);
        if rest.u32()? as usize != bytes.len() {
            return Err(MessageError::Length);
        }
        let magic = rest.u32()?;
        if magic != MAGIC_V1 && magic != MAGIC_V2 {
            return Err(MessageError::Magic(magic));
        }
        let crc = rest.u32()?;
        let queue_id = rest.i32()?;
        let flag = rest.i32()?;
        let queue_offset = rest.i64()?;
        let physical_offset = rest.i64()?;
        let sys_flag = rest.i32()?;
        let born_timestamp = rest.i64()?;
        let born_host = rest.host(sys_flag & sys_flag::BORN_HOST_V6 != 0)?;
        let store_timestamp = rest.i64()?;
        let store_host = rest.host(sys_flag & sys_flag::STORE_HOST_V6 != 0)?;
        let reconsume_times = rest.i32()?;
        let prepared_transaction_offset = rest.i64()?;
        let body_bytes = rest.u32()?;
        let body = rest.bytes(body_bytes as usize)?;
        let topic_bytes = if magic == MAGIC_V2 { rest.u16()? } else { rest.take::<1>()?[0].into() };
        let topic = rest.text(topic_bytes.into())?;
        let properties_bytes = rest.u16()?;
        let properties = rest.text(properties_bytes.into())?;
        if !rest.0.is_empty() {
            return Err(MessageError::Length);
        }
        let message = StoredMessage {
            queue_id,
            flag,
            queue_offset,
            physical_offset,
            sys_flag,
            born_timestamp,
            born_host,
            store_timestamp,
            store_host,
            reconsume_times,
            prepared_transaction_offset,
            body,
            topic,
            properties,
        };
        Ok((message, crc))
    }

    fn is_long(&self) -> bool {
        self.topic.len() > TOPIC_BYTES_MAX
    }
}

/// Writes what is only known when a record gets its place.
///
/// `record` must be one that `encode` wrote.
pub fn stamp(record: &mut [u8], queue_offset: i64, physical_offset: i64, store_timestamp: i64) {
    let sys_flag = record[SYS_FLAG_AT..].first_chunk::<4>().expect("a record is longer");
    let time_at = store_timestamp_at(i32::from_be_bytes(*sys_flag));
    record[QUEUE_OFFSET_AT..][..8].copy_from_slice(&queue_offset.to_be_bytes());
    record[PHYSICAL_OFFSET_AT..][..8].copy_from_slice(&physical_offset.to_be_bytes());
    record[time_at..][..8].copy_from_slice(&store_timestamp.to_be_bytes());
}

/// CRC-32 (IEEE) without its sign bit, as records carry it for their body.
pub fn body_crc(body: &[u8]) -> u32 {
    crc32fast::hash(body) & 0x7fff_ffff
}

/// Records one behind the other, as pulls answer them. Ends behind the first that is broken.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<StoredMessage<'_>, MessageError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let total = rest.first_chunk::<4>().map(|total| u32::from_be_bytes(*total) as usize);
        let cut = total.and_then(|total| rest.split_at_checked(total));
        let message = match cut {
            _ if rest.is_empty() => return None,
            Some((record, behind)) => {
                rest = behind;
                StoredMessage::decode(record)
            }
            None => Err(MessageError::Length),
        };
        if message.is_err() {
            rest = &[];
        }
        Some(message)
    })
}

/// What an index needs to know about a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are PROTOCOL 3.1's")]
pub struct Description<'a> {
    pub topic: &'a str,
    pub queue_id: i32,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub sys_flag: i32,
    /// Milliseconds since 1970.
    pub store_timestamp: i64,
    /// See `ids::tag_hash`; 0 without a tag.
    pub tag_hash: i64,
    pub properties: &'a str,
}

impl<'a> Description<'a> {
    /// Hashes of what the message can be queried by: UNIQ_KEY, each word in KEYS, and TAGS. None for a rolled back half
    /// message, as in RocketMQ.
    pub fn key_hashes(&self) -> impl Iterator<Item = u64> + 'a {
        let is_rollback = self.sys_flag & sys_flag::TRANSACTION_MASK == sys_flag::TRANSACTION_ROLLBACK;
        let properties = if is_rollback { "" } else { self.properties };
        key_hashes(self.topic, properties)
    }
}

/// Hashes of the keys and the tag in a message's properties; see `ids::key_hash` and `ids::tag_key_hash`.
pub fn key_hashes<'a>(topic: &str, properties: &'a str) -> impl Iterator<Item = u64> + 'a {
    use properties::name::{KEYS, TAGS, UNIQ_KEY};
    let topic_hash = ids::topic_hash(topic);
    properties::iter(properties).filter(|(name, _)| [KEYS, TAGS, UNIQ_KEY].contains(name)).flat_map(
        move |(name, value)| {
            let start = if name == TAGS { !topic_hash } else { topic_hash };
            // A unique id and a tag are one key, whatever they hold; the chain makes all cases one type.
            let (whole, words) = if name == KEYS { (None, value) } else { (Some(value), "") };
            let whole = whole.filter(|value| name == UNIQ_KEY || !value.is_empty());
            whole.into_iter().chain(properties::keys(words)).map(move |key| ids::mix(start, key.as_bytes()))
        },
    )
}

/// The hash of the tag in a message's properties; 0 without one.
pub fn tag_hash_of(properties: &str) -> i64 {
    properties::get(properties, properties::name::TAGS).map_or(0, tag_hash)
}

/// The properties of one whole record. `None`: it is not one. The body's checksum is not looked at.
pub fn properties_of(record: &[u8]) -> Option<&str> {
    StoredMessage::read(record).ok().map(|(message, _)| message.properties)
}

/// Describes one whole record. `None`: it is not one. The body's checksum is not looked at.
pub fn describe(record: &[u8]) -> Option<Description<'_>> {
    let (message, _) = StoredMessage::read(record).ok()?;
    Some(Description {
        topic: message.topic,
        queue_id: message.queue_id,
        queue_offset: message.queue_offset,
        physical_offset: message.physical_offset,
        sys_flag: message.sys_flag,
        store_timestamp: message.store_timestamp,
        tag_hash: tag_hash_of(message.properties),
        properties: message.properties,
    })
}

/// One message in the body of a SEND_BATCH_MESSAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchEntry<'a> {
    /// The user's own flag.
    pub flag: i32,
    /// The message's body.
    pub body: &'a [u8],
    /// Its properties.
    pub properties: &'a str,
}

impl BatchEntry<'_> {
    /// Appends the entry as clients write it:
    /// `| total u32 | magic 0 | crc 0 | flag | body length u32 | body | length u16 | properties |`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        assert!(self.properties.len() <= PROPERTIES_BYTES_MAX, "properties are checked before");
        let total = ENTRY_BYTES_MIN + self.body.len() + self.properties.len();
        out.extend_from_slice(&(total as u32).to_be_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&self.flag.to_be_bytes());
        out.extend_from_slice(&(self.body.len() as u32).to_be_bytes());
        out.extend_from_slice(self.body);
        out.extend_from_slice(&(self.properties.len() as u16).to_be_bytes());
        out.extend_from_slice(self.properties.as_bytes());
    }
}

/// The entries of a batch's body. After an `Err` it ends: what follows cannot be found.
#[derive(Clone, Debug)]
pub struct BatchEntries<'a>(Reader<'a>);

impl<'a> BatchEntries<'a> {
    /// Walks over a batch's body.
    pub fn new(body: &'a [u8]) -> BatchEntries<'a> {
        BatchEntries(Reader(body))
    }

    fn read(&mut self) -> Result<BatchEntry<'a>, MessageError> {
        let total = self.0.u32()? as usize;
        let inside = total.checked_sub(4).ok_or(MessageError::Length)?;
        let mut rest = Reader(self.0.bytes(inside)?);
        rest.take::<8>()?;
        let flag = rest.i32()?;
        let body_bytes = rest.u32()?;
        let body = rest.bytes(body_bytes as usize)?;
        let properties_bytes = usize::from(rest.u16()?);
        if properties_bytes > PROPERTIES_BYTES_MAX || rest.0.len() != properties_bytes {
            return Err(MessageError::Length);
        }
        let properties = rest.text(properties_bytes)?;
        Ok(BatchEntry { flag, body, properties })
    }
}

impl<'a> Iterator for BatchEntries<'a> {
    type Item = Result<BatchEntry<'a>, MessageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.0.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_err() {
            self.0 = Reader(&[]);
        }
        Some(entry)
    }
}

/// An IPv4 address in IPv6 clothes counts as IPv4, so that old clients can read the record.
fn is_v6(host: SocketAddr) -> bool {
    host.ip().to_canonical().is_ipv6()
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        let rest = std::mem::take(&mut self.0);
        let (place, rest) = rest.split_at_mut(bytes.len());
        place.copy_from_slice(bytes);
        self.0 = rest;
    }

    fn put_host(&mut self, host: SocketAddr) {
        match host.ip().to_canonical() {
            IpAddr::V4(ip) => self.put(&ip.octets()),
            IpAddr::V6(ip) => self.put(&ip.octets()),
        }
        self.put(&u32::from(host.port()).to_be_bytes());
    }
}

#[derive(Clone, Copy, Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    fn take<const N: usize>(&mut self) -> Result<[u8; N], MessageError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(MessageError::Length)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u16(&mut self) -> Result<u16, MessageError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, MessageError> {
        self.take().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, MessageError> {
        self.take().map(i32::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, MessageError> {
        self.take().map(i64::from_be_bytes)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], MessageError> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(MessageError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self, count: usize) -> Result<&'a str, MessageError> {
        std::str::from_utf8(self.bytes(count)?).map_err(|_| MessageError::Utf8)
    }

    fn host(&mut self, is_v6: bool) -> Result<SocketAddr, MessageError> {
        let ip: IpAddr =
            if is_v6 { Ipv6Addr::from(self.take::<16>()?).into() } else { Ipv4Addr::from(self.take::<4>()?).into() };
        let port = self.u32()?;
        let port = u16::try_from(port).map_err(|_| MessageError::Port(port))?;
        Ok(SocketAddr::new(ip, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    const PROPERTIES: &str = "TAGS\u{1}A\u{2}UNIQ_KEY\u{1}7F000001000118B4AAC2000000000000\u{2}";

    fn message() -> StoredMessage<'static> {
        StoredMessage {
            queue_id: 2,
            flag: 0,
            queue_offset: 5,
            physical_offset: 0,
            sys_flag: 0,
            born_timestamp: 1_700_000_000_000,
            born_host: "127.0.0.1:54321".parse().unwrap(),
            store_timestamp: 1_700_000_000_001,
            store_host: "127.0.0.1:10911".parse().unwrap(),
            reconsume_times: 0,
            prepared_transaction_offset: 0,
            body: b"hi",
            topic: "T",
            properties: PROPERTIES,
        }
    }

    fn encode(message: &StoredMessage<'_>) -> Vec<u8> {
        let mut out = vec![0; message.encoded_len()];
        message.encode(&mut out);
        out
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().filter_map(|char| char.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }

    #[test]
    fn golden_record() {
        // Appendix C, vector 3.
        let mut wanted = hex("0000008f daa320a7 58932aac 00000002 00000000 0000000000000005 0000000000000000 \
             00000000 0000018bcfe56800 7f000001 0000d431 0000018bcfe56801 7f000001 00002a9f \
             00000000 0000000000000000 00000002 6869 01 54 0031");
        wanted.extend_from_slice(PROPERTIES.as_bytes());
        assert_eq!(wanted.len(), 143);
        assert_eq!(encode(&message()), wanted);
        assert_eq!(StoredMessage::decode(&wanted), Ok(message()));
    }

    #[test]
    fn records_of_every_shape_come_back() {
        let long = "x".repeat(255);
        for topic in ["T", &long[..127], &long[..128], &long] {
            for born in ["1.2.3.4:0", "[2001:db8::1]:65535", "[::ffff:1.2.3.4]:9"] {
                for store in ["127.0.0.1:10911", "[::1]:1"] {
                    let mut message = StoredMessage { topic, ..message() };
                    message.born_host = born.parse().unwrap();
                    message.store_host = store.parse().unwrap();
                    let mut bytes = encode(&message);
                    stamp(&mut bytes, 77, 1 << 50, 99);
                    let back = StoredMessage::decode(&bytes).unwrap();
                    message.sys_flag = back.sys_flag;
                    message.born_host.set_ip(message.born_host.ip().to_canonical());
                    (message.queue_offset, message.physical_offset) = (77, 1 << 50);
                    message.store_timestamp = 99;
                    assert_eq!(back, message);
                    assert_eq!(bytes[7] == 0xab, topic.len() > 127, "V1 wherever it fits");
                    let two = [bytes.clone(), bytes].concat();
                    let all: Vec<_> = records(&two).collect();
                    assert_eq!(all, [Ok(message), Ok(message)]);
                }
            }
        }
    }

    #[test]
    fn damage_is_noticed_and_never_panics() {
        let bytes = encode(&message());
        for length in 0..bytes.len() {
            assert!(StoredMessage::decode(&bytes[..length]).is_err());
            assert!(describe(&bytes[..length]).is_none());
            let last = records(&bytes[..length]).last();
            assert_eq!(last.is_none(), length == 0);
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let same = StoredMessage::decode(&damaged) == Ok(message());
            assert!(!same, "bit {bit}");
        }
        let mut noise = Noise::new(3);
        for _ in 0..50_000 {
            let mut damaged = bytes.clone();
            for _ in 0..1 + noise.below(3) {
                let at = noise.below(damaged.len());
                damaged[at] = noise.next() as u8;
            }
            let _ = StoredMessage::decode(&damaged);
            let _ = describe(&damaged).map(|found| found.key_hashes().count());
            let _ = records(&damaged).count();
        }
    }

    #[test]
    fn descriptions_carry_tag_and_keys() {
        let properties = "KEYS\u{1}k1  k2\u{2}TAGS\u{1}TagA\u{2}UNIQ_KEY\u{1}U 1\u{2}";
        let mut message = StoredMessage { properties, ..message() };
        let bytes = encode(&message);
        let found = describe(&bytes).unwrap();
        assert_eq!((found.topic, found.queue_id, found.queue_offset), ("T", 2, 5));
        assert_eq!((found.tag_hash, found.store_timestamp), (2_598_919, 1_700_000_000_001));
        let hashes: Vec<_> = found.key_hashes().collect();
        let [one, two, unique] = ["k1", "k2", "U 1"].map(|key| ids::key_hash("T", key));
        assert_eq!(hashes, [one, two, ids::tag_key_hash("T", "TagA"), unique]);

        message.sys_flag = sys_flag::TRANSACTION_ROLLBACK;
        message.properties = "";
        let bytes = encode(&message);
        let found = describe(&bytes).unwrap();
        assert_eq!((found.tag_hash, found.key_hashes().count()), (0, 0));
    }

    #[test]
    fn batches_come_apart() {
        // Appendix C, vector 4.
        let entry = BatchEntry { flag: 0, body: b"hi", properties: "TAGS\u{1}A\u{2}" };
        let mut bytes = Vec::new();
        entry.encode(&mut bytes);
        assert_eq!(bytes, hex("0000001f 00000000 00000000 00000000 00000002 6869 0007 54414753014102"));
        let empty = BatchEntry { flag: -1, body: b"", properties: "" };
        empty.encode(&mut bytes);
        let all: Vec<_> = BatchEntries::new(&bytes).collect();
        assert_eq!(all, [Ok(entry), Ok(empty)]);
        assert_eq!(BatchEntries::new(&[]).count(), 0);
        for length in 1..bytes.len() {
            let broken = BatchEntries::new(&bytes[..length]).filter(Result::is_err).count();
            assert_eq!(broken, usize::from(length != 31), "cut at {length}");
        }
        let mut noise = Noise::new(5);
        for _ in 0..20_000 {
            let mut damaged = bytes.clone();
            let at = noise.below(damaged.len());
            damaged[at] = noise.next() as u8;
            assert!(BatchEntries::new(&damaged).count() <= 3);
        }
    }
}
