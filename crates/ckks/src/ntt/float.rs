//! The transforms in double precision, for processors that multiply and add doubles in one step, several at a time, but have no
//! wide product of integers: AVX2 with FMA.
//!
//! Residues are whole numbers in doubles, around 0. A product x·w modulo p is found without division and without error
//! (van der Hoeven, Lecerf, Quintin, "Modular SIMD arithmetic in Mathemagix", 2016, section 3.3): with h = x·w rounded and l = x·w − h
//! exactly, by a fused multiplication, and k = round(x·(w/p)), the result is (h − k·p) + l. Both differences are exact, being whole
//! numbers below 2^53.
//!
//! Bounds, as multiples of p < 2^50, so that k is off by at most |x|/4p: forward, sums start from a reduced x (≤ 1/2) and
//! a product (≤ 1/2 + 1/4 of the largest), so that nothing exceeds 4/3; backward, a product of a difference (≤ 2) stays
//! below 1. All are below 2^52.

use super::Modulus;
use multiversion::multiversion;

/// Primes of more bits have no room for the bounds.
pub(super) const BITS_MAX: u32 = 50;

/// What the transforms modulo one prime need, in doubles.
pub(super) struct Table {
    p: f64,
    p_inverse: f64,
    /// Each root w around 0, and w/p.
    roots: Vec<[f64; 2]>,
    inverse_roots: Vec<[f64; 2]>,
    n_inverse: [f64; 2],
}

/// Whether this processor has what makes this faster than integers.
pub(super) fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl Table {
    pub(super) fn new(modulus: Modulus, roots: &[u64], inverse_roots: &[u64], n_inverse: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "below 2^50, exact")]
        let p = modulus.value() as f64;
        #[expect(clippy::cast_precision_loss, reason = "below 2^50, exact")]
        let of = |w: u64| {
            let w = modulus.centered(w) as f64;
            [w, w / p]
        };
        let all = |roots: &[u64]| roots.iter().map(|w| of(*w)).collect();
        let (roots, inverse_roots) = (all(roots), all(inverse_roots));
        Self { p, p_inverse: 1.0 / p, roots, inverse_roots, n_inverse: of(n_inverse) }
    }

    pub(super) fn forward(&self, a: &mut [u64]) {
        forward(a, self);
    }

    pub(super) fn backward(&self, a: &mut [u64]) {
        backward(a, self);
    }
}

/// Added to a whole number below 2^52 it leaves that number in the low bits of the double.
const SHIFT: f64 = (1_u64 << 52) as f64;

#[inline(always)]
fn to_float(x: u64) -> f64 {
    f64::from_bits(x | SHIFT.to_bits()) - SHIFT
}

/// The representative below p, of a number within p of 0.
#[inline(always)]
fn to_integer(x: f64, p: f64) -> u64 {
    let x = if x < 0.0 { x + p } else { x };
    let x = if x >= p { x - p } else { x };
    (x + SHIFT).to_bits() ^ SHIFT.to_bits()
}

#[inline(always)]
fn mul(x: f64, [w, w_over_p]: [f64; 2], p: f64) -> f64 {
    let high = x * w;
    let low = x.mul_add(w, -high);
    let quotient = (x * w_over_p).round_ties_even();
    quotient.mul_add(-p, high) + low
}

#[inline(always)]
fn reduce(x: f64, p: f64, p_inverse: f64) -> f64 {
    (x * p_inverse).round_ties_even().mul_add(-p, x)
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn forward(a: &mut [u64], table: &Table) {
    let Table { p, p_inverse, roots, .. } = table;
    let (p, p_inverse) = (*p, *p_inverse);
    let n = a.len();
    let mut x: Vec<f64> = a.iter().map(|x| to_float(*x)).collect();
    let (mut half, mut blocks) = (n / 2, 1);
    while blocks < n {
        for (block, root) in x.chunks_exact_mut(2 * half).zip(&roots[blocks..]) {
            let (low, high) = block.split_at_mut(half);
            for (x, y) in low.iter_mut().zip(high) {
                let (u, v) = (reduce(*x, p, p_inverse), mul(*y, *root, p));
                (*x, *y) = (u + v, u - v);
            }
        }
        blocks *= 2;
        half /= 2;
    }
    for (a, x) in a.iter_mut().zip(&x) {
        *a = to_integer(reduce(*x, p, p_inverse), p);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn backward(a: &mut [u64], table: &Table) {
    let Table { p, p_inverse, inverse_roots, n_inverse, .. } = table;
    let (p, p_inverse, n_inverse) = (*p, *p_inverse, *n_inverse);
    let n = a.len();
    let mut x: Vec<f64> = a.iter().map(|x| reduce(to_float(*x), p, p_inverse)).collect();
    let (mut half, mut blocks) = (1, n / 2);
    while blocks > 0 {
        for (block, root) in x.chunks_exact_mut(2 * half).zip(&inverse_roots[blocks..]) {
            let (low, high) = block.split_at_mut(half);
            for (x, y) in low.iter_mut().zip(high) {
                let (u, v) = (*x, *y);
                (*x, *y) = (reduce(u + v, p, p_inverse), mul(u - v, *root, p));
            }
        }
        blocks /= 2;
        half *= 2;
    }
    for (a, x) in a.iter_mut().zip(&x) {
        *a = to_integer(reduce(mul(*x, n_inverse, p), p, p_inverse), p);
    }
}
