//! Arithmetic modulo a prime in double precision, for processors that multiply and add doubles in one step, several at a time,
//! but have no wide product of integers: AVX2 with FMA.
//!
//! Residues are whole numbers in doubles, around 0. A product x·w modulo p is found without division and without error
//! (van der Hoeven, Lecerf, Quintin, "Modular SIMD arithmetic in Mathemagix", 2016, section 3.3): with h = x·w rounded and l = x·w − h
//! exactly, by a fused multiplication, and k = round(h/p), the result is (h − k·p) + l. Both sums are exact, being whole
//! numbers below 2^53.
//!
//! Bounds, for p < 2^50 and so as multiples of 2^50, which leaves room for 8: k is off by a half for being rounded and, by the
//! three roundings before that (h, 1/p, their product), by at most 3·2^-53·|x·w|/p. With |w| ≤ p/2 a product is at most
//! 1/2 + 3/16·|x|; with 0 ≤ w < p, at most 1/2 + 3/8·|x|. A reduced number is at most 1/2, and a sliver.

use crate::modulus::Modulus;

/// A prime, for doubles.
#[derive(Clone, Copy)]
pub(crate) struct Double {
    pub(crate) p: f64,
    inverse: f64,
}

/// Primes of more bits have no room for the bounds.
const BITS_MAX: u32 = 50;

/// Added to a whole number below 2^52 it leaves that number in the low bits of the double.
const SHIFT: f64 = (1_u64 << 52) as f64;

impl Double {
    /// Nothing where integers are as fast, or the prime too large.
    pub(crate) fn new(modulus: Modulus) -> Option<Self> {
        if modulus.bits() > BITS_MAX || !is_fast() {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "below 2^50, exact")]
        let p = modulus.value() as f64;
        Some(Self { p, inverse: 1.0 / p })
    }

    /// x·w.
    #[inline(always)]
    pub(crate) fn mul(self, x: f64, w: f64) -> f64 {
        let high = x * w;
        let low = x.mul_add(w, -high);
        (high * self.inverse).round_ties_even().mul_add(-self.p, high) + low
    }

    /// The representative around 0.
    #[inline(always)]
    pub(crate) fn reduce(self, x: f64) -> f64 {
        (x * self.inverse).round_ties_even().mul_add(-self.p, x)
    }

    /// The representative from 0 to p, of a number within p of 0.
    #[inline(always)]
    pub(crate) fn positive(self, x: f64) -> f64 {
        // By a mask, not by a branch: x may be secret.
        let below = u64::from(x < 0.0).wrapping_neg();
        x + f64::from_bits(self.p.to_bits() & below)
    }

    /// The same as an integer.
    #[inline(always)]
    pub(crate) fn to_integer(self, x: f64) -> u64 {
        (self.positive(x) + SHIFT).to_bits() ^ SHIFT.to_bits()
    }
}

/// Of an integer below 2^52.
#[inline(always)]
pub(crate) fn to_float(x: u64) -> f64 {
    f64::from_bits(x | SHIFT.to_bits()) - SHIFT
}

/// A constant factor around 0.
pub(crate) fn centered(modulus: Modulus, w: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "below 2^50, exact")]
    let w = modulus.centered(w) as f64;
    w
}

/// Whether this processor has what makes doubles faster than integers.
fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}
