//! A route by an uplink, or one that delivers to the node itself: no pod of this node gains, but
//! somebody may lose.

use std::net::IpAddr;

use super::ownership::Record;
use super::words::victim_of;
use super::{Doubt, Judge, Leg, Verdict};
use crate::claim::{Allocation, Block};
use crate::facts::answers::{RARELY, REVIEW};
use crate::finding::{Certainty, Effect, Evidence, Extent, Severity, Victim};
use crate::observation::{Question, Sense};
use crate::route::Table;
use crate::time::BootTime;
use crate::workload::NodeName;

impl Judge<'_> {
    /// A route by an uplink: wrong if it leads to a node that has not the address, or takes a pod
    /// away that runs here.
    pub(super) fn uplink(&mut self, leg: Leg<'_>) -> Verdict {
        let Some(address) = leg.address() else { return Verdict::Irrelevant };
        let gateway = leg.hop.and_then(|hop| hop.gateway);
        // A next hop that is no node's, a router's or reflector's, says nothing of who has it.
        if let Some(next) = gateway.and_then(|gateway| self.facts.nodes.owner(gateway))
            && self.facts.pools.of(address).is_some()
            && let Some(verdict) = self.next_node(leg, address, next)
        {
            return verdict;
        }
        let Some(pod) = self.attached_owner(address) else { return Verdict::Irrelevant };
        if let Some(until) = self.facts.pools_awaited(self.now) {
            return Verdict::Doubt(Doubt { until: Some(until) });
        }
        // Which node the next hop is decides whether the record bears the route out, as it does in a
        // live migration.
        if gateway.is_some()
            && let Some(doubt) = self.facts.awaited(Sense::Nodes, self.now)
        {
            return Verdict::Doubt(doubt);
        }
        let until = leg.since.after(self.facts.settings.remote);
        if self.now < until {
            return Verdict::Doubt(Doubt { until: Some(until) });
        }
        let victim = victim_of(pod);
        let to = gateway.map_or_else(|| "an uplink".to_owned(), |gateway| gateway.to_string());
        let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Exact);
        charge.severity = Severity::High;
        charge.reason = format!(
            "{address} is the address of pod {} on this node, but a route sends it to {to}",
            pod.pod.key
        )
        .into();
        charge.evidence.push(self.first_address_evidence(pod, address));
        Verdict::Charged(Box::new(charge), None)
    }

    /// A host route by another node, as BIRD makes it for addresses that a node has from a block of
    /// another's: right if IPAM gave the address to that node (decision table, rows 19 to 22).
    /// `None` where there is no record to go by.
    fn next_node(&mut self, leg: Leg<'_>, address: IpAddr, next: &NodeName) -> Option<Verdict> {
        let leads = |block: &Option<Block>| {
            let allocation = block.as_ref().and_then(|block| block.allocation(address));
            allocation.is_some_and(|allocation| is_at(allocation, next))
        };
        let since = leg.since;
        // BIRD makes some routes anew every second: an older reading that bears them out serves.
        let (known, allocation, again) = match self.record_if(address, since, RARELY, RARELY, leads)
        {
            Record::Taken { allocation, again, .. } if is_at(allocation, next) => {
                return Some(Verdict::Entitled(Some(again)));
            }
            Record::Taken { allocation, known, again } => (known, Some(allocation), again),
            // A floating IP that is allowed is in no record, on whatever node its pod is.
            Record::Free { again, .. } if self.facts.allow.names(address) => {
                return Some(Verdict::Entitled(Some(again)));
            }
            Record::Free { known, again } => (known, None, again),
            Record::Pending(until) => return Some(Verdict::Doubt(Doubt { until: Some(until) })),
            Record::Absent => return None,
            Record::Unreadable { again, .. } => {
                // A live migration cannot be told from it without the record.
                let patient = since.after(self.facts.settings.remote * 4);
                let doubtful = self.now < patient || self.attached_owner(address).is_none();
                return doubtful.then_some(Verdict::Entitled(Some(again)));
            }
        };
        let timing = &self.facts.settings;
        let patience = if allocation.is_some() { timing.withdraw } else { timing.remote };
        // Both have to have stood for a while: the record is there first, the route lags behind.
        let due = since.max(known.since).after(patience);
        if self.over.is_some_and(|ended| ended < due) {
            return Some(Verdict::Irrelevant);
        }
        if self.now < due {
            return Some(Verdict::Doubt(Doubt { until: Some(due) }));
        }
        if known.times.asked < due {
            self.asks.insert(Question::Block(known.block));
            let until = self.now.after(self.facts.settings.answer);
            return Some(Verdict::Doubt(Doubt { until: Some(until) }));
        }
        let Some(allocation) = allocation else {
            let mut charge = self.charge(leg, Victim::Nobody, Effect::Intercept, Extent::Squat);
            charge.certainty = Certainty::Unproven;
            charge.severity = Severity::Low;
            charge.reason = format!(
                "a route sends {address} to node {next}, but IPAM gave the address to nobody: a \
                 floating IP there, or a route that was not withdrawn"
            )
            .into();
            return Some(Verdict::Charged(Box::new(charge), Some(again)));
        };
        let (victim, evidence) = Self::recorded_owner(address, allocation, known);
        let reason = format!(
            "a route sends {address} to node {next}, but the address belongs to {victim}: look for \
             the attacker on {next}"
        );
        let mut charge = self.charge(leg, victim, Effect::Intercept, Extent::Exact);
        charge.severity = Severity::High;
        charge.reason = reason.into();
        charge.evidence.push(evidence);
        Some(Verdict::Charged(Box::new(charge), Some(again)))
    }

    /// A route that delivers to this host: wrong if it takes a pod's address.
    pub(super) fn local(&mut self, leg: Leg<'_>) -> Verdict {
        let prefix = leg.entry.route.prefix;
        let owner = match prefix.host_address() {
            Some(address) => self.attached_owner(address),
            None if leg.entry.route.table == Table::LOCAL => {
                self.attached_owner_within(prefix, None)
            }
            None => None,
        };
        let (victim, evidence) = match (owner, prefix.host_address()) {
            (Some(pod), host) => {
                (victim_of(pod), host.map(|address| self.first_address_evidence(pod, address)))
            }
            (None, Some(address)) => match self.far_pod(address, leg.since) {
                Ok((victim, evidence)) => (victim, Some(evidence)),
                Err(verdict) => return verdict,
            },
            (None, None) => return Verdict::Irrelevant,
        };
        let extent = if prefix.is_host() { Extent::Exact } else { Extent::Prefix };
        let reason =
            format!("traffic for {victim} is delivered to the node itself: {prefix} is local now");
        let mut charge = self.charge(leg, victim, Effect::Intercept, extent);
        charge.severity = Severity::High;
        charge.reason = reason.into();
        charge.evidence.extend(evidence);
        Verdict::Charged(Box::new(charge), None)
    }

    /// The pod that IPAM gave an address of a pool to, or else what to say instead.
    fn far_pod(&mut self, address: IpAddr, since: BootTime) -> Result<(Victim, Evidence), Verdict> {
        if self.facts.pools.of(address).is_none() {
            return Err(Verdict::Irrelevant);
        }
        match self.record(address, since, REVIEW, &|_, _| false) {
            Record::Taken { allocation: allocation @ Allocation::Pod { .. }, known, .. } => {
                Ok(Self::recorded_owner(address, allocation, known))
            }
            Record::Pending(until) => Err(Verdict::Doubt(Doubt { until: Some(until) })),
            Record::Free { again, .. } | Record::Taken { again, .. } => {
                Err(Verdict::Entitled(Some(again)))
            }
            Record::Absent | Record::Unreadable { .. } => Err(Verdict::Irrelevant),
        }
    }
}

/// Whether the record has the address at the node, or on its way there in a live migration.
fn is_at(allocation: &Allocation, node: &NodeName) -> bool {
    match allocation {
        Allocation::Pod { owner, heir } => {
            let mut holders = [Some(owner), heir.as_ref()].into_iter().flatten();
            // Of old records that name no node nothing can be said against any.
            holders.any(|holder| holder.node.as_ref().is_none_or(|at| at == node))
        }
        Allocation::Node { node: at, .. } => at == node,
        Allocation::Service(_) | Allocation::Other(_) => true,
    }
}
