//! Everything that a preset determines: primes, transforms and conversions between residue systems.

use crate::encoding::Embedding;
use crate::modulus::{Factor, Modulus, ntt_primes};
use crate::ntt::NttTable;
use crate::{CkksError, Preset};
use std::ops::Range;
use std::sync::Arc;

/// The precomputed side of a preset, shared by keys and ciphertexts.
///
/// Polynomials are kept limb after limb in the transform's order. Level l has the limbs 0 to l; the primes of P come after
/// all limbs and belong to no ciphertext.
pub struct Context {
    preset: &'static Preset,
    /// Those of Q, then those of P.
    moduli: Vec<Modulus>,
    tables: Vec<NttTable>,
    pub(crate) embedding: Embedding,
    /// 1/q_l modulo q_j, for each level l and j < l.
    rescale: Vec<Vec<Factor>>,
    /// For each level, its digits.
    digits: Vec<Vec<Digit>>,
    /// From P to all limbs of Q.
    from_special: Conversion,
    /// 1/P modulo each limb.
    special_inverse: Vec<Factor>,
}

/// A group of limbs that key switching takes together.
struct Digit {
    limbs: Range<usize>,
    /// To every other limb of the level, in order, and P.
    conversion: Conversion,
}

/// From residues modulo some primes, whose product is M, to residues of the same whole number in [−M/2, M/2) modulo others.
struct Conversion {
    from: Vec<Modulus>,
    /// (M/p)⁻¹ modulo p.
    inverses: Vec<Factor>,
    /// 1/p.
    shares: Vec<f64>,
    to: Vec<Target>,
}

struct Target {
    modulus: Modulus,
    /// M/p modulo this one, for each p.
    factors: Vec<Factor>,
    /// −v·M modulo this one, for each v that there can be.
    corrections: Vec<u64>,
}

impl Conversion {
    fn new(from: &[Modulus], to: &[Modulus]) -> Self {
        let without = |skipped: usize, modulus: Modulus| {
            let others = from.iter().enumerate().filter(|(i, _)| *i != skipped);
            others.fold(1, |product, (_, p)| modulus.mul(product, modulus.reduce(p.value())))
        };
        let inverse = |(i, p): (usize, &Modulus)| p.factor(p.inverse(without(i, *p)));
        let target = |modulus: &Modulus| {
            let product = without(usize::MAX, *modulus);
            Target {
                modulus: *modulus,
                factors: (0..from.len()).map(|i| modulus.factor(without(i, *modulus))).collect(),
                corrections: (0..=from.len() as u64).map(|v| modulus.sub(0, modulus.mul(v, product))).collect(),
            }
        };
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let share = |p: &Modulus| 1.0 / p.value() as f64;
        Self {
            from: from.to_vec(),
            inverses: from.iter().enumerate().map(inverse).collect(),
            shares: from.iter().map(share).collect(),
            to: to.iter().map(target).collect(),
        }
    }

    /// Converts `from`, coefficients limb after limb, to coefficients limb after limb.
    ///
    /// x = Σ y_i·(M/p_i) − v·M with y_i = x·(M/p_i)⁻¹ mod p_i and v = round(Σ y_i/p_i). Close to ±M/2 the rounding may fall
    /// to the other side: the result then differs from the centred one by M, which is the same residue.
    fn convert(&self, from: &[u64], n: usize) -> Vec<u64> {
        let mut parts = vec![0; from.len()];
        let mut overflow = vec![0.0; n];
        for (i, (limb, parts)) in from.chunks_exact(n).zip(parts.chunks_exact_mut(n)).enumerate() {
            let (p, inverse, share) = (self.from[i], self.inverses[i], self.shares[i]);
            for ((x, y), sum) in limb.iter().zip(parts).zip(&mut overflow) {
                *y = p.mul_factor(*x, inverse);
                #[expect(clippy::cast_precision_loss, reason = "below 2^51, exact")]
                let y = *y as f64;
                *sum += y * share;
            }
        }
        let mut converted = Vec::with_capacity(self.to.len() * n);
        for Target { modulus, factors, corrections } in &self.to {
            let start = converted.len();
            // Half and more counts as one.
            converted.extend(overflow.iter().map(|v| corrections[(v + 0.5) as usize]));
            for (factor, parts) in factors.iter().zip(parts.chunks_exact(n)) {
                for (sum, y) in converted[start..].iter_mut().zip(parts) {
                    // Below 2q each, and fewer than 2^12 of them.
                    *sum += modulus.mul_lazy(*y, *factor);
                }
            }
            converted[start..].iter_mut().for_each(|sum| *sum = modulus.reduce(*sum));
        }
        converted
    }
}

