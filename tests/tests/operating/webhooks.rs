//! A webhook receiver that fails, stalls and restarts.

use detector_tests::real::found_or_skip;
use detector_tests::real::http::Answer;
use detector_tests::real::receiver::{Manner, Received, Receiver};
use serde_json::{Value, json};

use super::stage::{EVIL, LONG, Stage, detector, hear, text};

/// More findings than a queue has room for.
const ALL: u32 = 3_000;

/// Enough for all that a test tells: the limits are another test's.
fn unlimited() -> Value {
    json!({ "window": "1s", "perAttacker": 100_000, "perSink": 100_000 })
}

fn told(received: &[Received]) -> Vec<String> {
    // What was stalled is answered when it is released.
    let answered = |one: &&Received| match &one.manner {
        Manner::Answer(answer) => answer.status == 200,
        Manner::Stall => true,
        Manner::BreakOff => false,
    };
    let words = |one: &Received| {
        let body = one.request.json().unwrap();
        format!("{} {}", body["state"].as_str().unwrap(), body["key"].as_str().unwrap())
    };
    received.iter().filter(answered).map(words).collect()
}

#[test]
fn nothing_is_lost_while_it_fails_stalls_and_restarts() {
    if !found_or_skip("a webhook that fails", &["ip"]) {
        return;
    }
    let stage = Stage::new(8);
    let receiver = Receiver::start(Some(stage.node.namespace()), 0).unwrap();
    let secret = stage.folder.path().join("secret");
    std::fs::write(&secret, "key\n").unwrap();
    let agent = stage.start(&json!({
        "alerts": unlimited(),
        "sinks": { "webhooks": [
            { "name": "hook", "url": receiver.url("/hook"), "secretFile": secret },
        ] },
    }));
    let opened = |n: u32| format!("opened {}", Stage::key(n, EVIL[0]));

    receiver.next(2, Manner::status(503));
    receiver.next(1, Manner::BreakOff);
    stage.attack(0..1, EVIL[0]);
    hear(&agent, &Stage::key(0, EVIL[0]), "opened");
    let all = receiver.wait_until(|all| told(all) == [opened(0)], LONG).unwrap();
    assert_eq!(all.len(), 4, "two failures, one broken answer, and then it is taken");
    let one = all.last().unwrap();
    let signed = one.request.headers.get("x-detector-signature-256").unwrap();
    assert_eq!(signed, signature("key", &one.request.body));
    assert_eq!(one.request.json().unwrap()["schema"], "detector.finding/v1");

    // A server that says that it will never take it is not asked again.
    receiver.next(1, Manner::Answer(Answer::new(400)));
    stage.attack(1..2, EVIL[0]);
    hear(&agent, &Stage::key(1, EVIL[0]), "opened");
    stage.sink_until("hook", |sink| sink["failed"] == 1);

    receiver.usually(Manner::Stall);
    stage.attack(2..4, EVIL[0]);
    hear(&agent, &Stage::key(3, EVIL[0]), "opened");
    stage.sink_until("hook", |sink| sink["queued"] == 1);
    receiver.usually(Manner::status(200));
    receiver.release();
    receiver.wait_until(|all| told(all).contains(&opened(3)), LONG).unwrap();

    receiver.stop().unwrap();
    stage.attack(4..8, EVIL[0]);
    hear(&agent, &Stage::key(7, EVIL[0]), "opened");
    stage.sink_until("hook", |sink| sink["queued"].as_u64() >= Some(3));
    receiver.restart().unwrap();
    let all = receiver.wait_until(|all| told(all).contains(&opened(7)), LONG).unwrap();
    let mut expected: Vec<String> = vec![opened(0)];
    expected.extend((2..8).map(opened));
    let mut in_order = told(&all);
    in_order.dedup();
    assert_eq!(in_order, expected, "each once, in order");
    let sink = stage.sink_until("hook", |sink| sink["delivered"] == 7);
    assert_eq!(sink["dropped"], 0);
    agent.stop().unwrap();
}

