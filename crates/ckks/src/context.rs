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

    /// Divides polynomials of level `from` by the product of the last limbs' primes, rounding to the nearest, and drops these limbs
    /// until `to` is left.
    pub(crate) fn rescale<'a>(&self, polynomials: impl Iterator<Item = &'a mut Vec<u64>>, from: usize, to: usize) {
        let n = self.n();
        let made;
        let conversion = if to + 1 == from {
            &self.from_last[from]
        } else {
            made = Conversion::new(&self.limbs()[to + 1..=from], &self.limbs()[..=to]);
            &made
        };
        let mut buffer = Vec::with_capacity(n);
        for polynomial in polynomials {
            let last = self.split(&polynomial[(to + 1) * n..], to + 1, conversion);
            polynomial.truncate((to + 1) * n);
            for (j, limb) in polynomial.chunks_exact_mut(n).enumerate() {
                self.divide(limb, j, conversion, &last, &mut buffer);
            }
        }
    }

    /// Σ_digits d·key, divided by P: what is left of `d`·(the secret that the key stands for), under the secret that it leads
    /// to; plus `others`. `d` is a transformed polynomial of some level; `key` has two polynomials for each digit, over all
    /// moduli.
    ///
    /// Hybrid key switching (Han, Ki, "Better bootstrapping for approximate homomorphic encryption", 2020, section 3): the
    /// error it adds is about √(n·digits)·(a digit's product / P)·σ before, and √n after, the division.
    pub(crate) fn switch(&self, d: &[u64], key: &[[Vec<u64>; 2]], others: [Option<&[u64]>; 2]) -> [Vec<u64>; 2] {
        let digits = self.digits_of(d);
        let mut extended = digits.none();
        self.switch_with(d.len() / self.n(), others, |modulus, target, sums| {
            digits.extend(modulus, target, &mut extended);
            digits.sum(modulus, &extended, key, sums);
        })
    }

    /// [`switch`](Self::switch) of one polynomial by several keys, which share the transforms of its digits (hoisting: Halevi,
    /// Shoup, "Faster homomorphic linear transformations in HElib", CRYPTO 2018, section 5).
    pub(crate) fn switch_each<'k>(
        &self,
        d: &[u64],
        keys: impl Iterator<Item = &'k [[Vec<u64>; 2]]>,
        others: [Option<&[u64]>; 2],
    ) -> Vec<[Vec<u64>; 2]> {
        let (limbs, all) = (d.len() / self.n(), self.limbs().len());
        let digits = self.digits_of(d);
        let extend = |(target, modulus)| {
            let mut extended = digits.none();
            digits.extend(modulus, target, &mut extended);
            extended
        };
        let extended: Vec<_> = (0..limbs).chain(all..self.moduli.len()).enumerate().map(extend).collect();
        let switch = |key: &[_]| {
            self.switch_with(limbs, others, |modulus, target, sums| digits.sum(modulus, &extended[target], key, sums))
        };
        keys.map(switch).collect()
    }

    /// The part of [`switch`](Self::switch) behind the digits: `sum(modulus, target, sums)` appends the sums of products modulo
    /// that modulus, which is number `target` of the level's limbs and P.
    fn switch_with(
        &self,
        limbs: usize,
        others: [Option<&[u64]>; 2],
        mut sum: impl FnMut(usize, usize, &mut [Vec<u64>; 2]),
    ) -> [Vec<u64>; 2] {
        let (n, all) = (self.n(), self.limbs().len());
        let empty = |limbs: usize| [0, 1].map(|_| Vec::with_capacity(limbs * n));
        // What is to be divided by P, modulo P.
        let special = self.moduli.len() - all;
        let mut rest = empty(special);
        (0..special).for_each(|i| sum(all + i, limbs + i, &mut rest));
        let rest = rest.map(|rest| self.split(&rest, all, &self.from_special));
        let (mut sums, mut buffer) = (empty(limbs), Vec::with_capacity(n));
        // Limb by limb, not step by step: a limb stays in the cache.
        for j in 0..limbs {
            sum(j, j, &mut sums);
            for ((sum, rest), other) in sums.iter_mut().zip(&rest).zip(others) {
                let limb = &mut sum[j * n..];
                self.divide(limb, j, &self.from_special, rest, &mut buffer);
                if let Some(other) = other {
                    kernel::add(self.moduli[j], limb, &other[j * n..(j + 1) * n]);
                }
            }
        }
        sums
    }

    fn digits_of<'a>(&'a self, d: &'a [u64]) -> Digits<'a> {
        let n = self.n();
        let digits = &self.digits[d.len() / n - 1];
        let split = |digit: &Digit| {
            self.split(&d[digit.limbs.start * n..digit.limbs.end * n], digit.limbs.start, &digit.conversion)
        };
        Digits { context: self, d, digits, parts: digits.iter().map(split).collect() }
    }

    /// Transformed limbs, the first of which belongs to modulus `first`, for [`Conversion::join`].
    fn split(&self, limbs: &[u64], first: usize, conversion: &Conversion) -> Parts {
        let mut limbs = limbs.to_vec();
        self.backward(&mut limbs, first);
        conversion.split(limbs)
    }

    /// Divides limb j by the product of the conversion's primes, rounding to the nearest: (x − x mod M)/M, with `rest` of
    /// x mod M.
    fn divide(&self, limb: &mut [u64], j: usize, conversion: &Conversion, rest: &Parts, buffer: &mut Vec<u64>) {
        conversion.join(j, rest, buffer);
        self.tables[j].forward(buffer);
        conversion.divide(j, limb, buffer);
    }
}

