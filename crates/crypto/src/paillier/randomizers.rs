//! The random factors of ciphertexts, made ahead from a table of powers.

use super::PaillierError;
use super::key::PublicKey;
use super::lanes::{LANES, Lanes, broadcast, gather, scatter};
use super::modulus::{Montgomery, limbs_of, nonzero, window_of};
use crate::SecretRng;
use crate::parallel::for_each;
use crypto_bigint::{BoxedUint, ConcatenatingSquare, Gcd};
use std::fmt;
use zeroize::Zeroizing;

/// How the table is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lookup {
    /// Every entry of a row is read, whichever is wanted; rows of 64, 7 MB at 2048 bits, 16 MB at 3072.
    #[default]
    ConstantTime,
    /// Only the wanted entry is read; rows of 256, 21 and 47 MB. Faster, but what is in the caches afterwards depends
    /// on the secret exponent: for a machine that runs nothing of anybody else.
    DirectOnOwnMachine,
}

impl Lookup {
    fn window(self) -> u32 {
        match self {
            Self::ConstantTime => 6,
            Self::DirectOnOwnMachine => 8,
        }
    }
}

/// How long the random exponents are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exponent {
    /// Half the bits of n. Rests on the assumption of Damgård, Jurik and Nielsen that `h^(n·e)` with such e cannot be
    /// told from a random n-th residue; HEU and IPCL do the same.
    #[default]
    Short,
    /// 64 bits more than n: as good as uniform over the group of h, without that assumption, at half the speed.
    Full,
}

impl Exponent {
    fn bits(self, key: &PublicKey) -> u32 {
        match self {
            Self::Short => key.bits().bits() / 2,
            Self::Full => key.bits().bits() + 64,
        }
    }
}

/// Makes randomizers `r = h_s^e mod n²`: a table of powers of `h_s = h^n mod n²`, where `h = −x² mod n` for a secret,
/// random x of the holder's own, and fresh random exponents e.
///
/// Because each holder draws its own x, nobody has to trust an h from elsewhere (in particular not the key owner's).
/// Ciphertexts under different h add and decrypt as usual.
///
/// Source: Damgård, Jurik, Nielsen, *A generalization of Paillier's public-key system with applications to electronic
/// voting*, 2010, section 4.2; fixed-base windows after Brickell, Gordon, McCurley, Wilson, 1992.
pub struct RandomizerTable {
    key: PublicKey,
    lookup: Lookup,
    exponent_bits: u32,
    /// Row i, entry d: `h_s^(d · 2^(window · i))` in Montgomery form modulo n².
    entries: Zeroizing<Vec<u64>>,
}

/// Ciphertexts whose products are computed side by side in one thread: while one row of the table is in the cache.
const GROUPS: usize = 4;

impl RandomizerTable {
    /// Draws x and fills the table: about 20 ms at 2048 bits, 50 ms at 3072, on one core with AVX-512 IFMA.
    pub fn new(key: &PublicKey, lookup: Lookup, exponent: Exponent, rng: &mut SecretRng) -> Self {
        let modulus = &key.0.squared;
        let mut montgomery = Montgomery::new(modulus);
        let limbs = modulus.limbs();
        let window = lookup.window();
        let exponent_bits = exponent.bits(key);
        let rows = exponent_bits.div_ceil(window) as usize;

        let mut power = Zeroizing::new(broadcast(&limbs_of(&draw_h(key, rng), limbs)));
        montgomery.enter(&mut power, None);
        montgomery.pow(&mut power, &key.0.n, key.bits().bits());

        // Row i begins with h_s^(2^(window · i)); lanes all hold the same here.
        let mut bases = Zeroizing::new(vec![0_u64; rows * limbs]);
        for base in bases.chunks_exact_mut(limbs) {
            scatter(&power, base);
            (0..window).for_each(|_| montgomery.square(&mut power));
        }

        // Then eight rows at a time, entry by entry.
        let entries_per_row = 1 << window;
        let mut entries = Zeroizing::new(vec![0_u64; rows * entries_per_row * limbs]);
        let mut base = montgomery.number();
        for (bases, rows) in bases.chunks(LANES * limbs).zip(entries.chunks_mut(LANES * entries_per_row * limbs)) {
            gather(bases, 1, &mut base);
            let mut entry = Zeroizing::new(modulus.one().to_vec());
            for d in 0..entries_per_row {
                for (lane, row) in rows.chunks_exact_mut(entries_per_row * limbs).enumerate() {
                    let out = &mut row[d * limbs..(d + 1) * limbs];
                    out.iter_mut().zip(entry.iter()).for_each(|(limb, column)| *limb = column.0[lane]);
                }
                montgomery.multiply(&mut entry, &base);
            }
        }
        Self { key: key.clone(), lookup, exponent_bits, entries }
    }

