//! The real Prometheus, and what deploy/monitoring has for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Request, over_tcp};
use detector_tests::real::prometheus::{self, Prometheus, promtool};
use serde_json::{Value, json};

use super::stage::{EVIL, LONG, Stage, hear, text};

const LISTEN: &str = "127.0.0.1:9465";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring").join(name)
}

/// All words of a text that may be names of our metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !is_word(c));
    let ours = words.filter(|word| {
        (word.starts_with("detector_") || word.starts_with("process_")) && !word.contains(':')
    });
    ours.map(str::to_owned).collect()
}

#[test]
fn prometheus_scrapes_it_and_its_rules_fire() {
    if !found_or_skip("Prometheus", prometheus::PROGRAMS) {
        return;
    }
    let stage = Stage::new(2);
    let agent = stage.start(&json!({ "listen": LISTEN }));
    let namespace = stage.node.namespace();
    let rules = file("rules.yaml");
    let prometheus = Prometheus::start(Some(namespace), LISTEN, Some(&rules), None).unwrap();
    let ready = |found: &[Value]| found.first().is_some_and(|one| one["value"][1] == "1");
    prometheus.wait_for("detector_ready", ready, LONG).unwrap();
    let fires = |alerts: &[Value], name: &str| {
        alerts
            .iter()
            .any(|alert| alert["labels"]["alertname"] == name && alert["state"] == "firing")
    };
    assert!(!fires(&prometheus.alerts().unwrap(), "RouteHijackStanding"));

    stage.attack(0..1, EVIL[0]);
    hear(&agent, &Stage::key(0, EVIL[0]), "opened");
    let firing = "ALERTS{alertname=\"RouteHijackStanding\",alertstate=\"firing\"}";
    prometheus.wait_for(firing, ready, LONG).unwrap();
    assert!(fires(&prometheus.alerts().unwrap(), "RouteHijackStanding"));
    let opened = "detector_findings_total{state=\"opened\",verdict=\"hijack\"}";
    prometheus.wait_for(opened, ready, LONG).unwrap();
    stage.relent(0..1, EVIL[0]);
    hear(&agent, &Stage::key(0, EVIL[0]), "closed");
    prometheus.wait_for(firing, <[Value]>::is_empty, LONG).unwrap();

    // Every metric that the rules and the dashboard name is there.
    let get = |accept: &str| {
        let request = Request::get("/metrics").with("accept", accept);
        over_tcp(Some(namespace), LISTEN.parse().unwrap(), &request).unwrap().text()
    };
    let exposed = metrics_in(&get("text/plain"));
    for name in ["rules.yaml", "rules.test.yaml", "dashboard.json"] {
        let named = metrics_in(&std::fs::read_to_string(file(name)).unwrap());
        assert!(!named.is_empty(), "{name} names nothing");
        let missing: Vec<_> = named.difference(&exposed).collect();
        assert!(missing.is_empty(), "{name} names what the agent has not: {missing:?}");
    }
    let plain = stage.folder.path().join("metrics");
    std::fs::write(&plain, get("text/plain")).unwrap();
    let checked = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(&plain).unwrap())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    assert_eq!(String::from_utf8_lossy(&checked.stderr), "", "it finds nothing to say");
    // Either format says the same.
    assert!(get("application/openmetrics-text; version=1.0.0").ends_with("# EOF\n"));
    agent.stop().unwrap();
}

#[test]
fn the_rules_are_good_and_do_what_they_say() {
    if !found_or_skip("promtool", prometheus::PROGRAMS) {
        return;
    }
    promtool(&["check", "rules", text(&file("rules.yaml"))]).unwrap();
    promtool(&["test", "rules", text(&file("rules.test.yaml"))]).unwrap();
}

#[test]
fn the_dashboard_is_what_grafana_expects() {
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(file("dashboard.json")).unwrap()).unwrap();
    let panels: Vec<&Value> = dashboard["panels"].as_array().unwrap().iter().collect();
    let nested = panels.iter().flat_map(|panel| panel["panels"].as_array().into_iter().flatten());
    let all: Vec<&Value> = panels.iter().copied().chain(nested).collect();
    let ids: BTreeSet<u64> = all.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), all.len(), "each panel has an id of its own");
    let mut taken = BTreeSet::new();
    for panel in &all {
        let title = panel["title"].as_str().unwrap();
        let place = &panel["gridPos"];
        let side = |name: &str| place[name].as_u64().unwrap_or_else(|| panic!("{title}: {name}"));
        assert!(side("x") + side("w") <= 24, "{title} is too wide");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(taken.insert((x, y)), "{title} lies over another");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title}");
        for target in panel["targets"].as_array().unwrap() {
            assert!(target["expr"].as_str().is_some_and(|expr| !expr.is_empty()), "{title}");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}
