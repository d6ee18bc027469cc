//! Keeping the broker registered with every NameServer. Runs on the control thread.
//!
//! Each NameServer has a task of its own, so that a dead one delays nobody: the whole table at start,
//! at each change of topics, at every interval, and as soon as a broken connection is noticed (a
//! NameServer that restarted knows nothing). PROTOCOL 5.1.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use protocol::Command;
use protocol::bodies::{
    self, DataVersion, MessageQueue, RegisterBrokerBody, TopicConfig, TopicConfigTable, TopicRouteData,
};
use protocol::codes::{request, response};
use protocol::headers::{BrokerOf, GetRoute, RegisterBroker};
use protocol::message::body_crc;
use protocol::names::{self, perm};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};
use transport::{Client, ClientLimits};

use crate::catalog::{Catalog, Topic};
use crate::config::Settings;

/// After a failed try, and between two looks at a connection. 1 s: a NameServer that comes back has
/// its routes before clients give up on it.
const RETRY: Duration = Duration::from_secs(1);
/// How long one NameServer may take to forget us when we stop; the process has 5 s for everything.
const UNREGISTER_TIMEOUT: Duration = Duration::from_millis(1_500);
/// A body longer than this is sent compressed: a frame holds 16 MiB, about 100,000 topics as JSON.
const PLAIN_BYTES_MAX: usize = 8 << 20;
/// Most queues that are taken from a route. 100,000: an answer with as many fits a frame.
const ROUTE_QUEUES_MAX: usize = 100_000;

/// How often, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Between two registrations without a reason.
    pub interval: Duration,
    /// How long a NameServer may take to answer.
    pub timeout: Duration,
}

/// The broker's registration with all its NameServers. Ends with [`end`](Registration::end).
#[derive(Debug)]
pub struct Registration {
    tried: Vec<oneshot::Receiver<()>>,
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

impl Registration {
    /// Starts one task for each of `settings.namesrv`, on this thread's tokio-uring runtime.
    ///
    /// - `catalogs`: the topics; whoever changes them sends the next catalog there. The first one must
    ///   have the system topics: a NameServer takes a table of one topic for part of one.
    pub fn start(settings: &Arc<Settings>, pace: Pace, catalogs: &watch::Receiver<Arc<Catalog>>) -> Registration {
        let (stop, stopped) = watch::channel(false);
        let (mut tried, mut tasks) = (Vec::new(), Vec::new());
        for server in &settings.namesrv {
            let (first, seen) = oneshot::channel();
            let task = Task {
                client: Client::new(server, ClientLimits::default()),
                settings: settings.clone(),
                pace,
                catalogs: catalogs.clone(),
                stop: stopped.clone(),
                was_good: None,
            };
            tasks.push(tokio_uring::spawn(task.run(first)));
            tried.push(seen);
        }
        Registration { tried, tasks, stop }
    }

    /// Waits until every NameServer has been tried once.
    pub async fn tried(&mut self) {
        for first in self.tried.drain(..) {
            // A task that has ended has tried, or was told to stop.
            let _ = first.await;
        }
    }

    /// Unregisters everywhere, and waits for that as long as it is worth it.
    pub async fn end(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            if timeout(2 * UNREGISTER_TIMEOUT, task).await.is_err() {
                warn!("a NameServer was not told that this broker stops");
            }
        }
    }
}

/// What the NameServers know of topics.
pub struct Routes {
    clients: Vec<Client>,
    patience: Duration,
}

impl Routes {
    /// From these NameServers, which together may take so long to answer.
    pub fn new(settings: &Settings, patience: Duration) -> Routes {
        let client = |server: &String| Client::new(server, ClientLimits::default());
        Routes { clients: settings.namesrv.iter().map(client).collect(), patience }
    }

    /// A topic's queues on all brokers that may be read, as the first NameServer tells that knows it. `None`: no
    /// NameServer answers in time.
    pub async fn queues(&self, topic: &str) -> Option<Vec<MessageQueue>> {
        let mut found = None;
        let until = Instant::now() + self.patience;
        for client in &self.clients {
            let mut command = Command::request(request::GET_ROUTEINFO_BY_TOPIC);
            GetRoute { topic, accept_standard_json_only: true }.push(&mut command.header.fields);
            let Ok(answer) = client.call(command, until.saturating_duration_since(Instant::now())).await else {
                continue;
            };
            match answer.header.code {
                response::SUCCESS => match bodies::decode::<TopicRouteData>(&answer.body) {
                    Ok(route) => return Some(queues_of(topic, &route)),
                    Err(error) => warn!(server = client.target(), %error, "a route cannot be read"),
                },
                response::TOPIC_NOT_EXIST => found = Some(Vec::new()),
                code => warn!(server = client.target(), code, "a route was refused"),
            }
        }
        found
    }
}

