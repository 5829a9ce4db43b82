//! kube-apiserver, etcd and kubectl, for the tests that meet a real API server.
//!
//! They are built once, by `tests/kubernetes/go.mod`, into `target/kubernetes`; or they are taken from
//! the folder that `KUBEBUILDER_ASSETS` names. The tests look in the same two places.

use anyhow::{Context as _, Result, bail};

use super::golang::Recipe;
use super::say;

/// The programs, and the packages that they are built from.
const PROGRAMS: [(&str, &str); 3] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
];

/// Where a program keeps the version that it says it is.
const VERSION: &str = "k8s.io/component-base/version";

/// Builds what is missing, or says why there will be none.
pub(crate) fn run() -> Result<()> {
    if std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        return Ok(());
    }
    let recipe = Recipe::read("tests/kubernetes", "built-from")?;
    if recipe.is_built(&PROGRAMS) {
        return Ok(());
    }
    if let Some(why) = recipe.cannot_build() {
        say(&format!(
            "skipped: {why}, so no test meets a real kube-apiserver: install Go 1.26 or later, or \
             name a folder with kube-apiserver, etcd and kubectl in KUBEBUILDER_ASSETS"
        ));
        return Ok(());
    }
    let version = recipe.version("k8s.io/kubernetes")?;
    say(&format!(
        "building kube-apiserver {version}, kubectl and etcd, which the tests run on loopback \
         (once; ten minutes on two cores)"
    ));
    recipe.build(&PROGRAMS, &link(version)?).context(
        "there is no kube-apiserver (where it cannot be built, name a folder that has it in \
         KUBEBUILDER_ASSETS)",
    )
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
