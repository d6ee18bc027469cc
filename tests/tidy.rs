//! Goal: the rooms stay what they are. Method: reading `cargo metadata` and the sources.
//! Each line here stands in docs/ARCHITECTURE.md, with its reason.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// The Rust sources below a folder of the workspace.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a room's folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                found.push((path.strip_prefix(root()).expect("below the root").to_path_buf(), text));
            }
        }
    }
    assert!(!found.is_empty(), "{folder} has sources");
    found
}

/// What a room's library may depend on within the workspace.
const ROOMS: [(&str, &[&str]); 5] = [
    ("engine", &[]),
    ("protocol", &[]),
    ("transport", &["protocol"]),
    ("namesrv", &["protocol", "transport"]),
    ("broker", &["engine", "namesrv", "protocol", "transport"]),
];

/// What a room must not depend on from outside: it does no async, or no I/O.
const FORBIDDEN: [(&str, &[&str]); 2] = [
    ("engine", &["tokio", "tokio-uring", "serde", "serde_json"]),
    ("protocol", &["tokio", "tokio-uring", "io-uring", "libc", "socket2", "tracing"]),
];

#[test]
fn rooms_name_only_what_stands_below_them() {
    let metadata =
        MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().expect("cargo metadata");
    let names: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    for (room, may) in ROOMS {
        let package =
            metadata.packages.iter().find(|package| package.name.as_str() == room).expect("every room is a package");
        let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
        for dependency in normal {
            let name = dependency.name.as_str();
            assert!(!names.contains(name) || may.contains(&name), "{room} must not depend on {name}");
            let forbidden = FORBIDDEN.iter().filter(|(of, _)| *of == room).any(|(_, list)| list.contains(&name));
            assert!(!forbidden, "{room} must not depend on {name}: it belongs to another room");
        }
    }
}

#[test]
fn a_dependency_has_its_version_once_and_a_reason() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).expect("the workspace");
    let section =
        text.split("[workspace.dependencies]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("a section");
    let mut before = "";
    for line in section.lines().map(str::trim) {
        let is_entry = line.contains('=') && !line.starts_with('#');
        if is_entry {
            let explained = before.starts_with('#') || before.contains('=');
            assert!(explained, "`{line}` has no reason above it");
        }
        before = line;
    }
    for (room, _) in ROOMS {
        let folder =
            if ["protocol", "transport", "broker"].contains(&room) { format!("net/{room}") } else { room.to_owned() };
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let dependencies = manifest.split("dependencies]").skip(1).flat_map(|part| part.split("\n[").next());
        for line in dependencies.flat_map(str::lines).filter(|line| line.contains('=')) {
            assert!(line.contains("workspace = true"), "{room}: `{line}` names its own version");
        }
    }
}

#[test]
fn unsafe_code_stays_in_two_files() {
    let allowed = ["engine/src/ring.rs", "engine/src/buffer.rs"];
    for folder in ["engine", "net", "namesrv", "bench", "tests"] {
        for (path, text) in sources(folder) {
            let name = path.to_str().expect("names are UTF-8");
            let is_unsafe = text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or("");
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
            });
            let is_this = name == "tests/tidy.rs";
            assert!(!is_unsafe || allowed.contains(&name) || is_this, "{name} has unsafe code");
        }
    }
}

/// Files of the loops and of tools, where the clock and randomness are read.
const LOOPS: [&str; 5] = [
    "net/broker/src/boot.rs",
    "net/broker/src/main.rs",
    "net/broker/src/control.rs",
    "net/broker/src/home.rs",
    "net/broker/src/log_tool.rs",
];

#[test]
fn logic_reads_no_clock_and_waits_for_nothing() {
    let words = ["SystemTime::now", "Instant::now", "thread::sleep", "rand::"];
    let edges = ["engine/src/ring.rs", "engine/src/wake.rs", "namesrv/src/server.rs", "namesrv/src/door.rs"];
    for folder in ["engine/src", "net/protocol/src", "net/broker/src", "namesrv/src"] {
        for (path, text) in sources(folder) {
            let name = path.to_str().expect("names are UTF-8");
            if LOOPS.contains(&name) || edges.contains(&name) {
                continue;
            }
            let logic = text.split("#[cfg(test)]").next().expect("a first part");
            for word in words {
                assert!(!logic.contains(word), "{name} names {word}");
            }
        }
    }
}

#[test]
fn only_the_edges_name_tokio_uring() {
    let may = ["net/broker/src/control.rs", "net/broker/src/boot.rs", "net/broker/src/main.rs"];
    for (path, text) in
        sources("net/broker/src").into_iter().chain(sources("net/protocol/src")).chain(sources("engine/src"))
    {
        let name = path.to_str().expect("names are UTF-8");
        let names_it = text.lines().any(|line| line.contains("tokio_uring::"));
        assert!(!names_it || may.contains(&name), "{name} names tokio_uring");
    }
}

#[test]
fn every_file_has_its_place_in_the_architecture() {
    let text = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("the architecture");
    for folder in ["engine/src", "net/protocol/src", "net/transport/src", "net/broker/src", "namesrv/src"] {
        for (path, _) in sources(folder) {
            let inside = path.strip_prefix(folder).expect("it lies there");
            let is_test = inside
                .components()
                .any(|part| ["tests", "tests.rs", "lib.rs"].iter().any(|of| part.as_os_str() == *of));
            let name = inside.file_name().and_then(|name| name.to_str()).expect("names are UTF-8");
            let stands = [inside.to_str().expect("names are UTF-8"), name]
                .iter()
                .any(|name| text.contains(&format!("`{name}`")));
            assert!(is_test || stands, "docs/ARCHITECTURE.md does not tell what {} is for", path.display());
        }
    }
}

#[test]
fn nothing_is_unfinished_or_switched_off() {
    for folder in ["engine", "net", "namesrv", "bench"] {
        for (path, text) in sources(folder) {
            for word in ["todo!", "unimplemented!", "FIXME", "allow(dead_code", "#[ignore"] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn planted_mistakes_can_still_be_planted() {
    // That the simulations find them takes an hour: `tests/run --planted`.
    let check = std::process::Command::new(root().join("tests/planted/run")).arg("--check").output().expect("bash");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
