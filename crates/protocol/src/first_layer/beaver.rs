//! SPNN-SS as published: features and weights additively shared between the parties, multiplied by Beaver triples.
//!
//! Notation: `X = [X_1 … X_k]`, `[n, d]`, and `W`, `[d, h]`, are all parties' features and weights side by side; `[Y]_j` is
//! party j's additive share of `Y` over Z_2^64. `U`, `V` and `Z = U·V` are a triple that the dealer knows.
//!
//! Set-up, once a start of the session, for all rows it uses:
//!
//! 1. The dealer sends every party a seed of its own, 32 bytes. The party expands it to `[U]_j` (one row for each row of
//!    the data), and for each step `[V]_j` and `[Z]_j`; the dealer expands all of them.
//! 2. Party i shares `X_i`: the share of each other party j is expanded from `k_ij`, the key of the two, so nothing is
//!    sent; its own share is what is left.
//! 3. Every party sends `[X]_j − [U]_j` to every other one: `E = X − U` is **opened**, to the parties.
//!
//! Every step:
//!
//! 4. Dealer: `Z = U·V` for the rows of the step; it sends party 1 `Z − Σ_{j>1} [Z]_j`, `8·n·h` bytes.
//! 5. Party i shares `W_i` as in 2. Every party sends `[W]_j − [V]_j` to every other one, `8·d·h` bytes: `F = W − V` is
//!    **opened**, to the parties.
//! 6. Party j: `[H1]_j = E·[V]_j + [U]_j·F + [Z]_j`, party 1 adds `E·F`. It adds a share of zero, made as in
//!    [`sharing`], and sends the result to the server, `8·n·h` bytes.
//! 7. The server adds the shares: `H1` is **opened**, to the server only, and divided there by `2^2f`. No share is ever
//!    truncated, so the product of the encoded matrices is exact.
//!
//! Private input of party i: `X_i`, `W_i`. Output, to the server: `H1`, off by the encoding of its factors: at most
//! `2^−(f+1)·Σ(|x| + |w|)` over a row of X and a column of W, and its rounding to `f32`. Parties learn `E` and `F`, which
//! are uniform to them. The dealer learns nothing, as it sees neither. The server learns the sum only, unless k − 1
//! parties collude with it, as in `sharing`; a server in league with the dealer learns no more, which is what the share
//! of zero is for: without it the two could solve the shares for `E`. **A party in league with the dealer opens all of X
//! and W**: the dealer must not be run by a party, nor by anyone who would collude with one.
//!
//! Triples are used once: seeds are drawn anew on every start, `V` belongs to one step, and a party refuses to go back to
//! one. `U` stays with its row, which is masked by it once.
//!
//! Source: arXiv 2012.09364, SPNN-SS; D. Beaver, CRYPTO 1991; matrix triples, and one mask for a matrix that is
//! multiplied many times, from Mohassel and Zhang, S&P 2017, section IV. The share of zero is an addition here.

