//! The sockets' side of a core: connections come, are read, paused, sent to and closed.

use engine::io::{Fault, Handle, Io, Op, Outcome};
use protocol::frame;

use super::{ACCEPT_AGAIN_MS, Core, FEW, HELD_BACK_MS, SWEEP_LEAST, kind, tag, tag_of};
use crate::call::{Peer, ReplyTo};
use crate::connection::{Connection, Cut, Reason, Receiving};
use crate::mail::Mail;

impl<I: Io> Core<I> {
    pub(super) fn accept(&mut self) {
        if self.stop_at_ms.is_some() {
            return;
        }
        for index in 0..self.doors.len() {
            let door = &mut self.doors[index];
            if !std::mem::replace(&mut door.armed, true) {
                let listener = door.listener;
                self.submit(tag(kind::ACCEPT, index as u64), Op::Accept { listener });
            }
        }
    }

    pub(super) fn on_accepted(&mut self, door: usize, more: bool, outcome: Result<Outcome, Fault>) {
        self.doors[door].armed = more;
        match outcome {
            Ok(Outcome::Accepted { socket, peer }) => {
                let fast = self.doors[door].fast;
                let core = self.next_core;
                self.next_core = (core + 1) % self.mailboxes.cores();
                if core == self.desk.index {
                    self.adopt(socket, peer, fast);
                } else {
                    self.desk.outbox.send(core, Mail::Adopt { socket, peer, fast });
                }
            }
            Ok(other) => unreachable!("{other:?} is no answer to an accept"),
            // What makes it fail, as a want of descriptors, takes a moment to pass.
            Err(fault) if self.stop_at_ms.is_none() => tracing::warn!(%fault, "a connection could not be accepted"),
            Err(_) => {}
        }
        if !more {
            self.accept_again_ms = self.now_ms + ACCEPT_AGAIN_MS;
        }
    }

    pub(super) fn adopt(&mut self, socket: Handle, peer: std::net::SocketAddr, fast: bool) {
        if self.connections.count() >= self.limits.connections_max || self.stop_at_ms.is_some() {
            let reason = if self.stop_at_ms.is_some() { Reason::Stop } else { Reason::TooMany };
            self.desk.counters.closed[reason as usize] += 1;
            return self.submit(tag(kind::NONE, 0), Op::Close { handle: socket });
        }
        self.desk.counters.accepted += 1;
        let slot = self.connections.insert(socket, peer, fast, self.now_ms);
        self.list(slot);
    }

    pub(super) fn on_received(&mut self, slot: u32, generation: u32, more: bool, outcome: Result<Outcome, Fault>) {
        // A slot is not used again before its receive has ended.
        let Some(connection) = self.connections.get(slot, generation) else { return };
        if !more {
            connection.receiving = Receiving::Off;
        }
        if connection.closing.is_some() {
            return self.finish(slot);
        }
        match outcome {
            Ok(Outcome::Received(bytes)) if bytes.is_empty() => return self.close(slot, Reason::Peer),
            Ok(Outcome::Received(bytes)) => {
                connection.received(self.now_ms);
                self.feed(slot, &bytes, 0);
            }
            Ok(other) => unreachable!("{other:?} is no answer to a receive"),
            Err(Fault(libc::ENOBUFS)) => self.desk.counters.starved += 1,
            Err(Fault(libc::ECANCELED)) => {}
            Err(_) => return self.close(slot, Reason::Fault),
        }
        if !more {
            self.list(slot);
        }
    }

