//! A route that leads to a pod's interface, or to one that could be a pod's.

use std::net::IpAddr;
use std::time::Duration;

use super::ownership::{Ownership, Presence, Record, names};
use super::words::victim_of;
use super::{Doubt, Judge, Leg, Verdict};
use crate::facts::answers::{RARELY, REVIEW};
use crate::facts::links::KnownLink;
use crate::facts::pods::LocalPod;
use crate::facts::{Facts, Identity};
use crate::finding::{Certainty, Effect, Evidence, Extent, Severity, Victim, Witness};
use crate::observation::{Question, Sense};
use crate::policy::{Feature, Permission};
use crate::settings::Settings;
use crate::time::BootTime;
use crate::workload::{NodeName, PodKey};

impl Judge<'_> {
    pub(super) fn workload(
        &mut self,
        leg: Leg<'_>,
        link: &KnownLink,
        identity: Identity<'_>,
    ) -> Verdict {
        let Some(address) = leg.address() else {
            return match identity {
                Identity::Stray => Verdict::Irrelevant,
                _ => self.wide(leg, link),
            };
        };
        match identity {
            Identity::Pod(pod) if pod.had_first(address) => {
                self.own_address(leg, link, pod, address)
            }
            Identity::Pod(pod) if pod.established.is_some() => {
                self.foreign_address(leg, link, pod, address)
            }
            Identity::Pod(pod) => self.newborn(leg, link, pod, address),
            Identity::Contested(_) | Identity::Nobody => self.orphan(leg, link, address, identity),
            Identity::Stray => self.stray(leg, link, address),
            Identity::Uplink => Verdict::Irrelevant,
        }
    }

    /// Calico gives a pod single addresses only (decision table, row 7), so any wider prefix on a
    /// pod's interface takes what is others'.
    fn wide(&self, leg: Leg<'_>, link: &KnownLink) -> Verdict {
        let prefix = leg.entry.route.prefix;
        let rule_to = self
            .facts
            .kernel
            .rules_to(leg.entry.route.table)
            .filter_map(|rule| rule.to.and_then(|to| to.host_address()))
            .filter(|address| prefix.contains(*address))
            .find_map(|address| self.attached_owner(address));
        let behind = self.facts.pods.on_interface(&link.first_name).map(|pod| &pod.pod);
        let key = behind.map(|pod| &pod.key);
        let hit = rule_to.or_else(|| self.attached_owner_within(prefix, key));
        let victim = match hit {
            Some(pod) if rule_to.is_some() || prefix.length() >= narrow(prefix.is_ipv4()) => {
                victim_of(pod)
            }
            _ => Victim::Everyone(prefix),
        };
        // A pod that peers with BIRD (BGPPeer `localWorkloadSelector`) has prefixes behind it. By its
        // labels anybody could be one, so the allow-list has to say that it is.
        if matches!(victim, Victim::Everyone(_))
            && hit.is_none()
            && behind.is_some_and(|pod| self.facts.allow.covers(prefix, pod))
            && !self.facts.pools.touch(prefix)
            && self.facts.nodes.within(prefix).is_none()
            && self.facts.services.within(prefix).is_none()
        {
            return Verdict::Entitled(None);
        }
        let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Prefix);
        charge.severity = Severity::Critical;
        charge.reason = format!(
            "{} receives the whole prefix {prefix}: Calico routes single addresses to pods, never \
             prefixes",
            self.who(link)
        )
        .into();
        Verdict::Charged(Box::new(charge), None)
    }

    /// The address that the pod has shown from the first: right, unless IPAM gave it to somebody
    /// else, or another pod of the node had it before and is there.
    fn own_address(
        &mut self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: &LocalPod,
        address: IpAddr,
    ) -> Verdict {
        let facts = self.facts;
        let is_self = |key: &PodKey, node: Option<&NodeName>| is_here(facts, key, node, pod);
        // The allocation is older than the route, so a reading that is older than the route but
        // names the pod serves.
        let record = self.record(address, leg.since, RARELY, &is_self);
        // A full block gives an address to the next pod at once. While the route stood that a pod began with,
        // there was time for a reading: kubelet shows the pod's address long after that was made. Of a later
        // one, to a first address that was forged, it may be the first reading that shows whose it is.
        let is_first = pod.first_at.is_some_and(|shown| leg.since <= shown)
            && !self.has_another(link, address);
        let too_late = self.is_too_late(address, &record, is_first);
        let (unrecorded, again) = match record {
            _ if too_late => (false, None),
            Record::Taken { allocation, again, .. } if names(allocation, &is_self) => {
                return Verdict::Entitled(Some(again));
            }
            Record::Taken { allocation, known, .. } => {
                let (victim, evidence) = Self::recorded_owner(address, allocation, known);
                return self.taken(leg, link, Some(pod), address, victim, evidence);
            }
            Record::Free { again, .. } => (!self.may_bypass(pod, address), Some(again)),
            Record::Pending(until) => return Verdict::Doubt(Doubt { until: Some(until) }),
            Record::Unreadable { again, .. } => (false, Some(again)),
            Record::Absent => (false, None),
        };
        let earlier = |other: &&LocalPod| {
            other.pod.key != pod.pod.key
                && other.can_own()
                && other.had_first(address)
                && other.established < pod.established
                && self.facts.is_attached(other)
        };
        if let Some(owner) = self.facts.pods.with_address(address).find(earlier) {
            let since = leg.since.max(pod.established.unwrap_or_default());
            let until = since.after(self.facts.settings.settle);
            if self.now < until {
                return Verdict::Doubt(Doubt { until: Some(until) });
            }
            let victim = victim_of(owner);
            let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Exact);
            charge.severity = Severity::Critical;
            charge.reason = format!(
                "pod {} says that {address} is its own, but pod {} had it before and still runs \
                 here",
                pod.pod.key, owner.pod.key
            )
            .into();
            charge.evidence.push(self.first_address_evidence(owner, address));
            return Verdict::Charged(Box::new(charge), again);
        }
        if let Some((victim, text)) = self.given(address) {
            let evidence = self.evidence(Witness::Api, text);
            return self.taken(leg, link, Some(pod), address, victim, evidence);
        }
        if too_late {
            return Verdict::Irrelevant;
        }
        if unrecorded {
            if let Some(wait) = self.confirm(leg, address, self.patience(address)) {
                return wait;
            }
            return self.unrecorded(leg, link, pod, address);
        }
        Verdict::Entitled(again)
    }

    /// Whether another address of the same family is routed to the interface: the CNI plugin gives a pod one.
    fn has_another(&self, link: &KnownLink, address: IpAddr) -> bool {
        let routed = self.facts.kernel.fib.on_interface(link.link.index);
        routed.into_iter().filter(|prefix| !prefix.is_link_scoped()).any(|prefix| {
            let other = prefix.host_address().filter(|other| *other != address);
            other.is_some_and(|other| other.is_ipv4() == address.is_ipv4())
        })
    }

    /// Calico's IPAM is in use, but has no record of an address that a pod says is its own. How it
    /// came to it is not known, so neither is whose it is.
    fn unrecorded(
        &self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: &LocalPod,
        address: IpAddr,
    ) -> Verdict {
        let mut charge = self.charge(leg, Victim::Nobody, Effect::Intercept, Extent::Squat);
        charge.certainty = Certainty::Unproven;
        charge.severity = Severity::Medium;
        charge.reason = format!(
            "{} receives traffic for {address}, which Calico's IPAM did not give to it or to \
             anybody{}",
            self.who(link),
            self.because(pod, address)
        )
        .into();
        self.add_claims(&mut charge, pod, address);
        Verdict::Charged(Box::new(charge), Some(self.soon()))
    }

    /// Whether the pod may have the address without IPAM's knowing: it asked for it so, and the CNI
    /// plugin lets pods do that (`feature_control.ip_addrs_no_ipam`).
    fn may_bypass(&self, pod: &LocalPod, address: IpAddr) -> bool {
        self.facts.felix.bypass == Some(true) && pod.pod.bypassing_addresses.contains(&address)
    }

    /// A pod that has its address gets the route of another one.
    fn foreign_address(
        &mut self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: &LocalPod,
        address: IpAddr,
    ) -> Verdict {
        let floating = pod.pod.floating_addresses.contains(&address);
        let permission = self.facts.allow.permission(address, &pod.pod);
        let facts = self.facts;
        let is_self = |key: &PodKey, node: Option<&NodeName>| is_here(facts, key, node, pod);
        let owner = self.ownership_claimed(address, leg.since, floating, &is_self);
        match (owner, permission) {
            (Ownership::Own(again), _) => Verdict::Entitled(Some(again)),
            (Ownership::Owned { victim, evidence, presence }, _) => {
                if presence == Presence::Unsure
                    && let Some(wait) = self.wait(leg, self.facts.settings.settle)
                {
                    return wait;
                }
                self.taken(leg, link, Some(pod), address, victim, evidence)
            }
            (Ownership::Pending(until), permission) => {
                // With the feature off or another's reservation the route is wrong whoever owns
                // the address. The answer adds the victim's name, and is worth a moment only.
                let moment = leg.since.after(self.facts.settings.settle);
                if !(floating && self.is_forbidden(permission) && self.feature_known()) {
                    return Verdict::Doubt(Doubt { until: Some(until) });
                }
                if self.now < moment {
                    return Verdict::Doubt(Doubt { until: Some(until.min(moment)) });
                }
                self.unapproved(leg, link, pod, address, permission, Some(until))
            }
            (Ownership::Unanswered { why, again }, permission) => {
                if matches!(permission, Permission::Allowed(_)) && !self.feature_off() {
                    return Verdict::Doubt(Doubt { until: Some(again) });
                }
                // With a new sandbox the pod has another address, and nobody is there to say so.
                let fresh = pod.first_at.is_some_and(|then| link.since > then);
                // Of what is gone, nothing can be said without an answer but what the pod itself
                // claimed; nor of a pod for whose first address the CNI plugin speaks no longer.
                let unsure = fresh || self.over.is_some() || !pod.is_settled();
                if unsure && !floating {
                    return Verdict::Doubt(Doubt { until: Some(again) });
                }
                if let Some(wait) = self.wait(leg, self.facts.settings.settle) {
                    return wait;
                }
                let mut verdict = self.unapproved(leg, link, pod, address, permission, Some(again));
                if let Verdict::Charged(charge, _) = &mut verdict {
                    charge.missing.push(format!("owner of {address}: {why}").into());
                }
                verdict
            }
            (Ownership::Unowned { .. }, Permission::Allowed(_)) if !self.feature_off() => {
                Verdict::Entitled(Some(self.review()))
            }
            (Ownership::Unowned { claimed, unrecorded }, permission) => {
                let said = claimed
                    || pod.pod.annotated_addresses.contains(&address)
                    || pod.pod.addresses.contains(&address);
                // Of an annotation, or of a new sandbox, we may not hear at present.
                if !floating && self.facts.blind.contains_key(&Sense::Pods) {
                    return Verdict::Doubt(Doubt { until: None });
                }
                let plausible = if unrecorded {
                    self.may_bypass(pod, address)
                } else {
                    self.in_range(pod, address)
                };
                if said && plausible && !floating && matches!(permission, Permission::Unlisted) {
                    // A new sandbox of the same pod gets a new address; nobody else has it.
                    return Verdict::Entitled(Some(self.review()));
                }
                // IPAM takes its record back after the route is gone, so of a route that is gone an
                // empty record says nothing.
                if self.over.is_some() && !floating {
                    return Verdict::Irrelevant;
                }
                // On a fresh interface it may be the pod's next self, of which we have yet to hear.
                let fresh = pod.established.is_some_and(|established| link.since > established);
                let timing = &self.facts.settings;
                let patience = if fresh { timing.newborn } else { timing.settle };
                if !floating && let Some(wait) = self.confirm(leg, address, patience) {
                    return wait;
                }
                self.unapproved(leg, link, pod, address, permission, Some(self.soon()))
            }
        }
    }

    /// Whether the address can be the pod's where no record says whose addresses are: where the
    /// pod's first address lies in the node's range for pods, as host-local IPAM has it, all do.
    fn in_range(&self, pod: &LocalPod, address: IpAddr) -> bool {
        let range = |address: IpAddr| {
            self.facts.nodes.has_in_pod_prefixes(&self.facts.settings.node, address)
        };
        let alike = |first: &&IpAddr| first.is_ipv4() == address.is_ipv4();
        let first = pod.first_addresses.iter().find(alike).and_then(|first| range(*first));
        first != Some(true) || range(address) != Some(false)
    }

    /// Whether a floating IP is wrong whoever owns the address.
    fn is_forbidden(&self, permission: Permission<'_>) -> bool {
        self.feature_off() || !matches!(permission, Permission::Allowed(_))
    }

    fn feature_off(&self) -> bool {
        matches!(self.facts.feature, Feature::Disabled { .. })
    }

    fn feature_known(&self) -> bool {
        self.facts.feature != Feature::Unknown
    }

    /// An address that nobody is known to own, but that the pod has no right to.
    fn unapproved(
        &self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: &LocalPod,
        address: IpAddr,
        permission: Permission<'_>,
        review: Option<BootTime>,
    ) -> Verdict {
        // The entry that allows it may not have been read yet.
        if !self.feature_off()
            && let Some(doubt) = self.facts.awaited(Sense::Allowances, self.now)
        {
            return Verdict::Doubt(doubt);
        }
        let (victim, extent, severity) = match permission {
            Permission::Reserved(entry) => (
                Victim::Allowance {
                    namespace: entry.namespace.clone(),
                    service_account: entry.service_account.clone(),
                },
                Extent::Exact,
                Severity::High,
            ),
            _ => (Victim::Nobody, Extent::Squat, Severity::Medium),
        };
        let whose = match permission {
            Permission::Reserved(entry) => format!(
                "which the allow-list sets aside for service account {}/{}",
                entry.namespace, entry.service_account
            ),
            _ => "which no pod or node is known to own".to_owned(),
        };
        let mut charge = self.charge(leg, victim, Effect::Intercept, extent);
        charge.severity = severity;
        charge.reason = format!(
            "{} receives traffic for {address}, {whose}{}",
            self.who(link),
            self.because(pod, address)
        )
        .into();
        if let Permission::Reserved(entry) = permission {
            let text = format!(
                "allow-list: {} is for service account {}/{}",
                entry.cidr, entry.namespace, entry.service_account
            );
            charge.evidence.push(self.evidence(Witness::Policy, text));
        }
        self.add_claims(&mut charge, pod, address);
        Verdict::Charged(Box::new(charge), review)
    }

    /// A pod that has no address yet: the route comes first, the API later.
    fn newborn(
        &mut self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: &LocalPod,
        address: IpAddr,
    ) -> Verdict {
        let facts = self.facts;
        let is_self = |key: &PodKey, node: Option<&NodeName>| is_here(facts, key, node, pod);
        let floating = pod.pod.floating_addresses.contains(&address);
        let owner = self.ownership_claimed(address, leg.since, floating, &is_self);
        match owner {
            Ownership::Owned { victim, evidence, presence } => {
                if presence != Presence::Attached
                    && let Some(wait) = self.wait(leg, self.facts.settings.settle)
                {
                    return wait;
                }
                self.taken(leg, link, Some(pod), address, victim, evidence)
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Own(again) => Verdict::Entitled(Some(again)),
            Ownership::Unowned { unrecorded: true, .. }
                if !floating && !self.may_bypass(pod, address) =>
            {
                if self.facts.blind.contains_key(&Sense::Pods) {
                    return Verdict::Doubt(Doubt { until: None });
                }
                if let Some(wait) = self.confirm(leg, address, self.patience(address)) {
                    return wait;
                }
                self.unrecorded(leg, link, pod, address)
            }
            Ownership::Unowned { .. } if floating => {
                match self.facts.allow.permission(address, &pod.pod) {
                    Permission::Allowed(_) if !self.feature_off() => {
                        Verdict::Entitled(Some(self.review()))
                    }
                    permission => {
                        let again = Some(self.soon());
                        self.unapproved(leg, link, pod, address, permission, again)
                    }
                }
            }
            // The pod is real, the interface is its own and nobody else has the address.
            Ownership::Unowned { .. } => Verdict::Entitled(Some(self.review())),
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
        }
    }

    /// An address that is somebody else's. `pod` is who has the route, where that is known.
    pub(super) fn taken(
        &self,
        leg: Leg<'_>,
        link: &KnownLink,
        pod: Option<&LocalPod>,
        address: IpAddr,
        victim: Victim,
        evidence: Evidence,
    ) -> Verdict {
        let because = pod.map(|pod| self.because(pod, address)).unwrap_or_default();
        let who = self.who(link);
        let reason =
            format!("{who} receives traffic for {address}, which belongs to {victim}{because}");
        let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Exact);
        charge.severity = Severity::Critical;
        charge.reason = reason.into();
        charge.evidence.push(evidence);
        if let Some(pod) = pod {
            self.add_claims(&mut charge, pod, address);
        }
        Verdict::Charged(Box::new(charge), Some(self.soonest.unwrap_or(self.review())))
    }

    /// How long an address that nobody is known to own is waited for. One that is set aside for
    /// floating IPs hurts nobody else, and of its pod, or its annotation, we may just not have heard.
    pub(super) fn patience(&self, address: IpAddr) -> Duration {
        let newborn = self.facts.settings.newborn;
        if self.facts.allow.names(address) { newborn.max(REVIEW) } else { newborn }
    }

    /// A doubt until the route has stood for `patience` and the API server was asked again after
    /// that; `None` once it was.
    pub(super) fn confirm(
        &mut self,
        leg: Leg<'_>,
        address: IpAddr,
        patience: Duration,
    ) -> Option<Verdict> {
        if let Some(wait) = self.wait(leg, patience) {
            return Some(wait);
        }
        let due = leg.since.after(patience);
        let answers = &self.facts.answers;
        let block = self.facts.pools.block_of(address);
        let read =
            |block| answers.blocks.known(block).is_some_and(|known| known.times.asked >= due);
        let mut missing = Vec::new();
        if answers.claimants.known(address).is_none_or(|known| known.times.asked < due) {
            missing.push(Question::Claimants(address));
        }
        missing.extend(block.filter(|block| !read(*block)).map(Question::Block));
        if missing.is_empty() {
            return None;
        }
        self.rests.extend(missing.iter().copied());
        self.asks.extend(missing);
        Some(Verdict::Doubt(Doubt { until: Some(self.now.after(self.facts.settings.answer)) }))
    }

    /// A doubt until the route has stood for `patience`; `None` once it has.
    pub(super) fn wait(&self, leg: Leg<'_>, patience: Duration) -> Option<Verdict> {
        let until = leg.since.after(patience);
        (self.now < until).then_some(Verdict::Doubt(Doubt { until: Some(until) }))
    }
}

/// Whether the key and node are those of this pod of this node.
pub(super) fn is_here(
    facts: &Facts,
    key: &PodKey,
    node: Option<&NodeName>,
    pod: &LocalPod,
) -> bool {
    *key == pod.pod.key && node.is_none_or(|node| *node == facts.settings.node)
}

/// Tells whether a pod of this node has, by its name, the interface that `link` was at first. A pod of
/// another node is not behind it, whatever the interface is called.
pub(super) fn is_behind<'f>(
    facts: &'f Facts,
    link: &'f KnownLink,
) -> impl Fn(&PodKey, Option<&NodeName>) -> bool + 'f {
    let Settings { node: here, interface_prefixes, .. } = &facts.settings;
    move |key, node| {
        node.is_none_or(|node| node == here)
            && interface_prefixes
                .iter()
                .any(|prefix| key.interface(prefix).as_ref() == Some(&link.first_name))
    }
}

/// Prefixes of this length and longer are named by the pod that they hit, wider ones by themselves.
fn narrow(ipv4: bool) -> u8 {
    if ipv4 { 30 } else { 126 }
}
