//! One value of a file, whatever the format, and what it is as a number, a truth, a date, a category or an id.
//!
//! The text that a CSV file has and the typed value that a Parquet file has come to the same here, bit for bit: a decimal
//! is rounded to `f64` first and to `f32` after that, and a value that is not text has the text that CSV would have.

use std::borrow::Cow;
use std::path::Path;

use super::date::{days, days_of_moment, text_of_day, text_of_moment};
use super::{DataError, Excerpt, ID_SEPARATOR};

/// A value as it lies in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// Nothing, where a format has a way to say so.
    Missing,
    /// Without spaces around it; perhaps a word for nothing.
    Text(&'a str),
    Boolean(bool),
    Integer(i64),
    Unsigned(u64),
    Single(f32),
    Double(f64),
    /// `unscaled · 10^−scale`.
    Decimal {
        unscaled: i128,
        scale: u32,
    },
    /// Days since 1970-01-01.
    Day(i32),
    /// Nanoseconds since 1970-01-01.
    Moment(i128),
}

/// Why a value cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    NotUtf8,
    Missing,
    NotANumber,
    NotFinite,
    NotABoolean,
    NotADate,
    TooManyCategories(u32),
    EmptyId,
    NotAnId,
    HoldsSeparator,
}

impl Value<'_> {
    /// As a number; `None` where there is no value. NaN is none.
    pub(super) fn number(self) -> Result<Option<f64>, Wrong> {
        let number = match self {
            Self::Missing => return Ok(None),
            Self::Text(text) => match text.parse() {
                Ok(number) => number,
                Err(_) if is_missing(text) => return Ok(None),
                Err(_) => return Err(Wrong::NotANumber),
            },
            Self::Integer(value) => value as f64,
            Self::Unsigned(value) => value as f64,
            Self::Single(value) => f64::from(value),
            Self::Double(value) => value,
            Self::Decimal { unscaled, scale } => decimal(unscaled, scale),
            Self::Boolean(_) | Self::Day(_) | Self::Moment(_) => return Err(Wrong::NotANumber),
        };
        Ok((!number.is_nan()).then_some(number))
    }

    /// As yes or no; `None` where there is no value.
    pub(super) fn boolean(self) -> Result<Option<bool>, Wrong> {
        if let Self::Boolean(value) = self {
            return Ok(Some(value));
        }
        let Some(text) = self.category() else { return Ok(None) };
        let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        match () {
            () if is(&["true", "yes", "t", "1"]) => Ok(Some(true)),
            () if is(&["false", "no", "f", "0"]) => Ok(Some(false)),
            () => Err(Wrong::NotABoolean),
        }
    }

    /// As days since 1970-01-01; `None` where there is no value.
    pub(super) fn days(self) -> Result<Option<f64>, Wrong> {
        match self {
            Self::Day(day) => Ok(Some(day.into())),
            Self::Moment(nanoseconds) => Ok(Some(days_of_moment(nanoseconds))),
            other => match other.category() {
                Some(text) => days(&text).map(Some).ok_or(Wrong::NotADate),
                None => Ok(None),
            },
        }
    }

    /// As a category; `None` where there is no value. A whole number is the same with and without a fraction of zeros:
    /// programs that know no missing integers write `1.0` for 1.
    pub(super) fn category(&self) -> Option<Cow<'_, str>> {
        match *self {
            Self::Text(text) => (!is_missing(text)).then_some(Cow::Borrowed(without_zero_fraction(text))),
            Self::Single(value) if value.is_nan() => None,
            Self::Double(value) if value.is_nan() => None,
            Self::Decimal { unscaled, scale } => {
                Some(Cow::Owned(without_zero_fraction(&decimal_text(unscaled, scale)).to_owned()))
            }
            Self::Missing => None,
            Self::Boolean(_)
            | Self::Integer(_)
            | Self::Unsigned(_)
            | Self::Single(_)
            | Self::Double(_)
            | Self::Day(_)
            | Self::Moment(_) => Some(self.text()),
        }
    }

    /// As an id, or a part of one.
    pub(super) fn id(&self) -> Result<Cow<'_, str>, Wrong> {
        match self {
            Self::Missing => Err(Wrong::EmptyId),
            // Equal numbers have many texts, and parties would not find each other's rows.
            Self::Boolean(_) | Self::Single(_) | Self::Double(_) => Err(Wrong::NotAnId),
            Self::Text("") => Err(Wrong::EmptyId),
            Self::Text(text) if text.contains(ID_SEPARATOR) => Err(Wrong::HoldsSeparator),
            Self::Text(_)
            | Self::Integer(_)
            | Self::Unsigned(_)
            | Self::Decimal { .. }
            | Self::Day(_)
            | Self::Moment(_) => Ok(self.text()),
        }
    }

    /// As CSV would have it.
    pub(super) fn text(&self) -> Cow<'_, str> {
        Cow::Owned(match *self {
            Self::Missing => return Cow::Borrowed(""),
            Self::Text(text) => return Cow::Borrowed(text),
            Self::Boolean(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Unsigned(value) => value.to_string(),
            Self::Single(value) => value.to_string(),
            Self::Double(value) => value.to_string(),
            Self::Decimal { unscaled, scale } => decimal_text(unscaled, scale),
            Self::Day(day) => text_of_day(day).unwrap_or_else(|| day.to_string()),
            Self::Moment(moment) => text_of_moment(moment).unwrap_or_else(|| moment.to_string()),
        })
    }
}

