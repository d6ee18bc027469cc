//! A blocking-free socket of the load tool: whole windows out, frames in, nothing copied twice.

use bytes::BytesMut;
use protocol::frame;
use std::io;
use std::net::SocketAddr;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// Bytes of one receive: what a fast server answers in a turn.
const RECEIVE_BYTES: usize = 256 << 10;

/// One connection. It owns its receive buffer while no read is under way.
pub struct Socket {
    stream: TcpStream,
    free: Vec<u8>,
    got: BytesMut,
}

impl Socket {
    /// Connects, without Nagle's delay.
    pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Socket { stream, free: vec![0; RECEIVE_BYTES], got: BytesMut::new() })
    }

    /// Sends all of `bytes` and gives them back.
    pub async fn send(&self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (result, bytes) = self.stream.write_all(bytes).await;
        result.map(|()| bytes)
    }

    /// Waits for bytes and hands each whole frame (with its length) to `frame`.
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
