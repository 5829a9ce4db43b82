//! The real Alertmanager.

use std::time::{Duration, Instant};

use detector_tests::real::alertmanager::{self, Alertmanager};
use detector_tests::real::found_or_skip;
use detector_tests::real::receiver::Receiver;
use serde_json::{Value, json};

use super::stage::{EVIL, LONG, Stage, detector, hear, text};

fn wait_for_alerts(alertmanager: &Alertmanager, good: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let end = Instant::now() + LONG;
    loop {
        let alerts = alertmanager.alerts().unwrap();
        if good(&alerts) {
            return alerts;
        }
        assert!(Instant::now() < end, "the alerts never are what they should be: {alerts:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_alert_comes_and_goes_with_the_finding() {
    if !found_or_skip("alerts in Alertmanager", alertmanager::PROGRAMS) {
        return;
    }
    let stage = Stage::new(4);
    let namespace = stage.node.namespace();
    let receiver = Receiver::start(Some(namespace), 0).unwrap();
    let url = receiver.url("/notify");
    let alertmanager = Alertmanager::start(Some(namespace), 0, Some(&url)).unwrap();
    let agent = stage.start(&json!({
        "sinks": { "alertmanagers": [{ "name": "main", "url": alertmanager.url(), "lingers": "1s" }] },
    }));
    let key = Stage::key(0, EVIL[0]);
    stage.attack(0..1, EVIL[0]);
    let told = hear(&agent, &key, "opened");
    let alerts = wait_for_alerts(&alertmanager, |alerts| alerts.len() == 1);
    let labels = &alerts[0]["labels"];
    assert_eq!(labels["alertname"], "RouteHijack");
    assert_eq!(labels["severity"], told.finding["severity"]);
    assert_eq!(labels["attacker_pod"], "evil");
    assert_eq!(labels["key"], *key);
    assert_eq!(labels["victim"], "node node-b");
    assert_eq!(alerts[0]["annotations"]["summary"], told.finding["reason"]);
    let began = told.finding["began"].as_str().unwrap();
    // Alertmanager keeps milliseconds.
    assert_eq!(alerts[0]["startsAt"].as_str().unwrap()[..23], began[..23]);

    // Who takes care of it is shown there.
    let socket = stage.socket();
    detector(&["ack", &key, "--by", "alice", "--socket", text(&socket)]);
    wait_for_alerts(&alertmanager, |alerts| {
        let noted = alerts[0]["annotations"]["acknowledged"].as_str();
        noted.is_some_and(|noted| noted.starts_with("by alice until "))
    });
    detector(&["ack", &key, "--undo", "--socket", text(&socket)]);
    wait_for_alerts(&alertmanager, |alerts| alerts[0]["annotations"]["acknowledged"].is_null());

    // Its receiver is told, and told again when it is over.
    let is = |wanted: &'static str| {
        move |received: &[detector_tests::real::receiver::Received]| {
            received.iter().any(|one| one.request.json().is_ok_and(|body| body["status"] == wanted))
        }
    };
    receiver.wait_until(is("firing"), LONG).unwrap();
    stage.relent(0..1, EVIL[0]);
    hear(&agent, &key, "closed");
    receiver.wait_until(is("resolved"), LONG).unwrap();
    wait_for_alerts(&alertmanager, <[Value]>::is_empty);

    // Two victims of one attacker, one of another: two groups by attacker.
    stage.attack(1..3, EVIL[0]);
    stage.attack(3..4, EVIL[1]);
    let alerts = wait_for_alerts(&alertmanager, |alerts| alerts.len() == 3);
    let of = |pod: &str| alerts.iter().filter(|a| a["labels"]["attacker_pod"] == pod).count();
    assert_eq!((of("evil"), of("evil-two")), (2, 1));
    let groups = alertmanager.groups().unwrap();
    assert_eq!(groups.len(), 1, "the configuration groups by name: {groups:#?}");
    assert_eq!(groups[0]["labels"]["alertname"], "RouteHijack");
    assert_eq!(groups[0]["alerts"].as_array().unwrap().len(), 3);

    // What changes while it is away is true when it is back: it has forgotten all it knew.
    alertmanager.stop();
    stage.relent(1..2, EVIL[0]);
    hear(&agent, &Stage::key(1, EVIL[0]), "closed");
    stage.attack(0..1, EVIL[1]);
    hear(&agent, &Stage::key(0, EVIL[1]), "opened");
    alertmanager.restart().unwrap();
    wait_for_alerts(&alertmanager, |alerts| {
        let stands = |key: &str| alerts.iter().any(|alert| alert["labels"]["key"] == key);
        stands(&Stage::key(0, EVIL[1])) && !stands(&Stage::key(1, EVIL[0]))
    });

    // What was over at once is told to people all the same, if later than it was over.
    receiver.take();
    stage.attack(1..2, EVIL[2]);
    stage.relent(1..2, EVIL[2]);
    hear(&agent, &Stage::key(1, EVIL[2]), "closed");
    let tells = |status: &str, received: &[detector_tests::real::receiver::Received]| {
        received.iter().any(|one| {
            let body = one.request.json().unwrap();
            let alerts = body["alerts"].as_array().unwrap();
            alerts.iter().any(|alert| {
                alert["labels"]["attacker_pod"] == "evil-three" && alert["status"] == status
            })
        })
    };
    receiver.wait_until(|all| tells("firing", all) && tells("resolved", all), LONG).unwrap();
    agent.stop().unwrap();
}
