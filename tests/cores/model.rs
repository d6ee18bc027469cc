//! What was asked and what was answered, and what must hold because of it: of topics, messages and consumer
//! offsets. It knows nothing of cores, disks and sockets.

use std::collections::{BTreeMap, BTreeSet};

use engine::format::Position;
use protocol::StoredMessage;
use tests::random::noise;

/// Queues of every topic here, to read from and at most to write to.
pub const QUEUES: u32 = 4;
/// The tags that messages have in turn; the empty one is none.
pub const TAGS: [&str; 3] = ["TagA", "TagB", ""];
/// A body begins with the message's number and its own length.
pub const BODY_BYTES_MIN: usize = 12;

/// A topic, through all its deletions.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: String,
    /// Which topic of this name it is: one more after each deletion.
    pub life: u32,
    /// A deletion was asked for, and what became of it is not known.
    pub doubtful: bool,
    /// While its deletion was asked for, somebody sent to it: that may have made it again before the answer.
    pub disturbed: bool,
    /// `None`: not known.
    pub exists: Option<bool>,
    /// Its last deletion was refused: what is stored from now on is not lost with it, whatever became of it.
    pub refused: bool,
    /// What is known of it is durable.
    certain: bool,
}

/// What was known of a topic at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glimpse {
    life: u32,
    doubtful: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not answered, or the answer was lost: it may be there or not.
    Unknown,
    Promised,
    /// The broker said that it does not store it.
    Refused,
}

/// What is known of a half message.
#[derive(Clone, Debug, Default)]
pub struct Half {
    /// Whether its producer commits it, once it has said anything.
    pub mind: Option<bool>,
    /// It never says anything.
    pub is_silent: bool,
    /// How often it was asked.
    pub checks: u32,
    /// That it is committed, or rolled back, is promised.
    committed: bool,
    rolled_back: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub queue: u32,
    pub offset: u64,
    pub position: Position,
}

/// One message that was handed in, and what is known of it.
#[derive(Clone, Debug)]
pub struct Sent {
    pub topic: usize,
    /// `None`: the broker chooses.
    pub queue: Option<u32>,
    /// The number in its body: a message that comes again has that of the first one.
    body: u64,
    length: usize,
    /// Messages of one batch share it.
    batch: u64,
    /// Which topic of its name it belongs to, if that is `sure`.
    life: u32,
    sure: bool,
    /// It was sent after its topic's deletion was refused, and no other one was asked for.
    vouched: bool,
    /// The earliest moment of its delivery, for delayed ones. Of a half message the end of time, until it is asked
    /// to commit it.
    pub due_ms: Option<u64>,
    half: Option<Half>,
    /// It was asked to recall it, and it may never come.
    recalling: bool,
    state: State,
    pub place: Option<Place>,
    /// It survives the loss of what is not synced.
    certain: bool,
    /// It was not there when all was looked at: it may never come back.
    gone: bool,
}

/// One group's offset in one queue.
pub type SlotKey = (usize, usize, u32);

/// The values that an offset was given, oldest first.
#[derive(Clone, Debug)]
pub struct Slot {
    values: Vec<Option<u64>>,
    /// What the broker may still take from connections that are gone.
    late: BTreeSet<u64>,
    /// The first that may be seen while the process lives; the first that may be seen after its end.
    settled: usize,
    certain: usize,
    /// The first that may belong to the next topic of this name.
    next: usize,
}

