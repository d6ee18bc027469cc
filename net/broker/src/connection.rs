//! One core's connections, as plain state: bytes in become frames, answers become sends, and limits
//! say when a peer has to wait and when it has to go. The loop in `core` does what is wanted here.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use engine::io::{Handle, PIECES_MAX, Pieces};
use protocol::frame::{self, FrameError};

use crate::call::ConnectionId;

/// What a connection may cost.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Most connections of one core. Beyond it new ones are closed at once.
    pub connections_max: usize,
    /// Requests of one connection under way at which it is not read any more.
    pub requests_max: u32,
    /// Bytes of answers that one connection has not taken yet, at which it is not read any more.
    pub unsent_bytes_max: usize,
    /// Bytes of the log's memory that one connection's unsent answers may pin. Beyond it they are copies.
    pub pinned_bytes_max: usize,
    /// Bytes of unfinished frames in one core. Beyond it the connection that asks for more is closed.
    pub partial_bytes_max: usize,
    /// A connection on which nothing moved for so long, and that no answer is owed to, is closed. Milliseconds.
    pub idle_ms: u64,
    /// A frame must be whole within this time of its first byte. Milliseconds.
    pub frame_ms: u64,
    /// A peer that takes nothing of an answer for so long is closed. Milliseconds.
    pub stall_ms: u64,
}

/// Most bytes of one send, so that a slow but living peer is seen to take something now and then.
const SEND_BYTES: usize = 1 << 20;
/// A connection keeps the memory of a send up to this size for its next answers: some forty of them.
const TAIL_BYTES_KEPT: usize = 16 << 10;
/// How many emptied buffers for unfinished frames a core keeps, and the largest it keeps.
const SPARE_BUFFERS: usize = 64;
const SPARE_BYTES: usize = 64 << 10;

/// Why a connection was closed: the reasons that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer closed it.
    Peer,
    /// Receiving or sending failed.
    Fault,
    /// The bytes are no frame, or the frame's header cannot be read.
    Garbage,
    /// Nothing moved for too long.
    Idle,
    /// A frame took too long.
    SlowFrame,
    /// The peer does not take its answers.
    SlowReader,
    /// Unfinished frames take too much memory.
    PartialBytes,
    /// There are too many connections.
    TooMany,
    /// The broker stops.
    Stop,
}

impl Reason {
    /// All reasons, each with its name for counters and for people; a reason's index is its place here.
    pub const ALL: [(Reason, &str, &str); 9] = [
        (Reason::Peer, "peer", "closed by peer"),
        (Reason::Fault, "fault", "socket failed"),
        (Reason::Garbage, "garbage", "no RocketMQ frame"),
        (Reason::Idle, "idle", "idle"),
        (Reason::SlowFrame, "slow_frame", "frame too slow"),
        (Reason::SlowReader, "slow_reader", "answers not taken"),
        (Reason::PartialBytes, "partial_bytes", "unfinished frames take too much memory"),
        (Reason::TooMany, "too_many", "too many connections"),
        (Reason::Stop, "stop", "broker stops"),
    ];

    /// For people.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].2
    }
}

/// Whether the socket is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receiving {
    /// No receive is in the ring.
    Off,
    /// A receive is in the ring.
    Armed,
    /// It was cancelled and has not ended yet.
    Ending,
}

/// What `cut` found.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut<'a> {
    /// A whole frame, in place.
    Frame(&'a [u8]),
    /// A whole frame that came in pieces. Give the buffer back with [`Spare::give`].
    Joined(Vec<u8>),
    /// Everything is used up; more bytes are needed.
    More,
}

/// One peer.
#[derive(Debug)]
pub struct Connection {
    /// Its name.
    pub id: ConnectionId,
    /// Its socket.
    pub socket: Handle,
    /// Who is on the other end.
    pub address: SocketAddr,
    /// It came through the fast port.
    pub fast: bool,
    /// Whether it is being read.
    pub receiving: Receiving,
    /// A send is in the ring.
    pub sending: bool,
    /// A shutdown is in the ring. The kernel looks its socket up late, by number: if that were closed
    /// before, the number could be another connection's by then.
    pub shutting: bool,
    /// Requests that have not been answered yet.
    pub outstanding: u32,
    /// It is in the loop's list of those with something to send or to resume.
    pub listed: bool,
    /// It asks without waiting while mailboxes are crowded: no more requests are taken from it.
    pub held_back: bool,
    /// It is being closed: nothing is read or sent any more.
    pub closing: Option<Reason>,
    /// Over a limit: frames wait in `partial`.
    paused: bool,
    active_ms: u64,
    frame_since_ms: u64,
    send_since_ms: u64,
    partial: Vec<u8>,
    /// Answers on their way: whole pieces first, then `tail`.
    pieces: Vec<Bytes>,
    tail: BytesMut,
    /// Bytes of `tail` that became pieces since the last send ended.
    sealed_bytes: usize,
    unsent_bytes: usize,
    pinned_bytes: usize,
    sending_bytes: usize,
    sending_pinned_bytes: usize,
}

