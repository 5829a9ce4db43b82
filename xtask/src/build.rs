//! The commands that build and run the project's own programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{is_root, run, run_loud};
use crate::{image, setup, vm};

/// Shows the product at work.
pub(crate) fn demo(json: bool) -> Result<()> {
    programs(&["detector", "demo"], &[])?;
    let mut demo = program("demo", "debug")?;
    if json {
        demo.arg("--json");
    }
    run_loud(&mut demo)
}

/// Runs all tests, cheapest first.
pub(crate) fn test() -> Result<()> {
    let steps: [(&str, &[&str]); 3] = [
        ("format", &["fmt", "--all", "--check"]),
        ("lints", &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("tests", &["test", "--no-fail-fast"]),
    ];
    if !is_root() {
        // cargo shows nothing of a test that passes, and so not that it did nothing.
        eprintln!("skipped: all that needs namespaces, eBPF or another user; run this as root");
    }
    for (name, arguments) in steps {
        eprintln!("== {name}");
        cargo(arguments)?;
    }
    eprintln!("== scenarios");
    scenario(&[])?;
    eprintln!("== kernels");
    let mut options = vm::Options::short();
    if let Err(why) = vm::unit::prepare() {
        eprintln!("skipped: {why:#}, so the unit runs under no systemd");
        options = options.without_unit();
    }
    match setup::machines(options.kernels()) {
        Ok(kernels) => vm::run(&options, &kernels),
        Err(why) => {
            eprintln!("skipped: {why:#}, so nothing runs on other kernels");
            Ok(())
        }
    }
}

/// Runs scenarios at all rungs.
pub(crate) fn scenario(files: &[PathBuf]) -> Result<()> {
    programs(&["detector", "scenario"], &[])?;
    run_loud(program("scenario", "debug")?.args(files))
}

/// Makes a scenario of a recording.
pub(crate) fn record(recording: &Path, id: &str, name: &[PathBuf]) -> Result<()> {
    programs(&["scenario"], &[])?;
    let mut make = program("scenario", "debug")?;
    run_loud(make.arg("--from-recording").arg(recording).args(["--id", id]).args(name))
}

/// Tells random stories in the engine alone.
pub(crate) fn simulate(options: &[String]) -> Result<()> {
    programs(&["simulate"], &["--release"])?;
    run_loud(program("simulate", "release")?.args(options))
}

/// Runs one of the benchmarks that need the agent.
pub(crate) fn bench(name: &str) -> Result<()> {
    programs(&["detector", "bench"], &["--release"])?;
    run_loud(program("bench", "release")?.arg(name))
}

/// Measures the agent in large clusters.
pub(crate) fn scale() -> Result<()> {
    run_loud(cluster()?.arg("scale"))
}

/// Measures what the agent takes of a node at peace, as it is shipped.
pub(crate) fn bench_footprint() -> Result<()> {
    let shipped = image::program()?;
    run_loud(cluster()?.arg("footprint").env("DETECTOR_BIN", std::fs::canonicalize(shipped)?))
}

/// Measures the audit of a large cluster.
pub(crate) fn bench_audit() -> Result<()> {
    run_loud(cluster()?.arg("audit"))
}

/// Wears the agent.
pub(crate) fn endure(rounds: u32, seed: Option<u64>) -> Result<()> {
    let mut endure = cluster()?;
    endure.args(["endure", "--rounds", &rounds.to_string()]);
    if let Some(seed) = seed {
        endure.args(["--seed", &seed.to_string()]);
    }
    run_loud(&mut endure)
}

/// The program that needs the agent and a real API server.
fn cluster() -> Result<Command> {
    programs(&["detector", "cluster"], &["--release"])?;
    program("cluster", "release")
}

/// Runs the packet programs' benchmark. The kernel runs and times the programs, which are optimised in any
/// profile, so that the rest need not be.
pub(crate) fn bench_packet() -> Result<()> {
    let of = ["--quiet", "--profile", "dev", "--package", "detector", "--bench", "packet"];
    cargo_loud(&[&["bench"], &of[..]].concat())
}

/// Runs the engine's benchmark.
pub(crate) fn bench_engine() -> Result<()> {
    cargo_loud(&["bench", "--quiet", "--package", "detector-core", "--bench", "engine"])
}

/// Builds programs of the workspace, all in one call for the whole workspace: for a part of it cargo
/// would choose other features of what all depend on, and build that anew.
pub(crate) fn programs(names: &[&str], options: &[&str]) -> Result<()> {
    let mut build = Command::new("cargo");
    build.args(["build", "--quiet", "--workspace"]).args(options);
    for name in names {
        build.args(["--bin", name]);
    }
    run(&mut build)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new("cargo").args(arguments))
}

fn cargo_loud(arguments: &[&str]) -> Result<()> {
    run_loud(Command::new("cargo").args(arguments))
}

/// One of our own programs, as cargo built it.
fn program(name: &str, profile: &str) -> Result<Command> {
    Ok(Command::new(target()?.join(profile).join(name)))
}

/// The workspace's folder.
pub(crate) fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => Ok(PathBuf::from(target)),
        None => Ok(workspace()?.join("target")),
    }
}
