//! Speed of products over Z_2^64 and of masks, on one core.
//!
//! `cargo bench -p spnn-crypto --bench ring`. Best of several, by the process's CPU time.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use spnn_crypto::{MaskContext, PairKey, RingPanels, SecretRng, Sign};

fn main() {
    let mut rng = SecretRng::from_system().unwrap();
    let key = PairKey::new(rng.bytes32());
    let context = MaskContext { session: [0; 32], incarnation: 1, phase: 1, epoch: 1, batch: 0, tensor: 0 };
    let words = |n: usize| {
        let mut words = vec![0_u64; n];
        key.mask(&MaskContext { batch: u32::try_from(n).unwrap(), ..context }, Sign::Plus, &mut words);
        words
    };
    for (n, d, h) in [(5000, 28, 8), (1024, 83, 400), (28, 5000, 8), (1024, 83, 8)] {
        let (left, right, mut out) = (words(n * d), words(d * h), vec![0; n * h]);
        let seconds = best(|| RingPanels::new(&right, d, h).multiply_add(&left, &mut out));
        let products = (n * d * h) as f64;
        println!("{n} x {d} · {d} x {h}: {:.3} ms, {:.1} billion products/s", seconds * 1e3, products / seconds / 1e9);
    }
    let rows: Vec<u32> = (0..5000).map(|i| i * 40_503 % 1_000_003).collect();
    for width in [28, 83, 400] {
        let mut values = vec![0_u64; rows.len() * width];
        let bytes = size_of_val(&values[..]) as f64;
        let rows = best(|| key.mask_rows(&context, Sign::Plus, &rows, &mut values));
        let whole = best(|| key.mask(&context, Sign::Plus, &mut values));
        println!(
            "masks of 5000 x {width}: {:.1} GB/s whole, {:.1} GB/s by rows",
            bytes / whole / 1e9,
            bytes / rows / 1e9
        );
    }
}

fn best(mut work: impl FnMut()) -> f64 {
    (0..15)
        .map(|_| {
            let start = cpu_seconds();
            let mut times = 0;
            while cpu_seconds() - start < 0.02 {
                work();
                times += 1;
            }
            (cpu_seconds() - start) / f64::from(times)
        })
        .fold(f64::MAX, f64::min)
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}
