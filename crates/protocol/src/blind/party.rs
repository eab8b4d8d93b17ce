//! A party's side, step 2: shares of the encrypted sum.

use super::layers::Shape;
use super::{Holder, PRESET, ROWS, check_rows, context, refused, threads, try_for_each};
use crate::error::own_value;
use crate::first_layer::plain::multiply;
use crate::first_layer::{MaskSteps, PartySide, pair_keys};
use crate::message::{BlindTerms, Kind};
use crate::{Network, ProtocolError, Role, SessionConfig, Step};
use async_trait::async_trait;
use ndarray::{Array2, ArrayView2};
use spnn_ckks::{CkksError, Context, Plaintext, PublicKey};
use spnn_crypto::{EncodeError, MaskContext, PairKey, SecretRng, Sign};
use std::sync::Arc;
use zeroize::Zeroizing;

/// A party's side; the first layer's, to whoever contributes to it.
pub struct Party {
    context: Arc<Context>,
    public: PublicKey,
    masks: MaskSteps,
    keys: Vec<(Sign, PairKey)>,
    terms: BlindTerms,
    width: usize,
    product: Array2<f32>,
    /// One for each thread.
    rngs: Vec<SecretRng>,
}

/// Step 1 for a party, and what the label holder opens z with, if it is this one.
///
/// # Errors
/// [`ProtocolError`] if a peer is gone, or sends a key or terms that cannot be.
pub async fn party_side(
    session: &SessionConfig,
    incarnation: u64,
    network: &mut Network,
) -> Result<(Party, Option<Holder>), ProtocolError> {
    let context = context()?;
    let (me, holder) = (network.me(), session.label_role());
    let mut rng = SecretRng::from_system()?;
    let (public, secret) = if me == holder {
        let secret = spnn_ckks::SecretKey::generate(&context, &mut rng);
        let public = secret.public_key(&mut rng);
        let bytes = public.to_bytes();
        for peer in session.party_roles().filter(|p| *p != me).chain([Role::Server]) {
            network.channel(peer)?.send_block(Kind::InferenceKey, Step::SETUP, [0, 0], &bytes).await?;
        }
        (public, Some(secret))
    } else {
        (receive_key(&context, network, holder).await?, None)
    };
    let terms: BlindTerms = network.recv(Role::Server, Step::SETUP).await?;
    check(&context, &terms)?;
    let rngs = (0..threads()).map(|_| SecretRng::from_system()).collect::<Result<_, _>>()?;
    let shape = Shape::of(&session.model)?;
    let opening = secret.map(|secret| Holder::new(&context, secret, &shape, &terms));
    let party = Party {
        context,
        public,
        masks: MaskSteps::new(session, incarnation),
        keys: pair_keys(session, network)?,
        terms,
        width: session.model.hidden_width as usize,
        product: Array2::zeros((0, session.model.hidden_width as usize)),
        rngs,
    };
    Ok((party, opening))
}

/// The label holder's public key.
pub(super) async fn receive_key(
    context: &Arc<Context>,
    network: &mut Network,
    holder: Role,
) -> Result<PublicKey, ProtocolError> {
    let mut bytes = vec![0; PublicKey::byte_length(context)];
    network.channel(holder)?.recv_block(Kind::InferenceKey, Step::SETUP, [0, 0], &mut bytes).await?;
    PublicKey::from_bytes(context, &bytes).map_err(|e| refused(holder, Step::SETUP, 0, &e))
}

/// What no server that plans as ours does would ask for is refused.
fn check(context: &Context, terms: &BlindTerms) -> Result<(), ProtocolError> {
    let BlindTerms { level, scale_log2, output_log2, error_log2 } = *terms;
    let levels = super::OUTPUT_LEVEL..=PRESET.level_max();
    let level_fits = levels.contains(&(level as usize));
    let room = if level_fits { context.log2_modulus(level as usize) } else { 0.0 };
    if level_fits && (20.0..room - 1.0).contains(&f64::from(scale_log2)) && f64::from(output_log2) < room {
        return Ok(());
    }
    let expected = format!("level {} to {} and a scale of 2^20 or more that fits it", levels.start(), levels.end());
    let found = format!("level {level}, a scale of 2^{scale_log2}, z of up to 2^{output_log2} off by 2^{error_log2}");
    Err(ProtocolError::Unexpected { peer: Role::Server, expected, found })
}

/// What makes the shares of a step.
struct Shares<'a> {
    context: &'a Arc<Context>,
    public: &'a PublicKey,
    keys: &'a [(Sign, PairKey)],
    masks: MaskContext,
    terms: BlindTerms,
    /// `[rows, width]`.
    product: &'a [f32],
    width: usize,
}

impl Shares<'_> {
    /// The share of column `column`: encrypted, masked, as bytes.
    fn of(&self, column: usize, rng: &mut SecretRng) -> Result<Vec<u8>, Failure> {
        let Self { product, .. } = *self;
        let rows = product.len() / self.width.max(1);
        // Slots without a row of their own say nothing new, and nothing of what the network does to zeros.
        let place = |slot: usize| f64::from(product[slot % rows * self.width + column]);
        let values: Zeroizing<Vec<f64>> = Zeroizing::new((0..ROWS as usize).map(place).collect());
        if let Some(row) = values[..rows].iter().position(|v| !v.is_finite()) {
            return Err(Failure::Value { row, column });
        }
        let scale = f64::from(self.terms.scale_log2).exp2();
        let plain = Plaintext::encode(self.context, &values, scale, self.terms.level as usize);
        let plain = plain.map_err(|e| match e {
            CkksError::Value { slot, .. } => Failure::Value { row: slot % rows, column },
            e => Failure::Ckks(e),
        })?;
        let mut share = self.public.encrypt(&plain, rng).map_err(Failure::Ckks)?;
        for (sign, key) in self.keys {
            // A layer has fewer columns than 2^32.
            share.mask(&key.seed(&self.masks, column as u32), *sign);
        }
        Ok(share.to_bytes())
    }
}

/// Why there is no share.
enum Failure {
    Value { row: usize, column: usize },
    Ckks(CkksError),
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
        check_rows(x.nrows())?;
        self.masks.use_once(step)?;
        let Self { context, public, masks, keys, terms, width, product, rngs } = self;
        let (masks, terms, width, count) = (masks.context(step), *terms, *width, rngs.len());
        let of = Shares { context, public, keys, masks, terms, product: multiply(product, x, w), width };
        for start in (0..width).step_by(count.max(1)) {
            let columns: Vec<usize> = (start..width.min(start + count)).collect();
            let mut shares = vec![Vec::new(); columns.len()];
            let items = shares.iter_mut().zip(columns).zip(rngs.iter_mut());
            let made = try_for_each(count, items, |((share, column), rng)| {
                *share = of.of(column, rng)?;
                Ok(())
            });
            made.map_err(|e| match e {
                Failure::Value { row, column } => {
                    own_value(step, width, EncodeError { position: row * width + column })
                }
                Failure::Ckks(source) => ProtocolError::Encryption { step, source },
            })?;
            for (column, share) in (start..).zip(&shares) {
                let place = [column as u32, 0];
                network.channel(Role::Server)?.send_block(Kind::EncryptedInput, step, place, share).await?;
            }
        }
        Ok(())
    }
}
