//! Virtual machines, by emulation: the agent and its tests on other kernels than this machine's.
//!
//! A machine boots a kernel with a file system in memory that holds our programs, the tools that the
//! tests use, and the libraries of both, all as they are on this machine. Its first process is our own
//! (`tests/src/bin/guest.rs`); it runs what is asked for, one after the other, writes to a second serial
//! line, and ends the machine with an exit code. So a pass, a failure, a crash and a hang can be told
//! apart.
//!
//! The test `systemd` has machines of its own, with a whole Debian in memory (`unit`).

mod machine;
mod ramdisk;
mod report;
pub(crate) mod unit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::machine::Machine;
use self::ramdisk::Ramdisk;
use self::report::Report;
use crate::build;
use crate::command::output;
use crate::setup::kernels::{Fetched, Kernel};

/// The tests of the agent that meet the kernel.
const TESTS: [&str; 4] = ["kernel", "packets", "translations", "witness"];

/// What can be asked for: these, and that of the unit.
const NAMES: [&str; 5] = ["kernel", "packets", "translations", "witness", unit::NAME];

/// The tools that the tests run.
const TOOLS: [&str; 13] = [
    "sh",
    "bird",
    "ip",
    "tc",
    "nft",
    "iptables-nft",
    "iptables-nft-restore",
    "iptables-legacy",
    "iptables-legacy-restore",
    "ip6tables-nft",
    "ip6tables-nft-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-restore",
];

/// Where iptables keeps the code of its matches and targets.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Whom clients trust where nothing else is said; a client wants to have it even if it needs none.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What ends a certificate.
const CERTIFICATE_END: &str = "-----END CERTIFICATE-----\n";

/// How our programs are built: what they need is built as for all other tests, they themselves so that they
/// need a fifth fewer instructions, each of which is emulated.
const BUILT: [&str; 4] = [
    "--config",
    "profile.dev.package.detector.opt-level=1",
    "--config",
    "profile.dev.package.detector-tests.opt-level=1",
];

/// Where programs lie in the machine.
const PROGRAMS: &str = "/programs";

/// How much of the tests.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A kernel; all where none is given, but for the test `systemd`, which is run on 6.1 then.
    #[arg(long)]
    kernel: Vec<Kernel>,
    /// Scenarios, by parts of their names; all where neither they nor tests are given.
    #[arg(long, value_name = "PART")]
    scenario: Vec<String>,
    /// Tests of the agent, by their names; all but `systemd` where neither they nor scenarios are given.
    #[arg(long, value_name = "NAME", value_parser = NAMES)]
    test: Vec<String>,
    /// Of each of the tests only what has this in its name.
    #[arg(long, value_name = "PART")]
    only: Option<String>,
}

/// Scenarios that meet the programs on interfaces and the netfilter of each kernel, and one in which much
/// happens at once: what is run with all other tests. All of them take a quarter of an hour.
const SHORT: [&str; 4] = [
    "e01-traffic-by-route",
    "e20-spoofed-source-far",
    "twin-approved-floating-ip-under-load",
    "twin-churn-short-lives",
];

impl Options {
    /// What is run with all other tests, the unit among it.
    pub(crate) fn short() -> Self {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self { kernel: Vec::new(), scenario: names(&SHORT), test: names(&NAMES), only: None }
    }

    /// The same, but for the unit.
    pub(crate) fn without_unit(mut self) -> Self {
        self.test.retain(|test| test != unit::NAME);
        self
    }

    /// Whether nothing is chosen: then all is meant but the unit.
    fn all(&self) -> bool {
        self.scenario.is_empty() && self.test.is_empty()
    }

    /// Whether the unit is to be tested.
    fn unit(&self) -> bool {
        self.test.iter().any(|test| test == unit::NAME)
    }

    /// Whether anything else is.
    fn others(&self) -> bool {
        self.all() || !self.scenario.is_empty() || self.test.iter().any(|test| test != unit::NAME)
    }

    /// The kernels that are meant.
    pub(crate) fn kernels(&self) -> &[Kernel] {
        match &*self.kernel {
            [] if self.others() => &Kernel::ALL,
            [] => &[Kernel::V6_1],
            kernels => kernels,
        }
    }
}

/// Boots kernels, runs the tests in them, and prints what came of each.
pub(crate) fn run(options: &Options, kernels: &[Fetched]) -> Result<()> {
    let others = if options.others() { others(options, kernels) } else { Ok(()) };
    let unit = if options.unit() {
        let asked = options.kernels().iter().zip(kernels);
        let meant =
            asked.filter(|(kernel, _)| !options.kernel.is_empty() || **kernel == Kernel::V6_1);
        unit::run(&meant.map(|(_, fetched)| fetched).collect::<Vec<_>>())
    } else {
        Ok(())
    };
    others.and(unit)
}

