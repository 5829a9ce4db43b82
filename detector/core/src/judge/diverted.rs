//! How many packets a diversion has diverted.

use crate::facts::Facts;
use crate::finding::{Certainty, Charge, Diverted, FindingKey, Severity, Subject, Target};
use crate::traffic::{Flow, Side};

/// The packets that were diverted, as far as they were counted; `None` where nobody counts, and for
/// diversions of whole prefixes, whose packets are not counted.
///
/// What is handed out by the attacker's interface with the address as its destination has arrived
/// there. What is translated on its way has another destination by then: of that, packets count that
/// were on their way to the address and belong to connections that the attacker answers. Where the
/// attacker is not on this node, or nobody receives them, all count that are on their way.
pub(crate) fn diverted(
    facts: &Facts,
    subject: &Subject,
    target: &Target,
    charge: &Charge,
) -> Option<Diverted> {
    let now = since_start(facts, subject, target, charge);
    if facts.earlier.is_empty() {
        return now;
    }
    let key = FindingKey { subject: subject.clone(), target: target.clone() };
    match (now, facts.earlier.get(&key)) {
        (now, None) => now,
        (now, Some(earlier)) => Some(now.unwrap_or_default().after(earlier)),
    }
}

/// The same, since the agent was started.
fn since_start(
    facts: &Facts,
    subject: &Subject,
    target: &Target,
    charge: &Charge,
) -> Option<Diverted> {
    if let Subject::Pretence(key) = subject {
        let tally = facts.packets.pretended(key)?.tally;
        return Some(Diverted {
            packets: tally.packets,
            bytes: tally.bytes,
            span: Some((tally.first, tally.last)),
            ..Diverted::default()
        });
    }
    let address = subject.prefix()?.host_address()?;
    let answers = match (target, &charge.attacker.pod) {
        (Target::Address(to), _) => vec![*to],
        (_, Some(key)) => {
            facts.pods.get(key).map(|pod| pod.first_addresses.clone()).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let whole = |side: Side| match (side, target) {
        (Side::Reached(index), Target::Interface(name)) => {
            facts.kernel.links.get(index).is_some_and(|link| link.first_name == *name)
        }
        (Side::Sent, Target::Gateway(_) | Target::Host | Target::Nowhere(_)) => true,
        _ => false,
    };
    let single = |side: Side, flow: &Flow| {
        side == Side::Sent && facts.translations.carries(address, flow, &answers)
    };
    facts.packets.diverted(address, whole, single)
}

/// Adds to a charge what was diverted; that somebody's packets really were makes it worse.
pub(super) fn weigh(facts: &Facts, subject: &Subject, target: &Target, charge: &mut Charge) {
    charge.traffic = diverted(facts, subject, target, charge);
    let flows = charge.traffic.as_ref().is_some_and(|traffic| traffic.packets > 0);
    if flows && charge.certainty == Certainty::Hijack && !matches!(subject, Subject::Pretence(_)) {
        charge.severity = match charge.severity {
            Severity::Low => Severity::Medium,
            Severity::Medium => Severity::High,
            Severity::High | Severity::Critical => Severity::Critical,
        };
    }
}
