//! Linear maps and squares on many ciphertexts at once, where every slot is a sample of its own.
//!
//! In this layout a weight is one number for all slots, so nothing has to be encoded as a polynomial: a linear map between
//! ciphertexts is a matrix product of whole numbers with residues, place by place of the transform and limb by limb. Squares
//! keep all their parts (p parts become 2p − 1), so there is neither key switching nor a key at the evaluating side. Sources:
//! Gilad-Bachrach et al., "CryptoNets" (ICML 2016) for the layout; Brakerski, Vaikuntanathan (CRYPTO 2011) for parts
//! instead of relinearising.
//!
//! A [`Segment`] is what lies between two rescalings. It goes through the places in tiles that fit the cache, from its first
//! layer to its last: only the results are ever written out.
//!
//! It opens nothing: inputs and outputs are encrypted under the client's key. Whoever holds that key and sees the outputs
//! learns more of the weights than the decrypted values say, because their error depends on them (no circuit
//! privacy), and because the parts of a square show its root until they are [re-randomised](crate::PublicKey::rerandomize).

mod kernel;

use crate::modulus::Modulus;
use crate::sampling::uniform_limb;
use crate::{Ciphertext, CkksError, Context, FreshBatch};
use kernel::{Residues, TILE};
use spnn_crypto::for_each;
use std::sync::Arc;

/// A linear map with whole-number weights: each group's outputs see the same inputs.
///
/// A dense layer is one group, a convolution one for each window.
pub struct LinearMap {
    inputs: usize,
    outputs: usize,
    groups: Vec<Group>,
}

/// Outputs that share their inputs.
pub(crate) struct Group {
    inputs: Vec<u32>,
    outputs: Vec<u32>,
    /// [`kernel::BLOCK`] outputs at a time, for each input one weight of each of them; the last block is filled up with zeros.
    weights: Vec<f64>,
    /// Ends of runs of inputs whose products can be summed without reducing.
    runs: Vec<usize>,
}

/// A layer of a [`Segment`].
pub enum Layer {
    /// out = Σ weight·in / `weight_scale` + bias.
    Linear {
        /// The weights.
        map: LinearMap,
        /// What the weights are multiplied by.
        weight_scale: f64,
        /// One for each output.
        bias: Vec<f64>,
    },
    /// Slot by slot, the square.
    Square,
}

/// Layers between two rescalings.
pub struct Segment(Vec<Layer>);

