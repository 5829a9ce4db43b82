//! Whether the admission policy that refuses the annotations of the family stands (pure).
//!
//! It is counted as a guard only as `detector policy` and the fix plan print it, whatever it allows:
//! another policy may do the same, but who reads other people's CEL had better not vouch for it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::facts::Guard;
use crate::admission::{self, Grants, Part};
use crate::text::printable;

/// The part of the policies that guards against the annotations.
const PART: Part = Part::Claims;

/// The label that each namespace has, with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The name of the policy.
pub(super) fn name() -> &'static str {
    PART.name()
}

/// What a policy of ours says that it allows, and what it must be to allow just that.
fn read(spec: &Value) -> Option<(Grants, Value)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let variables = spec["variables"].as_array()?;
    let variables: Option<Vec<(String, String)>> =
        variables.iter().map(|v| Some((text(&v["name"])?, text(&v["expression"])?))).collect();
    let (grants, allowed) = Grants::read(&variables?)?;
    Some((grants, admission::spec(&admission::Guard::claims(allowed))))
}

/// Whether the policy stands, by its object and the bindings that name it.
pub(super) fn judge(policy: Option<&Value>, bindings: &[Value]) -> Guard {
    let Some(policy) = policy else { return Guard::Absent };
    let spec = &policy["spec"];
    let ineffective = |why: &str| Guard::Ineffective(why.into());
    let other = "it is not as `detector policy` prints it";
    let Some((allows, wanted)) = read(spec) else { return ineffective(other) };
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
        return ineffective(other);
    }
    let excepted = bindings.iter().filter_map(effect);
    // Several bindings refuse more than each of them.
    let excepted = excepted.reduce(|a, b| a.intersection(&b).cloned().collect());
    match excepted {
        Some(except) => Guard::Stands { except, allows },
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
    use detector_core::policy::Allowance;
    use serde_json::json;

    use super::*;
    use crate::admission::{Action, Form, Policy, Trusted};
    use crate::config::value;
    use crate::policy::Allowed;

    fn allowed(entries: &[(&str, &str, &str)]) -> Vec<Allowed> {
        let entry = |(namespace, account, range): &(&str, &str, &str)| Allowed {
            allowance: Allowance {
                cidr: value::cidr(range).unwrap(),
                namespace: (*namespace).into(),
                service_account: (*account).into(),
                origin: "configuration".into(),
                reason: None,
            },
            expires: None,
        };
        entries.iter().map(entry).collect()
    }

    fn documents(allowed: &[Allowed]) -> Vec<Value> {
        let policy = Policy { allowed: allowed.to_vec(), ..Policy::default() };
        let text = policy.print(&[PART], Form::Vap, Action::Deny);
        text.split("---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
    }

    #[test]
    fn what_is_printed_is_what_counts() {
        let many: Vec<(String, String)> = (0..600)
            .map(|n| (format!("account-{}", n % 7), format!("192.0.{}.{}/32", n / 200, n % 200)))
            .collect();
        let many: Vec<(&str, &str, &str)> =
            many.iter().map(|(account, range)| ("edge", &**account, &**range)).collect();
        for entries in [
            &[][..],
            &[("edge", "gateway", "192.0.2.0/28")],
            // Words that YAML takes for something else.
            &[("42", "null", "192.0.2.0/28"), ("edge", "a.b", "2001:db8::/64")],
            &many,
        ] {
            let allowed = allowed(entries);
            let documents = documents(&allowed);
            let allows = Grants::of(&allowed);
            let wanted = admission::Guard::new(PART, &allows, &Trusted::default());
            assert_eq!(documents[0]["spec"], admission::spec(&wanted));
            assert_eq!(allows.entries().unwrap().len(), entries.len());
            let guard = judge(Some(&documents[0]), &documents[1..]);
            assert_eq!(guard, Guard::Stands { except: BTreeSet::new(), allows });
        }
    }

    #[test]
    fn the_allow_list_counts_in_whatever_form_json_has() {
        let allowed = allowed(&[("edge", "gateway", "192.0.2.0/28")]);
        let mut documents = documents(&allowed);
        let variables = documents[0]["spec"]["variables"].as_array_mut().unwrap();
        let own = variables.iter_mut().find(|variable| variable["name"] == "allowed0").unwrap();
        own["expression"] = json!(r#"{"edge/gateway":["192.0.2.0/28"]}"#);
        let guard = judge(Some(&documents[0]), &documents[1..]);
        let allows = Grants::of(&allowed);
        assert_eq!(guard, Guard::Stands { except: BTreeSet::new(), allows });
    }

    #[test]
    fn what_it_allows_beyond_the_allow_list_is_told() {
        let policy = allowed(&[
            ("edge", "gateway", "192.0.2.0/28"),
            ("edge", "gateway", "192.0.2.64/28"),
            ("edge", "other", "192.0.2.0/28"),
        ]);
        let list = allowed(&[("edge", "gateway", "192.0.2.0/27")]);
        let list: Vec<Allowance> = list.into_iter().map(|entry| entry.allowance).collect();
        let beyond = Grants::of(&policy).beyond(&list);
        let shown: Vec<String> = beyond.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["192.0.2.64/28 of edge/gateway", "192.0.2.0/28 of edge/other"]);
    }

    #[test]
    fn namespaces_that_a_binding_leaves_out_are_told() {
        let mut documents = documents(&[]);
        documents[1]["spec"]["matchResources"] = json!({ "namespaceSelector": { "matchExpressions": [
            { "key": NAMESPACE_NAME, "operator": "NotIn", "values": ["edge"] },
        ] } });
        let except = BTreeSet::from(["edge".into()]);
        let guard = judge(Some(&documents[0]), &documents[1..]);
        assert_eq!(guard, Guard::Stands { except, allows: Grants::default() });
    }

    #[test]
    fn whatever_weakens_it_takes_it_away() {
        let mut good = documents(&allowed(&[("edge", "gateway", "192.0.2.0/28")]));
        good[1]["spec"]["matchResources"] = json!({});
        assert!(matches!(judge(Some(&good[0]), &good[1..]), Guard::Stands { .. }));
        assert_eq!(judge(None, &good[1..]), Guard::Absent);
        assert!(matches!(judge(Some(&good[0]), &[]), Guard::Ineffective(_)));
        let position = |name: &str| {
            let variables = good[0]["spec"]["variables"].as_array().unwrap();
            variables.iter().position(|variable| variable["name"] == name).unwrap()
        };
        let variable = |name: &str| format!("/spec/variables/{}/expression", position(name));
        let weaker: [(usize, &str, Value); 14] = [
            (0, "/spec/failurePolicy", json!("Ignore")),
            (0, "/spec/matchConditions", json!([{"name": "a", "expression": "false"}])),
            (0, "/spec/validations/0/expression", json!("true")),
            (0, &variable("before"), json!("variables.annotations")),
            (0, &variable("claims"), json!("[]")),
            (0, &variable("account"), json!("'edge/gateway'")),
            (0, &variable("mine"), json!("['0.0.0.0/1']")),
            // CEL, but no longer JSON; and a range that nobody may allow.
            (0, &variable("allowed0"), json!("{'edge/gateway': ['192.0.2.0/28']}")),
            (0, &variable("allowed0"), json!("{\n  \"edge/gateway\": [\"0.0.0.0/0\"]\n}")),
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
