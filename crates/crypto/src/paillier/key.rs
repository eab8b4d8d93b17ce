//! Key pairs, and what a public key must pass before anything is encrypted under it.

use super::lanes::{Lanes, broadcast, limbs_for};
use super::modulus::{Arithmetic, Modulus, limbs_of, nonzero};
use crate::SecretRng;
use crypto_bigint::{BoxedUint, ConcatenatingMul, ConcatenatingSquare, Gcd, Limb, NonZero, Resize};
use crypto_primes::hazmat::{SetBits, SmallFactorsSieveFactory};
use crypto_primes::{Flavor, is_prime, sieve_and_find};
use std::fmt;
use std::sync::{Arc, OnceLock};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Size of the modulus n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyBits {
    /// About 128 bits of security (NIST SP 800-57).
    #[default]
    Bits3072,
    /// About 112 bits of security: the least that is acceptable today.
    Bits2048,
    /// Factored in hours on one machine. For tests only: nothing parses to it.
    InsecureTest512,
}

impl KeyBits {
    /// The number of bits of n, exactly.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits3072 => 3072,
            Self::Bits2048 => 2048,
            Self::InsecureTest512 => 512,
        }
    }

    /// Bytes of a public key or a plaintext.
    #[must_use]
    pub fn key_bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// Bytes of a ciphertext.
    #[must_use]
    pub fn ciphertext_bytes(self) -> usize {
        2 * self.key_bytes()
    }
}

impl TryFrom<u32> for KeyBits {
    type Error = KeyError;

    /// 2048 or 3072; nothing else is offered.
    fn try_from(bits: u32) -> Result<Self, KeyError> {
        match bits {
            2048 => Ok(Self::Bits2048),
            3072 => Ok(Self::Bits3072),
            found => Err(KeyError::Unsupported { found }),
        }
    }
}

/// A key that must not be used, or could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Not a size on offer.
    #[error("a Paillier key has 2048 or 3072 bits, not {found}")]
    Unsupported {
        /// What was asked for.
        found: u32,
    },
    /// Not as long as agreed.
    #[error("public key has {found} bytes instead of {expected}")]
    Length {
        /// Bytes of the agreed size.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// The highest bit is not set.
    #[error("public key has {found} bits instead of {expected}")]
    BitLength {
        /// Agreed bits.
        expected: u32,
        /// Bits of the number received.
        found: u32,
    },
    /// n is even.
    #[error("public key is even")]
    Even,
    /// n has a factor that anyone finds.
    #[error("public key is divisible by {factor}")]
    SmallFactor {
        /// A prime below 2^20.
        factor: u32,
    },
    /// n is a power of another number.
    #[error("public key is a perfect power, exponent {exponent}")]
    PerfectPower {
        /// The smallest prime exponent.
        exponent: u32,
    },
    /// n is prime, so that anyone can decrypt.
    #[error("public key is prime")]
    Prime,
    /// The prime generator failed.
    #[error("no primes of {bits} bits could be generated")]
    Generation {
        /// Bits of a prime.
        bits: u32,
    },
}

/// A public key n that passed every check one can make without its factors. Cloning is cheap.
///
/// The checks (exact length, odd, no factor below 2^20, no perfect power, not prime) protect the *holders* of data: a
/// bad n lets whoever sees a ciphertext read it, such as the neighbour in the chain. They do not show that n has just
/// two prime factors: that is what [`KeyProof`](super::KeyProof) is for.
#[derive(Clone)]
pub struct PublicKey(pub(super) Arc<PublicParts>);

pub(super) struct PublicParts {
    pub(super) bits: KeyBits,
    pub(super) n: BoxedUint,
    pub(super) modulus: Modulus,
    pub(super) squared: Modulus,
    /// n in Montgomery form modulo n².
    pub(super) n_entered: Vec<Lanes>,
}

impl PublicKey {
    /// Takes over a key from elsewhere: n, big-endian, exactly as long as agreed.
    ///
    /// # Errors
    /// [`KeyError`], naming the first check that failed.
    pub fn from_bytes(bits: KeyBits, bytes: &[u8]) -> Result<Self, KeyError> {
        let expected = bits.key_bytes();
        let length = KeyError::Length { expected, found: bytes.len() };
        if bytes.len() != expected {
            return Err(length);
        }
        let n = BoxedUint::from_be_slice(bytes, bits.bits()).map_err(|_| length)?;
        check(bits, &n)?;
        Ok(Self::trusted(bits, n, Arithmetic::detect()))
    }

