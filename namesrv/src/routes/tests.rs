//! Each rule of the table, then random events: what must hold after every one.

use super::*;
use crate::registration::NAME_BYTES_MAX;

/// A master's registration of cluster C with the version's number as its state.
pub(crate) fn master(broker: &'static str, topics: &[&str], counter: i64) -> Registration<'static> {
    let config = |name: &&str| (name.to_string(), TopicConfig::new(*name, 4, 6));
    Registration {
        cluster: "C",
        broker,
        address: broker,
        ha_address: "ha",
        timeout_ms: 100,
        connection: 1,
        version: DataVersion { counter, ..DataVersion::default() },
        topics: topics.iter().map(config).collect(),
        ..Registration::default()
    }
}

fn slave(broker: &'static str, address: &'static str, broker_id: i64) -> Registration<'static> {
    Registration { address, broker_id, ..master(broker, &["T", "U"], 1) }
}

fn table() -> RouteTable {
    RouteTable::new(RouteLimits::default())
}

/// What must hold after every change.
fn check(table: &RouteTable) {
    assert_eq!(table.queues_count, table.topics.values().map(BTreeMap::len).sum::<usize>());
    assert!(table.topics.values().all(|brokers| !brokers.is_empty()));
    assert!(table.topics.values().flatten().all(|(broker, _)| table.brokers.contains_key(broker)));
    assert!(table.brokers.values().all(|broker| !broker.addresses.is_empty()));
    assert!(table.clusters.values().all(|brokers| !brokers.is_empty()));
    assert!(table.clusters.values().flatten().all(|broker| table.brokers.contains_key(broker)));
    for (name, broker) in &table.brokers {
        for address in broker.addresses.values() {
            let live = table.live.iter().any(|(seat, live)| seat.address == *address && live.broker == *name);
            assert!(live, "{name} at {address} would stay for ever");
        }
    }
}

fn topics(table: &RouteTable) -> Vec<&str> {
    table.topics.keys().map(String::as_str).collect()
}

fn perm_of(table: &RouteTable, topic: &str, broker: &str) -> i32 {
    table.topics[topic][broker].perm
}

#[test]
fn a_lone_topic_waits_for_the_full_registration() {
    let mut table = table();
    // (what comes, whether it is taken, the topics afterwards)
    let steps: [(&[&str], bool, &[&str]); 5] = [
        (&["A"], false, &[]),
        (&[], true, &[]),
        (&["A"], true, &["A"]),
        (&["B", "C"], true, &["A", "B", "C"]),
        (&["D"], true, &["A", "B", "C", "D"]),
    ];
    for (counter, (news, is_taken, wanted)) in steps.into_iter().enumerate() {
        let answer = table.register(master("a", news, counter as i64), 0);
        assert_eq!(answer.is_ok(), is_taken, "{news:?}");
        assert_eq!(topics(&table), wanted);
        check(&table);
    }
    let lone = Registration { broker_id: 1, address: "s", ..master("a", &["A"], 9) };
    assert_eq!(table.register(lone, 0), Err(RegisterError::Incremental), "an unknown slave too");
    assert_eq!(RegisterError::Incremental.to_string(), "register broker failed");
}

#[test]
fn topics_change_only_with_the_version() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    table.wipe_write_perm("a");
    table.register(master("a", &["T", "U", "V"], 1), 0).unwrap();
    assert_eq!(perm_of(&table, "T", "a"), 4, "known topic, same version: unchanged");
    assert_eq!(perm_of(&table, "V", "a"), 6, "an unknown topic is taken anyway");
    table.register(master("a", &["T", "U"], 2), 0).unwrap();
    assert_eq!(perm_of(&table, "T", "a"), 6);
    assert_eq!(topics(&table), ["T", "U", "V"], "what is not named stays");
    let complete = Registration { is_complete: true, ..master("a", &["T", "U"], 3) };
    table.register(complete, 0).unwrap();
    assert_eq!(topics(&table), ["T", "U"]);
    check(&table);
}

#[test]
fn a_slave_brings_no_topics_and_learns_its_master() {
    let mut table = table();
    assert_eq!(table.register(slave("a", "s1", 1), 0).unwrap(), Registered::default());
    assert!(topics(&table).is_empty());
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    let learnt = table.register(slave("a", "s1", 1), 0).unwrap();
    assert_eq!(learnt.master_address.as_deref(), Some("a"));
    assert_eq!(learnt.ha_address.as_deref(), Some("ha"));
    assert_eq!(table.brokers["a"].addresses.len(), 2);
    check(&table);
}

