//! The command line: what it takes, and what it runs.

mod audit;
mod compare;
mod config;
mod contract;
mod encrypted;
mod error;
mod experiment;
mod health;
mod inspect;
mod launch;
mod passphrase;
mod pki;
mod progress;
mod role;
mod serve;
mod simulate;

pub(crate) use error::CliError;

use clap::{Args, Parser, Subcommand, ValueEnum};
use spnn::protocol::contract::{Expiry, Leak};
use spnn::protocol::{FirstLayerKind, Role, RoleError, Task};
use std::net::SocketAddr;
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
    /// Find the rows that all parties have, by private set intersection of their ids
    #[command(
        long_about = "Find the rows that all parties have, by private set intersection of their ids.\n\n\
        At any role, the same as its own subcommand with --task align. The session's [alignment] section says how ids \
        are made comparable. Each party writes the common ids to common_ids.csv in its directory and keeps their \
        order, from which training then begins at once. Training aligns by itself where that was not done. A party \
        learns which of its ids all others have, and how many ids each has; coordinator and server learn the number \
        of common rows. docs/alignment.md says more.",
        after_help = "Example: spnn align --config party.toml"
    )]
    Align {
        /// This role's own configuration
        #[arg(long)]
        config: PathBuf,
    },
    /// Serve predictions: the label holder answers questions over HTTP, until the roles are stopped
    #[command(
        long_about = "Serve predictions: the label holder answers questions over HTTP, until the roles are stopped.\n\n\
        At any role, the same as its own subcommand with --task serve. The label holder's configuration has a [service] \
        section with the address to listen on; POST /v1/scores takes ids as JSON, CSV or Parquet, GET /v1/openapi.json \
        says how. Scores appear there only. The other parties learn which common records were asked for, the server how \
        many at a time. When a role is gone, requests are refused until it is back. docs/serve.md says more.\n\n\
        With the run directory of a simulation instead of a configuration, all roles are started here.",
        after_help = "Examples:\n  spnn serve --config party.toml\n  spnn serve --config party.toml --data customers.parquet\n  \
        spnn serve runs/breast-cancer-…\n  \
        curl -H 'Content-Type: application/json' -d '{\"ids\": [\"842302\"]}' http://127.0.0.1:8080/v1/scores"
    )]
    Serve(Serve),
    /// Networks that answer encrypted queries: train, serve, ask
    #[command(subcommand)]
    Encrypted(encrypted::Encrypted),
    /// Ask a role that runs on this machine whether it works; exit with 0 if so, with 1 if it waits or is not there
    #[command(
        after_help = "Example: spnn health --config party.toml        (which has to say monitor = \"127.0.0.1:9100\")"
    )]
    Health {
        /// The configuration that the role was started with
        #[arg(long)]
        config: PathBuf,
    },
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
    /// Write down, sign and check what the organisations of a session have agreed on
    #[command(subcommand)]
    Contract(Contract),
    /// Check, show and export what roles wrote down of their sessions
    #[command(subcommand)]
    Audit(AuditCommand),
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
    /// Align the rows of all parties if the session says so, and train
    Train,
    /// Metrics on rows with labels
    Evaluate,
    /// Scores of rows
    Predict,
    /// Nothing but align the rows: each party writes the ids that all have
    Align,
    /// Scores of whichever rows the label holder is asked for over HTTP
    Serve,
}

impl From<TaskName> for Task {
    fn from(task: TaskName) -> Self {
        match task {
            TaskName::Train => Self::Train,
            TaskName::Evaluate => Self::Evaluate,
            TaskName::Predict => Self::Predict,
            TaskName::Align => Self::Align,
            TaskName::Serve => Self::Serve,
        }
    }
}

