//! Goal: a message never costs more than it did, without anybody noticing. Method: a whole core over a kernel
//! that does everything at once (`bench::quiet`) counts allocations exactly and, under valgrind, instructions;
//! a whole core over the real ring, with the load tool beside it, counts its system calls.
//!
//! Each figure has a bound a little above what was measured; a bound that can be lowered should be.
//! `REGRESS_WHERE=1` writes `dhat-heap.json` with the places that allocate (view it with dh_view).

use bench::inside::{Running, Still};
use bench::requests::Cursor;
use bench::{jobfile::Sections, options::Job};
use protocol::frame;
use std::process::{Command as Process, Stdio};
use std::sync::{Mutex, MutexGuard};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// Allocations are counted for the process, so only one test counts at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Connections and requests outstanding on each.
const CONNECTIONS: usize = 16;
const WINDOW: usize = 32;
/// Messages of one pull.
const PULLED: u32 = 32;

/// Most that a message may cost: measured, and some percent more.
const SEND_ALLOCATIONS: f64 = 0.0135;
const PULL_ALLOCATIONS: f64 = 0.1;
/// On the real ring receives and sends have owners too. A faster server sends fewer answers at once, so this one
/// has more room.
const RING_ALLOCATIONS: f64 = 0.2;
const SYSTEM_CALLS: f64 = 0.05;
/// Instructions depend on the profile: these are of `dev`, which tests run in. Others are only told.
/// Some 400 of them look for what makes a message more than a plain one: light queues, priorities, timers to delete.
const SEND_INSTRUCTIONS: f64 = 21_300.0;
// Of these some 20 fetch a message's lines into the cache, which makes a pull faster.
const PULL_INSTRUCTIONS: f64 = 1_600.0;

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has said so already.
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn job(text: &str) -> Job {
    let mut sections = Sections::default();
    sections.read("regress", &format!("[a]\nbroker=127.0.0.1:1\n{text}")).unwrap();
    Job::new(&sections.finish().unwrap()[0]).unwrap()
}

/// Runs rounds of sends or pulls; returns the messages of one round. `counted` is called before those that
/// count and after them.
fn load(pulls: bool, warm: usize, rounds: usize, mut counted: impl FnMut()) -> u64 {
    let mut bench = Still::new(CONNECTIONS);
    let sends = bench.windows(&job(&format!("numjobs={CONNECTIONS}\niodepth={WINDOW}")), &[]);
    (0..if pulls { 16 } else { warm }).for_each(|_| bench.round(&sends));
    let (windows, messages) = if pulls {
        let read = |number: usize| Cursor { queue: number as u32 % 8, first: 100, end: 100 + i64::from(PULLED) };
        let cursors: Vec<_> = (0..CONNECTIONS).map(read).collect();
        let windows = bench.windows(&job(&format!("rw=consume\nnumjobs={CONNECTIONS}\nbatch={PULLED}")), &cursors);
        let answer = bench.ask(windows[0].to_vec());
        let body = frame::split(&answer).unwrap().2;
        let count = protocol::message::records(&answer[body]).filter(Result::is_ok).count();
        assert_eq!(count, PULLED as usize, "a pull gives what it asks for");
        (0..warm).for_each(|_| bench.round(&windows));
        (windows, CONNECTIONS as u64 * u64::from(PULLED))
    } else {
        (sends, (CONNECTIONS * WINDOW) as u64)
    };
    counted();
    (0..rounds).for_each(|_| bench.round(&windows));
    counted();
    messages
}

#[test]
fn a_message_allocates_nothing_or_little() {
    let _one = alone();
    let profiler = dhat::Profiler::builder();
    let profiler = if std::env::var_os("REGRESS_WHERE").is_some() { profiler } else { profiler.testing() };
    let _profiler = profiler.build();
    const ROUNDS: usize = 100;
    let mut beyond = Vec::new();
    for (what, pulls, bound) in [("send", false, SEND_ALLOCATIONS), ("pull", true, PULL_ALLOCATIONS)] {
        let mut counts = Vec::with_capacity(2);
        let messages = load(pulls, 200, ROUNDS, || counts.push(dhat::HeapStats::get().total_blocks));
        let each = (counts[1] - counts[0]) as f64 / (messages * ROUNDS as u64) as f64;
        tell(&mut beyond, &format!("{what}: {each:.4} allocations a message"), each, bound);
    }
    assert!(beyond.is_empty(), "{beyond:?}");
}

/// Tells a figure, and keeps it if it is beyond its bound: all are told before a test fails.
fn tell(beyond: &mut Vec<String>, text: &str, value: f64, bound: f64) {
    say(&format!("{text}, at most {bound}"));
    if value > bound {
        beyond.push(format!("{text}, more than {bound}"));
    }
}

/// What valgrind runs: it does nothing unless it is told how much.
#[test]
fn child() {
    let Ok(text) = std::env::var("REGRESS_LOAD") else { return };
    let (what, rounds) = text.split_once(' ').unwrap();
    load(what == "pull", 20, rounds.parse().unwrap(), || {});
}

#[test]
fn a_message_costs_its_instructions() {
    if Process::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return say("skipped: there is no valgrind to count instructions with");
    }
    let mut beyond = Vec::new();
    for (what, bound) in [("send", SEND_INSTRUCTIONS), ("pull", PULL_INSTRUCTIONS)] {
        // The difference of two runs is free of everything that happens once.
        let [few, many] = [20, 60].map(|rounds| instructions(what, rounds));
        let messages = if what == "pull" { CONNECTIONS * PULLED as usize } else { CONNECTIONS * WINDOW };
        let each = (many - few) as f64 / (40 * messages) as f64;
        let bound = if cfg!(debug_assertions) { bound } else { f64::INFINITY };
        tell(&mut beyond, &format!("{what}: {each:.0} instructions a message"), each, bound);
    }
    assert!(beyond.is_empty(), "{beyond:?}");
}

fn instructions(what: &str, rounds: usize) -> u64 {
    let output = Process::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env("REGRESS_LOAD", format!("{what} {rounds}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
    let line = text.lines().find(|line| line.contains("Collected : ")).unwrap_or_else(|| panic!("{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn system_calls_are_shared_by_many_messages() {
    let _one = alone();
    let home = tempfile::tempdir().unwrap();
    let server = Running::start(&home.path().join("log")).unwrap();
    let address = server.address;
    let load = |seconds: &str| {
        let output = Process::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(["--broker", &address.to_string(), "--seconds", seconds, "--points", "16x32", "send"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(line["errors"], 0, "{line}");
        line["per_s"].as_f64().unwrap() * seconds.parse::<f64>().unwrap()
    };
    load("1");
    let _profiler = dhat::Profiler::builder().testing().build();
    let (calls, blocks) = (server.enters(), dhat::HeapStats::get().total_blocks);
    let messages = load("2");
    let calls = (server.enters() - calls) as f64 / messages;
    let blocks = (dhat::HeapStats::get().total_blocks - blocks) as f64 / messages;
    say(&format!("16x32 on the real ring: {calls:.4} system calls and {blocks:.4} allocations a message"));
    assert!(blocks <= RING_ALLOCATIONS, "{blocks} allocations a message on the ring, more than {RING_ALLOCATIONS}");
    assert!(calls <= SYSTEM_CALLS, "{calls} system calls a message, more than {}", SYSTEM_CALLS);
}

fn say(text: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}
