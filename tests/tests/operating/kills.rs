//! The agent is killed at random points, again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use detector_tests::agent::Heard;
use detector_tests::real::found_or_skip;
use nix::sys::signal::Signal;
use serde_json::json;

use super::stage::{EVIL, Stage};

const KILLS: usize = 200;
const VICTIMS: u32 = 24;

/// What was told of each finding, in order.
#[derive(Default)]
struct Story(BTreeMap<String, Vec<String>>);

impl Story {
    fn hear(&mut self, heard: &Heard) {
        let text = |name: &str| heard.finding[name].as_str().unwrap().to_owned();
        self.0.entry(text("key")).or_default().push(text("state"));
    }
}

#[test]
fn nothing_is_opened_twice_and_nothing_is_forgotten_however_often_it_is_killed() {
    if !found_or_skip("an agent that is killed", &["ip"]) {
        return;
    }
    let stage = Stage::new(VICTIMS);
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut standing = BTreeSet::new();
    let mut story = Story::default();
    let more = json!({ "state": stage.state(), "socket": stage.socket(), "packets": "off" });
    let mut lives = 0;
    while lives < KILLS {
        let mut agent = stage.node.launch_agent(stage.words, "auto", &more, &[]).unwrap();
        // Some are killed before they know anything, most in the middle of telling.
        if rng.u8(..8) > 0 {
            agent.wait_until_ready().unwrap();
        }
        for _ in 0..rng.usize(0..4) {
            let victim = rng.u32(0..VICTIMS);
            if standing.remove(&victim) {
                stage.relent(victim..victim + 1, EVIL[0]);
            } else {
                standing.insert(victim);
                stage.attack(victim..victim + 1, EVIL[0]);
            }
            std::thread::sleep(Duration::from_micros(rng.u64(0..6_000)));
        }
        let ended = agent.end(Signal::SIGKILL).unwrap();
        for heard in &ended.found {
            story.hear(heard);
        }
        let aside = |entry: &&serde_json::Value| entry.to_string().contains("made no sense");
        let bad = ended.logged.iter().find(aside);
        assert!(bad.is_none(), "seed {seed}, life {lives}: {bad:?}");
        lives += 1;
    }
    let agent = stage.start(&more);
    let keys: BTreeSet<String> = standing.iter().map(|n| Stage::key(*n, EVIL[0])).collect();
    let stands = |findings: &serde_json::Value| -> BTreeSet<String> {
        let all = findings.as_array().unwrap().iter();
        all.map(|finding| finding["key"].as_str().unwrap().to_owned()).collect()
    };
    stage.ask_until("/v1/findings", |findings| stands(findings) == keys);
    stage.sink_until("stdout", |sink| sink["queued"] == 0);
    for heard in agent.end(Signal::SIGTERM).unwrap().found {
        story.hear(&heard);
    }
    for (key, states) in &story.0 {
        let mut open = false;
        for state in states {
            match state.as_str() {
                "opened" => {
                    assert!(!open, "seed {seed}: {key} is opened twice: {states:?}");
                    open = true;
                }
                // Who was killed before he could say that it opened says later that it stands.
                "repeated" | "updated" => open = true,
                "closed" => open = false,
                other => panic!("{other}"),
            }
        }
        assert_eq!(open, keys.contains(key), "seed {seed}: {key}: {states:?}");
    }
    let told: BTreeSet<String> = story.0.keys().cloned().collect();
    assert!(told.is_superset(&keys), "seed {seed}: forgotten: {:?}", keys.difference(&told));
    let openings = story.0.values().flatten().filter(|state| *state == "opened").count();
    assert!(openings > KILLS / 4, "only {openings} findings were opened: the test tests little");
}

#[test]
fn a_state_file_that_makes_no_sense_is_set_aside_and_said_so() {
    if !found_or_skip("a corrupt state file", &["ip"]) {
        return;
    }
    let stage = Stage::new(2);
    std::fs::write(stage.state(), "{\"book\": 7}\nnonsense\n").unwrap();
    stage.attack(0..1, EVIL[0]);
    let more = json!({ "state": stage.state() });
    let mut agent = stage.start(&more);
    let said = agent.wait_for_log("findings that stand are told anew").unwrap();
    assert!(said.to_string().contains("state.corrupt"), "{said}");
    super::stage::hear(&agent, &Stage::key(0, EVIL[0]), "opened");
    agent.stop().unwrap();
    assert_eq!(
        std::fs::read_to_string(stage.folder.path().join("state.corrupt")).unwrap(),
        "{\"book\": 7}\nnonsense\n"
    );
    // The new one is whole: the next agent has nothing to tell.
    let agent = stage.start(&more);
    stage.ask_until("/v1/findings", |findings| findings.as_array().unwrap().len() == 1);
    assert!(agent.next_finding(Duration::from_secs(1)).unwrap().is_none());
    agent.stop().unwrap();
}
