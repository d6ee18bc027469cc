//! Along a log, batch by batch, and past what is damaged.

use super::segments::{Piece, Segments};
use super::sequence::Sequence;
use super::view::View;
use super::{Behind, Damage, Ending, Sight};
use crate::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Batch, BatchHeader, FORMAT_VERSION, Kind, SEGMENT_HEADER_BYTES, crc32c,
};
use crate::io::Outcome;
use crate::limits::{BATCH_BYTES_MAX, INFLIGHT_BATCHES};
use crate::recover::{Next, OpenError, Recovery};
use std::ops::ControlFlow;

/// Bytes of one read behind damage: what two of the largest batches take, so that one fits wherever it begins.
const SEARCH_BYTES: u64 = 2 * BATCH_BYTES_MAX as u64;
/// Behind the end, batches are looked for as far as an opening looks.
const SEARCH_BEHIND_BYTES: u64 = (*INFLIGHT_BATCHES.end() as u64 + 3) * BATCH_BYTES_MAX as u64;
/// Bytes passed over where a file cannot be read.
const SKIP_BYTES: u64 = 4 << 20;
/// How often a head that moves while it is looked at is followed. 64: each time more of the log is whole.
const MOVES_MAX: u32 = 64;

/// How following the chain ended.
enum Followed {
    Stopped,
    /// At this log byte, and nobody knows of more.
    Ended(u64),
    /// At this log byte, and there should be more.
    Broken(u64, String),
}

/// The last batch seen.
#[derive(Clone, Copy, Debug)]
struct Last {
    base: u64,
    end: u64,
    crc: u32,
}

/// One way along a log, and what is remembered on it.
pub struct Walk<'a> {
    sight: &'a mut dyn FnMut(Sight<'_>) -> ControlFlow<()>,
    /// A checkpoint was told that everything below this log byte is durable.
    promised: u64,
    /// Where the run under way began.
    from: u64,
    /// `None` behind damage: any batch may come.
    last: Option<Last>,
    /// Where the log broke off when it was looked at for the first time.
    suspect: Option<u64>,
    epoch: u64,
    durable: u64,
    sequence: Sequence,
    stopped: bool,
    /// A batch came that does not continue what was seen before.
    broken: bool,
    /// How often the log moved while it was looked at.
    moves: u32,
    /// Queue offsets that are missing, each with the log byte where that shows.
    holes: Vec<(u64, String)>,
}

