//! Whose an address is.

use std::net::IpAddr;

use super::Judge;
use super::words::victim_of;
use crate::facts::answers::{Claimant, Known, Reading};
use crate::facts::pods::LocalPod;
use crate::finding::{Evidence, Victim, Witness};
use crate::route::Prefix;
use crate::time::BootTime;
use crate::workload::{NodeName, PodKey};

/// What is known of an address's owner.
pub(super) enum Ownership {
    /// It is somebody's.
    Owned { victim: Victim, presence: Presence, evidence: Evidence },
    /// It is nobody else's, as far as the whole cluster tells.
    Unowned {
        /// Whether the pod in question itself is said to have it.
        claimed: bool,
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
    /// A node, or a pod of another node that is not on its way out.
    Elsewhere,
    /// A pod that may just not be known to have ended.
    Unsure,
}

impl<'a> Judge<'a> {
    /// The pod of this node that has had the address from the first and whose interface stands.
    pub(super) fn attached_owner(&self, address: IpAddr) -> Option<&'a LocalPod> {
        let owns = |pod: &&LocalPod| pod.can_own() && pod.had_first(address);
        self.facts.pods.with_address(address).filter(owns).find(|pod| self.facts.is_attached(pod))
    }

    /// Some pod of this node as above with an address in the prefix: the first by name, so that
    /// the same facts give the same answer.
    pub(super) fn attached_owner_within(&self, prefix: Prefix) -> Option<&'a LocalPod> {
        let owns = |pod: &&LocalPod| {
            pod.can_own()
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
        is_self: &dyn Fn(&PodKey, &NodeName) -> bool,
    ) -> Ownership {
        let others = |pod: &&LocalPod| {
            pod.can_own() && pod.had_first(address) && !is_self(&pod.pod.key, &pod.pod.node)
        };
        let here = self.facts.pods.with_address(address).filter(others);
        if let Some(pod) = here.into_iter().find(|pod| self.facts.is_attached(pod)) {
            // Of a pod that we heard of just now, the end may be on its way to us as well.
            let settled = pod.heard.after(self.facts.settings.settle);
            if self.now < settled {
                return Ownership::Pending(settled);
            }
            return Ownership::Owned {
                victim: victim_of(pod),
                presence: Presence::Attached,
                evidence: self.first_address_evidence(pod, address),
            };
        }
        if let Some(node) = self.facts.nodes.owner(address) {
            let text = format!("{address} is an address of node {node}").into();
            return Ownership::Owned {
                victim: Victim::Node(node.clone()),
                presence: Presence::Elsewhere,
                evidence: Evidence { at: self.now, witness: Witness::Api, text },
            };
        }
        let patience = self.facts.settings.answer;
        match self.facts.answers.read(address, since, self.now, patience) {
            Reading::Good(known, again) => self.answered(address, known, again, since, is_self),
            Reading::Stale(known) => {
                self.asks.push(address);
                self.answered(address, known, self.now.after(patience), since, is_self)
            }
            Reading::Asked(until) => Ownership::Pending(until),
            Reading::Unasked(from) if from <= self.now => {
                self.asks.push(address);
                Ownership::Pending(self.now.after(patience))
            }
            Reading::Unasked(from) => Ownership::Pending(from),
        }
    }

    /// When to look again at a verdict that rests on an answer.
    pub(super) fn review(&self) -> BootTime {
        self.now.after(crate::facts::answers::REVIEW)
    }

    fn answered(
        &mut self,
        address: IpAddr,
        known: &Known,
        again: BootTime,
        since: BootTime,
        is_self: &dyn Fn(&PodKey, &NodeName) -> bool,
    ) -> Ownership {
        let claimants = match &known.claimants {
            Ok(claimants) => claimants,
            Err(why) => return Ownership::Unanswered { why: why.clone(), again },
        };
        let mut others =
            claimants.iter().filter(|claimant| !is_self(&claimant.key, &claimant.node));
        let Some(owner) = others.next() else {
            return Ownership::Unowned { claimed: !claimants.is_empty() };
        };
        let presence = self.presence(owner);
        // Of an owner that is on its way out, or whose interface is gone, the API server may just
        // not have heard yet: it has to say so again when the news had time to arrive.
        let confirm = since.after(self.facts.settings.settle);
        if presence == Presence::Unsure && known.asked < confirm {
            if self.now < confirm {
                return Ownership::Pending(confirm);
            }
            self.asks.push(address);
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
                Victim::Pod { key: owner.key.clone(), node: owner.node.clone() }
            },
            presence,
            evidence: Evidence { at: known.asked, witness: Witness::Api, text: text.into() },
        }
    }

    /// Whether a claimant is there: a pod of this node whose interface is gone may just not be known
    /// to have ended.
    fn presence(&self, owner: &Claimant) -> Presence {
        let elsewhere = owner.host_network || owner.node != self.facts.settings.node;
        if elsewhere && !owner.terminating { Presence::Elsewhere } else { Presence::Unsure }
    }
}
