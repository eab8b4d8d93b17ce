//! Every decoder: what comes back is a value that encodes to what was read, or an error that people can read.

use super::input::Input;
use super::scratch;
use super::stage::STAGES;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use spnn::crypto::SecretRng;
use spnn::crypto::paillier::{
    Ciphertexts, Exponent, KeyBits, KeyProof, Lookup, Packing, PublicKey, RandomizerTable, SecretKey,
};
use spnn::nn::{Model, Optimizer, OptimizerState, Parameter, Sequential};
use spnn::party::Prepared;
use spnn::party::data::{ColumnType, Columns, DataSource, Encoding, Missing, read_columns};
use spnn::protocol::message::{
    AlignmentOffer, AlignmentResult, AuditHead, Control, Finish, Go, HEADER_BYTES, Header, Hello, IdDigest, Ready,
    Report, Start, decode_control, encode_control,
};
use spnn::protocol::{
    Checkpoints, Ending, Fingerprint, PreparationSpec, ProtocolError, Role, SavedModel, SessionConfig, SessionFile,
    inspect_certificate, restore_parameters,
};
use std::borrow::Cow;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

/// The header of a frame.
pub(crate) fn header(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<HEADER_BYTES>() else { return };
    match Header::decode(bytes) {
        Ok(header) => assert_eq!(header.encode(), *bytes),
        Err(e) => readable(&e),
    }
}

/// Control messages and the reason in a close frame.
pub(crate) fn control(input: &[u8]) {
    fn same<C: Control>(body: &[u8]) {
        match decode_control::<C>(body) {
            // Compared as bytes: a NaN is not itself.
            Ok(message) => {
                let bytes = encode_control(&message);
                let again = decode_control::<C>(&bytes).expect("what decodes can be sent on");
                assert_eq!(encode_control(&again), bytes);
            }
            Err(e) => readable(&e),
        }
    }
    let mut input = Input(input);
    match input.u8() % 11 {
        0 => same::<Hello>(input.rest()),
        1 => same::<Start>(input.rest()),
        2 => same::<Ready>(input.rest()),
        3 => same::<Go>(input.rest()),
        4 => same::<Report>(input.rest()),
        5 => same::<Finish>(input.rest()),
        6 => same::<IdDigest>(input.rest()),
        7 => same::<AlignmentOffer>(input.rest()),
        8 => same::<AlignmentResult>(input.rest()),
        9 => same::<AuditHead>(input.rest()),
        _ => {
            let code = input.u16().into();
            let Ending { cause, culprit } = Ending::parse(code, input.rest(), Role::Server);
            let culprit = culprit.to_string();
            let sent = Ending::parse(cause.code().into(), culprit.as_bytes(), Role::Coordinator);
            assert_eq!((sent.cause, sent.culprit.to_string()), (cause, culprit));
        }
    }
}

/// A session file, and a peer's canonical text.
pub(crate) fn session(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let ours = &STAGES[0].session;
    match ours.difference(&text) {
        None => assert_eq!(serde_json::from_str::<SessionConfig>(&text).expect("equal texts"), *ours),
        Some(difference) => {
            let shown = difference.to_string();
            assert!(shown.chars().count() < 300, "{shown}");
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
        }
    }
    let file = match SessionFile::parse(&text, Path::new("session.toml")) {
        Ok(file) => file,
        Err(e) => return assert!(e.to_string().contains("session.toml")),
    };
    let _ = spnn::sources::sources(&file.data, Path::new("."));
    if !is_small(&text) {
        return;
    }
    let Ok(config) = file.config() else { return };
    let canonical = config.canonical();
    assert_eq!(config.difference(&canonical), None);
    let read = serde_json::from_str::<SessionConfig>(&canonical).expect("a session's own text");
    assert_eq!(read, config);
}

/// Whether all layers are narrow, or far too wide: checking a session builds its model, whose size is the file's choice.
fn is_small(text: &str) -> bool {
    fn small(value: &toml::Value) -> bool {
        match value {
            toml::Value::Integer(n) => !(17..=1 << 24).contains(n),
            toml::Value::Array(values) => values.len() <= 16 && values.iter().all(small),
            toml::Value::Table(table) => table.values().all(small),
            _ => true,
        }
    }
    text.parse::<toml::Table>().is_ok_and(|table| table.get("model").is_none_or(small))
}