impl<'a> Walk<'a> {
    /// One that has not begun.
    pub fn new(promised: u64, sight: &'a mut dyn FnMut(Sight<'_>) -> ControlFlow<()>) -> Walk<'a> {
        Walk {
            sight,
            promised,
            from: 0,
            last: None,
            suspect: None,
            epoch: 0,
            durable: 0,
            sequence: Sequence::default(),
            stopped: false,
            broken: false,
            moves: 0,
            holes: Vec::new(),
        }
    }

    /// Walks along the log from the segment on that holds log byte `from`, or the oldest one behind it.
    /// `None`: `sight` broke off, which is heeded within one read.
    pub fn along(&mut self, segments: &mut Segments, from: u64) -> Option<Ending> {
        let mut looked = None;
        let first = segments.pieces.iter().find(|piece| piece.end() > from).map(|piece| piece.base);
        let Some(first) = first else { return self.finish(segments, 0) };
        let mut at = first + SEGMENT_HEADER_BYTES;
        loop {
            let (head, what) = match self.run(segments, at) {
                Followed::Stopped => return None,
                Followed::Broken(head, what) => (head, Some(what)),
                Followed::Ended(head) => {
                    // A gap was named when the files were listed; behind it is more.
                    let end = segments.contiguous(at).last().map_or(head, Piece::end);
                    if let Some(beyond) = segments.pieces.iter().find(|piece| piece.base > end) {
                        at = beyond.base + SEGMENT_HEADER_BYTES;
                        self.last = None;
                        continue;
                    }
                    if head >= self.promised {
                        return self.finish(segments, head);
                    }
                    (head, None)
                }
            };
            match what {
                // The log may be in use: look again before anything is called damaged, or missing at its end.
                _ if segments.forget_retired(head) => {
                    self.moves += 1;
                    self.last = None;
                    // What came between went unseen, and is not missing.
                    self.sequence = Sequence::default();
                    let Some(oldest) = segments.pieces.first() else { return self.finish(segments, head) };
                    at = oldest.base + SEGMENT_HEADER_BYTES;
                }
                None => return self.finish(segments, head),
                Some(_) if looked != Some(head) => {
                    looked = Some(head);
                    self.suspect = Some(head);
                    at = self.last.map_or(at, |last| last.base);
                }
                Some(what) => match self.pass(segments, head, &what) {
                    ControlFlow::Break(()) => return None,
                    ControlFlow::Continue(Some(next)) => at = next,
                    ControlFlow::Continue(None) => return self.finish(segments, head),
                },
            }
            if self.moves > MOVES_MAX {
                return self.finish(segments, head);
            }
        }
    }

    /// The walk is over at `head`.
    fn finish(&mut self, segments: &Segments, head: u64) -> Option<Ending> {
        if head < self.promised && self.moves == 0 {
            let what =
                format!("the log ends, and everything below log byte {} was durable by its checkpoint", self.promised);
            self.damage(segments, head, what).is_continue().then_some(())?;
        }
        Some(self.ending(segments, head))
    }

    fn ending(&self, segments: &Segments, head: u64) -> Ending {
        let looks = segments.places(head).filter_map(|place| {
            let bytes = segments.peek(place, BATCH_HEADER_BYTES as u64)?;
            Some(match BatchHeader::peek(&bytes) {
                Ok(header) if segments.is_ours(&header, place) => Behind::Torn(header.length),
                Ok(_) => Behind::Stale,
                Err(_) if bytes.iter().all(|byte| *byte == 0) => Behind::Zeros,
                Err(_) => Behind::Other,
            })
        });
        let rank = |behind: &Behind| match behind {
            Behind::Nothing => 0,
            Behind::Zeros => 1,
            Behind::Other => 2,
            Behind::Stale => 3,
            Behind::Torn(_) => 4,
        };
        let mut silent = |_: Sight<'_>| ControlFlow::Continue(());
        let behind = Walk::new(0, &mut silent).next_whole(segments, head + 1, head + SEARCH_BEHIND_BYTES);
        let stranded = behind.continue_value().flatten();
        Ending {
            head,
            epoch: self.epoch,
            durable: self.durable,
            behind: looks.max_by_key(rank).unwrap_or(Behind::Nothing),
            stranded,
            moved: self.moves > 0,
        }
    }

    /// Lets recovery follow the chain from log byte `from`, where a batch begins.
    fn run(&mut self, segments: &Segments, from: u64) -> Followed {
        self.from = from;
        self.broken = false;
        let view = View { partition: segments.partition, pieces: segments.contiguous(from), from };
        let mut recovery = Recovery::new(&view.config());
        let mut op = recovery.first();
        loop {
            let outcome = view.answer(op);
            if let Ok(Outcome::Read(bytes)) = &outcome {
                self.tell(Sight::Read(bytes.len() as u64));
            }
            let mut take = |batch: Batch<'_>| {
                let piece = segments.holding(batch.header.base).expect("it was read from there");
                self.take(batch, piece);
            };
            let mut next = recovery.on_done(outcome, &mut take);
            if matches!(next, Ok(Next::Ready)) {
                next = recovery.begin(None, 0, &[], &mut take);
            }
            for (byte, what) in std::mem::take(&mut self.holes) {
                if self.damage(segments, byte, what).is_break() {
                    return Followed::Stopped;
                }
            }
            if self.stopped {
                return Followed::Stopped;
            }
            if self.broken {
                return Followed::Broken(self.end(), "no batch continues the log here".to_owned());
            }
            match next {
                Ok(Next::Do(next)) => op = next,
                Ok(Next::Ready) => unreachable!("it has begun"),
                Ok(Next::Finished(found)) => return Followed::Ended(found.end.head),
                Err(OpenError::Inside { byte, durable, .. }) => {
                    let what = format!("the log breaks off, and everything below log byte {durable} was acknowledged");
                    return Followed::Broken(byte, what);
                }
                Err(OpenError::Version { version, .. }) => {
                    let what = format!("written in format version {version}; this RingMQ reads up to {FORMAT_VERSION}");
                    return Followed::Broken(self.end(), what);
                }
                Err(error) => return Followed::Broken(self.end(), error.to_string()),
            }
        }
    }

    /// Names what is damaged at `head`, where the log breaks off, and finds the next place to go on from.
    fn pass(&mut self, segments: &Segments, head: u64, what: &str) -> ControlFlow<(), Option<u64>> {
        // Without a chain, the first place is the only one.
        let chain = self.last.map(|last| last.crc);
        for place in segments.places(head).take(if chain.is_some() { 3 } else { 1 }) {
            let Some((header, bytes)) = segments.batch_at(place, chain) else { continue };
            if Batch::open(&bytes).is_ok() {
                self.damage(segments, head, what.to_owned())?;
                self.last = None;
                return ControlFlow::Continue(Some(place));
            }
            if let Ok(batch) = Batch::open_headers(&bytes) {
                self.name_payloads(segments, batch)?;
                let end = batch.header.end();
                let is_next = |place: &u64| segments.batch_at(*place, Some(batch.crc)).is_some();
                return ControlFlow::Continue(Some(segments.places(end).find(is_next).unwrap_or(end)));
            }
            let what = format!(
                "a batch of {} bytes and {} records has a damaged header; {what}",
                header.length, header.records
            );
            return self.pass_to_next(segments, place, &what);
        }
        self.pass_to_next(segments, head, what)
    }

    /// Names what is damaged at `place`, and how far that goes.
    fn pass_to_next(&mut self, segments: &Segments, place: u64, what: &str) -> ControlFlow<(), Option<u64>> {
        // Damaged payloads on the way are told first: they are behind it, but the way's end is part of the sentence.
        let next = self.next_whole(segments, place + 1, u64::MAX)?;
        let upto = next.map_or("no whole batch comes behind it".to_owned(), |next| {
            format!("the next whole batch begins at log byte {next}")
        });
        self.damage(segments, place, format!("{what}; {upto}"))?;
        self.last = None;
        ControlFlow::Continue(next)
    }

    /// Names the records of a batch whose payloads are damaged; the others' headers count as seen.
    fn name_payloads(&mut self, segments: &Segments, batch: Batch<'_>) -> ControlFlow<()> {
        for (byte, record, payload) in batch.records() {
            if crc32c::crc32c(payload) != record.crc {
                let what = format!(
                    "the payload ({:?}, {} bytes, topic id {}, queue {}, offset {}) does not have its checksum",
                    record.kind, record.length, record.queue.topic, record.queue.queue, record.offset
                );
                self.damage(segments, byte, what)?;
            } else if record.kind == Kind::Facts {
                self.sequence.facts(payload);
            }
            // It was there: its offset is not missing.
            if record.kind == Kind::Message {
                self.sequence.message(&record);
            }
        }
        self.remember(batch);
        ControlFlow::Continue(())
    }

    /// The next log byte from `from` to `upto` where a whole batch begins; damaged ones on the way are named.
    fn next_whole(&mut self, segments: &Segments, mut from: u64, upto: u64) -> ControlFlow<(), Option<u64>> {
        while let Some(piece) = segments.pieces.iter().find(|piece| piece.end() > from).filter(|_| from < upto) {
            from = from.max(piece.base + SEGMENT_HEADER_BYTES);
            let start = from - from % BLOCK_BYTES;
            let bytes = match piece.read(start - piece.base, SEARCH_BYTES) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.damage(segments, start, format!("{SKIP_BYTES} bytes from here on are passed over: {error}"))?;
                    from = start + SKIP_BYTES;
                    continue;
                }
            };
            self.tell(Sight::Read(bytes.len() as u64));
            let is_last = (bytes.len() as u64) < SEARCH_BYTES;
            // A batch that begins in the first half is there as a whole.
            let enough = if is_last { bytes.len() } else { SEARCH_BYTES as usize / 2 };
            let mut at = (from - start) as usize;
            while let Some(skip) = bytes[at.min(enough)..enough].iter().position(|byte| *byte == b'R') {
                at += skip;
                let place = start + at as u64;
                let header = BatchHeader::peek(&bytes[at..]).ok().filter(|header| segments.is_ours(header, place));
                match header.and_then(|_| Batch::open_headers(&bytes[at..]).ok()) {
                    Some(_) if Batch::open(&bytes[at..]).is_ok() => return ControlFlow::Continue(Some(place)),
                    Some(batch) => {
                        self.name_payloads(segments, batch)?;
                        self.last = None;
                        at += batch.header.length as usize;
                    }
                    None => at += 1,
                }
            }
            let done = start + at.max(enough) as u64;
            from = if is_last { piece.end().max(done) } else { done };
        }
        ControlFlow::Continue(None)
    }

    fn tell(&mut self, sight: Sight<'_>) {
        self.stopped |= !self.stopped && (self.sight)(sight).is_break();
    }

    /// Where the next batch is expected.
    fn end(&self) -> u64 {
        self.last.map_or(self.from, |last| last.end.max(self.from))
    }

    fn remember(&mut self, batch: Batch<'_>) {
        self.last = Some(Last { base: batch.header.base, end: batch.header.end(), crc: batch.crc });
        self.epoch = batch.header.epoch;
        self.durable = self.durable.max(batch.header.durable);
    }

    /// Takes a batch that recovery believes.
    fn take(&mut self, batch: Batch<'_>, piece: &Piece) {
        let header = batch.header;
        if self.stopped || self.broken {
            return;
        }
        let is_again = self.last.is_some_and(|last| last.base == header.base && last.crc == batch.crc);
        if is_again {
            return; // It was looked at again, for what comes behind it.
        }
        self.broken = match self.last {
            Some(last) => last.crc != header.previous || header.epoch < self.epoch,
            None => header.base != self.from,
        };
        if self.broken {
            return;
        }
        if self.suspect.take_if(|suspect| header.base >= *suspect).is_some() {
            self.moves += 1;
        }
        self.remember(batch);
        for (byte, record, payload) in batch.records() {
            let hole = match record.kind {
                Kind::Message => self.sequence.message(&record),
                Kind::Facts => self.sequence.facts(payload),
                Kind::Delayed
                | Kind::Delivered
                | Kind::SnapshotBegin
                | Kind::SnapshotEnd
                | Kind::Half
                | Kind::Checked => None,
            };
            self.holes.extend(hole.map(|hole| (byte, hole)));
        }
        self.tell(Sight::Batch(batch, piece));
    }

    fn damage(&mut self, segments: &Segments, byte: u64, what: String) -> ControlFlow<()> {
        let (path, byte) = segments.place(byte);
        self.tell(Sight::Damage(Damage { path: path.to_path_buf(), byte, what }));
        if self.stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
