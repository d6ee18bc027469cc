//! Goal: a message that names light queues (LMQ) is in each of them and in its own queue once its producer is answered,
//! also after `kill -9`. Method: raw frames to the real binary, with one core and with two.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use protocol::bodies::{self, SubscriptionGroupConfig, SubscriptionGroupTable, TopicConfigTable};
use protocol::codes::{request, response};
use protocol::headers::{PopMessage, PullMessage};
use protocol::message::BatchEntry;
use protocol::names::{self, pull_flag, sys_flag};
use protocol::{Command, StoredMessage};
use tests::PATIENCE;
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{
    asking, commit, committed, create_topic, edge, handles, heartbeat, messages, number, properties, pull, pull_all,
    pull_header, pull_waiting, pull_with, send, send_as, subscribing, tagged, telling, wait_until_durable,
};

const ON: [&str; 4] = ["--set", "broker.lmq=true", "--set", "broker.multi_dispatch=true"];
/// A wait that would be noticed.
const LONG_MS: i64 = 25_000;

fn light(topic: &str, queue: i32, names: &str, body: &str) -> Command {
    let pairs = properties(&[("UNIQ_KEY", body), ("INNER_MULTI_DISPATCH", names)]);
    send_as(request::SEND_MESSAGE_V2, topic, queue, &pairs, body.as_bytes())
}

/// The bodies of a queue, with each one's offsets in its light queues.
fn read(client: &mut Client, topic: &str, queue: i32) -> Vec<(String, String)> {
    let mut found = Vec::new();
    pull_all(client, topic, queue, 0, |message: &StoredMessage<'_>| {
        assert_eq!(message.topic, "T", "copies stay what they are");
        let offsets = message.property("INNER_MULTI_QUEUE_OFFSET").unwrap_or_default().to_owned();
        found.push((String::from_utf8(message.body.to_vec()).unwrap(), offsets));
    });
    found
}

#[test]
fn a_message_is_in_all_its_queues_once_it_is_answered() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 4));
        // A consumer that comes first waits for the first message.
        let mut other = server.client();
        let opaque = other.write(pull_waiting("%LMQ%early", 0, 0, LONG_MS));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "%LMQ%early", 0), 0);
        client.expect(response::SUCCESS, light("T", 0, "%LMQ%early", "early"));
        assert_eq!(messages(&other.answer(opaque))[0].body, b"early");

        // Names that are no light queues are passed over, and one that comes twice counts once.
        let names = "%LMQ%a,plain,%LMQ%b,%LMQ%c,%LMQ%a";
        let wanted: Vec<String> = (0..8).map(|number| format!("m{number}")).collect();
        for (number, body) in wanted.iter().enumerate() {
            let queue = (number % 4) as i32;
            let answer = client.expect(response::SUCCESS, light("T", queue, names, body));
            assert_eq!(tests::words::number(&answer, "queueId"), i64::from(queue));
            let all = messages(&client.ask(pull("T", queue, tests::words::number(&answer, "queueOffset"))))
                .iter()
                .map(|message| message.property("INNER_MULTI_QUEUE_OFFSET").unwrap().to_owned())
                .collect::<Vec<_>>();
            assert_eq!(all, [format!("{number},,{number},{number},{number}")], "the message itself knows all");
        }
        client.expect(response::SUCCESS, commit("%LMQ%group", "%LMQ%a", 0, 3));
        let look = |client: &mut Client| {
            for (index, name) in [(0, "%LMQ%a"), (2, "%LMQ%b"), (3, "%LMQ%c")] {
                let found = read(client, name, 0);
                assert!(found.iter().map(|(body, _)| body).eq(&wanted), "{name}: {found:?}");
                for (offset, (_, offsets)) in found.iter().enumerate() {
                    assert_eq!(offsets.split(',').nth(index), Some(&*offset.to_string()), "its own offset");
                }
                assert_eq!(edge(client, request::GET_MAX_OFFSET, name, 0), 8);
            }
            assert_eq!(committed(client, "%LMQ%group", "%LMQ%a", 0), Some(3));
        };
        look(&mut client);
        // Nobody hears of them, and nobody makes them by hand.
        let answer = client.expect(response::SUCCESS, asking(request::GET_ALL_TOPIC_CONFIG, &[]));
        let table: TopicConfigTable = bodies::decode(&answer.body).unwrap();
        assert!(table.topic_config_table.contains_key("T"));
        assert!(!table.topic_config_table.keys().any(|name| name.starts_with("%LMQ%")));
        client.expect(response::INVALID_PARAMETER, create_topic("%LMQ%d", 4));
        // An offset is answered before it is durable, as everywhere.
        wait_until_durable(&mut client);
        server.kill();
        let server = Server::with_cores(home, cores, &ON);
        look(&mut server.client());
        server.stop();
    });
}

