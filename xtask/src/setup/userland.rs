//! A Debian system to boot: the essential packages of this machine's own release, and systemd.
//!
//! It is made once, by mmdebstrap, from the mirror and with the settings of this machine's own package
//! manager, into `target/vm/userland`; nothing of it is installed here.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::apt::{self, Need};
use super::kernels::mirror;
use super::say;
use crate::build;
use crate::command::{output, run, succeeds};

const BOOTSTRAP: Need = Need {
    why: "`mmdebstrap` makes the Debian system of a virtual machine",
    packages: &["mmdebstrap"],
};

/// What the tests of the unit need beside the essential: the first process, `ip`, what loads modules for the
/// kernel, and what the package depends on.
const PACKAGES: &str = "systemd-sysv,iproute2,kmod,ca-certificates";

/// What nobody reads there.
const LEFT_OUT: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];

/// Gives the folder of the system, making it unless that was done before.
pub(crate) fn fetch() -> Result<PathBuf> {
    let home = build::target()?.join("vm");
    let made = home.join("userland");
    let release = release()?;
    let (recipe, stamp) = (format!("{release} {PACKAGES}"), home.join("userland.made-from"));
    if fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == recipe) {
        return Ok(made);
    }
    if !succeeds("mmdebstrap", &["--version"]) {
        apt::install(&[BOOTSTRAP])?;
    }
    let mirror = mirror()?;
    say(&format!("making a Debian system ({release}) for a virtual machine (a minute)"));
    // Whatever a broken run has left.
    let parts = home.join("userland.new");
    let _ = fs::remove_dir_all(&parts);
    let _ = fs::remove_dir_all(&made);
    fs::create_dir_all(&home)?;
    let settings = tempfile::NamedTempFile::new()?;
    let acquire = output("apt-config", &["dump", "Acquire"]).unwrap_or_default();
    fs::write(settings.path(), acquire)?;
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--quiet", "--variant=essential", "--include", PACKAGES]);
    bootstrap.arg(format!("--aptopt={}", settings.path().display()));
    for left_out in LEFT_OUT {
        bootstrap.arg(format!("--dpkgopt=path-exclude={left_out}"));
    }
    // Else man pages of what is installed there later were left out as well.
    bootstrap.arg("--customize-hook=rm -f \"$1\"/etc/dpkg/dpkg.cfg.d/99mmdebstrap");
    bootstrap.arg(&release).arg(&parts).arg(format!("deb {mirror} {release} main"));
    run(&mut bootstrap).context("is the package mirror reachable?")?;
    fs::rename(&parts, &made)?;
    // Last, so that what was broken off is made again.
    fs::write(stamp, recipe)?;
    Ok(made)
}

/// The release of this machine: what is built here runs there.
fn release() -> Result<String> {
    let text =
        fs::read_to_string("/etc/os-release").context("this machine does not say what it is")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).context("this machine's release has no name")
}
