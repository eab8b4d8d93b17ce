//! Arithmetic modulo an odd number, eight numbers at a time.

#[cfg(target_arch = "x86_64")]
use super::ifma;
use super::lanes::words_from_limbs;
use super::lanes::{
    LANES, LIMB_BITS, Lanes, add, broadcast, gather, limbs_for, limbs_from_words, reduce_once, scatter,
};
use super::portable;
use crypto_bigint::{BoxedUint, NonZero};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// How products are computed. Both give the same results, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// AVX-512 IFMA: eight products at once.
    Ifma,
    /// Plain 64-bit words, on any machine.
    Portable,
}

impl Arithmetic {
    /// The fastest that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if ifma::available() {
            return Self::Ifma;
        }
        Self::Portable
    }

    fn or_portable(self) -> Self {
        if self == Self::Ifma { Self::detect() } else { self }
    }
}

/// An odd modulus N with what Montgomery products need, for R = 2^(52·limbs) > 16·N.
///
/// Numbers in here are below 4N, not below N, and a product of two such numbers over R is below 2N again:
/// `(4N·4N + R·N) / R < 2N`, so one addition between products needs no subtraction. A factor below R is fine too when
/// the other is below N. Only what leaves is reduced completely.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Modulus {
    #[zeroize(skip)]
    arithmetic: Arithmetic,
    bits: u32,
    words: Vec<u64>,
    lanes: Vec<Lanes>,
    /// −N⁻¹ mod 2^64; its low 52 bits serve 52-bit limbs.
    inverse: u64,
    one: Vec<Lanes>,
    square: Vec<Lanes>,
    cube: Vec<Lanes>,
}

impl Modulus {
    /// `n` must be odd and more than 1; the caller has checked.
    pub(super) fn new(n: &BoxedUint, arithmetic: Arithmetic) -> Self {
        let bits = n.bits();
        let limbs = limbs_for(bits);
        let r_bits = u32::try_from(limbs).unwrap_or(u32::MAX).saturating_mul(LIMB_BITS);
        let mut words = vec![0; (r_bits as usize).div_ceil(64)];
        // The precision of n may be wider than its bits; zeros are cut off.
        words.iter_mut().zip(n.as_words()).for_each(|(word, &value)| *word = value);
        let modulus = nonzero(n);
        let power = |times: u32| {
            let one = BoxedUint::one_with_precision(times * r_bits + 64);
            let power = Zeroizing::new(one.shl(times * r_bits).rem(modulus));
            limbs_of(&power, limbs)
        };
        Self {
            arithmetic: arithmetic.or_portable(),
            bits,
            lanes: broadcast(&limbs_of(n, limbs)),
            inverse: inverse_of(words[0]).wrapping_neg(),
            words,
            one: broadcast(&power(1)),
            square: broadcast(&power(2)),
            cube: broadcast(&power(3)),
        }
    }

    pub(super) fn limbs(&self) -> usize {
        self.lanes.len()
    }

    /// Bits of R.
    pub(super) fn r_bits(&self) -> u32 {
        u32::try_from(self.limbs()).unwrap_or(u32::MAX).saturating_mul(LIMB_BITS)
    }

    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// N in every lane.
    pub(super) fn lanes(&self) -> &[Lanes] {
        &self.lanes
    }

    /// 1 in Montgomery form.
    pub(super) fn one(&self) -> &[Lanes] {
        &self.one
    }
}

/// The same number as a divisor.
pub(super) fn nonzero(n: &BoxedUint) -> &NonZero<BoxedUint> {
    #[expect(clippy::expect_used, reason = "every modulus here is a checked key or a generated prime")]
    n.as_nz_vartime().expect("a modulus is not zero")
}

/// 52-bit limbs of `n`, which must fit.
pub(super) fn limbs_of(n: &BoxedUint, limbs: usize) -> Zeroizing<Vec<u64>> {
    let mut out = Zeroizing::new(vec![0; limbs]);
    limbs_from_words(n.as_words(), &mut out);
    out
}

