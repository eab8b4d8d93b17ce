//! The owner's proof that a public key is well formed.

use super::key::{Half, KeyBits, PublicKey, SecretKey, inverse_modulo};
use super::modulus::{Modulus, nonzero, pow_each};
use super::size_proof::{SizeProof, expand};
use crate::SecretRng;
use crypto_bigint::{BoxedUint, ConcatenatingMul, Gcd, NonZero, Resize};
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// Rounds. In each, a modulus of another form passes with odds of at most one half; non-interactive proofs let a cheat
/// try again and again at no risk, so the odds must be those of guessing a key.
const ROUNDS: usize = 128;

/// A non-interactive proof that n = p·q with primes p, q = 3 mod 4, gcd(n, φ(n)) = 1, neither of them small.
///
/// Source: Canetti, Gennaro, Goldfeder, Makriyannis, Peled, *UC Non-Interactive, Proactive, Threshold ECDSA with
/// Identifiable Aborts* (CGGMP21, eprint 2021/060): Πmod, Paillier–Blum modulus, with 128 rounds for their 80, and
/// Πfac, no small factor. Made non-interactive by Fiat and Shamir: challenges are SHA-256 of the caller's context,
/// n and the commitments.
///
/// **What it shows.** Each challenge y has an n-th root (so n is square-free and encryption loses nothing), and one of
/// ±y, ±w·y has a fourth root (so n has exactly two prime factors, both 3 mod 4). That w has Jacobi symbol −1 and no
/// factor in common with n is verified: libraries have forgotten it, and without it the second claim falls. Both
/// primes are at least `2^(bits/2 − 258)`, that is 2^766 or 2^1278, out of reach of all that finds small factors
/// (elliptic curves: under 2^300 so far). A key of another form passes with odds of 2^-128 per try, for whoever treats
/// SHA-256 as a random function; the sizes rest on the strong RSA assumption for RSA-2048 as well, see `size_proof.rs`.
/// It reveals nothing about p and q beyond that.
///
/// **What it does not show.** That p and q were drawn at random, or that the owner keeps them: an owner who wants a
/// holder's neighbour to read along can simply hand over the key. The sizes say nothing for
/// [`KeyBits::InsecureTest512`], whose bound is below 1.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyProof {
    bits: KeyBits,
    w: BoxedUint,
    rounds: Vec<Round>,
    sizes: SizeProof,
}

/// `x⁴ = (−1)^negate · w^twist · y` and `zⁿ = y`.
#[derive(Clone, PartialEq, Eq)]
struct Round {
    x: BoxedUint,
    z: BoxedUint,
    negate: bool,
    twist: bool,
}

/// A proof that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// Not as long as a proof for this key size.
    #[error("key proof has {found} bytes instead of {expected}")]
    Length {
        /// Bytes of a proof.
        expected: usize,
        /// Bytes received.
        found: usize,
    },
    /// A byte that is neither of the allowed ones.
    #[error("key proof is malformed in round {round}")]
    Malformed {
        /// Which round.
        round: usize,
    },
    /// w is no unit of Jacobi symbol −1.
    #[error("key proof rests on a number that is not of Jacobi symbol -1")]
    Jacobi,
    /// A number is not between 0 and n.
    #[error("key proof holds a number out of range in round {round}")]
    Range {
        /// Which round.
        round: usize,
    },
    /// The numbers that bound the primes do not fit each other.
    #[error(
        "key proof does not show that both primes are large: not made for this key and this session, or one is small"
    )]
    Size,
    /// A root is none: wrong modulus, wrong context or altered on the way.
    #[error(
        "key proof does not hold in round {round}: not made for this key and this session, or the key is not of the right form"
    )]
    Root {
        /// Which round.
        round: usize,
    },
}

impl KeyProof {
    /// Proves that this key is well formed, for the session that `context` stands for (its digest). The proof is valid
    /// there only. Takes about as long as decrypting 200 ciphertexts.
    #[must_use]
    pub fn new(key: &SecretKey, context: &[u8], rng: &mut SecretRng) -> Self {
        let public = key.public();
        let n = &public.0.n;
        let arithmetic = public.arithmetic();
        let sides = key.halves.each_ref().map(|half| Side::new(half, n, Modulus::new(&half.prime, arithmetic)));
        let w = loop {
            let w = random_below(n, rng);
            if jacobi(&w, n) == -1 {
                break w;
            }
        };
        let w_is_residue = sides.each_ref().map(|side| side.is_residue(std::slice::from_ref(&w))[0]);

        let challenges = challenges(public, context, &w);
        let residues = sides.each_ref().map(|side| side.is_residue(&challenges));
        let mut signs = Vec::with_capacity(ROUNDS);
        let mut squares = Vec::with_capacity(ROUNDS);
        for (i, y) in challenges.iter().enumerate() {
            // −1 turns both symbols, w exactly one of them.
            let y_is_residue = [residues[0][i], residues[1][i]];
            let twist = y_is_residue[0] != y_is_residue[1];
            let negate = if twist { y_is_residue != w_is_residue } else { !y_is_residue[0] };
            signs.push((negate, twist));
            squares.push(signed(y, &w, negate, twist, n));
        }
        let xs = combine(&sides, |side| side.fourth_roots(&squares));
        let zs = combine(&sides, |side| side.nth_roots(&challenges));
        let rounds = xs.into_iter().zip(zs).zip(signs);
        let rounds = rounds.map(|((x, z), (negate, twist))| Round { x, z, negate, twist }).collect();
        Self { bits: public.bits(), w, rounds, sizes: SizeProof::new(key, context, rng) }
    }