    /// n, big-endian, [`KeyBits::key_bytes`] long.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.n.to_be_bytes().into_vec()
    }

    /// Size of the key.
    #[must_use]
    pub fn bits(&self) -> KeyBits {
        self.0.bits
    }

    /// How this key's products are computed.
    #[must_use]
    pub fn arithmetic(&self) -> Arithmetic {
        self.0.modulus.arithmetic()
    }

    /// The same key with products computed otherwise; [`Arithmetic::Portable`] if this machine lacks what is asked.
    #[must_use]
    pub fn with_arithmetic(&self, arithmetic: Arithmetic) -> Self {
        Self::trusted(self.0.bits, self.0.n.clone(), arithmetic)
    }

    /// `n` is odd and of exactly `bits` bits.
    fn trusted(bits: KeyBits, n: BoxedUint, arithmetic: Arithmetic) -> Self {
        let square = n.concatenating_square();
        let squared = Modulus::new(&square, arithmetic);
        let r = BoxedUint::one_with_precision(2 * square.bits_precision()).shl(squared.r_bits()).rem(nonzero(&n));
        let n_entered = broadcast(&limbs_of(&n.concatenating_mul(&r), squared.limbs()));
        Self(Arc::new(PublicParts { bits, modulus: Modulus::new(&n, arithmetic), n, squared, n_entered }))
    }

    /// Limbs of a plaintext.
    pub(super) fn plain_limbs(&self) -> usize {
        self.0.modulus.limbs()
    }

    /// Limbs of a ciphertext: twice as many.
    pub(super) fn cipher_limbs(&self) -> usize {
        self.0.squared.limbs()
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.n == other.0.n
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({} bits)", self.0.bits.bits())
    }
}

/// The factors of a public key, with what decryption needs. Not cloneable, not printable, not serialisable; wiped on
/// drop. A job makes its own and forgets it.
pub struct SecretKey {
    pub(super) public: PublicKey,
    pub(super) halves: [Half; 2],
}

/// One prime's side of the Chinese remainder theorem.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Half {
    pub(super) prime: BoxedUint,
    pub(super) squared: Modulus,
    /// prime − 1.
    pub(super) exponent: BoxedUint,
    /// prime⁻¹ modulo 2^(52 · limbs): division by the prime that is known to leave nothing is a product with it.
    pub(super) inverse: Vec<Lanes>,
    /// What this side's quotient counts in the plaintext, modulo n, in Montgomery form.
    pub(super) weight: Vec<Lanes>,
}

impl SecretKey {
    /// Makes a key pair: two random primes with their two highest bits set, so that n has exactly the asked length,
    /// both 3 mod 4, so that −1 is a non-residue modulo each and the key can be proved a Blum integer.
    ///
    /// Candidates come from a sieve and pass Baillie–PSW ([`crypto_primes::is_prime`]). Own generation rather than
    /// paillier-common's, because that one leaves n a bit short in 40 % of keys, and does not check the conditions
    /// below. Takes about 0.2 s at 2048 bits and 0.8 s at 3072. Its time depends on the primes: generate where nobody
    /// can measure.
    ///
    /// # Errors
    /// [`KeyError::Generation`] if the generator gives out, which it does not.
    pub fn generate(bits: KeyBits, rng: &mut SecretRng) -> Result<Self, KeyError> {
        let half = bits.bits() / 2;
        loop {
            let p = Zeroizing::new(blum_prime(half, rng)?);
            let q = Zeroizing::new(blum_prime(half, rng)?);
            if far_apart(&p, &q) && only_two_in_common(&p, &q) {
                return Ok(Self::from_primes(bits, &p, &q));
            }
        }
    }

    fn from_primes(bits: KeyBits, p: &BoxedUint, q: &BoxedUint) -> Self {
        let public = PublicKey::trusted(bits, p.concatenating_mul(q), Arithmetic::detect());
        let halves = [Half::new(&public, p, q), Half::new(&public, q, p)];
        Self { public, halves }
    }

    /// The key to give away.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The same key with products computed otherwise; see [`PublicKey::with_arithmetic`].
    #[must_use]
    pub fn with_arithmetic(self, arithmetic: Arithmetic) -> Self {
        let public = self.public.with_arithmetic(arithmetic);
        let [p, q] = &self.halves;
        let halves = [Half::new(&public, &p.prime, &q.prime), Half::new(&public, &q.prime, &p.prime)];
        Self { public, halves }
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({} bits, ..)", self.public.0.bits.bits())
    }
}

