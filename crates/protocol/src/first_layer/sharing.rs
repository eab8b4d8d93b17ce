//! SPNN-SS for weights that each party keeps in the clear: pairwise-masked additive shares.
//!
//! Notation: `m_ij` is a mask that parties i < j derive alike from the key `k_ij` of their own authenticated channel,
//! uniform over the ring to everyone else, fresh for every session, incarnation, step and tensor.
//!
//! 1. Party i computes `X_i·W_i` and encodes it in fixed point.
//! 2. It adds `m_ij` for every j > i and subtracts `m_ji` for every j < i. (Made ahead in [`PartySide::prepare`].)
//! 3. It sends the result, its additive share of `H1`, to the server: `8·n·h` bytes (`4·n·h` in the small ring).
//! 4. The server adds the shares: the masks cancel, and the sum is **opened**, to the server only.
//!
//! Private input of party i: `X_i`, `W_i`. Output, to the server: `H1 = Σ X_i·W_i`, off by at most `k·2^−(f+1)` and its
//! rounding to `f32`. The server learns nothing else as long as at least two parties do not collude with it; with
//! k − 1 colluding parties it learns the last one's product, as it would from `H1` itself. Parties learn nothing.
//!
//! Source: arXiv 2012.09364, SPNN-SS, first layer. There, features and weights are shared and multiplied by Beaver
//! triples; where `W_i` is local to party i only the sum wants protection, so a share of the sum is enough (pairwise
//! masks as in Bonawitz et al., CCS 2017, section 4, without dropouts).

use super::plain::multiply;
use super::{MaskSteps, PartySide, ServerSide};
use crate::contract::Leak;
use crate::error::{out_of_bound, own_value};
use crate::message::HEADER_BYTES;
use crate::{Network, ProtocolError, Role, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};
use spnn_crypto::{FixedPoint, FixedPointError, PairKey, RingElement, Sign};
use zeroize::Zeroize;

/// What it does not prevent, besides what no first layer does.
pub(super) const LEAKS: &[Leak] = &[Leak::CollusionOfServerAndAllOtherParties];

/// The ring of `sharing` and how reals are laid into it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharingSpec {
    /// 64 (default) or 32. The small ring halves the bytes sent and keeps 2^-17 instead of 2^-25 precision.
    #[serde(default = "ring_bits_default")]
    pub ring_bits: u32,
    /// Bits after the point; by default 24 in the large ring, 16 in the small one.
    #[serde(default)]
    pub fraction_bits: Option<u32>,
    /// Largest magnitude of an opened value; by default 2^20 in the large ring, 2^13 in the small one.
    #[serde(default)]
    pub h1_bound: Option<f64>,
}

fn ring_bits_default() -> u32 {
    64
}

impl Default for SharingSpec {
    fn default() -> Self {
        Self { ring_bits: ring_bits_default(), fraction_bits: None, h1_bound: None }
    }
}

impl SharingSpec {
    /// The fixed-point format for `parties` addends.
    ///
    /// # Errors
    /// [`FixedPointError`] if the format cannot work.
    pub fn fixed_point(&self, parties: u16) -> Result<FixedPoint, FixedPointError> {
        let wide = self.ring_bits == 64;
        let fraction_bits = self.fraction_bits.unwrap_or(if wide { 24 } else { 16 });
        let bound = self.h1_bound.unwrap_or(f64::from(if wide { 1 << 20 } else { 1 << 13 }));
        FixedPoint::new(self.ring_bits, fraction_bits, u32::from(parties), bound)
    }
}

/// Bytes that each party sends in a step of `rows` rows, headers included.
#[must_use]
pub fn step_bytes(session: &SessionConfig, rows: u64) -> u64 {
    let value = u64::from(session.sharing.ring_bits / 8);
    HEADER_BYTES as u64 + value * rows * u64::from(session.model.hidden_width)
}

