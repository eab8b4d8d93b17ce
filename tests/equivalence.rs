//! A split session is the network of one process; memory and QUIC are the same, bit for bit.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::{arg, repository, spnn_ok};
use ndarray::{Array2, Axis};
use spnn::coordinator::{Event, Observer};
use spnn::party::PartyOptions;
use spnn::party::data::DataSource;
use spnn::pooled::{self, Pooled};
use spnn::protocol::{FirstLayerKind, JoinOptions, Phase, Role, SessionConfig, SessionFile, Task};
use spnn::sources::{sources, split_columns};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use toml::{Table, Value};

/// Parameters of the whole network, by block.
struct Network {
    /// `[d, h]`, the parties' blocks below each other.
    first_layer: Array2<f32>,
    /// `0.bias`, `2.weight`, `2.bias`.
    server: Vec<f32>,
    /// `head.weight`, `head.bias`.
    head: Vec<f32>,
}

const HIDDEN: usize = 8;
const STEPS: usize = 20;
const LEARNING_RATE: f64 = 0.05;

/// Twenty steps of plain gradient descent on the shipped example: 455 rows in batches of 91, four epochs.
fn short(session: &mut Table) {
    session["train"] = kit::table(&format!(
        "epochs = 4\nbatch_size = 91\noptimizer = {{ kind = \"sgd\", learning_rate = {LEARNING_RATE} }}"
    ))
    .into();
}

fn example() -> Table {
    let text = fs::read_to_string(repository("examples/breast_cancer/session.toml")).unwrap();
    let mut table: Table = text.parse().unwrap();
    for party in table["data"]["parties"].as_array_mut().unwrap() {
        let file = repository("examples/breast_cancer").join(party["file"].as_str().unwrap());
        party.as_table_mut().unwrap().insert("file".into(), arg(&file).into());
    }
    table
}

fn parse(table: &Table) -> SessionFile {
    SessionFile::parse(&toml::to_string(table).unwrap(), Path::new("test")).unwrap()
}

struct Silent;

impl Observer for Silent {
    fn on(&mut self, _event: &Event<'_>) {}
}

/// Trains over pipes of 64 bytes, which no message fits into.
fn split(session: &SessionConfig, data: &[DataSource]) -> Network {
    let directory = tempfile::tempdir().unwrap();
    let join = |role: Role| JoinOptions {
        allow_unprotected: true,
        ..JoinOptions::new(Task::Train, directory.path().join(role.to_string()))
    };
    let parties: Vec<PartyOptions> =
        (session.party_roles().zip(data)).map(|(role, data)| PartyOptions::new(join(role), data.clone())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (coordinator, server) = (join(Role::Coordinator), join(Role::Server));
    let ends =
        runtime.block_on(spnn::in_memory::run(session, &coordinator, &server, &parties, 64, &mut Silent)).unwrap();
    ends.coordinator.unwrap();
    ends.server.unwrap();
    for party in ends.parties {
        party.unwrap();
    }
    saved(directory.path(), session)
}

/// What the roles saved, put together.
fn saved(run: &Path, session: &SessionConfig) -> Network {
    let tensors = |role: Role| tensors(&run.join(role.to_string()));
    let blocks: Vec<Array2<f32>> = session
        .party_roles()
        .map(|role| {
            let values = tensors(role).remove("first_layer.weight").unwrap();
            Array2::from_shape_vec((values.len() / HIDDEN, HIDDEN), values).unwrap()
        })
        .collect();
    let views: Vec<_> = blocks.iter().map(|b| b.view()).collect();
    let (server, holder) = (tensors(Role::Server), tensors(session.label_role()));
    assert_eq!(server.keys().collect::<Vec<_>>(), ["0.bias", "2.bias", "2.weight"]);
    Network {
        first_layer: ndarray::concatenate(Axis(0), &views).unwrap(),
        server: [&server["0.bias"][..], &server["2.weight"], &server["2.bias"]].concat(),
        head: [&holder["head.weight"][..], &holder["head.bias"]].concat(),
    }
}

/// The tensors of a safetensors file: eight bytes of length, JSON, numbers.
fn tensors(directory: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    let start = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
    let tensor = |(name, about): (String, serde_json::Value)| {
        assert_eq!(about["dtype"], "F32");
        let [from, to] = [0, 1].map(|i| start + about["data_offsets"][i].as_u64().unwrap() as usize);
        let values = bytes[from..to].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (name, values)
    };
    header.into_iter().filter(|(name, _)| name != "__metadata__").map(tensor).collect()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn length(values: &[f32]) -> f64 {
    norm(values.iter().map(|v| f64::from(*v)))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)))
}

