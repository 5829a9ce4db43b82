//! The reference has every key that the file takes, and says of each what the program does.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::keys::Kind;
use super::*;

fn docs(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name)
}

/// With `UPDATE_GOLDEN=1` the files are written anew.
#[test]
fn the_published_reference_and_schema_are_these() {
    let schema = serde_json::to_string_pretty(&schema().unwrap()).unwrap() + "\n";
    for (name, text) in
        [("configuration.md", markdown().unwrap()), ("schema/config.v1.json", schema)]
    {
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(docs(name), &text).unwrap();
        }
        let file = std::fs::read_to_string(docs(name)).unwrap();
        assert_eq!(file, text, "docs/{name}: UPDATE_GOLDEN=1 writes it anew");
    }
}

/// The keys that the file takes under a key, as its refusal of a wrong one lists them.
fn taken(path: &str) -> Option<Vec<String>> {
    let mut yaml = "zzzzzzzzzzzzzzzz: 1".to_owned();
    for part in path.split('.').filter(|part| !part.is_empty()).rev() {
        yaml = match part.strip_suffix("[]") {
            Some(name) => format!("{name}: [{{{yaml}}}]"),
            None => format!("{part}: {{{yaml}}}"),
        };
    }
    let error = File::parse(Path::new("a"), &yaml).err()?.to_string();
    let (_, list) = error.split_once("is no key here: write one of ")?;
    Some(list.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_key_that_the_file_takes_is_there_and_no_other() {
    let mut leaves = BTreeSet::new();
    let mut open = vec![String::new()];
    while let Some(path) = open.pop() {
        for name in taken(&path).unwrap() {
            let key = if path.is_empty() { name } else { format!("{path}.{name}") };
            match (taken(&key), taken(&format!("{key}[]"))) {
                (Some(_), _) => open.push(key),
                (_, Some(_)) => open.push(format!("{key}[]")),
                _ => assert!(leaves.insert(key)),
            }
        }
    }
    let told: BTreeSet<String> = keys().iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(told, leaves);
}

/// A value other than the default.
fn sample(key: &Key) -> Value {
    match (&key.kind, key.path.rsplit('.').next().unwrap()) {
        (Kind::Bool, _) => json!(key.path != "api.enabled"),
        (Kind::Choice(words), _) => json!(words.last().unwrap()),
        (Kind::Duration(_, most), _) => json!(crate::config::value::shown_duration(*most)),
        (Kind::Number(_, most) | Kind::Power(_, most), _) => json!(most),
        (Kind::List(_, _), _) => json!(["eth"]),
        (_, "cidr") => json!("192.0.2.0/28"),
        (_, "expires") => json!("2130-01-31T18:00:00Z"),
        (_, "listen") => json!("127.0.0.1:1"),
        (_, "url" | "runbooks") => json!("https://example.com/a"),
        (_, "name") => json!(format!("sink-{}", key.path.len())),
        _ => json!("worker"),
    }
}

/// A file with a sample of every key.
fn full() -> Value {
    let mut file = json!({});
    for key in keys() {
        let mut at = &mut file;
        let (parents, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        for part in parents.split('.').filter(|part| !part.is_empty()) {
            at = match part.strip_suffix("[]") {
                Some(list) => {
                    let list = at.as_object_mut().unwrap().entry(list).or_insert(json!([{}]));
                    &mut list[0]
                }
                None => at.as_object_mut().unwrap().entry(part).or_insert(Map::new().into()),
            };
        }
        // Either is needed, and only one may be there.
        if name != "urlFile" {
            at[name] = sample(&key);
        }
    }
    file
}

fn resolve(file: &Value) -> Config {
    let args = RunArgs { node_name: None, ..RunArgs::default() };
    let file = File::parse(Path::new("a"), &file.to_string()).unwrap();
    Config::resolve(&args, &file).unwrap()
}

#[test]
fn what_is_taken_over_while_it_runs_is_the_allow_list_alone() {
    let (full, least) = (full(), json!({ "nodeName": "any" }));
    let pending = resolve(&full).differences(&resolve(&least));
    for key in keys() {
        let told = pending
            .iter()
            .any(|pending| key.path == *pending || key.path.starts_with(&format!("{pending}.")));
        assert_eq!(told, !key.is_live(), "{}: {pending:?}", key.path);
    }
}

#[test]
fn flags_are_those_of_the_command_line() {
    let command = Cli::command();
    let run = command.find_subcommand("run").unwrap();
    for key in keys() {
        let Some(flag) = key.flag else { continue };
        let arg = run.get_arguments().find(|arg| arg.get_long() == Some(flag));
        assert!(arg.is_some(), "{}: --{flag} is no flag", key.path);
    }
    let text = markdown().unwrap();
    for arg in run.get_arguments() {
        if let Some(variable) = arg.get_env() {
            let variable = format!("`{}`", variable.to_string_lossy());
            assert!(text.contains(&variable), "{variable}");
        }
    }
}
