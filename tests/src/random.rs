//! Random numbers that a seed repeats.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use engine::sim::Random;

/// The seed of this run: `SEED` from the environment, or one from the clock. A test prints it.
pub fn seed() -> u64 {
    let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("the clock is behind 1970").as_nanos() as u64
    })
}

/// Runs a simulation for each seed; a failure names the seed, which repeats it. `SEED=17`: this one only;
/// `SEEDS=10000`: so many, from the first on.
pub fn repeat<T>(seeds: Range<u64>, mut run: impl FnMut(u64) -> T) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => seeds.start..seeds.start + count,
        (None, None) => seeds,
    };
    for seed in seeds {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panic!("SEED={seed}: {}", text.unwrap_or_default());
        }
    }
}
