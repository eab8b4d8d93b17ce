//! The owner's proof that neither prime of a public key is small.

use super::key::{KeyBits, PublicKey, SecretKey};
use super::modulus::{Arithmetic, Modulus, nonzero, pow_each};
use crate::SecretRng;
use crypto_bigint::{BoxedUint, ConcatenatingMul, Resize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// RSA-2048 of the RSA Factoring Challenge (1991): a modulus that nobody can factor, as the challenge machine's drive
/// was destroyed and the price of 200,000 dollars was never claimed. Digits: <https://en.wikipedia.org/wiki/RSA_numbers>.
const RSA_2048: &str = "\
c7970ceedcc3b0754490201a7aa613cd73911081c790f5f1a8726f463550bb5b7ff0db8e1ea1189ec72f93d1650011bd\
721aeeacc2acde32a04107f0648c2813a31f5b0b7765ff8b44b4b6ffc93384b646eb09c7cf5e8592d40ea33c80039f35\
b4f14a04b51f7bfd781be4d1673164ba8eb991c2c4d730bbbe35f592bdef524af7e8daefd26c66fc02c479af89d64d37\
3f442709439de66ceb955f3ea37d5159f6135809f85334b5cb1813addc80cd05609f10ac6a95ad65872c909525bdad32\
bc729592642920f24c61dc5b3c3b7923e56b16a4d9d373d8721f24a3fc0f1b3131f55615172866bccc30f95054c824e7\
33a5eb6817f7bc16399d48c6361cc7e5";

/// Bits of the group's elements.
const GROUP_BITS: u32 = 2048;

/// Bits of the challenge: a cheat passes with odds of 2^-128 per try.
const CHALLENGE_BITS: u32 = 128;

/// Bits by which random numbers exceed what they hide: what is seen differs by 2^-128 from what needs no secret.
const HIDING_BITS: u32 = 128;

/// A non-interactive proof that n = p·q with both factors below `2^(bits/2 + 257)`, and so both at least
/// `2^(bits/2 − 258)`: 766 bits for a key of 2048 bits, 1278 for 3072.
///
/// Source: CGGMP21 (eprint 2021/060), Πfac, the no-small-factor proof. Two things differ. The verifier's commitment
/// modulus is RSA-2048 with hashed squares s and t, instead of one from each verifier: one proof serves all, and it
/// rests on nobody having RSA-2048's factors (who has them could claim too much, but learns nothing of p and q beyond
/// their residues modulo small divisors of the group's order). And all numbers are non-negative, with `σ' = σ − ν·p`
/// drawn first, which changes no distribution by more than 2^-128.
///
/// In words: `P = s^p·t^μ` and `Q = s^q·t^ν` hide p and q; the proof shows knowledge of their exponents, that these are
/// short, and that `Q^p` is `s^n` up to a power of t, so that p·q = n over the integers.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SizeProof {
    /// P, Q, A, B, T.
    elements: [BoxedUint; 5],
    /// σ, z1, z2, w1, w2, v.
    integers: [BoxedUint; 6],
}

/// Widths of the numbers in the proof for one key size.
struct Widths {
    prime: u32,
    mu: u32,
    alpha: u32,
    x: u32,
    sigma: u32,
    r: u32,
}

impl Widths {
    fn new(bits: KeyBits) -> Self {
        let prime = bits.bits() / 2;
        let mu = GROUP_BITS + HIDING_BITS;
        let sigma = mu + prime + HIDING_BITS;
        let response = CHALLENGE_BITS + HIDING_BITS;
        Self { prime, mu, alpha: prime + response, x: mu + response, sigma, r: sigma + response }
    }

    /// Bytes of σ, z1, z2, w1, w2 and v: each is a sum and may be a bit longer than its longer part.
    fn integers(&self) -> [usize; 6] {
        [self.sigma, self.alpha, self.alpha, self.x, self.x, self.r].map(|bits| (bits as usize + 1).div_ceil(8))
    }
}

