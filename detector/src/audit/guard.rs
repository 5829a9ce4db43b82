//! The admission policy that refuses the annotations of the family, and whether it stands (pure).
//!
//! It is counted as a guard only as it is printed here: another policy may do the same, but who reads
//! other people's CEL had better not vouch for it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::facts::Guard;
use crate::source::cluster::parse::{
    ADDRESSES, ADDRESSES_WITHOUT_IPAM, FLOATING_IPS, SOURCE_PREFIXES,
};
use crate::text::printable;

/// The name of the policy.
pub(super) const NAME: &str = "calico-addresses.route-hijack-detector.io";

/// The label that each namespace has, with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The annotations that nobody but the allowed may set. `podIP` and `podIPs` are the CNI plugin's,
/// whose account has another name in each installation: refusing them could cut pods off.
const REFUSED: [&str; 4] = [FLOATING_IPS, ADDRESSES, ADDRESSES_WITHOUT_IPAM, SOURCE_PREFIXES];

/// What the policy asks of each write. What is there already may stay and may go: or else a kubelet
/// could not report the status of a pod that bears one.
fn expression() -> String {
    let keys: Vec<String> = REFUSED.iter().map(|key| format!("'{key}'")).collect();
    format!(
        "[{}].all(key, !(key in variables.annotations) || (key in variables.before && \
         variables.before[key] == variables.annotations[key]))",
        keys.join(", ")
    )
}

/// The policy's `spec`.
fn spec() -> Value {
    json!({
        "failurePolicy": "Fail",
        "matchConstraints": {
            "resourceRules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["pods", "pods/status"],
            }],
        },
        "variables": [
            {
                "name": "annotations",
                "expression": "has(object.metadata.annotations) ? object.metadata.annotations : {}",
            },
            {
                "name": "before",
                "expression": "oldObject != null && has(oldObject.metadata.annotations) ? \
                               oldObject.metadata.annotations : {}",
            },
        ],
        "validations": [{
            "expression": expression(),
            "message": "Calico's annotations that claim addresses are not allowed in this namespace \
                        (CVE-2022-28224)",
        }],
    })
}

/// The policy and its binding, which leaves these namespaces out, as YAML for `kubectl apply`.
pub(super) fn manifest(except: &BTreeSet<Box<str>>) -> String {
    let policy = spec();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let variable = |n: usize| {
        let variable = &policy["variables"][n];
        format!(
            "    - name: {}\n      expression: >-\n        {}\n",
            text(&variable["name"]),
            text(&variable["expression"])
        )
    };
    let validation = &policy["validations"][0];
    let resources = if except.is_empty() {
        String::new()
    } else {
        // In quotes: a namespace may be called 42, or null.
        let names: Vec<String> = except.iter().map(|name| format!("\"{name}\"")).collect();
        format!(
            "  matchResources:\n    namespaceSelector:\n      matchExpressions:\n        - {{key: \
             {NAMESPACE_NAME}, operator: NotIn, values: [{}]}}\n",
            names.join(", ")
        )
    };
    format!(
        "apiVersion: admissionregistration.k8s.io/v1\n\
         kind: ValidatingAdmissionPolicy\n\
         metadata:\n  name: {NAME}\n\
         spec:\n  failurePolicy: Fail\n  matchConstraints:\n    resourceRules:\n      \
         - apiGroups: [\"\"]\n        apiVersions: [v1]\n        operations: [CREATE, UPDATE]\n        \
         resources: [pods, pods/status]\n  variables:\n{}{}  validations:\n    - expression: >-\n        \
         {}\n      message: >-\n        {}\n\
         ---\n\
         apiVersion: admissionregistration.k8s.io/v1\n\
         kind: ValidatingAdmissionPolicyBinding\n\
         metadata:\n  name: {NAME}\n\
         spec:\n  policyName: {NAME}\n  validationActions: [Deny, Audit]\n{resources}",
        variable(0),
        variable(1),
        text(&validation["expression"]),
        text(&validation["message"]),
    )
}

