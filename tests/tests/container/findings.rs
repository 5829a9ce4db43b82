//! What the agent finds in a container is what it finds anywhere.

use std::path::Path;
use std::sync::Arc;

use detector_tests::container::Runtime;
use detector_tests::real::found_or_skip;
use detector_tests::scenario::compare::differences;
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{load, node};
use serde_json::json;

use super::stage::{Stage, start, turn};

/// The bulletin's attack with its victim on another node; a flap of a millisecond; a victim that is told
/// apart by IPAM's record alone; and packets that are counted.
const SCENARIOS: [&str; 4] =
    ["e01-floating-ip-feature-off", "e10-flap", "e06-forged-status", "e01-traffic-by-route"];

#[test]
fn with_the_manifests_privileges_it_finds_what_there_is() {
    let _turn = turn();
    let Some(stage) = Stage::new("the agent in a container") else { return };
    // By crun once more where a call that the profile refuses is the end: refused by an error, it could
    // pass unnoticed.
    for (runtime, unforgiving) in
        [(Runtime::Crun, false), (Runtime::Crun, true), (Runtime::Runc, false)]
    {
        if !found_or_skip("the agent in a container", &[runtime.program()]) {
            continue;
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let paths = SCENARIOS.map(|name| folder.join(format!("{name}.yaml")));
        for named in load(&paths).unwrap() {
            let name = &named.name;
            for family in &named.scenario.families {
                let words = Words { scenario: &named.scenario, family: *family };
                let mut pods = Vec::new();
                let shown = node::run_launched(words, Arc::clone(&stage.cluster), |node| {
                    let mut pod = stage.pod(node, words, runtime, &json!({}))?;
                    if unforgiving {
                        pod.forgive_nothing();
                    }
                    let agent = start(&pod, node)?;
                    pods.push(pod);
                    Ok(agent)
                });
                let shown = shown.unwrap_or_else(|error| panic!("{name}, {runtime:?}: {error:#}"));
                let differences = differences(words, &shown).unwrap();
                assert!(differences.is_empty(), "{name}, {runtime:?}: {differences:#?}");
            }
        }
    }
}
