//! Blind evaluation against the same layers in the clear, and what is refused.

use super::layers::{Layers, Shape};
use super::plan::Plan;
use super::{Holder, OUTPUT_LEVEL, Party, Server, context, party_side};
use crate::first_layer::PartySide;
use crate::first_layer::conformance::networks;
use crate::message::{BlindTerms, Kind};
use crate::{Network, Phase, ProtocolError, Role, SessionConfig, SessionFile, Step, all};
use ndarray::{Array2, ArrayView2};
use spnn_ckks::{Ciphertext, PublicKey};
use spnn_nn::{Mode, Model, Sequential, matmul};
use std::path::Path;
use std::time::Duration;

const STEP: Step = Step { phase: Phase::Predict, epoch: 0, batch: 0 };
const TIMEOUT: Duration = Duration::from_secs(60);
const PIPE: usize = 4096;
const FEATURES: usize = 3;

fn parse(layers: &str, parties: u16, width: usize) -> Result<SessionConfig, crate::SessionError> {
    let list: Vec<String> = (0..parties).map(|i| format!("{{ label_holder = {} }}", i == 0)).collect();
    let first_layer = if parties == 1 { "plain" } else { "sharing" };
    let text = format!(
        "name = \"blind\"\nfirst_layer = \"{first_layer}\"\ninference = \"encrypted\"\nseed = 1\n\
         [data]\nparties = [{}]\n\
         [model]\nhidden_width = {width}\nserver = [{layers}]\nhead = {{ linear = 1, loss = \"binary-cross-entropy\" }}\n\
         [train]\nepochs = 1\nbatch_size = 64\noptimizer = {{ kind = \"sgd\", learning_rate = 0.1 }}\n",
        list.join(", ")
    );
    SessionFile::parse(&text, Path::new("blind.toml"))?.config()
}

fn session(layers: &str, parties: u16, width: usize) -> SessionConfig {
    parse(layers, parties, width).unwrap()
}

fn matrix(rows: usize, columns: usize, salt: f32) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |(i, j)| ((i * columns + j) as f32 * 0.731 + salt).sin())
}

fn model(session: &SessionConfig) -> Sequential {
    let mut model = Sequential::new(session.model.hidden_width as usize, &session.model.server, 5).unwrap();
    // Biases begin as zeros: as after training, they are not.
    for parameter in model.parameters().iter_mut().filter(|p| p.name.ends_with("bias")) {
        parameter.value.iter_mut().enumerate().for_each(|(i, b)| *b = (i as f32 * 0.37).cos());
    }
    model
}

/// Everyone of a session, and every party's features and weights.
struct World {
    session: SessionConfig,
    model: Sequential,
    x: Vec<Array2<f32>>,
    w: Vec<Array2<f32>>,
    networks: Vec<Network>,
    incarnation: u64,
}

impl World {
    async fn new(layers: &str, parties: u16, width: usize, rows: usize) -> Self {
        let session = session(layers, parties, width);
        let roles: Vec<Role> = session.party_roles().chain([Role::Server]).collect();
        let networks = networks(&roles, PIPE, TIMEOUT).await;
        let matrices = |rows: usize, columns: usize, salt: f32| {
            (0..parties).map(|i| matrix(rows, columns, salt + f32::from(i))).collect()
        };
        let (x, w) = (matrices(rows, FEATURES, 0.0), matrices(FEATURES, width, 100.0));
        Self { model: model(&session), session, x, w, networks, incarnation: 1 }
    }

    fn h1(&self) -> Array2<f32> {
        let mut h1 = Array2::zeros((self.x[0].nrows(), self.w[0].ncols()));
        for (x, w) in self.x.iter().zip(&self.w) {
            let mut product = Array2::zeros(h1.dim());
            matmul(x.view(), w.view(), product.view_mut(), false);
            h1 += &product;
        }
        h1
    }

    fn h1_max(&self) -> f32 {
        self.h1().iter().fold(0.0, |largest, h| largest.max(h.abs()))
    }

    fn plan(&mut self) -> Plan {
        let shape = Shape::of(&self.session.model).unwrap();
        let layers = Layers::of(&shape, &self.model.parameters()).unwrap();
        let h1_max = 2.0 * f64::from(self.h1_max());
        Plan::new(&context().unwrap(), &layers, self.session.parties, h1_max).unwrap()
    }

    async fn set_up(&mut self, h1_max: f32) -> Result<(Vec<(Party, Option<Holder>)>, Server), ProtocolError> {
        let (session, incarnation) = (&self.session, self.incarnation);
        let (server, parties) = self.networks.split_last_mut().unwrap();
        let parties = all(parties.iter_mut().map(|network| party_side(session, incarnation, network)));
        let parameters = self.model.parameters();
        let (parties, server) = tokio::join!(parties, Server::set_up(session, server, &parameters, h1_max));
        Ok((parties?, server?))
    }

