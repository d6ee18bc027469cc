//! Goal: a log that does not open says what it waits for; one that has nothing to do writes nothing. Method: a partition
//! over a simulated disk that is full from the start, and then is not; one whose facts are larger than a segment.

use std::io::ErrorKind;

use engine::buffer::Region;
use engine::io::{Io, Tag};
use engine::limits::LogConfig;
use engine::partition::{Effect, Partition};
use engine::sim::Sim;

/// One turn of the loop that a core runs.
fn turn(sim: &mut Sim, partition: &mut Partition) {
    let (mut effects, mut done) = (Vec::new(), Vec::new());
    partition.on_turn(sim.now_ms());
    partition.effects(&mut effects);
    for effect in effects {
        if let Effect::Io { local, op } = effect {
            sim.submit(Tag(local), op).unwrap();
        }
    }
    sim.drive(None, &mut done);
    for done in done {
        partition.on_done(done.tag.0, done.outcome, sim.now_ms());
    }
    sim.advance(10);
}

#[test]
fn a_new_log_on_a_full_disk_says_so_until_there_is_room() {
    let memory = Region::new(64, 1 << 20).unwrap();
    let mut partition = Partition::new(LogConfig::new("/data/0", 0, memory, |_| None)).unwrap();
    let mut sim = Sim::new(1);
    sim.space = 1 << 20;
    assert!(partition.obstacle().is_none(), "nothing was tried yet");
    for _ in 0..200 {
        turn(&mut sim, &mut partition);
    }
    let kind = partition.obstacle().map(|fault| fault.kind());
    assert_eq!((partition.is_open(), kind), (false, Some(ErrorKind::StorageFull)));
    sim.space = 1 << 40;
    for _ in 0..200 {
        turn(&mut sim, &mut partition);
    }
    assert_eq!((partition.is_open(), partition.obstacle()), (true, None));
}

#[test]
fn a_log_whose_facts_are_larger_than_a_segment_comes_to_rest() {
    let config = LogConfig::new("/data/0", 0, Region::new(64, 1 << 20).unwrap(), |_| None);
    let (segment, facts) = (config.segment_bytes, 40);
    let mut partition = Partition::new(config).unwrap();
    let mut sim = Sim::new(1);
    sim.space = 1 << 40;
    let mut number = 0u32;
    for _ in 0..6_000 {
        // Each of these is half a segment, at most.
        if partition.is_open() && number < facts {
            let value = vec![7; 1 << 19];
            let key = [b"k".as_slice(), &number.to_be_bytes()].concat();
            number += u32::from(partition.put(&[(&key, Some(&value))], None, sim.now_ms()).is_ok());
        }
        turn(&mut sim, &mut partition);
    }
    let written = u64::from(number) << 19;
    assert!(number == facts && written > segment, "{number} facts, {written} bytes");
    let end = partition.stats().accepted;
    assert!(end < 4 * written, "the log has {end} bytes of {written} bytes of facts");
}
