//! What arrives of CKKS: ciphertexts and keys.

use super::decoders::readable;
use super::input::Input;
use spnn::crypto::SecretRng;
use spnn_ckks::{
    Ciphertext, Context, FreshBatch, FreshCiphertext, Plaintext, Preset, PublicKey, RelinearizationKey, RotationKeys,
    SecretKey, WireError,
};
use std::sync::{Arc, LazyLock};

/// Reads bytes as one kind, and writes it again.
type Again = fn(&Arc<Context>, &[u8]) -> Result<Vec<u8>, WireError>;

struct Made {
    context: Arc<Context>,
    /// Of each kind a right one, and how it is read.
    kinds: [(Vec<u8>, Again); 5],
}

/// The smallest preset that has every kind; ciphertexts of the lowest level, as length is not what makes a decoder wrong.
static MADE: LazyLock<Made> = LazyLock::new(|| {
    let context = Context::new(&Preset::N8192).unwrap();
    let mut rng = SecretRng::from_system().unwrap();
    let secret = SecretKey::generate(&context, &mut rng);
    let plain = Plaintext::encode(&context, &[0.5], 20_f64.exp2(), 0).unwrap();
    let fresh = secret.encrypt(&plain, &mut rng).unwrap();
    let both = fresh.expand();
    let kinds: [(Vec<u8>, Again); 5] = [
        (fresh.to_bytes(), |context, bytes| FreshCiphertext::from_bytes(context, bytes).map(|x| x.to_bytes())),
        (both.mul(&both).unwrap().to_bytes(), |context, bytes| {
            Ciphertext::from_bytes(context, bytes).map(|x| x.to_bytes())
        }),
        (secret.public_key(&mut rng).to_bytes(), |context, bytes| {
            PublicKey::from_bytes(context, bytes).map(|x| x.to_bytes())
        }),
        (secret.relinearization_key(&mut rng).unwrap().to_bytes(), |context, bytes| {
            RelinearizationKey::from_bytes(context, bytes).map(|x| x.to_bytes())
        }),
        (secret.rotation_keys(&[1], &mut rng).unwrap().to_bytes(), |context, bytes| {
            RotationKeys::from_bytes(context, bytes).map(|x| x.to_bytes())
        }),
    ];
    Made { context, kinds }
});

/// Bytes that were read are written as they came.
pub(crate) fn ckks(input: &[u8]) {
    let Made { context, kinds } = &*MADE;
    let mut input = Input(input);
    let choice = usize::from(input.u8());
    let (right, again) = &kinds[choice % kinds.len()];
    let bytes = match choice / kinds.len() % 4 {
        // Any; any after a right beginning, where most decisions are made; a right one with something changed, or cut.
        0 => input.rest().to_vec(),
        1 => {
            let kept = usize::from(input.u8()).min(right.len());
            [&right[..kept], input.rest()].concat()
        }
        2 => {
            let mut bytes = right.clone();
            input.patch(&mut bytes);
            bytes
        }
        _ => {
            let mut bytes = right[..right.len() - (input.u16() as usize).min(right.len())].to_vec();
            // The beginning says what follows.
            let beginning = bytes.len().min(50);
            input.patch(&mut bytes[..beginning]);
            bytes
        }
    };
    if choice % kinds.len() == 0 {
        // As the server of encrypted queries reads them, which takes one level and scale: a right one's.
        let mut batch = FreshBatch::with_room(context, 0, 20_f64.exp2(), 1).unwrap();
        let one =
            FreshCiphertext::from_bytes(context, &bytes).is_ok_and(|x| x.level() == 0 && x.scale() == 20_f64.exp2());
        assert!(batch.push(&bytes).is_ok() == one && batch.len() == usize::from(one), "both readers agree");
    }
    match again(context, &bytes) {
        Ok(written) => assert!(written == bytes, "what was read is not what was written"),
        Err(e) => readable(&e),
    }
}
