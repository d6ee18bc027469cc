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

    /// QUERY_SUBSCRIPTION_BY_CONSUMER (345).
    SubscriptionOf<'a> {
        group: &'a str = "group",
        topic: Option<&'a str> = "topic",
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

    /// What brokers read of GET_CONSUMER_RUNNING_INFO (307) and CONSUME_MESSAGE_DIRECTLY (309) before they pass it on.
    AskClient<'a> {
        consumer_group: &'a str = "consumerGroup",
        client_id: Option<&'a str> = "clientId",
        msg_id: Option<&'a str> = "msgId",
    }

    /// RESUME_CHECK_HALF_MESSAGE (323). The id is an offset id.
    ResumeCheck<'a> {
        topic: Option<&'a str> = "topic",
        msg_id: Option<&'a str> = "msgId",
    }

    /// GET_BROKER_CONSUME_STATS (317).
    ConsumeStatsInBroker {
        only_ordered: bool = "isOrder",
    }

    /// INVOKE_BROKER_TO_GET_CONSUMER_STATUS (223) and GET_CONSUMER_STATUS_FROM_CLIENT (221). The address is a client id.
    GetGroupStatus<'a> {
        topic: &'a str = "topic",
        group: &'a str = "group",
        client_addr: Option<&'a str> = "clientAddr",
    }

    /// INVOKE_BROKER_TO_RESET_OFFSET (222) and RESET_CONSUMER_CLIENT_OFFSET (220). A negative queue: all; a negative
    /// timestamp: the newest; an offset of -1 counts as none.
    ResetOffset<'a> {
        topic: &'a str = "topic",
        group: &'a str = "group",
        queue_id: Option<i32> = "queueId",
        offset: Option<i64> = "offset",
        timestamp: i64 = "timestamp",
        is_force: bool = "isForce",
    }

    /// QUERY_CONSUME_TIME_SPAN (303).
    TimeSpanOf<'a> {
        topic: &'a str = "topic",
        group: &'a str = "group",
    }

    /// UPDATE_AND_GET_GROUP_FORBIDDEN (353). Without a word on reading it only asks.
    GroupForbidden<'a> {
        group: &'a str = "group",
        topic: &'a str = "topic",
        readable: Option<bool> = "readable",
    }

    /// QUERY_CORRECTION_OFFSET (308). The groups left out are joined by `,`.
    CorrectionOffset<'a> {
        filter_groups: Option<&'a str> = "filterGroups",
        compare_group: &'a str = "compareGroup",
        topic: &'a str = "topic",
    }

    /// CLONE_GROUP_OFFSET (314). A blank topic: all of the group.
    CloneGroupOffset<'a> {
        src_group: &'a str = "srcGroup",
        dest_group: &'a str = "destGroup",
        topic: Option<&'a str> = "topic",
        offline: bool = "offline",
    }

    /// VIEW_BROKER_STATS_DATA (315).
    ViewStats<'a> {
        stats_name: &'a str = "statsName",
        stats_key: &'a str = "statsKey",
    }

    /// Answer to GET_BROKER_CONFIG (26): a DataVersion as JSON.
    BrokerConfigAnswer<'a> {
        version: &'a str = "version",
    }
}
