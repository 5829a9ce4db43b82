//! The fix plan: what to do, in order, as commands to read and to type (pure). Nothing is ever applied.

use std::collections::BTreeSet;

use detector_core::policy::AllowList;

use super::exposure::{Exposure, NodeState, Standing, Switch};
use super::facts::{CalicoNode, Facts, Guard};
use super::report::{Finding, Level, Object, Reach, Rule, Step};
use super::shell::word;
use crate::admission::{Action, Form, Part, Policy};
use crate::policy::Allowed;
use crate::source::cluster::parse::{FLOATING_IPS, SOURCE_PREFIXES};
use crate::source::cluster::version::Product;

/// Steps that are told one by one; the JSON report has all findings.
const MOST: usize = 200;

/// The steps, each only where there is reason for it.
pub(super) fn steps(
    facts: &Facts,
    exposure: &Exposure,
    findings: &[Finding],
    reach: &Reach,
    allowed: &AllowList,
) -> Vec<Step> {
    let open = exposure.nodes.values().any(NodeState::is_open);
    let mut steps = Vec::new();
    steps.extend(keep_evidence(findings));
    steps.extend(remove_annotations(findings));
    steps.extend(end_forgeries(findings));
    if open {
        steps.extend(install_policy(facts, allowed));
        steps.extend(tighten(reach));
        steps.extend(switch_off(facts, exposure, findings));
    }
    steps.extend(upgrade(exposure));
    steps
}

/// The first release with the fix that is nearest to what a node runs.
pub(super) fn fixed_release(state: &NodeState) -> String {
    let version = state.version.as_deref().unwrap_or_default();
    let on = |line: &str| version.trim_start_matches(['v', 'V']).starts_with(line);
    let (product, nearest) = match state.product {
        Product::Calico if on("3.20.") => {
            ("Calico", "v3.20.5 or, better, a release that is maintained")
        }
        Product::Calico if on("3.21.") => {
            ("Calico", "v3.21.5 or, better, a release that is maintained")
        }
        Product::Calico => ("Calico", "v3.22.2 or later"),
        Product::Enterprise if on("3.11.") => ("Calico Enterprise", "v3.11.4 or, better, later"),
        Product::Enterprise => ("Calico Enterprise", "v3.12.1 or later"),
    };
    format!("{product} {nearest}")
}

fn keep_evidence(findings: &[Finding]) -> Option<Step> {
    let hit = findings.iter().any(|finding| finding.in_force && finding.level >= Level::High);
    hit.then(|| Step {
        title: "keep the evidence".into(),
        why: "what follows changes the objects; who wrote them is in their managed fields, and by \
              which account in the audit log of the API server"
            .into(),
        commands: vec![
            "kubectl get pods --all-namespaces --output yaml --show-managed-fields > pods-before.yaml"
                .into(),
        ],
    })
}

fn remove_annotations(findings: &[Finding]) -> Option<Step> {
    let removable = |finding: &&Finding| {
        let keys = [FLOATING_IPS, SOURCE_PREFIXES];
        finding.level >= Level::Low
            && finding.object.kind == "pod"
            && keys.iter().any(|key| *finding.field == *format!("metadata.annotations['{key}']"))
    };
    let mut seen = BTreeSet::new();
    let commands: Vec<String> = findings
        .iter()
        .filter(removable)
        .map(|finding| finding.next.clone())
        .filter(|command| seen.insert(command.clone()))
        .take(MOST)
        .collect();
    (!commands.is_empty()).then(|| Step {
        title: "remove the annotations".into(),
        why: "Felix takes back what it did for an annotation as soon as it is gone".into(),
        commands,
    })
}

fn end_forgeries(findings: &[Finding]) -> Option<Step> {
    let rules =
        [Rule::AgainstIpam, Rule::OutsideRanges, Rule::AnnotatedPodIps, Rule::IpAddrsNoIpam];
    let forged = findings.iter().filter(|finding| {
        finding.in_force && finding.object.kind == "pod" && rules.contains(&finding.rule)
    });
    let mut seen = BTreeSet::new();
    let commands: Vec<String> = forged
        .filter_map(|finding| {
            let namespace = finding.object.namespace.as_deref()?;
            Some(format!("kubectl delete --namespace {namespace} pod/{}", finding.object.name))
        })
        .filter(|command| seen.insert(command.clone()))
        .take(MOST)
        .collect();
    (!commands.is_empty()).then(|| Step {
        title: "end the pods that have addresses of others".into(),
        why: "a status that was forged cannot be taken back, and an address that was given past IPAM \
              goes with its pod; look at each first"
            .into(),
        commands,
    })
}

