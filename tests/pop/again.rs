//! What is not acknowledged in time comes again, and is found wherever that is.

use super::*;

#[test]
fn what_is_not_acknowledged_in_time_comes_again_however_often() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        // When a message is dead is for its consumer to say.
        let group = br#"{"groupName":"poppers","retryMaxTimes":1}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &group[..]));
        let text = properties(&[("TAGS", "tag"), ("KEYS", "key"), ("own", "x")]);
        for (queue, body) in [(0, "good"), (1, "bad")] {
            client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", queue, &text, body.as_bytes()));
        }
        let good = got(&client.ask(pop("T", 0)));
        client.expect(response::SUCCESS, ack(&good[0]));
        let mut bad = got(&client.ask(pop_with(PopMessage { invisible_time: 50, ..header("T", 1) })));
        for times in 1..4 {
            let stale = bad;
            bad = got(&client.ask(pop_with(PopMessage {
                poll_time: 30_000,
                // The last one is acknowledged.
                invisible_time: if times < 3 { 50 } else { LONG_MS },
                expression: Some("tag"),
                ..header("T", 0)
            })));
            assert_eq!((bodies_of(&bad), bad[0].times), (vec!["bad"], times));
            let retry = format!("%RETRY%{GROUP}_T");
            assert_eq!((bad[0].topic.as_str(), bad[0].queue), (retry.as_str(), 0));
            for known in ["own\u{1}x", "1ST_POP_TIME", "ORIGIN_GROUP\u{1}poppers", "KEYS\u{1}key"] {
                assert!(bad[0].properties.contains(known), "{known:?} in {:?}", bad[0].properties);
            }
            // An old handle means nothing any more.
            client.expect(response::SUCCESS, ack(&stale[0]));
            client.expect(response::NO_MESSAGE, change(&stale[0], LONG_MS));
        }
        client.expect(response::SUCCESS, ack(&bad[0]));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "%DLQ%poppers", 0), 0);
        none(&mut client, pop("T", -1));
    });
}

#[test]
fn all_who_wait_hear_of_a_retry_topic_that_is_new() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut lender] = [server.client(), server.client(), server.client()];
        lender.expect(response::SUCCESS, create_topic("T", 4));
        let lent = [(1, "sooner"), (2, "later")].map(|(queue, body)| {
            lender.expect(response::SUCCESS, send("T", queue, body.as_bytes()));
            let lent = got(&lender.ask(pop("T", queue)));
            assert_eq!(bodies_of(&lent), [body]);
            lent
        });
        // They wait in one line, and do not know the retry topic yet.
        let wait = |client: &mut Client| {
            client.write(pop_with(PopMessage { poll_time: 60_000, max_msg_nums: 1, ..header("T", -1) }))
        };
        let began_ms = now_ms();
        let [first, second] = [wait(&mut one), wait(&mut two)];
        await_polling(&mut lender, 2);
        // The messages come again one after the other.
        give_back(&mut lender, &lent[0][0], "T", 1);
        await_polling(&mut lender, 1);
        give_back(&mut lender, &lent[1][0], "T", 2);
        let both = [got(&one.answer(first)), got(&two.answer(second))];
        assert!(now_ms() - began_ms < 30_000, "they were told, not asked again when their time was over");
        assert_eq!(
            BTreeSet::from_iter(both.iter().flat_map(|got| bodies_of(got))),
            BTreeSet::from(["later", "sooner"])
        );
        server.stop();
    });
}

#[test]
fn what_comes_again_does_not_wait_behind_a_backlog_on_another_core() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "2", &[]);
    let mut client = server.client();
    set(&mut client, "popFromRetryProbability=100");
    let partition =
        |client: &mut Client, topic: &str| messages(&client.ask(pull(topic, 0, 0)))[0].physical_offset >> 48;
    // Topics are dealt to the partitions; of this one the retry topic lies in the other one.
    let is_apart = |topic: &String| {
        client.expect(response::SUCCESS, create_topic(topic, 1));
        client.expect(response::SUCCESS, send(topic, 0, b"again"));
        let lent = got(&client.ask(pop(topic, 0)));
        give_back(&mut client, &lent[0], topic, 1);
        partition(&mut client, topic) != partition(&mut client, &format!("%RETRY%{GROUP}_{topic}"))
    };
    let topic = (0..8).map(|number| format!("T{number}")).find(is_apart).expect("some lie apart");
    for index in 0..200 {
        client.expect(response::SUCCESS, send(&topic, 0, index.to_string().as_bytes()));
    }
    for (times, queue) in [(1, -1), (2, 0), (3, -1)] {
        let one = || pop_with(PopMessage { max_msg_nums: 1, ..header(&topic, queue) });
        let seen: Vec<Got> = (0..10).map(|_| got(&client.ask(one())).remove(0)).collect();
        let again = seen.iter().find(|got| got.body == "again").expect("it is among the first");
        assert_eq!(again.times, times);
        give_back(&mut client, again, &topic, i64::from(times) + 1);
    }
    server.stop();
}

