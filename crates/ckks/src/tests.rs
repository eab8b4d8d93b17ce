//! Every operation at every preset against the same in the clear, with the error bound that follows from the noise.

use super::*;
use spnn_crypto::{SecretRng, Sign};
use std::sync::Arc;

/// Standard deviation of errors.
const SIGMA: f64 = 3.24;
/// Of a Gaussian sum, so many standard deviations: exceeded by one slot in 10^14.
const TAIL: f64 = 8.0;

struct Party {
    context: Arc<Context>,
    secret: SecretKey,
    rng: SecretRng,
    scale: f64,
    n: f64,
}

impl Party {
    fn new(preset: &'static Preset) -> Self {
        let context = Context::new(preset).unwrap();
        let mut rng = SecretRng::from_system().unwrap();
        let secret = SecretKey::generate(&context, &mut rng);
        let scale = if preset.level_max() > 2 { 40_f64.exp2() } else { 30_f64.exp2() };
        Self { n: context.n() as f64, context, secret, rng, scale }
    }

    fn values(&self, k: f64) -> Vec<f64> {
        (0..self.context.preset().slots()).map(|i| ((i as f64 + 1.0) * k).sin()).collect()
    }

    fn encrypt(&mut self, values: &[f64]) -> Ciphertext {
        let level = self.context.preset().level_max();
        let plain = Plaintext::encode(&self.context, values, self.scale, level).unwrap();
        self.secret.encrypt(&plain, &mut self.rng).unwrap().expand()
    }

    /// The largest difference of a slot from what it should be.
    fn error(&self, ciphertext: &Ciphertext, expected: impl Fn(usize) -> f64) -> f64 {
        let found = self.secret.decrypt(ciphertext).unwrap().decode();
        found.iter().enumerate().map(|(i, x)| (x - expected(i)).abs()).fold(0.0, f64::max)
    }

    /// Of a fresh ciphertext of the secret key: n errors and n roundings.
    fn fresh(&self) -> f64 {
        TAIL * (self.n * (SIGMA * SIGMA + 1.0 / 12.0)).sqrt() / self.scale
    }

    /// Of what is rounded to integers in both parts: 1/12 each, the second one times a ternary secret.
    fn rounding(&self, scale: f64) -> f64 {
        TAIL * (self.n / 12.0 * (1.0 + 2.0 / 3.0 * self.n)).sqrt() / scale
    }

    /// Of a key switch: for each digit n products of an error and a digit, uniform below its product D, divided by P; and
    /// the rounding of that division. Every preset has D ≤ 4·P.
    fn switching(&self, scale: f64) -> f64 {
        let digits = self.context.digit_count() as f64;
        let noise = TAIL * self.n * (digits / 12.0).sqrt() * 4.0 * SIGMA / scale;
        noise + self.rounding(scale)
    }
}

#[test]
fn what_is_encrypted_decrypts() {
    for preset in Preset::ALL {
        let mut party = Party::new(preset);
        let values = party.values(0.37);
        let secret = party.encrypt(&values);
        let error = party.error(&secret, |i| values[i]);
        assert!(error <= party.fresh(), "{preset:?}: {error} above {}", party.fresh());
        // Not by accident: another key finds nothing.
        let other = SecretKey::generate(&party.context, &mut party.rng);
        let nonsense = other.decrypt(&secret).unwrap().decode();
        assert!(nonsense.iter().zip(&values).any(|(x, y)| (x - y).abs() > 1.0));

        let public = party.secret.public_key(&mut party.rng);
        let plain = Plaintext::encode(&party.context, &values, party.scale, preset.level_max()).unwrap();
        let by_public = public.encrypt(&plain, &mut party.rng).unwrap();
        let error = party.error(&by_public, |i| values[i]);
        let bound = TAIL * (party.n * (SIGMA * SIGMA * (1.0 + 4.0 / 3.0 * party.n) + 1.0 / 12.0)).sqrt() / party.scale;
        assert!(error <= bound, "{preset:?}, public key: {error} above {bound}");
    }
}

