//! Runs jobs: those of a group beside each other, a thread each, groups one after the other. This thread
//! shows the progress and hears SIGINT.

use crate::options::{Engine, Job};
use crate::report::Usage;
use crate::stats::{Live, Stats};
use crate::{commitlog, raw, rocketmq};
use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How often the progress line is written anew.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What an engine measured of one job.
pub struct Measured {
    /// Of each connection, or of all in one.
    pub stats: Vec<Stats>,
    /// When measuring ended.
    pub end: Instant,
    /// The server's CPU time meanwhile.
    pub server_cpu: Option<Duration>,
    /// Why it ended before its time.
    pub failure: Option<String>,
}

/// What there is to report of one job, or of one of its connections.
pub struct Outcome {
    /// The job.
    pub job: Job,
    /// Its number over all groups, from 1.
    pub number: usize,
    /// Its group, from 0.
    pub group: usize,
    /// What was measured.
    pub stats: Stats,
    /// How long.
    pub elapsed: Duration,
    /// CPU time of the job's thread.
    pub usage: Usage,
    /// CPU time of the server.
    pub server_cpu: Option<Duration>,
    /// Why it ended before its time.
    pub failure: Option<String>,
    /// When it ended.
    pub ended: SystemTime,
}

/// Where a group's jobs wait for each other before they start.
pub struct Start {
    barrier: Arc<Barrier>,
    passed: Cell<bool>,
}

impl Start {
    /// For a job that runs alone.
    pub fn alone() -> Start {
        Start { barrier: Arc::new(Barrier::new(1)), passed: Cell::new(false) }
    }

    /// Waits until every job of the group is prepared; returns when that was.
    pub fn pass(&self) -> Instant {
        self.passed.set(true);
        self.barrier.wait();
        Instant::now()
    }
}

impl Drop for Start {
    /// A job that could not be prepared does not keep the others.
    fn drop(&mut self) {
        if !self.passed.get() {
            self.barrier.wait();
        }
    }
}

/// Runs all jobs. `show`: the progress, on stderr. `Err`: a job could not be begun; no other group follows.
pub fn run(jobs: Vec<Job>, show: bool) -> Result<Vec<Outcome>, String> {
    let live = Arc::new(Live::default());
    let mut outcomes = Vec::new();
    let mut number = 0;
    for (group, jobs) in groups(jobs).into_iter().enumerate() {
        if live.is_stopped() {
            break;
        }
        let barrier = Arc::new(Barrier::new(jobs.len()));
        let spawn = |job: Job| {
            let (live, start) = (Arc::clone(&live), Start { barrier: Arc::clone(&barrier), passed: Cell::new(false) });
            let name = job.name.clone();
            let body = move || {
                let usage = Usage::now();
                let measured = measure(&job, &live, &start);
                (job, measured, Usage::now().since(&usage), SystemTime::now())
            };
            thread::Builder::new().spawn(body).map_err(|error| format!("{name}: no thread: {error}"))
        };
        let shown = jobs.clone();
        let threads: Vec<_> = jobs.into_iter().map(spawn).collect::<Result<_, _>>()?;
        watch(&shown, &live, show, || threads.iter().all(thread::JoinHandle::is_finished))?;
        for thread in threads {
            let (job, measured, usage, ended) = thread.join().map_err(|_| "a job's thread panicked".to_owned())?;
            let measured = measured.map_err(|error| format!("{}: {error}", job.name))?;
            for stats in measured.stats {
                number += 1;
                outcomes.push(Outcome {
                    elapsed: stats.elapsed(measured.end),
                    job: job.clone(),
                    number,
                    group,
                    stats,
                    usage,
                    server_cpu: measured.server_cpu,
                    failure: measured.failure.clone(),
                    ended,
                });
            }
        }
    }
    Ok(outcomes)
}

fn measure(job: &Job, live: &Arc<Live>, start: &Start) -> io::Result<Measured> {
    match job.engine {
        Engine::RocketMq => rocketmq::run(job, live, start),
        Engine::Engine => commitlog::run(job, live, start),
        Engine::Ring => raw::run(job, live, start),
    }
}

