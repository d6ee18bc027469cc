//! From a configuration to a running process, and to its end.
//!
//! | thread | runs |
//! | --- | --- |
//! | main | this file: signals, what the cores report, registration with NameServers |
//! | `core-N` | one loop over one ring, pinned to its CPU |
//! | `namesrv` | the NameServer, if this process has one |
//!
//! Start: lock, bind, open all partitions, have the system topics, serve, register, say `ready`.
//! Stop: unregister while the cores answer what is durable and shut their partitions.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::buffer::{BLOCK, Region};
use engine::io::Handle;
use engine::limits::{Flush as LogFlush, LogConfig};
use engine::partition::Partition;
use engine::ring::{Disk, Ring, RingConfig};
use engine::wake::Waker;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::call::Request;
use crate::catalog::Catalog;
use crate::config::{Config, Flush, Found, Settings};
use crate::control::{Pace, Registration, Routes};
use crate::core::{Core, CoreConfig, Report};
use crate::home::{Home, PATIENCE};
use crate::host::{self, Doors};
use crate::mail::{Mail, Mailboxes, Routed};
use crate::produce;
use crate::registrar::ROUTES_MAX;
use crate::topics::system_topics;

/// Descriptors that are not for connections: log files, rings, listeners, the NameServer's.
const FILES_RESERVED: u64 = 1_024;
/// What cores said and the main thread has not heard. 4,096: a core says a word at start and at the end,
/// and one for each log that closes, at most every second.
const WORDS_MAX: usize = 4_096;
/// A core's memory is cut into at least so many chunks for each of its logs: some under way, some read.
const CHUNKS_PER_LOG: usize = 16;
/// A smaller chunk would hold no useful batch. 64 KiB, the least of `log.batch_bytes`.
const CHUNK_BYTES_MIN: usize = 64 << 10;
/// A full mailbox is looked at again so soon; there is no event for room in it.
const MAILBOX_PAUSE: Duration = Duration::from_millis(1);
/// NameServers are asked for a route no longer than this: a stock client that is not answered within a second or two closes
/// its connection, and what else waits on it is lost to it.
const ROUTE_PATIENCE: Duration = Duration::from_millis(700);
/// How often a start that takes long says how far it is.
const PATIENCE_INTERVAL: Duration = Duration::from_secs(1);
/// A wait that is bounded is counted in steps of this length.
const WITHIN_STEP: Duration = Duration::from_millis(100);
/// How long the NameServer's connections have for their last answers.
const NAMESRV_STOP: Duration = Duration::from_millis(300);

/// What the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// It has a NameServer.
    pub namesrv: bool,
    /// It has a broker.
    pub broker: bool,
}

/// Runs until SIGTERM or SIGINT. `Err` says why it could not start, or why it had to stop.
pub fn run(mut config: Config, roles: Roles) -> Result<(), String> {
    let files = host::raise_files();
    let ground = roles.broker.then(|| Ground::take(&config)).transpose()?;
    let namesrv = roles.namesrv.then(|| start_namesrv(&config)).transpose()?;
    if let Some(namesrv) = &namesrv
        && roles.broker
    {
        config.suggest("broker.namesrv", &reachable(namesrv.addr()).to_string());
    }
    info!("the configuration, each value with its source:\n{}", config.effective());
    let broker = ground.map(|ground| Broker::start(&config, ground, files)).transpose()?;
    let stop_timeout = Duration::from_millis(config.number("process.stop_timeout_ms"));
    let ended =
        transport::run(serve(broker, namesrv.as_ref(), &config, stop_timeout)).map_err(|error| error.to_string());
    let stopped = namesrv.map_or(Ok(()), |namesrv| namesrv.stop().map_err(|error| format!("the NameServer: {error}")));
    ended.flatten()?;
    stopped?;
    info!("stopped");
    Ok(())
}

