//! What is fuzzed: each target takes any bytes and holds what must be true of them, by panicking if not.
//!
//! `cargo fuzz` (nightly, `fuzz/`) finds inputs; `tests/fuzz.rs` runs the kept ones and seeded mutations of them
//! on stable Rust with every test run. `cargo run -p targets` writes the kept ones anew from real encoders.

pub mod corpus;
mod disk;
mod mutate;
mod wire;

pub use mutate::mutate;

/// Something that takes any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also of its corpus below `fuzz/corpus` and of its binary in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs from real encoders.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Mutated inputs in one usual run of the tests.
    pub rounds: u64,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target { name: "frame", run: wire::frame, corpus: corpus::frames, rounds: 20_000 },
    Target { name: "header_json", run: wire::header_json, corpus: corpus::headers_json, rounds: 20_000 },
    Target { name: "header_binary", run: wire::header_binary, corpus: corpus::headers_binary, rounds: 20_000 },
    Target { name: "message", run: wire::message, corpus: corpus::messages, rounds: 20_000 },
    Target { name: "properties", run: wire::properties, corpus: corpus::properties, rounds: 20_000 },
    Target { name: "sql", run: wire::sql, corpus: corpus::expressions, rounds: 20_000 },
    Target { name: "batch", run: disk::batch, corpus: corpus::batches, rounds: 20_000 },
    Target { name: "recovery", run: disk::recovery, corpus: corpus::recoveries, rounds: 1_500 },
];

/// Runs the target of this name; for the binaries of `cargo fuzz`.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a binary is named like its target");
    (target.run)(data);
}
