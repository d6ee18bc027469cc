//! What a run measured, as one JSON line.

use hdrhistogram::Histogram;
use std::time::Duration;

/// CPU time that a process used so far, user and system. `None` if it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; behind it, fields 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// A run's figures.
pub struct Report {
    /// What was run.
    pub what: &'static str,
    /// Connections.
    pub connections: usize,
    /// Requests outstanding on each.
    pub outstanding: usize,
    /// Messages sent or received.
    pub messages: u64,
    /// Answers with another code than 0.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
    /// How long it took.
    pub elapsed: Duration,
    /// The server's CPU time in it.
    pub server_cpu: Option<Duration>,
    /// Latency of each request, microseconds.
    pub latency: Histogram<u64>,
}

impl Report {
    /// One line.
    pub fn line(&self) -> String {
        let ms = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        let cpu = self.server_cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / self.messages.max(1) as f64);
        serde_json::json!({
            "what": self.what,
            "conns": self.connections,
            "pipe": self.outstanding,
            "per_s": (self.messages as f64 / self.elapsed.as_secs_f64()).round(),
            "errors": self.errors,
            "first_error": self.first_error,
            "server_cpu_us": cpu.map(|cpu| (cpu * 1000.0).round() / 1000.0),
            "p50_ms": ms(0.5),
            "p99_ms": ms(0.99),
            "p999_ms": ms(0.999),
            "max_ms": self.latency.max() as f64 / 1000.0,
        })
        .to_string()
    }
}
