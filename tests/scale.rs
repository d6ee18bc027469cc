//! Goal: many queues cost neither files nor much memory, and are there again after `kill -9`. Method: 100,000 queues in
//! one broker, a message in each, the descriptors and the resident memory of the process before and after.

use protocol::Command;
use protocol::codes::{request, response};
use tests::client::Client;
use tests::server::Server;
use tests::words::{create_topic, edge, messages, pull, send, wait_until_durable};

const TOPICS: u32 = 10;
const QUEUES: u32 = 10_000;
/// Requests under way at once.
const AHEAD: u32 = 500;
/// Memory that a queue may take whose newest message is in memory, all counted. 500 bytes were measured in a release build.
const QUEUE_BYTES_MAX: u64 = 1_000;

fn name(topic: u32) -> String {
    format!("T{topic}")
}

fn files(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs").count()
}

/// Sends all of these; what the log refuses because it waits for its next segment is sent again.
fn send_all(client: &mut Client, commands: &[Command]) {
    let answers = client.ask_all(commands.iter().cloned());
    for (command, answer) in commands.iter().zip(answers) {
        match answer.header.code {
            response::SYSTEM_BUSY => drop(client.insist(command.clone())),
            code => assert_eq!(code, response::SUCCESS, "{answer:?}"),
        }
    }
}

/// A message to each queue of a topic.
fn fill(client: &mut Client, topic: u32) {
    for first in (0..QUEUES).step_by(AHEAD as usize) {
        let one = |queue: u32| send(&name(topic), queue as i32, &queue.to_be_bytes());
        send_all(client, &(first..first + AHEAD).map(one).collect::<Vec<_>>());
    }
}

#[test]
fn a_hundred_thousand_queues_cost_little_and_outlive_a_kill() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::start(home.path(), &["--cores", "1"]);
    let mut client = server.client();
    for topic in 0..TOPICS {
        client.expect(response::SUCCESS, create_topic(&name(topic), QUEUES));
    }
    client.expect(response::SUCCESS, create_topic("warm", 1));
    // The tail is filled, so that what grows now is the queues.
    for _ in 0..100 {
        send_all(&mut client, &[send("warm", 0, &[7; 1 << 20]), send("warm", 0, &[7; 1 << 20])]);
    }
    let (files_before, before) = (files(&server), server.resident_bytes());
    (0..TOPICS).for_each(|topic| fill(&mut client, topic));
    let (files_after, after) = (files(&server), server.resident_bytes());
    // Segments, runs and the checkpoint come and go.
    assert!(files_after <= files_before + 20, "{files_before} files were open, now {files_after}");
    let each = after.saturating_sub(before) / u64::from(TOPICS * QUEUES);
    println!("{each} bytes a queue, {files_after} files");
    assert!(each < QUEUE_BYTES_MAX, "{each} bytes a queue");
    wait_until_durable(&mut client);
    server.kill();

    let server = Server::start(home.path(), &["--cores", "1"]);
    let mut client = server.client();
    for topic in 0..TOPICS {
        for queue in (topic as i32..QUEUES as i32).step_by(997) {
            assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, &name(topic), queue), 1, "{topic} {queue}");
            let answer = client.expect(response::SUCCESS, pull(&name(topic), queue, 0));
            assert_eq!(messages(&answer)[0].body, queue.to_be_bytes());
        }
    }
    server.stop();
}
