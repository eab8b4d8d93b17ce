//! Keys: the secret one, and those made of it for others.

use crate::ciphertext::{FreshCiphertext, each};
use crate::kernel;
use crate::ntt::automorphism;
use crate::sampling::{errors, ternary, uniform};
use crate::{Ciphertext, CkksError, Context, Plaintext};
use spnn_crypto::SecretRng;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Decrypts, and makes the other keys. Cleared on drop.
pub struct SecretKey {
    context: Arc<Context>,
    /// s over all moduli, transformed.
    s: Zeroizing<Vec<u64>>,
}

/// Encrypts.
pub struct PublicKey {
    pub(crate) context: Arc<Context>,
    /// −a·s + e over Q, transformed.
    pub(crate) b: Vec<u64>,
    /// What the seed stands for.
    a: Vec<u64>,
    /// Of a.
    pub(crate) seed: [u8; 32],
}

/// Brings products back to two parts.
pub struct RelinearizationKey(pub(crate) SwitchingKey);

/// Rotates slots by certain steps.
pub struct RotationKeys {
    context: Arc<Context>,
    keys: BTreeMap<usize, (Vec<usize>, SwitchingKey)>,
}

/// Turns what is encrypted under one secret s' into what is encrypted under another, s: for each digit, −a·s + e + P·s' in the
/// digit's limbs and −a·s + e in all others, over all moduli.
pub(crate) struct SwitchingKey {
    pub(crate) context: Arc<Context>,
    /// Of all a.
    pub(crate) seed: [u8; 32],
    /// That sum, and a, of each digit.
    pub(crate) digits: Vec<[Vec<u64>; 2]>,
}

/// Bits by which a released value's noise is larger than the error that it hides: what a stranger learns of the error of one
/// coefficient is at most 2^-40 (statistical distance).
pub const FLOODING_BITS: u32 = 40;

impl SecretKey {
    /// A fresh key: coefficients −1, 0 and 1, each as likely.
    #[must_use]
    pub fn generate(context: &Arc<Context>, rng: &mut SecretRng) -> Self {
        let coefficients = ternary(context.n(), rng);
        let s = Zeroizing::new(context.small(&coefficients, context.moduli().len()));
        Self { context: Arc::clone(context), s }
    }

    /// Encrypts for the holder of this key. A slot is off by about √n·σ/scale, σ = 3.24, and what encoding adds.
    ///
    /// # Errors
    /// [`CkksError::Contexts`].
    pub fn encrypt(&self, plain: &Plaintext, rng: &mut SecretRng) -> Result<FreshCiphertext, CkksError> {
        same(&self.context, &plain.context)?;
        let (n, limbs) = (self.context.n(), plain.level + 1);
        let seed = rng.bytes32();
        let a = uniform(&seed, 0, &self.context.limbs()[..limbs], n);
        let mut c0 = self.masked(&a, &self.s, rng);
        each(&self.context, &mut c0, &plain.polynomial, kernel::add);
        Ok(FreshCiphertext { context: Arc::clone(&self.context), c0, seed, level: plain.level, scale: plain.scale })
    }

    /// −a·s + e for a secret s over at least as many moduli.
    fn masked(&self, a: &[u64], s: &[u64], rng: &mut SecretRng) -> Vec<u64> {
        let n = self.context.n();
        let mut masked = Zeroizing::new(self.context.small(&errors(n, rng), a.len() / n));
        let mut product = Zeroizing::new(s[..a.len()].to_vec());
        each(&self.context, &mut product, a, kernel::mul);
        each(&self.context, &mut masked, &product, kernel::sub);
        std::mem::take(&mut masked)
    }

    /// A key to encrypt with for the holder of this one.
    #[must_use]
    pub fn public_key(&self, rng: &mut SecretRng) -> PublicKey {
        let seed = rng.bytes32();
        let a = uniform(&seed, 0, self.context.limbs(), self.context.n());
        PublicKey { context: Arc::clone(&self.context), b: self.masked(&a, &self.s, rng), a, seed }
    }

    /// A key for products.
    ///
    /// # Errors
    /// [`CkksError::NoKeySwitching`].
    pub fn relinearization_key(&self, rng: &mut SecretRng) -> Result<RelinearizationKey, CkksError> {
        let mut square = Zeroizing::new(self.s.to_vec());
        each(&self.context, &mut square, &self.s, kernel::mul);
        Ok(RelinearizationKey(self.switching_key(&square, &self.s, rng)?))
    }

    /// Keys for rotations by each of `steps`: from s to the secret that the rotation turns into s. What is rotated is switched
    /// first and moved then, so that several rotations of one ciphertext share its digits.
    ///
    /// # Errors
    /// [`CkksError::NoKeySwitching`].
    pub fn rotation_keys(&self, steps: &[usize], rng: &mut SecretRng) -> Result<RotationKeys, CkksError> {
        let slots = self.context.preset().slots();
        let mut keys = Vec::new();
        for steps in steps.iter().map(|s| s % slots).filter(|s| *s > 0) {
            let turned = Zeroizing::new(moved(&self.s, &rotation(&self.context, slots - steps)));
            keys.push((steps, self.switching_key(&self.s, &turned, rng)?));
        }
        Ok(RotationKeys::of_keys(&self.context, keys))
    }

