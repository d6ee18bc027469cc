//! Goal: whatever the broker acknowledged survives `kill -9`. Method: the real binary under load from many
//! connections, killed at random moments, started again on the same directory, and compared with what it
//! had promised; small segments, so that they roll and are recycled on the way. Repeat: `SEED=17`.
//!
//! | promise | how it is seen |
//! | --- | --- |
//! | an acknowledged message is whole, at the queue offset of its answer | every queue is pulled |
//! | queue offsets have no holes and come once | likewise |
//! | a message is stored once, a batch whole or not at all, a refused one never | ids in the bodies |
//! | a consumer offset does not go back beyond the coalescing window | code 14 after the start |
//! | an acknowledged send-back is delivered, once | the retry queue is pulled |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol::codes::{request, response};
use tests::PATIENCE;
use tests::client::Client;
use tests::random::{Random, seed};
use tests::server::Server;
use tests::words::{
    asking, commit, committed, create_topic, edge, field, heartbeat, messages, number, pull, pull_waiting, send,
    send_batch,
};

/// Kills in the usual form of the test.
const ROUNDS: u64 = 20;
/// In the long form.
const ROUNDS_SOAK: u64 = 400;
/// Connections that send at the same time.
const SENDERS: u64 = 12;
/// Topics that live through all rounds; each round adds one of its own.
const TOPICS: usize = 3;
const QUEUES: i32 = 4;
/// Offsets are facts once a second; the rest is a slow machine's.
const WINDOW: Duration = Duration::from_millis(2_500);
/// Messages of a queue that are acknowledged count for at most so much of that, since those before: while machine or disk
/// stand still nothing becomes a fact, and commits are answered all the same.
const STEP_MAX: Duration = Duration::from_millis(50);
const GROUP: &str = "g";
const RETRY_TOPIC: &str = "%RETRY%g";
/// What both logs keep together: some of the smallest segments, so that all rounds use them again.
const RETENTION_BYTES: u64 = 512 << 20;
/// What one connection sends in a round before it becomes modest, so that nothing of the last round is
/// retired in the next one.
const SENDER_BYTES: usize = 8 << 20;
/// Every so many rounds everything is pulled; otherwise only what is new.
const WHOLE_EVERY: u64 = 6;

/// A message's number: round, sender and count.
type Id = u64;

fn id(round: u64, sender: u64, count: u64) -> Id {
    round << 40 | sender << 32 | count
}

/// Set in the numbers of modest messages.
const MODEST: Id = 1 << 31;

/// What belongs to a number: mostly about 1 KiB, sometimes much more.
fn body(id: Id) -> Vec<u8> {
    let mut random = Random::new(id);
    let bytes = match random.below(200) {
        _ if id & MODEST != 0 => 8 + random.below(100),
        0 => 300_000 + random.below(300_000),
        1..8 => 8 + random.below(40_000),
        _ => 8 + random.below(1_500),
    };
    let mut body = vec![0; bytes as usize];
    random.fill(&mut body);
    body[..8].copy_from_slice(&id.to_be_bytes());
    body
}

fn id_of(body: &[u8]) -> Id {
    Id::from_be_bytes(*body.first_chunk().expect("our bodies begin with a number"))
}

/// A queue, by its topic's place in `Ledger::topics`.
type Queue = (usize, i32);

/// What became of one send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// No answer: it may be there or not, as a whole.
    Unknown,
    /// The queue offset of its first message.
    Stored(i64),
    /// It must not be there.
    Refused(i32),
}

/// One send of one message or several with consecutive numbers.
#[derive(Clone, Copy, Debug)]
struct Sent {
    queue: Queue,
    first: Id,
    count: u64,
    fate: Fate,
}

/// How many sends were acknowledged, of each queue of the topics that live through all rounds. A queue's messages and
/// its consumer offsets are in one log.
type Acknowledged = [[AtomicU64; QUEUES as usize]; TOPICS];

