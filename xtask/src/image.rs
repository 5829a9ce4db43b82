//! The container image: the agent, linked statically, and nothing else.
//!
//! Everything that goes into it follows from the sources: times are those of the last commit, paths of
//! the machine are taken out of the program and of the bill of materials. So two builds of one commit
//! give one digest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::command::{output, run, run_loud};
use crate::{build, setup};

/// What the program is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What it may weigh as it is fetched, in bytes.
const LARGEST: u64 = 12 << 20;

/// What to build.
#[derive(Args)]
pub(crate) struct Options {
    /// The image's name, with the registry where it is to be pushed to.
    #[arg(long, default_value = concat!("route-hijack-detector:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Gather what goes into the image and build none, for `docker build`.
    #[arg(long)]
    context_only: bool,
    /// Run the container tests with the image.
    #[arg(long, conflicts_with = "context_only")]
    test: bool,
}

/// Builds it.
pub(crate) fn build(options: &Options) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "images are built on x86-64, for x86-64");
    setup::images()?;
    let folder = build::target()?.join("image");
    let context = folder.join("context");
    let commit = Commit::read()?;
    gather(&context, &commit)?;
    if options.context_only {
        println!("{}", context.display());
        return Ok(());
    }
    let archive = folder.join("route-hijack-detector.tar");
    let digest = assemble(options, &folder, &context, &commit, &archive)?;
    let (fetched, unpacked) = weigh(&archive, &folder)?;
    let mebibytes = |bytes: u64| bytes / 1024 * 100 / 1024;
    let show = |bytes: u64| format!("{}.{:02} MiB", mebibytes(bytes) / 100, mebibytes(bytes) % 100);
    println!("{} of {}", options.name, commit.revision);
    println!("digest    {digest}");
    println!("fetched   {}", show(fetched));
    println!("unpacked  {}", show(unpacked));
    println!("archive   {}", archive.display());
    ensure!(fetched <= LARGEST, "the image is larger than {}", show(LARGEST));
    if options.test {
        let mut test = Command::new("cargo");
        test.args(["test", "--package", "detector-tests", "--test", "container"]);
        run_loud(test.env("DETECTOR_IMAGE", fs::canonicalize(&archive)?))?;
    }
    Ok(())
}

