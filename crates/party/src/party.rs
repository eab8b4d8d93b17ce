//! A party from joining to its saved part.

use crate::data::{DataSource, Encoding};
use crate::prepare::{Gathered, Prepared, digest_ids, training_rows};
use crate::releases::Releases;
use crate::serve::Questions;
use crate::train::Losses;
use crate::{PartyError, data};
use ndarray::{Array2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use spnn_crypto::SecretRng;
use spnn_nn::{LabelHead, Optimizer, OptimizerState, Parameter, first_layer_weights};
use spnn_protocol::contract::ContractTerms;
use spnn_protocol::first_layer::{OwnFeatures, PartySide, party_side};
use spnn_protocol::message::{Done, Finish, Metrics, Report, Task};
use spnn_protocol::transport::Transport;
use spnn_protocol::{
    Attempts, Cause, Checkpoints, Ending, JoinOptions, Joined, Joining, Met, Network, Phase, Position, ProtocolError,
    Role, SavedModel, Schedule, SessionConfig, SessionError, Step, Training, all_done, blind, parameter_values,
    restore_parameters,
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
    /// Where questions come from while predictions are served; label holder only.
    pub questions: Option<Questions>,
}

impl PartyOptions {
    /// A party that writes its scores, if any, to its directory, and that nobody asks anything.
    #[must_use]
    pub fn new(join: JoinOptions, data: DataSource) -> Self {
        Self { join, data, scores: None, questions: None }
    }
}

/// A party that has joined.
pub struct Party<'a> {
    pub(crate) session: &'a SessionConfig,
    pub(crate) options: &'a PartyOptions,
    pub(crate) network: Network,
    pub(crate) schedule: Schedule,
    incarnation: u64,
    /// Number of features of every party.
    features: Vec<usize>,
    pub(crate) data: &'a Prepared,
    pub(crate) training: Training,
    pub(crate) losses: Losses,
    /// This party's block of the first layer, `[d_i, h]`.
    pub(crate) weights: Array2<f32>,
    pub(crate) gradient: Array2<f32>,
    /// What the server sent back for the batch, `[n, h]`.
    pub(crate) grad_h1: Array2<f32>,
    pub(crate) optimizer: Optimizer,
    noise_seeds: [[u8; 32]; 2],
    /// Only at the label holder.
    pub(crate) head: Option<Head>,
    pub(crate) gathered: Gathered,
    releases: Option<Releases>,
}

/// The last layer and its optimizer, at the label holder.
pub(crate) struct Head {
    pub(crate) layer: LabelHead,
    pub(crate) optimizer: Optimizer,
    /// z of the batch, `[n, k]`.
    pub(crate) z: Array2<f32>,
    /// What opens it, if it comes encrypted.
    pub(crate) blind: Option<blind::Holder>,
}

/// A party's part of a checkpoint.
#[derive(Serialize, Deserialize)]
struct State {
    /// Of the data it was trained on.
    data: [u8; 32],
    parameters: Vec<(String, Vec<f32>)>,
    optimizer: OptimizerState,
    head_optimizer: Option<OptimizerState>,
    noise_seeds: [[u8; 32]; 2],
    losses: Losses,
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
    encoding: Encoding,
}

const WEIGHTS: &str = "first_layer.weight";

impl<'a> Party<'a> {
    /// Does the whole session as `transport`'s role: join, work, save, wait for the end. When a peer is gone, it makes a
    /// checkpoint and joins again, for as long as its options say.
    ///
    /// # Errors
    /// [`PartyError`] naming what and where; the peers have been told.
    pub async fn run(
        transport: &mut dyn Transport,
        session: &'a SessionConfig,
        options: &'a PartyOptions,
    ) -> Result<Outcome, PartyError> {
        let mut attempts = Attempts::new(&options.join);
        let mut data = None;
        loop {
            let mut reached = None;
            match attempt(transport, session, options, &mut data, attempts.patience(), &mut reached).await {
                Ok(outcome) => {
                    transport.leave(Ending { cause: Cause::Done, culprit: transport.me() });
                    options.join.monitor.done();
                    return Ok(outcome);
                }
                Err(e) => {
                    transport.leave(e.ending(transport.me()));
                    let PartyError::Protocol(e) = e else { return Err(e) };
                    let checkpoints = Checkpoints::in_directory(&options.join.directory, transport.me(), session);
                    if let Some(end) = all_done(&e, checkpoints, session)? {
                        return Ok(Outcome { test: end.test });
                    }
                    attempts.again(e, reached).await?;
                }
            }
        }
    }

