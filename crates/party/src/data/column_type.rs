//! What the values of a column mean, and what stands for a value that is not there.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the values of a column become features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// A number: one feature, which is standardised if the session says so.
    #[default]
    Numeric,
    /// One of a few values: a feature for each value that a training row has, 1 where a row has it, and one more for any
    /// other value.
    Categorical,
    /// One of many values: a feature for each of so many buckets, 1 in the bucket that the value hashes to.
    Hashed(u32),
    /// Yes or no: one feature, 1 or 0.
    Boolean,
    /// A date, perhaps with a time: days since 1970-01-01, and then as a number.
    Date,
}

impl ColumnType {
    /// Fewer tell nothing; more would make a first layer of a gigabyte from one column.
    pub(super) const BUCKETS: std::ops::RangeInclusive<u32> = 2..=1 << 20;
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numeric => f.write_str("numeric"),
            Self::Categorical => f.write_str("categorical"),
            Self::Hashed(buckets) => write!(f, "{{ hashed = {buckets} }}"),
            Self::Boolean => f.write_str("boolean"),
            Self::Date => f.write_str("date"),
        }
    }
}

/// What is done where a feature has no value. Labels and ids always need one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// The file is refused.
    #[default]
    Refuse,
    /// A number or date is the mean of the training rows; for other types, no value is a value of its own.
    Mean,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refuse => "refuse",
            Self::Mean => "mean",
        })
    }
}
