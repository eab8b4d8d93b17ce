//! Element-wise functions over slices, and their derivatives.

use multiversion::multiversion;

use crate::elementary;
use crate::spec::ActivationKind;

/// The slope of the leaky ReLU for negative values, PyTorch's default.
const LEAK: f32 = 0.01;

/// `√(2/π)`, of GELU's tanh form.
const GELU_SCALE: f32 = 0.797_884_6;
/// The cubic term of GELU's tanh form.
const GELU_CUBE: f32 = 0.044_715;

/// Compiles each function for AVX-512, AVX2 and the baseline; the processor chooses at run time.
macro_rules! in_place {
    ($($(#[$doc:meta])* $name:ident($x:ident) => $value:expr;)*) => {$(
        $(#[$doc])*
        pub fn $name(values: &mut [f32]) {
            #[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
            fn versions(values: &mut [f32]) {
                for value in values {
                    let $x = *value;
                    *value = $value;
                }
            }
            versions(values);
        }
    )*};
}

in_place! {
    /// `1 / (1 + exp(-x))` in place, within 3 units in the last place (below -87, at most 1.2e-38).
    ///
    /// A value's result has the same bits at every position and on every machine.
    sigmoid(x) => elementary::sigmoid(x);

    /// `tanh(x)` in place, within 3 units in the last place.
    ///
    /// A value's result has the same bits at every position and on every machine.
    tanh(x) => elementary::tanh(x);

    /// `max(x, 0)` in place; NaN stays.
    relu(x) => if x <= 0.0 { 0.0 } else { x };

    /// `x` if positive, else `x / 100`, in place.
    leaky_relu(x) => if x > 0.0 { x } else { LEAK * x };

    /// `x·Φ(x)` in its tanh form, `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, in place, within 4e-7·max(1, |x|).
    ///
    /// A value's result has the same bits at every position and on every machine.
    gelu(x) => x * gelu_gate(x);

    /// `x / (1 + exp(-x))` in place, within 4 units in the last place (below -87, at most 2e-36).
    ///
    /// A value's result has the same bits at every position and on every machine.
    silu(x) => x * elementary::sigmoid(x);

    /// `x²` in place: the one function here that can be computed exactly on encrypted numbers.
    square(x) => x * x;
}

/// `(1 + tanh(u))/2 = sigmoid(2u)`.
#[inline(always)]
fn gelu_gate(x: f32) -> f32 {
    elementary::sigmoid(2.0 * GELU_SCALE * x * (1.0 + GELU_CUBE * x * x))
}

/// `values = f(values)`.
pub(crate) fn apply(kind: ActivationKind, values: &mut [f32]) {
    match kind {
        ActivationKind::Sigmoid => sigmoid(values),
        ActivationKind::Tanh => tanh(values),
        ActivationKind::Relu => relu(values),
        ActivationKind::LeakyRelu => leaky_relu(values),
        ActivationKind::Gelu => gelu(values),
        ActivationKind::Silu => silu(values),
        ActivationKind::Square => square(values),
    }
}

/// `grad_input = grad_output · f'(input)`, from whichever of input and output makes it cheap.
pub(crate) fn differentiate(
    kind: ActivationKind,
    input: &[f32],
    output: &[f32],
    grad_output: &[f32],
    grad_input: &mut [f32],
) {
    match kind {
        ActivationKind::Sigmoid => sigmoid_slope(output, grad_output, grad_input),
        ActivationKind::Tanh => tanh_slope(output, grad_output, grad_input),
        ActivationKind::Relu => relu_slope(output, grad_output, grad_input),
        ActivationKind::LeakyRelu => leaky_relu_slope(output, grad_output, grad_input),
        ActivationKind::Gelu => gelu_slope(input, grad_output, grad_input),
        ActivationKind::Silu => silu_slope(input, grad_output, grad_input),
        ActivationKind::Square => square_slope(input, grad_output, grad_input),
    }
}

macro_rules! slopes {
    ($($name:ident($x:ident) => $slope:expr;)*) => {$(
        #[multiversion(targets("x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl", "x86_64+avx2"))]
        fn $name(values: &[f32], grad_output: &[f32], grad_input: &mut [f32]) {
            for ((grad_input, &grad_output), &$x) in grad_input.iter_mut().zip(grad_output).zip(values) {
                *grad_input = grad_output * $slope;
            }
        }
    )*};
}

slopes! {
    sigmoid_slope(y) => (y * (1.0 - y));
    tanh_slope(y) => (1.0 - y * y);
    relu_slope(y) => if y > 0.0 { 1.0 } else { 0.0 };
    leaky_relu_slope(y) => if y > 0.0 { 1.0 } else { LEAK };
    gelu_slope(x) => {
        let gate = gelu_gate(x);
        gate + x * gate * (1.0 - gate) * 2.0 * GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x)
    };
    silu_slope(x) => {
        let gate = elementary::sigmoid(x);
        gate + x * gate * (1.0 - gate)
    };
    square_slope(x) => 2.0 * x;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elementary::ulps;

    const ALL: [ActivationKind; 7] = [
        ActivationKind::Sigmoid,
        ActivationKind::Tanh,
        ActivationKind::Relu,
        ActivationKind::LeakyRelu,
        ActivationKind::Gelu,
        ActivationKind::Silu,
        ActivationKind::Square,
    ];

    fn truth(kind: ActivationKind, x: f64) -> f64 {
        let gelu_u = f64::sqrt(2.0 / std::f64::consts::PI) * (x + 0.044715 * x.powi(3));
        match kind {
            ActivationKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            ActivationKind::Tanh => x.tanh(),
            ActivationKind::Relu => x.max(0.0),
            ActivationKind::LeakyRelu => x.max(0.01 * x),
            ActivationKind::Gelu => 0.5 * x * (1.0 + gelu_u.tanh()),
            ActivationKind::Silu => x / (1.0 + (-x).exp()),
            ActivationKind::Square => x * x,
        }
    }

    fn points() -> Vec<f32> {
        (-40_000..=40_000).map(|i| i as f32 * 5e-4).collect()
    }

    #[test]
    fn values_are_accurate() {
        for kind in ALL {
            let points = points();
            let mut values = points.clone();
            apply(kind, &mut values);
            for (&x, &found) in points.iter().zip(&values) {
                let expected = truth(kind, f64::from(x));
                let fine = match kind {
                    ActivationKind::Gelu => (f64::from(found) - expected).abs() <= 4e-7 * f64::from(x.abs().max(1.0)),
                    _ => ulps(found, expected) <= 4.0,
                };
                assert!(fine, "{kind:?}({x}) = {found}, not {expected}");
            }
        }
    }

    #[test]
    fn slopes_are_the_derivatives() {
        for kind in ALL {
            let points: Vec<f32> = points().into_iter().filter(|&x| x != 0.0).collect();
            let mut values = points.clone();
            apply(kind, &mut values);
            let grad_output = vec![2.0; points.len()];
            let mut found = vec![0.0; points.len()];
            differentiate(kind, &points, &values, &grad_output, &mut found);
            for (&x, &found) in points.iter().zip(&found) {
                let (x, step) = (f64::from(x), 1e-5);
                let expected = (truth(kind, x + step) - truth(kind, x - step)) / step;
                assert!((f64::from(found) - expected).abs() < 5e-6, "{kind:?}'({x}) = {found}, not {expected}");
            }
        }
    }

    #[test]
    fn a_value_has_the_same_bits_at_every_position() {
        for kind in ALL {
            let points: Vec<f32> = (0..67).map(|i| (i as f32 - 33.0) * 0.37).collect();
            let alone: Vec<u32> = points
                .iter()
                .map(|&x| {
                    let mut value = [x];
                    apply(kind, &mut value);
                    value[0].to_bits()
                })
                .collect();
            for start in 0..points.len() {
                for end in start..=points.len() {
                    let mut values = points[start..end].to_vec();
                    apply(kind, &mut values);
                    let bits: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
                    assert_eq!(bits, alone[start..end], "{kind:?} {start}..{end}");
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_one() {
        for kind in ALL {
            let mut values = [f32::NAN; 3];
            apply(kind, &mut values);
            assert!(values.iter().all(|x| x.is_nan()), "{kind:?}");
        }
    }
}