impl Context {
    /// # Errors
    /// [`CkksError::Insecure`] if the preset's primes are too large for its dimension.
    pub fn new(preset: &'static Preset) -> Result<Arc<Self>, CkksError> {
        if !preset.is_secure() {
            return Err(CkksError::Insecure { preset: preset.name() });
        }
        let n = preset.n();
        let mut taken = Vec::new();
        let bits = preset.limb_bits().iter().chain(preset.special_bits());
        let moduli: Vec<Modulus> =
            bits.flat_map(|bits| ntt_primes(n, *bits, 1, &mut taken)).map(Modulus::new).collect();
        let limbs = preset.limb_bits().len();
        let (q, p) = moduli.split_at(limbs);
        let rescale = (0..limbs).map(|l| {
            let inverse = |j: usize| q[j].factor(q[j].inverse(q[j].reduce(q[l].value())));
            (0..l).map(inverse).collect()
        });
        let special = |q: &Modulus| {
            let product = p.iter().fold(1, |product, p| q.mul(product, q.reduce(p.value())));
            q.factor(q.inverse(product))
        };
        Ok(Arc::new(Self {
            preset,
            tables: moduli.iter().map(|m| NttTable::new(*m, n)).collect(),
            embedding: Embedding::new(n),
            rescale: rescale.collect(),
            digits: (0..limbs).map(|level| digits(preset, &moduli, level)).collect(),
            from_special: Conversion::new(p, q),
            special_inverse: q.iter().map(special).collect(),
            moduli,
        }))
    }

    /// The preset.
    #[must_use]
    pub fn preset(&self) -> &'static Preset {
        self.preset
    }

    /// Coefficients of a polynomial.
    #[must_use]
    pub fn n(&self) -> usize {
        self.preset.n()
    }

    /// The primes of Q.
    #[must_use]
    pub fn limbs(&self) -> &[Modulus] {
        &self.moduli[..self.preset.limb_bits().len()]
    }

    /// The primes of Q, then those of P.
    pub(crate) fn moduli(&self) -> &[Modulus] {
        &self.moduli
    }

    /// log2 of the product of a level's limbs.
    #[must_use]
    pub fn log2_modulus(&self, level: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "below 2^51, exact")]
        self.limbs()[..=level].iter().map(|q| (q.value() as f64).log2()).sum()
    }

    /// Number of digits of a key.
    pub(crate) fn digit_count(&self) -> usize {
        self.digits.last().map_or(0, Vec::len)
    }

    /// The limbs of a digit of a key.
    pub(crate) fn digit_limbs(&self, digit: usize) -> Range<usize> {
        self.digits.last().map_or(0..0, |digits| digits[digit].limbs.clone())
    }

    /// P modulo a limb.
    pub(crate) fn special_product(&self, limb: usize) -> u64 {
        let q = self.moduli[limb];
        self.moduli[self.limbs().len()..].iter().fold(1, |product, p| q.mul(product, q.reduce(p.value())))
    }

    /// Small whole numbers as the coefficients of a polynomial over the first `limbs` moduli, transformed.
    pub(crate) fn small(&self, coefficients: &[i64], limbs: usize) -> Vec<u64> {
        let mut polynomial: Vec<u64> =
            (self.moduli[..limbs].iter()).flat_map(|m| coefficients.iter().map(|c| m.reduce_signed(*c))).collect();
        self.forward(&mut polynomial, 0);
        polynomial
    }

    /// Transforms limbs, the first of which belongs to modulus `first`.
    pub(crate) fn forward(&self, polynomial: &mut [u64], first: usize) {
        for (limb, table) in polynomial.chunks_exact_mut(self.n()).zip(&self.tables[first..]) {
            table.forward(limb);
        }
    }

    /// The way back.
    pub(crate) fn backward(&self, polynomial: &mut [u64], first: usize) {
        for (limb, table) in polynomial.chunks_exact_mut(self.n()).zip(&self.tables[first..]) {
            table.backward(limb);
        }
    }

    /// Divides by the last limb's prime, rounding to the nearest, and drops that limb.
    pub(crate) fn rescale(&self, polynomial: &mut Vec<u64>) {
        let n = self.n();
        let level = polynomial.len() / n - 1;
        let mut last = polynomial.split_off(level * n);
        self.backward(&mut last, level);
        let q_last = self.moduli[level];
        let mut rest = vec![0; n];
        for (j, limb) in polynomial.chunks_exact_mut(n).enumerate() {
            let (q, inverse) = (self.moduli[j], self.rescale[level][j]);
            for (r, x) in rest.iter_mut().zip(&last) {
                *r = q.reduce_signed(q_last.centered(*x));
            }
            self.tables[j].forward(&mut rest);
            for (x, r) in limb.iter_mut().zip(&rest) {
                *x = q.mul_factor(q.sub(*x, *r), inverse);
            }
        }
    }

    /// Σ_digits d·key, divided by P: what is left of `d`·(the secret that the key stands for), under the secret key. `d` is a
    /// transformed polynomial of some level; `key` gives both polynomials of a digit, over all moduli.
    ///
    /// Hybrid key switching (Han, Ki, "Better bootstrapping for approximate homomorphic encryption", 2020, section 3): the
    /// error it adds is about √(n·digits)·(a digit's product / P)·σ before, and √n after, the division.
    pub(crate) fn switch<'k>(&self, d: &[u64], key: impl Fn(usize) -> (&'k [u64], &'k [u64])) -> [Vec<u64>; 2] {
        let n = self.n();
        let (limbs, all) = (d.len() / n, self.limbs().len());
        let specials = self.moduli.len() - all;
        // Of the level's limbs and P: where each lies among all moduli.
        let places: Vec<usize> = (0..limbs).chain(all..all + specials).collect();
        let mut coefficients = d.to_vec();
        self.backward(&mut coefficients, 0);
        let mut sums = [vec![0_u128; places.len() * n], vec![0; places.len() * n]];
        for (number, digit) in self.digits[limbs - 1].iter().enumerate() {
            let own = digit.limbs.start * n..digit.limbs.end * n;
            let mut others = digit.conversion.convert(&coefficients[own.clone()], n).into_iter();
            let keys = key(number);
            let mut extended = vec![0; n];
            for (at, place) in places.iter().enumerate() {
                let digit_limb = if digit.limbs.contains(place) {
                    &d[place * n..(place + 1) * n]
                } else {
                    extended.clear();
                    extended.extend(others.by_ref().take(n));
                    self.tables[*place].forward(&mut extended);
                    &extended[..]
                };
                for (sum, key) in sums.iter_mut().zip([keys.0, keys.1]) {
                    let key = &key[place * n..(place + 1) * n];
                    for ((s, x), k) in sum[at * n..(at + 1) * n].iter_mut().zip(digit_limb).zip(key) {
                        // No preset has more than eight digits.
                        *s += u128::from(*x) * u128::from(*k);
                    }
                }
            }
        }
        sums.map(|sum| {
            let limb = |(sum, place): (&[u128], &usize)| {
                let q = self.moduli[*place];
                sum.iter().map(|s| q.reduce_sum(*s)).collect::<Vec<u64>>()
            };
            self.divide_by_special(sum.chunks_exact(n).zip(&places).flat_map(limb).collect(), limbs)
        })
    }

    /// Divides by P, rounding to the nearest, and drops its limbs.
    fn divide_by_special(&self, mut sum: Vec<u64>, limbs: usize) -> Vec<u64> {
        let n = self.n();
        let mut special = sum.split_off(limbs * n);
        self.backward(&mut special, self.limbs().len());
        let mut rest = self.from_special.convert(&special, n);
        rest.truncate(limbs * n);
        self.forward(&mut rest, 0);
        for (j, (limb, rest)) in sum.chunks_exact_mut(n).zip(rest.chunks_exact(n)).enumerate() {
            let (q, inverse) = (self.moduli[j], self.special_inverse[j]);
            for (x, r) in limb.iter_mut().zip(rest) {
                *x = q.mul_factor(q.sub(*x, *r), inverse);
            }
        }
        sum
    }
}

