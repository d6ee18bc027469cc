//! Goal: SQL92 filters are RocketMQ's on the wire: what matches comes, nothing else leaves the broker. Method: as in
//! wire.rs.

use protocol::Command;
use protocol::bodies::{self, CheckClient, SubscriptionData, TYPE_SQL92};
use protocol::codes::{request, response};
use protocol::headers::PullMessage;
use protocol::names::pull_flag;
use tests::client::Client;
use tests::server::Server;
use tests::with_cores;
use tests::words::{create_topic, messages, number, properties, pull_header, pull_with, send_as, subscribing, telling};

fn subscription(topic: &str, kind: &str, expression: &str, version: i64) -> SubscriptionData {
    SubscriptionData {
        topic: topic.to_owned(),
        expression_type: kind.to_owned(),
        sub_string: expression.to_owned(),
        sub_version: version,
        ..SubscriptionData::default()
    }
}

fn check(kind: &str, expression: &str) -> Command {
    let check = CheckClient { subscription_data: subscription("T", kind, expression, 1), ..CheckClient::default() };
    telling(request::CHECK_CLIENT_CONFIG, &[], bodies::encode(&check))
}

/// A pull that goes by the group's subscription.
fn pull_of(group: &str, version: i64, offset: i64) -> Command {
    let header =
        PullMessage { consumer_group: group, sys_flag: 0, sub_version: version, ..pull_header("T", 0, offset) };
    pull_with(request::PULL_MESSAGE, header)
}

/// A pull that brings its expression.
fn pull_by(expression: &str, offset: i64, suspend_ms: i64) -> Command {
    let header = PullMessage {
        subscription: Some(expression),
        expression_type: Some(TYPE_SQL92),
        sys_flag: pull_flag::SUBSCRIPTION | if suspend_ms > 0 { pull_flag::SUSPEND } else { 0 },
        suspend_timeout_ms: suspend_ms,
        ..pull_header("T", 0, offset)
    };
    pull_with(request::PULL_MESSAGE, header)
}

fn put(client: &mut Client, pairs: &[(&str, &str)], body: &[u8]) {
    client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", 0, &properties(pairs), body));
}

fn offsets(answer: &Command) -> Vec<i64> {
    messages(answer).iter().map(|message| message.queue_offset).collect()
}

#[test]
fn a_group_gets_what_its_expression_matches() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for age in 0..20 {
            put(&mut client, &[("age", &age.to_string()), ("TAGS", "A")], b"x");
        }
        put(&mut client, &[("age", "old")], b"no number");
        put(&mut client, &[], b"no age");
        client.expect(response::SUCCESS, check(TYPE_SQL92, "age > 15"));
        client.expect(
            response::SUCCESS,
            subscribing("g", subscription("T", TYPE_SQL92, "age BETWEEN 3 AND 4 OR age > 17", 7)),
        );
        let answer = client.expect(response::SUCCESS, pull_of("g", 7, 0));
        assert_eq!((offsets(&answer), number(&answer, "nextBeginOffset")), (vec![3, 4, 18, 19], 22));
        let answer = client.expect(response::PULL_RETRY_IMMEDIATELY, pull_of("g", 7, 20));
        assert_eq!((answer.header.remark.as_str(), number(&answer, "nextBeginOffset")), ("NO_MATCHED_MESSAGE", 22));
        client.expect(response::PULL_NOT_FOUND, pull_of("g", 7, 22));
        client.expect(response::SUBSCRIPTION_NOT_LATEST, pull_of("g", 8, 0));
        // Another expression takes the place of the first.
        client.expect(response::SUCCESS, subscribing("g", subscription("T", TYPE_SQL92, "age IS NULL", 8)));
        let answer = client.expect(response::SUCCESS, pull_of("g", 8, 0));
        assert_eq!(offsets(&answer), [21]);
    });
}