impl SizeProof {
    pub(super) fn new(key: &SecretKey, context: &[u8], rng: &mut SecretRng) -> Self {
        let public = key.public();
        let group = Group::new(public.arithmetic());
        let widths = Widths::new(public.bits());
        let [p, q] = key.halves.each_ref().map(|half| &half.prime);
        let mut draw = |bits: u32| Zeroizing::new(random(bits, rng));
        let [mu, nu] = [draw(widths.mu), draw(widths.mu)];
        let [alpha, beta] = [draw(widths.alpha), draw(widths.alpha)];
        let [x, y] = [draw(widths.x), draw(widths.x)];
        let (sigma_rest, r) = (draw(widths.sigma), draw(widths.r));

        let big_q = group.commit(q, &nu);
        let t = group.multiply(&group.power(&big_q, &alpha), &group.power(&group.t, &r));
        let elements = [group.commit(p, &mu), big_q, group.commit(&alpha, &x), group.commit(&beta, &y), t];
        let sigma = plus_product(&sigma_rest, &nu, p);
        let e = challenge(public, context, &elements, &sigma);
        let integers = [
            sigma,
            plus_product(&alpha, &e, p),
            plus_product(&beta, &e, q),
            plus_product(&x, &e, &mu),
            plus_product(&y, &e, &nu),
            plus_product(&r, &e, &sigma_rest),
        ];
        Self { elements, integers }
    }

    pub(super) fn holds(&self, key: &PublicKey, context: &[u8]) -> bool {
        let group = Group::new(key.arithmetic());
        let widths = Widths::new(key.bits());
        let [p, q, a, b, t] = &self.elements;
        let [sigma, z1, z2, w1, w2, v] = &self.integers;
        let are_elements = self.elements.iter().all(|x| x < &group.n && x.is_nonzero().to_bool());
        let are_short = [z1, z2].iter().all(|z| z.bits_vartime() <= widths.prime + CHALLENGE_BITS + HIDING_BITS + 1);
        if !are_elements || !are_short {
            return false;
        }
        let e = challenge(key, context, &self.elements, sigma);
        let of_n = group.commit(&key.0.n, sigma);
        let after = |first: &BoxedUint, base: &BoxedUint| group.multiply(first, &group.power(base, &e));
        group.commit(z1, w1) == after(a, p)
            && group.commit(z2, w2) == after(b, q)
            && group.multiply(&group.power(q, z1), &group.power(&group.t, v)) == after(t, &of_n)
    }

    pub(super) fn byte_len(bits: KeyBits) -> usize {
        5 * GROUP_BITS as usize / 8 + Widths::new(bits).integers().iter().sum::<usize>()
    }

    pub(super) fn write(&self, bits: KeyBits, out: &mut Vec<u8>) {
        for element in &self.elements {
            out.extend_from_slice(&fixed(element, GROUP_BITS as usize / 8));
        }
        for (integer, bytes) in self.integers.iter().zip(Widths::new(bits).integers()) {
            out.extend_from_slice(&fixed(integer, bytes));
        }
    }

    /// `bytes` must be [`byte_len`](Self::byte_len) long; fewer read as shorter numbers.
    pub(super) fn read(bits: KeyBits, bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let mut next = |length: usize| {
            let (number, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            BoxedUint::from_be_slice_vartime(number)
        };
        let elements = [(); 5].map(|()| next(GROUP_BITS as usize / 8).resize(GROUP_BITS));
        Self { elements, integers: Widths::new(bits).integers().map(next) }
    }
}

/// The squares modulo RSA-2048.
struct Group {
    n: BoxedUint,
    modulus: Modulus,
    s: BoxedUint,
    t: BoxedUint,
}

impl Group {
    fn new(arithmetic: Arithmetic) -> Self {
        #[expect(clippy::expect_used, reason = "a constant of 512 hexadecimal digits; a test reads it")]
        let n = BoxedUint::from_be_hex(RSA_2048, GROUP_BITS).into_option().expect("RSA-2048");
        let generator = |name: &str| {
            let base = expand(&[b"spnn/1 no small factor", name.as_bytes()], GROUP_BITS + HIDING_BITS).rem(nonzero(&n));
            base.concatenating_mul(&base).rem(nonzero(&n))
        };
        Self { modulus: Modulus::new(&n, arithmetic), s: generator("s"), t: generator("t"), n }
    }

    /// Constant time for exponents of the same precision.
    fn power(&self, base: &BoxedUint, exponent: &BoxedUint) -> BoxedUint {
        let powers = pow_each(&self.modulus, std::slice::from_ref(base), exponent, exponent.bits_precision());
        powers.into_iter().next().unwrap_or_else(|| BoxedUint::zero_with_precision(GROUP_BITS))
    }

    fn multiply(&self, x: &BoxedUint, y: &BoxedUint) -> BoxedUint {
        x.concatenating_mul(y).rem(nonzero(&self.n))
    }

