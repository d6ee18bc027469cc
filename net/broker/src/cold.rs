//! Flow control of groups that read old messages (cold-data flow control, 2001 to 2003; off by default). Who has read
//! more from disk than his share in this interval waits for the next one. Old is what is not in the memory of the
//! log's tail.
//!
//! Core 0 keeps the account of all: whoever answers a pull from disk tells it. It tells every core who is over his
//! share; until the interval ends, a pull of such a group is looked at more closely.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use ahash::RandomState;
use engine::io::Pieces;
use hashbrown::HashSet;
use protocol::bodies::{self, ColdFlow, ColdReader, ConsumeType};
use protocol::codes::response;
use protocol::names;

use crate::answer::BUSY;
use crate::call::{Call, ConnectionId};
use crate::config::Settings;
use crate::desk::Desk;
use crate::mail::Mail;
use crate::parked::Pull;

/// How long a share is for. 5 s, as in RocketMQ. Milliseconds.
pub const INTERVAL_MS: u64 = 5_000;
/// A group that read nothing from disk for so long is forgotten. 60 s, as in RocketMQ. Milliseconds.
pub const IDLE_MS: u64 = 60_000;
/// How long a pull of an application that pulls by itself is held. 3 s, as in RocketMQ. Milliseconds.
pub const HOLD_MS: u64 = 3_000;
/// Groups whose reads are counted at once. 16,384, some 100 bytes each. Those of one more are not.
pub const READERS_MAX: usize = 16_384;
/// Groups with a share of their own. 16,384: a fleet's; those that an operator set are not forgotten.
pub const SHARES_MAX: usize = 16_384;
/// Pulls that are held, per core. 10,000, as in RocketMQ; one more is refused with code 2.
pub const HELD_MAX: usize = 10_000;

/// How many groups lose a part of what was added to their shares, in an interval.
const SHRINKING_MAX: usize = 3;
/// Intervals that the closed loop looks back on.
const ERRORS_MAX: usize = 10;

/// Who reads how much, of all cores.
#[derive(Debug, Default)]
pub struct ColdReads {
    /// Its number since 1970.
    interval: u64,
    /// Read in it by all, and whether all were told that it is too much.
    bytes: u64,
    is_told: bool,
    readers: BTreeMap<Arc<str>, Reader>,
    /// What an operator set (2001).
    shares: BTreeMap<String, u64>,
    /// What was made of the usual share, if that adapts.
    adapted: BTreeMap<Arc<str>, u64>,
    /// By how much all stayed below what is aimed at, in the last intervals.
    errors: VecDeque<i64>,
}

#[derive(Debug)]
struct Reader {
    /// In this interval.
    bytes: u64,
    is_told: bool,
    since_ms: u64,
    last_ms: u64,
}

/// Who reads too much in an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Over {
    /// The interval's number since 1970.
    pub interval: u64,
    /// The group; `None`: all together.
    pub group: Option<Arc<str>>,
}

impl ColdReads {
    /// A group was given messages from disk. Returns who is over his share now and was not before.
    pub fn read(&mut self, group: &Arc<str>, bytes: u64, settings: &Settings, now_ms: u64) -> Vec<Over> {
        self.on_time(settings, now_ms);
        self.bytes += bytes;
        let mut over = Vec::new();
        let share = self.share(group, settings);
        if let Some(reader) = self.reader(group, now_ms) {
            reader.bytes += bytes;
            reader.last_ms = now_ms;
            if reader.bytes >= share && !reader.is_told {
                reader.is_told = true;
                over.push(Over { interval: self.interval, group: Some(group.clone()) });
            }
        }
        if self.bytes >= settings.cold_read_bytes && !self.is_told {
            self.is_told = true;
            over.push(Over { interval: self.interval, group: None });
        }
        over
    }

    fn reader(&mut self, group: &Arc<str>, now_ms: u64) -> Option<&mut Reader> {
        if !self.readers.contains_key(group) {
            if self.readers.len() >= READERS_MAX {
                return None;
            }
            let reader = Reader { bytes: 0, is_told: false, since_ms: now_ms, last_ms: now_ms };
            self.readers.insert(group.clone(), reader);
        }
        self.readers.get_mut(group)
    }