impl Connection {
    /// A fresh one.
    pub fn new(id: ConnectionId, socket: Handle, address: SocketAddr, fast: bool, now_ms: u64) -> Connection {
        Connection {
            id,
            socket,
            address,
            fast,
            receiving: Receiving::Off,
            sending: false,
            shutting: false,
            outstanding: 0,
            listed: false,
            held_back: false,
            closing: None,
            paused: false,
            active_ms: now_ms,
            frame_since_ms: 0,
            send_since_ms: 0,
            partial: Vec::new(),
            pieces: Vec::new(),
            tail: BytesMut::new(),
            sealed_bytes: 0,
            unsent_bytes: 0,
            pinned_bytes: 0,
            sending_bytes: 0,
            sending_pinned_bytes: 0,
        }
    }

    /// The next whole frame out of `rest`, which shrinks by what was used. An unfinished frame is
    /// copied and waits for more. `Err`: the peer does not speak our protocol.
    pub fn cut<'a>(&mut self, rest: &mut &'a [u8], spare: &mut Spare, now_ms: u64) -> Result<Cut<'a>, FrameError> {
        if self.partial.is_empty() {
            match frame::peek(rest)? {
                Some(bytes) if bytes <= rest.len() => {
                    let (whole, behind) = rest.split_at(bytes);
                    *rest = behind;
                    return Ok(Cut::Frame(whole));
                }
                _ => {
                    if !rest.is_empty() {
                        self.keep(rest, spare, now_ms);
                        *rest = &[];
                    }
                    return Ok(Cut::More);
                }
            }
        }
        while let Some(missing) = match frame::peek(&self.partial)? {
            None => Some(frame::LENGTH_BYTES - self.partial.len()),
            Some(bytes) if bytes > self.partial.len() => Some(bytes - self.partial.len()),
            Some(_) => None,
        } {
            if rest.is_empty() {
                return Ok(Cut::More);
            }
            let (more, behind) = rest.split_at(missing.min(rest.len()));
            *rest = behind;
            self.keep(more, spare, now_ms);
        }
        spare.held_bytes -= self.partial.len();
        Ok(Cut::Joined(std::mem::take(&mut self.partial)))
    }

    /// Keeps bytes that cannot be looked at now, behind those kept before.
    pub fn keep(&mut self, bytes: &[u8], spare: &mut Spare, now_ms: u64) {
        if self.partial.is_empty() {
            self.frame_since_ms = now_ms;
            self.partial = spare.take();
        }
        spare.held_bytes += bytes.len();
        self.partial.extend_from_slice(bytes);
    }

    /// Takes out what was kept. Give the buffer back with [`Spare::give`].
    pub fn take_kept(&mut self, spare: &mut Spare) -> Vec<u8> {
        spare.held_bytes -= self.partial.len();
        std::mem::take(&mut self.partial)
    }

    /// Notes that bytes came.
    pub fn received(&mut self, now_ms: u64) {
        self.active_ms = now_ms;
    }

    /// Adds an answer, or the front of one, to what is to be sent.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        // Memory of answers that were sent is used again: see `sent`.
        self.tail.extend_from_slice(bytes);
        self.unsent_bytes += bytes.len();
    }

    /// Adds a shared piece behind it: without a copy, unless this connection pins too much already.
    pub fn push_piece(&mut self, piece: Bytes, limits: &ConnectionLimits) {
        if self.pinned_bytes + piece.len() > limits.pinned_bytes_max {
            return self.push(&piece);
        }
        self.seal();
        self.unsent_bytes += piece.len();
        self.pinned_bytes += piece.len();
        self.pieces.push(piece);
    }

    /// What the next send carries, if none is in the ring and there is something to send.
    pub fn next_send(&mut self, now_ms: u64) -> Option<Pieces> {
        if self.sending || self.closing.is_some() || self.unsent_bytes == 0 {
            return None;
        }
        self.seal();
        let mut count = 0;
        let mut bytes = 0;
        for piece in self.pieces.iter().take(PIECES_MAX) {
            if count > 0 && bytes + piece.len() > SEND_BYTES {
                break;
            }
            count += 1;
            bytes += piece.len();
        }
        let pieces = self.pieces.drain(..count).collect();
        self.sending = true;
        self.sending_bytes = bytes;
        // Pieces that leave together are let go of together; which of them were shared is not worth a list.
        self.sending_pinned_bytes = self.pinned_bytes.min(bytes);
        self.send_since_ms = now_ms;
        Some(pieces)
    }

    /// The send in the ring has ended.
    pub fn sent(&mut self, now_ms: u64) {
        self.sending = false;
        self.active_ms = now_ms;
        self.unsent_bytes -= self.sending_bytes;
        self.pinned_bytes -= self.sending_pinned_bytes;
        if std::mem::take(&mut self.sealed_bytes) > TAIL_BYTES_KEPT && self.tail.is_empty() {
            self.tail = BytesMut::new();
        }
        self.sending_bytes = 0;
        self.sending_pinned_bytes = 0;
    }

    /// Whether no more requests may be taken from it for now. Remembered until [`may_resume`](Self::may_resume).
    #[inline]
    pub fn is_full(&mut self, limits: &ConnectionLimits) -> bool {
        self.paused |= self.outstanding >= limits.requests_max || self.unsent_bytes >= limits.unsent_bytes_max;
        self.is_paused()
    }

    /// Whether requests may be taken again: it was full, and half of what filled it is gone.
    pub fn may_resume(&mut self, limits: &ConnectionLimits) -> bool {
        let now = self.paused
            && !self.held_back
            && self.outstanding <= limits.requests_max / 2
            && self.unsent_bytes <= limits.unsent_bytes_max / 2;
        self.paused &= !now;
        now
    }

    /// Whether it has not taken so much that an answer's body is left out. Requests it sent before it was
    /// full may all be answered at once: pulls that wait, or that other cores serve.
    #[inline]
    pub fn is_flooded(&self, limits: &ConnectionLimits) -> bool {
        self.unsent_bytes >= limits.unsent_bytes_max
    }

    /// One of its requests is answered.
    #[inline]
    pub fn settle(&mut self) {
        self.outstanding = self.outstanding.checked_sub(1).expect("a request is answered once");
    }

    /// Whether an answer is still on its way.
    pub fn has_unsent(&self) -> bool {
        self.unsent_bytes > 0
    }

    /// Whether it is over a limit, or held back.
    pub fn is_paused(&self) -> bool {
        self.paused || self.held_back
    }

    /// Whether it has run out of time, and for what.
    pub fn overdue(&self, limits: &ConnectionLimits, now_ms: u64) -> Option<Reason> {
        let over = |since: u64, most: u64| now_ms.saturating_sub(since) > most;
        if self.sending && over(self.send_since_ms, limits.stall_ms) {
            return Some(Reason::SlowReader);
        }
        if !self.partial.is_empty() && !self.is_paused() && over(self.frame_since_ms, limits.frame_ms) {
            return Some(Reason::SlowFrame);
        }
        // Who waits for an answer is silent because we are: a slow disk, or a pull that waits for its message.
        let is_owed = self.outstanding > 0 || self.has_unsent() || self.is_paused();
        (!is_owed && over(self.active_ms, limits.idle_ms)).then_some(Reason::Idle)
    }

    /// Starts closing: lets go of everything that is not in the ring.
    pub fn begin_close(&mut self, reason: Reason, spare: &mut Spare) {
        self.closing = Some(reason);
        let kept = self.take_kept(spare);
        spare.give(kept);
        self.pieces = Vec::new();
        self.tail = BytesMut::new();
    }

    /// Closing, and nothing of it is in the ring any more.
    pub fn is_over(&self) -> bool {
        self.closing.is_some() && self.receiving == Receiving::Off && !self.sending && !self.shutting
    }

    /// Makes a piece of the tail.
    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.sealed_bytes += self.tail.len();
            self.pieces.push(self.tail.split().freeze());
        }
    }
}