/// The signature that whoever knows the secret expects.
fn signature(secret: &str, body: &[u8]) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let digits = ring::hmac::sign(&key, body);
    let digits: Vec<String> = digits.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={}", digits.concat())
}

#[test]
fn a_stalled_sink_delays_nobody_and_what_its_queue_has_no_room_for_is_counted() {
    if !found_or_skip("a webhook that stalls", &["ip"]) {
        return;
    }
    let stage = Stage::new(ALL);
    let receiver = Receiver::start(Some(stage.node.namespace()), 0).unwrap();
    let other = Receiver::start(Some(stage.node.namespace()), 0).unwrap();
    receiver.usually(Manner::Stall);
    let agent = stage.start(&json!({
        "alerts": unlimited(),
        "sinks": { "webhooks": [
            { "name": "stalled", "url": receiver.url("/") },
            { "name": "quick", "url": other.url("/") },
        ] },
    }));
    for round in 0..10 {
        stage.attack(round * ALL / 10..(round + 1) * ALL / 10, EVIL[0]);
        // Standard output and the other webhook have all of it meanwhile.
        stage.sink_until("quick", |sink| sink["delivered"] == (round + 1) * ALL / 10);
    }
    hear(&agent, &Stage::key(ALL - 1, EVIL[0]), "opened");
    let sink = stage.sink_until("stalled", |sink| sink["dropped"].as_u64() > Some(0));
    let (dropped, queued) = (sink["dropped"].as_u64().unwrap(), sink["queued"].as_u64().unwrap());
    assert_eq!(queued, 1_024, "its queue is full");
    // One is on its way, again and again.
    assert_eq!(dropped + queued + 1, u64::from(ALL));
    receiver.usually(Manner::status(200));
    receiver.release();
    let sink = stage.sink_until("stalled", |sink| sink["queued"] == 0);
    let sink_told = stage
        .sink_until("stalled", |sink| sink["delivered"].as_u64() == Some(u64::from(ALL) - dropped));
    assert_eq!(sink["dropped"], sink_told["dropped"]);
    assert_eq!(stage.ask("/v1/findings").as_array().unwrap().len(), ALL as usize);
    agent.stop().unwrap();
}

#[test]
fn each_format_is_what_its_receivers_expect_and_test_alert_says_what_arrived() {
    if !found_or_skip("test alerts", &["ip"]) {
        return;
    }
    let receiver = Receiver::start(None, 0).unwrap();
    let gone = Receiver::start(None, 0).unwrap();
    gone.usually(Manner::Answer(Answer::new(410)));
    let formats = ["json", "slack", "falco", "otlp"];
    let mut hooks: Vec<Value> = formats
        .iter()
        .map(|format| {
            json!({ "name": format, "format": format, "url": receiver.url(&format!("/{format}")) })
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let write = |hooks: &[Value]| {
        let config = json!({ "nodeName": "n1", "api": { "enabled": false }, "sinks": { "webhooks": hooks } });
        std::fs::write(&path, config.to_string()).unwrap();
    };
    write(&hooks);
    let (out, err, code) = detector(&["test-alert", "--config", text(&path)]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(
        err,
        "stdout: delivered\njson: delivered\nslack: delivered\nfalco: delivered\notlp: delivered\n"
    );
    let line: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(line["test"], true);
    let bodies = |path: &str| {
        let all = receiver.received();
        all.iter().find(|one| one.request.target == path).unwrap().request.json().unwrap()
    };
    assert_eq!(bodies("/json"), line);
    assert!(bodies("/slack")["text"].as_str().unwrap().contains("TEST"));
    let falco = bodies("/falco");
    assert_eq!(falco["priority"], "Critical");
    assert_eq!(falco["output_fields"]["k8s.node.name"], "n1");
    let record = bodies("/otlp")["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0].clone();
    assert_eq!(record["severityText"], "FATAL");

    hooks.push(json!({ "name": "gone", "url": gone.url("/") }));
    write(&hooks);
    let (_, err, code) = detector(&["test-alert", "--config", text(&path)]);
    assert_eq!(code, Some(1));
    assert!(err.ends_with("gone: not delivered: it answers 410 Gone\n"), "{err}");
}
