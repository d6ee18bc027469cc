//! Cold reads: what the tail no longer holds is fetched from disk, some way ahead, into buffers of its own.
//!
//! Parts of the log that are here or on their way never overlap, so a look-up is one step in a sorted map. Where one
//! read follows another closely, somebody reads along the log: then the next ones are begun before they are asked for,
//! further ahead the longer it goes on. A read here and there begins nothing but itself.

use crate::format::BLOCK_BYTES;
use crate::io::{Fault, Op};
use crate::limits::{
    AHEAD_BYTES_MAX, AHEAD_LOADS_MAX, LOAD_BYTES, LOADED_BYTES_MAX, LOADS_MAX, READS_MAX, STREAM_LOADS_MAX, STREAMS_MAX,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// A cold read. Its owner asks again once it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadId(pub u64);

/// A part of the log.
#[derive(Debug)]
enum Part {
    /// On its way: so many bytes.
    Coming(LoadId, u64),
    Here(Bytes),
}

impl Part {
    fn bytes(&self) -> u64 {
        match self {
            Part::Coming(_, bytes) => *bytes,
            Part::Here(bytes) => bytes.len() as u64,
        }
    }
}

/// Somebody who reads along the log.
#[derive(Debug)]
struct Stream {
    /// The log byte up to which it is read.
    end: u64,
    /// Bytes wanted ahead of what was used last; 0: it may have been one read and no more.
    window: u64,
    /// The read that was its last.
    last: u64,
}

/// What is not here of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// This read will bring more of it.
    Coming(LoadId),
    /// From this log byte on something is to be read.
    From(u64),
}

/// Reads under way and the buffers they left.
#[derive(Debug, Default)]
pub struct Loads {
    /// By the log byte where each begins.
    parts: BTreeMap<u64, Part>,
    /// Reads under way, and where their parts begin; oldest first.
    pending: Vec<(LoadId, u64)>,
    /// Bytes of their parts.
    pending_bytes: u64,
    /// Where the buffers begin, oldest first, and their bytes.
    buffers: VecDeque<u64>,
    buffer_bytes: u64,
    /// Records whose sum was wrong when they were read, newest last: they are read once more.
    doubted: VecDeque<u64>,
    /// Those that were noticed last, newest last.
    streams: VecDeque<Stream>,
    /// Reads that have not begun, because the limit says so; they are pending already.
    waiting: VecDeque<(LoadId, Op, u64)>,
    /// Bytes a second; 0: no limit.
    bytes_per_s: u64,
    /// When the next one may begin. Microseconds.
    at_us: u64,
    next: u64,
}

/// Records that are remembered to have been read wrong.
const DOUBTED_MAX: usize = 1_024;

impl Loads {
    /// At most so many bytes a second are read; 0: no limit.
    pub fn new(bytes_per_s: u64) -> Loads {
        Loads { bytes_per_s, ..Loads::default() }
    }

    /// The log bytes from `byte` on, if all are here. Those that came with more than one read are copied together.
    pub fn slice(&self, byte: u64, length: usize) -> Option<Bytes> {
        let (from, bytes) = self.here(byte)?;
        if from + length <= bytes.len() {
            return Some(bytes.slice(from..from + length));
        }
        if self.missing(byte, length).is_some() {
            return None;
        }
        let mut joined = Vec::with_capacity(length);
        while joined.len() < length {
            let (from, bytes) = self.here(byte + joined.len() as u64)?;
            joined.extend_from_slice(&bytes[from..bytes.len().min(from + length - joined.len())]);
        }
        Some(joined.into())
    }

    /// The buffer that has a log byte, and where in it.
    fn here(&self, byte: u64) -> Option<(usize, &Bytes)> {
        match self.part(byte) {
            Some((base, Part::Here(bytes))) => Some(((byte - base) as usize, bytes)),
            Some((_, Part::Coming(..))) | None => None,
        }
    }

    fn part(&self, byte: u64) -> Option<(u64, &Part)> {
        let (base, part) = self.parts.range(..=byte).next_back()?;
        (byte - base < part.bytes()).then_some((*base, part))
    }

