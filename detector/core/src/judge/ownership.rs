//! Whose an address is.
//!
//! In the order of trust: what those who run the cluster gave out (addresses of nodes and Services,
//! IPAM's record), then a pod that has had the address from the first and whose interface stands
//! here, then what Services and pods elsewhere say of themselves.

use std::net::IpAddr;
use std::time::Duration;

use super::Judge;
use super::words::victim_of;
use crate::claim::{Allocation, Block, PodHolder};
use crate::facts::answers::{Claimant, Known, Need, REUSE, REVIEW, Reading, SOON, Times};
use crate::facts::fib::Entry;
use crate::facts::pods::LocalPod;
use crate::finding::{Evidence, Victim, Witness};
use crate::observation::Question;
use crate::route::Prefix;
use crate::time::BootTime;
use crate::workload::{NodeName, PodKey};

/// How long after the end of a route a reading still speaks for its time, so that a route of a millisecond is
/// found. Mostly no address is taken back and given to the next pod within this time. A full block may do so,
/// which is why nothing is allowed for the route that a pod began with, once its status has shown the address.
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// What is known of an address's owner.
pub(super) enum Ownership {
    /// It is somebody's.
    Owned { victim: Victim, presence: Presence, evidence: Evidence },
    /// IPAM's record says that it is the asker's own. Looked at again at the given time.
    Own(BootTime),
    /// It is nobody else's, as far as the whole cluster tells.
    Unowned {
        /// Whether the pod in question itself is said to have it.
        claimed: bool,
        /// Whether IPAM was asked, and has no record.
        unrecorded: bool,
    },
    /// Being asked; decided at the given time at the latest.
    Pending(BootTime),
    /// Nobody could say.
    Unanswered { why: Box<str>, again: BootTime },
}

/// How sure it is that an owner is there now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// A pod of this node whose interface stands: there is nothing to wait for.
    Attached,
    /// IPAM's record names it, which is written before a route and taken back after it.
    Recorded,
    /// A node, or a pod of another node that is not on its way out.
    Elsewhere,
    /// A pod that may just not be known to have ended.
    Unsure,
}

/// What IPAM's record says of an address.
pub(super) enum Record<'a> {
    /// There is none to be had: IPAM is not Calico's, or nobody has told yet.
    Absent,
    /// Being read; decided at the given time at the latest.
    Pending(BootTime),
    /// It could not be read.
    Unreadable { tried: BootTime, again: BootTime },
    /// The address is free.
    Free { known: Reference, again: BootTime },
    /// The address is somebody's.
    Taken { allocation: &'a Allocation, known: Reference, again: BootTime },
}

/// Which reading of the record it was.
#[derive(Clone, Copy)]
pub(super) struct Reference {
    /// The block.
    pub(super) block: Prefix,
    /// When it was read.
    pub(super) times: Times,
    /// Since when, at the latest, the record has said this, of the time in question.
    pub(super) since: BootTime,
}

/// Who asks: whether a pod on a node is the one in question.
pub(super) type IsSelf<'f> = &'f dyn Fn(&PodKey, Option<&NodeName>) -> bool;

