//! Goal: brokers and clients find one another through a NameServer whatever breaks. Method: the
//! real server on a free port of loopback, spoken to with `transport::Client`, as a broker, a
//! client and `mqadmin` would.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use namesrv::{Config, Handle, Server};
use protocol::bodies::{
    self, ClusterInfo, DataVersion, KvTable, MemberGroupAnswer, RegisterBrokerBody, TopicConfig, TopicList,
    TopicRouteData,
};
use protocol::codes::{request as code, response};
use protocol::command::{Command, Serialize};
use protocol::fields::Fields;
use protocol::headers::{
    AddAnswer, BrokerHeartbeat, BrokerName, BrokerOf, ClusterOf, DataVersionAnswer, DeleteTopicRoute, GetRoute,
    KvAnswer, KvOf, MemberGroupOf, NamespaceOf, PutKv, RegisterBroker, RegisterBrokerAnswer, TopicOf, WipeAnswer,
};
use protocol::message::body_crc;
use transport::{Client, ClientLimits, CloseReason};

const LONG: Duration = Duration::from_secs(60);
/// How long a broker may be silent that is to be found dead. Milliseconds.
const BRIEF_MS: i64 = 200;

fn start(directory: &Path) -> Handle {
    start_with(directory, |_| {})
}

fn start_with(directory: &Path, change: impl FnOnce(&mut Config)) -> Handle {
    let mut config = Config::new("127.0.0.1:0".parse().unwrap(), directory.join("kvConfig.json"));
    config.scan_interval_ms = 20;
    change(&mut config);
    Server::start(config).unwrap()
}

fn run<F: Future>(future: F) -> F::Output {
    transport::run(future).unwrap()
}

fn client(server: &Handle) -> Client {
    Client::new(server.addr().to_string(), ClientLimits::default())
}

fn request(code: i32, push: impl FnOnce(&mut Fields)) -> Command {
    let mut request = Command::request(code);
    push(&mut request.header.fields);
    request
}

async fn call(client: &Client, request: Command) -> Command {
    client.call(request, LONG).await.unwrap()
}

async fn ok(client: &Client, request: Command) -> Command {
    let answer = call(client, request).await;
    assert_eq!((answer.header.code, answer.header.remark.as_str()), (response::SUCCESS, ""));
    answer
}

fn body<T: serde::de::DeserializeOwned>(answer: &Command) -> T {
    bodies::decode(&answer.body).unwrap()
}

fn registration(header: RegisterBroker<'_>, topics: &[&str], counter: i64) -> Command {
    let mut body = RegisterBrokerBody::default();
    let table = &mut body.topic_config_serialize_wrapper;
    table.data_version = DataVersion { counter, ..DataVersion::default() };
    let configs = topics.iter().map(|name| (name.to_string(), TopicConfig::new(*name, 8, 6)));
    table.topic_config_table = configs.collect();
    let body = if header.compressed { body.pack() } else { body.encode() };
    let mut command = request(code::REGISTER_BROKER, |fields| {
        RegisterBroker { body_crc32: Some(body_crc(&body) as i32), ..header }.push(fields);
    });
    command.body = body.into();
    command
}

fn master(name: &str) -> RegisterBroker<'_> {
    RegisterBroker {
        broker_name: name,
        broker_addr: name,
        cluster_name: "C",
        ha_server_addr: "ha:1",
        ..RegisterBroker::default()
    }
}

fn broker_of(name: &str) -> BrokerOf<'_> {
    BrokerOf { broker_name: name, broker_addr: name, cluster_name: "C", broker_id: 0 }
}

fn route_of(topic: &str) -> Command {
    request(code::GET_ROUTEINFO_BY_TOPIC, |f| GetRoute { topic, accept_standard_json_only: true }.push(f))
}

/// Broker names of a topic's route; none: no route.
async fn holders(client: &Client, topic: &str) -> Vec<String> {
    let answer = call(client, route_of(topic)).await;
    match answer.header.code {
        response::TOPIC_NOT_EXIST => Vec::new(),
        _ => body::<TopicRouteData>(&answer).queue_datas.into_iter().map(|data| data.broker_name).collect(),
    }
}

