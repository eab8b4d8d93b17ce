//! One suite, run for every first-layer protocol.

use super::beaver::Dealer;
use super::{OwnFeatures, PartySide, ServerSide, dealer_side, party_side, server_side};
use crate::transport::{MemoryNetwork, Transport};
use crate::{Cause, FirstLayerKind, Network, Phase, ProtocolError, Role, Sending, SessionConfig, SessionFile, Step};
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use proptest::prelude::*;
use spnn_crypto::SecretRng;
use std::path::Path;
use std::time::Duration;

/// The smallest pipe: a protocol in which two roles both send before they receive hangs at once.
const PIPE: usize = 64;
const TIMEOUT: Duration = Duration::from_millis(400);
/// Keys are made in set-up.
const SET_UP: Duration = Duration::from_secs(60);
const STEP: Step = Step { phase: Phase::Train, epoch: 1, batch: 0 };

/// Rows of a small case.
const ROWS: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Protocol, ring.
const VARIANTS: [(FirstLayerKind, u32); 5] = [
    (FirstLayerKind::Plain, 64),
    (FirstLayerKind::Sharing, 64),
    (FirstLayerKind::Sharing, 32),
    (FirstLayerKind::Beaver, 64),
    (FirstLayerKind::Paillier, 64),
];

pub(crate) fn session(kind: FirstLayerKind, ring_bits: u32, parties: u16, width: usize) -> SessionConfig {
    let list: Vec<String> = (0..parties).map(|i| format!("{{ label_holder = {} }}", i == 0)).collect();
    let text = format!(
        "name = \"suite\"\nfirst_layer = \"{kind}\"\nsharing = {{ ring_bits = {ring_bits} }}\n\
         paillier = {{ key_bits = 512 }}\nseed = 1\n\
         [data]\nparties = [{}]\n\
         [model]\nhidden_width = {width}\nserver = []\nhead = {{ linear = 1, loss = \"binary-cross-entropy\" }}\n\
         [train]\nepochs = 1\nbatch_size = 64\noptimizer = {{ kind = \"sgd\", learning_rate = 0.1 }}\n",
        list.join(", ")
    );
    SessionFile::parse(&text, Path::new("suite.toml")).unwrap().config().unwrap()
}

/// The networks of `roles`, every two of which have a channel.
pub(crate) async fn networks(roles: &[Role], pipe: usize, timeout: Duration) -> Vec<Network> {
    let memory = MemoryNetwork::new(pipe, timeout, &mut SecretRng::from_system().unwrap());
    let connected = roles.iter().map(|&me| {
        let mut transport = memory.transport(me);
        async move {
            let mut network = Network::new(me);
            for &peer in roles.iter().filter(|&&r| r != me) {
                network.add(transport.connect(peer, TIMEOUT).await?);
            }
            Ok(network)
        }
    });
    crate::all(connected).await.unwrap()
}

/// The rows of a matrix, as [`OwnFeatures`] gathers them.
pub(crate) fn of_matrix(
    x: ArrayView2<'_, f32>,
) -> impl FnMut(&[u32], ArrayViewMut2<'_, f32>) -> Result<(), ProtocolError> {
    move |rows, mut out| {
        let rows: Vec<usize> = rows.iter().map(|&row| row as usize).collect();
        out.assign(&x.select(Axis(0), &rows));
        Ok(())
    }
}

/// Every role's network and its side of the protocol, set up together.
struct World {
    parties: Vec<(Network, Box<dyn PartySide>)>,
    server: (Network, Box<dyn ServerSide>),
    coordinator: (Network, Option<Dealer>),
}

impl World {
    async fn new(session: &SessionConfig, incarnation: u64, case: &Case) -> Self {
        Self::set_up(session, incarnation, case).await.unwrap()
    }

