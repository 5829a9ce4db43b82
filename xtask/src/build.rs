//! The commands that build and run the project's own programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{run, run_loud};
use crate::setup::Tools;

/// Shows the product at work.
pub(crate) fn demo(tools: &Tools, json: bool) -> Result<()> {
    cargo(tools, &["build", "--quiet", "--package", "detector", "--bin", "detector"])?;
    cargo(tools, &["build", "--quiet", "--package", "detector-tests", "--bin", "demo"])?;
    let mut demo = program("demo", "debug")?;
    if json {
        demo.arg("--json");
    }
    run_loud(&mut demo)
}

/// Runs all tests, cheapest first.
pub(crate) fn test(tools: &Tools) -> Result<()> {
    let steps: [(&str, &[&str]); 4] = [
        ("format", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("agent", &["build", "--quiet", "--package", "detector", "--bin", "detector"]),
        ("tests", &["test", "--no-fail-fast"]),
    ];
    for (name, arguments) in steps {
        eprintln!("== {name}");
        cargo(tools, arguments)?;
    }
    eprintln!("== scenarios");
    scenario(tools, &[])
}

/// Runs scenarios at both rungs.
pub(crate) fn scenario(tools: &Tools, files: &[PathBuf]) -> Result<()> {
    cargo(tools, &["build", "--quiet", "--package", "detector", "--bin", "detector"])?;
    cargo(tools, &["build", "--quiet", "--package", "detector-tests", "--bin", "scenario"])?;
    run_loud(program("scenario", "debug")?.args(files))
}

/// Runs one of the benchmarks that need the agent.
pub(crate) fn bench(tools: &Tools, name: &str) -> Result<()> {
    let quiet = ["build", "--quiet", "--release", "--package"];
    cargo(tools, &[&quiet[..], &["detector", "--bin", "detector"]].concat())?;
    cargo(tools, &[&quiet[..], &["detector-tests", "--bin", "bench"]].concat())?;
    run_loud(program("bench", "release")?.arg(name))
}

/// Runs the engine's benchmark.
pub(crate) fn bench_engine(tools: &Tools) -> Result<()> {
    cargo_loud(tools, &["bench", "--quiet", "--package", "detector-core", "--bench", "engine"])
}

fn cargo(tools: &Tools, arguments: &[&str]) -> Result<()> {
    run(&mut cargo_command(tools, arguments))
}

fn cargo_loud(tools: &Tools, arguments: &[&str]) -> Result<()> {
    run_loud(&mut cargo_command(tools, arguments))
}

fn cargo_command(tools: &Tools, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments);
    // Read by detector/build.rs, which compiles the eBPF programs.
    command.env("DETECTOR_BPF_TOOLCHAIN", tools.bpf_toolchain);
    command
}

/// One of our own programs, as cargo built it.
fn program(name: &str, profile: &str) -> Result<Command> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask lies in the workspace")?
            .join("target"),
    };
    Ok(Command::new(target.join(profile).join(name)))
}
