//! Debian's packages.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::command::{is_root, run, succeeds};

/// Packages that are needed together, and what for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// In words that end a line.
    pub(super) why: &'static str,
    /// Their names.
    pub(super) packages: &'static [&'static str],
}

/// Installs packages, or says in one line who must do it and how.
pub(super) fn install(needs: &[Need]) -> Result<()> {
    let packages: Vec<&str> = needs.iter().flat_map(|need| need.packages).copied().collect();
    let list = packages.join(" ");
    if !succeeds("apt-get", &["--version"]) {
        bail!("there is no apt-get here: install what this system has for {list}");
    }
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
    if !is_root() {
        bail!("packages are missing that only root may install: run `sudo sh -c '{by_hand}'`");
    }
    for Need { why, packages } in needs {
        say(&format!("installing {}: {why}", packages.join(" ")));
    }
    apt(&["update"]).context("is the package mirror reachable?")?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt(&[&install, &*packages].concat()).with_context(|| format!("to see more, run: {by_hand}"))
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    run(&mut command)
}