    async fn set_up(session: &SessionConfig, incarnation: u64, case: &Case) -> Result<Self, ProtocolError> {
        let roles: Vec<Role> = session.party_roles().chain([Role::Server, Role::Coordinator]).collect();
        let mut networks = networks(&roles, PIPE, SET_UP).await;
        let mut coordinator = networks.pop().unwrap();
        let mut server = networks.pop().unwrap();
        let features: Vec<usize> = case.x.iter().map(Array2::ncols).collect();
        let parties = crate::all(networks.into_iter().zip(&case.x).map(|(mut network, x)| {
            let features = &features;
            async move {
                let mut gather = of_matrix(x.view());
                let own = OwnFeatures { rows: u32::try_from(x.nrows()).unwrap(), gather: &mut gather };
                let side = party_side(session, incarnation, &mut network, features, own).await?;
                network.channels().for_each(|c| c.set_timeout(TIMEOUT));
                Ok((network, side))
            }
        }));
        let mut senders = senders_to_parties(&mut coordinator);
        let dealing = dealer_side(session, incarnation, features.iter().sum(), &mut senders);
        let (parties, side, dealer) = tokio::join!(parties, server_side(session, incarnation, &mut server), dealing);
        drop(senders);
        // The server waits for parties that wait for each other: they say who is gone.
        server.channels().for_each(|c| c.set_timeout(2 * TIMEOUT));
        Ok(Self { parties: parties?, server: (server, side?), coordinator: (coordinator, dealer?) })
    }

    /// All parties contribute `rows` rows to `sent`, the server opens `due` rows of `step`. What the server got.
    async fn step(
        &mut self,
        case: &Case,
        sent: (Step, usize),
        due: (Step, usize),
    ) -> Result<Array2<f32>, ProtocolError> {
        let rows: Vec<u32> = (0..).take(sent.1).collect();
        let rows = &rows[..];
        let forwards = self.parties.iter_mut().zip(case.x.iter().zip(&case.w)).enumerate();
        let forwards = forwards.map(|(i, ((network, side), (x, w)))| async move {
            if i % 2 == 0 {
                side.prepare(sent.0, rows);
            }
            let done = side.forward(network, sent.0, rows, x.slice(s![..sent.1, ..]), w.view()).await;
            if let Err(e) = &done {
                // As a process would: peers that wait for this one must hear why it goes.
                let ending = e.ending(network.me());
                network.channels().for_each(|c| c.link().end(ending));
            }
            done
        });
        let (network, side) = &mut self.server;
        let opening = async {
            let opened = side.open(network, due.0, due.1).await.map(|h1| h1.to_owned());
            if opened.is_err() {
                *network = Network::new(Role::Server);
            }
            opened
        };
        let (coordinator, dealer) = &mut self.coordinator;
        let mut senders = senders_to_parties(coordinator);
        let dealing = async {
            if let Some(dealer) = dealer {
                // Where a party is gone, others say so.
                let _ = dealer.deal(&mut senders, sent.0, rows).await;
            }
        };
        let (forwards, opened, ()) = tokio::join!(crate::all(forwards), opening, dealing);
        opened.and_then(|h1| forwards.map(|_| h1))
    }
}

fn senders_to_parties(coordinator: &mut Network) -> Vec<Sending<'_>> {
    coordinator.channels().filter(|c| c.peer() != Role::Server).map(|c| c.split().0).collect()
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
        FirstLayerKind::Beaver => {
            // Each factor is off by half a unit; the product of the encoded matrices is exact.
            let half = 0.5_f64.powi(session.beaver.fraction_bits.cast_signed() + 1);
            let factors: f64 = (case.x.iter().zip(&case.w))
                .flat_map(|(x, w)| (0..w.nrows()).map(move |j| (f64::from(x[[row, j]]), f64::from(w[[j, column]]))))
                .map(|(x, w)| (x.abs() + w.abs() + half) * half)
                .sum();
            factors + unit * (magnitude + factors)
        }
        FirstLayerKind::Paillier => {
            let f = session.paillier.fraction_bits;
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
            let h1 = block_on(async {
                World::new(&session, 1, &case).await.step(&case, (STEP, rows), (STEP, rows)).await.unwrap()
            });
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
        let session = session(kind, ring_bits, 3, 3);
        let late = Step { batch: 1, ..STEP };
        let case = case(3, 5, 3, 1);
        let error = block_on(async {
            World::new(&session, 1, &case).await.step(&case, (late, 5), (STEP, 5)).await.unwrap_err()
        });
        assert!(matches!(&error, ProtocolError::Unexpected { peer: Role::Party(_), .. }), "{kind}: {error}");
    }
}

#[test]
fn a_wrong_shape_is_refused() {
    for (kind, ring_bits) in VARIANTS {
        let session = session(kind, ring_bits, 3, 3);
        let case = case(3, 5, 3, 1);
        let error = block_on(async {
            World::new(&session, 1, &case).await.step(&case, (STEP, 4), (STEP, 5)).await.unwrap_err()
        });
        // Where the length does not show it, what is opened does: rows that nobody sent are far out of bound.
        assert_eq!(error.ending(Role::Server).cause, Cause::Protocol, "{kind}: {error}");
    }
}

