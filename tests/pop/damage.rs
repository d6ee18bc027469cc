//! A message that is damaged on disk holds up nobody.

use super::*;

/// Has the oldest message of a queue on disk alone: so much lies behind it that a start need not read it. Returns where
/// its log is, and what its entry in a run begins with.
fn bury(home: &Path, cores: &str, more: &[&str]) -> (PathBuf, Vec<u8>) {
    let server = Server::with_cores(home, cores, more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 2));
    client.expect(response::SUCCESS, send("T", 1, b"to be damaged"));
    let answer = client.expect(response::SUCCESS, pull("T", 1, 0));
    let (place, stored_ms) = (messages(&answer)[0].physical_offset, messages(&answer)[0].store_timestamp);
    for _ in 0..100 {
        client.expect(response::SUCCESS, send("T", 1, &[b'x'; 150_000]));
    }
    // The first checkpoint begins where the first run ends, behind the message.
    let partition = home.join(format!("data/partition-{:05}", place >> 48));
    let until_ms = now_ms() + 60_000;
    while !partition.join("checkpoint").exists() {
        assert!(now_ms() < until_ms, "it is written");
        std::thread::sleep(Duration::from_millis(20));
    }
    server.stop();
    let entry = [place, stored_ms].map(|number| number.to_be_bytes()[2..].to_vec()).concat();
    (partition, entry)
}

const SMALL_STRETCH: [&str; 2] = ["--set", "log.stretch_bytes=1MiB"];

#[test]
fn a_damaged_message_is_passed_by_each_group_once_and_told() {
    with_cores(|home, cores| {
        let (partition, _) = bury(home, cores, &SMALL_STRETCH);
        rot(&partition, b"to be damaged");
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        let told = |server: &Server, group: &str| {
            let log = server.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains("passed: a stored message")).collect();
            let names = |line: &&&str| line.contains(&format!("\"{group}\"")) && line.contains("topic=\"T\"");
            let of_group = lines.iter().filter(names).count();
            assert!(lines.iter().all(|line| line.contains("queue=1 offset=0") && line.contains("position=")), "{log}");
            (of_group, lines.len())
        };
        // A look shows what a pop would give, and decides nothing.
        let shown = client.expect(response::SUCCESS, peek("looks", "T", 1, 1));
        assert_eq!(messages(&shown)[0].queue_offset, 1);
        assert_eq!(told(&server, "looks"), (0, 0));
        for group in [GROUP, "others"] {
            let one = PopMessage { consumer_group: group, max_msg_nums: 1, ..header("T", 1) };
            assert_eq!(got(&client.ask(pop_with(one)))[0].offset, 1, "{group} goes on behind it");
            assert_eq!(told(&server, group).0, 1);
        }
        assert_eq!(told(&server, GROUP), (1, 2), "once for each group");
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(1), "it is done with");
        // Who chooses his offset himself is told, and decides.
        let answer = client.ask(pull("T", 1, 0));
        assert_eq!(answer.header.code, response::SYSTEM_ERROR);
        assert!(answer.header.remark.contains("is damaged"), "{}", answer.header.remark);
        wait_until_durable(&mut client);
        server.stop();
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        assert_eq!(got(&client.ask(pop("T", 1)))[0].offset, 2, "it is known that it was passed");
        assert!(!server.log().contains("passed: a stored message"));
        server.stop();
    });
}

#[test]
fn what_cannot_be_found_sends_a_pop_around_a_few_times_only_and_is_not_passed() {
    with_cores(|home, cores| {
        let (partition, entry) = bury(home, cores, &SMALL_STRETCH);
        // Where the message lies is told by a run that is damaged, and cannot be made again from a damaged log.
        rot(&partition, b"to be damaged");
        rot(&partition, &entry);
        let server = Server::with_cores(home, cores, &SMALL_STRETCH);
        let mut client = server.client();
        let looks = || server.log().matches("a stored message cannot be found now").count();
        none(&mut client, pop_with(PopMessage { poll_time: 1_000, ..header("T", -1) }));
        let first = looks();
        assert!((1..20).contains(&first), "{first} looks at what cannot be given");
        // It waits all the same, and gets what can be.
        let waiting = client.write(pop_with(PopMessage { poll_time: 60_000, ..header("T", -1) }));
        let mut producer = server.client();
        producer.expect(response::SUCCESS, send("T", 0, b"good"));
        assert_eq!(bodies_of(&got(&client.answer(waiting))), ["good"]);
        let both = looks();
        assert!(both < 40, "{both} looks at what cannot be given");
        assert_eq!(committed(&mut client, GROUP, "T", 1), Some(0), "its run may be made again");
        server.stop();
    });
}

#[test]
fn a_damaged_message_holds_no_other_of_its_loan() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::with_cores(home.path(), "1", &["--set", "log.tail_bytes=32MiB"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    client.expect(response::SUCCESS, create_topic("others", 1));
    let text = |index: i32| format!("the body of message {index}");
    for index in 0..3 {
        client.expect(response::SUCCESS, send("T", 0, text(index).as_bytes()));
    }
    let lent = got(&client.ask(pop_with(PopMessage { invisible_time: 60_000, ..header("T", 0) })));
    assert_eq!(lent.len(), 3);
    // They leave the memory; then one bit of the first rots.
    let filler = vec![b'x'; 4 << 20];
    for _ in 0..12 {
        client.insist(send("others", 0, &filler));
    }
    rot(&home.path().join("data/partition-00000"), text(0).as_bytes());
    for got in &lent {
        client.expect(response::SUCCESS, change(got, 50));
    }
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(got(&client.ask(pop_with(PopMessage { poll_time: 30_000, ..header("T", 0) }))));
    }
    // Each had a time of its own, and which read of the disk ends first is open: pops promise no order.
    again.sort_by_key(|got| got.body.clone());
    assert_eq!((bodies_of(&again), again[0].times), (vec![text(1).as_str(), &text(2)], 1));
    // There is nothing of it to give again: it is done with, and who looks at the log hears of it once.
    await_that("it is passed", || committed(&mut client, GROUP, "T", 0) == Some(3));
    assert_eq!(server.log().matches("passed: a popped message is damaged").count(), 1);
    server.stop();
}

/// Flips one bit of a text, wherever it is in the log's files.
fn rot(partition: &Path, text: &[u8]) {
    use std::os::unix::fs::FileExt;
    let mut count = 0;
    for entry in std::fs::read_dir(partition).expect("it is there") {
        let path = entry.expect("an entry").path();
        // A broker that runs renames what it has prepared.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it can be written");
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("it can be written");
            file.sync_all().expect("it can be synced");
            count += 1;
        }
    }
    assert!(count > 0, "no file has it");
}
