//! Ciphertexts and public keys as bytes.
//!
//! | bytes | field |
//! | --- | --- |
//! | 0 | version, 1 |
//! | 1 | number of the preset |
//! | 2 | kind: 1 fresh ciphertext, 2 ciphertext, 3 public key, 4 relinearization key, 5 rotation keys |
//! | 3 | level of a ciphertext, else 0 |
//! | 4 | parts of a ciphertext, else 0 |
//! | 5–12 | scale of a ciphertext, `f64`, else 0 |
//!
//! Then, little-endian, without gaps: 32 bytes of seed where a polynomial is uniform (1, 3, and each key of 4 and 5); the
//! polynomials, limb after limb, each coefficient in as many bits as its prime has. Rotation keys: their number in two bytes,
//! then for each the steps in four bytes and its key, in ascending order of steps.
//!
//! What is read is checked: exactly as many bytes as there should be, before memory is taken for them, and every coefficient
//! below its prime.

use crate::keys::{PublicKey, RelinearizationKey, RotationKeys, SwitchingKey};
use crate::{Ciphertext, CkksError, Context, FreshCiphertext, Modulus};
use std::sync::Arc;
use thiserror::Error;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// Too few or too many.
    #[error("{found} bytes; expected {expected}")]
    Length {
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A field of the header.
    #[error("{field} is {found}; expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A coefficient that its prime does not allow.
    #[error("a coefficient of limb {limb} is not below its prime")]
    Coefficient {
        /// Which limb of its polynomial.
        limb: usize,
    },
}

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 13;
const SEED_BYTES: usize = 32;
/// More parts than any product of shallow networks keeps.
const PARTS_MAX: usize = 9;

#[derive(Clone, Copy)]
enum Kind {
    Fresh = 1,
    Ciphertext = 2,
    PublicKey = 3,
    Relinearization = 4,
    Rotations = 5,
}

impl FreshCiphertext {
    /// How many bytes one of `level` has.
    #[must_use]
    pub fn byte_length(context: &Context, level: usize) -> usize {
        HEADER_BYTES + SEED_BYTES + polynomial_bytes(&context.limbs()[..=level], context.n())
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { context, c0, seed, level, scale } = self;
        let mut bytes = Vec::with_capacity(Self::byte_length(context, *level));
        header(&mut bytes, context, Kind::Fresh, *level, 2, *scale);
        bytes.extend(seed);
        write(&mut bytes, context.limbs(), context.n(), c0);
        bytes
    }

    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(context: &Arc<Context>, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { context, bytes, total: bytes.len() };
        let (level, parts, scale) = reader.ciphertext_header(Kind::Fresh)?;
        is(parts == 2, "parts", "2", parts)?;
        reader.has_in_all(Self::byte_length(context, level))?;
        let seed = reader.seed();
        let c0 = reader.polynomial(&context.limbs()[..=level])?;
        Ok(Self { context: Arc::clone(context), c0, seed, level, scale })
    }
}

/// Bytes of a word.
const SLACK: usize = 8;

/// Many ciphertexts of one level and scale, kept as clients send them: their first parts packed, their second parts as seeds.
pub struct FreshBatch {
    pub(crate) context: Arc<Context>,
    pub(crate) level: usize,
    pub(crate) scale: f64,
    pub(crate) seeds: Vec<[u8; SEED_BYTES]>,
    /// One after the other, limb after limb, and [`SLACK`] bytes, so that every coefficient can be read as a word.
    packed: Vec<u8>,
    /// For checks.
    limb: Vec<u64>,
}

impl FreshBatch {
    /// None so far, with room for `count`.
    ///
    /// # Errors
    /// [`CkksError::Level`] if the preset has no such level.
    pub fn with_room(context: &Arc<Context>, level: usize, scale: f64, count: usize) -> Result<Self, CkksError> {
        let highest = context.preset().level_max();
        if level > highest {
            return Err(CkksError::Level { expected: highest, found: level });
        }
        let mut packed = Vec::with_capacity(count * polynomial_bytes(&context.limbs()[..=level], context.n()) + SLACK);
        packed.resize(SLACK, 0);
        let (context, limb) = (Arc::clone(context), Vec::new());
        Ok(Self { context, level, scale, seeds: Vec::with_capacity(count), packed, limb })
    }