fn queues_of(topic: &str, route: &TopicRouteData) -> Vec<MessageQueue> {
    let readable = route.queue_datas.iter().filter(|data| perm::readable(data.perm));
    let queues = readable.flat_map(|data| (0..data.read_queue_nums).map(move |queue| (&data.broker_name, queue)));
    let queue = |(broker, queue_id): (&String, i32)| MessageQueue {
        broker_name: broker.clone(),
        queue_id,
        topic: topic.to_owned(),
    };
    queues.take(ROUTE_QUEUES_MAX).map(queue).collect()
}

/// One NameServer.
struct Task {
    client: Client,
    settings: Arc<Settings>,
    pace: Pace,
    catalogs: watch::Receiver<Arc<Catalog>>,
    stop: watch::Receiver<bool>,
    /// How the last try went; it is said when that changes.
    was_good: Option<bool>,
}

impl Task {
    async fn run(mut self, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        loop {
            let catalog = self.catalogs.borrow_and_update().clone();
            let command = registration(&catalog.settings(&self.settings), &catalog);
            let mut stop = self.stop.clone();
            let answer = tokio::select! {
                answer = ask(&self.client, command, self.pace.timeout) => answer,
                _ = stop.wait_for(|stop| *stop) => break,
            };
            let is_good = answer.is_ok();
            self.tell(answer);
            if let Some(first) = first.take() {
                // Nobody may wait for it.
                let _ = first.send(());
            }
            if !self.rest(is_good).await {
                break;
            }
        }
        if self.was_good == Some(true) {
            let answer = ask(&self.client, unregistration(&self.settings), UNREGISTER_TIMEOUT).await;
            let server = self.client.target();
            match answer {
                Ok(()) => info!(server, "unregistered"),
                Err(error) => warn!(server, error, "unregistering"),
            }
        }
        self.client.disconnect();
    }

    /// Waits for the next reason to register. `false`: it is time to stop.
    async fn rest(&mut self, is_good: bool) -> bool {
        let now = Instant::now();
        let due = now + if is_good { self.pace.interval } else { RETRY };
        let mut look = now + RETRY;
        loop {
            tokio::select! {
                changed = self.catalogs.changed() => return changed.is_ok(),
                _ = self.stop.wait_for(|stop| *stop) => return false,
                () = sleep_until(due.min(look)) => {
                    if Instant::now() >= due || !self.client.is_connected() {
                        return true;
                    }
                    look += RETRY;
                }
            }
        }
    }

    fn tell(&mut self, answer: Result<(), String>) {
        let is_good = answer.is_ok();
        let is_news = self.was_good.replace(is_good) != Some(is_good);
        let server = self.client.target();
        match answer {
            Ok(()) if is_news => info!(server, address = self.settings.address(), "registered"),
            Err(error) if is_news => warn!(server, error, "not registered; trying on"),
            _ => {}
        }
    }
}

async fn ask(client: &Client, command: Command, patience: Duration) -> Result<(), String> {
    let answer = client.call(command, patience).await.map_err(|error| error.to_string())?;
    match answer.header.code {
        response::SUCCESS => Ok(()),
        code => Err(format!("refused with code {code}: {}", answer.header.remark)),
    }
}

