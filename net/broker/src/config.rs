//! The configuration: one TOML file, every key optional, an unknown key an error. What handlers
//! need of it is [`Settings`], immutable and shared.

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use crate::keys::{self, KEYS, Key, Kind, Unit};

mod knobs;
mod settings;
mod value;

pub use knobs::{ChangeError, Changes, KNOBS_KEY};
pub use settings::{Flush, Found, Limits, Settings};
use value::{Value, range};

/// A configuration file is at most this long. 1 MiB: all keys together need a hundredth of it.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Each log of a core gets at least so much of its memory: some chunks for batches under way. 8 MiB.
const TAIL_BYTES_LEAST: u64 = 8 << 20;

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The line in the file, from 1, if it is about one.
    pub line: Option<usize>,
    /// What is wrong; names the key and its range.
    pub text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Where a value comes from. A later one outranks an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The table in `keys.rs`.
    Default,
    /// What `ringmq dev` sets for itself.
    Dev,
    /// The file, at this line.
    File(usize),
    /// An option of the command line.
    CommandLine,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::Dev => f.write_str("dev"),
            Source::File(line) => write!(f, "file, line {line}"),
            Source::CommandLine => f.write_str("command line"),
        }
    }
}

/// Every key with its value and where that comes from. Values are in range; [`Config::check`]
/// says whether they agree with one another.
#[derive(Clone, Debug)]
pub struct Config {
    /// One for each of `KEYS`.
    entries: Vec<(Value, Source)>,
}

impl Default for Config {
    fn default() -> Config {
        Config { entries: KEYS.iter().map(|key| (Value::default_of(key), Source::Default)).collect() }
    }
}

impl Config {
    /// Reads a file's text over the defaults. Does not yet [`check`](Config::check), because the
    /// command line may still change values.
    pub fn load(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        let line_of = |at: usize| 1 + text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        let document = DeTable::parse(text).map_err(|error| ConfigError {
            line: error.span().map(|span| line_of(span.start)),
            text: error.message().to_string(),
        })?;
        for (section, entries) in document.get_ref() {
            let line = line_of(section.span().start);
            let section = section.get_ref();
            let Some(entries) = entries.get_ref().as_table().filter(|_| is_section(section)) else {
                return Err(ConfigError { line: Some(line), text: unknown_section(section) });
            };
            for (name, value) in entries {
                let line = line_of(name.span().start);
                let name = format!("{section}.{}", name.get_ref());
                config.take(&name, value.get_ref(), line).map_err(|text| ConfigError { line: Some(line), text })?;
            }
        }
        Ok(config)
    }

    /// Sets one key from text, as on the command line: `log.flush`, `async`.
    pub fn set(&mut self, name: &str, text: &str, source: Source) -> Result<(), ConfigError> {
        let result = match keys::find(name) {
            None => Err(unknown_key(name)),
            Some((index, key)) => Value::parse(key, text).map(|value| self.entries[index] = (value, source)),
        };
        result.map_err(|text| ConfigError { line: None, text })
    }

