//! The file system that a machine boots with: a cpio archive in memory, as the kernel unpacks it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use cpio::newc;

use crate::setup::kernels::Fetched;

/// What the tests need of the kernel that Debian has as modules. What a kernel has built in, or not at
/// all, is passed over.
const MODULES: [&str; 39] = [
    "veth",
    "bridge",
    "dummy",
    "tun",
    "ipip",
    "vxlan",
    "vrf",
    "sch_ingress",
    "cls_bpf",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_tables",
    "nft_nat",
    "nft_chain_nat",
    "nft_compat",
    "nft_ct",
    "nft_counter",
    "nft_immediate",
    "nft_numgen",
    "nft_hash",
    "nft_redir",
    "nft_masq",
    "ip_tables",
    "ip6_tables",
    "iptable_nat",
    "ip6table_nat",
    "iptable_filter",
    "xt_nat",
    "xt_tcpudp",
    "xt_comment",
    "xt_conntrack",
    "xt_addrtype",
    "xt_mark",
    "xt_multiport",
    "xt_statistic",
    "xt_set",
    "af_packet",
    "ip_set_hash_ip",
];

/// Files by their paths, with their modes. What is in them is shared by copies.
#[derive(Clone, Default)]
pub(super) struct Ramdisk {
    files: BTreeMap<PathBuf, (u32, Arc<[u8]>)>,
}

const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;

// === impl Ramdisk ===

impl Ramdisk {
    /// Adds a text.
    pub(super) fn text(&mut self, path: &str, text: &str) {
        self.files.insert(path.into(), (FILE, text.as_bytes().into()));
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, to: &str) {
        self.files.insert(path.into(), (LINK, to.as_bytes().into()));
    }

    /// Adds a copy of a file.
    pub(super) fn copy(&mut self, to: &str, from: &Path) -> Result<()> {
        self.files.insert(to.into(), (FILE, read(from)?.into()));
        Ok(())
    }

