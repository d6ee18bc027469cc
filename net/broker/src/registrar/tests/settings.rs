//! Settings changed at run time: durable and everywhere before they are answered, and there again after a restart.

use protocol::bodies::{Assignments, QueryAssignment, RequestMode, SetRequestMode};

use super::*;

fn update(world: &mut World, text: &str) -> Answer {
    world.ask(0, request::UPDATE_BROKER_CONFIG, &[], text.as_bytes().to_vec())
}

/// The answer to code 26, by name.
fn shown(world: &mut World) -> BTreeMap<String, String> {
    let answer = world.ask(0, request::GET_BROKER_CONFIG, &[], Vec::new());
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    text.lines().map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.into(), value.into())).collect()
}

#[test]
fn a_setting_is_in_force_when_it_is_answered_and_after_a_restart() {
    let mut world = World::new();
    let answer = update(&mut world, "autoCreateSubscriptionGroup=false\npopConsumerKVServiceEnable=true");
    assert_eq!(answer.code, 0);
    assert_eq!(answer.remark, "taken, without meaning here: popConsumerKVServiceEnable");
    assert_eq!(world.logged(), ["put k/", "put n/", "publish", "answer 1: 0"]);
    world.heartbeat(1, "c", vec![consumer("late", &[("T", 1)])]);
    assert!(world.registrar.catalog().group("late").is_none(), "groups are no longer made");
    let again = World::recovered(settings(), world.facts.clone());
    for world in [&mut world, &mut { again }] {
        let shown = shown(world);
        assert_eq!(shown["autoCreateSubscriptionGroup"], "false");
        assert_eq!(shown["popConsumerKVServiceEnable"], "true");
        assert_eq!(shown["autoCreateTopicEnable"], "true");
        assert!(!world.registrar.settings.auto_create_group);
    }
    // The same again is no change.
    world.logged();
    assert_eq!(update(&mut world, "autoCreateSubscriptionGroup=false").code, 0);
    assert_eq!(world.logged().len(), 1, "an answer and nothing else");
}

#[test]
fn what_is_refused_or_cannot_be_kept_changes_nothing() {
    let mut world = World::new();
    let before = shown(&mut world);
    for (text, code) in [
        ("", response::INVALID_PARAMETER),
        ("traceOn=false\nnoSuchThing=1", response::INVALID_PARAMETER),
        ("traceOn=false\nshortPollingTimeMills=0", response::INVALID_PARAMETER),
        ("traceOn=false\nlistenPort=1", response::NO_PERMISSION),
        ("traceOn=false\nbrokerConfigPath=x", response::NO_PERMISSION),
    ] {
        assert_eq!(update(&mut world, text).code, code, "{text}");
    }
    assert_eq!(world.ask(0, request::UPDATE_BROKER_CONFIG, &[], vec![0xff]).code, response::SYSTEM_ERROR);
    world.disk_ok = false;
    assert_eq!(update(&mut world, "traceOn=false").code, response::SERVICE_NOT_AVAILABLE);
    world.disk_ok = true;
    assert_eq!(shown(&mut world), before);
    assert!(world.registrar.settings.trace_on);
}

#[test]
fn what_the_broker_allows_is_told_to_the_nameservers() {
    let mut world = World::new();
    update(&mut world, "traceOn=false");
    assert!(!world.logged().contains(&"register".to_owned()));
    let version = world.registrar.catalog().topics_version;
    update(&mut world, "brokerPermission=4");
    assert!(world.logged().contains(&"register".to_owned()));
    assert_ne!(world.registrar.catalog().topics_version, version);
}

#[test]
fn the_topic_of_traces_is_made_when_it_is_wanted() {
    let mut world = World::new();
    assert!(world.topic("RMQ_SYS_TRACE_TOPIC").is_none());
    assert_eq!(update(&mut world, "traceTopicEnable=true").code, 0);
    world.tick(1_000);
    assert_eq!(world.topic("RMQ_SYS_TRACE_TOPIC").map(|topic| topic.config.perm), Some(6));
    // It holds traces: it stays when no more are wanted.
    assert_eq!(update(&mut world, "traceTopicEnable=false").code, 0);
    world.tick(1_000);
    assert!(world.topic("RMQ_SYS_TRACE_TOPIC").is_some());
}