    /// Begins the next interval, if it is time. To be called about every second.
    pub fn on_time(&mut self, settings: &Settings, now_ms: u64) {
        let interval = now_ms / INTERVAL_MS;
        if interval == self.interval {
            return;
        }
        self.interval = interval;
        self.adapt(settings, now_ms);
        self.readers.retain(|_, reader| now_ms < reader.last_ms + IDLE_MS);
        for reader in self.readers.values_mut() {
            (reader.bytes, reader.is_told) = (0, false);
        }
        (self.bytes, self.is_told) = (0, false);
    }

    /// Shares follow what the disk gives (coldCtrStrategyEnable): who used up his gets half as much again, and while
    /// all read too much the largest lose a fifth, down to the usual one.
    fn adapt(&mut self, settings: &Settings, now_ms: u64) {
        if !settings.cold_flow_adapts {
            self.adapted.clear();
            self.errors.clear();
            return;
        }
        let aim = settings.cold_read_bytes / 5 * 4;
        self.errors.push_back(signed(aim).saturating_sub(signed(self.bytes)));
        if self.errors.len() > ERRORS_MAX {
            self.errors.pop_front();
        }
        let is_over = self.bytes > settings.cold_read_bytes;
        let (grows, shrinks) = match self.correction() {
            Some(correction) if settings.cold_flow_pid => (correction > 0.0, correction < 0.0),
            None if settings.cold_flow_pid => (false, false),
            _ => (true, is_over),
        };
        for (group, reader) in &self.readers {
            if now_ms >= reader.last_ms + IDLE_MS {
                self.adapted.remove(group);
                continue;
            }
            let share = self.share(group, settings);
            if reader.bytes >= share && grows && !is_over && !self.shares.contains_key(&**group) {
                self.adapted.insert(group.clone(), share.saturating_add(share / 2));
            }
        }
        if shrinks {
            let mut largest: Vec<(u64, Arc<str>)> =
                self.adapted.iter().map(|(group, share)| (*share, group.clone())).collect();
            largest.retain(|(_, group)| !self.shares.contains_key(&**group));
            largest.sort_unstable_by(|one, other| other.cmp(one));
            for (share, group) in largest.into_iter().take(SHRINKING_MAX) {
                self.adapted.insert(group, (share / 5 * 4).max(settings.cold_read_group_bytes));
            }
        }
    }

    /// What a closed loop makes of the last errors: half of this one, 0.3 of their sum, 0.2 of how it changed
    /// (usePIDColdCtrStrategy). `None`: they are too few.
    fn correction(&self) -> Option<f64> {
        if self.errors.len() < ERRORS_MAX {
            return None;
        }
        let (now, before) = (self.errors[ERRORS_MAX - 1] as f64, self.errors[ERRORS_MAX - 2] as f64);
        let sum: f64 = self.errors.iter().map(|error| *error as f64).sum();
        Some(0.5 * now + 0.3 * sum + 0.2 * (now - before))
    }

    fn share(&self, group: &str, settings: &Settings) -> u64 {
        let set = self.shares.get(group).or_else(|| self.adapted.get(group));
        set.copied().unwrap_or(settings.cold_read_group_bytes)
    }