/// REGISTER_BROKER (103) with the whole table.
fn registration(settings: &Settings, catalog: &Catalog) -> Command {
    let table = TopicConfigTable {
        data_version: DataVersion {
            counter: catalog.topics_version.counter,
            state_version: catalog.topics_version.state_version,
            timestamp: catalog.topics_version.timestamp,
        },
        topic_config_table: topics(settings, catalog),
        ..TopicConfigTable::default()
    };
    let body = RegisterBrokerBody { topic_config_serialize_wrapper: table, ..RegisterBrokerBody::default() };
    let plain = body.encode();
    let (bytes, compressed) = if plain.len() <= PLAIN_BYTES_MAX { (plain, false) } else { (body.pack(), true) };
    let mut command = Command::request(request::REGISTER_BROKER);
    RegisterBroker {
        broker_name: &settings.broker_name,
        broker_addr: &settings.address(),
        cluster_name: &settings.cluster,
        // Where a stock slave would connect; RocketMQ's default is the port above.
        ha_server_addr: &format!("{}:{}", settings.broker_ip1, u32::from(settings.port) + 1),
        broker_id: i64::try_from(settings.broker_id).expect("a master's is 0"),
        heartbeat_timeout_ms: None,
        enable_acting_master: Some(false),
        compressed,
        body_crc32: Some(body_crc(&bytes).cast_signed()),
        zone_name: None,
    }
    .push(&mut command.header.fields);
    command.body = bytes.into();
    command
}

/// What the broker as a whole forbids is forbidden for each topic.
fn topics(settings: &Settings, catalog: &Catalog) -> BTreeMap<String, TopicConfig> {
    let limit = |perm: i32| {
        let both = perm::READ | perm::WRITE;
        if settings.permission & both == both { perm } else { perm & settings.permission }
    };
    let entry = |topic: &Arc<Topic>| {
        let config = &topic.config;
        let wire = TopicConfig {
            attributes: config.attributes.clone(),
            order: config.order,
            perm: limit(config.perm),
            read_queue_nums: config.read_queue_nums,
            topic_filter_type: config.topic_filter_type.clone(),
            topic_name: config.topic_name.clone(),
            topic_sys_flag: config.topic_sys_flag,
            write_queue_nums: config.write_queue_nums,
        };
        (topic.name.to_string(), wire)
    };
    catalog.topics().filter(|topic| !names::is_lmq(&topic.name)).map(entry).collect()
}

