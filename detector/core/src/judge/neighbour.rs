//! A neighbour entry that somebody made on an interface that a container may be behind.

use super::ownership::{Ownership, Presence};
use super::workload::is_behind;
use super::{Doubt, Judge, Verdict};
use crate::facts::Identity;
use crate::finding::{
    Certainty, Charge, Effect, Evidence, Extent, Means, Reach, Scope, Severity, Target, Witness,
};
use crate::observation::{Neighbour, NeighbourKind};
use crate::route::Prefix;
use crate::time::BootTime;

impl Judge<'_> {
    /// A neighbour entry, and since when it stands; `None` where it does not.
    ///
    /// Felix makes such entries for a pod's own addresses on the pod's own interface, and for tunnels
    /// on the tunnel's: both are no news. For another's address on a pod's interface nobody has use
    /// but who wants its packets there.
    pub(super) fn neighbour(
        &mut self,
        neighbour: &Neighbour,
    ) -> Option<(Target, (Verdict, BootTime))> {
        let facts = self.facts;
        let since = facts.kernel.neighbour_since(neighbour)?;
        let link = facts.kernel.links.standing(neighbour.interface)?;
        let identity = facts.identity(link);
        let target = Target::Interface(link.first_name.clone());
        let address = neighbour.address;
        let prefix = Prefix::host(address);
        // Where a route leads there as well, the route is judged.
        let routed = facts.kernel.fib.get(prefix).iter().any(|entry| {
            let legs = facts.kernel.legs(&entry.route);
            legs.as_slice().iter().any(|hop| hop.interface == Some(neighbour.interface))
        });
        if matches!(identity, Identity::Uplink) || prefix.is_link_scoped() || routed {
            return Some((target, (Verdict::Irrelevant, since)));
        }
        let is_self = is_behind(facts, link);
        let verdict = match self.ownership(address, since, &is_self) {
            Ownership::Owned { victim, evidence, presence } => {
                let until = since.after(facts.settings.settle);
                if presence != Presence::Attached && self.now < until {
                    Verdict::Doubt(Doubt { until: Some(until) })
                } else {
                    let what = match neighbour.kind {
                        NeighbourKind::Permanent => "is handed packets for",
                        NeighbourKind::Proxy => "is told that the node has",
                    };
                    let reason = format!(
                        "{} {what} {address}, which belongs to {victim}: somebody made a neighbour \
                         entry for it",
                        self.who(link)
                    );
                    let text = format!(
                        "neighbour {}{address} dev {}",
                        if neighbour.kind == NeighbourKind::Proxy { "proxy " } else { "" },
                        link.link.name
                    );
                    let entry = Evidence { at: since, witness: Witness::Kernel, text: text.into() };
                    let charge = Charge {
                        certainty: Certainty::Hijack,
                        severity: Severity::High,
                        means: Means::Neighbour,
                        effect: Effect::Intercept,
                        extent: Extent::Exact,
                        table: None,
                        rule: None,
                        attacker: self.attacker_behind(link),
                        victim,
                        reason: reason.into(),
                        reach: Reach {
                            scope: Scope::Node,
                            why: "neighbours are the node's own affair".into(),
                        },
                        evidence: vec![entry, evidence],
                        missing: self.missing(),
                        traffic: None,
                        writer: None,
                    };
                    Verdict::Charged(Box::new(charge), Some(self.review()))
                }
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
            Ownership::Own(_) | Ownership::Unowned { .. } => Verdict::Entitled(Some(self.review())),
        };
        Some((target, (verdict, since)))
    }
}
