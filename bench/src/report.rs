//! What was measured, as people read it: fio's text.

use crate::options::Job;
use crate::run::Outcome;
use crate::stats::{Direction, Latency, Side, Spread};
use crate::units::{binary_bytes, binary_rate, count, decimal_bytes, time_unit};
use std::fmt::Write;
use std::time::Duration;

/// CPU time that a process used so far, user and system. `None` if it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    ticks(&format!("/proc/{pid}/stat")).map(|(user, system)| user + system)
}

/// User and system time of a process or thread, from its stat file.
fn ticks(path: &str) -> Option<(Duration, Duration)> {
    let stat = std::fs::read_to_string(path).ok()?;
    // The name in parentheses may hold anything; behind it, fields 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let time = |index: usize| Some(Duration::from_millis(fields.get(index)?.parse::<u64>().ok()? * 10));
    Some((time(11)?, time(12)?))
}

/// What a thread used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// Times that it gave way or was made to.
    pub switches: u64,
}

impl Usage {
    /// This thread's, so far.
    pub fn now() -> Usage {
        let (user, system) = ticks("/proc/thread-self/stat").unwrap_or_default();
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let switches = status.lines().filter(|line| line.contains("ctxt_switches"));
        let number = |line: &str| line.split_whitespace().last().and_then(|text| text.parse::<u64>().ok());
        Usage { user, system, switches: switches.filter_map(number).sum() }
    }

    /// What was used since.
    pub fn since(&self, before: &Usage) -> Usage {
        Usage {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
            switches: self.switches.saturating_sub(before.switches),
        }
    }
}

/// fio's bounds of its latency distribution in ns, us and ms: the last of ms is open.
pub const STEPS: [(&str, u64, &[u64]); 3] = [
    ("nsec", 1, &[2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]),
    ("usec", 1_000, &[2, 4, 10, 20, 50, 100, 250, 500, 750, 1000]),
    ("msec", 1_000_000, &[2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000]),
];

/// The directions that a job has, with fio's words.
pub fn sides(outcome: &Outcome) -> impl Iterator<Item = (&'static str, &Side)> {
    let named = [("read", Direction::Read), ("write", Direction::Write)];
    named
        .into_iter()
        .map(|(name, way)| (name, &outcome.stats.sides[way as usize]))
        .filter(|(_, side)| side.requests > 0)
}

/// The lines that fio begins with.
pub fn head(jobs: &[Job]) -> String {
    let mut out = String::new();
    for job in jobs {
        let size = |bytes: u32| binary_bytes(f64::from(bytes)).replace(".00", "");
        let _ = writeln!(
            out,
            "{}: (g=0): rw={}, bs={}-{}, ioengine={}, iodepth={}",
            job.name,
            job.fio_rw(),
            size(job.bs.0),
            size(job.bs.1),
            job.engine_name(),
            job.iodepth
        );
    }
    let _ = writeln!(out, "{}\n", version());
    out
}

/// What stands where fio writes its version.
pub fn version() -> &'static str {
    concat!("ringmq-bench-", env!("CARGO_PKG_VERSION"))
}

/// Everything that fio says of its jobs, and of its groups.
pub fn text(outcomes: &[Outcome]) -> String {
    let mut out = String::new();
    for outcome in outcomes {
        job(&mut out, outcome);
    }
    let groups = outcomes.last().map_or(0, |outcome| outcome.group + 1);
    for number in 0..groups {
        let _ = writeln!(out, "\nRun status group {number} (all jobs):");
        for (index, word) in ["READ", "WRITE"].iter().enumerate() {
            let all = outcomes.iter().filter(|outcome| outcome.group == number);
            group(&mut out, word, all.map(|outcome| (&outcome.stats.sides[index], outcome.elapsed)));
        }
    }
    out
}

