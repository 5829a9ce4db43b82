//! checkov, which looks at manifests as a security review would: installed by pip into a folder of
//! its own, `target/checkov`, in the version of `tests/checkov/requirements.txt`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Need};
use super::say;
use crate::build;
use crate::command;

const PYTHON: Need = Need {
    why: "`checkov` looks at the manifests, and is installed by Python's pip",
    packages: &["python3-venv"],
};

/// What was installed last.
const STAMP: &str = "installed";

/// Installs it where it is missing, or says why there will be none.
pub(crate) fn run() -> Result<()> {
    let wanted = build::workspace()?.join("tests/checkov/requirements.txt");
    let text =
        fs::read_to_string(&wanted).with_context(|| format!("cannot read {}", wanted.display()))?;
    let folder = build::target()?.join("checkov");
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|installed| installed == text) {
        return Ok(());
    }
    say("installing checkov, which looks at the manifests (once; a minute)");
    if let Err(why) = install(&folder, &wanted) {
        say(&format!("skipped: {why:#}, so checkov does not look at the manifests"));
        return Ok(());
    }
    // Last, so that what was broken off is taken up again.
    fs::write(folder.join(STAMP), text).context("cannot note what was installed")
}

fn install(folder: &Path, wanted: &Path) -> Result<()> {
    let venv = || {
        let mut python = Command::new("python3");
        command::run(python.args(["-m", "venv", "--clear"]).arg(folder))
    };
    if venv().is_err() {
        apt::install(&[PYTHON])?;
        venv().context("there is no Python that makes a folder for it")?;
    }
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(wanted);
    command::run(&mut pip).context("pip cannot install it")
}
