//! Pop consumption: POP_MESSAGE (200050), PEEK_MESSAGE (200052) and NOTIFICATION (200054) (PROTOCOL 2.7, 4.12). The broker knows what each
//! group has on loan in each queue; clients need no queue of their own.
//!
//! A pop visits the cores that have queues of its topic, one after the other, until one of them gives it messages; if
//! none does, it waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use engine::error::AppendError;
use engine::format::QueueKey;
use engine::io::Pieces;
use protocol::codes::response;
use protocol::headers::{NotificationAnswer, PopAnswer};

use crate::answer::BUSY;
use crate::call::ReplyTo;
use crate::catalog::{OFFSET_BYTES, OFFSET_KEY, Topic, split_offset_key};
use crate::consume::gather;
use crate::desk::Desk;
use crate::mail::Mail;
use crate::parked::{Cold, Filter};

pub mod account;
pub mod accounts;
pub mod ack;
mod asking;
pub mod handle;
mod held;
mod lend;
mod ready;
pub mod revive;
pub mod waiting;
mod way;

use account::Account;
use accounts::{Accounts, LoanOf};
use asking::{group_forbids_pop, no_group, topic_forbids_pop};
use handle::{Infos, REVIVE_ORDERLY, REVIVE_PLAIN};
use held::Held;
use lend::Visit;
use waiting::{LINE_POPS_MAX, LineKey, Waiting, Watch};
use way::{Way, cores_of};

/// Longest time for which messages are lent, in ms. Three days, how long a stock broker's timers wait
/// (`timerMaxDelaySec`); who wants more gets this.
pub const INVISIBLE_MS_MAX: u64 = 259_200_000;
/// How often a pop that was told of a message in vain is told again at once. Then it waits for the next one: what it may
/// not have (it is damaged, or there is no room for an account) would send it around until its time is over.
const LOOKS_MAX: u8 = 4;

/// A topic and its retry topics of both versions.
pub type Topics = [Option<Arc<Topic>>; 3];

/// A pop or a notification, without its request.
#[derive(Debug)]
pub struct Pop {
    /// Whom to answer.
    pub reply: ReplyTo,
    /// The group.
    pub group: Arc<str>,
    /// The topic as it was when the pop came.
    pub topic: Arc<Topic>,
    /// Which of its queues; `None`: all.
    pub queue: Option<u32>,
    /// What is wanted.
    pub wish: Wish,
    /// Whether the queue is not given to others before everything is acknowledged or its time is over.
    pub is_orderly: bool,
    /// Who asks again with the same text gets the same messages.
    pub attempt: Option<Box<str>>,
    /// It may wait for a message until then; 0: it may not wait at all. Milliseconds.
    pub until_ms: u64,
    /// Its way: see [`Desk::begin`].
    way: Way,
}

/// `None`: in any order. Else one queue is given to one loan, and whose attempt has it gets it again.
type Order<'a> = Option<Option<&'a str>>;

/// What a pop wants.
#[derive(Debug)]
pub enum Wish {
    /// Messages.
    Messages {
        /// At most so many.
        count: u32,
        /// For so long, in ms.
        invisible_ms: u64,
        /// A group without offsets begins at the newest message, else at the oldest one.
        from_last: bool,
        /// Which messages.
        filter: Filter,
    },
    /// To see the next ones; nothing is lent.
    Look {
        /// At most so many.
        count: u32,
    },
    /// To know whether there are some. What it waits in has its filter.
    Notice {
        /// Only those with these tags, as the expression says; `None`: any.
        tags: Option<Arc<str>>,
    },
}

/// What a pop found here. Memory that is used again.
#[derive(Debug, Default)]
struct Popped {
    messages: Vec<Bytes>,
    bytes: usize,
    rest: u64,
    infos: Infos,
    offsets: Vec<u64>,
    /// What was lent, and the places of its partitions.
    loans: Vec<LoanOf>,
    locals: Vec<usize>,
    scratch: String,
}

/// The pops of one core.
#[derive(Debug)]
pub struct Pops {
    /// What groups have on loan.
    pub accounts: Accounts,
    /// Answers that wait until accounts are written down.
    pub held: Held,
    /// Pops that wait for messages.
    pub waiting: Waiting,
    /// Those of them that go on.
    pub stirred: VecDeque<Box<Pop>>,
    /// Messages on their way to retry topics.
    pub revivals: usize,
    /// When it was told last that one has none, ms since 1970.
    told_ms: u64,
    /// What a pop finds.
    popped: Popped,
}

