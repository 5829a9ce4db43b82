//! What pods say of addresses, held against whose they are (pure).
//!
//! Two files do the work: `claimed` reads annotations, `shown` reads statuses. Neither trusts what it
//! reads: an annotation and a status are what those who may write pods want them to be.

mod claimed;
mod shown;

use std::collections::BTreeMap;
use std::net::IpAddr;

use detector_core::policy::AllowList;
use detector_core::route::Prefix;
use detector_core::workload::{Pod, PodKey};
use jiff::Timestamp;

use super::exposure::{Exposure, NodeState, Switch};
use super::facts::{Facts, Kind, Marks, Writer};
use super::owners::{Owner, Owners};
use super::report::{AddressLine, Finding, Level, Object, Rule, Written};
use super::shell;
use crate::text::printable;

/// Of what many pods share, so many are named.
const NAMED: usize = 8;

/// What everything is held against.
pub(super) struct Ground<'a> {
    pub(super) facts: &'a Facts,
    pub(super) exposure: &'a Exposure,
    pub(super) owners: &'a Owners<'a>,
    /// What the allow-list lets pods have, less what has expired.
    pub(super) allowed: &'a AllowList,
}

/// Looks at all pods.
pub(super) fn look(ground: &Ground<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for resident in &ground.facts.pods {
        if let Some(marks) = &resident.marks {
            claimed::look(ground, &resident.pod, marks, &mut findings);
        }
    }
    shown::look(ground, &mut findings);
    for scrap in &ground.facts.scraps {
        let about = scrap.about.as_deref().map_or("an object", |about| about);
        let (file, line) = scrap.place.rsplit_once(':').unwrap_or((&scrap.place, ""));
        findings.push(Finding {
            rule: Rule::Scrap,
            level: Level::Medium,
            in_force: false,
            object: Object { kind: "file", namespace: None, name: file.into(), node: None },
            field: format!("line {line}").into(),
            value: Some(scrap.line.clone()),
            message: format!(
                "{about} bears {}; what stands around it is no complete object, so whose the \
                 addresses are cannot be told",
                scrap.key
            ),
            addresses: Vec::new(),
            written: None,
            created: None,
            next: "detector audit --from a complete dump: kubectl get pods -A -o yaml".into(),
        });
    }
    findings.sort_by(|a, b| {
        (std::cmp::Reverse(a.level), a.rule, &a.object, &a.field).cmp(&(
            std::cmp::Reverse(b.level),
            b.rule,
            &b.object,
            &b.field,
        ))
    });
    findings
}

/// Pods whose statuses are held against them, and the addresses: what to look at a second time before
/// it is said.
pub(super) fn doubts(facts: &Facts) -> Vec<(PodKey, Vec<IpAddr>)> {
    let exposure = super::exposure::examine(facts);
    let owners = Owners::of(facts);
    let allowed = AllowList::default();
    let ground = Ground { facts, exposure: &exposure, owners: &owners, allowed: &allowed };
    let mut findings = Vec::new();
    shown::look(&ground, &mut findings);
    let mut doubts: BTreeMap<PodKey, Vec<IpAddr>> = BTreeMap::new();
    for finding in findings {
        let key =
            PodKey::new(finding.object.namespace.as_deref().unwrap_or(""), &finding.object.name);
        let address = finding.value.as_deref().and_then(|value| value.parse::<IpAddr>().ok());
        if let Some(key) = key {
            doubts.entry(key).or_default().extend(address);
        }
    }
    doubts.into_iter().collect()
}

// === impl Ground ===

