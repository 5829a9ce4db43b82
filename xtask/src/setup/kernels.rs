//! Kernels to boot: Debian's, of several releases.
//!
//! They are fetched from the mirror that this machine's own package manager uses, by the package manager
//! with a state of its own, checked by its keys, and unpacked into `target/vm`; nothing is installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::say;
use crate::build;
use crate::command::{output, run};

/// A kernel, by the release of Debian that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Kernel {
    /// Of Debian 11.
    #[value(name = "5.10")]
    V5_10,
    /// Of Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// Of Debian 13.
    #[value(name = "6.12")]
    V6_12,
    /// The newest that Debian has.
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Newest];

    fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }
}

/// A kernel that was fetched.
pub(crate) struct Fetched {
    /// What it calls itself.
    pub(crate) release: String,
    /// What a machine boots.
    pub(crate) image: PathBuf,
    /// The folder in which `lib/modules` is.
    pub(crate) root: PathBuf,
}

/// The package that depends on the newest kernel of its release.
const META: &str = "linux-image-cloud-amd64";

/// Gives a kernel, fetching it unless that was done before.
pub(crate) fn fetch(kernel: Kernel) -> Result<Fetched> {
    let home = build::target()?.join("vm").join(kernel.suite());
    let root = home.join("root");
    if let Ok(fetched) = unpacked(&root) {
        return Ok(fetched);
    }
    say(&format!("fetching Debian's kernel of {} for a virtual machine", kernel.suite()));
    // Whatever a broken run has left.
    let _ = fs::remove_dir_all(&home);
    let apt = Apt::new(&home, kernel.suite())?;
    apt.run(&["update"])?;
    let packages = apt.kernel_packages()?;
    let archives = home.join("archives");
    fs::create_dir_all(&archives)?;
    let mut download = apt.command("apt-get");
    download.arg("download").args(&packages).current_dir(&archives);
    run(&mut download).context("is the package mirror reachable?")?;
    let parts = home.join("parts");
    for archive in fs::read_dir(&archives)? {
        run(Command::new("dpkg-deb").arg("-x").arg(archive?.path()).arg(&parts))?;
    }
    // Last, so that what was broken off is fetched again.
    fs::rename(&parts, &root)?;
    fs::remove_dir_all(&archives)?;
    unpacked(&root)
}

/// Finds the parts of an unpacked kernel.
fn unpacked(root: &Path) -> Result<Fetched> {
    // Where /usr is merged with the root, and where it is not.
    let modules = [root.join("lib/modules"), root.join("usr/lib/modules")];
    let modules = modules.iter().find(|path| path.is_dir()).context("no modules")?;
    let folder = fs::read_dir(modules)?.next().context("no modules")??;
    let release = folder.file_name().into_string().ok().context("a name that is no text")?;
    let images = [root.join(format!("boot/vmlinuz-{release}")), folder.path().join("vmlinuz")];
    let image = images.into_iter().find(|path| path.is_file()).context("no kernel image")?;
    let parent = modules.ancestors().nth(2).context("modules lie in a folder")?;
    Ok(Fetched { release, image, root: parent.to_owned() })
}

/// The package manager with a state of its own, for another release than the machine's.
struct Apt {
    options: Vec<String>,
}

// === impl Apt ===

impl Apt {
    fn new(home: &Path, suite: &str) -> Result<Self> {
        let mirror = mirror()?;
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(home.join(folder))?;
        }
        let list = home.join("sources.list");
        fs::write(&list, format!("deb {mirror} {suite} main\n"))?;
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let options = vec![
            option("Dir::Etc::sourcelist", &list),
            option("Dir::Etc::sourceparts", Path::new("/dev/null")),
            option("Dir::State::lists", &home.join("lists")),
            option("Dir::Cache", &home.join("cache")),
            "Acquire::Languages=none".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-q");
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("apt-get").arg("-q").args(arguments))
            .context("is the package mirror reachable?")
    }

    /// The packages that a kernel consists of.
    fn kernel_packages(&self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        let mut wanted = vec![META.to_owned()];
        while let Some(package) = wanted.pop() {
            let shown = self.command("apt-cache").args(["show", &package]).output()?;
            let shown = String::from_utf8(shown.stdout).context("apt-cache prints no text")?;
            let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"));
            let parts = depends.unwrap_or_default().split(',');
            let names = parts.filter_map(|part| part.split_whitespace().next());
            let is_part = |name: &&str| {
                ["linux-image-", "linux-binary-", "linux-modules-"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
            };
            wanted.extend(names.filter(is_part).map(str::to_owned));
            if package != META {
                all.insert(package);
            }
        }
        ensure!(!all.is_empty(), "the mirror has no {META}");
        Ok(all)
    }
}

/// The mirror that the machine itself uses for Debian's packages.
pub(super) fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(CODENAME) $(COMPONENT)";
    let targets = output("apt-get", &["indextargets", "--format", format, "Created-By: Packages"])
        .unwrap_or_default();
    let found = targets.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (uri, origin) = (words.next()?, words.next()?);
        let release = words.next()?;
        (origin == "Debian" && !release.contains('-')).then(|| uri.to_owned())
    });
    match found {
        Some(mirror) => Ok(mirror),
        None => bail!("this machine's apt has no mirror of Debian: run `apt-get update` first"),
    }
}