impl Pops {
    /// None yet; at most `waiting_max` will wait.
    pub fn new(waiting_max: usize, seed: u64) -> Pops {
        Pops {
            accounts: Accounts::new(seed),
            held: Held::default(),
            waiting: Waiting::new(waiting_max, seed),
            stirred: VecDeque::new(),
            revivals: 0,
            told_ms: 0,
            popped: Popped::default(),
        }
    }

    /// The next pop that goes on. While too much waits for the log there is none.
    pub fn next_stirred(&mut self) -> Option<Box<Pop>> {
        if self.held.has_room() { self.stirred.pop_front() } else { None }
    }
}

impl Pop {
    /// What it waits in.
    pub fn line(&self) -> LineKey {
        let (is_notice, tags) = match &self.wish {
            Wish::Notice { tags } => (true, tags.clone()),
            Wish::Messages { .. } | Wish::Look { .. } => (false, None),
        };
        let (group, is_orderly) = (self.group.clone(), self.is_orderly);
        LineKey { topic: self.topic.id, group, queue: self.queue, is_notice, is_orderly, tags }
    }

    /// Its topic and its retry topics, as far as there are any.
    pub fn topics(&self) -> Topics {
        let [one, two] = self.way.retries.clone();
        [Some(self.topic.clone()), one, two]
    }

    /// What other cores are asked to watch while it waits on core `home`.
    fn watch(&self, home: usize, may_look: bool) -> Watch {
        Watch { line: self.line(), topics: self.topics(), home, until_ms: self.until_ms, may_look }
    }

    /// In which order it wants them.
    fn order(&self) -> Order<'_> {
        self.is_orderly.then_some(self.attempt.as_deref())
    }

    /// Their ids.
    pub fn topic_ids(&self) -> [Option<u32>; 3] {
        let id = |topic: &Option<Arc<Topic>>| topic.as_ref().map(|topic| topic.id);
        [Some(self.topic.id), id(&self.way.retries[0]), id(&self.way.retries[1])]
    }
}

impl Desk {
    /// Sends a pop on its way, for the first time or again.
    pub(crate) fn pop_again(&mut self, mut pop: Box<Pop>, now_ms: u64) {
        self.begin(&mut pop);
        match self.first_core(&pop) {
            // It visits this one, too, if there is nothing: it is still of the rest.
            Some(core) if core != self.index => {
                if let Err(Mail::Pop(pop)) = self.outbox.offer(core, Mail::Pop(pop)) {
                    self.pop(pop, now_ms);
                }
            }
            _ => self.pop(pop, now_ms),
        }
    }

    /// Executes a pop here, and sends it on if there is nothing for it.
    pub(crate) fn pop(&mut self, mut pop: Box<Pop>, now_ms: u64) {
        if !self.may_still_pop(&mut pop) {
            return;
        }
        let others = pop.way.rest & !(1 << self.index);
        // It is here for what comes again. If that cannot be had now, it is a pop like any other.
        let is_here_for_retries = pop.way.is_retry_first && pop.way.step.is_none();
        if matches!(pop.wish, Wish::Messages { .. }) && !self.pops.held.has_room() {
            if is_here_for_retries && others != 0 {
                pop.way.is_retry_first = false;
                return self.send_pop(others.trailing_zeros() as usize, pop);
            }
            // It may have been told of a message here, by another core even: who waits in its line has no better luck.
            if pop.until_ms > now_ms && self.pops.stirred.len() < LINE_POPS_MAX {
                return self.pops.stirred.push_back(pop);
            }
            self.leave_line(&pop, false);
            return self.refuse(&pop.reply, response::SYSTEM_BUSY, BUSY);
        }
        let visit = match pop.wish {
            Wish::Messages { .. } | Wish::Look { .. } => self.visit(&mut pop, now_ms),
            Wish::Notice { .. } if self.is_ready(&pop.topics(), &pop.line(), pop.order(), now_ms) => Visit::Found,
            Wish::Notice { .. } => Visit::Nothing,
        };
        match visit {
            Visit::Found => self.give_popped(&pop, now_ms),
            Visit::Loading(local, load) => self.wait_for(local, load, Cold::Pop(pop)),
            Visit::Opening if is_here_for_retries => {
                pop.way.is_retry_first = false;
                self.pop(pop, now_ms);
            }
            // Others may have something.
            Visit::Opening if others != 0 && pop.way.step.is_none() => {
                pop.way.rest = others;
                self.send_pop(others.trailing_zeros() as usize, pop);
            }
            Visit::Opening => {
                self.leave_line(&pop, false);
                self.refuse_append(&pop.reply, AppendError::Opening);
            }
            Visit::Unfinished => self.end_in_vain(&pop, response::POLLING_TIMEOUT, now_ms),
            Visit::Hop(core) => self.send_pop(core, pop),
            Visit::Nothing => {
                pop.way.rest = others;
                match others {
                    0 => self.wait_or_end(pop, now_ms),
                    others => self.send_pop(others.trailing_zeros() as usize, pop),
                }
            }
        }
    }

