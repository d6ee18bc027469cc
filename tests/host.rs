//! Goal: what the host lacks is said, or lived with: a disk that fills, that cannot be written, that knows no
//! O_DIRECT; a user without privileges; a process that stands still. Method: small file systems, mounted for the
//! test; where that is not allowed, the test says so and ends. (The command line, ports and locks:
//! net/broker/tests/binary.rs.)

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use protocol::StoredMessage;
use protocol::codes::{request, response};
use rustix::process::Signal;
use tests::PATIENCE;
use tests::client::Client;
use tests::server::{Server, binary, refused};
use tests::words::{asking, create_topic, edge, messages, number, pull, pull_all, send, telling};

/// A file system of its own, for one test.
struct Mounted {
    at: PathBuf,
    _below: tempfile::TempDir,
}

impl Mounted {
    /// An ext4 of so many MiB in a file. `None`: this process may not mount, or there are no tools.
    fn ext4(mib: u64) -> Option<Mounted> {
        let below = tempfile::tempdir().expect("a directory for temporary files");
        let image = below.path().join("image");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("room for a sparse file");
        let made = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
        if !made.is_ok_and(|status| status.success()) {
            return None;
        }
        Mounted::mount(below, &["-o", "loop", image.to_str()?])
    }

    fn mount(below: tempfile::TempDir, arguments: &[&str]) -> Option<Mounted> {
        let at = below.path().join("mounted");
        std::fs::create_dir(&at).expect("the directory is ours");
        let mounted = Command::new("mount").args(arguments).arg(&at).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Mounted { at, _below: below })
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.at).status();
        assert!(status.is_ok_and(|status| status.success()), "remount,{how}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: whatever the test left open must not keep it for ever.
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// Takes up what is left of a disk, all but so many bytes.
fn fill(directory: &Path, left: u64) -> PathBuf {
    let path = directory.join("filler");
    let mut file = File::create(&path).expect("the disk has room");
    let free = || {
        let space = rustix::fs::statvfs(directory).expect("a file system");
        space.f_bavail * space.f_frsize
    };
    let piece = vec![1; 256 << 10];
    while free() > left + piece.len() as u64 {
        file.write_all(&piece).expect("there is room");
        file.sync_data().expect("the disk works");
    }
    path
}

/// Reads queue 0 of `T`, which had `stored` messages, to its end. While less than twice `log.disk_free_bytes_min` is
/// free, retention takes the oldest segments, and a consumer is told where to go on: at the start of what is kept, which
/// has at least the segment that is written to. Behind that nothing may be missing.
fn pull_what_is_kept(client: &mut Client, stored: i64, mut each: impl FnMut(&StoredMessage<'_>)) {
    let mut next = 0;
    loop {
        let answer = client.ask(pull("T", 0, next));
        match answer.header.code {
            response::SUCCESS => {}
            response::PULL_NOT_FOUND => break,
            response::PULL_OFFSET_MOVED => {
                let least = number(&answer, "nextBeginOffset");
                assert!(least > next && least < stored, "{next} of {stored}: {answer:?}");
                next = least;
                continue;
            }
            _ => panic!("{next} of {stored}: {answer:?}"),
        }
        for message in messages(&answer) {
            assert_eq!(message.queue_offset, next, "a hole, or an offset twice");
            each(&message);
            next += 1;
        }
    }
    assert_eq!(next, stored);
}

#[test]
fn what_logs_may_have_of_a_disk_is_set_while_they_run_and_outlives_a_kill() {
    let Some(disk) = Mounted::ext4(480) else {
        return tests::skip("no loop device may be mounted here");
    };
    let more = ["--set", "log.disk_free_bytes_min=64MiB"];
    let server = Server::with_cores(&disk.at, "1", &more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let send_64_mib = |client: &mut Client| {
        for _ in 0..64 {
            client.insist(send("T", 0, &[7; 1 << 20]));
        }
    };
    let first_is_above = |client: &mut Client, offset: i64| {
        let began = Instant::now();
        while edge(client, request::GET_MIN_OFFSET, "T", 0) <= offset {
            assert!(began.elapsed() < PATIENCE, "what is below {offset} stays");
        }
    };
    send_64_mib(&mut client);
    assert_eq!(edge(&mut client, request::GET_MIN_OFFSET, "T", 0), 0);
    // A tenth is three segments.
    client.expect(response::SUCCESS, telling(request::UPDATE_BROKER_CONFIG, &[], "diskMaxUsedSpaceRatio=10"));
    first_is_above(&mut client, 0);
    server.kill();
    let server = Server::with_cores(&disk.at, "1", &more);
    let mut client = server.client();
    send_64_mib(&mut client);
    first_is_above(&mut client, 64);
    assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 0), 128);
    server.stop();
}

#[test]
fn a_filling_disk_refuses_sends_and_goes_on_with_reads() {
    let Some(disk) = Mounted::ext4(320) else {
        return tests::skip("no loop device may be mounted here");
    };
    let more = ["--cores", "1", "--set", "log.disk_free_bytes_min=64MiB"];
    let server = Server::start(&disk.at, &more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 2));
    let mut stored = 0;
    for _ in 0..50 {
        client.expect(response::SUCCESS, send("T", 0, &[7; 10_000]));
        stored += 1;
    }
    let filler = fill(&disk.at, 40 << 20);
    // The broker looks from time to time.
    let began = Instant::now();
    let refused = loop {
        let answer = client.ask(send("T", 0, &[7; 1_000]));
        match answer.header.code {
            response::SUCCESS => stored += 1,
            _ => break answer,
        }
        assert!(began.elapsed() < PATIENCE, "nobody noticed");
    };
    assert_eq!(refused.header.code, response::SERVICE_NOT_AVAILABLE, "{refused:?}");
    assert!(refused.header.remark.contains("disk"), "{}", refused.header.remark);
    for _ in 0..20 {
        client.expect(response::SERVICE_NOT_AVAILABLE, send("T", 1, &[7; 1_000]));
    }
    assert_eq!(edge(&mut client, request::GET_MAX_OFFSET, "T", 1), 0, "a refused one is not there");
    pull_what_is_kept(&mut client, stored, |message| assert_eq!(message.body[0], 7));
    // A start on a full disk serves what there is.
    server.stop();
    let server = Server::start(&disk.at, &more);
    let mut client = server.client();
    pull_what_is_kept(&mut client, stored, |message| assert_eq!(message.body[0], 7));
    client.expect(response::SERVICE_NOT_AVAILABLE, send("T", 0, b"x"));
    // And with room again it goes on.
    std::fs::remove_file(filler).expect("it is there");
    let began = Instant::now();
    let answer = loop {
        let answer = client.ask(send("T", 0, b"room"));
        if answer.header.code == response::SUCCESS {
            break answer;
        }
        assert_eq!(answer.header.code, response::SERVICE_NOT_AVAILABLE, "{answer:?}");
        assert!(began.elapsed() < PATIENCE, "nobody noticed the room");
    };
    assert_eq!(number(&answer, "queueOffset"), stored);
    assert_eq!(messages(&client.ask(pull("T", 0, stored)))[0].body, b"room");
    server.stop();
}

