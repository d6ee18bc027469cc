//! Random numbers that a seed repeats.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub use engine::sim::Random;

/// The seed of this run: `SEED` from the environment, or one from the clock. A test prints it.
pub fn seed() -> u64 {
    let given = std::env::var("SEED").ok().map(|text| text.parse().expect("SEED is a number"));
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("the clock is behind 1970").as_nanos() as u64
    })
}

/// The longest [`noise`]. Bytes.
pub const NOISE_BYTES_MAX: usize = 512 << 10;
/// How many numbers have noise of their own.
const NOISES: usize = 64 << 10;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; NOISE_BYTES_MAX + NOISES];
    Random::new(0x5eed).fill(&mut noise);
    noise
});

/// `length` bytes that follow from a number: another number's are others. Costs nothing.
pub fn noise(number: u64, length: usize) -> &'static [u8] {
    let from = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize % NOISES;
    &NOISE[from..from + length]
}

/// A simulation has failed.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Runs a simulation for each seed; a failure names the seed, which repeats it. `SEED=17`: this one only;
/// `SEEDS=10000`: so many, from the first on. `FIRST=1`: when one fails, the others end.
pub fn repeat<T>(seeds: Range<u64>, mut run: impl FnMut(u64) -> T) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(count)) => seeds.start..seeds.start + count,
        (None, None) => seeds,
    };
    let first = number("FIRST").is_some();
    for seed in seeds {
        if first && FAILED.load(Ordering::Relaxed) {
            return;
        }
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
            let text = cause.downcast_ref::<String>().cloned();
            let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            FAILED.store(true, Ordering::Relaxed);
            panic!("SEED={seed}: {}", text.unwrap_or_default());
        }
    }
}
