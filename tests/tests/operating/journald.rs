//! The real journald.

use detector_tests::real::found_or_skip;
use detector_tests::real::journald::{self, Journald};
use serde_json::json;

use super::stage::{EVIL, LONG, Stage, hear, lacks};

#[test]
fn a_finding_is_found_by_any_of_its_fields() {
    if !found_or_skip("findings in journald", journald::PROGRAMS) {
        return;
    }
    let journald = Journald::start().unwrap();
    let stage = Stage::new(4);
    let agent = stage.start(
        &json!({ "sinks": { "journald": { "enabled": true, "socket": journald.socket() } } }),
    );
    let key = Stage::key(0, EVIL[0]);
    stage.attack(0..1, EVIL[0]);
    let told = hear(&agent, &key, "opened");
    let fields = [
        "SYSLOG_IDENTIFIER=detector",
        "MESSAGE_ID=df38e1c21bcb4843a92bf867dc6044f7",
        "DETECTOR_ATTACKER_POD=evil",
        "DETECTOR_STATE=opened",
        "PRIORITY=2",
    ];
    let entries = journald.wait_for(1, &fields, LONG).unwrap();
    let entry = &entries[0];
    assert_eq!(entry["MESSAGE"], told.finding["reason"]);
    assert_eq!(entry["DETECTOR_KEY"], *key);
    assert_eq!(entry["DETECTOR_VICTIM"], "node node-b");
    assert_eq!(entry["DOCUMENTATION"], "detector runbook route");
    let verbose = journald.verbose(&["DETECTOR_STATE=opened"]).unwrap();
    assert!(verbose.contains("DETECTOR_ATTACKER_NAMESPACE=default"), "{verbose}");

    // What is told while journald is down arrives when it is back, in order.
    journald.stop();
    stage.relent(0..1, EVIL[0]);
    hear(&agent, &key, "closed");
    stage.attack(1..2, EVIL[1]);
    hear(&agent, &Stage::key(1, EVIL[1]), "opened");
    stage.ask_until("/v1/status", |status| {
        let degraded = status["degraded"].as_array().unwrap();
        degraded.iter().any(|one| one["capability"] == "sink:journald")
    });
    journald.restart().unwrap();
    let over = journald.wait_for(1, &["DETECTOR_STATE=closed", "PRIORITY=5"], LONG).unwrap();
    assert_eq!(over[0]["DETECTOR_KEY"], *key);
    let opened = journald.wait_for(2, &["DETECTOR_STATE=opened"], LONG).unwrap();
    assert_eq!(opened[1]["DETECTOR_KEY"], *Stage::key(1, EVIL[1]));
    stage.ask_until("/v1/status", |status| lacks(status).is_empty());
    agent.stop().unwrap();
}
