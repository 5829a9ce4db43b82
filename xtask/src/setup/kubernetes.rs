//! kube-apiserver, etcd and kubectl, for the tests that meet a real API server.
//!
//! Nobody publishes them where every machine may fetch, but their sources are Go modules. So they
//! are built once, by `tests/kubernetes/go.mod`, into `target/kubernetes`; or they are taken from
//! the folder that `KUBEBUILDER_ASSETS` names. The tests look in the same two places.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::build;
use crate::command::{self, succeeds};

/// The programs, and the packages that they are built from.
const PROGRAMS: [(&str, &str); 3] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
];

/// What the programs were built from last.
const STAMP: &str = "built-from";

/// Where a program keeps the version that it says it is.
const VERSION: &str = "k8s.io/component-base/version";

/// Builds what is missing, or says why there will be none.
pub(crate) fn run() -> Result<()> {
    if std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        return Ok(());
    }
    let module = build::workspace()?.join("tests/kubernetes");
    let to = build::target()?.join("kubernetes");
    let read = |name: &str| {
        let path = module.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let recipe = read("go.mod")?;
    let source = format!("{recipe}{}", read("go.sum")?);
    if is_built(&to, &source) {
        return Ok(());
    }
    if let Some(why) = cannot_build(&module) {
        say(&format!(
            "skipped: {why}, so no test meets a real kube-apiserver: install Go 1.26 or later, or \
             name a folder with kube-apiserver, etcd and kubectl in KUBEBUILDER_ASSETS"
        ));
        return Ok(());
    }
    let version = version(&recipe)?;
    say(&format!(
        "building kube-apiserver {version}, kubectl and etcd, which the tests run on loopback \
         (once; ten minutes on two cores)"
    ));
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    for (program, package) in PROGRAMS {
        let mut go = Command::new("go");
        go.args(["build", "-trimpath", "-ldflags", &link(version)?, "-o"]);
        go.arg(to.join(program)).arg(package).current_dir(&module);
        command::run(&mut go).with_context(|| {
            format!(
                "{program} does not build (where it cannot be, name a folder that has it in \
                 KUBEBUILDER_ASSETS)"
            )
        })?;
    }
    // Last, so that a build that was broken off is taken up again.
    fs::write(to.join(STAMP), source).context("cannot note what was built")
}

fn is_built(to: &Path, source: &str) -> bool {
    fs::read_to_string(to.join(STAMP)).is_ok_and(|built| built == source)
        && PROGRAMS.iter().all(|(program, _)| to.join(program).is_file())
}

/// Why there is nothing here that could build.
fn cannot_build(module: &Path) -> Option<String> {
    if !succeeds("go", &["version"]) {
        return Some("Go is not installed".to_owned());
    }
    let mut list = Command::new("go");
    list.args(["list", "-m"]).current_dir(module);
    match list.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let first = said.lines().next().unwrap_or("it does not say why").to_owned();
            Some(format!("the Go here cannot read tests/kubernetes/go.mod ({first})"))
        }
        Err(error) => Some(format!("Go does not start ({error})")),
    }
}

/// The version of Kubernetes that the recipe asks for.
fn version(recipe: &str) -> Result<&str> {
    recipe
        .split_once("k8s.io/kubernetes v")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .context("tests/kubernetes/go.mod requires no k8s.io/kubernetes")
}

/// What is told to the linker: no symbols, and the version, which otherwise is none.
fn link(version: &str) -> Result<String> {
    let mut numbers = version.split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("{version:?} is no version of Kubernetes");
    };
    Ok(format!(
        "-s -w -X {VERSION}.gitVersion=v{version} -X {VERSION}.gitMajor={major} \
         -X {VERSION}.gitMinor={minor} -X {VERSION}.gitCommit= -X {VERSION}.gitTreeState="
    ))
}
