//! Packets that come out of a pod's interface and pretend to be another's.

use std::time::Duration;

use super::ownership::{Ownership, Presence};
use super::workload::is_behind;
use super::{Doubt, Judge, Verdict};
use crate::facts::Identity;
use crate::facts::links::KnownLink;
use crate::facts::packets::{APART, MANY};
use crate::facts::pods::LocalPod;
use crate::finding::{
    Certainty, Charge, Effect, Evidence, Extent, Means, Pretending, Reach, Scope, Severity, Target,
    Victim, Witness,
};
use crate::policy::{Feature, Permission};
use crate::route::Prefix;
use crate::time::BootTime;
use crate::traffic::{Pretence, Pretended};

/// How long after its last packet a pretence is over.
pub(crate) const QUIET: Duration = Duration::from_mins(1);

impl<'a> Judge<'a> {
    /// A pretence, and since when it goes on; `None` where it is over.
    pub(super) fn pretence(&mut self, key: &Pretending) -> Option<(Target, (Verdict, BootTime))> {
        let facts = self.facts;
        let seen = facts.packets.pretended(key)?;
        let over = seen.tally.last.after(QUIET);
        if self.now >= over {
            return None;
        }
        let link = facts.kernel.links.get(key.interface)?;
        let identity = facts.identity(link);
        let target = Target::Interface(link.first_name.clone());
        let pod = match identity {
            Identity::Pod(pod) => Some(pod),
            _ => None,
        };
        let verdict = match key.pretence {
            _ if matches!(identity, Identity::Uplink) => Verdict::Irrelevant,
            Pretence::Router => self.advertised(seen, link),
            _ if key.address == MANY => self.many(seen, link),
            _ => self.pretended(seen, link, pod),
        };
        // It ends by itself.
        let verdict = match verdict {
            Verdict::Charged(charge, review) => {
                Verdict::Charged(charge, Some(review.map_or(over, |review| review.min(over))))
            }
            Verdict::Irrelevant => Verdict::Entitled(Some(over)),
            Verdict::Entitled(review) => {
                Verdict::Entitled(Some(review.map_or(over, |review| review.min(over))))
            }
            verdict @ Verdict::Doubt(_) => verdict,
        };
        Some((target, (verdict, seen.tally.first)))
    }