#[test]
fn two_encryptions_of_the_same_differ() {
    let mut party = Party::new(&Preset::N4096);
    let values = party.values(1.0);
    let (a, b) = (party.encrypt(&values), party.encrypt(&values));
    assert!(a.parts[0] != b.parts[0] && a.parts[1] != b.parts[1]);
}

#[test]
fn sums_and_products_are_those_of_the_slots() {
    for preset in Preset::ALL {
        let mut party = Party::new(preset);
        let (x, y) = (party.values(0.7), party.values(1.9));
        let (cx, cy) = (party.encrypt(&x), party.encrypt(&y));
        let fresh = party.fresh();
        for (sum, sign) in [(cx.add(&cy).unwrap(), 1.0), (cx.sub(&cy).unwrap(), -1.0)] {
            let error = party.error(&sum, |i| x[i] + sign * y[i]);
            assert!(error <= 2.0 * fresh, "{preset:?}: {error}");
        }
        let error = party.error(&cx.mul_integer(-7), |i| -7.0 * x[i]);
        assert!(error <= 7.0 * fresh, "{preset:?}: {error}");
        let plain = Plaintext::encode(&party.context, &y, party.scale, preset.level_max()).unwrap();
        let error = party.error(&cx.add_plain(&plain).unwrap(), |i| x[i] + y[i]);
        assert!(error <= 2.0 * fresh, "{preset:?}: {error}");

        // Each factor is off by at most `fresh`, and at most 1.
        let product_error = fresh * (2.0 + fresh);
        let by_plain = cx.mul_plain(&plain).unwrap();
        let rescaled = by_plain.rescale().unwrap();
        let error = party.error(&rescaled, |i| x[i] * y[i]);
        let bound = product_error + party.rounding(rescaled.scale());
        assert!(error <= bound, "{preset:?}: {error} above {bound}");

        let sum = Ciphertext::sum_of_products(&[(&cx, &plain), (&cy, &plain)]).unwrap();
        let apart = by_plain.add(&cy.mul_plain(&plain).unwrap()).unwrap();
        assert!(sum.parts == apart.parts && sum.scale().to_bits() == apart.scale().to_bits());
        assert!(matches!(Ciphertext::sum_of_products(&[]), Err(CkksError::Shape { .. })));
        assert!(matches!(Ciphertext::sum_of_products(&[(&rescaled, &plain)]), Err(CkksError::Level { .. })));

        let product = cx.mul(&cy).unwrap();
        assert_eq!(product.parts(), 3);
        let error = party.error(&product, |i| x[i] * y[i]);
        // `f64` decodes no better than 2^-40 of a coefficient that needs two limbs.
        assert!(error <= product_error + 1e-9, "{preset:?}: {error}");
        // Without relinearising: five parts, as CryptoNets' second square has them.
        let square = product.rescale().unwrap();
        let square = square.mul(&square).unwrap();
        let scale = square.scale();
        let fits = scale.log2() < party.context.log2_modulus(square.level()).min(85.0);
        if fits {
            let error = party.error(&square, |i| (x[i] * y[i]).powi(2));
            let each = product_error + TAIL * party.n * party.n.sqrt() / product.rescale().unwrap().scale();
            assert!(square.parts() == 5 && error <= each * (2.0 + each) + 1e-9, "{preset:?}: {error} above {each}");
        }
    }
}

