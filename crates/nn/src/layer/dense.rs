//! Dense layers: the bias over H1, and `x·Wᵀ + b`.

use super::{Backward, Layer, Weight};
use crate::matrix::{matmul, view, view_mut};
use crate::model::{Mode, Parameter};
use crate::rows::RowBlock;

/// Adds the bias of the first layer, whose product the parties compute.
pub(crate) struct Bias {
    bias: Weight,
    block: RowBlock,
}

impl Bias {
    pub(crate) fn new(name: String, width: usize) -> Self {
        Self { bias: Weight::constant(name, &[width], 0.0), block: RowBlock::default() }
    }
}

impl Layer for Bias {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        self.block.add(&self.bias.value, input, output);
    }

    fn backward(&mut self, pass: Backward<'_>) {
        self.block.sum(pass.grad_output, &mut self.bias.gradient);
        pass.grad_input.copy_from_slice(pass.grad_output);
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![self.bias.parameter()]
    }
}

/// `x·Wᵀ + b`, with `W: [outputs, inputs]` as PyTorch stores it.
pub(crate) struct Linear {
    inputs: usize,
    outputs: usize,
    weight: Weight,
    bias: Weight,
    block: RowBlock,
}

impl Linear {
    /// `prefix` is the name before `.weight` and `.bias`.
    pub(crate) fn new(seed: u64, prefix: &str, inputs: usize, outputs: usize) -> Self {
        let weight = format!("{prefix}.weight");
        let bias = format!("{prefix}.bias");
        Self {
            inputs,
            outputs,
            weight: Weight::uniform(seed, weight, &[outputs, inputs], inputs),
            bias: Weight::uniform(seed, bias, &[outputs], inputs),
            block: RowBlock::default(),
        }
    }
}

impl Layer for Linear {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        self.block.fill(&self.bias.value, output);
        let weight = view(&self.weight.value, self.inputs);
        let output = view_mut(output, self.outputs);
        matmul(view(input, self.inputs), weight.t(), output, true);
    }

    fn backward(&mut self, pass: Backward<'_>) {
        self.block.sum(pass.grad_output, &mut self.bias.gradient);
        let grad_output = view(pass.grad_output, self.outputs);
        let input = view(pass.input, self.inputs);
        let grad_weight = view_mut(&mut self.weight.gradient, self.inputs);
        matmul(grad_output.t(), input, grad_weight, false);
        let weight = view(&self.weight.value, self.inputs);
        let grad_input = view_mut(pass.grad_input, self.inputs);
        matmul(grad_output, weight, grad_input, false);
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![self.weight.parameter(), self.bias.parameter()]
    }
}