    /// Whether a pop still may have what it asked for: what was changed while it waited holds for it, too. If not, it is
    /// refused.
    fn may_still_pop(&mut self, pop: &mut Pop) -> bool {
        let id = pop.topic.id;
        let Some(topic) = self.catalog.topic(&pop.topic.name).filter(|topic| topic.id == id).cloned() else {
            self.refuse_topic(&pop.reply, &pop.topic.name.clone());
            return false;
        };
        pop.topic = topic;
        let forbids = self.broker_forbids_pop().or_else(|| topic_forbids_pop(&pop.topic));
        let of_group = || match self.group(&pop.group) {
            Some(group) => group_forbids_pop(&group),
            None => Some(no_group(&pop.group)),
        };
        let Some((code, remark)) = forbids.or_else(of_group) else { return true };
        self.leave_line(pop, false);
        self.refuse(&pop.reply, code, &remark);
        false
    }

    /// A pop comes from another core.
    pub(crate) fn take_pop(&mut self, mut pop: Box<Pop>, now_ms: u64) {
        if pop.way.rest != 0 || pop.way.step.is_some() {
            return self.pop(pop, now_ms);
        }
        // It has been everywhere and comes to wait. What came here since is for it.
        if pop.way.looks < LOOKS_MAX && self.is_ready(&pop.topics(), &pop.line(), pop.order(), now_ms) {
            pop.way.looks += 1;
            return self.pop_again(pop, now_ms);
        }
        self.wait_or_end(pop, now_ms);
    }

    fn send_pop(&mut self, core: usize, pop: Box<Pop>) {
        if let Err(Mail::Pop(pop)) = self.outbox.offer(core, Mail::Pop(pop)) {
            self.leave_line(&pop, false);
            self.refuse(&pop.reply, response::SYSTEM_BUSY, BUSY);
        }
    }

    /// There is nothing for a pop anywhere: it waits on the core of its queue, if it may.
    fn wait_or_end(&mut self, mut pop: Box<Pop>, now_ms: u64) {
        if pop.until_ms <= now_ms {
            return self.end_in_vain(&pop, response::POLLING_TIMEOUT, now_ms);
        }
        let home = self.core_of(&pop.topic, pop.queue.unwrap_or(0));
        pop.way.step = None;
        if home != self.index {
            return self.send_pop(home, pop);
        }
        // When it set out, or where it was last, its topics may have had fewer queues: this core is told when they get more.
        if self.look_up(&mut pop) && pop.way.looks < LOOKS_MAX {
            pop.way.looks += 1;
            return self.pop_again(pop, now_ms);
        }
        let before = pop.way.home.replace(home);
        let others = cores_of(&self.settings, &pop.topics(), pop.queue) & !(1 << home);
        let watch = (others != 0).then(|| pop.watch(home, pop.way.looks < LOOKS_MAX));
        if let Err(mut pop) = self.pops.waiting.wait(pop) {
            pop.way.home = before;
            return self.end_in_vain(&pop, response::POLLING_FULL, now_ms);
        }
        self.send_watches(others, watch);
    }

    fn send_watches(&mut self, cores: u64, watch: Option<Watch>) {
        let Some(watch) = watch else { return };
        for core in (0..self.settings.cores).filter(|core| cores & 1 << core != 0) {
            self.outbox.send(core, Mail::Watch(Box::new(watch.clone())));
        }
    }

    /// A pop is over. What it was told of, while it waited, may still be there: then it is for the next of its line.
    /// `is_served`: it got what it wanted.
    pub(crate) fn leave_line(&mut self, pop: &Pop, is_served: bool) {
        let Some(home) = pop.way.home else { return };
        let line = pop.line();
        match is_served && home == self.index {
            true => self.watch_again(&line, is_served),
            false => self.outbox.send(home, Mail::Over { line, is_served }),
        }
    }

