//! Goal: no coordinated omission: a server that stands still is seen by every request that fell due meanwhile, not only
//! by those that were under way. Method: the tool loads a core in a process of its own, which is stopped (SIGSTOP) for a
//! while in the middle of it. The same stop under a closed loop shows what would be missed.

use bench::inside::Running;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the server stands still.
const STOP: Duration = Duration::from_millis(300);
/// Messages a second of the open loop, and how many there are: three seconds of it.
const RATE: u64 = 1000;
const MESSAGES: u64 = 3 * RATE;

/// What [`Server::start`] runs: it does nothing unless it is told where.
#[test]
fn child() {
    let Some(home) = std::env::var_os("OPEN_LOOP_HOME") else { return };
    let running = Running::start(home.as_ref()).unwrap();
    std::io::stdout().write_all(format!("ready {}\n", running.address).as_bytes()).unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A core in a process of its own. It ends with its stdin.
struct Server {
    process: Child,
    address: SocketAddr,
    home: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let home = tempfile::tempdir().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env("OPEN_LOOP_HOME", home.path().join("log"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = |line: std::io::Result<String>| line.unwrap().split_once("ready ")?.1.parse().ok();
        let address = lines.map(ready).find_map(|address| address).expect("it serves");
        Server { process, address, home }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Runs the tool, and stops the server for a while as soon as messages go. Returns what it says.
    fn load_with_a_stop(&self, arguments: &[&str]) -> Value {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .current_dir(self.home.path())
            .args(["--eta=always", "--output-format=json", "--output=report.json", "--name=stopped"])
            .args([&format!("--broker={}", self.address), "--group_reporting", "--numjobs=2"])
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut progress = tool.stderr.take().unwrap();
        let mut seen = Vec::new();
        let mut piece = [0; 256];
        while !String::from_utf8_lossy(&seen).contains("IOPS]") {
            let count = progress.read(&mut piece).unwrap();
            assert!(count > 0, "it ended early: {}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&piece[..count]);
        }
        self.signal(Signal::STOP);
        std::thread::sleep(STOP);
        self.signal(Signal::CONT);
        progress.read_to_end(&mut seen).unwrap();
        assert!(tool.wait().unwrap().success(), "{}", String::from_utf8_lossy(&seen));
        let report = std::fs::read(self.home.path().join("report.json")).unwrap();
        let mut report: Value = serde_json::from_slice(&report).unwrap();
        report["jobs"][0].take()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The value that this percent of all do not exceed, ms.
fn percentile(of: &Value, percent: &str) -> f64 {
    of["percentile"][percent].as_f64().unwrap_or_else(|| panic!("{of}")) / 1e6
}

#[test]
fn every_message_that_fell_due_during_a_stop_shows_it() {
    let server = Server::start();
    let stop = STOP.as_secs_f64() * 1e3;
    // Far fewer may be under way than fall due during the stop: the others wait to be written.
    let (rate, each) = (format!("--rate_iops={RATE}"), format!("--number_ios={}", MESSAGES / 2));
    let open = &server.load_with_a_stop(&[&rate, &each, "--iodepth=8", "--runtime=60"])["write"];
    let (lat, slat) = (&open["lat_ns"], &open["slat_ns"]);
    assert!(lat["max"].as_f64().unwrap() / 1e6 >= stop - 1.0, "who fell due first waited for all of it: {lat}");
    assert_eq!(open["total_ios"], MESSAGES, "nobody was left out: {open}");
    // A tenth of all fell due while the server stood still, and waited evenly between all of it and nothing: the 95th
    // percentile is half of it, the 92nd a fifth.
    assert!(percentile(lat, "95.000000") >= stop * 0.45, "{lat}");
    assert!(slat["max"].as_f64().unwrap() / 1e6 >= stop * 0.9, "they waited to be written: {slat}");
    let waited = |lat: &Value| lat["mean"].as_f64().unwrap() * lat["N"].as_f64().unwrap() / 1e6;
    assert!(waited(lat) >= RATE as f64 * STOP.as_secs_f64() * stop * 0.45, "{lat}");
    // In a closed loop two messages see the stop, whatever it lasts: no more than two wait at any time.
    let closed = server.load_with_a_stop(&["--iodepth=1", "--runtime=3"]);
    let lat = &closed["write"]["lat_ns"];
    assert!(lat["max"].as_f64().unwrap() / 1e6 >= stop * 0.5, "{lat}");
    assert!(waited(lat) <= 2.0 * (closed["job_runtime"].as_f64().unwrap() + 1.0), "{closed}");
}
