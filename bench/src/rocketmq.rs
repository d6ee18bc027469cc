//! `ioengine=rocketmq`: connections to a broker, each with a window of requests, on one tokio-uring thread.
//!
//! Each connection has two tasks: one writes what may be written (a slot is free and, in an open loop, a
//! request is due), one reads answers and frees their slots. A third keeps the pace of an open loop.

use crate::follow::Follow;
use crate::options::{Job, Load};
use crate::report::cpu_time;
use crate::requests::{Answers, Cursor, GROUP, Requests, topic};
use crate::run::{Measured, Start};
use crate::socket::{self, Receiver};
use crate::stats::{Answered, Direction, Live, Pace, Stats};
use crate::timer::Timer;
use protocol::Command;
use protocol::codes::{request, response};
use protocol::headers::{CreateTopic, OffsetAnswer, QueueOf};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;
use transport::{Client, ClientLimits};

/// How long answers are waited for when the time is up.
const DRAIN: Duration = Duration::from_secs(10);
/// And after SIGINT.
const DRAIN_STOPPED: Duration = Duration::from_secs(1);
/// How often a stop is looked for; SIGINT comes to another thread.
const STOP_INTERVAL: Duration = Duration::from_millis(20);
/// How long a question before the run may take.
const ASK: Duration = Duration::from_secs(30);

/// Runs a job to its end on this thread.
pub fn run(job: &Job, live: &Arc<Live>, start: &Start) -> io::Result<Measured> {
    transport::run(measure(job, live, start))?
}

/// A request on its way.
#[derive(Clone, Copy)]
struct Slot {
    busy: bool,
    /// Requests on their way that followed its answer.
    follow: u32,
    what: Answered,
}

/// What a connection's two tasks share.
struct Connection {
    number: u64,
    stream: Rc<TcpStream>,
    slots: RefCell<Vec<Slot>>,
    requests: RefCell<Requests>,
    stats: Rc<RefCell<Stats>>,
    /// What must follow the answers, if something must.
    follow: Option<RefCell<Follow>>,
    /// What follows and is to be written.
    following: RefCell<Vec<u8>>,
    /// The slot that the next request takes.
    next: Cell<usize>,
    outstanding: Cell<usize>,
    issued: Cell<u64>,
    /// How many requests fell due, in an open loop.
    released: Cell<u64>,
    /// `mixed`: the newest offset known of the connection's queue.
    newest: Cell<i64>,
    /// The writer may have something to do.
    wake: Notify,
    /// The writer writes nothing more.
    ended: Cell<bool>,
}

/// What all tasks of a job share.
struct Shared {
    job: Job,
    pace: Option<Pace>,
    until: Instant,
    over: Cell<bool>,
    failure: RefCell<Option<String>>,
    /// A connection ended or failed.
    changed: Notify,
}

async fn measure(job: &Job, live: &Arc<Live>, start: &Start) -> io::Result<Measured> {
    let client = Client::new(job.broker.to_string(), ClientLimits::default());
    if job.writes() {
        for index in 0..job.topics {
            create(&client, job, &topic(job, index)).await?;
        }
    }
    let mut parts = Vec::new();
    for number in 0..job.numjobs {
        let cursors = cursors(&client, job, number).await?;
        parts.push((socket::connect(job.broker).await?, Requests::new(job, number, cursors)));
    }
    let first = start.pass() + job.startdelay;
    let begin = first + job.ramp_time;
    let shared = Rc::new(Shared {
        job: job.clone(),
        pace: Pace::of(job, first),
        until: begin + job.runtime,
        over: Cell::new(false),
        failure: RefCell::new(None),
        changed: Notify::new(),
    });
    let mut all_stats: Vec<Rc<RefCell<Stats>>> = Vec::new();
    let mut connections = Vec::new();
    for (stream, requests) in parts {
        if all_stats.is_empty() || !job.group_reporting {
            all_stats.push(Rc::new(RefCell::new(Stats::new(job, begin))));
        }
        let stats = Rc::clone(all_stats.last().expect("just pushed"));
        connections.push(Rc::new(Connection::new(connections.len(), stream, requests, stats, job)));
    }
    Timer::new()?.wait_until(first).await?;
    for connection in &connections {
        tokio_uring::spawn(watched(Rc::clone(&shared), write(Rc::clone(&shared), Rc::clone(connection))));
        tokio_uring::spawn(watched(
            Rc::clone(&shared),
            read(Rc::clone(&shared), Rc::clone(connection), Arc::clone(live)),
        ));
    }
    if let Some(pace) = shared.pace {
        tokio_uring::spawn(watched(Rc::clone(&shared), keep_pace(Rc::clone(&shared), pace, connections.clone())));
    }
    let cpu_begin = supervise(&shared, &connections, live, begin).await;
    let cpu_end = job.pid.and_then(cpu_time);
    let end = Instant::now().min(shared.until);
    let stats = all_stats.iter().map(|stats| {
        let mut stats = stats.borrow().clone();
        stats.finish(end);
        stats
    });
    Ok(Measured {
        stats: stats.collect(),
        end,
        server_cpu: cpu_begin.zip(cpu_end).map(|(begin, end)| end.saturating_sub(begin)),
        failure: shared.failure.borrow_mut().take(),
    })
}

