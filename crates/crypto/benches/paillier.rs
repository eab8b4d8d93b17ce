//! Speed of the Paillier engine beside paillier-common used as its documentation shows, in one run.
//!
//! `cargo bench -p spnn-crypto --bench paillier [-- quick]`. Values per second of process CPU time, so that other work
//! on the machine disturbs little; the rows with two threads are by the clock. Best of three.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use nix::sys::resource::{UsageWho, getrusage};
use paillier_common as common;
use paillier_common::{Decrypt, Encrypt};
use spnn_crypto::paillier::{
    Arithmetic, Ciphertexts, Exponent, KeyBits, KeyProof, Lookup, Packing, Plaintexts, PublicKey, RandomizerTable,
    SecretKey,
};
use spnn_crypto::{MaskContext, PairKey, SecretRng, Sign};
use std::time::Instant;

fn main() {
    let quick = std::env::args().any(|argument| argument == "quick");
    let mut rng = SecretRng::from_system().unwrap();
    for bits in [KeyBits::Bits2048, KeyBits::Bits3072] {
        let started = cpu_seconds();
        let mut secret = SecretKey::generate(bits, &mut rng).unwrap();
        let keygen = cpu_seconds() - started;
        println!("\n{} bits; key pair in {:.0} ms", bits.bits(), keygen * 1e3);
        let started = cpu_seconds();
        let proof = KeyProof::new(&secret, b"session", &mut rng);
        let proved = cpu_seconds();
        proof.verify(secret.public(), b"session").unwrap();
        let verified = cpu_seconds();
        let checked = PublicKey::from_bytes(bits, &secret.public().to_bytes()).map(|_| cpu_seconds()).unwrap();
        println!(
            "proof of {} bytes made in {:.0} ms, verified in {:.0} ms; key checked in {:.0} ms",
            proof.to_bytes().len(),
            (proved - started) * 1e3,
            (verified - proved) * 1e3,
            (checked - verified) * 1e3
        );
        println!(
            "{:>9} {:>9} {:>5} {:>7} | {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} | {:>6}",
            "path",
            "values",
            "bits",
            "threads",
            "ct enc",
            "direct",
            "online",
            "mask",
            "check",
            "add",
            "decrypt",
            "B/val"
        );
        for arithmetic in [Arithmetic::detect(), Arithmetic::Portable] {
            secret = secret.with_arithmetic(arithmetic);
            let tables = [Lookup::ConstantTime, Lookup::DirectOnOwnMachine].map(|lookup| {
                let started = cpu_seconds();
                let table = RandomizerTable::new(secret.public(), lookup, Exponent::Short, &mut rng);
                println!("{:>9} {lookup:?} table in {:.0} ms", "", (cpu_seconds() - started) * 1e3);
                table
            });
            let sizes: &[usize] = match arithmetic {
                Arithmetic::Ifma if quick => &[5000 * 8],
                Arithmetic::Ifma => &[5000 * 8, 1024 * 400],
                // Slow, and no different for more.
                Arithmetic::Portable => &[5000],
            };
            for &values in sizes {
                for value_bits in [64, 48] {
                    for threads in [1, 2] {
                        row(&secret, &tables, values, value_bits, threads, &mut rng);
                    }
                }
            }
        }
        naive(&secret, &mut rng);
    }
}

fn row(
    secret: &SecretKey,
    tables: &[RandomizerTable; 2],
    count: usize,
    bits: u32,
    threads: usize,
    rng: &mut SecretRng,
) {
    let key = secret.public();
    let packing = Packing::new(key.bits(), bits, 2).unwrap();
    let values: Vec<i64> = (0..count as i64).map(|i| (i - 1000).wrapping_mul(0x9e37_79b9) % (1 << 46)).collect();
    let repetitions = if count > 100_000 { 1 } else { 3 };
    let timed = |work: &mut dyn FnMut()| best(repetitions, threads, work);

    let mut plain = packing.encode(key, &values).unwrap();
    let ciphertexts_len = plain.len();
    let mut made = Vec::new();
    let encrypt = [0, 1].map(|which| {
        timed(&mut || {
            let randomizers = tables[which].draw(ciphertexts_len, rng, threads);
            let plain = packing.encode(key, &values).unwrap();
            made.push(Ciphertexts::encrypt(&plain, randomizers, threads).unwrap());
        })
    });
    let mut pools: Vec<_> = (0..3).map(|_| tables[1].draw(ciphertexts_len, rng, threads)).collect();
    let online = timed(&mut || {
        let plain = packing.encode(key, &values).unwrap();
        Ciphertexts::encrypt(&plain, pools.pop().unwrap(), threads).unwrap();
    });
    let pair = PairKey::new([1; 32]);
    let context = MaskContext { session: [0; 32], incarnation: 0, phase: 0, epoch: 0, batch: 0, tensor: 0 };
    let mask = timed(&mut || plain.mask(&pair, &context, Sign::Plus, 0));
    let bytes = made[0].to_bytes();
    let check = timed(&mut || drop(Ciphertexts::from_bytes(key, ciphertexts_len, &bytes).unwrap()));
    let mut sum = made[0].clone();
    let other = made.pop().unwrap();
    let add = timed(&mut || sum.add_assign(&other, threads).unwrap());
    let mut opened: Option<Plaintexts> = None;
    let decrypt = timed(&mut || opened = Some(secret.decrypt(&other, threads).unwrap()));
    assert_eq!(packing.decode(&opened.unwrap(), values.len(), 1).unwrap(), values);

    let path = format!("{:?}", key.arithmetic());
    print!("{path:>9} {count:>9} {bits:>5} {threads:>7} |");
    for seconds in [encrypt[0], encrypt[1], online, mask, check, add, decrypt] {
        print!(" {:>9.0}", count as f64 / seconds);
    }
    println!(" | {:>6.2}", bytes.len() as f64 / count as f64);
}

/// paillier-common, one value per ciphertext, as its documentation shows.
fn naive(secret: &SecretKey, rng: &mut SecretRng) {
    // Another key of the same size: ours does not give its factors away.
    let (encryption, decryption) = common_keys(secret.public().bits(), rng);
    let mut ciphertexts = Vec::new();
    let encrypt = best(3, 1, &mut || {
        let plain = common::RawPlaintext::from(common::BigInt::from(1_u64 << 40));
        ciphertexts.push(common::Paillier::encrypt(&encryption, plain));
    });
    let decrypt = best(3, 1, &mut || {
        let _ = common::Paillier::decrypt(&decryption, &ciphertexts[0]);
    });
    println!(
        "paillier-common, one value per ciphertext: {:.0} values/s encrypted, {:.0} decrypted, {} B/value",
        1.0 / encrypt,
        1.0 / decrypt,
        secret.public().bits().ciphertext_bytes()
    );
}

fn common_keys(bits: KeyBits, _: &mut SecretRng) -> (common::EncryptionKey, common::DecryptionKey) {
    use paillier_common::KeyGeneration;
    common::Paillier::keypair_with_modulus_size(bits.bits() as usize).keys()
}

fn best(repetitions: usize, threads: usize, work: &mut dyn FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let (clock, cpu) = (Instant::now(), cpu_seconds());
        work();
        if threads == 1 { cpu_seconds() - cpu } else { clock.elapsed().as_secs_f64() }
    };
    (0..repetitions).map(|_| time(work)).fold(f64::INFINITY, f64::min)
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let (user, system) = (usage.user_time(), usage.system_time());
    (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 * 1e-6
}