/// Distances of the three blocks P = (first layer, its bias), Q = (hidden layer), R = (head).
fn distances(split: &Network, pooled: &Pooled) -> [f64; 3] {
    let first = distance(split.first_layer.as_slice().unwrap(), pooled.first_layer.as_slice().unwrap());
    let bias = distance(&split.server[..HIDDEN], &pooled.server[..HIDDEN]);
    [
        first.hypot(bias),
        distance(&split.server[HIDDEN..], &pooled.server[HIDDEN..]),
        distance(&split.head, &pooled.head),
    ]
}

/// How far a split session may be from one process after [`STEPS`] steps, block by block.
///
/// Network of a row: `u = (x, 1)`, `p = Pᵀu` (8), `a = σ(p)`, `q = W₂a + b₂` (8), `c = σ(q)`, `s = w·c + b`, loss f(s)
/// with `f' = σ(s) − y`. Used: `σ' ≤ 1/4`, `|σ''| ≤ 1/(6√3) =: κ`, `|f'| ≤ 1`, `f'' ≤ 1/4`, `‖(a, 1)‖, ‖(c, 1)‖ ≤ 3`,
/// `‖W₂‖ ≤ v`, `‖w‖ ≤ ω` (Frobenius norms, which bound the matrices of absolute values as well).
///
/// Two runs whose parameters differ by `e = (e_P, e_Q, e_R)` (2-norms) and whose products differ by `δ` in a row differ
/// in that row by at most
///
/// - `dp ≤ ‖u‖·e_P + ‖δ‖`, `dq ≤ (v/4)·dp + 3·e_Q`, `df' ≤ (1/4)·((ω/4)·dq + 3·e_R)`,
/// - gradient by `s`-weights: `3·df' + dq/4`,
/// - by `q` (`g_q = σ'(q)∘w·f'`): `dg_q ≤ κ·ω·dq + e_R/4 + (ω/4)·df'`, so by (W₂, b₂): `3·dg_q + (ω/4)·dp/4`,
/// - by `p` (`g_p = σ'(p)∘W₂ᵀg_q`): `dg_p ≤ κ·(vω/4)·dp + (ω/16)·e_Q + (v/4)·dg_q`, so by P: `‖u‖·dg_p`.
///
/// A batch's gradient is the mean over its rows, so `‖u‖` enters by its mean and mean square over the batch, U₁ and U₂.
/// With SGD, `e ← e + η·dg + r`. Products of encoded values: `‖δ‖ ≤ √8·k·2^−(f+1)`.
///
/// Rounding: both runs compute in f32. A sum of m rounded terms is off by at most `λ√m·2^−24` of the sum of their
/// magnitudes, but with probability `2·exp(−λ²/2)` (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019, for independent
/// roundings); λ = 6 makes that 3e-8. Forward, m = 48 (31 products and a sigmoid of at most 16 units), as if each
/// parameter were off by `γ` of itself in both runs: `e` grows by `2γ` times the block's norm before a step. Backward,
/// m = 48 + 91 rows: `2γ'` times the largest gradient. The update rounds to `2^−24` of the parameters in each run.
fn bound(u: [f64; 2], norms: [f64; 3], [v, w]: [f64; 2], encoding: f64) -> [f64; 3] {
    let kappa = 1.0 / (6.0 * 3.0_f64.sqrt());
    let unit = 2.0_f64.powi(-24);
    let [gamma, gamma_back] = [48.0, 139.0].map(|m: f64| 6.0 * m.sqrt() * unit);
    let [u1, u2] = u;
    let delta = 8.0_f64.sqrt() * encoding;
    let largest = [u1 * v * w / 16.0, 3.0 * w / 4.0, 3.0];
    let mut e = [0.0; 3];
    for _ in 0..STEPS {
        let [ep, eq, er] = [0, 1, 2].map(|b| e[b] + 2.0 * gamma * norms[b]);
        // `one` is the factor of what does not depend on the row: 1, or the mean of ‖u‖ where rows are weighted by it.
        let gradients = |dp: f64, one: f64| {
            let dq = v / 4.0 * dp + 3.0 * eq * one;
            let df = 0.25 * (w / 4.0 * dq + 3.0 * er * one);
            let dgq = kappa * w * dq + er / 4.0 * one + w / 4.0 * df;
            let dgp = kappa * v * w / 4.0 * dp + w / 16.0 * eq * one + v / 4.0 * dgq;
            [dgp, 3.0 * dgq + w / 16.0 * dp, 3.0 * df + dq / 4.0]
        };
        let [_, dq, dr] = gradients(u1 * ep + delta, 1.0);
        let [dp, _, _] = gradients(u2 * ep + u1 * delta, u1);
        let change = [dp, dq, dr];
        for b in 0..3 {
            e[b] += LEARNING_RATE * (change[b] + 2.0 * gamma_back * largest[b]) + 2.0 * unit * norms[b];
        }
    }
    e
}

