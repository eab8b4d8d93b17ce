//! Elementary functions that the compiler can vectorise: no branches, no calls, no table.
//!
//! No fused multiply-add either: every operation rounds as IEEE 754 says, so a value has the same result in a vector of
//! any width, in the remainder of a loop, and on every machine.

/// `exp(x)` within 2 units in the last place; between its values at -87.3 and 88 for `x` beyond them (so never 0 and
/// never infinite); NaN for NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to an integer, left in the low bits: 1.5·2²³.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; the product of the first with any exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // The results are normal numbers: 2^-126 is exp(-87.336), 2^127.5 is exp(88.4).
    let x = x.clamp(-87.3, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    // Cephes expf, for r in ±ln(2)/2.
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127).wrapping_shl(23);
    mantissa * f32::from_bits(exponent)
}

/// `1 / (1 + exp(-x))` within 3 units in the last place for `x ≥ -87`; below that at most 1.2e-38.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)` within 3 units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Cephes tanhf: near 0 the difference from 1 would cancel.
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { near } else { far }
}

/// `ln(1 + x)` within 3 units in the last place, for `x` in `[0, 1]`.
#[inline(always)]
pub(crate) fn ln_1p(x: f32) -> f32 {
    // 2·atanh(s) with s ≤ 1/3; the first term left out is 1.4e-9 of the sum.
    let s = x / (2.0 + x);
    let z = s * s;
    let mut p = 1.0 / 15.0;
    p = p * z + 1.0 / 13.0;
    p = p * z + 1.0 / 11.0;
    p = p * z + 1.0 / 9.0;
    p = p * z + 1.0 / 7.0;
    p = p * z + 1.0 / 5.0;
    p = p * z + 1.0 / 3.0;
    let twice = 2.0 * s;
    twice + twice * (z * p)
}

/// Distance from the true value, in units of the last place of the nearest `f32`.
#[cfg(test)]
pub(crate) fn ulps(found: f32, truth: f64) -> f64 {
    let nearest = (truth as f32).abs().max(f32::MIN_POSITIVE);
    let unit = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
    (f64::from(found) - truth).abs() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error over 2 million points between `low` and `high`.
    fn worst(approximation: fn(f32) -> f32, truth: fn(f64) -> f64, low: f32, high: f32) -> f64 {
        let points = 2_000_000_u32;
        (0..=points)
            .map(|i| {
                let x = low + (high - low) * (i as f32 / points as f32);
                ulps(approximation(x), truth(f64::from(x)))
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_accurate() {
        for (low, high) in [(-87.3, 88.0), (-1.0, 1.0), (-1e-3, 1e-3)] {
            let error = worst(exp, f64::exp, low, high);
            assert!(error <= 2.0, "{error} in {low}..{high}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert_eq!(exp(f32::NEG_INFINITY), exp(-87.3));
    }

    #[test]
    fn sigmoid_is_accurate() {
        let truth = |x: f64| 1.0 / (1.0 + (-x).exp());
        for (low, high) in [(-87.0, 87.0), (-8.0, 8.0), (-1e-3, 1e-3)] {
            let error = worst(sigmoid, truth, low, high);
            assert!(error <= 3.0, "{error} in {low}..{high}");
        }
        assert_eq!(sigmoid(0.0), 0.5);
        assert_eq!(sigmoid(f32::INFINITY), 1.0);
        assert!(sigmoid(f32::NEG_INFINITY) < 1.2e-38);
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_accurate() {
        for (low, high) in [(-20.0, 20.0), (-1.0, 1.0), (0.62, 0.63), (-1e-3, 1e-3)] {
            let error = worst(tanh, f64::tanh, low, high);
            assert!(error <= 3.0, "{error} in {low}..{high}");
        }
        assert_eq!(tanh(0.0).to_bits(), 0);
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(f32::NEG_INFINITY), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn ln_1p_is_accurate() {
        for high in [1.0, 1e-2, 1e-6, 1e-30] {
            let error = worst(ln_1p, f64::ln_1p, 0.0, high);
            assert!(error <= 3.0, "{error} up to {high}");
        }
    }
}
