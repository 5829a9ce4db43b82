//! What the cluster answered, and what it is still being asked.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use crate::claim::{Allocation, Block};
use crate::observation::{Answer, Question, Reply};
use crate::route::Prefix;
use crate::time::BootTime;
use crate::workload::{NodeName, Pod, PodKey};

/// Answers about single addresses that are kept; the oldest goes first. One is some 200 bytes.
const CLAIMANTS_CAP: usize = 4_096;

/// Blocks that are kept; the oldest goes first. A full block of 64 addresses is some 8 KiB.
const BLOCKS_CAP: usize = 256;

/// Addresses whose record changed lately that are kept before the old ones go.
const CHANGES_CAP: usize = 4_096;

/// Readings of one block whose times are kept, and how far they are apart at least: together they
/// reach back further than any grace.
const READINGS: usize = 32;
const SPACING: Duration = Duration::from_secs(2);

/// How old an answer may be that says whose an address is, if the route is newer than it.
pub(crate) const REUSE: Duration = Duration::from_secs(10);

/// How old an answer may be before it is asked for again while something still rests on it.
pub(crate) const REVIEW: Duration = Duration::from_mins(1);

/// The same where nobody has anything against it but that the answer is old: a pod's own address.
pub(crate) const RARELY: Duration = Duration::from_mins(10);

/// The same where a wrong is known but not whose it is: the owner may come any moment.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// How far apart two questions about one thing are in the long run, so that a flapping route asks no
/// more of the API server than a quiet one; and how many may come at once before that.
const PACE: Duration = Duration::from_secs(1);
const BURST: u32 = 5;

/// How long nobody is asked again after a question failed.
pub(crate) const RETRY: Duration = Duration::from_secs(5);

/// A pod elsewhere, or here, that shows an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Claimant {
    pub(crate) key: PodKey,
    pub(crate) node: NodeName,
    pub(crate) host_network: bool,
    pub(crate) terminating: bool,
}

/// What is known from questions.
#[derive(Debug)]
pub(crate) struct Answers {
    /// IPAM's blocks; `None` where there is no such block.
    pub(crate) blocks: Book<Prefix, Option<Block>>,
    /// The reading that first showed the record of an address as it is, where it changed under our eyes.
    changed: HashMap<IpAddr, Times>,
    /// Who may own an address: pods that run.
    pub(crate) claimants: Book<IpAddr, Vec<Claimant>>,
}

/// Answers to one kind of question.
#[derive(Debug)]
pub(crate) struct Book<K, V> {
    cap: usize,
    known: HashMap<K, Known<V>>,
    /// The times of answers lately, in order.
    readings: HashMap<K, VecDeque<Times>>,
    order: VecDeque<(BootTime, K)>,
    in_flight: HashMap<K, BootTime>,
}

/// An answer was true at some moment between these two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Times {
    /// When it was asked for.
    pub(crate) asked: BootTime,
    /// When it was heard; all that the kernel had said until then was known.
    pub(crate) heard: BootTime,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Known<V> {
    pub(crate) times: Times,
    /// What was answered, or why nobody could say.
    pub(crate) said: Result<V, Box<str>>,
    /// When all questions so far would have been asked, had each kept to the pace.
    paced: BootTime,
    /// Why it could not be asked again, and when that was tried.
    pub(crate) failed: Option<(BootTime, Box<str>)>,
}

/// How far an answer serves.
#[derive(Debug)]
pub(crate) enum Reading<'a, V> {
    /// It serves, until the given time.
    Good(&'a Known<V>, BootTime),
    /// It serves for now, but ask again.
    Stale(&'a Known<V>),
    /// A question is under way; it is given up at the given time.
    Asked(BootTime),
    /// It was asked for what would serve, but nobody could say; ask again at the given time.
    Failed { why: &'a str, tried: BootTime, again: BootTime },
    /// Nothing that serves is known: ask, but not before the given time.
    Unasked(BootTime),
}

/// For what an answer has to serve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// What was asked at this time or later serves.
    pub(crate) since: BootTime,
    /// Now.
    pub(crate) now: BootTime,
    /// How long a question may be under way.
    pub(crate) patience: Duration,
    /// How old an answer may get before it is asked for again.
    pub(crate) review: Duration,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            blocks: Book::new(BLOCKS_CAP),
            changed: HashMap::new(),
            claimants: Book::new(CLAIMANTS_CAP),
        }
    }
}

impl Answers {
    pub(crate) fn len(&self) -> usize {
        self.blocks.known.len() + self.claimants.known.len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.blocks.in_flight.len() + self.claimants.in_flight.len()
    }

    /// Notes that a question was sent; false where it is under way.
    pub(crate) fn ask(&mut self, question: Question, now: BootTime) -> bool {
        match question {
            Question::Block(block) => self.blocks.ask(block, now),
            Question::Claimants(address) => self.claimants.ask(address, now),
        }
    }

    /// Gives up on a question that was sent too long ago; true where there was one.
    pub(crate) fn give_up(&mut self, question: Question, now: BootTime, after: Duration) -> bool {
        match question {
            Question::Block(block) => self.blocks.give_up(block, now, after),
            Question::Claimants(address) => self.claimants.give_up(address, now, after),
        }
    }

