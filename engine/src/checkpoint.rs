//! The checkpoint while it is written: facts, delayed and half messages, a slice at a time, while all go on changing.
//!
//! That is right all the same. The file says where the log stood at the end of the newest run; whoever starts
//! from it reads the log from there, and a fact or a message that waits and changed later is set again by the
//! record that changed it. It only must not say what the log never had: so the file gets its name once
//! everything is durable that was accepted when its last slice was taken. When the log fails before, it is
//! given up.

use crate::derived::Derived;
use crate::format::derived::{
    Closing, HALF_BYTES, PIECE_BYTES_MAX, Piece, PieceKind, encode_begin, encode_half, encode_segment, encode_timer,
};
use crate::io::{Fault, Handle, Op, Outcome};
use crate::limits::FACT_BYTES_MAX;
use crate::log::End;
use crate::scribe::{Scribe, Went};
use crate::segment::Segment;
use std::collections::VecDeque;
use std::path::Path;

/// The checkpoint's name.
pub const NAME: &str = "checkpoint";
/// The name of one that is not whole.
pub const TEMPORARY: &str = "checkpoint-next";
/// Bytes of facts or delayed messages taken in one turn.
const SLICE_BYTES: usize = 32 << 10;
/// Delayed or half messages taken in one turn.
const SLICE_TIMERS: usize = SLICE_BYTES / HALF_BYTES;
const _: () = assert!(SLICE_BYTES + FACT_BYTES_MAX + 64 <= PIECE_BYTES_MAX, "any slice of facts fits a piece");
/// The file grows by this much at a time.
const GROWTH_BYTES: u64 = 1 << 20;

/// What comes next.
#[derive(Debug)]
pub enum Step {
    /// This operation.
    Do(Op),
    /// Nothing, until what was accepted is durable: see [`Checkpoint::on_turn`].
    Wait,
    /// Nothing: it is durable under its name. Its file is to be closed.
    Finished,
}

#[derive(Debug)]
enum Stage {
    Begin,
    /// Behind this key.
    Facts(Option<Box<[u8]>>),
    /// From this log byte on.
    Timers(u64),
    /// The same.
    Halves(u64),
    Segments,
    /// All slices are taken; what was accepted then is not known yet.
    Close,
    End(Closing),
    /// As the next one.
    Sync(u64),
    /// The file is durable. Everything in the log up to this byte must be, too.
    Durable(u64),
    Publish,
}

/// See the module.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the log stood.
    pub end: End,
    partition: u16,
    scribe: Scribe,
    stage: Stage,
    number: u32,
    at: u64,
    /// A piece that waits for room in the file.
    piece: Vec<u8>,
    waits: bool,
}

impl Checkpoint {
    /// Begins one for a log that is in runs up to `end`. The operation is the first one.
    pub fn begin(directory: &Path, partition: u16, end: End, direct: bool) -> (Checkpoint, Op) {
        let (scribe, op) = Scribe::begin(directory, TEMPORARY, NAME, direct);
        let (stage, piece) = (Stage::Begin, Vec::new());
        (Checkpoint { end, partition, scribe, stage, number: 0, at: 0, piece, waits: false }, op)
    }

    /// Its bytes so far.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// The file to be closed when it is given up.
    pub fn handle(&self) -> Option<Handle> {
        self.scribe.handle()
    }

    /// Whether an operation of it is under way.
    pub fn is_busy(&self) -> bool {
        !self.waits
    }

    /// Whether all slices are taken: everything noted must go into the log now, and then
    /// [`close`](Checkpoint::close) be told how much was accepted.
    pub fn is_closing(&self) -> bool {
        self.waits && matches!(self.stage, Stage::Close)
    }

    /// All that any slice has is in the log below `accepted`.
    pub fn close(&mut self, accepted: u64, derived: &Derived) {
        let (begun, snapshot) = (derived.begun, derived.snapshot);
        self.stage = Stage::End(Closing { durable: accepted, begun, snapshot });
    }

