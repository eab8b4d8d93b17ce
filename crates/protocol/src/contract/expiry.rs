//! When a contract ends.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// The end of a contract: a day, of which all is included, or a moment. UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Expiry {
    /// The last day.
    Day(Date),
    /// The first moment at which it no longer holds.
    Moment(Timestamp),
}

impl Expiry {
    /// Whether the contract no longer holds at `now`.
    #[must_use]
    pub fn is_over(self, now: SystemTime) -> bool {
        // A clock that no calendar has is no reason to go on.
        Timestamp::try_from(now).map_or(true, |now| now >= self.end())
    }

    fn end(self) -> Timestamp {
        match self {
            Self::Moment(end) => end,
            Self::Day(day) => {
                let next = day.checked_add(1.day()).and_then(|next| next.to_zoned(TimeZone::UTC));
                next.map_or(Timestamp::MAX, |next| next.timestamp())
            }
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Day(day) => day.fmt(f),
            Self::Moment(moment) => moment.fmt(f),
        }
    }
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let day = (text.len() == 10).then(|| text.parse().ok()).flatten().map(Self::Day);
        let moment = || text.ends_with('Z').then(|| text.parse().ok()).flatten().map(Self::Moment);
        day.or_else(moment).ok_or_else(|| {
            let found: String = text.chars().take(40).collect();
            format!(
                "'{found}' is no end of a contract: expected a day, \"2027-06-30\", or UTC, \"2027-06-30T18:00:00Z\""
            )
        })
    }
}

impl From<Expiry> for String {
    fn from(expiry: Expiry) -> Self {
        expiry.to_string()
    }
}

impl TryFrom<String> for Expiry {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        text.parse::<Timestamp>().unwrap().into()
    }

    #[test]
    fn a_day_is_included_and_a_moment_is_not() {
        let day: Expiry = "2027-06-30".parse().unwrap();
        assert!(!day.is_over(at("2027-06-30T23:59:59Z")));
        assert!(day.is_over(at("2027-07-01T00:00:00Z")));
        let moment: Expiry = "2027-06-30T18:00:00Z".parse().unwrap();
        assert!(!moment.is_over(at("2027-06-30T17:59:59Z")));
        assert!(moment.is_over(at("2027-06-30T18:00:00Z")));
        for text in ["2027-06-30", "2027-06-30T18:00:00Z"] {
            assert_eq!(text.parse::<Expiry>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for bad in ["", "2027", "2027-02-30", "30.6.2027", "2027-06-30T18:00:00+02:00", "2027-06-30T18:00:00"] {
            assert!(bad.parse::<Expiry>().unwrap_err().contains("2027-06-30"), "{bad}");
        }
    }
}
