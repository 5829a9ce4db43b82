//! Holds the agent's seccomp profile against what the agent calls.
//!
//! The agent runs under strace while scenarios happen to it, on the real kernel. Each call that the
//! profile does not name is shown, and is a failure; so is shown what it names and nobody called: that is
//! there for what this machine does not have, such as other processors, tracing and container runtimes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{build, setup};

/// Scenarios in which the agent does all that it can: routes, packets, translations, floods, an API server
/// that comes and goes.
const SCENARIOS: [&str; 7] = [
    "e01-traffic-by-route",
    "e10-flap",
    "e21-flood",
    "e23-api-server-down-and-back",
    "e26-translation-nft",
    "e27-translation-by-hand-iptables-legacy",
    "e28-neighbour-proxy",
];

/// Compares them.
pub(crate) fn compare() -> Result<()> {
    setup::strace()?;
    build::programs(&["detector", "scenario"], &[])?;
    let folder = build::target()?.join("seccomp");
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot clear what the last run wrote")?;
    }
    fs::create_dir_all(&folder).context("cannot make a folder")?;
    let folder = fs::canonicalize(folder)?;
    let bin = fs::canonicalize(build::target()?.join("debug"))?;
    let wrapper = folder.join("detector");
    // By -D the agent stays the process that whoever starts it knows.
    let script = format!(
        "#!/bin/sh\nexec strace -D -f -qq -o '{}'/$$.log '{}' \"$@\"\n",
        folder.display(),
        bin.join("detector").display()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut scenarios = Command::new(bin.join("scenario"));
    let files = build::workspace()?.join("tests/scenarios");
    scenarios.args(SCENARIOS.map(|name| files.join(format!("{name}.yaml"))));
    // Traced, the agent is many times slower: what it finds in time is not the question here.
    scenarios.env("DETECTOR_BIN", &wrapper).status().context("the scenarios do not start")?;

    let called = called(&folder)?;
    for certain in ["bpf", "connect", "recvfrom", "sendto", "setsockopt", "ioctl"] {
        ensure!(called.contains(certain), "{certain} was not seen: did no scenario run?");
    }
    let named = named()?;
    let missing: Vec<&String> = called.difference(&named).collect();
    let uncalled: Vec<&String> = named.difference(&called).collect();
    println!("{} called, {} named", called.len(), named.len());
    println!("named and not called here: {uncalled:?}");
    ensure!(
        missing.is_empty(),
        "called and not named in deploy/seccomp/detector.json: {missing:?}"
    );
    Ok(())
}

/// The names of all calls that were traced.
fn called(folder: &Path) -> Result<BTreeSet<String>> {
    let mut called = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        for line in String::from_utf8_lossy(&fs::read(&path)?).lines() {
            // `123   openat(AT_FDCWD, …`; what is no call has no name before the first bracket.
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
            let Some((name, _)) = call.split_once('(') else { continue };
            let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !name.is_empty() && name.chars().all(is_name) {
                called.insert(name.to_owned());
            }
        }
    }
    Ok(called)
}

/// The names in the profile.
fn named() -> Result<BTreeSet<String>> {
    let path = build::workspace()?.join("deploy/seccomp/detector.json");
    let profile: Value = serde_json::from_slice(&fs::read(path)?).context("the profile")?;
    let rules = profile["syscalls"].as_array().context("the profile's rules")?;
    let names = rules.iter().filter_map(|rule| rule["names"].as_array()).flatten();
    Ok(names.filter_map(|name| Some(name.as_str()?.to_owned())).collect())
}