impl Half {
    fn new(public: &PublicKey, prime: &BoxedUint, other: &BoxedUint) -> Self {
        let limbs = limbs_for(prime.bits());
        let precision = u32::try_from(limbs).unwrap_or(u32::MAX) * super::lanes::LIMB_BITS;
        let (inverse, _) = Zeroizing::new(prime.resize(precision)).invert_mod2k(precision);
        let inverse = Zeroizing::new(inverse);
        // c^(p−1) = 1 + L·p mod p² with L = −q·m mod p, so m = −L·q⁻¹ mod p. The other prime's side weighs q·q⁻¹ in
        // the plaintext modulo n. Together: −q·(q⁻¹ mod p)².
        let n = nonzero(&public.0.n);
        let q_inverse = Zeroizing::new(inverse_modulo(other, prime));
        let square = Zeroizing::new(q_inverse.concatenating_square());
        let weight = Zeroizing::new(Zeroizing::new(square.rem(nonzero(prime))).concatenating_mul(other));
        let weight = Zeroizing::new(public.0.n.wrapping_sub(weight.rem(n)));
        let r = BoxedUint::one_with_precision(2 * public.0.n.bits_precision() + 128);
        let r = r.shl(public.0.modulus.r_bits()).rem(n);
        let weight = Zeroizing::new(Zeroizing::new(weight.concatenating_mul(&r)).rem(n));
        Self {
            prime: prime.clone(),
            squared: Modulus::new(&Zeroizing::new(prime.concatenating_square()), public.arithmetic()),
            exponent: prime.wrapping_sub(BoxedUint::one()),
            inverse: broadcast(&limbs_of(&inverse, limbs)),
            weight: broadcast(&limbs_of(&weight, public.plain_limbs())),
        }
    }
}

/// x⁻¹ modulo `modulus`, with which it has no factor in common.
pub(super) fn inverse_modulo(x: &BoxedUint, modulus: &BoxedUint) -> BoxedUint {
    let modulus = nonzero(modulus);
    #[expect(clippy::expect_used, reason = "the caller's numbers have no factor in common")]
    Zeroizing::new(x.rem(modulus)).invert_mod(modulus).into_option().expect("an invertible number")
}

/// A random prime of exactly `bits` bits, both highest bits set, 3 mod 4.
fn blum_prime(bits: u32, rng: &mut SecretRng) -> Result<BoxedUint, KeyError> {
    let failed = KeyError::Generation { bits };
    let sieve = SmallFactorsSieveFactory::new(Flavor::Any, bits, SetBits::TwoMsb).map_err(|_| failed)?;
    let is_wanted = |candidate: &BoxedUint| {
        // The sieve walks upwards and could leave the range of the two set bits.
        let in_range = candidate.bits() == bits && candidate.bit(bits - 2).to_bool();
        in_range && candidate.as_words()[0] & 3 == 3 && is_prime(Flavor::Any, candidate)
    };
    sieve_and_find(rng.generator(), sieve, |_, candidate: &BoxedUint| is_wanted(candidate))
        .map_err(|_| failed)?
        .ok_or(failed)
}

/// |p − q| > 2^(bits − 100), where p and q have `bits` bits each: Fermat's method finds closer ones (FIPS 186-5).
fn far_apart(p: &BoxedUint, q: &BoxedUint) -> bool {
    let (high, low) = if p > q { (p, q) } else { (q, p) };
    high.wrapping_sub(low).bits() > p.bits() - 100
}

/// gcd(p − 1, q − 1) = 2, so that n-th powers and fourth roots are unique where the proof needs it.
fn only_two_in_common(p: &BoxedUint, q: &BoxedUint) -> bool {
    let one = BoxedUint::one();
    let common = p.wrapping_sub(&one).gcd(&q.wrapping_sub(&one));
    common.bits() == 2 && common.as_words()[0] == 2
}

fn check(bits: KeyBits, n: &BoxedUint) -> Result<(), KeyError> {
    let found = n.bits_vartime();
    if found != bits.bits() {
        return Err(KeyError::BitLength { expected: bits.bits(), found });
    }
    if n.as_words()[0] & 1 == 0 {
        return Err(KeyError::Even);
    }
    let primes = small_primes();
    if let Some(factor) = small_factor(n, primes) {
        return Err(KeyError::SmallFactor { factor });
    }
    if let Some(exponent) = perfect_power(n, primes) {
        return Err(KeyError::PerfectPower { exponent });
    }
    // Composites pass Baillie–PSW at worst by a rarity nobody has found; primes always pass, so no prime is accepted.
    if is_prime(Flavor::Any, n) {
        return Err(KeyError::Prime);
    }
    Ok(())
}

const SMALL_FACTOR_BITS: u32 = 20;

/// The odd primes below 2^20, made once.
fn small_primes() -> &'static [u32] {
    static PRIMES: OnceLock<Vec<u32>> = OnceLock::new();
    PRIMES.get_or_init(odd_primes)
}

