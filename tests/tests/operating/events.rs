//! Kubernetes Events, in a real API server, as `kubectl describe` shows them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::scenario::node::Node;
use detector_tests::scenario::step::Step;
use serde_json::json;

use super::stage::{LONG, Stage, detector, text};

#[test]
fn whoever_describes_either_pod_sees_it() {
    let Some(programs) = Programs::find_or_skip("Events in a real API server") else { return };
    let cluster = Arc::new(Cluster::start(programs).unwrap());
    let mut stage = Stage::with(2, |words| Node::in_cluster(words, Arc::clone(&cluster)));
    let agent = stage.start(&json!({ "sinks": { "events": { "enabled": true } } }));
    let annotate = "annotate: {pod: default/evil, annotations: {floatingIPs: '[\"${db}\"]'}}";
    stage.step(&serde_saphyr::from_str::<Step>(annotate).unwrap());
    stage.ip("route add ${db/host} dev ${dev default/evil} scope link proto boot");

    let described = |namespace: &str, pod: &str, wanted: &str| {
        let end = Instant::now() + LONG;
        loop {
            let shown = cluster.kubectl(&["describe", "pod", "-n", namespace, pod]).unwrap();
            let (_, events) = shown.split_once("Events:").expect("events are shown");
            if events.contains(wanted) {
                return events.to_owned();
            }
            assert!(Instant::now() < end, "{wanted} is never there: {shown}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let of_attacker = described("default", "evil", "RouteHijack ");
    assert!(of_attacker.contains("Warning") && of_attacker.contains("detector"), "{of_attacker}");
    let of_victim = described("shop", "db", "RouteHijacked ");
    assert!(of_victim.contains("default/evil"), "{of_victim}");
    assert!(of_victim.contains("What to do: detector runbook route"), "{of_victim}");

    stage.ip("route del ${db/host} dev ${dev default/evil}");
    described("default", "evil", "RouteHijackOver ");
    // An HTTPS server is believed by its certificate, and by no other: here the API server, which
    // answers that there is nothing.
    let folder = stage.folder.path();
    let kubeconfig = std::fs::read_to_string(cluster.kubeconfig_path()).unwrap();
    let kubeconfig: serde_json::Value = serde_saphyr::from_str(&kubeconfig).unwrap();
    let of_cluster = &kubeconfig["clusters"][0]["cluster"];
    let ca = of_cluster["certificate-authority"].as_str().unwrap();
    let server = of_cluster["server"].as_str().unwrap();
    for (ca, expected) in [(Some(ca), "it answers 40"), (None, "it cannot be reached: ")] {
        let hook = json!({ "name": "tls", "url": format!("{server}/nowhere"), "caFile": ca });
        let config = json!({
            "nodeName": "n", "api": { "enabled": false }, "sinks": { "webhooks": [hook] },
        });
        let path = folder.join("config.yaml");
        std::fs::write(&path, config.to_string()).unwrap();
        let (_, err, code) = detector(&["test-alert", "--config", text(&path)]);
        assert_eq!(code, Some(1));
        assert!(err.contains(&format!("tls: not delivered: {expected}")), "{err}");
    }
    let sink = stage.sink_until("events", |sink| sink["queued"] == 0);
    assert_eq!((&sink["failed"], &sink["dropped"]), (&json!(0), &json!(0)), "{sink}");
    agent.stop().unwrap();
}
