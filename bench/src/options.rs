//! What a job's options are called, what they may be, and what they mean: the one table behind reading
//! and `--help`. Names are fio's wherever fio has the thing.

use crate::jobfile::Section;
use crate::units::{bytes, number, switch, time, within};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Most connections or writers of one job.
const NUMJOBS_MAX: u64 = 10_000;
/// Most requests outstanding on each.
const IODEPTH_MAX: u64 = 10_000;
/// Most intervals that are kept of one job: 24 bytes each.
const SAMPLES_MAX: u128 = 1 << 20;

/// What is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Plain direct writes or reads through a ring: the device's limit.
    Ring,
    /// The commit log without a network.
    Engine,
    /// A broker that speaks RocketMQ's protocol.
    RocketMq,
}

/// With what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Messages, or blocks, are written.
    Produce,
    /// The newest `span` messages of a queue are pulled again and again.
    Consume,
    /// Queues are pulled from their oldest message on.
    ColdRead,
    /// Sends, and pulls of what was just sent.
    Mixed,
    /// Messages are popped and acknowledged.
    Pop,
}

/// How what was popped is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// All messages of a pop in one request (code 200151).
    Batch,
    /// Each on its own (200051), as the Java client does it.
    Each,
    /// Never: they come again when their time is over.
    None,
}

/// One section, read and checked.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each field is the option of its name, which `KEYS` explains")]
pub struct Job {
    pub name: String,
    pub engine: Engine,
    pub load: Load,
    pub bs: (u32, u32),
    pub iodepth: usize,
    pub complete: usize,
    pub numjobs: usize,
    pub rate_iops: u64,
    pub runtime: Duration,
    pub ramp_time: Duration,
    pub startdelay: Duration,
    pub thinktime: Duration,
    pub number_ios: u64,
    pub group_reporting: bool,
    pub stonewall: bool,
    pub rwmixread: u32,
    pub directory: PathBuf,
    pub filename: Option<PathBuf>,
    pub size: u64,
    pub durable: bool,
    pub unlink: bool,
    pub broker: SocketAddr,
    pub pid: Option<u32>,
    pub topic: String,
    pub topics: u32,
    pub queues: u32,
    pub batch: u32,
    pub span: u64,
    pub delay: (Duration, Duration),
    pub delay_level: u32,
    pub transaction: bool,
    pub properties: u32,
    pub filter: Option<String>,
    pub ack: Ack,
    pub invisible_time: Duration,
    pub bw_log: Option<String>,
    pub iops_log: Option<String>,
    pub lat_log: Option<String>,
    pub log_avg_msec: u64,
    pub percentiles: Vec<f64>,
    pub randseed: u64,
    pub rate: u64,
    /// What was written for it, later ones winning: fio's `job options`.
    pub given: Vec<(String, String)>,
}

impl Default for Job {
    fn default() -> Job {
        Job {
            name: String::new(),
            engine: Engine::RocketMq,
            load: Load::Produce,
            bs: (0, 0),
            iodepth: 1,
            complete: 1,
            numjobs: 1,
            rate_iops: 0,
            runtime: Duration::from_secs(10),
            ramp_time: Duration::ZERO,
            startdelay: Duration::ZERO,
            thinktime: Duration::ZERO,
            number_ios: 0,
            group_reporting: false,
            stonewall: false,
            rwmixread: 50,
            directory: PathBuf::from("."),
            filename: None,
            size: 256 << 20,
            durable: true,
            unlink: false,
            broker: SocketAddr::from(([127, 0, 0, 1], 10911)),
            pid: None,
            topic: "RingMQBench".to_owned(),
            topics: 1,
            queues: 8,
            batch: 0,
            span: 4000,
            delay: (Duration::ZERO, Duration::ZERO),
            delay_level: 0,
            transaction: false,
            properties: 0,
            filter: None,
            ack: Ack::Batch,
            invisible_time: Duration::from_secs(60),
            bw_log: None,
            iops_log: None,
            lat_log: None,
            log_avg_msec: 500,
            percentiles: vec![
                1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99,
            ],
            randseed: 1,
            rate: 0,
            given: Vec::new(),
        }
    }
}

