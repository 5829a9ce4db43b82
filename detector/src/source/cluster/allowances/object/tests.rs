//! What is taken of an object, and that deploy/base/crd.yaml defines just this.

use std::collections::BTreeSet;

use regex::Regex;
use serde_json::{Value, json};

use super::*;
use crate::source::cluster::allowances::status;

/// The definition, as JSON.
fn definition() -> Value {
    let text = include_str!("../../../../../../deploy/base/crd.yaml");
    serde_saphyr::from_str(text).unwrap()
}

fn schema() -> Value {
    definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

fn spec() -> Value {
    json!({
        "cidr": "192.0.2.0/28", "namespace": "edge", "serviceAccount": "gateway",
        "expires": "2030-01-31T18:00:00Z", "reason": "addresses of the edge",
    })
}

fn object(spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "route-hijack-detector.io/v1", "kind": "FloatingIPAllowance",
        "metadata": {"name": "edge", "uid": "u", "resourceVersion": "7", "generation": 3},
        "spec": spec,
    }))
    .unwrap()
}

/// What an object with this field is refused with.
#[track_caller]
fn refusal(field: &str, value: Value) -> String {
    let mut spec = spec();
    spec[field] = value;
    let Problem { field, text } = Object::read(&object(&spec)).unwrap().meaning.unwrap_err();
    format!("{field} {text}")
}

#[test]
fn an_object_is_an_entry_of_the_allow_list() {
    let object = Object::read(&object(&spec())).unwrap();
    assert_eq!((&*object.name, &*object.version, object.generation), ("edge", "7", 3));
    let Allowed { allowance, expires } = object.meaning.unwrap();
    assert_eq!(allowance.cidr.to_string(), "192.0.2.0/28");
    assert_eq!((&*allowance.namespace, &*allowance.service_account), ("edge", "gateway"));
    assert_eq!(&*allowance.origin, "floatingipallowance edge");
    assert_eq!(allowance.reason.as_deref(), Some("addresses of the edge"));
    assert_eq!(expires, Some("2030-01-31T18:00:00Z".parse().unwrap()));
}

#[test]
fn an_address_alone_means_itself() {
    for (typed, cidr) in [("192.0.2.1", "192.0.2.1/32"), ("2001:db8::1", "2001:db8::1/128")] {
        let mut spec = spec();
        spec["cidr"] = json!(typed);
        let meaning = Object::read(&object(&spec)).unwrap().meaning.unwrap();
        assert_eq!(meaning.allowance.cidr.to_string(), cidr);
    }
}

#[test]
fn what_cannot_be_taken_is_named_with_its_field() {
    assert_eq!(
        refusal("cidr", json!("192.0.2.1/28")),
        "spec.cidr \"192.0.2.1/28\" has host bits set: did you mean 192.0.2.0/28?"
    );
    assert_eq!(
        refusal("cidr", json!("127.0.0.1")),
        "spec.cidr \"127.0.0.1\" is loopback, link-local or multicast, never a floating IP: \
         remove it"
    );
    assert_eq!(
        refusal("cidr", json!("::ffff:192.0.2.1")),
        "spec.cidr \"::ffff:192.0.2.1\" is an IPv4-mapped IPv6 address: write it as IPv4, 192.0.2.1"
    );
    assert_eq!(
        refusal("namespace", json!("*")),
        "spec.namespace \"*\" is no namespace: write one name, patterns are not taken"
    );
    assert_eq!(
        refusal("serviceAccount", Value::Null),
        "spec cannot be read: invalid type: null, expected a string"
    );
    assert_eq!(refusal("reason", json!(" ")), "spec.reason is missing: write why it is allowed");
    assert!(refusal("reason", json!("a\nb")).starts_with("spec.reason is not one line"));
    assert_eq!(
        refusal("expires", json!("tomorrow")),
        "spec.expires \"tomorrow\" is no time: write date, time and zone, such as \
         2030-01-31T18:00:00Z"
    );
    let nothing = Object::read(&object(&Value::Null)).unwrap().meaning.unwrap_err();
    assert_eq!(nothing.field, "spec");
}

#[test]
fn the_definition_names_the_kind() {
    let definition = definition();
    assert_eq!(definition["metadata"]["name"], format!("{PLURAL}.{GROUP}"));
    let spec = &definition["spec"];
    assert_eq!((&spec["group"], &spec["scope"]), (&json!(GROUP), &json!("Cluster")));
    assert_eq!((&spec["names"]["kind"], &spec["names"]["plural"]), (&json!(KIND), &json!(PLURAL)));
    assert_eq!(spec["names"]["shortNames"], json!(["fipa"]));
    let version = &spec["versions"][0];
    assert_eq!(version["name"], VERSION);
    assert_eq!(version["subresources"]["status"], json!({}));
}

