//! Goal: no bytes of a stranger, or of a damaged disk, bring us down or are taken for what they are not. Method:
//! the targets of `cargo fuzz` on the inputs that are kept, and on seeded mutations of them. Repeat: `SEED=17`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use targets::{TARGETS, Target, mutate};
use tests::random::{Random, seed};

/// How many times the usual rounds the long form has.
const SOAK: u64 = 100;

/// What is kept for a target.
fn kept(target: &Target) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target.name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    // The same order everywhere, so that a seed repeats.
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a kept input")).collect()
}

fn run(target: &Target, input: &[u8], what: &str) {
    let ran = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(ran.is_ok(), "{} {what}: {}", target.name, input.escape_ascii());
}

fn fuzz(name: &str) {
    let seed = seed();
    println!("SEED={seed}");
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let inputs = kept(target);
    for (number, input) in (target.corpus)().iter().enumerate() {
        assert!(inputs.contains(input), "seed {number} of {name} is not kept: `cargo run -p targets` writes it");
    }
    for (number, input) in inputs.iter().enumerate() {
        run(target, input, &format!("kept input {number}"));
    }
    let mut random = Random::new(seed);
    let rounds = target.rounds * if tests::is_soak() { SOAK } else { 1 };
    for round in 0..rounds {
        let mut pick = || &inputs[random.below(inputs.len() as u64) as usize];
        let (mut input, other) = (pick().clone(), pick());
        mutate(&mut input, other, &mut random);
        run(target, &input, &format!("SEED={seed} round {round}"));
    }
}

#[test]
fn frames() {
    fuzz("frame");
}

#[test]
fn headers_in_json() {
    fuzz("header_json");
}

#[test]
fn headers_in_binary() {
    fuzz("header_binary");
}

#[test]
fn messages() {
    fuzz("message");
}

#[test]
fn properties() {
    fuzz("properties");
}

#[test]
fn sql_expressions() {
    fuzz("sql");
}

#[test]
fn batches() {
    fuzz("batch");
}

#[test]
fn recoveries() {
    fuzz("recovery");
}

#[test]
fn every_target_has_a_binary_of_its_name() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("a manifest");
    for target in TARGETS {
        let source = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{}.rs", target.name))).expect("a source");
        assert!(source.contains(&format!("targets::run(\"{}\"", target.name)), "{}", target.name);
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