use super::{MaskSteps, OwnFeatures, PartySide, pair_keys, sharing};
use crate::contract::Leak;
use crate::error::{own_feature, own_value};
use crate::message::HEADER_BYTES;
use crate::{Network, ProtocolError, Role, Sending, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::{ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use spnn_crypto::{FixedPoint, FixedPointError, MaskContext, PairKey, RingPanels, SecretRng, Sign};
use std::ops::Range;
use zeroize::{Zeroize, Zeroizing};

/// What it does not prevent, besides what no first layer does.
pub(super) const LEAKS: &[Leak] = &[Leak::CollusionOfServerAndAllOtherParties, Leak::CollusionOfDealerAndAnyParty];

/// Fixed point of `beaver`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeaverSpec {
    /// Bits after the point of features and of weights; their product has twice as many.
    pub fraction_bits: u32,
    /// Largest magnitude of an opened value.
    pub h1_bound: f64,
}

impl Default for BeaverSpec {
    fn default() -> Self {
        Self { fraction_bits: 20, h1_bound: f64::from(1 << 20) }
    }
}

impl BeaverSpec {
    /// The format of features and weights, and that of the opened product of `parties` addends.
    ///
    /// # Errors
    /// [`FixedPointError`] if a format cannot work.
    pub fn fixed_points(&self, parties: u16) -> Result<[FixedPoint; 2], FixedPointError> {
        let factor = FixedPoint::new(64, self.fraction_bits, 1, 1.0)?;
        let product = FixedPoint::new(64, self.fraction_bits.saturating_mul(2), u32::from(parties), self.h1_bound)?;
        Ok([factor, product])
    }

    /// Largest magnitude of one party's product such that the sum of all is below `2^(62 − 2f)` and never wraps.
    fn product_limit(&self, parties: u16) -> f64 {
        f64::from(2_u32).powi(62 - 2 * self.fraction_bits.cast_signed()) / f64::from(parties)
    }
}

/// Bytes that each party sends in a step of `rows` rows, headers included.
#[must_use]
pub fn step_bytes(session: &SessionConfig, features: u64, rows: u64) -> u64 {
    let (others, width) = (u64::from(session.parties) - 1, u64::from(session.model.hidden_width));
    let header = HEADER_BYTES as u64;
    (header + 8 * rows * width) + others * (header + 8 * features * width)
}

/// Bytes that each party sends in set-up for `rows` rows, headers included.
#[must_use]
pub fn set_up_bytes(session: &SessionConfig, features: u64, rows: u64) -> u64 {
    let others = u64::from(session.parties) - 1;
    let chunks = rows.div_ceil(chunk_rows(usize::try_from(features).unwrap_or(usize::MAX)) as u64);
    others * (8 * rows * features + chunks * HEADER_BYTES as u64)
}

/// Values of `E` that are opened at a time: a megabyte.
const CHUNK: usize = 1 << 17;

fn chunk_rows(features: usize) -> usize {
    (CHUNK / features.max(1)).max(1)
}

/// What is masked, or shared, of a step: number 0 is the share of zero.
#[derive(Clone, Copy)]
enum Tensor {
    /// Between two parties: shares of the first one's features, and of the other one's.
    X(Sign),
    /// The same of weights.
    W(Sign),
    /// Between dealer and party.
    U,
    V,
    Z,
}

impl Tensor {
    fn number(self) -> u8 {
        match self {
            Self::X(Sign::Plus) => 1,
            Self::X(Sign::Minus) => 2,
            Self::W(Sign::Plus) => 3,
            Self::W(Sign::Minus) => 4,
            Self::U => 5,
            Self::V => 6,
            Self::Z => 7,
        }
    }
}

impl MaskSteps {
    fn of(&self, step: Step, tensor: Tensor) -> MaskContext {
        MaskContext { tensor: tensor.number(), ..self.context(step) }
    }
}

/// Another party, as a party knows it.
struct Peer {
    key: PairKey,
    /// This party's sign to it.
    mine: Sign,
    /// Its sign to this party.
    theirs: Sign,
    /// Its features among all.
    columns: Range<usize>,
}

/// A party's side.
pub struct Party {
    factor: FixedPoint,
    product_limit: f64,
    masks: MaskSteps,
    /// Whether this is the one that the dealer corrects, and that adds `E·F`.
    is_first: bool,
    peers: Vec<Peer>,
    dealer: PairKey,
    /// This party's features among all.
    columns: Range<usize>,
    features: usize,
    width: usize,
    /// Largest magnitude of this party's features.
    largest: f64,
    /// `E`, `[all rows, d]`.
    opened: Vec<u64>,
    prepared: Option<(Step, usize)>,
    /// `[V]_j`, `[d, h]`.
    v: Vec<u64>,
    /// What `F` is multiplied with, `[n, d]`: `[U]_j`, and `E` at the first party.
    left: Vec<u64>,
    /// What is known of `[H1]_j`, `[n, h]`.
    share: Vec<u64>,
    /// First party: what the dealer sends, `[n, h]`.
    correction: Vec<u64>,
    /// What the other parties send.
    received: Vec<Vec<u64>>,
}

impl Party {
    /// Set-up of a party, steps 1 to 3, with the number of features of every party and its own features.
    ///
    /// # Errors
    /// [`ProtocolError::OwnFeature`] at a feature that cannot be encoded; as [`Network::recv_payload`], or as `own`.
    pub async fn set_up(
        session: &SessionConfig,
        incarnation: u64,
        network: &mut Network,
        features: &[usize],
        own: OwnFeatures<'_>,
    ) -> Result<Self, ProtocolError> {
        let [factor, _] = session.beaver.fixed_points(session.parties)?;
        let columns = |party: usize| {
            let first: usize = features[..party].iter().sum();
            first..first + features[party]
        };
        let me = network.me();
        let place = session.party_roles().position(|p| p == me).unwrap_or(0);
        let others = (0..features.len()).filter(|&p| p != place);
        let peers: Vec<Peer> = pair_keys(session, network)?
            .into_iter()
            .zip(others)
            .map(|((mine, key), p)| Peer { key, mine, theirs: mine.opposite(), columns: columns(p) })
            .collect();
        let mut seed = Zeroizing::new([0_u8; 32]);
        network.recv_payload(Role::Coordinator, Step::SETUP, 0, seed.as_mut()).await?;
        let mut party = Self {
            factor,
            product_limit: session.beaver.product_limit(session.parties),
            masks: MaskSteps::new(session, incarnation),
            is_first: place == 0,
            received: vec![Vec::new(); peers.len()],
            peers,
            dealer: PairKey::new(*seed),
            columns: columns(place),
            features: features.iter().sum(),
            width: session.model.hidden_width as usize,
            largest: 0.0,
            opened: Vec::new(),
            prepared: None,
            v: Vec::new(),
            left: Vec::new(),
            share: Vec::new(),
            correction: Vec::new(),
        };
        party.open_features(network, own).await?;
        Ok(party)
    }

    /// Steps 2 and 3.
    async fn open_features(&mut self, network: &mut Network, features: OwnFeatures<'_>) -> Result<(), ProtocolError> {
        let (step, d) = (Step::SETUP, self.features);
        let OwnFeatures { rows, gather } = features;
        self.opened.try_reserve_exact((rows as usize).saturating_mul(d)).map_err(|_| ProtocolError::Unexpected {
            peer: Role::Coordinator,
            expected: format!("features of which {rows} rows fit this machine's memory"),
            found: format!("{d} features"),
        })?;
        let all: Vec<u32> = (0..rows).collect();
        for (part, rows) in (0..).zip(all.chunks(chunk_rows(d))) {
            let mut chunk = Zeroizing::new(vec![0_f32; rows.len() * self.columns.len()]);
            let shape = (rows.len(), self.columns.len());
            #[expect(clippy::expect_used, reason = "as many values as the shape has")]
            gather(rows, ArrayViewMut2::from_shape(shape, &mut chunk).expect("n·d_i values"))?;
            self.largest = chunk.iter().fold(self.largest, |largest, x| largest.max(x.abs().into()));
            let mut own = Zeroizing::new(vec![0_u64; chunk.len()]);
            let start = rows[0] as usize;
            self.factor.encode_onto(&chunk, &mut own).map_err(|e| own_feature(start, shape.1, e))?;
            let mut share = Zeroizing::new(vec![0_u64; rows.len() * d]);
            for Peer { key, mine, theirs, columns } in &self.peers {
                key.mask_rows(&self.masks.of(step, Tensor::X(*mine)), Sign::Minus, rows, &mut own);
                let mut block = Zeroizing::new(vec![0_u64; rows.len() * columns.len()]);
                key.mask_rows(&self.masks.of(step, Tensor::X(*theirs)), Sign::Plus, rows, &mut block);
                put_columns(&mut share, d, columns, &block);
            }
            put_columns(&mut share, d, &self.columns, &own);
            self.dealer.mask_rows(&self.masks.of(step, Tensor::U), Sign::Minus, rows, &mut share);
            open(network, step, part, &mut share, &mut self.received).await?;
            network.opened(step, "e", rows.len(), d);
            self.opened.extend_from_slice(&share);
        }
        Ok(())
    }

    /// What of step 6 needs no weights: `E·[V]_j + [Z]_j` and the share of zero.
    fn derive(&mut self, step: Step, rows: &[u32]) {
        let (n, d, h) = (rows.len(), self.features, self.width);
        fill_zeros(&mut self.v, d * h);
        self.dealer.mask(&self.masks.of(step, Tensor::V), Sign::Plus, &mut self.v);
        fill_zeros(&mut self.share, n * h);
        for Peer { key, mine, .. } in &self.peers {
            key.mask(&self.masks.context(step), *mine, &mut self.share);
        }
        if !self.is_first {
            self.dealer.mask(&self.masks.of(step, Tensor::Z), Sign::Plus, &mut self.share);
        }
        self.left.clear();
        rows.iter().for_each(|&row| self.left.extend_from_slice(&self.opened[row as usize * d..][..d]));
        RingPanels::new(&self.v, d, h).multiply_add(&self.left, &mut self.share);
        if !self.is_first {
            self.left.fill(0);
        }
        self.dealer.mask_rows(&self.masks.of(Step::SETUP, Tensor::U), Sign::Plus, rows, &mut self.left);
        self.prepared = Some((step, n));
    }

    /// Step 5: `F`, `[d, h]`.
    async fn open_weights(
        &mut self,
        network: &mut Network,
        step: Step,
        w: ArrayView2<'_, f32>,
    ) -> Result<Zeroizing<Vec<u64>>, ProtocolError> {
        self.check_product(step, w)?;
        let h = self.width;
        let block = |columns: &Range<usize>| columns.start * h..columns.end * h;
        let mut share = Zeroizing::new(vec![0_u64; self.features * h]);
        let values = w.as_standard_layout();
        self.factor
            .encode_onto(values.as_slice().unwrap_or_default(), &mut share[block(&self.columns)])
            .map_err(|e| own_value(step, h, e))?;
        for Peer { key, mine, theirs, columns } in &self.peers {
            let own = &mut share[block(&self.columns)];
            key.mask(&self.masks.of(step, Tensor::W(*mine)), Sign::Minus, own);
            key.mask(&self.masks.of(step, Tensor::W(*theirs)), Sign::Plus, &mut share[block(columns)]);
        }
        share.iter_mut().zip(&self.v).for_each(|(w, v)| *w = w.wrapping_sub(*v));
        open(network, step, 0, &mut share, &mut self.received).await?;
        network.opened(step, "f", self.features, h);
        Ok(share)
    }

    /// Refuses weights with which this party's product could wrap, before anything of them is sent.
    fn check_product(&self, step: Step, w: ArrayView2<'_, f32>) -> Result<(), ProtocolError> {
        for (column, weights) in w.columns().into_iter().enumerate() {
            let bound = self.largest * weights.iter().map(|w| f64::from(w.abs())).sum::<f64>();
            if bound.is_nan() || bound > self.product_limit {
                return Err(ProtocolError::OwnProduct { step, column, bound, limit: self.product_limit });
            }
        }
        Ok(())
    }
}

#[async_trait]
impl PartySide for Party {
    fn prepare(&mut self, step: Step, rows: &[u32]) {
        self.derive(step, rows);
    }

    async fn forward(
        &mut self,
        network: &mut Network,
        step: Step,
        rows: &[u32],
        _x: ArrayView2<'_, f32>,
        w: ArrayView2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        self.masks.use_once(step)?;
        if self.prepared.take() != Some((step, rows.len())) {
            self.derive(step, rows);
            self.prepared = None;
        }
        let f = self.open_weights(network, step, w).await?;
        if self.is_first {
            fill_zeros(&mut self.correction, self.share.len());
            let bytes = bytemuck::cast_slice_mut(&mut self.correction);
            network.recv_payload(Role::Coordinator, step, 0, bytes).await?;
            self.share.iter_mut().zip(&self.correction).for_each(|(share, z)| *share = share.wrapping_add(*z));
        }
        RingPanels::new(&f, self.features, self.width).multiply_add(&self.left, &mut self.share);
        network.send_payload(Role::Server, step, 0, bytemuck::cast_slice(&self.share)).await
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        [&mut self.v, &mut self.left, &mut self.share, &mut self.correction].into_iter().for_each(Zeroize::zeroize);
    }
}

/// Exchanges shares with all other parties and adds them up: this **opens** `share` to the parties.
async fn open(
    network: &mut Network,
    step: Step,
    part: u32,
    share: &mut [u64],
    received: &mut [Vec<u64>],
) -> Result<(), ProtocolError> {
    received.iter_mut().for_each(|r| r.resize(share.len(), 0));
    network.exchange_payloads(step, part, share, received).await?;
    for received in received {
        share.iter_mut().zip(received).for_each(|(sum, v)| *sum = sum.wrapping_add(*v));
    }
    Ok(())
}

/// Sets some columns of a matrix `[n, d]`.
fn put_columns(matrix: &mut [u64], d: usize, columns: &Range<usize>, block: &[u64]) {
    if !columns.is_empty() {
        let rows = matrix.chunks_exact_mut(d).zip(block.chunks_exact(columns.len()));
        rows.for_each(|(to, from)| to[columns.clone()].copy_from_slice(from));
    }
}

fn fill_zeros(values: &mut Vec<u64>, length: usize) {
    values.clear();
    values.resize(length, 0);
}

/// The server's side: that of `sharing`, with twice the bits after the point.
///
/// # Errors
/// [`ProtocolError::FixedPoint`] if the session's format cannot work.
pub fn server(session: &SessionConfig) -> Result<sharing::Server<u64>, ProtocolError> {
    let [_, product] = session.beaver.fixed_points(session.parties)?;
    Ok(sharing::Server::with_format(session, product))
}

/// The dealer's side. It rides with the coordinator and sees no opening.
pub struct Dealer {
    masks: MaskSteps,
    seeds: Vec<PairKey>,
    features: usize,
    width: usize,
    u: Vec<u64>,
    v: Vec<u64>,
    z: Vec<u64>,
}

impl Dealer {
    /// Set-up, step 1: fresh seeds to all `parties`, in order, which have `features` features together.
    ///
    /// # Errors
    /// [`ProtocolError::Randomness`] if the system has none; as [`Sending::send_payload`].
    pub async fn set_up(
        session: &SessionConfig,
        incarnation: u64,
        features: usize,
        parties: &mut [Sending<'_>],
    ) -> Result<Self, ProtocolError> {
        let mut rng = SecretRng::from_system()?;
        let mut seeds = Vec::new();
        for party in parties {
            let seed = Zeroizing::new(rng.bytes32());
            party.send_payload(Step::SETUP, 0, &*seed).await?;
            seeds.push(PairKey::new(*seed));
        }
        Ok(Self {
            masks: MaskSteps::new(session, incarnation),
            seeds,
            features,
            width: session.model.hidden_width as usize,
            u: Vec::new(),
            v: Vec::new(),
            z: Vec::new(),
        })
    }

    /// Step 4: the triple of a step over the given rows. Waits while the party has not read what was sent before.
    /// Returns the bytes sent.
    ///
    /// # Errors
    /// As [`Sending::send_payload`].
    pub async fn deal(&mut self, parties: &mut [Sending<'_>], step: Step, rows: &[u32]) -> Result<u64, ProtocolError> {
        self.masks.use_once(step)?;
        let (n, d, h) = (rows.len(), self.features, self.width);
        fill_zeros(&mut self.u, n * d);
        fill_zeros(&mut self.v, d * h);
        fill_zeros(&mut self.z, n * h);
        for (j, seed) in self.seeds.iter().enumerate() {
            seed.mask_rows(&self.masks.of(Step::SETUP, Tensor::U), Sign::Plus, rows, &mut self.u);
            seed.mask(&self.masks.of(step, Tensor::V), Sign::Plus, &mut self.v);
            if j > 0 {
                seed.mask(&self.masks.of(step, Tensor::Z), Sign::Minus, &mut self.z);
            }
        }
        RingPanels::new(&self.v, d, h).multiply_add(&self.u, &mut self.z);
        let Some(first) = parties.first_mut() else { return Ok(0) };
        let correction = bytemuck::cast_slice(&self.z);
        first.send_payload(step, 0, correction).await?;
        Ok((HEADER_BYTES + correction.len()) as u64)
    }
}

impl Drop for Dealer {
    fn drop(&mut self) {
        [&mut self.u, &mut self.v, &mut self.z].into_iter().for_each(Zeroize::zeroize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::first_layer::conformance::{networks, of_matrix, session};
    use crate::{FirstLayerKind, Phase};
    use ndarray::{Array2, array};
    use std::time::Duration;

    fn step(batch: u32) -> Step {
        Step { phase: Phase::Train, epoch: 1, batch }
    }

    /// Party 0's side, with the network that party 1 would have.
    async fn first_party(session: &SessionConfig, x: ArrayView2<'_, f32>) -> (Party, Network, Network, Vec<u64>) {
        let roles = [Role::party(0), Role::party(1), Role::Server, Role::Coordinator];
        let mut made = networks(&roles, 4096, Duration::from_secs(20)).await;
        let (mut coordinator, _, mut one, mut zero) =
            (made.pop().unwrap(), made.pop(), made.pop().unwrap(), made.pop().unwrap());
        let mut opened = vec![0_u64; x.len() * 2];
        let theirs = async {
            coordinator.send_payload(Role::party(0), Step::SETUP, 0, &[7; 32]).await?;
            let (d, share) = (x.ncols() * 2, vec![0_u8; x.len() * 2 * 8]);
            assert_eq!(d * x.nrows(), opened.len());
            let channel = one.channel(Role::party(0))?;
            channel.exchange_payload(Step::SETUP, 0, &share, bytemuck::cast_slice_mut(&mut opened)).await
        };
        let features = [x.ncols(), x.ncols()];
        let mut gather = of_matrix(x);
        let own = OwnFeatures { rows: u32::try_from(x.nrows()).unwrap(), gather: &mut gather };
        let (party, theirs) = tokio::join!(Party::set_up(session, 1, &mut zero, &features, own), theirs);
        theirs.unwrap();
        (party.unwrap(), zero, one, opened)
    }

    /// Shares of the same weights at two steps differ by what is uniform to the other party, in its own block as well,
    /// where it knows the share of the weights: `V` is another one for each step.
    #[test]
    fn v_belongs_to_one_step() {
        let session = session(FirstLayerKind::Beaver, 64, 2, 3);
        let x = array![[0.5_f32, -1.0], [2.0, 0.25]];
        let w = Array2::from_elem((2, 3), 0.5_f32);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut party, mut zero, mut one, _) = first_party(&session, x.view()).await;
            let key = one.pair_key(Role::party(0)).unwrap();
            let mut vs = Vec::new();
            for batch in [0, 1] {
                party.derive(step(batch), &[0, 1]);
                let mut share = vec![0_u64; 4 * 3];
                let nothing = vec![0_u8; 4 * 3 * 8];
                let channel = one.channel(Role::party(0)).unwrap();
                let theirs = channel.exchange_payload(step(batch), 0, &nothing, bytemuck::cast_slice_mut(&mut share));
                let (ours, theirs) = tokio::join!(party.open_weights(&mut zero, step(batch), w.view()), theirs);
                ours.unwrap();
                theirs.unwrap();
                // Party 1 takes away what it knows: party 0's share of party 1's weights. What is left is −V.
                let known = party.masks.of(step(batch), Tensor::W(Sign::Minus));
                key.mask(&known, Sign::Minus, &mut share[6..]);
                vs.push(share[6..].to_vec());
            }
            assert!(vs[0].iter().zip(&vs[1]).all(|(a, b)| a != b), "V of one step again in another");
        });
    }

    /// What is opened of features says nothing of them: the same features under other seeds, and equal rows under one.
    #[test]
    fn u_belongs_to_one_row() {
        let session = session(FirstLayerKind::Beaver, 64, 2, 3);
        let x = array![[0.5_f32, -1.0], [0.5, -1.0]];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_, _, _, opened) = first_party(&session, x.view()).await;
            assert!(opened[..4].iter().zip(&opened[4..]).all(|(a, b)| a != b), "two rows under one mask");
        });
    }

    #[test]
    fn weights_whose_product_could_wrap_are_not_sent() {
        let session = session(FirstLayerKind::Beaver, 64, 2, 3);
        let x = array![[1000.0_f32, -1.0]];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut party, mut zero, _one, _) = first_party(&session, x.view()).await;
            let before = zero.sent();
            for bad in [1e5, f32::NAN, f32::INFINITY] {
                let w = Array2::from_elem((2, 3), bad);
                party.derive(step(0), &[0]);
                let refused = party.open_weights(&mut zero, step(0), w.view()).await.map(drop);
                assert!(matches!(refused, Err(ProtocolError::OwnProduct { column: 0, .. })), "{bad}: {refused:?}");
            }
            assert_eq!(zero.sent(), before);
        });
    }
}
