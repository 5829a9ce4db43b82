//! `detector`: what was typed, done.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use detector::agent;
use detector::cli::{Cli, Command, LogFormat, RunArgs};
use detector::config::{self, ConfigError};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Run(args) => return run(&args),
        Command::Config(command) => {
            command.run(&mut std::io::stdout().lock(), &mut std::io::stderr().lock())
        }
    };
    match code {
        Ok(code) => ExitCode::from(code),
        // Nobody reads any more; there is nobody to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: &RunArgs) -> ExitCode {
    let config = match config::load(args) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), ConfigError::EXIT_CODE),
    };
    init_log(args);
    keep_to_one_arena();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("no threads for the agent: raise the limit of processes");
    let ended = runtime.and_then(|runtime| runtime.block_on(agent::run(config, args)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

/// Makes the allocator give all threads one arena: what listings leave behind in an arena for each
/// thread is a seventh of the agent's memory, and its threads allocate too little to be in each
/// other's way.
fn keep_to_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) changes a number that the allocator reads when a thread first allocates; it
    // takes no pointers, and at this point the process has no other thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// One line on stderr, and the exit code.
fn complain(line: &str, code: u8) -> ExitCode {
    // Where stderr is gone there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "detector: {line}");
    ExitCode::from(code)
}

/// The agent's own log, on stderr. Of other libraries only what they warn of: they log requests,
/// and so what is in them.
fn init_log(args: &RunArgs) {
    let level = LevelFilter::from_level(args.log_level.into());
    let filter =
        Targets::new().with_target("detector", level).with_default(level.min(LevelFilter::WARN));
    let layer = match args.log_format {
        LogFormat::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_target(false)
            .boxed(),
        LogFormat::Json => fmt::layer().with_writer(std::io::stderr).json().boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}
