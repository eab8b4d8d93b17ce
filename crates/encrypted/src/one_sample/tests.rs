//! One sample through the encryption and back, against the same in the clear.

use super::*;
use crate::tests::network;
use crate::{Convolution, CsvLayout, Network, PlanError, read_csv, read_idx};
use ndarray::ArrayView1;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn_ckks::{Context, Plaintext, SecretKey};
use spnn_crypto::SecretRng;
use spnn_protocol::inference::Evaluator;
use spnn_protocol::message::InferenceTerms;
use std::path::Path;

/// A server and a client that has sent its keys.
struct Both {
    server: OneSampleServer,
    client: OneSampleClient,
    keys: OneSampleKeys,
}

impl Both {
    fn new(network: &Network) -> Self {
        let server = OneSampleServer::new(network).unwrap();
        let client = OneSampleClient::new(server.terms()).unwrap();
        let keys = client.keys().unwrap();
        assert!(keys.iter().map(|k| k.len() as u32).eq(server.terms().keys_bytes.iter().copied()));
        let keys = server.client(&keys).unwrap();
        Self { server, client, keys }
    }

    fn ask(&self, row: &[f64]) -> Vec<f64> {
        let mut batch = self.server.batch(1);
        for bytes in self.client.encrypt(row).unwrap() {
            self.server.take(&mut batch, &bytes).unwrap();
        }
        let answer = self.server.evaluate(&self.keys, batch).unwrap();
        assert!(answer.iter().all(|a| a.len() == self.server.terms().output_bytes as usize));
        // Nothing but the outputs, in all slots.
        let [bytes] = &answer[..] else { panic!("one ciphertext") };
        let outputs = self.client.open(&answer).unwrap();
        let slots = self.client.slots_of(bytes);
        for (slot, x) in slots.iter().enumerate() {
            let expected = outputs.get(slot % outputs.len().next_power_of_two()).copied().unwrap_or(0.0);
            assert!((x - expected).abs() <= 20.0 * self.server.plan().error, "slot {slot}: {x}; expected {expected}");
        }
        outputs
    }
}

/// The largest difference.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max)
}

#[test]
fn encrypted_outputs_are_those_in_the_clear_within_the_planned_error() {
    let conv =
        |image: [usize; 3], channels, kernel, stride| Some(Convolution { image, channels, kernel, stride, padding: 1 });
    let small = conv([1, 8, 8], 3, 3, 2);
    for network in [
        network(vec![(4, None, 8)], None, 5),
        network(vec![(300, None, 8)], None, 3),
        network(vec![(1, None, 8)], None, 2000),
        network(vec![(20, None, 8), (3, None, 8)], None, 7),
        network(vec![(70, None, 8), (130, None, 8), (10, None, 8)], None, 33),
        network(vec![(0, small, 7)], Some([1, 8, 8]), 64),
        network(vec![(0, small, 7), (12, None, 8), (10, None, 6)], Some([1, 8, 8]), 64),
        network(vec![(0, small, 7), (0, conv([3, 4, 4], 2, 3, 1), 6), (5, None, 6)], Some([1, 8, 8]), 64),
        network(vec![(0, conv([1, 24, 24], 3, 23, 2), 9), (2, None, 8)], Some([1, 24, 24]), 576),
        network(vec![(0, conv([2, 6, 6], 2, 3, 1), 7), (1, None, 8)], Some([2, 6, 6]), 72),
    ] {
        let both = Both::new(&network);
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let error = both.server.plan().error;
        let mut largest = 0.0_f64;
        for _ in 0..3 {
            let row: Vec<f64> = (0..network.input.width).map(|_| rng.random_range(-1.0..1.0)).collect();
            largest = largest.max(difference(&both.ask(&row), &network.predict(&row).unwrap()));
        }
        assert!(largest <= 8.0 * error, "{:?}: {largest}, standard deviation {error}", network.layers.len());
        assert!(largest > 0.0 && error < 0.01, "{error}");
    }
}

fn as_f64(row: ArrayView1<'_, f32>) -> Vec<f64> {
    row.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn the_digits_are_those_in_the_clear() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/digits");
    let network = Network::load(&directory.join("network.safetensors")).unwrap();
    let layout = CsvLayout { features: &network.input.columns, ..CsvLayout::default() };
    let rows = read_csv(&directory.join("test.csv"), layout).unwrap();
    let both = Both::new(&network);
    let all = rows.features.rows().into_iter();
    for row in all.take(10).map(as_f64) {
        let largest = difference(&both.ask(&row), &network.predict(&row).unwrap());
        assert!(largest <= 0.01, "{largest}");
    }
}

fn argmax(outputs: &[f64]) -> usize {
    (0..outputs.len()).max_by(|a, b| outputs[*a].total_cmp(&outputs[*b])).unwrap()
}

/// `SPNN_MNIST=DIR cargo test --release -p spnn-encrypted mnist -- --ignored --nocapture`
#[test]
#[expect(clippy::print_stdout, reason = "whoever asks for this test wants the figures")]
#[ignore = "skipped: needs MNIST, whose directory SPNN_MNIST names; runs a minute"]
fn mnist_is_classified_as_in_the_clear() {
    let mnist = std::env::var_os("SPNN_MNIST").expect("SPNN_MNIST names the directory with MNIST's files");
    let rows = read_idx(&Path::new(&mnist).join("t10k-images-idx3-ubyte.gz"), None).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/mnist/network.safetensors");
    let network = Network::load(&file).unwrap();
    let both = Both::new(&network);
    let (mut largest, mut differ) = (0.0_f64, 0);
    let images = 500;
    for row in rows.features.rows().into_iter().take(images).map(as_f64) {
        let (found, expected) = (both.ask(&row), network.predict(&row).unwrap());
        largest = largest.max(difference(&found, &expected));
        differ += usize::from(argmax(&found) != argmax(&expected));
    }
    println!("{images} images: logits differ by at most {largest:.4}, {differ} classes");
    assert!(largest <= 0.05 && differ == 0, "{largest}, {differ}");
}

