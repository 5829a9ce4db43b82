//! What is printed, and what is kept in `deploy/policy`.

use std::path::{Path, PathBuf};

use detector_core::policy::Allowance;
use serde_json::Value;

use super::*;
use crate::config::value;

fn entry(range: &str, expires: Option<&str>, origin: &str) -> Allowed {
    Allowed {
        allowance: Allowance {
            cidr: value::cidr(range).unwrap(),
            namespace: "edge".into(),
            service_account: "gateway".into(),
            origin: origin.into(),
            reason: Some("the shop's\naddress".into()),
        },
        expires: expires.map(|at| at.parse().unwrap()),
    }
}

fn documents(text: &str) -> Vec<Value> {
    text.split("---\n").map(|text| serde_saphyr::from_str(text).unwrap()).collect()
}

fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policy").join(name)
}

/// With `UPDATE_GOLDEN=1` the files are written anew.
#[test]
fn the_files_of_deploy_are_what_is_printed_where_nothing_is_allowed() {
    let forms = [(Form::Vap, "validating-admission-policy.yaml"), (Form::Kyverno, "kyverno.yaml")];
    for (form, name) in forms {
        let printed = Policy::default().print(&Part::ALL, form, Action::Deny);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(kept(name), &printed).unwrap();
        }
        let file = std::fs::read_to_string(kept(name)).unwrap();
        assert_eq!(file, printed, "deploy/policy/{name}: UPDATE_GOLDEN=1 writes it anew");
    }
}

#[test]
fn the_two_forms_say_the_same() {
    let mut policy = Policy::default();
    policy.take([entry("192.0.2.0/28", None, "configuration")], Timestamp::UNIX_EPOCH);
    policy.trusted.cni.push("system:serviceaccount:network:cni".into());
    policy.trusted.nodes.push("virtual".into());
    let vap = documents(&policy.print(&Part::ALL, Form::Vap, Action::Deny));
    let kyverno = documents(&policy.print(&Part::ALL, Form::Kyverno, Action::Deny));
    assert_eq!((vap.len(), kyverno.len()), (6, 3));
    for (part, (vap, kyverno)) in Part::ALL.iter().zip(vap.chunks(2).zip(&kyverno)) {
        assert_eq!(vap[0]["metadata"]["name"], part.name());
        assert_eq!(vap[1]["spec"]["policyName"], part.name());
        assert_eq!(kyverno["metadata"], {
            let mut metadata = kyverno["metadata"].clone();
            metadata["name"] = part.name().into();
            metadata
        });
        let rules = kyverno["spec"]["rules"].as_array().unwrap();
        assert_eq!(rules.len(), 1);
        let cel = &rules[0]["validate"]["cel"];
        assert_eq!(cel["variables"], vap[0]["spec"]["variables"]);
        assert_eq!(cel["expressions"], vap[0]["spec"]["validations"]);
        let matched = &rules[0]["match"]["any"][0]["resources"];
        let constraints = &vap[0]["spec"]["matchConstraints"]["resourceRules"][0];
        assert_eq!(matched["operations"], constraints["operations"]);
        let plural = |kind: &Value| {
            let kind = kind.as_str().unwrap().to_lowercase();
            match kind.split_once('/') {
                Some((kind, sub)) => format!("{kind}s/{sub}"),
                None => format!("{kind}s"),
            }
        };
        let kinds: Vec<String> = matched["kinds"].as_array().unwrap().iter().map(plural).collect();
        assert_eq!(Value::from(kinds), constraints["resources"]);
    }
    let text = vap[2].to_string() + &vap[4].to_string();
    assert!(text.contains("in ['system:serviceaccount:network:cni']"), "{text}");
    assert!(text.contains("in ['virtual']"), "{text}");
}

#[test]
fn an_action_is_what_each_form_calls_it() {
    let of = |form, action, pointer: &str| {
        let documents = documents(&Policy::default().print(&[Part::Claims], form, action));
        documents.last().unwrap().pointer(pointer).unwrap().to_string()
    };
    let vap = |action| of(Form::Vap, action, "/spec/validationActions");
    assert_eq!(vap(Action::Deny), r#"["Deny","Audit"]"#);
    assert_eq!(vap(Action::Audit), r#"["Audit"]"#);
    assert_eq!(vap(Action::Warn), r#"["Warn","Audit"]"#);
    let kyverno = |action| {
        let fails = of(Form::Kyverno, action, "/spec/rules/0/validate/failureAction");
        (fails, of(Form::Kyverno, action, "/spec/emitWarning"))
    };
    assert_eq!(kyverno(Action::Deny), (r#""Enforce""#.into(), "false".into()));
    assert_eq!(kyverno(Action::Audit), (r#""Audit""#.into(), "false".into()));
    assert_eq!(kyverno(Action::Warn), (r#""Audit""#.into(), "true".into()));
}

#[test]
fn what_expires_is_noted_and_what_has_expired_is_left_out() {
    let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
    let mut policy = Policy::default();
    policy.take(
        [
            entry("192.0.2.0/28", Some("2030-02-01T00:00:00Z"), "configuration"),
            entry("192.0.2.16/28", Some("2029-12-31T00:00:00Z"), "configuration"),
            // The same by another way, for longer.
            entry("192.0.2.0/28", Some("2031-01-01T00:00:00Z"), "floatingipallowance a"),
        ],
        now,
    );
    let text = policy.print(&[Part::Claims], Form::Vap, Action::Deny);
    assert!(
        text.contains(
            "#   edge/gateway 192.0.2.0/28 (floatingipallowance a: the shop's\\naddress)\n\
         #     expires 2031-01-01T00:00:00Z, which no policy does by itself: print it again then\n"
        ),
        "{text}"
    );
    assert!(text.contains("# Left out: edge/gateway 192.0.2.16/28"), "{text}");
    assert!(text.contains("it has expired\n"), "{text}");
    let allowed = &documents(&text)[0]["spec"]["variables"];
    let allowed = allowed.as_array().unwrap().iter().find(|v| v["name"] == "allowed0").unwrap();
    assert_eq!(allowed["expression"], "{\n  \"edge/gateway\": [\"192.0.2.0/28\"]\n}");
}

#[test]
fn an_account_that_cannot_be_one_is_refused_in_one_line() {
    for name in ["", "a'b", "a\nb", "a b", "\u{e9}"] {
        let error = users(&[name.to_owned()]).unwrap_err().to_string();
        assert!(error.contains("is no account") && !error.contains('\n'), "{error:?}");
    }
    users(&["system:serviceaccount:network:cni".into(), "admin@example.com".into()]).unwrap();
}
