//! Goal: `bench/compare` and `bench/restart` work. Method: each runs once, as short as it can be, with the binaries of this
//! profile and without Java. The figures mean nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where `ringmq-bench` is, and `ringmq`, which is built if `RINGMQ_BIN` does not say that it is there.
fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        // TARGET/PROFILE/ringmq-bench
        let profile = Path::new(env!("CARGO_BIN_EXE_ringmq-bench")).parent().expect("cargo's layout");
        if std::env::var_os("RINGMQ_BIN").is_some_and(|path| Path::new(&path) == profile.join("ringmq")) {
            return profile.to_owned();
        }
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "broker", "--bin", "ringmq", "--target-dir"]);
        build.arg(profile.parent().expect("cargo's layout")).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo runs").success(), "ringmq cannot be built");
        profile.to_owned()
    })
}

/// What a script prints. `None`: the host has one CPU, and they want one for the load.
fn run(script: &str, home: &Path, arguments: &[&str]) -> Option<String> {
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprint(&format!("skipped: {script} pins server and load to CPUs 0 and 1"));
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(script)
        .arg(home)
        .args(arguments)
        .envs([("QUICK", binaries().to_str().unwrap()), ("JAVA", "0"), ("POINTS", "2x8"), ("STARTS", "1")])
        .env_remove("PROBE")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{errors}");
    Some(told.into_owned())
}

#[test]
fn compare_measures_the_limit_and_the_broker_and_tells_both() {
    let home = tempfile::tempdir().unwrap();
    let Some(told) = run("compare", home.path(), &["1", "1"]) else { return };
    assert!(told.contains("| load | limit | ringmq-sync | ringmq-async | of the limit |"), "{told}");
    let row = told.lines().find(|line| line.starts_with("| send 2x8 |")).unwrap_or_else(|| panic!("{told}"));
    let cells: Vec<&str> = row.split('|').skip(2).map(str::trim).collect();
    assert!(cells[..3].iter().all(|rate| rate.replace(',', "").parse::<u64>().unwrap() > 0), "{told}");
    assert!(cells[3].ends_with(" %") && told.contains("| pull 8x1 |"), "{told}");
    let mut left: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["compare.lines", "compare.md", "compare.svg"]);
    assert_eq!(std::fs::read_to_string(home.path().join("compare.md")).unwrap(), told);
}

#[test]
fn restart_kills_and_starts_and_sends() {
    let home = tempfile::tempdir().unwrap();
    let Some(told) = run("restart", home.path(), &["1", "16"]) else { return };
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("filled: ") && lines[0].ends_with(" 16 queues"), "{told}");
    assert!(lines[1].starts_with("ready ") && lines[1].contains(" ms, first send "), "{told}");
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "nothing stays");
}

fn eprint(text: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{text}\n").as_bytes()).unwrap();
}
