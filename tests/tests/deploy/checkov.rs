//! checkov, a security review by machine, has nothing to say that `deploy/checkov.yaml` does not
//! answer; and nothing is answered there that it does not say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Helm, Manifest, file};
use serde::Deserialize;
use serde_json::Value;

use crate::extremes::ends;
use crate::shared::{composed, folders};

/// An answer to a check.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    check: String,
    of: Vec<String>,
    reason: String,
}

/// The checkov that `cargo xtask setup` has installed.
fn program() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let found = own
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("checkov/bin/checkov"))
        .find(|path| path.is_file());
    if found.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: a review by checkov: there is none: run `cargo xtask setup`, which installs it"
        );
    }
    found
}

/// All that can be installed, by name.
fn manifests(helm: &Helm, programs: &Programs) -> BTreeMap<String, Manifest> {
    let mut all = BTreeMap::new();
    all.insert("base".to_owned(), Manifest::kustomize(programs, "base").unwrap());
    for overlay in folders("overlays") {
        let manifest = Manifest::kustomize(programs, &format!("overlays/{overlay}")).unwrap();
        all.insert(overlay, manifest);
    }
    let components = folders("components");
    let components: Vec<&str> = components.iter().map(String::as_str).collect();
    all.insert("components".to_owned(), composed(programs, "base", &components));
    all.insert("chart".to_owned(), helm.template(&[]).unwrap());
    for (name, manifest) in ends(helm) {
        // At the ends of the schema are values that nobody would choose.
        if name.starts_with("all o") {
            all.insert(format!("chart-{}", name.replace(' ', "-")), manifest);
        }
    }
    all
}

/// What it objects to: a check, and the kind and name of what does not pass it.
fn objections(
    checkov: &PathBuf,
    manifests: &BTreeMap<String, Manifest>,
) -> BTreeSet<(String, String)> {
    // Folders whose names begin with a dot it passes over.
    let folder = tempfile::Builder::new().prefix("detector-manifests-").tempdir().unwrap();
    for (name, manifest) in manifests {
        fs::write(folder.path().join(format!("{name}.yaml")), &manifest.text).unwrap();
    }
    let output = Command::new(checkov)
        .arg("--directory")
        .arg(folder.path())
        .args(["--framework", "kubernetes", "--skip-download", "--compact", "--output", "json"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("checkov: {error}: {}", String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(said["summary"]["parsing_errors"], 0, "it could not read all");
    let looked = said["summary"]["passed"].as_u64().unwrap();
    assert!(looked > 500, "it looked at {looked} things only");
    let failed = said["results"]["failed_checks"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    failed
        .iter()
        .map(|check| {
            let resource = text(&check["resource"]);
            // Kind, namespace, name; of pods also their labels.
            let parts: Vec<&str> = resource.splitn(4, '.').take(3).collect();
            (text(&check["check_id"]), format!("{}/{}", parts[0], parts[2]))
        })
        .collect()
}

#[test]
fn every_objection_has_an_answer_and_every_answer_an_objection() {
    let Some(checkov) = program() else { return };
    let what = "a review by checkov";
    let (Some(helm), Some(programs)) = (Helm::find_or_skip(what), Programs::find_or_skip(what))
    else {
        return;
    };
    let answers = fs::read_to_string(file("checkov.yaml")).unwrap();
    let answers: Vec<Answer> = serde_saphyr::from_str(&answers).unwrap();
    assert!(answers.iter().all(|answer| answer.reason.ends_with('.')), "a reason is a sentence");
    let answered: BTreeSet<(String, String)> = answers
        .iter()
        .flat_map(|answer| answer.of.iter().map(|of| (answer.check.clone(), of.clone())))
        .collect();
    let objections = objections(&checkov, &manifests(&helm, &programs));
    let open: Vec<_> = objections.difference(&answered).collect();
    assert!(open.is_empty(), "mend it, or give a reason in deploy/checkov.yaml: {open:#?}");
    let idle: Vec<_> = answered.difference(&objections).collect();
    assert!(
        idle.is_empty(),
        "nobody asks that any more, take it out of deploy/checkov.yaml: {idle:#?}"
    );
}
