//! What is popped comes to nobody else; who may pop, from where on, and what the broker says of it.

use super::*;

#[test]
fn what_is_popped_comes_to_nobody_else() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two] = [server.client(), server.client()];
        one.expect(response::SUCCESS, create_topic("T", 4));
        none(&mut one, pop("T", -1));
        for queue in 0..4 {
            for index in 0..3 {
                one.expect(response::SUCCESS, send("T", queue, format!("{queue}-{index}").as_bytes()));
            }
        }
        // One queue.
        let answer = one.ask(pop_with(PopMessage { max_msg_nums: 2, ..header("T", 2) }));
        assert_eq!(field(&answer, "startOffsetInfo"), "0 2 0");
        assert_eq!(field(&answer, "msgOffsetInfo"), "0 2 0,1");
        assert_eq!((number(&answer, "restNum"), number(&answer, "invisibleTime")), (1, LONG_MS));
        let first = got(&answer);
        assert_eq!(bodies_of(&first), ["2-0", "2-1"]);
        // All the others, from all queues.
        let mut rest = Vec::new();
        while rest.len() < 10 {
            rest.extend(got(&two.ask(pop("T", -1))));
        }
        let all: BTreeSet<&str> = bodies_of(&first).into_iter().chain(bodies_of(&rest)).collect();
        assert_eq!(all.len(), 12);
        none(&mut one, pop("T", -1));
        none(&mut one, pop("T", 2));
        // Another group has its own.
        let other = PopMessage { consumer_group: "others", ..header("T", 2) };
        assert_eq!(got(&one.ask(pop_with(other))).len(), 3);
        for got in first.iter().chain(&rest) {
            one.expect(response::SUCCESS, ack(got));
            // Again is no error, and changes nothing.
            two.expect(response::SUCCESS, ack(got));
        }
        server.stop();
        // Stopping has written everything down.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        none(&mut client, pop("T", -1));
        for queue in 0..4 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(3));
        }
    });
}

#[test]
fn a_pop_waits_for_a_message_in_any_queue() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut producer] = [server.client(), server.client(), server.client()];
        producer.expect(response::SUCCESS, create_topic("T", 4));
        let waiting =
            |client: &mut Client, queue| client.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", queue) }));
        for queue in 0..4 {
            // Each of them gets one of two messages, wherever they are.
            let [first, second] = [waiting(&mut one, -1), waiting(&mut two, -1)];
            await_polling(&mut producer, 2);
            assert_eq!(polling(&mut producer, "1"), 0);
            producer.expect(response::SUCCESS, send("T", queue, b"a"));
            producer.expect(response::SUCCESS, send("T", (queue + 1) % 4, b"b"));
            let [first, second] = [got(&one.answer(first)), got(&two.answer(second))];
            let both = [bodies_of(&first), bodies_of(&second)].concat();
            assert_eq!(BTreeSet::from_iter(both), BTreeSet::from(["a", "b"]));
        }
        // One queue alone; and what tells of messages without giving them.
        let first = waiting(&mut one, 3);
        let mut notice = Command::request(request::NOTIFICATION);
        let asked = Notification {
            consumer_group: "noticed",
            topic: "T",
            queue_id: 3,
            poll_time: 60_000,
            ..Notification::default()
        };
        asked.push(&mut notice.header.fields);
        let answer = two.expect(response::SUCCESS, notice.clone());
        assert_eq!((field(&answer, "hasMsg"), field(&answer, "pollingFull")), ("true", "false"));
        notice.header.fields.push("consumerGroup", GROUP);
        let second = two.write(notice.clone());
        producer.expect(response::SUCCESS, send("T", 2, b"not for them"));
        producer.expect(response::SUCCESS, send("T", 3, b"c"));
        assert_eq!(field(&two.answer(second), "hasMsg"), "true");
        assert_eq!(bodies_of(&got(&one.answer(first))), ["c"]);
        notice.header.fields.push("pollTime", "300");
        assert_eq!(field(&two.expect(response::SUCCESS, notice), "hasMsg"), "false");
        let began = now_ms();
        none(&mut one, pop_with(PopMessage { poll_time: 700, ..header("T", 3) }));
        assert!(now_ms() - began >= 690, "it waits as long as it may");
    });
}

