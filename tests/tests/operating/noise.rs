//! E24: thousands of hijacks, to bury one.

use std::collections::{BTreeMap, BTreeSet};

use detector_tests::real::found_or_skip;
use detector_tests::real::receiver::{Received, Receiver};
use serde_json::{Value, json};

use super::stage::{EVIL, LONG, Stage, hear};

/// Hijacks, and what a sink is told in a window about one attacker and in all.
const ALL: u32 = 5_000;
const PER_ATTACKER: u64 = 10;
const PER_SINK: u64 = 25;

#[test]
#[expect(clippy::too_many_lines, reason = "one flood, looked at from all sides")]
fn five_thousand_hijacks_by_three_attackers_bury_nobody_and_no_count_is_off() {
    if !found_or_skip("a flood of hijacks", &["ip"]) {
        return;
    }
    let stage = Stage::new(ALL);
    let receiver = Receiver::start(Some(stage.node.namespace()), 0).unwrap();
    let agent = stage.start(&json!({
        "state": stage.state(),
        "alerts": { "window": "5s", "perAttacker": PER_ATTACKER, "perSink": PER_SINK },
        "sinks": { "webhooks": [{ "name": "hook", "url": receiver.url("/") }] },
    }));
    // Two make all the noise; the third takes one address in the middle of it.
    for part in 0..10 {
        let (from, to) = (part * ALL / 10, (part + 1) * ALL / 10);
        let middle = from + (to - from) / 2;
        stage.attack(from..middle, EVIL[0]);
        let quiet = u32::from(part == 5);
        stage.attack(middle..to - quiet, EVIL[1]);
        stage.attack(to - quiet..to, EVIL[2]);
    }
    let quiet = Stage::key(3_000 - 1, EVIL[2]);

    // All are in the ledger, and standard output has each.
    let findings = stage
        .ask_until("/v1/findings", |findings| findings.as_array().unwrap().len() == ALL as usize);
    let mut by_attacker: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in findings.as_array().unwrap() {
        *by_attacker.entry(finding["attacker"]["pod"].as_str().unwrap()).or_default() += 1;
    }
    assert_eq!(
        by_attacker,
        BTreeMap::from([("evil", 2_500), ("evil-three", 1), ("evil-two", 2_499)])
    );
    // Where the answer to a question comes late, a finding is told without it, and again with it.
    let has_all = |sink: &Value| sink["delivered"].as_u64().is_some_and(|n| n >= ALL.into());
    let stdout = stage.sink_until("stdout", has_all);
    assert_eq!((&stdout["dropped"], &stdout["heldBack"]), (&json!(0), &json!(0)));
    let mut opened = BTreeSet::new();
    while opened.len() < ALL as usize {
        let heard = agent.next_finding(LONG).unwrap().expect("each is told");
        if heard.finding["state"] == "opened" {
            let key = heard.finding["key"].as_str().unwrap().to_owned();
            assert!(opened.insert(key), "opened twice: {}", heard.line);
        }
    }
    assert!(opened.contains(&quiet));

    // People have seen the quiet one by itself, within the limits, and an exact sum of the rest.
    let bodies = |all: &[Received]| -> Vec<Value> {
        all.iter().map(|one| one.request.json().unwrap()).collect()
    };
    let is_summary = |body: &Value| body["schema"] == "detector.summary/v1";
    let sum = |bodies: &[Value]| -> u64 {
        let summaries = bodies.iter().filter(|body| is_summary(body));
        summaries.map(|body| body["heldBack"]["opened"].as_u64().unwrap()).sum()
    };
    let single = |bodies: &[Value]| bodies.iter().filter(|body| !is_summary(body)).count() as u64;
    let of_state = |bodies: &[Value], state: &str| {
        bodies.iter().filter(|body| !is_summary(body) && body["state"] == state).count() as u64
    };
    let all = receiver
        .wait_until(
            |all| {
                let bodies = bodies(all);
                sum(&bodies) + of_state(&bodies, "opened") == u64::from(ALL)
            },
            LONG,
        )
        .unwrap();
    let all = bodies(&all);
    let schema = |name: &str| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema/");
        let text = std::fs::read_to_string(format!("{path}{name}.v1.json")).unwrap();
        jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
    };
    let (of_finding, of_summary) = (schema("finding"), schema("summary"));
    for body in &all {
        let schema = if is_summary(body) { &of_summary } else { &of_finding };
        assert!(schema.is_valid(body), "{:?}: {body:#}", schema.validate(body));
    }
    assert!(all.iter().any(|body| body["key"] == *quiet), "the quiet one is buried");
    let summaries: Vec<&Value> = all.iter().filter(|body| is_summary(body)).collect();
    // The last window may have held nothing back.
    let windows = summaries.len() as u64 + 1;
    assert!(single(&all) <= PER_SINK * windows, "{} in {windows} windows", single(&all));
    for attacker in EVIL {
        let pod = attacker.split_once('/').unwrap().1;
        let of_it = all.iter().filter(|body| body["attacker"]["pod"] == pod);
        let told = of_it.clone().count() as u64;
        assert!(told <= PER_ATTACKER * windows, "{attacker}: {told} in {windows} windows");
        let opened = of_it.filter(|body| body["state"] == "opened").count() as u64;
        let held: u64 = summaries
            .iter()
            .flat_map(|summary| summary["attackers"].as_array().unwrap())
            .filter(|held| held["attacker"] == *format!("pod {attacker}"))
            .map(|held| held["opened"].as_u64().unwrap())
            .sum();
        assert_eq!(opened + held, by_attacker[pod] as u64, "{attacker}");
    }

    // The end of what was told by itself is told by itself, of the rest it is summed up.
    let by_itself: BTreeSet<&str> = all
        .iter()
        .filter(|body| !is_summary(body))
        .filter_map(|body| body["key"].as_str())
        .collect();
    receiver.take();
    let over = ALL / 20;
    stage.relent(0..over, EVIL[0]);
    let closed = |bodies: &[Value]| -> u64 {
        let summaries = bodies.iter().filter(|body| is_summary(body));
        summaries.map(|body| body["heldBack"]["closed"].as_u64().unwrap()).sum()
    };
    let all_over = receiver
        .wait_until(
            |all| {
                let bodies = bodies(all);
                closed(&bodies) + of_state(&bodies, "closed") == u64::from(over)
            },
            LONG,
        )
        .unwrap();
    let ends: BTreeSet<String> = bodies(&all_over)
        .iter()
        .filter(|body| body["state"] == "closed")
        .map(|body| body["key"].as_str().unwrap().to_owned())
        .collect();
    let expected: BTreeSet<String> = (0..over)
        .map(|n| Stage::key(n, EVIL[0]))
        .filter(|key| by_itself.contains(&**key))
        .collect();
    assert!(!expected.is_empty());
    assert_eq!(ends, expected);
    agent.stop().unwrap();
}