    fn switching_key(&self, from: &[u64], to: &[u64], rng: &mut SecretRng) -> Result<SwitchingKey, CkksError> {
        let (context, n) = (&self.context, self.context.n());
        if context.digit_count() == 0 {
            return Err(CkksError::NoKeySwitching { preset: context.preset().name() });
        }
        let seed = rng.bytes32();
        let digit = |number: usize| {
            let mut b = self.masked(&uniform(&seed, number as u64, context.moduli(), n), to, rng);
            for limb in context.digit_limbs(number) {
                let (q, p) = (context.moduli()[limb], context.special_product(limb));
                let range = limb * n..(limb + 1) * n;
                for (b, s) in b[range.clone()].iter_mut().zip(&from[range]) {
                    *b = q.add(*b, q.mul(*s, p));
                }
            }
            b
        };
        let digits = (0..context.digit_count()).map(digit).collect();
        Ok(SwitchingKey::of_digits(context, seed, digits))
    }

    /// Decrypts for the holder's own eyes: the result holds the ciphertext's error, from which others could compute the key.
    ///
    /// # Errors
    /// [`CkksError::Contexts`].
    pub fn decrypt(&self, ciphertext: &Ciphertext) -> Result<Plaintext, CkksError> {
        ciphertext.is_of(&self.context)?;
        let mut polynomial: Vec<u64> = ciphertext.parts.last().cloned().unwrap_or_default();
        for part in ciphertext.parts.iter().rev().skip(1) {
            each(&self.context, &mut polynomial, &self.s, kernel::mul);
            each(&self.context, &mut polynomial, part, kernel::add);
        }
        let Ciphertext { level, scale, .. } = *ciphertext;
        Ok(Plaintext { context: Arc::clone(&self.context), polynomial, level, scale })
    }

    /// Decrypts for others: uniform noise of ±2^(`error_log2` + 40) is added to each coefficient, under which an error of up to
    /// 2^`error_log2` disappears (noise flooding; Li, Micciancio, Schultz, Sorrell, CRYPTO 2022). A slot is then off by about
    /// √n·2^(`error_log2` + 40)/(√3·scale).
    ///
    /// # Errors
    /// [`CkksError::Scale`] if there is no room for the noise; [`CkksError::Contexts`].
    pub fn decrypt_for_release(
        &self,
        ciphertext: &Ciphertext,
        error_log2: u32,
        rng: &mut SecretRng,
    ) -> Result<Plaintext, CkksError> {
        let mut plain = self.decrypt(ciphertext)?;
        let noise = flooding(&self.context, plain.level, error_log2, rng)?;
        each(&self.context, &mut plain.polynomial, &noise, kernel::add);
        Ok(plain)
    }
}

/// A polynomial of a level with coefficients uniform within ±2^(`error_log2` + 40).
///
/// # Errors
/// [`CkksError::Scale`] if the level has no room for them.
pub(crate) fn flooding(
    context: &Context,
    level: usize,
    error_log2: u32,
    rng: &mut SecretRng,
) -> Result<Zeroizing<Vec<u64>>, CkksError> {
    let noise_log2 = error_log2.saturating_add(FLOODING_BITS);
    let room = context.log2_modulus(level).min(62.0);
    if f64::from(noise_log2) + 1.0 >= room {
        return Err(CkksError::Scale { scale_log2: noise_log2.into(), level });
    }
    let (n, span) = (context.n(), (2_u128 << noise_log2) + 1);
    let mut bytes = Zeroizing::new(vec![0_u8; 8 * n]);
    rng.fill_bytes(&mut bytes);
    let number = |b: &[u8]| {
        let high = b.iter().fold(0_u128, |x, byte| x << 8 | u128::from(*byte));
        // 64 random bits times the span: each number is as likely but for 2^-64 of the span.
        let drawn = (high * span) >> 64;
        i64::try_from(drawn).unwrap_or(i64::MAX) - (1_i64 << noise_log2)
    };
    let noise: Zeroizing<Vec<i64>> = Zeroizing::new(bytes.chunks_exact(8).map(number).collect());
    Ok(Zeroizing::new(context.small(&noise, level + 1)))
}

