//! The messages, with an evaluator whose "ciphertexts" are four bytes that have to be below 200.

use super::*;
use crate::message::{Header, InferenceBatch, Packing};
use crate::transport::{MemoryNetwork, Transport};
use crate::{Channel, ProtocolError, Role, Step};
use spnn_crypto::SecretRng;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

const CLIENT: Role = Role::Party(crate::PartyId(4));

/// Sums the inputs of a batch; counts the batches that are in memory.
struct Sums {
    terms: InferenceTerms,
    held: Arc<AtomicUsize>,
    held_max: AtomicUsize,
}

struct Batch {
    numbers: Vec<u8>,
    held: Arc<AtomicUsize>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Evaluator for Sums {
    type Client = u8;
    type Batch = Batch;

    fn terms(&self) -> &InferenceTerms {
        &self.terms
    }

    fn client(&self, keys: &[Vec<u8>]) -> Result<u8, String> {
        if keys[0][0] == 255 { Err("no such key".into()) } else { Ok(keys[0][0]) }
    }

    fn batch(&self, _: u32) -> Batch {
        let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
        self.held_max.fetch_max(held, Ordering::SeqCst);
        Batch { numbers: Vec::new(), held: Arc::clone(&self.held) }
    }

    fn take(&self, batch: &mut Batch, ciphertext: &[u8]) -> Result<(), String> {
        match ciphertext.iter().find(|x| **x >= 200) {
            Some(x) => Err(format!("{x} is no residue")),
            None => {
                batch.numbers.extend(ciphertext);
                Ok(())
            }
        }
    }

    fn evaluate(&self, client: &u8, batch: Batch) -> Result<Vec<Vec<u8>>, String> {
        let sum = batch.numbers.iter().fold(*client, |sum, x| sum.wrapping_add(*x));
        Ok(vec![vec![sum, 0], vec![sum, 1]])
    }
}

fn sums() -> Arc<Sums> {
    let terms = InferenceTerms {
        network: [7; 32],
        name: "sums".into(),
        preset: "none".into(),
        packing: Packing::SamplePerSlot,
        description: String::new(),
        scale: 1.0,
        samples_max: 100,
        inputs: 3,
        input_bytes: 4,
        outputs: 2,
        output_bytes: 2,
        keys_bytes: vec![1],
    };
    Arc::new(Sums { terms, held: Arc::default(), held_max: AtomicUsize::new(0) })
}

/// A server with this evaluator and a client that does something else.
async fn against<T>(
    evaluator: &Arc<Sums>,
    client: impl AsyncFnOnce(&mut Channel) -> T,
) -> (Result<Answered, ProtocolError>, T) {
    let network = MemoryNetwork::new(64, Duration::from_millis(300), &mut SecretRng::from_system().unwrap());
    let (mut ours, mut theirs) = (network.transport(Role::Server), network.transport(CLIENT));
    let wait = Duration::from_secs(5);
    let (ours, theirs) = futures_util::join!(ours.connect(CLIENT, wait), theirs.connect(Role::Server, wait));
    let (mut ours, mut theirs) = (ours.unwrap(), theirs.unwrap());
    let gate = Gate::default();
    let asking = async {
        let result = client(&mut theirs).await;
        drop(theirs);
        result
    };
    futures_util::join!(answer(&mut ours, evaluator, &gate, |_| ()), asking)
}

/// A client that sends these batches as it should.
async fn honest(channel: &mut Channel, batches: Vec<u8>) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
    let terms = greet(channel).await?;
    let (uploads, to_send) = mpsc::channel(1);
    let (to_keep, mut answers) = mpsc::channel(1);
    let producing = async {
        for first in batches {
            let _ = uploads.send(Upload::Batch { samples: 9 }).await;
            for number in 0..3 {
                let _ = uploads.send(Upload::Ciphertext(vec![first, number, 0, 0])).await;
            }
        }
        drop(uploads);
    };
    let keeping = async {
        let mut all = Vec::new();
        while let Some(Answer(outputs)) = answers.recv().await {
            all.push(outputs);
        }
        all
    };
    let keys = [vec![5]];
    let (asked, (), all) = futures_util::join!(ask(channel, &terms, &keys, to_send, to_keep), producing, keeping);
    asked.map(|()| all)
}

#[tokio::test]
async fn every_batch_is_answered_in_order_and_few_are_held() {
    let evaluator = sums();
    let (answered, answers) = against(&evaluator, async |channel| honest(channel, (1..=20).collect()).await).await;
    assert_eq!(answered.unwrap(), Answered { batches: 20, samples: 180 });
    let answers = answers.unwrap();
    for (first, outputs) in (1_u8..).zip(&answers) {
        let sum = 5 + 3 * first + 3;
        assert_eq!(outputs, &[vec![sum, 0], vec![sum, 1]]);
    }
    assert_eq!(answers.len(), 20);
    assert_eq!(evaluator.held_max.load(Ordering::SeqCst), 2);
    assert_eq!(evaluator.held.load(Ordering::SeqCst), 0);
}

/// Begins as it should: the terms, a key, a batch of nine samples and its first ciphertext.
async fn begin(channel: &mut Channel) -> Step {
    greet(channel).await.unwrap();
    channel.send_block(Kind::InferenceKey, Step::SETUP, [0, 0], &[5]).await.unwrap();
    let step = Step::of_query(0);
    channel.send(step, &InferenceBatch { samples: 9 }).await.unwrap();
    channel.send_block(Kind::EncryptedInput, step, [0, 0], &[1; 4]).await.unwrap();
    step
}

