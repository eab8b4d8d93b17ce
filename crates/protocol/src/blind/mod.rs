//! Scoring by a server that sees nothing: it evaluates its layers on an encrypted H1.
//!
//! Training is as ever, with layers that can be evaluated so: linear ones and the activation `square`. Rows that are scored
//! later (`evaluate`, `predict`, `serve`) go another way, if the session says `inference = "encrypted"`:
//!
//! 1. Once: the label holder makes a key pair of CKKS and sends the public key to all; the server plans scales and levels for
//!    its weights and tells the parties ([`BlindTerms`](crate::message::BlindTerms)).
//! 2. Party i encrypts each column of its product `X_i·W_i` for up to 8,192 rows, a row in every slot. To the ciphertext's
//!    first part it adds the masks `m_ij` that it has in common with each other party, and subtracts where the other adds: with
//!    them it is a share of the encrypted sum, uniform over the whole modulus even to the holder of the secret key.
//! 3. The server adds the shares, which leaves the encryption of `H1 = Σ X_i·W_i`; evaluates bias, squares and linear layers;
//!    re-randomises the results, floods their error with noise 2^40 times as large, and sends them to the label holder.
//! 4. The label holder decrypts: z is **opened**, to the label holder only.
//!
//! Private inputs: `X_i`, `W_i` of party i; the server's weights. Output, to the label holder: z, `[n, k]`, with an error that
//! the server says beforehand (2^-12 or less where there is room). The server learns nothing of H1 (ring-LWE), and
//! neither do the parties. The label holder learns nothing of H1 or the weights beyond z, but for a statistical distance of
//! 2^-37 for each ciphertext, as long as no |h1| is more than twice the largest in training and everyone follows the protocol.
//! Server and label holder together learn H1, as the server alone does in training; a single party's product only in league
//! with all other parties. That rows are scored, and how many, everyone knows.
//!
//! Who does not follow the protocol: a label holder can send a public key that hides nothing from itself; a server can return
//! parts of what it got. Neither is detected.
//!
//! Sources: Cheon, Kim, Kim, Song (ASIACRYPT 2017) for CKKS; Gilad-Bachrach et al., "CryptoNets" (ICML 2016) for slots as samples;
//! Ducas, Stehlé (EUROCRYPT 2016) and Gentry (STOC 2009, section 8) for what re-randomising and flooding are for; pairwise masks
//! as in [`sharing`](crate::first_layer::sharing).

mod holder;
mod layers;
mod party;
mod plan;
mod server;

#[cfg(test)]
mod tests;

pub use holder::Holder;
pub use party::{Party, party_side};
pub use server::Server;

use crate::contract::Leak;
use crate::{ProtocolError, Role, SessionConfig, SessionError, Step, Task};
use serde::{Deserialize, Serialize};
use spnn_ckks::{CkksError, Context, Preset};
use std::sync::{Arc, Mutex, PoisonError};

/// What the server sees of rows that are scored, not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InferenceKind {
    /// H1, as in training.
    #[default]
    Open,
    /// Ciphertexts.
    Encrypted,
}

impl InferenceKind {
    /// Whether the server sees ciphertexts only in this task.
    #[must_use]
    pub fn is_blind(self, task: Task) -> bool {
        matches!(task, Task::Evaluate | Task::Predict | Task::Serve) && self == Self::Encrypted
    }

    /// Whether it is the default: sessions from before there was a choice have no word for it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

/// What it does not prevent, besides what no session does.
pub(crate) const LEAKS: &[Leak] = &[Leak::CollusionOfServerAndAllOtherParties];

/// Rows of a ciphertext: batches of rows to score have so many.
pub const ROWS: u32 = 8192;

const PRESET: &Preset = &Preset::N16384_PARTS;
/// Level of what the label holder gets: decoding reads its three limbs.
const OUTPUT_LEVEL: usize = 2;
/// p parts become 2p − 1 with each square. Nine would be rounded, with the eighth power of the secret, to nothing.
const SQUARES_MAX: usize = 2;
/// Columns of H1 go through the first linear layer a few at a time; more would take minutes for a batch.
const H1_MAX: usize = 4096;
/// What comes out of a layer is in memory together, up to eight megabytes each.
const WIDTH_MAX: usize = 256;

/// Checks that the server's layers can be evaluated on ciphertexts.
pub(crate) fn validate(session: &SessionConfig) -> Result<(), SessionError> {
    if session.inference.is_open() { Ok(()) } else { layers::Shape::of(&session.model).map(drop) }
}

/// A batch must fit the slots.
fn check_rows(rows: usize) -> Result<(), ProtocolError> {
    if (1..=ROWS as usize).contains(&rows) {
        return Ok(());
    }
    Err(ProtocolError::Blind { reason: format!("a batch of {rows} rows where a ciphertext holds 1 to {ROWS}") })
}

fn context() -> Result<Arc<Context>, ProtocolError> {
    Context::new(PRESET).map_err(|source| ProtocolError::Encryption { step: Step::SETUP, source })
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn refused(peer: Role, step: Step, number: usize, reason: &dyn std::fmt::Display) -> ProtocolError {
    ProtocolError::Ciphertext { peer, step, number, reason: reason.to_string() }
}

/// Work on many ciphertexts at once, of which the first error counts.
fn try_for_each<T: Send, E: Send>(
    threads: usize,
    items: impl ExactSizeIterator<Item = T> + Send,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let failed: Mutex<Option<E>> = Mutex::new(None);
    spnn_crypto::for_each(
        threads,
        items,
        || (),
        |(), item| {
            if let Err(e) = work(item) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        },
    );
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// The arithmetic refused something: weights or values that are too large.
fn arithmetic(step: Step) -> impl Fn(CkksError) -> ProtocolError {
    move |source| ProtocolError::Encryption { step, source }
}