#[test]
fn nothing_that_was_answered_is_missing_after_a_kill() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        let names: Vec<String> = (0..6).map(|number| format!("%LMQ%{number}")).collect();
        let all = names.join(",");
        client.expect(response::SUCCESS, light("T", 0, &all, "first"));
        // Many at once, and the end while most of them are on their way.
        let asked: BTreeSet<i32> =
            (0..400).map(|number| client.write(light("T", number % 2, &all, &format!("m{number}")))).collect();
        let mut answered = vec!["first".to_owned()];
        let first = *asked.first().unwrap();
        for _ in 0..150 {
            let answer = client.read();
            assert!(asked.contains(&answer.header.opaque) && answer.header.code == response::SUCCESS, "{answer:?}");
            answered.push(format!("m{}", answer.header.opaque - first));
        }
        server.kill();
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        let bodies = |client: &mut Client, topic: &str, queue: i32| -> BTreeSet<String> {
            read(client, topic, queue).into_iter().map(|(body, _)| body).collect()
        };
        let own = [bodies(&mut client, "T", 0), bodies(&mut client, "T", 1)];
        for body in &answered {
            assert!(own.iter().any(|own| own.contains(body)), "{body} is missing in its queue");
        }
        for name in &names {
            let found = bodies(&mut client, name, 0);
            for body in own.iter().flatten() {
                assert!(found.contains(body), "{body} is in its queue, and missing in {name}");
            }
        }
        server.stop();
    });
}

