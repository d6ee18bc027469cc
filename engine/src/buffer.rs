//! Block-aligned memory: what `O_DIRECT` demands, handed out so that safe code can fill it once and
//! share it many times. A [`Region`] is one mapping cut into chunks of one size; a [`Chunk`] is the
//! only writer of what has not been shared yet; what it has shared is immutable [`Bytes`]. Receives
//! have buffers of their own, which the kernel fills and which come back from any thread.
//!
//! Why chunks are sound: a chunk's memory belongs to one [`Lease`]. Of its range, the front
//! `[0, start)` is shared and never written again, and the rest `[start, capacity)` is
//! reachable through the one `Chunk` only. `start` only grows, and only [`Chunk::split_to`] moves it.
//! The memory goes back (to the region or to the allocator) when the last holder of the lease is
//! gone, and then no reference to it is left. All memory is zeroed when it is new, so that it is
//! always initialised, if perhaps stale.

#![allow(unsafe_code, reason = "the wall of memory: aligned, shared, returned to its region")]

use crate::limits::LOAD_BYTES;
use crate::wake::Waker;
use bytes::Bytes;
use crossbeam_queue::ArrayQueue;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use std::alloc::{self, Layout};
use std::cell::RefCell;
use std::io;
use std::ops::RangeInclusive;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering, fence};

/// Asks the processor to fetch what lies there into its cache. A hint: nothing is read, so any address will do.
#[inline(always)]
pub fn prefetch<T>(place: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: prefetching an address, whatever it is, has no effect that a program can see.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// As [`prefetch`], for all of this memory.
#[inline(always)]
pub fn prefetch_all(memory: &[u8]) {
    memory.iter().step_by(LINE).for_each(|byte| prefetch(byte));
}

/// What positions, lengths and memory of direct I/O are multiples of, in bytes.
pub const BLOCK: usize = 4096;

/// Received bytes up to this many are copied and their buffer is given back at once: a copy of this
/// size costs no more than the owner that lends the buffer, and small leftovers then never pin 16 KiB.
pub const RECEIVE_COPY_BYTES_MAX: usize = 2048;

/// The one group of provided buffers.
pub(crate) const GROUP: u16 = 0;

/// Rounds up to whole blocks.
pub const fn blocks_up(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK)
}

/// One mapped range cut into chunks of one size. It is not resident until it is used, unless a ring
/// registers it (which pins all of it).
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    chunks: usize,
    chunk_bytes: usize,
    /// One bit for each chunk; set: free. The lowest free one is taken first, so that a quiet broker
    /// keeps touching the same few chunks and the others never become resident.
    free: Box<[AtomicU64]>,
}

// SAFETY: `base` is a mapping that belongs to the region until `drop`; the region itself never reads
// or writes through it. Who may touch which bytes is decided by the atomic bits of `free`.
unsafe impl Send for Region {}
// SAFETY: as above; every method takes `&self` and changes `free` only, atomically.
unsafe impl Sync for Region {}

