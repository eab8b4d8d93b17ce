//! The rings Z_2^32 and Z_2^64 as machine words.

use bytemuck::Pod;
use zeroize::Zeroize;

/// An element of Z_2^32 or Z_2^64, stored as an unsigned word, little-endian on the wire.
///
/// Addition modulo 2^BITS hides perfectly: `x + m` with a uniform `m` is uniform whatever `x` is.
pub trait RingElement: Pod + Zeroize + PartialEq + Eq + Send + Sync + 'static {
    /// Width of the ring in bits.
    const BITS: u32;
    /// Additive identity.
    const ZERO: Self;

    /// Reduces a two's-complement integer into the ring.
    fn from_signed(value: i64) -> Self;
    /// The representative in `[-2^(BITS-1), 2^(BITS-1))`.
    fn to_signed(self) -> i64;
    /// Sum modulo 2^BITS.
    fn add(self, other: Self) -> Self;
    /// Difference modulo 2^BITS.
    fn sub(self, other: Self) -> Self;
}

macro_rules! ring_element {
    ($word:ty, $signed:ty) => {
        impl RingElement for $word {
            const BITS: u32 = <$word>::BITS;
            const ZERO: Self = 0;

            #[inline(always)]
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "reduction modulo 2^BITS is what truncating the two's complement does"
            )]
            fn from_signed(value: i64) -> Self {
                value as $word
            }

            #[inline(always)]
            #[allow(clippy::cast_possible_wrap, reason = "the upper half of the ring stands for negative numbers")]
            fn to_signed(self) -> i64 {
                i64::from(self as $signed)
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    };
}

ring_element!(u32, i32);
ring_element!(u64, i64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn signed_round_trip(value in any::<i32>()) {
            prop_assert_eq!(u32::from_signed(i64::from(value)).to_signed(), i64::from(value));
            prop_assert_eq!(u64::from_signed(i64::from(value)).to_signed(), i64::from(value));
        }

        #[test]
        fn sub_undoes_add(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(RingElement::sub(RingElement::add(a, b), b), a);
        }
    }
}
