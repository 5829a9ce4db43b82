//! The chart renders what kustomize does.
//!
//! Taken away before they are compared, since only the chart has them: the labels
//! `app.kubernetes.io/instance`, `managed-by` and `version` and `helm.sh/chart`, the annotations
//! `checksum/config` and `helm.sh/resource-policy`, and the pod of `helm test`. The namespace is
//! Helm's own business, unless the chart is told to make it. Configurations and dashboards are
//! compared by what they mean, volumes without their order.

use std::collections::BTreeMap;

use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Helm, Manifest, NAMESPACE, file};
use serde_json::{Map, Value};

use crate::kustomize::fits;
use crate::shared::{check_config, composed, folders, pod};

const OF_THE_CHART: [&str; 6] = [
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
    "helm.sh/chart",
    "checksum/config",
    "helm.sh/resource-policy",
];

/// Objects by kind and name, without what only the chart has.
fn comparable(manifest: &Manifest) -> BTreeMap<(String, String), Value> {
    let mut objects = BTreeMap::new();
    for object in &manifest.objects {
        if !object["metadata"]["annotations"]["helm.sh/hook"].is_null() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (text(&object["kind"]), text(&object["metadata"]["name"]));
        let mut object = object.clone();
        level(&mut object);
        assert!(objects.insert(key, object).is_none(), "an object is there twice");
    }
    objects
}

/// Takes away and puts in order what is not to be compared.
fn level(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields.iter_mut() {
                if let (
                    "labels" | "annotations" | "matchLabels" | "selector",
                    Value::Object(pairs),
                ) = (key.as_str(), &mut *field)
                {
                    pairs.retain(|name, _| !OF_THE_CHART.contains(&name.as_str()));
                }
                if let ("volumes" | "volumeMounts", Value::Array(list)) =
                    (key.as_str(), &mut *field)
                {
                    list.sort_by_key(|entry| entry["name"].to_string());
                }
                if let ("data", Value::Object(files)) = (key.as_str(), &mut *field) {
                    meanings(files);
                }
                level(field);
            }
            // An empty list, or none at all, is the same to the server.
            fields.retain(|key, field| match key.as_str() {
                "annotations" => !field.as_object().is_some_and(Map::is_empty),
                "initContainers" => !field.as_array().is_some_and(Vec::is_empty),
                _ => true,
            });
        }
        Value::Array(list) => list.iter_mut().for_each(level),
        _ => {}
    }
}

/// Files of a ConfigMap, as what they mean. JSON is YAML, too.
fn meanings(files: &mut Map<String, Value>) {
    for text in files.values_mut() {
        *text = serde_saphyr::from_str(text.as_str().unwrap()).unwrap();
    }
}

#[track_caller]
fn same(chart: &Manifest, manifests: &Manifest) {
    let (chart, manifests) = (comparable(chart), comparable(manifests));
    let names = |objects: &BTreeMap<(String, String), Value>| -> Vec<(String, String)> {
        objects.keys().cloned().collect()
    };
    assert_eq!(names(&chart), names(&manifests));
    for (key, object) in &chart {
        let other = &manifests[key];
        let pretty = |object| serde_json::to_string_pretty(object).unwrap();
        assert!(
            object == other,
            "{key:?} differs: chart\n{}\nkustomize\n{}",
            pretty(object),
            pretty(other)
        );
    }
}

fn tools() -> Option<(Helm, Programs)> {
    let what = "the chart beside the manifests";
    Some((Helm::find_or_skip(what)?, Programs::find_or_skip(what)?))
}

fn values(name: &str) -> String {
    file(&format!("chart/ci/{name}-values.yaml")).to_string_lossy().into_owned()
}

/// Makes the namespace: the release is kept in another.
const WITH_NAMESPACE: [&str; 4] =
    ["--namespace=elsewhere", "--set=namespace.create=true", "--set", "namespace.name="];

/// The chart with a file of `ci`, and with its namespace.
fn chart(helm: &Helm, name: Option<&str>) -> Manifest {
    let [elsewhere, create, set, key] = WITH_NAMESPACE;
    let namespace = format!("{key}{NAMESPACE}");
    let mut arguments = vec![elsewhere, create, set, &namespace];
    let path = name.map(values);
    if let Some(path) = &path {
        arguments.extend(["--values", path]);
    }
    helm.template(&arguments).unwrap()
}

#[test]
fn with_default_values_it_is_the_base() {
    let Some((helm, programs)) = tools() else { return };
    let base = Manifest::kustomize(&programs, "base").unwrap();
    same(&chart(&helm, None), &base);

    // Where Helm's own namespace is used, all but that object.
    let mut without = base;
    without.objects.retain(|object| object["kind"] != "Namespace");
    same(&helm.template(&[]).unwrap(), &without);
}

#[test]
fn with_the_values_of_an_overlay_it_is_the_overlay() {
    let Some((helm, programs)) = tools() else { return };
    for overlay in folders("overlays") {
        let manifest = Manifest::kustomize(&programs, &format!("overlays/{overlay}")).unwrap();
        same(&chart(&helm, Some(&overlay)), &manifest);
    }
    for (name, components) in [
        ("old-kernels", &["old-kernels"][..]),
        ("prometheus-operator", &["metrics", "prometheus-operator"]),
    ] {
        same(&chart(&helm, Some(name)), &composed(&programs, "base", components));
    }
}

