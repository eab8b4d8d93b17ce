//! Encryption, sums, decryption and the bytes in between.

use super::PaillierError;
use super::key::{Half, PublicKey, SecretKey};
use super::lanes::{
    LANES, LIMB_BITS, LIMB_MAX, Lanes, add, gather, limbs_from_words, reduce_once, scatter, words_from_limbs,
};
use super::modulus::{Montgomery, nonzero, number_of};
use super::packing::Plaintexts;
use super::randomizers::Randomizers;
use crate::parallel::for_each;
use crypto_bigint::{BoxedUint, ConcatenatingMul, Gcd};
use std::fmt;
use zeroize::Zeroizing;

/// Ciphertexts under one key: units modulo n², each above 0 and below n².
#[derive(Clone, PartialEq, Eq)]
pub struct Ciphertexts {
    key: PublicKey,
    /// 52-bit limbs, one number after the other.
    numbers: Vec<u64>,
}

impl Ciphertexts {
    /// Encrypts: `(1 + m·n) · r mod n²`, two modular products each. Uses the randomizers up. Constant time.
    ///
    /// # Errors
    /// [`PaillierError::OtherKey`] or [`PaillierError::Randomizers`] if there are not exactly as many randomizers as
    /// plaintexts.
    pub fn encrypt(plaintexts: &Plaintexts, randomizers: Randomizers, threads: usize) -> Result<Self, PaillierError> {
        let key = &plaintexts.key;
        if *key != randomizers.key {
            return Err(PaillierError::OtherKey);
        }
        if plaintexts.len() != randomizers.len() {
            return Err(PaillierError::Randomizers { needed: plaintexts.len(), left: randomizers.len() });
        }
        let (limbs, wide) = (key.plain_limbs(), key.cipher_limbs());
        let mut numbers = vec![0; plaintexts.len() * wide];
        let groups = plaintexts.numbers.chunks(LANES * limbs).zip(randomizers.numbers.chunks(LANES * wide));
        let groups = groups.zip(numbers.chunks_mut(LANES * wide));
        for_each(
            threads,
            groups,
            || Worker::new(key),
            |worker, ((plain, random), out)| {
                let Worker { montgomery, x, y } = worker;
                x.fill(Lanes::ZERO);
                gather(plain, 0, &mut x[..limbs]);
                montgomery.multiply(x, &key.0.n_entered);
                gather(&[], 1, y);
                add(x, y);
                gather(random, 1, y);
                montgomery.multiply(x, y);
                reduce_once(x, key.0.squared.lanes());
                scatter(x, out);
            },
        );
        Ok(Self { key: key.clone(), numbers })
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len() / self.key.cipher_limbs()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Adds the plaintexts of `fresh` to these, one by one: `c := c · fresh mod n²`.
    ///
    /// `fresh` must be this party's own new encryptions. Their randomness makes the result fresh too, so that whoever
    /// sent the one and sees the other learns nothing from the difference.
    ///
    /// # Errors
    /// [`PaillierError::OtherKey`] or [`PaillierError::Count`].
    pub fn add_assign(&mut self, fresh: &Self, threads: usize) -> Result<(), PaillierError> {
        if self.key != fresh.key {
            return Err(PaillierError::OtherKey);
        }
        if self.len() != fresh.len() {
            return Err(PaillierError::Count { expected: self.len(), found: fresh.len() });
        }
        let key = &self.key;
        let wide = key.cipher_limbs();
        for_each(
            threads,
            self.numbers.chunks_mut(LANES * wide).zip(fresh.numbers.chunks(LANES * wide)),
            || Worker::new(key),
            |worker, (numbers, fresh)| {
                let Worker { montgomery, x, y } = worker;
                gather(numbers, 1, x);
                gather(fresh, 1, y);
                montgomery.enter(x, None);
                montgomery.multiply(x, y);
                reduce_once(x, key.0.squared.lanes());
                scatter(x, numbers);
            },
        );
        Ok(())
    }

    /// Fixed-length big-endian numbers, one after the other: [`KeyBits::ciphertext_bytes`](super::KeyBits) each.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.key.bits().ciphertext_bytes();
        let mut out = vec![0; self.len() * bytes];
        let mut words = vec![0; bytes / 8];
        for (number, out) in self.numbers.chunks_exact(self.key.cipher_limbs()).zip(out.chunks_exact_mut(bytes)) {
            words_from_limbs(number, &mut words);
            let out = out.as_chunks_mut().0;
            out.iter_mut().zip(words.iter().rev()).for_each(|(out, word)| *out = word.to_be_bytes());
        }
        out
    }