/// What client `c0` of group `g` has of a topic: how, and from which queues.
fn assigned(world: &mut World, topic: &str) -> Vec<(RequestMode, i32)> {
    let asked = QueryAssignment {
        topic: topic.to_owned(),
        consumer_group: "g".to_owned(),
        client_id: "c0".to_owned(),
        strategy_name: "AVG".to_owned(),
        ..QueryAssignment::default()
    };
    let answer = world.ask(1, request::QUERY_ASSIGNMENT, &[], bodies::encode(&asked));
    let found: Assignments = bodies::decode(&answer.body).unwrap();
    let rows = found.message_queue_assignments.unwrap().into_iter();
    rows.map(|one| (one.mode, one.message_queue.queue_id)).collect()
}

#[test]
fn who_pops_by_default_shares_queues_with_as_many_as_is_set() {
    let mut world = World::new();
    world.create("T", "4");
    for slot in 0..4 {
        world.heartbeat(slot, &format!("c{slot}"), vec![consumer("g", &[("T", 1)])]);
    }
    let pops = |queues: &[i32]| queues.iter().map(|queue| (RequestMode::Pop, *queue)).collect::<Vec<_>>();
    assert_eq!(update(&mut world, "defaultPopShareQueueNum=1").code, 0);
    assert_eq!(assigned(&mut world, "T").first(), Some(&(RequestMode::Pull, 0)), "who pulls shares nothing");
    assert_eq!(update(&mut world, "defaultMessageRequestMode=POP").code, 0);
    for (share, queues) in [("1", &[0, 1][..]), ("2", &[0, 1, 2]), ("3", &[-1]), ("0", &[-1]), ("-1", &[-1])] {
        assert_eq!(update(&mut world, &format!("defaultPopShareQueueNum={share}")).code, 0);
        assert_eq!(assigned(&mut world, "T"), pops(queues), "{share}");
        assert_eq!(shown(&mut world)["defaultPopShareQueueNum"], share);
    }
    // What was said of the group outranks it.
    update(&mut world, "defaultPopShareQueueNum=1");
    let body = SetRequestMode {
        topic: "T".to_owned(),
        consumer_group: "g".to_owned(),
        mode: RequestMode::Pop,
        pop_share_queue_num: 0,
    };
    assert_eq!(world.ask(1, request::SET_MESSAGE_REQUEST_MODE, &[], bodies::encode(&body)).code, 0);
    assert_eq!(assigned(&mut world, "T"), pops(&[-1]));
}

#[test]
fn what_is_asked_without_saying_how_is_answered_by_the_settings() {
    let mut world = World::new();
    world.create("T", "2");
    world.heartbeat(1, "c0", vec![consumer("g", &[("T", 1)])]);
    assert_eq!(assigned(&mut world, "T"), [(RequestMode::Pull, 0), (RequestMode::Pull, 1)]);
    assert_eq!(update(&mut world, "defaultMessageRequestMode=POP\ndefaultQueryMaxNum=3").code, 0);
    assert_eq!(assigned(&mut world, "T"), [(RequestMode::Pop, -1)]);
    assert_eq!(assigned(&mut world, "%RETRY%g"), [(RequestMode::Pull, 0)]);
    world.tell = |question| match question {
        Question::Messages { count, .. } => {
            assert_eq!(*count, 3, "of a query by unique id");
            nothing(question)
        }
        question => nothing(question),
    };
    let query = [("topic", "T"), ("key", "k"), ("maxNum", "9"), ("beginTimestamp", "0"), ("endTimestamp", "1")];
    let by_unique_id = [&query[..], &[("_UNIQUE_KEY_QUERY", "true")]].concat();
    world.ask(0, 12, &by_unique_id, Vec::new());
    assert_eq!(update(&mut world, "maxMsgsNumBatch=2").code, 0);
    world.tell = |question| match question {
        Question::Messages { count, .. } => {
            assert_eq!(*count, 2, "of any query");
            nothing(question)
        }
        question => nothing(question),
    };
    world.ask(0, 12, &query, Vec::new());
    world.ask(0, 12, &by_unique_id, Vec::new());
    assert_eq!(shown(&mut world)["maxMsgsNumBatch"], "2");
    let answer = update(&mut world, "enablePopMessageThreshold=true");
    let wanted = "taken, not served here: enablePopMessageThreshold (popInflightMessageThreshold always counts)";
    assert_eq!(answer.remark, wanted);
}
