//! Many fixed-point values in one plaintext.

use super::PaillierError;
use super::key::{KeyBits, PublicKey};
use super::lanes::{LANES, add, gather, limbs_from_words, reduce_once, scatter, subtract_from, words_from_limbs};
use super::modulus::{Montgomery, window_of};
use crate::{MaskContext, PairKey, Sign};
use ctr::cipher::{StreamCipher, StreamCipherSeek};
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// How signed integers of `value_bits` bits lie in a plaintext, with room for sums of up to `addends_max` of them.
///
/// A value v is stored as `v + 2^(value_bits − 1)`, in a slot of `value_bits + ⌈log2 addends_max⌉` bits. A sum of
/// `addends_max` such numbers is at most `addends_max · (2^value_bits − 1)`, which the slot holds: nothing ever carries
/// into a neighbour, and the highest bit of n is left out, so the whole sum stays below n. Whoever decrypts sees exact
/// sums and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    key_bits: KeyBits,
    value_bits: u32,
    addends_max: u32,
    slot_bits: u32,
    slots: usize,
}

/// A packing that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PackingError {
    /// Too narrow to be signed or too wide for a word.
    #[error("values of {found} bits cannot be packed: 2 to 64 are possible")]
    ValueBits {
        /// What was asked for.
        found: u32,
    },
    /// No addends, or so many that a key holds no slot worth having.
    #[error("sums of {found} addends cannot be packed: 1 to 65,536 are possible")]
    Addends {
        /// What was asked for.
        found: u32,
    },
}

impl Packing {
    /// A packing for keys of `key_bits`.
    ///
    /// # Errors
    /// [`PackingError`] if `value_bits` is not 2 to 64 or `addends_max` not 1 to 65,536.
    pub fn new(key_bits: KeyBits, value_bits: u32, addends_max: u32) -> Result<Self, PackingError> {
        if !(2..=64).contains(&value_bits) {
            return Err(PackingError::ValueBits { found: value_bits });
        }
        if !(1..=1 << 16).contains(&addends_max) {
            return Err(PackingError::Addends { found: addends_max });
        }
        let slot_bits = value_bits + addends_max.next_power_of_two().trailing_zeros();
        let slots = ((key_bits.bits() - 1) / slot_bits) as usize;
        Ok(Self { key_bits, value_bits, addends_max, slot_bits, slots })
    }

    /// Values per plaintext.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Bits of a value.
    #[must_use]
    pub fn value_bits(&self) -> u32 {
        self.value_bits
    }

    /// The most addends a sum may have.
    #[must_use]
    pub fn addends_max(&self) -> u32 {
        self.addends_max
    }

    /// Plaintexts, and so ciphertexts, that `values` values take.
    #[must_use]
    pub fn plaintexts_for(&self, values: usize) -> usize {
        values.div_ceil(self.slots)
    }

    /// Packs `values`, in order, under `key`. A chunk of a larger tensor begins at a multiple of [`slots`](Self::slots).
    ///
    /// # Errors
    /// [`PaillierError::Value`] at the first value that does not fit `value_bits`; [`PaillierError::OtherKey`] if the
    /// packing is for another key size.
    pub fn encode(&self, key: &PublicKey, values: &[i64]) -> Result<Plaintexts, PaillierError> {
        self.fits(key)?;
        let limbs = key.plain_limbs();
        let mut plaintexts = Plaintexts::zeros(key, self.plaintexts_for(values.len()));
        let mut words = Zeroizing::new(vec![0_u64; self.key_bits.bits() as usize / 64]);
        let chunks = values.chunks(self.slots).zip(plaintexts.numbers.chunks_exact_mut(limbs));
        for (index, (values, number)) in chunks.enumerate() {
            words.fill(0);
            for (slot, &value) in values.iter().enumerate() {
                let stored = self.store(value).ok_or(PaillierError::Value { position: index * self.slots + slot })?;
                let bit = slot * self.slot_bits as usize;
                let (word, shift) = (bit / 64, bit % 64);
                words[word] |= stored << shift;
                if shift > 0 && word + 1 < words.len() {
                    words[word + 1] |= stored >> (64 - shift);
                }
            }
            limbs_from_words(&words, number);
        }
        Ok(plaintexts)
    }

    /// Unpacks `values` sums of exactly `addends` values each. This opens them.
    ///
    /// # Errors
    /// [`PaillierError::Addends`] or [`PaillierError::Count`] for a wrong call; [`PaillierError::Sum`] where a slot
    /// exceeds what `addends` values can give or the sum exceeds 64 bits; [`PaillierError::Unused`] where bits beyond
    /// the last value are set. Either means that a mask did not cancel, or that a peer did not follow the protocol.
    pub fn decode(&self, sums: &Plaintexts, values: usize, addends: u32) -> Result<Vec<i64>, PaillierError> {
        self.fits(&sums.key)?;
        if addends == 0 || addends > self.addends_max {
            return Err(PaillierError::Addends { found: addends, addends_max: self.addends_max });
        }
        if sums.len() != self.plaintexts_for(values) {
            return Err(PaillierError::Count { expected: self.plaintexts_for(values), found: sums.len() });
        }
        let mut out = Vec::with_capacity(values);
        let bits = self.key_bits.bits();
        let mut words = Zeroizing::new(vec![0_u64; bits as usize / 64]);
        for (index, number) in sums.numbers.chunks_exact(sums.key.plain_limbs()).enumerate() {
            words_from_limbs(number, &mut words);
            let used = self.slots.min(values - out.len());
            for slot in 0..used {
                let sum = self.load(&words, slot, addends).ok_or(PaillierError::Sum { position: out.len() })?;
                out.push(sum);
            }
            let mut bit = used * self.slot_bits as usize;
            while bit < bits as usize {
                let count = (bits as usize - bit).min(32);
                if window_of(&words, u32::try_from(bit).unwrap_or(bits), u32::try_from(count).unwrap_or(1)) != 0 {
                    return Err(PaillierError::Unused { ciphertext: index });
                }
                bit += count;
            }
        }
        Ok(out)
    }

