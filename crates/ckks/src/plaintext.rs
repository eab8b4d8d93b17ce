//! Slots as an encoded polynomial.

use crate::{CkksError, Context, Modulus};
use num_complex::Complex64;
use std::fmt;
use std::sync::Arc;
use zeroize::{Zeroize, Zeroizing};

/// Real numbers in the slots of a polynomial; cleared on drop.
pub struct Plaintext {
    pub(crate) context: Arc<Context>,
    /// Transformed, limb after limb.
    pub(crate) polynomial: Vec<u64>,
    pub(crate) level: usize,
    pub(crate) scale: f64,
}

/// Coefficients below this are exact as they are rounded.
const COEFFICIENT_LOG2_MAX: f64 = 62.0;
/// Larger scales are reached by a whole power of two: a value has no digits that they would keep.
const ROUNDED_LOG2_MAX: f64 = 45.0;
/// What a product of limbs must stay below to be decoded.
const DECODED_LOG2_MAX: f64 = 126.0;

impl Plaintext {
    /// Encodes `values` at `scale` for ciphertexts of `level`; slots beyond them are 0. A slot is off by at most
    /// n/(2·scale), or n/2^45 if that is more.
    ///
    /// # Errors
    /// [`CkksError::Slots`], [`CkksError::Value`], [`CkksError::Level`].
    pub fn encode(context: &Arc<Context>, values: &[f64], scale: f64, level: usize) -> Result<Self, CkksError> {
        let slots = context.preset().slots();
        if values.len() > slots {
            return Err(CkksError::Slots { slots, found: values.len() });
        }
        if level > context.preset().level_max() {
            return Err(CkksError::Level { expected: context.preset().level_max(), found: level });
        }
        let largest = |a: usize, b: usize| if values[b].abs() > values[a].abs() { b } else { a };
        let slot = (0..values.len()).reduce(largest).unwrap_or(0);
        let slot = values.iter().position(|v| !v.is_finite()).unwrap_or(slot);
        let wrong = || CkksError::Value { slot, scale_log2: scale.log2(), level };
        let mut packed: Vec<Complex64> = values.iter().map(|v| Complex64::new(*v, 0.0)).collect();
        packed.resize(slots, Complex64::default());
        context.embedding.coefficients(&mut packed);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small whole number, or 0 for nonsense"
        )]
        let shift = (scale.log2() - ROUNDED_LOG2_MAX).ceil().max(0.0) as u32;
        let rounded_scale = scale * (-f64::from(shift)).exp2();
        let bound = COEFFICIENT_LOG2_MAX.min(context.log2_modulus(level) - 1.0 - f64::from(shift)).exp2();
        let round = |x: f64| {
            let scaled = (x * rounded_scale).round();
            // Not a number compares as false.
            if scaled.abs() < bound { Ok(scaled as i64) } else { Err(wrong()) }
        };
        let real = packed.iter().map(|c| c.re);
        let coefficients = real.chain(packed.iter().map(|c| c.im)).map(round).collect::<Result<Vec<i64>, _>>()?;
        let coefficients = Zeroizing::new(coefficients);
        let mut polynomial = context.small(&coefficients, level + 1);
        if shift > 0 {
            for (limb, q) in polynomial.chunks_exact_mut(context.n()).zip(context.limbs()) {
                let factor = q.factor(q.pow(2, shift.into()));
                limb.iter_mut().for_each(|x| *x = q.mul_factor(*x, factor));
            }
        }
        clear(&mut packed);
        Ok(Self { context: Arc::clone(context), polynomial, level, scale })
    }

    /// The values of all slots. The encoded polynomial's coefficients have to lie within half of the product of the first
    /// primes whose product is below 2^126, as those of any sensible result do.
    #[must_use]
    pub fn decode(&self) -> Vec<f64> {
        let (n, slots) = (self.context.n(), self.context.preset().slots());
        let q = self.context.limbs();
        let limbs = (1..=self.level).take_while(|l| self.context.log2_modulus(*l) < DECODED_LOG2_MAX).count() + 1;
        let mut coefficients = self.polynomial[..limbs * n].to_vec();
        self.context.backward(&mut coefficients, 0);
        let garner = Garner::new(&q[..limbs]);
        let number = |i: usize| garner.centered(&coefficients, n, i) as f64;
        let mut packed: Vec<Complex64> =
            (0..slots).map(|i| Complex64::new(number(i), number(i + slots)) / self.scale).collect();
        coefficients.zeroize();
        self.context.embedding.values(&mut packed);
        let values = packed.iter().map(|c| c.re).collect();
        clear(&mut packed);
        values
    }

    /// How often it can still be rescaled.
    #[must_use]
    pub fn level(&self) -> usize {
        self.level
    }

    /// What the values are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }
}

/// From residues modulo few primes to the whole number around 0 (Garner; Knuth, TAOCP vol. 2, 4.3.2): the number is
/// x_0 + q_0·(x_1 + q_1·(x_2 + …)), whose digits follow one after the other.
struct Garner<'a> {
    q: &'a [Modulus],
    /// For each prime, 1/(q_0⋯) of the primes before it.
    inverses: Vec<u64>,
    product: i128,
}

impl<'a> Garner<'a> {
    fn new(q: &'a [Modulus]) -> Self {
        let below = |j: usize| q[..j].iter().fold(1, |product, p| q[j].mul(product, q[j].reduce(p.value())));
        let inverses = (0..q.len()).map(|j| q[j].inverse(below(j))).collect();
        Self { q, inverses, product: q.iter().map(|p| i128::from(p.value())).product() }
    }

    /// Coefficient i of limbs of n.
    fn centered(&self, limbs: &[u64], n: usize, i: usize) -> i128 {
        let (mut x, mut weight) = (0_i128, 1_i128);
        for (j, (q, inverse)) in self.q.iter().zip(&self.inverses).enumerate() {
            // x modulo q_j, from its two words.
            let word = q.reduce(1 << 63);
            let low = q.reduce((x & i128::from(u64::MAX >> 1)) as u64);
            let so_far = q.add(low, q.mul(q.reduce((x >> 63) as u64), word));
            let digit = q.mul(q.sub(limbs[j * n + i], so_far), *inverse);
            x += weight * i128::from(digit);
            weight *= i128::from(q.value());
        }
        if x > self.product / 2 { x - self.product } else { x }
    }
}

fn clear(values: &mut [Complex64]) {
    for value in values {
        value.re.zeroize();
        value.im.zeroize();
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plaintext").field("level", &self.level).field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        self.polynomial.zeroize();
    }
}
