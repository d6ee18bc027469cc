//! What the members of one group were given by pops, and what must hold because of it. It knows nothing of cores,
//! disks and sockets, and of the broker only what was answered.

use std::collections::{BTreeMap, BTreeSet};

/// Where a message was given from: in its topic, or in a retry topic where it was written again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    pub topic: String,
    pub queue: i32,
    pub offset: i64,
}

/// One message that somebody was given, once.
#[derive(Clone, Debug)]
pub struct Given {
    /// The number in its body.
    pub id: usize,
    pub source: Source,
    /// When, by the broker's clock.
    pub pop_ms: u64,
    /// Nobody else gets it before.
    until_ms: u64,
    /// Who asks with the same text may get it again.
    attempt: Option<String>,
    /// The life of the broker that gave it.
    life: u32,
    /// It was acknowledged; the broker may have heard of it.
    is_asked: bool,
    /// It has, while nobody else could have the message.
    is_acked: bool,
    /// So did the disk.
    is_certain: bool,
    /// Another time was asked for: the handle may be another one.
    is_changing: bool,
    /// The disk knows that it is on loan until then: so it is in the next lives, too.
    held_until_ms: Option<u64>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Loans {
    given: Vec<Given>,
    by_id: BTreeMap<usize, Vec<usize>>,
    /// Orderly: what was given in this life from a queue, or is still on loan in it, by its topic, which one of this
    /// name that is, and its number.
    by_queue: BTreeMap<(String, u32, i32), Vec<usize>>,
    /// Attempts that were asked for more than once.
    repeated: BTreeSet<String>,
    life: u32,
    /// The group keeps the order: what follows a message that is left comes again with it, acknowledged or not.
    is_orderly: bool,
    /// A life has ended, or a disk failed, between two steps: a message may be in two places.
    is_twofold: bool,
}

impl Loans {
    /// Of a group that keeps the order or not. `is_failing`: logs may close and be read again.
    pub fn new(is_orderly: bool, is_failing: bool) -> Loans {
        Loans { is_orderly, is_twofold: is_failing, ..Loans::default() }
    }

    /// One that was given.
    pub fn of(&self, number: usize) -> &Given {
        &self.given[number]
    }

    /// A member was given a message until a moment. Returns the number of this gift.
    pub fn give(
        &mut self,
        id: usize,
        source: Source,
        (pop_ms, until_ms): (u64, u64),
        attempt: Option<String>,
    ) -> usize {
        // Who asks once more may get it once more, for another time.
        let is_once = attempt.as_ref().is_none_or(|attempt| !self.repeated.contains(attempt));
        let until_ms = if is_once { until_ms } else { pop_ms };
        let given = Given {
            id,
            source,
            pop_ms,
            until_ms,
            attempt,
            life: self.life,
            is_asked: false,
            is_acked: false,
            is_certain: false,
            is_changing: false,
            held_until_ms: None,
        };
        for other in self.by_id.get(&id).into_iter().flatten().map(|number| &self.given[*number]) {
            let is_same = other.source == given.source;
            let is_first = self.is_first_left(other);
            let is_over = is_first && other.is_acked && pop_ms >= other.pop_ms;
            assert!(!is_over || !is_same && self.is_twofold, "acknowledged, and given again: {other:?}, {given:?}");
            let is_done = is_first && other.life < self.life && other.is_certain && is_same;
            assert!(!is_done, "acknowledged durably, and given again: {other:?}, {given:?}");
            if is_same {
                self.check_apart(other, &given);
            }
        }
        let number = self.given.len();
        self.by_id.entry(id).or_default().push(number);
        self.given.push(given);
        number
    }

    /// What was given from a queue in order: nothing before it is left, and nobody else has something of the queue.
    pub fn give_in_order(&mut self, numbers: &[usize], topic_life: u32, id_at: &dyn Fn(i64) -> Option<usize>) {
        let Some(first) = numbers.first() else { return };
        let Source { topic, queue, .. } = self.given[*first].source.clone();
        let queue_of = self.by_queue.entry((topic, topic_life, queue)).or_default();
        let before = queue_of.clone();
        queue_of.extend(numbers);
        for number in numbers {
            for other in before.iter().map(|other| &self.given[*other]) {
                self.check_apart(other, &self.given[*number]);
            }
        }
        let offsets: Vec<i64> = numbers.iter().map(|number| self.given[*number].source.offset).collect();
        assert!(offsets.is_sorted_by(|one, two| one < two), "not in order: {offsets:?}");
        let mut wanted = offsets.iter().copied().peekable();
        for offset in 0..=offsets[offsets.len() - 1] {
            if wanted.next_if_eq(&offset).is_some() {
                continue;
            }
            let Some(id) = id_at(offset) else { continue };
            assert!(self.may_be_done(id), "{offset} with message {id} is left, and {offsets:?} were given");
        }
    }

