//! What a partition shows: messages by queue offset, by position, by key and by time. What is in memory is
//! given at once; for the rest a cold read starts, and whoever asked asks again.

use super::{Effect, Partition, State, local, purpose};
use crate::buffer::prefetch_all;
use crate::format::crc32c;
use crate::format::{BLOCK_BYTES, Kind, Position, QueueKey, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES};
use crate::index::{Entry, Span};
use crate::io::{Fault, Op, Outcome};
use crate::limits::LOAD_BYTES;
use crate::loads::{LoadId, Loads, Missing};
use crate::runs::{KeySearch, Located, Miss};
use crate::tail::Tail;
use bytes::Bytes;
use std::ops::Range;

/// A pull that asks for more messages than this begins with memory for so many: clients ask for 32.
const PULL_CAPACITY: u32 = 32;

/// How much a pull may give.
#[derive(Clone, Copy, Debug)]
pub struct PullLimits {
    /// Messages at most; those inside one are counted from the offset asked for on. The first message is always given.
    pub messages: u32,
    /// Bytes at most; the first message is always given.
    pub bytes: u32,
    /// Index entries looked at, at most.
    pub scan: u32,
}

/// Whether a stored message is wanted.
pub type Matches<'a> = dyn Fn(&[u8]) -> Option<bool> + 'a;

/// Whoever pulls is about to copy small messages: those are fetched into the cache while others are looked up.
const AHEAD_BYTES_MAX: usize = 4 << 10;

/// What a pull gives.
#[derive(Debug)]
pub enum Pull {
    /// Stored messages, and the offset to ask for next.
    Found {
        /// Each as it was stored.
        messages: Vec<Bytes>,
        /// The offset behind the last one looked at.
        next: u64,
    },
    /// None of those looked at was wanted.
    NoMatch {
        /// The offset behind the last one looked at.
        next: u64,
    },
    /// There is no message at this offset yet.
    Empty,
    /// The offset is outside the queue's span.
    OutOfRange,
    /// The messages are being read: ask again after [`Effect::Loaded`].
    Loading(LoadId),
    /// The message that is next cannot be given.
    Damaged {
        /// Where it lies, or where the run begins that knows.
        position: Position,
        /// The offset behind it, if what is on disk is not what was stored: nobody will ever get it. `None`: that may
        /// change, because where it lies is not known now, or it is about to go.
        behind: Option<u64>,
    },
    /// The log is being recovered.
    Opening,
}

impl Partition {
    /// Messages of a queue from an offset on, those whose tag hash is wanted, and the queue's span. One that takes several
    /// offsets is given once, as a whole, also if it is asked for in its middle.
    pub fn pull(
        &mut self,
        key: QueueKey,
        offset: u64,
        limits: PullLimits,
        wants: &dyn Fn(i64) -> bool,
    ) -> (Pull, Span) {
        self.pull_matching(key, offset, limits, wants, None)
    }

    /// As [`pull`](Partition::pull), of those only that `matches`: it is shown each stored message whose tag hash is
    /// wanted. [`PullLimits::scan`] bounds how many; and none more, this one neither, once it says `None`.
    pub fn pull_matching(
        &mut self,
        key: QueueKey,
        offset: u64,
        limits: PullLimits,
        wants: &dyn Fn(i64) -> bool,
        matches: Option<&Matches<'_>>,
    ) -> (Pull, Span) {
        if !self.is_readable() {
            return (Pull::Opening, Span { min: 0, max: 0 });
        }
        match self.pull_kept(key, offset, limits, wants, matches) {
            Ok(pull) => (pull, self.span(key)),
            Err(from) => {
                // Behind what is compacted the log begins where it does.
                let log =
                    if from > offset { self.derived.index.get(key).map_or(0, |queue| queue.span().min) } else { 0 };
                let (pull, span) = self.pull_log(key, from.max(log), limits, wants, matches);
                (pull, self.span_of(key, span))
            }
        }
    }

