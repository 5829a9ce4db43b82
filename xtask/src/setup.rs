//! Finds what building and testing needs, and installs what is missing.
//!
//! The agent itself builds with stable Rust. Its eBPF object needs a
//! Rust compiler with `core` for the BPF target, and bpf-linker. Two ways lead there:
//!
//! 1. rustup's nightly with the component `rust-src`, from which `core` is built;
//! 2. Debian's `rustc-web`, which has `core` for the BPF target built in: it works where rustup can
//!    fetch nothing. It is linked into rustup as the toolchain `debian`.
//!
//! detector/build.rs takes the first of the two that it finds. A step that has nothing to do says
//! nothing, and each is decided by running what it is about, so that nothing has to be remembered.

mod apt;
pub(crate) mod checkov;
mod golang;
pub(crate) mod helm;
pub(crate) mod kernels;
pub(crate) mod kubernetes;
pub(crate) mod kyverno;
pub(crate) mod userland;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use self::apt::Need;
use self::kernels::{Fetched, Kernel};
use crate::command::{self, output, succeeds};

/// The version of bpf-linker that Debian's LLVM and compiler are known to work with.
const BPF_LINKER: &str = "0.13.0";

/// What makes the Debian package.
const CARGO_DEB: &str = "3.8.0";

/// Where Debian's compiler keeps its libraries for the BPF target.
const DEBIAN_BPF_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// The LLVM of Debian's compiler.
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

const IP: Need = Need {
    why: "`ip` makes the routes, links and namespaces of the tests",
    packages: &["iproute2"],
};

const NETFILTER: Need = Need {
    why: "`nft` and `iptables` write the rules of the tests that translate destinations",
    packages: &["nftables", "iptables"],
};

const IPERF: Need =
    Need { why: "`iperf3` sends as much as goes, to measure it", packages: &["iperf3"] };

const JOURNALD: Need =
    Need { why: "`journald` keeps the findings that tests look for there", packages: &["systemd"] };

const PROMETHEUS: Need = Need {
    why: "`prometheus` scrapes the agent, `promtool` checks the rules that come with it",
    packages: &["prometheus"],
};

const ALERTMANAGER: Need = Need {
    why: "`prometheus-alertmanager` takes the alerts of the agent",
    packages: &["prometheus-alertmanager"],
};

const BIRD: Need =
    Need { why: "`bird` writes routes, and tests look for who wrote them", packages: &["bird2"] };

const RUNTIMES: Need = Need {
    why: "`crun` and `runc` run the agent in a container, as a node would",
    packages: &["crun", "runc"],
};

const STRACE: Need = Need { why: "`strace` tells what the agent calls", packages: &["strace"] };

const BUILDAH: Need = Need { why: "`buildah` builds the container image", packages: &["buildah"] };

/// The version of cargo-cyclonedx whose output is known.
const CYCLONEDX: &str = "0.5.9";

const QEMU: Need = Need {
    why: "virtual machines run the tests on other kernels",
    packages: &["qemu-system-x86", "kmod", "xz-utils", "binutils"],
};

const COMPILER: Need = Need {
    why: "a Rust compiler with the BPF target, for the eBPF programs",
    packages: &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
};

const LLVM: Need = Need {
    why: "the LLVM that bpf-linker is built with, the same as rustc-web's",
    packages: &["llvm-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"],
};

/// What compiles for the BPF target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// rustup's nightly, with the source of `core`.
    Nightly,
    /// Debian's, with `core` built in.
    Debian,
}

/// Finds everything, installing what is missing.
pub(crate) fn run() -> Result<()> {
    let compiler = if has_nightly_with_source() { Compiler::Nightly } else { Compiler::Debian };
    let has_linker = succeeds("bpf-linker", &["--version"]);

    // All packages at once: whoever has to ask an administrator asks once.
    let mut needs = Vec::new();
    if !succeeds("ip", &["-V"]) {
        needs.push(IP);
    }
    let writers = ["nft", "iptables-nft", "iptables-legacy"];
    if !writers.iter().all(|program| succeeds(program, &["--version"])) {
        needs.push(NETFILTER);
    }
    if compiler == Compiler::Debian {
        if !Path::new(DEBIAN_BPF_CORE).is_dir() {
            needs.push(COMPILER);
        }
        if !has_linker && !Path::new(DEBIAN_LLVM).join("include/llvm").is_dir() {
            needs.push(LLVM);
        }
    }
    if !needs.is_empty() {
        let installed = apt::install(&needs);
        if needs.contains(&COMPILER) {
            installed.context(
                "no toolchain compiles for the BPF target (one that does, without packages: \
                 `rustup toolchain install nightly --component rust-src`)",
            )?;
        } else {
            installed?;
        }
    }

    if compiler == Compiler::Debian && !has_debian_toolchain() {
        link_debian_toolchain()?;
    }
    if !has_linker {
        install_linker(compiler)?;
    }
    for (component, subcommand) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if !succeeds("cargo", &[subcommand, "--version"]) {
            say(&format!("adding rustup component {component}: `cargo xtask test` runs it"));
            rustup(&["component", "add", component])?;
        }
    }
    Ok(())
}

/// Finds what virtual machines with these kernels need. Where it fails, there can be none.
pub(crate) fn machines(kernels: &[Kernel]) -> Result<Vec<Fetched>> {
    if !cfg!(target_arch = "x86_64") {
        bail!("virtual machines are made for x86-64 only");
    }
    if !succeeds("apt-get", &["--version"]) {
        bail!("there is no apt-get here, which fetches Debian's kernels");
    }
    let programs = ["qemu-system-x86_64", "modprobe", "xz", "strip"];
    if !programs.iter().all(|program| succeeds(program, &["--version"])) {
        apt::install(&[QEMU])?;
    }
    bird()?;
    let fetch = |kernel: &Kernel| kernels::fetch(*kernel).context("a kernel cannot be fetched");
    kernels.iter().map(fetch).collect()
}