/// Asks until time has changed the holders: there is no event for that.
async fn await_holders(client: &Client, topic: &str, wanted: &[&str]) {
    let give_up = Instant::now() + LONG;
    while holders(client, topic).await != wanted {
        assert!(Instant::now() < give_up, "the holders of {topic} never were {wanted:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn brokers_register_and_clients_find_them() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    run(async {
        let client = client(&server);
        let none = call(&client, route_of("T")).await;
        assert_eq!(none.header.code, response::TOPIC_NOT_EXIST);
        assert!(none.header.remark.starts_with("No topic route info in name server for the topic: T\nSee https"));

        // Every form of a registration: plain, compressed, in binary headers, an old broker's.
        ok(&client, registration(master("a"), &["T", "TBW102"], 1)).await;
        let packed = RegisterBroker { compressed: true, ..master("b") };
        ok(&client, registration(packed, &["T", "U"], 1)).await;
        let mut binary = registration(master("c"), &["T", "V"], 1);
        binary.header.serialize = Serialize::RocketMq;
        assert_eq!(ok(&client, binary).await.header.serialize, Serialize::RocketMq);
        let mut old = registration(RegisterBroker { body_crc32: None, ..master("d") }, &["T", "V"], 1);
        let full: RegisterBrokerBody = bodies::decode(&old.body).unwrap();
        old.body = bodies::encode(&full.topic_config_serialize_wrapper).into();
        old.header.version = 36;
        old.header.fields.clear();
        master("d").push(&mut old.header.fields);
        ok(&client, old).await;
        // A 5.x broker denies in the header that it compressed.
        let mut denied = registration(RegisterBroker { compressed: true, ..master("e") }, &["W", "X"], 1);
        denied.header.fields.clear();
        master("e").push(&mut denied.header.fields);
        ok(&client, denied).await;
        assert_eq!(holders(&client, "W").await, ["e"]);
        assert_eq!(holders(&client, "T").await, ["a", "b", "c", "d"]);
        assert_eq!(holders(&client, "V").await, ["c", "d"]);
        let route: TopicRouteData = body(&ok(&client, route_of("U")).await);
        assert_eq!(route.broker_datas[0].broker_addrs[&0], "b");
        assert_eq!((route.queue_datas[0].read_queue_nums, route.queue_datas[0].perm), (8, 6));

        let slave = RegisterBroker { broker_id: 1, broker_addr: "a1", ..master("a") };
        let answer = ok(&client, registration(slave, &["T", "TBW102"], 1)).await;
        let learnt = RegisterBrokerAnswer::parse(&answer.header.fields).unwrap();
        assert_eq!((learnt.master_addr, learnt.ha_server_addr), (Some("a"), Some("ha:1")));

        let cluster: ClusterInfo = body(&ok(&client, request(code::GET_BROKER_CLUSTER_INFO, |_| {})).await);
        assert_eq!(cluster.broker_addr_table["a"].broker_addrs.len(), 2);
        assert_eq!(cluster.cluster_addr_table["C"].len(), 5);
        assert_eq!((server.status().brokers(), server.status().topics()), (6, 6));

        ok(&client, request(code::UNREGISTER_BROKER, |f| broker_of("d").push(f))).await;
        assert_eq!(holders(&client, "V").await, ["c"]);
    });
    server.stop().unwrap();
}

#[test]
fn a_registration_that_cannot_be_right_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    run(async {
        let client = client(&server);
        let mut damaged = registration(master("a"), &["T", "U"], 1);
        let mut bytes = damaged.body.to_vec();
        *bytes.last_mut().unwrap() = b' ';
        damaged.body = bytes.into();
        let mut nameless = registration(master("a"), &["T", "U"], 1);
        nameless.header.fields.clear();
        let unreadable = |body: &'static [u8], compressed| {
            let mut command = registration(master("a"), &[], 1);
            command.header.fields.clear();
            RegisterBroker { compressed, ..master("a") }.push(&mut command.header.fields);
            Command { body: body.into(), ..command }
        };
        let cases = [
            (damaged, "crc32 not match"),
            (nameless, "brokerName"),
            (registration(master("a"), &["T"], 1), "register broker failed"),
            (unreadable(b"{\"topicConfigSerializeWrapper\":7}", false), "does not fit"),
            (unreadable(b"not json", false), "not JSON"),
            (unreadable(b"not zlib", true), "unpack"),
            (registration(master(""), &["T", "U"], 1), "broker name is empty"),
        ];
        for (request, remark) in cases {
            let answer = call(&client, request).await;
            assert_eq!(answer.header.code, response::SYSTEM_ERROR, "{remark}");
            assert!(answer.header.remark.contains(remark), "{} instead of {remark}", answer.header.remark);
        }
        assert!(holders(&client, "T").await.is_empty());
        assert_eq!(server.status().brokers(), 0);
        let unknown = call(&client, Command::request(4711)).await;
        assert_eq!(unknown.header.code, response::REQUEST_CODE_NOT_SUPPORTED);
        assert_eq!(unknown.header.remark, " request type 4711 not supported");
    });
    server.stop().unwrap();
}

