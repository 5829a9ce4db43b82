//! Tables for people.

use std::fmt::Write as _;
use std::io::IsTerminal as _;

use comfy_table::presets::NOTHING;
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::cli::{AskArgs, Colour, Shown};
use crate::doors::{Explained, Status};
use crate::probe::Probe;

/// How tables look.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    pub(crate) wide: bool,
    colour: bool,
}

impl Look {
    pub(super) fn of(args: &AskArgs) -> Self {
        Self::new(args.output, args.color)
    }

    /// How tables look on standard output.
    pub(crate) fn new(output: Shown, colour: Colour) -> Self {
        let colour = match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
            }
        };
        Self { wide: output == Shown::Wide, colour }
    }

    pub(crate) fn table(self, header: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let cell = |text: &&str| Cell::new(*text).add_attribute(Attribute::Bold);
        table.set_header(header.iter().map(cell));
        table
    }

    /// A word in a colour that tells how bad it is.
    pub(crate) fn word(self, word: &str) -> Cell {
        let cell = Cell::new(word);
        if !self.colour {
            return cell;
        }
        match word {
            "critical" | "hijack" | "no" | "dropped" | "compromised" | "affected" => {
                cell.fg(Color::Red)
            }
            "high" | "attempt" | "exposed" | "on" => cell.fg(Color::DarkYellow),
            "medium" | "unproven" | "pending" | "undetermined" | "uncertain" | "unknown" => {
                cell.fg(Color::Yellow)
            }
            "entitled" | "yes" | "guarded" | "not affected" | "fixed" | "off" => {
                cell.fg(Color::Green)
            }
            _ => cell,
        }
    }
}

/// What a node offers.
pub(super) fn probe(probe: &Probe, look: Look) -> String {
    let mut text = String::new();
    for (word, value) in probe.node() {
        // A String takes every character.
        let _ = writeln!(text, "{word:<13} {value}");
    }
    text.push('\n');
    let mut table = look.table(&["CAPABILITY", "BY", "DEGRADED"]);
    for one in &probe.capabilities {
        let by = match &one.by {
            Some(by) => Cell::new(by),
            None => look.word("no"),
        };
        // What it is for is of use to those who lack it.
        let degraded = one.degraded.as_ref().map(|why| {
            let why: String = if look.wide { why.clone() } else { why.chars().take(160).collect() };
            format!("{}: {why}", one.what)
        });
        table.add_row([Cell::new(one.name), by, Cell::new(degraded.unwrap_or_default())]);
    }
    let _ = writeln!(text, "{table}");
    text
}

/// How the agent is.
pub(super) fn status(status: &Status, look: Look) -> String {
    let now = Timestamp::now();
    let mut text = String::new();
    let ready = if status.ready {
        "yes".to_owned()
    } else {
        format!("no, not yet told of {}", status.awaited.join(", "))
    };
    // A String takes every character, here and below.
    let _ = writeln!(
        text,
        "node      {}\nversion   {}\nrunning   {}\nready     {ready}\nroutes    seen by {}\npackets   {}",
        status.node,
        status.version,
        ago(now, status.started),
        status.routes_seen_by,
        status
            .packets_seen_by
            .as_deref()
            .map_or_else(|| "not watched".to_owned(), |hooks| format!("seen by {hooks}")),
    );
    let standing = status.findings_standing;
    let _ = writeln!(text, "findings  {standing} standing, {} told", status.findings_told);
    let guarded = if status.degraded.is_empty() { "nothing" } else { "" };
    let _ = writeln!(text, "degraded  {guarded}");
    if !status.degraded.is_empty() {
        let mut table = look.table(&["", "CAPABILITY", "SINCE", "WHY"]);
        for degraded in &status.degraded {
            let since = ago(now, degraded.since);
            table.add_row(["", &degraded.capability, &since, &degraded.why]);
        }
        let _ = writeln!(text, "{}", trimmed(&table));
    }
    let mut table =
        look.table(&["SINK", "DELIVERED", "QUEUED", "RETRIED", "HELD BACK", "FAILED", "DROPPED"]);
    for sink in &status.sinks {
        table.add_row([
            sink.name.clone(),
            sink.delivered.to_string(),
            sink.queued.to_string(),
            sink.retried.to_string(),
            sink.held_back.to_string(),
            sink.failed.to_string(),
            sink.dropped.to_string(),
        ]);
    }
    let _ = writeln!(text, "\n{}", trimmed(&table));
    if look.wide {
        let mut table = look.table(&["KNOWN", "COUNT"]);
        for (what, count) in &status.known {
            table.add_row([what.clone(), count.to_string()]);
        }
        let _ = writeln!(text, "\n{}", trimmed(&table));
    }
    text
}

/// What stands.
pub(super) fn findings(findings: &Vec<Value>, look: Look) -> String {
    if findings.is_empty() {
        return "no findings stand\n".to_owned();
    }
    let now = Timestamp::now();
    let mut header = vec!["SEVERITY", "VERDICT", "MEANS", "SINCE", "ATTACKER", "VICTIM", "PACKETS"];
    if look.wide {
        header.extend(["REACH", "TAKEN CARE OF BY", "KEY", "REASON"]);
    } else {
        header.push("KEY");
    }
    let mut table = look.table(&header);
    for finding in findings {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let began = finding["began"].as_str().and_then(|began| began.parse::<Timestamp>().ok());
        let packets = &finding["traffic"]["packets"];
        let mut row = vec![
            look.word(&text(&finding["severity"])),
            look.word(&text(&finding["verdict"])),
            Cell::new(text(&finding["means"])),
            Cell::new(began.map_or_else(|| "-".to_owned(), |began| ago(now, began))),
            Cell::new(attacker(&finding["attacker"])),
            Cell::new(victim(&finding["victim"])),
            Cell::new(packets.as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string())),
        ];
        if look.wide {
            row.push(Cell::new(text(&finding["reach"]["scope"])));
            row.push(Cell::new(text(&finding["acknowledged"]["by"])));
            row.push(Cell::new(text(&finding["key"])));
            row.push(Cell::new(text(&finding["reason"])));
        } else {
            row.push(Cell::new(text(&finding["key"])));
        }
        table.add_row(row);
    }
    format!("{}\n", trimmed(&table))
}