#[test]
fn a_message_is_given_another_time() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let popped = got(&client.ask(pop("T", 0)));
        let answer = client.expect(response::SUCCESS, change(&popped[1], LONG_MS / 2));
        assert_eq!((number(&answer, "invisibleTime"), number(&answer, "reviveQid")), (LONG_MS / 2, 0));
        let handle = format!("1 {} {} 0 0 broker-a 0 1", field(&answer, "popTime"), LONG_MS / 2);
        let changed = Got { handle, ..popped[1].clone() };
        client.expect(response::NO_MESSAGE, change(&popped[1], LONG_MS));
        client.expect(response::SUCCESS, ack(&popped[0]));
        client.expect(response::SUCCESS, change(&changed, 10));
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["b"], 1));
        client.expect(response::SUCCESS, ack(&again[0]));
        // Set aside unused it does not count as a try.
        client.expect(response::SUCCESS, send("T", 0, b"c"));
        let popped = pop_all(&mut client, "T", 1);
        let mut aside = change(&popped[0], 0);
        aside.header.fields.push("suspend", "true");
        client.expect(response::SUCCESS, aside);
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["c"], 0));
    });
}

#[test]
fn tags_choose_and_what_is_not_wanted_does_not_come_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..40 {
            let text = properties(&[("TAGS", if index % 5 == 0 { "A" } else { "B" })]);
            client.expect(
                response::SUCCESS,
                send_as(request::SEND_MESSAGE_V2, "T", 0, &text, index.to_string().as_bytes()),
            );
        }
        let tagged = |tags| pop_with(PopMessage { expression: Some(tags), max_msg_nums: 3, ..header("T", 0) });
        let first = got(&client.ask(tagged("A")));
        assert_eq!(bodies_of(&first), ["0", "5", "10"]);
        assert_eq!(bodies_of(&got(&client.ask(tagged("A || C")))), ["15", "20", "25"]);
        client.expect(response::SUCCESS, ack(&first[1]));
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, tagged("||"));
        assert_eq!(bodies_of(&got(&client.ask(tagged("A")))), ["30", "35"]);
        none(&mut client, tagged("B"));
    });
}

#[test]
fn where_a_group_begins_and_where_others_send_it() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..5 {
            client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
        }
        // A young queue is read from its beginning, as by those who pull.
        let last = PopMessage { init_mode: 1, max_msg_nums: 2, ..header("T", 0) };
        assert_eq!(bodies_of(&got(&client.ask(pop_with(last)))), ["0", "1"]);
        client.expect(response::SUCCESS, heartbeat("client", GROUP, &["T"]));
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 4));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["4"]);
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 3));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["3", "4"]);
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
        // An offset behind the end is no way to lose what comes.
        client.expect(response::SUCCESS, commit(GROUP, "T", 0, 1_000));
        none(&mut client, pop("T", 0));
        client.expect(response::SUCCESS, send("T", 0, b"5"));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 0)))), ["5"]);
    });
}

#[test]
fn a_full_queue_gives_no_more_and_goes_on_when_it_has_room() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &["--set", "limits.pop_unacked=32"]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 1));
        for index in 0..40 {
            client.expect(response::SUCCESS, send("T", 0, index.to_string().as_bytes()));
        }
        let popped = got(&client.ask(pop("T", 0)));
        assert_eq!(popped.len(), 32);
        none(&mut client, pop("T", 0));
        let waiting = other.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", 0) }));
        none(&mut client, pop("T", 0));
        client.expect(response::SUCCESS, ack(&popped[7]));
        assert_eq!(bodies_of(&got(&other.answer(waiting))), ["32"]);
    });
}

