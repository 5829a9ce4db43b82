//! Debian's packages.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::say;
use crate::command::{output, run};

/// Installs packages, with the reason why.
pub(crate) fn install(why: &str, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let by_hand = format!("apt-get update && apt-get install -y --no-install-recommends {list}");
    if output("id", &["-u"]).as_deref() != Some("0") {
        bail!("{list} missing ({why}), and only root may install it: run `sudo sh -c '{by_hand}'`");
    }
    say(&format!("installing {list}: {why}"));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    apt(&["update"]).context("is the package mirror reachable?")?;
    let mut arguments = vec!["install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments).with_context(|| format!("to see more, run: {by_hand}"))
}
