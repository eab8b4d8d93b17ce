//! Masks that two roles derive alike: those of two parties cancel in the sum, those of a party and the dealer are the
//! party's shares of triples.

use crate::RingElement;
use aes::Aes128;
use ctr::Ctr64LE;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A secret of exactly two roles: from an authenticated key exchange between them, or sent over a channel of theirs.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PairKey([u8; 32]);

impl PairKey {
    /// Takes over key material that only the two roles know.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A keyed digest (HMAC-SHA-256) that only the two parties can make or test.
    #[must_use]
    pub fn digest(&self, label: &str, data: &[u8]) -> [u8; 32] {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC key");
        mac.update(&(label.len() as u64).to_le_bytes());
        mac.update(label.as_bytes());
        mac.update(data);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}

/// What a mask is for. Two different contexts give independent masks; one context must never cover two plaintexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskContext {
    /// Digest of the agreed session.
    pub session: [u8; 32],
    /// Number of this start of the session, agreed by all and durable before the first masked message.
    pub incarnation: u64,
    /// Training, evaluation or prediction.
    pub phase: u8,
    /// Pass over the rows.
    pub epoch: u32,
    /// Mini-batch within the epoch.
    pub batch: u32,
    /// Which tensor of the step.
    pub tensor: u8,
}

/// Which of the two parties adds and which subtracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Add the mask.
    Plus,
    /// Subtract the mask.
    Minus,
}

impl Sign {
    /// The other one's.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Self::Plus => Self::Minus,
            Self::Minus => Self::Plus,
        }
    }
}

/// Keystream per pass: fits the first-level cache beside the values it is added to.
const CHUNK_BYTES: usize = 4096;
/// Block of AES.
const BLOCK_BYTES: u64 = 16;

impl PairKey {
    /// Adds the pair's mask for `context` to `values`, or subtracts it.
    ///
    /// The mask is uniform over the ring for anyone without the key: AES-128 in counter mode, keyed by
    /// HKDF-SHA-256(pair key, context). Nothing is disclosed here.
    pub fn mask<R: RingElement>(&self, context: &MaskContext, sign: Sign, values: &mut [R]) {
        let mut stream = self.stream(b"spnn/1 pairwise mask", context);
        let mut keystream = Zeroizing::new([0_u8; CHUNK_BYTES]);
        add_keystream(&mut stream, sign, values, &mut keystream);
    }

    /// A seed for `context` that is uniform for anyone without the key; `number` tells several apart.
    #[must_use]
    pub fn seed(&self, context: &MaskContext, number: u32) -> Zeroizing<[u8; 32]> {
        let mut stream = self.stream(b"spnn/1 seed of a mask", context);
        let mut seed = Zeroizing::new([0; 32]);
        stream.seek(u64::from(number) * seed.len() as u64);
        stream.write_keystream(&mut *seed);
        seed
    }

    /// As [`mask`](Self::mask) for some `rows` of one long matrix, `[2^32, width]`: `values` is `[rows.len(), width]`. A
    /// row has the same mask in whatever order and company it is asked for.
    ///
    /// # Panics
    /// If `values` is not a whole number of words for each row, which is the caller's own shape.
    pub fn mask_rows<R: RingElement>(&self, context: &MaskContext, sign: Sign, rows: &[u32], values: &mut [R]) {
        let width = values.len() / rows.len().max(1);
        assert_eq!(values.len(), rows.len() * width, "rows of different widths");
        if width == 0 {
            return;
        }
        let mut stream = self.stream(b"spnn/1 mask of rows", context);
        let mut keystream = Zeroizing::new([0_u8; CHUNK_BYTES]);
        // Every row begins a block of the cipher: seeking there costs nothing.
        let stride = ((width * size_of::<R>()) as u64).next_multiple_of(BLOCK_BYTES);
        for (row, values) in rows.iter().zip(values.chunks_exact_mut(width)) {
            stream.seek(u64::from(*row) * stride);
            add_keystream(&mut stream, sign, values, &mut keystream);
        }
    }

    /// The keystream of one context; `label` separates the groups in which masks are added.
    pub(crate) fn stream(&self, label: &[u8], context: &MaskContext) -> Ctr64LE<Aes128> {
        let info = [
            label,
            &context.session,
            &context.incarnation.to_le_bytes(),
            &[context.phase],
            &context.epoch.to_le_bytes(),
            &context.batch.to_le_bytes(),
            &[context.tensor],
        ];
        let mut material = Zeroizing::new([0_u8; 32]);
        #[expect(clippy::expect_used, reason = "HKDF-SHA-256 gives up to 8,160 bytes; 32 are asked for")]
        Hkdf::<Sha256>::new(None, &self.0)
            .expand_multi_info(&info, material.as_mut())
            .expect("32 bytes of HKDF output");
        let (key, nonce) = material.split_at(16);
        #[expect(clippy::expect_used, reason = "both halves are 16 bytes")]
        Ctr64LE::<Aes128>::new_from_slices(key, nonce).expect("16-byte key and nonce")
    }
}