/// Buffers for unfinished frames, used again, and how many bytes are in such buffers now.
#[derive(Debug, Default)]
pub struct Spare {
    buffers: Vec<Vec<u8>>,
    held_bytes: usize,
}

impl Spare {
    /// Bytes of unfinished frames.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Takes a buffer back.
    pub fn give(&mut self, mut buffer: Vec<u8>) {
        if (1..=SPARE_BYTES).contains(&buffer.capacity()) && self.buffers.len() < SPARE_BUFFERS {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    fn take(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }
}

/// All connections of one core, by slot.
#[derive(Debug)]
pub struct Connections {
    core: u16,
    slots: Vec<Slot>,
    free: Vec<u32>,
    count: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// Generations have 28 bits, so that they fit a tag beside slot and kind; then they begin again.
pub const GENERATION_MASK: u32 = (1 << 28) - 1;

impl Connections {
    /// None yet.
    pub fn new(core: u16) -> Connections {
        Connections { core, slots: Vec::new(), free: Vec::new(), count: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many slots were ever used: the bound for walking over all.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// A new one, and its slot. The caller keeps to `connections_max`.
    pub fn insert(&mut self, socket: Handle, address: SocketAddr, fast: bool, now_ms: u64) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, connection: None });
            u32::try_from(self.slots.len() - 1).expect("connections_max is far below 2^32")
        });
        let place = &mut self.slots[slot as usize];
        let id = ConnectionId { core: self.core, slot, generation: place.generation };
        place.connection = Some(Connection::new(id, socket, address, fast, now_ms));
        self.count += 1;
        slot
    }

