//! The negacyclic number-theoretic transform: products in Z_q[X]/(X^n + 1) become point-wise.
//!
//! With ψ a primitive 2n-th root of one, place p of a transform holds the value of the polynomial at ψ^(2·r(p) + 1), where
//! r reverses the bits of p. Butterflies by Harvey (arXiv 1205.2926) with the powers of ψ merged in (Longa, Naehrig,
//! ePrint 2016/504): values stay below 4q on the way there and below 2q on the way back, and are reduced once at the end.

use crate::modulus::{Factor, Modulus};

/// What transforms modulo one prime need.
pub(crate) struct NttTable {
    modulus: Modulus,
    /// ψ^r(i), for i < n.
    roots: Vec<Factor>,
    /// ψ^−r(i), for i < n.
    inverse_roots: Vec<Factor>,
    /// 1/n.
    n_inverse: Factor,
}

impl NttTable {
    /// # Panics
    /// If q is not 1 modulo 2n, or n no power of two: moduli come from the presets.
    pub(crate) fn new(modulus: Modulus, n: usize) -> Self {
        let q = modulus.value();
        assert!(n.is_power_of_two() && (q - 1).is_multiple_of(2 * n as u64), "{q} has no transform of {n}");
        let psi = primitive_root(modulus, 2 * n as u64);
        let of = |root: u64| {
            let mut powers = vec![1; n];
            for i in 1..n {
                powers[i] = modulus.mul(powers[i - 1], root);
            }
            (0..n).map(|i| modulus.factor(powers[reversed(i, n)])).collect()
        };
        Self {
            modulus,
            roots: of(psi),
            inverse_roots: of(modulus.inverse(psi)),
            n_inverse: modulus.factor(modulus.inverse(n as u64)),
        }
    }

    /// Transforms coefficients below q in place.
    pub(crate) fn forward(&self, a: &mut [u64]) {
        let (m, n) = (self.modulus, a.len());
        assert_eq!(n, self.roots.len());
        let two_q = 2 * m.value();
        let (mut half, mut blocks) = (n / 2, 1);
        while blocks < n {
            for (block, root) in a.chunks_exact_mut(2 * half).zip(&self.roots[blocks..]) {
                let (low, high) = block.split_at_mut(half);
                for (x, y) in low.iter_mut().zip(high) {
                    // Below 4q; then below 2q.
                    let u = (*x).min(x.wrapping_sub(two_q));
                    let v = m.mul_lazy(*y, *root);
                    (*x, *y) = (u + v, u + two_q - v);
                }
            }
            blocks *= 2;
            half /= 2;
        }
        for x in a {
            let below = (*x).min(x.wrapping_sub(two_q));
            *x = below.min(below.wrapping_sub(m.value()));
        }
    }

    /// The way back: coefficients below q.
    pub(crate) fn backward(&self, a: &mut [u64]) {
        let (m, n) = (self.modulus, a.len());
        assert_eq!(n, self.roots.len());
        let two_q = 2 * m.value();
        let (mut half, mut blocks) = (1, n / 2);
        while blocks > 0 {
            for (block, root) in a.chunks_exact_mut(2 * half).zip(&self.inverse_roots[blocks..]) {
                let (low, high) = block.split_at_mut(half);
                for (x, y) in low.iter_mut().zip(high) {
                    let (u, v) = (*x, *y);
                    let sum = u + v;
                    (*x, *y) = (sum.min(sum.wrapping_sub(two_q)), m.mul_lazy(u + two_q - v, *root));
                }
            }
            blocks /= 2;
            half *= 2;
        }
        for x in a {
            *x = m.mul_factor(*x, self.n_inverse);
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
        let (m, table) = table(1024, 51);
        let mut a = vec![m.value() - 1; 1024];
        let before = a.clone();
        table.forward(&mut a);
        table.backward(&mut a);
        assert_eq!(a, before);
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