    /// Checks a ciphertext and adds it.
    ///
    /// # Errors
    /// [`WireError`], also for another level or scale than this batch has.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let context = Arc::clone(&self.context);
        let mut reader = Reader { context: &context, bytes, total: bytes.len() };
        let (level, parts, scale) = reader.ciphertext_header(Kind::Fresh)?;
        is(parts == 2, "parts", "2", parts)?;
        is(level == self.level, "level", &self.level.to_string(), level)?;
        is(scale.to_bits() == self.scale.to_bits(), "scale", &self.scale.to_string(), scale)?;
        reader.has_in_all(FreshCiphertext::byte_length(&context, level))?;
        let seed = reader.seed();
        let packed = reader.bytes;
        for limb in 0..=level {
            let modulus = context.limbs()[limb];
            self.limb.clear();
            let (own, rest) = reader.bytes.split_at(limb_bytes(modulus, context.n()));
            unpack(own, modulus, &mut self.limb);
            reader.bytes = rest;
            // All of them, so that nothing depends on where the first is.
            let largest = self.limb.iter().fold(0, |largest, x| largest.max(*x));
            if largest >= modulus.value() {
                return Err(WireError::Coefficient { limb });
            }
        }
        self.seeds.push(seed);
        self.packed.truncate(self.packed.len() - SLACK);
        self.packed.extend_from_slice(packed);
        self.packed.extend([0; SLACK]);
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seeds.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seeds.is_empty()
    }

    /// Forgets all of them, and keeps the memory.
    pub fn clear(&mut self) {
        self.seeds.clear();
        self.packed.clear();
        self.packed.resize(SLACK, 0);
    }

    /// The first part of ciphertext i, from a place of a limb on that a multiple of 8 is.
    pub(crate) fn first_part(&self, i: usize, limb: usize, place: usize, out: &mut [u64]) {
        let (limbs, n) = (self.context.limbs(), self.context.n());
        let at = i * polynomial_bytes(&limbs[..=self.level], n) + polynomial_bytes(&limbs[..limb], n);
        let (width, mask) = (limbs[limb].bits() as usize, (1_u64 << limbs[limb].bits()) - 1);
        let start = at + place / 8 * width;
        let packed = &self.packed[start..start + out.len() * width / 8 + SLACK];
        for (i, x) in out.iter_mut().enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(&packed[i * width / 8..][..8]);
            *x = u64::from_le_bytes(word) >> (i * width % 8) & mask;
        }
    }
}

impl Ciphertext {
    /// How many bytes one of `level` with so many parts has.
    #[must_use]
    pub fn byte_length(context: &Context, level: usize, parts: usize) -> usize {
        HEADER_BYTES + parts * polynomial_bytes(&context.limbs()[..=level], context.n())
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { context, parts, level, scale } = self;
        let mut bytes = Vec::with_capacity(Self::byte_length(context, *level, parts.len()));
        header(&mut bytes, context, Kind::Ciphertext, *level, parts.len(), *scale);
        parts.iter().for_each(|part| write(&mut bytes, context.limbs(), context.n(), part));
        bytes
    }

    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(context: &Arc<Context>, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { context, bytes, total: bytes.len() };
        let (level, parts, scale) = reader.ciphertext_header(Kind::Ciphertext)?;
        is((2..=PARTS_MAX).contains(&parts), "parts", &format!("2 to {PARTS_MAX}"), parts)?;
        reader.has_in_all(Self::byte_length(context, level, parts))?;
        let limbs = &context.limbs()[..=level];
        let parts = (0..parts).map(|_| reader.polynomial(limbs)).collect::<Result<_, _>>()?;
        Ok(Self { context: Arc::clone(context), parts, level, scale })
    }
}

impl PublicKey {
    /// How many bytes one has.
    #[must_use]
    pub fn byte_length(context: &Context) -> usize {
        HEADER_BYTES + SEED_BYTES + polynomial_bytes(context.limbs(), context.n())
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(&mut bytes, &self.context, Kind::PublicKey, 0, 0, 0.0);
        bytes.extend(self.seed);
        write(&mut bytes, self.context.limbs(), self.context.n(), &self.b);
        bytes
    }

    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(context: &Arc<Context>, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { context, bytes, total: bytes.len() };
        reader.key_header(Kind::PublicKey)?;
        reader.has_in_all(Self::byte_length(context))?;
        let seed = reader.seed();
        Ok(Self::of_parts(context, reader.polynomial(context.limbs())?, seed))
    }
}

impl RelinearizationKey {
    /// How many bytes one has.
    #[must_use]
    pub fn byte_length(context: &Context) -> usize {
        HEADER_BYTES + SwitchingKey::byte_length(context)
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(&mut bytes, self.context(), Kind::Relinearization, 0, 0, 0.0);
        self.0.write(&mut bytes);
        bytes
    }

    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(context: &Arc<Context>, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { context, bytes, total: bytes.len() };
        reader.key_header(Kind::Relinearization)?;
        reader.has_in_all(Self::byte_length(context))?;
        Ok(Self(reader.switching_key()?))
    }
}

