//! RocketMQ's words: pure bytes to values and back. No I/O.

pub mod answer;
pub mod base64;
pub mod bodies;
pub mod codes;
pub mod command;
pub mod delay;
pub mod fields;
pub mod frame;
pub mod headers;
pub mod ids;
pub mod json;
pub mod message;
pub mod names;
#[cfg(test)]
mod noise;
pub mod properties;
pub mod recall;
mod scan;
pub mod shape;
pub mod sql;

pub use answer::{Alike, AnswerWriter};
pub use command::{Command, CommandError, Header, Language, Serialize};
pub use fields::Fields;
pub use frame::{FrameError, Frames};
pub use headers::FieldError;
pub use json::HeaderError;
pub use message::{MessageError, StoredMessage};
pub use shape::Shapes;
