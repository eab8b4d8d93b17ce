//! A party from joining to its saved part.

use crate::data::{DataSource, Standardizer};
use crate::prepare::{Gathered, Prepared, training_rows};
use crate::{PartyError, data};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use spnn_crypto::SecretRng;
use spnn_nn::{LabelHead, Optimizer, Parameter, first_layer_weights};
use spnn_protocol::first_layer::{PartySide, party_side};
use spnn_protocol::message::{Done, Finish, Metrics, Report, Task};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    JoinOptions, Joined, Joining, Network, ProtocolError, Role, SavedModel, Schedule, SessionConfig, SessionError,
    Step, usage,
};
use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;
use tracing::info;

/// What is this party's own business.
#[derive(Clone, Debug)]
pub struct PartyOptions {
    /// How it joins.
    pub join: JoinOptions,
    /// Its file and columns.
    pub data: DataSource,
    /// Where the label holder writes scores; by default `predictions.csv` in its directory.
    pub scores: Option<PathBuf>,
}

/// A party that has joined.
pub struct Party<'a> {
    pub(crate) session: &'a SessionConfig,
    pub(crate) options: &'a PartyOptions,
    pub(crate) network: Network,
    pub(crate) schedule: Schedule,
    pub(crate) data: Prepared,
    pub(crate) standardizer: Option<Standardizer>,
    pub(crate) first_layer: Box<dyn PartySide>,
    /// This party's block of the first layer, `[d_i, h]`.
    pub(crate) weights: Array2<f32>,
    pub(crate) gradient: Array2<f32>,
    /// What the server sent back for the batch, `[n, h]`.
    pub(crate) grad_h1: Array2<f32>,
    pub(crate) optimizer: Optimizer,
    /// Only at the label holder.
    pub(crate) head: Option<Head>,
    pub(crate) gathered: Gathered,
}

/// The last layer and its optimizer, at the label holder.
pub(crate) struct Head {
    pub(crate) layer: LabelHead,
    pub(crate) optimizer: Optimizer,
    /// z of the batch, `[n, k]`.
    pub(crate) z: Array2<f32>,
}

/// What a party has when its session is over.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Metrics of the rows with labels; label holder only.
    pub test: Option<Metrics>,
}

/// What a party keeps beside its tensors.
#[derive(Serialize, Deserialize)]
struct Kept {
    features: Vec<String>,
    standardizer: Option<Standardizer>,
}

const WEIGHTS: &str = "first_layer.weight";

impl<'a> Party<'a> {
    /// Does the whole session as `transport`'s role: join, work, save, wait for the end.
    ///
    /// # Errors
    /// [`PartyError`] naming what and where; the caller tells the peers.
    pub async fn run(
        transport: &mut dyn Transport,
        session: &'a SessionConfig,
        options: &'a PartyOptions,
    ) -> Result<Outcome, PartyError> {
        let mut party = Self::join(transport, session, options).await?;
        let done = party.work().await;
        if let Err(e) = &done {
            party.network.end(e.ending(party.network.me()));
        }
        done
    }

    async fn work(&mut self) -> Result<Outcome, PartyError> {
        let outcome = match self.options.join.task {
            Task::Train => {
                let outcome = self.train().await?;
                self.save()?;
                outcome
            }
            Task::Evaluate => self.evaluate_all().await?,
            Task::Predict => self.predict().await?,
        };
        let done = Done { cpu_seconds: usage::cpu_seconds(), peak_rss_bytes: usage::peak_rss_bytes() };
        self.network.send(Role::Coordinator, Step::SETUP, &Report::Done(done)).await?;
        // The others may take their time to save.
        self.network.channel(Role::Coordinator)?.set_timeout(LONG);
        let Finish = self.network.recv(Role::Coordinator, Step::SETUP).await?;
        Ok(outcome)
    }