    /// The first of these log bytes that is not here.
    pub fn missing(&self, byte: u64, length: usize) -> Option<Missing> {
        let (mut at, end) = (byte, byte + length as u64);
        while at < end {
            match self.part(at) {
                Some((base, Part::Here(bytes))) => at = base + bytes.len() as u64,
                Some((_, Part::Coming(id, _))) => return Some(Missing::Coming(*id)),
                None => return Some(Missing::From(at)),
            }
        }
        None
    }

    /// Where the part behind a log byte begins: a read from there ends here.
    pub fn next_part(&self, byte: u64) -> u64 {
        self.parts.range(byte..).next().map_or(u64::MAX, |(base, _)| *base)
    }

    /// Whether one more read may start.
    pub fn has_room(&self) -> bool {
        self.has_room_of(LOADS_MAX, READS_MAX)
    }

    /// Whether one may start that nobody waits for yet.
    pub fn has_room_ahead(&self) -> bool {
        self.has_room_of(AHEAD_LOADS_MAX, READS_MAX / 2) && self.waiting.is_empty()
    }

    fn has_room_of(&self, loads: usize, reads: usize) -> bool {
        self.pending.len() < reads && self.pending_bytes <= (loads as u64 - 1) * u64::from(LOAD_BYTES)
    }

    /// Whether a read is under way.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Any read under way: the one to wait for when there is no room.
    pub fn oldest(&self) -> Option<LoadId> {
        self.pending.first().map(|(id, _)| *id)
    }

    /// A read of these log bytes, of which none is here or on its way, by an operation that reads `op_bytes` from
    /// the first one's block on. It is to begin: see [`begin`](Loads::begin).
    pub fn start(&mut self, part: Range<u64>, op: Op, op_bytes: u64) -> LoadId {
        self.next += 1;
        let id = LoadId(self.next);
        let bytes = part.end - part.start;
        assert!(bytes > 0 && self.part(part.start).is_none() && self.next_part(part.start) >= part.end, "no overlap");
        self.parts.insert(part.start, Part::Coming(id, bytes));
        self.pending.push((id, part.start));
        self.pending_bytes += bytes;
        self.waiting.push_back((id, op, op_bytes));
        id
    }

    /// Somebody waits for a read of these log bytes. If it goes on where another ended, it is one of a stream.
    pub fn note(&mut self, part: &Range<u64>) {
        let near = u64::from(LOAD_BYTES);
        let goes_on = |stream: &Stream| part.start.abs_diff(stream.end) <= near;
        let window = match self.streams.iter().rposition(goes_on).and_then(|index| self.streams.remove(index)) {
            Some(stream) => (2 * stream.window).clamp(2 * near, AHEAD_BYTES_MAX),
            None => 0,
        };
        self.follow(Stream { end: part.end, window, last: self.next });
    }

    /// Those who came to the same place are one; and those who have not read for long are gone.
    fn follow(&mut self, stream: Stream) {
        let is_other = |other: &Stream| {
            other.end.abs_diff(stream.end) > u64::from(LOAD_BYTES) && stream.last - other.last <= STREAM_LOADS_MAX
        };
        self.streams.retain(is_other);
        if self.streams.len() == STREAMS_MAX {
            self.streams.pop_front();
        }
        self.streams.push_back(stream);
    }

    /// What lies at a log byte was used: where to read on, if it is one of a stream and not enough is read ahead of it.
    pub fn ahead(&mut self, byte: u64) -> Option<u64> {
        let live = self.streams.iter().filter(|stream| stream.window > 0).count() as u64;
        if live == 0 || !self.has_room_ahead() {
            return None;
        }
        // Half of the buffers are for those who follow a stream at some distance.
        let window_max = (LOADED_BYTES_MAX / 2 / live).min(AHEAD_BYTES_MAX);
        let leads = |stream: &Stream| stream.window > 0 && stream.end > byte && stream.end - byte <= AHEAD_BYTES_MAX;
        let index = self.streams.iter().rposition(leads)?;
        let mut end = self.streams[index].end;
        while let Some((base, part)) = self.part(end) {
            end = base + part.bytes();
        }
        let stream = &mut self.streams[index];
        stream.end = end;
        if end - byte >= stream.window.min(window_max) {
            return None;
        }
        let stream = Stream { end, window: (2 * stream.window).min(window_max), last: self.next };
        self.follow(stream);
        Some(end)
    }

