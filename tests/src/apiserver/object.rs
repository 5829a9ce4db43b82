//! What all objects have in common: metadata, and merging.

use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde_json::{Map, Value, json};

/// The fields of metadata that only the server writes.
pub(super) const SERVER_FIELDS: [&str; 4] =
    ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"];

/// A text of the metadata; empty where there is none.
pub(super) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Writes a field of the metadata; null takes it away.
pub(super) fn set_meta(object: &mut Value, field: &str, value: Value) {
    set(&mut object["metadata"], field, value);
}

/// Copies a part of one object to another; where the source has none, the target loses its own.
pub(super) fn copy(from: &Value, to: &mut Value, field: &str) {
    set(to, field, from[field].clone());
}

fn set(holder: &mut Value, field: &str, value: Value) {
    if value.is_null() {
        if let Some(fields) = holder.as_object_mut() {
            fields.remove(field);
        }
    } else {
        holder[field] = value;
    }
}

/// The time in the form of metadata, whole seconds, some time from now.
pub(super) fn time_after(duration: Duration) -> Value {
    let now = Timestamp::now();
    // Neither the sum nor the rounding can leave the range that a Timestamp has before year 9999.
    let then = now.checked_add(duration).unwrap_or(now);
    json!(then.round(Unit::Second).unwrap_or(then).to_string())
}

/// A JSON merge patch (RFC 7386): null takes away, objects merge, all else replaces, lists too.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        target.clone_from(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (field, value) in patch {
        if value.is_null() {
            set(target, field, Value::Null);
        } else {
            merge(&mut target[field], value);
        }
    }
}

/// Makes a pod's `podIP` and `podIPs` agree, as the server's conversion does: where they differ,
/// `podIP` wins and the list becomes that one address.
///
/// Source: `Convert_v1_PodStatus_To_core_PodStatus` and its inverse in pkg/apis/core/v1.
pub(super) fn agree_on_pod_addresses(pod: &mut Value) {
    let status = &mut pod["status"];
    let single = status["podIP"].as_str().filter(|ip| !ip.is_empty()).map(str::to_owned);
    let first = status["podIPs"][0]["ip"].as_str().map(str::to_owned);
    match (single, first) {
        (Some(single), first) if first.as_ref() != Some(&single) => {
            status["podIPs"] = json!([{ "ip": single }]);
        }
        (None, Some(first)) => status["podIP"] = json!(first),
        _ => {}
    }
    if status.is_null() {
        set(pod, "status", Value::Null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_takes_away_merges_and_replaces() {
        let mut object = json!({ "a": { "b": 1, "c": 2 }, "list": [1, 2], "text": "x" });
        merge(
            &mut object,
            &json!({ "a": { "b": null, "d": { "e": null } }, "list": [3], "text": {} }),
        );
        assert_eq!(object, json!({ "a": { "c": 2, "d": {} }, "list": [3], "text": {} }));
    }

    #[test]
    fn pod_ip_is_authoritative_and_fills_or_is_filled() {
        let agreed = |status: Value| {
            let mut pod = json!({ "status": status });
            agree_on_pod_addresses(&mut pod);
            pod["status"].take()
        };
        let both = |ip: &str| json!({ "podIP": ip, "podIPs": [{ "ip": ip }] });
        assert_eq!(agreed(json!({ "podIP": "10.0.0.1" })), both("10.0.0.1"));
        assert_eq!(agreed(json!({ "podIPs": [{ "ip": "10.0.0.2" }] })), both("10.0.0.2"));
        let forged =
            json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.9" }, { "ip": "::9" }] });
        assert_eq!(agreed(forged), both("10.0.0.1"));
        let dual =
            json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "::1" }] });
        assert_eq!(agreed(dual.clone()), dual);
        assert_eq!(agreed(json!({ "phase": "Pending" })), json!({ "phase": "Pending" }));
    }
}
