//! Goal: docs/COMPATIBILITY.md tells the truth. Method: every row of its tables is held against a running broker
//! and NameServer: each code is sent to both, empty, and must be answered with 3 exactly where the table says
//! that it does not work; a sub-command of mqadmin works exactly if its codes do.

use std::collections::{BTreeMap, BTreeSet};

use protocol::Command;
use protocol::codes::{request, response};
use tests::server::Server;

const DOCUMENT: &str = include_str!("../docs/COMPATIBILITY.md");
/// Beyond every request code of 5.5.0.
const CODES_END: i32 = 300_000;

/// Who takes a code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taker {
    Broker,
    Namesrv,
    /// No server: it is sent to clients.
    Client,
}

/// A row of the first table.
struct Code {
    name: &'static str,
    taker: Taker,
    works: bool,
}

/// The rows of the table whose first column has this title, by cell.
fn rows(title: &str) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let table = DOCUMENT.lines().skip_while(|line| !line.starts_with(&format!("| {title} |")));
    table.skip(2).take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn works(cell: &str) -> bool {
    match cell {
        "yes" => true,
        "no" => false,
        other => panic!("works is yes or no, not {other:?}"),
    }
}

fn codes() -> BTreeMap<i32, Code> {
    let code = |row: Vec<&'static str>| {
        let [number, name, taker, works_cell, _] = row[..] else { panic!("five columns: {row:?}") };
        let taker = match taker {
            "broker" => Taker::Broker,
            "namesrv" => Taker::Namesrv,
            "client" => Taker::Client,
            other => panic!("{name}: who is {other}?"),
        };
        (number.parse().expect("a code is a number"), Code { name, taker, works: works(works_cell) })
    };
    let all = rows("code");
    let count = all.len();
    let codes: BTreeMap<i32, Code> = all.into_iter().map(code).collect();
    assert_eq!(codes.len(), count, "each code once");
    codes
}

#[test]
fn every_code_of_rocketmq_has_its_row() {
    let known = (0..CODES_END).map(|code| (code, request::name(code))).filter(|(_, name)| *name != "UNKNOWN");
    let known: Vec<(i32, &str)> = known.collect();
    let told: Vec<(i32, &str)> = codes().iter().map(|(code, row)| (*code, row.name)).collect();
    assert!(known.len() > 150, "{}", known.len());
    assert_eq!(told, known);
}

#[test]
fn codes_work_where_and_only_where_the_table_says_so() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let server = Server::with_cores(home.path(), "2", &[]);
    let mut wrong = Vec::new();
    for (number, row) in codes() {
        for (taker, address) in [(Taker::Broker, server.address), (Taker::Namesrv, server.namesrv)] {
            // A connection each: nothing that one request leaves behind can touch the next.
            let answer = tests::client::Client::connect(address).ask(Command::request(number));
            let is_taken = answer.header.code != response::REQUEST_CODE_NOT_SUPPORTED;
            if is_taken != (row.taker == taker && row.works) {
                let place = if taker == Taker::Broker { "broker" } else { "NameServer" };
                wrong.push(format!("{number} {} at the {place}: {:?}", row.name, answer.header));
            }
        }
    }
    assert!(wrong.is_empty(), "the table is wrong about\n{}", wrong.join("\n"));
}

#[test]
fn sub_commands_work_exactly_if_their_codes_do() {
    let codes = codes();
    let mut names = BTreeSet::new();
    for row in rows("sub-command") {
        let [name, needs, works_cell, _] = row[..] else { panic!("four columns: {row:?}") };
        assert!(names.insert(name), "{name} is there once");
        let needs: Vec<i32> = needs.split_whitespace().map(|code| code.parse().expect("a code")).collect();
        let all_work = needs.iter().all(|code| codes[code].works);
        // Two sub-commands only read files that a stock broker wrote.
        assert_eq!(works(works_cell), all_work && !needs.is_empty(), "{name} needs {needs:?}");
    }
    assert_eq!(names.len(), 96, "all of mqadmin 5.5.0");
}