    /// Makes `count` randomizers with fresh exponents, on up to `threads` threads.
    #[must_use]
    pub fn draw(&self, count: usize, rng: &mut SecretRng, threads: usize) -> Randomizers {
        let limbs = self.key.cipher_limbs();
        // All exponents are half or all of n long, or 64 bits longer: whole words.
        let words = self.exponent_bits as usize / 64;
        let mut bytes = Zeroizing::new(vec![0_u8; count * words * 8]);
        rng.fill_bytes(&mut bytes);
        let exponents: Zeroizing<Vec<u64>> =
            Zeroizing::new(bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect());
        let mut numbers = Zeroizing::new(vec![0_u64; count * limbs]);

        let chunks = exponents.chunks(GROUPS * LANES * words).zip(numbers.chunks_mut(GROUPS * LANES * limbs));
        for_each(
            threads,
            chunks,
            || Montgomery::new(&self.key.0.squared),
            |montgomery, (exponents, out)| self.powers(montgomery, exponents, words, out),
        );
        Randomizers { key: self.key.clone(), numbers }
    }

    /// `h_s^e` for up to `GROUPS · LANES` exponents, row by row of the table.
    fn powers(&self, montgomery: &mut Montgomery<'_>, exponents: &[u64], words: usize, out: &mut [u64]) {
        let limbs = self.key.cipher_limbs();
        let window = self.lookup.window();
        let row_size = limbs << window;
        let groups: Vec<&[u64]> = exponents.chunks(LANES * words).collect();
        let mut powers: Vec<Zeroizing<Vec<Lanes>>> =
            groups.iter().map(|_| Zeroizing::new(self.key.0.squared.one().to_vec())).collect();
        let mut factor = montgomery.number();
        for (i, row) in (0_u32..).zip(self.entries.chunks_exact(row_size)) {
            for (exponents, power) in groups.iter().zip(&mut powers) {
                let mut digits = Zeroizing::new([0_u8; LANES]);
                for (digit, exponent) in digits.iter_mut().zip(exponents.chunks_exact(words)) {
                    *digit = u8::try_from(window_of(exponent, i * window, window)).unwrap_or(0);
                }
                match self.lookup {
                    Lookup::ConstantTime => montgomery.select(row, &digits, &mut factor),
                    Lookup::DirectOnOwnMachine => {
                        for (lane, &digit) in digits.iter().enumerate() {
                            let entry = &row[usize::from(digit) * limbs..][..limbs];
                            factor.iter_mut().zip(entry).for_each(|(column, &limb)| column.0[lane] = limb);
                        }
                    }
                }
                montgomery.multiply(power, &factor);
            }
        }
        for (power, out) in powers.iter().zip(out.chunks_mut(LANES * limbs)) {
            scatter(power, out);
        }
    }
}

impl fmt::Debug for RandomizerTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RandomizerTable({:?}, {} exponent bits, ..)", self.lookup, self.exponent_bits)
    }
}

/// `h = −x² mod n` for a random unit x: of Jacobi symbol 1, and a generator of nearly all such numbers.
fn draw_h(key: &PublicKey, rng: &mut SecretRng) -> Zeroizing<BoxedUint> {
    let n = &key.0.n;
    let mut bytes = Zeroizing::new(vec![0_u8; key.bits().key_bytes() + 8]);
    loop {
        rng.fill_bytes(&mut bytes);
        let x = Zeroizing::new(BoxedUint::from_be_slice_vartime(&bytes).rem(nonzero(n)));
        if x.gcd(n).is_one().to_bool() {
            return Zeroizing::new(n.wrapping_sub(x.concatenating_square().rem(nonzero(n))));
        }
    }
}

/// Random factors, each good for one ciphertext: encryption takes them away. Wiped on drop. Never to be stored.
pub struct Randomizers {
    pub(super) key: PublicKey,
    /// In Montgomery form modulo n², 52-bit limbs, one number after the other.
    pub(super) numbers: Zeroizing<Vec<u64>>,
}

impl Randomizers {
    /// None yet.
    #[must_use]
    pub fn none(key: &PublicKey) -> Self {
        Self { key: key.clone(), numbers: Zeroizing::new(Vec::new()) }
    }

    /// How many are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len() / self.key.cipher_limbs()
    }

    /// Whether none are left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Takes `count` out.
    ///
    /// # Errors
    /// [`PaillierError::Randomizers`] if fewer are left; they stay.
    pub fn take(&mut self, count: usize) -> Result<Self, PaillierError> {
        let kept = self.len().checked_sub(count);
        let kept =
            kept.ok_or(PaillierError::Randomizers { needed: count, left: self.len() })? * self.key.cipher_limbs();
        let numbers = Zeroizing::new(self.numbers[kept..].to_vec());
        // What is cut off stays in the spare capacity: it is wiped now rather than at the end.
        self.numbers[kept..].fill(0);
        self.numbers.truncate(kept);
        Ok(Self { key: self.key.clone(), numbers })
    }

    /// Puts `more` beside these.
    ///
    /// # Errors
    /// [`PaillierError::OtherKey`] if they belong to another key.
    pub fn append(&mut self, more: Self) -> Result<(), PaillierError> {
        if self.key != more.key {
            return Err(PaillierError::OtherKey);
        }
        // A vector that grows would leave its old contents behind.
        let mut numbers = Zeroizing::new(Vec::with_capacity(self.numbers.len() + more.numbers.len()));
        numbers.extend_from_slice(&self.numbers);
        numbers.extend_from_slice(&more.numbers);
        self.numbers = numbers;
        Ok(())
    }
}

impl fmt::Debug for Randomizers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Randomizers({})", self.len())
    }
}