    /// Takes the frames out of what was received, and serves them. One connection that asks without waiting could fill the
    /// mailboxes, and everybody else were refused: once they are crowded it is read no further.
    /// `served`: frames of it that count as served already.
    fn feed(&mut self, slot: u32, bytes: &[u8], served: u32) {
        let mut rest = bytes;
        for count in served.. {
            let Some(connection) = self.connections.at(slot) else { return };
            if connection.closing.is_some() {
                return;
            }
            let rushes = if count == 0 { connection.outstanding > FEW } else { count % FEW == 0 };
            if rushes && !connection.held_back && self.mailboxes.are_crowded() {
                connection.held_back = true;
                self.held_back.push_back((self.now_ms + HELD_BACK_MS, slot));
            }
            if connection.is_full(&self.limits) {
                if !rest.is_empty() {
                    connection.keep(rest, &mut self.spare, self.now_ms);
                }
                return self.pause(slot);
            }
            let served = match connection.cut(&mut rest, &mut self.spare, self.now_ms) {
                Ok(Cut::More) if self.spare.held_bytes() > self.limits.partial_bytes_max => {
                    return self.close(slot, Reason::PartialBytes);
                }
                Ok(Cut::More) => return,
                Ok(Cut::Frame(frame)) => self.serve(slot, frame),
                Ok(Cut::Joined(frame)) => {
                    let served = self.serve(slot, &frame);
                    self.spare.give(frame);
                    served
                }
                Err(error) => {
                    tracing::debug!(%error, "closing a connection that speaks another protocol");
                    None
                }
            };
            if served.is_none() {
                return self.close(slot, Reason::Garbage);
            }
            if self.desk.replies.is_full() {
                self.deliver();
            }
        }
    }

    /// Serves one frame. `None`: it is no command.
    fn serve(&mut self, slot: u32, frame: &[u8]) -> Option<()> {
        let connection = self.connections.at(slot)?;
        let (serialize, header, body) = frame::split(frame).ok()?;
        self.shapes.decode(&mut self.header, serialize, &frame[header]).ok()?;
        let header = &mut self.header;
        if header.is_response() {
            let id = connection.id;
            self.desk.client_said(id, header, &frame[body], self.now_ms);
            return Some(());
        }
        self.desk.counters.requests += 1;
        let oneway = header.is_oneway();
        let reply = ReplyTo {
            connection: connection.id,
            opaque: header.opaque,
            code: header.code,
            version: header.version,
            serialize,
            oneway,
            delivered: false,
        };
        connection.outstanding += u32::from(!oneway);
        let peer = Peer {
            connection: connection.id,
            address: connection.address,
            language: header.language,
            version: header.version,
        };
        self.desk.take(header, &frame[body], reply, peer, connection.fast, self.now_ms);
        Some(())
    }

    /// Stops reading from a connection that is over a limit.
    fn pause(&mut self, slot: u32) {
        let Some(connection) = self.connections.at(slot) else { return };
        if connection.receiving == Receiving::Armed {
            connection.receiving = Receiving::Ending;
            let id = connection.id;
            self.submit(tag(kind::NONE, 0), Op::Cancel { tag: tag_of(kind::RECEIVE, id) });
        }
        if self.spare.held_bytes() > self.limits.partial_bytes_max {
            self.close(slot, Reason::PartialBytes);
        }
    }

    pub(super) fn on_sent(&mut self, slot: u32, generation: u32, outcome: Result<Outcome, Fault>) {
        let Some(connection) = self.connections.get(slot, generation) else { return };
        connection.sent(self.now_ms);
        if connection.closing.is_some() {
            self.finish(slot);
        } else if outcome.is_err() {
            self.close(slot, Reason::Fault);
        } else {
            self.list(slot);
        }
    }

    /// Remembers that a connection has something to send, to resume or to arm.
    pub(super) fn list(&mut self, slot: u32) {
        if let Some(connection) = self.connections.at(slot)
            && !connection.listed
        {
            connection.listed = true;
            self.listed.push(slot);
        }
    }

    /// Sends, resumes and arms what was listed.
    pub(super) fn serve_listed(&mut self) {
        self.let_go();
        let mut listed = std::mem::take(&mut self.listed);
        for slot in listed.drain(..) {
            let Some(connection) = self.connections.at(slot) else { continue };
            connection.listed = false;
            if connection.closing.is_some() {
                continue;
            }
            let (id, socket) = (connection.id, connection.socket);
            if let Some(pieces) = connection.next_send(self.now_ms) {
                self.submit(tag_of(kind::SEND, id), Op::Send { socket, pieces });
            }
            self.resume(slot);
            self.arm(slot);
        }
        // What resuming listed again is served in the next turn.
        if self.listed.is_empty() {
            self.listed = listed;
        } else {
            self.more = true;
        }
    }

