//! A message for a Slack channel (an incoming webhook's body).

use detector_core::finding::Severity;
use serde_json::{Value, json};

use crate::sink::report::{How, Report};
use crate::sink::summary::Summary;

/// A finding.
pub(in crate::sink) fn report(report: &Report) -> Value {
    let finding = &report.finding;
    let charge = &finding.charge;
    let (icon, color) = match report.how {
        How::Closed => (":large_green_circle:", "#2e7d32"),
        _ => look(charge.severity),
    };
    let mut fields = vec![
        field("Attacker", &report.attacker()),
        field("Victim", &charge.victim.to_string()),
        field("Node", report.node()),
        field("Reach", charge.reach.scope.as_str()),
        field("Since", &report.wall(finding.began).to_string()),
    ];
    if let Some(traffic) = &charge.traffic {
        let (packets, clients) = (traffic.packets, traffic.clients);
        fields.push(field("Diverted", &format!("{packets} packets of {clients} clients")));
    }
    if let Some(ended) = finding.ended {
        fields.push(field("Over since", &report.wall(ended).to_string()));
    }
    if let Some(by) = &report.acknowledged {
        fields.push(field("Taken care of by", &by.by));
    }
    fields.push(field("What to do", &report.runbook()));
    let title = format!(
        "{icon} {} {} {}",
        charge.severity.as_str().to_uppercase(),
        charge.certainty.as_str(),
        report.how.as_str()
    );
    message(&title, &report.summary(), color, &fields, report.node())
}

/// What was held back.
pub(in crate::sink) fn summary(summary: &Summary) -> Value {
    let (icon, color) = look(summary.batch.severity);
    let title = format!("{icon} {} more were held back", summary.batch.counts.sum());
    let fields = vec![field("Node", summary.node()), field("What to do", &summary.runbook())];
    message(&title, &summary.text(), color, &fields, summary.node())
}

fn message(title: &str, text: &str, color: &str, fields: &[Value], node: &str) -> Value {
    json!({
        "text": escaped(&format!("{title}: {text}")),
        "attachments": [{
            "color": color,
            "title": escaped(title),
            "text": escaped(text),
            "fields": fields,
            "footer": escaped(&format!("detector on {node}")),
            "fallback": escaped(text),
        }],
    })
}

fn field(title: &str, value: &str) -> Value {
    json!({ "title": title, "value": escaped(value), "short": value.len() < 40 })
}

fn look(severity: Severity) -> (&'static str, &'static str) {
    match severity {
        Severity::Critical => (":red_circle:", "#b71c1c"),
        Severity::High => (":large_orange_circle:", "#e65100"),
        Severity::Medium => (":large_yellow_circle:", "#f9a825"),
        Severity::Low => (":white_circle:", "#757575"),
    }
}

/// What Slack would take for a link, a mention or markup is shown as it is.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_mentioned() {
        assert_eq!(escaped("<!channel> & co"), "&lt;!channel&gt; &amp; co");
    }
}
