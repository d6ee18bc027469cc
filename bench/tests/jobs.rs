//! Goal: jobs do what their files say. Method: the tool's binary, as a user would start it, against a core on a
//! real ring, the engine and plain files; its JSON tells what happened.

use bench::inside::Running;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

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
    let jobs = run(home.path(), &format!("{global}runtime=500ms\nlog_avg_msec=100\n[all]\nrw=coldread\nnumjobs=3\n"));
    assert_eq!(jobs.len(), 3, "a report for each connection");
    assert!(jobs.iter().all(|job| count(job, "read") >= 300), "{jobs:?}");
    let jobs = run(
        home.path(),
        &format!("{global}runtime=300ms\n[tail]\nrw=consume\nnumjobs=2\niodepth=4\ngroup_reporting\n"),
    );
    assert!(count(&jobs[0], "read") > 1000, "{jobs:?}");
    let jobs =
        run(home.path(), &format!("{global}runtime=300ms\n[both]\nrw=mixed\nnumjobs=2\niodepth=4\ngroup_reporting\n"));
    assert!(count(&jobs[0], "read") > 10 && count(&jobs[0], "write") > 10, "{jobs:?}");
    // An open loop keeps its rate, two jobs beside each other.
    let jobs = run(
        home.path(),
        &format!(
            "{global}runtime=1\nrate_iops=500\nnumjobs=2\niodepth=64\ngroup_reporting\n[one]\n[two]\nrw=consume\nbatch=5\n"
        ),
    );
    for (job, way) in jobs.iter().zip(["write", "read"]) {
        assert!((400..=510).contains(&count(job, way)), "{way}: {}", count(job, way));
        assert!(job[way]["lat_ns"]["mean"].as_f64() >= job[way]["clat_ns"]["mean"].as_f64(), "{job}");
    }
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
    // What was committed is there, in both queues, and pops take each of it once.
    let pops = "rw=pop\nnumjobs=2\niodepth=2\nbatch=7\nruntime=2\n";
    let jobs = run(home.path(), &format!("{global}[batch]\ntopic=T\n{pops}[nothing]\ntopic=T\n{pops}"));
    assert_eq!((count(&jobs[0], "read"), count(&jobs[1], "read")), (200, 0));
    let jobs = run(
        home.path(),
        &format!("{global}[more]\ntopic=U\nnumber_ios=40\n[each]\ntopic=U\n{pops}ack=each\n[nothing]\ntopic=U\n{pops}"),
    );
    assert_eq!((count(&jobs[1], "read"), count(&jobs[2], "read")), (40, 0));
}

#[test]
fn the_engine_and_plain_files_are_loaded() {
    let home = tempfile::tempdir().unwrap();
    let jobs = run(
        home.path(),
        "[global]\nruntime=300ms\nlog_avg_msec=50\ngroup_reporting\nstonewall\n\
         [append]\nioengine=engine\nsize=16m\nnumjobs=2\niodepth=16\n\
         [tail]\nioengine=engine\nsize=16m\nrw=consume\n\
         [cold]\nioengine=engine\nsize=16m\nrw=coldread\n\
         [write]\nioengine=ring\nsize=16m\niodepth=4\nnumjobs=2\nunlink=1\nnumber_ios=10\n\
         [read]\nioengine=ring\nsize=16m\nrw=read\nbs=64k\nrate_iops=100\nwrite_iops_log=read\n",
    );
    let counts: Vec<_> = jobs.iter().map(|job| (count(job, "read"), count(job, "write"))).collect();
    assert!(counts[0].1 > 32 && counts[1].0 > 32 && counts[2].0 > 32, "{counts:?}");
    assert_eq!(counts[3], (0, 20));
    assert!((20..=31).contains(&counts[4].0), "{counts:?}");
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
