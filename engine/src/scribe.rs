//! Writing one derived file: under a temporary name, a piece at a time; then it is made durable and gets its
//! name. Nobody waits for it, so nothing here is a durable write but the last sync.

use crate::buffer::Chunk;
use crate::io::{Fault, Handle, Op, OpenHow, Outcome};
use std::path::{Path, PathBuf};

/// What comes next.
#[derive(Debug)]
pub enum Went {
    /// This operation.
    Do(Op),
    /// Whatever the owner wants to write.
    Ready,
    /// Nothing: the file is durable under its name, and is to be closed.
    Finished,
}

#[derive(Debug)]
enum Step {
    Open,
    Clear,
    Extend(u64),
    Write(usize),
    Sync,
    Rename,
    Settle,
}

/// The writing of one file. One operation at a time is under way.
#[derive(Debug)]
pub struct Scribe {
    directory: PathBuf,
    temporary: PathBuf,
    name: PathBuf,
    step: Step,
    handle: Option<Handle>,
    length: u64,
}

impl Scribe {
    /// Begins a file. The operation is the first one.
    pub fn begin(directory: &Path, temporary: &str, name: &str, direct: bool) -> (Scribe, Op) {
        let scribe = Scribe {
            directory: directory.to_path_buf(),
            temporary: directory.join(temporary),
            name: directory.join(name),
            step: Step::Open,
            handle: None,
            length: 0,
        };
        let how = OpenHow { create: true, direct, read_only: false };
        let op = Op::Open { path: scribe.temporary.clone(), how };
        (scribe, op)
    }

    /// The file, once it is open: to be closed when the writing is given up.
    pub fn handle(&self) -> Option<Handle> {
        self.handle
    }

    /// Bytes that may be written to.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Makes room for so many bytes in all.
    pub fn extend(&mut self, length: u64) -> Op {
        self.step = Step::Extend(length);
        Op::Allocate { file: self.file(), length }
    }

    /// Writes whole blocks.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> Op {
        let mut chunk = Chunk::standalone(bytes.len());
        chunk.spare_mut()[..bytes.len()].copy_from_slice(bytes);
        self.step = Step::Write(bytes.len());
        Op::Write { file: self.file(), at, bytes: chunk.split_to(bytes.len()), durable: false }
    }

    /// All is written: makes it durable.
    pub fn sync(&mut self) -> Op {
        self.step = Step::Sync;
        Op::Sync { file: self.file() }
    }

    /// It is durable, and what it says is true: gives it its name.
    pub fn publish(&mut self) -> Op {
        self.step = Step::Rename;
        Op::Rename { from: self.temporary.clone(), to: self.name.clone() }
    }

    /// Takes the outcome of the operation under way. After a failure the owner gives the file up and begins
    /// again.
    pub fn on_done(&mut self, outcome: Result<Outcome, Fault>) -> Result<Went, Fault> {
        Ok(match (&self.step, outcome?) {
            (Step::Open, Outcome::Opened(handle)) => {
                self.handle = Some(handle);
                // An earlier attempt may have left a longer one.
                self.step = Step::Clear;
                Went::Do(Op::Truncate { file: handle, length: 0 })
            }
            (Step::Extend(length), _) => {
                self.length = *length;
                Went::Ready
            }
            (Step::Write(length), Outcome::Count(count)) if count != *length => return Err(Fault(libc::EIO)),
            (Step::Clear | Step::Write(_) | Step::Sync, _) => Went::Ready,
            (Step::Rename, _) => {
                self.step = Step::Settle;
                Went::Do(Op::SyncDirectory { path: self.directory.clone() })
            }
            (Step::Settle, _) => Went::Finished,
            (step, outcome) => unreachable!("{outcome:?} is no answer to {step:?}"),
        })
    }

    fn file(&self) -> Handle {
        self.handle.expect("it is open before anything else is asked for")
    }
}
