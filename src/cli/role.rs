//! One role as one process.

use super::config::{Loaded, RoleConfig, seconds};
use super::progress::Console;
use super::{CliError, RunRole};
use spnn::coordinator;
use spnn::monitor::{self, Watched};
use spnn::party::data::id_columns;
use spnn::party::serve::Questions;
use spnn::party::{Party, PartyOptions};
use spnn::protocol::transport::QuicTransport;
use spnn::protocol::{Cause, Ending, Passphrase, ProtocolError, Role, write_durable};
use spnn::server::Server;
use spnn::service::{self, Requests, Service};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// The coordinator.
pub(crate) fn coordinator(args: &RunRole) -> Result<(), CliError> {
    let loaded = Loaded::read(args, "coordinator", |r| r == Role::Coordinator)?;
    on_network(&loaded, None, async |transport| {
        let report = loaded.config.report.as_ref().unwrap_or(&loaded.config.directory);
        let mut console = Console::new(&loaded.session, loaded.join.task, report);
        let record = coordinator::run(transport, &loaded.session, &loaded.join, &mut console).await?;
        console.finish();
        if record.is_none() {
            console.line("this session was over before; the roles that came have been told");
        }
        Ok::<(), ProtocolError>(())
    })
}

/// The server.
pub(crate) fn server(args: &RunRole) -> Result<(), CliError> {
    let loaded = Loaded::read(args, "server", |r| r == Role::Server)?;
    let server = Server::of_session(&loaded.session, &loaded.join)?;
    on_network(&loaded, None, async |transport| server.run(transport).await)
}

/// A party.
pub(crate) fn party(args: &RunRole) -> Result<(), CliError> {
    let loaded = Loaded::read(args, "party-N", |r| matches!(r, Role::Party(_)))?;
    let mut data = loaded.need(loaded.config.data.clone(), "data")?;
    if let Some(file) = &args.data {
        data.file = file.clone().into();
    }
    let questions = match &loaded.config.service {
        Some(service) if loaded.serves_predictions() => Some(Questions::new(service.ids_waiting_max)),
        None if loaded.serves_predictions() => {
            let reason =
                "the label holder needs a [service] section to serve predictions, with the address to listen on";
            return Err(CliError::Config { file: loaded.file, reason: reason.into() });
        }
        _ => None,
    };
    let options =
        PartyOptions { scores: args.scores.clone(), questions, ..PartyOptions::new(loaded.join.clone(), data) };
    on_network(&loaded, options.questions.clone(), async |transport| {
        Party::run(transport, &loaded.session, &options).await.map(drop)
    })
}

/// Whichever role the certificate gives.
pub(crate) fn any(args: &RunRole) -> Result<(), CliError> {
    let role = RoleConfig::read(&args.config)?.identity()?.role();
    match role {
        Role::Coordinator => coordinator(args),
        Role::Server => server(args),
        Role::Party(_) => party(args),
    }
}

/// How an error of a role is told to its peers and to people.
trait RoleError {
    fn told(&self, me: Role) -> Ending;
    fn shown(self, me: Role) -> CliError;
}

impl RoleError for ProtocolError {
    fn told(&self, me: Role) -> Ending {
        self.ending(me)
    }

    fn shown(self, me: Role) -> CliError {
        CliError::Protocol { me, source: self }
    }
}

impl RoleError for spnn::party::PartyError {
    fn told(&self, me: Role) -> Ending {
        self.ending(me)
    }

    fn shown(self, me: Role) -> CliError {
        CliError::Party { me, source: self }
    }
}

/// Opens the role's network, runs the role, and tells the peers how it ended.
fn on_network<E: RoleError>(
    loaded: &Loaded,
    questions: Option<Questions>,
    role: impl AsyncFnOnce(&mut QuicTransport) -> Result<(), E>,
) -> Result<(), CliError> {
    let me = loaded.identity.role();
    refuse_core_dumps();
    let options = loaded.quic()?;
    network_runtime()?.block_on(async {
        let shown = |source| CliError::Protocol { me, source };
        let listens = options.listen.is_some();
        let mut transport = QuicTransport::new(loaded.identity.clone(), options).map_err(shown)?;
        if listens {
            // Where to find this role, for scripts that let the system choose a port.
            let address = transport.local_address().map_err(shown)?;
            write_durable(&loaded.config.directory.join("address"), address.to_string().as_bytes()).map_err(shown)?;
        }
        let stop = loaded.join.stop.clone();
        let signals = tokio::spawn(async move {
            asked_to_stop().await;
            tracing::info!("asked to stop: finishing the batch");
            stop.request();
        });
        let certificate = transport.certificate();
        let (monitor, expires) = (loaded.join.monitor.clone(), certificate.clone());
        let certificate_expires = Arc::new(move || expires.expires());
        let requests = questions.clone().map(Requests::new);
        let watched = Watched { role: me, monitor, certificate_expires, requests };
        if let Some(address) = loaded.config.monitor {
            let (listener, address) = listen(address).await.map_err(shown)?;
            tracing::info!(%address, "health and metrics are served");
            tokio::spawn(monitor::serve(listener, watched.clone()));
        }
        if let (Some(questions), Some(config), Some(data)) = (questions, &loaded.config.service, &loaded.config.data) {
            let token = config.token_file.as_deref().map(Passphrase::read).transpose().map_err(shown)?;
            let (listener, address) = listen(config.listen).await.map_err(shown)?;
            tracing::info!(%address, "predictions are served at /v1/scores");
            write_durable(&loaded.config.directory.join("service"), address.to_string().as_bytes()).map_err(shown)?;
            let service = Service {
                questions,
                id: id_columns(data),
                model: loaded.session.digest_text(),
                deadline: seconds(config.deadline_s),
                ids_per_request_max: config.ids_per_request_max as usize,
                token: token.map(|token| token.sha256()),
                watched,
            };
            tokio::spawn(service::serve(listener, service));
        }
        let hang_ups = tokio::spawn(async move { asked_to_reload(|| certificate.reload()).await });
        let result = role(&mut transport).await;
        signals.abort();
        hang_ups.abort();
        let ending = match &result {
            Ok(()) => Ending { cause: Cause::Done, culprit: me },
            Err(e) => e.told(me),
        };
        transport.end(ending);
        transport.wait_closed(Duration::from_secs(2)).await;
        result.map_err(|e| e.shown(me))
    })
}

/// The role computes on this thread; the network has one of its own, so that long batches do not starve it.
pub(super) fn network_runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|source| CliError::File { file: "tokio".into(), source })
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), ProtocolError> {
    let unusable = |e: std::io::Error| ProtocolError::Listen { address: address.to_string(), reason: e.to_string() };
    let listener = TcpListener::bind(address).await.map_err(unusable)?;
    let address = listener.local_addr().map_err(unusable)?;
    Ok((listener, address))
}

/// Ends when the process gets SIGTERM, as from a service manager, or SIGINT, as from a terminal.
pub(super) async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Does so whenever the process gets SIGHUP, as from a service manager that reloads it.
async fn asked_to_reload(mut reload: impl FnMut()) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else { return };
    while hang_up.recv().await.is_some() {
        tracing::info!("asked to read certificate, key, authority and revocation list anew");
        reload();
    }
}

/// A core file would hold keys, masks and data.
pub(super) fn refuse_core_dumps() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, setrlimit};
        if let Err(e) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
            tracing::warn!("core dumps could not be turned off: {e}");
        }
    }
}
