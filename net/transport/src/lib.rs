//! Framed TCP on tokio-uring, for everything that is not the hot path.
//!
//! A `Server` answers frames, a `Client` asks with them, and `run` gives both their ring. All of
//! it lives on one thread. The one hazard of this runtime is handled here and nowhere else: an
//! operation that the kernel works on owns its buffer, so a read is never cancelled by dropping
//! it; `shutdown` of its socket ends it, and the reader sees the end.

mod client;
mod counters;
mod inbox;
mod runtime;
mod seldom;
mod server;

pub use client::{CallError, Client, ClientLimits};
pub use counters::{CloseReason, Counters};
pub use runtime::run;
pub use seldom::Seldom;
pub use server::{Handler, Peer, Server, ServerLimits, listen};
