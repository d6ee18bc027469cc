//! Pops that keep an order: a queue is given to one, and goes on from the first message that is left.

use super::*;

#[test]
fn an_orderly_queue_gives_nothing_before_it_has_its_answers() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 2));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let orderly = |count, invisible_time, attempt| {
            let asked = header("T", -1);
            pop_with(PopMessage { order: true, max_msg_nums: count, invisible_time, attempt_id: attempt, ..asked })
        };
        let answer = client.ask(orderly(2, LONG_MS, Some("one")));
        assert_eq!((number(&answer, "reviveQid"), field(&answer, "orderCountInfo")), (999, "0 1 0"));
        assert_eq!(bodies_of(&got(&answer)), ["a", "b"]);
        none(&mut other, orderly(2, LONG_MS, None));
        none(&mut other, orderly(2, LONG_MS, Some("two")));
        // Who asks again with the same words gets the same.
        let answer = client.ask(orderly(2, LONG_MS, Some("one")));
        assert_eq!(bodies_of(&got(&answer)), ["a", "b"]);
        assert_eq!(field(&answer, "orderCountInfo"), "0 1 0", "which is no further try");
        let popped = got(&answer);
        let told = ["one", "two"].map(|attempt| is_told(&client.ask(notice(attempt, 0))));
        assert_eq!(told, [true, false], "to whom the loan is closed");
        let unknown = Got { offset: 2, ..popped[0].clone() };
        client.expect(response::MESSAGE_ILLEGAL, ack(&unknown));
        // The other one waits until the last answer is there.
        let waiting = other.write(pop_with(PopMessage { order: true, poll_time: 60_000, ..header("T", -1) }));
        client.expect(response::SUCCESS, ack(&popped[1]));
        none(&mut client, orderly(2, LONG_MS, None));
        client.expect(response::SUCCESS, ack(&popped[0]));
        let third = got(&other.answer(waiting));
        assert_eq!(bodies_of(&third), ["c"]);
        // Its time is made short: it comes again in its place.
        let waiting = client.write(pop_with(PopMessage { order: true, poll_time: 60_000, ..header("T", -1) }));
        let answer = other.expect(response::SUCCESS, change(&third[0], 50));
        assert_eq!(field(&answer, "popTime"), third[0].handle.split(' ').nth(1).unwrap());
        let again = got(&client.answer(waiting));
        assert_eq!((bodies_of(&again), again[0].queue), (vec!["c"], 1));
        client.expect(response::SUCCESS, ack(&again[0]));
        none(&mut client, orderly(2, LONG_MS, None));
        // A message tells one of those who wait for it. The other one looks once more when its time is over.
        let mut others = [server.client(), server.client()];
        let began = Instant::now();
        let waiting = others.each_mut().map(|client| client.write(notice("three", 4_000)));
        client.expect(response::SUCCESS, send("T", 1, b"d"));
        let popped = got(&client.ask(orderly(1, LONG_MS, Some("three"))));
        // A slow machine may be done with it only when their time is over.
        let is_late = began.elapsed() > Duration::from_millis(3_900);
        for (client, waiting) in others.iter_mut().zip(waiting) {
            let is_told = is_told(&client.answer(waiting)) || is_late && is_told(&client.ask(notice("three", 0)));
            assert!(is_told, "its own loan is not closed to it");
        }
        client.expect(response::SUCCESS, ack(&popped[0]));
        // One of three is given back: it comes again, and what follows it after it, acknowledged or not.
        for body in ["e", "f", "g"] {
            client.expect(response::SUCCESS, send("T", 1, body.as_bytes()));
        }
        let popped = got(&client.ask(orderly(3, LONG_MS, Some("four"))));
        assert_eq!(bodies_of(&popped), ["e", "f", "g"]);
        client.expect(response::SUCCESS, ack(&popped[0]));
        let waiting = client.write(pop_with(PopMessage { order: true, poll_time: 20_000, ..header("T", -1) }));
        other.expect(response::SUCCESS, change(&popped[1], 50));
        other.expect(response::SUCCESS, ack(&popped[2]));
        let answer = client.answer(waiting);
        let again = got(&answer);
        assert_eq!(
            (bodies_of(&again), field(&answer, "orderCountInfo")),
            (vec!["f", "g"], "0 qo1%5 1;0 qo1%6 1;0 1 1")
        );
        client.expect(response::SUCCESS, ack(&again[0]));
        client.expect(response::SUCCESS, ack(&again[1]));
        none(&mut client, orderly(2, LONG_MS, None));
        assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &format!("%RETRY%{GROUP}_T"), 0), 0);
    });
}

