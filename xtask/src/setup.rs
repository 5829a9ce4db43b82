//! Finds what building and testing needs, and installs what is missing.
//!
//! The agent itself builds with the stable toolchain of `rust-toolchain`. Its eBPF object needs a
//! Rust compiler with `core` for the BPF target, and bpf-linker. Two ways lead there:
//!
//! 1. rustup's nightly with the component `rust-src`, from which `core` is built;
//! 2. Debian's `rustc-web`, which has `core` for the BPF target built in: it works where rustup can
//!    fetch nothing. It is linked into rustup as the toolchain `debian`.
//!
//! A step that has nothing to do says nothing.

mod apt;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{self, output, succeeds};

/// The version of bpf-linker that Debian's LLVM and both compilers are known to work with.
const BPF_LINKER: &str = "0.13.0";

/// Where Debian's compiler keeps its libraries for the BPF target.
const DEBIAN_BPF_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// What was found.
pub(crate) struct Tools {
    /// The rustup toolchain that compiles for the BPF target.
    pub(crate) bpf_toolchain: &'static str,
}

/// Finds everything, installing what is missing.
pub(crate) fn tools() -> Result<Tools> {
    let bpf_toolchain = bpf_toolchain()?;
    bpf_linker(bpf_toolchain)?;
    if !succeeds("ip", &["-V"]) {
        apt::install("ip makes the routes, links and namespaces of the tests", &["iproute2"])?;
    }
    for component in ["rustfmt", "clippy"] {
        if !succeeds("cargo", &[if component == "clippy" { "clippy" } else { "fmt" }, "--version"])
        {
            say(&format!("adding rustup component {component}: `cargo xtask test` runs it"));
            run_rustup(&["component", "add", component])?;
        }
    }
    Ok(Tools { bpf_toolchain })
}

/// The toolchain for the BPF target.
fn bpf_toolchain() -> Result<&'static str> {
    if has_nightly_with_source() {
        return Ok("nightly");
    }
    if has_debian_toolchain() {
        return Ok("debian");
    }
    if !Path::new(DEBIAN_BPF_CORE).is_dir() {
        if !Path::new("/etc/debian_version").exists() {
            bail!(
                "no Rust toolchain can compile for the BPF target: install one with \
                 `rustup toolchain install nightly --component rust-src`"
            );
        }
        apt::install(
            "a Rust compiler with the BPF target, for the eBPF programs",
            &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"],
        )
        .context(
            "without these packages, `rustup toolchain install nightly --component rust-src` \
             serves as well",
        )?;
    }
    say("linking /usr into rustup as toolchain `debian`");
    run_rustup(&["toolchain", "link", "debian", "/usr"])?;
    if !has_debian_toolchain() {
        bail!(
            "Debian's Rust compiler has no `core` for the BPF target in {DEBIAN_BPF_CORE}: install \
             libstd-rust-web-dev-bpf of the same version as rustc-web"
        );
    }
    Ok("debian")
}

fn has_nightly_with_source() -> bool {
    output("rustup", &["run", "nightly", "rustc", "--print", "sysroot"])
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir())
}

fn has_debian_toolchain() -> bool {
    Path::new(DEBIAN_BPF_CORE).is_dir()
        && output("rustup", &["run", "debian", "rustc", "--print", "sysroot"])
            .is_some_and(|root| root == "/usr")
}

fn bpf_linker(toolchain: &str) -> Result<()> {
    if succeeds("bpf-linker", &["--version"]) {
        return Ok(());
    }
    let mut install = Command::new("cargo");
    install.args(["install", "--locked", "bpf-linker", "--version", BPF_LINKER]);
    if toolchain == "debian" {
        if !Path::new("/usr/lib/llvm-22/include/llvm").is_dir() {
            apt::install(
                "the LLVM that bpf-linker is built with, the same as rustc-web's",
                &["llvm-22-dev", "libzstd-dev", "zlib1g-dev", "libxml2-dev"],
            )?;
        }
        install.args(["--no-default-features", "--features", "llvm-22"]);
        install.env("LLVM_PREFIX", "/usr/lib/llvm-22");
    }
    say(&format!("building bpf-linker {BPF_LINKER}: it links the eBPF object (about a minute)"));
    command::run(&mut install)?;
    if !succeeds("bpf-linker", &["--version"]) {
        bail!("bpf-linker was installed but is not found: add cargo's bin folder to PATH");
    }
    Ok(())
}

fn run_rustup(arguments: &[&str]) -> Result<()> {
    command::run(Command::new("rustup").args(arguments))
}

/// Says what is being done.
pub(crate) fn say(text: &str) {
    eprintln!("setup: {text}");
}
