//! Why something was not stored: one variant for each decision the caller can make.

use std::fmt;
use std::io;

/// Why an append was refused, or an accepted one was not made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Never retry: it exceeds the limit.
    TooLarge {
        /// Bytes it would take.
        bytes: u64,
        /// Bytes there are at most.
        bytes_max: u64,
    },
    /// Retry soon: too much waits for the disk already.
    Busy,
    /// Retry elsewhere: the disk is nearly full.
    Full,
    /// Retry in a moment: the log is being read after a start or a failure.
    Opening,
    /// Retry elsewhere: a write or a sync failed, so the log is closed until it is recovered.
    Closed(io::ErrorKind),
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendError::TooLarge { bytes, bytes_max } => write!(f, "{bytes} bytes, at most {bytes_max}"),
            AppendError::Busy => f.write_str("too much waits for the disk"),
            AppendError::Full => f.write_str("the disk is nearly full"),
            AppendError::Opening => f.write_str("the log is being recovered"),
            AppendError::Closed(kind) => write!(f, "the log is closed: {kind}"),
        }
    }
}

impl std::error::Error for AppendError {}