    /// A pop of a line of this core is over, see [`Desk::leave_line`].
    pub(crate) fn on_over(&mut self, line: &LineKey, is_served: bool, now_ms: u64) {
        if !is_served && let Some((pop, _)) = self.pops.waiting.first(line) {
            let (topics, order) = (pop.topics(), pop.is_orderly.then_some(None));
            if self.is_ready(&topics, line, order, now_ms) {
                return self.stir(line, false, self.index);
            }
        }
        self.watch_again(line, is_served);
    }

    /// Cores that have told a line of something watch again for those who still wait in it. What the last one came for
    /// may be there: they look, but when it only wanted to know. One message is told once.
    fn watch_again(&mut self, line: &LineKey, is_served: bool) {
        let Some((pop, cores)) = self.pops.waiting.first(line).filter(|(_, cores)| *cores != 0) else { return };
        let watch = pop.watch(self.index, !(is_served && line.is_notice));
        self.pops.waiting.untold(line);
        self.send_watches(cores, Some(watch));
    }

    /// Another core has pops that wait.
    pub(crate) fn watch(&mut self, watch: Watch, now_ms: u64) {
        let Watch { line, topics, home, may_look, .. } = &watch;
        let order = line.is_orderly.then_some(None);
        if *may_look && self.is_ready(topics, line, order, now_ms) {
            return self.outbox.send(*home, Mail::Stir { line: line.clone(), is_new: false, from: self.index });
        }
        self.pops.waiting.watch(watch, now_ms);
    }

    /// A pop that waits has something to get, perhaps. `is_new`: that came just now. `from`: the core that says so.
    pub(crate) fn stir(&mut self, line: &LineKey, is_new: bool, from: usize) {
        if from != self.index {
            self.pops.waiting.told(line, from);
        }
        let Some(mut pop) = self.pops.waiting.next(line) else { return };
        pop.way.looks = if is_new { 0 } else { pop.way.looks.saturating_add(1) };
        self.pops.stirred.push_back(pop);
    }

    /// A queue has something for pops that wait.
    pub(crate) fn wake_pops(&mut self, queue: QueueKey) {
        let mut told = Vec::new();
        self.pops.waiting.wake(queue, &mut self.pops.stirred, &mut told);
        self.tell_watchers(told);
    }

    /// There may be something for any pop that waits.
    pub(crate) fn wake_all_pops(&mut self) {
        let mut told = Vec::new();
        self.pops.waiting.wake_all(&mut self.pops.stirred, &mut told);
        self.tell_watchers(told);
    }

    fn tell_watchers(&mut self, told: Vec<Arc<Watch>>) {
        for watch in told {
            let line = watch.line.clone();
            self.outbox.send(watch.home, Mail::Stir { line, is_new: true, from: self.index });
        }
    }

    /// What time brings: loans that are over, pops whose wait is, and offsets that are to be written down.
    pub(crate) fn pops_on_time(&mut self, now_ms: u64) {
        self.end_loans(now_ms);
        let mut expired = VecDeque::new();
        self.pops.waiting.expire(now_ms, &mut expired);
        for pop in expired {
            match pop.wish {
                // It looks once more before it ends: to an attempt that popped meanwhile its loan is not closed.
                Wish::Notice { .. } => self.pop_again(pop, now_ms),
                Wish::Messages { .. } | Wish::Look { .. } => self.answer_none(&pop, response::POLLING_TIMEOUT, now_ms),
            }
        }
        while !self.replies.is_full()
            && let Some(pop) = self.pops.next_stirred()
        {
            self.pop_again(pop, now_ms);
        }
        if !self.pops.held.has_room() && self.pops.stirred.iter().any(|pop| pop.until_ms <= now_ms) {
            let late = self.forget_stirred(|pop| pop.until_ms <= now_ms);
            late.into_iter().for_each(|pop| self.answer_none(&pop, response::POLLING_TIMEOUT, now_ms));
        }
        self.keep_accounts(now_ms, false);
    }

    /// Takes out pops that were told of a message and do not go on: it is for the next of their lines.
    pub(crate) fn forget_stirred(&mut self, is_over: impl Fn(&Pop) -> bool) -> VecDeque<Box<Pop>> {
        let (over, rest): (VecDeque<_>, _) =
            std::mem::take(&mut self.pops.stirred).into_iter().partition(|pop| is_over(pop));
        self.pops.stirred = rest;
        over.iter().for_each(|pop| self.leave_line(pop, false));
        over
    }