/// UNREGISTER_BROKER (104).
fn unregistration(settings: &Settings) -> Command {
    let mut command = Command::request(request::UNREGISTER_BROKER);
    BrokerOf {
        broker_name: &settings.broker_name,
        broker_addr: &settings.address(),
        cluster_name: &settings.cluster,
        broker_id: i64::try_from(settings.broker_id).expect("a master's is 0"),
    }
    .push(&mut command.header.fields);
    command
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::net::{Ipv4Addr, SocketAddr};
    use std::rc::Rc;

    use transport::{Counters, Handler, Peer, Server, ServerLimits};

    use super::*;
    use crate::config::{Config, Found, Source};

    /// Takes what a NameServer would take, and tells the test.
    #[derive(Default)]
    struct Scribe {
        seen: RefCell<Vec<Command>>,
        refuse: Cell<bool>,
        came: tokio::sync::Notify,
    }

    impl Handler for Scribe {
        async fn handle(&self, request: Command, _: Peer) -> Option<Command> {
            let code = if self.refuse.get() { response::SYSTEM_ERROR } else { response::SUCCESS };
            let answer = Command::answer(&request.header, code);
            self.seen.borrow_mut().push(request);
            self.came.notify_one();
            Some(answer)
        }
    }

    impl Scribe {
        /// Waits until so many requests came, and says their codes.
        async fn codes(&self, count: usize) -> Vec<i32> {
            while self.seen.borrow().len() < count {
                self.came.notified().await;
            }
            self.seen.borrow().iter().map(|command| command.header.code).collect()
        }
    }

    struct Office {
        scribe: Rc<Scribe>,
        address: SocketAddr,
        close: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    fn office(address: &str) -> Office {
        let listener = transport::listen(address.parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let scribe = Rc::new(Scribe::default());
        let limits = ServerLimits::default();
        let server = Server::new(vec![listener], scribe.clone(), limits, Arc::new(Counters::default())).unwrap();
        let (close, closed) = oneshot::channel();
        let task = tokio_uring::spawn(async move {
            server.serve(async { drop(closed.await) }).await.unwrap();
        });
        Office { scribe, address, close, task }
    }

    fn settings(servers: &str) -> Arc<Settings> {
        let mut config = Config::default();
        config.set("broker.namesrv", servers, Source::CommandLine).unwrap();
        let ip = Ipv4Addr::LOCALHOST;
        Arc::new(config.settings(Found {
            broker_ip1: ip,
            port: 10_911,
            cores: 1,
            partitions: 1,
            memory_bytes: 1 << 30,
            disk_bytes: 1 << 40,
            started_ms: 0,
        }))
    }

    fn catalog(names: &[&str]) -> Arc<Catalog> {
        let mut catalog = Catalog::new(1);
        for (id, name) in names.iter().enumerate() {
            let config = crate::catalog::TopicConfig { topic_name: (*name).into(), ..Default::default() };
            catalog.set_topic(Arc::new(Topic { id: id as u32, name: (*name).into(), first_partition: 0, config }));
        }
        catalog.topics_version.counter = names.len() as i64;
        Arc::new(catalog)
    }

    const PACE: Pace = Pace { interval: Duration::from_secs(3600), timeout: Duration::from_secs(60) };

    #[test]
    fn registers_at_start_at_changes_and_after_a_restart_and_unregisters() {
        let run = transport::run(async {
            let first = office("127.0.0.1:0");
            let settings = settings(&first.address.to_string());
            let (sender, catalogs) = watch::channel(catalog(&["A", "B"]));
            let mut registration = Registration::start(&settings, PACE, &catalogs);
            registration.tried().await;
            assert_eq!(first.scribe.codes(1).await, [request::REGISTER_BROKER]);
            sender.send_replace(catalog(&["A", "B", "C"]));
            first.scribe.codes(2).await;
            {
                let seen = first.scribe.seen.borrow();
                let header = RegisterBroker::parse(&seen[1].header.fields).unwrap();
                assert_eq!((header.broker_addr, header.ha_server_addr), ("127.0.0.1:10911", "127.0.0.1:10912"));
                assert_eq!(header.body_crc32, Some(body_crc(&seen[1].body).cast_signed()));
                let body = RegisterBrokerBody::decode(&seen[1].body, header.compressed).unwrap();
                let table = body.topic_config_serialize_wrapper;
                assert_eq!((table.topic_config_table.len(), table.data_version.counter), (3, 3));
            }
            let address = first.address.to_string();
            first.close.send(()).unwrap();
            first.task.await.unwrap();
            let second = office(&address);
            assert_eq!(second.scribe.codes(1).await, [request::REGISTER_BROKER]);
            registration.end().await;
            assert_eq!(second.scribe.codes(2).await, [request::REGISTER_BROKER, request::UNREGISTER_BROKER]);
        });
        run.unwrap();
    }

    #[test]
    fn a_dead_and_a_refusing_nameserver_delay_nobody() {
        let run = transport::run(async {
            let (good, bad) = (office("127.0.0.1:0"), office("127.0.0.1:0"));
            bad.scribe.refuse.set(true);
            let dead = office("127.0.0.1:0");
            dead.close.send(()).unwrap();
            dead.task.await.unwrap();
            let servers = format!("{};{};{}", dead.address, bad.address, good.address);
            let (_sender, catalogs) = watch::channel(catalog(&["A", "B"]));
            let mut registration = Registration::start(&settings(&servers), PACE, &catalogs);
            registration.tried().await;
            // Refused: tried again; nothing to unregister.
            assert_eq!(bad.scribe.codes(2).await, [request::REGISTER_BROKER; 2]);
            registration.end().await;
            assert_eq!(good.scribe.codes(2).await, [request::REGISTER_BROKER, request::UNREGISTER_BROKER]);
            assert!(!bad.scribe.codes(2).await.contains(&request::UNREGISTER_BROKER));
        });
        run.unwrap();
    }

    #[test]
    fn the_brokers_permission_limits_its_topics() {
        let catalog = catalog(&["A", "B"]);
        let mut settings = Settings::clone(&settings(""));
        for (permission, wanted) in [(6, 6), (7, 6), (4, 4), (2, 2), (0, 0)] {
            settings.permission = permission;
            assert_eq!(topics(&settings, &catalog)["A"].perm, wanted, "{permission}");
        }
    }

    #[test]
    fn a_huge_table_is_sent_compressed() {
        let names: Vec<String> = (0..60_000).map(|index| format!("topic-{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let command = registration(&settings(""), &catalog(&names));
        let header = RegisterBroker::parse(&command.header.fields).unwrap();
        assert!(header.compressed && command.body.len() < PLAIN_BYTES_MAX);
        let body = RegisterBrokerBody::decode(&command.body, true).unwrap();
        assert_eq!(body.topic_config_serialize_wrapper.topic_config_table.len(), names.len());
    }
}
