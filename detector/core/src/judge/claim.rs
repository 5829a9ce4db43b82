//! A claim that is no route, or not yet: what a pod or a Service says in the API of an address that
//! is somebody else's.
//!
//! Where the kernel has a route that follows from the claim, the route is judged and the claim is
//! not: one diversion is one finding. What is left are attempts that a switch or a missing feature
//! stopped, diversions that need no route (decision table of Calico's behaviour, rows 28 and 29),
//! and denials.

use std::net::IpAddr;

use super::ownership::{Ownership, Presence, Record};
use super::words::{attacker_of, victim_of};
use super::workload::is_here;
use super::{Doubt, Judge, Verdict, is_calicos};
use crate::facts::answers::REVIEW;
use crate::facts::pods::LocalPod;
use crate::finding::{
    Attacker, Certainty, Charge, Claim, Claimant, Effect, Evidence, Extent, Field, Means, Reach,
    Scope, Severity, Victim, Witness,
};
use crate::observation::Sense;
use crate::policy::{Feature, Permission};
use crate::route::{Prefix, RouteKind};
use crate::time::BootTime;
use crate::workload::{NodeName, PodKey};

/// Ports on which a node's own components listen: sshd, BGP, etcd, Felix' and Typha's health and
/// metrics, Typha, the API server, kubelet, kube-proxy, controller manager and scheduler. A Service
/// may well have a node's address as its external one (many small clusters do), but not with these.
const PORTS_OF_NODES: [u16; 16] = [
    22, 179, 2379, 2380, 5473, 6443, 9091, 9093, 9098, 9099, 10248, 10249, 10250, 10256, 10257,
    10259,
];

impl<'a> Judge<'a> {
    /// A claim, and since when it is made; `None` where nobody makes it any more.
    pub(super) fn claim(&mut self, claim: &Claim) -> Option<(Verdict, BootTime)> {
        match &claim.claimant {
            Claimant::Pod(key) => {
                let pod = self.facts.pods.get(key)?;
                let since = *pod.claims.get(&(claim.field, claim.prefix))?;
                // Felix has no endpoint for such a pod.
                let verdict = if pod.can_own() {
                    self.pod_claim(claim, pod, since)
                } else {
                    Verdict::Irrelevant
                };
                Some((verdict, since))
            }
            Claimant::Service(_) => self.service_claim(claim),
        }
    }

    fn pod_claim(&mut self, claim: &Claim, pod: &'a LocalPod, since: BootTime) -> Verdict {
        if self.is_routed(pod, claim.prefix) {
            return Verdict::Irrelevant;
        }
        match (claim.field, claim.prefix.host_address()) {
            (Field::FloatingIps, Some(address)) => self.floating(claim, pod, address, since),
            (Field::Status | Field::PodIps, Some(address)) => {
                self.forged(claim, pod, address, since)
            }
            (Field::PodIps, None) => self.prefix_claim(claim, pod, since),
            (Field::SourcePrefixes, _) => self.sources(claim, pod, since),
            _ => Verdict::Irrelevant,
        }
    }

