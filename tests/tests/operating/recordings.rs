//! A recording gives the same findings again, byte for byte.

use std::time::Duration;

use detector_tests::real::found_or_skip;
use detector_tests::scenario::step::Step;
use serde_json::json;

use super::stage::{EVIL, Stage, detector, hear, text};

#[test]
fn a_recording_gives_the_same_findings_byte_for_byte() {
    if !found_or_skip("recordings", &["ip"]) {
        return;
    }
    let mut stage = Stage::new(8);
    let recording = stage.folder.path().join("recording");
    // Some stand before, of which the second life has to know.
    let first = stage.start(&json!({ "state": stage.state() }));
    stage.attack(0..2, EVIL[0]);
    hear(&first, &Stage::key(1, EVIL[0]), "opened");
    first.stop().unwrap();

    let flags = ["--record", text(&recording)];
    let more = json!({ "state": stage.state(), "socket": stage.socket() });
    let mut agent = stage.node.launch_agent(stage.words, "auto", &more, &flags).unwrap();
    agent.wait_until_ready().unwrap();
    let mut lines = String::new();
    stage.relent(0..1, EVIL[0]);
    let annotate = "annotate: {pod: default/evil, annotations: {floatingIPs: '[\"${db}\"]'}}";
    stage.step(&serde_saphyr::from_str::<Step>(annotate).unwrap());
    stage.ip("route add ${db/host} dev ${dev default/evil} scope link proto boot");
    stage.attack(2..6, EVIL[1]);
    stage.relent(2..5, EVIL[1]);
    stage.ip("route replace ${cart/host} dev ${dev default/evil} scope link");
    while let Some(heard) = agent.next_finding(Duration::from_secs(3)).unwrap() {
        lines.push_str(&heard.line);
        lines.push('\n');
    }
    agent.stop().unwrap();
    assert!(lines.lines().count() >= 9, "{lines}");

    let (out, err, code) = detector(&["replay", text(&recording)]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(out, lines);
    assert!(err.contains(&format!("{} findings told", lines.lines().count())), "{err}");
    let (out, ..) = detector(&["replay", text(&recording), "-o", "text"]);
    assert!(out.contains("what to do: detector runbook route"), "{out}");

    // What is no recording is one line.
    for (name, content) in [("empty", ""), ("other", "{\"a\": 1}\n"), ("text", "hello\n")] {
        let path = stage.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let (out, err, code) = detector(&["replay", text(&path)]);
        assert_eq!((out.as_str(), err.lines().count(), code), ("", 1, Some(1)), "{err}");
    }
    // One that was cut in its last line is good up to there.
    let all = std::fs::read(&recording).unwrap();
    let cut = stage.folder.path().join("cut");
    std::fs::write(&cut, &all[..all.len() - 10]).unwrap();
    let (_, err, code) = detector(&["replay", text(&cut)]);
    assert_eq!(code, Some(0), "{err}");
}
