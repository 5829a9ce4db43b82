//! Which row of the catalogue which scenario is for, as the table of docs/scenarios.md.

use std::fmt::Write as _;

use super::Named;

/// All rows of the catalogue.
pub fn rows() -> impl Iterator<Item = String> {
    (1..=34).map(|number| format!("E{number:02}"))
}

/// The rows that have no scenario and should have one.
pub fn missing(scenarios: &[Named]) -> Vec<String> {
    rows().filter(|row| scenarios.iter().all(|named| named.scenario.id != *row)).collect()
}

/// The table.
pub fn table(scenarios: &[Named]) -> String {
    let mut table =
        String::from("| id | file | what happens | rungs | families |\n|---|---|---|---|---|\n");
    for Named { name, scenario } in scenarios {
        let families: Vec<&str> = scenario.families.iter().map(|family| family.as_str()).collect();
        let rungs = if scenario.engine_only.is_some() { "engine" } else { "engine, node" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "| {} | [{name}](../tests/scenarios/{name}.yaml) | {} | {rungs} | {} |",
            scenario.id,
            scenario.title,
            families.join(", ")
        );
    }
    table
}