    /// Whether nothing is left before a message on its loan, so that it does not come again with that.
    fn is_first_left(&self, given: &Given) -> bool {
        let before = |other: &Given| {
            let of_loan = (other.life, other.pop_ms) == (given.life, given.pop_ms);
            let (one, two) = (&other.source, &given.source);
            of_loan && (&one.topic, one.queue) == (&two.topic, two.queue) && one.offset < two.offset
        };
        !self.is_orderly
            || self.given.iter().filter(|other| before(other)).all(|other| other.is_acked || other.is_certain)
    }

    /// Two gifts that must not overlap.
    fn check_apart(&self, one: &Given, two: &Given) {
        let is_again = one.attempt.is_some() && one.attempt == two.attempt;
        let (first, second) = if one.pop_ms <= two.pop_ms { (one, two) } else { (two, one) };
        if is_again || one.life != two.life && first.held_until_ms.is_none() {
            return;
        }
        let is_apart = first.is_asked || first.until_ms <= second.pop_ms;
        assert!(is_apart, "two have it at once: {first:?}, {second:?}");
    }

    /// Whether the broker may have heard that somebody is done with a message.
    fn may_be_done(&self, id: usize) -> bool {
        self.by_id.get(&id).into_iter().flatten().any(|number| self.given[*number].is_asked)
    }

    /// Somebody asks with an attempt that was used before.
    pub fn repeat(&mut self, attempt: &str) {
        self.repeated.insert(attempt.to_owned());
        let is_again = |given: &&mut Given| given.attempt.as_deref() == Some(attempt);
        self.given.iter_mut().filter(is_again).for_each(|given| given.until_ms = given.pop_ms);
    }

    /// It is said that somebody is done with it.
    pub fn ask(&mut self, number: usize) {
        self.given[number].is_asked = true;
    }

    /// Whether it was given in this life.
    pub fn is_recent(&self, number: usize) -> bool {
        self.given[number].life == self.life
    }

    /// That was answered, and done by now.
    pub fn acked(&mut self, number: usize, now_ms: u64) {
        let given = &mut self.given[number];
        // Whose time is over has nothing to say any more, and is told the same; and so is who was lent it in an earlier
        // life that nobody remembers.
        let is_known = given.life == self.life || given.held_until_ms.is_some();
        given.is_acked |= is_known && now_ms < given.until_ms && !given.is_changing;
    }

    /// It is said that it shall come again at `until_ms` at the earliest. The handle of an orderly one stays good.
    pub fn ask_change(&mut self, number: usize, until_ms: u64, is_orderly: bool) {
        let given = &mut self.given[number];
        given.until_ms = given.until_ms.min(until_ms);
        given.is_changing |= !is_orderly;
    }

    /// That was answered by now: so it is, under a handle of this time. Returns the number of this gift.
    pub fn changed(&mut self, number: usize, times: (u64, u64), is_orderly: bool, now_ms: u64) -> usize {
        let given = &mut self.given[number];
        if is_orderly {
            // Who asked once more meanwhile may have got it for another time. And whose time is over is told the same,
            // and has changed nothing.
            let is_once = given.attempt.as_ref().is_none_or(|attempt| !self.repeated.contains(attempt));
            match is_once {
                true if now_ms < given.until_ms => given.until_ms = times.1,
                true => {}
                false => given.until_ms = given.pop_ms,
            }
            return number;
        }
        given.until_ms = given.pop_ms;
        let Given { id, source, attempt, .. } = given.clone();
        self.give(id, source, times, attempt)
    }

    /// The process ended.
    pub fn ended(&mut self) {
        for given in &mut self.given {
            given.is_acked = false;
            // What was changed since then may be as it was.
            given.until_ms = given.until_ms.min(given.held_until_ms.unwrap_or(u64::MAX));
        }
        let given = &self.given;
        let is_held = |number: &usize| given[*number].held_until_ms.is_some();
        self.by_queue.values_mut().for_each(|numbers| numbers.retain(is_held));
        self.life += 1;
        self.is_twofold = true;
    }

    /// Whatever was answered is durable.
    pub fn is_durable(&mut self) {
        for given in &mut self.given {
            given.is_certain |= given.is_acked;
            let is_known = given.life == self.life || given.held_until_ms.is_some();
            given.held_until_ms = is_known.then_some(given.until_ms);
        }
    }

    /// The group has taken what there was and acknowledged it: of what was `found` in the topics nothing is missing.
    pub fn check(&self, found: &BTreeSet<usize>) {
        for id in found {
            let mine = self.by_id.get(id).into_iter().flatten().map(|number| &self.given[*number]);
            let Some(last) = mine.max_by_key(|given| (given.life, given.pop_ms, given.is_asked)) else {
                panic!("message {id} was given to nobody");
            };
            // In order it may have come once more only because it lies behind one that was left. A restart remembers that
            // it was acknowledged before, and does not give it again.
            let is_done = last.is_asked || self.is_orderly && self.may_be_done(*id);
            assert!(is_done, "nobody is done with message {id}, and it does not come again: {last:?}");
        }
    }
}
