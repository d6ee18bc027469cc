//! The binary `ringmq`: a NameServer and a broker in one process, or one of them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use broker::boot::{self, Roles};
use broker::config::{Config, FILE_BYTES_MAX, Source};
use broker::log_tool::{self, LogArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The command line or the configuration is wrong; nothing was started.
const EXIT_USAGE: u8 = 2;

/// RingMQ: a message broker for Linux that speaks Apache RocketMQ's protocol.
///
/// Stock RocketMQ clients and mqadmin work unchanged. Without a command it does what `ringmq dev` does:
/// NameServer and broker in one process on 127.0.0.1, data below ./data, no configuration needed.
#[derive(Parser)]
#[command(name = "ringmq", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  ringmq                                    run NameServer and broker here, data in ./data
  ringmq dev --data /tmp/mq --broker-port 0 the same on a free port, which it prints
  ringmq check-config --keys > ringmq.toml  every setting with its default, range and reason
  ringmq namesrv -c ringmq.toml             a NameServer for other hosts
  ringmq broker -c ringmq.toml --set broker.namesrv=10.0.0.1:9876
  ringmq log check ./data                   is everything whole that is stored there?
  mqadmin clusterList -n 127.0.0.1:9876     see it with RocketMQ's own tool

When it is ready it prints one line on stdout, such as `ready namesrv=127.0.0.1:9876 broker=127.0.0.1:10911`.
Logs go to stderr. SIGTERM or Ctrl-C stops it: what is durable is answered, then it exits with 0.";

#[derive(Subcommand)]
enum Command {
    /// Run NameServer and broker in one process, for development and tests.
    ///
    /// Listens on 127.0.0.1 only; prints `ready namesrv=ADDRESS broker=ADDRESS` on stdout when clients can come.
    #[command(after_help = KEYS_HELP)]
    Dev(DevArgs),
    /// Run a broker.
    ///
    /// Listens on all addresses, tells clients `broker.ip1`, registers with every NameServer of
    /// `broker.namesrv`; prints `ready broker=ADDRESS` on stdout when clients can come.
    #[command(after_help = KEYS_HELP)]
    Broker(FileArgs),
    /// Run a NameServer: it tells clients which broker has which topic.
    ///
    /// Listens on all addresses; prints `ready namesrv=ADDRESS` on stdout when clients can come.
    #[command(after_help = KEYS_HELP)]
    Namesrv(FileArgs),
    /// Check a configuration file and print what it amounts to, each value with its source.
    ///
    /// Exits with 0 if it is good, with 2 and a message that names line, key and range if not.
    CheckConfig(CheckArgs),
    /// Look into a data directory: what is there, whether it is whole, and the messages in it.
    ///
    /// Reads only, and works beside a running broker.
    Log(LogArgs),
}

const KEYS_HELP: &str = "`ringmq check-config --keys` lists every KEY with its default, range and reason.";

#[derive(Args, Default)]
struct DevArgs {
    /// Directory of all data [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port of the NameServer; 0 picks a free one [default: 9876]
    #[arg(long, value_name = "N")]
    namesrv_port: Option<u16>,
    /// Port of the broker; 0 picks a free one [default: 10911]
    #[arg(long, value_name = "N")]
    broker_port: Option<u16>,
    /// When a send is answered: on stable storage, or when written [default: sync]
    #[arg(long, value_name = "MODE")]
    flush: Option<FlushArg>,
    /// Threads of the hot path [default: half of the CPUs, at least 1]
    #[arg(long, value_name = "N")]
    cores: Option<u16>,
    /// CPUs to pin them to, such as 0,2,4-7 [default: the first ones]
    #[arg(long, value_name = "LIST")]
    cpus: Option<String>,
    #[command(flatten)]
    file: FileArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum FlushArg {
    Sync,
    Async,
}

#[derive(Args, Default)]
struct FileArgs {
    /// Configuration file (TOML); every key is optional
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, whatever the file says; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
struct CheckArgs {
    /// The file to check
    #[arg(value_name = "FILE", required_unless_present = "keys")]
    file: Option<PathBuf>,
    /// Print every key with its default, range and reason, as a file of comments to start from
    #[arg(long, conflicts_with = "file")]
    keys: bool,
}

fn main() -> ExitCode {
    let command = Cli::parse().command.unwrap_or_else(|| Command::Dev(DevArgs::default()));
    let (config, roles) = match command {
        Command::CheckConfig(args) => return check(&args),
        Command::Log(args) => return log_tool::run(&args, &mut io::stdout()),
        Command::Dev(args) => (dev_config(&args), Roles { namesrv: true, broker: true }),
        Command::Broker(args) => (file_config(&args), Roles { namesrv: false, broker: true }),
        Command::Namesrv(args) => (file_config(&args), Roles { namesrv: true, broker: false }),
    };
    let config = match config.and_then(|config| config.check().map(|()| config).map_err(|error| error.to_string())) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = start_log(&config) {
        return refuse(&error);
    }
    match boot::run(config, roles) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn dev_config(args: &DevArgs) -> Result<Config, String> {
    let mut config = read_config(args.file.config.as_deref())?;
    let numbers =
        [("namesrv.port", args.namesrv_port), ("broker.port", args.broker_port), ("engine.cores", args.cores)];
    for (key, number) in numbers {
        if let Some(number) = number {
            config.set(key, &number.to_string(), Source::CommandLine).map_err(|error| error.to_string())?;
        }
    }
    let texts = [
        ("log.dir", args.data.as_deref().map(text_of).transpose()?),
        ("engine.cpus", args.cpus.as_deref()),
        ("log.flush", args.flush.map(|flush| if matches!(flush, FlushArg::Async) { "async" } else { "sync" })),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            config.set(key, text, Source::CommandLine).map_err(|error| error.to_string())?;
        }
    }
    set_keys(&mut config, &args.file.set)?;
    let kv_path = config.data_dir().join("namesrv").join("kv.json");
    let suggestions = [
        ("broker.listen", "127.0.0.1"),
        ("namesrv.listen", "127.0.0.1"),
        ("namesrv.kv_path", text_of(&kv_path)?),
        ("log.segment_bytes", "256MiB"),
        ("log.prepare_bytes", "256MiB"),
    ];
    for (key, text) in suggestions {
        config.suggest(key, text);
    }
    Ok(config)
}

fn file_config(args: &FileArgs) -> Result<Config, String> {
    let mut config = read_config(args.config.as_deref())?;
    set_keys(&mut config, &args.set)?;
    Ok(config)
}

fn read_config(path: Option<&Path>) -> Result<Config, String> {
    let Some(path) = path else { return Ok(Config::default()) };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{}: longer than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Config::load(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn set_keys(config: &mut Config, settings: &[String]) -> Result<(), String> {
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: KEY=VALUE is wanted"))?;
        let set = config.set(key.trim(), value.trim(), Source::CommandLine);
        set.map_err(|error| format!("--set {setting}: {error}"))?;
    }
    Ok(())
}

fn text_of(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the path is not UTF-8", path.display()))
}

fn check(args: &CheckArgs) -> ExitCode {
    let text = match &args.file {
        None => Config::document(),
        Some(path) => {
            let good = |config: Config| match config.check() {
                Ok(()) => Ok(config.effective()),
                Err(error) => Err(format!("{}: {error}", path.display())),
            };
            match read_config(Some(path)).and_then(good) {
                Ok(text) => text,
                Err(error) => return refuse(&error),
            }
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads it has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn refuse(error: &str) -> ExitCode {
    // Without stderr there is nobody to tell.
    let _ = writeln!(io::stderr(), "ringmq: {error}");
    ExitCode::from(EXIT_USAGE)
}

/// Logs go to stderr: `RUST_LOG` decides, or else `process.log`. A panic is logged as well.
fn start_log(config: &Config) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => {
            EnvFilter::try_new(&text).map_err(|error| format!("RUST_LOG={text}: {error}"))?
        }
        _ => EnvFilter::try_new(config.text("process.log")).map_err(|error| format!("process.log: {error}"))?,
    };
    let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let trace = std::backtrace::Backtrace::capture();
        tracing::error!(thread = thread.name().unwrap_or("?"), "{panic}\n{trace}");
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn dev(line: &str) -> Result<Config, String> {
        let cli = Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        match cli.command {
            None => dev_config(&DevArgs::default()),
            Some(Command::Dev(args)) => dev_config(&args),
            Some(_) => panic!("{line} is dev"),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        for words in ["dev", "broker", "namesrv", "check-config", "log", "log stat", "log check", "log dump"] {
            for option in ["--help", "--version"] {
                let line = ["ringmq"].into_iter().chain(words.split(' ')).chain([option]);
                let shown = Cli::try_parse_from(line).map(|_| ()).unwrap_err();
                assert_eq!(shown.exit_code(), 0, "{words} {option}");
            }
        }
    }

    #[test]
    fn dev_options_become_keys_and_outrank_what_dev_suggests() {
        let config = dev("ringmq").unwrap();
        config.check().unwrap();
        assert_eq!(config.text("broker.listen"), "127.0.0.1");
        assert_eq!(config.text("namesrv.kv_path"), "./data/namesrv/kv.json");
        let line = "ringmq dev --data /d --namesrv-port 0 --broker-port 7000 --flush async --cores 2 --cpus 0,1 \
                    --set broker.listen=0.0.0.0 --set log.segment_bytes=64MiB";
        let config = dev(line).unwrap();
        config.check().unwrap();
        assert_eq!((config.port("namesrv.port"), config.port("broker.port")), (0, 7000));
        assert_eq!((config.text("log.flush"), config.size("engine.cores")), ("async", 2));
        assert_eq!((config.cpus(), config.text("namesrv.kv_path")), (vec![0, 1], "/d/namesrv/kv.json"));
        assert_eq!((config.text("broker.listen"), config.number("log.segment_bytes")), ("0.0.0.0", 64 << 20));
        assert_eq!(config.source("log.prepare_bytes"), Source::Dev);
    }

    #[test]
    fn wrong_words_are_refused_by_name() {
        let table = [
            ("ringmq dev --flush maybe", "maybe"),
            ("ringmq dev --cores 65", "engine.cores"),
            ("ringmq dev --cpus x", "engine.cpus"),
            ("ringmq dev --set log.flush", "KEY=VALUE"),
            ("ringmq dev --set log.flash=1", "log.flash"),
            ("ringmq dev --broker-port 65536", "65536"),
            ("ringmq dev -c /no/such/file", "/no/such/file"),
            ("ringmq fly", "fly"),
        ];
        for (line, words) in table {
            assert!(dev(line).err().is_some_and(|error| error.contains(words)), "{line}");
        }
    }
}