/// Where a value stands.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) file: &'a Path,
    /// Where the format has lines.
    pub(super) line: Option<u64>,
    /// From 1.
    pub(super) row: u64,
}

impl Place<'_> {
    /// What to tell about `value` in the column of this name.
    pub(super) fn error(&self, wrong: Wrong, column: &str, value: Value<'_>) -> DataError {
        let Self { line, row, .. } = *self;
        let (file, column) = (self.file.to_path_buf(), column.to_owned());
        let value = Excerpt::new(&value.text());
        match wrong {
            Wrong::NotUtf8 => DataError::NotUtf8 { file, line, row, column },
            Wrong::Missing => DataError::MissingValue { file, line, row, column },
            Wrong::NotANumber => DataError::NotANumber { file, line, row, column, value },
            Wrong::NotFinite => DataError::NotFinite { file, line, row, column, value },
            Wrong::NotABoolean => DataError::NotABoolean { file, line, row, column, value },
            Wrong::NotADate => DataError::NotADate { file, line, row, column, value },
            Wrong::TooManyCategories(limit) => DataError::TooManyCategories { file, line, row, column, limit },
            Wrong::EmptyId => DataError::EmptyId { file, line, row, column },
            Wrong::NotAnId => DataError::NotAnId { file, line, row, column },
            Wrong::HoldsSeparator => DataError::SeparatorInId { file, line, row, column },
        }
    }
}

/// What other programs write for no value.
pub(super) fn is_missing(text: &str) -> bool {
    ["", "NA", "NaN", "null", "?"].iter().any(|word| text.eq_ignore_ascii_case(word))
}

fn without_zero_fraction(text: &str) -> &str {
    let Some((whole, fraction)) = text.split_once('.') else { return text };
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    let is_whole = !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
        && !fraction.is_empty()
        && fraction.bytes().all(|b| b == b'0');
    if is_whole { whole } else { text }
}

/// The nearest `f64`.
fn decimal(unscaled: i128, scale: u32) -> f64 {
    // Up to these, both numbers are exact, and their quotient is rounded once.
    const EXACT: u128 = 1 << 53;
    const POWER_MAX: u32 = 22;
    if unscaled.unsigned_abs() <= EXACT && scale <= POWER_MAX {
        return unscaled as f64 / 10_f64.powi(scale.cast_signed());
    }
    decimal_text(unscaled, scale).parse().unwrap_or(f64::NAN)
}

fn decimal_text(unscaled: i128, scale: u32) -> String {
    let (sign, digits) = (if unscaled < 0 { "-" } else { "" }, unscaled.unsigned_abs().to_string());
    let scale = scale as usize;
    if scale == 0 {
        return format!("{sign}{digits}");
    }
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{sign}{whole}.{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn decimals() {
        assert_eq!(decimal_text(-5, 3), "-0.005");
        assert_eq!(decimal_text(12_345, 2), "123.45");
        assert_eq!(decimal_text(7, 0), "7");
        assert_eq!(Value::Decimal { unscaled: 100, scale: 2 }.category().as_deref(), Some("1"));
        assert_eq!(Value::Decimal { unscaled: 100, scale: 2 }.id().as_deref(), Ok("1.00"));
    }

    #[test]
    fn one_category_for_a_whole_number() {
        for (value, expected) in [
            (Value::Text("1"), Some("1")),
            (Value::Text("1.0"), Some("1")),
            (Value::Text("-1.00"), Some("-1")),
            (Value::Text("01"), Some("01")),
            (Value::Text("1.5"), Some("1.5")),
            (Value::Text("1."), Some("1.")),
            (Value::Text("a.0"), Some("a.0")),
            (Value::Text("null"), None),
            (Value::Integer(1), Some("1")),
            (Value::Double(1.0), Some("1")),
            (Value::Double(f64::NAN), None),
            (Value::Single(0.1), Some("0.1")),
            (Value::Boolean(true), Some("true")),
            (Value::Day(13_057), Some("2005-10-01")),
            (Value::Missing, None),
        ] {
            assert_eq!(value.category().as_deref(), expected, "{value:?}");
        }
    }

    #[test]
    fn words_for_yes_and_no() {
        for (value, expected) in [
            (Value::Text("True"), Ok(Some(true))),
            (Value::Text("NO"), Ok(Some(false))),
            (Value::Text("0.0"), Ok(Some(false))),
            (Value::Text(""), Ok(None)),
            (Value::Text("2"), Err(Wrong::NotABoolean)),
            (Value::Integer(1), Ok(Some(true))),
            (Value::Double(0.0), Ok(Some(false))),
            (Value::Integer(-1), Err(Wrong::NotABoolean)),
        ] {
            assert_eq!(value.boolean(), expected, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_typed_value_is_the_number_that_its_text_is(
            integer in any::<i64>(), unsigned in any::<u64>(), double in any::<f64>(),
            unscaled in any::<i128>(), few in -1_000_000_i128..1_000_000, scale in 0_u32..40,
        ) {
            for value in [
                Value::Integer(integer), Value::Unsigned(unsigned), Value::Double(double),
                Value::Decimal { unscaled, scale }, Value::Decimal { unscaled: few, scale },
            ] {
                let text = value.text().into_owned();
                let bits = |value: Value<'_>| value.number().map(|x| x.map(f64::to_bits));
                // Zero has no sign in a decimal.
                let zero = value.number() == Ok(Some(0.0)) && Value::Text(&text).number() == Ok(Some(0.0));
                prop_assert!(zero || bits(value) == bits(Value::Text(&text)), "{value:?} {text}");
            }
        }
    }
}