    fn fits(&self, key: &PublicKey) -> Result<(), PaillierError> {
        if key.bits() == self.key_bits { Ok(()) } else { Err(PaillierError::OtherKey) }
    }

    /// `value + 2^(value_bits − 1)` if it is in `0..2^value_bits`.
    fn store(&self, value: i64) -> Option<u64> {
        let stored = i128::from(value) + (1_i128 << (self.value_bits - 1));
        u64::try_from(stored).ok().filter(|&stored| stored >> (self.value_bits - 1) <= 1)
    }

    /// The sum in one slot.
    fn load(&self, words: &[u64], slot: usize, addends: u32) -> Option<i64> {
        let word = |i: usize| u128::from(words.get(i).copied().unwrap_or(0));
        let bit = slot * self.slot_bits as usize;
        let (i, shift) = (bit / 64, bit % 64);
        let mut stored = (word(i) | word(i + 1) << 64) >> shift;
        if shift > 0 {
            stored |= word(i + 2) << (128 - shift);
        }
        stored &= (1 << self.slot_bits) - 1;
        let addends = u128::from(addends);
        if stored > addends * ((1 << self.value_bits) - 1) {
            return None;
        }
        let sum = i128::try_from(stored).ok()? - i128::try_from(addends << (self.value_bits - 1)).ok()?;
        i64::try_from(sum).ok()
    }
}

/// Packed values, below n each. Wiped on drop.
pub struct Plaintexts {
    pub(super) key: PublicKey,
    /// 52-bit limbs, one number after the other.
    pub(super) numbers: Zeroizing<Vec<u64>>,
}

impl Plaintexts {
    pub(super) fn zeros(key: &PublicKey, count: usize) -> Self {
        Self { key: key.clone(), numbers: Zeroizing::new(vec![0; count * key.plain_limbs()]) }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len() / self.key.plain_limbs()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Adds the pair's mask for `context` modulo n, or subtracts it; the first plaintext here is number `first` of the
    /// tensor, so that chunks and whole tensors are masked alike.
    ///
    /// Each plaintext gets its own number, uniform in Z_n for anyone without the pair key (64 bits more than n are
    /// drawn and reduced: at most 2^-64 from uniform), over its whole width: no slot bits are spent, and the sum of
    /// both parties' plaintexts is what it was. Constant time.
    pub fn mask(&mut self, pair: &PairKey, context: &MaskContext, sign: Sign, first: u64) {
        const LABEL: &[u8] = b"spnn/1 pairwise Z_n mask";
        const BLOCK_BYTES: usize = 16;
        let limbs = self.key.plain_limbs();
        let bytes = self.key.bits().key_bytes() + 8;
        // Whole blocks per plaintext: a block then belongs to one plaintext.
        let stride = bytes.next_multiple_of(BLOCK_BYTES);
        let mut stream = pair.stream(LABEL, context);
        #[expect(clippy::expect_used, reason = "2^64 blocks are 2^58 ciphertexts: nobody gets there")]
        stream.try_seek(first.checked_mul(stride as u64).expect("position in the keystream")).expect("seek");

        let modulus = &self.key.0.modulus;
        let mut montgomery = Montgomery::new(modulus);
        let (mut low, mut high, mut value) = (montgomery.number(), montgomery.number(), montgomery.number());
        let mut keystream = Zeroizing::new(vec![0_u8; stride]);
        let mut words = Zeroizing::new(vec![0_u64; bytes / 8]);
        let mut wide = Zeroizing::new(vec![0_u64; 2 * limbs]);
        for group in self.numbers.chunks_mut(LANES * limbs) {
            for lane in 0..group.len() / limbs {
                keystream.fill(0);
                stream.apply_keystream(&mut keystream);
                words
                    .iter_mut()
                    .zip(keystream.as_chunks().0)
                    .for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
                limbs_from_words(&words, &mut wide);
                let (wide_low, wide_high) = wide.split_at(limbs);
                low.iter_mut().zip(wide_low).for_each(|(column, &limb)| column.0[lane] = limb);
                high.iter_mut().zip(wide_high).for_each(|(column, &limb)| column.0[lane] = limb);
            }
            montgomery.enter(&mut low, Some(&mut high));
            montgomery.leave(&mut low);
            if sign == Sign::Minus {
                subtract_from(&mut low, modulus.lanes());
            }
            gather(group, 0, &mut value);
            add(&mut value, &low);
            reduce_once(&mut value, modulus.lanes());
            scatter(&value, group);
        }
    }
}

impl fmt::Debug for Plaintexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintexts({} of {} bits)", self.len(), self.key.bits().bits())
    }
}
