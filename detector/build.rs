//! Compiles the eBPF programs and hands their object to the agent, which carries it inside.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

use aya_build::{Package, Toolchain};
use object::build::elf::{Builder, SectionData};
use object::elf::SHT_STRTAB;

/// Crates that need unstable features: assembly for the BPF target.
const UNSTABLE: &str = "aya_ebpf,detector_programs,detector_packets";

/// The objects that there are, by detector-ebpf/Cargo.toml.
const OBJECTS: [&str; 4] =
    ["detector-programs", "detector-packets", "detector-connections", "detector-floors"];

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
        unsafe { env::set_var("RUSTC_BOOTSTRAP", UNSTABLE) };
    }
    // Its progress would come out as warnings of this build.
    // SAFETY: this program has one thread.
    unsafe { env::set_var("CARGO_TERM_QUIET", "true") };
    let programs = Package {
        name: "detector-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../detector-ebpf"),
        ..Package::default()
    };
    if let Err(error) = aya_build::build_ebpf([programs], Toolchain::Custom(&toolchain)) {
        fail(&format!("the eBPF programs do not build: {error:#}"));
    }
    for object in OBJECTS {
        if let Err(error) = lighten(object) {
            fail(&format!("the object {object} cannot be made smaller: {error}"));
        }
    }
}

/// Takes out of an object what is for debuggers only, nine tenths of it: the agent would carry it, and
/// look through all of it each time it starts.
fn lighten(object: &str) -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(env::var("OUT_DIR")?).join(object);
    let bytes = fs::read(&path)?;
    let mut builder = Builder::read(&*bytes)?;
    for section in &mut builder.sections {
        let name = section.name.strip_prefix(b".rel").unwrap_or(&section.name);
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".BTF");
    }
    builder.delete_orphans();
    // LLVM keeps the names of sections with those of symbols; what writes here wants them by themselves.
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut lighter = Vec::new();
    builder.write(&mut lighter)?;
    Ok(fs::write(path, lighter)?)
}

/// The toolchain that the environment names, else the first that can serve.
fn toolchain() -> Option<String> {
    if let Ok(chosen) = env::var("DETECTOR_BPF_TOOLCHAIN") {
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
