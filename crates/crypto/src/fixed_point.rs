//! Real numbers as ring elements.

use crate::RingElement;
use multiversion::multiversion;
use thiserror::Error;

/// 1.5 · 2^52. Adding it to a double of magnitude below 2^51 leaves the nearest integer (ties to even) in the low
/// bits of the mantissa. Unlike a float-to-integer conversion this vectorises on every x86-64 and cannot saturate.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
const ROUNDER_BITS: i64 = ROUNDER.to_bits().cast_signed();

/// Scaled magnitudes stay below 2^50, so that a sum of two still rounds exactly with [`ROUNDER`].
const SCALED_BITS_MAX: u32 = 50;

/// How reals become elements of a ring: `encode(x) = round(x · 2^f) mod 2^BITS`.
///
/// The guards hold for k addends at once: each encoded value is below `2^(c − f − ⌈log2 k⌉)` in magnitude, with
/// `c = min(BITS − 2, 50)`, so that the sum of k of them is below `2^(BITS − 2)` and never wraps. The opened sum must
/// lie within the agreed `bound`, at most `2^(BITS − 2 − f)`; anything else means that a mask did not cancel or that a
/// peer lied, and is refused.
///
/// Error: each encoding is off by at most `2^−(f+1)`, so the opened sum of k encodings is off by at most
/// `k · 2^−(f+1)` plus the rounding of the result to `f32` (`2^−24` of its magnitude).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FixedPoint {
    fraction_bits: u32,
    encode_limit: f64,
    bound: f64,
}

/// A fixed-point format that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum FixedPointError {
    /// No integer bits are left.
    #[error(
        "fraction_bits = {fraction_bits} leaves no room for integers of {addends} parties in a {ring_bits}-bit ring: use at most {limit}"
    )]
    FractionBits {
        /// What was asked for.
        fraction_bits: u32,
        /// Width of the ring.
        ring_bits: u32,
        /// Number of addends.
        addends: u32,
        /// Largest value that works.
        limit: u32,
    },
    /// The bound on the opened sum is not a positive number that the ring can hold.
    #[error("h1_bound = {bound} must be positive and at most {limit} for this ring and fraction_bits")]
    Bound {
        /// What was asked for.
        bound: f64,
        /// Largest value that works.
        limit: f64,
    },
}

/// A value that may not be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("value at position {position} is NaN, infinite or too large to encode")]
pub struct EncodeError {
    /// Index into the values.
    pub position: usize,
}

/// An opened sum outside the agreed bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("opened value at position {position} lies outside the agreed bound")]
pub struct DecodeError {
    /// Index into the values.
    pub position: usize,
}

impl FixedPoint {
    /// A format with `fraction_bits` bits after the point for sums of `addends` values in a ring of `ring_bits` bits,
    /// whose opened sums lie within `±bound`.
    ///
    /// # Errors
    /// [`FixedPointError`] if no integer bit is left or the bound does not fit.
    pub fn new(ring_bits: u32, fraction_bits: u32, addends: u32, bound: f64) -> Result<Self, FixedPointError> {
        let headroom = addends.max(1).next_power_of_two().trailing_zeros();
        let scaled_bits = SCALED_BITS_MAX.min(ring_bits.saturating_sub(2));
        let limit = scaled_bits.saturating_sub(headroom + 1);
        if fraction_bits > limit {
            return Err(FixedPointError::FractionBits { fraction_bits, ring_bits, addends, limit });
        }
        let bound_limit = f64::from(2_u32).powi((ring_bits - 2 - fraction_bits).cast_signed());
        if !(bound > 0.0 && bound <= bound_limit) {
            return Err(FixedPointError::Bound { bound, limit: bound_limit });
        }
        let encode_limit = f64::from(2_u32).powi((scaled_bits - fraction_bits - headroom).cast_signed());
        Ok(Self { fraction_bits, encode_limit, bound })
    }

    /// Bits after the point.
    #[must_use]
    pub fn fraction_bits(&self) -> u32 {
        self.fraction_bits
    }

    /// Values at or above this magnitude are refused by [`encode_onto`](Self::encode_onto).
    #[must_use]
    pub fn encode_limit(&self) -> f64 {
        self.encode_limit
    }