#[test]
fn a_disk_that_is_full_to_the_brim_loses_nothing() {
    let Some(disk) = Mounted::ext4(320) else {
        return tests::skip("no loop device may be mounted here");
    };
    // It looks once a second how much is free: until then it finds out by ENOSPC, at whatever it makes next.
    let more = ["--cores", "1", "--set", "log.disk_free_bytes_min=64MiB"];
    let server = Server::start(&disk.at, &more);
    let mut client = server.client();
    client.expect(response::SUCCESS, create_topic("T", 1));
    let body = |number: i64| [&number.to_be_bytes()[..], &[7; 200_000]].concat();
    let mut stored = 0;
    client.expect(response::SUCCESS, send("T", 0, &body(stored)));
    stored += 1;
    let filler = fill(&disk.at, 0);
    // Prepared segments are room that it has already; then there is none.
    let refused = loop {
        let answer = client.ask(send("T", 0, &body(stored)));
        match answer.header.code {
            response::SUCCESS => stored += 1,
            _ => break answer,
        }
        assert!(stored < 2_000, "a full disk took {stored} messages");
    };
    let codes = [response::SERVICE_NOT_AVAILABLE, response::SYSTEM_BUSY];
    assert!(codes.contains(&refused.header.code), "{refused:?}");
    let whole = |client: &mut Client, stored: i64| {
        pull_what_is_kept(client, stored, |message| assert_eq!(message.body, body(message.queue_offset)));
    };
    whole(&mut client, stored);
    std::fs::remove_file(filler).expect("it is there");
    let began = Instant::now();
    while client.ask(send("T", 0, &body(stored))).header.code != response::SUCCESS {
        assert!(began.elapsed() < PATIENCE, "nobody noticed the room");
    }
    stored += 1;
    whole(&mut client, stored);
    server.kill();
    let server = Server::start(&disk.at, &more);
    whole(&mut server.client(), stored);
    server.stop();
}

