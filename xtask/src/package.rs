//! The Debian package: the agent, its unit, and what people read about it.
//!
//! cargo-deb makes it of what `detector/Cargo.toml` names. What is not a file of the source tree is put
//! into `target/package` first: the program without its symbols, and the man pages and completions that it
//! writes itself. Where lintian is installed, it has its say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{output, run, succeeds};
use crate::{build, setup};

/// How the program in it is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As it is given to others.
    Release,
    /// As the tests have it.
    Debug,
}

/// Makes the package; gives its path.
pub(crate) fn deb(profile: Profile) -> Result<PathBuf> {
    setup::packager()?;
    let (name, options): (_, &[&str]) = match profile {
        Profile::Release => ("release", &["--release"]),
        Profile::Debug => ("debug", &[]),
    };
    build::programs(&["detector"], options)?;
    let workspace = build::workspace()?;
    // Where the assets of detector/Cargo.toml are, wherever cargo builds.
    stage(&build::target()?.join(name).join("detector"), &workspace.join("target/package"))?;
    let folder = build::target()?.join("debian").join(name);
    // There is one package in it, whatever its version.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let mut cargo = Command::new("cargo");
    cargo.args(["deb", "--quiet", "--no-build", "--no-strip", "--package", "detector", "--output"]);
    cargo.arg(&folder).current_dir(workspace);
    if profile == Profile::Debug {
        cargo.arg("--fast");
    }
    run(&mut cargo)?;
    let made = fs::read_dir(&folder)?.next().context("cargo deb makes no package")??.path();
    if succeeds("lintian", &["--version"]) {
        let mut lintian = Command::new("lintian");
        run(lintian.args(["--fail-on", "error", "--tag-display-limit", "0"]).arg(&made))?;
    }
    Ok(made)
}

/// Puts together what is made by or of the program.
fn stage(program: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    let (man, completions) = (to.join("man"), to.join("completions"));
    fs::create_dir_all(&completions).with_context(|| format!("cannot make {}", to.display()))?;
    run(Command::new("strip")
        .arg("--strip-unneeded")
        .arg("-o")
        .arg(to.join("detector"))
        .arg(program))
    .context("install binutils")?;
    fs::write(to.join("changelog"), changelog())?;
    run(Command::new(program).arg("man").arg(&man))?;
    for shell in ["bash", "zsh", "fish"] {
        let made = Command::new(program).args(["completions", shell]).output()?;
        ensure!(made.status.success(), "the program writes no completions for {shell}");
        fs::write(completions.join(format!("detector.{shell}")), made.stdout)?;
    }
    Ok(())
}

/// Debian's form of a changelog, of the source's last change; what has changed is in CHANGELOG.md.
fn changelog() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let date = output("git", &["log", "-1", "--format=%cD"]);
    let date = date.unwrap_or_else(|| "Thu, 01 Jan 1970 00:00:00 +0000".to_owned());
    format!(
        "detector ({version}-1) stable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- The route-hijack \
         detector authors <>  {date}\n"
    )
}
