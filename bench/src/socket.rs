//! One connection's receiving half: frames in, nothing copied twice.

use bytes::BytesMut;
use protocol::frame;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// Bytes of one receive: what a fast server answers in a turn, or less if there are many connections.
const RECEIVE_BYTES: std::ops::RangeInclusive<usize> = 16 << 10..=256 << 10;
/// What all connections receive into.
const RECEIVE_BYTES_ALL: usize = 64 << 20;

/// Connects, without Nagle's delay.
pub async fn connect(address: SocketAddr) -> io::Result<Rc<TcpStream>> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("connecting to {address}: {error}"));
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    stream.set_nodelay(true)?;
    Ok(Rc::new(stream))
}

/// Owns the receive buffer while no read is under way.
pub struct Receiver {
    stream: Rc<TcpStream>,
    free: Vec<u8>,
    got: BytesMut,
}

impl Receiver {
    /// Of one connection of `connections`.
    pub fn new(stream: Rc<TcpStream>, connections: usize) -> Receiver {
        let bytes = (RECEIVE_BYTES_ALL / connections).clamp(*RECEIVE_BYTES.start(), *RECEIVE_BYTES.end());
        Receiver { stream, free: vec![0; bytes], got: BytesMut::new() }
    }

    /// Waits for bytes and hands each whole frame (with its length) to `each`.
    /// Fails at the end of the stream or at a length that no frame has.
    pub async fn receive(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let (result, buffer) = self.stream.read(std::mem::take(&mut self.free).slice(..)).await;
        self.free = buffer.into_inner();
        let count = result?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{error:?}"));
        let mut bytes = &self.free[..count];
        if self.got.is_empty() {
            // The usual case: whole frames, handed out where they lie.
            while let Some(length) = frame::peek(bytes).map_err(invalid)?.filter(|length| *length <= bytes.len()) {
                each(&bytes[..length]);
                bytes = &bytes[length..];
            }
        }
        self.got.extend_from_slice(bytes);
        while let Some(length) = frame::peek(&self.got).map_err(invalid)?.filter(|length| *length <= self.got.len()) {
            each(&self.got.split_to(length));
        }
        Ok(())
    }
}
