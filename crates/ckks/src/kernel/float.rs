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
pub(super) fn sum_of_products(m: Double, sum: &mut [u64], pairs: &[(&[u64], &[u64])]) {
    for (i, sum) in sum.chunks_mut(CHUNK).enumerate() {
        let places = i * CHUNK..i * CHUNK + sum.len();
        let mut held = [0.0; CHUNK];
        for pairs in pairs.chunks(TERMS) {
            for (x, y) in pairs {
                for ((held, x), y) in held.iter_mut().zip(&x[places.clone()]).zip(&y[places.clone()]) {
                    *held += m.mul(to_float(*x), to_float(*y));
                }
            }
            held.iter_mut().for_each(|held| *held = m.reduce(*held));
        }
        for (sum, held) in sum.iter_mut().zip(held) {
            *sum = m.to_integer(held);
        }
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
pub(super) fn join(m: Double, sum: &mut [u64], parts: &[u64], factors: &[f64], (fractions, product): (&[f64], f64)) {
    let n = sum.len();
    for (i, sum) in sum.chunks_mut(CHUNK).enumerate() {
        let places = i * CHUNK..i * CHUNK + sum.len();
        let mut held = [0.0; CHUNK];
        for (held, fraction) in held.iter_mut().zip(&fractions[places.clone()]) {
            *held = -product * (fraction + 0.5).floor();
        }
        for (part, factor) in parts.chunks_exact(n).zip(factors) {
            for (held, part) in held.iter_mut().zip(&part[places.clone()]) {
                *held += m.mul(to_float(*part), *factor);
            }
        }
        for (sum, held) in sum.iter_mut().zip(held) {
            *sum = m.to_integer(m.reduce(held));
        }
    }
}
