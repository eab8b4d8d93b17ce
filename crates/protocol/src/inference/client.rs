//! The client's side of encrypted queries.

use super::{Kind, place};
use crate::message::{InferenceBatch, InferenceTerms};
use crate::{Channel, ProtocolError, Receiving, Sending, Step};
use tokio::sync::mpsc::{Receiver, Sender};

/// What the client encrypts, in order: a batch, then each of its ciphertexts.
pub enum Upload {
    /// A batch of so many samples begins.
    Batch {
        /// At least one, at most as many as the terms say.
        samples: u32,
    },
    /// Its next ciphertext.
    Ciphertext(Vec<u8>),
}

/// The outputs of a batch, in the order of the batches.
pub struct Answer(pub Vec<Vec<u8>>);

/// What the server says first. The caller decides whether it goes on.
///
/// # Errors
/// [`ProtocolError`] if the server sends anything else, or is gone.
pub async fn greet(channel: &mut Channel) -> Result<InferenceTerms, ProtocolError> {
    channel.recv(Step::SETUP).await
}

/// Sends keys and all `uploads` until their channel ends, and passes on the answers as they come.
///
/// # Errors
/// [`ProtocolError`] if the server sends anything but what is due, sends nothing in time, or is gone.
pub async fn ask(
    channel: &mut Channel,
    terms: &InferenceTerms,
    keys: &[Vec<u8>],
    uploads: Receiver<Upload>,
    answers: Sender<Answer>,
) -> Result<(), ProtocolError> {
    for (number, key) in keys.iter().enumerate() {
        channel.send_block(Kind::InferenceKey, Step::SETUP, place(number), key).await?;
    }
    let (mut sending, mut receiving) = channel.split();
    // As many batches as the server holds, and the one that is being answered.
    let (asked, steps) = tokio::sync::mpsc::channel(8);
    futures_util::try_join!(send(&mut sending, uploads, asked), receive(&mut receiving, terms, steps, answers))?;
    Ok(())
}

async fn send(
    sending: &mut Sending<'_>,
    mut uploads: Receiver<Upload>,
    asked: Sender<Step>,
) -> Result<(), ProtocolError> {
    let mut steps = (0..).map(Step::of_query);
    let mut step = Step::SETUP;
    let mut number = 0;
    while let Some(upload) = uploads.recv().await {
        match upload {
            Upload::Batch { samples } => {
                (step, number) = (steps.next().unwrap_or(step), 0);
                sending.send(step, &InferenceBatch { samples }).await?;
                // Nobody waits for it once receiving has failed, which is then the error.
                let _ = asked.send(step).await;
            }
            Upload::Ciphertext(bytes) => {
                sending.send_block(Kind::EncryptedInput, step, place(number), &bytes).await?;
                number += 1;
            }
        }
    }
    sending.send(steps.next().unwrap_or(step), &InferenceBatch { samples: 0 }).await
}

async fn receive(
    receiving: &mut Receiving<'_>,
    terms: &InferenceTerms,
    mut steps: Receiver<Step>,
    answers: Sender<Answer>,
) -> Result<(), ProtocolError> {
    while let Some(step) = steps.recv().await {
        let mut outputs = Vec::new();
        for number in 0..terms.outputs as usize {
            let mut output = vec![0; terms.output_bytes as usize];
            receiving.recv_block(Kind::EncryptedOutput, step, place(number), &mut output).await?;
            outputs.push(output);
        }
        if answers.send(Answer(outputs)).await.is_err() {
            // Whoever wanted them has failed and says why.
            break;
        }
    }
    Ok(())
}
