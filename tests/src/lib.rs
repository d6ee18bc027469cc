//! What the tests from outside share: a real server of their own, a client that speaks raw frames, and
//! the requests that it makes.

pub mod client;
pub mod random;
pub mod server;
pub mod words;

use std::time::Duration;

/// How long a test waits for what should come at once. A machine that runs everything may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the long form is wanted: many times the usual rounds (`tests/run --soak`).
pub fn is_soak() -> bool {
    std::env::var_os("SOAK").is_some_and(|value| value != "0")
}

/// Says why a test does nothing here, past the harness, which hides what a test prints that passes.
pub fn skip(why: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(format!("skipped: {why}\n").as_bytes());
}

/// Runs a test with one core and with two, each in a directory of its own.
pub fn with_cores(test: impl Fn(&std::path::Path, &str)) {
    for cores in ["1", "2"] {
        let home = tempfile::tempdir().expect("a directory for temporary files");
        test(home.path(), cores);
    }
}

/// Asks again and again until something is so.
pub fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let asked = std::time::Instant::now();
    while !is_so() {
        assert!(asked.elapsed() < PATIENCE, "{what}");
    }
}

/// Runs a test that has to be done with something before a time is over: with so many ms, and with more if it says that
/// a slow machine was too late, each time in a directory of its own.
pub fn in_time(home: &std::path::Path, times_ms: [i64; 3], test: impl Fn(&std::path::Path, i64) -> bool) {
    let is_done = |time_ms: &i64| {
        let home = home.join(format!("{time_ms}-ms"));
        std::fs::create_dir(&home).expect("the directory is ours");
        test(&home, *time_ms)
    };
    assert!(times_ms.iter().any(is_done), "it was not done within {times_ms:?} ms");
}
