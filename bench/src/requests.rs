//! Frames of requests as a connection's window needs them, and what an answer's frame says.

use crate::options::{Job, Load};
use crate::stats::Direction;
use engine::sim::Random;
use protocol::codes::{request, response};
use protocol::headers::{PopMessage, PullAnswer, PullMessage, SendMessage};
use protocol::message::BatchEntry;
use protocol::names::sys_flag;
use protocol::{Header, frame};
use std::fmt::Write;
use std::ops::Range;
use std::time::SystemTime;

/// Bytes of frames that are encoded once and sent again and again, for each connection. What has more is
/// encoded for each write.
const WINDOW_BYTES_MAX: usize = 8 << 20;

/// The producers' and consumers' group.
pub const GROUP: &str = "bench";
/// How long a pop waits for messages, ms.
const POLL_TIME_MS: i64 = 1000;

/// A request that is about to be written.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Which way its messages go.
    pub direction: Direction,
    /// Messages, if it sends; a pull's stand in its answer.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// Where a pull reads.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// Which of the job's queues, of all topics.
    pub queue: u32,
    /// The first offset to read.
    pub first: i64,
    /// The offset behind the last one.
    pub end: i64,
}

/// What one connection writes.
pub struct Requests {
    code: i32,
    number: usize,
    numjobs: usize,
    queues: u32,
    all_queues: u32,
    topics: Vec<String>,
    batch: u32,
    bs: (u32, u32),
    load: Load,
    rwmixread: u64,
    random: Random,
    body: Vec<u8>,
    /// What all messages have behind their ids.
    properties: String,
    delay_ms: Option<(u64, u64)>,
    is_half: bool,
    filter: Option<String>,
    invisible_ms: i64,
    header: Header,
    /// Encoded once, if every slot's request stays the same: the frames, and where each begins.
    window: Option<(Vec<u8>, Vec<usize>)>,
    scratch: Vec<u8>,
    sent: u64,
    cursors: Vec<Cursor>,
    cursor: usize,
    offset: i64,
}

/// The name of a job's topic with this index.
pub fn topic(job: &Job, index: u32) -> String {
    if job.topics == 1 { job.topic.clone() } else { format!("{}-{index}", job.topic) }
}

impl Requests {
    /// What connection `number` of the job writes; `cursors`: where it reads.
    pub fn new(job: &Job, number: usize, cursors: Vec<Cursor>) -> Requests {
        let mut requests = Requests {
            code: if job.batch > 1 { request::SEND_BATCH_MESSAGE } else { request::SEND_MESSAGE_V2 },
            number,
            numjobs: job.numjobs,
            queues: job.queues,
            all_queues: job.queues * job.topics,
            topics: (0..job.topics).map(|index| topic(job, index)).collect(),
            batch: job.batch,
            bs: job.bs,
            load: job.load,
            rwmixread: u64::from(job.rwmixread),
            random: Random::new(job.randseed.wrapping_add(number as u64)),
            body: vec![b'x'; job.bs.1 as usize],
            properties: properties(job),
            delay_ms: (!job.delay.1.is_zero())
                .then_some((job.delay.0.as_millis() as u64, job.delay.1.as_millis() as u64)),
            is_half: job.transaction,
            filter: job.filter.clone(),
            invisible_ms: job.invisible_time.as_millis() as i64,
            header: Header::default(),
            window: None,
            scratch: Vec::new(),
            sent: 0,
            offset: cursors.first().map_or(0, |cursor| cursor.first),
            cursors,
            cursor: 0,
        };
        let own = 128 + requests.properties.len();
        let bytes = job.iodepth * (512 + job.batch as usize * (job.bs.1 as usize + own));
        let covers = job.numjobs * job.iodepth >= requests.all_queues as usize;
        let alike = job.bs.0 == job.bs.1 && job.delay.0 == job.delay.1;
        if job.load == Load::Produce && alike && bytes <= WINDOW_BYTES_MAX && covers {
            let (mut window, mut starts) = (Vec::new(), vec![0]);
            for slot in 0..job.iodepth {
                requests.encode_send(slot, &mut window);
                starts.push(window.len());
            }
            requests.window = Some((window, starts));
        }
        requests
    }

