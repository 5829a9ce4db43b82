//! `cargo xtask`: sets up, demonstrates, tests and measures the detector.
//!
//! Each command first sets up what it needs (see [`setup`]), so that each works on a fresh machine.
//! What the commands print about themselves goes to stderr; stdout belongs to their result.

mod build;
mod command;
mod fuzz;
mod image;
mod package;
mod seccomp;
mod setup;
mod vm;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

/// Sets up, demonstrates, tests and measures the detector.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test the detector; say nothing where nothing is.
    Setup,
    /// Show the product at work: a node with pods, the attack of the bulletin, the finding.
    Demo {
        /// Print the findings only, one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Run all tests: format, lints, units, properties, scenarios on the real kernel.
    Test,
    /// Run scenario files in the engine, on the real kernel and with a real API server; print
    /// expected against found.
    Scenario {
        /// Make a scenario of this recording (`detector run --record`); FILES is its name.
        #[arg(long, value_name = "FILE")]
        from_recording: Option<std::path::PathBuf>,
        /// The row of the catalogue that the new scenario is for, or `twin`.
        #[arg(long, default_value = "twin", requires = "from_recording")]
        id: String,
        /// The files; all that come with the project where none is given.
        files: Vec<std::path::PathBuf>,
    },
    /// Tell random stories of legitimate pods and of attacks in the engine alone, and compare what
    /// it finds with the truth. `-- --help` lists the options.
    Simulate {
        /// Options of the simulator, such as `--lives 1000000 --attacks 100000 --seed 1`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Kill the agent and a real API server at random points while pods come and go and attacks
    /// begin and end; fail where anything false was found, missed, or opened twice.
    Endure {
        /// How often something is killed: fifty times take six minutes.
        #[arg(long, default_value_t = 50)]
        rounds: u32,
        /// What chance follows from; by chance where it is not given.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Give arbitrary input to what reads the words of others, for a time.
    Fuzz {
        /// What reads.
        target: fuzz::Target,
        /// For how long.
        #[arg(long, default_value_t = 600)]
        seconds: u32,
    },
    /// Make the Debian package, and print its path.
    Deb {
        /// Of the program as the tests have it, which is built in seconds.
        #[arg(long)]
        debug: bool,
    },
    /// Run the tests that meet the kernel on other kernels, in virtual machines by emulation.
    Vm(vm::Options),
    /// Build the container image: the agent, linked statically, and nothing else.
    Image(image::Options),
    /// Hold the agent's seccomp profile against what it calls while scenarios happen to it.
    Seccomp,
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Subcommand)]
enum Bench {
    /// From the kernel's route change to the finding's line, beside a plain rtnetlink listener.
    Latency,
    /// A million host routes and a million others, with one hijack among them.
    Churn,
    /// What it costs a writer of routes to be seen.
    Writer,
    /// The agent's traffic and memory in a cluster of 2,000 and of 20,000 pods, with a real API
    /// server, and how soon it names the victim of a hijack there.
    Scale,
    /// What the agent, as it is shipped, takes of a node at peace: time until it is ready, memory,
    /// processor time; with a real API server.
    Footprint,
    /// Time, memory and requests of an audit of 50,000 pods and 5,000 roles and bindings, with a real
    /// API server.
    Audit,
    /// How soon an interface is watched, and whether anything is left of 10,000 that are gone.
    Interfaces,
    /// What two pods can send to each other with the agent and without it.
    Throughput,
    /// A flood of packets for a watched address from ever new sources: what it costs the agent, and
    /// whether all are counted.
    Flood,
    /// How soon a hijack is found while every sink takes what it is told, and while none does.
    Sinks,
    /// What the packet programs cost a packet, beside an empty program.
    Packet,
    /// The engine's cost per observation by the number of routes and claims.
    Engine,
}

fn main() -> ExitCode {
    match run(Xtask::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    setup::run()?;
    // It takes minutes to build, so only what uses it waits for it.
    let clustered = matches!(
        task,
        Task::Setup
            | Task::Test
            | Task::Scenario { .. }
            | Task::Endure { .. }
            | Task::Bench(Bench::Scale | Bench::Footprint | Bench::Audit)
    );
    if clustered {
        setup::kubernetes::run()?;
    }
    if matches!(task, Task::Setup | Task::Test) {
        setup::observers()?;
        setup::bird()?;
        setup::kyverno::run()?;
        setup::containers()?;
        setup::helm::run()?;
        setup::checkov::run()?;
    }
    match task {
        Task::Setup => Ok(()),
        Task::Demo { json } => build::demo(json),
        Task::Test => build::test(),
        Task::Scenario { from_recording, id, files } => match from_recording {
            Some(recording) => build::record(&recording, &id, &files),
            None => build::scenario(&files),
        },
        Task::Simulate { options } => build::simulate(&options),
        Task::Endure { rounds, seed } => build::endure(rounds, seed),
        Task::Fuzz { target, seconds } => fuzz::fuzz(target, seconds),
        Task::Deb { debug } => {
            let profile = if debug { package::Profile::Debug } else { package::Profile::Release };
            println!("{}", package::deb(profile)?.display());
            Ok(())
        }
        Task::Vm(options) => {
            let kernels = setup::machines(options.kernels()).context("nothing can be booted")?;
            vm::run(&options, &kernels)
        }
        Task::Seccomp => seccomp::compare(),
        Task::Image(options) => image::build(&options),
        Task::Bench(Bench::Latency) => build::bench("latency"),
        Task::Bench(Bench::Churn) => build::bench("churn"),
        Task::Bench(Bench::Writer) => build::bench("writer"),
        Task::Bench(Bench::Scale) => build::scale(),
        Task::Bench(Bench::Footprint) => build::bench_footprint(),
        Task::Bench(Bench::Audit) => build::bench_audit(),
        Task::Bench(Bench::Engine) => build::bench_engine(),
        Task::Bench(Bench::Interfaces) => build::bench("interfaces"),
        Task::Bench(Bench::Throughput) => {
            setup::iperf()?;
            build::bench("throughput")
        }
        Task::Bench(Bench::Flood) => build::bench("flood"),
        Task::Bench(Bench::Sinks) => {
            setup::observers()?;
            build::bench("sinks")
        }
        Task::Bench(Bench::Packet) => build::bench_packet(),
    }
}
