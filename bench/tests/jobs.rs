//! Goal: jobs do what their files say. Method: the tool's binary, as a user would start it, against a core on a
//! real ring, the engine and plain files; its JSON tells what happened.

use bench::inside::Running;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// How often is tried what a machine that stands still for a moment spoils.
const TRIES: usize = 20;

fn tool(home: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringmq-bench")).current_dir(home).args(arguments).output().expect("it runs")
}

/// Runs a job file and returns its jobs' reports.
fn run(home: &Path, text: &str) -> Vec<Value> {
    std::fs::write(home.join("job.fio"), text).unwrap();
    let output = tool(home, &["--output-format=json", "job.fio"]);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let jobs = document["jobs"].as_array().unwrap().clone();
    for job in &jobs {
        assert_eq!((&job["error"], &job["ringmq"]["refused"]), (&0.into(), &0.into()), "{job}");
    }
    jobs
}

fn count(job: &Value, way: &str) -> u64 {
    job[way]["total_ios"].as_u64().unwrap()
}

fn requests(job: &Value) -> u64 {
    job["ringmq"]["requests"].as_u64().unwrap()
}

#[test]
fn a_broker_is_loaded_in_every_way() {
    let home = tempfile::tempdir().unwrap();
    let server = Running::start(&home.path().join("log")).unwrap();
    let global = format!("[global]\nbroker={}\nruntime=60\n", server.address);
    // So many and no more, in singles, batches, and over many queues.
    let jobs = run(
        home.path(),
        &format!(
            "{global}[plain]\nnumjobs=4\niodepth=8\nnumber_ios=500\ngroup_reporting\n\
             [batch]\nstonewall\nbatch=16\nbs=100-2k\nnumber_ios=800\n\
             [queues]\nstonewall\ntopic=Many\ntopics=3\nqueues=50\nnumber_ios=300\niodepth=7\n"
        ),
    );
    let counts: Vec<_> = jobs.iter().map(|job| (count(job, "write"), count(job, "read"))).collect();
    assert_eq!(counts, [(2000, 0), (800, 0), (300, 0)]);
    assert_eq!(jobs[0]["write"]["io_bytes"], 2000 * 1024);
    assert_eq!(jobs[1]["ringmq"]["requests"], 50);
    // What was sent is read: 2,800 messages in eight queues, each once, from the oldest on.
    let jobs = run(home.path(), &format!("{global}log_avg_msec=100\n[all]\nrw=coldread\nnumjobs=3\nnumber_ios=640\n"));
    assert_eq!(jobs.len(), 3, "a report for each connection");
    assert!(jobs.iter().all(|job| requests(job) == 20 && count(job, "read") >= 300), "{jobs:?}");
    let grouped = format!("{global}iodepth=4\nnumjobs=2\ngroup_reporting\n");
    let jobs = run(home.path(), &format!("{grouped}[tail]\nrw=consume\nnumber_ios=1280\n"));
    assert!(requests(&jobs[0]) == 80 && count(&jobs[0], "read") > 1000, "{jobs:?}");
    let jobs = run(home.path(), &format!("{grouped}[both]\nrw=mixed\nnumber_ios=100\n"));
    assert!(count(&jobs[0], "read") > 10 && count(&jobs[0], "write") > 10, "{jobs:?}");
    // An open loop keeps its rate, two jobs beside each other.
    let mut took_ms = Vec::new();
    for _ in 0..TRIES {
        let jobs = run(
            home.path(),
            &format!("{grouped}iodepth=64\nrate_iops=500\nnumber_ios=250\n[one]\n[two]\nrw=consume\nbatch=5\n"),
        );
        for (job, way) in jobs.iter().zip(["write", "read"]) {
            assert_eq!(count(job, way), 500, "{job}");
            assert!(job[way]["lat_ns"]["mean"].as_f64() >= job[way]["clat_ns"]["mean"].as_f64(), "{job}");
        }
        took_ms = jobs.iter().map(|job| job["job_runtime"].as_u64().unwrap()).collect();
        assert!(took_ms.iter().all(|ms| *ms >= 980), "{took_ms:?}");
        if took_ms.iter().all(|ms| *ms < 1_250) {
            return;
        }
    }
    panic!("500 messages at 500 a second took {took_ms:?} ms in {TRIES} tries");
}