    /// Annotation `floatingIPs` without its route.
    fn floating(
        &mut self,
        claim: &Claim,
        pod: &'a LocalPod,
        address: IpAddr,
        since: BootTime,
    ) -> Verdict {
        // A family that the pod has no address of is passed over (`ConvertV2ToV1IPNAT`).
        let known = [&pod.first_addresses, &pod.pod.addresses, &pod.pod.annotated_addresses];
        if !known.into_iter().flatten().any(|own| own.is_ipv4() == address.is_ipv4()) {
            return Verdict::Irrelevant;
        }
        let facts = self.facts;
        let is_self = |key: &PodKey, node: Option<&NodeName>| is_here(facts, key, node, pod);
        let permission = facts.allow.permission(address, &pod.pod);
        // Whoever tries to write the route acts on the annotation, whatever the settings say.
        let refused = self.refused(claim.prefix, pod, since);
        let tried = refused
            .as_ref()
            .is_some_and(|(_, refusal)| refusal.writer.process.as_deref().is_some_and(is_calicos));
        let acts = self.felix_acts() || tried;
        let refused: Vec<Evidence> = refused.into_iter().map(|(evidence, _)| evidence).collect();
        // What is seen to be translated is, whatever the settings say.
        let proof = self.translated_to(address, pod);
        let seen = !proof.is_empty();
        match self.ownership(address, since, &is_self) {
            Ownership::Owned { victim, evidence, presence } => {
                let owner =
                    self.attached_owner(address).filter(|owner| owner.pod.key != pod.pod.key);
                // Felix up to v3.27 finds the owner's route there and adds none; later ones leave
                // the route of the newest interface. The translation is programmed all the same.
                let hidden = seen || (acts && owner.is_some());
                let settle = facts.settings.settle;
                let patience = if hidden { settle / 4 } else { settle };
                if presence == Presence::Unsure || self.now < since.after(patience) {
                    return self.until(since.after(if hidden { patience } else { settle }));
                }
                let (certainty, severity, means) = match (hidden, acts) {
                    (true, _) => (Certainty::Hijack, Severity::Critical, Means::Dnat),
                    (false, true) => (Certainty::Attempt, Severity::High, Means::Claim),
                    (false, false) => (Certainty::Attempt, Severity::Medium, Means::Claim),
                };
                let follows = match (hidden, acts) {
                    (true, _) => {
                        "Felix translates the address to the pod's own on this node, which needs \
                         no route"
                    }
                    (false, true) => "no route follows from it as yet",
                    (false, false) => "Felix does not act on it while floating IPs are off",
                };
                let reason = format!(
                    "pod {} claims {address} as its floating IP, which belongs to {victim}: \
                     {follows}",
                    pod.pod.key
                );
                let mut charge = self.pod_charge(claim, pod, since, victim, reason);
                (charge.certainty, charge.severity, charge.means) = (certainty, severity, means);
                charge.evidence.extend(proof);
                charge.evidence.extend(refused);
                if let Some(owner) = owner {
                    charge.evidence.push(self.first_address_evidence(owner, address));
                }
                charge.evidence.push(evidence);
                self.add_feature(&mut charge);
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
            Ownership::Own(again) => Verdict::Entitled(Some(again)),
            Ownership::Pending(until) => self.until(until),
            Ownership::Unanswered { again, .. } => self.until(again),
            Ownership::Unowned { .. } if matches!(permission, Permission::Allowed(_)) => {
                Verdict::Entitled(Some(self.review()))
            }
            Ownership::Unowned { .. } => {
                if self.now < since.after(facts.settings.settle) {
                    return self.until(since.after(facts.settings.settle));
                }
                let (victim, severity) = match permission {
                    Permission::Reserved(entry) => (
                        Victim::Allowance {
                            namespace: entry.namespace.clone(),
                            service_account: entry.service_account.clone(),
                        },
                        Severity::Medium,
                    ),
                    _ => (Victim::Nobody, Severity::Low),
                };
                let reason = format!(
                    "pod {} claims {address} as its floating IP, which no allow-list entry lets it \
                     have",
                    pod.pod.key
                );
                let mut charge = self.pod_charge(claim, pod, since, victim, reason);
                charge.extent = Extent::Squat;
                charge.severity = severity;
                if seen {
                    (charge.certainty, charge.means) = (Certainty::Hijack, Means::Dnat);
                }
                charge.evidence.extend(proof);
                self.add_feature(&mut charge);
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
        }
    }

    /// Whether Felix acts on floating IP annotations here, as far as is known.
    fn felix_acts(&self) -> bool {
        self.facts.felix.heeds_switch == Some(false)
            || matches!(self.facts.feature, Feature::Enabled { .. })
    }

    /// An address in the status, or in the annotation of the CNI plugin, that the pod did not have
    /// at first and that is somebody else's.
    fn forged(
        &mut self,
        claim: &Claim,
        pod: &'a LocalPod,
        address: IpAddr,
        since: BootTime,
    ) -> Verdict {
        // The pod may have ended, and its address gone to another, without our hearing of it.
        if self.facts.blind.contains_key(&Sense::Pods) {
            return Verdict::Doubt(Doubt { until: None });
        }
        let (victim, evidence, again) = match self.strong_owner(address, since, pod) {
            Strong::Owner(victim, evidence) => (victim, evidence, self.review()),
            Strong::Nobody(again) => return Verdict::Entitled(Some(again)),
            Strong::Pending(until) => return self.until(until),
        };
        // IPAM gives an address to the next pod before we hear that this one let it go: of a pod with
        // a status little later, of one that never had any when its end is told.
        let timing = &self.facts.settings;
        let patience =
            if claim.field == Field::PodIps { timing.newborn * 3 } else { timing.settle * 2 };
        let read = if evidence.witness == Witness::Ipam { evidence.at } else { since };
        let until = since.max(read).after(patience);
        if self.now < until {
            return self.until(until);
        }
        let says = match claim.field {
            Field::Status => "status",
            _ => "podIPs annotation",
        };
        let reason = format!(
            "the {says} of pod {} was changed to {address}, which belongs to {victim}; no route \
             follows from it as yet",
            pod.pod.key
        );
        let mut charge = self.pod_charge(claim, pod, since, victim, reason);
        charge.severity = Severity::Medium;
        charge.evidence.push(evidence);
        if claim.field == Field::Status {
            charge.evidence.push(self.forged_status(pod, address));
        }
        charge.evidence.extend(self.refused(claim.prefix, pod, since).map(|(tried, _)| tried));
        Verdict::Charged(Box::new(charge), Some(again))
    }

    /// A prefix where addresses belong.
    fn prefix_claim(&mut self, claim: &Claim, pod: &LocalPod, since: BootTime) -> Verdict {
        let until = since.after(self.facts.settings.settle);
        if self.now < until {
            return self.until(until);
        }
        let prefix = claim.prefix;
        let reason = format!(
            "the podIPs annotation of pod {} names the whole prefix {prefix}: while the pod's \
             status is empty, Felix would route all of it to the pod",
            pod.pod.key
        );
        let victim = Victim::Everyone(prefix);
        let mut charge = self.pod_charge(claim, pod, since, victim, reason);
        charge.extent = Extent::Prefix;
        charge.severity = Severity::High;
        Verdict::Charged(Box::new(charge), None)
    }

    /// Annotation `allowedSourcePrefixes`.
    fn sources(&mut self, claim: &Claim, pod: &'a LocalPod, since: BootTime) -> Verdict {
        match (self.facts.felix.spoofing, self.facts.felix.heeds_switch) {
            // Versions that do not heed the feature's switch do not know this annotation either: it
            // came with v3.23.
            (None, _) | (_, Some(false)) => Verdict::Irrelevant,
            (Some(true), _) => self.spoofing(claim, pod, since),
            (Some(false), _) => self.dropped(claim, pod, since),
        }
    }

    /// Felix lets the pod send from the prefix.
    fn spoofing(&mut self, claim: &Claim, pod: &'a LocalPod, since: BootTime) -> Verdict {
        let prefix = claim.prefix;
        if self.facts.allow.covers(prefix, &pod.pod) {
            return Verdict::Entitled(None);
        }
        let (victim, evidence) = match prefix.host_address() {
            Some(address) if pod.had_first(address) => return Verdict::Irrelevant,
            Some(address) => match self.strong_owner(address, since, pod) {
                Strong::Owner(victim, evidence) => (victim, Some(evidence)),
                Strong::Nobody(again) => return Verdict::Entitled(Some(again)),
                Strong::Pending(until) => return self.until(until),
            },
            None => match self.anybody_within(prefix, pod) {
                Some((victim, text)) => {
                    let evidence = self.evidence(Witness::Api, text);
                    (if narrow(prefix) { victim } else { Victim::Everyone(prefix) }, Some(evidence))
                }
                None => return Verdict::Irrelevant,
            },
        };
        let until = since.after(self.facts.settings.settle);
        if self.now < until {
            return self.until(until);
        }
        let reason = format!(
            "pod {} may send from {prefix}, in which there are addresses of {victim}, and no \
             allow-list entry lets it",
            pod.pod.key
        );
        let mut charge = self.pod_charge(claim, pod, since, victim, reason);
        charge.severity = if prefix.is_host() { Severity::Medium } else { Severity::Low };
        if !prefix.is_host() {
            charge.extent = Extent::Prefix;
        }
        charge.evidence.extend(evidence);
        Verdict::Charged(Box::new(charge), Some(self.review()))
    }

    /// Somebody known who has an address in the prefix, other than the pod itself.
    fn anybody_within(&self, prefix: Prefix, pod: &LocalPod) -> Option<(Victim, String)> {
        if let Some(owner) = self.attached_owner_within(prefix, Some(&pod.pod.key)) {
            return Some((victim_of(owner), format!("pod {} runs in {prefix}", owner.pod.key)));
        }
        if let Some(node) = self.facts.nodes.within(prefix) {
            let text = format!("an address of node {node} is in {prefix}");
            return Some((Victim::Node(node.clone()), text));
        }
        let service = self.facts.services.within(prefix)?;
        let text = format!("the cluster address of service {service} is in {prefix}");
        Some((Victim::Service(service.clone()), text))
    }

    /// Felix takes a pod with this annotation for missing while spoofing is disabled, and takes its
    /// routes away (felix/calc/validation_filter.go).
    fn dropped(&mut self, claim: &Claim, pod: &LocalPod, since: BootTime) -> Verdict {
        let until = since.after(self.facts.settings.settle);
        if self.now < until {
            return self.until(until);
        }
        let up = self.facts.is_attached(pod);
        let routed = |address: &IpAddr| self.is_routed(pod, Prefix::host(*address));
        let cut = up && !pod.first_addresses.is_empty() && !pod.first_addresses.iter().any(routed);
        let so = if cut { "took its routes away" } else { "will take its routes away" };
        let reason = format!(
            "pod {} has annotation allowedSourcePrefixes while spoofing is disabled, so Felix \
             takes it for missing and {so}",
            pod.pod.key
        );
        let mut charge = self.pod_charge(claim, pod, since, victim_of(pod), reason);
        // Whoever may write the annotation did it; the pod itself loses.
        charge.attacker = Attacker::default();
        charge.effect = Effect::Blackhole;
        (charge.certainty, charge.severity) = if cut {
            (Certainty::Hijack, Severity::High)
        } else {
            (Certainty::Attempt, Severity::Medium)
        };
        let text = "workloadSourceSpoofing is Disabled, or not set, which is the same".to_owned();
        charge.evidence.push(self.evidence(Witness::Api, text));
        Verdict::Charged(Box::new(charge), None)
    }

    /// An address that a Service says is its own (CVE-2020-8554). The node that has the victim says
    /// so, and no other.
    fn service_claim(&mut self, claim: &Claim) -> Option<(Verdict, BootTime)> {
        let Claimant::Service(key) = &claim.claimant else { return None };
        let address = claim.prefix.host_address()?;
        let claims = self.facts.services.claimants(address);
        claims.iter().find(|(claimant, field)| claimant == key && *field == claim.field)?;
        let since = self.facts.services.since(key)?;
        // Where IPVS makes it an address of the node, that route is judged.
        let local = self.facts.kernel.fib.get(claim.prefix).iter();
        if local.into_iter().any(|entry| entry.route.kind == RouteKind::Local)
            && self.attached_owner(address).is_some()
        {
            return Some((Verdict::Irrelevant, since));
        }
        let (victim, evidence) = if let Some(owner) = self.attached_owner(address) {
            (victim_of(owner), self.first_address_evidence(owner, address))
        } else if self.facts.nodes.owner(address) == Some(&self.facts.settings.node) {
            let service = self.facts.services.get(key)?;
            let port = service.ports.iter().find(|port| PORTS_OF_NODES.contains(port));
            let Some(port) = port else { return Some((Verdict::Irrelevant, since)) };
            let text = format!("port {port} of {address} is the node's own");
            (Victim::Node(self.facts.settings.node.clone()), self.evidence(Witness::Api, text))
        } else {
            return Some((Verdict::Irrelevant, since));
        };
        let until = since.after(self.facts.settings.settle);
        if self.now < until {
            return Some((self.until(until), since));
        }
        let field = claim.field.as_str();
        let reason = format!(
            "service {key} has {address} in its {field}, which belongs to {victim}: every node \
             translates traffic for it to the service's pods"
        );
        let mut charge = self.claim_charge(claim, since, victim, reason);
        charge.certainty = Certainty::Hijack;
        charge.severity = Severity::High;
        charge.attacker.service = Some(key.clone());
        charge.reach = Reach {
            scope: Scope::Cluster,
            why: "every node translates a Service's addresses".into(),
        };
        charge.evidence.push(evidence);
        Some((Verdict::Charged(Box::new(charge), None), since))
    }

    /// Who has the address by evidence that no tenant can write, other than the pod.
    fn strong_owner(&mut self, address: IpAddr, since: BootTime, pod: &LocalPod) -> Strong {
        if let Some((victim, text)) = self.given(address) {
            return Strong::Owner(victim, self.evidence(Witness::Api, text));
        }
        let facts = self.facts;
        let is_self = |key: &PodKey, node: Option<&NodeName>| is_here(facts, key, node, pod);
        match self.record(address, since, REVIEW, &is_self) {
            Record::Taken { allocation, again, .. }
                if super::ownership::names(allocation, &is_self) =>
            {
                return Strong::Nobody(again);
            }
            Record::Taken { allocation, known, .. } => {
                let (victim, evidence) = Self::recorded_owner(address, allocation, known);
                return Strong::Owner(victim, evidence);
            }
            Record::Pending(until) => return Strong::Pending(until),
            Record::Absent | Record::Unreadable { .. } | Record::Free { .. } => {}
        }
        match self.attached_owner(address).filter(|owner| owner.pod.key != pod.pod.key) {
            Some(owner) => {
                Strong::Owner(victim_of(owner), self.first_address_evidence(owner, address))
            }
            None => Strong::Nobody(self.review()),
        }
    }

    fn until(&self, until: BootTime) -> Verdict {
        Verdict::Doubt(Doubt { until: Some(until.max(self.now)) })
    }

    fn pod_charge(
        &self,
        claim: &Claim,
        pod: &LocalPod,
        since: BootTime,
        victim: Victim,
        reason: String,
    ) -> Charge {
        let mut charge = self.claim_charge(claim, since, victim, reason);
        charge.attacker = attacker_of(pod);
        charge
    }

    fn claim_charge(
        &self,
        claim: &Claim,
        since: BootTime,
        victim: Victim,
        reason: String,
    ) -> Charge {
        let text =
            format!("{} has {} in its {}", claim.claimant, claim.prefix, claim.field.as_str());
        Charge {
            certainty: Certainty::Attempt,
            severity: Severity::Medium,
            means: Means::Claim,
            effect: Effect::Intercept,
            extent: Extent::Exact,
            table: None,
            rule: None,
            attacker: Attacker::default(),
            victim,
            reason: reason.into(),
            reach: Reach { scope: Scope::Node, why: "no route follows from it".into() },
            evidence: vec![Evidence { at: since, witness: Witness::Api, text: text.into() }],
            missing: self.missing(),
            traffic: None,
            writer: None,
        }
    }
}

/// What strong evidence says of an address.
enum Strong {
    Owner(Victim, Evidence),
    /// Nobody else's, or nobody's; looked at again at the given time.
    Nobody(BootTime),
    Pending(BootTime),
}

/// Prefixes of few addresses are named by whom they hit.
pub(super) fn narrow(prefix: Prefix) -> bool {
    prefix.length() >= if prefix.is_ipv4() { 30 } else { 126 }
}
