//! In integers.

use super::{CHUNK, TERMS};
use crate::modulus::{Factor, Modulus};

pub(super) fn mul(m: Modulus, x: &mut [u64], y: &[u64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.mul(*x, *y);
    }
}

pub(super) fn sum_of_products(m: Modulus, n: usize, pairs: &[(&[u64], &[u64])], sums: &mut Vec<u64>) {
    for start in (0..n).step_by(CHUNK) {
        let places = start..n.min(start + CHUNK);
        let mut held = [0_u128; CHUNK];
        for pairs in pairs.chunks(TERMS) {
            for (x, y) in pairs {
                for ((held, x), y) in held.iter_mut().zip(&x[places.clone()]).zip(&y[places.clone()]) {
                    *held += u128::from(*x) * u128::from(*y);
                }
            }
            // Eight products of at most (q − 1)² and a residue.
            held.iter_mut().for_each(|held| *held = m.reduce_sum(*held).into());
        }
        sums.extend(held[..places.len()].iter().map(|held| *held as u64));
    }
}

pub(super) fn difference_times(m: Modulus, x: &mut [u64], y: &[u64], factor: Factor) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.mul_factor(m.sub(*x, *y), factor);
    }
}

pub(super) fn split(m: Modulus, x: &mut [u64], factor: Factor, fractions: &mut [f64]) {
    #[expect(clippy::cast_precision_loss, reason = "below 2^51, exact")]
    let share = 1.0 / m.value() as f64;
    for (x, fraction) in x.iter_mut().zip(fractions) {
        *x = m.mul_factor(*x, factor);
        #[expect(clippy::cast_precision_loss, reason = "below 2^51, exact")]
        let part = *x as f64;
        *fraction += part * share;
    }
}

pub(super) fn join(
    m: Modulus,
    parts: &[u64],
    factors: &[Factor],
    (fractions, product): (&[f64], Factor),
    sums: &mut Vec<u64>,
) {
    let start = sums.len();
    sums.extend(fractions.iter().map(|fraction| m.sub(0, m.mul_factor((fraction + 0.5) as u64, product))));
    let sums = &mut sums[start..];
    for (part, factor) in parts.chunks_exact(fractions.len()).zip(factors) {
        for (sum, part) in sums.iter_mut().zip(part) {
            // Below 2q each, and fewer than 2^12 of them.
            *sum += m.mul_lazy(*part, *factor);
        }
    }
    sums.iter_mut().for_each(|sum| *sum = m.reduce(*sum));
}
