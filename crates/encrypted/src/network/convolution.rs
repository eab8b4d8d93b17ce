//! The extents of a convolution, and what they make of an image.

use super::{Group, NetworkError, PRODUCTS_MAX, misfit, position, product};
use crate::network::WIDTH_MAX;
use serde::{Deserialize, Serialize};

/// The extents of a convolution (cross-correlation, as everywhere in this field).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Convolution {
    /// Channels, height, width of what goes in.
    pub image: [usize; 3],
    /// Channels of what comes out.
    pub channels: usize,
    /// Side of the kernel, in pixels.
    pub kernel: usize,
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Pixels of zeros around the image; fewer than the kernel's side, so that every window has a pixel in it.
    pub padding: usize,
}

impl Convolution {
    /// Channels, height, width of what comes out; `None` if the extents are out of bounds.
    #[must_use]
    pub fn output(&self) -> Option<[usize; 3]> {
        let [_, height, width] = self.image;
        let windows = |side: usize| {
            let room = self.padding.checked_mul(2)?.checked_add(side)?.checked_sub(self.kernel)?;
            room.checked_div(self.stride)?.checked_add(1)
        };
        Some([self.channels, windows(height)?, windows(width)?])
    }

    /// The pixel under one of the weights of a channel, in the window `[oy, ox]`; none where the padding is.
    pub(crate) fn pixel(&self, [oy, ox]: [usize; 2], tap: usize) -> Option<usize> {
        let [_, height, width] = self.image;
        let (channel, ky, kx) = (tap / (self.kernel * self.kernel), tap / self.kernel % self.kernel, tap % self.kernel);
        let inside = |window: usize, k: usize, side: usize| {
            (window * self.stride + k).checked_sub(self.padding).filter(|&at| at < side)
        };
        Some((channel * height + inside(oy, ky, height)?) * width + inside(ox, kx, width)?)
    }

    pub(crate) fn weights_per_channel(&self) -> usize {
        self.image[0] * self.kernel * self.kernel
    }

    /// Height and width of what comes out.
    pub(crate) fn check(&self) -> Result<[usize; 2], NetworkError> {
        let Self { image, channels, kernel, stride, padding } = *self;
        let fits = |len: Option<usize>, max: usize| len.is_some_and(|len| (1..=max).contains(&len));
        if !fits(product(&image), WIDTH_MAX) {
            return Err(misfit(
                "the image of a convolution",
                format!("1 to {WIDTH_MAX} numbers"),
                format!("{image:?}"),
            ));
        }
        let side_max = image[1].min(image[2]).saturating_add(padding.saturating_mul(2));
        if !(1..=side_max).contains(&kernel) {
            return Err(misfit("the kernel's side", format!("1 to {side_max}"), kernel));
        }
        if padding >= kernel {
            return Err(misfit("the padding", format!("less than the kernel's {kernel}"), padding));
        }
        if !(1..=WIDTH_MAX).contains(&stride) {
            return Err(misfit("the stride", format!("1 to {WIDTH_MAX}"), stride));
        }
        let output = self.output();
        let Some([_, height, width]) = output.filter(|output| fits(product(output), WIDTH_MAX)) else {
            return Err(misfit(
                "the output of a convolution",
                format!("1 to {WIDTH_MAX} numbers"),
                format!("{channels} channels"),
            ));
        };
        if !fits(product(&[channels, height, width, image[0], kernel, kernel]), PRODUCTS_MAX) {
            return Err(misfit(
                "the products of a convolution",
                format!("at most {PRODUCTS_MAX}"),
                format!("{self:?}"),
            ));
        }
        Ok([height, width])
    }

    /// The group of window `[oy, ox]`, the `at`-th of `windows`: its pixels inside the image, and its output of each
    /// channel. Padding is zeros, whatever their weights, so it is left out.
    pub(super) fn group(&self, [oy, ox]: [usize; 2], windows: usize, at: usize, kernel: &[i32]) -> Group {
        let pixels =
            (0..self.weights_per_channel()).filter_map(|tap| Some((position(self.pixel([oy, ox], tap)?), tap)));
        let (inputs, places): (Vec<u32>, Vec<usize>) = pixels.unzip();
        let weights = kernel.chunks_exact(self.weights_per_channel());
        Group {
            inputs,
            outputs: (0..self.channels).map(|channel| position(channel * windows + at)).collect(),
            weights: weights.flat_map(|weights| places.iter().map(|&place| weights[place])).collect(),
        }
    }
}
