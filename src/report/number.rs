//! Numbers as people read them, and text as HTML holds it.

use std::fmt::Display;

pub(crate) fn plural<'a>(n: u64, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// `24,000`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, which is right for display")]
pub(crate) fn count_real(n: f64) -> String {
    count(n.round() as u64)
}

/// `1.54 MB`: three digits, decimal units.
pub(crate) fn bytes(n: f64) -> String {
    let (value, unit) = match n {
        n if n < 999.5 => (n, "B"),
        n if n < 999.5e3 => (n / 1e3, "kB"),
        n if n < 999.5e6 => (n / 1e6, "MB"),
        n if n < 999.5e9 => (n / 1e9, "GB"),
        n => (n / 1e12, "TB"),
    };
    if unit == "B" && n.fract() == 0.0 { format!("{n} B") } else { format!("{} {unit}", three_digits(value)) }
}

pub(crate) fn bytes_or_absent(n: u64) -> String {
    if n == 0 { absent() } else { bytes(real(n)) }
}

/// `142 ms`, `6.41 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn seconds(s: f64) -> String {
    if s < 0.9995 {
        return format!("{} ms", three_digits(s * 1e3));
    }
    if s < 99.95 {
        return format!("{} s", three_digits(s));
    }
    let s = s.round();
    let (hours, minutes) = ((s / 3600.0).floor(), (s / 60.0).floor());
    if hours > 0.0 {
        format!("{hours} h {} min", minutes - hours * 60.0)
    } else {
        format!("{minutes} min {} s", s - minutes * 60.0)
    }
}

pub(crate) fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// Four digits: losses of one session differ in the third or fourth.
pub(crate) fn loss(value: f64) -> String {
    if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) { format!("{value:.3e}") } else { format!("{value:.4}") }
}

#[expect(clippy::cast_precision_loss, reason = "for display")]
pub(crate) fn real(n: u64) -> f64 {
    n as f64
}

/// Text that stands for itself in an element and in a quoted attribute.
pub(crate) fn escape(text: impl Display) -> String {
    let mut escaped = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// At most `most` of the items, the first and the last among them.
pub(crate) fn evenly<T>(items: &[T], most: usize) -> impl Iterator<Item = &T> {
    let shown = items.len().min(most);
    (0..shown).map(move |i| &items[if shown < 2 { 0 } else { i * (items.len() - 1) / (shown - 1) }])
}

pub(crate) fn mean(values: impl ExactSizeIterator<Item = f64>) -> Option<f64> {
    let n = values.len();
    (n > 0).then(|| values.sum::<f64>() / real(n as u64))
}

/// What stands where there is no number.
pub(crate) fn absent() -> String {
    "–".to_owned()
}
