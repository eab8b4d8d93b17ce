//! Whole paths (encode, mask, encrypt, add, decrypt, decode) and everything a peer may send.

use super::key::test_keys;
use super::*;
use crate::{MaskContext, PairKey, SecretRng, Sign};
use paillier_common as common;
use paillier_common::{Add, Decrypt, Encrypt};
use proptest::prelude::*;
use std::sync::OnceLock;

fn rng() -> SecretRng {
    SecretRng::from_system().unwrap()
}

struct Fixture {
    secret: SecretKey,
    /// One per party: each has its own h.
    tables: Vec<RandomizerTable>,
}

fn small() -> &'static Fixture {
    shared(KeyBits::InsecureTest512)
}

/// One key of each size for all tests: the large ones take a while without optimisation.
fn shared(bits: KeyBits) -> &'static Fixture {
    static FIXTURES: [OnceLock<Fixture>; 3] = [const { OnceLock::new() }; 3];
    let [small, middle, large] = &FIXTURES;
    let fixture = || fixture(bits, Lookup::ConstantTime, Exponent::Short);
    match bits {
        KeyBits::InsecureTest512 => small.get_or_init(fixture),
        KeyBits::Bits2048 => middle.get_or_init(fixture),
        KeyBits::Bits3072 => large.get_or_init(fixture),
    }
}

fn fixture(bits: KeyBits, lookup: Lookup, exponent: Exponent) -> Fixture {
    let secret = SecretKey::generate(bits, &mut rng()).unwrap();
    let table = || RandomizerTable::new(secret.public(), lookup, exponent, &mut rng());
    Fixture { tables: vec![table(), table()], secret }
}

fn context(batch: u32) -> MaskContext {
    MaskContext { session: [5; 32], incarnation: 1, phase: 0, epoch: 0, batch, tensor: 0 }
}

impl Fixture {
    fn key(&self) -> &PublicKey {
        self.secret.public()
    }

    fn encrypt(&self, party: usize, plaintexts: &Plaintexts, threads: usize) -> Ciphertexts {
        let table = &self.tables[party % self.tables.len()];
        Ciphertexts::encrypt(plaintexts, table.draw(plaintexts.len(), &mut rng(), threads), threads).unwrap()
    }

    /// The chain of the protocol: every party masks with every other, encrypts, multiplies in and sends on.
    fn sum(&self, packing: Packing, tensors: &[Vec<i64>], threads: usize) -> Result<Vec<i64>, PaillierError> {
        let mut chain: Option<Ciphertexts> = None;
        for (i, values) in tensors.iter().enumerate() {
            let mut plaintexts = packing.encode(self.key(), values)?;
            for j in (0..tensors.len()).filter(|&j| j != i) {
                let pair = PairKey::new([u8::try_from(i.min(j) * 16 + i.max(j)).unwrap(); 32]);
                plaintexts.mask(&pair, &context(1), if i < j { Sign::Plus } else { Sign::Minus }, 0);
            }
            let fresh = self.encrypt(i, &plaintexts, threads);
            chain = Some(match chain {
                None => fresh,
                Some(sent) => {
                    let mut received = Ciphertexts::from_bytes(self.key(), fresh.len(), &sent.to_bytes())?;
                    received.add_assign(&fresh, threads)?;
                    received
                }
            });
        }
        let opened = self.secret.decrypt(&chain.unwrap(), threads)?;
        packing.decode(&opened, tensors[0].len(), u32::try_from(tensors.len()).unwrap())
    }
}

#[test]
fn sums_are_exact_with_every_option() {
    for lookup in [Lookup::ConstantTime, Lookup::DirectOnOwnMachine] {
        for exponent in [Exponent::Short, Exponent::Full] {
            let f = fixture(KeyBits::InsecureTest512, lookup, exponent);
            [1, 2, 3, 5].into_iter().for_each(|parties| sums_are_exact(&f, parties, 500));
        }
    }
}

