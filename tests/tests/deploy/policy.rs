//! The chart's admission policies are those that `detector policy` prints and the audit knows.

use std::fs;
use std::process::Command;

use detector_tests::agent::program;
use detector_tests::deploy::{Helm, Manifest};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Values with an allowance for a namespace.
pub(crate) const ALLOW: &str = r#"config.floatingIPs.allow=[
    {"cidr": "192.0.2.0/28", "namespace": "edge", "serviceAccount": "gateway"},
    {"cidr": "192.0.2.16/28", "namespace": "edge", "serviceAccount": "other"},
    {"cidr": "192.0.2.32/28", "namespace": "edge", "serviceAccount": "other", "expires": "2020-01-01T00:00:00Z"},
    {"cidr": "192.0.2.48/28", "namespace": "edge", "serviceAccount": "other", "expires": "2130-01-01T00:00:00.5+01:00"}
]"#;

/// What `detector policy` prints with the agent's configuration.
fn printed(config: &str) -> Manifest {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("config.yaml");
    fs::write(&file, config).unwrap();
    let output =
        Command::new(program().unwrap()).args(["policy", "--config"]).arg(file).output().unwrap();
    Manifest::parse(String::from_utf8(output.stdout).unwrap()).unwrap()
}

/// A `spec` with its allow-list as what it means, however it is written.
fn read(object: &Value) -> Value {
    let mut spec = object["spec"].clone();
    for variable in spec["variables"].as_array_mut().into_iter().flatten() {
        if variable["name"] == "allowed0" {
            let text = variable["expression"].as_str().unwrap();
            variable["expression"] = serde_json::from_str(text).unwrap();
        }
    }
    spec
}

#[test]
fn it_is_what_is_printed() {
    let Some(helm) = Helm::find_or_skip("the chart's admission policy") else { return };
    for more in [&[][..], &["--set-json", ALLOW]] {
        let mut arguments = vec!["--set=policy.enabled=true"];
        arguments.extend(more);
        let chart = helm.template(&arguments).unwrap();
        let printed = printed(chart.config().unwrap());
        for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
            let (mine, its) = (chart.of_kind(kind), printed.of_kind(kind));
            assert!(mine.keys().eq(its.keys()) && mine.len() == 3, "{kind}: by the same names");
            for (name, object) in mine {
                assert_eq!(read(object), read(its[name]), "{kind}");
            }
        }
    }
    let one = ["--set=policy.enabled=true", "--set-json=policy.only=[\"claims\"]"];
    let chart = helm.template(&one).unwrap();
    assert_eq!(chart.of_kind("ValidatingAdmissionPolicy").len(), 1);
}

#[test]
fn its_action_and_its_exceptions_are_values() {
    let Some(helm) = Helm::find_or_skip("the chart's admission policy") else { return };
    let binding = |arguments: &[&str]| -> Value {
        let arguments: Vec<&str> =
            ["--set=policy.enabled=true"].iter().chain(arguments).copied().collect();
        let manifest = helm.template(&arguments).unwrap();
        let bindings = manifest.of_kind("ValidatingAdmissionPolicyBinding");
        bindings.into_values().next().unwrap()["spec"].clone()
    };
    for (action, wanted) in [
        ("Deny", json!(["Deny", "Audit"])),
        ("Audit", json!(["Audit"])),
        ("Warn", json!(["Warn", "Audit"])),
    ] {
        let spec = binding(&[&format!("--set=policy.action={action}")]);
        assert_eq!(spec["validationActions"], wanted);
        assert!(spec["matchResources"].is_null(), "all namespaces");
    }
    let spec = binding(&["--set-json=policy.exceptNamespaces=[\"42\", \"edge\", \"42\"]"]);
    let except = &spec["matchResources"]["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(
        except["values"],
        json!(["42", "edge"]),
        "each once, and text whatever it looks like"
    );
    let old = helm.refusal(&["--set=policy.enabled=true", "--kube-version=1.30.9"]).unwrap();
    assert!(old.is_some_and(|why| why.contains("1.31")));
}
