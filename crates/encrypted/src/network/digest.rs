//! What two equal networks have in common: a digest over every field, in one order.

use super::{Convolution, Layer, Network, Shape};
use sha2::{Digest, Sha256};

impl Network {
    /// SHA-256 of everything in the network: two networks with the same digest are the same.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Canonical(Sha256::new());
        hash.bytes(b"spnn.network/1");
        hash.bytes(self.name.as_bytes());
        hash.bytes(self.loss.to_string().as_bytes());
        hash.names(&self.classes);
        hash.number(self.input.width);
        match self.input.image {
            None => hash.number(0),
            Some(image) => {
                hash.number(1);
                image.into_iter().for_each(|side| hash.number(side));
            }
        }
        hash.names(&self.input.columns);
        hash.reals(&self.input.offset);
        hash.reals(&self.input.factor);
        hash.reals(&[self.input.max]);
        hash.number(self.layers.len());
        for layer in &self.layers {
            match layer {
                Layer::Square => hash.number(0),
                Layer::Linear(linear) => {
                    match linear.shape {
                        Shape::Dense => hash.number(1),
                        Shape::Conv(Convolution {
                            image: [channels_in, height, width],
                            channels,
                            kernel,
                            stride,
                            padding,
                        }) => {
                            hash.number(2);
                            for n in [channels_in, height, width, channels, kernel, stride, padding] {
                                hash.number(n);
                            }
                        }
                    }
                    hash.number(linear.inputs);
                    hash.number(linear.outputs);
                    hash.bytes(&linear.fraction_bits.to_le_bytes());
                    hash.reals(&[linear.output_max]);
                    hash.reals(&linear.bias);
                    hash.number(linear.kernel.len());
                    linear.kernel.iter().for_each(|weight| hash.0.update(weight.to_le_bytes()));
                }
            }
        }
        hash.0.finalize().into()
    }
}

/// What a digest is made of: every length comes before its contents.
struct Canonical(Sha256);

impl Canonical {
    fn number(&mut self, n: usize) {
        self.0.update((n as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn names(&mut self, names: &[String]) {
        self.number(names.len());
        names.iter().for_each(|name| self.bytes(name.as_bytes()));
    }

    fn reals(&mut self, values: &[f64]) {
        self.number(values.len());
        values.iter().for_each(|value| self.0.update(value.to_bits().to_le_bytes()));
    }
}
