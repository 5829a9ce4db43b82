//! What must be found.

use std::time::Duration;

use anyhow::Result;
use serde::Deserialize;
use serde_json::Value;

use super::packets::TrafficExpectation;
use super::step::numbered;
use super::time::duration;

/// A finding that must be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expectation {
    /// Its key; with `${…}`.
    pub key: String,
    /// The verdict.
    #[serde(default = "hijack")]
    pub verdict: String,
    /// The severity, where it matters.
    pub severity: Option<String>,
    /// The means, where it matters.
    pub means: Option<String>,
    /// The effect, where it matters.
    pub effect: Option<String>,
    /// The extent, where it matters.
    pub extent: Option<String>,
    /// How far it reaches, where it matters: `node`, `cluster`, `unknown`.
    pub reach: Option<String>,
    /// Whether something could not be seen in the end. Nothing may be missing where it is not said.
    #[serde(default)]
    pub partial: bool,
    /// The attacker: `pod ns/name`, `service ns/name`, `node NAME` (a next hop),
    /// `gateway ADDRESS`, `interface NAME` or `none`.
    pub attacker: String,
    /// The victim: `pod ns/name`, `node NAME`, `service ns/name`, `metadata`,
    /// `service account ns/name`, `everyone in PREFIX`, `nobody`.
    pub victim: String,
    /// Texts that its evidence must have.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// What must have been counted in the end, where it matters.
    pub traffic: Option<TrafficExpectation>,
    /// Whether it must have ended before any packet was diverted, where that matters.
    pub prevented: Option<bool>,
    /// Whether it is over in the end.
    #[serde(default)]
    pub closed: bool,
    /// How long after the kernel's change it must be opened at the latest.
    #[serde(deserialize_with = "duration", default = "default_within")]
    pub within: Duration,
}

fn hijack() -> String {
    "hijack".to_owned()
}

fn default_within() -> Duration {
    Duration::from_secs(1)
}

/// An expectation, or many that differ by a number only.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Written {
    Many {
        /// How many.
        repeat: usize,
        /// The expectation, with `#` for the number.
        each: Value,
    },
    One(Value),
}

/// Reads a list of expectations.
pub(super) fn list<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Vec<Expectation>, D::Error> {
    let read = |value| serde_json::from_value(value).map_err(serde::de::Error::custom);
    let mut all = Vec::new();
    for written in Vec::<Written>::deserialize(from)? {
        match written {
            Written::One(value) => all.push(read(value)?),
            Written::Many { repeat, each } => {
                for at in 0..repeat {
                    all.push(read(numbered(&each, at))?);
                }
            }
        }
    }
    Ok(all)
}
