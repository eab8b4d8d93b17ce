use ndarray::Array2;
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn_nn::{ConvSpec, LayerSpec, Mode, Model, Sequential};

use super::*;

fn input(width: usize, image: Option<[usize; 3]>) -> Input {
    let columns = if image.is_some() { Vec::new() } else { (0..width).map(|i| format!("c{i}")).collect() };
    let offset = (0..width).map(|i| i as f64 * 0.25).collect();
    Input { width, image, columns, offset, factor: vec![0.5; width], max: 4.0 }
}

fn weights(rng: &mut impl Rng, len: usize) -> Vec<i32> {
    (0..len).map(|_| rng.random_range(-90..=90)).collect()
}

fn reals(rng: &mut impl Rng, len: usize) -> Vec<f64> {
    (0..len).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn dense(rng: &mut impl Rng, inputs: usize, outputs: usize) -> Linear {
    let (weights, bias) = (weights(rng, inputs * outputs), reals(rng, outputs));
    Linear::dense(inputs, 6, weights, bias, 3.0).unwrap()
}

fn conv(rng: &mut impl Rng, conv: Convolution) -> Linear {
    let weights = weights(rng, conv.channels * conv.weights_per_channel());
    Linear::conv(conv, 7, weights, &reals(rng, conv.channels), 3.0).unwrap()
}

/// Convolution 3 → 2 channels, square, dense → 4.
fn network() -> Network {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let extents = Convolution { image: [3, 5, 6], channels: 2, kernel: 3, stride: 2, padding: 1 };
    let first = conv(&mut rng, extents);
    let last = dense(&mut rng, first.outputs, 4);
    let layers = vec![Layer::Linear(first), Layer::Square, Layer::Linear(last)];
    let classes = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    Network::new("test".to_owned(), input(90, Some([3, 5, 6])), layers, classes, Loss::SoftmaxCrossEntropy).unwrap()
}

#[test]
fn predicts_by_the_definition() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (first, last) = (dense(&mut rng, 3, 2), dense(&mut rng, 2, 1));
    let layers = vec![Layer::Linear(first.clone()), Layer::Square, Layer::Linear(last.clone())];
    let classes = vec!["ill".to_owned()];
    let network = Network::new("t".to_owned(), input(3, None), layers, classes, Loss::BinaryCrossEntropy).unwrap();
    // The last is clipped.
    let found = network.predict(&[1.0, -2.0, 100.0]).unwrap();
    let inputs = [0.5, -1.125, 4.0];
    assert_eq!(network.inputs_of(&[1.0, -2.0, 100.0]).unwrap(), inputs);
    let row = |linear: &Linear, output: usize, x: &[f64]| {
        let weights = &linear.kernel[output * x.len()..][..x.len()];
        let sum: f64 = weights.iter().zip(x).map(|(&w, x)| f64::from(w) / 64.0 * x).sum();
        sum + linear.bias[output]
    };
    let hidden = [row(&first, 0, &inputs).powi(2), row(&first, 1, &inputs).powi(2)];
    assert!((found[0] - row(&last, 0, &hidden)).abs() < 1e-12);
    let rows = ndarray::array![[1.0_f32, -2.0, 100.0]];
    assert_eq!(network.predict_rows(rows.view()).unwrap()[[0, 0]], found[0]);
}

#[test]
fn a_convolution_is_nns() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut cases = 0;
    for (channels_in, height, width) in [(1, 5, 5), (2, 4, 7), (3, 6, 5), (1, 28, 28)] {
        for kernel in 1..=5 {
            for stride in 1..=3 {
                for padding in 0..kernel {
                    let image = [channels_in, height, width];
                    let extents = Convolution { image, channels: 1 + stride, kernel, stride, padding };
                    if extents.check().is_err() {
                        continue;
                    }
                    cases += 1;
                    let linear = conv(&mut rng, extents);
                    let spec = ConvSpec { channels: extents.channels, kernel, stride, padding };
                    let layers = [LayerSpec::Image(image), LayerSpec::Conv2d(spec)];
                    let mut model = Sequential::new(linear.inputs, &layers, 0).unwrap();
                    for parameter in model.parameters() {
                        match parameter.name.as_ref() {
                            "2.weight" => parameter
                                .value
                                .iter_mut()
                                .zip(&linear.kernel)
                                .for_each(|(to, &from)| *to = from as f32 / 128.0),
                            "2.bias" => parameter
                                .value
                                .iter_mut()
                                .zip(linear.stored_bias())
                                .for_each(|(to, from)| *to = from as f32),
                            _ => {}
                        }
                    }
                    let values = reals(&mut rng, linear.inputs);
                    let row = Array2::from_shape_fn((1, values.len()), |(_, i)| values[i] as f32);
                    let expected = model.forward(row.view(), Mode::Evaluate).unwrap();
                    let found = linear.forward(&values);
                    assert_eq!(found.len(), expected.len(), "{extents:?}");
                    for (found, &expected) in found.iter().zip(expected) {
                        assert!((found - f64::from(expected)).abs() < 1e-4, "{extents:?}");
                    }
                }
            }
        }
    }
    assert!(cases > 100, "{cases}");
}

