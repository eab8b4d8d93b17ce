//! A network's file, which may come from anywhere.

use super::decoders::readable;
use super::input::Input;
use spnn::encrypted::Network;
use std::sync::LazyLock;

/// A right one.
static RIGHT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    Network::from_bytes(include_bytes!("../../examples/digits/network.safetensors")).unwrap().to_bytes().unwrap()
});

/// What was read is written and read again as the same.
pub(crate) fn network(input: &[u8]) {
    let mut input = Input(input);
    // Up to here, the file says what follows.
    let beginning = RIGHT.len().min(1500);
    let bytes = match input.u8() % 4 {
        // Any; any after a right beginning; a right one with something changed anywhere, or where it says what follows.
        0 => input.rest().to_vec(),
        1 => {
            let kept = usize::from(input.u16()).min(RIGHT.len());
            [&RIGHT[..kept], input.rest()].concat()
        }
        2 => {
            let mut bytes = RIGHT.clone();
            input.patch(&mut bytes);
            bytes
        }
        _ => {
            let mut bytes = RIGHT.clone();
            input.patch(&mut bytes[..beginning]);
            bytes
        }
    };
    match Network::from_bytes(&bytes) {
        Ok(network) => {
            let again = Network::from_bytes(&network.to_bytes().unwrap()).unwrap();
            assert!(again.digest() == network.digest(), "what was read is not what was written");
            assert!(network.predict(&vec![1.0; network.input.width]).unwrap().len() == network.classes.len());
        }
        Err(e) => readable(&e),
    }
}