    /// `s^x · t^y`.
    fn commit(&self, x: &BoxedUint, y: &BoxedUint) -> BoxedUint {
        self.multiply(&self.power(&self.s, x), &self.power(&self.t, y))
    }
}

/// `x + y·z` over the integers.
fn plus_product(x: &BoxedUint, y: &BoxedUint, z: &BoxedUint) -> BoxedUint {
    x.concatenating_add(y.concatenating_mul(z))
}

fn random(bits: u32, rng: &mut SecretRng) -> BoxedUint {
    let mut bytes = Zeroizing::new(vec![0; bits as usize / 8]);
    rng.fill_bytes(&mut bytes);
    BoxedUint::from_be_slice_vartime(&bytes)
}

/// Big-endian, exactly `length` bytes; the number must fit.
fn fixed(number: &BoxedUint, length: usize) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let (padding, cut) = (length.saturating_sub(bytes.len()), bytes.len().saturating_sub(length));
    [&vec![0; padding], &bytes[cut..]].concat()
}

fn challenge(key: &PublicKey, context: &[u8], elements: &[BoxedUint; 5], sigma: &BoxedUint) -> BoxedUint {
    let sigma_bytes = Widths::new(key.bits()).integers()[0];
    let elements: Vec<u8> = elements.iter().flat_map(|element| fixed(element, GROUP_BITS as usize / 8)).collect();
    let length = (context.len() as u64).to_le_bytes();
    let n = key.to_bytes();
    let label: &[u8] = b"spnn/1 no small factor proof";
    expand(&[label, &length, context, &n, &elements, &fixed(sigma, sigma_bytes)], CHALLENGE_BITS)
}

/// A number of `bits` bits, a multiple of 8, hashed from `parts`.
pub(super) fn expand(parts: &[&[u8]], bits: u32) -> BoxedUint {
    let mut seed = Sha256::new();
    parts.iter().for_each(|part| seed.update(part));
    let seed = seed.finalize();
    let length = bits as usize / 8;
    let block = |i: u64| Sha256::new().chain_update(seed).chain_update(i.to_le_bytes()).finalize();
    let bytes: Vec<u8> = (0..length.div_ceil(32) as u64).flat_map(block).take(length).collect();
    BoxedUint::from_be_slice_vartime(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paillier::key::test_keys;

    /// ```python
    /// # From the decimal digits as published by RSA Laboratories (their check: 617 digits, digit sum 2738)
    /// print(sum(map(int, str(int(RSA_2048, 16)))), len(str(int(RSA_2048, 16))))
    /// ```
    #[test]
    fn the_modulus_is_rsa_2048() {
        let decimal = Group::new(Arithmetic::detect()).n.to_string_radix_vartime(10);
        assert_eq!(decimal.len(), 617);
        assert_eq!(decimal.bytes().map(|digit| u32::from(digit - b'0')).sum::<u32>(), 2738);
        assert!(
            decimal.starts_with("25195908475657893494027183240048398571429282126204") && decimal.ends_with("120720357")
        );
    }

    #[test]
    fn a_balanced_key_passes_in_its_session_and_a_small_prime_does_not() {
        let mut rng = SecretRng::from_system().unwrap();
        let bits = KeyBits::Bits2048;
        let secret = SecretKey::generate(bits, &mut rng).unwrap();
        let proof = SizeProof::new(&secret, b"s", &mut rng);
        let mut bytes = Vec::new();
        proof.write(bits, &mut bytes);
        assert_eq!(bytes.len(), SizeProof::byte_len(bits));
        assert!(SizeProof::read(bits, &bytes) == proof || SizeProof::read(bits, &bytes).holds(secret.public(), b"s"));
        assert!(proof.holds(secret.public(), b"s"));
        assert!(!proof.holds(secret.public(), b"t"));
        // Every part counts.
        let mut ends = vec![256, 512, 768, 1024, 1280];
        for length in Widths::new(bits).integers() {
            ends.push(ends[ends.len() - 1] + length);
        }
        for end in ends {
            let mut altered = bytes.clone();
            altered[end - 1] ^= 1;
            assert!(!SizeProof::read(bits, &altered).holds(secret.public(), b"s"), "byte {end}");
        }
        // 700 and 1348 bits: the honest algorithm's answer is too long, and a shorter one fits no equation.
        let unbalanced = test_keys::unbalanced(700, 1348);
        assert!(!SizeProof::new(&unbalanced, b"s", &mut rng).holds(unbalanced.public(), b"s"));
    }
}
