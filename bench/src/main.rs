//! `ringmq-bench`: loads a broker (RingMQ or any that speaks RocketMQ's protocol) and prints a JSON line a run.

use bench::load::Load;
use clap::{Parser, Subcommand};
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

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
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=1024))]
    queues: i32,
    /// Seconds a point.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Connections x requests outstanding on each, several separated by commas.
    #[arg(long, default_value = "1x1,16x1,64x1,16x32,64x32", value_delimiter = ',', value_parser = point)]
    points: Vec<(usize, usize)>,
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Sends messages (SEND_MESSAGE_V2, JSON headers).
    Send {
        /// Bytes of a message's body.
        #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=4 << 20))]
        body: u32,
    },
    /// Pulls the newest messages of each queue again and again.
    Pull {
        /// Messages a pull.
        #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(i32).range(1..=1024))]
        batch: i32,
        /// How many of each queue's newest messages are read.
        #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(i64).range(1..))]
        span: i64,
    },
}

fn point(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('x').and_then(|(left, right)| Some((left.parse().ok()?, right.parse().ok()?)));
    let within = |(left, right): &(usize, usize)| (1..=10_000).contains(left) && (1..=10_000).contains(right);
    numbers.filter(within).ok_or_else(|| "expected CONNECTIONSxOUTSTANDING, each 1 to 10000, as in 16x32".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match transport::run(run(arguments)).and_then(|result| result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one line that a script's reader needs.
            let _ = io::Write::write_all(&mut io::stderr(), format!("ringmq-bench: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> io::Result<()> {
    for (connections, outstanding) in arguments.points {
        let load = Load {
            broker: arguments.broker,
            pid: arguments.pid,
            topic: arguments.topic.clone(),
            queues: arguments.queues,
            connections,
            outstanding,
            duration: Duration::from_secs(arguments.seconds),
            body_bytes: match arguments.command {
                What::Send { body } => body as usize,
                What::Pull { .. } => 0,
            },
        };
        let report = match arguments.command {
            What::Send { .. } => {
                load.prepare().await?;
                load.send().await?
            }
            What::Pull { batch, span } => load.pull(batch, span).await?,
        };
        println!("{}", report.line());
    }
    Ok(())
}
