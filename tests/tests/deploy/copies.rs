//! What is there twice, since a chart and a kustomization have to be whole, is there word for word.

use std::fs;

use detector_tests::deploy::file;
use serde_json::Value;

fn text(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

#[test]
fn files_of_the_chart_are_those_beside_it() {
    for (original, copy) in [
        ("base/crd.yaml", "chart/files/crd.yaml"),
        ("base/rbac.yaml", "chart/files/rbac.yaml"),
        ("policy/validating-admission-policy.yaml", "chart/files/policy.yaml"),
        ("monitoring/rules.yaml", "chart/files/rules.yaml"),
        ("monitoring/dashboard.json", "chart/files/dashboard.json"),
    ] {
        assert!(text(original) == text(copy), "they differ: cp deploy/{original} deploy/{copy}");
    }
}

#[test]
fn the_prometheus_rule_has_the_rules() {
    let rules: Value = serde_saphyr::from_str(&text("monitoring/rules.yaml")).unwrap();
    let object: Value =
        serde_saphyr::from_str(&text("components/prometheus-operator/prometheusrule.yaml"))
            .unwrap();
    assert_eq!(
        object["spec"], rules,
        "write the change of deploy/monitoring/rules.yaml into prometheusrule.yaml, too"
    );
}

#[test]
fn the_chart_is_of_the_agents_version() {
    let chart: Value = serde_saphyr::from_str(&text("chart/Chart.yaml")).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let images = chart["annotations"]["artifacthub.io/images"].as_str().unwrap();
    let image = format!("route-hijack-detector:{}", env!("CARGO_PKG_VERSION"));
    assert!(images.contains(&image), "{images}");
    assert!(text("base/daemonset.yaml").contains(&image), "the base starts another version");
    // What Artifact Hub reads is YAML within YAML.
    for (key, value) in chart["annotations"].as_object().unwrap() {
        let parsed: Result<Value, _> = serde_saphyr::from_str(value.as_str().unwrap());
        assert!(parsed.is_ok(), "{key}: {parsed:?}");
    }
}
