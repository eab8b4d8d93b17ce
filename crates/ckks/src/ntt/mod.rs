//! The negacyclic number-theoretic transform: products in Z_q[X]/(X^n + 1) become point-wise.
//!
//! With ψ a primitive 2n-th root of one, place p of a transform holds the value of the polynomial at ψ^(2·r(p) + 1), where
//! r reverses the bits of p. The powers of ψ are merged into the butterflies (Longa, Naehrig, ePrint 2016/504). There are two
//! ways to compute it, which give the same residues below q: [`integer`] anywhere, [`float`] where that is faster.

mod float;
mod integer;

use crate::modulus::Modulus;

/// What transforms modulo one prime need.
pub(crate) struct NttTable {
    n: usize,
    integer: integer::Table,
    /// The same results in less time, where the processor can.
    float: Option<float::Table>,
}

impl NttTable {
    /// # Panics
    /// If q is not 1 modulo 2n, or n no power of two: moduli come from the presets.
    pub(crate) fn new(modulus: Modulus, n: usize) -> Self {
        let q = modulus.value();
        assert!(n.is_power_of_two() && (q - 1).is_multiple_of(2 * n as u64), "{q} has no transform of {n}");
        let psi = primitive_root(modulus, 2 * n as u64);
        let of = |root: u64| -> Vec<u64> {
            let mut powers = vec![1; n];
            for i in 1..n {
                powers[i] = modulus.mul(powers[i - 1], root);
            }
            (0..n).map(|i| powers[reversed(i, n)]).collect()
        };
        let (roots, inverse_roots) = (of(psi), of(modulus.inverse(psi)));
        let n_inverse = modulus.inverse(n as u64);
        Self {
            n,
            integer: integer::Table::new(modulus, &roots, &inverse_roots, n_inverse),
            float: float::Table::new(modulus, &roots, &inverse_roots, n_inverse),
        }
    }

    /// Transforms coefficients below q in place.
    pub(crate) fn forward(&self, a: &mut [u64]) {
        assert_eq!(a.len(), self.n);
        match &self.float {
            Some(float) => float.forward(a),
            None => self.integer.forward(a),
        }
    }

    /// The way back: coefficients below q.
    pub(crate) fn backward(&self, a: &mut [u64]) {
        assert_eq!(a.len(), self.n);
        match &self.float {
            Some(float) => float.backward(a),
            None => self.integer.backward(a),
        }
    }
}

/// i with its bits reversed, as a place among n.
pub(crate) fn reversed(i: usize, n: usize) -> usize {
    if n == 1 { 0 } else { i.reverse_bits() >> (usize::BITS - n.trailing_zeros()) }
}

/// For each place of a transform of n, the place whose value a(X) → a(X^g) brings there, for odd g.
pub(crate) fn automorphism(n: usize, g: usize) -> Vec<usize> {
    let mask = 2 * n - 1;
    (0..n).map(|p| reversed((((2 * reversed(p, n) + 1) * g) & mask) >> 1, n)).collect()
}

/// An element of that order, a power of two: the smallest generator's, so that it is the same everywhere.
fn primitive_root(modulus: Modulus, order: u64) -> u64 {
    let q = modulus.value();
    let root = (2..q).map(|g| modulus.pow(g, (q - 1) / order)).find(|root| modulus.pow(*root, order / 2) == q - 1);
    // Half of all numbers are non-residues, any of which gives one.
    root.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulus::ntt_primes;
    use proptest::prelude::*;

    /// Product in Z_q[X]/(X^n + 1), as at school.
    fn school(m: Modulus, a: &[u64], b: &[u64]) -> Vec<u64> {
        let n = a.len();
        let mut product = vec![0; n];
        for (i, x) in a.iter().enumerate() {
            for (j, y) in b.iter().enumerate() {
                let term = m.mul(*x, *y);
                let at = (i + j) % n;
                product[at] = if i + j < n { m.add(product[at], term) } else { m.sub(product[at], term) };
            }
        }
        product
    }

    fn table(n: usize, bits: u32) -> (Modulus, NttTable) {
        let modulus = Modulus::new(ntt_primes(n, bits, 1, &mut Vec::new())[0]);
        (modulus, NttTable::new(modulus, n))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn products_are_those_of_school(log_n in 1_u32..8, bits in 20_u32..=51, seed in any::<u64>()) {
            let n = 1 << log_n;
            let (m, table) = table(n, bits);
            let draw = |salt: u64| -> Vec<u64> {
                (0..n as u64).map(|i| m.reduce((seed ^ salt).wrapping_mul(i * 2 + 1).rotate_left(29) ^ (seed << 7))).collect()
            };
            let (mut a, mut b) = (draw(1), draw(0x9e37_79b9_7f4a_7c15));
            let of_integers = |a: &[u64], there: bool| {
                let mut a = a.to_vec();
                if there { table.integer.forward(&mut a) } else { table.integer.backward(&mut a) }
                a
            };
            for a in [&a, &b, &vec![0; n], &vec![m.value() - 1; n], &vec![m.value() / 2; n], &vec![m.value() / 2 + 1; n]] {
                let (mut there, mut back) = (a.clone(), a.clone());
                table.forward(&mut there);
                prop_assert_eq!(there, of_integers(a, true));
                table.backward(&mut back);
                prop_assert_eq!(back, of_integers(a, false));
            }
            let expected = school(m, &a, &b);
            let before = a.clone();
            table.forward(&mut a);
            table.forward(&mut b);
            prop_assert!(a.iter().chain(&b).all(|x| *x < m.value()));
            let mut product: Vec<u64> = a.iter().zip(&b).map(|(x, y)| m.mul(*x, *y)).collect();
            table.backward(&mut product);
            prop_assert_eq!(product, expected);
            table.backward(&mut a);
            prop_assert_eq!(a, before);
        }
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        for bits in [50, 51] {
            let (m, table) = table(32_768, bits);
            // All the same, and of alternating size, which adds up in some place.
            for step in [1, 2, 3] {
                let mut a: Vec<u64> = (0..32_768_u64)
                    .map(|i| if i.is_multiple_of(step) { m.value() - 1 } else { m.value() / 2 })
                    .collect();
                let before = a.clone();
                let mut of_integers = a.clone();
                table.forward(&mut a);
                table.integer.forward(&mut of_integers);
                assert_eq!(a, of_integers);
                table.backward(&mut a);
                assert_eq!(a, before);
            }
        }
    }

    #[test]
    fn an_automorphism_moves_values_as_it_moves_coefficients() {
        let n = 64;
        let (m, table) = table(n, 30);
        let a: Vec<u64> = (0..n as u64).map(|i| m.reduce(i * i * 31 + 7)).collect();
        for g in [3, 5, 25, 2 * n - 1] {
            let mut moved = vec![0; n];
            for (i, x) in a.iter().enumerate() {
                let at = i * g % (2 * n);
                moved[at % n] = if at < n { *x } else { m.sub(0, *x) };
            }
            let (mut values, mut expected) = (a.clone(), moved);
            table.forward(&mut values);
            table.forward(&mut expected);
            let by_place: Vec<u64> = automorphism(n, g).iter().map(|p| values[*p]).collect();
            assert_eq!(by_place, expected, "{g}");
        }
    }
}
