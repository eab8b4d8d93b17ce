//! Makes tables of any size as Parquet files, one for each party, and a session for them: a few rows by default, which it
//! trains on; more than memory holds where arguments say so.
//!
//! ```sh
//! cargo run --release --example parquet_tables                             # 20,000 rows, and trains
//! cargo run --release --example parquet_tables -- tables 20000000 20      # directory, rows, columns of each party
//! spnn simulate tables/session.toml
//! ```

use parquet::basic::Compression;
use parquet::data_type::{BoolType, FloatType};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn::coordinator::{Event, Observer};
use spnn::party::PartyOptions;
use spnn::protocol::{JoinOptions, Role, SessionFile, Task};
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows in memory at a time, and the rows of a row group.
const GROUP: usize = 1 << 16;

const PARTIES: usize = 2;

struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: &Event<'_>) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |n| n.parse());
    let (rows, columns) = (number(1, 20_000)?, number(2, 6)?);
    match arguments.first() {
        Some(directory) => {
            make(Path::new(directory), rows, columns)?;
            eprintln!(
                "wrote {rows} rows of {columns} columns for each party; now: spnn simulate {directory}/session.toml"
            );
        }
        None => {
            let directory = std::env::temp_dir().join(format!("spnn-parquet-tables-{}", std::process::id()));
            make(&directory, rows, columns)?;
            let auc = train(&directory)?;
            fs::remove_dir_all(&directory)?;
            assert!(auc > 0.9, "test AUC {auc}");
            eprintln!("test AUC {auc:.4} on {rows} rows that were read from Parquet");
        }
    }
    Ok(())
}

/// Writes the tables, row group by row group: features between -1.5 and 1.5, and at the first party whether a fixed sum of
/// all of them is positive, with some noise.
fn make(directory: &Path, rows: usize, columns: usize) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let properties = Arc::new(WriterProperties::builder().set_compression(Compression::SNAPPY).build());
    let mut writers =
        (0..PARTIES).map(|party| open(directory, party, columns, &properties)).collect::<Result<Vec<_>, _>>()?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for start in (0..rows).step_by(GROUP) {
        let n = GROUP.min(rows - start);
        let mut scores: Vec<f32> = (0..n).map(|_| rng.random::<f32>() - 0.5).collect();
        let blocks: Vec<Vec<Vec<f32>>> =
            (0..PARTIES).map(|_| (0..columns).map(|at| column(&mut rng, at, &mut scores)).collect()).collect();
        for (party, (writer, block)) in writers.iter_mut().zip(&blocks).enumerate() {
            let mut group = writer.next_row_group()?;
            if party == 0 {
                let labels: Vec<bool> = scores.iter().map(|score| *score > 0.0).collect();
                let mut to = group.next_column()?.ok_or("a column of labels")?;
                to.typed::<BoolType>().write_batch(&labels, None, None)?;
                to.close()?;
            }
            for values in block {
                let mut to = group.next_column()?.ok_or("a column of features")?;
                to.typed::<FloatType>().write_batch(values, None, None)?;
                to.close()?;
            }
            group.close()?;
        }
    }
    writers.into_iter().try_for_each(|writer| writer.close().map(drop))?;
    fs::write(directory.join("session.toml"), SESSION)?;
    Ok(())
}

/// A column's values, which are added to the scores or taken from them in turn.
fn column(rng: &mut ChaCha8Rng, at: usize, scores: &mut [f32]) -> Vec<f32> {
    let sign = if at.is_multiple_of(2) { 1.0 } else { -1.0 };
    let value = |score: &mut f32| {
        // A sum of three uniform numbers is near enough to normal; three digits, as measured data have.
        let x = ((0..3).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 1000.0).round() / 1000.0;
        *score += sign * x;
        x
    };
    scores.iter_mut().map(value).collect()
}

fn open(
    directory: &Path,
    party: usize,
    columns: usize,
    properties: &Arc<WriterProperties>,
) -> Result<SerializedFileWriter<File>, ParquetError> {
    let label = if party == 0 { "required boolean y; " } else { "" };
    let features: String = (0..columns).map(|at| format!("required float x{party}_{at}; ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message table {{ {label}{features}}}"))?);
    let file = File::create(directory.join(format!("party-{party}.parquet")))?;
    SerializedFileWriter::new(file, schema, Arc::clone(properties))
}

const SESSION: &str = r#"name = "parquet-tables"
first_layer = "sharing"
seed = 1

[data]
row_numbers_as_ids = true        # both files were written row by row together
label = "y"
types = { y = "boolean" }
test_fraction = 0.1
standardize = true
clip = 5.0
memory_max_mib = 256             # larger tables stay on disk
parties = [
  { file = "party-0.parquet", label_holder = true },
  { file = "party-1.parquet" },
]

[model]
hidden_width = 8
server = [{ activation = "sigmoid" }, { linear = 8 }, { activation = "sigmoid" }]
head = { linear = 1, loss = "binary-cross-entropy" }

[train]
epochs = 1
batch_size = 1024
optimizer = { kind = "adam", learning_rate = 0.05 }
"#;

/// Trains with all roles in this process. Returns the test AUC.
fn train(directory: &Path) -> Result<f64, Box<dyn Error>> {
    // A few rows need small batches to learn from them in one epoch.
    let text = SESSION.replace("batch_size = 1024", "batch_size = 64");
    let file = SessionFile::parse(&text, &directory.join("session.toml"))?;
    let session = file.config()?;
    let join = |role: Role| JoinOptions::new(Task::Train, PathBuf::from(directory).join(role.to_string()));
    let parties: Vec<PartyOptions> = (session.party_roles().zip(spnn::sources::sources(&file.data, directory)?))
        .map(|(role, data)| PartyOptions::new(join(role), data))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (coordinator, server) = (join(Role::Coordinator), join(Role::Server));
    let ends =
        runtime.block_on(spnn::in_memory::run(&session, &coordinator, &server, &parties, 256 << 10, &mut Silent))?;
    for party in ends.parties {
        party?;
    }
    Ok(ends.coordinator?.and_then(|record| record.test?.auc).ok_or("no test rows")?)
}