#[test]
fn bad_requests_have_rocketmqs_codes_and_change_nothing() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        client.expect(response::SUCCESS, send("T", 0, b"a"));
        let asked = header("T", 0);
        for (code, bad) in [
            (response::TOPIC_NOT_EXIST, PopMessage { topic: "none", ..asked }),
            (response::INVALID_PARAMETER, PopMessage { queue_id: 2, ..asked }),
            (response::INVALID_PARAMETER, PopMessage { max_msg_nums: 33, ..asked }),
            (response::SUBSCRIPTION_GROUP_NOT_EXIST, PopMessage { consumer_group: "a b", ..asked }),
            (response::POLLING_TIMEOUT, PopMessage { born_time: Some(now_ms() - 60_000), ..asked }),
        ] {
            client.expect(code, pop_with(bad));
        }
        let off = br#"{"groupName":"off","consumeEnable":false}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &off[..]));
        client.expect(response::NO_PERMISSION, pop_with(PopMessage { consumer_group: "off", ..asked }));
        client.expect(response::SYSTEM_ERROR, asking(request::POP_MESSAGE, &[("topic", "T")]));

        // Years are limited to days.
        let answer = client.ask(pop_with(PopMessage { invisible_time: i64::MAX, ..asked }));
        assert_eq!(number(&answer, "invisibleTime"), 259_200_000);
        let real = got(&answer).remove(0);
        let forged = |handle: &str| Got { handle: handle.to_owned(), ..real.clone() };
        let pop_ms = real.handle.split(' ').nth(1).unwrap().to_owned();
        for (code, bad) in [
            (response::SUCCESS, forged(&format!("0 {pop_ms} 60000 0 0 broker-b 0 0"))),
            (response::SUCCESS, forged("0 1 60000 0 0 broker-a 0 0")),
            (response::SYSTEM_ERROR, forged("")),
            (response::SYSTEM_ERROR, forged("x y z")),
            (response::SYSTEM_ERROR, forged("-1 -1 -1 -1 -1 -1")),
            (response::MESSAGE_ILLEGAL, Got { queue: 2, ..real.clone() }),
            (response::MESSAGE_ILLEGAL, Got { queue: -1, ..real.clone() }),
            (response::NO_MESSAGE, Got { offset: 2, ..real.clone() }),
            (response::NO_MESSAGE, Got { offset: -1, ..real.clone() }),
            (response::TOPIC_NOT_EXIST, Got { topic: "none".to_owned(), ..real.clone() }),
            (response::SUCCESS, Got { queue: 1, offset: 0, ..real.clone() }),
        ] {
            client.expect(code, ack(&bad));
            let code = if code == response::SUCCESS { response::NO_MESSAGE } else { code };
            client.expect(code, change(&bad, 1_000));
        }
        client.expect(response::NO_MESSAGE, asking(request::BATCH_ACK_MESSAGE, &[]));
        client.expect(response::SYSTEM_ERROR, telling(request::BATCH_ACK_MESSAGE, &[], &b"{"[..]));
        let strange = BatchAck { retry: "7".to_owned(), topic: "T".to_owned(), ..BatchAck::default() };
        let far = BatchAck {
            bits: BitSet(vec![0xff; 100_000]),
            consumer_group: GROUP.to_owned(),
            topic: "T".to_owned(),
            retry: "0".to_owned(),
            start_offset: i64::MAX,
            ..BatchAck::default()
        };
        let body = bodies::encode(&BatchAcks { acks: vec![strange, far], ..BatchAcks::default() });
        client.expect(response::SUCCESS, telling(request::BATCH_ACK_MESSAGE, &[], body));
        // It is still on loan, and its own handle is good.
        none(&mut client, pop("T", -1));
        let answer = client.expect(response::SUCCESS, change(&real, i64::MAX));
        assert_eq!(number(&answer, "invisibleTime"), 259_200_000);
        // The fast port serves no pops.
        Client::connect(server.fast()).expect(response::REQUEST_CODE_NOT_SUPPORTED, pop("T", 0));
    });
}

