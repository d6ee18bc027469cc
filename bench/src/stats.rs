//! What a job measures: latencies, counts, and samples of each interval. Time comes from the caller.

use crate::options::Job;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest latency that is told apart: 10 minutes. Nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Which way the messages went: fio's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Pulled.
    Read = 0,
    /// Sent.
    Write = 1,
}

/// Minimum, maximum, mean and standard deviation of what was recorded, exactly.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// How many.
    pub count: u64,
    least: f64,
    most: f64,
    sum: f64,
    squares: f64,
}

impl Default for Spread {
    fn default() -> Spread {
        Spread { count: 0, least: f64::INFINITY, most: 0.0, sum: 0.0, squares: 0.0 }
    }
}

impl Spread {
    /// Takes a value that many times.
    pub fn add(&mut self, value: f64, times: u64) {
        self.count += times;
        self.least = self.least.min(value);
        self.most = self.most.max(value);
        self.sum += value * times as f64;
        self.squares += value * value * times as f64;
    }

    /// The smallest; 0 of nothing.
    pub fn min(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.least }
    }

    /// The largest; 0 of nothing.
    pub fn max(&self) -> f64 {
        self.most
    }

    /// The mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }

    /// The standard deviation; 0 of nothing.
    pub fn stddev(&self) -> f64 {
        let mean = self.mean();
        if self.count == 0 { 0.0 } else { (self.squares / self.count as f64 - mean * mean).max(0.0).sqrt() }
    }
}

/// Latencies in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Their exact spread.
    pub spread: Spread,
    histogram: Histogram<u64>,
}

impl Default for Latency {
    fn default() -> Latency {
        // Three digits, and below 64 ns none: a histogram is a few caches large, and every record touches it.
        let histogram = Histogram::new_with_bounds(64, LATENCY_NS_MAX, 3).expect("bounds that fit");
        Latency { spread: Spread::default(), histogram }
    }
}

impl Latency {
    /// Takes a latency that many times.
    pub fn add(&mut self, nanos: u64, times: u64) {
        self.spread.add(nanos as f64, times);
        self.histogram.saturating_record_n(nanos, times);
    }

    /// The value that `percent` of all do not exceed, ns.
    pub fn percentile(&self, percent: f64) -> u64 {
        self.histogram.value_at_quantile(percent / 100.0).min(self.spread.max() as u64)
    }

    /// How many lie above `from` and not above `to`, in parts of 1.
    pub fn share(&self, from: u64, to: u64) -> f64 {
        if self.spread.count == 0 {
            return 0.0;
        }
        self.histogram.count_between(from + 1, to) as f64 / self.spread.count as f64
    }
}

/// What happened in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Sum of latencies from the intended start, ns.
    pub latency: u64,
    /// Sum of latencies from the write, ns.
    pub completion: u64,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Requests answered.
    pub requests: u64,
    /// Messages in them.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the write to the answer: fio's completion latency.
    pub clat: Latency,
    /// In an open loop: from the intended start to the write (fio's slat), and from it to the answer.
    pub open: Option<Box<(Spread, Latency)>>,
    /// Whole intervals since measuring began.
    pub samples: Vec<Sample>,
    current: Sample,
}

impl Side {
    /// From the intended start to the answer. In a closed loop that is when it was written.
    pub fn lat(&self) -> &Latency {
        self.open.as_ref().map_or(&self.clat, |open| &open.1)
    }

    /// From the intended start to the write.
    pub fn slat(&self) -> Spread {
        self.open.as_ref().map(|open| open.0).unwrap_or_default()
    }

    /// The spread of what `value` makes of each interval.
    pub fn sampled(&self, value: impl Fn(&Sample) -> f64) -> Spread {
        let mut spread = Spread::default();
        self.samples.iter().for_each(|sample| spread.add(value(sample), 1));
        spread
    }
}

/// The answer to a request, or to several that are alike: written and answered at once.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// How many requests.
    pub requests: u64,
    /// Which way.
    pub direction: Direction,
    /// Messages they carried.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it fell due; in a closed loop when it was written.
    pub due: Instant,
    /// When it was written.
    pub written: Instant,
}

