//! What is said to requests that are not served.

use engine::error::AppendError;
use engine::io::Pieces;
use protocol::codes::response;
use protocol::names::ext;
use protocol::{FieldError, Fields};

use super::Desk;
use crate::answer::LOG_BUSY;
use crate::call::{Call, ReplyTo};
use crate::catalog::Topic;
use crate::config::Settings;
use crate::place::is_send;

impl Desk {
    /// Refuses a request: sends with the fields that their answers always have.
    pub fn refuse(&mut self, to: &ReplyTo, code: i32, remark: &str) {
        let header = self.replies.header(to, if to.delivered { response::SUCCESS } else { code });
        header.remark.push_str(remark);
        if is_send(to.code) {
            push_region(&mut header.fields, &self.settings);
            self.traffic.put_failures += 1;
        }
        if to.delivered {
            push_not_stored(&mut header.fields);
        }
        self.replies.send(to, Pieces::new());
    }

    /// Refuses a request whose fields are missing or malformed, as Java does when it trips over them.
    pub fn refuse_field(&mut self, to: &ReplyTo, error: FieldError) {
        self.refuse(to, response::SYSTEM_ERROR, &error.to_string());
    }

    /// Refuses a request about a topic that does not exist.
    pub fn refuse_topic(&mut self, to: &ReplyTo, topic: &str) {
        let remark = format!("topic[{topic}] not exist, apply first please!");
        self.refuse(to, response::TOPIC_NOT_EXIST, &remark);
    }

    /// Answers that a message was not stored.
    pub fn refuse_append(&mut self, to: &ReplyTo, error: AppendError) {
        let (code, remark) = of_append(error);
        self.refuse(to, code, &remark);
    }

    pub(super) fn refuse_code(&mut self, reply: &ReplyTo) {
        let remark = format!(" request type {} not supported", reply.code);
        self.refuse(reply, response::REQUEST_CODE_NOT_SUPPORTED, &remark);
    }

    pub(super) fn refuse_read(&mut self, reply: &ReplyTo) {
        self.refuse(reply, response::SYSTEM_ERROR, "the log cannot be read here: the disk reported an error");
    }
}

/// What is said of something that the log did not take: code and remark.
pub(super) fn of_append(error: AppendError) -> (i32, String) {
    match error {
        AppendError::TooLarge { bytes, bytes_max } => (
            response::MESSAGE_ILLEGAL,
            format!("the message is illegal: stored it would take {bytes} bytes, at most {bytes_max} fit"),
        ),
        AppendError::Busy => (response::SYSTEM_BUSY, LOG_BUSY.to_owned()),
        AppendError::Full => (
            response::SERVICE_NOT_AVAILABLE,
            "service not available now. It may be caused by one of the following reasons: the broker's disk is full"
                .to_owned(),
        ),
        AppendError::Opening => (response::SERVICE_NOT_AVAILABLE, "the broker is starting up".to_owned()),
        AppendError::Closed(kind) => {
            (response::SERVICE_NOT_AVAILABLE, format!("service not available now: the log is closed ({kind})"))
        }
    }
}

/// The fields that every answer to a send has (PROTOCOL 4.1, item 2).
pub fn push_region(fields: &mut Fields, settings: &Settings) {
    fields.push(ext::MSG_REGION, &settings.region);
    fields.push_bool(ext::TRACE_ON, settings.trace_on);
}

/// What the answer to a reply says that its requester has and that is not stored, as in RocketMQ.
pub fn push_not_stored(fields: &mut Fields) {
    ["msgId", "queueId", "queueOffset"].iter().for_each(|name| fields.push(name, "0"));
}

/// What is said to who asks for messages of a queue that its topic does not have.
pub fn illegal_queue(queue: i32, name: &str, topic: &Topic, call: &Call<'_>) -> String {
    format!(
        "queueId[{queue}] is illegal, topic:[{name}] topicConfig.readQueueNums:[{}] consumer:[{}]",
        topic.read_queues(),
        call.peer.address
    )
}
