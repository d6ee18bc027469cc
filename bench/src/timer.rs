//! Waiting to some tens of microseconds without a busy CPU.
//!
//! tokio's timer is as coarse as a millisecond. Turning the ring until it is time is exact, but takes the CPU from the
//! kernel's threads there: on the load's CPU they complete the server's durable writes.

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio_uring::fs::File;

/// A kernel timer that is waited for through the ring.
pub struct Timer {
    descriptor: OwnedFd,
    /// The same, as what the ring reads.
    file: File,
    /// What the kernel writes how often it expired to.
    expired: Vec<u8>,
}

impl Timer {
    /// One that is not set. Fails when there are no descriptors left.
    pub fn new() -> io::Result<Timer> {
        let descriptor = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let file = File::from_std(descriptor.try_clone()?.into());
        Ok(Timer { descriptor, file, expired: vec![0; 8] })
    }

    /// Waits until then: two system calls. A moment that has passed is waited for by one turn of the ring, so that
    /// others get theirs.
    pub async fn wait_until(&mut self, when: Instant) -> io::Result<()> {
        let left = when.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // (Giving way to other tasks would not do: tokio then polls its driver without handing the ring what
            // is queued.)
            return tokio_uring::no_op().await;
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let set = Itimerspec { it_interval: zero, it_value: timespec(left) };
        rustix::time::timerfd_settime(&self.descriptor, TimerfdTimerFlags::empty(), &set)?;
        let (result, expired) = self.file.read_at(std::mem::take(&mut self.expired), 0).await;
        self.expired = expired;
        result.map(|_| ())
    }
}

fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_early_and_can_be_set_again() {
        tokio_uring::start(async {
            let mut timer = Timer::new().unwrap();
            for micros in [0, 1, 300, 1_500, 20] {
                let when = Instant::now() + Duration::from_micros(micros);
                timer.wait_until(when).await.unwrap();
                assert!(Instant::now() >= when, "{micros} us");
            }
        });
    }
}