#[test]
fn sums_are_exact_at_every_size() {
    for bits in [KeyBits::Bits2048, KeyBits::Bits3072] {
        sums_are_exact(shared(bits), 3, 500);
    }
}

fn sums_are_exact(f: &Fixture, parties: usize, count: usize) {
    let packing = Packing::new(f.key().bits(), 48, 5).unwrap();
    let value = |i: usize, party: usize| (i as i64 - 250 + party as i64) * 0x0012_3456_789a / 3;
    let tensors: Vec<Vec<i64>> = (0..parties).map(|p| (0..count).map(|i| value(i, p)).collect()).collect();
    let expected: Vec<i64> = (0..count).map(|i| tensors.iter().map(|t| t[i]).sum()).collect();
    assert_eq!(f.sum(packing, &tensors, 2).unwrap(), expected, "{:?}, {parties} parties", f.key());
}

#[test]
fn packings_have_the_slots_they_should() {
    let slots = |bits, value_bits, addends| Packing::new(bits, value_bits, addends).unwrap().slots();
    assert_eq!(slots(KeyBits::Bits2048, 64, 2), 31);
    assert_eq!(slots(KeyBits::Bits2048, 64, 16), 30);
    assert_eq!(slots(KeyBits::Bits3072, 64, 16), 45);
    assert_eq!(slots(KeyBits::Bits3072, 48, 2), 62);
    assert_eq!(Packing::new(KeyBits::Bits2048, 65, 2), Err(PackingError::ValueBits { found: 65 }));
    assert_eq!(Packing::new(KeyBits::Bits2048, 1, 2), Err(PackingError::ValueBits { found: 1 }));
    assert_eq!(Packing::new(KeyBits::Bits2048, 64, 0), Err(PackingError::Addends { found: 0 }));
    assert!(Packing::new(KeyBits::Bits2048, 64, u32::MAX).is_err());
}

#[test]
fn a_value_that_does_not_fit_is_named() {
    let packing = Packing::new(KeyBits::InsecureTest512, 20, 3).unwrap();
    let max = (1 << 19) - 1;
    for (value, fits) in [(max, true), (max + 1, false), (-max - 1, true), (-max - 2, false), (i64::MIN, false)] {
        let mut values = vec![0; 100];
        values[77] = value;
        let encoded = packing.encode(small().key(), &values).map(|_| ());
        assert_eq!(encoded, if fits { Ok(()) } else { Err(PaillierError::Value { position: 77 }) }, "{value}");
    }
}

#[test]
fn every_ciphertext_decrypts_with_paillier_common_and_back() {
    for bits in [KeyBits::InsecureTest512, KeyBits::Bits2048] {
        let f = shared(bits);
        let [p, q] = f.secret.halves.each_ref().map(|half| big(&half.prime.to_be_bytes()));
        let theirs = common::DecryptionKey { p, q };
        let n = big(&f.key().to_bytes());
        let encryption = common::EncryptionKey { nn: &n * &n, n };

        let packing = Packing::new(bits, 64, 4).unwrap();
        let values: Vec<i64> = (0..19 * packing.slots() as i64 - 3).map(|i| (i - 99).wrapping_mul(1 << 45)).collect();
        let plaintexts = packing.encode(f.key(), &values).unwrap();
        let ours = f.encrypt(0, &plaintexts, 1);
        let mut theirs_sum = Vec::new();
        let opened = f.secret.decrypt(&ours, 1).unwrap();
        for (i, c) in ours.to_bytes().chunks_exact(bits.ciphertext_bytes()).enumerate() {
            let raw = common::RawCiphertext::from(big(c));
            let plain = common::Paillier::decrypt(&theirs, &raw);
            let limbs = f.key().plain_limbs();
            let expected = modulus::number_of(&opened.numbers[i * limbs..(i + 1) * limbs], bits.bits());
            assert_eq!(plain.0.to_str_radix(16), big(&expected.to_be_bytes()).to_str_radix(16));
            // Their fresh encryption of the same plaintext, then their sum of both.
            let fresh = common::Paillier::encrypt(&encryption, plain);
            theirs_sum.extend(fixed(&common::Paillier::add(&encryption, raw, fresh).0, bits.ciphertext_bytes()));
        }
        let sum = Ciphertexts::from_bytes(f.key(), ours.len(), &theirs_sum).unwrap();
        let sum = packing.decode(&f.secret.decrypt(&sum, 1).unwrap(), values.len(), 2);
        let doubled: Option<Vec<i64>> = values.iter().map(|v| v.checked_mul(2)).collect();
        assert_eq!(sum.unwrap(), doubled.unwrap());
    }
}

