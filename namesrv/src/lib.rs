//! RingMQ's NameServer: a route table and a door.
//!
//! Brokers register at every NameServer, clients ask any of them; NameServers do not know one
//! another. The table (`routes`) is a plain state machine, the door turns requests into its calls,
//! and `Server` runs both on a thread of its own. Only the key-value settings are on disk.

mod config;
mod door;
mod kv;
mod registration;
mod routes;
mod server;
mod views;

pub use config::{BROKER_TIMEOUT_MS_MAX, Config, Switches, UpdateError};
pub use kv::{KEY_BYTES_MAX, KvLimits};
pub use server::{Handle, Server, Status};
pub use views::UnitList;