impl RotationKeys {
    /// How many bytes those for `count` rotations have.
    #[must_use]
    pub fn byte_length(context: &Context, count: usize) -> usize {
        HEADER_BYTES + 2 + count * (4 + SwitchingKey::byte_length(context))
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        header(&mut bytes, self.context(), Kind::Rotations, 0, 0, 0.0);
        // There are fewer rotations than slots.
        bytes.extend((self.len() as u16).to_le_bytes());
        for (steps, key) in self.iter() {
            bytes.extend((steps as u32).to_le_bytes());
            key.write(&mut bytes);
        }
        bytes
    }

    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(context: &Arc<Context>, bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader { context, bytes, total: bytes.len() };
        reader.key_header(Kind::Rotations)?;
        let count = u16::from_le_bytes(reader.array()?);
        let slots = context.preset().slots();
        is(usize::from(count) < slots, "the number of rotations", &format!("below {slots}"), count)?;
        reader.has_in_all(Self::byte_length(context, count.into()))?;
        let mut keys = Vec::new();
        let mut before = 0;
        for _ in 0..count {
            let steps = u32::from_le_bytes(reader.array()?) as usize;
            is(steps > before && steps < slots, "steps", &format!("{} to {}", before + 1, slots - 1), steps)?;
            before = steps;
            keys.push((steps, reader.switching_key()?));
        }
        Ok(Self::of_keys(context, keys))
    }
}

impl SwitchingKey {
    fn byte_length(context: &Context) -> usize {
        SEED_BYTES + context.digit_count() * polynomial_bytes(context.moduli(), context.n())
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.seed);
        for [b, _] in &self.digits {
            write(bytes, self.context.moduli(), self.context.n(), b);
        }
    }
}

/// What has not been read yet.
struct Reader<'a> {
    context: &'a Arc<Context>,
    bytes: &'a [u8],
    total: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let Some((head, rest)) = self.bytes.split_first_chunk() else {
            return Err(WireError::Length { expected: self.total - self.bytes.len() + N, found: self.total });
        };
        self.bytes = rest;
        Ok(*head)
    }

    fn has_in_all(&self, expected: usize) -> Result<(), WireError> {
        if self.total == expected { Ok(()) } else { Err(WireError::Length { expected, found: self.total }) }
    }

    /// Level, parts, scale.
    fn header(&mut self, kind: Kind) -> Result<(usize, usize, f64), WireError> {
        let [version, preset, found, level, parts] = self.array()?;
        let scale = f64::from_le_bytes(self.array()?);
        is(version == VERSION, "version", &VERSION.to_string(), version)?;
        let ours = self.context.preset();
        is(preset == ours.number(), "preset", &format!("{} ({})", ours.number(), ours.name()), preset)?;
        is(found == kind as u8, "kind", &(kind as u8).to_string(), found)?;
        Ok((level.into(), parts.into(), scale))
    }

    fn ciphertext_header(&mut self, kind: Kind) -> Result<(usize, usize, f64), WireError> {
        let (level, parts, scale) = self.header(kind)?;
        let highest = self.context.preset().level_max();
        is(level <= highest, "level", &format!("at most {highest}"), level)?;
        let bits = self.context.log2_modulus(level);
        let fits = scale >= 1.0 && scale.log2() < bits;
        is(fits, "scale", &format!("1 to 2^{bits:.1}"), scale)?;
        Ok((level, parts, scale))
    }

    fn key_header(&mut self, kind: Kind) -> Result<(), WireError> {
        let (level, parts, scale) = self.header(kind)?;
        is(level == 0 && parts == 0 && scale.to_bits() == 0, "the rest of a key's header", "0", "something else")
    }

    /// After the length was checked.
    fn seed(&mut self) -> [u8; SEED_BYTES] {
        self.array().unwrap_or_default()
    }

    fn polynomial(&mut self, moduli: &[Modulus]) -> Result<Vec<u64>, WireError> {
        let n = self.context.n();
        let mut polynomial = Vec::with_capacity(moduli.len() * n);
        for (limb, modulus) in moduli.iter().enumerate() {
            let (packed, rest) = self.bytes.split_at(limb_bytes(*modulus, n));
            self.bytes = rest;
            unpack(packed, *modulus, &mut polynomial);
            if polynomial[limb * n..].iter().any(|x| *x >= modulus.value()) {
                return Err(WireError::Coefficient { limb });
            }
        }
        Ok(polynomial)
    }

    fn switching_key(&mut self) -> Result<SwitchingKey, WireError> {
        let seed = self.seed();
        let moduli = self.context.moduli();
        let digits = (0..self.context.digit_count()).map(|_| self.polynomial(moduli)).collect::<Result<Vec<_>, _>>()?;
        Ok(SwitchingKey::of_digits(self.context, seed, digits))
    }
}

