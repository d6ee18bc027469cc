//! A walk over groups' offsets, a part of them in each turn of a core: there may be millions.

use engine::LoadId;
use engine::partition::Partition;

use crate::catalog::{offset_value, split_offset_key};

/// Offsets and queues that an inquiry looks at in one turn. 4,096: some half a millisecond.
pub const LOOKS_PER_TURN: usize = 4_096;

/// Why a question is not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// This cold read of a partition (by index) must end first.
    Read(usize, LoadId),
    /// It goes on in another turn.
    Turn,
}

/// A group's offset in a queue.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    /// The partition, by index.
    pub index: usize,
    /// The key of the fact that says so.
    pub key: &'a [u8],
    /// The topic's id.
    pub topic: u32,
    /// The queue.
    pub queue: u32,
    /// The group.
    pub group: &'a str,
    /// The offset.
    pub offset: u64,
}

/// How far it came.
#[derive(Debug, Default)]
pub struct Walk {
    /// The partition, by index.
    index: usize,
    /// The key that was looked at last there.
    after: Option<Box<[u8]>>,
}

impl Walk {
    /// Whether it has not begun.
    pub fn is_new(&self) -> bool {
        self.index == 0 && self.after.is_none()
    }

    /// Shows the offsets whose keys begin with `prefix`, as many as one turn may look at. `Err`: there may be more. What
    /// changes between two turns may be shown or not.
    pub fn go_on(
        &mut self,
        partitions: &[Partition],
        prefix: &[u8],
        mut show: impl FnMut(Committed<'_>),
    ) -> Result<(), Pause> {
        let mut left = LOOKS_PER_TURN;
        while let Some(partition) = partitions.get(self.index) {
            let mut last = None;
            for (key, value) in partition.facts_behind(prefix, self.after.as_deref()).take(left) {
                left -= 1;
                last = Some(key);
                if let (Some((topic, queue, group)), Some(offset)) = (split_offset_key(key), offset_value(value)) {
                    show(Committed { index: self.index, key, topic, queue, group, offset });
                }
            }
            if left == 0 {
                self.after = last.map(Into::into);
                return Err(Pause::Turn);
            }
            *self = Walk { index: self.index + 1, after: None };
        }
        Ok(())
    }
}
