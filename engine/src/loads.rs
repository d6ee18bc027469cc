//! Cold reads: what the tail no longer holds is fetched from disk, some way ahead, into buffers of its own.

use crate::io::Fault;
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
    buffers: VecDeque<(u64, Bytes)>,
    next: u64,
}

impl Loads {
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

    /// A read of these log bytes starts.
    pub fn start(&mut self, from: u64, length: u64) -> LoadId {
        self.next += 1;
        self.pending.push(Pending { id: LoadId(self.next), from, length });
        LoadId(self.next)
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

    #[test]
    fn a_read_is_shared_while_under_way_and_kept_for_a_while() {
        let mut loads = Loads::default();
        let first = loads.start(4096, 100);
        assert_eq!(loads.under_way(4100, 96), Some(first));
        assert_eq!(loads.under_way(4100, 97), None);
        assert!(loads.reads_below(4097) && !loads.reads_below(4096));
        assert_eq!(loads.finish(first, Ok(Bytes::from(vec![7; 4096]))), Ok(()), "more than was written is there");
        assert_eq!(loads.slice(4190, 6).as_deref(), Some(&[7; 6][..]));
        assert_eq!(loads.slice(4190, 7), None);
        for number in 0..LOADS_MAX as u64 {
            let id = loads.start(number, 1);
            assert_eq!(loads.finish(id, Ok(Bytes::from_static(b"x"))), Ok(()));
        }
        assert_eq!(loads.slice(4190, 6), None, "newer ones took its place");
        let short = loads.start(0, 2);
        assert_eq!(loads.finish(short, Ok(Bytes::from_static(b"x"))), Err(Fault(libc::EIO)));
        let failed = loads.start(0, 1);
        assert_eq!(loads.finish(failed, Err(Fault(libc::EIO))), Err(Fault(libc::EIO)));
        assert!(!loads.is_busy());
    }
}
