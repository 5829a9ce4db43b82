//! What the cluster answered, and what it is still being asked.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::observation::Answer;
use crate::time::BootTime;
use crate::workload::{NodeName, Pod, PodKey};

/// Answers that are kept; the oldest goes first. One is some 200 bytes.
const CAP: usize = 4_096;

/// How old an answer may be that says whose an address is, if the route is newer than it.
const REUSE: Duration = Duration::from_secs(10);

/// How old an answer may be before it is asked for again while something still rests on it.
pub(crate) const REVIEW: Duration = Duration::from_mins(1);

/// The least time between two questions about one address, so that a flapping route asks no more
/// of the API server than a quiet one.
pub(crate) const PACE: Duration = Duration::from_secs(1);

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
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: HashMap<IpAddr, Known>,
    order: VecDeque<(BootTime, IpAddr)>,
    in_flight: HashMap<IpAddr, BootTime>,
}

/// One answer.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) asked: BootTime,
    /// Who may own the address: pods that run, or why nobody could say.
    pub(crate) claimants: Result<Vec<Claimant>, Box<str>>,
}

/// How far an answer serves.
#[derive(Debug)]
pub(crate) enum Reading<'a> {
    /// It serves, until the given time.
    Good(&'a Known, BootTime),
    /// It serves for now, but ask again.
    Stale(&'a Known),
    /// A question is under way; it is given up at the given time.
    Asked(BootTime),
    /// Nothing that serves is known: ask, but not before the given time.
    Unasked(BootTime),
}

impl Answers {
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What is known of `address` for a route that stands since `since`.
    pub(crate) fn read(
        &self,
        address: IpAddr,
        since: BootTime,
        now: BootTime,
        patience: Duration,
    ) -> Reading<'_> {
        let known = self.known.get(&address);
        if let Some(known) = known {
            let age = now.since(known.asked);
            let serves_for = if known.claimants.is_ok() { REVIEW } else { RETRY };
            let owned = known.claimants.as_ref().is_ok_and(|claimants| !claimants.is_empty());
            if known.asked >= since || (owned && age <= REUSE) {
                return match self.in_flight.get(&address) {
                    None if age >= serves_for => Reading::Stale(known),
                    Some(asked) => Reading::Good(known, asked.after(patience)),
                    None => Reading::Good(known, known.asked.after(serves_for)),
                };
            }
        }
        match (self.in_flight.get(&address), known) {
            (Some(asked), _) => Reading::Asked(asked.after(patience)),
            (None, Some(known)) => Reading::Unasked(known.asked.after(PACE)),
            (None, None) => Reading::Unasked(now),
        }
    }

    /// When the question was sent whose answer is known.
    pub(crate) fn asked(&self, address: IpAddr) -> Option<BootTime> {
        self.known.get(&address).map(|known| known.asked)
    }

    /// Notes that a question was sent; false where one is under way.
    pub(crate) fn ask(&mut self, address: IpAddr, now: BootTime) -> bool {
        let new = !self.in_flight.contains_key(&address);
        if new {
            self.in_flight.insert(address, now);
        }
        new
    }

    /// Gives up on a question that was sent too long ago; true where there was one.
    pub(crate) fn give_up(&mut self, address: IpAddr, now: BootTime, patience: Duration) -> bool {
        let late = self.in_flight.get(&address).is_some_and(|asked| now >= asked.after(patience));
        if late && let Some(asked) = self.in_flight.remove(&address) {
            let why = format!("no answer within {patience:?}").into();
            self.keep(address, Known { asked, claimants: Err(why) });
        }
        late
    }

    /// Takes an answer; one that is older than what is known is dropped.
    pub(crate) fn apply(&mut self, answer: Answer) {
        let Answer { address, asked, claimants } = answer;
        if self.in_flight.get(&address).is_some_and(|sent| *sent <= asked) {
            self.in_flight.remove(&address);
        }
        if self.known.get(&address).is_some_and(|known| known.asked > asked) {
            return;
        }
        let claimants = claimants.map(|pods| {
            let mut owners: Vec<Claimant> = pods.iter().filter_map(Claimant::of).collect();
            owners.sort_by(|a, b| a.key.cmp(&b.key));
            owners
        });
        self.keep(address, Known { asked, claimants });
    }

    fn keep(&mut self, address: IpAddr, known: Known) {
        self.order.push_back((known.asked, address));
        self.known.insert(address, known);
        while self.order.len() > CAP {
            if let Some((asked, address)) = self.order.pop_front()
                && self.known.get(&address).is_some_and(|known| known.asked == asked)
            {
                self.known.remove(&address);
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
