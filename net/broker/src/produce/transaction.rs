//! Transactions: half messages, the end that their producers decide on (37), and asking producers that said nothing
//! (39) (PROTOCOL 2.3.3, 2.6, 4.11).

use bytes::Bytes;
use engine::error::AppendError;
use engine::format::{Position, QueueKey};
use engine::partition::Undecided;
use protocol::codes::{request, response};
use protocol::command::FLAG_ONEWAY;
use protocol::headers::{CheckTransaction, EndTransaction, ResumeCheck, SendMessage};
use protocol::ids::OffsetId;
use protocol::message;
use protocol::names::{self, sys_flag};
use protocol::properties::{self, PROPERTIES_BYTES_MAX, name};
use protocol::{AnswerWriter, Header, StoredMessage};

use super::{Origin, Piece, Put, Said, Until, set_real};
use crate::call::Call;
use crate::desk::Desk;
use crate::mail::{Mail, Store, Wait};
use crate::parked::Cold;
use crate::promise::Promise;

const NOT_FOUND: &str = "Find prepared transaction message failed";
/// Spreads numbers that lie close together: 2^64 by the golden ratio.
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
/// Where a half message belongs.
const REAL: [&str; 2] = [name::REAL_TOPIC, name::REAL_QID];

impl Desk {
    /// When the producer of a half message is asked first. Its properties become those of one that waits.
    pub(super) fn half(
        &self,
        send: &SendMessage<'_>,
        queue: u32,
        unique: &str,
        text: &mut String,
        now_ms: u64,
    ) -> Until {
        let [group, immunity] = properties::get_all(text, [name::PGROUP, name::CHECK_IMMUNITY_TIME_IN_SECONDS]);
        // No longer than a timer may wait: it would hold its place among the half messages for ever.
        let timeout_ms = self.settings.transaction_timeout_ms;
        let immune_ms = immunity_ms(immunity, timeout_ms).map_or(0, |ms| ms.min(self.settings.timer_max_delay_ms));
        if group.is_none() {
            properties::append(text, name::PGROUP, send.producer_group);
        }
        set_real(text, send.topic, queue);
        properties::set(text, name::TRANSACTION_ID, unique);
        let check_ms = now_ms.saturating_add(immune_ms.max(timeout_ms));
        Until::Decided { check_ms }
    }

