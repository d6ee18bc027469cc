//! Commands: what a frame says, in JSON or in RocketMQ's binary form (PROTOCOL 1.2 and 1.3).

use bytes::Bytes;

use crate::fields::{FIELDS_MAX, Fields};
use crate::frame::{self, FrameError, HEADER_BYTES_MAX, PREFIX_BYTES};
use crate::json::{self, HeaderError, Scanner};

/// The version we answer with: V5_3_3. Clients record it per broker; 0 would disable SQL filters.
pub const VERSION: i32 = 479;
/// Flag bit of a response.
pub const FLAG_RESPONSE: i32 = 1;
/// Flag bit of a request that must never be answered.
pub const FLAG_ONEWAY: i32 = 2;

/// How a header is written; the top byte of the header mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serialize {
    /// JSON text, what stock clients send.
    #[default]
    Json,
    /// RocketMQ's own binary form.
    RocketMq,
}

impl Serialize {
    /// From the byte on the wire.
    pub fn from_code(code: u8) -> Option<Serialize> {
        match code {
            0 => Some(Serialize::Json),
            1 => Some(Serialize::RocketMq),
            _ => None,
        }
    }

    /// The byte on the wire.
    pub fn code(self) -> u8 {
        match self {
            Serialize::Json => 0,
            Serialize::RocketMq => 1,
        }
    }
}

/// What a peer is written in (PROTOCOL 1.6). One we do not know is kept as `Other`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the variants are the languages' names")]
pub enum Language {
    #[default]
    Java,
    Cpp,
    Dotnet,
    Python,
    Delphi,
    Erlang,
    Ruby,
    Other,
    Http,
    Go,
    Php,
    Oms,
    Rust,
    NodeJs,
}

impl Language {
    /// All of them; a language's index is its code.
    const ALL: [(Language, &str); 14] = [
        (Language::Java, "JAVA"),
        (Language::Cpp, "CPP"),
        (Language::Dotnet, "DOTNET"),
        (Language::Python, "PYTHON"),
        (Language::Delphi, "DELPHI"),
        (Language::Erlang, "ERLANG"),
        (Language::Ruby, "RUBY"),
        (Language::Other, "OTHER"),
        (Language::Http, "HTTP"),
        (Language::Go, "GO"),
        (Language::Php, "PHP"),
        (Language::Oms, "OMS"),
        (Language::Rust, "RUST"),
        (Language::NodeJs, "NODE_JS"),
    ];

    /// From the byte of a binary header.
    pub fn from_code(code: u8) -> Language {
        Self::ALL.get(usize::from(code)).map_or(Language::Other, |(language, _)| *language)
    }

    /// From the name in a JSON header.
    pub fn from_name(name: &str) -> Language {
        let known = Self::ALL.iter().find(|(_, known)| *known == name);
        known.map_or(Language::Other, |(language, _)| *language)
    }

    /// The byte of a binary header.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The name in a JSON header.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A command without its body. Made to be reused: decoding into one keeps its memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// Request code, or response code when `is_response`; see `codes`.
    pub code: i32,
    /// What the sender is written in.
    pub language: Language,
    /// The sender's RocketMQ version (PROTOCOL 1.7).
    pub version: i32,
    /// Pairs a response with its request.
    pub opaque: i32,
    /// Bits `FLAG_RESPONSE` and `FLAG_ONEWAY`.
    pub flag: i32,
    /// Text for people, mostly of errors. Empty: none.
    pub remark: String,
    /// The request's or response's own values.
    pub fields: Fields,
    /// How this header came, or is to go.
    pub serialize: Serialize,
}

impl Header {
    /// A request of ours: JSON, two-way, opaque 0 until the sender numbers it.
    pub fn request(code: i32) -> Header {
        Header { code, version: VERSION, ..Header::default() }
    }

    /// Whether this answers a request.
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// Whether this is a request that must not be answered, not even on failure.
    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    /// Becomes an empty answer to `request`: its opaque and serialization, `code`, no fields.
    pub fn answer_to(&mut self, request: &Header, code: i32) {
        self.clear();
        self.code = code;
        self.version = VERSION;
        self.opaque = request.opaque;
        self.flag = FLAG_RESPONSE;
        self.serialize = request.serialize;
    }

