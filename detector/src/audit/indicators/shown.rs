//! What statuses show.

use std::collections::HashMap;
use std::net::IpAddr;

use detector_core::claim::Allocation;
use detector_core::workload::{Pod, PodKey};

use super::{Ground, created, object, shown_owner, some_of, written};
use crate::audit::facts::{Kind, Marks, Resident};
use crate::audit::owners::owns_addresses;
use crate::audit::report::{Finding, Level, Rule};
use crate::audit::shell;

/// Looks at the addresses that pods show.
pub(super) fn look(ground: &Ground<'_>, findings: &mut Vec<Finding>) {
    let before = findings.len();
    for resident in &ground.facts.pods {
        let (pod, marks) = (&resident.pod, resident.marks.as_deref());
        // One that goes owns its address as long as the CNI plugin has not taken it back: with a long
        // grace that can be years.
        if owns_addresses(pod) {
            against_ipam(ground, pod, marks, findings);
        }
    }
    shared(ground, findings);
    outside_of_nodes(ground, findings);
    for finding in &mut findings[before..] {
        let namespace = finding.object.namespace.as_deref().unwrap_or_default();
        let key = PodKey::new(namespace, &finding.object.name);
        if key.is_some_and(|key| ground.facts.unconfirmed.contains(&key)) {
            finding.in_force = false;
            finding.level = finding.level.min(Level::Medium);
            finding
                .message
                .push_str("; it is one of many such and was not looked at a second time");
        }
    }
}

/// A finding about what a pod's status shows.
fn of_status(pod: &Pod, marks: Option<&Marks>, rule: Rule, address: IpAddr) -> Finding {
    let field =
        if pod.addresses.first() == Some(&address) { "status.podIP" } else { "status.podIPs" };
    let writer = marks.and_then(|marks| marks.status_writer.as_ref());
    Finding {
        rule,
        level: Level::High,
        in_force: true,
        object: object(pod),
        field: field.into(),
        value: Some(address.to_string().into()),
        message: String::new(),
        addresses: Vec::new(),
        written: writer.map(written),
        created: created(marks),
        next: shell::show_pod(&pod.key),
    }
}

/// What else speaks for a forgery.
fn by_whom(marks: Option<&Marks>) -> String {
    match marks.and_then(|marks| marks.status_writer.as_ref()) {
        Some(writer) => format!("; the status was written by {}, no kubelet", writer.manager),
        None => String::new(),
    }
}

/// Addresses that IPAM did not give to the pod, or that lie in no pool.
fn against_ipam(
    ground: &Ground<'_>,
    pod: &Pod,
    marks: Option<&Marks>,
    findings: &mut Vec<Finding>,
) {
    let owners = ground.owners;
    for address in pod.addresses.iter().copied() {
        // What the CNI plugin gave past IPAM is told of with its annotation.
        if pod.bypassing_addresses.contains(&address) {
            continue;
        }
        let node_or_service = ground
            .other(address, &pod.key)
            .filter(|owner| matches!(owner.kind, "node" | "service") && owner.by != "its status");
        let mut finding = of_status(pod, marks, Rule::AgainstIpam, address);
        finding.addresses = vec![ground.line(address, pod)];
        let by = by_whom(marks);
        if let Some(owner) = node_or_service {
            finding.level = Level::Critical;
            finding.message = format!(
                "its status shows {address}, which is an address of {} ({}): Felix routes it to this \
                 pod{by}",
                shown_owner(&owner),
                owner.by
            );
            findings.push(finding);
            continue;
        }
        if !owners.recorded || owners.has_by_record(address, &pod.key) {
            continue;
        }
        match owners.record(address) {
            Some(Allocation::Pod { owner, .. }) => {
                let lives = owners.shown_by(address).iter().any(|pod| pod.key == owner.key);
                let also = if lives { ", which shows it too" } else { "" };
                finding.level = Level::Critical;
                finding.message = format!(
                    "its status shows {address}, which IPAM gave to pod {}{also}: Felix routes it to \
                     this pod{by}",
                    owner.key
                );
            }
            Some(other) => {
                let whose = match other {
                    Allocation::Other(handle) => {
                        format!("a reservation ({})", crate::text::printable(handle, 253))
                    }
                    _ => "somebody else".to_owned(),
                };
                finding.message = format!(
                    "its status shows {address}, which IPAM keeps for {whose}: Felix routes it to \
                     this pod{by}"
                );
            }
            // What no record says, a record that was not read may.
            None if !ground.facts.sees(Kind::IpamBlocks) => continue,
            None if owners.is_in_a_pool(address) => {
                finding.message = format!(
                    "its status shows {address}, which IPAM gave to nobody: Felix routes it to this \
                     pod{by}"
                );
            }
            None if ground.facts.sees(Kind::IpPools) && owners.has_pools_like(address) => {
                finding.rule = Rule::OutsideRanges;
                finding.message = format!(
                    "its status shows {address}, which lies in no IP pool: Felix routes it to this \
                     pod{by}"
                );
            }
            None => continue,
        }
        findings.push(finding);
    }
}

