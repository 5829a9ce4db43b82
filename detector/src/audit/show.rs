//! The report for people: a page that begins with the verdict.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{Cell, Table};

use super::report::{Finding, Holder, Level, NodeLine, Report, Rule};
use crate::client::show::{Look, ago, trimmed};

/// Rows of a table that is not wide.
const ROWS: usize = 20;
/// Characters of a sentence in such a table.
const LONG: usize = 110;

/// The page.
pub(super) fn report(report: &Report, look: Look) -> String {
    let mut text = String::new();
    verdict(&mut text, report, look);
    nodes(&mut text, report, look);
    findings(&mut text, report, look);
    reach(&mut text, report, look);
    missing(&mut text, report, look);
    text
}

/// The plan, for a shell and whoever reads before he types.
pub(super) fn plan(report: &Report) -> String {
    let mut text = String::new();
    // A String takes every character, here and below.
    let _ = writeln!(
        text,
        "# What to do about {}: {}.\n# Nothing of this was done. Read each step before you run it.",
        report.source,
        report.verdict.as_str()
    );
    if report.plan.is_empty() {
        let _ = writeln!(text, "#\n# There is nothing to do.");
    }
    for (number, step) in (1..).zip(&report.plan) {
        let _ = writeln!(text, "\n# {number}. {}\n#    {}", step.title, step.why);
        for command in &step.commands {
            let _ = writeln!(text, "{command}");
        }
    }
    text
}

fn verdict(text: &mut String, report: &Report, look: Look) {
    let mut table = look.table(&["VERDICT", report.verdict.as_str()]);
    table.set_header(vec![Cell::new("verdict"), look.word(report.verdict.as_str())]);
    for (number, reason) in report.reasons.iter().enumerate() {
        table.add_row([if number == 0 { "why" } else { "" }, reason]);
    }
    table.add_row(["next", &report.next]);
    table.add_row(["of", &report.source]);
    let counts = &report.counts;
    let read = format!(
        "{} pods, {} nodes, {} Services, {} IP pools, {} IPAM blocks, {} roles that can change pods, {} \
         bindings, {} allow-list entries",
        counts.pods,
        counts.nodes,
        counts.services,
        counts.pools,
        counts.blocks,
        counts.roles,
        counts.bindings,
        counts.allowed
    );
    table.add_row(["read", &read]);
    if let Some(live) = &report.live {
        let live = format!(
            "{} routes, {} rules, {} translations of node {}",
            live.routes,
            live.rules,
            live.translations,
            live.node.as_deref().unwrap_or("(no name was given)")
        );
        table.add_row(["and", &live]);
    }
    let _ = writeln!(text, "{}", trimmed(&table));
}

/// Nodes that are alike in one row.
fn nodes(text: &mut String, report: &Report, look: Look) {
    let calico = &report.calico;
    let mut alike: BTreeMap<_, Vec<&NodeLine>> = BTreeMap::new();
    for node in &calico.nodes {
        let key = (node.product, node.version.as_deref(), node.range, node.switch);
        alike.entry(key).or_default().push(node);
    }
    let mut table =
        look.table(&["NODES", "CALICO", "VERSION", "RANGE", "FLOATING IPS", "BY", "VERSION BY"]);
    for ((product, version, range, switch), nodes) in alike {
        let Some(first) = nodes.first() else { continue };
        let names = match nodes.as_slice() {
            [one] if &*one.node == "*" => "all".to_owned(),
            [one] => one.node.to_string(),
            [one, ..] => format!("{} ({}, ...)", nodes.len(), one.node),
            [] => String::new(),
        };
        table.add_row([
            Cell::new(names),
            Cell::new(product),
            Cell::new(version.unwrap_or("-")),
            look.word(range),
            look.word(switch),
            Cell::new(&first.switch_by),
            Cell::new(&first.version_by),
        ]);
    }
    section(text, &table, None);
    if !calico.without.is_empty() {
        let _ = writeln!(text, "calico-node does not run on {} of the nodes", calico.without.len());
    }
}

fn findings(text: &mut String, report: &Report, look: Look) {
    let least = if look.wide { Level::Note } else { Level::Low };
    let shown: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| finding.rule != Rule::MayPatchPods && finding.level >= least)
        .collect();
    let mut header = vec!["LEVEL", "OBJECT", "FIELD", "WHAT"];
    if look.wide {
        header.extend(["WRITTEN BY", "WHEN", "NEXT"]);
    }
    let mut table = look.table(&header);
    let rows = if look.wide { shown.len() } else { ROWS };
    for finding in shown.iter().take(rows) {
        let mut row = vec![
            look.word(finding.level.as_str()),
            Cell::new(finding.object.shown()),
            Cell::new(short_field(&finding.field, look)),
            Cell::new(sentence(&finding.message, look)),
        ];
        if look.wide {
            let written = finding.written.as_ref();
            row.push(Cell::new(written.map_or("-", |written| &written.manager)));
            let when = written.and_then(|written| written.time).or(finding.created);
            row.push(Cell::new(
                when.map_or_else(
                    || "-".to_owned(),
                    |when| format!("{} ago", ago(report.time, when)),
                ),
            ));
            row.push(Cell::new(&finding.next));
        }
        table.add_row(row);
    }
    section(text, &table, Some("no finding about nodes or pods"));
    more(text, shown.len(), rows);
}