    /// A pull of what the log has.
    pub(super) fn pull_log(
        &mut self,
        key: QueueKey,
        offset: u64,
        limits: PullLimits,
        wants: &dyn Fn(i64) -> bool,
        matches: Option<&Matches<'_>>,
    ) -> (Pull, Span) {
        let Some(queue) = self.derived.index.get(key) else {
            let nothing = if offset == 0 { Pull::Empty } else { Pull::OutOfRange };
            return (nothing, Span { min: 0, max: 0 });
        };
        let span = queue.span();
        if offset < span.min || offset > span.max {
            return (Pull::OutOfRange, span);
        }
        if offset == span.max {
            return (Pull::Empty, span);
        }
        let mut messages = Vec::with_capacity(limits.messages.min(PULL_CAPACITY) as usize);
        let mut bytes = 0;
        let (mut next, mut used) = (offset, None);
        // Where the message that was used last was seen first.
        let mut used_at = offset;
        // Offsets that what is given takes, and the last of it.
        let (mut taken, mut given) = (0, None);
        // Some that were read do not match: what lies behind them is an answer, or a queue whose messages do not
        // fit the cold reads' memory together would be read again and again.
        let mut passed = false;
        let stop = span.max.min(offset + u64::from(limits.scan.max(1)));
        let (mut cold, mut cursor) = (None, None);
        while next < stop && taken < limits.messages {
            let entry = match queue.entry(next) {
                Some(entry) => entry,
                None => match self.derived.runs.locate(key, next, &mut cursor) {
                    Ok(Some(Located::At(entry))) => entry,
                    // What was looked at already is an answer.
                    _ if next > offset => break,
                    Ok(Some(Located::Gone(first))) => {
                        queue.raise_min(first);
                        return (Pull::OutOfRange, queue.span());
                    }
                    Ok(None) => {
                        queue.forget_runs();
                        return (Pull::OutOfRange, queue.span());
                    }
                    Err(Miss::Loading(load)) => {
                        self.want_runs();
                        return (Pull::Loading(load), span);
                    }
                    Err(Miss::Damaged(from)) => return (self.damaged(from, None), span),
                },
            };
            if used == Some(entry.byte) {
                // Another offset of the same message.
                taken += u32::from(given == used);
                next += 1;
                continue;
            }
            if wants(i64::from(entry.tag_hash)) {
                if !messages.is_empty() && bytes + entry.length as usize > limits.bytes as usize {
                    break;
                }
                let fetched = match self.log.tail().slice(entry.byte, entry.length as usize) {
                    Some(message) => Fetched::Here(message),
                    None => {
                        let read = fetch_read(&self.loads, entry.byte, entry.length);
                        if matches!(read, Fetched::Here(_)) {
                            self.cold_bytes += u64::from(entry.length);
                        }
                        read
                    }
                };
                match fetched {
                    Fetched::Here(message) => {
                        let Some(is_match) = matches.map_or(Some(true), |matches| matches(&message)) else { break };
                        (used, used_at) = (Some(entry.byte), next);
                        if !is_match {
                            passed = true;
                        } else {
                            prefetch_all(&message[..message.len().min(AHEAD_BYTES_MAX)]);
                            bytes += message.len();
                            messages.push(message);
                            given = used;
                            taken += 1;
                        }
                    }
                    // What is here already goes out; the rest is asked for again.
                    _ if !messages.is_empty() => break,
                    Fetched::Damaged if passed => break,
                    Fetched::Damaged if is_damaged(&mut self.loads, entry.byte, entry.length) => {
                        return (self.damaged(entry.byte, Some(next + 1)), span);
                    }
                    Fetched::Damaged | Fetched::Elsewhere => {
                        cold = Some(entry);
                        break;
                    }
                }
            }
            next += 1;
        }
        let end = used.and_then(|byte| self.header(byte)).map_or(0, |header| header.offsets().end);
        // What is read from disk has a sum for the payload alone: a header is not believed if the index says otherwise.
        let is_its = (next + 1..=span.max).contains(&end)
            && self.entry(key, end - 1).map_or(true, |entry| entry.is_some_and(|entry| Some(entry.byte) == used));
        if is_its {
            // Its other offsets were not looked at.
            let all = u64::from(taken) + end - next;
            if given == used && messages.len() > 1 && all > u64::from(limits.messages) {
                messages.pop();
                next = used_at;
            } else {
                next = end;
            }
        }
        if let Some(cursor) = cursor {
            self.derived.runs.read_ahead(cursor, next);
        }
        self.want_runs();
        if let Some(entry) = cold {
            match self.load(entry.byte, entry.length) {
                _ if passed => {}
                Some(load) => return (Pull::Loading(load), span),
                None => return (self.damaged(entry.byte, None), span),
            }
        }
        if let Some(byte) = used {
            self.read_ahead(byte);
        }
        if messages.is_empty() { (Pull::NoMatch { next }, span) } else { (Pull::Found { messages, next }, span) }
    }