    /// The next read that may begin. `None`: none waits, or the limit is reached until
    /// [`deadline_ms`](Loads::deadline_ms). `now_ms` is `None` when no limit counts, because the log is closing.
    pub fn begin(&mut self, now_ms: Option<u64>) -> Option<(LoadId, Op)> {
        if let Some(now_ms) = now_ms.filter(|_| self.bytes_per_s > 0) {
            let now_us = now_ms * 1000;
            let (_, _, bytes) = self.waiting.front()?;
            if self.at_us > now_us {
                return None;
            }
            // A clock of milliseconds must not cost what is left of one.
            self.at_us = self.at_us.max(now_us.saturating_sub(1000)) + bytes * 1_000_000 / self.bytes_per_s;
        }
        self.waiting.pop_front().map(|(id, op, _)| (id, op))
    }

    /// When a read that waits may begin.
    pub fn deadline_ms(&self) -> u64 {
        if self.waiting.is_empty() { u64::MAX } else { self.at_us.div_ceil(1000) }
    }

    /// Whether a read of something below this log byte is under way.
    pub fn reads_below(&self, byte: u64) -> bool {
        self.pending.iter().any(|(_, from)| *from < byte)
    }

    /// A read is back. Its buffer stays until [`LOADED_BYTES_MAX`] newer bytes and [`LOADS_MAX`] newer reads came.
    /// What was read beyond the bytes that [`start`](Loads::start) named is forgotten: the log may have been writing
    /// there. Fewer bytes than that are a failure.
    pub fn finish(&mut self, id: LoadId, outcome: Result<Bytes, Fault>) -> Result<(), Fault> {
        let index = self.pending.iter().position(|(pending, _)| *pending == id).expect("a read comes back once");
        let (_, from) = self.pending.remove(index);
        let part = self.parts.remove(&from).expect("a part for every read");
        self.pending_bytes -= part.bytes();
        let bytes = outcome?;
        let skip = (from % BLOCK_BYTES) as usize;
        let end = skip + part.bytes() as usize;
        if bytes.len() < end {
            return Err(Fault(libc::EIO));
        }
        self.buffer_bytes += part.bytes();
        let here = bytes.slice(skip..end);
        // A small part does not keep the blocks around it.
        let here = if 2 * here.len() < bytes.len() { Bytes::copy_from_slice(&here) } else { here };
        self.parts.insert(from, Part::Here(here));
        self.buffers.push_back(from);
        // Those who wait for what came last have not seen it yet.
        while self.buffer_bytes > LOADED_BYTES_MAX && self.buffers.len() > LOADS_MAX {
            let oldest = self.buffers.pop_front().expect("there are many");
            self.forget(oldest);
        }
        Ok(())
    }

    fn forget(&mut self, from: u64) {
        self.buffer_bytes -= self.parts.remove(&from).expect("a part for every buffer").bytes();
    }

    /// The sum of a record that was read is wrong. One read may be wrong where the disk is not: what lies there is
    /// forgotten, to be read once more. True: it was.
    pub fn doubt(&mut self, byte: u64, length: usize) -> bool {
        if self.doubted.contains(&byte) {
            return true;
        }
        if self.doubted.len() == DOUBTED_MAX {
            self.doubted.pop_front();
        }
        self.doubted.push_back(byte);
        let (mut at, end) = (byte, byte + length as u64);
        while at < end {
            let Some((base, Part::Here(bytes))) = self.part(at) else { break };
            at = base + bytes.len() as u64;
            self.buffers.retain(|from| *from != base);
            self.forget(base);
        }
        false
    }

