//! Median time of one training step of server and label holder together: forward, loss, backward, Adam.
//!
//! `cargo bench -p spnn-nn`

use std::hint::black_box;
use std::time::Instant;

use ndarray::Array2;
use rand::Rng;
use spnn_nn::{
    ActivationKind, HeadSpec, LabelHead, LayerSpec, Loss, Mode, Model, Optimizer, OptimizerSpec, Sequential, init_rng,
};

const SIGMOID: LayerSpec = LayerSpec::Activation(ActivationKind::Sigmoid);

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn main() {
    let fraud = [SIGMOID, LayerSpec::Linear(8), SIGMOID];
    let distress = [SIGMOID, LayerSpec::Linear(16), SIGMOID, LayerSpec::Linear(8), SIGMOID];
    for (name, hidden_width, layers, rows) in
        [("8-8-1, 5000 rows", 8, &fraud[..], 5000), ("400-16-8-1, 1024 rows", 400, &distress[..], 1024)]
    {
        println!("{name}: {:.0} µs", median_micros(hidden_width, layers, rows));
    }
}

#[expect(clippy::expect_used, reason = "the models above are well formed")]
fn median_micros(hidden_width: usize, layers: &[LayerSpec], rows: usize) -> f64 {
    let mut rng = init_rng(1, "bench");
    let mut unit = || rng.next_u32() as f32 / u32::MAX as f32;
    let h1 = Array2::from_shape_simple_fn((rows, hidden_width), || 2.0 * unit() - 1.0);
    let labels: Vec<f32> = (0..rows).map(|_| unit().round()).collect();

    let mut model = Sequential::new(hidden_width, layers, 7).expect("a model");
    let spec = HeadSpec { linear: 1, loss: Loss::BinaryCrossEntropy };
    let mut head = LabelHead::new(model.output_width(), &spec, 7).expect("a head");
    let adam = OptimizerSpec::Adam { learning_rate: 0.001, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let mut optimizers = [0, 1].map(|seed| Optimizer::new(&adam, [seed; 32]));
    let mut step = || {
        let z = model.forward(h1.view(), Mode::Train).expect("a batch");
        let (loss, grad_z) = head.step(z, &labels).expect("labels");
        black_box(loss);
        black_box(model.backward(grad_z).expect("a gradient"));
        optimizers[0].step(&mut model.parameters());
        optimizers[1].step(&mut head.parameters());
    };

    let mut micros: Vec<f64> = (0..600)
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed().as_secs_f64() * 1e6
        })
        .skip(100)
        .collect();
    micros.sort_by(f64::total_cmp);
    micros[micros.len() / 2]
}
