//! Writes: what each may touch, and what refuses it.

use std::time::Duration;

use serde_json::{Value, json};

use super::kind::Kind;
use super::object::{
    SERVER_FIELDS, agree_on_pod_addresses, copy, merge, meta, set_meta, time_after,
};
use super::refusal::Refusal;
use super::store::{Key, Store, at_version};

/// Grace of a pod that says nothing about it, in seconds.
const DEFAULT_GRACE: u64 = 30;

/// Which part of an object a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Main,
    Status,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub(super) struct Deletion {
    /// Seconds; None leaves it to the object.
    grace: Option<u64>,
    uid: Option<String>,
    version: Option<String>,
}

// === impl Deletion ===

impl Deletion {
    pub(super) fn at_once() -> Self {
        Self { grace: Some(0), ..Self::default() }
    }

    /// Reads a `DeleteOptions` object, or the null of an empty body.
    pub(super) fn of(options: &Value, grace_parameter: Option<u64>) -> Self {
        let condition = |field: &str| options["preconditions"][field].as_str().map(str::to_owned);
        Self {
            grace: options["gracePeriodSeconds"].as_u64().or(grace_parameter),
            uid: condition("uid"),
            version: condition("resourceVersion"),
        }
    }
}

/// POST.
pub(super) fn create(
    store: &mut Store,
    kind: &Kind,
    namespace: &str,
    mut object: Value,
) -> Result<Value, Refusal> {
    complete(kind, &mut object)?;
    if meta(&object, "name").is_empty() && !meta(&object, "generateName").is_empty() {
        let name = format!("{}{:05x}", meta(&object, "generateName"), store.version());
        set_meta(&mut object, "name", json!(name));
    }
    let key = located(kind, namespace, &mut object)?;
    if !meta(&object, "resourceVersion").is_empty() {
        // As a real server says it: no reason, and as if it were its own fault.
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Refusal::new(500, "", message));
    }
    if store.get(&key).is_some() {
        return Err(Refusal::already_exists(kind, &key.name));
    }
    for field in SERVER_FIELDS {
        set_meta(&mut object, field, Value::Null);
    }
    // A kubelet registers its node with a status; nobody else may bring one.
    match kind.plural {
        "pods" => object["status"] = json!({ "phase": "Pending" }),
        "nodes" => {}
        _ if kind.status => object["status"] = json!({}),
        _ => {}
    }
    Ok(store.put(key, object).as_ref().clone())
}

/// PUT.
pub(super) fn replace(
    store: &mut Store,
    key: &Key,
    part: Part,
    mut object: Value,
) -> Result<Value, Refusal> {
    let kind = key.kind()?;
    complete(kind, &mut object)?;
    if meta(&object, "name") != key.name {
        let message = "the name of the object does not match the name on the URL";
        return Err(Refusal::bad_request(message));
    }
    located(kind, &key.namespace, &mut object)?;
    if kind.custom && meta(&object, "resourceVersion").is_empty() {
        let why = "metadata.resourceVersion: must be specified for an update";
        return Err(Refusal::invalid(kind, &key.name, why));
    }
    update(store, key, part, object)
}

/// PATCH with a merge patch.
pub(super) fn patch(
    store: &mut Store,
    key: &Key,
    part: Part,
    patch: &Value,
) -> Result<Value, Refusal> {
    let mut object = store.existing(key)?.as_ref().clone();
    merge(&mut object, patch);
    complete(key.kind()?, &mut object)?;
    update(store, key, part, object)
}

/// DELETE.
pub(super) fn delete(store: &mut Store, key: &Key, how: &Deletion) -> Result<Value, Refusal> {
    let kind = key.kind()?;
    let object = store.existing(key)?;
    let wants = [("uid", &how.uid), ("resourceVersion", &how.version)];
    for (field, wanted) in wants {
        if wanted.as_ref().is_some_and(|wanted| wanted != meta(&object, field)) {
            let why = format!("the {field} in the precondition is not the object's");
            return Err(Refusal::conflict(kind, &key.name, &why));
        }
    }
    if !key.is_of(Kind::of_plural("pods")?) {
        return take(store, key);
    }
    let grace = pod_grace(&object, how);
    let mut going = object.as_ref().clone();
    // A second deletion may shorten the grace, never lengthen it.
    let standing = going["metadata"]["deletionGracePeriodSeconds"].as_u64();
    if standing.is_none_or(|standing| grace < standing) {
        set_meta(&mut going, "deletionTimestamp", time_after(Duration::from_secs(grace)));
        set_meta(&mut going, "deletionGracePeriodSeconds", json!(grace));
    }
    // It is written down even where there is no grace, and watches are told
    // (`updateForGracefulDeletionAndFinalizers` in the generic registry).
    let going = store.put(key.clone(), going).as_ref().clone();
    if grace == 0 { take(store, key) } else { Ok(going) }
}

fn take(store: &mut Store, key: &Key) -> Result<Value, Refusal> {
    let last = store.take(key)?.as_ref().clone();
    Ok(at_version(last, store.version()))
}

/// A pod that no node runs, or runs no more, needs no grace (`podStrategy.CheckGracefulDelete`).
fn pod_grace(pod: &Value, how: &Deletion) -> u64 {
    let unassigned = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if unassigned || finished {
        return 0;
    }
    let own = pod["spec"]["terminationGracePeriodSeconds"].as_u64();
    how.grace.or(own).unwrap_or(DEFAULT_GRACE)
}