/// The numbers that [`bound`] needs, measured on the one process.
struct Measured {
    u: [f64; 2],
    norms: [f64; 3],
    weights: [f64; 2],
    /// How far training moved each block.
    moved: [f64; 3],
}

fn measure(session: &SessionConfig, data: &[DataSource]) -> Measured {
    let (x, _) = pooled::pool(session, data, None).unwrap();
    let schedule = session.schedule(x.nrows() as u32);
    let squares: Vec<f64> =
        x.rows().into_iter().map(|r| 1.0 + r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).collect();
    let mut u = [0.0_f64; 2];
    let mut steps = 0;
    for epoch in 1..=session.train.epochs {
        let order = schedule.order(Phase::Train, epoch);
        for batch in schedule.batches(Phase::Train, epoch) {
            let rows = order[batch.start..batch.start + batch.rows].iter().map(|&r| squares[r as usize]);
            let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / batch.rows as f64;
            u = [u[0].max(mean(&mut rows.clone().map(f64::sqrt))), u[1].max(mean(&mut rows.clone()))];
            steps += 1;
        }
    }
    assert_eq!(steps, STEPS);
    // After each epoch; in between a block moves by at most its largest gradient times the rate, for half an epoch.
    let runs: Vec<Pooled> = (0..=session.train.epochs)
        .map(|epochs| {
            let mut session = session.clone();
            session.train.epochs = epochs;
            pooled::train(&session, data, None).unwrap()
        })
        .collect();
    let largest = |of: &dyn Fn(&Pooled) -> f64| runs.iter().map(of).fold(0.0, f64::max);
    let between = (STEPS / session.train.epochs as usize).div_ceil(2) as f64 * LEARNING_RATE;
    let w = largest(&|p| length(&p.head)) + between * 3.0;
    let v = largest(&|p| length(&p.server[HIDDEN..])) + between * 0.75 * w;
    let first = largest(&|p| length(p.first_layer.as_slice().unwrap()).hypot(length(&p.server[..HIDDEN])));
    let p = first + between * u[0] * v * w / 16.0;
    let (start, end) = (&runs[0], &runs[runs.len() - 1]);
    let start =
        Network { first_layer: start.first_layer.clone(), server: start.server.clone(), head: start.head.clone() };
    Measured { u, norms: [p, v, w], weights: [v, w], moved: distances(&start, end) }
}

/// How far one value of H1 may be off by what the protocol encodes: half a unit of the fixed point for each party's
/// product; in `beaver` half a unit for each feature and weight, times the other factor; nothing in `plain`. The features
/// are `d` and at most the session's clip, and a column of weights is at most as long as all of them.
fn encoding(session: &SessionConfig, d: u32, weights: f64) -> f64 {
    let half_unit = |bits: u32| 2.0_f64.powi(-(bits as i32 + 1));
    match session.first_layer {
        FirstLayerKind::Plain => 0.0,
        FirstLayerKind::Sharing => {
            let bits = session.sharing.fixed_point(session.parties).unwrap().fraction_bits();
            f64::from(session.parties) * half_unit(bits)
        }
        FirstLayerKind::Beaver => {
            let (half, d) = (half_unit(session.beaver.fraction_bits), f64::from(d));
            half * (d * session.preparation.clip.unwrap() + d.sqrt() * weights + d * half)
        }
        FirstLayerKind::Paillier => f64::from(session.parties) * half_unit(session.paillier.fraction_bits),
    }
}