    async fn work(&mut self) -> Result<Outcome, PartyError> {
        let outcome = match self.options.join.task {
            Task::Train => {
                let mut first_layer = self.first_layer().await?;
                self.train(&mut *first_layer).await?;
                self.save()?;
                Outcome { test: self.training.last_end().and_then(|end| end.test) }
            }
            Task::Evaluate => {
                let mut first_layer = self.first_layer().await?;
                self.evaluate_all(&mut *first_layer).await?
            }
            Task::Predict => {
                let mut first_layer = self.first_layer().await?;
                self.predict(&mut *first_layer).await?
            }
            Task::Align => {
                self.write_common_ids()?;
                Outcome::default()
            }
            Task::Serve => {
                let mut first_layer = self.first_layer().await?;
                self.serve(&mut *first_layer).await?;
                Outcome::default()
            }
        };
        self.finish().await?;
        Ok(outcome)
    }

    /// This party's side of the session's first layer; or, where the server scores blind, of that.
    async fn first_layer(&mut self) -> Result<Box<dyn PartySide>, ProtocolError> {
        if self.session.is_blind(self.options.join.task) {
            let (side, holder) = blind::party_side(self.session, self.incarnation, &mut self.network).await?;
            if let Some(head) = &mut self.head {
                head.blind = holder;
            }
            return Ok(Box::new(side));
        }
        let Self { session, incarnation, network, features, data, .. } = self;
        let mut gather = |rows: &[u32], out: ArrayViewMut2<'_, f32>| data.gather(rows, out);
        let own = OwnFeatures { rows: self.schedule.rows(), gather: &mut gather };
        party_side(session, *incarnation, network, features, own).await
    }

    /// Tells the coordinator that everything is saved, and waits until all have said so.
    async fn finish(&mut self) -> Result<(), PartyError> {
        self.training.settle()?;
        let done = Done::of(&self.network);
        self.network.send(Role::Coordinator, Step::SETUP, &Report::Done(done)).await?;
        // The others may take their time to save.
        self.network.channel(Role::Coordinator)?.set_timeout(LONG);
        let Finish = self.network.recv(Role::Coordinator, Step::SETUP).await?;
        self.network.end_audit()?;
        self.training.finish()?;
        Ok(())
    }

