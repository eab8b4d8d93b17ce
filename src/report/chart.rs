//! Plots and tables as HTML and inline SVG, for every page that this program writes.
//!
//! Written out rather than drawn with `plotters`: that shrinks its letters and rounds to whole units, which makes stairs
//! of a long curve; its lines and points carry neither a class, by which the dark page would colour them, nor a title;
//! and its search for ticks panics on some axes, which a report after hours of training must not.

use super::number::{count, count_real, escape, evenly};

/// Bars of a figure beyond which a person would only scroll.
const BARS_SHOWN_MAX: usize = 24;

/// Epochs up to which each one is a visible point on its curve; with more the points run together.
const POINTS_MAX: usize = 60;

/// Epochs on a curve: more than one per two pixels of a wide screen cannot be seen and only makes the file longer.
const CURVE_POINTS_MAX: usize = 1000;

/// Losses are computed in `f32`, so nothing true is larger; NaN is not smaller either.
pub(crate) const VALUE_MAX: f64 = f32::MAX as f64;

/// A plot: series over a common axis.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    /// What the values are, and in which unit.
    pub(crate) unit: &'a str,
    pub(crate) x: Scale,
    pub(crate) y: Scale,
    /// What is on the horizontal axis, with its unit.
    pub(crate) x_label: &'a str,
    /// A shape of its own for each series, so that colours are not needed to tell them apart.
    pub(crate) shapes: bool,
    /// How a value is said when it is pointed at.
    pub(crate) say: fn(f64) -> String,
    pub(crate) series: Vec<Series>,
}

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Whole numbers from the first to the last.
    Count,
    Linear,
    /// Powers of ten at equal distances; what is not positive is left out.
    Log,
}

/// One line of a plot.
pub(crate) struct Series {
    pub(crate) color: usize,
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
    /// Points joined by a line.
    pub(crate) joined: bool,
}

/// A value, and how far others of its kind lie around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) spread: Option<(f64, f64)>,
}

impl Point {
    pub(crate) fn new(x: f64, y: f64) -> Self {
        Self { x, y, spread: None }
    }
}

impl Chart<'_> {
    /// The plot with title and legend, or nothing if no series has a point.
    pub(crate) fn figure(&self) -> String {
        let Some(plot) = self.plot() else { return String::new() };
        let shown = || self.series.iter().filter(|s| !s.points.is_empty());
        let legend = if shown().count() > 1 {
            let entry = |s: &Series| {
                let mark = if self.shapes {
                    format!("<svg class=\"mark\" viewBox=\"-6 -6 12 12\">{}</svg>", shape(s.color, 0.0, 0.0, ""))
                } else {
                    format!("<i class=\"{}\"></i>", class(s.color))
                };
                format!("<li>{mark}{}</li>", escape(&s.name))
            };
            format!("<ul class=\"legend\">{}</ul>", shown().map(entry).collect::<String>())
        } else {
            String::new()
        };
        let (title, unit) = (escape(self.title), escape(self.unit));
        format!("<figure class=\"plot\"><h3>{title} <small>{unit}</small></h3>{legend}{plot}</figure>\n")
    }

    /// In its own units: on a phone, and in three columns, one is a little less than a pixel.
    fn plot(&self) -> Option<String> {
        const SIZE: [f64; 2] = [360.0, 210.0];
        const LEFT: f64 = 48.0;
        const RIGHT: f64 = 346.0;
        const TOP: f64 = 10.0;
        const BOTTOM: f64 = 166.0;
        let fits = |p: &&Point| {
            let ok = |v: f64, scale| v.abs() <= VALUE_MAX && (scale != Scale::Log || v > 0.0);
            ok(p.x, self.x) && ok(p.y, self.y)
        };
        let points = || self.series.iter().flat_map(|s| &s.points).filter(fits);
        let columns = Axis::of(self.x, points().map(|p| p.x), 6.0)?;
        let spreads = points().filter_map(|p| p.spread).flat_map(|(low, high)| [low, high]);
        let spreads = spreads.filter(|&v| self.y != Scale::Log || v > 0.0);
        let values = Axis::of(self.y, points().map(|p| p.y).chain(spreads), 5.0)?;
        let x = |value: f64| LEFT + columns.position(value) * (RIGHT - LEFT);
        let y = |value: f64| BOTTOM + values.position(value).clamp(0.0, 1.0) * (TOP - BOTTOM);

        let alt = format!("{} ({}) by {}", self.title, self.unit, self.x_label);
        let mut svg =
            format!("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">\n", SIZE[0], SIZE[1], escape(alt));
        for tick in values.ticks() {
            let (y, label) = (y(tick), values.label(tick));
            svg += &format!(
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text class=\"end\" x=\"{}\" y=\"{:.1}\">{label}</text>\n",
                LEFT - 7.0,
                y + 4.5
            );
        }
        svg += &format!("<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>\n");
        for tick in columns.ticks() {
            let (x, label) = (x(tick), columns.label(tick));
            svg += &format!(
                "<path class=\"axis\" d=\"M{x:.1} {BOTTOM}v4\"/><text class=\"middle\" x=\"{x:.1}\" y=\"{}\">{label}</text>\n",
                BOTTOM + 18.0
            );
        }
        svg += &format!(
            "<text class=\"middle\" x=\"{}\" y=\"{}\">{}</text>\n",
            LEFT.midpoint(RIGHT),
            SIZE[1] - 6.0,
            escape(self.x_label)
        );
        for series in &self.series {
            let fitting: Vec<&Point> = series.points.iter().filter(fits).collect();
            let shown: Vec<_> = evenly(&fitting, CURVE_POINTS_MAX).map(|p| (p, x(p.x), y(p.y))).collect();
            let class = class(series.color);
            for (p, x, _) in &shown {
                if let Some((low, high)) = p.spread.filter(|(low, high)| high > low) {
                    let (low, high) = (y(low), y(high));
                    svg += &format!("<path class=\"spread {class}\" d=\"M{x:.1} {low:.1}V{high:.1}\"/>\n");
                }
            }
            if series.joined {
                let line: Vec<_> = shown.iter().map(|(_, x, y)| format!("{x:.1},{y:.1}")).collect();
                svg += &format!("<polyline class=\"{class}\" points=\"{}\"/>\n", line.join(" "));
            }
            for (p, x, y) in shown.iter().filter(|_| shown.len() <= POINTS_MAX) {
                let title = format!(
                    "{}, {} {}: {}",
                    escape(&series.name),
                    escape(self.x_label),
                    columns.label(p.x),
                    (self.say)(p.y)
                );
                svg += &if self.shapes {
                    shape(series.color, *x, *y, &title)
                } else {
                    format!(
                        "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\"><title>{title}</title></circle>\n"
                    )
                };
            }
        }
        Some(svg + "</svg>")
    }
}