    /// What `ringmq dev` would rather have, unless somebody said otherwise. A value out of range is our
    /// mistake.
    pub fn suggest(&mut self, name: &str, text: &str) {
        let index = index_of(name);
        if self.entries[index].1 == Source::Default {
            match Value::parse(&KEYS[index], text) {
                Ok(value) => self.entries[index] = (value, Source::Dev),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether values agree with one another. `Err` names the keys.
    pub fn check(&self) -> Result<(), ConfigError> {
        let slots = self.number("engine.ring_slots") * self.number("engine.cores").max(1);
        let rules = [
            (
                self.number("log.segment_bytes").is_multiple_of(1 << 20),
                "log.segment_bytes must be a multiple of 1 MiB".to_string(),
            ),
            (
                self.number("engine.receive_buffers").is_power_of_two(),
                "engine.receive_buffers must be a power of two".to_string(),
            ),
            (
                self.number("engine.receive_buffer_bytes").is_multiple_of(4096),
                "engine.receive_buffer_bytes must be a multiple of 4096".to_string(),
            ),
            (
                self.number("log.tail_bytes") >= TAIL_BYTES_LEAST * self.number("engine.partitions_per_core"),
                "log.tail_bytes must be at least 8 MiB for each of engine.partitions_per_core".to_string(),
            ),
            (
                self.number("limits.connections") < slots,
                format!("limits.connections must be below engine.ring_slots times engine.cores, {slots}"),
            ),
            (
                self.number("engine.ring_depth") <= self.number("engine.ring_slots"),
                "engine.ring_depth must not exceed engine.ring_slots".to_string(),
            ),
            (
                self.cpus().is_empty() || self.number("engine.cores") <= self.cpus().len() as u64,
                "engine.cpus must name a CPU for each of engine.cores".to_string(),
            ),
            (
                !matches!(self.number("broker.port"), 1..=2),
                "broker.port must be 0, or 3 to 65535, so that there is a fast port below".to_string(),
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, text)) => Err(ConfigError { line: None, text }),
            None => Ok(()),
        }
    }

    /// All keys with value and source, as a TOML file that would give the same configuration.
    pub fn effective(&self) -> String {
        let mut out = String::new();
        for (section, key, name, (value, source)) in self.rows() {
            if let Some(section) = section {
                let _ = writeln!(out, "{}[{section}]", if out.is_empty() { "" } else { "\n" });
            }
            let assignment = format!("{name} = {}", value.show(&key.kind));
            let _ = writeln!(out, "{assignment:<44} # {source}");
        }
        out
    }

    /// The table of keys as a TOML file of comments: what each is for, default and range.
    pub fn document() -> String {
        let mut out = String::from("# Every key is optional. What stands here are the defaults.\n");
        for (section, key, name, (value, _)) in Config::default().rows() {
            if let Some(section) = section {
                let _ = writeln!(out, "\n[{section}]");
            }
            let _ = writeln!(out, "# {} ({})\n#{name} = {}", key.why, range(&key.kind), value.show(&key.kind));
        }
        out
    }

    /// The number of a key. Asking for a key that is not there is our mistake.
    pub fn number(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Number(number) => *number,
            other => panic!("{name} is {other:?}, not a number"),
        }
    }

    /// The number of a key, as a size or index in memory.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.number(name)).expect("ranges fit: Linux here has 64 bits")
    }

    /// The switch of a key.
    pub fn switch(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Switch(switch) => *switch,
            other => panic!("{name} is {other:?}, not a switch"),
        }
    }

    /// The text of a key.
    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(text) => text,
            other => panic!("{name} is {other:?}, not a text"),
        }
    }

    /// The port of a key.
    pub fn port(&self, name: &str) -> u16 {
        u16::try_from(self.number(name)).expect("the range of a port was checked")
    }

    /// The IP address of a key.
    pub fn address(&self, name: &str) -> IpAddr {
        self.text(name).parse().expect("an address was checked when it was set")
    }

    /// `log.dir`.
    pub fn data_dir(&self) -> PathBuf {
        PathBuf::from(self.text("log.dir"))
    }

    /// `engine.cpus`; empty if the choice is ours.
    pub fn cpus(&self) -> Vec<usize> {
        keys::cpus(self.text("engine.cpus")).unwrap_or_default()
    }

    /// `broker.namesrv`.
    pub fn servers(&self) -> Vec<String> {
        keys::servers(self.text("broker.namesrv")).expect("servers were checked when they were set")
    }

    /// Where the value of a key comes from.
    pub fn source(&self, name: &str) -> Source {
        self.entries[index_of(name)].1
    }

    fn value(&self, name: &str) -> &Value {
        &self.entries[index_of(name)].0
    }

    fn take(&mut self, name: &str, value: &DeValue<'_>, line: usize) -> Result<(), String> {
        let Some((index, key)) = keys::find(name) else { return Err(unknown_key(name)) };
        let wrong = || format!("{name} must be {}", range(&key.kind));
        let text = match (key.kind, value) {
            (Kind::Number { .. }, DeValue::Integer(number)) => plain(number).ok_or_else(wrong)?,
            (Kind::Number { unit: Unit::Bytes, .. }, DeValue::String(text)) => text.to_string(),
            (Kind::Switch { .. }, DeValue::Boolean(switch)) => switch.to_string(),
            (Kind::Choice { .. } | Kind::Text { .. }, DeValue::String(text)) => text.to_string(),
            (Kind::Text { .. }, DeValue::Array(array)) => {
                let part = |value: &DeValue<'_>| match value {
                    DeValue::String(text) => Some(text.to_string()),
                    DeValue::Integer(number) => plain(number),
                    _ => None,
                };
                let parts: Option<Vec<_>> = array.iter().map(|value| part(value.get_ref())).collect();
                parts.ok_or_else(wrong)?.join(",")
            }
            _ => return Err(wrong()),
        };
        self.entries[index] = (Value::parse(key, &text)?, Source::File(line));
        Ok(())
    }

    /// Section (where it begins), key, name within the section, entry: in the order of the table.
    fn rows(&self) -> impl Iterator<Item = (Option<&'static str>, &'static Key, &'static str, (Value, Source))> {
        let mut last = "";
        KEYS.iter().zip(&self.entries).map(move |(key, entry)| {
            let (section, name) = split(key);
            let begins = (section != last).then_some(section);
            last = section;
            (begins, key, name, entry.clone())
        })
    }
}