    /// Meets everyone, agrees with the other parties on their rows, and waits until all are ready.
    async fn join(
        joining: Joining<'_>,
        me: Role,
        session: &'a SessionConfig,
        options: &'a PartyOptions,
        data: &'a mut Option<Prepared>,
    ) -> Result<Self, PartyError> {
        let task = options.join.task;
        // Peers learn at once that this party is there, and why it goes if its file is bad.
        let data = match data {
            Some(data) => data,
            None => data.insert(read_data(me, session, options)?),
        };
        let mut rng = SecretRng::from_system().map_err(ProtocolError::from)?;
        let mut checkpoints = Checkpoints::in_directory(&options.join.directory, me, session);
        let held = if task == Task::Train { checkpoints.positions()? } else { Vec::new() };
        let begun = !held.is_empty();
        let mut met = joining.meet(held).await?;
        agree_on_rows(&mut met, session, options, data, &mut rng).await?;
        prepare(me, session, options, data)?;
        let data: &Prepared = data;
        let Joined { network, incarnation, features, columns, schedule, resume } =
            met.ready(Some(data.shape()?)).await?;
        let monitor = &options.join.monitor;
        let (training, state) = Training::resume::<State>(checkpoints, resume, begun, session, monitor)?;

        let noise_seeds = match &state {
            Some(state) => state.noise_seeds,
            None => [rng.bytes32(), rng.bytes32()],
        };
        let width = session.model.hidden_width as usize;
        let weights = first_layer_weights(session.seed, features.iter().sum(), width, columns);
        let is_holder = me == session.label_role();
        let mut party = Self {
            session,
            options,
            network,
            schedule,
            incarnation,
            features,
            training,
            losses: Losses::default(),
            gradient: Array2::zeros(weights.dim()),
            grad_h1: Array2::zeros((0, width)),
            weights,
            optimizer: Optimizer::new(&session.train.optimizer, noise_seeds[0]),
            head: if is_holder { Some(Head::new(session, noise_seeds[1])?) } else { None },
            noise_seeds,
            gathered: Gathered::new(),
            releases: match task {
                Task::Evaluate | Task::Predict | Task::Serve => Releases::open(session, &options.join.directory)?,
                Task::Train | Task::Align => None,
            },
            data,
        };
        if let (Some(head), Some(labels)) = (&party.head, data.labels()) {
            head.layer.check_labels(labels).map_err(PartyError::Labels)?;
        }
        match (task, state) {
            (Task::Train, None) => party.keep()?,
            (Task::Train, Some(state)) => party.restore(state)?,
            (Task::Align, _) => {}
            (Task::Evaluate | Task::Predict | Task::Serve, _) => {
                let directory = &options.join.directory;
                let saved = SavedModel::<Kept>::load(directory, me, session)?;
                saved.restore(directory, &mut party.parameters())?;
            }
        }
        Ok(party)
    }

    /// Makes a checkpoint where training is; durable on return.
    fn keep(&mut self) -> Result<(), ProtocolError> {
        if self.options.join.task != Task::Train {
            return Ok(());
        }
        let state = self.state()?;
        self.training.keep(&self.network, state)
    }

    /// Begins to write a checkpoint where training is.
    pub(crate) fn checkpoint(&mut self) -> Result<(), ProtocolError> {
        let state = self.state()?;
        self.training.checkpoint(&self.network, state)
    }

    fn state(&mut self) -> Result<State, ProtocolError> {
        let parameters = parameter_values(&self.parameters());
        Ok(State {
            data: self.data.digest()?,
            parameters,
            optimizer: self.optimizer.export_state(),
            head_optimizer: self.head.as_ref().map(|h| h.optimizer.export_state()),
            noise_seeds: self.noise_seeds,
            losses: self.losses.clone(),
        })
    }

    fn restore(&mut self, state: State) -> Result<(), PartyError> {
        if state.data != self.data.digest()? {
            let reason = format!(
                "{} has other content than when training began; bring it back, or remove 'checkpoints' at every role \
                 to start from nothing",
                self.options.data.file
            );
            return Err(PartyError::Unfit(reason));
        }
        let lengths = restore_parameters(&mut self.parameters(), state.parameters)?;
        let misfit = |e| ProtocolError::checkpoint(&e);
        let [weights, of_head @ ..] = &lengths[..] else { return Ok(()) };
        self.optimizer.import_state(state.optimizer, &[*weights]).map_err(misfit)?;
        if let (Some(head), Some(saved)) = (&mut self.head, state.head_optimizer) {
            head.optimizer.import_state(saved, of_head).map_err(misfit)?;
        }
        self.losses = state.losses;
        Ok(())
    }