impl Answered {
    /// Takes another answer of the same moment in, if it is alike.
    pub fn join(&mut self, other: &Answered) -> bool {
        let alike = (self.direction, self.due, self.written) == (other.direction, other.due, other.written);
        if alike {
            self.requests += other.requests;
            self.messages += other.messages;
            self.bytes += other.bytes;
        }
        alike
    }
}

/// All that one report tells.
#[derive(Clone, Debug)]
pub struct Stats {
    begin: Instant,
    interval: Duration,
    open: bool,
    index: u32,
    ends: Instant,
    /// The last answer that counted.
    pub last: Instant,
    /// Reads and writes.
    pub sides: [Side; 2],
    /// Answers that said no.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
}

impl Stats {
    /// Measures from `begin` on; what is answered before is ramp.
    pub fn new(job: &Job, begin: Instant) -> Stats {
        let interval = Duration::from_millis(job.log_avg_msec);
        let side = || Side { open: job.is_open().then(Box::default), ..Side::default() };
        Stats {
            begin,
            interval,
            open: job.is_open(),
            index: 0,
            ends: begin + interval,
            last: begin,
            sides: [side(), side()],
            errors: 0,
            first_error: None,
        }
    }

    /// Counts an answer that came at `now`.
    pub fn answered(&mut self, what: &Answered, now: Instant, live: &Live) {
        if now < self.begin {
            return;
        }
        while now >= self.ends {
            self.next_interval();
        }
        self.last = now;
        live.add(what);
        let side = &mut self.sides[what.direction as usize];
        side.requests += what.requests;
        side.messages += what.messages;
        side.bytes += what.bytes;
        let completion = nanos(now.saturating_duration_since(what.written));
        side.clat.add(completion, what.messages);
        let mut latency = completion;
        if let Some(open) = &mut side.open {
            latency = nanos(now.saturating_duration_since(what.due));
            open.0.add(nanos(what.written.saturating_duration_since(what.due)) as f64, what.messages);
            open.1.add(latency, what.messages);
        }
        side.current.messages += what.messages;
        side.current.bytes += what.bytes;
        side.current.latency += latency * what.messages;
        side.current.completion += completion * what.messages;
    }

    /// Counts an answer that said no.
    pub fn refused(&mut self, text: impl FnOnce() -> String) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(text());
        }
    }

    /// Closes the intervals that are over at `now`. One that is not is left out, for it would look like a dip.
    pub fn finish(&mut self, now: Instant) {
        while now >= self.ends {
            self.next_interval();
        }
    }

    /// How long was measured, until `end`.
    pub fn elapsed(&self, end: Instant) -> Duration {
        end.max(self.last).saturating_duration_since(self.begin).max(Duration::from_micros(1))
    }

    /// The length of an interval.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether latency counts from the intended start.
    pub fn is_open(&self) -> bool {
        self.open
    }

    fn next_interval(&mut self) {
        for side in &mut self.sides {
            side.samples.push(std::mem::take(&mut side.current));
        }
        self.index += 1;
        self.ends = self.begin + self.interval * (self.index + 1);
    }
}

/// What the progress line reads, and what stops everybody.
#[derive(Debug, Default)]
pub struct Live {
    messages: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    stop: AtomicBool,
}

impl Live {
    fn add(&self, what: &Answered) {
        self.messages[what.direction as usize].fetch_add(what.messages, Ordering::Relaxed);
        self.bytes[what.direction as usize].fetch_add(what.bytes, Ordering::Relaxed);
    }

    /// Messages and bytes read, messages and bytes written.
    pub fn totals(&self) -> [u64; 4] {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [load(&self.messages[0]), load(&self.bytes[0]), load(&self.messages[1]), load(&self.bytes[1])]
    }

    /// Asks all jobs to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether they are asked to.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// When requests fall due in an open loop: evenly, from a start.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    start: Instant,
    interval_ns: f64,
}