#[test]
fn the_broker_says_who_gets_what() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut one, mut two, mut three] = [server.client(), server.client(), server.client()];
        one.expect(response::SUCCESS, create_topic("T", 5));
        let assigned = |client: &mut Client, id: &str, strategy: &str, topic: &str| {
            let asked = QueryAssignment {
                client_id: id.to_owned(),
                consumer_group: GROUP.to_owned(),
                strategy_name: strategy.to_owned(),
                topic: topic.to_owned(),
                ..QueryAssignment::default()
            };
            let answer =
                client.expect(response::SUCCESS, telling(request::QUERY_ASSIGNMENT, &[], bodies::encode(&asked)));
            let found: Assignments = bodies::decode(&answer.body).unwrap();
            let found = found.message_queue_assignments?;
            assert!(found.iter().all(|one| one.message_queue.broker_name == "broker-a"));
            let modes: BTreeSet<bool> = found.iter().map(|one| one.mode == RequestMode::Pop).collect();
            assert!(modes.len() < 2);
            let queues: Vec<i32> = found.iter().map(|one| one.message_queue.queue_id).collect();
            Some((modes.contains(&true), queues))
        };
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), None, "there is no such group yet");
        for (client, id) in [(&mut one, "a"), (&mut two, "b"), (&mut three, "c")] {
            client.expect(response::SUCCESS, heartbeat(id, GROUP, &["T"]));
        }
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((false, vec![0, 1])));
        assert_eq!(assigned(&mut one, "b", "AVG", "T"), Some((false, vec![2, 3])));
        assert_eq!(assigned(&mut one, "c", "AVG_BY_CIRCLE", "T"), Some((false, vec![2])));
        assert_eq!(assigned(&mut one, "nobody", "AVG", "T"), Some((false, vec![])));
        assert_eq!(assigned(&mut one, "a", "BY_LOT", "T"), None);
        assert_eq!(assigned(&mut one, "a", "AVG", "none"), None);

        let mode = |share, topic: &str, group: &str| {
            let mode = SetRequestMode {
                consumer_group: group.to_owned(),
                mode: RequestMode::Pop,
                pop_share_queue_num: share,
                topic: topic.to_owned(),
            };
            telling(request::SET_MESSAGE_REQUEST_MODE, &[], bodies::encode(&mode))
        };
        one.expect(response::TOPIC_NOT_EXIST, mode(0, "none", GROUP));
        one.expect(response::NO_PERMISSION, mode(0, "%RETRY%poppers", GROUP));
        one.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, mode(0, "T", "a/b"));
        one.expect(response::SUCCESS, mode(1, "T", GROUP));
        // Each client works on its own queues and on the next one's.
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((true, vec![0, 1, 2, 3])));
        assert_eq!(assigned(&mut one, "c", "AVG", "T"), Some((true, vec![0, 1, 4])));
        one.expect(response::SUCCESS, mode(0, "T", GROUP));
        server.kill();

        // The setting lasts.
        let server = Server::with_cores(home, cores, &[]);
        let mut one = server.client();
        one.expect(response::SUCCESS, heartbeat("a", GROUP, &["T"]));
        assert_eq!(assigned(&mut one, "a", "AVG", "T"), Some((true, vec![-1])));
        assert_eq!(assigned(&mut one, "a", "AVG", "%RETRY%poppers"), Some((false, vec![0])));
        let answer = one.expect(response::SUCCESS, asking(request::GET_ALL_MESSAGE_REQUEST_MODE, &[]));
        let modes: RequestModes = bodies::decode(&answer.body).unwrap();
        assert_eq!(modes.message_request_mode_map["T"][GROUP].mode, RequestMode::Pop);
    });
}

#[test]
fn what_is_peeked_at_stays() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        let answer = client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", -1, 5));
        assert_eq!((number(&answer, "restNum"), answer.body.len()), (0, 0));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let seen = |client: &mut Client, queue: i32, count: i32| {
            let answer = client.expect(response::SUCCESS, peek(GROUP, "T", queue, count));
            let bodies =
                messages(&answer).into_iter().map(|message| String::from_utf8_lossy(message.body).into_owned());
            (bodies.collect::<Vec<_>>().concat(), number(&answer, "restNum"))
        };
        for _ in 0..2 {
            assert_eq!(seen(&mut client, 1, 2), ("ab".to_owned(), 3));
            assert_eq!(seen(&mut client, -1, 32), ("abc".to_owned(), 3));
        }
        client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", 0, 2));
        let lent = got(&client.ask(pop_with(PopMessage { max_msg_nums: 1, ..header("T", 1) })));
        assert_eq!(bodies_of(&lent), ["a"]);
        assert_eq!(seen(&mut client, 1, 2), ("bc".to_owned(), 2), "what is on loan is not shown");
        client.expect(response::TOPIC_NOT_EXIST, peek(GROUP, "U", -1, 2));
        client.expect(response::INVALID_PARAMETER, peek(GROUP, "T", 2, 2));
        client.expect(response::SUBSCRIPTION_GROUP_NOT_EXIST, peek("no group", "T", 1, 2));
        client.expect(response::PULL_NOT_FOUND, peek(GROUP, "T", 1, -1));
        server.stop();
    });
}