#[test]
fn a_group_of_a_light_queue_has_no_configuration() {
    const GROUP: &str = "%LMQ%reader";
    const RETRIES: &str = "%RETRY%%LMQ%reader_T";
    let pop_of = |topic: &str, invisible_time: i64| {
        let mut command = Command::request(request::POP_MESSAGE);
        let asked =
            PopMessage { consumer_group: GROUP, topic, max_msg_nums: 1, invisible_time, ..PopMessage::default() };
        asked.push(&mut command.header.fields);
        command
    };
    let pop = || pop_of("%LMQ%a", 600_000);
    let revived = |client: &mut Client| edge(client, request::GET_MAX_OFFSET, RETRIES, 0);
    let configs = |client: &mut Client| {
        let all = client.expect(response::SUCCESS, asking(request::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[]));
        bodies::decode::<SubscriptionGroupTable>(&all.body).unwrap().subscription_group_table
    };
    let config = |client: &mut Client| {
        let answer =
            client.expect(response::SUCCESS, asking(request::GET_SUBSCRIPTIONGROUP_CONFIG, &[("group", GROUP)]));
        bodies::decode::<SubscriptionGroupConfig>(&answer.body).unwrap()
    };
    with_cores(|home, cores| {
        for auto in ["true", "false"] {
            let auto = format!("broker.auto_create_group={auto}");
            let more = [&ON[..], &["--set", &auto]].concat();
            let server = Server::with_cores(home, cores, &more);
            let mut client = server.client();
            client.expect(response::SUCCESS, create_topic("T", 1));
            client.expect(response::SUCCESS, light("T", 0, "%LMQ%a", "one"));
            let header = PullMessage {
                consumer_group: GROUP,
                sys_flag: pull_flag::SUBSCRIPTION | pull_flag::COMMIT_OFFSET,
                ..pull_header("T", 0, 0)
            };
            let answer = client.expect(response::SUCCESS, pull_with(request::PULL_MESSAGE, header));
            let place = messages(&answer)[0].physical_offset.to_string();
            assert_eq!(committed(&mut client, GROUP, "T", 0), Some(0), "with a pull");
            client.expect(response::SUCCESS, commit(GROUP, "T", 0, 1));
            client.expect(response::SUCCESS, heartbeat("c", GROUP, &["%LMQ%a"]));
            let back = [("offset", &*place), ("group", GROUP), ("delayLevel", "1")];
            client.expect(response::SUCCESS, asking(request::CONSUMER_SEND_MSG_BACK, &back));
            client.expect(response::SUCCESS, send("%RETRY%%LMQ%reader", 0, b"again"));
            let popped = client.expect(response::SUCCESS, pop());
            client.expect(response::SUCCESS, send("T", 0, b"two"));
            let before = revived(&mut client);
            client.expect(response::SUCCESS, pop_of("T", 1_000));
            let offset = messages(&popped)[0].queue_offset;
            assert_eq!(config(&mut client), SubscriptionGroupConfig::new(GROUP), "it has the defaults");
            assert!(!configs(&mut client).contains_key(GROUP), "and they are not kept");
            server.kill();
            // What it has popped stays so, and comes again when its time is over.
            let server = Server::with_cores(home, cores, &more);
            let mut client = server.client();
            let began = Instant::now();
            while revived(&mut client) == before {
                assert!(began.elapsed() < PATIENCE, "it does not come again");
            }
            client.expect(response::POLLING_TIMEOUT, pop());
            let handle = &handles(&popped)[0];
            let fields = [
                ("consumerGroup", GROUP),
                ("topic", "%LMQ%a"),
                ("queueId", "0"),
                ("extraInfo", handle),
                ("offset", &offset.to_string()),
            ];
            client.expect(response::SUCCESS, asking(request::ACK_MESSAGE, &fields));
            assert_eq!(committed(&mut client, GROUP, "%LMQ%a", 0), Some(offset + 1));
            let reset = [("topic", "T"), ("group", GROUP), ("timestamp", "0"), ("isForce", "true")];
            client.expect(response::SUCCESS, asking(request::INVOKE_BROKER_TO_RESET_OFFSET, &reset));
            assert!(!configs(&mut client).contains_key(GROUP), "{auto}");
            // A topic takes with it what of it comes again to this group.
            client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
            client.expect(response::TOPIC_NOT_EXIST, pull(RETRIES, 0, 0));
            server.stop();
        }
        // What an admin says of it counts.
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        let closed = SubscriptionGroupConfig { consume_enable: false, ..SubscriptionGroupConfig::new(GROUP) };
        let made = telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], bodies::encode(&closed));
        client.expect(response::SUCCESS, made);
        assert_eq!((config(&mut client), configs(&mut client).contains_key(GROUP)), (closed, true));
        client.expect(response::NO_PERMISSION, pop());
        client.expect(response::SUCCESS, asking(request::DELETE_SUBSCRIPTIONGROUP, &[("groupName", GROUP)]));
        assert_eq!(config(&mut client), SubscriptionGroupConfig::new(GROUP));
        server.stop();
        // Without light queues it is a group like others.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, heartbeat("c", GROUP, &["T"]));
        assert!(configs(&mut client).contains_key(GROUP));
        server.stop();
    });
}