fn reach(text: &mut String, report: &Report, look: Look) {
    let holders = &report.reach.holders;
    let (own, tenants): (Vec<&Holder>, Vec<&Holder>) =
        holders.iter().partition(|holder| holder.system.is_some());
    let mut header = vec!["WHO", "MAY", "WHERE", "BY", "DANGER"];
    if look.wide {
        header.extend(["ROLE", "CLOSE IT"]);
    }
    let mut table = look.table(&header);
    let rows = if look.wide { tenants.len() } else { ROWS };
    for holder in tenants.iter().take(rows) {
        let mut row = vec![
            format!("{} {}", holder.kind, holder.subject),
            holder.rights.join(", "),
            whereabouts(holder),
            holder.binding.to_string(),
            holder.danger.to_string(),
        ];
        if look.wide {
            row.push(holder.role.to_string());
            row.push(holder.close.clone().unwrap_or_else(|| "-".to_owned()));
        }
        table.add_row(row);
    }
    let nobody = if report.reach.complete {
        "nobody but the cluster's own accounts and its administrators may write what the attack needs"
    } else {
        "nobody was seen who may write what the attack needs, but not all roles and bindings could be"
    };
    section(text, &table, Some(nobody));
    more(text, tenants.len(), rows);
    if !look.wide {
        if !own.is_empty() {
            let _ = writeln!(
                text,
                "and {} of the cluster's own or its administrators' (-o wide shows them)",
                own.len()
            );
        }
        return;
    }
    let mut table = look.table(&["THE CLUSTER'S OWN", "MAY", "WHERE", "BY", "WHY"]);
    for holder in own {
        table.add_row([
            format!("{} {}", holder.kind, holder.subject),
            holder.rights.join(", "),
            whereabouts(holder),
            holder.binding.to_string(),
            holder.system.as_deref().unwrap_or_default().to_owned(),
        ]);
    }
    section(text, &table, None);
}

fn whereabouts(holder: &Holder) -> String {
    let place = match (&holder.namespace, holder.namespaces) {
        (Some(namespace), _) => format!("namespace {namespace}"),
        (None, Some(count)) => format!("all {count} namespaces"),
        (None, None) => "all namespaces".to_owned(),
    };
    if holder.only_pods.is_empty() {
        place
    } else {
        format!("{place}, pods {}", holder.only_pods.join(", "))
    }
}

fn missing(text: &mut String, report: &Report, look: Look) {
    if look.wide {
        let mut table = look.table(&["NOT SEEN", "WHY", "SO THIS DOES NOT SAY"]);
        for missing in &report.missing {
            table.add_row([missing.what, &missing.why, missing.without]);
        }
        section(text, &table, None);
    } else {
        // What has one reason, in one row.
        let mut alike: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for missing in &report.missing {
            // Each kind has its own word in a refusal.
            let why = missing.why.strip_prefix(&*format!("cannot list {}: ", missing.what));
            alike.entry(why.unwrap_or(&missing.why)).or_default().push(missing.what);
        }
        let mut table = look.table(&["NOT SEEN", ""]);
        for (why, kinds) in alike {
            table.add_row([why, &kinds.join(", ")]);
        }
        section(text, &table, None);
    }
    let refused = &report.refused;
    if refused.count > 0 {
        let _ = writeln!(text, "\nread and not taken: {}", refused.count);
        for why in refused.first.iter().take(if look.wide { usize::MAX } else { 5 }) {
            let _ = writeln!(text, "   {why}");
        }
    }
}

/// `metadata.annotations['...']` without what each of them has.
fn short_field(field: &str, look: Look) -> &str {
    if look.wide {
        return field;
    }
    let annotation = field.strip_prefix("metadata.annotations['cni.projectcalico.org/");
    annotation.and_then(|rest| rest.strip_suffix("']")).unwrap_or(field)
}

fn sentence(text: &str, look: Look) -> String {
    if look.wide || text.len() <= LONG {
        return text.to_owned();
    }
    // All of it is ASCII, as what comes from elsewhere was made.
    let cut = text.get(..LONG).unwrap_or(text);
    let cut = cut.rsplit_once(' ').map_or(cut, |(before, _)| before);
    format!("{cut} ...")
}

fn more(text: &mut String, all: usize, rows: usize) {
    if let Some(more) = all.checked_sub(rows).filter(|more| *more > 0) {
        let _ = writeln!(text, "and {more} more: -o wide, or -o json, shows all");
    }
}

fn section(text: &mut String, table: &Table, nothing: Option<&str>) {
    if table.row_count() > 0 {
        let _ = writeln!(text, "\n{}", trimmed(table));
    } else if let Some(nothing) = nothing {
        let _ = writeln!(text, "\n{nothing}");
    }
}
