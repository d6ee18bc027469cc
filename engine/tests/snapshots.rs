//! Goal: live facts are written again as the log goes on, and not because they were. Method: a partition over a simulated
//! disk whose facts are larger than a segment, and then nothing to do.

use engine::buffer::Region;
use engine::io::{Io, Tag};
use engine::limits::LogConfig;
use engine::partition::{Effect, Partition};
use engine::sim::Sim;

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
        let (mut effects, mut done) = (Vec::new(), Vec::new());
        partition.on_turn(sim.now_ms());
        partition.effects(&mut effects);
        for effect in effects {
            if let Effect::Io { local, op } = effect {
                sim.submit(Tag(local), op).unwrap();
            }
        }
        sim.drive(None, &mut done);
        done.into_iter().for_each(|done| partition.on_done(done.tag.0, done.outcome, sim.now_ms()));
        sim.advance(10);
    }
    let written = u64::from(number) << 19;
    assert!(number == facts && written > segment, "{number} facts, {written} bytes");
    let end = partition.stats().accepted;
    assert!(end < 4 * written, "the log has {end} bytes of {written} bytes of facts");
}
