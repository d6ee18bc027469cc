//! Pops in order of priority.

use super::*;

/// A topic (17) whose queues are levels of priority.
fn create_priority_topic(topic: &str, queues: u32) -> Command {
    let mut command = create_topic(topic, queues);
    command.header.fields.push("attributes", "+message.type=PRIORITY");
    command
}

#[test]
fn the_most_urgent_messages_are_popped_first() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        let priority = |client: &mut Client, code: i32, queue: i32, pairs: &[(&str, &str)]| {
            let answer = client.expect(response::SUCCESS, send_as(code, "T", queue, &properties(pairs), b"x"));
            number(&answer, "queueId")
        };
        let key = "_SYS_MSG_PRIORITY_";
        // Property, queue that the producer names, queue that it goes to.
        let codes = [request::SEND_MESSAGE, request::SEND_MESSAGE_V2];
        for (index, (value, named, wanted)) in
            [("0", 3, 0), ("2", -1, 2), ("3", 0, 3), ("4", 0, 3), ("2147483647", 1, 3)].into_iter().enumerate()
        {
            assert_eq!(priority(&mut client, codes[index % 2], named, &[(key, value)]), wanted, "{value}");
        }
        // No priority at all, and one that does not count beside another type; then it is not kept.
        assert_eq!(priority(&mut client, codes[0], 1, &[(key, "-1")]), 1);
        assert_eq!(priority(&mut client, codes[1], 1, &[(key, "soon")]), 1);
        assert_eq!(priority(&mut client, codes[1], 1, &[(key, "3"), ("__SHARDINGKEY", "s")]), 1);
        let wrong = send_as(request::SEND_MESSAGE_V2, "T", 4, &properties(&[(key, "1")]), b"x");
        client.expect(response::INVALID_PARAMETER, wrong);
        let one = |client: &mut Client| {
            let answer = client.ask(pop_with(PopMessage { max_msg_nums: 1, ..header("T", -1) }));
            let got = got(&answer);
            assert_eq!(got.len(), 1);
            got[0].clone()
        };
        let queues: Vec<i32> = (0..8).map(|_| one(&mut client).queue).collect();
        assert_eq!(queues, [3, 3, 3, 2, 1, 1, 1, 0]);
        let answer = client.ask(pop_with(PopMessage { consumer_group: "others", max_msg_nums: 8, ..header("T", 1) }));
        let texts: Vec<String> = got(&answer).into_iter().map(|got| got.properties).collect();
        let kept = |text: &String| protocol::properties::get(text, key).is_some();
        assert_eq!(texts.iter().map(kept).collect::<Vec<_>>(), [true, true, false]);
        // The other way round, and for a group that does not want it.
        set(&mut client, "priorityOrderAsc=false");
        for queue in 0..4 {
            assert_eq!(priority(&mut client, codes[0], 0, &[(key, &queue.to_string())]), queue);
        }
        assert_eq!((0..4).map(|_| one(&mut client).queue).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let text = br#"{"groupName":"poppers","attributes":{"+priority.factor":"0"}}"#;
        client.expect(response::SUCCESS, telling(request::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[], &text[..]));
        for _ in 0..16 {
            (0..4).for_each(|queue| _ = priority(&mut client, codes[1], 0, &[(key, &queue.to_string())]));
        }
        // As many as each queue has.
        let first: BTreeSet<i32> = (0..16).map(|_| one(&mut client).queue).collect();
        assert!(first.len() > 1, "any queue may come first");
        server.stop();
    });
}

#[test]
fn what_comes_again_keeps_its_priority_if_it_is_to() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        set(&mut client, "useSeparateRetryQueue=true\npopFromRetryProbabilityForPriority=100");
        let sent = |client: &mut Client, queue: i32, body: &str| {
            client.expect(response::SUCCESS, send("T", queue, body.as_bytes()));
        };
        sent(&mut client, 1, "low");
        let lent = got(&client.ask(pop("T", -1)));
        assert_eq!(bodies_of(&lent), ["low"]);
        let (retry, long) = (format!("%RETRY%{GROUP}_T"), PopMessage { poll_time: 30_000, ..header("T", -1) });
        // It waits for what comes again, in a topic that is not there yet.
        let waiting = client.write(pop_with(long));
        client.expect(response::SUCCESS, change(&lent[0], 50));
        let again = got(&client.answer(waiting));
        assert_eq!((bodies_of(&again), again[0].queue, again[0].times), (vec!["low"], 1, 1));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &retry, 1), 1);
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &retry, 0), 0);
        // What comes again goes first, by its priority; then what is new, by its own.
        for (queue, body) in [(0, "a"), (2, "b")] {
            sent(&mut client, queue, body);
        }
        let lent = got(&client.ask(pop_with(PopMessage { invisible_time: 50, ..header("T", -1) })));
        assert!(!lent.is_empty());
        let until_ms = now_ms() + 60_000;
        while edge(&mut client, request::GET_MAX_OFFSET, &retry, lent[0].queue) == 0 {
            assert!(now_ms() < until_ms, "it comes again");
        }
        sent(&mut client, 3, "new");
        let one = PopMessage { max_msg_nums: 1, ..header("T", -1) };
        let first = got(&client.ask(pop_with(one)));
        assert_eq!((first[0].times, first[0].queue), (1, lent[0].queue));
        server.stop();
    });
}

#[test]
fn one_level_of_priority_has_the_same_share_of_what_comes_again() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_priority_topic("T", 4));
        for (ordinary, priority, wanted) in [(0, 100, "again"), (100, 0, "new")] {
            let line = format!("popFromRetryProbability={ordinary}\npopFromRetryProbabilityForPriority={priority}");
            set(&mut client, &line);
            client.expect(response::SUCCESS, send("T", 1, b"again"));
            let lent = got(&client.ask(pop("T", 1)));
            let retry = format!("%RETRY%{GROUP}_T");
            let before = edge(&mut client, request::GET_MAX_OFFSET, &retry, 0);
            give_back(&mut client, &lent[0], "T", before + 1);
            client.expect(response::SUCCESS, send("T", 1, b"new"));
            let one = || pop_with(PopMessage { max_msg_nums: 1, ..header("T", 1) });
            let both = [0, 1].map(|_| got(&client.ask(one())).remove(0));
            assert_eq!(both[0].body, wanted);
            both.iter().for_each(|got| _ = client.expect(response::SUCCESS, ack(got)));
        }
        server.stop();
    });
}