fn shown(values: [f64; 3]) -> String {
    values.map(|v| format!("{v:.1e}")).join(" ")
}

/// Trains both ways and compares. Gives the one process back, and how far the split session was from it.
fn check(session: &SessionConfig, data: &[DataSource]) -> (Pooled, [f64; 3]) {
    let measured = measure(session, data);
    let pooled = pooled::train(session, data, None).unwrap();
    let encoding = encoding(session, pooled.features, measured.norms[0]);
    let bound = bound(measured.u, measured.norms, measured.weights, encoding);
    let found = distances(&split(session, data), &pooled);
    println!(
        "{} {}: {} parties, differences {}, bounds {}, moved {}",
        session.first_layer,
        session.sharing.ring_bits,
        session.parties,
        shown(found),
        shown(bound),
        shown(measured.moved)
    );
    for block in 0..3 {
        assert!(found[block] <= bound[block], "block {block}: {found:?} above {bound:?}");
        // The bound means something: it is small beside what training did.
        assert!(bound[block] < 0.1 * measured.moved[block], "block {block}: {bound:?} beside {:?}", measured.moved);
    }
    // They were not the same computation.
    assert!(found[0] > 0.0, "the first layer is the same bit for bit: was it split at all?");
    (pooled, found)
}

#[test]
fn a_split_session_is_one_network() {
    let found = [("plain", 64), ("sharing", 64), ("sharing", 32), ("beaver", 64)].map(|(kind, ring_bits)| {
        let mut table = example();
        short(&mut table);
        table.insert("first_layer".into(), kind.into());
        table.insert("sharing".into(), kit::table(&format!("ring_bits = {ring_bits}")).into());
        // Two bits more than the default: the bound takes every feature for as large as the clip.
        table.insert("beaver".into(), kit::table("fraction_bits = 22\nh1_bound = 1e5").into());
        let file = parse(&table);
        check(&file.config().unwrap(), &sources(&file.data, Path::new("/")).unwrap()).1
    });
    // Roundings average out far below the bound: a few units of f32, and of the small ring's 2^-17 after twenty steps.
    // Fewer fraction bits than agreed would show here.
    for (found, limit) in found.into_iter().zip([2e-7, 2e-7, 6e-7, 2e-7]) {
        assert!(norm(found) < limit, "{found:?} above {limit:e}");
    }
}

/// A short session of the example on one file with the columns of both, written to `directory`.
fn one_file(directory: &Path) -> Table {
    let [clinic, laboratory] = ["clinic", "laboratory"]
        .map(|name| fs::read_to_string(repository(&format!("examples/breast_cancer/{name}.csv"))).unwrap());
    let joined: String = clinic
        .lines()
        .zip(laboratory.lines())
        .map(|(a, b)| format!("{a},{}\n", b.split_once(',').unwrap().1))
        .collect();
    fs::write(directory.join("pooled.csv"), joined).unwrap();
    let mut table = example();
    short(&mut table);
    table["data"]["parties"] =
        kit::table("p = [{ file = \"pooled.csv\", label_holder = true }, { file = \"pooled.csv\" }]")["p"].clone();
    table
}

#[test]
fn the_number_of_parties_does_not_matter() {
    let directory = tempfile::tempdir().unwrap();
    let table = one_file(directory.path());
    let mut before: Option<Pooled> = None;
    for parties in [2, 3, 5] {
        let (session, data) = spread(&table, directory.path(), parties);
        let (pooled, _) = check(&session, &data);
        // One process does not care how the columns are spread.
        if let Some(before) = &before {
            assert_eq!((&before.first_layer, &before.head), (&pooled.first_layer, &pooled.head));
        }
        before = Some(pooled);
    }
}

/// The example with the columns of both files split over `parties`.
fn spread(table: &Table, directory: &Path, parties: u16) -> (SessionConfig, Vec<DataSource>) {
    let mut file = parse(table);
    split_columns(&mut file, directory, parties).unwrap();
    let session = file.config().unwrap();
    assert_eq!(session.parties, parties);
    (session, sources(&file.data, directory).unwrap())
}

