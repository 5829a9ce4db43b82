//! The verdict, each with its reasons and the next command (pure).

use std::collections::BTreeSet;

use detector_core::policy::AllowList;

use super::exposure::{Exposure, NodeState, Presence, Switch};
use super::facts::{Facts, Guard, Kind};
use super::report::{Finding, Level, Reach, Verdict};
use crate::admission::Grants;

/// How many reasons of one sort are told; the findings have them all.
const TOLD: usize = 3;

/// What was judged.
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) reasons: Vec<String>,
    pub(super) next: String,
}

/// Judges by what was found. `findings` are those about pods and about the node's tables.
pub(super) fn judge(
    facts: &Facts,
    exposure: &Exposure,
    findings: &[Finding],
    reach: &Reach,
    allowed: &AllowList,
) -> Judged {
    let hits: Vec<&Finding> =
        findings.iter().filter(|f| f.in_force && f.level >= Level::High).collect();
    if let Some(first) = hits.first() {
        let tell = |hit: &&Finding| format!("{}: {}", hit.object.shown(), hit.message);
        let mut reasons: Vec<String> = hits.iter().take(TOLD).map(tell).collect();
        if let Some(more) = hits.len().checked_sub(TOLD).filter(|more| *more > 0) {
            reasons.push(format!("and {more} more findings of this kind"));
        }
        return Judged { verdict: Verdict::Compromised, reasons, next: evidence(first) };
    }
    match &exposure.presence {
        Presence::Absent => Judged {
            verdict: Verdict::NotAffected,
            reasons: vec![
                "there is no Calico: no calico-node, no ClusterInformation, no configuration of its \
                 CNI plugin"
                    .into(),
            ],
            next: "nothing to do".into(),
        },
        Presence::Hidden(kinds) => {
            let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
            undetermined(facts, vec![format!(
                "whether there is any Calico cannot be told without seeing {}",
                kinds.join(", ")
            )])
        }
        Presence::Present => with_calico(facts, exposure, reach, allowed),
    }
}

/// What the admission policy leaves out, namespaces and ranges, although neither the allow-list in force
/// has it nor everybody but the cluster's own is kept from the pods there.
fn left_out(
    except: &BTreeSet<Box<str>>,
    allows: &Grants,
    reach: &Reach,
    allowed: &AllowList,
) -> Vec<String> {
    let is_allowed = |namespace: &str| allowed.entries().iter().any(|e| *e.namespace == *namespace);
    let covered = |namespace: &str| {
        let mut tenants = reach.holders.iter().filter(|holder| holder.system.is_none());
        tenants.any(|holder| holder.namespace.as_deref().is_none_or(|own| own == namespace))
    };
    let names = except.iter().filter(|name| !is_allowed(name));
    let namespaces = names.map(|name| (name.clone(), format!("namespace {name}")));
    let beyond = allows.beyond(allowed.entries()).into_iter();
    let all = namespaces.chain(beyond.map(|entry| (entry.namespace.clone(), entry.to_string())));
    all.filter(|(namespace, _)| !reach.complete || covered(namespace))
        .map(|(_, shown)| shown)
        .collect()
}