#[test]
fn a_lost_or_silent_party_is_an_error_in_time() {
    for (kind, ring_bits) in VARIANTS {
        let session = session(kind, ring_bits, 2, 3);
        let case = case(2, 5, 3, 1);
        for drop_it in [true, false] {
            let error = block_on(async {
                let mut world = World::new(&session, 1, &case).await;
                let mut silent = world.parties.pop();
                if drop_it {
                    silent = None;
                }
                let error = world.step(&case, (STEP, 5), (STEP, 5)).await.unwrap_err();
                drop(silent);
                error
            });
            let named = match &error {
                ProtocolError::PeerGone { peer, .. } => drop_it && *peer == Role::party(1),
                ProtocolError::PeerTimeout { peer, .. } => !drop_it && *peer == Role::party(1),
                // Where parties wait for each other, the one that waited tells the server.
                ProtocolError::PeerEnded { ending, .. } => ending.culprit == Role::party(1),
                _ => false,
            };
            assert!(named, "{kind}, dropped: {drop_it}: {error}");
        }
    }
}

#[test]
fn a_value_that_cannot_be_encoded_is_not_sent() {
    for (kind, ring_bits) in VARIANTS.into_iter().filter(|(kind, _)| *kind != FirstLayerKind::Plain) {
        let session = session(kind, ring_bits, 2, 3);
        let mut case = case(2, 5, 3, 1);
        case.x[0][[3, 0]] = f32::NAN;
        block_on(async {
            if kind == FirstLayerKind::Beaver {
                // There features are encoded once, for all steps.
                let error = World::set_up(&session, 1, &case).await.err().unwrap();
                assert!(matches!(error, ProtocolError::OwnFeature { row: 3, column: 0 }), "{error}");
                return;
            }
            let mut world = World::new(&session, 1, &case).await;
            let (network, side) = &mut world.parties[0];
            let sent = side.forward(network, STEP, &ROWS[..5], case.x[0].view(), case.w[0].view()).await;
            assert!(matches!(sent, Err(ProtocolError::OwnValue { row: 3, column: 0, .. })), "{kind}: {sent:?}");
            assert!(network.sent().is_empty());
        });
    }
}

#[test]
fn masks_are_used_once() {
    for (kind, ring_bits) in VARIANTS.into_iter().filter(|(kind, _)| *kind != FirstLayerKind::Plain) {
        let session = session(kind, ring_bits, 2, 3);
        let case = case(2, 2, 3, 1);
        block_on(async {
            let mut world = World::new(&session, 1, &case).await;
            let next = Step { batch: 1, ..STEP };
            for (step, fresh) in [(STEP, true), (next, true)] {
                assert_eq!(world.step(&case, (step, 2), (step, 2)).await.is_ok(), fresh, "{kind} {step}");
            }
            for step in [STEP, next] {
                for (i, (network, side)) in world.parties.iter_mut().enumerate() {
                    let again = side.forward(network, step, &ROWS[..2], case.x[i].view(), case.w[i].view()).await;
                    assert!(matches!(again, Err(ProtocolError::MaskReuse { .. })), "{kind} {step}: {again:?}");
                }
            }
        });
    }
}

#[test]
fn a_share_alone_is_noise() {
    // What one party sends, over two incarnations of the same step and values: the masks differ, so do all words.
    let session = session(FirstLayerKind::Sharing, 64, 2, 3);
    let case = case(2, 8, 3, 1);
    let mut seen: Vec<Vec<u64>> = Vec::new();
    for incarnation in [1, 2] {
        block_on(async {
            let mut world = World::new(&session, incarnation, &case).await;
            let (network, side) = &mut world.parties[0];
            let mut words = vec![0_u64; 8 * 3];
            let sending = side.forward(network, STEP, &ROWS, case.x[0].view(), case.w[0].view());
            let channel = world.server.0.channel(Role::party(0)).unwrap();
            let (sent, got) =
                tokio::join!(sending, channel.recv_payload(STEP, 0, bytemuck::cast_slice_mut(&mut words)));
            sent.unwrap();
            got.unwrap();
            seen.push(words);
        });
    }
    assert!(seen[0].iter().zip(&seen[1]).all(|(a, b)| a != b));
    // Products here are below 2^40 in fixed point; masked words fill the ring.
    assert!(seen[0].iter().any(|w| (w >> 48) != 0 && (w >> 48) != 0xffff));
}