#[test]
fn what_needs_more_than_one_request_is_counted_once() {
    let home = tempfile::tempdir().unwrap();
    let server = Running::start(&home.path().join("log")).unwrap();
    let global = format!("[global]\nbroker={}\nruntime=60\nqueues=2\ngroup_reporting\nstonewall\n", server.address);
    let jobs = run(
        home.path(),
        &format!(
            "{global}[half]\ntopic=T\ntransaction\nnumjobs=2\niodepth=8\nnumber_ios=100\n\
             [timer]\ntopic=Later\ndelay=1ms-5ms\nnumber_ios=50\niodepth=5\n\
             [level]\ntopic=Later\ndelay_level=1\nnumber_ios=50\niodepth=5\n"
        ),
    );
    let counts: Vec<_> = jobs.iter().map(|job| count(job, "write")).collect();
    assert_eq!(counts, [200, 50, 50]);
    // What was committed is there, in both queues, and pops take each of it once, however long that takes.
    run(home.path(), &format!("{global}[more]\ntopic=U\nnumber_ios=40\n"));
    for (job, messages) in [("topic=T\n", 200), ("topic=U\nack=each\n", 40)] {
        let pops = format!("{global}[pops]\n{job}rw=pop\nnumjobs=2\niodepth=2\nbatch=7\nruntime=1\n");
        let mut popped = 0;
        for _ in 0..TRIES {
            popped += count(&run(home.path(), &pops)[0], "read");
            if popped >= messages {
                break;
            }
        }
        popped += count(&run(home.path(), &pops)[0], "read");
        assert_eq!(popped, messages);
    }
}

#[test]
fn the_engine_and_plain_files_are_loaded() {
    let home = tempfile::tempdir().unwrap();
    let jobs = run(
        home.path(),
        "[global]\nruntime=60\nlog_avg_msec=50\ngroup_reporting\nstonewall\n\
         [append]\nioengine=engine\nsize=16m\nnumjobs=2\niodepth=16\nnumber_ios=500\n\
         [tail]\nioengine=engine\nsize=16m\nrw=consume\nnumber_ios=1000\n\
         [cold]\nioengine=engine\nsize=16m\nrw=coldread\nnumber_ios=1000\n\
         [write]\nioengine=ring\nsize=16m\niodepth=4\nnumjobs=2\nunlink=1\nnumber_ios=10\n\
         [read]\nioengine=ring\nsize=16m\nrw=read\nbs=64k\nrate_iops=100\nnumber_ios=31\nwrite_iops_log=read\n",
    );
    let counts: Vec<_> = jobs.iter().map(|job| (count(job, "read"), count(job, "write"))).collect();
    assert!(counts[1].0 > 32 && counts[2].0 > 32, "{counts:?}");
    assert_eq!((counts[0], counts[3], counts[4]), ((0, 1000), (0, 20), (31, 0)));
    assert!(jobs[4]["job_runtime"].as_u64().unwrap() >= 295, "its rate is not exceeded: {}", jobs[4]);
    assert!(!home.path().join("write.0").exists() && home.path().join("read.0").exists());
    // The job's number is its place among all.
    let log = std::fs::read_to_string(home.path().join("read_iops.5.log")).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(", ").collect()).collect();
    assert!(
        lines.len() >= 5 && lines.iter().all(|line| line.len() == 6 && line[2] == "0" && line[3] == "65536"),
        "{log}"
    );
}

#[test]
fn mistakes_are_said_in_one_line() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("bad.fio"), "[a]\nbs=1k\niodepht=4\n").unwrap();
    let table: [(&[&str], &str); 5] = [
        (&["bad.fio"], "ringmq-bench: bad.fio:3: unknown option `iodepht`; `iodepth`?\n"),
        (&["none.fio"], "ringmq-bench: none.fio: No such file or directory (os error 2)\n"),
        (&["--name=a", "--numjobs=0"], "ringmq-bench: command line: numjobs=0: 0 is not within 1 and 10000\n"),
        (
            &["--output-format=xml", "--name=a"],
            "ringmq-bench: --output-format=xml: it is normal, json, or normal,json\n",
        ),
        (&[], "ringmq-bench: there is no job: give a job file or --name=NAME; see --help\n"),
    ];
    for (arguments, text) in table {
        let output = tool(home.path(), arguments);
        assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(1), text));
    }
    let refused = tool(home.path(), &["--name=a", "--broker=127.0.0.1:1", "--runtime=1"]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("127.0.0.1:1"),
        "{refused:?}"
    );
    let help = String::from_utf8(tool(home.path(), &["--help"]).stdout).unwrap();
    assert!(bench::options::KEYS.iter().all(|key| help.contains(&format!("--{}", key.example))));
}