/// Waits for the job's end: its time, a stop, a failure, or that every connection has sent all it should; then
/// for the last answers. Returns the server's CPU time when measuring began.
async fn supervise(shared: &Shared, connections: &[Rc<Connection>], live: &Live, begin: Instant) -> Option<Duration> {
    let mut cpu_begin = None;
    let mut give_up = None;
    loop {
        let now = Instant::now();
        if cpu_begin.is_none() && now >= begin {
            cpu_begin = shared.job.pid.and_then(cpu_time);
        }
        if now >= shared.until || live.is_stopped() {
            shared.over.set(true);
            connections.iter().for_each(|connection| connection.wake.notify_one());
            let drain = if live.is_stopped() { DRAIN_STOPPED } else { DRAIN };
            let limit = give_up.get_or_insert(now + drain);
            *limit = (*limit).min(now + drain);
        }
        let settled = |connection: &Rc<Connection>| connection.ended.get() && connection.outstanding.get() == 0;
        if connections.iter().all(settled) || shared.failure.borrow().is_some() {
            shared.over.set(true);
            return cpu_begin;
        }
        if give_up.is_some_and(|limit| now >= limit) {
            let left: usize = connections.iter().map(|connection| connection.outstanding.get()).sum();
            shared.fail(format!("{left} requests were not answered when the time was up"));
            return cpu_begin;
        }
        let next = if now < begin { begin } else { shared.until };
        let wait = next.saturating_duration_since(now).clamp(Duration::from_millis(1), STOP_INTERVAL);
        let _ = tokio::time::timeout(wait, shared.changed.notified()).await;
    }
}

/// A task whose failure ends the job.
async fn watched(shared: Rc<Shared>, task: impl Future<Output = io::Result<()>>) {
    if let Err(error) = task.await {
        shared.fail(error.to_string());
    }
    shared.changed.notify_one();
}

async fn write(shared: Rc<Shared>, connection: Rc<Connection>) -> io::Result<()> {
    let job = &shared.job;
    let mut pause = if job.thinktime.is_zero() { None } else { Some(Timer::new()?) };
    loop {
        let following = connection.following.take();
        if !following.is_empty() {
            connection.stream.write_all(following).await.0?;
        }
        let now = Instant::now();
        let issued = connection.issued.get();
        let is_done = job.number_ios > 0 && issued * u64::from(job.batch) >= job.number_ios;
        if shared.over.get() || is_done {
            if connection.follow.is_some() && connection.outstanding.get() > 0 {
                connection.wake.notified().await;
                continue;
            }
            connection.ended.set(true);
            return Ok(());
        }
        let count = connection.may_write(job, shared.pace.is_some());
        if count == 0 {
            connection.wake.notified().await;
            continue;
        }
        let first = connection.next.get();
        let slots = first..first + count;
        let mut slot = first;
        let newest = connection.newest.get();
        let (bytes, range) = connection.requests.borrow_mut().take(slots, newest, |request| {
            let index = connection.issued.get();
            let nth = index * job.numjobs as u64 + connection.number;
            let due = shared.pace.map_or(now, |pace| pace.due(nth));
            let what = Answered {
                requests: 1,
                direction: request.direction,
                messages: request.messages,
                bytes: request.bytes,
                due,
                written: now,
            };
            connection.slots.borrow_mut()[slot] = Slot { busy: true, follow: 0, what };
            connection.issued.set(index + 1);
            slot += 1;
        });
        connection.outstanding.set(connection.outstanding.get() + count);
        connection.next.set((first + count) % job.iodepth);
        let (result, bytes) = connection.stream.write_all(bytes.slice(range)).await;
        result?;
        connection.requests.borrow_mut().give_back(bytes.into_inner());
        if let Some(pause) = &mut pause {
            pause.wait_until(Instant::now() + job.thinktime).await?;
        }
    }
}