    /// Reads a header's bytes into this one, replacing everything in it. Allocates nothing once
    /// its memory has grown to the usual size.
    ///
    /// - JSON: any order and white space, unknown members are skipped, numbers and booleans count
    ///   as their text in ext fields, null means absent. A missing member is 0, empty, Java.
    /// - On `Err` the content is unspecified and the peer is to be closed.
    pub fn decode(&mut self, serialize: Serialize, bytes: &[u8]) -> Result<(), HeaderError> {
        self.clear();
        self.serialize = serialize;
        match serialize {
            Serialize::Json => self.decode_json(bytes),
            Serialize::RocketMq => self.decode_binary(bytes),
        }
    }

    /// Appends length, mark and header of a frame whose body of `body_bytes` the caller sends
    /// behind it. JSON is compact, with its keys in Java's order and ext values always strings.
    ///
    /// A code beyond 16 bits does not fit the binary form and goes as JSON: receivers go by the
    /// frame's own mark. Keeping bodies small enough for `FRAME_BYTES_MAX` is the caller's part: a
    /// peer closes on a longer frame.
    pub fn encode_frame(&self, out: &mut Vec<u8>, body_bytes: usize) {
        let start = out.len();
        out.extend_from_slice(&[0; PREFIX_BYTES]);
        let serialize = match i16::try_from(self.code) {
            Ok(code) if self.serialize == Serialize::RocketMq => {
                self.encode_binary(code, out);
                Serialize::RocketMq
            }
            _ => {
                self.encode_json(out);
                Serialize::Json
            }
        };
        let header_bytes = out.len() - start - PREFIX_BYTES;
        let length = 4 + header_bytes + body_bytes;
        assert!(header_bytes < 1 << 24, "our own headers fit 24 bits");
        assert!(i32::try_from(length).is_ok(), "no body of ours has 2 GiB");
        let mark = u32::from(serialize.code()) << 24 | header_bytes as u32;
        out[start..start + 4].copy_from_slice(&(length as u32).to_be_bytes());
        out[start + 4..start + 8].copy_from_slice(&mark.to_be_bytes());
    }

    fn clear(&mut self) {
        self.code = 0;
        self.language = Language::Java;
        self.version = 0;
        self.opaque = 0;
        self.flag = 0;
        self.remark.clear();
        self.fields.clear();
    }

    fn decode_json(&mut self, bytes: &[u8]) -> Result<(), HeaderError> {
        if bytes.len() > HEADER_BYTES_MAX {
            return Err(HeaderError::Long);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| HeaderError::Utf8)?;
        self.fields.text().push_str(text);
        let mut scanner = Scanner::new(text);
        scanner.open()?;
        let mut first = true;
        while scanner.more(first)? {
            first = false;
            let arena = self.fields.text();
            match scanner.name(arena)?.of(arena) {
                "code" => self.code = scanner.int()?.unwrap_or(0),
                "version" => self.version = scanner.int()?.unwrap_or(0),
                "opaque" => self.opaque = scanner.int()?.unwrap_or(0),
                "flag" => self.flag = scanner.int()?.unwrap_or(0),
                "extFields" => json::read_fields(&mut scanner, &mut self.fields)?,
                "language" => {
                    if let Some(name) = scanner.scalar(arena)? {
                        self.language = Language::from_name(name.of(arena));
                    }
                }
                "remark" => {
                    self.remark.clear();
                    if let Some(remark) = scanner.scalar(arena)? {
                        self.remark.push_str(remark.of(arena));
                    }
                }
                _ => scanner.skip()?,
            }
        }
        scanner.end()
    }

