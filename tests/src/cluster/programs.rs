//! Where kube-apiserver, etcd and kubectl are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The programs of a cluster.
#[derive(Clone, Debug)]
pub struct Programs {
    pub(super) apiserver: PathBuf,
    pub(super) etcd: PathBuf,
    pub(super) kubectl: PathBuf,
}

// === impl Programs ===

impl Programs {
    /// kubectl.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    /// Those of the folder that `KUBEBUILDER_ASSETS` names, else those that `cargo xtask setup` has
    /// built. The error says what to do to have them.
    pub fn find() -> Result<Self> {
        if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS") {
            let folder = PathBuf::from(folder);
            return match Self::within(&folder) {
                Some(programs) => Ok(programs),
                None => bail!(
                    "KUBEBUILDER_ASSETS names {}, where kube-apiserver, etcd or kubectl is missing",
                    folder.display()
                ),
            };
        }
        let own = std::env::current_exe()?;
        match own.ancestors().skip(1).find_map(|folder| Self::within(&folder.join("kubernetes"))) {
            Some(programs) => Ok(programs),
            None => bail!(
                "there is no kube-apiserver: install Go and run `cargo xtask setup`, or name a \
                 folder with kube-apiserver, etcd and kubectl in KUBEBUILDER_ASSETS"
            ),
        }
    }

    /// The same; where there are none, says that `what` is skipped, and why, where cargo does not
    /// hide it.
    pub fn find_or_skip(what: &str) -> Option<Self> {
        Self::find()
            .inspect_err(|why| {
                // Not by `eprintln`, which is not heard of a test that passes. Where nobody can
                // hear it, there is nobody to tell.
                let mut stderr = std::io::stderr();
                let _ = writeln!(stderr, "skipped: {what}: {why:#}");
            })
            .ok()
    }

    fn within(folder: &Path) -> Option<Self> {
        let program = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        Some(Self {
            apiserver: program("kube-apiserver")?,
            etcd: program("etcd")?,
            kubectl: program("kubectl")?,
        })
    }
}
