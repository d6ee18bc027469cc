//! Goal: fio's tools read what the load tool writes. Method: short jobs on files in a temporary directory, and
//! the real fio-plot (from PyPI, in a virtual environment below the target directory) draws their JSON and logs.
//! Where Python, pip or the network is missing, it says so and passes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What the virtual environment holds.
const FIO_PLOT: &str = "fio-plot==1.1.21";

#[test]
fn fio_plot_draws_json_and_logs() {
    let fio_plot = match install() {
        Ok(path) => path,
        Err(why) => {
            let text = format!("skipped: fio-plot cannot be installed: {why}\n");
            std::io::stderr().write_all(text.as_bytes()).expect("stderr");
            return;
        }
    };
    let home = tempfile::tempdir().expect("a temporary directory");
    for depth in [1, 2, 4] {
        let name = format!("write-iodepth-{depth}-numjobs-1");
        let output = run(Command::new(env!("CARGO_BIN_EXE_ringmq-bench")).current_dir(home.path()).args([
            &format!("--output={name}.json"),
            "--output-format=json",
            &format!("--name={name}"),
            "--ioengine=ring",
            "--rw=write",
            "--size=16m",
            "--runtime=600ms",
            "--log_avg_msec=100",
            &format!("--iodepth={depth}"),
            &format!("--write_iops_log={name}"),
            &format!("--write_lat_log={name}"),
            &format!("--write_bw_log={name}"),
        ]));
        if String::from_utf8_lossy(&output.stderr).contains("Invalid argument") {
            std::io::stderr().write_all(b"skipped: the temporary directory has no O_DIRECT\n").expect("stderr");
            return;
        }
        assert!(output.status.success(), "{output:?}");
    }
    // Bars of rates and latencies by depth, in two and three dimensions; a histogram; lines of the logs.
    let charts: [(&str, &[&str]); 6] = [
        ("bars", &["-l", "-d", "1", "2", "4", "-n", "1"]),
        ("relief", &["-L", "-t", "iops", "-d", "1", "2", "4", "-n", "1"]),
        ("histogram", &["-H", "-d", "4", "-n", "1"]),
        ("iops", &["-g", "-t", "iops", "-d", "1", "4", "-n", "1"]),
        ("latency", &["-g", "-t", "lat", "-d", "1", "4", "-n", "1"]),
        ("bandwidth", &["-g", "-t", "bw", "-d", "1", "4", "-n", "1"]),
    ];
    for (name, arguments) in charts {
        let file = home.path().join(format!("{name}.png"));
        let mut command = Command::new(&fio_plot);
        command.current_dir(home.path()).env("MPLCONFIGDIR", home.path()).env("MPLBACKEND", "Agg");
        command.args(["-i", ".", "-T", name, "-s", "bench", "-r", "write", "-o"]).arg(&file).args(arguments);
        let output = run(&mut command);
        let picture = std::fs::read(&file).unwrap_or_default();
        assert!(output.status.success() && picture.starts_with(b"\x89PNG"), "{name}: {output:?}");
        assert!(picture.len() > 10_000, "{name}: an empty picture of {} bytes", picture.len());
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Where fio-plot is; it is installed once for a target directory.
fn install() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fio-plot");
    let (program, mark) = (place.join("bin/fio-plot"), place.join(FIO_PLOT));
    if mark.exists() && program.exists() {
        return Ok(program);
    }
    let place_text = place.to_str().ok_or("the target directory has no plain name")?;
    done(Command::new("python3").args(["-m", "venv", "--clear", place_text]))?;
    let quiet = ["install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20", FIO_PLOT];
    done(Command::new(place.join("bin/pip")).args(quiet))?;
    std::fs::write(mark, "").map_err(|error| error.to_string())?;
    Ok(program)
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said.lines().last().unwrap_or("it failed and said nothing").to_owned())
}