fn with_calico(facts: &Facts, exposure: &Exposure, reach: &Reach, allowed: &AllowList) -> Judged {
    let open: Vec<&NodeState> = exposure.nodes.values().filter(|node| node.is_open()).collect();
    let pods = facts.sees(Kind::Pods);
    let blind = || "pods could not all be seen, so no indicator can be ruled out".to_owned();
    if open.is_empty() {
        let unknown = exposure.nodes.values().find_map(|node| match &node.switch {
            Switch::Unknown { why } => Some(why),
            _ => None,
        });
        if let Some(why) = unknown {
            return undetermined(
                facts,
                vec![format!("whether floating IPs are on cannot be told: {why}")],
            );
        }
        if !pods {
            return undetermined(facts, vec![blind()]);
        }
        let by = exposure.nodes.values().find_map(|node| match &node.switch {
            Switch::Off { by, unless } => Some((by, unless)),
            _ => None,
        });
        let unless = exposure.nodes.values().find_map(|node| match &node.switch {
            Switch::Off { by, unless: unless @ Some(_) } => Some((by, unless)),
            _ => None,
        });
        let reason = match unless.or(by) {
            Some((by, Some(unless))) => format!(
                "every node runs a version with the fix, and floating IPs are off ({by}), {unless}"
            ),
            Some((by, None)) => format!(
                "every node runs a version with the fix, and floating IPs are off ({by}); keep them so"
            ),
            None => "calico-node runs on no node that was seen".into(),
        };
        return guarded(vec![reason], "detector audit --output sarif > audit.sarif");
    }
    let mut reasons = why_open(&open, exposure);
    if let Guard::Stands { except, allows } = &facts.guard
        && pods
        && left_out(except, allows, reach, allowed).is_empty()
    {
        let mut but = if except.is_empty() {
            String::new()
        } else {
            let names: Vec<&str> = except.iter().map(|name| &**name).collect();
            format!(", but for namespaces {}", names.join(", "))
        };
        if *allows != Grants::default() {
            but += ", but for what the allow-list has";
        }
        reasons.push(format!("the admission policy refuses the annotations{but}"));
        return guarded(reasons, "detector audit --fix-plan");
    }
    let tenants = reach.holders.iter().filter(|holder| holder.system.is_none()).count();
    if tenants == 0 && reach.complete && pods {
        reasons.push(
            "nobody but the cluster's own accounts and its administrators may write what the attack \
             needs"
                .into(),
        );
        return guarded(reasons, "detector audit --fix-plan");
    }
    reasons.push(match (tenants, reach.complete) {
        (0, _) => "roles and bindings could not all be seen, so nobody can be ruled out".into(),
        (1, _) => "1 subject that is none of the cluster's own may do so".to_owned(),
        (count, _) => format!("{count} subjects that are none of the cluster's own may do so"),
    });
    if let Guard::Ineffective(why) = &facts.guard {
        reasons.push(format!("the admission policy does not count: {why}"));
    }
    if let Guard::Stands { except, allows } = &facts.guard {
        let mut names = left_out(except, allows, reach, allowed);
        if let Some(more) = names.len().checked_sub(TOLD).filter(|more| *more > 0) {
            names.truncate(TOLD);
            names.push(format!("and {more} more"));
        }
        if !names.is_empty() {
            reasons.push(format!(
                "the admission policy leaves out what the allow-list does not have: {}",
                names.join(", ")
            ));
        }
    }
    if !pods {
        reasons.push(blind());
    }
    Judged { verdict: Verdict::Exposed, reasons, next: "detector audit --fix-plan".into() }
}

/// Why nodes are open, each way once.
fn why_open(open: &[&NodeState], exposure: &Exposure) -> Vec<String> {
    let count = |wanted: fn(&Switch) -> bool| open.iter().filter(|n| wanted(&n.switch)).count();
    let all = exposure.nodes.len();
    let of = |count: usize| match (count, all) {
        (1, 1) => "1 node".to_owned(),
        (count, all) if count == all => format!("all {all} nodes"),
        (count, all) => format!("{count} of {all} nodes"),
    };
    let mut reasons = Vec::new();
    let missing = count(|switch| matches!(switch, Switch::Missing));
    if missing > 0 {
        reasons.push(format!(
            "whoever may annotate pods can divert traffic on {}: their Calico has no switch for it \
             (CVE-2022-28224)",
            of(missing)
        ));
    }
    let on = count(|switch| matches!(switch, Switch::On { .. }));
    if on > 0 {
        reasons.push(format!(
            "whoever may annotate pods can divert traffic on {}: floating IPs are on, and Calico does \
             not ask who claims what",
            of(on)
        ));
    }
    let uncertain = count(|switch| matches!(switch, Switch::Unknown { .. }));
    if uncertain > 0 {
        reasons.push(format!(
            "the version on {} does not tell whether it has the fix: it is taken for affected",
            of(uncertain)
        ));
    }
    reasons
}

fn guarded(reasons: Vec<String>, next: &str) -> Judged {
    Judged { verdict: Verdict::Guarded, reasons, next: next.into() }
}

/// What lets the next audit see more.
fn undetermined(facts: &Facts, reasons: Vec<String>) -> Judged {
    let next = if facts.offline {
        // By two lists: kubectl gives nothing of one in which the server lacks a kind.
        "kubectl get pods,nodes,services,configmaps,namespaces,daemonsets,clusterroles,roles,\
         clusterrolebindings,rolebindings --all-namespaces --show-managed-fields --output yaml > \
         cluster.yaml; for kind in clusterinformations felixconfigurations ippools ipamblocks \
         installations.operator.tigera.io floatingipallowances validatingadmissionpolicies \
         validatingadmissionpolicybindings; do kubectl get $kind --output yaml > $kind.yaml; done"
    } else {
        "kubectl apply --filename deploy/audit-rbac.yaml"
    };
    Judged { verdict: Verdict::Undetermined, reasons, next: next.into() }
}

/// What is looked at before anything is changed.
fn evidence(hit: &Finding) -> String {
    match (hit.object.kind, &hit.object.namespace) {
        ("pod", Some(namespace)) => format!(
            "kubectl get --namespace {namespace} pod/{} --output yaml --show-managed-fields",
            hit.object.name
        ),
        _ => hit.next.clone(),
    }
}