    /// Adds the encodings of `values` to `masks`, which must be as long: what was a mask becomes a share.
    ///
    /// # Errors
    /// [`EncodeError`] at the first NaN, infinity or value at or above [`encode_limit`](Self::encode_limit). `masks` is
    /// then unspecified and must not be sent.
    ///
    /// # Panics
    /// If the lengths differ: both come from the caller's own shapes.
    pub fn encode_onto<R: RingElement>(&self, values: &[f32], masks: &mut [R]) -> Result<(), EncodeError> {
        assert_eq!(values.len(), masks.len(), "encode: lengths differ");
        let scale = self.scale();
        let limit = self.encode_limit;
        if encode_slice(values, masks, scale, limit) {
            return Ok(());
        }
        let position = values.iter().position(|x| x.is_nan() || f64::from(x.abs()) >= limit).unwrap_or(0);
        Err(EncodeError { position })
    }

    /// Adds up `shares` and decodes the sums into `out`: this opens the value that was shared. All lengths are equal.
    ///
    /// # Errors
    /// [`DecodeError`] at the first sum outside the agreed bound.
    ///
    /// # Panics
    /// If the lengths differ: all come from the caller's own shapes.
    pub fn open<R: RingElement>(&self, shares: &[Vec<R>], out: &mut [f32]) -> Result<(), DecodeError> {
        let mut sums = [R::ZERO; OPEN_BLOCK];
        for (block, out) in out.chunks_mut(OPEN_BLOCK).enumerate() {
            let start = block * OPEN_BLOCK;
            let sums = &mut sums[..out.len()];
            sums.fill(R::ZERO);
            for share in shares {
                sums.iter_mut().zip(&share[start..start + out.len()]).for_each(|(sum, v)| *sum = sum.add(*v));
            }
            self.decode(sums, out).map_err(|e| DecodeError { position: start + e.position })?;
        }
        Ok(())
    }

    fn decode<R: RingElement>(&self, values: &[R], out: &mut [f32]) -> Result<(), DecodeError> {
        assert_eq!(values.len(), out.len(), "decode: lengths differ");
        #[expect(clippy::cast_possible_truncation, reason = "bound · 2^f ≤ 2^62 by construction")]
        let limit = (self.bound * self.scale()) as i64;
        if decode_slice(values, out, 1.0 / self.scale(), limit) {
            return Ok(());
        }
        let position = values.iter().position(|v| v.to_signed().checked_abs().is_none_or(|v| v > limit)).unwrap_or(0);
        Err(DecodeError { position })
    }

    fn scale(&self) -> f64 {
        f64::from(2_u32).powi(self.fraction_bits.cast_signed())
    }
}

/// Values opened at a time: sums stay in the first-level cache between adding and decoding.
const OPEN_BLOCK: usize = 1024;

/// Returns whether every value was within the limit.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn encode_slice<R: RingElement>(values: &[f32], masks: &mut [R], scale: f64, limit: f64) -> bool {
    let mut within = true;
    for (mask, &x) in masks.iter_mut().zip(values) {
        let x = f64::from(x);
        within &= x.abs() < limit; // false for NaN
        let rounded = x * scale + ROUNDER;
        *mask = mask.add(R::from_signed(rounded.to_bits().cast_signed().wrapping_sub(ROUNDER_BITS)));
    }
    within
}