/// `beaver` multiplies the encoded matrices exactly, so it does not matter at all who has which column.
#[test]
fn with_beaver_the_number_of_parties_does_not_change_a_bit() {
    let directory = tempfile::tempdir().unwrap();
    let mut table = one_file(directory.path());
    table.insert("first_layer".into(), "beaver".into());
    let runs = [2, 3, 5].map(|parties| {
        let (session, data) = spread(&table, directory.path(), parties);
        split(&session, &data)
    });
    for other in &runs[1..] {
        assert_eq!((&runs[0].first_layer, &runs[0].server), (&other.first_layer, &other.server));
        assert_eq!(runs[0].head, other.head);
    }
}

/// Runs the example as processes.
fn simulate(table: &Table, run: &Path, args: &[&str]) {
    let file = run.with_extension("toml");
    fs::write(&file, toml::to_string(table).unwrap()).unwrap();
    spnn_ok(&[&["simulate", arg(&file), "--run-dir", arg(run)], args].concat());
}

#[test]
fn memory_and_quic_are_the_same_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let mut table = example();
    table["train"]["epochs"] = 3.into();
    for ring_bits in ["64", "32"] {
        let runs = [("quic", &[][..]), ("memory", &["--in-memory"][..])].map(|(name, args)| {
            let run = directory.path().join(format!("{name}-{ring_bits}"));
            simulate(&table, &run, &[&["--ring-bits", ring_bits], args].concat());
            run
        });
        let files = ["server/model", "party-0/model", "party-1/model"].map(|f| format!("{f}.safetensors"));
        for file in files.iter().map(String::as_str).chain(["party-0/predictions.csv"]) {
            let [quic, memory] = runs.each_ref().map(|run| fs::read(run.join(file)).unwrap());
            assert!(quic == memory, "{file} differs");
            assert!(!quic.is_empty());
        }
    }
    // And the comparison can tell networks apart.
    let [a, b] =
        ["64", "32"].map(|bits| fs::read(directory.path().join(format!("quic-{bits}/server/model.safetensors"))));
    assert_ne!(a.unwrap(), b.unwrap());
}

#[test]
fn a_saved_model_predicts_the_same_bits() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mut table = example();
    table["train"]["epochs"] = 2.into();
    simulate(&table, &run, &[]);
    let trained = scores(&run.join("party-0/predictions.csv"));
    assert_eq!(trained.len(), 114);
    let file = directory.path().join("scores.csv");
    spnn_ok(&["predict", arg(&run), "--scores", arg(&file)]);
    let predicted = scores(&file);
    assert_eq!(predicted.len(), 569);
    for (id, score) in &trained {
        assert_eq!(predicted.get(id), Some(score), "{id}");
    }
    let evaluated = directory.path().join("evaluated.csv");
    spnn_ok(&["evaluate", arg(&run), "--scores", arg(&evaluated)]);
    assert_eq!(scores(&evaluated), predicted);
}

/// Scores by id, as text: they are written so that they parse back to the same bits.
fn scores(file: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(file).unwrap();
    text.lines()
        .skip(1)
        .map(|line| line.split_once(',').map(|(id, s)| (id.to_owned(), s.to_owned())).unwrap())
        .collect()
}

#[test]
fn bytes_are_what_the_formulas_say() {
    let directory = tempfile::tempdir().unwrap();
    let mut table = example();
    table["train"]["epochs"] = 2.into();
    for (ring_bits, element) in [("64", 8), ("32", 4)] {
        let run = directory.path().join(ring_bits);
        simulate(&table, &run, &["--ring-bits", ring_bits]);
        let report: Value = serde_json::from_str(&fs::read_to_string(run.join("report.json")).unwrap()).unwrap();
        let (rows, batches, parties, h) = (455, 15, 2, HIDDEN as i64);
        for epoch in report["epochs"].as_array().unwrap() {
            let sent = |role: &str, kind: &str| epoch["bytes_sent_by_kind"][role][kind].as_integer().unwrap();
            for party in ["party-0", "party-1"] {
                assert_eq!(sent(party, "first-layer"), rows * h * element + 24 * batches);
            }
            assert_eq!(sent("server", "first-layer-gradient"), parties * (rows * h * 4 + 24 * batches));
            assert_eq!(sent("server", "hidden-output"), rows * 8 * 4 + 24 * batches);
            assert_eq!(sent("party-0", "hidden-gradient"), rows * 8 * 4 + 24 * batches);
            let total = epoch["bytes_sent"]["party-1"].as_integer().unwrap();
            assert_eq!(total, sent("party-1", "first-layer"));
        }
    }
}
