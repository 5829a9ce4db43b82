//! The command that takes a right away.
//!
//! A role that people wrote is tightened; one that Kubernetes makes anew at each start, that the
//! cluster's own need, or whose wildcards leave nothing to strike out, is taken away from the subjects. Each patch first tests that
//! the object is still as it was read.

use serde_json::{Value, json};

use super::Right;
use crate::audit::facts::{Binding, Bound, Role, Rule};
use crate::audit::shell::word;

/// What is taken out of rules.
const VERBS: [&str; 2] = ["patch", "update"];
const RESOURCES: [&str; 2] = ["pods", "pods/status"];

/// The command; `None` where a name cannot be typed safely. `tightens` says whether the role may be
/// changed for this: its own rules give the right, and nobody of the cluster's own needs it. `tenants`
/// are those of the binding's subjects that are to lose it.
pub(super) fn command(
    role: &Role,
    tightens: bool,
    binding: &Binding,
    tenants: &[&Bound],
) -> Option<String> {
    let tightened = (tightens && !role.bootstrap).then(|| role_patch(role)).flatten();
    tightened.or_else(|| unbind(binding, tenants))
}

/// Tightens a role; `None` where that takes more than striking out.
fn role_patch(role: &Role) -> Option<String> {
    let mut patch = Vec::new();
    let mut added = Vec::new();
    let mut removed = Vec::new();
    for rule in &role.rules {
        let place = format!("/rules/{}", rule.index);
        let (others, pods) = split(rule)?;
        patch.push(json!({ "op": "test", "path": format!("{place}/verbs"), "value": rule.verbs }));
        patch.push(
            json!({ "op": "test", "path": format!("{place}/resources"), "value": rule.resources }),
        );
        match (others, pods) {
            (Some(others), pods) => {
                patch.push(json!({ "op": "replace", "path": place, "value": others }));
                added.extend(pods.map(|p| json!({ "op": "add", "path": "/rules/-", "value": p })));
            }
            (None, Some(pods)) => {
                patch.push(json!({ "op": "replace", "path": place, "value": pods }));
            }
            (None, None) => removed.push((rule.index, json!({ "op": "remove", "path": place }))),
        }
    }
    if patch.is_empty() {
        return None;
    }
    // Rules that go do so last, from the end, so that no other changes its place before.
    removed.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
    patch.extend(added);
    patch.extend(removed.into_iter().map(|(_, operation)| operation));
    let patch = word(&Value::Array(patch).to_string())?;
    let name = word(&role.name)?;
    Some(match &role.namespace {
        Some(namespace) => {
            let namespace = word(namespace)?;
            format!("kubectl patch --namespace {namespace} role/{name} --type json --patch {patch}")
        }
        None => format!("kubectl patch clusterrole/{name} --type json --patch {patch}"),
    })
}

/// What a rule becomes: for other resources as it was, for pods without the verbs. `None` where a
/// wildcard stands in the way.
fn split(rule: &Rule) -> Option<(Option<Value>, Option<Value>)> {
    let wild = |list: &[Box<str>]| list.iter().any(|entry| entry.contains('*'));
    if wild(&rule.verbs) || wild(&rule.resources) || wild(&rule.groups) {
        return None;
    }
    let resources = rule.resources.iter().map(|resource| &**resource);
    let (pods, others): (Vec<&str>, Vec<&str>) =
        resources.partition(|resource| RESOURCES.contains(resource));
    let verbs = rule.verbs.iter().map(|verb| &**verb);
    let verbs: Vec<&str> = verbs.filter(|verb| !VERBS.contains(verb)).collect();
    let build = |resources: &[&str], verbs: Value| {
        let mut value = json!({ "apiGroups": rule.groups, "resources": resources, "verbs": verbs });
        if !rule.names.is_empty() {
            value["resourceNames"] = json!(rule.names);
        }
        value
    };
    let others = (!others.is_empty()).then(|| build(&others, json!(rule.verbs)));
    let pods = (!verbs.is_empty()).then(|| build(&pods, json!(verbs)));
    Some((others, pods))
}

/// Takes subjects out of a binding, or the binding away where it has no others. One patch takes all of
/// them, from the end: after each by itself the next would stand in another place.
fn unbind(binding: &Binding, tenants: &[&Bound]) -> Option<String> {
    let name = word(&binding.name)?;
    let target = match &binding.namespace {
        Some(namespace) => format!("--namespace {} rolebinding/{name}", word(namespace)?),
        None => format!("clusterrolebinding/{name}"),
    };
    if tenants.len() == binding.all {
        return Some(format!("kubectl delete {target}"));
    }
    let place = |bound: &Bound| format!("/subjects/{}", bound.index);
    let mut patch: Vec<Value> = tenants
        .iter()
        .map(|bound| json!({ "op": "test", "path": place(bound), "value": bound.written }))
        .collect();
    let mut last_first = tenants.to_vec();
    last_first.sort_by_key(|bound| std::cmp::Reverse(bound.index));
    patch.extend(last_first.iter().map(|bound| json!({ "op": "remove", "path": place(bound) })));
    let patch = word(&Value::Array(patch).to_string())?;
    Some(format!("kubectl patch {target} --type json --patch {patch}"))
}

/// What the patches strike out is what the rights are made of.
const _: () = assert!(Right::ALL.len() == VERBS.len() * RESOURCES.len());
