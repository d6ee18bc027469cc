//! What each request code does: from a command to the table and back.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use protocol::bodies::{
    self, BodyError, DataVersion, KvTable as KvBody, MemberGroupAnswer, RegisterBrokerBody, TopicConfigTable,
    TopicRouteData,
};
use protocol::codes::{request as code, response};
use protocol::command::Command;
use protocol::fields::Fields;
use protocol::headers::{
    AddAnswer, BrokerHeartbeat, BrokerName, BrokerOf, ClusterOf, DataVersionAnswer, DeleteTopicRoute, FieldError,
    GetRoute, KvAnswer, KvOf, MemberGroupOf, NamespaceOf, PutKv, RegisterBroker, RegisterBrokerAnswer, TopicOf,
    WipeAnswer,
};
use protocol::message::body_crc;
use protocol::names::ORDER_TOPIC_NAMESPACE;
use tokio::sync::Mutex;
use tracing::{info, warn};
use transport::{CloseReason, Handler, Peer, Seldom};

use crate::config::{BROKER_TIMEOUT_MS_MAX, Config, Switches, UpdateError};
use crate::kv::{KvFile, KvTable};
use crate::registration::Registration;
use crate::routes::{Queues, RouteTable};
use crate::server::Status;
use crate::views::UnitList;

/// Brokers below send a bare topic table (MQVersion V3_0_11).
const FULL_BODY_VERSION_MIN: i32 = 37;
/// First byte of zlib with its usual window.
const ZLIB_MAGIC: u8 = 0x78;
/// What a stock server adds to "no route".
const NO_ROUTE_ADVICE: &str = "\nSee https://rocketmq.apache.org/docs/bestPractice/06FAQ for further details.";

/// Answers requests. One thread; no borrow is held across an await.
pub(crate) struct Door {
    config: Config,
    port: u16,
    routes: RefCell<RouteTable>,
    switches: RefCell<Switches>,
    kv: RefCell<KvTable>,
    /// Held while a change of the key-value settings goes to disk.
    kv_file: Mutex<KvFile>,
    status: Arc<Status>,
    /// What peers cause is told through it.
    seldom: Seldom,
    start: Instant,
}

/// Why a request is refused: code and remark of the answer.
struct Refusal {
    code: i32,
    remark: String,
}

type Answer = Result<Command, Refusal>;

impl Door {
    pub(crate) fn new(config: Config, port: u16, kv_file: KvFile, kv: KvTable, status: Arc<Status>) -> Door {
        Door {
            port,
            routes: RefCell::new(RouteTable::new(config.routes.clone())),
            switches: RefCell::new(config.switches.clone()),
            kv: RefCell::new(kv),
            kv_file: Mutex::new(kv_file),
            status,
            seldom: Seldom::default(),
            start: Instant::now(),
            config,
        }
    }