fn is(fits: bool, field: &'static str, expected: &str, found: impl std::fmt::Display) -> Result<(), WireError> {
    if fits {
        return Ok(());
    }
    Err(WireError::Field { field, expected: expected.to_owned(), found: found.to_string() })
}

fn header(bytes: &mut Vec<u8>, context: &Context, kind: Kind, level: usize, parts: usize, scale: f64) {
    // Levels and parts are fewer than 256.
    bytes.extend([VERSION, context.preset().number(), kind as u8, level as u8, parts as u8]);
    bytes.extend(scale.to_le_bytes());
}

fn limb_bytes(modulus: Modulus, n: usize) -> usize {
    n / 8 * modulus.bits() as usize
}

fn polynomial_bytes(moduli: &[Modulus], n: usize) -> usize {
    moduli.iter().map(|modulus| limb_bytes(*modulus, n)).sum()
}

fn write(bytes: &mut Vec<u8>, moduli: &[Modulus], n: usize, polynomial: &[u64]) {
    for (limb, modulus) in polynomial.chunks_exact(n).zip(moduli) {
        pack(limb, *modulus, bytes);
    }
}

/// Appends coefficients without the bits that none of them has.
fn pack(limb: &[u64], modulus: Modulus, bytes: &mut Vec<u8>) {
    let (mut at, end) = (bytes.len(), bytes.len() + limb_bytes(modulus, limb.len()));
    bytes.resize(end + 8, 0);
    // What is not yet a whole byte: 7 bits at most, to which 51 are added.
    let (mut held, mut bits) = (0_u64, 0);
    for x in limb {
        held |= x << bits;
        bits += modulus.bits();
        // Whole words, whose last bytes the next one overwrites.
        bytes[at..at + 8].copy_from_slice(&held.to_le_bytes());
        at += bits as usize / 8;
        held >>= bits & !7;
        bits &= 7;
    }
    bytes.truncate(end);
}

/// The coefficients of a limb, which may be too large.
fn unpack(packed: &[u8], modulus: Modulus, polynomial: &mut Vec<u64>) {
    let width = modulus.bits() as usize;
    polynomial.extend((0..packed.len() * 8 / width).map(|i| coefficient(packed, i * width, modulus)));
}

/// The coefficient that begins at a bit.
#[inline(always)]
fn coefficient(packed: &[u8], bit: usize, modulus: Modulus) -> u64 {
    let bytes = &packed[bit / 8..];
    let word = bytes.first_chunk::<8>().map_or_else(|| last_word(bytes), |word| u64::from_le_bytes(*word));
    word >> (bit % 8) & ((1 << modulus.bits()) - 1)
}