#[test]
fn its_test_is_a_pod_apart_from_the_agents() {
    let Some(helm) = Helm::find_or_skip("the chart's test") else { return };
    for name in [None, Some("full"), Some("openshift"), Some("old-kernels")] {
        let manifest = chart(&helm, name);
        let test = manifest.of_kind("Pod")["detector-selftest"];
        let agent = pod(&manifest);
        assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
        let spec = &test["spec"];
        assert_eq!(spec["hostNetwork"], false, "its routes must never be the node's");
        let (mine, agents) = (&spec["containers"][0], &agent["containers"][0]);
        let arguments =
            serde_json::json!(["selftest", "--here", "--config", "/etc/detector/config.yaml"]);
        assert_eq!(mine["args"], arguments);
        assert_eq!(mine["image"], agents["image"]);
        let capabilities = |container: &Value| container["securityContext"]["capabilities"].clone();
        assert_eq!(capabilities(mine), capabilities(agents), "what works here works there");
        assert_eq!(spec["serviceAccountName"], agent["serviceAccountName"]);
        // No selector of the agents finds it.
        let agents = &manifest.of_kind("DaemonSet")["detector"]["spec"]["selector"]["matchLabels"];
        let labels = &test["metadata"]["labels"];
        let matches = |(key, value): (&String, &Value)| labels[key] == *value;
        assert!(!agents.as_object().unwrap().iter().all(matches), "{labels}");
    }
}

#[test]
fn only_what_agents_do_not_take_over_rolls_them() {
    let Some(helm) = Helm::find_or_skip("what rolls the agents") else { return };
    let checksum = |values: &str| {
        let manifest = helm.template(&["--set-json", values]).unwrap();
        check_config(values, &manifest);
        let template = &manifest.of_kind("DaemonSet")["detector"]["spec"]["template"];
        (
            template["metadata"]["annotations"]["checksum/config"].as_str().unwrap().to_owned(),
            manifest.config().unwrap().to_owned(),
        )
    };
    let allow = r#"[{"cidr":"192.0.2.0/28","namespace":"edge","serviceAccount":"gateway"}]"#;
    let (before, config) = checksum("config.floatingIPs.allow=[]");
    let (allowed, longer) = checksum(&format!("config.floatingIPs.allow={allow}"));
    assert_ne!(config, longer);
    assert_eq!(before, allowed, "the allow-list is followed");
    let (other, _) = checksum(r#"config.output="text""#);
    assert_ne!(before, other, "all else wants a restart");
}

#[test]
fn rights_follow_from_what_is_used() {
    let Some(helm) = Helm::find_or_skip("the chart's rights") else { return };
    let resources = |arguments: &[&str]| -> Vec<String> {
        let manifest = helm.template(arguments).unwrap();
        let made = manifest.of_kind("ClusterRole");
        let rules = made.get("detector").map_or(&Value::Null, |role| &role["rules"]);
        let rules = rules.as_array().cloned().unwrap_or_default();
        rules
            .iter()
            .flat_map(|rule| rule["resources"].as_array().unwrap().clone())
            .map(|resource| resource.as_str().unwrap().to_owned())
            .collect()
    };
    let all = resources(&[]);
    let without = |name: &str| -> Vec<String> {
        all.iter().filter(|resource| *resource != name).cloned().collect()
    };
    assert_eq!(resources(&["--set=config.sinks.events.enabled=false"]), without("events"));
    assert_eq!(
        resources(&["--set=rbac.allowanceStatus=false"]),
        without("floatingipallowances/status")
    );
    assert!(resources(&["--set=rbac.create=false"]).is_empty());
}

#[test]
fn constraints_of_openshift_follow_the_values() {
    let Some(helm) = Helm::find_or_skip("the chart's constraints") else { return };
    let path = values("openshift");
    for more in [
        &[][..],
        &["--set=seccomp.profile=Localhost", "--set=oldKernels=true"],
        &["--set=metrics.enabled=true", "--set=sinkSecret=detector-sinks"],
    ] {
        let mut arguments = vec!["--values", &path];
        arguments.extend(more);
        let manifest = helm.template(&arguments).unwrap();
        fits(manifest.of_kind("SecurityContextConstraints")["detector"], pod(&manifest));
    }
}

#[test]
fn either_monitor_finds_the_agents() {
    let Some(helm) = Helm::find_or_skip("the chart's monitors") else { return };
    let metrics = "--set=metrics.enabled=true,metrics.port=9999";
    for (kind, value, endpoints) in [
        ("PodMonitor", "podMonitor", "podMetricsEndpoints"),
        ("ServiceMonitor", "serviceMonitor", "endpoints"),
    ] {
        let monitor = format!("--set=metrics.{value}.enabled=true,metrics.{value}.interval=15s");
        let manifest = helm.template(&[metrics, &monitor]).unwrap();
        let monitor = &manifest.of_kind(kind)["detector"]["spec"];
        let endpoint = &monitor[endpoints][0];
        assert_eq!(endpoint["interval"], "15s");
        let agent = &pod(&manifest)["containers"][0];
        assert_eq!(agent["ports"][0]["name"], endpoint["port"]);
        assert_eq!(agent["ports"][0]["containerPort"], 9999);
        let wanted = &monitor["selector"]["matchLabels"];
        let labels = if kind == "PodMonitor" {
            &manifest.of_kind("DaemonSet")["detector"]["spec"]["template"]["metadata"]["labels"]
        } else {
            let service = manifest.of_kind("Service")["detector"];
            assert_eq!(service["spec"]["ports"][0]["name"], endpoint["port"]);
            &service["metadata"]["labels"]
        };
        for (key, value) in wanted.as_object().unwrap() {
            assert_eq!(labels[key], *value, "{kind}");
        }
    }
}
