//! What is in an image: that of an archive which `DETECTOR_IMAGE` names, as `cargo xtask image` makes it,
//! else the program beside the tests, with the libraries that it is linked with, as the image's
//! Dockerfile would have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::program;

/// An unpacked image.
#[derive(Debug)]
pub struct Rootfs {
    folder: TempDir,
}

// === impl Rootfs ===

impl Rootfs {
    /// Unpacks the image.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("detector-image-")
            .tempdir()
            .context("cannot make a folder")?;
        let rootfs = Self { folder };
        fs::create_dir_all(rootfs.path())?;
        match std::env::var_os("DETECTOR_IMAGE") {
            Some(archive) => rootfs.unpack(Path::new(&archive))?,
            None => rootfs.assemble(&program()?)?,
        }
        ensure!(rootfs.path().join("detector").is_file(), "the image has no /detector");
        Ok(rootfs)
    }

    /// Its folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    /// Unpacks the layers of an archive by the OCI's image layout.
    fn unpack(&self, archive: &Path) -> Result<()> {
        let layout = self.folder.path().join("layout");
        fs::create_dir_all(&layout)?;
        untar(archive, &layout)?;
        let index = read(&layout.join("index.json"))?;
        let [only] = &index["manifests"].as_array().context("the image's index")?[..] else {
            bail!("{} has more than one image", archive.display());
        };
        let manifest = read(&blob(&layout, only)?)?;
        for layer in manifest["layers"].as_array().context("the image's layers")? {
            untar(&blob(&layout, layer)?, &self.path())?;
        }
        Ok(())
    }

    /// Puts a program that is linked dynamically beside what it is linked with.
    fn assemble(&self, program: &Path) -> Result<()> {
        fs::copy(program, self.path().join("detector")).context("the agent's program")?;
        let listed = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = self.path().join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(library, to).with_context(|| format!("{library} is not there"))?;
        }
        Ok(())
    }
}

fn untar(archive: &Path, to: &Path) -> Result<()> {
    let output = Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(to)
        .output()
        .context("cannot start tar")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", archive.display(), said.trim());
    Ok(())
}

fn read(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("{} is not there", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().context("a digest")?;
    let (algorithm, hash) = digest.split_once(':').context("a digest")?;
    Ok(layout.join("blobs").join(algorithm).join(hash))
}