#[test]
fn key_switching_keeps_what_it_switches() {
    for preset in [&Preset::N8192, &Preset::N16384, &Preset::N32768] {
        let mut party = Party::new(preset);
        let (x, y) = (party.values(0.7), party.values(1.9));
        let key = party.secret.relinearization_key(&mut party.rng).unwrap();
        let rotations = party.secret.rotation_keys(&[1, 5, preset.slots() - 1], &mut party.rng).unwrap();
        let mut ciphertext = party.encrypt(&x);
        let other = party.encrypt(&y);
        let slots = preset.slots();
        for steps in [0, 1, 5, slots - 1] {
            let turned = ciphertext.rotate(steps, &rotations).unwrap();
            let error = party.error(&turned, |i| x[(i + steps) % slots]);
            let bound = party.fresh() + party.switching(turned.scale());
            assert!(error <= bound, "{preset:?} by {steps}: {error} above {bound}");
        }
        assert_eq!(ciphertext.rotate(2, &rotations).err(), Some(CkksError::NoRotation { steps: 2 }));
        let lower = ciphertext.at_level(1).unwrap();
        for (steps, turned) in
            [5, 0, slots - 1].into_iter().zip(lower.rotate_each(&[5, 0, slots - 1], &rotations).unwrap())
        {
            let alone = lower.rotate(steps, &rotations).unwrap();
            assert!(
                turned.parts == alone.parts
                    && turned.level() == 1
                    && turned.scale().to_bits() == alone.scale().to_bits()
            );
        }
        assert_eq!(lower.rotate_each(&[1, 2], &rotations).err(), Some(CkksError::NoRotation { steps: 2 }));

        // Down all levels: each step multiplies by y, at whatever level x is.
        let mut expected = x.clone();
        let mut bound = party.fresh();
        for level in (1..=preset.level_max()).rev() {
            let factor = other.at_level(level).unwrap();
            let product = ciphertext.mul(&factor).unwrap().relinearize(&key).unwrap();
            let switched = party.switching(product.scale());
            ciphertext = product.rescale().unwrap();
            bound = bound + party.fresh() * (1.0 + bound) + switched + party.rounding(ciphertext.scale());
            expected.iter_mut().zip(&y).for_each(|(e, y)| *e *= y);
            let error = party.error(&ciphertext, |i| expected[i]);
            assert!(error <= bound, "{preset:?} at level {level}: {error} above {bound}");
        }
        assert_eq!(ciphertext.level(), 0);
        assert_eq!(ciphertext.rescale().err(), Some(CkksError::Depth));
    }
}

#[test]
fn a_released_value_hides_the_error_and_is_still_the_value() {
    let mut party = Party::new(&Preset::N8192);
    let values = party.values(0.3);
    // The scale leaves room for the noise: 2^45 for an error below 2^5.
    party.scale = 60_f64.exp2();
    let ciphertext = party.encrypt(&values);
    let released = party.secret.decrypt_for_release(&ciphertext, 5, &mut party.rng).unwrap().decode();
    let error = released.iter().zip(&values).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    let bound = TAIL * party.n.sqrt() * 45_f64.exp2() / 3_f64.sqrt() / party.scale + 1e-9;
    assert!(error <= bound && error > bound / 100.0, "{error}, bound {bound}");
    assert!(party.secret.decrypt_for_release(&ciphertext, 22, &mut party.rng).is_err());
}

/// Of a fresh ciphertext of the public key, in a slot; and of u·e_b + e·s.
fn public_noise(n: f64) -> f64 {
    TAIL * SIGMA * n * (4.0_f64 / 3.0).sqrt()
}

#[test]
fn masks_that_two_have_in_common_cancel_in_the_sum() {
    let mut party = Party::new(&Preset::N16384_PARTS);
    let public = party.secret.public_key(&mut party.rng);
    let values = [party.values(0.7), party.values(1.9)];
    let seed = party.rng.bytes32();
    let shares = values.each_ref().map(|values| {
        let plain = Plaintext::encode(&party.context, values, party.scale, 5).unwrap();
        public.encrypt(&plain, &mut party.rng).unwrap()
    });
    let mut masked = shares.clone();
    masked[0].mask(&seed, Sign::Plus);
    masked[1].mask(&seed, Sign::Minus);
    let same = |a: &[u64], b: &[u64]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    for (share, masked) in shares.iter().zip(&masked) {
        assert_eq!(same(&share.parts[0], &masked.parts[0]), 0);
    }
    let (sum, plain) = (masked[0].add(&masked[1]).unwrap(), shares[0].add(&shares[1]).unwrap());
    assert!(sum.parts == plain.parts);
    let error = party.error(&sum, |i| values[0][i] + values[1][i]);
    assert!(error <= 2.0 * public_noise(party.n) / party.scale, "{error}");
}

