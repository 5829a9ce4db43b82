//! Every scenario that comes with the project, in the engine alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use detector_tests::scenario::compare::differences;
use detector_tests::scenario::engine::{StartOrder, run};
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{all_paths, load};

#[test]
fn every_scenario_gives_what_it_expects_whatever_is_heard_first() {
    let scenarios = load(&all_paths().unwrap()).unwrap();
    assert!(!scenarios.is_empty());
    let mut wrong = Vec::new();
    let mut runs = 0;
    for named in &scenarios {
        for family in &named.scenario.families {
            let words = Words { scenario: &named.scenario, family: *family };
            for order in [StartOrder::KernelFirst, StartOrder::ClusterFirst] {
                runs += 1;
                let name = format!("{} {} {order:?}", named.name, family.as_str());
                match run(words, order).and_then(|seen| differences(words, &seen)) {
                    Ok(differences) => {
                        wrong.extend(differences.iter().map(|what| format!("{name}: {what}")));
                    }
                    Err(error) => wrong.push(format!("{name}: {error:#}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "of {runs} runs:\n{}", wrong.join("\n"));
}