impl<'a> Judge<'a> {
    /// The pod of this node that has had the address from the first and whose interface stands.
    pub(super) fn attached_owner(&self, address: IpAddr) -> Option<&'a LocalPod> {
        let owns =
            |pod: &&LocalPod| pod.can_own() && pod.had_first(address) && !pod.disowns(address);
        self.facts.pods.with_address(address).filter(owns).find(|pod| self.facts.is_attached(pod))
    }

    /// Some pod of this node as above with an address in the prefix: the first by name, so that
    /// the same facts give the same answer; not this one.
    pub(super) fn attached_owner_within(
        &self,
        prefix: Prefix,
        but: Option<&PodKey>,
    ) -> Option<&'a LocalPod> {
        let owns = |pod: &&LocalPod| {
            pod.can_own()
                && Some(&pod.pod.key) != but
                && pod.first_addresses.iter().any(|address| prefix.contains(*address))
                && self.facts.is_attached(pod)
        };
        self.facts.pods.iter().filter(owns).min_by(|a, b| a.pod.key.cmp(&b.pod.key))
    }

    /// Whose `address` is, other than that of pods that `is_self` names, for a route that stands
    /// since `since`. May ask.
    pub(super) fn ownership(
        &mut self,
        address: IpAddr,
        since: BootTime,
        is_self: IsSelf<'_>,
    ) -> Ownership {
        self.ownership_claimed(address, since, false, is_self)
    }

    /// The same. Where a pod `claims` the address as a floating one, it cannot be the next owner's by
    /// IPAM of which an answer from just before the route would not know.
    pub(super) fn ownership_claimed(
        &mut self,
        address: IpAddr,
        since: BootTime,
        claims: bool,
        is_self: IsSelf<'_>,
    ) -> Ownership {
        if let Some((victim, text)) = self.given(address) {
            let evidence = Evidence { at: self.now, witness: Witness::Api, text: text.into() };
            return Ownership::Owned { victim, presence: Presence::Elsewhere, evidence };
        }
        let reusable = |block: &Option<Block>| {
            let allocation = block.as_ref().and_then(|block| block.allocation(address));
            allocation.is_some_and(|allocation| claims || names(allocation, is_self))
        };
        let record = self.record_if(address, since, REVIEW, REUSE, reusable);
        if self.is_too_late(address, &record, false) {
            return Ownership::Unowned { claimed: true, unrecorded: false };
        }
        if let Record::Taken { allocation, known, again } = record {
            return Self::recorded(address, allocation, known, again, is_self);
        }
        let others = |pod: &&LocalPod| {
            pod.can_own() && pod.had_first(address) && !is_self(&pod.pod.key, Some(&pod.pod.node))
        };
        let here = self.facts.pods.with_address(address).filter(others);
        // Who has had the address only since the route went lost nothing to it.
        let in_time = |pod: &LocalPod| {
            self.over.is_none_or(|ended| pod.first_at.is_some_and(|first| first <= ended))
        };
        let attached = here.into_iter().find(|pod| self.facts.is_attached(pod) && in_time(pod));
        if let Record::Pending(until) = record
            && !attached.is_some_and(|pod| self.stands_for(pod, address))
        {
            return Ownership::Pending(until);
        }
        if let Some(pod) = attached
            && self.holds(pod, address, &record)
        {
            // Of a pod that we heard of just now, the end may be on its way to us as well.
            let settled = pod.heard.after(self.facts.settings.settle);
            if self.now < settled {
                return Ownership::Pending(settled);
            }
            if let Record::Pending(until) = record {
                // It is certain enough, but the record is better evidence.
                self.soonest = Some(until);
            }
            return Ownership::Owned {
                victim: victim_of(pod),
                presence: Presence::Attached,
                evidence: self.first_address_evidence(pod, address),
            };
        }
        let unrecorded = matches!(record, Record::Free { .. });
        if let Some((service, field)) = self.facts.services.claimants(address).first() {
            let text = format!("service {service} has {address} in its {}", field.as_str());
            return Ownership::Owned {
                victim: Victim::Service(service.clone()),
                presence: Presence::Elsewhere,
                evidence: Evidence { at: self.now, witness: Witness::Api, text: text.into() },
            };
        }
        let need = self.need(since, REVIEW);
        self.rests.insert(Question::Claimants(address));
        let claimants = &self.facts.answers.claimants;
        if let (Record::Unreadable { tried, .. }, Some(known)) = (&record, claimants.known(address))
            && known.said.is_ok()
            && known.times.asked > *tried
            && let Some(block) = self.facts.pools.block_of(address)
        {
            // The server answers again: what pods say counts only where the record still cannot be
            // read.
            self.asks.insert(Question::Block(block));
            return Ownership::Pending(self.now.after(self.facts.settings.answer));
        }
        match claimants.read(address, need, REUSE, |claimants| !claimants.is_empty()) {
            Reading::Good(known, again) => {
                self.answered(address, known, again, since, unrecorded, is_self)
            }
            Reading::Stale(known) => {
                self.asks.insert(Question::Claimants(address));
                let again = self.now.after(need.patience);
                self.answered(address, known, again, since, unrecorded, is_self)
            }
            Reading::Failed { why, again, .. } => Ownership::Unanswered { why: why.into(), again },
            Reading::Asked(until) => Ownership::Pending(until),
            Reading::Unasked(from) if from <= self.now => {
                self.asks.insert(Question::Claimants(address));
                Ownership::Pending(self.now.after(need.patience))
            }
            Reading::Unasked(from) => Ownership::Pending(from),
        }
    }

    /// Who was given the address by those who run the cluster, with the words for it.
    pub(super) fn given(&self, address: IpAddr) -> Option<(Victim, String)> {
        if let Some(node) = self.facts.nodes.owner(address) {
            let text = format!("{address} is an address of node {node}");
            return Some((Victim::Node(node.clone()), text));
        }
        if let Some(service) = self.facts.services.owner(address) {
            let text = format!("{address} is the cluster address of service {service}");
            return Some((Victim::Service(service.clone()), text));
        }
        is_metadata(address).then(|| {
            (Victim::Metadata, format!("{address} is where clouds hand out credentials of nodes"))
        })
    }

    /// Whether a pod that had the address at first, and whose interface stands, has it still: with a
    /// new sandbox it has another, and its status is late to say so.
    fn holds(&self, pod: &LocalPod, address: IpAddr, record: &Record<'_>) -> bool {
        self.stands_for(pod, address)
            || match record {
                Record::Free { .. } => false,
                _ => !pod.disowns(address),
            }
    }

    /// Whether the kernel bears out that the address is the pod's: a route of it to the pod's
    /// interface stands, or another took its place.
    fn stands_for(&self, pod: &LocalPod, address: IpAddr) -> bool {
        let prefix = Prefix::host(address);
        let of_pod = |index| {
            self.facts
                .kernel
                .links
                .standing(index)
                .is_some_and(|link| pod.interfaces.contains(&link.first_name))
        };
        let displaced = |entry: &Entry| entry.displaced.is_some_and(of_pod);
        self.is_routed(pod, prefix) || self.facts.kernel.fib.get(prefix).iter().any(displaced)
    }

    /// Whether a route for the prefix leads to the pod's interface.
    pub(super) fn is_routed(&self, pod: &LocalPod, prefix: Prefix) -> bool {
        self.facts.kernel.fib.get(prefix).iter().any(|entry| {
            let legs = self.facts.kernel.legs(&entry.route);
            legs.as_slice().iter().any(|hop| {
                let link = hop.interface.and_then(|index| self.facts.kernel.links.get(index));
                link.is_some_and(|link| pod.interfaces.contains(&link.first_name))
            })
        })
    }

    /// What IPAM's record says of an address. May ask.
    pub(super) fn record(
        &mut self,
        address: IpAddr,
        since: BootTime,
        review: Duration,
        is_self: IsSelf<'_>,
    ) -> Record<'a> {
        // What is older than the route serves only where it speaks for the asker.
        let reusable = |block: &Option<Block>| {
            let allocation = block.as_ref().and_then(|block| block.allocation(address));
            allocation.is_some_and(|allocation| names(allocation, is_self))
        };
        self.record_if(address, since, review, REUSE, reusable)
    }

    /// The same, where an answer of at most `reuse` that is older than `since` serves if `reusable`.
    pub(super) fn record_if(
        &mut self,
        address: IpAddr,
        since: BootTime,
        review: Duration,
        reuse: Duration,
        reusable: impl FnOnce(&Option<Block>) -> bool,
    ) -> Record<'a> {
        if let Some(until) = self.facts.pools_awaited(self.now) {
            return Record::Pending(until);
        }
        let Some(block) = self.facts.pools.block_of(address) else { return Record::Absent };
        let question = Question::Block(block);
        self.rests.insert(question);
        let need = self.need(since, review);
        let (known, again) = match self.facts.answers.blocks.read(block, need, reuse, reusable) {
            Reading::Good(known, again) => (known, again),
            Reading::Stale(known) => {
                self.asks.insert(question);
                (known, self.now.after(need.patience))
            }
            Reading::Failed { why, tried, again } => {
                self.unread.insert(format!("IPAM block {block}: {why}").into());
                return Record::Unreadable { tried, again };
            }
            Reading::Asked(until) => return Record::Pending(until),
            Reading::Unasked(from) if from <= self.now => {
                self.asks.insert(question);
                return Record::Pending(self.now.after(need.patience));
            }
            Reading::Unasked(from) => return Record::Pending(from),
        };
        match &known.said {
            Err(why) => {
                self.unread.insert(format!("IPAM block {block}: {why}").into());
                Record::Unreadable { tried: known.times.asked, again }
            }
            Ok(said) => {
                let times = known.times;
                let since = self.facts.answers.recorded_since(block, address, times, since).asked;
                let reference = Reference { block, times, since };
                match said.as_ref().and_then(|block| block.allocation(address)) {
                    Some(allocation) => Record::Taken { allocation, known: reference, again },
                    None => Record::Free { known: reference, again },
                }
            }
        }
    }

    /// When to look again at a verdict that rests on an answer.
    pub(super) fn review(&self) -> BootTime {
        self.now.after(REVIEW)
    }

    /// The same where a wrong is known but not whose the address is.
    pub(super) fn soon(&self) -> BootTime {
        self.now.after(SOON)
    }

    fn need(&self, since: BootTime, review: Duration) -> Need {
        Need { since, now: self.now, patience: self.facts.settings.answer, review }
    }

    fn recorded(
        address: IpAddr,
        allocation: &Allocation,
        known: Reference,
        again: BootTime,
        is_self: IsSelf<'_>,
    ) -> Ownership {
        if names(allocation, is_self) {
            return Ownership::Own(again);
        }
        let (victim, evidence) = Self::recorded_owner(address, allocation, known);
        Ownership::Owned { victim, presence: Presence::Recorded, evidence }
    }

    /// Who has the address by the record, with the evidence for it.
    pub(super) fn recorded_owner(
        address: IpAddr,
        allocation: &Allocation,
        known: Reference,
    ) -> (Victim, Evidence) {
        let (victim, whose) = match allocation {
            Allocation::Pod { owner, .. } => {
                let key = owner.key.clone();
                let victim = Victim::Pod { key, node: owner.node.clone() };
                let whose = victim.to_string();
                (victim, whose)
            }
            Allocation::Node { node, kind } => {
                (Victim::Node(node.clone()), format!("node {node} ({kind})"))
            }
            Allocation::Service(service) => {
                (Victim::Service(service.clone()), format!("service {service}"))
            }
            Allocation::Other(handle) => (Victim::Nobody, format!("handle {handle}")),
        };
        let text = format!("IPAM block {} gives {address} to {whose}", known.block).into();
        (victim, Evidence { at: known.times.asked, witness: Witness::Ipam, text })
    }

    /// Whether the address may have changed hands since the route ended, for all that is known of its record:
    /// what the record says was asked for when the route had been gone for longer than a question takes, or,
    /// of the route that a pod began with, was not heard while it stood.
    pub(super) fn is_too_late(&self, address: IpAddr, record: &Record<'_>, is_first: bool) -> bool {
        let (Record::Taken { known, .. } | Record::Free { known, .. }) = record else {
            return false;
        };
        let Some(ended) = self.over else { return false };
        let answers = &self.facts.answers;
        let first = answers.recorded_since(known.block, address, known.times, BootTime::ZERO);
        if is_first { first.heard > ended } else { self.is_late(first.asked) }
    }

    fn is_late(&self, asked: BootTime) -> bool {
        self.over.is_some_and(|ended| asked > ended.after(ROUND_TRIP))
    }

    fn answered(
        &mut self,
        address: IpAddr,
        known: &Known<Vec<Claimant>>,
        again: BootTime,
        since: BootTime,
        unrecorded: bool,
        is_self: IsSelf<'_>,
    ) -> Ownership {
        let claimants = match &known.said {
            Ok(claimants) => claimants,
            Err(why) => return Ownership::Unanswered { why: why.clone(), again },
        };
        if self.is_late(known.times.asked) {
            return Ownership::Unowned { claimed: true, unrecorded };
        }
        let mut others =
            claimants.iter().filter(|claimant| !is_self(&claimant.key, Some(&claimant.node)));
        let Some(owner) = others.next() else {
            return Ownership::Unowned { claimed: !claimants.is_empty(), unrecorded };
        };
        let presence = self.presence(owner);
        // Of an owner that is on its way out, or whose interface is gone, the API server may just
        // not have heard yet: it has to say so again when the news had time to arrive.
        let confirm = since.after(self.facts.settings.settle);
        if presence == Presence::Unsure && known.times.asked < confirm {
            if self.now < confirm {
                return Ownership::Pending(confirm);
            }
            self.asks.insert(Question::Claimants(address));
            return Ownership::Pending(self.now.after(self.facts.settings.answer));
        }
        let text = format!(
            "asked, the API server names pod {} on node {} for {address}",
            owner.key, owner.node
        );
        Ownership::Owned {
            victim: if owner.host_network {
                Victim::Node(owner.node.clone())
            } else {
                Victim::Pod { key: owner.key.clone(), node: Some(owner.node.clone()) }
            },
            presence,
            evidence: Evidence { at: known.times.asked, witness: Witness::Api, text: text.into() },
        }
    }

    /// Whether a claimant is there: a pod of this node whose interface is gone may just not be known
    /// to have ended.
    fn presence(&self, owner: &Claimant) -> Presence {
        let elsewhere = owner.host_network || owner.node != self.facts.settings.node;
        if elsewhere && !owner.terminating { Presence::Elsewhere } else { Presence::Unsure }
    }
}

/// Whether the record names the asker, or the asker as who takes over in a live migration.
pub(super) fn names(allocation: &Allocation, is_self: IsSelf<'_>) -> bool {
    let Allocation::Pod { owner, heir } = allocation else { return false };
    [Some(owner), heir.as_ref()]
        .into_iter()
        .flatten()
        .any(|PodHolder { key, node }| is_self(key, node.as_ref()))
}

/// The addresses at which clouds hand out a node's credentials: of AWS, Azure, Google, `OpenStack` and
/// others, and of AWS by IPv6.
fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets() == [169, 254, 169, 254],
        IpAddr::V6(address) => address.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
    }
}
