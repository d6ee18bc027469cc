//! The NameServer on a thread of its own.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use transport::Counters;

use crate::config::Config;
use crate::door::Door;
use crate::kv::{KvFile, KvTable};

/// How long `Handle::stop` waits for the thread. 5 s: what the whole process has after SIGTERM.
const STOP_MAX: Duration = Duration::from_secs(5);

/// What a running NameServer lets others see.
#[derive(Debug, Default)]
pub struct Status {
    /// Connections and requests.
    pub counters: Arc<Counters>,
    brokers: AtomicU64,
    topics: AtomicU64,
}

impl Status {
    /// Broker addresses that are registered now.
    pub fn brokers(&self) -> u64 {
        self.brokers.load(Relaxed)
    }

    /// Topics that have a route now.
    pub fn topics(&self) -> u64 {
        self.topics.load(Relaxed)
    }

    pub(crate) fn show(&self, brokers: usize, topics: usize) {
        self.brokers.store(brokers as u64, Relaxed);
        self.topics.store(topics as u64, Relaxed);
    }
}

/// Starts NameServers.
pub struct Server;

impl Server {
    /// Listens, reads the key-value settings, and starts a thread that serves until it is stopped.
    ///
    /// `Err`: a setting is out of range (names it), an address is in use (names it), the file of
    /// the settings cannot be read or written (names it), or the kernel gives no io_uring (says
    /// what to change).
    pub fn start(config: Config) -> io::Result<Handle> {
        config.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let listeners = config.listen.iter().map(|address| transport::listen(*address));
        let listeners: Vec<_> = listeners.collect::<io::Result<_>>()?;
        let addresses: Vec<_> = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let (kv_file, kv, kv_report) = KvFile::open(&config.kv_path)?;
        if let Some(report) = &kv_report {
            warn!("{report}");
        }
        let status = Arc::new(Status::default());
        let (stop, stopped) = oneshot::channel();
        let (started, ready) = mpsc::channel();
        let (ending, ended) = mpsc::channel::<()>();
        let shop = Shop { port: addresses[0].port(), config, listeners, kv_file, kv, status: status.clone() };
        let thread = std::thread::Builder::new().name("namesrv".into()).spawn(move || {
            // Dropped when the thread ends, whichever way.
            let _ending = ending;
            let stop = async { drop(stopped.await) };
            match transport::run(shop.serve(stop, started.clone())) {
                Ok(served) => served,
                Err(error) => {
                    // Whoever starts us waits for this; the error below is for `join`.
                    let _ = started.send(Err(io::Error::new(error.kind(), error.to_string())));
                    Err(error)
                }
            }
        })?;
        let handle = Handle { addresses, status, kv_report, stop: Some(stop), ended, thread: Some(thread) };
        match ready.recv() {
            Ok(Ok(())) => Ok(handle),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the NameServer's thread died at its start")),
        }
    }
}

/// A running NameServer. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    addresses: Vec<SocketAddr>,
    status: Arc<Status>,
    kv_report: Option<String>,
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Handle {
    /// Where it listens, with the real port: the first address of the configuration.
    pub fn addr(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Where it listens, all addresses.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Its numbers, also after it ended.
    pub fn status(&self) -> &Arc<Status> {
        &self.status
    }

    /// What was wrong with the file of the key-value settings, if it was broken.
    pub fn kv_report(&self) -> Option<&str> {
        self.kv_report.as_deref()
    }

    /// Whether it serves. `false` without `stop` means that it failed: `stop` says why.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops it: no new connections, answers leave, connections close. Returns within 5 s. `Err`:
    /// it had failed before, or did not end in time.
    pub fn stop(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return Ok(()) };
        if self.ended.recv_timeout(STOP_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the NameServer does not stop"));
        }
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the NameServer's thread panicked")))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            warn!(%error, "stopping the NameServer");
        }
    }
}

/// What the thread needs.
struct Shop {
    config: Config,
    port: u16,
    listeners: Vec<TcpListener>,
    kv_file: KvFile,
    kv: KvTable,
    status: Arc<Status>,
}

impl Shop {
    async fn serve(self, stop: impl Future<Output = ()>, started: mpsc::Sender<io::Result<()>>) -> io::Result<()> {
        let Shop { config, port, listeners, kv_file, kv, status } = self;
        let limits = config.server.clone();
        let counters = status.counters.clone();
        let scan_interval = Duration::from_millis(config.scan_interval_ms);
        let door = Rc::new(Door::new(config, port, kv_file, kv, status));
        let server = transport::Server::new(listeners, door.clone(), limits, counters).map_err(io::Error::other)?;
        let scan = tokio_uring::spawn(scan(door, scan_interval));
        // The starter may have given up; then the stop signal is there too.
        let _ = started.send(Ok(()));
        info!(port, "the NameServer is ready");
        let served = server.serve(stop).await;
        scan.abort();
        info!("the NameServer has stopped");
        served
    }
}

/// Removes brokers that gave no sign of life, at each interval.
async fn scan(door: Rc<Door>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        door.expire();
    }
}
