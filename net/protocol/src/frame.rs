//! Cutting a stream of bytes into frames.
//!
//! ```text
//! | length u32 | serialize u8 | header length u24 | header | body |
//!              |<------------------ length --------------------->|
//! ```
//! A *frame* in this crate is the whole of it, its four length bytes included. All numbers are
//! big-endian (PROTOCOL 1.1).

use std::fmt;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use crate::command::Serialize;

/// Longest frame, its length bytes included: 16 MiB, as Netty's decoder in a stock server.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest header. 1 MiB: properties fill 32 KiB, six times that when every byte is escaped, and
/// a decoder should not walk through 16 MiB of a stranger's JSON.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;
/// The length itself.
pub const LENGTH_BYTES: usize = 4;
/// What stands before the header: length, serialize type and header length.
pub const PREFIX_BYTES: usize = LENGTH_BYTES + 4;

const _: () = assert!(HEADER_BYTES_MAX < 1 << 24, "a header's length fits its 24 bits");
const _: () = assert!(HEADER_BYTES_MAX + PREFIX_BYTES < FRAME_BYTES_MAX, "a header fits a frame");

/// Why bytes are no frame. Always means: the peer does not speak our protocol, close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// The length field is below 4, negative, or beyond `FRAME_BYTES_MAX`.
    Length(i32),
    /// The header length is beyond the frame or `HEADER_BYTES_MAX`.
    Header(usize),
    /// Neither JSON (0) nor ROCKETMQ (1).
    Serialize(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::Length(length) => write!(f, "frame length {length} is out of range"),
            FrameError::Header(length) => write!(f, "header length {length} is out of range"),
            FrameError::Serialize(kind) => write!(f, "serialize type {kind} is unknown"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The size of the first frame in `bytes`, its length field included, as soon as that field is
/// there; the frame itself may still be incomplete. `Ok(None)` asks for more bytes.
#[inline]
pub fn peek(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*length);
    match usize::try_from(length) {
        Ok(bytes) if (4..=FRAME_BYTES_MAX - LENGTH_BYTES).contains(&bytes) => Ok(Some(LENGTH_BYTES + bytes)),
        _ => Err(FrameError::Length(length)),
    }
}

/// Where header and body lie in one whole frame, as `peek` measured it.
#[inline]
pub fn split(frame: &[u8]) -> Result<(Serialize, Range<usize>, Range<usize>), FrameError> {
    let Some(mark) = frame.get(LENGTH_BYTES..PREFIX_BYTES) else {
        return Err(FrameError::Length(i32::try_from(frame.len()).unwrap_or(i32::MAX)));
    };
    let kind = Serialize::from_code(mark[0]).ok_or(FrameError::Serialize(mark[0]))?;
    let header_bytes = u32::from_be_bytes([0, mark[1], mark[2], mark[3]]) as usize;
    if header_bytes > HEADER_BYTES_MAX || PREFIX_BYTES + header_bytes > frame.len() {
        return Err(FrameError::Header(header_bytes));
    }
    let body_at = PREFIX_BYTES + header_bytes;
    Ok((kind, PREFIX_BYTES..body_at, body_at..frame.len()))
}

/// Bytes in, in any pieces; whole frames out. For the edges; the hot path cuts in place.
///
/// Memory is bounded by one frame and one piece if everything is cut after each `feed`.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
}

impl Frames {
    /// Takes what the socket gave.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. `Ok(None)` asks for more bytes; `Err` says: close.
    pub fn cut(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(bytes) = peek(&self.buffer)? else {
            return Ok(None);
        };
        if self.buffer.len() < bytes {
            return Ok(None);
        }
        let frame = self.buffer.split_to(bytes).freeze();
        if !self.buffer.has_remaining() {
            // Lets go of a large frame's memory together with the frame.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peek_knows_each_range() {
        type Row = (&'static [u8], Result<Option<usize>, FrameError>);
        let cases: &[Row] = &[
            (&[], Ok(None)),
            (&[0, 0, 0], Ok(None)),
            (&[0, 0, 0, 0], Err(FrameError::Length(0))),
            (&[0, 0, 0, 3], Err(FrameError::Length(3))),
            (&[0, 0, 0, 4], Ok(Some(8))),
            (&[0, 0xff, 0xff, 0xfc], Ok(Some(FRAME_BYTES_MAX))),
            (&[0, 0xff, 0xff, 0xfd], Err(FrameError::Length(0x00ff_fffd))),
            (&[0xff, 0xff, 0xff, 0xff], Err(FrameError::Length(-1))),
            (b"GET / HTTP", Err(FrameError::Length(0x4745_5420))),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(peek(bytes), *wanted, "{bytes:?}");
        }
    }

    #[test]
    fn split_refuses_a_header_beyond_the_frame() {
        assert_eq!(split(&[0, 0, 0, 4, 0, 0, 0, 1]), Err(FrameError::Header(1)));
        assert_eq!(split(&[0, 0, 0, 4, 2, 0, 0, 0]), Err(FrameError::Serialize(2)));
        assert_eq!(split(&[0, 0, 0, 4, 0, 0]), Err(FrameError::Length(6)));
        let frame = [0, 0, 0, 7, 1, 0, 0, 1, b'h', b'b', b'b'];
        assert_eq!(split(&frame), Ok((Serialize::RocketMq, 8..9, 9..11)));
    }

    #[test]
    fn frames_come_out_whole_whatever_the_pieces() {
        let mut stream = Vec::new();
        for body in 0..5u8 {
            stream.extend_from_slice(&[0, 0, 0, 4 + body, 0, 0, 0, 0]);
            stream.extend(std::iter::repeat_n(body, body as usize));
        }
        for piece in 1..=stream.len() {
            let mut frames = Frames::default();
            let mut count = 0;
            for bytes in stream.chunks(piece) {
                frames.feed(bytes);
                while let Some(frame) = frames.cut().unwrap() {
                    assert_eq!(frame.len(), 8 + count);
                    count += 1;
                }
            }
            assert_eq!((count, frames.buffer.len()), (5, 0), "pieces of {piece}");
        }
    }
}