impl Pace {
    /// The pace of a job, if it has one: a request carries `messages` of its rate.
    pub fn of(job: &Job, start: Instant) -> Option<Pace> {
        job.is_open().then(|| Pace { start, interval_ns: 1e9 * f64::from(job.batch) / job.rate_iops as f64 })
    }

    /// When the request with this index falls due.
    pub fn due(&self, index: u64) -> Instant {
        self.start + Duration::from_nanos((index as f64 * self.interval_ns) as u64)
    }

    /// How many fell due until `now`.
    pub fn released(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_nanos() as f64 / self.interval_ns) as u64 + 1
    }
}

/// Nanoseconds; what is too long for them is the longest there is.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        let mut sections = crate::jobfile::Sections::default();
        sections.read("test", &format!("[a]\n{text}")).unwrap();
        Job::new(&sections.finish().unwrap()[0]).unwrap()
    }

    #[test]
    fn latency_counts_from_the_intended_start() {
        let job = job("rate_iops=1000\nlog_avg_msec=100");
        let start = Instant::now();
        let mut stats = Stats::new(&job, start);
        let (live, ms) = (Live::default(), |ms| start + Duration::from_millis(ms));
        // The server stands still for 50 ms: what fell due meanwhile is written late.
        for due in 0..50 {
            let what = Answered {
                requests: 1,
                direction: Direction::Write,
                messages: 1,
                bytes: 10,
                due: ms(due),
                written: ms(50),
            };
            stats.answered(&what, ms(51), &live);
        }
        stats.finish(ms(299));
        let side = &stats.sides[1];
        assert_eq!((side.clat.spread.min(), side.clat.spread.max()), (1e6, 1e6));
        assert_eq!((side.lat().spread.min(), side.lat().spread.max()), (2e6, 51e6));
        assert_eq!((side.slat().min(), side.slat().max(), side.slat().mean()), (1e6, 50e6, 25.5e6));
        assert_eq!(side.lat().percentile(100.0), 51_000_000);
        assert!(side.lat().percentile(50.0).abs_diff(26_500_000) < 600_000);
        let counts: Vec<_> = side.samples.iter().map(|sample| sample.messages).collect();
        assert_eq!(counts, [50, 0], "two whole intervals in 299 ms");
        assert_eq!(live.totals(), [0, 0, 50, 500]);
    }

    #[test]
    fn the_ramp_is_not_measured() {
        let begin = Instant::now() + Duration::from_secs(1);
        let mut stats = Stats::new(&job(""), begin);
        let what =
            |at| Answered { requests: 1, direction: Direction::Read, messages: 32, bytes: 320, due: at, written: at };
        let (early, late) = (begin - Duration::from_millis(1), begin + Duration::from_millis(3));
        stats.answered(&what(early), early, &Live::default());
        stats.answered(&what(early), late, &Live::default());
        let side = &stats.sides[0];
        assert_eq!((side.requests, side.messages, side.bytes), (1, 32, 320));
        assert_eq!(side.lat().spread.mean(), 4e6);
        assert_eq!(side.lat().share(3_000_000, 5_000_000), 1.0);
        assert_eq!(stats.elapsed(late), Duration::from_millis(3));
    }

    #[test]
    fn a_pace_is_even_and_does_not_drift() {
        let start = Instant::now();
        let pace = Pace::of(&job("rate_iops=300k\nbatch=3"), start).unwrap();
        assert_eq!(pace.due(0), start);
        assert_eq!(pace.due(100_000) - start, Duration::from_secs(1));
        assert_eq!(pace.released(start + Duration::from_millis(1)), 101);
        assert!(Pace::of(&job(""), start).is_none());
    }

    #[test]
    fn spreads_are_exact() {
        let mut spread = Spread::default();
        assert_eq!((spread.min(), spread.mean(), spread.stddev()), (0.0, 0.0, 0.0));
        for value in [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0] {
            spread.add(value, 1);
        }
        assert_eq!((spread.min(), spread.max(), spread.mean(), spread.stddev()), (2.0, 9.0, 5.0, 2.0));
    }
}