fn index_of(name: &str) -> usize {
    match keys::find(name) {
        Some((index, _)) => index,
        None => panic!("{name} is not in the table of keys"),
    }
}

fn split(key: &Key) -> (&'static str, &'static str) {
    key.name.split_once('.').expect("a test holds that every key has a section")
}

fn is_section(section: &str) -> bool {
    KEYS.iter().any(|key| split(key).0 == section)
}

fn unknown_section(section: &str) -> String {
    let mut sections: Vec<_> = KEYS.iter().map(|key| split(key).0).collect();
    sections.dedup();
    format!("unknown section or key `{section}`; the sections are {}", sections.join(", "))
}

fn unknown_key(name: &str) -> String {
    match name.split_once('.') {
        Some((section, _)) if is_section(section) => {
            let of = |key: &&Key| split(key).0 == section;
            let names: Vec<_> = KEYS.iter().filter(of).map(|key| split(key).1).collect();
            format!("unknown key `{name}`; section {section} has {}", names.join(", "))
        }
        _ => unknown_section(name),
    }
}

/// An integer of the file as decimal digits. `None` if it does not fit, or is below zero.
fn plain(number: &toml::de::DeInteger<'_>) -> Option<String> {
    let number = u64::from_str_radix(number.as_str(), number.radix()).ok()?;
    Some(number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_defaults_and_they_agree() {
        let config = Config::load("").unwrap();
        config.check().unwrap();
        let settings = config.settings(Found::one_core());
        assert_eq!(settings.address(), "127.0.0.1:10911");
        assert_eq!((settings.limits.message_bytes, settings.flush), (4 << 20, Flush::Sync));
        let delays = [0, -1, 1, 3, 18, 99].map(|level| settings.delay_ms(level));
        let last = Some(7_200_000);
        assert_eq!(delays, [None, None, Some(1_000), Some(10_000), last, last]);
    }

    #[test]
    fn values_are_taken_in_their_forms() {
        let text = "[log]\nsegment_bytes = \"256MiB\"\nbatch_bytes = 0x40000\nflush = 'async'\n\
                    [engine]\ncpus = [0, \"2-3\"]\ncores = 2\n[broker]\nauto_create_topic = false\n\
                    namesrv = ['a:1', 'b:2']";
        let config = Config::load(text).unwrap();
        config.check().unwrap();
        assert_eq!(config.number("log.segment_bytes"), 256 << 20);
        assert_eq!(config.number("log.batch_bytes"), 256 << 10);
        assert_eq!(config.cpus(), [0, 2, 3]);
        assert_eq!(config.servers(), ["a:1", "b:2"]);
        assert!(!config.switch("broker.auto_create_topic"));
        assert_eq!(config.source("log.flush"), Source::File(4));
        assert_eq!(config.source("log.dir"), Source::Default);
    }

    #[test]
    fn errors_name_line_key_and_range() {
        let table = [
            ("[log]\nflush = 'maybe'", Some(2), "log.flush = \"maybe\" must be sync or async"),
            ("[log]\n\ninflight_batches = 33", Some(3), "log.inflight_batches = \"33\" must be 1 to 32"),
            ("[log]\nsegment_bytes = '15MiB'", Some(2), "log.segment_bytes = \"15MiB\" must be 16MiB to 4GiB"),
            ("[log]\nsegment_bytes = true", Some(2), "log.segment_bytes must be 16MiB to 4GiB"),
            ("[log]\nflush_interval_ms = -1", Some(2), "log.flush_interval_ms must be 1 to 60000 ms"),
            ("[log]\nflush_interval_ms = 1.5", Some(2), "log.flush_interval_ms must be 1 to 60000 ms"),
            ("[broker]\nname = 5", Some(2), "broker.name must be 1 to 120 of"),
            ("[broker]\nname = 'a b'", Some(2), "broker.name = \"a b\" must be 1 to 120 of"),
            ("[broker]\nauto_create_topic = 'yes'", Some(2), "must be true or false"),
            ("[broker]\nport = 65536", Some(2), "broker.port = \"65536\" must be 0 to 65535"),
            ("[log]\nflash = 1", Some(2), "unknown key `log.flash`; section log has dir,"),
            ("\n[lag]\nflush = 1", Some(2), "unknown section or key `lag`; the sections are broker,"),
            ("cores = 1", Some(1), "unknown section or key `cores`"),
            ("[log]\nflush = 'sync'\nflush = 'sync'", Some(3), "duplicate key"),
            ("[log]\nflush = ", Some(2), ""),
        ];
        for (text, line, words) in table {
            let error = Config::load(text).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.text.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn values_that_disagree_are_refused() {
        let table = [
            ("limits.connections", "32768", "engine.ring_slots"),
            ("engine.ring_slots", "1024", "limits.connections"),
            ("engine.receive_buffer_bytes", "5000", "multiple of 4096"),
            ("engine.receive_buffers", "100", "power of two"),
            ("log.segment_bytes", "67108865", "multiple of 1 MiB"),
            ("broker.port", "2", "broker.port"),
            ("engine.partitions_per_core", "9", "log.tail_bytes"),
        ];
        for (name, value, words) in table {
            let mut config = Config::default();
            config.set(name, value, Source::CommandLine).unwrap();
            let error = config.check().unwrap_err();
            assert!(error.text.contains(words), "{name}: {error}");
        }
        let mut config = Config::default();
        config.set("engine.cpus", "0", Source::CommandLine).unwrap();
        config.set("engine.cores", "2", Source::CommandLine).unwrap();
        assert!(config.check().unwrap_err().text.contains("engine.cpus"));
        assert!(config.set("no.such", "1", Source::CommandLine).is_err());
    }

    #[test]
    fn the_effective_configuration_gives_itself() {
        let mut config = Config::load("[log]\ndir = 'a \"b\" \\ c'\ntail_bytes = 33554433").unwrap();
        config.set("broker.port", "0", Source::CommandLine).unwrap();
        config.set("broker.listen", "127.0.0.1", Source::Dev).unwrap();
        let text = config.effective();
        assert!(text.contains("# command line") && text.contains("# dev") && text.contains("# file, line 3"));
        let again = Config::load(&text).unwrap();
        let values = |config: &Config| config.entries.iter().map(|(value, _)| value.clone()).collect::<Vec<_>>();
        assert_eq!(values(&again), values(&config));
        Config::load(&Config::document()).unwrap().check().unwrap();
    }

    #[test]
    fn the_profiles_are_good() {
        for text in [include_str!("../../../tuning/small.toml"), include_str!("../../../tuning/dedicated.toml")] {
            Config::load(text).unwrap().check().unwrap();
        }
    }

    #[test]
    fn every_prefix_of_a_file_is_an_answer_not_a_panic() {
        let text = Config::default().effective();
        for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
            let _ = Config::load(&text[..end]);
        }
    }
}
