//! The inner loops, on one tile of places modulo one prime.
//!
//! Residues are whole numbers in doubles, around 0, as in the transforms of [`crate::ntt`]. A sum of products with small
//! weights is exact as long as it stays below 2^53 ([`super::RUN_WEIGHT_MAX`]), whether each product is rounded (it is a
//! whole number below 2^53 itself) or fused with its sum: processors with fused multiplications and those without give the same
//! bits.

use super::LinearMap;
use crate::modulus::Modulus;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Places of a tile: inputs and squares of a layer of a thousand values stay in a megabyte of cache.
pub(super) const TILE: usize = 16;
/// Places that are summed at once.
const LANES: usize = 8;
const HALVES: usize = TILE / LANES;
/// Outputs that are summed at once: with two vectors of four places each, 12 of AVX2's 16 registers.
pub(super) const BLOCK: usize = 6;

/// Arithmetic modulo one prime of at most 37 bits.
#[derive(Clone, Copy)]
pub(super) struct Residues {
    q: Modulus,
    p: f64,
    p_inverse: f64,
}

/// Added to a whole number below 2^52 it leaves that number in the low bits of the double.
const SHIFT: f64 = (1_u64 << 52) as f64;

impl Residues {
    pub(super) fn new(q: Modulus) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "below 2^37, exact")]
        let p = q.value() as f64;
        Self { q, p, p_inverse: 1.0 / p }
    }

    /// Brings residues around 0.
    pub(super) fn load(self, from: &[u64], to: &mut [f64]) {
        load(self, from, to);
    }

    /// The residues as they are kept in ciphertexts.
    pub(super) fn store(self, from: &[f64], to: &mut [u64]) {
        store(self, from, to);
    }

    /// `y: [outputs, TILE]` from `x: [inputs, TILE]`; outputs of no group are 0.
    pub(super) fn linear(self, map: &LinearMap, x: &[f64], y: &mut [f64]) {
        linear(self, map, x, y);
    }

    /// Adds to each row of a tile its own constant.
    pub(super) fn add_constants(self, y: &mut [f64], constants: &[f64]) {
        add_constants(self, y, constants);
    }

    /// Part k of the square is Σ_{i+j=k} c_i·c_j: `y: [2·parts − 1, width, TILE]` from `x: [parts, width, TILE]`.
    pub(super) fn square(self, x: &[f64], y: &mut [f64], parts: usize) {
        square(self, x, y, parts);
    }

    /// The representative within p/2 of 0, of a whole number below 2^53. The quotient times p is a whole number below 2^53 as
    /// well, so that nothing is rounded.
    #[inline(always)]
    fn reduce(self, x: f64) -> f64 {
        x - (x * self.p_inverse).round_ties_even() * self.p
    }

    /// x·y modulo p, within p of 0, for x and y within p/2. With h = x·y rounded and l = x·y − h, h − k·p for the nearest k is a
    /// whole number below 2^38, and so is its sum with l.
    #[inline(always)]
    fn mul_fused(self, x: f64, y: f64) -> f64 {
        let high = x * y;
        let low = x.mul_add(y, -high);
        (high * self.p_inverse).round_ties_even().mul_add(-self.p, high) + low
    }

    #[inline(always)]
    fn mul_integer(self, x: f64, y: f64) -> f64 {
        let whole = |x: f64| if x < 0.0 { x + self.p } else { x } as u64;
        self.q.centered(self.q.mul(whole(x), whole(y))) as f64
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn load(residues: Residues, from: &[u64], to: &mut [f64]) {
    for (x, y) in from.iter().zip(to) {
        *y = residues.reduce(f64::from_bits(*x | SHIFT.to_bits()) - SHIFT);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn store(residues: Residues, from: &[f64], to: &mut [u64]) {
    for (x, y) in from.iter().zip(to) {
        let x = residues.reduce(*x);
        let x = if x < 0.0 { x + residues.p } else { x };
        *y = (x + SHIFT).to_bits() ^ SHIFT.to_bits();
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn add_constants(residues: Residues, y: &mut [f64], constants: &[f64]) {
    for (row, constant) in y.as_chunks_mut::<TILE>().0.iter_mut().zip(constants) {
        row.iter_mut().for_each(|y| *y = residues.reduce(*y + constant));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn linear(residues: Residues, map: &LinearMap, x: &[f64], y: &mut [f64]) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        linear_with(residues, map, x, y, |sum, x, w| x.mul_add(w, sum));
    } else {
        linear_with(residues, map, x, y, |sum, x, w| x * w + sum);
    }
}

#[inline(always)]
fn linear_with(
    residues: Residues,
    map: &LinearMap,
    x: &[f64],
    y: &mut [f64],
    add: impl Fn(f64, f64, f64) -> f64 + Copy,
) {
    y.fill(0.0);
    let (x, y) = (x.as_chunks::<LANES>().0, y.as_chunks_mut::<LANES>().0);
    for group in &map.groups {
        let panels = group.weights.as_chunks::<BLOCK>().0.chunks_exact(group.inputs.len());
        for (outputs, panel) in group.outputs.chunks(BLOCK).zip(panels) {
            for half in 0..HALVES {
                let mut sums = [[0.0; LANES]; BLOCK];
                let mut start = 0;
                for end in &group.runs {
                    sums = run(x, half, &group.inputs[start..*end], &panel[start..*end], sums, add);
                    sums.as_flattened_mut().iter_mut().for_each(|sum| *sum = residues.reduce(*sum));
                    start = *end;
                }
                for (output, sum) in outputs.iter().zip(&sums) {
                    y[*output as usize * HALVES + half] = *sum;
                }
            }
        }
    }
}

/// Adds the products of a run. The sums go in and out by value, so that they stay in registers.
#[inline(always)]
fn run(
    x: &[[f64; LANES]],
    half: usize,
    inputs: &[u32],
    weights: &[[f64; BLOCK]],
    mut sums: [[f64; LANES]; BLOCK],
    add: impl Fn(f64, f64, f64) -> f64,
) -> [[f64; LANES]; BLOCK] {
    for (input, weights) in inputs.iter().zip(weights) {
        let x = x[*input as usize * HALVES + half];
        for (sum, w) in sums.iter_mut().zip(weights) {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum = add(*sum, x, *w);
            }
        }
    }
    sums
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn square(residues: Residues, x: &[f64], y: &mut [f64], parts: usize) {
    if target_cfg_f!(any(target_feature = "fma", target_arch = "aarch64")) {
        square_with(residues, x, y, parts, |x, y| residues.mul_fused(x, y));
    } else {
        square_with(residues, x, y, parts, |x, y| residues.mul_integer(x, y));
    }
}

#[inline(always)]
fn square_with(residues: Residues, x: &[f64], y: &mut [f64], parts: usize, mul: impl Fn(f64, f64) -> f64 + Copy) {
    let width = x.len() / parts;
    for (k, out) in y.chunks_exact_mut(width).enumerate() {
        out.fill(0.0);
        // At most three products for two squares in a row: all sums stay below 2^40.
        for i in k.saturating_sub(parts - 1)..=k / 2 {
            let (a, b) = (&x[i * width..(i + 1) * width], &x[(k - i) * width..(k - i + 1) * width]);
            let times = if i == k - i { 1.0 } else { 2.0 };
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out += times * mul(*a, *b);
            }
        }
        out.iter_mut().for_each(|x| *x = residues.reduce(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Context, Preset};
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn fused_and_whole_products_are_alike() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for q in Context::new(&Preset::N4096).unwrap().limbs() {
            let residues = Residues::new(*q);
            let half = (q.value() / 2).cast_signed();
            let mut numbers: Vec<i64> = vec![half, half, -half, -half, 1, half, 0];
            numbers.extend((0..10_000).map(|_| rng.random_range(-half..=half)));
            for pair in numbers.windows(2) {
                let (x, y) = (pair[0] as f64, pair[1] as f64);
                let expected = (i128::from(pair[0]) * i128::from(pair[1])).rem_euclid(q.value().into()) as u64;
                for product in [residues.mul_fused(x, y), residues.mul_integer(x, y)] {
                    let mut found = [0];
                    residues.store(&[product], &mut found);
                    assert_eq!(found[0], expected, "{pair:?} modulo {}", q.value());
                }
            }
        }
    }
}
