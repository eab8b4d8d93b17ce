//! Eight numbers side by side: the shape in which the kernels compute.

use zeroize::Zeroize;

/// Numbers per group.
pub(super) const LANES: usize = 8;

/// Bits per limb: what AVX-512 IFMA multiplies.
pub(super) const LIMB_BITS: u32 = 52;

/// The largest limb.
pub(super) const LIMB_MAX: u64 = (1 << LIMB_BITS) - 1;

/// Limb counts are multiples of this: the kernel works in blocks of ten rows, so that ten rows, a window of eleven
/// columns and a multiplier fit the 32 vector registers. 40, 60, 80 and 120 limbs, the sizes in use, are multiples.
pub(super) const BLOCK: usize = 10;

/// One limb of each of eight numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Zeroize)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [u64; LANES]);

impl Lanes {
    pub(super) const ZERO: Self = Self([0; LANES]);

    pub(super) fn splat(limb: u64) -> Self {
        Self([limb; LANES])
    }
}

/// Limbs for numbers of up to `bits` bits. Eight spare bits keep R = 2^(52·limbs) above 16 times any modulus, which
/// is what products without a final subtraction ask for.
pub(super) fn limbs_for(bits: u32) -> usize {
    (bits as usize + 8).div_ceil(BLOCK * LIMB_BITS as usize) * BLOCK
}

/// The same limbs in every lane.
pub(super) fn broadcast(limbs: &[u64]) -> Vec<Lanes> {
    limbs.iter().map(|&limb| Lanes::splat(limb)).collect()
}

/// Puts up to eight numbers of `out.len()` limbs into lanes; the lanes left over hold `pad`.
pub(super) fn gather(numbers: &[u64], pad: u64, out: &mut [Lanes]) {
    let limbs = out.len();
    for (j, column) in out.iter_mut().enumerate() {
        *column = Lanes::splat(if j == 0 { pad } else { 0 });
    }
    for (lane, number) in numbers.chunks_exact(limbs).enumerate() {
        out.iter_mut().zip(number).for_each(|(column, &limb)| column.0[lane] = limb);
    }
}

/// Takes the first lanes out again: as many as `numbers` holds.
pub(super) fn scatter(lanes: &[Lanes], numbers: &mut [u64]) {
    for (lane, number) in numbers.chunks_exact_mut(lanes.len()).enumerate() {
        number.iter_mut().zip(lanes).for_each(|(limb, column)| *limb = column.0[lane]);
    }
}

/// Subtracts `modulus` in every lane that is not below it. Constant time. Limbs must be normalised.
pub(super) fn reduce_once(x: &mut [Lanes], modulus: &[Lanes]) {
    let mut borrow = Lanes::ZERO;
    for (x, n) in x.iter().zip(modulus) {
        for lane in 0..LANES {
            borrow.0[lane] = x.0[lane].wrapping_sub(n.0[lane]).wrapping_sub(borrow.0[lane]) >> 63;
        }
    }
    // All ones where x >= modulus.
    let mut take = Lanes::ZERO;
    for lane in 0..LANES {
        take.0[lane] = core::hint::black_box(borrow.0[lane]).wrapping_sub(1);
    }
    let mut borrow = Lanes::ZERO;
    for (x, n) in x.iter_mut().zip(modulus) {
        for lane in 0..LANES {
            let difference = x.0[lane].wrapping_sub(n.0[lane] & take.0[lane]).wrapping_sub(borrow.0[lane]);
            borrow.0[lane] = difference >> 63;
            x.0[lane] = difference & LIMB_MAX;
        }
    }
    debug_assert_eq!(borrow, Lanes::ZERO);
}

/// `x += y`, limbs normalised; the sum must fit.
pub(super) fn add(x: &mut [Lanes], y: &[Lanes]) {
    let mut carry = Lanes::ZERO;
    for (x, y) in x.iter_mut().zip(y) {
        for lane in 0..LANES {
            let sum = x.0[lane] + y.0[lane] + carry.0[lane];
            carry.0[lane] = sum >> LIMB_BITS;
            x.0[lane] = sum & LIMB_MAX;
        }
    }
    debug_assert_eq!(carry, Lanes::ZERO);
}

/// `x := y − x`; every lane of `y` must be at least that of `x`.
pub(super) fn subtract_from(x: &mut [Lanes], y: &[Lanes]) {
    let mut borrow = Lanes::ZERO;
    for (x, y) in x.iter_mut().zip(y) {
        for lane in 0..LANES {
            let difference = y.0[lane].wrapping_sub(x.0[lane]).wrapping_sub(borrow.0[lane]);
            borrow.0[lane] = difference >> 63;
            x.0[lane] = difference & LIMB_MAX;
        }
    }
    debug_assert_eq!(borrow, Lanes::ZERO);
}

/// 52-bit limbs of a number given in 64-bit words, little-endian. The number must fit.
pub(super) fn limbs_from_words(words: &[u64], limbs: &mut [u64]) {
    let word = |i: usize| words.get(i).copied().unwrap_or(0);
    for (j, limb) in limbs.iter_mut().enumerate() {
        let bit = j * LIMB_BITS as usize;
        let (i, shift) = (bit / 64, bit % 64);
        let high = if shift == 0 { 0 } else { word(i + 1) << (64 - shift) };
        *limb = (word(i) >> shift | high) & LIMB_MAX;
    }
}

/// 64-bit words of a number given in 52-bit limbs. The number must fit.
pub(super) fn words_from_limbs(limbs: &[u64], words: &mut [u64]) {
    words.fill(0);
    for (j, &limb) in limbs.iter().enumerate() {
        let bit = j * LIMB_BITS as usize;
        let (i, shift) = (bit / 64, bit % 64);
        if let Some(word) = words.get_mut(i) {
            *word |= limb << shift;
        }
        if shift > 64 - LIMB_BITS as usize
            && let Some(word) = words.get_mut(i + 1)
        {
            *word |= limb >> (64 - shift);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sizes_in_use() {
        assert_eq!([512, 1024, 2048, 3072, 4096, 6144].map(limbs_for), [10, 20, 40, 60, 80, 120]);
    }

    proptest! {
        #[test]
        fn words_to_limbs_and_back(words in proptest::collection::vec(any::<u64>(), 1..40)) {
            let mut limbs = vec![0; limbs_for(64 * u32::try_from(words.len()).unwrap())];
            limbs_from_words(&words, &mut limbs);
            prop_assert!(limbs.iter().all(|&limb| limb <= LIMB_MAX));
            let mut back = vec![0; words.len()];
            words_from_limbs(&limbs, &mut back);
            prop_assert_eq!(back, words);
        }

        #[test]
        fn gather_then_scatter(numbers in 1_usize..=8, seed in any::<u64>()) {
            let flat: Vec<u64> = (0..numbers as u64 * 10).map(|i| i.wrapping_mul(seed) & LIMB_MAX).collect();
            let mut lanes = [Lanes::ZERO; 10];
            gather(&flat, 1, &mut lanes);
            prop_assert!((numbers..8).all(|lane| lanes[0].0[lane] == 1 && lanes[1].0[lane] == 0));
            let mut back = vec![0; flat.len()];
            scatter(&lanes, &mut back);
            prop_assert_eq!(back, flat);
        }
    }
}