/// What the server of a session does with encrypted H1: bias, square, linear, square; then it hides how it came about.
#[test]
fn released_squares_keep_their_values_and_hide_their_factors() {
    let mut party = Party::new(&Preset::N16384_PARTS);
    let public = party.secret.public_key(&mut party.rng);
    party.scale = 90_f64.exp2();
    let inputs = [party.values(0.7), party.values(1.9)];
    let bias = [3.25, -1.5];
    let weights = [[113, -2047], [4095, 77]];
    let level = 8;
    let ciphertexts = inputs.each_ref().map(|values| {
        let plain = Plaintext::encode(&party.context, values, party.scale, level).unwrap();
        public.encrypt(&plain, &mut party.rng).unwrap()
    });
    let map =
        |weights: &[[i32; 2]; 2]| LinearMap::new(2, 2).group(vec![0, 1], vec![0, 1], weights.as_flattened()).unwrap();
    let linear =
        |weights, weight_scale, bias: [f64; 2]| Layer::Linear { map: map(weights), weight_scale, bias: bias.into() };
    let first = [linear(&[[1, 0], [0, 1]], 1.0, bias), Layer::Square, linear(&weights, 4096.0, [0.5, 0.0])];
    let mut workspace = Workspace::default();
    let evaluate = |layers: Vec<Layer>, inputs: &[Ciphertext], workspace: &mut Workspace| {
        Segment::new(layers).unwrap().evaluate(&party.context, Inputs::Whole(inputs), workspace, 1).unwrap()
    };
    let rescaled = |mut values: Vec<Ciphertext>, times: usize| {
        for _ in 0..times {
            values = values.iter().map(|value| value.rescale().unwrap()).collect();
        }
        values
    };
    let hidden = rescaled(evaluate(first.into(), &ciphertexts, &mut workspace), 3);
    let hidden_scale = hidden[0].scale();
    let squares = evaluate(vec![Layer::Square], &hidden, &mut workspace);
    let hide = |value: &Ciphertext, rng: &mut SecretRng| {
        let mut value = value.clone();
        public.rerandomize(&mut value, rng).unwrap();
        value
    };
    let hidden: Vec<Ciphertext> = squares.iter().map(|square| hide(square, &mut party.rng)).collect();
    let again = hide(&squares[0], &mut party.rng);
    for part in 0..5 {
        let same = again.parts[part].iter().zip(&hidden[0].parts[part]).filter(|(a, b)| a == b).count();
        assert_eq!(same, 0, "part {part}");
    }
    let mut released = rescaled(hidden, 3);
    assert_eq!(released[0].level(), 2);

    // In a slot: every input is at most 6 in size, every value behind the linear map at most 60.
    let fresh = public_noise(party.n) / party.scale;
    let hidden_error = 1.5 * (2.0 * 6.0 + fresh) * fresh + 3.0 * party.rounding(hidden_scale) * party.n.sqrt();
    let error = (2.0 * 60.0 + hidden_error) * hidden_error;
    let scale = released[0].scale();
    let error_log2 = (error * scale + 2.0).log2().ceil() as u32;
    assert!(error_log2 <= 21, "{error_log2}");
    for (o, value) in released.iter_mut().enumerate() {
        value.flood(error_log2, &mut party.rng).unwrap();
        let weights = weights[o].map(|w| f64::from(w) / 4096.0);
        let expected = |i: usize| {
            let squares = [0, 1].map(|k| (inputs[k][i] + bias[k]).powi(2));
            (weights[0] * squares[0] + weights[1] * squares[1] + [0.5, 0.0][o]).powi(2)
        };
        let noise = TAIL * party.n.sqrt() * f64::from(error_log2 + 40).exp2() / 3_f64.sqrt() / scale;
        let rounding = TAIL * (party.n / 12.0 * (2.0 / 3.0 * party.n).powi(4) * 2.0).sqrt() / scale;
        let found = party.error(value, expected);
        assert!(found <= noise + rounding + error && found > noise / 100.0, "{found}, {noise}");
        assert!(noise < 0.1, "{noise}");
    }
}