/// The mark of a colour: circle, square, triangle, diamond, and the same hollow.
fn shape(color: usize, x: f64, y: f64, title: &str) -> String {
    let path = match color % 4 {
        0 => "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
        1 => "M-3.2 -3.2h6.4v6.4h-6.4z",
        2 => "M0 -4.2L4 3.2H-4z",
        _ => "M0 -4.5L4.5 0L0 4.5L-4.5 0z",
    };
    let hollow = if color >= 4 { " hollow" } else { "" };
    let class = class(color);
    format!(
        "<path class=\"shape {class}{hollow}\" transform=\"translate({x:.1} {y:.1})\" d=\"{path}\"><title>{title}</title></path>\n"
    )
}

/// A row of values of one kind, each a dot: every seed of a method, say.
pub(crate) struct Dots {
    pub(crate) name: String,
    pub(crate) color: usize,
    pub(crate) values: Vec<f64>,
}

/// Dots on rows over one axis, with a bar at each row's mean: differences are seen better than between bars from zero.
pub(crate) fn dot_figure(title: &str, unit: &str, say: fn(f64) -> String, rows: &[Dots]) -> String {
    const RIGHT: f64 = 346.0;
    const ROW: f64 = 22.0;
    // Room for the longest name; a letter is about 7 wide.
    let letters = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).clamp(8, 24);
    #[expect(clippy::cast_precision_loss, reason = "24 at most")]
    let left = 22.0 + 7.0 * letters as f64;
    let values = || rows.iter().flat_map(|r| &r.values).copied().filter(|v| v.abs() <= VALUE_MAX);
    let Some(axis) = Axis::of(Scale::Linear, values(), 4.0) else { return String::new() };
    let x = |value: f64| left + axis.position(value) * (RIGHT - left);
    #[expect(clippy::cast_precision_loss, reason = "a row for each method")]
    let bottom = ROW * rows.len() as f64 + 4.0;
    let alt = escape(format!("{title} ({unit}), a dot for each run"));
    let mut svg = format!("<svg viewBox=\"0 0 360 {:.0}\" role=\"img\" aria-label=\"{alt}\">\n", bottom + 24.0);
    for tick in axis.ticks() {
        let (x, label) = (x(tick), axis.label(tick));
        svg += &format!(
            "<path d=\"M{x:.1} 0V{bottom}\"/><text class=\"middle\" x=\"{x:.1}\" y=\"{:.1}\">{label}</text>\n",
            bottom + 17.0
        );
    }
    let mut y = ROW / 2.0 + 2.0;
    for row in rows {
        let name = escape(&row.name);
        svg += &format!("<text class=\"end\" x=\"{}\" y=\"{:.1}\">{name}</text>\n", left - 10.0, y + 4.5);
        let known: Vec<f64> = row.values.iter().copied().filter(|v| v.abs() <= VALUE_MAX).collect();
        for &value in &known {
            svg += &shape(row.color, x(value), y, &format!("{name}: {}", say(value)));
        }
        if let Some(mean) = super::number::mean(known.iter().copied()) {
            let title = format!("{name}, mean: {}", say(mean));
            svg += &format!(
                "<path class=\"mean\" d=\"M{:.1} {:.1}v17\"><title>{title}</title></path>\n",
                x(mean),
                y - 8.5
            );
        }
        y += ROW;
    }
    let (title, unit) = (escape(title), escape(unit));
    format!("<figure class=\"plot\"><h3>{title} <small>{unit}</small></h3>{svg}</svg></figure>\n")
}