/// An address explained.
pub(super) fn explained(explained: &Explained, look: Look) -> String {
    let now = Timestamp::now();
    let mut text = String::new();
    let _ = writeln!(text, "address   {}", explained.address);
    if let Some(pool) = &explained.pool {
        let block = explained.block.as_deref().unwrap_or("-");
        let _ = writeln!(text, "pool      {pool}, block {block}");
    }
    let kernel = &explained.kernel;
    let why = kernel.refused.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let _ = writeln!(text, "kernel    {}{why}", kernel.way);
    if let Some(route) = &kernel.route {
        let _ = writeln!(text, "          by {route}");
    }
    let agree = match explained.agree {
        Some(true) | None => "",
        Some(false) => "  (the kernel answers differently: a rule for some packets only, or news)",
    };
    let _ = writeln!(text, "watched   {}{agree}", explained.watched);
    for missing in &explained.missing {
        let _ = writeln!(text, "not seen  {missing}");
    }
    let mut table = look.table(&["WHOSE", "STRENGTH", "BY", "SINCE"]);
    for claim in &explained.claims {
        let since = claim.since.map_or_else(|| "-".to_owned(), |since| ago(now, since));
        table.add_row([&claim.whose, &claim.strength, &claim.by, &since]);
    }
    section(&mut text, &table, "nobody says whose the address is");
    let mut table = look.table(&["", "ROUTE", "BEHIND IT", "SINCE"]);
    for route in &explained.routes {
        let wins = if route.wins { "*" } else { "" };
        let behind = route.behind.join(", ");
        table.add_row([wins, &route.route, &behind, &ago(now, route.since)]);
    }
    section(&mut text, &table, "no watched route for it");
    if look.wide && !explained.rules.is_empty() {
        let mut table = look.table(&["RULE"]);
        for rule in &explained.rules {
            table.add_row([rule]);
        }
        section(&mut text, &table, "");
    }
    if !explained.translations.is_empty() {
        let mut table = look.table(&["TRANSLATED TO", "WHOSE", "CONNECTIONS", "RULES"]);
        for translation in &explained.translations {
            table.add_row([
                translation.to.to_string(),
                translation.whose.clone().unwrap_or_else(|| "-".to_owned()),
                translation.connections.to_string(),
                translation.rules.join("; "),
            ]);
        }
        section(&mut text, &table, "");
    }
    for neighbour in &explained.neighbours {
        let _ = writeln!(text, "\nneighbour {neighbour}");
    }
    let mut table = look.table(&["VERDICT", "OF", "TO", "SINCE", "WHY"]);
    for verdict in explained.verdicts.iter().filter(|v| look.wide || v.verdict != "irrelevant") {
        table.add_row([
            look.word(&verdict.verdict),
            Cell::new(&verdict.subject),
            Cell::new(&verdict.target),
            Cell::new(ago(now, verdict.since)),
            Cell::new(verdict.reason.as_deref().unwrap_or("-")),
        ]);
    }
    section(&mut text, &table, "nothing to judge");
    for key in &explained.findings {
        let _ = writeln!(text, "\nfinding   {key}");
    }
    text
}

fn section(text: &mut String, table: &Table, nothing: &str) {
    if table.row_count() == 0 {
        let _ = writeln!(text, "\n{nothing}");
    } else {
        let _ = writeln!(text, "\n{}", trimmed(table));
    }
}

/// A table without the margins that its cells have.
pub(crate) fn trimmed(table: &Table) -> String {
    let margin = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    let lines: Vec<String> = table.lines().map(margin).collect();
    lines.join("\n")
}

fn attacker(attacker: &Value) -> String {
    let part = |name: &str| attacker[name].as_str();
    match (part("namespace"), part("pod")) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        _ => ["service", "node", "gateway", "interface"]
            .into_iter()
            .find_map(part)
            .unwrap_or("-")
            .to_owned(),
    }
}

fn victim(victim: &Value) -> String {
    let part = |name: &str| victim[name].as_str();
    let kind = part("kind").unwrap_or("-");
    match (part("namespace"), part("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (_, Some(name)) => format!("{kind} {name}"),
        _ => kind.to_owned(),
    }
}

/// How long ago, in the two largest units.
pub(crate) fn ago(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.duration_since(then).max(SignedDuration::ZERO).as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_in_two_units() {
        let now: Timestamp = "2030-01-02T03:04:05Z".parse().unwrap();
        let told = |then: &str| ago(now, then.parse().unwrap());
        assert_eq!(told("2030-01-02T03:04:00Z"), "5s");
        assert_eq!(told("2030-01-02T03:00:00Z"), "4m5s");
        assert_eq!(told("2030-01-02T00:00:00Z"), "3h4m");
        assert_eq!(told("2029-12-31T00:00:00Z"), "2d3h");
        assert_eq!(told("2031-12-31T00:00:00Z"), "0s");
    }
}
