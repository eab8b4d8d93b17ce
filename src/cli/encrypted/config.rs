//! A server's or a client's own configuration file.

use super::super::config::{here, identity, peer_timeout_default, seconds};
use super::CliError;
use serde::{Deserialize, Serialize};
use spnn::protocol::message::Packing;
use spnn::protocol::transport::{QuicOptions, TransportTuning};
use spnn::protocol::{Fingerprint, Identity, Role};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Paths are relative to the configuration file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    /// This role's certificate; it says which role this is.
    pub(super) certificate: PathBuf,
    /// Its private key, readable by its owner only.
    pub(super) key: PathBuf,
    /// The passphrase of an encrypted key, as the first line of a file that only its owner can read.
    pub(super) passphrase_file: Option<PathBuf>,
    /// Certificate of the authority.
    pub(super) authority: PathBuf,
    /// The authority's revocation list.
    pub(super) revoked: Option<PathBuf>,
    /// Where this role keeps its results.
    #[serde(default = "here")]
    pub(super) directory: PathBuf,
    /// Server: the network.
    pub(super) network: Option<PathBuf>,
    /// Server: how samples lie in ciphertexts, "sample-per-slot" for many at once or "one-sample" for one answer soon.
    #[serde(default = "packing_default")]
    pub(super) packing: Packing,
    /// Server: address to listen on.
    pub(super) listen: Option<SocketAddr>,
    /// Server: the parties that may ask.
    #[serde(default)]
    pub(super) clients: Vec<Role>,
    /// Server: so many clients are answered at a time, with up to two batches in memory each; others wait.
    #[serde(default = "clients_max_default")]
    pub(super) clients_max: usize,
    /// Client: where the server is.
    pub(super) server: Option<String>,
    /// Fingerprints of the peers' certificates, where they are to be pinned.
    #[serde(default)]
    pub(super) peers: BTreeMap<Role, Fingerprint>,
    /// How long a peer may take to send what is due.
    #[serde(default = "peer_timeout_default")]
    pub(super) peer_timeout_s: f64,
    /// Threads for encryption and evaluation; as many as the machine has by default.
    pub(super) threads: Option<usize>,
    /// Use of the network.
    #[serde(default)]
    pub(super) transport: TransportTuning,
}

fn packing_default() -> Packing {
    Packing::SamplePerSlot
}

fn clients_max_default() -> usize {
    4
}

impl Config {
    /// Reads a configuration file; its paths become relative to where this process is.
    pub(super) fn read(file: &Path) -> Result<Self, CliError> {
        let wrong = |reason: String| CliError::Config { file: file.to_owned(), reason };
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        let base = file.parent().unwrap_or(Path::new("."));
        let paths = [&mut config.certificate, &mut config.key, &mut config.authority, &mut config.directory];
        let optional = [&mut config.passphrase_file, &mut config.revoked, &mut config.network];
        for path in paths.into_iter().chain(optional.into_iter().flatten()) {
            *path = base.join(&*path);
        }
        if config.clients_max == 0 || config.threads == Some(0) {
            return Err(wrong("clients_max and threads must be at least 1".into()));
        }
        Ok(config)
    }

    /// The certificate of a role that `fits`, and how it takes part in the network.
    pub(super) fn role(&self, command: &str, fits: impl Fn(Role) -> bool) -> Result<(Identity, QuicOptions), CliError> {
        let Self { certificate, key, authority, revoked, passphrase_file, .. } = self;
        let identity = identity(certificate, key, authority, revoked.as_deref(), passphrase_file.as_deref())?;
        let role = identity.role();
        if !fits(role) {
            let reason = format!("this certificate is that of {role}; 'spnn encrypted {command}' needs another");
            return Err(CliError::Config { file: certificate.clone(), reason });
        }
        let options = QuicOptions {
            listen: None,
            dial: BTreeMap::new(),
            expect: Vec::new(),
            pins: self.peers.clone(),
            peer_timeout: seconds(self.peer_timeout_s),
            tuning: self.transport,
        };
        Ok((identity, options))
    }

    /// A value that this role cannot do without.
    pub(super) fn need<T>(&self, file: &Path, value: Option<T>, name: &str) -> Result<T, CliError> {
        let reason = format!("this role needs '{name}'");
        value.ok_or_else(|| CliError::Config { file: file.to_owned(), reason })
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}
