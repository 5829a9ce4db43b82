//! The agent's lines in the form that all rungs share.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::Heard;
use crate::scenario::compare::{self, AllSeen, Counted, Seen};

/// Takes a line of the agent into the common form.
pub(super) fn hear(all: &mut AllSeen, heard: &Heard) -> Result<()> {
    let finding = &heard.finding;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ensure!(finding["schema"] == "detector.finding/v1", "not a finding: {finding}");
    let began = finding["bootTime"]["began"].as_u64().context("a finding began")?;
    let state = match finding["state"].as_str() {
        Some("opened") => "opened",
        Some("updated") => "updated",
        Some("closed") => "closed",
        other => anyhow::bail!("not a state: {other:?}"),
    };
    let seen = Seen {
        key: text(&finding["key"]),
        states: Vec::new(),
        verdict: text(&finding["verdict"]),
        severity: text(&finding["severity"]),
        means: text(&finding["means"]),
        effect: text(&finding["effect"]),
        extent: text(&finding["extent"]),
        reach: text(&finding["reach"]["scope"]),
        attacker: attacker(&finding["attacker"]),
        victim: victim(&finding["victim"]),
        reason: text(&finding["reason"]),
        evidence: finding["evidence"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|evidence| text(&evidence["text"]))
            .collect(),
        partial: finding["partial"] == true,
        traffic: finding["traffic"].as_object().map(|traffic| {
            let number = |name: &str| traffic[name].as_u64().unwrap_or_default();
            Counted {
                packets: number("packets"),
                bytes: number("bytes"),
                clients: number("clients"),
            }
        }),
        prevented: finding["prevented"].as_bool(),
        latency: Duration::from_nanos(heard.at.as_nanos().saturating_sub(began)),
    };
    compare::add(all, state, seen);
    Ok(())
}

fn attacker(value: &Value) -> String {
    let part = |name: &str| value[name].as_str();
    if let Some(pod) = part("pod") {
        return format!("pod {}/{pod}", part("namespace").unwrap_or_default());
    }
    ["service", "node", "gateway", "interface"]
        .into_iter()
        .find_map(|kind| Some(format!("{kind} {}", part(kind)?)))
        .unwrap_or_else(|| "none".to_owned())
}

fn victim(value: &Value) -> String {
    let part = |name: &str| value[name].as_str().unwrap_or_default();
    match part("kind") {
        kind @ ("pod" | "service") => format!("{kind} {}/{}", part("namespace"), part("name")),
        "node" => format!("node {}", part("name")),
        "serviceAccount" => format!("service account {}/{}", part("namespace"), part("name")),
        "prefix" => format!("everyone in {}", part("name")),
        other => other.to_owned(),
    }
}