    /// Since when, at the latest, the record of the address has said what `last` said: the first of the
    /// readings asked for since `since` that said so.
    pub(crate) fn recorded_since(
        &self,
        block: Prefix,
        address: IpAddr,
        last: Times,
        since: BootTime,
    ) -> Times {
        let Some(readings) = self.blocks.readings.get(&block) else { return last };
        // Readings before the change said something else. What changed before the first that is remembered
        // may have changed again since, when the block was forgotten.
        let changed = self.changed.get(&address);
        let since = changed.map_or(since, |changed| since.max(changed.asked));
        let watched =
            |changed: &&Times| readings.front().is_some_and(|first| first.asked <= changed.asked);
        let mut so = changed.filter(watched).into_iter().chain(readings);
        so.find(|times| times.asked >= since).copied().unwrap_or(last)
    }

    fn note_changes(
        &mut self,
        block: Prefix,
        times: Times,
        said: &Result<Option<Block>, Box<str>>,
    ) {
        let Ok(new) = said else { return };
        let Some(Known { times: before, said: Ok(old), .. }) = self.blocks.known.get(&block) else {
            return;
        };
        if before.asked > times.asked {
            return;
        }
        let allocations = |block: &Option<Block>| {
            block.as_ref().map(|block| block.allocations.clone()).unwrap_or_default()
        };
        let (old, new) = (allocations(old), allocations(new));
        let same = |all: &[(IpAddr, Allocation)], one: &(IpAddr, Allocation)| {
            all.binary_search_by(|(address, _)| address.cmp(&one.0)).is_ok_and(|at| all[at] == *one)
        };
        let gone = old.iter().filter(|one| !same(&new, one));
        let came = new.iter().filter(|one| !same(&old, one));
        for (address, _) in gone.chain(came) {
            if self.changed.len() >= CHANGES_CAP {
                // What changed long ago is no news to anybody.
                self.changed.retain(|_, at| times.asked.since(at.asked) < REVIEW);
            }
            self.changed.insert(*address, times);
        }
    }

    /// Takes an answer that was heard at `heard`; one that is older than what is known is dropped.
    pub(crate) fn apply(&mut self, heard: BootTime, answer: Answer) {
        let Answer { asked, reply } = answer;
        let times = Times { asked, heard };
        match reply {
            Reply::Block(block, said) => {
                self.note_changes(block, times, &said);
                self.blocks.apply(block, times, said);
            }
            Reply::Claimants(address, pods) => {
                let said = pods.map(|pods| {
                    let mut owners: Vec<Claimant> = pods.iter().filter_map(Claimant::of).collect();
                    owners.sort_by(|a, b| a.key.cmp(&b.key));
                    owners
                });
                self.claimants.apply(address, times, said);
            }
        }
    }
}

impl<V> Known<V> {
    /// When it may be asked for again.
    fn next(&self) -> BootTime {
        self.paced.before(PACE * (BURST - 1))
    }
}

impl<K: Copy + Eq + Hash, V> Book<K, V> {
    fn new(cap: usize) -> Self {
        Self {
            cap,
            known: HashMap::new(),
            readings: HashMap::new(),
            order: VecDeque::new(),
            in_flight: HashMap::new(),
        }
    }

