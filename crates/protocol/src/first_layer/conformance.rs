//! One suite, run for every first-layer protocol.

use super::{party_side, server_side};
use crate::message::Kind;
use crate::transport::{MemoryTransport, Transport, memory_network};
use crate::{FirstLayerKind, Network, Phase, ProtocolError, Role, SessionConfig, SessionFile, Step};
use ndarray::{Array2, s};
use proptest::prelude::*;
use spnn_crypto::SecretRng;
use std::path::Path;
use std::time::Duration;

/// The smallest pipe: a protocol in which two roles both send before they receive hangs at once.
const PIPE: usize = 64;
const TIMEOUT: Duration = Duration::from_millis(400);
const STEP: Step = Step { phase: Phase::Train, epoch: 1, batch: 0 };

/// Protocol, ring.
const VARIANTS: [(FirstLayerKind, u32); 3] =
    [(FirstLayerKind::Plain, 64), (FirstLayerKind::Sharing, 64), (FirstLayerKind::Sharing, 32)];

pub(crate) fn session(kind: FirstLayerKind, ring_bits: u32, parties: u16, width: usize) -> SessionConfig {
    let list: Vec<String> = (0..parties).map(|i| format!("{{ label_holder = {} }}", i == 0)).collect();
    let text = format!(
        "name = \"suite\"\nfirst_layer = \"{kind}\"\nsharing = {{ ring_bits = {ring_bits} }}\nseed = 1\n\
         [data]\nparties = [{}]\n\
         [model]\nhidden_width = {width}\nserver = []\nhead = {{ linear = 1, loss = \"binary-cross-entropy\" }}\n\
         [train]\nepochs = 1\nbatch_size = 64\noptimizer = {{ kind = \"sgd\", learning_rate = 0.1 }}\n",
        list.join(", ")
    );
    SessionFile::parse(&text, Path::new("suite.toml")).unwrap().config().unwrap()
}

async fn network(transport: &mut MemoryTransport, peers: impl IntoIterator<Item = Role>) -> Network {
    let mut network = Network::new(transport.me());
    for peer in peers {
        network.add(transport.connect(peer, TIMEOUT).await.unwrap());
    }
    network
}

/// One network per party, and the server's.
async fn networks(session: &SessionConfig) -> (Vec<Network>, Network) {
    let roles: Vec<Role> = session.party_roles().chain([Role::Server]).collect();
    let mut ends = memory_network(&roles, PIPE, TIMEOUT, &mut SecretRng::from_system().unwrap());
    let mut all = Vec::new();
    for end in &mut ends {
        let me = end.me();
        let peers = roles.iter().copied().filter(|&r| r != me);
        all.push(network(end, peers).await);
    }
    let server = all.pop().unwrap();
    (all, server)
}

struct Case {
    x: Vec<Array2<f32>>,
    w: Vec<Array2<f32>>,
}

fn case(parties: u16, rows: usize, width: usize, seed: u64) -> Case {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let mut matrix = |r, c| Array2::from_shape_simple_fn((r, c), || rng.random_range(-3.0_f32..3.0));
    let features: Vec<usize> = (0..parties).map(|i| 1 + usize::from(i) % 4).collect();
    Case {
        x: features.iter().map(|&d| matrix(rows, d)).collect(),
        w: features.iter().map(|&d| matrix(d, width)).collect(),
    }
}

