//! `ringmq-bench`: loads a device, the engine or a broker as job files say, and reports like fio.

use bench::compare::Comparison;
use bench::jobfile::Sections;
use bench::options::{Job, KEYS};
use bench::{json, limit, points, report, run};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;

const HEAD: &str = "\
ringmq-bench: loads a device, RingMQ's engine or a broker, and reports like fio

  ringmq-bench [OPTIONS] JOBFILE...            jobs from files in fio's form
  ringmq-bench [OPTIONS] --name=JOB --KEY=VALUE ... [--name=JOB2 ...]
  ringmq-bench [--broker IP:PORT] [--points 1x1,16x32] [--seconds N] ... send|pull
                                               the short form: a JSON line for each point (`send --help`)
  ringmq-bench limit serve FILE | limit load ADDRESS ...
                                               what this host could give: a toy server and its load (`limit --help`)
  ringmq-bench compare LINES [SVG]             tables and a picture of what bench/compare measured

  ringmq-bench --name=probe --rw=produce --bs=1k --numjobs=16 --iodepth=32 --runtime=10 --group_reporting

Options:
  --output-format=FORMAT   normal, json, or normal,json                 --output-format=json         [normal]
  --output=FILE            where the report goes                        --output=run.json            [stdout]
  --eta=WHEN               the progress line: auto (a terminal), always, never   --eta=never           [auto]
  --parse-only             check the jobs and end                       --parse-only
  --version, --help

A job file has sections: [global] holds for those behind it, every other one is a job. SIGINT ends all jobs and
reports what was measured. An IO is a message. Sizes: 1k is 1024; counts: 1k is 1000.

Keys:
";

#[derive(Default)]
struct Options {
    sections: Sections,
    format: Option<String>,
    output: Option<String>,
    eta: Option<String>,
    parse_only: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let short = arguments.iter().any(|argument| argument == "send" || argument == "pull");
    let done = match arguments.first().map(String::as_str) {
        Some("compare") => compare(&arguments[1..]).map(|()| true),
        Some("limit") => limit::main().map(|()| true),
        _ if short => points::main().map(|()| true),
        _ => job_main(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // The one line that a script's reader needs.
            let _ = io::stderr().write_all(format!("ringmq-bench: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all went well.
fn job_main(arguments: &[String]) -> Result<bool, String> {
    let mut options = Options::default();
    for argument in arguments {
        match argument.as_str() {
            "--help" | "-h" => return print(&help()).map(|()| true),
            "--version" | "-v" => return print(&format!("{}\n", report::version())).map(|()| true),
            _ => options.take(argument)?,
        }
    }
    let sections = std::mem::take(&mut options.sections).finish()?;
    let jobs = sections.iter().map(Job::new).collect::<Result<Vec<_>, _>>()?;
    let format = options.format.as_deref().unwrap_or("normal");
    if !["normal", "json", "normal,json", "json,normal"].contains(&format) {
        return Err(format!("--output-format={format}: it is normal, json, or normal,json"));
    }
    let show = match options.eta.as_deref().unwrap_or("auto") {
        "auto" => run::is_watched(),
        "always" => true,
        "never" => false,
        other => return Err(format!("--eta={other}: it is auto, always or never")),
    };
    if options.parse_only {
        return Ok(true);
    }
    let head = report::head(&jobs);
    let outcomes = run::run(jobs, show)?;
    let mut text = String::new();
    if format.contains("normal") {
        text += &head;
        text += &report::text(&outcomes);
    }
    if format.contains("json") {
        let document = serde_json::to_string_pretty(&json::document(&outcomes)).map_err(|error| error.to_string())?;
        text += &document;
        text.push('\n');
    }
    match &options.output {
        Some(file) => fs::write(file, text).map_err(|error| format!("--output={file}: {error}"))?,
        None => print(&text)?,
    }
    outcomes.iter().try_for_each(json::write_logs)?;
    Ok(outcomes.iter().all(|outcome| outcome.failure.is_none() && outcome.stats.errors == 0))
}

/// Prints the tables of a file of lines, and writes the picture.
fn compare(arguments: &[String]) -> Result<(), String> {
    let [lines, svg @ ..] = arguments else { return Err("compare: which LINES? See --help".to_owned()) };
    let text = fs::read_to_string(lines).map_err(|error| format!("{lines}: {error}"))?;
    let comparison = Comparison::read(&text).map_err(|error| format!("{lines}: {error}"))?;
    if let Some(svg) = svg.first() {
        fs::write(svg, comparison.svg()).map_err(|error| format!("{svg}: {error}"))?;
    }
    print(&comparison.markdown())
}

impl Options {
    fn take(&mut self, argument: &str) -> Result<(), String> {
        let Some(option) = argument.strip_prefix("--") else {
            let text = fs::read_to_string(argument).map_err(|error| format!("{argument}: {error}"))?;
            return self.sections.read(argument, &text);
        };
        match option.split_once('=') {
            Some(("output-format", value)) => self.format = Some(value.to_owned()),
            Some(("output", value)) => self.output = Some(value.to_owned()),
            Some(("eta", value)) => self.eta = Some(value.to_owned()),
            None if option == "parse-only" => self.parse_only = true,
            _ => self.sections.argument(option)?,
        }
        Ok(())
    }
}

fn help() -> String {
    let mut out = HEAD.to_owned();
    for key in KEYS {
        let names = if key.aliases.is_empty() { String::new() } else { format!("  (also {})", key.aliases.join(", ")) };
        let _ = writeln!(out, "  --{}{names}", key.example);
        let mut line = String::new();
        for word in key.text.split_whitespace() {
            if line.len() + word.len() > 100 {
                let _ = writeln!(out, "      {line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        let _ = writeln!(out, "      {line}");
    }
    out
}

fn print(text: &str) -> Result<(), String> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| format!("stdout: {error}"))
}