    /// Adds all that is in a folder, with links and modes; everything is root's. Devices are left out: the
    /// kernel makes them.
    pub(super) fn tree(&mut self, to: &Path, from: &Path) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("{}", from.display()))? {
            let entry = entry?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.metadata()?;
            let mode = kind.mode();
            if kind.is_dir() {
                self.files.insert(to.clone(), (mode, Arc::default()));
                self.tree(&to, &path)?;
            } else if kind.is_symlink() {
                let target = fs::read_link(&path)?;
                self.files.insert(to, (LINK, target.as_os_str().as_bytes().into()));
            } else if kind.is_file() {
                self.files.insert(to, (mode, read(&path)?.into()));
            }
        }
        Ok(())
    }

    /// Adds a program, without what only a debugger reads, and the libraries that it needs.
    pub(super) fn program(&mut self, to: &str, from: &Path) -> Result<()> {
        self.stripped(to, from)?;
        self.libraries(from)
    }

    /// Adds a program, without what only a debugger reads, where its libraries are already.
    pub(super) fn stripped(&mut self, to: &str, from: &Path) -> Result<()> {
        let stripped = tempfile::NamedTempFile::new()?;
        let done = Command::new("strip")
            .args(["--strip-debug", "-o"])
            .arg(stripped.path())
            .arg(from)
            .output()
            .context("cannot start strip: install binutils")?;
        let bytes = read(if done.status.success() { stripped.path() } else { from })?;
        self.files.insert(to.into(), (PROGRAM, bytes.into()));
        Ok(())
    }

    /// Adds a folder as it is, and what the programs in it need.
    pub(super) fn folder(&mut self, folder: &Path) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            if path.is_file() {
                self.files.insert(path.clone(), (PROGRAM, read(&path)?.into()));
                if path.extension().is_some_and(|ending| ending == "so") {
                    self.libraries(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the libraries that the dynamic linker would load for a program.
    fn libraries(&mut self, program: &Path) -> Result<()> {
        let told = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
        // A program without libraries is none to it.
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        for path in told.split_whitespace().filter(|word| word.starts_with('/')) {
            if !self.files.contains_key(Path::new(path)) {
                self.files.insert(path.into(), (PROGRAM, read(Path::new(path))?.into()));
            }
        }
        Ok(())
    }

    /// Adds modules of the kernel, numbered in the order in which they must be loaded.
    pub(super) fn modules(&mut self, kernel: &Fetched) -> Result<()> {
        for (at, path) in modules(kernel)?.iter().enumerate() {
            let bytes = if path.extension().is_some_and(|ending| ending == "xz") {
                let done = Command::new("xz").args(["-dc"]).arg(path).output();
                done.context("cannot start xz: install xz-utils")?.stdout
            } else {
                read(path)?
            };
            let file = path.file_name().unwrap_or_default().display().to_string();
            let name = file.split('.').next().unwrap_or_default();
            self.files.insert(format!("/modules/{at:03}-{name}").into(), (FILE, bytes.into()));
        }
        Ok(())
    }

    /// Adds the same modules to a system that loads them itself, as it needs them.
    pub(super) fn loadable(&mut self, system: &Path, kernel: &Fetched) -> Result<()> {
        let here = Path::new("lib/modules").join(&kernel.release);
        let folder = tempfile::tempdir()?;
        let whole = kernel.root.join(&here);
        for path in modules(kernel)? {
            let to = folder.path().join(&here).join(path.strip_prefix(&whole)?);
            fs::create_dir_all(to.parent().context("a module lies in a folder")?)?;
            fs::copy(&path, to)?;
        }
        for list in ["modules.builtin", "modules.order"] {
            fs::copy(whole.join(list), folder.path().join(&here).join(list))?;
        }
        depmod(folder.path(), &kernel.release)?;
        self.tree(&system.join("usr").join(&here), &folder.path().join(&here))
    }

    /// Writes the archive.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let file =
            fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = std::io::BufWriter::new(file);
        let mut folders: Vec<&Path> = vec![
            Path::new("/proc"),
            Path::new("/sys"),
            Path::new("/dev"),
            Path::new("/run"),
            Path::new("/tmp"),
        ];
        for path in self.files.keys() {
            folders.extend(path.ancestors().skip(1).filter(|path| *path != Path::new("/")));
        }
        // What is above comes first.
        folders.sort_unstable();
        folders.dedup();
        let mut number = 1;
        let mut add = |path: &Path, mode: u32, bytes: &[u8]| -> Result<()> {
            let name = path.strip_prefix("/")?.to_str().context("a path that is no text")?;
            let length = u32::try_from(bytes.len())?;
            let mut entry = newc::Builder::new(name).ino(number).mode(mode).write(&mut out, length);
            entry.write_all(bytes)?;
            entry.finish()?;
            number += 1;
            Ok(())
        };
        for folder in folders {
            add(folder, FOLDER, &[])?;
        }
        for (path, (mode, bytes)) in &self.files {
            add(path, *mode, bytes)?;
        }
        newc::trailer(&mut out)?.flush()?;
        Ok(())
    }
}

/// The modules that the tests need, and what these need, in the order in which they must be loaded.
fn modules(kernel: &Fetched) -> Result<Vec<PathBuf>> {
    let Fetched { root, release, .. } = kernel;
    depmod(root, release)?;
    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--show-depends", "--dirname"]).arg(root);
        let shown = modprobe.args(["--set-version", release, module]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        for path in shown.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            // What follows are parameters.
            let path = Path::new(path.split_whitespace().next().unwrap_or_default());
            if !order.iter().any(|other| other == path) {
                order.push(path.to_owned());
            }
        }
    }
    ensure!(!order.is_empty(), "no module of {release} can be found");
    Ok(order)
}

/// Writes down which module needs which.
fn depmod(root: &Path, release: &str) -> Result<()> {
    let depmod = Command::new("depmod").arg("-b").arg(root).arg(release).output();
    let depmod = depmod.context("cannot start depmod: install kmod")?;
    ensure!(depmod.status.success(), "{}", String::from_utf8_lossy(&depmod.stderr).trim());
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
