//! RingMQ's storage: bytes, offsets, logs, the ring. No network protocol, no async.

pub mod buffer;
pub mod io;
pub mod ring;
pub mod wake;