fn big(bytes: &[u8]) -> common::BigInt {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    common::BigInt::parse_bytes(hex.as_bytes(), 16).unwrap()
}

fn fixed(number: &common::BigInt, bytes: usize) -> Vec<u8> {
    let hex = format!("{:0>width$}", number.to_str_radix(16), width = 2 * bytes);
    (0..bytes).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[test]
fn both_arithmetics_give_the_same_ciphertexts_and_plaintexts() {
    for bits in [KeyBits::InsecureTest512, KeyBits::Bits2048, KeyBits::Bits3072] {
        let f = shared(bits);
        let portable_key = f.key().with_arithmetic(Arithmetic::Portable);
        assert_eq!(portable_key.arithmetic(), Arithmetic::Portable);
        let packing = Packing::new(bits, 64, 2).unwrap();
        let values: Vec<i64> = (0..9 * packing.slots() as i64).map(|i| i.wrapping_mul(0x1e37_79b9_7f4a_7c15)).collect();
        let mut bytes = Vec::new();
        let pool = f.tables[0].draw(9, &mut rng(), 1);
        for key in [f.key(), &portable_key] {
            let mut plaintexts = packing.encode(key, &values).unwrap();
            plaintexts.mask(&PairKey::new([3; 32]), &context(0), Sign::Minus, 7);
            let randomizers = Randomizers { key: key.clone(), numbers: pool.numbers.clone() };
            bytes.push(Ciphertexts::encrypt(&plaintexts, randomizers, 1).unwrap().to_bytes());
        }
        assert_eq!(bytes[0], bytes[1]);
        let portable = test_keys::portable(&f.secret);
        let c = Ciphertexts::from_bytes(&portable_key, 9, &bytes[0]).unwrap();
        let mut opened = portable.decrypt(&c, 2).unwrap();
        opened.mask(&PairKey::new([3; 32]), &context(0), Sign::Plus, 7);
        assert_eq!(packing.decode(&opened, values.len(), 1).unwrap(), values);
    }
}

#[test]
fn a_mask_hides_everything_until_it_cancels() {
    let f = small();
    let packing = Packing::new(f.key().bits(), 32, 2).unwrap();
    let pair = PairKey::new([1; 32]);
    let values = vec![0; 40 * packing.slots()];
    let plain = packing.encode(f.key(), &values).unwrap();
    let mut masked = packing.encode(f.key(), &values).unwrap();
    masked.mask(&pair, &context(0), Sign::Plus, 0);
    let limbs = f.key().plain_limbs();
    let [a, b]: [Vec<&[u64]>; 2] = [&masked, &plain].map(|p| p.numbers.chunks_exact(limbs).collect());
    assert!(a.iter().enumerate().all(|(i, x)| !b.contains(x) && !a[..i].contains(x)));
    assert!(matches!(packing.decode(&masked, values.len(), 1), Err(PaillierError::Sum { .. })));

    // A chunk is masked like its part of the whole, and another context masks otherwise.
    let mut chunk = packing.encode(f.key(), &values[..11 * packing.slots()]).unwrap();
    chunk.mask(&pair, &context(0), Sign::Plus, 29);
    assert_eq!(chunk.numbers[..], masked.numbers[29 * limbs..]);
    let mut other = packing.encode(f.key(), &values).unwrap();
    other.mask(&pair, &context(1), Sign::Plus, 0);
    assert!(other.numbers.chunks_exact(limbs).all(|x| !a.contains(&x)));
    masked.mask(&pair, &context(0), Sign::Minus, 0);
    assert_eq!(masked.numbers, plain.numbers);
}

#[test]
fn masks_are_uniform_modulo_n() {
    // The top byte of r/n, chi-square with 255 degrees of freedom: mean 255, sd 22.6; six sd on either side.
    let f = small();
    let mut plaintexts = Plaintexts::zeros(f.key(), 1 << 16);
    plaintexts.mask(&PairKey::new([1; 32]), &context(0), Sign::Plus, 0);
    let limbs = f.key().plain_limbs();
    let top = |number: &[u64]| {
        let words = modulus::number_of(number, 512).to_words();
        u128::from(words[7]) << 64 | u128::from(words[6])
    };
    let n = top(&modulus::limbs_of(&f.key().0.n, limbs)) >> 8;
    let mut counts = [0_i64; 256];
    for number in plaintexts.numbers.chunks_exact(limbs) {
        counts[usize::try_from((top(number) / n).min(255)).unwrap()] += 1;
    }
    let chi: f64 = counts.iter().map(|&c| ((c - 256) as f64).powi(2) / 256.0).sum();
    assert!((120.0..390.0).contains(&chi), "chi-square {chi}");
}

#[test]
fn what_does_not_add_up_is_an_error() {
    let f = small();
    let packing = Packing::new(f.key().bits(), 32, 3).unwrap();
    let values = vec![-(1 << 31); 2 * packing.slots() - 1];
    let most = vec![(1 << 31) - 1; values.len()];
    let sum = |tensors: &[&Vec<i64>]| {
        let mut c = f.encrypt(0, &packing.encode(f.key(), tensors[0]).unwrap(), 1);
        tensors[1..].iter().for_each(|t| {
            c.add_assign(&f.encrypt(1, &packing.encode(f.key(), t).unwrap(), 1), 1).unwrap();
        });
        f.secret.decrypt(&c, 1).unwrap()
    };
    // Two addends taken for one.
    assert_eq!(packing.decode(&sum(&[&most, &most]), values.len(), 1), Err(PaillierError::Sum { position: 0 }));
    assert!(packing.decode(&sum(&[&most, &most]), values.len(), 2).is_ok());
    // A value where none was agreed.
    let short = values.len() - 1;
    assert_eq!(packing.decode(&sum(&[&most]), short, 1), Err(PaillierError::Unused { ciphertext: 1 }));
    // Bits above the last slot.
    let mut high = packing.encode(f.key(), &values).unwrap();
    let last = f.key().plain_limbs() - 1;
    high.numbers[last] |= 1 << 42;
    assert_eq!(packing.decode(&high, values.len(), 1), Err(PaillierError::Unused { ciphertext: 0 }));
    let addends_max = 3;
    assert_eq!(packing.decode(&high, values.len(), 4), Err(PaillierError::Addends { found: 4, addends_max }));
    assert_eq!(packing.decode(&high, values.len(), 0), Err(PaillierError::Addends { found: 0, addends_max }));
    assert!(matches!(packing.decode(&high, 1, 1), Err(PaillierError::Count { .. })));
    // Sums of 64-bit values may need 65 bits.
    let wide = Packing::new(f.key().bits(), 64, 2).unwrap();
    assert_eq!(f.sum(wide, &[vec![1, i64::MAX], vec![1, 1]], 1), Err(PaillierError::Sum { position: 1 }));
    assert_eq!(f.sum(wide, &[vec![i64::MIN, i64::MAX], vec![i64::MAX, i64::MIN]], 1), Ok(vec![-1, -1]));
}

#[test]
fn batches_of_different_keys_or_lengths_do_not_mix() {
    let (f, other) = (small(), fixture(KeyBits::InsecureTest512, Lookup::ConstantTime, Exponent::Short));
    let packing = Packing::new(f.key().bits(), 32, 2).unwrap();
    let plaintexts = packing.encode(f.key(), &[1; 100]).unwrap();
    let count = plaintexts.len();
    let draw = |f: &Fixture, count| f.tables[0].draw(count, &mut rng(), 1);
    assert_eq!(Ciphertexts::encrypt(&plaintexts, draw(&other, count), 1), Err(PaillierError::OtherKey));
    for left in [count - 1, count + 1] {
        let short = Ciphertexts::encrypt(&plaintexts, draw(f, left), 1);
        assert_eq!(short, Err(PaillierError::Randomizers { needed: count, left }));
    }
    let mut c = f.encrypt(0, &plaintexts, 1);
    assert!(matches!(other.secret.decrypt(&c, 1), Err(PaillierError::OtherKey)));
    let foreign = packing.encode(other.key(), &[1; 100]).unwrap();
    assert_eq!(c.add_assign(&other.encrypt(0, &foreign, 1), 1), Err(PaillierError::OtherKey));
    let shorter = f.encrypt(0, &packing.encode(f.key(), &[1; 10]).unwrap(), 1);
    assert_eq!(c.add_assign(&shorter, 1), Err(PaillierError::Count { expected: count, found: 1 }));
    let large = Packing::new(KeyBits::Bits2048, 32, 2).unwrap();
    assert!(matches!(large.encode(f.key(), &[1]), Err(PaillierError::OtherKey)));

    let all = c.to_bytes();
    let first = c.split_to(3).unwrap();
    assert_eq!([first.to_bytes(), c.to_bytes()].concat(), all);
    assert!(matches!(c.split_to(count), Err(PaillierError::Count { .. })));

    let mut pool = Randomizers::none(f.key());
    pool.append(draw(f, 5)).unwrap();
    pool.append(draw(f, 7)).unwrap();
    assert_eq!(pool.append(draw(&other, 1)), Err(PaillierError::OtherKey));
    assert_eq!(pool.take(13).map(|_| ()), Err(PaillierError::Randomizers { needed: 13, left: 12 }));
    let taken = pool.take(5).unwrap();
    assert_eq!((taken.len(), pool.len()), (5, 7));
    let limbs = f.key().cipher_limbs();
    assert!(taken.numbers.chunks_exact(limbs).all(|x| !pool.numbers.chunks_exact(limbs).any(|y| x == y)));
    assert!(f.tables[0].draw(0, &mut rng(), 4).is_empty());
    assert!(f.encrypt(0, &packing.encode(f.key(), &[]).unwrap(), 2).is_empty());
}

#[test]
fn bad_keys_are_refused_by_name() {
    let bits = KeyBits::InsecureTest512;
    let parse = |n: &[u8]| PublicKey::from_bytes(bits, n).map(|_| ());
    let key = small().key();
    assert_eq!(parse(&key.to_bytes()), Ok(()));
    assert_eq!(PublicKey::from_bytes(bits, &key.to_bytes()).unwrap(), *key);
    assert_eq!(parse(&key.to_bytes()[1..]), Err(KeyError::Length { expected: 64, found: 63 }));
    assert_eq!(parse(&[&[0], &key.to_bytes()[..]].concat()), Err(KeyError::Length { expected: 64, found: 65 }));
    let mut short = key.to_bytes();
    short[0] = short[0] & 0x7f | 0x40;
    assert_eq!(parse(&short), Err(KeyError::BitLength { expected: 512, found: 511 }));
    let mut even = key.to_bytes();
    even[63] &= 0xfe;
    assert_eq!(parse(&even), Err(KeyError::Even));
    assert_eq!(parse(&test_keys::prime(512)), Err(KeyError::Prime));
    assert_eq!(parse(&test_keys::power(256, 2)), Err(KeyError::PerfectPower { exponent: 2 }));
    for exponent in [3, 5, 7, 17, 23] {
        assert_eq!(parse(&test_keys::power(512, exponent)), Err(KeyError::PerfectPower { exponent }), "{exponent}");
    }
    for factor in [3, 5, 1009, 1_048_573] {
        assert_eq!(parse(&test_keys::multiple(512, factor)), Err(KeyError::SmallFactor { factor }));
    }
    assert_eq!(parse(&[0; 64]), Err(KeyError::BitLength { expected: 512, found: 0 }));
    assert_eq!(KeyBits::try_from(2048), Ok(KeyBits::Bits2048));
    assert_eq!(KeyBits::try_from(512), Err(KeyError::Unsupported { found: 512 }));
    assert_eq!(KeyBits::default(), KeyBits::Bits3072);
}

#[test]
fn good_keys_of_every_size_are_accepted() {
    for bits in [KeyBits::InsecureTest512, KeyBits::Bits2048, KeyBits::Bits3072] {
        let secret = SecretKey::generate(bits, &mut rng()).unwrap();
        assert_eq!(PublicKey::from_bytes(bits, &secret.public().to_bytes()).as_ref(), Ok(secret.public()));
        for half in &secret.halves {
            assert_eq!(half.prime.bits(), bits.bits() / 2);
            assert_eq!(half.prime.as_words()[0] & 3, 3);
        }
    }
}

#[test]
fn bad_ciphertexts_are_refused() {
    let f = small();
    let packing = Packing::new(f.key().bits(), 32, 2).unwrap();
    let c = f.encrypt(0, &packing.encode(f.key(), &[7; 150]).unwrap(), 1);
    let (good, count, size) = (c.to_bytes(), c.len(), f.key().bits().ciphertext_bytes());
    let n = big(&f.key().to_bytes());
    let p = big(&f.secret.halves[0].prime.to_be_bytes());
    let with = |index: usize, number: &common::BigInt| {
        let mut bytes = good.clone();
        bytes[index * size..(index + 1) * size].copy_from_slice(&fixed(number, size));
        Ciphertexts::from_bytes(f.key(), count, &bytes).map(|_| ())
    };
    let one = common::BigInt::from(1);
    assert_eq!(with(3, &one), Ok(()));
    assert_eq!(with(3, &(&n * &n - &one)), Ok(()));
    assert_eq!(with(3, &(&one - &one)), Err(PaillierError::Ciphertext { index: 3 }));
    assert_eq!(with(9, &(&n * &n)), Err(PaillierError::Ciphertext { index: 9 }));
    assert_eq!(with(0, &((&one << 1024) - &one)), Err(PaillierError::Ciphertext { index: 0 }));
    for multiple in [&p, &n, &(&p * &p), &(&p * &n), &(&p * 12345)] {
        assert_eq!(with(count - 1, multiple), Err(PaillierError::Batch));
    }
    for length in [0, good.len() - 1, good.len() + 1, good.len() - size] {
        let bytes = vec![1; length];
        let found = Ciphertexts::from_bytes(f.key(), count, &bytes);
        assert_eq!(found, Err(PaillierError::Length { count, expected: good.len(), found: length }));
    }
    assert!(Ciphertexts::from_bytes(f.key(), usize::MAX, &good).is_err());
    assert_eq!(Ciphertexts::from_bytes(f.key(), count, &good), Ok(c));
}

#[test]
fn an_honest_proof_holds_in_its_session_only() {
    for bits in [KeyBits::InsecureTest512, KeyBits::Bits2048] {
        let secret = SecretKey::generate(bits, &mut rng()).unwrap();
        let proof = KeyProof::new(&secret, b"session 1", &mut rng());
        let bytes = proof.to_bytes();
        assert_eq!(bytes.len(), KeyProof::byte_len(bits));
        let read = KeyProof::from_bytes(bits, &bytes).unwrap();
        assert!(read == proof);
        assert_eq!(read.verify(secret.public(), b"session 1"), Ok(()));
        assert!(matches!(read.verify(secret.public(), b"session 2"), Err(ProofError::Root { .. })));
        let other = SecretKey::generate(bits, &mut rng()).unwrap();
        assert!(read.verify(other.public(), b"session 1").is_err());
        assert!(matches!(KeyProof::from_bytes(bits, &bytes[1..]), Err(ProofError::Length { .. })));
    }
}

#[test]
fn an_altered_proof_is_refused() {
    let f = small();
    let bits = f.key().bits();
    let bytes = KeyProof::new(&f.secret, b"s", &mut rng()).to_bytes();
    let size = bits.key_bytes();
    let verify = |bytes: &[u8]| KeyProof::from_bytes(bits, bytes).and_then(|proof| proof.verify(f.key(), b"s"));
    assert_eq!(verify(&bytes), Ok(()));
    // Last byte of w, of an x, of a z, and a sign, in rounds spread out.
    for round in [0, 1, 63, 127] {
        let start = size + round * (2 * size + 1);
        for at in [start + size - 1, start + 2 * size - 1, start + 2 * size] {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert_eq!(verify(&altered), Err(ProofError::Root { round }), "byte {at}");
        }
        let mut altered = bytes.clone();
        altered[start..start + size].fill(0xff);
        assert_eq!(verify(&altered), Err(ProofError::Range { round }));
        let mut altered = bytes.clone();
        altered[start + 2 * size] = 4;
        assert_eq!(verify(&altered), Err(ProofError::Malformed { round }));
    }
    let mut altered = bytes.clone();
    *altered.last_mut().unwrap() ^= 1;
    assert_eq!(verify(&altered), Err(ProofError::Size));
    // A w of Jacobi symbol 1, or sharing a factor, or none at all.
    let square = [vec![0; size - 1], vec![4]].concat();
    let factor = f.secret.halves[0].prime.to_be_bytes();
    let factor = [vec![0; size - factor.len()], factor.to_vec()].concat();
    for w in [square, factor, vec![0; size], f.key().to_bytes()] {
        let mut altered = bytes.clone();
        altered[..size].copy_from_slice(&w);
        assert_eq!(verify(&altered), Err(ProofError::Jacobi));
    }
}

#[test]
fn a_modulus_of_another_form_is_not_provable() {
    // p = 1 mod 4: the honest algorithm finds no roots. (n-th roots exist all the same.)
    for _ in 0..3 {
        let secret = test_keys::not_blum();
        let proof = KeyProof::new(&secret, b"s", &mut rng());
        assert!(matches!(proof.verify(secret.public(), b"s"), Err(ProofError::Root { .. })));
    }
}

#[test]
fn secrets_are_not_shown() {
    let f = small();
    assert_eq!(format!("{:?}", f.secret), "SecretKey(512 bits, ..)");
    assert_eq!(format!("{:?}", f.key()), "PublicKey(512 bits)");
    assert_eq!(format!("{:?}", f.tables[0]), "RandomizerTable(ConstantTime, 256 exponent bits, ..)");
    assert_eq!(format!("{:?}", f.tables[0].draw(3, &mut rng(), 1)), "Randomizers(3)");
    assert_eq!(format!("{:?}", Plaintexts::zeros(f.key(), 2)), "Plaintexts(2 of 512 bits)");
}

#[test]
fn no_two_randomizers_are_alike() {
    let f = small();
    let drawn = f.tables[0].draw(200, &mut rng(), 2);
    let mut all: Vec<&[u64]> = drawn.numbers.chunks_exact(f.key().cipher_limbs()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 200);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn sums_open_exactly(
        value_bits in 2_u32..=63,
        addends_max in 1_u32..6,
        count in 1_usize..60,
        seed in any::<u64>(),
        edge in 0_u8..4,
        threads in 1_usize..4,
    ) {
        let f = small();
        let packing = Packing::new(f.key().bits(), value_bits, addends_max).unwrap();
        let (min, max) = (-1_i64 << (value_bits - 1), (1_i64 << (value_bits - 1)) - 1);
        let value = |i: usize, party: u32| match edge {
            0 => min,
            1 => max,
            2 => if (i + party as usize).is_multiple_of(2) { min } else { max },
            _ => {
                let noise = seed.wrapping_mul(2 * i as u64 + 1).wrapping_add(u64::from(party)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                noise.cast_signed() >> (64 - value_bits)
            }
        };
        let tensors: Vec<Vec<i64>> = (0..addends_max).map(|p| (0..count).map(|i| value(i, p)).collect()).collect();
        let sums: Vec<i128> = (0..count).map(|i| tensors.iter().map(|t| i128::from(t[i])).sum()).collect();
        let opened = f.sum(packing, &tensors, threads);
        match sums.iter().position(|&s| i64::try_from(s).is_err()) {
            Some(position) => prop_assert_eq!(opened, Err(PaillierError::Sum { position })),
            None => {
                let opened: Vec<i128> = opened.unwrap().into_iter().map(i128::from).collect();
                prop_assert_eq!(opened, sums);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), count in 0_usize..4) {
        let f = small();
        let bits = f.key().bits();
        let _ = PublicKey::from_bytes(bits, &bytes);
        let _ = PublicKey::from_bytes(KeyBits::Bits2048, &bytes);
        let _ = KeyProof::from_bytes(bits, &bytes);
        let _ = Ciphertexts::from_bytes(f.key(), count, &bytes);
        bytes.resize(count * bits.ciphertext_bytes(), 0x55);
        if let Ok(c) = Ciphertexts::from_bytes(f.key(), count, &bytes) {
            prop_assert_eq!(c.to_bytes(), bytes);
        }
    }

    #[test]
    fn arbitrary_keys_never_panic(mut bytes in any::<[[u8; 32]; 2]>()) {
        bytes[0][0] |= 0x80;
        bytes[1][31] |= 1;
        let _ = PublicKey::from_bytes(KeyBits::InsecureTest512, bytes.as_flattened());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn arbitrary_proofs_and_ciphertexts_are_handled(seed in any::<[u8; 32]>()) {
        let f = small();
        let bits = f.key().bits();
        let noise = |length: usize| -> Vec<u8> {
            use sha2::{Digest, Sha256};
            (0..length as u64).step_by(32).flat_map(|i| Sha256::digest([&seed[..], &i.to_le_bytes()].concat())).take(length).collect()
        };
        let mut bytes = noise(KeyProof::byte_len(bits));
        let start = bits.key_bytes();
        bytes[start..].chunks_exact_mut(2 * start + 1).take(128).for_each(|round| round[2 * start] &= 3);
        prop_assert!(KeyProof::from_bytes(bits, &bytes).unwrap().verify(f.key(), b"s").is_err());
        // Any unit decrypts to something; whether it decodes is for the packing to say.
        let mut bytes = noise(3 * bits.ciphertext_bytes());
        bytes.chunks_exact_mut(bits.ciphertext_bytes()).for_each(|c| c[0] &= 0x7f);
        if let Ok(c) = Ciphertexts::from_bytes(f.key(), 3, &bytes) {
            let opened = f.secret.decrypt(&c, 1).unwrap();
            let packing = Packing::new(bits, 40, 3).unwrap();
            let _ = packing.decode(&opened, 3 * packing.slots(), 3);
        }
    }
}
