//! Goal: the yardstick of `bench/compare` is what it says: each answer follows a write of its request, and its load's
//! lines can be compared. Method: the tool's binary on a file of its own.

use bench::compare::Comparison;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A toy that serves, and is killed in the end.
struct Toy {
    process: Child,
    address: SocketAddr,
}

impl Toy {
    fn start(file: &Path) -> Toy {
        let mut process = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
            .args(["limit", "serve", "--size=4m", "--depth=2"])
            .arg(file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.strip_prefix("ready limit=").unwrap_or_else(|| panic!("{line}")).trim().parse().unwrap();
        Toy { process, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn answers(stream: &mut TcpStream, count: usize) {
    stream.read_exact(&mut vec![0; 64 * count]).unwrap();
}

#[test]
fn what_is_answered_is_in_the_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("toy");
    let toy = Toy::start(&file);
    assert_eq!(fs::metadata(&file).unwrap().len(), 4 << 20, "it is filled before it serves");
    let mut stream = toy.connect();
    // In pieces, and with the beginning of the next.
    let requests: Vec<u8> = (0..3 * 1024).map(|index| (index / 4 % 251) as u8).collect();
    for piece in [&requests[..100], &requests[100..1024], &requests[1024..2500]] {
        stream.write_all(piece).unwrap();
    }
    answers(&mut stream, 2);
    let written = fs::read(&file).unwrap();
    for request in requests[..2048].chunks(1024) {
        let at = written.chunks(1024).position(|there| there == request);
        assert!(at.is_some_and(|at| at < 8), "at the file's beginning: {at:?}");
    }
    stream.set_nonblocking(true).unwrap();
    let early = stream.read(&mut [0]).expect_err("a part of a request has no answer");
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    // Somebody who goes in the middle takes nobody with him.
    toy.connect().write_all(&requests[..1500]).unwrap();
    stream.write_all(&requests[2500..]).unwrap();
    answers(&mut stream, 1);
    assert!(fs::read(&file).unwrap().chunks(1024).any(|there| there == &requests[2048..]));
}

#[test]
fn its_load_gives_lines_to_compare() {
    let home = tempfile::tempdir().unwrap();
    let toy = Toy::start(&home.path().join("toy"));
    let output = Command::new(env!("CARGO_BIN_EXE_ringmq-bench"))
        .args(["limit", "load", &toy.address.to_string(), "--seconds=1", "--points=1x1,2x2000"])
        .args(["--pid", &toy.process.id().to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines: String =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| format!("limit {line}\n")).collect();
    let table = Comparison::read(&lines).unwrap().markdown();
    for point in ["send 1x1", "send 2x2000"] {
        let rows: Vec<&str> = table.lines().filter(|line| line.starts_with(&format!("| {point} |"))).collect();
        assert!(rows.len() == 3 && rows.iter().all(|row| row.split('|').nth(2).unwrap().trim() != ""), "{table}");
    }
}

#[test]
fn mistakes_are_said() {
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ringmq-bench")).arg("limit").args(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(run(&["serve", "/nowhere/at/all"]).contains("/nowhere/at/all: No such file or directory"));
    assert!(run(&["serve", "x", "--size=1k"]).contains("1024 is not within"));
    assert!(run(&["load", "127.0.0.1:1", "--seconds=1"]).contains("connecting to 127.0.0.1:1"));
    assert!(run(&["load", "127.0.0.1:1", "--points=0x1"]).contains("CONNECTIONSxOUTSTANDING"));
}
