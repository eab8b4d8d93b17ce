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

use super::store::{AttackResult, Measured};
use crate::pooled::{self, PooledError};
use ndarray::{Array2, ArrayView2, Axis, s};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use spnn_nn::{
    ActivationKind, HeadSpec, LabelHead, LayerSpec, Loss, Mode, Model, Optimizer, OptimizerSpec, Sequential, auc,
};
use spnn_party::Prepared;
use spnn_party::data::DataSource;
use spnn_protocol::{Phase, PreparationSpec, SessionConfig};

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
    let mut column = Prepared::read_as(&column, false, false, &std::env::temp_dir())?;
    let as_it_is = PreparationSpec { test_fraction: 0.0, standardize: false, clip: None };
    column.fit(&as_it_is, &(0..column.rows()?).collect::<Vec<_>>())?;
    if column.features() != 1 {
        return Err(PooledError::Unfit(format!("the property {property} is not a number")));
    }
    let values: Vec<f32> = pooled::all_features(&column)?.column(0).to_vec();
    let (x, labels) = pooled::pool(session, sources, None)?;
    let rows = u32::try_from(x.nrows()).map_err(|_| PooledError::Unfit("too many rows".into()))?;
    let schedule = session.schedule(rows);
    let train = schedule.order(Phase::Train, 1);
    let width = session.model.hidden_width as usize;
    let mut place = vec![usize::MAX; x.nrows()];
    train.iter().enumerate().for_each(|(i, &row)| place[row as usize] = i);
    // Of every training row in every epoch, side by side.
    let mut h1 = Array2::zeros((train.len(), width * session.train.epochs as usize));
    let trained = pooled::train_watched(session, x.view(), &labels, &mut |seen| {
        let column = width * (seen.epoch as usize - 1);
        for (&row, values) in seen.rows.iter().zip(seen.h1.outer_iter()) {
            h1.slice_mut(s![place[row as usize], column..column + width]).assign(&values);
        }
    })?;

    let property: Vec<f32> = train.iter().map(|&r| values[r as usize]).collect();
    let mut sorted = property.clone();
    sorted.sort_by(f32::total_cmp);
    let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let above: Vec<f32> = property.iter().map(|&v| f32::from(u8::from(v > median))).collect();
    let mut order: Vec<usize> = (0..above.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(session.seed));
    let last = h1.slice(s![.., h1.ncols().saturating_sub(width)..]);
    let attack = AttackResult {
        one_epoch: attack(last, &above, &order, session.seed)?,
        all_epochs: attack(h1.view(), &above, &order, session.seed)?,
    };
    Ok(Measured { attack: Some(attack), ..trained.into() })
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