    fn encode_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"code\":");
        json::write_int(out, self.code.into());
        if !self.fields.is_empty() {
            out.extend_from_slice(b",\"extFields\":");
            json::write_fields(out, &self.fields);
        }
        out.extend_from_slice(b",\"flag\":");
        json::write_int(out, self.flag.into());
        out.extend_from_slice(b",\"language\":\"");
        out.extend_from_slice(self.language.name().as_bytes());
        out.extend_from_slice(b"\",\"opaque\":");
        json::write_int(out, self.opaque.into());
        if !self.remark.is_empty() {
            out.extend_from_slice(b",\"remark\":");
            json::write_string(out, &self.remark);
        }
        out.extend_from_slice(b",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":");
        json::write_int(out, self.version.into());
        out.push(b'}');
    }

    fn decode_binary(&mut self, bytes: &[u8]) -> Result<(), HeaderError> {
        let mut rest = bytes;
        self.code = i16::from_be_bytes(take(&mut rest)?).into();
        self.language = Language::from_code(u8::from_be_bytes(take(&mut rest)?));
        self.version = i16::from_be_bytes(take(&mut rest)?).into();
        self.opaque = i32::from_be_bytes(take(&mut rest)?);
        self.flag = i32::from_be_bytes(take(&mut rest)?);
        self.remark.push_str(take_text(&mut rest)?);
        let fields_bytes = u32::from_be_bytes(take(&mut rest)?);
        if fields_bytes as usize != rest.len() {
            return Err(HeaderError::Binary);
        }
        while !rest.is_empty() {
            let name_bytes = u16::from_be_bytes(take(&mut rest)?);
            let name = split_text(&mut rest, name_bytes.into())?;
            let value = take_text(&mut rest)?;
            // Java reads an empty string as null: absent.
            if name.is_empty() || value.is_empty() {
                continue;
            }
            if self.fields.len() == FIELDS_MAX {
                return Err(HeaderError::Fields);
            }
            self.fields.push(name, value);
        }
        Ok(())
    }

    fn encode_binary(&self, code: i16, out: &mut Vec<u8>) {
        out.extend_from_slice(&code.to_be_bytes());
        out.push(self.language.code());
        // Versions are ordinals of a Java enum, hundreds; a stranger's larger one is cut as Java
        // would cut it.
        out.extend_from_slice(&(self.version as i16).to_be_bytes());
        out.extend_from_slice(&self.opaque.to_be_bytes());
        out.extend_from_slice(&self.flag.to_be_bytes());
        put_text(out, &self.remark);
        let block = out.len();
        out.extend_from_slice(&[0; 4]);
        for (name, value) in self.fields.iter() {
            // A name beyond 16 bits has no form here; no header of ours has one.
            let Ok(name_bytes) = u16::try_from(name.len()) else {
                continue;
            };
            out.extend_from_slice(&name_bytes.to_be_bytes());
            out.extend_from_slice(name.as_bytes());
            put_text(out, value);
        }
        let block_bytes = (out.len() - block - 4) as u32;
        out[block..block + 4].copy_from_slice(&block_bytes.to_be_bytes());
    }
}

/// A header with its body, for the edges.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Command {
    /// Everything but the body.
    pub header: Header,
    /// The body; empty: none.
    pub body: Bytes,
}

/// Why a frame is no command. Always means: close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The frame's own numbers are wrong.
    Frame(FrameError),
    /// The header inside it cannot be read.
    Header(HeaderError),
}

impl std::fmt::Display for CommandError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CommandError::Frame(error) => error.fmt(f),
            CommandError::Header(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CommandError {}

impl Command {
    /// A request of ours without fields or body.
    pub fn request(code: i32) -> Command {
        Command { header: Header::request(code), body: Bytes::new() }
    }

    /// An empty answer to `request`.
    pub fn answer(request: &Header, code: i32) -> Command {
        let mut command = Command::default();
        command.header.answer_to(request, code);
        command
    }

    /// An empty answer that says why not.
    pub fn refusal(request: &Header, code: i32, remark: impl Into<String>) -> Command {
        let mut command = Command::answer(request, code);
        command.header.remark = remark.into();
        command
    }

    /// Reads one whole frame, as `Frames::cut` gives it. The body shares its memory.
    pub fn decode(frame: Bytes) -> Result<Command, CommandError> {
        let (serialize, header, body) = frame::split(&frame).map_err(CommandError::Frame)?;
        let mut command = Command { body: frame.slice(body), ..Command::default() };
        command.header.decode(serialize, &frame[header]).map_err(CommandError::Header)?;
        Ok(command)
    }

    /// The whole frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + self.body.len());
        self.header.encode_frame(&mut out, self.body.len());
        out.extend_from_slice(&self.body);
        out
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], HeaderError> {
    let (bytes, behind) = rest.split_first_chunk::<N>().ok_or(HeaderError::Binary)?;
    *rest = behind;
    Ok(*bytes)
}

/// A text behind its 32-bit length.
fn take_text<'a>(rest: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let bytes = u32::from_be_bytes(take(rest)?);
    split_text(rest, bytes as usize)
}

