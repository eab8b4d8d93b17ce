//! What one batch of CryptoNets' network costs on one core, with made-up weights: 28 × 28 → 5 maps of 13 × 13 → square → 100 →
//! square → 10, one image per slot.
//!
//! `cargo bench -p spnn-ckks --bench segment`. Best of three, by the process's CPU time.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use spnn_ckks::{
    Ciphertext, Context, FreshBatch, FreshCiphertext, Inputs, Layer, LinearMap, Plaintext, Preset, SecretKey, Segment,
    Workspace,
};
use spnn_crypto::SecretRng;

fn main() {
    let context = Context::new(&Preset::N4096).unwrap();
    let mut rng = SecretRng::from_system().unwrap();
    let secret = SecretKey::generate(&context, &mut rng);
    let slots = context.preset().slots();
    let values: Vec<f64> = (0..slots).map(|i| (i as f64 * 0.7).sin().abs()).collect();
    let mut fresh = Vec::new();
    let encrypt = best(|| {
        fresh = (0..784)
            .map(|_| {
                let plain = Plaintext::encode(&context, &values, 2_f64.powf(21.0), 2).unwrap();
                secret.encrypt(&plain, &mut rng).unwrap()
            })
            .collect();
    });
    let mut bytes = Vec::new();
    let write = best(|| bytes = fresh.iter().map(FreshCiphertext::to_bytes).collect());
    let mut batch = FreshBatch::with_room(&context, 2, 2_f64.powf(21.0), 784).unwrap();
    let read = best(|| {
        batch.clear();
        bytes.iter().try_for_each(|b| batch.push(b)).unwrap();
    });
    let mut workspace = Workspace::default();
    let weight = |i: usize, max: i32| (i as i32).wrapping_mul(7919) % max;
    let linear =
        |map, outputs, bits: i32| Layer::Linear { map, weight_scale: 2_f64.powi(bits), bias: vec![0.1; outputs] };
    let dense = |inputs: usize, outputs: usize, max| {
        let weights: Vec<i32> = (0..inputs * outputs).map(|i| weight(i, max)).collect();
        LinearMap::new(inputs, outputs)
            .group((0..inputs as u32).collect(), (0..outputs as u32).collect(), &weights)
            .unwrap()
    };
    let first =
        Segment::new(vec![linear(convolution(weight), 845, 7), Layer::Square, linear(dense(845, 100, 40), 100, 9)])
            .unwrap();
    let second = Segment::new(vec![Layer::Square, linear(dense(100, 10, 30), 10, 6)]).unwrap();
    let mut hidden = Vec::new();
    let one = best(|| hidden = first.evaluate(&context, Inputs::Fresh(&batch), &mut workspace, 1).unwrap());
    let rescale = best(|| drop(hidden.iter().map(|c| c.rescale().unwrap()).collect::<Vec<_>>()));
    let rescaled: Vec<Ciphertext> = hidden.iter().map(|c| c.rescale().unwrap()).collect();
    let mut outputs = Vec::new();
    let two = best(|| outputs = second.evaluate(&context, Inputs::Whole(&rescaled), &mut workspace, 1).unwrap());
    let answer = best(|| drop(outputs.iter().map(Ciphertext::to_bytes).collect::<Vec<_>>()));
    let decrypt = best(|| outputs.iter().for_each(|c| drop(secret.decrypt(c).unwrap().decode())));
    let server = read + one + rescale + two + answer;
    let client = encrypt + write + decrypt;
    println!(
        "client: encrypt {encrypt:.3} s, write {write:.3} s, decrypt {decrypt:.3} s; {:.1} M predictions/h",
        slots as f64 / client * 3.6e-3
    );
    println!(
        "server: read {read:.3} s, to 100 {one:.3} s, rescale {rescale:.3} s, to 10 {two:.3} s, write {answer:.3} s; {:.1} M predictions/h",
        slots as f64 / server * 3.6e-3
    );
}

fn convolution(weight: impl Fn(usize, i32) -> i32) -> LinearMap {
    let mut map = LinearMap::new(784, 845);
    for window in 0..169 {
        let (row, column) = (window / 13 * 2, window % 13 * 2);
        let taps =
            (0..25).map(|k| (row + k / 5, column + k % 5)).filter(|(r, c)| (1..29).contains(r) && (1..29).contains(c));
        let inputs: Vec<u32> = taps.map(|(r, c)| ((r - 1) * 28 + c - 1) as u32).collect();
        let weights: Vec<i32> = (0..5 * inputs.len()).map(|i| weight(i, 128)).collect();
        map = map.group(inputs, (0..5).map(|m| (m * 169 + window) as u32).collect(), &weights).unwrap();
    }
    map
}

fn best(mut work: impl FnMut()) -> f64 {
    let once = |_| {
        let start = cpu_seconds();
        work();
        cpu_seconds() - start
    };
    (0..3).map(once).fold(f64::MAX, f64::min)
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}
