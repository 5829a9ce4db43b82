//! What a client can ask about the server itself.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::kind::{KINDS, Kind};

/// What a path that names no resource answers; None when it names nothing at all.
pub(super) fn answer(path: &str) -> Option<Value> {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["version"] => Some(version()),
        ["api"] => Some(json!({ "kind": "APIVersions", "versions": ["v1"] })),
        ["api", version] => resources("", version),
        ["apis"] => {
            let groups: BTreeSet<_> = KINDS.iter().map(|kind| kind.group).collect();
            let groups: Vec<_> = groups.into_iter().filter_map(group).collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", name] => group(name).map(|mut group| {
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            group
        }),
        ["apis", group, version] if !group.is_empty() => resources(group, version),
        _ => None,
    }
}

/// The version of a server whose behaviour this is.
fn version() -> Value {
    json!({
        "major": "1", "minor": "31", "gitVersion": "v1.31.0", "gitCommit": "", "gitTreeState": "",
        "buildDate": "2024-08-13T00:00:00Z", "goVersion": "", "compiler": "", "platform": "linux",
    })
}

fn group(name: &str) -> Option<Value> {
    let kind = KINDS.iter().find(|kind| kind.group == name && !name.is_empty())?;
    let version = json!({ "groupVersion": kind.api_version(), "version": kind.version });
    Some(json!({ "name": name, "versions": [version], "preferredVersion": version }))
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let served = |kind: &&Kind| kind.group == group && kind.version == version;
    let first = KINDS.iter().find(served)?;
    let resources: Vec<_> = KINDS.iter().filter(served).flat_map(resource).collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": first.api_version(), "resources": resources,
    }))
}

/// A kind, and its status subresource where it has one.
fn resource(kind: &Kind) -> Vec<Value> {
    let entry = |name: String, verbs: &[&str]| {
        json!({ "name": name, "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.name, "verbs": verbs })
    };
    let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
    let mut entries = vec![entry(kind.plural.to_owned(), &verbs)];
    if kind.status {
        entries.push(entry(format!("{}/status", kind.plural), &["get", "patch", "update"]));
    }
    entries
}