#[test]
fn what_cannot_go_to_light_queues_is_refused() {
    with_cores(|home, cores| {
        let more = [&ON[..], &["--set", "limits.light_queues=2"]].concat();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        let names = ("INNER_MULTI_DISPATCH", "%LMQ%a");
        for late in [("DELAY", "3"), ("TIMER_DELAY_MS", "1000")] {
            let text = properties(&[names, late]);
            client.expect(response::MESSAGE_ILLEGAL, send_as(request::SEND_MESSAGE_V2, "T", 0, &text, b"late"));
        }
        let text = properties(&[names, ("TRAN_MSG", "true"), ("PGROUP", "producers")]);
        let mut half = send_as(request::SEND_MESSAGE_V2, "T", 0, &text, b"half");
        half.header.fields.push_int("f", sys_flag::TRANSACTION_PREPARED);
        client.expect(response::MESSAGE_ILLEGAL, half);
        let mut entry = Vec::new();
        BatchEntry { flag: 1, body: b"in a batch", properties: &properties(&[names]) }.encode(&mut entry);
        client.expect(response::MESSAGE_ILLEGAL, send_as(request::SEND_BATCH_MESSAGE, "T", 0, "", &entry));
        let many: Vec<String> = (0..65).map(|number| format!("%LMQ%{number}")).collect();
        client.expect(response::MESSAGE_ILLEGAL, light("T", 0, &many.join(","), "many"));
        client.expect(response::MESSAGE_ILLEGAL, light("T", 0, "%LMQ%no name", "no name"));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 0, "nothing was stored");
        client.expect(response::SUCCESS, light("T", 0, "%LMQ%a,%LMQ%b", "two"));
        let answer = client.expect(response::LMQ_QUOTA_EXCEEDED, light("T", 0, "%LMQ%a,%LMQ%c", "one more"));
        assert!(answer.header.remark.starts_with("[LMQ_CONSUME_QUEUE_NUM_EXCEEDED]"), "{answer:?}");
        client.expect(response::TOPIC_NOT_EXIST, pull("%LMQ%c", 0, 0));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 1);
        assert_eq!(read(&mut client, "%LMQ%a", 0).len(), 1, "nothing went anywhere");
        server.stop();
    });
}

#[test]
fn without_the_settings_the_property_means_nothing_and_they_change_at_run_time() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, light("T", 0, "%LMQ%a", "one"));
        client.expect(response::TOPIC_NOT_EXIST, pull("%LMQ%a", 0, 0));
        client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "enableLmq=true"));
        client.expect(response::SUCCESS, light("T", 0, "%LMQ%a", "two"));
        client.expect(response::TOPIC_NOT_EXIST, pull("%LMQ%a", 0, 0));
        client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "enableMultiDispatch=true"));
        client.expect(response::SUCCESS, light("T", 0, "%LMQ%a", "three"));
        assert_eq!(read(&mut client, "%LMQ%a", 0), [("three".to_owned(), "0".to_owned())]);
        let offsets: Vec<String> = read(&mut client, "T", 0).into_iter().map(|(_, offsets)| offsets).collect();
        assert_eq!(offsets, ["", "", "0"]);
        let answer = client.expect(response::SUCCESS, asking(request::GET_BROKER_CONFIG, &[]));
        let text = String::from_utf8_lossy(&answer.body);
        for line in ["enableLmq=true", "enableMultiDispatch=true", "maxLmqConsumeQueueNum=20000"] {
            assert!(text.lines().any(|known| known == line), "{line} in {text}");
        }
        // Straight to a light queue, too.
        let answer = client.expect(response::SUCCESS, send("%LMQ%b", 0, b"straight"));
        assert_eq!(number(&answer, "queueOffset"), 0);
        assert_eq!(messages(&client.ask(pull("%LMQ%b", 0, 0)))[0].body, b"straight");
        server.stop();
    });
}

#[test]
fn a_message_for_a_lite_topic_is_in_its_light_queue() {
    with_cores(|home, cores| {
        let lite = |name: &str, more: &[(&str, &str)], body: &str| {
            let text = properties(&[&[("__LITE_TOPIC", name)], more].concat());
            send_as(request::SEND_MESSAGE_V2, "T", 1, &text, body.as_bytes())
        };
        let dispatched = |client: &mut Client, offset: i64| {
            let answer = client.expect(response::SUCCESS, pull("T", 1, offset));
            messages(&answer)[0].property("INNER_MULTI_DISPATCH").map(str::to_owned)
        };
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        client.expect(response::SUCCESS, lite("a", &[], "one"));
        // Where its producer says that it goes does not count.
        client.expect(response::SUCCESS, lite("a", &[("INNER_MULTI_DISPATCH", "%LMQ%x,%LMQ%y")], "two"));
        client.expect(response::SUCCESS, lite("", &[], "none"));
        client.expect(response::MESSAGE_ILLEGAL, lite("no name", &[], "bad"));
        client.expect(response::MESSAGE_ILLEGAL, lite(&"x".repeat(127), &[], "long"));
        let wanted = [("one".to_owned(), "0".to_owned()), ("two".to_owned(), "1".to_owned())];
        assert_eq!(read(&mut client, "%LMQ%$T$a", 0), wanted);
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 1), 3, "and in its own");
        assert_eq!(dispatched(&mut client, 1).as_deref(), Some("%LMQ%$T$a"));
        assert_eq!(dispatched(&mut client, 2), None);
        server.kill();
        // Without light queues it is a message like others, that says where it would go.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        assert_eq!(read(&mut client, "%LMQ%$T$a", 0), wanted);
        client.expect(response::SUCCESS, lite("b", &[], "three"));
        assert_eq!(dispatched(&mut client, 3).as_deref(), Some("%LMQ%$T$b"));
        client.expect(response::TOPIC_NOT_EXIST, pull("%LMQ%$T$b", 0, 0));
        server.stop();
    });
}