#[test]
fn every_output_is_in_one_group() {
    let network = network();
    for linear in network.linear_layers() {
        let mut outputs: Vec<u32> = linear.groups.iter().flat_map(|group| group.outputs.clone()).collect();
        outputs.sort_unstable();
        assert_eq!(outputs, positions(0..linear.outputs));
        for group in &linear.groups {
            assert_eq!(group.weights.len(), group.inputs.len() * group.outputs.len());
            assert!(!group.inputs.is_empty());
        }
    }
}

#[test]
fn a_file_gives_the_network_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("network.safetensors");
    let network = network();
    network.save(&file).unwrap();
    let loaded = Network::load(&file).unwrap();
    assert_eq!(loaded, network);
    assert_eq!(loaded.digest(), network.digest());
    assert_eq!(loaded.to_bytes().unwrap(), network.to_bytes().unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    // Weights of any size, each as small as it can be stored.
    let mut sizes = Vec::new();
    for largest in [-128, 128, -32_768, 32_768, WEIGHT_MAX, -WEIGHT_MAX] {
        let mut other = network.clone();
        let mut kernel = vec![1; 72];
        kernel[5] = largest;
        other.layers[2] = Layer::Linear(Linear::dense(18, 6, kernel, vec![0.0; 4], 3.0).unwrap());
        let bytes = other.to_bytes().unwrap();
        assert_eq!(Network::from_bytes(&bytes).unwrap(), other);
        sizes.push(bytes.len());
    }
    assert!(sizes[0] < sizes[1] && sizes[1] == sizes[2] && sizes[2] < sizes[3] && sizes[4] == sizes[5], "{sizes:?}");
}