    /// The frames of the requests of these slots: all of the bytes, and which part of them to write.
    /// [`Requests::give_back`] wants the bytes again. `newest`: the newest offset that is known of the
    /// connection's own queue (`mixed` reads it). `each` hears of every request, in order.
    pub fn take(&mut self, slots: Range<usize>, newest: i64, mut each: impl FnMut(Request)) -> (Vec<u8>, Range<usize>) {
        if let Some((window, starts)) = &mut self.window {
            let (messages, bytes) = (u64::from(self.batch), u64::from(self.batch * self.bs.0));
            slots.clone().for_each(|_| each(Request { direction: Direction::Write, messages, bytes }));
            return (std::mem::take(window), starts[slots.start]..starts[slots.end]);
        }
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        for slot in slots {
            let pulls = match self.load {
                Load::Produce => false,
                Load::Consume | Load::ColdRead | Load::Pop => true,
                Load::Mixed => newest >= 0 && self.random.below(100) < self.rwmixread,
            };
            if self.load == Load::Pop {
                self.encode_pop(slot, &mut out);
                each(Request { direction: Direction::Read, messages: 0, bytes: 0 });
            } else if pulls {
                self.encode_pull(slot, newest, &mut out);
                each(Request { direction: Direction::Read, messages: 0, bytes: 0 });
            } else {
                let bytes = self.encode_send(slot, &mut out);
                each(Request { direction: Direction::Write, messages: u64::from(self.batch), bytes });
            }
        }
        let all = 0..out.len();
        (out, all)
    }

    /// Takes the memory back, to be used again.
    pub fn give_back(&mut self, bytes: Vec<u8>) {
        match &mut self.window {
            Some((window, _)) => *window = bytes,
            None => self.scratch = bytes,
        }
    }

    /// `coldread`: the answer told where to go on. At a queue's end the next one is read, and so on again.
    pub fn go_on_at(&mut self, next: i64) {
        self.offset = next;
        if next >= self.cursors[self.cursor].end {
            self.cursor = (self.cursor + 1) % self.cursors.len();
            self.offset = self.cursors[self.cursor].first;
        }
    }

    /// Appends a send, and says how many bytes its bodies have.
    fn encode_send(&mut self, slot: usize, out: &mut Vec<u8>) -> u64 {
        let queue = match self.load {
            // A connection's own queue, so that an answer's offset says what can be pulled.
            Load::Mixed => self.number as u32 % self.all_queues,
            _ => {
                ((self.number as u64 + self.sent * if self.turns() { self.numjobs as u64 } else { 1 })
                    % u64::from(self.all_queues)) as u32
            }
        };
        let mut id = String::with_capacity(96);
        write!(id, "UNIQ_KEY\u{1}7F00000100002A9F{:08X}{:08X}", self.number, self.sent).expect("a String takes all");
        id.push_str(&self.properties);
        if let Some((least, most)) = self.delay_ms {
            let delay = least + self.random.below(most - least + 1);
            write!(id, "TIMER_DELAY_MS\u{1}{delay}\u{2}").expect("a String takes all");
        }
        self.sent += 1;
        let mut body_bytes = 0;
        let mut entries = Vec::new();
        for _ in 0..self.batch {
            let bytes = self.draw();
            body_bytes += u64::from(bytes);
            if self.batch > 1 {
                let body = &self.body[..bytes as usize];
                BatchEntry { flag: 0, body, properties: &id }.encode(&mut entries);
            }
        }
        let body = if self.batch > 1 { &entries[..] } else { &self.body[..body_bytes as usize] };
        self.header.opaque = slot as i32;
        self.header.code = self.code;
        self.header.fields.clear();
        SendMessage {
            producer_group: GROUP,
            topic: &self.topics[(queue / self.queues) as usize],
            default_topic: "TBW102",
            default_topic_queue_nums: 4,
            queue_id: (queue % self.queues) as i32,
            born_timestamp: 1_700_000_000_000,
            properties: &id,
            sys_flag: if self.is_half { sys_flag::TRANSACTION_PREPARED } else { 0 },
            batch: self.batch > 1,
            ..SendMessage::default()
        }
        .push(self.code, &mut self.header.fields);
        self.header.encode_frame(out, body.len());
        out.extend_from_slice(body);
        body_bytes
    }

