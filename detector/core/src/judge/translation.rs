//! A translation of destinations that needs no route: by a rule of netfilter, or as connections show.
//!
//! Clusters are full of translations: those of Services, of host ports, of floating IPs. Wrong is one
//! that takes the address of a pod away from it (decision table of Calico's behaviour, row 29).

use std::net::IpAddr;

use super::claim::narrow;
use super::ownership::{Ownership, Presence};
use super::words::{attacker_of, victim_of};
use super::workload::is_here;
use super::{Doubt, Judge, Verdict};
use crate::facts::pods::LocalPod;
use crate::facts::translations::CONNECTION_SPEAKS;
use crate::finding::{
    Attacker, Certainty, Charge, Effect, Evidence, Extent, Means, Reach, Scope, Severity,
    Translation, Victim, Witness,
};
use crate::time::BootTime;
use crate::workload::{NodeName, PodKey};

impl<'a> Judge<'a> {
    /// A translation, and since when it is made; `None` where nothing speaks for it any more.
    pub(super) fn translation(&mut self, translation: &Translation) -> Option<(Verdict, BootTime)> {
        let facts = self.facts;
        let connected = facts.translations.connected(translation);
        let connected = connected.filter(|known| self.now < known.last.after(CONNECTION_SPEAKS));
        let ruled = facts.translations.rules(translation).map(|(_, since)| since).min();
        let speaks = connected.map(|known| known.first);
        let since = [ruled, speaks].into_iter().flatten().min()?;
        let pod = self.pod_at(translation.to);
        let verdict = match translation.prefix.host_address() {
            Some(address) => self.translated(translation, address, pod, since),
            None => self.translated_prefix(translation, pod, since),
        };
        // A connection's word ends by itself.
        let again = connected.map(|known| known.last.after(CONNECTION_SPEAKS));
        let verdict = match (verdict, again) {
            (Verdict::Charged(charge, review), Some(again)) => {
                Verdict::Charged(charge, Some(review.map_or(again, |review| review.min(again))))
            }
            (Verdict::Irrelevant, Some(again)) => Verdict::Entitled(Some(again)),
            (verdict, _) => verdict,
        };
        Some((verdict, since))
    }

