//! A finding for people: one line that says it all, and its evidence below.

use std::io::Write as _;

use detector_core::finding::State;

use super::Report;

/// Writes a finding.
pub(super) fn write(report: &Report, line: &mut Vec<u8>) {
    let finding = &report.finding;
    let charge = &finding.charge;
    let began = finding.began;
    let how_long = match (finding.state, finding.duration()) {
        (State::Closed, Some(duration)) => format!(" over after {duration:.1?}"),
        (State::Opened, _) => format!(" found after {:.1?}", finding.at.since(began)),
        _ => String::new(),
    };
    let partial = if charge.missing.is_empty() { "" } else { " (partial)" };
    // A Vec takes every byte.
    let _ = writeln!(
        line,
        "{} {} {} {}{partial}{how_long}: {}",
        report.wall(finding.at),
        charge.severity.as_str().to_uppercase(),
        charge.certainty.as_str(),
        finding.state.as_str(),
        charge.reason,
    );
    if finding.state == State::Closed {
        return;
    }
    let _ = writeln!(line, "    key: {}", finding.key);
    for evidence in &charge.evidence {
        let time = report.wall(evidence.at);
        let _ = writeln!(line, "    {time} {}: {}", evidence.witness.as_str(), evidence.text);
    }
    for missing in &charge.missing {
        let _ = writeln!(line, "    not seen: {missing}");
    }
}
