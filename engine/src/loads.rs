//! Cold reads: what the tail no longer holds is fetched from disk, some way ahead, into buffers of its own.

use crate::io::{Fault, Op};
use crate::limits::LOADS_MAX;
use bytes::Bytes;
use std::collections::VecDeque;

/// A cold read. Its owner asks again once it is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LoadId(pub u64);

#[derive(Debug)]
struct Pending {
    id: LoadId,
    /// Log bytes that are being read: from here, this many.
    from: u64,
    length: u64,
}

/// Reads under way and the buffers they left, newest last.
#[derive(Debug, Default)]
pub struct Loads {
    pending: Vec<Pending>,
    /// Reads that have not begun, because the limit says so; they are pending already.
    waiting: VecDeque<(LoadId, Op, u64)>,
    /// Bytes a second; 0: no limit.
    bytes_per_s: u64,
    /// When the next one may begin. Microseconds.
    at_us: u64,
    buffers: VecDeque<(u64, Bytes)>,
    next: u64,
}

impl Loads {
    /// At most so many bytes a second are read; 0: no limit.
    pub fn new(bytes_per_s: u64) -> Loads {
        Loads { bytes_per_s, ..Loads::default() }
    }

    /// The log bytes from `byte` on, if one buffer has all of them.
    pub fn slice(&self, byte: u64, length: usize) -> Option<Bytes> {
        self.buffers.iter().rev().find_map(|(base, bytes)| {
            let from = usize::try_from(byte.checked_sub(*base)?).ok()?;
            let to = from.checked_add(length)?;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        })
    }

    /// A read under way that will bring these log bytes.
    pub fn under_way(&self, byte: u64, length: usize) -> Option<LoadId> {
        let covers = |pending: &&Pending| pending.from <= byte && byte + length as u64 <= pending.from + pending.length;
        self.pending.iter().find(covers).map(|pending| pending.id)
    }

    /// Whether one more read may start.
    pub fn has_room(&self) -> bool {
        self.pending.len() < LOADS_MAX
    }

    /// Whether a read is under way.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Any read under way: the one to wait for when there is no room.
    pub fn oldest(&self) -> Option<LoadId> {
        self.pending.first().map(|pending| pending.id)
    }

    /// A read of these log bytes, by an operation that reads `op_bytes`, is to begin: see
    /// [`begin`](Loads::begin).
    pub fn start(&mut self, from: u64, length: u64, op: Op, op_bytes: u64) -> LoadId {
        self.next += 1;
        let id = LoadId(self.next);
        self.pending.push(Pending { id, from, length });
        self.waiting.push_back((id, op, op_bytes));
        id
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
        self.pending.iter().any(|pending| pending.from < byte)
    }

    /// A read is back. The buffer stays until [`LOADS_MAX`] newer ones came. What was read beyond the bytes
    /// that [`start`](Loads::start) named is forgotten: the log may have been writing there. Fewer bytes than
    /// that are a failure.
    pub fn finish(&mut self, id: LoadId, outcome: Result<Bytes, Fault>) -> Result<(), Fault> {
        let index = self.pending.iter().position(|pending| pending.id == id).expect("a read comes back once");
        let pending = self.pending.remove(index);
        let bytes = outcome?;
        let length = pending.length as usize;
        if bytes.len() < length {
            return Err(Fault(libc::EIO));
        }
        if self.buffers.len() == LOADS_MAX {
            self.buffers.pop_front();
        }
        self.buffers.push_back((pending.from, bytes.slice(..length)));
        Ok(())
    }

    /// Forgets the buffers of what lies below a log byte.
    pub fn drop_below(&mut self, byte: u64) {
        self.buffers.retain(|(from, _)| *from >= byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Handle;

    fn begun(loads: &mut Loads, from: u64, length: u64) -> LoadId {
        let op = Op::Read { file: Handle(0), at: from, length: length as u32 };
        let id = loads.start(from, length, op, length);
        assert_eq!(loads.begin(None).map(|(id, _)| id), Some(id));
        id
    }

    #[test]
    fn reads_begin_no_faster_than_the_limit() {
        let mut loads = Loads::new(1_000_000);
        for number in 0..8 {
            loads.start(number, 1, Op::Read { file: Handle(0), at: 0, length: 2500 }, 2500);
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
        let first = begun(&mut loads, 4096, 100);
        assert_eq!(loads.under_way(4100, 96), Some(first));
        assert_eq!(loads.under_way(4100, 97), None);
        assert!(loads.reads_below(4097) && !loads.reads_below(4096));
        assert_eq!(loads.finish(first, Ok(Bytes::from(vec![7; 4096]))), Ok(()), "more than was written is there");
        assert_eq!(loads.slice(4190, 6).as_deref(), Some(&[7; 6][..]));
        assert_eq!(loads.slice(4190, 7), None);
        for number in 0..LOADS_MAX as u64 {
            let id = begun(&mut loads, number, 1);
            assert_eq!(loads.finish(id, Ok(Bytes::from_static(b"x"))), Ok(()));
        }
        assert_eq!(loads.slice(4190, 6), None, "newer ones took its place");
        let short = begun(&mut loads, 0, 2);
        assert_eq!(loads.finish(short, Ok(Bytes::from_static(b"x"))), Err(Fault(libc::EIO)));
        let failed = begun(&mut loads, 0, 1);
        assert_eq!(loads.finish(failed, Err(Fault(libc::EIO))), Err(Fault(libc::EIO)));
        assert!(!loads.is_busy());
    }
}