#[test]
fn who_asks_for_tags_is_told_of_them_alone() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut producer] = [server.client(), server.client()];
        producer.expect(response::SUCCESS, create_topic("T", 4));
        let notice = |expression: &str, poll_time: i64| {
            let mut command = Command::request(request::NOTIFICATION);
            let header =
                Notification { consumer_group: GROUP, topic: "T", queue_id: -1, poll_time, ..Default::default() };
            header.push(&mut command.header.fields);
            command.header.fields.push("expType", "TAG");
            command.header.fields.push("exp", expression);
            command
        };
        let tagged = |client: &mut Client, queue: i32, tag: &str| {
            let text = properties(&[("TAGS", tag)]);
            client.expect(response::SUCCESS, send_as(request::SEND_MESSAGE_V2, "T", queue, &text, b"x"));
        };
        let told = |answer: &Command| field(answer, "hasMsg") == "true";
        assert!(!told(&client.expect(response::SUCCESS, notice("A", 0))));
        // Two with filters of their own wait; each is told of its own.
        let [a, b] = ["A || C", "B"].map(|expression| client.write(notice(expression, 60_000)));
        tagged(&mut producer, 1, "D");
        tagged(&mut producer, 2, "B");
        assert!(told(&client.answer(b)));
        tagged(&mut producer, 3, "C");
        assert!(told(&client.answer(a)));
        assert!(!told(&client.expect(response::SUCCESS, notice("A", 300))));
        assert!(told(&client.expect(response::SUCCESS, notice("*", 0))));
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, notice("||", 0));
        let mut wrong = notice("a =", 0);
        wrong.header.fields.push("expType", "SQL92");
        client.expect(response::SUBSCRIPTION_PARSE_FAILED, wrong);
        // When many wait, nobody looks at them.
        (0..64).for_each(|_| tagged(&mut producer, 0, "D"));
        assert!(told(&client.expect(response::SUCCESS, notice("A", 0))));
        server.stop();
    });
}

#[test]
fn an_account_hears_that_offsets_were_cloned_to_it() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 2));
        for index in 0..3 {
            client.expect(response::SUCCESS, send("T", 1, format!("{index}").as_bytes()));
        }
        client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
        client.expect(response::SUCCESS, commit("g", "T", 1, 1));
        let lent = got(&client.ask(pop("T", 1)));
        assert_eq!(lent.len(), 3);
        let fields = [("srcGroup", "g"), ("destGroup", GROUP), ("topic", "T"), ("offline", "true")];
        client.expect(response::SUCCESS, asking(request::CLONE_GROUP_OFFSET, &fields));
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1));
        // What the group does from then on is written over it.
        client.expect(response::SUCCESS, ack(&lent[2]));
        wait_until_durable(&mut client);
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1));
        assert_eq!(bodies_of(&got(&client.ask(pop("T", 1)))), ["1", "2"]);
        server.stop();
    });
}

#[test]
fn a_time_that_is_over_already_is_now() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, send("T", 0, b"a"));
        let asked = |invisible_time| PopMessage { invisible_time, poll_time: 30_000, ..header("T", 0) };
        let answer = client.ask(pop_with(asked(i64::MIN)));
        assert_eq!((bodies_of(&got(&answer)), number(&answer, "invisibleTime")), (vec!["a"], 1));
        assert_eq!(got(&client.ask(pop_with(asked(0))))[0].times, 1);
        let lent = got(&client.ask(pop_with(asked(LONG_MS))));
        assert_eq!((bodies_of(&lent), lent[0].times), (vec!["a"], 2));
        let answer = client.expect(response::SUCCESS, change(&lent[0], -5_000));
        assert_eq!(number(&answer, "invisibleTime"), 0);
        let lent = got(&client.ask(pop_with(asked(LONG_MS))));
        assert_eq!((bodies_of(&lent), lent[0].times), (vec!["a"], 3));
        client.expect(response::SUCCESS, send("T", 0, b"b"));
        for invisible_time in [-1, 0, LONG_MS] {
            let lent = got(&client.ask(pop_with(PopMessage { order: true, ..asked(invisible_time) })));
            assert_eq!(bodies_of(&lent), ["b"]);
        }
        none(&mut client, pop_with(PopMessage { order: true, poll_time: 0, ..asked(1) }));
        server.stop();
    });
}