/// The ends of an axis and the distance of its ticks: one, two or five of some power of ten. On a logarithmic one, ends
/// and ticks are powers.
pub(crate) struct Axis {
    log: bool,
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    pub(crate) fn of(scale: Scale, values: impl Iterator<Item = f64>, ticks_max: f64) -> Option<Self> {
        match scale {
            Scale::Count => Self::of_counts(values),
            Scale::Linear => Self::of_values(values, ticks_max),
            Scale::Log => {
                let (low, high) = ends(values.map(f64::log10))?;
                let air = if high - low > 1e-6 { (high - low) * 0.06 } else { 0.3 };
                let axis = Self::new(low - air, high + air, ticks_max);
                Some(Self { log: true, ..axis })
            }
        }
    }

    /// From the first to the last; a single one stands in the middle.
    fn of_counts(counts: impl Iterator<Item = f64>) -> Option<Self> {
        let (first, last) = ends(counts)?;
        let air = if first == last { 0.5 } else { 0.0 };
        let axis = Self::new(first - air, last + air, 6.0);
        Some(Self { step: axis.step.max(1.0), ..axis })
    }

    /// Holds the values with some air. What differs by less than `f32` can tell is drawn as one value.
    fn of_values(values: impl Iterator<Item = f64>, ticks_max: f64) -> Option<Self> {
        let (low, high) = ends(values)?;
        let size = low.abs().max(high.abs());
        let air = if high - low > size * 1e-7 + 1e-12 { (high - low) * 0.06 } else { (size * 0.1).max(0.01) };
        Some(Self::new(low - air, high + air, ticks_max))
    }

    fn new(low: f64, high: f64, ticks_max: f64) -> Self {
        let rough = (high - low) / ticks_max;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0].map(|n| n * power).into_iter().find(|&s| s >= rough).unwrap_or(10.0 * power);
        Self { log: false, low, high, step }
    }

    /// From 0 to 1 along the axis.
    fn position(&self, value: f64) -> f64 {
        let value = if self.log { value.log10() } else { value };
        (value - self.low) / (self.high - self.low)
    }

    pub(crate) fn ticks(&self) -> Vec<f64> {
        if self.log {
            #[expect(clippy::cast_possible_truncation, reason = "an exponent of an f32")]
            let powers = self.low.floor() as i32..=self.high.ceil() as i32;
            // Ticks closer than a power of ten each, where there are few powers.
            let (every, digits): (i32, &[f64]) = match self.high - self.low {
                w if w < 1.9 => (1, &[1.0, 2.0, 5.0]),
                w if w < 6.0 => (1, &[1.0]),
                _ => (2, &[1.0]),
            };
            return powers
                .filter(|p| p.rem_euclid(every) == 0)
                .flat_map(|p| digits.iter().map(move |d| d * 10f64.powi(p)))
                .filter(|t| (self.low..=self.high).contains(&t.log10()))
                .collect();
        }
        let first = (self.low / self.step).ceil();
        (0..10u32).map(|i| (first + f64::from(i)) * self.step).take_while(|&t| t <= self.high).collect()
    }

    /// With as many decimals as the step has.
    pub(crate) fn label(&self, tick: f64) -> String {
        if self.log {
            return short(tick);
        }
        // A sum of steps that should be zero can be a little more or less.
        let tick = if tick.abs() < self.step / 2.0 { 0.0 } else { tick };
        match (0..=5u8).find(|&d| self.step > 0.99 * 10f64.powi(-i32::from(d))) {
            Some(0) if (0.0..1e9).contains(&tick) => count_real(tick),
            Some(decimals) if tick.abs() < 1e5 => format!("{tick:.*}", decimals.into()),
            _ => format!("{tick:.1e}"),
        }
    }
}