    /// Checks the proof for `key` in the session that `context` stands for.
    ///
    /// # Errors
    /// [`ProofError`], naming the round that failed.
    pub fn verify(&self, key: &PublicKey, context: &[u8]) -> Result<(), ProofError> {
        let n = &key.0.n;
        let in_range = |x: &BoxedUint| x < n && x.is_nonzero().to_bool();
        // A symbol of −1 implies no common factor; asked all the same, because so much hangs on it.
        if !in_range(&self.w) || jacobi(&self.w, n) != -1 || !self.w.gcd_vartime(n).is_one().to_bool() {
            return Err(ProofError::Jacobi);
        }
        if self.rounds.len() != ROUNDS {
            return Err(ProofError::Malformed { round: self.rounds.len() });
        }
        if let Some(round) = self.rounds.iter().position(|round| !in_range(&round.x) || !in_range(&round.z)) {
            return Err(ProofError::Range { round });
        }
        let challenges = challenges(key, context, &self.w);
        let [xs, zs]: [Vec<BoxedUint>; 2] =
            [self.rounds.iter().map(|r| r.x.clone()).collect(), self.rounds.iter().map(|r| r.z.clone()).collect()];
        let fourth_powers = pow_each(&key.0.modulus, &xs, &BoxedUint::from(4_u64), 3);
        let nth_powers = pow_each(&key.0.modulus, &zs, n, n.bits_vartime());
        for (i, (round, y)) in self.rounds.iter().zip(&challenges).enumerate() {
            let square = signed(y, &self.w, round.negate, round.twist, n);
            if nth_powers[i] != *y || fourth_powers[i] != square {
                return Err(ProofError::Root { round: i });
            }
        }
        if self.sizes.holds(key, context) { Ok(()) } else { Err(ProofError::Size) }
    }

    /// Bytes of a proof for a key of this size.
    #[must_use]
    pub fn byte_len(bits: KeyBits) -> usize {
        bits.key_bytes() + ROUNDS * (2 * bits.key_bytes() + 1) + SizeProof::byte_len(bits)
    }

    /// w; x, z and signs of each round; the proof of sizes. Numbers are big-endian and of fixed length. 69 kB at 2048
    /// bits, 102 kB at 3072.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.w.to_be_bytes().into_vec();
        for Round { x, z, negate, twist } in &self.rounds {
            out.extend_from_slice(&x.to_be_bytes());
            out.extend_from_slice(&z.to_be_bytes());
            out.push(u8::from(*negate) | u8::from(*twist) << 1);
        }
        self.sizes.write(self.bits, &mut out);
        out
    }

    /// Reads a proof; only [`verify`](Self::verify) says whether it holds.
    ///
    /// # Errors
    /// [`ProofError::Length`] or [`ProofError::Malformed`].
    pub fn from_bytes(bits: KeyBits, bytes: &[u8]) -> Result<Self, ProofError> {
        let length = ProofError::Length { expected: Self::byte_len(bits), found: bytes.len() };
        if bytes.len() != Self::byte_len(bits) {
            return Err(length);
        }
        let size = bits.key_bytes();
        let number = |bytes: &[u8]| BoxedUint::from_be_slice(bytes, bits.bits()).map_err(|_| length);
        let (w, rest) = bytes.split_at(size);
        let (rest, sizes) = rest.split_at(ROUNDS * (2 * size + 1));
        let rounds = rest.chunks_exact(2 * size + 1).enumerate().map(|(round, bytes)| {
            let signs = bytes[2 * size];
            if signs > 3 {
                return Err(ProofError::Malformed { round });
            }
            let (negate, twist) = (signs & 1 == 1, signs & 2 == 2);
            Ok(Round { x: number(&bytes[..size])?, z: number(&bytes[size..2 * size])?, negate, twist })
        });
        let rounds = rounds.collect::<Result<_, _>>()?;
        Ok(Self { bits, w: number(w)?, rounds, sizes: SizeProof::read(bits, sizes) })
    }
}

impl fmt::Debug for KeyProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyProof({} rounds)", self.rounds.len())
    }
}

/// `(−1)^negate · w^twist · y mod n`.
fn signed(y: &BoxedUint, w: &BoxedUint, negate: bool, twist: bool, n: &BoxedUint) -> BoxedUint {
    let y = if twist { y.concatenating_mul(w).rem(nonzero(n)) } else { y.clone() };
    if negate { y.neg_mod(nonzero(n)) } else { y }
}