/// Jobs by `stonewall`.
fn groups(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: Vec<Vec<Job>> = Vec::new();
    for job in jobs {
        match groups.last_mut() {
            Some(group) if !job.stonewall => group.push(job),
            _ => groups.push(vec![job]),
        }
    }
    groups
}

/// Shows how far it is until `done`, and stops the jobs at SIGINT.
fn watch(jobs: &[Job], live: &Live, show: bool, done: impl Fn() -> bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("waiting for signals: {error}"))?;
    let length = jobs.iter().map(|job| job.startdelay + job.ramp_time + job.runtime).max().unwrap_or_default();
    let (began, mut before, mut at) = (Instant::now(), live.totals(), Instant::now());
    let line = |rates: [f64; 4]| progress(jobs, began.elapsed(), length, rates);
    runtime.block_on(async {
        let mut interrupts = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
            .map_err(|error| format!("waiting for SIGINT: {error}"))?;
        while !done() {
            tokio::select! {
                _ = interrupts.recv() => live.stop(),
                () = tokio::time::sleep(PROGRESS_INTERVAL.min(length / 20).max(Duration::from_millis(10))) => {}
            }
            if show && at.elapsed() >= PROGRESS_INTERVAL {
                let (now, seconds) = (live.totals(), at.elapsed().as_secs_f64());
                let rates = std::array::from_fn(|index| (now[index] - before[index]) as f64 / seconds);
                say(&format!("\r\u{1b}[K{}", line(rates)));
                (before, at) = (now, Instant::now());
            }
        }
        if show {
            say("\r\u{1b}[K");
        }
        Ok(())
    })
}

/// fio's line: jobs, part done, rates, time left.
fn progress(jobs: &[Job], elapsed: Duration, length: Duration, rates: [f64; 4]) -> String {
    use crate::units::{binary_rate, count};
    let connections: usize = jobs.iter().map(|job| job.numjobs).sum();
    let part = (elapsed.as_secs_f64() / length.as_secs_f64() * 100.0).min(100.0);
    let left = length.saturating_sub(elapsed).as_secs();
    let letters: String = jobs.iter().map(letter).collect();
    let mut speed = String::new();
    for (letter, rate, messages) in [("r", rates[1], rates[0]), ("w", rates[3], rates[2])] {
        if messages > 0.0 {
            speed += &format!("[{letter}={},{letter}={} IOPS]", binary_rate(rate), count(messages));
        }
    }
    format!(
        "Jobs: {connections} (f={connections}): [{letters}][{part:.1}%]{speed}[eta {:02}m:{:02}s]",
        left / 60,
        left % 60
    )
}

fn letter(job: &Job) -> String {
    let letter = match job.fio_rw() {
        "write" => "W",
        "read" => "R",
        _ => "M",
    };
    if job.numjobs == 1 { letter.to_owned() } else { format!("{letter}({})", job.numjobs) }
}

fn say(text: &str) {
    let mut out = io::stderr().lock();
    // A terminal that is gone is no reason to stop measuring.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Whether there is somebody to show the progress to.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_begin_at_a_stonewall() {
        let job = |stonewall| Job { stonewall, ..Job::default() };
        let sizes = |walls: &[bool]| -> Vec<usize> {
            groups(walls.iter().map(|wall| job(*wall)).collect()).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(&[false, false, true, false, true]), [2, 2, 1]);
        assert_eq!(sizes(&[true, false]), [2]);
    }

    #[test]
    fn progress_looks_like_fio() {
        let jobs = [Job { numjobs: 16, ..Job::default() }];
        let text =
            progress(&jobs, Duration::from_secs(2), Duration::from_secs(8), [0.0, 0.0, 359_034.0, 367_650_816.0]);
        assert_eq!(text, "Jobs: 16 (f=16): [W(16)][25.0%][w=351MiB/s,w=359k IOPS][eta 00m:06s]");
    }
}