#[test]
fn what_somebody_takes_care_of_is_told_again_only_when_it_gets_worse_or_is_over() {
    if !found_or_skip("acknowledgements", &["ip"]) {
        return;
    }
    let stage = Stage::new(4);
    let receiver = Receiver::start(Some(stage.node.namespace()), 0).unwrap();
    let agent = stage.start(&json!({
        "alerts": { "repeat": "1s", "window": "1s" },
        "sinks": { "webhooks": [{ "name": "hook", "url": receiver.url("/") }] },
    }));
    let key = Stage::key(0, EVIL[0]);
    stage.attack(0..1, EVIL[0]);
    hear(&agent, &key, "opened");
    let states = |all: &[Received]| -> Vec<String> {
        let word =
            |one: &Received| one.request.json().unwrap()["state"].as_str().unwrap().to_owned();
        all.iter().map(word).collect()
    };
    receiver.wait_until(|all| states(all) == ["opened", "repeated"], LONG).unwrap();

    let socket = stage.socket();
    let socket = super::stage::text(&socket);
    let (out, err, code) = super::stage::detector(&[
        "ack", &key, "--by", "alice", "--for", "1h", "--reason", "on it", "--socket", socket,
    ]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("people are not told of it again until "), "{out}");
    let (out, ..) = super::stage::detector(&["findings", "-o", "wide", "--socket", socket]);
    assert!(out.contains("alice"), "{out}");
    // Another finding is repeated meanwhile, this one is not.
    stage.attack(1..2, EVIL[0]);
    receiver.take();
    receiver
        .wait_until(
            |all| states(all).iter().filter(|state| *state == "repeated").count() >= 2,
            LONG,
        )
        .unwrap();
    let told = receiver.received();
    assert!(told.iter().all(|one| one.request.json().unwrap()["key"] != *key));
    // Taken back, it is repeated again.
    let (_, err, code) = super::stage::detector(&["ack", &key, "--undo", "--socket", socket]);
    assert_eq!(code, Some(0), "{err}");
    receiver.take();
    receiver
        .wait_until(|all| all.iter().any(|one| one.request.json().unwrap()["key"] == *key), LONG)
        .unwrap();
    // Its end is told in any case.
    super::stage::detector(&["ack", &key, "--by", "bob", "--socket", socket]);
    receiver.take();
    stage.relent(0..1, EVIL[0]);
    let is_end = |one: &Received| {
        let body = one.request.json().unwrap();
        body["key"] == *key && body["state"] == "closed" && body["acknowledged"]["by"] == "bob"
    };
    receiver.wait_until(|all| all.iter().any(is_end), LONG).unwrap();

    let (_, err, code) =
        super::stage::detector(&["ack", "no such key", "--by", "x", "--socket", socket]);
    assert_eq!(code, Some(2));
    assert_eq!(err.lines().count(), 1, "{err}");
    agent.stop().unwrap();
}
