//! One image of MNIST's size through CryptoNets' network, encrypted: what client and server compute, and what they send.
//!
//! `cargo bench -p spnn-encrypted --bench one_sample`. Best of several, by the process's CPU time; the image is a random one, or,
//! with `SPNN_MNIST=DIR`, the first test image of MNIST's files there.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spnn_encrypted::{Network, OneSampleClient, OneSampleServer, read_idx};
use spnn_protocol::inference::Evaluator;
use std::path::Path;

/// As the binary has it: the system's allocator gives every limb back to the kernel, which costs more than to fill it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/mnist/network.safetensors");
    let network = Network::load(&file).unwrap();
    let image: Vec<f64> = match std::env::var_os("SPNN_MNIST") {
        Some(mnist) => {
            let rows = read_idx(&Path::new(&mnist).join("t10k-images-idx3-ubyte.gz"), None).unwrap();
            rows.features.row(0).iter().map(|x| f64::from(*x)).collect()
        }
        None => {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            (0..network.input.width).map(|_| f64::from(rng.random_range(0..256_u32))).collect()
        }
    };
    let (server, prepare) = timed(1, || OneSampleServer::new(&network).unwrap());
    let client = OneSampleClient::new(server.terms()).unwrap();
    let (keys, make_keys) = timed(3, || client.keys().unwrap());
    let (held, read_keys) = timed(3, || server.client(&keys).unwrap());
    let (ciphertexts, encrypt) = timed(9, || client.encrypt(&image).unwrap());
    let read = || {
        let mut batch = server.batch(1);
        ciphertexts.iter().for_each(|bytes| server.take(&mut batch, bytes).unwrap());
        batch
    };
    let (batch, take) = timed(9, read);
    // An evaluation takes its batch; the copies are not its work.
    let mut batches = vec![batch; 40];
    let (answer, evaluate) = timed(batches.len(), || server.evaluate(&held, batches.pop().unwrap()).unwrap());
    let (outputs, open) = timed(9, || client.open(&answer).unwrap());
    let clear = network.predict(&image).unwrap();
    let difference = outputs.iter().zip(&clear).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    println!("| per client | ms | kB |\n| --- | ---: | ---: |");
    let bytes = |all: &[Vec<u8>]| all.iter().map(Vec::len).sum::<usize>() as f64 / 1e3;
    println!("| server: prepare the network | {prepare:.1} | |");
    println!(
        "| client: make keys ({} rotations) | {make_keys:.1} | {:.0} |",
        server.plan().rotations.len(),
        bytes(&keys)
    );
    println!("| server: read keys | {read_keys:.1} | |");
    println!("\n| per image | ms | kB |\n| --- | ---: | ---: |");
    println!("| client: encrypt ({} ciphertexts) | {encrypt:.2} | {:.0} |", ciphertexts.len(), bytes(&ciphertexts));
    println!("| server: read | {take:.2} | |");
    println!("| server: evaluate | {evaluate:.2} | {:.0} |", bytes(&answer));
    println!("| client: open | {open:.2} | |");
    println!("\nLargest difference of a logit: {difference:.5}; planned: {:.5}.", server.plan().error);
}

/// The last result, and milliseconds of the fastest of `times` runs.
fn timed<T>(times: usize, mut work: impl FnMut() -> T) -> (T, f64) {
    let mut run = || {
        let start = cpu_seconds();
        let result = work();
        (result, 1e3 * (cpu_seconds() - start))
    };
    (1..times).fold(run(), |(_, fastest), _| {
        let (result, ms) = run();
        (result, fastest.min(ms))
    })
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}
