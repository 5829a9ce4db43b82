//! A log record for an OpenTelemetry collector, as OTLP/HTTP has it in JSON (`POST /v1/logs`).

use detector_core::finding::Severity;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::sink::report::Report;
use crate::sink::summary::Summary;

/// A finding.
pub(in crate::sink) fn report(report: &Report) -> Value {
    record(
        "detector.finding",
        report.node(),
        report.wall(report.told),
        report.severity(),
        &report.summary(),
        &report.to_value(),
    )
}

/// What was held back.
pub(in crate::sink) fn summary(summary: &Summary) -> Value {
    record(
        "detector.summary",
        summary.node(),
        summary.until(),
        summary.batch.severity,
        &summary.text(),
        &summary.to_value(),
    )
}

fn record(
    name: &str,
    node: &str,
    time: Timestamp,
    severity: Severity,
    body: &str,
    all: &Value,
) -> Value {
    let nanos = time.as_nanosecond().to_string();
    // The numbers of the logs data model: WARN, ERROR and FATAL begin at 13, 17 and 21.
    let (number, text) = match severity {
        Severity::Critical => (21, "FATAL"),
        Severity::High => (17, "ERROR"),
        Severity::Medium => (13, "WARN"),
        Severity::Low => (9, "INFO"),
    };
    let mut attributes = vec![attribute("event.name", &Value::from(name))];
    for (key, value) in all.as_object().into_iter().flatten() {
        flatten(&format!("detector.{key}"), value, &mut attributes);
    }
    json!({
        "resourceLogs": [{
            "resource": { "attributes": [
                attribute("service.name", &Value::from("detector")),
                attribute("service.version", &Value::from(env!("CARGO_PKG_VERSION"))),
                attribute("k8s.node.name", &Value::from(node)),
            ]},
            "scopeLogs": [{
                "scope": { "name": "detector" },
                "logRecords": [{
                    "timeUnixNano": nanos,
                    "observedTimeUnixNano": nanos,
                    "severityNumber": number,
                    "severityText": text,
                    "body": { "stringValue": body },
                    "attributes": attributes,
                }],
            }],
        }],
    })
}

/// Objects become attributes with dots; lists are kept as text; what is absent is left out.
fn flatten(key: &str, value: &Value, to: &mut Vec<Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                flatten(&format!("{key}.{name}"), value, to);
            }
        }
        value => to.push(attribute(key, value)),
    }
}

fn attribute(key: &str, value: &Value) -> Value {
    let value = match value {
        Value::Bool(value) => json!({ "boolValue": value }),
        // 64-bit numbers are text in protobuf's JSON.
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    json!({ "key": key, "value": value })
}