#[test]
fn a_pop_with_room_left_takes_what_comes_again_too() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &[]);
    let mut client = server.client();
    set(&mut client, "popFromRetryProbability=0");
    client.expect(response::SUCCESS, create_topic("T", 1));
    client.expect(response::SUCCESS, send("T", 0, b"again"));
    let mut lent = got(&client.ask(pop("T", 0)));
    for (times, queue) in [(1, 0), (2, -1)] {
        give_back(&mut client, &lent[0], "T", times);
        client.expect(response::SUCCESS, send("T", 0, b"new"));
        lent = got(&client.ask(pop("T", queue)));
        lent.sort_by_key(|got| got.body.clone());
        assert_eq!(bodies_of(&lent), ["again", "new"]);
        client.expect(response::SUCCESS, ack(&lent[1]));
    }
    server.stop();
}

#[test]
fn no_queue_of_a_retry_topic_starves_another() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &[]);
    let mut client = server.client();
    set(&mut client, "useSeparateRetryQueue=true\npopFromRetryProbability=100");
    client.expect(response::SUCCESS, create_topic("T", 2));
    for index in 0..25 {
        client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
    }
    client.expect(response::SUCCESS, send("T", 1, b"other"));
    for queue in [1, 0] {
        for lent in got(&client.ask(pop("T", queue))) {
            client.expect(response::SUCCESS, change(&lent, 0));
        }
    }
    let (retry, until_ms) = (format!("%RETRY%{GROUP}_T"), now_ms() + 60_000);
    for (queue, count) in [(0, 25), (1, 1)] {
        while edge(&mut client, request::GET_MAX_OFFSET, &retry, queue) < count {
            assert!(now_ms() < until_ms, "they come again");
        }
    }
    let one = || pop_with(PopMessage { max_msg_nums: 1, ..header("T", -1) });
    let seen: Vec<Got> = (0..20).map(|_| got(&client.ask(one())).remove(0)).collect();
    assert!(seen.iter().any(|got| got.body == "other"), "a pop begins at any of them");
    server.stop();
}

#[test]
fn it_is_told_that_a_message_cannot_come_again() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &["--set", "limits.topics=64"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let is_made = |number: &u32| client.ask(create_topic(&number.to_string(), 1)).header.code == response::SUCCESS;
    let made = (0..64).take_while(is_made).count();
    assert!((1..64).contains(&made), "there is no room for a retry topic");
    client.expect(response::SUCCESS, send("T", 0, b"a"));
    assert_eq!(bodies_of(&got(&client.ask(pop_with(PopMessage { invisible_time: 50, ..header("T", 0) })))), ["a"]);
    let told = || server.log().matches("a popped message cannot come again").count();
    let until_ms = now_ms() + 60_000;
    while told() == 0 {
        assert!(now_ms() < until_ms, "it is in the log");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "0")]));
    assert_eq!(bodies_of(&pop_all(&mut client, "T", 1)), ["a"]);
    assert_eq!(told(), 1);
    server.stop();
}

#[test]
fn what_comes_again_is_found_also_after_the_other_form_of_its_topic_was_chosen() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "broker.pop_retry_v2=true"]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, send("T", 0, b"m"));
        let short = || pop_with(PopMessage { invisible_time: 50, poll_time: 30_000, ..header("T", -1) });
        client.expect(response::SUCCESS, short());
        let again = client.expect(response::SUCCESS, short());
        assert_eq!(handles(&again)[0].split(' ').nth(4), Some("2"), "of the second form");
        client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "enableRetryTopicV2=false"));
        for times in 2..4 {
            let answer = client.expect(response::SUCCESS, short());
            assert_eq!((messages(&answer)[0].body, messages(&answer)[0].reconsume_times), (&b"m"[..], times));
        }
        server.stop();
    });
}