#[test]
fn a_digest_tells_networks_apart() {
    let network = network();
    let changes: [fn(&mut Network); 8] = [
        |n| n.name.push('x'),
        |n| n.classes.swap(0, 1),
        |n| n.input.max = 3.0,
        |n| n.input.offset[7] = -0.5,
        |n| n.loss = Loss::SquaredError,
        |n| n.layers.truncate(1),
        |n| {
            if let Layer::Linear(linear) = &mut n.layers[0] {
                linear.kernel[3] += 1;
            }
        },
        |n| {
            if let Layer::Linear(linear) = &mut n.layers[2] {
                linear.fraction_bits += 1;
            }
        },
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut other = network.clone();
        change(&mut other);
        assert_ne!(other.digest(), network.digest(), "change {i}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let network = network();
    let error = |change: &dyn Fn(&mut Network)| {
        let mut other = network.clone();
        change(&mut other);
        other.to_bytes().unwrap_err().to_string()
    };
    let last = network.layers[2].clone();
    for (found, expected) in [
        (
            error(&|n| n.layers = vec![n.layers[0].clone(), last.clone()]),
            "layer 1: the layer after a linear one must be a square",
        ),
        (error(&|n| n.layers = vec![Layer::Square]), "layer 0: the layer must be linear"),
        (error(&|n| n.layers.truncate(2)), "layer 1: the last layer must be linear"),
        (error(&|n| n.layers.clear()), "the number of layers must be 1 to 15, found 0"),
        (error(&|n| n.layers = vec![last.clone()]), "layer 0: the number of inputs must be 90, found 18"),
        (error(&|n| n.classes.truncate(3)), "the number of class names must be 4, one per output, found 3"),
        (error(&|n| n.loss = Loss::SquaredError), "the number of outputs for this loss must be 1, found 4"),
        (error(&|n| n.input.image = None), "layer 0: the image of the convolution must be none"),
        (error(&|n| n.input.image = Some([1, 9, 11])), "channels, height and width of the image must be 90 numbers"),
        (error(&|n| n.input.max = f64::NAN), "the largest input must be positive and finite, found NaN"),
        (error(&|n| n.input.factor[1] = f64::INFINITY), "the input's factors must be finite, found inf"),
        (error(&|n| n.name = "a\u{1b}[2J".to_owned()), "the network's name must be free of control characters"),
        (
            error(&|n| {
                if let Layer::Linear(linear) = &mut n.layers[2] {
                    linear.groups[0].inputs[0] = u32::MAX;
                }
            }),
            "layer 2: the layer must be what its weights make",
        ),
        (
            error(&|n| {
                if let Layer::Linear(linear) = &mut n.layers[2] {
                    linear.bias[0] = f64::NAN;
                }
            }),
            "layer 2: a bias must be finite, found NaN",
        ),
    ] {
        assert!(found.starts_with(expected), "{found}");
    }
    let large = Linear::dense(1, 0, vec![WEIGHT_MAX + 1], vec![0.0], 0.0).unwrap_err();
    assert_eq!(large.to_string(), "a weight must be at most 1048576 in size, found 1048577");
    assert!(Linear::dense(usize::MAX, 0, vec![1], vec![0.0; 2], 0.0).is_err());
    assert!(matches!(network.predict(&[0.0]), Err(NetworkError::Width { expected: 90, found: 1 })));
    let mut row = vec![0.0; 90];
    row[5] = f64::NAN;
    assert!(matches!(network.predict(&row), Err(NetworkError::Number { position: 5, .. })));
    assert_eq!(Network::load("nowhere.safetensors".as_ref()).unwrap_err().to_string().find("nowhere"), Some(0));
}

#[test]
fn extents_out_of_bounds_are_errors() {
    let fine = Convolution { image: [1, 28, 28], channels: 5, kernel: 5, stride: 2, padding: 1 };
    assert_eq!(fine.output(), Some([5, 13, 13]));
    fine.check().unwrap();
    let huge = usize::MAX;
    for wrong in [
        Convolution { image: [huge, 28, 28], ..fine },
        Convolution { image: [0, 28, 28], ..fine },
        Convolution { channels: 0, ..fine },
        Convolution { channels: huge, ..fine },
        Convolution { channels: WIDTH_MAX, ..fine },
        Convolution { kernel: 0, ..fine },
        Convolution { kernel: huge, ..fine },
        Convolution { kernel: 31, ..fine },
        Convolution { stride: 0, ..fine },
        Convolution { stride: huge, ..fine },
        Convolution { padding: 5, ..fine },
        Convolution { padding: huge, ..fine },
        Convolution { padding: huge, kernel: huge, ..fine },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}

/// A file with its metadata changed: its header is read, edited as text and written again.
fn with_metadata(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let len = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
    assert!(header.contains(from), "{header}");
    let header = header.replacen(from, to, 1);
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(header.as_bytes());
    changed.extend_from_slice(&bytes[8 + len..]);
    changed
}

#[test]
fn a_hostile_file_is_refused() {
    let bytes = network().to_bytes().unwrap();
    for (from, to, expected) in [
        (r#"\"format\":1"#, r#"\"format\":2"#, "the file's format must be 1, found 2"),
        ("spnn.network", "spnn.netwerk", "not a network: a safetensors file without"),
        (r#"\"width\":90"#, r#"\"width\":18446744073709551615"#, "the input's width must be 1 to 65536"),
        (r#"\"width\":90"#, r#"\"width\":91"#, "channels, height and width"),
        (
            r#"\"kernel\":3"#,
            r#"\"kernel\":4294967296"#,
            "layer 0: weight must be [I8, I16, I32] of [2, 3, 4294967296, 4294967296], found",
        ),
        (r#"\"stride\":2"#, r#"\"stride\":0"#, "layer 0: the stride must be 1 to 65536, found 0"),
        (r#"\"padding\":1"#, r#"\"padding\":3"#, "layer 0: the padding must be less than the kernel's 3, found 3"),
        (
            r#"\"fraction_bits\":7"#,
            r#"\"fraction_bits\":99"#,
            "layer 0: the fraction bits must be at most 24, found 99",
        ),
        (r#"\"output_max\":3.0"#, r#"\"output_max\":-3.0"#, "layer 0: the largest output must be finite"),
        (r#"\"output_max\":3.0"#, r#"\"output_max\":1e999"#, "not a network: number out of range"),
        (r#""2.bias":"#, r#""3.bias":"#, "layer 2: bias must be [F64] of [4], found no such tensor"),
        (r#""I8""#, r#""U8""#, "layer "),
        (r#"{\"square\":{}}"#, r#"{\"relu\":{}}"#, "not a network: unknown variant `relu`"),
        (r#"{\"square\":{}},"#, "", "layer 1: weight must be [I8, I16, I32] of [4, 18], found no such tensor"),
        (r#"[\"a\","#, r#"[\"a\",\"x\","#, "the number of class names must be 4"),
        (
            r#"\"softmax-cross-entropy\""#,
            r#"\"binary-cross-entropy\""#,
            "the number of outputs for this loss must be 1",
        ),
    ] {
        let error = Network::from_bytes(&with_metadata(&bytes, from, to)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{to}: {error}");
    }
    for len in 0..bytes.len() {
        assert!(Network::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
    }
    let many = r#"{\"square\":{}},"#.repeat(1000);
    let long = with_metadata(&bytes, r#"{\"square\":{}},"#, &many);
    assert!(Network::from_bytes(&long).unwrap_err().to_string().starts_with("the number of layers"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_network_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Network::from_bytes(&bytes);
    }

    #[test]
    fn a_file_with_changed_bytes_never_panics(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..8)) {
        let mut bytes = network().to_bytes().unwrap();
        let len = bytes.len();
        for (at, byte) in changes {
            bytes[at % len] = byte;
        }
        if let Ok(network) = Network::from_bytes(&bytes) {
            let _ = network.predict(&vec![1.0; network.input.width]);
            // What is accepted is written again as it was read.
            prop_assert_eq!(Network::from_bytes(&network.to_bytes().unwrap()).unwrap().digest(), network.digest());
        }
    }
}