fn split_text<'a>(rest: &mut &'a [u8], bytes: usize) -> Result<&'a str, HeaderError> {
    let (text, behind) = rest.split_at_checked(bytes).ok_or(HeaderError::Binary)?;
    *rest = behind;
    std::str::from_utf8(text).map_err(|_| HeaderError::Utf8)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let bytes = u32::try_from(text.len()).expect("a header's text is far below 4 GiB");
    out.extend_from_slice(&bytes.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Noise;

    /// Appendix C, vector 1.
    const ROUTE_JSON: &str = r#"{"code":105,"extFields":{"topic":"T"},"flag":0,"language":"JAVA","opaque":1,"serializeTypeCurrentRPC":"JSON","version":479}"#;
    /// Appendix C, vector 2.
    const ROUTE_BINARY: &[u8] =
        b"\0\0\0\x25\x01\0\0\x21\0\x69\0\x01\xdf\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x0c\0\x05topic\0\0\0\x01T";

    fn route() -> Command {
        let mut command = Command::request(105);
        command.header.opaque = 1;
        command.header.fields.push("topic", "T");
        command
    }

    fn json(text: &str) -> Result<Header, HeaderError> {
        let mut header = Header::default();
        header.decode(Serialize::Json, text.as_bytes()).map(|()| header)
    }

    #[test]
    fn golden_frames() {
        let mut command = route();
        let frame = command.encode();
        assert_eq!(&frame[..8], [0, 0, 0, 0x7f, 0, 0, 0, 0x7b]);
        assert_eq!(std::str::from_utf8(&frame[8..]).unwrap(), ROUTE_JSON);
        assert_eq!(Command::decode(frame.into()).unwrap(), command);

        command.header.serialize = Serialize::RocketMq;
        assert_eq!(command.encode(), ROUTE_BINARY);
        assert_eq!(Command::decode(Bytes::from_static(ROUTE_BINARY)).unwrap(), command);
    }

    #[test]
    fn answers_as_java_prints_them() {
        // Appendix C, vector 11.
        let mut request = Header::request(11);
        request.opaque = 9;
        let mut answer = Header::default();
        answer.answer_to(&request, 19);
        for (name, value) in [("suggestWhichBrokerId", 0), ("nextBeginOffset", 5), ("minOffset", 0), ("maxOffset", 5)] {
            answer.fields.push_int(name, value);
        }
        answer.remark.push_str("OFFSET_OVERFLOW_ONE");
        let mut out = Vec::new();
        answer.encode_frame(&mut out, 0);
        assert_eq!(
            std::str::from_utf8(&out[8..]).unwrap(),
            r#"{"code":19,"extFields":{"suggestWhichBrokerId":"0","nextBeginOffset":"5","minOffset":"0","maxOffset":"5"},"flag":1,"language":"JAVA","opaque":9,"remark":"OFFSET_OVERFLOW_ONE","serializeTypeCurrentRPC":"JSON","version":479}"#
        );
        assert!(answer.is_response() && !answer.is_oneway());
    }

    #[test]
    fn json_in_any_shape() {
        let header = json(
            " {\"version\" : \"317\",\n\"extFields\":{\"a\":1 , \"b\":true,\"c\":null,\"d\":-1.5e3,\
             \"\\u0065\":\"x\"},\"new\":{\"deep\":[1,{\"x\":[]},\"}\"],\"y\":null},\"remark\":null,\
             \"opaque\":-7,\"language\":\"GO\",\"\\u0063ode\":10,\"flag\":2}\t",
        )
        .unwrap();
        assert_eq!((header.code, header.version, header.opaque), (10, 317, -7));
        assert_eq!((header.language, header.remark.as_str()), (Language::Go, ""));
        assert!(header.is_oneway());
        let fields: Vec<_> = header.fields.iter().collect();
        assert_eq!(fields, [("a", "1"), ("b", "true"), ("d", "-1.5e3"), ("e", "x")]);

        assert_eq!(json("{}").unwrap(), Header::default());
        assert_eq!(json(r#"{"extFields":null}"#).unwrap(), Header::default());
        assert_eq!(json(r#"{"extFields":{}}"#).unwrap(), Header::default());
        assert_eq!(json(r#"{"language":"KLINGON"}"#).unwrap().language, Language::Other);
    }

    #[test]
    fn broken_json_is_refused() {
        let broken = [
            "",
            "{",
            "[]",
            "null",
            "{}}",
            "{} x",
            r#"{"code"}"#,
            r#"{"code":}"#,
            r#"{"code":1,}"#,
            r#"{,"code":1}"#,
            r#"{"code":1 "flag":0}"#,
            r#"{"code":99999999999}"#,
            r#"{"code":1.5}"#,
            r#"{"code":"1}"#,
            r#"{"code":[1]}"#,
            r#"{"code":true}"#,
            r#"{"extFields":[]}"#,
            r#"{"extFields":{"a":{}}}"#,
            r#"{"extFields":{"a":nul}}"#,
            r#"{"extFields":{"a":-}}"#,
            r#"{"extFields":{"a":1"#,
            r#"{"extFields":{"a":"\u00"}}"#,
            r#"{"x":[1}"#,
            r#"{"x":]}"#,
        ];
        for text in broken {
            assert!(json(text).is_err(), "{text}");
        }
        let deep = format!("{{\"x\":{}1{}}}", "[".repeat(33), "]".repeat(33));
        assert_eq!(json(&deep), Err(HeaderError::Depth));
        let wide: Vec<_> = (0..=FIELDS_MAX).map(|index| format!("\"f{index}\":\"\"")).collect();
        assert_eq!(json(&format!("{{\"extFields\":{{{}}}}}", wide.join(","))), Err(HeaderError::Fields));
        let mut header = Header::default();
        assert_eq!(header.decode(Serialize::Json, b"{\"\xff\":1}"), Err(HeaderError::Utf8));
    }

    #[test]
    fn damaged_frames_never_panic() {
        let mut noise = Noise::new(17);
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut command = route();
            command.header.serialize = serialize;
            command.header.remark.push_str("é\u{1}");
            command.body = Bytes::from_static(b"body");
            let frame = command.encode();
            for length in 0..frame.len() {
                let cut = frame::split(&frame[..length]);
                let mut header = Header::default();
                if let Ok((kind, range, _)) = cut {
                    assert_eq!(header.decode(kind, &frame[range]), Ok(()));
                }
                let _ = header.decode(serialize, &frame[8..length.max(8)]);
            }
            for _ in 0..20_000 {
                let mut damaged = frame.clone();
                for _ in 0..1 + noise.below(4) {
                    let at = noise.below(damaged.len());
                    damaged[at] = noise.next() as u8;
                }
                let _ = Command::decode(damaged.into());
            }
        }
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..noise.below(80)).map(|_| noise.next() as u8).collect();
            let mut header = Header::default();
            let _ = header.decode(Serialize::Json, &bytes);
            let _ = header.decode(Serialize::RocketMq, &bytes);
        }
    }

    #[test]
    fn decoding_again_needs_no_more_memory() {
        let mut command = route();
        let properties = "UNIQ_KEY\u{1}7F000001000118B4AAC2000000000000\u{2}KEYS\u{1}a b\u{2}";
        command.header.fields.push("i", &properties.repeat(20));
        command.header.remark.push_str("remark");
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            command.header.serialize = serialize;
            let frame = command.encode();
            let (kind, range, _) = frame::split(&frame).unwrap();
            let mut header = Header::default();
            header.decode(kind, &frame[range.clone()]).unwrap();
            let mut answer = Vec::new();
            header.encode_frame(&mut answer, 0);
            let before = (header.fields.capacities(), header.remark.capacity(), answer.capacity());
            for _ in 0..100 {
                header.decode(kind, &frame[range.clone()]).unwrap();
                answer.clear();
                header.encode_frame(&mut answer, 0);
            }
            let after = (header.fields.capacities(), header.remark.capacity(), answer.capacity());
            assert_eq!(before, after);
            assert_eq!(header, command.header);
        }
    }

    #[test]
    fn a_code_beyond_16_bits_goes_as_json() {
        let mut command = Command::request(200_050);
        command.header.serialize = Serialize::RocketMq;
        let back = Command::decode(command.encode().into()).unwrap();
        assert_eq!((back.header.code, back.header.serialize), (200_050, Serialize::Json));
    }

    #[test]
    fn languages_keep_code_and_name() {
        for (index, (language, name)) in Language::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(language.code()), index);
            assert_eq!(Language::from_code(index as u8), language);
            assert_eq!((Language::from_name(name), language.name()), (language, name));
        }
        assert_eq!(Language::from_code(200), Language::Other);
    }
}
