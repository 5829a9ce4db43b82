//! Programs of others that are built from their Go modules: nobody publishes them where every machine
//! may fetch, but their sources.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::build;
use crate::command::{self, succeeds};

/// A folder with a go.mod that names programs as tools, and where they are built into.
pub(super) struct Recipe {
    name: &'static str,
    folder: PathBuf,
    /// The text of its go.mod.
    module: String,
    /// All that the programs depend on.
    source: String,
    to: PathBuf,
    /// What the programs were built from last.
    stamp: &'static str,
}

// === impl Recipe ===

impl Recipe {
    /// The recipe in a folder of the workspace.
    pub(super) fn read(name: &'static str, stamp: &'static str) -> Result<Self> {
        let folder = build::workspace()?.join(name);
        let read = |file: &str| {
            let path = folder.join(file);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let module = read("go.mod")?;
        let source = format!("{module}{}", read("go.sum")?);
        let to = build::target()?.join("kubernetes");
        Ok(Self { name, folder, module, source, to, stamp })
    }

    /// Whether these programs are there, built from what the recipe says now.
    pub(super) fn is_built(&self, programs: &[(&str, &str)]) -> bool {
        fs::read_to_string(self.to.join(self.stamp)).is_ok_and(|built| built == self.source)
            && programs.iter().all(|(program, _)| self.to.join(program).is_file())
    }

    /// Why there is nothing here that could build.
    pub(super) fn cannot_build(&self) -> Option<String> {
        if !succeeds("go", &["version"]) {
            return Some("Go is not installed".to_owned());
        }
        let mut list = Command::new("go");
        list.args(["list", "-m"]).current_dir(&self.folder);
        match list.output() {
            Ok(output) if output.status.success() => None,
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let first = said.lines().next().unwrap_or("it does not say why").to_owned();
                Some(format!("the Go here cannot read {}/go.mod ({first})", self.name))
            }
            Err(error) => Some(format!("Go does not start ({error})")),
        }
    }

    /// Builds programs, each with the package that it is built from, and what the linker is told.
    pub(super) fn build(&self, programs: &[(&str, &str)], link: &str) -> Result<()> {
        let to = &self.to;
        fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
        for (program, package) in programs {
            let mut go = Command::new("go");
            go.args(["build", "-trimpath", "-ldflags", link, "-o"]);
            go.arg(to.join(program)).arg(package).current_dir(&self.folder);
            command::run(&mut go).with_context(|| format!("{program} does not build"))?;
        }
        // Last, so that a build that was broken off is taken up again.
        fs::write(to.join(self.stamp), &self.source).context("cannot note what was built")
    }

    /// The version of a module that the recipe asks for.
    pub(super) fn version(&self, module: &str) -> Result<&str> {
        self.module
            .split_once(&format!("{module} v"))
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .with_context(|| format!("{}/go.mod requires no {module}", self.name))
    }
}
