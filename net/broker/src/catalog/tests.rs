use super::*;

fn topic(name: &str, id: u32) -> Arc<Topic> {
    Arc::new(Topic {
        id,
        name: name.into(),
        first_partition: 3,
        config: TopicConfig { topic_name: name.to_owned(), ..TopicConfig::default() },
    })
}

#[test]
fn a_clone_keeps_what_it_had() {
    let mut catalog = Catalog::new(7);
    for id in 0..1_000 {
        catalog.set_topic(topic(&format!("T{id}"), id));
    }
    let before = catalog.clone();
    catalog.remove_topic("T5");
    catalog.remove_topic("T5");
    catalog.remove_topic("none");
    catalog.set_topic(topic("T6", 6_000));
    catalog.set_topic(topic("new", 7_000));
    assert_eq!((before.topics_count(), catalog.topics_count()), (1_000, 1_000));
    assert_eq!(before.topics().count(), 1_000);
    assert_eq!(catalog.topics().count(), 1_000);
    let id = |catalog: &Catalog, name| catalog.topic(name).map(|topic| topic.id);
    let rows =
        [("T5", Some(5), None), ("T6", Some(6), Some(6_000)), ("T7", Some(7), Some(7)), ("new", None, Some(7_000))];
    for (name, old, new) in rows {
        assert_eq!((id(&before, name), id(&catalog, name)), (old, new), "{name}");
    }
    assert_eq!(catalog.topics_gone_since(&before), [5, 6].into());
    assert!(before.topics_gone_since(&before).is_empty());
    assert!(catalog.topics_gone_since(&Catalog::new(8)).is_empty(), "another table, with other shards");
    assert_eq!(Catalog::new(8).topics_gone_since(&before).len(), 1_000);
    // Those with more queues, but not others of the same name.
    let with_queues = |id: u32, queues: i32| {
        let was = topic(&format!("T{id}"), id);
        Arc::new(Topic { config: TopicConfig { read_queue_nums: queues, ..was.config.clone() }, ..Topic::clone(&was) })
    };
    let mut grown = before.clone();
    [with_queues(7, 99), with_queues(8, 0), topic("T9", 9_000)].into_iter().for_each(|topic| grown.set_topic(topic));
    assert_eq!(grown.topics_grown_since(&before), [7]);
    assert_eq!(before.topics_grown_since(&grown), [8]);
}

#[test]
fn groups_that_are_gone_are_told() {
    let mut catalog = Catalog::new(7);
    for name in ["a", "b", "c"] {
        let config = SubscriptionGroupConfig { group_name: name.to_owned(), ..SubscriptionGroupConfig::default() };
        catalog.set_group(Arc::new(Group { name: name.into(), config, forbidden: BTreeMap::new() }));
    }
    let before = catalog.clone();
    catalog.remove_group("b");
    catalog.set_group(Arc::clone(before.group("c").unwrap()));
    assert_eq!(catalog.groups_gone_since(&before), ["b".into()].into());
    assert!(before.groups_gone_since(&catalog).is_empty());
}

#[test]
fn queues_go_round_the_partitions() {
    let topic = topic("T", 1);
    let seen: Vec<u16> = (0..6).map(|queue| topic.partition_of(queue, 4)).collect();
    assert_eq!(seen, [3, 0, 1, 2, 3, 0]);
    assert_eq!(topic.partition_of(u32::MAX, 1), 0);
}

#[test]
fn facts_come_back_and_wrong_ones_are_named() {
    let topic = topic("%RETRY%g", 9);
    let (key, value) = topic.fact();
    assert_eq!(key, b"t/%RETRY%g");
    assert_eq!(Topic::from_fact(&key, &value).unwrap(), *topic);
    let wrong = Topic::from_fact(b"t/other", &value).unwrap_err();
    assert_eq!(wrong.to_string(), "fact t/other: it names another topic");
    for cut in 0..value.len() {
        assert!(Topic::from_fact(&key, &value[..cut]).is_err());
    }
    let group = Group {
        name: "g".into(),
        config: SubscriptionGroupConfig {
            group_name: "g".to_owned(),
            retry_max_times: 3,
            ..SubscriptionGroupConfig::default()
        },
        forbidden: BTreeMap::from([("T".to_owned(), 8)]),
    };
    let (key, value) = group.fact();
    assert_eq!(Group::from_fact(&key, &value).unwrap(), group);
    let without = Group { forbidden: BTreeMap::new(), ..group.clone() };
    assert_eq!(without.fact().1, json(&without.config), "as it always was");
    let counters = Counters { next_topic: 17, ..Counters::default() };
    assert_eq!(Counters::from_fact(&counters.fact().1).unwrap(), counters);
}

#[test]
fn offset_keys_come_apart_and_sort_by_topic_and_queue() {
    let key = offset_key(0x0102_0304, 7, "group");
    assert_eq!(key, b"o/\x01\x02\x03\x04\x00\x00\x00\x07group");
    assert_eq!(split_offset_key(&key), Some((0x0102_0304, 7, "group")));
    assert_eq!(split_offset_key(&key[..9]), None);
    assert_eq!(split_offset_key(b"t/\x01\x02\x03\x04\x00\x00\x00\x07"), None);
    assert!(offset_key(1, 256, "a") < offset_key(2, 0, "a"));
    assert_eq!(offset_value(&5u64.to_be_bytes()), Some(5));
    assert_eq!(offset_value(&[0; 7]), None);
}

#[test]
fn subscriptions_want_tags_by_their_low_half() {
    let data = |expression| SubscriptionData::from_expression("T", expression).unwrap();
    let no_codes = SubscriptionData { code_set: [].into(), ..data("TagB || TagA") };
    let sql = SubscriptionData { expression_type: "SQL92".to_owned(), ..data("*") };
    // A, B, TagA, and one whose low half is A's.
    let hashes = [65, 66, 2_598_919, (1 << 40) + 65];
    let rows = [
        (data("*"), [true; 4]),
        (data("A"), [true, false, false, true]),
        (data("TagA || A"), [true, false, true, true]),
        (no_codes, [false, false, true, false]),
    ];
    for (data, wanted) in rows {
        let subscription = Subscription::of(&data);
        assert!(subscription.is_tag_type());
        assert_eq!(hashes.map(|hash| subscription.wants.tag(hash)), wanted, "{}", data.sub_string);
    }
    assert!(!Subscription::of(&sql).is_tag_type());
}
