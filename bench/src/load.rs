//! Closed-loop load: connections that each keep a window of requests outstanding.
//!
//! A window is written at once and the next one follows when all its answers are in, as the limit probe
//! does it; each answer's latency counts from its window's write.

use crate::report::{Report, cpu_time};
use crate::socket::Socket;
use hdrhistogram::Histogram;
use protocol::codes::{request, response};
use protocol::headers::CreateTopic;
use protocol::headers::SendMessage;
use protocol::headers::{OffsetAnswer, PullAnswer, PullMessage, QueueOf};
use protocol::{Command, Header, frame};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use transport::{Client, ClientLimits};

/// What to run against which broker.
#[derive(Clone, Debug)]
pub struct Load {
    /// The broker.
    pub broker: SocketAddr,
    /// Its process, for its CPU time.
    pub pid: Option<u32>,
    /// The topic, created with this many queues.
    pub topic: String,
    /// Queues of the topic.
    pub queues: i32,
    /// Connections.
    pub connections: usize,
    /// Requests outstanding on each.
    pub outstanding: usize,
    /// How long.
    pub duration: Duration,
    /// Bytes of a message's body.
    pub body_bytes: usize,
}

/// What all connections count together.
struct Tally {
    messages: u64,
    errors: u64,
    first_error: Option<String>,
    latency: Histogram<u64>,
}

impl Load {
    /// Makes the topic.
    pub async fn prepare(&self) -> io::Result<()> {
        let mut command = Command::request(request::UPDATE_AND_CREATE_TOPIC);
        CreateTopic {
            topic: &self.topic,
            default_topic: "TBW102",
            read_queue_nums: self.queues,
            write_queue_nums: self.queues,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        }
        .push(&mut command.header.fields);
        let answer = self.ask(command).await?;
        if answer.header.code != response::SUCCESS {
            return Err(io::Error::other(format!(
                "creating {}: {} {}",
                self.topic, answer.header.code, answer.header.remark
            )));
        }
        Ok(())
    }

    /// Sends messages until the time is up.
    pub async fn send(&self) -> io::Result<Report> {
        self.run("send", |load, number, socket, tally, until| async move {
            load.send_on(number, socket, tally, until).await
        })
        .await
    }

    /// Pulls the newest `span` messages of each queue again and again until the time is up; connection c
    /// reads queue c modulo the queues.
    pub async fn pull(&self, batch: i32, span: i64) -> io::Result<Report> {
        self.run("pull", move |load, number, socket, tally, until| async move {
            load.pull_on(number, socket, tally, until, batch, span).await
        })
        .await
    }

