//! Inner batches: a batch (320) for a topic of `queue.type=BatchCQ` is one message with the others in its body. It takes
//! as many queue offsets; consumers get it whole and take it apart (PROTOCOL 3.7).

use engine::limits::RECORD_OFFSETS_MAX;
use protocol::codes::response;
use protocol::names::sys_flag;
use protocol::properties::{self, name};

use super::{Admitted, Identity, Origin, Piece, Put, Until};
use crate::call::Call;
use crate::desk::Desk;

impl Desk {
    /// Stores a batch of `count` messages, all of which can be read, as one.
    pub(super) fn send_inner(&mut self, call: &Call<'_>, admitted: Admitted<'_>, count: usize, now_ms: u64) {
        let Admitted { send, said, target } = admitted;
        let Some(offsets) = u32::try_from(count).ok().filter(|count| *count <= RECORD_OFFSETS_MAX) else {
            let remark = format!("an inner batch has at most {RECORD_OFFSETS_MAX} messages");
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, &remark);
        };
        if said.is_timer || self.delay_until(said.delay_level, now_ms).is_some() {
            return self.refuse(&call.reply, response::MESSAGE_ILLEGAL, "an inner batch cannot be delayed");
        }
        let mut text = std::mem::take(&mut self.sends.text);
        text.clear();
        text.push_str(send.properties);
        self.sends.append_ours(&mut text, said.has_ours);
        // Nobody else appends to this queue before we do.
        let base = self.partitions[target.local].next_offset(target.queue);
        properties::set(&mut text, name::INNER_NUM, &offsets.to_string());
        properties::set(&mut text, name::INNER_BASE, &base.to_string());
        let mut origin = Origin::of_send(&send, call.peer.address);
        origin.sys_flag |= sys_flag::NEED_UNWRAP | sys_flag::INNER_BATCH;
        let message = origin.message(self.store_host(), send.topic, target.queue.queue, call.body, &text);
        let piece = Piece::new(message, said.tags, said.keys).of(offsets);
        let says = Identity { unique: said.unique, recall: None, is_inner: true };
        let put = Put::One(&piece, target.queue, Until::Now);
        self.keep_sent(target.local, &put, says, &call.reply, now_ms, now_ms);
        self.sends.text = text;
    }
}