    /// A log is open, and the catalog is known. What groups had on loan when it was closed they have still: it comes
    /// again when that is over, and its handles are good. What it has lost with its end is nobody's, and that is noted
    /// before anything else is.
    pub(crate) fn open_accounts(&mut self, local: usize, now_ms: u64) {
        let partition = &self.partitions[local];
        let mut found = Vec::new();
        for (key, value) in partition.facts(OFFSET_KEY).filter(|(_, value)| value.len() > OFFSET_BYTES) {
            let Some((topic, queue, group)) = split_offset_key(key) else { continue };
            if self.pops.accounts.find(QueueKey { topic, queue }, group).is_none() {
                let account = Account::read(value).filter(|account| account.loans() > 0);
                found.extend(account.map(|account| (topic, queue, group.to_owned(), account)));
            }
        }
        if !found.is_empty() {
            let topics: BTreeMap<u32, &Arc<Topic>> = self.catalog.topics().map(|topic| (topic.id, topic)).collect();
            for (topic, queue, group, account) in found {
                // What is left of topics and groups that are gone is nobody's.
                if let (Some(topic), Some(group)) = (topics.get(&topic), self.group(&group)) {
                    self.pops.accounts.open(queue, topic, &group.name, local, account);
                }
            }
        }
        let partition = &mut self.partitions[local];
        if self.pops.accounts.cut(local, |queue| partition.span(queue).max) {
            self.note_accounts(now_ms, true, false);
        }
    }

    /// Somebody committed an offset of a group that pops, and noted it where its account was.
    pub(crate) fn reset_account(&mut self, queue: QueueKey, group: &str, floor: u64) {
        let Some(id) = self.pops.accounts.find(queue, group) else { return };
        let used_ms = self.pops.accounts.get(id).map_or(0, |holder| holder.used_ms());
        self.pops.accounts.change(id, used_ms, |account| account.reset(floor));
        self.note_account(id);
        self.wake_pops(queue);
    }

    /// Answers with what was found here.
    fn give_popped(&mut self, pop: &Pop, now_ms: u64) {
        let invisible_ms = match pop.wish {
            Wish::Notice { .. } => {
                self.leave_line(pop, true);
                return self.answer_notice(&pop.reply, true, false);
            }
            Wish::Look { .. } => return self.show_popped(&pop.reply),
            Wish::Messages { invisible_ms, .. } => invisible_ms,
        };
        self.traffic.got_messages += self.pops.popped.messages.len() as u64;
        self.traffic.pulls_found += 1;
        let header = self.replies.header(&pop.reply, response::SUCCESS);
        header.remark.push_str("FOUND");
        let infos = &self.pops.popped.infos;
        let answer = PopAnswer {
            start_offset_info: Some(&infos.start),
            msg_offset_info: Some(&infos.offsets),
            order_count_info: pop.is_orderly.then_some(infos.times.as_str()),
            ..empty_answer(pop, invisible_ms, now_ms, self.pops.popped.rest)
        };
        answer.push(&mut header.fields);
        let body = gather(&self.pops.popped.messages);
        let (locals, loans) =
            (std::mem::take(&mut self.pops.popped.locals), std::mem::take(&mut self.pops.popped.loans));
        self.answer_kept(&locals, &pop.reply, body, loans);
        self.pops.popped.locals = locals;
        self.pops.popped.messages.clear();
        if self.pops.popped.rest == 0 {
            return self.leave_line(pop, true);
        }
        // One message wakes one pop; it wakes the next one.
        let line = pop.line();
        match pop.way.home {
            Some(home) if home != self.index => {
                self.outbox.send(home, Mail::Stir { line, is_new: true, from: self.index });
            }
            _ => self.stir(&line, true, self.index),
        }
    }

    /// Answers with what was seen here.
    fn show_popped(&mut self, reply: &ReplyTo) {
        self.traffic.got_messages += self.pops.popped.messages.len() as u64;
        self.traffic.pulls_found += 1;
        let header = self.replies.header(reply, response::SUCCESS);
        header.remark.push_str("FOUND");
        PopAnswer { rest: self.pops.popped.rest.cast_signed(), ..PopAnswer::default() }.push(&mut header.fields);
        self.replies.send(reply, gather(&self.pops.popped.messages));
        self.pops.popped.messages.clear();
    }

