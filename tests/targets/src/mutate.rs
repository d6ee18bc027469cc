//! Seeded mutations, for runs without a fuzzer.

use engine::sim::Random;

/// Numbers at which lengths and counts go wrong.
const EDGES: [u32; 10] = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
/// An input does not grow beyond it.
const BYTES_MAX: usize = 1 << 16;

/// Changes an input in one to four places; `other` is what parts are taken from.
pub fn mutate(data: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        if data.is_empty() {
            data.extend_from_slice(other);
        }
        if data.is_empty() {
            return;
        }
        let at = random.below(data.len() as u64) as usize;
        let left = data.len() - at;
        match random.below(9) {
            0 | 1 => data[at] ^= 1 << random.below(8),
            2 => data[at] = random.below(256) as u8,
            3 => {
                let edge = EDGES[random.below(EDGES.len() as u64) as usize].to_be_bytes();
                let width = (1 << random.below(3)).min(left);
                data[at..at + width].copy_from_slice(&edge[4 - width..]);
            }
            4 => data.truncate(at),
            5 => {
                let count = (1 + random.below(16) as usize).min(left);
                data.drain(at..at + count);
            }
            6 => {
                let count = (1 + random.below(64) as usize).min(left);
                let part = data[at..at + count].to_vec();
                data.splice(at..at, part);
            }
            7 if !other.is_empty() => {
                let from = random.below(other.len() as u64) as usize;
                let count = (1 + random.below(64) as usize).min(other.len() - from);
                data.splice(at..at, other[from..from + count].iter().copied());
            }
            _ => data[at] = data[at].wrapping_add(1),
        }
        data.truncate(BYTES_MAX);
    }
}
