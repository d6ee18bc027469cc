//! The answer to a send: where its message lies, and what it is known by.

use std::net::SocketAddr;

use engine::Ticket;
use engine::message::Stored;
use protocol::ids::OffsetId;
use protocol::{Alike, AnswerWriter};

use super::Sends;
use crate::call::ReplyTo;
use crate::config::Settings;
use crate::desk::Desk;
use crate::place::is_send;
use crate::promise::{Promise, Says, Sent, ShortText};

/// What the answer to a send says of the message besides its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity<'a> {
    /// Its unique id.
    pub unique: Option<&'a str>,
    /// What recalls it.
    pub recall: Option<&'a str>,
    /// It is an inner batch: its unique id stands for all in it.
    pub is_inner: bool,
}

impl Desk {
    /// Promises the answer that leaves when the log has kept the messages just stored. `answer`: with what it says.
    #[inline(always)]
    pub(super) fn promise_sent(
        &mut self,
        ticket: Ticket,
        reply: &ReplyTo,
        queue: u32,
        says: Identity<'_>,
        answer: impl FnOnce(Says) -> Promise,
    ) {
        let is_usual = is_send(reply.code) && says.recall.is_none() && !says.is_inner && !reply.oneway;
        let short = says.unique.filter(|unique| is_usual && ShortText::holds(unique));
        let ([stored], Some(unique)) = (&self.sends.stored[..], short) else {
            let says = self.says_stored(reply, queue, says);
            self.promises.open_next(ticket, answer(says));
            return;
        };
        let sent = Sent { queue, stored: *stored, unique: ShortText::EMPTY };
        match self.promises.open_next(ticket, answer(Says::Sent(sent))) {
            Promise::Answer { says: Says::Sent(sent), .. } => sent.unique.set(unique),
            other => unreachable!("an answer was promised, not {other:?}"),
        }
    }

    /// What the answer to any request says that stored messages.
    fn says_stored(&mut self, reply: &ReplyTo, queue: u32, says: Identity<'_>) -> Says {
        let Sends { stored, ids, told, .. } = &mut self.sends;
        let settings = &self.settings;
        self.promises.says(reply, |frame| write_stored(frame, reply, queue, stored, says, ids, (settings, told)))
    }
}

/// Writes the answer to a request that stored any number of messages. `ids`: memory for theirs.
fn write_stored(
    out: &mut Vec<u8>,
    reply: &ReplyTo,
    queue: u32,
    stored: &[Stored],
    says: Identity<'_>,
    ids: &mut String,
    (settings, told): (&Settings, &Alike),
) {
    let mut answer = AnswerWriter::new(out, reply.serialize, reply.opaque);
    if is_send(reply.code) {
        ids.clear();
        for stored in stored {
            if !ids.is_empty() {
                ids.push(',');
            }
            offset_id(stored, settings).append(ids);
        }
        answer.plain("msgId", ids);
        let offset = stored.first().map_or(0, |stored| stored.queue_offset);
        write_place(&mut answer, queue, offset, says.unique, told);
        if let Some(unique) = says.unique.filter(|_| says.is_inner) {
            answer.text("batchUniqId", unique);
        }
        if let Some(recall) = says.recall {
            answer.text("recallHandle", recall);
        }
    }
    answer.finish();
}

/// Writes the answer to a send of one message.
#[inline]
pub(crate) fn write_sent(out: &mut Vec<u8>, reply: &ReplyTo, sent: &Sent, (settings, told): (&Settings, &Alike)) {
    let mut answer = AnswerWriter::new(out, reply.serialize, reply.opaque);
    answer.id("msgId", offset_id(&sent.stored, settings));
    write_place(&mut answer, sent.queue, sent.stored.queue_offset, Some(sent.unique.as_str()), told);
    answer.finish();
}

fn offset_id(stored: &Stored, settings: &Settings) -> OffsetId {
    let host = SocketAddr::new(settings.broker_ip1.into(), settings.port);
    OffsetId { host, offset: stored.position.0.cast_signed() }
}

/// Everything of the answer to a send that stands behind its message ids.
#[inline(always)]
pub(super) fn write_place(answer: &mut AnswerWriter<'_>, queue: u32, offset: u64, unique: Option<&str>, told: &Alike) {
    answer.int("queueId", queue);
    answer.int("queueOffset", offset.cast_signed());
    if let Some(unique) = unique {
        answer.text("transactionId", unique);
    }
    answer.alike(told);
}