/// The challenges: 128 bits more than n are hashed and reduced, so each is within 2^-128 of uniform.
fn challenges(key: &PublicKey, context: &[u8], w: &BoxedUint) -> Vec<BoxedUint> {
    let (length, n_bytes, w) = ((context.len() as u64).to_le_bytes(), key.to_bytes(), w.to_be_bytes());
    let n = nonzero(&key.0.n);
    let bits = key.bits().bits() + 128;
    let challenge = |round: u64| {
        let label: &[u8] = b"spnn/1 Paillier-Blum proof";
        expand(&[label, &length, context, &n_bytes, &w, &round.to_le_bytes()], bits).rem(n)
    };
    (0..ROUNDS as u64).map(challenge).collect()
}

fn random_below(n: &BoxedUint, rng: &mut SecretRng) -> BoxedUint {
    let mut bytes = Zeroizing::new(vec![0; n.bits_precision() as usize / 8 + 16]);
    rng.fill_bytes(&mut bytes);
    BoxedUint::from_be_slice_vartime(&bytes).rem(nonzero(n))
}

/// What the owner computes modulo one of the primes. Exponents are secret: windows are scanned as in decryption.
struct Side<'k> {
    half: &'k Half,
    prime: &'k NonZero<BoxedUint>,
    modulus: Modulus,
    n: &'k BoxedUint,
}

impl<'k> Side<'k> {
    fn new(half: &'k Half, n: &'k BoxedUint, modulus: Modulus) -> Self {
        Self { half, prime: nonzero(&half.prime), modulus, n }
    }

    fn power(&self, bases: &[BoxedUint], exponent: &BoxedUint) -> Vec<BoxedUint> {
        let bases: Vec<_> = bases.iter().map(|base| base.rem(self.prime)).collect();
        pow_each(&self.modulus, &bases, exponent, self.half.prime.bits_precision())
    }

    /// Whether each is a square, by Euler's criterion.
    fn is_residue(&self, numbers: &[BoxedUint]) -> Vec<bool> {
        let exponent = Zeroizing::new(self.half.exponent.shr(1));
        self.power(numbers, &exponent).iter().map(|power| power.is_one().to_bool()).collect()
    }

    /// The fourth roots of squares: since p = 3 mod 4, the power (p + 1)/4 is the square root that is a square.
    fn fourth_roots(&self, squares: &[BoxedUint]) -> Vec<BoxedUint> {
        let root = Zeroizing::new(self.half.prime.shr(2).wrapping_add(BoxedUint::one()));
        let exponent = Zeroizing::new(root.concatenating_mul(&*root).rem(nonzero(&self.half.exponent)));
        self.power(squares, &exponent)
    }

    /// The n-th roots. n has an inverse modulo p − 1: neither p nor the equally long q divides p − 1.
    fn nth_roots(&self, numbers: &[BoxedUint]) -> Vec<BoxedUint> {
        let exponent = Zeroizing::new(inverse_modulo(self.n, &self.half.exponent));
        self.power(numbers, &exponent)
    }
}

/// Chinese remainder of what `of` gives modulo p and modulo q: `x_p + p · ((x_q − x_p) · p⁻¹ mod q)`.
fn combine(sides: &[Side<'_>; 2], of: impl Fn(&Side<'_>) -> Vec<BoxedUint>) -> Vec<BoxedUint> {
    let [p, q] = sides;
    let p_inverse = Zeroizing::new(inverse_modulo(&p.half.prime, &q.half.prime));
    let bits = p.n.bits_precision();
    let together = |(x_p, x_q): (BoxedUint, BoxedUint)| {
        let difference = x_q.sub_mod(&x_p.rem(q.prime), q.prime);
        let factor = difference.concatenating_mul(&*p_inverse).rem(q.prime);
        factor.concatenating_mul(&p.half.prime).wrapping_add(&x_p).resize(bits)
    };
    of(p).into_iter().zip(of(q)).map(together).collect()
}

/// The Jacobi symbol (a/n) for odd n: 1, −1, or 0 if they have a common factor. Not constant time: both are public.
fn jacobi(a: &BoxedUint, n: &BoxedUint) -> i32 {
    let mut sign = 1;
    let mut n = n.clone();
    let mut a = a.rem_vartime(nonzero(&n));
    while a.is_nonzero().to_bool() {
        let twos = a.trailing_zeros_vartime();
        a = a.shr(twos);
        if twos % 2 == 1 && matches!(n.as_words()[0] % 8, 3 | 5) {
            sign = -sign;
        }
        if a.as_words()[0] % 4 == 3 && n.as_words()[0] % 4 == 3 {
            sign = -sign;
        }
        let remainder = n.rem_vartime(nonzero(&a));
        n = std::mem::replace(&mut a, remainder);
    }
    if n.is_one().to_bool() { sign } else { 0 }
}
