//! Headers of consuming: pulls, offsets, queries and membership.

use super::headers;

headers! {
    /// PULL_MESSAGE (11) and LITE_PULL_MESSAGE (361).
    PullMessage<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        max_msg_nums: i32 = "maxMsgNums",
        sys_flag: i32 = "sysFlag",
        commit_offset: i64 = "commitOffset",
        suspend_timeout_ms: i64 = "suspendTimeoutMillis",
        subscription: Option<&'a str> = "subscription",
        sub_version: i64 = "subVersion",
        expression_type: Option<&'a str> = "expressionType",
        max_msg_bytes: Option<i32> = "maxMsgBytes",
    }

    /// Answer to a pull. Clients unbox its four offsets on 0, 19, 20 and 21.
    PullAnswer {
        suggest_which_broker_id: i64 = "suggestWhichBrokerId",
        next_begin_offset: i64 = "nextBeginOffset",
        min_offset: i64 = "minOffset",
        max_offset: i64 = "maxOffset",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
        forbidden_type: Option<i32> = "forbiddenType",
    }

    /// QUERY_CONSUMER_OFFSET (14).
    QueryConsumerOffset<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        set_zero_if_not_found: Option<bool> = "setZeroIfNotFound",
    }

    /// UPDATE_CONSUMER_OFFSET (15).
    UpdateConsumerOffset<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        commit_offset: i64 = "commitOffset",
    }

    /// SEARCH_OFFSET_BY_TIMESTAMP (29). The boundary is `LOWER`, the default, or `UPPER`, in any
    /// case.
    SearchOffset<'a> {
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        timestamp: i64 = "timestamp",
        boundary: Option<&'a str> = "boundaryType",
    }

    /// GET_MAX_OFFSET (30), GET_MIN_OFFSET (31) and GET_EARLIEST_MSG_STORETIME (32).
    /// `committed` belongs to 30 and is true when absent.
    QueueOf<'a> {
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        committed: Option<bool> = "committed",
    }

    /// QUERY_CONSUME_QUEUE (321).
    QueryConsumeQueue<'a> {
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        index: i64 = "index",
        count: i32 = "count",
        consumer_group: Option<&'a str> = "consumerGroup",
    }

    /// Answer to 14, 29, 30 and 31.
    OffsetAnswer {
        offset: i64 = "offset",
    }

    /// Answer to 32.
    TimestampAnswer {
        timestamp: i64 = "timestamp",
    }

    /// QUERY_MESSAGE (12); `names::ext::UNIQUE_KEY_QUERY` may stand beside it. `index_type`: what the key is, by
    /// [`names::index_type`]; missing or empty: a key. `last_key`: where a stock broker goes on whose index is in RocksDB.
    QueryMessage<'a> {
        topic: &'a str = "topic",
        key: &'a str = "key",
        max_num: i32 = "maxNum",
        begin_timestamp: i64 = "beginTimestamp",
        end_timestamp: i64 = "endTimestamp",
        unique_key: bool = "_UNIQUE_KEY_QUERY",
        index_type: Option<&'a str> = "indexType",
        last_key: Option<&'a str> = "lastKey",
    }

    /// Answer to 12.
    QueryMessageAnswer {
        index_last_update_timestamp: i64 = "indexLastUpdateTimestamp",
        index_last_update_offset: i64 = "indexLastUpdatePhyoffset",
    }

    /// VIEW_MESSAGE_BY_ID (33).
    ViewMessage<'a> {
        topic: Option<&'a str> = "topic",
        offset: i64 = "offset",
    }

    /// UNREGISTER_CLIENT (35).
    UnregisterClient<'a> {
        client_id: &'a str = "clientID",
        producer_group: Option<&'a str> = "producerGroup",
        consumer_group: Option<&'a str> = "consumerGroup",
    }

    /// GET_CONSUMER_LIST_BY_GROUP (38), NOTIFY_CONSUMER_IDS_CHANGED (40, broker to client) and
    /// GET_CONSUMER_CONNECTION_LIST (203).
    ConsumerGroup<'a> {
        consumer_group: &'a str = "consumerGroup",
    }

    /// Answer to HEART_BEAT (34).
    HeartbeatAnswer {
        is_support_v2: bool = "IS_SUPPORT_HEART_BEAT_V2",
        is_sub_change: bool = "IS_SUB_CHANGE",
    }
}
