//! An alert in the shape of Falco's HTTP output, which Falcosidekick takes and forwards.

use detector_core::finding::Severity;
use serde_json::{Map, Value, json};

use crate::sink::report::{How, Report};
use crate::sink::summary::Summary;

/// A finding.
pub(in crate::sink) fn report(report: &Report) -> Value {
    let finding = &report.finding;
    let charge = &finding.charge;
    let attacker = &charge.attacker;
    let mut fields = Map::new();
    let mut field = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            fields.insert(name.to_owned(), Value::String(value));
        }
    };
    // Falco's own names, so that rules of those who receive it go on working.
    field("k8s.ns.name", attacker.pod.as_ref().map(|pod| pod.namespace().to_owned()));
    field("k8s.pod.name", attacker.pod.as_ref().map(|pod| pod.name().to_owned()));
    field("k8s.pod.uid", attacker.uid.as_ref().map(|uid| uid.0.to_string()));
    field("k8s.node.name", Some(report.node().to_owned()));
    field("detector.key", Some(report.key()));
    field("detector.state", Some(report.how.as_str().to_owned()));
    field("detector.verdict", Some(charge.certainty.as_str().to_owned()));
    field("detector.means", Some(charge.means.as_str().to_owned()));
    field("detector.address", finding.key.subject.prefix().map(|prefix| prefix.to_string()));
    field("detector.attacker", Some(report.attacker()));
    field("detector.victim", Some(charge.victim.to_string()));
    field("detector.reach", Some(charge.reach.scope.as_str().to_owned()));
    field("detector.writer", charge.writer.as_ref().map(|wrote| wrote.process.to_string()));
    field("detector.runbook", Some(report.runbook()));
    let mut alert = alert(
        &report.summary(),
        "Route hijack",
        priority(charge.severity, report.how == How::Closed),
        &report.wall(report.told).to_string(),
        report.node(),
    );
    if let Some(traffic) = &charge.traffic {
        fields.insert("detector.packets".to_owned(), traffic.packets.into());
    }
    alert["output_fields"] = Value::Object(fields);
    alert
}

/// What was held back.
pub(in crate::sink) fn summary(summary: &Summary) -> Value {
    let mut alert = alert(
        &summary.text(),
        "Route hijacks held back",
        priority(summary.batch.severity, false),
        &summary.until().to_string(),
        summary.node(),
    );
    let counts = &summary.batch.counts;
    alert["output_fields"] = json!({
        "k8s.node.name": summary.node(),
        "detector.opened": counts.opened,
        "detector.updated": counts.updated,
        "detector.repeated": counts.repeated,
        "detector.closed": counts.closed,
        "detector.runbook": summary.runbook(),
    });
    alert
}

fn alert(output: &str, rule: &str, priority: &str, time: &str, node: &str) -> Value {
    json!({
        "uuid": uuid(),
        "output": output,
        "priority": priority,
        "rule": rule,
        // After MITRE ATT&CK: adversary in the middle.
        "tags": ["network", "k8s", "mitre_credential_access", "T1557", "CVE-2022-28224"],
        "source": "detector",
        "hostname": node,
        "time": time,
    })
}

fn priority(severity: Severity, over: bool) -> &'static str {
    match severity {
        _ if over => "Notice",
        Severity::Critical => "Critical",
        Severity::High => "Error",
        Severity::Medium => "Warning",
        Severity::Low => "Notice",
    }
}

/// A random UUID (version 4, RFC 9562).
fn uuid() -> String {
    let bits = fastrand::u128(..);
    let bits = (bits & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_says_of_which_version_it_is() {
        for _ in 0..64 {
            let uuid = uuid();
            assert_eq!(uuid.len(), 36);
            assert_eq!(&uuid[14..15], "4");
            assert!("89ab".contains(&uuid[19..20]), "{uuid}");
        }
    }
}
