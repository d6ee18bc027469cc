//! `ringmq log`: what lies in a data directory, whether it is whole, and the messages in it. Read only: it
//! takes no lock, so that it works on a directory in use too.

mod dump;
mod stat;
mod time;

use std::fmt;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use engine::format::{Kind, Position};
use engine::inspect::{Behind, Damage, Ending, Inspector, Sight};
use protocol::StoredMessage;

use crate::home;

/// Something is damaged, or what was asked for is not there.
const EXIT_DAMAGED: u8 = 1;
/// The command line is wrong, or there is no log.
const EXIT_USAGE: u8 = 2;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What `ringmq log` is told.
#[derive(Args)]
pub struct LogArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell what is there: partitions, segments, topics with their queues, small state, where each log ends.
    #[command(after_help = STAT_HELP)]
    Stat(Place),
    /// Check every byte that counts: headers, checksums, the chain of batches, queue offsets without holes; of
    /// derived files (runs, checkpoint) each block.
    ///
    /// Prints each damage as FILE at byte N: WHAT. Exits with 0 if all is whole, with 1 if not.
    #[command(after_help = CHECK_HELP)]
    Check(Place),
    /// Print messages, or small state, as JSON: one line each, in log order.
    ///
    /// Without a selection it prints all messages. Exits with 1 if it came by damage, or did not find the
    /// message of --position.
    #[command(after_help = dump::HELP)]
    Dump(dump::DumpArgs),
}

const STAT_HELP: &str = "\
Examples:
  ringmq log stat                           of ./data
  ringmq log stat /var/lib/ringmq           of a broker that is stopped or running
  ringmq log stat ./data/partition-00001    of one partition

A log in use is read up to where it is whole at that moment.";

const CHECK_HELP: &str = "\
Examples:
  ringmq log check /var/lib/ringmq
  ringmq log check ./data/partition-00001 && echo whole

A batch that is torn at the end of a log is no damage: its write had not come back, so nobody was told that
it is stored, and the next start cuts it off. A batch that is missing before the end is: a start refuses
such a partition.";

#[derive(Args)]
struct Place {
    /// The data directory (log.dir), or one partition's directory
    #[arg(value_name = "DIR", default_value = "./data")]
    dir: PathBuf,
    /// Tell progress on stderr even if that is no terminal
    #[arg(long)]
    progress: bool,
}

