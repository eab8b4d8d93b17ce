//! The property attack of the paper: can the server tell from `h1` whether a column that nobody gave the network is
//! above its median?
//!
//! 1. The network is trained as its session says, in one process, which gives the server the `h1` it would receive.
//! 2. The training rows are split at random: half are shadow data, whose property the attacker knows; a quarter decide
//!    when its training stops; the last quarter is attacked.
//! 3. The attacker is a network with one hidden layer on standardised `h1`: of the last epoch, or of all epochs side by
//!    side.
//!
//! A simple attacker: what is left after a defence against it is a lower bound on the leak.

use super::store::{AttackResult, Measured, MeasuredEpoch};
use crate::pooled::{self, PooledError};
use ndarray::{Array2, ArrayView2, Axis, s};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use spnn_crypto::SecretRng;
use spnn_nn::{
    ActivationKind, HeadSpec, LabelHead, LayerSpec, Loss, Mode, Model, Optimizer, OptimizerSpec, Sequential, auc,
    first_layer_weights,
};
use spnn_party::Prepared;
use spnn_party::data::DataSource;
use spnn_protocol::message::Metrics;
use spnn_protocol::{Phase, SessionConfig};
use std::time::Instant;

/// Steps of the attacker's training, over all shadow rows each.
const STEPS: u32 = 600;
/// Units of its hidden layer.
const HIDDEN: usize = 32;
/// How often its training is looked at.
const LOOK_EVERY: u32 = 10;

