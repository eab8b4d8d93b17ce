//! The transforms in integers, with butterflies by Harvey (arXiv 1205.2926): values stay below 4q on the way there and below 2q
//! on the way back, and are reduced once at the end.

use super::Modulus;
use crate::modulus::Factor;

/// What the transforms modulo one prime need.
pub(super) struct Table {
    modulus: Modulus,
    roots: Vec<Factor>,
    inverse_roots: Vec<Factor>,
    n_inverse: Factor,
}

impl Table {
    pub(super) fn new(modulus: Modulus, roots: &[u64], inverse_roots: &[u64], n_inverse: u64) -> Self {
        let factors = |roots: &[u64]| roots.iter().map(|w| modulus.factor(*w)).collect();
        let (roots, inverse_roots) = (factors(roots), factors(inverse_roots));
        Self { modulus, roots, inverse_roots, n_inverse: modulus.factor(n_inverse) }
    }

    pub(super) fn forward(&self, a: &mut [u64]) {
        let (m, n) = (self.modulus, a.len());
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

    pub(super) fn backward(&self, a: &mut [u64]) {
        let (m, n) = (self.modulus, a.len());
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
