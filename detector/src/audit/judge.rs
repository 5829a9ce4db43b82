//! From facts to the report: one pure function.

use std::collections::BTreeMap;

use detector_core::finding::{Certainty, Finding as Diversion, Severity};
use detector_core::policy::AllowList;
use jiff::Timestamp;

use super::exposure::{self, Exposure, NodeState, Presence, Standing, Switch};
use super::facts::{Facts, Kind, Sight};
use super::indicators::{self, Ground};
use super::owners::Owners;
use super::report::{
    Calico, Counts, Finding, Level, LiveTables, Missing, NodeLine, Object, Reach, RefusedInput,
    Report, Rule, SCHEMA, Verdict,
};
use super::verdict::{self, Judged};
use super::{plan, reach};
use crate::text::printable;

/// So many nodes are named in a sentence.
const NAMED: usize = 6;

/// Judges what is known.
pub(super) fn judge(facts: &Facts, now: Timestamp) -> Report {
    let exposure = exposure::examine(facts);
    let in_force = facts.allowed.iter().filter(|entry| entry.is_in_force(now));
    let allowed = AllowList::new(in_force.map(|entry| entry.allowance.clone()).collect());
    let owners = Owners::of(facts);
    let ground = Ground { facts, exposure: &exposure, owners: &owners, allowed: &allowed };
    let mut findings = indicators::look(&ground);
    if exposure.presence == Presence::Absent {
        // Nobody acts on Calico's annotations, and other networks have their own rules for addresses.
        findings.retain(|finding| finding.field.starts_with("metadata."));
        for finding in &mut findings {
            finding.in_force = false;
            finding.level = finding.level.min(Level::Low);
        }
    }
    findings.extend(facts.live.iter().flat_map(|live| &live.findings).map(diversion));
    let reach = reach::measure(facts);
    let judged = verdict::judge(facts, &exposure, &findings, &reach, &allowed);
    findings.extend(of_nodes(&exposure, judged.verdict));
    findings.extend(of_gate(&exposure));
    findings.extend(of_holders(&reach, judged.verdict));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let Judged { verdict, reasons, next } = judged;
    let exit_code = match verdict {
        _ if findings.iter().any(|finding| finding.level >= Level::Low) => 1,
        Verdict::Undetermined => 2,
        _ => 0,
    };
    let plan = plan::steps(facts, &exposure, &findings, &reach, &allowed);
    Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        time: now,
        source: facts.source.clone(),
        verdict,
        reasons,
        next,
        exit_code,
        calico: calico(&exposure),
        missing: missing(facts),
        refused: RefusedInput { count: facts.refused.count, first: facts.refused.first.clone() },
        counts: counts(facts, &allowed),
        live: facts.live.as_ref().map(|live| LiveTables {
            node: live.node.as_ref().map(|node| printable(&node.0, 253).into()),
            routes: live.routes,
            rules: live.rules,
            translations: live.translations,
        }),
        findings,
        reach,
        plan,
    }
}

fn counts(facts: &Facts, allowed: &AllowList) -> Counts {
    Counts {
        pods: facts.pods.len(),
        nodes: facts.nodes.len(),
        services: facts.services.len(),
        pools: facts.pools.len(),
        blocks: facts.blocks.len(),
        roles: facts.roles.len(),
        bindings: facts.bindings.len(),
        allowed: allowed.entries().len(),
    }
}

/// What could not be seen; what is there in no cluster of this make is no gap.
fn missing(facts: &Facts) -> Vec<Missing> {
    let gap = |kind: Kind| match facts.sight.get(&kind) {
        Some(Sight::Part(why) | Sight::Nothing(why)) => {
            Some(Missing { what: kind.as_str(), why: why.clone(), without: kind.is_for() })
        }
        Some(Sight::All | Sight::NotServed) => None,
        None => Some(Missing {
            what: kind.as_str(),
            why: "was not looked at".into(),
            without: kind.is_for(),
        }),
    };
    let live = facts.live.iter().flat_map(|live| &live.blind).map(|(what, why)| Missing {
        what,
        why: why.clone(),
        without: "what this node's tables divert",
    });
    Kind::ALL.into_iter().filter_map(gap).chain(live).collect()
}

