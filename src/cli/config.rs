//! A role's own configuration file: certificate, addresses, directory; for a party its data.

use super::{CliError, RunRole};
use serde::{Deserialize, Serialize};
use spnn::party::data::DataSource;
use spnn::protocol::transport::{QuicOptions, TransportTuning};
use spnn::protocol::{Fingerprint, Identity, JoinOptions, Role, SessionConfig, SessionFile, Stop};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Paths are relative to the configuration file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoleConfig {
    /// The session file; all roles must have the same.
    pub(crate) session: PathBuf,
    /// This role's certificate; it says which role this is.
    pub(crate) certificate: PathBuf,
    /// Its private key, readable by its owner only.
    pub(crate) key: PathBuf,
    /// Certificate of the authority.
    pub(crate) authority: PathBuf,
    /// The authority's revocation list: peers whose certificates are on it are refused.
    pub(crate) revoked: Option<PathBuf>,
    /// Where this role keeps its incarnation, its checkpoints, its model part and its results.
    #[serde(default = "here")]
    pub(crate) directory: PathBuf,
    /// Coordinator, server: address to listen on.
    pub(crate) listen: Option<SocketAddr>,
    /// Server, parties: where the coordinator is.
    pub(crate) coordinator: Option<String>,
    /// Parties: where the server is.
    pub(crate) server: Option<String>,
    /// Coordinator: where the report goes; its directory by default.
    pub(crate) report: Option<PathBuf>,
    /// Run a first layer that protects nothing if the session says so.
    #[serde(default)]
    pub(crate) allow_unprotected: bool,
    /// How long all roles may take to come together.
    #[serde(default = "join_timeout_default")]
    pub(crate) join_timeout_s: f64,
    /// How long a peer may take to answer once the session runs.
    #[serde(default = "peer_timeout_default")]
    pub(crate) peer_timeout_s: f64,
    /// How long all roles may take to come together again when one is gone; 0 to end at once. A role that is started
    /// again goes on from its last checkpoint.
    #[serde(default = "rejoin_timeout_default")]
    pub(crate) rejoin_timeout_s: f64,
    /// Server: how often everyone makes a checkpoint; 0 for after every second mini-batch.
    #[serde(default = "checkpoint_every_default")]
    pub(crate) checkpoint_every_s: f64,
    /// Parties: fingerprints of the other parties' certificates.
    #[serde(default)]
    pub(crate) peers: BTreeMap<Role, Fingerprint>,
    /// Parties: other parties to dial, where they listen; the others are met through the coordinator's relay.
    #[serde(default)]
    pub(crate) dial: BTreeMap<Role, String>,
    /// Parties: other parties that dial this one, which then needs `listen`.
    #[serde(default)]
    pub(crate) accept: Vec<Role>,
    /// Parties: the file and its columns.
    pub(crate) data: Option<DataSource>,
    /// Use of the network.
    #[serde(default)]
    pub(crate) transport: TransportTuning,
}

fn here() -> PathBuf {
    PathBuf::from(".")
}

fn join_timeout_default() -> f64 {
    300.0
}

fn peer_timeout_default() -> f64 {
    60.0
}

fn rejoin_timeout_default() -> f64 {
    300.0
}

fn checkpoint_every_default() -> f64 {
    10.0
}

/// A role's configuration, read and checked.
pub(crate) struct Loaded {
    pub(crate) file: PathBuf,
    pub(crate) config: RoleConfig,
    pub(crate) session: SessionConfig,
    pub(crate) identity: Identity,
    pub(crate) join: JoinOptions,
}

impl Loaded {
    /// Reads configuration, session and certificate of a role that `fits`.
    pub(crate) fn read(args: &RunRole, kind: &str, fits: impl Fn(Role) -> bool) -> Result<Self, CliError> {
        let file = args.config.clone();
        let text = std::fs::read_to_string(&file)
            .map_err(|e| CliError::Config { file: file.clone(), reason: e.to_string() })?;
        let mut config: RoleConfig = toml::from_str(&text)
            .map_err(|e| CliError::Config { file: file.clone(), reason: e.to_string().trim_end().to_owned() })?;
        config.resolve(file.parent().unwrap_or(Path::new(".")));
        let session = SessionFile::read(&config.session)?.config()?;
        let identity = Identity::load(&config.certificate, &config.key, &config.authority)
            .and_then(|identity| match &config.revoked {
                Some(revoked) => identity.refusing(revoked),
                None => Ok(identity),
            })
            .map_err(|source| CliError::Protocol { me: Role::Coordinator, source })?;
        let role = identity.role();
        if !fits(role) {
            let reason = format!("this certificate is that of {role}; 'spnn {kind}' needs one for {kind}");
            return Err(CliError::Config { file: config.certificate, reason });
        }
        if !session.roles().any(|r| r == role) {
            let reason = format!("{role} does not take part in this session of {} parties", session.parties);
            return Err(CliError::Config { file: config.session, reason });
        }
        let join = JoinOptions {
            task: args.task.into(),
            directory: config.directory.clone(),
            join_timeout: seconds(config.join_timeout_s),
            peer_timeout: seconds(config.peer_timeout_s),
            rejoin_timeout: seconds(config.rejoin_timeout_s),
            checkpoint_every: seconds(config.checkpoint_every_s),
            stop: Stop::default(),
            allow_unprotected: config.allow_unprotected,
        };
        Ok(Self { file, config, session, identity, join })
    }

    /// A value that this role cannot do without.
    pub(crate) fn need<T>(&self, value: Option<T>, name: &str) -> Result<T, CliError> {
        let reason = || format!("{} needs '{name}'", self.identity.role());
        value.ok_or_else(|| CliError::Config { file: self.file.clone(), reason: reason() })
    }

    /// How this role takes part in the network.
    pub(crate) fn quic(&self) -> Result<QuicOptions, CliError> {
        let RoleConfig { listen, coordinator, server, peers, dial, accept, transport, .. } = &self.config;
        let mut options = QuicOptions {
            listen: None,
            dial: BTreeMap::new(),
            expect: Vec::new(),
            pins: BTreeMap::new(),
            peer_timeout: self.join.peer_timeout,
            tuning: *transport,
        };
        let me = self.identity.role();
        if me != Role::Coordinator {
            options.dial.insert(Role::Coordinator, self.need(coordinator.clone(), "coordinator")?);
        }
        match me {
            Role::Coordinator | Role::Server => {
                options.listen = Some(self.need(*listen, "listen")?);
                options.expect = self.session.party_roles().collect();
                if me == Role::Coordinator {
                    options.expect.push(Role::Server);
                }
            }
            Role::Party(_) => {
                options.dial.insert(Role::Server, self.need(server.clone(), "server")?);
                options.pins = peers.clone();
                options.dial.extend(dial.iter().map(|(peer, address)| (*peer, address.clone())));
                if !accept.is_empty() {
                    options.listen = Some(self.need(*listen, "listen (because of accept)")?);
                    options.expect.clone_from(accept);
                }
                for peer in self.session.party_roles().filter(|&p| p != me) {
                    self.need(options.pins.get(&peer).copied(), &format!("peers.{peer}"))?;
                }
            }
        }
        Ok(options)
    }
}

impl RoleConfig {
    fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.session, &mut self.certificate, &mut self.key, &mut self.authority, &mut self.directory];
        paths.into_iter().for_each(|p| *p = base.join(&*p));
        for path in [&mut self.report, &mut self.revoked].into_iter().flatten() {
            *path = base.join(&*path);
        }
        if let Some(data) = &mut self.data {
            data.file.put_below(base);
        }
    }
}

pub(super) fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::from_secs(60))
}
