//! Dates as numbers: days since 1970-01-01, of which a time of day is a part.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, date};

const NANOSECONDS_PER_DAY: f64 = 86_400e9;

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);

/// The days of a date or a date and time as ISO 8601 writes it, with `T` or a space before the time. A time without an
/// offset is taken as it stands, one with an offset as what it is in UTC.
pub(super) fn days(text: &str) -> Option<f64> {
    // A time with an offset would parse as one without, and lose it.
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(days_of_moment(moment.as_nanosecond()));
    }
    let moment: DateTime = text.parse().ok()?;
    Some(days_of_moment(moment.duration_since(EPOCH).as_nanos()))
}

/// The days of so many nanoseconds since 1970-01-01. Whole days come out whole: 27·5¹¹ times their number is below 2⁵³.
pub(super) fn days_of_moment(nanoseconds: i128) -> f64 {
    nanoseconds as f64 / NANOSECONDS_PER_DAY
}

/// A day as ISO 8601 writes it, if it is within the years that it can write.
pub(super) fn text_of_day(day: i32) -> Option<String> {
    let day: Date = EPOCH.date().checked_add(jiff::SignedDuration::from_hours(i64::from(day) * 24)).ok()?;
    Some(day.to_string())
}

/// A moment as ISO 8601 writes it, without an offset.
pub(super) fn text_of_moment(nanoseconds: i128) -> Option<String> {
    let moment = Timestamp::from_nanosecond(nanoseconds).ok()?;
    Some(moment.to_zoned(jiff::tz::TimeZone::UTC).datetime().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// >>> from datetime import datetime, timezone
    /// >>> datetime(2005, 10, 1, 18, tzinfo=timezone.utc).timestamp() / 86400
    /// 13057.75
    /// ```
    #[test]
    fn known_days() {
        for (text, expected) in [
            ("1970-01-01", 0.0),
            ("1969-12-31", -1.0),
            ("2005-10-01", 13057.0),
            ("2005-10-01T18:00", 13057.75),
            ("2005-10-01 18:00:00", 13057.75),
            ("2005-10-01T18:00:00Z", 13057.75),
            ("2005-10-01T20:00:00+02:00", 13057.75),
            ("2005-10-01 20:00:00.000+02:00", 13057.75),
            ("20051001", 13057.0),
        ] {
            assert_eq!(days(text), Some(expected), "{text}");
        }
        for text in ["", "2005-13-01", "01.10.2005", "10/01/2005", "yesterday", "2005", "13057", "2005-10-01x"] {
            assert_eq!(days(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_the_same_day() {
        for day in [-719_000, -1, 0, 13_057, 2_900_000] {
            assert_eq!(days(&text_of_day(day).unwrap_or_default()), Some(f64::from(day)));
            let moment = i128::from(day) * 86_400_000_000_000 + 64_800_000_000_000;
            let text = text_of_moment(moment).unwrap_or_default();
            assert_eq!(days(&text), Some(days_of_moment(moment)), "{text}");
        }
        assert_eq!(text_of_day(i32::MAX), None);
        assert_eq!(text_of_moment(i128::MAX), None);
    }
}
