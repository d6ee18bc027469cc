//! The table of delay levels, as `messageDelayLevel` spells it.

use std::fmt;

/// What a stock broker uses: levels 1 to 18.
pub const LEVELS_DEFAULT: &str = "1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h";
/// Most levels a table may have. 64: more than three times the stock table.
pub const LEVELS_MAX: usize = 64;
/// Longest delay of a level: 10 years, so that sums with a wall clock stay far from overflow.
pub const LEVEL_MS_MAX: u64 = 10 * 365 * 86_400_000;

/// Which level is wrong, counted from 1, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DelayError {
    /// The level.
    pub level: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl fmt::Display for DelayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delay level {}: {}", self.level, self.reason)
    }
}

impl std::error::Error for DelayError {}

/// Reads `"1s 5s 1m"` into milliseconds; level 1 is the first. Units are s, m, h and d.
pub fn parse_levels(text: &str) -> Result<Vec<u64>, DelayError> {
    let mut levels = Vec::new();
    for word in text.split_ascii_whitespace() {
        let level = levels.len() + 1;
        if level > LEVELS_MAX {
            return Err(DelayError { level, reason: "more than 64 levels" });
        }
        levels.push(parse(word).map_err(|reason| DelayError { level, reason })?);
    }
    Ok(levels)
}

fn parse(word: &str) -> Result<u64, &'static str> {
    let unit_ms = match word.as_bytes().last() {
        Some(b's') => 1_000,
        Some(b'm') => 60_000,
        Some(b'h') => 3_600_000,
        Some(b'd') => 86_400_000,
        _ => return Err("its unit is not s, m, h or d"),
    };
    let count: u64 = word[..word.len() - 1].parse().map_err(|_| "it is not a number and a unit")?;
    match count.checked_mul(unit_ms) {
        Some(delay_ms) if delay_ms <= LEVEL_MS_MAX => Ok(delay_ms),
        _ => Err("it is longer than 10 years"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let levels = parse_levels(LEVELS_DEFAULT).unwrap();
        assert_eq!((levels.len(), levels[0], levels[4], levels[17]), (18, 1_000, 60_000, 7_200_000));
        assert_eq!(parse_levels(" 2d\t1h "), Ok(vec![172_800_000, 3_600_000]));
        assert_eq!(parse_levels(""), Ok(vec![]));
        for (text, level) in [("1s 5", 2), ("s", 1), ("1s -1s", 2), ("1é", 1), ("99999999999d", 1)] {
            assert_eq!(parse_levels(text).unwrap_err().level, level, "{text}");
        }
        assert_eq!(parse_levels(&"1s ".repeat(65)).unwrap_err().level, 65);
    }
}