/// The main thread's life, from started threads to stopped ones.
async fn serve(
    mut broker: Option<Broker>,
    namesrv: Option<&namesrv::Handle>,
    config: &Config,
    stop_timeout: Duration,
) -> Result<(), String> {
    let mut stop = Stop::new().map_err(|error| format!("waiting for signals: {error}"))?;
    let mut registration = None;
    if let Some(broker) = &mut broker {
        let opened = tokio::select! {
            opened = broker.opened() => opened.map(|()| true),
            () = stop.asked() => Ok(false),
        };
        if opened? {
            let pace = Pace {
                interval: Duration::from_millis(config.number("broker.register_interval_ms")),
                timeout: Duration::from_millis(config.number("broker.register_timeout_ms")),
            };
            broker.find_routes(pace.timeout.min(ROUTE_PATIENCE));
            broker.post.send(0, Mail::Serve).await;
            let registered = registration.insert(Registration::start(&broker.settings, pace, &broker.catalogs));
            tokio::select! {
                () = registered.tried() => {}
                () = stop.asked() => {}
            }
        }
    }
    if !stop.was_asked {
        say_ready(namesrv.map(namesrv::Handle::addr), broker.as_ref().map(|broker| broker.settings.address()));
    }
    let outcome = tokio::select! {
        () = stop.asked() => Ok(()),
        error = watch_cores(broker.as_mut()) => Err(error),
        error = watch_namesrv(namesrv) => Err(error),
    };
    let Some(mut broker) = broker else { return outcome };
    outcome?;
    info!("stopping");
    let unregister = async {
        if let Some(registration) = registration {
            registration.end().await;
        }
    };
    let (cores, ()) = tokio::join!(within(stop_timeout, broker.stop()), unregister);
    cores.unwrap_or_else(|| Err(format!("the cores did not stop within {} ms", stop_timeout.as_millis())))
}

/// Waits for something, at most so long. `None`: it was not over by then. Time in which the process itself stood still
/// counts as one step, as it does for the cores.
async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    let mut what = std::pin::pin!(what);
    let mut left = limit;
    while !left.is_zero() {
        let step = left.min(WITHIN_STEP);
        if let Ok(over) = timeout(step, what.as_mut()).await {
            return Some(over);
        }
        left -= step;
    }
    None
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
    was_asked: bool,
}

impl Stop {
    fn new() -> io::Result<Stop> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Stop { terminate, interrupt, was_asked: false })
    }

    /// Returns once, and from then on at once, when the process is asked to stop.
    async fn asked(&mut self) {
        if !self.was_asked {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            self.was_asked = true;
        }
    }
}

/// The one line on stdout.
fn say_ready(namesrv: Option<SocketAddr>, broker: Option<String>) {
    let mut line = "ready".to_string();
    if let Some(address) = namesrv {
        line += &format!(" namesrv={address}");
    }
    if let Some(address) = broker {
        line += &format!(" broker={address}");
    }
    info!("{line}");
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
        warn!("nobody reads stdout: {error}");
    }
}

/// Ends when a core does, with the reason.
async fn watch_cores(broker: Option<&mut Broker>) -> String {
    match broker {
        Some(broker) => broker.failed().await,
        None => std::future::pending().await,
    }
}

/// Ends when the NameServer does although nobody stopped it. Its thread has no event to wait for.
async fn watch_namesrv(namesrv: Option<&namesrv::Handle>) -> String {
    let Some(namesrv) = namesrv else { return std::future::pending().await };
    while namesrv.is_running() {
        sleep(PATIENCE_INTERVAL).await;
    }
    "the NameServer has died".into()
}

fn start_namesrv(config: &Config) -> Result<namesrv::Handle, String> {
    let listen = SocketAddr::new(config.address("namesrv.listen"), config.port("namesrv.port"));
    let mut wanted = namesrv::Config::new(listen, config.text("namesrv.kv_path"));
    wanted.scan_interval_ms = config.number("namesrv.scan_interval_ms");
    wanted.broker_timeout_ms = config.number("namesrv.broker_timeout_ms");
    wanted.server.stop_timeout = NAMESRV_STOP;
    namesrv::Server::start(wanted).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => format!("the NameServer (namesrv.port): {error}"),
        _ => format!("the NameServer: {error}"),
    })
}

/// How a process on this host reaches an address that was listened on.
fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        return SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port());
    }
    address
}

/// What a broker stands on. Taken before anything listens: of two processes in one directory the second
/// one should hear of the directory, not of a port.
struct Ground {
    /// One for each core.
    cpus: Vec<usize>,
    home: Home,
    disk: Disk,
}