    fn save(&mut self) -> Result<(), PartyError> {
        let encoding = self.data.encoding().cloned();
        let kept = Kept { encoding: encoding.ok_or_else(|| PartyError::Unfit("the data were not encoded".into()))? };
        let (me, directory) = (self.network.me(), self.options.join.directory.clone());
        let session = self.session;
        SavedModel::of(&self.parameters(), kept).save(&directory, me, session)?;
        info!("saved this party's part of the model");
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

    /// Whether the contract lets this row be scored once more.
    pub(crate) fn may_be_scored(&self, row: u32) -> bool {
        let Some(releases) = &self.releases else { return true };
        self.record_names(&[row]).iter().all(|id| releases.allow(id))
    }

    /// Counts these rows as scored once more, if the contract limits that, before they are.
    pub(crate) fn count_releases(&mut self, rows: &[u32]) -> Result<(), ProtocolError> {
        if self.releases.is_none() {
            return Ok(());
        }
        let names = self.record_names(rows);
        self.releases.as_mut().map_or(Ok(()), |releases| releases.count(&names))
    }

    /// Makes sure that all these rows may be scored once more, before any is.
    pub(crate) fn check_releases(&self, rows: &[u32]) -> Result<(), ProtocolError> {
        self.releases.as_ref().map_or(Ok(()), |releases| releases.check(&self.record_names(rows)))
    }

    /// What records are known by in whichever file they come: their ids as they are compared.
    fn record_names(&self, rows: &[u32]) -> Vec<String> {
        let spec = self.session.alignment.as_ref();
        let name = |id: Cow<'_, str>| spec.map_or_else(|| id.to_string(), |spec| spec.normalize(&id).into_owned());
        self.data.ids_of(rows).map(name).collect()
    }

    /// Writes scores where this party was asked to.
    pub(crate) fn write_scores(&self, rows: &[u32], scores: &Array2<f32>) -> Result<(), PartyError> {
        let file = match &self.options.scores {
            Some(file) => file.clone(),
            None => self.options.join.directory.join("predictions.csv"),
        };
        data::write_scores(&file, self.data.ids_of(rows), scores.view())?;
        // A pass has each row once.
        self.network.released(rows.len(), scores.ncols(), 1)?;
        info!(rows = rows.len(), "wrote scores to {}", file.display());
        Ok(())
    }

    /// Writes the ids that all parties have, in the order that they agreed on, for this party's own use.
    fn write_common_ids(&self) -> Result<(), PartyError> {
        let file = self.options.join.directory.join("common_ids.csv");
        let rows = self.schedule.order(Phase::Predict, 0);
        let no_scores = Array2::zeros((rows.len(), 0));
        data::write_scores(&file, self.data.ids_of(&rows), no_scores.view())?;
        info!(rows = rows.len(), "wrote the common ids to {}", file.display());
        Ok(())
    }
}

/// Longer than any wait for peers that are known to be at work; a dead one is noticed by its connection.
pub(crate) const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// One start of the session, to its end or to the first error. `reached` is then where training is.
async fn attempt(
    transport: &mut dyn Transport,
    session: &SessionConfig,
    options: &PartyOptions,
    data: &mut Option<Prepared>,
    patience: Duration,
    reached: &mut Option<Position>,
) -> Result<Outcome, PartyError> {
    let (me, stop) = (transport.me(), &options.join.stop);
    let join = async {
        let joining = Joining::connect(transport, session, &options.join, patience).await?;
        Party::join(joining, me, session, options, data).await
    };
    let joined = tokio::select! {
        biased;
        () = stop.wait() => Err(ProtocolError::Stopped.into()),
        joined = join => joined,
    };
    let mut party = joined.inspect_err(|e: &PartyError| options.join.interrupt_audit(e.ending(me)))?;
    let done = tokio::select! {
        biased;
        () = stop.overdue() => Err(ProtocolError::Stopped.into()),
        done = party.work() => done,
    };
    *reached = Some(match options.join.task {
        Task::Serve => Position::of_service(party.incarnation),
        Task::Train | Task::Evaluate | Task::Predict | Task::Align => party.training.position(),
    });
    if let Err(e) = &done {
        options.join.interrupt_audit(e.ending(me));
    }
    match done {
        Err(PartyError::Protocol(e)) if e.is_interruption() || matches!(e, ProtocolError::Stopped) => {
            party.keep()?;
            Err(if stop.requested() { ProtocolError::Stopped } else { e }.into())
        }
        done => done,
    }
}

/// The party's files, checked.
fn read_data(me: Role, session: &SessionConfig, options: &PartyOptions) -> Result<Prepared, PartyError> {
    let required = matches!(options.join.task, Task::Train | Task::Evaluate);
    if let Some(terms) = &session.contract {
        check_columns(terms, me, me == session.label_role(), options.join.task, &options.data)?;
    }
    let data = Prepared::read_as(&options.data, me == session.label_role(), required, &options.join.directory)?;
    info!(rows = data.rows()?, "read {}", options.data.file);
    Ok(data)
}

/// Aligns this party's rows with those of the others, or makes sure that they are.
async fn agree_on_rows(
    met: &mut Met<'_>,
    session: &SessionConfig,
    options: &PartyOptions,
    data: &mut Prepared,
    rng: &mut SecretRng,
) -> Result<(), PartyError> {
    let Some(spec) = &session.alignment else {
        return Ok(met.compare_ids(data.rows()?, &digest_ids(data.ids().iter())).await?);
    };
    let rows = met.align(spec, data.ids(), rng).await.map_err(|e| match e {
        ProtocolError::DuplicateId { .. } | ProtocolError::EmptyId { .. } => {
            PartyError::Unfit(format!("{}: {e}", options.data.file))
        }
        e => e.into(),
    })?;
    match data.order() {
        None => data.arrange(rows),
        Some(order) if order == rows => {}
        Some(_) => return Err(PartyError::Unfit("the rows were aligned anew: start this party again".into())),
    }
    Ok(())
}

/// Scales the features: by statistics of the training rows, or by those that are kept with the model.
fn prepare(me: Role, session: &SessionConfig, options: &PartyOptions, data: &mut Prepared) -> Result<(), PartyError> {
    let JoinOptions { task, directory, .. } = &options.join;
    if data.encoding().is_some() {
        return Ok(());
    }
    match task {
        Task::Align => {}
        Task::Train => data.fit(&session.preparation, &training_rows(&session.schedule(data.rows()?)))?,
        Task::Evaluate | Task::Predict | Task::Serve => {
            data.encode(SavedModel::<Kept>::load(directory, me, session)?.extra.encoding)?;
        }
    }
    Ok(())
}

/// Before anything of the data is read: a party computes on the columns that it has signed for, and no others.
///
/// # Errors
/// [`ContractError`](spnn_protocol::contract::ContractError) naming the columns, or [`DataError`](data::DataError).
pub fn check_columns(
    terms: &ContractTerms,
    me: Role,
    is_label_holder: bool,
    task: Task,
    source: &DataSource,
) -> Result<(), PartyError> {
    let mut source = source.clone();
    if is_label_holder && (!matches!(task, Task::Predict | Task::Serve) || source.label.is_some()) {
        terms.check_label(source.label.as_deref()).map_err(ProtocolError::from)?;
    }
    // Rows to predict need not have labels; where they are there, they are no feature.
    if let Some(label) = &source.label
        && !data::read_columns(&source)?.contains(label)
    {
        source.label = None;
    }
    let columns = data::feature_columns(&source)?;
    Ok(terms.check_columns(me, &columns).map_err(ProtocolError::from)?)
}

impl Head {
    fn new(session: &SessionConfig, noise_seed: [u8; 32]) -> Result<Self, PartyError> {
        let width = session.server_output_width().map_err(ProtocolError::from)?;
        let layer = LabelHead::new(width, &session.model.head, session.seed)
            .map_err(|e| ProtocolError::from(SessionError::from(e)))?;
        Ok(Self {
            layer,
            optimizer: Optimizer::new(&session.train.optimizer, noise_seed),
            z: Array2::zeros((0, width)),
            blind: None,
        })
    }
}
