//! RocketMQ's words: pure bytes to values and back. No I/O.

pub mod command;
pub mod fields;
pub mod frame;
pub mod json;
#[cfg(test)]
mod noise;

pub use command::{Command, CommandError, Header, Language, Serialize};
pub use fields::Fields;
pub use frame::{FrameError, Frames};
pub use json::HeaderError;