/// Ciphertexts that go into a segment, all of one level, scale and number of parts.
#[derive(Clone, Copy)]
pub enum Inputs<'a> {
    /// As a client makes them.
    Fresh(&'a FreshBatch),
    /// As an earlier segment leaves them.
    Whole(&'a [Ciphertext]),
}

/// Memory that evaluations one after the other can share.
#[derive(Default)]
pub struct Workspace {
    /// One limb of all second parts that come as seeds.
    second: Vec<u64>,
    /// One limb of all results, tile by tile.
    tiles: Vec<u64>,
}

/// Sums of |weight| of a run: with residues within 2^36 of zero and what was summed before, below 2^53, so exact in `f64`.
const RUN_WEIGHT_MAX: u64 = 1 << 16;
/// Limbs of more bits leave too little room for sums.
const LIMB_BITS_MAX: u32 = 37;

impl Layer {
    /// Its biases at the scale of its outputs, modulo q.
    fn constants(&self, scale: f64, q: Modulus) -> Vec<f64> {
        match self {
            Self::Linear { bias, .. } => bias.iter().map(|b| constant(*b, scale, q)).collect(),
            Self::Square => Vec::new(),
        }
    }
}

impl LinearMap {
    /// A map without groups: every output is 0.
    #[must_use]
    pub fn new(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, groups: Vec::new() }
    }

    /// Adds a group; `weights` has a row for each output with a weight for each input. Each output belongs to one group at
    /// most.
    ///
    /// # Errors
    /// [`CkksError::Shape`] if an index is out of range or `weights` has another length; [`CkksError::Weight`] if one is beyond
    /// ±2^16.
    pub fn group(mut self, inputs: Vec<u32>, outputs: Vec<u32>, weights: &[i32]) -> Result<Self, CkksError> {
        let expected = inputs.len() * outputs.len();
        if weights.len() != expected {
            return Err(CkksError::Shape { what: "weights", expected, found: weights.len() });
        }
        for (what, indices, below) in [("inputs", &inputs, self.inputs), ("outputs", &outputs, self.outputs)] {
            if let Some(index) = indices.iter().find(|i| **i as usize >= below) {
                return Err(CkksError::Shape { what, expected: below, found: *index as usize });
            }
        }
        if let Some(weight) = weights.iter().find(|w| u64::from(w.unsigned_abs()) > RUN_WEIGHT_MAX) {
            return Err(CkksError::Weight { found: (*weight).into(), largest: RUN_WEIGHT_MAX });
        }
        let runs = runs(weights, inputs.len());
        let mut panels = Vec::with_capacity(expected.next_multiple_of(kernel::BLOCK));
        for rows in weights.chunks((inputs.len() * kernel::BLOCK).max(1)) {
            for input in 0..inputs.len() {
                let row = |o: usize| rows.get(o * inputs.len() + input).copied().unwrap_or(0);
                panels.extend((0..kernel::BLOCK).map(|o| f64::from(row(o))));
            }
        }
        self.groups.push(Group { inputs, outputs, weights: panels, runs });
        Ok(self)
    }
}

/// Where sums have to be reduced, so that in no output a run's weights exceed what is exact.
fn runs(weights: &[i32], inputs: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut sums = vec![0_u64; weights.len().checked_div(inputs).unwrap_or(0)];
    for input in 0..inputs {
        let of = |o: usize| u64::from(weights[o * inputs + input].unsigned_abs());
        if sums.iter().enumerate().any(|(o, sum)| sum + of(o) > RUN_WEIGHT_MAX) {
            ends.push(input);
            sums.fill(0);
        }
        sums.iter_mut().enumerate().for_each(|(o, sum)| *sum += of(o));
    }
    ends.push(inputs);
    ends
}

impl Segment {
    /// Layers in order.
    ///
    /// # Errors
    /// [`CkksError::Shape`] if a layer has other inputs than the one before has outputs, or other biases than outputs.
    pub fn new(layers: Vec<Layer>) -> Result<Self, CkksError> {
        let mut width = None;
        for layer in &layers {
            let Layer::Linear { map, bias, .. } = layer else { continue };
            let expected = width.replace(map.outputs).unwrap_or(map.inputs);
            if map.inputs != expected {
                return Err(CkksError::Shape { what: "inputs of a layer", expected, found: map.inputs });
            }
            if bias.len() != map.outputs {
                return Err(CkksError::Shape { what: "biases", expected: map.outputs, found: bias.len() });
            }
        }
        Ok(Self(layers))
    }

    /// The largest number of values that lie between two layers, for `inputs` that go in.
    fn width_max(&self, inputs: usize) -> usize {
        let widths = self.0.iter().map(|layer| if let Layer::Linear { map, .. } = layer { map.outputs } else { 0 });
        widths.fold(inputs, usize::max)
    }

