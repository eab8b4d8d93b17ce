//! A network through the encryption and back, against the same in the clear.

use crate::{Convolution, Input, Layer, Linear, Network, Plan, PlanError, SamplesClient, SamplesServer, ServeError};
use ndarray::Array2;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn_ckks::{Context, Preset};
use spnn_nn::Loss;
use spnn_protocol::inference::Evaluator;

/// Dense and convolution layers with random weights, planned for inputs of ±1.
pub(crate) fn network(
    linear: Vec<(usize, Option<Convolution>, u32)>,
    image: Option<[usize; 3]>,
    width: usize,
) -> Network {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut layers = Vec::new();
    let mut inputs = width;
    let mut value_max = 1.0_f64;
    for (number, (outputs, conv, bits)) in linear.into_iter().enumerate() {
        if number > 0 {
            layers.push(Layer::Square);
            value_max *= value_max;
        }
        let fan_in = conv.map_or(inputs, |c| c.kernel * c.kernel * c.image[0]);
        let unit = f64::from(bits).exp2();
        let largest = (unit / fan_in as f64).max(1.0) as i32;
        let mut weights = |n: usize| -> Vec<i32> { (0..n).map(|_| rng.random_range(-largest..=largest)).collect() };
        let (weights, biases) = match conv {
            None => (weights(inputs * outputs), outputs),
            Some(c) => (weights(c.channels * fan_in), c.channels),
        };
        let bias: Vec<f64> = (0..biases).map(|i| 0.1 * i as f64 / biases as f64).collect();
        value_max = value_max * f64::from(largest) * fan_in as f64 / unit + 0.1;
        let layer = match conv {
            None => Linear::dense(inputs, bits, weights, bias, value_max).unwrap(),
            Some(c) => Linear::conv(c, bits, weights, &bias, value_max).unwrap(),
        };
        inputs = layer.outputs;
        layers.push(Layer::Linear(layer));
    }
    let columns = if image.is_some() { Vec::new() } else { (0..width).map(|i| format!("x{i}")).collect() };
    let input = Input { width, image, columns, offset: vec![0.0; width], factor: vec![1.0; width], max: 1.0 };
    let classes = (0..inputs).map(|c| c.to_string()).collect();
    Network::new("test".into(), input, layers, classes, Loss::SoftmaxCrossEntropy).unwrap()
}

/// Largest difference between encrypted and clear outputs over `samples` random rows.
fn difference(network: &Network, samples: usize) -> (f64, f64) {
    let server = SamplesServer::new(network, 2).unwrap();
    let client = SamplesClient::new(server.terms()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let rows = Array2::from_shape_fn((samples, network.input.width), |_| rng.random_range(-1.0..1.0_f32));
    let mut batch = server.batch(0);
    client.encrypt(rows.view(), 2, |bytes| server.take(&mut batch, &bytes).map(|()| true).unwrap()).unwrap();
    let answer = server.evaluate(&(), batch).unwrap();
    assert!(answer.iter().all(|a| a.len() == server.terms().output_bytes as usize));
    let found = client.open(&answer, samples).unwrap();
    let expected = network.predict_rows(rows.view()).unwrap();
    let largest = (&found - &expected).iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    (largest, server.plan().error)
}

#[test]
fn encrypted_outputs_are_those_in_the_clear_within_the_planned_error() {
    let conv = Convolution { image: [1, 8, 8], channels: 3, kernel: 3, stride: 2, padding: 1 };
    for network in [
        network(vec![(4, None, 8)], None, 5),
        network(vec![(20, None, 8), (3, None, 8)], None, 7),
        network(vec![(0, Some(conv), 7), (12, None, 8), (10, None, 6)], Some([1, 8, 8]), 64),
    ] {
        let (largest, error) = difference(&network, 500);
        assert!(largest <= 8.0 * error, "{} layers: {largest}, standard deviation {error}", network.layers.len());
        assert!(largest > 0.0 && error < 0.01, "{error}");
    }
}

#[test]
fn a_network_that_does_not_fit_is_refused_with_the_reason() {
    let context = Context::new(&Preset::N4096).unwrap();
    let deep = network((0..5).map(|_| (4, None, 6)).collect(), None, 4);
    let error = Plan::new(&deep, &context).unwrap_err();
    assert_eq!(error, PlanError::Depth { preset: "n4096", most: 2, found: 4 });
    let fine = network(vec![(4, None, 20), (3, None, 20), (2, None, 20)], None, 4);
    assert!(matches!(Plan::new(&fine, &context), Err(PlanError::Weight { layer: 0, .. })));
    let tight = network(vec![(4, None, 15), (3, None, 15), (2, None, 15)], None, 4);
    assert!(matches!(Plan::new(&tight, &context), Err(PlanError::Precision { .. })));
    let wide = network(vec![(2, None, 8)], None, 5000);
    assert!(matches!(SamplesServer::new(&wide, 1), Err(ServeError::Description { .. })));
}

#[test]
fn terms_that_are_not_those_of_such_a_network_are_refused() {
    let server = SamplesServer::new(&network(vec![(4, None, 8)], None, 5), 1).unwrap();
    let good = server.terms();
    assert!(SamplesClient::new(good).is_ok());
    let refused = |change: fn(&mut spnn_protocol::message::InferenceTerms), named: &str| {
        let mut terms = good.clone();
        change(&mut terms);
        let error = SamplesClient::new(&terms).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(named), "{error}; expected {named}");
    };
    refused(|t| t.preset = "n8192".into(), "preset is n8192; expected n4096");
    refused(|t| t.inputs = 6, "the number of ciphertexts is 6; expected 5");
    refused(|t| t.outputs = 1_000_000, "the number of outputs is 1000000; expected 4");
    refused(|t| t.samples_max = 4096, "samples of a batch is 4096; expected 2048");
    refused(|t| t.input_bytes = 1, "the length of a ciphertext");
    refused(|t| t.output_bytes = u32::MAX, "the length of an output");
    refused(|t| t.scale = f64::NAN, "the scale");
    refused(|t| t.keys_bytes = vec![1], "the number of keys");
    refused(|t| t.description = "{}".into(), "description");
    refused(|t| t.description = t.description.replace("\"max\":1.0", "\"max\":-1.0"), "the largest input");
}

#[test]
fn a_ciphertext_of_another_preset_level_or_scale_is_refused() {
    use spnn_ckks::{Plaintext, SecretKey};
    use spnn_crypto::SecretRng;
    let server = SamplesServer::new(&network(vec![(4, None, 8)], None, 5), 1).unwrap();
    let mut rng = SecretRng::from_system().unwrap();
    let mut bytes = |preset, scale: f64, level| {
        let context = Context::new(preset).unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let plain = Plaintext::encode(&context, &[0.5], scale, level).unwrap();
        secret.encrypt(&plain, &mut rng).unwrap().to_bytes()
    };
    let scale = server.plan().scale;
    let mut batch = server.batch(1);
    assert_eq!(server.take(&mut batch, &bytes(&Preset::N4096, scale, 2)), Ok(()));
    for (wrong, named) in [
        (bytes(&Preset::N8192, scale, 2), "preset is 2; expected 1 (n4096)"),
        (bytes(&Preset::N4096, scale, 1), "level is 1; expected 2"),
        (bytes(&Preset::N4096, scale * 1.5, 2), "scale is "),
        (vec![0; 10], "bytes"),
    ] {
        let error = server.take(&mut batch, &wrong).unwrap_err();
        assert!(error.contains(named), "{error}; expected {named}");
    }
    assert_eq!(batch.len(), 1);
}
