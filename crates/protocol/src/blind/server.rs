//! The server's side, step 3.

use super::layers::{Layer, Layers, Linear, Shape};
use super::party::receive_key;
use super::plan::Plan;
use super::{OUTPUT_LEVEL, arithmetic, context, refused, threads, try_for_each};
use crate::message::{BlindTerms, Kind};
use crate::{Network, ProtocolError, Role, SessionConfig, Step};
use spnn_ckks::{Ciphertext, CkksError, Context, Inputs, LinearMap, PublicKey, Segment, Workspace};
use spnn_crypto::SecretRng;
use spnn_nn::Parameter;
use std::ops::Range;
use std::sync::Arc;
use tracing::info;

/// The server's layers, to be evaluated on what it cannot open.
pub struct Server {
    context: Arc<Context>,
    public: PublicKey,
    holder: Role,
    parties: Vec<Role>,
    plan: Plan,
    /// From columns of H1 to what the first linear layer adds to its outputs; without such a layer, to outputs.
    first: Vec<(Range<usize>, Segment)>,
    /// Whether the first segments' results are summed up.
    sums: bool,
    /// What follows, a rescaling before each.
    rest: Vec<Segment>,
    workspace: Workspace,
    rngs: Vec<SecretRng>,
}

/// Columns of H1 that are in memory together: 3 MB each for every party, and as much for what becomes of them.
const COLUMNS: usize = 16;