/// One connection's sends until it breaks: up to `window` unanswered at a time.
fn send_until_cut(
    address: SocketAddr,
    topics: &[String],
    acknowledged: &Acknowledged,
    round: u64,
    sender: u64,
    seed: u64,
) -> Vec<Sent> {
    let mut random = Random::new(seed ^ id(round, sender, 0));
    let mut client = Client::connect(address);
    let mut window = 1 + random.below(16) as usize;
    let mut left = SENDER_BYTES;
    let mut sent: Vec<Sent> = Vec::new();
    let mut open = HashMap::new();
    let mut count = 0;
    loop {
        if left == 0 && count & MODEST == 0 {
            (count, window) = (MODEST, 1);
        }
        while open.len() < window {
            // The newest topic was not made before: the first sends to it make it.
            let topic = if random.below(8) == 0 { topics.len() - 1 } else { random.below(TOPICS as u64) as usize };
            let queue = (topic, random.below(QUEUES as u64) as i32);
            let first = id(round, sender, count);
            let many = if random.below(4) == 0 { 1 + random.below(8) } else { 1 };
            count += many;
            let command = if many == 1 && random.below(4) > 0 {
                send(&topics[topic], queue.1, &body(first))
            } else {
                let bodies: Vec<Vec<u8>> = (first..first + many).map(body).collect();
                send_batch(&topics[topic], queue.1, &bodies)
            };
            sent.push(Sent { queue, first, count: many, fate: Fate::Unknown });
            left = left.saturating_sub(command.body.len());
            match client.try_write(command) {
                Ok(opaque) => drop(open.insert(opaque, sent.len() - 1)),
                Err(_) => return sent,
            }
        }
        let Ok(Some(answer)) = client.try_read() else { return sent };
        let index = open.remove(&answer.header.opaque).expect("answers belong to requests, and come once");
        sent[index].fate = match answer.header.code {
            response::SUCCESS => Fate::Stored(number(&answer, "queueOffset")),
            code => Fate::Refused(code),
        };
        if answer.header.code == response::SUCCESS {
            assert_eq!(number(&answer, "queueId"), i64::from(sent[index].queue.1));
            assert_eq!(field(&answer, "msgId").split(',').count() as u64, sent[index].count);
            let (topic, queue) = sent[index].queue;
            if let Some(counts) = acknowledged.get(topic) {
                counts[queue as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A commit that was sent: what, and when it was answered, by its queue's clock.
type Commit = (Queue, i64, Option<Duration>);

/// A queue's time. It goes on by at most `STEP_MAX` whenever messages of the queue were acknowledged.
#[derive(Clone, Copy)]
struct Clock {
    passed: Duration,
    before: Instant,
    acknowledged: u64,
}

impl Clock {
    fn look(&mut self, acknowledged: u64) -> Duration {
        if acknowledged > self.acknowledged {
            let now = Instant::now();
            self.passed += (now - self.before).min(STEP_MAX);
            (self.before, self.acknowledged) = (now, acknowledged);
        }
        self.passed
    }
}

/// Commits ever higher offsets until the connection breaks.
fn commit_until_cut(
    address: SocketAddr,
    topics: &[String],
    acknowledged: &Acknowledged,
    mut next: i64,
    seed: u64,
) -> Vec<Commit> {
    let mut random = Random::new(seed);
    let mut client = Client::connect(address);
    let mut done = Vec::new();
    let clock = Clock { passed: Duration::ZERO, before: Instant::now(), acknowledged: 0 };
    let mut clocks = [[clock; QUEUES as usize]; TOPICS];
    loop {
        let queue = (random.below(TOPICS as u64) as usize, random.below(QUEUES as u64) as i32);
        next += 1;
        done.push((queue, next, None));
        let Ok(opaque) = client.try_write(commit(GROUP, &topics[queue.0], queue.1, next)) else { return done };
        let Ok(Some(answer)) = client.try_read() else { return done };
        assert_eq!(answer.header.opaque, opaque);
        if answer.header.code == response::SERVICE_NOT_AVAILABLE {
            // It stops: this one is not taken.
            done.pop();
            return done;
        }
        assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
        let (topic, index) = (queue.0, queue.1 as usize);
        let now = clocks[topic][index].look(acknowledged[topic][index].load(Ordering::Relaxed));
        done.last_mut().expect("it was pushed").2 = Some(now);
    }
}

/// Sends messages back, each once, until the connection breaks or there is none. Returns their numbers, and
/// whether it was answered.
fn send_back_until_cut(address: SocketAddr, topics: &[String], victims: &[Victim]) -> Vec<(Id, bool)> {
    let mut client = Client::connect(address);
    let mut done = Vec::new();
    for Victim { id, position, queue, offset } in victims {
        let position = position.to_string();
        let fields = [("offset", &*position), ("group", GROUP), ("delayLevel", "1")];
        done.push((*id, false));
        if client.try_write(asking(request::CONSUMER_SEND_MSG_BACK, &fields)).is_err() {
            break;
        }
        let Ok(Some(answer)) = client.try_read() else { break };
        if answer.header.code == response::SYSTEM_ERROR {
            // Retention took it since it was found. Then it is none of its queue's any more.
            let fields = [("topic", &*topics[queue.0]), ("queueId", &*queue.1.to_string())];
            let give_up = Instant::now() + PATIENCE;
            // Where a queue begins is known a while after its oldest messages are gone.
            loop {
                if client.try_write(asking(request::GET_MIN_OFFSET, &fields)).is_err() {
                    return done;
                }
                let Ok(Some(edge)) = client.try_read() else { return done };
                if edge.header.code != response::SUCCESS || *offset < number(&edge, "offset") {
                    break;
                }
                assert!(Instant::now() < give_up, "{answer:?}, but offset {offset} of {queue:?} is there");
            }
            continue;
        }
        // One that stops may refuse it, and a log that waits for its next segment.
        let codes = [response::SUCCESS, response::SERVICE_NOT_AVAILABLE, response::SYSTEM_BUSY];
        assert!(codes.contains(&answer.header.code), "{answer:?}");
        done.last_mut().expect("it was pushed").1 = answer.header.code == response::SUCCESS;
    }
    done
}

/// A message that is to be sent back.
struct Victim {
    id: Id,
    position: i64,
    queue: Queue,
    offset: i64,
}

/// Everything that was promised.
#[derive(Default)]
struct Ledger {
    topics: Vec<String>,
    /// Of each queue: which message is at which offset.
    promised: BTreeMap<Queue, BTreeMap<i64, Id>>,
    /// Everything found so far, and where.
    found: HashMap<Id, (Queue, i64)>,
    /// How far each queue was pulled.
    pulled: BTreeMap<Queue, i64>,
    /// Sends without an answer, and refused ones, of the last round.
    unsure: Vec<Sent>,
    /// Of each queue: what the consumer offset is at least, and at most.
    offsets: BTreeMap<Queue, (i64, i64)>,
    offset_next: i64,
    /// How often a commit became a fact.
    facts: u64,
    /// Some positions of messages, to be sent back.
    victims: Vec<Victim>,
    /// Send-backs: whether each was answered.
    backs: HashMap<Id, bool>,
    /// Those that came again.
    came_back: HashSet<Id>,
    retry_pulled: i64,
    stored: u64,
    stored_bytes: u64,
    refused: u64,
}

impl Ledger {
    fn take(&mut self, sent: Vec<Sent>) {
        for sent in sent {
            match sent.fate {
                Fate::Stored(offset) => {
                    let queue = self.promised.entry(sent.queue).or_default();
                    for step in 0..sent.count {
                        let twice = queue.insert(offset + step as i64, sent.first + step);
                        assert_eq!(twice, None, "offset {offset} + {step} of {:?} was promised twice", sent.queue);
                        self.stored += 1;
                        self.stored_bytes += body(sent.first + step).len() as u64;
                    }
                }
                Fate::Refused(code) => {
                    // Busy, or no service: what a broker says under load. Nothing else is wrong with them.
                    assert!(matches!(code, response::SYSTEM_BUSY | response::SERVICE_NOT_AVAILABLE), "{code}");
                    self.refused += 1;
                    self.unsure.push(sent);
                }
                Fate::Unknown => self.unsure.push(sent),
            }
        }
    }

    /// What was answered so long before its queue's last answer is a fact.
    fn take_commits(&mut self, commits: &[Commit], window: Duration) {
        let last: BTreeMap<Queue, Duration> =
            commits.iter().filter_map(|(queue, _, answered)| Some((*queue, (*answered)?))).collect();
        for (queue, offset, answered) in commits {
            let (least, most) = self.offsets.entry(*queue).or_default();
            *most = *offset;
            if answered.is_some_and(|at| at + window <= last[queue]) {
                *least = *offset;
                self.facts += 1;
            }
            self.offset_next = self.offset_next.max(*offset);
        }
    }

    /// Compares a queue with what was promised of it.
    fn check_queue(&mut self, client: &mut Client, queue: Queue, whole: bool) {
        let topic = self.topics[queue.0].clone();
        let min = edge(client, request::GET_MIN_OFFSET, &topic, queue.1);
        let mut from = if whole { min } else { self.pulled.get(&queue).copied().unwrap_or(0).max(min) };
        let promised = self.promised.entry(queue).or_default();
        // Retention took those.
        *promised = promised.split_off(&min);
        let (mut offset, mut looked) = (from, 0);
        loop {
            let batch = match next_messages(client, &topic, queue.1, offset) {
                Found::Messages(batch) => batch,
                Found::End => break,
                // Retention took more since.
                Found::Moved(least) => {
                    assert!(least > offset, "{topic} {queue:?} {offset}: on to {least}");
                    *promised = promised.split_off(&least);
                    (from, offset, looked) = (least, least, 0);
                    continue;
                }
            };
            for (at, id, position, is_right) in batch {
                assert_eq!(at, offset, "{topic} {queue:?}: a hole, or an offset twice");
                assert!(is_right, "{topic} {queue:?} {offset}: message {id:x} is not whole");
                if let Some(wanted) = promised.get(&offset) {
                    assert_eq!(id, *wanted, "{topic} {queue:?} {offset}: {id:x} instead of {wanted:x}");
                    looked += 1;
                }
                let twice = self.found.insert(id, (queue, offset));
                assert!(twice.is_none_or(|place| place == (queue, offset)), "{id:x} is at {twice:?} and {offset}");
                let is_new = self.pulled.get(&queue).is_none_or(|pulled| offset >= *pulled);
                if is_new && id.is_multiple_of(97) {
                    self.victims.push(Victim { id, position, queue, offset });
                }
                offset += 1;
            }
        }
        let lost: Vec<_> =
            promised.range(from..).skip(looked).map(|(offset, id)| format!("{offset}: {id:x}")).collect();
        assert!(lost.is_empty(), "{topic} {queue:?} ends at {offset}; lost: {lost:?}");
        assert_eq!(edge(client, request::GET_MAX_OFFSET, &topic, queue.1), offset);
        self.pulled.insert(queue, offset);
    }

    /// Whether sends that were not answered are there whole or not at all, and refused ones not at all.
    fn check_unsure(&mut self) {
        for sent in self.unsure.drain(..) {
            let there = (sent.first..sent.first + sent.count).filter(|id| self.found.contains_key(id)).count() as u64;
            let is_right = match sent.fate {
                Fate::Refused(_) => there == 0,
                _ => there == 0 || there == sent.count,
            };
            assert!(is_right, "{there} messages of {sent:x?} are there");
        }
    }

    fn check_offsets(&mut self, client: &mut Client) {
        for (queue, (least, most)) in &mut self.offsets {
            let now = committed(client, GROUP, &self.topics[queue.0], queue.1).unwrap_or(0);
            assert!((*least..=*most).contains(&now), "the offset of {queue:?} is {now}, not {least} to {most}");
            // A start wrote it down; only a commit may move it from here.
            (*least, *most) = (now, now);
        }
    }

    /// Reads on in the retry queue. `wait_ms`: for what is not there yet.
    fn check_backs(&mut self, client: &mut Client, wait_ms: i64) {
        loop {
            let answer = client.ask(pull_waiting(RETRY_TOPIC, 0, self.retry_pulled, wait_ms));
            match answer.header.code {
                response::SUCCESS => {}
                response::PULL_NOT_FOUND => return,
                // Retention took what nobody had read.
                response::PULL_OFFSET_MOVED => panic!("unread send-backs are gone: {answer:?}"),
                _ => panic!("{answer:?}"),
            }
            for message in messages(&answer) {
                assert_eq!(message.queue_offset, self.retry_pulled, "a hole, or an offset twice");
                let id = id_of(message.body);
                assert_eq!(message.body, body(id));
                assert_eq!(message.reconsume_times, 1);
                assert!(self.backs.contains_key(&id), "{id:x} was never sent back");
                assert!(self.came_back.insert(id), "{id:x} came back twice");
                self.retry_pulled += 1;
            }
        }
    }
}

/// What comes next in a queue.
enum Found {
    /// Offset, number, position, and whether the body belongs to the number.
    Messages(Vec<(i64, Id, i64, bool)>),
    /// There are no more.
    End,
    /// The queue begins here.
    Moved(i64),
}

fn next_messages(client: &mut Client, topic: &str, queue: i32, offset: i64) -> Found {
    let answer = client.ask(pull(topic, queue, offset));
    match answer.header.code {
        response::SUCCESS => {}
        response::PULL_NOT_FOUND => return Found::End,
        response::PULL_OFFSET_MOVED => return Found::Moved(number(&answer, "nextBeginOffset")),
        _ => panic!("{topic} {queue} at {offset}: {answer:?}"),
    }
    let row = |message: &protocol::StoredMessage<'_>| {
        let id = id_of(message.body);
        (message.queue_offset, id, message.physical_offset, message.body == body(id))
    };
    Found::Messages(messages(&answer).iter().map(row).collect())
}

fn start(home: &Path, cores: &str) -> Server {
    let retention = format!("log.retention_bytes={RETENTION_BYTES}");
    let delays = "broker.message_delay_level=1s 2s 3s 4s";
    // Short ones: two logs that have just let their oldest go still hold most of what retention leaves.
    let segments = "log.segment_bytes=64MiB";
    Server::with_cores(home, cores, &["--flush", "sync", "--set", &retention, "--set", segments, "--set", delays])
}

/// How a life ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// `kill -9`.
    Kill,
    /// SIGTERM: every answer counts, offsets too.
    Stop,
}

/// One life: load, and its end after a while.
fn live_and_die(server: Server, ledger: &mut Ledger, round: u64, seed: u64, life: Duration, end: End) {
    let address = server.address;
    let topics: Arc<[String]> = ledger.topics.clone().into();
    let acknowledged: Arc<Acknowledged> = Arc::default();
    let mut threads = Vec::new();
    for sender in 0..SENDERS {
        let (topics, acknowledged) = (topics.clone(), acknowledged.clone());
        threads.push(thread::spawn(move || send_until_cut(address, &topics, &acknowledged, round, sender, seed)));
    }
    let committer = {
        let (topics, next) = (topics.clone(), ledger.offset_next);
        thread::spawn(move || commit_until_cut(address, &topics, &acknowledged, next, seed ^ round))
    };
    ledger.victims.retain(|victim| !ledger.backs.contains_key(&victim.id));
    let victims = std::mem::take(&mut ledger.victims);
    let returner = {
        let topics = topics.clone();
        thread::spawn(move || send_back_until_cut(address, &topics, &victims))
    };
    // A clock is what decides here; there is nothing to wait for.
    thread::sleep(life);
    let window = match end {
        End::Kill => {
            server.kill();
            WINDOW
        }
        End::Stop => {
            server.stop();
            Duration::ZERO
        }
    };
    for thread in threads {
        ledger.take(thread.join().expect("a sender"));
    }
    ledger.take_commits(&committer.join().expect("the committer"), window);
    ledger.backs.extend(returner.join().expect("the returner"));
}

/// Compares a server that has just started with the ledger.
fn check(server: &Server, ledger: &mut Ledger, whole: bool) {
    let mut client = server.client();
    let queues: Vec<Queue> = (0..ledger.topics.len())
        .filter(|topic| whole || *topic < TOPICS || *topic + 1 == ledger.topics.len())
        .flat_map(|topic| (0..QUEUES).map(move |queue| (topic, queue)))
        .filter(|queue| queue.0 < TOPICS || ledger.promised.contains_key(queue))
        .collect();
    ledger.check_offsets(&mut client);
    for queue in queues {
        ledger.check_queue(&mut client, queue, whole);
    }
    ledger.check_unsure();
    ledger.check_backs(&mut client, 0);
}

/// Lives one after the other on one directory, each compared with all that was promised before.
fn run(rounds: u64, end: End) {
    let seed = seed();
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let mut ledger = Ledger { topics: (0..TOPICS).map(|n| format!("crash-{n}")).collect(), ..Ledger::default() };
    // Two cores first: their two logs stay, and one core may run both.
    let mut server = start(home.path(), "2");
    {
        let mut client = server.client();
        for topic in &ledger.topics {
            client.expect(response::SUCCESS, create_topic(topic, QUEUES as u32));
        }
        let topics: Vec<&str> = ledger.topics.iter().map(String::as_str).collect();
        client.expect(response::SUCCESS, heartbeat("c", GROUP, &topics));
    }
    // Where the disk is slow hardly a commit becomes a fact: then more of the long lives.
    let (mut round, most) = (0, rounds + 5);
    while round < rounds || ledger.facts == 0 && round < most {
        ledger.topics.push(format!("crash-new-{round}"));
        // Now and then long enough for offsets to be facts; mostly short.
        let is_long = random.below(5) == 0 || round >= rounds;
        let life_ms = if is_long { 3_800 + random.below(600) } else { 10 + random.below(900) };
        live_and_die(server, &mut ledger, round, seed, Duration::from_millis(life_ms), end);
        server = start(home.path(), if random.below(2) == 0 { "1" } else { "2" });
        check(&server, &mut ledger, round % WHOLE_EVERY == 0 || round + 1 >= rounds);
        println!(
            "round {round}: {life_ms} ms, {} stored ({} MiB), {} refused, {} commits are facts, {} sent back, {} came",
            ledger.stored,
            ledger.stored_bytes >> 20,
            ledger.refused,
            ledger.facts,
            ledger.backs.len(),
            ledger.came_back.len()
        );
        round += 1;
    }
    let mut client = server.client();
    let give_up = Instant::now() + PATIENCE;
    loop {
        ledger.check_backs(&mut client, 3_000);
        let missing: Vec<_> =
            ledger.backs.iter().filter(|(id, answered)| **answered && !ledger.came_back.contains(id)).collect();
        if missing.is_empty() {
            break;
        }
        assert!(Instant::now() < give_up, "sent back, acknowledged, never delivered: {missing:x?}");
    }
    let kept = ledger.promised.values().flat_map(BTreeMap::values);
    let kept_bytes: u64 = kept.map(|id| body(*id).len() as u64).sum();
    println!("{} of {} MiB are kept", kept_bytes >> 20, ledger.stored_bytes >> 20);
    assert!(!ledger.came_back.is_empty());
    // Lost is not retired: all but the oldest of what retention leaves is there. Bodies are some two thirds of the log:
    // the rest is headers, blocks that small batches do not fill, and what was sent back.
    assert!(kept_bytes >= ledger.stored_bytes.min(RETENTION_BYTES / 4), "too much is gone");
    server.stop();
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    run(if tests::is_soak() { ROUNDS_SOAK } else { ROUNDS }, End::Kill);
}

#[test]
fn what_was_acknowledged_survives_a_stop_under_load() {
    run(if tests::is_soak() { ROUNDS_SOAK / 10 } else { ROUNDS / 5 }, End::Stop);
}
