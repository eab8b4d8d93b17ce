//! What is computed on: sums, products, rescaling, rotation.

use crate::kernel;
use crate::keys::{RelinearizationKey, RotationKeys, flooding};
use crate::sampling::uniform;
use crate::{CkksError, Context, Plaintext};
use spnn_crypto::{SecretRng, Sign};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Encrypted slots: c_0 + c_1·s + c_2·s² + … decrypts.
#[derive(Clone)]
pub struct Ciphertext {
    pub(crate) context: Arc<Context>,
    /// Transformed polynomials, limb after limb; at least two.
    pub(crate) parts: Vec<Vec<u64>>,
    pub(crate) level: usize,
    pub(crate) scale: f64,
}

/// A ciphertext as the holder of the secret key makes it: its second part is a seed, which halves what is sent.
#[derive(Clone)]
pub struct FreshCiphertext {
    pub(crate) context: Arc<Context>,
    pub(crate) c0: Vec<u64>,
    pub(crate) seed: [u8; 32],
    pub(crate) level: usize,
    pub(crate) scale: f64,
}

/// Scales may differ by so much, relative to each other, and are the same: less than any error of a ciphertext.
const SCALE_TOLERANCE: f64 = 1e-10;
/// Primes that one division is by: sums of so many products are reduced at once.
const RESCALED_MAX: usize = 4;

impl FreshCiphertext {
    /// How often it can be rescaled.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// What the slots are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The same with both parts.
    #[must_use]
    pub fn expand(&self) -> Ciphertext {
        self.clone().into_ciphertext()
    }

    /// As [`expand`](Self::expand), without a copy.
    #[must_use]
    pub fn into_ciphertext(self) -> Ciphertext {
        let Self { context, c0, seed, level, scale } = self;
        let c1 = uniform(&seed, 0, &context.limbs()[..=level], context.n());
        Ciphertext { context, parts: vec![c0, c1], level, scale }
    }
}

impl Ciphertext {
    /// How often it can still be rescaled.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// What the slots are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Number of polynomials.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Slot by slot.
    ///
    /// # Errors
    /// [`CkksError::Level`], [`CkksError::Scales`], [`CkksError::Contexts`].
    pub fn add(&self, other: &Self) -> Result<Self, CkksError> {
        self.combine(other, |context, x, y| each(context, x, y, kernel::add))
    }