fn calico(exposure: &Exposure) -> Calico {
    let line = |name: &str, state: &NodeState| {
        let (switch, by) = switch_words(&state.switch);
        NodeLine {
            node: printable(name, 253).into(),
            product: state.product.as_str(),
            version: state.version.clone(),
            version_by: state.by.as_ref().map_or_else(
                || "no image, ClusterInformation or Installation tells it".into(),
                |place| place.shown().into(),
            ),
            range: range_word(state.standing),
            switch,
            switch_by: by,
        }
    };
    Calico {
        present: match exposure.presence {
            Presence::Present => Some(true),
            Presence::Absent => Some(false),
            Presence::Hidden(_) => None,
        },
        cni_floating_ips: exposure.gate.floating_ips,
        cni_by: exposure.gate.by.clone(),
        nodes: exposure.nodes.iter().map(|(name, state)| line(name, state)).collect(),
        without: exposure.without.iter().map(|name| printable(name, 253).into()).collect(),
    }
}

fn range_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Affected => "affected",
        Standing::Fixed => "fixed",
        Standing::Uncertain => "uncertain",
        Standing::Unknown => "unknown",
    }
}

fn switch_words(switch: &Switch) -> (&'static str, Box<str>) {
    match switch {
        Switch::Missing => ("missing", "this version has no switch".into()),
        Switch::On { by } => ("on", by.shown().into()),
        Switch::Off { by, unless: None } => ("off", by.clone()),
        Switch::Off { by, unless: Some(unless) } => ("off", format!("{by}, {unless}").into()),
        Switch::Unknown { why } => ("unknown", why.clone()),
    }
}

/// Findings about nodes: one for all that are alike.
fn of_nodes(exposure: &Exposure, verdict: Verdict) -> Vec<Finding> {
    let mut alike: BTreeMap<_, Vec<(&str, &NodeState)>> = BTreeMap::new();
    for (name, state) in &exposure.nodes {
        let key = (state.product, &state.version, state.standing, &state.switch);
        alike.entry(key).or_default().push((name, state));
    }
    alike.into_values().filter_map(|nodes| of_alike(&nodes, verdict)).collect()
}

/// The bulletin's own question: whether floating IPs are on in the CNI plugin's configuration. Where
/// every Felix has a switch that is off, it lets pods be made that then get nothing.
fn of_gate(exposure: &Exposure) -> Option<Finding> {
    let place = exposure.gate.on.as_ref()?;
    let off = |state: &NodeState| matches!(state.switch, Switch::Off { unless: None, .. });
    let harmless = !exposure.nodes.is_empty() && exposure.nodes.values().all(off);
    Some(Finding {
        rule: Rule::SwitchedOn,
        level: if harmless { Level::Note } else { Level::Medium },
        in_force: false,
        object: place.object.clone(),
        field: place.field.clone(),
        value: Some("true".into()),
        message: "the CNI plugin lets pods be made with floating IPs".into(),
        addresses: Vec::new(),
        written: None,
        created: None,
        next: format!(
            "kubectl edit --namespace {} configmap/{}",
            place.object.namespace.as_deref().unwrap_or_default(),
            place.object.name
        ),
    })
}

