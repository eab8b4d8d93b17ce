//! The server of SPNN: it opens the first layer's sum and trains the hidden layers.
//!
//! It learns `H1 = Σ X_i·W_i` and the gradient of its last output; from the latter, the labels. It holds no ids and no
//! features, but `H1` is linear in the features: see `docs/security.md` for what can be rebuilt from it. Of rows that are
//! scored in a session with `inference = "encrypted"` it learns nothing but how many there are ([`spnn_protocol::blind`]).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod train;

use serde::{Deserialize, Serialize};
use spnn_crypto::SecretRng;
use spnn_nn::{Model, Optimizer, OptimizerState, Sequential};
use spnn_protocol::first_layer::{ServerSide, server_side};
use spnn_protocol::message::{Done, Finish, Report, Task};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    Attempts, Cause, Checkpoints, Ending, JoinOptions, Joined, Joining, Network, Position, ProtocolError, Role,
    SavedModel, Schedule, SessionConfig, SessionError, Step, Training, all_done, blind, parameter_values,
    restore_parameters,
};
use std::time::Duration;
use tracing::info;

/// A server with the model it trains.
pub struct Server<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    model: Box<dyn Model>,
    /// What is known of the saved model beside its weights.
    trained: Option<Trained>,
}

/// What the server keeps beside its weights.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Trained {
    /// The largest |h1| of the last epoch.
    h1_max: f32,
}

/// A server that has joined.
struct Running<'a> {
    session: &'a SessionConfig,
    options: &'a JoinOptions,
    model: &'a mut dyn Model,
    /// Where the random streams of the model are when its batch is done.
    random_positions: Vec<u128>,
    optimizer: Optimizer,
    noise_seed: [u8; 32],
    /// The largest |h1| of the epoch so far, or of the last one.
    h1_max: f32,
    training: Training,
    network: Network,
    schedule: Schedule,
    incarnation: u64,
}

/// The server's part of a checkpoint.
#[derive(Serialize, Deserialize)]
struct State {
    parameters: Vec<(String, Vec<f32>)>,
    random_positions: Vec<u128>,
    optimizer: OptimizerState,
    noise_seed: [u8; 32],
    h1_max: f32,
}

impl<'a> Server<'a> {
    /// A server for the session, with a model of the caller's own: anything with [`Model`] whose input is
    /// `session.model.hidden_width` and whose output is what the label head of the session expects.
    #[must_use]
    pub fn new(session: &'a SessionConfig, options: &'a JoinOptions, model: Box<dyn Model>) -> Self {
        Self { session, options, model, trained: None }
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

    /// Does the whole session: join, work, save, wait for the end. When a peer is gone, it makes a checkpoint and joins
    /// again, for as long as its options say.
    ///
    /// # Errors
    /// [`ProtocolError`] naming the peer, step, expected and found; the peers have been told.
    pub async fn run(mut self, transport: &mut dyn Transport) -> Result<(), ProtocolError> {
        if matches!(self.options.task, Task::Evaluate | Task::Predict | Task::Serve) {
            let directory = &self.options.directory;
            let saved = SavedModel::<Option<Trained>>::load(directory, Role::Server, self.session)?;
            saved.restore(directory, &mut self.model.parameters())?;
            self.trained = saved.extra;
        }
        let mut attempts = Attempts::new(self.options);
        loop {
            let mut reached = None;
            match self.attempt(transport, attempts.patience(), &mut reached).await {
                Ok(()) => {
                    transport.leave(Ending { cause: Cause::Done, culprit: Role::Server });
                    self.options.monitor.done();
                    return Ok(());
                }
                Err(e) => {
                    transport.leave(e.ending(Role::Server));
                    if all_done(&e, self.checkpoints(), self.session)?.is_some() {
                        return Ok(());
                    }
                    attempts.again(e, reached).await?;
                }
            }
        }
    }

    fn checkpoints(&self) -> Checkpoints {
        Checkpoints::in_directory(&self.options.directory, Role::Server, self.session)
    }

    /// One start of the session, to its end or to the first error. `reached` is then where training is.
    async fn attempt(
        &mut self,
        transport: &mut dyn Transport,
        patience: Duration,
        reached: &mut Option<Position>,
    ) -> Result<(), ProtocolError> {
        let options = self.options;
        let stop = &options.stop;
        let joined = tokio::select! {
            biased;
            () = stop.wait() => Err(ProtocolError::Stopped),
            joined = self.join(transport, patience) => joined,
        };
        let mut running = joined.inspect_err(|e| options.interrupt_audit(e.ending(Role::Server)))?;
        let done = tokio::select! {
            biased;
            () = stop.overdue() => Err(ProtocolError::Stopped),
            done = running.work() => done,
        };
        *reached = Some(match running.options.task {
            Task::Serve => Position::of_service(running.incarnation),
            Task::Train | Task::Evaluate | Task::Predict | Task::Align => running.training.position(),
        });
        if let Err(e) = &done {
            running.options.interrupt_audit(e.ending(Role::Server));
        }
        match done {
            Err(e) if e.is_interruption() || matches!(e, ProtocolError::Stopped) => {
                running.keep()?;
                Err(if stop.requested() { ProtocolError::Stopped } else { e })
            }
            done => done,
        }
    }

    async fn join(&mut self, transport: &mut dyn Transport, patience: Duration) -> Result<Running<'_>, ProtocolError> {
        let Self { session, options, model, trained } = self;
        let joining = Joining::connect(transport, session, options, patience).await?;
        let mut checkpoints = Checkpoints::in_directory(&options.directory, Role::Server, session);
        let held = if options.task == Task::Train { checkpoints.positions()? } else { Vec::new() };
        let begun = !held.is_empty();
        let Joined { network, incarnation, schedule, resume, .. } = joining.meet(held).await?.ready(None).await?;
        let (training, state) = Training::resume::<State>(checkpoints, resume, begun, session, &options.monitor)?;
        let noise_seed = match &state {
            Some(state) => state.noise_seed,
            None => SecretRng::from_system()?.bytes32(),
        };
        let mut running = Running {
            session,
            options,
            model: &mut **model,
            random_positions: Vec::new(),
            optimizer: Optimizer::new(&session.train.optimizer, noise_seed),
            noise_seed,
            h1_max: trained.map_or(0.0, |t| t.h1_max),
            training,
            network,
            schedule,
            incarnation,
        };
        match state {
            Some(state) => running.restore(state)?,
            None => running.random_positions = running.model.random_positions(),
        }
        if options.task == Task::Train {
            running.keep()?;
        }
        Ok(running)
    }
}

