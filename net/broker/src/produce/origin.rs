//! Who made a message, and when: what stays with it wherever it goes.

use std::net::SocketAddr;

use protocol::StoredMessage;
use protocol::headers::SendMessage;

/// What is said of a message besides its content and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The sender's own flag, kept as it is.
    pub flag: i32,
    /// Bits of PROTOCOL 3.3; those of the hosts are set by whoever appends.
    pub sys_flag: i32,
    /// When it was made, in ms.
    pub born_ms: i64,
    /// Who made it.
    pub born_host: SocketAddr,
    /// How often it was consumed in vain.
    pub reconsume_times: i32,
}

impl Origin {
    /// Of a message that is sent from there.
    #[inline]
    pub(super) fn of_send(send: &SendMessage<'_>, born_host: SocketAddr) -> Origin {
        Origin {
            flag: send.flag,
            sys_flag: send.sys_flag,
            born_ms: send.born_timestamp,
            born_host,
            reconsume_times: send.reconsume_times,
        }
    }

    /// Of one that is stored already, and is to be stored again.
    pub(super) fn of_stored(message: &StoredMessage<'_>) -> Origin {
        Origin {
            flag: message.flag,
            sys_flag: message.sys_flag,
            born_ms: message.born_timestamp,
            born_host: message.born_host,
            reconsume_times: message.reconsume_times,
        }
    }

    /// The message as it is about to be stored: what the log stamps is still 0.
    #[inline]
    pub(super) fn message<'a>(
        &self,
        store_host: SocketAddr,
        topic: &'a str,
        queue: u32,
        body: &'a [u8],
        properties: &'a str,
    ) -> StoredMessage<'a> {
        StoredMessage {
            queue_id: queue.cast_signed(),
            flag: self.flag,
            queue_offset: 0,
            physical_offset: 0,
            sys_flag: self.sys_flag,
            born_timestamp: self.born_ms,
            born_host: self.born_host,
            store_timestamp: 0,
            store_host,
            reconsume_times: self.reconsume_times,
            prepared_transaction_offset: 0,
            body,
            topic,
            properties,
        }
    }
}
