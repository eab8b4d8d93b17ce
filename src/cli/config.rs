//! A role's own configuration file: certificate, addresses, directory; for a party its data.

use super::{CliError, RunRole, passphrase};
use serde::{Deserialize, Serialize};
use spnn::party::data::DataSource;
use spnn::protocol::audit::{Audit, audit_file};
use spnn::protocol::contract::{ContractError, check_own_key, check_signed, signatures_beside};
use spnn::protocol::transport::{QuicOptions, TransportTuning};
use spnn::protocol::{
    Fingerprint, Identity, IdentityFiles, JoinOptions, Monitor, Role, SessionConfig, SessionFile, Stop, Task,
};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tracing::info;

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
    /// The passphrase of an encrypted key, as the first line of a file that only its owner can read. Without it the
    /// passphrase is that of the environment (SPNN_PASSPHRASE), or asked for if there is a terminal.
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Certificate of the authority.
    pub(crate) authority: PathBuf,
    /// The authority's revocation list: peers whose certificates are on it are refused.
    pub(crate) revoked: Option<PathBuf>,
    /// Refuse sessions that are no contract.
    #[serde(default)]
    pub(crate) require_contract: bool,
    /// Write down what this role sends, receives, opens and releases, in `audit.jsonl` in its directory. Under a contract
    /// all roles do.
    pub(crate) audit: Option<bool>,
    /// Where the signatures under the contract are; `signatures` beside the session file by default.
    pub(crate) signatures: Option<PathBuf>,
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
    /// Address to serve health and metrics on over HTTP (/healthz, /metrics), such as 127.0.0.1:9100; none by default.
    pub(crate) monitor: Option<SocketAddr>,
    /// Label holder: where predictions are served.
    pub(crate) service: Option<ServiceConfig>,
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
    /// Parties: fingerprints of the other parties' certificates. Under a contract, its signatories' keys are pinned.
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

/// The section `[service]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceConfig {
    /// Address of the HTTP API, such as 127.0.0.1:8080.
    pub(crate) listen: SocketAddr,
    /// Clients have to show the first line of this file, which only its owner can read. Without it, only this machine
    /// may ask.
    pub(crate) token_file: Option<PathBuf>,
    /// A request waits at most this long for its answer.
    #[serde(default = "deadline_default")]
    pub(crate) deadline_s: f64,
    /// So many ids may wait for their scores; requests beyond are told to come again.
    #[serde(default = "ids_waiting_max_default")]
    pub(crate) ids_waiting_max: u32,
    /// Most ids of a request.
    #[serde(default = "ids_per_request_max_default")]
    pub(crate) ids_per_request_max: u32,
}

impl ServiceConfig {
    /// A service with nothing but an address.
    pub(crate) fn at(listen: SocketAddr) -> Self {
        Self {
            listen,
            token_file: None,
            deadline_s: deadline_default(),
            ids_waiting_max: ids_waiting_max_default(),
            ids_per_request_max: ids_per_request_max_default(),
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.listen.ip().is_loopback() && self.token_file.is_none() {
            return Err(format!(
                "service.listen = {}: others than this machine may ask there, so it needs a service.token_file",
                self.listen
            ));
        }
        let (most, waiting) = (self.ids_per_request_max, self.ids_waiting_max);
        if most == 0 || most > waiting {
            return Err(format!("service.ids_per_request_max = {most}: must be 1 to ids_waiting_max = {waiting}"));
        }
        if !(self.deadline_s > 0.0 && self.deadline_s <= 3600.0) {
            return Err(format!("service.deadline_s = {}: must be above 0 and at most 3600", self.deadline_s));
        }
        Ok(())
    }
}

fn deadline_default() -> f64 {
    10.0
}

fn ids_waiting_max_default() -> u32 {
    1_000_000
}

fn ids_per_request_max_default() -> u32 {
    100_000
}

pub(super) fn here() -> PathBuf {
    PathBuf::from(".")
}

fn join_timeout_default() -> f64 {
    300.0
}

pub(super) fn peer_timeout_default() -> f64 {
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
        let config = RoleConfig::read(&file)?;
        let session = SessionFile::read(&config.session)?.config()?;
        let identity = config.identity()?;
        let role = identity.role();
        if !fits(role) {
            let reason = format!("this certificate is that of {role}; 'spnn {kind}' needs one for {kind}");
            return Err(CliError::Config { file: config.certificate, reason });
        }
        if !session.roles().any(|r| r == role) {
            let reason = format!("{role} does not take part in this session of {} parties", session.parties);
            return Err(CliError::Config { file: config.session, reason });
        }
        config.check_contract(&session, &identity)?;
        let join = JoinOptions {
            task: args.task.into(),
            directory: config.directory.clone(),
            join_timeout: seconds(config.join_timeout_s),
            peer_timeout: seconds(config.peer_timeout_s),
            rejoin_timeout: seconds(config.rejoin_timeout_s),
            checkpoint_every: seconds(config.checkpoint_every_s),
            stop: Stop::default(),
            monitor: Monitor::default(),
            allow_unprotected: config.allow_unprotected,
            clock: SystemTime::now,
            audit: config.open_audit(&session, &identity)?,
        };
        Ok(Self { file, config, session, identity, join })
    }

