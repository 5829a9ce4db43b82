//! What the audit writes is what docs/schema publishes, and what it wrote before it writes again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::stage::audit;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn schema(path: &str) -> Validator {
    let text = fs::read_to_string(project(path)).unwrap();
    jsonschema::validator_for(&serde_json::from_str(&text).unwrap()).unwrap()
}

static REPORT: LazyLock<Validator> = LazyLock::new(|| schema("docs/schema/audit.v1.json"));

/// Holds a report against the published schema.
#[track_caller]
pub(crate) fn holds(report: &Value) {
    is_valid(&REPORT, report);
}

#[track_caller]
fn is_valid(schema: &Validator, value: &Value) {
    let wrong: Vec<String> = schema
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?} in {value:#}");
}

/// The dump that the golden files are made of.
const DUMP: &str = "tests/audits/hit.yaml";

fn run(format: &str) -> String {
    let path = project(DUMP);
    let output = audit(&["--from", path.to_str().unwrap(), "--output", format]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // Where the files are, and when it is, differs from run to run.
    text.replace(path.to_str().unwrap(), "hit.yaml")
}

/// Without what differs from run to run.
fn settled(format: &str) -> String {
    let text = run(format);
    if !matches!(format, "json" | "sarif") {
        return text;
    }
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let time = match format {
        "json" => &mut value["time"],
        _ => &mut value["runs"][0]["invocations"][0]["endTimeUtc"],
    };
    assert!(time.is_string());
    *time = "2026-01-01T00:00:00Z".into();
    format!("{value:#}\n")
}

/// A field that is added changes the golden files; `UPDATE_GOLDEN=1` writes them anew.
#[test]
fn a_dump_gives_what_it_gave() {
    for format in ["json", "sarif", "table"] {
        let given = settled(format);
        let golden = project(&format!("tests/audits/hit.{format}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &given).unwrap();
        }
        let golden = fs::read_to_string(&golden).unwrap();
        assert!(
            given == golden,
            "{format} has changed: run with UPDATE_GOLDEN=1 and look at the difference"
        );
    }
    let report: Value = serde_json::from_str(&run("json")).unwrap();
    holds(&report);
}

/// What SARIF 2.1.0 demands of the parts that are written here, in the standard's own sections.
fn sarif() -> Validator {
    let text = json!({ "type": "string", "minLength": 1 });
    let message = json!({ "type": "object", "required": ["text"], "properties": { "text": text } });
    let level = json!({ "enum": ["none", "note", "warning", "error"] });
    // 3.27, results; 3.28, locations; 3.29 and 3.33, physical and logical ones.
    let location = json!({
        "type": "object",
        "properties": {
            "physicalLocation": {
                "required": ["artifactLocation"],
                "properties": {
                    "artifactLocation": {
                        "properties": { "uri": { "type": "string", "format": "uri-reference" } },
                    },
                },
            },
            "logicalLocations": {
                "type": "array", "items": { "properties": { "fullyQualifiedName": text, "kind": text } },
            },
        },
    });
    let result = json!({
        "type": "object",
        "required": ["message", "ruleId", "ruleIndex", "level", "locations"],
        "properties": {
            "ruleId": text,
            "ruleIndex": { "type": "integer", "minimum": -1 },
            "level": level,
            "message": message,
            "locations": { "type": "array", "items": location },
            "partialFingerprints": { "additionalProperties": { "type": "string" } },
            "properties": { "type": "object" },
        },
        "additionalProperties": false,
    });
    // 3.13, the log; 3.14, runs; 3.18 and 3.19, the tool; 3.20, invocations; 3.58, notifications.
    let notification = json!({
        "required": ["message"], "properties": { "message": message, "level": level },
        "additionalProperties": false,
    });
    let schema = json!({
        "type": "object",
        "required": ["version", "runs"],
        "additionalProperties": false,
        "properties": {
            "$schema": { "type": "string", "format": "uri" },
            "version": { "const": "2.1.0" },
            "runs": { "type": "array", "minItems": 1, "items": {
                "required": ["tool"],
                "additionalProperties": false,
                "properties": {
                    "tool": { "required": ["driver"], "properties": { "driver": {
                        "required": ["name"],
                        "properties": {
                            "name": text,
                            "semanticVersion": text,
                            "rules": { "type": "array", "uniqueItems": true, "items": {
                                "required": ["id"],
                                "properties": { "id": text, "shortDescription": message },
                            } },
                        },
                    } } },
                    "invocations": { "type": "array", "items": {
                        "required": ["executionSuccessful"],
                        "additionalProperties": false,
                        "properties": {
                            "executionSuccessful": { "type": "boolean" },
                            "exitCode": { "type": "integer" },
                            "endTimeUtc": { "type": "string", "format": "date-time" },
                            "toolExecutionNotifications": { "type": "array", "items": notification },
                        },
                    } },
                    "results": { "type": "array", "items": result },
                    "properties": { "type": "object" },
                },
            } },
        },
    });
    jsonschema::validator_for(&schema).unwrap()
}

#[test]
fn sarif_is_sarif() {
    let log: Value = serde_json::from_str(&run("sarif")).unwrap();
    is_valid(&sarif(), &log);
    let run = &log["runs"][0];
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    for result in run["results"].as_array().unwrap() {
        let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
        assert_eq!(rules[index]["id"], result["ruleId"]);
        assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty()));
    }
}

#[test]
fn the_schema_refuses_what_it_does_not_know() {
    let mut report: Value = serde_json::from_str(&run("json")).unwrap();
    report["verdict"] = "fine".into();
    assert!(!REPORT.is_valid(&report));
    let mut report: Value = serde_json::from_str(&run("json")).unwrap();
    report["findings"][0]["unknown"] = 1.into();
    assert!(!REPORT.is_valid(&report));
}