    async fn join(
        transport: &mut dyn Transport,
        session: &'a SessionConfig,
        options: &'a PartyOptions,
    ) -> Result<Self, PartyError> {
        let me = transport.me();
        // Peers learn at once that this party is there, and why it goes if its file is bad.
        let joining = Joining::connect(transport, session, &options.join).await?;
        let is_holder = me == session.label_role();
        let data = Prepared::read_as(&options.data, is_holder, options.join.task != Task::Predict)?;
        let (rows, features) = data.features().dim();
        info!(rows, features, "read {}", options.data.file.display());
        let Joined { mut network, incarnation, features_total, columns, schedule } =
            joining.join(Some(data.shape()?)).await?;

        let mut rng = SecretRng::from_system().map_err(ProtocolError::from)?;
        let width = session.model.hidden_width as usize;
        let weights = first_layer_weights(session.seed, features_total, width, columns);
        let head = if is_holder { Some(Head::new(session, &mut rng)?) } else { None };
        let standardizer = match options.join.task {
            Task::Train => data.fit(&session.preparation, &training_rows(&schedule))?,
            Task::Evaluate | Task::Predict => None,
        };
        let first_layer = party_side(session, incarnation, &mut network).await?;
        let mut party = Self {
            session,
            options,
            network,
            schedule,
            standardizer,
            first_layer,
            gradient: Array2::zeros(weights.dim()),
            grad_h1: Array2::zeros((0, width)),
            weights,
            optimizer: Optimizer::new(&session.train.optimizer, rng.bytes32()),
            head,
            gathered: Gathered::new(),
            data,
        };
        if options.join.task != Task::Train {
            party.load()?;
        }
        party.data.scale(party.standardizer.as_ref(), &session.preparation)?;
        if let (Some(head), Some(labels)) = (&party.head, party.data.labels()) {
            head.layer.check_labels(labels).map_err(PartyError::Labels)?;
        }
        Ok(party)
    }

    fn save(&mut self) -> Result<(), PartyError> {
        let kept = Kept { features: self.data.feature_names().to_vec(), standardizer: self.standardizer.clone() };
        let (me, directory) = (self.network.me(), self.options.join.directory.clone());
        let session = self.session;
        SavedModel::of(&self.parameters(), kept).save(&directory, me, session)?;
        info!("saved this party's part of the model");
        Ok(())
    }

    fn load(&mut self) -> Result<(), PartyError> {
        let directory = self.options.join.directory.clone();
        let saved = SavedModel::<Kept>::load(&directory, self.network.me(), self.session)?;
        if saved.extra.features != self.data.feature_names() {
            let found = self.data.feature_names().join(", ");
            let expected = saved.extra.features.join(", ");
            return Err(PartyError::Unfit(format!("the model was trained on columns {expected}; found {found}")));
        }
        saved.restore(&directory, &mut self.parameters())?;
        self.standardizer = saved.extra.standardizer;
        Ok(())
    }

    /// Everything this party trains.
    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        let shape = self.weights.shape().to_vec();
        let mut parameters = Vec::new();
        if let (Some(value), Some(gradient)) = (self.weights.as_slice_mut(), self.gradient.as_slice()) {
            parameters.push(Parameter { name: Cow::Borrowed(WEIGHTS), shape, value, gradient });
        }
        if let Some(head) = &mut self.head {
            parameters.extend(head.layer.parameters());
        }
        parameters
    }

    /// Writes scores where this party was asked to.
    pub(crate) fn write_scores(&self, rows: &[u32], scores: &Array2<f32>) -> Result<(), PartyError> {
        let file = match &self.options.scores {
            Some(file) => file.clone(),
            None => self.options.join.directory.join("predictions.csv"),
        };
        data::write_scores(&file, &self.data.ids_of(rows), scores.view())?;
        info!(rows = rows.len(), "wrote scores to {}", file.display());
        Ok(())
    }
}

/// Longer than any wait for peers that are known to be at work; a dead one is noticed by its connection.
const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

impl Head {
    fn new(session: &SessionConfig, rng: &mut SecretRng) -> Result<Self, PartyError> {
        let width = session.server_output_width().map_err(ProtocolError::from)?;
        let layer = LabelHead::new(width, &session.model.head, session.seed)
            .map_err(|e| ProtocolError::from(SessionError::from(e)))?;
        Ok(Self {
            layer,
            optimizer: Optimizer::new(&session.train.optimizer, rng.bytes32()),
            z: Array2::zeros((0, width)),
        })
    }
}
