//! Whatever bytes come in, from a peer or from a file: no panic, little memory, and roles end with an error that names
//! the peer that misbehaved.
//!
//! One function for each target. libFuzzer calls them through `fuzz_targets/`, and `tests/corpus.rs`, which includes this
//! file, replays the corpus through them with the stable compiler.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a fuzz target panics")]

#[path = "../../tests/kit/allocations.rs"]
mod allocations;
mod ckks;
mod decoders;
mod input;
mod network;
mod peers;
mod roles;
mod stage;

use std::path::Path;
use std::sync::Once;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// What is fuzzed.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics on a finding.
    run: fn(&[u8]),
    /// The most memory that an input may take, in bytes.
    limit: usize,
    warm: &'static Once,
}

macro_rules! targets {
    ($($name:ident: $run:path, $limit:expr;)*) => {
        &[$({
            static WARM: Once = Once::new();
            Target { name: stringify!($name), run: $run, limit: $limit, warm: &WARM }
        }),*]
    };
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// All targets. Limits leave room for what a small input decodes to and for what a role needs anyway; a length field that
/// is believed goes far beyond.
pub const TARGETS: &[Target] = targets! {
    header: decoders::header, 4 * KIB;
    control: decoders::control, 512 * KIB;
    session: decoders::session, 2 * MIB;
    checkpoint: decoders::checkpoint, 512 * KIB;
    saved_model: decoders::saved_model, 512 * KIB;
    // A row of a packed file may be 16 MiB long, and a reader's buffer grows by doubling.
    csv: decoders::csv, 48 * MIB;
    certificate: decoders::certificate, 512 * KIB;
    paillier: decoders::paillier, 2 * MIB;
    // A key for products, with its seed expanded, is 2.6 MB; what it was read from and written to, 1 MB each.
    ckks: ckks::ckks, 8 * MIB;
    // A convolution in a small file may be large once it is written out, window by window: 16 million weights at most.
    network: network::network, 256 * MIB;
    party: roles::party, MIB;
    server: roles::server, MIB;
    coordinator: roles::coordinator, MIB;
};

/// Runs one input of a target.
///
/// # Panics
/// On a finding.
pub fn check(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("a target of this name");
    // What is made once for all inputs is nobody's allocation.
    target.warm.call_once(|| (target.run)(&[]));
    let peak = allocations::peak(|| (target.run)(input));
    assert!(peak <= target.limit, "{peak} bytes allocated, {} are allowed", target.limit);
}

/// An empty directory, where there is one in memory: roles wait until what they write is on the disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("spnn-fuzz-").tempdir_in(parent).expect("a directory")
}
