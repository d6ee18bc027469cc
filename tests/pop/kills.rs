//! What is on loan, and what was answered of it, outlives `kill -9`.

use super::*;

#[test]
fn what_is_on_loan_outlives_kill_9_and_so_do_its_handles() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 3));
        let mut left = BTreeSet::new();
        for index in 0..300 {
            let body = format!("m{index}");
            client.expect(response::SUCCESS, send("T", index % 3, body.as_bytes()));
            left.insert(body);
        }
        let mut popped = Vec::new();
        while popped.len() < 300 {
            popped.extend(got(&client.ask(pop("T", -1))));
        }
        assert_eq!(popped.iter().map(|got| got.body.clone()).collect::<BTreeSet<_>>(), left);
        // In each life with the handles of the first one: single ones, and one request for others.
        for round in 0..3 {
            for got in popped.iter().filter(|got| got.offset % 9 == round) {
                client.expect(response::SUCCESS, ack(got));
                left.remove(&got.body);
            }
            let is_wanted = |got: &Got| got.offset % 8 == round;
            client.expect(response::SUCCESS, ack_batch(&popped, is_wanted));
            popped.iter().filter(|got| is_wanted(got)).for_each(|got| _ = left.remove(&got.body));
            server.kill();
            server = Server::with_cores(home, cores, &[]);
            client = server.client();
            // Nobody else gets what is on loan.
            none(&mut client, pop("T", -1));
            for queue in 0..3 {
                let mine = popped.iter().filter(|got| got.queue == queue && left.contains(&got.body));
                assert_eq!(committed(&mut client, GROUP, "T", queue), mine.map(|got| got.offset).min());
            }
        }
        // All that is left is given back, and comes again as what was tried once.
        for got in popped.iter().filter(|got| left.contains(&got.body)) {
            client.expect(response::SUCCESS, change(got, 0));
        }
        let again = pop_all(&mut client, "T", left.len());
        assert_eq!(again.iter().map(|got| got.body.clone()).collect::<BTreeSet<_>>(), left);
        assert!(again.len() == left.len() && again.iter().all(|got| got.times == 1));
        for got in &again {
            client.expect(response::SUCCESS, ack(got));
        }
        none(&mut client, pop("T", -1));
        for queue in 0..3 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(100));
        }
    });
}

#[test]
fn what_was_answered_about_a_pop_is_known_right_after_kill_9() {
    with_cores(|home, cores| {
        let mut server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 3));
        let mut wanted = BTreeSet::new();
        for index in 0..60 {
            let body = format!("m{index}");
            client.expect(response::SUCCESS, send("T", index % 3, body.as_bytes()));
            wanted.insert(body);
        }
        let restart = |server: Server| {
            server.kill();
            let server = Server::with_cores(home, cores, &[]);
            let client = server.client();
            (server, client)
        };
        let mut seen = BTreeSet::new();
        while !wanted.is_empty() {
            let popped = got(&client.ask(pop_with(PopMessage { max_msg_nums: 8, ..header("T", -1) })));
            (server, client) = restart(server);
            // Nobody gets it once more, and who has it is done with one, gives one another time, and the rest another.
            let [one, two, rest @ ..] = &popped[..] else { panic!("{popped:?}") };
            client.expect(response::SUCCESS, ack(one));
            let answer = client.ask(change(two, LONG_MS));
            assert_eq!(answer.header.code, response::SUCCESS, "{answer:?}");
            let (offset, queue) = (two.offset, two.queue);
            let handle = format!("{offset} {} {LONG_MS} 0 0 broker-a {queue} {offset}", field(&answer, "popTime"));
            (server, client) = restart(server);
            assert_eq!(client.ask(change(two, 0)).header.code, response::NO_MESSAGE, "it has another handle");
            client.expect(response::SUCCESS, ack(&Got { handle, ..two.clone() }));
            client.expect(response::SUCCESS, ack_batch(rest, |_| true));
            (server, client) = restart(server);
            for got in &popped {
                assert!(seen.insert(got.body.clone()), "{} came twice", got.body);
                wanted.remove(&got.body);
            }
        }
        none(&mut client, pop("T", -1));
        for queue in 0..3 {
            assert_eq!(committed(&mut client, GROUP, "T", queue), Some(20));
        }
    });
}

