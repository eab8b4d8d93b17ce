//! Slots as an encoded polynomial.

use crate::{CkksError, Context};
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

impl Plaintext {
    /// Encodes `values` at `scale` for ciphertexts of `level`; slots beyond them are 0. A slot is off by at most
    /// n/(2·scale).
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
        let bound = COEFFICIENT_LOG2_MAX.min(context.log2_modulus(level) - 1.0).exp2();
        let round = |x: f64| {
            let scaled = (x * scale).round();
            // Not a number compares as false.
            if scaled.abs() < bound { Ok(scaled as i64) } else { Err(wrong()) }
        };
        let real = packed.iter().map(|c| c.re);
        let coefficients = real.chain(packed.iter().map(|c| c.im)).map(round).collect::<Result<Vec<i64>, _>>()?;
        let coefficients = Zeroizing::new(coefficients);
        let polynomial = context.small(&coefficients, level + 1);
        clear(&mut packed);
        Ok(Self { context: Arc::clone(context), polynomial, level, scale })
    }

    /// The values of all slots. The encoded polynomial's coefficients have to lie within half of the product of the first two
    /// primes, as those of any sensible result do.
    #[must_use]
    pub fn decode(&self) -> Vec<f64> {
        let (n, slots) = (self.context.n(), self.context.preset().slots());
        let limbs = (self.level + 1).min(2);
        let mut coefficients = self.polynomial[..limbs * n].to_vec();
        self.context.backward(&mut coefficients, 0);
        let q = self.context.limbs();
        let inverse = q.get(1).map_or(0, |q1| q1.inverse(q1.reduce(q[0].value())));
        let product = q.get(1).map_or(0, |q1| i128::from(q[0].value()) * i128::from(q1.value()));
        let number = |i: usize| -> f64 {
            if limbs == 1 {
                return q[0].centered(coefficients[i]) as f64;
            }
            // x = x_0 + q_0·((x_1 − x_0)/q_0 mod q_1), then the representative around 0.
            let (x0, x1) = (coefficients[i], coefficients[n + i]);
            let quotient = q[1].mul(q[1].sub(x1, q[1].reduce(x0)), inverse);
            let x = i128::from(x0) + i128::from(q[0].value()) * i128::from(quotient);
            (if x > product / 2 { x - product } else { x }) as f64
        };
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