/// What the server keeps in a checkpoint.
#[derive(Serialize, Deserialize)]
struct State {
    ended: Vec<spnn::protocol::message::EpochEnd>,
    under_way: spnn::protocol::message::EpochEnd,
    parameters: Vec<(String, Vec<f32>)>,
    random_positions: Vec<u128>,
    optimizer: OptimizerState,
    noise_seed: [u8; 32],
}

/// A checkpoint: the whole file, all between magic and footer, or only the state in a file that is otherwise right.
pub(crate) fn checkpoint(input: &[u8]) {
    let session = &STAGES[2].session;
    let digest = session.digest();
    let mut input = Input(input);
    let given = input.u8() % 3;
    let magic: &[u8] = b"spnnckp1";
    let label = [&[6], &b"server"[..], &digest, &[1, 0]].concat();
    let bytes = match given {
        0 => input.rest().to_vec(),
        1 => with_footer([magic, input.rest()].concat()),
        _ => with_footer([magic, &label, input.rest()].concat()),
    };
    let directory = scratch();
    let prefix: String = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
    let file = directory.path().join(format!("checkpoints/{prefix}-1-0.checkpoint"));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, &bytes).unwrap();
    let mut checkpoints = Checkpoints::in_directory(directory.path(), Role::Server, session);
    let positions = checkpoints.positions().expect("a directory that can be read");
    assert!(positions.len() == 1 || given < 2);
    for position in positions {
        match checkpoints.resume::<State>(position) {
            Ok(state) => drop(restore(state, session)),
            Err(e) => readable(&e),
        }
    }
}

/// As a server goes on from its state.
fn restore(state: State, session: &SessionConfig) -> Result<(), ProtocolError> {
    let width = session.model.hidden_width as usize;
    let mut model = Sequential::new(width, &session.model.server, session.seed).unwrap();
    let mut optimizer = Optimizer::new(&session.train.optimizer, state.noise_seed);
    let misfit = |e| ProtocolError::checkpoint(&e);
    let lengths = restore_parameters(&mut model.parameters(), state.parameters)?;
    optimizer.import_state(state.optimizer, &lengths).map_err(misfit)?;
    model.set_random_positions(&state.random_positions).map_err(misfit)?;
    optimizer.step(&mut model.parameters());
    Ok(())
}