    fn damaged(&self, byte: u64, behind: Option<u64>) -> Pull {
        Pull::Damaged { position: Position::pack(self.config.partition, byte), behind }
    }

    /// Bytes of messages that pulls looked at and that had been read from disk, since the start.
    pub fn cold_bytes(&self) -> u64 {
        self.cold_bytes
    }

    /// Whether a pull of the visible message at an offset would read it from disk.
    pub fn is_cold(&mut self, key: QueueKey, offset: u64) -> bool {
        let Some(queue) = self.derived.index.get(key) else { return false };
        let Span { min, max } = queue.span();
        // What is in the tail is in the index.
        let entry = queue.entry(offset);
        let is_here = |entry: Entry| self.log.tail().slice(entry.byte, entry.length as usize).is_some();
        (min..max).contains(&offset) && !entry.is_some_and(is_here) && !self.is_compacted(key, offset)
    }

    /// The message at a position that somebody names: believed only if its sum is right and the index names
    /// that very position for its queue and offset. `Err`: it is being read, ask again.
    pub fn get(&mut self, position: Position) -> Result<Option<Bytes>, LoadId> {
        let header_bytes = RECORD_HEADER_BYTES as u64;
        let byte = position.byte();
        let known = position.partition() == self.config.partition && byte < self.log.written();
        // Its header lies in the same segment, behind that one's own.
        let holding = self.segments.holding(byte);
        let inside = holding.is_some_and(|segment| byte >= segment.base + SEGMENT_HEADER_BYTES + header_bytes);
        if !known || !inside || !self.is_readable() {
            return Ok(None);
        }
        let Some(header) = self.header_bytes(byte) else {
            return self.load(byte, 0).map_or(Ok(None), Err);
        };
        let Some(header) = RecordHeader::decode(&header).filter(|header| header.kind == Kind::Message) else {
            return Ok(None);
        };
        let entry = self.entry(header.queue, header.offset)?;
        if entry.is_none_or(|entry| entry.byte != byte || entry.length != header.length) {
            return Ok(None);
        }
        self.payload(byte, header.length)
    }

    /// As [`get`](Partition::get), also of what waits: a delayed message as long as it does, where it lies now, and a
    /// half message that nobody decided, by the position that its producer was told. That it waits, and where its record
    /// lies then, is known here.
    pub fn get_waiting(&mut self, position: Position) -> Result<Option<Bytes>, LoadId> {
        let is_ours = position.partition() == self.config.partition && self.is_readable();
        let half = self.derived.halves.get(position.byte()).map(|half| half.timer);
        let timer = half.or_else(|| self.derived.timers.get(position.byte()));
        let Some(timer) = timer.filter(|_| is_ours) else { return self.get(position) };
        // It waits from when it is accepted; it is shown once it is kept.
        let place = self.place_of(timer).filter(|place| place.byte < self.log.written());
        place.map_or(Ok(None), |place| self.payload(place.byte, place.length))
    }

    /// A record's payload. Nothing, if it is damaged or gone. `Err`: it is being read, ask again.
    fn payload(&mut self, byte: u64, length: u32) -> Result<Option<Bytes>, LoadId> {
        match fetch(self.log.tail(), &self.loads, byte, length) {
            Fetched::Here(message) => Ok(Some(message)),
            Fetched::Damaged => Ok(None),
            Fetched::Elsewhere => self.load(byte, length).map_or(Ok(None), Err),
        }
    }

    /// What stands before the payload at a log byte, if it is in memory.
    fn header_bytes(&self, byte: u64) -> Option<Bytes> {
        let at = byte - RECORD_HEADER_BYTES as u64;
        self.log.tail().slice(at, RECORD_HEADER_BYTES).or_else(|| self.loads.slice(at, RECORD_HEADER_BYTES))
    }

    /// The header of the record whose payload is at a log byte, if it is in memory.
    fn header(&self, byte: u64) -> Option<RecordHeader> {
        RecordHeader::decode(&self.header_bytes(byte)?)
    }