impl Region {
    /// Maps `chunks` chunks of `chunk_bytes` each.
    ///
    /// Fails with `InvalidInput` unless there is at least one chunk, `chunk_bytes` is a positive
    /// multiple of [`BLOCK`], and the sum fits `isize`; and with the system's error if it refuses.
    pub fn new(chunks: usize, chunk_bytes: usize) -> io::Result<Arc<Region>> {
        let bytes = chunks.checked_mul(chunk_bytes).filter(|bytes| (1..=isize::MAX as usize).contains(bytes));
        let Some(bytes) = bytes.filter(|_| chunk_bytes.is_multiple_of(BLOCK)) else {
            let text = format!("a region of {chunks} chunks of {chunk_bytes} bytes: not a multiple of {BLOCK}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        // SAFETY: a new anonymous mapping where the kernel likes: no memory of ours is touched.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Fewer TLB misses, and fewer pages to pin when it is registered. Only advice: a kernel without
        // huge pages refuses and nothing is lost.
        // SAFETY: exactly the mapping made above; the advice changes no contents.
        unsafe { libc::madvise(base, bytes, libc::MADV_HUGEPAGE) };
        let free = (0..chunks.div_ceil(64)).map(|word| {
            let bits = (chunks - word * 64).min(64);
            AtomicU64::new(u64::MAX >> (64 - bits))
        });
        Ok(Arc::new(Region {
            base: NonNull::new(base.cast()).expect("mmap without MAP_FIXED never maps page zero"),
            chunks,
            chunk_bytes,
            free: free.collect(),
        }))
    }

    /// A free chunk, all of it unshared; `None` when all are in use. Its contents are stale.
    pub fn take(self: &Arc<Self>) -> Option<Chunk> {
        for (word, free) in self.free.iter().enumerate() {
            let mut bits = free.load(Ordering::Relaxed);
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                // Acquire pairs with the Release in `give`: what the last holders did is over.
                bits = free.fetch_and(!bit, Ordering::Acquire);
                if bits & bit != 0 {
                    let index = word * 64 + bit.trailing_zeros() as usize;
                    return Some(Chunk {
                        lease: Arc::new(Lease::Region { region: Arc::clone(self), index }),
                        start: 0,
                        capacity: self.chunk_bytes,
                    });
                }
            }
        }
        None
    }

    /// How many chunks are free now.
    pub fn free(&self) -> usize {
        self.free.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The size of each chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Whether all of `bytes` lies in this region.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let base = self.base.as_ptr().addr();
        let from = bytes.as_ptr().addr();
        from >= base && from + bytes.len() <= base + self.bytes()
    }

    /// Where it begins, for registration.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// The size of all of it.
    pub fn bytes(&self) -> usize {
        self.chunks * self.chunk_bytes
    }

    fn give(&self, index: usize) {
        let bit = 1 << (index % 64);
        let bits = self.free[index / 64].fetch_or(bit, Ordering::Release);
        assert!(bits & bit == 0, "chunk {index} was given back twice");
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping of `new`. Every lease holds the region, so no chunk and no slice
        // of one is left; a ring that registered it holds it too.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes()) };
    }
}

/// The only writer of memory that is not shared yet.
#[derive(Debug)]
pub struct Chunk {
    lease: Arc<Lease>,
    /// Below it: shared. From it to `capacity`: ours alone.
    start: usize,
    capacity: usize,
}

impl Chunk {
    /// Memory of its own, for what no region's chunk can hold: at least `bytes`, in whole blocks. It is
    /// zeroed, and returned to the allocator with its last slice.
    pub fn standalone(bytes: usize) -> Chunk {
        let memory = Aligned::zeroed(bytes);
        Chunk { start: 0, capacity: memory.capacity(), lease: Arc::new(Lease::Own(memory)) }
    }

    /// How many bytes are not shared yet.
    pub fn len(&self) -> usize {
        self.capacity - self.start
    }

    /// Whether all of it is shared.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All that is not shared yet: what was written to it since, and behind that stale bytes.
    pub fn spare(&self) -> &[u8] {
        // SAFETY: `[start, capacity)` lies in the lease's memory, is initialised, and is written only
        // through `&mut self`, which cannot be borrowed while this is.
        unsafe { std::slice::from_raw_parts(self.lease.base().add(self.start), self.len()) }
    }

    /// All that is not shared yet, to be written. A reused chunk holds stale bytes of its last use:
    /// padding must be zeroed by whoever pads.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        // SAFETY: `[start, capacity)` lies in the lease's memory and is initialised; no `Bytes` covers
        // it, and no other chunk has this lease (it is never cloned into one), so `&mut self` makes
        // this the only reference to it.
        unsafe { std::slice::from_raw_parts_mut(self.lease.base().add(self.start), self.len()) }
    }