/// The digits of a polynomial, for products with keys.
struct Digits<'a> {
    context: &'a Context,
    d: &'a [u64],
    digits: &'a [Digit],
    /// Of each digit.
    parts: Vec<Parts>,
}

impl Digits<'_> {
    /// For [`extend`](Self::extend).
    fn none(&self) -> Vec<Vec<u64>> {
        vec![Vec::new(); self.digits.len()]
    }

    /// The digits modulo the modulus of that number, which is number `target` of the level's limbs and P: a limb for each, left
    /// as it is where the digit has that limb itself.
    fn extend(&self, modulus: usize, target: usize, extended: &mut [Vec<u64>]) {
        for ((digit, parts), limb) in self.digits.iter().zip(&self.parts).zip(extended) {
            if digit.limbs.contains(&modulus) {
                continue;
            }
            // Its own limbs are no target of its conversion.
            let before = if target < digit.limbs.start { 0 } else { digit.limbs.len() };
            digit.conversion.join(target - before, parts, limb);
            self.context.tables[modulus].forward(limb);
        }
    }

    /// Appends Σ_digits d·key modulo the modulus of that number, with what [`extend`](Self::extend) made for it.
    fn sum(&self, modulus: usize, extended: &[Vec<u64>], key: &[[Vec<u64>; 2]], sums: &mut [Vec<u64>; 2]) {
        let n = self.context.n();
        let place = modulus * n..(modulus + 1) * n;
        for (which, sum) in sums.iter_mut().enumerate() {
            let own = |digit: &Digit| digit.limbs.contains(&modulus).then(|| &self.d[place.clone()]);
            let limbs = self.digits.iter().zip(extended).map(|(digit, limb)| own(digit).unwrap_or(limb));
            let pairs: Vec<_> = limbs.zip(key.iter().map(|digit| &digit[which][place.clone()])).collect();
            kernel::sum_of_products(self.context.moduli[modulus], n, &pairs, sum);
        }
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
    fn products_of_polynomials_are_those_of_another_library() {
        // Digests of products modulo every prime, by fhe-math 0.1.1:
        // cargo run --release --manifest-path benches/fhe_peer/Cargo.toml -- products N BITS,…
        let expected: [u64; Preset::ALL.len()] = [
            0x0075_2ab7_c5ee_a996,
            0xbbaf_e511_34ef_3651,
            0xfc71_d83d_169f_3e88,
            0x28a2_d2fe_1b13_0ec4,
            0x1ea3_5983_2843_1bef,
        ];
        for (preset, expected) in Preset::ALL.into_iter().zip(expected) {
            let context = Context::new(preset).unwrap();
            let n = context.n();
            let mut digest = 0xcbf2_9ce4_8422_2325;
            for (number, modulus) in context.moduli().iter().enumerate() {
                let q = modulus.value();
                let draw = |k: u64| -> Vec<u64> {
                    let drawn = |i: u64| ((i + 1).wrapping_mul(k).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1) % q;
                    (0..n as u64).map(drawn).collect()
                };
                let (mut x, mut y, mut product) = (draw(1), draw(q), Vec::new());
                context.forward(&mut x, number);
                context.forward(&mut y, number);
                kernel::sum_of_products(*modulus, n, &[(&x, &y)], &mut product);
                context.backward(&mut product, number);
                // FNV-1a, word by word.
                digest = product.iter().fold(digest, |digest: u64, x| (digest ^ x).wrapping_mul(0x0100_0000_01b3));
            }
            assert_eq!(digest, expected, "{preset:?}: {digest:#x}");
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
        context.rescale([&mut polynomial].into_iter(), 2, 1);
        context.backward(&mut polynomial, 0);
        let expected = [0, 0, 0, 1, -1, 0, 1, -1, 5, -7];
        for (j, limb) in polynomial.chunks(context.n()).enumerate() {
            let found: Vec<i64> = limb.iter().map(|x| context.limbs()[j].centered(*x)).collect();
            assert_eq!(found[..numbers.len()], expected, "limb {j}");
            assert!(found[numbers.len()..].iter().all(|x| *x == 0));
        }
    }

    #[test]
    fn rescaling_by_several_primes_is_rounding_once() {
        let context = Context::new(&Preset::N16384_PARTS).unwrap();
        let (from, to) = (6, 2);
        let dropped = &context.limbs()[to + 1..=from];
        // Multiples of the product of four primes, and what is near them.
        let quotients = [0_i64, 1, -1, 5, -7, 1 << 40, -(1 << 50)];
        let rests = [0_i64, 1, -1, i64::MAX, i64::MIN];
        let mut polynomial = vec![0; (from + 1) * context.n()];
        let mut expected = Vec::new();
        for (i, (quotient, rest)) in quotients.iter().flat_map(|q| rests.map(|r| (*q, r))).enumerate() {
            expected.push(quotient);
            for (limb, q) in polynomial.chunks_exact_mut(context.n()).zip(context.limbs()) {
                let product = dropped.iter().fold(1, |product, p| q.mul(product, q.reduce(p.value())));
                limb[i] = q.add(q.mul(product, q.reduce_signed(quotient)), q.reduce_signed(rest));
            }
        }
        context.forward(&mut polynomial, 0);
        context.rescale([&mut polynomial].into_iter(), from, to);
        context.backward(&mut polynomial, 0);
        for (limb, q) in polynomial.chunks_exact(context.n()).zip(context.limbs()) {
            for (found, expected) in limb.iter().zip(&expected) {
                assert_eq!(*found, q.reduce_signed(*expected));
            }
        }
    }
}