    fn encode_pull(&mut self, slot: usize, newest: i64, out: &mut Vec<u8>) {
        let batch = i64::from(self.batch);
        let (queue, offset) = if self.load == Load::Mixed {
            (self.number as u32 % self.all_queues, (newest + 1 - batch).max(0))
        } else {
            (self.cursors[self.cursor].queue, self.offset)
        };
        self.header.opaque = slot as i32;
        self.header.code = request::PULL_MESSAGE;
        self.header.fields.clear();
        PullMessage {
            consumer_group: GROUP,
            topic: &self.topics[(queue / self.queues) as usize],
            queue_id: (queue % self.queues) as i32,
            queue_offset: offset,
            max_msg_nums: self.batch as i32,
            // The subscription is in the request.
            sys_flag: 4,
            subscription: Some(self.filter.as_deref().unwrap_or("*")),
            expression_type: Some(if self.filter.is_some() { "SQL92" } else { "TAG" }),
            ..PullMessage::default()
        }
        .push(&mut self.header.fields);
        self.header.encode_frame(out, 0);
        if self.load == Load::Consume {
            self.go_on_at(offset + batch);
        }
    }

    fn encode_pop(&mut self, slot: usize, out: &mut Vec<u8>) {
        self.header.opaque = slot as i32;
        self.header.code = request::POP_MESSAGE;
        self.header.fields.clear();
        PopMessage {
            consumer_group: GROUP,
            topic: &self.topics[0],
            // A connection's own queue, or any if there are too few connections.
            queue_id: if self.turns() { -1 } else { (self.number as u32 % self.queues) as i32 },
            max_msg_nums: self.batch as i32,
            invisible_time: self.invisible_ms,
            poll_time: POLL_TIME_MS,
            born_time: Some(now_ms()),
            expression: self.filter.as_deref(),
            expression_type: self.filter.as_ref().map(|_| "SQL92"),
            ..PopMessage::default()
        }
        .push(&mut self.header.fields);
        self.header.encode_frame(out, 0);
    }

    /// Whether the queues are more than the slots: then they are dealt out in turn over all connections.
    fn turns(&self) -> bool {
        self.all_queues as usize > self.numjobs
    }

    fn draw(&mut self) -> u32 {
        let (least, most) = self.bs;
        if least == most { least } else { least + self.random.below(u64::from(most - least) + 1) as u32 }
    }
}

/// What every message of a job has.
fn properties(job: &Job) -> String {
    let mut text = String::from("\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}");
    if job.transaction {
        write!(text, "TRAN_MSG\u{1}true\u{2}PGROUP\u{1}{GROUP}\u{2}").expect("a String takes all");
    }
    if job.delay_level > 0 {
        write!(text, "DELAY\u{1}{}\u{2}", job.delay_level).expect("a String takes all");
    }
    for index in 0..job.properties {
        write!(text, "P{index}\u{1}{index}\u{2}").expect("a String takes all");
    }
    text
}

/// Now, in ms since 1970: pops say when they were asked.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}

/// What an answer said.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which request it answers: its slot.
    pub opaque: usize,
    /// Messages in the body, and their bytes.
    pub pulled: Option<(u64, u64)>,
    /// Where a pull goes on, or the offset that a sent message got.
    pub offset: Option<i64>,
    /// Why it was refused.
    pub refusal: Option<String>,
}

/// Reads answers. It remembers where the last one had its number, for a server writes them all alike.
#[derive(Debug, Default)]
pub struct Answers {
    /// Bytes between the number's end and the header's.
    tail: usize,
}

const OPAQUE: &[u8] = b"\"opaque\":";

