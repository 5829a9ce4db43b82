//! The chart's test, as `helm test` would run its pod: in a network namespace of its own, with the agent's
//! rights and no more.

use std::sync::Arc;

use detector_tests::container::rootfs::Rootfs;
use detector_tests::container::{Pod, Runtime};
use detector_tests::deploy::Helm;
use detector_tests::real::found_or_skip;
use detector_tests::scenario::node::Node;
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{Family, Scenario};
use serde_json::Value;

use super::stage::{Stage, turn};

/// A pod's network namespace: no interface of another pod, and the API server.
const WORLD: &str = "
id: selftest
title: A pod with a network namespace of its own.
families: [ipv4]
addresses:
  host: [172.18.1.1, 'fd00:18::1']
nodes:
  node-a: [host]
given: []
steps: []
expect: []
";

#[test]
fn the_charts_test_sees_the_alert_arrive() {
    let what = "the chart's test in a container";
    let _turn = turn();
    let Some(stage) = Stage::new(what) else { return };
    let Some(helm) = Helm::find_or_skip(what) else { return };
    if !found_or_skip(what, &["crun"]) {
        return;
    }
    let objects = helm.template(&[]).unwrap().objects;
    // With the chart's own rights, not the base's.
    let rights = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap"];
    let chosen: Vec<Value> = objects
        .iter()
        .filter(|object| rights.contains(&object["kind"].as_str().unwrap_or_default()))
        .cloned()
        .collect();
    stage.apply(&chosen).unwrap();

    let world: &'static Scenario = Box::leak(Box::new(Scenario::parse(WORLD).unwrap()));
    let words = Words { scenario: world, family: Family::Ipv4 };
    let node = Node::in_cluster(words, Arc::clone(&stage.cluster)).unwrap();
    let rootfs = Rootfs::new().unwrap();
    let api = node.api_addr();
    let asked = (&objects[..], "Pod");
    let pod = Pod::new(asked, rootfs, Runtime::Crun, "node-a", &stage.cluster, api).unwrap();
    let output = pod.run(node.namespace()).unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}\n{complained}");
    for stage in ["routes", "api", "questions", "finding", "sink:events"] {
        let is_ok = |line: &str| line.split_whitespace().take(2).eq(["ok", stage]);
        assert!(said.lines().any(is_ok), "{stage} is not said to be ok: {said}");
    }
    let events = ["get", "events.events.k8s.io", "--all-namespaces", "--output=name"];
    assert!(!stage.cluster.kubectl(&events).unwrap().trim().is_empty(), "no Event was written");
}