impl PublicKey {
    /// Encrypts for the holder of the secret key. A slot is off by about n·σ·√(4/3)/scale.
    ///
    /// # Errors
    /// [`CkksError::Contexts`].
    pub fn encrypt(&self, plain: &Plaintext, rng: &mut SecretRng) -> Result<Ciphertext, CkksError> {
        same(&self.context, &plain.context)?;
        let (context, n, limbs) = (&self.context, self.context.n(), plain.level + 1);
        let v = Zeroizing::new(context.small(&ternary(n, rng), limbs));
        let mut of = |key: &[u64]| {
            let mut part = key[..limbs * n].to_vec();
            each(context, &mut part, &v, kernel::mul);
            let error = Zeroizing::new(context.small(&errors(n, rng), limbs));
            each(context, &mut part, &error, kernel::add);
            part
        };
        let (mut c0, c1) = (of(&self.b), of(&self.a));
        each(context, &mut c0, &plain.polynomial, kernel::add);
        Ok(Ciphertext { context: Arc::clone(context), parts: vec![c0, c1], level: plain.level, scale: plain.scale })
    }

    /// Keeps the slots, in parts that say nothing of how they were computed, even to the holder of the secret key, whom the parts of
    /// a product would let find its factors. What the whole decrypts to still has the old error; only
    /// [flooding](Ciphertext::flood) hides that.
    ///
    /// Part k + 1 is masked by u·a + e for fresh small u and e, which is pseudorandom to whoever knows a and s (ring-LWE with
    /// the secret u), and part k by u·b, so that together they decrypt to u·e_b + e·s, which is small. A slot is off by about
    /// n·σ·√(4/3)·(2n/3)^(k/2)/scale more, for the last k.
    ///
    /// # Errors
    /// [`CkksError::Contexts`].
    pub fn rerandomize(&self, ciphertext: &mut Ciphertext, rng: &mut SecretRng) -> Result<(), CkksError> {
        ciphertext.is_of(&self.context)?;
        let (context, n) = (&self.context, self.context.n());
        let limbs = ciphertext.level + 1;
        for k in 0..ciphertext.parts.len() - 1 {
            let u = Zeroizing::new(context.small(&ternary(n, rng), limbs));
            let error = Zeroizing::new(context.small(&errors(n, rng), limbs));
            for (part, key) in ciphertext.parts[k..=k + 1].iter_mut().zip([&self.b, &self.a]) {
                let mut product = Zeroizing::new(key[..limbs * n].to_vec());
                each(context, &mut product, &u, kernel::mul);
                each(context, part, &product, kernel::add);
            }
            each(context, &mut ciphertext.parts[k + 1], &error, kernel::add);
        }
        Ok(())
    }

    pub(crate) fn of_parts(context: &Arc<Context>, b: Vec<u64>, seed: [u8; 32]) -> Self {
        let a = uniform(&seed, 0, context.limbs(), context.n());
        Self { context: Arc::clone(context), b, a, seed }
    }
}

impl RelinearizationKey {
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }
}

impl RotationKeys {
    pub(crate) fn of_keys(context: &Arc<Context>, keys: Vec<(usize, SwitchingKey)>) -> Self {
        let keys = keys.into_iter().map(|(steps, key)| (steps, (rotation(context, steps), key))).collect();
        Self { context: Arc::clone(context), keys }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// By how many slots they rotate, in ascending order.
    pub fn steps(&self) -> impl Iterator<Item = usize> {
        self.keys.keys().copied()
    }

    /// In ascending order of steps.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &SwitchingKey)> {
        self.keys.iter().map(|(steps, (_, key))| (*steps, key))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Where values go, and the key.
    pub(crate) fn of(&self, steps: usize) -> Option<(&[usize], &SwitchingKey)> {
        self.keys.get(&steps).map(|(places, key)| (&places[..], key))
    }
}

impl SwitchingKey {
    pub(crate) fn of_digits(context: &Arc<Context>, seed: [u8; 32], digits: Vec<Vec<u64>>) -> Self {
        let with_uniform = |(number, b): (usize, Vec<u64>)| {
            let a = uniform(&seed, number as u64, context.moduli(), context.n());
            [b, a]
        };
        let digits = digits.into_iter().enumerate().map(with_uniform).collect();
        Self { context: Arc::clone(context), seed, digits }
    }
}

/// Where a rotation by `steps` brings the values of a transform: X → X^(5^steps).
fn rotation(context: &Context, steps: usize) -> Vec<usize> {
    let power = (0..steps).fold(1, |power, _| power * 5 % (2 * context.n()));
    automorphism(context.n(), power)
}

/// The polynomial whose limbs have at each place what `places` says.
pub(crate) fn moved(polynomial: &[u64], places: &[usize]) -> Vec<u64> {
    let mut moved = Vec::with_capacity(polynomial.len());
    polynomial.chunks_exact(places.len()).for_each(|limb| moved.extend(places.iter().map(|p| limb[*p])));
    moved
}

fn same(ours: &Arc<Context>, theirs: &Arc<Context>) -> Result<(), CkksError> {
    if ours.preset() == theirs.preset() { Ok(()) } else { Err(CkksError::Contexts) }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({:?})", self.context.preset())
    }
}
