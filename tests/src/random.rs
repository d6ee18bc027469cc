//! Random numbers that a seed repeats.

pub use engine::sim::Random;

/// The seed of this run: `SEED` from the environment, or one from the clock. A test prints it.
pub fn seed() -> u64 {
    let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("the clock is behind 1970").as_nanos() as u64
    })
}
