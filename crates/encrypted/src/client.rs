//! A client for whatever a server offers.

use crate::{AskError, Description, OneSampleClient, SamplesClient};
use ndarray::{Array2, ArrayView2};
use spnn_protocol::message::{InferenceTerms, Packing};

/// A client with a fresh key, for either way that samples can lie in ciphertexts.
pub enum Client {
    /// A sample in every slot.
    Samples(SamplesClient),
    /// One sample at a time.
    OneSample(OneSampleClient),
}

impl Client {
    /// A client for these terms, if they are what they have to be.
    ///
    /// # Errors
    /// As [`SamplesClient::new`] and [`OneSampleClient::new`].
    pub fn new(terms: &InferenceTerms) -> Result<Self, AskError> {
        match terms.packing {
            Packing::SamplePerSlot => SamplesClient::new(terms).map(Self::Samples),
            Packing::OneSample => OneSampleClient::new(terms).map(Self::OneSample),
        }
    }

    /// What the network takes and gives.
    #[must_use]
    pub fn description(&self) -> &Description {
        match self {
            Self::Samples(client) => client.description(),
            Self::OneSample(client) => client.description(),
        }
    }

    /// Most samples of a batch.
    #[must_use]
    pub fn samples_max(&self) -> usize {
        match self {
            Self::Samples(client) => client.samples_max(),
            Self::OneSample(_) => 1,
        }
    }

    /// What the server needs before the first batch. It opens nothing.
    ///
    /// # Errors
    /// As [`OneSampleClient::keys`].
    pub fn keys(&self) -> Result<Vec<Vec<u8>>, AskError> {
        match self {
            Self::Samples(_) => Ok(Vec::new()),
            Self::OneSample(client) => client.keys(),
        }
    }

    /// Encrypts `rows: [n, width]` of raw numbers, n at most [`samples_max`](Self::samples_max). `send` gets the ciphertexts in
    /// order, and ends it early by `false`.
    ///
    /// # Errors
    /// As [`SamplesClient::encrypt`] and [`OneSampleClient::encrypt`].
    pub fn encrypt(
        &self,
        rows: ArrayView2<'_, f32>,
        threads: usize,
        mut send: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<(), AskError> {
        match self {
            Self::Samples(client) => client.encrypt(rows, threads, send),
            Self::OneSample(client) => {
                for row in rows.rows() {
                    let raw: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                    if !client.encrypt(&raw)?.into_iter().all(&mut send) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// Opens the answer to a batch, for this client's own eyes: `[samples, outputs]`.
    ///
    /// # Errors
    /// As [`SamplesClient::open`] and [`OneSampleClient::open`].
    pub fn open(&self, answer: &[Vec<u8>], samples: usize) -> Result<Array2<f64>, AskError> {
        match self {
            Self::Samples(client) => client.open(answer, samples),
            Self::OneSample(client) => {
                let outputs = client.open(answer)?;
                let mut opened = Array2::zeros((1, outputs.len()));
                opened.row_mut(0).iter_mut().zip(outputs).for_each(|(to, from)| *to = from);
                Ok(opened)
            }
        }
    }
}