    /// Slot by slot.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn sub(&self, other: &Self) -> Result<Self, CkksError> {
        self.combine(other, |context, x, y| each(context, x, y, kernel::sub))
    }

    /// [`add`](Self::add) without a copy.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_assign(&mut self, other: &Self) -> Result<(), CkksError> {
        self.combine_assign(other, |context, x, y| each(context, x, y, kernel::add))
    }

    fn combine(&self, other: &Self, both: impl Fn(&Context, &mut [u64], &[u64])) -> Result<Self, CkksError> {
        let mut result = self.clone();
        result.combine_assign(other, both)?;
        Ok(result)
    }

    fn combine_assign(&mut self, other: &Self, both: impl Fn(&Context, &mut [u64], &[u64])) -> Result<(), CkksError> {
        self.fits(&other.context, other.level)?;
        self.has_scale(other.scale)?;
        let length = self.parts[0].len();
        self.parts.resize(self.parts.len().max(other.parts.len()), vec![0; length]);
        for (x, y) in self.parts.iter_mut().zip(&other.parts) {
            both(&self.context, x, y);
        }
        Ok(())
    }

    /// Slot by slot.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_plain(&self, plain: &Plaintext) -> Result<Self, CkksError> {
        self.fits(&plain.context, plain.level)?;
        self.has_scale(plain.scale)?;
        let mut result = self.clone();
        each(&self.context, &mut result.parts[0], &plain.polynomial, kernel::add);
        Ok(result)
    }

    /// Slot by slot; the scales are multiplied.
    ///
    /// # Errors
    /// [`CkksError::Level`], [`CkksError::Scale`], [`CkksError::Contexts`].
    pub fn mul_plain(&self, plain: &Plaintext) -> Result<Self, CkksError> {
        self.fits(&plain.context, plain.level)?;
        let mut result = self.clone();
        result.scale = self.scale_of_product(plain.scale)?;
        for part in &mut result.parts {
            each(&self.context, part, &plain.polynomial, kernel::mul);
        }
        Ok(result)
    }

    /// The sum of products of ciphertexts and plaintexts, slot by slot: all ciphertexts of one level, scale and number of
    /// parts, all plaintexts of that level and one scale.
    ///
    /// # Errors
    /// [`CkksError::Level`], [`CkksError::Scale`], [`CkksError::Scales`], [`CkksError::Contexts`]; [`CkksError::Parts`];
    /// [`CkksError::Shape`] of no products.
    pub fn sum_of_products(pairs: &[(&Self, &Plaintext)]) -> Result<Self, CkksError> {
        let Some((first, plain)) = pairs.first() else {
            return Err(CkksError::Shape { what: "products", expected: 1, found: 0 });
        };
        for (x, y) in pairs {
            first.fits(&x.context, x.level)?;
            first.fits(&y.context, y.level)?;
            first.has_scale(x.scale)?;
            if (y.scale / plain.scale - 1.0).abs() > SCALE_TOLERANCE {
                return Err(CkksError::Scales { left: plain.scale.log2(), right: y.scale.log2() });
            }
            if x.parts.len() != first.parts.len() {
                return Err(CkksError::Parts { expected: "as many as the others have", found: x.parts.len() });
            }
        }
        let scale = first.scale_of_product(plain.scale)?;
        let (context, n) = (&first.context, first.context.n());
        let part = |number: usize| {
            let mut sum = Vec::with_capacity(first.parts[number].len());
            for (limb, q) in context.limbs()[..=first.level].iter().enumerate() {
                let limb = limb * n..(limb + 1) * n;
                let limbs = pairs.iter().map(|(x, y)| (&x.parts[number][limb.clone()], &y.polynomial[limb.clone()]));
                kernel::sum_of_products(*q, n, &limbs.collect::<Vec<_>>(), &mut sum);
            }
            sum
        };
        let parts = (0..first.parts.len()).map(part).collect();
        Ok(Self { context: Arc::clone(context), parts, level: first.level, scale })
    }

    /// All slots by one whole number; scale and level stay.
    #[must_use]
    pub fn mul_integer(&self, factor: i64) -> Self {
        let mut result = self.clone();
        let n = self.context.n();
        for part in &mut result.parts {
            for (limb, q) in part.chunks_exact_mut(n).zip(self.context.limbs()) {
                let factor = q.factor(q.reduce_signed(factor));
                limb.iter_mut().for_each(|x| *x = q.mul_factor(*x, factor));
            }
        }
        result
    }

    /// Slot by slot; the scales are multiplied. Of ciphertexts with a and b parts, the product has a + b − 1: it can be
    /// used as it is, or [relinearized](Self::relinearize).
    ///
    /// # Errors
    /// [`CkksError::Level`], [`CkksError::Scale`], [`CkksError::Contexts`].
    pub fn mul(&self, other: &Self) -> Result<Self, CkksError> {
        self.fits(&other.context, other.level)?;
        let scale = self.scale_of_product(other.scale)?;
        let n = self.context.n();
        let part = |number: usize| {
            let pairs = |limb: usize| -> Vec<(&[u64], &[u64])> {
                let limb = limb * n..(limb + 1) * n;
                let pairs =
                    self.parts.iter().zip((0..=number).rev()).filter_map(|(x, j)| Some((x, other.parts.get(j)?)));
                pairs.map(|(x, y)| (&x[limb.clone()], &y[limb.clone()])).collect()
            };
            let mut sum = Vec::with_capacity(self.parts[0].len());
            for (limb, q) in self.context.limbs()[..=self.level].iter().enumerate() {
                kernel::sum_of_products(*q, n, &pairs(limb), &mut sum);
            }
            sum
        };
        let parts = (0..self.parts.len() + other.parts.len() - 1).map(part).collect();
        Ok(Self { context: Arc::clone(&self.context), parts, level: self.level, scale })
    }

    /// Three parts back to two.
    ///
    /// # Errors
    /// [`CkksError::Parts`] if there are not three; [`CkksError::Contexts`].
    pub fn relinearize(&self, key: &RelinearizationKey) -> Result<Self, CkksError> {
        self.is_of(key.context())?;
        let [c0, c1, c2] = &self.parts[..] else {
            return Err(CkksError::Parts { expected: "3", found: self.parts.len() });
        };
        Ok(self.switched(self.context.switch(c2, &key.0.digits, [Some(c0), Some(c1)])))
    }

    /// Divides scale and ciphertext by the last prime, rounding, and takes a level away. A slot is off by at most about
    /// n/scale afterwards.
    ///
    /// # Errors
    /// [`CkksError::Depth`] at level 0.
    pub fn rescale(&self) -> Result<Self, CkksError> {
        let mut result = self.clone();
        result.rescale_to(self.level.checked_sub(1).ok_or(CkksError::Depth)?)?;
        Ok(result)
    }

    /// Divides by the primes of all levels above `level`, in less time than by one after the other, and rounds less often.
    ///
    /// # Errors
    /// [`CkksError::Level`] if it is below `level` already.
    pub fn rescale_to(&mut self, level: usize) -> Result<(), CkksError> {
        if level > self.level {
            return Err(CkksError::Level { expected: level, found: self.level });
        }
        while self.level > level {
            let next = level.max(self.level.saturating_sub(RESCALED_MAX));
            self.context.rescale(self.parts.iter_mut(), self.level, next);
            for prime in &self.context.limbs()[next + 1..=self.level] {
                #[expect(clippy::cast_precision_loss, reason = "below 2^51, exact")]
                let prime = prime.value() as f64;
                self.scale /= prime;
            }
            self.level = next;
        }
        Ok(())
    }

    /// Adds to the first part the uniform polynomial that a seed stands for, or subtracts it: a mask over the whole modulus, which
    /// whoever adds the ciphertexts of all who have masks in common takes away.
    pub fn mask(&mut self, seed: &[u8; 32], sign: Sign) {
        let mask = Zeroizing::new(uniform(seed, 0, &self.context.limbs()[..=self.level], self.context.n()));
        let op = match sign {
            Sign::Plus => kernel::add,
            Sign::Minus => kernel::sub,
        };
        each(&self.context, &mut self.parts[0], &mask, op);
    }

    /// Adds uniform noise of ±2^(`error_log2` + 40) to every coefficient of what this decrypts to: an error of up to
    /// 2^`error_log2` disappears under it, for the holder of the secret key as well, but for a statistical distance of 2^-41 for each
    /// coefficient that large. A slot is then off by about √n·2^(`error_log2` + 40)/(√3·scale).
    ///
    /// # Errors
    /// [`CkksError::Scale`] if there is no room for the noise.
    pub fn flood(&mut self, error_log2: u32, rng: &mut SecretRng) -> Result<(), CkksError> {
        let noise = flooding(&self.context, self.level, error_log2, rng)?;
        each(&self.context, &mut self.parts[0], &noise, kernel::add);
        Ok(())
    }

    /// The same at a lower level, to go with another one.
    ///
    /// # Errors
    /// [`CkksError::Level`] if it is below `level` already.
    pub fn at_level(&self, level: usize) -> Result<Self, CkksError> {
        if level > self.level {
            return Err(CkksError::Level { expected: level, found: self.level });
        }
        let mut result = self.clone();
        result.parts.iter_mut().for_each(|part| part.truncate((level + 1) * self.context.n()));
        result.level = level;
        Ok(result)
    }

    /// Slot j of the result is slot j + `steps`, around the end.
    ///
    /// # Errors
    /// [`CkksError::NoRotation`] if the keys have none for it; [`CkksError::Parts`] if there are not two;
    /// [`CkksError::Contexts`].
    pub fn rotate(&self, steps: usize, keys: &RotationKeys) -> Result<Self, CkksError> {
        self.is_of(keys.context())?;
        let [c0, c1] = &self.parts[..] else {
            return Err(CkksError::Parts { expected: "2", found: self.parts.len() });
        };
        let steps = steps % self.context.preset().slots();
        if steps == 0 {
            return Ok(self.clone());
        }
        let (places, key) = keys.of(steps).ok_or(CkksError::NoRotation { steps })?;
        let switched = self.context.switch(c1, &key.digits, [Some(c0), None]);
        Ok(self.switched(switched.map(|part| crate::keys::moved(&part, places))))
    }

    /// [`rotate`](Self::rotate) by each of `steps`, in less time than one after the other.
    ///
    /// # Errors
    /// As [`rotate`](Self::rotate).
    pub fn rotate_each(&self, steps: &[usize], keys: &RotationKeys) -> Result<Vec<Self>, CkksError> {
        self.is_of(keys.context())?;
        let [c0, c1] = &self.parts[..] else {
            return Err(CkksError::Parts { expected: "2", found: self.parts.len() });
        };
        let slots = self.context.preset().slots();
        let steps = || steps.iter().map(|steps| steps % slots);
        let of = |steps: usize| keys.of(steps).ok_or(CkksError::NoRotation { steps });
        let keys = steps().filter(|steps| *steps > 0).map(of).collect::<Result<Vec<_>, _>>()?;
        let switched = self.context.switch_each(c1, keys.iter().map(|(_, key)| &key.digits[..]), [Some(c0), None]);
        let moved = |(parts, (places, _)): ([Vec<u64>; 2], &(&[usize], _))| {
            self.switched(parts.map(|part| crate::keys::moved(&part, places)))
        };
        let mut rotated = switched.into_iter().zip(&keys).map(moved);
        Ok(steps().map_while(|steps| if steps == 0 { Some(self.clone()) } else { rotated.next() }).collect())
    }

    fn switched(&self, parts: [Vec<u64>; 2]) -> Self {
        Self { context: Arc::clone(&self.context), parts: parts.into(), level: self.level, scale: self.scale }
    }

    pub(crate) fn is_of(&self, context: &Arc<Context>) -> Result<(), CkksError> {
        if Arc::ptr_eq(&self.context, context) || self.context.preset() == context.preset() {
            return Ok(());
        }
        Err(CkksError::Contexts)
    }

    fn fits(&self, context: &Arc<Context>, level: usize) -> Result<(), CkksError> {
        self.is_of(context)?;
        if level == self.level { Ok(()) } else { Err(CkksError::Level { expected: self.level, found: level }) }
    }

    fn has_scale(&self, scale: f64) -> Result<(), CkksError> {
        if (self.scale / scale - 1.0).abs() <= SCALE_TOLERANCE {
            return Ok(());
        }
        Err(CkksError::Scales { left: self.scale.log2(), right: scale.log2() })
    }

    fn scale_of_product(&self, other: f64) -> Result<f64, CkksError> {
        let scale = self.scale * other;
        if scale.log2() < self.context.log2_modulus(self.level) - 1.0 {
            return Ok(scale);
        }
        Err(CkksError::Scale { scale_log2: scale.log2(), level: self.level })
    }
}

/// Limb by limb.
pub(crate) fn each(context: &Context, x: &mut [u64], y: &[u64], op: impl Fn(crate::Modulus, &mut [u64], &[u64])) {
    let n = context.n();
    for ((x, y), q) in x.chunks_exact_mut(n).zip(y.chunks_exact(n)).zip(context.moduli()) {
        op(*q, x, y);
    }
}
