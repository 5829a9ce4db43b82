//! A route to an interface that is not known to be a running pod's.

use std::net::IpAddr;

use super::ownership::{Ownership, Presence};
use super::words::victim_of;
use super::workload::is_behind;
use super::{Doubt, Judge, Leg, Verdict};
use crate::facts::Identity;
use crate::facts::links::KnownLink;
use crate::facts::pods::LocalPod;
use crate::finding::{Certainty, Effect, Extent, Severity, Victim};
use crate::observation::Sense;

impl Judge<'_> {
    /// An interface named like a pod's, with no pod to it or made anew under a running pod.
    pub(super) fn orphan(
        &mut self,
        leg: Leg<'_>,
        link: &KnownLink,
        address: IpAddr,
        identity: Identity<'_>,
    ) -> Verdict {
        if !self.facts.synced.contains(&Sense::Pods) {
            return self.unsynced(leg, link, address);
        }
        let contested = match identity {
            Identity::Contested(pod) => Some(pod),
            _ => None,
        };
        let is_self = is_behind(self.facts, link);
        // What a pod leaves behind goes with its sandbox, or when Felix' grace of 10 s is over. The
        // last listing may have been the first to lack it.
        let departed = self.facts.pods.departed(&link.first_name).max(self.facts.pods_listed);
        let leg = Leg { since: departed.map_or(leg.since, |then| then.max(leg.since)), ..leg };
        let owner = match contested {
            // Made anew under the pod's name: the pod's address is the pod's all the more.
            Some(pod) if pod.had_first(address) && pod.can_own() && !pod.pod.terminating => {
                // A pod that was made anew as well may be what we cannot see.
                if self.facts.blind.contains_key(&Sense::Pods) {
                    return Verdict::Doubt(Doubt { until: None });
                }
                if let Some(wait) = self.wait(leg, self.facts.settings.newborn * 3) {
                    return wait;
                }
                return self.remade(leg, link, pod, address);
            }
            _ => self.ownership(address, leg.since, &is_self),
        };
        match owner {
            Ownership::Owned { victim, evidence, presence } => {
                if presence != Presence::Attached
                    && let Some(wait) = self.wait(leg, self.facts.settings.settle)
                {
                    return wait;
                }
                self.taken(leg, link, None, address, victim, evidence)
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Own(again) => Verdict::Entitled(Some(again)),
            Ownership::Unowned { claimed: true, unrecorded: false } => {
                Verdict::Entitled(Some(self.review()))
            }
            _ if self.facts.blind.contains_key(&Sense::Pods) => {
                // A pod that we cannot see may well be there.
                Verdict::Doubt(Doubt { until: None })
            }
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
            Ownership::Unowned { .. } => {
                let patience = self.patience(address);
                if let Some(wait) = self.confirm(leg, address, patience) {
                    return wait;
                }
                let mut charge = self.charge(leg, Victim::Nobody, Effect::Intercept, Extent::Squat);
                charge.certainty = Certainty::Unproven;
                charge.severity = Severity::Low;
                charge.reason = format!(
                    "{address} is routed to interface {}, which is named like a pod's, but no pod \
                     of this node has that interface",
                    link.link.name
                )
                .into();
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
        }
    }

    /// The interface of a running pod was replaced by another of the same name.
    fn remade(&self, leg: Leg<'_>, link: &KnownLink, pod: &LocalPod, address: IpAddr) -> Verdict {
        let victim = victim_of(pod);
        let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Exact);
        charge.certainty = Certainty::Unproven;
        charge.severity = Severity::High;
        charge.reason = format!(
            "interface {} of pod {} was made anew while the pod ran on, and {address} now leads \
             there",
            link.link.name, pod.pod.key
        )
        .into();
        Verdict::Charged(Box::new(charge), None)
    }

    /// Before the pods of this node were ever listed, only the kernel can testify: a route that
    /// took the place of one to another pod's interface that still stands.
    fn unsynced(&self, leg: Leg<'_>, link: &KnownLink, address: IpAddr) -> Verdict {
        let started = self.facts.started.unwrap_or(self.now);
        let until = started
            .after(self.facts.settings.sync)
            .max(leg.since.after(self.facts.settings.settle));
        let displaced = leg
            .entry
            .displaced
            .and_then(|index| self.facts.kernel.links.standing(index))
            .filter(|other| other.first_name != link.first_name && other.link.up)
            .filter(|other| self.facts.settings.is_workload_name(&other.first_name));
        let Some(other) = displaced else { return Verdict::Doubt(Doubt { until: None }) };
        if self.now < until {
            return Verdict::Doubt(Doubt { until: Some(until) });
        }
        let mut charge = self.charge(leg, Victim::Nobody, Effect::Intercept, Extent::Exact);
        charge.severity = Severity::High;
        charge.reason = format!(
            "the route of {address} was moved from interface {}, which still stands, to {}; the \
             pods behind them are not known",
            other.link.name, link.link.name
        )
        .into();
        charge.missing.push("pods: never listed yet".into());
        Verdict::Charged(Box::new(charge), None)
    }

    /// An interface that a container may be behind, but not one of Calico's: wrong if it takes a
    /// pod's address.
    pub(super) fn stray(&mut self, leg: Leg<'_>, link: &KnownLink, address: IpAddr) -> Verdict {
        match self.ownership(address, leg.since, &|_, _| false) {
            Ownership::Owned {
                victim: Victim::Node(_) | Victim::Service(_) | Victim::Metadata,
                ..
            }
            | Ownership::Own(_)
            | Ownership::Unowned { .. }
            | Ownership::Unanswered { .. } => Verdict::Irrelevant,
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Owned { victim, evidence, presence } => {
                if presence != Presence::Attached
                    && let Some(wait) = self.wait(leg, self.facts.settings.settle)
                {
                    return wait;
                }
                self.taken(leg, link, None, address, victim, evidence)
            }
        }
    }
}