impl Default for Slot {
    fn default() -> Slot {
        Slot { values: vec![None], late: BTreeSet::new(), settled: 0, certain: 0, next: 0 }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Model {
    pub topics: Vec<Topic>,
    pub sent: Vec<Sent>,
    /// Messages that come again, by their topic and the number in their body.
    backs: BTreeMap<(usize, u64), usize>,
    /// Who has an offset: topic, life, queue, offset.
    places: BTreeMap<(usize, u32, u32, u64), usize>,
    /// Ends of queues that were shown: topic, life, queue.
    ends: BTreeMap<(usize, u32, u32), u64>,
    pub slots: BTreeMap<SlotKey, Slot>,
    batches: u64,
}

impl Model {
    /// Topics of these names, none of which is there yet.
    pub fn new(names: impl IntoIterator<Item = String>) -> Model {
        let topic = |name| Topic {
            name,
            life: 0,
            doubtful: false,
            disturbed: false,
            exists: None,
            refused: false,
            certain: false,
        };
        Model {
            topics: names.into_iter().map(topic).collect(),
            sent: Vec::new(),
            backs: BTreeMap::new(),
            places: BTreeMap::new(),
            ends: BTreeMap::new(),
            slots: BTreeMap::new(),
            batches: 0,
        }
    }

    /// What is known of a topic now.
    pub fn glimpse(&self, topic: usize) -> Glimpse {
        let Topic { life, doubtful, .. } = self.topics[topic];
        Glimpse { life, doubtful }
    }

    /// Whether what was asked then and is answered now is about the topic that there is now.
    pub fn is_same(&self, topic: usize, then: Glimpse) -> bool {
        !then.doubtful && self.glimpse(topic) == then
    }

    // -- messages --------------------------------------------------------------------------------

    /// Messages of one batch are sent, each with a body of so many bytes. Returns the number of the first.
    pub fn send(&mut self, topic: usize, queue: u32, lengths: &[usize], due_ms: Option<u64>) -> usize {
        let first = self.sent.len();
        self.batches += 1;
        // Whoever sends to a topic that is not there makes it.
        let exists = &mut self.topics[topic].exists;
        *exists = exists.filter(|exists| *exists);
        for length in lengths {
            let body = self.sent.len() as u64;
            self.add(topic, Some(queue), body, *length, due_ms);
        }
        first
    }

    /// A half message is sent. Returns its number.
    pub fn prepare(&mut self, topic: usize, queue: u32, length: usize) -> usize {
        let id = self.send(topic, queue, &[length], Some(u64::MAX));
        self.sent[id].half = Some(Half::default());
        id
    }

    /// What is known of a half message.
    pub fn half(&mut self, id: usize) -> &mut Half {
        self.sent[id].half.as_mut().unwrap_or_else(|| panic!("message {id} is no half message"))
    }

    /// It is asked to commit a half message: from now on it may be seen.
    pub fn commits(&mut self, id: usize) {
        self.sent[id].due_ms = Some(0);
    }

    /// A half message is committed, or rolled back.
    pub fn is_decided(&mut self, id: usize, commit: bool) {
        let half = self.half(id);
        (half.committed, half.rolled_back) = (commit, !commit);
    }

    /// It is asked to recall a delayed message.
    pub fn recalls(&mut self, id: usize) {
        self.sent[id].recalling = true;
    }

    /// A delayed message is recalled: it never comes.
    pub fn is_recalled(&mut self, id: usize) {
        self.refused(id);
    }

    /// A message is handed back, so that it comes again in `topic`. `None`: it was handed back before.
    pub fn send_back(&mut self, id: usize, topic: usize, due_ms: u64) -> Option<usize> {
        let Sent { body, length, .. } = self.sent[id];
        let back = self.sent.len();
        if self.backs.contains_key(&(topic, body)) {
            return None;
        }
        self.backs.insert((topic, body), back);
        self.batches += 1;
        self.add(topic, None, body, length, Some(due_ms));
        Some(back)
    }

    fn add(&mut self, topic: usize, queue: Option<u32>, body: u64, length: usize, due_ms: Option<u64>) {
        let Glimpse { life, doubtful } = self.glimpse(topic);
        self.topics[topic].disturbed |= doubtful;
        self.sent.push(Sent {
            topic,
            queue,
            body,
            length,
            batch: self.batches,
            life,
            sure: !doubtful,
            vouched: self.topics[topic].refused,
            due_ms,
            half: None,
            recalling: false,
            state: State::Unknown,
            place: None,
            certain: false,
            gone: false,
        });
    }

    /// The bytes of a message's body.
    pub fn body(&self, id: usize) -> Vec<u8> {
        let Sent { body, length, .. } = self.sent[id];
        body_of(body, length)
    }

    /// The broker promised a message, and said where it is (of a delayed one it says where it waits).
    pub fn promised(&mut self, id: usize, place: Option<Place>) {
        let sent = &mut self.sent[id];
        assert_ne!(sent.state, State::Refused, "message {id} was answered twice");
        sent.state = State::Promised;
        if let Some(place) = place
            && sent.due_ms.is_none()
        {
            self.at(id, place);
        }
    }

    /// Whether the broker promised a message.
    pub fn is_promised(&self, id: usize) -> bool {
        self.sent[id].state == State::Promised
    }

    /// The broker said that it does not store a message.
    pub fn refused(&mut self, id: usize) {
        self.sent[id].state = State::Refused;
        assert_eq!(self.sent[id].place, None, "message {id} was shown, and refused then");
    }

    /// A message is where it is for ever, and nobody else is there.
    fn at(&mut self, id: usize, place: Place) {
        let sent = &mut self.sent[id];
        let known = sent.place.unwrap_or(place);
        assert_eq!(known, place, "message {id} moved, or is there twice: {sent:?}");
        assert!(sent.queue.is_none_or(|queue| queue == place.queue), "message {id} is in another queue: {sent:?}");
        sent.place = Some(place);
        if sent.sure {
            let key = (sent.topic, sent.life, place.queue, place.offset);
            let other = *self.places.entry(key).or_insert(id);
            let rival = &self.sent[other];
            assert_eq!(other, id, "an offset was given twice, at {place:?}: {rival:?} and {:?}", self.sent[id]);
        }
    }

    /// The number in a message's body, if that is whole.
    pub fn recognize(&self, message: &StoredMessage<'_>) -> usize {
        let head = message.body.first_chunk::<BODY_BYTES_MIN>().expect("our bodies are longer");
        let body = u64::from_be_bytes(*head.first_chunk().expect("eight bytes"));
        let id = body as usize;
        let sent = self.sent.get(id).unwrap_or_else(|| panic!("message {id} was never sent: {message:?}"));
        assert!(is_body_of(message.body, body, sent.length), "message {id} has another body");
        assert_eq!(message.flag, FLAG, "message {id} has another flag");
        let tag = TAGS[id % TAGS.len()];
        assert_eq!(message.property("TAGS").unwrap_or(""), tag, "message {id} has another tag");
        id
    }

    /// The message at an offset of the topic that there is now, if that is known.
    pub fn id_at(&self, topic: usize, queue: u32, offset: u64) -> Option<usize> {
        self.places.get(&(topic, self.topics[topic].life, queue, offset)).copied()
    }

    /// A message was shown in a topic to somebody who asked when it was as in `then`. Returns its number.
    pub fn saw(&mut self, topic: usize, message: &StoredMessage<'_>, then: Glimpse) -> usize {
        let name = &self.topics[topic].name;
        let body = self.recognize(message);
        let id = self.backs.get(&(topic, body as u64)).copied().unwrap_or(body);
        let sent = &self.sent[id];
        assert_eq!((message.topic, sent.topic), (name.as_str(), topic), "message {id} is in another topic");
        assert_ne!(sent.state, State::Refused, "message {id} was refused, and is there: {sent:?}");
        assert!(!sent.gone, "message {id} came back from the dead: {sent:?}");
        let early = sent.due_ms.is_some_and(|due_ms| message.store_timestamp.cast_unsigned() < due_ms);
        assert!(!early, "message {id} was delivered at {}, too early: {sent:?}", message.store_timestamp);
        if self.is_same(topic, then) {
            let sent = &mut self.sent[id];
            if !sent.sure {
                (sent.sure, sent.life) = (true, then.life);
            }
            assert_eq!(sent.life, then.life, "message {id} is older than the topic it is in: {sent:?}");
        }
        let place = Place {
            queue: u32::try_from(message.queue_id).expect("a queue"),
            offset: u64::try_from(message.queue_offset).expect("an offset"),
            position: Position(u64::try_from(message.physical_offset).expect("a position")),
        };
        self.at(id, place);
        id
    }

    /// Where a queue of the topic that there is now ends at least, as far as was shown.
    pub fn end(&self, topic: usize, queue: u32) -> u64 {
        self.ends.get(&(topic, self.topics[topic].life, queue)).copied().unwrap_or(0)
    }

    /// The end of a queue was shown to somebody who asked when it was known to be `least` at least: nobody gets a
    /// lower offset from now on.
    pub fn saw_end(&mut self, topic: usize, queue: u32, end: u64, least: u64, then: Glimpse) {
        if self.is_same(topic, then) {
            let name = &self.topics[topic].name;
            assert!(end >= least, "queue {queue} of {name} is said to end at {end}, and ended at {least}");
            let known = self.ends.entry((topic, then.life, queue)).or_default();
            *known = (*known).max(end);
        }
    }

    /// A message to ask for, of a topic that nobody deletes just now.
    pub fn known(&self, random: u64) -> Option<(usize, Place)> {
        let from = random as usize % self.sent.len().max(1);
        let known = |id: usize| {
            let sent = &self.sent[id];
            let topic = &self.topics[sent.topic];
            let lives = sent.sure && sent.life == topic.life && !topic.doubtful && !sent.gone;
            sent.place.filter(|_| lives && sent.state == State::Promised).map(|place| (id, place))
        };
        (from..self.sent.len()).chain(0..from).find_map(known)
    }

    /// Whether a message must be there, unless its log was cut at the old end.
    pub fn must_be_there(&self, id: usize) -> bool {
        let sent = &self.sent[id];
        let topic = &self.topics[sent.topic];
        let lives = sent.sure && sent.life == topic.life && !topic.doubtful;
        lives && !sent.gone && sent.state == State::Promised && sent.place.is_some()
    }

    // -- topics ----------------------------------------------------------------------------------

    /// A topic was made, or was there.
    pub fn created(&mut self, topic: usize) {
        let topic = &mut self.topics[topic];
        topic.exists = (!topic.doubtful).then_some(true);
    }

    /// What became of a request about a topic is not known.
    pub fn unsettle(&mut self, topic: usize) {
        self.topics[topic].exists = None;
    }

    /// A topic's deletion is asked for. `committing`: offsets that are on their way.
    pub fn delete(&mut self, topic: usize, committing: &[(SlotKey, u64)]) {
        for (key, slot) in self.slots.iter_mut().filter(|(key, _)| key.1 == topic) {
            slot.next = slot.values.len();
            slot.late.extend(committing.iter().filter(|(other, _)| other == key).map(|(_, value)| *value));
        }
        self.topics[topic].disturbed = self.is_sending(topic);
        self.topics[topic].doubtful = true;
        self.topics[topic].refused = false;
        self.topics[topic].exists = None;
        for sent in self.sent.iter_mut().filter(|sent| sent.topic == topic) {
            sent.vouched = false;
            // What was not answered and not seen may come into the next topic of this name.
            sent.sure &= sent.state != State::Unknown || sent.place.is_some();
        }
    }

    /// Whether some message of a topic was sent and never answered: it may still be on its way.
    pub fn is_sending(&self, topic: usize) -> bool {
        let open = |sent: &Sent| sent.topic == topic && sent.state == State::Unknown && !sent.gone;
        self.sent.iter().any(open)
    }

    /// A topic's deletion was answered: what was there is never seen again. `sending`: somebody may make it
    /// again by a send that is under way.
    pub fn deleted(&mut self, topic: usize, sending: bool) {
        let entry = &mut self.topics[topic];
        entry.life += 1;
        (entry.doubtful, entry.certain) = (false, false);
        entry.exists = (!sending && !entry.disturbed).then_some(false);
        self.forget_slots(topic, true);
    }

    /// A topic's deletion was refused: whether it is deleted is not known, but nobody can send to it while that is so.
    pub fn not_deleted(&mut self, topic: usize) {
        self.topics[topic].refused = true;
    }

    fn forget_slots(&mut self, topic: usize, known: bool) {
        for (_, slot) in self.slots.iter_mut().filter(|(key, _)| key.1 == topic) {
            (slot.settled, slot.certain) = (0, 0);
            if known {
                slot.values.drain(..slot.next);
            }
            slot.values.insert(0, None);
        }
    }

    // -- offsets ---------------------------------------------------------------------------------

    /// A value for an offset is sent. Returns which one it is.
    pub fn commit(&mut self, key: SlotKey, value: u64) -> usize {
        let slot = self.slots.entry(key).or_default();
        slot.values.push(Some(value));
        slot.values.len() - 1
    }

    /// A value was taken.
    pub fn committed(&mut self, key: SlotKey, version: usize, value: u64, then: Glimpse) {
        let same = self.is_same(key.1, then);
        let slot = self.slots.get_mut(&key).expect("it was committed");
        if same && slot.values.get(version) == Some(&Some(value)) && slot.late.is_empty() {
            slot.settled = slot.settled.max(version);
        }
    }

    /// Nobody knows whether and when a value is taken.
    pub fn commit_late(&mut self, key: SlotKey, value: u64) {
        self.slots.get_mut(&key).expect("it was committed").late.insert(value);
    }

    /// The first value that may be seen from now on.
    pub fn settled(&mut self, key: SlotKey) -> usize {
        self.slots.entry(key).or_default().settled
    }

    /// An offset was shown to somebody who asked when `from` was settled.
    pub fn saw_offset(&mut self, key: SlotKey, value: Option<u64>, from: usize, then: Glimpse) {
        if !self.is_same(key.1, then) {
            return;
        }
        let slot = self.slots.entry(key).or_default();
        let known = slot.values.get(from..).unwrap_or_default().contains(&value);
        let late = value.is_some_and(|value| slot.late.contains(&value));
        assert!(known || late, "the offset of {key:?} is {value:?}, not one from {from} on of {slot:?}");
    }

    /// As `saw_offset` when all is quiet and durable: from here on it is this value and no other.
    pub fn settle_offset(&mut self, key: SlotKey, value: Option<u64>) {
        let (from, then) = (self.settled(key), self.glimpse(key.1));
        self.saw_offset(key, value, from, then);
        self.slots.insert(key, Slot { values: vec![value], ..Slot::default() });
    }

    // -- the end of a life, and looking at everything -------------------------------------------------

    /// The process ended. `lossy`: what was not synced may be lost, although it was promised.
    pub fn ended(&mut self, lossy: bool) {
        for slot in self.slots.values_mut() {
            slot.settled = slot.certain;
        }
        if !lossy {
            return;
        }
        for topic in self.topics.iter_mut().filter(|topic| !topic.certain) {
            topic.exists = None;
        }
        for sent in self.sent.iter_mut().filter(|sent| !sent.certain) {
            if let Some(place) = sent.place {
                self.places.remove(&(sent.topic, sent.life, place.queue, place.offset));
            }
            if sent.due_ms.is_some() {
                // It may be lost, or be delivered again.
                (sent.place, sent.state) = (None, State::Unknown);
            }
        }
        // What was decided may be lost, too.
        for sent in &mut self.sent {
            if let Some(half) = &mut sent.half {
                (half.committed, half.rolled_back) = (false, false);
            }
            if sent.recalling {
                sent.state = State::Unknown;
            }
        }
        // It is kept; that it was delivered may be lost, and it is delivered again.
        for sent in self.sent.iter_mut().filter(|sent| sent.certain && sent.due_ms.is_some()) {
            if let Some(place) = sent.place.take() {
                self.places.remove(&(sent.topic, sent.life, place.queue, place.offset));
            }
        }
    }

    /// The process ended in order: whatever it answered is on the disk.
    pub fn ended_well(&mut self) {
        for slot in self.slots.values_mut() {
            slot.certain = slot.settled;
        }
    }

    /// All was quiet, and everything written is durable.
    pub fn is_durable(&mut self) {
        for sent in self.sent.iter_mut().filter(|sent| sent.state == State::Promised && !sent.gone) {
            sent.certain = true;
        }
        self.topics.iter_mut().for_each(|topic| topic.certain = true);
    }

    /// Whether it is there was looked up, when all was quiet.
    pub fn found_topic(&mut self, topic: usize, exists: bool) {
        let entry = &mut self.topics[topic];
        let known = entry.exists.filter(|_| !entry.doubtful).unwrap_or(exists);
        assert_eq!(exists, known, "whether it is there: {entry:?}");
        if exists {
            entry.exists = Some(true);
        }
    }

    /// All queues of a topic were read, when all was quiet: `found` was there, and queues end at `ends`.
    ///
    /// - `lossy`: the power was cut, and what is promised may have been lost unless it was synced.
    /// - `retired`: whether the log was cut above a position, at its old end.
    /// - `due_ms`: what is due by then must have been delivered.
    pub fn audit(
        &mut self,
        topic: usize,
        found: &BTreeSet<usize>,
        ends: &[u64],
        lossy: bool,
        retired: &dyn Fn(Position) -> bool,
        due_ms: Option<u64>,
    ) {
        for (id, sent) in self.sent.iter().enumerate().filter(|(_, sent)| sent.topic == topic && sent.vouched) {
            let stays = sent.place.is_some_and(|place| !retired(place.position)) && !sent.gone;
            let is_there = found.contains(&id) || sent.due_ms.is_some() || sent.state != State::Promised;
            assert!(is_there || !stays || lossy && !sent.certain, "message {id} is lost with its topic: {sent:?}");
        }
        self.topics[topic].refused = false;
        if self.topics[topic].doubtful {
            let life = self.topics[topic].life;
            let older = |sent: &Sent| sent.topic == topic && sent.sure && sent.life == life && !sent.gone;
            if !found.iter().any(|id| older(&self.sent[*id])) {
                self.topics[topic].life += 1;
                // Without a message that would have to be there, nobody knows: retention takes some, a power cut too.
                let stays = |sent: &Sent| sent.place.is_some_and(|place| !retired(place.position));
                let known = !lossy && self.sent.iter().any(|sent| older(sent) && stays(sent));
                self.forget_slots(topic, known);
                for sent in self.sent.iter_mut().filter(|sent| !known && sent.topic == topic && sent.life == life) {
                    sent.sure = false;
                }
            }
            self.topics[topic].doubtful = false;
        }
        let life = self.topics[topic].life;
        for (queue, end) in (0..).zip(ends) {
            let shown = self.ends.entry((topic, life, queue)).or_default();
            assert!(*end >= *shown || lossy, "queue {queue} of {:?} ends at {end}, not {shown}", self.topics[topic]);
            *shown = *end;
        }
        let mut batches: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for id in 0..self.sent.len() {
            let sent = &mut self.sent[id];
            let is_found = found.contains(&id);
            if is_found && !sent.sure {
                (sent.sure, sent.life) = (true, life);
            }
            if sent.topic != topic || sent.life != life && sent.sure || sent.gone {
                assert!(
                    !is_found || sent.topic == topic && !sent.gone,
                    "message {id} is older than its topic: {sent:?}"
                );
                assert!(!is_found, "message {id} is older than its topic: {sent:?}");
                continue;
            }
            if sent.place.is_some_and(|place| retired(place.position)) {
                continue;
            }
            let (there, all) = batches.entry(sent.batch).or_default();
            (*there, *all) = (*there + usize::from(is_found), *all + 1);
            if is_found {
                let place = sent.place.expect("it was seen");
                self.at(id, place);
                continue;
            }
            let is_due = sent.due_ms.zip(due_ms).is_some_and(|(due_ms, now_ms)| due_ms <= now_ms);
            let wanted = match sent.due_ms {
                Some(_) => {
                    let comes = !sent.recalling && sent.half.as_ref().is_none_or(|half| half.committed);
                    sent.place.is_some() || sent.state == State::Promised && is_due && comes
                }
                None => sent.place.is_some() || sent.state == State::Promised,
            };
            let lost = wanted && sent.sure && sent.state != State::Refused;
            assert!(!lost || lossy && !sent.certain, "message {id} is lost: {sent:?}");
            sent.gone |= sent.due_ms.is_none();
        }
        for (batch, (there, all)) in batches {
            assert!(there == 0 || there == all, "of batch {batch}, {there} of {all} messages are there");
        }
    }

    /// All topics were read, and nothing is undecided: `found` is given up. `is_whole`: no log was cut at its old end.
    pub fn audit_halves(&self, found: &BTreeSet<usize>, is_whole: bool) {
        for (id, sent) in self.sent.iter().enumerate() {
            let is_found = found.contains(&id);
            let Some(half) = &sent.half else {
                assert!(!is_found, "message {id} is no half message, and is given up: {sent:?}");
                continue;
            };
            let is_there = sent.place.is_some();
            let is_decided = half.committed || half.rolled_back || is_there;
            assert!(!is_found || !is_decided, "message {id} is decided, and given up: {sent:?}");
            let topic = &self.topics[sent.topic];
            let lives = sent.sure && sent.life == topic.life && !topic.doubtful;
            let ends = match half.mind {
                None => is_found,
                Some(true) => is_found || is_there,
                Some(false) => true,
            };
            let must = is_whole && lives && sent.state == State::Promised;
            assert!(ends || !must, "message {id} is neither decided nor given up: {sent:?}");
        }
    }

    /// The last moment at which something is due.
    pub fn last_due_ms(&self) -> u64 {
        let due_ms = self.sent.iter().filter_map(|sent| sent.due_ms);
        due_ms.filter(|due_ms| *due_ms < u64::MAX).max().unwrap_or(0)
    }
}

/// The user's flag of every message here.
pub const FLAG: i32 = 17;

fn body_of(id: u64, length: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(length);
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(&(length as u32).to_be_bytes());
    body.extend_from_slice(noise(id, length - BODY_BYTES_MIN));
    body
}

fn is_body_of(body: &[u8], id: u64, length: usize) -> bool {
    body.len() == length
        && body[..8] == id.to_be_bytes()
        && body[8..BODY_BYTES_MIN] == (length as u32).to_be_bytes()
        && body[BODY_BYTES_MIN..] == *noise(id, length - BODY_BYTES_MIN)
}
