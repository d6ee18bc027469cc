//! Settings of a NameServer, and the properties text in which `mqadmin` reads and changes them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use transport::ServerLimits;

use crate::kv::KvLimits;
use crate::routes::RouteLimits;

/// Longest broker time-out that a registration may ask for: a day, in milliseconds.
pub const BROKER_TIMEOUT_MS_MAX: u64 = 24 * 3600 * 1000;

/// Settings of a NameServer. Names in brackets are those of a stock `namesrv.conf`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen [listenPort]. All addresses, port 9876; port 0 lets the kernel choose.
    pub listen: Vec<SocketAddr>,
    /// The file of the key-value settings [kvConfigPath]. Its directory is made if it is missing.
    pub kv_path: PathBuf,
    /// How often brokers are checked for signs of life [scanNotActiveBrokerInterval]. 5,000 ms
    /// (10 ms to 10 min).
    pub scan_interval_ms: u64,
    /// How long a broker lives without one, unless it says otherwise itself. 120,000 ms (100 ms
    /// to a day).
    pub broker_timeout_ms: u64,
    /// Settings that can change while it runs.
    pub switches: Switches,
    /// Bounds of the route table.
    pub routes: RouteLimits,
    /// Bounds of the key-value settings.
    pub kv: KvLimits,
    /// Bounds of the connections.
    pub server: ServerLimits,
}

/// What `mqadmin updateNamesrvConfig` can change. Lasts until the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switches {
    /// Routes carry the order configuration of their topic [orderMessageEnable]. Off.
    pub order_message: bool,
    /// A registration is answered with the order topics [returnOrderTopicConfigToBroker]. On.
    pub return_order_topics: bool,
    /// Topic lists by cluster and unit are answered [enableTopicList]. On.
    pub topic_list: bool,
    /// The list of all topics is answered [enableAllTopicList]. On.
    pub all_topic_list: bool,
    /// A registration forgets the topics that it does not name [deleteTopicWithBrokerRegistration].
    /// Off: brokers may report single changes.
    pub delete_missing_topics: bool,
    /// No route is answered for a while after the start [needWaitForService]. Off.
    pub wait_for_service: bool,
    /// How long [waitSecondsForService]. 45 s (0 to 3,600 s).
    pub wait_seconds: u64,
}

impl Default for Switches {
    fn default() -> Switches {
        Switches {
            order_message: false,
            return_order_topics: true,
            topic_list: true,
            all_topic_list: true,
            delete_missing_topics: false,
            wait_for_service: false,
            wait_seconds: 45,
        }
    }
}

/// Why properties were not taken. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateError {
    /// A path: changing it from afar is forbidden.
    Forbidden(String),
    /// An unknown key, a value out of range, or no text at all.
    Invalid(String),
}

impl Config {
    /// - `kv_path`: the file of the key-value settings.
    /// - `listen`: one address; everything else has its default.
    pub fn new(listen: SocketAddr, kv_path: impl Into<PathBuf>) -> Config {
        Config {
            listen: vec![listen],
            kv_path: kv_path.into(),
            scan_interval_ms: 5_000,
            broker_timeout_ms: 120_000,
            switches: Switches::default(),
            routes: RouteLimits::default(),
            kv: KvLimits::default(),
            server: ServerLimits { idle_timeout: Duration::from_secs(120), ..ServerLimits::default() },
        }
    }

    /// `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() {
            return Err("listen must name at least one address".into());
        }
        if !(10..=600_000).contains(&self.scan_interval_ms) {
            return Err("scan_interval_ms must be 10 to 600,000".into());
        }
        if !(100..=BROKER_TIMEOUT_MS_MAX).contains(&self.broker_timeout_ms) {
            return Err(format!("broker_timeout_ms must be 100 to {BROKER_TIMEOUT_MS_MAX}"));
        }
        self.switches.check()?;
        self.routes.check()?;
        self.kv.check()?;
        self.server.check()
    }

    /// All settings as lines `key=value`, under their stock names where there is one (319).
    /// `port` is the real one, `switches` those in force.
    pub fn properties(&self, port: u16, switches: &Switches) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            text.push_str(&format!("{key}={value}\n"));
        };
        line("listenPort", &port);
        line("kvConfigPath", &self.kv_path.display());
        line("scanNotActiveBrokerInterval", &self.scan_interval_ms);
        line("brokerTimeoutMillis", &self.broker_timeout_ms);
        for (key, switch) in SWITCHES {
            line(key, switch(&mut switches.clone()));
        }
        line(WAIT_SECONDS, &switches.wait_seconds);
        line("serverChannelMaxIdleTimeSeconds", &self.server.idle_timeout.as_secs());
        line("connectionsMax", &self.server.connections_max);
        line("brokersMax", &self.routes.brokers_max);
        line("queuesMax", &self.routes.queues_max);
        line("kvBytesMax", &self.kv.bytes_max);
        text
    }
}

/// Where a switch lies.
type Switch = fn(&mut Switches) -> &mut bool;