    /// Answers that there is nothing, and tells who waits behind.
    fn end_in_vain(&mut self, pop: &Pop, code: i32, now_ms: u64) {
        self.leave_line(pop, false);
        self.answer_none(pop, code, now_ms);
    }

    /// Answers that there is nothing.
    fn answer_none(&mut self, pop: &Pop, code: i32, now_ms: u64) {
        let (code, invisible_ms, now_ms) = match pop.wish {
            Wish::Notice { .. } => return self.answer_notice(&pop.reply, false, code == response::POLLING_FULL),
            Wish::Look { .. } => (response::PULL_NOT_FOUND, 0, 0),
            Wish::Messages { invisible_ms, .. } => (code, invisible_ms, now_ms),
        };
        self.traffic.pulls_missed += 1;
        let header = self.replies.header(&pop.reply, code);
        header.remark.push_str("NO_MESSAGE_IN_QUEUE");
        empty_answer(pop, invisible_ms, now_ms, 0).push(&mut header.fields);
        self.replies.send(&pop.reply, Pieces::new());
    }

    fn answer_notice(&mut self, reply: &ReplyTo, has_msg: bool, polling_full: bool) {
        let header = self.replies.header(reply, response::SUCCESS);
        NotificationAnswer { has_msg, polling_full }.push(&mut header.fields);
        self.replies.send(reply, Pieces::new());
    }
}

fn empty_answer(pop: &Pop, invisible_ms: u64, now_ms: u64, rest: u64) -> PopAnswer<'static> {
    PopAnswer {
        pop_time: now_ms.cast_signed(),
        invisible_time: invisible_ms.cast_signed(),
        revive_queue_id: if pop.is_orderly { REVIVE_ORDERLY } else { REVIVE_PLAIN },
        rest: rest.cast_signed(),
        ..PopAnswer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::held::tests::offices;
    use super::*;
    use crate::call::ConnectionId;
    use crate::catalog::TopicConfig;
    use crate::mail::Mailboxes;
    use protocol::Serialize;

    #[test]
    fn a_pop_begins_where_something_comes_again_but_takes_what_there_is_elsewhere_if_that_is_not_open() {
        let mailboxes = Mailboxes::new(3, 16);
        let mut offices = offices(&mailboxes);
        let config = TopicConfig::new("%RETRY%g_T", 1, 6);
        let retry = Arc::new(Topic { id: 2, name: "%RETRY%g_T".into(), first_partition: 1, config });
        for office in &mut offices {
            Arc::make_mut(&mut office.desk.settings).pop_retry_percent = 100;
            Arc::make_mut(&mut office.desk.catalog).set_topic(retry.clone());
        }
        offices[0].store(b"one");
        // Its log fails, and cannot be opened again.
        let office = &mut offices[1];
        office.sim.faults.write = 1_000;
        office.desk.partitions[0].put(&[(b"x", Some(b"y"))], None, office.sim.now_ms()).expect("there is room");
        office.drive();
        assert!(!office.desk.partitions[0].is_open());
        for (visited, core, code) in [(vec![1, 0], 0, response::SUCCESS), (vec![1, 0], 0, response::POLLING_TIMEOUT)] {
            offices[0].pop();
            for core in visited {
                let mail = mailboxes.pop(core).expect("it goes there");
                assert!(matches!(mail, Mail::Pop(_)), "{mail:?}");
                let now_ms = offices[core].sim.now_ms();
                offices[core].desk.on_mail(mail, now_ms);
                offices[core].drive();
            }
            assert_eq!(offices[core].seen_codes(), [code]);
        }
    }

    /// A pop from topic 1, whose retry topic is 2.
    pub(super) fn pop(opaque: i32, group: &str, queue: Option<u32>, until_ms: u64) -> Pop {
        let topic =
            |id: u32| Arc::new(Topic { id, name: "T".into(), first_partition: 0, config: TopicConfig::default() });
        Pop {
            reply: ReplyTo {
                connection: ConnectionId { core: 0, slot: opaque.cast_unsigned(), generation: 0 },
                opaque,
                code: 200_050,
                version: 0,
                serialize: Serialize::Json,
                oneway: false,
                delivered: false,
            },
            group: group.into(),
            topic: topic(1),
            queue,
            wish: Wish::Notice { tags: None },
            is_orderly: false,
            attempt: None,
            until_ms,
            way: Way { retries: [Some(topic(2)), None], ..Way::default() },
        }
    }
}
