//! Which of the newest messages carry a key: hashes and log bytes, in sorted blocks, newest last. A block
//! never spans two stretches, so that a run is a merge of whole blocks; what is older is in the runs.

use std::collections::VecDeque;
use std::ops::Range;

/// Entries of one block: sorting one takes some fifty microseconds.
const BLOCK_ENTRIES: usize = 8192;
/// Shelves that a block is sorted by: two entries on each.
const SHELVES: usize = BLOCK_ENTRIES / 2;

/// Hashes of keys, with the log bytes of the messages that carry them.
#[derive(Debug, Default)]
pub struct KeyIndex {
    full: VecDeque<Block>,
    newest: Vec<(u64, u64)>,
}

#[derive(Debug)]
struct Block {
    /// Sorted by hash, then by byte.
    entries: Box<[(u64, u64)]>,
    /// The greatest log byte in it.
    last: u64,
}

impl KeyIndex {
    /// Notes that the message at log byte `byte` carries a key. Bytes come in order.
    pub fn push(&mut self, hash: u64, byte: u64) {
        self.newest.push((hash, byte));
        if self.newest.len() == BLOCK_ENTRIES {
            self.seal();
        }
    }

    /// Ends the newest block: a stretch ends here.
    pub fn seal(&mut self) {
        let Some(&(_, last)) = self.newest.last() else { return };
        self.full.push_back(Block { entries: sorted(&self.newest), last });
        self.newest.clear();
    }

    /// How many blocks have what lies below a log byte, at which a stretch ended.
    pub fn blocks_below(&self, byte: u64) -> usize {
        self.full.iter().take_while(|block| block.last < byte).count()
    }

    /// One of those blocks: sorted by hash, then by byte.
    pub fn block(&self, index: usize) -> &[(u64, u64)] {
        &self.full[index].entries
    }

    /// Log bytes in `within` of the messages with this hash, newest first, at most `count`.
    /// Cost: two binary searches a block, and a look at what is in none yet.
    pub fn find(&self, hash: u64, within: Range<u64>, count: usize) -> Vec<u64> {
        let (from, to) = ((hash, within.start), (hash, within.end));
        let newest = self.newest.iter().rev().filter(|entry| (from..to).contains(*entry));
        let blocks = self.full.iter().rev().take_while(|block| block.last >= within.start);
        let older = blocks.flat_map(|block| {
            let index = |bound| block.entries.partition_point(|entry| *entry < bound);
            block.entries[index(from)..index(to)].iter().rev()
        });
        newest.chain(older).map(|(_, byte)| *byte).take(count).collect()
    }

    /// Forgets blocks that lie below a log byte as a whole: a run has them.
    pub fn drop_below(&mut self, floor: u64) {
        while self.full.front().is_some_and(|block| block.last < floor) {
            self.full.pop_front();
        }
    }
}

/// The same entries by hash, then by byte. A hash's upper bits say how far to the front it goes: each entry is put on
/// its shelf, and what lies together there is sorted. Hashes that share those bits cost what sorting always costs.
fn sorted(entries: &[(u64, u64)]) -> Box<[(u64, u64)]> {
    let shelf = |hash: u64| (hash >> (64 - SHELVES.ilog2())) as usize;
    let mut places = [0_u32; SHELVES];
    entries.iter().for_each(|(hash, _)| places[shelf(*hash)] += 1);
    let mut sum = 0;
    for place in &mut places {
        sum += std::mem::replace(place, sum);
    }
    let mut sorted = vec![(0, 0); entries.len()].into_boxed_slice();
    for entry in entries {
        let place = &mut places[shelf(entry.0)];
        sorted[*place as usize] = *entry;
        *place += 1;
    }
    let mut from = 0;
    for end in places.map(|end| end as usize) {
        sorted[from..end].sort_unstable();
        from = end;
    }
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hashes_are_sorted() {
        let spread = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let hashes: [&dyn Fn(u64) -> u64; 4] =
            [&spread, &|number| spread(number) >> 20, &|number| spread(number % 7), &|_| u64::MAX];
        for hash in hashes {
            for count in [0, 1, 2, 100, BLOCK_ENTRIES as u64] {
                let entries: Vec<_> = (0..count).map(|number| (hash(number), number)).collect();
                let mut wanted = entries.clone();
                wanted.sort_unstable();
                assert_eq!(sorted(&entries)[..], wanted);
            }
        }
    }

    #[test]
    fn keys_are_found_newest_first_in_and_across_blocks() {
        let mut keys = KeyIndex::default();
        for byte in 0..3 * BLOCK_ENTRIES as u64 + 10 {
            keys.push(byte % 1000, byte);
        }
        let found = keys.find(7, 0..u64::MAX, 64);
        let wanted: Vec<u64> = (0..3 * BLOCK_ENTRIES as u64 + 10).rev().filter(|byte| byte % 1000 == 7).collect();
        assert_eq!(found, wanted);
        assert_eq!(keys.find(7, 0..u64::MAX, 2), wanted[..2]);
        assert_eq!(keys.find(7, 20_007..24_007, 64), [23_007, 22_007, 21_007, 20_007]);
        for (end, inside) in [(24_577, 24_007), (24_576, 24_007), (24_007, 23_007), (8_007, 7_007)] {
            assert_eq!(keys.find(7, 0..end, 1), [inside], "{end}");
        }
        assert!(keys.find(7, 8..1_007, 64).is_empty() && keys.find(7, 9..9, 64).is_empty());
        assert!(keys.find(1000, 0..u64::MAX, 64).is_empty());
        keys.drop_below(2 * BLOCK_ENTRIES as u64);
        assert_eq!(keys.find(7, 0..u64::MAX, 64).len(), 8, "two blocks are gone");
        assert_eq!(keys.blocks_below(u64::MAX), 1);
        keys.seal();
        keys.seal();
        keys.push(7, u64::MAX - 1);
        assert_eq!(keys.find(7, 0..u64::MAX, 64).len(), 9);
        assert_eq!(keys.blocks_below(u64::MAX), 2, "what came after the seal is of the next stretch");
        assert_eq!((keys.block(0).len(), keys.block(1).len()), (BLOCK_ENTRIES, 10));
    }
}
