//! Steps along gradients.

use multiversion::multiversion;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};

use crate::errors::ModelError;
use crate::model::Parameter;
use crate::spec::OptimizerSpec;

/// An optimizer and what it remembers of each parameter, which it knows by position.
pub struct Optimizer {
    spec: OptimizerSpec,
    /// Steps made so far.
    steps: u64,
    /// Per parameter, one array per name in [`memory_names`].
    memory: Vec<Vec<Vec<f32>>>,
    noise: ChaCha20Rng,
}

/// What an [`Optimizer`] must remember to continue as if it had never stopped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerState {
    /// Steps made so far.
    pub steps: u64,
    /// Named `{position of the parameter}.{what}`, such as `0.velocity` or `3.first_moment`.
    pub memory: Vec<(String, Vec<f32>)>,
    /// Where the noise stream is, in words from its start.
    pub noise_position: u128,
}

impl Optimizer {
    /// An optimizer that has made no step. `spec` must have passed [`OptimizerSpec::validate`].
    ///
    /// `noise_seed` seeds the noise of SGLD and nothing else. Whether it is secret is the caller's choice: noise that
    /// others can draw again hides nothing from them.
    pub fn new(spec: &OptimizerSpec, noise_seed: [u8; 32]) -> Self {
        Self { spec: spec.clone(), steps: 0, memory: Vec::new(), noise: ChaCha20Rng::from_seed(noise_seed) }
    }

    /// The step size from the next step on, for a rate that changes while training; what is remembered stays. It must
    /// be positive, as [`OptimizerSpec::validate`] wants it.
    pub fn set_learning_rate(&mut self, rate: f64) {
        match &mut self.spec {
            OptimizerSpec::Sgd { learning_rate }
            | OptimizerSpec::Momentum { learning_rate, .. }
            | OptimizerSpec::Adam { learning_rate, .. }
            | OptimizerSpec::Sgld { learning_rate, .. } => *learning_rate = rate,
        }
    }

