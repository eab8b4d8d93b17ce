//! Convolution, as a matrix product over the unfolded image.

use std::ops::Range;

use super::{Backward, Layer, Weight};
use crate::matrix::{matmul, view, view_mut};
use crate::model::{Mode, Parameter};

/// The extents of a convolution or pooling: a window of side `window` moves over `[channels, height, width]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) channels: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) window: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

impl Geometry {
    /// Height and width of the output.
    pub(crate) fn output(&self) -> [usize; 2] {
        [self.height, self.width].map(|side| (side + 2 * self.padding - self.window) / self.stride + 1)
    }

    pub(crate) fn input_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Rows of the unfolded image: one per channel and place in the window.
    fn unfolded_rows(&self) -> usize {
        self.channels * self.window * self.window
    }

    /// Windows, each a column of the unfolded image.
    fn positions(&self) -> usize {
        let [height, width] = self.output();
        height * width
    }

    /// The windows along one axis whose place `offset` lies inside the image, not in its padding.
    fn inside(&self, offset: usize, side: usize) -> Range<usize> {
        let windows = (side + 2 * self.padding - self.window) / self.stride + 1;
        let start = self.padding.saturating_sub(offset).div_ceil(self.stride);
        let end = match (side + self.padding).checked_sub(offset + 1) {
            None => 0,
            Some(last) => (last / self.stride + 1).min(windows),
        };
        start.min(end)..end
    }

    /// Calls `run(unfolded, image, len)` for every run of places of one row of one window offset: `len` elements from
    /// `unfolded` on in the unfolded image are every `stride`-th element from `image` on.
    fn runs(&self, mut run: impl FnMut(usize, usize, usize)) {
        let [_, output_width] = self.output();
        let positions = self.positions();
        let mut row = 0;
        for channel in 0..self.channels {
            for ky in 0..self.window {
                for kx in 0..self.window {
                    let columns = self.inside(kx, self.width);
                    for oy in self.inside(ky, self.height) {
                        if columns.is_empty() {
                            break;
                        }
                        let y = oy * self.stride + ky - self.padding;
                        let x = columns.start * self.stride + kx - self.padding;
                        run(
                            row * positions + oy * output_width + columns.start,
                            (channel * self.height + y) * self.width + x,
                            columns.len(),
                        );
                    }
                    row += 1;
                }
            }
        }
    }

    /// `unfolded: [channels·window², positions]` from an image; its padding must be zeros already.
    fn unfold(&self, image: &[f32], unfolded: &mut [f32]) {
        self.runs(|to, from, len| {
            let to = &mut unfolded[to..to + len];
            if self.stride == 1 {
                to.copy_from_slice(&image[from..from + len]);
            } else {
                let from = image[from..].iter().step_by(self.stride);
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from);
            }
        });
    }

    /// Adds every element of `unfolded` to where it came from.
    fn fold(&self, unfolded: &[f32], image: &mut [f32]) {
        self.runs(|from, to, len| {
            let from = &unfolded[from..from + len];
            if self.stride == 1 {
                let to = &mut image[to..to + len];
                to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
            } else {
                let to = image[to..].iter_mut().step_by(self.stride);
                to.zip(from).for_each(|(to, &from)| *to += from);
            }
        });
    }
}

/// A convolution (cross-correlation, as everywhere in this field) with bias, one image after the other.
///
/// The weight is `[channels_out, channels_in, kernel, kernel]`. The unfolded image is made again for the backward pass:
/// it fits the cache for one image, and is `kernel²` times the batch for all of them.
pub(crate) struct Conv2d {
    geometry: Geometry,
    channels: usize,
    weight: Weight,
    bias: Weight,
    unfolded: Vec<f32>,
    grad_unfolded: Vec<f32>,
}

impl Conv2d {
    /// `prefix` is the name before `.weight` and `.bias`.
    pub(crate) fn new(seed: u64, prefix: &str, geometry: Geometry, channels: usize) -> Self {
        let Geometry { channels: inputs, window, .. } = geometry;
        let fan_in = geometry.unfolded_rows();
        let unfolded = vec![0.0; fan_in * geometry.positions()];
        Self {
            geometry,
            channels,
            weight: Weight::uniform(seed, format!("{prefix}.weight"), &[channels, inputs, window, window], fan_in),
            bias: Weight::uniform(seed, format!("{prefix}.bias"), &[channels], fan_in),
            grad_unfolded: unfolded.clone(),
            unfolded,
        }
    }
}

