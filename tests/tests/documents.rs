//! Links between documents lead somewhere.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All Markdown of the project, but for what cargo builds and what Git keeps.
fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && !name.starts_with('.') {
                documents(&path, found);
            }
        } else if path.extension().is_some_and(|ending| ending == "md") {
            found.push(path);
        }
    }
}

/// The text without what stands in fences or between backquotes, where brackets are no links.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            for (number, part) in line.split('`').enumerate() {
                // A link's own text may be code: what is between is left out, the quotes stay.
                prose.push_str(if number % 2 == 0 { part } else { "code" });
            }
            prose.push('\n');
        }
    }
    prose
}

/// Where links lead: what stands in round brackets behind square ones, without a title.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let behind = prose.split("](").skip(1);
    let to = behind.filter_map(|rest| rest.split(')').next());
    to.filter_map(|to| to.split_whitespace().next()).map(str::to_owned).collect()
}

/// The anchors of a document, as its host makes them of headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        let title = line.trim_start_matches('#');
        if fenced || title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let kept = title.trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        anchors.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
    }
    anchors
}

#[test]
fn links_between_documents_lead_somewhere() {
    let project = project();
    let mut all = Vec::new();
    documents(&project, &mut all);
    assert!(all.len() > 10, "{all:?}");
    let (mut wrong, mut followed) = (Vec::new(), 0);
    for document in &all {
        let text = fs::read_to_string(document).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() {
                document.clone()
            } else {
                document.parent().unwrap().join(file)
            };
            let is_there = target.canonicalize().is_ok_and(|target| target.starts_with(&project));
            let is_named = anchor.is_empty()
                || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor));
            if !is_there || !is_named {
                wrong.push(format!(
                    "{}: {link}",
                    document.strip_prefix(&project).unwrap().display()
                ));
            }
        }
    }
    assert!(followed > 20, "only {followed} links were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn links_and_anchors_are_read_as_they_are_shown() {
    let text = "# A `b` c, d\n[x](a.md#b \"t\") `[no](no.md)` [`y`](#a-b-c-d)\n```\n# no\n[z](z.md)\n```\n";
    assert_eq!(links(text), ["a.md#b", "#a-b-c-d"]);
    assert_eq!(anchors(text), BTreeSet::from(["a-b-c-d".to_owned()]));
}