#[test]
fn the_lowest_slave_stands_in_for_the_master_read_only() {
    // (acting master setting, id, whether its topics are taken, their perm)
    let cases = [(None, 1, false, 0), (Some(false), 1, true, 6), (Some(true), 1, true, 4), (Some(true), 3, false, 0)];
    for (acting_master, broker_id, is_taken, perm) in cases {
        let mut table = table();
        table.register(slave("a", "s2", 2), 0).unwrap();
        table.register(Registration { acting_master, ..slave("a", "sx", broker_id) }, 0).unwrap();
        let case = format!("{acting_master:?} {broker_id}");
        assert_eq!(table.topics.contains_key("T"), is_taken, "{case}");
        if is_taken {
            assert_eq!(perm_of(&table, "T", "a"), perm, "{case}");
        }
        check(&table);
    }
}

#[test]
fn losing_the_master_ends_writing_where_a_slave_acts() {
    for (acting_master, perm) in [(Some(true), 4), (Some(false), 6), (None, 6)] {
        let mut table = table();
        table.register(Registration { acting_master, ..master("a", &["T", "U"], 1) }, 0).unwrap();
        table.register(Registration { acting_master, ..slave("a", "s1", 1) }, 0).unwrap();
        table.unregister("C", "a", "a");
        assert_eq!(perm_of(&table, "T", "a"), perm, "{acting_master:?}");
        table.unregister("C", "a", "s1");
        assert!(topics(&table).is_empty() && table.brokers.is_empty() && table.clusters.is_empty());
        check(&table);
    }
}

#[test]
fn a_slave_that_became_master_gives_up_its_id() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    table.register(slave("a", "s1", 1), 0).unwrap();
    table.unregister("C", "a", "a");
    let promoted = Registration { address: "s1", ..master("a", &["T", "U"], 2) };
    table.register(promoted, 0).unwrap();
    assert_eq!(table.brokers["a"].addresses, BTreeMap::from([(0, "s1".to_owned())]));
    check(&table);
}

#[test]
fn an_old_master_that_comes_late_is_ignored() {
    // (state version of the newcomer, who is master afterwards)
    for (state_version, wanted) in [(4, "new"), (5, "late"), (6, "late")] {
        let mut table = table();
        let state = |state_version| DataVersion { state_version, ..DataVersion::default() };
        let first = Registration { address: "new", version: state(5), ..master("a", &["T", "U"], 1) };
        table.register(first, 0).unwrap();
        let late = Registration { address: "late", version: state(state_version), ..master("a", &["T"], 1) };
        assert_eq!(table.register(late, 0).unwrap(), Registered::default());
        assert_eq!(table.brokers["a"].addresses[&0], wanted, "state {state_version}");
        assert_eq!(table.live_count(), 1);
        check(&table);
    }
}

#[test]
fn silence_is_the_end_and_any_sign_is_life() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 1000).unwrap();
    table.register(Registration { timeout_ms: 500, ..master("b", &["T", "V"], 1) }, 1000).unwrap();
    assert!(table.expire(1100).is_empty(), "not before the time is over");
    table.heartbeat("C", "a", 1090);
    table.heartbeat("D", "a", 5000);
    table.heartbeat("C", "unknown", 5000);
    assert!(table.expire(1190).is_empty());
    assert_eq!(table.expire(1191), ["a"]);
    assert_eq!(topics(&table), ["T", "V"]);
    check(&table);
    assert_eq!(table.expire(u64::MAX), ["b"]);
    assert!(topics(&table).is_empty());
    check(&table);
}

#[test]
fn a_closed_connection_takes_those_who_came_over_it() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    table.register(slave("a", "s1", 1), 0).unwrap();
    table.register(Registration { connection: 2, ..master("b", &["T", "U"], 1) }, 0).unwrap();
    assert!(table.disconnect(3).is_empty());
    assert_eq!(table.disconnect(1), ["a", "s1"]);
    assert_eq!(table.topics["T"].len(), 1);
    check(&table);
    // Registered again over another connection: the old one no longer matters.
    table.register(Registration { connection: 4, ..master("b", &["T", "U"], 1) }, 0).unwrap();
    assert!(table.disconnect(2).is_empty());
    assert_eq!(table.disconnect(4), ["b"]);
    check(&table);
}

#[test]
fn an_address_belongs_to_the_name_it_last_had() {
    let mut table = table();
    table.register(master("old", &["T", "U"], 1), 0).unwrap();
    table.register(Registration { address: "old", ..master("new", &["T", "V"], 1) }, 0).unwrap();
    assert_eq!(table.brokers.keys().collect::<Vec<_>>(), ["new"]);
    assert_eq!(topics(&table), ["T", "V"]);
    check(&table);
    table.unregister("C", "somebody else", "old");
    assert!(table.brokers.is_empty() && topics(&table).is_empty());
    check(&table);
    table.unregister("C", "new", "old");
    check(&table);
}