#[test]
fn wrong_expressions_are_refused_and_say_where() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        put(&mut client, &[], b"x");
        for (kind, expression, reason) in [
            (TYPE_SQL92, "age > ", "line 1, column 7"),
            (TYPE_SQL92, "age > 5 AND name LIKE 'x'", "`LIKE` at line 1, column 18"),
            (TYPE_SQL92, &"(".repeat(1_000), "nested deeper than 64"),
            (TYPE_SQL92, &format!("a = '{}'", "x".repeat(20_000)), "at most 16384"),
            ("SQL99", "TRUE", "no expression type SQL99"),
        ] {
            let answer = client.expect(response::SUBSCRIPTION_PARSE_FAILED, check(kind, expression));
            assert!(answer.header.remark.contains(reason), "{answer:?}");
            let mut header = pull_header("T", 0, 0);
            (header.subscription, header.expression_type) = (Some(expression), Some(kind));
            let pull = pull_with(request::PULL_MESSAGE, header);
            let answer = client.expect(response::SUBSCRIPTION_PARSE_FAILED, pull);
            assert!(answer.header.remark.contains(reason), "{answer:?}");
            // A heartbeat is one for many topics: it is taken, and pulls say what is wrong.
            client.expect(response::SUCCESS, subscribing(kind, subscription("T", kind, expression, 1)));
            let answer = client.expect(response::FILTER_DATA_NOT_EXIST, pull_of(kind, 1, 0));
            assert!(answer.header.remark.contains(reason), "{answer:?}");
            client.expect(response::SUCCESS, subscribing(kind, subscription("T", "TAG", "*", 2)));
            client.expect(response::SUCCESS, pull_of(kind, 2, 0));
            client.expect(response::SUCCESS, subscribing(kind, subscription("U", "TAG", "*", 2)));
        }
        client.expect(response::SUCCESS, check("TAG", "a || b"));
        client.expect(response::SUCCESS, telling(request::CHECK_CLIENT_CONFIG, &[], ""));
    });
}

#[test]
fn a_pull_waits_for_what_it_wants_and_for_nothing_else() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut consumer, mut producer] = [server.client(), server.client()];
        producer.expect(response::SUCCESS, create_topic("T", 1));
        let waiting = consumer.write(pull_by("kind = 'b'", 0, 30_000));
        (0..5).for_each(|_| put(&mut producer, &[("kind", "a")], b"x"));
        // What the broker answered before is read before: had it woken wrongly, this would not be the first.
        put(&mut producer, &[("kind", "b")], b"y");
        let answer = consumer.answer(waiting);
        assert_eq!((answer.header.code, offsets(&answer)), (response::SUCCESS, vec![5]), "{answer:?}");
        assert_eq!(number(&answer, "nextBeginOffset"), 6);
        // The end of its time: it is told how far it need not look again.
        let waiting = consumer.write(pull_by("kind = 'b'", 0, 1_000));
        let answer = consumer.answer(waiting);
        assert_eq!((answer.header.code, offsets(&answer)), (response::SUCCESS, vec![5]));
        let waiting = consumer.write(pull_by("kind = 'c'", 0, 300));
        let answer = consumer.answer(waiting);
        let next = number(&answer, "nextBeginOffset");
        assert_eq!((answer.header.code, next), (response::PULL_NOT_FOUND, 6), "{answer:?}");
    });
}

#[test]
fn a_pull_looks_at_so_many_messages_also_at_those_on_the_disk() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        // More than one read of the disk takes, and more than one pull compares.
        let body = vec![b'x'; 2_000];
        for index in 0..3_000 {
            let mut pairs = vec![("kind", "often")];
            if index % 1_000 == 999 {
                pairs[0].1 = "rare";
            }
            client.write(send_as(request::SEND_MESSAGE_V2, "T", 0, &properties(&pairs), &body));
        }
        (0..3_000).for_each(|_| drop(client.read()));
        for is_cold in [false, true] {
            if is_cold {
                server.stop();
                server = Server::with_cores(home, cores, &[]);
                client = server.client();
            }
            let (mut offset, mut found, mut pulls) = (0, Vec::new(), 0);
            while offset < 3_000 {
                let answer = client.ask(pull_by("kind = 'rare'", offset, 0));
                let next = number(&answer, "nextBeginOffset");
                match answer.header.code {
                    response::SUCCESS => found.extend(offsets(&answer)),
                    code => assert_eq!(code, response::PULL_RETRY_IMMEDIATELY, "{answer:?}"),
                }
                assert!((1..=1_024).contains(&(next - offset)), "{offset} to {next}: it goes on, and not too far");
                (offset, pulls) = (next, pulls + 1);
            }
            assert_eq!(found, [999, 1_999, 2_999], "cold: {is_cold}");
            assert!(pulls <= 100, "{pulls} pulls");
        }
    });
}

#[test]
fn who_does_not_want_filters_switches_them_off() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "broker.property_filter=false"]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        put(&mut client, &[], b"x");
        client.expect(response::SUCCESS, subscribing("g", subscription("T", TYPE_SQL92, "TRUE", 1)));
        for command in [check(TYPE_SQL92, "TRUE"), pull_by("TRUE", 0, 0), pull_of("g", 1, 0)] {
            let answer = client.expect(response::SYSTEM_ERROR, command);
            assert_eq!(answer.header.remark, "The broker does not support consumer to filter message by SQL92");
        }
        client.expect(response::SUCCESS, check("TAG", "a"));
    });
}