    /// Shares the first `bytes` unshared bytes, as they are now and will stay; the chunk keeps the
    /// rest. Panics if there are fewer.
    pub fn split_to(&mut self, bytes: usize) -> Bytes {
        assert!(bytes <= self.len(), "{bytes} bytes of {} unshared", self.len());
        let slice = Slice { lease: Arc::clone(&self.lease), start: self.start, bytes };
        self.start += bytes;
        Bytes::from_owner(slice)
    }
}

/// What keeps a chunk's memory: the last holder's drop returns it.
#[derive(Debug)]
enum Lease {
    Region { region: Arc<Region>, index: usize },
    Own(Aligned),
}

impl Lease {
    fn base(&self) -> *mut u8 {
        match self {
            // SAFETY: `index` is below the region's count (it came from its bits), so the sum stays
            // inside the mapping.
            Lease::Region { region, index } => unsafe { region.base.as_ptr().add(index * region.chunk_bytes) },
            Lease::Own(memory) => memory.base.as_ptr(),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Lease::Region { region, index } = self {
            region.give(*index);
        }
    }
}

/// The owner behind a shared slice of a chunk.
struct Slice {
    lease: Arc<Lease>,
    start: usize,
    bytes: usize,
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the range was below the chunk's `start` from the moment this was made: initialised,
        // inside the lease's memory, and never written again while the lease lives, which we hold.
        unsafe { std::slice::from_raw_parts(self.lease.base().add(self.start), self.bytes) }
    }
}

/// A heap allocation in whole blocks, aligned to one. What was written to it can be frozen.
#[derive(Debug)]
pub(crate) struct Aligned {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns its allocation alone, like a `Box<[u8]>`; shared access goes through `Slice` and
// `Frozen`, which only read.
unsafe impl Send for Aligned {}
// SAFETY: as above.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// At least `bytes`, not initialised: for a kernel that is about to write to it.
    pub(crate) fn uninit(bytes: usize) -> Aligned {
        let mut layout = Aligned::layout(bytes);
        if SPARE_BYTES.contains(&layout.size()) {
            layout = Spares::layout();
            if let Some(base) = SPARES.try_with(|spares| spares.borrow_mut().0.pop()).ok().flatten() {
                return Aligned { base, layout };
            }
        }
        // SAFETY: the layout's size is not zero (`layout` gives at least one block).
        Aligned::from_raw(layout, |layout| unsafe { alloc::alloc(layout) })
    }

    fn zeroed(bytes: usize) -> Aligned {
        // SAFETY: as above.
        Aligned::from_raw(Aligned::layout(bytes), |layout| unsafe { alloc::alloc_zeroed(layout) })
    }

    /// How many bytes it holds: whole blocks.
    pub(crate) fn capacity(&self) -> usize {
        self.layout.size()
    }

    /// Where it begins.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Shares the first `bytes`.
    ///
    /// # Safety
    /// The first `bytes` are initialised (the kernel said that it wrote them), and nothing writes to
    /// the memory any more.
    pub(crate) unsafe fn freeze(self, bytes: usize) -> Bytes {
        assert!(bytes <= self.capacity(), "{bytes} bytes of {}", self.capacity());
        Bytes::from_owner(Frozen { memory: self, bytes })
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(blocks_up(bytes.max(1)), BLOCK)
            .expect("a block is a power of two, and no buffer is near isize::MAX")
    }

    fn from_raw(layout: Layout, allocate: impl FnOnce(Layout) -> *mut u8) -> Aligned {
        match NonNull::new(allocate(layout)) {
            Some(base) => Aligned { base, layout },
            None => alloc::handle_alloc_error(layout),
        }
    }
}

/// Memory of reads, kept for the next ones of its thread. The allocator would give such large pieces back to the
/// kernel, and get each page of them new and empty: a fifth of what a core does while it reads an old log.
struct Spares(Vec<NonNull<u8>>);