fn of_alike(nodes: &[(&str, &NodeState)], verdict: Verdict) -> Option<Finding> {
    let (_, state) = nodes.first()?;
    let names: Vec<String> = nodes.iter().map(|(name, _)| printable(name, 253)).collect();
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let place = match (names.len(), names.len().checked_sub(NAMED)) {
        (1, _) if names[0] == "*" => "on all nodes".to_owned(),
        (1, _) => format!("on node {shown}"),
        (count, Some(more)) if more > 0 => format!("on {count} nodes ({shown} and {more} more)"),
        (count, _) => format!("on {count} nodes ({shown})"),
    };
    let version = format!(
        "{} {}",
        state.product.as_str(),
        state.version.as_deref().unwrap_or("of an unknown version")
    );
    let guarded = verdict == Verdict::Guarded;
    let (rule, level, message, next) = match &state.switch {
        Switch::Missing => (
            Rule::AffectedVersion,
            if guarded { Level::Medium } else { Level::High },
            format!(
                "{version} {place} acts on annotation floatingIPs of any pod although the feature is \
                 off (CVE-2022-28224)"
            ),
            format!("upgrade to {}", plan::fixed_release(state)),
        ),
        Switch::On { .. } => (
            Rule::SwitchedOn,
            if guarded { Level::Note } else { Level::Medium },
            format!(
                "{version} {place} has floating IPs on, and does not ask who may claim an address"
            ),
            "detector audit --fix-plan".to_owned(),
        ),
        Switch::Unknown { why } if state.standing == Standing::Uncertain => (
            Rule::UncertainVersion,
            Level::Medium,
            format!("{version} {place} may have the fix or not: {why}"),
            "ask the vendor for the fix of CVE-2022-28224 in this build".to_owned(),
        ),
        Switch::Unknown { why } => (
            Rule::UnknownSwitch,
            Level::Note,
            format!("whether floating IPs are on {place} cannot be told: {why}"),
            "detector audit with the rights of deploy/audit-rbac.yaml".to_owned(),
        ),
        Switch::Off { by, unless: Some(unless) } => (
            Rule::UnknownSwitch,
            Level::Low,
            format!("floating IPs are off {place} ({by}), {unless}"),
            "look at what the envFrom of calico-node names".to_owned(),
        ),
        Switch::Off { .. } => return None,
    };
    let by = match &state.switch {
        Switch::On { by } => Some(by),
        _ => state.by.as_ref(),
    };
    let nowhere = Object { kind: "node", namespace: None, name: shown.into(), node: None };
    Some(Finding {
        rule,
        level,
        in_force: false,
        object: by.map_or(nowhere, |place| place.object.clone()),
        field: by.map_or_else(|| "version".into(), |place| place.field.clone()),
        value: match &state.switch {
            Switch::On { .. } => Some("Enabled".into()),
            _ => state.version.clone(),
        },
        message,
        addresses: Vec::new(),
        written: None,
        created: None,
        next,
    })
}

/// Findings about those who may write what the attack needs. Where nothing follows from it they are
/// only notes.
fn of_holders(reach: &Reach, verdict: Verdict) -> Vec<Finding> {
    let matters = matches!(verdict, Verdict::Exposed | Verdict::Compromised);
    let tenants = reach.holders.iter().filter(|holder| holder.system.is_none());
    let finding = tenants.map(|holder| {
        let place = match &holder.namespace {
            Some(namespace) => format!("in namespace {namespace}"),
            None => "in all namespaces".to_owned(),
        };
        Finding {
            rule: Rule::MayPatchPods,
            level: match holder.danger {
                _ if !matters => Level::Note,
                70.. => Level::High,
                50.. => Level::Medium,
                _ => Level::Low,
            },
            in_force: false,
            object: holder.object.clone(),
            field: "subjects".into(),
            value: Some(format!("{} {}", holder.kind, holder.subject).into()),
            message: format!(
                "{} {} may {} {place}, by {}",
                holder.kind,
                holder.subject,
                holder.rights.join(", "),
                holder.role
            ),
            addresses: Vec::new(),
            written: None,
            created: None,
            next: holder.close.clone().unwrap_or_else(|| {
                "edit the binding by hand: its name cannot be typed safely".to_owned()
            }),
        }
    });
    finding.collect()
}

/// What the engine found in the tables of the node.
fn diversion(found: &Diversion) -> Finding {
    let text = |text: &str| -> Box<str> { printable(text, 400).into() };
    let charge = &found.charge;
    let pod = charge.attacker.pod.as_ref();
    let object = match pod {
        Some(key) => Object {
            kind: "pod",
            namespace: Some(key.namespace().into()),
            name: key.name().into(),
            node: None,
        },
        None => Object { kind: "node", namespace: None, name: "this node".into(), node: None },
    };
    Finding {
        rule: Rule::LiveDiversion,
        level: match charge.severity {
            Severity::Critical => Level::Critical,
            Severity::High => Level::High,
            Severity::Medium => Level::Medium,
            Severity::Low => Level::Low,
        },
        in_force: charge.certainty == Certainty::Hijack,
        object,
        field: text(&found.key.to_string()),
        value: None,
        message: text(&charge.reason).into(),
        addresses: Vec::new(),
        written: None,
        created: None,
        next: format!("detector runbook {}", charge.means.as_str()),
    }
}