/// Builds the program as it is shipped; gives its path.
pub(crate) fn program() -> Result<PathBuf> {
    let mut flags = vec![
        "-C".to_owned(),
        "target-feature=+crt-static".to_owned(),
        // cargo's `strip` leaves the table of symbols of a static program.
        "-C".to_owned(),
        "link-arg=-s".to_owned(),
    ];
    for (path, name) in machine()? {
        flags.push(format!("--remap-path-prefix={}={name}", path.display()));
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--package", "detector", "--profile", "dist"]);
    // With a target of its own: what runs at build time is linked as the machine likes.
    cargo.args(["--target", TARGET]).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run(&mut cargo)?;
    Ok(build::target()?.join(TARGET).join("dist/detector"))
}

/// Folders of this machine that would be named in what is built, and what stands for them.
fn machine() -> Result<Vec<(PathBuf, &'static str)>> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    Ok(vec![(build::workspace()?.to_owned(), "detector"), (cargo.join("registry/src"), "crates")])
}

/// What an image is of.
struct Commit {
    revision: String,
    /// Its time, in seconds since 1970.
    time: String,
}

impl Commit {
    fn read() -> Result<Self> {
        let git = |arguments: &[&str]| {
            output("git", arguments).context("git does not tell of which commit this is")
        };
        let changed = !git(&["status", "--porcelain"])?.is_empty();
        let revision = git(&["rev-parse", "HEAD"])?;
        let revision = if changed { format!("{revision}, changed") } else { revision };
        Ok(Self { revision, time: git(&["log", "-1", "--format=%ct"])? })
    }
}

/// Puts all that goes into the image in one folder.
fn gather(context: &Path, commit: &Commit) -> Result<()> {
    if context.exists() {
        fs::remove_dir_all(context).context("cannot clear the image's folder")?;
    }
    fs::create_dir_all(context).context("cannot make the image's folder")?;
    fs::copy(program()?, context.join("detector")).context("the program")?;
    for license in ["LICENSE-APACHE", "LICENSE-MIT"] {
        fs::copy(build::workspace()?.join(license), context.join(license)).context(license)?;
    }
    let materials = materials(commit)?;
    fs::write(context.join("detector.cdx.json"), materials).context("the bill of materials")
}

/// The bill of materials, by CycloneDX: each crate that is linked in, with version, licence and
/// checksum.
fn materials(commit: &Commit) -> Result<String> {
    let name = "detector.cdx";
    let folder = build::workspace()?.join("detector");
    let mut list = Command::new("cargo");
    list.args(["cyclonedx", "--quiet", "--format", "json", "--target", TARGET]);
    list.args(["--override-filename", name, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    // With the time given, it makes no serial number by chance either.
    run(list.env("SOURCE_DATE_EPOCH", &commit.time))?;
    // It writes beside each manifest of the workspace.
    let mut text = None;
    for member in ["detector", "detector/core", "detector-ebpf", "tests", "xtask"] {
        let path = build::workspace()?.join(member).join(format!("{name}.json"));
        if member == "detector" {
            text = Some(fs::read_to_string(&path).context("cargo cyclonedx wrote nothing")?);
        }
        if path.exists() {
            fs::remove_file(&path).context("a bill of materials")?;
        }
    }
    let mut text = text.context("the agent is a member")?;
    for (path, name) in machine()? {
        text = text.replace(&*path.to_string_lossy(), name);
    }
    let value: Value = serde_json::from_str(&text).context("the bill of materials is no JSON")?;
    ensure!(
        value["components"].as_array().is_some_and(|components| components.len() > 50),
        "the bill of materials misses components"
    );
    Ok(text)
}

/// Builds the image, and writes it to an archive; gives its digest.
fn assemble(
    options: &Options,
    folder: &Path,
    context: &Path,
    commit: &Commit,
    archive: &Path,
) -> Result<String> {
    let buildah = || {
        let mut buildah = Command::new("buildah");
        buildah.args(["--storage-driver", "vfs"]);
        buildah.arg("--root").arg(folder.join("storage"));
        buildah.arg("--runroot").arg(folder.join("run"));
        buildah
    };
    let mut bud = buildah();
    bud.args(["bud", "--quiet", "--isolation", "chroot", "--format", "oci", "--no-cache"]);
    bud.args(["--timestamp", &commit.time, "--tag", &options.name]);
    bud.arg(format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")));
    bud.arg(format!("--build-arg=REVISION={}", commit.revision));
    bud.arg("--file").arg(build::workspace()?.join("deploy/image/Dockerfile")).arg(context);
    run(&mut bud)?;
    if archive.exists() {
        fs::remove_file(archive).context("the archive of the last build")?;
    }
    let digest = folder.join("digest");
    let mut push = buildah();
    push.args(["push", "--quiet", "--digestfile"]).arg(&digest).arg(&options.name);
    push.arg(format!("oci-archive:{}:{}", archive.display(), options.name));
    run(&mut push)?;
    Ok(fs::read_to_string(&digest).context("the image's digest")?.trim().to_owned())
}

/// How many bytes a node fetches, and how many it then has.
fn weigh(archive: &Path, folder: &Path) -> Result<(u64, u64)> {
    let layout = folder.join("layout");
    if layout.exists() {
        fs::remove_dir_all(&layout)?;
    }
    fs::create_dir_all(&layout)?;
    run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&layout))?;
    let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(&index["manifests"][0])?)?;
    let mut fetched = manifest["config"]["size"].as_u64().context("a size")?;
    let mut unpacked = 0;
    for layer in manifest["layers"].as_array().context("layers")? {
        fetched += layer["size"].as_u64().context("a size")?;
        let path = blob(layer)?;
        let Some(bytes) = output("sh", &["-c", &format!("gzip -dc '{}' | wc -c", path.display())])
        else {
            bail!("{} cannot be unpacked", path.display());
        };
        unpacked += bytes.trim().parse::<u64>()?;
    }
    Ok((fetched, unpacked))
}
