//! Fuzzing with the stable compiler: libFuzzer needs no more than what LLVM has on board.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::command::{output, run, run_loud};

/// What is given arbitrary input.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Target {
    /// A pod's annotations and addresses.
    Annotations,
    /// The CNI plugin's configuration.
    #[value(name = "calico_config")]
    CalicoConfig,
    /// An IPAMBlock, and an IPPool.
    Block,
    /// `floatingIPs.allow` of the configuration file.
    #[value(name = "allow_list")]
    AllowList,
}

/// What makes LLVM count the edges that a run takes, and show libFuzzer what is compared with what.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Builds a target and runs it for so long, from the seeds in `fuzz/corpus`. What it finds on the
/// way is kept below `fuzz/target`, and so is the input that makes it fail.
pub(crate) fn fuzz(target: Target, seconds: u32) -> Result<()> {
    let value = target.to_possible_value().context("the target has a name")?;
    let name = value.get_name();
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the workspace")?
        .join("fuzz");
    // With a target given, what is built for the build itself is not instrumented.
    let Some(host) = output("rustc", &["--print", "host-tuple"]) else {
        bail!("rustc does not say what machine this is: install Rust 1.95 or newer");
    };
    let built = fuzz.join("target");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&fuzz).env("RUSTFLAGS", COVERAGE.join(" ")).env_remove("CARGO_TARGET_DIR");
    cargo.args(["build", "--release", "--bin", name, "--target", &host, "--target-dir"]);
    run(cargo.arg(&built))?;

    let found = directory(built.join("corpus").join(name))?;
    let failures = directory(built.join("artifacts").join(name))?;
    let mut program = Command::new(built.join(&host).join("release").join(name));
    program.arg(format!("-max_total_time={seconds}"));
    program.arg(format!("-artifact_prefix={}/", failures.display()));
    // An input that takes so long, or so much memory, is a finding too.
    program.args(["-timeout=10", "-rss_limit_mb=1024", "-max_len=16384", "-print_final_stats=1"]);
    run_loud(program.arg(found).arg(fuzz.join("corpus").join(name)))
}

fn directory(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}
