//! A broker's core inside this process, with one partition: what tests and benches measure without a binary
//! of its own. Over any kernel: [`core`]; over a real ring, on a thread, for clients: [`Running`]; over a kernel
//! that does everything at once: [`Still`].

use crate::options::Job;
use crate::quiet::{LISTENER, Quiet};
use crate::requests::{Cursor, Requests};
use crate::store;
use broker::catalog::Catalog;
use broker::config::{Config, Found, Settings};
use broker::core::{Core, CoreConfig, Report};
use broker::mail::{Mail, Mailboxes};
use broker::topics::system_topics;
use bytes::Bytes;
use engine::buffer::Region;
use engine::io::{Done, Handle, Io, Op, Tag};
use engine::partition::Partition;
use engine::ring::{Ring, RingConfig};
use engine::wake::Waker;
use protocol::Command;
use protocol::codes::request;
use protocol::headers::CreateTopic;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Memory for batches and the tail, in chunks.
const MEMORY: (usize, usize) = (64, 1 << 20);
/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A core with one partition in `directory`, segments of `segment_bytes`, and the default settings. It serves
/// its door when [`Mail::Serve`] comes.
pub fn core<I: Io>(
    io: I,
    directory: &Path,
    segment_bytes: u64,
    door: Handle,
    port: u16,
    report: Box<dyn FnMut(Report) + Send>,
) -> io::Result<(Core<I>, Mailboxes)> {
    let settings = settings(port);
    let mailboxes = Mailboxes::new(1, settings.limits.mailbox);
    let memory = Region::new(MEMORY.0, MEMORY.1)?;
    let log = store::config(directory, segment_bytes, true, memory, broker::produce::describe);
    let config = CoreConfig {
        index: 0,
        settings,
        partitions: vec![Partition::new(log).map_err(io::Error::other)?],
        mailboxes: mailboxes.clone(),
        doors: vec![(door, false)],
        seed: 1,
        report,
    };
    Ok((Core::new(config, io), mailboxes))
}

fn settings(port: u16) -> Arc<Settings> {
    let found = Found {
        broker_ip1: Ipv4Addr::LOCALHOST,
        port,
        cores: 1,
        partitions: 1,
        memory_bytes: 1 << 34,
        disk_bytes: 1 << 40,
        started_ms: 1,
    };
    Arc::new(Config::default().settings(found))
}

/// The real ring, with its counters shown to another thread.
struct Counted {
    ring: Ring,
    enters: Arc<AtomicU64>,
}

impl Io for Counted {
    fn submit(&mut self, tag: Tag, op: Op) -> Result<(), Op> {
        self.ring.submit(tag, op)
    }

    fn drive(&mut self, wait: Option<Duration>, done: &mut Vec<Done>) {
        self.ring.drive(wait, done);
        self.enters.store(self.ring.counters().enters, Ordering::Relaxed);
    }

    fn wake(&mut self, core: usize) {
        self.ring.wake(core);
    }
}