/// A test's own create or replace, of all parts.
pub(super) fn apply(store: &mut Store, mut object: Value) -> Result<Value, Refusal> {
    let kind = Kind::of_object(&object)?;
    complete(kind, &mut object)?;
    let namespace = meta(&object, "namespace").to_owned();
    let key = located(kind, &namespace, &mut object)?;
    set_meta(&mut object, "resourceVersion", Value::Null);
    if let Some(old) = store.get(&key).cloned() {
        let uid = meta(&object, "uid");
        if uid.is_empty() || uid == meta(&old, "uid") {
            copy(&old["metadata"], &mut object["metadata"], "uid");
            copy(&old["metadata"], &mut object["metadata"], "creationTimestamp");
        } else {
            store.take(&key)?;
        }
    }
    Ok(write(store, key, object))
}

/// A test's own patch, of all parts.
pub(super) fn patch_all(store: &mut Store, key: &Key, patch: &Value) -> Result<Value, Refusal> {
    let mut object = store.existing(key)?.as_ref().clone();
    merge(&mut object, patch);
    complete(key.kind()?, &mut object)?;
    Ok(write(store, key.clone(), object))
}

/// A test's own write of a status.
pub(super) fn set_status(store: &mut Store, key: &Key, status: &Value) -> Result<Value, Refusal> {
    let mut object = store.existing(key)?.as_ref().clone();
    copy(&json!({ "status": status }), &mut object, "status");
    Ok(write(store, key.clone(), object))
}

/// Checks a new state against the old one and joins the parts of both that this write may take.
fn update(store: &mut Store, key: &Key, part: Part, new: Value) -> Result<Value, Refusal> {
    let kind = key.kind()?;
    let old = store.existing(key)?;
    let stale = |field| {
        let told = meta(&new, field);
        !told.is_empty() && told != meta(&old, field)
    };
    if stale("resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        return Err(Refusal::conflict(kind, &key.name, why));
    }
    if stale("uid") {
        return Err(Refusal::conflict(kind, &key.name, "its uid is another one now"));
    }
    let mut joined = match part {
        Part::Main => new,
        // The status subresource takes labels and annotations too, but no owner references
        // (`podStatusStrategy.PrepareForUpdate`).
        Part::Status => {
            let mut joined = old.as_ref().clone();
            copy(&new, &mut joined, "status");
            for field in ["labels", "annotations"] {
                copy(&new["metadata"], &mut joined["metadata"], field);
            }
            joined
        }
    };
    if part == Part::Main && kind.status {
        copy(&old, &mut joined, "status");
    }
    for field in SERVER_FIELDS.iter().chain(&["name", "namespace"]) {
        copy(&old["metadata"], &mut joined["metadata"], field);
    }
    if kind.plural == "pods" && fixed_spec(&joined) != fixed_spec(&old) {
        let why = "spec: Forbidden: pod updates may not change fields other than the images, \
                   `activeDeadlineSeconds`, `tolerations` and `terminationGracePeriodSeconds`";
        return Err(Refusal::invalid(kind, &key.name, why));
    }
    Ok(write(store, key.clone(), joined))
}

/// The part of a pod's spec that stays for its whole life.
fn fixed_spec(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(fields) = spec.as_object_mut() {
        for free in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
            fields.remove(free);
        }
    }
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container["image"] = Value::Null;
        }
    }
    spec
}

fn write(store: &mut Store, key: Key, mut object: Value) -> Value {
    if object["kind"] == "Pod" {
        agree_on_pod_addresses(&mut object);
    }
    store.put(key, object).as_ref().clone()
}

/// Fills in what an object is, or refuses one that is something else.
fn complete(kind: &Kind, object: &mut Value) -> Result<(), Refusal> {
    if !object.is_object() || !(object["metadata"].is_object() || object["metadata"].is_null()) {
        return Err(Refusal::bad_request("the object and its metadata must be JSON objects"));
    }
    for (field, right) in [("apiVersion", kind.api_version()), ("kind", kind.name.to_owned())] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(right),
            Some(told) if told == right => {}
            Some(told) => {
                let message = format!("{field} is {told:?}, but the path is one of {right:?}");
                return Err(Refusal::bad_request(message));
            }
        }
    }
    set_meta(object, "managedFields", Value::Null);
    Ok(())
}

/// Where an object belongs, once its name and namespace have been checked.
fn located(kind: &Kind, namespace: &str, object: &mut Value) -> Result<Key, Refusal> {
    if kind.namespaced == namespace.is_empty() {
        let need = if kind.namespaced { "needs a" } else { "has no" };
        return Err(Refusal::bad_request(format!("a {} {need} namespace", kind.name)));
    }
    let told = meta(object, "namespace");
    if !told.is_empty() && told != namespace {
        let message = "the namespace of the object does not match the namespace of the request";
        return Err(Refusal::bad_request(message));
    }
    if kind.namespaced {
        set_meta(object, "namespace", json!(namespace));
    }
    let name = meta(object, "name");
    if !is_dns_subdomain(name) {
        let why = format!("metadata.name: {name:?} is not a lower case RFC 1123 subdomain");
        return Err(Refusal::invalid(kind, name, &why));
    }
    Ok(Key::new(kind, namespace, name))
}

fn is_dns_subdomain(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.iter().all(|c| inner(*c) || *c == b'-')
                && bytes.first().is_some_and(|c| inner(*c))
                && bytes.last().is_some_and(|c| inner(*c))
        })
}
