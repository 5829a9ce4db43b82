//! The report as SARIF 2.1.0, for what reads findings of scanners.
//!
//! There is no source file behind an object of a cluster. Its path in the API stands for one, so that
//! a viewer that needs a location has one, and the logical location says what it is.

use serde_json::{Value, json};

use super::report::{Finding, Level, Report, Rule};

/// The whole log.
pub(super) fn log(report: &Report) -> Value {
    let rules: Vec<Value> = Rule::ALL.iter().map(|rule| describe(*rule)).collect();
    let results: Vec<Value> = report.findings.iter().map(result).collect();
    let notifications: Vec<Value> = report
        .missing
        .iter()
        .map(|missing| {
            let text = format!("{}: {}; without: {}", missing.what, missing.why, missing.without);
            json!({ "level": "warning", "message": { "text": text } })
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "detector audit",
                    "semanticVersion": report.version,
                    "rules": rules,
                },
            },
            "invocations": [{
                "executionSuccessful": report.exit_code != 2,
                "exitCode": report.exit_code,
                "endTimeUtc": report.time.to_string(),
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
            "properties": {
                "verdict": report.verdict,
                "reasons": report.reasons,
                "next": report.next,
                "source": report.source,
            },
        }],
    })
}

fn describe(rule: Rule) -> Value {
    json!({
        "id": rule.as_str(),
        "shortDescription": { "text": rule.describes() },
        "properties": { "tags": ["security", "CVE-2022-28224"] },
    })
}

fn result(finding: &Finding) -> Value {
    let object = &finding.object;
    let path = path(finding);
    let name = match &object.namespace {
        Some(namespace) => format!("{}/{namespace}/{}", object.kind, object.name),
        None => format!("{}/{}", object.kind, object.name),
    };
    let index = Rule::ALL.iter().position(|rule| *rule == finding.rule);
    let value = finding.value.as_deref().unwrap_or_default();
    json!({
        "ruleId": finding.rule.as_str(),
        "ruleIndex": index,
        "level": level(finding.level),
        "message": { "text": format!("{}: {}", object.shown(), finding.message) },
        "locations": [{
            "physicalLocation": { "artifactLocation": { "uri": path } },
            "logicalLocations": [{ "fullyQualifiedName": format!("{name}#{}", finding.field), "kind": "object" }],
        }],
        "partialFingerprints": { "objectFieldValue/v1": format!("{} {name} {} {value}", finding.rule.as_str(), finding.field) },
        "properties": {
            "severity": finding.level,
            "inForce": finding.in_force,
            "field": finding.field,
            "value": finding.value,
            "next": finding.next,
        },
    })
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Critical | Level::High => "error",
        Level::Medium | Level::Low => "warning",
        Level::Note => "note",
    }
}

/// A relative reference with nothing in it that a URI may not have.
fn path(finding: &Finding) -> String {
    let object = &finding.object;
    let parts =
        [Some("cluster"), Some(object.kind), object.namespace.as_deref(), Some(&object.name)];
    let mut path = String::new();
    for part in parts.into_iter().flatten() {
        if !path.is_empty() {
            path.push('/');
        }
        path.extend(form_urlencoded::byte_serialize(part.as_bytes()));
    }
    // The serializer is for queries, where a space is a plus.
    path.replace('+', "%20")
}
