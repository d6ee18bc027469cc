//! Headers of pop consumption (PROTOCOL 2.7).

use super::headers;

headers! {
    /// POP_MESSAGE (200050). A negative queue means all of them; `init_mode` 0 begins at the first
    /// message, 1 at the last.
    PopMessage<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
        invisible_time: i64 = "invisibleTime",
        poll_time: i64 = "pollTime",
        born_time: Option<i64> = "bornTime",
        init_mode: i32 = "initMode",
        expression_type: Option<&'a str> = "expType",
        expression: Option<&'a str> = "exp",
        order: bool = "order",
        attempt_id: Option<&'a str> = "attemptId",
    }

    /// Answer to 200050, also to one without messages. Clients unbox its four numbers.
    PopAnswer<'a> {
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_queue_id: i32 = "reviveQid",
        rest: i64 = "restNum",
        start_offset_info: Option<&'a str> = "startOffsetInfo",
        msg_offset_info: Option<&'a str> = "msgOffsetInfo",
        order_count_info: Option<&'a str> = "orderCountInfo",
    }

    /// PEEK_MESSAGE (200052).
    PeekMessage<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
    }

    /// ACK_MESSAGE (200051).
    AckMessage<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        extra_info: &'a str = "extraInfo",
        offset: i64 = "offset",
    }

    /// CHANGE_MESSAGE_INVISIBLETIME (200053).
    ChangeInvisibleTime<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        extra_info: &'a str = "extraInfo",
        offset: i64 = "offset",
        invisible_time: i64 = "invisibleTime",
        suspend: bool = "suspend",
    }

    /// Answer to 200053: what the message's new handle is made of.
    ChangeInvisibleTimeAnswer {
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_queue_id: i32 = "reviveQid",
    }

    /// NOTIFICATION (200054).
    Notification<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        poll_time: i64 = "pollTime",
        born_time: Option<i64> = "bornTime",
        order: bool = "order",
        attempt_id: Option<&'a str> = "attemptId",
        expression_type: Option<&'a str> = "expType",
        expression: Option<&'a str> = "exp",
    }

    /// Answer to 200054.
    NotificationAnswer {
        has_msg: bool = "hasMsg",
        polling_full: bool = "pollingFull",
    }

    /// POLLING_INFO (200055).
    PollingInfo<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
    }

    /// Answer to 200055.
    PollingInfoAnswer {
        polling_num: i32 = "pollingNum",
    }
}