#[test]
fn a_broker_that_is_stopped_and_goes_on_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path(), &["--cores", "2"]);
    server.client().expect(response::SUCCESS, create_topic("T", 4));
    let is_over = AtomicBool::new(false);
    let counts: [AtomicI64; 4] = Default::default();
    let stored = std::thread::scope(|scope| {
        let senders = (0..4).map(|queue| {
            let (server, is_over, count) = (&server, &is_over, &counts[queue as usize]);
            scope.spawn(move || {
                let mut client = server.client();
                let mut stored = 0i64;
                while !is_over.load(Ordering::Relaxed) {
                    let answer = client.expect(response::SUCCESS, send("T", queue, &stored.to_be_bytes()));
                    assert_eq!(number(&answer, "queueOffset"), stored);
                    stored += 1;
                    count.store(stored, Ordering::Relaxed);
                }
                stored
            })
        });
        let senders: Vec<_> = senders.collect();
        let mut client = server.client();
        let began = Instant::now();
        let have_all = || counts.iter().all(|count| count.load(Ordering::Relaxed) > 10);
        for round in 0.. {
            // As often as it takes until each was stopped in the middle of many.
            if round >= 10 && (have_all() || began.elapsed() > PATIENCE) {
                break;
            }
            server.signal(Signal::STOP);
            // A request that comes while it stands still is answered afterwards.
            let opaque = client.write(asking(request::GET_MAX_OFFSET, &[("topic", "T"), ("queueId", "0")]));
            // Longer than its timers, once.
            std::thread::sleep(Duration::from_millis(if round == 5 { 3_000 } else { 50 }));
            server.signal(Signal::CONT);
            assert_eq!(client.answer(opaque).header.code, response::SUCCESS);
            std::thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().expect("a sender")).collect::<Vec<_>>()
    });
    assert!(stored.iter().all(|count| *count > 10), "{stored:?}");
    let whole = |server: &Server| {
        let mut client = server.client();
        for (queue, count) in stored.iter().enumerate() {
            let mut next = 0i64;
            let end = pull_all(&mut client, "T", queue as i32, 0, |message| {
                assert_eq!(message.body, next.to_be_bytes());
                next += 1;
            });
            assert_eq!(end, *count);
        }
    };
    whole(&server);
    // And once more across a death in its sleep.
    server.signal(Signal::STOP);
    server.kill();
    let server = Server::start(home.path(), &["--cores", "2"]);
    whole(&server);
    server.stop();
}