impl Answers {
    /// Reads a whole frame. `direction`: of the request in a slot. `offsets`: they are wanted. `None`: this is no
    /// answer to a request of ours.
    pub fn read(
        &mut self,
        frame: &[u8],
        direction: impl FnOnce(usize) -> Option<Direction>,
        offsets: bool,
    ) -> Option<Answer> {
        let (serialize, at, body) = frame::split(frame).ok()?;
        let bytes = &frame[at];
        // Servers write the code first; what does not start so is looked at in full.
        let quick = bytes.starts_with(b"{\"code\":0,").then(|| self.opaque(bytes)).flatten();
        if let Some(opaque) = quick {
            let direction = direction(opaque)?;
            if direction == Direction::Write && !offsets {
                return Some(Answer { opaque, pulled: None, offset: None, refusal: None });
            }
            let mut header = Header::default();
            header.decode(serialize, bytes).ok()?;
            let pulled = (direction == Direction::Read).then(|| pulled(&frame[body]));
            let name = if direction == Direction::Read { "nextBeginOffset" } else { "queueOffset" };
            let offset = header.fields.get(name).and_then(|text| text.parse().ok());
            return Some(Answer { opaque, pulled, offset, refusal: None });
        }
        let mut header = Header::default();
        header.decode(serialize, bytes).ok()?;
        let opaque = usize::try_from(header.opaque).ok()?;
        let direction = direction(opaque)?;
        if header.code == response::POLLING_TIMEOUT && direction == Direction::Read {
            // Nothing came while a pop waited.
            return Some(Answer { opaque, pulled: Some((0, 0)), offset: None, refusal: None });
        }
        let success = header.code == response::SUCCESS;
        let next = PullAnswer::parse(&header.fields).map(|answer| answer.next_begin_offset).ok();
        let pulled = (direction == Direction::Read && success).then(|| pulled(&frame[body]));
        let refusal = (!success).then(|| match next {
            Some(next) => format!("{} {} (next {next})", header.code, header.remark),
            None => format!("{} {}", header.code, header.remark),
        });
        Some(Answer { opaque, pulled, offset: next, refusal })
    }

