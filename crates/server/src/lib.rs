//! The server of SPNN: it opens the first layer's sum and trains the hidden layers.
//!
//! It learns `H1 = Σ X_i·W_i` and the gradient of its last output; from the latter, the labels. It holds no ids and no
//! features, but `H1` is linear in the features: see `docs/security.md` for what can be rebuilt from it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod train;

use spnn_crypto::SecretRng;
use spnn_nn::{Model, Optimizer, Sequential};
use spnn_protocol::first_layer::{ServerSide, server_side};
use spnn_protocol::message::{Done, Finish, Report, Task};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    JoinOptions, Joined, Joining, Network, ProtocolError, Role, SavedModel, Schedule, SessionConfig, SessionError,
    Step, usage,
};
use std::time::Duration;
use tracing::info;

/// A server with the model it trains.
pub struct Server<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    model: Box<dyn Model>,
}

/// A server that has joined.
struct Running<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    model: Box<dyn Model>,
    optimizer: Optimizer,
    network: Network,
    schedule: Schedule,
    first_layer: Box<dyn ServerSide>,
}

impl<'a> Server<'a> {
    /// A server for the session, with a model of the caller's own: anything with [`Model`] whose input is
    /// `session.model.hidden_width` and whose output is what the label head of the session expects.
    #[must_use]
    pub fn new(session: &'a SessionConfig, options: &'a JoinOptions, model: Box<dyn Model>) -> Self {
        Self { session, options, model }
    }

    /// A server for the session, with the layers that the session file lists.
    ///
    /// # Errors
    /// [`SessionError::Model`] if the layers do not fit together.
    pub fn of_session(session: &'a SessionConfig, options: &'a JoinOptions) -> Result<Self, SessionError> {
        let width = session.model.hidden_width as usize;
        let model = Sequential::new(width, &session.model.server, session.seed)?;
        Ok(Self::new(session, options, Box::new(model)))
    }

    /// Does the whole session: join, work, save, wait for the end.
    ///
    /// # Errors
    /// [`ProtocolError`] naming the peer, step, expected and found; the caller tells the peers.
    pub async fn run(self, transport: &mut dyn Transport) -> Result<(), ProtocolError> {
        let mut running = self.join(transport).await?;
        let done = running.work().await;
        if let Err(e) = &done {
            running.network.end(e.ending(Role::Server));
        }
        done
    }

    async fn join(self, transport: &mut dyn Transport) -> Result<Running<'a>, ProtocolError> {
        let Self { session, options, mut model } = self;
        if options.task != Task::Train {
            let directory = &options.directory;
            SavedModel::<()>::load(directory, Role::Server, session)?.restore(directory, &mut model.parameters())?;
        }
        let Joined { mut network, incarnation, schedule, .. } =
            Joining::connect(transport, session, options).await?.join(None).await?;
        let first_layer = server_side(session, incarnation, &mut network).await?;
        let noise_seed = SecretRng::from_system()?.bytes32();
        Ok(Running {
            session,
            options,
            model,
            optimizer: Optimizer::new(&session.train.optimizer, noise_seed),
            network,
            schedule,
            first_layer,
        })
    }
}

impl Running<'_> {
    async fn work(&mut self) -> Result<(), ProtocolError> {
        match self.options.task {
            Task::Train => {
                self.train().await?;
                let saved = SavedModel::of(&self.model.parameters(), ());
                saved.save(&self.options.directory, Role::Server, self.session)?;
                info!("saved the server's part of the model");
            }
            Task::Evaluate | Task::Predict => self.serve().await?,
        }
        let done = Done { cpu_seconds: usage::cpu_seconds(), peak_rss_bytes: usage::peak_rss_bytes() };
        self.network.send(Role::Coordinator, Step::SETUP, &Report::Done(done)).await?;
        self.network.channel(Role::Coordinator)?.set_timeout(LONG);
        let Finish = self.network.recv(Role::Coordinator, Step::SETUP).await?;
        Ok(())
    }
}

/// Longer than any wait for peers that are known to be at work; a dead one is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);