impl Ground {
    fn take(config: &Config) -> Result<Ground, String> {
        let allowed = host::allowed_cpus()?;
        let cpus = host::place_cores(config.size("engine.cores"), &config.cpus(), &allowed)?;
        let partitions = config.size("engine.partitions_per_core") * cpus.len();
        let partitions = u16::try_from(partitions).expect("the ranges of both keys fit 15 bits");
        let (home, dir) = (Home::open(&config.data_dir(), partitions, PATIENCE)?, config.text("log.dir"));
        if home.partitions() != partitions {
            info!("{dir} was made with {} partitions and keeps them, on {} cores", home.partitions(), cpus.len());
        }
        let disk = home.disk().map_err(|error| format!("asking for the space of {dir}: {error}"))?;
        if !home.is_direct() {
            warn!("{dir} (log.dir) has no O_DIRECT: writes go through the page cache with fdatasync");
        }
        let ground = Ground { cpus, home, disk };
        ground.check_space(config)?;
        Ok(ground)
    }

    /// A log that is new needs its first segment, or it would wait for space and never say ready. One
    /// that exists may well be on a full disk: it refuses sends and is read.
    fn check_space(&self, config: &Config) -> Result<(), String> {
        let is_new = |partition: &u16| !self.home.partition_dir(*partition).exists();
        let new = (0..self.home.partitions()).filter(is_new).count() as u64;
        let (segment, available) = (config.number("log.segment_bytes"), self.disk.available);
        if available < new * segment {
            let dir = config.text("log.dir");
            return Err(format!(
                "{dir} (log.dir) has {available} bytes available, and {new} new logs need {segment} bytes each \
                 (log.segment_bytes)"
            ));
        }
        let least = disk_free_min(config, self.disk);
        if available < least {
            warn!("{available} bytes are available, less than {least} (log.disk_free_…): sends will be refused");
        }
        Ok(())
    }
}

/// What must stay available on the disk, in bytes.
fn disk_free_min(config: &Config, disk: Disk) -> u64 {
    let part = disk.total / 100 * config.number("log.disk_free_percent_min");
    part.max(config.number("log.disk_free_bytes_min"))
}

/// What the main thread hears of a core.
enum Word {
    /// What its loop says.
    Report(Report),
    /// Its thread ends. `Err`: it should not have.
    Ended(usize, Result<(), String>),
}

/// What waits for a route, and of which topic.
type Wanted = (Box<Request>, String);

/// Mail from the main thread.
#[derive(Clone)]
struct Post {
    mailboxes: Mailboxes,
    wakers: Vec<Waker>,
}

impl Post {
    async fn send(&self, core: usize, mut mail: Mail) {
        while let Err(back) = self.mailboxes.push(core, mail) {
            mail = back;
            self.wakers[core].wake();
            sleep(MAILBOX_PAUSE).await;
        }
        self.wakers[core].wake();
    }
}

/// The broker's threads, seen from the main one.
struct Broker {
    settings: Arc<Settings>,
    post: Post,
    words: mpsc::Receiver<Word>,
    routes: mpsc::Receiver<Wanted>,
    catalogs: watch::Receiver<Arc<Catalog>>,
    /// Cores whose partitions are not all open yet.
    opening: usize,
    /// Cores that run.
    running: usize,
    /// Held until the process ends.
    _home: Home,
}

impl Broker {
    /// Takes what the host gives, and starts the cores. `Err` names the setting to change.
    fn start(config: &Config, ground: Ground, files: u64) -> Result<Broker, String> {
        let Ground { cpus, mut home, disk } = ground;
        let cores = cpus.len();
        let doors = Doors::open(
            config.address("broker.listen"),
            config.port("broker.port"),
            config.switch("broker.fast_port"),
        )?;
        if let Some(note) = &doors.note {
            warn!("{note}");
        }
        let mut settings = config.settings(Found {
            broker_ip1: advertised(config)?,
            port: doors.port,
            cores,
            partitions: home.partitions(),
            memory_bytes: host::memory_bytes(),
            disk_bytes: disk.total,
            started_ms: now_ms(),
        });
        limit_connections(&mut settings, files)?;
        let settings = Arc::new(settings);
        let builder = Builder { config, settings: settings.clone(), home: &home, disk };
        let (mut rings, mut logs) = (Vec::new(), Vec::new());
        for core in 0..cores {
            let memory = builder.memory(core)?;
            rings.push(builder.ring(core, &memory)?);
            logs.push(builder.partitions(core, &memory)?);
        }
        let wakers: Vec<Waker> = rings.iter().map(Ring::waker).collect();
        let mailboxes = Mailboxes::new(cores, settings.limits.mailbox);
        home.keep()?;
        let (say, words) = mpsc::channel(WORDS_MAX);
        let (want, routes) = mpsc::channel(ROUTES_MAX);
        let (tell, catalogs) = watch::channel(Arc::new(Catalog::new(seed())));
        let tell = Arc::new(tell);
        let mut doors = Some(doors);
        for (index, (mut ring, partitions)) in rings.into_iter().zip(logs).enumerate() {
            ring.connect(wakers.clone());
            let config = CoreConfig {
                index,
                settings: settings.clone(),
                partitions,
                mailboxes: mailboxes.clone(),
                doors: doors.take().map_or(Vec::new(), |doors| adopt(doors, &ring)),
                seed: seed(),
                report: reporter(index, say.clone(), tell.clone(), want.clone()),
            };
            spawn(config, ring, cpus[index], say.clone())?;
        }
        let post = Post { mailboxes, wakers };
        Ok(Broker { settings, post, words, routes, catalogs, opening: cores, running: cores, _home: home })
    }

