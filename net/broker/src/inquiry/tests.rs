//! Method: real partitions over the simulated kernel, which is driven until nothing is wanted.

use std::sync::Arc;

use bytes::Bytes;
use engine::buffer::Region;
use engine::io::{Io, Tag};
use engine::limits::LogConfig;
use engine::message::{Draft, Stamp};
use engine::partition::Effect;
use engine::sim::Sim;
use protocol::bodies::SubscriptionGroupConfig;
use protocol::ids::key_hash;
use protocol::message::{self, PHYSICAL_OFFSET_AT, QUEUE_OFFSET_AT, StoredMessage};

use super::*;
use crate::admin::Traffic;
use crate::catalog::{Group, TopicConfig};
use crate::produce::describe;

const PARTITIONS: u16 = 2;

struct World {
    sim: Sim,
    partitions: Vec<Partition>,
    catalog: Catalog,
    loaded: Vec<(usize, LoadId, bool)>,
}

fn partition(number: u16, memory: &Arc<Region>) -> Partition {
    let config = LogConfig::new(format!("/data/{number}"), number, Arc::clone(memory), describe);
    Partition::new(config).unwrap()
}

impl World {
    /// Two partitions, and topics `T` (4 queues, so both partitions) and `U` (1).
    fn new(sim: Sim) -> World {
        let memory = Region::new(64, 1 << 20).unwrap();
        let mut catalog = Catalog::new(3);
        for (id, name, queues) in [(1, "T", 4), (2, "U", 1)] {
            let config = TopicConfig::new(name, queues, 6);
            catalog.set_topic(Arc::new(Topic { id, name: name.into(), first_partition: 1, config }));
        }
        let partitions = (0..PARTITIONS).map(|number| partition(number, &memory)).collect();
        let mut world = World { sim, partitions, catalog, loaded: Vec::new() };
        world.drive();
        assert!(world.partitions.iter().all(Partition::is_open));
        world
    }

    /// Lets everything happen that is under way.
    fn drive(&mut self) {
        let (mut effects, mut done, mut idle) = (Vec::new(), Vec::new(), 0);
        while idle < 3 {
            let now_ms = self.sim.now_ms();
            let mut busy = self.sim.flying() > 0;
            for (index, partition) in self.partitions.iter_mut().enumerate() {
                partition.on_turn(now_ms);
                partition.effects(&mut effects);
                for effect in effects.drain(..) {
                    busy = true;
                    match effect {
                        Effect::Io { local, op } => self.sim.submit(Tag((index as u64) << 40 | local), op).unwrap(),
                        Effect::Loaded(load, outcome) => self.loaded.push((index, load, outcome.is_ok())),
                        Effect::Closed(reason) => panic!("{reason}"),
                        _ => {}
                    }
                }
            }
            self.sim.drive(None, &mut done);
            for done in done.drain(..) {
                let partition = &mut self.partitions[(done.tag.0 >> 40) as usize];
                partition.on_done(done.tag.0 & ((1 << 40) - 1), done.outcome, self.sim.now_ms());
            }
            idle = if busy { 0 } else { idle + 1 };
            self.sim.advance(10);
        }
    }

    /// Stores a message with a key; it is durable and visible afterwards.
    fn store(&mut self, topic: &str, queue: u32, key: &str, body: &[u8]) -> u64 {
        let now_ms = self.sim.now_ms();
        self.append(topic, queue, key, body, now_ms);
        self.drive();
        now_ms
    }

    fn append(&mut self, topic: &str, queue: u32, key: &str, body: &[u8], now_ms: u64) {
        let found = Arc::clone(self.catalog.topic(topic).unwrap());
        let host = "127.0.0.1:10911".parse().unwrap();
        let properties = format!("KEYS\u{1}{key}\u{2}");
        let message = StoredMessage { queue_id: queue as i32, ..StoredMessage::plain(host, topic, &properties, body) };
        let draft = Draft {
            queue: QueueKey { topic: found.id, queue },
            length: message.encoded_len(),
            offsets: 1,
            tag_hash: 0,
            keys: &[key_hash(topic, key)],
            stamp: Stamp {
                queue_offset_at: QUEUE_OFFSET_AT,
                position_at: PHYSICAL_OFFSET_AT,
                store_time_at: message::store_timestamp_at(0),
            },
            fill: &mut |out| message.encode(out),
        };
        let partition = &mut self.partitions[usize::from(found.partition_of(queue, PARTITIONS))];
        partition.append(&mut [draft], None, now_ms, &mut Vec::new()).unwrap();
    }

