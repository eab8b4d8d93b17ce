//! Pooling of images.

use super::conv::Geometry;
use super::{Backward, Layer};
use crate::model::Mode;

/// The largest value of each window. Of equal values the first takes the gradient; a NaN wins over all.
pub(crate) struct MaxPool2d {
    geometry: Geometry,
    /// Which pixel of its image each output is.
    chosen: Vec<usize>,
}

/// The mean of each window.
pub(crate) struct AvgPool2d {
    geometry: Geometry,
}

impl MaxPool2d {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry, chosen: Vec::new() }
    }
}

impl AvgPool2d {
    pub(crate) fn new(geometry: Geometry) -> Self {
        Self { geometry }
    }
}

impl Layer for MaxPool2d {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        let geometry = self.geometry;
        self.chosen.clear();
        let images = input.chunks_exact(geometry.input_len());
        for (image, output) in images.zip(output.chunks_exact_mut(output_len(geometry))) {
            let mut output = output.iter_mut();
            for_each_window(geometry, |corner| {
                let mut best = corner;
                for row in 0..geometry.window {
                    let start = corner + row * geometry.width;
                    for at in start..start + geometry.window {
                        if image[at] > image[best] || image[at].is_nan() {
                            best = at;
                        }
                    }
                }
                self.chosen.push(best);
                if let Some(output) = output.next() {
                    *output = image[best];
                }
            });
        }
    }

    fn backward(&mut self, pass: Backward<'_>) {
        pass.grad_input.fill(0.0);
        let outputs = output_len(self.geometry);
        let images = pass.grad_input.chunks_exact_mut(self.geometry.input_len());
        let grads = pass.grad_output.chunks_exact(outputs);
        for ((image, grads), chosen) in images.zip(grads).zip(self.chosen.chunks_exact(outputs)) {
            for (&grad, &at) in grads.iter().zip(chosen) {
                image[at] += grad;
            }
        }
    }
}

impl Layer for AvgPool2d {
    fn forward(&mut self, input: &[f32], output: &mut [f32], _mode: Mode) {
        let geometry = self.geometry;
        let share = share(geometry);
        let images = input.chunks_exact(geometry.input_len());
        for (image, output) in images.zip(output.chunks_exact_mut(output_len(geometry))) {
            let mut output = output.iter_mut();
            for_each_window(geometry, |corner| {
                let mut sum = 0.0;
                for row in 0..geometry.window {
                    let start = corner + row * geometry.width;
                    sum += image[start..start + geometry.window].iter().sum::<f32>();
                }
                if let Some(output) = output.next() {
                    *output = sum * share;
                }
            });
        }
    }

    fn backward(&mut self, pass: Backward<'_>) {
        let geometry = self.geometry;
        let share = share(geometry);
        pass.grad_input.fill(0.0);
        let images = pass.grad_input.chunks_exact_mut(geometry.input_len());
        let grads = pass.grad_output.chunks_exact(output_len(geometry));
        for (image, grads) in images.zip(grads) {
            let mut grads = grads.iter();
            for_each_window(geometry, |corner| {
                let grad = grads.next().map_or(0.0, |grad| grad * share);
                for row in 0..geometry.window {
                    let start = corner + row * geometry.width;
                    let pixels = &mut image[start..start + geometry.window];
                    pixels.iter_mut().for_each(|pixel| *pixel += grad);
                }
            });
        }
    }
}

/// What one pixel counts in the mean of its window.
fn share(geometry: Geometry) -> f32 {
    1.0 / (geometry.window * geometry.window) as f32
}

fn output_len(geometry: Geometry) -> usize {
    let [height, width] = geometry.output();
    geometry.channels * height * width
}

/// Calls `visit` with the first pixel of every window, in the order of the outputs.
fn for_each_window(geometry: Geometry, mut visit: impl FnMut(usize)) {
    let [height, width] = geometry.output();
    for channel in 0..geometry.channels {
        for oy in 0..height {
            let row = channel * geometry.height + oy * geometry.stride;
            for ox in 0..width {
                visit(row * geometry.width + ox * geometry.stride);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(layer: &mut dyn Layer, input: &[f32], outputs: usize) -> Vec<f32> {
        let mut output = vec![f32::NAN; outputs];
        layer.forward(input, &mut output, Mode::Train);
        output
    }

    #[test]
    fn pools_by_hand() {
        let geometry = Geometry { channels: 1, height: 3, width: 5, window: 2, stride: 2, padding: 0 };
        #[rustfmt::skip]
        let image = [
            1.0, 2.0, -1.0, -2.0, 9.0,
            5.0, 4.0, -3.0, -1.0, 9.0,
            9.0, 9.0,  9.0,  9.0, 9.0,
        ];
        let mut max = MaxPool2d::new(geometry);
        assert_eq!(pooled(&mut max, &image, 2), [5.0, -1.0]);
        // Two pixels share the second maximum; the first takes the gradient.
        let mut grad_input = [f32::NAN; 15];
        max.backward(Backward {
            input: &image,
            output: &[5.0, -1.0],
            grad_output: &[10.0, 20.0],
            grad_input: &mut grad_input,
        });
        let mut expected = [0.0; 15];
        expected[5] = 10.0;
        expected[2] = 20.0;
        assert_eq!(grad_input, expected);

        let mut average = AvgPool2d::new(geometry);
        assert_eq!(pooled(&mut average, &image, 2), [3.0, -1.75]);
    }

    #[test]
    fn windows_may_overlap() {
        let geometry = Geometry { channels: 2, height: 2, width: 3, window: 2, stride: 1, padding: 0 };
        let image = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0, -1.0, 0.0, 1.0, 0.0, 2.0];
        let max = pooled(&mut MaxPool2d::new(geometry), &image, 4);
        assert_eq!(max, [5.0, 6.0, 1.0, 2.0]);
        let mean = pooled(&mut AvgPool2d::new(geometry), &image, 4);
        assert_eq!(mean, [3.0, 4.0, 0.0, 0.25]);
    }

    #[test]
    fn a_nan_wins() {
        let geometry = Geometry { channels: 1, height: 1, width: 3, window: 1, stride: 1, padding: 0 };
        let output = pooled(&mut MaxPool2d::new(geometry), &[1.0, f32::NAN, f32::INFINITY], 3);
        assert!(output[1].is_nan() && output[2] == f32::INFINITY);
    }
}