fn add_keystream<R: RingElement>(
    stream: &mut Ctr64LE<Aes128>,
    sign: Sign,
    values: &mut [R],
    keystream: &mut [u8; CHUNK_BYTES],
) {
    for values in values.chunks_mut(CHUNK_BYTES / size_of::<R>()) {
        let bytes = &mut keystream[..size_of_val(values)];
        stream.write_keystream(bytes);
        // Unaligned reads cost nothing here and spare an alignment argument.
        let words = bytes.chunks_exact(size_of::<R>()).map(bytemuck::pod_read_unaligned::<R>);
        match sign {
            Sign::Plus => values.iter_mut().zip(words).for_each(|(v, m)| *v = v.add(m)),
            Sign::Minus => values.iter_mut().zip(words).for_each(|(v, m)| *v = v.sub(m)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(batch: u32, tensor: u8) -> MaskContext {
        MaskContext { session: [7; 32], incarnation: 1, phase: 0, epoch: 1, batch, tensor }
    }

    fn mask_words(key: &PairKey, context: &MaskContext, n: usize) -> Vec<u64> {
        let mut words = vec![0_u64; n];
        key.mask(context, Sign::Plus, &mut words);
        words
    }

    /// Computed independently:
    /// ```python
    /// import hmac, hashlib
    /// from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
    /// prk = hmac.digest(b'\0' * 32, b'\x09' * 32, 'sha256')
    /// info = (b'spnn/1 pairwise mask' + b'\x07' * 32 + (1).to_bytes(8, 'little') + b'\0'
    ///         + (1).to_bytes(4, 'little') + (3).to_bytes(4, 'little') + b'\0')
    /// okm = hmac.digest(prk, info + b'\x01', 'sha256')
    /// ecb = Cipher(algorithms.AES(okm[:16]), modes.ECB()).encryptor()
    /// print(ecb.update(okm[16:32]).hex())  # block i: counter (the first 8 bytes, little-endian) plus i
    /// ```
    #[test]
    fn known_answer() {
        let words = mask_words(&PairKey::new([9; 32]), &context(3, 0), 2);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "cf7cb8003687182ce16f79a526c4fae1");
    }

    #[test]
    fn every_part_of_the_context_separates() {
        let key = PairKey::new([9; 32]);
        let base = context(3, 0);
        let others = [
            MaskContext { session: [8; 32], ..base },
            MaskContext { incarnation: 2, ..base },
            MaskContext { phase: 1, ..base },
            MaskContext { epoch: 2, ..base },
            MaskContext { batch: 4, ..base },
            MaskContext { tensor: 1, ..base },
        ];
        let first = mask_words(&key, &base, 64);
        for other in others {
            let second = mask_words(&key, &other, 64);
            assert!(first.iter().all(|w| !second.contains(w)), "{other:?} repeats words of {base:?}");
        }
        assert_ne!(first, mask_words(&PairKey::new([10; 32]), &base, 64));
    }

    #[test]
    fn a_row_has_one_mask() {
        let key = PairKey::new([9; 32]);
        for width in [1, 2, 3, 28, 700] {
            let rows: Vec<u32> = (0..40).chain([u32::MAX]).collect();
            let mut all = vec![0_u64; rows.len() * width];
            key.mask_rows(&context(0, 5), Sign::Plus, &rows, &mut all);
            // A block of the cipher is two words; no word of any row comes twice.
            let mut words = all.clone();
            words.sort_unstable();
            words.dedup();
            assert_eq!(words.len(), all.len(), "width {width}");
            for picked in [vec![7, 3, 40], vec![0], vec![39, 39]] {
                let rows: Vec<u32> = picked.iter().map(|&i| rows[i]).collect();
                let mut some = vec![0_u64; rows.len() * width];
                key.mask_rows(&context(0, 5), Sign::Plus, &rows, &mut some);
                for (row, i) in some.chunks(width).zip(picked) {
                    assert_eq!(row, &all[i * width..(i + 1) * width], "width {width} row {i}");
                }
            }
        }
        // Other than the mask of the same context that is no matrix.
        let (mut rows, mut flat) = ([0_u64; 8], [0_u64; 8]);
        key.mask_rows(&context(0, 5), Sign::Plus, &[0], &mut rows);
        key.mask(&context(0, 5), Sign::Plus, &mut flat);
        assert_ne!(rows, flat);
    }

    #[test]
    fn masked_bytes_are_uniform() {
        // Chi-square over 2^24 bytes, 255 degrees of freedom: mean 255, sd 22.6; six sd on either side.
        let key = PairKey::new([1; 32]);
        let mut counts = [0_u64; 256];
        for byte in mask_words(&key, &context(0, 0), 1 << 21).iter().flat_map(|w| w.to_le_bytes()) {
            counts[usize::from(byte)] += 1;
        }
        let expected = f64::from(1 << 24) / 256.0;
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let chi: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
        assert!((120.0..390.0).contains(&chi), "chi-square {chi}");
    }

    #[test]
    fn a_key_is_not_shown() {
        assert_eq!(format!("{:?}", PairKey::new([0xab; 32])), "PairKey(..)");
    }

    proptest! {
        #[test]
        fn masks_of_a_pair_cancel(values in proptest::collection::vec(any::<u32>(), 0..3000), seed in any::<[u8; 32]>()) {
            let key = PairKey::new(seed);
            let mut masked = values.clone();
            key.mask(&context(1, 0), Sign::Plus, &mut masked);
            key.mask(&context(1, 0), Sign::Minus, &mut masked);
            prop_assert_eq!(masked, values);
        }
    }
}
