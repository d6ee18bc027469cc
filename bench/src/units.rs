//! Sizes, times and rates: read as fio's job files write them, printed as fio prints them.

use std::time::Duration;

/// Bytes from `4096`, `4k`, `1m`, `10GiB`: powers of 1024, as fio's default `kb_base`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, suffix) = split(text);
    let shift = match suffix.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("`{text}` is no size, as in 4096, 16k or 1m")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no size, as in 4096, 16k or 1m"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} does not fit 64 bits"))
}

/// A time from `10`, `2m`, `500ms`, `50us`; a bare number is in `unit` (one of those suffixes).
pub fn time(text: &str, unit: &str) -> Result<Duration, String> {
    let (digits, suffix) = split(text);
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is no time, as in 30, 500ms or 2m"))?;
    let nanos = match if suffix.is_empty() { unit } else { suffix } {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000_u64,
        _ => return Err(format!("`{text}` is no time, as in 30, 500ms or 2m")),
    };
    number.checked_mul(nanos).map(Duration::from_nanos).ok_or_else(|| format!("{text} does not fit 64 bits"))
}

/// A whole number within a range.
pub fn number(text: &str, least: u64, most: u64) -> Result<u64, String> {
    let value: u64 = text.parse().map_err(|_| format!("`{text}` is no whole number within {least} and {most}"))?;
    within(value, least, most)
}

/// A value within a range, or the sentence that says it is not.
pub fn within(value: u64, least: u64, most: u64) -> Result<u64, String> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(format!("{value} is not within {least} and {most}")) }
}

/// `1`, `0`, or nothing, which means 1: fio's switches.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("`{text}` is neither 1 nor 0")),
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len()))
}

/// A count in at most four digits: `950`, `12.3k`, `359k`, `1.08M`. As fio's `IOPS=`.
pub fn count(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G"])
}

/// Bytes a second in powers of 1024: `351MiB/s`.
pub fn binary_rate(value: f64) -> String {
    format!("{}/s", binary_bytes(value))
}

/// Bytes in powers of 1024: `1052MiB`.
pub fn binary_bytes(value: f64) -> String {
    scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// Bytes in powers of 1000: `1103MB`.
pub fn decimal_bytes(value: f64) -> String {
    scaled(value, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

/// Three significant digits at least; the unit changes only when the number would need five digits.
fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    let most = if base == 1000.0 { 1000.0 } else { 10_000.0 };
    while value >= most && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let unit = units[unit];
    match value {
        _ if unit.is_empty() || unit == "B" => format!("{value:.0}{unit}"),
        value if value < 10.0 => format!("{value:.2}{unit}"),
        value if value < 100.0 => format!("{value:.1}{unit}"),
        _ => format!("{value:.0}{unit}"),
    }
}

/// Of a set of nanoseconds: the unit in which its mean is easily read (as fio chooses it), and how many
/// nanoseconds that unit has.
pub fn time_unit(min: f64, max: f64, mean: f64, stddev: f64) -> (&'static str, f64) {
    let is_large = |unit: f64| min > 2.0 * unit && max > 99.0 * unit && mean > unit && stddev > unit;
    if is_large(1e6) {
        ("msec", 1e6)
    } else if is_large(1e3) {
        ("usec", 1e3)
    } else {
        ("nsec", 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_as_fio_reads_them() {
        for (text, value) in
            [("0", 0), ("4096", 4096), ("4k", 4096), ("16K", 16384), ("1m", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for (text, unit, value) in [
            ("10", "s", 10_000_000),
            ("10", "us", 10),
            ("500ms", "s", 500_000),
            ("2m", "s", 120_000_000),
            ("1h", "s", 3_600_000_000),
        ] {
            assert_eq!(time(text, unit).map(|time| time.as_micros()), Ok(value), "{text}");
        }
        for text in ["", "k", "-1", "1.5k", "4x", "99999999999999999999", "99999999999t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        for text in ["", "s", "-1", "4x", "9999999999999d"] {
            assert!(time(text, "s").is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_printed_as_fio_prints_them() {
        let table = [
            (0.0, "0"),
            (950.0, "950"),
            (1000.0, "1.00k"),
            (12_345.0, "12.3k"),
            (359_034.0, "359k"),
            (1_080_000.0, "1.08M"),
        ];
        for (value, text) in table {
            assert_eq!(count(value), text);
        }
        assert_eq!(binary_rate(367_650_816.0), "351MiB/s");
        assert_eq!(binary_bytes(1_103_101_952.0), "1052MiB");
        assert_eq!(decimal_bytes(1_103_101_952.0), "1.10GB");
        assert_eq!(decimal_bytes(368e6), "368MB");
        assert_eq!(time_unit(3e5, 2.6e6, 1.4e6, 3e5), ("usec", 1e3));
        assert_eq!(time_unit(3.0, 2.6e6, 1.4e6, 3e5), ("nsec", 1.0));
        assert_eq!(time_unit(3e6, 2.6e8, 1.4e7, 3e6), ("msec", 1e6));
    }
}