impl Ground<'_> {
    /// The state of the node that a pod runs on.
    fn node(&self, pod: &Pod) -> Option<&NodeState> {
        self.exposure.on(&pod.node.0)
    }

    /// Whether Felix acts on annotations of a pod; `None` where nobody can tell.
    fn acts(&self, pod: &Pod) -> Option<bool> {
        match &self.node(pod)?.switch {
            Switch::Missing | Switch::On { .. } => Some(true),
            Switch::Off { unless: None, .. } => Some(false),
            Switch::Off { .. } | Switch::Unknown { .. } => None,
        }
    }

    /// `workloadSourceSpoofing` on a pod's node; `None` where it cannot be read.
    fn spoofing(&self, pod: &Pod) -> Option<bool> {
        for name in [format!("node.{}", pod.node), "default".to_owned()] {
            let said = self.facts.felix.get(&*name).and_then(|settings| settings.spoofing);
            if said.is_some() {
                return said;
            }
        }
        self.facts.sees(Kind::FelixConfigurations).then_some(false)
    }

    /// An address of a claim, and whose it is.
    fn line(&self, address: IpAddr, pod: &Pod) -> AddressLine {
        let owner = self.owners.owner(address, &pod.key);
        let permission = self.allowed.permission(address, pod);
        let allowed_by = match permission {
            detector_core::policy::Permission::Allowed(entry) => {
                Some(printable(&entry.origin, 300).into())
            }
            _ => None,
        };
        AddressLine {
            address: address.to_string().into(),
            owner: owner.as_ref().map(|owner| shown_owner(owner).into()),
            by: owner.map(|owner| owner.by),
            allowed_by,
        }
    }

    /// Whoever else has an address.
    fn other(&self, address: IpAddr, pod: &PodKey) -> Option<Owner> {
        self.owners.owner(address, pod).filter(|owner| !owner.is(pod))
    }

    /// A prefix of a claim, and some of those whose addresses lie in it.
    fn covered(&self, prefix: Prefix, pod: &Pod) -> (AddressLine, Vec<Owner>) {
        let owners = self.owners.covered(prefix, &pod.key);
        let names: Vec<String> = owners.iter().take(3).map(shown_owner).collect();
        let more = if owners.len() > names.len() { " and others" } else { "" };
        let owner = (!names.is_empty()).then(|| format!("{}{more}", names.join(", ")).into());
        let by = owners.first().map(|owner| owner.by);
        let covered = self.allowed.covers(prefix, pod);
        let allowed_by = covered.then(|| "the allow-list".into());
        (AddressLine { address: prefix.to_string().into(), owner, by, allowed_by }, owners)
    }
}

/// An owner for people.
fn shown_owner(owner: &Owner) -> String {
    match &owner.namespace {
        Some(namespace) => format!("{} {namespace}/{}", owner.kind, owner.name),
        None if owner.kind == "metadata" => owner.name.to_string(),
        None => printable(&format!("{} {}", owner.kind, owner.name), 300),
    }
}

fn object(pod: &Pod) -> Object {
    Object {
        kind: "pod",
        namespace: Some(pod.key.namespace().into()),
        name: pod.key.name().into(),
        node: (!pod.node.0.is_empty()).then(|| printable(&pod.node.0, 253).into()),
    }
}

fn written(writer: &Writer) -> Written {
    let Writer { manager, operation, subresource, time } = writer.clone();
    Written { manager, operation, subresource, time }
}

/// The field of an annotation, as kubectl's paths have it.
fn annotation(key: &str) -> Box<str> {
    format!("metadata.annotations['{key}']").into()
}

/// A finding about an annotation of a pod.
fn of_annotation(pod: &Pod, marks: &Marks, rule: Rule, key: &'static str) -> Finding {
    let mark = marks.annotations.iter().find(|mark| mark.key == key);
    Finding {
        rule,
        level: Level::Note,
        in_force: false,
        object: object(pod),
        field: annotation(key),
        value: mark.map(|mark| mark.value.clone()),
        message: String::new(),
        addresses: Vec::new(),
        written: mark.and_then(|mark| mark.writer.as_ref()).map(written),
        created: marks.created,
        next: shell::remove_annotation(&pod.key, key),
    }
}

/// The time at which a pod was made, for findings about its status.
fn created(marks: Option<&Marks>) -> Option<Timestamp> {
    marks.and_then(|marks| marks.created)
}

/// Some names of many, for a sentence.
fn some_of(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests;