    /// The connection that is in this slot now.
    #[inline]
    pub fn at(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.connection.as_mut()
    }

    /// This very connection, if it is still there.
    #[inline]
    pub fn get(&mut self, slot: u32, generation: u32) -> Option<&mut Connection> {
        let place = self.slots.get_mut(slot as usize)?;
        if place.generation == generation { place.connection.as_mut() } else { None }
    }

    /// Takes out the one in this slot, which may be used again.
    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        let place = self.slots.get_mut(slot as usize)?;
        let connection = place.connection.take()?;
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.free.push(slot);
        self.count -= 1;
        Some(connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) const LIMITS: ConnectionLimits = ConnectionLimits {
        connections_max: 4,
        requests_max: 4,
        unsent_bytes_max: 1000,
        pinned_bytes_max: 500,
        partial_bytes_max: 1 << 20,
        idle_ms: 120_000,
        frame_ms: 60_000,
        stall_ms: 30_000,
    };

    fn connection() -> Connection {
        let id = ConnectionId { core: 0, slot: 0, generation: 0 };
        Connection::new(id, Handle(3), ([127, 0, 0, 1], 5).into(), false, 0)
    }

    fn stream() -> Vec<u8> {
        let mut stream = Vec::new();
        for body in 0..6u8 {
            stream.extend_from_slice(&[0, 0, 0, 4 + body, 0, 0, 0, 0]);
            stream.extend(std::iter::repeat_n(body, usize::from(body)));
        }
        stream
    }

    #[test]
    fn frames_come_out_whole_whatever_the_pieces() {
        let stream = stream();
        for piece in 1..=stream.len() {
            let mut connection = connection();
            let mut spare = Spare::default();
            let mut frames = Vec::new();
            for mut rest in stream.chunks(piece) {
                loop {
                    match connection.cut(&mut rest, &mut spare, 0).unwrap() {
                        Cut::Frame(frame) => frames.extend_from_slice(frame),
                        Cut::Joined(frame) => {
                            frames.extend_from_slice(&frame);
                            spare.give(frame);
                        }
                        Cut::More => break,
                    }
                }
                assert!(rest.is_empty());
            }
            assert_eq!(frames, stream, "pieces of {piece}");
            assert_eq!(spare.held_bytes(), 0);
        }
    }

    #[test]
    fn garbage_is_noticed_also_in_pieces() {
        let mut spare = Spare::default();
        assert!(connection().cut(&mut &b"GET / HTTP"[..], &mut spare, 0).is_err());
        let mut split = connection();
        assert_eq!(split.cut(&mut &b"GE"[..], &mut spare, 0), Ok(Cut::More));
        assert!(split.cut(&mut &b"T /"[..], &mut spare, 0).is_err());
        split.begin_close(Reason::Garbage, &mut spare);
        assert_eq!(spare.held_bytes(), 0);
    }

    #[test]
    fn an_answer_leaves_once_and_counts_until_then() {
        let mut connection = connection();
        assert!(connection.next_send(0).is_none());
        connection.push(b"head");
        connection.push_piece(Bytes::from_static(b"body"), &LIMITS);
        connection.push(b"next");
        let pieces = connection.next_send(0).unwrap();
        assert_eq!(pieces[..], [&b"head"[..], b"body", b"next"]);
        connection.push(b"later");
        assert!(connection.next_send(0).is_none(), "one send at a time keeps the order");
        connection.sent(1);
        assert_eq!(connection.next_send(1).unwrap()[..], [&b"later"[..]]);
        connection.sent(2);
        assert_eq!((connection.unsent_bytes, connection.pinned_bytes), (0, 0));
    }