    /// Whether this role is the one that is asked for predictions.
    pub(crate) fn serves_predictions(&self) -> bool {
        self.join.task == Task::Serve && self.identity.role() == self.session.label_role()
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
        match (&self.session.contract, me) {
            (Some(terms), _) => options.pins = terms.pins(me),
            (None, Role::Party(_)) => options.pins.clone_from(peers),
            (None, Role::Coordinator | Role::Server) => {}
        }
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
    /// Reads a configuration file; its paths become relative to where this process is.
    pub(crate) fn read(file: &Path) -> Result<Self, CliError> {
        let wrong = |reason: String| CliError::Config { file: file.to_owned(), reason };
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        let mut config: Self = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        config.resolve(file.parent().unwrap_or(Path::new(".")));
        config.service.as_ref().map_or(Ok(()), ServiceConfig::check).map_err(wrong)?;
        Ok(config)
    }

    /// The role's certificate, key and authority.
    pub(crate) fn identity(&self) -> Result<Identity, CliError> {
        let Self { certificate, key, authority, revoked, passphrase_file, .. } = self;
        identity(certificate, key, authority, revoked.as_deref(), passphrase_file.as_deref())
    }

    /// Where the signatures under the session's contract are.
    pub(crate) fn signatures(&self) -> PathBuf {
        self.signatures.clone().unwrap_or_else(|| signatures_beside(&self.session))
    }

    /// Refuses a contract that is over, that not every role has signed, or that names other keys than are used here.
    fn check_contract(&self, session: &SessionConfig, identity: &Identity) -> Result<(), CliError> {
        let wrong = |reason: String| CliError::Config { file: self.session.clone(), reason };
        let Some(terms) = &session.contract else {
            return match self.require_contract {
                true => {
                    Err(wrong("has no [contract], and this role's configuration says require_contract = true".into()))
                }
                false => Ok(()),
            };
        };
        let refused = |e: ContractError| CliError::Protocol { me: identity.role(), source: e.into() };
        let now = SystemTime::now();
        terms.check_in_force(now).map_err(refused)?;
        check_own_key(terms, identity).map_err(refused)?;
        for signed in check_signed(session, terms, &self.signatures(), identity.authority(), now) {
            signed.map_err(refused)?;
        }
        for (peer, pin) in &self.peers {
            let agreed = terms.signatory(*peer).map_or_else(|| "absent".into(), |s| s.key.to_string());
            if agreed != pin.to_string() {
                return Err(wrong(format!(
                    "peers.{peer} is {pin} in this role's configuration and {agreed} in the contract"
                )));
            }
        }
        info!(contract = session.name, expires = %terms.expires, "every role has signed the contract");
        Ok(())
    }

    fn open_audit(&self, session: &SessionConfig, identity: &Identity) -> Result<Option<Audit>, CliError> {
        let contract = session.contract.is_some();
        if contract && self.audit == Some(false) {
            let reason = "audit = false: under a contract every role keeps an audit log".to_owned();
            return Err(CliError::Config { file: self.session.clone(), reason });
        }
        if !self.audit.unwrap_or(contract) {
            return Ok(None);
        }
        Audit::open(&audit_file(&self.directory), Some(identity.clone()), SystemTime::now)
            .map(Some)
            .map_err(|source| CliError::Protocol { me: identity.role(), source })
    }

    fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.session, &mut self.certificate, &mut self.key, &mut self.authority, &mut self.directory];
        paths.into_iter().for_each(|p| *p = base.join(&*p));
        for path in
            [&mut self.report, &mut self.revoked, &mut self.passphrase_file, &mut self.signatures].into_iter().flatten()
        {
            *path = base.join(&*path);
        }
        if let Some(token) = self.service.as_mut().and_then(|service| service.token_file.as_mut()) {
            *token = base.join(&*token);
        }
        if let Some(data) = &mut self.data {
            data.file.put_below(base);
        }
    }
}

/// Certificate, key and authority from their files.
pub(super) fn identity(
    certificate: &Path,
    key: &Path,
    authority: &Path,
    revoked: Option<&Path>,
    passphrase_file: Option<&Path>,
) -> Result<Identity, CliError> {
    let files = IdentityFiles {
        revoked: revoked.map(Path::to_owned),
        passphrase: passphrase::source(key, passphrase_file)?,
        ..IdentityFiles::new(certificate, key, authority)
    };
    Identity::load(files).map_err(|source| CliError::Protocol { me: Role::Coordinator, source })
}

pub(super) fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::from_secs(60))
}
