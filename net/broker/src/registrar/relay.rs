//! What goes on to clients: replies (324, 325), running info (307), a message consumed directly (309), a group's
//! status (223), offsets to go back to (220).

use std::sync::Arc;

use bytes::Bytes;
use protocol::Header;
use protocol::bodies::{self, ClientStatus, GroupStatus, ResetOffsets};
use protocol::codes::{request, response};
use protocol::command::FLAG_ONEWAY;
use protocol::headers::{AskClient, GetGroupStatus, PushReply, ResetOffset, SendMessage};
use protocol::names;
use protocol::properties::{self, name};

use super::{Order, Registrar, system_error, wrong_field};
use crate::answer::{Answer, BUSY, PROPERTIES_TOO_LONG};
use crate::call::{ConnectionId, ReplyTo, Request};
use crate::desk::{push_not_stored, push_region};
use crate::errands::{Purpose, Said};
use crate::mail::Mail;
use crate::produce::{closed, no_queue};

/// A question to all clients of a group.
#[derive(Debug)]
pub(super) struct Survey {
    reply: ReplyTo,
    missing: usize,
    status: GroupStatus,
    /// Of what clients said.
    bytes: usize,
}

/// Bytes of one survey: an answer is one frame, which has 16 MiB. 8 MiB: 40,000 queues. Clients beyond that are left out.
const SURVEY_BYTES_MAX: usize = 8 << 20;
/// Bytes of all surveys under way.
const SURVEYS_BYTES_MAX: usize = 64 << 20;

/// Requests that another client answers.
impl Registrar {
    /// Takes a request that goes on to a client. Gives back any other.
    pub(super) fn relay(&mut self, request: Request, now_ms: u64, wanted: &mut Vec<Order>) -> Option<Request> {
        let reply = request.reply;
        let refused = match request.header.code {
            request::SEND_REPLY_MESSAGE | request::SEND_REPLY_MESSAGE_V2 => self.reply_to(request, now_ms, wanted),
            request::GET_CONSUMER_RUNNING_INFO | request::CONSUME_MESSAGE_DIRECTLY => {
                self.ask_client(&request, now_ms, wanted)
            }
            request::INVOKE_BROKER_TO_GET_CONSUMER_STATUS => self.ask_group(&request, now_ms, wanted),
            _ => return Some(request),
        };
        wanted.extend(refused.err().map(|answer| Order::Answer(reply, answer)));
        None
    }

    /// A client's answer.
    pub fn on_said(&mut self, said: Said, now_ms: u64, wanted: &mut Vec<Order>) {
        if let Some(purpose) = self.errands.finish(said.connection, said.opaque) {
            self.accomplish(purpose, said.answer, wanted);
            self.finish(now_ms, wanted);
        }
    }

    /// Errands that nobody answers in time, or any more.
    pub(super) fn give_up(&mut self, errands: Vec<Purpose>, remark: &str, wanted: &mut Vec<Order>) {
        for purpose in errands {
            self.accomplish(purpose, Answer::refusal(response::CONSUME_MSG_TIMEOUT, remark), wanted);
        }
    }

    fn accomplish(&mut self, purpose: Purpose, answer: Answer, wanted: &mut Vec<Order>) {
        match purpose {
            Purpose::Relay(reply) => wanted.push(Order::Answer(reply, answer)),
            Purpose::Reply(request) if answer.code == response::SUCCESS => self.store_reply(request, wanted),
            Purpose::Reply(request) => {
                let remark = format!("push reply message to the client failed: {} {}", answer.code, answer.remark);
                self.fail_reply(request, remark, wanted);
            }
            Purpose::Status { survey, client } => self.surveyed(survey, &client, &answer, wanted),
        }
    }