fn odd_primes() -> Vec<u32> {
    let limit = 1_usize << SMALL_FACTOR_BITS;
    let mut composite = vec![false; limit];
    let mut primes = Vec::with_capacity(82_024);
    for i in (3..limit).step_by(2) {
        if !composite[i] {
            primes.extend(u32::try_from(i));
            (i * i..limit).step_by(2 * i).for_each(|j| composite[j] = true);
        }
    }
    primes
}

/// The least prime of `primes` that divides n. Three primes per division: their product fits a word.
fn small_factor(n: &BoxedUint, primes: &[u32]) -> Option<u32> {
    primes.chunks(3).find_map(|primes| {
        let rest = remainder(n, primes.iter().map(|&p| u64::from(p)).product());
        primes.iter().copied().find(|&p| rest.is_multiple_of(u64::from(p)))
    })
}

fn remainder(n: &BoxedUint, divisor: u64) -> u64 {
    let divisor = NonZero::new(Limb(divisor)).into_option();
    divisor.map_or(0, |divisor| n.rem_limb(divisor).0)
}

/// The least prime k for which n is a k-th power, for n without factors below 2^20.
///
/// A k-th power is a k-th power modulo every prime ℓ = 1 mod k, so n^((ℓ−1)/k) = 1 there; any other n fails that for
/// all but one in k of the ℓ. A power is thus always found; another n is refused by mistake with odds of `k^-128`.
fn perfect_power(n: &BoxedUint, primes: &[u32]) -> Option<u32> {
    const WITNESSES: usize = 128;
    let exponent_max = n.bits_vartime() / SMALL_FACTOR_BITS;
    let exponents = std::iter::once(2).chain(primes.iter().copied()).take_while(|&k| k <= exponent_max);
    exponents.into_iter().find(|&k| {
        let residues = primes.iter().filter(|&&l| l % k == 1).map(|&l| u64::from(l));
        residues.take(WITNESSES).all(|l| power_modulo(remainder(n, l), (l - 1) / u64::from(k), l) == 1)
    })
}

/// For a modulus below 2^32.
fn power_modulo(base: u64, exponent: u64, modulus: u64) -> u64 {
    (0..64).rev().fold(1, |x, bit| {
        let square = x * x % modulus;
        if exponent >> bit & 1 == 1 { square * base % modulus } else { square }
    })
}

/// Keys that no honest owner makes.
#[cfg(test)]
pub(super) mod test_keys {
    use super::*;

    fn random_prime(bits: u32) -> BoxedUint {
        crypto_primes::random_prime(SecretRng::from_system().unwrap().generator(), Flavor::Any, bits)
    }

    pub(crate) fn prime(bits: u32) -> Vec<u8> {
        random_prime(bits).to_be_bytes().into_vec()
    }

    /// A power of a number without small factors, of 512 bits exactly.
    pub(crate) fn power(bits: u32, exponent: u32) -> Vec<u8> {
        let bits = if exponent == 2 { bits } else { bits.div_ceil(exponent) };
        loop {
            let base = random_prime(bits);
            let power = (1..exponent).fold(base.clone(), |x, _| x.concatenating_mul(&base));
            if power.bits() == 512 {
                return power.resize(512).to_be_bytes().into_vec();
            }
        }
    }

    /// A multiple of a small prime, of `bits` bits exactly, without smaller odd factors.
    pub(crate) fn multiple(bits: u32, factor: u32) -> Vec<u8> {
        let factor = BoxedUint::from(factor);
        loop {
            let n = random_prime(bits - factor.bits()).concatenating_mul(&factor);
            if n.bits() == bits {
                return n.resize(bits).to_be_bytes().into_vec();
            }
        }
    }

    /// p = 1 mod 4.
    pub(crate) fn not_blum() -> SecretKey {
        let mut rng = SecretRng::from_system().unwrap();
        let q = blum_prime(256, &mut rng).unwrap();
        loop {
            let p = random_prime(256);
            let n = p.concatenating_mul(&q);
            if p.as_words()[0] & 3 == 1 && n.bits() == 512 {
                return SecretKey::from_primes(KeyBits::InsecureTest512, &p, &q);
            }
        }
    }

    /// The same key with portable arithmetic.
    pub(crate) fn portable(key: &SecretKey) -> SecretKey {
        let [p, q] = &key.halves;
        SecretKey::from_primes(key.public.bits(), &p.prime, &q.prime).with_arithmetic(Arithmetic::Portable)
    }

    /// Two primes, 3 mod 4, of different length; n has 2048 bits. Good for proofs only.
    pub(crate) fn unbalanced(p_bits: u32, q_bits: u32) -> SecretKey {
        let mut rng = SecretRng::from_system().unwrap();
        let [p, q] = [p_bits, q_bits].map(|bits| blum_prime(bits, &mut rng).unwrap());
        SecretKey::from_primes(KeyBits::Bits2048, &p, &q)
    }
}