/// What the server opens when every role does its part.
async fn run(session: &SessionConfig, case: &Case) -> Result<Array2<f32>, ProtocolError> {
    let (mut parties, mut server) = networks(session).await;
    let rows = case.x[0].nrows();
    let mut opening = server_side(session)?;
    let mut sides = Vec::new();
    for (network, (x, w)) in parties.iter_mut().zip(case.x.iter().zip(&case.w)) {
        sides.push((party_side(session, 1, network)?, network, x, w));
    }
    let forwards = sides.iter_mut().enumerate().map(|(i, (side, network, x, w))| async move {
        if i % 2 == 0 {
            side.prepare(STEP, rows);
        }
        side.forward(network, STEP, x.view(), w.view()).await
    });
    let (sent, opened) = tokio::join!(crate::all(forwards), opening.open(&mut server, STEP, rows));
    sent?;
    Ok(opened?.to_owned())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// `|h1 − Σ X_i·W_i|` is at most k roundings to fixed point, the rounding of each product and of the sum to `f32`.
fn bound(session: &SessionConfig, case: &Case, row: usize, column: usize) -> f64 {
    let k = f64::from(session.parties);
    let unit = f64::from(f32::EPSILON) / 2.0;
    let magnitude: f64 = (case.x.iter().zip(&case.w))
        .map(|(x, w)| (0..w.nrows()).map(|j| f64::from((x[[row, j]] * w[[j, column]]).abs())).sum::<f64>())
        .sum();
    let terms = case.w.iter().map(|w| w.nrows()).max().unwrap_or(0) + usize::from(session.parties) + 1;
    let float = unit * f64::from(u32::try_from(terms).unwrap()) * magnitude * 1.01;
    match session.first_layer {
        FirstLayerKind::Plain => float,
        FirstLayerKind::Sharing => {
            let f = session.sharing.fixed_point(session.parties).unwrap().fraction_bits();
            float + k * 0.5_f64.powi(f.cast_signed() + 1)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn opens_the_sum(parties in 2_u16..6, rows in 1_usize..40, width in 1_usize..9, seed in any::<u64>()) {
        for (kind, ring_bits) in VARIANTS {
            let session = session(kind, ring_bits, parties, width);
            let case = case(parties, rows, width, seed);
            let h1 = block_on(run(&session, &case)).unwrap();
            prop_assert_eq!(h1.dim(), (rows, width));
            for ((row, column), &found) in h1.indexed_iter() {
                let exact: f64 = case.x.iter().zip(&case.w)
                    .flat_map(|(x, w)| (0..w.nrows()).map(move |j| f64::from(x[[row, j]]) * f64::from(w[[j, column]])))
                    .sum();
                let limit = bound(&session, &case, row, column);
                prop_assert!((f64::from(found) - exact).abs() <= limit, "{kind} {ring_bits}: {found} {exact} ±{limit}");
            }
        }
    }
}

#[test]
fn a_wrong_step_is_refused() {
    for (kind, ring_bits) in VARIANTS {
        let session = session(kind, ring_bits, 2, 3);
        let case = case(2, 5, 3, 1);
        block_on(async {
            let (mut parties, mut server) = networks(&session).await;
            let mut side = party_side(&session, 1, &mut parties[1]).unwrap();
            let mut opening = server_side(&session).unwrap();
            let late = Step { batch: 1, ..STEP };
            let sending = side.forward(&mut parties[1], late, case.x[1].view(), case.w[1].view());
            let (_, opened) = tokio::join!(sending, opening.open(&mut server, STEP, 5));
            let error = opened.map(|_| ()).unwrap_err();
            assert!(
                matches!(&error, ProtocolError::Unexpected { peer, .. } if *peer == Role::party(1)),
                "{kind}: {error}"
            );
        });
    }
}

#[test]
fn a_wrong_shape_is_refused() {
    for (kind, ring_bits) in VARIANTS {
        let session = session(kind, ring_bits, 2, 3);
        let case = case(2, 5, 3, 1);
        block_on(async {
            let (mut parties, mut server) = networks(&session).await;
            let mut side = party_side(&session, 1, &mut parties[1]).unwrap();
            let mut opening = server_side(&session).unwrap();
            let short = case.x[1].slice(s![..4, ..]);
            let sending = side.forward(&mut parties[1], STEP, short, case.w[1].view());
            let (_, opened) = tokio::join!(sending, opening.open(&mut server, STEP, 5));
            let error = opened.map(|_| ()).unwrap_err();
            assert!(
                matches!(&error, ProtocolError::BodyLength { peer, kind: Kind::FirstLayer, .. } if *peer == Role::party(1)),
                "{kind}: {error}"
            );
        });
    }
}

#[test]
fn a_lost_or_silent_party_is_an_error_in_time() {
    for (kind, ring_bits) in VARIANTS {
        let session = session(kind, ring_bits, 2, 3);
        let case = case(2, 5, 3, 1);
        block_on(async {
            for drop_it in [true, false] {
                let (mut parties, mut server) = networks(&session).await;
                let mut side = party_side(&session, 1, &mut parties[0]).unwrap();
                let mut silent = parties.pop();
                if drop_it {
                    silent = None;
                }
                let mut opening = server_side(&session).unwrap();
                let sending = side.forward(&mut parties[0], STEP, case.x[0].view(), case.w[0].view());
                let (_, opened) = tokio::join!(sending, opening.open(&mut server, STEP, 5));
                let error = opened.map(|_| ()).unwrap_err();
                let named = match &error {
                    ProtocolError::PeerGone { peer, .. } => drop_it && *peer == Role::party(1),
                    ProtocolError::PeerTimeout { peer, .. } => !drop_it && *peer == Role::party(1),
                    _ => false,
                };
                assert!(named, "{kind}, dropped: {drop_it}: {error}");
                drop(silent);
            }
        });
    }
}

#[test]
fn a_value_that_cannot_be_encoded_is_not_sent() {
    for (kind, ring_bits) in VARIANTS {
        if kind == FirstLayerKind::Plain {
            continue;
        }
        let session = session(kind, ring_bits, 2, 3);
        let mut case = case(2, 5, 3, 1);
        case.x[0][[3, 0]] = f32::NAN;
        block_on(async {
            let (mut parties, _server) = networks(&session).await;
            let mut side = party_side(&session, 1, &mut parties[0]).unwrap();
            let sent = side.forward(&mut parties[0], STEP, case.x[0].view(), case.w[0].view()).await;
            assert!(matches!(sent, Err(ProtocolError::OwnValue { row: 3, column: 0, .. })), "{kind}: {sent:?}");
            assert!(parties[0].sent().is_empty());
        });
    }
}

#[test]
fn masks_are_used_once() {
    let session = session(FirstLayerKind::Sharing, 64, 2, 3);
    let case = case(2, 2, 3, 1);
    block_on(async {
        let (mut parties, mut server) = networks(&session).await;
        let mut side = party_side(&session, 1, &mut parties[0]).unwrap();
        let (x, w) = (case.x[0].view(), case.w[0].view());
        let mut bytes = vec![0; 2 * 3 * 8];
        for (step, fresh) in [(STEP, true), (STEP, false), (Step { batch: 1, ..STEP }, true), (STEP, false)] {
            let sending = side.forward(&mut parties[0], step, x, w);
            let receiving = async {
                if fresh {
                    server.channel(Role::party(0)).unwrap().recv_payload(step, &mut bytes).await.unwrap();
                }
            };
            let (sent, ()) = tokio::join!(sending, receiving);
            assert_eq!(sent.is_ok(), fresh, "{step}");
            assert_eq!(matches!(sent, Err(ProtocolError::MaskReuse { .. })), !fresh);
        }
    });
}

#[test]
fn a_share_alone_is_noise() {
    // What one party sends, over two incarnations of the same step and values: the masks differ, so do all words.
    let session = session(FirstLayerKind::Sharing, 64, 2, 3);
    let case = case(2, 8, 3, 1);
    let mut seen: Vec<Vec<u64>> = Vec::new();
    for incarnation in [1, 2] {
        block_on(async {
            let (mut parties, mut server) = networks(&session).await;
            let mut side = party_side(&session, incarnation, &mut parties[0]).unwrap();
            let mut words = vec![0_u64; 8 * 3];
            let sending = side.forward(&mut parties[0], STEP, case.x[0].view(), case.w[0].view());
            let channel = server.channel(Role::party(0)).unwrap();
            let (sent, got) = tokio::join!(sending, channel.recv_payload(STEP, bytemuck::cast_slice_mut(&mut words)));
            sent.unwrap();
            got.unwrap();
            seen.push(words);
        });
    }
    assert!(seen[0].iter().zip(&seen[1]).all(|(a, b)| a != b));
    // Products here are below 2^40 in fixed point; masked words fill the ring.
    assert!(seen[0].iter().any(|w| (w >> 48) != 0 && (w >> 48) != 0xffff));
}
