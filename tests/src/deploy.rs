//! What `deploy` has, rendered as who installs it would: by kubectl's kustomize and by helm.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::cluster::programs::Programs;

/// The namespace of all that is installed.
pub const NAMESPACE: &str = "route-hijack-detector";

/// A path in `deploy`.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// A role without one of its rights: a verb on a kind of object.
///
/// # Panics
/// Where the role has no such right, or gives it with others in one rule.
pub fn role_without(role: &Value, resource: &str, verb: &str) -> Value {
    let mut less = role.clone();
    let rules = less["rules"].as_array_mut().expect("a role has rules");
    let mut taken = 0;
    for rule in rules.iter_mut() {
        let resources = rule["resources"].as_array().expect("a rule has resources");
        if !resources.iter().any(|one| one == resource) {
            continue;
        }
        let is_alone = resources.len() == 1;
        let verbs = rule["verbs"].as_array_mut().expect("a rule has verbs");
        let before = verbs.len();
        verbs.retain(|one| one != verb);
        if verbs.len() < before {
            assert!(is_alone, "one resource a rule");
            taken += before - verbs.len();
        }
    }
    assert_eq!(taken, 1, "{verb} on {resource} is a right of the role");
    rules.retain(|rule| rule["verbs"].as_array().is_none_or(|verbs| !verbs.is_empty()));
    less
}

/// Objects, as they are sent to an API server.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// As text.
    pub text: String,
    /// As values, in the text's order.
    pub objects: Vec<Value>,
}

/// helm, and the chart.
#[derive(Clone, Debug)]
pub struct Helm(PathBuf);

// === impl Manifest ===

impl Manifest {
    /// Reads YAML of many documents.
    pub fn parse(text: String) -> Result<Self> {
        let objects: Vec<Option<Value>> = serde_saphyr::from_multiple(&text)?;
        let objects = objects.into_iter().flatten().filter(|object| !object.is_null()).collect();
        Ok(Self { text, objects })
    }

    /// What a kustomization, by its path in `deploy`, amounts to.
    pub fn kustomize(programs: &Programs, path: &str) -> Result<Self> {
        Self::kustomize_at(programs, &file(path))
    }

    /// The same for a kustomization anywhere.
    pub fn kustomize_at(programs: &Programs, folder: &Path) -> Result<Self> {
        let mut kubectl = Command::new(programs.kubectl());
        Self::parse(printed(kubectl.arg("kustomize").arg(folder))?)
    }

    /// Its objects of a kind, by name.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> BTreeMap<&'a str, &'a Value> {
        let objects = self.objects.iter().filter(move |object| object["kind"] == kind);
        objects.map(|object| (object["metadata"]["name"].as_str().unwrap_or(""), object)).collect()
    }

    /// The agent's configuration in it.
    pub fn config(&self) -> Result<&str> {
        let maps = self.of_kind("ConfigMap");
        maps.into_values()
            .find_map(|map| map["data"]["config.yaml"].as_str())
            .context("no ConfigMap has a config.yaml")
    }
}

// === impl Helm ===

impl Helm {
    /// The helm that `cargo xtask setup` has built. Where there is none, says that `what` is skipped,
    /// and why, where cargo does not hide it.
    pub fn find_or_skip(what: &str) -> Option<Self> {
        let own = std::env::current_exe().ok()?;
        let within =
            |folder: &Path| Some(folder.join("kubernetes/helm")).filter(|path| path.is_file());
        let found = own.ancestors().skip(1).find_map(within).map(Self);
        if found.is_none() {
            // Not by `eprintln`, which is not heard of a test that passes.
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {what}: there is no helm: install Go and run `cargo xtask setup`"
            );
        }
        found
    }

    /// What the chart amounts to with these arguments of `helm template`.
    pub fn template(&self, arguments: &[&str]) -> Result<Manifest> {
        Manifest::parse(printed(&mut self.templating(arguments))?)
    }

    /// Why the chart cannot be rendered with these arguments; `None` where it can.
    pub fn refusal(&self, arguments: &[&str]) -> Result<Option<String>> {
        let output = heard(&mut self.templating(arguments))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Some(said).filter(|_| !output.status.success()))
    }

    /// What `helm lint --strict` says with these arguments.
    pub fn lint(&self, arguments: &[&str]) -> Result<String> {
        printed(self.command().args(["lint", "--strict"]).arg(file("chart")).args(arguments))
    }

    /// Installs the chart as the release `detector`, or upgrades it; gives what it says.
    pub fn install(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<String> {
        let mut helm = self.command();
        helm.args(["upgrade", "--install", "detector"]).arg(file("chart")).args(arguments);
        printed(helm.args(["--namespace", NAMESPACE]).env("KUBECONFIG", kubeconfig))
    }

    /// Uninstalls the release.
    pub fn uninstall(&self, kubeconfig: &Path) -> Result<String> {
        let mut helm = self.command();
        helm.args(["uninstall", "detector", "--namespace", NAMESPACE]);
        printed(helm.env("KUBECONFIG", kubeconfig))
    }

    fn templating(&self, arguments: &[&str]) -> Command {
        let mut helm = self.command();
        helm.args(["template", "detector"]).arg(file("chart"));
        helm.args(["--namespace", NAMESPACE]).args(arguments);
        helm
    }

    /// helm, as who has no settings of his own would run it.
    fn command(&self) -> Command {
        let mut helm = Command::new(&self.0);
        for variable in ["KUBECONFIG", "HELM_NAMESPACE", "HELM_KUBECONTEXT"] {
            helm.env_remove(variable);
        }
        for (variable, folder) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config")] {
            // Beside itself, where the next run finds it and `cargo clean` takes it away.
            helm.env(variable, self.0.with_file_name("helm-home").join(folder));
        }
        helm
    }
}

/// Runs a program to its end, and hears it out.
fn heard(command: &mut Command) -> Result<Output> {
    crate::process::end_with_thread(command);
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))
}

/// The same; what it printed, or what it complained of.
fn printed(command: &mut Command) -> Result<String> {
    let output = heard(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{command:?} failed: {}{}", said.trim(), String::from_utf8_lossy(&output.stdout));
    }
    Ok(String::from_utf8(output.stdout)?)
}