#[test]
fn a_broken_connection_or_silence_removes_a_broker() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    run(async {
        let asking = client(&server);
        let (mut first, second) = (TcpStream::connect(server.addr()).unwrap(), client(&server));
        first.set_read_timeout(Some(LONG)).unwrap();
        first.write_all(&registration(master("a"), &["T", "U"], 1).encode()).unwrap();
        first.read_exact(&mut [0; 4]).unwrap();
        ok(&second, registration(master("b"), &["T", "U"], 1)).await;
        assert_eq!(holders(&asking, "T").await, ["a", "b"]);
        // The server's end closes when it lets go of the connection, before it takes another request.
        first.shutdown(Shutdown::Write).unwrap();
        first.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(holders(&asking, "T").await, ["b"]);

        let brief = RegisterBroker { heartbeat_timeout_ms: Some(BRIEF_MS), ..master("c") };
        let beat =
            BrokerHeartbeat { cluster_name: "C", broker_addr: "c", broker_name: "c", ..BrokerHeartbeat::default() };
        // With heartbeats it outlives its time. Where the machine stood still for that long, they begin again.
        let brief_time = Duration::from_millis(BRIEF_MS as u64);
        let give_up = Instant::now() + LONG;
        'again: loop {
            let start = Instant::now();
            // Before the last signs of life: the broker may have died of a pause between the last two.
            let mut before = [start; 2];
            ok(&second, registration(brief, &["T", "U"], 1)).await;
            while start.elapsed() < brief_time * 3 {
                let holders = holders(&asking, "T").await;
                if before[0].elapsed() >= brief_time && holders == ["b"] {
                    assert!(Instant::now() < give_up, "heartbeats take too long here");
                    continue 'again;
                }
                assert_eq!(holders, ["b", "c"], "a heartbeat is a sign of life");
                before = [before[1], Instant::now()];
                ok(&second, request(code::BROKER_HEARTBEAT, |f| beat.push(f))).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            break;
        }
        await_holders(&asking, "T", &["b"]).await;

        let expected = DataVersion { counter: 1, ..DataVersion::default() };
        for (name, ours, is_changed) in
            [("b", expected, false), ("b", DataVersion::default(), true), ("c", expected, true)]
        {
            let mut query = request(code::QUERY_DATA_VERSION, |f| broker_of(name).push(f));
            query.body = bodies::encode(&ours).into();
            let answer = ok(&asking, query).await;
            assert_eq!(DataVersionAnswer::parse(&answer.header.fields).unwrap().changed, is_changed, "{name} {ours:?}");
            assert_eq!(answer.body.is_empty(), name == "c");
        }
    });
    server.stop().unwrap();
}