    /// Waits until all partitions are open and the system topics are there.
    async fn opened(&mut self) -> Result<(), String> {
        let wanted = system_topics(&self.settings);
        let mut ticks = interval(PATIENCE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            let is_complete = {
                let catalog = self.catalogs.borrow_and_update();
                wanted.iter().all(|topic| catalog.topic(&topic.topic_name).is_some())
            };
            if self.opening == 0 && is_complete {
                return Ok(());
            }
            tokio::select! {
                word = self.words.recv() => self.hear(word, true)?,
                // Fails when all cores have ended: then the line above says so.
                Ok(()) = self.catalogs.changed() => {}
                _ = ticks.tick() => info!("opening the logs: {} of {} cores are not ready", self.opening, self.settings.cores),
            }
        }
    }

    /// Listens until a word says that the broker cannot go on.
    async fn failed(&mut self) -> String {
        loop {
            let word = self.words.recv().await;
            if let Err(error) = self.hear(word, false) {
                return error;
            }
        }
    }

    /// Tells all cores to stop, and waits for them.
    async fn stop(&mut self) -> Result<(), String> {
        for core in 0..self.settings.cores {
            self.post.send(core, Mail::Stop).await;
        }
        while self.running > 0 {
            match self.words.recv().await {
                Some(Word::Ended(core, Err(error))) => return Err(format!("core {core}: {error}")),
                Some(Word::Ended(_, Ok(()))) => self.running -= 1,
                Some(Word::Report(Report::Closed { partition, reason })) => {
                    error!(partition, reason, "a log has closed")
                }
                Some(Word::Report(_)) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// From now on what the registrar wants to know of other brokers is asked of the NameServers.
    fn find_routes(&mut self, patience: Duration) {
        let (_, none) = mpsc::channel(1);
        let mut wanted = std::mem::replace(&mut self.routes, none);
        let routes = Rc::new(Routes::new(&self.settings, patience));
        let post = self.post.clone();
        tokio_uring::spawn(async move {
            while let Some((request, topic)) = wanted.recv().await {
                let (routes, post) = (routes.clone(), post.clone());
                tokio_uring::spawn(async move {
                    let queues = routes.queues(&topic).await;
                    post.send(0, Mail::Routed(Box::new(Routed { request: *request, queues }))).await;
                });
            }
        });
    }

    /// `Err`: the broker cannot start, or not go on.
    fn hear(&mut self, word: Option<Word>, is_starting: bool) -> Result<(), String> {
        match word {
            Some(Word::Report(Report::Opened { core })) => {
                self.opening -= 1;
                debug!(core, "its logs are open");
            }
            Some(Word::Report(Report::Closed { partition, reason })) if is_starting => {
                return Err(format!("partition {partition} cannot be opened: {reason}"));
            }
            Some(Word::Report(Report::Closed { partition, reason })) => error!(partition, reason, "a log has closed"),
            Some(Word::Report(Report::Unreadable(why))) => {
                return Err(format!("the topics and groups in partition 0 cannot be read: {why}"));
            }
            Some(Word::Report(Report::Topics(_) | Report::Route(..) | Report::Stopped { .. })) => {}
            Some(Word::Ended(core, outcome)) => {
                let why = outcome.err().unwrap_or_else(|| "it ended although nobody stopped it".into());
                return Err(format!("core {core}: {why}"));
            }
            None => return Err("all cores have ended".into()),
        }
        Ok(())
    }
}

/// What each core is made from.
struct Builder<'a> {
    config: &'a Config,
    settings: Arc<Settings>,
    home: &'a Home,
    disk: Disk,
}

impl Builder<'_> {
    /// The partitions of a core.
    fn partitions_of(&self, core: usize) -> impl Iterator<Item = u16> + use<'_> {
        (0..self.settings.partitions).filter(move |partition| usize::from(*partition) % self.settings.cores == core)
    }

