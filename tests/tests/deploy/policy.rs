//! The chart's admission policy is the one that the audit prints, and counts as a guard.

use std::fs;
use std::process::Command;

use detector_tests::agent::program;
use detector_tests::deploy::{Helm, Manifest};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Values with an allowance for a namespace.
pub(crate) const ALLOW: &str = r#"config.floatingIPs.allow=[
    {"cidr": "192.0.2.0/28", "namespace": "edge", "serviceAccount": "gateway"},
    {"cidr": "192.0.2.16/28", "namespace": "edge", "serviceAccount": "other"}
]"#;

/// What the audit says to apply in a cluster that is exposed, with the agent's configuration.
fn printed(config: &str) -> Manifest {
    let folder = TempDir::new().unwrap();
    let (dump, file) = (folder.path().join("pods.json"), folder.path().join("config.yaml"));
    let pods = json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [{
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "kube-system", "name": "calico-node-n1", "uid": "a",
                "labels": { "k8s-app": "calico-node" },
            },
            "spec": {
                "nodeName": "n1",
                "hostNetwork": true,
                "containers": [{ "name": "calico-node", "image": "docker.io/calico/node:v3.22.1" }],
            },
            "status": { "phase": "Running" },
        }],
    });
    fs::write(&dump, pods.to_string()).unwrap();
    fs::write(&file, config).unwrap();
    let output = Command::new(program().unwrap())
        .args(["audit", "--fix-plan", "--from"])
        .arg(dump)
        .arg("--config")
        .arg(file)
        .output()
        .unwrap();
    let plan = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = plan.split_once("<<'EOF'\n").expect("the plan has a manifest");
    let (manifest, _) = rest.split_once("EOF").expect("the manifest ends");
    Manifest::parse(manifest.to_owned()).unwrap()
}

#[test]
fn it_is_the_audits() {
    let Some(helm) = Helm::find_or_skip("the chart's admission policy") else { return };
    for more in [&[][..], &["--set-json", ALLOW]] {
        let mut arguments = vec!["--set=policy.enabled=true"];
        arguments.extend(more);
        let chart = helm.template(&arguments).unwrap();
        let audit = printed(chart.config().unwrap());
        for kind in ["ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"] {
            let (mine, its) = (chart.of_kind(kind), audit.of_kind(kind));
            assert!(mine.keys().eq(its.keys()) && mine.len() == 1, "{kind}: by the same name");
            for (name, object) in mine {
                assert_eq!(object["spec"], its[name]["spec"], "{kind}");
            }
        }
    }
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
    for (action, wanted) in
        [("Deny", json!(["Deny", "Audit"])), ("Audit", json!(["Audit"])), ("Warn", json!(["Warn"]))]
    {
        let spec = binding(&[&format!("--set=policy.action={action}")]);
        assert_eq!(spec["validationActions"], wanted);
        assert!(spec["matchResources"].is_null(), "all namespaces");
    }
    let spec = binding(&["--set-json", ALLOW, "--set-json=policy.exceptNamespaces=[\"42\"]"]);
    let except = &spec["matchResources"]["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(
        except["values"],
        json!(["42", "edge"]),
        "each once, and text whatever it looks like"
    );
    let old = helm.refusal(&["--set=policy.enabled=true", "--kube-version=1.29.9"]).unwrap();
    assert!(old.is_some_and(|why| why.contains("1.30")));
}
