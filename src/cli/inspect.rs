//! `spnn inspect`.

use super::{CliError, Inspect};
use spnn::party::data::inspect::{Inspection, Profile, Scalar, inspect};
use spnn::party::data::{ColumnType, Columns, DataSource, Files, Missing};
use spnn::sources::SourcesError;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is printed is a table in comments and the section after it: it can go into a configuration as it is.
#[expect(clippy::print_stdout, reason = "what this command is for")]
pub(crate) fn run(args: &Inspect) -> Result<(), CliError> {
    let files = match &args.files[..] {
        [one] => Files::One(one.clone()),
        several => Files::Many(several.to_vec()),
    };
    let inspection = inspect(&files).map_err(SourcesError::from)?;
    if let Some(label) = &args.label
        && !inspection.columns.iter().any(|column| column.name == *label)
    {
        return Err(CliError::Usage(format!("--label {label}: {files} has no column of this name")));
    }
    let (source, reasons) = inspection.suggest(&files, args.label.as_deref());
    if args.json {
        let whole = serde_json::json!({ "rows": inspection.rows, "columns": inspection.columns, "data": source });
        println!("{whole}");
    } else {
        print!("{}\n{}", table(&inspection), section(&source, &reasons));
    }
    Ok(())
}

fn table(inspection: &Inspection) -> String {
    let headings = ["column", "content", "missing", "distinct", "min", "max", "mean"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(headings).chain(inspection.columns.iter().map(cells)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut text = format!("# {} rows, {} columns\n#\n", inspection.rows, inspection.columns.len());
    for row in &rows {
        let mut line = String::from("#");
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names and words to the left, numbers to the right. Writing to a string cannot fail.
            let _ = if at < 2 { write!(line, "  {cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn cells(column: &Profile) -> [String; 7] {
    let content = format!("{:?}", column.content).to_lowercase();
    let about = if column.distinct_is_exact { "" } else { "~" };
    let scalar = |scalar: &Option<Scalar>| match scalar {
        None => String::new(),
        Some(Scalar::Number(x)) => number(*x),
        Some(Scalar::Date(date)) => date.clone(),
    };
    [
        printable(&column.name),
        content,
        column.missing.to_string(),
        format!("{about}{}", column.distinct),
        scalar(&column.min),
        scalar(&column.max),
        column.mean.map_or_else(String::new, number),
    ]
}

/// As many digits as tell a column's scale.
fn number(x: f64) -> String {
    let size = x.abs();
    if x.fract() == 0.0 && size < 1e15 {
        format!("{x}")
    } else if (1e-3..1e7).contains(&size) {
        let rounded = format!("{x:.4}");
        rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{x:.3e}")
    }
}

/// A name may hold what would end the comment or steer the terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn section(source: &DataSource, reasons: &BTreeMap<String, &'static str>) -> String {
    let text = |text: &str| toml::Value::from(text).to_string();
    let path = |path: &std::path::PathBuf| text(&path.to_string_lossy());
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let mut lines = vec!["[data]".to_owned()];
    lines.push(match &source.file {
        Files::One(file) => format!("file = {}", path(file)),
        Files::Many(files) => format!("file = {}", list(files.iter().map(path).collect())),
    });
    match &source.id {
        Some(Columns::One(id)) => lines.push(format!("id = {}", text(id))),
        Some(Columns::Many(ids)) => lines.push(format!("id = {}", list(ids.iter().map(|id| text(id)).collect()))),
        None => lines.push(
            "row_numbers_as_ids = true        # no column identifies a row: only sound if all parties have the same rows \
             in the same order"
                .to_owned(),
        ),
    }
    match &source.label {
        Some(label) => lines.push(format!("label = {}", text(label))),
        None => lines.push("# label = \"…\"                    # at the label holder; see --label".to_owned()),
    }
    if !source.ignore.is_empty() {
        lines.push("ignore = [".to_owned());
        for name in &source.ignore {
            let reason = reasons.get(name).map_or_else(String::new, |reason| format!("  # {reason}"));
            lines.push(format!("  {},{reason}", text(name)));
        }
        lines.push("]".to_owned());
    }
    if source.missing == Missing::Mean {
        lines.push("missing = \"mean\"                 # some features have missing values".to_owned());
    }
    if !source.types.is_empty() {
        lines.push("\n[data.types]".to_owned());
        for (name, kind) in &source.types {
            let kind = match kind {
                ColumnType::Hashed(_) => kind.to_string(),
                ColumnType::Numeric | ColumnType::Categorical | ColumnType::Boolean | ColumnType::Date => {
                    text(&kind.to_string())
                }
            };
            lines.push(format!("{} = {kind}", key(name)));
        }
    }
    lines.join("\n") + "\n"
}

/// A column's name as a key of TOML.
fn key(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if is_bare { name.to_owned() } else { serde_json::Value::from(name).to_string() }
}