    /// Removes brokers that gave no sign of life in time.
    pub(crate) fn expire(&self) {
        let expired = self.routes.borrow_mut().expire(self.now_ms());
        for address in expired.iter().filter(|_| self.seldom.may_tell()) {
            warn!(address, "broker expired: no sign of life");
        }
        self.show();
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn show(&self) {
        let routes = self.routes.borrow();
        self.status.show(routes.live_count(), routes.topic_count());
    }

    async fn answer(&self, request: &Command, peer: Peer) -> Answer {
        let fields = &request.header.fields;
        let answer = match request.header.code {
            code::GET_ROUTEINFO_BY_TOPIC => self.route(request),
            code::REGISTER_BROKER => self.register(request, peer),
            code::UNREGISTER_BROKER => self.unregister(request),
            code::BROKER_HEARTBEAT => self.heartbeat(request),
            code::QUERY_DATA_VERSION => self.data_version(request),
            code::GET_BROKER_CLUSTER_INFO => Ok(with_body(request, &self.routes.borrow().cluster_info())),
            code::GET_BROKER_MEMBER_GROUP => self.member_group(request),
            code::WIPE_WRITE_PERM_OF_BROKER => {
                let count = self.routes.borrow_mut().wipe_write_perm(BrokerName::parse(fields)?.broker_name);
                Ok(with_fields(request, |fields| WipeAnswer { count }.push(fields)))
            }
            code::ADD_WRITE_PERM_OF_BROKER => {
                let count = self.routes.borrow_mut().add_write_perm(BrokerName::parse(fields)?.broker_name);
                Ok(with_fields(request, |fields| AddAnswer { count }.push(fields)))
            }
            code::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => {
                self.allow(self.switches.borrow().all_topic_list)?;
                Ok(with_body(request, &self.routes.borrow().topic_list()))
            }
            code::GET_TOPICS_BY_CLUSTER => {
                self.allow(self.switches.borrow().topic_list)?;
                Ok(with_body(request, &self.routes.borrow().topics_of_cluster(ClusterOf::parse(fields)?.cluster)))
            }
            code::GET_SYSTEM_TOPIC_LIST_FROM_NS => Ok(with_body(request, &self.routes.borrow().system_topics())),
            code::GET_UNIT_TOPIC_LIST => self.unit_topics(request, UnitList::Unit),
            code::GET_HAS_UNIT_SUB_TOPIC_LIST => self.unit_topics(request, UnitList::UnitSub),
            code::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => self.unit_topics(request, UnitList::UnitSubOnly),
            code::DELETE_TOPIC_IN_NAMESRV => {
                let header = DeleteTopicRoute::parse(fields)?;
                let cluster = header.cluster_name.filter(|cluster| !cluster.is_empty());
                self.routes.borrow_mut().delete_topic(header.topic, cluster);
                Ok(done(request))
            }
            code::REGISTER_TOPIC_IN_NAMESRV => self.add_topic(request),
            code::PUT_KV_CONFIG => {
                let PutKv { namespace, key, value } = PutKv::parse(fields)?;
                self.change_kv(|kv, limits| kv.put(limits, namespace, key, value).map(|()| true)).await?;
                Ok(done(request))
            }
            code::GET_KV_CONFIG => self.kv(request),
            code::DELETE_KV_CONFIG => {
                let KvOf { namespace, key } = KvOf::parse(fields)?;
                self.change_kv(|kv, _| Ok(kv.remove(namespace, key))).await?;
                Ok(done(request))
            }
            code::GET_KVLIST_BY_NAMESPACE => {
                let namespace = NamespaceOf::parse(fields)?.namespace;
                let body = self.namespace(namespace).ok_or_else(|| {
                    Refusal::new(response::QUERY_NOT_FOUND, format!("No config item, Namespace: {namespace}"))
                })?;
                Ok(Command { body, ..done(request) })
            }
            code::UPDATE_NAMESRV_CONFIG => self.update_config(request),
            code::GET_NAMESRV_CONFIG => {
                let text = self.config.properties(self.port, &self.switches.borrow());
                Ok(Command { body: text.into(), ..done(request) })
            }
            other => {
                Err(Refusal::new(response::REQUEST_CODE_NOT_SUPPORTED, format!(" request type {other} not supported")))
            }
        };
        self.show();
        answer
    }

    fn route(&self, request: &Command) -> Answer {
        let topic = GetRoute::parse(&request.header.fields)?.topic;
        let switches = self.switches.borrow();
        if switches.wait_for_service && self.now_ms() < switches.wait_seconds * 1000 {
            return Err(Refusal::new(response::SYSTEM_ERROR, "name server not ready"));
        }
        let Some(mut route) = self.routes.borrow().route(topic) else {
            let remark = format!("No topic route info in name server for the topic: {topic}{NO_ROUTE_ADVICE}");
            return Err(Refusal::new(response::TOPIC_NOT_EXIST, remark));
        };
        if switches.order_message {
            route.order_topic_conf = self.kv.borrow().get(ORDER_TOPIC_NAMESPACE, topic).map(str::to_owned);
        }
        // `acceptStandardJsonOnly` and the version do not matter: we have only the standard form,
        // quoted and compact, and every client since 4.0 reads it (PROTOCOL 3.9).
        Ok(with_body(request, &route))
    }

    fn register(&self, request: &Command, peer: Peer) -> Answer {
        let header = RegisterBroker::parse(&request.header.fields)?;
        let crc = header.body_crc32.unwrap_or(0);
        if crc != 0 && i64::from(crc) != i64::from(body_crc(&request.body)) {
            return Err(Refusal::new(response::SYSTEM_ERROR, "crc32 not match"));
        }
        let timeout_ms = match header.heartbeat_timeout_ms {
            None => self.config.broker_timeout_ms,
            Some(timeout) => u64::try_from(timeout).unwrap_or(0).clamp(1, BROKER_TIMEOUT_MS_MAX),
        };
        let mut news = Registration {
            cluster: header.cluster_name,
            broker: header.broker_name,
            broker_id: header.broker_id,
            address: header.broker_addr,
            ha_address: header.ha_server_addr,
            zone: header.zone_name,
            acting_master: header.enable_acting_master,
            timeout_ms,
            connection: peer.connection,
            is_complete: self.switches.borrow().delete_missing_topics,
            ..Registration::default()
        };
        take_body(&mut news, request, header.compressed)?;
        let topics = news.topics.len();
        let is_new = self.routes.borrow().version(news.cluster, news.address).is_none();
        let registered = self.routes.borrow_mut().register(news, self.now_ms());
        let registered = match registered {
            Ok(registered) => registered,
            Err(error) => {
                if self.seldom.may_tell() {
                    warn!(broker = header.broker_name, address = header.broker_addr, %error, "refused");
                }
                return Err(Refusal::new(response::SYSTEM_ERROR, error.to_string()));
            }
        };
        if is_new && self.seldom.may_tell() {
            info!(
                cluster = header.cluster_name,
                broker = header.broker_name,
                id = header.broker_id,
                address = header.broker_addr,
                topics,
                "broker registered"
            );
        }
        let mut answer = with_fields(request, |fields| {
            let ha_server_addr = registered.ha_address.as_deref();
            let master_addr = registered.master_address.as_deref();
            RegisterBrokerAnswer { ha_server_addr, master_addr }.push(fields);
        });
        if self.switches.borrow().return_order_topics {
            answer.body = self.namespace(ORDER_TOPIC_NAMESPACE).unwrap_or_default();
        }
        Ok(answer)
    }

    fn unregister(&self, request: &Command) -> Answer {
        let header = BrokerOf::parse(&request.header.fields)?;
        self.routes.borrow_mut().unregister(header.cluster_name, header.broker_name, header.broker_addr);
        if self.seldom.may_tell() {
            info!(broker = header.broker_name, address = header.broker_addr, "broker signed off");
        }
        Ok(done(request))
    }

    fn heartbeat(&self, request: &Command) -> Answer {
        let header = BrokerHeartbeat::parse(&request.header.fields)?;
        self.routes.borrow_mut().heartbeat(header.cluster_name, header.broker_addr, self.now_ms());
        Ok(done(request))
    }

    fn data_version(&self, request: &Command) -> Answer {
        let header = BrokerOf::parse(&request.header.fields)?;
        let theirs: DataVersion = bodies::decode(&request.body)?;
        let mut routes = self.routes.borrow_mut();
        routes.heartbeat(header.cluster_name, header.broker_addr, self.now_ms());
        let ours = routes.version(header.cluster_name, header.broker_addr);
        let changed = ours != Some(&theirs);
        let mut answer = with_fields(request, |fields| DataVersionAnswer { changed }.push(fields));
        answer.body = ours.map(bodies::encode).unwrap_or_default().into();
        Ok(answer)
    }

    fn member_group(&self, request: &Command) -> Answer {
        let header = MemberGroupOf::parse(&request.header.fields)?;
        let group = self.routes.borrow().member_group(header.cluster_name, header.broker_name);
        Ok(with_body(request, &MemberGroupAnswer { broker_member_group: group }))
    }

    fn unit_topics(&self, request: &Command, which: UnitList) -> Answer {
        self.allow(self.switches.borrow().topic_list)?;
        Ok(with_body(request, &self.routes.borrow().unit_topics(which)))
    }

    fn add_topic(&self, request: &Command) -> Answer {
        let topic = TopicOf::parse(&request.header.fields)?.topic;
        let route: TopicRouteData = bodies::decode(&request.body)?;
        let queues = route.queue_datas.into_iter().map(|data| (data.broker_name.clone(), Queues::from(&data)));
        let queues: Vec<_> = queues.collect();
        match self.routes.borrow_mut().add_topic(topic, &queues) {
            Ok(()) => Ok(done(request)),
            Err(error) => Err(Refusal::new(response::SYSTEM_ERROR, error.to_string())),
        }
    }

    fn kv(&self, request: &Command) -> Answer {
        let KvOf { namespace, key } = KvOf::parse(&request.header.fields)?;
        let kv = self.kv.borrow();
        let Some(value) = kv.get(namespace, key) else {
            let remark = format!("No config item, Namespace: {namespace} Key: {key}");
            return Err(Refusal::new(response::QUERY_NOT_FOUND, remark));
        };
        Ok(with_fields(request, |fields| KvAnswer { value: Some(value) }.push(fields)))
    }

    fn namespace(&self, namespace: &str) -> Option<Bytes> {
        let kv = self.kv.borrow();
        let table = kv.namespace(namespace)?.clone();
        Some(bodies::encode(&KvBody { table }).into())
    }

    /// Changes a copy, puts it on disk, and only then shows it: an answered change survives.
    /// `change` says whether there is one.
    async fn change_kv(
        &self,
        change: impl FnOnce(&mut KvTable, &crate::kv::KvLimits) -> Result<bool, String>,
    ) -> Result<(), Refusal> {
        let file = self.kv_file.lock().await;
        let mut kv = self.kv.borrow().clone();
        let refuse = |remark: String| Refusal::new(response::SYSTEM_ERROR, remark);
        if change(&mut kv, &self.config.kv).map_err(refuse)? {
            file.save(&kv).await.map_err(|error| {
                warn!(%error, "the key-value settings cannot be saved");
                refuse(format!("the setting cannot be saved: {error}"))
            })?;
            *self.kv.borrow_mut() = kv;
        }
        Ok(())
    }

    fn update_config(&self, request: &Command) -> Answer {
        let text = String::from_utf8_lossy(&request.body);
        let updated = self.switches.borrow_mut().update(&text);
        match updated {
            Ok(()) => {
                info!(switches = ?self.switches.borrow(), "settings changed");
                Ok(done(request))
            }
            Err(UpdateError::Forbidden(remark)) => Err(Refusal::new(response::NO_PERMISSION, remark)),
            Err(UpdateError::Invalid(remark)) => Err(Refusal::new(response::SYSTEM_ERROR, remark)),
        }
    }

    fn allow(&self, is_enabled: bool) -> Result<(), Refusal> {
        if is_enabled { Ok(()) } else { Err(Refusal::new(response::SYSTEM_ERROR, "disable")) }
    }
}

impl Handler for Door {
    async fn handle(&self, request: Command, peer: Peer) -> Option<Command> {
        let answer = self.answer(&request, peer).await;
        Some(answer.unwrap_or_else(|refusal| Command::refusal(&request.header, refusal.code, refusal.remark)))
    }

