//! The wall between logic and kernel: a closed set of operations that go in by value and come back
//! as completions. [`Ring`](crate::ring::Ring) is the kernel's side of it, `Sim` the simulator's.

use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What the caller wants to recognise a completion by. The wall hands it back untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// An open file or socket. The wall chooses the number; it means nothing to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub i32);

/// How a file is opened. Files are opened for reading and writing unless `read_only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenHow {
    /// Create it when it is missing (mode 0644).
    pub create: bool,
    /// Bypass the page cache (`O_DIRECT`): positions, lengths and memory are multiples of 4096 bytes.
    /// A file system that cannot answers `EINVAL`.
    pub direct: bool,
    /// Refuse to write through this handle.
    pub read_only: bool,
}

/// One thing to be done. It owns its buffers until its last completion.
#[allow(missing_docs, reason = "each variant's sentence tells of its fields")]
#[derive(Debug)]
pub enum Op {
    /// Accepts connections until cancelled or failed: completes many times, with `more` set.
    Accept { listener: Handle },
    /// Receives until the peer closes: completes many times. An empty [`Outcome::Received`] is the end.
    /// A completion without `more` must be submitted again; `ENOBUFS` is ordinary and means the same
    /// (the ring itself waits for a buffer instead: whoever keeps all of them ends all receiving).
    Receive { socket: Handle },
    /// Sends all pieces, in order, or fails: [`Outcome::Nothing`] means all. At most [`PIECES_MAX`] pieces
    /// that are not empty (`EMSGSIZE`).
    Send { socket: Handle, pieces: Pieces },
    /// Ends both directions, so that a pending receive and send complete. The handle stays open.
    Shutdown { socket: Handle },
    /// Closes a file or a socket. Nothing may be submitted on it afterwards.
    Close { handle: Handle },
    /// Cancels the operation with this tag. It completes with `ECANCELED` (or with what it managed). The
    /// cancelling completes too: `ENOENT` if there was nothing to cancel, `EALREADY` if it is too late.
    Cancel { tag: Tag },
    /// Opens a file.
    Open { path: PathBuf, how: OpenHow },
    /// Writes all of `bytes` at byte `at`. `durable`: the data is on stable storage on completion
    /// (`RWF_DSYNC`). A short write is reported as [`Outcome::Count`] below the length.
    Write { file: Handle, at: u64, bytes: Bytes, durable: bool },
    /// Reads up to `length` bytes at byte `at` into an aligned buffer of its own. Short at the file's end.
    Read { file: Handle, at: u64, length: u32 },
    /// Makes what was written to the file durable (`fdatasync`).
    Sync { file: Handle },
    /// Reserves disk space for bytes `0..length` and sets the file's length (`fallocate`).
    Allocate { file: Handle, length: u64 },
    /// Cuts or extends the file.
    Truncate { file: Handle, length: u64 },
    /// Renames within one directory; replaces `to` if it exists.
    Rename { from: PathBuf, to: PathBuf },
    /// Removes a file. Only for small files and at start, never beside the hot path.
    Remove { path: PathBuf },
    /// Creates a directory and its parents; one that exists is fine.
    CreateDirectory { path: PathBuf },
    /// Makes creations, renames and removals in this directory durable.
    SyncDirectory { path: PathBuf },
    /// Names and lengths of the regular files in a directory, sorted by name.
    List { path: PathBuf },
    /// How much disk space is available to us (`f_bavail`), and how much that is with what is used.
    Space { path: PathBuf },
}

/// What one send carries. A single piece needs no memory for a list.
pub type Pieces = SmallVec<[Bytes; 1]>;

/// Most pieces of one send: the kernel's `UIO_MAXIOV`.
pub const PIECES_MAX: usize = 1024;

/// What came of an operation.
#[derive(Debug)]
pub struct Done {
    /// The tag given at submission.
    pub tag: Tag,
    /// The operation is still armed and completes again (accept and receive only).
    pub more: bool,
    /// What it gave, or why it failed.
    pub outcome: Result<Outcome, Fault>,
}

/// What a successful operation gives.
#[allow(missing_docs, reason = "each variant's sentence tells of its fields")]
#[derive(Debug)]
pub enum Outcome {
    /// Nothing more than success.
    Nothing,
    /// A connection, and who is on its other end.
    Accepted { socket: Handle, peer: SocketAddr },
    /// Bytes from a socket; empty at the end of the stream. Dropping the last slice of it hands the
    /// provided buffer back to the kernel: keep it no longer than needed, copy what must wait.
    Received(Bytes),
    /// A file.
    Opened(Handle),
    /// How many bytes were written.
    Count(usize),
    /// What was read.
    Read(Bytes),
    /// A directory's regular files: name and length in bytes, sorted by name.
    Names(Vec<(String, u64)>),
    /// Bytes available to us, and bytes in all.
    Space { available: u64, total: u64 },
}

/// Why an operation failed: an error number of the operating system.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault(pub i32);

impl Fault {
    /// The kind, as the standard library sorts it.
    pub fn kind(self) -> std::io::ErrorKind {
        std::io::Error::from_raw_os_error(self.0).kind()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({self})")
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Fault {
        Fault(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// A kernel, or something that plays one. One thread owns it.
pub trait Io {
    /// Takes an operation. `Err` gives it back when every slot is taken: backpressure, try again after
    /// the next [`drive`](Io::drive).
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op>;

    /// Submits what was taken and collects completions into `done` (appended). Waits for the first one
    /// at most `wait` (`None`: as long as it takes; zero: not at all), or until another thread wakes it.
    fn drive(&mut self, wait: Option<Duration>, done: &mut Vec<Done>);

    /// Wakes the loop that runs core `core`: its current or next `drive` returns at once.
    fn wake(&mut self, core: usize);
}