    #[test]
    fn a_slow_puller_pins_only_so_much() {
        let mut connection = connection();
        let piece = Bytes::from(vec![1; 300]);
        connection.push_piece(piece.clone(), &LIMITS);
        connection.push_piece(piece.clone(), &LIMITS);
        assert!(!piece.is_unique());
        let pieces = connection.next_send(0).unwrap();
        assert_eq!(pieces[0].as_ptr(), piece.as_ptr());
        assert_ne!(pieces[1].as_ptr(), piece.as_ptr(), "the second one is a copy");
    }

    #[test]
    fn long_queues_leave_in_several_sends() {
        let limits = ConnectionLimits { pinned_bytes_max: usize::MAX, ..LIMITS };
        let mut connection = connection();
        for _ in 0..5 {
            connection.push_piece(Bytes::from(vec![0; SEND_BYTES / 2]), &limits);
        }
        let mut counts = Vec::new();
        while let Some(pieces) = connection.next_send(0) {
            counts.push(pieces.len());
            connection.sent(0);
        }
        assert_eq!(counts, [2, 2, 1]);
        assert_eq!((connection.unsent_bytes, connection.pinned_bytes), (0, 0));
    }

    #[test]
    fn a_full_connection_resumes_at_half() {
        let mut connection = connection();
        connection.outstanding = 3;
        assert!(!connection.is_full(&LIMITS));
        connection.outstanding = 4;
        assert!(connection.is_full(&LIMITS));
        connection.outstanding = 3;
        assert!(connection.is_full(&LIMITS) && !connection.may_resume(&LIMITS));
        connection.outstanding = 2;
        assert!(connection.may_resume(&LIMITS) && !connection.is_full(&LIMITS));
        connection.push(&[0; 1000]);
        assert!(connection.is_full(&LIMITS));
        connection.next_send(0).unwrap();
        assert!(!connection.may_resume(&LIMITS), "in the ring is not taken yet");
        connection.sent(0);
        assert!(connection.may_resume(&LIMITS));
    }

    #[test]
    fn time_runs_out_for_each_reason() {
        let mut spare = Spare::default();
        let mut idle = connection();
        idle.received(1000);
        assert_eq!(idle.overdue(&LIMITS, 121_000), None);
        assert_eq!(idle.overdue(&LIMITS, 121_001), Some(Reason::Idle));
        let mut waiting = connection();
        waiting.outstanding = 1;
        assert_eq!(waiting.overdue(&LIMITS, 1_000_000), None, "we are late, not the peer");
        waiting.push(b"answer");
        waiting.settle();
        assert_eq!(waiting.overdue(&LIMITS, 1_000_000), None, "its answer has not left yet");
        waiting.next_send(1_000_000).unwrap();
        waiting.sent(1_000_000);
        assert_eq!(waiting.overdue(&LIMITS, 1_120_000), None);
        assert_eq!(waiting.overdue(&LIMITS, 1_120_001), Some(Reason::Idle));
        let mut held_back = connection();
        held_back.held_back = true;
        assert_eq!(held_back.overdue(&LIMITS, 1_000_000), None, "it is not being read");
        let mut slow = connection();
        assert_eq!(slow.cut(&mut &[0, 0][..], &mut spare, 5), Ok(Cut::More));
        slow.received(60_000);
        assert_eq!(slow.cut(&mut &[0][..], &mut spare, 60_000), Ok(Cut::More));
        assert_eq!(slow.overdue(&LIMITS, 60_005), None);
        assert_eq!(slow.overdue(&LIMITS, 60_006), Some(Reason::SlowFrame));
        let mut reader = connection();
        reader.push(b"answer");
        reader.next_send(10).unwrap();
        assert_eq!(reader.overdue(&LIMITS, 30_011), Some(Reason::SlowReader));
    }

    #[test]
    fn a_slot_is_used_again_under_another_name() {
        let mut connections = Connections::new(3);
        let slot = connections.insert(Handle(4), ([1, 1, 1, 1], 1).into(), false, 0);
        let first = connections.at(slot).unwrap().id;
        assert!(connections.remove(slot).is_some() && connections.remove(slot).is_none());
        assert_eq!(connections.insert(Handle(5), ([1, 1, 1, 1], 2).into(), true, 0), slot);
        assert!(connections.get(first.slot, first.generation).is_none());
        let second = connections.at(slot).unwrap().id;
        assert!(second != first && connections.get(second.slot, second.generation).is_some());
        assert_eq!((connections.count(), connections.slots()), (1, 1));
        assert_eq!(
            Reason::ALL.iter().map(|(reason, ..)| *reason as usize).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4, 5, 6, 7, 8]
        );
    }
}
