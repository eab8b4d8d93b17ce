//! In doubles, with the bounds of [`double`](crate::double) as multiples of 2^50: every sum stays within 8.

use super::{CHUNK, TERMS};
use crate::double::{Double, to_float};
use multiversion::multiversion;

/// Parts that [`join`] has room for.
pub(super) const PARTS_MAX: usize = 4;

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn mul(m: Double, x: &mut [u64], y: &[u64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.to_integer(m.mul(to_float(*x), to_float(*y)));
    }
}

/// A reduced sum (1/2) and eight products of residues from 0 to p (7/8 each).
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn sum_of_products(m: Double, n: usize, pairs: &[(&[u64], &[u64])], sums: &mut Vec<u64>) {
    for start in (0..n).step_by(CHUNK) {
        let places = start..n.min(start + CHUNK);
        let mut held = [0.0; CHUNK];
        for pairs in pairs.chunks(TERMS) {
            for (x, y) in pairs {
                for ((held, x), y) in held.iter_mut().zip(&x[places.clone()]).zip(&y[places.clone()]) {
                    *held += m.mul(to_float(*x), to_float(*y));
                }
            }
            held.iter_mut().for_each(|held| *held = m.reduce(*held));
        }
        sums.extend(held[..places.len()].iter().map(|held| m.to_integer(*held)));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn difference_times(m: Double, x: &mut [u64], y: &[u64], factor: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.to_integer(m.mul(to_float(*x) - to_float(*y), factor));
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn split(m: Double, x: &mut [u64], factor: f64, fractions: &mut [f64]) {
    let share = 1.0 / m.p;
    for (x, fraction) in x.iter_mut().zip(fractions) {
        let part = m.positive(m.mul(to_float(*x), factor));
        *fraction += part * share;
        *x = m.to_integer(part);
    }
}

/// Four products of a part (2) and a factor around 0 (7/8 each), and as many times half a modulus at most: 5.5.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(super) fn join(
    m: Double,
    parts: &[u64],
    factors: &[f64],
    (fractions, product): (&[f64], f64),
    sums: &mut Vec<u64>,
) {
    let (n, mut held) = (fractions.len(), [0.0; CHUNK]);
    for start in (0..n).step_by(CHUNK) {
        let places = start..n.min(start + CHUNK);
        for (held, fraction) in held.iter_mut().zip(&fractions[places.clone()]) {
            *held = -product * (fraction + 0.5).floor();
        }
        for (part, factor) in parts.chunks_exact(n).zip(factors) {
            for (held, part) in held.iter_mut().zip(&part[places.clone()]) {
                *held += m.mul(to_float(*part), *factor);
            }
        }
        sums.extend(held[..places.len()].iter().map(|held| m.to_integer(m.reduce(*held))));
    }
}