#[test]
fn the_schema_has_the_fields_of_the_type() {
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let schema = schema();
    let of_spec = &schema["properties"]["spec"];
    let full: Spec = serde_json::from_value(spec()).unwrap();
    assert_eq!(names(&of_spec["properties"]), names(&serde_json::to_value(&full).unwrap()));
    // What the type leaves away where it is empty is what need not be there.
    let required: BTreeSet<String> = serde_json::from_value(of_spec["required"].clone()).unwrap();
    assert_eq!(required, names(&serde_json::to_value(Spec::default()).unwrap()));
    for (name, field) in of_spec["properties"].as_object().unwrap() {
        assert_eq!(field["type"], "string", "{name}");
        assert!(field["maxLength"].is_u64() && field["pattern"].is_string(), "{name}");
        assert!(field["description"].is_string(), "{name}");
    }
}

#[test]
fn the_schema_has_the_fields_of_the_status() {
    let object = Object::read(&object(&spec())).unwrap();
    let now = Timestamp::UNIX_EPOCH;
    for verdict in [status::Verdict::Accepted, status::Verdict::Expired] {
        let patch = status::patch(&object, verdict, now);
        let of_status = &schema()["properties"]["status"]["properties"];
        for name in patch["status"].as_object().unwrap().keys() {
            assert!(of_status[name].is_object(), "{name}");
        }
        let of_condition = &of_status["conditions"]["items"];
        let condition = patch["status"]["conditions"][0].as_object().unwrap();
        for name in condition.keys() {
            assert!(of_condition["properties"][name].is_object(), "{name}");
        }
        for name in of_condition["required"].as_array().unwrap() {
            assert!(condition.contains_key(name.as_str().unwrap()), "{name}");
        }
    }
}

/// The patterns refuse no more than the agent where it takes something, and all that they can see.
#[test]
fn the_schema_takes_what_the_agent_takes() {
    let properties = schema()["properties"]["spec"]["properties"].clone();
    let admits = |field: &str, text: &str| {
        let pattern = Regex::new(properties[field]["pattern"].as_str().unwrap()).unwrap();
        let bound = |key: &str| properties[field][key].as_u64();
        let length = text.chars().count() as u64;
        pattern.is_match(text)
            && bound("minLength").is_none_or(|least| length >= least)
            && bound("maxLength").is_none_or(|most| length <= most)
    };
    let long = "a".repeat(63);
    let both = [
        (
            "cidr",
            vec![
                "192.0.2.0/28",
                "192.0.2.1",
                "10.0.0.0/8",
                "128.0.0.0/1",
                "255.255.255.254/32",
                "2001:db8::/32",
                "2001:db8::1",
                "fd00::1:2/128",
                "2001:0db8:0000:0000:0000:0000:0000:0001/128",
                "2001:DB8::/64",
            ],
        ),
        ("namespace", vec!["a", "edge", "kube-system", "0", &long]),
        ("serviceAccount", vec!["default", "a.b.c", "x-1"]),
        (
            "expires",
            vec![
                "2030-01-31T18:00:00Z",
                "2030-01-31T18:00:00.5+02:00",
                "2030-01-31T18:00:00-11:30",
            ],
        ),
        ("reason", vec!["ticket 42: the VIPs", "\u{e9}t\u{e9}", "x"]),
    ];
    let neither = [
        (
            "cidr",
            vec![
                "",
                "192.0.2.0/0",
                "192.0.2.0/33",
                "192.0.2.0/08",
                "010.0.0.1",
                "192.0.2",
                "*",
                "::/0",
                "2001:db8::/129",
                "fe80::1%eth0",
                "192.0.2.1/28/28",
                " 192.0.2.1",
                "300.0.0.1",
                "192.0.2.1\n",
            ],
        ),
        ("namespace", vec!["", "*", "Edge", "a.b"]),
        ("serviceAccount", vec!["", "*", "A", "a/b"]),
        (
            "expires",
            vec![
                "",
                "tomorrow",
                "2030-01-31",
                "2030-01-31 18:00:00Z",
                "2030-01-31T18:00:00",
                "2030-01-31T18:00Z",
                "2030-01-31T18:00:00.Z",
                "20300131T180000Z",
                "2030-01-31T18:00:00[Europe/Berlin]",
                "2030-01-31T18:00:00Z[UTC]",
            ],
        ),
        ("reason", vec!["", " ", "a\nb", "a\u{7f}"]),
    ];
    let taken = |field: &str, text: &str| {
        let mut spec = spec();
        spec[field] = json!(text);
        Object::read(&object(&spec)).unwrap().meaning
    };
    for (field, texts) in both {
        for text in texts {
            assert!(admits(field, text), "the schema refuses {field} {text:?}");
            taken(field, text).unwrap_or_else(|problem| panic!("{field} {text:?}: {problem:?}"));
        }
    }
    for (field, texts) in neither {
        for text in texts {
            assert!(!admits(field, text), "the schema takes {field} {text:?}");
            let problem = taken(field, text).expect_err(text);
            assert_eq!(problem.field, format!("spec.{field}"));
        }
    }
}