/// Returns whether every value was within the limit.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn decode_slice<R: RingElement>(values: &[R], out: &mut [f32], unit: f64, limit: i64) -> bool {
    let mut within = true;
    for (out, &v) in out.iter_mut().zip(values) {
        let v = v.to_signed();
        within &= v.wrapping_add(limit).cast_unsigned() <= limit.cast_unsigned() << 1;
        #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the network computes in f32")]
        {
            *out = (v as f64 * unit) as f32;
        }
    }
    within
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wide(addends: u32) -> FixedPoint {
        FixedPoint::new(64, 24, addends, f64::from(1 << 20)).unwrap()
    }

    fn narrow(addends: u32) -> FixedPoint {
        FixedPoint::new(32, 16, addends, f64::from(1 << 14)).unwrap()
    }

    fn round_trip<R: RingElement>(format: FixedPoint, x: f32) -> f32 {
        let mut ring = [R::ZERO];
        format.encode_onto(&[x], &mut ring).unwrap();
        let mut back = [0.0];
        format.decode(&ring, &mut back).unwrap();
        back[0]
    }

    #[test]
    fn rounds_to_nearest_even_and_keeps_the_sign() {
        let format = FixedPoint::new(64, 1, 2, 100.0).unwrap();
        for (x, twice) in [(0.25, 0), (0.75, 2), (1.25, 2), (-0.25, 0), (-0.75, -2), (-1.0, -2), (-0.0, 0)] {
            let mut ring = [0_u64];
            format.encode_onto(&[x], &mut ring).unwrap();
            assert_eq!(ring[0].to_signed(), twice, "{x}");
        }
    }

    #[test]
    fn refuses_what_would_be_silently_wrong() {
        for format in [wide(2), narrow(5)] {
            #[expect(clippy::cast_possible_truncation, reason = "powers of two are exact in f32")]
            let limit = format.encode_limit() as f32;
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -limit, limit] {
                let mut out = [0_u64; 3];
                assert_eq!(format.encode_onto(&[1.0, bad, 2.0], &mut out), Err(EncodeError { position: 1 }), "{bad}");
            }
            let mut out = [7_u64];
            format.encode_onto(&[f32::MIN_POSITIVE / 2.0], &mut out).unwrap();
            assert_eq!(out, [7]);
            format.encode_onto(&[limit.next_down()], &mut out).unwrap();
        }
    }

    #[test]
    fn a_wrapped_sum_is_refused() {
        let mut out = [0.0; 2];
        let wrapped = [0_u64, u64::MAX / 2];
        assert_eq!(wide(2).decode(&wrapped, &mut out), Err(DecodeError { position: 1 }));
        assert_eq!(wide(2).decode(&[0_u64, 1 << 63], &mut out), Err(DecodeError { position: 1 }));
        let just_outside = (1_u64 << 44) + 1;
        assert_eq!(wide(2).decode(&[just_outside, 0], &mut out), Err(DecodeError { position: 0 }));
        wide(2).decode(&[1_u64 << 44, (1_u64 << 44).wrapping_neg()], &mut out).unwrap();
        assert_eq!(out, [1_048_576.0, -1_048_576.0]);
    }

    #[test]
    fn formats_that_cannot_work_are_refused() {
        assert!(matches!(FixedPoint::new(32, 30, 2, 1.0), Err(FixedPointError::FractionBits { limit: 28, .. })));
        assert!(matches!(FixedPoint::new(64, 24, 2, f64::NAN), Err(FixedPointError::Bound { .. })));
        assert!(matches!(FixedPoint::new(64, 24, 2, 1e12), Err(FixedPointError::Bound { .. })));
        assert!(FixedPoint::new(64, 60, 2, 1.0).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn encoding_is_off_by_at_most_half_a_unit(x in -1.0e6_f32..1.0e6) {
            let error = (f64::from(round_trip::<u64>(wide(8), x)) - f64::from(x)).abs();
            prop_assert!(error <= 2f64.powi(-25) + f64::from(x.abs()) * 2f64.powi(-24));
        }

        #[test]
        fn the_narrow_ring_is_off_by_at_most_half_a_unit(x in -1.0e3_f32..1.0e3) {
            let error = (f64::from(round_trip::<u32>(narrow(8), x)) - f64::from(x)).abs();
            prop_assert!(error <= 2f64.powi(-17) + f64::from(x.abs()) * 2f64.powi(-24));
        }

        #[test]
        fn any_bits_encode_or_are_refused(bits in any::<u32>(), addends in 1_u32..64) {
            let x = f32::from_bits(bits);
            let format = wide(addends);
            let mut ring = [0_u64];
            let accepted = format.encode_onto(&[x], &mut ring).is_ok();
            prop_assert_eq!(accepted, f64::from(x.abs()) < format.encode_limit());
        }

        #[test]
        fn sums_of_extremes_never_wrap(addends in 1_u32..64, negative in any::<bool>()) {
            for (ring_bits, format) in [(64, wide(addends)), (32, narrow(addends))] {
                #[expect(clippy::cast_possible_truncation, reason = "powers of two are exact in f32")]
                let extreme = (format.encode_limit() as f32).next_down() * if negative { -1.0 } else { 1.0 };
                let mut ring = [0_u64];
                format.encode_onto(&[extreme], &mut ring).unwrap();
                let sum = i128::from(ring[0].to_signed()) * i128::from(addends);
                prop_assert!(sum.abs() < 1 << (ring_bits - 1));
            }
        }
    }
}