    /// A reply: it goes to the client that waits for it.
    fn reply_to(&mut self, request: Request, now_ms: u64, wanted: &mut Vec<Order>) -> Result<(), Answer> {
        let send = SendMessage::parse(request.header.code, &request.header.fields).map_err(wrong_field)?;
        let Some(topic) = self.ledger.published().topic(send.topic) else {
            let remark = format!("topic[{}] not exist, apply first please!", send.topic);
            return Err(Answer::refusal(response::TOPIC_NOT_EXIST, remark));
        };
        if names::is_closed_topic(send.topic) {
            return Err(Answer::refusal(response::NO_PERMISSION, closed(send.topic)));
        }
        if send.queue_id >= topic.queues().cast_signed() {
            return Err(Answer::refusal(response::INVALID_PARAMETER, no_queue(&send)));
        }
        if request.body.len() > self.settings.limits.message_bytes {
            return Err(Answer::refusal(response::MESSAGE_ILLEGAL, "the reply's body is too large"));
        }
        if send.properties.len() > properties::PROPERTIES_BYTES_MAX {
            return Err(Answer::refusal(response::MESSAGE_ILLEGAL, PROPERTIES_TOO_LONG));
        }
        let client = properties::get(send.properties, name::REPLY_TO_CLIENT).unwrap_or("");
        let Some(connection) = self.members.producer(client) else {
            let remark = format!("push reply message fail, channel of <{client}> not found.");
            self.fail_reply(Box::new(request), remark, wanted);
            return Ok(());
        };
        let mut text = send.properties.to_owned();
        properties::set(&mut text, name::PUSH_REPLY_TIME, &now_ms.to_string());
        let (born_host, store_host) = (request.peer.address.to_string(), self.settings.address());
        let push = PushReply {
            producer_group: send.producer_group,
            topic: send.topic,
            default_topic: send.default_topic,
            default_topic_queue_nums: send.default_topic_queue_nums,
            queue_id: send.queue_id,
            sys_flag: send.sys_flag,
            born_timestamp: send.born_timestamp,
            flag: send.flag,
            properties: Some(&text),
            reconsume_times: Some(send.reconsume_times),
            unit_mode: send.unit_mode,
            born_host: &born_host,
            store_host: &store_host,
            store_timestamp: now_ms.cast_signed(),
        };
        let mut header = Header::request(request::PUSH_REPLY_MESSAGE_TO_CLIENT);
        push.push(&mut header.fields);
        let body = request.body.clone();
        match self.errands.start(connection, Purpose::Reply(Box::new(request)), now_ms) {
            Ok(opaque) => {
                header.opaque = opaque;
                wanted.push(push_of(connection, &header, &body));
                Ok(())
            }
            Err(_) => Err(Answer::refusal(response::SYSTEM_BUSY, BUSY)),
        }
    }

    /// The client has its reply: it is stored as any message, and who sent it is told where.
    fn store_reply(&self, mut request: Box<Request>, wanted: &mut Vec<Order>) {
        request.reply.delivered = true;
        if !self.settings.store_replies {
            let mut answer = Answer::ok();
            push_not_stored(&mut answer.fields);
            push_region(&mut answer.fields, &self.settings);
            return wanted.push(Order::Answer(request.reply, answer));
        }
        let is_short = request.header.code == request::SEND_REPLY_MESSAGE_V2;
        request.header.code = if is_short { request::SEND_MESSAGE_V2 } else { request::SEND_MESSAGE };
        request.reply.code = request.header.code;
        wanted.push(Order::Resume { core: 0, mail: Mail::Request(request) });
    }

    /// It has not: who sent it is told so. It is stored all the same, as in RocketMQ.
    fn fail_reply(&self, mut request: Box<Request>, remark: String, wanted: &mut Vec<Order>) {
        wanted.push(Order::Answer(request.reply, system_error(remark)));
        request.reply.oneway = true;
        if self.settings.store_replies {
            self.store_reply(request, wanted);
        }
    }

    /// Codes 307 and 309: the request goes to the client as it is, and its answer comes back so.
    fn ask_client(&mut self, request: &Request, now_ms: u64, wanted: &mut Vec<Order>) -> Result<(), Answer> {
        let asked = AskClient::parse(&request.header.fields).map_err(wrong_field)?;
        let client = asked.client_id.unwrap_or("");
        let Some(connection) = self.members.consumer(asked.consumer_group, client) else {
            return Err(system_error(format!("The Consumer <{}> <{client}> not online", asked.consumer_group)));
        };
        let mut header = Header::request(request.header.code);
        header.fields.extend(request.header.fields.iter());
        match self.errands.start(connection, Purpose::Relay(request.reply), now_ms) {
            Ok(opaque) => {
                header.opaque = opaque;
                wanted.push(push_of(connection, &header, &request.body));
                Ok(())
            }
            Err(_) => Err(Answer::refusal(response::SYSTEM_BUSY, BUSY)),
        }
    }

