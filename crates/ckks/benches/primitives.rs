//! What each operation costs at each preset, on one core.
//!
//! `cargo bench -p spnn-ckks --bench primitives`. Best of several, by the process's CPU time; ciphertexts at the highest
//! level. With the name of a preset and seconds for each operation (`-- n8192 0.5`) it prints one line of JSON for
//! benches/primitives_peers.py.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss, missing_docs)]

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use spnn_ckks::{Context, FreshCiphertext, Plaintext, Preset, SecretKey};
use spnn_crypto::SecretRng;

/// As the binary has it: the system's allocator gives every limb back to the kernel, which costs more than to fill it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [preset, seconds] = &arguments[..] {
        let preset = Preset::ALL.into_iter().find(|p| p.name() == preset).unwrap();
        return for_comparison(preset, seconds.parse().unwrap());
    }
    println!(
        "| preset | limbs | encode ms | encrypt ms | decrypt + decode ms | product ms | + relinearize ms | rescale ms | rotate ms | fresh kB |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut rng = SecretRng::from_system().unwrap();
    for preset in Preset::ALL {
        let context = Context::new(preset).unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let values: Vec<f64> = (0..preset.slots()).map(|i| (i as f64 * 0.7).sin()).collect();
        let level = preset.level_max();
        let encode = || Plaintext::encode(&context, &values, 35_f64.exp2(), level).unwrap();
        let plain = encode();
        let x = secret.encrypt(&plain, &mut rng).unwrap().expand();
        let ms = |seconds: f64| format!("{:.3}", seconds * 1e3);
        let encoded = ms(best(|| drop(encode())));
        let encrypted = ms(best(|| drop(secret.encrypt(&plain, &mut rng).unwrap())));
        let decrypted = ms(best(|| drop(secret.decrypt(&x).unwrap().decode())));
        let product = best(|| drop(x.mul(&x).unwrap()));
        let rescaled = ms(best(|| drop(x.rescale().unwrap())));
        let (mut with_key, mut rotated) = ("–".to_owned(), "–".to_owned());
        if let Ok(key) = secret.relinearization_key(&mut rng) {
            with_key = ms(best(|| drop(x.mul(&x).unwrap().relinearize(&key).unwrap())));
            let keys = secret.rotation_keys(&[1], &mut rng).unwrap();
            rotated = ms(best(|| drop(x.rotate(1, &keys).unwrap())));
        }
        println!(
            "| {} | {} | {encoded} | {encrypted} | {decrypted} | {} | {with_key} | {rescaled} | {rotated} | {:.0} |",
            preset.name(),
            level + 1,
            ms(product),
            FreshCiphertext::byte_length(&context, level) as f64 / 1e3,
        );
    }
}

/// Milliseconds of what other libraries can do as well, a line of JSON.
fn for_comparison(preset: &'static Preset, seconds: f64) {
    let mut rng = SecretRng::from_system().unwrap();
    let context = Context::new(preset).unwrap();
    let secret = SecretKey::generate(&context, &mut rng);
    let plain = Plaintext::encode(&context, &[0.1], 40_f64.exp2(), preset.level_max()).unwrap();
    let x = secret.encrypt(&plain, &mut rng).unwrap().expand();
    let key = secret.relinearization_key(&mut rng).unwrap();
    let rotations = secret.rotation_keys(&[1], &mut rng).unwrap();
    let square = x.mul(&x).unwrap().relinearize(&key).unwrap();
    let ms = |mut work: &mut dyn FnMut()| 1e3 * fastest(seconds, &mut work);
    println!(
        r#"{{"product": {}, "relinearize": {}, "rescale": {}, "rotate": {}}}"#,
        ms(&mut || drop(x.mul(&x).unwrap())),
        ms(&mut || drop(x.mul(&x).unwrap().relinearize(&key).unwrap())),
        ms(&mut || drop(square.rescale().unwrap())),
        ms(&mut || drop(x.rotate(1, &rotations).unwrap())),
    );
}

/// Of single runs for so many seconds.
fn fastest(seconds: f64, work: &mut impl FnMut()) -> f64 {
    let (start, mut fastest) = (cpu_seconds(), f64::MAX);
    while cpu_seconds() - start < seconds {
        let before = cpu_seconds();
        work();
        fastest = fastest.min(cpu_seconds() - before);
    }
    fastest
}

fn best(mut work: impl FnMut()) -> f64 {
    (0..9)
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