fn job(out: &mut String, outcome: &Outcome) {
    let Outcome { job, stats, .. } = outcome;
    let jobs = if job.group_reporting { job.numjobs } else { 1 };
    let seconds = outcome.elapsed.as_secs_f64();
    let _ = writeln!(
        out,
        "{}: (groupid={}, jobs={jobs}): err={}: pid={}",
        job.name,
        outcome.group,
        if outcome.failure.is_some() || stats.errors > 0 { " 5" } else { " 0" },
        std::process::id()
    );
    if let Some(failure) = &outcome.failure {
        let _ = writeln!(out, "  failed: {failure}");
    }
    if stats.errors > 0 {
        let first = stats.first_error.as_deref().unwrap_or_default();
        let _ = writeln!(out, "  refused: {} answers, the first: {first}", stats.errors);
    }
    for (name, side) in sides(outcome) {
        let rate = side.bytes as f64 / seconds;
        let _ = writeln!(
            out,
            "  {name}: IOPS={}, BW={} ({}/s)({}/{}msec)",
            count(side.messages as f64 / seconds),
            binary_rate(rate),
            decimal_bytes(rate),
            binary_bytes(side.bytes as f64),
            outcome.elapsed.as_millis()
        );
        if stats.is_open() {
            spread(out, "slat", &side.slat());
        }
        spread(out, "clat", &side.clat.spread);
        spread(out, " lat", &side.lat().spread);
        percentiles(out, "clat", &side.clat, &job.percentiles);
        if stats.is_open() {
            percentiles(out, "lat", side.lat(), &job.percentiles);
        }
        samples(out, side, stats.interval());
    }
    distribution(out, outcome);
    let usage = &outcome.usage;
    let percent = |time: Duration| time.as_secs_f64() / (seconds + job.ramp_time.as_secs_f64()) * 100.0;
    let _ = writeln!(
        out,
        "  cpu          : usr={:.2}%, sys={:.2}%, ctx={}, majf=0, minf=0",
        percent(usage.user),
        percent(usage.system),
        usage.switches
    );
    let [reads, writes] = &stats.sides;
    let _ = writeln!(
        out,
        "     issued rwts: total={},{},0,0 short=0,0,0,0 dropped=0,0,0,0",
        reads.requests, writes.requests
    );
    let _ = writeln!(out, "     latency   : target=0, window=0, percentile=100.00%, depth={}", job.iodepth);
    if let Some(cpu) = server_cpu_us(outcome) {
        let _ = writeln!(out, "  server       : cpu={cpu:.3} usec a message");
    }
}

/// CPU time of the server for each message of the job, µs.
pub fn server_cpu_us(outcome: &Outcome) -> Option<f64> {
    let messages: u64 = outcome.stats.sides.iter().map(|side| side.messages).sum();
    outcome.server_cpu.filter(|_| messages > 0).map(|cpu| cpu.as_secs_f64() * 1e6 / messages as f64)
}

fn spread(out: &mut String, name: &str, spread: &Spread) {
    let (unit, size) = time_unit(spread.min(), spread.max(), spread.mean(), spread.stddev());
    let _ = writeln!(
        out,
        "    {name} ({unit}): min={}, max={}, avg={:.2}, stdev={:.2}",
        short(spread.min() / size),
        short(spread.max() / size),
        spread.mean() / size,
        spread.stddev() / size
    );
}

/// As fio: five digits, or thousands.
fn short(value: f64) -> String {
    if value < 100_000.0 { format!("{value:.0}") } else { format!("{:.0}k", value / 1000.0) }
}

fn percentiles(out: &mut String, name: &str, latency: &Latency, list: &[f64]) {
    let spread = &latency.spread;
    let (unit, size) = time_unit(spread.min(), spread.max(), spread.mean(), spread.stddev());
    let _ = writeln!(out, "    {name} percentiles ({unit}):");
    let shown = |percent: &f64| format!("{:.0}", latency.percentile(*percent) as f64 / size);
    let width = list.iter().map(|percent| shown(percent).len()).max().unwrap_or(0);
    for row in list.chunks(4) {
        let cells: Vec<_> =
            row.iter().map(|percent| format!("{percent:>5.2}th=[{:>width$}]", shown(percent))).collect();
        let _ = writeln!(out, "     | {},", cells.join(", "));
    }
    if out.ends_with(",\n") {
        out.truncate(out.len() - 2);
        out.push('\n');
    }
}