    /// Looks for messages with a key's hash, newest first: [`KeySearch::found`] gets their log bytes. Their times
    /// and keys are for the caller to compare. `Err`: something is being read, ask again.
    pub fn find(&mut self, search: &mut KeySearch) -> Result<(), LoadId> {
        if !self.is_readable() {
            search.is_partial = true;
            return Ok(());
        }
        let settled = self.derived.settled.head;
        search.newest(settled, |hash, within, count| self.derived.keys.find(hash, within, count));
        let found = self.derived.runs.find(search);
        self.want_runs();
        found
    }

    /// Where a message lies that [`find`](Partition::find) found.
    pub fn position(&self, byte: u64) -> Position {
        Position::pack(self.config.partition, byte)
    }

    /// The offsets of a queue's visible messages; `0..0` for one that never had any.
    pub fn span(&mut self, queue: QueueKey) -> Span {
        let log = self.derived.index.get(queue).map_or(Span { min: 0, max: 0 }, |queue| queue.span());
        self.span_of(queue, log)
    }

    /// The offset that a queue's next message gets, if it is accepted.
    pub fn next_offset(&mut self, queue: QueueKey) -> u64 {
        self.derived.index.get(queue).map_or(0, |queue| queue.next())
    }

    /// The first offset stored at or after `time_ms`; with `upper`, the last one stored at or before it. `Err`:
    /// something is being read, ask again.
    pub fn offset_at(&mut self, queue: QueueKey, time_ms: u64, upper: bool) -> Result<u64, LoadId> {
        let time_ms = if upper { time_ms.saturating_add(1) } else { time_ms };
        let Span { min, max } = self.span(queue);
        let (mut low, mut high) = (min, max);
        while low < high {
            let middle = low + (high - low) / 2;
            // What is gone is older than everything that is left.
            let older = self.store_time(queue, middle)?.is_none_or(|stored_ms| stored_ms < time_ms);
            if older { low = middle + 1 } else { high = middle }
        }
        Ok(if upper { low.saturating_sub(1).max(min) } else { low })
    }

    /// Bytes of log accepted from the message at an offset on: how far back it lies. `Err`: something is being
    /// read, ask again.
    pub fn bytes_behind(&mut self, queue: QueueKey, offset: u64) -> Result<Option<u64>, LoadId> {
        Ok(self.entry(queue, offset)?.map(|entry| self.log.accepted() - entry.byte))
    }

    /// When the message at an offset was stored, or the next one if only the newest of each key stay there; ms since
    /// 1970. `Err`: something is being read, ask again.
    pub fn store_time(&mut self, queue: QueueKey, offset: u64) -> Result<Option<u64>, LoadId> {
        match self.kept_time(queue, offset) {
            Ok(stored_ms) => Ok(Some(stored_ms)),
            Err(offset) => Ok(self.entry(queue, offset)?.map(|entry| entry.store_time_ms)),
        }
    }

    /// Where the message at an offset lies. Nothing, if it is gone or does not exist yet. If the run that knows is
    /// damaged, and its log too, the read that is to be waited for fails.
    fn entry(&mut self, key: QueueKey, offset: u64) -> Result<Option<Entry>, LoadId> {
        self.locate(key, offset).map_err(|miss| match miss {
            Miss::Loading(load) => load,
            Miss::Damaged(_) => self.derived.runs.refuse(),
        })
    }

    /// As [`entry`](Partition::entry); tells a run that cannot be made again from one that is being read.
    pub(super) fn locate(&mut self, key: QueueKey, offset: u64) -> Result<Option<Entry>, Miss> {
        let Some(queue) = self.derived.index.get(key) else { return Ok(None) };
        if let Some(entry) = queue.entry(offset) {
            return Ok(Some(entry));
        }
        let Span { min, max } = queue.span();
        if !(min..max).contains(&offset) || !self.is_readable() {
            return Ok(None);
        }
        let located = self.derived.runs.locate(key, offset, &mut None);
        self.want_runs();
        Ok(match located? {
            Some(Located::At(entry)) => Some(entry),
            Some(Located::Gone(_)) | None => None,
        })
    }

    /// Whether all that the index names may be shown: it is answerable, and its files are open.
    pub(super) fn is_readable(&self) -> bool {
        matches!(self.state, State::Open | State::Shutting)
    }

