//! What a request needs after its answer: a half message the end of its transaction, messages that were popped their
//! acknowledgement. It is one request with what it needs: its slot is free, and its latency over, when all is answered.

use crate::options::{Ack, Job, Load};
use protocol::bodies::{self, BatchAck, BatchAcks, BitSet};
use protocol::codes::request;
use protocol::headers::{AckMessage, EndTransaction, PopAnswer, SendAnswer};
use protocol::ids::OffsetId;
use protocol::names::{self, sys_flag};
use protocol::{Header, frame};

/// Who lent a message. Brokers do not look at it: the connection says who they are.
const BROKER_NAME: &str = "broker-a";

/// Encodes what follows the answers of one connection.
pub struct Follow {
    what: What,
    topic: String,
    group: String,
    header: Header,
}

#[derive(Clone, Copy)]
enum What {
    EndOfTransaction,
    Acks(Ack),
}

impl Follow {
    /// `None`: the job's requests need nothing more.
    pub fn of(job: &Job, group: &str) -> Option<Follow> {
        let what = match job.load {
            Load::Produce if job.transaction => What::EndOfTransaction,
            Load::Pop if job.ack != Ack::None => What::Acks(job.ack),
            _ => return None,
        };
        Some(Follow { what, topic: job.topic.clone(), group: group.to_owned(), header: Header::default() })
    }

    /// Appends the requests that follow a successful answer, numbered like it; says how many. `Err`: why the answer cannot
    /// be understood.
    pub fn push(&mut self, slot: usize, answer: &[u8], out: &mut Vec<u8>) -> Result<u32, String> {
        let (serialize, at, _) = frame::split(answer).map_err(|error| error.to_string())?;
        let mut header = Header::default();
        header.decode(serialize, &answer[at]).map_err(|error| error.to_string())?;
        self.header.opaque = slot as i32;
        match self.what {
            What::EndOfTransaction => self.push_end(&header, out).map(|()| 1),
            What::Acks(ack) => self.push_acks(&header, ack == Ack::Each, out),
        }
    }

    fn push_end(&mut self, header: &Header, out: &mut Vec<u8>) -> Result<(), String> {
        let half = SendAnswer::parse(&header.fields).map_err(|error| error.to_string())?;
        let id = OffsetId::parse(half.msg_id).ok_or_else(|| format!("`{}` is no message id", half.msg_id))?;
        self.begin(request::END_TRANSACTION);
        EndTransaction {
            topic: Some(&self.topic),
            producer_group: &self.group,
            tran_state_table_offset: half.queue_offset,
            commit_log_offset: id.offset,
            commit_or_rollback: sys_flag::TRANSACTION_COMMIT,
            from_transaction_check: false,
            msg_id: half.transaction_id.unwrap_or(""),
            transaction_id: half.transaction_id,
            broker_name: None,
        }
        .push(&mut self.header.fields);
        self.header.encode_frame(out, 0);
        Ok(())
    }

    /// An answer names queues and their offsets, as in `0 3 17,18,19;0 4 5`: topic or retry topic, queue, offsets.
    fn push_acks(&mut self, header: &Header, each: bool, out: &mut Vec<u8>) -> Result<u32, String> {
        let pop = PopAnswer::parse(&header.fields).map_err(|error| error.to_string())?;
        let starts = entries(pop.start_offset_info)?;
        let mut acks = Vec::new();
        let mut count = 0;
        for (kind, queue, offsets) in entries(pop.msg_offset_info)? {
            let start = starts.iter().find(|start| (start.0, start.1) == (kind, queue));
            let first = start.and_then(|start| start.2.first()).ok_or("a queue without its start")?;
            if !each {
                acks.push(BatchAck {
                    bits: BitSet::of(offsets.iter().map(|offset| (offset - first).max(0) as usize)),
                    consumer_group: self.group.clone(),
                    invisible_time: pop.invisible_time,
                    pop_time: pop.pop_time,
                    queue_id: queue,
                    retry: kind.to_owned(),
                    revive_queue_id: pop.revive_queue_id,
                    start_offset: *first,
                    topic: self.topic.clone(),
                });
                continue;
            }
            let mut retry = String::new();
            names::pop_retry_topic(&mut retry, &self.group, &self.topic, kind == "2");
            for offset in offsets {
                let extra_info = format!(
                    "{first} {} {} {} {kind} {BROKER_NAME} {queue} {offset}",
                    pop.pop_time, pop.invisible_time, pop.revive_queue_id
                );
                self.begin(request::ACK_MESSAGE);
                AckMessage {
                    consumer_group: &self.group,
                    topic: if kind == "0" { &self.topic } else { &retry },
                    queue_id: queue,
                    extra_info: &extra_info,
                    offset,
                }
                .push(&mut self.header.fields);
                self.header.encode_frame(out, 0);
                count += 1;
            }
        }
        if !acks.is_empty() {
            let body = bodies::encode(&BatchAcks { acks, broker_name: BROKER_NAME.to_owned() });
            self.begin(request::BATCH_ACK_MESSAGE);
            self.header.encode_frame(out, body.len());
            out.extend_from_slice(&body);
            count = 1;
        }
        Ok(count)
    }

