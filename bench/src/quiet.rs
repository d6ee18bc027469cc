//! A kernel that does everything at once and keeps nothing: what a core costs by itself, without noise. Sockets
//! take what the caller feeds them and count what is sent.

use bytes::Bytes;
use engine::io::{Done, Fault, Handle, Io, Op, Outcome, Tag};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// The listening socket.
pub const LISTENER: Handle = Handle(0);
/// What every disk says it has available. Bytes.
const SPACE: u64 = 1 << 40;

/// What a file operation gives when nothing can fail. `None`: it is not about files.
pub fn answer(op: &Op, next_handle: &mut i32) -> Option<Outcome> {
    Some(match op {
        Op::List { .. } => Outcome::Names(Vec::new()),
        Op::Open { .. } => {
            *next_handle += 1;
            Outcome::Opened(Handle(*next_handle))
        }
        Op::Write { bytes, .. } => Outcome::Count(bytes.len()),
        Op::Space { .. } => Outcome::Space { available: SPACE, total: SPACE },
        Op::Accept { .. } | Op::Receive { .. } | Op::Send { .. } => return None,
        _ => Outcome::Nothing,
    })
}

#[derive(Default)]
struct State {
    done: VecDeque<Done>,
    accept: Option<Tag>,
    /// The receive of each socket, by the socket's number; sockets count from 1.
    receives: Vec<Option<Tag>>,
    next_handle: i32,
    sends: u64,
    sent_bytes: u64,
    last: Vec<u8>,
    keeps: bool,
}

/// The kernel, or a handle on it: clones are the same one.
#[derive(Clone, Default)]
pub struct Quiet(Rc<RefCell<State>>);

impl Quiet {
    /// Lets a client come. Returns its socket's number. The core must be listening.
    pub fn connect(&self) -> usize {
        let state = &mut *self.0.borrow_mut();
        state.receives.push(None);
        // Files have other numbers.
        let number = state.receives.len();
        let socket = Handle(1_000_000 + number as i32);
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let tag = state.accept.expect("the core accepts");
        state.done.push_back(Done { tag, more: true, outcome: Ok(Outcome::Accepted { socket, peer }) });
        number
    }

    /// Whether the core accepts connections.
    pub fn is_listening(&self) -> bool {
        self.0.borrow().accept.is_some()
    }

    /// What a client sends. Its core must have armed the receive.
    pub fn feed(&self, number: usize, bytes: Bytes) {
        let state = &mut *self.0.borrow_mut();
        let tag = state.receives[number - 1].expect("the receive is armed");
        state.done.push_back(Done { tag, more: true, outcome: Ok(Outcome::Received(bytes)) });
    }

    /// How many sends the core made, and their bytes.
    pub fn sent(&self) -> (u64, u64) {
        let state = self.0.borrow();
        (state.sends, state.sent_bytes)
    }

    /// From now on keeps what is sent, for [`Quiet::take`]; or no longer.
    pub fn keep(&self, keeps: bool) {
        self.0.borrow_mut().keeps = keeps;
    }

    /// What was sent since it was last asked.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().last)
    }
}

impl Io for Quiet {
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        let state = &mut *self.0.borrow_mut();
        let outcome = match &op {
            Op::Accept { .. } => {
                state.accept = Some(tag);
                return Ok(());
            }
            Op::Receive { socket } => {
                state.receives[(socket.0 - 1_000_001) as usize] = Some(tag);
                return Ok(());
            }
            Op::Send { pieces, .. } => {
                state.sends += 1;
                for piece in pieces {
                    state.sent_bytes += piece.len() as u64;
                    if state.keeps {
                        state.last.extend_from_slice(piece);
                    }
                }
                Ok(Outcome::Nothing)
            }
            other => answer(other, &mut state.next_handle).ok_or(Fault(0)),
        };
        state.done.push_back(Done { tag, more: false, outcome });
        Ok(())
    }

    fn drive(&mut self, _wait: Option<Duration>, done: &mut Vec<Done>) {
        done.extend(self.0.borrow_mut().done.drain(..));
    }

    fn wake(&mut self, _core: usize) {}
}