#[test]
fn a_replaced_address_leaves_nothing_behind() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    let moved = Registration { address: "elsewhere", connection: 2, ..master("a", &["T", "U"], 1) };
    table.register(moved, 0).unwrap();
    assert_eq!(table.brokers["a"].addresses[&0], "elsewhere");
    check(&table);
    assert!(table.disconnect(1).is_empty(), "the old connection no longer matters");
    assert_eq!(topics(&table), ["T", "U"]);
}

#[test]
fn permissions_topics_and_clusters_are_changed_by_hand() {
    let mut table = table();
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    table.register(Registration { cluster: "D", ..master("b", &["T", "V"], 1) }, 0).unwrap();
    assert_eq!(table.wipe_write_perm("a"), 2);
    assert_eq!((perm_of(&table, "T", "a"), perm_of(&table, "T", "b")), (4, 6));
    assert_eq!(table.add_write_perm("a"), 2);
    assert_eq!(table.wipe_write_perm("unknown"), 0);
    assert_eq!(perm_of(&table, "T", "a"), 6);

    table.delete_topic("T", Some("unknown"));
    table.delete_topic("unknown", None);
    assert_eq!(table.topics["T"].len(), 2);
    table.delete_topic("T", Some("D"));
    assert_eq!(table.topics["T"].keys().collect::<Vec<_>>(), ["a"]);
    table.delete_topic("V", Some("D"));
    table.delete_topic("U", None);
    assert_eq!(topics(&table), ["T"]);
    check(&table);

    let queues = table.topics["T"]["a"];
    table.add_topic("W", &[("a".into(), queues), ("unknown".into(), queues), ("b".into(), queues)]).unwrap();
    assert_eq!(table.topics["W"].keys().collect::<Vec<_>>(), ["a"]);
    check(&table);
}

#[test]
fn the_table_is_bounded_and_a_refusal_changes_nothing() {
    let mut table = RouteTable::new(RouteLimits { brokers_max: 2, queues_max: 4 });
    table.register(master("a", &["T", "U"], 1), 0).unwrap();
    let long: &'static str = "x".repeat(NAME_BYTES_MAX + 1).leak();
    let base = || master("b", &["T", "V"], 1);
    let refused = [
        master("b", &["A", "B", "C"], 1),
        master("b", &["A", long], 1),
        master("b", &["A", ""], 1),
        Registration { cluster: "", ..base() },
        Registration { broker: "", ..base() },
        Registration { address: "", ..base() },
        Registration { cluster: long, ..base() },
        Registration { broker: long, ..base() },
        Registration { address: long, ..base() },
        Registration { ha_address: long, ..base() },
        Registration { zone: Some(long), ..base() },
    ];
    for news in refused {
        let error = table.register(news.clone(), 0).unwrap_err();
        assert!(matches!(error, RegisterError::Bound(_)), "{news:?}");
        assert_eq!((table.live_count(), table.topic_count()), (1, 2));
    }
    table.register(base(), 0).unwrap();
    table.register(master("c", &[], 1), 0).unwrap_err();
    table.register(master("b", &["T", "V"], 2), 0).unwrap();
    table.add_topic("W", &[("a".into(), table.topics["T"]["a"])]).unwrap_err();
    assert_eq!((table.live_count(), table.topic_count()), (2, 3));
    check(&table);
}

#[test]
fn no_order_of_events_leaves_a_trace() {
    // Random registrations, heartbeats and losses of few names, so that they collide.
    let names = ["a", "b", "c"];
    for seed in 1..400u64 {
        let mut table = RouteTable::new(RouteLimits { brokers_max: 5, queues_max: 12 });
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for now_ms in 0..150 {
            let mut pick = || names[below(3) as usize];
            let (broker, address, topic) = (pick(), pick(), pick());
            match below(8) {
                0..4 => {
                    let version = DataVersion { state_version: below(3) as i64, ..DataVersion::default() };
                    let topics = [topic, "T", "U"].map(|name| (name.to_owned(), TopicConfig::new(name, 1, 6)));
                    let count = below(4) as usize;
                    let news = Registration {
                        address,
                        broker_id: below(3) as i64,
                        acting_master: [None, Some(false), Some(true)][below(3) as usize],
                        connection: below(4),
                        version,
                        topics: topics.into_iter().take(count).collect(),
                        is_complete: below(4) == 0,
                        timeout_ms: below(50),
                        ..master(broker, &[], 0)
                    };
                    let _ = table.register(news, now_ms);
                }
                4 => table.unregister("C", broker, address),
                5 => table.heartbeat("C", address, now_ms),
                6 => drop(table.disconnect(below(4))),
                _ => drop(table.expire(now_ms)),
            }
            check(&table);
        }
        table.expire(u64::MAX);
        assert!(table.live.is_empty() && table.brokers.is_empty(), "seed {seed}");
        assert!(table.topics.is_empty() && table.clusters.is_empty(), "seed {seed}");
    }
}
