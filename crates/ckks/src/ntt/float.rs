//! The transforms in doubles. Between the first and the last pass the words of a polynomial hold the bits of doubles.
//!
//! Two layers of butterflies are one pass over memory. Passes over wide blocks go over the whole polynomial; the rest is done
//! block by block, within the first cache. The last two layers on the way there, the first two back, work inside of four
//! neighbours: 4 × 4 values are turned around so that lanes stay full.
//!
//! Bounds, as multiples of 2^50 (see [`double`](crate::double)). Forward, a pass starts within c = 2.2: the products of its first layer are
//! within 1/2 + 3/16·c < 0.92, sums with a reduced number within 1.42; the products of its second layer within 0.77, and sums
//! within 1.42 + 0.77 < c. Backward, a pass and each layer start within 0.875: sums are reduced, products of a difference
//! are within 1/2 + 3/16·1.75 < 0.875. Nothing exceeds 4.

use super::Modulus;
use crate::double::{Double, centered, to_float};
use multiversion::multiversion;

/// What the transforms modulo one prime need, in doubles.
pub(super) struct Table {
    double: Double,
    /// Around 0.
    roots: Vec<f64>,
    inverse_roots: Vec<f64>,
    n_inverse: f64,
}

/// Values of a block that stays in the first cache, with its roots: 16 kB.
const BLOCK: usize = 1024;

impl Table {
    /// Nothing where integers do better.
    pub(super) fn new(modulus: Modulus, roots: &[u64], inverse_roots: &[u64], n_inverse: u64) -> Option<Self> {
        let double = Double::new(modulus)?;
        let all = |roots: &[u64]| -> Vec<f64> { roots.iter().map(|w| centered(modulus, *w)).collect() };
        let (roots, inverse_roots) = (all(roots), all(inverse_roots));
        // Fewer have no two layers.
        (roots.len() >= 4).then(|| Self { double, roots, inverse_roots, n_inverse: centered(modulus, n_inverse) })
    }

    pub(super) fn forward(&self, a: &mut [u64]) {
        forward(a, self);
    }

    pub(super) fn backward(&self, a: &mut [u64]) {
        backward(a, self);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn forward(a: &mut [u64], table: &Table) {
    let Table { double, roots, .. } = table;
    let n = a.len();
    let mut width = n;
    if n.trailing_zeros() % 2 == 1 {
        first_layer(a, roots[1], *double);
        width /= 2;
    } else {
        a.iter_mut().for_each(|x| *x = to_float(*x).to_bits());
    }
    while width > BLOCK {
        for (i, block) in a.chunks_exact_mut(width).enumerate() {
            two_layers(block, n / width + i, roots, *double);
        }
        width /= 4;
    }
    for (i, block) in a.chunks_exact_mut(width).enumerate() {
        let first = n / width + i;
        let mut width = block.len();
        while width > 16 {
            let node = first * (block.len() / width);
            for (i, block) in block.chunks_exact_mut(width).enumerate() {
                two_layers(block, node + i, roots, *double);
            }
            width /= 4;
        }
        if width == 16 {
            let node = first * (block.len() / width);
            for (i, block) in block.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                two_layers(block, node + i, roots, *double);
            }
        }
        last_layers(block, first * (block.len() / 4), roots, *double);
    }
}

/// The first layer where the number of layers is odd.
#[inline(always)]
fn first_layer(a: &mut [u64], root: f64, m: Double) {
    let (low, high) = a.split_at_mut(a.len() / 2);
    for (x, y) in low.iter_mut().zip(high) {
        let (u, v) = (to_float(*x), m.mul(to_float(*y), root));
        (*x, *y) = ((u + v).to_bits(), (u - v).to_bits());
    }
}

/// The layer of the block that is number `node` of the tree whose root is 1, and that of its halves.
#[inline(always)]
fn two_layers(block: &mut [u64], node: usize, roots: &[f64], m: Double) {
    let roots = [roots[node], roots[2 * node], roots[2 * node + 1]];
    let (ab, cd) = block.split_at_mut(block.len() / 2);
    let (a, b) = ab.split_at_mut(ab.len() / 2);
    let (c, d) = cd.split_at_mut(cd.len() / 2);
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let [w, x, y, z] = [*a, *b, *c, *d].map(f64::from_bits);
        [*a, *b, *c, *d] = butterflies([w, x, y, z], roots, m).map(f64::to_bits);
    }
}

