//! RingMQ's storage: bytes, offsets, logs, the ring. No network protocol, no async.

mod blocks;
pub mod buffer;
mod checkpoint;
mod derived;
pub mod error;
mod facts;
pub mod format;
mod halves;
// Public for its bench (`bench/benches/leaves.rs`), and for nobody else.
#[doc(hidden)]
pub mod index;
pub mod inspect;
pub mod io;
mod kernel;
mod keys;
pub mod limits;
mod loads;
mod log;
mod merging;
pub mod message;
pub mod partition;
mod recover;
mod remaking;
mod restore;
pub mod ring;
mod runs;
mod scribe;
mod segment;
pub mod sim;
mod source;
mod stretch;
mod tail;
mod timers;
mod upkeep;
pub mod wake;
mod writing;

pub use index::Span;
pub use loads::LoadId;
pub use log::{Counts, Ticket};
pub use runs::KeySearch;
