//! Goal: whatever was promised is kept, through power cuts, kills, failing and full disks. Method: one
//! partition on a simulated disk, random requests from a seed, the end at a random moment, recovery (which
//! may be cut short too), and an audit of everything the partition then shows against a model of what it
//! said. Repeat: `SEED=17 cargo test -p tests --test simulation power`; more: `SEEDS=10000`.

mod simulation {
    mod audit;
    mod lives;
    mod model;
    mod requests;
    pub mod world;
}

use engine::sim::Faults;
use simulation::world::{Plan, World};
use std::ops::Range;

const MIB: u64 = 1 << 20;

#[test]
fn power_cuts_and_kills_lose_nothing_promised() {
    let seen = repeat(0..1_500, |seed| Plan { rounds: 4, ..Plan::new(seed) });
    assert!(seen.taken_over > 400 && seen.runs > 8_000, "{seen:?}");
}

#[test]
fn lives_that_end_soon_lose_nothing_promised() {
    repeat(0..1_000, |seed| Plan { brief: true, rounds: 6, ..Plan::new(seed) });
}

#[test]
fn failing_disks_lose_nothing_promised() {
    repeat(0..1_500, |seed| {
        let rate = [2, 10, 40, 200][seed as usize % 4];
        let faults = Faults { write: rate, short: rate, sync: rate, read: rate, name: rate, receive: 0 };
        // A sync that fails is not noticed by anybody but who asked for it.
        let faults = if rate == 200 { Faults { sync: rate, ..Faults::default() } } else { faults };
        Plan { faults, rounds: 3, ..Plan::new(seed) }
    });
}

#[test]
fn segments_roll_and_come_back_clean() {
    let seen = repeat(0..150, |seed| {
        let steady = seed.is_multiple_of(3);
        let retain = Some(if steady { 60 * MIB } else { 20 * MIB });
        Plan { large: true, steady, retain, rounds: 3, ..Plan::new(seed) }
    });
    assert!(seen.retired > 150 && seen.taken_over > 80 && seen.merged > 60, "{seen:?}");
}

#[test]
fn delayed_messages_outlive_their_segments() {
    let seen =
        repeat(0..60, |seed| Plan { large: true, age: Some(1 + seed * 197 % 6000), rounds: 4, ..Plan::new(seed) });
    assert!(seen.retired > 200 && seen.rolled > 150 && seen.taken_over > 100, "{seen:?}");
}

#[test]
fn full_disks_refuse_and_resume() {
    repeat(0..200, |seed| Plan { large: true, space: Some((33 + seed % 40) * MIB), rounds: 2, ..Plan::new(seed) });
}

#[test]
fn what_is_derived_is_made_again_when_it_is_damaged_or_gone() {
    let seen = repeat(0..500, |seed| {
        // What was retired cannot be read again: its facts are in a snapshot, or nowhere.
        let retain = seed.is_multiple_of(6).then_some(20 * MIB);
        Plan { large: seed.is_multiple_of(3), retain, harm: true, rounds: 4, ..Plan::new(seed) }
    });
    assert!(seen.harmed > 400 && seen.taken_over > 80 && seen.remade > 50, "{seen:?}");
}

#[test]
fn one_seed_twice_is_the_same_run() {
    for seed in 0..3 {
        let plan = || Plan { faults: Faults { write: 5, ..Faults::default() }, rounds: 2, ..Plan::new(seed) };
        assert_eq!(World::new(plan()).run(), World::new(plan()).run(), "seed {seed}");
    }
}

/// What the runs of a plan came across, to see that they do.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Openings that took over a checkpoint.
    taken_over: u64,
    /// Runs there were when everything was looked at, added up.
    runs: u64,
    /// Segments that were gone when everything was looked at, added up.
    retired: u64,
    /// Delayed messages that waited when everything was looked at although the segment they came in was gone, added up.
    rolled: u64,
    /// Files that were damaged or removed.
    harmed: u64,
    /// How often runs were merged, and made again because damage was found while the partition was open.
    merged: u64,
    remade: u64,
}

impl Seen {
    /// The whole of a test's seeds; all of them, if fewer are asked for.
    const ENOUGH: Seen = Seen {
        taken_over: 1 << 40,
        runs: 1 << 40,
        retired: 1 << 40,
        rolled: 1 << 40,
        harmed: 1 << 40,
        merged: 1 << 40,
        remade: 1 << 40,
    };
}

/// Runs a plan for each seed; a failure names the seed.
fn repeat(seeds: Range<u64>, plan: impl Fn(u64) -> Plan) -> Seen {
    let mut all = Seen::default();
    let (whole, mut from, mut to) = (seeds.clone(), u64::MAX, 0);
    tests::random::repeat(seeds, |seed| {
        let mut world = World::new(plan(seed));
        world.run();
        all.taken_over += world.seen.taken_over;
        all.runs += world.seen.runs;
        all.retired += world.seen.retired;
        all.rolled += world.seen.rolled;
        all.harmed += world.seen.harmed;
        all.merged += world.seen.merged;
        all.remade += world.seen.remade;
        (from, to) = (from.min(seed), seed + 1);
    });
    if whole.end <= to && from == 0 { all } else { Seen::ENOUGH }
}
