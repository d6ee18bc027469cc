//! Answers written straight into their frame: what `Header::encode_frame` writes, without the detour
//! through a `Fields`, for those that leave by the hundred thousand a second.

use crate::codes::response;
use crate::command::{FLAG_RESPONSE, Language, Serialize, VERSION};
use crate::frame::PREFIX_BYTES;
use crate::ids::{OffsetId, hex};
use crate::json;
use std::net::IpAddr;

const _: () = assert!(
    response::SUCCESS == 0 && FLAG_RESPONSE == 1 && VERSION == 479,
    "the JSON form has these as text: most of an answer is constant"
);

/// A successful answer without a body, being written. Call [`finish`](AnswerWriter::finish), or the frame
/// behind `out`'s old end is not one.
#[derive(Debug)]
pub struct AnswerWriter<'a> {
    out: &'a mut Vec<u8>,
    serialize: Serialize,
    opaque: i32,
    /// Where the frame starts.
    start: usize,
    /// Binary: where the length of the fields stands. JSON: nothing before the first field.
    fields: usize,
    any: bool,
}

/// Fields that stand in many answers alike, written once, in both forms.
#[derive(Clone, Debug, Default)]
pub struct Alike {
    json: Vec<u8>,
    binary: Vec<u8>,
}

impl Alike {
    /// Of these names and values, in their order.
    pub fn new(fields: &[(&'static str, &str)]) -> Alike {
        let write = |serialize| {
            let mut out = Vec::new();
            let mut answer = AnswerWriter { out: &mut out, serialize, opaque: 0, start: 0, fields: 0, any: true };
            fields.iter().for_each(|(name, value)| answer.text(name, value));
            out
        };
        Alike { json: write(Serialize::Json), binary: write(Serialize::RocketMq) }
    }
}

impl<'a> AnswerWriter<'a> {
    /// Starts the answer to the request with this opaque, in the request's serialization.
    pub fn new(out: &'a mut Vec<u8>, serialize: Serialize, opaque: i32) -> AnswerWriter<'a> {
        let start = out.len();
        out.reserve(384);
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        let mut fields = 0;
        match serialize {
            Serialize::Json => {
                out.extend_from_slice(b"{\"code\":0");
            }
            Serialize::RocketMq => {
                out.extend_from_slice(&(response::SUCCESS as i16).to_be_bytes());
                out.push(Language::Java.code());
                out.extend_from_slice(&(VERSION as i16).to_be_bytes());
                out.extend_from_slice(&opaque.to_be_bytes());
                out.extend_from_slice(&FLAG_RESPONSE.to_be_bytes());
                out.extend_from_slice(&[0; 4]);
                fields = out.len();
                out.extend_from_slice(&[0; 4]);
            }
        }
        AnswerWriter { out, serialize, opaque, start, fields, any: false }
    }

    /// Adds a field with any text.
    #[inline(always)]
    pub fn text(&mut self, name: &'static str, value: &str) {
        self.name(name, value.len());
        match self.serialize {
            Serialize::Json => json::write_escaped(self.out, value),
            Serialize::RocketMq => self.out.extend_from_slice(value.as_bytes()),
        }
        self.close();
    }

    /// Adds a field whose value has nothing that JSON escapes: digits, hex, true and false.
    #[inline(always)]
    pub fn plain(&mut self, name: &'static str, value: &str) {
        self.name(name, value.len());
        self.out.extend_from_slice(value.as_bytes());
        self.close();
    }

    /// Adds fields that stand in many answers, behind at least one of this one's own.
    #[inline(always)]
    pub fn alike(&mut self, fields: &Alike) {
        assert!(self.any, "what stands before the first field is another");
        self.out.extend_from_slice(match self.serialize {
            Serialize::Json => &fields.json,
            Serialize::RocketMq => &fields.binary,
        });
    }

    /// Adds a field with a decimal value.
    #[inline(always)]
    pub fn int(&mut self, name: &'static str, value: impl Into<i64>) {
        self.plain(name, itoa::Buffer::new().format(value.into()));
    }

    /// Adds a message id: of hex digits, as it prints.
    #[inline(always)]
    pub fn id(&mut self, name: &'static str, id: OffsetId) {
        let (port, offset) = (u32::from(id.host.port()), id.offset.cast_unsigned());
        let behind = [port, (offset >> 32) as u32, offset as u32];
        match id.host.ip().to_canonical() {
            IpAddr::V4(ip) => {
                self.name(name, 32);
                self.out.extend_from_slice(&hex(ip.to_bits()));
            }
            IpAddr::V6(ip) => {
                self.name(name, 56);
                let words = [96, 64, 32, 0].map(|shift| (ip.to_bits() >> shift) as u32);
                words.iter().for_each(|word| self.out.extend_from_slice(&hex(*word)));
            }
        }
        behind.iter().for_each(|word| self.out.extend_from_slice(&hex(*word)));
        self.close();
    }

    /// Ends the frame.
    #[inline(always)]
    pub fn finish(self) {
        let out = self.out;
        match self.serialize {
            Serialize::Json => {
                if self.any {
                    out.push(b'}');
                }
                out.extend_from_slice(b",\"flag\":1,\"language\":\"JAVA\",\"opaque\":");
                json::write_int(out, self.opaque.into());
                out.extend_from_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":479}");
            }
            Serialize::RocketMq => {
                let bytes = (out.len() - self.fields - 4) as u32;
                out[self.fields..self.fields + 4].copy_from_slice(&bytes.to_be_bytes());
            }
        }
        let header_bytes = (out.len() - self.start - PREFIX_BYTES) as u32;
        assert!(header_bytes < 1 << 24, "our own headers fit 24 bits");
        let mark = u32::from(self.serialize.code()) << 24 | header_bytes;
        out[self.start..self.start + 4].copy_from_slice(&(4 + header_bytes).to_be_bytes());
        out[self.start + 4..self.start + 8].copy_from_slice(&mark.to_be_bytes());
    }

    /// What stands before a value. Names are ours: nothing in them is escaped.
    #[inline(always)]
    fn name(&mut self, name: &'static str, value_bytes: usize) {
        match self.serialize {
            Serialize::Json => {
                self.out.extend_from_slice(if self.any { b",\"" } else { b",\"extFields\":{\"" });
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(b"\":\"");
            }
            Serialize::RocketMq => {
                self.out.extend_from_slice(&(name.len() as u16).to_be_bytes());
                self.out.extend_from_slice(name.as_bytes());
                self.out.extend_from_slice(&(value_bytes as u32).to_be_bytes());
            }
        }
        self.any = true;
    }

    #[inline(always)]
    fn close(&mut self) {
        if self.serialize == Serialize::Json {
            self.out.push(b'"');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Header;

    #[test]
    fn it_writes_what_a_header_writes() {
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            for fields in 0..4 {
                let mut written = b"before".to_vec();
                let mut answer = AnswerWriter::new(&mut written, serialize, -7);
                let mut header = Header { serialize, opaque: -7, ..Header::default() };
                let request = header.clone();
                header.answer_to(&request, response::SUCCESS);
                if fields > 0 {
                    answer.text("transactionId", "\"\u{1}é\\");
                    header.fields.push("transactionId", "\"\u{1}é\\");
                }
                if fields > 1 {
                    answer.int("queueOffset", i64::MIN);
                    header.fields.push_int("queueOffset", i64::MIN);
                }
                if fields > 2 {
                    answer.plain("TRACE_ON", "true");
                    header.fields.push_bool("TRACE_ON", true);
                    for host in ["127.0.0.1:10911", "[::ffff:1.2.3.4]:5", "[2001:db8::abc]:65535"] {
                        let id = OffsetId { host: host.parse().unwrap(), offset: i64::MAX - 0xabc };
                        answer.id("msgId", id);
                        header.fields.push("msgId", &id.to_string());
                    }
                    answer.alike(&Alike::new(&[("MSG_REGION", "\"é"), ("", "")]));
                    header.fields.push("MSG_REGION", "\"é");
                    header.fields.push("", "");
                }
                answer.finish();
                let mut wanted = b"before".to_vec();
                header.encode_frame(&mut wanted, 0);
                assert_eq!(written, wanted, "{serialize:?} with {fields} fields");
            }
        }
    }
}
