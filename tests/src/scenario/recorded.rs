//! A recording as a scenario: what an agent was told somewhere, told to the engine again.
//!
//! It is exact, and so it runs in the engine alone: the kernel and the cluster of that day are gone.
//! The recording lies beside the scenarios, and the scenario says what must be found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use detector::recording;
use serde_json::{Value, json};

use super::compare::{self, AllSeen, Seen, Sent, Shown};

/// The folder of recordings.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings")
}

/// Replays the recording of this name; gives what was found.
pub(super) fn run(name: &str) -> Result<Shown> {
    replay(&folder().join(name))
}

fn replay(path: &Path) -> Result<Shown> {
    let file = File::open(path).with_context(|| format!("no recording {}", path.display()))?;
    let mut all = AllSeen::new();
    recording::replay(BufReader::new(file), &mut |report| {
        let (state, seen) = compare::seen(&report.finding);
        compare::add(&mut all, state, seen);
        Ok(())
    })
    .with_context(|| format!("{}", path.display()))?;
    for seen in all.values_mut().filter(|seen| seen.states.first() != Some(&"opened")) {
        // It stood before, by the agent's state file.
        seen.states.insert(0, "opened");
    }
    Ok(Shown { seen: all, sent: Sent::default() })
}

/// Makes a scenario of a recording: copies it to the others, and writes what was found as what must be
/// found. Gives the scenario's path.
pub fn make(recording: &Path, name: &str, id: &str) -> Result<PathBuf> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(fits) {
        bail!("{name:?} is no name for a scenario: write a-z, 0-9 and -");
    }
    let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("scenarios/{name}.yaml"));
    if scenario.exists() {
        bail!("there is a scenario {name}: choose another name");
    }
    let shown = replay(recording)?;
    fs::create_dir_all(folder())?;
    let copy = format!("{name}.jsonl");
    fs::copy(recording, folder().join(&copy))?;
    let title = match shown.seen.values().next() {
        Some(seen) => seen.reason.clone(),
        None => "What happened somewhere, of which nothing is wrong.".to_owned(),
    };
    let whole = json!({
        "id": id,
        "title": title,
        "families": ["ipv4"],
        "engineOnly": "it is a recording",
        "recording": copy,
        "addresses": BTreeMap::<String, Value>::new(),
        "expect": shown.seen.values().map(expectation).collect::<Vec<_>>(),
    });
    fs::write(&scenario, serde_saphyr::to_string(&whole)?)?;
    Ok(scenario)
}

fn expectation(seen: &Seen) -> Value {
    // Up to the next whole second, so that a grace of the day is a grace of the test.
    let within = seen.latency.as_secs() + 1;
    let mut expected = json!({
        "key": seen.key,
        "verdict": seen.verdict,
        "severity": seen.severity,
        "means": seen.means,
        "effect": seen.effect,
        "extent": seen.extent,
        "reach": seen.reach,
        "attacker": seen.attacker,
        "victim": seen.victim,
        "evidence": seen.evidence,
        "partial": seen.partial,
        "closed": seen.states.last() == Some(&"closed"),
        "within": format!("{within}s"),
    });
    if let Some(traffic) = seen.traffic {
        expected["traffic"] = json!({
            "packets": traffic.packets, "bytes": traffic.bytes, "clients": traffic.clients,
        });
    }
    if let Some(prevented) = seen.prevented {
        expected["prevented"] = json!(prevented);
    }
    expected
}