#[inline(always)]
fn butterflies([a, b, c, d]: [f64; 4], roots: [f64; 3], m: Double) -> [f64; 4] {
    let (a, b, c, d) = (m.reduce(a), m.reduce(b), m.mul(c, roots[0]), m.mul(d, roots[0]));
    let (a, c, b, d) = (a + c, a - c, m.mul(b + d, roots[1]), m.mul(b - d, roots[2]));
    [a + b, a - b, c + d, c - d]
}

#[inline(always)]
fn last_layers(a: &mut [u64], node: usize, roots: &[f64], m: Double) {
    let count = a.len() / 4;
    let (first, second) = (&roots[node..node + count], &roots[2 * node..2 * (node + count)]);
    for ((four, first), second) in a.as_chunks_mut::<4>().0.iter_mut().zip(first).zip(second.as_chunks::<2>().0) {
        let values = butterflies(four.map(f64::from_bits), [*first, second[0], second[1]], m);
        *four = values.map(|x| m.to_integer(m.reduce(x)));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn backward(a: &mut [u64], table: &Table) {
    let Table { double, inverse_roots, n_inverse, .. } = table;
    let n = a.len();
    let width_max = n >> (n.trailing_zeros() % 2);
    // A power of four, as that is.
    let block_width = width_max.min(BLOCK);
    for (i, block) in a.chunks_exact_mut(block_width).enumerate() {
        let first = n / block_width + i;
        first_layers_back(block, first * (block_width / 4), inverse_roots, *double);
        if block_width >= 16 {
            let node = first * (block_width / 16);
            for (i, block) in block.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                two_layers_back(block, node + i, inverse_roots, *double);
            }
        }
        let mut width = 64;
        while width <= block_width {
            let node = first * (block_width / width);
            for (i, block) in block.chunks_exact_mut(width).enumerate() {
                two_layers_back(block, node + i, inverse_roots, *double);
            }
            width *= 4;
        }
    }
    let mut width = 4 * block_width;
    while width <= n {
        for (i, block) in a.chunks_exact_mut(width).enumerate() {
            two_layers_back(block, n / width + i, inverse_roots, *double);
        }
        width *= 4;
    }
    let scaled = |x: f64| double.to_integer(double.mul(x, *n_inverse));
    if width_max < n {
        let (low, high) = a.split_at_mut(n / 2);
        for (x, y) in low.iter_mut().zip(high) {
            let (u, v) = (f64::from_bits(*x), f64::from_bits(*y));
            (*x, *y) = (scaled(u + v), scaled(double.mul(u - v, inverse_roots[1])));
        }
    } else {
        a.iter_mut().for_each(|x| *x = scaled(f64::from_bits(*x)));
    }
}

#[inline(always)]
fn two_layers_back(block: &mut [u64], node: usize, roots: &[f64], m: Double) {
    let roots = [roots[node], roots[2 * node], roots[2 * node + 1]];
    let (ab, cd) = block.split_at_mut(block.len() / 2);
    let (a, b) = ab.split_at_mut(ab.len() / 2);
    let (c, d) = cd.split_at_mut(cd.len() / 2);
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let [w, x, y, z] = [*a, *b, *c, *d].map(f64::from_bits);
        [*a, *b, *c, *d] = butterflies_back([w, x, y, z], roots, m).map(f64::to_bits);
    }
}

#[inline(always)]
fn butterflies_back([a, b, c, d]: [f64; 4], roots: [f64; 3], m: Double) -> [f64; 4] {
    let (a, b, c, d) = (m.reduce(a + b), m.mul(a - b, roots[1]), m.reduce(c + d), m.mul(c - d, roots[2]));
    [m.reduce(a + c), m.reduce(b + d), m.mul(a - c, roots[0]), m.mul(b - d, roots[0])]
}

#[inline(always)]
fn first_layers_back(a: &mut [u64], node: usize, roots: &[f64], m: Double) {
    let count = a.len() / 4;
    let (first, second) = (&roots[node..node + count], &roots[2 * node..2 * (node + count)]);
    for ((four, first), second) in a.as_chunks_mut::<4>().0.iter_mut().zip(first).zip(second.as_chunks::<2>().0) {
        let values = four.map(|x| m.reduce(to_float(x)));
        *four = butterflies_back(values, [*first, second[0], second[1]], m).map(f64::to_bits);
    }
}