#[test]
fn what_is_left_of_an_orderly_loan_is_for_plain_pops_too() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let [mut client, mut other] = [server.client(), server.client()];
        client.expect(response::SUCCESS, create_topic("T", 1));
        let sent = |client: &mut Client, body: &str| {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        };
        let orderly = || pop_with(PopMessage { order: true, invisible_time: 50, ..header("T", 0) });
        let mut notice = Command::request(request::NOTIFICATION);
        let asked =
            Notification { consumer_group: GROUP, topic: "T", queue_id: 0, poll_time: 30_000, ..Default::default() };
        asked.push(&mut notice.header.fields);
        ["a", "b"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["a", "b"]);
        assert!(is_told(&client.ask(notice)), "who waits hears of its end");
        sent(&mut client, "c");
        assert_eq!(messages(&client.expect(response::SUCCESS, peek(GROUP, "T", 0, 1)))[0].body, b"a");
        let lent = got(&client.ask(pop("T", 0)));
        assert_eq!(bodies_of(&lent), ["a", "b", "c"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        // Who waits for messages gets them; and so it is after a crash.
        ["d", "e"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["d", "e"]);
        let waiting = other.write(pop_with(PopMessage { poll_time: 30_000, ..header("T", -1) }));
        let lent = got(&other.answer(waiting));
        assert_eq!(bodies_of(&lent), ["d", "e"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        ["f", "g"].iter().for_each(|body| sent(&mut client, body));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["f", "g"]);
        server.kill();
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        let lent = pop_all(&mut client, "T", 2);
        assert_eq!(bodies_of(&lent), ["f", "g"]);
        client.expect(response::SUCCESS, ack_batch(&lent, |_| true));
        none(&mut client, orderly());
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(7));
    });
}

#[test]
fn an_orderly_message_with_another_time_is_acknowledged_in_a_batch() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        for body in ["a", "b", "c", "d"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = || pop_with(PopMessage { order: true, max_msg_nums: 3, ..header("T", 0) });
        let mut lent = got(&client.ask(orderly()));
        assert_eq!(bodies_of(&lent), ["a", "b", "c"]);
        // The Java client makes the handle from the answer, and from the message's own offset.
        let answer = client.expect(response::SUCCESS, change(&lent[1], LONG_MS));
        let words = ["popTime", "invisibleTime", "reviveQid"].map(|name| field(&answer, name));
        lent[1].handle = format!("1 {} 0 broker-a 0 1", words.join(" "));
        // Of another time it means nothing.
        let stale = Got { handle: lent[1].handle.replace(words[0], "1"), ..lent[1].clone() };
        client.expect(response::SUCCESS, ack_batch(&[stale], |_| true));
        client.expect(response::SUCCESS, ack_batch(&lent, |got| got.body != "b"));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        none(&mut client, orderly());
        client.expect(response::SUCCESS, ack_batch(&lent, |got| got.body == "b"));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(3));
        assert_eq!(bodies_of(&got(&client.ask(orderly()))), ["d"]);
        server.stop();
    });
}

#[test]
fn an_orderly_handle_that_means_nothing_is_answered_as_by_rocketmq() {
    with_cores(|home, cores| {
        let server = Server::with_cores(home, cores, &[]);
        let mut client = server.client();
        client.expect(response::SUCCESS, create_topic("T", 1));
        client.expect(response::SUCCESS, create_topic("U", 1));
        for body in ["a", "b", "c"] {
            client.expect(response::SUCCESS, send("T", 0, body.as_bytes()));
        }
        let orderly = |count, invisible_time, poll_time| {
            let asked = PopMessage { order: true, max_msg_nums: count, ..header("T", 0) };
            pop_with(PopMessage { invisible_time, poll_time, ..asked })
        };
        let old = got(&client.ask(orderly(3, 50, 0)));
        assert_eq!(bodies_of(&old), ["a", "b", "c"]);
        let new = got(&client.ask(orderly(1, LONG_MS, 30_000)));
        assert_eq!(bodies_of(&new), ["a"]);
        // Lent again, or not yet.
        let pop_ms = old[0].handle.split(' ').nth(1).unwrap();
        for got in &old {
            client.expect(response::SUCCESS, ack(got));
            let answer = client.expect(response::SUCCESS, change(got, 0));
            assert_eq!((field(&answer, "popTime"), field(&answer, "reviveQid")), (pop_ms, "999"));
        }
        client.expect(response::SUCCESS, ack(&Got { topic: "U".to_owned(), offset: 0, ..old[0].clone() }));
        client.expect(response::MESSAGE_ILLEGAL, ack(&Got { offset: 1, ..new[0].clone() }));
        none(&mut client, orderly(3, LONG_MS, 0));
        // Done with.
        client.expect(response::SUCCESS, ack(&new[0]));
        client.expect(response::SUCCESS, change(&new[0], 0));
        client.expect(response::SUCCESS, ack(&new[0]));
        assert_eq!(committed(&mut client, GROUP, "T", 0), Some(1));
        assert_eq!(bodies_of(&got(&client.ask(orderly(3, LONG_MS, 0)))), ["b", "c"]);
        server.stop();
    });
}
