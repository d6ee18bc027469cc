//! Goal: whatever a whole broker promised on the wire is kept, whatever dies or breaks beneath it. Method: one
//! to three cores with their partitions, mailboxes and several clients on one simulated kernel, all from a
//! seed; power cuts, kills, failing and full disks, broken connections, garbage, bits that rot; and a model of
//! what was answered, against which everything that is shown is held. Repeat:
//! `SEED=17 cargo test -p tests --test cores power`; more: `SEEDS=10000`.

mod clients;
mod loans;
mod model;
mod pops;
mod transactions;
mod world;

use engine::sim::Faults;
use world::{Plan, World};

const MIB: u64 = 1 << 20;

#[test]
fn power_cuts_and_kills_lose_nothing_promised() {
    tests::random::repeat(0..1_000, |seed| World::new(Plan { rounds: 3, ..Plan::new(seed) }).run());
}

#[test]
fn more_power_cuts_and_kills_lose_nothing_promised() {
    tests::random::repeat(1_000_000..1_001_000, |seed| World::new(Plan { rounds: 3, ..Plan::new(seed) }).run());
}

#[test]
fn failing_disks_lose_nothing_promised() {
    tests::random::repeat(0..1_000, |seed| {
        let rate = [2, 10, 40][seed as usize % 3];
        let faults = Faults { write: rate, short: rate, sync: rate, read: rate, name: rate, receive: rate };
        World::new(Plan { faults, rounds: 3, ..Plan::new(seed) }).run()
    });
}

#[test]
fn segments_roll_and_come_back_clean() {
    tests::random::repeat(0..150, |seed| {
        World::new(Plan { large: true, retain: Some(20 * MIB), rounds: 2, ..Plan::new(seed) }).run()
    });
}

#[test]
fn full_disks_refuse_and_resume() {
    tests::random::repeat(0..150, |seed| {
        World::new(Plan { large: true, space: Some((33 + seed % 40) * MIB), rounds: 2, ..Plan::new(seed) }).run()
    });
}

#[test]
fn rotten_bits_are_found_or_harmless() {
    tests::random::repeat(0..600, |seed| World::new(Plan { rot: 4, ..Plan::new(seed) }).run());
}

#[test]
fn what_comes_again_at_a_stop_comes_once() {
    tests::random::repeat(0..200, |seed| World::new(Plan::new(seed)).stop_while_they_come_again());
}

#[test]
fn one_seed_twice_is_the_same_run() {
    for seed in 0..3 {
        let plan = || Plan { faults: Faults { write: 5, ..Faults::default() }, rounds: 2, ..Plan::new(seed) };
        assert_eq!(World::new(plan()).run(), World::new(plan()).run(), "seed {seed}");
    }
}
