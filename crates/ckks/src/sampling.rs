//! Random polynomials.
//!
//! Secrets and errors take the same steps whatever they are: no table, branch or loop depends on a drawn value.

use crate::modulus::Modulus;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use spnn_crypto::SecretRng;
use zeroize::Zeroizing;

/// Pairs of bits of an error: variance 10.5, standard deviation 3.24.
const ERROR_PAIRS: u32 = 21;

/// n numbers of −1, 0 and 1, each as likely (but for 2^-62).
pub(crate) fn ternary(n: usize, rng: &mut SecretRng) -> Zeroizing<Vec<i64>> {
    let mut bytes = Zeroizing::new(vec![0_u8; 8 * n]);
    rng.fill_bytes(&mut bytes);
    let draws = bytes.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    Zeroizing::new(draws.map(|x| ((u128::from(x) * 3) >> 64) as i64 - 1).collect())
}

/// n errors: the difference of two sums of 21 bits, which is nearly a Gaussian of standard deviation 3.2 and, as the
/// literature on ring-LWE has it (Alkim et al., "NewHope", 2016, section 4), as good for security.
pub(crate) fn errors(n: usize, rng: &mut SecretRng) -> Zeroizing<Vec<i64>> {
    let mut bytes = Zeroizing::new(vec![0_u8; 8 * n]);
    rng.fill_bytes(&mut bytes);
    let mask = (1_u64 << ERROR_PAIRS) - 1;
    let draws = bytes.chunks_exact(8).map(|b| u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]));
    let error = |x: u64| i64::from((x & mask).count_ones()) - i64::from(((x >> 32) & mask).count_ones());
    Zeroizing::new(draws.map(error).collect())
}

/// The uniform polynomial that a public seed stands for, limb by limb; `number` tells several of one seed apart.
pub(crate) fn uniform(seed: &[u8; 32], number: u64, moduli: &[Modulus], n: usize) -> Vec<u64> {
    let mut polynomial = vec![0; moduli.len() * n];
    for (limb, (modulus, out)) in moduli.iter().zip(polynomial.chunks_exact_mut(n)).enumerate() {
        uniform_limb(seed, number, limb, *modulus, out);
    }
    polynomial
}

/// One limb of it.
pub(crate) fn uniform_limb(seed: &[u8; 32], number: u64, limb: usize, modulus: Modulus, out: &mut [u64]) {
    let mut stream = ChaCha20Rng::from_seed(*seed);
    stream.set_stream((number << 16) | limb as u64);
    let mask = (1_u64 << modulus.bits()) - 1;
    for x in out {
        // Half of what is drawn fits at worst; nearly all, for primes just below a power of two.
        *x = loop {
            let drawn = stream.next_u64() & mask;
            if drawn < modulus.value() {
                break drawn;
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modulus::ntt_primes;

    #[test]
    fn secrets_and_errors_have_the_moments_they_should() {
        let mut rng = SecretRng::from_system().unwrap();
        let n = 1 << 18;
        let ternary = ternary(n, &mut rng);
        for value in [-1, 0, 1] {
            let share = ternary.iter().filter(|x| **x == value).count() as f64 / n as f64;
            // Six standard deviations of a count.
            assert!((share - 1.0 / 3.0).abs() < 6.0 * (2.0 / 9.0 / n as f64).sqrt(), "{value}: {share}");
        }
        let errors = errors(n, &mut rng);
        let mean = errors.iter().sum::<i64>() as f64 / n as f64;
        let variance = errors.iter().map(|e| (e * e) as f64).sum::<f64>() / n as f64;
        assert!(mean.abs() < 6.0 * (10.5 / n as f64).sqrt(), "{mean}");
        assert!((variance - 10.5).abs() < 0.2, "{variance}");
        assert!(errors.iter().all(|e| e.unsigned_abs() <= ERROR_PAIRS.into()));
    }

    #[test]
    fn a_seed_stands_for_one_polynomial() {
        let moduli: Vec<Modulus> = ntt_primes(64, 36, 2, &mut Vec::new()).into_iter().map(Modulus::new).collect();
        let one = uniform(&[1; 32], 0, &moduli, 64);
        assert_eq!(one, uniform(&[1; 32], 0, &moduli, 64));
        assert_ne!(one, uniform(&[1; 32], 1, &moduli, 64));
        assert_ne!(one, uniform(&[2; 32], 0, &moduli, 64));
        assert_ne!(one[..64], one[64..]);
        for (limb, modulus) in one.chunks(64).zip(&moduli) {
            assert!(limb.iter().all(|x| *x < modulus.value()));
            let mean = limb.iter().map(|x| *x as f64).sum::<f64>() / 64.0 / modulus.value() as f64;
            assert!((mean - 0.5).abs() < 6.0 / (12.0 * 64.0_f64).sqrt(), "{mean}");
        }
    }
}