async fn read(shared: Rc<Shared>, connection: Rc<Connection>, live: Arc<Live>) -> io::Result<()> {
    let job = &shared.job;
    let mut receiver = Receiver::new(Rc::clone(&connection.stream), job.numjobs);
    let mut answers = Answers::default();
    let offsets = job.load == Load::Mixed;
    loop {
        let mut strange = None;
        let mut got = 0;
        let mut now = None;
        // Answers to one write that come together are counted together: the tool shares a CPU with nobody, but
        // it must not be what a fast server waits for.
        let mut alike: Option<Answered> = None;
        receiver
            .receive(|frame| {
                let now = *now.get_or_insert_with(Instant::now);
                let mut slots = connection.slots.borrow_mut();
                let direction =
                    |slot: usize| slots.get(slot).filter(|slot: &&Slot| slot.busy).map(|slot| slot.what.direction);
                let Some(answer) = answers.read(frame, direction, offsets) else {
                    strange = Some("the server sent what is no answer to a request of ours".to_owned());
                    return;
                };
                let slot = &mut slots[answer.opaque];
                if let Some(pulled) = answer.pulled.filter(|_| slot.follow == 0) {
                    (slot.what.messages, slot.what.bytes) = pulled;
                }
                if slot.follow > 0 {
                    slot.follow -= 1;
                } else if let Some(follow) = connection.follow.as_ref().filter(|_| answer.refusal.is_none()) {
                    let mut following = connection.following.borrow_mut();
                    match follow.borrow_mut().push(answer.opaque, frame, &mut following) {
                        Ok(count) => slot.follow = count,
                        Err(error) => strange = Some(error),
                    }
                }
                if slot.follow > 0 {
                    // What is refused in between counts as an error, once.
                    if let Some(text) = answer.refusal {
                        connection.stats.borrow_mut().refused(|| text);
                    }
                    return;
                }
                got += 1;
                slot.busy = false;
                let what = slot.what;
                if let Some(text) = answer.refusal {
                    connection.stats.borrow_mut().refused(|| text);
                } else if job.load != Load::Pop || what.messages > 0 {
                    let joined = alike.as_mut().is_some_and(|alike| alike.join(&what));
                    if !joined && let Some(before) = alike.replace(what) {
                        connection.stats.borrow_mut().answered(&before, now, &live);
                    }
                }
                if let Some(offset) = answer.offset {
                    match (job.load, what.direction) {
                        (Load::ColdRead, _) => connection.requests.borrow_mut().go_on_at(offset),
                        (Load::Mixed, Direction::Write) => connection.newest.set(offset),
                        _ => {}
                    }
                }
            })
            .await?;
        if let Some((last, now)) = alike.zip(now) {
            connection.stats.borrow_mut().answered(&last, now, &live);
        }
        if let Some(text) = strange {
            return Err(io::Error::other(text));
        }
        connection.outstanding.set(connection.outstanding.get() - got);
        if connection.ended.get() {
            shared.changed.notify_one();
        } else if got > 0 || !connection.following.borrow().is_empty() {
            connection.wake.notify_one();
        }
    }
}

/// Releases requests as they fall due, dealt to the connections in turn.
async fn keep_pace(shared: Rc<Shared>, pace: Pace, connections: Vec<Rc<Connection>>) -> io::Result<()> {
    let mut timer = Timer::new()?;
    let (count, mut released) = (connections.len() as u64, 0);
    while !shared.over.get() {
        let now = Instant::now();
        let due = pace.released(now);
        if due > released {
            // Request i belongs to connection i modulo their count: at most one round wakes each once.
            for index in released..due.min(released + count) {
                let number = index % count;
                let connection = &connections[number as usize];
                connection.released.set((due - number).div_ceil(count));
                connection.wake.notify_one();
            }
            released = due;
        }
        timer.wait_until(pace.due(released)).await?;
    }
    Ok(())
}