#[test]
fn a_disk_without_room_for_a_log_is_named() {
    let Some(disk) = Mounted::ext4(24) else {
        return tests::skip("no loop device may be mounted here");
    };
    fill(&disk.at, 4 << 20);
    let refusal = Server::try_start(&disk.at, &["--cores", "1"]).expect_err("a log needs a segment");
    assert_eq!(refusal.code, Some(1), "{}", refusal.text);
    assert!(refusal.text.contains("log.segment_bytes") && refusal.text.contains("log.dir"), "{}", refusal.text);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    if let Some(disk) = Mounted::ext4(64) {
        disk.remount("ro");
        let data = disk.at.join("data");
        let data = data.to_str().expect("temporary directories have plain names");
        let refusal = refused(&["dev", "--data", data, "--namesrv-port", "0", "--broker-port", "0"]);
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        assert!(refusal.text.contains("log.dir") && refusal.text.contains("read-only"), "{}", refusal.text);
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o555)).unwrap();
    if File::create(data.join("probe")).is_ok() {
        return tests::skip("root may write anywhere, and may not mount here");
    }
    let refusal = Server::try_start(home.path(), &[]).expect_err("nobody may write there");
    assert!(refusal.text.contains("log.dir") && refusal.text.contains("may not write"), "{}", refusal.text);
}

#[test]
fn without_o_direct_it_falls_back_and_says_so() {
    let memory = Path::new("/dev/shm");
    let Ok(home) = tempfile::tempdir_in(memory) else {
        return tests::skip("there is no /dev/shm");
    };
    // Kernels from 6.6 on have O_DIRECT there too; then there is nothing to say.
    let probe = OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).open(home.path().join("p"));
    let is_direct = probe.is_ok();
    let server = Server::start(home.path(), &[]);
    let mut client = server.client();
    for _ in 0..20 {
        client.expect(response::SUCCESS, send("T", 0, &[7; 20_000]));
    }
    assert_eq!(server.log().contains("has no O_DIRECT"), !is_direct, "{}", server.log());
    server.kill();
    let server = Server::start(home.path(), &[]);
    assert_eq!(pull_all(&mut server.client(), "T", 0, 0, |message| assert_eq!(message.body, [7; 20_000])), 20);
    server.stop();
}

#[test]
fn a_user_without_privileges_and_locked_memory_is_served() {
    const NOBODY: u32 = 65_534;
    let home = tempfile::tempdir().unwrap();
    // Another user has to reach the binary too.
    let copy = home.path().join("ringmq");
    std::fs::copy(binary(), &copy).unwrap();
    for path in [home.path(), &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let user = [&*format!("--reuid={NOBODY}"), "--clear-groups", "--inh-caps=-all"];
    let tried = Command::new("setpriv").args(user).arg(&copy).arg("--version").output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return tests::skip("this process may not become another user");
    }
    let data = home.path().join("data");
    let start = |locked_bytes: u64| {
        let mut command = Command::new("setpriv");
        command.args(user).arg("prlimit").arg(format!("--memlock={locked_bytes}")).arg("--").arg(&copy);
        command.arg("dev").arg("--data").arg(&data).args(["--namesrv-port", "0", "--broker-port", "0"]);
        for set in [
            "log.segment_bytes=16MiB",
            "log.prepare_bytes=16MiB",
            "log.disk_free_percent_min=0",
            "log.disk_free_bytes_min=64MiB",
        ] {
            command.args(["--set", set]);
        }
        command.env_remove("RUST_LOG");
        Server::spawn(command, home.path())
    };
    // Not even a ring.
    let refusal = start(0).expect_err("a ring is locked memory");
    assert!(refusal.text.contains("RLIMIT_MEMLOCK"), "{}", refusal.text);
    // What most systems give: rings, but no buffers in them.
    let server = start(8 << 20).unwrap_or_else(|refusal| panic!("{}", refusal.text));
    let mut client = server.client();
    client.expect(response::SUCCESS, send("T", 0, b"x"));
    assert_eq!(messages(&client.expect(response::SUCCESS, pull("T", 0, 0))).len(), 1);
    assert!(server.log().contains("RLIMIT_MEMLOCK"), "it says what it does without: {}", server.log());
    server.stop();
}