/// Switches that are on or off, by their stock names.
const SWITCHES: [(&str, Switch); 6] = [
    ("orderMessageEnable", |switches| &mut switches.order_message),
    ("returnOrderTopicConfigToBroker", |switches| &mut switches.return_order_topics),
    ("enableTopicList", |switches| &mut switches.topic_list),
    ("enableAllTopicList", |switches| &mut switches.all_topic_list),
    ("deleteTopicWithBrokerRegistration", |switches| &mut switches.delete_missing_topics),
    ("needWaitForService", |switches| &mut switches.wait_for_service),
];
const WAIT_SECONDS: &str = "waitSecondsForService";
/// Keys that nobody may change from afar, as in a stock NameServer.
const FORBIDDEN: [&str; 3] = ["configBlackList", "configStorePath", "kvConfigPath"];

impl Switches {
    /// `Err` names the field and its range.
    pub fn check(&self) -> Result<(), String> {
        match self.wait_seconds {
            0..=3_600 => Ok(()),
            _ => Err("waitSecondsForService must be 0 to 3,600".into()),
        }
    }

    /// Takes lines `key=value` (318): all of them or, if one is wrong, none. Empty lines and lines
    /// that begin with `#` or `!` say nothing, as in Java's properties.
    pub fn update(&mut self, text: &str) -> Result<(), UpdateError> {
        let mut changed = self.clone();
        let mut count = 0;
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            changed.set(key.trim(), value.trim())?;
            count += 1;
        }
        if count == 0 {
            return Err(UpdateError::Invalid("string2Properties error".into()));
        }
        changed.check().map_err(UpdateError::Invalid)?;
        *self = changed;
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), UpdateError> {
        let invalid = |what: &str| Err(UpdateError::Invalid(format!("{key}: {what}")));
        if FORBIDDEN.contains(&key) {
            return Err(UpdateError::Forbidden("Can not update config in black list.".into()));
        }
        if let Some((_, switch)) = SWITCHES.iter().find(|(name, _)| *name == key) {
            return match value.parse() {
                Ok(value) => {
                    *switch(self) = value;
                    Ok(())
                }
                Err(_) => invalid("must be true or false"),
            };
        }
        if key == WAIT_SECONDS {
            return match value.parse() {
                Ok(value) => {
                    self.wait_seconds = value;
                    Ok(())
                }
                Err(_) => invalid("must be a number of seconds"),
            };
        }
        invalid("cannot be changed while it runs, or is unknown")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("127.0.0.1:0".parse().unwrap(), "kv.json")
    }

    #[test]
    fn defaults_are_in_range_and_others_name_their_field() {
        config().check().unwrap();
        type Break = fn(&mut Config);
        let cases: [(&str, Break); 7] = [
            ("listen", |c| c.listen.clear()),
            ("scan_interval_ms", |c| c.scan_interval_ms = 1),
            ("broker_timeout_ms", |c| c.broker_timeout_ms = 0),
            ("waitSecondsForService", |c| c.switches.wait_seconds = 9999),
            ("brokers_max", |c| c.routes.brokers_max = 0),
            ("bytes_max", |c| c.kv.bytes_max = 0),
            ("connections_max", |c| c.server.connections_max = 0),
        ];
        for (name, spoil) in cases {
            let mut config = config();
            spoil(&mut config);
            assert!(config.check().unwrap_err().contains(name), "{name}");
        }
    }

    #[test]
    fn every_switch_can_be_read_and_changed() {
        let config = config();
        let mut switches = Switches::default();
        for (key, switch) in SWITCHES {
            let before = *switch(&mut switches);
            switches.update(&format!("# by hand\n\n{key} = {}\n", !before)).unwrap();
            assert_eq!(*switch(&mut switches), !before);
            assert!(config.properties(9876, &switches).contains(&format!("\n{key}={}\n", !before)));
        }
        switches.update("waitSecondsForService=7").unwrap();
        assert!(config.properties(9876, &switches).contains("waitSecondsForService=7\n"));
        assert!(config.properties(9876, &switches).starts_with("listenPort=9876\nkvConfigPath=kv.json\n"));
    }

    #[test]
    fn a_wrong_line_changes_nothing() {
        let cases = [
            ("", false),
            ("# only a comment", false),
            ("orderMessageEnable=true\nnoSuchKey=1", false),
            ("orderMessageEnable=true\nenableTopicList=perhaps", false),
            ("orderMessageEnable=true\nwaitSecondsForService=-1", false),
            ("orderMessageEnable=true\nwaitSecondsForService=99999", false),
            ("orderMessageEnable=true\nkvConfigPath=/etc/passwd", true),
            ("orderMessageEnable=true\nconfigBlackList=", true),
        ];
        for (text, is_forbidden) in cases {
            let mut switches = Switches::default();
            let error = switches.update(text).unwrap_err();
            assert_eq!(matches!(error, UpdateError::Forbidden(_)), is_forbidden, "{text}");
            assert_eq!(switches, Switches::default(), "{text}");
        }
    }
}