    fn commit(&mut self, topic: &str, queue: u32, group: &str, offset: u64) {
        let topic = self.catalog.topic(topic).unwrap();
        let partition = &mut self.partitions[usize::from(topic.partition_of(queue, PARTITIONS))];
        assert!(partition.note(&offset_key(topic.id, queue, group), &offset.to_be_bytes()));
    }

    fn answer(&mut self, inquiry: &mut Inquiry) -> Result<Part, Pause> {
        let traffic = Traffic { put_messages: 3, ..Traffic::default() };
        let tally = Tally { traffic, ..Tally::default() };
        let mut lent = |key: QueueKey, group: &str| (key.queue == 3 && group == "g").then_some(1);
        inquiry.answer(&mut self.partitions, PARTITIONS, &self.catalog, tally, &mut lent)
    }

    /// The answer to a question for which something must be read; the first reads fail.
    fn ask_cold(&mut self, question: Question, failures: usize) -> Part {
        let mut inquiry = Inquiry::new(question);
        for read in 0.. {
            match self.answer(&mut inquiry) {
                Ok(part) => {
                    assert!(read > failures, "a store that was just opened has nothing in memory");
                    return part;
                }
                Err(Pause::Turn) => panic!("it is not that much"),
                Err(Pause::Read(..)) if read < failures => inquiry.skip(),
                Err(Pause::Read(index, load)) => {
                    self.drive();
                    let loaded = std::mem::take(&mut self.loaded);
                    assert!(loaded.contains(&(index, load, true)), "{load:?} is waited for");
                }
            }
        }
        unreachable!("it ends with an answer")
    }

    fn ask(&mut self, question: Question) -> Part {
        self.ask_in_turns(question).0
    }

    /// The answer, and how many turns it took. Everything is in memory.
    fn ask_in_turns(&mut self, question: Question) -> (Part, usize) {
        let mut inquiry = Inquiry::new(question);
        for turns in 1.. {
            match self.answer(&mut inquiry) {
                Ok(part) => return (part, turns),
                Err(pause) => assert_eq!(pause, Pause::Turn),
            }
        }
        unreachable!("it ends with an answer")
    }
}

fn group(name: &str) -> String {
    name.to_owned()
}

#[test]
fn queues_and_groups_are_told_from_every_partition() {
    let mut world = World::new(Sim::new(1));
    world.store("T", 0, "k", b"a");
    let first_ms = world.store("T", 0, "k", b"b");
    let last_ms = world.store("T", 3, "k", b"c");
    let topic = || "T".to_owned();

    let Part::Topic(mut queues) = world.ask(Question::Topic { topic: topic() }) else { panic!() };
    queues.sort_by_key(|stats| stats.queue);
    let row = |queue, max, last_ms| QueueStats { queue, min: 0, max, last_ms };
    assert_eq!(queues, [row(0, 2, first_ms), row(1, 0, 0), row(2, 0, 0), row(3, 1, last_ms)]);
    assert_eq!(world.ask(Question::Topic { topic: "none".to_owned() }), Part::Topic(Vec::new()));

    world.commit("T", 0, "g", 2);
    world.commit("T", 3, "g", 0);
    world.commit("U", 0, "g2", 0);
    let consuming = |topic: &str, id, queues| Consuming { group: group("g"), topic: topic.into(), id, queues };
    let question = Question::Progress([consuming("U", 2, 1), consuming("T", 1, 4)].into());
    let Part::Progress(mut queues) = world.ask(question) else { panic!() };
    queues.sort_by_key(|progress| (progress.asked, progress.queue));
    let row = |asked, queue, broker, consumer, given, last_ms| QueueProgress {
        asked,
        queue,
        broker,
        consumer,
        given,
        last_ms,
    };
    let wanted = [row(0, 0, 0, 0, 0, 0), row(1, 0, 2, 2, 2, first_ms), row(1, 1, 0, 0, 0, 0)];
    assert_eq!(queues, [&wanted[..], &[row(1, 2, 0, 0, 0, 0), row(1, 3, 1, 0, 1, 0)]].concat());

    let topics = |world: &mut World, name| world.ask(Question::TopicsOf { group: group(name) });
    assert_eq!(topics(&mut world, "g"), Part::TopicsOf([1].into()));
    assert_eq!(topics(&mut world, "g2"), Part::TopicsOf([2].into()));
    let groups = |world: &mut World, topic: &str| world.ask(Question::GroupsOf { topic: topic.to_owned() });
    assert_eq!(groups(&mut world, "T"), Part::GroupsOf([group("g")].into()));
    assert_eq!(groups(&mut world, "U"), Part::GroupsOf([group("g2")].into()));

    let keys = |name: &str| {
        let (mut inquiry, mut keys) = (Inquiry::new(Question::Forget { group: group(name) }), Vec::new());
        assert_eq!(inquiry.forget(&world.partitions, &mut keys), Ok(()));
        keys
    };
    assert_eq!(keys("g"), [vec![offset_key(1, 3, "g")], vec![offset_key(1, 0, "g")]]);
    assert_eq!(keys("g2"), [vec![], vec![offset_key(2, 0, "g2")]]);

    let Part::Tally(tally) = world.ask(Question::Tally) else { panic!() };
    assert_eq!(tally.traffic.put_messages, 3);
    assert!(tally.logs.batches >= 2, "each log announced itself");
    assert!(tally.log_max > tally.log_min && tally.unflushed <= tally.log_max);
    assert!(tally.disk.is_some_and(|(total, available)| available <= total));
}

