//! What was measured, as fio's JSON, and as its log files: what fio-plot and fio's own tools read.

use crate::report::{server_cpu_us, shares, sides, version};
use crate::run::Outcome;
use crate::stats::{Direction, Latency, Sample, Side, Spread};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// The whole document.
pub fn document(outcomes: &[Outcome]) -> Value {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "fio version": version(),
        "timestamp": since.as_secs(),
        "timestamp_ms": since.as_millis() as u64,
        // Each job's options are whole in the job itself: readers let these here win.
        "global options": {},
        "jobs": outcomes.iter().map(job).collect::<Vec<_>>(),
    })
}

fn job(outcome: &Outcome) -> Value {
    let job = &outcome.job;
    let mut options = Map::new();
    options.insert("name".into(), job.name.clone().into());
    for (name, value) in &job.given {
        options.insert(name.clone(), value.clone().into());
    }
    // What readers look for, in fio's words.
    options.insert("ioengine".into(), job.engine_name().into());
    options.insert("rw".into(), job.fio_rw().into());
    options.insert("iodepth".into(), job.iodepth.to_string().into());
    options.insert("numjobs".into(), job.numjobs.to_string().into());
    let bs = if job.bs.0 == job.bs.1 { job.bs.0.to_string() } else { format!("{}-{}", job.bs.0, job.bs.1) };
    options.insert("bs".into(), bs.into());
    let seconds = outcome.elapsed.as_secs_f64();
    let percent = |time: std::time::Duration| time.as_secs_f64() / (seconds + job.ramp_time.as_secs_f64()) * 100.0;
    let bad = outcome.failure.is_some() || outcome.stats.errors > 0;
    let mut value = json!({
        "jobname": job.name,
        "groupid": outcome.group,
        "job_start": outcome.ended.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
            - outcome.elapsed.as_millis() as u64,
        "error": if bad { 5 } else { 0 },
        "eta": 0,
        "elapsed": outcome.elapsed.as_secs(),
        "job options": options,
        "read": side(outcome, Direction::Read),
        "write": side(outcome, Direction::Write),
        "trim": side_of(&Side::default(), 1.0, 1.0, &[]),
        "sync": { "total_ios": 0, "lat_ns": spread(&Spread::default()) },
        "job_runtime": outcome.elapsed.as_millis() as u64,
        "usr_cpu": percent(outcome.usage.user),
        "sys_cpu": percent(outcome.usage.system),
        "ctx": outcome.usage.switches,
        "majf": 0,
        "minf": 0,
        "latency_depth": job.iodepth,
        "ringmq": {
            "requests": sides(outcome).map(|(_, side)| side.requests).sum::<u64>(),
            "refused": outcome.stats.errors,
            "first_refusal": outcome.stats.first_error,
            "failure": outcome.failure,
            "server_cpu_us": server_cpu_us(outcome),
            "open_loop": outcome.stats.is_open(),
        },
    });
    for (key, unit) in [("latency_ns", "nsec"), ("latency_us", "usec"), ("latency_ms", "msec")] {
        value[key] = shares(outcome)
            .into_iter()
            .filter(|(of, _, _)| *of == unit)
            .map(|(_, step, percent)| (if step == 0 { ">=2000".to_owned() } else { step.to_string() }, percent.into()))
            .collect::<Map<String, Value>>()
            .into();
    }
    value
}

fn side(outcome: &Outcome, direction: Direction) -> Value {
    let interval = outcome.stats.interval().as_secs_f64();
    let side = &outcome.stats.sides[direction as usize];
    side_of(side, outcome.elapsed.as_secs_f64(), interval, &outcome.job.percentiles)
}

fn side_of(side: &Side, seconds: f64, interval: f64, list: &[f64]) -> Value {
    let rate = side.bytes as f64 / seconds;
    let bandwidth = side.sampled(|sample| sample.bytes as f64 / 1024.0 / interval);
    let messages = side.sampled(|sample| sample.messages as f64 / interval);
    json!({
        "io_bytes": side.bytes,
        "io_kbytes": side.bytes / 1024,
        "bw_bytes": rate as u64,
        "bw": (rate / 1024.0) as u64,
        "iops": side.messages as f64 / seconds,
        "runtime": (seconds * 1000.0) as u64,
        "total_ios": side.messages,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": spread(&side.slat()),
        "clat_ns": latency(&side.clat, list),
        "lat_ns": latency(side.lat(), list),
        "bw_min": bandwidth.min() as u64,
        "bw_max": bandwidth.max() as u64,
        "bw_agg": 100.0,
        "bw_mean": bandwidth.mean(),
        "bw_dev": bandwidth.stddev(),
        "bw_samples": bandwidth.count,
        "iops_min": messages.min() as u64,
        "iops_max": messages.max() as u64,
        "iops_mean": messages.mean(),
        "iops_stddev": messages.stddev(),
        "iops_samples": messages.count,
    })
}

fn spread(spread: &Spread) -> Value {
    json!({
        "min": spread.min() as u64,
        "max": spread.max() as u64,
        "mean": spread.mean(),
        "stddev": spread.stddev(),
        "N": spread.count,
    })
}

fn latency(of: &Latency, list: &[f64]) -> Value {
    let mut value = spread(&of.spread);
    if of.spread.count > 0 {
        let percentiles = list.iter().map(|percent| (format!("{percent:.6}"), of.percentile(*percent).into()));
        value["percentile"] = percentiles.collect::<Map<String, Value>>().into();
    }
    value
}

/// What a line of a log file holds of an interval, if anything.
type Column<'a> = &'a dyn Fn(&Sample) -> Option<u64>;

/// Writes the log files that an outcome's job asks for.
pub fn write_logs(outcome: &Outcome) -> Result<(), String> {
    let job = &outcome.job;
    let seconds = outcome.stats.interval().as_secs_f64();
    let each = |part: u64, sample: &Sample| part.checked_div(sample.messages);
    let files: [(&Option<String>, &str, Column<'_>); 4] = [
        (&job.bw_log, "bw", &|sample| Some((sample.bytes as f64 / 1024.0 / seconds) as u64)),
        (&job.iops_log, "iops", &|sample| Some((sample.messages as f64 / seconds).round() as u64)),
        (&job.lat_log, "lat", &|sample| each(sample.latency, sample)),
        (&job.lat_log, "clat", &|sample| each(sample.completion, sample)),
    ];
    for (prefix, kind, value) in files {
        let Some(prefix) = prefix else { continue };
        let path = format!("{prefix}_{kind}.{}.log", outcome.number);
        write_log(outcome, &path, value).map_err(|error| format!("writing {path}: {error}"))?;
    }
    Ok(())
}

/// fio's lines: `ms, value, direction, bs, offset, priority`. An interval without messages has no latency.
fn write_log(outcome: &Outcome, path: &str, value: Column<'_>) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let interval = outcome.stats.interval().as_millis() as u64;
    let count = outcome.stats.sides[0].samples.len();
    for index in 0..count {
        for (way, side) in outcome.stats.sides.iter().enumerate().filter(|(_, side)| side.requests > 0) {
            if let Some(value) = value(&side.samples[index]) {
                writeln!(out, "{}, {value}, {way}, {}, 0, 0", (index as u64 + 1) * interval, outcome.job.bs.0)?;
            }
        }
    }
    out.flush()
}