/// A core on a thread, open for clients. It ends when it is dropped.
pub struct Running {
    /// Where clients come.
    pub address: SocketAddr,
    enters: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts it, and waits until it serves.
    pub fn start(directory: &Path) -> io::Result<Running> {
        let ring = Ring::new(RingConfig { receive_bytes: 64 << 10, ..RingConfig::default() })?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (door, waker) = (ring.adopt(listener.into()), ring.waker());
        let (enters, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let counted = Counted { ring, enters: Arc::clone(&enters) };
        let (tell, topics) = mpsc::channel::<Arc<Catalog>>();
        let report = Box::new(move |report| {
            if let Report::Topics(catalog) = report {
                // Nobody listens once it has started.
                let _ = tell.send(catalog);
            }
        });
        let (core, mailboxes) = core(counted, directory, 256 << 20, door, address.port(), report)?;
        let body = {
            let (ended, mailboxes) = (Arc::clone(&ended), mailboxes.clone());
            move || turn(core, &mailboxes, &ended)
        };
        let thread = Some(std::thread::Builder::new().spawn(body)?);
        let running = Running { address, enters, ended, waker, thread };
        let wanted = system_topics(&settings(address.port()));
        loop {
            let catalog = topics.recv_timeout(PATIENCE).map_err(io::Error::other)?;
            if wanted.iter().all(|topic| catalog.topic(&topic.topic_name).is_some()) {
                break;
            }
        }
        mailboxes.push(0, Mail::Serve).map_err(|_| io::Error::other("a full mailbox"))?;
        running.waker.wake();
        Ok(running)
    }

    /// System calls of its ring so far.
    pub fn enters(&self) -> u64 {
        self.enters.load(Ordering::Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed; whoever used it notices.
            let _ = thread.join();
        }
    }
}

/// A core over the quiet kernel, one topic with eight queues, and connections.
pub struct Still {
    core: Core<Quiet>,
    quiet: Quiet,
    connections: Vec<usize>,
    now_ms: u64,
}

impl Still {
    /// With that many connections. A core that does not open, or makes no topic, is a mistake of ours: it panics.
    pub fn new(connections: usize) -> Still {
        let (quiet, unheard) = (Quiet::default(), Box::new(|_| {}));
        let (core, mailboxes) = core(quiet.clone(), Path::new("unused"), 1 << 30, LISTENER, 10911, unheard)
            .expect("memory for one core, and settings in range");
        let mut still = Still { core, quiet, connections: Vec::new(), now_ms: 1_000_000 };
        assert!(mailboxes.push(0, Mail::Serve).is_ok(), "a new mailbox has room");
        still.turn(3000); // It opens, and makes the system's topics.
        assert!(still.quiet.is_listening(), "it has opened");
        still.connections = (0..connections).map(|_| still.quiet.connect()).collect();
        still.turn(10);
        let mut command = Command::request(request::UPDATE_AND_CREATE_TOPIC);
        CreateTopic {
            topic: &Job::default().topic,
            default_topic: "TBW102",
            read_queue_nums: 8,
            write_queue_nums: 8,
            perm: 6,
            topic_filter_type: "SINGLE_TAG",
            ..CreateTopic::default()
        }
        .push(&mut command.header.fields);
        let answer = still.ask(command.encode());
        let said = String::from_utf8_lossy(&answer);
        assert!(said.get(8..).is_some_and(|said| said.starts_with("{\"code\":0,")), "creating the topic: {said}");
        still
    }

    /// What each connection sends for this job: all of its window. `cursors`: where each pulls, if it does.
    pub fn windows(&self, job: &Job, cursors: &[Cursor]) -> Vec<Bytes> {
        let window = |number: usize| {
            let mut requests = Requests::new(job, number, cursors.get(number).copied().into_iter().collect());
            let (bytes, range) = requests.take(0..job.iodepth, -1, |_| {});
            Bytes::copy_from_slice(&bytes[range])
        };
        (0..self.connections.len()).map(window).collect()
    }

    /// Sends bytes on the first connection and returns all that is answered.
    pub fn ask(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        self.quiet.keep(true);
        self.quiet.feed(self.connections[0], Bytes::from(bytes));
        self.turn(10);
        self.quiet.keep(false);
        self.quiet.take()
    }

    /// Every connection sends its window, and everything is answered: four turns.
    pub fn round(&mut self, windows: &[Bytes]) {
        let before = self.quiet.sent().0;
        for (connection, window) in self.connections.iter().zip(windows) {
            self.quiet.feed(*connection, window.clone());
        }
        self.turn(4);
        assert!(self.quiet.sent().0 - before >= windows.len() as u64, "every connection was answered");
    }

    /// Turns of one simulated millisecond each.
    fn turn(&mut self, count: usize) {
        for _ in 0..count {
            self.now_ms += 1;
            let now_ms = self.now_ms;
            self.core.turn(Some(Duration::ZERO), || now_ms);
        }
    }
}

fn turn(mut core: Core<Counted>, mailboxes: &Mailboxes, ended: &AtomicBool) {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    while !ended.load(Ordering::Relaxed) {
        core.turn(None, clock);
    }
    let mut mail = Some(Mail::Stop);
    while mail.is_some() || core.turn(None, clock) {
        // A full box is emptied by a turn.
        mail = mail.take().and_then(|mail| mailboxes.push(0, mail).err());
        if mail.is_some() {
            core.turn(None, clock);
        }
    }
}
