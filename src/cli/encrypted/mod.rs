//! `spnn encrypted`: networks that answer encrypted queries.

mod config;
mod network;
mod query;
mod serve;
mod simulate;

use super::CliError;
use clap::{Args, Subcommand};
use spnn::encrypted::{CsvLayout, DataError, Input, Rows, read_csv, read_idx};
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(crate) enum Encrypted {
    /// Train a network for encrypted queries in the clear, or import trained weights
    #[command(
        long_about = "Train a network for encrypted queries in the clear, or import trained weights.\n\n\
        The recipe names data, layers (linear, conv2d, and square as the only activation) and how to train; weights are then \
        rounded to fixed point. The result is one file, which says what is known about its error when it is evaluated on \
        ciphertexts; a network that does not fit the encryption is refused with the reason. examples/digits and \
        examples/mnist hold commented recipes, docs/encrypted.md says more.",
        after_help = "Examples:\n  spnn encrypted train examples/digits/train.toml --out digits.safetensors\n  \
        spnn encrypted train examples/mnist/train.toml --data mnist/ --out mnist.safetensors\n  \
        spnn encrypted train recipe.toml --import state_dict.safetensors --out network.safetensors"
    )]
    Train(Train),
    /// Say what is in a network's file, and how it would be evaluated
    #[command(after_help = "Example: spnn encrypted show digits.safetensors")]
    Show {
        /// The network
        network: PathBuf,
    },
    /// Be the server: evaluate a network on ciphertexts of clients that the configuration names
    #[command(
        long_about = "Be the server: evaluate a network on ciphertexts of clients that the configuration names.\n\n\
        The server has no key: it learns how many samples are asked about, and nothing of what is in them or in the answers. \
        Clients learn the answers; because the error of a ciphertext depends on what it went through, possibly more of the \
        weights than the answers say. Clients are parties with certificates of the same authority. docs/encrypted.md says more.",
        after_help = "Example: spnn encrypted serve --config server.toml"
    )]
    Serve(WithConfig),
    /// Be a client: ask a server about samples that it cannot see
    #[command(after_help = "Examples:\n  \
        spnn encrypted query --config party.toml --data samples.csv --id id --scores scores.csv\n  \
        spnn encrypted query --config party.toml --data t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz")]
    Query(Query),
    /// Run server and client as processes on this machine, over real QUIC with throw-away certificates
    #[command(
        after_help = "Examples:\n  spnn encrypted simulate        (the network and digits that ship inside the binary)\n  \
        spnn encrypted simulate --one-sample\n  spnn encrypted simulate mnist.safetensors --data t10k-images-idx3-ubyte.gz --labels t10k-labels-idx1-ubyte.gz"
    )]
    Simulate(Simulate),
}

#[derive(Args)]
pub(crate) struct Train {
    /// The recipe
    recipe: PathBuf,
    /// Where the network goes
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where the recipe's data files are, instead of beside it
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Train nothing: take weights from this safetensors file, named as PyTorch's nn.Sequential names them
    #[arg(long, value_name = "FILE")]
    import: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct WithConfig {
    /// This role's own configuration
    #[arg(long)]
    config: PathBuf,
}

/// What else there is to know of a client's samples.
#[derive(Args, Clone, Default)]
pub(crate) struct Samples {
    /// Labels of images in idx format, to say how good the answers are
    #[arg(long, value_name = "FILE", conflicts_with = "label")]
    labels: Option<PathBuf>,
    /// Column of the labels, to say how good the answers are
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    /// Column of the ids; without it, samples are numbered from 0
    #[arg(long, value_name = "NAME")]
    id: Option<String>,
    /// Compare the answers with those of this network in the clear, for whoever has it
    #[arg(long, value_name = "NETWORK")]
    compare: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Query {
    #[command(flatten)]
    of: WithConfig,
    /// The samples: CSV with the network's columns, or images in MNIST's idx format; either may be under gzip
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    samples: Samples,
    /// Where the answers go [default: scores.csv in the role's directory]
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Simulate {
    /// The network; without it, the one that ships inside the binary, with its digits
    #[arg(requires = "data")]
    network: Option<PathBuf>,
    /// The samples: CSV with the network's columns, or images in MNIST's idx format; either may be under gzip
    #[arg(long, value_name = "FILE", requires = "network")]
    data: Option<PathBuf>,
    #[command(flatten)]
    samples: Samples,
    /// One sample at a time over the slots of a few ciphertexts, for an answer soon, instead of thousands at once
    #[arg(long)]
    one_sample: bool,
    /// Where everything goes [default: runs/encrypted-<time>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
}

impl Samples {
    /// Reads what a network with this input wants.
    fn read(&self, data: &Path, input: &Input) -> Result<Rows, DataError> {
        if input.image.is_some() && is_idx(data) {
            return read_idx(data, self.labels.as_deref());
        }
        let (id, label) = (self.id.as_deref(), self.label.as_deref());
        read_csv(data, CsvLayout { id, label, features: &input.columns })
    }

    fn has_labels(&self) -> bool {
        self.labels.is_some() || self.label.is_some()
    }
}

/// By the name that such files have.
fn is_idx(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.contains("idx")
}

pub(crate) fn run(command: &Encrypted, log: &str) -> Result<(), CliError> {
    match command {
        Encrypted::Train(args) => network::train(args),
        Encrypted::Show { network } => network::show(network),
        Encrypted::Serve(args) => serve::run(&args.config),
        Encrypted::Query(args) => query::run(args),
        Encrypted::Simulate(args) => simulate::run(args, log),
    }
}