    /// Memory for a core's batches and tail: `log.tail_bytes` in chunks that each hold a full batch or two,
    /// smaller ones if many logs share it.
    fn memory(&self, core: usize) -> Result<Arc<Region>, String> {
        let bytes = self.config.size("log.tail_bytes");
        let logs = self.partitions_of(core).count().max(1);
        let chunk_bytes = (2 * self.config.size("log.batch_bytes")).min(bytes / (CHUNKS_PER_LOG * logs));
        let chunk_bytes = chunk_bytes / BLOCK * BLOCK;
        if chunk_bytes < CHUNK_BYTES_MIN {
            let least = CHUNK_BYTES_MIN * CHUNKS_PER_LOG * logs;
            return Err(format!("log.tail_bytes = {bytes} must be at least {least} for {logs} logs of one core"));
        }
        Region::new(bytes / chunk_bytes, chunk_bytes)
            .map_err(|error| format!("log.tail_bytes = {bytes}: the memory cannot be had: {error}"))
    }

    fn ring(&self, core: usize, memory: &Arc<Region>) -> Result<Ring, String> {
        let small = |key: &str| u32::try_from(self.config.number(key)).expect("the key's range fits");
        let ring = Ring::new(RingConfig {
            slots: small("engine.ring_slots"),
            entries: small("engine.ring_depth"),
            receive_count: u16::try_from(self.config.number("engine.receive_buffers")).expect("the key's range fits"),
            receive_bytes: small("engine.receive_buffer_bytes"),
            busy_poll: Duration::from_micros(self.config.number("engine.busy_poll_us")),
            regions: vec![memory.clone()],
            kept: Some(self.home.lock()),
        });
        let ring = ring.map_err(|error| format!("core {core}: {error}"))?;
        for note in ring.notes() {
            warn!(core, "{note}");
        }
        Ok(ring)
    }

    fn partitions(&self, core: usize, memory: &Arc<Region>) -> Result<Vec<Partition>, String> {
        let config = self.config;
        let open = |partition: u16| {
            let log = LogConfig {
                directory: self.home.partition_dir(partition),
                partition,
                segment_bytes: config.number("log.segment_bytes"),
                batch_bytes: u32::try_from(config.number("log.batch_bytes")).expect("the key's range fits"),
                inflight_batches: u32::try_from(config.number("log.inflight_batches")).expect("the key's range fits"),
                stretch_bytes: config.number("log.stretch_bytes"),
                flush: match self.settings.flush {
                    Flush::Sync => LogFlush::Sync,
                    Flush::Async => LogFlush::Async { interval_ms: self.settings.flush_interval_ms },
                },
                memory: memory.clone(),
                prepare_bytes: config.number("log.prepare_bytes"),
                prepare_rate: config.number("log.prepare_bytes_per_s"),
                // A log keeps everything until the catalog is known: what was changed at run time outranks the file.
                retention_ms: u64::MAX,
                retention_bytes: u64::MAX,
                compaction_ms: u64::MAX,
                read_bytes_per_s: config.number("log.read_bytes_per_s"),
                disk_free_min: disk_free_min(config, self.disk),
                describe: produce::describe,
                key_of: Some(produce::key_of),
                seed: seed(),
            };
            Partition::new(log).map_err(|error| format!("partition {partition}: {error}"))
        };
        self.partitions_of(core).map(open).collect()
    }
}

/// Runs a core on a thread of its own, pinned to `cpu`. However it ends, the main thread hears it.
fn spawn(config: CoreConfig, ring: Ring, cpu: usize, say: mpsc::Sender<Word>) -> Result<(), String> {
    let index = config.index;
    let body = move || {
        if let Err(error) = affinity::set_thread_affinity([cpu]) {
            warn!("core {index} is not pinned to CPU {cpu}: {error}");
        }
        // Whatever a panic left half-done is not used again: the process ends.
        let ended = catch_unwind(AssertUnwindSafe(|| Core::new(config, ring).run(now_ms)));
        let outcome = ended.map_err(|_| "its thread panicked; see above".to_string());
        // A main thread that is gone hears nothing, and needs nothing any more.
        let _ = say.blocking_send(Word::Ended(index, outcome));
    };
    let thread = std::thread::Builder::new().name(format!("core-{index}")).spawn(body);
    thread.map(drop).map_err(|error| format!("core {index}: no thread: {error}"))
}