/// A party's side.
pub struct Party<R: RingElement> {
    format: FixedPoint,
    masks: MaskSteps,
    keys: Vec<(Sign, PairKey)>,
    width: usize,
    /// Sum of this party's masks for the step it is prepared for; with the encoded product added, its share.
    share: Vec<R>,
    prepared: Option<(Step, usize)>,
    product: Array2<f32>,
}

impl<R: RingElement> Party<R> {
    /// The side of a party, with the key it shares with each other party, and who of the two adds.
    ///
    /// # Errors
    /// [`ProtocolError::FixedPoint`] if the session's format cannot work.
    pub fn new(session: &SessionConfig, incarnation: u64, keys: Vec<(Sign, PairKey)>) -> Result<Self, ProtocolError> {
        let width = session.model.hidden_width as usize;
        Ok(Self {
            format: session.sharing.fixed_point(session.parties)?,
            masks: MaskSteps::new(session, incarnation),
            keys,
            width,
            share: Vec::new(),
            prepared: None,
            product: Array2::zeros((0, width)),
        })
    }

    /// The sum of the masks of `step`, each derived once.
    fn derive(&mut self, step: Step, rows: usize) {
        let context = self.masks.context(step);
        self.share.clear();
        self.share.resize(rows * self.width, R::ZERO);
        for (sign, key) in &self.keys {
            key.mask(&context, *sign, &mut self.share);
        }
        self.prepared = Some((step, rows));
    }
}

#[async_trait]
impl<R: RingElement> PartySide for Party<R> {
    fn prepare(&mut self, step: Step, rows: &[u32]) {
        self.derive(step, rows.len());
    }

    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
        _rows: &[u32],
        x: ArrayView2<'_, f32>,
        w: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.masks.use_once(step)?;
        if self.prepared.take() != Some((step, x.nrows())) {
            self.derive(step, x.nrows());
            self.prepared = None;
        }
        let product = multiply(&mut self.product, x, w);
        self.format.encode_onto(product, &mut self.share).map_err(|e| own_value(step, self.width, e))?;
        network.send_payload(Role::Server, step, 0, bytemuck::cast_slice(&self.share)).await
    }
}

impl<R: RingElement> Drop for Party<R> {
    fn drop(&mut self) {
        self.share.zeroize();
    }
}

/// The server's side.
pub struct Server<R: RingElement> {
    format: FixedPoint,
    width: usize,
    shares: Vec<Vec<R>>,
    h1: Array2<f32>,
}

impl<R: RingElement> Server<R> {
    /// A side for one session.
    ///
    /// # Errors
    /// [`ProtocolError::FixedPoint`] if the session's format cannot work.
    pub fn new(session: &SessionConfig) -> Result<Self, ProtocolError> {
        Ok(Self::with_format(session, session.sharing.fixed_point(session.parties)?))
    }

    /// A side that opens sums of shares in `format`.
    pub(super) fn with_format(session: &SessionConfig, format: FixedPoint) -> Self {
        let width = session.model.hidden_width as usize;
        Self { format, width, shares: vec![Vec::new(); session.parties.into()], h1: Array2::zeros((0, width)) }
    }
}

#[async_trait]
impl<R: RingElement> ServerSide for Server<R> {
    async fn open(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: usize,
    ) -> Result<ArrayView2<'_, f32>, ProtocolError> {
        let n = rows * self.width;
        self.shares.iter_mut().for_each(|s| s.resize(n, R::ZERO));
        network.recv_payloads(step, &mut self.shares).await?;
        if self.h1.nrows() < rows {
            self.h1 = Array2::zeros((rows, self.width));
        }
        // Integer sums: the order of the shares cannot change a bit.
        let h1 = self.h1.as_slice_mut().map_or(&mut [][..], |all| &mut all[..n]);
        self.format.open(&self.shares, h1).map_err(|e| out_of_bound(step, self.width, e))?;
        Ok(self.h1.slice(s![..rows, ..]))
    }
}