/// The last, fewer than eight, bytes as a word.
fn last_word(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plaintext, Preset, SecretKey};
    use proptest::prelude::*;
    use spnn_crypto::SecretRng;

    struct Made {
        context: Arc<Context>,
        secret: SecretKey,
        fresh: Vec<u8>,
        product: Vec<u8>,
        public: Vec<u8>,
        relinearization: Vec<u8>,
        rotations: Vec<u8>,
    }

    fn made() -> Made {
        let context = Context::new(&Preset::N8192).unwrap();
        let mut rng = SecretRng::from_system().unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let plain = Plaintext::encode(&context, &[0.5, -0.25], 40_f64.exp2(), 1).unwrap();
        let fresh = secret.encrypt(&plain, &mut rng).unwrap();
        let both = fresh.expand();
        Made {
            fresh: fresh.to_bytes(),
            product: both.mul(&both).unwrap().to_bytes(),
            public: secret.public_key(&mut rng).to_bytes(),
            relinearization: secret.relinearization_key(&mut rng).unwrap().to_bytes(),
            rotations: secret.rotation_keys(&[1, 7], &mut rng).unwrap().to_bytes(),
            context,
            secret,
        }
    }

    #[test]
    fn what_is_read_is_what_was_written() {
        let Made { context, secret, fresh, product, public, relinearization, rotations } = made();
        assert_eq!(fresh.len(), FreshCiphertext::byte_length(&context, 1));
        assert_eq!(fresh.len(), 13 + 32 + 8192 * (48 + 40) / 8);
        assert_eq!(product.len(), Ciphertext::byte_length(&context, 1, 3));
        assert_eq!(relinearization.len(), RelinearizationKey::byte_length(&context));
        assert_eq!(rotations.len(), RotationKeys::byte_length(&context, 2));
        let again = FreshCiphertext::from_bytes(&context, &fresh).unwrap();
        assert_eq!(again.to_bytes(), fresh);
        let slots = secret.decrypt(&again.expand()).unwrap().decode();
        assert!((slots[0] - 0.5).abs() < 1e-6 && (slots[1] + 0.25).abs() < 1e-6);
        let read = Ciphertext::from_bytes(&context, &product).unwrap();
        assert_eq!(read.to_bytes(), product);
        assert_eq!(PublicKey::from_bytes(&context, &public).unwrap().to_bytes(), public);
        let key = RelinearizationKey::from_bytes(&context, &relinearization).unwrap();
        assert_eq!(key.to_bytes(), relinearization);
        let slots = secret.decrypt(&read.relinearize(&key).unwrap()).unwrap().decode();
        assert!((slots[0] - 0.25).abs() < 1e-6 && (slots[1] - 0.0625).abs() < 1e-6);
        let keys = RotationKeys::from_bytes(&context, &rotations).unwrap();
        assert_eq!(keys.to_bytes(), rotations);
        let turned = again.expand().rotate(1, &keys).unwrap();
        assert!((secret.decrypt(&turned).unwrap().decode()[0] + 0.25).abs() < 1e-6);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let Made { context, fresh, product, relinearization, rotations, .. } = made();
        let of = |at: usize, byte: u8| {
            let mut changed = fresh.clone();
            changed[at] = byte;
            FreshCiphertext::from_bytes(&context, &changed).err().map(|e| e.to_string()).unwrap_or_default()
        };
        for (at, byte, named) in [
            (0, 2, "version"),
            (1, 1, "preset is 1"),
            (2, 2, "kind"),
            (3, 9, "level"),
            (4, 3, "parts"),
            (3, 0, "bytes; expected"),
            (12, 0xff, "scale"),
            (12, 0x7f, "scale"),
        ] {
            assert!(of(at, byte).contains(named), "{at}: {}", of(at, byte));
        }
        let large = [&fresh[..45], &vec![0xff; fresh.len() - 45]].concat();
        let error = FreshCiphertext::from_bytes(&context, &large).err();
        assert_eq!(error, Some(WireError::Coefficient { limb: 0 }));
        for length in [0, 3, 12, 13, 44, fresh.len() - 1] {
            assert!(FreshCiphertext::from_bytes(&context, &fresh[..length]).is_err(), "{length}");
        }
        let longer = [&fresh[..], &[0]].concat();
        assert!(matches!(FreshCiphertext::from_bytes(&context, &longer).err(), Some(WireError::Length { .. })));
        assert!(
            Ciphertext::from_bytes(&context, &fresh).is_err()
                && FreshCiphertext::from_bytes(&context, &product).is_err()
        );
        assert!(RotationKeys::from_bytes(&context, &relinearization).is_err());
        // Twice the same rotation, and one by nothing.
        for (at, steps) in [(15, 7_u32), (15, 0), (15, 4096)] {
            let mut changed = rotations.clone();
            changed[at..at + 4].copy_from_slice(&steps.to_le_bytes());
            assert!(RotationKeys::from_bytes(&context, &changed).is_err(), "{steps}");
        }
        let other = Context::new(&Preset::N4096).unwrap();
        assert!(FreshCiphertext::from_bytes(&other, &fresh).err().unwrap().to_string().contains("preset is 2"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), plausible in any::<bool>(), kind in 1_u8..6) {
            thread_local!(static CONTEXT: Arc<Context> = Context::new(&Preset::N8192).unwrap());
            if plausible && bytes.len() > 4 {
                bytes[..3].copy_from_slice(&[1, 2, kind]);
            }
            CONTEXT.with(|context| {
                // Too short for any of them, whatever they say.
                assert!(FreshCiphertext::from_bytes(context, &bytes).is_err());
                assert!(Ciphertext::from_bytes(context, &bytes).is_err());
                assert!(PublicKey::from_bytes(context, &bytes).is_err());
                assert!(RelinearizationKey::from_bytes(context, &bytes).is_err());
                // None is as good as any number of rotations.
                let _ = RotationKeys::from_bytes(context, &bytes);
            });
        }
    }
}
