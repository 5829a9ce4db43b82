//! Compiles the eBPF programs and hands their object to the agent, which carries it inside.

use std::path::Path;
use std::process::{Command, exit};

use aya_build::{Package, Toolchain};

/// Crates that need unstable features: assembly for the BPF target.
const UNSTABLE: &str = "aya_ebpf,detector_programs,detector_packets";

fn main() {
    println!("cargo:rerun-if-env-changed=DETECTOR_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-env-changed=PATH");
    let Some(toolchain) = toolchain() else {
        fail("no Rust toolchain for the BPF target was found");
    };
    if Command::new("bpf-linker").arg("--version").output().is_err() {
        fail("bpf-linker was not found");
    }
    if toolchain != "nightly" {
        // By name: on a compiler that has `core` for that target built in, "1" would ask for building
        // it.
        // SAFETY: this program has one thread.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", UNSTABLE) };
    }
    // Its progress would come out as warnings of this build.
    // SAFETY: this program has one thread.
    unsafe { std::env::set_var("CARGO_TERM_QUIET", "true") };
    let programs = Package {
        name: "detector-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../detector-ebpf"),
        ..Package::default()
    };
    if let Err(error) = aya_build::build_ebpf([programs], Toolchain::Custom(&toolchain)) {
        fail(&format!("the eBPF programs do not build: {error:#}"));
    }
}

/// The toolchain that the environment names, else the first that can serve.
fn toolchain() -> Option<String> {
    if let Ok(chosen) = std::env::var("DETECTOR_BPF_TOOLCHAIN") {
        return Some(chosen);
    }
    let has = |toolchain: &str, path: &str| {
        Command::new("rustup")
            .args(["run", toolchain, "rustc", "--print", "sysroot"])
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .is_some_and(|root| Path::new(root.trim()).join(path).is_dir())
    };
    if has("nightly", "lib/rustlib/src/rust/library/core") {
        Some("nightly".to_owned())
    } else if has("debian", "lib/rustlib/bpfel-unknown-none/lib") {
        Some("debian".to_owned())
    } else {
        None
    }
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}: run `cargo xtask setup`, which installs what is missing");
    exit(1);
}