async fn create(client: &Client, job: &Job, name: &str) -> io::Result<()> {
    let mut command = Command::request(request::UPDATE_AND_CREATE_TOPIC);
    CreateTopic {
        topic: name,
        default_topic: "TBW102",
        read_queue_nums: job.queues as i32,
        write_queue_nums: job.queues as i32,
        perm: 6,
        topic_filter_type: "SINGLE_TAG",
        ..CreateTopic::default()
    }
    .push(&mut command.header.fields);
    let answer = client.call(command, ASK).await.map_err(io::Error::other)?;
    if answer.header.code == response::SUCCESS {
        return Ok(());
    }
    Err(io::Error::other(format!("creating {name}: {} {}", answer.header.code, answer.header.remark)))
}

/// What connection `number` reads: `consume` the newest messages of one queue, `coldread` all of several.
async fn cursors(client: &Client, job: &Job, number: usize) -> io::Result<Vec<Cursor>> {
    let all = job.topics * job.queues;
    let queues: Vec<u32> = match job.load {
        Load::Produce | Load::Mixed | Load::Pop => return Ok(Vec::new()),
        Load::Consume => vec![number as u32 % all],
        Load::ColdRead => (number as u32 % all..all).step_by(job.numjobs).collect(),
    };
    let mut cursors = Vec::new();
    for queue in queues {
        let end = offset(client, job, queue, request::GET_MAX_OFFSET).await?;
        let first = match job.load {
            Load::Consume => (end - i64::try_from(job.span).unwrap_or(i64::MAX)).max(0),
            _ => offset(client, job, queue, request::GET_MIN_OFFSET).await?,
        };
        if first < end {
            cursors.push(Cursor { queue, first, end });
        }
    }
    if cursors.is_empty() {
        let queue = number as u32 % job.queues;
        return Err(io::Error::other(format!("queue {queue} of {} is empty: send to it first", job.topic)));
    }
    Ok(cursors)
}

async fn offset(client: &Client, job: &Job, queue: u32, code: i32) -> io::Result<i64> {
    let topic = topic(job, queue / job.queues);
    let mut command = Command::request(code);
    QueueOf { topic: &topic, queue_id: (queue % job.queues) as i32, committed: None }.push(&mut command.header.fields);
    let answer = client.call(command, ASK).await.map_err(io::Error::other)?;
    let wrong = |error: String| io::Error::other(format!("the offsets of {topic}: {error}"));
    if answer.header.code != response::SUCCESS {
        return Err(wrong(format!("{} {}", answer.header.code, answer.header.remark)));
    }
    OffsetAnswer::parse(&answer.header.fields).map(|answer| answer.offset).map_err(|error| wrong(error.to_string()))
}

impl Connection {
    fn new(
        number: usize,
        stream: Rc<TcpStream>,
        requests: Requests,
        stats: Rc<RefCell<Stats>>,
        job: &Job,
    ) -> Connection {
        let now = Instant::now();
        let what = Answered { requests: 1, direction: Direction::Write, messages: 0, bytes: 0, due: now, written: now };
        Connection {
            number: number as u64,
            stream,
            slots: RefCell::new(vec![Slot { busy: false, follow: 0, what }; job.iodepth]),
            requests: RefCell::new(requests),
            stats,
            follow: Follow::of(job, GROUP).map(RefCell::new),
            following: RefCell::default(),
            next: Cell::new(0),
            outstanding: Cell::new(0),
            issued: Cell::new(0),
            released: Cell::new(0),
            newest: Cell::new(-1),
            wake: Notify::new(),
            ended: Cell::new(false),
        }
    }

    /// How many requests may be written now: free slots in a row, as far as requests are due.
    fn may_write(&self, job: &Job, is_open: bool) -> usize {
        let free = job.iodepth - self.outstanding.get();
        if free == 0 || (!is_open && free < job.complete) {
            return 0;
        }
        let slots = self.slots.borrow();
        let row = slots[self.next.get()..].iter().take_while(|slot| !slot.busy).count();
        let mut most = u64::MAX;
        if is_open {
            most = self.released.get() - self.issued.get();
        }
        if job.number_ios > 0 {
            most = most.min(job.number_ios.div_ceil(u64::from(job.batch)) - self.issued.get());
        }
        row.min(usize::try_from(most).unwrap_or(usize::MAX))
    }
}

impl Shared {
    /// The first failure counts.
    fn fail(&self, text: String) {
        self.failure.borrow_mut().get_or_insert(text);
        self.changed.notify_one();
    }
}
