//! `spnn encrypted serve`.

use super::super::role::{asked_to_stop, network_runtime, refuse_core_dumps};
use super::CliError;
use super::config::Config;
use serde::{Deserialize, Serialize};
use spnn::encrypted::{Network, OneSampleServer, SamplesServer};
use spnn::protocol::inference::{Answered, Evaluator, Gate, answer};
use spnn::protocol::message::Packing;
use spnn::protocol::transport::{QuicOptions, QuicTransport};
use spnn::protocol::usage::{cpu_seconds, peak_rss_bytes};
use spnn::protocol::{Cause, Channel, Ending, Identity, ProtocolError, Role, write_durable};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::{info, warn};

/// What a server has done, in `report.json` in its directory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(super) struct ServerReport {
    /// Clients that were answered to the end.
    pub(super) clients: u64,
    /// Batches of all clients.
    pub(super) batches: u64,
    /// Samples in them.
    pub(super) samples: u64,
    /// Processor time of the process, reading and writing included.
    pub(super) cpu_seconds: f64,
    /// Largest resident set.
    pub(super) peak_rss_bytes: u64,
}

/// What all clients share.
struct Service<E> {
    evaluator: Arc<E>,
    gate: Gate,
    /// As many as are answered at a time.
    clients: Semaphore,
    report: Mutex<ServerReport>,
}

pub(super) fn run(file: &Path) -> Result<(), CliError> {
    let config = Config::read(file)?;
    let (identity, mut options) = config.role("serve", |role| role == Role::Server)?;
    options.listen = Some(config.need(file, config.listen, "listen")?);
    if config.clients.is_empty() {
        let reason = "this role needs 'clients', the parties that may ask, such as clients = [\"party-0\"]".into();
        return Err(CliError::Config { file: file.to_owned(), reason });
    }
    options.expect.clone_from(&config.clients);
    let network = Network::load(&config.need(file, config.network.clone(), "network")?)?;
    match config.packing {
        Packing::SamplePerSlot => serve(&config, identity, options, SamplesServer::new(&network, config.threads())?),
        Packing::OneSample => serve(&config, identity, options, OneSampleServer::new(&network)?),
    }
}

/// Answers clients until the process is asked to stop.
fn serve<E: Evaluator>(
    config: &Config,
    identity: Identity,
    options: QuicOptions,
    evaluator: E,
) -> Result<(), CliError> {
    refuse_core_dumps();
    let me = Role::Server;
    let shown = |source| CliError::Protocol { me, source };
    network_runtime()?.block_on(async {
        let mut transport = QuicTransport::new(identity, options).map_err(shown)?;
        let address = transport.local_address().map_err(shown)?;
        write_durable(&config.directory.join("address"), address.to_string().as_bytes()).map_err(shown)?;
        info!(%address, network = evaluator.terms().name, "encrypted queries are answered");
        let service = Arc::new(Service {
            evaluator: Arc::new(evaluator),
            gate: Gate::default(),
            clients: Semaphore::new(config.clients_max),
            report: Mutex::default(),
        });
        let stop = asked_to_stop();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                (peer, channel) = transport.next_arrival() => {
                    tokio::spawn(Arc::clone(&service).client(peer, channel));
                }
            }
        }
        info!("asked to stop");
        let counted = *service.report.lock().unwrap_or_else(PoisonError::into_inner);
        let report = ServerReport { cpu_seconds: cpu_seconds(), peak_rss_bytes: peak_rss_bytes(), ..counted };
        let text = serde_json::to_string_pretty(&report).unwrap_or_default();
        write_durable(&config.directory.join("report.json"), text.as_bytes()).map_err(shown)?;
        transport.end(Ending { cause: Cause::Stopped, culprit: me });
        transport.wait_closed(Duration::from_secs(2)).await;
        Ok(())
    })
}

impl<E: Evaluator> Service<E> {
    /// Answers one client. What it does wrong ends its connection and nothing else.
    async fn client(self: Arc<Self>, peer: Role, mut channel: Channel) {
        let Ok(_turn) = self.clients.acquire().await else { return };
        let mut before = Answered::default();
        let answered = answer(&mut channel, &self.evaluator, &self.gate, |answered| {
            let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
            report.batches += answered.batches - before.batches;
            report.samples += answered.samples - before.samples;
            before = answered;
        });
        let ending = match answered.await {
            Ok(Answered { batches, samples }) => {
                self.report.lock().unwrap_or_else(PoisonError::into_inner).clients += 1;
                info!(%peer, batches, samples, "answered");
                Ending { cause: Cause::Done, culprit: Role::Server }
            }
            Err(e) => {
                let e: ProtocolError = e;
                warn!(%peer, batches = before.batches, "ended: {e}");
                e.ending(Role::Server)
            }
        };
        channel.link().end(ending);
    }
}