    /// Those that were held back go on: when there is room, or with a few requests when they waited for long.
    fn let_go(&mut self) {
        if self.held_back.is_empty() {
            return;
        }
        let (is_over, now_ms) = (!self.mailboxes.are_crowded(), self.now_ms);
        for _ in 0..self.held_back.len() {
            let next = self.held_back.pop_front_if(|(until_ms, _)| is_over || *until_ms <= now_ms);
            let Some((_, slot)) = next else { return };
            let Some(connection) = self.connections.at(slot) else { continue };
            if std::mem::take(&mut connection.held_back) && !connection.is_paused() && connection.closing.is_none() {
                self.go_on(slot);
            }
            self.list(slot);
        }
    }

    fn resume(&mut self, slot: u32) {
        let Some(connection) = self.connections.at(slot) else { return };
        if connection.may_resume(&self.limits) {
            self.go_on(slot);
        }
    }

    /// Serves what was kept of a connection that was paused.
    fn go_on(&mut self, slot: u32) {
        let Some(connection) = self.connections.at(slot) else { return };
        let kept = connection.take_kept(&mut self.spare);
        self.feed(slot, &kept, 1);
        self.spare.give(kept);
        // Its requests wait for the partitions, or are answered already.
        self.more = true;
    }

    fn arm(&mut self, slot: u32) {
        let Some(connection) = self.connections.at(slot) else { return };
        if connection.receiving != Receiving::Off || connection.is_paused() || connection.closing.is_some() {
            return;
        }
        connection.receiving = Receiving::Armed;
        let (id, socket) = (connection.id, connection.socket);
        self.submit(tag_of(kind::RECEIVE, id), Op::Receive { socket });
    }

    pub(super) fn close(&mut self, slot: u32, reason: Reason) {
        let Some(connection) = self.connections.at(slot) else { return };
        if connection.closing.is_some() {
            return;
        }
        tracing::debug!(peer = %connection.address, reason = reason.name(), "closing a connection");
        connection.begin_close(reason, &mut self.spare);
        self.desk.counters.closed[reason as usize] += 1;
        self.gone.push(connection.id);
        if !connection.is_over() {
            connection.shutting = true;
            let (id, socket) = (connection.id, connection.socket);
            self.submit(tag_of(kind::SHUTDOWN, id), Op::Shutdown { socket });
        }
        self.finish(slot);
    }

    pub(super) fn on_shut(&mut self, slot: u32, generation: u32) {
        let Some(connection) = self.connections.get(slot, generation) else { return };
        connection.shutting = false;
        self.finish(slot);
    }

    /// Lets a closing connection go once nothing of it is in the ring.
    fn finish(&mut self, slot: u32) {
        if self.connections.at(slot).is_some_and(|connection| connection.is_over())
            && let Some(Connection { socket, .. }) = self.connections.remove(slot)
        {
            self.submit(tag(kind::NONE, 0), Op::Close { handle: socket });
        }
    }

    /// Looks at the time-outs of some connections.
    pub(super) fn sweep(&mut self) {
        let slots = self.connections.slots();
        for _ in 0..slots.min(SWEEP_LEAST.max(slots / 16)) {
            self.sweep_from = if self.sweep_from + 1 < slots { self.sweep_from + 1 } else { 0 };
            let slot = self.sweep_from as u32;
            let Some(connection) = self.connections.at(slot) else { continue };
            if let Some(reason) = connection.overdue(&self.limits, self.now_ms) {
                self.close(slot, reason);
            }
        }
    }

    /// Tells who needs to know which connections are gone.
    pub(super) fn tell_gone(&mut self) {
        if self.gone.is_empty() {
            return;
        }
        let gone = std::mem::take(&mut self.gone);
        self.desk.closed(&gone, self.now_ms);
        let here = self.desk.index;
        for connection in gone.into_iter().filter(|connection| usize::from(connection.core) == here) {
            for core in (0..self.mailboxes.cores()).filter(|core| *core != here) {
                self.desk.outbox.send(core, Mail::Closed { connection });
            }
        }
    }
}
