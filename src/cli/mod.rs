//! The command line: what it takes, and what it runs.

mod compare;
mod config;
mod error;
mod experiment;
mod inspect;
mod launch;
mod pki;
mod progress;
mod role;
mod simulate;

pub(crate) use error::CliError;

use clap::{Args, Parser, Subcommand, ValueEnum};
use spnn::protocol::{FirstLayerKind, Role, Task};
use std::path::PathBuf;

/// Train one neural network over data that several organisations may not show each other.
///
/// Parties hold different columns about the same people. They compute the first layer together under additive secret
/// sharing: only the sum is opened, and only to the server, which trains the hidden layers. The label holder trains the
/// last layer. What each role can still learn from that is said in the README, first of all.
#[derive(Parser)]
#[command(version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Example: spnn simulate            (trains the example that ships inside the binary)\n\n\
Exit codes: 0 done · 2 configuration · 3 data · 4 network · 5 a peer broke the protocol ·\n\
            74 could not write · 75 a peer is gone, the run can be resumed")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// How much to log to standard error: error, warn, info, debug, trace, or a filter such as spnn_party=debug
    #[arg(long, global = true, value_name = "FILTER", env = "SPNN_LOG", default_value = "info")]
    pub(crate) log: String,

    /// Log as JSON lines
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run every role as its own process on this machine, over real QUIC with throw-away certificates
    #[command(
        after_help = "Examples:\n  spnn simulate\n  spnn simulate session.toml --epochs 5 --run-dir runs/try\n  \
        spnn simulate session.toml --first-layer plain --in-memory\n  \
        spnn simulate --resume runs/try"
    )]
    Simulate(Simulate),
    /// Train the same network in one process on pooled columns, or on one party's, to compare with
    #[command(after_help = "Examples:\n  spnn pooled\n  spnn pooled session.toml --party 1 --json")]
    Pooled(Pooled),
    /// Run experiments from files: many sessions beside the baselines, with a report of plots and tables
    #[command(
        long_about = "Run experiments from files: many sessions beside the baselines, with a report of plots and tables.\n\n\
        An experiment file names sessions, methods (pooled, alone, plain, sharing, sharing-32, beaver, paillier) and \
        seeds, and at most one thing that varies: parties, batch_size, rows_share, rate_bit_s, round_trip_ms, \
        synthetic_rows, synthetic_features or optimizer. Every session runs as processes of its own over QUIC. \
        Finished runs are kept: the same command goes on where it was stopped. experiments/paper holds commented \
        files, docs/experiments.md says how to write one.",
        after_help = "Examples:\n  spnn experiment experiments/quick.toml\n  \
        spnn experiment experiments/paper --data ../shared/data\n  \
        spnn experiment experiments/paper --only accuracy --seeds 2"
    )]
    Experiment(RunExperiment),
    /// Be the coordinator: start and end a session, gather metrics, see no data
    #[command(after_help = "Example: spnn coordinator --config coordinator.toml")]
    Coordinator(RunRole),
    /// Be the server: train the hidden layers
    #[command(after_help = "Example: spnn server --config server.toml")]
    Server(RunRole),
    /// Be a party: hold features, and the labels if the session says so; dial out only
    #[command(after_help = "Examples:\n  spnn party --config party.toml\n  \
        spnn party --config party.toml --task predict --data new.csv --scores scores.csv")]
    Party(RunRole),
    /// Say what is in a table, and how a party could read it
    #[command(
        long_about = "Say what is in a table, and how a party could read it.\n\n\
        Reads CSV, CSV.gz or Parquet, one file, several or a directory, in one pass and little memory. Prints each column's \
        content, missing and different values and range as comments, and after them a [data] section with a guess at \
        the id, the types and what to leave out, to be mended by hand. Nothing leaves this machine.",
        after_help = "Examples:\n  spnn inspect customers.csv\n  \
        spnn inspect customers.parquet --label defaulted\n  spnn inspect part-*.parquet --json"
    )]
    Inspect(Inspect),
    /// Make the private authority and the certificates of the roles
    #[command(subcommand)]
    Pki(Pki),
    /// Metrics of a simulated and trained session on rows with labels, with every role as its own process again
    #[command(after_help = "Example: spnn evaluate runs/breast-cancer-… --data clinic.csv --data laboratory.csv")]
    Evaluate(Again),
    /// Scores of a simulated and trained session on new rows; they appear at the label holder only
    #[command(after_help = "Example: spnn predict runs/breast-cancer-… --data clinic.csv --data laboratory.csv \
        --scores scores.csv")]
    Predict(Again),
}

#[derive(Args)]
pub(crate) struct Overrides {
    /// First-layer protocol instead of the session's
    #[arg(long, value_enum)]
    pub(crate) first_layer: Option<FirstLayer>,
    /// Ring of `sharing`: 64, or 32 for half the bytes and 2^-17 precision
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(["32", "64"]))]
    pub(crate) ring_bits: Option<String>,
    /// Split the columns of the session's one file over K parties
    #[arg(long, value_name = "K")]
    pub(crate) parties: Option<u16>,
    /// Number of epochs instead of the session's
    #[arg(long)]
    pub(crate) epochs: Option<u32>,
    /// Public seed instead of the session's
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FirstLayer {
    /// The server sees the sum only
    Sharing,
    /// The server sees the sum only; features and weights are shared and multiplied by triples that the coordinator deals
    Beaver,
    /// The server sees the sum only, under its Paillier key; thousands of times more arithmetic than sharing
    Paillier,
    /// Protects nothing: the server sees every party's product
    Plain,
}