    /// One step of all parameters, which must be the same ones in the same order every time.
    ///
    /// # Panics
    /// If a parameter has another length than in the step before, which is a bug of the caller.
    pub fn step(&mut self, parameters: &mut [Parameter<'_>]) {
        self.steps += 1;
        for (position, parameter) in parameters.iter_mut().enumerate() {
            self.update(position, parameter.value, parameter.gradient);
        }
    }

    /// One step of a single parameter, as [`Optimizer::step`] of only this one.
    ///
    /// # Panics
    /// If `value` and `gradient` differ in length, or from the step before, which is a bug of the caller.
    pub fn step_one(&mut self, value: &mut [f32], gradient: &[f32]) {
        self.steps += 1;
        self.update(0, value, gradient);
    }

    /// Everything to save for continuing later.
    pub fn export_state(&self) -> OptimizerState {
        let names = memory_names(&self.spec);
        let memory = self.memory.iter().enumerate();
        OptimizerState {
            steps: self.steps,
            memory: memory
                .flat_map(|(position, arrays)| {
                    let named = names.iter().zip(arrays);
                    named.map(move |(name, array)| (format!("{position}.{name}"), array.clone()))
                })
                .collect(),
            noise_position: self.noise.get_word_pos(),
        }
    }

    /// Continues from a state that was exported while stepping parameters of these `lengths`, with the same
    /// specification and noise seed.
    ///
    /// # Errors
    /// [`ModelError::State`] if the state belongs to other parameters or another optimizer; nothing has changed then.
    pub fn import_state(&mut self, state: OptimizerState, lengths: &[usize]) -> Result<(), ModelError> {
        let names = memory_names(&self.spec);
        // Before the first step there is nothing to remember.
        let lengths = if state.steps == 0 { &[] } else { lengths };
        let mut arrays = state.memory.into_iter();
        let mut memory = Vec::with_capacity(lengths.len());
        for (position, &length) in lengths.iter().enumerate() {
            let mut remembered = Vec::with_capacity(names.len());
            for name in names {
                let expected = format!("{position}.{name}");
                match arrays.next() {
                    Some((name, array)) if name == expected && array.len() == length => {
                        remembered.push(array);
                    }
                    other => return Err(wrong_state(&expected, length, other)),
                }
            }
            memory.push(remembered);
        }
        if let Some((name, array)) = arrays.next() {
            return Err(ModelError::State {
                expected: format!("the memory of {} parameters", lengths.len()),
                found: format!("also {name} of length {}", array.len()),
            });
        }
        self.memory = memory;
        self.steps = state.steps;
        self.noise.set_word_pos(state.noise_position);
        Ok(())
    }

    fn update(&mut self, position: usize, value: &mut [f32], gradient: &[f32]) {
        assert_eq!(value.len(), gradient.len(), "a gradient per value");
        if self.memory.len() <= position {
            let fresh = memory_names(&self.spec).iter().map(|_| vec![0.0; value.len()]);
            self.memory.push(fresh.collect());
        }
        let memory = &mut self.memory[position];
        for array in &*memory {
            assert_eq!(array.len(), value.len(), "parameter {position} changed its length");
        }
        match (&self.spec, memory.as_mut_slice()) {
            (&OptimizerSpec::Sgd { learning_rate }, _) => {
                descend(value, gradient, learning_rate as f32);
            }
            (&OptimizerSpec::Momentum { learning_rate, momentum }, [velocity]) => {
                follow_velocity(value, gradient, velocity, learning_rate as f32, momentum as f32);
            }
            (&OptimizerSpec::Adam { learning_rate, beta1, beta2, epsilon }, [first, second]) => {
                let factors = AdamFactors::new(learning_rate, [beta1, beta2], epsilon, self.steps);
                adam(value, gradient, first, second, factors);
            }
            (&OptimizerSpec::Sgld { learning_rate, temperature }, _) => {
                descend(value, gradient, (learning_rate / 2.0) as f32);
                add_noise(value, (learning_rate * temperature).sqrt(), &mut self.noise);
            }
            (OptimizerSpec::Momentum { .. } | OptimizerSpec::Adam { .. }, _) => {
                unreachable!("memory is only ever made with one array per name")
            }
        }
    }
}

/// What each kind remembers of a parameter, one number per number.
fn memory_names(spec: &OptimizerSpec) -> &'static [&'static str] {
    match spec {
        OptimizerSpec::Sgd { .. } | OptimizerSpec::Sgld { .. } => &[],
        OptimizerSpec::Momentum { .. } => &["velocity"],
        OptimizerSpec::Adam { .. } => &["first_moment", "second_moment"],
    }
}

