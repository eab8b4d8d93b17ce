//! The sum in the clear: the reference that the other protocols are tested against.
//!
//! 1. Party i sends `X_i·W_i` to the server, `4·n·h` bytes.
//! 2. The server adds them up in order of party.
//!
//! Private inputs: none are protected. The server learns every party's product. Other parties learn nothing.
//! Refused unless a role's own configuration allows it by name.

use super::{PartySide, ServerSide};
use crate::contract::Leak;
use crate::message::{HEADER_BYTES, Kind};
use crate::{Network, ProtocolError, Role, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::{Array2, ArrayView2, s};

/// What it does not prevent, besides what no first layer does.
pub(super) const LEAKS: &[Leak] = &[Leak::ServerLearnsEachProduct];

/// Bytes that each party sends in a step of `rows` rows, headers included.
#[must_use]
pub fn step_bytes(session: &SessionConfig, rows: u64) -> u64 {
    HEADER_BYTES as u64 + 4 * rows * u64::from(session.model.hidden_width)
}

/// A party's side.
pub struct Party {
    product: Array2<f32>,
}

impl Party {
    /// A side for one session.
    #[must_use]
    pub fn new(session: &SessionConfig) -> Self {
        Self { product: Array2::zeros((0, session.model.hidden_width as usize)) }
    }
}

#[async_trait]
impl PartySide for Party {
    fn prepare(&mut self, _step: Step, _rows: &[u32]) {}

    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
        _rows: &[u32],
        x: ArrayView2<'_, f32>,
        w: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        let product = multiply(&mut self.product, x, w);
        network.send_payload(Role::Server, step, 0, bytemuck::cast_slice(product)).await
    }
}

/// `x·w` into a buffer that grows to the largest batch and is reused.
pub(crate) fn multiply<'a>(buffer: &'a mut Array2<f32>, x: ArrayView2<'_, f32>, w: ArrayView2<'_, f32>) -> &'a [f32] {
    let (rows, width) = (x.nrows(), w.ncols());
    if buffer.nrows() < rows {
        *buffer = Array2::zeros((rows, width));
    }
    spnn_nn::matmul(x, w, buffer.slice_mut(s![..rows, ..]), false);
    buffer.as_slice().map_or(&[], |all| &all[..rows * width])
}

/// The server's side.
pub struct Server {
    parties: usize,
    width: usize,
    products: Vec<Vec<f32>>,
    sum: Array2<f32>,
}

impl Server {
    /// A side for one session.
    #[must_use]
    pub fn new(session: &SessionConfig) -> Self {
        let width = session.model.hidden_width as usize;
        Self { parties: session.parties.into(), width, products: Vec::new(), sum: Array2::zeros((0, width)) }
    }
}

#[async_trait]
impl ServerSide for Server {
    async fn open(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<ArrayView2<'_, f32>, ProtocolError> {
        let n = rows * self.width;
        self.products.resize_with(self.parties, Vec::new);
        self.products.iter_mut().for_each(|p| p.resize(n, 0.0));
        network.recv_payloads(step, &mut self.products).await?;
        if self.sum.nrows() < rows {
            self.sum = Array2::zeros((rows, self.width));
        }
        let mut sum = self.sum.slice_mut(s![..rows, ..]);
        sum.fill(0.0);
        for (party, product) in (0..).zip(&self.products) {
            if let Some(at) = product.iter().position(|v| !v.is_finite()) {
                let (peer, kind) = (Role::party(party), Kind::FirstLayer);
                let (row, column) = (at / self.width.max(1), at % self.width.max(1));
                return Err(ProtocolError::NotFinite { peer, step, kind, row, column });
            }
            sum.iter_mut().zip(product).for_each(|(s, p)| *s += p);
        }
        if let Some(at) = sum.iter().position(|v| !v.is_finite()) {
            let position = spnn_crypto::DecodeError { position: at };
            return Err(crate::error::out_of_bound(step, self.width, position));
        }
        Ok(self.sum.slice(s![..rows, ..]))
    }
}
