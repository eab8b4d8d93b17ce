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
use crate::error::{out_of_bound, own_value};
use crate::{Network, ProtocolError, Role, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::{Array2, ArrayView2, s};
use spnn_crypto::{FixedPoint, PairKey, RingElement, Sign};
use zeroize::Zeroize;

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
    fn prepare(&mut self, step: Step, rows: usize) {
        self.derive(step, rows);
    }

    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
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
        let width = session.model.hidden_width as usize;
        Ok(Self {
            format: session.sharing.fixed_point(session.parties)?,
            width,
            shares: vec![Vec::new(); session.parties.into()],
            h1: Array2::zeros((0, width)),
        })
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