/// Whether the policy stands, by its object and the bindings that name it.
pub(super) fn judge(policy: Option<&Value>, bindings: &[Value]) -> Guard {
    let Some(policy) = policy else { return Guard::Absent };
    let (spec, wanted) = (&policy["spec"], spec());
    let ineffective = |why: &str| Guard::Ineffective(why.into());
    // The server fills in what is not said, so what is said is compared field by field.
    let same = spec["failurePolicy"].as_str().unwrap_or("Fail") == "Fail"
        && spec["variables"] == wanted["variables"]
        && spec["validations"][0]["expression"] == wanted["validations"][0]["expression"]
        && spec["matchConditions"].as_array().is_none_or(Vec::is_empty)
        && spec["paramKind"].is_null()
        && spec["matchConstraints"]["excludeResourceRules"].as_array().is_none_or(Vec::is_empty)
        && is_for_all(&spec["matchConstraints"]["namespaceSelector"])
        && is_for_all(&spec["matchConstraints"]["objectSelector"])
        && spec["matchConstraints"]["resourceRules"].as_array().is_some_and(|rules| {
            let wanted = &wanted["matchConstraints"]["resourceRules"][0];
            let fields = ["apiGroups", "apiVersions", "operations", "resources"];
            rules.iter().any(|rule| {
                fields.iter().all(|field| rule[field] == wanted[field])
                    && rule["resourceNames"].as_array().is_none_or(Vec::is_empty)
                    && rule["scope"].as_str().is_none_or(|scope| scope == "*")
            })
        });
    if !same {
        return ineffective("it is not as `detector audit --fix-plan` prints it");
    }
    let excepted = bindings.iter().filter_map(effect);
    // Several bindings refuse more than each of them.
    let excepted = excepted.reduce(|a, b| a.intersection(&b).cloned().collect());
    match excepted {
        Some(except) => Guard::Stands { except },
        None => ineffective("no binding of it denies anything"),
    }
}

/// The namespaces that a binding leaves out; `None` where it does not deny, or where what it leaves out
/// cannot be listed.
fn effect(binding: &Value) -> Option<BTreeSet<Box<str>>> {
    let spec = &binding["spec"];
    let denies =
        spec["validationActions"].as_array().is_some_and(|all| all.iter().any(|a| a == "Deny"));
    let resources = &spec["matchResources"];
    let whole = denies
        && spec["paramRef"].is_null()
        && is_for_all(&resources["objectSelector"])
        && resources["resourceRules"].as_array().is_none_or(Vec::is_empty)
        && resources["excludeResourceRules"].as_array().is_none_or(Vec::is_empty);
    if !whole {
        return None;
    }
    let selector = &resources["namespaceSelector"];
    if is_for_all(selector) {
        return Some(BTreeSet::new());
    }
    let labels = selector["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty);
    let mut except = BTreeSet::new();
    for expression in selector["matchExpressions"].as_array().filter(|_| labels)? {
        if expression["key"] != NAMESPACE_NAME || expression["operator"] != "NotIn" {
            return None;
        }
        let names = expression["values"].as_array()?.iter().filter_map(Value::as_str);
        except.extend(names.map(|name| Box::from(printable(name, 63))));
    }
    Some(except)
}

/// Whether a selector takes everything.
fn is_for_all(selector: &Value) -> bool {
    let empty = |field: &str| match &selector[field] {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => true,
    };
    empty("matchLabels") && empty("matchExpressions")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(except: &[&str]) -> Vec<Value> {
        let except = except.iter().map(|name| Box::from(*name)).collect();
        let text = manifest(&except);
        text.split("---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
    }

    #[test]
    fn what_is_printed_is_what_counts() {
        for except in [&[][..], &["edge"], &["42", "edge", "null"]] {
            let documents = documents(except);
            assert_eq!(documents[0]["spec"], spec());
            let guard = judge(Some(&documents[0]), &documents[1..]);
            let except = except.iter().map(|name| Box::from(*name)).collect();
            assert_eq!(guard, Guard::Stands { except });
        }
    }

    #[test]
    fn whatever_weakens_it_takes_it_away() {
        let good = documents(&["edge"]);
        assert_eq!(judge(None, &good[1..]), Guard::Absent);
        assert!(matches!(judge(Some(&good[0]), &[]), Guard::Ineffective(_)));
        let weaker: [(usize, &str, Value); 9] = [
            (0, "/spec/failurePolicy", json!("Ignore")),
            (0, "/spec/matchConditions", json!([{"name": "a", "expression": "false"}])),
            (0, "/spec/validations/0/expression", json!("true")),
            (0, "/spec/variables/1/expression", json!("variables.annotations")),
            (0, "/spec/matchConstraints/resourceRules/0/resources", json!(["pods"])),
            (0, "/spec/matchConstraints/objectSelector", json!({"matchLabels": {"a": "b"}})),
            (1, "/spec/validationActions", json!(["Warn"])),
            (1, "/spec/matchResources/objectSelector", json!({"matchLabels": {"a": "b"}})),
            (1, "/spec/matchResources/namespaceSelector", json!({"matchLabels": {"a": "b"}})),
        ];
        for (document, path, value) in weaker {
            let mut changed = good.clone();
            let (parent, key) = path.rsplit_once('/').unwrap();
            changed[document].pointer_mut(parent).unwrap()[key] = value;
            let guard = judge(Some(&changed[0]), &changed[1..]);
            assert!(matches!(guard, Guard::Ineffective(_)), "{path}: {guard:?}");
        }
    }
}
