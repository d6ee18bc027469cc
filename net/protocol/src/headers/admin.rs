//! Headers of requests that mqadmin sends to brokers.

use super::headers;

headers! {
    /// UPDATE_AND_CREATE_TOPIC (17).
    CreateTopic<'a> {
        topic: &'a str = "topic",
        default_topic: &'a str = "defaultTopic",
        read_queue_nums: i32 = "readQueueNums",
        write_queue_nums: i32 = "writeQueueNums",
        perm: i32 = "perm",
        topic_filter_type: &'a str = "topicFilterType",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        order: bool = "order",
        attributes: Option<&'a str> = "attributes",
        force: bool = "force",
    }

    /// Requests that name a topic and nothing else: 202, 215, 217, 300, 351.
    TopicOf<'a> {
        topic: &'a str = "topic",
    }

    /// Requests that name a group as `group` and nothing else: 343, 352.
    GroupOf<'a> {
        group: &'a str = "group",
    }

    /// GET_ALL_TOPIC_CONFIG (21). Without paging fields the whole is wanted.
    AllTopicConfig<'a> {
        topic_seq: Option<i32> = "topicSeq",
        topic_num_max: Option<i32> = "maxTopicNum",
        data_version: Option<&'a str> = "dataVersion",
    }

    /// Answer to a paged 21.
    AllTopicConfigAnswer {
        total_topic_num: i32 = "totalTopicNum",
    }

    /// GET_ALL_SUBSCRIPTIONGROUP_CONFIG (201). Without paging fields the whole is wanted.
    AllGroupConfig<'a> {
        group_seq: Option<i32> = "groupSeq",
        group_num_max: Option<i32> = "maxGroupNum",
        data_version: Option<&'a str> = "dataVersion",
    }

    /// Answer to a paged 201.
    AllGroupConfigAnswer {
        total_group_num: i32 = "totalGroupNum",
    }

    /// DELETE_SUBSCRIPTIONGROUP (207).
    DeleteGroup<'a> {
        group: &'a str = "groupName",
        clean_offset: bool = "cleanOffset",
    }

    /// GET_PRODUCER_CONNECTION_LIST (204).
    ProducerGroup<'a> {
        producer_group: &'a str = "producerGroup",
    }

    /// GET_CONSUME_STATS (208). A blank topic means all of the group; a list is joined by `;`.
    GetConsumeStats<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: Option<&'a str> = "topic",
        topic_list: Option<&'a str> = "topicList",
    }

    /// Answer to GET_BROKER_CONFIG (26): a DataVersion as JSON.
    BrokerConfigAnswer<'a> {
        version: &'a str = "version",
    }
}
