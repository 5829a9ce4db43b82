//! The agent's configuration file.

use anyhow::Result;
use serde_json::{Value, json};

use crate::scenario::words::Words;

/// The configuration that a scenario asks for, and more.
pub(super) fn configuration(words: Words<'_>, more: &Value) -> Result<String> {
    let scenario = words.scenario;
    let allow = scenario
        .allow
        .iter()
        .map(|entry| {
            Ok(json!({
                "cidr": words.expand(&entry.cidr)?,
                "namespace": entry.namespace,
                "serviceAccount": entry.service_account,
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    let timing = scenario.settings;
    let grace: serde_json::Map<String, Value> =
        [("newborn", timing.newborn), ("settle", timing.settle), ("remote", timing.remote)]
            .into_iter()
            .filter_map(|(key, grace)| {
                Some((key.to_owned(), json!(format!("{}ms", grace?.as_millis()))))
            })
            .collect();
    let mut all = json!({ "grace": grace, "floatingIPs": { "allow": allow } });
    for (key, value) in more.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    // JSON is YAML.
    Ok(all.to_string())
}