    fn begin(&mut self, code: i32) {
        self.header.code = code;
        self.header.fields.clear();
    }
}

type Entry<'a> = (&'a str, i32, Vec<i64>);

fn entries(text: Option<&str>) -> Result<Vec<Entry<'_>>, String> {
    let mut list = Vec::new();
    for part in text.unwrap_or("").split(';').filter(|part| !part.is_empty()) {
        list.push(read_entry(part).ok_or_else(|| format!("`{part}` names no offsets"))?);
    }
    Ok(list)
}

fn read_entry(text: &str) -> Option<Entry<'_>> {
    let mut words = text.split(' ');
    let (kind, queue, offsets) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
    let offsets = offsets.split(',').map(|offset| offset.parse().ok()).collect::<Option<_>>()?;
    Some((kind, queue, offsets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::Sections;

    fn follow(text: &str) -> Option<Follow> {
        let mut sections = Sections::default();
        sections.read("test", &format!("[a]\ntopic=T\n{text}")).unwrap();
        Follow::of(&Job::new(&sections.finish().unwrap()[0]).unwrap(), "g")
    }

    fn answer(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut header = Header { opaque: 3, flag: 1, ..Header::default() };
        fields.iter().for_each(|(name, value)| header.fields.push(name, value));
        let mut out = Vec::new();
        header.encode_frame(&mut out, 0);
        out
    }

    /// Codes, numbers, one field and bodies of the frames.
    fn frames(mut bytes: &[u8], name: &str) -> Vec<(i32, i32, String, String)> {
        let mut list = Vec::new();
        while let Some(length) = frame::peek(bytes).unwrap() {
            let (serialize, at, body) = frame::split(&bytes[..length]).unwrap();
            let mut header = Header::default();
            header.decode(serialize, &bytes[at]).unwrap();
            let value = header.fields.get(name).unwrap_or("").to_owned();
            list.push((header.code, header.opaque, value, String::from_utf8(bytes[body].to_vec()).unwrap()));
            bytes = &bytes[length..];
        }
        list
    }

    #[test]
    fn a_half_message_is_committed_where_it_lies() {
        assert!(follow("rw=produce").is_none() && follow("rw=pop\nack=none").is_none());
        let id = "7F00000100002A9F0000000000000400";
        let half = answer(&[("msgId", id), ("queueId", "1"), ("queueOffset", "7"), ("transactionId", "u")]);
        let mut out = Vec::new();
        assert_eq!(follow("transaction").unwrap().push(3, &half, &mut out), Ok(1));
        assert_eq!(frames(&out, "commitLogOffset"), [(37, 3, "1024".to_owned(), String::new())]);
        let strange = answer(&[("msgId", "x"), ("queueId", "1"), ("queueOffset", "7")]);
        assert!(follow("transaction").unwrap().push(3, &strange, &mut out).is_err());
    }

    #[test]
    fn what_was_popped_is_acknowledged_together_or_one_by_one() {
        let popped = answer(&[
            ("popTime", "50"),
            ("invisibleTime", "60"),
            ("reviveQid", "0"),
            ("restNum", "0"),
            ("startOffsetInfo", "0 2 17;1 0 4"),
            ("msgOffsetInfo", "0 2 17,19;1 0 4"),
        ]);
        let mut out = Vec::new();
        assert_eq!(follow("rw=pop").unwrap().push(3, &popped, &mut out), Ok(1));
        let [(code, 3, _, body)] = &frames(&out, "")[..] else { panic!("{out:?}") };
        let acks: BatchAcks = serde_json::from_str(body).unwrap();
        let told: Vec<_> =
            acks.acks.iter().map(|ack| (&*ack.retry, ack.queue_id, ack.start_offset, &ack.bits.0)).collect();
        assert_eq!((*code, told), (200_151, vec![("0", 2, 17, &vec![0b101]), ("1", 0, 4, &vec![1])]));

        out.clear();
        assert_eq!(follow("rw=pop\nack=each").unwrap().push(3, &popped, &mut out), Ok(3));
        let handles: Vec<_> = frames(&out, "extraInfo").into_iter().map(|frame| (frame.0, frame.2)).collect();
        let handle = |text: &str| (200_051, text.to_owned());
        let wanted =
            ["17 50 60 0 0 broker-a 2 17", "17 50 60 0 0 broker-a 2 19", "4 50 60 0 1 broker-a 0 4"].map(handle);
        assert_eq!(handles, wanted);
        let empty = answer(&[("popTime", "50"), ("invisibleTime", "60"), ("reviveQid", "0"), ("restNum", "0")]);
        assert_eq!(follow("rw=pop").unwrap().push(3, &empty, &mut out), Ok(0));
    }
}