/// The long form only: it takes a quarter of a gigabyte of offsets.
#[test]
fn offsets_beyond_the_bound_are_refused_and_leave_room_for_the_rest() {
    if !tests::is_soak() {
        return tests::skip("tests/run --soak runs it");
    }
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &ON);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let group = |number: u64| format!("%LMQ%{number:0110}");
    let (mut under_way, mut asked, mut refused) = (VecDeque::new(), 0, None);
    while refused.is_none() {
        while under_way.len() < 512 {
            under_way.push_back((asked, client.write(commit(&group(asked), "T", 0, 7))));
            asked += 1;
            assert!(asked < 4_000_000, "there is a bound");
        }
        let (number, opaque) = under_way.pop_front().expect("many are under way");
        let answer = client.answer(opaque);
        if answer.header.code != response::SUCCESS {
            refused = Some((number, answer));
        }
    }
    let (number, answer) = refused.expect("the loop ends with it");
    assert_eq!(answer.header.code, response::SYSTEM_BUSY, "{answer:?}");
    assert!(answer.header.remark.contains("no room for another consumer offset"), "{answer:?}");
    for (_, opaque) in under_way {
        assert_eq!(client.answer(opaque).header.code, response::SYSTEM_BUSY);
    }
    // What there is can be changed, and deleted; and topics are made.
    client.expect(response::SUCCESS, commit(&group(0), "T", 0, 8));
    client.expect(response::SUCCESS, create_topic("U", 4));
    client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "U")]));
    server.stop();
    let server = Server::with_cores(home.path(), "1", &ON);
    let mut client = server.client();
    assert_eq!(committed(&mut client, &group(0), "T", 0), Some(8));
    assert_eq!(committed(&mut client, &group(number - 1), "T", 0), Some(7));
    assert_eq!(committed(&mut client, &group(number), "T", 0), None);
    client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
    client.expect(response::SUCCESS, create_topic("T", 1));
    client.expect(response::SUCCESS, commit(&group(number), "T", 0, 9));
    server.stop();
}

#[test]
fn copies_that_do_not_fit_one_batch_take_several() {
    with_cores(|home, cores| {
        // Room enough that nobody has to wait for the next segment: then a send is refused as busy, and some have it twice.
        let more = [&ON[..], &["--set", "log.segment_bytes=128MiB", "--set", "log.prepare_bytes=128MiB"]].concat();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        // With a body of 3 MiB two copies fit a batch, of 5 KiB all do.
        let names: Vec<String> = (0..7).map(|number| format!("%LMQ%{number}")).collect();
        for (offset, bytes) in [3 << 20, 5 << 10].into_iter().enumerate() {
            let body = vec![b'a' + offset as u8; bytes];
            for queue in 0..2 {
                let pairs = properties(&[("INNER_MULTI_DISPATCH", &names.join(","))]);
                client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", queue, &pairs, &body));
                let answer = client.expect(response::SUCCESS, pull("T", queue, offset as i64));
                let all = vec![(2 * offset + queue as usize).to_string(); names.len()].join(",");
                let message = &messages(&answer)[0];
                assert_eq!((message.body, message.property("INNER_MULTI_QUEUE_OFFSET")), (&body[..], Some(&*all)));
            }
        }
        wait_until_durable(&mut client);
        server.kill();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        for (index, name) in names.iter().enumerate() {
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, name, 0), 4);
            for offset in 0..4 {
                let answer = client.expect(response::SUCCESS, pull(name, 0, offset));
                let message = &messages(&answer)[0];
                let bytes = if offset < 2 { 3 << 20 } else { 5 << 10 };
                let offsets = message.property("INNER_MULTI_QUEUE_OFFSET").expect("it is there");
                assert_eq!((message.body.len(), offsets.split(',').nth(index)), (bytes, Some(&*offset.to_string())));
            }
        }
        server.stop();
    });
}