fn samples(out: &mut String, side: &Side, interval: Duration) {
    let seconds = interval.as_secs_f64();
    let bandwidth = side.sampled(|sample| sample.bytes as f64 / 1024.0 / seconds);
    let rate = side.sampled(|sample| sample.messages as f64 / seconds);
    for (name, spread, per) in [("bw (  KiB/s)", bandwidth, "per=100.00%, "), ("iops        ", rate, "")] {
        let _ = writeln!(
            out,
            "   {name}: min={:.0}, max={:.0}, {per}avg={:.2}, stdev={:.2}, samples={}",
            spread.min(),
            spread.max(),
            spread.mean(),
            spread.stddev(),
            spread.count
        );
    }
}

/// Parts of all messages by latency, in percent, as fio cuts them: unit, upper bound (0: none), percent.
pub fn shares(outcome: &Outcome) -> Vec<(&'static str, u64, f64)> {
    let total: u64 = outcome.stats.sides.iter().map(|side| side.messages).sum();
    let weight = |side: &Side| side.messages as f64 / total.max(1) as f64;
    let part = |from: u64, to: u64| -> f64 {
        outcome.stats.sides.iter().map(|side| side.lat().share(from, to) * weight(side)).sum::<f64>() * 100.0
    };
    let mut list = Vec::new();
    let mut from = 0;
    for (unit, size, steps) in STEPS {
        for step in steps {
            // A bound that two units share belongs to the smaller one's last step.
            let to = step * size;
            list.push((unit, *step, if to > from { part(from, to) } else { 0.0 }));
            from = from.max(to);
        }
    }
    list.push(("msec", 0, part(from, u64::MAX)));
    list
}

fn distribution(out: &mut String, outcome: &Outcome) {
    let shares = shares(outcome);
    for (unit, _, _) in STEPS {
        let cells: Vec<_> = shares
            .iter()
            .filter(|(of, _, percent)| *of == unit && *percent >= 0.005)
            .map(|(_, step, percent)| match step {
                0 => format!(">=2000={percent:.2}%"),
                step => format!("{step}={percent:.2}%"),
            })
            .collect();
        for row in cells.chunks(6) {
            let _ = writeln!(out, "  lat ({unit})   : {}", row.join(", "));
        }
    }
}

