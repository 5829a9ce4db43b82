//! A finding for people: one line that says it all, and its evidence below.

use std::io::Write as _;

use detector_core::finding::Diverted;

use super::{How, Report, Summary};

/// Writes a finding as text.
pub fn write(report: &Report, line: &mut Vec<u8>) {
    let finding = &report.finding;
    let charge = &finding.charge;
    let began = finding.began;
    let how_long = match (report.how, finding.duration()) {
        (How::Closed, Some(duration)) => format!(" over after {duration:.1?}"),
        (How::Opened, _) => format!(" found after {:.1?}", finding.at.since(began)),
        _ => String::new(),
    };
    let partial = if charge.missing.is_empty() { "" } else { " (partial)" };
    let test = if report.test { "TEST " } else { "" };
    // A Vec takes every byte.
    let _ = writeln!(
        line,
        "{} {test}{} {} {}{partial}{how_long}: {}",
        report.wall(finding.at),
        charge.severity.as_str().to_uppercase(),
        charge.certainty.as_str(),
        report.how.as_str(),
        charge.reason,
    );
    if let Some(traffic) = &charge.traffic {
        write_traffic(report, traffic, line);
    }
    if report.how == How::Closed {
        return;
    }
    let _ = writeln!(line, "    key: {}", finding.key);
    if let Some(wrote) = &charge.writer {
        let pod = wrote.pod.as_ref().map(|pod| format!(", pod {pod}")).unwrap_or_default();
        let _ = writeln!(line, "    written by: {}{pod}", wrote.process);
    }
    for evidence in &charge.evidence {
        let time = report.wall(evidence.at);
        let _ = writeln!(line, "    {time} {}: {}", evidence.witness.as_str(), evidence.text);
    }
    for missing in &charge.missing {
        let _ = writeln!(line, "    not seen: {missing}");
    }
    if let Some(acknowledged) = &report.acknowledged {
        let _ =
            writeln!(line, "    taken care of by {} until {}", acknowledged.by, acknowledged.until);
    }
    let _ = writeln!(line, "    what to do: {}", report.runbook());
}

/// Writes what was held back.
pub(crate) fn write_summary(summary: &Summary, line: &mut Vec<u8>) {
    let severity = summary.batch.severity.as_str().to_uppercase();
    // A Vec takes every byte.
    let _ = writeln!(line, "{} {severity} held back: {}", summary.until(), summary.text());
    for held in &summary.batch.attackers {
        let _ = writeln!(line, "    {}: {}", held.attacker, held.counts.sum());
    }
}

/// How much was diverted, of whom, and when last.
fn write_traffic(report: &Report, traffic: &Diverted, line: &mut Vec<u8>) {
    let Diverted { packets, bytes, clients, more, span, .. } = traffic;
    let Some((first, last)) = span else {
        let _ = writeln!(line, "    traffic: no packet seen");
        return;
    };
    let of = match (clients, more) {
        (0, _) => String::new(),
        (1, false) => " of 1 client".to_owned(),
        (clients, false) => format!(" of {clients} clients"),
        (clients, true) => format!(" of more than {clients} clients"),
    };
    let plural = if *packets == 1 { "" } else { "s" };
    let _ = writeln!(
        line,
        "    traffic: {packets} packet{plural} ({}){of}, since {}, the last {:.0?} before this",
        size(*bytes),
        report.wall(*first),
        report.finding.at.since(*last),
    );
}

/// So many bytes, for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let mut tenths = bytes / 100;
    let mut unit = 0;
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1_000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_unit_that_fits() {
        let told = [999, 1_000, 1_149_999, 1_100_000_000, u64::MAX].map(size);
        assert_eq!(told, ["999 B", "1.0 kB", "1.1 MB", "1.1 GB", "18446.7 PB"]);
    }
}
