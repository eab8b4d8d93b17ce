//! The inner loops, each over one limb. There are two ways to compute them, which give the same residues below q: [`integer`]
//! anywhere, [`float`] where that is faster.

mod float;
mod integer;

use crate::double::{Double, centered};
use crate::modulus::{Factor, Modulus};
use multiversion::multiversion;

/// Values that are worked on at a time, in the first cache.
const CHUNK: usize = 512;

/// So many products are summed between two reductions.
const TERMS: usize = 8;

/// x := x + y.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(crate) fn add(m: Modulus, x: &mut [u64], y: &[u64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.add(*x, *y);
    }
}

/// x := x − y.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(crate) fn sub(m: Modulus, x: &mut [u64], y: &[u64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x = m.sub(*x, *y);
    }
}

/// x := x·y.
pub(crate) fn mul(m: Modulus, x: &mut [u64], y: &[u64]) {
    match Double::new(m) {
        Some(double) => float::mul(double, x, y),
        None => integer::mul(m, x, y),
    }
}

/// Appends Σ x·y of all pairs (x, y), place by place: n values.
pub(crate) fn sum_of_products(m: Modulus, n: usize, pairs: &[(&[u64], &[u64])], sums: &mut Vec<u64>) {
    match Double::new(m) {
        Some(double) => float::sum_of_products(double, n, pairs, sums),
        None => integer::sum_of_products(m, n, pairs, sums),
    }
}

/// x := (x − y)·factor.
pub(crate) fn difference_times(m: Modulus, x: &mut [u64], y: &[u64], factor: Factor) {
    match Double::new(m) {
        Some(double) => float::difference_times(double, x, y, centered(m, factor.value())),
        None => integer::difference_times(m, x, y, factor),
    }
}

/// x := x·factor, and adds x/q to `fractions`. Both ways round in the same places, so that they agree on these, too.
pub(crate) fn split(m: Modulus, x: &mut [u64], factor: Factor, fractions: &mut [f64]) {
    match Double::new(m) {
        Some(double) => float::split(double, x, centered(m, factor.value()), fractions),
        None => integer::split(m, x, factor, fractions),
    }
}

/// Appends what [`split`] made of limbs, whose product is `product` modulo q, modulo q: Σ part·factor − product·⌊fraction + ½⌋.
///
/// Parts are limb after limb, of any moduli; for each there is one of `factors`.
pub(crate) fn join(
    m: Modulus,
    parts: &[u64],
    factors: &[Factor],
    (fractions, product): (&[f64], Factor),
    sums: &mut Vec<u64>,
) {
    match Double::new(m) {
        Some(double) if factors.len() <= float::PARTS_MAX => {
            let mut around_0 = [0.0; float::PARTS_MAX];
            around_0.iter_mut().zip(factors).for_each(|(f, factor)| *f = centered(m, factor.value()));
            let product = centered(m, product.value());
            float::join(double, parts, &around_0[..factors.len()], (fractions, product), sums);
        }
        _ => integer::join(m, parts, factors, (fractions, product), sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulus::ntt_primes;
    use proptest::prelude::*;

    /// Residues of every size, the largest and those around a half among them.
    fn residues(m: Modulus, seed: u64, n: usize) -> Vec<u64> {
        let q = m.value();
        let special = [0, 1, q / 2, q / 2 + 1, q - 2, q - 1];
        let any = |i: u64| m.reduce((seed ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(i | 1));
        (0..n as u64).map(|i| special.get((any(i) % 12) as usize).copied().unwrap_or(any(i + 1))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn doubles_give_the_residues_that_integers_give(
            bits in 20_u32..=50, pairs in 0_usize..20, sources in 1..=float::PARTS_MAX, seed in any::<u64>(), n in 1_usize..1100,
        ) {
            let mut taken = Vec::new();
            let m = Modulus::new(ntt_primes(64, bits, 1, &mut taken)[0]);
            let Some(double) = Double::new(m) else { return Ok(()) };
            let of = |salt: usize| residues(m, seed.wrapping_add((salt as u64) << 32), n);
            let factor = m.factor(of(0)[n / 2]);
            let w = centered(m, factor.value());

            let all: Vec<[Vec<u64>; 2]> = (0..pairs).map(|i| [of(2 * i), of(2 * i + 1)]).collect();
            let largest = vec![m.value() - 1; n];
            let mut references: Vec<(&[u64], &[u64])> = all.iter().map(|[x, y]| (&x[..], &y[..])).collect();
            for _ in 0..3 {
                let (mut one, mut other) = (vec![1], vec![1]);
                float::sum_of_products(double, n, &references, &mut one);
                integer::sum_of_products(m, n, &references, &mut other);
                prop_assert_eq!(one, other);
                references = vec![(&largest, &largest); references.len() + 8];
            }

            for y in [of(2), largest] {
                let (mut one, mut other) = (of(1), of(1));
                float::mul(double, &mut one, &y);
                integer::mul(m, &mut other, &y);
                prop_assert_eq!(one, other);
            }

            let (mut one, mut other) = (of(1), of(1));
            float::difference_times(double, &mut one, &of(2), w);
            integer::difference_times(m, &mut other, &of(2), factor);
            prop_assert_eq!(one, other);

            let mut fractions = [vec![0.25; n], vec![0.25; n]];
            let (mut one, mut other) = (of(1), of(1));
            float::split(double, &mut one, w, &mut fractions[0]);
            integer::split(m, &mut other, factor, &mut fractions[1]);
            prop_assert_eq!(one, other);
            prop_assert_eq!(&fractions[0], &fractions[1]);

            // Parts of the largest modulus there is.
            let wide = Modulus::new(ntt_primes(64, 51, 1, &mut taken)[0]);
            let parts = residues(wide, seed, sources * n);
            let fractions: Vec<f64> = parts[..n].iter().map(|x| *x as f64 / wide.value() as f64 * sources as f64).collect();
            let factors: Vec<Factor> = of(3).into_iter().chain([m.value() / 2; 4]).take(sources).map(|w| m.factor(w)).collect();
            let (mut one, mut other) = (vec![1], vec![1]);
            let around_0: Vec<f64> = factors.iter().map(|f| centered(m, f.value())).collect();
            float::join(double, &parts, &around_0, (&fractions, w), &mut one);
            integer::join(m, &parts, &factors, (&fractions, factor), &mut other);
            prop_assert_eq!(one, other);
        }
    }
}
