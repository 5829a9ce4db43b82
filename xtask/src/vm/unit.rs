//! The unit in a machine with a real Debian: systemd is its first process, the package is installed there
//! by dpkg, and `tests/src/bin/unit.rs` says what came of it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::machine::Machine;
use super::ramdisk::Ramdisk;
use super::report::Report;
use crate::package::Profile;
use crate::setup::kernels::Fetched;
use crate::setup::userland;
use crate::{build, package, setup};

/// Its name among the tests.
pub(super) const NAME: &str = "systemd";

/// Where the system lies until the guest makes it the root.
const SYSTEM: &str = "/userland";

/// What starts the tests there.
const TESTS: &str = "\
[Unit]
Description=Tests of detector.service

[Service]
Type=exec
ExecStart=/programs/unit
";

/// What a machine that has one thing to do need not start.
const MASKED: [&str; 4] = [
    "getty.target",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "e2scrub_reap.service",
];

/// Finds what makes the package and the system; gives the system's folder. Where it fails, the unit cannot
/// be tested.
pub(crate) fn prepare() -> Result<PathBuf> {
    setup::packager()?;
    userland::fetch()
}

/// Installs the package on these kernels, and tests its unit there.
pub(super) fn run(kernels: &[&Fetched]) -> Result<()> {
    let system = prepare()?;
    let package = package::deb(Profile::Debug)?;
    build::programs(&["guest", "unit"], &[])?;
    let built = build::target()?.join("debug");
    let mut disk = Ramdisk::default();
    disk.program("/init", &built.join("guest"))?;
    disk.tree(Path::new(SYSTEM), &system)?;
    let at = |path: &str| format!("{SYSTEM}{path}");
    disk.stripped(&at("/programs/unit"), &built.join("unit"))?;
    disk.copy(&at("/programs/detector.deb"), &package)?;
    disk.text(&at("/etc/hostname"), "guarded\n");
    // Whatever makes one would take it for a first boot.
    disk.text(&at("/etc/machine-id"), "6e0a9f3c1d5b4c7f8a2e4d6b8c0f1a3e\n");
    disk.text(&at("/etc/systemd/system/unit.service"), TESTS);
    let wanted = "/etc/systemd/system/multi-user.target.wants/unit.service";
    disk.link(&at(wanted), "/etc/systemd/system/unit.service");
    for masked in MASKED {
        disk.link(&at(&format!("/etc/systemd/system/{masked}")), "/dev/null");
    }
    let mut report = Report::new(kernels.iter().map(|kernel| kernel.release.clone()));
    for (at, kernel) in kernels.iter().enumerate() {
        eprintln!("vm: booting {} with systemd", kernel.release);
        let mut disk = disk.clone();
        disk.loadable(Path::new(SYSTEM), kernel)?;
        let machine = Machine::boot(kernel, &disk, &format!("{NAME}-{}", kernel.release));
        let ended = machine.and_then(|machine| machine.watch(|line| report.line(at, line)));
        report.ended(at, ended);
    }
    report.finish()
}