#[test]
fn a_loan_that_ends_while_the_broker_is_down_comes_again() {
    let test = |home: &Path, cores: &str, ends_in_ms: i64| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let popped = got(&client.ask(pop("T", 0)));
        client.expect(response::SUCCESS, ack(&popped[0]));
        let ends_ms = now_ms() + ends_in_ms;
        client.expect(response::SUCCESS, change(&popped[1], ends_in_ms));
        server.kill();
        let Ok(left_ms) = u64::try_from(ends_ms - now_ms()) else { return false };
        std::thread::sleep(Duration::from_millis(left_ms));
        // Who waits is told although nobody sends.
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let again = pop_all(&mut client, "T", 1);
        assert_eq!((bodies_of(&again), again[0].times), (vec!["b"], 1));
        // The topic that is made again has another message there: the handle is not of that.
        wait_until_durable(&mut client);
        client.expect(response::SUCCESS, asking(request::DELETE_TOPIC_IN_BROKER, &[("topic", "T")]));
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["c", "d"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let other = got(&client.ask(pop("T", 0)));
        assert_eq!(bodies_of(&other), ["c", "d"]);
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, ack(&popped[0]));
        client.expect(response::SUCCESS, ack_batch(&popped, |_| true));
        for got in &other {
            client.expect(response::SUCCESS, change(got, 50));
        }
        let mut again = pop_all(&mut client, "T", 2);
        again.sort_by_key(|got| got.body.clone());
        assert_eq!(bodies_of(&again), ["c", "d"]);
        true
    };
    with_cores(|home, cores| in_time(home, [1_000, 5_000, 20_000], |home, ms| test(home, cores, ms)));
}

#[test]
fn an_orderly_loan_outlives_kill_9_with_how_often_it_was_lent() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = |invisible_time, attempt, poll_time| {
            let asked = PopMessage { order: true, max_msg_nums: 2, ..header("T", 0) };
            pop_with(PopMessage { invisible_time, attempt_id: attempt, poll_time, ..asked })
        };
        assert_eq!(bodies_of(&got(&client.ask(orderly(50, Some("one"), 0)))), ["a", "b"]);
        let answer = client.ask(orderly(LONG_MS, Some("two"), 30_000));
        assert_eq!(field(&answer, "orderCountInfo"), "0 qo0%0 1;0 qo0%1 1;0 0 1");
        let first = got(&answer);
        client.expect(response::SUCCESS, ack(&first[0]));
        server.kill();

        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        none(&mut client, orderly(LONG_MS, Some("three"), 0));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        // In its own attempt it is given once more, which is no further try.
        let answer = client.ask(orderly(LONG_MS, Some("two"), 0));
        let second = got(&answer);
        assert_eq!((bodies_of(&second), field(&answer, "orderCountInfo")), (vec!["b", "c"], "0 qo0%1 1;0 0 0"));
        let waiting = client.write(orderly(LONG_MS, Some("four"), 60_000));
        client.expect(response::SUCCESS, change(&second[1], 50));
        client.expect(response::SUCCESS, change(&second[0], 50));
        let answer = client.answer(waiting);
        let third = got(&answer);
        assert_eq!(
            (bodies_of(&third), field(&answer, "orderCountInfo")),
            (vec!["b", "c"], "0 qo0%1 2;0 qo0%2 1;0 0 1")
        );
        server.kill();

        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, ack(&second[0]));
        none(&mut client, orderly(LONG_MS, None, 0));
        client.expect(response::SUCCESS, ack(&third[0]));
        client.expect(response::SUCCESS, ack(&third[1]));
        none(&mut client, orderly(LONG_MS, None, 0));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
    });
}
