//! Lines of the log that strangers cause.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tracing::info;

/// Lines told in one interval. 10: what one mistake of an operator causes is told in full.
const LINES_MAX: u32 = 10;
/// 1 s.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bounds what peers can write into the log: ten lines a second, and one that says how many were left out.
#[derive(Debug)]
pub struct Seldom {
    since: Cell<Instant>,
    /// Asked for in this interval.
    lines: Cell<u32>,
}

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom { since: Cell::new(Instant::now()), lines: Cell::new(0) }
    }
}

impl Seldom {
    /// Whether a line may be written now. Asked once for each.
    pub fn may_tell(&self) -> bool {
        let (may, left_out) = self.ask(Instant::now());
        if left_out > 0 {
            info!(left_out, "peers caused more lines than are told in a second");
        }
        may
    }

    /// Whether a line may be written, and how many were left out in an interval that has just ended.
    fn ask(&self, now: Instant) -> (bool, u32) {
        let mut left_out = 0;
        if now.saturating_duration_since(self.since.get()) >= INTERVAL {
            self.since.set(now);
            left_out = self.lines.take().saturating_sub(LINES_MAX);
        }
        self.lines.set(self.lines.get().saturating_add(1));
        (self.lines.get() <= LINES_MAX, left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_in_ten_lines_a_second_and_a_number() {
        let seldom = Seldom::default();
        let start = seldom.since.get();
        let flood = |from_ms: u64, count: u64| {
            let asked = (0..count).map(|index| seldom.ask(start + Duration::from_millis(from_ms + index)));
            asked.fold((0, 0), |(told, left_out), (may, out)| (told + u32::from(may), left_out + out))
        };
        assert_eq!(flood(0, 900), (10, 0));
        assert_eq!(flood(1_000, 3), (3, 890), "the next second is told again");
        assert_eq!(flood(5_000, 1), (1, 0));
    }
}