    /// The pod of this node that has the address, and had it from the first.
    fn pod_at(&self, address: IpAddr) -> Option<&'a LocalPod> {
        let pods = self.facts.pods.with_address(address);
        pods.into_iter().find(|pod| pod.can_own() && pod.had_first(address))
    }

    fn translated(
        &mut self,
        translation: &Translation,
        address: IpAddr,
        pod: Option<&'a LocalPod>,
        since: BootTime,
    ) -> Verdict {
        let facts = self.facts;
        // Those of Services and of this node's ports are what clusters are made of; what a Service
        // claims without right is judged as its claim. Where a node's own programs are to see what is
        // meant for the metadata service, it is translated to the node.
        let usual = match self.given(address) {
            Some((Victim::Node(node), _)) => node == facts.settings.node || pod.is_none(),
            Some((Victim::Metadata, _)) => pod.is_none(),
            Some(_) => true,
            None => false,
        };
        if usual
            || !facts.services.claimants(address).is_empty()
            || translation.to.is_loopback()
            || address == translation.to
            // One diversion is one finding: the claim or its route is judged, with this as evidence.
            || pod.is_some_and(|pod| pod.pod.floating_addresses.contains(&address))
        {
            return Verdict::Irrelevant;
        }
        let is_self = |key: &PodKey, node: Option<&NodeName>| {
            pod.is_some_and(|pod| is_here(facts, key, node, pod))
        };
        match self.ownership_claimed(address, since, true, &is_self) {
            Ownership::Owned { victim, evidence, presence } => {
                // A Service or a node that has ended may have had it, and the rule be late to go.
                let claimed = facts.translations.claimed(address);
                let patience = match presence {
                    Presence::Attached | Presence::Recorded if claimed.is_none() => {
                        facts.settings.settle / 4
                    }
                    _ => facts.settings.settle,
                };
                let until = claimed.map_or(since, |then| then.max(since)).after(patience);
                if self.now < until {
                    return Verdict::Doubt(Doubt { until: Some(until) });
                }
                let charge = self.translation_charge(translation, pod, victim, evidence);
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
            Ownership::Own(_) | Ownership::Unowned { .. } => Verdict::Entitled(Some(self.review())),
        }
    }

    /// A rule for many destinations: wrong where pods of this node are among them.
    fn translated_prefix(
        &mut self,
        translation: &Translation,
        pod: Option<&'a LocalPod>,
        since: BootTime,
    ) -> Verdict {
        let to = pod.map(|pod| &pod.pod.key);
        let Some(owner) = self.attached_owner_within(translation.prefix, to) else {
            return Verdict::Irrelevant;
        };
        let until = since.after(self.facts.settings.settle / 4);
        if self.now < until {
            return Verdict::Doubt(Doubt { until: Some(until) });
        }
        let text = format!("pod {} runs in {}", owner.pod.key, translation.prefix);
        let evidence = self.evidence(Witness::Api, text);
        let victim = if narrow(translation.prefix) {
            victim_of(owner)
        } else {
            Victim::Everyone(translation.prefix)
        };
        let mut charge = self.translation_charge(translation, pod, victim, evidence);
        charge.extent = Extent::Prefix;
        Verdict::Charged(Box::new(charge), Some(self.review()))
    }

    fn translation_charge(
        &self,
        translation: &Translation,
        pod: Option<&LocalPod>,
        victim: Victim,
        evidence: Evidence,
    ) -> Charge {
        let who = match pod {
            Some(pod) => {
                format!("pod {} (service account {})", pod.pod.key, pod.pod.service_account)
            }
            None => translation.to.to_string(),
        };
        let reason = format!(
            "{who} receives traffic for {}, which belongs to {victim}: its destination is \
             translated to {} on this node",
            words_of(translation),
            translation.to
        );
        let mut all = self.translation_evidence(translation);
        all.push(evidence);
        Charge {
            certainty: Certainty::Hijack,
            severity: Severity::Critical,
            means: Means::Dnat,
            effect: Effect::Intercept,
            extent: Extent::Exact,
            table: None,
            rule: None,
            attacker: match pod {
                Some(pod) => Attacker { interface: self.interface_of(pod), ..attacker_of(pod) },
                None => Attacker {
                    gateway: Some(translation.to),
                    node: self.facts.nodes.owner(translation.to).cloned(),
                    ..Attacker::default()
                },
            },
            victim,
            reason: reason.into(),
            reach: Reach {
                scope: Scope::Node,
                why: "destinations are translated on this node only".into(),
            },
            evidence: all,
            missing: self.missing(),
            traffic: None,
            writer: None,
        }
    }

    /// What rules and connections say of a translation.
    pub(super) fn translation_evidence(&self, translation: &Translation) -> Vec<Evidence> {
        let rules = self.facts.translations.rules(translation).map(|(rule, since)| Evidence {
            at: since,
            witness: Witness::Rules,
            text: format!(
                "{} translates {} to {}",
                rule.origin,
                words_of(translation),
                translation.to
            )
            .into(),
        });
        let mut all: Vec<Evidence> = rules.collect();
        if let Some(known) = self.facts.translations.connected(translation)
            && let Some(flow) = known.flows.first()
        {
            let port = flow.port.map(|port| format!(" port {port}")).unwrap_or_default();
            let text = format!(
                "connection tracking: {} of {} to {}{port} is answered by {}",
                flow.protocol,
                flow.client,
                words_of(translation),
                translation.to
            );
            let at = known.first;
            all.push(Evidence { at, witness: Witness::Connections, text: text.into() });
        }
        all
    }

    /// The proof that destinations `address` are translated to the pod: what rules and connections
    /// say. Empty where nothing shows it.
    pub(super) fn translated_to(&self, address: IpAddr, pod: &LocalPod) -> Vec<Evidence> {
        let all = self.facts.translations.of(address).into_iter();
        let to_pod = all.filter(|translation| pod.had_first(translation.to));
        to_pod.flat_map(|translation| self.translation_evidence(&translation)).collect()
    }
}

/// The destinations in words.
fn words_of(translation: &Translation) -> String {
    match translation.prefix.host_address() {
        Some(address) => address.to_string(),
        None => translation.prefix.to_string(),
    }
}