    fn closed(&self, peer: Peer, reason: CloseReason) {
        let gone = self.routes.borrow_mut().disconnect(peer.connection);
        for address in gone.iter().filter(|_| self.seldom.may_tell()) {
            warn!(address, %reason, "broker gone: its connection closed");
        }
        if !gone.is_empty() {
            self.show();
        }
    }
}

impl Refusal {
    fn new(code: i32, remark: impl Into<String>) -> Refusal {
        Refusal { code, remark: remark.into() }
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Refusal {
        Refusal::new(response::SYSTEM_ERROR, error.to_string())
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Refusal {
        Refusal::new(response::SYSTEM_ERROR, error.to_string())
    }
}

fn done(request: &Command) -> Command {
    Command::answer(&request.header, response::SUCCESS)
}

fn with_fields(request: &Command, push: impl FnOnce(&mut Fields)) -> Command {
    let mut answer = done(request);
    push(&mut answer.header.fields);
    answer
}

fn with_body<T: serde::Serialize>(request: &Command, body: &T) -> Command {
    Command { body: bodies::encode(body).into(), ..done(request) }
}

/// Reads topics and their version, in the form of the broker's age.
fn take_body(news: &mut Registration<'_>, request: &Command, is_compressed: bool) -> Result<(), Refusal> {
    if request.body.is_empty() {
        return Ok(()); // No topics, and a version that is older than any.
    }
    let table: TopicConfigTable = if request.header.version < FULL_BODY_VERSION_MIN {
        bodies::decode(&request.body)?
    } else {
        // 5.x brokers with compressedRegister=true compress the body and deny it in the header.
        // No JSON begins like zlib.
        let is_compressed = is_compressed || request.body[0] == ZLIB_MAGIC;
        RegisterBrokerBody::decode(&request.body, is_compressed)?.topic_config_serialize_wrapper
    };
    news.version = table.data_version;
    news.topics = table.topic_config_table;
    // A static topic's queues are where its mappings say: what a broker does not name may be one.
    news.is_complete &= table.topic_queue_mapping_info_map.is_empty();
    Ok(())
}