impl Server {
    /// Step 1: receives the label holder's key, and says how the weights in `parameters` are going to be evaluated. `h1_max` is
    /// the largest |h1| in training.
    ///
    /// # Errors
    /// [`ProtocolError::Blind`] with the reason why they cannot be; as [`Network::recv`].
    pub async fn set_up(
        session: &SessionConfig,
        network: &mut Network,
        parameters: &[Parameter<'_>],
        h1_max: f32,
    ) -> Result<Self, ProtocolError> {
        let context = context()?;
        let shape = Shape::of(&session.model)?;
        let layers = Layers::of(&shape, parameters)?;
        let h1_max = HEADROOM * f64::from(h1_max);
        let plan =
            Plan::new(&context, &layers, session.parties, h1_max).map_err(|reason| ProtocolError::Blind { reason })?;
        let holder = session.label_role();
        let public = receive_key(&context, network, holder).await?;
        let terms = BlindTerms {
            level: plan.level as u32,
            scale_log2: plan.scale.log2().round() as u32,
            output_log2: plan.output_log2,
            error_log2: plan.error.log2().ceil() as i32,
        };
        let (level, scale_log2) = (terms.level, terms.scale_log2);
        info!(level, scale_log2, error = plan.error, "the layers are evaluated on ciphertexts");
        let parties: Vec<Role> = session.party_roles().collect();
        for party in &parties {
            network.send(*party, Step::SETUP, &terms).await?;
        }
        let (first, sums, rest) = segments(&layers).map_err(arithmetic(Step::SETUP))?;
        let rngs = (0..threads()).map(|_| SecretRng::from_system()).collect::<Result<_, _>>()?;
        let workspace = Workspace::default();
        Ok(Self { context, public, holder, parties, plan, first, sums, rest, workspace, rngs })
    }

    /// Evaluates the layers for a batch, and sends the results to the label holder.
    ///
    /// # Errors
    /// [`ProtocolError::Ciphertext`] naming the party whose share cannot be used; as [`Network::recv`].
    pub async fn score(&mut self, network: &mut Network, step: Step) -> Result<(), ProtocolError> {
        let failed = arithmetic(step);
        let mut values: Vec<Ciphertext> = Vec::new();
        for number in 0..self.first.len() {
            let sums = self.receive(network, step, self.first[number].0.clone()).await?;
            let (context, workspace, segment) = (&self.context, &mut self.workspace, &self.first[number].1);
            let results = segment.evaluate(context, Inputs::Whole(&sums), workspace, threads()).map_err(&failed)?;
            if self.sums && !values.is_empty() {
                let both = values.iter_mut().zip(&results);
                try_for_each(threads(), both, |(value, result)| value.add_assign(result)).map_err(&failed)?;
            } else {
                values.extend(results);
            }
        }
        for (segment, level) in self.rest.iter().zip(&self.plan.levels) {
            try_for_each(threads(), values.iter_mut(), |value| value.rescale_to(*level)).map_err(&failed)?;
            let inputs = Inputs::Whole(&values);
            values = segment.evaluate(&self.context, inputs, &mut self.workspace, threads()).map_err(&failed)?;
        }
        let count = self.rngs.len().max(1);
        for (group, values) in values.chunks_mut(count).enumerate() {
            let mut results = vec![Vec::new(); values.len()];
            let (public, plan) = (&self.public, &self.plan);
            let items = values.iter_mut().zip(&mut results).zip(&mut self.rngs);
            try_for_each(count, items, |((value, result), rng)| {
                public.rerandomize(value, rng)?;
                value.rescale_to(OUTPUT_LEVEL)?;
                value.flood(plan.error_log2, rng)?;
                *result = value.to_bytes();
                Ok(())
            })
            .map_err(&failed)?;
            for (output, result) in (group * count..).zip(&results) {
                let place = [output as u32, 0];
                network.channel(self.holder)?.send_block(Kind::EncryptedOutput, step, place, result).await?;
            }
        }
        Ok(())
    }

    /// Adds the parties' shares of some columns: the encryption of those columns of H1.
    async fn receive(
        &self,
        network: &mut Network,
        step: Step,
        columns: Range<usize>,
    ) -> Result<Vec<Ciphertext>, ProtocolError> {
        let length = Ciphertext::byte_length(&self.context, self.plan.level, 2);
        let mut shares = vec![vec![0_u8; length]; self.parties.len()];
        let mut sums = Vec::new();
        for column in columns {
            network.recv_blocks(Kind::EncryptedInput, step, [column as u32, 0], &mut shares).await?;
            let mut read: Vec<Option<Ciphertext>> = vec![None; shares.len()];
            let items = read.iter_mut().zip(shares.iter().zip(&self.parties));
            try_for_each(threads(), items, |(read, (bytes, party))| {
                let share = Ciphertext::from_bytes(&self.context, bytes);
                *read = Some(share.map_err(|e| refused(*party, step, column, &e))?);
                Ok::<_, ProtocolError>(())
            })?;
            let mut sum: Option<Ciphertext> = None;
            for (share, party) in read.into_iter().flatten().zip(&self.parties) {
                let of = |level: usize, parts: usize, scale: f64| {
                    format!("level {level}, {parts} parts, a scale of 2^{}", scale.log2())
                };
                let found = of(share.level(), share.parts(), share.scale());
                let expected = of(self.plan.level, 2, self.plan.scale);
                if found != expected || share.scale().to_bits() != self.plan.scale.to_bits() {
                    return Err(refused(*party, step, column, &format!("it has {found}; expected {expected}")));
                }
                match &mut sum {
                    None => sum = Some(share),
                    Some(sum) => sum.add_assign(&share).map_err(|e| refused(*party, step, column, &e))?,
                }
            }
            sums.extend(sum);
        }
        Ok(sums)
    }
}

/// Values may be so much larger than in training.
const HEADROOM: f64 = 2.0;

type Segments = (Vec<(Range<usize>, Segment)>, bool, Vec<Segment>);

/// The layers between rescalings: up to the first linear one for some columns at a time, then up to the next each.
fn segments(layers: &Layers) -> Result<Segments, CkksError> {
    let Layers { bias, layers } = layers;
    let end = layers.iter().position(|l| matches!(l, Layer::Linear(_)));
    let (head, tail) = layers.split_at(end.map_or(layers.len(), |at| at + 1));
    let ranges = (0..bias.len()).step_by(COLUMNS).map(|start| start..bias.len().min(start + COLUMNS));
    let first = ranges.map(|range| {
        let mut segment = vec![addition(&bias[range.clone()])?];
        for layer in head {
            segment.push(match layer {
                Layer::Square => spnn_ckks::Layer::Square,
                Layer::Linear(linear) => dense(linear, range.clone())?,
            });
        }
        Ok((range, Segment::new(segment)?))
    });
    let first = first.collect::<Result<_, CkksError>>()?;
    let mut rest = Vec::new();
    let mut segment = Vec::new();
    for layer in tail {
        match layer {
            Layer::Square => segment.push(spnn_ckks::Layer::Square),
            Layer::Linear(linear) => {
                segment.push(dense(linear, 0..linear.inputs)?);
                rest.push(Segment::new(std::mem::take(&mut segment))?);
            }
        }
    }
    if !segment.is_empty() {
        rest.push(Segment::new(segment)?);
    }
    Ok((first, end.is_some(), rest))
}

/// A layer that adds a bias to each of its inputs.
fn addition(bias: &[f64]) -> Result<spnn_ckks::Layer, CkksError> {
    let mut map = LinearMap::new(bias.len(), bias.len());
    for place in 0..bias.len() as u32 {
        map = map.group(vec![place], vec![place], &[1])?;
    }
    Ok(spnn_ckks::Layer::Linear { map, weight_scale: 1.0, bias: bias.to_vec() })
}

/// A dense layer on some of its inputs; the first ones bring the bias.
fn dense(linear: &Linear, inputs: Range<usize>) -> Result<spnn_ckks::Layer, CkksError> {
    let (count, outputs) = (inputs.len(), linear.bias.len());
    let rows = linear.weights.chunks_exact(linear.inputs.max(1));
    let weights: Vec<i32> = rows.flat_map(|row| &row[inputs.clone()]).copied().collect();
    let map =
        LinearMap::new(count, outputs).group((0..count as u32).collect(), (0..outputs as u32).collect(), &weights)?;
    let bias = if inputs.start == 0 { linear.bias.clone() } else { vec![0.0; outputs] };
    Ok(spnn_ckks::Layer::Linear { map, weight_scale: linear.unit(), bias })
}