    /// Evaluates all layers, on up to `threads` threads. The result is not rescaled.
    ///
    /// # Errors
    /// [`CkksError::Shape`] if there are more or fewer inputs than the first layer has; [`CkksError::Level`], [`CkksError::Scales`],
    /// [`CkksError::Parts`] if they differ from each other; [`CkksError::Scale`] if the result's scale does not fit;
    /// [`CkksError::Contexts`] if one is of another preset, or the preset has limbs above 37 bits.
    pub fn evaluate(
        &self,
        context: &Arc<Context>,
        inputs: Inputs<'_>,
        workspace: &mut Workspace,
        threads: usize,
    ) -> Result<Vec<Ciphertext>, CkksError> {
        let (level, scale, parts) = inputs.check(context)?;
        let limbs = &context.limbs()[..=level];
        if limbs.iter().any(|q| q.bits() > LIMB_BITS_MAX) {
            return Err(CkksError::Contexts);
        }
        if let Some(Layer::Linear { map, .. }) = self.0.first()
            && map.inputs != inputs.len()
        {
            return Err(CkksError::Shape { what: "ciphertexts", expected: map.inputs, found: inputs.len() });
        }
        let (mut width, mut scale_after, mut parts_after) = (inputs.len(), scale, parts);
        // The scale after each layer.
        let mut scales = Vec::new();
        for layer in &self.0 {
            match layer {
                Layer::Linear { map, weight_scale, .. } => {
                    (width, scale_after) = (map.outputs, scale_after * weight_scale)
                }
                Layer::Square => (parts_after, scale_after) = (2 * parts_after - 1, scale_after * scale_after),
            }
            scales.push(scale_after);
        }
        if !(scale_after.is_finite() && scale_after.log2() < context.log2_modulus(level) - 1.0) {
            return Err(CkksError::Scale { scale_log2: scale_after.log2(), level });
        }
        let n = context.n();
        let empty = || vec![vec![0; (level + 1) * n]; parts_after];
        let mut results: Vec<Vec<Vec<u64>>> = (0..width).map(|_| empty()).collect();
        let Workspace { second, tiles } = workspace;
        tiles.resize(n * parts_after * width, 0);
        for (limb, q) in limbs.iter().enumerate() {
            inputs.second_parts(*q, limb, n, second, threads);
            let second: &[u64] = second;
            let state = || {
                let room = self.width_max(inputs.len()) * parts_after * TILE;
                [vec![0.0; room], vec![0.0; room]]
            };
            let residues = Residues::new(*q);
            let constants: Vec<Vec<f64>> =
                self.0.iter().zip(&scales).map(|(layer, scale)| layer.constants(*scale, *q)).collect();
            for_each(
                threads,
                tiles.chunks_exact_mut(parts_after * width * TILE).enumerate(),
                state,
                |state, (t, out)| {
                    let [now, next] = state;
                    let at = t * TILE..(t + 1) * TILE;
                    let count = inputs.len();
                    let mut packed = [0; TILE];
                    for (row, values) in now.chunks_exact_mut(TILE).take(parts * count).enumerate() {
                        let (part, i) = (row / count, row % count);
                        let places = match inputs {
                            Inputs::Whole(all) => &all[i].parts[part][limb * n..][at.clone()],
                            Inputs::Fresh(_) if part == 1 => &second[i * n..][at.clone()],
                            Inputs::Fresh(all) => {
                                all.first_part(i, limb, at.start, &mut packed);
                                &packed
                            }
                        };
                        residues.load(places, values);
                    }
                    let (mut width, mut parts) = (count, parts);
                    for (layer, constants) in self.0.iter().zip(&constants) {
                        match layer {
                            Layer::Linear { map, .. } => {
                                for (p, x) in now.chunks_exact(width * TILE).take(parts).enumerate() {
                                    let y = &mut next[p * map.outputs * TILE..(p + 1) * map.outputs * TILE];
                                    residues.linear(map, x, y);
                                    if p == 0 {
                                        residues.add_constants(y, constants);
                                    }
                                }
                                width = map.outputs;
                            }
                            Layer::Square => {
                                let room = (2 * parts - 1) * width * TILE;
                                residues.square(&now[..parts * width * TILE], &mut next[..room], parts);
                                parts = 2 * parts - 1;
                            }
                        }
                        std::mem::swap(now, next);
                    }
                    residues.store(&now[..out.len()], out);
                },
            );
            // Each thread takes a result; its places come from all tiles.
            for_each(
                threads,
                results.iter_mut().enumerate(),
                || (),
                |(), (o, result)| {
                    for (p, part) in result.iter_mut().enumerate() {
                        let places = part[limb * n..(limb + 1) * n].chunks_exact_mut(TILE);
                        for (place, tile) in places.zip(tiles.chunks_exact(parts_after * width * TILE)) {
                            let row = (p * width + o) * TILE;
                            place.copy_from_slice(&tile[row..row + TILE]);
                        }
                    }
                },
            );
        }
        let ciphertext = |parts| Ciphertext { context: Arc::clone(context), parts, level, scale: scale_after };
        Ok(results.into_iter().map(ciphertext).collect())
    }
}

