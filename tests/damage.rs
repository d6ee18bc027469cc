//! Goal: a bit that changes in a stopped store is found and named by `ringmq log check`, or harmless; and what
//! `ringmq log` tells is what is there. Method: a store made by the real broker, one flipped bit after the
//! other in its files, the real tool on it; harmless means that all messages are still read, and for some of
//! the flips that a broker starts on a copy and serves nothing but what was sent. Repeat: `SEED=17`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::codes::{request, response};
use protocol::properties::name;
use serde_json::Value;
use tests::client::Client;
use tests::random::{Random, seed};
use tests::server::{Server, ringmq};
use tests::words::{commit, create_topic, heartbeat, messages, properties, pull, send, send_as, send_batch};

/// Flipped bits in the usual form of the test, and in the long one.
const FLIPS: u64 = 60;
const FLIPS_SOAK: u64 = 20_000;
/// Every so many of them a broker is started too.
const START_EVERY: u64 = 20;
const QUEUES: i32 = 3;
/// A segment's header block.
const BLOCK: u64 = 4096;

/// What a run of the tool gave.
struct Told {
    code: Option<i32>,
    lines: Vec<String>,
    errors: String,
}

fn log(arguments: &[&str], dir: &Path) -> Told {
    let dir = dir.to_str().expect("temporary directories have plain names");
    let (command, more) = arguments.split_first().expect("a command");
    let output = ringmq(&[&["log", command, dir], more].concat()).output().expect("the binary runs");
    let text = String::from_utf8(output.stdout).expect("it speaks UTF-8");
    Told {
        code: output.status.code(),
        lines: text.lines().map(str::to_owned).collect(),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn dump(arguments: &[&str], dir: &Path) -> Vec<Value> {
    let told = log(&[&["dump"], arguments].concat(), dir);
    assert_eq!(told.code, Some(0), "{arguments:?}: {}", told.errors);
    told.lines.iter().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

/// A body that tells where it belongs, some of them large.
fn body(number: u64) -> Vec<u8> {
    let size = if number.is_multiple_of(5) { 200_000 + number } else { 40 + number % 1000 };
    let mut body = format!("body {number} ").into_bytes();
    body.resize(size as usize, b'a' + (number % 26) as u8);
    body
}

/// Bodies by queue and offset.
type Sent = BTreeMap<(i32, i64), Vec<u8>>;

/// Makes a store of some segments, and stops the broker.
fn fill(home: &Path) -> Sent {
    let server = Server::start(home, &["--cores", "1"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", QUEUES as u32));
    client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
    let (mut sent, mut next) = (Sent::new(), [0i64; QUEUES as usize]);
    let mut keep = |queue: i32, body: Vec<u8>| {
        let next = &mut next[queue as usize];
        sent.insert((queue, *next), body);
        *next += 1;
    };
    for number in 0..900u64 {
        let queue = (number % 3) as i32;
        if number.is_multiple_of(7) {
            let bodies: Vec<Vec<u8>> = (0..3).map(|more| body(10_000 + number * 10 + more)).collect();
            client.insist(send_batch("T", queue, &bodies));
            bodies.into_iter().for_each(|body| keep(queue, body));
            continue;
        }
        let key = format!("key-{number} all");
        let text = properties(&[(name::KEYS, &key), (name::TAGS, "red")]);
        client.insist(send_as(request::SEND_MESSAGE_V2, "T", queue, &text, &body(number)));
        keep(queue, body(number));
        if number.is_multiple_of(50) {
            client.expect(response::SUCCESS, commit("g", "T", queue, number as i64 / 10));
        }
    }
    let delayed = properties(&[(name::DELAY, "18")]);
    client.insist(send_as(request::SEND_MESSAGE_V2, "T", 0, &delayed, b"later"));
    server.stop();
    sent
}

/// The store's files that hold something, with their lengths.
fn files(data: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = vec![data.join("store.toml")];
    for entry in std::fs::read_dir(data.join("partition-00000")).expect("it has one") {
        found.push(entry.expect("an entry").path());
    }
    found.sort();
    let length = |path: &Path| std::fs::metadata(path).expect("it is there").len();
    found.into_iter().map(|path| (path.clone(), length(&path))).collect()
}

/// Of each segment, by its name: the byte behind its last batch.
fn used(data: &Path) -> BTreeMap<String, u64> {
    let stat = log(&["stat"], data);
    assert_eq!(stat.code, Some(0), "{:?}", stat.lines);
    let is_segment = |name: &str| name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    let rows = stat.lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.first().is_some_and(|name| is_segment(name)));
    // The size is rounded, so that one block more is enough.
    let bytes = |row: &[&str]| {
        let number: f64 = row[3].parse().expect("a number");
        let unit = BTreeMap::from([("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0)])[row[4]];
        (number * unit) as u64 + 200_000
    };
    rows.map(|row| (row[0].to_owned(), bytes(&row))).collect()
}

fn flip(path: &Path, byte: u64, bit: u32) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let mut old = [0];
    file.read_exact_at(&mut old, byte).expect("the byte is in the file");
    file.write_all_at(&[old[0] ^ 1 << bit], byte).expect("it can be written");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "cp");
}

/// What a broker serves of a queue until it ends, or refuses.
fn served(client: &mut Client, queue: i32, mut offset: i64) -> Sent {
    let mut found = Sent::new();
    loop {
        let answer = client.ask(pull("T", queue, offset));
        if answer.header.code != response::SUCCESS {
            // Its queue ends here, or a message is there and says what is wrong with it and where.
            let (code, remark) = (answer.header.code, &answer.header.remark);
            let is_named = remark.starts_with("the message at 0:") && remark.ends_with(" is damaged");
            assert_eq!(code == response::SYSTEM_ERROR, is_named, "{code}: {remark}");
            return found;
        }
        for message in messages(&answer) {
            found.insert((queue, message.queue_offset), message.body.to_vec());
            offset = message.queue_offset + 1;
        }
    }
}

/// Starts a broker on a copy of a damaged store: it refuses it, or serves nothing that was not sent, and
/// all of it if the damage is `harmless`.
fn start_on_copy(data: &Path, sent: &Sent, harmless: bool, what: &str) {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    copy(data, &home.path().join("data"));
    let server = match Server::try_start(home.path(), &["--cores", "1"]) {
        Ok(server) => server,
        Err(refusal) => {
            assert!(!harmless, "{what}: {}", refusal.text);
            let named = refusal.text.contains("partition-00000") || refusal.text.contains("store.toml");
            return assert!(named, "{what}: {}", refusal.text);
        }
    };
    let mut client = server.client();
    let mut found = Sent::new();
    for queue in 0..QUEUES {
        // Behind a message that cannot be read it goes on.
        let mut offset = 0;
        while sent.contains_key(&(queue, offset)) {
            let more = served(&mut client, queue, offset);
            offset = more.keys().next_back().map_or(offset, |(_, last)| *last) + 1;
            found.extend(more);
        }
    }
    for (place, body) in &found {
        assert!(sent.get(place) == Some(body), "{what}: {place:?} is not what was sent");
    }
    assert!(!harmless || found.len() == sent.len(), "{what}: {} of {} messages", found.len(), sent.len());
    server.stop();
}

#[test]
fn a_flipped_bit_is_found_and_named_or_harmless() {
    let seed = seed();
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let sent = fill(home.path());
    let data = home.path().join("data");
    let whole = log(&["check"], &data);
    assert_eq!(whole.code, Some(0), "{:?}", whole.lines);
    let messages = log(&["dump"], &data).lines;
    assert_eq!(messages.len(), sent.len() + 1, "all messages, and the delayed one");
    let files = files(&data);
    let used = used(&data);
    assert!(used.len() > 3, "{used:?}");
    let (mut found, mut harmless) = (0, 0);
    for round in 0..if tests::is_soak() { FLIPS_SOAK } else { FLIPS } {
        let (path, length) = &files[random.below(files.len() as u64) as usize];
        let file = path.file_name().and_then(|name| name.to_str()).expect("a plain name");
        // Mostly where something is.
        let upto = match used.get(file) {
            Some(used) if random.below(10) > 0 => (*used).min(*length),
            _ if random.below(4) == 0 => BLOCK.min(*length),
            _ => *length,
        };
        let (byte, bit) = (random.below(upto), random.below(8) as u32);
        flip(path, byte, bit);
        let told = log(&["check"], &data);
        let what = format!("SEED={seed} round {round}: {} byte {byte} bit {bit}", path.display());
        let is_harmless = match told.code {
            Some(0) => {
                assert_eq!(log(&["dump"], &data).lines, messages, "{what}: not found, and not harmless");
                harmless += 1;
                true
            }
            Some(1) => {
                assert!(is_named(&told.lines, path, byte), "{what} is not named: {:#?}", told.lines);
                found += 1;
                false
            }
            code => panic!("{what}: {code:?}, {}", told.errors),
        };
        if round % START_EVERY == 0 {
            start_on_copy(&data, &sent, is_harmless, &what);
        }
        flip(path, byte, bit);
    }
    println!("{found} found, {harmless} harmless");
    assert!(found > 0 && harmless > 0);
    assert_eq!(log(&["check"], &data).lines, whole.lines, "it is whole again");
}

/// Whether a line names the file and a byte at or before this one, or says that a stretch of the log that
/// begins in the file before reaches into this one.
fn is_named(lines: &[String], path: &Path, byte: u64) -> bool {
    let base = |path: &str| path.rsplit('/').next().and_then(|name| name.parse::<u64>().ok());
    let file = path.to_str().expect("a plain name");
    lines.iter().any(|line| {
        if !line.contains(" at byte ") {
            return path.ends_with("store.toml") && line.contains("store.toml");
        }
        let (named, rest) = line.split_once(" at byte ").expect("it was looked for");
        let at: u64 = rest.split(':').next().and_then(|number| number.parse().ok()).expect("a byte");
        if named == file && at <= byte {
            return true;
        }
        let next = rest.split("log byte ").last().and_then(|number| number.parse::<u64>().ok());
        let stretch = base(named).zip(next).zip(base(file));
        stretch.is_some_and(|((from, to), base)| (from + at..to).contains(&(base + byte)))
    })
}

#[test]
fn messages_are_printed_by_what_is_asked_for() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let server = Server::start(home.path(), &["--cores", "1"]);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 2));
    client.expect(response::SUCCESS, create_topic("U", 1));
    client.expect(response::SUCCESS, heartbeat("c", "g", &["T"]));
    let mut positions = Vec::new();
    for number in 0..20 {
        let key = format!("k{number} odd");
        let text = properties(&[(name::KEYS, &key), (name::UNIQ_KEY, &format!("U{number}"))]);
        let body: &[u8] = if number == 7 { &[0xff, 0] } else { b"text" };
        let (topic, queue) = if number < 15 { ("T", i32::from(number >= 10)) } else { ("U", 0) };
        let command = send_as(request::SEND_MESSAGE_V2, topic, queue, &text, body);
        let answer = client.expect(response::SUCCESS, command);
        positions.push(tests::words::field(&answer, "msgId").to_owned());
    }
    client.expect(response::SUCCESS, commit("g", "T", 1, 3));
    server.stop();
    let data = home.path().join("data");
    let bodies = |lines: &[Value]| lines.iter().map(|line| line["queueOffset"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(dump(&[], &data).len(), 20);
    assert_eq!(dump(&["--topic", "T"], &data).len(), 15);
    assert_eq!(bodies(&dump(&["--topic", "T", "--queue", "0", "--offset", "7"], &data)), [7, 8, 9]);
    assert_eq!(bodies(&dump(&["--topic", "T", "--queue", "1", "--limit", "2"], &data)), [0, 1]);
    assert_eq!(bodies(&dump(&["--key", "k3"], &data)), [3]);
    assert_eq!(bodies(&dump(&["--key", "U8"], &data)), [8]);
    assert_eq!(dump(&["--key", "odd", "--topic", "U"], &data).len(), 5);
    assert_eq!(dump(&["--key", "none"], &data).len(), 0);
    let all = dump(&[], &data);
    for (line, id) in all.iter().zip(&positions) {
        assert_eq!(line["msgId"], **id);
        let one = dump(&["--position", id], &data);
        assert_eq!(one, std::slice::from_ref(line));
        // Any byte of it names it.
        let inside = line["position"].as_u64().unwrap() + 40;
        assert_eq!(dump(&["--position", &inside.to_string()], &data), one);
    }
    let nothing = log(&["dump", "--position", "1"], &data);
    assert!(nothing.code == Some(1) && nothing.errors.contains("no message is at position 1"), "{}", nothing.errors);
    assert_eq!((&all[7]["bodyBase64"], &all[7]["body"]), (&Value::from("/wA="), &Value::Null));
    assert_eq!(all[6]["body"], "text");
    assert_eq!(dump(&["--body", "base64", "--limit", "1"], &data)[0]["bodyBase64"], "dGV4dA==");
    assert_eq!(dump(&["--body", "none", "--limit", "1"], &data)[0].get("body"), None);
    let time = all[10]["stored"].as_str().unwrap();
    let (later, sooner) = (dump(&["--from-time", time], &data), dump(&["--to-time", time], &data));
    assert_eq!(later.len() + sooner.len(), 20);
    assert!(later.contains(&all[10]) && !sooner.contains(&all[10]));
    let facts = dump(&["--facts"], &data);
    assert!(facts.iter().any(|fact| fact["key"] == "t/U"), "{facts:?}");
    let offset = facts.iter().map(|fact| &fact["consumerOffset"]).find(|offset| offset["group"] == "g");
    assert_eq!(offset.map(|offset| offset["offset"].as_u64()), Some(Some(3)), "{facts:?}");
    let stat = log(&["stat"], &data);
    let has = |words: &str| stat.lines.iter().any(|line| line.contains(words));
    assert!(has("1 consumer offsets") && has("not in use") && has("20 messages"), "{:#?}", stat.lines);
    assert!(
        has("topic T (id ") && has("queue 0    partition 0   offsets 0 to 10, 10 messages here"),
        "{:#?}",
        stat.lines
    );
    // One partition's directory is enough; others are refused by name.
    assert_eq!(log(&["check"], &data.join("partition-00000")).code, Some(0));
    for dir in [home.path(), &home.path().join("none"), &data.join("store.toml")] {
        let told = log(&["check"], dir);
        assert!(told.code == Some(2) && told.errors.contains(dir.to_str().unwrap()), "{:?}", told.errors);
    }
}

#[test]
fn a_log_in_use_is_read_up_to_where_it_is_whole() {
    let home = tempfile::tempdir().expect("a directory for temporary files");
    let more = ["--cores", "2", "--set", "log.retention_bytes=128MiB"];
    let server = Server::start(home.path(), &more);
    let data = home.path().join("data");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for sender in 0..4 {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let mut client = server.client();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    client.insist(send("T", sender, &body(number)));
                }
            });
        }
        let looks = if tests::is_soak() { 300 } else { 20 };
        for _ in 0..looks {
            let told = log(&["check"], &data);
            if told.code != Some(0) {
                stop.store(true, Ordering::Relaxed);
            }
            assert_eq!(told.code, Some(0), "{:#?}{}", told.lines, told.errors);
            assert!(
                told.lines.iter().any(|line| line.contains(&format!("process {}", server.pid()))),
                "{:?}",
                told.lines
            );
        }
        stop.store(true, Ordering::Relaxed);
    });
    server.stop();
}