    /// Starts to read the record whose payload is at a log byte, and some way ahead. `None` if it is gone.
    pub(super) fn load(&mut self, byte: u64, length: u32) -> Option<LoadId> {
        let record_at = byte - RECORD_HEADER_BYTES as u64;
        let record_end = byte + u64::from(length);
        let from = match self.loads.missing(record_at, RECORD_HEADER_BYTES + length as usize)? {
            Missing::Coming(load) => return Some(load),
            Missing::From(_) if !self.loads.has_room() => return self.loads.oldest(),
            Missing::From(from) => from,
        };
        let block = from - from % BLOCK_BYTES;
        let (load, part) = self.start_load(from, record_end.max(block + u64::from(LOAD_BYTES)))?;
        self.loads.note(&part);
        self.read_ahead(record_at);
        Some(load)
    }

    /// Starts to read log bytes, as far as they are in one file and nowhere else. `None` if none of them is written.
    pub(super) fn start_load(&mut self, from: u64, to: u64) -> Option<(LoadId, Range<u64>)> {
        let segment = self.segments.holding(from)?;
        let block = from - from % BLOCK_BYTES;
        let to = to.min(segment.end()).min(self.loads.next_part(from));
        // What is not written yet would be believed to be damaged once it is.
        let part = from..to.min(self.log.written());
        if part.is_empty() {
            return None;
        }
        // No more than that: its buffer is kept as a whole.
        let bytes = (part.end - block).next_multiple_of(BLOCK_BYTES);
        let op = Op::Read { file: segment.handle, at: block - segment.base, length: bytes as u32 };
        let load = self.loads.start(part.clone(), op, bytes);
        if self.config.read_bytes_per_s == 0 {
            self.begin_loads(None);
        }
        Some((load, part))
    }

    /// Whoever used what lies at a log byte may read along the log: reads on before it is asked for.
    fn read_ahead(&mut self, byte: u64) {
        while let Some(from) = self.loads.ahead(byte) {
            let to = from + u64::from(LOAD_BYTES);
            if to > self.log.written()
                || self.log.tail().slice(from, 1).is_some()
                || self.start_load(from, to).is_none()
            {
                return;
            }
        }
    }

    /// Begins the cold reads that may begin now; all of them, if no time is told.
    pub(super) fn begin_loads(&mut self, now_ms: Option<u64>) {
        while let Some((load, op)) = self.loads.begin(now_ms) {
            self.effects.push(Effect::Io { local: local(purpose::LOAD, load.0), op });
        }
    }

    pub(super) fn on_loaded(&mut self, load: LoadId, outcome: Result<Outcome, Fault>, now_ms: u64) {
        let outcome = match outcome {
            Ok(Outcome::Read(bytes)) => Ok(bytes),
            Ok(outcome) => unreachable!("{outcome:?} is no answer to a read"),
            Err(fault) => Err(fault),
        };
        let result = self.loads.finish(load, outcome);
        self.on_recalled(load, result.is_ok(), now_ms);
        self.compaction_read(load, result.is_ok());
        self.effects.push(Effect::Loaded(load, result));
    }
}

pub(super) enum Fetched {
    Here(Bytes),
    Elsewhere,
    Damaged,
}

/// A record's payload from memory. What came from disk is believed only if its sum is right.
pub(super) fn fetch(tail: &Tail, loads: &Loads, byte: u64, length: u32) -> Fetched {
    match tail.slice(byte, length as usize) {
        Some(message) => Fetched::Here(message),
        None => fetch_read(loads, byte, length),
    }
}

/// Whether a record that was read is damaged: it was read twice. Else it is to be read again.
pub(super) fn is_damaged(loads: &mut Loads, byte: u64, length: u32) -> bool {
    loads.doubt(byte - RECORD_HEADER_BYTES as u64, RECORD_HEADER_BYTES + length as usize)
}

/// The same as [`fetch`] of one that is not in the tail.
fn fetch_read(loads: &Loads, byte: u64, length: u32) -> Fetched {
    let Some(record) = loads.slice(byte - RECORD_HEADER_BYTES as u64, RECORD_HEADER_BYTES + length as usize) else {
        return Fetched::Elsewhere;
    };
    let message = record.slice(RECORD_HEADER_BYTES..);
    let header = RecordHeader::decode(&record);
    if header.is_some_and(|header| header.length == length && header.crc == crc32c::crc32c(&message)) {
        Fetched::Here(message)
    } else {
        Fetched::Damaged
    }
}
