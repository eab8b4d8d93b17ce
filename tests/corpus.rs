//! Replays the corpus of every fuzz target, each input as it is and changed in a few places: no panic, little memory.
//!
//! The targets themselves are in `fuzz/`, with a README.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]
#![allow(clippy::duplicate_mod, reason = "the fuzz targets count allocations as the tests of the kit do")]

mod kit;

#[allow(unreachable_pub, reason = "the fuzz targets see it as a library")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use kit::Numbers;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Inputs of each target.
const INPUTS: usize = 1000;

/// What an input of the corpus may be changed to: as much as changes a path, as little as keeps most of it.
const CHANGES: u64 = 4;

fn replay(target: &str) {
    let directory = directory().join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", directory.display());
    for file in &files {
        run(target, &fs::read(file).unwrap(), &format!("{}", file.display()));
    }
    let mut numbers = Numbers(1);
    let changed = INPUTS.saturating_sub(files.len());
    for case in 0..changed {
        let mut input = fs::read(&files[case % files.len()]).unwrap();
        for _ in 0..=numbers.next() % CHANGES {
            change(&mut input, &mut numbers);
        }
        run(target, &input, &format!("changed input {case}"));
    }
    println!("{target}: {} inputs of the corpus and {changed} changed ones replayed", files.len());
}

fn run(target: &str, input: &[u8], name: &str) {
    if let Err(finding) = catch_unwind(AssertUnwindSafe(|| fuzz::check(target, input))) {
        let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
        println!("{target}: finding at {name}, whose bytes are {hex}");
        std::panic::resume_unwind(finding);
    }
}

fn change(input: &mut Vec<u8>, numbers: &mut Numbers) {
    let (at, byte) = (numbers.next() as usize % input.len().max(1), numbers.next() as u8);
    match numbers.next() % 6 {
        _ if input.is_empty() => input.push(byte),
        0 => input[at] = byte,
        1 => input[at] ^= 1 << (byte % 8),
        2 => input.truncate(at),
        3 => input.insert(at, byte),
        4 => drop(input.remove(at)),
        _ => {
            let end = (at + 1 + usize::from(byte % 16)).min(input.len());
            input.extend_from_within(at..end);
        }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

#[test]
fn every_target_has_a_corpus_and_the_other_way_round() {
    let names = |directory: PathBuf| -> BTreeSet<String> {
        let stem =
            |e: std::io::Result<fs::DirEntry>| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        fs::read_dir(directory).unwrap().map(stem).collect()
    };
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|t| t.name.to_owned()).collect();
    assert_eq!(names(directory()), targets);
    assert_eq!(names(directory().join("../fuzz_targets")), targets);
}

macro_rules! replayed {
    ($($target:ident)*) => { $(
        #[test]
        fn $target() {
            replay(stringify!($target));
        }
    )* };
}

replayed! { header control session checkpoint saved_model csv certificate paillier ckks network party server coordinator }