    /// Code 223: what the clients of a group say that they have consumed.
    fn ask_group(&mut self, request: &Request, now_ms: u64, wanted: &mut Vec<Order>) -> Result<(), Answer> {
        let asked = GetGroupStatus::parse(&request.header.fields).map_err(wrong_field)?;
        let wants = asked.client_addr.filter(|id| !id.trim_ascii().is_empty());
        let clients = self.members.consumers(asked.group).filter(|(_, id)| wants.is_none_or(|wanted| *wanted == ***id));
        let clients: Vec<(ConnectionId, Arc<str>)> = clients.map(|(connection, id)| (connection, id.clone())).collect();
        if clients.is_empty() {
            let remark = format!("No Any Consumer online in the consumer group: [{}]", asked.group);
            return Err(Answer::refusal(response::CONSUMER_NOT_ONLINE, remark));
        }
        let mut header = Header::request(request::GET_CONSUMER_STATUS_FROM_CLIENT);
        GetGroupStatus { client_addr: None, ..asked }.push(&mut header.fields);
        self.next_survey += 1;
        let survey = self.next_survey;
        let mut missing = 0;
        for (connection, client) in clients {
            if let Ok(opaque) = self.errands.start(connection, Purpose::Status { survey, client }, now_ms) {
                header.opaque = opaque;
                wanted.push(push_of(connection, &header, &Bytes::new()));
                missing += 1;
            }
        }
        if missing == 0 {
            return Err(Answer::refusal(response::SYSTEM_BUSY, BUSY));
        }
        self.surveys.insert(survey, Survey { reply: request.reply, missing, status: GroupStatus::default(), bytes: 0 });
        Ok(())
    }

    /// One client's part. A client that does not answer, or that nobody can read, has none; nor has one for which there
    /// is no room.
    fn surveyed(&mut self, number: u64, client: &str, answer: &Answer, wanted: &mut Vec<Order>) {
        let survey = self.surveys.get_mut(&number).expect("a survey ends with its last client");
        survey.missing -= 1;
        let bytes = answer.body.len() + client.len();
        let has_room = survey.bytes + bytes <= SURVEY_BYTES_MAX && self.survey_bytes + bytes <= SURVEYS_BYTES_MAX;
        if answer.code == response::SUCCESS
            && has_room
            && let Ok(status) = bodies::decode::<ClientStatus>(&answer.body)
        {
            survey.bytes += bytes;
            self.survey_bytes += bytes;
            survey.status.consumer_table.insert(client.to_owned(), status.message_queue_table);
        }
        if survey.missing == 0
            && let Some(survey) = self.surveys.remove(&number)
        {
            self.survey_bytes -= survey.bytes;
            wanted.push(Order::Answer(survey.reply, Answer::with_body(survey.status.encode())));
        }
    }

    /// Code 220 to every client of a group: go back, or forward, to these offsets. `Err`: there is no client.
    pub(super) fn push_reset(
        &self,
        asked: &ResetOffset<'_>,
        offsets: &ResetOffsets,
        wanted: &mut Vec<Order>,
    ) -> Result<(), Answer> {
        let connections: Vec<ConnectionId> = self.members.connections(asked.group).collect();
        if connections.is_empty() {
            let remark = format!(
                "Consumer not online, so can not reset offset, Group: {} Topic: {} Timestamp: {}",
                asked.group, asked.topic, asked.timestamp
            );
            return Err(Answer::refusal(response::CONSUMER_NOT_ONLINE, remark));
        }
        let mut header = Header::request(request::RESET_CONSUMER_CLIENT_OFFSET);
        header.flag = FLAG_ONEWAY;
        asked.push(&mut header.fields);
        let body = Bytes::from(offsets.encode());
        wanted.extend(connections.into_iter().map(|connection| push_of(connection, &header, &body)));
        Ok(())
    }
}

/// A request to a client.
fn push_of(connection: ConnectionId, header: &Header, body: &Bytes) -> Order {
    let mut frame = Vec::new();
    header.encode_frame(&mut frame, body.len());
    frame.extend_from_slice(body);
    Order::Push { connection, frame: frame.into() }
}
