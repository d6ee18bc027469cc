//! The newest batches, still in memory: what most consumers read, as shared slices of what was written.

use bytes::Bytes;
use std::collections::VecDeque;

/// Batches in log order, oldest first.
#[derive(Debug, Default)]
pub struct Tail {
    batches: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl Tail {
    /// Adds the newest batch, which starts at log byte `base`.
    pub fn push(&mut self, base: u64, bytes: Bytes) {
        assert!(
            self.batches.back().is_none_or(|(last, bytes)| last + bytes.len() as u64 <= base),
            "batches come in order"
        );
        self.bytes += bytes.len();
        self.batches.push_back((base, bytes));
    }

    /// The log byte from which on everything accepted since is here; `u64::MAX`, if nothing is.
    pub fn floor(&self) -> u64 {
        self.batches.front().map_or(u64::MAX, |(base, _)| *base)
    }

    /// Bytes of all batches.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The log bytes from `byte` on, if all of them are in one batch here.
    pub fn slice(&self, byte: u64, length: usize) -> Option<Bytes> {
        let index = self.batches.partition_point(|(base, _)| *base <= byte).checked_sub(1)?;
        let (base, bytes) = &self.batches[index];
        let from = usize::try_from(byte - base).ok()?;
        let to = from.checked_add(length)?;
        (to <= bytes.len()).then(|| bytes.slice(from..to))
    }

    /// Gives the oldest batch up. Its memory comes back once nobody holds a slice of it.
    pub fn pop(&mut self) -> Option<Bytes> {
        let (_, bytes) = self.batches.pop_front()?;
        self.bytes -= bytes.len();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_within_one_batch() {
        let mut tail = Tail::default();
        tail.push(100, Bytes::from_static(b"hello"));
        tail.push(110, Bytes::from_static(b"world"));
        let table: [(u64, usize, Option<&[u8]>); 9] = [
            (100, 5, Some(b"hello")),
            (102, 2, Some(b"ll")),
            (104, 1, Some(b"o")),
            (104, 2, None),
            (105, 1, None),
            (99, 1, None),
            (110, 5, Some(b"world")),
            (114, 2, None),
            (u64::MAX, 1, None),
        ];
        for (byte, length, wanted) in table {
            assert_eq!(tail.slice(byte, length).as_deref(), wanted, "{length} bytes at {byte}");
        }
        assert_eq!((tail.bytes(), tail.floor()), (10, 100));
        assert_eq!(tail.pop().as_deref(), Some(&b"hello"[..]));
        assert_eq!((tail.bytes(), tail.floor()), (5, 110));
        assert_eq!(tail.slice(100, 5), None);
        assert_eq!(tail.slice(110, 1).as_deref(), Some(&b"w"[..]));
    }
}