    async fn run<F, R>(&self, what: &'static str, each: F) -> io::Result<Report>
    where
        F: Fn(Load, usize, Socket, Rc<RefCell<Tally>>, Instant) -> R,
        R: Future<Output = io::Result<()>> + 'static,
    {
        let mut sockets = Vec::new();
        for _ in 0..self.connections {
            sockets.push(Socket::connect(self.broker).await?);
        }
        let tally = Tally::new();
        let cpu_before = self.pid.and_then(cpu_time);
        let start = Instant::now();
        let until = start + self.duration;
        let tasks: Vec<_> = sockets
            .into_iter()
            .enumerate()
            .map(|(number, socket)| tokio_uring::spawn(each(self.clone(), number, socket, Rc::clone(&tally), until)))
            .collect();
        for task in tasks {
            task.await.map_err(io::Error::other)??;
        }
        let elapsed = start.elapsed();
        let cpu_after = self.pid.and_then(cpu_time);
        let mut tally = tally.borrow_mut();
        if tally.messages == 0 {
            let text = tally.first_error.take().unwrap_or_else(|| "there was none".to_owned());
            return Err(io::Error::other(format!("no answer was a success; the first: {text}")));
        }
        Ok(Report {
            what,
            connections: self.connections,
            outstanding: self.outstanding,
            messages: tally.messages,
            errors: tally.errors,
            first_error: tally.first_error.take(),
            elapsed,
            server_cpu: cpu_before.zip(cpu_after).map(|(before, after)| after - before),
            latency: tally.latency.clone(),
        })
    }

    async fn send_on(
        self,
        number: usize,
        mut socket: Socket,
        tally: Rc<RefCell<Tally>>,
        until: Instant,
    ) -> io::Result<()> {
        let mut window = Vec::new();
        let body = vec![b'x'; self.body_bytes];
        for index in 0..self.outstanding {
            let mut header = Header::request(request::SEND_MESSAGE_V2);
            header.opaque = index as i32;
            let properties = format!(
                "UNIQ_KEY\u{1}7F00000100002A9F{number:08X}{index:08X}\u{2}WAIT\u{1}true\u{2}TAGS\u{1}TagA\u{2}"
            );
            SendMessage {
                producer_group: "bench",
                topic: &self.topic,
                default_topic: "TBW102",
                default_topic_queue_nums: 4,
                queue_id: (number + index) as i32 % self.queues,
                born_timestamp: 1_700_000_000_000,
                properties: &properties,
                ..SendMessage::default()
            }
            .push(request::SEND_MESSAGE_V2, &mut header.fields);
            header.encode_frame(&mut window, body.len());
            window.extend_from_slice(&body);
        }
        while Instant::now() < until {
            let sent = Instant::now();
            window = socket.send(window).await?;
            let mut left = self.outstanding;
            while left > 0 {
                let (mut got, mut refused, mut bad) = (0, 0, None);
                socket
                    .receive(|frame| {
                        got += 1;
                        // Servers write the code first; what does not start so is looked at in full.
                        if !frame[8..].starts_with(b"{\"code\":0,") {
                            let header = header_of(frame);
                            if header.code != response::SUCCESS {
                                refused += 1;
                                bad = Some(format!("{} {}", header.code, header.remark));
                            }
                        }
                    })
                    .await?;
                let mut tally = tally.borrow_mut();
                tally.add(got as u64 - refused, refused, sent.elapsed(), bad);
                left -= got;
            }
        }
        Ok(())
    }

    async fn pull_on(
        self,
        number: usize,
        mut socket: Socket,
        tally: Rc<RefCell<Tally>>,
        until: Instant,
        batch: i32,
        span: i64,
    ) -> io::Result<()> {
        let queue = number as i32 % self.queues;
        let mut command = Command::request(request::GET_MAX_OFFSET);
        QueueOf { topic: &self.topic, queue_id: queue, committed: None }.push(&mut command.header.fields);
        let answer = self.ask(command).await?;
        let max =
            OffsetAnswer::parse(&answer.header.fields).map_err(|error| io::Error::other(format!("{error:?}")))?.offset;
        let first = (max - span).max(0);
        if first == max {
            return Err(io::Error::other(format!("queue {queue} of {} is empty: send to it first", self.topic)));
        }
        let mut offset = first;
        let mut window = Vec::new();
        while Instant::now() < until {
            window.clear();
            for index in 0..self.outstanding {
                let mut header = Header::request(request::PULL_MESSAGE);
                header.opaque = index as i32;
                PullMessage {
                    consumer_group: "bench",
                    topic: &self.topic,
                    queue_id: queue,
                    queue_offset: offset,
                    max_msg_nums: batch,
                    // The subscription is in the request.
                    sys_flag: 4,
                    subscription: Some("*"),
                    expression_type: Some("TAG"),
                    ..PullMessage::default()
                }
                .push(&mut header.fields);
                header.encode_frame(&mut window, 0);
                offset = if offset + i64::from(batch) >= max { first } else { offset + i64::from(batch) };
            }
            let sent = Instant::now();
            window = socket.send(window).await?;
            let mut left = self.outstanding;
            while left > 0 {
                let (mut frames, mut messages, mut refused, mut bad) = (0, 0, 0, None);
                socket
                    .receive(|frame| {
                        frames += 1;
                        let header = header_of(frame);
                        if header.code == response::SUCCESS {
                            messages += messages_in(frame);
                        } else {
                            refused += 1;
                            let next = PullAnswer::parse(&header.fields).map(|answer| answer.next_begin_offset);
                            bad = Some(format!("{} {} (next {next:?})", header.code, header.remark));
                        }
                    })
                    .await?;
                tally.borrow_mut().add(messages, refused, sent.elapsed(), bad);
                left -= frames;
            }
        }
        Ok(())
    }

    async fn ask(&self, command: Command) -> io::Result<Command> {
        let client = Client::new(self.broker.to_string(), ClientLimits::default());
        client.call(command, Duration::from_secs(10)).await.map_err(io::Error::other)
    }
}

impl Tally {
    fn new() -> Rc<RefCell<Tally>> {
        let latency = Histogram::new_with_bounds(1, 120_000_000, 3).expect("bounds that fit");
        Rc::new(RefCell::new(Tally { messages: 0, errors: 0, first_error: None, latency }))
    }

    /// Counts what one read brought: messages, and answers that were refusals, with what one of them said.
    fn add(&mut self, messages: u64, refused: u64, latency: Duration, bad: Option<String>) {
        self.messages += messages;
        self.errors += refused;
        self.latency.saturating_record_n(latency.as_micros() as u64, messages);
        if let Some(text) = bad {
            self.first_error.get_or_insert(text);
        }
    }
}

/// A frame's header. One that cannot be read is shown as code -1.
fn header_of(frame: &[u8]) -> Header {
    let mut header = Header::request(0);
    let read = frame::split(frame).ok().and_then(|(serialize, range, _)| header.decode(serialize, &frame[range]).ok());
    if read.is_some() { header } else { Header::request(-1) }
}

/// How many stored messages the body of a pull's answer holds: each starts with its length.
fn messages_in(frame: &[u8]) -> u64 {
    let Ok((_, _, body)) = frame::split(frame) else { return 0 };
    let mut body = &frame[body];
    let mut count = 0;
    while let Some(length) = body.first_chunk::<4>() {
        let Some(rest) = body.get((u32::from_be_bytes(*length) as usize).max(4)..) else { break };
        body = rest;
        count += 1;
    }
    count
}
