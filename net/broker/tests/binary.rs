//! Goal: the binary keeps the promises of its command line. Method: the real process, started as a user
//! would, on loopback, free ports and a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What the machine may take at worst; a broker is usually ready within a second.
const READY_MAX: Duration = Duration::from_secs(60);
/// What the issue allows.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Small files, which do not fill the disk.
const SMALL: [&str; 8] = [
    "--set",
    "log.segment_bytes=16MiB",
    "--set",
    "log.prepare_bytes=16MiB",
    "--set",
    "log.disk_free_percent_min=0",
    "--set",
    "log.disk_free_bytes_min=64MiB",
];
/// A stop of its own accord is not what most tests are about: a slow disk gets longer.
const UNHURRIED: [&str; 2] = ["--set", "process.stop_timeout_ms=50000"];

fn ringmq(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringmq"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A process that is ready. It is killed when the test ends, whichever way.
struct Running {
    child: Child,
    ready: String,
}

impl Running {
    fn start(arguments: &[&str], log: &Path) -> Running {
        let stderr = std::fs::File::create(log).unwrap();
        let mut child = ringmq(arguments).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (say, hear) = mpsc::channel();
        std::thread::spawn(move || say.send(lines.next()));
        let line = hear.recv_timeout(READY_MAX).ok().flatten();
        let Some(Ok(ready)) = line else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("not ready; its log:\n{}", std::fs::read_to_string(log).unwrap());
        };
        Running { child, ready }
    }

    fn dev(dir: &Path, more: &[&str]) -> Running {
        let data = dir.join("data");
        let base = ["dev", "--data", data.to_str().unwrap(), "--namesrv-port", "0", "--broker-port", "0"];
        let arguments: Vec<&str> = base.into_iter().chain(SMALL).chain(more.iter().copied()).collect();
        Running::start(&arguments, &dir.join("log"))
    }

    /// The address behind `name=` in the ready line.
    fn address(&self, name: &str) -> SocketAddr {
        let word = self.ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        word.unwrap_or_else(|| panic!("{name} in {}", self.ready)).parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Asks it to stop and returns its exit code. `None`: a signal ended it, or nothing did.
    fn stop(self, signal: Signal) -> Option<i32> {
        self.stop_within(signal, READY_MAX)
    }

    fn stop_within(mut self, signal: Signal, limit: Duration) -> Option<i32> {
        self.signal(signal);
        let mut took = Duration::ZERO;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            if took >= limit {
                return None;
            }
            // There is no event for the end of a child. A machine that stands still counts as one step.
            let before = Instant::now();
            std::thread::sleep(Duration::from_millis(2));
            took += before.elapsed().min(Duration::from_millis(100));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Stopped already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs something that should end by itself.
fn fails(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = ringmq(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&stderr).into_owned();
    assert!(stdout.is_empty(), "stdout is for the ready line: {}", String::from_utf8_lossy(&stdout));
    (status.code(), text)
}

#[test]
fn dev_says_ready_serves_and_stops_with_zero() {
    for (cores, flush, signal) in [("1", "sync", Signal::TERM), ("2", "async", Signal::INT)] {
        let dir = tempfile::tempdir().unwrap();
        // A stop waits for the disk, which others may keep busy: some may take longer.
        let stops_in_time = |_: &i32| {
            let running = Running::dev(dir.path(), &["--cores", cores, "--flush", flush]);
            for name in ["namesrv", "broker"] {
                let address = running.address(name);
                assert!(address.ip().is_loopback(), "{name} is at {address}");
                TcpStream::connect(address).unwrap();
            }
            let port = running.address("broker").port();
            TcpStream::connect(("127.0.0.1", port - 2)).expect("the fast port");
            // With 1 it says that it had no time.
            match running.stop_within(signal, STOP_MAX) {
                Some(0) => true,
                Some(1) => false,
                other => panic!("it ended with {other:?}"),
            }
        };
        assert_eq!((0..6).filter(stops_in_time).take(2).count(), 2, "{cores} cores, {flush}");
    }
}

#[test]
fn a_second_process_is_told_whose_directory_and_port_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::dev(dir.path(), &[]);
    let data = dir.path().join("data");
    // The same ports too: what counts is the directory.
    let ports = [running.address("namesrv").port().to_string(), running.address("broker").port().to_string()];
    let arguments = ["dev", "--data", data.to_str().unwrap(), "--namesrv-port", &ports[0], "--broker-port", &ports[1]];
    let (code, text) = fails(&arguments);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("in use by process {}", running.child.id())), "{text}");
    for (option, name) in [("--broker-port", "broker"), ("--namesrv-port", "namesrv")] {
        let other = tempfile::tempdir().unwrap();
        let port = running.address(name).port().to_string();
        let rest = if name == "broker" { "--namesrv-port" } else { "--broker-port" };
        let (code, text) = fails(&["dev", "--data", other.path().to_str().unwrap(), option, &port, rest, "0"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("in use") && text.contains(&format!(":{port}")), "{text}");
    }
}

#[test]
fn a_restart_right_after_kill_9_waits_for_what_the_dead_one_held() {
    let dir = tempfile::tempdir().unwrap();
    let first = Running::dev(dir.path(), &[]);
    let (namesrv, broker) = (first.address("namesrv").port().to_string(), first.address("broker").port().to_string());
    first.signal(Signal::KILL);
    let data = dir.path().join("data");
    let base = ["dev", "--data", data.to_str().unwrap(), "--namesrv-port", &namesrv, "--broker-port", &broker];
    let second = Running::start(&[&base[..], &SMALL, &UNHURRIED].concat(), &dir.path().join("log2"));
    assert_eq!(second.address("broker").port().to_string(), broker);
    assert_eq!(second.stop(Signal::TERM), Some(0));
}

#[test]
fn the_fast_port_is_missed_with_a_warning_only() {
    let dir = tempfile::tempdir().unwrap();
    let (port, _taken) = loop {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port() + 2;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            break (port, taken);
        }
    };
    let running = Running::dev(dir.path(), &[&["--set", &format!("broker.port={port}")], &UNHURRIED[..]].concat());
    assert_eq!(running.address("broker").port(), port);
    assert_eq!(running.stop(Signal::TERM), Some(0));
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.contains(&format!("the fast port {} is not served", port - 2)), "{log}");
}