    fn pretended(
        &mut self,
        seen: &Pretended,
        link: &KnownLink,
        pod: Option<&'a LocalPod>,
    ) -> Verdict {
        let facts = self.facts;
        let address = seen.address;
        let prefix = Prefix::host(address);
        // One diversion is one finding: who is handed an address's packets also answers them.
        if prefix.is_link_scoped() || pod.is_some_and(|pod| self.is_routed(pod, prefix)) {
            return Verdict::Irrelevant;
        }
        let may = pod.is_some_and(|pod| {
            let floats = pod.pod.floating_addresses.contains(&address)
                && !matches!(facts.feature, Feature::Disabled { .. })
                && matches!(facts.allow.permission(address, &pod.pod), Permission::Allowed(_));
            let asks =
                |asked: &Prefix| asked.covers(&prefix) && facts.allow.covers(*asked, &pod.pod);
            floats || pod.pod.source_prefixes.iter().any(asks)
        });
        if may {
            return Verdict::Irrelevant;
        }
        let is_self = is_behind(facts, link);
        let since = seen.tally.first;
        match self.ownership(address, since, &is_self) {
            Ownership::Owned { victim, evidence, presence } => {
                let until = since.after(facts.settings.settle);
                if presence != Presence::Attached && self.now < until {
                    return Verdict::Doubt(Doubt { until: Some(until) });
                }
                let charge = self.pretence_charge(seen, link, pod, victim, evidence);
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
            // What is nobody's hurts nobody that we know: a container within the pod, a virtual
            // machine's other address.
            Ownership::Own(_) | Ownership::Unowned { .. } => Verdict::Irrelevant,
        }
    }

    fn pretence_charge(
        &self,
        seen: &Pretended,
        link: &KnownLink,
        pod: Option<&LocalPod>,
        victim: Victim,
        evidence: Evidence,
    ) -> Charge {
        let address = seen.address;
        let (means, what) = match seen.pretence {
            Pretence::Source => (Means::Spoof, "sends packets from"),
            Pretence::Arp => (Means::Neighbour, "says by ARP that it has"),
            Pretence::Neighbour => (Means::Neighbour, "advertises itself as"),
            Pretence::Router => (Means::Neighbour, "advertises itself as a router from"),
        };
        // Felix drops what comes from another's address, unless the pod may ask for it.
        let asks = pod
            .is_some_and(|pod| pod.pod.source_prefixes.iter().any(|asked| asked.contains(address)));
        let passes =
            seen.pretence == Pretence::Source && asks && self.facts.felix.spoofing == Some(true);
        let (certainty, severity, end) = match (seen.pretence, passes) {
            (Pretence::Source, true) => (
                Certainty::Hijack,
                Severity::Critical,
                ": its allowedSourcePrefixes annotation asks for that, and Felix lets it",
            ),
            (Pretence::Source, false) => (Certainty::Attempt, Severity::High, ""),
            _ => (Certainty::Attempt, Severity::Medium, ""),
        };
        let reason = format!("{} {what} {address}, which belongs to {victim}{end}", self.who(link));
        let mut charge = self.packet_charge(seen, link, means, victim, reason);
        charge.certainty = certainty;
        charge.severity = severity;
        charge.evidence.push(evidence);
        if let Some(pod) = pod.filter(|_| asks) {
            let text = format!(
                "pod {} has annotation cni.projectcalico.org/allowedSourcePrefixes with a prefix of \
                 {address}",
                pod.pod.key
            );
            charge.evidence.push(self.evidence(Witness::Api, text));
        }
        charge
    }

    /// No pod is a router: hosts that heed it send what they send to the pod (CVE-2020-13597).
    fn advertised(&mut self, seen: &Pretended, link: &KnownLink) -> Verdict {
        let reason = format!(
            "{} says by router advertisement that it is a router: a node that heeds it sends its \
             IPv6 traffic there",
            self.who(link)
        );
        let here = Victim::Node(self.facts.settings.node.clone());
        let mut charge = self.packet_charge(seen, link, Means::Neighbour, here, reason);
        charge.extent = Extent::Prefix;
        Verdict::Charged(Box::new(charge), None)
    }

    /// More addresses than are kept apart, none of which is the pod's: nobody lives like that behind
    /// Calico, which drops such packets.
    fn many(&self, seen: &Pretended, link: &KnownLink) -> Verdict {
        let reason = format!(
            "{} sends from more than {APART} addresses that are not its own",
            self.who(link)
        );
        let mut charge = self.packet_charge(seen, link, Means::Spoof, Victim::Nobody, reason);
        charge.certainty = Certainty::Unproven;
        charge.extent = Extent::Squat;
        Verdict::Charged(Box::new(charge), None)
    }

    fn packet_charge(
        &self,
        seen: &Pretended,
        link: &KnownLink,
        means: Means,
        victim: Victim,
        reason: String,
    ) -> Charge {
        let to = seen.destination.map(|to| format!(" to {to}")).unwrap_or_default();
        let what = match seen.pretence {
            Pretence::Source => "packet",
            Pretence::Arp => "ARP message",
            Pretence::Neighbour => "neighbour advertisement",
            Pretence::Router => "router advertisement",
        };
        let text =
            format!("{what} from {}{to} came out of interface {}", seen.address, link.link.name);
        Charge {
            certainty: Certainty::Attempt,
            severity: Severity::Medium,
            means,
            effect: Effect::Intercept,
            extent: Extent::Exact,
            table: None,
            rule: None,
            attacker: self.attacker_behind(link),
            victim,
            reason: reason.into(),
            reach: Reach {
                scope: Scope::Unknown,
                why: "who believes the packets is not seen".into(),
            },
            evidence: vec![Evidence {
                at: seen.tally.first,
                witness: Witness::Packets,
                text: text.into(),
            }],
            missing: self.missing(),
            traffic: None,
            writer: None,
        }
    }
}
