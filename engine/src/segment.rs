//! The files of a log: which byte lies in which, and how the next one is made before it is needed.
//!
//! A segment's life: made new (allocated, then zero-filled) or from a spare one, live, sealed, retired,
//! spare, and live again under a new name. Every step is one operation; each is safe to repeat after a crash:
//!
//! | name | what recovery makes of it |
//! | --- | --- |
//! | `00000000001073741824` | live: its header was durable before it got the name |
//! | `spare-00000000000000000000` | content is of no use; the file is |
//! | `next` | was about to get a name: removed |

use crate::buffer::Chunk;
use crate::format::{BLOCK_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use crate::limits::LogConfig;
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::LazyLock;

/// Bytes of one zero-filling write.
const ZERO_BYTES: usize = 1 << 20;
static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Chunk::standalone(ZERO_BYTES).split_to(ZERO_BYTES));
/// Zero-filling stays this far ahead of a log that is being written.
const ZERO_MARGIN_BYTES: u64 = 16 << 20;
/// Spare files kept; more are shrunk and removed.
const SPARES_MAX: usize = 2;
/// A file that goes is cut by this much at a time: unlinking a large one stalls the disk for everybody.
const SHRINK_BYTES: u64 = 64 << 20;
const SHRINK_INTERVAL_MS: u64 = 100;
/// After a failure the next try waits this long.
const RETRY_MS: u64 = 1000;
/// How often the file system is asked how much space is left.
const SPACE_INTERVAL_MS: u64 = 1000;

/// One file of the log.
#[derive(Debug)]
pub struct Segment {
    /// The log byte that its byte 0 stands for; its name.
    pub base: u64,
    /// Its length.
    pub bytes: u64,
    /// The open file.
    pub handle: Handle,
    /// When its newest batch was closed, ms since 1970; 0 when it has none.
    pub newest_ms: u64,
    /// Log bytes from here to the end were never written: slower to write to.
    pub zeroed_to: u64,
}

impl Segment {
    /// The log byte behind it.
    pub fn end(&self) -> u64 {
        self.base + self.bytes
    }
}

/// The name of the segment that starts at a log byte.
pub fn name(base: u64) -> String {
    format!("{base:020}")
}

/// A file whose content is of no use.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    handle: Handle,
    bytes: u64,
}

/// What the files' owner wants done. At most one operation of each is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chore {
    /// A step in making a segment.
    Make,
    /// A step in retiring one.
    Retire,
    /// A zero-filling write.
    Zero,
    /// Asking for disk space.
    Space,
    /// A step in shrinking a file that goes.
    Shrink,
    /// Closing a file that is gone. Nothing waits for it.
    Close,
}

/// The step in making a segment that is under way, or that failed and is tried again.
#[derive(Debug)]
enum Making {
    Rest,
    Open,
    Allocate(Handle),
    Head { handle: Handle, path: PathBuf, zeroed: bool },
    Name { handle: Handle, path: PathBuf, zeroed: bool },
    Settle { handle: Handle, zeroed: bool },
}

/// The step in retiring a segment that is under way, or that failed and is tried again.
#[derive(Debug)]
enum Retiring {
    Rest,
    Name(Segment),
    Settle(Segment),
}

/// All files of one log.
#[derive(Debug)]
pub struct Segments {
    directory: PathBuf,
    partition: u16,
    segment_bytes: u64,
    prepare_bytes: u64,
    prepare_rate: u64,
    direct: bool,
    /// Oldest first, without gaps; those above the head are prepared.
    live: VecDeque<Segment>,
    spares: VecDeque<Spare>,
    /// A file that is being shrunk away.
    going: Option<Spare>,
    shrinking: bool,
    shrink_at_ms: u64,
    making: Making,
    /// The making step failed; it is tried again at this time.
    make_again_ms: Option<u64>,
    retiring: Retiring,
    retire_again_ms: Option<u64>,
    zeroing: Option<Range<u64>>,
    zero_at_ms: u64,
    asking: bool,
    ask_at_ms: u64,
    available: Option<u64>,
    /// A segment was retired since the space was last asked for: what is known does not count it yet.
    retired: bool,
    total: u64,
    last_fault: Option<Fault>,
}

