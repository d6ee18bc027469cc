//! RingMQ's storage: bytes, offsets, logs, the ring. No network protocol, no async.

pub mod buffer;
mod derived;
pub mod error;
mod facts;
pub mod format;
mod index;
pub mod inspect;
pub mod io;
mod kernel;
mod keys;
pub mod limits;
mod loads;
mod log;
pub mod message;
pub mod partition;
mod recover;
pub mod ring;
mod segment;
pub mod sim;
mod tail;
mod timers;
pub mod wake;

pub use index::Span;
pub use loads::LoadId;
pub use log::{Counts, Ticket};
