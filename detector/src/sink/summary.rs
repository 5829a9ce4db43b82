//! What was held back, as it is told.

use std::io::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use super::limit::{Batch, Counts, Held};
use super::report::Origin;
use crate::clock::BootWall;

/// The name and version of a summary's shape in JSON.
pub const SUMMARY_SCHEMA: &str = "detector.summary/v1";

/// What a sink was not told one by one, with exact counts.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was held back.
    pub batch: Batch,
    origin: Arc<Origin>,
    boot: BootWall,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    schema: &'static str,
    time: Timestamp,
    node: &'a str,
    since: Timestamp,
    until: Timestamp,
    severity: &'static str,
    held_back: &'a Counts,
    attackers: &'a [Held],
    other_attackers: u64,
    of_others: &'a Counts,
    summary: String,
    runbook: String,
}

// === impl Summary ===

impl Summary {
    pub(super) fn new(origin: &Arc<Origin>, boot: BootWall, batch: Batch) -> Self {
        Self { batch, origin: Arc::clone(origin), boot }
    }

    /// The node that tells it.
    pub fn node(&self) -> &str {
        &self.origin.node
    }

    /// When the window ended.
    pub fn until(&self) -> Timestamp {
        self.boot.at(self.batch.until)
    }

    /// When it began.
    pub fn since(&self) -> Timestamp {
        self.boot.at(self.batch.since)
    }

    /// Where it says what to do.
    pub fn runbook(&self) -> String {
        self.origin.runbook("flood")
    }

    /// One line that says it all.
    pub fn text(&self) -> String {
        let Batch { counts, attackers, others, .. } = &self.batch;
        let worst: Vec<String> = attackers
            .iter()
            .take(3)
            .map(|held| format!("{} ({})", held.attacker, in_words(&held.counts)))
            .collect();
        let more = attackers.len().saturating_sub(worst.len()) as u64 + others;
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        format!(
            "{} were not told one by one since there were too many: by {}{more}; \
             `detector findings` has them all",
            in_words(counts),
            worst.join(", ")
        )
    }

    /// The shape in JSON as a value.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self.json()).unwrap_or_default()
    }

    /// Writes one line of JSON.
    pub fn write_json(&self, line: &mut Vec<u8>) {
        // All of it is strings and numbers, and a Vec takes every byte.
        if serde_json::to_writer(&mut *line, &self.json()).is_ok() {
            let _ = line.write_all(b"\n");
        }
    }

    fn json(&self) -> Json<'_> {
        Json {
            schema: SUMMARY_SCHEMA,
            time: self.until(),
            node: &self.origin.node,
            since: self.since(),
            until: self.until(),
            severity: self.batch.severity.as_str(),
            held_back: &self.batch.counts,
            attackers: &self.batch.attackers,
            other_attackers: self.batch.others,
            of_others: &self.batch.of_others,
            summary: self.text(),
            runbook: self.runbook(),
        }
    }
}

/// Counts for people.
fn in_words(counts: &Counts) -> String {
    let Counts { opened, updated, repeated, closed } = *counts;
    let parts =
        [(opened, "opened"), (updated, "updated"), (repeated, "still standing"), (closed, "over")];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    parts.join(", ")
}