/// Runs all but the test of the unit.
fn others(options: &Options, kernels: &[Fetched]) -> Result<()> {
    let disk = disk(options)?;
    let report = Mutex::new(Report::new(kernels.iter().map(|kernel| kernel.release.clone())));
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    // One for each processor: a machine has one, and is always busy.
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(kernel) = kernels.get(at) else { return };
                let outcome = boot(kernel, disk.clone(), at, &report);
                if let Ok(mut report) = report.lock() {
                    report.ended(at, outcome);
                }
            }
        };
        let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            // What it could not say the report shows as missing.
            let _ = thread.join();
        }
    });
    println!("{at_once} at once, in {:.0} s", started.elapsed().as_secs_f64());
    report.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

fn boot(kernel: &Fetched, mut disk: Ramdisk, at: usize, report: &Mutex<Report>) -> Result<()> {
    eprintln!("vm: booting {}", kernel.release);
    disk.modules(kernel)?;
    Machine::boot(kernel, &disk, &kernel.release)?.watch(|line| {
        if let Ok(mut report) = report.lock() {
            report.line(at, line);
        }
    })
}

/// What all machines boot with: our programs, the tools, and what is to be run.
fn disk(options: &Options) -> Result<Ramdisk> {
    build::programs(&["detector", "scenario", "guest"], &BUILT)?;
    let built = build::target()?.join("debug");
    let mut disk = Ramdisk::default();
    disk.program("/init", &built.join("guest"))?;
    for name in ["detector", "scenario"] {
        disk.program(&format!("{PROGRAMS}/{name}"), &built.join(name))?;
    }
    for tool in TOOLS {
        let path = output("which", &[tool])
            .with_context(|| format!("no {tool}: `cargo xtask setup` installs it"))?;
        disk.program(&format!("/bin/{tool}"), Path::new(&path))?;
    }
    disk.folder(Path::new(XTABLES))?;
    // One will do: each agent that starts reads all of them.
    let all = std::fs::read_to_string(CERTIFICATES)
        .with_context(|| format!("cannot read {CERTIFICATES}: install ca-certificates"))?;
    let (one, _) = all.split_once(CERTIFICATE_END).context("no certificate")?;
    disk.text(CERTIFICATES, &format!("{one}{CERTIFICATE_END}"));
    // The scenario runner knows where they lie.
    disk.folder(&build::workspace()?.join("tests/scenarios"))?;

    let all = options.all();
    let mut commands = Vec::new();
    for (name, path) in tests()?.iter().filter(|(name, _)| all || options.test.contains(name)) {
        disk.program(&format!("{PROGRAMS}/{name}"), path)?;
        let only = options.only.iter().map(|part| format!("\t{part}"));
        commands.push(
            format!("{name}\t{PROGRAMS}/{name}\t--test-threads=1") + &only.collect::<String>(),
        );
    }
    if all || !options.scenario.is_empty() {
        // One after the other: to wait takes no time there. Tracing, and the programs on interfaces where no
        // scenario needs them, are what the tests are about.
        let scenario = format!("scenarios\t{PROGRAMS}/scenario\t--kernel\t--lean\t--jobs\t1");
        let parts = options.scenario.iter().flat_map(|part| ["--only", part]);
        commands.push([scenario.as_str()].into_iter().chain(parts).collect::<Vec<_>>().join("\t"));
    }
    disk.text("/commands", &(commands.join("\n") + "\n"));
    Ok(disk)
}

/// Builds the tests; gives their names and programs.
fn tests() -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--quiet", "--no-run", "--message-format", "json"]).args(BUILT);
    for test in TESTS {
        cargo.args(["--test", test]);
    }
    let built = cargo.output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("the tests do not build: {}", String::from_utf8_lossy(&built.stderr).trim());
    }
    let messages = String::from_utf8(built.stdout).context("cargo prints no text")?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let test = |message: Value| {
        // The agent itself is built with them, and another crate may have a test of the same name.
        let is_test = message["target"]["kind"][0] == "test";
        if !is_test || !message["manifest_path"].as_str()?.ends_with("/detector/Cargo.toml") {
            return None;
        }
        let path = message["executable"].as_str()?.to_owned();
        Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
    };
    Ok(messages.filter_map(test).collect())
}
