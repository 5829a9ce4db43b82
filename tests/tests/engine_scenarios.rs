//! Every scenario that comes with the project, in the engine alone; and that all of the catalogue
//! is among them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use detector_tests::scenario::compare::differences;
use detector_tests::scenario::engine::{StartOrder, run};
use detector_tests::scenario::words::Words;
use detector_tests::scenario::{all_paths, catalogue, load};

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
                match run(words, order).and_then(|shown| differences(words, &shown)) {
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

#[test]
fn every_row_of_the_catalogue_has_a_scenario() {
    let scenarios = load(&all_paths().unwrap()).unwrap();
    let missing = catalogue::missing(&scenarios);
    assert!(missing.is_empty(), "no scenario is for {missing:?}");
    for named in &scenarios {
        let id = &named.scenario.id;
        assert!(id == "twin" || catalogue::rows().any(|row| row == *id), "{}: {id}?", named.name);
    }
}

#[test]
fn the_table_of_the_documentation_is_the_files_own() {
    let scenarios = load(&all_paths().unwrap()).unwrap();
    let documentation = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scenarios.md");
    let documentation = std::fs::read_to_string(documentation).unwrap();
    let table = catalogue::table(&scenarios);
    assert!(
        documentation.contains(&table),
        "docs/scenarios.md lacks this table, which `cargo run -p detector-tests --bin scenario -- \
         --table` prints:\n{table}"
    );
}