    /// Goes on, if it waited and need not any more.
    pub fn on_turn(&mut self, durable: u64, derived: &Derived, segments: &VecDeque<Segment>) -> Option<Op> {
        if !self.waits || matches!(self.stage, Stage::Close) {
            return None;
        }
        if let Stage::Durable(least) = self.stage {
            if durable < least {
                return None;
            }
            self.stage = Stage::Publish;
        }
        self.waits = false;
        match self.next(derived, segments) {
            Step::Do(op) => Some(op),
            Step::Wait | Step::Finished => unreachable!("it was told what it waited for"),
        }
    }

    /// Takes the outcome of the operation under way and makes the next one.
    pub fn on_done(
        &mut self,
        outcome: Result<Outcome, Fault>,
        derived: &Derived,
        segments: &VecDeque<Segment>,
    ) -> Result<Step, Fault> {
        Ok(match self.scribe.on_done(outcome)? {
            Went::Do(op) => Step::Do(op),
            Went::Finished => Step::Finished,
            Went::Ready => self.next(derived, segments),
        })
    }

    fn next(&mut self, derived: &Derived, segments: &VecDeque<Segment>) -> Step {
        if !self.piece.is_empty() {
            return Step::Do(self.write());
        }
        let mut payload = Vec::new();
        let kind = loop {
            match &mut self.stage {
                Stage::Begin => {
                    payload.extend_from_slice(&encode_begin(self.end));
                    self.stage = Stage::Facts(None);
                    break PieceKind::Begin;
                }
                Stage::Facts(after) => match derived.facts.slice(after.as_deref(), &mut payload, SLICE_BYTES) {
                    Some(last) => {
                        *after = Some(last);
                        break PieceKind::Facts;
                    }
                    None => self.stage = Stage::Timers(0),
                },
                Stage::Timers(from) => {
                    payload.reserve(SLICE_BYTES);
                    // Those that came later are found in the log.
                    for timer in derived.timers.between(*from, self.end.head).take(SLICE_TIMERS) {
                        encode_timer(timer, &mut payload);
                        *from = timer.byte + 1;
                    }
                    if !payload.is_empty() {
                        break PieceKind::Timers;
                    }
                    self.stage = Stage::Halves(0);
                }
                Stage::Halves(from) => {
                    for half in derived.halves.between(*from, self.end.head).take(SLICE_TIMERS) {
                        encode_half(half, &mut payload);
                        *from = half.timer.byte + 1;
                    }
                    if !payload.is_empty() {
                        break PieceKind::Halves;
                    }
                    self.stage = Stage::Segments;
                }
                Stage::Segments => {
                    segments.iter().for_each(|segment| encode_segment(segment.base, segment.newest_ms, &mut payload));
                    self.stage = Stage::Close;
                    break PieceKind::Segments;
                }
                Stage::End(closing) => {
                    payload.extend_from_slice(&closing.encode());
                    self.stage = Stage::Sync(closing.durable);
                    break PieceKind::End;
                }
                Stage::Sync(least) => {
                    self.stage = Stage::Durable(*least);
                    return Step::Do(self.scribe.sync());
                }
                Stage::Close | Stage::Durable(_) => {
                    self.waits = true;
                    return Step::Wait;
                }
                Stage::Publish => return Step::Do(self.scribe.publish()),
            }
        };
        let piece = Piece { partition: self.partition, number: self.number, kind, payload: &payload };
        piece.encode(&mut self.piece);
        self.number += 1;
        Step::Do(self.write())
    }

    /// Writes the piece at hand, once the file has room for it.
    fn write(&mut self) -> Op {
        let end = self.at + self.piece.len() as u64;
        if end > self.scribe.length() {
            return self.scribe.extend(end.next_multiple_of(GROWTH_BYTES));
        }
        let op = self.scribe.write(self.at, &self.piece);
        self.at = end;
        self.piece.clear();
        op
    }
}