    /// END_TRANSACTION (37): a half message becomes one of its queue's, or nothing.
    pub(crate) fn end_transaction(&mut self, call: &Call<'_>, now_ms: u64) {
        let end = match EndTransaction::parse(&call.header.fields) {
            Ok(end) => end,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let is_commit = match end.commit_or_rollback {
            sys_flag::TRANSACTION_COMMIT => true,
            sys_flag::TRANSACTION_ROLLBACK => false,
            // The producer does not know yet: it is asked later.
            _ => {
                self.replies.header(&call.reply, response::SUCCESS);
                return self.replies.send(&call.reply, Default::default());
            }
        };
        let Some((local, position)) = self.local_of(end.commit_log_offset) else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, NOT_FOUND);
        };
        if !self.partitions[local].is_open() {
            return self.refuse_append(&call.reply, AppendError::Opening);
        }
        let half = match self.partitions[local].undecided(position.byte()) {
            Ok(Some(half)) => half,
            Ok(None) => return self.refuse(&call.reply, response::SYSTEM_ERROR, NOT_FOUND),
            Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
        };
        let Ok(message) = StoredMessage::decode(&half.message) else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, NOT_FOUND);
        };
        if let Err((code, remark)) = check_end(&end, &message, self.settings.transaction_timeout_ms, now_ms) {
            return self.refuse(&call.reply, code, remark);
        }
        let said = Said::read(message.topic, message.properties);
        let mut text = String::new();
        let mut until = Until::Now;
        if is_commit {
            text.reserve(message.properties.len() + self.sends.ours.len());
            text.push_str(message.properties);
            properties::remove_all(&mut text, &REAL);
            match self.committed_until(&message, &said, half.queue.queue, &mut text, now_ms) {
                Ok(found) => until = found,
                Err((code, remark)) => return self.refuse(&call.reply, code, &remark),
            }
        }
        let committed = StoredMessage {
            sys_flag: message.sys_flag & !sys_flag::TRANSACTION_MASK | sys_flag::TRANSACTION_COMMIT,
            prepared_transaction_offset: end.commit_log_offset,
            properties: &text,
            ..message
        };
        let piece = Piece::new(committed, said.tags, said.keys);
        let put = Put::End(position.byte(), half.queue, is_commit.then_some((&piece, until)));
        let (messages, bytes) = put.counted();
        let promise = |desk: &mut Desk| {
            let says = desk.promises.says(&call.reply, |frame| {
                AnswerWriter::new(frame, call.reply.serialize, call.reply.opaque).finish();
            });
            Promise::Answer { to: call.reply, messages, bytes, since_ms: now_ms, says }
        };
        if let Err(unkept) = self.keep(local, &put, promise, now_ms) {
            self.refuse_unkept(&call.reply, unkept);
        }
    }

    /// When a message that is committed is due: those with a delay begin to wait now.
    fn committed_until(
        &self,
        message: &StoredMessage<'_>,
        said: &Said<'_>,
        queue: u32,
        text: &mut String,
        now_ms: u64,
    ) -> Result<Until, (i32, String)> {
        if said.delay_level <= 0 && !said.is_timer {
            return Ok(Until::Now);
        }
        self.until(message.topic, said, queue, said.unique.unwrap_or_default(), text, now_ms)
    }

    /// RESUME_CHECK_HALF_MESSAGE (323): one that was given up is a half message again, and its producer is asked anew.
    /// The one that was given up stays where it is: who asks twice has two.
    pub(crate) fn resume_check(&mut self, call: &Call<'_>, now_ms: u64) {
        let asked = match ResumeCheck::parse(&call.header.fields) {
            Ok(asked) => asked,
            Err(error) => return self.refuse_field(&call.reply, error),
        };
        let id = asked.msg_id.unwrap_or_default();
        let refusal = format!("Put message back to {} failed: no message {id} was given up", names::TRANS_HALF_TOPIC);
        let Some((local, position)) = OffsetId::parse(id).and_then(|id| self.local_of(id.offset)) else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, &refusal);
        };
        let record = match self.partitions[local].get(position) {
            Ok(Some(record)) => record,
            Ok(None) => return self.refuse(&call.reply, response::SYSTEM_ERROR, &refusal),
            Err(load) => return self.wait_for(local, load, Cold::Request(call.to_request())),
        };
        let given_up = StoredMessage::decode(&record).ok();
        let given_up = given_up.filter(|message| message.topic == names::TRANS_CHECK_MAX_TIME_TOPIC);
        let real = given_up.map(|message| (message, properties::get_all(message.properties, REAL)));
        let Some((message, [Some(topic), Some(queue)])) = real else {
            return self.refuse(&call.reply, response::SYSTEM_ERROR, &refusal);
        };
        let mut text = message.properties.to_owned();
        properties::remove(&mut text, name::TRANSACTION_CHECK_TIMES);
        let store = Store {
            topic: topic.to_owned(),
            queue: queue.parse().unwrap_or_default(),
            origin: Origin::of_stored(&message),
            properties: text,
            body: record.slice_ref(message.body),
            wait: Wait::Decision,
            reply: call.reply,
        };
        self.store(store, now_ms);
    }

    /// A half message waits too long: its producer is asked (39), or it is given up and kept where an operator
    /// finds it.
    pub(crate) fn check_half(&mut self, local: usize, id: u64, now_ms: u64) {
        let half = match self.partitions[local].undecided(id) {
            Ok(Some(half)) => half,
            // It is decided, or gone with its topic.
            Ok(None) => return,
            // If too much waits already, it is due again in a second.
            Err(load) => return self.wait_for(local, load, Cold::Half(id)),
        };
        let Ok(message) = StoredMessage::decode(&half.message) else {
            tracing::error!(partition = self.partitions[local].number(), id, "a half message cannot be read: it ends");
            // If the log refuses that, it is due again.
            let _ = self.partitions[local].decide(id, None, None, None, now_ms);
            return;
        };
        let age_ms = now_ms.saturating_sub(message.store_timestamp.cast_unsigned());
        let is_over = half.checks >= self.settings.transaction_check_max || age_ms > self.settings.retention_ms();
        if is_over {
            self.give_up(local, id, &message, now_ms)
        } else {
            self.ask_producer(local, id, &half, &message, now_ms)
        }
    }

    /// Asks a producer of the message's group, whichever there is; and again, if none says anything.
    fn ask_producer(&mut self, local: usize, id: u64, half: &Undecided, message: &StoredMessage<'_>, now_ms: u64) {
        let group = message.property(name::PGROUP).unwrap_or_default();
        let mut text = message.properties.to_owned();
        properties::set(&mut text, name::TRANSACTION_CHECK_TIMES, &(half.checks + 1).to_string());
        if text.len() > PROPERTIES_BYTES_MAX {
            // Rather asked without how often than not at all.
            message.properties.clone_into(&mut text);
        }
        let asked = StoredMessage { properties: &text, ..*message };
        let host = self.store_host();
        let offset_id = OffsetId { host, offset: message.physical_offset }.to_string();
        let unique = message.property(name::UNIQ_KEY);
        let mut header = Header::request(request::CHECK_TRANSACTION_STATE);
        header.flag = FLAG_ONEWAY;
        let check = CheckTransaction {
            topic: Some(names::TRANS_HALF_TOPIC),
            tran_state_table_offset: message.queue_offset,
            commit_log_offset: message.physical_offset,
            msg_id: unique,
            transaction_id: unique,
            offset_msg_id: Some(&offset_id),
            broker_name: Some(&self.settings.broker_name),
        };
        check.push(&mut header.fields);
        let mut frame = Vec::new();
        header.encode_frame(&mut frame, asked.encoded_len());
        let body_at = frame.len();
        frame.resize(body_at + asked.encoded_len(), 0);
        asked.encode(&mut frame[body_at..]);
        message::stamp(&mut frame[body_at..], asked.queue_offset, asked.physical_offset, asked.store_timestamp);
        // Each time another one, beginning anywhere.
        let turn = (id.wrapping_mul(SPREAD) >> 32) as usize + half.checks as usize;
        let mail = Mail::Check { group: group.into(), turn, frame: Bytes::from(frame) };
        if self.outbox.offer(0, mail).is_ok() {
            let again_ms = now_ms + self.settings.transaction_check_interval_ms;
            // If the log refuses that, the producer is asked again a second later.
            let _ = self.partitions[local].checked(id, again_ms, now_ms);
        }
    }

    /// Moves a half message that nobody decided to the topic of those, in one batch with its end: that topic has a
    /// queue in every partition.
    fn give_up(&mut self, local: usize, id: u64, message: &StoredMessage<'_>, now_ms: u64) {
        let partition = Position(message.physical_offset.cast_unsigned()).partition();
        let Some(topic) = self.catalog.topic(names::TRANS_CHECK_MAX_TIME_TOPIC) else { return };
        let partitions = self.settings.partitions;
        let mut queues = 0..topic.queues();
        let Some(queue) = queues.find(|queue| topic.partition_of(*queue, partitions) == partition) else { return };
        let key = QueueKey { topic: topic.id, queue };
        let ended =
            StoredMessage { topic: names::TRANS_CHECK_MAX_TIME_TOPIC, queue_id: queue.cast_signed(), ..*message };
        let piece = Piece::read(ended);
        if self.keep_untold(local, &Put::End(id, key, Some((&piece, Until::Now))), now_ms).is_ok() {
            tracing::warn!(
                topic = message.topic,
                unique = message.property(name::UNIQ_KEY).unwrap_or_default(),
                "no producer decided on a half message: it is moved to {}",
                names::TRANS_CHECK_MAX_TIME_TOPIC
            );
        }
    }
}