#[test]
fn light_groups_take_no_room_that_others_need() {
    with_cores(|home, cores| {
        let more = [&ON[..], &["--set", "limits.topics=64", "--set", "limits.groups=64"]].concat();
        let server = Server::with_cores(home, cores, &more);
        let mut client = server.client();
        let forbidden = |number: u32| {
            let group = format!("%LMQ%{number}");
            asking(request::UPDATE_AND_GET_GROUP_FORBIDDEN, &[("group", &group), ("topic", "T"), ("readable", "false")])
        };
        for number in 0..100 {
            client.expect(response::SUCCESS, heartbeat("c", &format!("%LMQ%{number}"), &["%LMQ%a"]));
        }
        client.expect(response::SUCCESS, create_topic("T", 1));
        // What a group may not read is kept with its configuration, and of those there is a bound.
        let codes: BTreeSet<i32> = (0..100).map(|number| client.ask(forbidden(number)).header.code).collect();
        assert_eq!(codes, BTreeSet::from([response::SUCCESS, response::SYSTEM_ERROR]));
        server.stop();
    });
}

#[test]
fn a_light_groups_pull_that_waits_goes_by_what_it_wants_now() {
    const GROUP: &str = "%LMQ%reader";
    let subscribed = |tags: &str, version: i64| subscribing(GROUP, tagged("T", tags, version));
    let send_with =
        |tag: &str| send_as(request::SEND_MESSAGE_V2, "T", 0, &properties(&[("TAGS", tag)]), tag.as_bytes());
    let held = |offset: i64| {
        let header = PullMessage {
            consumer_group: GROUP,
            sys_flag: pull_flag::SUSPEND,
            suspend_timeout_ms: 60_000,
            ..pull_header("T", 0, offset)
        };
        pull_with(request::PULL_MESSAGE, header)
    };
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, subscribed("a", 1));
        let pull = client.write(held(0));
        client.expect(response::SUCCESS, subscribed("b", 2));
        client.expect(response::SUCCESS, send_with("a"));
        client.expect(response::SUCCESS, send_with("b"));
        assert_eq!(messages(&client.answer(pull))[0].body, b"b");
        // An admin says that it may not consume.
        let pull = client.write(held(2));
        let closed = SubscriptionGroupConfig { consume_enable: false, ..SubscriptionGroupConfig::new(GROUP) };
        let made = telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], bodies::encode(&closed));
        client.expect(response::SUCCESS, made);
        client.expect(response::SUCCESS, send_with("b"));
        assert_eq!(client.answer(pull).header.code, response::NO_PERMISSION);
        server.stop();
    });
}

#[test]
fn what_is_popped_from_a_lite_topics_queue_comes_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &ON);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        let name = names::lite_queue("T", "lite");
        client.expect(response::SUCCESS, light("T", 0, &name, "m"));
        let pop = |invisible_time: i64| {
            let mut command = Command::request(request::POP_MESSAGE);
            let asked = PopMessage {
                consumer_group: "poppers",
                topic: &name,
                queue_id: -1,
                max_msg_nums: 1,
                invisible_time,
                poll_time: LONG_MS,
                ..PopMessage::default()
            };
            asked.push(&mut command.header.fields);
            command
        };
        for times in 0..3 {
            let answer = client.expect(response::SUCCESS, pop(50));
            let seen = messages(&answer);
            assert_eq!((seen[0].body, seen[0].reconsume_times), (&b"m"[..], times));
        }
        server.stop();
    });
}