    /// What is known that serves. An answer that is older than what it has to serve for may serve
    /// up to the age of `reuse`, if `reusable` says so.
    pub(crate) fn read(
        &self,
        key: K,
        need: Need,
        reuse: Duration,
        reusable: impl FnOnce(&V) -> bool,
    ) -> Reading<'_, V> {
        let Need { since, now, patience, review } = need;
        let in_flight = self.in_flight.get(&key).map(|asked| asked.after(patience));
        let Some(known) = self.known.get(&key) else {
            return in_flight.map_or(Reading::Unasked(now), Reading::Asked);
        };
        let age = now.since(known.times.asked);
        let serves_for = if known.said.is_ok() { review } else { RETRY };
        if known.times.asked >= since || (age <= reuse && known.said.as_ref().is_ok_and(reusable)) {
            let mut again = known.times.asked.after(serves_for);
            if let Some((tried, _)) = &known.failed {
                again = again.max(tried.after(RETRY));
            }
            return match in_flight {
                Some(until) => Reading::Good(known, until),
                None if again <= now => Reading::Stale(known),
                None => Reading::Good(known, again),
            };
        }
        match (in_flight, &known.failed) {
            (Some(until), _) => Reading::Asked(until),
            (None, Some((tried, why))) if *tried >= since && now < tried.after(RETRY) => {
                Reading::Failed { why, tried: *tried, again: tried.after(RETRY) }
            }
            (None, _) => Reading::Unasked(known.next()),
        }
    }

    /// The answer that is known, however old.
    pub(crate) fn known(&self, key: K) -> Option<&Known<V>> {
        self.known.get(&key)
    }

    fn ask(&mut self, key: K, now: BootTime) -> bool {
        let new = !self.in_flight.contains_key(&key);
        if new {
            self.in_flight.insert(key, now);
        }
        new
    }

    fn give_up(&mut self, key: K, now: BootTime, patience: Duration) -> bool {
        let late = self.in_flight.get(&key).is_some_and(|asked| now >= asked.after(patience));
        if late && let Some(asked) = self.in_flight.remove(&key) {
            let why = format!("no answer within {patience:?}").into();
            self.fail(key, Times { asked, heard: now }, why);
        }
        late
    }

    fn apply(&mut self, key: K, times: Times, said: Result<V, Box<str>>) {
        let Times { asked, .. } = times;
        if self.in_flight.get(&key).is_some_and(|sent| *sent <= asked) {
            self.in_flight.remove(&key);
        }
        match said {
            Err(why) => self.fail(key, times, why),
            Ok(_) if self.known.get(&key).is_some_and(|known| known.times.asked > asked) => {}
            said => self.keep(key, times, said),
        }
    }

    /// What was said before stays said, until it is asked for what is newer.
    fn fail(&mut self, key: K, times: Times, why: Box<str>) {
        match self.known.get_mut(&key) {
            Some(known) if known.said.is_ok() => known.failed = Some((times.asked, why)),
            _ => self.keep(key, times, Err(why)),
        }
    }

    fn keep(&mut self, key: K, times: Times, said: Result<V, Box<str>>) {
        let Times { asked, .. } = times;
        let paced = self.known.get(&key).map_or(asked, |known| known.paced.max(asked)).after(PACE);
        let known = Known { times, said, paced, failed: None };
        self.order.push_back((asked, key));
        if known.said.is_ok() {
            let readings = self.readings.entry(key).or_default();
            if readings.back().is_none_or(|last| asked.since(last.asked) >= SPACING) {
                if readings.len() == READINGS {
                    readings.pop_front();
                }
                readings.push_back(times);
            }
        }
        self.known.insert(key, known);
        while self.order.len() > self.cap {
            if let Some((asked, key)) = self.order.pop_front()
                && self.known.get(&key).is_some_and(|known| known.times.asked == asked)
            {
                self.known.remove(&key);
                self.readings.remove(&key);
            }
        }
    }
}

impl Claimant {
    /// The claim that a pod's status makes; `None` for a pod that owns nothing any more: finished,
    /// or on its way out and already without its CNI address (`IsFinished` in Calico's
    /// libcalico-go/lib/backend/k8s/conversion/conversion.go).
    fn of(pod: &Pod) -> Option<Self> {
        let released = pod.terminating && pod.annotated_addresses.is_empty();
        (!pod.finished && !released).then(|| Self {
            key: pod.key.clone(),
            node: pod.node.clone(),
            host_network: pod.host_network,
            terminating: pod.terminating,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 1, 5));

    fn block(third: u8) -> Prefix {
        let text = format!("10.244.{third}.0/26");
        text.parse::<ipnet::IpNet>().unwrap().into()
    }

    fn at(second: u64) -> BootTime {
        BootTime::from_millis(1_000 * second)
    }

    /// A reading that is asked for at a second and heard in the next, by which somebody has the address.
    fn read(answers: &mut Answers, cidr: Prefix, second: u64, holder: &str) -> Times {
        let allocations = vec![(ADDRESS, Allocation::Other(holder.into()))];
        let block = Block { cidr, affinity: None, allocations };
        let answer = Answer { asked: at(second), reply: Reply::Block(cidr, Ok(Some(block))) };
        answers.apply(at(second + 1), answer);
        Times { asked: at(second), heard: at(second + 1) }
    }

    #[test]
    fn a_record_has_said_so_since_the_reading_that_showed_the_change() {
        let mut answers = Answers::default();
        let first = read(&mut answers, block(1), 10, "one");
        let second = read(&mut answers, block(1), 20, "one");
        let so = |answers: &Answers, last, since| {
            answers.recorded_since(block(1), ADDRESS, last, at(since))
        };
        assert_eq!(so(&answers, second, 0), first);
        assert_eq!(so(&answers, second, 15), second);
        let changed = read(&mut answers, block(1), 21, "another");
        let last = read(&mut answers, block(1), 30, "another");
        assert_eq!(
            so(&answers, last, 0),
            changed,
            "it is too near to another to be kept as a reading"
        );
        assert_eq!(so(&answers, last, 25), last);
    }

    #[test]
    fn a_change_before_the_block_was_forgotten_says_nothing_of_what_it_says_now() {
        let mut answers = Answers::default();
        read(&mut answers, block(1), 10, "one");
        read(&mut answers, block(1), 20, "another");
        let others = (2..=250).cycle().zip(30..).take(BLOCKS_CAP);
        for (other, second) in others {
            read(&mut answers, block(other), second, "anybody");
        }
        assert!(answers.blocks.known(block(1)).is_none());
        let again = read(&mut answers, block(1), 1_000, "another");
        assert_eq!(answers.recorded_since(block(1), ADDRESS, again, BootTime::ZERO), again);
    }
}