/// A number on a logarithmic axis: `0.02`, `50`, `20k`, `1M`.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 0.999e9 => (value / 1e9, "G"),
        v if v >= 0.999e6 => (value / 1e6, "M"),
        v if v >= 0.999e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let rounded = (value * 1e4).round() / 1e4;
    if rounded == 0.0 { format!("{value:.0e}") } else { format!("{rounded}{unit}") }
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, v| ends.map_or(Some((v, v)), |(low, high): (f64, f64)| Some((low.min(v), high.max(v)))))
}

/// Figures under a heading, if there are any.
pub(crate) fn section(title: &str, figures: &str) -> String {
    if figures.is_empty() {
        return String::new();
    }
    format!("<h2>{title}</h2>\n<div class=\"figures\">\n{figures}</div>\n")
}

/// One bar, in parts.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) parts: Vec<f64>,
}

/// Bars with their values beside them; a legend only where a bar has parts.
///
/// Not plotted: as a grid of text and stretched rectangles they keep their letters' size at any width of the screen.
pub(crate) fn bar_figure(title: &str, parts: &[(usize, &str)], unit: fn(f64) -> String, bars: &[Bar]) -> String {
    let largest = bars.iter().map(|b| b.parts.iter().sum()).fold(0.0, f64::max);
    if !(largest > 0.0 && largest.is_finite()) {
        return String::new();
    }
    let mut rows = String::new();
    for Bar { name, parts: values } in bars.iter().take(BARS_SHOWN_MAX) {
        let mut x = 0.0;
        let mut rectangles = String::new();
        for ((color, part), value) in parts.iter().zip(values).filter(|(_, v)| **v > 0.0) {
            let width = value / largest * 100.0;
            let (class, title) = (class(*color), format!("{}: {}", escape(part), unit(*value)));
            rectangles += &format!(
                r#"<rect class="{class}" x="{x:.2}" width="{width:.2}" height="1"><title>{title}</title></rect>"#
            );
            x += width;
        }
        let total = unit(values.iter().sum());
        rows += &format!(
            "<span>{}</span><svg viewBox=\"0 0 100 1\" preserveAspectRatio=\"none\">{rectangles}</svg><b>{total}</b>\n",
            escape(name)
        );
    }
    let legend = if parts.len() > 1 { legend(parts.iter().copied()) } else { String::new() };
    let left_out = left_out(bars.len(), BARS_SHOWN_MAX, "bars");
    format!("<figure><h3>{title}</h3>{legend}<div class=\"bars\">\n{rows}</div>{left_out}</figure>\n")
}

fn legend<'a>(entries: impl Iterator<Item = (usize, &'a str)>) -> String {
    let items: String =
        entries.map(|(color, name)| format!("<li><i class=\"{}\"></i>{}</li>", class(color), escape(name))).collect();
    format!("<ul class=\"legend\">{items}</ul>")
}

/// The last of the eight colours of the style sheet, for what needs none.
pub(crate) const GREY: usize = 7;

fn class(color: usize) -> String {
    format!("c{}", color.min(GREY))
}

/// A table of numbers. Cells are HTML.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let header: String = header.iter().map(|h| format!("<th scope=\"col\">{}</th>", escape(h))).collect();
    let rows: String = rows
        .map(|cells| {
            let mut cells = cells.into_iter();
            let first = cells.next().map(|c| format!("<th scope=\"row\">{c}</th>")).unwrap_or_default();
            let rest: String = cells.map(|c| format!("<td>{c}</td>")).collect();
            format!("<tr>{first}{rest}</tr>\n")
        })
        .collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\"><table class=\"numbers\"><thead><tr>{header}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )
}

pub(crate) fn left_out(of: usize, most: usize, what: &str) -> String {
    if of <= most {
        return String::new();
    }
    format!(
        "<p class=\"note\">The first {most} of {} {what}; <code>report.json</code> has all.</p>\n",
        count(of as u64)
    )
}