impl Running<'_> {
    async fn work(&mut self) -> Result<(), ProtocolError> {
        match self.options.task {
            Task::Train | Task::Evaluate | Task::Predict | Task::Serve => self.compute().await?,
            // Only parties have rows.
            Task::Align => {}
        }
        self.training.settle()?;
        let done = Done::of(&self.network);
        self.network.send(Role::Coordinator, Step::SETUP, &Report::Done(done)).await?;
        self.network.channel(Role::Coordinator)?.set_timeout(LONG);
        let Finish = self.network.recv(Role::Coordinator, Step::SETUP).await?;
        self.network.end_audit()?;
        self.training.finish()
    }

    async fn compute(&mut self) -> Result<(), ProtocolError> {
        let (mut open, mut blind);
        let mut scoring = if self.session.is_blind(self.options.task) {
            blind = self.blind().await?;
            Scoring::Blind(&mut blind)
        } else {
            open = server_side(self.session, self.incarnation, &mut self.network).await?;
            Scoring::Open(&mut *open)
        };
        match (self.options.task, &mut scoring) {
            (Task::Train, Scoring::Open(first_layer)) => self.train(&mut **first_layer).await?,
            (Task::Serve, scoring) => return self.serve(scoring).await,
            (_, scoring) => return self.predict(scoring).await,
        }
        let trained = Some(Trained { h1_max: self.h1_max });
        SavedModel::of(&self.model.parameters(), trained).save(&self.options.directory, Role::Server, self.session)?;
        info!("saved the server's part of the model");
        Ok(())
    }

    fn state(&mut self) -> State {
        State {
            parameters: parameter_values(&self.model.parameters()),
            random_positions: self.random_positions.clone(),
            optimizer: self.optimizer.export_state(),
            noise_seed: self.noise_seed,
            h1_max: self.h1_max,
        }
    }

    /// The side of a server that sees ciphertexts only.
    async fn blind(&mut self) -> Result<blind::Server, ProtocolError> {
        if self.h1_max <= 0.0 {
            let reason = "this model was saved without the largest H1 of its training: train it again".to_owned();
            return Err(ProtocolError::Blind { reason });
        }
        blind::Server::set_up(self.session, &mut self.network, &self.model.parameters(), self.h1_max).await
    }

    fn restore(&mut self, state: State) -> Result<(), ProtocolError> {
        let lengths = restore_parameters(&mut self.model.parameters(), state.parameters)?;
        let misfit = |e| ProtocolError::checkpoint(&e);
        self.optimizer.import_state(state.optimizer, &lengths).map_err(misfit)?;
        self.model.set_random_positions(&state.random_positions).map_err(misfit)?;
        (self.random_positions, self.h1_max) = (state.random_positions, state.h1_max);
        Ok(())
    }

    /// Begins to write a checkpoint where training is.
    fn checkpoint(&mut self) -> Result<(), ProtocolError> {
        let state = self.state();
        self.training.checkpoint(&self.network, state)
    }

    /// A checkpoint where training is, durable on return.
    fn keep(&mut self) -> Result<(), ProtocolError> {
        if self.options.task != Task::Train {
            return Ok(());
        }
        let state = self.state();
        self.training.keep(&self.network, state)
    }
}

/// What rows that are scored come as.
enum Scoring<'a> {
    /// Shares of H1, which is opened here.
    Open(&'a mut dyn ServerSide),
    /// Shares of an encryption of H1.
    Blind(&'a mut blind::Server),
}

/// Longer than any wait for peers that are known to be at work; a dead one is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);
