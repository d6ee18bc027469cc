//! Blocks of runs in memory: a bounded number, those that were used last.

use crate::limits::RUN_BLOCKS_MAX;
use ahash::RandomState;
use bytes::Bytes;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Which block: the serial of its run, and its number in it.
pub type BlockId = (u64, u32);

/// See the module. A block that was asked for since it was last considered is passed over once ("second chance").
#[derive(Debug)]
pub struct Blocks {
    blocks: HashMap<BlockId, (Bytes, bool), RandomState>,
    queue: VecDeque<BlockId>,
}

impl Blocks {
    /// None yet.
    pub fn new(seed: u64) -> Blocks {
        Blocks { blocks: HashMap::with_hasher(RandomState::with_seeds(seed, 4, 5, 6)), queue: VecDeque::new() }
    }

    /// A block, if it is here.
    pub fn get(&mut self, id: BlockId) -> Option<Bytes> {
        let (block, used) = self.blocks.get_mut(&id)?;
        *used = true;
        Some(block.clone())
    }

    /// Keeps a block. Its content is copied, so that it pins no larger read.
    pub fn put(&mut self, id: BlockId, block: &[u8]) {
        if self.blocks.contains_key(&id) {
            return;
        }
        while self.queue.len() >= RUN_BLOCKS_MAX {
            let oldest = self.queue.pop_front().expect("there are many");
            match self.blocks.get_mut(&oldest) {
                Some((_, used)) if *used => {
                    *used = false;
                    self.queue.push_back(oldest);
                }
                _ => _ = self.blocks.remove(&oldest),
            }
        }
        self.blocks.insert(id, (Bytes::copy_from_slice(block), false));
        self.queue.push_back(id);
    }

    /// Forgets the blocks of a run.
    pub fn forget(&mut self, serial: u64) {
        self.blocks.retain(|(run, _), _| *run != serial);
        self.queue.retain(|(run, _)| *run != serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let mut blocks = Blocks::new(1);
        for number in 0..3 * RUN_BLOCKS_MAX as u32 {
            blocks.put((7, number), &number.to_be_bytes());
            assert_eq!(blocks.get((7, 0)).as_deref(), Some(&[0; 4][..]), "it was used just before");
            assert!(blocks.blocks.len() <= RUN_BLOCKS_MAX && blocks.queue.len() == blocks.blocks.len());
        }
        assert!(blocks.get((7, 1)).is_none());
        blocks.put((8, 0), &[8]);
        blocks.forget(7);
        assert_eq!(blocks.get((8, 0)).as_deref(), Some(&[8][..]));
        blocks.forget(8);
        assert!(blocks.get((7, 0)).is_none() && blocks.queue.is_empty());
    }
}