#[test]
fn broker_and_namesrv_run_apart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringmq.toml");
    let data = dir.path().join("data");
    let text = format!(
        "[namesrv]\nlisten = '127.0.0.1'\nport = 0\nkv_path = '{0}/kv.json'\n\
         [broker]\nlisten = '127.0.0.1'\nport = 0\n[log]\ndir = '{0}'\nsegment_bytes = '16MiB'\nprepare_bytes = '16MiB'\n\
         disk_free_percent_min = 0\ndisk_free_bytes_min = '64MiB'\n[process]\nstop_timeout_ms = 50000\n",
        data.display()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let namesrv = Running::start(&["namesrv", "-c", file], &dir.path().join("log-namesrv"));
    assert!(namesrv.ready.starts_with("ready namesrv=127.0.0.1:"), "{}", namesrv.ready);
    let server = format!("broker.namesrv={}", namesrv.address("namesrv"));
    let log = dir.path().join("log-broker");
    let run = |_: i32| {
        let broker = Running::start(&["broker", "-c", file, "--set", &server], &log);
        assert!(broker.ready.starts_with("ready broker=127.0.0.1:"), "{}", broker.ready);
        assert_eq!(broker.stop(Signal::TERM), Some(0));
        std::fs::read_to_string(&log).unwrap()
    };
    // A stop waits a moment only for the NameServer's answer.
    let log = (0..3).map(run).find(|log| log.contains("unregistered")).expect("one of three is answered in time");
    for words in ["registered", "unregistered", "[log]", "# file, line"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!(namesrv.stop(Signal::TERM), Some(0));
}

#[test]
fn a_wrong_configuration_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    let path = file.to_str().unwrap();
    let table = [
        ("[log]\nflash = 1\n", "line 2: unknown key `log.flash`"),
        ("[log]\n\ninflight_batches = 33\n", "line 3: log.inflight_batches = \"33\" must be 1 to 32"),
        ("[limits]\nconnections = 1000000\n", "limits.connections must be below engine.ring_slots"),
        ("log = ", "line 1"),
    ];
    for (text, words) in table {
        std::fs::write(&file, text).unwrap();
        for command in [&["check-config", path][..], &["broker", "-c", path], &["namesrv", "-c", path]] {
            let (code, text) = fails(command);
            assert_eq!(code, Some(2), "{command:?}: {text}");
            assert!(text.contains(words) && text.contains("bad.toml") | text.contains("limits"), "{command:?}: {text}");
        }
    }
    std::fs::write(&file, "[log]\nflush = 'async'\n").unwrap();
    let good = ringmq(&["check-config", path]).output().unwrap();
    assert!(good.status.success());
    let text = String::from_utf8(good.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("flush = \"async\"") && line.ends_with("# file, line 2")),
        "{text}"
    );
    let keys = ringmq(&["check-config", "--keys"]).output().unwrap();
    assert!(String::from_utf8(keys.stdout).unwrap().contains("#flush_interval_ms = 500"));
}

#[test]
fn cpus_that_are_not_ours_and_unreadable_stores_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let base = ["dev", "--data", data, "--namesrv-port", "0", "--broker-port", "0"];
    let (code, text) = fails(&[&base[..], &["--cpus", "1000"]].concat());
    assert!(code == Some(1) && text.contains("engine.cpus") && text.contains("1000"), "{text}");
    let (code, text) = fails(
        &[
            &base[..],
            &[
                "--set",
                "engine.partitions_per_core=256",
                "--set",
                "log.segment_bytes=4GiB",
                "--set",
                "log.tail_bytes=2GiB",
            ],
        ]
        .concat(),
    );
    assert!(code == Some(1) && text.contains("log.segment_bytes"), "{text}");
    assert!(!dir.path().join("store.toml").exists(), "a start that failed fixed the number of partitions");
    std::fs::write(dir.path().join("store.toml"), "format = 9\npartitions = 1\n").unwrap();
    let (code, text) = fails(&base);
    assert!(code == Some(1) && text.contains("format 9") && text.contains("log.dir"), "{text}");
}

#[test]
fn help_and_version_are_there_for_each_command() {
    for command in [&[][..], &["dev"], &["broker"], &["namesrv"], &["check-config"]] {
        for option in ["--help", "--version"] {
            let mut shown = ringmq(&[command, &[option]].concat());
            let mut child = shown.stdout(Stdio::piped()).spawn().unwrap();
            let mut text = String::new();
            child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
            assert!(child.wait().unwrap().success(), "{command:?} {option}");
            let words = if option == "--help" { "Usage: ringmq" } else { env!("CARGO_PKG_VERSION") };
            assert!(text.contains(words), "{command:?} {option}: {text}");
        }
    }
}