    fn opaque(&mut self, header: &[u8]) -> Option<usize> {
        let number = |end: usize| {
            let digits = header[..end].iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let start = end - digits;
            let is_it = digits > 0 && digits < 10 && header[..start].ends_with(OPAQUE);
            is_it.then(|| header[start..end].iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0')))
        };
        if let Some(found) = header.len().checked_sub(self.tail).and_then(number) {
            return Some(found);
        }
        let start = header.windows(OPAQUE.len()).rposition(|window| window == OPAQUE)? + OPAQUE.len();
        let end = start + header[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.tail = header.len() - end;
        number(end)
    }
}

/// How many stored messages a pull's body holds, and their bytes: each starts with its length.
fn pulled(mut body: &[u8]) -> (u64, u64) {
    let (mut count, all) = (0, body.len());
    while let Some(length) = body.first_chunk::<4>() {
        let Some(rest) = body.get((u32::from_be_bytes(*length) as usize).max(4)..) else { break };
        body = rest;
        count += 1;
    }
    (count, (all - body.len()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobfile::Sections;

    fn job(text: &str) -> Job {
        let mut sections = Sections::default();
        sections.read("test", &format!("[a]\n{text}")).unwrap();
        Job::new(&sections.finish().unwrap()[0]).unwrap()
    }

    /// Codes, queues and body bytes of the frames in `bytes`.
    fn frames(mut bytes: &[u8]) -> Vec<(i32, String, String, usize)> {
        let mut list = Vec::new();
        while let Some(length) = frame::peek(bytes).unwrap() {
            let (serialize, at, body) = frame::split(&bytes[..length]).unwrap();
            let mut header = Header::default();
            header.decode(serialize, &bytes[at]).unwrap();
            let field =
                |short, long| header.fields.get(short).or_else(|| header.fields.get(long)).unwrap_or("").to_owned();
            list.push((header.code, field("b", "topic"), field("e", "queueId"), body.len()));
            bytes = &bytes[length..];
        }
        list
    }

    #[test]
    fn a_window_is_encoded_once_and_sent_in_pieces() {
        let mut requests = Requests::new(&job("iodepth=4\nqueues=4\nbs=100"), 0, Vec::new());
        for slots in [0..4, 1..3, 3..4] {
            let (bytes, range) = requests.take(slots.clone(), -1, |request| assert_eq!(request.bytes, 100));
            let found = frames(&bytes[range]);
            let queues: Vec<_> = found.iter().map(|found| found.2.clone()).collect();
            assert_eq!(queues, slots.map(|slot| slot.to_string()).collect::<Vec<_>>());
            assert!(found.iter().all(|found| (found.0, &*found.1, found.3) == (310, "RingMQBench", 100)));
            requests.give_back(bytes);
        }
    }

    #[test]
    fn all_queues_of_all_topics_get_messages_in_turn() {
        let job = job("numjobs=2\niodepth=2\ntopics=3\nqueues=4");
        let mut seen: Vec<(String, String)> = Vec::new();
        for number in 0..2 {
            let mut requests = Requests::new(&job, number, Vec::new());
            for _ in 0..3 {
                let (bytes, range) = requests.take(0..2, -1, |_| {});
                seen.extend(frames(&bytes[range]).into_iter().map(|(_, topic, queue, _)| (topic, queue)));
                requests.give_back(bytes);
            }
        }
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 12, "{seen:?}");
    }

    #[test]
    fn batches_and_ranges_have_the_bytes_they_say() {
        let mut requests = Requests::new(&job("batch=16\nbs=100-200"), 0, Vec::new());
        let (mut messages, mut sum) = (0, 0);
        let (bytes, range) = requests.take(0..1, -1, |request| (messages, sum) = (request.messages, request.bytes));
        let found = frames(&bytes[range.clone()]);
        assert_eq!((found[0].0, messages), (320, 16));
        let (_, _, body) = frame::split(&bytes[range]).unwrap();
        let entries: Vec<_> = protocol::message::BatchEntries::new(&bytes[body]).map(Result::unwrap).collect();
        assert_eq!(entries.iter().map(|entry| entry.body.len() as u64).sum::<u64>(), sum);
        assert!(entries.iter().all(|entry| (100..=200).contains(&entry.body.len())));
    }

    #[test]
    fn pulls_go_round() {
        let cursors = vec![Cursor { queue: 9, first: 10, end: 74 }];
        let mut requests = Requests::new(&job("rw=consume\nqueues=8\ntopics=2\niodepth=3"), 0, cursors);
        let (bytes, _) = requests.take(0..3, -1, |request| assert_eq!(request.direction, Direction::Read));
        let found = frames(&bytes);
        assert!(found.iter().all(|found| (found.0, &*found.1, &*found.2) == (11, "RingMQBench-1", "1")), "{found:?}");
        assert_eq!(requests.offset, 42, "10, 42, and again 10");
    }

    #[test]
    fn answers_are_read_whatever_their_layout() {
        let mut answers = Answers::default();
        let mut read = |code: i32, opaque: i32, field: (&str, &str), body: &[u8], direction| {
            let mut header = Header { code, opaque, ..Header::default() };
            header.flag = 1;
            header.fields.push(field.0, field.1);
            let mut out = Vec::new();
            header.encode_frame(&mut out, body.len());
            out.extend_from_slice(body);
            answers.read(&out, |slot| (slot < 100).then_some(direction), direction == Direction::Read)
        };
        let plain = |opaque| Some(Answer { opaque, pulled: None, offset: None, refusal: None });
        for opaque in [7, 8, 99, 0] {
            assert_eq!(read(0, opaque, ("msgId", "x"), b"", Direction::Write), plain(opaque as usize));
        }
        assert_eq!(read(0, 100, ("msgId", "x"), b"", Direction::Write), None, "a slot that is not there");
        let body = [0, 0, 0, 6, 1, 1, 0, 0, 0, 4];
        let pulled = read(0, 5, ("nextBeginOffset", "12"), &body, Direction::Read).unwrap();
        assert_eq!((pulled.opaque, pulled.pulled, pulled.offset), (5, Some((2, 10)), Some(12)));
        assert!(read(14, 5, ("a", "b"), b"", Direction::Write).unwrap().refusal.unwrap().starts_with("14 "));
        // As another server writes it: the number at another place, and blanks.
        let text = b"{\"code\":0,\"opaque\":31,\"flag\":1,\"extFields\":{}}";
        let mut frame = Vec::from(((text.len() + 4) as u32).to_be_bytes());
        frame.extend((text.len() as u32).to_be_bytes());
        frame.extend(text);
        assert_eq!(answers.read(&frame, |_| Some(Direction::Write), false), plain(31));
    }
}