/// One option.
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Other names, fio's own among them.
    pub aliases: &'static [&'static str],
    /// What it does, its range and its default.
    pub text: &'static str,
    /// One way to write it.
    pub example: &'static str,
    set: fn(&mut Job, &str) -> Result<(), String>,
}

macro_rules! keys {
    ($($name:literal $($alias:literal)*, $example:literal, $text:literal, |$job:ident, $value:ident| $set:expr;)+) => {
        /// Every option of a job.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name,
            aliases: &[$($alias),*],
            text: $text,
            example: $example,
            set: |$job, $value| { $set; Ok(()) },
        }),+];
    };
}

keys! {
    "ioengine", "ioengine=rocketmq", "What is loaded: ring (direct writes or reads, the device's limit), engine (the commit log without a network), rocketmq (any broker that speaks the protocol). [rocketmq]",
        |job, value| job.engine = match value { "ring" => Engine::Ring, "engine" => Engine::Engine, "rocketmq" => Engine::RocketMq, _ => return Err(format!("`{value}` is none of ring, engine, rocketmq")) };
    "rw" "readwrite", "rw=produce", "produce (or write), consume (or read: the newest messages again and again), coldread (from the oldest message on), mixed (or rw), pop (with its acknowledgements). [produce]",
        |job, value| job.load = match value { "produce" | "write" => Load::Produce, "consume" | "read" => Load::Consume, "coldread" => Load::ColdRead, "mixed" | "rw" | "readwrite" => Load::Mixed, "pop" => Load::Pop, _ => return Err(format!("`{value}` is none of produce, consume, coldread, mixed, pop")) };
    "bs" "blocksize" "bsrange", "bs=1k", "Bytes of a message's body, or of a block for ring (multiples of 4k); one size or a range LEAST-MOST, evenly drawn. 1 to 4m. [1k; ring: 4k]",
        |job, value| { let (least, most) = value.split_once('-').unwrap_or((value, value)); job.bs = (body(least)?, body(most)?); if job.bs.0 > job.bs.1 { return Err(format!("{least} is more than {most}")); } };
    "iodepth", "iodepth=32", "Requests outstanding on each connection (or writer). 1 to 10000. [1]",
        |job, value| job.iodepth = number(value, 1, IODEPTH_MAX)? as usize;
    "iodepth_batch_complete" "iodepth_batch_complete_min", "iodepth_batch_complete=32", "Answers to wait for before the next requests are written: with iodepth's value whole windows go out, as `limit load` does it. At most iodepth. [1]",
        |job, value| job.complete = number(value, 1, IODEPTH_MAX)? as usize;
    "numjobs", "numjobs=16", "Connections (or writers) that do the same. All of a job's run on one thread. 1 to 10000. [1]",
        |job, value| job.numjobs = number(value, 1, NUMJOBS_MAX)? as usize;
    "rate_iops", "rate_iops=50k", "Open loop: this many messages a second fall due, whatever the server does, over all of the job's connections; latency counts from when a request fell due. 0: closed loop. At most 100m. [0]",
        |job, value| job.rate_iops = within(decimal(value)?, 0, 100_000_000)?;
    "rate", "rate=100m", "Open loop, in bytes of bodies a second: rate_iops for a mean bs. [0]",
        |job, value| job.rate = bytes(value)?;
    "runtime", "runtime=60", "How long it is measured; seconds unless a unit (ms, s, m, h) says otherwise. 1ms to 7d. [10]",
        |job, value| { let wanted = time(value, "s")?; within(wanted.as_millis() as u64, 1, 604_800_000)?; job.runtime = wanted; };
    "time_based", "time_based", "Taken for fio's sake: every job runs until its runtime is over.",
        |_job, value| switch(value)?;
    "ramp_time", "ramp_time=2", "Load before what is measured. [0]",
        |job, value| job.ramp_time = time(value, "s")?;
    "startdelay", "startdelay=1", "The job begins this much after its group. [0]",
        |job, value| job.startdelay = time(value, "s")?;
    "thinktime", "thinktime=100", "Closed loop: a pause behind each write to a connection; microseconds unless a unit says otherwise. [0]",
        |job, value| job.thinktime = time(value, "us")?;
    "number_ios", "number_ios=1000000", "Each connection ends after this many messages, if runtime is not over before. 0: no end. [0]",
        |job, value| job.number_ios = decimal(value)?;
    "group_reporting", "group_reporting", "One report for all of a job's connections instead of one each.",
        |job, value| job.group_reporting = switch(value)?;
    "stonewall" "wait_for_previous", "stonewall", "Begins when all jobs before it have ended; otherwise jobs run beside each other, a thread each.",
        |job, value| job.stonewall = switch(value)?;
    "rwmixread", "rwmixread=30", "mixed: percent of requests that are pulls. 0 to 100. [50]",
        |job, value| job.rwmixread = number(value, 0, 100)? as u32;
    "directory", "directory=/data", "ring, engine: where the files lie (engine: the log's directory). [.]",
        |job, value| job.directory = PathBuf::from(value);
    "filename", "filename=/data/probe", "ring: the file, made and zero-filled to `size` if it is shorter; writer n of several adds `.n`. [NAME.0 in `directory`]",
        |job, value| job.filename = Some(PathBuf::from(value));
    "size", "size=1g", "ring: bytes of each file; positions begin again behind it. engine: bytes of a segment. 16m to 4g. [256m]",
        |job, value| job.size = within(bytes(value)?, 16 << 20, 4 << 30)?;
    "sync", "sync=dsync", "ring, engine: dsync (each write is durable when it completes) or none. [dsync]",
        |job, value| job.durable = match value { "dsync" | "1" | "sync" => true, "none" | "0" => false, _ => return Err(format!("`{value}` is neither dsync nor none")) };
    "direct", "direct=1", "Taken for fio's sake: ring and engine always bypass the page cache, so it cannot be 0.",
        |_job, value| if !switch(value)? { return Err("writes through the page cache are not measured".to_owned()) };
    "unlink", "unlink=1", "ring: remove the files at the end. [0]",
        |job, value| job.unlink = switch(value)?;
    "broker" "hostname", "broker=127.0.0.1:10911", "rocketmq: the broker's address, IP:PORT. [127.0.0.1:10911]",
        |job, value| job.broker = value.parse().map_err(|_| format!("`{value}` is no IP:PORT"))?;
    "pid", "pid=4711", "The server's process: its CPU time a message is reported.",
        |job, value| job.pid = Some(number(value, 1, i32::MAX as u64)? as u32);
    "topic", "topic=Orders", "The topic; made when something is sent to it. [RingMQBench]",
        |job, value| if value.is_empty() { return Err("a topic has a name".to_owned()) } else { job.topic = value.to_owned() };
    "topics", "topics=100", "With more than one: TOPIC-0, TOPIC-1 and so on, dealt out in turn. 1 to 10000. [1]",
        |job, value| job.topics = number(value, 1, 10_000)? as u32;
    "queues", "queues=8", "Queues of each topic. 1 to 65536. [8]",
        |job, value| job.queues = number(value, 1, 65_536)? as u32;
    "batch", "batch=16", "Messages of one request: a batch (code 320) when something is sent, at most this many when it is pulled. 1 to 1024. [1 sent, 32 pulled]",
        |job, value| job.batch = number(value, 1, 1024)? as u32;
    "span", "span=4000", "consume: how many of a queue's newest messages are read. [4000]",
        |job, value| job.span = within(decimal(value)?, 1, u64::from(u32::MAX))?;
    "delay", "delay=1s-10s", "produce: timer messages, due this much after they are stored; one time or a range LEAST-MOST, evenly drawn; seconds unless a unit says otherwise. 0: no timer. At most 7d. [0]",
        |job, value| { let (least, most) = value.split_once('-').unwrap_or((value, value)); job.delay = (time(least, "s")?, time(most, "s")?); within(job.delay.1.as_millis() as u64, 0, 604_800_000)?; if job.delay.0 > job.delay.1 { return Err(format!("{least} is more than {most}")); } };
    "delay_level", "delay_level=1", "produce: delayed messages of this level, 1 to 18 by default. 0: none. At most 64. [0]",
        |job, value| job.delay_level = number(value, 0, 64)? as u32;
    "transaction", "transaction", "produce: half messages, each committed when it is stored; a message is counted when its end is answered. [0]",
        |job, value| job.transaction = switch(value)?;
    "properties", "properties=10", "produce: so many properties more in each message, P0=0, P1=1 and so on. 0 to 100. [0]",
        |job, value| job.properties = number(value, 0, 100)? as u32;
    "filter", "filter=P1 > 0 AND P9 < 10", "consume, coldread, pop: an SQL92 expression; needs a broker that has enablePropertyFilter. [all messages]",
        |job, value| job.filter = (!value.is_empty()).then(|| value.to_owned());
    "ack", "ack=each", "pop: batch (all messages of a pop in one request), each (a request a message, as the Java client does it) or none. [batch]",
        |job, value| job.ack = match value { "batch" => Ack::Batch, "each" => Ack::Each, "none" => Ack::None, _ => return Err(format!("`{value}` is none of batch, each, none")) };
    "invisible_time", "invisible_time=60", "pop: for how long nobody else gets what was popped; seconds unless a unit says otherwise. [60]",
        |job, value| job.invisible_time = time(value, "s")?;
    "write_bw_log", "write_bw_log=run", "Writes RUN_bw.N.log in fio's form: time in ms, KiB/s, 0 read or 1 write, bs, 0.",
        |job, value| job.bw_log = Some(prefix(job, value));
    "write_iops_log", "write_iops_log=run", "Writes RUN_iops.N.log: messages a second in each interval.",
        |job, value| job.iops_log = Some(prefix(job, value));
    "write_lat_log", "write_lat_log=run", "Writes RUN_lat.N.log and RUN_clat.N.log: mean latency in each interval, ns.",
        |job, value| job.lat_log = Some(prefix(job, value));
    "log_avg_msec", "log_avg_msec=1000", "The length of an interval in those files, and of the samples behind min, max and stdev of bw and iops. 10 to 60000. [500]",
        |job, value| job.log_avg_msec = number(value, 10, 60_000)?;
    "percentile_list", "percentile_list=50:99:99.9", "Which percentiles are reported. [1:5:10:…:99.99]",
        |job, value| { job.percentiles = value.split(':').map(percentile).collect::<Result<_, _>>()?; job.percentiles.sort_by(f64::total_cmp); };
    "randseed", "randseed=7", "Where random sizes and choices begin. [1]",
        |job, value| job.randseed = number(value, 0, u64::MAX)?;
}