impl Segments {
    /// The files that recovery found. `live` is sorted and has no gaps; `zeroed_to` of each is set.
    pub fn new(
        config: &LogConfig,
        direct: bool,
        live: VecDeque<Segment>,
        spares: Vec<(PathBuf, Handle, u64)>,
    ) -> Segments {
        Segments {
            directory: config.directory.clone(),
            partition: config.partition,
            segment_bytes: config.segment_bytes,
            prepare_bytes: config.prepare_bytes,
            prepare_rate: config.prepare_rate,
            direct,
            live,
            spares: spares.into_iter().map(|(path, handle, bytes)| Spare { path, handle, bytes }).collect(),
            going: None,
            shrinking: false,
            shrink_at_ms: 0,
            making: Making::Rest,
            make_again_ms: None,
            retiring: Retiring::Rest,
            retire_again_ms: None,
            zeroing: None,
            zero_at_ms: 0,
            asking: false,
            ask_at_ms: 0,
            available: None,
            retired: false,
            total: 0,
            last_fault: None,
        }
    }

    /// The live segment that holds a log byte.
    pub fn holding(&self, byte: u64) -> Option<&Segment> {
        let index = self.live.partition_point(|segment| segment.end() <= byte);
        self.live.get(index).filter(|segment| segment.base <= byte)
    }

    /// The live segments, oldest first.
    pub fn live(&self) -> &VecDeque<Segment> {
        &self.live
    }

