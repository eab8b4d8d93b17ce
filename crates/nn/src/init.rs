//! Initial weights from the session's public seed, one stream per parameter name.
//!
//! Nothing here is secret. A stream per name lets roles that hold different layers draw their own independently, and
//! gives a model the same weights however its layers are spread over roles.

use std::ops::Range;

use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The stream of public randomness with this name.
///
/// Its key is the seed and three FNV-1a hashes of the name: names that differ get streams that differ. This is no
/// cryptographic derivation and must not seed anything secret.
pub fn init_rng(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (lane, word) in key.chunks_exact_mut(8).enumerate() {
        let word_bytes = match lane {
            0 => seed.to_le_bytes(),
            // Another offset per lane, so that a collision in one is none in the others.
            1 => fnv1a(0xcbf2_9ce4_8422_2325, name).to_le_bytes(),
            2 => fnv1a(0x9e37_79b9_7f4a_7c15, name).to_le_bytes(),
            _ => fnv1a(0x6a09_e667_f3bc_c908, name).to_le_bytes(),
        };
        word.copy_from_slice(&word_bytes);
    }
    ChaCha8Rng::from_seed(key)
}

/// The rows `columns` of the initial first layer, `[columns.len(), width]`: a party's part of the pooled `[d, h]`.
///
/// Uniform in `±1/√d` with `d = features_total`. Parties that draw their ranges of the features together hold exactly
/// the matrix that one process would draw for all of them.
///
/// # Panics
/// If `columns` reaches past `features_total`, which is a bug of the caller: ranges come from a checked session.
pub fn first_layer_weights(seed: u64, features_total: usize, width: usize, columns: Range<usize>) -> Array2<f32> {
    assert!(columns.end <= features_total, "columns {columns:?} of {features_total} features");
    let mut rng = init_rng(seed, "first_layer.weight");
    rng.set_word_pos(columns.start as u128 * width as u128);
    let bound = bound(features_total);
    Array2::from_shape_simple_fn((columns.len(), width), || uniform(&mut rng, bound))
}

/// `±1/√fan_in`, as PyTorch draws the weights and biases of dense and convolution layers.
pub(crate) fn uniform_parameter(seed: u64, name: &str, len: usize, fan_in: usize) -> Vec<f32> {
    let mut rng = init_rng(seed, name);
    let bound = bound(fan_in);
    (0..len).map(|_| uniform(&mut rng, bound)).collect()
}

fn bound(fan_in: usize) -> f32 {
    (1.0 / (fan_in as f64).sqrt()) as f32
}

/// One word of the stream per number, so that a position in a matrix is a position in the stream.
fn uniform(rng: &mut ChaCha8Rng, bound: f32) -> f32 {
    /// 24 bits are what an `f32` holds exactly.
    const UNIT: f32 = 1.0 / (1 << 23) as f32;
    let unit = (rng.next_u32() >> 8) as f32 * UNIT - 1.0;
    unit * bound
}

fn fnv1a(offset: u64, name: &str) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    name.bytes().fold(offset, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use ndarray::{Axis, concatenate};

    use super::*;

    #[test]
    fn parties_together_hold_the_pooled_matrix() {
        let pooled = first_layer_weights(7, 28, 5, 0..28);
        for cuts in [vec![0, 28], vec![0, 14, 28], vec![0, 1, 2, 28], vec![0, 5, 5, 11, 27, 28]] {
            let parts: Vec<_> = cuts.windows(2).map(|cut| first_layer_weights(7, 28, 5, cut[0]..cut[1])).collect();
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            assert_eq!(concatenate(Axis(0), &views).unwrap(), pooled, "{cuts:?}");
        }
    }

    #[test]
    fn weights_fill_their_bounds() {
        let weights = first_layer_weights(1, 400, 100, 0..400);
        let (low, high, sum) = weights
            .iter()
            .fold((0_f32, 0_f32, 0_f64), |(low, high, sum), &w| (low.min(w), high.max(w), sum + f64::from(w)));
        assert!((-0.05..-0.0499).contains(&low) && (0.0499..=0.05).contains(&high));
        // 40 000 draws of standard deviation 0.029: the mean's is 1.4e-4.
        assert!((sum / 40_000.0).abs() < 6e-4);
    }

    #[test]
    fn streams_differ_by_seed_and_name() {
        let first = |seed, name| init_rng(seed, name).next_u64();
        let draws = [
            first(1, "1.weight"),
            first(1, "1.bias"),
            first(2, "1.weight"),
            first(1, "10.weight"),
            first(1, "1.weighs"),
        ];
        for (i, draw) in draws.iter().enumerate() {
            assert!(!draws[..i].contains(draw));
        }
        assert_eq!(first(1, "1.weight"), draws[0]);
    }
}
