//! From one residue number system to another.

use crate::kernel;
use crate::modulus::{Factor, Modulus};

/// From residues modulo some primes, whose product is M, to residues of the same whole number in [−M/2, M/2) modulo others.
///
/// x = Σ y_i·(M/p_i) − v·M with y_i = x·(M/p_i)⁻¹ mod p_i and v = round(Σ y_i/p_i). Close to ±M/2 the rounding may fall
/// to the other side: the result then differs from the centred one by M, which is the same residue.
pub(crate) struct Conversion {
    from: Vec<Source>,
    to: Vec<Target>,
}

struct Source {
    modulus: Modulus,
    /// (M/p)⁻¹ modulo p.
    inverse: Factor,
}

struct Target {
    modulus: Modulus,
    /// M/p modulo this one, for each p.
    factors: Vec<Factor>,
    /// M modulo this one.
    product: Factor,
    /// 1/M modulo this one.
    product_inverse: Factor,
}

/// The y_i of polynomials, limb after limb, and Σ y_i/p_i.
pub(crate) struct Parts {
    parts: Vec<u64>,
    fractions: Vec<f64>,
}

impl Conversion {
    pub(crate) fn new(from: &[Modulus], to: &[Modulus]) -> Self {
        let without = |skipped: usize, modulus: Modulus| {
            let others = from.iter().enumerate().filter(|(i, _)| *i != skipped);
            others.fold(1, |product, (_, p)| modulus.mul(product, modulus.reduce(p.value())))
        };
        let source = |(i, p): (usize, &Modulus)| Source { modulus: *p, inverse: p.factor(p.inverse(without(i, *p))) };
        let target = |modulus: &Modulus| {
            let product = without(usize::MAX, *modulus);
            Target {
                modulus: *modulus,
                factors: (0..from.len()).map(|i| modulus.factor(without(i, *modulus))).collect(),
                product: modulus.factor(product),
                product_inverse: modulus.factor(modulus.inverse(product)),
            }
        };
        Self { from: from.iter().enumerate().map(source).collect(), to: to.iter().map(target).collect() }
    }

    /// The first half: of coefficients, limb after limb.
    pub(crate) fn split(&self, mut coefficients: Vec<u64>) -> Parts {
        let n = coefficients.len() / self.from.len();
        let mut fractions = vec![0.0; n];
        for (limb, Source { modulus, inverse }) in coefficients.chunks_exact_mut(n).zip(&self.from) {
            kernel::split(*modulus, limb, *inverse, &mut fractions);
        }
        Parts { parts: coefficients, fractions }
    }

    /// The second half: coefficients modulo the target of that number, in place of what `coefficients` holds.
    pub(crate) fn join(&self, target: usize, Parts { parts, fractions }: &Parts, coefficients: &mut Vec<u64>) {
        let Target { modulus, factors, product, .. } = &self.to[target];
        coefficients.clear();
        kernel::join(*modulus, parts, factors, (fractions, *product), coefficients);
    }

    /// x := (x − rest)/M modulo the target of that number.
    pub(crate) fn divide(&self, target: usize, x: &mut [u64], rest: &[u64]) {
        let Target { modulus, product_inverse, .. } = &self.to[target];
        kernel::difference_times(*modulus, x, rest, *product_inverse);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulus::ntt_primes;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_conversion_keeps_the_centred_number(x in any::<i64>(), small in -1000_i64..1000) {
            let primes: Vec<Modulus> = ntt_primes(16, 40, 4, &mut Vec::new()).into_iter().map(Modulus::new).collect();
            let conversion = Conversion::new(&primes[..2], &primes[2..]);
            let residues = |moduli: &[Modulus]| -> Vec<u64> {
                moduli.iter().flat_map(|m| [m.reduce_signed(x), m.reduce_signed(small)]).collect()
            };
            let parts = conversion.split(residues(&primes[..2]));
            for target in 0..2 {
                let mut found = vec![0];
                conversion.join(target, &parts, &mut found);
                prop_assert_eq!(found, residues(&primes[2 + target..3 + target]));
            }
        }
    }
}