impl Layer for Conv2d {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        let (geometry, positions) = (self.geometry, self.geometry.positions());
        let weight = view(&self.weight.value, geometry.unfolded_rows());
        let images = input.chunks_exact(geometry.input_len());
        for (image, output) in images.zip(output.chunks_exact_mut(self.channels * positions)) {
            geometry.unfold(image, &mut self.unfolded);
            for (channel, &bias) in output.chunks_exact_mut(positions).zip(&self.bias.value) {
                channel.fill(bias);
            }
            let unfolded = view(&self.unfolded, positions);
            matmul(weight, unfolded, view_mut(output, positions), true);
        }
    }

    fn backward(&mut self, pass: Backward<'_>) {
        let (geometry, positions) = (self.geometry, self.geometry.positions());
        let rows = geometry.unfolded_rows();
        self.weight.gradient.fill(0.0);
        self.bias.gradient.fill(0.0);
        pass.grad_input.fill(0.0);
        let images = pass.input.chunks_exact(geometry.input_len());
        let grads_input = pass.grad_input.chunks_exact_mut(geometry.input_len());
        let grads_output = pass.grad_output.chunks_exact(self.channels * positions);
        for ((image, grad_input), grad_output) in images.zip(grads_input).zip(grads_output) {
            let channels = grad_output.chunks_exact(positions);
            for (sum, channel) in self.bias.gradient.iter_mut().zip(channels) {
                *sum += channel.iter().sum::<f32>();
            }
            geometry.unfold(image, &mut self.unfolded);
            let grad_output = view(grad_output, positions);
            let unfolded = view(&self.unfolded, positions);
            let grad_weight = view_mut(&mut self.weight.gradient, rows);
            matmul(grad_output, unfolded.t(), grad_weight, true);
            let weight = view(&self.weight.value, rows);
            let grad_unfolded = view_mut(&mut self.grad_unfolded, positions);
            matmul(weight.t(), grad_output, grad_unfolded, false);
            geometry.fold(&self.grad_unfolded, grad_input);
        }
    }

    fn parameters(&mut self) -> Vec<Parameter<'_>> {
        vec![self.weight.parameter(), self.bias.parameter()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometries() -> Vec<(Geometry, usize)> {
        let mut all = Vec::new();
        for (channels, height, width) in [(1, 5, 5), (2, 4, 7), (3, 6, 5)] {
            for window in 1..=4 {
                for stride in 1..=3 {
                    // Padding up to more than the window: whole windows then lie in it.
                    for padding in 0..=5 {
                        let geometry = Geometry { channels, height, width, window, stride, padding };
                        all.push((geometry, 1 + (window + stride) % 3));
                    }
                }
            }
        }
        all
    }

    /// The pixel under place `[ky, kx]` of window `[oy, ox]`, unless it is padding.
    fn pixel(g: Geometry, channel: usize, [oy, ox]: [usize; 2], [ky, kx]: [usize; 2]) -> Option<usize> {
        let y = (oy * g.stride + ky).checked_sub(g.padding)?;
        let x = (ox * g.stride + kx).checked_sub(g.padding)?;
        (y < g.height && x < g.width).then_some((channel * g.height + y) * g.width + x)
    }

    #[test]
    fn agrees_with_the_definition() {
        for (geometry, channels) in geometries() {
            let mut conv = Conv2d::new(5, "1", geometry, channels);
            let [height, width] = geometry.output();
            let images = 2;
            let input: Vec<f32> =
                (0..images * geometry.input_len()).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
            let mut output = vec![f32::NAN; images * channels * height * width];
            conv.forward(&input, &mut output, Mode::Train);

            let mut found = output.iter();
            for image in input.chunks(geometry.input_len()) {
                for out_channel in 0..channels {
                    let kernels = conv.weight.value.chunks(geometry.unfolded_rows());
                    let kernel = kernels.clone().nth(out_channel).unwrap();
                    for oy in 0..height {
                        for ox in 0..width {
                            let mut sum = f64::from(conv.bias.value[out_channel]);
                            let mut weights = kernel.iter();
                            for channel in 0..geometry.channels {
                                for ky in 0..geometry.window {
                                    for kx in 0..geometry.window {
                                        let weight = f64::from(*weights.next().unwrap());
                                        if let Some(at) = pixel(geometry, channel, [oy, ox], [ky, kx]) {
                                            sum += weight * f64::from(image[at]);
                                        }
                                    }
                                }
                            }
                            let found = f64::from(*found.next().unwrap());
                            assert!((found - sum).abs() < 1e-5, "{geometry:?}");
                        }
                    }
                }
            }
            assert!(found.next().is_none());
        }
    }
}