impl From<FirstLayer> for FirstLayerKind {
    fn from(kind: FirstLayer) -> Self {
        match kind {
            FirstLayer::Sharing => Self::Sharing,
            FirstLayer::Beaver => Self::Beaver,
            FirstLayer::Paillier => Self::Paillier,
            FirstLayer::Plain => Self::Plain,
        }
    }
}

#[derive(Args)]
pub(crate) struct Simulate {
    /// Session file; without it, the example that ships inside the binary
    pub(crate) session: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Where everything goes [default: runs/<session name>-<time>]
    #[arg(long, value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
    /// Go on with an interrupted run in its run directory, from the last checkpoints, to the same weights bit for bit
    #[arg(long, value_name = "DIR", conflicts_with_all = ["session", "run_dir", "in_memory", "first_layer", "ring_bits",
        "parties", "epochs", "seed"])]
    pub(crate) resume: Option<PathBuf>,
    /// How often every role makes a checkpoint; 0 for after every second mini-batch
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    pub(crate) checkpoint_every_s: f64,
    /// All roles in one process, for debugging
    #[arg(long)]
    pub(crate) in_memory: bool,
}

#[derive(Args)]
pub(crate) struct Pooled {
    /// Session file; without it, the example that ships inside the binary
    pub(crate) session: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) overrides: Overrides,
    /// Only this party's columns
    #[arg(long, value_name = "I")]
    pub(crate) party: Option<u16>,
    /// Print one line of JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Inspect {
    /// The file, the files of one table, or a directory of them
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The label column
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Print one line of JSON instead of a table and a section
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct RunExperiment {
    /// Experiment files, or directories of them
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Where report.html, results.json and the finished runs go [default: runs/experiment-<name>]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Where the public data sets are, instead of the directory that the files name
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Only the first N seeds of each experiment
    #[arg(long, value_name = "N")]
    pub(crate) seeds: Option<usize>,
    /// Only the experiment of this name
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Option<String>,
    /// Say which experiments there are, and run nothing
    #[arg(long)]
    pub(crate) list: bool,
    /// Forget finished runs and repeat them
    #[arg(long)]
    pub(crate) fresh: bool,
}

#[derive(Args)]
pub(crate) struct RunRole {
    /// This role's own configuration: certificate, addresses, directory, for a party its file
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// What to do; all roles must be started with the same
    #[arg(long, value_enum, default_value = "train")]
    pub(crate) task: TaskName,
    /// Party: read this file, or directory of files, instead of what is in the configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
    /// Label holder: write scores here [default: predictions.csv in its directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) scores: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum TaskName {
    Train,
    Evaluate,
    Predict,
}

impl From<TaskName> for Task {
    fn from(task: TaskName) -> Self {
        match task {
            TaskName::Train => Self::Train,
            TaskName::Evaluate => Self::Evaluate,
            TaskName::Predict => Self::Predict,
        }
    }
}

#[derive(Args)]
pub(crate) struct Again {
    /// Run directory of `spnn simulate`
    pub(crate) run_dir: PathBuf,
    /// One file, or directory of files, for each party, in order, or one for all; without it, what the session was
    /// trained on
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// Where the label holder writes scores [default: predictions.csv in its directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) scores: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Pki {
    /// Make an authority: ca.pem to hand out, ca.key to keep
    #[command(after_help = "Example: spnn pki init --dir pki --name \"Three hospitals\"")]
    Init {
        /// Where
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// Name of the authority
        #[arg(long, default_value = "SPNN authority")]
        name: String,
        /// Validity
        #[arg(long, default_value_t = 3650, allow_negative_numbers = true)]
        days: i64,
    },
    /// At a party: make a key that never leaves, and a request to send to the authority
    #[command(after_help = "Example: spnn pki request --role party-0 --org Bank --out bank")]
    Request {
        /// coordinator, server or party-N
        #[arg(long)]
        role: Role,
        /// Organisation, for people
        #[arg(long, default_value = "")]
        org: String,
        /// Where
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// At the authority: make a certificate, from a request or with a new key
    #[command(after_help = "Examples:\n  spnn pki issue --role party-0 --request bank/party-0.csr\n  \
        spnn pki issue --role server --out server")]
    Issue {
        /// coordinator, server or party-N
        #[arg(long)]
        role: Role,
        /// Directory of the authority
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// Sign this request; the certificate is written beside it
        #[arg(long, conflicts_with = "out")]
        request: Option<PathBuf>,
        /// Without a request: where to put the new key and certificate
        #[arg(long, default_value = ".")]
        out: PathBuf,
        /// Organisation, for people; a request brings its own
        #[arg(long, default_value = "")]
        org: String,
        /// Validity
        #[arg(long, default_value_t = 365, allow_negative_numbers = true)]
        days: i64,
    },
    /// At the authority: put a certificate on the revocation list, crl.pem
    #[command(after_help = "Example: spnn pki revoke --dir pki bank/party-0.pem")]
    Revoke {
        /// Directory of the authority
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// The certificate
        certificate: PathBuf,
    },
    /// Print role and fingerprint of a certificate; parties tell each other theirs by another way than this network
    #[command(after_help = "Example: spnn pki show bank/party-0.pem")]
    Show {
        /// The certificate
        certificate: PathBuf,
    },
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command {
        Command::Simulate(args) => simulate::run(&args, &cli.log),
        Command::Pooled(args) => compare::run(&args),
        Command::Experiment(args) => experiment::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Coordinator(args) => role::coordinator(&args),
        Command::Server(args) => role::server(&args),
        Command::Party(args) => role::party(&args),
        Command::Pki(command) => pki::run(command),
        Command::Evaluate(args) => simulate::again(&args, Task::Evaluate, &cli.log),
        Command::Predict(args) => simulate::again(&args, Task::Predict, &cli.log),
    }
}