#[test]
fn a_network_that_does_not_fit_is_refused_with_the_reason() {
    let context = Context::new(ONE_SAMPLE).unwrap();
    let plan = |layers| OneSamplePlan::new(&network((0..layers).map(|_| (4, None, 6)).collect(), None, 4), &context);
    assert!(plan(3).is_ok());
    assert!(matches!(plan(5), Err(PlanError::Precision { preset: "n8192", .. })));
    assert_eq!(plan(8), Err(PlanError::Room { preset: "n8192", squares: 7 }));
    let wide = network(vec![(2, None, 8)], None, 5000);
    let refused = Err(PlanError::Width { preset: "n8192", layer: 0, most: 4096, found: 5000 });
    assert_eq!(OneSamplePlan::new(&wide, &context), refused);
}

#[test]
fn terms_that_are_not_those_of_such_a_network_are_refused() {
    let image = Convolution { image: [1, 8, 8], channels: 3, kernel: 3, stride: 2, padding: 1 };
    let network = network(vec![(0, Some(image), 7), (4, None, 8)], Some([1, 8, 8]), 64);
    let server = OneSampleServer::new(&network).unwrap();
    let good = server.terms();
    assert!(OneSampleClient::new(good).is_ok());
    let refused = |change: fn(&mut InferenceTerms), named: &str| {
        let mut terms = good.clone();
        change(&mut terms);
        let error = OneSampleClient::new(&terms).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(named), "{error}; expected {named}");
    };
    refused(|t| t.packing = spnn_protocol::message::Packing::SamplePerSlot, "the packing is SamplePerSlot");
    refused(|t| t.preset = "n4096".into(), "preset is n4096; expected n8192");
    refused(|t| t.inputs = 8, "the number of ciphertexts is 8; expected 1");
    refused(|t| t.outputs = 2, "the number of answers is 2; expected 1");
    refused(|t| t.samples_max = 2, "samples of a batch is 2; expected 1");
    refused(|t| t.input_bytes = 1, "the length of a ciphertext");
    refused(|t| t.output_bytes = u32::MAX, "the length of the answer");
    refused(|t| t.scale = f64::NAN, "the scale");
    refused(|t| t.keys_bytes = vec![1], "the number of keys");
    refused(|t| t.keys_bytes[1] -= 1, "the length of a key");
    refused(|t| t.description = "{}".into(), "description");
    refused(|t| t.description = t.description.replace("\"max\":1.0", "\"max\":-1.0"), "the largest input");
    refused(|t| t.description = t.description.replace("\"stride\":2", "\"stride\":1"), "the layout");
    refused(|t| t.description = t.description.replace("\"rotations\":[", "\"rotations\":[0,"), "rotations are not");
}

#[test]
fn keys_and_ciphertexts_that_are_not_due_are_refused() {
    let server = OneSampleServer::new(&network(vec![(4, None, 8), (3, None, 8)], None, 5)).unwrap();
    let client = OneSampleClient::new(server.terms()).unwrap();
    let good = client.keys().unwrap();
    let keys = server.client(&good).unwrap();
    let mut rng = SecretRng::from_system().unwrap();
    let refused = |keys: &[Vec<u8>], named: &str| {
        let error = server.client(keys).err().unwrap_or_default();
        assert!(error.contains(named), "{error}; expected {named}");
    };
    refused(&good[..1], "1 keys; expected one for products and one for rotations");
    refused(&[good[1].clone(), good[0].clone()], "the key for products: ");
    refused(&[good[0].clone(), vec![0; good[1].len()]], "the keys for rotations: version is 0");
    let context = Context::new(ONE_SAMPLE).unwrap();
    let secret = SecretKey::generate(&context, &mut rng);
    let missing = &server.plan().rotations[1..];
    let missing = secret.rotation_keys(missing, &mut rng).unwrap().to_bytes();
    refused(&[good[0].clone(), missing], "keys for rotations by [");

    let mut bytes = |preset, scale: f64, level| {
        let context = Context::new(preset).unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let plain = Plaintext::encode(&context, &[0.5], scale, level).unwrap();
        secret.encrypt(&plain, &mut rng).unwrap().to_bytes()
    };
    let scale = server.plan().scale;
    let mut batch = server.batch(1);
    for (wrong, named) in [
        (bytes(&Preset::N4096, scale, 2), "preset is 1; expected 2 (n8192)"),
        (bytes(&Preset::N8192, scale, 1), "level 1"),
        (bytes(&Preset::N8192, scale * 1.5, 3), "scale 2^"),
        (vec![0; 10], "bytes"),
    ] {
        let error = server.take(&mut batch, &wrong).unwrap_err();
        assert!(error.contains(named), "{error}; expected {named}");
    }
    assert_eq!(server.evaluate(&keys, batch), Err("0 ciphertexts; expected 1".into()));
    // Of another key: evaluates to nonsense, which is its owner's business.
    let mut batch = server.batch(1);
    server.take(&mut batch, &bytes(&Preset::N8192, scale, 3)).unwrap();
    assert!(server.evaluate(&keys, batch).is_ok());
    assert!(client.open(&[]).is_err() && client.open(&[vec![1; 20]]).is_err());
}