    /// Takes over exactly `count` ciphertexts from a peer; `count` is agreed beforehand, never taken from the peer.
    ///
    /// Each must be above 0 and below n²; that all are units is checked on their product, with one gcd.
    ///
    /// # Errors
    /// [`PaillierError::Length`], [`PaillierError::Ciphertext`] with the index, or [`PaillierError::Batch`] if one of
    /// them shares a factor with n: then all are refused.
    pub fn from_bytes(key: &PublicKey, count: usize, bytes: &[u8]) -> Result<Self, PaillierError> {
        let size = key.bits().ciphertext_bytes();
        if count.checked_mul(size) != Some(bytes.len()) {
            return Err(PaillierError::Length { count, expected: count.saturating_mul(size), found: bytes.len() });
        }
        let limbs = key.cipher_limbs();
        let mut numbers = vec![0; count * limbs];
        let mut words = vec![0; size / 8];
        for (index, (bytes, number)) in bytes.chunks_exact(size).zip(numbers.chunks_exact_mut(limbs)).enumerate() {
            words
                .iter_mut()
                .rev()
                .zip(bytes.as_chunks().0)
                .for_each(|(word, bytes)| *word = u64::from_be_bytes(*bytes));
            limbs_from_words(&words, number);
            let below = number.iter().rev().lt(key.0.squared.lanes().iter().rev().map(|lanes| &lanes.0[0]));
            if !below || number.iter().all(|&limb| limb == 0) {
                return Err(PaillierError::Ciphertext { index });
            }
        }
        let ciphertexts = Self { key: key.clone(), numbers };
        if ciphertexts.are_units() { Ok(ciphertexts) } else { Err(PaillierError::Batch) }
    }

    fn are_units(&self) -> bool {
        let limbs = self.key.cipher_limbs();
        let Worker { mut montgomery, mut x, mut y } = Worker::new(&self.key);
        // Factors of R come along; they are units as well.
        x.copy_from_slice(self.key.0.squared.one());
        for group in self.numbers.chunks(LANES * limbs) {
            gather(group, 1, &mut y);
            montgomery.multiply(&mut x, &y);
        }
        let mut products = vec![0; LANES * limbs];
        scatter(&x, &mut products);
        let n = nonzero(&self.key.0.n);
        let bits = 2 * self.key.bits().bits() + 64;
        let product = products
            .chunks_exact(limbs)
            .map(|limbs| number_of(limbs, bits).rem(n))
            .fold(BoxedUint::one_with_precision(self.key.bits().bits()), |x, y| x.concatenating_mul(&y).rem(n));
        product.gcd_vartime(&self.key.0.n).is_one().to_bool()
    }

    /// Cuts off the first `count`: to send in chunks.
    ///
    /// # Errors
    /// [`PaillierError::Count`] if there are fewer.
    pub fn split_to(&mut self, count: usize) -> Result<Self, PaillierError> {
        if count > self.len() {
            return Err(PaillierError::Count { expected: count, found: self.len() });
        }
        let rest = self.numbers.split_off(count * self.key.cipher_limbs());
        Ok(Self { key: self.key.clone(), numbers: std::mem::replace(&mut self.numbers, rest) })
    }
}

impl fmt::Debug for Ciphertexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ciphertexts({} of {} bits)", self.len(), 2 * self.key.bits().bits())
    }
}

/// What a thread keeps while it works modulo n².
struct Worker<'k> {
    montgomery: Montgomery<'k>,
    x: Zeroizing<Vec<Lanes>>,
    y: Zeroizing<Vec<Lanes>>,
}

impl<'k> Worker<'k> {
    fn new(key: &'k PublicKey) -> Self {
        let montgomery = Montgomery::new(&key.0.squared);
        Self { x: montgomery.number(), y: montgomery.number(), montgomery }
    }
}

