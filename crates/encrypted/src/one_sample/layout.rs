//! Where values lie in the slots.

use crate::{Convolution, Linear, Shape};
use serde::{Deserialize, Serialize};

/// Copies of a vector of numbers, each turned a little further than the one before, so that a product with a plaintext meets
/// as many different pairs of an output and an input as there are slots.
///
/// Slot s holds value (s + skew·(⌊s/block⌋ mod copies)) mod M, where M is the power of two that holds all values; nothing, where
/// there is no such value. M, block and copies are powers of two.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layout {
    values: usize,
    block: usize,
    copies: usize,
    skew: usize,
}

/// What the client encrypts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputLayout {
    /// The first layer, if it is a convolution: `layout` is then that of its outputs. Each period of the slots has, for one weight of
    /// a channel, the pixels under it; there are as many ciphertexts as that takes. Otherwise there is one, of the inputs.
    pub(crate) convolution: Option<Convolution>,
    pub(crate) layout: Layout,
}

impl Layout {
    /// The same copy over and over, each `block` slots apart.
    pub(crate) fn repeated(values: usize, block: usize) -> Self {
        Self { values, block, copies: 1, skew: 0 }
    }

    /// For a dense layer that comes next, with the fewest diagonals. All of it has to fit.
    pub(crate) fn before_dense(values: usize, outputs: usize, slots: usize) -> Self {
        let (inputs, outputs) = (values.next_power_of_two(), outputs.next_power_of_two());
        let block = inputs.max(outputs);
        let diagonals = inputs.min(outputs);
        let skew = (diagonals / (slots / block).max(1)).max(1);
        let copies = diagonals / skew;
        if copies > 1 { Self { values, block, copies, skew } } else { Self::repeated(values, block) }
    }

    /// How many values there are.
    pub(crate) fn values(&self) -> usize {
        self.values
    }

    /// After so many slots it begins again.
    pub(crate) fn period(&self) -> usize {
        self.block * self.copies
    }

    /// Which value a slot holds.
    pub(crate) fn value_at(&self, slot: usize) -> Option<usize> {
        let turned = slot + self.skew * (slot / self.block % self.copies);
        Some(turned % self.values.next_power_of_two()).filter(|value| *value < self.values)
    }

    fn is_sound(&self, slots: usize) -> bool {
        let Self { values, block, copies, skew } = *self;
        let fits = |size: usize| size.is_power_of_two() && size <= slots;
        (1..=slots).contains(&values)
            && fits(block)
            && values <= block
            && fits(copies)
            && block * copies <= slots
            && skew < slots
    }
}

/// The most weights of a channel that get ciphertexts of their pixels: 512 ciphertexts are 90 MB. A convolution with more is
/// evaluated as a dense layer.
const KERNEL_MAX: usize = 512;

/// The convolution, if a first layer is one that gets ciphertexts of its pixels.
pub(crate) fn by_pixels(first: &Linear) -> Option<Convolution> {
    match first.shape {
        Shape::Conv(convolution) => Some(convolution).filter(|c| c.weights_per_channel() <= KERNEL_MAX),
        Shape::Dense => None,
    }
}

impl InputLayout {
    /// How many ciphertexts.
    pub(crate) fn ciphertexts(&self, slots: usize) -> usize {
        self.convolution.map_or(1, |c| c.weights_per_channel().div_ceil(slots / self.layout.period()))
    }

    /// Under which weight of a channel the pixels of a slot are, in a ciphertext of that number.
    pub(crate) fn weight_at(
        &self,
        convolution: &Convolution,
        ciphertext: usize,
        slot: usize,
        slots: usize,
    ) -> Option<usize> {
        let period = self.layout.period();
        let weight = ciphertext * (slots / period) + slot / period;
        (weight < convolution.weights_per_channel()).then_some(weight)
    }

    /// Which inputs lie in the slots of a ciphertext.
    pub(crate) fn inputs_at(&self, ciphertext: usize, slots: usize) -> impl Iterator<Item = Option<usize>> {
        let [_, height, width] = self.convolution.and_then(|c| c.output()).unwrap_or([1; 3]);
        (0..slots).map(move |slot| {
            let value = self.layout.value_at(slot)?;
            let Some(convolution) = self.convolution else { return Some(value) };
            let window = value % (height * width);
            let weight = self.weight_at(&convolution, ciphertext, slot, slots)?;
            convolution.pixel([window / width, window % width], weight)
        })
    }

    /// Whether it can be that of a network with so many inputs: a stranger's may be anything.
    pub(crate) fn is_sound(&self, inputs: usize, slots: usize) -> bool {
        let values = match self.convolution {
            None => Some(inputs),
            Some(c) if c.check().is_err() || c.image.iter().product::<usize>() != inputs => None,
            Some(c) if c.weights_per_channel() > KERNEL_MAX => None,
            Some(c) => c.output().map(|output| output.iter().product()),
        };
        self.layout.is_sound(slots) && values == Some(self.layout.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_turned() {
        let layout = Layout::before_dense(3, 4, 8);
        assert_eq!(layout, Layout { values: 3, block: 4, copies: 2, skew: 2 });
        let values: Vec<_> = (0..8).map(|slot| layout.value_at(slot)).collect();
        assert_eq!(values, [Some(0), Some(1), Some(2), None, Some(2), None, Some(0), Some(1)]);
        assert_eq!(Layout::before_dense(8, 8, 8), Layout::repeated(8, 8));
    }

    #[test]
    fn a_layout_that_cannot_be_is_seen() {
        let good = Layout { values: 3, block: 4, copies: 2, skew: 2 };
        assert!(good.is_sound(8) && !good.is_sound(4));
        for bad in [
            Layout { values: 0, ..good },
            Layout { values: 5, ..good },
            Layout { block: 3, ..good },
            Layout { copies: 0, ..good },
            Layout { block: 1 << 62, ..good },
            Layout { copies: 1 << 62, ..good },
            Layout { skew: usize::MAX, ..good },
        ] {
            assert!(!bad.is_sound(8), "{bad:?}");
        }
        assert!(!InputLayout { convolution: None, layout: good }.is_sound(4, 8));
        let wide = Convolution { image: [1, 24, 24], channels: 3, kernel: 24, stride: 1, padding: 0 };
        assert!(!InputLayout { convolution: Some(wide), layout: good }.is_sound(576, 8));
        let image = Convolution { image: [1, 4, 4], channels: 1, kernel: 2, stride: 0, padding: 0 };
        assert!(!InputLayout { convolution: Some(image), layout: good }.is_sound(16, 8));
    }
}