fn group<'a>(out: &mut String, word: &str, sides: impl Iterator<Item = (&'a Side, Duration)>) {
    let list: Vec<_> = sides.filter(|(side, _)| side.requests > 0).collect();
    if list.is_empty() {
        return;
    }
    let rates: Vec<f64> = list.iter().map(|(side, elapsed)| side.bytes as f64 / elapsed.as_secs_f64()).collect();
    let bytes: f64 = list.iter().map(|(side, _)| side.bytes as f64).sum();
    let most = rates.iter().copied().fold(0.0, f64::max);
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let all: f64 = rates.iter().sum();
    let times = list.iter().map(|(_, elapsed)| elapsed.as_millis());
    let _ = writeln!(
        out,
        "{word:>7}: bw={} ({}/s), {}-{} ({}/s-{}/s), io={} ({}), run={}-{}msec",
        binary_rate(all),
        decimal_bytes(all),
        binary_rate(least),
        binary_rate(most),
        decimal_bytes(least),
        decimal_bytes(most),
        binary_bytes(bytes),
        decimal_bytes(bytes),
        times.clone().min().unwrap_or(0),
        times.max().unwrap_or(0)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Answered, Live, Stats};
    use std::time::{Instant, SystemTime};

    /// Two seconds, 100 messages of 1 KiB: 98 of them took 300 µs, two 3 ms.
    fn outcome(rate_iops: u64) -> Outcome {
        let job = Job { name: "probe".into(), bs: (1024, 1024), iodepth: 4, rate_iops, ..Job::default() };
        let start = Instant::now();
        let mut stats = Stats::new(&job, start);
        for index in 0..100 {
            let due = start + Duration::from_millis(index * 20);
            let written = due + Duration::from_micros(if rate_iops > 0 { 50 } else { 0 });
            let what = Answered { requests: 1, direction: Direction::Write, messages: 1, bytes: 1024, due, written };
            let took = Duration::from_micros(if index % 50 == 49 { 3000 } else { 300 });
            stats.answered(&what, written + took, &Live::default());
        }
        let end = start + Duration::from_secs(2);
        stats.finish(end);
        let usage = Usage { user: Duration::from_millis(500), system: Duration::from_millis(100), switches: 7 };
        let elapsed = stats.elapsed(end);
        let server_cpu = Some(Duration::from_micros(250));
        Outcome { job, number: 1, group: 0, stats, elapsed, usage, server_cpu, failure: None, ended: SystemTime::now() }
    }

    #[test]
    fn the_text_is_fio_s() {
        let expected = "\
probe: (groupid=0, jobs=1): err= 0: pid=PID
  write: IOPS=50, BW=50.0KiB/s (51.2kB/s)(100KiB/2000msec)
    clat (usec): min=300, max=3000, avg=354.00, stdev=378.00
     lat (usec): min=300, max=3000, avg=354.00, stdev=378.00
    clat percentiles (usec):
     |  1.00th=[ 300],  5.00th=[ 300], 10.00th=[ 300], 20.00th=[ 300],
     | 30.00th=[ 300], 40.00th=[ 300], 50.00th=[ 300], 60.00th=[ 300],
     | 70.00th=[ 300], 80.00th=[ 300], 90.00th=[ 300], 95.00th=[ 300],
     | 99.00th=[3000], 99.50th=[3000], 99.90th=[3000], 99.95th=[3000],
     | 99.99th=[3000]
   bw (  KiB/s): min=50, max=50, per=100.00%, avg=50.00, stdev=0.00, samples=4
   iops        : min=50, max=50, avg=50.00, stdev=0.00, samples=4
  lat (usec)   : 500=98.00%
  lat (msec)   : 4=2.00%
  cpu          : usr=25.00%, sys=5.00%, ctx=7, majf=0, minf=0
     issued rwts: total=0,100,0,0 short=0,0,0,0 dropped=0,0,0,0
     latency   : target=0, window=0, percentile=100.00%, depth=4
  server       : cpu=2.500 usec a message

Run status group 0 (all jobs):
  WRITE: bw=50.0KiB/s (51.2kB/s), 50.0KiB/s-50.0KiB/s (51.2kB/s-51.2kB/s), io=100KiB (102kB), run=2000-2000msec
";
        let got = text(&[outcome(0)]).replace(&format!("pid={}", std::process::id()), "pid=PID");
        assert_eq!(got, expected);
    }

    #[test]
    fn an_open_loop_shows_what_waited() {
        let got = text(&[outcome(50)]);
        assert!(got.contains("    slat (nsec): min=50000, max=50000, avg=50000.00, stdev="), "{got}");
        assert!(got.contains("     lat (usec): min=350, max=3050, avg=404.00, stdev=378.00\n"), "{got}");
        assert!(got.contains("    lat percentiles (usec):\n"), "{got}");
    }

    #[test]
    fn json_has_what_readers_look_for() {
        let document = crate::json::document(&[outcome(0)]);
        let job = &document["jobs"][0];
        let options = &job["job options"];
        for (name, value) in [("rw", "write"), ("iodepth", "4"), ("numjobs", "1"), ("bs", "1024"), ("name", "probe")] {
            assert_eq!(options[name], value, "{name}");
        }
        let write = &job["write"];
        assert_eq!((&write["bw"], &write["iops"], &write["total_ios"]), (&50.into(), &50.0.into(), &100.into()));
        assert_eq!(write["lat_ns"]["mean"].as_f64().map(f64::round), Some(354_000.0));
        assert_eq!(write["clat_ns"]["percentile"]["50.000000"], 300_031, "as exact as the histogram");
        assert_eq!((&job["latency_us"]["500"], &job["latency_ms"]["4"]), (&98.0.into(), &2.0.into()));
        assert_eq!(job["latency_ms"][">=2000"], 0.0);
        assert_eq!((&job["read"]["iops"], &job["error"]), (&0.0.into(), &0.into()));
    }
}
