//! A real kube-apiserver takes all that can be installed, word for word.
//!
//! It knows neither the Prometheus Operator nor OpenShift, so `kinds.yaml` tells it what those kinds
//! have, as far as it is used here: an unknown field is refused there as everywhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Helm, Manifest, NAMESPACE};
use serde_json::{Value, json};

use crate::extremes::ends;
use crate::shared::{composed, folders, pod};

const ACCOUNT: &str = "--as=system:serviceaccount:route-hijack-detector:detector";

/// A server that knows all kinds.
fn start(programs: &Programs) -> Cluster {
    let cluster = Cluster::start(programs.clone()).unwrap();
    let kinds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/kinds.yaml");
    cluster.define(&[&kinds]).unwrap();
    cluster
}

/// What the server would do with a manifest.
fn try_out(cluster: &Cluster, of: &str, manifest: &Manifest) {
    // What is only tried out makes no namespace for what follows.
    for object in &manifest.objects {
        let namespace = object["metadata"]["namespace"].as_str();
        let own = (object["kind"] == "Namespace").then(|| &object["metadata"]["name"]);
        for name in namespace.into_iter().chain(own.and_then(Value::as_str)) {
            let text = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name }
            });
            let apply = ["apply", "--server-side", "--filename=-"];
            cluster.kubectl_fed(&apply, &text.to_string()).unwrap();
        }
    }
    let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
    let said = cluster.kubectl_fed(&apply, &manifest.text);
    let said = said.unwrap_or_else(|error| panic!("{of}: {error:#}"));
    assert_eq!(said.lines().count(), manifest.objects.len(), "{of}: {said}");
}

#[test]
fn it_takes_every_overlay_and_the_chart() {
    let what = "what a real kube-apiserver says of deploy";
    let Some(programs) = Programs::find_or_skip(what) else { return };
    let cluster = start(&programs);
    try_out(&cluster, "base", &Manifest::kustomize(&programs, "base").unwrap());
    for overlay in folders("overlays") {
        let manifest = Manifest::kustomize(&programs, &format!("overlays/{overlay}")).unwrap();
        try_out(&cluster, &overlay, &manifest);
    }
    let components = folders("components");
    let all: Vec<&str> = components.iter().map(String::as_str).collect();
    try_out(&cluster, "all components", &composed(&programs, "base", &all));
    let Some(helm) = Helm::find_or_skip("what a real kube-apiserver says of the chart") else {
        return;
    };
    try_out(&cluster, "chart", &helm.template(&[]).unwrap());
    for (name, manifest) in ends(&helm) {
        try_out(&cluster, name, &manifest);
    }
}

#[test]
fn what_is_applied_is_what_is_there() {
    let Some(programs) = Programs::find_or_skip("deploy in a real kube-apiserver") else { return };
    let cluster = start(&programs);
    let base = Manifest::kustomize(&programs, "base").unwrap();
    let apply = ["apply", "--validate=strict", "--filename=-"];
    cluster.kubectl_fed(&apply, &base.text).unwrap();
    // It ends badly where it finds a difference.
    let difference = cluster.kubectl_fed(&["diff", "--filename=-"], &base.text).unwrap();
    assert_eq!(difference, "");

    rights(&cluster, true);
    pods(&cluster, &base);
    let minimal = Manifest::kustomize(&programs, "overlays/minimal").unwrap();
    cluster.kubectl_fed(&apply, &minimal.text).unwrap();
    rights(&cluster, false);
}

/// The account may do what the agent does, and nothing beside it.
fn rights(cluster: &Cluster, writes: bool) {
    let may = |verb: &str, what: &str| {
        let can = ["auth", "can-i", verb, what, "--all-namespaces", ACCOUNT];
        // No is an exit code, too.
        cluster.kubectl(&can).is_ok_and(|said| said.trim() == "yes")
    };
    for (verb, what) in [
        ("list", "pods"),
        ("watch", "nodes"),
        ("get", "ipamblocks.crd.projectcalico.org"),
        ("watch", "floatingipallowances.route-hijack-detector.io"),
    ] {
        assert!(may(verb, what), "{verb} {what}");
    }
    assert_eq!(may("create", "events.events.k8s.io"), writes);
    let status = "floatingipallowances.route-hijack-detector.io";
    let patch = ["auth", "can-i", "patch", status, "--subresource=status", ACCOUNT];
    assert_eq!(cluster.kubectl(&patch).is_ok_and(|said| said.trim() == "yes"), writes);
    for (verb, what) in [
        ("get", "secrets"),
        ("create", "pods"),
        ("patch", "pods"),
        ("list", "configmaps"),
        ("create", "floatingipallowances.route-hijack-detector.io"),
        ("patch", "floatingipallowances.route-hijack-detector.io"),
        ("patch", "nodes"),
    ] {
        assert!(!may(verb, what), "{verb} {what}");
    }
}

/// The server takes the agents' pod where it belongs, and Pod Security keeps it from where the
/// namespace says less than `privileged`: the label is no more than what is needed.
fn pods(cluster: &Cluster, base: &Manifest) {
    let apply = |namespace: &str| {
        let text = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "detector-of-a-node", "namespace": namespace },
            "spec": pod(base),
        });
        cluster.kubectl_fed(&["create", "--dry-run=server", "--filename=-"], &text.to_string())
    };
    apply(NAMESPACE).unwrap();
    let baseline = "baseline";
    let label = format!("pod-security.kubernetes.io/enforce={baseline}");
    cluster.kubectl(&["create", "namespace", baseline]).unwrap();
    cluster.kubectl(&["label", "namespace", baseline, &label]).unwrap();
    let refused = format!("{:#}", apply(baseline).unwrap_err());
    for part in ["violates PodSecurity", "host namespaces", "non-default capabilities", "hostPath"]
    {
        assert!(refused.contains(part), "{refused}");
    }
    // By nothing that could be left out: no container is said to be privileged.
    assert!(!refused.contains("privileged ("), "{refused}");
}

#[test]
fn kinds_of_others_refuse_what_they_do_not_have() {
    let Some(programs) = Programs::find_or_skip("kinds that the server is told of") else { return };
    let cluster = start(&programs);
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy/kinds.yaml"));
    let kinds = Manifest::parse(text.unwrap()).unwrap();
    let kinds: BTreeSet<&str> =
        kinds.objects.iter().filter_map(|kind| kind["spec"]["names"]["kind"].as_str()).collect();
    let wanted = ["PodMonitor", "PrometheusRule", "SecurityContextConstraints", "ServiceMonitor"];
    assert!(kinds.into_iter().eq(wanted));
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    let manifest = composed(&programs, "base", &["metrics", "prometheus-operator"]);
    let mut monitor = manifest.of_kind("PodMonitor")["detector"].clone();
    let apply = ["apply", "--dry-run=server", "--validate=strict", "--filename=-"];
    cluster.kubectl_fed(&apply, &monitor.to_string()).unwrap();
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = json!("15s");
    let refused = cluster.kubectl_fed(&apply, &monitor.to_string()).unwrap_err().to_string();
    assert!(refused.contains("intervall"), "{refused}");
}
