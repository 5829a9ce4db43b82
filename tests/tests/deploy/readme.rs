//! The chart's README lists every value, with its default and what values.yaml says of it.

use std::fmt::Write as _;
use std::fs;

use detector_tests::deploy::file;

const BEGIN: &str = "<!-- values: begin -->\n";
const END: &str = "<!-- values: end -->";

/// The table of what is in values.yaml. There each value stands on one line, below its comment.
fn table(values: &str) -> String {
    let mut table = "| value | default | meaning |\n|---|---|---|\n".to_owned();
    let mut path: Vec<&str> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in values.lines() {
        let text = line.trim_start();
        if text.is_empty() {
            comment.clear();
            continue;
        }
        if let Some(words) = text.strip_prefix('#') {
            comment.push(words.trim());
            continue;
        }
        let (key, value) = text.split_once(':').unwrap_or_else(|| panic!("no value: {line}"));
        path.truncate((line.len() - text.len()) / 2);
        path.push(key);
        let (path, value) = (path.join("."), value.trim().replace('|', "\\|"));
        let meaning = comment.join(" ").replace('|', "\\|");
        comment.clear();
        if value.is_empty() {
            // A group.
            if !meaning.is_empty() {
                writeln!(table, "| `{path}` | | {meaning} |").unwrap();
            }
            continue;
        }
        assert!(!meaning.is_empty(), "values.yaml does not say what {path} means");
        writeln!(table, "| `{path}` | `{value}` | {meaning} |").unwrap();
    }
    table
}

#[test]
fn the_table_is_that_of_values_yaml() {
    let values = fs::read_to_string(file("chart/values.yaml")).unwrap();
    let readme = fs::read_to_string(file("chart/README.md")).unwrap();
    let (_, rest) = readme.split_once(BEGIN).expect("the README has a table of values");
    let (there, _) = rest.split_once(END).expect("the table of values ends");
    let wanted = table(&values);
    assert!(there == wanted, "write this into deploy/chart/README.md:\n{wanted}");
}