/// Finds what makes the Debian package.
pub(crate) fn packager() -> Result<()> {
    if succeeds("cargo", &["deb", "--version"]) {
        return Ok(());
    }
    say(&format!("building cargo-deb {CARGO_DEB}: it makes the Debian package (a minute)"));
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", "cargo-deb", "--version", CARGO_DEB]);
    command::run(&mut install).context("there is no cargo-deb, so there is no Debian package")
}

/// Finds what only one of the measurements needs.
pub(crate) fn iperf() -> Result<()> {
    if succeeds("iperf3", &["--version"]) { Ok(()) } else { apt::install(&[IPERF]) }
}

/// Finds a routing daemon, and does not let it run.
pub(crate) fn bird() -> Result<()> {
    if succeeds("bird", &["--version"]) {
        return Ok(());
    }
    apt::install(&[BIRD])?;
    stop("bird")
}

/// Where systemd runs, Debian starts what it installs; the tests start their own.
fn stop(service: &str) -> Result<()> {
    if succeeds("systemctl", &["is-active", "--quiet", service]) {
        command::run(Command::new("systemctl").args(["disable", "--now", service]))?;
    }
    Ok(())
}

/// Finds what takes in what the agent gives: journald, Prometheus, Alertmanager.
pub(crate) fn observers() -> Result<()> {
    let has = |program: &str| succeeds(program, &["--version"]);
    let mut needs = Vec::new();
    if !has("journalctl") || !Path::new("/lib/systemd/systemd-journald").is_file() {
        needs.push(JOURNALD);
    }
    if !has("prometheus") || !has("promtool") {
        needs.push(PROMETHEUS);
    }
    if !has("prometheus-alertmanager") {
        needs.push(ALERTMANAGER);
    }
    if needs.is_empty() {
        return Ok(());
    }
    apt::install(&needs)?;
    for service in ["prometheus", "prometheus-alertmanager"] {
        if needs.iter().any(|need| need.packages.contains(&service)) {
            stop(service)?;
        }
    }
    Ok(())
}

/// Finds what runs containers.
pub(crate) fn containers() -> Result<()> {
    if ["crun", "runc"].iter().all(|program| succeeds(program, &["--version"])) {
        return Ok(());
    }
    apt::install(&[RUNTIMES])
}

/// Finds what traces system calls.
pub(crate) fn strace() -> Result<()> {
    if succeeds("strace", &["--version"]) {
        return Ok(());
    }
    apt::install(&[STRACE])
}

/// Finds what builds images: buildah, and what lists the crates that go into one.
pub(crate) fn images() -> Result<()> {
    if !succeeds("buildah", &["--version"]) {
        apt::install(&[BUILDAH])?;
    }
    if !succeeds("cargo", &["cyclonedx", "--version"]) {
        say(&format!("building cargo-cyclonedx {CYCLONEDX}: it lists what is in the image"));
        let mut install = Command::new("cargo");
        install.args(["install", "--locked", "cargo-cyclonedx", "--version", CYCLONEDX]);
        command::run(&mut install)?;
    }
    Ok(())
}

/// A nightly without the source of `core` is of no use: it has nothing for the BPF target.
fn has_nightly_with_source() -> bool {
    output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn has_debian_toolchain() -> bool {
    Path::new(DEBIAN_BPF_CORE).is_dir()
        && output("rustup", &["run", "debian", "rustc", "--print", "sysroot"])
            .is_some_and(|root| root == "/usr")
}

fn link_debian_toolchain() -> Result<()> {
    say("linking /usr into rustup as the toolchain `debian`: detector/build.rs compiles with it");
    rustup(&["toolchain", "link", "debian", "/usr"])?;
    if !has_debian_toolchain() {
        bail!(
            "Debian's Rust compiler has no `core` for the BPF target in {DEBIAN_BPF_CORE}: install \
             libstd-rust-web-dev-bpf of the same version as rustc-web"
        );
    }
    Ok(())
}

/// bpf-linker must know the LLVM of the compiler. For Debian's it is built from source with Debian's
/// LLVM; for nightly its authors publish it with an LLVM of its own inside.
fn install_linker(compiler: Compiler) -> Result<()> {
    let mut install = Command::new("cargo");
    match compiler {
        Compiler::Debian => {
            say(&format!("building bpf-linker {BPF_LINKER}: it links the eBPF object (a minute)"));
            install.args(["install", "--locked", "bpf-linker", "--version", BPF_LINKER]);
            install.args(["--no-default-features", "--features", "llvm-22"]);
            install.env("LLVM_PREFIX", DEBIAN_LLVM);
        }
        Compiler::Nightly if succeeds("cargo", &["binstall", "-V"]) => {
            say("fetching bpf-linker: it links the eBPF object");
            install.args(["binstall", "--no-confirm", "bpf-linker"]);
        }
        Compiler::Nightly => bail!(
            "no bpf-linker, which links the eBPF object: put its newest release for this machine \
             (https://github.com/aya-rs/bpf-linker/releases) into PATH, or run \
             `cargo install cargo-binstall` and then this again"
        ),
    }
    command::run(&mut install)?;
    if !succeeds("bpf-linker", &["--version"]) {
        bail!("bpf-linker was installed but is not found: add cargo's bin folder to PATH");
    }
    Ok(())
}

fn rustup(arguments: &[&str]) -> Result<()> {
    command::run(Command::new("rustup").args(arguments))
}

/// Says what is being done.
fn say(text: &str) {
    eprintln!("setup: {text}");
}
