//! Everything that a preset determines: primes, transforms and conversions between residue systems.

use crate::conversion::{Conversion, Parts};
use crate::encoding::Embedding;
use crate::kernel;
use crate::modulus::{Modulus, ntt_primes};
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
    /// For each level l, from q_l to the limbs below.
    from_last: Vec<Conversion>,
    /// For each level, its digits.
    digits: Vec<Vec<Digit>>,
    /// From P to all limbs of Q.
    from_special: Conversion,
}

/// A group of limbs that key switching takes together.
struct Digit {
    limbs: Range<usize>,
    /// To every other limb of the level, in order, and P.
    conversion: Conversion,
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
        Ok(Arc::new(Self {
            preset,
            tables: moduli.iter().map(|m| NttTable::new(*m, n)).collect(),
            embedding: Embedding::new(n),
            from_last: (0..limbs).map(|l| Conversion::new(&q[l..=l], &q[..l])).collect(),
            digits: (0..limbs).map(|level| digits(preset, &moduli, level)).collect(),
            from_special: Conversion::new(p, q),
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
        let level = polynomial.len() / self.n() - 1;
        let last = polynomial.split_off(level * self.n());
        self.divide(polynomial, last, level, &self.from_last[level]);
    }

    /// Σ_digits d·key, divided by P: what is left of `d`·(the secret that the key stands for), under the secret key. `d` is a
    /// transformed polynomial of some level; `key` gives both polynomials of a digit, over all moduli.
    ///
    /// Hybrid key switching (Han, Ki, "Better bootstrapping for approximate homomorphic encryption", 2020, section 3): the
    /// error it adds is about √(n·digits)·(a digit's product / P)·σ before, and √n after, the division.
    pub(crate) fn switch<'k>(&self, d: &[u64], key: impl Fn(usize) -> (&'k [u64], &'k [u64])) -> [Vec<u64>; 2] {
        let n = self.n();
        let (limbs, all) = (d.len() / n, self.limbs().len());
        let digits = &self.digits[limbs - 1];
        let keys: Vec<_> = (0..digits.len()).map(key).collect();
        let parts: Vec<Parts> = digits.iter().map(|digit| digit.split(self, d)).collect();
        // Of the level's limbs and P: where each lies among all moduli.
        let places: Vec<usize> = (0..limbs).chain(all..self.moduli.len()).collect();
        let mut sums = [vec![0; places.len() * n], vec![0; places.len() * n]];
        // Digit by digit would go over both sums as often as there are digits.
        let mut extended = vec![0; digits.len() * n];
        for (at, place) in places.iter().enumerate() {
            for ((digit, parts), limb) in digits.iter().zip(&parts).zip(extended.chunks_exact_mut(n)) {
                if digit.limbs.contains(place) {
                    limb.copy_from_slice(&d[place * n..(place + 1) * n]);
                } else {
                    digit.conversion.join(digit.target(at), parts, limb);
                    self.tables[*place].forward(limb);
                }
            }
            for (which, sum) in sums.iter_mut().enumerate() {
                let key = |(b, a): &(&'k [u64], &'k [u64])| &[*b, *a][which][place * n..(place + 1) * n];
                let pairs: Vec<_> = extended.chunks_exact(n).zip(keys.iter().map(key)).collect();
                kernel::sum_of_products(self.moduli[*place], &mut sum[at * n..(at + 1) * n], &pairs);
            }
        }
        sums.map(|mut sum| {
            let special = sum.split_off(limbs * n);
            self.divide(&mut sum, special, all, &self.from_special);
            sum
        })
    }

    /// Divides by the product of some moduli, the first of which is number `first`, rounding to the nearest: (x − x mod M)/M,
    /// where `rest` is x modulo each of them.
    fn divide(&self, x: &mut [u64], mut rest: Vec<u64>, first: usize, conversion: &Conversion) {
        let n = self.n();
        self.backward(&mut rest, first);
        let parts = conversion.split(rest);
        let mut rest = vec![0; n];
        for (j, limb) in x.chunks_exact_mut(n).enumerate() {
            conversion.join(j, &parts, &mut rest);
            self.tables[j].forward(&mut rest);
            conversion.divide(j, limb, &rest);
        }
    }
}

impl Digit {
    /// Its limbs of a polynomial, as [`Conversion::join`] wants them.
    fn split(&self, context: &Context, polynomial: &[u64]) -> Parts {
        let mut limbs = polynomial[self.limbs.start * context.n()..self.limbs.end * context.n()].to_vec();
        context.backward(&mut limbs, self.limbs.start);
        self.conversion.split(limbs)
    }

    /// Which of the conversion's targets is at `place` of the level's limbs and P, where none of its own is.
    fn target(&self, place: usize) -> usize {
        if place < self.limbs.start { place } else { place - self.limbs.len() }
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