/// Hands a core's reports over without ever making it wait. Of the topics only the newest count.
fn reporter(
    core: usize,
    say: mpsc::Sender<Word>,
    tell: Arc<watch::Sender<Arc<Catalog>>>,
    want: mpsc::Sender<Wanted>,
) -> Box<dyn FnMut(Report) + Send> {
    Box::new(move |report| match report {
        Report::Topics(catalog) => drop(tell.send_replace(catalog)),
        Report::Route(request, topic) => {
            // There is room for as many as the registrar lets wait; who stops has no connections any more.
            if want.try_send((request, topic)).is_err() {
                debug!("nobody looks for routes any more");
            }
        }
        other => {
            if let Err(error) = say.try_send(Word::Report(other)) {
                error!(core, %error, "the main thread does not listen");
            }
        }
    })
}

/// Listening sockets, and whether each is the fast port's.
fn adopt(doors: Doors, ring: &Ring) -> Vec<(Handle, bool)> {
    let main = (ring.adopt(doors.main.into()), false);
    let fast = doors.fast.map(|fast| (ring.adopt(fast.into()), true));
    [Some(main), fast].into_iter().flatten().collect()
}

/// The address that clients are told.
fn advertised(config: &Config) -> Result<Ipv4Addr, String> {
    if let Ok(ip) = config.text("broker.ip1").parse() {
        return Ok(ip);
    }
    match config.address("broker.listen") {
        IpAddr::V4(ip) if !ip.is_unspecified() => Ok(ip),
        _ => host::first_ipv4().ok_or_else(|| "this host has no IPv4 address but loopback: set broker.ip1".to_string()),
    }
}

/// No more connections than there are descriptors for.
fn limit_connections(settings: &mut Settings, files: u64) -> Result<(), String> {
    let most = usize::try_from(files.saturating_sub(FILES_RESERVED)).unwrap_or(usize::MAX);
    if most == 0 {
        return Err(format!("RLIMIT_NOFILE is {files}: more than {FILES_RESERVED} open files are needed (ulimit -Hn)"));
    }
    if settings.limits.connections > most {
        warn!(
            "RLIMIT_NOFILE is {files}: {most} connections instead of {} (limits.connections)",
            settings.limits.connections
        );
        settings.limits.connections = most;
    }
    Ok(())
}

/// Milliseconds since 1970. The logic gets the time from here and from the loops only.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A random number from the system, which the standard library's hash maps ask for.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn a_wait_does_not_count_time_in_which_the_process_stood_still() {
        let limit = WITHIN_STEP * 3;
        let stands_still = async {
            std::thread::sleep(limit * 2);
            sleep(WITHIN_STEP / 2).await;
        };
        let never = std::future::pending::<()>();
        let waits = async { (within(limit, stands_still).await, within(limit, never).await) };
        assert_eq!(transport::run(waits).unwrap(), (Some(()), None));
    }

    #[test]
    fn clients_are_told_an_address_that_reaches_us() {
        let mut config = Config::default();
        config.set("broker.listen", "127.0.0.1", Source::CommandLine).unwrap();
        assert_eq!(advertised(&config), Ok(Ipv4Addr::LOCALHOST));
        config.set("broker.ip1", "10.1.2.3", Source::CommandLine).unwrap();
        assert_eq!(advertised(&config), Ok(Ipv4Addr::new(10, 1, 2, 3)));
        let any: SocketAddr = "0.0.0.0:9876".parse().unwrap();
        assert_eq!(reachable(any).to_string(), "127.0.0.1:9876");
        assert_eq!(reachable("10.0.0.1:1".parse().unwrap()).to_string(), "10.0.0.1:1");
    }

    #[test]
    fn connections_fit_the_descriptors() {
        let found = Found {
            broker_ip1: Ipv4Addr::LOCALHOST,
            port: 1,
            cores: 1,
            partitions: 1,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 40,
            started_ms: 0,
        };
        let mut settings = Config::default().settings(found);
        let wanted = settings.limits.connections;
        limit_connections(&mut settings, 1 << 20).unwrap();
        assert_eq!(settings.limits.connections, wanted);
        limit_connections(&mut settings, FILES_RESERVED + 100).unwrap();
        assert_eq!(settings.limits.connections, 100);
        assert!(limit_connections(&mut settings, FILES_RESERVED).unwrap_err().contains("RLIMIT_NOFILE"));
    }
}