fn with_footer(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = (bytes.len() + 40) as u64;
    bytes.extend(length.to_le_bytes());
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

/// What a party keeps beside its tensors.
#[derive(Serialize, Deserialize)]
struct Kept {
    encoding: Encoding,
}

/// The manifest with digests that fit the tensors, and `extra`.
fn fitting(manifest: &[u8], tensors: &[u8], extra: &Kept) -> Vec<u8> {
    let mut whole: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    let of_tensors = hex(&Sha256::digest(tensors));
    let content = serde_json::to_string(&(&whole["spnn"], &whole["role"], &of_tensors, extra)).unwrap();
    whole["content_sha256"] = hex(&Sha256::digest(content)).into();
    whole["tensors_sha256"] = of_tensors.into();
    whole["extra"] = serde_json::to_value(extra).unwrap();
    whole.to_string().into_bytes()
}

/// The two files of a saved model: either one as it is, and each with digests that fit.
pub(crate) fn saved_model(input: &[u8]) {
    let stage = &STAGES[0];
    let mut input = Input(input);
    let directory = scratch();
    let [mut tensors, mut manifest] = stage.saved(Role::party(0)).clone();
    match input.u8() % 4 {
        0 => manifest = input.rest().to_vec(),
        1 => input.patch(&mut manifest),
        2 => {
            tensors = input.rest().to_vec();
            let extra = serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["extra"].take();
            manifest = fitting(&manifest, &tensors, &serde_json::from_value(extra).unwrap());
        }
        _ => {
            let Ok(extra) = serde_json::from_slice::<Kept>(input.rest()) else { return };
            manifest = fitting(&manifest, &tensors, &extra);
        }
    }
    fs::write(directory.path().join("model.safetensors"), &tensors).unwrap();
    fs::write(directory.path().join("model.json"), &manifest).unwrap();
    let loaded = match SavedModel::<Kept>::load(directory.path(), Role::party(0), &stage.session) {
        Ok(loaded) => loaded,
        Err(e) => return readable(&e),
    };
    let mut value = vec![0.0; 3 * 4];
    let mut weights = [Parameter {
        name: Cow::Borrowed("first_layer.weight"),
        shape: vec![3, 4],
        value: &mut value,
        gradient: &[0.0; 3 * 4],
    }];
    let _ = loaded.restore(directory.path(), &mut weights);
    let file = directory.path().join("data.csv");
    fs::write(&file, format!("a,b,c\n0,-1,{}\n1e-30,1,{}\n", f32::MAX, f32::MIN)).unwrap();
    let source = DataSource { row_numbers_as_ids: true, ..DataSource::new(file) };
    let mut data = Prepared::read_as(&source, false, false, directory.path()).expect("a sound file");
    if data.encode(loaded.extra.encoding).is_ok() {
        let mut features = ndarray::Array2::zeros((2, data.features()));
        data.gather(&[0, 1], features.view_mut()).expect("a table in memory");
        assert!(features.iter().all(|x| x.is_finite()), "an encoding that makes {features}");
    }
}

/// A party's file, and what the party makes of it: of numbers, and of columns of every type.
pub(crate) fn csv(input: &[u8]) {
    let mut input = Input(input);
    let choice = input.u8();
    let bit = |at: u8| choice >> at & 1 == 1;
    let directory = scratch();
    let file = directory.path().join(if bit(0) { "data.csv.gz" } else { "data.csv" });
    fs::write(&file, input.rest()).unwrap();
    let source = DataSource {
        id: (!bit(1)).then(|| match bit(2) {
            false => Columns::One("id".into()),
            true => Columns::Many(vec!["id".into(), "a".into()]),
        }),
        row_numbers_as_ids: bit(1),
        label: bit(3).then(|| "y".into()),
        columns: bit(4).then(|| vec!["a..c".into()]),
        ignore: if bit(5) { vec!["b".into()] } else { Vec::new() },
        ..DataSource::new(file)
    };
    let spec = PreparationSpec { test_fraction: 0.0, standardize: bit(6), clip: bit(7).then_some(5.0) };
    prepare(&source, bit(3), &spec, directory.path());
    prepare(&typed(source), bit(3), &spec, directory.path());
}

/// The same source with a type for each column, on disk, and with missing values.
fn typed(source: DataSource) -> DataSource {
    let kinds = [ColumnType::Categorical, ColumnType::Date, ColumnType::Hashed(3), ColumnType::Boolean];
    let columns = read_columns(&source).unwrap_or_default().into_iter().filter(|name| name != "y");
    DataSource {
        types: columns.zip(kinds.into_iter().cycle()).collect(),
        missing: Missing::Mean,
        categories_max: 5,
        memory_max_mib: 0,
        ..source
    }
}

fn prepare(source: &DataSource, required: bool, spec: &PreparationSpec, directory: &Path) {
    let mut data = match Prepared::read_as(source, true, required, directory) {
        Ok(data) => data,
        Err(e) => return readable(&e),
    };
    let rows = data.rows().expect("a small file");
    assert!(rows > 0 && data.ids().len() == rows as usize);
    assert!(data.labels().unwrap_or_default().iter().all(|x| x.is_finite()));
    assert_eq!(data.ids_of(&[rows - 1]).len(), 1);
    let all: Vec<u32> = (0..rows).collect();
    if let Err(e) = data.fit(spec, &all) {
        return readable(&e);
    }
    let mut features = ndarray::Array2::zeros((all.len(), data.features()));
    data.gather(&all, features.view_mut()).expect("what was just written");
    assert!(features.iter().all(|x| x.is_finite()));
}

/// A certificate file, a certificate inside one, and a fingerprint as people write it.
pub(crate) fn certificate(input: &[u8]) {
    let mut input = Input(input);
    let pem = match input.u8() % 3 {
        0 => input.rest().to_vec(),
        1 => pem("CERTIFICATE", input.rest()).into_bytes(),
        _ => {
            let text = String::from_utf8_lossy(input.rest());
            if let Ok(fingerprint) = text.parse::<Fingerprint>() {
                assert_eq!(fingerprint.to_string(), text.to_lowercase());
            }
            if let Ok(role) = text.parse::<Role>() {
                assert_eq!(role.to_string(), text);
            }
            return;
        }
    };
    let directory = scratch();
    let file = directory.path().join("certificate.pem");
    fs::write(&file, pem).unwrap();
    match inspect_certificate(&file) {
        Ok((role, fingerprint)) => {
            assert_eq!(Role::from_certificate_name(&role.certificate_name()), Some(role));
            assert_eq!(fingerprint.to_string().parse::<Fingerprint>().ok(), Some(fingerprint));
        }
        Err(e) => {
            assert!(e.to_string().contains("certificate.pem"));
            readable(&e);
        }
    }
}

/// RFC 7468.
fn pem(label: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        let digit = |at: usize| char::from(DIGITS[(word >> (18 - 6 * at)) as usize & 63]);
        text.extend((0..4).map(|at| if at <= three.len() { digit(at) } else { '=' }));
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

/// A key pair with a proof and a batch of ciphertexts.
struct Paillier {
    secret: SecretKey,
    proof: Vec<u8>,
    packing: Packing,
    ciphertexts: Vec<u8>,
}

/// As many values as two ciphertexts hold: ten in each.
const VALUES: usize = 20;

/// The small key of the tests: sizes change how long it takes, not what can happen.
static PAILLIER: LazyLock<Paillier> = LazyLock::new(|| {
    let mut rng = SecretRng::from_system().unwrap();
    let secret = SecretKey::generate(KeyBits::InsecureTest512, &mut rng).unwrap();
    let key = secret.public();
    let packing = Packing::new(key.bits(), 48, 2).unwrap();
    let table = RandomizerTable::new(key, Lookup::default(), Exponent::default(), &mut rng);
    let plaintexts = packing.encode(key, &[7; VALUES]).unwrap();
    let randomizers = table.draw(plaintexts.len(), &mut rng, 1);
    let ciphertexts = Ciphertexts::encrypt(&plaintexts, randomizers, 1).unwrap().to_bytes();
    let proof = KeyProof::new(&secret, b"fuzz", &mut rng).to_bytes();
    Paillier { secret, proof, packing, ciphertexts }
});

/// Keys, proofs and ciphertexts: any bytes, and right ones with something changed.
pub(crate) fn paillier(input: &[u8]) {
    let Paillier { secret, proof, packing, ciphertexts } = &*PAILLIER;
    let key = secret.public();
    let bits = key.bits();
    let mut input = Input(input);
    match input.u8() % 6 {
        0 => drop(PublicKey::from_bytes(bits, input.rest())),
        1 => {
            let mut bytes = key.to_bytes();
            input.patch(&mut bytes);
            match PublicKey::from_bytes(bits, &bytes) {
                Ok(key) => assert_eq!(key.to_bytes(), bytes),
                Err(e) => readable(&e),
            }
        }
        2 => {
            let mut bytes = input.rest().to_vec();
            bytes.resize(KeyProof::byte_len(bits), 0);
            if let Ok(read) = KeyProof::from_bytes(bits, &bytes) {
                assert!(read.verify(key, b"fuzz").is_err());
            }
        }
        3 => {
            let mut bytes = proof.clone();
            input.patch(&mut bytes);
            let verified = KeyProof::from_bytes(bits, &bytes).and_then(|proof| proof.verify(key, b"fuzz"));
            assert_eq!(verified.is_ok(), bytes == *proof);
        }
        4 => {
            let count = usize::from(input.u8());
            opened(key, secret, packing, count, input.rest());
        }
        _ => {
            let mut bytes = ciphertexts.clone();
            input.patch(&mut bytes);
            opened(key, secret, packing, packing.plaintexts_for(VALUES), &bytes);
        }
    }
}

/// What a server does with ciphertexts of a party.
fn opened(key: &PublicKey, secret: &SecretKey, packing: &Packing, count: usize, bytes: &[u8]) {
    let mut sum = match Ciphertexts::from_bytes(key, count, bytes) {
        Ok(sum) => sum,
        Err(e) => return readable(&e),
    };
    assert_eq!(sum.to_bytes(), bytes);
    let own = sum.clone();
    sum.add_assign(&own, 1).expect("batches of one length");
    let plaintexts = secret.decrypt(&sum, 1).expect("units can be decrypted");
    let _ = packing.decode(&plaintexts, count * packing.slots(), 2);
}

/// An error is a line for people, not a copy of what was sent.
pub(crate) fn readable(error: &dyn std::error::Error) {
    let text = error.to_string();
    assert!(text.len() < 1000, "{text}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