/// Addresses that two pods show, where no record says whose they are.
fn shared(ground: &Ground<'_>, findings: &mut Vec<Finding>) {
    let residents = ground.facts.pods.iter();
    let told = residents.filter(|resident| resident.marks.is_some() || resident.machine.is_some());
    let told: HashMap<&PodKey, &Resident> =
        told.map(|resident| (&resident.pod.key, resident)).collect();
    for (address, pods) in ground.owners.shown() {
        let decided = ground.owners.recorded && ground.owners.record(address).is_some();
        let [first, others @ ..] = pods else { continue };
        if others.is_empty() || decided {
            continue;
        }
        let names: Vec<String> =
            pods.iter().map(|pod| format!("{} on {}", pod.key, pod.node)).collect();
        // Whoever's status somebody else wrote is the one to look at.
        let marks = |pod: &Pod| told.get(&pod.key).and_then(|resident| resident.marks.as_deref());
        let rewritten = |pod: &&&Pod| marks(pod).is_some_and(|marks| marks.status_writer.is_some());
        let forger = pods.iter().find(rewritten).copied();
        let machine = |pod: &Pod| {
            let machine = told.get(&pod.key).and_then(|resident| resident.machine.as_deref());
            machine.map(|machine| (pod.key.namespace().to_owned(), machine))
        };
        // A virtual machine keeps its address while it moves from one pod to the next.
        let moves = machine(first)
            .is_some_and(|it| others.iter().all(|other| machine(other).as_ref() == Some(&it)));
        if moves && forger.is_none() {
            continue;
        }
        let suspect = forger.unwrap_or(first);
        let mut finding = of_status(suspect, marks(suspect), Rule::SharedAddress, address);
        finding.addresses = vec![ground.line(address, suspect)];
        finding.message = format!(
            "{} pods show {address}: {}; one of them {} be forged{}",
            pods.len(),
            some_of(&names),
            if forger.is_some() { "can" } else { "may" },
            by_whom(marks(suspect))
        );
        if forger.is_none() {
            // Networks of their own have one address more than once, and what was read while one pod
            // followed the other looks the same.
            finding.level = Level::Medium;
            finding.in_force = false;
        }
        findings.push(finding);
    }
}

/// Where IPAM is not Calico's: addresses outside of their node's `podCIDRs`, if the cluster keeps to
/// them at all.
fn outside_of_nodes(ground: &Ground<'_>, findings: &mut Vec<Finding>) {
    if ground.owners.recorded || !ground.facts.sees(Kind::Nodes) {
        return;
    }
    let ranges: HashMap<&str, &[detector_core::route::Prefix]> = ground
        .facts
        .nodes
        .iter()
        .map(|member| (&*member.node.name.0, &*member.node.pod_prefixes))
        .collect();
    let (mut inside, mut outside) = (0_usize, Vec::new());
    for resident in &ground.facts.pods {
        let pod = &resident.pod;
        if !owns_addresses(pod) {
            continue;
        }
        let Some(ranges) = ranges.get(&*pod.node.0) else { continue };
        for address in pod.addresses.iter().copied() {
            let mut like = ranges.iter().filter(|r| r.is_ipv4() == address.is_ipv4()).peekable();
            if like.peek().is_none() {
                continue;
            }
            if like.any(|range| range.contains(address)) {
                inside += 1;
            } else if !pod.bypassing_addresses.contains(&address) {
                outside.push((resident, address));
            }
        }
    }
    // Where most pods are outside, the ranges are not what addresses are given from.
    if inside <= outside.len() {
        return;
    }
    for (resident, address) in outside {
        let (pod, marks) = (&resident.pod, resident.marks.as_deref());
        let mut finding = of_status(pod, marks, Rule::OutsideRanges, address);
        finding.addresses = vec![ground.line(address, pod)];
        finding.message = format!(
            "its status shows {address}, which lies outside of the podCIDRs of its node {}{}",
            crate::text::printable(&pod.node.0, 253),
            by_whom(marks)
        );
        findings.push(finding);
    }
}