#[tokio::test]
async fn what_is_not_due_is_refused_by_name_and_nothing_is_kept() {
    type Client = for<'a> fn(&'a mut Channel) -> futures_util::future::BoxFuture<'a, ()>;
    let cases: Vec<(Client, &str)> = vec![
        (
            |c| {
                Box::pin(async move {
                    let step = begin(c).await;
                    let _ = c.send_block(Kind::EncryptedInput, step, [0, 0], &[1; 4]).await;
                })
            },
            "sent part 0 of the encrypted-input of prediction batch 0 where part 1",
        ),
        (
            |c| {
                Box::pin(async move {
                    begin(c).await;
                    let _ = c.send_block(Kind::EncryptedInput, Step::of_query(1), [1, 0], &[1; 4]).await;
                })
            },
            "sent encrypted-input of prediction batch 1 where encrypted-input of prediction batch 0 was due",
        ),
        (
            |c| {
                Box::pin(async move {
                    begin(c).await;
                    let _ = c.send(Step::of_query(1), &InferenceBatch { samples: 1 }).await;
                })
            },
            "sent inference-batch of prediction batch 1 where encrypted-input",
        ),
        (
            |c| {
                Box::pin(async move {
                    let step = begin(c).await;
                    for number in 1..3 {
                        c.send_block(Kind::EncryptedInput, step, [number, 0], &[1; 4]).await.unwrap();
                    }
                    // One more than there are, and then the whole batch once more.
                    let _ = c.send_block(Kind::EncryptedInput, step, [3, 0], &[1; 4]).await;
                })
            },
            "sent encrypted-input of prediction batch 0 where inference-batch of prediction batch 1 was due",
        ),
        (
            |c| {
                Box::pin(async move {
                    let step = begin(c).await;
                    let _ = c.send_block(Kind::EncryptedInput, step, [1, 0], &[1; 5]).await;
                })
            },
            "announced a encrypted-input of 5 bytes",
        ),
        (
            |c| {
                Box::pin(async move {
                    let step = begin(c).await;
                    let _ = c.send_block(Kind::EncryptedInput, step, [1, 0], &[1, 1, 250, 1]).await;
                })
            },
            "refused as ciphertext or key 1: 250 is no residue",
        ),
        (
            |c| {
                Box::pin(async move {
                    greet(c).await.unwrap();
                    c.send_block(Kind::InferenceKey, Step::SETUP, [0, 0], &[5]).await.unwrap();
                    let _ = c.send(Step::of_query(0), &InferenceBatch { samples: 101 }).await;
                })
            },
            "sent 101 where at most 100 samples in a batch was due",
        ),
        (
            |c| {
                Box::pin(async move {
                    greet(c).await.unwrap();
                    let _ = c.send_block(Kind::InferenceKey, Step::SETUP, [0, 0], &[255]).await;
                })
            },
            "no such key",
        ),
        // Stops half way: its end of the channel is dropped.
        (
            |c| {
                Box::pin(async move {
                    let _ = begin(c).await;
                })
            },
            "party-4 is gone",
        ),
        // Stops half way, and stays.
        (
            |c| {
                Box::pin(async move {
                    begin(c).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                })
            },
            "party-4 did not send",
        ),
    ];
    for (client, named) in cases {
        let evaluator = sums();
        let (answered, ()) = against(&evaluator, async |channel| client(channel).await).await;
        let error = answered.unwrap_err().to_string();
        assert!(error.contains(named), "{error}; expected {named}");
        assert_eq!(evaluator.held.load(Ordering::SeqCst), 0, "{named}");
    }
}

#[tokio::test]
async fn a_server_that_answers_wrongly_is_named() {
    let network = MemoryNetwork::new(64, Duration::from_secs(2), &mut SecretRng::from_system().unwrap());
    let (mut server, mut client) = (network.transport(Role::Server), network.transport(CLIENT));
    let wait = Duration::from_secs(5);
    let (server, client) = futures_util::join!(server.connect(CLIENT, wait), client.connect(Role::Server, wait));
    let (mut server, mut client) = (server.unwrap(), client.unwrap());
    let serving = async {
        server.send(Step::SETUP, &sums().terms).await.unwrap();
        let mut out = [0];
        server.recv_block(Kind::InferenceKey, Step::SETUP, [0, 0], &mut out).await.unwrap();
        server.recv::<InferenceBatch>(Step::of_query(0)).await.unwrap();
        // The second output first.
        let _ = server.send_block(Kind::EncryptedOutput, Step::of_query(0), [1, 0], &[0, 0]).await;
    };
    let ((), asked) = futures_util::join!(serving, honest(&mut client, vec![1]));
    let error = asked.unwrap_err().to_string();
    assert!(error.starts_with("server sent part 1 of the encrypted-output"), "{error}");
}

#[test]
fn headers_of_queries_are_headers() {
    let header = Header {
        kind: Kind::EncryptedInput,
        step: Step::of_query(1024),
        checkpoint: false,
        shape: [3, 0],
        body_bytes: 4,
    };
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
}
