//! Handles: what a consumer is told about the messages it got, and says again to acknowledge them (PROTOCOL 4.12).

use std::fmt::Write;

use protocol::names::RETRY_PREFIX;

use super::account::LoanId;

/// Field `reviveQid` of orderly messages.
pub const REVIVE_ORDERLY: i32 = 999;
/// The same of all others. RocketMQ spreads its check points over queues; we have none.
pub const REVIVE_PLAIN: i32 = 0;

/// Which topic a message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The topic that was asked for.
    Normal = 0,
    /// Its retry topic, `%RETRY%group_topic`; and any other retry topic.
    Retry = 1,
    /// Its retry topic of version 2, `%RETRY%group+topic`.
    RetryV2 = 2,
}

impl Origin {
    /// What clients take a topic for, by its name.
    pub fn of(topic: &str) -> Origin {
        match topic.strip_prefix(RETRY_PREFIX) {
            None => Origin::Normal,
            Some(rest) if rest.contains('+') => Origin::RetryV2,
            Some(_) => Origin::Retry,
        }
    }
}

/// A handle (`extraInfo`, `POP_CK`): eight words, of which these matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle<'a> {
    /// Which loan.
    pub loan: LoanId,
    /// For how long it was, in ms.
    pub invisible_ms: i64,
    /// `REVIVE_ORDERLY` or another number.
    pub revive_queue: i32,
    /// The broker that lent.
    pub broker: &'a str,
}

impl<'a> Handle<'a> {
    /// Reads a handle. `Err` says what is wrong with it.
    pub fn parse(text: &'a str) -> Result<Handle<'a>, String> {
        let mut words = text.split(' ');
        let mut word = |what: &str| words.next().ok_or_else(|| format!("extraInfo has no {what}"));
        let start = number(word("ckQueueOffset")?)?;
        let pop_ms = number(word("popTime")?)?;
        let invisible_ms = number(word("invisibleTime")?)?.cast_signed();
        let revive_queue = i32::try_from(number(word("reviveQid")?)?).map_err(|error| error.to_string())?;
        word("retry")?;
        let broker = word("brokerName")?;
        Ok(Handle { loan: LoanId { start, pop_ms }, invisible_ms, revive_queue, broker })
    }

    /// Whether its messages are orderly.
    pub fn is_orderly(&self) -> bool {
        self.revive_queue == REVIVE_ORDERLY
    }
}

fn number(word: &str) -> Result<u64, String> {
    let number: i64 = word.parse().map_err(|_| format!("For input string: \"{word}\""))?;
    u64::try_from(number).map_err(|_| format!("{number} is negative"))
}

/// The texts of a pop's answer: where each queue's loan begins, and which messages it has.
#[derive(Debug, Default)]
pub struct Infos {
    /// `startOffsetInfo`.
    pub start: String,
    /// `msgOffsetInfo`.
    pub offsets: String,
    /// `orderCountInfo`.
    pub times: String,
}

impl Infos {
    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.start.clear();
        self.offsets.clear();
        self.times.clear();
    }

    /// One more queue.
    pub fn add(&mut self, origin: Origin, queue: u32, offsets: &[u64]) {
        begin(&mut self.start, origin);
        push(&mut self.start, u64::from(queue));
        self.start.push(' ');
        push(&mut self.start, offsets[0]);
        begin(&mut self.offsets, origin);
        push(&mut self.offsets, u64::from(queue));
        let mut before = ' ';
        for offset in offsets {
            self.offsets.push(before);
            push(&mut self.offsets, *offset);
            before = ',';
        }
    }

    /// Orderly messages of one queue were lent in vain so often. Behind those that were comes the least of all, which older
    /// clients look for by the queue alone.
    pub fn add_times(&mut self, origin: Origin, queue: u32, times: impl Iterator<Item = (u64, u32)>) {
        const MEMORY: &str = "writing into memory cannot fail";
        let mut least = u32::MAX;
        for (offset, times) in times {
            least = least.min(times);
            if times > 0 {
                begin(&mut self.times, origin);
                write!(self.times, "qo{queue}%{offset} {times}").expect(MEMORY);
            }
        }
        begin(&mut self.times, origin);
        write!(self.times, "{queue} {least}").expect(MEMORY);
    }
}

fn begin(text: &mut String, origin: Origin) {
    if !text.is_empty() {
        text.push(';');
    }
    text.push(char::from(b'0' + origin as u8));
    text.push(' ');
}

fn push(text: &mut String, number: u64) {
    text.push_str(itoa::Buffer::new().format(number));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_read_and_bad_ones_refused() {
        let handle = Handle::parse("120 1700000000000 60000 999 0 broker-a 3 121").unwrap();
        assert_eq!(handle.loan, LoanId { start: 120, pop_ms: 1_700_000_000_000 });
        assert_eq!((handle.invisible_ms, handle.is_orderly(), handle.broker), (60_000, true, "broker-a"));
        assert!(!Handle::parse("0 0 0 0 0 b").unwrap().is_orderly());
        for (text, why) in [
            ("", "For input string: \"\""),
            ("1", "extraInfo has no popTime"),
            ("1 2 3 4 5", "extraInfo has no brokerName"),
            ("-1 2 3 4 0 b", "-1 is negative"),
            ("99999999999999999999 2 3 4 0 b", "For input string: \"99999999999999999999\""),
            ("1 2 x 4 0 b", "For input string: \"x\""),
        ] {
            assert_eq!(Handle::parse(text).unwrap_err(), why, "{text}");
        }
        assert!(Handle::parse("1 2 3 4294967296 0 b").is_err());
    }

    #[test]
    fn infos_have_an_entry_for_each_queue() {
        let mut infos = Infos::default();
        infos.add(Origin::Normal, 3, &[120, 121, 124]);
        infos.add(Origin::of("%RETRY%g_T"), 0, &[5]);
        infos.add_times(Origin::Normal, 3, [(120, 2), (121, 0), (124, 1)].into_iter());
        infos.add_times(Origin::Retry, 0, [(5, 3)].into_iter());
        assert_eq!((infos.start.as_str(), infos.offsets.as_str()), ("0 3 120;1 0 5", "0 3 120,121,124;1 0 5"));
        assert_eq!(infos.times, "0 qo3%120 2;0 qo3%124 1;0 3 0;1 qo0%5 3;1 0 3");
        assert_eq!((Origin::of("T+x"), Origin::of("%RETRY%g+T")), (Origin::Normal, Origin::RetryV2));
        infos.clear();
        assert!(infos.start.is_empty());
    }
}
