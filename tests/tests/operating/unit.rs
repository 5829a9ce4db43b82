//! The unit of systemd that comes with the agent, as systemd's own tools see it. That it works,
//! `cargo xtask vm --test systemd` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use detector_tests::real::found_or_skip;
use serde_json::Value;

use super::stage::{detector, text};

/// The version of systemd whose words and figure the README has: Debian 12's. Others look for more, or for
/// less.
const VERSION: &str = "252";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    let mut analyze = Command::new("systemd-analyze");
    analyze
        .args(arguments)
        .arg("--no-pager")
        .arg(unit)
        .env("SYSTEMD_COLORS", "0")
        .env("LC_ALL", "C");
    analyze.output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The README's points, as systemd calls them.
fn explained() -> BTreeMap<String, String> {
    let readme = read("README.md");
    let section = readme.split("## What the sandbox leaves open").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    rows.map(|(point, why)| (point.replace("\\|", "|"), why.trim_end_matches(" |").to_owned()))
        .collect()
}

#[test]
fn systemd_takes_every_line_of_the_unit() {
    if !found_or_skip("the unit's syntax", &["systemd-analyze"]) {
        return;
    }
    // Where it is not installed: with the program that was built, and man pages that are not there.
    let program = detector_tests::agent::program().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("detector.service");
    std::fs::write(&unit, read("detector.service").replace("/usr/bin/detector", text(&program)))
        .unwrap();
    let output = analyze(&["verify", "--man=no"], &unit);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("detector.service")).collect();
    assert_eq!(ours, Vec::<&str>::new());
}

#[test]
fn what_the_sandbox_leaves_open_is_explained() {
    if !found_or_skip("the unit's exposure", &["systemd-analyze"]) {
        return;
    }
    let unit = folder().join("detector.service");
    let listed = analyze(&["security", "--offline=true", "--json=short"], &unit);
    let points: Vec<Value> = serde_json::from_slice(&listed.stdout).unwrap();
    let exposed = points.iter().filter(|point| point["exposure"].is_string());
    let open: BTreeSet<String> =
        exposed.map(|point| point["name"].as_str().unwrap().to_owned()).collect();
    assert!(open.len() > 5, "{points:#?}");
    let explained = explained();
    let named: BTreeSet<String> = explained.keys().cloned().collect();
    let silent: Vec<&String> = open.difference(&named).collect();
    let of_this_version = {
        let version = Command::new("systemd-analyze").arg("--version").output().unwrap();
        printed(&version).starts_with(&format!("systemd {VERSION} "))
    };
    assert_eq!(silent, Vec::<&String>::new(), "open, and not explained");
    assert!(explained.values().all(|why| why.len() > 20), "{explained:#?}");
    if of_this_version {
        let closed: Vec<&String> = named.difference(&open).collect();
        assert_eq!(closed, Vec::<&String>::new(), "explained, and not open");
        let summary = printed(&analyze(&["security", "--offline=true"], &unit));
        let overall = summary.rsplit("service: ").next().unwrap();
        let figure = overall.split_whitespace().next().unwrap();
        let said = format!("of systemd {VERSION} says {figure};");
        assert!(read("README.md").contains(&said), "the README does not say: {said}");
    }
}

#[test]
fn what_is_installed_in_etc_is_taken_by_the_agent() {
    let config = folder().join("config.yaml");
    let (out, err, code) = detector(&["config", "check", text(&config)]);
    assert_eq!((err.as_str(), code), ("", Some(0)), "{out}");
    let shown = detector(&["config", "show", "--node-name", "a", "--config", text(&config)]).0;
    let shown: Value = serde_saphyr::from_str(&shown).unwrap();
    assert_eq!(shown["api"]["enabled"], false, "it starts without a cluster");
    assert_eq!(shown["sinks"]["journald"]["enabled"], true);
    // The variables are those that the agent reads.
    let defaults = read("detector.default");
    let names: Vec<&str> = defaults
        .lines()
        .filter_map(|line| Some(line.strip_prefix('#')?.split_once('=')?.0))
        .filter(|name| name.chars().all(|letter| letter.is_ascii_uppercase() || letter == '_'))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    let (help, ..) = detector(&["run", "--help"]);
    for name in names {
        assert!(help.contains(&format!("[env: {name}")), "{name} is no variable of the agent");
    }
}