#[test]
fn what_is_much_is_looked_at_in_many_turns() {
    let mut world = World::new(Sim::new(7));
    let config = SubscriptionGroupConfig::default();
    world.catalog.set_group(Arc::new(Group { name: "g".into(), config, forbidden: BTreeMap::new() }));
    for queue in 0..4 {
        world.store("T", queue, "k", b"a");
        world.commit("T", queue, "g", 1);
    }
    // In one queue of one log, and in a topic that is gone in the other.
    for number in 2..3 * LOOKS_PER_TURN as u64 {
        world.commit("T", 0, &format!("h{number:05}"), number);
    }
    for queue in 0..10_000 {
        assert!(world.partitions[0].note(&offset_key(7, queue, "h"), &[0; 8]));
    }
    let topic = || "T".to_owned();
    assert_eq!(world.ask_in_turns(Question::TopicsOf { group: group("g") }), (Part::TopicsOf([1].into()), 6));
    assert_eq!(world.ask_in_turns(Question::TopicsOf { group: group("h") }), (Part::TopicsOf([7].into()), 6));
    let (Part::GroupsOf(groups), 4) = world.ask_in_turns(Question::GroupsOf { topic: topic() }) else { panic!() };
    assert_eq!(groups.len(), 3 * LOOKS_PER_TURN - 1);
    let consumed = Part::Consumed(Some([(1, [group("g")].into()), (7, BTreeSet::new())].into()));
    assert_eq!(world.ask_in_turns(Question::Consumed), (consumed, 6));
    let correction = Question::Correction { topic: topic(), without: BTreeSet::new(), compared: "h02000".to_owned() };
    let (Part::Correction(mut lowest), 4) = world.ask_in_turns(correction) else { panic!() };
    lowest.sort_unstable();
    assert_eq!(lowest, [(0, 1), (1, 1), (2, 1), (3, 1)]);
    let mut inquiry = Inquiry::new(Question::Clone { from: group("g"), to: group("to"), topics: None });
    while world.answer(&mut inquiry) == Err(Pause::Turn) {}
    assert_eq!(inquiry.cloned().unwrap().1.len(), 4);
    assert_eq!(world.ask(Question::TopicsOf { group: group("to") }), Part::TopicsOf([1].into()));
    // Rows for each queue, whether it is here or not.
    let consuming = |queues| Consuming { group: group("g"), topic: "T".into(), id: 1, queues };
    let asked = [consuming(1), consuming(LOOKS_PER_TURN as u32), consuming(4)];
    let (Part::Progress(rows), 2) = world.ask_in_turns(Question::Progress(asked.into())) else { panic!() };
    assert_eq!(rows.iter().map(|row| row.consumer).sum::<u64>(), 1 + 4 + 4);
    let counted = vec![Counted::AllPut; LOOKS_PER_TURN + 1];
    let mut inquiry = Inquiry::new(Question::Stats(counted));
    assert_eq!((inquiry.uncounted().unwrap().len(), inquiry.count(vec![None; LOOKS_PER_TURN])), (LOOKS_PER_TURN, None));
    assert_eq!((inquiry.uncounted().unwrap().len(), inquiry.count(vec![None]).is_some()), (1, true));
    assert_eq!(Inquiry::new(Question::Stats(Vec::new())).count(Vec::new()), Some(Part::Stats(Vec::new())));
}

