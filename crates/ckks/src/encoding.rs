//! Real numbers as integer polynomials and back: the canonical embedding.
//!
//! A plaintext of n/2 slots is the polynomial m with m(ζ_j) = scale·z_j at the n/2 roots ζ_j = ζ^(5^j) of X^n + 1, one of each
//! conjugate pair, ζ = e^(πi/n). The order by powers of 5 makes X → X^5 a rotation of the slots. Source: Cheon, Kim, Kim, Song, "Homomorphic encryption for arithmetic of
//! approximate numbers" (ASIACRYPT 2017), section 3.2; the fast transform by butterflies over the group of 5.
//!
//! Errors: rounding to integers moves a slot by at most n/(2·scale), typically √(n/12)/scale; `f64` adds about 2^-50 of the
//! largest value.

use crate::ntt::reversed;
use num_complex::Complex64;
use std::f64::consts::PI;

/// Roots of unity for one dimension.
pub(crate) struct Embedding {
    slots: usize,
    /// e^(2πi·k / 4·slots), for k < 4·slots.
    roots: Vec<Complex64>,
    /// 5^j modulo 4·slots.
    powers_of_five: Vec<usize>,
}

impl Embedding {
    pub(crate) fn new(n: usize) -> Self {
        let (slots, order) = (n / 2, 2 * n);
        #[expect(clippy::cast_precision_loss, reason = "below 2^18")]
        let roots = (0..order).map(|k| Complex64::from_polar(1.0, 2.0 * PI * k as f64 / order as f64)).collect();
        let powers = std::iter::successors(Some(1), |power| Some(power * 5 % order));
        Self { slots, roots, powers_of_five: powers.take(slots).collect() }
    }

    /// Values of the slots from coefficients: the real part of entry i is coefficient i, the imaginary one that of
    /// i + slots.
    pub(crate) fn values(&self, a: &mut [Complex64]) {
        assert_eq!(a.len(), self.slots);
        self.reverse(a);
        let mut length = 2;
        while length <= self.slots {
            let (half, order) = (length / 2, 4 * length);
            for block in a.chunks_exact_mut(length) {
                let (low, high) = block.split_at_mut(half);
                for ((x, y), power) in low.iter_mut().zip(high).zip(&self.powers_of_five) {
                    let turned = *y * self.roots[power % order * (self.roots.len() / order)];
                    (*x, *y) = (*x + turned, *x - turned);
                }
            }
            length *= 2;
        }
    }

    /// The way back from values.
    pub(crate) fn coefficients(&self, a: &mut [Complex64]) {
        assert_eq!(a.len(), self.slots);
        let mut length = self.slots;
        while length >= 2 {
            let (half, order) = (length / 2, 4 * length);
            for block in a.chunks_exact_mut(length) {
                let (low, high) = block.split_at_mut(half);
                for ((x, y), power) in low.iter_mut().zip(high).zip(&self.powers_of_five) {
                    let turn = self.roots[power % order * (self.roots.len() / order)].conj();
                    (*x, *y) = (*x + *y, (*x - *y) * turn);
                }
            }
            length /= 2;
        }
        self.reverse(a);
        #[expect(clippy::cast_precision_loss, reason = "below 2^18")]
        let share = 1.0 / self.slots as f64;
        a.iter_mut().for_each(|x| *x *= share);
    }

    fn reverse(&self, a: &mut [Complex64]) {
        for i in 0..self.slots {
            let j = reversed(i, self.slots);
            if i < j {
                a.swap(i, j);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluates the polynomial at each root, as the definition says.
    fn by_definition(n: usize, a: &[Complex64]) -> Vec<Complex64> {
        let (slots, order) = (n / 2, 2 * n);
        let coefficient = |i: usize| if i < slots { a[i].re } else { a[i - slots].im };
        let mut power = 1;
        (0..slots)
            .map(|_| {
                let root =
                    |i: usize| Complex64::from_polar(1.0, 2.0 * PI * ((power * i) % order) as f64 / order as f64);
                let value = (0..n).map(|i| root(i) * coefficient(i)).sum();
                power = power * 5 % order;
                value
            })
            .collect()
    }

    #[test]
    fn the_transform_is_the_definition_and_turns_back() {
        for n in [4, 16, 256] {
            let embedding = Embedding::new(n);
            let number = |i: usize, k: f64| ((i as f64 + 1.0) * k).sin() * 3.0;
            let a: Vec<Complex64> = (0..n / 2).map(|i| Complex64::new(number(i, 1.3), number(i, 2.7))).collect();
            let mut values = a.clone();
            embedding.values(&mut values);
            let largest = by_definition(n, &a).iter().zip(&values).map(|(x, y)| (x - y).norm()).fold(0.0, f64::max);
            assert!(largest < 1e-10 * n as f64, "{n}: {largest}");
            embedding.coefficients(&mut values);
            let largest = a.iter().zip(&values).map(|(x, y)| (x - y).norm()).fold(0.0, f64::max);
            assert!(largest < 1e-13, "{n}: {largest}");
        }
    }
}