fn install_policy(facts: &Facts, allowed: &AllowList) -> Option<Step> {
    if let Guard::Stands { except, allows } = &facts.guard {
        let named = |name: &str| allowed.entries().iter().any(|e| *e.namespace == *name);
        if except.iter().all(|name| named(name)) && allows.beyond(allowed.entries()).is_empty() {
            return None;
        }
    }
    let in_force = |entry: &&Allowed| allowed.entries().contains(&entry.allowance);
    let policy = Policy {
        allowed: facts.allowed.iter().filter(in_force).cloned().collect(),
        ..Policy::default()
    };
    let but = if policy.allowed.is_empty() { "" } else { ", but for what the allow-list has" };
    Some(Step {
        title: "install the admission policies".into(),
        why: format!(
            "they refuse annotations that claim addresses{but}, by any way onto a pod, from Kubernetes \
             v1.31 on; what is there already can stay and be removed. Two more keep the CNI plugin's \
             annotations to the CNI plugin and pods' addresses to kubelets. `detector policy` prints the \
             same, and with --action audit refuses nothing yet"
        ),
        commands: vec![format!(
            "kubectl apply --filename - <<'EOF'\n{}EOF",
            policy.print(&Part::ALL, Form::Vap, Action::Deny)
        )],
    })
}

fn tighten(reach: &Reach) -> Option<Step> {
    let mut seen = BTreeSet::new();
    let tenants = reach.holders.iter().filter(|holder| holder.system.is_none());
    let commands: Vec<String> = tenants
        .filter_map(|holder| holder.close.clone())
        .filter(|command| seen.insert(command.clone()))
        .take(MOST)
        .collect();
    (!commands.is_empty()).then(|| Step {
        title: "tighten the roles".into(),
        why: "the bulletin's workaround: few need to patch pods or to write their status; ask before \
              you take it away, the most dangerous come first"
            .into(),
        commands,
    })
}

fn switch_off(facts: &Facts, exposure: &Exposure, findings: &[Finding]) -> Option<Step> {
    let used = findings
        .iter()
        .any(|finding| finding.rule == Rule::FloatingIps && finding.level == Level::Note);
    let on = exposure.nodes.values().filter_map(|state| match &state.switch {
        Switch::On { by } => Some(by),
        _ => None,
    });
    let commands: BTreeSet<String> = on
        .filter_map(|by| {
            let name = word(&by.object.name)?;
            let namespace = by.object.namespace.as_deref().map(word);
            match (by.object.kind, namespace) {
                ("FelixConfiguration", _) => Some(format!(
                    "kubectl patch felixconfigurations.crd.projectcalico.org/{name} --type merge \
                     --patch '{{\"spec\":{{\"floatingIPs\":\"Disabled\"}}}}'"
                )),
                // A pod has its environment from its DaemonSet.
                (kind, Some(Some(namespace))) => {
                    let name = if kind == "DaemonSet" {
                        Some(name)
                    } else {
                        rollout_of(facts, &by.object).and_then(|name| word(&name))
                    };
                    Some(match name {
                        Some(name) => format!(
                            "kubectl set env --namespace {namespace} daemonset/{name} \
                             FELIX_FLOATINGIPS-"
                        ),
                        None => format!(
                            "# take FELIX_FLOATINGIPS out of what makes the pods of calico-node in \
                             namespace {namespace}"
                        ),
                    })
                }
                _ => None,
            }
        })
        .collect();
    (!commands.is_empty() && !used).then(|| Step {
        title: "switch floating IPs off".into(),
        why: "no approved use of them was seen".into(),
        commands: commands.into_iter().collect(),
    })
}

/// The DaemonSet that a pod of calico-node is of: the only one in its namespace, else its owner.
fn rollout_of(facts: &Facts, pod: &Object) -> Option<String> {
    let namespace = pod.namespace.as_deref()?;
    let mut rollouts = facts.rollouts.iter().filter(|rollout| *rollout.namespace == *namespace);
    if let (Some(rollout), None) = (rollouts.next(), rollouts.next()) {
        return Some(rollout.name.to_string());
    }
    let is = |agent: &&CalicoNode| *agent.namespace == *namespace && *agent.name == *pod.name;
    facts.agents.iter().find(is)?.owner.as_deref().map(str::to_owned)
}

fn upgrade(exposure: &Exposure) -> Option<Step> {
    let affected: BTreeSet<String> = exposure
        .nodes
        .values()
        .filter(|state| matches!(state.standing, Standing::Affected | Standing::Uncertain))
        .map(|state| match state.standing {
            Standing::Uncertain => format!(
                "{} {}: ask its vendor whether the fix of CVE-2022-28224 is in it",
                state.product.as_str(),
                state.version.as_deref().unwrap_or("-")
            ),
            _ => format!(
                "{} {}: to {}",
                state.product.as_str(),
                state.version.as_deref().unwrap_or("-"),
                fixed_release(state)
            ),
        })
        .collect();
    (!affected.is_empty()).then(|| Step {
        title: "upgrade Calico".into(),
        why: format!(
            "{}. The fix is a switch that is off by default: leave it so",
            affected.into_iter().collect::<Vec<_>>().join("; ")
        ),
        commands: Vec::new(),
    })
}
