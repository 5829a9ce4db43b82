//! Kyverno's definition of ClusterPolicy, for the test that holds our policies against it: taken from
//! Kyverno's Go module, which `tests/kyverno/go.mod` names, into `target/kyverno`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::say;
use crate::build;

const MODULE: &str = "github.com/kyverno/kyverno";
const DEFINITION: &str = "kyverno.io_clusterpolicies.yaml";
/// What the definition was taken from last.
const STAMP: &str = "taken-from";

/// Takes it, or says why there will be none.
pub(crate) fn run() -> Result<()> {
    let module = build::workspace()?.join("tests/kyverno");
    let recipe = fs::read_to_string(module.join("go.sum")).context("cannot read tests/kyverno")?;
    let to = build::target()?.join("kyverno");
    let is_there = fs::read_to_string(to.join(STAMP)).is_ok_and(|taken| taken == recipe);
    if is_there && to.join(DEFINITION).is_file() {
        return Ok(());
    }
    if let Err(why) = take(&module, &to) {
        say(&format!(
            "skipped: Kyverno's definitions ({why:#}), so no test holds policies against them"
        ));
        return Ok(());
    }
    fs::write(to.join(STAMP), recipe).context("cannot note what was taken")
}

fn take(module: &Path, to: &Path) -> Result<()> {
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", MODULE]).current_dir(module);
    let output = go.output().context("Go does not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().next().unwrap_or("go mod download does not say why").to_owned();
        bail!("{first}");
    }
    let told: Value = serde_json::from_slice(&output.stdout).context("go says what is no JSON")?;
    let folder = told["Dir"].as_str().context("go does not say where the module is")?;
    let from = Path::new(folder).join("config/crds/kyverno").join(DEFINITION);
    // Files of Go's cache cannot be written to, and copies would be like them.
    let text = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    fs::write(to.join(DEFINITION), text)
        .with_context(|| format!("cannot write to {}", to.display()))
}