/// The number of the given 52-bit limbs.
pub(super) fn number_of(limbs: &[u64], bits: u32) -> BoxedUint {
    let mut words = Zeroizing::new(vec![0; bits.div_ceil(64) as usize]);
    words_from_limbs(limbs, &mut words);
    BoxedUint::from_words(words.iter().copied())
}

/// The inverse of an odd word modulo 2^64: each step doubles the correct bits, from three.
fn inverse_of(n: u64) -> u64 {
    (0..5).fold(n, |x, _| x.wrapping_mul(2_u64.wrapping_sub(n.wrapping_mul(x))))
}

/// Multiplies modulo one modulus. Holds the scratch space, which is wiped on drop; one per thread.
pub(super) struct Montgomery<'m> {
    modulus: &'m Modulus,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only the vector kernel needs it"))]
    columns: Zeroizing<Vec<Lanes>>,
}

impl<'m> Montgomery<'m> {
    pub(super) fn new(modulus: &'m Modulus) -> Self {
        let columns = match modulus.arithmetic {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Ifma => ifma::columns_for(modulus.limbs()),
            _ => 0,
        };
        Self { modulus, columns: Zeroizing::new(vec![Lanes::ZERO; columns]) }
    }

    /// An empty number of the modulus's size.
    pub(super) fn number(&self) -> Zeroizing<Vec<Lanes>> {
        Zeroizing::new(vec![Lanes::ZERO; self.modulus.limbs()])
    }

    /// `a := a·b/R`.
    pub(super) fn multiply(&mut self, a: &mut [Lanes], b: &[Lanes]) {
        let n = self.modulus;
        match n.arithmetic {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Ifma => ifma::montgomery_multiply(&n.lanes, n.inverse, a, b, &mut self.columns),
            _ => portable::montgomery_multiply(&n.words, n.inverse, a, b),
        }
    }

    /// `a := a²/R`.
    pub(super) fn square(&mut self, a: &mut [Lanes]) {
        let n = self.modulus;
        match n.arithmetic {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Ifma => ifma::montgomery_square(&n.lanes, n.inverse, a, &mut self.columns),
            _ => {
                let b = Zeroizing::new(a.to_vec());
                portable::montgomery_multiply(&n.words, n.inverse, a, &b);
            }
        }
    }

    /// In lane k, number `digits[k]` of `row`; constant time, see [`portable::select`].
    pub(super) fn select(&self, row: &[u64], digits: &[u8; LANES], out: &mut [Lanes]) {
        match self.modulus.arithmetic {
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Ifma => ifma::select(row, digits, out),
            _ => portable::select(row, digits, out),
        }
    }

    /// Brings `low + R·high` into Montgomery form, for any `low` and `high` of the modulus's limbs.
    pub(super) fn enter(&mut self, low: &mut [Lanes], high: Option<&mut [Lanes]>) {
        self.multiply(low, &self.modulus.square);
        if let Some(high) = high {
            self.multiply(high, &self.modulus.cube);
            add(low, high);
        }
    }

    /// Leaves Montgomery form, completely reduced: `(4N + (R − 1)·N) / R ≤ N`, and N itself only for multiples of N.
    pub(super) fn leave(&mut self, x: &mut [Lanes]) {
        let one = self.unit();
        self.multiply(x, &one);
        reduce_once(x, &self.modulus.lanes);
    }