/// Runs the tool; results go to `out`, all else to stderr.
pub fn run(args: &LogArgs, out: &mut dyn Write) -> ExitCode {
    let done = match &args.command {
        Command::Stat(place) => Store::open(place).and_then(|store| stat::stat(store, out)),
        Command::Check(place) => Store::open(place).and_then(|store| check(store, out)),
        Command::Dump(args) => dump::dump(args, out),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DAMAGED),
        // Whoever reads it has seen enough (`| head`).
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            tell(format_args!("ringmq log: {failure}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Why the tool gave up.
#[derive(Debug)]
enum Failure {
    /// The question makes no sense, or there is nothing to read.
    Usage(String),
    /// Nobody takes what it says.
    Output(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(text) => f.write_str(text),
            Failure::Output(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// Whether all was whole, or why it gave up.
type Done = Result<bool, Failure>;

fn tell(text: fmt::Arguments<'_>) {
    // Without stderr there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// What is looked at.
struct Store {
    dir: PathBuf,
    logs: Vec<Inspector>,
    /// The process that uses it.
    user: Option<u32>,
    /// What is wrong with the directory itself.
    wrong: Vec<String>,
    progress: Progress,
}

impl Store {
    fn open(place: &Place) -> Result<Store, Failure> {
        let dir = &place.dir;
        let fail = |error: io::Error| Failure::Usage(format!("{}: {error}", dir.display()));
        let mut wrong = Vec::new();
        let mut partitions = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            partitions.extend(number(&path).map(|number| (number, path)));
        }
        partitions.sort();
        let user = if partitions.is_empty() {
            dir.parent().and_then(|above| home::look(above).ok()?.user)
        } else {
            let look = home::look(dir).map_err(|error| wrong.push(format!("store.toml: {error}")));
            let there = |number: &u16| partitions.iter().any(|(known, _)| known == number);
            let wanted = look.ok().and_then(|look| look.partitions).unwrap_or(0);
            wrong.extend((0..wanted).filter(|number| !there(number)).map(|number| {
                let name = home::partition_name(number);
                format!("{name} is missing: store.toml says that there are {wanted} partitions")
            }));
            look.ok().and_then(|look| look.user)
        };
        let is_one = partitions.is_empty();
        if is_one {
            partitions.push((number(dir).unwrap_or(0), dir.clone()));
        }
        let mut logs = Vec::new();
        for (number_of, path) in &partitions {
            let number_of = (!is_one || number(dir).is_some()).then_some(*number_of);
            logs.push(Inspector::open(path, number_of).map_err(fail)?);
        }
        if is_one && logs[0].pieces().is_empty() && logs[0].spares().is_empty() {
            let text = "no log is here: neither partition-00000 nor segments (is it the data directory, log.dir?)";
            return Err(Failure::Usage(format!("{}: {text}", dir.display())));
        }
        let total = logs.iter().map(Inspector::bytes).sum();
        Ok(Store { dir: dir.clone(), logs, user, wrong, progress: Progress::new(place.progress, total) })
    }

    /// Walks along each log, from the segment that holds the byte that `from` gives.
    fn walk(
        &mut self,
        from: impl Fn(&Inspector) -> u64,
        mut sight: impl FnMut(u16, Sight<'_>) -> ControlFlow<()>,
    ) -> Vec<(u16, Ending)> {
        let mut endings = Vec::new();
        for log in &mut self.logs {
            let (number, from, progress) = (log.partition(), from(log), &mut self.progress);
            let ending = log.walk(from, &mut |seen| {
                if let Sight::Read(bytes) = &seen {
                    progress.read(*bytes);
                }
                sight(number, seen)
            });
            match ending {
                Some(ending) => endings.push((number, ending)),
                None => break,
            }
        }
        self.progress.end();
        endings
    }
}

/// The partition whose directory this is, by its name.
fn number(path: &Path) -> Option<u16> {
    let number = path.file_name()?.to_str()?.strip_prefix("partition-")?.parse().ok()?;
    (home::partition_name(number) == path.file_name()?.to_str()?).then_some(number)
}

/// How far a scan is.
struct Progress {
    is_shown: bool,
    began: Instant,
    told: Instant,
    read: u64,
    total: u64,
}

impl Progress {
    fn new(is_wanted: bool, total: u64) -> Progress {
        let is_shown = is_wanted || io::IsTerminal::is_terminal(&io::stderr());
        let now = Instant::now();
        Progress { is_shown, began: now, told: now, read: 0, total }
    }

    fn read(&mut self, bytes: u64) {
        self.read += bytes;
        if self.is_shown && self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Instant::now();
            self.show("\r");
        }
    }

    fn end(&mut self) {
        if self.is_shown {
            self.show("\n");
        }
    }

    fn show(&self, end: &str) {
        let seconds = self.began.elapsed().as_secs_f64().max(0.001);
        let rate = self.read as f64 / seconds;
        // What is only prepared is not read: the time left is an upper bound.
        let left = self.total.saturating_sub(self.read) as f64 / rate.max(1.0);
        let (read, total, speed) = (size(self.read), size(self.total), size(rate as u64));
        let _ = write!(io::stderr(), "read {read} of {total}, {speed}/s, at most {left:.0} s left   {end}");
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// One line about a log's end.
fn describe(ending: &Ending) -> String {
    let behind = match ending.behind {
        Behind::Nothing => "nothing".to_owned(),
        Behind::Zeros => "zeros, prepared for what comes".to_owned(),
        Behind::Stale => "what a recycled file held before".to_owned(),
        Behind::Torn(bytes) => format!("a torn batch of {bytes} bytes that nobody was told of"),
        Behind::Other => "bytes that are no batch".to_owned(),
    };
    let mut text = format!(
        "ends at log byte {}, epoch {}, durable {}; behind it {behind}",
        ending.head, ending.epoch, ending.durable
    );
    if let Some(byte) = ending.stranded {
        text += &format!("; a whole batch at log byte {byte}, behind the hole, that nobody was told of");
    }
    if ending.moved {
        text += "; it was written or retired meanwhile, and may go on";
    }
    text
}

fn check(mut store: Store, out: &mut dyn Write) -> Done {
    let mut damages: Vec<String> = std::mem::take(&mut store.wrong);
    let dir = store.dir.display().to_string();
    for damage in &mut damages {
        *damage = format!("{dir}: {damage}");
        writeln!(out, "{damage}")?;
    }
    let mut count = damages.len();
    for log in &store.logs {
        let derived = log.derived().map_err(|error| Failure::Usage(format!("{dir}: {error}")))?;
        for damage in &derived.damages {
            writeln!(out, "{damage}; it is made again from the log")?;
        }
        count += derived.damages.len();
    }
    let (mut batches, mut records) = (0u64, 0u64);
    let mut failed = None;
    let endings = store.walk(
        |_| 0,
        |partition, sight| {
            let mut damaged = |damage: Damage| {
                count += 1;
                match writeln!(out, "{damage}") {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            };
            match sight {
                Sight::Read(_) => ControlFlow::Continue(()),
                Sight::Damage(damage) => damaged(damage),
                Sight::Batch(batch, piece) => {
                    batches += 1;
                    for (byte, record, payload) in batch.records() {
                        records += 1;
                        let offset = (record.kind == Kind::Message).then_some(record.offset);
                        let is_message = matches!(record.kind, Kind::Message | Kind::Delayed | Kind::Half);
                        if is_message
                            && let Some(what) = wrong_message(payload, Position::pack(partition, byte), offset)
                        {
                            damaged(Damage { path: piece.path.clone(), byte: byte - piece.base, what })?;
                        }
                    }
                    ControlFlow::Continue(())
                }
            }
        },
    );
    if let Some(error) = failed {
        return Err(error.into());
    }
    for (partition, ending) in &endings {
        writeln!(out, "partition {partition} {}", describe(ending))?;
    }
    let sum = format!("{batches} batches, {records} records in {} partitions", endings.len());
    match count {
        0 => writeln!(out, "{sum}: whole")?,
        1 => writeln!(out, "{sum}: 1 damage")?,
        count => writeln!(out, "{sum}: {count} damages")?,
    }
    if let Some(pid) = store.user {
        writeln!(out, "process {pid} uses it: what it wrote meanwhile is not counted")?;
    }
    Ok(count == 0)
}

/// What is wrong with a message whose bytes are as they were written.
fn wrong_message(payload: &[u8], position: Position, offset: Option<u64>) -> Option<String> {
    let message = match StoredMessage::decode(payload) {
        Ok(message) => message,
        Err(error) => return Some(format!("no message that RocketMQ would read: {error}")),
    };
    // One that waits may have been written again.
    let said = message.physical_offset.cast_unsigned();
    if said != position.0 && (offset.is_some() || said > position.0) {
        return Some(format!("a message that says it lies at {}, not at {}", message.physical_offset, position.0));
    }
    let offset = offset.filter(|offset| message.queue_offset.cast_unsigned() != *offset)?;
    Some(format!("a message that says its queue offset is {}, not {offset}", message.queue_offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (5 << 20, "5.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 40, "1024.0 GiB"),
        ];
        for (bytes, words) in table {
            assert_eq!(size(bytes), words);
        }
    }

    #[test]
    fn directories_of_partitions_are_known_by_name() {
        let table =
            [("partition-00000", Some(0)), ("/a/partition-00017", Some(17)), ("partition-17", None), ("/", None)];
        for (path, wanted) in table {
            assert_eq!(number(Path::new(path)), wanted, "{path}");
        }
    }

    #[test]
    fn a_message_that_lies_elsewhere_is_wrong() {
        let host = ([127, 0, 0, 1], 1).into();
        let message =
            StoredMessage { queue_offset: 7, physical_offset: 5000, ..StoredMessage::plain(host, "T", "", b"body") };
        let mut bytes = vec![0; message.encoded_len()];
        message.encode(&mut bytes);
        assert_eq!(wrong_message(&bytes, Position(5000), Some(7)), None);
        assert_eq!(wrong_message(&bytes, Position(5000), None), None);
        assert!(wrong_message(&bytes, Position(5001), Some(7)).unwrap().contains("lies at 5000, not at 5001"));
        assert!(wrong_message(&bytes, Position(5000), Some(8)).unwrap().contains("offset is 7, not 8"));
        assert!(wrong_message(&bytes[1..], Position(5000), Some(7)).unwrap().contains("no message"));
    }
}