/// How long a producer wants not to be asked; it then may not decide by itself any more. Not shorter than what holds for
/// all; that too, if it cannot be read, as in RocketMQ (`TransactionalMessageUtil.getImmunityTime`). Milliseconds.
fn immunity_ms(seconds: Option<&str>, timeout_ms: u64) -> Option<u64> {
    let seconds: i64 = seconds.filter(|text| !text.is_empty())?.parse().unwrap_or(0);
    Some(u64::try_from(seconds).unwrap_or(0).saturating_mul(1000).max(timeout_ms))
}

/// Whether a half message is named only by the message id that the answer to its send gave, which is its place.
fn is_named_by_place(end: &EndTransaction<'_>, half: &StoredMessage<'_>) -> bool {
    let is_half = |id: OffsetId| (id.host, id.offset) == (half.store_host, half.physical_offset);
    end.transaction_id.is_none_or(str::is_empty) && OffsetId::parse(end.msg_id).is_some_and(is_half)
}

/// Whether a half message is the one that its producer means. `Err`: code, remark.
fn check_end(
    end: &EndTransaction<'_>,
    half: &StoredMessage<'_>,
    timeout_ms: u64,
    now_ms: u64,
) -> Result<(), (i32, &'static str)> {
    let age_ms = now_ms.saturating_sub(half.store_timestamp.cast_unsigned());
    let names = [name::CHECK_IMMUNITY_TIME_IN_SECONDS, name::UNIQ_KEY, name::PGROUP];
    let [immunity, unique, group] = properties::get_all(half.properties, names);
    if !end.from_transaction_check && immunity_ms(immunity, timeout_ms).is_some_and(|immune_ms| age_ms >= immune_ms) {
        return Err((response::ILLEGAL_OPERATION, "the immunity time of this message is over: its producer is asked"));
    }
    let unique = unique.unwrap_or_default();
    let wrong = if group != Some(end.producer_group) {
        "The producer group wrong"
    } else if half.queue_offset != end.tran_state_table_offset {
        "The transaction state table offset wrong"
    } else if half.physical_offset != end.commit_log_offset {
        "The commit log offset wrong"
    } else if end.msg_id != unique && end.transaction_id != Some(unique) && !is_named_by_place(end, half) {
        // A log that lost its end has another message there.
        "The message id wrong"
    } else {
        return Ok(());
    };
    Err((response::SYSTEM_ERROR, wrong))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_immune_for_less_than_the_timeout() {
        let rows = [(None, None), (Some(""), None), (Some("1"), Some(6_000)), (Some("soon"), Some(6_000))];
        for (text, wanted) in [&rows[..], &[(Some("-9"), Some(6_000)), (Some("7"), Some(7_000))]].concat() {
            assert_eq!(immunity_ms(text, 6_000), wanted, "{text:?}");
        }
        assert_eq!(immunity_ms(Some("9223372036854775807"), 6_000), Some(u64::MAX));
    }
}