    /// `x := x^exponent` in Montgomery form, the same exponent in every lane, over `bits` bits whatever its length.
    ///
    /// Windows of five bits; each looks at all 32 table entries, so time and memory access depend on `bits` only.
    pub(super) fn pow(&mut self, x: &mut [Lanes], exponent: &BoxedUint, bits: u32) {
        const WINDOW: u32 = 5;
        let limbs = x.len();
        let mut table = Zeroizing::new(vec![Lanes::ZERO; limbs << WINDOW]);
        table[..limbs].copy_from_slice(&self.modulus.one);
        for i in 1..1 << WINDOW {
            let (before, entry) = table.split_at_mut(i * limbs);
            entry[..limbs].copy_from_slice(&before[(i - 1) * limbs..]);
            self.multiply(&mut entry[..limbs], x);
        }
        let mut factor = self.number();
        x.copy_from_slice(&self.modulus.one);
        for window in (0..bits.div_ceil(WINDOW)).rev() {
            (0..WINDOW).for_each(|_| self.square(x));
            let digit = window_of(exponent.as_words(), window * WINDOW, WINDOW);
            portable::select_group(&table, digit, &mut factor);
            self.multiply(x, &factor);
        }
    }

    fn unit(&self) -> Vec<Lanes> {
        let mut one = vec![Lanes::ZERO; self.modulus.limbs()];
        one[0] = Lanes::splat(1);
        one
    }
}

/// `count` bits of a little-endian number, from bit `start` on; zeros beyond its end.
pub(super) fn window_of(words: &[u64], start: u32, count: u32) -> usize {
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    let (i, shift) = ((start / 64) as usize, start % 64);
    let high = if shift == 0 { 0 } else { word(i + 1) << (64 - shift) };
    let bits = (word(i) >> shift | high) & ((1 << count) - 1);
    usize::try_from(bits).unwrap_or(0)
}

