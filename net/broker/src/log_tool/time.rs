//! Times as people write them: `2026-11-23T21:00:00.000Z`, always UTC, or milliseconds since 1970.

const DAY_MS: u64 = 86_400_000;
/// Beyond it a year has five digits: the end of 9999.
const MS_MAX: u64 = 253_402_300_799_999;

/// As `2026-11-23T21:00:00.000Z`; beyond the year 9999 as the number.
pub fn text(ms: u64) -> String {
    if ms > MS_MAX {
        return ms.to_string();
    }
    // Howard Hinnant, "chrono-compatible low-level date algorithms": civil_from_days, years begin in March.
    let days = ms / DAY_MS + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + next;
    let of_day = ms % DAY_MS;
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", of_day % 1000)
}

/// Reads milliseconds, or a date with or without a time: `2026-11-23`, `2026-11-23T21:00`, `2026-11-23
/// 21:00:05.25Z`.
pub fn parse(words: &str) -> Result<u64, String> {
    let wrong = || format!("{words:?} is neither like 2026-11-23T21:00:00Z (UTC) nor milliseconds since 1970");
    if let Ok(ms) = words.parse() {
        return Ok(ms);
    }
    let plain = words.strip_suffix('Z').unwrap_or(words);
    let (date, time) = plain.split_once(['T', ' ']).unwrap_or((plain, "00:00"));
    let numbers = |text: &str, by: char| text.split(by).map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>();
    let [year @ 1970..=9999, month @ 1..=12, day @ 1..=31] = numbers(date, '-').ok_or_else(wrong)?[..] else {
        return Err(wrong());
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let (hour, minute, second) = match numbers(clock, ':').ok_or_else(wrong)?[..] {
        [hour @ 0..24, minute @ 0..60] => (hour, minute, 0),
        [hour @ 0..24, minute @ 0..60, second @ 0..60] => (hour, minute, second),
        _ => return Err(wrong()),
    };
    if !(1..=9).contains(&fraction.len()) || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let ms = format!("{fraction:0<3}")[..3].parse::<u64>().map_err(|_| wrong())?;
    // As above: days_from_civil.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * month + 2) / 5 + day - 1;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468).ok_or_else(wrong)?;
    Ok(days * DAY_MS + (hour * 3600 + minute * 60 + second) * 1000 + ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (1_795_467_600_123, "2026-11-23T21:00:00.123Z"),
            (MS_MAX, "9999-12-31T23:59:59.999Z"),
            (MS_MAX + 1, "253402300800000"),
        ];
        for (ms, words) in table {
            assert_eq!(text(ms), words);
            assert_eq!(parse(words), Ok(ms), "{words}");
        }
        for days in 0..40_000 {
            assert_eq!(parse(&text(days * DAY_MS)), Ok(days * DAY_MS));
        }
        let at = 1_795_467_600_000;
        for words in ["2026-11-23 21:00", "2026-11-23T21:00Z", "2026-11-23T21:00:00", "1795467600000"] {
            assert_eq!(parse(words), Ok(at), "{words}");
        }
        assert_eq!(parse("2026-11-23"), Ok(at - 21 * 3_600_000));
        assert_eq!(parse("2026-11-23T21:00:00.5"), Ok(at + 500));
        for words in [
            "",
            "now",
            "2026-13-01",
            "2026-1",
            "1969-12-31",
            "2026-11-23T24:00",
            "2026-11-23T21",
            "-5",
            "1.5",
            "2026-11-23T21:00:00.",
            "2026-11-23T21:00:00.x",
            "2026-11-23T21:00:00.+5",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }
}
