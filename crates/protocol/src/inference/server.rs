//! The server's side of encrypted queries.

use super::{Evaluator, Kind, place};
use crate::message::InferenceBatch;
use crate::{Channel, ProtocolError, Receiving, Role, Sending, Step};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Lets one batch of all clients be evaluated at a time: an evaluation takes all cores and a few hundred megabytes.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>);

/// What a client was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Batches.
    pub batches: u64,
    /// Samples in them.
    pub samples: u64,
}

/// Batches of a client that the server holds.
const HELD_MAX: usize = 2;

/// A batch on its way to its evaluation.
struct Held<E: Evaluator> {
    step: Step,
    samples: u32,
    batch: E::Batch,
    /// Given back when the batch has been evaluated.
    room: OwnedSemaphorePermit,
}

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Gate {
    async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).acquire_owned().await.ok()
    }
}

/// Answers one client until it is done. What `done` is told after each batch is what was answered so far.
///
/// # Errors
/// [`ProtocolError`] if the client sends anything but what is due, sends nothing in time, or is gone. What it sent is dropped.
pub async fn answer<E: Evaluator>(
    channel: &mut Channel,
    evaluator: &Arc<E>,
    gate: &Gate,
    mut done: impl FnMut(Answered),
) -> Result<Answered, ProtocolError> {
    let peer = channel.peer();
    let terms = evaluator.terms();
    channel.send(Step::SETUP, terms).await?;
    let mut keys = Vec::new();
    for (number, bytes) in terms.keys_bytes.iter().enumerate() {
        let mut key = vec![0; *bytes as usize];
        channel.recv_block(Kind::InferenceKey, Step::SETUP, place(number), &mut key).await?;
        keys.push(key);
    }
    let client = evaluator.client(&keys).map_err(|reason| refused(peer, Step::SETUP, 0, reason))?;
    drop(keys);
    let client = Arc::new(client);
    let (mut sending, mut receiving) = channel.split();
    let (batches, evaluations) = tokio::sync::mpsc::channel(HELD_MAX);
    let receive = receive(&mut receiving, evaluator, batches);
    let evaluate = evaluate(&mut sending, evaluator, &client, gate, evaluations, &mut done);
    let ((), answered) = futures_util::try_join!(receive, evaluate)?;
    channel.linger().await;
    Ok(answered)
}

async fn receive<E: Evaluator>(
    receiving: &mut Receiving<'_>,
    evaluator: &Arc<E>,
    batches: Sender<Held<E>>,
) -> Result<(), ProtocolError> {
    let terms = evaluator.terms();
    let room = Arc::new(Semaphore::new(HELD_MAX));
    let mut bytes = vec![0; terms.input_bytes as usize];
    for step in (0..).map(Step::of_query) {
        let Ok(room) = Arc::clone(&room).acquire_owned().await else { break };
        let InferenceBatch { samples } = receiving.recv(step).await?;
        if samples == 0 {
            break;
        }
        if samples > terms.samples_max {
            let expected = format!("at most {} samples in a batch", terms.samples_max);
            return Err(ProtocolError::Unexpected { peer: receiving.peer(), expected, found: samples.to_string() });
        }
        let mut batch = evaluator.batch(samples);
        for number in 0..terms.inputs as usize {
            receiving.recv_block(Kind::EncryptedInput, step, place(number), &mut bytes).await?;
            let refused = |reason| refused(receiving.peer(), step, number, reason);
            evaluator.take(&mut batch, &bytes).map_err(refused)?;
        }
        if batches.send(Held { step, samples, batch, room }).await.is_err() {
            break;
        }
    }
    Ok(())
}

async fn evaluate<E: Evaluator>(
    sending: &mut Sending<'_>,
    evaluator: &Arc<E>,
    client: &Arc<E::Client>,
    gate: &Gate,
    mut batches: Receiver<Held<E>>,
    done: &mut impl FnMut(Answered),
) -> Result<Answered, ProtocolError> {
    let mut answered = Answered::default();
    while let Some(Held { step, samples, batch, room }) = batches.recv().await {
        let turn = gate.enter().await;
        let (evaluator, client) = (Arc::clone(evaluator), Arc::clone(client));
        // Runs to its end even if the client goes meanwhile, and keeps others out until then.
        let evaluation = tokio::task::spawn_blocking(move || {
            let outputs = evaluator.evaluate(&client, batch);
            drop((turn, room));
            outputs
        });
        let outputs = evaluation.await.unwrap_or_else(|e| Err(format!("the evaluation was cut off: {e}")));
        let outputs = outputs.map_err(|reason| refused(sending.peer(), step, 0, reason))?;
        for (number, output) in outputs.iter().enumerate() {
            sending.send_block(Kind::EncryptedOutput, step, place(number), output).await?;
        }
        answered.batches += 1;
        answered.samples += u64::from(samples);
        done(answered);
    }
    Ok(answered)
}

fn refused(peer: Role, step: Step, number: usize, reason: String) -> ProtocolError {
    ProtocolError::Ciphertext { peer, step, number, reason }
}