#[test]
fn groups_that_there_are_are_told_and_no_more_than_fit() {
    let mut world = World::new(Sim::new(6));
    let config = SubscriptionGroupConfig::default();
    world.catalog.set_group(Arc::new(Group { name: "g".into(), config, forbidden: BTreeMap::new() }));
    for (topic, queue, group) in [("T", 0, "g"), ("T", 1, "g"), ("U", 0, "gone")] {
        world.commit(topic, queue, group, 1);
    }
    let Part::Consumed(Some(consumed)) = world.ask(Question::Consumed) else { panic!() };
    assert_eq!(
        consumed.into_iter().filter(|(_, groups)| !groups.is_empty()).collect::<Vec<_>>(),
        [(1, [group("g")].into())]
    );
    for topic in 1..=PAIRS_MAX as u32 + 1 {
        assert!(world.partitions[0].note(&offset_key(topic, 0, "g"), &[0; 8]));
        if topic == PAIRS_MAX as u32 {
            assert!(matches!(world.ask(Question::Consumed), Part::Consumed(Some(all)) if all.len() == PAIRS_MAX));
        }
    }
    assert_eq!(world.ask(Question::Consumed), Part::Consumed(None));
}

#[test]
fn messages_are_found_by_key_also_on_the_disk() {
    let mut world = World::new(Sim::new(2));
    let times: Vec<u64> = (0..6).map(|number: u8| world.store("T", number.into(), "k", &[number])).collect();
    world.store("T", 0, "other", b"x");
    world.store("U", 0, "k", b"x");
    // Begin, end, count of each partition, what is found. Even numbers lie in one, odd in the other.
    let rows = [
        (0, u64::MAX, 32, vec![0, 1, 2, 3, 4, 5]),
        (0, u64::MAX, 1, vec![4, 5]),
        (times[1], times[3], 32, vec![1, 2, 3]),
        (times[1], times[3], 1, vec![2, 3]),
        (times[5] + 1, u64::MAX, 32, vec![]),
        (0, u64::MAX, 0, vec![]),
    ];
    for (begin_ms, end_ms, count, wanted) in &rows {
        let part = world.ask(messages_of(*begin_ms, *end_ms, *count));
        assert_eq!(bodies(part, false), *wanted, "{begin_ms} {end_ms} {count}");
    }
    // After a restart everything must be read first.
    let mut world = World::new(world.sim.kill());
    for (begin_ms, end_ms, count, wanted) in rows.iter().filter(|row| row.2 > 0) {
        let part = world.ask_cold(messages_of(*begin_ms, *end_ms, *count), 0);
        assert_eq!(bodies(part, false), *wanted, "cold: {begin_ms} {end_ms} {count}");
        world = World::new(world.sim.kill());
    }
    // A read that fails costs its message, and no more: here that with which the search began, which is looked at
    // again, and then one after the other.
    for (failures, wanted) in [(1, 6), (2, 5), (3, 4), (4, 3)] {
        let part = world.ask_cold(messages_of(0, u64::MAX, 32), failures);
        assert_eq!(bodies(part, true).len(), wanted, "{failures} fail");
        world = World::new(world.sim.kill());
    }
}

/// A question for messages of `T` with the key `k`.
fn messages_of(begin_ms: u64, end_ms: u64, count: usize) -> Question {
    Question::Messages { key: key_hash("T", "k"), begin_ms, end_ms, count }
}

/// The first bytes of the messages that were found, in the order of time.
fn bodies(part: Part, partial: bool) -> Vec<u8> {
    let Part::Messages { found: messages, is_partial } = part else { panic!() };
    assert_eq!(is_partial, partial, "it says so exactly if a message may be missing");
    let body = |(at_ms, message): &(u64, Bytes)| (*at_ms, StoredMessage::decode(message).unwrap().body[0]);
    let mut bodies: Vec<_> = messages.iter().map(body).collect();
    bodies.sort_unstable();
    bodies.into_iter().map(|(_, body)| body).collect()
}

