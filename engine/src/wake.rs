//! Waking a loop from another thread, without a system call while the loop is awake.
//!
//! | state | who sets it | what the next one does |
//! | --- | --- | --- |
//! | `AWAKE` | the loop, back from the kernel | a waker only notes: `NOTIFIED` |
//! | `ASLEEP` | the loop, before it waits | a waker notes and writes the eventfd |
//! | `NOTIFIED` | a waker | the loop does not wait; other wakers do nothing |
//!
//! Why no wake-up is lost: a sender first puts its mail into the box, then swaps in `NOTIFIED`; the
//! loop first swaps in `AWAKE`, then looks into the box. One of the two swaps is the earlier one. If
//! it is the sender's, the loop's swap reads it and so sees the mail. If it is the loop's,
//! `NOTIFIED` stays, and the next `drive` does not wait.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
const ASLEEP: u32 = 1;
const NOTIFIED: u32 = 2;

/// Wakes one ring's loop. Any thread may hold it; clones wake the same loop.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU32,
    event: File,
}

impl Waker {
    /// Makes the loop's current or next `drive` return at once. What was put into a mailbox before is
    /// seen after it.
    pub fn wake(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            let written = (&self.shared.event).write(&1u64.to_ne_bytes());
            // A counter that is full (2^64 - 2 wake-ups) is still readable: the loop wakes.
            assert!(
                written.is_ok() || matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock),
                "an eventfd takes eight bytes: {written:?}"
            );
        }
    }

    /// `event`: a non-blocking eventfd that the ring polls.
    pub(crate) fn new(event: OwnedFd) -> Waker {
        let (state, event) = (AtomicU32::new(AWAKE), File::from(event));
        Waker { shared: Arc::new(Shared { state, event }) }
    }

    /// Somebody has woken the loop since it rose.
    pub(crate) fn is_notified(&self) -> bool {
        self.shared.state.load(Ordering::Acquire) == NOTIFIED
    }

    /// The loop is about to wait. False: it was notified, so it must not.
    pub(crate) fn sleep(&self) -> bool {
        let state = &self.shared.state;
        state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The loop is back, and looks at its mail after this.
    pub(crate) fn rise(&self) {
        self.shared.state.swap(AWAKE, Ordering::AcqRel);
    }

    /// What to poll.
    pub(crate) fn event(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}
