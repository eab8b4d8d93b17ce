//! What `fhe` (BFV, exact integers) takes for a product, a product with relinearisation, and a rotation, at one dimension.
//!
//! usage: fhe-peer N SECONDS BITS,… (of the primes). Prints one line of JSON: milliseconds of CPU, the fastest of several.
//!
//! fhe-peer layers SECONDS BITS,… prints what a step of CryptoNets takes at n = 8,192 in its plain use, one sample per slot:
//! adding a ciphertext times a weight that is encoded as a plaintext, and squaring with relinearisation.
//!
//! fhe-peer products N BITS,… prints a digest of products modulo X^N + 1 and each prime by `fhe-math`; crates/ckks has what it
//! printed in a test. A program of its own does so, not that test: `fhe-math` always brings `tfhe-ntt`, whose licence grants no
//! patents (its feature of that name only says whether it is called; here it is not).

use fhe::bfv::{BfvParametersBuilder, Ciphertext, Encoding, EvaluationKeyBuilder, Plaintext};
use fhe::bfv::{RelinearizationKey, SecretKey};
use fhe_math::{ntt::NttOperator, zq::Modulus, zq::primes::generate_prime};
use fhe_traits::{FheEncoder, FheEncrypter};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

/// A prime that is 1 modulo twice every dimension here.
const PLAIN: u64 = 786_433;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, first, second, bits] = &arguments[..] else { panic!("usage: fhe-peer N SECONDS BITS,…") };
    let bits: Vec<usize> = bits.split(',').map(|b| b.parse().unwrap()).collect();
    if first == "products" {
        println!("{:#018x}", products(second.parse().unwrap(), &bits));
    } else if first == "layers" {
        layers(second.parse().unwrap(), &bits);
    } else {
        times(first.parse().unwrap(), second.parse().unwrap(), &bits);
    }
}

/// The primes are the largest of so many bits that are 1 modulo 2n and not used before.
fn products(n: usize, bits: &[usize]) -> u64 {
    let mut primes: Vec<u64> = Vec::new();
    let mut digest = 0xcbf2_9ce4_8422_2325;
    for bits in bits {
        let below = primes.iter().copied().filter(|p| p >> (bits - 1) == 1).min().unwrap_or(1 << bits);
        let prime = generate_prime(*bits, 2 * n as u64, below).unwrap();
        let modulus = Modulus::new(prime).unwrap();
        let draw = |k: u64| -> Vec<u64> {
            (0..n as u64).map(|i| ((i + 1).wrapping_mul(k).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1) % prime).collect()
        };
        let (mut x, mut y) = (draw(1), draw(prime));
        let operator = NttOperator::new(&modulus, n).unwrap();
        operator.forward(&mut x);
        operator.forward(&mut y);
        modulus.mul_vec(&mut x, &y);
        operator.backward(&mut x);
        // FNV-1a, word by word.
        digest = x.iter().fold(digest, |digest: u64, x| (digest ^ x).wrapping_mul(0x0100_0000_01b3));
        primes.push(prime);
    }
    digest
}

fn times(n: usize, seconds: f64, bits: &[usize]) {
    let parameters = BfvParametersBuilder::new()
        .set_degree(n)
        .set_plaintext_modulus(PLAIN)
        .set_moduli_sizes(bits)
        .build_arc()
        .unwrap();
    let mut rng = rand::rng();
    let secret = SecretKey::random(&parameters, &mut rng);
    let key = RelinearizationKey::new(&secret, &mut rng).unwrap();
    let mut rotation = EvaluationKeyBuilder::new(&secret).unwrap();
    let rotation = rotation.enable_column_rotation(1).unwrap().build(&mut rng).unwrap();
    let values: Vec<u64> = (0..n as u64).collect();
    let plain = Plaintext::try_encode(&values, Encoding::simd(), &parameters).unwrap();
    let x: Ciphertext = secret.try_encrypt(&plain, &mut rng).unwrap();
    let product = best(seconds, || drop(&x * &x));
    let relinearized = best(seconds, || {
        let mut product = &x * &x;
        key.relinearizes(&mut product).unwrap();
    });
    let rotate = best(seconds, || drop(rotation.rotates_columns_by(&x, 1).unwrap()));
    println!(r#"{{"product": {product}, "relinearize": {relinearized}, "rotate": {rotate}}}"#);
}

fn layers(seconds: f64, bits: &[usize]) {
    let parameters = BfvParametersBuilder::new()
        .set_degree(8192)
        .set_plaintext_modulus(PLAIN)
        .set_moduli_sizes(bits)
        .build_arc()
        .unwrap();
    let mut rng = rand::rng();
    let secret = SecretKey::random(&parameters, &mut rng);
    let key = RelinearizationKey::new(&secret, &mut rng).unwrap();
    let plain = Plaintext::try_encode(&vec![5_u64; 8192], Encoding::simd(), &parameters).unwrap();
    let x: Ciphertext = secret.try_encrypt(&plain, &mut rng).unwrap();
    let weight = Plaintext::try_encode(&vec![3_u64; 8192], Encoding::simd(), &parameters).unwrap();
    let mut sum = x.clone();
    let weighted = best(seconds, || sum += &(&x * &weight));
    let square = best(seconds, || {
        let mut product = &x * &x;
        key.relinearizes(&mut product).unwrap();
    });
    println!(r#"{{"batch": 8192, "weighted": {weighted}, "square": {square}}}"#);
}

fn best(seconds: f64, mut work: impl FnMut()) -> f64 {
    let one = |work: &mut dyn FnMut()| {
        let start = cpu_seconds();
        work();
        cpu_seconds() - start
    };
    let (start, mut best) = (cpu_seconds(), f64::MAX);
    while cpu_seconds() - start < seconds {
        best = best.min(one(&mut work));
    }
    best * 1e3
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}