/// Trains the network of `session` and attacks `property`, a column of the label holder's file.
///
/// # Errors
/// [`PooledError`] naming the file or what does not fit.
pub fn measure(session: &SessionConfig, sources: &[DataSource], property: &str) -> Result<Measured, PooledError> {
    let holder = &sources[usize::from(session.label_holder.0)];
    let column = DataSource { columns: Some(vec![property.to_owned()]), label: None, ..holder.clone() };
    let column = Prepared::read_as(&column, false, false)?;
    let values: Vec<f32> = column.features().column(0).to_vec();
    let (x, labels) = pooled::pool(session, sources, None)?;
    let rows = u32::try_from(x.nrows()).map_err(|_| PooledError::Unfit("too many rows".into()))?;
    let schedule = session.schedule(rows);
    let train = schedule.order(Phase::Train, 1);
    let (mut measured, h1) = train_network(session, &x, &labels)?;
    measured.train_rows = schedule.train_rows();

    let property: Vec<f32> = train.iter().map(|&r| values[r as usize]).collect();
    let mut sorted = property.clone();
    sorted.sort_by(f32::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let above: Vec<f32> = property.iter().map(|&v| f32::from(u8::from(v > median))).collect();
    let mut order: Vec<usize> = (0..above.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(session.seed));
    let width = session.model.hidden_width as usize;
    let last = h1.slice(s![.., h1.ncols().saturating_sub(width)..]);
    measured.attack = Some(AttackResult {
        one_epoch: attack(last, &above, &order, session.seed)?,
        all_epochs: attack(h1.view(), &above, &order, session.seed)?,
    });
    Ok(measured)
}

/// The network after the session's training, and `h1` of every training row in every epoch, side by side.
fn train_network(
    session: &SessionConfig,
    x: &Array2<f32>,
    labels: &[f32],
) -> Result<(Measured, Array2<f32>), PooledError> {
    let (n, d, h) = (x.nrows(), x.ncols(), session.model.hidden_width as usize);
    let schedule = session.schedule(u32::try_from(n).map_err(|_| PooledError::Unfit("too many rows".into()))?);
    let mut w = first_layer_weights(session.seed, d, h, 0..d);
    let mut server = Sequential::new(h, &session.model.server, session.seed)?;
    let mut head = LabelHead::new(server.output_width(), &session.model.head, session.seed)?;
    // The noise of SGLD is secret: each role draws its own.
    let mut rng = SecretRng::from_system()?;
    let mut optimizers = [(); 3].map(|()| Optimizer::new(&session.train.optimizer, rng.bytes32()));
    let mut place = vec![usize::MAX; n];
    let first = schedule.order(Phase::Train, 1);
    first.iter().enumerate().for_each(|(i, &row)| place[row as usize] = i);
    let mut seen = Array2::zeros((first.len(), h * session.train.epochs as usize));
    let mut measured = Measured::default();
    for epoch in 1..=session.train.epochs {
        let started = Instant::now();
        let order = schedule.order(Phase::Train, epoch);
        let mut loss_sum = 0.0;
        let column = h * (epoch as usize - 1);
        for batch in schedule.batches(Phase::Train, epoch) {
            let rows: Vec<usize> = order[batch.start..batch.start + batch.rows].iter().map(|&r| r as usize).collect();
            let xb = x.select(Axis(0), &rows);
            let yb: Vec<f32> = rows.iter().map(|&r| labels[r]).collect();
            let h1 = xb.dot(&w);
            for (row, values) in rows.iter().zip(h1.outer_iter()) {
                seen.slice_mut(s![place[*row], column..column + h]).assign(&values);
            }
            let (loss, grad_z) = head.step(server.forward(h1.view(), Mode::Train)?, &yb)?;
            #[expect(clippy::cast_precision_loss, reason = "a batch has at most 2^24 rows")]
            {
                loss_sum += f64::from(loss) * rows.len() as f64;
            }
            let gradient = xb.t().dot(&server.backward(grad_z)?);
            if let (Some(w), Some(g)) = (w.as_slice_mut(), gradient.as_standard_layout().as_slice()) {
                optimizers[0].step_one(w, g);
            }
            optimizers[1].step(&mut server.parameters());
            optimizers[2].step(&mut head.parameters());
        }
        let seconds = started.elapsed().as_secs_f64();
        let test: Vec<usize> = schedule.order(Phase::Evaluate, epoch).iter().map(|&r| r as usize).collect();
        let truth: Vec<f32> = test.iter().map(|&r| labels[r]).collect();
        let h1 = x.select(Axis(0), &test).dot(&w);
        let z = server.forward(h1.view(), Mode::Evaluate)?.to_owned();
        let loss = head.loss(z.view(), &truth)? / f64::from(schedule.test_rows().max(1));
        let scores: Vec<f32> = head.scores(z.view())?.iter().copied().collect();
        let train_loss = loss_sum / f64::from(schedule.train_rows().max(1));
        measured.test = Some(Metrics { loss, auc: auc(&scores, &truth), accuracy: None });
        measured.epochs.push(MeasuredEpoch {
            seconds,
            train_loss: Some(train_loss),
            test: measured.test,
            ..MeasuredEpoch::default()
        });
    }
    Ok((measured, seen))
}

/// AUC of the attacker's network on the rows that are attacked.
fn attack(h1: ArrayView2<'_, f32>, above: &[f32], order: &[usize], seed: u64) -> Result<f64, PooledError> {
    let (half, quarter) = (order.len() / 2, order.len() / 4);
    let shadow = h1.select(Axis(0), &order[..half]);
    let (Some(mean), deviation) = (shadow.mean_axis(Axis(0)), shadow.std_axis(Axis(0), 0.0)) else {
        return Err(PooledError::Unfit("no rows to attack with".into()));
    };
    let deviation = deviation.mapv(|v| v.max(1e-6));
    let part = |rows: &[usize]| {
        let inputs = (h1.select(Axis(0), rows) - &mean) / &deviation;
        (inputs, rows.iter().map(|&r| above[r]).collect::<Vec<f32>>())
    };
    let (shadow, checked, attacked) =
        (part(&order[..half]), part(&order[half..half + quarter]), part(&order[half + quarter..]));
    let hidden = [LayerSpec::Linear(HIDDEN), LayerSpec::Activation(ActivationKind::Relu)];
    let mut layers = Sequential::new(h1.ncols(), &hidden, seed)?;
    let mut head =
        LabelHead::new(layers.output_width(), &HeadSpec { linear: 1, loss: Loss::BinaryCrossEntropy }, seed)?;
    let adam = OptimizerSpec::Adam { learning_rate: 0.03, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizers = [(); 2].map(|()| Optimizer::new(&adam, [0; 32]));
    let (mut best, mut found) = (f64::NEG_INFINITY, 0.5);
    for step in 1..=STEPS {
        let (_, gradient) = head.step(layers.forward(shadow.0.view(), Mode::Train)?, &shadow.1)?;
        layers.backward(gradient)?;
        optimizers[0].step(&mut layers.parameters());
        optimizers[1].step(&mut head.parameters());
        if step % LOOK_EVERY == 0 {
            let mut score = |(inputs, truth): &(Array2<f32>, Vec<f32>)| -> Result<f64, PooledError> {
                let z = layers.forward(inputs.view(), Mode::Evaluate)?;
                let scores: Vec<f32> = head.scores(z)?.iter().copied().collect();
                Ok(auc(&scores, truth).unwrap_or(0.5))
            };
            let on_checked = score(&checked)?;
            if on_checked > best {
                (best, found) = (on_checked, score(&attacked)?);
            }
        }
    }
    Ok(found)
}