    /// Every open file, to be closed.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let spares = self.spares.iter().chain(&self.going).map(|spare| spare.handle);
        let making = match self.making {
            Making::Rest | Making::Open => None,
            Making::Allocate(handle)
            | Making::Head { handle, .. }
            | Making::Name { handle, .. }
            | Making::Settle { handle, .. } => Some(handle),
        };
        let retiring = match &self.retiring {
            Retiring::Rest => None,
            Retiring::Name(segment) | Retiring::Settle(segment) => Some(segment.handle),
        };
        self.live.iter().map(|segment| segment.handle).chain(spares).chain(making).chain(retiring)
    }

    /// Whether the oldest segment should go for room: less than twice `least` bytes are available, and there is no spare
    /// file of one that went before. That one is recycled, as long as half as much again as `least` is available; then it
    /// is freed, before another segment goes.
    pub fn lack_room(&mut self, least: u64) -> bool {
        if self.retired || self.going.is_some() || !matches!(self.retiring, Retiring::Rest) {
            return false;
        }
        let Some(available) = self.available.filter(|available| *available < least.saturating_mul(2)) else {
            return false;
        };
        if self.spares.is_empty() {
            return true;
        }
        if available < least.saturating_add(least / 2) {
            self.going = self.spares.pop_front();
            self.retired = true;
        }
        false
    }

    /// Files are opened past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether an operation of any chore is under way.
    pub fn is_busy(&self) -> bool {
        let making = !matches!(self.making, Making::Rest) && self.make_again_ms.is_none();
        let retiring = !matches!(self.retiring, Retiring::Rest) && self.retire_again_ms.is_none();
        making || retiring || self.zeroing.is_some() || self.asking || self.shrinking
    }

    /// Whether a segment is being retired: after a crash it may still be there.
    pub fn is_retiring(&self) -> bool {
        !matches!(self.retiring, Retiring::Rest)
    }

    /// Bytes available to us on the file system, once known.
    pub fn available(&self) -> Option<u64> {
        self.available
    }

    /// Size of the file system in bytes; 0 until known.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Why the newest step failed, if it did.
    pub fn last_fault(&self) -> Option<Fault> {
        self.last_fault
    }

    /// Whether the log may write these bytes now: not while zeros are on their way to them.
    pub fn may_write(&self, range: &Range<u64>) -> bool {
        self.zeroing.as_ref().is_none_or(|zeroing| range.end <= zeroing.start || zeroing.end <= range.start)
    }

    /// The log writes these bytes. Returns how many of them were not prepared.
    pub fn note_write(&mut self, range: &Range<u64>, now_ms: u64) -> u64 {
        let index = self.live.partition_point(|segment| segment.end() <= range.start);
        let segment = &mut self.live[index];
        assert!(segment.base < range.start && range.end <= segment.end(), "a batch lies within one segment");
        segment.newest_ms = now_ms;
        let unprepared = range.end.saturating_sub(range.start.max(segment.zeroed_to));
        if segment.zeroed_to < range.end && segment.zeroed_to >= range.start {
            segment.zeroed_to = range.end;
        }
        unprepared
    }

    /// Takes the oldest segment out of the log and makes it a spare. The caller knows that nothing needs it.
    pub fn retire_oldest(&mut self, wanted: &mut Vec<(Chore, Op)>) -> bool {
        if !matches!(self.retiring, Retiring::Rest) || self.live.len() < 2 {
            return false;
        }
        self.retiring = Retiring::Name(self.live.pop_front().expect("there are two"));
        self.retired = true;
        wanted.extend(self.retire_op());
        true
    }

    /// Does what is due: makes the next segment, fills zeros, asks for space, shrinks what goes.
    /// `head`: the log byte where the log stands. `busy`: it is writing.
    pub fn on_turn(&mut self, head: u64, busy: bool, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        if !self.asking && now_ms >= self.ask_at_ms {
            self.asking = true;
            wanted.push((Chore::Space, Op::Space { path: self.directory.clone() }));
        }
        if self.retire_again_ms.take_if(|at| now_ms >= *at).is_some() {
            wanted.extend(self.retire_op());
        }
        self.make(head, now_ms, wanted);
        self.zero(head, busy, now_ms, wanted);
        self.shrink(now_ms, wanted);
    }

    /// When [`on_turn`](Segments::on_turn) has something to do even if nothing happens.
    pub fn deadline_ms(&self) -> u64 {
        let mut deadline = if self.asking { u64::MAX } else { self.ask_at_ms };
        if self.going.is_some() && !self.shrinking {
            deadline = deadline.min(self.shrink_at_ms);
        }
        [self.make_again_ms, self.retire_again_ms].into_iter().flatten().fold(deadline, u64::min)
    }

    /// Takes the completion of a chore.
    pub fn on_done(
        &mut self,
        chore: Chore,
        outcome: Result<Outcome, Fault>,
        now_ms: u64,
        wanted: &mut Vec<(Chore, Op)>,
    ) {
        match chore {
            Chore::Make => self.on_made(outcome, now_ms, wanted),
            Chore::Retire => self.on_retired(outcome, now_ms, wanted),
            Chore::Zero => {
                let range = self.zeroing.take().expect("a zero write is under way");
                let whole = matches!(outcome, Ok(Outcome::Count(count)) if count as u64 == range.end - range.start);
                let holds = |segment: &&mut Segment| segment.base < range.start && range.end <= segment.end();
                if whole {
                    if let Some(segment) = self.live.iter_mut().find(holds) {
                        segment.zeroed_to = segment.zeroed_to.max(range.end);
                    }
                } else {
                    self.zero_at_ms = now_ms + RETRY_MS;
                    self.last_fault = outcome.err();
                }
            }
            Chore::Space => {
                self.asking = false;
                self.ask_at_ms = now_ms + SPACE_INTERVAL_MS;
                if let Ok(Outcome::Space { available, total }) = outcome {
                    self.available = Some(available);
                    self.retired = !matches!(self.retiring, Retiring::Rest);
                    self.total = total;
                }
            }
            Chore::Shrink => {
                self.shrinking = false;
                self.shrink_at_ms = now_ms + SHRINK_INTERVAL_MS;
                if let Err(fault) = outcome {
                    self.last_fault = Some(fault);
                    self.shrink_at_ms = now_ms + RETRY_MS;
                } else if let Some(spare) = self.going.take_if(|spare| spare.bytes == 0) {
                    wanted.push((Chore::Close, Op::Close { handle: spare.handle }));
                }
            }
            Chore::Close => {}
        }
    }

    fn make(&mut self, head: u64, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        if let Some(at) = self.make_again_ms {
            if now_ms < at {
                return;
            }
            self.make_again_ms = None;
            if let (Making::Allocate(handle), false, None) = (&self.making, self.spares.is_empty(), &self.going) {
                // No room for a new file, but an old one came free meanwhile.
                self.going = Some(Spare { path: self.directory.join("next"), handle: *handle, bytes: 0 });
                self.making = Making::Rest;
            } else {
                wanted.extend(self.make_op());
                return;
            }
        }
        let ahead = self.live.back().map_or(0, Segment::end).saturating_sub(head);
        let enough = !self.live.is_empty() && ahead >= self.prepare_bytes.max(self.segment_bytes / 2);
        if !matches!(self.making, Making::Rest) || enough {
            return;
        }
        // A spare file of another size (the configuration changed) is of no use.
        if self.going.is_none()
            && let Some(index) = self.spares.iter().position(|spare| spare.bytes != self.segment_bytes)
        {
            self.going = self.spares.remove(index);
        }
        let spare = self.spares.iter().position(|spare| spare.bytes == self.segment_bytes);
        self.making = match spare.and_then(|index| self.spares.remove(index)) {
            Some(spare) => Making::Head { handle: spare.handle, path: spare.path, zeroed: true },
            // A file of that name is still on its way out.
            None if self.going.as_ref().is_some_and(|going| going.path.ends_with("next")) => return,
            None => Making::Open,
        };
        wanted.extend(self.make_op());
    }

    fn make_op(&self) -> Option<(Chore, Op)> {
        let op = match &self.making {
            Making::Rest => return None,
            Making::Open => {
                let how = OpenHow { create: true, direct: self.direct, read_only: false };
                Op::Open { path: self.directory.join("next"), how }
            }
            Making::Allocate(handle) => Op::Allocate { file: *handle, length: self.segment_bytes },
            Making::Head { handle, .. } => {
                let header =
                    SegmentHeader { partition: self.partition, base: self.next_base(), bytes: self.segment_bytes };
                let mut block = Chunk::standalone(SEGMENT_HEADER_BYTES as usize);
                let fields = header.encode();
                block.spare_mut()[..fields.len()].copy_from_slice(&fields);
                Op::Write { file: *handle, at: 0, bytes: block.split_to(SEGMENT_HEADER_BYTES as usize), durable: true }
            }
            Making::Name { path, .. } => Op::Rename { from: path.clone(), to: self.path(self.next_base()) },
            Making::Settle { .. } => Op::SyncDirectory { path: self.directory.clone() },
        };
        Some((Chore::Make, op))
    }

    fn on_made(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        let outcome = match outcome {
            Ok(Outcome::Count(count)) if count as u64 != SEGMENT_HEADER_BYTES => Err(Fault(libc::EIO)),
            outcome => outcome,
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            // The first file of a new directory: nobody tried before whether direct writes are possible here.
            Err(Fault(libc::EINVAL)) if self.direct && matches!(self.making, Making::Open) => {
                self.direct = false;
                wanted.extend(self.make_op());
                return;
            }
            Err(fault) => {
                self.last_fault = Some(fault);
                self.make_again_ms = Some(now_ms + RETRY_MS);
                return;
            }
        };
        self.last_fault = None;
        self.making = match (std::mem::replace(&mut self.making, Making::Rest), outcome) {
            (Making::Open, Outcome::Opened(handle)) => Making::Allocate(handle),
            (Making::Allocate(handle), _) => Making::Head { handle, path: self.directory.join("next"), zeroed: false },
            (Making::Head { handle, path, zeroed }, _) => Making::Name { handle, path, zeroed },
            (Making::Name { handle, zeroed, .. }, _) => Making::Settle { handle, zeroed },
            (Making::Settle { handle, zeroed }, _) => {
                let (base, bytes) = (self.next_base(), self.segment_bytes);
                let zeroed_to = base + if zeroed { bytes } else { SEGMENT_HEADER_BYTES };
                self.live.push_back(Segment { base, bytes, handle, newest_ms: 0, zeroed_to });
                Making::Rest
            }
            (making, outcome) => unreachable!("{outcome:?} is no answer to {making:?}"),
        };
        wanted.extend(self.make_op());
    }

    fn retire_op(&self) -> Option<(Chore, Op)> {
        let op = match &self.retiring {
            Retiring::Rest => return None,
            Retiring::Name(segment) => Op::Rename { from: self.path(segment.base), to: self.spare_path(segment.base) },
            Retiring::Settle(_) => Op::SyncDirectory { path: self.directory.clone() },
        };
        Some((Chore::Retire, op))
    }

    fn on_retired(&mut self, outcome: Result<Outcome, Fault>, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        if let Err(fault) = outcome {
            self.last_fault = Some(fault);
            self.retire_again_ms = Some(now_ms + RETRY_MS);
            return;
        }
        self.retiring = match std::mem::replace(&mut self.retiring, Retiring::Rest) {
            Retiring::Rest => unreachable!("nothing was being retired"),
            Retiring::Name(segment) => Retiring::Settle(segment),
            Retiring::Settle(segment) => {
                self.spares.push_back(Spare {
                    path: self.spare_path(segment.base),
                    handle: segment.handle,
                    bytes: segment.bytes,
                });
                if self.spares.len() > SPARES_MAX && self.going.is_none() {
                    self.going = self.spares.pop_front();
                }
                Retiring::Rest
            }
        };
        wanted.extend(self.retire_op());
    }

    fn zero(&mut self, head: u64, busy: bool, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        if self.zeroing.is_some() || now_ms < self.zero_at_ms {
            return;
        }
        let margin = if busy { ZERO_MARGIN_BYTES } else { BLOCK_BYTES * 16 };
        let (least, most) = ((head + margin).next_multiple_of(BLOCK_BYTES), head + self.prepare_bytes);
        let Some(segment) = self.live.iter_mut().find(|segment| segment.zeroed_to.max(least) < segment.end().min(most))
        else {
            return;
        };
        let from = segment.zeroed_to.max(least);
        let range = from..segment.end().min(from + ZERO_BYTES as u64);
        // What lies between was or will be written by the log itself.
        segment.zeroed_to = from;
        let bytes = ZEROS.slice(..(range.end - range.start) as usize);
        wanted.push((Chore::Zero, Op::Write { file: segment.handle, at: from - segment.base, bytes, durable: true }));
        if busy {
            self.zero_at_ms = now_ms + (range.end - range.start) * 1000 / self.prepare_rate.max(1);
        }
        self.zeroing = Some(range);
    }

    fn shrink(&mut self, now_ms: u64, wanted: &mut Vec<(Chore, Op)>) {
        let Some(spare) = self.going.as_mut().filter(|_| !self.shrinking && now_ms >= self.shrink_at_ms) else {
            return;
        };
        self.shrinking = true;
        if spare.bytes > SHRINK_BYTES {
            spare.bytes -= SHRINK_BYTES;
            wanted.push((Chore::Shrink, Op::Truncate { file: spare.handle, length: spare.bytes }));
        } else {
            spare.bytes = 0;
            wanted.push((Chore::Shrink, Op::Remove { path: spare.path.clone() }));
        }
    }

    fn next_base(&self) -> u64 {
        self.live.back().map_or(0, Segment::end)
    }

    fn path(&self, base: u64) -> PathBuf {
        self.directory.join(name(base))
    }

    fn spare_path(&self, base: u64) -> PathBuf {
        self.directory.join(format!("spare-{}", name(base)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Region;

    const SEGMENT: u64 = 128 << 20;
    const LEAST: u64 = 1 << 30;

    /// A second of a log that retires when there is no room: `available` bytes are left. Returns the files that were
    /// retired and the bytes that were freed.
    fn second(segments: &mut Segments, available: u64, now_ms: &mut u64) -> (usize, u64) {
        let (mut wanted, mut retired, mut freed) = (Vec::new(), 0, 0);
        let head = segments.live().front().expect("one is live").base + SEGMENT / 2;
        for _ in 0..SPACE_INTERVAL_MS / SHRINK_INTERVAL_MS {
            *now_ms += SHRINK_INTERVAL_MS;
            segments.on_turn(head, true, *now_ms, &mut wanted);
            if segments.lack_room(LEAST) && segments.retire_oldest(&mut wanted) {
                retired += 1;
            }
            while let Some((chore, op)) = wanted.pop() {
                let outcome = match op {
                    Op::Space { .. } => Outcome::Space { available, total: 1 << 40 },
                    Op::Remove { .. } => {
                        freed += SEGMENT;
                        Outcome::Nothing
                    }
                    _ => Outcome::Nothing,
                };
                segments.on_done(chore, Ok(outcome), *now_ms, &mut wanted);
            }
        }
        (retired, freed)
    }

    #[test]
    fn where_room_is_scarce_what_went_is_freed_before_more_goes() {
        let mut config = LogConfig::new("/p", 3, Region::new(8, 1 << 20).unwrap(), |_| None);
        (config.segment_bytes, config.prepare_bytes) = (SEGMENT, 0);
        let live = (0..8).map(|index| {
            let (base, handle) = (index * SEGMENT, Handle(3 + index as i32));
            Segment { base, bytes: SEGMENT, handle, newest_ms: 0, zeroed_to: base + SEGMENT }
        });
        let mut segments = Segments::new(&config, true, live.collect(), Vec::new());
        let mut now_ms = 1_000_000;
        let mut go = |available| second(&mut segments, available, &mut now_ms);
        assert_eq!(go(2 * LEAST), (0, 0));
        // A little too few: one goes and waits to be recycled, however long that takes.
        assert_eq!((go(2 * LEAST - 1).0, go(2 * LEAST - 1), go(3 * LEAST / 2)), (1, (0, 0), (0, 0)));
        // Far too few: that one is freed, and then one after the other.
        let (mut retired, mut freed) = (1, 0);
        for _ in 0..6 {
            let (more, less) = go(3 * LEAST / 2 - 1);
            (retired, freed) = (retired + more, freed + less);
            assert!(retired as u64 <= 1 + freed / SEGMENT, "{retired} went, {freed} bytes are free");
        }
        assert!(freed >= 2 * SEGMENT, "{freed}");
    }
}