#[test]
fn operators_see_and_change_routes() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    run(async {
        let client = client(&server);
        ok(&client, registration(master("a"), &["T", "U"], 1)).await;
        ok(&client, registration(RegisterBroker { cluster_name: "D", ..master("b") }, &["T", "V"], 1)).await;
        let list = async |request| -> Vec<String> {
            body::<TopicList>(&ok(&client, request).await).topic_list.into_iter().collect()
        };
        let all = || request(code::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, |_| {});
        let of_cluster = |cluster| request(code::GET_TOPICS_BY_CLUSTER, |f| ClusterOf { cluster }.push(f));
        assert_eq!(list(all()).await, ["T", "U", "V"]);
        assert_eq!(list(of_cluster("D")).await, ["T", "V"]);
        assert_eq!(list(request(code::GET_SYSTEM_TOPIC_LIST_FROM_NS, |_| {})).await, ["C", "D", "a", "b"]);
        for code in
            [code::GET_UNIT_TOPIC_LIST, code::GET_HAS_UNIT_SUB_TOPIC_LIST, code::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST]
        {
            assert!(list(Command::request(code)).await.is_empty());
        }

        let wipe = request(code::WIPE_WRITE_PERM_OF_BROKER, |f| BrokerName { broker_name: "a" }.push(f));
        assert_eq!(WipeAnswer::parse(&ok(&client, wipe).await.header.fields).unwrap().count, 2);
        let route: TopicRouteData = body(&ok(&client, route_of("T")).await);
        assert_eq!(route.queue_datas.iter().map(|data| data.perm).collect::<Vec<_>>(), [4, 6]);
        let add = request(code::ADD_WRITE_PERM_OF_BROKER, |f| BrokerName { broker_name: "a" }.push(f));
        assert_eq!(AddAnswer::parse(&ok(&client, add).await.header.fields).unwrap().count, 2);

        let mut register = request(code::REGISTER_TOPIC_IN_NAMESRV, |f| TopicOf { topic: "W" }.push(f));
        register.body = bodies::encode(&route).into();
        ok(&client, register).await;
        assert_eq!(holders(&client, "W").await, ["a", "b"]);
        let delete = |topic, cluster_name| {
            request(code::DELETE_TOPIC_IN_NAMESRV, |f| DeleteTopicRoute { topic, cluster_name }.push(f))
        };
        ok(&client, delete("W", Some("C"))).await;
        assert_eq!(holders(&client, "W").await, ["b"]);
        ok(&client, delete("T", None)).await;
        ok(&client, delete("unknown", None)).await;
        assert_eq!(list(all()).await, ["U", "V", "W"]);

        let group = MemberGroupOf { cluster_name: "C", broker_name: "a" };
        let group = ok(&client, request(code::GET_BROKER_MEMBER_GROUP, |f| group.push(f))).await;
        assert_eq!(body::<MemberGroupAnswer>(&group).broker_member_group.broker_addrs[&0], "a");

        let config = ok(&client, Command::request(code::GET_NAMESRV_CONFIG)).await;
        let text = String::from_utf8(config.body.to_vec()).unwrap();
        assert!(text.contains(&format!("listenPort={}\n", server.addr().port())), "{text}");
        let update =
            |text: &'static str| Command { body: text.into(), ..Command::request(code::UPDATE_NAMESRV_CONFIG) };
        ok(&client, update("enableAllTopicList=false\nenableTopicList=false\nneedWaitForService=true")).await;
        for request in [all(), of_cluster("C"), Command::request(code::GET_UNIT_TOPIC_LIST)] {
            assert_eq!(call(&client, request).await.header.remark, "disable");
        }
        assert_eq!(call(&client, route_of("U")).await.header.remark, "name server not ready");
        assert_eq!(call(&client, update("kvConfigPath=x")).await.header.code, response::NO_PERMISSION);
        assert_eq!(call(&client, update("what=x")).await.header.code, response::SYSTEM_ERROR);
    });
    server.stop().unwrap();
}

#[test]
fn key_value_settings_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    let put =
        |key, value| request(code::PUT_KV_CONFIG, |f| PutKv { namespace: "ORDER_TOPIC_CONFIG", key, value }.push(f));
    let get = |key| request(code::GET_KV_CONFIG, |f| KvOf { namespace: "ORDER_TOPIC_CONFIG", key }.push(f));
    let namespace = |namespace| request(code::GET_KVLIST_BY_NAMESPACE, |f| NamespaceOf { namespace }.push(f));
    run(async {
        let client = client(&server);
        let missing = call(&client, get("T")).await;
        assert_eq!(missing.header.code, response::QUERY_NOT_FOUND);
        assert_eq!(missing.header.remark, "No config item, Namespace: ORDER_TOPIC_CONFIG Key: T");
        assert_eq!(call(&client, namespace("n")).await.header.code, response::QUERY_NOT_FOUND);
        // Many at once: each is on disk when it is answered, none is lost to another.
        let puts: Vec<_> = (0..50)
            .map(|number| {
                let client = Client::new(client.target(), ClientLimits::default());
                tokio_uring::spawn(async move {
                    let (key, value) = (format!("T{number}"), format!("broker-a:{number}"));
                    let put = PutKv { namespace: "ORDER_TOPIC_CONFIG", key: &key, value: &value };
                    ok(&client, request(code::PUT_KV_CONFIG, |f| put.push(f))).await;
                })
            })
            .collect();
        for put in puts {
            put.await.unwrap();
        }
        ok(&client, put("T", "später 🦀")).await;
        let remove = KvOf { namespace: "ORDER_TOPIC_CONFIG", key: "T7" };
        ok(&client, request(code::DELETE_KV_CONFIG, |f| remove.push(f))).await;
        ok(&client, request(code::DELETE_KV_CONFIG, |f| remove.push(f))).await;
        let huge = "x".repeat(5 << 20);
        let refused = request(code::PUT_KV_CONFIG, |f| PutKv { namespace: "n", key: "k", value: &huge }.push(f));
        // Longer than a header may be: not our protocol.
        client.call(refused, LONG).await.unwrap_err();
    });
    server.stop().unwrap();

    let server = start_with(directory.path(), |config| config.switches.order_message = true);
    assert_eq!(server.kv_report(), None);
    run(async {
        let client = client(&server);
        let answer = ok(&client, get("T")).await;
        assert_eq!(KvAnswer::parse(&answer.header.fields).unwrap().value, Some("später 🦀"));
        let all = ok(&client, namespace("ORDER_TOPIC_CONFIG")).await;
        assert_eq!(body::<KvTable>(&all).table.len(), 50);
        // Brokers get them with their registration, clients with the route.
        let registered = ok(&client, registration(master("a"), &["T1", "U"], 1)).await;
        assert_eq!(registered.body, all.body);
        let route: TopicRouteData = body(&ok(&client, route_of("T1")).await);
        assert_eq!(route.order_topic_conf.as_deref(), Some("broker-a:1"));
        let route: TopicRouteData = body(&ok(&client, route_of("U")).await);
        assert_eq!(route.order_topic_conf, None);
    });
    server.stop().unwrap();

    std::fs::write(directory.path().join("kvConfig.json"), b"{\"configTable\":{").unwrap();
    let server = start(directory.path());
    let report = server.kv_report().expect("a report");
    assert!(report.contains("kvConfig.json.broken"), "{report}");
    run(async { assert_eq!(call(&client(&server), get("T")).await.header.code, response::QUERY_NOT_FOUND) });
    server.stop().unwrap();
}