/// A number that all slots have is the constant of a polynomial, and its transform is that constant everywhere.
fn constant(value: f64, scale: f64, q: Modulus) -> f64 {
    // Large scales are mostly a power of two: what a double holds of the product is exact.
    let scaled = (value * scale).round();
    let exponent = (scaled.abs().max(1.0).log2() as i32 - 52).max(0);
    #[expect(clippy::cast_possible_truncation, reason = "below 2^54")]
    let mantissa = (scaled * (-f64::from(exponent)).exp2()) as i64;
    let power = q.pow(2, exponent.unsigned_abs().into());
    q.centered(q.mul(q.reduce_signed(mantissa), power)) as f64
}

impl Inputs<'_> {
    fn len(self) -> usize {
        match self {
            Self::Fresh(all) => all.len(),
            Self::Whole(all) => all.len(),
        }
    }

    /// Level, scale and parts of all of them.
    fn check(self, context: &Arc<Context>) -> Result<(usize, f64, usize), CkksError> {
        let mut first: Option<(usize, f64, usize)> = None;
        let mut same = |of: &Arc<Context>, level: usize, scale: f64, parts: usize| {
            if of.preset() != context.preset() {
                return Err(CkksError::Contexts);
            }
            let (expected, scale_expected, parts_expected) = *first.get_or_insert((level, scale, parts));
            if level != expected {
                return Err(CkksError::Level { expected, found: level });
            }
            if scale.to_bits() != scale_expected.to_bits() {
                return Err(CkksError::Scales { left: scale_expected.log2(), right: scale.log2() });
            }
            if parts != parts_expected {
                return Err(CkksError::Parts { expected: "as many as in the others", found: parts });
            }
            Ok(())
        };
        match self {
            Self::Fresh(all) if all.is_empty() => Ok(()),
            Self::Fresh(all) => same(&all.context, all.level, all.scale, 2),
            Self::Whole(all) => all.iter().try_for_each(|c| same(&c.context, c.level, c.scale, c.parts.len())),
        }?;
        first.ok_or(CkksError::Shape { what: "ciphertexts", expected: 1, found: 0 })
    }

    /// One limb of all second parts that are there as seeds.
    fn second_parts(self, q: Modulus, limb: usize, n: usize, parts: &mut Vec<u64>, threads: usize) {
        let Self::Fresh(all) = self else { return };
        parts.resize(all.len() * n, 0);
        for_each(
            threads,
            parts.chunks_exact_mut(n).zip(&all.seeds),
            || (),
            |(), (part, seed)| {
                uniform_limb(seed, 0, limb, q, part);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FreshCiphertext, Plaintext, Preset, SecretKey};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use spnn_crypto::SecretRng;

    struct Setup {
        context: Arc<Context>,
        secret: SecretKey,
        fresh: Vec<FreshCiphertext>,
        batch: FreshBatch,
        values: Vec<Vec<f64>>,
    }

    fn setup(count: usize, scale: f64) -> Setup {
        let context = Context::new(&Preset::N4096).unwrap();
        let mut rng = SecretRng::from_system().unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let slots = context.preset().slots();
        let values: Vec<Vec<f64>> =
            (0..count).map(|i| (0..slots).map(|j| ((i * slots + j) as f64 * 0.37).sin()).collect()).collect();
        let fresh = values.iter().map(|v| {
            let plain = Plaintext::encode(&context, v, scale, 2).unwrap();
            secret.encrypt(&plain, &mut rng).unwrap()
        });
        let fresh: Vec<FreshCiphertext> = fresh.collect();
        let mut batch = FreshBatch::with_room(&context, 2, scale, count).unwrap();
        fresh.iter().try_for_each(|c| batch.push(&c.to_bytes())).unwrap();
        Setup { fresh, batch, context, secret, values }
    }

    /// A dense map and one of two overlapping windows, with an output of no group.
    fn maps(inputs: usize, weight_max: i32) -> [(LinearMap, Vec<Vec<i32>>); 2] {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut weights =
            |n: usize| -> Vec<i32> { (0..n).map(|_| rng.random_range(-weight_max..=weight_max)).collect() };
        let of = |map: &LinearMap, groups: &[(Vec<u32>, Vec<u32>, Vec<i32>)]| {
            let mut dense = vec![vec![0; map.inputs]; map.outputs];
            for (ins, outs, w) in groups {
                for (o, row) in outs.iter().zip(w.chunks(ins.len())) {
                    ins.iter().zip(row).for_each(|(i, w)| dense[*o as usize][*i as usize] = *w);
                }
            }
            dense
        };
        let n = inputs as u32;
        let dense = vec![((0..n).collect(), (0..8).collect(), weights(inputs * 8))];
        let windows = vec![(vec![0, 2, n - 1], vec![1, 4], weights(6)), (vec![2, 1], vec![0, 3], weights(4))];
        [(8, dense), (5, windows)].map(|(outputs, groups)| {
            let mut map = LinearMap::new(inputs, outputs);
            for (ins, outs, w) in &groups {
                map = map.group(ins.clone(), outs.clone(), w).unwrap();
            }
            let dense = of(&map, &groups);
            (map, dense)
        })
    }

    /// The same map by sums of products with whole numbers, one ciphertext at a time.
    fn one_by_one(inputs: &[Ciphertext], weights: &[Vec<i32>]) -> Vec<Ciphertext> {
        let row = |row: &Vec<i32>| {
            let products = inputs.iter().zip(row).map(|(x, w)| x.mul_integer((*w).into()));
            products.reduce(|a, b| a.add(&b).unwrap()).unwrap()
        };
        weights.iter().map(row).collect()
    }

    #[test]
    fn a_segment_is_the_same_bits_as_its_operations_one_by_one() {
        let Setup { context, fresh, batch, .. } = setup(5, 2_f64.powi(20));
        let whole: Vec<Ciphertext> = fresh.iter().map(FreshCiphertext::expand).collect();
        // The largest weights make every input a run of its own.
        for weight_max in [100, 1 << 16] {
            for (map, weights) in maps(5, weight_max) {
                let expected: Vec<Ciphertext> =
                    one_by_one(&whole, &weights).iter().map(|x| x.mul(x).unwrap()).collect();
                let bias = vec![0.0; map.outputs];
                let layers = vec![Layer::Linear { map, weight_scale: 1.0, bias }, Layer::Square];
                let segment = Segment::new(layers).unwrap();
                for (inputs, threads) in
                    [(Inputs::Fresh(&batch), 1), (Inputs::Fresh(&batch), 3), (Inputs::Whole(&whole), 2)]
                {
                    let found = segment.evaluate(&context, inputs, &mut Workspace::default(), threads).unwrap();
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        assert!(found.parts == expected.parts && found.scale == expected.scale);
                    }
                }
                // Three parts in, five out.
                let again = Segment::new(vec![Layer::Square]).unwrap();
                let lower: Vec<Ciphertext> = expected.iter().map(|x| x.rescale().unwrap()).collect();
                let squares = again.evaluate(&context, Inputs::Whole(&lower), &mut Workspace::default(), 2).unwrap();
                for (found, x) in squares.iter().zip(&lower) {
                    assert!(found.parts == x.mul(x).unwrap().parts && found.parts() == 5);
                }
            }
        }
    }

    #[test]
    fn slots_are_mapped_with_weights_biases_and_squares() {
        let Setup { context, secret, batch, values, .. } = setup(5, 2_f64.powi(22));
        let [(map, weights), _] = maps(5, 100);
        let bias: Vec<f64> = (0..8).map(|o| f64::from(o) - 3.5).collect();
        let layers = vec![Layer::Linear { map, weight_scale: 64.0, bias: bias.clone() }, Layer::Square];
        let found = Segment::new(layers)
            .unwrap()
            .evaluate(&context, Inputs::Fresh(&batch), &mut Workspace::default(), 1)
            .unwrap();
        for (o, ciphertext) in found.iter().enumerate() {
            let slots = secret.decrypt(ciphertext).unwrap().decode();
            for (j, slot) in slots.iter().enumerate() {
                let sum: f64 = values.iter().zip(&weights[o]).map(|(v, w)| v[j] * f64::from(*w)).sum();
                let expected = (sum / 64.0 + bias[o]).powi(2);
                assert!((slot - expected).abs() < 0.01, "output {o}, slot {j}: {slot}, expected {expected}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let Setup { context, fresh, batch, .. } = setup(3, 2_f64.powi(22));
        let shape = |result: Result<LinearMap, CkksError>| matches!(result.err(), Some(CkksError::Shape { .. }));
        assert!(shape(LinearMap::new(3, 2).group(vec![0, 3], vec![0], &[1, 1])));
        assert!(shape(LinearMap::new(3, 2).group(vec![0], vec![2], &[1])));
        assert!(shape(LinearMap::new(3, 2).group(vec![0], vec![0], &[1, 1])));
        let heavy = LinearMap::new(3, 2).group(vec![0], vec![0], &[-65_537]).err();
        assert_eq!(heavy, Some(CkksError::Weight { found: -65_537, largest: 65_536 }));
        let linear = |inputs, outputs, biases| Layer::Linear {
            map: LinearMap::new(inputs, outputs),
            weight_scale: 1.0,
            bias: vec![0.0; biases],
        };
        assert!(Segment::new(vec![linear(3, 2, 1)]).is_err());
        assert!(Segment::new(vec![linear(3, 2, 2), linear(3, 1, 1)]).is_err());
        let segment = Segment::new(vec![linear(4, 2, 2)]).unwrap();
        let few = segment.evaluate(&context, Inputs::Fresh(&batch), &mut Workspace::default(), 1).err();
        assert_eq!(few, Some(CkksError::Shape { what: "ciphertexts", expected: 4, found: 3 }));
        let squares = Segment::new(vec![Layer::Square, Layer::Square, Layer::Square]).unwrap();
        let large = squares.evaluate(&context, Inputs::Fresh(&batch), &mut Workspace::default(), 1).err();
        assert!(matches!(large, Some(CkksError::Scale { .. })));
        let none = squares
            .evaluate(
                &context,
                Inputs::Fresh(&FreshBatch::with_room(&context, 2, 1.0, 0).unwrap()),
                &mut Workspace::default(),
                1,
            )
            .err();
        assert!(matches!(none, Some(CkksError::Shape { found: 0, .. })));
        let mut whole: Vec<Ciphertext> = fresh.iter().map(FreshCiphertext::expand).collect();
        whole[1] = whole[1].at_level(1).unwrap();
        let mixed = Segment::new(vec![Layer::Square])
            .unwrap()
            .evaluate(&context, Inputs::Whole(&whole), &mut Workspace::default(), 1)
            .err();
        assert_eq!(mixed, Some(CkksError::Level { expected: 2, found: 1 }));
        let other = Context::new(&Preset::N8192).unwrap();
        let foreign = Segment::new(vec![Layer::Square])
            .unwrap()
            .evaluate(&other, Inputs::Fresh(&batch), &mut Workspace::default(), 1)
            .err();
        assert_eq!(foreign, Some(CkksError::Contexts));
    }
}
