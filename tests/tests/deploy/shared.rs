//! What is rendered in more than one of the tests.

use std::fs;
use std::path::Path;
use std::process::Command;

use detector_tests::agent::program;
use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Manifest, file};
use serde_json::Value;
use tempfile::TempDir;

/// The names of the folders in one of `deploy`'s.
pub(crate) fn folders(path: &str) -> Vec<String> {
    let entries = fs::read_dir(file(path)).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(!names.is_empty(), "there is nothing in deploy/{path}");
    names
}

/// A kustomization with these components beside it, as who installs it would write his own.
pub(crate) fn composed(programs: &Programs, base: &str, components: &[&str]) -> Manifest {
    let folder = TempDir::new().unwrap();
    let own = folder.path().canonicalize().unwrap();
    // kustomize takes no absolute paths.
    let up = "../".repeat(own.components().count() - 1);
    let to = |path: &str| {
        let there = file(path).canonicalize().unwrap();
        format!("{up}{}", there.strip_prefix("/").unwrap().display())
    };
    let components: Vec<String> =
        components.iter().map(|name| to(&format!("components/{name}"))).collect();
    let text = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [to(base)],
        "components": components,
    });
    fs::write(own.join("kustomization.yaml"), text.to_string()).unwrap();
    Manifest::kustomize_at(programs, &own).unwrap()
}

/// What the agent says of the configuration of a manifest, which must be good.
#[track_caller]
pub(crate) fn check_config(of: &str, manifest: &Manifest) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    fs::write(&path, manifest.config().unwrap()).unwrap();
    assert_eq!(config_check(&path), Ok(()), "{of} has a configuration that the agent refuses");
}

fn config_check(path: &Path) -> Result<(), String> {
    let output =
        Command::new(program().unwrap()).args(["config", "check"]).arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

/// The pod of a DaemonSet.
pub(crate) fn pod(manifest: &Manifest) -> &Value {
    &manifest.of_kind("DaemonSet")["detector"]["spec"]["template"]["spec"]
}

/// The strings of a list.
pub(crate) fn words(list: &Value) -> Vec<&str> {
    list.as_array().map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect())
}