    /// Forgets the buffers of what begins below a log byte.
    pub fn drop_below(&mut self, byte: u64) {
        self.doubted.retain(|doubted| *doubted >= byte);
        let (gone, kept) = std::mem::take(&mut self.buffers).into_iter().partition(|from| *from < byte);
        self.buffers = kept;
        VecDeque::into_iter(gone).for_each(|from| self.forget(from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Handle;

    const LOAD: u64 = LOAD_BYTES as u64;

    fn begun(loads: &mut Loads, from: u64, length: u64) -> LoadId {
        let op = Op::Read { file: Handle(0), at: from, length: length as u32 };
        let id = loads.start(from..from + length, op, length);
        assert_eq!(loads.begin(None).map(|(id, _)| id), Some(id));
        id
    }

    #[test]
    fn what_was_read_wrong_is_read_once_more_before_it_is_damaged() {
        let mut loads = Loads::default();
        for from in [0, LOAD] {
            let id = begun(&mut loads, from, LOAD);
            loads.finish(id, Ok(vec![7; LOAD as usize].into())).unwrap();
        }
        // It lies in both buffers.
        assert!(!loads.doubt(LOAD - 10, 20) && loads.slice(LOAD - 10, 20).is_none());
        assert_eq!((loads.missing(LOAD - 10, 20), loads.buffer_bytes), (Some(Missing::From(LOAD - 10)), 0));
        let id = begun(&mut loads, 0, 2 * LOAD);
        loads.finish(id, Ok(vec![7; 2 * LOAD as usize].into())).unwrap();
        assert!(loads.doubt(LOAD - 10, 20) && loads.slice(LOAD - 10, 20).is_some());
        // Another one is another one; and of many the first are doubted again.
        assert!(!loads.doubt(LOAD, 20));
        assert!((0..DOUBTED_MAX as u64).all(|record| !loads.doubt(4 * LOAD + record, 1)));
        assert!(!loads.doubt(LOAD - 10, 20) && loads.doubted.len() == DOUBTED_MAX);
        loads.drop_below(u64::MAX);
        assert!(loads.doubted.is_empty());
    }

    #[test]
    fn reads_begin_no_faster_than_the_limit() {
        let mut loads = Loads::new(1_000_000);
        for number in 0..8 {
            loads.start(number..number + 1, Op::Read { file: Handle(0), at: 0, length: 2500 }, 2500);
        }
        let mut begun = 0;
        for now_ms in 1000..1010 {
            while loads.begin(Some(now_ms)).is_some() {
                begun += 1;
            }
            assert!(loads.deadline_ms() > now_ms);
            let bytes = 2500 * begun;
            assert!(bytes <= 1000 * (now_ms - 999) + 2500 + 1000, "{bytes} at {now_ms}");
        }
        assert!(begun >= 4, "{begun} of ten milliseconds");
        while loads.begin(None).is_some() {
            begun += 1;
        }
        assert_eq!((begun, loads.deadline_ms()), (8, u64::MAX));
    }

    #[test]
    fn a_read_is_shared_while_under_way_and_kept_for_a_while() {
        let mut loads = Loads::default();
        let first = begun(&mut loads, 4100, 100);
        assert_eq!(loads.missing(4110, 90), Some(Missing::Coming(first)));
        assert_eq!(loads.missing(4099, 2), Some(Missing::From(4099)));
        assert!(loads.reads_below(4101) && !loads.reads_below(4100));
        assert_eq!(loads.finish(first, Ok(Bytes::from(vec![7; 4096]))), Ok(()), "more than was written is there");
        assert_eq!(loads.slice(4194, 6).as_deref(), Some(&[7; 6][..]));
        assert_eq!((loads.slice(4194, 7), loads.missing(4194, 7)), (None, Some(Missing::From(4200))));
        let second = begun(&mut loads, 4200, 10);
        assert_eq!((loads.slice(4194, 7), loads.missing(4194, 7)), (None, Some(Missing::Coming(second))));
        assert_eq!(loads.finish(second, Ok(Bytes::from(vec![8; 4096]))), Ok(()));
        assert_eq!(loads.slice(4198, 4).as_deref(), Some(&[7, 7, 8, 8][..]), "joined");
        for number in 100..100 + LOADED_BYTES_MAX / LOAD {
            let id = begun(&mut loads, number * LOAD, LOAD);
            assert_eq!(loads.finish(id, Ok(Bytes::from(vec![0; LOAD_BYTES as usize]))), Ok(()));
            assert!(loads.buffer_bytes <= LOADED_BYTES_MAX);
        }
        assert_eq!(loads.slice(4194, 6), None, "newer ones took its place");
        let short = begun(&mut loads, 0, 2);
        assert_eq!(loads.finish(short, Ok(Bytes::from_static(b"x"))), Err(Fault(libc::EIO)));
        let failed = begun(&mut loads, 0, 1);
        assert_eq!(loads.finish(failed, Err(Fault(libc::EIO))), Err(Fault(libc::EIO)));
        assert!(!loads.is_busy());
        loads.drop_below(u64::MAX);
        assert_eq!((loads.buffer_bytes, loads.parts.len(), loads.buffers.len()), (0, 0, 0));
    }

    #[test]
    fn who_reads_along_is_read_ahead_of_and_others_are_not() {
        let mut loads = Loads::default();
        for place in [1, 100, 7, 50, 30] {
            loads.note(&(place * LOAD..(place + 1) * LOAD));
            assert_eq!(loads.ahead(place * LOAD), None, "here and there");
        }
        loads.note(&(51 * LOAD + 5000..52 * LOAD));
        let (mut reads, mut furthest) = (0, 0);
        for used in 51 * LOAD / 1000..90 * LOAD / 1000 {
            let byte = used * 1000;
            while let Some(from) = loads.ahead(byte) {
                assert!(from - byte < AHEAD_BYTES_MAX, "{from} at {byte}");
                let id = begun(&mut loads, from, LOAD);
                loads.finish(id, Ok(Bytes::from(vec![0; LOAD_BYTES as usize]))).unwrap();
                (reads, furthest) = (reads + 1, furthest.max(from + LOAD - byte));
            }
            assert!(used % 100 > 0 || byte < 52 * LOAD || loads.missing(byte, 1000).is_none(), "it is there in time");
        }
        assert!((AHEAD_BYTES_MAX..AHEAD_BYTES_MAX + LOAD).contains(&furthest), "{furthest}");
        assert!((38..50).contains(&reads), "{reads} reads of 38 to 46 that are needed");
        assert_eq!(loads.ahead(8 * LOAD), None);
    }

    #[test]
    fn room_is_left_for_those_who_wait() {
        let mut loads = Loads::default();
        let mut number = 0;
        for (is_ahead, most) in [(true, AHEAD_LOADS_MAX), (false, LOADS_MAX)] {
            while if is_ahead { loads.has_room_ahead() } else { loads.has_room() } {
                begun(&mut loads, number * LOAD, LOAD);
                number += 1;
            }
            assert_eq!(number, most as u64);
        }
    }

    #[test]
    fn small_reads_may_be_many_and_keep_no_more_than_they_brought() {
        let mut loads = Loads::default();
        let mut small = Vec::new();
        while loads.has_room_ahead() {
            small.push(begun(&mut loads, small.len() as u64 * LOAD, 1000));
        }
        assert_eq!((small.len(), loads.has_room()), (READS_MAX / 2, true));
        while loads.has_room() {
            small.push(begun(&mut loads, small.len() as u64 * LOAD, 1000));
        }
        assert_eq!(small.len(), READS_MAX);
        let buffer = Bytes::from(vec![7; 8192]);
        loads.finish(small.pop().unwrap(), Ok(buffer.clone())).unwrap();
        let kept = loads.slice((READS_MAX as u64 - 1) * LOAD, 1000).unwrap();
        assert!(!buffer.as_ptr_range().contains(&kept.as_ptr()) && kept == buffer[..1000]);
    }
}