/// `base^exponent mod N` for each base, eight at a time.
pub(super) fn pow_each(modulus: &Modulus, bases: &[BoxedUint], exponent: &BoxedUint, bits: u32) -> Vec<BoxedUint> {
    let limbs = modulus.limbs();
    let mut montgomery = Montgomery::new(modulus);
    let mut group = montgomery.number();
    let mut out = Vec::with_capacity(bases.len());
    for bases in bases.chunks(LANES) {
        let flat: Zeroizing<Vec<u64>> =
            Zeroizing::new(bases.iter().flat_map(|b| limbs_of(b, limbs).to_vec()).collect());
        gather(&flat, 1, &mut group);
        montgomery.enter(&mut group, None);
        montgomery.pow(&mut group, exponent, bits);
        montgomery.leave(&mut group);
        let mut flat = Zeroizing::new(vec![0; bases.len() * limbs]);
        scatter(&group, &mut flat);
        out.extend(flat.chunks_exact(limbs).map(|limbs| number_of(limbs, modulus.bits)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paillier::lanes::LIMB_MAX;
    use crypto_bigint::{ConcatenatingMul, Resize};
    use proptest::prelude::*;

    /// An odd number of exactly `bits` bits.
    fn odd(bits: u32, seed: &[u8; 32]) -> BoxedUint {
        let mut words = noise(bits.div_ceil(64) as usize, seed, 0);
        words[0] |= 1;
        let last = words.len() - 1;
        words[last] |= 1 << 63;
        BoxedUint::from_words(words)
    }

    fn noise(words: usize, seed: &[u8; 32], salt: u8) -> Vec<u64> {
        use sha2::{Digest, Sha256};
        (0..words as u64)
            .map(|i| {
                let hash =
                    Sha256::new().chain_update(seed).chain_update([salt]).chain_update(i.to_le_bytes()).finalize();
                u64::from_le_bytes(hash[..8].try_into().unwrap())
            })
            .collect()
    }

    fn reference(a: &BoxedUint, b: &BoxedUint, n: &BoxedUint) -> BoxedUint {
        let nonzero = NonZero::new(n.clone()).unwrap();
        a.concatenating_mul(b).rem(&nonzero)
    }

    fn both_agree(bits: u32, seed: &[u8; 32]) {
        let n = odd(bits, seed);
        let limbs = limbs_for(bits);
        let special = [
            BoxedUint::zero_with_precision(bits),
            BoxedUint::one_with_precision(bits),
            n.wrapping_sub(BoxedUint::one_with_precision(bits)),
        ];
        let random: Vec<_> = (1..4).map(|i| BoxedUint::from_words(noise(n.nlimbs(), seed, i))).collect();
        let mut a: Vec<u64> = special.iter().chain(&random).flat_map(|x| limbs_of(x, limbs).to_vec()).collect();
        // Below R, not below 4N: what `enter` is given.
        a.extend(vec![LIMB_MAX; limbs]);
        a.extend(noise(limbs, seed, 9).iter().map(|x| x & LIMB_MAX));
        let mut lanes = vec![Lanes::ZERO; limbs];
        gather(&a, 0, &mut lanes);

        let [fast, slow] = [Arithmetic::detect(), Arithmetic::Portable].map(|arithmetic| Modulus::new(&n, arithmetic));
        let mut results = Vec::new();
        for modulus in [&fast, &slow] {
            let mut m = Montgomery::new(modulus);
            let mut entered = lanes.clone();
            m.enter(&mut entered, None);
            let mut product = entered.clone();
            let mut rotated = entered.clone();
            rotated.iter_mut().for_each(|column| column.0.rotate_left(1));
            m.multiply(&mut product, &rotated);
            let mut square = entered.clone();
            m.square(&mut square);
            let mut raw = lanes.clone();
            m.multiply(&mut raw, &lanes);
            let mut left = product.clone();
            m.leave(&mut left);
            let mut power = entered.clone();
            m.pow(&mut power, &BoxedUint::from(1_234_567_u64), 21);
            results.push([entered, product, square, raw, left, power].concat());
        }
        assert_eq!(results[0], results[1], "{bits} bits");

        // And both are right.
        let left = &results[0][4 * limbs..5 * limbs];
        let mut flat = vec![0; 8 * limbs];
        scatter(left, &mut flat);
        let precision = n.bits_precision() + 128;
        for lane in 0..8 {
            let [x, y] = [lane, (lane + 1) % 8].map(|i| number_of(&a[i * limbs..(i + 1) * limbs], precision));
            let expected = reference(&x, &y, &n);
            assert_eq!(number_of(&flat[lane * limbs..(lane + 1) * limbs], bits), expected, "{bits} bits, lane {lane}");
        }
    }

    #[test]
    fn both_arithmetics_agree_at_every_size_in_use() {
        for bits in [512, 1024, 1536, 2048, 3072, 4096, 6144] {
            for seed in 0..3 {
                both_agree(bits, &[seed; 32]);
            }
        }
    }

    #[test]
    fn all_ones_modulus() {
        for bits in [512, 2048, 3072] {
            let n = BoxedUint::max(bits);
            for arithmetic in [Arithmetic::detect(), Arithmetic::Portable] {
                let modulus = Modulus::new(&n, arithmetic);
                let minus_two = n.wrapping_sub(BoxedUint::from_words([2]).resize(bits));
                let powers = pow_each(&modulus, &[minus_two], &BoxedUint::from(10_u64), 4);
                assert_eq!(powers[0], BoxedUint::from(1024_u64).resize(bits));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn both_arithmetics_agree(seed in any::<[u8; 32]>()) {
            both_agree(512, &seed);
        }

        #[test]
        fn select_finds_the_entry(digits in any::<[u8; 8]>(), salt in any::<u8>()) {
            let digits = digits.map(|d| d % 64);
            let row: Vec<u64> = noise(64 * 20, &[1; 32], salt);
            for arithmetic in [Arithmetic::detect(), Arithmetic::Portable] {
                let modulus = Modulus::new(&odd(1024, &[3; 32]), arithmetic);
                let mut out = vec![Lanes::ZERO; 20];
                Montgomery::new(&modulus).select(&row, &digits, &mut out);
                for (lane, &digit) in digits.iter().enumerate() {
                    for j in 0..20 {
                        prop_assert_eq!(out[j].0[lane], row[usize::from(digit) * 20 + j]);
                    }
                }
            }
        }
    }
}