#[derive(Args)]
pub(crate) struct Serve {
    /// Run directory of `spnn simulate`
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    pub(crate) run_dir: Option<PathBuf>,
    /// This role's own configuration
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Rows to be scored, instead of those of training: at a role, its file; of a simulation, one file for each party
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// Of a simulation: address of the HTTP API
    #[arg(long, default_value = "127.0.0.1:8080", conflicts_with = "config")]
    pub(crate) listen: SocketAddr,
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
        #[command(flatten)]
        encryption: Encryption,
    },
    /// At a party: make a key that never leaves, and a request to send to the authority
    #[command(after_help = "Examples:\n  spnn pki request --role party-0 --org Bank --out bank\n  \
        spnn pki request --role party-0 --org Bank --out bank --encrypt")]
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
        #[command(flatten)]
        encryption: Encryption,
    },
    /// At a party: make a request for a certificate that follows one with the same key; pinned fingerprints stay
    #[command(after_help = "Example: spnn pki renew bank/party-0.pem        (then, at the authority:\n  \
        spnn pki issue --role party-0 --request bank/party-0.csr)")]
    Renew {
        /// The certificate that expires or has expired
        certificate: PathBuf,
        /// Its private key [default: beside the certificate]
        #[arg(long)]
        key: Option<PathBuf>,
        /// The passphrase of the key, if it has one [default: $SPNN_PASSPHRASE, or the terminal]
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Encrypt a private key, change its passphrase, or remove it
    #[command(after_help = "Examples:\n  spnn pki passphrase bank/party-0.key\n  \
        spnn pki passphrase bank/party-0.key --old today --new tomorrow\n  \
        spnn pki passphrase bank/party-0.key --remove")]
    Passphrase {
        /// The private key
        key: PathBuf,
        /// File with the passphrase it has [default: $SPNN_PASSPHRASE, or the terminal]
        #[arg(long, value_name = "FILE")]
        old: Option<PathBuf>,
        /// File with the passphrase it gets [default: the terminal]
        #[arg(long, value_name = "FILE")]
        new: Option<PathBuf>,
        /// Leave the key in the clear
        #[arg(long, conflicts_with = "new")]
        remove: bool,
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
        #[command(flatten)]
        encryption: Encryption,
        /// The passphrase of the authority's key, if it has one [default: $SPNN_PASSPHRASE, or the terminal]
        #[arg(long, value_name = "FILE")]
        authority_passphrase_file: Option<PathBuf>,
    },
    /// At the authority: put a certificate on the revocation list, crl.pem
    #[command(after_help = "Example: spnn pki revoke --dir pki bank/party-0.pem")]
    Revoke {
        /// Directory of the authority
        #[arg(long, default_value = "pki")]
        dir: PathBuf,
        /// The certificate
        certificate: PathBuf,
        /// The passphrase of the authority's key, if it has one [default: $SPNN_PASSPHRASE, or the terminal]
        #[arg(long, value_name = "FILE")]
        authority_passphrase_file: Option<PathBuf>,
    },
    /// Print role and fingerprint of a certificate; parties tell each other theirs by another way than this network
    #[command(after_help = "Example: spnn pki show bank/party-0.pem")]
    Show {
        /// The certificate
        certificate: PathBuf,
    },
}

/// How a key that is made is kept.
#[derive(Args)]
pub(crate) struct Encryption {
    /// Encrypt the new key; its passphrase is asked for at the terminal
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Encrypt the new key under the first line of a file that only you can read
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum Contract {
    /// Make a contract from a session file and the certificates of its roles
    #[command(
        long_about = "Make a contract from a session file and the certificates of its roles.\n\n\
        The contract is the session file with a section [contract]. What is not given here is left in it as a comment \
        to fill in. A first layer does not prevent everything: each of its leaks has a name, and the contract is valid \
        only when all of them are accepted, here or in the file.",
        after_help = "Example: spnn contract new session.toml --purpose \"Triage of mammographies\" --expires 2027-06-30 \
        --certificate operator/coordinator.pem --certificate operator/server.pem --certificate clinic/party-0.pem \
        --certificate laboratory/party-1.pem --columns party-0=radius,texture --columns party-1=area"
    )]
    New(NewContract),
    /// Show a contract in words and sign it with the key of a role's certificate
    #[command(after_help = "Examples:\n  spnn contract sign --config party.toml\n  spnn contract sign contract.toml \
        --certificate party-0.pem --key party-0.key --authority ca.pem")]
    Sign(SignContract),
    /// Check that every role has signed and that the contract is in force
    #[command(after_help = "Example: spnn contract verify contract.toml --authority ca.pem\n\n\
        Exit code 2 if a signature is missing or not good, or the contract is over")]
    Verify(VerifyContract),
    /// Say in words who agreed, what for, on which columns, what leaks, and until when
    #[command(after_help = "Example: spnn contract show contract.toml")]
    Show {
        /// The contract
        contract: PathBuf,
    },
}

