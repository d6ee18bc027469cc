//! Bytes of one connection on their way to whole frames.

use std::io;

use bytes::Bytes;
use protocol::frame::{self, FrameError};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// What an idle connection costs. 1 KiB: a NameServer's requests are a few hundred bytes, and
/// ten thousand idle connections stay near 10 MiB.
pub(crate) const IDLE_BYTES: usize = 1024;
/// An empty buffer above this is given back. 64 KiB: a full registration grows it again.
const KEPT_BYTES: usize = 64 * 1024;

/// Reads from a socket, cuts frames. Grows only to twice what really arrived, whatever length a
/// peer announces, and never beyond one frame.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Everything before is cut already.
    start: usize,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox { bytes: Vec::with_capacity(IDLE_BYTES), start: 0 }
    }

    /// Memory in use, in bytes.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Whether a frame has begun and is not complete.
    pub(crate) fn is_inside_frame(&self) -> bool {
        self.start < self.bytes.len()
    }

    /// The next whole frame. `Ok(None)`: call `make_room` and `fill`.
    pub(crate) fn cut(&mut self) -> Result<Option<Bytes>, FrameError> {
        let rest = &self.bytes[self.start..];
        let Some(length) = frame::peek(rest)? else { return Ok(None) };
        let Some(whole) = rest.get(..length) else { return Ok(None) };
        let whole = Bytes::copy_from_slice(whole);
        self.start += length;
        Ok(Some(whole))
    }

    /// Makes sure that `fill` has somewhere to read to.
    pub(crate) fn make_room(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
        let held = self.bytes.len();
        if held == 0 && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::with_capacity(IDLE_BYTES);
        }
        if held == self.bytes.capacity() {
            // The last frame may be announced as huge: what arrived decides, not what was said.
            self.bytes.reserve_exact(held.max(IDLE_BYTES));
        }
        assert!(self.bytes.len() < self.bytes.capacity(), "a read of nothing looks like the end");
    }

    /// Reads once. `Ok(0)` is the end of the stream. Its future must not be dropped half-way: end
    /// the read with `shutdown` of the socket.
    pub(crate) async fn fill(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let bytes = std::mem::take(&mut self.bytes);
        let held = bytes.len();
        let (count, slice) = stream.read(bytes.slice(held..)).await;
        self.bytes = slice.into_inner();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(inbox: &mut Inbox, bytes: &[u8]) {
        inbox.make_room();
        let room = inbox.capacity() - inbox.bytes.len();
        assert!(bytes.len() <= room, "a read brings no more than there is room");
        inbox.bytes.extend_from_slice(bytes);
    }

    #[test]
    fn frames_come_out_whole_in_any_pieces() {
        let stream = [&[0, 0, 0, 4, 0, 0, 0, 0][..], &[0, 0, 0, 5, 0, 0, 0, 0, 9]].concat();
        for piece in 1..=stream.len() {
            let mut inbox = Inbox::new();
            let mut frames = Vec::new();
            for bytes in stream.chunks(piece) {
                feed(&mut inbox, bytes);
                while let Some(frame) = inbox.cut().unwrap() {
                    frames.push(frame.len());
                }
            }
            assert_eq!(frames, [8, 9], "pieces of {piece}");
            assert!(!inbox.is_inside_frame());
        }
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut inbox = Inbox::new();
        feed(&mut inbox, &[0, 0xff, 0, 0]);
        assert_eq!(inbox.cut().unwrap(), None);
        for _ in 0..100 {
            inbox.make_room();
        }
        assert_eq!(inbox.capacity(), IDLE_BYTES);
        assert!(inbox.is_inside_frame());
    }

    #[test]
    fn a_large_frames_memory_is_given_back() {
        let mut inbox = Inbox::new();
        let mut frame = vec![0; 200_000];
        frame[..4].copy_from_slice(&(200_000u32 - 4).to_be_bytes());
        for bytes in frame.chunks(IDLE_BYTES) {
            feed(&mut inbox, bytes);
        }
        assert!((200_000..500_000).contains(&inbox.capacity()), "grew by doubling");
        assert_eq!(inbox.cut().unwrap().unwrap().len(), 200_000);
        inbox.make_room();
        assert_eq!(inbox.capacity(), IDLE_BYTES);
    }
}