    /// One batch: what the label holder opened.
    async fn score(
        &mut self,
        parties: &mut [(Party, Option<Holder>)],
        server: &mut Server,
        step: Step,
    ) -> Result<Array2<f32>, ProtocolError> {
        let rows: Vec<u32> = (0..).take(self.x[0].nrows()).collect();
        let rows = &rows[..];
        let outputs = self.model.output_width();
        let (of_server, networks) = self.networks.split_last_mut().unwrap();
        let sides = networks.iter_mut().zip(parties).zip(self.x.iter().zip(&self.w));
        let opened = all(sides.map(|((network, (party, holder)), (x, w))| async move {
            party.forward(network, step, rows, x.view(), w.view()).await?;
            let mut z = Array2::zeros((rows.len(), outputs));
            if let Some(holder) = holder {
                holder.open(network, step, z.view_mut()).await?;
            }
            Ok(z)
        }));
        let (opened, scored) = tokio::join!(opened, server.score(of_server, step));
        scored?;
        Ok(opened?.swap_remove(0))
    }

    fn in_the_clear(&mut self) -> Array2<f32> {
        let h1 = self.h1();
        self.model.forward(h1.view(), Mode::Evaluate).unwrap().to_owned()
    }
}

fn largest_difference(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> f32 {
    assert_eq!(a.dim(), b.dim());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn what_is_opened_is_what_the_layers_give() {
    let square = "{ activation = \"square\" }";
    let cases = [
        (1, 2, String::new()),
        (2, 3, "{ linear = 2 }".to_owned()),
        (2, 2, square.to_owned()),
        (3, 8, format!("{square}, {{ linear = 5 }}, {{ dropout = 0.5 }}, {square}")),
        // More columns than are in memory together, and a bias that must be added once.
        (2, 19, format!("{square}, {{ linear = 3 }}, {square}, {{ linear = 2 }}")),
        (2, 2, format!("{{ linear = 2 }}, {square}, {{ linear = 2 }}, {square}, {{ linear = 2 }}")),
    ];
    for (parties, width, layers) in cases {
        let mut world = World::new(&layers, parties, width, 37).await;
        let h1_max = world.h1_max();
        let plan = world.plan();
        let (mut sides, mut server) = world.set_up(h1_max).await.unwrap();
        let z = world.score(&mut sides, &mut server, STEP).await.unwrap();
        let expected = world.in_the_clear();
        let difference = largest_difference(z.view(), expected.view());
        // Six standard deviations of what flooding adds, and what rounding weights to 16 bits does.
        let largest = expected.iter().fold(0.0_f32, |largest, z| largest.max(z.abs()));
        let bound = 6.0 * plan.error as f32 + largest * 1e-3;
        assert!(difference <= bound, "{parties} parties, {width}: {layers}: {difference}, {bound}; {plan:?}");
        assert!(plan.error < 1.0 / 4096.0, "{plan:?}");
    }
}

#[tokio::test]
async fn masks_are_used_once() {
    let mut world = World::new("{ activation = \"square\" }", 2, 2, 5).await;
    let h1_max = world.h1_max();
    let (mut sides, mut server) = world.set_up(h1_max).await.unwrap();
    world.score(&mut sides, &mut server, STEP).await.unwrap();
    let (party, _) = &mut sides[1];
    let again = party.forward(&mut world.networks[1], STEP, &[0], world.x[1].view(), world.w[1].view()).await;
    assert!(matches!(again, Err(ProtocolError::MaskReuse { .. })), "{again:?}");
    let next = Step { batch: 1, ..STEP };
    world.score(&mut sides, &mut server, next).await.unwrap();
}

#[tokio::test]
async fn values_far_beyond_those_in_training_are_noticed() {
    let mut world =
        World::new("{ activation = \"square\" }, { linear = 2 }, { activation = \"square\" }", 2, 2, 5).await;
    let h1_max = world.h1_max();
    let (mut sides, mut server) = world.set_up(h1_max).await.unwrap();
    world.x[1][[3, 0]] = 1e4;
    let error = world.score(&mut sides, &mut server, STEP).await.unwrap_err();
    assert!(matches!(error, ProtocolError::BlindOutOfBound { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("prediction batch 0") && text.contains("data.clip"), "{text}");

    world.x[1][[3, 0]] = f32::NAN;
    let party = &mut sides[1].0;
    let next = Step { batch: 1, ..STEP };
    let error = party.forward(&mut world.networks[1], next, &[], world.x[1].view(), world.w[1].view()).await;
    assert!(matches!(error, Err(ProtocolError::OwnValue { row: 3, column: 0, .. })), "{error:?}");
}

#[tokio::test]
async fn a_share_that_is_none_is_refused_by_name() {
    let mut world = World::new("{ activation = \"square\" }", 2, 1, 5).await;
    let h1_max = world.h1_max();
    let (mut sides, mut server) = world.set_up(h1_max).await.unwrap();
    let level = world.plan().level;
    let context = context().unwrap();
    let length = Ciphertext::byte_length(&context, level, 2);
    // Nonsense, and a scale that nobody asked for: its lowest byte is the header's sixth.
    for (number, what) in [(0_u32, "version"), (1, "scale"), (2, "4 parts")] {
        let step = Step { batch: number, ..STEP };
        let [first, second, of_server] = &mut world.networks[..] else { panic!("three roles") };
        let mut bytes = vec![0_u8; length];
        if what == "scale" {
            bytes[..5].copy_from_slice(&[1, 5, 2, level as u8, 2]);
        }
        // Half of the limbs in twice as many parts: as long.
        if what == "4 parts" {
            assert_eq!(Ciphertext::byte_length(&context, (level - 1) / 2, 4), length);
            bytes[..5].copy_from_slice(&[1, 5, 2, (level as u8 - 1) / 2, 4]);
        }
        bytes[5..13].copy_from_slice(&60_f64.exp2().to_le_bytes());
        let rows = [0, 1, 2, 3, 4];
        let good = sides[0].0.forward(first, step, &rows, world.x[0].view(), world.w[0].view());
        let bad = async { second.channel(Role::Server)?.send_block(Kind::EncryptedInput, step, [0, 0], &bytes).await };
        let (good, bad, refused) = tokio::join!(good, bad, server.score(of_server, step));
        good.unwrap();
        bad.unwrap();
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("party-1") && text.contains(what) && text.contains(&step.to_string()), "{text}");
    }
}

#[tokio::test]
async fn a_share_says_nothing_even_to_the_holder_of_the_key_and_their_sum_is_h1() {
    let mut world = World::new("{ activation = \"square\" }", 3, 1, 40).await;
    let h1_max = world.h1_max();
    let level = world.plan().level;
    let (mut sides, server) = world.set_up(h1_max).await.unwrap();
    let context = context().unwrap();
    let rows: Vec<u32> = (0..40).collect();
    let (of_server, networks) = world.networks.split_last_mut().unwrap();
    let mut shares = vec![vec![0_u8; Ciphertext::byte_length(&context, level, 2)]; 3];
    let sending = networks.iter_mut().zip(&mut sides).zip(world.x.iter().zip(&world.w));
    let rows = &rows[..];
    let sending = all(sending.map(|((network, (party, _)), (x, w))| async move {
        party.forward(network, STEP, rows, x.view(), w.view()).await
    }));
    let (sent, received) =
        tokio::join!(sending, of_server.recv_blocks(Kind::EncryptedInput, STEP, [0, 0], &mut shares));
    sent.unwrap();
    received.unwrap();
    drop(server);
    let shares: Vec<Ciphertext> = shares.iter().map(|s| Ciphertext::from_bytes(&context, s).unwrap()).collect();
    let secret = &sides[0].1.as_ref().unwrap().secret;
    // Scales beyond what is decoded are brought down first.
    let opened = |ciphertext: &Ciphertext| {
        let mut lower = ciphertext.clone();
        lower.rescale_to(level - 2).unwrap();
        secret.decrypt(&lower).unwrap().decode()
    };
    let is_nonsense = |values: &[f64]| values.iter().filter(|v| v.abs() < 1e3).count() < values.len() / 100;
    let pairs = [[0, 1], [0, 2], [1, 2]].map(|[a, b]| shares[a].add(&shares[b]).unwrap());
    for hidden in shares.iter().chain(&pairs) {
        assert!(is_nonsense(&opened(hidden)));
    }
    let sum = opened(&pairs[0].add(&shares[2]).unwrap());
    let h1 = world.h1();
    for (slot, value) in sum.iter().enumerate() {
        let expected = f64::from(h1[[slot % 40, 0]]);
        assert!((value - expected).abs() < 1e-4, "slot {slot}: {value}, {expected}");
    }
}

#[tokio::test]
async fn terms_and_keys_that_cannot_be_are_refused() {
    let good = BlindTerms { level: 9, scale_log2: 90, output_log2: 20, error_log2: -12 };
    let bad = [
        BlindTerms { level: 1, ..good },
        BlindTerms { level: 12, ..good },
        BlindTerms { scale_log2: 19, ..good },
        BlindTerms { level: 2, scale_log2: 107, ..good },
        BlindTerms { output_log2: 400, ..good },
    ];
    for terms in bad {
        let mut world = World::new("{ activation = \"square\" }", 1, 1, 5).await;
        let session = world.session.clone();
        let [party, server] = &mut world.networks[..] else { panic!("two roles") };
        let lying = async {
            let context = context()?;
            let mut key = vec![0; PublicKey::byte_length(&context)];
            let holder = server.channel(Role::party(0))?;
            holder.recv_block(Kind::InferenceKey, Step::SETUP, [0, 0], &mut key).await?;
            holder.send(Step::SETUP, &terms).await
        };
        let (joined, lied) = tokio::join!(party_side(&session, 1, party), lying);
        lied.unwrap();
        let text = joined.err().unwrap().to_string();
        assert!(text.contains("server") && text.contains("level 2 to 11"), "{terms:?}: {text}");
    }

    let mut world = World::new("{ activation = \"square\" }", 2, 1, 5).await;
    let session = world.session.clone();
    let [holder, party, _] = &mut world.networks[..] else { panic!("three roles") };
    let key = vec![0xff; PublicKey::byte_length(&context().unwrap())];
    let lying =
        async { holder.channel(Role::party(1))?.send_block(Kind::InferenceKey, Step::SETUP, [0, 0], &key).await };
    let (joined, lied) = tokio::join!(party_side(&session, 1, party), lying);
    lied.unwrap();
    assert!(joined.err().unwrap().to_string().contains("party-0"));
}

#[test]
fn sessions_say_which_layer_cannot_be_encrypted() {
    let square = "{ activation = \"square\" }";
    for (layers, width, said) in [
        ("{ linear = 2 }, { activation = \"sigmoid\" }".to_owned(), 4, "layer 2, {\"activation\":\"sigmoid\"}"),
        ("{ layer-norm = true }".to_owned(), 4, "layer-norm"),
        ("{ linear = 5000 }".to_owned(), 4, "5000"),
        ("{ linear = 257 }".to_owned(), 4, "257"),
        ("{ linear = 2 }".to_owned(), 5000, "hidden_width"),
        (square.to_owned(), 257, "hidden_width"),
        ([square; 3].join(", "), 4, "up to 2 squares"),
    ] {
        let text = parse(&layers, 2, width).unwrap_err().to_string();
        assert!(text.contains(said) && text.contains("inference = \"encrypted\""), "{text}");
    }
}

#[test]
fn a_session_that_scores_openly_is_the_text_it_was() {
    let encrypted = session("{ linear = 2 }", 2, 2);
    assert!(encrypted.canonical().contains("\"inference\":\"encrypted\""));
    let mut open = encrypted.clone();
    open.inference = crate::InferenceKind::Open;
    assert!(!open.canonical().contains("inference"));
    assert_eq!(open.difference(&encrypted.canonical()).unwrap().field, "inference");
    use crate::contract::Leak::CollusionOfServerAndAllOtherParties as Collusion;
    assert_eq!(encrypted.leaks().iter().filter(|leak| **leak == Collusion).count(), 1);
    open.first_layer = crate::FirstLayerKind::Plain;
    assert!(!open.leaks().contains(&Collusion));
    open.inference = crate::InferenceKind::Encrypted;
    assert!(open.leaks().contains(&Collusion));
}

#[test]
fn plans_keep_their_promises_or_say_why_not() {
    let context = context().unwrap();
    let square = "{ activation = \"square\" }";
    let session = session(&format!("{square}, {{ linear = 4 }}, {square}"), 2, 4);
    let mut model = model(&session);
    let shape = Shape::of(&session.model).unwrap();
    let mut before = 0;
    for h1_max in [1.0, 100.0, 1e4] {
        let layers = Layers::of(&shape, &model.parameters()).unwrap();
        let plan = Plan::new(&context, &layers, 2, h1_max).unwrap();
        assert!(plan.level >= before && plan.levels[0] > OUTPUT_LEVEL, "{plan:?}");
        // What comes out fits twice into the modulus that it is decoded with.
        assert!(f64::from(plan.output_log2) >= 4.0 * h1_max.log2() - 8.0, "{plan:?}");
        before = plan.level;
    }
    let layers = Layers::of(&shape, &model.parameters()).unwrap();
    let reason = Plan::new(&context, &layers, 2, 1e20).unwrap_err();
    assert!(reason.contains("too large"), "{reason}");
    model.parameters()[1].value[0] = f32::NAN;
    let reason = Layers::of(&shape, &model.parameters()).err().unwrap().to_string();
    assert!(reason.contains("2.weight") && reason.contains("not finite"), "{reason}");
}