impl SecretKey {
    /// Decrypts, eight at a time, on up to `threads` threads. This opens the sums, or leaves what masks did not cancel.
    ///
    /// Modulo p² and q² apart (Paillier 1999, section 7). Constant time: windows are scanned, quotients and the Chinese
    /// remainder are fixed sequences of products.
    ///
    /// # Errors
    /// [`PaillierError::OtherKey`] if they are not under this key.
    pub fn decrypt(&self, ciphertexts: &Ciphertexts, threads: usize) -> Result<Plaintexts, PaillierError> {
        if self.public != ciphertexts.key {
            return Err(PaillierError::OtherKey);
        }
        let key = &self.public;
        let (limbs, wide) = (key.plain_limbs(), key.cipher_limbs());
        let mut plaintexts = Plaintexts::zeros(key, ciphertexts.len());
        for_each(
            threads,
            ciphertexts.numbers.chunks(LANES * wide).zip(plaintexts.numbers.chunks_mut(LANES * limbs)),
            || (Montgomery::new(&key.0.modulus), self.halves.each_ref().map(|half| Montgomery::new(&half.squared))),
            |(montgomery, squared), (numbers, out)| {
                let mut ciphertext = Zeroizing::new(vec![Lanes::ZERO; wide]);
                gather(numbers, 1, &mut ciphertext);
                let mut sum = montgomery.number();
                for (half, squared) in self.halves.iter().zip(squared) {
                    let mut quotient = half.quotient(squared, &ciphertext);
                    montgomery.multiply(&mut quotient, &half.weight);
                    add(&mut sum, &quotient);
                }
                // Two numbers below 2n each.
                (0..3).for_each(|_| reduce_once(&mut sum, key.0.modulus.lanes()));
                scatter(&sum, out);
            },
        );
        Ok(plaintexts)
    }
}

impl Half {
    /// `(c^(p−1) mod p² − 1) / p`, as wide as n.
    fn quotient(&self, squared: &mut Montgomery<'_>, ciphertext: &[Lanes]) -> Zeroizing<Vec<Lanes>> {
        let (low, high) = ciphertext.split_at(self.squared.limbs());
        let (mut x, mut high) = (Zeroizing::new(low.to_vec()), Zeroizing::new(high.to_vec()));
        squared.enter(&mut x, Some(&mut high));
        squared.pow(&mut x, &self.exponent, self.prime.bits_precision());
        squared.leave(&mut x);
        // c is a unit, so the power is 1 mod p and p divides the rest: the quotient is a product modulo 2^(52 · limbs),
        // for which the lowest limbs suffice.
        let limbs = self.inverse.len();
        subtract_one(&mut x[..limbs]);
        multiply_low(&mut x[..limbs], &self.inverse);
        x[limbs..].fill(Lanes::ZERO);
        x
    }
}

/// `x -= 1` modulo 2^(52 · limbs).
fn subtract_one(x: &mut [Lanes]) {
    let mut borrow = Lanes::splat(1);
    for x in x {
        for lane in 0..LANES {
            let difference = x.0[lane].wrapping_sub(borrow.0[lane]);
            borrow.0[lane] = difference >> 63;
            x.0[lane] = difference & LIMB_MAX;
        }
    }
}

/// `x := x · y` modulo 2^(52 · limbs). One product of this kind goes with hundreds of the other: no kernel needed.
fn multiply_low(x: &mut [Lanes], y: &[Lanes]) {
    for lane in 0..LANES {
        let mut carry = 0_u128;
        let factor: Zeroizing<Vec<u64>> = Zeroizing::new(x.iter().map(|column| column.0[lane]).collect());
        for k in 0..x.len() {
            // At most 30 products below 2^104.
            let products = factor[..=k].iter().zip(y[..=k].iter().rev());
            let sum = products.map(|(&x, y)| u128::from(x) * u128::from(y.0[lane])).sum::<u128>() + carry;
            #[expect(clippy::cast_possible_truncation, reason = "the low limb is wanted")]
            {
                x[k].0[lane] = sum as u64 & LIMB_MAX;
            }
            carry = sum >> LIMB_BITS;
        }
    }
}
