//! Times as Kubernetes writes them, RFC 3339. The schema and the code accept exactly the same text.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize as _, Deserializer, de};

/// A time, for the schema: the fields are of type `Option<String>`.
pub(crate) struct Time;

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A time in RFC 3339.",
            "type": "string",
            "pattern": "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\
                        (\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
        })
    }
}

/// Nanoseconds since 1970 in UTC, or nothing if `text` is no time in RFC 3339 of the years 0 to 9999.
///
/// A day that a month does not have is one of the next month.
pub fn nanoseconds(text: &str) -> Option<i128> {
    let digits = |at: usize, len: usize, range: std::ops::RangeInclusive<i64>| {
        let part = text.get(at..at + len)?;
        let number: i64 = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())??;
        range.contains(&number).then_some(number)
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| text.as_bytes().get(*at) != Some(mark)) {
        return None;
    }
    let (year, month, day) = (digits(0, 4, 0..=9999)?, digits(5, 2, 1..=12)?, digits(8, 2, 1..=31)?);
    let clock = digits(11, 2, 0..=23)? * 3600 + digits(14, 2, 0..=59)? * 60 + digits(17, 2, 0..=59)?;
    let (fraction, zone) = fraction(text.get(19..)?)?;
    let seconds = days(year, month, day) * 86_400 + clock - offset(zone)?;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(fraction))
}

/// As [`nanoseconds`], rounded down.
pub fn seconds(text: &str) -> Option<i64> {
    i64::try_from(nanoseconds(text)?.div_euclid(1_000_000_000)).ok()
}

/// The time in UTC, `seconds` after 1970 began.
pub fn rfc3339(seconds: i64) -> String {
    let (days, clock) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) =
        (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Nanoseconds, and what comes after them.
fn fraction(rest: &str) -> Option<(u32, &str)> {
    let Some(fraction) = rest.strip_prefix('.') else { return Some((0, rest)) };
    let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, zone) = fraction.split_at(len);
    (1..=9).contains(&len).then(|| format!("{digits:0<9}").parse().ok())?.map(|nanoseconds| (nanoseconds, zone))
}

/// Seconds by which the zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes() {
        [b'+', _, _, b':', _, _] => 1,
        [b'-', _, _, b':', _, _] => -1,
        _ => return None,
    };
    let number = |at: usize, max: i64| {
        let part = zone.get(at..at + 2)?;
        let number: i64 = part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())??;
        (number <= max).then_some(number)
    };
    Some(sign * (number(1, 23)? * 3600 + number(4, 59)? * 60))
}

/// Days since 1970 in the Gregorian calendar (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Reads one, if there is one.
pub(crate) fn option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        Some(text) if nanoseconds(&text).is_none() => Err(de::Error::custom(format!("{text}: no time in RFC 3339"))),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::{nanoseconds, rfc3339, seconds};

    #[test]
    fn a_time_is_what_date_says() {
        // date --utc --date TIME +%s
        for (text, number) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56Z", 951_827_696),
            ("2026-11-25T17:00:00Z", 1_795_626_000),
            ("1969-12-31T23:59:59Z", -1),
        ] {
            assert_eq!((seconds(text), rfc3339(number).as_str()), (Some(number), text));
        }
        assert_eq!(seconds("2026-11-25T18:30:00+01:30"), seconds("2026-11-25T17:00:00Z"));
        assert_eq!(nanoseconds("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "2026-11-25",
            "2026-11-25T17:00:00",
            "2026-13-25T17:00:00Z",
            "2026-11-25T17:00:00.Z",
            "2026-11-25 17:00:00Z",
            "+026-11-25T17:00:00Z",
            "2026-11-25T17:00:00+1:00",
            "2026-11-25T17:00:00Zz",
            "2026-11-25T17:00:0\u{663}Z",
        ] {
            assert_eq!(nanoseconds(text), None, "{text}");
        }
    }
}
