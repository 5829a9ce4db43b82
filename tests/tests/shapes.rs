//! What the agent writes is what docs/schema publishes, and what it wrote before it writes again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use detector::recording;
use detector::sink::{How, SCHEMA, SUMMARY_SCHEMA};
use jsonschema::Validator;
use serde_json::Value;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn schema(name: &str) -> Validator {
    let text = fs::read_to_string(project("docs/schema").join(name)).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

#[track_caller]
fn holds(schema: &Validator, value: &Value) {
    let wrong: Vec<String> = schema
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?} in {value:#}");
}

fn recordings() -> Vec<PathBuf> {
    let folder = fs::read_dir(project("tests/recordings")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "jsonl")).collect()
}

/// A recording of any version gives, byte for byte, what that version wrote: the golden file beside it.
/// A field that is added changes both; `UPDATE_GOLDEN=1` writes them anew.
#[test]
fn recordings_give_what_they_gave() {
    let schema = schema("finding.v1.json");
    let recordings = recordings();
    assert!(!recordings.is_empty());
    for path in recordings {
        let mut lines = Vec::new();
        let file = BufReader::new(fs::File::open(&path).unwrap());
        let replayed = recording::replay(file, &mut |report| {
            report.write_json(&mut lines);
            Ok(())
        });
        assert!(replayed.unwrap().told > 0, "{} tells nothing", path.display());
        for line in String::from_utf8(lines.clone()).unwrap().lines() {
            holds(&schema, &serde_json::from_str(line).unwrap());
        }
        let golden = path.with_extension("findings");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &lines).unwrap();
        }
        let golden = fs::read_to_string(&golden).unwrap();
        assert_eq!(String::from_utf8(lines).unwrap(), golden, "{}", path.display());
    }
}

#[test]
fn the_schemas_say_which_they_are_and_know_every_word() {
    for (name, version) in [("finding.v1.json", SCHEMA), ("summary.v1.json", SUMMARY_SCHEMA)] {
        let text = fs::read_to_string(project("docs/schema").join(name)).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(schema["properties"]["schema"]["const"], version);
    }
    let text = fs::read_to_string(project("docs/schema/finding.v1.json")).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    let words = |field: &str| -> Vec<String> {
        let words = schema["properties"][field]["enum"].as_array().unwrap();
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    for how in [How::Opened, How::Updated, How::Repeated, How::Closed] {
        assert!(words("state").contains(&how.as_str().to_owned()), "{how:?}");
    }
    for means in detector::sink::report::MEANS {
        assert!(words("means").contains(&means.as_str().to_owned()), "{means:?}");
    }
}

#[test]
fn the_schema_of_the_configuration_takes_what_the_agent_takes() {
    let schema = schema("config.v1.json");
    let text = fs::read_to_string(project("deploy/config.example.yaml")).unwrap();
    let example: Value = serde_saphyr::from_str(&text).unwrap();
    holds(&schema, &example);
    // The entries that stand there as comments.
    let sinks = "
sinks:
  alertmanagers:
  - {name: main, url: 'http://alertmanager.monitoring:9093', lingers: 1m, leastSeverity: low}
  webhooks:
  - {name: chat, urlFile: /etc/detector/slack-url, format: slack, secretFile: /etc/detector/secret}
";
    holds(&schema, &serde_saphyr::from_str(sinks).unwrap());
    for wrong in [
        "resyncIntervall: 10m",
        "resyncInterval: ten",
        "output: xml",
        "ringBytes: 1",
        "sinks: {webhooks: [{name: chat}]}",
        "sinks: {webhooks: [{name: chat, url: 'https://a', urlFile: /b}]}",
        "sinks: {webhooks: [{name: chat, url: 'https://user:word@a/'}]}",
        "floatingIPs: {allow: [{cidr: 192.0.2.0/28, namespace: edge}]}",
        "floatingIPs: {allow: [{cidr: 192.0.2.0, namespace: edge, serviceAccount: a}]}",
    ] {
        let wrong: Value = serde_saphyr::from_str(wrong).unwrap();
        assert!(!schema.is_valid(&wrong), "{wrong}");
    }
}