impl Job {
    /// Reads a section. `Err` begins with where the mistake stands and names the key.
    pub fn new(section: &Section) -> Result<Job, String> {
        let mut job = Job { name: section.name.clone(), ..Job::default() };
        for given in &section.given {
            let place = &given.place;
            let key = find(&given.key).ok_or_else(|| format!("{place}: {}", unknown(&given.key)))?;
            let set = (key.set)(&mut job, &given.value);
            set.map_err(|error| format!("{place}: {}={}: {error}", given.key, given.value))?;
            job.given.retain(|(name, _)| name != key.name);
            job.given.push((key.name.to_owned(), given.value.clone()));
        }
        job.settle().map_err(|error| format!("{}: [{}]: {error}", section.place, section.name))?;
        Ok(job)
    }

    /// Whether requests fall due by the clock.
    pub fn is_open(&self) -> bool {
        self.rate_iops > 0
    }

    /// Whether something is written.
    pub fn writes(&self) -> bool {
        matches!(self.load, Load::Produce | Load::Mixed)
    }

    /// Whether messages are more than plain ones: then they go one by one.
    fn is_special(&self) -> bool {
        self.transaction || self.delay_level > 0 || !self.delay.1.is_zero()
    }

    /// fio's word for it.
    pub fn fio_rw(&self) -> &'static str {
        match self.load {
            Load::Produce => "write",
            Load::Consume | Load::ColdRead | Load::Pop => "read",
            Load::Mixed => "rw",
        }
    }

    /// The engine's name.
    pub fn engine_name(&self) -> &'static str {
        match self.engine {
            Engine::Ring => "ring",
            Engine::Engine => "engine",
            Engine::RocketMq => "rocketmq",
        }
    }

    /// Defaults that depend on others, and what does not go together.
    fn settle(&mut self) -> Result<(), String> {
        let pulls = matches!(self.load, Load::Consume | Load::ColdRead | Load::Pop);
        let block = if self.engine == Engine::Ring { 4096 } else { 1024 };
        if self.bs == (0, 0) {
            self.bs = (block, block);
        }
        if self.batch == 0 {
            self.batch = if pulls && self.engine != Engine::Ring { 32 } else { 1 };
        }
        if self.rate > 0 {
            let mean = u64::from(self.bs.0 + self.bs.1) / 2;
            self.rate_iops = (self.rate / mean).max(1);
        }
        let samples = (self.runtime + self.ramp_time).as_millis() / u128::from(self.log_avg_msec);
        let rules = [
            (self.complete <= self.iodepth, "iodepth_batch_complete is more than iodepth"),
            (self.numjobs * self.iodepth <= 1 << 20, "numjobs times iodepth is more than 1048576"),
            (samples <= SAMPLES_MAX, "runtime has more than 1048576 intervals of log_avg_msec"),
            (u64::from(self.topics) * u64::from(self.queues) <= 1 << 20, "topics times queues is more than 1048576"),
            (!self.is_open() || self.thinktime.is_zero(), "rate_iops and thinktime exclude each other"),
            (
                self.engine == Engine::RocketMq || !matches!(self.load, Load::Mixed | Load::Pop),
                "rw=mixed and rw=pop need ioengine=rocketmq",
            ),
            (
                self.engine != Engine::Engine || !pulls || self.iodepth == 1,
                "ioengine=engine pulls one request at a time",
            ),
            (self.engine != Engine::Ring || self.batch == 1, "ioengine=ring knows no messages: batch is 1"),
            (self.engine == Engine::RocketMq || self.thinktime.is_zero(), "thinktime needs ioengine=rocketmq"),
            (
                self.engine != Engine::Ring || (self.bs.0 == self.bs.1 && self.bs.0.is_multiple_of(4096)),
                "ioengine=ring takes one bs, a multiple of 4096",
            ),
            (
                u64::from(self.batch) * u64::from(self.bs.1) <= 4 << 20,
                "batch times bs is more than 4 MiB, the most that one request carries",
            ),
            (
                self.engine != Engine::RocketMq || self.load != Load::ColdRead || self.iodepth == 1,
                "rw=coldread goes on where the last answer says, so iodepth is 1: take more numjobs",
            ),
            (self.load != Load::Mixed || self.batch == 1, "rw=mixed sends one message a request"),
            (
                !self.is_special() || (self.load == Load::Produce && self.batch == 1),
                "delay, delay_level and transaction need rw=produce and no batch",
            ),
            (
                u32::from(self.transaction) + u32::from(!self.delay.1.is_zero()) + u32::from(self.delay_level > 0) < 2,
                "delay, delay_level and transaction exclude each other",
            ),
            (self.filter.is_none() || pulls, "filter needs rw=consume, coldread or pop"),
            (
                (self.load != Load::Pop && !self.transaction) || self.topics == 1,
                "rw=pop and transaction take one topic",
            ),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err((*rule).to_owned()))
    }
}

fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name || key.aliases.contains(&name))
}

/// An unknown key, and the known one that looks most like it.
fn unknown(name: &str) -> String {
    let shared = |key: &&Key| key.name.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
    let nearest = |key: &&Key| (shared(key), std::cmp::Reverse(key.name.len()));
    match KEYS.iter().max_by_key(nearest).filter(|key| shared(key) >= 3) {
        Some(key) => format!("unknown option `{name}`; `{}`?", key.name),
        None => format!("unknown option `{name}`; see --help"),
    }
}

/// Bytes of a body.
fn body(text: &str) -> Result<u32, String> {
    within(bytes(text)?, 1, 4 << 20).map(|bytes| bytes as u32)
}

/// A count with fio's suffixes, in powers of 1000.
fn decimal(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1_000),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 1_000_000),
        _ => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("`{text}` is no count, as in 5000 or 50k"))
}

fn percentile(text: &str) -> Result<f64, String> {
    let value: Option<f64> = text.parse().ok();
    value
        .filter(|value| *value > 0.0 && *value <= 100.0)
        .ok_or_else(|| format!("`{text}` is no percentile within 0 and 100"))
}

/// fio names the files after the job when no name is given.
fn prefix(job: &Job, value: &str) -> String {
    if value.is_empty() { job.name.clone() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::Sections;
    use std::collections::HashSet;

    fn job(text: &str) -> Result<Job, String> {
        let mut sections = Sections::default();
        sections.read("a.fio", &format!("[a]\n{text}")).unwrap();
        Job::new(&sections.finish().unwrap()[0])
    }

    #[test]
    fn every_key_takes_its_own_example() {
        let mut names = HashSet::new();
        for key in KEYS {
            let (name, _) = key.example.split_once('=').unwrap_or((key.example, ""));
            assert_eq!(name, key.name);
            assert!(key.text.ends_with('.') || key.text.ends_with(']'), "{name}");
            for name in key.aliases.iter().chain([&key.name]) {
                assert!(names.insert(*name), "{name} stands twice");
            }
            let with = match name {
                "iodepth_batch_complete" => "iodepth=64\n",
                "filter" => "rw=consume\n",
                _ => "",
            };
            job(&format!("{with}{}", key.example)).unwrap_or_else(|error| panic!("{}: {error}", key.example));
        }
    }

    #[test]
    fn the_sample_jobs_are_fine() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let mut sections = Sections::default();
            sections.read(path.to_str().unwrap(), &text).unwrap();
            for section in sections.finish().unwrap() {
                Job::new(&section).unwrap();
            }
            let question = text.lines().take_while(|line| line.starts_with(';')).any(|line| line.contains('?'));
            assert!(question, "{}: says no question", path.display());
            count += 1;
        }
        assert!(count >= 10, "{count} jobs in {folder}");
    }

    #[test]
    fn errors_name_file_line_key_and_range() {
        let table = [
            ("iodpth=4", "a.fio:2: unknown option `iodpth`; `iodepth`?"),
            ("zzz=4", "a.fio:2: unknown option `zzz`; see --help"),
            ("\niodepth=0", "a.fio:3: iodepth=0: 0 is not within 1 and 10000"),
            ("iodepth=x", "a.fio:2: iodepth=x: `x` is no whole number within 1 and 10000"),
            ("bs=5m", "a.fio:2: bs=5m: 5242880 is not within 1 and 4194304"),
            ("bs=2k-1k", "a.fio:2: bs=2k-1k: 2k is more than 1k"),
            ("rw=randwrite", "a.fio:2: rw=randwrite: `randwrite` is none of produce, consume, coldread, mixed, pop"),
            ("direct=0", "a.fio:2: direct=0: writes through the page cache are not measured"),
            ("percentile_list=50:101", "a.fio:2: percentile_list=50:101: `101` is no percentile within 0 and 100"),
            ("iodepth_batch_complete=2", "a.fio:1: [a]: iodepth_batch_complete is more than iodepth"),
            ("ioengine=ring\nbs=1k", "a.fio:1: [a]: ioengine=ring takes one bs, a multiple of 4096"),
            (
                "rw=coldread\niodepth=2",
                "a.fio:1: [a]: rw=coldread goes on where the last answer says, so iodepth is 1: take more numjobs",
            ),
            ("batch=1024\nbs=1m", "a.fio:1: [a]: batch times bs is more than 4 MiB, the most that one request carries"),
        ];
        for (text, error) in table {
            assert_eq!(job(text).unwrap_err(), error);
        }
    }

    #[test]
    fn defaults_fit_the_engine_and_the_last_value_counts() {
        let sent = job("bs=2k\nblocksize=4k\nrate=40m").unwrap();
        assert_eq!((sent.bs, sent.batch, sent.rate_iops), ((4096, 4096), 1, 10_240));
        assert_eq!(sent.given, [("bs".to_owned(), "4k".to_owned()), ("rate".to_owned(), "40m".to_owned())]);
        assert_eq!(job("rw=read").map(|job| (job.load, job.batch, job.bs)), Ok((Load::Consume, 32, (1024, 1024))));
        assert_eq!(job("ioengine=ring\nrw=read").map(|job| (job.batch, job.bs)), Ok((1, (4096, 4096))));
        assert_eq!(
            job("runtime=1500ms\nrate_iops=50k").map(|job| (job.runtime, job.is_open())),
            Ok((Duration::from_millis(1500), true))
        );
    }
}
