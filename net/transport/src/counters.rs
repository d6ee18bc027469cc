//! What a server did, in numbers that any thread may read.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a connection ended. Each has its own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer closed it between two frames.
    Peer,
    /// The socket failed, or the peer went away inside a frame.
    Broken,
    /// The bytes are no frame, or a frame's header is no header.
    Garbage,
    /// No whole frame in or out for `idle_timeout`: silent, too slow, or never reading its answers.
    Idle,
    /// Its unfinished frame or unread answer would exceed `buffered_bytes_max`.
    Memory,
    /// Beyond `connections_max`: closed as soon as it was accepted.
    Full,
    /// The server stops.
    Stopped,
}

impl CloseReason {
    /// All of them, in the order of their counters.
    pub const ALL: [CloseReason; 7] = [
        CloseReason::Peer,
        CloseReason::Broken,
        CloseReason::Garbage,
        CloseReason::Idle,
        CloseReason::Memory,
        CloseReason::Full,
        CloseReason::Stopped,
    ];

    /// One word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            CloseReason::Peer => "peer",
            CloseReason::Broken => "broken",
            CloseReason::Garbage => "garbage",
            CloseReason::Idle => "idle",
            CloseReason::Memory => "memory",
            CloseReason::Full => "full",
            CloseReason::Stopped => "stopped",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Counters of one server since its start. They only grow.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    requests: AtomicU64,
    answered: AtomicU64,
    closed: [AtomicU64; CloseReason::ALL.len()],
}

impl Counters {
    /// Connections accepted, also those closed at once as `Full`.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Requests handed to the handler, one-way ones too.
    pub fn requests(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Answers written to a socket's buffer.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Connections closed for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize].load(Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        let closed: u64 = CloseReason::ALL.iter().map(|reason| self.closed(*reason)).sum();
        self.accepted().saturating_sub(closed)
    }

    pub(crate) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub(crate) fn count_answers(&self, count: u64) {
        self.answered.fetch_add(count, Relaxed);
    }

    pub(crate) fn count_closed(&self, reason: CloseReason) {
        self.closed[reason as usize].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter() {
        let counters = Counters::default();
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason} lies in its place");
            counters.count_accepted();
            counters.count_closed(reason);
            assert_eq!(counters.closed(reason), 1);
        }
        counters.count_accepted();
        assert_eq!(counters.open(), 1);
    }
}
