//! Element-wise functions.

use super::{Backward, Layer};
use crate::activation;
use crate::model::Mode;
use crate::spec::ActivationKind;

pub(crate) struct Activation {
    pub(crate) kind: ActivationKind,
}

impl Layer for Activation {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        output.copy_from_slice(input);
        activation::apply(self.kind, output);
    }

    fn backward(&mut self, pass: Backward<'_>) {
        let Backward { input, output, grad_output, grad_input } = pass;
        activation::differentiate(self.kind, input, output, grad_output, grad_input);
    }
}