#[test]
fn strangers_are_closed_counted_and_harmless() {
    const STRANGERS: u64 = 200;
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    let counters = server.status().counters.clone();
    run(async {
        let client = client(&server);
        ok(&client, registration(master("a"), &["T", "U"], 1)).await;
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        for _ in 0..STRANGERS {
            let mut bytes = vec![0xff; 4];
            bytes.extend((0..state % 300).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            }));
            let mut stream = TcpStream::connect(server.addr()).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            stream.write_all(&bytes).unwrap();
            let read = stream.read(&mut [0; 64]);
            assert!(matches!(read, Ok(0)) || read.is_err(), "{read:?}");
        }

        // Each takes two descriptors of this process; a shell's usual limit is 1,024.
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let soft: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
        let count = (soft / 3).min(4000);
        let idle: Vec<_> = (0..count).map(|_| TcpStream::connect(server.addr()).unwrap()).collect();
        assert_eq!(holders(&client, "T").await, ["a"]);
        // They are accepted in their order: whoever comes last is served when all are open.
        let last = Client::new(server.addr().to_string(), ClientLimits::default());
        assert_eq!(holders(&last, "T").await, ["a"]);
        assert!(counters.open() > count as u64, "only {} of them are open", counters.open());
        assert_eq!(counters.closed(CloseReason::Garbage), STRANGERS);
        drop(idle);
    });
    assert!(server.is_running());
    let start = Instant::now();
    server.stop().unwrap();
    assert!(start.elapsed() < LONG);
}

#[test]
fn what_cannot_start_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path());
    let mut config = Config::new(server.addr(), directory.path().join("other.json"));
    let error = Server::start(config.clone()).unwrap_err();
    assert!(error.to_string().contains(&server.addr().to_string()), "{error}");
    config.listen = vec!["127.0.0.1:0".parse().unwrap(); 2];
    config.scan_interval_ms = 1;
    let error = Server::start(config.clone()).unwrap_err();
    assert!(error.to_string().contains("scan_interval_ms"), "{error}");
    config.scan_interval_ms = 1000;
    config.kv_path = directory.path().join("kvConfig.json/below");
    std::fs::write(directory.path().join("kvConfig.json"), b"{}").unwrap();
    let error = Server::start(config.clone()).unwrap_err();
    assert!(error.to_string().contains("kvConfig.json/below"), "{error}");
    config.kv_path = directory.path().join("other.json");
    let two = Server::start(config).unwrap();
    run(async {
        for address in two.addrs() {
            let client = Client::new(address.to_string(), ClientLimits::default());
            assert!(holders(&client, "T").await.is_empty());
        }
    });
    assert_ne!(two.addrs()[0], two.addrs()[1]);
}
