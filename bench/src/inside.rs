//! A broker's core inside this process, with one partition: what tests and benches measure without a binary
//! of its own. Over any kernel: [`core`]; over a real ring, on a thread, for clients: [`Running`].

use crate::store;
use broker::catalog::Catalog;
use broker::config::{Config, Found, Settings};
use broker::core::{Core, CoreConfig, Report};
use broker::mail::{Mail, Mailboxes};
use broker::topics::system_topics;
use engine::buffer::Region;
use engine::io::{Done, Handle, Io, Op, Tag};
use engine::partition::Partition;
use engine::ring::{Ring, RingConfig};
use engine::wake::Waker;
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
    let found =
        Found { broker_ip1: Ipv4Addr::LOCALHOST, port, cores: 1, partitions: 1, memory_bytes: 1 << 34, started_ms: 1 };
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