#[test]
fn messages_are_found_below_any_number_of_newer_ones() {
    let mut world = World::new(Sim::new(4));
    let times: Vec<u64> = (0..6).map(|number: u8| world.store("T", number.into(), "k", &[number])).collect();
    // Even numbers lie in one partition, and so do all that are newer.
    for step in 0..30 {
        let now_ms = world.sim.now_ms();
        (0..100).for_each(|_| world.append("T", 0, "k", &[100 + step], now_ms));
        world.drive();
    }
    let rows = [
        (times[0], times[5], 32, vec![0, 1, 2, 3, 4, 5]),
        (times[1], times[3], 32, vec![1, 2, 3]),
        (0, times[4], 2, vec![1, 2, 3, 4]),
        (0, times[0] - 1, 32, vec![]),
        (times[5], times[5], 1, vec![5]),
    ];
    for (begin_ms, end_ms, count, wanted) in &rows {
        assert_eq!(bodies(world.ask(messages_of(*begin_ms, *end_ms, *count)), false), *wanted, "{begin_ms} {end_ms}");
    }
    for (begin_ms, end_ms, count, wanted) in &rows {
        world = World::new(world.sim.kill());
        let part = world.ask_cold(messages_of(*begin_ms, *end_ms, *count), 0);
        assert_eq!(bodies(part, false), *wanted, "cold: {begin_ms} {end_ms}");
    }
}

#[test]
fn a_search_that_a_clock_led_astray_ends_and_says_so() {
    let mut world = World::new(Sim::new(5));
    let now_ms = world.sim.now_ms();
    (0..2_000).for_each(|_| world.append("T", 0, "k", b"1", now_ms + 1_000_000));
    // Then the clock was set back.
    world.append("T", 0, "k", b"2", now_ms);
    world.drive();
    assert_eq!(bodies(world.ask(messages_of(now_ms, now_ms, 1)), false), b"2");
    assert_eq!(bodies(world.ask(messages_of(now_ms, now_ms, 2)), true), b"2");
}

#[test]
fn a_clock_that_is_seen_to_have_gone_back_may_hide_messages_and_that_is_said() {
    let mut world = World::new(Sim::new(6));
    let start_ms = world.sim.now_ms();
    let times = [100, 200, 150, 160];
    (0..).zip(times).for_each(|(number, ms)| world.append("T", 0, "k", &[number], start_ms + ms));
    world.drive();
    // Halving finds 160 too new, then 200: nobody looks at 150.
    let part = world.ask(messages_of(start_ms + 90, start_ms + 155, 32));
    assert_eq!(bodies(part, true), [0]);
    let part = world.ask(messages_of(start_ms + 155, start_ms + 170, 32));
    assert_eq!(bodies(part, false), [3], "in order as far as it was looked");
}

#[test]
fn offsets_that_find_no_room_or_no_log_are_not_said_to_be_cloned() {
    let mut world = World::new(Sim::new(3));
    for (queue, offset) in [(0, 7), (1, 8)] {
        world.commit("T", queue, "g", offset);
    }
    let clone = |to: &str| Question::Clone { from: group("g"), to: to.to_owned(), topics: None };
    // A key that no fact may have stands for facts that are full.
    let Part::Cloned(Err((code, remark))) = world.ask(clone(&"x".repeat(1 << 17))) else { panic!() };
    assert_eq!((code, remark.as_str()), (response::SYSTEM_BUSY, OFFSETS_FULL));
    let mut inquiry = Inquiry::new(clone("h"));
    assert_eq!(world.answer(&mut inquiry), Ok(Part::Cloned(Ok(()))));
    let (to, mut cloned) = inquiry.cloned().unwrap();
    cloned.sort_unstable();
    assert_eq!(
        (to.as_str(), cloned),
        ("h", [(0, 7), (1, 8)].map(|(queue, offset)| (QueueKey { topic: 1, queue }, offset)).to_vec())
    );
    world.partitions = (0..PARTITIONS).map(|number| partition(number, &Region::new(64, 1 << 20).unwrap())).collect();
    let Part::Cloned(Err((code, _))) = world.ask(clone("h")) else { panic!() };
    assert_eq!(code, response::SERVICE_NOT_AVAILABLE, "what is not open yet is not empty");
}