#[derive(Args)]
pub(crate) struct NewContract {
    /// The session file; it stays as it is
    pub(crate) session: PathBuf,
    /// Where to write the contract
    #[arg(long, value_name = "FILE", default_value = "contract.toml")]
    pub(crate) out: PathBuf,
    /// What the model is for, in words
    #[arg(long)]
    pub(crate) purpose: Option<String>,
    /// The last day, or a moment such as 2027-06-30T18:00:00Z; UTC
    #[arg(long, value_name = "DATE")]
    pub(crate) expires: Option<Expiry>,
    /// Certificate of a role that signs; once for every role
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Vec<PathBuf>,
    /// Organisation of a role, instead of the one in its certificate
    #[arg(long, value_name = "ROLE=NAME", value_parser = role_and_text)]
    pub(crate) organisation: Vec<(Role, String)>,
    /// Feature columns of a party
    #[arg(long, value_name = "PARTY=A,B,…", value_parser = role_and_text)]
    pub(crate) columns: Vec<(Role, String)>,
    /// Label column at the label holder, instead of the session's
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// A leak to accept, by name; without it, the contract lists what is still to be accepted
    #[arg(long, value_name = "LEAK", value_parser = leak)]
    pub(crate) accept: Vec<Leak>,
    /// How often a record may be scored; any number of times if absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) predictions_per_record_max: Option<u32>,
}

#[derive(Args)]
pub(crate) struct SignContract {
    /// The contract; without it, the session of the configuration
    #[arg(required_unless_present = "config")]
    pub(crate) contract: Option<PathBuf>,
    /// The role's configuration, which names certificate, key and authority
    #[arg(long, conflicts_with_all = ["certificate", "key", "authority"])]
    pub(crate) config: Option<PathBuf>,
    /// The role's certificate
    #[arg(long, required_unless_present = "config")]
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key
    #[arg(long, required_unless_present = "config")]
    pub(crate) key: Option<PathBuf>,
    /// Certificate of the authority
    #[arg(long, required_unless_present = "config")]
    pub(crate) authority: Option<PathBuf>,
    /// Where to put the signature [default: 'signatures' beside the contract]
    #[arg(long, value_name = "DIR")]
    pub(crate) signatures: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct VerifyContract {
    /// The contract
    pub(crate) contract: PathBuf,
    /// Certificate of the authority
    #[arg(long)]
    pub(crate) authority: PathBuf,
    /// The authority's revocation list
    #[arg(long)]
    pub(crate) revoked: Option<PathBuf>,
    /// Where the signatures are [default: 'signatures' beside the contract]
    #[arg(long, value_name = "DIR")]
    pub(crate) signatures: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no line was altered and that heads are signed; of several roles, that what they say agrees
    #[command(after_help = "Examples:\n  spnn audit verify party-0/audit.jsonl --authority ca.pem\n  \
        spnn audit verify server/audit.jsonl party-0/audit.jsonl party-1/audit.jsonl")]
    Verify {
        /// Logs, audit.jsonl in the directory of a role
        #[arg(required = true, value_name = "LOG")]
        logs: Vec<PathBuf>,
        /// Certificate of the authority; without it, a certificate in the log is believed to be the role's
        #[arg(long)]
        authority: Option<PathBuf>,
    },
    /// Say what happened, and how many bytes went to whom
    #[command(after_help = "Example: spnn audit show party-0/audit.jsonl")]
    Show {
        /// The log
        #[arg(value_name = "LOG")]
        file: PathBuf,
    },
    /// Print what was sent, received, opened and released, for other tools
    #[command(after_help = "Example: spnn audit export party-0/audit.jsonl --csv")]
    Export {
        /// The log
        #[arg(value_name = "LOG")]
        file: PathBuf,
        /// As a table
        #[arg(long, required_unless_present = "json", conflicts_with = "json")]
        csv: bool,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
}

fn role_and_text(text: &str) -> Result<(Role, String), String> {
    let (role, text) = text.split_once('=').ok_or("expected a role, '=' and a text")?;
    Ok((role.parse().map_err(|e: RoleError| e.to_string())?, text.to_owned()))
}

fn leak(name: &str) -> Result<Leak, String> {
    Leak::ALL.iter().copied().find(|leak| leak.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Leak::ALL.iter().map(|leak| leak.name()).collect();
        format!("no such leak; there are {}", names.join(", "))
    })
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
        Command::Align { config } => role::any(&RunRole { config, task: TaskName::Align, data: None, scores: None }),
        Command::Serve(args) => serve::run(&args, &cli.log),
        Command::Encrypted(command) => encrypted::run(&command, &cli.log),
        Command::Health { config } => health::run(&config),
        Command::Pki(command) => pki::run(command),
        Command::Contract(command) => contract::run(command),
        Command::Audit(command) => audit::run(command),
        Command::Evaluate(args) => simulate::again(&args, Task::Evaluate, &cli.log),
        Command::Predict(args) => simulate::again(&args, Task::Predict, &cli.log),
    }
}