/// Reads of such sizes share their memory: each gets as much as the largest, no more than twice what it needs.
const SPARE_BYTES: RangeInclusive<usize> = LOAD_BYTES as usize / 2..=LOAD_BYTES as usize + BLOCK;
/// So many wait for their next use: 16 MiB a thread.
const SPARES_MAX: usize = 64;

thread_local! {
    static SPARES: RefCell<Spares> = const { RefCell::new(Spares(Vec::new())) };
}

impl Spares {
    fn layout() -> Layout {
        Aligned::layout(*SPARE_BYTES.end())
    }

    /// Takes memory of that layout, if there is a place for it.
    fn keep(&mut self, base: NonNull<u8>) -> bool {
        let is_kept = self.0.len() < SPARES_MAX;
        if is_kept {
            self.0.push(base);
        }
        is_kept
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        for base in self.0.drain(..) {
            // SAFETY: an `Aligned` of this layout left it here and did not free it.
            unsafe { alloc::dealloc(base.as_ptr(), Spares::layout()) };
        }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.layout == Spares::layout()
            && let Ok(true) = SPARES.try_with(|spares| spares.borrow_mut().keep(self.base))
        {
            return;
        }
        // SAFETY: allocated in `from_raw` with this layout, and freed only here.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// The owner behind a frozen [`Aligned`].
struct Frozen {
    memory: Aligned,
    bytes: usize,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `freeze` was promised that these bytes are initialised and never written again.
        unsafe { std::slice::from_raw_parts(self.memory.base.as_ptr(), self.bytes) }
    }
}

/// The provided buffers: a ring of descriptors that the kernel reads, and the memory they point to.
pub(crate) struct ReceiveBuffers {
    pool: Arc<Pool>,
    /// `io_uring_buf` entries; the tail lies in the first one's reserved field.
    descriptors: Arc<Region>,
    tail: u16,
    /// Buffers in the kernel's hands, as far as reaped completions tell.
    available: usize,
}

/// What a lent buffer needs to come back, from whatever thread.
#[derive(Debug)]
struct Pool {
    /// One chunk for each buffer; never taken by `Region::take`.
    memory: Arc<Region>,
    returned: ArrayQueue<u16>,
    /// A receive waits for a buffer: whoever returns one wakes the loop.
    starved: AtomicBool,
    waker: Waker,
}

impl ReceiveBuffers {
    pub(crate) fn new(uring: &IoUring, count: u16, bytes: usize, waker: Waker) -> io::Result<ReceiveBuffers> {
        let memory = Region::new(usize::from(count), bytes)?;
        let descriptors = Region::new(1, blocks_up(usize::from(count) * size_of::<BufRingEntry>()))?;
        let address = descriptors.base().addr() as u64;
        // SAFETY: the mapping holds `count` entries, page-aligned, and is dropped after the ring's queue
        // (field order), when no operation is left that could take a buffer.
        unsafe { uring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) }?;
        let pool =
            Pool { memory, returned: ArrayQueue::new(usize::from(count)), starved: AtomicBool::new(false), waker };
        let mut buffers = ReceiveBuffers { pool: Arc::new(pool), descriptors, tail: 0, available: 0 };
        for id in 0..count {
            buffers.give(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// What the kernel received into buffer `id`: a copy, or the buffer itself on loan.
    pub(crate) fn take(&mut self, bytes: usize, id: Option<u16>) -> Bytes {
        let Some(id) = id else { return Bytes::new() }; // The end of the stream needs no buffer.
        self.available -= 1;
        if bytes > RECEIVE_COPY_BYTES_MAX {
            let pool = Arc::clone(&self.pool);
            return Bytes::from_owner(Loan { pool, id, bytes });
        }
        // SAFETY: the buffer came with this completion and goes back below, after it was copied.
        let copy = Bytes::copy_from_slice(unsafe { self.pool.slice(id, bytes) });
        self.give(id);
        copy
    }

    /// Gives the kernel what came back. True: receives that wait for a buffer may try again.
    /// `starved`: there are such receives.
    pub(crate) fn refill(&mut self, starved: bool) -> bool {
        if starved {
            self.pool.starved.store(true, Ordering::Relaxed);
            // Pairs with the fence in `Loan::drop`: either we see its buffer below, or it sees us starve.
            fence(Ordering::SeqCst);
        }
        while let Some(id) = self.pool.returned.pop() {
            self.give(id);
        }
        self.publish();
        let fed = starved && self.available > 0;
        if fed {
            self.pool.starved.store(false, Ordering::Relaxed);
        }
        fed
    }

    /// Keeps the memory mapped for ever: the kernel may still write to it.
    pub(crate) fn leak(&self) {
        std::mem::forget(Arc::clone(&self.pool));
    }

    fn give(&mut self, id: u16) {
        let count = self.pool.memory.chunks();
        let bytes = self.pool.memory.chunk_bytes();
        let place = usize::from(self.tail) & (count - 1);
        // SAFETY: `place` is below `count`, so the entry lies in the mapping. There are as many entries as
        // buffers and each is in the ring at most once, so this one was consumed and the kernel does not
        // read it until the tail passes it. Entries of zeros are valid.
        let entry = unsafe { &mut *self.descriptors.base().cast::<BufRingEntry>().add(place) };
        entry.set_addr((self.pool.memory.base().addr() + usize::from(id) * bytes) as u64);
        entry.set_len(bytes as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.available += 1;
    }

    pub(crate) fn publish(&mut self) {
        // SAFETY: the first entry lies in the mapping; its reserved field is the tail, two bytes, aligned,
        // written by us only and read by the kernel.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.descriptors.base().cast()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

/// A provided buffer on loan: dropping it hands the buffer back.
struct Loan {
    pool: Arc<Pool>,
    id: u16,
    bytes: usize,
}

impl Pool {
    /// The first `bytes` of buffer `id`.
    ///
    /// # Safety
    /// The buffer was taken from a completion and is not given back while the slice lives.
    unsafe fn slice(&self, id: u16, bytes: usize) -> &[u8] {
        let size = self.memory.chunk_bytes();
        assert!(usize::from(id) < self.memory.chunks() && bytes <= size);
        // SAFETY: inside the mapping, by the line above; initialised, because a new mapping is zeros;
        // and the kernel does not write to a buffer that it was not given.
        unsafe { std::slice::from_raw_parts(self.memory.base().add(usize::from(id) * size), bytes) }
    }
}

impl AsRef<[u8]> for Loan {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the loan was made for its completion, and only its drop gives the buffer back.
        unsafe { self.pool.slice(self.id, self.bytes) }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let returned = self.pool.returned.push(self.id);
        assert!(returned.is_ok(), "each buffer has a place to come back to");
        fence(Ordering::SeqCst);
        if self.pool.starved.load(Ordering::Relaxed) {
            self.pool.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_reads_is_used_again_and_so_much_of_it_is_kept() {
        let load = LOAD_BYTES as usize;
        let mut many: Vec<Aligned> = (0..2 * SPARES_MAX).map(|_| Aligned::uninit(load)).collect();
        let places: Vec<_> = many.iter_mut().map(Aligned::as_mut_ptr).collect();
        many.drain(..SPARES_MAX);
        // Whatever its size, and whoever gives it back.
        let mut again: Vec<Aligned> = (0..SPARES_MAX).map(|index| Aligned::uninit(load / 2 + index * 1024)).collect();
        assert!(again.iter_mut().all(|memory| places[..SPARES_MAX].contains(&memory.as_mut_ptr())));
        assert!(again.iter().all(|memory| memory.capacity() >= load));
        std::thread::spawn(move || drop(again)).join().unwrap();
        assert!(Aligned::uninit(load / 2 - BLOCK).capacity() < load / 2, "small ones are as large as was asked");
        drop(many);
        SPARES.with_borrow(|spares| assert_eq!(spares.0.len(), SPARES_MAX, "and no more"));
    }

    #[test]
    fn a_region_refuses_sizes_that_are_not_blocks() {
        for (chunks, bytes) in [(0, BLOCK), (1, 0), (1, 1), (1, BLOCK + 1), (usize::MAX, BLOCK)] {
            let error = Region::new(chunks, bytes).expect_err("not a region");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{chunks} of {bytes}");
        }
    }

    #[test]
    fn chunks_are_aligned_distinct_and_come_back() {
        let region = Region::new(130, 2 * BLOCK).unwrap();
        assert_eq!(region.free(), 130);
        let mut chunks: Vec<Chunk> = std::iter::from_fn(|| region.take()).collect();
        assert_eq!((chunks.len(), region.free()), (130, 0));
        for (index, chunk) in chunks.iter_mut().enumerate() {
            assert!(chunk.spare().as_ptr().addr().is_multiple_of(BLOCK));
            assert!(region.contains(chunk.spare()));
            assert!(chunk.spare().iter().all(|byte| *byte == 0));
            chunk.spare_mut().fill(index as u8);
        }
        for (index, chunk) in chunks.iter().enumerate() {
            assert!(chunk.spare().iter().all(|byte| *byte == index as u8), "chunk {index}");
        }
        chunks.remove(77);
        assert_eq!(region.free(), 1);
        assert_eq!(region.take().unwrap().spare()[0], 77, "the one that came back");
        drop(chunks);
        assert_eq!(region.free(), 130);
    }

    #[test]
    fn a_chunk_returns_with_its_last_slice_and_outlives_the_region_handle() {
        let region = Region::new(1, BLOCK).unwrap();
        let mut chunk = region.take().unwrap();
        chunk.spare_mut()[..10].copy_from_slice(b"0123456789");
        let (first, second) = (chunk.split_to(4), chunk.split_to(6));
        chunk.spare_mut().fill(b'x');
        assert_eq!((&first[..], &second[..]), (&b"0123"[..], &b"456789"[..]));
        assert_eq!((chunk.len(), chunk.is_empty()), (BLOCK - 10, false));
        let inner = second.slice(2..);
        drop((chunk, first, second));
        assert!(region.take().is_none(), "a slice of a slice still holds it");
        drop(region);
        assert_eq!(&inner[..], b"6789");
    }

    #[test]
    fn a_standalone_chunk_is_zeroed_whole_blocks() {
        for (wanted, given) in [(0, BLOCK), (1, BLOCK), (BLOCK, BLOCK), (BLOCK + 1, 2 * BLOCK)] {
            let mut chunk = Chunk::standalone(wanted);
            assert_eq!(chunk.len(), given);
            assert!(chunk.spare().as_ptr().addr().is_multiple_of(BLOCK));
            let all = chunk.split_to(given);
            assert!(chunk.is_empty() && all.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn contains_knows_both_ends() {
        let region = Region::new(2, BLOCK).unwrap();
        let mut chunk = region.take().unwrap();
        let outside = Chunk::standalone(1);
        assert!(region.contains(&chunk.split_to(BLOCK)));
        assert!(!region.contains(outside.spare()));
    }

    /// Threads take, fill, check and return: a chunk that two of them hold at once shows a wrong byte.
    #[test]
    fn threads_never_share_a_chunk() {
        let region = Region::new(3, BLOCK).unwrap();
        std::thread::scope(|scope| {
            for name in 1..=4u8 {
                let region = &region;
                scope.spawn(move || {
                    let mut taken = 0;
                    while taken < 2_000 {
                        let Some(mut chunk) = region.take() else {
                            std::thread::yield_now();
                            continue;
                        };
                        chunk.spare_mut()[..64].fill(name);
                        let shared = chunk.split_to(64);
                        assert!(shared.iter().all(|byte| *byte == name));
                        taken += 1;
                    }
                });
            }
        });
        assert_eq!(region.free(), 3);
    }
}