    /// Takes lines `group=bytes`: all of them or, if one is wrong, none. `Err` says what is.
    pub fn update(&mut self, text: &str) -> Result<(), String> {
        let mut shares = self.shares.clone();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '!'])) {
            let (group, bytes) = line.split_once('=').unwrap_or((line, ""));
            let (group, bytes) = (group.trim(), bytes.trim());
            names::check_group(group).map_err(|error| error.to_string())?;
            let Some(bytes) = bytes.parse().ok().filter(|bytes| i64::try_from(*bytes).is_ok()) else {
                return Err(format!("the threshold of {group} is a whole number of bytes, not {bytes:?}"));
            };
            shares.insert(group.to_owned(), bytes);
        }
        if shares.len() > SHARES_MAX {
            return Err(format!("at most {SHARES_MAX} groups have a threshold of their own"));
        }
        self.shares = shares;
        Ok(())
    }

    /// A group has the usual share again.
    pub fn remove(&mut self, group: &str) {
        self.shares.remove(group.trim());
    }

    /// As 2003 tells it.
    pub fn told(&self, settings: &Settings) -> ColdFlow {
        let adapted = self.adapted.iter().map(|(group, share)| (format!("{group}||adaptive"), signed(*share)));
        let set = self.shares.iter().map(|(group, share)| (group.clone(), signed(*share)));
        let reader = |(group, reader): (&Arc<str>, &Reader)| {
            let told = ColdReader {
                cold_acc: signed(reader.bytes),
                create_time_mills: signed(reader.since_ms),
                last_cold_read_time_mills: signed(reader.last_ms),
            };
            (group.to_string(), told)
        };
        ColdFlow {
            runtime_table: self.readers.iter().map(reader).collect(),
            config_table: adapted.chain(set).collect(),
            cg_cold_read_threshold: signed(settings.cold_read_group_bytes),
            global_cold_read_threshold: signed(settings.cold_read_bytes),
            global_acc: signed(self.bytes),
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What one core knows of who is over his share, and the pulls that it holds for that.
#[derive(Debug, Default)]
pub struct ColdGate {
    interval: u64,
    /// All together.
    is_shut: bool,
    groups: BTreeSet<Arc<str>>,
    /// In the order of their times.
    held: VecDeque<(u64, Pull)>,
}

impl ColdGate {
    /// Somebody is over his share.
    pub fn shut(&mut self, over: Over) {
        if over.interval < self.interval {
            return;
        }
        if over.interval > self.interval {
            (self.interval, self.is_shut) = (over.interval, false);
            self.groups.clear();
        }
        match over.group {
            Some(group) => _ = self.groups.insert(group),
            None => self.is_shut = true,
        }
    }

    fn is_shut_for(&self, group: &str, now_ms: u64) -> bool {
        self.interval == now_ms / INTERVAL_MS && (self.is_shut || self.groups.contains(group))
    }

    /// When the first of those that are held goes on, in ms.
    pub fn deadline_ms(&self) -> Option<u64> {
        self.held.front().map(|(until_ms, _)| *until_ms)
    }

    /// Forgets those of connections that are gone.
    pub fn forget(&mut self, gone: &HashSet<ConnectionId, RandomState>) {
        self.held.retain(|(_, pull)| !gone.contains(&pull.reply.connection));
    }
}

impl Desk {
    /// A group was given messages from disk.
    pub(crate) fn note_cold(&mut self, group: &Arc<str>, bytes: u64) {
        if bytes > 0 && !names::is_system_group(group) {
            // What finds no room is not counted.
            let _ = self.outbox.offer(0, Mail::ColdRead { group: group.clone(), bytes });
        }
    }

    /// Core 0 hears of that, and tells all who is over his share.
    pub(crate) fn count_cold(&mut self, group: &Arc<str>, bytes: u64, now_ms: u64) {
        for over in self.cold_reads.read(group, bytes, &self.settings, now_ms) {
            for core in 0..self.settings.cores {
                self.outbox.send(core, Mail::ColdOver(over.clone()));
            }
        }
    }

    /// Whether a pull is of a group that is over its share, and for an old message.
    pub(crate) fn is_over_share(&mut self, pull: &Pull, local: usize, now_ms: u64) -> bool {
        let Some(group) = pull.group.known() else { return false };
        let Ok(offset) = u64::try_from(pull.offset) else { return false };
        self.cold_gate.is_shut_for(&group.name, now_ms)
            && !names::is_system_group(&group.name)
            && self.partitions[local].is_cold(pull.key(), offset)
    }

    /// What becomes of such a pull: a client that calls its application comes again in some seconds if it is refused;
    /// an application that pulls would not know why, so its pull waits.
    pub(crate) fn hold_cold(&mut self, pull: Pull, now_ms: u64) {
        let live = self.catalog.subscriptions(pull.group.name());
        match live.map(|live| live.consume_type) {
            Some(ConsumeType::ConsumePassively) => {
                let remark = "This consumer group is reading cold data. It has been flow control";
                self.refuse(&pull.reply, response::SYSTEM_BUSY, remark);
            }
            Some(ConsumeType::ConsumePop) => self.pull(pull, now_ms),
            _ if self.cold_gate.held.len() >= HELD_MAX => self.refuse(&pull.reply, response::SYSTEM_BUSY, BUSY),
            Some(ConsumeType::ConsumeActively) | None => self.cold_gate.held.push_back((now_ms + HOLD_MS, pull)),
        }
    }

    /// Pulls go on that were held long enough; if their group is still over its share, with one message.
    pub(crate) fn held_on_time(&mut self, now_ms: u64) {
        while let Some((_, mut pull)) = self.cold_gate.held.pop_front_if(|(until_ms, _)| *until_ms <= now_ms) {
            let local = self.local(pull.topic.partition_of(pull.queue, self.settings.partitions));
            if local.is_some_and(|local| self.is_over_share(&pull, local, now_ms)) {
                pull.messages = 1;
            }
            self.pull_again(pull, now_ms);
        }
    }

    /// UPDATE_COLD_DATA_FLOW_CTR_CONFIG (2001). Until the next start, as in RocketMQ.
    pub(crate) fn set_cold_shares(&mut self, call: &Call<'_>) {
        let text = std::str::from_utf8(call.body).map_err(|error| error.to_string());
        match text.and_then(|text| self.cold_reads.update(text)) {
            Ok(()) => self.answer_cold(call, Vec::new()),
            Err(remark) => self.refuse(&call.reply, response::INVALID_PARAMETER, &remark),
        }
    }

    /// REMOVE_COLD_DATA_FLOW_CTR_CONFIG (2002).
    pub(crate) fn remove_cold_share(&mut self, call: &Call<'_>) {
        self.cold_reads.remove(&String::from_utf8_lossy(call.body));
        self.answer_cold(call, Vec::new());
    }

    /// GET_COLD_DATA_FLOW_CTR_INFO (2003).
    pub(crate) fn tell_cold(&mut self, call: &Call<'_>, now_ms: u64) {
        self.cold_reads.on_time(&self.settings, now_ms);
        let body = bodies::encode(&self.cold_reads.told(&self.settings));
        self.answer_cold(call, body);
    }

    fn answer_cold(&mut self, call: &Call<'_>, body: Vec<u8>) {
        self.replies.header(&call.reply, response::SUCCESS);
        let mut pieces = Pieces::new();
        if !body.is_empty() {
            pieces.push(body.into());
        }
        self.replies.send(&call.reply, pieces);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Found};

    fn settings(group_bytes: u64, bytes: u64) -> Settings {
        let usual = Config::default().settings(Found::one_core());
        Settings { cold_read_group_bytes: group_bytes, cold_read_bytes: bytes, ..usual }
    }

    fn names(over: &[Over]) -> Vec<Option<&str>> {
        over.iter().map(|over| over.group.as_deref()).collect()
    }

    #[test]
    fn who_is_over_his_share_is_told_once_in_an_interval() {
        let settings = settings(100, 250);
        let mut reads = ColdReads::default();
        let (g, h): (Arc<str>, Arc<str>) = ("g".into(), "h".into());
        reads.update("# of h\n h = 500 \n").unwrap();
        assert!(reads.read(&g, 99, &settings, 0).is_empty());
        assert_eq!(names(&reads.read(&g, 1, &settings, 1)), [Some("g")]);
        assert!(reads.read(&g, 100, &settings, 2).is_empty(), "it was told");
        assert_eq!(names(&reads.read(&h, 50, &settings, 3)), [None], "all together");
        // The next interval, with h as everybody.
        reads.remove("h");
        assert_eq!(names(&reads.read(&h, 100, &settings, INTERVAL_MS)), [Some("h")]);
        let told = reads.told(&settings);
        assert_eq!(
            (told.global_acc, told.runtime_table["g"].cold_acc, told.runtime_table["h"].cold_acc),
            (100, 0, 100)
        );
        assert!(told.config_table.is_empty());
        reads.on_time(&settings, IDLE_MS + 2);
        assert_eq!(reads.told(&settings).runtime_table.keys().collect::<Vec<_>>(), ["h"]);
        for wrong in ["g=x", "g", "=1", "g=-1", "a b=1", "h=1\ng=99999999999999999999"] {
            assert!(reads.update(wrong).is_err(), "{wrong}");
        }
        assert!(reads.told(&settings).config_table.is_empty(), "all or none");
    }

    #[test]
    fn shares_grow_while_the_disk_has_more_to_give_and_shrink_when_it_has_not() {
        let mut settings = Settings { cold_flow_adapts: true, cold_flow_pid: false, ..settings(100, 1_000) };
        let mut reads = ColdReads::default();
        reads.update("set=100").unwrap();
        let (g, set): (Arc<str>, Arc<str>) = ("g".into(), "set".into());
        let mut now_ms = 0;
        let mut interval = |reads: &mut ColdReads, settings: &Settings, bytes: u64| {
            reads.read(&g, bytes, settings, now_ms);
            reads.read(&set, 100, settings, now_ms);
            now_ms += INTERVAL_MS;
            reads.on_time(settings, now_ms);
            reads.share("g", settings)
        };
        assert_eq!(interval(&mut reads, &settings, 99), 100, "it was not used up");
        assert_eq!(interval(&mut reads, &settings, 100), 150);
        assert_eq!(interval(&mut reads, &settings, 150), 225);
        assert_eq!(interval(&mut reads, &settings, 1_000), 180, "all together read too much");
        assert_eq!(reads.share("set", &settings), 100, "what an operator set stays");
        assert_eq!(reads.told(&settings).config_table["g||adaptive"], 180);
        // A closed loop wants ten intervals first.
        settings.cold_flow_pid = true;
        let mut reads = ColdReads::default();
        let shares: Vec<u64> = (0..12).map(|_| interval(&mut reads, &settings, 200)).collect();
        // The first read ended one, too.
        assert_eq!((shares[7], shares[8], shares[9]), (100, 150, 225));
        let shares: Vec<u64> = (0..12).map(|_| interval(&mut reads, &settings, 5_000)).collect();
        assert!(shares.is_sorted_by(|one, next| one >= next) && shares[11] == 100, "{shares:?}");
        settings.cold_flow_adapts = false;
        assert_eq!(interval(&mut reads, &settings, 200), 100);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let settings = settings(1, u64::MAX);
        let mut reads = ColdReads::default();
        for number in 0..READERS_MAX + 10 {
            reads.read(&format!("g{number}").into(), 1, &settings, 0);
        }
        assert_eq!(reads.readers.len(), READERS_MAX);
        let all: String = (0..SHARES_MAX).map(|number| format!("g{number}=1\n")).collect();
        reads.update(&all).unwrap();
        assert!(reads.update("one-more=1").is_err() && reads.update("g1=2").is_ok());
    }

    #[test]
    fn a_gate_is_shut_for_one_interval() {
        let mut gate = ColdGate::default();
        let over = |interval: u64, group: Option<&str>| Over { interval, group: group.map(Into::into) };
        gate.shut(over(2, Some("g")));
        let at =
            |gate: &ColdGate, interval: u64| ["g", "h"].map(|group| gate.is_shut_for(group, interval * INTERVAL_MS));
        assert_eq!((at(&gate, 2), at(&gate, 3)), ([true, false], [false, false]));
        gate.shut(over(2, None));
        gate.shut(over(1, Some("h")));
        assert_eq!(at(&gate, 2), [true, true]);
        gate.shut(over(3, Some("h")));
        assert_eq!(at(&gate, 3), [false, true], "the last interval is over");
    }
}