fn wrong_state(name: &str, length: usize, found: Option<(String, Vec<f32>)>) -> ModelError {
    ModelError::State {
        expected: format!("{name} of length {length}"),
        found: match found {
            None => "nothing".to_owned(),
            Some((name, array)) => format!("{name} of length {}", array.len()),
        },
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
fn descend(value: &mut [f32], gradient: &[f32], rate: f32) {
    for (value, &g) in value.iter_mut().zip(gradient) {
        *value -= rate * g;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
fn follow_velocity(value: &mut [f32], gradient: &[f32], velocity: &mut [f32], rate: f32, momentum: f32) {
    for ((value, velocity), &g) in value.iter_mut().zip(velocity).zip(gradient) {
        *velocity = momentum * *velocity + g;
        *value -= rate * *velocity;
    }
}

/// Adam's numbers of one step, the bias corrections folded in.
#[derive(Clone, Copy)]
struct AdamFactors {
    beta1: f32,
    beta2: f32,
    /// `1 - β`, rounded once: `1 - 0.999` in `f32` is off by 5e-5 of itself.
    complement1: f32,
    complement2: f32,
    /// `learning_rate / (1 - β₁ᵗ)`
    rate: f32,
    /// `1 / √(1 - β₂ᵗ)`
    root_scale: f32,
    epsilon: f32,
}

impl AdamFactors {
    fn new(learning_rate: f64, [beta1, beta2]: [f64; 2], epsilon: f64, step: u64) -> Self {
        let power = step as f64;
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            complement1: (1.0 - beta1) as f32,
            complement2: (1.0 - beta2) as f32,
            rate: (learning_rate / (1.0 - beta1.powf(power))) as f32,
            root_scale: (1.0 / (1.0 - beta2.powf(power)).sqrt()) as f32,
            epsilon: epsilon as f32,
        }
    }
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
fn adam(value: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32], factors: AdamFactors) {
    let moments = first.iter_mut().zip(second);
    for ((value, &g), (first, second)) in value.iter_mut().zip(gradient).zip(moments) {
        *first = factors.beta1 * *first + factors.complement1 * g;
        *second = factors.beta2 * *second + factors.complement2 * (g * g);
        let root = second.sqrt() * factors.root_scale + factors.epsilon;
        *value -= factors.rate * *first / root;
    }
}

/// Subtracts normal noise. Two numbers come from each pair of uniforms, by the Box–Muller transform; a last odd one
/// wastes its partner.
fn add_noise(value: &mut [f32], deviation: f64, rng: &mut ChaCha20Rng) {
    for pair in value.chunks_mut(2) {
        let radius = deviation * (-2.0 * uniform(rng).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * uniform(rng)).sin_cos();
        for (value, noise) in pair.iter_mut().zip([radius * cosine, radius * sine]) {
            *value -= noise as f32;
        }
    }
}

/// In `(0, 1]`, with the 53 bits of an `f64`: the logarithm is finite, and tails reach 8.5 deviations.
fn uniform(rng: &mut ChaCha20Rng) -> f64 {
    const UNIT: f64 = 1.0 / (1_u64 << 53) as f64;
    ((rng.next_u64() >> 11) + 1) as f64 * UNIT
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: [u8; 32] = [9; 32];

    fn momentum() -> OptimizerSpec {
        OptimizerSpec::Momentum { learning_rate: 0.1, momentum: 0.9 }
    }

    fn adam() -> OptimizerSpec {
        OptimizerSpec::Adam { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }

    /// 37 numbers: whole vectors and a remainder.
    fn start() -> Vec<f32> {
        (0..37).map(|i| i as f32 * 0.1 - 1.7).collect()
    }

    fn gradient(step: usize) -> Vec<f32> {
        (0..37).map(|i| ((i * 7 + step * 3) % 11) as f32 * 0.2 - 1.0).collect()
    }

    fn check(spec: &OptimizerSpec, mut update: impl FnMut(i32, f64, &mut [f64; 2]) -> f64) {
        let mut optimizer = Optimizer::new(spec, SEED);
        let mut found = start();
        let mut expected: Vec<f64> = found.iter().map(|&x| f64::from(x)).collect();
        let mut memory = vec![[0.0; 2]; 37];
        for step in 1..=20 {
            let gradient = gradient(step);
            optimizer.step_one(&mut found, &gradient);
            for ((x, memory), &g) in expected.iter_mut().zip(&mut memory).zip(&gradient) {
                *x -= update(step as i32, f64::from(g), memory);
            }
        }
        for (&found, &expected) in found.iter().zip(&expected) {
            assert!((f64::from(found) - expected).abs() < 3e-6, "{spec:?}");
        }
    }

    #[test]
    fn follows_the_formulas() {
        check(&OptimizerSpec::Sgd { learning_rate: 0.1 }, |_, g, _| 0.1 * g);
        check(&momentum(), |_, g, [velocity, _]| {
            *velocity = 0.9 * *velocity + g;
            0.1 * *velocity
        });
        check(&adam(), |step, g, [first, second]| {
            *first = 0.9 * *first + 0.1 * g;
            *second = 0.999 * *second + 0.001 * g * g;
            let first = *first / (1.0 - 0.9_f64.powi(step));
            let second = *second / (1.0 - 0.999_f64.powi(step));
            0.01 * first / (second.sqrt() + 1e-8)
        });
    }

    #[test]
    fn sgld_adds_noise_of_its_learning_rate_and_temperature() {
        let mut optimizer = Optimizer::new(&OptimizerSpec::Sgld { learning_rate: 0.04, temperature: 0.25 }, SEED);
        let count = 200_001;
        let mut value = vec![1.0; count];
        optimizer.step_one(&mut value, &vec![0.5; count]);
        // 1 - 0.04/2·0.5 = 0.99, with standard deviation √(0.04·0.25) = 0.1.
        let noise = value.iter().map(|&x| (f64::from(x) - 0.99) / 0.1);
        let moment = |power| noise.clone().map(|x: f64| x.powi(power)).sum::<f64>() / count as f64;
        // Five standard errors of each moment of a normal distribution: √(1, 2, 15, 96) / √n.
        for (power, expected, error) in [(1, 0.0, 0.012), (2, 1.0, 0.016), (3, 0.0, 0.044), (4, 3.0, 0.11)] {
            let found = moment(power);
            assert!((found - expected).abs() < error, "moment {power}: {found}");
        }
        let neighbours = value.windows(2).map(|pair| (f64::from(pair[0]) - 0.99) * (f64::from(pair[1]) - 0.99) / 0.01);
        assert!((neighbours.sum::<f64>() / count as f64).abs() < 0.012);
    }

    #[test]
    fn continues_from_a_saved_state() {
        let sgld = OptimizerSpec::Sgld { learning_rate: 0.01, temperature: 1.0 };
        for spec in [momentum(), adam(), sgld] {
            for saved_after in [0, 3] {
                let mut whole = Optimizer::new(&spec, SEED);
                let mut expected = start();
                let mut resumed = Optimizer::new(&spec, SEED);
                let mut found = Vec::new();
                for step in 0..6 {
                    if step == saved_after {
                        resumed.import_state(whole.export_state(), &[37]).unwrap();
                        found = expected.clone();
                    }
                    whole.step_one(&mut expected, &gradient(step));
                    if step >= saved_after {
                        resumed.step_one(&mut found, &gradient(step));
                    }
                }
                assert_eq!(found, expected, "{spec:?}");
                assert_eq!(resumed.export_state(), whole.export_state());
            }
        }
    }

    #[test]
    fn refuses_the_state_of_another() {
        let mut saved = Optimizer::new(&adam(), SEED);
        saved.step_one(&mut start(), &gradient(0));
        let state = saved.export_state();
        assert_eq!(state.memory[1].0, "0.second_moment");
        for (spec, lengths) in [(adam(), vec![36]), (adam(), vec![37, 1]), (adam(), vec![]), (momentum(), vec![37])] {
            let mut other = Optimizer::new(&spec, SEED);
            let error = other.import_state(state.clone(), &lengths).unwrap_err();
            assert!(matches!(error, ModelError::State { .. }));
            assert_eq!(other.export_state().steps, 0);
        }
    }

    #[test]
    fn a_new_learning_rate_keeps_what_is_remembered() {
        let mut changed = Optimizer::new(&adam(), SEED);
        let (mut value, mut expected) = (start(), start());
        changed.step_one(&mut value, &gradient(0));
        let OptimizerSpec::Adam { learning_rate, beta1, beta2, epsilon } = adam() else { panic!("adam is Adam") };
        let half = OptimizerSpec::Adam { learning_rate: learning_rate / 2.0, beta1, beta2, epsilon };
        let mut other = Optimizer::new(&half, SEED);
        other.import_state(changed.export_state(), &[value.len()]).unwrap();
        expected.copy_from_slice(&value);
        changed.set_learning_rate(learning_rate / 2.0);
        changed.step_one(&mut value, &gradient(1));
        other.step_one(&mut expected, &gradient(1));
        assert_eq!(value, expected);
    }

    #[test]
    fn steps_many_parameters_each_with_its_memory() {
        let mut together = Optimizer::new(&adam(), SEED);
        let mut alone = [Optimizer::new(&adam(), SEED), Optimizer::new(&adam(), SEED)];
        let mut values = [start(), start()[..5].to_vec()];
        let mut expected = values.clone();
        for step in 0..4 {
            let gradients = [gradient(step), gradient(step + 1)[..5].to_vec()];
            let mut parameters: Vec<Parameter<'_>> = values
                .iter_mut()
                .zip(&gradients)
                .map(|(value, gradient)| Parameter { name: "any".into(), shape: vec![value.len()], value, gradient })
                .collect();
            together.step(&mut parameters);
            for i in 0..2 {
                alone[i].step_one(&mut expected[i], &gradients[i]);
            }
        }
        assert_eq!(values, expected);
    }
}
