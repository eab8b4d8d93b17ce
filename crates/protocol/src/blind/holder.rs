//! The label holder's side, step 4.

use super::layers::Shape;
use super::{OUTPUT_LEVEL, check_rows, refused, threads, try_for_each};
use crate::message::{BlindTerms, Kind};
use crate::{Network, ProtocolError, Role, Step};
use ndarray::{ArrayViewMut1, ArrayViewMut2};
use spnn_ckks::{Ciphertext, Context, SecretKey};
use std::sync::Arc;
use tracing::info;
use zeroize::Zeroizing;

/// What opens z: the secret key, which is this start's own and never leaves.
pub struct Holder {
    context: Arc<Context>,
    pub(super) secret: SecretKey,
    outputs: usize,
    parts: usize,
    output_max: f64,
}

impl Holder {
    pub(super) fn new(context: &Arc<Context>, secret: SecretKey, shape: &Shape, terms: &BlindTerms) -> Self {
        info!(
            error = f64::from(terms.error_log2).exp2(),
            "outputs of the server come encrypted, and off by about so much"
        );
        Self {
            context: Arc::clone(context),
            secret,
            outputs: shape.outputs,
            parts: shape.output_parts(),
            output_max: f64::from(terms.output_log2).exp2(),
        }
    }

    /// Receives the results of `step` and opens them to the label holder: z, `[rows, k]`.
    ///
    /// # Errors
    /// [`ProtocolError::Ciphertext`] if a result is none; [`ProtocolError::BlindOutOfBound`] naming the row whose z is larger
    /// than the server said; as [`Network::recv`].
    pub async fn open(
        &self,
        network: &mut Network,
        step: Step,
        mut z: ArrayViewMut2<'_, f32>,
    ) -> Result<(), ProtocolError> {
        let rows = z.nrows();
        check_rows(rows)?;
        let mut results = vec![vec![0; Ciphertext::byte_length(&self.context, OUTPUT_LEVEL, self.parts)]; threads()];
        let mut columns: Vec<_> = z.columns_mut().into_iter().collect();
        for (group, columns) in columns.chunks_mut(results.len()).enumerate() {
            let first = group * results.len();
            for (output, result) in (first..).zip(&mut results[..columns.len()]) {
                let place = [output as u32, 0];
                network.channel(Role::Server)?.recv_block(Kind::EncryptedOutput, step, place, result).await?;
            }
            let items = columns.iter_mut().zip(&results).enumerate();
            try_for_each(results.len(), items, |(at, (column, bytes))| self.decrypt(step, first + at, bytes, column))?;
        }
        network.opened(step, "z", rows, self.outputs);
        Ok(())
    }

    fn decrypt(
        &self,
        step: Step,
        output: usize,
        bytes: &[u8],
        column: &mut ArrayViewMut1<'_, f32>,
    ) -> Result<(), ProtocolError> {
        let of_server = |e: &dyn std::fmt::Display| refused(Role::Server, step, output, e);
        let ciphertext = Ciphertext::from_bytes(&self.context, bytes).map_err(|e| of_server(&e))?;
        let plain = self.secret.decrypt(&ciphertext).map_err(|e| of_server(&e))?;
        let values = Zeroizing::new(plain.decode());
        for (row, (to, value)) in column.iter_mut().zip(values.iter()).enumerate() {
            if value.is_nan() || value.abs() > self.output_max {
                return Err(ProtocolError::BlindOutOfBound { step, row, column: output, bound: self.output_max });
            }
            *to = *value as f32;
        }
        Ok(())
    }
}
