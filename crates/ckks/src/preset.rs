//! Parameter sets: the only way to a [`Context`](crate::Context).

use std::fmt;

/// A parameter set of 128-bit security.
///
/// The ciphertext modulus Q is a product of primes ("limbs"), each of which one rescaling takes away; P, the product of
/// further primes, is there during key switching only. Security rests on ring-LWE with a ternary secret, errors of
/// standard deviation 3.2, dimension n and modulus Q·P.
pub struct Preset {
    name: &'static str,
    number: u8,
    n: usize,
    limb_bits: &'static [u32],
    special_bits: &'static [u32],
    limbs_per_digit: usize,
}

/// The largest log2(Q·P) of each dimension for 128-bit security against classical attacks with a ternary secret: Bossuat and
/// others, "Security Guidelines for Implementing Homomorphic Encryption" (ePrint 2024/463, Table 5.2), which counts newer attacks
/// than the Homomorphic Encryption Standard (2018, Table 1: 109, 218, 438, 881) and is stricter by up to 13 bits.
const LOG_MODULUS_MAX: [(usize, u32); 4] = [(4096, 106), (8192, 214), (16_384, 430), (32_768, 868)];

impl Preset {
    /// 2,048 slots, log2 Q < 106, two rescalings: shallow networks over many samples. No key switching: products keep more
    /// parts.
    pub const N4096: Self =
        Self { name: "n4096", number: 1, n: 4096, limb_bits: &[36, 35, 35], special_bits: &[], limbs_per_digit: 0 };

    /// 4,096 slots, log2 QP < 214, three rescalings by 2^40.
    pub const N8192: Self = Self {
        name: "n8192",
        number: 2,
        n: 8192,
        limb_bits: &[48, 40, 40, 40],
        special_bits: &[46],
        limbs_per_digit: 1,
    };

    /// 8,192 slots, log2 QP < 430, seven rescalings by 2^40.
    pub const N16384: Self = Self {
        name: "n16384",
        number: 3,
        n: 16_384,
        limb_bits: &[50, 40, 40, 40, 40, 40, 40, 40],
        special_bits: &[50, 50],
        limbs_per_digit: 2,
    };

    /// 16,384 slots, log2 QP < 868, sixteen rescalings by 2^40.
    pub const N32768: Self = Self {
        name: "n32768",
        number: 4,
        n: 32_768,
        limb_bits: &[50, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40, 40],
        special_bits: &[44, 44, 44, 46],
        limbs_per_digit: 4,
    };

    /// 8,192 slots, log2 Q = 430 or less, eleven rescalings by 2^36. No key switching, as [`N4096`](Self::N4096): room for
    /// squares whose outputs are released under flooding noise.
    pub const N16384_PARTS: Self = Self {
        name: "n16384-parts",
        number: 5,
        n: 16_384,
        limb_bits: &[36, 36, 36, 36, 36, 36, 36, 36, 36, 36, 35, 35],
        special_bits: &[],
        limbs_per_digit: 0,
    };

    /// All of them.
    pub const ALL: [&'static Self; 5] = [&Self::N4096, &Self::N8192, &Self::N16384, &Self::N32768, &Self::N16384_PARTS];

    /// Name in configurations.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Number on the wire.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Coefficients of a polynomial.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }

    /// Values of a plaintext.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.n / 2
    }

    /// The level of a fresh ciphertext: how often it can be rescaled.
    #[must_use]
    pub fn level_max(&self) -> usize {
        self.limb_bits.len() - 1
    }

    pub(crate) fn limb_bits(&self) -> &'static [u32] {
        self.limb_bits
    }

    pub(crate) fn special_bits(&self) -> &'static [u32] {
        self.special_bits
    }

    pub(crate) fn limbs_per_digit(&self) -> usize {
        self.limbs_per_digit
    }

    /// Whether all primes together stay within what is secure. A prime of b bits is below 2^b.
    pub(crate) fn is_secure(&self) -> bool {
        let bits: u32 = self.limb_bits.iter().chain(self.special_bits).sum();
        LOG_MODULUS_MAX.iter().any(|(n, max)| *n == self.n && bits <= *max)
    }
}

impl fmt::Debug for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Preset({})", self.name)
    }
}

impl PartialEq for Preset {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_secure_and_one_bit_more_is_not() {
        for preset in Preset::ALL {
            assert!(preset.is_secure(), "{preset:?}");
        }
        let more = Preset { limb_bits: &[36, 36, 35], ..Preset::N4096 };
        assert!(!more.is_secure());
        let other_dimension = Preset { n: 2048, ..Preset::N4096 };
        assert!(!other_dimension.is_secure());
        // Keys of one digit must not be larger than what P takes away.
        for preset in Preset::ALL.into_iter().filter(|p| p.limbs_per_digit > 0) {
            let special: u32 = preset.special_bits.iter().sum();
            let digits = preset.limb_bits.chunks(preset.limbs_per_digit);
            assert!(digits.len() <= 8, "{preset:?}");
            assert!(digits.map(|d| d.iter().sum::<u32>()).all(|digit| digit <= special + 2), "{preset:?}");
        }
    }

    #[test]
    fn limits_are_within_both_published_tables() {
        // Homomorphic Encryption Standard, 2018, Table 1, secret (-1, 1), 128 bits, classical; SEAL and OpenFHE have the same.
        let standard = [(4096, 109), (8192, 218), (16_384, 438), (32_768, 881)];
        // ePrint 2024/463, Table 5.2, ternary secret, 128 bits, classical.
        let guidelines = [(4096, 106), (8192, 214), (16_384, 430), (32_768, 868)];
        for preset in Preset::ALL {
            let bits: u32 = preset.limb_bits.iter().chain(preset.special_bits).sum();
            for table in [standard, guidelines, LOG_MODULUS_MAX] {
                assert!(table.iter().any(|(n, max)| *n == preset.n && bits <= *max), "{preset:?}: {bits} bits");
            }
        }
    }
}
