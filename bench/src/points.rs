//! The short form `ringmq-bench … send|pull`: several points of connections x outstanding against one
//! broker, one JSON line each. What `bench/compare` and quick looks use.

use crate::options::{Job, Load};
use crate::report::server_cpu_us;
use crate::run::{self, Outcome};
use crate::stats::{Direction, Latency};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

/// The points that are measured unless others are wanted.
pub const DEFAULT: &str = "1x1,16x1,64x1,16x32,64x32";

/// Closed-loop load on a broker: durable sends, or pulls of the tail. One JSON line for each point.
#[derive(Parser)]
#[command(name = "ringmq-bench", version)]
struct Arguments {
    /// The broker's address.
    #[arg(long, default_value = "127.0.0.1:10911")]
    broker: SocketAddr,
    /// The broker's process, to report its CPU time a message.
    #[arg(long)]
    pid: Option<u32>,
    /// The topic; it is created.
    #[arg(long, default_value = "RingMQBench")]
    topic: String,
    /// Queues of the topic.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65536))]
    queues: u32,
    /// Seconds a point.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Connections x requests outstanding on each, several separated by commas.
    #[arg(long, default_value = DEFAULT, value_delimiter = ',', value_parser = point)]
    points: Vec<(usize, usize)>,
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Sends messages (SEND_MESSAGE_V2, or SEND_BATCH_MESSAGE with --batch; JSON headers).
    Send {
        /// Bytes of a message's body.
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4 << 20))]
        body: u32,
        /// Messages a send.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
        batch: u32,
    },
    /// Pulls the newest messages of each queue again and again.
    Pull {
        /// Messages a pull.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
        batch: u32,
        /// How many of each queue's newest messages are read.
        #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..))]
        span: u64,
    },
}

/// Reads `CONNECTIONSxOUTSTANDING`.
pub fn point(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('x').and_then(|(left, right)| Some((left.parse().ok()?, right.parse().ok()?)));
    let within = |(left, right): &(usize, usize)| (1..=10_000).contains(left) && (1..=10_000).contains(right);
    numbers.filter(within).ok_or_else(|| "expected CONNECTIONSxOUTSTANDING, each 1 to 10000, as in 16x32".to_owned())
}

/// Runs all points of this command line and prints their lines. `Err`: one of them did not work.
pub fn main() -> Result<(), String> {
    let arguments = Arguments::parse();
    for (connections, outstanding) in arguments.points {
        let (load, body, batch, span) = match arguments.command {
            What::Send { body, batch } => (Load::Produce, body, batch, 1),
            What::Pull { batch, span } => (Load::Consume, 1024, batch, span),
        };
        let job = Job {
            name: format!("{connections}x{outstanding}"),
            load,
            bs: (body, body),
            batch,
            span,
            iodepth: outstanding,
            // Whole windows, as the limit is loaded.
            complete: outstanding,
            numjobs: connections,
            runtime: Duration::from_secs(arguments.seconds),
            group_reporting: true,
            broker: arguments.broker,
            pid: arguments.pid,
            topic: arguments.topic.clone(),
            queues: arguments.queues,
            ..Job::default()
        };
        let outcomes = run::run(vec![job], false)?;
        for outcome in &outcomes {
            let stats = &outcome.stats;
            let messages: u64 = stats.sides.iter().map(|side| side.messages).sum();
            if messages == 0 {
                let text = stats.first_error.as_deref().or(outcome.failure.as_deref()).unwrap_or("there was none");
                return Err(format!("no answer was a success; the first: {text}"));
            }
            println!("{}", told(outcome));
        }
    }
    Ok(())
}

fn told(outcome: &Outcome) -> Value {
    let (job, stats) = (&outcome.job, &outcome.stats);
    let (what, way) = match job.load {
        Load::Produce => ("send", Direction::Write),
        _ => ("pull", Direction::Read),
    };
    let side = &stats.sides[way as usize];
    let point = (job.numjobs, job.iodepth);
    let mut told = line(what, point, side.messages, outcome.elapsed, &side.clat, server_cpu_us(outcome));
    told["errors"] = stats.errors.into();
    told["first_error"] = stats.first_error.as_deref().or(outcome.failure.as_deref()).into();
    told
}

/// A point's line: what was asked for on how many connections, with how much outstanding on each, and what came of it.
pub fn line(
    what: &str,
    (connections, outstanding): (usize, usize),
    messages: u64,
    elapsed: Duration,
    latency: &Latency,
    server_cpu_us: Option<f64>,
) -> Value {
    let ms = |percent: f64| latency.percentile(percent) as f64 / 1e6;
    json!({
        "what": what,
        "conns": connections,
        "pipe": outstanding,
        "per_s": (messages as f64 / elapsed.as_secs_f64()).round(),
        "errors": 0,
        "first_error": null,
        "server_cpu_us": server_cpu_us.map(|cpu| (cpu * 1000.0).round() / 1000.0),
        "p50_ms": ms(50.0),
        "p99_ms": ms(99.0),
        "p999_ms": ms(99.9),
        "max_ms": latency.spread.max() / 1e6,
    })
}
