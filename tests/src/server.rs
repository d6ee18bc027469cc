//! The real binary, started as a user would, on loopback, free ports and a directory of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::PATIENCE;
use crate::client::Client;

/// The most that one look at a process that stops counts for.
const STEP_MAX: Duration = Duration::from_millis(100);
/// A stop of its own accord is not what most tests are about: a slow machine gets longer.
const UNHURRIED: [&str; 2] = ["--set", "process.stop_timeout_ms=50000"];

/// Small files, so that tests roll them and a start does not write many zeros.
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

/// Where `ringmq` is: `RINGMQ_BIN`, or built beside this test, in its profile.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("RINGMQ_BIN") {
            return path.into();
        }
        let own = std::env::current_exe().expect("the kernel knows what it runs");
        // TARGET/PROFILE/deps/TEST
        let profile = own.ancestors().nth(2).expect("cargo's layout");
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
        build.args(["build", "--quiet", "--package", "broker", "--bin", "ringmq", "--target-dir"]);
        build.arg(profile.parent().expect("cargo's layout")).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let built = build.status().expect("cargo runs");
        assert!(built.success(), "ringmq cannot be built");
        profile.join("ringmq")
    })
}

/// A command line of the binary.
pub fn ringmq(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A process that did not start: what it ended with, and what it said on stderr.
#[derive(Debug)]
pub struct Refusal {
    /// `None`: a signal ended it.
    pub code: Option<i32>,
    /// Its log.
    pub text: String,
}

/// Runs a command line that must fail by itself, and say nothing on stdout.
pub fn refused(arguments: &[&str]) -> Refusal {
    let output = ringmq(arguments).output().expect("the binary runs");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.is_empty(), "stdout is for the ready line: {stdout}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} was taken: {text}");
    Refusal { code: output.status.code(), text }
}

/// NameServer and broker in one process that is ready. Killed when dropped; a panic in its log fails the
/// test.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where clients come.
    pub address: SocketAddr,
    /// The NameServer.
    pub namesrv: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts `ringmq dev` with its data in `home`, and waits until it is ready.
    pub fn start(home: &Path, more: &[&str]) -> Server {
        Server::try_start(home, more).unwrap_or_else(|refusal| panic!("it did not start: {}", refusal.text))
    }

    /// Starts it with one core or more.
    pub fn with_cores(home: &Path, cores: &str, more: &[&str]) -> Server {
        Server::start(home, &[&["--cores", cores], more].concat())
    }

    /// As `start`, for what may be refused.
    pub fn try_start(home: &Path, more: &[&str]) -> Result<Server, Refusal> {
        let data = home.join("data");
        let data = data.to_str().expect("temporary directories have plain names");
        let mut arguments = vec!["dev", "--data", data];
        for port in ["--namesrv-port", "--broker-port"] {
            if !more.contains(&port) {
                arguments.extend([port, "0"]);
            }
        }
        arguments.extend(SMALL);
        if !more.iter().any(|word| word.starts_with("process.stop_timeout_ms")) {
            arguments.extend(UNHURRIED);
        }
        arguments.extend(more);
        Server::spawn(ringmq(&arguments), home)
    }

    /// Starts a command that says `ready namesrv=… broker=…`; its log goes to a new file in `home`.
    pub fn spawn(mut command: Command, home: &Path) -> Result<Server, Refusal> {
        let log = (0..).map(|n| home.join(format!("log-{n}"))).find(|path| !path.exists()).expect("some name is free");
        let stderr = File::create(&log).expect("the directory is ours");
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the binary runs");
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let (say, hear) = mpsc::channel();
        std::thread::spawn(move || say.send(lines.next()));
        let ready = match hear.recv_timeout(PATIENCE) {
            Ok(Some(Ok(ready))) => ready,
            heard => {
                if heard.is_err() {
                    // It neither says anything nor ends.
                    child.kill().expect("it runs");
                }
                let code = child.wait().expect("it is our child").code();
                return Err(Refusal { code, text: read_log(&log) });
            }
        };
        let address = |name: &str| {
            let word = ready.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.unwrap_or_else(|| panic!("{name} in {ready:?}")).parse().expect("an address")
        };
        Ok(Server { address: address("broker"), namesrv: address("namesrv"), child, log })
    }

    /// A new connection to the broker.
    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// The fast port's address.
    pub fn fast(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), self.address.port() - 2)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// Memory that it has in RAM now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// `kill -9`, and waits until the kernel has taken it away.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is our child");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Sends SIGTERM: it must end with 0.
    pub fn stop(self) {
        self.stop_within(PATIENCE);
    }

    /// Sends SIGTERM: it must end with 0 in this time.
    pub fn stop_within(self, limit: Duration) {
        self.try_stop_within(limit).unwrap_or_else(|why| panic!("{why}"));
    }

    /// Sends SIGTERM. `Err`: it did not end with 0 in this time.
    pub fn try_stop_within(mut self, limit: Duration) -> Result<(), String> {
        self.signal(Signal::TERM);
        let mut took = Duration::ZERO;
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if took >= limit {
                return Err(format!("it has not stopped after {took:?}: {}", self.log()));
            }
            // There is no event for the end of a child. A machine that stands still counts as one step.
            let before = Instant::now();
            std::thread::sleep(Duration::from_millis(2));
            took += before.elapsed().min(STEP_MAX);
        };
        if status.success() { Ok(()) } else { Err(format!("{status} after {took:?}: {}", self.log())) }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our child")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // By its own number, and only while it is our child. It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            // Events begin with their date; the configuration, printed before them, does not.
            let events = log.lines().filter(|line| line.starts_with('2') || line.contains("panicked"));
            let tail: Vec<&str> = events.rev().take(40).collect();
            println!("the end of its log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        } else {
            assert!(!log.contains("panicked"), "the server panicked: {log}");
        }
    }
}

fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