fn digits(preset: &Preset, moduli: &[Modulus], level: usize) -> Vec<Digit> {
    let (limbs, size) = (level + 1, preset.limbs_per_digit());
    if size == 0 {
        return Vec::new();
    }
    let digit = |start: usize| {
        let own = start..(start + size).min(limbs);
        let special = &moduli[preset.limb_bits().len()..];
        let others: Vec<Modulus> =
            (0..limbs).filter(|j| !own.contains(j)).map(|j| moduli[j]).chain(special.iter().copied()).collect();
        Digit { conversion: Conversion::new(&moduli[own.clone()], &others), limbs: own }
    };
    (0..limbs).step_by(size).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_conversion_keeps_the_centred_number(x in any::<i64>(), small in -1000_i64..1000) {
            let primes: Vec<Modulus> = ntt_primes(16, 40, 4, &mut Vec::new()).into_iter().map(Modulus::new).collect();
            let conversion = Conversion::new(&primes[..2], &primes[2..]);
            let residues = |moduli: &[Modulus]| -> Vec<u64> {
                moduli.iter().flat_map(|m| [m.reduce_signed(x), m.reduce_signed(small)]).collect()
            };
            prop_assert_eq!(conversion.convert(&residues(&primes[..2]), 2), residues(&primes[2..]));
        }
    }

    #[test]
    fn rescaling_divides_and_rounds() {
        let context = Context::new(&Preset::N4096).unwrap();
        let q = context.limbs()[2].value().cast_signed();
        let numbers = [0, 1, -1, q, -q, q / 2 - 1, q / 2 + 1, -q / 2 - 2, 5 * q + 3, -7 * q - 4];
        let mut coefficients = vec![0; context.n()];
        coefficients[..numbers.len()].copy_from_slice(&numbers);
        let mut polynomial = context.small(&coefficients, 3);
        context.rescale(&mut polynomial);
        context.backward(&mut polynomial, 0);
        let expected = [0, 0, 0, 1, -1, 0, 1, -1, 5, -7];
        for (j, limb) in polynomial.chunks(context.n()).enumerate() {
            let found: Vec<i64> = limb.iter().map(|x| context.limbs()[j].centered(*x)).collect();
            assert_eq!(found[..numbers.len()], expected, "limb {j}");
            assert!(found[numbers.len()..].iter().all(|x| *x == 0));
        }
    }
}