#[test]
fn the_parts_of_a_square_show_its_root_until_they_are_rerandomized() {
    let mut party = Party::new(&Preset::N4096);
    let public = party.secret.public_key(&mut party.rng);
    let values = party.values(0.7);
    let ciphertext = party.encrypt(&values);
    let square = ciphertext.mul(&ciphertext).unwrap();
    // (a + b·s)² has the parts a², 2ab, b²: whoever sees them can take the root.
    let is_square = |square: &Ciphertext| {
        let q = party.context.limbs()[0];
        let [a, b, c] = [0, 1, 2].map(|part| square.parts[part][0]);
        q.mul(b, b) == q.mul(q.reduce(4), q.mul(a, c))
    };
    assert!(is_square(&square));
    let mut hidden = square.clone();
    public.rerandomize(&mut hidden, &mut party.rng).unwrap();
    assert!(!is_square(&hidden));
    let noise = public_noise(party.n) * TAIL * (2.0 / 3.0 * party.n).sqrt() / square.scale();
    let fresh = party.fresh();
    let error = party.error(&hidden, |i| values[i] * values[i]);
    assert!(error <= fresh * (2.0 + fresh) + noise, "{error}");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut party = Party::new(&Preset::N4096);
    let context = Arc::clone(&party.context);
    let encode = |values: &[f64], scale: f64, level: usize| Plaintext::encode(&context, values, scale, level).err();
    assert_eq!(encode(&[0.0; 2049], 1e9, 2), Some(CkksError::Slots { slots: 2048, found: 2049 }));
    assert!(matches!(encode(&[1.0, f64::NAN], 1e9, 2), Some(CkksError::Value { slot: 1, .. })));
    assert!(matches!(encode(&[1.0, 3.0, f64::INFINITY], 1e9, 2), Some(CkksError::Value { slot: 2, .. })));
    assert!(matches!(encode(&[1e300, 1.0], 1e9, 2), Some(CkksError::Value { slot: 0, .. })));
    assert!(matches!(encode(&[1.0], f64::NAN, 2), Some(CkksError::Value { .. })));
    assert!(matches!(encode(&[1e9], 30_f64.exp2(), 0), Some(CkksError::Value { .. })));
    assert_eq!(encode(&[1.0], 1e9, 3), Some(CkksError::Level { expected: 2, found: 3 }));

    let x = party.encrypt(&[1.0, 2.0]);
    let lower = x.at_level(1).unwrap();
    assert_eq!(x.add(&lower).err(), Some(CkksError::Level { expected: 2, found: 1 }));
    assert!(matches!(x.add(&x.mul(&x).unwrap()).err(), Some(CkksError::Scales { .. })));
    assert!(matches!(lower.mul(&lower).unwrap().mul(&lower).err(), Some(CkksError::Scale { .. })));
    assert!(matches!(lower.at_level(2).err(), Some(CkksError::Level { .. })));
    let no_keys = party.secret.relinearization_key(&mut party.rng).err();
    assert_eq!(no_keys, Some(CkksError::NoKeySwitching { preset: "n4096" }));

    let mut other = Party::new(&Preset::N8192);
    let key = other.secret.relinearization_key(&mut other.rng).unwrap();
    let y = other.encrypt(&[1.0]);
    assert_eq!(x.add(&y).err(), Some(CkksError::Contexts));
    assert!(matches!(y.relinearize(&key).err(), Some(CkksError::Parts { found: 2, .. })));
    assert_eq!(x.mul(&x).unwrap().relinearize(&key).err(), Some(CkksError::Contexts));
    assert_eq!(party.secret.decrypt(&y).err(), Some(CkksError::Contexts));
}

#[test]
fn nothing_secret_is_shown() {
    let party = Party::new(&Preset::N4096);
    let plain = Plaintext::encode(&party.context, &[0.123_456_789], party.scale, 0).unwrap();
    assert_eq!(format!("{:?}", party.secret), "SecretKey(Preset(n4096))");
    assert!(!format!("{plain:?}").contains("123"));
}
