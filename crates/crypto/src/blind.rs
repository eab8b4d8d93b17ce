//! Ids as points of a group, blinded by several parties: what private set intersection compares.
//!
//! An id becomes a point `P` of ristretto255 (RFC 9496), and each party multiplies it by a secret scalar of its own.
//! Multiplications commute, so a point that all parties have blinded is the same whoever began; without all their
//! scalars it tells nothing of the id (decisional Diffie–Hellman). Source: Meadows 1986; Huberman, Franklin and Hogg 1999.
//!
//! Every blinding here multiplies by twice the scalar: doubled points can be encoded many at a time with one inversion.

use crate::SecretRng;
use crate::parallel;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use sha2::{Digest, Sha512};
use std::borrow::Cow;
use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Bytes of a blinded id.
pub const BLINDED_BYTES: usize = 32;

/// An encoded point.
pub type BlindedId = [u8; BLINDED_BYTES];

/// A party's secret scalar, for one intersection.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct BlindingKey(Scalar);

/// Bytes that are no blinded id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("blinded id {index} is no point of the group, or its neutral element")]
pub struct NotAPoint {
    /// Which of those given, from 0.
    pub index: usize,
}

/// Points that one thread works on at a time: a few milliseconds.
const PIECE: usize = 128;

impl BlindingKey {
    /// A new key.
    #[must_use]
    pub fn new(rng: &mut SecretRng) -> Self {
        let mut wide = Zeroizing::new([0; 64]);
        rng.fill_bytes(wide.as_mut());
        Self(Scalar::from_bytes_mod_order_wide(&wide))
    }

    /// The key that [`to_bytes`](Self::to_bytes) gave; `None` if these are not such bytes.
    #[must_use]
    pub fn from_bytes(bytes: &Zeroizing<[u8; 32]>) -> Option<Self> {
        Option::from(Scalar::from_canonical_bytes(**bytes)).filter(|s| *s != Scalar::ZERO).map(Self)
    }

    /// The key's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Hashes ids to the group under `salt` and blinds them, on `threads` threads. Private input: ids. Whoever receives the
    /// result learns their number.
    #[must_use]
    pub fn blind_ids(&self, salt: &[u8; 32], ids: &[Cow<'_, str>], threads: usize) -> Vec<BlindedId> {
        let mut out = vec![[0; BLINDED_BYTES]; ids.len()];
        let pieces = out.chunks_mut(PIECE).zip(ids.chunks(PIECE));
        parallel::for_each(
            threads,
            pieces,
            || (),
            |(), (out, ids)| {
                let points: Vec<RistrettoPoint> = ids.iter().map(|id| hash_to_group(salt, id) * self.0).collect();
                encode_doubled(&points, out);
            },
        );
        out
    }

    /// Blinds what another party has blinded, in place, on `threads` threads.
    ///
    /// # Errors
    /// [`NotAPoint`] with the first that is none; `blinded` is then unspecified.
    pub fn blind(&self, blinded: &mut [BlindedId], threads: usize) -> Result<(), NotAPoint> {
        let wrong = Mutex::new(None::<usize>);
        let pieces = blinded.chunks_mut(PIECE).enumerate();
        parallel::for_each(
            threads,
            pieces,
            || (),
            |(), (piece, blinded)| {
                let mut points = Vec::with_capacity(blinded.len());
                for (at, bytes) in blinded.iter().enumerate() {
                    match CompressedRistretto(*bytes).decompress().filter(|p| !p.is_identity()) {
                        Some(point) => points.push(point * self.0),
                        None => {
                            let index = piece * PIECE + at;
                            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
                            *wrong = Some(wrong.map_or(index, |first| first.min(index)));
                            return;
                        }
                    }
                }
                encode_doubled(&points, blinded);
            },
        );
        match wrong.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(index) => Err(NotAPoint { index }),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BlindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlindingKey(..)")
    }
}

/// A point whose discrete logarithm to any other id's nobody knows (RFC 9496, element derivation).
fn hash_to_group(salt: &[u8; 32], id: &str) -> RistrettoPoint {
    let mut hash = Sha512::new();
    hash.update(b"spnn id as point v1\0");
    hash.update(salt);
    hash.update(id.as_bytes());
    RistrettoPoint::from_uniform_bytes(&hash.finalize().into())
}

/// The encodings of the doubled points.
fn encode_doubled(points: &[RistrettoPoint], out: &mut [BlindedId]) {
    for (out, encoded) in out.iter_mut().zip(RistrettoPoint::double_and_compress_batch(points)) {
        *out = encoded.to_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: [u8; 32] = [7; 32];

    fn key() -> BlindingKey {
        BlindingKey::new(&mut SecretRng::from_system().unwrap())
    }

    fn ids(texts: &[String]) -> Vec<Cow<'_, str>> {
        texts.iter().map(|t| Cow::Borrowed(t.as_str())).collect()
    }

    #[test]
    fn all_orders_of_blinding_agree_and_salts_and_ids_do_not() {
        let keys = [key(), key(), key()];
        let texts: Vec<String> = (0..300).map(|i| format!("id {i}")).collect();
        let blinded = |order: [usize; 3], salt| {
            let mut points = keys[order[0]].blind_ids(&salt, &ids(&texts), 2);
            keys[order[1]].blind(&mut points, 2).unwrap();
            keys[order[2]].blind(&mut points, 1).unwrap();
            points
        };
        let points = blinded([0, 1, 2], SALT);
        assert_eq!(points, blinded([2, 0, 1], SALT));
        assert_eq!(points.iter().collect::<std::collections::HashSet<_>>().len(), 300);
        assert!(blinded([0, 1, 2], [8; 32]).iter().all(|p| !points.contains(p)));
    }

    #[test]
    fn what_is_no_point_is_named_by_its_place() {
        let key = key();
        let texts: Vec<String> = (0..300).map(|i| i.to_string()).collect();
        let points = key.blind_ids(&SALT, &ids(&texts), 2);
        for (index, bad) in [(0, [0xff; 32]), (200, [0; 32]), (299, [1; 32])] {
            let mut points = points.clone();
            points[index] = bad;
            assert_eq!(key.blind(&mut points, 2), Err(NotAPoint { index }));
        }
    }

    #[test]
    fn a_key_reads_back_and_is_not_shown() {
        let key = key();
        let again = BlindingKey::from_bytes(&key.to_bytes()).unwrap();
        let id = [Cow::Borrowed("a")];
        assert_eq!(key.blind_ids(&SALT, &id, 1), again.blind_ids(&SALT, &id, 1));
        assert_eq!(format!("{key:?}"), "BlindingKey(..)");
        assert!(BlindingKey::from_bytes(&Zeroizing::new([0; 32])).is_none());
        assert!(BlindingKey::from_bytes(&Zeroizing::new([0xff; 32])).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_blind_or_are_refused(bytes in any::<[u8; 32]>()) {
            let _ = key().blind(&mut [bytes], 1);
        }
    }
}
